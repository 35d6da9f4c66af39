//! One model at several precisions: who is small holds it coarser, an answer says what it was computed with, and stays with that.

use std::sync::Arc;

use brigade::amounts::Bytes;
use brigade::node::needs;
use brigade::scheduler::Budget;
use brigade::shape::WeightFormat;
use brigade::weights::fixture::RandomModel;
use brigade::wire::manifest::Manifest;
use serde_json::Value;

use super::STORY;
use super::wait_until_all_are_connected;
use super::weights::House;
use crate::support::Peer;
use crate::support::text;
use crate::support::wait_for;

const TOKENS: &str = "48";

/// Memory that is enough for units 4..10 of the model as `Q8_0`, but not as halves.
fn memory_for_eights(manifest: &Manifest) -> String {
    let source = Arc::new(manifest.clone());
    let passes = needs::passes(&Budget::default(), 2, source.shape.context);
    let needed = |manifest: &Manifest| {
        let needs = needs::of(manifest.id(), &manifest.footprint(), &passes);
        needs.unit_bytes[4..].iter().copied().sum::<Bytes>().plus(needs.reserve).0
    };
    let (enough, too_much) = (needed(&source.derive(WeightFormat::Q8_0).unwrap()), needed(&source));
    format!("{}KiB", (enough + too_much) / 2 / 1024)
}

/// 10 units of halves, about 20 MB.
fn model() -> RandomModel {
    let tiny = RandomModel::tiny();
    RandomModel {
        blocks: 8,
        width: 256,
        feed_forward: 768,
        vocab: 2_048,
        context: 4_096,
        format: WeightFormat::F16,
        ..tiny
    }
}

/// The units that a peer is ready to serve, and of which model.
fn ready(peer: &Peer) -> Option<(String, String)> {
    let status = peer.home.json(&["status", "--json"]);
    let [holding] = &status["holdings"].as_array()?[..] else { return None };
    (holding["state"] == "ready").then(|| (text(&holding["units"]), text(&holding["model"])))
}

/// Of each stage of an answer, its units and their precision.
fn precisions(answer: &Value) -> Vec<(String, String)> {
    let stages = answer["chain"].as_array().unwrap();
    stages.iter().map(|stage| (text(&stage["units"]), text(&stage["quantisation"]))).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(units, format)| ((*units).to_owned(), (*format).to_owned())).collect()
}

#[test]
fn a_chain_of_mixed_precisions_says_what_it_used_and_keeps_to_it() {
    let house = House::of(&model());
    let source = house.importer("source", &["--units", "0..3"]);
    let known = house.id();
    let at =
        |name: &str, units: &str, format: &str| house.newcomer(name, &source, &["--units", units, "--quant", format]);
    let middle = at("middle", "3..6", "Q8_0");
    let others = [at("lower", "6..8", "Q4_K"), at("tail", "8..10", "Q4_0")];
    let spares = [at("spare", "3..6", "Q8_0"), at("coarse", "3..6", "Q4_0")];
    let peers = [&source, &middle, &others[0], &others[1], &spares[0], &spares[1]];
    let held: Vec<(String, String)> =
        peers.iter().map(|peer| wait_for("a peer serves what it made", || ready(peer))).collect();
    assert_eq!(held[0], ("0..3".to_owned(), known.clone()));
    wait_until_all_are_connected(&peers);
    source.home.wait_until_covered();

    let answer = source.home.ask(STORY, TOKENS);

    let expected = pairs(&[("0..3", "F16"), ("3..6", "Q8_0"), ("6..8", "Q4_K"), ("8..10", "Q4_0")]);
    assert_eq!(precisions(&answer), expected, "{answer}");
    // Each stage's exact weights are named: those that its peer says it holds.
    for stage in answer["chain"].as_array().unwrap() {
        let peer = peers.iter().position(|peer| peer.key == text(&stage["peer"])).unwrap();
        assert_eq!((text(&stage["units"]), text(&stage["weights"])), held[peer], "{stage}");
    }
    assert_eq!(answer["model"], known.as_str());

    // Who wants nothing coarser than there is, is told what there is.
    let refused = source.home.run(&["ask", "--raw", "--min-quant", "F16", STORY]).failure();
    assert!(refused.contains("F16 or better") && refused.contains("Q4_0"), "{refused}");
    let answered =
        source.home.json(&["ask", "--json", "--raw", "--temperature", "0", "-n", TOKENS, "--min-quant", "Q4_0", STORY]);
    assert_eq!(answered["text"], answer["text"]);
    let unknown = source.home.run(&["ask", "--raw", "--min-quant", "Q3_K", STORY]).failure();
    assert!(unknown.contains("min_quant must be one of"), "{unknown}");

    // A lost stage is replaced by one with the same weights, and not by any other.
    let chosen = text(&answer["chain"][1]["peer"]);
    let mut holders: Vec<Peer> = [middle].into_iter().chain(spares).collect();
    drop(holders.remove(holders.iter().position(|peer| peer.key == chosen).unwrap()));
    let mended = wait_for("the spare answers", || {
        let answer = source.home.ask(STORY, TOKENS);
        (answer["chain"][1]["peer"] != chosen.as_str()).then_some(answer)
    });
    assert_eq!(precisions(&mended), expected, "{mended}");
    assert_eq!(mended["tokens"], answer["tokens"]);
}

#[test]
fn a_small_peer_holds_what_is_missing_at_the_precision_that_fits() {
    let house = House::of(&model());
    let source = house.importer("source", &["--units", "0..4"]);
    let newcomer = house.newcomer("small", &source, &["--memory", &memory_for_eights(&house.manifest)]);

    let (units, model) = wait_for("the newcomer serves what it made", || ready(&newcomer));

    assert_eq!(units, "4..10", "all that was missing");
    assert_ne!(model, house.id());
    source.home.wait_until_covered();
    let answer = source.home.ask(STORY, TOKENS);
    let formats: Vec<String> = precisions(&answer).into_iter().map(|(_, format)| format).collect();
    assert_eq!((formats[0].as_str(), formats.len()), ("F16", 2), "{answer}");
    assert_eq!(formats[1], "Q8_0");
    assert_eq!(super::units(&answer), ["0..4", "4..10"]);
    // What it was made of is not kept, and what was made is verified like anything else.
    let verified = newcomer.home.json(&["models", "verify", &model, "--json"]);
    assert_eq!((verified["damaged"].as_array().unwrap().len(), verified["right"].as_u64() > Some(0)), (0, true));
}
