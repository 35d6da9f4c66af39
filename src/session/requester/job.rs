//! What is to be generated, and the messages that follow from it.

use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::Epoch;
use crate::ids::ModelId;
use crate::ids::SessionId;
use crate::ids::StageIndex;
use crate::ids::Token;
use crate::session::ending::Ending;
use crate::shape::ModelShape;
use crate::shape::WireDtype;
use crate::units::Chain;
use crate::units::Stage;
use crate::units::UnitWeights;
use crate::wire::control::Begins;
use crate::wire::control::Commits;
use crate::wire::control::Feed;
use crate::wire::control::LastFeed;
use crate::wire::control::MAX_FEED;
use crate::wire::control::Offer;
use crate::wire::control::SamplingParameters;
use crate::wire::control::TailOffer;
use crate::wire::credit::CreditLine;

/// The most ids that may end a generation: as many as an offer carries.
const MAX_END_OF_GENERATION: usize = 16;

/// What is to be generated. Prompt and new tokens fit the model's context; its creator has seen to that.
#[derive(Clone, Debug)]
pub struct Job {
    /// The session's name.
    pub session: SessionId,
    /// The model.
    pub model: ModelId,
    /// With whose weights each unit is computed.
    pub weights: UnitWeights,
    /// Its hyper-parameters.
    pub shape: ModelShape,
    /// The prompt's tokens, at least one.
    pub prompt: Vec<Token>,
    /// How to choose.
    pub parameters: SamplingParameters,
    /// New tokens at most, at least 1.
    pub max_tokens: u32,
    /// Ids that end the generation, in any order.
    pub end_of_generation: Vec<Token>,
    /// The dtype of hidden states between stages.
    pub wire: WireDtype,
    /// How long an answer that has begun may wait for the place of a lost stage to be taken.
    pub patience: Span,
    /// Unit boundaries at which hidden states are rounded, if that is fixed before a chain is; else where the chain is cut.
    pub rounding: Option<Vec<(u16, WireDtype)>>,
    /// Whether the stages commit themselves to what they receive and send.
    pub commits: Commits,
}

impl Job {
    /// Tokens of the prompt.
    pub fn prompt_length(&self) -> Position {
        Position(u32::try_from(self.prompt.len()).unwrap_or(u32::MAX))
    }

    /// Positions that the session may use.
    pub fn budget(&self) -> Position {
        self.prompt_length().plus(Position(self.max_tokens))
    }

    /// When the tail has to end.
    pub fn ending(&self) -> Ending {
        Ending {
            prompt_length: self.prompt_length(),
            max_tokens: self.max_tokens,
            end_of_generation: self.end_ids(),
            budget: self.budget(),
        }
    }

    pub(super) fn offer(&self, chain: &Chain, stage: StageIndex, epoch: Epoch, expires_after: Span) -> Offer {
        let weights = chain.stage(stage).and_then(|stage| self.weights.of(stage.range));
        Offer {
            session: self.session,
            epoch,
            model: self.model,
            weights: weights.unwrap_or(self.model),
            chain: chain.clone(),
            stage,
            rounding: self.rounding.clone().unwrap_or_else(|| self.rounding_of(chain)),
            budget: self.budget(),
            expires_after,
            sampling: (stage == chain.tail()).then(|| self.sampling()),
            begins: Begins::Here,
            commits: self.commits,
        }
    }

    /// Where hidden states are rounded that cross the cuts of a chain.
    pub fn rounding_of(&self, chain: &Chain) -> Vec<(u16, WireDtype)> {
        let cuts = chain.stages().iter().skip(1).map(|stage| stage.range.start());
        match self.wire {
            WireDtype::F32 => Vec::new(),
            WireDtype::F16 => cuts.map(|unit| (unit, self.wire)).collect(),
        }
    }

    /// The prompt, in pieces that a message can carry.
    pub(super) fn feeds(&self) -> impl Iterator<Item = Feed> {
        feeds(Position::ZERO, &self.prompt)
    }

    pub(super) fn line(&self, stage: Stage, positions: Position) -> CreditLine {
        let work = self.shape.work(stage.range, Position::ZERO, positions);
        CreditLine { stage: stage.peer, range: stage.range, work, difficulty: 1_000 }
    }

    fn sampling(&self) -> TailOffer {
        TailOffer {
            parameters: self.parameters.clone(),
            prompt_length: self.prompt_length(),
            history: if self.parameters.looks_back() { self.prompt.clone() } else { Vec::new() },
            max_tokens: self.max_tokens,
            end_of_generation: self.end_ids(),
        }
    }

    fn end_ids(&self) -> Vec<Token> {
        let mut ids = self.end_of_generation.clone();
        ids.sort_unstable();
        ids.dedup();
        ids.truncate(MAX_END_OF_GENERATION);
        ids
    }
}

/// Tokens from `first` on, in pieces that a message can carry; the tail samples after the last.
pub(super) fn feeds(first: Position, tokens: &[Token]) -> impl Iterator<Item = Feed> {
    let pieces = tokens.chunks(MAX_FEED);
    let last = pieces.len().saturating_sub(1);
    pieces.enumerate().map(move |(index, tokens)| Feed {
        first: first.plus(Position(u32::try_from(index * MAX_FEED).unwrap_or(u32::MAX))),
        tokens: tokens.to_vec(),
        last: if index == last { LastFeed::Yes } else { LastFeed::No },
    })
}
