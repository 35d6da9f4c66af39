//! A stage that dies in mid-answer, with no spare: a clear failure within seconds, and the mesh goes on.

use std::io::BufRead;
use std::io::BufReader;
use std::process::Stdio;
use std::time::Duration;

use brigade::clock::Clock;
use brigade::os;
use brigade::os::Ending;
use serde_json::Value;
use serde_json::json;

use crate::harness::NEVER_ENDING;
use crate::harness::Peer;
use crate::harness::Testnet;
use crate::harness::command;
use crate::harness::data;
use crate::harness::json as says_json;
use crate::harness::post;
use crate::harness::run;
use crate::harness::wait_for;

/// How soon the requester must say it.
const SOON: Duration = Duration::from_secs(5);

/// The peer that serves unit `unit` in an answer to a short question.
fn peer_of_unit(testnet: &Testnet, unit: &str) -> usize {
    let answer = says_json(&["--data-dir", &testnet.root(0), "ask", "--json", "--max-tokens", "1", "Hello!"]);
    let chain = answer["chain"].as_array().unwrap();
    let stage = chain.iter().find(|stage| {
        let (start, end) = stage["units"].as_str().unwrap().split_once("..").unwrap();
        (start.parse::<u16>().unwrap()..end.parse().unwrap()).contains(&unit.parse().unwrap())
    });
    testnet.peer_of(stage.unwrap()["peer"].as_str().unwrap())
}

fn kill(testnet: &Testnet, peer: usize) {
    os::end_process(testnet.run_file(peer).pid, Ending::Killed).unwrap();
}

#[test]
fn the_api_ends_the_stream_with_an_error_and_never_as_if_finished() {
    for unit in ["0", "4", "7"] {
        let testnet = Testnet::up(4, 3);
        let stage = peer_of_unit(&testnet, unit);
        let body =
            json!({ "prompt": "Once upon a time", "max_tokens": 400, "stream": true, "logit_bias": { "1": -100 } });
        let mut lines = post(&testnet.run_file(0), "/v1/completions", &body);
        lines.find(|line| data(line).is_some()).unwrap();

        kill(&testnet, stage);
        let clock = Clock::start();
        let rest: Vec<String> = lines.filter_map(|line| data(&line).map(str::to_owned)).collect();

        assert!(Duration::from_micros(clock.now().0) < SOON);
        let last: Value = serde_json::from_str(rest.last().unwrap()).unwrap();
        assert_eq!(last["error"]["type"], "server_error", "unit {unit}: {last}");
        assert!(!rest.iter().any(|event| event == "[DONE]" || event.contains("\"finish_reason\":\"")));
    }
}

#[test]
fn the_command_fails_says_who_was_lost_and_succeeds_once_the_range_is_back() {
    let testnet = Testnet::up(4, 3);
    let (root, stage) = (testnet.root(0), peer_of_unit(&testnet, "4"));
    let lost = testnet.run_file(stage);
    let long = ["--data-dir", &root, "ask", "--max-tokens", "400", "--logit-bias", NEVER_ENDING, "Hello!"];
    let mut asking = command(&long).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The first byte of the answer.
    BufReader::new(asking.stdout.as_mut().unwrap()).fill_buf().unwrap();

    kill(&testnet, stage);
    let clock = Clock::start();
    let output = asking.wait_with_output().unwrap();

    assert!(Duration::from_micros(clock.now().0) < SOON);
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(complaint.contains("not complete") && complaint.contains(&lost.peer[..8]), "{complaint}");
    let short = ["--data-dir", &root, "ask", "--max-tokens", "5", "Hello!"];
    assert!(String::from_utf8(run(&short).stderr).unwrap().contains("no peer holds unit"));

    let back = Peer::up(testnet.root(stage).as_ref(), &[]);
    assert_eq!(back.run_file.peer, lost.peer);
    wait_for("an answer after the range is covered again", || run(&short).status.success().then_some(()));
}

#[test]
fn leaving_in_mid_answer_frees_every_stage() {
    let testnet = Testnet::up(4, 3);
    let body = json!({ "prompt": "Once upon a time", "max_tokens": 400, "stream": true, "logit_bias": { "1": -100 } });
    let mut lines = post(&testnet.run_file(0), "/v1/completions", &body);
    lines.find(|line| data(line).is_some()).unwrap();
    let sessions = |peer| says_json(&["status", "--json", "--data-dir", &testnet.root(peer)])["sessions"].as_u64();
    assert_eq!(sessions(1), Some(1));

    drop(lines);

    for peer in 1..4 {
        wait_for("the session's end", || (sessions(peer) == Some(0)).then_some(()));
    }
}
