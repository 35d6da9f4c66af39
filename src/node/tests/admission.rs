//! More is asked for than a peer can give: who gets it, and what the others hear.

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::ids::RequestId;
use crate::ids::StreamId;
use crate::node::config::Limits;
use crate::node::config::Serves;
use crate::node::io::Delivery;
use crate::node::io::GenerateFailure;
use crate::node::io::HoldPolicy;
use crate::node::io::StreamInput;
use crate::node::sim::World;
use crate::node::sim::generate;
use crate::node::sim::key;
use crate::node::sim::prompt;
use crate::node::sim::range;
use crate::node::sim::spec;
use crate::node::tests::mending::complete;
use crate::node::tests::mending::mended;
use crate::node::tests::mending::patient;
use crate::wire::control::DeclineReason;

/// One holder of everything, with these limits, and two requesters: 8 and 9.
fn one_holder(limits: Limits) -> World {
    let mut world = World::new(1, Span::millis(4));
    world.add_with(1, |config| config.limits = limits);
    world.give(key(1), vec![HoldPolicy::Pinned(range(0, 6))]);
    world.add(8, &[]);
    world.add(9, &[]);
    world.run_for(Span::seconds(3));
    world
}

fn leases(leases: usize) -> Limits {
    Limits { leases, ..Limits::default() }
}

/// Asks for so many answers of some length.
fn many(world: &mut World, name: u8, count: u32) -> Vec<RequestId> {
    (0..count).map(|index| world.submit(name, spec(prompt(40 + index), 400))).collect()
}

fn refused(world: &World, request: RequestId) -> Option<(DeclineReason, Option<Span>)> {
    match world.failure(request)?.1 {
        GenerateFailure::Declined { reason, retry_after, .. } => Some((reason, retry_after)),
        other => panic!("expected a refusal, got {other}"),
    }
}

#[test]
fn where_all_are_busy_the_user_hears_within_a_second_or_so_when_to_ask_again() {
    let mut world = one_holder(leases(2));
    world.slow(1, 20);
    let first = many(&mut world, 9, 1);
    let second = many(&mut world, 8, 1);
    world.run_for(Span::millis(500));

    let (late, began) = (world.submit(9, spec(prompt(30), 5)), world.now);
    assert!(world.run_until(Span::seconds(5), |world| world.ended(late)));

    let (at, _) = world.failure(late).unwrap();
    assert!(at.since(began) <= Span::millis(1_500), "{}", at.since(began));
    let (reason, retry_after) = refused(&world, late).unwrap();
    // Some hundred positions are left to each, at a millisecond or so.
    let retry_after = retry_after.unwrap();
    assert_eq!(reason, DeclineReason::Busy);
    assert!(Span::millis(100) <= retry_after && retry_after < Span::seconds(1), "{retry_after}");
    let ended = |world: &World| first.iter().chain(&second).all(|request| world.ended(*request));
    assert!(world.run_until(Span::seconds(60), ended));
    complete_short(&mut world);
}

/// Whoever asks when somebody has gone is answered.
fn complete_short(world: &mut World) {
    let again = world.submit(9, spec(prompt(30), 5));
    assert!(world.run_until(Span::seconds(10), |world| world.ended(again)));
    assert_eq!(world.tokens(again), generate(&prompt(30), 5), "{:?}", world.failure(again));
    world.run_for(Span::seconds(2));
    world.assert_idle();
    assert_eq!(world.node(1).memory_reserved(), Bytes::ZERO);
}

#[test]
fn whoever_asks_for_a_peer_that_is_soon_free_is_answered_without_asking_again() {
    let mut world = one_holder(leases(1));
    let first = world.submit(8, spec(prompt(30), 12));
    assert!(world.run_until(Span::seconds(5), |world| world.tokens(first).len() >= 2));

    let second = world.submit(9, spec(prompt(20), 5));
    assert!(world.run_until(Span::seconds(10), |world| world.ended(second)));

    assert_eq!(world.tokens(second), generate(&prompt(20), 5), "{:?}", world.failure(second));
}

#[test]
fn the_greedy_leave_something_to_others_and_to_the_peers_own_user() {
    let mut world = one_holder(leases(12));
    world.slow(1, 20);
    let greedy = many(&mut world, 9, 20);
    world.run_for(Span::millis(100));
    let held = world.node(1).sessions();
    assert_eq!(held, 6, "half");

    let other = many(&mut world, 8, 2);
    let own = many(&mut world, 1, 4);
    world.run_for(Span::millis(100));
    let sessions = world.node(1).sessions();
    world.run_for(Span::millis(1_200));

    assert!(greedy.iter().any(|request| refused(&world, *request).is_some()));
    assert!(other.iter().chain(&own).all(|request| refused(&world, *request).is_none()));
    assert_eq!(sessions, 12);
}

/// New tokens of an answer that is still under way when it is to make way.
const LONG: u32 = 600;

/// A prompt with such an answer.
fn long() -> u32 {
    (20..).find(|length| generate(&prompt(*length), LONG).len() == LONG as usize).unwrap()
}

/// Peer 1, which is slow and has one lease to give, and 8 has it.
fn one_taken(factor: u64) -> (World, RequestId) {
    let mut world = one_holder(leases(1));
    world.slow(1, factor);
    let others = world.submit(8, patient(long(), LONG));
    assert!(world.run_until(Span::seconds(5), |world| world.tokens(others).len() >= 2));
    (world, others)
}

#[test]
fn others_make_way_for_a_peers_own_work_and_go_on_elsewhere() {
    let (mut world, others) = one_taken(40);
    // It computes for 8 only.
    world.add_with(2, |config| (config.serves, config.allowed) = (Serves::Allowed, [key(8)].into()));
    world.give(key(2), vec![HoldPolicy::Pinned(range(0, 6))]);
    world.run_for(Span::seconds(1));
    assert!(!world.ended(others), "it is still under way");

    let (own, began) = (world.submit(1, spec(prompt(20), 10)), world.now);
    assert!(world.run_until(Span::seconds(5), |world| world.ended(own)));

    assert_eq!(world.tokens(own), generate(&prompt(20), 10), "{:?}", world.failure(own));
    assert!(world.now.since(began) <= Span::seconds(1), "{}", world.now.since(began));
    assert_eq!(mended(&world, others).len(), 1);
    complete(&mut world, others, long(), LONG);
}

#[test]
fn where_nobody_can_take_over_others_make_way_after_a_while_and_wait() {
    let (mut world, others) = one_taken(100);

    let refused = world.submit(1, spec(prompt(20), 10));
    assert!(world.run_until(Span::seconds(2), |world| world.ended(refused)));
    assert!(self::refused(&world, refused).is_some_and(|(_, retry_after)| retry_after.is_some()));
    let waits =
        |world: &World| world.deliveries(others).iter().any(|(_, delivery)| matches!(delivery, Delivery::Waiting(_)));
    assert!(world.run_until(Span::seconds(9), waits), "it was ended");
    let own = world.submit(1, spec(prompt(20), 10));
    assert!(world.run_until(Span::seconds(5), |world| world.ended(own)));

    assert_eq!(world.tokens(own), generate(&prompt(20), 10), "{:?}", world.failure(own));
    complete(&mut world, others, long(), LONG);
}

#[test]
fn memory_for_journals_is_reserved_as_long_as_there_is_some_and_caches_need_none_of_it() {
    // A row has 16 bytes, so the first of these two fits in the worst case and the other does not.
    let journals = Bytes(16 * 500);
    let (driver, others) = ([range(0, 2)], [range(2, 6)]);
    let mut world = World::new(5, Span::millis(4));
    world.add_with(1, |config| config.limits.journals = journals);
    world.give(key(1), vec![HoldPolicy::Pinned(driver[0])]);
    world.add(2, &others);
    world.add(3, &others);
    world.add(9, &[]);
    world.run_for(Span::seconds(3));
    world.slow(1, 10);
    let first = world.submit(9, patient(100, 390));
    let second = world.submit(9, patient(110, 300));
    world.run_for(Span::millis(600));
    let node = world.node(1);
    assert_eq!((node.sessions(), node.memory_reserved()), (2, node.cache().plus(Bytes(16 * 490))));

    // Whoever loses its neighbour goes on, with a journal or without one.
    world.kill(2);

    complete(&mut world, first, 100, 390);
    complete(&mut world, second, 110, 300);
    assert_eq!(world.node(1).memory_reserved(), Bytes::ZERO);
}

#[test]
fn when_too_many_streams_wait_for_their_offer_the_oldest_of_whoever_has_most_goes() {
    let mut world = one_holder(Limits::default());
    let arrive = |world: &mut World, name: u8| world.inject(1, StreamInput::ControlArrived(key(name)));
    let crowd: Vec<StreamId> = (0..256).map(|_| arrive(&mut world, 50)).collect();
    let others: Vec<StreamId> = (0..256).map(|index| arrive(&mut world, 51 + index as u8 % 2)).collect();
    assert!(world.answers.is_empty());

    let late = arrive(&mut world, 60);
    let more = arrive(&mut world, 50);

    assert_eq!(world.answers, [(crowd[0], None), (more, None)], "a newcomer finds a place, and the crowd none");
    assert!(!others.contains(&crowd[0]) && late != crowd[0]);
}
