//! The estimator of memory against what peers take.
//!
//! What is compared is a process' anonymous memory (`RssAnon` and `RssShmem` of `/proc/PID/status`): what it has to itself and the system
//! cannot take back. Pages of files (`RssFile`), be it of the program or of weights on disk, are the page cache's: the system drops them when
//! somebody needs the memory. They are held against a bound of their own, since weights that were repacked must not stay mapped.

use std::path::Path;
use std::path::PathBuf;

use brigade::amounts::Bytes;
use brigade::amounts::Position;
use brigade::estimate::Footprint;
use brigade::estimate::Passes;
use brigade::estimate::Resident;
use brigade::session::stage::CHUNK;
use brigade::shape::WeightFormat;
use brigade::units::UnitRange;
use brigade::weights::catalogue::Catalogue;
use brigade::weights::fixture::RandomModel;
use serde_json::json;

use super::new_network;
use crate::support::Events;
use crate::support::Home;
use crate::support::Peer;
use crate::support::folder;

/// How far an estimate may be off, in percent of what is measured.
const TOLERANCE: u64 = 5;

/// Pages of files that a process may keep, beside the program's own: of the store, of what is being read (arbitrary).
const MAPPED: Bytes = Bytes::mib(24);

/// Tokens of the prompt, a byte each.
const PROMPT: u32 = 200;

/// Tokens that were written when it is looked.
const WRITTEN: u32 = 40;

/// What a process has in memory.
#[derive(Clone, Copy, Debug)]
struct Measured {
    own: Bytes,
    files: Bytes,
}

impl Measured {
    fn of(peer: &Peer) -> Self {
        let status = std::fs::read_to_string(format!("/proc/{}/status", peer.pid())).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
            Bytes(1024 * line.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap())
        };
        Self { own: field("RssAnon").plus(field("RssShmem")), files: field("RssFile") }
    }
}

/// Writes a model, and says what it takes.
fn made(folder: &Path, model: &RandomModel) -> (PathBuf, Footprint) {
    let file = folder.join("model.gguf");
    model.write(&file).unwrap();
    let mut catalogue = Catalogue::open(&folder.join("known")).unwrap();
    let footprint = catalogue.import(&file, |_| ()).unwrap().manifest.footprint();
    (file, footprint)
}

/// Starts a peer whose runtime has as many threads on every machine; each of them takes some memory.
fn up(root: &Path, args: &[&str]) -> Peer {
    let home = Home(root.to_owned());
    let mut command = home.command(&["up", "--listen", "/ip4/127.0.0.1/tcp/0", "--mdns", "off", "--threads", "1"]);
    command.args(["--api", "127.0.0.1:0"]).args(args).env("TOKIO_WORKER_THREADS", "2");
    Peer::spawn(home, command)
}

/// Has peers that hold these ranges answer, and compares each in the middle of it with the estimate.
#[expect(clippy::print_stdout, reason = "the figures are of interest also where they are within the bound")]
fn compare(name: &str, model: &RandomModel, ranges: &[(u16, u16)]) {
    let folder = folder();
    let invite = new_network(&folder.path().join("network"));
    let (file, footprint) = made(folder.path(), model);
    let mut peers: Vec<(Peer, UnitRange)> = Vec::new();
    for &(start, end) in ranges {
        let range = UnitRange::new(start, end).unwrap();
        let units = range.to_string();
        let mut args = vec!["--invite", &invite, "--model", file.to_str().unwrap(), "--units", &units];
        args.extend(peers.first().iter().flat_map(|(first, _)| ["--join", first.address.as_str()]));
        peers.push((up(&folder.path().join(&units), &args), range));
    }
    peers[0].0.home.wait_until_covered();
    let idle: Vec<Measured> = peers.iter().map(|(peer, _)| Measured::of(peer)).collect();

    let body = json!({ "stream": true, "max_tokens": 300, "temperature": 0, "prompt": "a".repeat(PROMPT as usize) });
    let mut events = Events::ask(&peers[0].0.api, "/v1/completions", &body);
    assert_eq!(events.by_ref().take(WRITTEN as usize).count(), WRITTEN as usize);
    let measured: Vec<Measured> = peers.iter().map(|(peer, _)| Measured::of(peer)).collect();
    drop(events);

    let positions = Position(PROMPT + WRITTEN);
    // A prompt passes in chunks, so that all stages work at once; alone, a peer takes this one whole.
    let rows = if peers.len() == 1 { PROMPT } else { CHUNK };
    let passes = Passes { threads: 1, rows, logits: 1, positions };
    let last = footprint.count();
    for (((_, range), measured), idle) in peers.iter().zip(measured).zip(idle) {
        let journals = if range.end() == last { Bytes::ZERO } else { footprint.journal(positions) };
        let sessions = [(*range, positions)];
        let estimated = footprint.resident(&Resident { ranges: &[*range], sessions: &sessions, passes, journals });
        let off = estimated.0.abs_diff(measured.own.0);
        let percent = 100.0 * (estimated.0 as f64 / measured.own.0 as f64 - 1.0);
        let Measured { own, files } = measured;
        println!(
            "{name}, units {range} of {last}: estimated {estimated}, measured {own} ({percent:+.1} %), {} before the prompt; files {files}; weights {}",
            idle.own,
            footprint.weights(*range)
        );
        assert!(100 * off <= TOLERANCE * measured.own.0, "{name}, units {range}: {estimated}, but {measured:?}");
        let program = Bytes(std::fs::metadata(env!("CARGO_BIN_EXE_brigade")).unwrap().len());
        assert!(measured.files <= program.plus(MAPPED), "{name}, units {range}: {measured:?} of {program}");
    }
}

#[test]
fn a_whole_tied_model_of_bytes_takes_what_was_estimated() {
    let model = RandomModel {
        blocks: 8,
        width: 1_024,
        heads: 16,
        kv_heads: 4,
        feed_forward: 3_584,
        vocab: 8_192,
        context: 1_024,
        tied: true,
        format: WeightFormat::Q8_0,
        ..RandomModel::tiny()
    };

    compare("Q8_0", &model, &[(0, 10)]);
}

#[test]
fn a_whole_untied_model_of_nibbles_with_many_tokens_takes_what_was_estimated() {
    let model = RandomModel {
        blocks: 10,
        width: 1_024,
        heads: 16,
        kv_heads: 16,
        feed_forward: 3_072,
        vocab: 32_000,
        context: 1_024,
        format: WeightFormat::Q4_0,
        ..RandomModel::tiny()
    };

    compare("Q4_0", &model, &[(0, 12)]);
}

#[test]
fn each_half_of_a_model_of_halves_takes_what_was_estimated() {
    let model = RandomModel {
        blocks: 14,
        width: 768,
        heads: 12,
        kv_heads: 4,
        feed_forward: 2_048,
        vocab: 4_096,
        context: 1_024,
        format: WeightFormat::F16,
        ..RandomModel::tiny()
    };

    compare("F16", &model, &[(0, 8), (8, 16)]);
}
