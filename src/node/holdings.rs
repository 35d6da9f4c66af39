//! What this peer holds: one placement per model, and the memory they share.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::estimate::Passes;
use crate::ids::ModelId;
use crate::node::Node;
use crate::node::io::Action;
use crate::node::io::EngineAction;
use crate::node::io::HoldPolicy;
use crate::node::io::ModelFacts;
use crate::node::needs;
use crate::placement::CannotServe;
use crate::placement::Decision;
use crate::placement::Event;
use crate::placement::LAN;
use crate::placement::Needs;
use crate::placement::Other;
use crate::placement::Placement;
use crate::units::UnitRange;
use crate::wire::profile::Holding;
use crate::wire::profile::HoldingState;

/// The weight of a new measurement in the pace, as one part of so many (arbitrary).
const PACE_WEIGHT: u64 = 8;

/// One model's units here, at one of its precisions.
#[derive(Debug)]
struct Served {
    placement: Placement,
    /// The passes that the engine makes.
    passes: Passes,
    /// Measured time of one position through one unit, in a decode step; zero while unknown.
    pace: Span,
    /// To be unloaded once no session is on them.
    leaving: Vec<UnitRange>,
}

/// What this peer holds of each model that was asked for. Of each, another may be held in its place: the same at another precision.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    served: BTreeMap<ModelId, Served>,
    refused: BTreeMap<ModelId, CannotServe>,
}

impl Holdings {
    /// The ranges of a model that can be leased.
    pub(super) fn ready(&self, model: ModelId) -> impl Iterator<Item = UnitRange> {
        let held = self.held_as(model).map(|served| served.placement.holdings()).unwrap_or_default();
        held.into_iter().filter(|(_, state)| *state == HoldingState::Ready).map(|(range, _)| range)
    }

    /// Measured time of one position through one unit of a model.
    pub(super) fn pace(&self, model: ModelId) -> Span {
        self.held_as(model).map_or(Span::ZERO, |served| served.pace)
    }

    fn held_as(&self, model: ModelId) -> Option<&Served> {
        self.served.values().find(|served| served.placement.model() == model)
    }

    /// The model that was asked for, where units of `model` are held.
    fn asked_for(&self, model: ModelId) -> Option<ModelId> {
        self.served.iter().find(|(_, served)| served.placement.model() == model).map(|(asked, _)| *asked)
    }

    /// Why a model that was to be served is not.
    pub(super) fn refused(&self, model: ModelId) -> Option<&CannotServe> {
        self.refused.get(&model)
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.served.values().filter_map(|served| served.placement.next_deadline()).min()
    }

    /// Bytes of weights in memory or on their way, and scratch.
    pub(super) fn weights(&self, models: &BTreeMap<ModelId, Arc<ModelFacts>>) -> Bytes {
        self.served.values().filter_map(|served| Some(served.weights(models.get(&served.placement.model())?))).sum()
    }

    /// Memory that a further model may not count on: what is held, or may yet be taken, for those before.
    fn claimed(&self, memory: Bytes) -> Bytes {
        self.served.values().map(|served| served.claimed(memory)).sum()
    }

    fn list(&self) -> Vec<Holding> {
        let list = |served: &Served| {
            let held = served.placement.holdings().into_iter();
            let (model, per_unit) = (served.placement.model(), served.pace);
            held.map(move |(range, state)| Holding { model, range, state, per_unit }).collect::<Vec<_>>()
        };
        self.served.values().flat_map(list).collect()
    }
}

impl Served {
    fn weights(&self, facts: &ModelFacts) -> Bytes {
        let held = self.placement.holdings();
        let in_memory = held.iter().filter(|(_, state)| *state != HoldingState::Intended);
        let in_memory: Vec<UnitRange> = in_memory.map(|(range, _)| *range).collect();
        if held.is_empty() { Bytes::ZERO } else { facts.footprint.idle(&in_memory, &self.passes) }
    }

    fn claimed(&self, memory: Bytes) -> Bytes {
        let (held, needs) = (self.placement.holdings(), self.placement.needs());
        let bytes: Bytes = held.iter().map(|(range, _)| units(&needs.unit_bytes, *range)).sum();
        let all: Bytes = needs.unit_bytes.iter().copied().sum();
        if held.is_empty() { all.min(memory) } else { bytes.plus(needs.reserve) }
    }
}

impl Node {
    /// Begins to serve a model whose facts are known, at one of the precisions that this peer may serve. A second call for one model
    /// changes nothing.
    pub(super) fn on_serve(&mut self, model: ModelId, policy: HoldPolicy, now: Time) {
        let Some(facts) = self.models.get(&model) else { return };
        if self.holdings.served.contains_key(&model) {
            return;
        }
        let is_free =
            |model: &ModelId| !self.holdings.served.contains_key(model) && self.holdings.held_as(*model).is_none();
        let may_hold = |facts: &&Arc<ModelFacts>| {
            facts.id == model && facts.source.is_some() || self.config.precisions.allow(facts)
        };
        let passes = needs::passes(&self.config.scheduler.budget, self.config.machine.cores, facts.shape.context);
        let known = facts.precisions.iter().filter(|model| is_free(model)).filter_map(|model| self.models.get(model));
        let all_needs = known.filter(may_hold).map(|facts| needs::of(facts.id, &facts.footprint, &passes)).collect();
        let family: BTreeSet<ModelId> = facts.precisions.iter().copied().collect();
        let is_part = |asked: &ModelId| self.models.get(asked).is_some_and(|asked| asked.precisions.contains(&model));
        let all_needs: Vec<Needs> = if self.holdings.served.keys().any(is_part) { Vec::new() } else { all_needs };
        let budget = self.config.memory.minus(self.holdings.claimed(self.config.memory));
        let offer = needs::offer(policy, budget);
        match Placement::at_any_precision(self.me, model, family, all_needs, offer, self.config.placement, now) {
            Ok(placement) => {
                let served = Served { placement, passes, pace: Span::ZERO, leaving: Vec::new() };
                self.holdings.served.insert(model, served);
                self.holdings.refused.remove(&model);
                let others = self.others(model, now);
                self.tell_placement(model, Event::Seen(others), now);
            }
            Err(refusal) => {
                self.holdings.refused.insert(model, refusal);
            }
        }
    }

    /// Weights on disk are given to others, or not any more.
    pub(super) fn on_given(&mut self, model: ModelId, ranges: Vec<UnitRange>, now: Time) {
        let old = self.given.get(&model).map_or(&[][..], Vec::as_slice);
        if old == ranges {
            return;
        }
        if ranges.is_empty() {
            self.given.remove(&model);
        } else {
            self.given.insert(model, ranges);
        }
        self.profile_changed(now);
    }

    pub(super) fn on_loaded(&mut self, model: ModelId, range: UnitRange, per_unit: Span, now: Time) {
        let Some(asked) = self.holdings.asked_for(model) else { return };
        if let Some(served) = self.holdings.served.get_mut(&asked)
            && per_unit > Span::ZERO
        {
            served.pace = per_unit;
        }
        self.tell_placement(asked, Event::Loaded(range), now);
    }

    pub(super) fn on_load_failed(&mut self, model: ModelId, range: UnitRange, now: Time) {
        if let Some(asked) = self.holdings.asked_for(model) {
            self.tell_placement(asked, Event::LoadFailed(range), now);
        }
    }

    /// Takes a decode step's time into the pace.
    pub(super) fn measured(&mut self, model: ModelId, range: UnitRange, took: Span, now: Time) {
        let asked = self.holdings.asked_for(model);
        let Some(served) = asked.and_then(|asked| self.holdings.served.get_mut(&asked)) else { return };
        let sample = (took.0 / u64::from(range.count())).max(1);
        if served.pace == Span::ZERO {
            served.pace = Span(sample);
            // The others could only guess so far.
            self.profile_changed(now);
        } else {
            served.pace = Span((served.pace.0 * (PACE_WEIGHT - 1) + sample) / PACE_WEIGHT);
        }
    }

    /// The others say something else than before.
    pub(super) fn see_others(&mut self, now: Time) {
        for model in self.holdings.served.keys().copied().collect::<Vec<_>>() {
            let others = self.others(model, now);
            self.tell_placement(model, Event::Seen(others), now);
        }
    }

    pub(super) fn tick_holdings(&mut self, now: Time) {
        for model in self.holdings.served.keys().copied().collect::<Vec<_>>() {
            self.tell_placement(model, Event::Ticked, now);
        }
    }

    /// Unloads what was to go and is needed by no session any more.
    pub(super) fn let_go(&mut self, now: Time) {
        let mut free = Vec::new();
        for (&asked, served) in &mut self.holdings.served {
            let (stages, model) = (&self.stages, served.placement.model());
            let unused = |range: &UnitRange| !stages.uses(model, *range);
            free.extend(served.leaving.iter().copied().filter(unused).map(|range| (asked, model, range)));
            served.leaving.retain(|range| !unused(range));
        }
        for (asked, model, range) in free {
            self.actions.push(Action::Engine(EngineAction::Unload(model, range)));
            self.tell_placement(asked, Event::Unloaded(range), now);
        }
    }

    /// What this peer holds, is loading or intends to.
    pub fn holdings(&self) -> Vec<Holding> {
        self.holdings.list()
    }

    fn others(&self, model: ModelId, now: Time) -> Vec<Other> {
        let offered = self.membership.offered(now);
        let family = self.models.get(&model).map_or(&[][..], |facts| &facts.precisions);
        let other = |profile: &crate::wire::profile::Profile| Other {
            peer: profile.peer,
            holdings: profile.holdings.iter().filter(|holding| family.contains(&holding.model)).copied().collect(),
            memory_free: profile.memory_free,
            is_near: self.membership.round_trip(profile.peer).is_some_and(|span| span < LAN),
        };
        offered.map(other).collect()
    }

    fn tell_placement(&mut self, asked: ModelId, event: Event, now: Time) {
        let Some(served) = self.holdings.served.get_mut(&asked) else { return };
        let says = |placement: &Placement| (placement.model(), placement.holdings());
        let before = says(&served.placement);
        let decisions = served.placement.handle(event, now);
        let changed = says(&served.placement) != before;
        if before.0 != served.placement.model() {
            // Another precision has another pace.
            served.pace = Span::ZERO;
        }
        let model = served.placement.model();
        for decision in decisions {
            match decision {
                // The profile has it.
                Decision::Announce(_) | Decision::Withdraw(_) | Decision::Retire(_) | Decision::Restore(_) => {}
                Decision::Load(range) => self.actions.push(Action::Engine(EngineAction::Load(model, range))),
                Decision::Unload(range) => served.leaving.push(range),
            }
        }
        if changed {
            self.profile_changed(now);
        }
    }
}

fn units(bytes: &[Bytes], range: UnitRange) -> Bytes {
    range.iter().filter_map(|unit| bytes.get(usize::from(unit))).copied().sum()
}
