//! Peers are asked to stop in mid-answer, and the reader does not notice.

use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::RequestId;
use crate::membership::Standing;
use crate::node::io::Delivery;
use crate::node::io::GenerateFailure;
use crate::node::io::Input;
use crate::node::sim::World;
use crate::node::sim::key;
use crate::node::sim::prompt;
use crate::node::sim::range;
use crate::node::sim::spec;
use crate::node::tests::mending::after;
use crate::node::tests::mending::complete;
use crate::node::tests::mending::mended;
use crate::node::tests::mending::patient;
use crate::node::tests::mending::serving;
use crate::node::tests::mending::with_spares;
use crate::node::tests::ring::ring_of_three;

/// The longest pause between two tokens of an answer.
fn longest_pause(world: &World, request: RequestId) -> Span {
    let tokens = world.deliveries(request).into_iter().filter(|(_, what)| matches!(what, Delivery::Token { .. }));
    let times: Vec<Time> = tokens.map(|(at, _)| at).collect();
    times.windows(2).map(|pair| pair[1].since(pair[0])).max().unwrap_or_default()
}

#[test]
fn a_stage_that_leaves_in_mid_answer_is_free_at_once_and_costs_no_token() {
    for stage in 0..3 {
        for seed in 0..10 {
            let mut world = with_spares(seed);
            let request = world.submit(9, patient(100, 60));
            after(&mut world, request, 5 + seed as usize);
            let leaver = serving(&world, request, stage);

            world.input(key(leaver), Input::Drain);

            let began = world.now;
            assert!(world.run_until(Span::seconds(8), |world| world.node(leaver).is_drained()), "seed {seed}");
            assert!(world.now.since(began) <= Span::millis(200), "{}", world.now.since(began));
            complete(&mut world, request, 100, 60);
            let [mended] = &mended(&world, request)[..] else { panic!("one chain takes the place of one") };
            assert_eq!(mended.lost.iter().map(|stage| stage.peer).collect::<Vec<_>>(), [key(leaver)]);
            assert!(longest_pause(&world, request) <= Span::seconds(1), "{}", longest_pause(&world, request));
            let standing = world.node(9).membership().peer(key(leaver), world.now).map(|state| state.standing);
            assert_eq!(standing, Some(Standing::Draining), "nobody is reproached for leaving");
        }
    }
}

#[test]
fn whatever_moment_a_stage_leaves_in_costs_no_token() {
    for stage in 0..3 {
        for moment in 0..30 {
            let mut world = with_spares(moment);
            let request = world.submit(9, patient(400, 12));
            let started = |world: &World| !world.deliveries(request).is_empty();
            assert!(world.run_until(Span::seconds(10), started));
            world.run_for(Span::millis(moment * 15));
            if world.ended(request) {
                continue;
            }

            let leaver = serving(&world, request, stage);
            world.leave(leaver);

            complete(&mut world, request, 400, 12);
        }
    }
}

#[test]
fn two_that_leave_at_once_are_both_replaced() {
    for seed in 0..10 {
        let mut world = with_spares(seed);
        let request = world.submit(9, patient(200, 40));
        after(&mut world, request, 6);
        let (driver, tail) = (serving(&world, request, 0), serving(&world, request, 2));

        world.leave(driver);
        world.run_for(Span::millis(seed * 4));
        world.leave(tail);

        complete(&mut world, request, 200, 40);
    }
}

#[test]
fn a_peer_that_is_two_stages_leaves_with_both() {
    let (driver, middle, tail) = ([range(0, 2)], [range(2, 4)], [range(4, 6)]);
    for seed in 0..6 {
        let mut world = World::grown(seed, Span::millis(10), &[(1, &driver), (2, &middle), (3, &tail), (9, &[])]);
        let request = world.submit(9, patient(100, 80));
        after(&mut world, request, 3);
        // It takes the places of two that die one after the other.
        world.add(4, &[range(0, 6)]);
        world.run_for(Span::millis(400));
        for lost in [2, 3] {
            world.kill(lost);
            let chains = mended(&world, request).len();
            assert!(world.run_until(Span::seconds(5), |world| mended(world, request).len() > chains));
        }
        assert_eq!((serving(&world, request, 1), serving(&world, request, 2)), (4, 4));
        world.add(5, &[range(2, 6)]);
        world.run_for(Span::millis(400));
        assert!(!world.ended(request));

        world.input(key(4), Input::Drain);

        assert!(world.run_until(Span::seconds(8), |world| world.node(4).is_drained()));
        complete(&mut world, request, 100, 80);
    }
}

#[test]
fn without_a_spare_the_answer_goes_on_here_until_the_peer_has_to_go_and_elsewhere_when_there_is_one() {
    let mut world = ring_of_three(3, Span::millis(10));
    world.slow(2, 60);
    let request = world.submit(9, patient(100, 1_500));
    after(&mut world, request, 5);

    world.leave(2);
    world.run_for(Span::seconds(5));
    let before = world.tokens(request).len();
    assert!(before > 20, "{before} tokens: the old chain goes on");
    assert!(mended(&world, request).is_empty() && !world.node(2).is_drained());
    world.add(5, &[range(2, 4)]);
    assert!(world.run_until(Span::seconds(3), |world| !mended(world, request).is_empty()), "a spare came in time");

    world.slow(2, 1);
    complete(&mut world, request, 100, 1_500);
}

#[test]
fn a_peer_whose_place_nobody_takes_goes_at_its_limit_and_the_answer_waits_for_it() {
    let mut world = ring_of_three(3, Span::millis(10));
    world.slow(2, 60);
    let request = world.submit(9, patient(100, 1_500));
    after(&mut world, request, 5);

    world.leave(2);
    let told = |world: &World| world.deliveries(request).iter().any(|(_, what)| matches!(what, Delivery::Waiting(_)));
    let began = world.now;
    assert!(world.run_until(Span::seconds(20), told));

    let waited = world.now.since(began);
    assert!(Span::seconds(8) <= waited && waited <= Span::seconds(9), "{waited}");
    // Its process is started again.
    world.slow(2, 1);
    complete(&mut world, request, 100, 1_500);
}

#[test]
fn the_own_users_answer_ends_in_order_where_it_has_begun_and_none_begins() {
    let all = [range(0, 6)];
    let mut world = World::grown(1, Span::millis(5), &[(1, &all), (2, &all)]);
    let request = world.submit(1, spec(prompt(50), 40));
    after(&mut world, request, 5);

    world.input(key(1), Input::Drain);
    let late = world.submit(1, spec(prompt(5), 4));

    assert_eq!(world.failure(late).map(|(_, failure)| failure), Some(GenerateFailure::Draining));
    assert!(!world.node(1).is_drained());
    complete(&mut world, request, 50, 40);
    assert!(world.node(1).is_drained());
}

#[test]
fn a_peer_that_nobody_needs_may_go_at_once() {
    let mut world = ring_of_three(1, Span::millis(5));
    assert!(!world.node(2).is_drained());

    world.input(key(2), Input::Drain);

    assert!(world.node(2).is_drained());
}
