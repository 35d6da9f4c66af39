//! Which chain a session takes: the requester's own choice, by shortest path over (holding, unit boundary).
//!
//! [`plan`] is a function of a [`View`]: what peers hold, how fast they say they are, how long they let one wait, and
//! how far they are from each other. The cost of a chain is the time one token takes round its ring.

mod apart;
mod graph;
mod mend;

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Span;
use crate::ids::ModelId;
use crate::ids::PeerKey;
pub use crate::routing::apart::Apart;
pub use crate::routing::apart::TooFew;
pub use crate::routing::apart::apart;
pub use crate::routing::apart::several;
use crate::routing::graph::Graph;
pub use crate::routing::mend::mend;
use crate::units::BadChain;
use crate::units::Chain;
use crate::units::Cover;
use crate::units::Stage;
use crate::units::UnitRange;
use crate::units::UnitWeights;

/// A range that a peer has ready to be leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The peer.
    pub peer: PeerKey,
    /// The units; a stage may be any part of them.
    pub range: UnitRange,
    /// The model whose weights it has of them.
    pub weights: ModelId,
    /// How many precisions these are coarser than the best there may be.
    pub coarser: u8,
    /// Measured time of one position through one unit; zero while unknown.
    pub per_unit: Span,
    /// How long a step waits for the engine.
    pub queue: Span,
}

/// Whom the prompt may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Anyone.
    Any,
    /// These, and the requester itself.
    Only(BTreeSet<PeerKey>),
}

/// All that a plan depends on.
#[derive(Clone, Debug)]
pub struct View {
    /// The requester. Its own holdings are listed among the others'.
    pub me: PeerKey,
    /// Units of the model.
    pub units: u16,
    /// Ready holdings; one peer may have several, and they may overlap.
    pub holders: Vec<Holder>,
    /// Measured round trips, by pair with the smaller key first (see [`pair`]).
    pub round_trips: BTreeMap<(PeerKey, PeerKey), Span>,
    /// The round trip of pairs that nobody measured.
    pub default_round_trip: Span,
    /// The time of one position through one unit where a holder does not know.
    pub default_per_unit: Span,
    /// Peers that failed in this attempt or may not be used for another reason.
    pub avoid: BTreeSet<PeerKey>,
    /// Hops that failed in this attempt, though both their ends can be reached: from the first to the second.
    pub severed: BTreeSet<(PeerKey, PeerKey)>,
    /// Whom the prompt may pass.
    pub trust: Trust,
    /// Differs from request to request, so that equals share the load.
    pub seed: u64,
}

/// The key of a pair in [`View::round_trips`].
pub fn pair(one: PeerKey, other: PeerKey) -> (PeerKey, PeerKey) {
    (one.min(other), one.max(other))
}

/// A chain, what it should cost, and who could step in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The chain to lease.
    pub chain: Chain,
    /// With whose weights each unit is computed in it. In a chain that is mended nobody asks, for that is settled.
    pub weights: UnitWeights,
    /// Per stage, the best other peer that holds all of the stage's units, with the same weights.
    pub standby: Vec<Option<PeerKey>>,
    /// The predicted time of one token.
    pub cost: Cost,
}

/// The predicted time of one token round the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Units × time per unit.
    pub compute: Span,
    /// Waiting for engines.
    pub queue: Span,
    /// One-way trips between stages, and from the tail back to the driver.
    pub trips: Span,
    /// A fixed amount per stage, with what spreads load among equals.
    pub overhead: Span,
}

/// Why there is no chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// Some units have no holder that may be used.
    #[error("no chain: nobody holds units [{}], only excluded peers hold units [{}]", list(missing), list(excluded))]
    Uncovered {
        /// Runs of units that nobody holds.
        missing: Vec<UnitRange>,
        /// Runs of units that only avoided or untrusted peers hold.
        excluded: Vec<UnitRange>,
    },
    /// All units are held, but every chain passes a hop that failed.
    #[error("no chain: each passes a hop that failed")]
    Severed,
    /// Only chains longer than [`Chain::MAX_STAGES`] exist.
    #[error("no chain: {got} stages would be needed, at most {} are allowed", Chain::MAX_STAGES)]
    TooLong {
        /// Stages of the best chain.
        got: usize,
    },
}

fn list(runs: &[UnitRange]) -> String {
    runs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A fixed cost of each stage, for framing and a wake-up (arbitrary), so that of near-equal chains the shorter wins.
pub const STAGE_OVERHEAD: Span = Span(200);

/// What a precision less weighs, for each unit (arbitrary: more than any chain takes for a token): of chains whose coarsest weights are alike
/// the one is taken that has the finer ones, whatever it costs.
const COARSER: Span = Span::seconds(10);

/// The most that the request's seed adds to a stage's cost (arbitrary): holders that differ by less share the load.
pub const SPREAD: Span = Span(100);

impl Trust {
    /// Whether the prompt of `me` may pass `peer`.
    pub fn allows(&self, me: PeerKey, peer: PeerKey) -> bool {
        match self {
            Self::Any => true,
            Self::Only(trusted) => peer == me || trusted.contains(&peer),
        }
    }
}

impl View {
    /// The one-way trip between two peers; none within one.
    pub fn trip(&self, from: PeerKey, to: PeerKey) -> Span {
        if from == to {
            return Span::ZERO;
        }
        let round = self.round_trips.get(&pair(from, to)).copied().unwrap_or(self.default_round_trip);
        Span(round.0 / 2)
    }

    /// The time of one position through one unit of `holder`.
    pub fn per_unit(&self, holder: &Holder) -> Span {
        if holder.per_unit == Span::ZERO { self.default_per_unit } else { holder.per_unit }
    }

    /// The fixed cost of a stage at `peer`, with what the seed adds.
    pub fn overhead(&self, peer: PeerKey) -> Span {
        STAGE_OVERHEAD.plus(Span(mixed(self.seed, peer) % (SPREAD.0 + 1)))
    }

    /// The same, where each unit is to be computed with these weights.
    pub fn computing_with(&self, weights: &UnitWeights) -> Self {
        let common = |holder: &Holder| {
            let runs = weights.runs().iter().filter(|(_, model)| *model == holder.weights);
            let ranges = runs.filter_map(|(run, _)| holder.range.common(*run)).collect::<Vec<_>>();
            ranges.into_iter().map(|range| Holder { range, ..*holder }).collect::<Vec<_>>()
        };
        Self { holders: self.holders.iter().flat_map(common).collect(), ..self.clone() }
    }

    fn usable(&self, holder: &Holder) -> bool {
        !self.avoid.contains(&holder.peer) && self.trust.allows(self.me, holder.peer)
    }

    /// The time that a stage of `range` at `holder` adds, without trips.
    fn stage_cost(&self, holder: &Holder, range: UnitRange) -> Cost {
        Cost {
            compute: self.per_unit(holder).times(u64::from(range.count())),
            queue: holder.queue,
            trips: Span::ZERO,
            overhead: self.overhead(holder.peer),
        }
    }
}

impl Cost {
    /// All of it.
    pub fn total(self) -> Span {
        self.compute.plus(self.queue).plus(self.trips).plus(self.overhead)
    }

    fn plus(self, other: Self) -> Self {
        Self {
            compute: self.compute.plus(other.compute),
            queue: self.queue.plus(other.queue),
            trips: self.trips.plus(other.trips),
            overhead: self.overhead.plus(other.overhead),
        }
    }
}

/// Plans the cheapest chain.
///
/// Exact, but for one bound: where very many peers could be the driver, only the most promising are tried.
///
/// # Errors
/// [`NoRoute`] if the units can't all be reached.
pub fn plan(view: &View) -> Result<Plan, NoRoute> {
    let usable: Vec<Holder> = view.holders.iter().filter(|holder| view.usable(holder)).copied().collect();
    let uncovered = || uncovered(view, &usable);
    if !cover(view.units, &usable).is_full() {
        return Err(uncovered());
    }
    let none = || if view.severed.is_empty() { uncovered() } else { NoRoute::Severed };
    let chosen = Graph::new(view, &usable).cheapest_ring().ok_or_else(none)?;
    let stages = chosen.iter().map(|(holder, range)| Stage { peer: holder.peer, range: *range }).collect();
    let chain = Chain::new(stages, view.units).map_err(|bad| match bad {
        BadChain::TooLong { got } => NoRoute::TooLong { got },
        BadChain::Empty | BadChain::Gap { .. } | BadChain::Short { .. } => uncovered(),
    })?;
    let standby = chosen.iter().map(|(holder, range)| standby(view, &usable, holder, *range)).collect();
    let weights = UnitWeights::of_stages(chosen.iter().map(|(holder, range)| (*range, holder.weights)));
    Ok(Plan { cost: cost(view, &chosen), chain, weights, standby })
}

fn cover(units: u16, holders: &[Holder]) -> Cover {
    let mut cover = Cover::empty(units);
    holders.iter().for_each(|holder| cover.add(holder.range));
    cover
}

fn uncovered(view: &View, usable: &[Holder]) -> NoRoute {
    let missing = cover(view.units, &view.holders).missing();
    let mut held = cover(view.units, usable);
    missing.iter().for_each(|run| held.add(*run));
    NoRoute::Uncovered { missing, excluded: held.missing() }
}

fn cost(view: &View, chosen: &[(Holder, UnitRange)]) -> Cost {
    let stages = chosen.iter().map(|(holder, range)| view.stage_cost(holder, *range)).fold(Cost::default(), Cost::plus);
    let next = chosen.iter().cycle().skip(1);
    let trips = chosen.iter().zip(next).map(|((from, _), (to, _))| view.trip(from.peer, to.peer)).sum();
    Cost { trips, ..stages }
}

/// The best other peer that holds all of `range`.
fn standby(view: &View, usable: &[Holder], first: &Holder, range: UnitRange) -> Option<PeerKey> {
    let other = |holder: &&Holder| holder.peer != first.peer && holder.weights == first.weights;
    let able = usable.iter().filter(other).filter(|holder| holder.range.covers(range));
    able.map(|holder| (view.stage_cost(holder, range).total(), holder.peer)).min().map(|(_, peer)| peer)
}

/// Spreads `peer` evenly, another way for each seed (splitmix64's finisher over the key's words).
fn mixed(seed: u64, peer: PeerKey) -> u64 {
    let words =
        peer.as_bytes().chunks_exact(8).map(|word| word.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
    words.fold(seed, |state, word| {
        let state = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        let state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ state >> 31
    })
}

#[cfg(test)]
mod tests;
