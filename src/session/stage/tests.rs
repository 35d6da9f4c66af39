use super::*;
use crate::ids::Epoch;
use crate::ids::ModelId;
use crate::ids::SessionId;
use crate::ids::Step;
use crate::session::step::StageKey;
use crate::shape::Architecture;
use crate::shape::ModelShape;
use crate::shape::Rope;
use crate::shape::RopePairs;
use crate::shape::RopeScaling;
use crate::units::Chain;
use crate::units::Stage;
use crate::units::UnitRange;
use crate::wire::control::Feed;
use crate::wire::control::HopBroken;
use crate::wire::control::LastFeed;
use crate::wire::control::Offer;
use crate::wire::control::SamplingParameters;
use crate::wire::control::TailFinish;
use crate::wire::control::TailOffer;
use crate::wire::credit::CreditHeader;
use crate::wire::credit::CreditLine;
use crate::wire::signed::Signed;

pub(super) const WIDTH: u32 = 4;
pub(super) const CONTROL: StreamId = StreamId(1);
pub(super) const HOP: StreamId = StreamId(2);
pub(super) const UP: StreamId = StreamId(3);
pub(super) const SESSION: SessionId = SessionId::new([7; 16]);
pub(super) const T0: Time = Time(1_000_000);
pub(super) const ALL: Position = Position(u32::MAX);

fn shape() -> ModelShape {
    ModelShape {
        architecture: Architecture::Llama,
        blocks: 4,
        width: WIDTH,
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        feed_forward: 8,
        vocab: 50,
        context: 1_024,
        window: None,
        norm_eps: 1e-5,
        rope: Rope { dimensions: 4, pairs: RopePairs::Interleaved, base: 10_000.0, scaling: RopeScaling::None },
        tied: false,
    }
}

pub(super) fn peer(n: u8) -> PeerKey {
    PeerKey::new([n; 32])
}

pub(super) fn chain() -> Chain {
    let stage = |n: u8, start, end| Stage { peer: peer(n), range: UnitRange::new(start, end).unwrap() };
    Chain::new(vec![stage(1, 0, 2), stage(2, 2, 4), stage(3, 4, 6)], 6).unwrap()
}

pub(super) fn offer(stage: u16) -> Offer {
    Offer {
        session: SESSION,
        epoch: Epoch(5),
        model: ModelId::new([9; 32]),
        weights: ModelId::new([9; 32]),
        chain: chain(),
        stage: StageIndex(stage),
        rounding: Vec::new(),
        budget: Position(400),
        expires_after: Span::seconds(15),
        sampling: (stage == 2).then(|| TailOffer {
            parameters: SamplingParameters::default(),
            prompt_length: Position(300),
            history: Vec::new(),
            max_tokens: 100,
            end_of_generation: vec![Token(2)],
        }),
        begins: Begins::Here,
        commits: Commits::No,
    }
}

pub(super) fn terms(stage: u16) -> Terms {
    Terms::of(offer(stage), peer(9), peer(stage as u8 + 1), shape()).unwrap()
}

/// A stage whose offer says something else.
pub(super) fn offered_with(stage: u16, change: impl FnOnce(&mut Offer)) -> LeasedStage {
    let mut offer = offer(stage);
    change(&mut offer);
    let terms = Terms::of(offer, peer(9), peer(stage as u8 + 1), shape()).unwrap();
    LeasedStage::new(terms, CONTROL, HOP, T0).0
}

pub(super) fn offered(stage: u16) -> LeasedStage {
    LeasedStage::new(terms(stage), CONTROL, HOP, T0).0
}

pub(super) fn running(stage: u16) -> LeasedStage {
    let mut leased = offered(stage);
    leased.on_back(HopBack::Opened);
    let upstream = leased.terms.upstream();
    leased.on_upstream(UP, upstream, leased.terms.peer(upstream)).unwrap();
    leased
}

pub(super) fn header(step: u64, first: u32, count: u32) -> FrameHeader {
    FrameHeader {
        session: SESSION,
        stage: StageIndex(1),
        epoch: Epoch(5),
        step: Step(step),
        first: Position(first),
        count,
        dtype: WireDtype::F32,
        sample: Sample::No,
    }
}

pub(super) fn frame(header: FrameHeader) -> HopForward {
    let payload = bytes::Bytes::from(vec![0; (header.count * WIDTH * 4) as usize]);
    HopForward::Frame(Frame { header, payload })
}

/// What the engine makes of so many positions.
pub(super) fn hidden(count: u32) -> StepOutput {
    StepOutput::Hidden(bytes::Bytes::from(vec![0; (count * WIDTH * 4) as usize]))
}

pub(super) fn feed(first: u32, count: u32, last: LastFeed) -> ToStage {
    ToStage::Feed(Feed { first: Position(first), tokens: vec![Token(1); count as usize], last })
}

pub(super) fn told(effects: &[Effect]) -> Vec<&FromStage> {
    let mut told = Vec::new();
    for effect in effects {
        if let Effect::Send(CONTROL, Outgoing::FromStage(message)) = effect {
            told.push(message);
        }
    }
    told
}

pub(super) fn freed(effects: &[Effect]) -> usize {
    effects.iter().filter(|effect| **effect == Effect::Free).count()
}

fn entry(positions: u32, work: Mflop) -> CreditEntry {
    let value = CreditHeader {
        requester: peer(9),
        sequence: 0,
        previous: [0; 32],
        session: SESSION,
        model: ModelId::new([9; 32]),
        positions: Position(positions),
        lines: [0; 32],
        total: work,
    };
    let header = Signed { value, author: peer(9), body: bytes::Bytes::new(), signature: [0; 64] };
    let line = CreditLine { stage: peer(2), range: UnitRange::new(2, 4).unwrap(), work, difficulty: 1_000 };
    CreditEntry { header, lines: vec![line] }
}

#[test]
fn a_stage_accepts_once_its_hop_is_open_and_its_upstream_attached() {
    let (mut leased, effects) = LeasedStage::new(terms(1), CONTROL, HOP, T0);
    let open = HopOpen { session: SESSION, epoch: Epoch(5), from: StageIndex(1), to: StageIndex(2) };
    assert_eq!(effects, [Effect::Reserve, Effect::OpenHop(HOP, peer(3), open)]);

    let attached = leased.on_upstream(UP, StageIndex(0), peer(1)).unwrap();
    assert_eq!(attached, [Effect::Send(UP, Outgoing::Back(HopBack::Opened))]);

    let effects = leased.on_back(HopBack::Opened);
    assert_eq!(told(&effects), [&FromStage::Accept]);
}

#[test]
fn only_the_neighbour_that_the_chain_names_is_attached_and_only_once() {
    let mut leased = offered(1);

    assert_eq!(leased.on_upstream(StreamId(8), StageIndex(0), peer(4)), None);
    assert_eq!(leased.on_upstream(StreamId(8), StageIndex(2), peer(3)), None);
    assert!(leased.on_upstream(UP, StageIndex(0), peer(1)).is_some());
    assert_eq!(leased.on_upstream(StreamId(8), StageIndex(0), peer(1)), None);
}

#[test]
fn an_offer_that_disagrees_with_the_model_or_the_receiver_is_bad() {
    let with = |change: fn(&mut Offer)| {
        let mut changed = offer(2);
        change(&mut changed);
        Terms::of(changed, peer(9), peer(3), shape()).err()
    };

    assert_eq!(with(|_| {}), None);
    let bad = Some(DeclineReason::BadOffer);
    assert_eq!(with(|offer| offer.budget = Position(2_000)), bad);
    assert_eq!(with(|offer| offer.stage = StageIndex(1)), bad);
    assert_eq!(with(|offer| offer.stage = StageIndex(3)), bad);
    assert_eq!(with(|offer| offer.sampling = None), bad);
    assert_eq!(with(|offer| offer.rounding = vec![(5, WireDtype::F16)]), None);
    assert_eq!(with(|offer| offer.rounding = vec![(4, WireDtype::F16)]), None);
    assert_eq!(with(|offer| offer.sampling.as_mut().unwrap().prompt_length = Position(400)), bad);
    assert_eq!(with(|offer| offer.sampling.as_mut().unwrap().history = vec![Token(1)]), bad);
    assert_eq!(with(|offer| offer.sampling.as_mut().unwrap().parameters.presence_penalty = 1.0), bad);
}

#[test]
fn cuts_of_the_prompt_do_not_depend_on_how_it_was_fed() {
    let cuts = |pieces: &[u32]| {
        let mut driver = running(0);
        let mut cuts = Vec::new();
        for (index, piece) in pieces.iter().enumerate() {
            let first = pieces[..index].iter().sum();
            let last = if index + 1 == pieces.len() { LastFeed::Yes } else { LastFeed::No };
            assert!(told(&driver.on_control(feed(first, *piece, last), T0)).is_empty());
            while let Some((step, _)) = driver.take(ALL) {
                let StepInput::Tokens(tokens) = step.input else { panic!("the driver computes from tokens") };
                let end = Position(step.first.0 + tokens.len() as u32);
                cuts.push((step.first.0, end.0));
                let effects = driver.on_stepped(end, hidden(end.0 - step.first.0), Span(1));
                let taken = Step(cuts.len() as u64 - 1);
                assert!(matches!(effects[0], Effect::Send(HOP, Outgoing::Forward(_))));
                driver.on_back(HopBack::Taken(taken));
            }
        }
        cuts
    };

    assert_eq!(cuts(&[300]), [(0, 128), (128, 256), (256, 300)]);
    assert_eq!(cuts(&[1, 127, 100, 72]), cuts(&[300]));
}

#[test]
fn the_driver_gives_as_much_as_is_asked_for() {
    let mut driver = running(0);
    driver.on_control(feed(0, 130, LastFeed::Yes), T0);

    let tokens = |step: TakenStep| match step.input {
        StepInput::Tokens(tokens) => (step.first.0, tokens.len()),
        StepInput::Hidden(..) => panic!("the driver computes from tokens"),
    };
    assert_eq!(tokens(driver.take(Position(50)).unwrap().0), (0, 50));
    assert_eq!(driver.waiting().map(|waiting| waiting.positions), Some(Position(78)));
    assert_eq!(tokens(driver.take(ALL).unwrap().0), (50, 78));
}

#[test]
fn a_frame_taken_in_pieces_is_acknowledged_with_the_last_and_passed_on_in_pieces() {
    let mut leased = running(1);
    leased.on_forward(frame(FrameHeader { sample: Sample::LastRow, ..header(0, 0, 8) }));
    let rows = |step: &TakenStep| match &step.input {
        StepInput::Hidden(payload, _) => (step.first.0, payload.len() / (WIDTH as usize * 4)),
        StepInput::Tokens(_) => panic!("the stage computes from hidden states"),
    };

    let (first, effects) = leased.take(Position(5)).unwrap();
    assert_eq!((rows(&first), effects), ((0, 5), Vec::new()));
    let (rest, effects) = leased.take(Position(5)).unwrap();
    assert_eq!(rows(&rest), (5, 3));
    assert_eq!(effects, [Effect::Send(UP, Outgoing::Back(HopBack::Taken(Step(0))))]);

    let sent = [(Position(5), 5), (Position(8), 3)].map(|(end, count)| {
        let effects = leased.on_stepped(end, hidden(count), Span(1));
        let [Effect::Send(HOP, Outgoing::Forward(HopForward::Frame(frame)))] = effects.as_slice() else {
            panic!("expected a frame, got {effects:?}");
        };
        (frame.header.step, frame.header.first.0, frame.header.count, frame.header.sample)
    });
    assert_eq!(sent, [(Step(0), 0, 5, Sample::No), (Step(1), 5, 3, Sample::LastRow)]);
}

#[test]
fn no_step_is_begun_whose_outcome_cannot_be_sent() {
    let mut driver = running(0);
    driver.on_control(feed(0, 400, LastFeed::No), T0);
    let mut upstream = running(1);
    for step in 0..WINDOW as u32 {
        assert_eq!(upstream.on_forward(frame(header(step.into(), step, 1))), []);
    }

    let mut begun = 0;
    while let Some((step, effects)) = upstream.take(ALL) {
        assert_eq!(effects, [Effect::Send(UP, Outgoing::Back(HopBack::Taken(Step(begun))))]);
        upstream.on_stepped(step.first.plus(Position(1)), hidden(1), Span(1));
        begun += 1;
        upstream.on_forward(frame(header(WINDOW as u64 - 1 + begun, WINDOW as u32 - 1 + begun as u32, 1)));
    }
    assert_eq!(begun, WINDOW as u64);
    assert_eq!(upstream.waiting(), None);

    upstream.on_back(HopBack::Taken(Step(0)));
    assert!(upstream.waiting().is_some());
}

#[test]
fn the_engine_holds_two_steps_of_a_stage_at_most() {
    let mut driver = running(0);
    driver.on_control(feed(0, 400, LastFeed::No), T0);

    assert!(driver.take(ALL).is_some());
    assert!(driver.take(ALL).is_some());
    assert!(driver.take(ALL).is_none());
}

#[test]
fn a_frame_that_was_seen_is_dropped_and_the_next_may_rewind() {
    let mut leased = running(1);
    leased.on_forward(frame(header(0, 0, 8)));

    assert_eq!(leased.on_forward(frame(header(0, 0, 8))), []);
    assert_eq!(leased.on_forward(frame(header(1, 5, 2))), []);
    assert_eq!(leased.take(ALL).unwrap().0.first, Position(0));
    assert_eq!(leased.take(ALL).unwrap().0.first, Position(5));
}

#[test]
fn every_breach_of_the_protocol_upstream_is_answered_by_its_name() {
    let refused = |messages: Vec<HopForward>| {
        let mut leased = running(1);
        let effects: Vec<Effect> = messages.into_iter().flat_map(|message| leased.on_forward(message)).collect();
        let (epoch, stage, peer, how) = (Epoch(5), StageIndex(0), peer(1), Break::Breach);
        assert_eq!(told(&effects), [&FromStage::HopBroken(HopBroken { epoch, stage, peer, how })]);
        // It holds what it has: the breach was another's.
        assert_eq!((freed(&effects), effects[1].clone()), (0, Effect::Close(UP)));
        match effects.into_iter().next() {
            Some(Effect::Send(UP, Outgoing::Back(answer))) => answer,
            other => panic!("expected an answer up the hop, got {other:?}"),
        }
    };
    let with = |change: fn(&mut FrameHeader)| {
        let mut changed = header(0, 0, 2);
        change(&mut changed);
        refused(vec![frame(changed)])
    };
    let short = HopForward::Frame(Frame { header: header(0, 0, 2), payload: bytes::Bytes::from_static(&[0; 31]) });
    let token = TokenFrame { session: SESSION, epoch: Epoch(5), step: Step(0), position: Position(0), token: Token(0) };
    let flood = (0..=WINDOW as u32).map(|step| frame(header(step.into(), step, 1))).collect();

    assert_eq!(with(|header| header.epoch = Epoch(4)), HopBack::Fenced(Epoch(5)));
    assert_eq!(with(|header| header.epoch = Epoch(6)), HopBack::Refused(HopRefusal::OutOfOrder));
    assert_eq!(with(|header| header.step = Step(1)), HopBack::Refused(HopRefusal::OutOfOrder));
    assert_eq!(with(|header| header.first = Position(1)), HopBack::Refused(HopRefusal::OutOfOrder));
    assert_eq!(with(|header| header.count = 0), HopBack::Refused(HopRefusal::WrongShape));
    assert_eq!(with(|header| header.count = 401), HopBack::Refused(HopRefusal::WrongShape));
    assert_eq!(with(|header| header.dtype = WireDtype::F16), HopBack::Refused(HopRefusal::WrongShape));
    assert_eq!(with(|header| header.stage = StageIndex(2)), HopBack::Refused(HopRefusal::WrongShape));
    assert_eq!(with(|header| header.session = SessionId::new([8; 16])), HopBack::Refused(HopRefusal::WrongShape));
    assert_eq!(refused(vec![short]), HopBack::Refused(HopRefusal::WrongShape));
    assert_eq!(refused(vec![HopForward::Token(token)]), HopBack::Refused(HopRefusal::WrongShape));
    assert_eq!(refused(flood), HopBack::Refused(HopRefusal::WindowExceeded));
}

#[test]
fn rewinding_without_end_is_refused() {
    let mut leased = running(1);
    let mut effects = Vec::new();
    for step in 0..1_000 {
        effects.extend(leased.on_forward(frame(header(step, 0, 100))));
        leased.take(ALL);
        leased.on_stepped(Position(100), hidden(100), Span(1));
        leased.on_back(HopBack::Taken(Step(step)));
    }

    let refusal = Effect::Send(UP, Outgoing::Back(HopBack::Refused(HopRefusal::OutOfOrder)));
    assert!(effects.contains(&refusal));
}

#[test]
fn the_driver_takes_the_prompt_in_order_and_then_only_the_next_token() {
    let mut driver = running(0);
    driver.on_control(feed(0, 5, LastFeed::Yes), T0);
    let token = |step, position, token| {
        HopForward::Token(TokenFrame {
            session: SESSION,
            epoch: Epoch(5),
            step: Step(step),
            position: Position(position),
            token: Token(token),
        })
    };
    driver.take(ALL).unwrap();
    assert_eq!(driver.on_forward(token(0, 5, 7)), []);

    let (step, effects) = driver.take(ALL).unwrap();
    assert_eq!((step.first, step.input), (Position(5), StepInput::Tokens(vec![Token(7)])));
    assert_eq!(effects, [Effect::Send(UP, Outgoing::Back(HopBack::Taken(Step(0))))]);
    let effects = driver.on_forward(token(1, 5, 7));
    assert_eq!(effects[0], Effect::Send(UP, Outgoing::Back(HopBack::Refused(HopRefusal::OutOfOrder))));

    for bad in [feed(1, 5, LastFeed::No), feed(0, 401, LastFeed::No), feed(0, 0, LastFeed::No)] {
        let effects = running(0).on_control(bad, T0);
        assert_eq!(told(&effects), [&FromStage::Failed(StageFailure::BadRequest)]);
    }
    let effects = running(1).on_control(feed(0, 1, LastFeed::No), T0);
    assert_eq!(told(&effects), [&FromStage::Failed(StageFailure::BadRequest)]);
}

#[test]
fn the_tail_tells_the_requester_and_the_driver_until_it_ends() {
    let sampled = |token: u32, first: u32| {
        let mut tail = running(2);
        let mut last = header(0, 0, 1);
        (last.stage, last.sample) = (StageIndex(2), Sample::LastRow);
        for step in 0..first {
            let mut header = last;
            (header.step, header.first, header.sample) = (Step(step.into()), Position(step), Sample::No);
            tail.on_forward(frame(header));
            assert_eq!(tail.take(ALL).unwrap().0.wanted, StepWanted::Nothing);
            assert_eq!(tail.on_stepped(Position(step + 1), StepOutput::Nothing, Span(1)), []);
        }
        (last.step, last.first) = (Step(first.into()), Position(first));
        tail.on_forward(frame(last));
        assert_eq!(tail.take(ALL).unwrap().0.wanted, StepWanted::Token);
        let output = StepOutput::Sampled { token: Token(token), logprobs: None };
        tail.on_stepped(Position(first + 1), output, Span(1))
    };

    let effects = sampled(7, 299);
    let forward = HopForward::Token(TokenFrame {
        session: SESSION,
        epoch: Epoch(5),
        step: Step(0),
        position: Position(300),
        token: Token(7),
    });
    assert_eq!(effects[1..], [Effect::Send(HOP, Outgoing::Forward(forward))]);

    let effects = sampled(2, 299);
    let finish = Some(TailFinish::EndOfGeneration);
    let out = TokenOut { epoch: Epoch(5), position: Position(300), token: Token(2), finish, logprobs: None };
    assert_eq!(effects, [Effect::Send(CONTROL, Outgoing::FromStage(FromStage::Token(out)))]);
}

#[test]
fn whatever_ends_a_stage_frees_it_once() {
    let ways: Vec<fn(&mut LeasedStage) -> Vec<Effect>> = vec![
        LeasedStage::on_control_closed,
        LeasedStage::on_superseded,
        |leased| leased.on_tick(T0.after(Span::seconds(60))),
        |leased| leased.on_step_failed(StepFailure::NonFinite),
        |leased| leased.on_control(ToStage::Offer(Box::new(offer(1))), T0),
    ];
    for first in &ways {
        for second in &ways {
            for mut leased in [offered(1), running(1)] {
                let mut effects = first(&mut leased);
                effects.extend(second(&mut leased));

                assert_eq!(freed(&effects), 1);
                assert_eq!(effects.iter().filter(|effect| **effect == Effect::Ended).count(), 1);
                let closed = |stream| effects.iter().filter(|effect| **effect == Effect::Close(stream)).count();
                assert_eq!((closed(CONTROL), closed(HOP)), (1, 1));
            }
        }
    }
}

#[test]
fn a_ping_renews_the_lease() {
    let mut leased = running(1);
    let later = T0.after(Span::seconds(14));

    assert_eq!(told(&leased.on_control(ToStage::Ping(3), later)), [&FromStage::Pong(3)]);
    assert_eq!(leased.on_tick(T0.after(Span::seconds(16))), []);
    assert_eq!(leased.deadline(), later.after(Span::seconds(15)));
    let effects = leased.on_tick(leased.deadline());
    assert_eq!(told(&effects), [&FromStage::Failed(StageFailure::Expired)]);
}

#[test]
fn a_missing_neighbour_is_a_reason_to_decline() {
    let declined = |mut leased: LeasedStage| {
        let effects = leased.on_tick(T0.after(SETUP));
        match told(&effects)[..] {
            [FromStage::Decline(decline)] => decline.reason,
            ref other => panic!("expected a decline, got {other:?}"),
        }
    };
    let mut opened = offered(1);
    opened.on_back(HopBack::Opened);

    assert_eq!(declined(offered(1)), DeclineReason::DownstreamUnreachable);
    assert_eq!(declined(opened), DeclineReason::UpstreamMissing);
}

#[test]
fn a_fair_entry_is_stored_before_it_is_acknowledged() {
    let mut leased = running(1);
    leased.on_forward(frame(header(0, 0, 100)));
    leased.take(ALL);
    leased.on_stepped(Position(100), hidden(100), Span(3));
    let work = shape().work(UnitRange::new(2, 4).unwrap(), Position::ZERO, Position(100));
    let fair = Box::new(entry(100, work));

    let effects = leased.on_control(ToStage::Settle(fair.clone()), T0);
    assert_eq!(effects, [Effect::Free, Effect::Store(fair)]);
    // The hops of a session that has ended in order end in any.
    assert_eq!(leased.on_downstream_lost(), []);
    let report = StageReport { positions: Position(100), payload: Bytes(1_600), frames: 1, busy: Span(3) };
    assert_eq!(told(&leased.on_stored()), [&FromStage::Settled(report)]);
    assert_eq!(freed(&leased.on_control_closed()), 0);
}

#[test]
fn an_entry_that_credits_too_little_or_another_is_refused() {
    let refused = |entry: CreditEntry| {
        let mut leased = running(1);
        leased.on_forward(frame(header(0, 0, 100)));
        leased.take(ALL);
        leased.on_stepped(Position(100), hidden(100), Span(3));
        let effects = leased.on_control(ToStage::Settle(Box::new(entry)), T0);
        assert_eq!(effects[0], Effect::Free);
        match told(&effects)[..] {
            [FromStage::NotSettled(refusal)] => *refusal,
            ref other => panic!("expected a refusal, got {other:?}"),
        }
    };
    let range = UnitRange::new(2, 4).unwrap();
    let work = |positions| shape().work(range, Position::ZERO, Position(positions));
    let mut other = entry(100, work(100));
    other.lines[0].stage = peer(1);

    let too_little = SettleRefusal::TooLittle { counted: work(100) };
    assert_eq!(refused(entry(67, work(67))), too_little);
    assert_eq!(refused(entry(100, work(100).minus(Mflop(1)))), too_little);
    assert_eq!(refused(other), SettleRefusal::Invalid);
}

#[test]
fn an_engine_that_makes_no_room_is_a_reason_to_decline() {
    let effects = offered(1).on_step_failed(StepFailure::Engine("full".to_owned()));

    let decline = Decline { reason: DeclineReason::NoMemory, retry_after: None };
    assert_eq!(told(&effects), [&FromStage::Decline(decline)]);
    let effects = running(1).on_step_failed(StepFailure::Engine("x\n".repeat(150)));
    assert_eq!(told(&effects), [&FromStage::Failed(StageFailure::Engine("x".repeat(150)))]);
}

#[test]
fn a_stage_key_is_the_session_and_the_units() {
    assert_eq!(terms(1).key, StageKey { session: SESSION, range: UnitRange::new(2, 4).unwrap() });
    assert_eq!((terms(0).upstream(), terms(2).downstream()), (StageIndex(2), StageIndex(0)));
}

#[test]
fn a_stage_that_is_to_leave_says_so_and_computes_on_until_it_is_let_go() {
    let mut leased = running(1);

    let effects = leased.on_drain();

    assert_eq!(effects, [Effect::Send(CONTROL, Outgoing::FromStage(FromStage::Leaving))]);
    leased.on_forward(frame(header(0, 0, 10)));
    assert!(leased.take(ALL).is_some());
    let effects = leased.on_control_closed();
    assert_eq!((freed(&effects), effects.last()), (1, Some(&Effect::Ended)));
    assert_eq!(leased.on_drain(), []);
}

#[test]
fn a_lease_that_is_not_held_yet_is_refused_when_the_peer_is_to_leave() {
    let mut leased = offered(1);

    let effects = leased.on_drain();

    let declined = Decline { reason: DeclineReason::Draining, retry_after: None };
    assert_eq!(told(&effects), [&FromStage::Decline(declined)]);
    assert_eq!((freed(&effects), effects.last()), (1, Some(&Effect::Ended)));
}
