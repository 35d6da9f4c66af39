use super::*;
use crate::amounts::Span;
use crate::ids::Epoch;
use crate::ids::ModelId;
use crate::ids::NetworkId;
use crate::ids::RowsHash;
use crate::keys::Identity;
use crate::session::outcome::Certainty;
use crate::session::outcome::Fate;
use crate::shape::Architecture;
use crate::shape::ModelShape;
use crate::shape::Rope;
use crate::shape::RopePairs;
use crate::shape::RopeScaling;
use crate::shape::WireDtype;
use crate::units::UnitRange;
use crate::units::UnitWeights;
use crate::wire::commitment::Commitment;
use crate::wire::control::Begins;
use crate::wire::control::Feed;
use crate::wire::control::SamplingParameters;
use crate::wire::control::TailFinish;
use crate::wire::control::TokenOut;
use crate::wire::signed::Signed;

const T0: Time = Time(1_000_000);
const PROMPT: u32 = 5;
const MOST: u32 = 4;

/// No tokens.
const NOTHING: [u32; 0] = [];

#[test]
fn a_token_is_shown_when_both_chains_have_it() {
    let mut answer = Test::open(2);

    assert_eq!(shown(&answer.token(0, 5, 7)), NOTHING);
    assert_eq!(shown(&answer.token(0, 6, 8)), NOTHING);
    assert_eq!(shown(&answer.token(1, 5, 7)), [7]);
    assert_eq!(shown(&answer.token(1, 6, 8)), [8]);
}

#[test]
fn of_three_chains_two_are_enough_and_one_that_differs_is_outvoted() {
    let mut answer = Test::open(3);
    answer.token(2, 5, 9);

    let first = answer.token(0, 5, 7);
    let second = answer.token(1, 5, 7);

    assert_eq!((shown(&first), shown(&second)), (vec![], vec![7]));
    // The stages have committed themselves to nothing, so it waits a while for that before it names them.
    let later = answer.replicas.on_tick(T0.after(GRACE));
    let [lie] = &caught(&later)[..] else { panic!("one lie") };
    assert_eq!(lie.certainty, Certainty::OneOfThem);
    assert_eq!(lie.suspects.iter().map(|stage| stage.peer).collect::<Vec<_>>(), [7, 8, 9].map(peer));
    assert_eq!(shown(&answer.token(0, 6, 8)), NOTHING);
    assert_eq!(shown(&answer.token(1, 6, 8)), [8]);
}

#[test]
fn a_chain_that_is_being_mended_is_not_waited_for_and_compared_when_it_comes_to_what_was_shown() {
    let mut answer = Test::open(2);
    answer.token(0, 5, 7);
    answer.token(1, 5, 7);
    answer.token(0, 6, 8);

    let lost = answer.lose(1, 1);

    assert_eq!(shown(&lost), [8]);
    assert_eq!(shown(&answer.token(0, 7, 9)), [9]);
    // What the lost chain's tail had sent is no other than what was shown.
    assert_eq!(shown(&answer.token(1, 6, 8)), NOTHING);
    assert_eq!(failed(&answer.token(1, 7, 10)), None);
    let paused = answer.token(0, 8, 11);
    assert_eq!(shown(&paused), NOTHING);
}

#[test]
fn two_chains_that_differ_are_decided_on_by_a_third_that_begins_with_the_tokens_before() {
    let mut answer = Test::open(2);
    answer.token(0, 5, 7);
    answer.token(1, 5, 7);
    answer.commit_all(0, 6, &[1, 2, 3]);
    let mut told = answer.commit(1, 0, 6, 1, 2);
    // The second stage received the same, and made something else of it; so the tail has something else, too.
    told.extend(answer.commit(1, 1, 6, 2, 90));
    told.extend(answer.commit(1, 2, 6, 90, 0));

    let waits = GenerateFailure::Disputed { one: peer(2), other: peer(5), range: range(2, 4), position: Position(6) };
    assert!(told.contains(&Effect::Waiting(waits)));
    assert_eq!(told.last(), Some(&Effect::Plan(ReplicaIndex(2))));
    let wish = answer.replicas.wish(ReplicaIndex(2)).unwrap();
    assert_eq!(wish.avoided, [peer(2), peer(5)].into());
    assert_eq!((wish.survivors, wish.decides, wish.cuts), (Some(Vec::new()), true, [2, 4].into()));
    // Nothing is shown meanwhile.
    answer.token(0, 6, 8);
    assert_eq!(shown(&answer.token(1, 6, 8)), NOTHING);

    let resumed = answer.join_third();
    let fed: Vec<Token> = feeds(&resumed).into_iter().flat_map(|feed| feed.tokens.clone()).collect();
    assert_eq!(fed, [4, 4, 4, 4, 4, 7].map(Token));
    answer.commit(2, 0, 6, 1, 2);
    let decided = answer.commit(2, 1, 6, 2, 3);

    let [lie] = &caught(&decided)[..] else { panic!("one lie") };
    assert_eq!((&lie.suspects[..], lie.certainty), (&[stage(5, 2, 4)][..], Certainty::Proven));
    assert_eq!(lie.evidence.iter().map(|signed| signed.author).collect::<Vec<_>>(), [5, 2].map(peer));
    assert!(decided.contains(&Effect::Reproach(peer(5), Fault::Lied)));
    // Those who were right in the wrong chain are paid.
    let owed =
        decided.iter().find_map(|effect| if let Effect::Owe { lines, .. } = effect { Some(lines) } else { None });
    assert_eq!(owed.unwrap().iter().map(|line| line.stage).collect::<Vec<_>>(), [4, 6].map(peer));
    // The third is one of two like any from there on.
    assert_eq!(shown(&decided), NOTHING);
    assert_eq!(shown(&answer.token(2, 6, 8)), [8]);
    assert_eq!(shown(&answer.token(0, 7, 9)), NOTHING);
    assert_eq!(shown(&answer.token(2, 7, 9)), [9]);
}

#[test]
fn without_a_third_the_answer_fails_and_names_both() {
    let mut answer = Test::open(2);
    answer.token(0, 5, 7);
    answer.token(1, 5, 8);
    answer.commit_all(0, 5, &[1, 2, 3]);
    let waits = answer.commit_all(1, 5, &[1, 2, 3]);
    assert_eq!(waits.last(), Some(&Effect::Plan(ReplicaIndex(2))));
    let patience = job().patience;
    answer.replicas.no_chain(ReplicaIndex(2), GenerateFailure::Busy, T0);
    let mut told = Vec::new();
    while failed(&told).is_none() {
        let now = answer.replicas.deadline().unwrap();
        assert!(now <= T0.after(patience));
        told = answer.alive_at(now);
    }

    let both = GenerateFailure::Disputed { one: peer(3), other: peer(6), range: range(4, 6), position: Position(5) };
    assert_eq!(failed(&told), Some(&both));
}

#[test]
fn what_was_shown_and_is_contradicted_ends_the_answer() {
    let mut answer = Test::open(3);
    answer.lose(1, 1);
    answer.lose(2, 1);
    assert_eq!(shown(&answer.token(0, 5, 7)), [7]);

    answer.token(1, 5, 8);
    let told = answer.token(2, 5, 8);
    let told = [told, answer.replicas.on_tick(T0.after(GRACE))].concat();

    assert!(matches!(failed(&told), Some(GenerateFailure::Disputed { .. })), "{told:?}");
}

#[test]
fn fewer_chains_than_were_asked_for_are_refused() {
    let (mut replicas, effects) = Replicas::new(job(), Redundancy::new(3).unwrap());
    assert_eq!(effects, [Effect::Begin(Redundancy(3))]);

    let missing = vec![range(2, 4)];
    let cause = GenerateFailure::NoCover { missing: missing.clone(), held_by_untrusted: false };
    let told = replicas.too_few(2, cause, T0);

    let refusal = GenerateFailure::TooFewReplicas { asked: 3, found: 2, missing };
    assert_eq!(told, [Effect::Failed(refusal), Effect::Ended]);
}

#[test]
fn a_chain_that_cannot_be_leased_ends_those_that_can() {
    let mut answer = Test::leasing(2);
    answer.say(0, 0, FromStage::Accept);
    answer.replicas.on_open_failed(StreamId(6), OpenFailure::Unreachable, T0);

    let told = answer.replicas.no_chain(ReplicaIndex(1), GenerateFailure::Busy, T0);

    let refusal = GenerateFailure::TooFewReplicas { asked: 2, found: 1, missing: vec![range(0, 2)] };
    assert_eq!(failed(&told), Some(&refusal));
    assert_eq!(told.last(), Some(&Effect::Ended));
}

#[test]
fn nothing_is_said_to_have_started_before_all_have() {
    let mut answer = Test::leasing(2);
    let first: Vec<Effect> = (0..3).flat_map(|stage| answer.say(0, stage, FromStage::Accept)).collect();
    answer.token(0, 5, 7);
    let second: Vec<Effect> = (0..3).flat_map(|stage| answer.say(1, stage, FromStage::Accept)).collect();

    let started = |effects: &[Effect]| effects.iter().filter(|effect| matches!(effect, Effect::Started(_))).count();
    assert_eq!((started(&first), started(&second)), (0, 1));
}

#[test]
fn the_end_is_told_when_the_slower_chain_has_come_to_it_too() {
    let mut answer = Test::open(2);
    answer.lose(1, 1);
    answer.mend(1, 1);
    for (position, token) in (5..9).zip([7, 8, 9, 10]) {
        answer.token(0, position, token);
    }
    let first = answer.replicas.on_not_signed(answer.session(0), T0);
    assert!(!first.iter().any(|effect| matches!(effect, Effect::Finished(_))), "{first:?}");

    for (position, token) in (5..9).zip([7, 8, 9, 10]) {
        answer.token_of(1, position, token, Epoch(2));
    }
    let last = answer.replicas.on_not_signed(answer.session(1), T0);

    let Some(Effect::Finished(finish)) = last.iter().find(|effect| matches!(effect, Effect::Finished(_))) else {
        panic!("{last:?}")
    };
    assert_eq!(finish.reason, TailFinish::MaxTokens);
    let fates: Vec<_> = finish.replicas.iter().map(|replica| (replica.fate, replica.tokens)).collect();
    assert_eq!(fates, [(Fate::Agreed, 4), (Fate::Agreed, 4)]);
    assert_eq!(last.last(), Some(&Effect::Ended));
}

#[test]
fn cancelling_settles_with_every_chain_and_tells_once() {
    let mut answer = Test::open(2);
    answer.token(0, 5, 7);
    answer.token(1, 5, 7);

    let told = answer.replicas.cancel(T0);

    let owed = told.iter().filter(|effect| matches!(effect, Effect::Owe { .. })).count();
    assert_eq!((owed, failed(&told)), (2, Some(&GenerateFailure::Cancelled)));
    assert!(!told.contains(&Effect::Ended));
    let rest = [0, 1].map(|chain| answer.replicas.on_not_signed(answer.session(chain), T0)).concat();
    assert_eq!(failed(&rest), None);
    assert_eq!(rest.last(), Some(&Effect::Ended));
}

#[test]
fn every_chain_has_a_session_of_its_own_and_rounds_where_the_first_does() {
    let mut job = job();
    job.wire = WireDtype::F16;
    let (mut replicas, _) = Replicas::new(job, Redundancy(2));

    let effects = replicas.begin((0..2).map(chain).collect(), &mut StreamIds::default(), T0);

    let offer = |effect: &'_ Effect| {
        if let Effect::Send(_, ToStage::Offer(offer)) = effect { Some((**offer).clone()) } else { None }
    };
    let offers: Vec<_> = effects.iter().filter_map(offer).collect();
    assert_eq!(offers.len(), 6);
    assert!(offers.iter().all(|offer| offer.rounding == [(2, WireDtype::F16), (4, WireDtype::F16)]));
    assert!(offers.iter().all(|offer| offer.commits == Commits::Yes && offer.begins == Begins::Here));
    assert_eq!(offers[0].session, SessionId::new([7; 16]));
    assert_ne!(offers[3].session, offers[0].session);
    assert_eq!(session_of(offers[0].session, ReplicaIndex(1)), offers[3].session);
}

fn identity(n: u8) -> Identity {
    Identity::from_secret_bytes(&[n; 32])
}

fn peer(n: u8) -> PeerKey {
    identity(n).peer()
}

fn range(start: u16, end: u16) -> UnitRange {
    UnitRange::new(start, end).unwrap()
}

fn stage(n: u8, start: u16, end: u16) -> Stage {
    Stage { peer: peer(n), range: range(start, end) }
}

/// Of peers 1, 2 and 3; of 4, 5 and 6; and so on.
fn chain(index: u8) -> Chain {
    let first = 3 * index + 1;
    Chain::new(vec![stage(first, 0, 2), stage(first + 1, 2, 4), stage(first + 2, 4, 6)], 6).unwrap()
}

fn job() -> Job {
    let shape = ModelShape {
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
    };
    Job {
        session: SessionId::new([7; 16]),
        model: ModelId::new([9; 32]),
        weights: UnitWeights::whole(ModelId::new([9; 32]), 6),
        shape,
        prompt: vec![Token(4); PROMPT as usize],
        parameters: SamplingParameters::default(),
        max_tokens: MOST,
        end_of_generation: vec![Token(2)],
        wire: WireDtype::F32,
        patience: Span::seconds(60),
        rounding: None,
        commits: Commits::No,
    }
}

/// An answer by so many chains of three stages, each with a stream.
struct Test {
    replicas: Replicas,
    ids: StreamIds,
}

impl Test {
    fn leasing(chains: u8) -> Self {
        let (mut replicas, _) = Replicas::new(job(), Redundancy(chains));
        let mut ids = StreamIds::default();
        replicas.begin((0..chains).map(chain).collect(), &mut ids, T0);
        Self { replicas, ids }
    }

    fn open(chains: u8) -> Self {
        let mut test = Self::leasing(chains);
        for chain in 0..u64::from(chains) {
            for stage in 0..3 {
                test.say(chain, stage, FromStage::Accept);
            }
        }
        test
    }

    fn session(&self, chain: u16) -> SessionId {
        session_of(SessionId::new([7; 16]), ReplicaIndex(chain))
    }

    fn say(&mut self, chain: u64, stage: u64, message: FromStage) -> Vec<Effect> {
        self.replicas.on_message(StreamId(2 * (3 * chain + stage)), message, T0)
    }

    fn token(&mut self, chain: u64, position: u32, token: u32) -> Vec<Effect> {
        self.token_of(chain, position, token, Epoch(1))
    }

    fn token_of(&mut self, chain: u64, position: u32, token: u32, epoch: Epoch) -> Vec<Effect> {
        let finish = (position + 1 - PROMPT >= MOST).then_some(TailFinish::MaxTokens);
        let (position, token) = (Position(position), Token(token));
        self.say(chain, 2, FromStage::Token(TokenOut { epoch, position, token, finish, logprobs: None }))
    }

    /// A stage received rows of one hash, and made those of another of them; the tail's 0 is nothing.
    fn commit(&mut self, chain: u16, stage: u16, end: u32, received: u8, sent: u8) -> Vec<Effect> {
        let range = range(2 * stage, 2 * stage + 2);
        let by = identity((3 * chain + stage + 1) as u8);
        let commitment = Commitment {
            peer: by.peer(),
            session: self.session(chain),
            epoch: Epoch(1),
            model: ModelId::new([9; 32]),
            range,
            end: Position(end),
            received: RowsHash::new([received; 32]),
            sent: RowsHash::new([sent; 32]),
        };
        let signed = Signed::seal(&commitment, &by, NetworkId::new([1; 32])).unwrap();
        self.say(chain.into(), stage.into(), FromStage::Committed(Box::new(signed)))
    }

    /// What the stages received; what each but the tail sent is what the next one did.
    fn commit_all(&mut self, chain: u16, end: u32, received: &[u8; 3]) -> Vec<Effect> {
        let sent = [received[1], received[2], 0];
        let stages = (0..).zip(received.iter().zip(sent));
        stages.flat_map(|(stage, (got, sent))| self.commit(chain, stage, end, *got, sent)).collect()
    }

    /// A stage is lost, and there is no other at once.
    fn lose(&mut self, chain: u64, stage: u64) -> Vec<Effect> {
        let mut told = self.replicas.on_closed(StreamId(2 * (3 * chain + stage)), CloseCause::Lost, T0);
        let index = ReplicaIndex(chain as u16);
        assert!(told.contains(&Effect::Plan(index)), "{told:?}");
        told.extend(self.replicas.no_chain(index, GenerateFailure::Busy, T0));
        told
    }

    /// Another takes the place of the lost one, when it is asked for again.
    fn mend(&mut self, chain: u16, stage: u16) {
        use crate::session::requester::PAUSE;
        use crate::wire::control::Rejoined;
        let (index, now) = (ReplicaIndex(chain), T0.after(PAUSE));
        let told = self.replicas.on_tick(now);
        assert!(told.contains(&Effect::Plan(index)));
        let mut stages = super::tests::chain(chain as u8).stages().to_vec();
        stages[usize::from(stage)].peer = peer(30);
        self.replicas.lease(index, Chain::new(stages, 6).unwrap(), &mut self.ids, now);
        let rejoined = Rejoined { epoch: Epoch(2), length: Position(0), journal: Position(0), heard: Vec::new() };
        for other in (0..3).filter(|other| *other != u64::from(stage)) {
            self.say(chain.into(), other, FromStage::Rejoined(rejoined.clone()));
        }
        // After the six of the first two chains.
        self.replicas.on_message(StreamId(12), FromStage::Accept, now);
    }

    /// Time passes, in which every stage of the first two chains answers and no third is to be had.
    fn alive_at(&mut self, now: Time) -> Vec<Effect> {
        let mut told = self.replicas.on_tick(now);
        for stream in (0..12).step_by(2).map(StreamId) {
            told.extend(self.replicas.on_message(stream, FromStage::Pong(1), now));
        }
        if told.contains(&Effect::Plan(ReplicaIndex(2))) {
            told.extend(self.replicas.no_chain(ReplicaIndex(2), GenerateFailure::Busy, now));
        }
        told
    }

    /// The third is there, and told to begin.
    fn join_third(&mut self) -> Vec<Effect> {
        self.replicas.lease(ReplicaIndex(2), chain(2), &mut self.ids, T0);
        (0..3).flat_map(|stage| self.say(2, stage, FromStage::Accept)).collect()
    }
}

fn shown(effects: &[Effect]) -> Vec<u32> {
    let token = |effect: &Effect| if let Effect::Token { token, .. } = effect { Some(token.0) } else { None };
    effects.iter().filter_map(token).collect()
}

fn caught(effects: &[Effect]) -> Vec<Lie> {
    let lie = |effect: &Effect| if let Effect::Caught(lie) = effect { Some((**lie).clone()) } else { None };
    effects.iter().filter_map(lie).collect()
}

fn failed(effects: &[Effect]) -> Option<&GenerateFailure> {
    effects.iter().find_map(|effect| if let Effect::Failed(failure) = effect { Some(failure) } else { None })
}

fn feeds(effects: &[Effect]) -> Vec<&Feed> {
    let feed = |effect: &'_ Effect| matches!(effect, Effect::Send(_, ToStage::Feed(_)));
    let fed = effects.iter().filter(|effect| feed(effect));
    fed.filter_map(|effect| if let Effect::Send(_, ToStage::Feed(feed)) = effect { Some(feed) } else { None }).collect()
}
