//! Golden bytes: what earlier builds wrote must stay readable.
//!
//! `golden/v1.txt` has a line per message. A change of this file is a change of the protocol: within a major version
//! lines are only added. `UPDATE_EXPECT=1` writes lines for messages that are new.

use std::collections::BTreeMap;

use expect_test::expect_file;

use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::Epoch;
use crate::ids::PeerKey;
use crate::ids::StageIndex;
use crate::ids::Step;
use crate::ids::Token;
use crate::wire::control::Begins;
use crate::wire::control::Break;
use crate::wire::control::Commits;
use crate::wire::control::Decline;
use crate::wire::control::DeclineReason;
use crate::wire::control::Feed;
use crate::wire::control::FromStage;
use crate::wire::control::HopBroken;
use crate::wire::control::LastFeed;
use crate::wire::control::Offer;
use crate::wire::control::Resume;
use crate::wire::control::SettleRefusal;
use crate::wire::control::StageFailure;
use crate::wire::control::StageReport;
use crate::wire::control::TailFinish;
use crate::wire::control::ToStage;
use crate::wire::control::TokenOut;
use crate::wire::fetch::FetchAnswer;
use crate::wire::fetch::FetchPart;
use crate::wire::fetch::FetchRequest;
use crate::wire::gossip::Gossip;
use crate::wire::hello::Hello;
use crate::wire::hop::HopBack;
use crate::wire::hop::HopForward;
use crate::wire::hop::HopOpen;
use crate::wire::hop::HopRefusal;
use crate::wire::manifest::Manifest;
use crate::wire::samples;
use crate::wire::vocabulary::Vocabulary;

const GOLDEN: &str = include_str!("golden/v1.txt");

/// A message that can be read back from golden bytes.
#[derive(Debug, PartialEq)]
enum Golden {
    Hello(Hello),
    Gossip(Gossip),
    ToStage(ToStage),
    FromStage(FromStage),
    HopOpen(HopOpen),
    HopForward(HopForward),
    HopBack(HopBack),
    FetchRequest(FetchRequest),
    FetchAnswer(FetchAnswer),
    Manifest(Manifest),
    Vocabulary(Vocabulary),
}

impl Golden {
    /// A frame's header and payload are joined by a known length: the header's, in one byte.
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Hello(message) => message.encode().to_vec(),
            Self::Gossip(message) => message.encode().to_vec(),
            Self::ToStage(message) => message.encode().to_vec(),
            Self::FromStage(message) => message.encode().to_vec(),
            Self::HopOpen(message) => message.encode().to_vec(),
            Self::HopForward(message) => {
                let parts = message.encode();
                let length = u8::try_from(parts.header.len()).unwrap();
                [&[length], &parts.header[..], &parts.payload.unwrap_or_default()].concat()
            }
            Self::HopBack(message) => message.encode().to_vec(),
            Self::FetchRequest(message) => message.encode().to_vec(),
            Self::FetchAnswer(message) => message.encode().to_vec(),
            Self::Manifest(message) => message.encode().to_vec(),
            Self::Vocabulary(message) => message.encode().to_vec(),
        }
    }

    /// Reads `bytes` as the kind of message that `self` is.
    fn decode_alike(&self, bytes: &[u8]) -> Self {
        match self {
            Self::Hello(_) => Self::Hello(Hello::decode(bytes).unwrap()),
            Self::Gossip(_) => Self::Gossip(Gossip::decode(bytes, samples::network()).unwrap()),
            Self::ToStage(_) => Self::ToStage(ToStage::decode(bytes, samples::network()).unwrap()),
            Self::FromStage(_) => Self::FromStage(FromStage::decode(bytes, samples::network()).unwrap()),
            Self::HopOpen(_) => Self::HopOpen(HopOpen::decode(bytes).unwrap()),
            Self::HopForward(_) => {
                let (header, payload) = bytes[1..].split_at(bytes[0].into());
                let pending = HopForward::decode_header(header).unwrap();
                Self::HopForward(pending.with_payload(payload.to_vec().into()).unwrap())
            }
            Self::HopBack(_) => Self::HopBack(HopBack::decode(bytes).unwrap()),
            Self::FetchRequest(_) => Self::FetchRequest(FetchRequest::decode(bytes).unwrap()),
            Self::FetchAnswer(_) => Self::FetchAnswer(FetchAnswer::decode(bytes).unwrap()),
            Self::Manifest(_) => Self::Manifest(Manifest::decode(bytes).unwrap()),
            Self::Vocabulary(_) => Self::Vocabulary(Vocabulary::decode(bytes).unwrap()),
        }
    }
}

fn control() -> Vec<(&'static str, Golden)> {
    let feed = Feed { first: Position(4), tokens: vec![Token(1), Token(500)], last: LastFeed::Yes };
    let (stage, peer) = (StageIndex(1), PeerKey::new([9; 32]));
    let decline = Decline { reason: DeclineReason::Busy, retry_after: Some(Span::seconds(2)) };
    let last = TokenOut { finish: Some(TailFinish::EndOfGeneration), ..samples::token_out() };
    let too_little = SettleRefusal::TooLittle { counted: Mflop(5_000) };
    let rejoins = Offer { begins: Begins::Earlier, ..samples::offer() };
    let commits = Offer { commits: Commits::Yes, ..samples::offer() };
    let resume = Resume { epoch: Epoch(3), keep: Position(129), next_keep: Position(0) };
    let broken = HopBroken { epoch: Epoch(2), stage, peer, how: Break::Breach };
    vec![
        ("to-stage-rejoin", Golden::ToStage(ToStage::Offer(Box::new(rejoins)))),
        ("to-stage-reconfigure", Golden::ToStage(ToStage::Reconfigure(Box::new(samples::reconfigure())))),
        ("to-stage-resume", Golden::ToStage(ToStage::Resume(resume))),
        ("from-stage-rejoined", Golden::FromStage(FromStage::Rejoined(samples::rejoined()))),
        ("from-stage-broken", Golden::FromStage(FromStage::HopBroken(broken))),
        ("from-stage-leaving", Golden::FromStage(FromStage::Leaving)),
        ("to-stage-commits", Golden::ToStage(ToStage::Offer(Box::new(commits)))),
        ("from-stage-committed", Golden::FromStage(FromStage::Committed(Box::new(samples::commitment())))),
        ("to-stage-offer", Golden::ToStage(ToStage::Offer(Box::new(samples::offer())))),
        ("to-stage-offer-weights", Golden::ToStage(ToStage::Offer(Box::new(samples::offer_of_derived())))),
        ("to-stage-feed", Golden::ToStage(ToStage::Feed(feed))),
        ("to-stage-ping", Golden::ToStage(ToStage::Ping(6))),
        ("to-stage-settle", Golden::ToStage(ToStage::Settle(Box::new(samples::entry(3))))),
        ("from-stage-accept", Golden::FromStage(FromStage::Accept)),
        ("from-stage-decline", Golden::FromStage(FromStage::Decline(decline))),
        ("from-stage-token", Golden::FromStage(FromStage::Token(last))),
        ("from-stage-pong", Golden::FromStage(FromStage::Pong(6))),
        ("from-stage-hop-lost", Golden::FromStage(FromStage::Failed(StageFailure::HopLost { stage, peer }))),
        ("from-stage-bad-frame", Golden::FromStage(FromStage::Failed(StageFailure::BadFrame { stage, peer }))),
        ("from-stage-engine", Golden::FromStage(FromStage::Failed(StageFailure::Engine("no memory".to_owned())))),
        ("from-stage-expired", Golden::FromStage(FromStage::Failed(StageFailure::Expired))),
        ("from-stage-stuck", Golden::FromStage(FromStage::Failed(StageFailure::Stuck))),
        ("from-stage-settled", Golden::FromStage(FromStage::Settled(StageReport::default()))),
        ("from-stage-too-little", Golden::FromStage(FromStage::NotSettled(too_little))),
        ("from-stage-fork", Golden::FromStage(FromStage::NotSettled(SettleRefusal::Fork))),
    ]
}

fn others() -> Vec<(&'static str, Golden)> {
    let open = HopOpen { session: samples::session(), epoch: Epoch(2), from: StageIndex(2), to: StageIndex(3) };
    let request = FetchRequest { blob: samples::blob(4), part: FetchPart::Data, offset: 1 << 20, length: 1 << 20 };
    let outline = FetchRequest { part: FetchPart::Outline, offset: 0, ..request };
    let piece = FetchAnswer::Piece { total: 3, data: vec![1, 2, 3].into() };
    let refused = HopBack::Refused(HopRefusal::OutOfOrder);
    vec![
        ("hello", Golden::Hello(Hello { features: 5, ..Hello::current("brigade 0.1.0") })),
        ("gossip-profile", Golden::Gossip(samples::gossip_profile())),
        ("gossip-card", Golden::Gossip(samples::gossip_card())),
        ("gossip-credit", Golden::Gossip(Gossip::Credit(samples::entry(2)))),
        ("hop-open", Golden::HopOpen(open)),
        ("hop-frame", Golden::HopForward(samples::frame())),
        ("hop-token", Golden::HopForward(samples::token_frame())),
        ("hop-opened", Golden::HopBack(HopBack::Opened)),
        ("hop-taken", Golden::HopBack(HopBack::Taken(Step(300)))),
        ("hop-fenced", Golden::HopBack(HopBack::Fenced(Epoch(3)))),
        ("hop-refused", Golden::HopBack(refused)),
        ("fetch-request", Golden::FetchRequest(request)),
        ("fetch-outline", Golden::FetchRequest(outline)),
        ("fetch-piece", Golden::FetchAnswer(piece)),
        ("fetch-not-found", Golden::FetchAnswer(FetchAnswer::NotFound)),
        ("fetch-busy", Golden::FetchAnswer(FetchAnswer::Busy)),
        ("manifest", Golden::Manifest(samples::manifest())),
        ("manifest-window", Golden::Manifest(samples::manifest_of_a_window())),
        ("manifest-derived", Golden::Manifest(samples::manifest_derived())),
        ("vocabulary", Golden::Vocabulary(samples::vocabulary())),
    ]
}

fn all() -> BTreeMap<&'static str, Golden> {
    control().into_iter().chain(others()).collect()
}

#[test]
fn every_message_is_written_as_it_always_was() {
    let mut text = String::new();
    for (name, message) in all() {
        text += &format!("{name} {}\n", data_encoding::HEXLOWER.encode(&message.encode()));
    }

    expect_file!["golden/v1.txt"].assert_eq(&text);
}

#[test]
fn every_golden_message_still_decodes() {
    let samples = all();
    let lines: BTreeMap<&str, &str> = GOLDEN.lines().map(|line| line.split_once(' ').unwrap()).collect();

    assert!(lines.keys().eq(samples.keys()));
    for (name, message) in &samples {
        let bytes = data_encoding::HEXLOWER.decode(lines[name].as_bytes()).unwrap();
        assert_eq!(message.decode_alike(&bytes), *message, "{name}");
    }
}

/// Bytes of every message, to be damaged.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    all().into_values().map(|message| message.encode()).collect()
}
