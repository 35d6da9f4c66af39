//! Several chains for one answer, so that what they compute can be compared: of different peers, and cut at the same units.

use std::collections::BTreeSet;

use crate::ids::PeerKey;
use crate::routing::Holder;
use crate::routing::NoRoute;
use crate::routing::Plan;
use crate::routing::View;
use crate::routing::mend;
use crate::routing::plan;
use crate::units::Chain;
use crate::units::Stage;
use crate::units::UnitRange;
use crate::units::UnitWeights;

/// What a chain is to keep apart from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Apart {
    /// What other chains serve.
    pub others: Vec<Stage>,
    /// Whether it may share units with them if there is no other way.
    pub may_share: bool,
    /// Unit boundaries at which it is to be cut.
    pub cuts: BTreeSet<u16>,
}

/// There are not as many chains as were asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooFew {
    /// How many there are.
    pub found: u8,
    /// Why there is no other.
    pub cause: NoRoute,
}

/// Plans so many chains, at least one, no unit of two at one peer, and if possible no peer in two. All are cut wherever one is, and compute
/// each unit with the same weights, so that each stage of one can be compared with one of the others.
///
/// # Errors
/// [`TooFew`] if there are not so many.
pub fn several(view: &View, count: u8) -> Result<(Vec<Chain>, UnitWeights), TooFew> {
    let first = apart(view, None, &Apart::default()).map_err(|cause| TooFew { found: 0, cause })?;
    let (mut chains, alike) = (vec![first.chain], view.computing_with(&first.weights));
    for found in 1..count {
        let others = chains.iter().flat_map(|chain| chain.stages().to_vec()).collect();
        let planned = apart(&alike, None, &Apart { others, ..Apart::default() });
        chains.push(planned.map_err(|cause| TooFew { found, cause })?.chain);
    }
    let starts = chains.iter().flat_map(Chain::stages).map(|stage| stage.range.start());
    let cuts: BTreeSet<u16> = starts.filter(|start| *start > 0).collect();
    Ok((chains.into_iter().map(|chain| cut(chain, &cuts)).collect(), first.weights))
}

/// Plans a chain beside others; or mends one, in which the survivors keep their units. It has no peer of theirs, or if there is no
/// such chain, no unit at the same peer.
///
/// # Errors
/// [`NoRoute`] if there is none.
pub fn apart(view: &View, survivors: Option<&[Stage]>, apart: &Apart) -> Result<Plan, NoRoute> {
    let route = |view: &View| match survivors {
        Some(survivors) => mend(view, survivors),
        None => plan(view),
    };
    let all = without(view, &[], &apart.cuts);
    if apart.others.is_empty() {
        return route(&all);
    }
    let peers = apart.others.iter().map(|stage| stage.peer);
    let avoid: BTreeSet<PeerKey> = view.avoid.iter().copied().chain(peers).collect();
    let planned = route(&View { avoid, ..all.clone() }).or_else(|_| route(&without(view, &apart.others, &apart.cuts)));
    if apart.may_share { planned.or_else(|_| route(&all)) } else { planned }
}

/// The view without the given units at the given peers, and with every holding cut in pieces.
fn without(view: &View, gone: &[Stage], cuts: &BTreeSet<u16>) -> View {
    let holders = view.holders.iter().flat_map(|holder| pieces(holder, gone, cuts)).collect();
    View { holders, ..view.clone() }
}

fn pieces(holder: &Holder, gone: &[Stage], cuts: &BTreeSet<u16>) -> Vec<Holder> {
    let is_gone = |unit: u16| gone.iter().any(|stage| stage.peer == holder.peer && stage.range.contains(unit));
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for unit in holder.range.iter().filter(|unit| !is_gone(*unit)) {
        match runs.last_mut() {
            Some((_, end)) if *end == unit && !cuts.contains(&unit) => *end = unit + 1,
            _ => runs.push((unit, unit + 1)),
        }
    }
    runs.into_iter()
        .filter_map(|(start, end)| UnitRange::new(start, end).ok())
        .map(|range| Holder { range, ..*holder })
        .collect()
}

/// The chain with every stage cut in pieces; as it is if those were too many.
fn cut(chain: Chain, cuts: &BTreeSet<u16>) -> Chain {
    let mut stages = Vec::new();
    for stage in chain.stages() {
        let inside = cuts.iter().copied().filter(|cut| stage.range.start() < *cut && *cut < stage.range.end());
        let ends: Vec<u16> = inside.chain([stage.range.end()]).collect();
        let mut start = stage.range.start();
        for end in ends {
            stages.extend(UnitRange::new(start, end).ok().map(|range| Stage { peer: stage.peer, range }));
            start = end;
        }
    }
    Chain::new(stages, chain.units()).unwrap_or(chain)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::amounts::Span;
    use crate::ids::ModelId;
    use crate::routing::Trust;

    fn peer(n: u8) -> PeerKey {
        PeerKey::new([n; 32])
    }

    fn stage(n: u8, start: u16, end: u16) -> Stage {
        Stage { peer: peer(n), range: UnitRange::new(start, end).unwrap() }
    }

    fn view(holders: &[(u8, u16, u16)]) -> View {
        let holder = |&(n, start, end): &(u8, u16, u16)| {
            let Stage { peer, range } = stage(n, start, end);
            Holder { peer, range, weights: ModelId::new([7; 32]), coarser: 0, per_unit: Span(10), queue: Span::ZERO }
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

    fn peers(chain: &Chain) -> BTreeSet<PeerKey> {
        chain.stages().iter().map(|stage| stage.peer).collect()
    }

    #[test]
    fn chains_have_no_peer_in_common_and_are_cut_alike() {
        let view = view(&[(1, 0, 3), (2, 3, 6), (3, 0, 4), (4, 4, 6), (5, 0, 6)]);

        let (chains, _) = several(&view, 3).unwrap();

        let cuts = |chain: &Chain| chain.stages().iter().map(|stage| stage.range.start()).collect::<Vec<_>>();
        assert!(chains.iter().all(|chain| cuts(chain) == [0, 3, 4]));
        let all: Vec<PeerKey> = chains.iter().flat_map(peers).collect();
        assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len());
    }

    #[test]
    fn a_peer_is_in_two_chains_with_other_units_if_there_is_no_other_way() {
        // Whichever of the two is in the first chain alone, the other holds too little.
        let view = view(&[(1, 0, 6), (2, 0, 3), (3, 3, 6)]);

        let (chains, _) = several(&view, 2).unwrap();

        for unit in 0..6 {
            let of = |chain: &Chain| chain.stages().iter().find(|stage| stage.range.contains(unit)).unwrap().peer;
            assert_ne!(of(&chains[0]), of(&chains[1]), "unit {unit}");
        }
    }

    #[test]
    fn chains_that_are_compared_compute_with_the_same_weights() {
        let (fine, coarse) = (ModelId::new([7; 32]), ModelId::new([8; 32]));
        let mut view = view(&[(1, 0, 3), (2, 3, 6), (3, 0, 6), (4, 3, 6), (5, 0, 3)]);
        [1, 3].into_iter().for_each(|place| view.holders[place].weights = coarse);
        view.avoid = [peer(3)].into();

        let (chains, weights) = several(&view, 2).unwrap();

        let half = |start, end| UnitRange::new(start, end).unwrap();
        assert_eq!(weights.runs(), [(half(0, 3), fine), (half(3, 6), coarse)]);
        assert!(chains.iter().map(peers).all(|of| of.contains(&peer(1)) != of.contains(&peer(5))));
        view.holders[3].weights = fine;
        assert_eq!(several(&view, 2).unwrap_err().found, 1);
    }

    #[test]
    fn it_is_said_how_many_there_are_and_what_is_missing() {
        let view = view(&[(1, 0, 6), (2, 0, 4)]);

        let TooFew { found, cause } = several(&view, 2).unwrap_err();

        let missing = vec![UnitRange::new(4, 6).unwrap()];
        assert_eq!(found, 1);
        assert_eq!(cause, NoRoute::Uncovered { missing, excluded: Vec::new() });
    }

    #[test]
    fn one_chain_is_planned_as_any() {
        let view = view(&[(1, 0, 2), (2, 2, 6), (3, 0, 6)]);

        assert_eq!(several(&view, 1).unwrap().0, [plan(&view).unwrap().chain]);
    }

    #[test]
    fn a_chain_that_decides_may_share_what_is_not_in_doubt() {
        let mut view = view(&[(1, 0, 3), (2, 3, 6), (3, 0, 3), (4, 3, 6), (5, 3, 6)]);
        view.avoid = [peer(2), peer(4)].into();
        let others = vec![stage(1, 0, 3), stage(2, 3, 6), stage(3, 0, 3), stage(4, 3, 6)];
        let mut wish = Apart { others, may_share: false, cuts: BTreeSet::new() };

        assert!(apart(&view, None, &wish).is_err());
        wish.may_share = true;
        assert!(peers(&apart(&view, None, &wish).unwrap().chain).contains(&peer(5)));
    }

    #[test]
    fn a_chain_that_is_mended_is_cut_as_it_was() {
        let view = view(&[(1, 0, 2), (3, 0, 6)]);
        let wish = Apart { cuts: [2, 4].into(), ..Apart::default() };

        let mended = apart(&view, Some(&[stage(1, 0, 2)]), &wish).unwrap();

        assert_eq!(mended.chain.stages(), [stage(1, 0, 2), stage(3, 2, 4), stage(3, 4, 6)]);
    }
}
