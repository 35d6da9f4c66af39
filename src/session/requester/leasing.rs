//! From a planned chain to a leased one, or to the next attempt.

use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::StageIndex;
use crate::session::outcome::GenerateFailure;
use crate::session::requester::ATTEMPTS;
use crate::session::requester::Doubt;
use crate::session::requester::Effect;
use crate::session::requester::Fault;
use crate::session::requester::GRACE;
use crate::session::requester::LEASE_TOTAL;
use crate::session::requester::Phase;
use crate::session::requester::Requester;
use crate::wire::control::Decline;
use crate::wire::control::DeclineReason;
use crate::wire::control::ToStage;

impl Requester {
    pub(super) fn accepted(&mut self, index: StageIndex, now: Time) {
        self.control(index).accepted = true;
        let leasing = matches!(self.phase, Phase::Leasing { .. });
        if leasing && self.controls.iter().all(|control| control.accepted) {
            self.start(now);
        }
    }

    fn start(&mut self, now: Time) {
        self.phase = Phase::Running;
        (self.doubt, self.suspicion, self.progress) = (None, None, now);
        self.effects.extend(self.controls.iter().map(|control| Effect::Praise(control.stage.peer)));
        self.effects.extend(self.chain.clone().map(Effect::Started));
        if let Some(driver) = self.controls.first() {
            let feeds = self.job.feeds().map(|feed| Effect::Send(driver.stream, ToStage::Feed(feed)));
            self.effects.extend(feeds);
        }
    }

    pub(super) fn declined(&mut self, index: StageIndex, decline: Decline, now: Time) {
        if !matches!(self.phase, Phase::Leasing { .. }) {
            // Too late to decline.
            return self.misbehaved(index, now);
        }
        match decline.reason {
            // The neighbour may say itself what is the matter with it.
            DeclineReason::DownstreamUnreachable | DeclineReason::UpstreamMissing => {
                let until = now.after(GRACE);
                self.doubt.get_or_insert(Doubt { stage: index, decline, until });
            }
            DeclineReason::NotHeld => {
                let peer = self.control(index).stage.peer;
                self.effects.push(Effect::Reproach(peer, Fault::Broke));
                self.try_without(index, peer, Some(decline), now);
            }
            DeclineReason::NoMemory
            | DeclineReason::Busy
            | DeclineReason::Draining
            | DeclineReason::BadOffer
            | DeclineReason::NotAllowed
            | DeclineReason::Fenced => {
                let peer = self.control(index).stage.peer;
                self.try_without(index, peer, Some(decline), now);
            }
        }
    }

    /// The stage could not be dialled, hung up, or says nothing.
    pub(super) fn unreachable(&mut self, index: StageIndex, now: Time) {
        // One that has declined closes its stream.
        if self.doubt.is_some_and(|doubt| doubt.stage == index) {
            return;
        }
        let control = self.control(index);
        let (peer, fault) = (control.stage.peer, if control.closed { Fault::Unreachable } else { Fault::Broke });
        self.effects.push(Effect::Reproach(peer, fault));
        self.try_without(index, peer, None, now);
    }

    pub(super) fn watch_lease(&mut self, until: Time, now: Time) {
        if let Some(doubt) = self.doubt.filter(|doubt| doubt.until.min(until) <= now) {
            let accused = self.accused(doubt);
            self.try_without(doubt.stage, accused, Some(doubt.decline), now);
        } else if let Some(silent) = self.silent(now) {
            self.unreachable(silent, now);
        } else if until <= now {
            let late = (0..).map(StageIndex).zip(&self.controls).find(|(_, control)| !control.accepted);
            let late = late.map_or(StageIndex(0), |(index, _)| index);
            self.unreachable(late, now);
        }
    }

    /// Whom a stage means that lacks a neighbour.
    fn accused(&self, doubt: Doubt) -> PeerKey {
        let (stage, count) = (usize::from(doubt.stage.0), self.controls.len());
        let neighbour = match doubt.decline.reason {
            DeclineReason::UpstreamMissing => (stage + count - 1) % count,
            DeclineReason::NotHeld
            | DeclineReason::NoMemory
            | DeclineReason::Busy
            | DeclineReason::Draining
            | DeclineReason::DownstreamUnreachable
            | DeclineReason::BadOffer
            | DeclineReason::NotAllowed
            | DeclineReason::Fenced => (stage + 1) % count,
        };
        self.controls[neighbour].stage.peer
    }

    /// Lets every stage go and asks for a chain without `avoid`, unless enough was tried.
    fn try_without(&mut self, index: StageIndex, avoid: PeerKey, decline: Option<Decline>, now: Time) {
        let stage = self.control(index).stage;
        let failure = match decline {
            Some(Decline { reason, retry_after }) => {
                GenerateFailure::Declined { peer: stage.peer, range: stage.range, reason, retry_after }
            }
            None => GenerateFailure::Unreachable { peer: stage.peer, range: stage.range },
        };
        self.doubt = None;
        self.avoided.insert(avoid);
        if self.attempts >= ATTEMPTS || self.began.after(LEASE_TOTAL) <= now {
            return self.over(failure);
        }
        self.close_controls();
        self.last_decline = Some(failure);
        self.phase = Phase::Planning;
        self.effects.push(Effect::Plan);
    }
}
