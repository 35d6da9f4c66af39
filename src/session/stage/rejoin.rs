//! From one chain of a session to a newer one: what a stage does when a hop breaks, and when the requester has mended the chain.

use crate::amounts::Position;
use crate::amounts::Time;
use crate::ids::StageIndex;
use crate::ids::StreamId;
use crate::session::stage::Effect;
use crate::session::stage::LeasedStage;
use crate::session::stage::Phase;
use crate::session::stage::SETUP;
use crate::session::stage::chunk;
use crate::session::stage::inflow;
use crate::session::stage::inflow::Inflow;
use crate::session::stage::inflow::Violation;
use crate::session::streams::Outgoing;
use crate::wire::control::Break;
use crate::wire::control::DeclineReason;
use crate::wire::control::FromStage;
use crate::wire::control::HopBroken;
use crate::wire::control::Reconfigure;
use crate::wire::control::Rejoined;
use crate::wire::control::Resume;
use crate::wire::control::StageFailure;
use crate::wire::hop::HopBack;
use crate::wire::hop::Sample;

impl LeasedStage {
    /// The requester names the stage's place in a newer chain. Its hop there gets the id `hop`.
    pub fn on_reconfigure(&mut self, newer: Reconfigure, hop: StreamId, now: Time) -> Vec<Effect> {
        // A chain that was overtaken by another; or the session has ended.
        if newer.epoch > self.terms.epoch && self.is_in_chain() {
            self.expires = now.after(self.terms.expires_after);
            self.reconfigure(newer, hop, now);
        }
        self.drain()
    }

    fn reconfigure(&mut self, newer: Reconfigure, hop: StreamId, now: Time) {
        let known = newer.known;
        if self.terms.rejoin(newer).is_none() {
            return self.fail(StageFailure::BadRequest);
        }
        // What was fed in a chain that went on is all that was heard before it.
        if let Some(heard) = self.inflow.heard() {
            self.heard = heard;
        }
        self.known = known;
        // What was sent and not computed is lost with its hop; the upstream neighbour will send it again.
        self.inflow = inflow(&self.terms, self.length);
        let old = [self.upstream.take(), self.outflow.reopen(hop)];
        self.effects.extend(old.into_iter().flatten().map(Effect::Close));
        let downstream = self.terms.peer(self.terms.downstream());
        self.effects.push(Effect::OpenHop(hop, downstream, self.terms.hop()));
        (self.phase, self.setup) = (Phase::Rejoining, now.after(SETUP));
    }

    /// Says what it has once it has stopped and its hops are open.
    pub(super) fn rejoin_when_ready(&mut self) {
        let attached = self.upstream.is_some() && self.outflow.is_opened();
        if self.phase == Phase::Rejoining && attached && self.flights.is_empty() {
            self.phase = Phase::Ready;
            // The engine has added what it had of the older chain's. Nothing comes before all have answered.
            self.inflow = inflow(&self.terms, self.length);
            let journal = if self.outflow.is_journalled() { Position::ZERO } else { self.length };
            let heard = self.heard.since(self.known);
            let (epoch, length) = (self.terms.epoch, self.length);
            self.tell(FromStage::Rejoined(Rejoined { epoch, length, journal, heard }));
        }
    }

    /// Goes on in the newer chain. The word for an older one may still be on its way.
    pub(super) fn resume(&mut self, resume: Resume) {
        let Resume { epoch, keep, next_keep } = resume;
        if epoch < self.terms.epoch || !self.is_in_chain() {
            return;
        }
        let fits = epoch == self.terms.epoch && self.phase == Phase::Ready && keep <= self.length;
        if !fits || next_keep > self.terms.budget || self.outflow.resume(keep, next_keep).is_err() {
            return self.fail(StageFailure::BadRequest);
        }
        self.phase = Phase::Running;
        let forgotten = self.terms.shape.work(self.terms.range, keep, self.length.minus(keep));
        self.rewound = self.rewound.plus(forgotten);
        self.length = keep;
        self.rewind_trails(keep);
        if let Err(violation) = self.inflow.resume(keep) {
            self.refuse(violation);
        }
        self.send_again();
    }

    /// Sends what a new neighbour lacks, as far as it can take it.
    pub(super) fn send_again(&mut self) {
        if self.phase != Phase::Running {
            return;
        }
        while let Some(rows) = self.outflow.replay(chunk(&self.terms, self.terms.dtype_out)) {
            self.send_rows(rows, Sample::No);
        }
    }

    /// Says which neighbours did not come into the newer chain.
    pub(super) fn miss_neighbours(&mut self) {
        self.setup = Time(u64::MAX);
        if self.upstream.is_none() {
            self.report_broken(self.terms.upstream(), Break::Lost);
        }
        if !self.outflow.is_opened() {
            self.report_broken(self.terms.downstream(), Break::Lost);
        }
    }

    /// The hop to or from a neighbour is of no use any more.
    pub(super) fn broken(&mut self, neighbour: StageIndex, decline: DeclineReason, how: Break) {
        match self.phase {
            Phase::Offered => self.decline(decline),
            Phase::Running | Phase::Rejoining | Phase::Ready => self.report_broken(neighbour, how),
            // The session has ended in order; its hops end in any.
            Phase::Settling | Phase::Settled | Phase::Ended => {}
        }
    }

    /// The downstream neighbour is of no use any more, though its hop is open.
    pub(super) fn downstream_broken(&mut self, how: Break) {
        if let Some(stream) = self.outflow.lose() {
            self.effects.push(Effect::Close(stream));
            self.broken(self.terms.downstream(), DeclineReason::DownstreamUnreachable, how);
        }
    }

    /// The upstream neighbour broke the protocol.
    pub(super) fn refuse(&mut self, violation: Violation) {
        let Some(stream) = self.upstream.take() else { return };
        let answer = match violation {
            Violation::Fenced(epoch) => HopBack::Fenced(epoch),
            Violation::Refused(refusal) => HopBack::Refused(refusal),
        };
        self.effects.push(Effect::Send(stream, Outgoing::Back(answer)));
        self.effects.push(Effect::Close(stream));
        self.broken(self.terms.upstream(), DeclineReason::UpstreamMissing, Break::Breach);
    }

    /// The engine could not use the oldest of what it got. Its cache is as it was before.
    pub(super) fn input_refused(&mut self) {
        if let Some(flight) = self.flights.pop_front() {
            self.length = self.length.min(flight.first);
        }
        match self.inflow {
            Inflow::Tokens(_) => self.fail(StageFailure::BadRequest),
            Inflow::Frames(_) => {
                if let Some(stream) = self.upstream.take() {
                    self.effects.push(Effect::Close(stream));
                    self.broken(self.terms.upstream(), DeclineReason::UpstreamMissing, Break::Breach);
                }
                self.rejoin_when_ready();
            }
        }
    }

    fn report_broken(&mut self, neighbour: StageIndex, how: Break) {
        let (epoch, peer) = (self.terms.epoch, self.terms.peer(neighbour));
        self.tell(FromStage::HopBroken(HopBroken { epoch, stage: neighbour, peer, how }));
    }
}

#[cfg(test)]
mod tests;
