//! Peers that break the protocol: each breach has a typed answer, ends its own session and no other.

use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::Epoch;
use crate::ids::SessionId;
use crate::ids::StageIndex;
use crate::ids::Step;
use crate::ids::Token;
use crate::node::io::CloseCause;
use crate::node::io::GenerateFailure;
use crate::node::io::Input;
use crate::node::io::Outgoing;
use crate::node::io::StreamInput;
use crate::node::sim::World;
use crate::node::sim::generate;
use crate::node::sim::key;
use crate::node::sim::prompt;
use crate::node::sim::range;
use crate::node::sim::spec;
use crate::node::tests::ring::ring_of_three;
use crate::shape::WireDtype;
use crate::wire::control::FromStage;
use crate::wire::control::StageFailure;
use crate::wire::control::TailFinish;
use crate::wire::control::ToStage;
use crate::wire::hop::HopBack;
use crate::wire::hop::HopForward;
use crate::wire::hop::HopOpen;
use crate::wire::hop::HopRefusal;

/// One session whose messages are tampered with beside one whose are not: the first fails, the second does not notice.
fn breached(cheat: u8, mut change: impl FnMut(&mut Outgoing) -> bool + 'static) -> GenerateFailure {
    let mut world = ring_of_three(cheat.into(), Span::millis(5));
    let bystander = world.submit(9, spec(prompt(333), 60));
    world.run_for(Span::seconds(1));
    let victim = world.submit(9, spec(prompt(33), 61));
    let (mut done, mut seen) = (false, None);
    world.tamper = Some(Box::new(move |from, message| {
        let session = match message {
            Outgoing::Forward(HopForward::Frame(frame)) => Some(frame.header.session),
            Outgoing::Forward(HopForward::Token(frame)) => Some(frame.session),
            Outgoing::ToStage(_) | Outgoing::FromStage(_) | Outgoing::Back(_) => None,
        };
        // The victim's frames are those of the session that begins with the tampering.
        if let (Outgoing::Forward(HopForward::Frame(frame)), None) = (&*message, seen)
            && frame.header.first == Position(0)
            && frame.header.count == 33
        {
            seen = Some(frame.header.session);
        }
        let concerned = session.is_none() || session == seen;
        if from == key(cheat) && !done && concerned && seen.is_some() {
            done = change(message);
        }
    }));

    assert!(world.run_until(Span::seconds(20), |world| world.ended(victim) && world.ended(bystander)));

    assert_eq!(world.tokens(bystander), generate(&prompt(333), 60));
    assert_eq!(world.failure(bystander), None);
    world.run_for(Span::seconds(15));
    world.assert_idle();
    world.failure(victim).expect("the session that was tampered with fails").1
}

fn bad_frame(reporter: u8, cheat: u8) -> GenerateFailure {
    let start = u16::from(reporter - 1) * 2;
    let failure = StageFailure::BadFrame { stage: StageIndex(u16::from(cheat) - 1), peer: key(cheat) };
    GenerateFailure::StageFailed { peer: key(reporter), range: range(start, start + 2), failure }
}

fn bad_header(change: fn(&mut crate::wire::hop::FrameHeader)) -> GenerateFailure {
    breached(2, move |message| match message {
        Outgoing::Forward(HopForward::Frame(frame)) => {
            change(&mut frame.header);
            true
        }
        Outgoing::Forward(_) | Outgoing::ToStage(_) | Outgoing::FromStage(_) | Outgoing::Back(_) => false,
    })
}

#[test]
fn a_frame_that_is_wrong_in_any_way_ends_its_session_only() {
    let expected = bad_frame(3, 2);

    assert_eq!(bad_header(|header| header.step = Step(9)), expected);
    assert_eq!(bad_header(|header| header.first = Position(700)), expected);
    assert_eq!(bad_header(|header| header.count += 1), expected);
    assert_eq!(bad_header(|header| header.count = 0), expected);
    assert_eq!(bad_header(|header| header.dtype = WireDtype::F16), expected);
    assert_eq!(bad_header(|header| header.epoch = Epoch(0)), expected);
    assert_eq!(bad_header(|header| header.epoch = Epoch(9)), expected);
    assert_eq!(bad_header(|header| header.stage = StageIndex(0)), expected);
    assert_eq!(bad_header(|header| header.session = SessionId::new([0; 16])), expected);
}

#[test]
fn a_token_that_is_wrong_in_any_way_ends_its_session_only() {
    let with = |change: fn(&mut crate::wire::hop::TokenFrame)| {
        breached(3, move |message| match message {
            Outgoing::Forward(HopForward::Token(frame)) => {
                change(frame);
                true
            }
            Outgoing::Forward(_) | Outgoing::ToStage(_) | Outgoing::FromStage(_) | Outgoing::Back(_) => false,
        })
    };

    assert_eq!(with(|frame| frame.token = Token(99_999)), bad_frame(1, 3));
    assert_eq!(with(|frame| frame.position = Position(3)), bad_frame(1, 3));
    assert_eq!(with(|frame| frame.step = Step(3)), bad_frame(1, 3));
}

#[test]
fn an_acknowledgement_of_what_was_not_sent_ends_its_session() {
    let mut world = ring_of_three(2, Span::ZERO);
    let request = world.submit(9, spec(prompt(33), 61));
    world.tamper = Some(Box::new(|from, message| {
        if let Outgoing::Back(HopBack::Taken(step)) = message
            && from == key(2)
        {
            *step = Step(99);
        }
    }));
    assert!(world.run_until(Span::seconds(20), |world| world.ended(request)));

    assert_eq!(world.failure(request).map(|(_, failure)| failure), Some(bad_frame(1, 2)));
    world.run_for(Span::seconds(1));
    world.assert_idle();
}

#[test]
fn a_tail_that_cheats_the_requester_is_named() {
    let with = |change: fn(&mut crate::wire::control::TokenOut)| {
        let mut world = ring_of_three(2, Span::ZERO);
        let request = world.submit(9, spec(prompt(33), 61));
        let mut tokens = 0;
        world.tamper = Some(Box::new(move |_, message| {
            if let Outgoing::FromStage(FromStage::Token(token)) = message {
                tokens += 1;
                if tokens == 4 {
                    change(token);
                }
            }
        }));
        assert!(world.run_until(Span::seconds(20), |world| world.ended(request)));
        world.run_for(Span::seconds(1));
        world.assert_idle();
        world.failure(request).expect("never as if finished").1
    };
    let misbehaved = GenerateFailure::Misbehaved { peer: key(3), range: range(4, 6) };

    // An answer cut short is never finished.
    assert_eq!(with(|token| token.finish = Some(TailFinish::EndOfGeneration)), misbehaved);
    assert_eq!(with(|token| token.finish = Some(TailFinish::MaxTokens)), misbehaved);
    assert_eq!(with(|token| token.position = Position(1)), misbehaved);
    assert_eq!(with(|token| token.epoch = Epoch(7)), misbehaved);
    assert_eq!(with(|token| token.token = Token(99_999)), misbehaved);
}

/// A session under way, with its name.
fn observed() -> (World, crate::ids::RequestId, SessionId) {
    let mut world = ring_of_three(2, Span::ZERO);
    let request = world.submit(9, spec(prompt(33), 1_000));
    let session = std::rc::Rc::new(std::cell::Cell::new(None));
    let found = session.clone();
    world.tamper = Some(Box::new(move |_, message| {
        if let Outgoing::Forward(HopForward::Frame(frame)) = message {
            found.set(Some(frame.header.session));
        }
    }));
    assert!(world.run_until(Span::seconds(20), |world| world.tokens(request).len() == 3));
    world.answers.clear();
    let session = session.get().expect("frames were sent");
    (world, request, session)
}

fn still_right(mut world: World, request: crate::ids::RequestId) {
    assert!(world.run_until(Span::seconds(60), |world| world.ended(request)));
    assert_eq!(world.failure(request), None);
    assert_eq!(world.tokens(request), generate(&prompt(33), 1_000));
}

#[test]
fn a_hop_from_the_wrong_peer_is_refused_and_harms_nobody() {
    let (mut world, request, session) = observed();
    let open = HopOpen { session, epoch: Epoch(1), from: StageIndex(1), to: StageIndex(2) };

    let stream = world.inject(3, StreamInput::HopArrived(key(9), open));

    let refused = Outgoing::Back(HopBack::Refused(HopRefusal::WrongPeer));
    assert_eq!(world.answers, [(stream, Some(refused)), (stream, None)]);
    still_right(world, request);
}

#[test]
fn a_hop_of_an_old_epoch_is_fenced() {
    let (mut world, request, session) = observed();
    let open = HopOpen { session, epoch: Epoch(0), from: StageIndex(1), to: StageIndex(2) };

    let stream = world.inject(3, StreamInput::HopArrived(key(2), open));

    assert_eq!(world.answers, [(stream, Some(Outgoing::Back(HopBack::Fenced(Epoch(1))))), (stream, None)]);
    still_right(world, request);
}

#[test]
fn a_hop_of_an_unknown_session_is_held_for_a_while_and_then_refused() {
    let mut world = ring_of_three(2, Span::ZERO);
    let open = HopOpen { session: SessionId::new([5; 16]), epoch: Epoch(1), from: StageIndex(1), to: StageIndex(2) };

    let stream = world.inject(3, StreamInput::HopArrived(key(2), open));
    world.run_for(Span::seconds(9));
    assert_eq!(world.answers, []);
    world.run_for(Span::seconds(2));

    let refused = Outgoing::Back(HopBack::Refused(HopRefusal::UnknownSession));
    assert_eq!(world.answers, [(stream, Some(refused)), (stream, None)]);
}

#[test]
fn a_flood_of_hops_and_callers_is_cut_off() {
    let mut world = ring_of_three(2, Span::ZERO);
    for number in 0..1_000_u32 {
        let mut session = [0; 16];
        session[..4].copy_from_slice(&number.to_be_bytes());
        let open =
            HopOpen { session: SessionId::new(session), epoch: Epoch(1), from: StageIndex(1), to: StageIndex(2) };
        world.inject(3, StreamInput::HopArrived(key(8), open));
        world.inject(3, StreamInput::ControlArrived(key(8)));
    }

    let refused = world.answers.iter().filter(|(_, answer)| answer.is_none()).count();
    assert!(refused >= 2_000 - 256, "{refused}");
    let request = world.submit(9, spec(prompt(33), 30));
    assert!(world.run_until(Span::seconds(20), |world| world.ended(request)));
    assert_eq!(world.tokens(request), generate(&prompt(33), 30));
}

#[test]
fn a_caller_that_does_not_begin_with_an_offer_is_dismissed() {
    let mut world = ring_of_three(2, Span::ZERO);

    let stream = world.inject(3, StreamInput::ControlArrived(key(8)));
    world.input(key(3), Input::Stream(stream, StreamInput::ToStage(ToStage::Ping(1))));

    let failed = Outgoing::FromStage(FromStage::Failed(StageFailure::BadRequest));
    assert_eq!(world.answers, [(stream, Some(failed)), (stream, None)]);
    world.answers.clear();
    let silent = world.inject(3, StreamInput::ControlArrived(key(8)));
    world.run_for(Span::seconds(11));
    assert_eq!(world.answers, [(silent, None)]);
}

#[test]
fn what_happens_on_unknown_streams_is_ignored() {
    let mut world = ring_of_three(2, Span::ZERO);
    let stream = crate::ids::StreamId(77_777);

    for event in [
        StreamInput::Opened,
        StreamInput::Closed(CloseCause::Lost),
        StreamInput::ToStage(ToStage::Ping(1)),
        StreamInput::FromStage(FromStage::Accept),
        StreamInput::Back(HopBack::Opened),
    ] {
        world.input(key(3), Input::Stream(stream, event));
    }

    assert_eq!(world.answers, []);
}
