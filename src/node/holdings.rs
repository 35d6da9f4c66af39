//! What this peer holds: one placement per model, and the memory they share.

use std::collections::BTreeMap;

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
use crate::placement::Needs;
use crate::placement::Other;
use crate::placement::Placement;
use crate::units::UnitRange;
use crate::wire::profile::Holding;
use crate::wire::profile::HoldingState;

/// The weight of a new measurement in the pace, as one part of so many (arbitrary).
const PACE_WEIGHT: u64 = 8;

/// One model's units here.
#[derive(Debug)]
struct Served {
    placement: Placement,
    needs: Needs,
    /// The passes that the engine makes.
    passes: Passes,
    /// Measured time of one position through one unit, in a decode step; zero while unknown.
    pace: Span,
    /// To be unloaded once no session is on them.
    leaving: Vec<UnitRange>,
}

/// What this peer holds of each model.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    served: BTreeMap<ModelId, Served>,
    refused: BTreeMap<ModelId, CannotServe>,
}

impl Holdings {
    /// The ranges of a model that can be leased.
    pub(super) fn ready(&self, model: ModelId) -> impl Iterator<Item = UnitRange> {
        let held = self.served.get(&model).map(|served| served.placement.holdings()).unwrap_or_default();
        held.into_iter().filter(|(_, state)| *state == HoldingState::Ready).map(|(range, _)| range)
    }

    /// Measured time of one position through one unit of a model.
    pub(super) fn pace(&self, model: ModelId) -> Span {
        self.served.get(&model).map_or(Span::ZERO, |served| served.pace)
    }

    /// Why a model that was to be served is not.
    pub(super) fn refused(&self, model: ModelId) -> Option<&CannotServe> {
        self.refused.get(&model)
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.served.values().filter_map(|served| served.placement.next_deadline()).min()
    }

    /// Bytes of weights in memory or on their way, and scratch.
    pub(super) fn weights(&self, models: &BTreeMap<ModelId, std::sync::Arc<ModelFacts>>) -> Bytes {
        self.served.iter().filter_map(|(model, served)| Some(served.weights(models.get(model)?))).sum()
    }

    /// Memory that a further model may not count on: what is held, or may yet be taken, for those before.
    fn claimed(&self, memory: Bytes) -> Bytes {
        self.served.values().map(|served| served.claimed(memory)).sum()
    }

    fn list(&self) -> Vec<Holding> {
        let list = |(&model, served): (&ModelId, &Served)| {
            let held = served.placement.holdings().into_iter();
            let per_unit = served.pace;
            held.map(move |(range, state)| Holding { model, range, state, per_unit }).collect::<Vec<_>>()
        };
        self.served.iter().flat_map(list).collect()
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
        let held = self.placement.holdings();
        let bytes: Bytes = held.iter().map(|(range, _)| units(&self.needs.unit_bytes, *range)).sum();
        let all: Bytes = self.needs.unit_bytes.iter().copied().sum();
        if held.is_empty() { all.min(memory) } else { bytes.plus(self.needs.reserve) }
    }
}

impl Node {
    /// Begins to serve a model whose facts are known. A second call for one model changes nothing.
    pub(super) fn on_serve(&mut self, model: ModelId, policy: HoldPolicy, now: Time) {
        let Some(facts) = self.models.get(&model) else { return };
        if self.holdings.served.contains_key(&model) {
            return;
        }
        let passes = needs::passes(&self.config.scheduler.budget, self.config.machine.cores, facts.shape.context);
        let needs = needs::of(model, &facts.footprint, &passes);
        let budget = self.config.memory.minus(self.holdings.claimed(self.config.memory));
        let offer = needs::offer(policy, budget);
        match Placement::new(self.me, needs.clone(), offer, self.config.placement, now) {
            Ok(placement) => {
                let served = Served { placement, needs, passes, pace: Span::ZERO, leaving: Vec::new() };
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
        if let Some(served) = self.holdings.served.get_mut(&model)
            && per_unit > Span::ZERO
        {
            served.pace = per_unit;
        }
        self.tell_placement(model, Event::Loaded(range), now);
    }

    pub(super) fn on_load_failed(&mut self, model: ModelId, range: UnitRange, now: Time) {
        self.tell_placement(model, Event::LoadFailed(range), now);
    }

    /// Takes a decode step's time into the pace.
    pub(super) fn measured(&mut self, model: ModelId, range: UnitRange, took: Span, now: Time) {
        let Some(served) = self.holdings.served.get_mut(&model) else { return };
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
        for (&model, served) in &mut self.holdings.served {
            let stages = &self.stages;
            let unused = |range: &UnitRange| !stages.uses(model, *range);
            free.extend(served.leaving.iter().copied().filter(unused).map(|range| (model, range)));
            served.leaving.retain(|range| !unused(range));
        }
        for (model, range) in free {
            self.actions.push(Action::Engine(EngineAction::Unload(model, range)));
            self.tell_placement(model, Event::Unloaded(range), now);
        }
    }

    /// What this peer holds, is loading or intends to.
    pub fn holdings(&self) -> Vec<Holding> {
        self.holdings.list()
    }

    fn others(&self, model: ModelId, now: Time) -> Vec<Other> {
        let offered = self.membership.offered(now);
        let other = |profile: &crate::wire::profile::Profile| Other {
            peer: profile.peer,
            holdings: profile.holdings.iter().filter(|holding| holding.model == model).copied().collect(),
            memory_free: profile.memory_free,
        };
        offered.map(other).collect()
    }

    fn tell_placement(&mut self, model: ModelId, event: Event, now: Time) {
        let Some(served) = self.holdings.served.get_mut(&model) else { return };
        let before = served.placement.holdings();
        let decisions = served.placement.handle(event, now);
        let changed = served.placement.holdings() != before;
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
