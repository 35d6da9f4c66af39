use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::Epoch;
use crate::ids::StreamId;
use crate::session::outcome::GenerateFailure;
use crate::session::requester::Effect;
use crate::session::requester::PING;
use crate::session::requester::Requester;
use crate::session::requester::tests::STREAMS;
use crate::session::requester::tests::T0;
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
use crate::wire::control::DeclineReason;
use crate::wire::control::FromStage;
use crate::wire::control::Rejoined;
use crate::wire::control::ToStage;

/// The stream of the stage that takes the leaver's place.
const NEW: StreamId = StreamId(6);

/// An answer of which two tokens are known, without patience for lost stages.
fn under_way() -> (Requester, StreamIds) {
    let (mut requester, ids, _) = leasing(job(5));
    for stream in STREAMS {
        requester.on_message(stream, FromStage::Accept, T0);
    }
    for position in [5, 6] {
        requester.on_message(STREAMS[2], token(position), T0);
    }
    (requester, ids)
}

/// The chain with another peer in the place of the middle.
fn other() -> Chain {
    let mut stages = chain().stages().to_vec();
    stages[1].peer = peer(4);
    Chain::new(stages, 6).unwrap()
}

fn leave(requester: &mut Requester, stage: usize) -> Vec<Effect> {
    requester.on_message(STREAMS[stage], FromStage::Leaving, T0)
}

fn rejoined(length: u32) -> FromStage {
    let (length, journal) = (Position(length), Position::ZERO);
    FromStage::Rejoined(Rejoined { epoch: Epoch(2), length, journal, heard: Vec::new() })
}

fn no_cover() -> GenerateFailure {
    GenerateFailure::NoCover { missing: vec![range(2, 4)], held_by_untrusted: false }
}

fn shown(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| matches!(effect, Effect::Token { .. })).count()
}

#[test]
fn another_is_asked_for_and_nobody_is_reproached_or_told() {
    let (mut requester, _) = under_way();

    assert_eq!(leave(&mut requester, 1), [Effect::Plan]);

    let stay: Vec<Stage> = [0, 2].map(|index| chain().stages()[index]).into();
    assert_eq!((requester.survivors(), requester.avoided()), (Some(stay), [peer(2)].into()));
}

#[test]
fn tokens_of_the_old_chain_count_until_the_tail_stands_in_the_new_one() {
    let (mut requester, mut ids) = under_way();
    leave(&mut requester, 1);

    assert_eq!(shown(&requester.on_message(STREAMS[2], token(7), T0)), 1);
    let effects = requester.lease(other(), &mut ids, T0);
    assert_eq!(shown(&requester.on_message(STREAMS[2], token(8), T0)), 1);

    let [offer] = offers(&effects)[..] else { panic!("one offer is enough: {effects:?}") };
    assert_eq!((offer.epoch, offer.stage.0), (Epoch(2), 1));
    assert_eq!(closed(&effects), [STREAMS[1]], "the leaver is let go");
    requester.on_message(NEW, FromStage::Accept, T0);
    requester.on_message(STREAMS[0], rejoined(8), T0);
    let effects = requester.on_message(STREAMS[2], rejoined(8), T0);
    let Some(Effect::Mended(mended)) = effects.last() else { panic!("{effects:?}") };
    assert_eq!((mended.known, &mended.chain), (Position(9), &other()));
    assert_eq!(mended.lost, [Stage { peer: peer(2), range: range(2, 4) }]);
}

#[test]
fn the_leaver_is_owed_for_what_it_did() {
    let (mut requester, mut ids) = under_way();
    leave(&mut requester, 1);
    requester.lease(other(), &mut ids, T0);
    requester.on_message(NEW, FromStage::Accept, T0);
    requester.on_message(STREAMS[0], rejoined(7), T0);
    requester.on_message(STREAMS[2], rejoined(6), T0);

    let effects = requester.conclude(T0);

    let Some(Effect::Owe { lines, .. }) = effects.first() else { panic!("{effects:?}") };
    assert_eq!(lines.iter().map(|line| line.stage).collect::<Vec<_>>(), [peer(1), peer(4), peer(3), peer(2)]);
}

#[test]
fn without_another_holder_the_old_chain_goes_on_and_others_are_looked_for_again() {
    let (mut requester, mut ids) = under_way();
    leave(&mut requester, 1);

    assert_eq!(requester.no_chain(no_cover(), T0), [], "nothing is wrong yet");
    assert_eq!(shown(&requester.on_message(STREAMS[2], token(7), T0)), 1);
    let later = T0.after(PING);
    let effects = requester.on_tick(later);
    assert_eq!(effects.last(), Some(&Effect::Plan));
    assert_eq!(requester.no_chain(no_cover(), later), []);
    let effects = requester.on_tick(later.after(PING));
    assert_eq!(effects.last(), Some(&Effect::Plan));

    let effects = requester.lease(other(), &mut ids, later.after(PING));

    assert_eq!(closed(&effects), [STREAMS[1]]);
}

#[test]
fn a_leaver_that_is_gone_is_lost_without_reproach_and_the_wait_begins_then() {
    let mut patient = job(5);
    patient.patience = Span::seconds(60);
    let (mut requester, _, _) = leasing(patient);
    for stream in STREAMS {
        requester.on_message(stream, FromStage::Accept, T0);
    }
    leave(&mut requester, 1);
    requester.no_chain(no_cover(), T0);
    let gone = T0.after(Span::millis(900));

    let effects = requester.on_closed(STREAMS[1], CloseCause::Lost, gone);
    assert_eq!(effects, [Effect::Plan]);
    let effects = requester.no_chain(no_cover(), gone);

    assert_eq!(effects, [Effect::Waiting(no_cover())]);
    assert_eq!(requester.trouble.as_ref().map(|trouble| trouble.since), Some(gone));
}

#[test]
fn another_that_is_lost_while_a_leavers_place_is_looked_for_is_waited_for_as_ever() {
    let (mut requester, _) = under_way();
    leave(&mut requester, 1);
    requester.on_closed(STREAMS[0], CloseCause::Lost, T0);

    let effects = requester.no_chain(no_cover(), T0);

    assert!(failure(&effects).is_some(), "without patience: {effects:?}");
}

#[test]
fn every_stage_of_the_peer_is_handed_over_with_the_first_word() {
    let ((mut requester, _), mut ids) = (Requester::new(job(5), T0), StreamIds::default());
    let mut stages = chain().stages().to_vec();
    stages[2].peer = peer(1);
    requester.lease(Chain::new(stages.clone(), 6).unwrap(), &mut ids, T0);
    for stream in STREAMS {
        requester.on_message(stream, FromStage::Accept, T0);
    }

    leave(&mut requester, 0);

    assert_eq!(requester.survivors(), Some(vec![stages[1]]));
    stages[0].peer = peer(5);
    stages[2].peer = peer(6);
    let effects = requester.lease(Chain::new(stages, 6).unwrap(), &mut ids, T0);
    assert_eq!(closed(&effects), [STREAMS[0], STREAMS[2]]);
    assert_eq!(leave(&mut requester, 2), [], "it was let go");
}

#[test]
fn a_stage_that_leaves_before_all_have_accepted_is_as_one_that_refused() {
    let (mut requester, _, _) = leasing(job(5));
    requester.on_message(STREAMS[1], FromStage::Accept, T0);

    let effects = leave(&mut requester, 1);

    assert_eq!(effects.last(), Some(&Effect::Plan));
    assert_eq!((closed(&effects).len(), requester.avoided()), (3, [peer(2)].into()));
    let (peer, range, reason) = (peer(2), range(2, 4), DeclineReason::Draining);
    let declined = GenerateFailure::Declined { peer, range, reason, retry_after: None };
    assert_eq!(failure(&requester.no_chain(no_cover(), T0)), Some(&declined));
}

#[test]
fn one_that_leaves_while_the_chain_is_mended_is_done_without_at_once() {
    let (mut requester, mut ids) = under_way();
    requester.on_closed(STREAMS[1], CloseCause::Lost, T0);
    requester.lease(other(), &mut ids, T0);

    let effects = requester.on_message(STREAMS[2], FromStage::Leaving, T0);

    assert_eq!(effects, [Effect::Plan]);
    // Nobody else: the mended chain is waited for as before.
    assert_eq!(requester.no_chain(no_cover(), T0), []);
    requester.on_message(NEW, FromStage::Accept, T0);
    requester.on_message(STREAMS[0], rejoined(7), T0);
    let effects = requester.on_message(STREAMS[2], rejoined(6), T0);
    assert!(matches!(effects.last(), Some(Effect::Mended(_))), "{effects:?}");
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Send(_, ToStage::Resume(_)))));
}
