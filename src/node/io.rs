//! What the node is told and what it asks for: the whole contract between the pure core and whoever drives it.
//!
//! The driver (the daemon, or a simulator) calls `Node::handle` with one [`Input`] and performs
//! the returned [`Action`]s in order. It calls again with [`Input::Tick`] no later than the node's deadline.
//!
//! **Stream ids**: the node names the streams it opens with even ids; the driver names those that arrive with odd ones.
//! A stream to this peer itself has two ends here and so two ids, one of each kind. After `Close`, `OpenFailed` or
//! `Closed` nothing more is sent on a stream, and what still arrives on it is ignored.
//!
//! **Steps**: the engine answers every step with one `Stepped` or `StepFailed`, a stage's steps in the order given, also those
//! of a stage that was freed meanwhile. The node hands over the next steps when all are answered.

use std::sync::Arc;

use crate::amounts::Bytes;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::estimate::Footprint;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::ids::RequestId;
use crate::ids::SessionId;
use crate::ids::StreamId;
use crate::ids::Token;
use crate::ledger::Fork;
pub use crate::session::outcome::Certainty;
pub use crate::session::outcome::Fate;
pub use crate::session::outcome::Finish;
pub use crate::session::outcome::GenerateFailure;
pub use crate::session::outcome::Lie;
pub use crate::session::outcome::Mended;
pub use crate::session::outcome::ReplicaReport;
pub use crate::session::replicas::Redundancy;
pub use crate::session::step::StageKey;
pub use crate::session::step::StepFailure;
pub use crate::session::step::StepInput;
pub use crate::session::step::StepOutput;
pub use crate::session::step::StepWanted;
pub use crate::session::streams::CloseCause;
pub use crate::session::streams::OpenFailure;
pub use crate::session::streams::Outgoing;
use crate::shape::ModelShape;
use crate::shape::WeightFormat;
use crate::shape::WireDtype;
use crate::units::Chain;
use crate::units::UnitRange;
use crate::units::UnitWeights;
use crate::wire::control::FromStage;
use crate::wire::control::SamplingParameters;
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
    /// The user no longer wants it: every stage is freed, what was done is settled without a word.
    Cancel(RequestId),
    /// The user has enough, because a stop string was found: the work is settled and `Finished` delivered, with
    /// `TailFinish::EndOfGeneration` as its reason unless the tail was first. Tokens are not delivered any more.
    Conclude(RequestId),
    /// A model's manifest is at hand, from a file or from a peer.
    ModelKnown(Arc<ModelFacts>),
    /// The units of a model whose weights are on this machine's disk and given to other peers.
    Given(ModelId, Vec<UnitRange>),
    /// A model is to be served under this policy.
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
    /// This peer is to leave: no new leases, and those that others have are handed over. It may go when `Node::is_drained` says so.
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
    /// How long an answer that has begun may wait for the place of a lost stage to be taken; then it fails.
    pub patience: Span,
    /// How many chains compute the answer.
    pub redundancy: Redundancy,
    /// The coarsest format that weights may have, if not any.
    pub min_quant: Option<WeightFormat>,
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
    /// What it takes in memory.
    pub footprint: Footprint,
    /// Bytes of all tensors, each once.
    pub bytes: Bytes,
    /// The format that most weights have, or that was asked for when it was made.
    pub format: WeightFormat,
    /// The model that it was made of by quantising, if it was.
    pub source: Option<ModelId>,
    /// The models that can take its place, from the most precise to the coarsest: itself first, then those made of it.
    pub precisions: Vec<ModelId>,
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
        /// How long it took, with those that it was computed with.
        took: Span,
        /// Its part of that.
        share: Span,
    },
    /// A step failed.
    StepFailed(StageKey, StepFailure),
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
    /// Write the proof that a requester has cheated. Nothing waits for it.
    StoreFork(Box<Fork>),
    /// Tell this peer's user.
    Deliver(RequestId, Delivery),
    /// Try to connect.
    Dial(PeerKey),
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
        /// Unit boundaries at which hidden states are rounded; those inside the range are the engine's.
        rounding: Vec<(u16, WireDtype)>,
        /// What the tail needs to sample.
        tail: Option<TailOffer>,
    },
    /// Compute these steps together, each of another stage of a session.
    Steps(Vec<StageStep>),
    /// Free the session's stage.
    Free(StageKey),
}

/// One stage's step. If its cache is longer than `first`, it is rewound to it.
#[derive(Clone, Debug, PartialEq)]
pub struct StageStep {
    /// Whose step.
    pub key: StageKey,
    /// The position of the first row.
    pub first: Position,
    /// The rows.
    pub input: StepInput,
    /// What is wanted.
    pub wanted: StepWanted,
}

/// What a user is told about a request. Ends with exactly one `Finished` or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Delivery {
    /// A chain is leased and the prompt is on its way; with whose weights each unit is computed, also if it is mended.
    Started(Chain, UnitWeights),
    /// A stage is lost and nobody can take its place, for this reason; it is waited for.
    Waiting(GenerateFailure),
    /// The answer goes on in another chain.
    Mended(Mended),
    /// A lie was found. If it can be told what is right, the answer goes on with that.
    Caught(Box<Lie>),
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
