//! Starts peers, asks them, and leaves nothing behind.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use brigade::clock::Clock;
use brigade::config::datadir::RunFile;
use serde_json::Value;
use tempfile::TempDir;

/// How long anything here may take before it counts as hanging.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at something that says nothing when it happens.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Token 1 of the demo model ends its answers; without it an answer fills the context.
pub(crate) const NEVER_ENDING: &str = "1=-100";

/// The binary, without the settings of whoever runs the tests.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
    command.args(args);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BRIGADE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    command(args).stdin(Stdio::null()).output().unwrap()
}

/// What a command that succeeds prints.
pub(crate) fn says(args: &[&str]) -> String {
    let output = run(args);
    assert!(output.status.success(), "{args:?}: {}", complaint(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What a command that succeeds prints, as JSON.
pub(crate) fn json(args: &[&str]) -> Value {
    serde_json::from_str(&says(args)).unwrap()
}

/// The complaint of a command that fails.
pub(crate) fn fails(args: &[&str]) -> String {
    let output = run(args);
    assert!(!output.status.success(), "{args:?} should have failed: {}", String::from_utf8_lossy(&output.stdout));
    complaint(&output)
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Looks until something is there.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let clock = Clock::start();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Duration::from_micros(clock.now().0) < PATIENCE, "{what} did not happen");
        sleep(LOOK_AGAIN);
    }
}

/// A network that `testnet up` started; stopped when dropped.
pub(crate) struct Testnet {
    folder: TempDir,
}

impl Testnet {
    pub(crate) fn up(peers: u16, units_per_peer: u16) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (peers, units) = (peers.to_string(), units_per_peer.to_string());
        let dir = folder.path().to_str().unwrap();
        says(&["testnet", "up", "--peers", &peers, "--units-per-peer", &units, "--dir", dir]);
        Self { folder }
    }

    /// The data directory of a peer.
    pub(crate) fn root(&self, peer: usize) -> String {
        self.folder.path().join(format!("peer-{peer}")).to_str().unwrap().to_owned()
    }

    pub(crate) fn run_file(&self, peer: usize) -> RunFile {
        RunFile::read(Path::new(&self.root(peer))).unwrap().unwrap()
    }

    /// The peer, other than 0, of that key.
    pub(crate) fn peer_of(&self, key: &str) -> usize {
        (1..).find(|peer| self.run_file(*peer).peer == key).unwrap()
    }
}

impl Drop for Testnet {
    fn drop(&mut self) {
        let stopped = run(&["testnet", "down", "--dir", self.folder.path().to_str().unwrap()]);
        // A test that fails has more to say than this.
        if !std::thread::panicking() {
            assert!(stopped.status.success(), "{}", complaint(&stopped));
        }
    }
}

/// A peer of its own, ended with the test however that ends.
pub(crate) struct Peer {
    pub(crate) child: Child,
    pub(crate) root: PathBuf,
    pub(crate) run_file: RunFile,
}

impl Peer {
    /// Starts a peer on `root` with ports of its own, and waits until it says where it is.
    pub(crate) fn up(root: &Path, flags: &[&str]) -> Self {
        let ports = ["--port", "0", "--api", "127.0.0.1:0", "--exit-with-parent"];
        let start = ["--data-dir", root.to_str().unwrap(), "up"];
        let mut command = command(&[&start, &ports[..], flags].concat());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let run_file = wait_for("the peer's start", || {
            if child.try_wait().unwrap().is_some() {
                let complaints = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
                panic!("the peer stopped: {}", complaints.collect::<Vec<_>>().join("\n"));
            }
            RunFile::read(root).unwrap().filter(|run| run.pid == child.id())
        });
        Self { child, root: root.to_owned(), run_file }
    }

    pub(crate) fn root(&self) -> &str {
        self.root.to_str().unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a request to a peer's API; the answer's lines, head first.
pub(crate) fn post(run: &RunFile, path: &str, body: &Value) -> impl Iterator<Item = String> + use<> {
    let mut socket = TcpStream::connect(&run.api).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = body.to_string();
    // HTTP/1.0: the answer comes without chunks and ends with the connection.
    write!(
        socket,
        "POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    BufReader::new(socket).lines().map(Result::unwrap)
}

/// The data of a server-sent event's line.
pub(crate) fn data(line: &str) -> Option<&str> {
    line.strip_prefix("data: ")
}
