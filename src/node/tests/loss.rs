//! Peers die, freeze, decline and cannot be dialled.

use crate::amounts::Span;
use crate::ids::PeerKey;
use crate::ids::RequestId;
use crate::membership::Standing;
use crate::node::io::Delivery;
use crate::node::io::GenerateFailure;
use crate::node::io::Input;
use crate::node::sim::World;
use crate::node::sim::generate;
use crate::node::sim::key;
use crate::node::sim::prompt;
use crate::node::sim::range;
use crate::node::sim::spec;
use crate::node::tests::ring::ring_of_three;
use crate::wire::control::DeclineReason;

/// A generation that has brought a few tokens.
fn under_way(world: &mut World) -> RequestId {
    let request = world.submit(9, spec(prompt(100), 1_500));
    assert!(world.run_until(Span::seconds(60), |world| world.tokens(request).len() == 5));
    request
}

/// Waits for the failure and names the stage that was lost, and how long that took.
fn lost(world: &mut World, request: RequestId) -> (GenerateFailure, Span) {
    let began = world.now;
    assert!(world.run_until(Span::seconds(30), |world| world.ended(request)), "no end in half a minute");
    let (at, failure) = world.failure(request).expect("never as if finished");
    (failure, at.since(began))
}

fn stage_lost(name: u8) -> GenerateFailure {
    let start = (u16::from(name) - 1) * 2;
    GenerateFailure::StageLost { peer: key(name), range: range(start, start + 2) }
}

#[test]
fn a_stage_that_dies_in_mid_answer_is_named_at_once() {
    for victim in [1, 2, 3] {
        for seed in 0..20 {
            let mut world = ring_of_three(seed, Span::millis(30));
            let request = under_way(&mut world);

            world.kill(victim);
            let (failure, took) = lost(&mut world, request);

            assert_eq!(failure, stage_lost(victim), "seed {seed}");
            assert!(took < Span::seconds(1), "{took}, seed {seed}");
            world.run_for(Span::seconds(20));
            world.assert_idle();
        }
    }
}

#[test]
fn a_stage_that_freezes_in_mid_answer_is_named_within_five_seconds() {
    for victim in [1, 2, 3] {
        for seed in 0..10 {
            let mut world = ring_of_three(seed, Span::millis(30));
            let request = under_way(&mut world);

            world.freeze(victim);
            let (failure, took) = lost(&mut world, request);

            assert_eq!(failure, stage_lost(victim), "seed {seed}");
            assert!(took <= Span::seconds(5), "{took}, seed {seed}");
            world.run_for(Span::seconds(20));
            world.assert_idle();
            world.thaw(victim);
            world.run_for(Span::seconds(30));
            world.assert_idle();
        }
    }
}

#[test]
fn a_stage_that_dies_during_the_prompt_is_named() {
    for victim in [1, 2, 3] {
        for after in 0..12 {
            let mut world = ring_of_three(after, Span::millis(10));
            let request = world.submit(9, spec(prompt(1_900), 10));
            world.run_for(Span::millis(after * 10));

            world.kill(victim);
            let (failure, took) = lost(&mut world, request);

            // While leasing, the loss leaves no chain; afterwards a stage was lost.
            let start = (u16::from(victim) - 1) * 2;
            let unreachable = GenerateFailure::Unreachable { peer: key(victim), range: range(start, start + 2) };
            let expected = failure == stage_lost(victim) || failure == unreachable;
            assert!(expected, "{failure}");
            assert!(took <= Span::seconds(5), "{took}");
            world.run_for(Span::seconds(20));
            world.assert_idle();
        }
    }
}

#[test]
fn a_requester_that_dies_leaves_nothing_behind() {
    let mut world = ring_of_three(1, Span::millis(10));
    under_way(&mut world);

    world.kill(9);
    world.run_for(Span::millis(100));

    world.assert_idle();
}

#[test]
fn a_requester_that_freezes_leaves_nothing_behind_once_its_leases_are_over() {
    let mut world = ring_of_three(1, Span::millis(10));
    under_way(&mut world);

    world.freeze(9);
    world.run_for(Span::seconds(30));

    world.assert_idle();
}

#[test]
fn the_next_prompt_is_answered_once_the_range_is_covered_again() {
    let mut world = ring_of_three(2, Span::millis(10));
    let request = under_way(&mut world);
    world.kill(2);
    lost(&mut world, request);
    world.run_for(Span::seconds(1));
    let none = world.submit(9, spec(prompt(40), 20));
    assert!(matches!(world.failure(none), Some((_, GenerateFailure::NoCover { .. }))));

    world.add(4, &[range(2, 4)]);
    world.run_for(Span::seconds(3));
    let next = world.submit(9, spec(prompt(40), 20));

    world.run_until(Span::seconds(20), |world| world.ended(next));
    assert_eq!(world.tokens(next), generate(&prompt(40), 20));
    world.run_for(Span::seconds(3));
    world.assert_idle();
}

/// Two holders of the middle, so that one can fail.
fn with_spare(seed: u64) -> World {
    let (driver, middle, tail) = ([range(0, 2)], [range(2, 4)], [range(4, 6)]);
    World::grown(seed, Span::millis(10), &[(1, &driver), (2, &middle), (3, &tail), (4, &middle), (9, &[])])
}

fn answered(world: &mut World) {
    let request = world.submit(9, spec(prompt(60), 20));
    assert!(world.run_until(Span::seconds(30), |world| world.ended(request)));
    assert_eq!(world.tokens(request), generate(&prompt(60), 20), "{:?}", world.failure(request));
    world.run_for(Span::seconds(12));
    world.assert_idle();
}

#[test]
fn another_holder_takes_the_place_of_one_that_declines() {
    for leaving in [2, 4] {
        for seed in 0..6 {
            let mut world = with_spare(seed);
            // Its word that it is leaving has not come round yet.
            world.input(key(leaving), Input::Drain);
            answered(&mut world);
        }
    }
}

#[test]
fn another_holder_takes_the_place_of_one_that_cannot_be_dialled() {
    for gone in [2, 4] {
        for seed in 0..6 {
            let mut world = with_spare(seed);
            world.undialable.insert(key(gone));
            answered(&mut world);
        }
    }
}

#[test]
fn another_holder_takes_the_place_of_one_that_does_not_answer() {
    for silent in [2, 4] {
        for seed in 0..6 {
            let mut world = with_spare(seed);
            world.freeze(silent);
            let request = world.submit(9, spec(prompt(60), 20));
            assert!(world.run_until(Span::seconds(30), |world| world.ended(request)));
            assert_eq!(world.tokens(request), generate(&prompt(60), 20));
        }
    }
}

/// The peers of the chain that answered.
fn chain_of(world: &World, request: RequestId) -> Vec<PeerKey> {
    let chain =
        |delivery: &Delivery| if let Delivery::Started(chain, _) = delivery { Some(chain.clone()) } else { None };
    let chain = world.deliveries(request).into_iter().find_map(|(_, delivery)| chain(delivery));
    chain.into_iter().flat_map(|chain| chain.stages().to_vec()).map(|stage| stage.peer).collect()
}

#[test]
fn a_hop_that_fails_is_gone_round_and_neither_of_its_ends_is() {
    for (from, to) in [(1, 2), (1, 4), (2, 3), (4, 3)] {
        for seed in 0..6 {
            // A second driver, so that either end of the hop could be replaced.
            let mut world = with_spare(seed);
            world.add(5, &[range(0, 2)]);
            world.run_for(Span::seconds(3));
            world.severed.insert((key(from), key(to)));
            let request = world.submit(9, spec(prompt(60), 20));

            assert!(world.run_until(Span::seconds(30), |world| world.ended(request)));

            assert_eq!(world.tokens(request), generate(&prompt(60), 20), "{:?}", world.failure(request));
            let chain = chain_of(&world, request);
            assert!(!chain.windows(2).any(|hop| hop == [key(from), key(to)]), "{chain:?}");
            assert_eq!(world.node(9).membership().peer(key(to), world.now).unwrap().standing, Standing::Offered);
        }
    }
}

#[test]
fn a_hop_that_nothing_goes_round_is_waited_for() {
    for hop in [(1, 2), (2, 3), (3, 1)] {
        for seed in 0..6 {
            let mut world = ring_of_three(seed, Span::millis(10));
            let hop = (key(hop.0), key(hop.1));
            world.severed.insert(hop);
            let request = world.submit(9, spec(prompt(60), 20));
            world.run_for(Span::millis(1_500));
            assert!(!world.ended(request), "{:?}", world.failure(request));

            world.severed.remove(&hop);

            assert!(world.run_until(Span::seconds(30), |world| world.ended(request)));
            assert_eq!(world.tokens(request), generate(&prompt(60), 20), "{:?}", world.failure(request));
            world.run_for(Span::seconds(12));
            world.assert_idle();
        }
    }
}

#[test]
fn a_hop_that_stays_broken_is_named_with_both_its_ends() {
    for seed in 0..6 {
        let mut world = ring_of_three(seed, Span::millis(10));
        world.severed.insert((key(1), key(2)));
        let (request, began) = (world.submit(9, spec(prompt(60), 20)), world.now);

        assert!(world.run_until(Span::seconds(30), |world| world.ended(request)));

        let (at, failure) = world.failure(request).unwrap();
        assert_eq!(failure, GenerateFailure::HopFailed { from: key(1), to: key(2), range: range(2, 4) });
        assert!(at.since(began) <= Span::seconds(10), "{}", at.since(began));
        world.run_for(Span::seconds(12));
        world.assert_idle();
    }
}

#[test]
fn a_refusal_without_another_holder_is_told_with_its_reason() {
    let mut world = ring_of_three(3, Span::millis(10));
    world.input(key(2), Input::Drain);

    let request = world.submit(9, spec(prompt(60), 20));
    world.run_for(Span::seconds(2));

    let failure = world.failure(request).map(|(_, failure)| failure);
    let (peer, reason) = (key(2), DeclineReason::Draining);
    let declined = GenerateFailure::Declined { peer, range: range(2, 4), reason, retry_after: None };
    assert_eq!(failure, Some(declined));
    world.run_for(Span::seconds(12));
    world.assert_idle();
}

#[test]
fn memory_that_is_leased_is_not_leased_again() {
    let mut world = World::new(1, Span::ZERO);
    world.add_with(1, |config| config.memory = crate::amounts::Bytes(4_100_000));
    let facts = std::sync::Arc::new({
        world.add(9, &[]);
        world.node(9).models().next().unwrap().clone()
    });
    world.input(key(1), Input::ModelKnown(facts));
    let policy = crate::node::io::HoldPolicy::Pinned(range(0, 6));
    world.input(key(1), Input::Serve { model: crate::node::sim::MODEL, policy });
    world.run_for(Span::seconds(3));
    assert_eq!(world.node(1).refused(crate::node::sim::MODEL), None);

    world.slow(1, 100);
    let requests: Vec<RequestId> = (0..8).map(|_| world.submit(9, spec(prompt(1_000), 1_000))).collect();
    world.run_for(Span::millis(1_500));

    // The last part of it is kept for others.
    let full = |failure: &GenerateFailure| match failure {
        GenerateFailure::Declined { reason, .. } => matches!(reason, DeclineReason::NoMemory | DeclineReason::Busy),
        _ => false,
    };
    let declined = requests.iter().filter_map(|&request| world.failure(request)).filter(|(_, failure)| full(failure));
    assert!(declined.count() > 0);
    assert!(world.node(1).sessions() > 0);
    assert!(world.node(1).cache() <= world.node(1).memory());
}
