//! One peer: its data directory, its addresses, its start and stop.

use std::path::Path;

use brigade::config::datadir::RunFile;
use brigade::os;
use brigade::os::Ending;

use crate::harness::Peer;
use crate::harness::fails;
use crate::harness::json;
use crate::harness::says;
use crate::harness::wait_for;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_second_peer_on_one_data_directory_is_told_who_is_first() {
    let folder = tempfile::tempdir().unwrap();
    let first = Peer::up(folder.path(), &["--no-serve", "--mdns", "off"]);

    let complaint = fails(&["--data-dir", first.root(), "up", "--port", "0", "--api", "127.0.0.1:0"]);

    assert!(complaint.contains(&format!("process {}", first.child.id())), "{complaint}");
}

#[cfg(unix)]
#[test]
fn a_restart_keeps_the_identity_and_a_clean_stop_leaves_no_run_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = Peer::up(folder.path(), &["--no-serve", "--mdns", "off"]);

    os::end_process(first.child.id(), Ending::Asked).unwrap();

    assert!(first.child.wait().unwrap().success());
    assert_eq!(RunFile::read(folder.path()).unwrap(), None);
    let second = Peer::up(folder.path(), &["--no-serve", "--mdns", "off"]);
    assert_eq!(second.run_file.peer, first.run_file.peer);
    assert_eq!(std::fs::read_to_string(folder.path().join("boot")).unwrap().trim(), "2");
}

#[test]
fn a_peer_that_was_killed_is_not_taken_for_a_running_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut peer = Peer::up(folder.path(), &["--no-serve", "--mdns", "off"]);
    peer.child.kill().unwrap();
    peer.child.wait().unwrap();
    assert!(RunFile::read(folder.path()).unwrap().is_some());

    let complaint = fails(&["--data-dir", peer.root(), "status"]);

    assert!(complaint.contains("no peer runs"), "{complaint}");
    assert!(fails(&["--data-dir", peer.root(), "down"]).contains("no peer runs"));
}

#[test]
fn down_stops_the_peer_of_the_data_directory() {
    let folder = tempfile::tempdir().unwrap();
    let mut peer = Peer::up(folder.path(), &["--no-serve", "--mdns", "off"]);

    says(&["down", "--data-dir", peer.root()]);

    assert!(peer.child.wait().unwrap().success());
}

#[test]
fn a_port_in_use_is_named_before_anything_starts() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Peer::up(one.path(), &["--no-serve", "--mdns", "off"]);

    let complaint = fails(&["--data-dir", text(two.path()), "up", "--port", "0", "--api", &first.run_file.api]);

    assert!(complaint.contains(&first.run_file.api) && complaint.contains("--api"), "{complaint}");
}

#[test]
fn peers_of_a_private_network_meet_by_invite_and_others_stay_outside() {
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [first, second, outside] = folders.each_ref().map(tempfile::TempDir::path);
    says(&["--data-dir", text(first), "network", "new", "home"]);
    let first = Peer::up(first, &["--network", "home", "--model", "demo", "--mdns", "off"]);
    let invite = says(&["--data-dir", first.root(), "network", "invite"]);

    let second = Peer::up(second, &["--invite", invite.trim(), "--no-serve", "--mdns", "off"]);
    let address = &first.run_file.p2p[0];
    let outside = Peer::up(outside, &["--no-serve", "--mdns", "off", "--join", address]);

    let connected = |peer: &Peer| json(&["--data-dir", peer.root(), "status", "--json"])["connected"].as_u64();
    wait_for("the meeting", || (connected(&second) == Some(1)).then_some(()));
    wait_for("an answer through the mesh", || {
        let asked = ["--data-dir", second.root(), "ask", "--max-tokens", "3", "Hello!"];
        crate::harness::run(&asked).status.success().then_some(())
    });
    assert_eq!(connected(&outside), Some(0));
}

#[test]
fn an_announced_address_is_told_to_others() {
    let folder = tempfile::tempdir().unwrap();
    let flags = ["--no-serve", "--mdns", "off", "--announce", "198.51.100.4:2744"];
    let peer = Peer::up(folder.path(), &flags);

    let announced = &json(&["--data-dir", peer.root(), "status", "--json"])["announced"];

    assert!(announced.to_string().contains("/ip4/198.51.100.4/tcp/2744"), "{announced}");
}

#[test]
fn a_file_that_is_no_model_is_refused_and_a_model_is_imported_once_by_its_id() {
    let folder = tempfile::tempdir().unwrap();
    let (nonsense, model) = (folder.path().join("nonsense.gguf"), folder.path().join("demo.gguf"));
    std::fs::write(&nonsense, "nonsense").unwrap();
    std::fs::write(&model, brigade::demo::MODEL).unwrap();
    let root = folder.path().join("data");
    let import = |file: &Path| json(&["import", text(file), "--json", "--data-dir", text(&root)]);

    let (first, again) = (import(&model), import(&model));

    assert!(fails(&["import", text(&nonsense), "--data-dir", text(&root)]).contains("not a GGUF file"));
    assert_eq!(first["id"], again["id"]);
    assert_eq!(first["id"].as_str().unwrap().len(), 64);
}
