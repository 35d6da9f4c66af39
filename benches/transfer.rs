//! What fetching a model from peers takes, beside a plain TCP copy of the same bytes with blake3; and from several throttled sources.
//!
//! Real processes of the release binary on loopback. `benches/README.md` says how to read the figures.
//!
//! ```text
//! cargo bench --bench transfer
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints what it measured")]
#![allow(clippy::disallowed_methods, reason = "a bench looks at the clock")]

mod figures;

use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::ensure;
use brigade::shape::WeightFormat;
use brigade::weights::fixture::RandomModel;
use clap::Parser;
use serde_json::Value;

use crate::figures::median;
use crate::figures::processor;
use crate::figures::spread;

/// The binary that is measured.
const BRIGADE: &str = env!("CARGO_BIN_EXE_brigade");

/// Bytes read, sent and hashed at a time, as peers do.
const PIECE: usize = 1 << 20;

/// How long a download may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Measures how fast weights come from other peers on this machine.
#[derive(Debug, Parser)]
struct Options {
    /// How often each is measured, in turn.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// What each of the throttled sources may send in a second.
    #[arg(long, default_value = "25MiB")]
    limit: String,
    /// How many throttled sources are compared with one.
    #[arg(long, default_value_t = 4)]
    sources: usize,
    /// A model of a few megabytes, to see whether the bench works.
    #[arg(long)]
    small: bool,
    /// Where the model and the peers' data are kept while it runs. By default the system's place for such files.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// What `cargo bench` passes, and `cargo test --benches` does not.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if !options.bench {
        println!("nothing was measured: `cargo bench --bench transfer` does");
        return Ok(());
    }
    let folder = options.dir.as_ref().map_or_else(tempfile::tempdir, tempfile::tempdir_in)?;
    let model = folder.path().join("random.gguf");
    let small = RandomModel { blocks: 6, width: 256, feed_forward: 1_536, ..RandomModel::tiny() };
    let shape = if options.small { small } else { RandomModel::one_billion(WeightFormat::Q4_0) };
    shape.write(&model)?;
    let bytes = std::fs::metadata(&model)?.len() as f64;
    println!("machine  {}", processor());
    println!("model    {:.0} MB of random weights, {} units", bytes / 1e6, shape.blocks + 2);

    let source = Peer::source(&folder.path().join("source"), &model, &[])?;
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..options.pairs {
        plain.push(copy(&model, &folder.path().join("copy"))?);
        ours.push(download(&folder.path().join("newcomer"), &[&source], shape.blocks + 2)?);
    }
    drop(source);
    let rate = |seconds: &[f64]| spread(seconds.iter().map(|seconds| bytes / 1e6 / seconds), 0);
    let ratio = |one: &[f64], other: &[f64]| spread(one.iter().zip(other).map(|(one, other)| one / other), 2);
    println!("a plain copy with blake3, written and synced   {} MB/s", rate(&plain));
    println!("a download, encrypted, verified and synced     {} MB/s", rate(&ours));
    println!("takes                                          {} x as long (aim 2)", ratio(&ours, &plain));

    let start = |index: usize| {
        Peer::source(&folder.path().join(format!("throttled{index}")), &model, &["--upload-limit", &options.limit])
    };
    let fetch = |sources: &[Peer]| -> anyhow::Result<Vec<f64>> {
        let (newcomer, sources) = (folder.path().join("newcomer"), sources.iter().collect::<Vec<_>>());
        (0..options.pairs.div_ceil(2)).map(|_| download(&newcomer, &sources, shape.blocks + 2)).collect()
    };
    let mut throttled = vec![start(0)?];
    // Peers tell each other of sources, so the others come later.
    let one = fetch(&throttled)?;
    for index in 1..options.sources {
        throttled.push(start(index)?);
    }
    let all = fetch(&throttled)?;
    println!("from one source of {} a second             {} MB/s", options.limit, rate(&one));
    println!("from {} of them                                 {} MB/s", throttled.len(), rate(&all));
    println!("so much faster                                 {} x", ratio(&one, &all));
    ensure!(median(one.into_iter()) > median(all.into_iter()), "several sources are no faster than one");
    Ok(())
}

/// A process of the binary; killed when dropped.
struct Peer {
    child: Child,
    root: PathBuf,
    id: String,
    address: String,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    /// A peer that has imported a model and gives it to others.
    fn source(root: &Path, model: &Path, args: &[&str]) -> anyhow::Result<Self> {
        let imported =
            Command::new(BRIGADE).arg("--data-dir").arg(root).arg("import").arg(model).arg("--json").output()?;
        ensure!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
        let imported: Value = serde_json::from_slice(&imported.stdout)?;
        let id = imported["id"].as_str().context("an id")?.to_owned();
        let (child, address) = up(root, &[&["--no-serve"], args].concat())?;
        Ok(Self { child, root: root.to_owned(), id, address })
    }
}

/// Starts a peer; the process and its address.
fn up(root: &Path, args: &[&str]) -> anyhow::Result<(Child, String)> {
    std::fs::create_dir_all(root)?;
    let log = File::create(root.join("peer.log"))?;
    let mut command = Command::new(BRIGADE);
    command.arg("--data-dir").arg(root).args(["up", "--network", "transfer", "--listen", "/ip4/127.0.0.1/tcp/0"]);
    command.args(["--mdns", "off", "--api", "127.0.0.1:0", "--threads", "1"]).args(args);
    let child =
        command.env("BRIGADE_LOG", "brigade=info").stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
    let begin = Instant::now();
    loop {
        let run = std::fs::read(root.join("run.json")).ok().and_then(|run| serde_json::from_slice::<Value>(&run).ok());
        if let Some(run) = run.filter(|run| run["pid"] == child.id())
            && let Some(address) = run["p2p"][0].as_str()
        {
            return Ok((child, address.to_owned()));
        }
        ensure!(begin.elapsed() < Duration::from_secs(20), "a peer does not start: {}", root.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Seconds that an empty peer takes to fetch all of a model, by its own log.
fn download(root: &Path, sources: &[&Peer], units: u16) -> anyhow::Result<f64> {
    let joins: Vec<&str> = sources.iter().flat_map(|source| ["--join", source.address.as_str()]).collect();
    let range = format!("0..{units}");
    let known = ["--model", &sources[0].id, "--units", &range, "--memory", "6GiB"];
    let (child, _) = up(root, &[&joins[..], &known].concat())?;
    let newcomer = Peer { child, root: root.to_owned(), id: String::new(), address: String::new() };
    let begin = Instant::now();
    let taken = loop {
        let log = std::fs::read_to_string(newcomer.root.join("peer.log"))?;
        let moment = |words: &str| log.lines().find(|line| line.contains(words)).and_then(seconds);
        if let (Some(start), Some(end)) = (moment("fetching weights from"), moment("all weights are here")) {
            break (end - start).rem_euclid(86_400.0);
        }
        ensure!(begin.elapsed() < PATIENCE, "the download does not end: {log}");
        std::thread::sleep(Duration::from_millis(50));
    };
    drop(newcomer);
    std::fs::remove_dir_all(root)?;
    Ok(taken)
}

/// The time of day at the beginning of a line of the log: `2026-01-31T12:34:56.789012Z …`.
fn seconds(line: &str) -> Option<f64> {
    let time = line.split_once('T')?.1.split_once('Z')?.0;
    let mut parts = time.split(':').map(|part| part.parse::<f64>().ok());
    Some(parts.next()?? * 3_600.0 + parts.next()?? * 60.0 + parts.next()??)
}

/// Seconds that a copy over TCP takes, hashed where it arrives, written and synced.
fn copy(from: &Path, to: &Path) -> anyhow::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let begin = Instant::now();
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || -> anyhow::Result<()> {
            let (mut stream, mut file) = (listener.accept()?.0, File::open(from)?);
            let mut piece = vec![0; PIECE];
            loop {
                match file.read(&mut piece)? {
                    0 => return Ok(()),
                    count => stream.write_all(&piece[..count])?,
                }
            }
        });
        let (mut stream, mut file) = (TcpStream::connect(address)?, File::create(to)?);
        let (mut hasher, mut piece) = (blake3::Hasher::new(), vec![0; PIECE]);
        loop {
            match stream.read(&mut piece)? {
                0 => break,
                count => {
                    hasher.update(&piece[..count]);
                    file.write_all(&piece[..count])?;
                }
            }
        }
        file.sync_all()?;
        std::hint::black_box(hasher.finalize());
        sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?
    })?;
    let taken = begin.elapsed().as_secs_f64();
    std::fs::remove_file(to)?;
    Ok(taken)
}
