//! What can go wrong when a stage is loaded or stepped, and whose fault it is.

use crate::amounts::Position;
use crate::ids::Token;
use crate::sampling::SampleError;
use crate::units::UnitRange;

/// Why a stage was not loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The hyper-parameters contradict themselves.
    #[error("the model's shape is not possible: {reason}")]
    BadShape {
        /// What contradicts what.
        reason: &'static str,
    },
    /// The range reaches beyond the model.
    #[error("units {range} were asked for, but the model has {units}")]
    OutsideModel {
        /// The range asked for.
        range: UnitRange,
        /// Units of the model.
        units: u16,
    },
    /// The source does not have a tensor that the range needs.
    #[error("tensor {name} is missing")]
    Missing {
        /// GGUF's name.
        name: String,
    },
    /// A tensor's dimensions are not those of the model's shape.
    #[error("tensor {name} has the dimensions {got:?}, expected {expected:?}")]
    WrongDimensions {
        /// GGUF's name.
        name: String,
        /// Dimensions that the shape gives, fastest first.
        expected: Vec<u64>,
        /// Dimensions found, fastest first.
        got: Vec<u64>,
    },
    /// A row does not fill whole blocks of the tensor's format.
    #[error("tensor {name} has rows of {columns} elements, which do not fill whole blocks of {block}")]
    RaggedRows {
        /// GGUF's name.
        name: String,
        /// Elements of a row.
        columns: u64,
        /// Elements of a block.
        block: u64,
    },
    /// A tensor has too few or too many bytes for its dimensions.
    #[error("tensor {name} has {got} bytes, expected {expected}")]
    WrongLength {
        /// GGUF's name.
        name: String,
        /// Bytes that dimensions and format give.
        expected: u64,
        /// Bytes found.
        got: u64,
    },
    /// A tensor that scales others holds a value that is not finite or, for a divisor, not above 0.
    #[error("tensor {name} holds a value that cannot be")]
    BadValue {
        /// GGUF's name.
        name: String,
    },
    /// The device failed; most often it has no room left.
    #[error("tensor {name} cannot be brought to the device: {message}")]
    Device {
        /// GGUF's name.
        name: String,
        /// What its driver said.
        message: String,
    },
    /// A defect of this program.
    #[error("loading failed unexpectedly: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
}

/// Why a session was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// No loaded range of the model covers the one asked for.
    #[error("units {range} of the model are not loaded")]
    NotLoaded {
        /// The range asked for.
        range: UnitRange,
    },
    /// The session has this stage already.
    #[error("the session's stage is open already")]
    AlreadyOpen,
    /// The capacity is 0 or exceeds the model's context.
    #[error("a capacity of {got} positions was asked for, the model's context is {context}")]
    BadCapacity {
        /// Positions asked for.
        got: Position,
        /// Positions that the model allows.
        context: Position,
    },
    /// Only a stage with the last unit samples.
    #[error("a sampler was given to units {range}, which do not end the model")]
    NotTail {
        /// The range asked for.
        range: UnitRange,
    },
}

/// Why a step was not made. The session is as it was before the step, after the rewind if one was allowed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StepError {
    /// No such session and stage.
    #[error("the session's stage is not open")]
    UnknownSession,
    /// No positions.
    #[error("a step needs at least one position")]
    Empty,
    /// The first position does not follow the last one in the cache.
    #[error("expected position {expected}, got {got}")]
    OutOfOrder {
        /// The cache's length.
        expected: Position,
        /// The step's first position.
        got: Position,
    },
    /// The session would exceed what it was opened for.
    #[error("{wanted} positions exceed the session's {capacity}")]
    Full {
        /// Positions that the session was opened for.
        capacity: Position,
        /// Positions after this step.
        wanted: Position,
    },
    /// Tokens for a stage without the embedding, or hidden states for one with it.
    #[error("units {range} take {expected}")]
    WrongInput {
        /// The session's range.
        range: UnitRange,
        /// What they take.
        expected: &'static str,
    },
    /// The payload's length is not that of the stated rows.
    #[error("expected {expected} elements or bytes, got {got}")]
    WrongLength {
        /// Elements (of rows) or bytes (of a payload) that the step states.
        expected: usize,
        /// Those given.
        got: usize,
    },
    /// A token id that the vocabulary does not have.
    #[error("token {token} is outside the vocabulary of {vocabulary}")]
    OutsideVocabulary {
        /// The token.
        token: Token,
        /// Token ids of the model.
        vocabulary: u32,
    },
    /// A hidden state that came in is not finite.
    #[error("a hidden state received is not finite")]
    NonFiniteInput,
    /// A hidden state or logit that was computed is not finite.
    #[error("a hidden state or logit computed is not finite")]
    NonFinite,
    /// Logits or a token were asked of a stage that does not end the model or was opened without a sampler.
    #[error("the session's stage does not sample")]
    NotTail,
    /// Hidden states were asked of the stage that ends the model.
    #[error("the session's stage ends the model and gives no hidden states")]
    NoHidden,
    /// The logits give no distribution.
    #[error("no token can be chosen: {0}")]
    Sample(#[from] SampleError),
    /// The session is on other units than the first of its pass.
    #[error("units {got} in a pass through units {expected}")]
    OtherUnits {
        /// The units of the pass.
        expected: UnitRange,
        /// The session's.
        got: UnitRange,
    },
    /// The thread that computes cannot be made to round to nearest and keep denormals.
    #[error("the processor does not round as the engine needs it to")]
    Rounding,
    /// The device failed; most often it has no room left.
    #[error("the device failed: {message}")]
    Device {
        /// What its driver said.
        message: String,
    },
    /// A defect of this program.
    #[error("the step failed unexpectedly: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
}

impl From<candle_core::Error> for StepError {
    fn from(error: candle_core::Error) -> Self {
        Self::Device { message: error.to_string() }
    }
}

/// Who pays for a failed step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepFault {
    /// Whoever sent the input: the upstream neighbour or the requester.
    Sender,
    /// The request itself: these weights and this prompt give nothing finite, on any machine.
    Request,
    /// This machine or program.
    Local,
}

impl StepError {
    /// Who pays: reputation charges the sender, the operator hears about local ones.
    pub fn fault(&self) -> StepFault {
        match self {
            Self::Empty
            | Self::OutOfOrder { .. }
            | Self::Full { .. }
            | Self::WrongInput { .. }
            | Self::WrongLength { .. }
            | Self::OutsideVocabulary { .. }
            | Self::NonFiniteInput => StepFault::Sender,
            Self::NonFinite | Self::Sample(_) => StepFault::Request,
            Self::UnknownSession
            | Self::NotTail
            | Self::NoHidden
            | Self::OtherUnits { .. }
            | Self::Rounding
            | Self::Device { .. }
            | Self::Panicked { .. } => StepFault::Local,
        }
    }
}
