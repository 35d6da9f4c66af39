//! Meshes of real processes: what a user can do with the program and what can befall a peer, seen from outside.

#![allow(clippy::unwrap_used, reason = "what is missing fails the test")]

#[cfg(target_os = "linux")]
#[path = "meshes/churn.rs"]
mod churn;
#[cfg(target_os = "linux")]
#[path = "meshes/kills.rs"]
mod kills;
#[path = "meshes/leaving.rs"]
mod leaving;
#[cfg(target_os = "linux")]
#[path = "meshes/memory.rs"]
mod memory;
#[path = "meshes/plans.rs"]
mod plans;
#[path = "meshes/precisions.rs"]
mod precisions;
#[cfg(target_os = "linux")]
#[path = "meshes/replicas.rs"]
mod replicas;
mod support;
#[path = "meshes/weights.rs"]
mod weights;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use brigade::amounts::Bytes;
use brigade::amounts::Span;
use brigade::clock::Clock;
use brigade::demo;
use brigade::os;
use brigade::os::Ending;
use brigade::shape::WeightFormat;
use brigade::weights::fixture::RandomModel;
use serde_json::Value;
use serde_json::json;

use crate::support::Events;
use crate::support::Home;
use crate::support::Peer;
use crate::support::Running;
use crate::support::Testnet;
use crate::support::bare;
use crate::support::brigade;
use crate::support::folder;
use crate::support::run;
use crate::support::text;
use crate::support::wait_for;

/// Within this time the user hears that a peer was lost.
const REPORTED_WITHIN: Span = Span::seconds(5);

/// Bytes of a position of the demo model between two stages: 256 numbers of 32 bits.
const DEMO_POSITION: u64 = 256 * 4;

const STORY: &str = "Once upon a time";

/// A model whose answers don't end by themselves, of words that any terminal can show.
fn endless() -> RandomModel {
    RandomModel { blocks: 6, width: 256, feed_forward: 512, vocab: 2048, context: 8192, ..RandomModel::tiny() }
}

/// Makes a private network in `home`, and gives the invite.
fn new_network(home: &Path) -> String {
    // Nobody listens at the address of the invite, so that the peers find each other only by what they are told.
    let made = Home(home.to_owned()).run(&["network", "new", "mesh", "--address", "127.0.0.1:1"]);
    made.success().trim().to_owned()
}

/// One peer that holds all of `model` and is asked.
fn answer_of_one(model: &str, tokens: &str) -> Value {
    let folder = folder();
    let invite = new_network(folder.path());
    let peer = Peer::up(folder.path(), &["--invite", &invite, "--model", model]);
    peer.home.wait_until_covered();
    let answer = peer.home.ask(STORY, tokens);
    assert_eq!(units(&answer).len(), 1, "{answer}");
    peer.down();
    answer
}

/// The ranges of the chain that gave an answer.
fn units(answer: &Value) -> Vec<String> {
    answer["chain"].as_array().unwrap().iter().map(|stage| text(&stage["units"])).collect()
}

fn names(words: &str, peer: &str) -> bool {
    words.contains(peer.get(..8).unwrap())
}

/// Waits until each of `peers` has a connection to each other one.
fn wait_until_all_are_connected(peers: &[&Peer]) {
    let keys: BTreeSet<String> = peers.iter().map(|peer| peer.key.clone()).collect();
    for peer in peers {
        wait_for("the peers find each other", || keys.is_subset(&peer.home.connected()).then_some(()));
    }
}

#[test]
fn an_answer_is_the_same_however_many_peers_share_the_model() {
    let one = answer_of_one(demo::NAME, "40");

    for (peers, units_per_peer) in [(5, Some("2")), (4, Some("3")), (2, None)] {
        let limit = units_per_peer.map_or(Vec::new(), |each| vec!["--units-per-peer", each]);
        let net = Testnet::up(peers, &limit);

        let shared = net.peer(0).ask(STORY, "40");

        assert_eq!((&shared["text"], &shared["tokens"]), (&one["text"], &one["tokens"]), "{peers} peers");
        assert_eq!(units(&shared).len(), peers - 1, "{shared}");
        let stages = shared["chain"].as_array().unwrap();
        for (index, stage) in stages.iter().enumerate() {
            let is_last = index + 1 == stages.len();
            let sent = if is_last { 0 } else { stage["positions"].as_u64().unwrap() * DEMO_POSITION };
            assert_eq!(stage["hop_payload_bytes"], sent, "{stage}");
            assert_ne!(stage["positions"], 0, "{stage}");
        }
        net.down().success();
    }
}

#[test]
fn a_model_of_odd_widths_is_shared_as_well() {
    let folder = folder();
    let file = folder.path().join("odd.gguf");
    let model = RandomModel { blocks: 4, width: 172, heads: 2, kv_heads: 1, feed_forward: 300, ..RandomModel::tiny() };
    model.write(&file).unwrap();
    let file = file.to_str().unwrap();
    let one = answer_of_one(file, "60");
    let net = Testnet::up(4, &["--units-per-peer", "2", "--model", file]);

    let shared = net.peer(0).ask(STORY, "60");

    assert_eq!(shared["tokens"], one["tokens"]);
    assert_eq!(shared["usage"]["completion_tokens"], 60);
    assert_eq!(units(&shared), ["0..2", "2..4", "4..6"]);
}

/// What each of `peers` owes each other one, or earned from it, by its own books.
fn books(peers: &[Peer], column: &str) -> BTreeMap<(String, String), u64> {
    let mut books = BTreeMap::new();
    for peer in peers {
        for balance in peer.home.json(&["credits", "--json"])["balances"].as_array().unwrap() {
            let (other, sum) = (text(&balance["peer"]), balance[column].as_u64().unwrap());
            let debtor_first =
                if column == "owed_mflop" { (peer.key.clone(), other) } else { (other, peer.key.clone()) };
            if sum > 0 {
                books.insert(debtor_first, sum);
            }
        }
    }
    books
}

#[test]
fn peers_that_know_one_address_answer_alike_and_keep_books_that_agree_also_after_a_restart() {
    let folder = folder();
    let roots = ["a", "b", "c"].map(|name| folder.path().join(name));
    let invite = new_network(&roots[0]);
    let serve = ["--invite", &invite, "--model", demo::NAME, "--units-per-peer", "3"];
    let start = || {
        let first = Peer::up(&roots[0], &serve);
        let join = [&serve[..], &["--join", &first.address]].concat();
        let (second, third) = (Peer::up(&roots[1], &join), Peer::up(&roots[2], &join));
        [first, second, third]
    };
    let peers = start();

    wait_until_all_are_connected(&peers.each_ref());
    peers.iter().for_each(|peer| peer.home.wait_until_covered());
    let answers = peers.each_ref().map(|peer| peer.home.ask(STORY, "20"));

    for answer in &answers {
        assert_eq!(answer["text"], answers[0]["text"]);
        assert!(units(answer).len() > 1, "{answer}");
    }
    let owed = books(&peers, "owed_mflop");
    for (peer, answer) in peers.iter().zip(&answers) {
        let others = answer["chain"].as_array().unwrap().iter().filter(|stage| stage["peer"] != peer.key.as_str());
        for stage in others {
            assert_eq!(owed.get(&(peer.key.clone(), text(&stage["peer"]))), stage["owed_mflop"].as_u64().as_ref());
        }
        let entries = peer.home.json(&["credits", "--json"])["entries"].clone();
        let own = entries.as_array().unwrap().iter().filter(|entry| entry["requester"] == peer.key.as_str());
        assert_eq!(own.count(), 1, "{entries}");
    }
    wait_for("creditors' books agree with debtors'", || (books(&peers, "earned_mflop") == owed).then_some(()));

    let boots = |roots: &[_; 3]| roots.each_ref().map(|root: &std::path::PathBuf| boot(root));
    let before = boots(&roots);
    let old: Vec<String> = peers.iter().map(|peer| peer.key.clone()).collect();
    peers.into_iter().for_each(Peer::down);
    let peers = start();

    assert_eq!(peers.iter().map(|peer| peer.key.clone()).collect::<Vec<_>>(), old, "the identity is kept");
    assert_eq!(boots(&roots), before.map(|boot| boot + 1));
    assert_eq!((books(&peers, "owed_mflop"), books(&peers, "earned_mflop")), (owed.clone(), owed));
}

/// How often a peer was started on a data directory.
fn boot(root: &Path) -> u64 {
    std::fs::read_to_string(root.join("boot")).unwrap().trim().parse().unwrap()
}

#[test]
fn a_stage_that_is_killed_in_mid_answer_is_named_at_once_and_its_return_heals_the_mesh() {
    let folder = folder();
    let file = folder.path().join("endless.gguf");
    endless().write(&file).unwrap();
    let root = folder.path().join("requester");
    let invite = new_network(&root);
    let requester = Peer::up(&root, &["--invite", &invite, "--no-serve", "--patience", "0"]);
    let stage = |units: &str| {
        let args = ["--invite", &invite, "--join", &requester.address, "--units", units, "--model"];
        Peer::up(&folder.path().join(units), &[&args[..], &[file.to_str().unwrap()]].concat())
    };
    let ranges = ["0..3", "3..6", "6..8"];
    let mut stages = ranges.map(stage);
    requester.home.wait_until_covered();
    let whole = requester.home.ask(STORY, "8");
    assert_eq!(units(&whole), ranges);

    for (lost, range) in ranges.into_iter().enumerate() {
        let mut ask = Running::start(requester.home.command(&["ask", "--raw", "--max-tokens", "8000", STORY]));
        let body = json!({ "stream": true, "max_tokens": 8000, "messages": [{ "role": "user", "content": STORY }] });
        let mut events = Events::ask(&requester.api, "/v1/chat/completions", &body);
        // Both are in mid-answer: behind the prompt, and behind the opening that says who speaks.
        ask.bytes(STORY.len() + 1);
        assert!(events.by_ref().take(2).all(|event| event.contains("\"delta\"")));

        let clock = Clock::start();
        let killed = clock.now();
        stages[lost].kill();
        let ended = ask.end();
        let reported = clock.now().since(killed);
        let events: Vec<String> = events.collect();
        let both_reported = clock.now().since(killed);

        println!("units {range} killed: ask ended after {reported}, the API's stream after {both_reported}");
        assert!(both_reported <= REPORTED_WITHIN, "units {range}: ask after {reported}, API after {both_reported}");
        let words = ended.failure();
        assert!(names(&words, &stages[lost].key), "{words}");
        let (error, parts) = events.split_last().unwrap();
        let error: Value = serde_json::from_str(error).unwrap();
        assert!(names(&text(&error["error"]["message"]), &stages[lost].key), "{error}");
        for part in parts {
            assert_eq!(serde_json::from_str::<Value>(part).unwrap()["choices"][0]["finish_reason"], Value::Null);
        }

        wait_for("the lost units are missed", || (requester.home.missing()? == [range]).then_some(()));
        let refused = requester.home.run(&["ask", "--raw", "--max-tokens", "8", STORY]).failure();
        assert!(refused.contains(range), "{refused}");
        // Whoever came back listens elsewhere, and its neighbours have not heard of that yet.
        stages[lost] = stage(range);
        requester.home.wait_until_covered();
        assert_eq!(requester.home.ask(STORY, "8")["tokens"], whole["tokens"]);
    }
}

/// What makes a network that has one interface and nobody else in it.
const OWN_NETWORK: &str = "ip link set lo up
    ip link add mesh0 type veth peer name mesh1 && ip link set mesh1 up || ip link add mesh0 type bridge || exit 1
    ip addr add 10.77.0.1/24 dev mesh0 && ip link set mesh0 up && ip route add 224.0.0.0/4 dev mesh0 || exit 1
    exec \"$@\"";

/// Tells the test that it is inside a network of its own.
const INSIDE: &str = "TEST_IN_A_NETWORK_OF_ITS_OWN";

#[test]
fn bare_peers_on_one_lan_find_each_other_by_multicast_alone() {
    if std::env::var_os(INSIDE).is_some() {
        return find_by_multicast();
    }
    let inside = |flags: &[&str], program: &Path, args: &[&str]| {
        let mut command = bare(Command::new("unshare"));
        command.arg("--net").args(flags).args(["sh", "-c", OWN_NETWORK, "sh"]).arg(program).args(args);
        command.env(INSIDE, "yes");
        command
    };
    let possible = |flags: &&[&str]| inside(flags, Path::new("true"), &[]).output();
    let kinds: [&[&str]; 2] = [&["--map-root-user"], &[]];
    let Some(flags) = kinds.into_iter().find(|flags| possible(flags).is_ok_and(|output| output.status.success()))
    else {
        let why = possible(&kinds[0]).map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
        println!("skipped: this machine makes no network namespace with an interface: {why:?}");
        return;
    };
    let this = std::env::current_exe().unwrap();
    let name = "bare_peers_on_one_lan_find_each_other_by_multicast_alone";

    run(inside(flags, &this, &[name, "--exact", "--nocapture"])).success();
}

fn find_by_multicast() {
    let folder = folder();
    let up = |name: &str| {
        let home = Home(folder.path().join(name));
        let command = home.command(&["up", "--port", "0", "--api", "127.0.0.1:0", "--threads", "1"]);
        Peer::spawn(home, command)
    };
    let peers = [up("a"), up("b")];

    wait_until_all_are_connected(&peers.each_ref());

    for peer in &peers {
        assert_eq!(peer.home.json(&["status", "--json"])["network"], "local");
    }
}

#[test]
fn one_peer_runs_on_a_data_directory_and_says_where_it_can_be_reached() {
    let folder = folder();
    let invite = new_network(folder.path());
    let announced = "/ip4/203.0.113.7/tcp/2744";
    let peer = Peer::up(folder.path(), &["--invite", &invite, "--no-serve", "--announce", announced]);

    let second = peer.home.run(&["up", "--port", "0", "--api", "127.0.0.1:0", "--no-serve"]).failure();
    let status = peer.home.json(&["status", "--json"]);

    assert!(second.contains(&format!("process {}", peer.pid())), "{second}");
    assert_eq!(status["peer"], peer.key.as_str());
    let told: Vec<String> = status["announced"].as_array().unwrap().iter().map(text).collect();
    assert!(told.iter().any(|address| address.starts_with(announced)), "{status}");
    peer.down();
}

#[test]
fn what_cannot_work_is_refused_in_words() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let invite = new_network(&folder.path().join("elsewhere"));
    let cut_invite = &invite[..invite.len() - 9];
    let model = RandomModel::tiny().bytes();
    let (tiny, cut, foreign, no_model) = (path("tiny.gguf"), path("cut.gguf"), path("foreign.gguf"), path("text.gguf"));
    std::fs::write(&tiny, &model).unwrap();
    std::fs::write(&cut, &model[..model.len() / 2]).unwrap();
    std::fs::write(&foreign, with_architecture(&model, b"gpt-x")).unwrap();
    std::fs::write(&no_model, "Dear diary").unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let api = taken.local_addr().unwrap().to_string();
    let p2p = format!("/ip4/127.0.0.1/tcp/{}", taken.local_addr().unwrap().port());
    let cases: &[(&[&str], &str)] = &[
        (&["--model", &cut], "truncated"),
        (&["--model", &foreign], "gpt-x"),
        (&["--model", &no_model], "not a GGUF file"),
        (&["--model", "/nowhere.gguf"], "/nowhere.gguf"),
        (&["--model", "nobodys-model"], "nobodys-model"),
        (&["--model", &tiny, "--memory", "1KiB"], "--memory"),
        (&["--model", &tiny, "--units", "3..9"], "0..5"),
        (&["--model", &tiny, "--units", "3..2"], "units"),
        (&["--memory", "plenty"], "plenty"),
        (&["--journal-memory", "plenty"], "journal-memory"),
        (&["--patience", "3601"], "patience"),
        (&["--threads", "0"], "threads"),
        (&["--device", "abacus"], "abacus"),
        (&["--device", "cuda"], "memory"),
        (&["--mdns", "maybe"], "maybe"),
        (&["--trust", "everybody"], "everybody"),
        (&["--no-such-flag"], "--no-such-flag"),
        (&["--join", "/nowhere"], "/nowhere"),
        (&["--network", "a b"], "network"),
        (&["--invite", cut_invite], "invite"),
        (&["--invite", "open sesame"], "invite"),
        (&["--api-key-file", "/nowhere.key"], "/nowhere.key"),
        (&["--listen", &p2p], "in use"),
    ];
    for (args, words) in cases {
        let root = tempfile::tempdir_in(folder.path()).unwrap();
        let home = Home(root.path().to_owned());

        let said = home.run(&[&["up", "--api", "127.0.0.1:0"], *args].concat()).failure();

        assert!(said.contains(words), "{args:?}: {said}");
        assert!(home.run_file().is_none(), "{args:?}");
    }
    let home = Home(folder.path().join("home"));
    let said = home.run(&["up", "--api", &api, "--port", "0", "--no-serve"]).failure();
    assert!(said.contains(&api) && said.contains("--api"), "{said}");
    let said = home.run(&["up", "--api", "0.0.0.0:0", "--no-serve"]).failure();
    assert!(said.contains("needs a key"), "{said}");
    assert!(home.run(&["import", &cut]).failure().contains("truncated"));
    assert!(home.run(&["bench", &foreign]).failure().contains("gpt-x"));
    for (device, feature) in [("cuda:1", "cuda"), ("metal", "metal")] {
        if (feature == "cuda" && cfg!(feature = "cuda")) || (feature == "metal" && cfg!(feature = "metal")) {
            continue;
        }
        let words = format!("device {device}: this program was built without it; build it with `--features {feature}`");
        assert!(home.run(&["bench", &tiny, "--device", device]).failure().contains(&words));
        let up = ["up", "--api", "127.0.0.1:0", "--no-serve", "--memory", "1GiB", "--device", device];
        assert!(home.run(&up).failure().contains(&words));
    }
    assert!(home.run(&["status"]).failure().contains("no peer runs"));
    std::fs::write(home.0.join("config.toml"), "prot = 2744\n").unwrap();
    assert!(home.run(&["up"]).failure().contains("prot"));
}

/// A GGUF file that says it is of another architecture.
fn with_architecture(model: &[u8], name: &[u8; 5]) -> Vec<u8> {
    let key = b"general.architecture";
    let place = model.windows(key.len()).position(|window| window == key).unwrap();
    // Behind the key: the value's type and length.
    let value = place + key.len() + 4 + 8;
    assert_eq!(&model[value..value + name.len()], b"llama");
    [&model[..value], name, &model[value + name.len()..]].concat()
}

/// A demo whose temporary files are in a folder of their own.
fn demo_in(folder: &Path) -> Command {
    let mut command = brigade();
    command.arg("demo").env("TMPDIR", folder);
    command
}

/// The processes that the demo names, stages only, each with the beginning of its key.
fn stages_of(demo: &mut Running) -> Vec<(u32, String)> {
    let mut stages = Vec::new();
    loop {
        let line = demo.line();
        if line.starts_with("> ") {
            return stages;
        }
        if let ["peer", _, key, "process", process, "holds", "units", ..] =
            line.split_whitespace().collect::<Vec<_>>()[..]
        {
            stages.push((process.parse().unwrap(), key.to_owned()));
        }
    }
}

fn assert_clean(folder: &Path, stages: &[(u32, String)]) {
    assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0, "the demo leaves no files");
    assert!(!stages.iter().any(|(process, _)| os::is_running(*process)), "the demo leaves no processes");
}

#[test]
fn the_demo_shows_who_did_what_and_cleans_up() {
    let folder = folder();
    let mut demo = Running::start(demo_in(folder.path()));
    let stages = stages_of(&mut demo);

    let out = demo.end().success();

    assert_eq!(stages.len(), 3);
    assert_clean(folder.path(), &stages);
    let rows: Vec<Vec<&str>> = out
        .lines()
        .filter(|line| line.starts_with("peer ") && line.ends_with(" MFLOP"))
        .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    assert_eq!(rows.len(), 3, "{out}");
    for (index, row) in rows.iter().enumerate() {
        let positions: u64 = row[2].parse().unwrap();
        let sent = if index == 2 { "tokens only".to_owned() } else { Bytes(positions * DEMO_POSITION).to_string() };
        assert_eq!(row[4], sent, "{out}");
        assert_ne!(row[6], "0 MFLOP", "{out}");
    }
}

#[test]
fn without_any_one_of_its_stages_the_demo_has_no_answer() {
    for lost in 0..3 {
        let folder = folder();
        let mut demo = Running::start(demo_in(folder.path()));
        let stages = stages_of(&mut demo);

        let (process, key) = &stages[lost];
        // More than a hundred tokens are still to come.
        demo.bytes(1);
        os::end_process(*process, Ending::Killed).unwrap();
        let said = demo.end().failure();

        assert!(names(&said, key), "peer {key} was killed: {said}");
        assert_clean(folder.path(), &stages);
    }
}

#[cfg(unix)]
#[test]
fn a_demo_that_is_cut_short_takes_its_peers_along() {
    for ending in [Ending::Asked, Ending::Killed] {
        let folder = folder();
        let mut demo = Running::start(demo_in(folder.path()));
        let stages = stages_of(&mut demo);
        assert_eq!(stages.len(), 3);

        os::end_process(demo.pid(), ending).unwrap();
        let ended = demo.end();

        assert!(!ended.status.success(), "{}", ended.out);
        for (process, _) in &stages {
            wait_for("the peer's end", || (!os::is_running(*process)).then_some(()));
        }
        // Nobody can clean up behind a process that is killed.
        if ending == Ending::Asked {
            assert_clean(folder.path(), &stages);
        }
    }
}

#[test]
fn who_leaves_in_mid_answer_frees_every_stage() {
    let folder = folder();
    let file = folder.path().join("endless.gguf");
    endless().write(&file).unwrap();
    let net = Testnet::up(4, &["--units-per-peer", "3", "--model", file.to_str().unwrap()]);
    let api = text(&net.peer(0).run_file().unwrap()["api"]);
    let sessions = |peer| net.peer(peer).json(&["status", "--json"])["sessions"].as_u64().unwrap();
    let body = json!({ "stream": true, "max_tokens": 8000, "prompt": STORY });
    let mut events = Events::ask(&api, "/v1/completions", &body);
    events.next().unwrap();
    assert_eq!([1, 2, 3].map(sessions), [1, 1, 1]);

    drop(events);

    for peer in 1..=3 {
        wait_for("the session's end", || (sessions(peer) == 0).then_some(()));
    }
}

/// What a peer may hold beside its weights, and a tenth of these: code, libraries, buffers, connections.
#[cfg(target_os = "linux")]
const BESIDE_WEIGHTS: Bytes = Bytes(200_000_000);

/// For how long a peer is watched while nobody asks it anything.
#[cfg(target_os = "linux")]
const IDLE: Duration = Duration::from_secs(10);

#[cfg(target_os = "linux")]
#[test]
fn a_peer_holds_its_weights_once_and_rests_when_nobody_asks() {
    // Weights of 270 to 370 MB: two copies would exceed what is allowed.
    for (format, blocks) in [(WeightFormat::Q4_0, 8), (WeightFormat::Q8_0, 5), (WeightFormat::F16, 3)] {
        let folder = folder();
        let file = folder.path().join("large.gguf");
        let (vocab, context) = (2048, 1024);
        RandomModel { blocks, vocab, context, ..RandomModel::one_billion(format) }.write(&file).unwrap();
        let weights = Bytes(std::fs::metadata(&file).unwrap().len());
        let [asking, serving] = ["asking", "serving"].map(|name| folder.path().join(name));
        let invite = new_network(&asking);
        let asking = Peer::up(&asking, &["--invite", &invite, "--no-serve"]);
        let serve = ["--invite", &invite, "--join", &asking.address, "--model", file.to_str().unwrap()];
        let peer = Peer::up(&serving, &serve);
        asking.home.wait_until_covered();
        assert_eq!(asking.home.ask(STORY, "3")["usage"]["completion_tokens"], 3);

        let (resident, peak) = (memory(&peer, "VmRSS"), memory(&peer, "VmHWM"));
        let before = busy(&peer);
        std::thread::sleep(IDLE);
        let busy = busy(&peer) - before;

        println!("{format}: {weights} of weights, {resident} resident, {peak} at most, busy {busy:?} in {IDLE:?}");
        let most = Bytes(weights.0 + weights.0 / 10).plus(BESIDE_WEIGHTS);
        assert!(peak <= most, "{format}: {resident} and at most {peak}, {most} are allowed");
        assert!(busy < IDLE / 100, "{format}: busy {busy:?} in {IDLE:?}");
        peer.down();
    }
}

/// A line of what Linux says of the memory of a peer's process.
#[cfg(target_os = "linux")]
fn memory(peer: &Peer, name: &str) -> Bytes {
    let status = std::fs::read_to_string(format!("/proc/{}/status", peer.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let kibibytes: u64 = line.trim_matches([':', ' ', '\t', 'k', 'B']).parse().unwrap();
    Bytes(1024 * kibibytes)
}

/// For how long a peer's process has computed so far, by all its threads.
#[cfg(target_os = "linux")]
fn busy(peer: &Peer) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", peer.pid())).unwrap();
    // Behind the name, which may contain anything, `utime` and `stime` are fields 14 and 15 of proc_pid_stat(5).
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks: u64 = fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_micros(ticks * 1_000_000 / rustix::param::clock_ticks_per_second())
}
