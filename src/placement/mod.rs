//! What this peer holds of one model: its own decision, from what the others say they hold.
//!
//! [`Placement`] is told what the others hold ([`Event::Seen`]) and how its own loads went; it answers with
//! [`Decision`]s, to be performed in order, and [`Placement::holdings`] says what to put into the profile.
//!
//! * A newcomer listens, then joins where the cover is weakest: it announces its intent, waits, looks again, loads.
//!   Of newcomers that want the same, the better ranked (by hash of peer and model) keeps its choice; the others
//!   look again, assuming that those before them get what the rule gives them.
//! * Of places that are as good it takes one next to what a peer on the same LAN holds, so that chains leave it as seldom as may be.
//! * When nobody holds a unit for some time, a peer with room takes it; then one all of whose units others hold, too;
//!   then one that can give up units at an end of its range. Nobody else moves.
//! * A model may be held at several precisions. A newcomer takes the most precise at which it fills all that is missing, or else the one
//!   at which it fills most of it, and stays with it; units count as held at whatever precision.
//! * The new is loaded before the old is dropped, if memory allows. Before it is dropped, the old is retired: it takes
//!   no new leases and is announced as a mere intent, so that of two that would drop the same, one notices.

mod choice;
mod fit;
pub mod plan;
mod sight;

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::placement::choice::Choice;
use crate::placement::fit::Fit;
pub use crate::placement::fit::check;
use crate::placement::sight::Sight;
use crate::units::Cover;
use crate::units::UnitRange;
use crate::wire::profile::Holding;
use crate::wire::profile::HoldingState;

/// What placement is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// What the others say, all of them at once: live, reachable peers that are not about to leave.
    Seen(Vec<Other>),
    /// A range asked for with [`Decision::Load`] can be leased.
    Loaded(UnitRange),
    /// A range asked for with [`Decision::Load`] could not be loaded.
    LoadFailed(UnitRange),
    /// A range named by [`Decision::Unload`] is out of memory.
    Unloaded(UnitRange),
    /// Time has passed.
    Ticked,
}

/// What another peer says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// The peer.
    pub peer: PeerKey,
    /// Its holdings, in whatever state; those of other models are ignored.
    pub holdings: Vec<Holding>,
    /// Memory that it has left.
    pub memory_free: Bytes,
    /// Whether it is on the same LAN: [`LAN`] away at most.
    pub is_near: bool,
}

/// What is to be done. In order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Say in the profile that this range is intended ([`Placement::holdings`] has it).
    Announce(UnitRange),
    /// Take the intent back out of the profile.
    Withdraw(UnitRange),
    /// Load the range and answer [`Event::Loaded`] or [`Event::LoadFailed`].
    Load(UnitRange),
    /// Take no new leases on the range ([`Placement::holdings`] has it as intended), but keep it.
    Retire(UnitRange),
    /// Take new leases on the range again.
    Restore(UnitRange),
    /// Let running sessions end, drop the range, answer [`Event::Unloaded`]. It was retired before.
    Unload(UnitRange),
}

/// What holding a model's units costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// The model.
    pub model: ModelId,
    /// Bytes of each unit: weights, and what is reserved for its keys and values, and at the end for logits.
    pub unit_bytes: Vec<Bytes>,
    /// Bytes that the first and the last unit share, counted once where both are held (a tied embedding).
    pub shared_ends: Bytes,
    /// Bytes that any holding needs besides, once: what passes work in.
    pub reserve: Bytes,
}

/// What this peer offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Memory for units of this model.
    pub budget: Bytes,
    /// Units that may be held, if limited.
    pub max_units: Option<u16>,
    /// The range that the user asked for; it never moves.
    pub pinned: Option<UnitRange>,
}

/// Why this peer can hold nothing of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotServe {
    /// No precision is allowed.
    #[error("it is served at another precision already, or at none of those that this peer may serve")]
    NothingAsked,
    /// Not even the smallest unit fits.
    #[error("the smallest unit needs {expected}, got {got}")]
    NothingFits {
        /// Bytes that the smallest unit needs.
        expected: Bytes,
        /// The budget.
        got: Bytes,
    },
    /// The pinned range does not fit.
    #[error("units {range} need {expected}, got {got}")]
    PinnedTooLarge {
        /// The range.
        range: UnitRange,
        /// Bytes that it needs.
        expected: Bytes,
        /// The budget.
        got: Bytes,
    },
    /// The pinned range exceeds the model, or the cap on units.
    #[error("units {range} were asked for, of a model of {units}, at most {at_most} at a peer")]
    PinnedOutside {
        /// The range.
        range: UnitRange,
        /// Units of the model.
        units: u16,
        /// Units that this peer may hold.
        at_most: u16,
    },
}

/// The pace of decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacementConfig {
    /// How long a newcomer listens before it chooses.
    pub listen: Span,
    /// The part of the listening that differs from peer to peer, at most.
    pub listen_spread: Span,
    /// The least time between an intent and its load: time for others' intents to arrive.
    pub settle: Span,
    /// Added to it per rank among those who would act.
    pub slot: Span,
    /// How long a unit must be without holder before one that already serves acts.
    pub grace: Span,
    /// How much longer one waits that must move for it.
    pub move_delay: Span,
    /// How long another's intent counts without being followed by a load.
    pub intent_expires: Span,
    /// How long another's load counts without being followed by readiness.
    pub load_expires: Span,
    /// How long a peer stays before it may move for gain alone.
    pub dwell: Span,
    /// The least gain of the bottleneck for which it moves, in percent.
    pub gain_percent: u64,
}

impl Default for PlacementConfig {
    /// Dwell and gain are the design's; the rest is arbitrary, longer than gossip takes on a slow link.
    fn default() -> Self {
        Self {
            listen: Span::millis(1_500),
            listen_spread: Span::millis(500),
            settle: Span::millis(700),
            slot: Span::millis(150),
            grace: Span::seconds(3),
            move_delay: Span::millis(1_500),
            intent_expires: Span::seconds(15),
            load_expires: Span::seconds(600),
            dwell: Span::seconds(600),
            gain_percent: 20,
        }
    }
}

/// The round trip below which two peers count as on one LAN (the design's 2 ms).
pub const LAN: Span = Span::millis(2);

/// The most ranges that a peer holds: as many as fit in a profile.
const MAX_HOLDINGS: usize = 8;

/// Ranks beyond this one wait no longer (arbitrary), so that a large mesh does not wait for minutes.
const MAX_SLOTS: u64 = 16;

/// An intent is reconsidered for at most this long (arbitrary), so that strangers' intents can't hold one up for ever.
const MAX_HESITATION: Span = Span::seconds(20);

/// The least and the longest time between a failed load and the next attempt (arbitrary).
const RETRY: (Span, Span) = (Span::seconds(5), Span::seconds(300));

/// How often to look again while something is unsettled (arbitrary).
const LOOK: Span = Span::seconds(1);

/// A range of one's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Own {
    Loading,
    Ready,
    /// Not leased any more; looked at again at the time given.
    Retired(Time),
    Unloading,
}

/// What is about to be done.
#[derive(Clone, Debug)]
struct Intent {
    choice: Choice,
    /// When it was first announced.
    since: Time,
    /// When it is carried out.
    due: Time,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Announced.
    Waiting,
    /// What is left makes room first, since memory does not allow both.
    Emptying,
    /// What is taken is being loaded.
    Filling,
}

/// One peer's placement of one model.
#[derive(Clone, Debug)]
pub struct Placement {
    config: PlacementConfig,
    pinned: Option<UnitRange>,
    /// What fits at each precision at which anything does, from the most precise to the coarsest.
    fits: Vec<Fit>,
    /// The precision at which units are held, or would be.
    at: usize,
    sight: Sight,
    own: BTreeMap<UnitRange, Own>,
    intent: Option<Intent>,
    /// Ranges that were replaced and go as soon as nobody needs them.
    leaving: Vec<UnitRange>,
    /// Units that nobody holds or is about to, with the time since when.
    holes: BTreeMap<u16, Time>,
    /// Nothing new is begun before.
    idle_until: Time,
    failures: u32,
    /// Since when the present holdings are held.
    placed: Time,
    now: Time,
}

impl Placement {
    /// Begins to listen.
    ///
    /// # Errors
    /// [`CannotServe`] if nothing, or not the pinned range, fits the offer.
    pub fn new(
        me: PeerKey,
        needs: Needs,
        offer: Offer,
        config: PlacementConfig,
        now: Time,
    ) -> Result<Self, CannotServe> {
        let family = BTreeSet::from([needs.model]);
        Self::at_any_precision(me, needs.model, family, vec![needs], offer, config, now)
    }

    /// Begins to listen, for a model that may be held at several precisions.
    ///
    /// - `family`: every model that can take the place of `model`; units that others hold of one count as held
    /// - `needs`: those that this peer may hold, from the most precise to the coarsest; not empty
    ///
    /// # Errors
    /// [`CannotServe`] if nothing, or not the pinned range, fits the offer at the coarsest of them.
    pub fn at_any_precision(
        me: PeerKey,
        model: ModelId,
        family: BTreeSet<ModelId>,
        needs: Vec<Needs>,
        offer: Offer,
        config: PlacementConfig,
        now: Time,
    ) -> Result<Self, CannotServe> {
        let (mut fits, mut refusal) = (Vec::with_capacity(needs.len()), CannotServe::NothingAsked);
        for needs in needs {
            match Fit::new(needs, offer) {
                Ok(fit) => fits.push(fit),
                Err(refused) => refusal = refused,
            }
        }
        let fit = fits.first().ok_or(refusal)?;
        let sight = Sight::new(me, model, family, fit.units(), config);
        let spread = Span(u64::from(sight.fraction()).saturating_mul(config.listen_spread.0) / u64::from(u16::MAX));
        // Where everything fits, or the user has said what to hold, there is nothing to agree on.
        let agreed = fit.whole().is_some() || offer.pinned.is_some();
        let listen = if agreed { Span::ZERO } else { config.listen.plus(spread) };
        Ok(Self {
            config,
            pinned: offer.pinned,
            fits,
            at: 0,
            sight,
            own: BTreeMap::new(),
            intent: None,
            leaving: Vec::new(),
            holes: BTreeMap::new(),
            idle_until: now.after(listen),
            failures: 0,
            placed: now,
            now,
        })
    }

    /// Advances by one event. The caller performs the decisions in order.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Decision> {
        self.now = now;
        let mut decisions = Vec::new();
        match event {
            Event::Seen(others) => self.sight.seen(others, now),
            Event::Loaded(range) => self.loaded(range),
            Event::LoadFailed(range) => self.load_failed(range, &mut decisions),
            Event::Unloaded(range) => {
                self.own.remove(&range);
            }
            Event::Ticked => {}
        }
        self.sight.expire(now);
        self.watch_holes();
        self.step(&mut decisions);
        decisions
    }

    /// The model whose units are held: the one that was asked for, at the precision chosen.
    pub fn model(&self) -> ModelId {
        self.fit().needs().model
    }

    /// What holding them costs.
    pub fn needs(&self) -> &Needs {
        self.fit().needs()
    }

    fn fit(&self) -> &Fit {
        &self.fits[self.at]
    }

    /// What this peer holds, is loading or intends to, ascending: for its profile.
    pub fn holdings(&self) -> Vec<(UnitRange, HoldingState)> {
        let state = |own: &Own| match own {
            Own::Loading => Some(HoldingState::Loading),
            Own::Ready => Some(HoldingState::Ready),
            Own::Retired(_) => Some(HoldingState::Intended),
            Own::Unloading => None,
        };
        let held = self.own.iter().filter_map(|(&range, own)| Some((range, state(own)?)));
        let mut holdings: BTreeMap<UnitRange, HoldingState> = held.collect();
        for range in self.intent.iter().flat_map(|intent| &intent.choice.take) {
            holdings.entry(*range).or_insert(HoldingState::Intended);
        }
        holdings.into_iter().collect()
    }

    /// When to come back with [`Event::Ticked`], if nothing else happens.
    pub fn next_deadline(&self) -> Option<Time> {
        let retired = self.own.values().filter_map(|own| match own {
            Own::Retired(until) => Some(*until),
            Own::Loading | Own::Ready | Own::Unloading => None,
        });
        let waiting = self.intent.iter().filter(|intent| intent.phase == Phase::Waiting).map(|intent| intent.due);
        let idle = Some(self.idle_until).filter(|until| *until > self.now);
        let unsettled = !self.holes.is_empty() || !self.leaving.is_empty() || self.intent.is_some();
        let look = (unsettled || self.sight.unsettled() || self.own.is_empty()).then(|| self.now.after(LOOK));
        let dwell = Some(self.placed.after(self.config.dwell)).filter(|until| *until > self.now);
        let alarms = retired.chain(waiting).chain(idle).chain(look).chain(dwell);
        if self.pinned.is_some() { idle } else { alarms.min() }
    }

    fn loaded(&mut self, range: UnitRange) {
        let Some(own) = self.own.get_mut(&range).filter(|own| **own == Own::Loading) else {
            return;
        };
        *own = Own::Ready;
        self.failures = 0;
        self.placed = self.now;
        let filled = |intent: &mut Intent| {
            intent.phase == Phase::Filling
                && intent.choice.take.iter().all(|range| self.own.get(range) == Some(&Own::Ready))
        };
        if let Some(intent) = self.intent.take_if(filled) {
            self.leaving.extend(intent.choice.leave);
        }
    }

    fn load_failed(&mut self, range: UnitRange, decisions: &mut Vec<Decision>) {
        if self.own.get(&range) != Some(&Own::Loading) {
            return;
        }
        self.own.remove(&range);
        decisions.push(Decision::Withdraw(range));
        let (least, longest) = RETRY;
        self.idle_until = self.now.after(least.times(1 << self.failures.min(32)).min(longest));
        self.failures = self.failures.saturating_add(1);
        // What else was to be taken is kept if it loads; what was to be left stays.
        self.intent = None;
    }

    fn step(&mut self, decisions: &mut Vec<Decision>) {
        if let Some(range) = self.pinned {
            return self.load_pinned(range, decisions);
        }
        self.retire_replaced(decisions);
        self.look_at_retired(decisions);
        match self.intent.take() {
            Some(intent) => self.review(intent, decisions),
            None if self.now >= self.idle_until && !self.in_motion() => self.begin(decisions),
            None => {}
        }
    }

    fn load_pinned(&mut self, range: UnitRange, decisions: &mut Vec<Decision>) {
        if self.now >= self.idle_until && self.own.is_empty() {
            self.load(range, decisions);
        }
    }

    fn load(&mut self, range: UnitRange, decisions: &mut Vec<Decision>) {
        self.own.insert(range, Own::Loading);
        decisions.push(Decision::Load(range));
    }

    /// Whether something of one's own is on its way in or out.
    fn in_motion(&self) -> bool {
        self.own.values().any(|own| *own != Own::Ready)
    }

    /// Looks for something to do.
    fn begin(&mut self, decisions: &mut Vec<Decision>) {
        if let (true, Some(whole)) = (self.own.is_empty(), self.fits.first().and_then(Fit::whole)) {
            self.at = 0;
            return self.load(whole, decisions);
        }
        let choice = if self.own.is_empty() { self.join(None) } else { self.choose() };
        let Some(choice) = choice else {
            return;
        };
        for range in &choice.take {
            decisions.push(Decision::Announce(*range));
        }
        let due = self.due(&choice);
        self.intent = Some(Intent { choice, since: self.now, due, phase: Phase::Waiting });
    }

    /// Where a newcomer goes, at which precision: the most precise at which it fills all that is missing, or else most of that.
    fn join(&mut self, announced: Option<UnitRange>) -> Option<Choice> {
        let missing = choice::missing_to_me(&self.sight, announced.is_some());
        let mut best: Option<(u16, usize, Choice)> = None;
        for (at, fit) in self.fits.iter().enumerate() {
            let announced = announced.filter(|_| at == self.at);
            let Some(choice) = choice::join(fit, &self.sight, announced) else { continue };
            let filled = missing.iter().filter_map(|run| run.common(choice.target)).map(UnitRange::count).sum();
            if best.as_ref().is_none_or(|(most, ..)| filled > *most) {
                best = Some((filled, at, choice));
            }
        }
        let (_, at, choice) = best?;
        self.at = at;
        Some(choice)
    }

    fn choose(&self) -> Option<Choice> {
        let own = self.ready();
        if own.len() >= MAX_HOLDINGS {
            return None;
        }
        if let Some(fill) = self.ripe_hole().and_then(|hole| self.fill(&own, hole)) {
            return Some(fill);
        }
        let dwelt = self.now >= self.placed.after(self.config.dwell) && self.leaving.is_empty();
        let calm = self.holes.is_empty() && !self.sight.unsettled();
        if dwelt && calm { choice::gain(self.fit(), &self.sight, &own, self.config.gain_percent) } else { None }
    }

    /// The best way to take some of `hole` that its age allows.
    fn fill(&self, own: &[UnitRange], hole: UnitRange) -> Option<Choice> {
        let since = self.holes.get(&hole.start())?;
        let age = self.now.since(*since).minus(self.config.grace);
        let patience = self.config.move_delay;
        let room = || choice::with_room(self.fit(), own, hole);
        let moved = || choice::by_moving(self.fit(), &self.sight, own, hole).filter(|_| age >= patience);
        let trimmed = || choice::by_trimming(self.fit(), &self.sight, own, hole).filter(|_| age >= patience.times(2));
        room().or_else(moved).or_else(trimmed)
    }

    /// The longest run of units that were without holder for long enough; the leftmost of equals.
    fn ripe_hole(&self) -> Option<UnitRange> {
        let mut ripe = Cover::empty(self.fit().units());
        UnitRange::whole(self.fit().units()).into_iter().for_each(|whole| ripe.add(whole));
        let old = self.holes.iter().filter(|(_, since)| self.now >= since.after(self.config.grace));
        for unit in old.filter_map(|(&unit, _)| UnitRange::new(unit, unit.checked_add(1)?).ok()) {
            ripe.remove(unit);
        }
        ripe.missing().into_iter().rev().max_by_key(|run| run.count())
    }

    /// Goes on with an intent: it is looked at again at every change, and carried out when it is due.
    fn review(&mut self, mut intent: Intent, decisions: &mut Vec<Decision>) {
        match intent.phase {
            Phase::Filling => self.intent = Some(intent),
            Phase::Emptying if intent.choice.leave.iter().any(|range| self.own.contains_key(range)) => {
                let restored = |range| self.own.get(range) == Some(&Own::Ready) && !self.leaving.contains(range);
                if intent.choice.leave.iter().any(restored) {
                    self.withdraw(&intent, decisions)
                } else {
                    self.intent = Some(intent)
                }
            }
            Phase::Emptying => self.carry_out(intent, decisions),
            Phase::Waiting => match self.second_thought(&intent) {
                Some((choice, true)) => {
                    intent.choice.take.iter().for_each(|range| decisions.push(Decision::Withdraw(*range)));
                    choice.take.iter().for_each(|range| decisions.push(Decision::Announce(*range)));
                    intent.due = self.due(&choice).min(intent.since.after(MAX_HESITATION));
                    self.intent = Some(Intent { choice, ..intent });
                }
                Some((_, false)) if self.now >= intent.due => self.carry_out(intent, decisions),
                Some((_, false)) => self.intent = Some(intent),
                None => self.withdraw(&intent, decisions),
            },
        }
    }

    /// What to make of an announced intent, seeing what the others say by now, and whether that is something else.
    fn second_thought(&mut self, intent: &Intent) -> Option<(Choice, bool)> {
        let choice = &intent.choice;
        if self.own.is_empty() {
            let before = self.at;
            let joined = self.join(choice.take.first().copied())?;
            let is_other = joined != *choice || self.at != before;
            return Some((joined, is_other));
        }
        let wanted = choice.gain || !self.sight.taken_before_me(choice.purpose);
        (wanted && self.sight.hold_besides_me(&choice.given_up())).then(|| (choice.clone(), false))
    }

    fn carry_out(&mut self, mut intent: Intent, decisions: &mut Vec<Decision>) {
        let held: Vec<_> = self.own.keys().copied().collect();
        if !self.fit().memory_allows(&[held, intent.choice.take.clone()].concat()) {
            intent.phase = Phase::Emptying;
            self.leaving.extend(&intent.choice.leave);
            self.intent = Some(intent);
            return self.retire_replaced(decisions);
        }
        for range in intent.choice.take.clone() {
            self.load(range, decisions);
        }
        intent.phase = Phase::Filling;
        self.intent = Some(intent);
    }

    fn withdraw(&mut self, intent: &Intent, decisions: &mut Vec<Decision>) {
        intent.choice.take.iter().for_each(|range| decisions.push(Decision::Withdraw(*range)));
        self.idle_until = self.now.after(self.config.settle);
    }

    /// When a choice is carried out: later for each who would act and is ranked better.
    fn due(&self, choice: &Choice) -> Time {
        let rank = self.sight.better_ranked(choice, self.own.is_empty(), self.fit());
        self.now.after(self.config.settle).after(self.config.slot.times(rank.min(MAX_SLOTS)))
    }

    /// Retires what was replaced, as soon as others hold all of it; one range at a time.
    fn retire_replaced(&mut self, decisions: &mut Vec<Decision>) {
        let emptying = self.intent.as_ref().is_some_and(|intent| intent.phase == Phase::Emptying);
        let over = !self.fit().allows(&self.own.keys().copied().collect::<Vec<_>>());
        if !over && !emptying {
            self.leaving.clear();
        }
        let retiring = self.own.values().any(|own| matches!(own, Own::Retired(_) | Own::Unloading));
        if retiring || self.now < self.idle_until {
            return;
        }
        // Where what was replaced is needed after all, something else may do that others hold.
        let any = if over && self.intent.is_none() { self.ready() } else { Vec::new() };
        let elsewhere = |range: &UnitRange| self.sight.hold_besides_me(&range.iter().collect::<Vec<_>>());
        let any: Vec<_> = any.into_iter().filter(elsewhere).collect();
        let mut candidates = self.leaving.iter().chain(&any).copied();
        let ready = |range: &UnitRange| self.own.get(range) == Some(&Own::Ready);
        if let Some(range) = candidates.find(|range| ready(range) && self.held_otherwise(*range)) {
            let rank = self.sight.rank_among_holders(range).min(MAX_SLOTS);
            let look = self.now.after(self.config.settle).after(self.config.slot.times(rank));
            self.own.insert(range, Own::Retired(look));
            decisions.push(Decision::Retire(range));
        }
    }

    fn look_at_retired(&mut self, decisions: &mut Vec<Decision>) {
        let due = |own: &Own| matches!(own, Own::Retired(look) if *look <= self.now);
        let retired: Vec<_> = self.own.iter().filter(|(_, own)| due(own)).map(|(&range, _)| range).collect();
        for range in retired {
            if self.held_otherwise(range) {
                self.own.insert(range, Own::Unloading);
                decisions.push(Decision::Unload(range));
            } else {
                self.own.insert(range, Own::Ready);
                decisions.push(Decision::Restore(range));
                self.leaving.retain(|left| *left != range);
                self.idle_until = self.now.after(self.config.settle.times(2));
            }
        }
    }

    /// Whether every unit of `range` is ready elsewhere: in another of one's own ranges, or at another peer.
    fn held_otherwise(&self, range: UnitRange) -> bool {
        let ready = self.ready();
        let own = |unit| ready.iter().any(|other| *other != range && other.contains(unit));
        let needed = range.iter().filter(|unit| !own(*unit));
        self.sight.hold_besides_me(&needed.collect::<Vec<_>>())
    }

    fn ready(&self) -> Vec<UnitRange> {
        self.own.iter().filter(|(_, own)| **own == Own::Ready).map(|(&range, _)| range).collect()
    }

    /// Notes since when units have neither a holder nor somebody who is about to be one.
    fn watch_holes(&mut self) {
        let mut cover = self.sight.expected();
        let staying = self.own.iter().filter(|(_, own)| **own != Own::Unloading).map(|(&range, _)| range);
        let intended = self.intent.iter().flat_map(|intent| intent.choice.take.iter().copied());
        staying.chain(intended).for_each(|range| cover.add(range));
        let open: Vec<u16> = cover.missing().into_iter().flat_map(UnitRange::iter).collect();
        self.holes.retain(|unit, _| open.binary_search(unit).is_ok());
        for unit in open {
            self.holes.entry(unit).or_insert(self.now);
        }
    }
}

#[cfg(test)]
mod churn_simulation;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
