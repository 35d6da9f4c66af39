//! Peers come and go all the time, and prompts never stop: every answer is the right one, or says that units are missing.
//!
//! ```text
//! testnet/churn.sh        # for five minutes
//! ```

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use brigade::amounts::Bytes;
use brigade::amounts::Span;
use brigade::clock::Clock;
use brigade::demo;
use serde_json::Value;

use crate::memory;
use crate::new_network;
use crate::support::Home;
use crate::support::Peer;
use crate::support::folder;
use crate::support::run;

/// Peers that ask, and peers that serve at any moment.
const ASKING: usize = 3;
const SERVING: usize = 9;

/// How often one is killed and another started.
const EVERY: Duration = Duration::from_secs(10);

/// How long it goes on, in seconds, unless `BRIGADE_CHURN` says otherwise.
const SECONDS: u64 = 60;

/// What memory may grow by between the middle and the end: allocators keep what they had for a moment.
const SLACK: Bytes = Bytes::mib(24);

/// Files and sockets that may be open more: connections to peers that come and go.
const MORE_FILES: usize = 24;

const PROMPTS: [&str; 3] =
    ["Once upon a time there was a dog", "Ben is at the market. Where is Ben?", "Anna took the red ball to the barn"];

/// How the answers of one peer ended.
#[derive(Debug, Default)]
struct Tally {
    right: usize,
    /// Of those, how many lost a stage on the way.
    mended: usize,
    uncovered: usize,
    wrong: Vec<String>,
}

/// What a process has of the system.
#[derive(Clone, Copy, Debug)]
struct Having {
    memory: Bytes,
    files: usize,
}

impl Having {
    fn of(peer: &Peer) -> Self {
        let files = std::fs::read_dir(format!("/proc/{}/fd", peer.pid())).unwrap().count();
        Self { memory: memory(peer, "VmRSS"), files }
    }
}

fn ask(home: &Home, prompt: &str) -> Result<Value, String> {
    let args = ["ask", "--raw", "--json", "--temperature", "0", "--max-tokens", "48", "--patience", "20", prompt];
    let ended = run(home.command(&args));
    if ended.status.success() {
        serde_json::from_str(&ended.out).map_err(|error| error.to_string())
    } else {
        Err(ended.err)
    }
}

/// Asks again and again.
fn keep_asking(home: &Home, prompt: &str, expected: &Value, stop: &AtomicBool) -> Tally {
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        match ask(home, prompt) {
            Ok(answer) if answer["tokens"] == *expected => {
                tally.right += 1;
                tally.mended += usize::from(answer["mended"].as_array().is_some_and(|mended| !mended.is_empty()));
            }
            Ok(answer) => tally.wrong.push(answer.to_string()),
            Err(error) if error.contains("no peer holds") => tally.uncovered += 1,
            Err(error) => tally.wrong.push(error),
        }
    }
    tally
}

#[test]
fn answers_are_right_while_peers_come_and_go() {
    let seconds = std::env::var("BRIGADE_CHURN").map_or(SECONDS, |seconds| seconds.parse().unwrap());
    let folder = folder();
    let root = |name: String| folder.path().join(name);
    let invite = new_network(&root("asking-0".to_owned()));
    let mut asking: Vec<Peer> = Vec::new();
    for index in 0..ASKING {
        let join = asking.first().map(|first| first.address.clone());
        let join: Vec<&str> = join.iter().flat_map(|address| ["--join", address]).collect();
        asking.push(Peer::up(
            &root(format!("asking-{index}")),
            &[&["--invite", &invite, "--no-serve"], &join[..]].concat(),
        ));
    }
    let mut started = 0;
    let mut serve = || {
        started += 1;
        let join = &asking[started % ASKING].address;
        let model = ["--model", demo::NAME, "--units-per-peer", "3"];
        Peer::up(&root(format!("serving-{started}")), &[&["--invite", &invite, "--join", join], &model[..]].concat())
    };
    let mut serving: VecDeque<Peer> = (0..SERVING).map(|_| serve()).collect();
    asking.iter().for_each(|peer| peer.home.wait_until_covered());
    let expected = PROMPTS.map(|prompt| ask(&asking[0].home, prompt).unwrap()["tokens"].clone());

    let stop = AtomicBool::new(false);
    let clock = Clock::start();
    let (tallies, halfway, end) = std::thread::scope(|scope| {
        let askers: Vec<_> = (0..ASKING)
            .map(|index| {
                let (home, prompt, expected, stop) = (&asking[index].home, PROMPTS[index], &expected[index], &stop);
                scope.spawn(move || keep_asking(home, prompt, expected, stop))
            })
            .collect();
        let mut halfway = None;
        while clock.now() < brigade::amounts::Time::ZERO.after(Span::seconds(seconds)) {
            std::thread::sleep(EVERY);
            let mut gone = serving.pop_front().unwrap();
            gone.kill();
            serving.push_back(serve());
            if 2 * clock.now().0 >= Span::seconds(seconds).0 && halfway.is_none() {
                halfway = Some(asking.iter().map(Having::of).collect::<Vec<_>>());
            }
        }
        let end: Vec<Having> = asking.iter().map(Having::of).collect();
        stop.store(true, Ordering::Relaxed);
        (askers.into_iter().map(|asker| asker.join().unwrap()).collect::<Vec<_>>(), halfway.unwrap(), end)
    });

    println!("{started} peers served; {tallies:?}\nhalfway {halfway:?}\nat the end {end:?}");
    for tally in &tallies {
        assert!(tally.wrong.is_empty(), "{:?}", tally.wrong);
        assert!(tally.right > 0);
    }
    for (halfway, end) in halfway.iter().zip(&end) {
        assert!(end.memory <= halfway.memory.plus(SLACK), "{halfway:?} {end:?}");
        assert!(end.files <= halfway.files + MORE_FILES, "{halfway:?} {end:?}");
    }
}
