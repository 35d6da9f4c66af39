//! Stages are lost in mid-answer where others hold the same, and the reader does not notice.

use crate::amounts::Span;
use crate::ids::RequestId;
use crate::membership::Standing;
use crate::node::io::Delivery;
use crate::node::io::GenerateFailure;
use crate::node::io::GenerateSpec;
use crate::node::io::Input;
use crate::node::io::Mended;
use crate::node::sim::World;
use crate::node::sim::generate;
use crate::node::sim::key;
use crate::node::sim::prompt;
use crate::node::sim::range;
use crate::node::sim::spec;
use crate::units::UnitRange;

/// Two holders of every range: 1, 2 and 3, and 4, 5 and 6.
pub(super) fn with_spares(seed: u64) -> World {
    let parts = [[range(0, 2)], [range(2, 4)], [range(4, 6)]];
    let of = |index: usize| -> &[UnitRange] { &parts[index] };
    let peers = [(1, of(0)), (2, of(1)), (3, of(2)), (4, of(0)), (5, of(1)), (6, of(2)), (9, &[][..])];
    World::grown(seed, Span::millis(20), &peers)
}

pub(super) fn patient(length: u32, max_tokens: u32) -> GenerateSpec {
    GenerateSpec { patience: Span::seconds(120), ..spec(prompt(length), max_tokens) }
}

/// Runs until so many tokens are known.
pub(super) fn after(world: &mut World, request: RequestId, tokens: usize) {
    assert!(world.run_until(Span::seconds(60), |world| world.tokens(request).len() == tokens), "not so many tokens");
}

pub(super) fn mended(world: &World, request: RequestId) -> Vec<Mended> {
    let mended =
        |delivery: &Delivery| if let Delivery::Mended(mended) = delivery { Some(mended.clone()) } else { None };
    world.deliveries(request).into_iter().filter_map(|(_, delivery)| mended(delivery)).collect()
}

/// The name of the peer that serves a stage of the chain that answers.
pub(super) fn serving(world: &World, request: RequestId, stage: usize) -> u8 {
    let chain = |delivery: &Delivery| match delivery {
        Delivery::Started(chain, _) => Some(chain.clone()),
        Delivery::Mended(mended) => Some(mended.chain.clone()),
        _ => None,
    };
    let mut chains = world.deliveries(request).into_iter().rev().filter_map(|(_, delivery)| chain(delivery));
    let peer = chains.next().expect("the answer has begun").stages()[stage].peer;
    (1..=9).find(|name| key(*name) == peer).expect("every peer has a name")
}

/// The answer is complete, and everything is let go of.
pub(super) fn complete(world: &mut World, request: RequestId, length: u32, max_tokens: u32) {
    assert!(world.run_until(Span::seconds(60), |world| world.ended(request)), "no end in a minute");
    assert_eq!(world.failure(request), None);
    assert_eq!(world.tokens(request), generate(&prompt(length), max_tokens));
    world.run_for(Span::seconds(20));
    world.assert_idle();
}

#[test]
fn a_stage_that_dies_in_mid_answer_is_replaced_and_the_others_keep_what_they_have() {
    for stage in 0..3 {
        for seed in 0..10 {
            let mut world = with_spares(seed);
            let request = world.submit(9, patient(100, 40));
            after(&mut world, request, 5 + seed as usize);
            let others: Vec<u8> =
                (0..3).filter(|other| *other != stage).map(|other| serving(&world, request, other)).collect();

            let victim = serving(&world, request, stage);
            world.kill(victim);
            complete(&mut world, request, 100, 40);

            let [mended] = &mended(&world, request)[..] else { panic!("one chain takes the place of one") };
            let lost: Vec<_> = mended.lost.iter().map(|stage| stage.peer).collect();
            assert_eq!(lost, [key(victim)], "seed {seed}");
            assert!(mended.took <= Span::seconds(1), "{}", mended.took);
            assert!(others.iter().all(|name| mended.chain.stages().iter().any(|stage| stage.peer == key(*name))));
        }
    }
}

#[test]
fn whatever_moment_a_stage_dies_in_costs_no_token() {
    for stage in 0..3 {
        for moment in 0..40 {
            let mut world = with_spares(moment);
            let request = world.submit(9, patient(400, 12));
            let started = |world: &World| !world.deliveries(request).is_empty();
            assert!(world.run_until(Span::seconds(10), started));
            world.run_for(Span::millis(moment * 12));
            if world.ended(request) {
                continue;
            }

            let victim = serving(&world, request, stage);
            world.kill(victim);

            complete(&mut world, request, 400, 12);
        }
    }
}

#[test]
fn a_stage_that_freezes_is_replaced_within_seconds_and_lets_go_when_it_thaws() {
    for stage in 0..3 {
        let mut world = with_spares(stage as u64);
        let request = world.submit(9, patient(100, 40));
        after(&mut world, request, 7);

        let victim = serving(&world, request, stage);
        world.freeze(victim);
        assert!(world.run_until(Span::seconds(10), |world| !mended(world, request).is_empty()));
        assert!(mended(&world, request)[0].took <= Span::seconds(1), "from the moment of the verdict");
        world.run_for(Span::seconds(5));
        world.thaw(victim);

        complete(&mut world, request, 100, 40);
    }
}

#[test]
fn a_stage_whose_engine_does_not_come_back_gives_itself_up_and_serves_again_when_it_does() {
    for stage in 0..3 {
        let mut world = with_spares(stage as u64);
        let request = world.submit(9, patient(100, 40));
        after(&mut world, request, 7);

        let victim = serving(&world, request, stage);
        world.hang(victim);
        assert!(world.run_until(Span::seconds(12), |world| !mended(world, request).is_empty()));
        let [mended] = &mended(&world, request)[..] else { panic!("one chain takes the place of one") };
        assert!(mended.took <= Span::seconds(1), "from the moment of the verdict");
        assert_eq!(mended.lost.iter().map(|stage| stage.peer).collect::<Vec<_>>(), [key(victim)]);
        assert_eq!(world.node(victim).sessions(), 0);
        world.run_for(Span::seconds(1));
        let standing = |world: &World| Some(world.node(9).membership().peer(key(victim), world.now)?.standing);
        assert_eq!(standing(&world), Some(Standing::Draining), "nobody is to begin anything there");

        world.unhang(victim);
        world.run_for(Span::seconds(6));
        assert_eq!(standing(&world), Some(Standing::Offered));
        complete(&mut world, request, 100, 40);
    }
}

#[test]
fn two_stages_at_once_and_then_what_takes_their_place() {
    for seed in 0..10 {
        let mut world = with_spares(seed);
        let request = world.submit(9, patient(300, 30));
        after(&mut world, request, 4);
        let (driver, tail) = (serving(&world, request, 0), serving(&world, request, 2));

        world.kill(driver);
        world.kill(tail);
        assert!(world.run_until(Span::seconds(10), |world| !mended(world, request).is_empty()));
        // Others hold the same when those that have just taken their places are lost.
        world.add(7, &[range(0, 2)]);
        world.add(8, &[range(4, 6)]);
        world.run_for(Span::millis(10 + seed * 20));
        if !world.ended(request) {
            let replacement = serving(&world, request, 2);
            world.kill(replacement);
        }

        complete(&mut world, request, 300, 30);
    }
}

#[test]
fn a_hop_that_breaks_in_mid_answer_is_gone_round() {
    for hop in [0, 1, 2] {
        let mut world = with_spares(hop as u64);
        let request = world.submit(9, patient(100, 60));
        after(&mut world, request, 9);
        let (from, to) = (serving(&world, request, hop), serving(&world, request, (hop + 1) % 3));

        world.severed.insert((key(from), key(to)));
        world.part_for_good(key(from), key(to));

        complete(&mut world, request, 100, 60);
        assert!(!mended(&world, request).is_empty());
    }
}

#[test]
fn without_a_spare_the_answer_waits_says_so_and_goes_on_when_the_range_is_held_again() {
    let parts = [[range(0, 2)], [range(2, 4)], [range(4, 6)]];
    let mut world = World::grown(3, Span::millis(10), &[(1, &parts[0]), (2, &parts[1]), (3, &parts[2]), (9, &[])]);
    let request = world.submit(9, patient(100, 40));
    after(&mut world, request, 8);
    world.kill(2);
    world.run_for(Span::seconds(8));

    let missing = GenerateFailure::NoCover { missing: vec![range(2, 4)], held_by_untrusted: false };
    let told: Vec<_> = world.deliveries(request).into_iter().map(|(_, delivery)| delivery.clone()).collect();
    assert!(told.contains(&Delivery::Waiting(missing)), "{:?}", told.last());
    assert!(!world.ended(request));
    world.add(5, &[range(2, 4)]);

    complete(&mut world, request, 100, 40);
}

#[test]
fn patience_that_is_over_names_what_is_missing_and_is_no_end_in_order() {
    let parts = [[range(0, 2)], [range(2, 4)], [range(4, 6)]];
    let mut world = World::grown(3, Span::millis(10), &[(1, &parts[0]), (2, &parts[1]), (3, &parts[2]), (9, &[])]);
    let request = world.submit(9, patient(100, 400));
    after(&mut world, request, 8);
    let began = world.now;
    world.kill(3);
    assert!(world.run_until(Span::seconds(200), |world| world.ended(request)));

    let missing = GenerateFailure::NoCover { missing: vec![range(4, 6)], held_by_untrusted: false };
    let (at, failure) = world.failure(request).expect("never as if finished");
    assert_eq!(failure, missing);
    assert!(at.since(began) <= Span::seconds(121), "{}", at.since(began));
    world.run_for(Span::seconds(20));
    world.assert_idle();
}

#[test]
fn a_user_who_cancels_while_the_answer_waits_frees_everything() {
    let parts = [[range(0, 2)], [range(2, 4)], [range(4, 6)]];
    let mut world = World::grown(3, Span::millis(10), &[(1, &parts[0]), (2, &parts[1]), (3, &parts[2]), (9, &[])]);
    let request = world.submit(9, patient(100, 400));
    after(&mut world, request, 8);
    world.kill(2);
    world.run_for(Span::seconds(5));

    world.input(key(9), Input::Cancel(request));
    world.run_for(Span::seconds(5));

    assert_eq!(world.failure(request).map(|(_, failure)| failure), Some(GenerateFailure::Cancelled));
    world.assert_idle();
}
