//! Whether machines can run a model, at what precision, who would hold what, and how fast it would be.
//!
//! [`plan`] takes the most precise weights at which a chain of machines tiles all units, each machine within its memory as placement
//! counts it ([`check`](crate::placement::check)), and of all such chains the one that answers fastest.
//!
//! **One token** of one stream passes every stage once, and the ring's trips:
//!
//! ```text
//! stage   = max(bytes read / bandwidth, multiplications / compute)
//! read    = weights that one position needs + keys and values of half of the positions
//! hop     = half of the round trip + bytes of a hidden state (back to the driver: of a token) / rate of the link
//! token   = sum of all stages + sum of all hops, that from the tail back to the driver among them
//! ```
//!
//! The first is the roofline (Williams, Waterman, Patterson 2009); a decode step reads every weight that it needs once, since nothing of
//! it stays in a cache. Half of the positions is the mean over an answer that fills them.
//!
//! **A prompt** flows in chunks through all stages at once, so the slowest sets the pace:
//!
//! ```text
//! chunk   = 128 positions
//! stage   = max(all weights / bandwidth, 128 × multiplications / compute)
//! link    = 128 × bytes of a hidden state / rate
//! rate    = 128 / max(all stages, all links)
//! ```
//!
//! Of a mixture of experts a chunk is taken to need all: with 8 of 256 for each position, 128 positions leave out (1 − 8/256)^128 = 2 %.
//!
//! Not counted is what attention multiplies, which is little beside the weights unless contexts are long, and what waits for others.

mod search;

use std::collections::BTreeSet;

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::estimate::Footprint;
use crate::estimate::Passes;
use crate::placement::plan::search::Search;
use crate::shape::WeightFormat;
use crate::units::UnitRange;

/// Positions of a chunk of a prompt, as stages pass them on.
pub const CHUNK: u64 = 128;

/// How many disjoint chains are counted at the most (arbitrary).
pub const MAX_COPIES: usize = 16;

/// A time that may be short, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanos(pub u64);

impl Nanos {
    /// The time in which `amount` is done at so much a second; the longest there is if nothing is.
    pub fn of(amount: u64, per_second: u64) -> Self {
        let nanos = u128::from(amount) * 1_000_000_000 / u128::from(per_second.max(1));
        Self(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The sum; stays at the largest value.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// How often it passes in a second.
    pub fn per_second(self) -> f64 {
        1e9 / self.0.max(1) as f64
    }

    /// In whole microseconds, rounded up.
    pub const fn span(self) -> Span {
        Span(self.0.div_ceil(1_000))
    }
}

impl std::iter::Sum for Nanos {
    fn sum<I: Iterator<Item = Self>>(times: I) -> Self {
        times.fold(Self::default(), Self::plus)
    }
}

/// A machine that can hold units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What it is called.
    pub name: String,
    /// The index of its site: machines of one are on one LAN.
    pub site: usize,
    /// Memory that it offers.
    pub memory: Bytes,
    /// Bytes of weights that it reads in a second.
    pub bandwidth: u64,
    /// Multiplications, each with an addition, that it makes in a second.
    pub compute: u64,
    /// Threads that compute.
    pub threads: u32,
}

/// How far two sites are from each other, or the machines of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// There and back.
    pub round_trip: Span,
    /// Bytes in a second.
    pub rate: u64,
}

impl Link {
    /// The time of `bytes` from one end to the other.
    pub fn time(&self, bytes: Bytes) -> Nanos {
        Nanos(self.round_trip.0.saturating_mul(500)).plus(Nanos::of(bytes.0, self.rate))
    }
}

/// Machines and how they are connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machines {
    /// The machines.
    pub machines: Vec<Machine>,
    /// By site and site; within one where both are the same.
    pub links: Vec<Vec<Link>>,
}

impl Machines {
    /// The link between the sites of two machines.
    ///
    /// # Panics
    /// If there are no such machines or sites.
    pub fn link(&self, from: usize, to: usize) -> &Link {
        &self.links[self.machines[from].site][self.machines[to].site]
    }
}

/// A model's weights at one precision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Precision {
    /// The format that most weights have.
    pub format: WeightFormat,
    /// What they take.
    pub footprint: Footprint,
}

/// A machine's part of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedStage {
    /// The index of the machine.
    pub machine: usize,
    /// Its units.
    pub range: UnitRange,
    /// Memory that they take, with keys, values and scratch.
    pub memory: Bytes,
    /// Bytes that it reads for one token.
    pub read: Bytes,
    /// The time of one token in it.
    pub time: Nanos,
    /// The time of one token to the next stage, or back to the driver; none where the chain is one stage.
    pub hop: Nanos,
    /// The time of a chunk of a prompt in it, or on the link behind it if that takes longer.
    pub chunk: Nanos,
    /// Which of the two it is.
    pub bound: Bound,
}

/// What takes a chunk of a prompt longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// To compute it.
    Work,
    /// To send it on.
    Link,
}

/// A chain that can run the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// At which precision.
    pub format: WeightFormat,
    /// Who holds what, driver first.
    pub stages: Vec<PlannedStage>,
    /// How many chains of different machines there is memory for, this one included; counted up to [`MAX_COPIES`].
    pub copies: usize,
    /// Machines of which no such chain has need.
    pub unused: Vec<usize>,
}

impl Plan {
    /// The time of one token of one stream.
    pub fn token(&self) -> Nanos {
        self.stages.iter().map(|stage| stage.time.plus(stage.hop)).sum()
    }

    /// The part of it on the way between stages.
    pub fn way(&self) -> Nanos {
        self.stages.iter().map(|stage| stage.hop).sum()
    }

    /// Positions of a prompt in a second.
    pub fn prompt_per_second(&self) -> f64 {
        let slowest = self.stages.iter().map(|stage| stage.chunk).max().unwrap_or_default();
        slowest.per_second() * CHUNK as f64
    }
}

/// Why a precision cannot be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// These units have no place, and need so much memory at a further machine.
    Memory {
        /// The units.
        missing: UnitRange,
        /// What they need, with keys, values and scratch.
        bytes: Bytes,
    },
    /// It would take more stages than a chain may have.
    Stages {
        /// How many.
        needed: usize,
    },
}

/// A precision that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Which.
    pub format: WeightFormat,
    /// Bytes of all weights in memory.
    pub weights: Bytes,
    /// Why it cannot be run; `None` of the one that is planned.
    pub shortage: Option<Shortage>,
}

/// What became of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The precisions that were looked at, the most precise first.
    pub tried: Vec<Tried>,
    /// The chain, if there is one at any of them.
    pub plan: Option<Plan>,
}

/// Plans a model on machines: the first of the precisions that fits.
///
/// - `precisions`: the most precise first
/// - `passes`: what machines are to be ready for; threads are each machine's own
pub fn plan(precisions: &[Precision], machines: &Machines, passes: &Passes) -> Planned {
    let mut tried = Vec::new();
    for Precision { format, footprint } in precisions {
        let search = Search::new(footprint, machines, *passes);
        let weights = footprint.whole().map(|whole| footprint.weights(whole)).unwrap_or_default();
        let mut free: BTreeSet<usize> = (0..machines.machines.len()).collect();
        match search.chain(&free) {
            Err(shortage) => tried.push(Tried { format: *format, weights, shortage: Some(shortage) }),
            Ok(stages) => {
                tried.push(Tried { format: *format, weights, shortage: None });
                take(&mut free, &stages);
                let mut copies = 1;
                while let Ok(further) = search.chain(&free)
                    && copies < MAX_COPIES
                {
                    take(&mut free, &further);
                    copies += 1;
                }
                let unused = free.into_iter().collect();
                let stages = search.figures(&stages);
                return Planned { tried, plan: Some(Plan { format: *format, stages, copies, unused }) };
            }
        }
    }
    Planned { tried, plan: None }
}

fn take(free: &mut BTreeSet<usize>, stages: &[(usize, UnitRange)]) {
    stages.iter().for_each(|(machine, _)| {
        free.remove(machine);
    });
}

#[cfg(test)]
mod tests;
