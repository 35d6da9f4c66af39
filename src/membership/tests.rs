use std::collections::BTreeMap;

use bytes::Bytes as Body;
use expect_test::expect;
use proptest::prelude::*;

use super::*;
use crate::amounts::Bytes;
use crate::units::UnitRange;

const MODEL: ModelId = ModelId::new([9; 32]);

fn key(index: u16) -> PeerKey {
    let mut bytes = [1; 32];
    bytes[..2].copy_from_slice(&index.to_be_bytes());
    PeerKey::new(bytes)
}

fn at(seconds: u64) -> Time {
    Time::ZERO.after(Span::seconds(seconds))
}

fn signed<T>(author: PeerKey, value: T) -> Box<Signed<T>> {
    Box::new(Signed { value, author, body: Body::new(), signature: [0; 64] })
}

fn profile(peer: u16, boot: u64, seq: u64) -> Profile {
    let holding = Holding {
        model: MODEL,
        range: UnitRange::new(peer % 5, peer % 5 + 2).unwrap(),
        state: HoldingState::Ready,
        per_unit: Span::millis(1),
    };
    Profile {
        peer: key(peer),
        order: BootSeq { boot, seq },
        valid_for: Span::seconds(45),
        memory: Bytes::mib(4),
        memory_free: Bytes::mib(1),
        cores: 2,
        cpu_features: 0,
        devices: Vec::new(),
        formats: Vec::new(),
        arithmetic: "canonical-1-f16".to_owned(),
        holdings: vec![holding],
        sessions: 0,
        queue: Span::ZERO,
        round_trips: Vec::new(),
        draining: false,
        stored: Vec::new(),
    }
}

fn heard(profile: Profile) -> Event {
    Event::ProfileHeard(signed(profile.peer, profile))
}

fn card(peer: u16, model: u8, seq: u64, title: &str) -> ModelCard {
    ModelCard {
        peer: key(peer),
        order: BootSeq { boot: 1, seq },
        valid_for: Span::seconds(45),
        model: ModelId::new([model; 32]),
        architecture: "llama".to_owned(),
        units: 7,
        bytes: Bytes::mib(1),
        quantisation: "Q8_0".to_owned(),
        context: 512,
        title: title.to_owned(),
    }
}

fn card_heard(card: ModelCard) -> Event {
    Event::CardHeard(signed(card.peer, card))
}

fn membership() -> Membership {
    Membership::new(key(0), MembershipConfig::default())
}

fn bounded(max_peers: usize, max_models: usize) -> Membership {
    let config = MembershipConfig { max_peers, max_models, max_models_per_peer: 2, ..MembershipConfig::default() };
    Membership::new(key(0), config)
}

fn standing(membership: &Membership, peer: u16, now: Time) -> Option<Standing> {
    membership.peer(key(peer), now).map(|state| state.standing)
}

#[test]
fn a_stale_profile_is_ignored_also_within_a_day_of_its_expiry() {
    let mut membership = membership();
    assert_eq!(membership.handle(heard(profile(1, 3, 7)), at(0)), [Change::PeerAppeared(key(1))]);
    assert_eq!(membership.handle(heard(profile(1, 3, 7)), at(1)), []);
    assert_eq!(membership.handle(heard(profile(1, 2, 900)), at(1)), []);
    assert_eq!(membership.handle(heard(profile(1, 3, 8)), at(2)), [Change::ProfileRenewed(key(1))]);

    assert_eq!(membership.handle(Event::Ticked, at(47)), [Change::PeerExpired(key(1))]);

    assert_eq!(membership.handle(heard(profile(1, 3, 8)), at(86_000)), []);
    assert_eq!(membership.handle(heard(profile(1, 4, 0)), at(86_001)), [Change::PeerAppeared(key(1))]);
}

#[test]
fn a_ghost_is_forgotten_after_a_day() {
    let mut membership = membership();
    membership.handle(heard(profile(1, 3, 8)), at(0));
    membership.handle(Event::Ticked, at(45));

    assert_eq!(membership.next_deadline(), Some(at(45 + 24 * 60 * 60)));
    membership.handle(Event::Ticked, at(45 + 24 * 60 * 60));
    assert_eq!(membership.next_deadline(), None);
}

#[test]
fn validity_is_counted_from_first_sight_and_capped() {
    let mut membership = membership();
    membership.handle(heard(Profile { valid_for: Span::seconds(1_000_000), ..profile(1, 1, 0) }), at(10));
    membership.handle(heard(Profile { valid_for: Span::seconds(5), ..profile(2, 1, 0) }), at(10));

    assert_eq!(membership.next_deadline(), Some(at(15)));
    assert_eq!(membership.handle(Event::Ticked, at(15)), [Change::PeerExpired(key(2))]);
    assert_eq!(membership.next_deadline(), Some(at(55)));
    assert_eq!(membership.count(at(54)), 1);
    assert_eq!(membership.count(at(55)), 0);
}

#[test]
fn a_profile_valid_for_no_time_is_a_farewell() {
    let mut membership = membership();
    membership.handle(heard(profile(1, 1, 0)), at(0));

    let changes = membership.handle(heard(Profile { valid_for: Span::ZERO, ..profile(1, 1, 1) }), at(1));

    assert_eq!(changes, [Change::ProfileRenewed(key(1)), Change::PeerExpired(key(1))]);
    assert_eq!(membership.count(at(1)), 0);
}

#[test]
fn a_claim_that_fails_is_not_offered_for_a_time_that_doubles() {
    let mut membership = membership();
    membership.handle(heard(profile(1, 1, 0)), at(0));
    let fail = |failure| Event::PeerFailed { peer: key(1), failure };
    let mut trace = String::new();
    let mut now = at(0);
    for seq in 1..9 {
        for change in membership.handle(fail(Failure::Lease), now) {
            let Change::PeerDemoted { until, .. } = change else { continue };
            trace += &format!("demoted for {}\n", until.since(now));
            assert!(membership.holders(MODEL, now).is_empty());
            now = until;
        }
        membership.handle(heard(profile(1, 1, seq)), now);
        assert_eq!(standing(&membership, 1, now), Some(Standing::Offered));
    }

    expect![[r#"
        demoted for 5.0 s
        demoted for 10.0 s
        demoted for 20.0 s
        demoted for 40.0 s
        demoted for 80.0 s
        demoted for 160.0 s
        demoted for 300.0 s
        demoted for 300.0 s
    "#]]
    .assert_eq(&trace);
    membership.handle(Event::PeerSucceeded(key(1)), now);
    let again = membership.handle(fail(Failure::Lease), now);
    assert_eq!(again, [Change::PeerDemoted { peer: key(1), until: now.after(Span::seconds(5)) }]);
}

#[test]
fn a_connection_makes_up_for_a_failed_dial_and_not_for_a_failed_lease() {
    let mut membership = membership();
    for (peer, failure) in [(1, Failure::Dial), (2, Failure::Lease)] {
        membership.handle(heard(profile(peer, 1, 0)), at(0));
        membership.handle(Event::PeerFailed { peer: key(peer), failure }, at(0));
    }

    assert_eq!(membership.handle(Event::Connected(key(1)), at(1)), [Change::PeerRestored(key(1))]);
    assert_eq!(membership.handle(Event::Connected(key(2)), at(1)), []);

    assert_eq!(standing(&membership, 2, at(1)), Some(Standing::Demoted { until: at(5) }));
    assert_eq!(membership.handle(Event::PeerSucceeded(key(2)), at(2)), [Change::PeerRestored(key(2))]);
}

#[test]
fn a_lost_neighbour_is_not_offered_until_it_is_heard_from_again() {
    let mut membership = membership();
    membership.handle(Event::Connected(key(1)), at(0));
    membership.handle(heard(profile(1, 1, 0)), at(0));

    assert_eq!(membership.handle(Event::Disconnected(key(1)), at(1)), [Change::PeerSuspected(key(1))]);
    assert_eq!(standing(&membership, 1, at(1)), Some(Standing::Suspected));
    // Said before it died, and still under way.
    membership.handle(heard(profile(1, 1, 1)), at(2));
    assert_eq!(standing(&membership, 1, at(2)), Some(Standing::Suspected));

    let changes = membership.handle(heard(profile(1, 1, 2)), at(4));
    assert_eq!(changes, [Change::ProfileRenewed(key(1)), Change::PeerRestored(key(1))]);
    assert_eq!(standing(&membership, 1, at(4)), Some(Standing::Offered));
}

#[test]
fn a_restarted_neighbour_is_offered_at_once() {
    let mut membership = membership();
    membership.handle(Event::Connected(key(1)), at(0));
    membership.handle(heard(profile(1, 1, 5)), at(0));
    membership.handle(Event::Disconnected(key(1)), at(1));

    membership.handle(heard(profile(1, 2, 0)), at(1));

    assert_eq!(standing(&membership, 1, at(1)), Some(Standing::Offered));
}

#[test]
fn a_draining_peer_is_live_and_not_offered() {
    let mut membership = membership();
    membership.handle(heard(Profile { draining: true, ..profile(1, 1, 0) }), at(0));

    assert_eq!(standing(&membership, 1, at(0)), Some(Standing::Draining));
    assert_eq!(membership.count(at(0)), 1);
    assert!(membership.holders(MODEL, at(0)).is_empty());
}

#[test]
fn cover_counts_ready_holdings_of_offered_peers() {
    let mut membership = membership();
    membership.manifest_known(MODEL, 7);
    for peer in [5, 6, 7, 8] {
        membership.handle(heard(profile(peer, 1, 0)), at(0));
    }
    let mut loading = profile(9, 1, 0);
    loading.holdings[0].state = HoldingState::Loading;
    membership.handle(heard(loading), at(0));
    membership.handle(Event::PeerFailed { peer: key(6), failure: Failure::Dial }, at(0));

    let cover = membership.cover(MODEL, at(1)).unwrap();

    assert_eq!(cover.counts(), [1, 1, 1, 2, 1, 0, 0]);
    assert_eq!(membership.holders(MODEL, at(1)).len(), 4);
    assert_eq!(membership.cover(ModelId::new([8; 32]), at(1)), None);
}

#[test]
fn placement_counts_on_a_neighbour_that_routing_avoids() {
    let mut membership = membership();
    membership.handle(Event::Connected(key(1)), at(0));
    for peer in [1, 2] {
        membership.handle(heard(profile(peer, 1, 0)), at(0));
        membership.handle(Event::PeerFailed { peer: key(peer), failure: Failure::Lease }, at(0));
    }

    assert_eq!(membership.offered(at(1)).count(), 0);
    assert_eq!(membership.present(at(1)).map(|profile| profile.peer).collect::<Vec<_>>(), [key(1)]);
}

#[test]
fn round_trips_get_shorter_at_once_and_longer_slowly_and_strangers_are_believed_among_themselves() {
    let mut membership = membership();
    membership.handle(Event::Connected(key(1)), at(0));
    for millis in [900, 80, 160] {
        membership.handle(Event::RoundTripMeasured { peer: key(1), span: Span::millis(millis) }, at(0));
    }
    let mut far = profile(2, 1, 0);
    let neighbour = key(3).as_bytes()[..8].try_into().unwrap();
    far.round_trips = vec![RoundTrip { neighbour, span: Span::millis(7) }];
    membership.handle(heard(far), at(0));

    assert_eq!(membership.round_trip(key(1)), Some(Span::millis(90)));
    assert_eq!(membership.nearest(8), [(key(1), Span::millis(90))]);
    assert_eq!(membership.round_trip_between(key(0), key(1), at(0)), Some(Span::millis(90)));
    assert_eq!(membership.round_trip_between(key(3), key(2), at(0)), Some(Span::millis(7)));
    assert_eq!(membership.round_trip_between(key(3), key(4), at(0)), None);
}

#[test]
fn a_flood_of_strangers_evicts_neither_neighbours_nor_those_before_it() {
    let mut membership = bounded(4, 4);
    membership.handle(Event::Connected(key(1)), at(0));
    membership.handle(heard(profile(1, 1, 0)), at(0));
    membership.handle(heard(profile(2, 1, 0)), at(1));
    for stranger in 100..200 {
        membership.handle(heard(profile(stranger, 1, 0)), at(2));
    }
    let known = |membership: &Membership| membership.peers(at(3)).map(|state| state.peer).collect::<Vec<_>>();
    assert_eq!(known(&membership), [key(1), key(2), key(100), key(101)]);

    membership.handle(Event::Connected(key(3)), at(3));

    assert_eq!(known(&membership), [key(1), key(2), key(3), key(100)]);
}

#[test]
fn a_title_that_two_models_claim_is_contested() {
    let mut membership = membership();
    membership.handle(card_heard(card(1, 1, 0, "Stories")), at(0));
    membership.handle(card_heard(card(2, 1, 0, "Stories")), at(0));
    membership.handle(card_heard(card(3, 1, 0, "Mine")), at(0));
    membership.handle(card_heard(card(3, 2, 1, "stories ")), at(0));
    membership.handle(card_heard(card(3, 3, 2, "Tales")), at(0));

    let models = membership.models();

    let shown: Vec<_> = models.iter().map(|it| (it.card.title.as_str(), it.said_by, it.title)).collect();
    let expected = [("Stories", 3, Title::Contested), ("stories ", 1, Title::Contested), ("Tales", 1, Title::Sole)];
    assert_eq!(shown, expected);
}

#[test]
fn a_manifest_outweighs_what_cards_say_of_the_units() {
    let mut membership = membership();
    let model = ModelId::new([1; 32]);
    for (peer, units) in [(1, 7), (2, 9), (3, 9)] {
        membership.handle(card_heard(ModelCard { units, ..card(peer, 1, 0, "Stories") }), at(0));
    }
    assert_eq!(membership.units(model), Some(9));

    membership.manifest_known(model, 7);

    assert_eq!(membership.units(model), Some(7));
}

#[test]
fn cards_expire_and_stale_ones_bring_no_model_back() {
    let mut membership = membership();
    let model = ModelId::new([1; 32]);
    assert_eq!(membership.handle(card_heard(card(1, 1, 4, "Stories")), at(0)), [Change::ModelAppeared(model)]);
    assert_eq!(membership.handle(card_heard(card(1, 1, 5, "Stories")), at(1)), [Change::CardRenewed(model)]);
    assert_eq!(membership.handle(Event::Ticked, at(46)), [Change::ModelExpired(model)]);

    assert_eq!(membership.handle(card_heard(card(1, 1, 5, "Stories")), at(47)), []);
    assert_eq!(membership.handle(card_heard(card(1, 1, 6, "Stories")), at(48)), [Change::ModelAppeared(model)]);
}

#[test]
fn a_card_of_an_earlier_boot_than_the_profile_is_a_ghosts() {
    let mut membership = membership();
    membership.handle(heard(profile(1, 2, 0)), at(0));

    assert_eq!(membership.handle(card_heard(card(1, 1, 99, "Stories")), at(0)), []);
}

#[test]
fn a_flood_of_models_leaves_neighbours_theirs() {
    let mut membership = bounded(1_000, 3);
    membership.handle(Event::Connected(key(1)), at(0));
    membership.handle(card_heard(card(1, 1, 0, "Mine")), at(0));
    for stranger in 10..60 {
        membership.handle(card_heard(card(stranger, 10 + u8::try_from(stranger).unwrap(), 0, "Spam")), at(1));
    }
    // One peer makes known no more than its part.
    for model in 200..210 {
        membership.handle(card_heard(card(2, model, u64::from(model), "Spam")), at(1));
    }
    assert_eq!(membership.models().len(), 3);

    membership.handle(card_heard(card(1, 2, 1, "Mine, too")), at(2));

    let titles: Vec<_> = membership.models().iter().map(|model| model.card.title.clone()).collect();
    assert_eq!(titles, ["Mine", "Mine, too", "Spam"]);
}

#[test]
fn another_process_under_the_own_key_is_noticed() {
    let mut membership = membership();
    membership.announced(BootSeq { boot: 4, seq: 2 });

    assert_eq!(membership.handle(heard(profile(0, 4, 2)), at(0)), []);
    let elsewhere = BootSeq { boot: 5, seq: 0 };
    assert_eq!(membership.handle(heard(profile(0, 5, 0)), at(0)), [Change::OwnKeyElsewhere(elsewhere)]);
    assert_eq!(membership.count(at(0)), 0);
}

fn events() -> impl Strategy<Value = Event> {
    let peer = 0..12_u16;
    prop_oneof![
        4 => (peer.clone(), 0..3_u64, 0..6_u64, 0..100_u64, any::<bool>()).prop_map(|(peer, boot, seq, valid, draining)| {
            heard(Profile { valid_for: Span::seconds(valid), draining, ..profile(peer, boot, seq) })
        }),
        3 => (peer.clone(), 0..8_u8, 0..6_u64).prop_map(|(peer, model, seq)| card_heard(card(peer, model, seq, "Title"))),
        2 => peer.clone().prop_map(|peer| Event::Connected(key(peer))),
        2 => peer.clone().prop_map(|peer| Event::Disconnected(key(peer))),
        1 => peer.clone().prop_map(|peer| Event::PeerFailed { peer: key(peer), failure: Failure::Dial }),
        1 => peer.clone().prop_map(|peer| Event::PeerFailed { peer: key(peer), failure: Failure::Lease }),
        1 => peer.prop_map(|peer| Event::PeerSucceeded(key(peer))),
        1 => Just(Event::Ticked),
    ]
}

proptest! {
    /// Bounds hold, and every deadline lies ahead once the time is told.
    #[test]
    fn tables_stay_bounded(steps in proptest::collection::vec((events(), 0..20_u64), 1..120)) {
        let mut membership = bounded(6, 3);
        let mut now = Time::ZERO;
        for (event, wait) in steps {
            now = now.after(Span::seconds(wait));
            membership.handle(event, now);

            prop_assert!(membership.peers(now).count() <= 6);
            prop_assert!(membership.models().len() <= 3);
            prop_assert!(membership.next_deadline().is_none_or(|deadline| deadline > now));
        }
    }

    /// Whatever comes in whatever order, no announcement is followed by one before it, and nobody is its own peer.
    #[test]
    fn the_order_of_a_peers_profiles_never_falls(steps in proptest::collection::vec((events(), 0..20_u64), 1..120)) {
        let mut membership = membership();
        let mut now = Time::ZERO;
        let mut newest: BTreeMap<PeerKey, BootSeq> = BTreeMap::new();
        for (event, wait) in steps {
            now = now.after(Span::seconds(wait));
            membership.handle(event, now);

            for state in membership.peers(now) {
                prop_assert!(state.peer != key(0));
                let Some(profile) = state.profile else { continue };
                let seen = newest.entry(state.peer).or_default();
                prop_assert!(profile.order >= *seen);
                *seen = profile.order;
            }
        }
    }
}
