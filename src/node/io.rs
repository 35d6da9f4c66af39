//! What the node is told and what it asks for: the whole contract between the pure core and whoever drives it.
//!
//! The driver (the daemon, or a simulator) calls `Node::handle` with one [`Input`] and performs
//! the returned [`Action`]s in order. It calls again with [`Input::Tick`] no later than the node's deadline.

use std::sync::Arc;

use crate::amounts::Bytes;
use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::ids::RequestId;
use crate::ids::SessionId;
use crate::ids::StageIndex;
use crate::ids::StreamId;
use crate::ids::Token;
use crate::shape::ModelShape;
use crate::shape::WireDtype;
use crate::units::Chain;
use crate::units::UnitRange;
use crate::wire::control::DeclineReason;
use crate::wire::control::FromStage;
use crate::wire::control::SamplingParameters;
use crate::wire::control::StageFailure;
use crate::wire::control::StageReport;
use crate::wire::control::TailFinish;
use crate::wire::control::TailOffer;
use crate::wire::control::ToStage;
use crate::wire::control::TokenLogprobs;
use crate::wire::credit::CreditEntry;
use crate::wire::hop::HopBack;
use crate::wire::hop::HopForward;
use crate::wire::hop::HopOpen;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// This peer's user wants an answer.
    Submit {
        /// Names the request in the deliveries that follow.
        request: RequestId,
        /// The session's name, drawn at random by the driver.
        session: SessionId,
        /// What to generate.
        spec: GenerateSpec,
    },
    /// The user no longer wants it.
    Cancel(RequestId),
    /// A model's manifest is at hand, from a file or from a peer.
    ModelKnown(Arc<ModelFacts>),
    /// A model's weights are at hand, to be served under this policy.
    Serve {
        /// The model; `ModelKnown` came before.
        model: ModelId,
        /// How much of it to hold.
        policy: HoldPolicy,
    },
    /// A connection to the peer is up.
    PeerUp(PeerKey),
    /// The last connection to the peer is gone.
    PeerDown(PeerKey),
    /// A round trip was measured.
    RoundTrip(PeerKey, Span),
    /// A gossiped record whose signature was verified.
    Gossip(crate::wire::gossip::Gossip),
    /// Something happened to a stream.
    Stream(StreamId, StreamInput),
    /// The engine finished something.
    Engine(EngineInput),
    /// A credit entry and what follows from it were written and flushed.
    EntryStored(CreditEntry),
    /// A credit entry could not be written.
    EntryNotStored(CreditEntry),
    /// This peer is to leave: no new leases.
    Drain,
    /// Time passed.
    Tick,
}

/// Something that happened to a stream.
#[derive(Clone, Debug)]
pub enum StreamInput {
    /// A stream asked for by `OpenControl` or `OpenHop` is open; for a hop, `HopOpen` was sent.
    Opened,
    /// It could not be opened.
    OpenFailed(OpenFailure),
    /// A requester opened a control stream; the driver chose the id.
    ControlArrived(PeerKey),
    /// An upstream stage opened a hop; the driver chose the id.
    HopArrived(PeerKey, HopOpen),
    /// On a control stream that a requester opened.
    ToStage(ToStage),
    /// On a control stream that this peer opened.
    FromStage(FromStage),
    /// On a hop that arrived.
    Forward(HopForward),
    /// On a hop that this peer opened.
    Back(HopBack),
    /// The stream has ended; nothing more comes.
    Closed(CloseCause),
}

/// Why a stream could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenFailure {
    /// The peer cannot be dialled or did not answer in time.
    Unreachable,
    /// The peer does not speak the protocol, or no common version of it.
    Unsupported,
    /// Too many streams here.
    LocalLimit,
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCause {
    /// The other side closed it in order.
    Finished,
    /// The connection went away.
    Lost,
    /// The other side sent bytes that are no message.
    Malformed,
    /// This side's queue of outgoing messages was full.
    Overflow,
}

/// What to generate.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateSpec {
    /// The model; its facts must be known.
    pub model: ModelId,
    /// The prompt's tokens, at least one.
    pub prompt: Vec<Token>,
    /// How to choose.
    pub parameters: SamplingParameters,
    /// New tokens at most, at least 1; prompt and new tokens must fit the context.
    pub max_tokens: u32,
    /// Ids that end the generation.
    pub end_of_generation: Vec<Token>,
    /// The dtype of hidden states between stages.
    pub wire: WireDtype,
    /// Which peers may see the prompt.
    pub trust: Trust,
}

/// Which peers a prompt may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trust {
    /// This machine's own peer, the allow-list, and members of the same private network.
    Known,
    /// Any peer.
    Open,
}

/// What is known of a model from its manifest.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelFacts {
    /// The model.
    pub id: ModelId,
    /// The hyper-parameters.
    pub shape: ModelShape,
    /// Bytes of the tensors of each unit, by unit; a tensor of two units counts in both.
    pub unit_bytes: Vec<Bytes>,
    /// Bytes of all tensors, each once.
    pub bytes: Bytes,
    /// The most common weight format, by name.
    pub quantisation: String,
    /// A title for people.
    pub title: String,
}

/// How much of a model a peer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldPolicy {
    /// This range, always.
    Pinned(UnitRange),
    /// What the mesh lacks most and memory allows, at most so many units.
    Automatic {
        /// The cap, if there is one.
        max_units: Option<u16>,
    },
}

/// Names the state of one stage of one session in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageKey {
    /// The session.
    pub session: SessionId,
    /// The stage; one peer may be two stages of one session.
    pub stage: StageIndex,
}

/// What the engine reports.
#[derive(Clone, Debug)]
pub enum EngineInput {
    /// The units are in memory; measured time for one position through one unit of them.
    Loaded(ModelId, UnitRange, Span),
    /// They could not be loaded; the text is for the operator.
    LoadFailed(ModelId, UnitRange, String),
    /// A step is done; its time in the engine.
    Stepped {
        /// Whose step.
        key: StageKey,
        /// The position after the last one computed.
        end: Position,
        /// What came of it.
        output: StepOutput,
        /// How long it took.
        took: Span,
    },
    /// A step failed.
    StepFailed(StageKey, StepFailure),
}

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepFailure {
    /// A hidden state or logit was not finite.
    NonFinite,
    /// The input does not fit the model: wrong length, unknown token.
    BadInput,
    /// Anything else, for the operator; holds nothing of the prompt.
    Engine(String),
}

/// What came of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum StepOutput {
    /// Hidden states for the next stage, row-major, little-endian in the dtype asked for.
    Hidden(bytes::Bytes),
    /// The next token.
    Sampled {
        /// The token.
        token: Token,
        /// Log-probabilities if asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// The tail computed rows of the prompt's beginning: nothing to pass on.
    Nothing,
}

/// What a step computes from.
#[derive(Clone, Debug, PartialEq)]
pub enum StepInput {
    /// Token ids, for unit 0.
    Tokens(Vec<Token>),
    /// Hidden states, row-major, little-endian in this dtype.
    Hidden(bytes::Bytes, WireDtype),
}

/// What is wanted of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepWanted {
    /// Hidden states in this dtype.
    Hidden(WireDtype),
    /// A token sampled after the last row.
    Token,
    /// Only the cache.
    Nothing,
}

/// Something to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Open a control stream to the peer (or to this peer itself) under this id.
    OpenControl(StreamId, PeerKey),
    /// Open a hop to the peer (or to this peer itself) under this id and send `HopOpen`.
    OpenHop(StreamId, PeerKey, HopOpen),
    /// Send on a stream.
    Send(StreamId, Outgoing),
    /// Send what is queued, then end the stream.
    Close(StreamId),
    /// Tell the engine.
    Engine(EngineAction),
    /// Gossip a record.
    Publish(crate::wire::gossip::Gossip),
    /// Write and flush the entry, then say `EntryStored`.
    Store(CreditEntry),
    /// Tell this peer's user.
    Deliver(RequestId, Delivery),
    /// Try to connect.
    Dial(PeerKey),
}

/// A message for a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Outgoing {
    /// From requester to stage.
    ToStage(ToStage),
    /// From stage to requester.
    FromStage(FromStage),
    /// Down a hop.
    Forward(HopForward),
    /// Up a hop.
    Back(HopBack),
}

/// What the engine is to do, in the order given.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineAction {
    /// Bring units into memory.
    Load(ModelId, UnitRange),
    /// Drop units.
    Unload(ModelId, UnitRange),
    /// Make room for a session's stage.
    Open {
        /// Its name.
        key: StageKey,
        /// The model.
        model: ModelId,
        /// The stage's units, inside a range that is loaded.
        range: UnitRange,
        /// Positions at most.
        capacity: Position,
        /// What the tail needs to sample.
        tail: Option<TailOffer>,
    },
    /// Compute one step. If the cache is longer than `first`, it is rewound to it.
    Step {
        /// Whose step.
        key: StageKey,
        /// The position of the first row.
        first: Position,
        /// The rows.
        input: StepInput,
        /// What is wanted.
        wanted: StepWanted,
    },
    /// Free the session's stage.
    Free(StageKey),
}

/// What a user is told about a request. Ends with exactly one `Finished` or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Delivery {
    /// A chain is leased and the prompt is on its way.
    Started(Chain),
    /// A new token.
    Token {
        /// Its position.
        position: Position,
        /// The token.
        token: Token,
        /// Log-probabilities if asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// The generation ended as it should.
    Finished(Finish),
    /// It ended early. The answer is not complete.
    Failed(GenerateFailure),
}

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
