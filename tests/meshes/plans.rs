//! `brigade plan`: what machines could run, before anything is downloaded.

use std::path::Path;

use brigade::demo;
use brigade::shape::WeightFormat;
use brigade::weights::fixture::RandomModel;
use serde_json::Value;

use super::new_network;
use crate::support::Home;
use crate::support::Peer;
use crate::support::folder;
use crate::support::text;
use crate::support::wait_for;

/// A file of `testnet/`.
fn committed(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testnet").join(name).to_str().unwrap().to_owned()
}

fn units(plan: &Value) -> Vec<String> {
    plan["stages"].as_array().unwrap().iter().map(|stage| text(&stage["units"])).collect()
}

/// Bytes of memory that a plan says all stages take.
fn taken(plan: &Value) -> u64 {
    plan["stages"].as_array().unwrap().iter().map(|stage| stage["memory_bytes"].as_u64().unwrap()).sum()
}

#[test]
fn a_model_of_671_billion_parameters_is_planned_on_consumer_hardware() {
    let folder = folder();
    let home = Home(folder.path().to_owned());
    let (model, machines) = (committed("deepseek-v3.json"), committed("machines.toml"));
    let args = ["plan", &model, "--machines", &machines];

    let plan = home.json(&[&args[..], &["--json"]].concat());
    let said = home.run(&args).success();

    let parameters =
        [&plan["model"]["parameters"], &plan["model"]["active_parameters"]].map(|count| count.as_u64().unwrap());
    assert!(parameters[0].abs_diff(671_000_000_000) < 1_000_000_000, "{parameters:?}");
    assert!(parameters[1].abs_diff(37_000_000_000) < 1_000_000_000, "{parameters:?}");
    assert_eq!(plan["runs"], true);
    // What is more precise than the plan lacks memory for units that it names.
    let precisions = plan["precisions"].as_array().unwrap();
    let (found, finer) = precisions.split_last().unwrap();
    assert_eq!((&found["format"], &found["fits"]), (&plan["format"], &Value::Bool(true)));
    assert_eq!(precisions[0]["format"], "BF16");
    assert!(finer.iter().all(|precision| precision["missing_bytes"].as_u64() > Some(0)), "{plan:#}");
    // The stages tile the units, each within its machine, and leave each site once.
    let stages = plan["stages"].as_array().unwrap();
    let mut next = 0;
    for stage in stages {
        let (start, end) =
            text(&stage["units"]).split_once("..").map(|(start, end)| (start.to_owned(), end.to_owned())).unwrap();
        assert_eq!(start, next.to_string());
        next = end.parse().unwrap();
        assert!(stage["memory_bytes"].as_u64() <= stage["offered_bytes"].as_u64(), "{stage}");
    }
    assert_eq!(next, 63);
    let sites: Vec<String> = stages.iter().map(|stage| text(&stage["site"])).collect();
    let changes = sites.windows(2).filter(|pair| pair[0] != pair[1]).count();
    let distinct = sites.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert_eq!(changes + 1, distinct, "{sites:?}");
    assert!(taken(&plan) > found["weights_bytes"].as_u64().unwrap());
    assert!(said.contains("the engine does not run this architecture yet"), "{said}");
}

#[test]
fn a_file_is_planned_for_without_a_peer_and_what_is_too_little_is_told() {
    let folder = folder();
    let home = Home(folder.path().join("home"));
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let file = folder.path().join("model.gguf");
    let model =
        RandomModel { blocks: 4, width: 256, feed_forward: 512, format: WeightFormat::F16, ..RandomModel::tiny() };
    model.write(&file).unwrap();
    let file = file.to_str().unwrap();
    let machine = |name: &str, memory: &str| {
        format!("[[machine]]\nname = \"{name}\"\nmemory = \"{memory}\"\nbandwidth_gb = 10\ncompute_gmac = 100\n")
    };
    let large = write("large.toml", &machine("one", "1GiB"));
    let small = write("small.toml", &machine("one", "10MiB"));
    let tiny = write("tiny.toml", &machine("one", "1KiB"));
    let plan = |args: &[&str]| home.json(&[&["plan", file, "--json"], args].concat());

    let whole = plan(&["--machines", &large]);
    assert_eq!((units(&whole), &whole["format"]), (vec!["0..6".to_owned()], &Value::from("F16")));
    assert!(whole["tokens_per_second"].as_f64() > Some(0.0));
    let coarser = plan(&["--machines", &small]);
    assert_eq!(coarser["runs"], true, "{coarser:#}");
    assert_ne!(coarser["format"], "F16", "{coarser:#}");
    let refused = plan(&["--machines", &small, "--min-quant", "F16"]);
    assert_eq!(
        (&refused["runs"], &refused["missing_units"]),
        (&Value::Bool(false), &coarser["precisions"][0]["missing_units"])
    );
    let nothing = plan(&["--machines", &tiny]);
    assert_eq!(nothing["missing_units"], "0..6");
    assert!(nothing["missing_bytes"].as_u64() > Some(1_000_000), "{nothing:#}");
    let said = home.run(&["plan", file, "--machines", &tiny]).success();
    assert!(said.contains("It does not run") && said.contains("0..6"), "{said}");
    // More positions take more memory.
    let short = plan(&["--machines", &large, "--context", "64"]);
    assert!(taken(&short) < taken(&whole), "{short:#}");

    let refusal = |args: &[&str]| home.run(&[&["plan"], args].concat()).failure();
    for (args, words) in [
        (&["nobodys-model", "--machines", &large][..], "nobodys-model"),
        (&["/nowhere.gguf", "--machines", &large], "/nowhere.gguf"),
        (&["/nowhere.json", "--machines", &large], "/nowhere.json"),
        (&[file, "--machines", "/nowhere.toml"], "/nowhere.toml"),
        (&[file, "--machines", &write("empty.toml", "")], "describes no machine"),
        (&[file, "--machines", &write("bad.toml", "[[machine]]\nname = \"a\"\nmemory = 3\n")], "line 3"),
        (
            &[file, "--machines", &write("zero.toml", &machine("a", "8GiB").replace("gb = 10", "gb = 0"))],
            "bandwidth_gb",
        ),
        (&[file, "--machines", &large, "--min-quant", "F32"], "min-quant"),
        (&[file, "--machines", &large, "--min-quant", "Q9"], "Q9"),
        (&[file, "--machines", &large, "--context", "0"], "context"),
        (&[file, "--machines", &large, "--context", "999999"], "256"),
        (&[file], "no peer runs"),
        (&[&write("model.json", "{"), "--machines", &large], "model.json"),
    ] {
        let said = refusal(args);
        assert!(said.contains(words), "{args:?}: {said}");
    }
}

#[test]
fn the_live_mesh_is_planned_with_and_its_measured_pace_counts() {
    let folder = folder();
    let invite = new_network(&folder.path().join("network"));
    let serve = ["--invite", &invite, "--model", demo::NAME, "--memory", "256MiB"];
    let peer = Peer::up(&folder.path().join("a"), &serve);
    let part =
        Peer::up(&folder.path().join("b"), &[&serve[..], &["--join", &peer.address, "--units", "0..3"]].concat());
    let asker = ["--invite", &invite, "--join", &peer.address, "--no-serve"];
    let asker = Peer::up(&folder.path().join("c"), &asker);
    peer.home.wait_until_covered();
    peer.home.ask("Once upon a time", "20");
    let plan = |home: &Home, model: &str| home.json(&["plan", model, "--json"]);

    let seen = wait_for("the peers hear of each other's memory", || {
        Some(plan(&peer.home, demo::NAME)).filter(|plan| plan["machines"] == 2)
    });

    assert_eq!((units(&seen), seen["copies"].as_u64()), (vec!["0..8".to_owned()], Some(2)), "{seen:#}");
    let pace = seen["tokens_per_second"].as_f64().unwrap();
    assert!((10.0..1e6).contains(&pace), "{pace}");
    // One that serves nothing is no machine of the mesh, but can ask.
    let id = text(&seen["model"]["id"]);
    let heard = wait_for("the model is heard of", || {
        let ended = asker.home.run(&["plan", &id, "--json"]);
        let heard = ended.status.success().then(|| serde_json::from_str::<Value>(&ended.out).unwrap());
        heard.filter(|plan| plan["machines"] == 2)
    });
    assert_eq!((&heard["model"]["id"], heard["copies"].as_u64()), (&seen["model"]["id"], Some(2)));
    // What holding all of it takes is what the listing of models says.
    let models = peer.home.json(&["models", "--json"]);
    let listed = models.as_array().unwrap().iter().find(|model| model["id"] == id.as_str()).unwrap();
    assert!(listed["memory_bytes"].as_u64() > Some(0));
    let unknown = peer.home.run(&["plan", "nobodys-model"]).failure();
    assert!(unknown.contains("nobodys-model"), "{unknown}");
    [asker, part, peer].into_iter().for_each(Peer::down);
}
