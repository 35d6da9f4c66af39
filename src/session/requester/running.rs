//! From the first token to the last, and what is owed for them.

use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::amounts::Time;
use crate::ids::StageIndex;
use crate::session::blame;
use crate::session::blame::Evidence;
use crate::session::blame::Verdict;
use crate::session::outcome::Finish;
use crate::session::outcome::GenerateFailure;
use crate::session::requester::Effect;
use crate::session::requester::Fault;
use crate::session::requester::GRACE;
use crate::session::requester::Phase;
use crate::session::requester::Requester;
use crate::session::requester::SETTLE;
use crate::session::requester::STALL;
use crate::units::Stage;
use crate::wire::control::StageFailure;
use crate::wire::control::TailFinish;
use crate::wire::control::TokenOut;

impl Requester {
    pub(super) fn sampled(&mut self, index: StageIndex, token: TokenOut, now: Time) {
        match self.phase {
            Phase::Running => {}
            // Sampled before the tail heard that it is enough.
            Phase::Settling { .. } => return,
            Phase::Planning | Phase::Pausing { .. } | Phase::Leasing { .. } | Phase::Over => {
                return self.misbehaved(index, now);
            }
        }
        if !self.is_next(index, &token) {
            return self.misbehaved(index, now);
        }
        self.next = self.next.plus(Position(1));
        self.progress = now;
        let TokenOut { position, token, finish, logprobs, .. } = token;
        self.effects.push(Effect::Token { position, token, logprobs });
        if finish.is_some() {
            self.settle(finish, now);
        }
    }

    /// Whether the tail says what it has to: the next token of the vocabulary, and its end where the end is.
    fn is_next(&self, index: StageIndex, token: &TokenOut) -> bool {
        usize::from(index.0) + 1 == self.controls.len()
            && token.epoch == self.epoch
            && token.position == self.next
            && token.token.0 < self.job.shape.vocab
            && token.finish == self.job.ending().of(token.position, token.token)
    }

    pub(super) fn failed(&mut self, index: StageIndex, failure: StageFailure, now: Time) {
        match self.phase {
            Phase::Leasing { .. } => self.failed_early(index, &failure, now),
            Phase::Running => {
                let control = self.control(index);
                if control.evidence == Evidence::None {
                    control.evidence = Evidence::Reported(failure);
                }
                self.judge(now);
            }
            Phase::Settling { .. } => self.gone(index, now),
            Phase::Planning | Phase::Pausing { .. } | Phase::Over => {}
        }
    }

    /// Ends the generation if it is certain who is to blame; otherwise waits a little for more.
    pub(super) fn judge(&mut self, now: Time) {
        let evidence = self.evidence();
        match blame::certain(&evidence) {
            Some(verdict) => self.condemn(verdict),
            None => {
                self.suspicion.get_or_insert(now);
            }
        }
    }

    pub(super) fn watch(&mut self, now: Time) {
        if let Some(silent) = self.silent(now) {
            return self.gone(silent, now);
        }
        if self.suspicion.is_some_and(|since| since.after(GRACE) <= now) {
            let evidence = self.evidence();
            if let Some(verdict) = blame::verdict(&evidence) {
                return self.condemn(verdict);
            }
        }
        if self.progress.after(STALL) <= now {
            let tail = self.controls.len().saturating_sub(1);
            self.condemn(Verdict::Lost(StageIndex(u16::try_from(tail).unwrap_or(u16::MAX))));
        }
    }

    fn evidence(&self) -> Vec<Evidence> {
        self.controls.iter().map(|control| control.evidence.clone()).collect()
    }

    fn condemn(&mut self, verdict: Verdict) {
        let index = match verdict {
            Verdict::Lost(index) | Verdict::Failed(index, _) => index,
        };
        let Some(control) = self.controls.get_mut(usize::from(index.0)) else {
            // A stage accused one that the chain does not have.
            let accuser = self.controls.iter().find(|control| control.evidence != Evidence::None);
            let Some(Stage { peer, range }) = accuser.map(|control| control.stage) else { return };
            return self.over(GenerateFailure::Misbehaved { peer, range });
        };
        let Stage { peer, range } = control.stage;
        match verdict {
            Verdict::Lost(_) => {
                let fault = if control.closed { Fault::Unreachable } else { Fault::Broke };
                control.evidence = Evidence::Gone;
                self.effects.push(Effect::Reproach(peer, fault));
                self.over(GenerateFailure::StageLost { peer, range });
            }
            Verdict::Failed(_, failure) => self.over(GenerateFailure::StageFailed { peer, range, failure }),
        }
    }

    /// Asks for the entry to be signed; its answer and the stages' are waited for, for a bounded time.
    pub(super) fn settle(&mut self, tell: Option<TailFinish>, now: Time) {
        let lines = self.lines(|_| true);
        self.effects.push(Effect::Owe { positions: self.next, lines: lines.clone() });
        self.phase = Phase::Settling { until: now.after(SETTLE), tell, lines, signed: false };
    }

    /// Concludes once every stage has answered.
    pub(super) fn settled_by_all(&mut self) {
        let signed = matches!(self.phase, Phase::Settling { signed: true, .. });
        if signed && !self.controls.iter().any(|control| control.owes_answer()) {
            self.conclude_settling();
        }
    }

    pub(super) fn conclude_settling(&mut self) {
        let Phase::Settling { tell, lines, .. } = &self.phase else { return };
        if let Some(reason) = *tell {
            let stages = self.controls.iter().map(|control| control.report()).collect();
            let owed = (0..self.controls.len()).map(|index| lines.get(index).map_or(Mflop::ZERO, |line| line.work));
            let finish = Finish { reason, stages, owed: owed.collect() };
            self.effects.push(Effect::Finished(finish));
        }
        self.close_all();
    }
}
