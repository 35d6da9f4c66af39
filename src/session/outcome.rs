//! How a generation ends, as its user is told.

use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::shape::WeightFormat;
use crate::units::Chain;
use crate::units::Stage;
use crate::units::UnitRange;
use crate::wire::commitment::Commitment;
use crate::wire::control::DeclineReason;
use crate::wire::control::StageFailure;
use crate::wire::control::StageReport;
use crate::wire::control::TailFinish;
use crate::wire::signed::Signed;

/// How a generation ended, and what it cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// Why the tail ended it.
    pub reason: TailFinish,
    /// What each stage reports, in chain order; `None` where no report came in time.
    pub stages: Vec<Option<StageReport>>,
    /// What is owed for the session, in chain order.
    pub owed: Vec<Mflop>,
    /// With redundancy, every chain that computed the answer; first the one that the other fields are about.
    pub replicas: Vec<ReplicaReport>,
    /// The lies that were found.
    pub lies: Vec<Lie>,
}

impl Finish {
    /// One of which nothing is known but the reason.
    pub const fn of(reason: TailFinish) -> Self {
        Self { reason, stages: Vec::new(), owed: Vec::new(), replicas: Vec::new(), lies: Vec::new() }
    }
}

/// One of the chains that computed an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaReport {
    /// The chain.
    pub chain: Chain,
    /// What each stage reports, in chain order; `None` where no report came in time.
    pub stages: Vec<Option<StageReport>>,
    /// What is owed for the session, in chain order.
    pub owed: Vec<Mflop>,
    /// How many of the tokens that were shown it computed as well.
    pub tokens: u32,
    /// What became of it.
    pub fate: Fate,
}

/// What became of one of the chains that computed an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It computed the answer.
    Agreed,
    /// It was lost on the way, or given up while it was being mended.
    Lost,
    /// It computed something else.
    Outvoted,
}

/// Something that two chains computed differently, though it can only be computed in one way.
#[derive(Clone, Debug, PartialEq)]
pub struct Lie {
    /// Who lied: one stage, or several of which one did.
    pub suspects: Vec<Stage>,
    /// Whether it is certain.
    pub certainty: Certainty,
    /// What was computed for the positions before this one differs, or the token at it.
    pub position: Position,
    /// What they signed, the suspects first and then those that contradict them. Empty where they have not signed.
    pub evidence: Vec<Signed<Commitment>>,
}

/// Whether it is certain who lied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// It signed that it received what others did, and that it made something else of it.
    Proven,
    /// The stages contradict each other, and others contradict the chain that they are in.
    OneOfThem,
    /// Two chains contradict each other, and nobody else was asked.
    Undecided,
}

/// An answer that goes on in another chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mended {
    /// The chain.
    pub chain: Chain,
    /// The stages of the one before that are not in it.
    pub lost: Vec<Stage>,
    /// Tokens that were known: positions that stages in the others' places have to build again.
    pub known: Position,
    /// From the first sign of trouble until all stages of the chain were there.
    pub took: Span,
}

/// Why a generation failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GenerateFailure {
    /// Nobody holds these units.
    #[error("no peer holds unit{} {} of the model", if missing.len() == 1 { "s" } else { " ranges" }, list(missing))]
    NoCover {
        /// The units that nobody holds, or that no peer the prompt may go to holds.
        missing: Vec<UnitRange>,
        /// Whether peers outside the trusted ones hold them.
        held_by_untrusted: bool,
    },
    /// There is a chain, but not of weights as precise as asked for.
    #[error(
        "no chain computes the model with weights of {asked} or better: the best that peers hold has units in {found}"
    )]
    TooCoarse {
        /// The coarsest format that was accepted.
        asked: WeightFormat,
        /// The coarsest in the best chain there is.
        found: WeightFormat,
    },
    /// The model's manifest is not known here.
    #[error("model {0} is not known to this peer")]
    UnknownModel(ModelId),
    /// The prompt is empty, or no new token was asked for.
    #[error("the prompt is empty, or no new token was asked for")]
    NothingAsked,
    /// Prompt and new tokens exceed the context.
    #[error("prompt ({prompt} tokens) + max_tokens ({max_tokens}) exceed the model's context of {context}")]
    TooLong {
        /// Tokens of the prompt.
        prompt: u32,
        /// New tokens asked for.
        max_tokens: u32,
        /// The model's context.
        context: u32,
    },
    /// A stage gave no lease, and no other chain was to be had.
    #[error("peer {} declined units {range}: {reason:?}", peer.short())]
    Declined {
        /// Who declined.
        peer: PeerKey,
        /// What it was asked for.
        range: UnitRange,
        /// Why.
        reason: DeclineReason,
        /// When to ask again.
        retry_after: Option<Span>,
    },
    /// A stage could not be dialled, or did not answer the offer, and no other chain was to be had.
    #[error("peer {} serving units {range} could not be reached", peer.short())]
    Unreachable {
        /// Who.
        peer: PeerKey,
        /// What it was asked for.
        range: UnitRange,
    },
    /// A stage could not reach the next one, and no other chain was to be had.
    #[error("peer {} could not reach peer {} serving units {range}, though this peer reaches both", from.short(), to.short())]
    HopFailed {
        /// Who could not reach the other.
        from: PeerKey,
        /// Who could not be reached.
        to: PeerKey,
        /// What the latter was asked for.
        range: UnitRange,
    },
    /// A stage was lost in mid-answer.
    #[error("peer {} serving units {range} was lost in mid-answer", peer.short())]
    StageLost {
        /// Who was lost.
        peer: PeerKey,
        /// What it served.
        range: UnitRange,
    },
    /// A stage reported that it cannot go on.
    #[error("peer {} serving units {range} failed: {failure:?}", peer.short())]
    StageFailed {
        /// Who reported.
        peer: PeerKey,
        /// What it served.
        range: UnitRange,
        /// Its report.
        failure: StageFailure,
    },
    /// A stage broke the protocol.
    #[error("peer {} serving units {range} broke the protocol", peer.short())]
    Misbehaved {
        /// Who.
        peer: PeerKey,
        /// What it served.
        range: UnitRange,
    },
    /// As many chains as were asked for, each of other peers, are not to be had.
    #[error("{asked} chains of different peers were asked for, and {found} found{}", lacking(missing))]
    TooFewReplicas {
        /// How many were asked for.
        asked: u8,
        /// How many there are.
        found: u8,
        /// Units of which one more holder is needed.
        missing: Vec<UnitRange>,
    },
    /// Two chains computed different things, and it could not be found out in time who is right; or what was shown was wrong.
    #[error("peers {} and {} serving units {range} computed different things for position {position}", one.short(), other.short())]
    Disputed {
        /// One peer that may be wrong.
        one: PeerKey,
        /// The other.
        other: PeerKey,
        /// What they serve.
        range: UnitRange,
        /// Where they differ.
        position: Position,
    },
    /// The user cancelled.
    #[error("cancelled")]
    Cancelled,
    /// As many requests as this peer takes are under way.
    #[error("this peer has as many requests under way as it takes")]
    Busy,
    /// This peer is leaving.
    #[error("this peer is shutting down")]
    Draining,
}

fn lacking(ranges: &[UnitRange]) -> String {
    if ranges.is_empty() { String::new() } else { format!(": units {} have no more holders", list(ranges)) }
}

fn list(ranges: &[UnitRange]) -> String {
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
