//! Answers that several chains compute, of which one dies or lies.

use brigade::amounts::Span;
use brigade::clock::Clock;
use brigade::daemon::faults::Act;
use brigade::daemon::faults::Fault;
use brigade::daemon::faults::Moment;
use serde_json::Value;
use serde_json::json;

use crate::kills::Mesh;
use crate::kills::Question;
use crate::kills::RANGES;
use crate::kills::When;
use crate::kills::check;
use crate::kills::disarm;
use crate::kills::strings;
use crate::support::Events;
use crate::support::text;

/// A lie must be found within so many positions: a chunk of a prompt.
const CHUNK: u64 = 128;

/// How often a liar may happen not to be asked.
const TRIES: usize = 20;

/// Ten times the pause that is aimed at where another chain goes on.
const LONGEST_PAUSE: Span = Span::seconds(2);

const PROMPT: &str = "Once upon a time there was a dog";

fn question(mesh: &Mesh) -> Question {
    Question::ask(mesh, strings(&["--temperature", "0", "--max-tokens", "60", PROMPT]))
}

fn with_redundancy(chains: &str) -> Vec<String> {
    strings(&["--temperature", "0", "--max-tokens", "60", "--redundancy", chains, PROMPT])
}

/// Whoever contradicted others, as the answer says.
fn lies(answer: &Value) -> Vec<Value> {
    answer["lies"].as_array().cloned().unwrap_or_default()
}

/// The lie was told by `liar`, and found soon after `position`.
fn assert_caught(lie: &Value, liar: &str, position: u32) {
    let suspects: Vec<String> = lie["suspects"].as_array().unwrap().iter().map(|stage| text(&stage[0])).collect();
    assert!(suspects.iter().any(|suspect| suspect == liar), "{lie}");
    let found = lie["position"].as_u64().unwrap();
    assert!(found <= u64::from(position) + CHUNK, "told at {position}: {lie}");
    assert!(!lie["commitments"].as_array().unwrap().is_empty(), "evidence is kept: {lie}");
}

#[test]
fn three_chains_outvote_a_stage_that_lies() {
    for (role, range) in RANGES.into_iter().enumerate() {
        // Whoever was caught is not asked again for a while.
        let mesh = Mesh::up(2, &[]);
        let question = question(&mesh);
        let liar = &mesh.holders[mesh.holders_of(range)[role]].peer;
        let position = question.usage("prompt_tokens") + 20;
        liar.post("faults", &json!([Fault { moment: Moment::AfterApply, position, act: Act::Lie }]));

        let ended = mesh.start(&with_redundancy("3")).end();

        let answer = check(&question, ended, &format!("{range} lies to three"));
        let lies = lies(&answer);
        // One that is in two of the chains, with other units in each, lies in both.
        assert!(!lies.is_empty(), "{answer}");
        for lie in &lies {
            assert_caught(lie, &liar.key, position);
            assert_eq!(lie["certainty"], "proven", "{lie}");
        }
        let kept = mesh.requester.home.json(&["lies", "--json"]);
        let kept: Vec<&Value> = kept.as_array().unwrap().iter().map(|kept| &kept["commitments"]).collect();
        assert!(lies.iter().all(|lie| kept.contains(&&lie["commitments"])), "{kept:?}");
        mesh.wait_until_nobody_holds_a_session();
    }
}

#[test]
fn two_chains_find_that_one_lies_and_a_third_holder_decides() {
    let mesh = Mesh::up(2, &[]);
    let question = question(&mesh);
    let position = question.usage("prompt_tokens") + 20;
    let ask = || check(&question, mesh.start(&with_redundancy("2")).end(), "one of two may lie");
    let mut honest = ask();

    // Whoever was asked once is likely to be asked again, but others may have turned out faster.
    let (lie, liar) = (0..TRIES)
        .find_map(|_| {
            let asked = text(&honest["chain"][1]["peer"]);
            let liar = &mesh.holders.iter().find(|holder| holder.peer.key == asked).unwrap().peer;
            liar.post("faults", &json!([Fault { moment: Moment::AfterApply, position, act: Act::Lie }]));
            honest = ask();
            let lie = lies(&honest).into_iter().next();
            disarm(liar);
            lie.map(|lie| (lie, liar))
        })
        .expect("one of the answers passed the liar");

    assert_caught(&lie, &liar.key, position);
    mesh.wait_until_nobody_holds_a_session();
}

/// The rest of a streamed answer, and the longest wait for a piece of it.
fn read(events: &mut Events) -> (String, Span) {
    let clock = Clock::start();
    let (mut text, mut last, mut longest) = (String::new(), clock.now(), Span::ZERO);
    while let Some(event) = events.next().filter(|event| event != "[DONE]") {
        let event: Value = serde_json::from_str(&event).unwrap();
        assert_eq!(event["error"], Value::Null, "{event}");
        text += event["choices"][0]["text"].as_str().unwrap_or_default();
        longest = longest.max(clock.now().since(last));
        last = clock.now();
    }
    (text, longest)
}

#[test]
fn with_two_chains_the_death_of_a_stage_costs_no_token() {
    let mut mesh = Mesh::up(1, &[]);
    let question = question(&mesh);
    for range in RANGES {
        // Every holder is in one of the two chains.
        let struck = mesh.holders_of(range)[0];
        mesh.holders[struck].peer.post("faults", &json!([question.fault(When::MidStream, Act::Stop)]));
        let body = json!({ "prompt": PROMPT, "temperature": 0, "max_tokens": 60, "redundancy": 2, "stream": true });
        let mut events = Events::ask(&mesh.requester.api, "/v1/completions", &body);
        assert_eq!(mesh.struck(range), struck);
        mesh.holders[struck].peer.kill();
        let (text, pause) = read(&mut events);
        assert_eq!(text, question.answer["text"].as_str().unwrap(), "{range} of one of two chains");
        println!("{range} killed: the reader waited for {pause}");
        assert!(pause <= LONGEST_PAUSE, "{range}: {pause}");
        mesh.restart(struck);
        mesh.wait_until_all_are_ready();
    }
    mesh.wait_until_nobody_holds_a_session();
}

#[test]
fn more_chains_than_there_are_peers_for_are_refused() {
    let mesh = Mesh::up(0, &[]);

    let refused = mesh.start(&with_redundancy("2")).end().failure();

    assert!(refused.contains('2') && refused.contains('1'), "{refused}");
}
