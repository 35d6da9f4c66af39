//! One model at two precisions: an answer keeps to the weights with which it began, and says so if they are too coarse.

use std::collections::BTreeSet;

use crate::amounts::Span;
use crate::ids::RequestId;
use crate::node::config::Precisions;
use crate::node::io::Delivery;
use crate::node::io::GenerateFailure;
use crate::node::io::GenerateSpec;
use crate::node::io::HoldPolicy;
use crate::node::io::Redundancy;
use crate::node::sim::COARSE;
use crate::node::sim::MODEL;
use crate::node::sim::World;
use crate::node::sim::generate;
use crate::node::sim::generate_mixed;
use crate::node::sim::key;
use crate::node::sim::prompt;
use crate::node::sim::range;
use crate::node::tests::mending::after;
use crate::node::tests::mending::patient;
use crate::shape::WeightFormat;
use crate::units::UnitRange;
use crate::units::UnitWeights;

/// What a peer holds of the model: as it is, or quantised.
#[derive(Clone, Copy)]
enum As {
    Source,
    Coarse,
}

fn add(world: &mut World, name: u8, held: &[UnitRange], precision: As) {
    let precisions = match precision {
        As::Source => Precisions { source: true, formats: BTreeSet::new() },
        As::Coarse => Precisions { source: false, formats: [WeightFormat::Q4_0].into() },
    };
    world.add_with(name, |config| config.precisions = precisions);
    world.give(key(name), held.iter().map(|range| HoldPolicy::Pinned(*range)).collect());
}

fn grown(seed: u64, peers: &[(u8, UnitRange, As)]) -> World {
    let mut world = World::new(seed, Span::millis(20));
    world.is_mixed = true;
    for (name, range, precision) in peers {
        add(&mut world, *name, &[*range], *precision);
    }
    add(&mut world, 9, &[], As::Source);
    world.run_for(Span::seconds(3));
    world
}

fn weights(world: &World, request: RequestId) -> Option<UnitWeights> {
    let started = |delivery: &Delivery| match delivery {
        Delivery::Started(_, weights) => Some(weights.clone()),
        _ => None,
    };
    world.deliveries(request).into_iter().find_map(|(_, delivery)| started(delivery))
}

fn ends(world: &mut World, request: RequestId) {
    assert!(world.run_until(Span::seconds(100), |world| world.ended(request)), "no end");
}

fn failure(world: &World, request: RequestId) -> Option<GenerateFailure> {
    world.failure(request).map(|(_, failure)| failure)
}

#[test]
fn the_most_precise_weights_are_taken_and_a_lost_stage_is_replaced_by_the_same() {
    for seed in 0..10 {
        let (low, middle, high) = (range(0, 2), range(2, 4), range(4, 6));
        let held = [
            (1, low, As::Source),
            (2, middle, As::Coarse),
            (3, high, As::Source),
            (4, low, As::Coarse),
            (5, middle, As::Coarse),
            (6, high, As::Coarse),
        ];
        let mut world = grown(seed, &held);
        let request = world.submit(9, patient(100, 40));
        after(&mut world, request, 5 + seed as usize);
        let began = UnitWeights::of_stages([(low, MODEL), (middle, COARSE), (high, MODEL)]);
        assert_eq!(weights(&world, request), Some(began));

        // Whoever of the two holders of the middle it was, the other has the same; the end has only another.
        world.kill(if seed % 2 == 0 { 2 } else { 5 });
        world.kill(3);
        world.run_for(Span::seconds(20));
        assert!(!world.ended(request), "it waits");
        let known = world.tokens(request).len();
        world.run_for(Span::seconds(5));
        assert_eq!(world.tokens(request).len(), known, "nobody else goes on with other weights");
        add(&mut world, 7, &[high], As::Source);
        ends(&mut world, request);

        assert_eq!(world.failure(request), None);
        assert_eq!(world.tokens(request), generate_mixed(&prompt(100), 40, vec![middle]), "seed {seed}");
        assert_ne!(world.tokens(request), generate(&prompt(100), 40));
    }
}

#[test]
fn what_is_coarser_than_is_accepted_is_refused_and_named() {
    let held = [(1, range(0, 4), As::Source), (2, range(4, 6), As::Coarse)];
    let mut world = grown(1, &held);
    let asked = |least| GenerateSpec { min_quant: Some(least), ..patient(10, 8) };

    let refused = world.submit(9, asked(WeightFormat::Q8_0));
    let accepted = world.submit(9, asked(WeightFormat::Q4_0));
    ends(&mut world, refused);
    ends(&mut world, accepted);

    let (asked, found) = (WeightFormat::Q8_0, WeightFormat::Q4_0);
    assert_eq!(failure(&world, refused), Some(GenerateFailure::TooCoarse { asked, found }));
    assert_eq!(world.failure(accepted), None);
    // What nobody holds at any precision is missing, whatever is accepted.
    world.kill(1);
    world.run_for(Span::seconds(60));
    let missing = world.submit(9, GenerateSpec { min_quant: Some(WeightFormat::F32), ..patient(10, 8) });
    ends(&mut world, missing);
    let failure = failure(&world, missing);
    assert!(matches!(failure, Some(GenerateFailure::NoCover { .. })), "{failure:?}");
}

#[test]
fn chains_that_are_compared_compute_with_the_same_weights() {
    let whole = range(0, 6);
    let held = [(1, whole, As::Source), (2, whole, As::Coarse), (3, whole, As::Coarse)];
    let mut world = grown(3, &held);

    let request = world.submit(9, GenerateSpec { redundancy: Redundancy::new(2).unwrap(), ..patient(50, 20) });
    ends(&mut world, request);

    assert_eq!(world.failure(request), None);
    assert_eq!(weights(&world, request), Some(UnitWeights::whole(COARSE, 6)));
    assert_eq!(world.tokens(request), generate_mixed(&prompt(50), 20, vec![whole]));
}
