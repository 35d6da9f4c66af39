//! Peers that know no address find each other by multicast alone, in a network namespace of their own.

use std::process::Command;
use std::process::Output;

use crate::harness::Peer;
use crate::harness::command;
use crate::harness::wait_for;

/// Gives the namespace one address that is not loopback, and multicast to itself; then becomes the test again.
const NAMESPACE: &str = "ip link set lo up && ip link set lo multicast on && ip addr add 10.99.0.1/24 dev lo && \
                         ip route add 224.0.0.0/4 dev lo && exec \"$0\" \"$@\"";

/// Says that the test is the one inside.
const INSIDE: &str = "BRIGADE_TEST_INSIDE";

#[test]
fn peers_on_one_network_find_each_other_without_any_address() {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let may = Command::new("unshare").args(["-rn", "sh", "-c", NAMESPACE, "true"]).output();
    if !may.as_ref().is_ok_and(|may| may.status.success()) {
        let why = may.map_or_else(|error| error.to_string(), |may| String::from_utf8_lossy(&may.stderr).into_owned());
        eprintln!("skipped: no network namespace can be made here: {}", why.trim());
        return;
    }

    let test = std::env::current_exe().unwrap();
    let name = "multicast::peers_on_one_network_find_each_other_without_any_address";
    let mut again = Command::new("unshare");
    again.args(["-rn", "sh", "-c", NAMESPACE]).arg(test).args(["--exact", name, "--nocapture"]).env(INSIDE, "1");

    let Output { status, stdout, stderr } = again.output().unwrap();
    assert!(status.success(), "{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
}

fn inside() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let _first = Peer::up(one.path(), &["--model", "demo", "--units", "0..5"]);
    let second = Peer::up(two.path(), &["--model", "demo", "--units", "5..8", "--trust", "open"]);

    wait_for("an answer of both", || {
        let asked = command(&["--data-dir", second.root(), "ask", "--max-tokens", "3", "Hello!"]).output().unwrap();
        asked.status.success().then_some(())
    });
}
