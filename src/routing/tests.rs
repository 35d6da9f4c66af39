use expect_test::expect;
use proptest::prelude::*;

use super::*;

fn key(index: u16) -> PeerKey {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&index.to_be_bytes());
    PeerKey::new(bytes)
}

fn range(start: u16, end: u16) -> UnitRange {
    UnitRange::new(start, end).unwrap()
}

const WEIGHTS: crate::ids::ModelId = crate::ids::ModelId::new([7; 32]);

fn holder(peer: u16, start: u16, end: u16) -> Holder {
    Holder {
        peer: key(peer),
        range: range(start, end),
        weights: WEIGHTS,
        coarser: 0,
        per_unit: Span::millis(1),
        queue: Span::ZERO,
    }
}

fn view(units: u16, holders: Vec<Holder>) -> View {
    View {
        me: key(0),
        units,
        holders,
        round_trips: BTreeMap::new(),
        default_round_trip: Span::millis(20),
        default_per_unit: Span::millis(2),
        avoid: BTreeSet::new(),
        severed: BTreeSet::new(),
        trust: Trust::Any,
        seed: 0,
    }
}

fn show(plan: &Plan) -> String {
    let number = |peer: PeerKey| u16::from_be_bytes([peer.as_bytes()[0], peer.as_bytes()[1]]);
    let mut lines = String::new();
    for ((_, stage), standby) in plan.chain.iter().zip(&plan.standby) {
        let standby = standby.map_or("nobody".to_owned(), |peer| number(peer).to_string());
        lines += &format!("peer {} holds {}, standby {standby}\n", number(stage.peer), stage.range);
    }
    let Cost { compute, queue, trips, .. } = plan.cost;
    lines + &format!("compute {compute}, queue {queue}, trips {trips}\n")
}

#[test]
fn of_two_holders_the_one_with_the_finer_weights_is_taken_whatever_it_costs() {
    let coarse = Holder { weights: crate::ids::ModelId::new([8; 32]), coarser: 1, ..holder(1, 0, 7) };
    let fine = Holder { per_unit: Span::millis(900), ..holder(2, 2, 5) };
    let view = view(7, vec![coarse, fine]);

    let plan = plan(&view).unwrap();

    let ends: Vec<u16> = plan.weights.runs().iter().map(|(run, _)| run.end()).collect();
    assert_eq!(ends, [2, 5, 7]);
    assert_eq!(plan.weights.of(range(2, 5)), Some(WEIGHTS));
    // The cost is that of the time alone.
    assert!(plan.cost.total() < Span::seconds(5));
}

#[test]
fn a_chain_is_joined_from_parts_of_overlapping_holdings() {
    let view = view(7, vec![holder(1, 0, 4), holder(2, 3, 7), holder(3, 3, 5)]);

    expect![[r#"
        peer 1 holds 0..3, standby nobody
        peer 2 holds 3..7, standby nobody
        compute 7.0 ms, queue 0 µs, trips 20.0 ms
    "#]]
    .assert_eq(&show(&plan(&view).unwrap()));
}

#[test]
fn a_single_holder_needs_no_trip() {
    let view = view(7, vec![holder(1, 0, 4), holder(2, 4, 7), holder(3, 0, 7)]);

    expect![[r#"
        peer 3 holds 0..7, standby nobody
        compute 7.0 ms, queue 0 µs, trips 0 µs
    "#]]
    .assert_eq(&show(&plan(&view).unwrap()));
}

#[test]
fn a_busy_or_slow_or_far_holder_is_gone_round() {
    let slow = Holder { per_unit: Span::millis(30), ..holder(1, 0, 7) };
    let busy = Holder { queue: Span::millis(300), ..holder(2, 0, 7) };
    let mut view = view(7, vec![slow, busy, holder(3, 0, 3), holder(4, 3, 7), holder(5, 3, 7)]);
    view.round_trips.insert(pair(key(3), key(5)), Span::millis(2));
    view.round_trips.insert(pair(key(3), key(4)), Span::millis(90));

    expect![[r#"
        peer 3 holds 0..3, standby 1
        peer 5 holds 3..7, standby 4
        compute 7.0 ms, queue 0 µs, trips 2.0 ms
    "#]]
    .assert_eq(&show(&plan(&view).unwrap()));
}

#[test]
fn a_slow_measured_link_is_not_mistaken_for_the_default() {
    let mut view = view(4, vec![holder(1, 0, 2), holder(2, 2, 4), holder(3, 2, 4)]);
    view.round_trips.insert(pair(key(1), key(2)), Span::millis(500));

    let plan = plan(&view).unwrap();

    assert_eq!(plan.chain.stages()[1].peer, key(3));
}

#[test]
fn fewer_stages_are_preferred_among_near_equals() {
    let fast = Holder { per_unit: Span(999), ..holder(3, 2, 4) };
    let mut view = view(6, vec![holder(1, 0, 4), holder(2, 4, 6), fast]);
    view.default_round_trip = Span::ZERO;

    let plan = plan(&view).unwrap();

    assert_eq!(plan.chain.stages().len(), 2);
}

#[test]
fn a_hop_that_failed_is_gone_round_and_its_ends_are_not() {
    let slow = Holder { per_unit: Span::millis(50), ..holder(1, 2, 4) };
    let mut view = view(4, vec![holder(1, 0, 2), holder(2, 2, 4), slow]);
    assert_eq!(plan(&view).unwrap().chain.stages().len(), 2);

    view.severed.insert((key(2), key(1)));
    let alone = plan(&view).unwrap().chain;
    assert!(alone.stages().iter().all(|stage| stage.peer == key(1)), "{alone:?}");

    view.holders.pop();
    assert_eq!(plan(&view), Err(NoRoute::Severed));
}

#[test]
fn missing_units_are_told_from_excluded_ones() {
    let mut view = view(9, vec![holder(0, 0, 2), holder(1, 2, 4), holder(2, 3, 5), holder(3, 6, 8)]);
    view.avoid.insert(key(3));
    view.trust = Trust::Only(BTreeSet::from([key(1), key(3)]));

    let refused = plan(&view).unwrap_err();

    let (missing, excluded) = (vec![range(5, 6), range(8, 9)], vec![range(4, 5), range(6, 8)]);
    assert_eq!(refused, NoRoute::Uncovered { missing, excluded });
    expect!["no chain: nobody holds units [5..6, 8..9], only excluded peers hold units [4..5, 6..8]"]
        .assert_eq(&refused.to_string());
}

#[test]
fn a_model_without_holders_or_units_has_no_route() {
    let nobody = NoRoute::Uncovered { missing: vec![range(0, 7)], excluded: vec![] };
    assert_eq!(plan(&view(7, vec![])), Err(nobody));
    assert!(plan(&view(0, vec![])).is_err());
}

#[test]
fn a_chain_beyond_the_longest_is_refused() {
    let view = view(300, (0..300).map(|unit| holder(unit, unit, unit + 1)).collect());

    assert_eq!(plan(&view), Err(NoRoute::TooLong { got: 300 }));
}

#[test]
fn equals_share_the_load_and_one_seed_always_plans_the_same() {
    let mut view = view(4, (1..=4).map(|peer| holder(peer, 0, 4)).collect());
    let mut chosen: BTreeMap<PeerKey, u32> = BTreeMap::new();
    for seed in 0..400 {
        view.seed = seed;
        let plan = plan(&view).unwrap();
        *chosen.entry(plan.chain.stages()[0].peer).or_default() += 1;
        view.holders.rotate_left(1);
        assert_eq!(super::plan(&view), Ok(plan));
    }

    assert_eq!(chosen.len(), 4);
    assert!(chosen.values().all(|count| (60..=140).contains(count)), "{chosen:?}");
}

#[test]
fn a_thousand_holders_of_a_deep_model_are_planned() {
    let mut dice = 1_u64;
    let mut roll = |sides: u64| {
        dice = mixed(dice, key(7));
        dice % sides
    };
    let mut view = view(128, Vec::new());
    for peer in 0..1_000 {
        let start = u16::try_from(roll(120)).unwrap();
        let end = (start + 8 + u16::try_from(roll(40)).unwrap()).min(128);
        let (per_unit, queue) = (Span(500 + roll(1_000)), Span(roll(5_000)));
        view.holders.push(Holder {
            peer: key(peer),
            range: range(start, end),
            weights: WEIGHTS,
            coarser: 0,
            per_unit,
            queue,
        });
        for _ in 0..8 {
            let other = u16::try_from(roll(1_000)).unwrap();
            view.round_trips.insert(pair(key(peer), key(other)), Span(roll(60_000)));
        }
    }

    let plan = plan(&view).unwrap();

    assert_eq!(plan.chain.units(), 128);
    // Any chain by hand is dearer: always on with the holder that reaches farthest.
    let mut reached = 0;
    let mut greedy = Vec::new();
    while reached < 128 {
        let farthest =
            view.holders.iter().filter(|holder| holder.range.contains(reached)).max_by_key(|it| it.range.end());
        let farthest = *farthest.unwrap();
        greedy.push((farthest, range(reached, farthest.range.end())));
        reached = farthest.range.end();
    }
    assert!(plan.cost.total() <= cost(&view, &greedy).total());
}

/// The cost of the cheapest chain, by trying them all.
fn brute_force(view: &View, usable: &[Holder], chosen: &mut Vec<(Holder, UnitRange)>, unit: u16) -> Option<Span> {
    let peers = || chosen.iter().map(|(holder, _)| holder.peer);
    if unit == view.units {
        let hops = peers().zip(peers().cycle().skip(1));
        let whole = hops.into_iter().all(|(from, to)| from == to || !view.severed.contains(&(from, to)));
        return whole.then(|| cost(view, chosen).total());
    }
    let mut best = None;
    for holder in usable.iter().filter(|holder| holder.range.contains(unit)) {
        for end in unit + 1..=holder.range.end().min(view.units) {
            chosen.push((*holder, range(unit, end)));
            let found = brute_force(view, usable, chosen, end);
            chosen.pop();
            best = [best, found].into_iter().flatten().min();
        }
    }
    best
}

fn small_views() -> impl Strategy<Value = View> {
    let holder = (0..4_u16, 0..5_u16, 1..6_u16, 0..3_000_u64, 0..3_000_u64);
    let trip = (0..4_u16, 0..4_u16, 0..9_000_u64);
    let parts = (
        1..5_u16,
        proptest::collection::vec(holder, 0..6),
        proptest::collection::vec(trip, 0..5),
        0..5_000_u64,
        any::<u64>(),
        proptest::collection::btree_set(0..5_u16, 0..2),
        proptest::option::of(proptest::collection::btree_set(0..4_u16, 1..4)),
        proptest::collection::btree_set((0..4_u16, 0..4_u16), 0..4),
    );
    parts.prop_map(|(units, holders, trips, default, seed, avoid, trusted, severed)| View {
        holders: holders
            .into_iter()
            .map(|(peer, start, count, per_unit, queue)| Holder {
                weights: WEIGHTS,
                coarser: 0,
                peer: key(peer),
                range: range(start, start + count),
                per_unit: Span(per_unit),
                queue: Span(queue),
            })
            .collect(),
        round_trips: trips.into_iter().map(|(one, other, span)| (pair(key(one), key(other)), Span(span))).collect(),
        default_round_trip: Span(default),
        avoid: avoid.into_iter().map(key).collect(),
        severed: severed.into_iter().map(|(from, to)| (key(from), key(to))).collect(),
        trust: trusted.map_or(Trust::Any, |keys| Trust::Only(keys.into_iter().map(key).collect())),
        seed,
        ..view(units, Vec::new())
    })
}

proptest! {
    #[test]
    fn no_chain_is_cheaper_than_the_planned_one(view in small_views()) {
        let usable: Vec<_> = view.holders.iter().filter(|holder| view.usable(holder)).copied().collect();

        let cheapest = brute_force(&view, &usable, &mut Vec::new(), 0);

        match plan(&view) {
            Ok(plan) => {
                prop_assert_eq!(Some(plan.cost.total()), cheapest);
                for ((_, stage), standby) in plan.chain.iter().zip(&plan.standby) {
                    let holds = |peer| usable.iter().any(|it| it.peer == peer && it.range.covers(stage.range));
                    prop_assert!(holds(stage.peer));
                    prop_assert!(standby.is_none_or(|standby| standby != stage.peer && holds(standby)));
                }
            }
            Err(NoRoute::Uncovered { missing, excluded }) => {
                prop_assert_eq!(cheapest, None);
                prop_assert!(!missing.is_empty() || !excluded.is_empty());
            }
            Err(NoRoute::Severed) => {
                prop_assert_eq!(cheapest, None);
                prop_assert!(cover(view.units, &usable).is_full() && !view.severed.is_empty());
            }
            Err(NoRoute::TooLong { .. }) => prop_assert!(false, "too long"),
        }
    }
}
