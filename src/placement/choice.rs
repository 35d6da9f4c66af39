//! The rules of where to go, as functions of what is seen.

use std::cmp::Reverse;

use crate::placement::fit::Fit;
use crate::placement::sight::Class;
use crate::placement::sight::Sight;
use crate::units::Cover;
use crate::units::UnitRange;
use crate::wire::profile::Holding;

/// Ranges to load and ranges to drop for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    /// What is loaded: the target, and what is kept of a range that is trimmed.
    pub(super) take: Vec<UnitRange>,
    /// What is dropped once all of it is ready.
    pub(super) leave: Vec<UnitRange>,
    /// The new place.
    pub(super) target: UnitRange,
    /// The part of it for which it is taken; others may hold the rest.
    pub(super) purpose: UnitRange,
    /// Whether it only makes the mesh faster.
    pub(super) gain: bool,
}

impl Choice {
    fn simple(target: UnitRange) -> Self {
        Self { take: vec![target], leave: Vec::new(), target, purpose: target, gain: false }
    }

    /// The units that this peer won't hold any more.
    pub(super) fn given_up(&self) -> Vec<u16> {
        let left = self.leave.iter().flat_map(|range| range.iter());
        left.filter(|unit| !self.take.iter().any(|range| range.contains(*unit))).collect()
    }
}

/// Where a newcomer goes: the window that strengthens the weakest cover, given what those before it get.
///
/// One that has announced `announced` keeps it if nothing is better; one that has not lets everyone go first.
pub(super) fn join(fit: &Fit, sight: &Sight, announced: Option<UnitRange>) -> Option<Choice> {
    let near = |window| sight.ends_near(window);
    best(&cover_for_me(sight, announced.is_some()), fit.windows(), announced, near).map(Choice::simple)
}

/// The units that nobody holds or gets before a newcomer, which has announced itself or not.
pub(super) fn missing_to_me(sight: &Sight, has_announced: bool) -> Vec<UnitRange> {
    cover_for_me(sight, has_announced).missing()
}

/// Who holds each unit by the time that a newcomer joins.
fn cover_for_me(sight: &Sight, has_announced: bool) -> Cover {
    let mut cover = sight.committed();
    let mine = sight.my_precedence(Class::Newcomer);
    for (precedence, range) in sight.intents() {
        match precedence.0 {
            Class::Newcomer if !has_announced || precedence < mine => cover.add(granted(&cover, range)),
            // Goes after this one, and looks again when it sees the intent.
            Class::Newcomer => {}
            Class::Serving if !has_announced => cover.add(range),
            Class::Serving => {}
        }
    }
    cover
}

/// What a newcomer that announced `range` gets: that, or, if something of that size is better, the better.
fn granted(cover: &Cover, range: UnitRange) -> UnitRange {
    let units = u16::try_from(cover.counts().len()).unwrap_or(u16::MAX);
    let starts = 0..=units.saturating_sub(range.count());
    let windows = starts.filter_map(|start| UnitRange::new(start, start.checked_add(range.count())?).ok());
    best(cover, windows.collect(), Some(range), |_| 0).unwrap_or(range)
}

/// The window after which the sorted cover is the strongest; among equals `preferred`, then one that begins where a
/// weakest run does, so that peers tile without gaps, then one more of whose ends are `near`, then the leftmost.
fn best(
    cover: &Cover,
    windows: Vec<UnitRange>,
    preferred: Option<UnitRange>,
    near: impl Fn(UnitRange) -> usize,
) -> Option<UnitRange> {
    let counts = cover.counts();
    let weakest = counts.iter().min().copied().unwrap_or(0);
    let weak = |unit: u16| counts.get(usize::from(unit)) == Some(&weakest);
    let aligned = |start: u16| weak(start) && start.checked_sub(1).is_none_or(|before| !weak(before));
    let rank = |window: &UnitRange| {
        let preferred = Some(*window) == preferred;
        (Reverse(weakness(cover, *window)), preferred, aligned(window.start()), near(*window), Reverse(window.start()))
    };
    windows.into_iter().max_by_key(rank)
}

/// Orders windows as the sorted cover after adding them would, the other way round, without sorting all of it: what
/// counts is how many units of the lowest level a window raises, then of the next.
fn weakness(cover: &Cover, window: UnitRange) -> Vec<u32> {
    let counts = window.iter().filter_map(|unit| cover.counts().get(usize::from(unit)).copied());
    let mut weakness: Vec<u32> = counts.collect();
    weakness.sort_unstable();
    // A longer window is the better one if it raises the same and more.
    weakness.push(u32::MAX);
    weakness
}

/// Takes as much of `hole` as there is room for.
pub(super) fn with_room(fit: &Fit, own: &[UnitRange], hole: UnitRange) -> Option<Choice> {
    fit.longest(own, hole.start(), hole.end()).map(Choice::simple)
}

/// Leaves one range, all of which others hold, for as much as possible of `hole`.
pub(super) fn by_moving(fit: &Fit, sight: &Sight, own: &[UnitRange], hole: UnitRange) -> Option<Choice> {
    let spare = own.iter().filter(|range| sight.hold_besides_me(&range.iter().collect::<Vec<_>>()));
    let moved = spare.filter_map(|left| {
        let rest: Vec<_> = own.iter().filter(|range| *range != left).copied().collect();
        let target = around(fit, &rest, hole)?;
        let purpose = UnitRange::new(target.start().max(hole.start()), target.end().min(hole.end())).ok()?;
        Some(Choice { leave: vec![*left], purpose, ..Choice::simple(target) })
    });
    moved.max_by_key(|choice| (choice.purpose.count(), Reverse(choice.leave.clone())))
}

/// The longest range from the hole's start; at the model's end it reaches back, so that no room is wasted.
fn around(fit: &Fit, rest: &[UnitRange], hole: UnitRange) -> Option<UnitRange> {
    let ahead = fit.longest(rest, hole.start(), fit.units())?;
    if ahead.end() < fit.units() {
        return Some(ahead);
    }
    let back = (0..=hole.start()).filter_map(|start| UnitRange::new(start, fit.units()).ok());
    let mut back = back.filter(|range| fit.allows(&[rest, &[*range]].concat()));
    Some(back.next().unwrap_or(ahead))
}

/// Gives up units at an end of a range that others hold, too, for as much as possible of `hole`.
///
/// The rest of the range is loaded on its own before the range is dropped, so memory must allow all of it for a while.
pub(super) fn by_trimming(fit: &Fit, sight: &Sight, own: &[UnitRange], hole: UnitRange) -> Option<Choice> {
    let trims = own.iter().flat_map(|range| {
        let from_front = (range.start() + 1..range.end()).filter_map(|cut| UnitRange::new(cut, range.end()).ok());
        let from_back = (range.start() + 1..range.end()).filter_map(|cut| UnitRange::new(range.start(), cut).ok());
        from_front.chain(from_back).map(|kept| (*range, kept)).collect::<Vec<_>>()
    });
    let choices = trims.filter_map(|(left, kept)| {
        let rest: Vec<_> = own.iter().map(|range| if *range == left { kept } else { *range }).collect();
        let target = fit.longest(&rest, hole.start(), hole.end())?;
        let choice = Choice { take: vec![kept, target], leave: vec![left], ..Choice::simple(target) };
        let possible = sight.hold_besides_me(&choice.given_up()) && fit.memory_allows(&[own, &choice.take].concat());
        possible.then_some(choice)
    });
    choices.max_by_key(|choice| (choice.target.count(), Reverse(choice.given_up().len()), choice.take.clone()))
}

/// Moves the one range of a peer to where the slowest unit gains at least `percent`, if others hold all that it leaves.
pub(super) fn gain(fit: &Fit, sight: &Sight, own: &[UnitRange], percent: u64) -> Option<Choice> {
    let [held] = own else {
        return None;
    };
    let without = Strength::of(sight);
    let present = without.with(*held).bottleneck();
    let worth = |bottleneck: u64| bottleneck.saturating_mul(100) >= present.saturating_mul(100 + percent);
    let windows = fit.windows().into_iter().filter(|window| window != held);
    let target = windows.max_by_key(|window| (without.with(*window).sorted(), Reverse(window.start())))?;
    let choice = Choice { leave: vec![*held], gain: true, ..Choice::simple(target) };
    let moves = worth(without.with(target).bottleneck()) && sight.hold_besides_me(&choice.given_up());
    moves.then_some(choice)
}

/// Positions per second that the peers can do together, per unit.
#[derive(Clone, Debug)]
struct Strength {
    of_units: Vec<u64>,
    own: u64,
}

impl Strength {
    /// The others' strength. Where somebody does not know its speed, everyone counts the same; this peer counts as the
    /// slowest of the others, so that it does not move for a gain of its own making.
    fn of(sight: &Sight) -> Self {
        let known = sight.ready_holdings().all(|holding| holding.per_unit.0 > 0);
        let speed = |holding: &Holding| if known { 1_000_000 / holding.per_unit.0.max(1) } else { 1 };
        let own = sight.ready_holdings().map(speed).min().unwrap_or(1).max(1);
        let mut of_units = vec![0; sight.ready().counts().len()];
        for holding in sight.ready_holdings() {
            for unit in holding.range.iter() {
                of_units[usize::from(unit)] += speed(holding);
            }
        }
        Self { of_units, own }
    }

    fn with(&self, range: UnitRange) -> Self {
        let mut with = self.clone();
        for unit in range.iter() {
            with.of_units[usize::from(unit)] += self.own;
        }
        with
    }

    fn bottleneck(&self) -> u64 {
        self.of_units.iter().min().copied().unwrap_or(0)
    }

    fn sorted(&self) -> Vec<u64> {
        let mut sorted = self.of_units.clone();
        sorted.sort_unstable();
        sorted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_less_weak_window_leaves_the_stronger_sorted_cover(
            counts in proptest::collection::vec(0..4_usize, 1..12),
            (one, other) in ((0..12_u16, 1..12_u16), (0..12_u16, 1..12_u16)),
        ) {
            let units = u16::try_from(counts.len()).unwrap();
            let mut cover = Cover::empty(units);
            for (unit, count) in (0..).zip(&counts) {
                (0..*count).for_each(|_| cover.add(UnitRange::new(unit, unit + 1).unwrap()));
            }
            let window = |(start, count): (u16, u16)| {
                UnitRange::new(start % units, (start % units + count).min(units)).unwrap()
            };
            let after = |window: UnitRange| {
                let mut after = cover.clone();
                after.add(window);
                after.sorted()
            };
            let (one, other) = (window(one), window(other));

            let by_weakness = weakness(&cover, other).cmp(&weakness(&cover, one));

            prop_assert_eq!(by_weakness, after(one).cmp(&after(other)));
        }
    }
}
