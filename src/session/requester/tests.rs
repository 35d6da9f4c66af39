use super::*;
use crate::amounts::Bytes;
use crate::amounts::Mflop;
use crate::ids::ModelId;
use crate::shape::Architecture;
use crate::shape::ModelShape;
use crate::shape::Rope;
use crate::shape::RopePairs;
use crate::shape::RopeScaling;
use crate::shape::WireDtype;
use crate::units::Stage;
use crate::units::UnitRange;
use crate::units::UnitWeights;
use crate::wire::control::Break;
use crate::wire::control::Commits;
use crate::wire::control::Decline;
use crate::wire::control::DeclineReason;
use crate::wire::control::Feed;
use crate::wire::control::HopBroken;
use crate::wire::control::LastFeed;
use crate::wire::control::MAX_FEED;
use crate::wire::control::Offer;
use crate::wire::control::SamplingParameters;
use crate::wire::control::SettleRefusal;
use crate::wire::control::StageReport;
use crate::wire::control::TokenOut;
use crate::wire::credit::CreditHeader;
use crate::wire::signed::Signed;

pub(super) const T0: Time = Time(1_000_000);

fn shape() -> ModelShape {
    ModelShape {
        architecture: Architecture::Llama,
        blocks: 4,
        width: 64,
        heads: 1,
        kv_heads: 1,
        head_dim: 64,
        feed_forward: 512,
        vocab: 500,
        context: 100_000,
        window: None,
        norm_eps: 1e-5,
        rope: Rope { dimensions: 64, pairs: RopePairs::Interleaved, base: 10_000.0, scaling: RopeScaling::None },
        tied: false,
    }
}

pub(super) fn peer(n: u8) -> PeerKey {
    PeerKey::new([n; 32])
}

pub(super) fn range(start: u16, end: u16) -> UnitRange {
    UnitRange::new(start, end).unwrap()
}

pub(super) fn chain() -> Chain {
    let stage = |n, start, end| Stage { peer: peer(n), range: range(start, end) };
    Chain::new(vec![stage(1, 0, 2), stage(2, 2, 4), stage(3, 4, 6)], 6).unwrap()
}

pub(super) fn job(prompt: usize) -> Job {
    Job {
        session: SessionId::new([7; 16]),
        model: ModelId::new([9; 32]),
        weights: UnitWeights::whole(ModelId::new([9; 32]), 6),
        shape: shape(),
        prompt: vec![Token(4); prompt],
        parameters: SamplingParameters::default(),
        max_tokens: 10,
        end_of_generation: vec![Token(2), Token(1), Token(2)],
        wire: WireDtype::F32,
        patience: Span::ZERO,
        rounding: None,
        commits: Commits::No,
    }
}

/// A requester whose three stages have got their offers on streams 0, 2 and 4.
pub(super) fn leasing(job: Job) -> (Requester, StreamIds, Vec<Effect>) {
    let (mut requester, effects) = Requester::new(job, T0);
    assert_eq!(effects, [Effect::Plan]);
    let mut ids = StreamIds::default();
    let effects = requester.lease(chain(), &mut ids, T0);
    (requester, ids, effects)
}

pub(super) const STREAMS: [StreamId; 3] = [StreamId(0), StreamId(2), StreamId(4)];

pub(super) fn running(job: Job) -> (Requester, Vec<Effect>) {
    let (mut requester, _, _) = leasing(job);
    let accept = |stream| requester.on_message(stream, FromStage::Accept, T0);
    let effects = STREAMS.into_iter().flat_map(accept).collect();
    (requester, effects)
}

pub(super) fn token(position: u32) -> FromStage {
    let (position, token) = (Position(position), Token(5));
    FromStage::Token(TokenOut { epoch: Epoch(1), position, token, finish: None, logprobs: None })
}

/// A complaint of a stage, by a neighbour in the first chain.
pub(super) fn broken(stage: u16) -> FromStage {
    let (epoch, stage, peer) = (Epoch(1), StageIndex(stage), peer(stage as u8 + 1));
    FromStage::HopBroken(HopBroken { epoch, stage, peer, how: Break::Lost })
}

fn entry() -> CreditEntry {
    let value = CreditHeader {
        requester: peer(9),
        sequence: 0,
        previous: [0; 32],
        session: SessionId::new([7; 16]),
        model: ModelId::new([9; 32]),
        positions: Position(1),
        lines: [0; 32],
        total: Mflop(1),
    };
    let header = Signed { value, author: peer(9), body: bytes::Bytes::new(), signature: [0; 64] };
    CreditEntry { header, lines: Vec::new() }
}

pub(super) fn offers(effects: &[Effect]) -> Vec<&Offer> {
    let mut offers = Vec::new();
    for effect in effects {
        if let Effect::Send(_, ToStage::Offer(offer)) = effect {
            offers.push(&**offer);
        }
    }
    offers
}

fn feeds(effects: &[Effect]) -> Vec<&Feed> {
    let mut feeds = Vec::new();
    for effect in effects {
        if let Effect::Send(StreamId(0), ToStage::Feed(feed)) = effect {
            feeds.push(feed);
        }
    }
    feeds
}

pub(super) fn failure(effects: &[Effect]) -> Option<&GenerateFailure> {
    effects.iter().find_map(|effect| if let Effect::Failed(failure) = effect { Some(failure) } else { None })
}

/// What follows if nobody can take a lost stage's place.
fn hopeless(requester: &mut Requester, mut effects: Vec<Effect>, now: Time) -> Vec<Effect> {
    if effects.last() == Some(&Effect::Plan) {
        effects.extend(requester.no_chain(GenerateFailure::Busy, now));
    }
    effects
}

pub(super) fn closed(effects: &[Effect]) -> Vec<StreamId> {
    let closed = |effect: &Effect| if let Effect::Close(stream) = effect { Some(*stream) } else { None };
    effects.iter().filter_map(closed).collect()
}

#[test]
fn only_the_tail_learns_how_to_sample_and_the_history_only_if_it_looks_back() {
    let (_, _, effects) = leasing(job(20));
    let plain: Vec<_> = offers(&effects).into_iter().map(|offer| offer.sampling.clone()).collect();
    let mut penalised = job(20);
    penalised.parameters.presence_penalty = 1.0;
    let (_, _, effects) = leasing(penalised);
    let history = offers(&effects)[2].sampling.as_ref().unwrap().history.len();

    assert_eq!((&plain[0], &plain[1]), (&None, &None));
    let tail = plain[2].as_ref().unwrap();
    assert_eq!((tail.history.len(), tail.prompt_length, history), (0, Position(20), 20));
    assert_eq!(tail.end_of_generation, [Token(1), Token(2)]);
}

#[test]
fn hidden_states_are_rounded_where_they_cross_a_thin_wire() {
    let mut thin = job(20);
    thin.wire = WireDtype::F16;

    let (_, _, effects) = leasing(thin);

    assert_eq!(offers(&effects)[0].rounding, [(2, WireDtype::F16), (4, WireDtype::F16)]);
}

#[test]
fn a_long_prompt_is_fed_in_pieces_once_all_have_accepted() {
    let (mut requester, _, _) = leasing(job(2 * MAX_FEED + 5));
    assert_eq!(requester.on_message(STREAMS[0], FromStage::Accept, T0), []);
    assert_eq!(requester.on_message(STREAMS[2], FromStage::Accept, T0), []);

    let effects = requester.on_message(STREAMS[1], FromStage::Accept, T0);

    let pieces: Vec<_> =
        feeds(&effects).into_iter().map(|feed| (feed.first.0 as usize, feed.tokens.len(), feed.last)).collect();
    let (no, yes) = (LastFeed::No, LastFeed::Yes);
    assert_eq!(pieces, [(0, MAX_FEED, no), (MAX_FEED, MAX_FEED, no), (2 * MAX_FEED, 5, yes)]);
    assert!(effects.contains(&Effect::Started(chain())));
}

#[test]
fn each_attempt_is_a_new_epoch_and_the_third_is_the_last() {
    let (mut requester, mut ids, mut effects) = leasing(job(5));
    let decline = Decline { reason: DeclineReason::NotAllowed, retry_after: Some(Span(7)) };
    for attempt in 1..=ATTEMPTS {
        assert_eq!(offers(&effects)[0].epoch, Epoch(attempt));
        let stream = requester.controls[1].stream;

        let answer = requester.on_message(stream, FromStage::Decline(decline), T0);

        assert_eq!(closed(&answer).len(), 3);
        assert!(requester.avoided().contains(&peer(2)));
        if attempt < ATTEMPTS {
            assert_eq!(answer.last(), Some(&Effect::Plan));
            effects = requester.lease(chain(), &mut ids, T0);
        } else {
            let (reason, retry_after) = (decline.reason, decline.retry_after);
            let declined = GenerateFailure::Declined { peer: peer(2), range: range(2, 4), reason, retry_after };
            assert_eq!(failure(&answer), Some(&declined));
            assert_eq!(answer.last(), Some(&Effect::Ended));
        }
    }
}

fn busy(retry_after: Span) -> FromStage {
    FromStage::Decline(Decline { reason: DeclineReason::Busy, retry_after: Some(retry_after) })
}

#[test]
fn a_busy_peer_is_asked_again_when_it_said_if_that_is_soon() {
    let (mut requester, mut ids, _) = leasing(job(5));
    let effects = requester.on_message(STREAMS[1], busy(Span::millis(400)), T0);
    assert_eq!((effects.last(), requester.avoided()), (Some(&Effect::Plan), [peer(2)].into()));

    assert_eq!(requester.no_chain(GenerateFailure::Busy, T0), []);
    let free = requester.deadline().unwrap();
    let effects = requester.on_tick(free);

    assert_eq!((free, effects), (T0.after(Span::millis(400)), vec![Effect::Plan]));
    assert_eq!(requester.avoided(), [].into());
    assert_eq!(offers(&requester.lease(chain(), &mut ids, free))[0].epoch, Epoch(2));
}

#[test]
fn where_all_are_busy_for_long_the_user_hears_at_once_when_the_first_is_not() {
    let (mut requester, mut ids, _) = leasing(job(5));
    requester.on_message(STREAMS[1], busy(Span::seconds(7)), T0);
    let mut stages = chain().stages().to_vec();
    stages[1].peer = peer(4);
    requester.lease(Chain::new(stages, 6).unwrap(), &mut ids, T0);
    requester.on_message(StreamId(8), busy(Span::seconds(20)), T0);

    let effects = requester.no_chain(GenerateFailure::Busy, T0);

    let (reason, retry_after) = (DeclineReason::Busy, Some(Span::seconds(7)));
    let declined = GenerateFailure::Declined { peer: peer(4), range: range(2, 4), reason, retry_after };
    assert_eq!(failure(&effects), Some(&declined));
}

#[test]
fn a_busy_peer_does_not_use_up_the_attempts_and_is_not_asked_without_end() {
    let (mut requester, mut ids, _) = leasing(job(5));
    let (mut now, mut asked) = (T0, 0);
    loop {
        asked += 1;
        let stream = requester.controls[1].stream;
        requester.on_message(stream, busy(Span::ZERO), now);
        if failure(&requester.no_chain(GenerateFailure::Busy, now)).is_some() {
            break;
        }
        now = requester.deadline().unwrap();
        requester.on_tick(now);
        requester.lease(chain(), &mut ids, now);
    }

    assert!(ATTEMPTS < asked && asked <= 12, "{asked}");
    assert!(now.since(T0) <= BUSY_PATIENCE);
}

#[test]
fn a_refusal_says_more_than_the_hole_that_it_leaves() {
    let (mut requester, _, _) = leasing(job(5));
    requester.on_open_failed(STREAMS[1], OpenFailure::Unreachable, T0);

    let effects = requester.no_chain(GenerateFailure::Busy, T0);

    let unreachable = GenerateFailure::Unreachable { peer: peer(2), range: range(2, 4) };
    assert_eq!(effects, [Effect::Failed(unreachable), Effect::Ended]);
}

#[test]
fn a_stage_that_misses_its_neighbour_waits_for_the_neighbours_own_word() {
    let missing = FromStage::Decline(Decline { reason: DeclineReason::DownstreamUnreachable, retry_after: None });
    let own = FromStage::Decline(Decline { reason: DeclineReason::NoMemory, retry_after: None });

    let (mut requester, _, _) = leasing(job(5));
    assert_eq!(requester.on_message(STREAMS[0], missing.clone(), T0), []);
    assert_eq!(requester.on_closed(STREAMS[0], CloseCause::Finished, T0), []);
    requester.on_message(STREAMS[1], own, T0);
    assert_eq!(requester.avoided(), [peer(2)].into());

    let (mut requester, _, _) = leasing(job(5));
    requester.on_message(STREAMS[0], missing, T0);
    assert_eq!(requester.deadline(), Some(T0.after(GRACE)));
    requester.on_tick(T0.after(GRACE));
    assert_eq!(requester.avoided(), [peer(2)].into());
}

#[test]
fn of_stages_that_complain_of_each_other_in_turn_the_one_that_cannot_be_reached_is_avoided() {
    let missing = FromStage::Decline(Decline { reason: DeclineReason::DownstreamUnreachable, retry_after: None });
    let (mut requester, _, _) = leasing(job(5));

    // The driver is dead, on which the tail lets go, and therefore the middle.
    requester.on_message(STREAMS[1], missing.clone(), T0);
    requester.on_message(STREAMS[2], missing, T0);
    requester.on_tick(T0.after(GRACE));

    assert_eq!((requester.avoided(), requester.severed()), ([peer(1)].into(), &[].into()));
}

#[test]
fn a_stage_that_had_accepted_and_lost_one_that_declined_is_not_to_blame() {
    let missing = FromStage::Decline(Decline { reason: DeclineReason::DownstreamUnreachable, retry_after: None });
    let lost = broken(0);
    let (mut requester, _, _) = leasing(job(5));
    requester.on_opened(STREAMS[1], T0);

    // The driver cannot reach the middle and lets go, and therefore the tail, which is heard first.
    requester.on_message(STREAMS[2], FromStage::Accept, T0);
    requester.on_message(STREAMS[2], lost, T0);
    requester.on_closed(STREAMS[2], CloseCause::Finished, T0);
    requester.on_message(STREAMS[0], missing, T0);
    requester.on_tick(T0.after(GRACE));

    assert_eq!((requester.avoided(), requester.severed()), ([].into(), &[(peer(1), peer(2))].into()));
}

#[test]
fn a_hop_whose_ends_both_answer_is_avoided_and_no_peer_is() {
    let decline = |reason| FromStage::Decline(Decline { reason, retry_after: None });
    for (complains, reason) in [(0, DeclineReason::DownstreamUnreachable), (1, DeclineReason::UpstreamMissing)] {
        let (mut requester, _, _) = leasing(job(5));
        for stream in STREAMS {
            assert_eq!(requester.on_opened(stream, T0), []);
        }

        requester.on_message(STREAMS[complains], decline(reason), T0);
        let effects = requester.on_tick(T0.after(GRACE));

        assert_eq!(effects.last(), Some(&Effect::Plan));
        assert_eq!((requester.avoided(), requester.severed()), ([].into(), &[(peer(1), peer(2))].into()));
    }
}

#[test]
fn a_peer_that_two_failed_hops_have_in_common_is_avoided_until_there_is_no_other_chain() {
    let missing = FromStage::Decline(Decline { reason: DeclineReason::DownstreamUnreachable, retry_after: None });
    let (mut requester, mut ids, _) = leasing(job(5));
    let mut now = T0;
    for complains in [0, 1] {
        for stream in [0, 1, 2].map(|stage: usize| requester.controls[stage].stream) {
            requester.on_opened(stream, now);
        }
        requester.on_message(requester.controls[complains].stream, missing.clone(), now);
        now = now.after(GRACE);
        assert_eq!(requester.on_tick(now).last(), Some(&Effect::Plan));
        if complains == 0 {
            requester.lease(chain(), &mut ids, now);
        }
    }
    assert_eq!(requester.avoided(), [peer(2)].into());

    assert_eq!(requester.no_chain(GenerateFailure::Busy, now), []);
    requester.on_tick(now.after(PAUSE));

    assert_eq!(requester.avoided(), [].into());
}

#[test]
fn hops_that_failed_are_tried_again_ever_more_rarely_while_there_is_time() {
    let missing = FromStage::Decline(Decline { reason: DeclineReason::DownstreamUnreachable, retry_after: None });
    let (mut requester, mut ids, _) = leasing(job(5));
    let (mut now, mut tries) = (T0, Vec::new());
    let failed = loop {
        let stage = |index: usize, requester: &Requester| requester.controls[index].stream;
        requester.on_opened(stage(1, &requester), now);
        requester.on_message(stage(0, &requester), missing.clone(), now);
        tries.push(now.since(T0));
        now = now.after(GRACE);
        let effects = requester.on_tick(now);
        if let Some(failure) = failure(&effects) {
            break failure.clone();
        }
        assert_eq!(requester.no_chain(GenerateFailure::Busy, now), []);
        now = requester.deadline().unwrap();
        assert_eq!(requester.on_tick(now), [Effect::Plan]);
        assert_eq!(requester.severed(), &[].into());
        requester.lease(chain(), &mut ids, now);
    };

    assert_eq!(failed, GenerateFailure::HopFailed { from: peer(1), to: peer(2), range: range(2, 4) });
    assert_eq!(tries, [0, 1_000, 2_500, 5_000, 9_500].map(Span::millis));
}

#[test]
fn all_attempts_together_take_a_bounded_time() {
    let (mut requester, mut ids, _) = leasing(job(5));
    let mut now = T0;
    let mut effects = Vec::new();
    while effects.last() != Some(&Effect::Ended) {
        now = requester.deadline().expect("it is not over");
        // Two of the stages are alive, and none accepts.
        for stream in [0, 2].map(|index: usize| requester.controls[index].stream) {
            requester.on_message(stream, FromStage::Pong(1), now);
        }
        effects = requester.on_tick(now);
        if effects.last() == Some(&Effect::Plan) {
            requester.lease(chain(), &mut ids, now);
        }
    }

    assert!(now.since(T0) <= LEASE_TOTAL);
    assert!(failure(&effects).is_some());
}

#[test]
fn every_stage_is_pinged_each_second_and_lost_when_pings_stay_without_an_answer() {
    let (mut requester, _) = running(job(5));
    let mut pings = 0;
    let (now, effects) = loop {
        let now = requester.deadline().expect("it is not over");
        requester.on_message(STREAMS[0], FromStage::Pong(1), now);
        requester.on_message(STREAMS[2], FromStage::Pong(1), now);
        let effects = requester.on_tick(now);
        pings += effects.iter().filter(|effect| matches!(effect, Effect::Send(StreamId(2), ToStage::Ping(_)))).count();
        let effects = hopeless(&mut requester, effects, now);
        if failure(&effects).is_some() {
            break (now, effects);
        }
    };

    assert_eq!((now, pings), (T0.after(PING).after(SILENCE), 4));
    assert_eq!(failure(&effects), Some(&GenerateFailure::StageLost { peer: peer(2), range: range(2, 4) }));
    assert!(effects.contains(&Effect::Reproach(peer(2), Fault::Broke)));
    assert_eq!(closed(&effects).len(), 3);
}

#[test]
fn a_stage_that_is_complained_of_is_asked_at_once_and_if_it_answers_the_hop_has_failed() {
    let (mut requester, _) = running(job(5));

    let effects = requester.on_message(STREAMS[1], broken(2), T0);
    let asked = |effect: &Effect| matches!(effect, Effect::Send(StreamId(4), ToStage::Ping(_)));
    assert!(effects.iter().any(asked), "{effects:?}");
    assert_eq!(requester.on_tick(T0.after(GRACE)), []);
    let effects = requester.on_message(STREAMS[2], FromStage::Pong(1), T0.after(GRACE));
    let effects = hopeless(&mut requester, effects, T0.after(GRACE));

    let failed = GenerateFailure::HopFailed { from: peer(2), to: peer(3), range: range(4, 6) };
    assert_eq!(failure(&effects), Some(&failed));
}

#[test]
fn an_accusation_of_nobody_in_the_chain_falls_back_on_the_accuser() {
    let (mut requester, _) = running(job(5));

    let effects = requester.on_message(STREAMS[1], broken(40), T0);
    let effects = hopeless(&mut requester, effects, T0);

    assert_eq!(failure(&effects), Some(&GenerateFailure::Misbehaved { peer: peer(2), range: range(2, 4) }));
}

#[test]
fn a_token_from_another_stage_than_the_tail_is_a_breach() {
    let (mut requester, _) = running(job(5));

    let effects = requester.on_message(STREAMS[1], token(5), T0);
    let effects = hopeless(&mut requester, effects, T0);

    assert_eq!(failure(&effects), Some(&GenerateFailure::Misbehaved { peer: peer(2), range: range(2, 4) }));
}

#[test]
fn stages_that_do_not_acknowledge_are_waited_for_two_seconds() {
    let (mut requester, _) = running(job(5));
    requester.on_message(STREAMS[2], token(5), T0);
    let effects = requester.conclude(T0);
    let Some(Effect::Owe { positions: Position(6), lines }) = effects.first() else { panic!("{effects:?}") };
    let owed: Vec<Mflop> = lines.iter().map(|line| line.work).collect();
    assert_eq!(requester.on_signed(&entry()).len(), 3);

    let report = StageReport { positions: Position(6), payload: Bytes(3), frames: 1, busy: Span(4) };
    assert_eq!(requester.on_message(STREAMS[1], FromStage::Settled(report), T0), []);
    let effects = requester.on_tick(requester.deadline().unwrap());

    assert_eq!(requester.deadline(), None);
    let finish = Finish { stages: vec![None, Some(report), None], owed, ..Finish::of(TailFinish::EndOfGeneration) };
    assert_eq!(effects[0], Effect::Finished(finish));
    assert_eq!(closed(&effects), STREAMS);
}

#[test]
fn what_is_not_signed_is_not_owed() {
    let (mut requester, _) = running(job(5));
    requester.on_message(STREAMS[2], token(5), T0);
    requester.conclude(T0);

    let effects = requester.on_not_signed();

    let owed = vec![Mflop::ZERO; 3];
    let finish = Finish { stages: vec![None; 3], owed, ..Finish::of(TailFinish::EndOfGeneration) };
    assert_eq!(effects[0], Effect::Finished(finish));
}

#[test]
fn a_cancelled_request_is_told_once_and_settles_in_silence() {
    let (mut requester, _) = running(job(5));
    requester.on_message(STREAMS[2], token(5), T0);

    let effects = requester.cancel(T0);
    assert_eq!(failure(&effects), Some(&GenerateFailure::Cancelled));
    assert_eq!(requester.cancel(T0), []);
    assert_eq!(requester.on_message(STREAMS[2], token(6), T0), []);
    requester.on_signed(&entry());
    let settled = |stream| requester.on_message(stream, FromStage::NotSettled(SettleRefusal::Invalid), T0);
    let effects: Vec<Effect> = STREAMS.into_iter().flat_map(settled).collect();

    assert_eq!(closed(&effects), STREAMS);
    assert_eq!((failure(&effects), effects.last()), (None, Some(&Effect::Ended)));
}

#[test]
fn cancelling_before_the_first_token_closes_at_once() {
    for (mut requester, _) in [running(job(5)), (leasing(job(5)).0, Vec::new())] {
        let effects = requester.cancel(T0);

        assert_eq!(failure(&effects), Some(&GenerateFailure::Cancelled));
        assert_eq!(closed(&effects), STREAMS);
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Owe { .. })));
    }
}

#[test]
fn survivors_are_owed_for_an_answer_that_broke_off() {
    let (mut requester, _) = running(job(5));
    requester.on_message(STREAMS[2], token(5), T0);

    let effects = requester.on_closed(STREAMS[0], CloseCause::Lost, T0);
    let effects = hopeless(&mut requester, effects, T0);

    let owe = |effect: &Effect| if let Effect::Owe { lines, .. } = effect { Some(lines.clone()) } else { None };
    let lines = effects.iter().find_map(owe).expect("something is owed");
    let owed: Vec<PeerKey> = lines.iter().map(|line| line.stage).collect();
    assert_eq!(owed, [peer(2), peer(3)]);
}

#[test]
fn a_chain_that_lives_and_brings_nothing_is_given_up() {
    let (mut requester, _) = running(job(5));
    let mut now = T0;
    while requester.deadline().is_some() {
        now = requester.deadline().unwrap();
        for stream in STREAMS {
            requester.on_message(stream, FromStage::Pong(1), now);
        }
        let effects = requester.on_tick(now);
        hopeless(&mut requester, effects, now);
    }

    assert_eq!(now, T0.after(STALL));
}
