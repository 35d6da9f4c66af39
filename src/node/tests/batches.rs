//! Stages compute together what comes together, and at the same time as their neighbours.

use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::RequestId;
use crate::node::io::Delivery;
use crate::node::sim::World;
use crate::node::sim::generate;
use crate::node::sim::prompt;
use crate::node::sim::range;
use crate::node::sim::spec;

/// The toy engine's time for one position.
const PACE: u64 = 50;

fn end(world: &mut World, request: RequestId) {
    assert!(world.run_until(Span::seconds(60), |world| world.ended(request)), "no end in a minute");
}

fn busy(batches: &[(Time, Time, usize)]) -> u64 {
    batches.iter().map(|(began, ended, _)| ended.since(*began).0).sum()
}

#[test]
fn two_stages_compute_a_prompt_at_the_same_time() {
    let mut world = World::grown(1, Span::ZERO, &[(1, &[range(0, 3)]), (2, &[range(3, 6)]), (9, &[])]);

    let request = world.submit(9, spec(prompt(1_000), 1));
    end(&mut world, request);

    assert_eq!(world.tokens(request), generate(&prompt(1_000), 1));
    let (driver, tail) = (world.batches(1), world.batches(2));
    assert_eq!((busy(driver), busy(tail)), (1_000 * PACE, 1_000 * PACE));
    // Eight chunks: the tail begins when the driver has done one, and ends one chunk after it.
    let took = tail[tail.len() - 1].1.since(driver[0].0).0;
    assert!(took <= (1_000 + 128) * PACE, "{took} µs");
}

#[test]
fn delays_between_stages_are_hidden_while_a_prompt_is_read() {
    // A chunk takes 6.4 ms, a frame up to 5 ms.
    let mut world = World::grown(3, Span::millis(5), &[(1, &[range(0, 3)]), (2, &[range(3, 6)]), (9, &[])]);

    let request = world.submit(9, spec(prompt(1_000), 1));
    end(&mut world, request);

    let (driver, tail) = (world.batches(1), world.batches(2));
    let took = tail[tail.len() - 1].1.since(driver[0].0).0;
    assert!(took * 10 <= 7 * (busy(driver) + busy(tail)), "{took} µs");
}

#[test]
fn decode_steps_of_many_sessions_go_through_a_stage_together() {
    let mut world = World::grown(1, Span::ZERO, &[(1, &[range(0, 6)]), (9, &[])]);

    let requests: Vec<RequestId> = (0..12).map(|length| world.submit(9, spec(prompt(1 + length), 40))).collect();
    for &request in &requests {
        end(&mut world, request);
    }

    for (length, &request) in (1..).zip(&requests) {
        assert_eq!(world.tokens(request), generate(&prompt(length), 40));
    }
    let steps: usize = world.batches(1).iter().map(|(_, _, steps)| steps).sum();
    assert!(steps >= 3 * world.batches(1).len(), "{steps} steps in {} batches", world.batches(1).len());
    world.run_for(Span::seconds(1));
    world.assert_idle();
}

#[test]
fn a_reader_goes_on_while_a_long_prompt_is_read() {
    let mut world = World::grown(1, Span::ZERO, &[(1, &[range(0, 6)]), (9, &[])]);
    let reader = world.submit(1, spec(prompt(5), 60));
    assert!(world.run_until(Span::seconds(1), |world| world.tokens(reader).len() >= 5));
    let before = world.tokens(reader).len();

    let long = world.submit(9, spec(prompt(900), 2));
    end(&mut world, long);
    end(&mut world, reader);

    let times = |request| {
        let tokens = world.deliveries(request).into_iter().filter(|(_, what)| matches!(what, Delivery::Token { .. }));
        tokens.map(|(at, _)| at).collect::<Vec<Time>>()
    };
    let (reader_times, long_times) = (times(reader), times(long));
    assert_eq!(world.tokens(long), generate(&prompt(900), 2));
    assert!(reader_times.last() > long_times.first(), "the reader was still there");
    let longest = reader_times[before..].windows(2).map(|pair| pair[1].since(pair[0]).0).max().unwrap();
    // Two passes at most, each of 64 positions of the prompt and its own.
    assert!(longest <= 2 * 65 * PACE, "{longest} µs between two tokens");
}
