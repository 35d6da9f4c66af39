use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::Epoch;
use crate::ids::StreamId;
use crate::ids::Token;
use crate::session::outcome::GenerateFailure;
use crate::session::requester::Effect;
use crate::session::requester::GRACE;
use crate::session::requester::PAUSE;
use crate::session::requester::Requester;
use crate::session::requester::SETTLE;
use crate::session::requester::tests::STREAMS;
use crate::session::requester::tests::T0;
use crate::session::requester::tests::broken;
use crate::session::requester::tests::chain;
use crate::session::requester::tests::closed;
use crate::session::requester::tests::failure;
use crate::session::requester::tests::job;
use crate::session::requester::tests::leasing;
use crate::session::requester::tests::offers;
use crate::session::requester::tests::peer;
use crate::session::requester::tests::range;
use crate::session::requester::tests::token;
use crate::session::streams::CloseCause;
use crate::session::streams::StreamIds;
use crate::units::Chain;
use crate::units::Stage;
use crate::wire::control::Begins;
use crate::wire::control::Feed;
use crate::wire::control::FromStage;
use crate::wire::control::Rejoined;
use crate::wire::control::Resume;
use crate::wire::control::StageFailure;
use crate::wire::control::ToStage;

/// The stream of the stage that takes the lost one's place.
const NEW: StreamId = StreamId(6);

/// An answer of which two tokens are known, that waits a minute for what it lacks.
fn under_way(looks_back: bool) -> (Requester, StreamIds) {
    let mut job = job(5);
    job.patience = Span::seconds(60);
    if looks_back {
        job.parameters.presence_penalty = 1.0;
    }
    let (mut requester, ids, _) = leasing(job);
    for stream in STREAMS {
        requester.on_message(stream, FromStage::Accept, T0);
    }
    for position in [5, 6] {
        requester.on_message(STREAMS[2], token(position), T0);
    }
    (requester, ids)
}

/// The chain with another peer in the place of the stage.
fn without(stage: usize) -> Chain {
    let mut stages = chain().stages().to_vec();
    stages[stage].peer = peer(4);
    Chain::new(stages, 6).unwrap()
}

fn lose(requester: &mut Requester, stage: usize) -> Vec<Effect> {
    let effects = requester.on_closed(STREAMS[stage], CloseCause::Lost, T0);
    assert_eq!(effects.last(), Some(&Effect::Plan));
    effects
}

fn rejoined(epoch: u32, length: u32, journal: u32) -> FromStage {
    let (length, journal) = (Position(length), Position(journal));
    FromStage::Rejoined(Rejoined { epoch: Epoch(epoch), length, journal, heard: Vec::new() })
}

/// What is said on a stream, in order.
fn said(effects: &[Effect], stream: StreamId) -> Vec<&ToStage> {
    let mut said = Vec::new();
    for effect in effects {
        match effect {
            Effect::Send(to, message) if *to == stream => said.push(message),
            _ => {}
        }
    }
    said
}

fn resumed(epoch: u32, keep: u32, next_keep: u32) -> ToStage {
    let (keep, next_keep) = (Position(keep), Position(next_keep));
    ToStage::Resume(Resume { epoch: Epoch(epoch), keep, next_keep })
}

#[test]
fn only_the_lost_range_is_leased_and_the_others_are_called() {
    let (mut requester, mut ids) = under_way(false);
    lose(&mut requester, 1);
    let survivors: Vec<Stage> = [0, 2].map(|index| chain().stages()[index]).into();
    assert_eq!((requester.survivors(), requester.avoided()), (Some(survivors), [peer(2)].into()));

    let effects = requester.lease(without(1), &mut ids, T0);

    let [offer] = offers(&effects)[..] else { panic!("one offer is enough: {effects:?}") };
    assert_eq!((offer.epoch, offer.begins, offer.stage.0), (Epoch(2), Begins::Earlier, 1));
    for stream in [STREAMS[0], STREAMS[2]] {
        let [ToStage::Reconfigure(newer)] = said(&effects, stream)[..] else { panic!("{effects:?}") };
        assert_eq!((newer.epoch, newer.known, &newer.chain), (Epoch(2), Position(7), &without(1)));
    }
    assert!(closed(&effects).is_empty());
}

#[test]
fn when_all_are_there_each_is_told_where_to_go_on_and_the_last_token_is_fed_again() {
    let (mut requester, mut ids) = under_way(false);
    lose(&mut requester, 1);
    requester.lease(without(1), &mut ids, T0);

    assert_eq!(requester.on_message(STREAMS[0], rejoined(2, 7, 0), T0), []);
    assert_eq!(requester.on_message(NEW, FromStage::Accept, T0), []);
    let effects = requester.on_message(STREAMS[2], rejoined(2, 6, 6), T0);

    let feed =
        ToStage::Feed(Feed { first: Position(6), tokens: vec![Token(5)], last: crate::wire::control::LastFeed::Yes });
    assert_eq!(said(&effects, STREAMS[0]), [&resumed(2, 6, 0), &feed]);
    assert_eq!(said(&effects, NEW), [&resumed(2, 0, 6)]);
    assert_eq!(said(&effects, STREAMS[2]), [&resumed(2, 6, 6)]);
    let Some(Effect::Mended(mended)) = effects.last() else { panic!("{effects:?}") };
    assert_eq!((&mended.chain, mended.known), (&without(1), Position(7)));
    assert_eq!(mended.lost, [Stage { peer: peer(2), range: range(2, 4) }]);
}

/// Whoever drives it may cancel it before the chain that it has asked for is there.
#[test]
fn a_chain_for_an_answer_that_was_cancelled_meanwhile_is_not_leased() {
    let (mut requester, mut ids) = under_way(false);
    lose(&mut requester, 1);
    let effects = requester.cancel(T0);
    let [Effect::Failed(_), Effect::Owe { positions, .. }] = &effects[..] else { panic!("{effects:?}") };
    assert_eq!(*positions, Position(7));

    assert_eq!(requester.lease(without(1), &mut ids, T0), []);
    assert_eq!(requester.no_chain(GenerateFailure::Busy, T0), []);
    let effects = requester.on_tick(T0.after(SETTLE));

    assert_eq!(closed(&effects), [STREAMS[0], STREAMS[2]]);
    assert_eq!(effects.last(), Some(&Effect::Ended));
}

#[test]
fn a_complaint_about_a_chain_that_was_left_is_nothing() {
    let (mut requester, mut ids) = under_way(false);
    lose(&mut requester, 1);
    requester.lease(without(1), &mut ids, T0);

    assert_eq!(requester.on_message(STREAMS[2], broken(1), T0), []);
    assert_eq!(requester.on_message(STREAMS[2], rejoined(1, 6, 6), T0), []);
    assert_eq!(requester.on_tick(T0.after(GRACE)), []);
}

#[test]
fn a_second_loss_begins_again_one_epoch_on() {
    let (mut requester, mut ids) = under_way(false);
    lose(&mut requester, 1);
    requester.lease(without(1), &mut ids, T0);
    requester.on_message(STREAMS[0], rejoined(2, 7, 0), T0);

    let effects = requester.on_closed(NEW, CloseCause::Lost, T0);
    assert_eq!(effects.last(), Some(&Effect::Plan));
    let mut stages = chain().stages().to_vec();
    stages[1].peer = peer(5);
    let effects = requester.lease(Chain::new(stages, 6).unwrap(), &mut ids, T0);

    assert_eq!(offers(&effects)[0].epoch, Epoch(3));
    // What was said for the chain before does not count.
    requester.on_message(StreamId(8), FromStage::Accept, T0);
    requester.on_message(STREAMS[0], rejoined(2, 7, 0), T0);
    assert_eq!(requester.on_message(STREAMS[2], rejoined(3, 6, 6), T0), []);
    let effects = requester.on_message(STREAMS[0], rejoined(3, 7, 0), T0);
    assert!(matches!(effects.last(), Some(Effect::Mended(_))));
}

#[test]
fn a_new_tail_is_told_what_was_generated_and_a_token_that_it_was_not_told_is_sampled_again() {
    for looks_back in [false, true] {
        let (mut requester, mut ids) = under_way(looks_back);
        lose(&mut requester, 2);
        let effects = requester.lease(without(2), &mut ids, T0);
        let sampling = offers(&effects)[0].sampling.as_ref().unwrap();
        assert_eq!((sampling.prompt_length, sampling.history.len()), (Position(5), if looks_back { 7 } else { 0 }));

        requester.on_message(NEW, FromStage::Accept, T0);
        requester.on_message(STREAMS[1], rejoined(2, 7, 0), T0);
        let heard = vec![Token(9)];
        let driver = Rejoined { epoch: Epoch(2), length: Position(8), journal: Position(0), heard };
        let effects = requester.on_message(STREAMS[0], FromStage::Rejoined(driver), T0);

        let shown = |effect: &Effect| matches!(effect, Effect::Token { position: Position(7), token: Token(9), .. });
        assert_eq!(effects.iter().any(shown), !looks_back);
    }
}

#[test]
fn a_tail_that_lives_still_says_what_it_has() {
    let (mut requester, mut ids) = under_way(false);
    lose(&mut requester, 0);
    requester.lease(without(0), &mut ids, T0);

    let effects = requester.on_message(STREAMS[2], token(7), T0);

    assert!(matches!(effects[..], [Effect::Token { position: Position(7), .. }]), "{effects:?}");
}

#[test]
fn without_another_holder_the_answer_waits_and_says_so_until_its_patience_is_over() {
    let (mut requester, _) = under_way(false);
    lose(&mut requester, 1);
    let missing = GenerateFailure::NoCover { missing: vec![range(2, 4)], held_by_untrusted: false };

    let effects = requester.no_chain(missing.clone(), T0);
    assert_eq!(effects, [Effect::Waiting(missing.clone())]);
    let mut tries = Vec::new();
    let (failed, now) = loop {
        let now = requester.deadline().unwrap();
        for stream in [STREAMS[0], STREAMS[2]] {
            requester.on_message(stream, FromStage::Pong(1), now);
        }
        let effects = requester.on_tick(now);
        if effects.last() == Some(&Effect::Plan) {
            tries.push(now.since(T0));
            assert_eq!(requester.avoided(), [].into());
            let effects = requester.no_chain(missing.clone(), now);
            assert!(!effects.contains(&Effect::Waiting(missing.clone())), "the same is said once");
            if let Some(failure) = failure(&effects) {
                break (failure.clone(), now);
            }
        }
        if let Some(failure) = failure(&effects) {
            break (failure.clone(), now);
        }
    };

    assert_eq!((failed, now), (missing, T0.after(Span::seconds(60))));
    assert_eq!(tries[0], PAUSE);
}

#[test]
fn what_no_other_stage_could_do_better_ends_the_answer() {
    let (mut requester, _) = under_way(false);

    let effects = requester.on_message(STREAMS[1], FromStage::Failed(StageFailure::NonFinite), T0);

    assert!(failure(&effects).is_some());
    assert_eq!(effects.last(), Some(&Effect::Ended));
}

#[test]
fn a_stage_that_went_round_is_owed_for_what_it_did_and_one_that_rewound_for_that() {
    let (mut requester, mut ids) = under_way(false);
    requester.on_message(STREAMS[0], broken(1), T0);
    let later = T0.after(GRACE);
    let effects = requester.on_message(STREAMS[1], FromStage::Pong(1), later);
    assert_eq!(effects.last(), Some(&Effect::Plan));
    assert_eq!(requester.severed(), &[(peer(1), peer(2))].into());

    let effects = requester.lease(without(1), &mut ids, later);
    assert_eq!(closed(&effects), [STREAMS[1]]);
    requester.on_message(NEW, FromStage::Accept, later);
    requester.on_message(STREAMS[0], rejoined(2, 7, 7), later);
    requester.on_message(STREAMS[2], rejoined(2, 6, 6), later);
    let effects = requester.conclude(later);

    let Some(Effect::Owe { lines, .. }) = effects.first() else { panic!("{effects:?}") };
    let owed: Vec<_> = lines.iter().map(|line| line.stage).collect();
    assert_eq!(owed, [peer(1), peer(4), peer(3), peer(2)]);
    let shape = requester.job().shape;
    let work = |positions| shape.work(range(0, 2), Position::ZERO, Position(positions));
    // The driver had no journal, so it computed all seven again.
    assert_eq!(lines[0].work, work(7).plus(work(7)));
}
