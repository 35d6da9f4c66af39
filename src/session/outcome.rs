//! How a generation ends, as its user is told.

use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::units::Chain;
use crate::units::Stage;
use crate::units::UnitRange;
use crate::wire::control::DeclineReason;
use crate::wire::control::StageFailure;
use crate::wire::control::StageReport;
use crate::wire::control::TailFinish;

/// How a generation ended, and what it cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// Why the tail ended it.
    pub reason: TailFinish,
    /// What each stage reports, in chain order; `None` where no report came in time.
    pub stages: Vec<Option<StageReport>>,
    /// What is owed for the session, in chain order.
    pub owed: Vec<Mflop>,
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

fn list(ranges: &[UnitRange]) -> String {
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
