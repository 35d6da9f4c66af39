//! Which chain takes the place of a broken one: what was not lost stays where it is.

use std::collections::BTreeSet;

use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::routing::Holder;
use crate::routing::NoRoute;
use crate::routing::Plan;
use crate::routing::Trust;
use crate::routing::View;
use crate::routing::cover;
use crate::routing::plan;
use crate::units::Stage;

/// Whose weights a survivor has that nobody says anything of any more: its session knows.
const UNASKED: ModelId = ModelId::new([0; ModelId::LEN]);

/// Plans the cheapest chain in which `survivors` keep their units, so that only what was lost is to be built again. Where a hop
/// between two of them failed, one of its ends is given up, whichever costs less.
///
/// # Errors
/// [`NoRoute`] if the units can't all be reached.
pub fn mend(view: &View, survivors: &[Stage]) -> Result<Plan, NoRoute> {
    match around(view, survivors) {
        Err(NoRoute::Severed) => {}
        planned => return planned,
    }
    let ends: BTreeSet<PeerKey> = view.severed.iter().flat_map(|&(from, to)| [from, to]).collect();
    let without = |gone: &dyn Fn(&Stage) -> bool| {
        let kept: Vec<Stage> = survivors.iter().filter(|stage| !gone(stage)).copied().collect();
        around(view, &kept)
    };
    let one_less = ends.iter().filter_map(|end| without(&|stage| stage.peer == *end).ok());
    let best = one_less.min_by_key(|plan| plan.cost.total());
    best.map_or_else(|| without(&|stage| ends.contains(&stage.peer)), Ok)
}

/// Plans a chain in which the kept stages have their units, and nobody else does.
fn around(view: &View, kept: &[Stage]) -> Result<Plan, NoRoute> {
    let known = |stage: &Stage| {
        let holder = view.holders.iter().find(|holder| holder.peer == stage.peer);
        let unknown = Holder {
            peer: stage.peer,
            range: stage.range,
            weights: UNASKED,
            coarser: 0,
            per_unit: Default::default(),
            queue: Default::default(),
        };
        Holder { range: stage.range, ..holder.copied().unwrap_or(unknown) }
    };
    let keeping: Vec<Holder> = kept.iter().map(known).collect();
    let lost = cover(view.units, &keeping).missing();
    let others = view.holders.iter().filter(|holder| view.usable(holder));
    let pieces = others.flat_map(|holder| {
        lost.iter().filter_map(|run| holder.range.common(*run)).map(|range| Holder { range, ..*holder })
    });
    let holders: Vec<Holder> = keeping.iter().copied().chain(pieces).collect();
    if !cover(view.units, &holders).is_full() {
        return Err(super::uncovered(view, &holders));
    }
    plan(&View { holders, avoid: BTreeSet::new(), trust: Trust::Any, ..view.clone() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::amounts::Span;
    use crate::units::UnitRange;

    fn peer(n: u8) -> PeerKey {
        PeerKey::new([n; 32])
    }

    fn stage(n: u8, start: u16, end: u16) -> Stage {
        Stage { peer: peer(n), range: UnitRange::new(start, end).unwrap() }
    }

    fn view(holders: &[(u8, u16, u16)]) -> View {
        let holder = |&(n, start, end): &(u8, u16, u16)| {
            let Stage { peer, range } = stage(n, start, end);
            Holder { peer, range, weights: UNASKED, coarser: 0, per_unit: Span(10), queue: Span::ZERO }
        };
        View {
            me: peer(9),
            units: 6,
            holders: holders.iter().map(holder).collect(),
            round_trips: BTreeMap::new(),
            default_round_trip: Span::millis(10),
            default_per_unit: Span(10),
            avoid: BTreeSet::new(),
            severed: BTreeSet::new(),
            trust: Trust::Any,
            seed: 1,
        }
    }

    fn chain(view: &View, survivors: &[Stage]) -> Vec<Stage> {
        mend(view, survivors).unwrap().chain.stages().to_vec()
    }

    #[test]
    fn only_what_was_lost_is_planned_anew() {
        // One peer holds all, and would be cheaper than the survivors and another.
        let mut view = view(&[(1, 0, 2), (3, 4, 6), (4, 1, 5), (5, 0, 6)]);
        view.avoid = [peer(2)].into();

        for replacement in [4, 5] {
            view.avoid = [peer(9 - replacement)].into();
            let expected = [stage(1, 0, 2), stage(replacement, 2, 4), stage(3, 4, 6)];
            assert_eq!(chain(&view, &[stage(1, 0, 2), stage(3, 4, 6)]), expected);
        }
    }

    #[test]
    fn a_lost_range_may_take_two_and_a_survivor_may_take_it_as_another_stage() {
        let two = view(&[(1, 0, 2), (3, 5, 6), (4, 1, 3), (5, 3, 6)]);
        let own = view(&[(1, 0, 5), (3, 5, 6)]);
        let survivors = [stage(1, 0, 2), stage(3, 5, 6)];

        assert_eq!(chain(&two, &survivors), [stage(1, 0, 2), stage(4, 2, 3), stage(5, 3, 5), stage(3, 5, 6)]);
        assert_eq!(chain(&own, &survivors), [stage(1, 0, 2), stage(1, 2, 5), stage(3, 5, 6)]);
    }

    #[test]
    fn of_a_hop_that_failed_the_end_that_can_be_replaced_is_given_up() {
        let survivors = [stage(1, 0, 2), stage(2, 2, 4), stage(3, 4, 6)];
        for (spare, expected) in [
            ((4, 0, 2), [stage(4, 0, 2), stage(2, 2, 4), stage(3, 4, 6)]),
            ((4, 2, 4), [stage(1, 0, 2), stage(4, 2, 4), stage(3, 4, 6)]),
        ] {
            let mut view = view(&[(1, 0, 2), (2, 2, 4), (3, 4, 6), spare]);
            view.severed = [(peer(1), peer(2))].into();
            assert_eq!(chain(&view, &survivors), expected);
        }

        let mut none = view(&[(1, 0, 2), (2, 2, 4), (3, 4, 6)]);
        none.severed = [(peer(1), peer(2))].into();
        assert!(mend(&none, &survivors).is_err());
    }

    #[test]
    fn what_nobody_holds_is_named() {
        let view = view(&[(1, 0, 2), (3, 4, 6)]);
        let missing = vec![UnitRange::new(2, 4).unwrap()];

        let failed = mend(&view, &[stage(1, 0, 2), stage(3, 4, 6)]);

        assert_eq!(failed, Err(NoRoute::Uncovered { missing, excluded: Vec::new() }));
    }
}
