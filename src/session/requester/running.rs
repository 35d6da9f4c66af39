//! From the first token to the last, and what is owed for them.

use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::StageIndex;
use crate::ids::Token;
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
use crate::wire::control::Break;
use crate::wire::control::HopBroken;
use crate::wire::control::StageFailure;
use crate::wire::control::TailFinish;
use crate::wire::control::TokenLogprobs;
use crate::wire::control::TokenOut;
use crate::wire::credit::CreditLine;

impl Requester {
    pub(super) fn sampled(&mut self, index: StageIndex, token: TokenOut, now: Time) {
        match self.phase {
            // A tail that stands in no newer chain yet still says what it has.
            Phase::Running | Phase::Mending | Phase::Waiting { .. } | Phase::Rejoining { .. } => {}
            // Sampled before the tail heard that it is enough.
            Phase::Settling { .. } => return,
            Phase::Planning | Phase::Pausing { .. } | Phase::Leasing { .. } | Phase::Over => {
                return self.misbehaved(index, now);
            }
        }
        if !self.is_next(index, &token) {
            return self.misbehaved(index, now);
        }
        if self.phase == Phase::Running {
            self.trouble = None;
            self.avoided.clear();
            self.severed.clear();
        }
        self.accept(token.token, token.logprobs, now);
        if token.finish.is_some() {
            self.settle(token.finish, now);
        }
    }

    /// Takes the next token into the list.
    pub(super) fn accept(&mut self, token: Token, logprobs: Option<TokenLogprobs>, now: Time) {
        let position = self.next;
        self.next = position.plus(Position(1));
        self.accepted.push(token);
        self.progress = now;
        self.effects.push(Effect::Token { position, token, logprobs });
    }

    /// Whether the tail says what it has to: the next token of the vocabulary, and its end where the end is.
    fn is_next(&self, index: StageIndex, token: &TokenOut) -> bool {
        let Some(control) = self.controls.get(usize::from(index.0)) else { return false };
        let epoch = match self.phase {
            Phase::Running => token.epoch == self.epoch,
            Phase::Mending | Phase::Waiting { .. } | Phase::Rejoining { .. } => {
                token.epoch <= self.epoch && control.held.is_none()
            }
            Phase::Planning | Phase::Pausing { .. } | Phase::Leasing { .. } | Phase::Settling { .. } | Phase::Over => {
                false
            }
        };
        control.stage.range.end() == self.job.shape.units()
            && epoch
            && token.position == self.next
            && token.token.0 < self.job.shape.vocab
            && token.finish == self.job.ending().of(token.position, token.token)
    }

    pub(super) fn failed(&mut self, index: StageIndex, failure: StageFailure, now: Time) {
        match self.phase {
            Phase::Leasing { .. } => self.failed_early(index, &failure, now),
            Phase::Running | Phase::Mending | Phase::Waiting { .. } | Phase::Rejoining { .. } => {
                let control = self.control(index);
                if !control.is_lost() {
                    control.evidence = Evidence::Failed(failure);
                }
                self.judge(now);
            }
            Phase::Settling { .. } => self.gone(index, now),
            Phase::Planning | Phase::Pausing { .. } | Phase::Over => {}
        }
    }

    /// A stage lost a neighbour. Whoever is complained of is asked at once whether it lives.
    pub(super) fn hop_broken(&mut self, index: StageIndex, broken: HopBroken, now: Time) {
        // An older chain's hops are to break.
        if broken.epoch != self.epoch {
            return;
        }
        match self.phase {
            Phase::Leasing { .. } => self.lost_early(index, broken.stage, now),
            Phase::Running | Phase::Rejoining { .. } => {
                let control = self.control(index);
                if control.evidence == Evidence::None {
                    control.evidence = Evidence::Complains { of: broken.stage, how: broken.how, since: now };
                    self.next_ping = now;
                    self.ping(now);
                }
                self.judge(now);
            }
            Phase::Planning
            | Phase::Pausing { .. }
            | Phase::Mending
            | Phase::Waiting { .. }
            | Phase::Settling { .. }
            | Phase::Over => {}
        }
    }

    /// Mends the chain if it is certain what is wrong with it; otherwise waits for more.
    pub(super) fn judge(&mut self, now: Time) {
        match self.phase {
            Phase::Running | Phase::Rejoining { .. } => {
                if let Some(verdict) = blame::verdict(&self.witnesses(), GRACE, now) {
                    self.condemn(verdict, now);
                }
            }
            // The next try does without them.
            Phase::Mending | Phase::Waiting { .. } => self.let_go_of_lost(),
            Phase::Planning | Phase::Pausing { .. } | Phase::Leasing { .. } | Phase::Settling { .. } | Phase::Over => {}
        }
    }

    pub(super) fn watch(&mut self, now: Time) {
        if let Some(silent) = self.silent(now) {
            return self.gone(silent, now);
        }
        self.judge(now);
        if self.phase == Phase::Running && self.progress.after(STALL) <= now {
            let tail = self.controls.len().saturating_sub(1);
            self.condemn(Verdict::Lost(StageIndex(u16::try_from(tail).unwrap_or(u16::MAX))), now);
        }
    }

    /// Goes on without what is to blame.
    pub(super) fn condemn(&mut self, verdict: Verdict, now: Time) {
        match verdict {
            Verdict::Lost(index) => {
                let control = self.control(index);
                control.evidence = Evidence::Gone;
                let (Stage { peer, range }, closed) = (control.stage, control.closed);
                let fault = if closed { Fault::Unreachable } else { Fault::Broke };
                // One that has said so may go.
                let fault = (!control.is_leaving).then_some(fault);
                self.go_on_without(peer, fault, GenerateFailure::StageLost { peer, range }, now);
            }
            Verdict::Failed(index, failure) => {
                let Stage { peer, range } = self.control(index).stage;
                let failed = GenerateFailure::StageFailed { peer, range, failure: failure.clone() };
                match failure {
                    // So would any other: the arithmetic is the same everywhere.
                    StageFailure::NonFinite => self.over(failed),
                    StageFailure::HopLost { .. }
                    | StageFailure::BadFrame { .. }
                    | StageFailure::Engine(_)
                    | StageFailure::Expired
                    | StageFailure::Draining
                    | StageFailure::BadRequest
                    | StageFailure::Stuck => self.go_on_without(peer, None, failed, now),
                }
            }
            Verdict::Absurd(index) => {
                let control = self.control(index);
                control.evidence = Evidence::Gone;
                let Stage { peer, range } = control.stage;
                self.go_on_without(peer, Some(Fault::Broke), GenerateFailure::Misbehaved { peer, range }, now);
            }
            Verdict::Severed { by, of, how } => self.go_round(by, of, how, now),
        }
    }

    fn go_on_without(&mut self, peer: PeerKey, fault: Option<Fault>, cause: GenerateFailure, now: Time) {
        self.effects.extend(fault.map(|fault| Effect::Reproach(peer, fault)));
        self.avoided.insert(peer);
        if self.is_under_way() {
            self.mend(cause, now);
        }
    }

    /// Goes round a hop whose ends both live.
    fn go_round(&mut self, by: StageIndex, of: StageIndex, how: Break, now: Time) {
        let (accuser, accused) = (self.control(by).stage, self.control(of).stage);
        if accuser.peer == accused.peer {
            // No network lies between them.
            return self.condemn(Verdict::Lost(of), now);
        }
        let upstream = self.upstream(by) == of;
        let (from, to) = if upstream { (accused, accuser) } else { (accuser, accused) };
        self.severed.insert((from.peer, to.peer));
        let cause = match how {
            Break::Lost => GenerateFailure::HopFailed { from: from.peer, to: to.peer, range: to.range },
            Break::Breach => {
                let failure = StageFailure::BadFrame { stage: of, peer: accused.peer };
                GenerateFailure::StageFailed { peer: accuser.peer, range: accuser.range, failure }
            }
        };
        self.mend(cause, now);
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
            let owed = self.controls.iter().map(|control| owed(control.stage, lines));
            let finish = Finish { stages, owed: owed.collect(), ..Finish::of(reason) };
            self.effects.push(Effect::Finished(finish));
        }
        self.close_all();
    }
}

/// What of the lines is a stage's.
fn owed(stage: Stage, lines: &[CreditLine]) -> Mflop {
    let line = lines.iter().find(|line| line.stage == stage.peer && line.range == stage.range);
    line.map_or(Mflop::ZERO, |line| line.work)
}
