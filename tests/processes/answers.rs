//! Peers that share a model answer as one peer does that holds all of it.

use serde_json::Value;

use crate::harness::Testnet;
use crate::harness::json;
use crate::harness::says;

const QUESTION: &str = "Anna has the kite. Ben is at the market. Where is Ben?";

/// Width of the demo model's hidden states, and bytes of an f32.
const ROW_BYTES: u64 = 256 * 4;

fn tokens(answer: &Value) -> &Vec<Value> {
    answer["tokens"].as_array().unwrap()
}

#[test]
fn three_stages_give_the_tokens_of_one_and_report_what_they_did() {
    let (testnet, alone) = (Testnet::up(4, 3), tempfile::tempdir().unwrap());
    let ask =
        |root: &str| json(&["ask", "--data-dir", root, "--model", "demo", "--temperature", "0", "--json", QUESTION]);

    let (split, whole) = (ask(&testnet.root(0)), ask(alone.path().to_str().unwrap()));

    assert_eq!(tokens(&split), tokens(&whole));
    assert!(tokens(&split).len() > 2);
    let (chain, one) = (split["chain"].as_array().unwrap(), whole["chain"].as_array().unwrap());
    assert_eq!((chain.len(), one.len()), (3, 1));
    let starts: Vec<&str> = chain.iter().map(|stage| stage["units"].as_str().unwrap()).collect();
    assert!(starts[0].starts_with("0..") && starts[2].ends_with("..8"), "{starts:?}");
    for stage in &chain[..2] {
        let positions = stage["positions"].as_u64().unwrap();
        assert_eq!(stage["hop_payload_bytes"].as_u64().unwrap(), positions * ROW_BYTES);
        assert!(stage["owed_mflop"].as_u64().unwrap() > 0);
        assert_eq!(stage["weights"], split["model"]);
    }
}

#[test]
fn the_same_seed_gives_the_same_answer_and_the_work_is_owed() {
    let testnet = Testnet::up(4, 3);
    let root = testnet.root(0);
    let ask =
        || says(&["--data-dir", &root, "ask", "--seed", "5", "--temperature", "1", "--max-tokens", "40", QUESTION]);

    assert_eq!(ask(), ask());

    let credits = json(&["credits", "--json", "--data-dir", &root]);
    let owed = |view: &Value| view["owed_mflop"].as_u64().unwrap();
    let balances = credits["balances"].as_array().unwrap();
    assert_eq!(credits["entries"].as_array().unwrap().len(), 2);
    assert_eq!(balances.iter().map(owed).sum::<u64>(), owed(&credits));
    assert!(owed(&credits) > 0);
}

#[test]
fn raw_text_is_continued_as_it_is_and_stop_strings_are_not_shown() {
    let testnet = Testnet::up(2, 8);
    let root = testnet.root(0);
    let ask = |more: &[&str]| {
        let base = ["--data-dir", &root, "ask", "--raw", "--temperature", "0", "--max-tokens", "30"];
        says(&[&base[..], more, &["Once upon a time"]].concat())
    };

    let whole = ask(&[]);
    let cut = ask(&["--stop", " lived"]);

    assert!(whole.starts_with("Once upon a time") && whole.contains(" lived"), "{whole}");
    assert_eq!(cut.trim_end(), whole.split(" lived").next().unwrap());
}
