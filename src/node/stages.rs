//! The stages that others (or this peer itself) lease from this peer, and the engine that they share.

use std::collections::BTreeMap;

use crate::amounts::Bytes;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::Epoch;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::ids::SessionId;
use crate::ids::Step;
use crate::ids::StreamId;
use crate::node::Node;
use crate::node::admission::Reservation;
use crate::node::io::Action;
use crate::node::io::EngineAction;
use crate::node::io::Outgoing;
use crate::node::io::StageKey;
use crate::node::io::StageStep;
use crate::node::io::StepFailure;
use crate::node::io::StepInput;
use crate::node::io::StepOutput;
use crate::node::streams::Owner;
use crate::node::stuck::Watch;
use crate::scheduler::Class;
use crate::scheduler::Item;
use crate::scheduler::Kind;
use crate::scheduler::Scheduler;
use crate::scheduler::SchedulerConfig;
use crate::scheduler::StepKey;
use crate::session::stage::Effect;
use crate::session::stage::LeasedStage;
use crate::session::stage::TakenStep;
use crate::session::stage::Terms;
use crate::session::stage::WaitingKind;
use crate::units::UnitRange;
use crate::wire::control::FromStage;
use crate::wire::control::Offer;
use crate::wire::control::Reconfigure;
use crate::wire::hop::HopBack;
use crate::wire::hop::HopOpen;
use crate::wire::hop::HopRefusal;
use crate::wire::signed::Signed;

/// How long a stream may be open without the offer that it is for.
const OFFER_WAIT: Span = Span::seconds(10);

/// Control streams without an offer, and hops without a lease, at most; of one peer at most half (arbitrary: as many
/// as the requests that a peer may have under way, with their hops, twice).
const MAX_WAITING: usize = 512;

/// A leased stage.
#[derive(Debug)]
pub(super) struct Leased {
    pub(super) stage: LeasedStage,
    /// What is held for it; nothing once it was freed.
    pub(super) reserved: Reservation,
    /// Whose work it is.
    pub(super) class: Class,
    /// Whether its next step waits in the scheduler.
    queue: Queue,
    steps: Step,
    /// What its last step was: one that decodes has a reader, whose next step is to come.
    last: Option<Kind>,
    /// When it ends if it makes way for this peer's own work and was not handed over by then.
    pub(super) goes_at: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    Out,
    In,
}

/// A stream whose offer has not come.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    peer: PeerKey,
    /// What it opened, if it is a hop.
    hop: Option<HopOpen>,
    until: Time,
}

/// A place among the streams that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Free,
    /// This one has to go first.
    After(StreamId),
}

/// A step that the engine has.
#[derive(Clone, Copy, Debug)]
struct Flight {
    key: StageKey,
    /// Whether a lease waits for what comes of it.
    lease: Lease,
    /// Whether it and those that it is computed with are of one position each, so that their time is that of a token.
    company: Kind,
}

/// Whether the lease that a step was taken from is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lease {
    Held,
    Freed,
}

/// How long the engine had a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// With those that it was computed with.
    pub(super) took: Span,
    /// Its part of that.
    pub(super) share: Span,
}

/// Everything leased from this peer.
#[derive(Debug)]
pub(super) struct Stages {
    pub(super) leased: BTreeMap<StageKey, Leased>,
    waiting: BTreeMap<StreamId, Waiting>,
    scheduler: Scheduler,
    /// The batch that the engine has, in the order in which it got the steps. The next is not handed over before all have
    /// landed, so that steps which become ready meanwhile go together.
    flights: Vec<Flight>,
    /// Watches over it.
    pub(super) watch: Watch,
    /// Memory that this peer's own work lacked when it was refused here; none where it lacked a lease.
    pub(super) lacking: Option<Bytes>,
    /// Since when the engine has had no batch.
    idle: Time,
    /// The smoothed time of one batch.
    pub(super) pass_time: Span,
    /// The smoothed time of one step, its part of its batch's.
    step_time: Span,
}

impl Stages {
    pub(super) fn new(config: SchedulerConfig) -> Self {
        Self {
            leased: BTreeMap::new(),
            waiting: BTreeMap::new(),
            scheduler: Scheduler::new(config),
            flights: Vec::new(),
            watch: Watch::default(),
            lacking: None,
            idle: Time::ZERO,
            pass_time: Span::ZERO,
            step_time: Span::ZERO,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.leased.len()
    }

    pub(super) fn cache(&self) -> Bytes {
        self.leased.values().map(|leased| leased.reserved.cache).sum()
    }

    /// How long a new step would wait for the engine.
    pub(super) fn queue(&self) -> Span {
        let steps = self.scheduler.len() + self.flights.len();
        self.step_time.times(u64::try_from(steps).unwrap_or(u64::MAX))
    }

    /// Whether a session is on any of the units.
    pub(super) fn uses(&self, model: ModelId, range: UnitRange) -> bool {
        self.leased.values().any(|leased| {
            let terms = leased.stage.terms();
            terms.weights == model && terms.range.overlaps(range)
        })
    }

    /// Forgets a stream that has ended before its offer came.
    pub(super) fn forget(&mut self, stream: StreamId) {
        self.waiting.remove(&stream);
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        let leases = self.leased.values().map(|leased| leased.stage.deadline());
        let going = self.leased.values().filter_map(|leased| leased.goes_at);
        let waiting = self.waiting.values().map(|waiting| waiting.until);
        leases.chain(going).chain(waiting).chain(self.due()).chain(self.watch.deadline()).min()
    }

    /// Whether the engine has nothing.
    pub(super) fn has_landed(&self) -> bool {
        self.flights.is_empty()
    }

    /// When the engine is to get its next batch.
    fn due(&self) -> Option<Time> {
        let is_idle = self.flights.is_empty();
        self.scheduler.due(self.idle, self.pass_time, self.readers()).filter(|_| is_idle)
    }

    /// Stages that have a reader.
    fn readers(&self) -> usize {
        self.leased.values().filter(|leased| leased.last == Some(Kind::Decode)).count()
    }

    /// Takes note of a step that the engine has answered.
    fn landed(&mut self, key: StageKey, now: Time) -> Option<Flight> {
        let index = self.flights.iter().position(|flight| flight.key == key)?;
        let flight = self.flights.remove(index);
        if self.flights.is_empty() {
            self.idle = now;
        }
        Some(flight)
    }

    /// Whether a stream of `peer` may wait, and which one of another's has to go for it: the oldest of whoever has most.
    fn room_for(&self, peer: PeerKey, me: PeerKey) -> Option<Room> {
        let mut counts: BTreeMap<PeerKey, usize> = BTreeMap::new();
        for waiting in self.waiting.values() {
            *counts.entry(waiting.peer).or_default() += 1;
        }
        let own = counts.get(&peer).copied().unwrap_or_default();
        if own >= MAX_WAITING / 2 {
            return None;
        }
        if self.waiting.len() < MAX_WAITING {
            return Some(Room::Free);
        }
        let others = counts.into_iter().filter(|(other, count)| *other != me && *count > own + 1);
        let (most, _) = others.max_by_key(|(_, count)| *count)?;
        let of_most = self.waiting.iter().filter(|(_, waiting)| waiting.peer == most);
        of_most.min_by_key(|(_, waiting)| waiting.until).map(|(stream, _)| Room::After(*stream))
    }

    /// Bytes of what the stages could send again.
    pub(super) fn journals(&self) -> Bytes {
        self.leased.values().map(|leased| leased.stage.journal()).sum()
    }

    /// Memory that is held ready for them.
    pub(super) fn journals_reserved(&self) -> Bytes {
        self.leased.values().map(|leased| leased.reserved.journal).sum()
    }

    /// Keeps the journals within their memory. The least important go first: those for which nothing was reserved, then those of
    /// others' work, and of these the longest.
    fn evict_journals(&mut self, limit: Bytes) {
        let mut all = self.journals();
        if all <= limit {
            return;
        }
        let importance = |(&key, leased): (&StageKey, &Leased)| {
            let bytes = leased.stage.journal();
            (leased.reserved.journal == Bytes::ZERO, leased.class, bytes, key)
        };
        let mut journals: Vec<(bool, Class, Bytes, StageKey)> = self.leased.iter().map(importance).collect();
        journals.sort_unstable();
        while let (true, Some((_, _, bytes, key))) = (limit < all, journals.pop()) {
            if let Some(leased) = self.leased.get_mut(&key) {
                leased.stage.evict_journal();
                let kept = leased.stage.journal();
                all = all.minus(bytes).plus(kept);
                if kept == Bytes::ZERO {
                    leased.reserved.journal = Bytes::ZERO;
                }
            }
        }
    }

    /// The lease that a hop is for.
    fn place(&self, open: HopOpen) -> Option<StageKey> {
        let leased = self.leased.iter().find(|(key, leased)| {
            let terms = leased.stage.terms();
            key.session == open.session && terms.epoch == open.epoch && terms.stage == open.to
        });
        leased.map(|(key, _)| *key)
    }

    /// The newest chain of a session that was heard of here.
    fn newest(&self, session: SessionId) -> Option<Epoch> {
        let of_session = self.leased.iter().filter(|(key, _)| key.session == session);
        of_session.map(|(_, leased)| leased.stage.terms().epoch).max()
    }

    /// Takes a session's steps out of the queue. Those that are still wanted get back in.
    fn take_back(&mut self, session: SessionId) {
        self.scheduler.remove(session);
        for (_, leased) in self.leased.iter_mut().filter(|(key, _)| key.session == session) {
            leased.queue = Queue::Out;
        }
    }

    /// Takes a freed stage's steps out of the queue and the engine.
    fn free(&mut self, key: StageKey) {
        self.take_back(key.session);
        for flight in self.flights.iter_mut().filter(|flight| flight.key == key) {
            flight.lease = Lease::Freed;
        }
        if let Some(leased) = self.leased.get_mut(&key) {
            leased.reserved = Reservation::default();
            leased.last = None;
            leased.stage.evict_journal();
        }
    }
}

impl Node {
    /// A requester opened a control stream.
    pub(super) fn on_caller(&mut self, stream: StreamId, peer: PeerKey, now: Time) {
        self.owners.insert(stream, Owner::Caller);
        if self.make_room_for(peer) {
            self.stages.waiting.insert(stream, Waiting { peer, hop: None, until: now.after(OFFER_WAIT) });
        } else {
            self.close(stream);
        }
    }

    /// An upstream stage opened a hop.
    pub(super) fn on_hop(&mut self, stream: StreamId, peer: PeerKey, open: HopOpen, now: Time) {
        self.owners.insert(stream, Owner::EarlyHop);
        if let Some(key) = self.stages.place(open) {
            return self.attach(stream, key, peer, open, now);
        }
        match self.stages.newest(open.session) {
            Some(epoch) if open.epoch < epoch => {
                self.send(stream, Outgoing::Back(HopBack::Fenced(epoch)));
                self.close(stream);
            }
            // Its offer, or the word of the newer chain, is on its way.
            Some(_) | None if self.make_room_for(peer) => {
                let until = now.after(OFFER_WAIT);
                self.stages.waiting.insert(stream, Waiting { peer, hop: Some(open), until });
            }
            Some(_) | None => self.refuse_early(stream, HopRefusal::UnknownSession),
        }
    }

    fn attach(&mut self, stream: StreamId, key: StageKey, peer: PeerKey, open: HopOpen, now: Time) {
        let leased = self.stages.leased.get_mut(&key);
        match leased.and_then(|leased| leased.stage.on_upstream(stream, open.from, peer)) {
            Some(effects) => {
                self.owners.insert(stream, Owner::Upstream(key));
                self.perform_for_stage(key, effects, now);
            }
            None => self.refuse_early(stream, HopRefusal::WrongPeer),
        }
    }

    /// Whether a stream of the peer may wait. When too many do, one of whoever has most of them goes.
    fn make_room_for(&mut self, peer: PeerKey) -> bool {
        match self.stages.room_for(peer, self.me) {
            None => false,
            Some(Room::Free) => true,
            Some(Room::After(stream)) => {
                self.let_wait_no_longer(stream);
                true
            }
        }
    }

    fn let_wait_no_longer(&mut self, stream: StreamId) {
        match self.stages.waiting.get(&stream).and_then(|waiting| waiting.hop) {
            Some(_) => self.refuse_early(stream, HopRefusal::UnknownSession),
            None => self.dismiss_caller(stream),
        }
    }

    pub(super) fn refuse_early(&mut self, stream: StreamId, refusal: HopRefusal) {
        self.stages.forget(stream);
        self.send(stream, Outgoing::Back(HopBack::Refused(refusal)));
        self.close(stream);
    }

    pub(super) fn dismiss_caller(&mut self, stream: StreamId) {
        self.stages.forget(stream);
        self.close(stream);
    }

    pub(super) fn on_offer(&mut self, control: StreamId, offer: Offer, now: Time) {
        let Some(Waiting { peer, .. }) = self.stages.waiting.remove(&control) else { return };
        match self.admit(offer, peer, now) {
            Ok((terms, reserved)) => self.lease(terms, reserved, control, now),
            Err(decline) => {
                self.send(control, Outgoing::FromStage(FromStage::Decline(decline)));
                self.close(control);
            }
        }
    }

    fn lease(&mut self, terms: Terms, reserved: Reservation, control: StreamId, now: Time) {
        let (key, epoch, class) = (terms.key, terms.epoch, self.class(terms.requester));
        let hop = self.ids.open();
        let (stage, effects) = LeasedStage::new(terms, control, hop, now);
        self.owners.insert(control, Owner::Control(key));
        self.stages.leased.insert(
            key,
            Leased { stage, reserved, class, queue: Queue::Out, steps: Step(0), last: None, goes_at: None },
        );
        self.perform_for_stage(key, effects, now);
        self.attach_early(key.session, epoch, now);
    }

    /// A requester has mended a chain that a stage here is in.
    pub(super) fn on_reconfigure(&mut self, key: StageKey, newer: Reconfigure, now: Time) {
        let (hop, epoch) = (self.ids.open(), newer.epoch);
        self.stages.take_back(key.session);
        self.with_stage(key, now, |stage| stage.on_reconfigure(newer, hop, now));
        self.attach_early(key.session, epoch, now);
    }

    /// Attaches hops that were there before the word of their chain.
    fn attach_early(&mut self, session: SessionId, epoch: Epoch, now: Time) {
        let early = self.stages.waiting.iter().filter_map(|(&stream, waiting)| {
            let open = waiting.hop.filter(|open| open.session == session && open.epoch <= epoch)?;
            Some((stream, waiting.peer, open))
        });
        for (stream, peer, open) in early.collect::<Vec<_>>() {
            self.stages.forget(stream);
            self.on_hop(stream, peer, open, now);
        }
    }

    /// Does something with a leased stage, if it still is, and what follows from it.
    pub(super) fn with_stage(&mut self, key: StageKey, now: Time, act: impl FnOnce(&mut LeasedStage) -> Vec<Effect>) {
        if let Some(leased) = self.stages.leased.get_mut(&key) {
            let effects = act(&mut leased.stage);
            self.perform_for_stage(key, effects, now);
        }
    }

    fn perform_for_stage(&mut self, key: StageKey, effects: Vec<Effect>, now: Time) {
        for effect in effects {
            match effect {
                Effect::Reserve => self.reserve(key),
                Effect::OpenHop(stream, peer, open) => {
                    self.owners.insert(stream, Owner::Downstream(key));
                    self.actions.push(Action::OpenHop(stream, peer, open));
                }
                Effect::Send(stream, message) => self.send(stream, message),
                Effect::Commit(stream, commitment) => {
                    // Made by this peer, in its own name.
                    if let Ok(signed) = Signed::seal(&*commitment, &self.config.identity, self.config.network) {
                        self.send(stream, Outgoing::FromStage(FromStage::Committed(Box::new(signed))));
                    }
                }
                Effect::Close(stream) => self.close(stream),
                Effect::Store(entry) => self.on_settlement(key, *entry, now),
                Effect::Free => {
                    self.stages.free(key);
                    self.actions.push(Action::Engine(EngineAction::Free(key)));
                }
                Effect::Ended => {
                    self.stages.leased.remove(&key);
                }
            }
        }
    }

    fn reserve(&mut self, key: StageKey) {
        let Some(leased) = self.stages.leased.get(&key) else { return };
        let terms = leased.stage.terms();
        let (model, range, capacity, tail) = (terms.weights, terms.range, terms.budget, terms.sampling.clone());
        let rounding = terms.rounding.clone();
        self.actions.push(Action::Engine(EngineAction::Open { key, model, range, capacity, rounding, tail }));
    }

    pub(super) fn on_stepped(&mut self, key: StageKey, end: Position, output: StepOutput, pace: Pace, now: Time) {
        let Some(Flight { lease: Lease::Held, company, .. }) = self.stages.landed(key, now) else {
            // A step of a stage that was freed meanwhile is of no use.
            return;
        };
        smooth(&mut self.stages.step_time, pace.share);
        if self.stages.flights.is_empty() {
            smooth(&mut self.stages.pass_time, pace.took);
        }
        if let Some(leased) = self.stages.leased.get(&key)
            && company == Kind::Decode
        {
            let (model, range) = (leased.stage.terms().weights, leased.stage.terms().range);
            self.measured(model, range, pace.took, now);
        }
        self.with_stage(key, now, |stage| stage.on_stepped(end, output, pace.share));
    }

    /// A failed step; or, before any step, an engine that made no room for the stage.
    pub(super) fn on_step_failed(&mut self, key: StageKey, failure: StepFailure, now: Time) {
        let freed = self.stages.landed(key, now).is_some_and(|flight| flight.lease == Lease::Freed);
        if !freed {
            self.with_stage(key, now, |stage| stage.on_step_failed(failure));
        }
    }

    /// Tells everyone who leases a stage that this peer leaves. Its own user's answers end with it, so they stay where they are.
    pub(super) fn drain_stages(&mut self, now: Time) {
        let others = self.stages.leased.iter().filter(|(_, leased)| leased.stage.terms().requester != self.me);
        for key in others.map(|(&key, _)| key).collect::<Vec<_>>() {
            self.with_stage(key, now, LeasedStage::on_drain);
        }
    }

    pub(super) fn tick_stages(&mut self, now: Time) {
        for key in self.stages.leased.keys().copied().collect::<Vec<_>>() {
            let goes = self.stages.leased[&key].goes_at.is_some_and(|at| at <= now);
            self.with_stage(key, now, |stage| if goes { stage.on_superseded() } else { stage.on_tick(now) });
        }
        let late = self.stages.waiting.iter().filter(|(_, waiting)| waiting.until <= now);
        for stream in late.map(|(&stream, _)| stream).collect::<Vec<_>>() {
            self.let_wait_no_longer(stream);
        }
    }

    /// Gives the engine its next batch if it has none, as the scheduler says, and lets go of units.
    pub(super) fn pump(&mut self, now: Time) {
        self.enqueue(now);
        while self.stages.due().is_some_and(|due| due <= now) {
            let readers = self.stages.readers();
            let taken = self.stages.scheduler.take_batch(readers, now);
            let steps: Vec<StageStep> = taken.into_iter().filter_map(|taken| self.begin(taken.item, now)).collect();
            // Nothing could be begun if what waited is no longer possible.
            if !steps.is_empty() {
                self.take_off(steps, now);
            }
            self.enqueue(now);
        }
        self.let_go(now);
        if self.stages.journals() > Bytes::ZERO {
            self.stages.evict_journals(self.room_for_journals());
        }
    }

    fn take_off(&mut self, steps: Vec<StageStep>, now: Time) {
        let counts: Vec<u32> = steps.iter().map(|step| self.positions(step)).collect();
        let company = if counts.iter().all(|count| *count == 1) { Kind::Decode } else { Kind::Prefill };
        let flights = steps.iter().map(|step| Flight { key: step.key, lease: Lease::Held, company });
        self.stages.flights.extend(flights);
        self.stages.watch.handed_over(Position(counts.iter().sum()), self.stages.pass_time, now);
        self.actions.push(Action::Engine(EngineAction::Steps(steps)));
    }

    /// How many positions a step has.
    fn positions(&self, step: &StageStep) -> u32 {
        let rows = match &step.input {
            StepInput::Tokens(tokens) => tokens.len() as u64,
            StepInput::Hidden(payload, dtype) => {
                let width = self.stages.leased.get(&step.key).map_or(1, |leased| leased.stage.terms().shape.width);
                payload.len() as u64 / dtype.row_bytes(width).max(1)
            }
        };
        u32::try_from(rows).unwrap_or(u32::MAX)
    }

    fn enqueue(&mut self, now: Time) {
        let Stages { leased, scheduler, .. } = &mut self.stages;
        for (&key, leased) in leased.iter_mut().filter(|(_, leased)| leased.queue == Queue::Out) {
            let Some(waiting) = leased.stage.waiting() else { continue };
            let terms = leased.stage.terms();
            let step = StepKey { session: key.session, range: key.range, epoch: terms.epoch, step: leased.steps };
            let kind = match waiting.kind {
                WaitingKind::Decode => Kind::Decode,
                WaitingKind::Prefill => Kind::Prefill,
            };
            let (requester, class, positions) = (terms.requester, leased.class, waiting.positions);
            let item = Item { key: step, requester, class, kind, positions, enqueued: now };
            // One that finds the queue full is tried again when something has left it.
            if scheduler.push(item).is_ok() {
                leased.queue = Queue::In;
                leased.steps = leased.steps.next();
            }
        }
    }

    /// Takes a step, or a piece of it, from its stage.
    fn begin(&mut self, item: Item, now: Time) -> Option<StageStep> {
        let StepKey { session, range, epoch, .. } = item.key;
        let key = StageKey { session, range };
        let Stages { leased, scheduler, .. } = &mut self.stages;
        let leased = leased.get_mut(&key)?;
        leased.queue = if scheduler.holds(session, range) { Queue::In } else { Queue::Out };
        if leased.stage.terms().epoch != epoch {
            return None;
        }
        let (TakenStep { first, input, wanted }, effects) = leased.stage.take(item.positions)?;
        leased.last = Some(item.kind);
        self.perform_for_stage(key, effects, now);
        Some(StageStep { key, first, input, wanted })
    }
}

/// Moves a smoothed time an eighth of the way to what was measured.
fn smooth(smoothed: &mut Span, measured: Span) {
    *smoothed = if *smoothed == Span::ZERO { measured } else { Span((smoothed.0 * 7 + measured.0) / 8) };
}
