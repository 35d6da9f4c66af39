use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::Epoch;
use crate::ids::StageIndex;
use crate::ids::Step;
use crate::ids::StreamId;
use crate::ids::Token;
use crate::session::stage::Effect;
use crate::session::stage::LeasedStage;
use crate::session::stage::Terms;
use crate::session::stage::tests::ALL;
use crate::session::stage::tests::CONTROL;
use crate::session::stage::tests::HOP;
use crate::session::stage::tests::SESSION;
use crate::session::stage::tests::T0;
use crate::session::stage::tests::UP;
use crate::session::stage::tests::chain;
use crate::session::stage::tests::feed;
use crate::session::stage::tests::frame;
use crate::session::stage::tests::freed;
use crate::session::stage::tests::header;
use crate::session::stage::tests::hidden;
use crate::session::stage::tests::offer;
use crate::session::stage::tests::peer;
use crate::session::stage::tests::running;
use crate::session::stage::tests::told;
use crate::session::step::StepInput;
use crate::session::streams::Outgoing;
use crate::units::Chain;
use crate::wire::control::Begins;
use crate::wire::control::Break;
use crate::wire::control::FromStage;
use crate::wire::control::HopBroken;
use crate::wire::control::LastFeed;
use crate::wire::control::Reconfigure;
use crate::wire::control::Rejoined;
use crate::wire::control::Resume;
use crate::wire::control::StageFailure;
use crate::wire::control::ToStage;
use crate::wire::hop::FrameHeader;
use crate::wire::hop::HopBack;
use crate::wire::hop::HopForward;
use crate::wire::hop::TokenFrame;

/// The hops of the mended chain.
const NEW_HOP: StreamId = StreamId(20);
const NEW_UP: StreamId = StreamId(21);

fn newer(epoch: u32, stage: u16) -> Reconfigure {
    Reconfigure { epoch: Epoch(epoch), chain: chain(), stage: StageIndex(stage), known: Position(300) }
}

/// Opens both hops of the mended chain.
fn attach(leased: &mut LeasedStage) -> Vec<Effect> {
    let upstream = leased.terms().upstream();
    let peer = leased.terms().peer(upstream);
    let mut effects = leased.on_back(HopBack::Opened);
    effects.extend(leased.on_upstream(NEW_UP, upstream, peer).unwrap());
    effects
}

fn resume(epoch: u32, keep: u32, next_keep: u32) -> ToStage {
    let (keep, next_keep) = (Position(keep), Position(next_keep));
    ToStage::Resume(Resume { epoch: Epoch(epoch), keep, next_keep })
}

/// The middle stage after it has computed so many positions in frames of ten.
fn computed(positions: u32) -> LeasedStage {
    let mut leased = running(1);
    for (step, first) in (0..positions).step_by(10).enumerate() {
        leased.on_forward(frame(header(step as u64, first, 10)));
        leased.take(ALL).unwrap();
        leased.on_stepped(Position(first + 10), hidden(10), Span(1));
        leased.on_back(HopBack::Taken(Step(step as u64)));
    }
    leased
}

/// First position and count of every frame sent down the mended chain's hop.
fn sent(effects: &[Effect]) -> Vec<(u32, u32)> {
    let mut sent = Vec::new();
    for effect in effects {
        if let Effect::Send(NEW_HOP, Outgoing::Forward(HopForward::Frame(frame))) = effect {
            sent.push((frame.header.first.0, frame.header.count));
        }
    }
    sent
}

#[test]
fn a_stage_that_loses_a_neighbour_says_so_and_holds_what_it_has() {
    let lost = |stage, n| {
        let (epoch, stage, peer, how) = (Epoch(5), StageIndex(stage), peer(n), Break::Lost);
        FromStage::HopBroken(HopBroken { epoch, stage, peer, how })
    };
    let mut leased = running(1);

    let downstream = leased.on_downstream_lost();
    let upstream = leased.on_upstream_lost();

    assert_eq!(told(&downstream), [&lost(2, 3)]);
    assert_eq!(told(&upstream), [&lost(0, 1)]);
    assert_eq!((freed(&downstream), freed(&upstream)), (0, 0));
}

#[test]
fn a_stage_stands_in_the_newer_chain_once_its_hops_are_open_and_the_engine_has_stopped() {
    let mut leased = computed(20);
    leased.on_forward(frame(header(2, 20, 10)));
    leased.take(ALL).unwrap();

    let effects = leased.on_reconfigure(newer(6, 1), NEW_HOP, T0);
    assert_eq!(effects[..2], [Effect::Close(UP), Effect::Close(HOP)]);
    assert!(matches!(effects[2], Effect::OpenHop(NEW_HOP, _, open) if open.epoch == Epoch(6)));
    assert!(told(&attach(&mut leased)).is_empty(), "the engine has a step");
    let effects = leased.on_stepped(Position(30), hidden(10), Span(1));

    let (epoch, length, journal) = (Epoch(6), Position(30), Position(0));
    assert_eq!(told(&effects), [&FromStage::Rejoined(Rejoined { epoch, length, journal, heard: Vec::new() })]);
    // The upstream neighbour may hear first where to go on.
    let first = FrameHeader { epoch: Epoch(6), ..header(0, 30, 10) };
    assert_eq!(leased.on_forward(frame(first)), []);
    assert_eq!(leased.waiting(), None, "before the word to go on");
    assert!(leased.on_control(resume(6, 30, 30), T0).is_empty());
    assert!(leased.waiting().is_some());
}

#[test]
fn a_new_neighbour_is_sent_what_it_lacks_in_large_frames_within_the_window() {
    let mut leased = computed(390);
    leased.on_reconfigure(newer(6, 1), NEW_HOP, T0);
    attach(&mut leased);

    let effects = leased.on_control(resume(6, 385, 0), T0);

    assert_eq!(sent(&effects), [(0, 128), (128, 128), (256, 128), (384, 1)]);
    leased.on_forward(frame(FrameHeader { epoch: Epoch(6), ..header(0, 385, 1) }));
    assert_eq!(leased.waiting(), None, "the window is full");
    leased.on_back(HopBack::Taken(Step(0)));
    assert!(leased.waiting().is_some());
}

#[test]
fn a_neighbour_that_has_more_is_not_sent_what_it_has() {
    let mut leased = computed(20);
    leased.on_reconfigure(newer(6, 1), NEW_HOP, T0);
    attach(&mut leased);
    assert_eq!(sent(&leased.on_control(resume(6, 0, 15), T0)), []);
    leased.on_forward(frame(FrameHeader { epoch: Epoch(6), ..header(0, 0, 20) }));
    leased.take(ALL).unwrap();

    let effects = leased.on_stepped(Position(20), hidden(20), Span(1));

    assert_eq!(sent(&effects), [(15, 5)]);
}

#[test]
fn a_journal_is_not_forgotten_between_the_answer_and_the_word_to_go_on() {
    let mut leased = computed(20);
    leased.on_reconfigure(newer(6, 1), NEW_HOP, T0);
    attach(&mut leased);

    leased.evict_journal();
    let effects = leased.on_control(resume(6, 20, 0), T0);

    assert_eq!(sent(&effects), [(0, 20)]);
}

#[test]
fn a_stage_without_its_journal_says_so() {
    let mut leased = computed(20);
    leased.evict_journal();
    assert_eq!(leased.journal(), crate::amounts::Bytes::ZERO);

    leased.on_reconfigure(newer(6, 1), NEW_HOP, T0);
    let effects = attach(&mut leased);

    let (epoch, length) = (Epoch(6), Position(20));
    let answer = FromStage::Rejoined(Rejoined { epoch, length, journal: length, heard: Vec::new() });
    assert_eq!(told(&effects), [&answer]);
    let refused = leased.on_control(resume(6, 20, 0), T0);
    assert_eq!(told(&refused), [&FromStage::Failed(StageFailure::BadRequest)]);
}

#[test]
fn a_word_of_an_older_chain_is_nothing() {
    let mut leased = computed(20);
    leased.on_reconfigure(newer(7, 1), NEW_HOP, T0);

    assert_eq!(leased.on_reconfigure(newer(6, 1), StreamId(30), T0), []);
    assert_eq!(leased.on_reconfigure(newer(7, 1), StreamId(30), T0), []);
    assert_eq!(leased.on_control(resume(6, 0, 0), T0), []);
    attach(&mut leased);
    assert_eq!(told(&leased.on_control(resume(8, 0, 0), T0)), [&FromStage::Failed(StageFailure::BadRequest)]);
}

#[test]
fn a_chain_in_which_the_stage_has_no_place_ends_it() {
    let mut other = newer(6, 1);
    let mut stages = other.chain.stages().to_vec();
    stages[1].peer = peer(7);
    other.chain = Chain::new(stages, 6).unwrap();

    let effects = running(1).on_reconfigure(other, NEW_HOP, T0);

    assert_eq!(told(&effects), [&FromStage::Failed(StageFailure::BadRequest)]);
    assert_eq!((freed(&effects), effects.last()), (1, Some(&Effect::Ended)));
}

#[test]
fn a_stage_in_anothers_place_waits_for_the_word_to_go_on() {
    let offer = crate::wire::control::Offer { begins: Begins::Earlier, ..offer(1) };
    let terms = Terms::of(offer, peer(9), peer(2), crate::session::stage::tests::terms(1).shape).unwrap();
    let (mut leased, _) = LeasedStage::new(terms, CONTROL, NEW_HOP, T0);
    assert_eq!(told(&attach(&mut leased)), [&FromStage::Accept]);

    leased.on_forward(frame(header(0, 0, 10)));
    assert_eq!(leased.waiting(), None);
    leased.on_control(resume(5, 0, 10), T0);

    assert!(leased.waiting().is_some());
}

/// Feeds the driver the tokens of positions from `first` to `fed`, which it computes; how many frames it sends.
fn fed(driver: &mut LeasedStage, first: u32, fed: u32) -> u64 {
    let mut frames = 0;
    for effect in driver.on_control(feed(first, fed - first, LastFeed::Yes), T0) {
        assert!(!matches!(effect, Effect::Send(CONTROL, _)), "{effect:?}");
    }
    while let Some((step, _)) = driver.take(ALL) {
        let StepInput::Tokens(tokens) = step.input else { panic!("the driver computes from tokens") };
        let count = tokens.len() as u32;
        driver.on_stepped(Position(step.first.0 + count), hidden(count), Span(1));
        driver.on_back(HopBack::Taken(Step(frames)));
        frames += 1;
    }
    frames
}

/// Lets the driver hear the token of each position, and compute it; the hop has been sent so many frames.
fn hears(driver: &mut LeasedStage, epoch: u32, positions: std::ops::Range<u32>, frames: u64) {
    for (step, position) in (0..).zip(positions) {
        let token = TokenFrame {
            session: SESSION,
            epoch: Epoch(epoch),
            step: Step(step),
            position: Position(position),
            token: Token(position % 50),
        };
        assert_eq!(driver.on_forward(HopForward::Token(token)), []);
        driver.take(ALL).unwrap();
        driver.on_stepped(Position(position + 1), hidden(1), Span(1));
        driver.on_back(HopBack::Taken(Step(frames + step)));
    }
}

/// What the driver says that it heard after `known` when it is called into a newer chain, and its hops are open.
fn heard(driver: &mut LeasedStage, epoch: u32, known: u32) -> Vec<Token> {
    driver.on_reconfigure(Reconfigure { known: Position(known), ..newer(epoch, 0) }, NEW_HOP, T0);
    match told(&attach(driver))[..] {
        [FromStage::Rejoined(rejoined)] => rejoined.heard.clone(),
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn the_driver_names_the_tokens_that_the_requester_does_not_know() {
    let mut driver = running(0);
    let frames = fed(&mut driver, 0, 300);
    hears(&mut driver, 5, 300..303, frames);

    assert_eq!(heard(&mut driver, 6, 301), [Token(1), Token(2)]);
    // Whoever asked has not heard the answer, or another stage was lost before it could be used.
    assert_eq!(heard(&mut driver, 7, 301), [Token(1), Token(2)]);
}

/// The tail's word reaches the requester by its own way, and may come there when the driver's hop is broken already.
#[test]
fn what_the_driver_hears_in_a_newer_chain_does_not_follow_what_it_heard_before() {
    let mut driver = running(0);
    let frames = fed(&mut driver, 0, 300);
    hears(&mut driver, 5, 300..302, frames);
    assert_eq!(heard(&mut driver, 6, 304), []);
    driver.on_control(resume(6, 302, 302), T0);
    let frames = fed(&mut driver, 302, 304);
    hears(&mut driver, 6, 304..307, frames);

    assert_eq!(heard(&mut driver, 7, 305), [Token(305 % 50), Token(306 % 50)]);
}

#[test]
fn a_neighbour_that_does_not_come_into_the_newer_chain_is_named() {
    let mut leased = computed(20);
    leased.on_reconfigure(newer(6, 1), NEW_HOP, T0);
    leased.on_back(HopBack::Opened);

    let effects = leased.on_tick(leased.deadline());

    let (epoch, stage, peer, how) = (Epoch(6), StageIndex(0), peer(1), Break::Lost);
    assert_eq!(told(&effects), [&FromStage::HopBroken(HopBroken { epoch, stage, peer, how })]);
    assert!(T0.after(Span::seconds(4)) < leased.deadline(), "it is said once");
}
