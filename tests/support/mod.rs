//! Real peers as processes of this machine: on ports that the system chooses, killed when the test is over.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStdout;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::thread::JoinHandle;
use std::time::Duration;

use brigade::amounts::Span;
use brigade::clock::Clock;
use brigade::os;
use brigade::os::Ending;
use serde_json::Value;

/// How long a peer gets for what takes milliseconds to seconds, on a machine that has other things to do.
pub(crate) const PATIENCE: Span = Span::seconds(60);

/// How often to look again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A command of the program, with nothing of this machine's own settings.
pub(crate) fn brigade() -> Command {
    bare(Command::new(env!("CARGO_BIN_EXE_brigade")))
}

/// Takes this machine's own settings from a command.
pub(crate) fn bare(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BRIGADE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Looks until there is something to see, and gives up loudly.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let clock = Clock::start();
    let start = clock.now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(clock.now().since(start) < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// What a command that has ended left.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ended {
    /// The output of a command that succeeded.
    pub(crate) fn success(self) -> String {
        assert!(self.status.success(), "{}\n{}\n{}", self.status, self.out, self.err);
        self.out
    }

    /// What a command that failed said; it must have failed in order.
    pub(crate) fn failure(self) -> String {
        assert!(self.status.code().is_some_and(|code| code > 0), "{}: {}\n{}", self.status, self.out, self.err);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self.err
    }
}

/// A command under way; killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    out: Option<BufReader<ChildStdout>>,
    err: Option<JoinHandle<String>>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let out = BufReader::new(child.stdout.take().expect("the output is piped"));
        let err = child.stderr.take().expect("the errors are piped");
        Self { child, out: Some(out), err: Some(all_of(err)) }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its next line.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output().read_line(&mut line).expect("the output can be read");
        assert!(!line.is_empty(), "the output ended early: {}", self.errors());
        line
    }

    /// Reads exactly so many bytes of its output.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        if self.output().read_exact(&mut bytes).is_err() {
            panic!("the output ended early: {}", self.errors());
        }
        bytes
    }

    /// Waits until it ends by itself, and gives the output that was not read yet.
    pub(crate) fn end(self) -> Ended {
        self.end_as("the command ends")
    }

    fn end_as(mut self, told: &str) -> Ended {
        let rest = self.out.take().map(all_of);
        let status = wait_for(told, || self.child.try_wait().expect("the command can be waited for"));
        let out = rest.map(|out| out.join().expect("the output can be read")).unwrap_or_default();
        Ended { status, out, err: self.errors() }
    }

    fn output(&mut self) -> &mut BufReader<ChildStdout> {
        self.out.as_mut().expect("the command is under way")
    }

    fn errors(&mut self) -> String {
        self.err.take().map(|err| err.join().expect("the errors can be read")).unwrap_or_default()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn all_of(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read so far is what there is.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Runs a command to its end, and kills it if that does not come.
pub(crate) fn run(command: Command) -> Ended {
    let told = format!("{command:?}");
    Running::start(command).end_as(&told)
}

/// A data directory and the commands on it.
#[derive(Clone, Debug)]
pub(crate) struct Home(pub(crate) PathBuf);

impl Home {
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = brigade();
        command.arg("--data-dir").arg(&self.0).args(args);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        run(self.command(args))
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.run(args).success()).expect("the listing is JSON")
    }

    /// How to reach the peer that runs here.
    pub(crate) fn run_file(&self) -> Option<Value> {
        serde_json::from_slice(&std::fs::read(self.0.join("run.json")).ok()?).ok()
    }

    /// Asks without any chance, and gives the JSON form of the answer.
    pub(crate) fn ask(&self, prompt: &str, tokens: &str) -> Value {
        self.json(&["ask", "--raw", "--json", "--temperature", "0", "--max-tokens", tokens, prompt])
    }

    /// The runs of units that nobody serves, as the peer here sees it; `None` before it has heard of the model.
    pub(crate) fn missing(&self) -> Option<Vec<String>> {
        let peers = self.json(&["peers", "--json"]);
        let [model] = &peers["models"].as_array()?[..] else { return None };
        let missing = model["missing"].as_array()?.iter().map(text).collect();
        if model["covered"] == true { Some(Vec::new()) } else { Some(missing) }
    }

    pub(crate) fn wait_until_covered(&self) {
        wait_for("every unit is served", || self.missing().filter(Vec::is_empty));
    }

    /// The keys of the peers that are connected, with this one's.
    pub(crate) fn connected(&self) -> BTreeSet<String> {
        let peers = self.json(&["peers", "--json"]);
        let peers = peers["peers"].as_array().expect("peers are a list");
        peers.iter().filter(|peer| peer["connected"] == true).map(|peer| text(&peer["peer"])).collect()
    }
}

/// A string of a JSON value.
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("expected a string, got {value}")).to_owned()
}

/// A peer; killed when dropped.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) home: Home,
    pub(crate) key: String,
    pub(crate) api: String,
    /// What lets a command in.
    pub(crate) token: String,
    /// An address to join, with the identity.
    pub(crate) address: String,
    child: Child,
}

impl Peer {
    /// Starts `brigade up` on loopback with `args`, and waits until it listens.
    pub(crate) fn up(root: &Path, args: &[&str]) -> Self {
        let home = Home(root.to_owned());
        let mut command = home.command(&["up", "--listen", "/ip4/127.0.0.1/tcp/0", "--mdns", "off", "--threads", "1"]);
        command.args(["--api", "127.0.0.1:0"]).args(args);
        Self::spawn(home, command)
    }

    /// Starts `command`, which is `brigade up` on `home`.
    pub(crate) fn spawn(home: Home, mut command: Command) -> Self {
        std::fs::create_dir_all(&home.0).expect("a folder can be made");
        let log = home.0.join("peer.log");
        let file = File::create(&log).expect("a log can be made");
        let errors = file.try_clone().expect("a log can be shared");
        let command = command.arg("--exit-with-parent").stdin(Stdio::piped()).stdout(file).stderr(errors);
        let mut child = command.spawn().expect("the program starts");
        let run = wait_for("the peer listens", || {
            let ended = child.try_wait().expect("the peer can be waited for");
            assert!(ended.is_none(), "{}", std::fs::read_to_string(&log).unwrap_or_default());
            home.run_file().filter(|run| run["pid"] == child.id())
        });
        let address = text(&run["p2p"][0]);
        Self { home, key: text(&run["peer"]), api: text(&run["api"]), token: text(&run["token"]), address, child }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A figure of its metrics.
    pub(crate) fn figure(&self, name: &str) -> u64 {
        let answer = http(&self.api, &self.token, "GET", "/metrics", "");
        let value = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{name} is no figure of {answer}")).parse().expect("figures are numbers")
    }

    /// Sends a body to an endpoint that is only for this program's commands.
    pub(crate) fn post(&self, name: &str, body: &Value) {
        let answer = http(&self.api, &self.token, "POST", &format!("/brigade/v1/{name}"), &body.to_string());
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    /// Ends it without a warning, as a power cut would; what it held stays in `home`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("the peer can be killed");
        self.child.wait().expect("the peer can be waited for");
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the peer can be waited for").is_none()
    }

    /// Waits until it has ended.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        wait_for("the peer ends", || self.child.try_wait().expect("the peer can be waited for"))
    }

    /// Ends it in order.
    pub(crate) fn down(mut self) {
        self.home.run(&["down"]).success();
        assert!(self.child.wait().expect("the peer can be waited for").success());
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A network that `brigade testnet up` started; stopped when dropped.
#[derive(Debug)]
pub(crate) struct Testnet {
    folder: tempfile::TempDir,
}

impl Testnet {
    pub(crate) fn up(peers: usize, args: &[&str]) -> Self {
        let folder = folder();
        let mut command = brigade();
        command.args(["testnet", "up", "--threads", "1", "--peers", &peers.to_string(), "--dir"]).arg(folder.path());
        command.args(args);
        let net = Self { folder };
        run(command).success();
        net
    }

    pub(crate) fn peer(&self, peer: usize) -> Home {
        Home(self.folder.path().join(format!("peer-{peer}")))
    }

    pub(crate) fn down(&self) -> Ended {
        let mut command = brigade();
        command.args(["testnet", "down", "--dir"]).arg(self.folder.path());
        run(command)
    }
}

impl Drop for Testnet {
    fn drop(&mut self) {
        let pids: Vec<u64> = (0..)
            .map(|peer| self.peer(peer))
            .take_while(|home| home.0.exists())
            .filter_map(|home| home.run_file()?["pid"].as_u64())
            .collect();
        let mut command = brigade();
        let command = command.args(["testnet", "down", "--dir"]).arg(self.folder.path());
        // Whatever it left running is killed.
        let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        for pid in pids.into_iter().filter_map(|pid| u32::try_from(pid).ok()).filter(|pid| os::is_running(*pid)) {
            let _ = os::end_process(pid, Ending::Killed);
        }
    }
}

pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("brigade-test-").tempdir().expect("a folder can be made")
}

/// Asks the API at `address`, and gives the whole response.
fn http(address: &str, token: &str, method: &str, path: &str, body: &str) -> String {
    let mut socket = TcpStream::connect(address).expect("the API listens");
    socket.set_read_timeout(Some(Duration::from_micros(PATIENCE.0))).expect("a socket takes a time limit");
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    let head = format!("{head}Authorization: Bearer {token}\r\nContent-Type: application/json\r\n");
    let head = format!("{head}Content-Length: {}\r\n\r\n", body.len());
    socket.write_all(format!("{head}{body}").as_bytes()).expect("a request can be sent");
    let mut response = String::new();
    socket.read_to_string(&mut response).expect("the API answers");
    response
}

/// The events of a streamed answer of the HTTP API.
#[derive(Debug)]
pub(crate) struct Events(BufReader<TcpStream>);

impl Events {
    /// Asks the API at `address`.
    pub(crate) fn ask(address: &str, path: &str, body: &Value) -> Self {
        let mut socket = TcpStream::connect(address).expect("the API listens");
        let patience = Some(Duration::from_micros(PATIENCE.0));
        socket.set_read_timeout(patience).expect("a socket takes a time limit");
        let body = body.to_string();
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
        let head = format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
        socket.write_all(format!("{head}{body}").as_bytes()).expect("a request can be sent");
        let mut events = BufReader::new(socket);
        let mut status = String::new();
        events.read_line(&mut status).expect("the API answers");
        assert!(status.contains(" 200 "), "{status}");
        Self(events)
    }
}

impl Iterator for Events {
    type Item = String;

    /// The data of the next event. What surrounds it (headers, sizes of chunks, signs of life) is skipped.
    fn next(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).expect("the stream can be read") == 0 {
                return None;
            }
            if let Some(data) = line.strip_prefix("data:") {
                return Some(data.trim().to_owned());
            }
        }
    }
}
