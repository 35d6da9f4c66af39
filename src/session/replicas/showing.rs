//! From the tokens of several chains to the one answer that is shown, and its end.

use crate::amounts::Position;
use crate::amounts::Time;
use crate::ids::ReplicaIndex;
#[cfg(feature = "mutants")]
use crate::mutants::Mutant;
#[cfg(feature = "mutants")]
use crate::mutants::is_planted;
use crate::session::outcome::Finish;
use crate::session::outcome::GenerateFailure;
use crate::session::outcome::Mended;
use crate::session::outcome::ReplicaReport;
use crate::session::replicas::Effect;
use crate::session::replicas::Replica;
use crate::session::replicas::Replicas;
use crate::session::replicas::State;
use crate::session::replicas::Vote;
use crate::session::requester::Standing;
use crate::units::Chain;
use crate::wire::control::TailFinish;

/// How many chains must agree on a token, where so many can be expected to have it.
const QUORUM: usize = 2;

/// How far an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Not all chains have started.
    Starting,
    /// Tokens are shown.
    Open,
    /// All were shown; chains that are behind are compared, then all settle.
    Closing(TailFinish),
    /// It was said that it has failed; all settle.
    Failed,
    Over,
}

impl Replicas {
    pub(super) fn started(&mut self, index: ReplicaIndex) {
        self.replica(index).state = State::Serving;
        let all = self.replicas.len() == usize::from(self.redundancy.chains());
        let have_started = all && self.replicas.values().all(|replica| replica.state != State::Starting);
        if self.progress == Progress::Starting && have_started {
            self.progress = Progress::Open;
            self.effects.extend(self.leading().map(Effect::Started));
        }
    }

    /// The first of the chains whose word counts.
    fn leading(&self) -> Option<Chain> {
        let (_, first) = self.voices().find(|(_, replica)| replica.state != State::Lost)?;
        first.requester.chain().cloned()
    }

    pub(super) fn mended(&mut self, index: ReplicaIndex, mended: Mended) {
        let replica = self.replica(index);
        if replica.state == State::Starting {
            replica.state = State::Serving;
        } else {
            self.effects.push(Effect::Mended(mended));
        }
    }

    /// A chain waits for what it lacks. If another computes, the reader does not.
    pub(super) fn waits(&mut self, index: ReplicaIndex, failure: GenerateFailure) {
        let others_serve = self.voices().any(|(other, replica)| other != index && replica.is_steady());
        if !others_serve || self.dispute.is_some() {
            self.effects.push(Effect::Waiting(failure));
        }
    }

    pub(super) fn voted(&mut self, index: ReplicaIndex, position: Position, vote: Vote, now: Time) {
        let shown = position.minus(self.job.prompt_length()).0 as usize;
        let contradicts = self.shown.get(shown).is_some_and(|token| *token != vote.token);
        self.replica(index).push(vote);
        self.heard_third(index, now);
        self.note(position);
        if contradicts {
            self.fail_if_contradicted(position, now);
        }
    }

    /// A chain is lost. The answer is only if nobody can go on with it.
    pub(super) fn lost(&mut self, index: ReplicaIndex, failure: GenerateFailure, now: Time) {
        let replica = self.replica(index);
        if replica.is_ending || !replica.is_voice() {
            return;
        }
        replica.state = State::Lost;
        match self.progress {
            Progress::Starting => {
                let found = self.replicas.values().filter(|replica| replica.state != State::Lost).count();
                let refusal = self.refusal(u8::try_from(found).unwrap_or(u8::MAX), failure);
                self.fail(refusal, now);
            }
            Progress::Open => {
                let next = self.next();
                let third = self.dispute.as_ref().filter(|dispute| dispute.third == index);
                if let Some(dispute) = third {
                    let cause = dispute.cause.clone();
                    self.fail(cause, now);
                } else if !self.voices().any(|(_, replica)| replica.is_alive() || replica.vote(next).is_some()) {
                    self.fail(failure, now);
                }
            }
            Progress::Closing(_) | Progress::Failed | Progress::Over => {}
        }
    }

    /// Shows what can be.
    pub(super) fn show(&mut self, now: Time) {
        while let Some(Vote { token, logprobs }) = self.next_shown() {
            let position = self.next();
            self.shown.push(token);
            self.effects.push(Effect::Token { position, token, logprobs });
            if let Some(reason) = self.job.ending().of(position, token) {
                self.progress = Progress::Closing(reason);
                self.wind_up(now);
            }
        }
    }

    fn next_shown(&self) -> Option<Vote> {
        if self.progress != Progress::Open || self.is_paused() {
            return None;
        }
        let position = self.next();
        let expected = self.voices().filter(|(_, replica)| replica.is_expected_at(position)).count();
        let needed = expected.clamp(1, QUORUM);
        #[cfg(feature = "mutants")]
        let needed = if is_planted(Mutant::ShowUncompared) { 1 } else { needed };
        let votes: Vec<&Vote> = self.voices().filter_map(|(_, replica)| replica.vote(position)).collect();
        let agreed = votes.iter().find(|vote| votes.iter().filter(|other| other == vote).count() >= needed);
        agreed.map(|vote| (*vote).clone())
    }

    /// Whether it is not known who is right.
    fn is_paused(&self) -> bool {
        let left = self.voices().filter(|(_, replica)| replica.state != State::Lost).count();
        self.dispute.is_some() || (!self.conflicts.is_empty() && left <= QUORUM)
    }

    /// The user has enough.
    pub(super) fn enough(&mut self, now: Time) {
        match self.progress {
            Progress::Open if !self.shown.is_empty() => {
                self.progress = Progress::Closing(TailFinish::EndOfGeneration);
                self.wind_up(now);
            }
            Progress::Starting | Progress::Open => self.fail(GenerateFailure::Cancelled, now),
            // The tail was first.
            Progress::Closing(_) | Progress::Failed | Progress::Over => {}
        }
    }

    pub(super) fn fail(&mut self, failure: GenerateFailure, now: Time) {
        match self.progress {
            Progress::Starting | Progress::Open | Progress::Closing(_) => {
                self.progress = Progress::Failed;
                self.effects.push(Effect::Failed(failure));
                self.wind_up(now);
            }
            Progress::Failed | Progress::Over => {}
        }
    }

    /// Lets the chains end that are of no more use: what each did is settled. One that computes and has not come to what was shown
    /// goes on until it has, so that all of it is compared.
    pub(super) fn wind_up(&mut self, now: Time) {
        let is_complete = match self.progress {
            Progress::Starting | Progress::Open | Progress::Over => return,
            Progress::Closing(_) => true,
            Progress::Failed => false,
        };
        let next = self.next();
        for index in self.indices() {
            let replica = self.replica(index);
            if replica.is_over || replica.is_ending {
                continue;
            }
            let is_behind = replica.reach() < next;
            if is_complete && is_behind && replica.is_steady() {
                continue;
            }
            let settles = replica.requester.standing() == Standing::Ending;
            replica.is_ending = true;
            let effects = match (is_complete, is_behind) {
                (true, false) if settles => Vec::new(),
                (true, false) => replica.requester.conclude(now),
                (true, true) | (false, _) => replica.requester.cancel(now),
            };
            self.take(index, effects, now);
        }
    }

    pub(super) fn end_when_over(&mut self, now: Time) {
        if !self.replicas.values().all(|replica| replica.is_over) {
            return;
        }
        if let Progress::Closing(_) = self.progress {
            self.judge_what_is_left(now);
            // What only a liar has said was never compared.
            if let (false, Some(position)) = (self.lies.is_empty(), self.unfounded()) {
                self.fail_with_shown(position, now);
            }
        }
        match self.progress {
            Progress::Starting | Progress::Open | Progress::Over => return,
            Progress::Closing(reason) => self.effects.push(Effect::Finished(self.finish(reason))),
            Progress::Failed => {}
        }
        self.progress = Progress::Over;
        self.effects.push(Effect::Ended);
    }

    fn finish(&self, reason: TailFinish) -> Finish {
        let lead = self.voices().find_map(|(index, replica)| Some((index, replica.finish.clone()?)));
        let (first, finish) = lead.map_or((None, Finish::of(reason)), |(index, finish)| (Some(index), finish));
        let mut reports: Vec<ReplicaReport> = Vec::new();
        if self.redundancy.chains() > 1 {
            let mut order: Vec<(ReplicaIndex, &Replica)> =
                self.replicas.iter().map(|(&index, replica)| (index, replica)).collect();
            order.sort_by_key(|(index, _)| Some(*index) != first);
            reports.extend(order.iter().filter_map(|(_, replica)| replica.report(self.next())));
        }
        Finish { reason, replicas: reports, lies: self.lies.clone(), ..finish }
    }
}
