//! Units, unit ranges, chains and cover: the pieces of a model and who holds them.

use std::fmt;
use std::str::FromStr;

use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::ids::StageIndex;

/// A range that holds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmptyRange {
    /// The first unit asked for.
    pub start: u16,
    /// The unit after the last one asked for.
    pub end: u16,
}

impl fmt::Display for EmptyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit range {}..{} is empty", self.start, self.end)
    }
}

impl std::error::Error for EmptyRange {}

/// A run of units, half-open: `[start, end)`. Never empty.
///
/// Unit 0 is the token embedding, `1..=L` the transformer blocks, `L + 1` the final norm and output head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitRange {
    start: u16,
    end: u16,
}

impl UnitRange {
    /// # Errors
    /// [`EmptyRange`] if `start >= end`.
    pub fn new(start: u16, end: u16) -> Result<Self, EmptyRange> {
        if start >= end {
            return Err(EmptyRange { start, end });
        }
        Ok(Self { start, end })
    }

    /// Every unit of a model of `units` units.
    ///
    /// # Errors
    /// [`EmptyRange`] if `units` is 0.
    pub fn whole(units: u16) -> Result<Self, EmptyRange> {
        Self::new(0, units)
    }

    /// The first unit.
    pub const fn start(self) -> u16 {
        self.start
    }

    /// The unit after the last.
    pub const fn end(self) -> u16 {
        self.end
    }

    /// How many units, at least 1.
    pub const fn count(self) -> u16 {
        self.end - self.start
    }

    /// Whether `unit` lies inside.
    pub const fn contains(self, unit: u16) -> bool {
        self.start <= unit && unit < self.end
    }

    /// Whether all of `other` lies inside.
    pub const fn covers(self, other: Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether any unit lies in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The units that lie in both.
    pub fn common(self, other: Self) -> Option<Self> {
        Self::new(self.start.max(other.start), self.end.min(other.end)).ok()
    }

    /// The units in ascending order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = u16> {
        self.start..self.end
    }
}

impl fmt::Display for UnitRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// A text that is not a unit range such as `3..7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRange {
    /// The text as given.
    pub got: String,
}

impl fmt::Display for BadRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected a unit range such as 3..7 (the end is not included), got \"{}\"", self.got)
    }
}

impl std::error::Error for BadRange {}

impl FromStr for UnitRange {
    type Err = BadRange;

    fn from_str(text: &str) -> Result<Self, BadRange> {
        let bad = || BadRange { got: text.to_owned() };
        let (start, end) = text.split_once("..").ok_or_else(bad)?;
        let (start, end) = (start.trim().parse().map_err(|_| bad())?, end.trim().parse().map_err(|_| bad())?);
        Self::new(start, end).map_err(|_| bad())
    }
}

/// One peer serving one unit range in one chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stage {
    /// Who serves.
    pub peer: PeerKey,
    /// What it serves.
    pub range: UnitRange,
}

/// Why a list of stages is not a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadChain {
    /// No stages at all.
    Empty,
    /// More stages than [`Chain::MAX_STAGES`].
    TooLong {
        /// Stages given.
        got: usize,
    },
    /// A stage does not begin where the one before it ended (the first at unit 0).
    Gap {
        /// The unit that had to come next.
        expected: u16,
        /// The unit that the stage begins with.
        got: u16,
    },
    /// The last stage does not end with the model.
    Short {
        /// Units of the model.
        expected: u16,
        /// The unit after the last one tiled.
        got: u16,
    },
}

impl fmt::Display for BadChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "a chain needs at least one stage"),
            Self::TooLong { got } => {
                write!(f, "a chain has at most {} stages, got {got}", Chain::MAX_STAGES)
            }
            Self::Gap { expected, got } => write!(f, "expected a stage from unit {expected}, got one from {got}"),
            Self::Short { expected, got } => write!(f, "expected a chain of {expected} units, got {got}"),
        }
    }
}

impl std::error::Error for BadChain {}

/// Stages in order that tile all units exactly once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    stages: Vec<Stage>,
}

impl Chain {
    /// The longest chain that is accepted (arbitrary; the deepest public models have about 128 blocks).
    pub const MAX_STAGES: usize = 256;

    /// Checks that `stages` tile `0..units` exactly once, in order.
    ///
    /// # Errors
    /// [`BadChain`] with the first fault found.
    pub fn new(stages: Vec<Stage>, units: u16) -> Result<Self, BadChain> {
        if stages.is_empty() {
            return Err(BadChain::Empty);
        }
        if stages.len() > Self::MAX_STAGES {
            return Err(BadChain::TooLong { got: stages.len() });
        }
        let mut expected = 0;
        for stage in &stages {
            if stage.range.start() != expected {
                return Err(BadChain::Gap { expected, got: stage.range.start() });
            }
            expected = stage.range.end();
        }
        if expected != units {
            return Err(BadChain::Short { expected: units, got: expected });
        }
        Ok(Self { stages })
    }

    /// The stages, driver first. Never empty.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// How many units the chain tiles.
    pub fn units(&self) -> u16 {
        self.stages.last().map_or(0, |stage| stage.range.end())
    }

    /// The stage at `index`, if there is one.
    pub fn stage(&self, index: StageIndex) -> Option<Stage> {
        self.stages.get(usize::from(index.0)).copied()
    }

    /// The index of the last stage, which samples.
    pub fn tail(&self) -> StageIndex {
        StageIndex(u16::try_from(self.stages.len() - 1).unwrap_or(u16::MAX))
    }

    /// Every stage with its index, driver first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (StageIndex, Stage)> {
        (0..).map(StageIndex).zip(self.stages.iter().copied()).collect::<Vec<_>>().into_iter()
    }
}

/// With which model's weights each unit of a session is computed: one model's, or those of models that were made of one by quantising.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitWeights {
    /// Runs that follow each other from unit 0, neighbours of different models.
    runs: Vec<(UnitRange, ModelId)>,
}

impl UnitWeights {
    /// All of them with one model's.
    pub fn whole(model: ModelId, units: u16) -> Self {
        Self { runs: UnitRange::whole(units).into_iter().map(|whole| (whole, model)).collect() }
    }

    /// With those of the stages that compute them, in order.
    pub fn of_stages(stages: impl IntoIterator<Item = (UnitRange, ModelId)>) -> Self {
        let mut runs: Vec<(UnitRange, ModelId)> = Vec::new();
        for (range, model) in stages {
            match runs.last_mut() {
                Some((run, last)) if *last == model && run.end == range.start => run.end = range.end,
                _ => runs.push((range, model)),
            }
        }
        Self { runs }
    }

    /// The model with whose weights all of `range` is computed; `None` if there are several, or none.
    pub fn of(&self, range: UnitRange) -> Option<ModelId> {
        self.runs.iter().find(|(run, _)| run.covers(range)).map(|(_, model)| *model)
    }

    /// The runs, ascending.
    pub fn runs(&self) -> &[(UnitRange, ModelId)] {
        &self.runs
    }
}

/// How many peers hold each unit of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover {
    counts: Vec<u32>,
}

impl Cover {
    /// Nobody holds anything of a model of `units` units.
    pub fn empty(units: u16) -> Self {
        Self { counts: vec![0; usize::from(units)] }
    }

    /// Counts one more holder of `range`; units beyond the model are ignored.
    pub fn add(&mut self, range: UnitRange) {
        for unit in range.iter() {
            if let Some(count) = self.counts.get_mut(usize::from(unit)) {
                *count = count.saturating_add(1);
            }
        }
    }

    /// Counts one holder of `range` less.
    pub fn remove(&mut self, range: UnitRange) {
        for unit in range.iter() {
            if let Some(count) = self.counts.get_mut(usize::from(unit)) {
                *count = count.saturating_sub(1);
            }
        }
    }

    /// Holders of each unit, by unit.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// Whether every unit has a holder.
    pub fn is_full(&self) -> bool {
        !self.counts.is_empty() && self.counts.iter().all(|&count| count > 0)
    }

    /// The runs of units that nobody holds, ascending.
    pub fn missing(&self) -> Vec<UnitRange> {
        let mut runs: Vec<UnitRange> = Vec::new();
        for unit in (0..).zip(&self.counts).filter(|(_, count)| **count == 0).map(|(unit, _)| unit) {
            match runs.last_mut() {
                Some(run) if run.end == unit => run.end = unit + 1,
                _ => runs.push(UnitRange { start: unit, end: unit + 1 }),
            }
        }
        runs
    }

    /// The counts in ascending order: the lexicographically smallest is the weakest cover.
    pub fn sorted(&self) -> Vec<u32> {
        let mut counts = self.counts.clone();
        counts.sort_unstable();
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u16, end: u16) -> UnitRange {
        UnitRange::new(start, end).unwrap()
    }

    fn stage(start: u16, end: u16) -> Stage {
        Stage { peer: PeerKey::new([1; 32]), range: range(start, end) }
    }

    #[test]
    fn an_empty_range_cannot_be_made() {
        assert_eq!(UnitRange::new(3, 3), Err(EmptyRange { start: 3, end: 3 }));
        assert!("5..2".parse::<UnitRange>().is_err());
        assert_eq!("2..5".parse(), Ok(range(2, 5)));
    }

    #[test]
    fn a_chain_tiles_every_unit_once() {
        assert!(Chain::new(vec![stage(0, 2), stage(2, 7)], 7).is_ok());
        assert_eq!(Chain::new(vec![], 7), Err(BadChain::Empty));
        assert_eq!(Chain::new(vec![stage(0, 2), stage(3, 7)], 7), Err(BadChain::Gap { expected: 2, got: 3 }));
        assert_eq!(Chain::new(vec![stage(0, 2), stage(1, 7)], 7), Err(BadChain::Gap { expected: 2, got: 1 }));
        assert_eq!(Chain::new(vec![stage(0, 2)], 7), Err(BadChain::Short { expected: 7, got: 2 }));
    }

    #[test]
    fn what_computes_a_range_is_one_models_weights_or_none() {
        let (one, other) = (ModelId::new([1; 32]), ModelId::new([2; 32]));
        let weights = UnitWeights::of_stages([(range(0, 2), one), (range(2, 4), one), (range(4, 7), other)]);

        assert_eq!(weights.runs(), [(range(0, 4), one), (range(4, 7), other)]);
        assert_eq!(weights.of(range(1, 4)), Some(one));
        assert_eq!(weights.of(range(3, 5)), None);
        assert_eq!(weights.of(range(6, 8)), None, "beyond the model");
        assert_eq!(UnitWeights::whole(one, 7).runs(), [(range(0, 7), one)]);
    }

    #[test]
    fn cover_names_the_missing_runs() {
        let mut cover = Cover::empty(7);
        cover.add(range(1, 3));
        cover.add(range(5, 6));

        assert_eq!(cover.missing(), [range(0, 1), range(3, 5), range(6, 7)]);
        assert!(!cover.is_full());
        cover.add(range(0, 7));
        assert!(cover.is_full());
        assert_eq!(cover.sorted(), [1, 1, 1, 1, 2, 2, 2]);
    }
}
