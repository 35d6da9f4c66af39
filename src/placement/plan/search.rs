//! The fastest chain of machines, each within its memory.
//!
//! Sites are passed in one order, and machines of a site after each other, so that neighbours in a chain are neighbours on a LAN. For
//! one order, label (machine, boundary) is the least time in which machines up to that one tile the units before the boundary, the last of
//! them ending there. Of labels at one boundary only the best of each site matters, since the next hop depends on the site alone. So an
//! order costs about `machines × units × units of a machine × sites` steps, and finds the best chain that keeps to it. The
//! driver is of the first site, so that the way back is known.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Bytes;
use crate::estimate::Footprint;
use crate::estimate::Passes;
use crate::estimate::Unit;
use crate::ids::ModelId;
use crate::placement::Needs;
use crate::placement::Offer;
use crate::placement::fit::Fit;
use crate::placement::plan::Bound;
use crate::placement::plan::CHUNK;
use crate::placement::plan::Machine;
use crate::placement::plan::Machines;
use crate::placement::plan::Nanos;
use crate::placement::plan::PlannedStage;
use crate::placement::plan::Shortage;
use crate::units::Chain;
use crate::units::UnitRange;

/// Sites whose every order is tried: 120 (arbitrary).
const MAX_PERMUTED: usize = 5;

/// Of more sites, so many begin an order that goes on to the nearest: those with the most memory (arbitrary).
const MAX_STARTS: usize = 16;

/// What the tail sends back to the driver.
const TOKEN: Bytes = Bytes(4);

/// Added to every stage where a chain would have too many: more than any hop takes.
const FEWER: Nanos = Nanos(1_000_000_000_000);

/// A model's costs on machines.
#[derive(Debug)]
pub(super) struct Search<'a> {
    footprint: &'a Footprint,
    machines: &'a Machines,
    passes: Passes,
    /// By machine and unit: the unit after the last that it can hold from there on.
    ends: Vec<Vec<u16>>,
    /// By machine and boundary: the time of one token in all units before it.
    times: Vec<Vec<Nanos>>,
}

/// How a boundary is reached; at the last one, the way back to the driver is part of the time.
#[derive(Clone, Copy, Debug)]
struct Label {
    time: Nanos,
    /// Where the machine's units begin.
    start: u16,
    /// The machine before.
    before: Option<usize>,
}

/// By machine and boundary.
type Labels = BTreeMap<usize, Vec<Option<Label>>>;

/// The best machine that ends at a boundary.
type Best = Option<(Nanos, usize)>;

impl<'a> Search<'a> {
    pub(super) fn new(footprint: &'a Footprint, machines: &'a Machines, passes: Passes) -> Self {
        let mut search = Self { footprint, machines, passes, ends: Vec::new(), times: Vec::new() };
        let mut ends = BTreeMap::new();
        for machine in &machines.machines {
            let key = (machine.memory, machine.threads);
            search.ends.push(ends.entry(key).or_insert_with(|| search.ends_of(machine)).clone());
            search.times.push(search.times_of(machine));
        }
        search
    }

    /// The fastest chain of machines that are free: each with its units.
    pub(super) fn chain(&self, free: &BTreeSet<usize>) -> Result<Vec<(usize, UnitRange)>, Shortage> {
        let stages = self.fastest(free, Nanos::default())?;
        if stages.len() <= Chain::MAX_STAGES {
            return Ok(stages);
        }
        let fewer = self.fastest(free, FEWER)?;
        if fewer.len() <= Chain::MAX_STAGES { Ok(fewer) } else { Err(Shortage::Stages { needed: fewer.len() }) }
    }

    /// What stages take, and how fast they are.
    pub(super) fn figures(&self, stages: &[(usize, UnitRange)]) -> Vec<PlannedStage> {
        let next = stages.iter().cycle().skip(1);
        let figures = stages.iter().zip(next).map(|(&(machine, range), &(next, _))| {
            let link = self.machines.link(machine, next);
            let (hop, chunk_hop) = match stages {
                [_] => Default::default(),
                _ => {
                    let chunk = Nanos::of(self.footprint.hidden.times(CHUNK).0, link.rate);
                    let is_tail = range.end() == self.footprint.count();
                    let hidden = if is_tail { TOKEN } else { self.footprint.hidden };
                    (link.time(hidden), if is_tail { Nanos::default() } else { chunk })
                }
            };
            let of = &self.machines.machines[machine];
            let work = self.chunk(of, range);
            PlannedStage {
                machine,
                range,
                memory: self.footprint.ready(range, &self.passes_of(of)),
                read: self.units(range).map(|unit| self.read(unit)).sum(),
                time: self.time(machine, range),
                hop,
                chunk: work.max(chunk_hop),
                bound: if chunk_hop > work { Bound::Link } else { Bound::Work },
            }
        });
        figures.collect()
    }

    /// - `each`: added to the time of every stage
    fn fastest(&self, free: &BTreeSet<usize>, each: Nanos) -> Result<Vec<(usize, UnitRange)>, Shortage> {
        let mut best: Option<(Nanos, Vec<(usize, UnitRange)>)> = None;
        let mut farthest = 0;
        let sites = self.sites(free);
        for order in self.orders(&sites) {
            match self.along(&order, &sites, each) {
                Ok((time, stages)) if best.as_ref().is_none_or(|(least, _)| time < *least) => {
                    best = Some((time, stages))
                }
                Ok(_) => {}
                Err(reached) => farthest = farthest.max(reached),
            }
        }
        best.map(|(_, stages)| stages).ok_or_else(|| self.shortage(farthest))
    }

    fn shortage(&self, reached: u16) -> Shortage {
        let missing = UnitRange::new(reached.min(self.footprint.count().saturating_sub(1)), self.footprint.count());
        match missing {
            Ok(missing) => Shortage::Memory { missing, bytes: self.footprint.ready(missing, &self.passes) },
            Err(_) => Shortage::Stages { needed: 0 },
        }
    }

    /// The machines of each site, the fastest first. No more of a kind than there are units.
    fn sites(&self, free: &BTreeSet<usize>) -> BTreeMap<usize, Vec<usize>> {
        let mut sites: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut kinds: BTreeMap<(usize, Bytes, u64, u64, u32), u16> = BTreeMap::new();
        for &index in free {
            let Machine { site, memory, bandwidth, compute, threads, .. } = self.machines.machines[index];
            let seen = kinds.entry((site, memory, bandwidth, compute, threads)).or_default();
            if *seen < self.footprint.count() {
                *seen += 1;
                sites.entry(site).or_default().push(index);
            }
        }
        for machines in sites.values_mut() {
            machines.sort_by_key(|&index| {
                let whole = self.times[index].last().copied();
                (whole, Reverse(self.machines.machines[index].memory), index)
            });
        }
        sites
    }

    /// In which order sites are passed.
    fn orders(&self, sites: &BTreeMap<usize, Vec<usize>>) -> Vec<Vec<usize>> {
        let all: Vec<usize> = sites.keys().copied().collect();
        if all.len() <= MAX_PERMUTED {
            return permutations(&all);
        }
        let memory =
            |site: &usize| -> Bytes { sites[site].iter().map(|&index| self.machines.machines[index].memory).sum() };
        let mut largest = all.clone();
        largest.sort_by_key(|site| (Reverse(memory(site)), *site));
        largest.truncate(MAX_STARTS);
        self.nearest(&all, &largest)
    }

    /// From each of some sites on, to the nearest that is left.
    fn nearest(&self, sites: &[usize], starts: &[usize]) -> Vec<Vec<usize>> {
        let from = |first: &usize| {
            let mut left: BTreeSet<usize> = sites.iter().copied().filter(|site| site != first).collect();
            let mut order = vec![*first];
            while let Some(&last) = order.last()
                && let Some(&next) =
                    left.iter().min_by_key(|next| (self.machines.links[last][**next].round_trip, **next))
            {
                left.remove(&next);
                order.push(next);
            }
            order
        };
        starts.iter().map(from).collect()
    }

    /// The fastest chain that passes the sites in this order, or the boundary up to which one comes.
    fn along(
        &self,
        order: &[usize],
        sites: &BTreeMap<usize, Vec<usize>>,
        each: Nanos,
    ) -> Result<(Nanos, Vec<(usize, UnitRange)>), u16> {
        let units = self.footprint.count();
        let driver = order.first().copied().unwrap_or_default();
        let mut labels = Labels::new();
        let mut best: BTreeMap<usize, Vec<Best>> = BTreeMap::new();
        for site in order {
            for &machine in &sites[site] {
                let from = |start: u16| self.cheapest(order, *site, &best, start);
                let back = self.machines.links[*site][driver].time(TOKEN);
                let of_machine = self.extend(machine, from, [each, back]);
                let best = best.entry(*site).or_insert_with(|| vec![None; usize::from(units) + 1]);
                for (label, best) in of_machine.iter().zip(best.iter_mut()) {
                    if let Some(Label { time, .. }) = label
                        && best.is_none_or(|(least, _)| *time < least)
                    {
                        *best = Some((*time, machine));
                    }
                }
                labels.insert(machine, of_machine);
            }
        }
        let closed = best.values().filter_map(|best| best[usize::from(units)]);
        match closed.min() {
            Some((time, tail)) => Ok((time, stages(&labels, tail, units))),
            None => {
                let reached = labels.values().filter_map(|labels| labels.iter().rposition(Option::is_some)).max();
                Err(reached.and_then(|end| u16::try_from(end).ok()).unwrap_or(0))
            }
        }
    }

    /// The least time in which the units before `start` are tiled and their last hidden state is at `site`, and who ends there.
    fn cheapest(
        &self,
        order: &[usize],
        site: usize,
        best: &BTreeMap<usize, Vec<Best>>,
        start: u16,
    ) -> Option<(Nanos, Option<usize>)> {
        if start == 0 {
            return (order.first() == Some(&site)).then_some((Nanos::default(), None));
        }
        let reached = best.iter().filter_map(|(from, best)| {
            let (time, machine) = best[usize::from(start)]?;
            Some((time.plus(self.hop(*from, site)), Some(machine)))
        });
        reached.min()
    }

    /// What the machine makes of the boundaries that are reached: by the end of its units.
    ///
    /// - `each`, `back`: added to the time of every stage; of the trip from a tail that is not the driver
    fn extend(
        &self,
        machine: usize,
        from: impl Fn(u16) -> Option<(Nanos, Option<usize>)>,
        [each, back]: [Nanos; 2],
    ) -> Vec<Option<Label>> {
        let mut labels: Vec<Option<Label>> = vec![None; usize::from(self.footprint.count()) + 1];
        for (start, &longest) in (0..).zip(&self.ends[machine]) {
            if longest <= start {
                continue;
            }
            let Some((reached, before)) = from(start) else { continue };
            for end in start + 1..=longest {
                let Ok(range) = UnitRange::new(start, end) else { continue };
                let is_tail = end == self.footprint.count() && before.is_some();
                let time = reached.plus(self.time(machine, range)).plus(each);
                let time = if is_tail { time.plus(back) } else { time };
                let label = &mut labels[usize::from(end)];
                if label.is_none_or(|label| time < label.time) {
                    *label = Some(Label { time, start, before });
                }
            }
        }
        labels
    }

    fn hop(&self, from: usize, to: usize) -> Nanos {
        self.machines.links[from][to].time(self.footprint.hidden)
    }

    fn time(&self, machine: usize, range: UnitRange) -> Nanos {
        let times = &self.times[machine];
        Nanos(times[usize::from(range.end())].0.saturating_sub(times[usize::from(range.start())].0))
    }

    /// As placement finds it: the longest range from each unit that fits the machine's memory.
    fn ends_of(&self, machine: &Machine) -> Vec<u16> {
        let passes = self.passes_of(machine);
        let units = self.footprint.count();
        let needs = Needs {
            model: ModelId::new([0; 32]),
            unit_bytes: (0..units).map(|unit| self.footprint.unit(unit, &passes)).collect(),
            shared_ends: self.footprint.shared_ends,
            reserve: self.footprint.scratch(&passes),
        };
        let offer = Offer { budget: machine.memory, max_units: None, pinned: None };
        let fit = Fit::new(needs, offer).ok();
        let end = |start| fit.as_ref()?.longest(&[], start, units).map(UnitRange::end);
        (0..units).map(|start| end(start).unwrap_or(start)).collect()
    }

    fn times_of(&self, machine: &Machine) -> Vec<Nanos> {
        let time = |unit: &Unit| {
            Nanos::of(self.read(unit).0, machine.bandwidth).max(Nanos::of(unit.multiplications, machine.compute))
        };
        let sums = self.footprint.units.iter().scan(Nanos::default(), |sum, unit| {
            *sum = sum.plus(time(unit));
            Some(*sum)
        });
        std::iter::once(Nanos::default()).chain(sums).collect()
    }

    /// Bytes that a unit reads for one token, in the middle of an answer.
    fn read(&self, unit: &Unit) -> Bytes {
        unit.active.plus(unit.position.times(u64::from(self.passes.positions.0 / 2)))
    }

    /// The time of a chunk of a prompt in a stage.
    fn chunk(&self, machine: &Machine, range: UnitRange) -> Nanos {
        // Of an embedding a row is looked up for each position.
        let weights = |unit: &Unit| if unit.multiplications == 0 { unit.active.times(CHUNK) } else { unit.weights };
        let bytes: Bytes = self.units(range).map(weights).sum();
        let multiplications = self.units(range).fold(0_u64, |sum, unit| sum.saturating_add(unit.multiplications));
        let computed = Nanos::of(multiplications.saturating_mul(CHUNK), machine.compute);
        Nanos::of(bytes.0, machine.bandwidth).max(computed)
    }

    fn units(&self, range: UnitRange) -> impl Iterator<Item = &Unit> {
        range.iter().filter_map(|unit| self.footprint.units.get(usize::from(unit)))
    }

    fn passes_of(&self, machine: &Machine) -> Passes {
        Passes { threads: machine.threads, ..self.passes }
    }
}

fn label(labels: &Labels, machine: usize, end: u16) -> Option<Label> {
    *labels.get(&machine)?.get(usize::from(end))?
}

/// Follows the labels back from the tail.
fn stages(labels: &Labels, tail: usize, units: u16) -> Vec<(usize, UnitRange)> {
    let mut stages = Vec::new();
    let mut next = Some((tail, units));
    while let Some((machine, end)) = next
        && let Some(label) = label(labels, machine, end)
        && let Ok(range) = UnitRange::new(label.start, end)
    {
        stages.push((machine, range));
        next = label.before.map(|before| (before, label.start));
    }
    stages.reverse();
    stages
}

/// Every order of `items`.
fn permutations(items: &[usize]) -> Vec<Vec<usize>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let with_first = |(index, &first): (usize, &usize)| {
        let rest: Vec<usize> = [&items[..index], &items[index + 1..]].concat();
        let after = permutations(&rest).into_iter();
        after.map(move |order| [vec![first], order].concat()).collect::<Vec<_>>()
    };
    items.iter().enumerate().flat_map(with_first).collect()
}
