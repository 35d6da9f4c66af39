//! The shortest ring over (holding, unit): unit by unit, a chain either stays with its holding or switches to another.
//!
//! Most pairs of peers were never measured and share one default trip, so the best predecessor over an unmeasured
//! link is the same for nearly everyone: the cheapest label that is not linked by a measurement. That makes a unit
//! cost about `peers × measurements per peer` steps and not `peers²`.

use std::collections::BTreeMap;

use crate::ids::PeerKey;
use crate::routing::COARSER;
use crate::routing::Holder;
use crate::routing::View;
use crate::units::UnitRange;

/// A cost that no chain has.
const UNREACHED: u64 = u64::MAX;

/// How many drivers are tried, most promising first (arbitrary); the search is exact if the bound is not met.
const MAX_DRIVERS: usize = 32;

/// A holding, with its costs in microseconds.
#[derive(Debug)]
struct Node {
    holder: Holder,
    /// The index of its peer.
    peer: usize,
    /// Cost of entering it.
    enter: u64,
    /// Cost of each unit, with what is added for coarser weights.
    per_unit: u64,
}

/// In which order a sweep passes the units.
#[derive(Clone, Copy, Debug)]
enum Direction {
    Down,
    Up,
}

/// The result of passing all units: the cost at the last one, and how each holding was come to at each.
#[derive(Debug)]
struct Sweep {
    cost: Vec<u64>,
    from: Vec<Vec<usize>>,
}

/// The usable holdings and the trips between their peers.
#[derive(Debug)]
pub(super) struct Graph {
    units: u16,
    nodes: Vec<Node>,
    peers: usize,
    /// Per peer, the measured one-way trips to others.
    near: Vec<Vec<(usize, u64)>>,
    /// Per peer, those whose hop to it failed.
    severed: Vec<Vec<usize>>,
    default_trip: u64,
}

impl Graph {
    pub(super) fn new(view: &View, usable: &[Holder]) -> Self {
        let mut index: BTreeMap<PeerKey, usize> = BTreeMap::new();
        let mut holders = usable.to_vec();
        // What the seed adds differs between peers, so this order, too, differs from request to request.
        holders.sort_by_key(|holder| (view.overhead(holder.peer), holder.peer, holder.range));
        let mut nodes = Vec::with_capacity(holders.len());
        for holder in holders {
            let next = index.len();
            let peer = *index.entry(holder.peer).or_insert(next);
            let enter = holder.queue.plus(view.overhead(holder.peer)).0;
            nodes.push(Node {
                holder,
                peer,
                enter,
                per_unit: view.per_unit(&holder).plus(COARSER.times(holder.coarser.into())).0,
            });
        }
        let mut near = vec![Vec::new(); index.len()];
        for (one, other) in view.round_trips.keys().filter(|(one, other)| one != other) {
            if let (Some(&a), Some(&b)) = (index.get(one), index.get(other)) {
                let trip = view.trip(*one, *other).0;
                near[a].push((b, trip));
                near[b].push((a, trip));
            }
        }
        let mut severed = vec![Vec::new(); index.len()];
        for (from, to) in view.severed.iter().filter(|(from, to)| from != to) {
            if let (Some(&from), Some(&to)) = (index.get(from), index.get(to)) {
                severed[to].push(from);
            }
        }
        let default_trip = view.default_round_trip.0 / 2;
        Self { units: view.units, nodes, peers: index.len(), near, severed, default_trip }
    }

    /// The cheapest chain, with the trip from its tail back to its driver.
    pub(super) fn cheapest_ring(&self) -> Option<Vec<(Holder, UnitRange)>> {
        let mut best: Option<(u64, Vec<usize>)> = None;
        for (bound, driver) in self.drivers().into_iter().take(MAX_DRIVERS) {
            if best.as_ref().is_some_and(|(cost, _)| *cost <= bound) {
                break;
            }
            let sweep = self.sweep(Direction::Down, |node| node == driver);
            let closed = |(node, cost): (usize, &u64)| (cost.saturating_add(self.trip(node, driver)), node);
            let reached = sweep.cost.iter().enumerate().filter(|(_, cost)| **cost != UNREACHED);
            let Some((cost, tail)) = reached.map(closed).min().filter(|(cost, _)| *cost != UNREACHED) else {
                continue;
            };
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                best = Some((cost, sweep.path(tail)));
            }
        }
        Some(self.stages(&best?.1))
    }

    /// Every holding of unit 0 that starts a chain, with a lower bound of its ring's cost, most promising first.
    fn drivers(&self) -> Vec<(u64, usize)> {
        let back = self.sweep(Direction::Up, |_| true);
        let bound = |(node, cost): (usize, &u64)| (cost.saturating_add(self.least_return(node)), node);
        let mut drivers: Vec<_> =
            back.cost.iter().enumerate().filter(|(_, cost)| **cost != UNREACHED).map(bound).collect();
        drivers.sort_unstable();
        drivers
    }

    /// A lower bound of the trip from any tail to `driver`.
    fn least_return(&self, driver: usize) -> u64 {
        let peer = self.nodes[driver].peer;
        let last = self.units - 1;
        if self.nodes.iter().any(|node| node.peer == peer && node.holder.range.contains(last)) {
            return 0;
        }
        self.near[peer].iter().map(|(_, trip)| *trip).fold(self.default_trip, u64::min)
    }

    fn trip(&self, from: usize, to: usize) -> u64 {
        let (from, to) = (self.nodes[from].peer, self.nodes[to].peer);
        if from == to {
            return 0;
        }
        if self.severed[to].contains(&from) {
            return UNREACHED;
        }
        let measured = self.near[from].iter().find(|(peer, _)| *peer == to);
        measured.map_or(self.default_trip, |(_, trip)| *trip)
    }

    /// Passes the units in order from any holding of the first that `starts` allows.
    fn sweep(&self, direction: Direction, starts: impl Fn(usize) -> bool) -> Sweep {
        let unit_at = |index: u16| match direction {
            Direction::Down => index,
            Direction::Up => self.units - 1 - index,
        };
        let first = unit_at(0);
        let start = |(index, node): (usize, &Node)| {
            let may = node.holder.range.contains(first) && starts(index);
            if may { node.enter.saturating_add(node.per_unit) } else { UNREACHED }
        };
        let mut sweep = Sweep { cost: self.nodes.iter().enumerate().map(start).collect(), from: Vec::new() };
        for index in 1..self.units {
            self.advance(&mut sweep, direction, unit_at(index));
        }
        sweep
    }

    /// Takes every label one unit further, into `unit`.
    fn advance(&self, sweep: &mut Sweep, direction: Direction, unit: u16) {
        let here = self.cheapest_of_peers(&sweep.cost);
        let arrivals = self.arrivals(&here, direction);
        let mut cost = vec![UNREACHED; self.nodes.len()];
        let mut from: Vec<usize> = (0..self.nodes.len()).collect();
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.holder.range.contains(unit)) {
            let within = here[node.peer];
            let (switched, origin) = arrivals[node.peer].min(within);
            let switched = switched.saturating_add(node.enter);
            let stayed = sweep.cost[index];
            if stayed == UNREACHED && switched == UNREACHED {
                continue;
            }
            from[index] = if stayed <= switched { index } else { origin };
            cost[index] = stayed.min(switched).saturating_add(node.per_unit);
        }
        sweep.cost = cost;
        sweep.from.push(from);
    }

    /// Per peer, its cheapest label and the holding that has it.
    fn cheapest_of_peers(&self, cost: &[u64]) -> Vec<(u64, usize)> {
        let mut cheapest = vec![(UNREACHED, 0); self.peers];
        for (index, node) in self.nodes.iter().enumerate() {
            cheapest[node.peer] = cheapest[node.peer].min((cost[index], index));
        }
        cheapest
    }

    /// Per peer, the cheapest way to come to it from another. A sweep upwards gives lower bounds, and passes hops that
    /// failed as well.
    fn arrivals(&self, here: &[(u64, usize)], direction: Direction) -> Vec<(u64, usize)> {
        let mut ranked: Vec<(u64, usize, usize)> =
            here.iter().enumerate().map(|(peer, (cost, node))| (*cost, *node, peer)).collect();
        ranked.retain(|(cost, ..)| *cost != UNREACHED);
        ranked.sort_unstable();
        let mut linked = vec![usize::MAX; self.peers];
        let mut arrivals = Vec::with_capacity(self.peers);
        for peer in 0..self.peers {
            linked[peer] = peer;
            self.near[peer].iter().for_each(|(other, _)| linked[*other] = peer);
            let severed = match direction {
                Direction::Down => &self.severed[peer][..],
                Direction::Up => &[],
            };
            severed.iter().for_each(|other| linked[*other] = peer);
            let unmeasured = ranked.iter().find(|(.., other)| linked[*other] != peer);
            let far =
                unmeasured.map_or((UNREACHED, 0), |(cost, node, _)| (cost.saturating_add(self.default_trip), *node));
            let near = self.near[peer].iter().filter(|(other, _)| !severed.contains(other));
            let close = near.map(|(other, trip)| (here[*other].0.saturating_add(*trip), here[*other].1));
            arrivals.push(close.fold(far, Ord::min));
        }
        arrivals
    }

    /// Joins the units that stay with one holding into stages.
    fn stages(&self, path: &[usize]) -> Vec<(Holder, UnitRange)> {
        let mut stages: Vec<(Holder, UnitRange)> = Vec::new();
        let mut start = 0;
        for unit in 0..path.len() {
            let ends = path.get(unit + 1).is_none_or(|next| *next != path[unit]);
            let range = || UnitRange::new(u16::try_from(start).ok()?, u16::try_from(unit + 1).ok()?).ok();
            if let (true, Some(range)) = (ends, range()) {
                stages.push((self.nodes[path[unit]].holder, range));
                start = unit + 1;
            }
        }
        stages
    }
}

impl Sweep {
    /// The holding of each unit, in the sweep's order, of the chain that ends at `last`.
    fn path(&self, last: usize) -> Vec<usize> {
        let mut path = vec![last];
        for from in self.from.iter().rev() {
            path.push(from[path[path.len() - 1]]);
        }
        path.reverse();
        path
    }
}
