//! A ring of stages computes what the unsplit engine computes.

use crate::amounts::Bytes;
use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::RequestId;
use crate::node::config::Privacy;
use crate::node::io::Delivery;
use crate::node::io::Finish;
use crate::node::io::GenerateFailure;
use crate::node::io::GenerateSpec;
use crate::node::io::Input;
use crate::node::io::Trust;
use crate::node::sim::World;
use crate::node::sim::generate;
use crate::node::sim::key;
use crate::node::sim::prompt;
use crate::node::sim::range;
use crate::node::sim::shape;
use crate::node::sim::spec;
use crate::shape::WireDtype;
use crate::units::UnitRange;
use crate::wire::control::TailFinish;

const NOTHING: &[UnitRange] = &[];

/// Three stages and a requester that holds nothing.
pub(super) fn ring_of_three(seed: u64, delay: Span) -> World {
    let (driver, middle, tail) = ([range(0, 2)], [range(2, 4)], [range(4, 6)]);
    World::grown(seed, delay, &[(1, &driver), (2, &middle), (3, &tail), (9, NOTHING)])
}

fn finish(world: &World, request: RequestId) -> Finish {
    let deliveries = world.deliveries(request);
    match deliveries.last() {
        Some((_, Delivery::Finished(finish))) => finish.clone(),
        other => panic!("expected an end in order, got {other:?}"),
    }
}

fn finished(world: &mut World, request: RequestId) -> Finish {
    assert!(world.run_until(Span::seconds(60), |world| world.ended(request)), "no end in a minute");
    let finish = finish(world, request);
    world.run_for(Span::seconds(1));
    finish
}

#[test]
fn a_ring_of_three_stages_equals_the_unsplit_engine() {
    for length in [1, 2, 127, 128, 129, 300, 1_000] {
        let mut world = ring_of_three(length.into(), Span::ZERO);

        let request = world.submit(9, spec(prompt(length), 40));

        finished(&mut world, request);
        assert_eq!(world.tokens(request), generate(&prompt(length), 40));
        world.assert_idle();
    }
}

#[test]
fn delays_change_no_token() {
    for seed in 0..60 {
        let mut world = ring_of_three(seed, Span::millis(40));
        let length = 1 + u32::try_from(seed).unwrap() * 9;

        let request = world.submit(9, spec(prompt(length), 30));

        finished(&mut world, request);
        assert_eq!(world.tokens(request), generate(&prompt(length), 30), "seed {seed}");
        world.assert_idle();
    }
}

#[test]
fn one_peer_with_all_units_is_a_ring_of_one() {
    let all = [range(0, 6)];
    let mut world = World::grown(1, Span::millis(5), &[(1, &all), (9, NOTHING)]);

    let own = world.submit(1, spec(prompt(200), 20));
    let other = world.submit(9, spec(prompt(50), 20));

    finished(&mut world, own);
    finished(&mut world, other);
    assert_eq!(world.tokens(own), generate(&prompt(200), 20));
    assert_eq!(world.tokens(other), generate(&prompt(50), 20));
    world.assert_idle();
}

#[test]
fn a_stage_may_be_the_requester_itself() {
    for requester in [1, 2, 3] {
        let mut world = ring_of_three(requester.into(), Span::millis(10));

        let request = world.submit(requester, spec(prompt(150), 20));

        finished(&mut world, request);
        assert_eq!(world.tokens(request), generate(&prompt(150), 20));
        world.assert_idle();
    }
}

#[test]
fn sessions_of_several_requesters_do_not_touch_each_other() {
    for seed in 0..10 {
        let mut world = ring_of_three(seed, Span::millis(20));

        let requests: Vec<(RequestId, u32)> = [(9, 10), (9, 300), (1, 77), (2, 500), (9, 1)]
            .map(|(name, length)| (world.submit(name, spec(prompt(length), 50)), length))
            .into();

        for (request, length) in requests {
            finished(&mut world, request);
            assert_eq!(world.tokens(request), generate(&prompt(length), 50), "seed {seed}");
        }
        world.assert_idle();
    }
}

#[test]
fn a_thin_wire_carries_half_the_bytes() {
    let payload = |wire| {
        let mut world = ring_of_three(1, Span::ZERO);
        let mut spec = spec(prompt(100), 1);
        spec.wire = wire;
        let request = world.submit(9, spec);
        let finish = finished(&mut world, request);
        finish.stages[0].unwrap().payload
    };

    assert_eq!(payload(WireDtype::F32), Bytes(100 * 4 * 4));
    assert_eq!(payload(WireDtype::F16), Bytes(100 * 4 * 2));
}

#[test]
fn every_stage_reports_what_it_did_and_is_owed_for_it() {
    let mut world = ring_of_three(4, Span::millis(3));

    let request = world.submit(9, spec(prompt(200), 25));
    let finish = finished(&mut world, request);

    let new = u32::try_from(world.tokens(request).len()).unwrap();
    for (stage, owed) in finish.stages.iter().zip(&finish.owed) {
        assert_eq!(stage.unwrap().positions, Position(200 + new - 1));
        assert!(*owed > Mflop::ZERO);
    }
    assert_eq!(finish.stages[1].unwrap().payload, Bytes(u64::from(200 + new - 1) * 16));
    let work = shape().work(range(2, 4), Position::ZERO, Position(200 + new));
    // Everybody knows, those who took part and those who heard.
    for observer in [1, 2, 3, 9] {
        assert_eq!(world.node(observer).ledger().balance(key(9), key(2)), work);
    }
}

#[test]
fn entries_of_one_requester_continue_each_other() {
    let mut world = ring_of_three(5, Span::millis(15));

    let requests: Vec<RequestId> = (1..8).map(|length| world.submit(9, spec(prompt(length), 5))).collect();

    for request in requests {
        finished(&mut world, request);
    }
    for observer in [1, 2, 3, 9] {
        assert_eq!(world.node(observer).ledger().newest(key(9)).unwrap().sequence, 6);
        assert_eq!(world.node(observer).ledger().forks().count(), 0);
    }
}

#[test]
fn the_end_is_the_tails_reason() {
    let reason = |length, max_tokens| {
        let mut world = ring_of_three(7, Span::ZERO);
        let request = world.submit(9, spec(prompt(length), max_tokens));
        (finished(&mut world, request).reason, world.tokens(request).len())
    };
    let long = (1..200).find(|&length| generate(&prompt(length), 400).len() < 400).unwrap();
    let ends_after = generate(&prompt(long), 400).len();

    assert_eq!(reason(long, 400), (TailFinish::EndOfGeneration, ends_after));
    assert_eq!(reason(long, 1), (TailFinish::MaxTokens, 1));
}

#[test]
fn cancelling_frees_every_stage() {
    for after in 0..20 {
        let mut world = ring_of_three(after, Span::millis(20));
        let request = world.submit(9, spec(prompt(600), 1_000));
        world.run_for(Span::millis(after * 30));

        world.input(key(9), Input::Cancel(request));
        world.run_for(Span::seconds(5));

        assert_eq!(world.failure(request).map(|(_, failure)| failure), Some(GenerateFailure::Cancelled));
        world.assert_idle();
    }
}

#[test]
fn work_that_was_cancelled_is_owed() {
    let mut world = ring_of_three(3, Span::millis(5));
    let request = world.submit(9, spec(prompt(100), 1_000));
    assert!(world.run_until(Span::seconds(20), |world| world.tokens(request).len() == 6));

    world.input(key(9), Input::Cancel(request));
    world.run_for(Span::seconds(3));

    let owed = shape().work(range(4, 6), Position::ZERO, Position(106));
    assert_eq!(world.node(3).ledger().balance(key(9), key(3)), owed);
}

#[test]
fn enough_is_an_end_in_order() {
    let mut world = ring_of_three(3, Span::millis(5));
    let request = world.submit(9, spec(prompt(100), 1_000));
    assert!(world.run_until(Span::seconds(20), |world| world.tokens(request).len() == 6));

    world.input(key(9), Input::Conclude(request));
    let finish = finished(&mut world, request);

    assert_eq!(finish.reason, TailFinish::EndOfGeneration);
    assert!(finish.stages.iter().all(Option::is_some));
    assert_eq!(world.tokens(request).len(), 6);
    world.assert_idle();
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let mut world = World::grown(1, Span::ZERO, &[(1, &[range(0, 3)]), (9, NOTHING)]);
    let refused = |world: &mut World, spec| {
        let request = world.submit(9, spec);
        world.failure(request).map(|(_, failure)| failure)
    };
    let mut other = spec(prompt(1), 1);
    other.model = crate::ids::ModelId::new([1; 32]);

    let missing = vec![range(3, 6)];
    let no_cover = GenerateFailure::NoCover { missing, held_by_untrusted: false };
    assert_eq!(refused(&mut world, spec(prompt(1), 1)), Some(no_cover));
    assert_eq!(refused(&mut world, spec(Vec::new(), 1)), Some(GenerateFailure::NothingAsked));
    let too_long = GenerateFailure::TooLong { prompt: 2_000, max_tokens: 49, context: 2_048 };
    assert_eq!(refused(&mut world, spec(prompt(2_000), 49)), Some(too_long));
    assert_eq!(refused(&mut world, other.clone()), Some(GenerateFailure::UnknownModel(other.model)));
    world.input(key(9), Input::Drain);
    assert_eq!(refused(&mut world, spec(prompt(1), 1)), Some(GenerateFailure::Draining));
}

#[test]
fn in_an_open_network_a_prompt_goes_to_known_peers_only() {
    let mut world = World::new(1, Span::ZERO);
    world.add(1, &[range(0, 6)]);
    world.add_with(9, |config| config.privacy = Privacy::Open);
    world.add_with(8, |config| {
        config.privacy = Privacy::Open;
        config.allowed = [key(1)].into();
    });
    let facts = world.node(1).models().next().unwrap().clone();
    for name in [8, 9] {
        world.input(key(name), Input::ModelKnown(std::sync::Arc::new(facts.clone())));
    }
    world.run_for(Span::seconds(3));

    let known = world.submit(9, spec(prompt(5), 5));
    let open = world.submit(9, GenerateSpec { trust: Trust::Open, ..spec(prompt(5), 5) });
    let allowed = world.submit(8, spec(prompt(5), 5));

    let no_cover = GenerateFailure::NoCover { missing: vec![range(0, 6)], held_by_untrusted: true };
    assert_eq!(world.failure(known).map(|(_, failure)| failure), Some(no_cover));
    finished(&mut world, open);
    finished(&mut world, allowed);
}
