//! One of several requesters of the same answer: it may come late, is asked how it stands, and may be found to be wrong.

use std::collections::BTreeSet;

use crate::amounts::Position;
use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::StageIndex;
use crate::ids::StreamId;
use crate::ids::Token;
use crate::session::blame::Evidence;
use crate::session::outcome::GenerateFailure;
use crate::session::requester::Effect;
use crate::session::requester::Job;
use crate::session::requester::Phase;
use crate::session::requester::Requester;
use crate::session::requester::mending::Trouble;
use crate::units::Chain;
use crate::wire::commitment::COMMIT_EVERY;
use crate::wire::commitment::Commitment;
use crate::wire::control::Commits;
use crate::wire::signed::Signed;

/// How a requester stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has no chain yet.
    Leasing,
    /// Its chain computes.
    Steady,
    /// Its chain is being mended, or may have to be.
    Troubled,
    /// It has enough, and settles; or is over.
    Ending,
}

impl Requester {
    /// Begins where others are already: `accepted` follows the prompt. The first effect asks for a chain, and `cause` says why it
    /// is needed if there is none.
    pub fn late(job: Job, accepted: Vec<Token>, cause: GenerateFailure, now: Time) -> (Self, Vec<Effect>) {
        let (mut requester, effects) = Self::new(job, now);
        let known = u32::try_from(accepted.len()).unwrap_or(u32::MAX);
        requester.next = requester.next.plus(Position(known));
        requester.rounding = requester.job.rounding.clone().unwrap_or_default();
        requester.known = requester.next;
        requester.accepted = accepted;
        requester.trouble = Some(Trouble::before_any_chain(cause, now));
        requester.phase = Phase::Mending;
        (requester, effects)
    }

    /// Ends because it is wrong. Who did it is owed nothing, the others what they did.
    pub fn convict(&mut self, liars: &BTreeSet<PeerKey>, failure: GenerateFailure) -> Vec<Effect> {
        if self.phase != Phase::Over {
            for control in self.controls.iter_mut().filter(|control| liars.contains(&control.stage.peer)) {
                control.evidence = Evidence::Gone;
            }
            self.over(failure);
        }
        self.drain()
    }

    /// How it stands.
    pub fn standing(&self) -> Standing {
        let is_sound = self.controls.iter().all(|control| control.evidence == Evidence::None);
        match self.phase {
            Phase::Planning | Phase::Pausing { .. } | Phase::Leasing { .. } => Standing::Leasing,
            Phase::Running if is_sound => Standing::Steady,
            Phase::Running | Phase::Mending | Phase::Waiting { .. } | Phase::Rejoining { .. } => Standing::Troubled,
            Phase::Settling { .. } | Phase::Over => Standing::Ending,
        }
    }

    /// Whether the stream is one of its own.
    pub fn has(&self, stream: StreamId) -> bool {
        self.index(stream).is_some()
    }

    /// The newest chain that was asked for.
    pub fn chain(&self) -> Option<&Chain> {
        self.chain.as_ref()
    }

    /// A stage commits itself to what it did.
    pub(super) fn committed(&mut self, index: StageIndex, signed: Box<Signed<Commitment>>, now: Time) {
        let Commitment { session, epoch, model, range, end, .. } = signed.value;
        let usual = end.0.is_multiple_of(COMMIT_EVERY) || end >= self.job.prompt_length();
        let (budget, commits, newest) = (self.job.budget(), self.job.commits, self.epoch);
        let of_session = session == self.job.session && Some(model) == self.job.weights.of(range);
        let control = self.control(index);
        let of_stage = signed.author == control.stage.peer && range == control.stage.range && control.began;
        if of_session && of_stage && commits == Commits::Yes && usual && end <= budget && epoch <= newest {
            self.effects.push(Effect::Committed(signed));
        } else {
            self.misbehaved(index, now);
        }
    }
}
