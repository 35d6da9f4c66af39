//! The stream between a requester and one stage of its session, opened by the requester.
//!
//! `Offer` comes first; the stage opens its hop downstream, waits for its upstream neighbour's, and answers `Accept`
//! or `Decline`. When all have accepted, the requester sends the prompt to the driver. Tokens come back from the tail.
//! Closing the stream is cancelling.
//!
//! The stream outlives a chain. When a stage is lost or a hop broken, the requester leases what is missing and sends the others
//! `Reconfigure`; each opens its hop in the newer chain and answers `Rejoined`; `Resume` says to all where to go on. The same
//! is done for a stage that says `Leaving`, which goes on until then.

use crate::amounts::Bytes;
use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::Epoch;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::ids::SessionId;
use crate::ids::StageIndex;
use crate::ids::Token;
use crate::shape::WireDtype;
use crate::units::Chain;
use crate::wire::commitment::Commitment;
use crate::wire::credit::CreditEntry;
use crate::wire::signed::Signed;

mod codec;
mod offer_codec;

/// The most tokens one `Feed` may carry.
pub const MAX_FEED: usize = 16_384;

/// Bytes of a message on a control stream, at most: an offer with a long history.
pub const MAX_CONTROL: usize = 1 << 20;

/// The longest lease without a `Ping` (arbitrary).
pub const MAX_LEASE: Span = Span::seconds(3_600);

/// The most logit biases of one session.
pub const MAX_BIAS: usize = 1_024;

/// The most top log-probabilities of one token.
pub const MAX_LOGPROBS: usize = 20;

/// The most ids that end a generation.
pub const MAX_END_OF_GENERATION: usize = 16;

/// The longest message of a failed engine, in bytes.
pub const MAX_ENGINE_MESSAGE: usize = 200;

/// What a requester says to a stage.
#[derive(Clone, Debug, PartialEq)]
pub enum ToStage {
    /// Asks for a lease. The first message.
    Offer(Box<Offer>),
    /// Prompt tokens, to the driver only, in order.
    Feed(Feed),
    /// Asks for a `Pong` with the same number; renews the lease.
    Ping(u64),
    /// What the requester owes the stage, signed. Sent when the session has ended.
    Settle(Box<CreditEntry>),
    /// Names the stage's place in a newer chain of its session.
    Reconfigure(Box<Reconfigure>),
    /// All stages of the newer chain are there: go on.
    Resume(Resume),
}

/// What a stage says to the requester.
#[derive(Clone, Debug, PartialEq)]
pub enum FromStage {
    /// The lease is held and the hops on both sides are open.
    Accept,
    /// No lease.
    Decline(Decline),
    /// A token, from the tail only.
    Token(TokenOut),
    /// Answers `Ping`.
    Pong(u64),
    /// The session cannot go on, as this stage sees it. The stage has freed it.
    Failed(StageFailure),
    /// The entry was verified and stored; what the stage counted.
    Settled(StageReport),
    /// The entry was refused.
    NotSettled(SettleRefusal),
    /// Answers `Reconfigure`.
    Rejoined(Rejoined),
    /// A hop is of no use any more. The stage holds what it has, and waits for a newer chain.
    HopBroken(HopBroken),
    /// The stage is about to leave. It computes until it is let go, or has to go.
    Leaving,
    /// What it received and what it made of it, if the offer asked for that.
    Committed(Box<Signed<Commitment>>),
}

/// Asks for a lease on one stage of a chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    /// The session.
    pub session: SessionId,
    /// The chain's version.
    pub epoch: Epoch,
    /// The model of the session.
    pub model: ModelId,
    /// The model whose weights the receiver computes with: that of the session, or one that was made of it by quantising.
    pub weights: ModelId,
    /// Every stage, so that each knows its neighbours.
    pub chain: Chain,
    /// The receiver's place in it.
    pub stage: StageIndex,
    /// Unit boundaries at which hidden states are rounded, ascending, each with its dtype; others are f32.
    pub rounding: Vec<(u16, WireDtype)>,
    /// Positions that the session may use: prompt and new tokens.
    pub budget: Position,
    /// How long the lease lasts without a `Ping`.
    pub expires_after: Span,
    /// What the tail needs to sample; given to the tail only.
    pub sampling: Option<TailOffer>,
    /// Whether the session begins with this chain.
    pub begins: Begins,
    /// Whether the stage is to commit itself.
    pub commits: Commits,
}

/// Whether a stage commits itself to what it receives and sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Commits {
    /// Nobody compares it with another.
    #[default]
    No,
    /// At every multiple of [`COMMIT_EVERY`](crate::wire::commitment::COMMIT_EVERY) positions, at the end of the prompt, and at
    /// every step after it.
    Yes,
}

/// Whether a session begins with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// All stages begin with position 0, at once.
    Here,
    /// It began with an earlier one: the stage computes when `Resume` has come.
    Earlier,
}

/// A newer chain of a session that goes on, to a stage that is in both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reconfigure {
    /// The newer chain's version.
    pub epoch: Epoch,
    /// Every stage. The receiver's units are those that it has leased.
    pub chain: Chain,
    /// The receiver's place in it.
    pub stage: StageIndex,
    /// How many tokens the requester knows, prompt included.
    pub known: Position,
}

/// Where a stage is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// The chain's version.
    pub epoch: Epoch,
    /// Positions of the receiver's cache that stay. Its inputs begin with this one.
    pub keep: Position,
    /// Positions that the next stage has: it lacks this one and those that follow.
    pub next_keep: Position,
}

/// What a stage has when it stands in a newer chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejoined {
    /// The chain's version.
    pub epoch: Epoch,
    /// Positions that its cache holds.
    pub length: Position,
    /// The first position of its journal, which ends where its cache does: `length` if it has none.
    pub journal: Position,
    /// At the driver: the tokens that it heard from the tail and the requester does not know, from the first of these.
    pub heard: Vec<Token>,
}

/// A hop that is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HopBroken {
    /// The chain's version.
    pub epoch: Epoch,
    /// The neighbour's stage.
    pub stage: StageIndex,
    /// The neighbour.
    pub peer: PeerKey,
    /// In what way.
    pub how: Break,
}

/// In what way a hop broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// It closed, could not be opened or did not come.
    Lost,
    /// The neighbour broke the protocol.
    Breach,
}

/// What the tail needs to know to sample and to end.
#[derive(Clone, Debug, PartialEq)]
pub struct TailOffer {
    /// How to choose.
    pub parameters: SamplingParameters,
    /// Tokens of the prompt, whose count is the position of the first new one.
    pub prompt_length: Position,
    /// The prompt's tokens, and those that followed, if a parameter looks back; else empty.
    pub history: Vec<Token>,
    /// How many new tokens at most, at least 1.
    pub max_tokens: u32,
    /// Ids that end the generation, ascending, at most 16.
    pub end_of_generation: Vec<Token>,
}

/// How the next token is chosen from the logits. Checked at the door: every number is finite and in its range.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParameters {
    /// 0 is greedy; otherwise logits are divided by it. `0..=100`.
    pub temperature: f32,
    /// Only the most probable `top_k`; 0 is all.
    pub top_k: u32,
    /// Only the most probable whose probabilities sum to this. `(0, 1]`, 1 is all.
    pub top_p: f32,
    /// Only those at least this fraction of the most probable. `[0, 1]`, 0 is all.
    pub min_p: f32,
    /// Divides (or multiplies, if negative) logits of tokens seen in the last `penalty_window`. `(0, 10]`, 1 is none.
    pub repetition_penalty: f32,
    /// Subtracted per earlier occurrence among the new tokens. `-2..=2`, 0 is none.
    pub frequency_penalty: f32,
    /// Subtracted once if it occurred among the new tokens. `-2..=2`, 0 is none.
    pub presence_penalty: f32,
    /// How many last tokens (prompt included) `repetition_penalty` looks back; 0 is all.
    pub penalty_window: u32,
    /// Added to logits, ascending by token, at most 1,024, each `-100..=100`.
    pub logit_bias: Vec<(Token, f32)>,
    /// How many top log-probabilities to report; `None` reports none, `Some(0)` only the chosen token's. At most 20.
    pub logprobs: Option<u8>,
    /// The seed of the counter-based generator.
    pub seed: u64,
}

impl Default for SamplingParameters {
    /// Greedy, without penalties, bias or log-probabilities.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_window: 64,
            logit_bias: Vec::new(),
            logprobs: None,
            seed: 0,
        }
    }
}

impl SamplingParameters {
    /// Whether the choice depends on earlier tokens, so that the tail needs them.
    pub fn looks_back(&self) -> bool {
        self.repetition_penalty != 1.0 || self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }
}

/// A piece of the prompt for the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feed {
    /// The position of the first token.
    pub first: Position,
    /// The tokens, `1..=MAX_FEED`.
    pub tokens: Vec<Token>,
    /// Whether this is the end of the prompt, after which the tail samples.
    pub last: LastFeed,
}

/// Whether a `Feed` ends the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastFeed {
    /// More follows.
    No,
    /// The tail samples after it.
    Yes,
}

/// No lease, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decline {
    /// Why.
    pub reason: DeclineReason,
    /// When to ask again, if that may help.
    pub retry_after: Option<Span>,
}

/// Why a stage gives no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeclineReason {
    /// It does not hold these units of this model (any more).
    NotHeld,
    /// No memory for the session's keys and values.
    NoMemory,
    /// As many sessions as it will take.
    Busy,
    /// It is leaving.
    Draining,
    /// Its downstream neighbour could not be reached.
    DownstreamUnreachable,
    /// Its upstream neighbour did not come in time.
    UpstreamMissing,
    /// The budget exceeds the model's context, or the offer disagrees with the model.
    BadOffer,
    /// It serves only allow-listed peers.
    NotAllowed,
    /// The session is known at this or a newer epoch.
    Fenced,
}

/// A token from the tail.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenOut {
    /// The chain's version.
    pub epoch: Epoch,
    /// The token's position in the session.
    pub position: Position,
    /// The token.
    pub token: Token,
    /// Set on the last token.
    pub finish: Option<TailFinish>,
    /// The chosen token's log-probability and the top ones, if asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Log-probabilities at one position, natural, of the distribution before temperature and cuts.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprobs {
    /// Of the chosen token.
    pub chosen: f32,
    /// The most probable, best first, at most 20.
    pub top: Vec<(Token, f32)>,
}

/// Why the tail ends a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailFinish {
    /// The token is one that ends generation; it is not text.
    EndOfGeneration,
    /// `max_tokens` was reached.
    MaxTokens,
    /// The lease's budget or the context was reached.
    Budget,
}

/// Why a session cannot go on, as one stage sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StageFailure {
    /// The hop to a neighbour closed or went silent.
    HopLost {
        /// The neighbour's stage.
        stage: StageIndex,
        /// The neighbour.
        peer: PeerKey,
    },
    /// A neighbour broke the protocol.
    BadFrame {
        /// The neighbour's stage.
        stage: StageIndex,
        /// The neighbour.
        peer: PeerKey,
    },
    /// The engine failed; the message is for people, at most 200 bytes, and holds nothing of the prompt.
    Engine(String),
    /// A hidden state or logit was not finite.
    NonFinite,
    /// The lease ran out.
    Expired,
    /// The stage is leaving.
    Draining,
    /// The requester broke the protocol.
    BadRequest,
    /// The engine has had a step for much longer than it should.
    Stuck,
}

/// What a stage counted during a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageReport {
    /// Positions computed.
    pub positions: Position,
    /// Bytes of tensor payload sent down its hop.
    pub payload: Bytes,
    /// Frames sent down its hop.
    pub frames: u64,
    /// Time in the engine.
    pub busy: Span,
}

/// Why a credit entry was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettleRefusal {
    /// The signature, hash chain or form is wrong.
    Invalid,
    /// It credits less than was done.
    TooLittle {
        /// What the stage counted.
        counted: Mflop,
    },
    /// Another header with this sequence number is known: proof of cheating.
    Fork,
    /// It could not be stored.
    NotStored,
}
