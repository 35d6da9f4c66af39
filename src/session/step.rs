//! Steps of the engine, as a session sees them.

use crate::ids::SessionId;
use crate::ids::Token;
use crate::shape::WireDtype;
use crate::units::UnitRange;
use crate::wire::control::TokenLogprobs;

/// Names the state of one stage of one session in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageKey {
    /// The session.
    pub session: SessionId,
    /// The stage's units; one peer may be two stages of one session. Its place in the chain may change, its units don't.
    pub range: UnitRange,
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
