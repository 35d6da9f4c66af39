//! One of the chains that compute an answer, and what is known from it.

use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::ids::Token;
use crate::session::outcome::Fate;
use crate::session::outcome::Finish;
use crate::session::outcome::ReplicaReport;
use crate::session::replicas::claims::Claims;
use crate::session::replicas::testimony::Testimony;
use crate::session::requester::Requester;
use crate::session::requester::Standing;
use crate::units::Stage;
use crate::wire::control::TokenLogprobs;
use crate::wire::credit::CreditLine;

/// A token, as the tail of a chain chose it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Vote {
    pub(super) token: Token,
    pub(super) logprobs: Option<TokenLogprobs>,
}

/// What is thought of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Its stages are being leased.
    Starting,
    /// It computes, or has.
    Serving,
    /// It has failed. What it said before counts.
    Lost,
    /// It was wrong. Nothing that it said counts.
    Outvoted,
}

/// One of the chains.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) requester: Requester,
    pub(super) state: State,
    pub(super) claims: Claims,
    pub(super) finish: Option<Finish>,
    /// Whether it was told to end.
    pub(super) is_ending: bool,
    pub(super) is_over: bool,
    /// What was last owed to its stages.
    pub(super) lines: Vec<CreditLine>,
    /// The position of its first vote.
    first: Position,
    votes: Vec<Vote>,
}

impl Replica {
    /// One whose first token is that at `first`.
    pub(super) fn new(requester: Requester, first: Position) -> Self {
        Self {
            requester,
            state: State::Starting,
            claims: Claims::default(),
            finish: None,
            is_ending: false,
            is_over: false,
            lines: Vec::new(),
            first,
            votes: Vec::new(),
        }
    }

    /// Takes the next token.
    pub(super) fn push(&mut self, vote: Vote) {
        self.votes.push(vote);
    }

    /// What it says of a position, if it has a chain.
    pub(super) fn testimony(&self, position: Position) -> Testimony<'_> {
        Testimony {
            stages: self.stages(),
            claimed: self.claims.at(position),
            vote: self.vote(position),
            reaches: position <= self.reach(),
        }
    }

    /// The token that it chose at a position.
    pub(super) fn vote(&self, position: Position) -> Option<&Vote> {
        self.votes.get(position.0.checked_sub(self.first.0)? as usize)
    }

    /// The position of its first vote.
    pub(super) fn first(&self) -> Position {
        self.first
    }

    /// The position of its next vote.
    pub(super) fn reach(&self) -> Position {
        self.first.plus(Position(u32::try_from(self.votes.len()).unwrap_or(u32::MAX)))
    }

    /// Its stages; none before it has a chain.
    pub(super) fn stages(&self) -> &[Stage] {
        self.requester.chain().map_or(&[], |chain| chain.stages())
    }

    /// Whether what it says counts.
    pub(super) fn is_voice(&self) -> bool {
        self.state != State::Outvoted
    }

    /// Whether it may say more.
    pub(super) fn is_alive(&self) -> bool {
        matches!(self.state, State::Starting | State::Serving) && !self.is_over
    }

    /// Whether it computes, and nothing is wrong with it.
    pub(super) fn is_steady(&self) -> bool {
        self.state == State::Serving && !self.is_over && self.requester.standing() == Standing::Steady
    }

    /// Whether the token at a position is to be expected of it before long: it has it, or computes it next.
    pub(super) fn is_expected_at(&self, position: Position) -> bool {
        self.vote(position).is_some() || (self.is_steady() && self.reach() == position)
    }

    /// What became of it, in an answer whose next token would be at `end`. None if it never had a chain.
    pub(super) fn report(&self, end: Position) -> Option<ReplicaReport> {
        let chain = self.requester.chain()?.clone();
        let owed = |stage: &Stage| {
            let line = self.lines.iter().find(|line| line.stage == stage.peer && line.range == stage.range);
            line.map_or(Mflop::ZERO, |line| line.work)
        };
        let (stages, owed) = match &self.finish {
            Some(finish) => (finish.stages.clone(), finish.owed.clone()),
            None => (vec![None; chain.stages().len()], chain.stages().iter().map(owed).collect()),
        };
        let fate = match (self.state, &self.finish) {
            (State::Outvoted, _) => Fate::Outvoted,
            (State::Starting | State::Serving, Some(_)) => Fate::Agreed,
            (State::Starting | State::Serving | State::Lost, _) => Fate::Lost,
        };
        Some(ReplicaReport { chain, stages, owed, tokens: self.reach().min(end).minus(self.first).0, fate })
    }
}
