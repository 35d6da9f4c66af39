//! `brigade demo` shows what it promises and cleans up, however it ends.

use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::process::Child;
use std::process::Stdio;

use brigade::os;
use brigade::os::Ending;

use crate::harness::command;
use crate::harness::wait_for;

const QUESTION: &str = "Ben is at the market. Where is Ben?";

/// The demo, with a folder of its own for temporary files.
fn demo(temporary: &Path, prompt: &str) -> Child {
    let mut command = command(&["demo", prompt]);
    command.env("TMPDIR", temporary).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

/// The processes that the demo says it has started.
fn processes(lines: &[String]) -> Vec<u32> {
    let number = |line: &String| line.split_once("process ")?.1.split_whitespace().next()?.parse().ok();
    lines.iter().filter_map(number).collect()
}

#[cfg(unix)]
#[test]
fn four_peers_answer_and_nothing_is_left() {
    let temporary = tempfile::tempdir().unwrap();

    let output = demo(temporary.path(), QUESTION).wait_with_output().unwrap();

    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for part in ["peer 0", "peer 3", "holds nothing, and asks", "MFLOP", "tokens only", "then one every"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let peers = processes(&shown.lines().map(str::to_owned).collect::<Vec<_>>());
    assert_eq!(peers.len(), 4);
    assert!(!peers.iter().any(|peer| os::is_running(*peer)));
    assert!(is_empty(temporary.path()));
}

#[cfg(unix)]
#[test]
fn a_demo_that_is_interrupted_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let mut demo = demo(temporary.path(), QUESTION);
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines().map(Result::unwrap);
    let shown: Vec<String> = lines.by_ref().take(5).collect();

    os::end_process(demo.id(), Ending::Asked).unwrap();

    assert_eq!(demo.wait().unwrap().code(), Some(130));
    let peers = processes(&shown);
    assert_eq!(peers.len(), 4, "{shown:?}");
    assert!(!peers.iter().any(|peer| os::is_running(*peer)));
    assert!(is_empty(temporary.path()));
}

#[cfg(unix)]
#[test]
fn a_demo_that_is_killed_takes_its_peers_along() {
    let temporary = tempfile::tempdir().unwrap();
    let mut demo = demo(temporary.path(), QUESTION);
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines().map(Result::unwrap);
    let peers = processes(&lines.by_ref().take(5).collect::<Vec<_>>());

    demo.kill().unwrap();
    demo.wait().unwrap();

    assert_eq!(peers.len(), 4);
    for peer in peers {
        wait_for("the peer's end", || (!os::is_running(peer)).then_some(()));
    }
}

#[cfg(unix)]
#[test]
fn nobody_can_be_spared() {
    for stage in 1..4 {
        let temporary = tempfile::tempdir().unwrap();
        let mut demo = demo(temporary.path(), "Tell me a story.");
        let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines().map(Result::unwrap);
        // The title, four peers, a blank line and the question; the answer follows.
        let shown: Vec<String> = lines.by_ref().take(7).collect();

        os::end_process(processes(&shown)[stage], Ending::Killed).unwrap();

        let rest: Vec<String> = lines.collect();
        assert_eq!(demo.wait().unwrap().code(), Some(1), "stage {stage}: {rest:?}");
        assert!(is_empty(temporary.path()));
    }
}
