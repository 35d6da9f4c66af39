use std::collections::BTreeMap;
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const T0: Time = Time(1_000_000);

fn peer(name: u8) -> PeerKey {
    PeerKey::new([name; 32])
}

fn blob(name: u8) -> BlobHash {
    BlobHash::new([name; 32])
}

fn mib(mib: u64) -> Bytes {
    Bytes(mib * PIECE)
}

fn has(blobs: &[u8]) -> BTreeSet<BlobHash> {
    blobs.iter().map(|name| blob(*name)).collect()
}

fn sources(list: &[(u8, &[u8])]) -> BTreeMap<PeerKey, BTreeSet<BlobHash>> {
    list.iter().map(|(name, blobs)| (peer(*name), has(blobs))).collect()
}

/// A peer that answers: after how long, and whether with something wrong.
#[derive(Clone, Copy, Debug)]
struct Nature {
    micros: u64,
    lies: bool,
    vanishes: bool,
}

/// What came of a run.
#[derive(Debug, Default)]
struct Ran {
    /// How often each piece was written.
    written: BTreeMap<(BlobHash, u64), usize>,
    asked: BTreeMap<PeerKey, usize>,
    lasted: Span,
}

/// Runs a download to its end, or for an hour.
fn run(mut download: Download, natures: &BTreeMap<PeerKey, Nature>) -> Ran {
    let (mut ran, mut now) = (Ran::default(), T0);
    let mut coming: BTreeSet<(Time, Ask)> = BTreeSet::new();
    let mut free: BTreeMap<PeerKey, Time> = BTreeMap::new();
    let mut wrong: BTreeSet<PeerKey> = BTreeSet::new();
    while !download.is_complete() && now < T0.after(Span::seconds(3_600)) {
        download.on_tick(now);
        for ask in download.asks(now) {
            assert!(!wrong.contains(&ask.peer), "whoever lied is not asked again");
            *ran.asked.entry(ask.peer).or_default() += 1;
            let nature = natures[&ask.peer];
            if !nature.vanishes {
                // One after another.
                let at = free.get(&ask.peer).copied().unwrap_or(now).max(now).after(Span(nature.micros));
                free.insert(ask.peer, at);
                coming.insert((at, ask));
            }
        }
        assert!(download.asked.len() <= IN_FLIGHT);
        assert!(download.sources.values().all(|source| source.in_flight <= PER_SOURCE));
        let next = coming.first().map(|(at, _)| *at).into_iter().chain(download.deadline(now)).min();
        now = next.expect("something is to come").max(now.after(Span(1)));
        while let Some((at, ask)) = coming.first().copied().filter(|(at, _)| *at <= now) {
            coming.remove(&(at, ask));
            if natures[&ask.peer].lies {
                wrong.insert(ask.peer);
                download.failed(ask, Failure::Wrong, now);
                continue;
            }
            match ask.part {
                Part::Outline => download.outlined(ask, now),
                Part::Piece(piece) => {
                    if download.had(ask, now) != Had::Twice {
                        *ran.written.entry((ask.blob, piece)).or_default() += 1;
                    }
                }
            }
        }
    }
    ran.lasted = now.since(T0);
    ran
}

fn steady(micros: u64) -> Nature {
    Nature { micros, lies: false, vanishes: false }
}

#[test]
fn pieces_come_from_all_sources_and_most_from_the_fastest() {
    let mut download = Download::default();
    download.want(blob(1), mib(100), None);
    download.sources(sources(&[(1, &[1]), (2, &[1]), (3, &[1])]));
    let natures = [(peer(1), steady(10_000)), (peer(2), steady(20_000)), (peer(3), steady(200_000))].into();

    let ran = run(download, &natures);

    assert_eq!(ran.written.len(), 100);
    let of = |name| ran.asked[&peer(name)];
    assert!(of(1) > of(2) && of(2) > 2 * of(3), "{:?}", ran.asked);
    // Alone, the fastest would take a second.
    assert!(ran.lasted < Span::millis(900), "{}", ran.lasted);
}

#[test]
fn what_the_fewest_have_comes_first_and_what_is_begun_is_ended_first() {
    let mut download = Download::default();
    for name in [1, 2, 3] {
        download.want(blob(name), mib(2), None);
    }
    download.sources(sources(&[(1, &[1, 2, 3]), (2, &[1, 3]), (3, &[1])]));

    let first: Vec<BlobHash> = download.asks(T0).iter().map(|ask| ask.blob).collect();

    assert_eq!(first, [blob(2), blob(3), blob(1)]);
    let outline = Ask { peer: peer(1), blob: blob(2), part: Part::Outline };
    download.outlined(outline, T0.after(Span(10)));
    let next: Vec<Ask> = download.asks(T0.after(Span(10)));
    assert!(next.iter().all(|ask| ask.blob == blob(2) && ask.peer == peer(1)), "{next:?}");
}

#[test]
fn what_was_had_before_a_restart_is_not_asked_for_again() {
    let had: BTreeSet<u64> = (0..60).collect();
    let mut download = Download::default();
    download.want(blob(1), Bytes(64 * PIECE - 5), Some(&had));
    download.want(blob(2), Bytes(10), Some(&[0].into()));
    download.sources(sources(&[(1, &[1, 2])]));
    assert_eq!(download.progress(), (Bytes(60 * PIECE + 10), Bytes(64 * PIECE + 5)));

    let ran = run(download, &[(peer(1), steady(1_000))].into());

    let written: Vec<u64> = ran.written.keys().map(|(_, piece)| *piece).collect();
    assert_eq!(written, [60, 61, 62, 63]);
}

#[test]
fn the_last_pieces_do_not_wait_for_a_source_that_has_stalled() {
    let mut download = Download::default();
    download.want(blob(1), mib(12), Some(&BTreeSet::new()));
    download.sources(sources(&[(1, &[1]), (2, &[1])]));
    let stalled = Nature { vanishes: true, ..steady(0) };

    let ran = run(download, &[(peer(1), steady(50_000)), (peer(2), stalled)].into());

    assert_eq!(ran.written.len(), 12);
    assert!(ran.lasted < Span::seconds(5), "{}", ran.lasted);
}

#[test]
fn a_source_that_fails_is_left_alone_for_a_while_and_longer_each_time() {
    let mut download = Download::default();
    download.want(blob(1), mib(1), None);
    download.sources(sources(&[(1, &[1])]));
    let mut now = T0;
    let mut pauses = Vec::new();
    for _ in 0..8 {
        let [ask] = download.asks(now)[..] else { panic!("it is asked") };
        download.failed(ask, Failure::Busy, now);
        assert_eq!(download.asks(now), []);
        let rested = download.deadline(now).unwrap();
        pauses.push(rested.since(now));
        now = rested;
    }
    assert_eq!(pauses[..3], [Span::seconds(1), Span::seconds(2), Span::seconds(4)]);
    assert_eq!(pauses[7], LONGEST_PAUSE);
}

#[test]
fn a_source_that_has_it_no_more_is_not_asked_for_that() {
    let mut download = Download::default();
    download.want(blob(1), mib(1), None);
    download.sources(sources(&[(1, &[1])]));
    let [ask] = download.asks(T0)[..] else { panic!("it is asked") };

    download.failed(ask, Failure::NotFound, T0);

    assert_eq!(download.asks(T0), []);
    assert_eq!(download.unsourced(), [blob(1)]);
    // It says so again and again, and is asked again after a while.
    download.sources(sources(&[(1, &[1])]));
    assert_eq!(download.asks(T0), []);
    download.on_tick(T0.after(REFUSED));
    assert_eq!(download.asks(T0.after(REFUSED)).len(), 1);
}

#[test]
fn what_fails_together_is_paused_for_once() {
    let mut download = Download::default();
    download.want(blob(1), mib(4), Some(&BTreeSet::new()));
    download.sources(sources(&[(1, &[1])]));
    let asks = download.asks(T0);
    assert_eq!(asks.len(), PER_SOURCE);

    // Once because nothing came, and once more when the stream is closed for that.
    let late = T0.after(PATIENCE);
    assert_eq!(download.on_tick(late).len(), PER_SOURCE);
    asks.iter().for_each(|ask| download.failed(*ask, Failure::Lost, late));

    assert_eq!(download.asks(late.after(PAUSE)).len(), PER_SOURCE);
}

#[test]
fn a_slow_source_is_waited_for_as_long_as_it_brings_something() {
    let mut download = Download::default();
    download.want(blob(1), mib(4), Some(&BTreeSet::new()));
    download.sources(sources(&[(1, &[1])]));
    let asks = download.asks(T0);
    assert_eq!(asks.len(), PER_SOURCE);
    let mut now = T0;
    for ask in &asks[..3] {
        now = now.after(Span::seconds(20));
        assert_eq!(download.on_tick(now), []);
        assert_eq!(download.had(*ask, now), Had::New);
    }

    now = now.after(PATIENCE);

    assert_eq!(download.on_tick(now), asks[3..]);
    assert!(download.asked.is_empty() && !download.is_complete());
}

#[test]
fn what_is_not_wanted_any_more_is_forgotten_with_its_asks() {
    let mut download = Download::default();
    download.want(blob(1), mib(2), Some(&BTreeSet::new()));
    download.want(blob(2), mib(1), None);
    download.sources(sources(&[(1, &[1, 2])]));
    let asks = download.asks(T0);
    assert_eq!((asks.len(), download.there(blob(1))), (3, Some(Bytes::ZERO)));

    download.unwant(blob(1));

    assert_eq!((download.there(blob(1)), download.is_complete()), (None, false));
    let late = asks.iter().find(|ask| ask.blob == blob(1)).unwrap();
    assert_eq!(download.had(*late, T0), Had::Twice);
    let other = asks.iter().find(|ask| ask.blob == blob(2)).unwrap();
    assert_eq!(download.had(*other, T0), Had::Last);
    assert!(download.is_complete());
}

proptest! {
    /// Whatever the sources are like, as long as an honest one has each blob every piece is written once.
    #[test]
    fn every_piece_is_written_once(
        lengths in proptest::collection::vec(1..40 * PIECE, 1..12),
        natures in proptest::collection::vec((100..500_000_u64, 0..10_u8), 0..8),
        holds in proptest::collection::vec(any::<u16>(), 8),
    ) {
        let mut download = Download::default();
        for (name, &bytes) in (0..).zip(&lengths) {
            download.want(blob(name), Bytes(bytes), None);
        }
        let all: Vec<u8> = (0..lengths.len() as u8).collect();
        let mut having = sources(&[(100, &all)]);
        let mut of: BTreeMap<PeerKey, Nature> = [(peer(100), steady(30_000))].into();
        for (name, (micros, kind)) in (0..).zip(natures) {
            let some: Vec<u8> = all.iter().copied().filter(|blob| holds[usize::from(name)] >> blob & 1 == 1).collect();
            having.insert(peer(name), has(&some));
            of.insert(peer(name), Nature { micros, lies: kind == 0, vanishes: kind == 1 });
        }
        download.sources(having);

        let ran = run(download, &of);

        let pieces: u64 = lengths.iter().map(|bytes| pieces(*bytes)).sum();
        prop_assert_eq!(ran.written.len() as u64, pieces);
        prop_assert!(ran.written.values().all(|times| *times == 1));
    }
}
