use expect_test::expect;

use super::simulation::capped;
use super::simulation::key;
use super::simulation::limited;
use super::simulation::needs;
use super::*;

fn range(start: u16, end: u16) -> UnitRange {
    UnitRange::new(start, end).unwrap()
}

fn at(millis: u64) -> Time {
    Time::ZERO.after(Span::millis(millis))
}

fn placement(offer: Offer) -> Placement {
    Placement::new(key(0), needs(7), offer, PlacementConfig::default(), Time::ZERO).unwrap()
}

fn other(index: usize, holdings: &[(UnitRange, HoldingState)]) -> Other {
    let model = needs(7).model;
    let holding = |&(range, state): &(UnitRange, HoldingState)| Holding { model, range, state, per_unit: Span::ZERO };
    Other {
        peer: key(index),
        holdings: holdings.iter().map(holding).collect(),
        memory_free: Bytes::ZERO,
        is_near: false,
    }
}

/// Ticks through the time and performs every load and unload at once.
fn trace(placement: &mut Placement, from: u64, to: u64) -> String {
    let mut lines = String::new();
    for millis in (from..to).step_by(50) {
        let mut decisions = placement.handle(Event::Ticked, at(millis));
        while !decisions.is_empty() {
            let decision = decisions.remove(0);
            lines += &match decision {
                Decision::Announce(range) => format!("{millis}: announce {range}\n"),
                Decision::Withdraw(range) => format!("{millis}: withdraw {range}\n"),
                Decision::Load(range) => format!("{millis}: load {range}\n"),
                Decision::Retire(range) => format!("{millis}: retire {range}\n"),
                Decision::Restore(range) => format!("{millis}: restore {range}\n"),
                Decision::Unload(range) => format!("{millis}: unload {range}\n"),
            };
            let answer = match decision {
                Decision::Load(range) => Event::Loaded(range),
                Decision::Unload(range) => Event::Unloaded(range),
                Decision::Announce(_) | Decision::Withdraw(_) | Decision::Retire(_) | Decision::Restore(_) => continue,
            };
            decisions.extend(placement.handle(answer, at(millis)));
        }
    }
    lines
}

#[test]
fn a_newcomer_listens_announces_waits_and_loads() {
    let mut placement = placement(capped(3));

    let trace = trace(&mut placement, 0, 20_000);

    expect![[r#"
        1800: announce 0..3
        2500: load 0..3
    "#]]
    .assert_eq(&trace);
    assert_eq!(placement.holdings(), [(range(0, 3), HoldingState::Ready)]);
}

#[test]
fn a_model_that_fits_is_held_whole_at_once() {
    let mut placement = placement(limited(7));

    assert_eq!(trace(&mut placement, 0, 20_000), "0: load 0..7\n");
}

#[test]
fn a_pinned_range_is_loaded_at_once_and_never_moves() {
    let mut placement = placement(Offer { pinned: Some(range(2, 4)), ..limited(4) });
    let twice = [other(1, &[(range(2, 4), HoldingState::Ready)]), other(2, &[(range(2, 4), HoldingState::Ready)])];
    placement.handle(Event::Seen(twice.to_vec()), at(0));

    assert_eq!(placement.holdings(), [(range(2, 4), HoldingState::Loading)]);
    placement.handle(Event::Loaded(range(2, 4)), at(10));
    assert_eq!(trace(&mut placement, 50, 700_000), "");
}

#[test]
fn a_newcomer_joins_where_the_cover_is_weakest() {
    let mut placement = placement(capped(2));
    let others = [
        other(1, &[(range(0, 4), HoldingState::Ready)]),
        other(2, &[(range(0, 7), HoldingState::Loading)]),
        other(3, &[(range(3, 5), HoldingState::Intended)]),
    ];
    placement.handle(Event::Seen(others.to_vec()), at(0));

    expect![[r#"
        1800: announce 5..7
    "#]]
    .assert_eq(&trace(&mut placement, 0, 2_000));
}

#[test]
fn a_hole_is_filled_from_spare_room_after_the_grace() {
    let mut placement = placement(capped(4));
    placement.handle(Event::Seen(vec![other(1, &[(range(0, 4), HoldingState::Ready)])]), at(0));
    let joined = trace(&mut placement, 0, 4_000);
    expect![[r#"
        1800: announce 3..7
        2500: load 3..7
    "#]]
    .assert_eq(&joined);

    let mut spare = Placement { own: BTreeMap::from([(range(5, 7), Own::Ready)]), ..placement };
    spare.handle(Event::Seen(vec![other(1, &[(range(0, 3), HoldingState::Ready)])]), at(4_000));

    expect![[r#"
        7000: announce 3..5
        7700: load 3..5
    "#]]
    .assert_eq(&trace(&mut spare, 4_000, 20_000));
}

#[test]
fn a_peer_without_room_moves_only_if_others_hold_all_that_it_leaves() {
    let holder = other(1, &[(range(0, 2), HoldingState::Ready)]);
    let rest = other(2, &[(range(4, 7), HoldingState::Ready)]);
    let mut needed = placement(capped(2));
    needed.own.insert(range(0, 2), Own::Ready);
    let mut spare = needed.clone();
    needed.handle(Event::Seen(vec![rest.clone()]), at(10_000));
    spare.handle(Event::Seen(vec![rest, holder]), at(10_000));

    assert_eq!(trace(&mut needed, 10_000, 60_000), "");
    expect![[r#"
        14500: announce 2..4
        15200: load 2..4
        15200: retire 0..2
        16050: unload 0..2
    "#]]
    .assert_eq(&trace(&mut spare, 10_000, 60_000));
}

#[test]
fn where_memory_does_not_allow_both_the_old_goes_first() {
    let mut spare = placement(limited(2));
    spare.own.insert(range(0, 2), Own::Ready);
    let others = vec![other(1, &[(range(0, 2), HoldingState::Ready)]), other(2, &[(range(4, 7), HoldingState::Ready)])];
    spare.handle(Event::Seen(others), at(10_000));

    expect![[r#"
        14500: announce 2..4
        15200: retire 0..2
        16050: unload 0..2
        16050: load 2..4
    "#]]
    .assert_eq(&trace(&mut spare, 10_000, 60_000));
}

#[test]
fn a_retired_range_is_restored_when_the_other_holder_is_gone() {
    let mut spare = placement(capped(2));
    spare.own = BTreeMap::from([(range(0, 2), Own::Ready), (range(2, 4), Own::Ready)]);
    spare.leaving = vec![range(0, 2)];
    let rest = other(2, &[(range(4, 7), HoldingState::Ready)]);
    let both = vec![other(1, &[(range(0, 2), HoldingState::Ready)]), rest.clone()];
    assert_eq!(spare.handle(Event::Seen(both), at(10_000)), [Decision::Retire(range(0, 2))]);
    assert_eq!(spare.holdings()[0], (range(0, 2), HoldingState::Intended));
    spare.handle(Event::Seen(vec![rest]), at(10_100));

    assert_eq!(trace(&mut spare, 10_100, 60_000), "10850: restore 0..2\n");
}

#[test]
fn the_better_ranked_of_two_newcomers_keeps_its_choice() {
    let names = [1, 2, 3, 4].map(|index| {
        let mut placement = placement(capped(4));
        trace(&mut placement, 0, 1_950);
        let rival = other(index, &[(range(0, 4), HoldingState::Intended)]);
        placement.handle(Event::Seen(vec![rival]), at(1_950));
        (index, placement.holdings()[0].0.to_string())
    });

    expect![[r#"[(1, "3..7"), (2, "3..7"), (3, "3..7"), (4, "0..4")]"#]].assert_eq(&format!("{names:?}"));
}

#[test]
fn a_peer_moves_for_a_fifth_after_ten_minutes_and_not_before() {
    let mut placement = placement(capped(2));
    placement.own.insert(range(0, 2), Own::Ready);
    let strong = [(range(0, 2), HoldingState::Ready), (range(2, 7), HoldingState::Ready)];
    placement.handle(Event::Seen(vec![other(1, &strong), other(2, &strong[..1])]), at(0));

    assert_eq!(trace(&mut placement, 0, 599_000), "");
    // One unit of five would still be held by one peer alone, so nothing is gained.
    assert_eq!(trace(&mut placement, 599_000, 700_000), "");

    let strong =
        [(range(0, 2), HoldingState::Ready), (range(2, 4), HoldingState::Ready), (range(4, 7), HoldingState::Ready)];
    let others = vec![other(1, &strong), other(2, &[strong[0], strong[2]]), other(3, &strong[..1])];
    placement.handle(Event::Seen(others), at(700_000));
    expect![[r#"
        701150: load 2..4
        701150: retire 0..2
        702300: unload 0..2
    "#]]
    .assert_eq(&trace(&mut placement, 700_050, 800_000));
}

#[test]
fn a_failed_load_is_tried_again_later_and_later() {
    let mut placement = placement(Offer { pinned: Some(range(2, 4)), ..limited(4) });
    let mut attempts = Vec::new();
    for millis in (0..100_000).step_by(100) {
        if placement.handle(Event::Ticked, at(millis)).contains(&Decision::Load(range(2, 4))) {
            attempts.push(millis);
            let failed = placement.handle(Event::LoadFailed(range(2, 4)), at(millis));
            assert_eq!(failed, [Decision::Withdraw(range(2, 4))]);
        }
    }

    assert_eq!(attempts, [0, 5_000, 15_000, 35_000, 75_000]);
}

#[test]
fn intents_of_strangers_do_not_hold_one_up_for_ever() {
    let mut placement = placement(capped(2));
    let mut loaded = None;
    for round in 0..1_000_u64 {
        // A hostile peer that always wants what this one wants, under ever new keys.
        let wanted = placement.holdings().first().map_or(range(0, 2), |(range, _)| *range);
        let rival = PeerKey::new([u8::try_from(round % 251).unwrap(); 32]);
        let rival = Other { peer: rival, ..other(1, &[(wanted, HoldingState::Intended)]) };
        let decisions = placement.handle(Event::Seen(vec![rival]), at(round * 100));
        if decisions.iter().any(|decision| matches!(decision, Decision::Load(_))) {
            loaded = Some(round * 100);
            break;
        }
    }

    assert!(loaded.is_some_and(|millis| millis < 25_000), "{loaded:?}");
}

#[test]
fn what_does_not_fit_is_refused_with_both_figures() {
    let refused = |offer| Placement::new(key(0), needs(7), offer, PlacementConfig::default(), Time::ZERO).unwrap_err();

    let nothing = refused(Offer { budget: Bytes(99), max_units: None, pinned: None });
    assert_eq!(nothing, CannotServe::NothingFits { expected: Bytes(100), got: Bytes(99) });
    let large = refused(Offer { pinned: Some(range(0, 3)), ..limited(2) });
    assert_eq!(large, CannotServe::PinnedTooLarge { range: range(0, 3), expected: Bytes(300), got: Bytes(200) });
    let outside = refused(Offer { pinned: Some(range(6, 8)), ..limited(7) });
    assert_eq!(outside, CannotServe::PinnedOutside { range: range(6, 8), units: 7, at_most: 7 });
}

#[test]
fn a_tied_embedding_counts_once_where_both_ends_are_held() {
    let tied = Needs { shared_ends: Bytes(100), ..needs(7) };
    let placement = Placement::new(key(0), tied, limited(6), PlacementConfig::default(), Time::ZERO).unwrap();

    assert_eq!(placement.fit().whole(), Some(range(0, 7)));
    assert_eq!(placement.fit().bytes(&[range(0, 6)]), Bytes(600));
}

/// A model of 7 units at three precisions; of the finest one unit fits, of the next two, of the coarsest four.
fn at_three_precisions() -> Placement {
    let at = |index: u8, bytes: u64| Needs {
        model: ModelId::new([index; 32]),
        unit_bytes: vec![Bytes(bytes); 7],
        ..needs(7)
    };
    let all = vec![at(1, 400), at(2, 200), at(3, 100)];
    let family = all.iter().map(|needs| needs.model).collect();
    let offer = Offer { budget: Bytes(400), max_units: None, pinned: None };
    let (model, config) = (all[0].model, PlacementConfig::default());
    Placement::at_any_precision(key(0), model, family, all, offer, config, Time::ZERO).unwrap()
}

fn holder(index: usize, model: u8, range: UnitRange, state: HoldingState) -> Other {
    let holding = Holding { model: ModelId::new([model; 32]), range, state, per_unit: Span::ZERO };
    Other { peer: key(index), holdings: vec![holding], memory_free: Bytes::ZERO, is_near: false }
}

#[test]
fn a_newcomer_takes_the_most_precise_at_which_it_fills_all_that_is_missing() {
    let joined = |others: Vec<Other>| {
        let mut placement = at_three_precisions();
        placement.handle(Event::Seen(others), at(0));
        trace(&mut placement, 0, 4_000);
        let [(range, HoldingState::Ready)] = placement.holdings()[..] else { panic!("{:?}", placement.holdings()) };
        (placement.model().as_bytes()[0], range)
    };
    let ready = |model, range| holder(1, model, range, HoldingState::Ready);

    // All four that are missing, or two of them; units of strangers' models don't count.
    assert_eq!(joined(vec![ready(1, range(0, 3)), holder(2, 9, range(3, 7), HoldingState::Ready)]), (3, range(3, 7)));
    assert_eq!(joined(vec![ready(2, range(0, 5))]), (2, range(5, 7)));
    assert_eq!(joined(vec![ready(3, range(0, 6))]), (1, range(6, 7)));
    // Nothing is missing; or more than it can hold at any precision.
    assert_eq!(joined(vec![ready(3, range(0, 7))]), (1, range(0, 1)));
    assert_eq!(joined(vec![]), (3, range(0, 4)));
}

#[test]
fn a_newcomer_thinks_again_at_which_precision_when_others_come_before_it() {
    let mut placement = at_three_precisions();
    let first = holder(1, 1, range(0, 3), HoldingState::Ready);
    placement.handle(Event::Seen(vec![first.clone()]), at(0));
    expect![[r#"
        1600: announce 3..7
    "#]]
    .assert_eq(&trace(&mut placement, 0, 2_000));
    assert_eq!(placement.model(), ModelId::new([3; 32]));

    placement.handle(Event::Seen(vec![first, holder(2, 3, range(3, 5), HoldingState::Loading)]), at(2_000));

    assert_eq!(placement.holdings(), [(range(5, 7), HoldingState::Intended)]);
    assert_eq!(placement.model(), ModelId::new([2; 32]));
}

#[test]
fn a_pinned_range_is_held_at_the_most_precise_that_fits() {
    let needs =
        |index: u8, bytes| Needs { model: ModelId::new([index; 32]), unit_bytes: vec![Bytes(bytes); 7], ..needs(7) };
    let placed = |budget| {
        let all = vec![needs(1, 400), needs(2, 200)];
        let family = all.iter().map(|needs| needs.model).collect();
        let offer = Offer { budget: Bytes(budget), max_units: None, pinned: Some(range(2, 4)) };
        let config = PlacementConfig::default();
        Placement::at_any_precision(key(0), all[0].model, family, all, offer, config, Time::ZERO)
    };

    assert_eq!(placed(800).unwrap().model(), ModelId::new([1; 32]));
    assert_eq!(placed(799).unwrap().model(), ModelId::new([2; 32]));
    let refused = placed(399).unwrap_err();
    assert_eq!(refused, CannotServe::PinnedTooLarge { range: range(2, 4), expected: Bytes(400), got: Bytes(399) });
}

#[test]
fn of_places_that_are_as_good_one_beside_a_peer_on_the_lan_is_taken() {
    let joined = |is_near: bool| {
        let mut placement = placement(capped(2));
        let neighbour = Other { is_near, ..other(1, &[(range(4, 5), HoldingState::Ready)]) };
        let far = other(2, &[(range(0, 1), HoldingState::Ready), (range(3, 4), HoldingState::Ready)]);
        placement.handle(Event::Seen(vec![neighbour, far]), at(0));
        trace(&mut placement, 0, 4_000);
        placement.holdings()[0].0
    };

    assert_eq!(joined(false), range(1, 3));
    assert_eq!(joined(true), range(5, 7));
}
