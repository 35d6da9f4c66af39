//! Peers that are asked to stop: by a signal, in the midst of answers.

use std::path::Path;
use std::time::Duration;

use brigade::amounts::Span;
use brigade::clock::Clock;
use brigade::os;
use brigade::os::Ending;
use serde_json::Value;
use serde_json::json;

use super::STORY;
use super::endless;
use super::new_network;
use crate::support::Events;
use crate::support::Peer;
use crate::support::folder;
use crate::support::wait_for;

/// Within this time a peer that was asked to stop has.
const GONE_WITHIN: Span = Span::seconds(10);

/// New tokens of an answer that outlasts the commands that a test runs meanwhile.
const LONG: u32 = 1_000;

/// New tokens of an answer that ends within the time that a peer takes to stop.
const SHORT: u32 = 80;

/// A requester, and the peers that serve the ranges given.
fn mesh(folder: &Path, ranges: &[(&str, &str)]) -> (Peer, Vec<Peer>) {
    let file = folder.join("endless.gguf");
    endless().write(&file).unwrap();
    let root = folder.join("requester");
    let invite = new_network(&root);
    let requester = Peer::up(&root, &["--invite", &invite, "--no-serve"]);
    let serve = |&(name, units): &(&str, &str)| {
        let args = ["--invite", &invite, "--join", &requester.address, "--units", units, "--model"];
        Peer::up(&folder.join(name), &[&args[..], &[file.to_str().unwrap()]].concat())
    };
    let stages = ranges.iter().map(serve).collect();
    requester.home.wait_until_covered();
    (requester, stages)
}

/// A streamed answer: what was said so far, and whether it has ended in order.
#[derive(Default)]
struct Heard {
    text: String,
    pieces: usize,
    finish: Option<String>,
}

impl Heard {
    /// Takes in events until so many pieces of text are there, or the answer has ended.
    fn listen(&mut self, events: &mut Events, pieces: usize) {
        while self.pieces < pieces {
            let Some(event) = events.next().filter(|event| event != "[DONE]") else { return };
            let event: Value = serde_json::from_str(&event).unwrap();
            assert_eq!(event["error"], Value::Null, "{event}");
            let choice = &event["choices"][0];
            if let Some(text) = choice["text"].as_str() {
                self.text += text;
                self.pieces += 1;
            }
            self.finish = choice["finish_reason"].as_str().map(str::to_owned).or(self.finish.take());
        }
    }
}

fn ask(requester: &Peer, tokens: u32) -> Events {
    let body = json!({ "stream": true, "max_tokens": tokens, "temperature": 0, "prompt": STORY });
    Events::ask(&requester.api, "/v1/completions", &body)
}

/// The whole answer of a mesh that nobody disturbs.
fn undisturbed(requester: &Peer, tokens: u32) -> Heard {
    let mut whole = Heard::default();
    whole.listen(&mut ask(requester, tokens), usize::MAX);
    assert_eq!(whole.finish.as_deref(), Some("length"));
    whole
}

#[test]
fn a_stage_that_gets_sigterm_in_mid_answer_is_gone_in_time_and_costs_no_token() {
    let folder = folder();
    let ranges = [("a", "0..3"), ("b", "3..6"), ("spare", "3..6"), ("c", "6..8")];
    let (requester, mut stages) = mesh(folder.path(), &ranges);
    let whole = undisturbed(&requester, LONG);
    wait_for("the spare is known", || (holders_of(&requester, "3..6") == 2).then_some(()));
    let mut events = ask(&requester, LONG);
    let mut heard = Heard::default();
    heard.listen(&mut events, 20);
    // Either of the two may be the one that the answer passes.
    let serving = |peer: &Peer| peer.home.json(&["status", "--json"])["sessions"].as_u64().unwrap() > 0;
    let mut leaver = stages.remove(if serving(&stages[1]) { 1 } else { 2 });
    assert!(serving(&leaver), "the answer is under way");
    let clock = Clock::start();
    let asked = clock.now();

    os::end_process(leaver.pid(), Ending::Asked).unwrap();
    let left = leaver.ended();
    let took = clock.now().since(asked);
    heard.listen(&mut events, usize::MAX);

    println!("gone after {took}");
    assert!(left.success() && took <= GONE_WITHIN, "{left} after {took}");
    assert_eq!(heard.finish.as_deref(), Some("length"));
    assert_eq!(heard.text, whole.text);
}

/// How many peers have units ready, as `peer` sees it.
fn holders_of(peer: &Peer, units: &str) -> usize {
    let peers = peer.home.json(&["peers", "--json"]);
    let holds = |peer: &&Value| {
        let holdings = peer["holdings"].as_array().unwrap();
        holdings.iter().any(|holding| holding["units"] == units && holding["state"] == "ready")
    };
    peers["peers"].as_array().unwrap().iter().filter(holds).count()
}

#[test]
fn a_second_signal_ends_a_peer_at_once_that_others_still_need() {
    let folder = folder();
    let (requester, mut stages) = mesh(folder.path(), &[("a", "0..3"), ("b", "3..6"), ("c", "6..8")]);
    let mut events = ask(&requester, 8_000);
    let mut heard = Heard::default();
    heard.listen(&mut events, 5);
    let leaver = &mut stages[1];

    os::end_process(leaver.pid(), Ending::Asked).unwrap();
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(leaver.is_running(), "nobody can take its place, so it stays for a while");
    let before = heard.pieces;
    heard.listen(&mut events, before + 5);
    assert_eq!(heard.pieces, before + 5, "and the answer goes on meanwhile");
    let clock = Clock::start();
    let asked = clock.now();
    os::end_process(leaver.pid(), Ending::Asked).unwrap();
    leaver.ended();

    let took = clock.now().since(asked);
    assert!(took <= Span::seconds(2), "{took}");
}

#[test]
fn a_peer_whose_own_answer_is_under_way_ends_it_refuses_others_and_is_gone_in_time() {
    let folder = folder();
    let (mut requester, _stages) = mesh(folder.path(), &[("a", "0..4"), ("b", "4..8")]);
    let whole = undisturbed(&requester, SHORT);
    let mut events = ask(&requester, SHORT);
    let mut heard = Heard::default();
    heard.listen(&mut events, 5);
    let clock = Clock::start();
    let asked = clock.now();

    os::end_process(requester.pid(), Ending::Asked).unwrap();
    heard.listen(&mut events, usize::MAX);
    let left = requester.ended();

    let took = clock.now().since(asked);
    assert!(left.success() && took <= GONE_WITHIN, "{left} after {took}");
    assert_eq!((heard.finish.as_deref(), heard.text), (Some("length"), whole.text));
}
