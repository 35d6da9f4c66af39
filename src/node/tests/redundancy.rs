//! Several chains compute one answer: the reader does not notice that one is lost, and whoever lies is found.

use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::RequestId;
use crate::membership::Standing;
use crate::node::io::Certainty;
use crate::node::io::Delivery;
use crate::node::io::Fate;
use crate::node::io::Finish;
use crate::node::io::GenerateFailure;
use crate::node::io::GenerateSpec;
use crate::node::io::Lie;
use crate::node::io::Redundancy;
use crate::node::sim::World;
use crate::node::sim::generate;
use crate::node::sim::key;
use crate::node::sim::prompt;
use crate::node::sim::range;
use crate::node::sim::spec;
use crate::units::UnitRange;

/// So many holders of every range: 1, 2 and 3; 11, 12 and 13; and so on.
fn rows(seed: u64, count: u8) -> World {
    let parts = [[range(0, 2)], [range(2, 4)], [range(4, 6)]];
    let mut peers: Vec<(u8, &[UnitRange])> = vec![(9, &[])];
    for row in 0..count {
        peers.extend((1..=3).map(|place| (10 * row + place, &parts[usize::from(place) - 1][..])));
    }
    World::grown(seed, Span::millis(20), &peers)
}

fn asked(chains: u8, length: u32, max_tokens: u32) -> GenerateSpec {
    let redundancy = Redundancy::new(chains).unwrap();
    GenerateSpec { patience: Span::seconds(20), redundancy, ..spec(prompt(length), max_tokens) }
}

fn finish(world: &mut World, request: RequestId) -> Finish {
    assert!(world.run_until(Span::seconds(60), |world| world.ended(request)), "no end in a minute");
    assert_eq!(world.failure(request), None);
    let finish = world.deliveries(request).into_iter().find_map(|(_, told)| match told {
        Delivery::Finished(finish) => Some(finish.clone()),
        _ => None,
    });
    world.run_for(Span::seconds(20));
    world.assert_idle();
    finish.unwrap()
}

fn caught(world: &World, request: RequestId) -> Vec<Lie> {
    let lie = |told: &Delivery| if let Delivery::Caught(lie) = told { Some((**lie).clone()) } else { None };
    world.deliveries(request).into_iter().filter_map(|(_, told)| lie(told)).collect()
}

#[test]
fn chains_of_different_peers_agree_and_all_are_paid() {
    for chains in [2, 3] {
        let mut world = rows(1, 3);
        let request = world.submit(9, asked(chains, 300, 30));

        let finish = finish(&mut world, request);

        assert_eq!(world.tokens(request), generate(&prompt(300), 30));
        assert_eq!(finish.replicas.len(), usize::from(chains));
        assert!(finish.replicas.iter().all(|replica| replica.fate == Fate::Agreed && replica.tokens == 30));
        let owed = finish.replicas.iter().flat_map(|replica| &replica.owed).filter(|owed| owed.0 > 0).count();
        assert_eq!(owed, 3 * usize::from(chains));
        assert!(finish.lies.is_empty());
    }
}

#[test]
fn the_reader_does_not_notice_that_a_stage_dies() {
    for place in 1..=3 {
        for seed in 0..4 {
            let mut world = rows(seed, 2);
            let request = world.submit(9, asked(2, 100, 60));
            assert!(world.run_until(Span::seconds(60), |world| world.tokens(request).len() == 10));

            world.kill(place);
            let complete = finish(&mut world, request);

            assert_eq!(world.tokens(request), generate(&prompt(100), 60));
            let told = world.deliveries(request).into_iter();
            let at: Vec<_> =
                told.filter(|(_, told)| matches!(told, Delivery::Token { .. })).map(|(at, _)| at).collect();
            let pause = at.windows(2).map(|pair| pair[1].since(pair[0])).max().unwrap();
            assert!(pause <= Span::millis(200), "{pause}, place {place}, seed {seed}");
            assert_eq!(complete.replicas.len(), 2);
        }
    }
}

#[test]
fn one_liar_is_found_with_two_chains_and_outvoted_with_three() {
    for chains in [2, 3] {
        for place in 1..=3 {
            for from in [0, 200, 310] {
                let mut world = rows(u64::from(place), 3);
                world.lie(place, Position(from));
                let request = world.submit(9, asked(chains, 300, 40));

                let finish = finish(&mut world, request);

                assert_eq!(world.tokens(request), generate(&prompt(300), 40), "place {place}, from {from}");
                let used = finish
                    .replicas
                    .iter()
                    .any(|replica| replica.chain.stages().iter().any(|stage| stage.peer == key(place)));
                let lies = caught(&world, request);
                assert_eq!(lies, finish.lies);
                if !used {
                    assert_eq!(lies, []);
                    continue;
                }
                let [lie] = &lies[..] else { panic!("{lies:?}") };
                assert_eq!(lie.suspects.iter().map(|stage| stage.peer).collect::<Vec<_>>(), [key(place)]);
                assert_eq!(lie.certainty, Certainty::Proven);
                // Before the first token the tail has nothing to lie about.
                let first = if place == 3 { from.max(300) } else { from };
                assert!(lie.position <= Position(first + 128), "{lie:?}");
                assert!(lie.evidence.len() >= 2);
                assert_eq!(lie.evidence[0].author, key(place));
                assert!(finish.replicas.iter().any(|replica| replica.fate == Fate::Outvoted));
                let state = world.node(9).membership().peer(key(place), world.now);
                assert!(matches!(state.unwrap().standing, Standing::Demoted { .. }));
            }
        }
    }
}

#[test]
fn without_a_third_holder_the_answer_ends_and_names_both() {
    let mut world = rows(3, 2);
    world.lie(2, Position(310));
    let request = world.submit(9, asked(2, 300, 40));

    assert!(world.run_until(Span::seconds(120), |world| world.ended(request)));

    let (_, failure) = world.failure(request).expect("never as if finished");
    let GenerateFailure::Disputed { one, other, range: units, position } = failure else { panic!("{failure}") };
    assert_eq!(std::collections::BTreeSet::from([one, other]), [key(2), key(12)].into());
    assert_eq!((units, position), (range(2, 4), Position(311)));
    let expected = generate(&prompt(300), 40);
    assert!(expected.starts_with(&world.tokens(request)));
    world.run_for(Span::seconds(20));
    world.assert_idle();
}

#[test]
fn fewer_chains_than_were_asked_for_are_refused() {
    let mut world = rows(1, 2);
    let request = world.submit(9, asked(3, 20, 5));
    world.run_for(Span::seconds(1));

    let (_, failure) = world.failure(request).unwrap();
    assert_eq!(failure, GenerateFailure::TooFewReplicas { asked: 3, found: 2, missing: vec![range(0, 6)] });
    world.assert_idle();
}
