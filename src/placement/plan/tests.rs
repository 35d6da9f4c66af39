//! Plans of small models on few machines, whose figures can be counted by hand.

use crate::amounts::Position;
use crate::amounts::Time;
use crate::estimate::Scratch;
use crate::estimate::Unit;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::placement::Decision;
use crate::placement::Event;
use crate::placement::Needs;
use crate::placement::Offer;
use crate::placement::Placement;
use crate::placement::PlacementConfig;
use crate::units::Chain;

use super::*;

const PASSES: Passes = Passes { threads: 1, rows: 1, logits: 0, positions: Position(64) };

/// A second's worth of bytes, in a millisecond.
const PER_MILLI: u64 = 1_000;

/// A model of `units` units of a thousand bytes each, without keys and values.
fn footprint(units: u16) -> Footprint {
    let unit = Unit { weights: Bytes(1_000), active: Bytes(1_000), position: Bytes::ZERO, multiplications: 1 };
    Footprint { units: vec![unit; usize::from(units)], ..Footprint::default() }
}

fn model(units: u16) -> [Precision; 1] {
    [Precision { format: WeightFormat::Q8_0, footprint: footprint(units) }]
}

/// A machine for so many thousand bytes, that reads so many thousand in a millisecond.
fn machine(site: usize, thousands: u64, speed: u64) -> Machine {
    Machine {
        name: format!("{site}-{thousands}-{speed}"),
        site,
        memory: Bytes(1_000 * thousands),
        bandwidth: 1_000 * speed * PER_MILLI,
        compute: u64::MAX,
        threads: 1,
    }
}

/// Machines of sites that are so many milliseconds from each other; within one it is a fifth.
fn machines(machines: Vec<Machine>, round_trips: &[&[u64]]) -> Machines {
    let link = |(from, to, millis): (usize, usize, u64)| {
        let micros = if from == to { 200 } else { 1_000 * millis };
        Link { round_trip: Span(micros), rate: u64::MAX }
    };
    let links = round_trips
        .iter()
        .enumerate()
        .map(|(from, row)| row.iter().enumerate().map(|(to, millis)| link((from, to, *millis))).collect());
    Machines { machines, links: links.collect() }
}

fn one_site(all: Vec<Machine>) -> Machines {
    machines(all, &[&[0]])
}

fn ranges(planned: &Planned) -> Vec<(usize, String)> {
    let plan = planned.plan.as_ref().expect("there is a chain");
    plan.stages.iter().map(|stage| (stage.machine, stage.range.to_string())).collect()
}

#[test]
fn what_fits_to_the_byte_is_run_and_what_is_one_byte_short_is_named() {
    let exact = machine(0, 4, 1);
    let short = Machine { memory: Bytes(exact.memory.0 - 1), ..exact.clone() };

    let fits = plan(&model(8), &one_site(vec![exact.clone(), exact.clone()]), &PASSES);
    let lacks = plan(&model(8), &one_site(vec![exact, short]), &PASSES);

    assert_eq!(ranges(&fits), [(0, "0..4".to_owned()), (1, "4..8".to_owned())]);
    assert_eq!(lacks.plan, None);
    let missing = UnitRange::new(7, 8).unwrap();
    assert_eq!(lacks.tried[0].shortage, Some(Shortage::Memory { missing, bytes: Bytes(1_000) }));
}

#[test]
fn scratch_keys_and_values_count_against_every_machine() {
    let mut model = model(4);
    let [Precision { footprint, .. }] = &mut model;
    footprint.scratch = Scratch { row: Bytes(500), ..Scratch::default() };
    footprint.units.iter_mut().for_each(|unit| unit.position = Bytes(10));
    let of = |memory| Machine { memory: Bytes(memory), ..machine(0, 0, 1) };
    let half = 2 * (1_000 + 64 * 10) + 500;

    let fits = plan(&model, &one_site(vec![of(half), of(half)]), &PASSES);
    let lacks = plan(&model, &one_site(vec![of(half), of(half - 1)]), &PASSES);

    assert_eq!(fits.plan.unwrap().stages[0].memory, Bytes(half));
    let missing = UnitRange::new(3, 4).unwrap();
    assert_eq!(lacks.tried[0].shortage, Some(Shortage::Memory { missing, bytes: Bytes(1_000 + 640 + 500) }));
}

#[test]
fn the_fewest_and_fastest_machines_are_taken() {
    // Beside one that holds all, a faster one saves less than two hops take. Where two are needed, the fastest holds what it can.
    let alone = plan(&model(8), &one_site(vec![machine(0, 8, 1), machine(0, 4, 6), machine(0, 8, 5)]), &PASSES);
    let three = [machine(0, 5, 2), machine(0, 6, 1), machine(0, 5, 4)];
    let together = plan(&model(8), &one_site(three.to_vec()), &PASSES);

    assert_eq!(ranges(&alone), [(2, "0..8".to_owned())]);
    assert_eq!(ranges(&together), [(2, "0..5".to_owned()), (0, "5..8".to_owned())]);
    let plan = together.plan.unwrap();
    // 5 / 4 and 3 / 2 milliseconds, and two hops of 0.1.
    assert_eq!(plan.token(), Nanos(1_250_000 + 1_500_000 + 200_000));
    assert_eq!(plan.way(), Nanos(200_000));
}

#[test]
fn neighbours_in_a_chain_are_neighbours_on_a_lan() {
    // Two sites of two machines each, all needed, given in turn: the ring leaves a site once.
    let mixed = vec![machine(0, 2, 1), machine(1, 2, 1), machine(0, 2, 1), machine(1, 2, 1)];

    let planned = plan(&model(8), &machines(mixed, &[&[0, 40], &[40, 0]]), &PASSES);

    let sites: Vec<usize> = ranges(&planned).iter().map(|(machine, _)| machine % 2).collect();
    assert!([vec![0, 0, 1, 1], vec![1, 1, 0, 0]].contains(&sites), "{sites:?}");
    // Twice from site to site, twice within one.
    assert_eq!(planned.plan.unwrap().way(), Nanos(2 * 20_000_000 + 2 * 100_000));
}

#[test]
fn sites_are_passed_in_the_order_of_the_shortest_trips() {
    // Four sites on a line, 10 apart; the ring that goes there and back is 60 long, any other is longer.
    let line: Vec<Vec<u64>> = (0..4_u64).map(|one| (0..4).map(|other| 10 * one.abs_diff(other)).collect()).collect();
    let line: Vec<&[u64]> = line.iter().map(Vec::as_slice).collect();
    let all = [2, 0, 3, 1].map(|site| machine(site, 2, 1)).to_vec();

    let planned = plan(&model(8), &machines(all, &line), &PASSES);

    assert_eq!(planned.plan.unwrap().way(), Nanos(30_000_000));
}

#[test]
fn a_slow_machine_nearby_goes_before_a_fast_one_far_away() {
    let all = || vec![machine(0, 4, 2), machine(0, 4, 1), machine(1, 4, 2)];

    let far = plan(&model(8), &machines(all(), &[&[0, 40], &[40, 0]]), &PASSES);
    let near = plan(&model(8), &machines(all(), &[&[0, 1], &[1, 0]]), &PASSES);

    let used = |planned: &Planned| ranges(planned).iter().map(|(machine, _)| *machine).collect::<BTreeSet<_>>();
    assert_eq!(used(&far), BTreeSet::from([0, 1]));
    assert_eq!(used(&near), BTreeSet::from([0, 2]));
}

#[test]
fn the_most_precise_weights_that_fit_are_taken_and_what_the_others_lack_is_told() {
    let mut large = footprint(4);
    large.units.iter_mut().for_each(|unit| unit.weights = Bytes(2_000));
    let precisions = [
        Precision { format: WeightFormat::F16, footprint: large },
        Precision { format: WeightFormat::Q8_0, footprint: footprint(4) },
        Precision { format: WeightFormat::Q4_0, footprint: footprint(4) },
    ];

    let planned = plan(&precisions, &one_site(vec![machine(0, 5, 1)]), &PASSES);

    let missing = UnitRange::new(2, 4).unwrap();
    let lacks = Tried {
        format: WeightFormat::F16,
        weights: Bytes(8_000),
        shortage: Some(Shortage::Memory { missing, bytes: Bytes(4_000) }),
    };
    let fits = Tried { format: WeightFormat::Q8_0, weights: Bytes(4_000), shortage: None };
    assert_eq!(planned.tried, [lacks, fits]);
    assert_eq!(planned.plan.unwrap().format, WeightFormat::Q8_0);
}

#[test]
fn chains_of_other_machines_are_counted_and_those_without_use_are_named() {
    let all = vec![machine(0, 4, 1), machine(0, 4, 1), machine(0, 4, 1), machine(0, 4, 1), machine(0, 4, 1)];

    let plan = plan(&model(8), &one_site(all), &PASSES).plan.unwrap();

    assert_eq!((plan.copies, plan.unused), (2, vec![4]));
}

#[test]
fn a_chain_has_no_more_stages_than_it_may() {
    let units = u16::try_from(Chain::MAX_STAGES).unwrap() + 44;
    let small = vec![machine(0, 1, 9); usize::from(units)];
    let few = vec![machine(0, 2, 1); 150];

    let too_many = plan(&model(units), &one_site(small.clone()), &PASSES);
    let mixed = plan(&model(units), &one_site([small, few].concat()), &PASSES);

    assert_eq!(too_many.tried[0].shortage, Some(Shortage::Stages { needed: usize::from(units) }));
    // All of the small ones would be faster.
    assert!(mixed.plan.unwrap().stages.len() <= Chain::MAX_STAGES);
}

#[test]
fn without_machines_everything_is_missing() {
    let planned = plan(&model(3), &Machines::default(), &PASSES);

    let missing = UnitRange::new(0, 3).unwrap();
    assert_eq!(planned.tried[0].shortage, Some(Shortage::Memory { missing, bytes: Bytes(3_000) }));
}

#[test]
fn a_prompt_goes_at_the_pace_of_the_slowest_stage() {
    let mut model = model(2);
    let [Precision { footprint, .. }] = &mut model;
    footprint.units.iter_mut().for_each(|unit| unit.multiplications = 1_000);
    // A chunk is 128 thousand multiplications: 128 milliseconds on the slow one, more than its weights take to be read.
    let slow = Machine { compute: 1_000_000, ..machine(0, 1, 1) };

    let plan = plan(&model, &one_site(vec![machine(0, 1, 1), slow]), &PASSES).plan.unwrap();

    assert!((plan.prompt_per_second() - 1_000.0).abs() < 1e-6, "{}", plan.prompt_per_second());
}

/// What placement has a lone peer of so much memory load.
fn placed(footprint: &Footprint, budget: Bytes) -> Option<UnitRange> {
    let needs = Needs {
        model: ModelId::new([1; 32]),
        unit_bytes: (0..footprint.count()).map(|unit| footprint.unit(unit, &PASSES)).collect(),
        shared_ends: footprint.shared_ends,
        reserve: footprint.scratch(&PASSES),
    };
    let offer = Offer { budget, max_units: None, pinned: None };
    let config = PlacementConfig::default();
    let mut placement = Placement::new(PeerKey::new([7; 32]), needs, offer, config, Time::ZERO).ok()?;
    let alone = placement.handle(Event::Seen(Vec::new()), Time::ZERO);
    let later = (0..200).flat_map(|step| placement.handle(Event::Ticked, Time(step * 100_000)));
    alone.into_iter().chain(later).find_map(|decision| match decision {
        Decision::Load(range) => Some(range),
        _ => None,
    })
}

#[test]
fn on_one_machine_the_plan_is_what_placement_then_does() {
    let mut footprint = footprint(6);
    footprint.shared_ends = Bytes(1_000);
    footprint.scratch.row = Bytes(300);
    footprint.units.iter_mut().for_each(|unit| unit.position = Bytes(3));
    let model = [Precision { format: WeightFormat::Q8_0, footprint: footprint.clone() }];

    for budget in (0..8_000).step_by(97).map(Bytes) {
        let alone = Machine { memory: budget, ..machine(0, 0, 1) };
        let planned = plan(&model, &one_site(vec![alone]), &PASSES);

        let held = match (&planned.plan, planned.tried[0].shortage) {
            (Some(plan), _) => Some(plan.stages[0].range),
            (None, Some(Shortage::Memory { missing, .. })) => UnitRange::new(0, missing.start()).ok(),
            (None, shortage) => panic!("{budget}: {shortage:?}"),
        };
        assert_eq!(held, placed(&footprint, budget), "{budget}");
    }
}
