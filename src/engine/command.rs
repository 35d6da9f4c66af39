//! What the engine thread is told, and what it tells.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::amounts;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::engine::error::LoadError;
use crate::engine::error::OpenError;
use crate::engine::error::StepError;
use crate::engine::source::TensorSource;
use crate::ids::ModelId;
use crate::ids::SessionId;
use crate::ids::Token;
use crate::sampling::Choice;
use crate::sampling::History;
use crate::shape::ModelShape;
use crate::shape::WireDtype;
use crate::units::UnitRange;
use crate::wire::control::SamplingParameters;

/// Names one stage of one session: one peer may be two stages of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageKey {
    /// The session.
    pub session: SessionId,
    /// The stage's units.
    pub range: UnitRange,
}

/// What the engine thread is told. Carried out in order, except that loading goes on beside the steps.
#[derive(Debug)]
pub enum EngineCommand {
    /// Load a unit range; answered by `Loading`s and then `Loaded` or `LoadFailed`.
    Load(Load),
    /// Let go of a loaded range, or of one being loaded; answered by `Unloaded`. Its memory is free once the sessions on it are.
    Unload {
        /// The model.
        model: ModelId,
        /// The range, exactly as loaded.
        range: UnitRange,
    },
    /// Open a stage of a session; answered by `Opened` or `OpenFailed`.
    Open(Box<Open>),
    /// Feed positions through stages, each step answered by a `Stepped`. Steps on the same loaded units go in one pass;
    /// those of one stage of a session are made in the order given.
    Steps(Vec<Step>),
    /// Forget a stage of a session, if there is one. Not answered.
    Free {
        /// The session and stage.
        key: StageKey,
    },
    /// End the thread; answered by `Stopped`. Dropping all handles does the same.
    Stop,
}

/// Asks for a unit range to be loaded.
pub struct Load {
    /// The model.
    pub model: ModelId,
    /// Its hyper-parameters.
    pub shape: ModelShape,
    /// The units.
    pub range: UnitRange,
    /// Where the tensors come from; let go of when loaded.
    pub source: Arc<dyn TensorSource>,
}

impl fmt::Debug for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Load({:?} {})", self.model, self.range)
    }
}

/// Asks for a stage of a session to be opened.
#[derive(Clone, Debug)]
pub struct Open {
    /// The session and stage.
    pub key: StageKey,
    /// The model.
    pub model: ModelId,
    /// The stage's units; may be a part of a loaded range.
    pub range: UnitRange,
    /// Positions at most.
    pub capacity: Position,
    /// Unit boundaries at which hidden states are rounded; those inside the range are applied by the engine.
    pub rounding: Vec<(u16, WireDtype)>,
    /// What the tail needs to sample; nothing for the other stages.
    pub tail: Option<TailState>,
}

/// What the tail samples with.
#[derive(Clone, Debug, PartialEq)]
pub struct TailState {
    /// How to choose.
    pub parameters: SamplingParameters,
    /// Tokens of the prompt, whose count is the position of the first new one.
    pub prompt_length: Position,
    /// What was fed so far: the prompt, and after a recovery the accepted tokens. Empty if no parameter looks back.
    pub history: History,
}

/// Asks for positions to be fed through a stage.
#[derive(Clone, Debug)]
pub struct Step {
    /// The session and stage.
    pub key: StageKey,
    /// What goes in.
    pub input: StepInput,
    /// The position of the first row.
    pub first: Position,
    /// Rows of the input.
    pub count: u32,
    /// What to do if the session is beyond `first`.
    pub rewind: Rewind,
    /// What is to come out.
    pub output: StepOutput,
}

/// What goes into a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepInput {
    /// Token ids, for the driver.
    Tokens(Vec<Token>),
    /// Hidden states `[count, width]` as received.
    Hidden {
        /// Row-major, little-endian.
        payload: Bytes,
        /// How they are stored.
        dtype: WireDtype,
    },
}

/// Whether a step may go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewind {
    /// The first position must be the session's length.
    Refuse,
    /// A session beyond the first position forgets what it has from there on.
    Allow,
}

/// What is to come out of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepOutput {
    /// Hidden states, to be sent in this dtype.
    Hidden(WireDtype),
    /// The token after the last row; only where the session was opened with a tail's state.
    Sample,
    /// Nothing: the model's end, and more of the prompt follows.
    Nothing,
}

/// What the engine thread tells.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineEvent {
    /// Some tensors were read. Dropped if the receiver is behind.
    Loading {
        /// The model.
        model: ModelId,
        /// The range.
        range: UnitRange,
        /// Bytes read so far.
        done: amounts::Bytes,
    },
    /// The range can be opened.
    Loaded {
        /// The model.
        model: ModelId,
        /// The range.
        range: UnitRange,
        /// Bytes of its weights.
        bytes: amounts::Bytes,
        /// How long loading took.
        took: Span,
    },
    /// The range cannot be loaded.
    LoadFailed {
        /// The model.
        model: ModelId,
        /// The range.
        range: UnitRange,
        /// Why.
        error: LoadError,
    },
    /// The range can no longer be opened.
    Unloaded {
        /// The model.
        model: ModelId,
        /// The range.
        range: UnitRange,
    },
    /// The stage can be stepped.
    Opened {
        /// The session and stage.
        key: StageKey,
    },
    /// The stage cannot be opened.
    OpenFailed {
        /// The session and stage.
        key: StageKey,
        /// Why.
        error: OpenError,
    },
    /// A step was made, or not.
    Stepped {
        /// The session and stage.
        key: StageKey,
        /// The step's first position.
        first: Position,
        /// The step's rows.
        count: u32,
        /// What came out.
        result: Result<StepResult, StepError>,
        /// How long its pass took.
        took: Span,
        /// Its part of that, by its rows.
        share: Span,
    },
    /// The thread has ended. The last event.
    Stopped,
}

/// What came out of a step.
#[derive(Clone, Debug, PartialEq)]
pub enum StepResult {
    /// Hidden states `[count, width]`, row-major, little-endian, in the dtype asked for.
    Hidden(Bytes),
    /// The token at position `first + count`.
    Sampled(Choice),
    /// Nothing was asked for.
    Nothing,
}
