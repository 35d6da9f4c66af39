//! From a planned chain to a leased one, or to the next attempt.

use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::StageIndex;
use crate::session::blame::Evidence;
use crate::session::blame::Verdict;
use crate::session::outcome::GenerateFailure;
use crate::session::requester::ATTEMPTS;
use crate::session::requester::BUSY_PATIENCE;
use crate::session::requester::Effect;
use crate::session::requester::Fault;
use crate::session::requester::GRACE;
use crate::session::requester::LEASE_TOTAL;
use crate::session::requester::LEAST_RETRY;
use crate::session::requester::Phase;
use crate::session::requester::Requester;
use crate::session::requester::keeps::Held;
use crate::units::Stage;
use crate::wire::control::Decline;
use crate::wire::control::DeclineReason;
use crate::wire::control::StageFailure;
use crate::wire::control::ToStage;

/// What went wrong while leasing, waiting for the neighbours' own word.
#[derive(Clone, Debug)]
pub(super) struct Doubt {
    pub(super) until: Time,
    /// In the order in which they came, of each stage one.
    complaints: Vec<Complaint>,
}

/// A stage's word that it lacks a neighbour.
#[derive(Clone, Copy, Debug)]
struct Complaint {
    by: StageIndex,
    lacks: Lack,
}

/// Which neighbour a stage lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    /// The next one cannot be reached.
    Downstream,
    /// The one before did not come.
    Upstream,
    /// It came, or was reached, and was lost again.
    Lost(StageIndex),
}

/// What the next chain is to do without.
#[derive(Clone, Copy, Debug)]
enum Avoid {
    Peer(PeerKey),
    /// Until it is to be asked again.
    Busy(PeerKey, Time),
    Hop(PeerKey, PeerKey),
}

impl Requester {
    pub(super) fn accepted(&mut self, index: StageIndex, now: Time) {
        let (rejoining, epoch) = (matches!(self.phase, Phase::Rejoining { .. }), self.epoch);
        let control = self.control(index);
        control.accepted = true;
        // One that was asked for an older chain has been called into this one, and says so.
        if rejoining && control.offered == epoch {
            control.held = Some(Held::default());
            return self.resume_when_all_are_there(now);
        }
        let leasing = matches!(self.phase, Phase::Leasing { .. });
        if leasing && self.controls.iter().all(|control| control.accepted) {
            self.start(now);
        }
    }

    fn start(&mut self, now: Time) {
        self.phase = Phase::Running;
        (self.doubt, self.progress) = (None, now);
        self.controls.iter_mut().for_each(|control| control.began = true);
        self.effects.extend(self.controls.iter().map(|control| Effect::Praise(control.stage.peer)));
        self.effects.extend(self.chain.clone().map(Effect::Started));
        if let Some(driver) = self.controls.first() {
            let feeds = self.job.feeds().map(|feed| Effect::Send(driver.stream, ToStage::Feed(feed)));
            self.effects.extend(feeds);
        }
    }

    pub(super) fn declined(&mut self, index: StageIndex, decline: Decline, now: Time) {
        match self.phase {
            Phase::Leasing { .. } => {}
            Phase::Rejoining { .. } | Phase::Mending | Phase::Waiting { .. } => {
                return self.declined_in_mid_answer(index, decline, now);
            }
            Phase::Planning | Phase::Pausing { .. } | Phase::Running | Phase::Settling { .. } | Phase::Over => {
                // Too late to decline.
                return self.misbehaved(index, now);
            }
        }
        match decline.reason {
            DeclineReason::DownstreamUnreachable => self.complained(index, Lack::Downstream, now),
            DeclineReason::UpstreamMissing => self.complained(index, Lack::Upstream, now),
            DeclineReason::NotHeld => {
                let peer = self.control(index).stage.peer;
                self.effects.push(Effect::Reproach(peer, Fault::Broke));
                self.refused(index, decline, now);
            }
            DeclineReason::NoMemory | DeclineReason::Busy => self.said_busy(index, decline, now),
            DeclineReason::Draining | DeclineReason::BadOffer | DeclineReason::NotAllowed | DeclineReason::Fenced => {
                self.refused(index, decline, now);
            }
        }
    }

    /// A stage that was to take another's place does not. If it only lacks a neighbour, that neighbour lives or not, which will
    /// show; the hop to it is gone round meanwhile.
    fn declined_in_mid_answer(&mut self, index: StageIndex, decline: Decline, now: Time) {
        let Decline { reason, retry_after } = decline;
        let control = self.control(index);
        control.evidence = Evidence::Gone;
        let Stage { peer, range } = control.stage;
        match reason {
            DeclineReason::DownstreamUnreachable => {
                let to = self.controls[usize::from(self.neighbour(index, 1).0)].stage.peer;
                self.severed.insert((peer, to));
            }
            DeclineReason::UpstreamMissing => {
                let from = self.controls[usize::from(self.upstream(index).0)].stage.peer;
                self.severed.insert((from, peer));
            }
            DeclineReason::NotHeld => {
                self.effects.push(Effect::Reproach(peer, Fault::Broke));
                self.avoided.insert(peer);
            }
            DeclineReason::NoMemory | DeclineReason::Busy => match retry(retry_after, now) {
                Some(until) => {
                    self.busy.insert(peer, until);
                }
                None => {
                    self.avoided.insert(peer);
                }
            },
            DeclineReason::Draining | DeclineReason::BadOffer | DeclineReason::NotAllowed | DeclineReason::Fenced => {
                self.avoided.insert(peer);
            }
        }
        if matches!(self.phase, Phase::Rejoining { .. }) {
            self.mend(GenerateFailure::Declined { peer, range, reason, retry_after }, now);
        } else {
            self.let_go_of_lost();
        }
    }

    /// Stages that neither stand in the mended chain in time nor say why not are lost to it.
    pub(super) fn watch_rejoining(&mut self, until: Time, now: Time) {
        let late = (0..).map(StageIndex).zip(&self.controls).find(|(_, control)| control.held.is_none());
        if let (Some((late, _)), true) = (late, until <= now && matches!(self.phase, Phase::Rejoining { .. })) {
            self.condemn(Verdict::Lost(late), now);
        }
    }

    /// A stage lost a neighbour that had come already.
    pub(super) fn lost_early(&mut self, index: StageIndex, neighbour: StageIndex, now: Time) {
        if usize::from(neighbour.0) < self.controls.len() {
            self.complained(index, Lack::Lost(neighbour), now);
        } else {
            self.unreachable(index, now);
        }
    }

    /// A stage failed that has accepted, maybe only because a neighbour declined.
    pub(super) fn failed_early(&mut self, index: StageIndex, failure: &StageFailure, now: Time) {
        match failure {
            StageFailure::HopLost { stage, .. } if usize::from(stage.0) < self.controls.len() => {
                self.complained(index, Lack::Lost(*stage), now);
            }
            StageFailure::HopLost { .. }
            | StageFailure::BadFrame { .. }
            | StageFailure::Engine(_)
            | StageFailure::NonFinite
            | StageFailure::Expired
            | StageFailure::Draining
            | StageFailure::BadRequest
            | StageFailure::Stuck => self.unreachable(index, now),
        }
    }

    /// The neighbour may say itself what is the matter with it.
    fn complained(&mut self, by: StageIndex, lacks: Lack, now: Time) {
        self.control(by).accepted = false;
        let doubt = || Doubt { until: now.after(GRACE), complaints: Vec::new() };
        let doubt = self.doubt.get_or_insert_with(doubt);
        if !doubt.is_of(by) {
            doubt.complaints.push(Complaint { by, lacks });
        }
    }

    /// A peer that says when it is to be asked again is let alone until then.
    fn said_busy(&mut self, index: StageIndex, decline: Decline, now: Time) {
        let Some(until) = retry(decline.retry_after, now) else { return self.refused(index, decline, now) };
        let (Stage { peer, range }, Decline { reason, retry_after }) = (self.control(index).stage, decline);
        self.try_without(Avoid::Busy(peer, until), GenerateFailure::Declined { peer, range, reason, retry_after }, now);
    }

    /// When another attempt may do better, if that is soon enough.
    pub(super) fn next_attempt(&mut self, now: Time) -> Option<Time> {
        let free = self.busy.values().copied().min().filter(|until| *until <= self.began.after(BUSY_PATIENCE));
        let paused = now.after(self.pause);
        let hops = (!self.severed.is_empty() && paused < self.began.after(LEASE_TOTAL)).then_some(paused);
        if hops.is_some() {
            self.pause = self.pause.times(2);
        }
        free.into_iter().chain(hops).min()
    }

    /// What the last peer that refused said; if it was busy, with the time at which the first of all that were is to be asked again.
    pub(super) fn refusal(&mut self, now: Time) -> Option<GenerateFailure> {
        let soonest = self.busy.values().min().map(|until| until.since(now));
        let mut refusal = self.last_decline.take()?;
        if let GenerateFailure::Declined {
            reason: DeclineReason::Busy | DeclineReason::NoMemory, retry_after, ..
        } = &mut refusal
        {
            *retry_after = soonest.or(*retry_after);
        }
        Some(refusal)
    }

    pub(super) fn refused(&mut self, index: StageIndex, Decline { reason, retry_after }: Decline, now: Time) {
        let Stage { peer, range } = self.control(index).stage;
        self.try_without(Avoid::Peer(peer), GenerateFailure::Declined { peer, range, reason, retry_after }, now);
    }

    /// The stage could not be dialled, hung up, or says nothing.
    pub(super) fn unreachable(&mut self, index: StageIndex, now: Time) {
        // One that has declined closes its stream.
        if self.doubt.as_ref().is_some_and(|doubt| doubt.is_of(index)) {
            return;
        }
        let control = self.control(index);
        let (Stage { peer, range }, closed) = (control.stage, control.closed);
        let fault = if closed { Fault::Unreachable } else { Fault::Broke };
        self.effects.push(Effect::Reproach(peer, fault));
        self.try_without(Avoid::Peer(peer), GenerateFailure::Unreachable { peer, range }, now);
    }

    pub(super) fn watch_lease(&mut self, until: Time, now: Time) {
        if let Some(doubt) = self.doubt.take_if(|doubt| doubt.until.min(until) <= now) {
            self.decide(&doubt, now);
        } else if let Some(silent) = self.silent(now) {
            self.unreachable(silent, now);
        } else if until <= now {
            let late = (0..).map(StageIndex).zip(&self.controls).find(|(_, control)| !control.accepted);
            let late = late.map_or(StageIndex(0), |(index, _)| index);
            self.unreachable(late, now);
        }
    }

    /// Nobody else has said more. If both ends of a hop that failed have answered here, the hop has failed and not a
    /// peer.
    fn decide(&mut self, doubt: &Doubt, now: Time) {
        let Some(cause) = self.cause(&doubt.complaints) else { return };
        let accused = self.accused(cause);
        let reached = self.control(accused).reached;
        let (by, of) = (self.control(cause.by).stage, self.control(accused).stage);
        if reached && by.peer != of.peer {
            let (from, to) =
                if self.upstream(cause.by) == accused && cause.lacks != Lack::Downstream { (of, by) } else { (by, of) };
            let failure = GenerateFailure::HopFailed { from: from.peer, to: to.peer, range: to.range };
            return self.try_without(Avoid::Hop(from.peer, to.peer), failure, now);
        }
        let Stage { peer, range } = of;
        self.try_without(Avoid::Peer(peer), GenerateFailure::Unreachable { peer, range }, now);
    }

    /// The complaint that the others follow from: a stage that declines closes its hops, of which its neighbours
    /// complain in turn.
    fn cause(&self, complaints: &[Complaint]) -> Option<Complaint> {
        let first = *complaints.first()?;
        let mut cause = first;
        for _ in complaints {
            match complaints.iter().find(|complaint| complaint.by == self.accused(cause)) {
                Some(complaint) => cause = *complaint,
                None => return Some(cause),
            }
        }
        // Everybody complains of another. Whoever lost a hop that was open had somebody's to follow; who came first of
        // the others had not.
        let declined = complaints.iter().find(|complaint| !matches!(complaint.lacks, Lack::Lost(_)));
        declined.copied().or(Some(first))
    }

    /// Whom a stage means that lacks a neighbour.
    fn accused(&self, complaint: Complaint) -> StageIndex {
        match complaint.lacks {
            Lack::Downstream => self.neighbour(complaint.by, 1),
            Lack::Upstream => self.upstream(complaint.by),
            Lack::Lost(stage) => stage,
        }
    }

    pub(super) fn upstream(&self, stage: StageIndex) -> StageIndex {
        self.neighbour(stage, self.controls.len() - 1)
    }

    /// The stage so many further round the ring.
    fn neighbour(&self, stage: StageIndex, further: usize) -> StageIndex {
        let index = (usize::from(stage.0) + further) % self.controls.len();
        StageIndex(u16::try_from(index).unwrap_or(u16::MAX))
    }

    /// Lets every stage go and asks for another chain, unless enough was tried.
    fn try_without(&mut self, avoid: Avoid, failure: GenerateFailure, now: Time) {
        self.doubt = None;
        match avoid {
            Avoid::Peer(peer) => {
                self.avoided.insert(peer);
                self.refusals += 1;
            }
            // Bounded by time: it is asked again when it said, or not at all.
            Avoid::Busy(peer, until) => {
                self.busy.insert(peer, until);
            }
            // Bounded by time: before a hop is given up, its neighbours were waited for.
            Avoid::Hop(from, to) => {
                self.severed.insert((from, to));
            }
        }
        if self.refusals >= ATTEMPTS || self.began.after(LEASE_TOTAL) <= now {
            return self.over(failure);
        }
        self.close_controls();
        self.last_decline = Some(failure);
        self.phase = Phase::Planning;
        self.plan(now);
    }
}

/// When a peer is to be asked again.
fn retry(after: Option<Span>, now: Time) -> Option<Time> {
    after.map(|span| now.after(span.max(LEAST_RETRY)))
}

impl Doubt {
    /// Whether the stage has complained.
    fn is_of(&self, stage: StageIndex) -> bool {
        self.complaints.iter().any(|complaint| complaint.by == stage)
    }
}
