//! Every decoder against what nobody should send: random bytes, damaged messages, and values at the limits.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::wire::control::FromStage;
use crate::wire::control::ToStage;
use crate::wire::credit::CreditEntry;
use crate::wire::fetch::FetchAnswer;
use crate::wire::fetch::FetchRequest;
use crate::wire::golden;
use crate::wire::gossip::Gossip;
use crate::wire::hello::Hello;
use crate::wire::hop::HopBack;
use crate::wire::hop::HopForward;
use crate::wire::hop::HopOpen;
use crate::wire::manifest::Manifest;
use crate::wire::profile::Profile;
use crate::wire::samples;
use crate::wire::vocabulary::Vocabulary;

/// Gives `bytes` to every decoder. What one accepts must survive its own encoding.
fn try_all(bytes: &[u8]) {
    let network = samples::network();
    macro_rules! survives {
        ($($message:ident)*) => {
            $(if let Ok(message) = $message::decode(bytes) {
                assert_eq!($message::decode(&message.encode()), Ok(message));
            })*
        };
    }
    survives!(Hello HopOpen HopBack FetchRequest FetchAnswer Profile);
    if let Ok(message) = ToStage::decode(bytes, network) {
        assert_eq!(ToStage::decode(&message.encode(), network), Ok(message));
    }
    if let Ok(message) = FromStage::decode(bytes, network) {
        assert_eq!(FromStage::decode(&message.encode(), network), Ok(message));
    }
    if let Ok(message) = Gossip::decode(bytes, network) {
        assert_eq!(Gossip::decode(&message.encode(), network), Ok(message));
    }
    if let Ok(pending) = HopForward::decode_header(bytes) {
        let payload = vec![0; pending.payload_bytes()];
        let message = pending.with_payload(payload.into()).unwrap();
        assert_eq!(HopForward::decode_header(&message.encode().header), Ok(pending));
    }
    // The fixed layouts have one encoding each.
    if let Ok(message) = Manifest::decode(bytes) {
        assert_eq!(message.encode(), bytes);
    }
    if let Ok(message) = Vocabulary::decode(bytes) {
        assert_eq!(message.encode(), bytes);
    }
    if let Ok(message) = CreditEntry::decode(bytes, network) {
        assert_eq!(message.encode(), bytes);
    }
}

/// One damage to a message.
#[derive(Clone, Debug)]
enum Damage {
    Set(Index, u8),
    Insert(Index, u8),
    Remove(Index),
    Truncate(Index),
    Repeat(Index, Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<Index>(), any::<u8>()).prop_map(|(place, value)| Damage::Set(place, value)),
        1 => (any::<Index>(), any::<u8>()).prop_map(|(place, value)| Damage::Insert(place, value)),
        1 => any::<Index>().prop_map(Damage::Remove),
        1 => any::<Index>().prop_map(Damage::Truncate),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Repeat(from, to)),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage) {
    if bytes.is_empty() {
        return;
    }
    let length = bytes.len();
    match damage {
        Damage::Set(place, value) => bytes[place.index(length)] = *value,
        Damage::Insert(place, value) => bytes.insert(place.index(length), *value),
        Damage::Remove(place) => drop(bytes.remove(place.index(length))),
        Damage::Truncate(place) => bytes.truncate(place.index(length)),
        Damage::Repeat(from, to) => {
            let (from, to) = (from.index(length), to.index(length));
            let piece = bytes[from.min(to)..from.max(to)].to_vec();
            bytes.extend_from_slice(&piece);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn random_bytes_harm_no_decoder(bytes in vec(any::<u8>(), 0..600)) {
        try_all(&bytes);
    }

    #[test]
    fn damaged_messages_harm_no_decoder(seed in any::<Index>(), damages in vec(damage(), 1..6)) {
        let seeds = golden::seeds();
        let mut bytes = seeds[seed.index(seeds.len())].clone();
        damages.iter().for_each(|damage| apply(&mut bytes, damage));
        try_all(&bytes);
        // A frame's golden bytes begin with the length of its header.
        try_all(bytes.get(1..).unwrap_or_default());
    }
}

#[test]
fn every_prefix_of_every_message_harms_no_decoder() {
    for seed in golden::seeds() {
        for length in 0..=seed.len() {
            try_all(&seed[..length]);
        }
    }
}

#[test]
fn a_control_message_of_empty_parts_takes_bounded_memory() {
    // An offer whose chain is half a million empty stages: as much as the size limit lets through.
    let chain = [0x22, 0].repeat(ToStage::MAX / 2 - 8);
    let mut bytes = vec![0x0a];
    prost::encoding::encode_varint(chain.len() as u64, &mut bytes);
    bytes.extend_from_slice(&chain);

    assert!(bytes.len() <= ToStage::MAX);
    assert!(ToStage::decode(&bytes, samples::network()).is_err());
}

#[test]
fn more_bytes_than_a_message_may_have_are_refused_by_size() {
    let network = samples::network();
    let over = |limit: usize| vec![0; limit + 1];

    assert!(Hello::decode(&over(Hello::MAX)).unwrap_err().to_string().contains("at most"));
    assert!(FromStage::decode(&over(FromStage::MAX), network).unwrap_err().to_string().contains("at most"));
    assert!(ToStage::decode(&over(ToStage::MAX), network).unwrap_err().to_string().contains("at most"));
    assert!(HopOpen::decode(&over(HopOpen::MAX)).unwrap_err().to_string().contains("at most"));
    assert!(HopBack::decode(&over(HopBack::MAX)).unwrap_err().to_string().contains("at most"));
    assert!(HopForward::decode_header(&over(HopForward::MAX_HEADER)).unwrap_err().to_string().contains("at most"));
    assert!(FetchRequest::decode(&over(FetchRequest::MAX)).unwrap_err().to_string().contains("at most"));
    assert!(FetchAnswer::decode(&over(FetchAnswer::MAX)).unwrap_err().to_string().contains("at most"));
    assert!(Gossip::decode(&over(Gossip::MAX), network).unwrap_err().to_string().contains("at most"));
    assert!(CreditEntry::decode(&over(CreditEntry::MAX), network).unwrap_err().to_string().contains("at most"));
    assert!(Manifest::decode(&over(8 << 20)).unwrap_err().to_string().contains("at most"));
}
