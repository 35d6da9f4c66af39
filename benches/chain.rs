//! What splitting costs: a chain of local processes against one process that holds the whole model.
//!
//! Both networks consist of real processes of the release binary, started by `brigade testnet`, and stay up while they
//! are asked in turn. `benches/README.md` says how to read the figures.
//!
//! ```text
//! cargo bench --bench chain
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints what it measured")]
#![allow(clippy::disallowed_methods, reason = "a bench looks at the clock")]

mod figures;

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::time::Instant;

use anyhow::Context;
use anyhow::anyhow;
use anyhow::bail;
use anyhow::ensure;
use brigade::shape::WeightFormat;
use brigade::weights::fixture::RandomModel;
use clap::Parser;
use serde::Deserialize;

use crate::figures::median;
use crate::figures::processor;
use crate::figures::spread;

/// The binary that is measured.
const BRIGADE: &str = env!("CARGO_BIN_EXE_brigade");

/// What the chain should reach of the unsplit model's figures.
struct Aims {
    /// Of the decoding, at least.
    decode: f64,
    /// Of the prompt's tokens per second, at least.
    prefill: f64,
    /// Of the tokens of all answers, as a part of what the engine alone gains by as many threads, at least.
    aggregate: f64,
}

impl Aims {
    /// Two stages share the work of a long prompt evenly, and are asked for more.
    fn of(options: &Options) -> Self {
        match (options.stages, options.prompt) {
            (2, 2048..) => Self { decode: 0.97, prefill: 1.7, aggregate: 0.95 },
            (2, 512..) => Self { decode: 0.97, prefill: 1.5, aggregate: 0.95 },
            (2, _) => Self { decode: 0.97, prefill: 0.5, aggregate: 0.95 },
            _ => Self { decode: 0.95, prefill: 0.5, aggregate: 0.95 },
        }
    }
}

/// Compares a chain of local processes with one process that holds the whole model, on random weights.
#[derive(Debug, Parser)]
struct Options {
    /// A model of a few megabytes, to see whether the bench works: its figures show the cost of the network alone.
    #[arg(long)]
    small: bool,
    /// How often each of the two networks is asked, in turn.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pairs: u16,
    /// Tokens to generate each time.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(2..=512))]
    tokens: u32,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=2048))]
    prompt: u16,
    /// Stages of the chain.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(2..=18))]
    stages: u16,
    /// Also ask so many times at once for each stage, and compare the tokens of all answers together.
    #[arg(long, default_value_t = 0)]
    sessions: u16,
    /// How the weights are stored.
    #[arg(long, default_value_t = WeightFormat::Q4_0)]
    format: WeightFormat,
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
        println!("nothing was measured: `cargo bench --bench chain` does");
        return Ok(());
    }
    let folder = match &options.dir {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    };
    let folder = folder.context("no folder for the model")?;
    let shape = if options.small { small(options.format) } else { RandomModel::one_billion(options.format) };
    let model = folder.path().join("random.gguf");
    shape.write(&model).context("the model cannot be written")?;

    print_setting(&shape, &model)?;
    let units = shape.blocks + 2;
    let whole = Network::up(&folder.path().join("whole"), &model, 1, units)?;
    let chain = Network::up(&folder.path().join("chain"), &model, options.stages, units.div_ceil(options.stages))?;
    let (by_whole, by_chain) = measure(&options, &whole, &chain)?;
    print_figures(&options, &by_whole, &by_chain);
    if !options.small {
        print_aims(&options, &by_whole, &by_chain);
    }
    if options.sessions > 0 {
        compare_aggregates(&options, &model, &whole, &chain)?;
    }
    Ok(())
}

/// Asks both networks many times at once, in turn, and prints how many tokens a second all answers together had.
fn compare_aggregates(options: &Options, model: &Path, whole: &Network, chain: &Network) -> anyhow::Result<()> {
    let (mut by_whole, mut by_chain, mut gains) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..=options.pairs {
        let rates = (whole.aggregate(options)?, chain.aggregate(options)?);
        let [one, more] = [1, options.stages].map(|threads| engine_rate(model, threads, options.sessions));
        // The first pair warms up.
        if pair > 0 {
            by_whole.push(rates.0);
            by_chain.push(rates.1);
            gains.push(more? / one?);
        }
    }
    let ratios: Vec<f64> = by_chain.iter().zip(&by_whole).map(|(chain, whole)| chain / whole).collect();
    let parts: Vec<f64> = ratios.iter().zip(&gains).map(|(ratio, gain)| ratio / gain).collect();
    let part = median(parts.iter().copied());
    let aim = Aims::of(options).aggregate;
    println!();
    println!("tokens/s of all answers, {} at once for each stage", options.sessions);
    println!("  unsplit                          {}", spread(by_whole.into_iter(), 1));
    println!("  chain                            {}", spread(by_chain.into_iter(), 1));
    println!("  chain / unsplit                  {}", spread(ratios.into_iter(), 3));
    println!("  the engine alone, {} threads / 1  {}", options.stages, spread(gains.into_iter(), 3));
    println!("  chain / unsplit, part of that    {}", spread(parts.into_iter(), 3));
    println!("aim: at least {aim:.2} of what the engine gains: {part:.3}, {}", verdict(part >= aim));
    Ok(())
}

/// Tokens per second that the engine alone decodes in a batch, without any network.
fn engine_rate(model: &Path, threads: u16, batch: u16) -> anyhow::Result<f64> {
    let mut command = brigade();
    command.arg("bench").arg(model).args(["--prefill", "0", "--depth", "32", "--decode", "32", "--json"]);
    command.args(["--threads", &threads.to_string(), "--batch", &batch.to_string()]);
    let figures: EngineFigures = serde_json::from_slice(&run(command)?.stdout)?;
    Ok(figures.decode_per_second)
}

/// What `bench --json` prints, as far as it is looked at.
#[derive(Debug, Deserialize)]
struct EngineFigures {
    decode_per_second: f64,
}

/// Asks both networks in turn, after once without measuring.
fn measure(options: &Options, whole: &Network, chain: &Network) -> anyhow::Result<(Vec<Answer>, Vec<Answer>)> {
    let expected = whole.ask(options)?;
    ensure!(chain.ask(options)?.tokens == expected.tokens, "the chain's tokens differ from the unsplit model's");
    let (mut by_whole, mut by_chain) = (Vec::new(), Vec::new());
    for pair in 1..=options.pairs {
        for (network, answers) in [(whole, &mut by_whole), (chain, &mut by_chain)] {
            let answer = network.ask(options)?;
            ensure!(answer.tokens == expected.tokens, "the tokens differ from those of the first answer");
            answers.push(answer);
        }
        eprintln!("pair {pair} of {}", options.pairs);
    }
    Ok((by_whole, by_chain))
}

/// Nine units in a few megabytes.
fn small(format: WeightFormat) -> RandomModel {
    let sizes = RandomModel { blocks: 7, width: 256, heads: 8, kv_heads: 2, feed_forward: 768, ..RandomModel::tiny() };
    RandomModel { vocab: 1024, context: 1024, tied: true, format, ..sizes }
}

/// Peers of this machine, one of which only asks. They are stopped when this is dropped.
struct Network {
    folder: PathBuf,
    stages: u16,
}

impl Network {
    /// Starts `stages` serving peers of at most `units` units each, and waits until they hold the whole model.
    fn up(folder: &Path, model: &Path, stages: u16, units: u16) -> anyhow::Result<Self> {
        let network = Self { folder: folder.to_owned(), stages };
        eprintln!("if this is interrupted: {BRIGADE} testnet down --dir {}", folder.display());
        let mut command = brigade();
        command.args(["testnet", "up", "--threads", "1", "--wait", "900"]);
        command.args(["--peers", &(stages + 1).to_string(), "--units-per-peer", &units.to_string()]);
        command.arg("--model").arg(model).arg("--dir").arg(folder);
        run(command)?;
        Ok(network)
    }

    /// Tokens per second of many answers at once, from the first one's start to the last one's end.
    fn aggregate(&self, options: &Options) -> anyhow::Result<f64> {
        let count = usize::from(self.stages * options.sessions);
        let began = Instant::now();
        let answers: Vec<anyhow::Result<Answer>> = std::thread::scope(|scope| {
            let asking: Vec<_> = (0..count).map(|_| scope.spawn(|| self.ask(options))).collect();
            asking.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("asking panicked")))).collect()
        });
        let took = began.elapsed().as_secs_f64();
        answers.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        Ok(f64::from(options.tokens) * count as f64 / took)
    }

    /// Asks through the peer that serves nothing.
    fn ask(&self, options: &Options) -> anyhow::Result<Answer> {
        let mut command = brigade();
        command.arg("--data-dir").arg(self.folder.join("peer-0"));
        command.args(["ask", "--raw", "--json", "--temperature", "0", "--max-tokens", &options.tokens.to_string()]);
        // One token a byte in the vocabulary of random models.
        command.arg("a".repeat(options.prompt.into()));
        let answer: Answer =
            serde_json::from_slice(&run(command)?.stdout).context("the answer is not as documented")?;
        ensure!(answer.usage.completion_tokens == options.tokens, "the answer ended early: {}", answer.finish_reason);
        ensure!(answer.chain.len() == usize::from(self.stages), "{} stages answered", answer.chain.len());
        Ok(answer)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if !self.folder.exists() {
            return;
        }
        let mut command = brigade();
        command.args(["testnet", "down", "--dir"]).arg(&self.folder);
        if let Err(error) = run(command) {
            eprintln!("{error:#}");
        }
    }
}

/// The binary without the settings of this machine's own peer.
fn brigade() -> Command {
    let mut command = Command::new(BRIGADE);
    command.stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("BRIGADE_") {
            command.env_remove(name);
        }
    }
    command
}

fn run(mut command: Command) -> anyhow::Result<Output> {
    let output = command.output().context("brigade cannot be started")?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(output)
}

/// What `ask --json` prints, as far as it is looked at.
#[derive(Debug, Deserialize)]
struct Answer {
    tokens: Vec<u32>,
    finish_reason: String,
    usage: Usage,
    chain: Vec<Stage>,
    timings: Timings,
}

#[derive(Debug, Deserialize)]
struct Usage {
    completion_tokens: u32,
}

#[derive(Debug, Deserialize)]
struct Stage {
    busy_micros: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Timings {
    lease_micros: u64,
    first_token_micros: u64,
    decode_micros: u64,
}

impl Answer {
    fn decode_per_second(&self) -> f64 {
        f64::from(self.usage.completion_tokens - 1) / (self.timings.decode_micros.max(1) as f64 / 1e6)
    }

    fn first_token(&self) -> f64 {
        millis(self.timings.first_token_micros)
    }

    fn lease(&self) -> f64 {
        millis(self.timings.lease_micros)
    }

    /// From the submission to the last token.
    fn total(&self) -> f64 {
        millis(self.timings.first_token_micros + self.timings.decode_micros)
    }

    /// In all stages' engines together, if all reported.
    fn engines(&self) -> f64 {
        let busy: Option<u64> = self.chain.iter().map(|stage| stage.busy_micros).sum();
        busy.map_or(f64::NAN, millis)
    }
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1e3
}

fn print_setting(shape: &RandomModel, model: &Path) -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let build = if cfg!(debug_assertions) { ", DEBUG BUILD" } else { "" };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let RandomModel { blocks, width, feed_forward, vocab, format, .. } = shape;
    println!("command  cargo bench --bench chain -- {}", arguments.join(" "));
    println!("machine  {}, {cores} threads, {}{build}", processor(), std::env::consts::OS);
    println!(
        "model    random weights, {blocks} blocks, width {width}, feed-forward {feed_forward}, vocabulary {vocab}, \
         {format}, {} MB",
        std::fs::metadata(model)?.len() / 1_000_000
    );
    println!("peers    one engine thread each\n");
    Ok(())
}

/// What is read off an answer.
type Figure = fn(&Answer) -> f64;

fn print_figures(options: &Options, whole: &[Answer], chain: &[Answer]) {
    let title = format!("chain of {}", options.stages);
    println!("{:<26}{:>28}{title:>28}{:>26}", "median (least … most)", "unsplit", "chain / unsplit by pair");
    let rows: [(&str, Figure); 5] = [
        ("decode, tokens/s", Answer::decode_per_second),
        ("first token, ms", Answer::first_token),
        ("of which leasing, ms", Answer::lease),
        ("whole answer, ms", Answer::total),
        ("of which in engines, ms", Answer::engines),
    ];
    for (name, figure) in rows {
        let [whole_shown, chain_shown] = [whole, chain].map(|answers| spread(answers.iter().map(figure), 1));
        let ratio = spread(ratios(whole, chain, figure), 3);
        println!("{name:<26}{whole_shown:>28}{chain_shown:>28}{ratio:>26}");
    }
}

fn print_aims(options: &Options, whole: &[Answer], chain: &[Answer]) {
    let aims = Aims::of(options);
    let decode = median(ratios(whole, chain, Answer::decode_per_second));
    let prefill = median(ratios(whole, chain, |answer| 1.0 / answer.first_token()));
    println!();
    println!("aim: at least {:.2} × the decoding: {decode:.3}, {}", aims.decode, verdict(decode >= aims.decode));
    println!(
        "aim: first token at least {:.1} × as fast: {prefill:.3}, {}",
        aims.prefill,
        verdict(prefill >= aims.prefill)
    );
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "missed" }
}

/// The chain's figure relative to the unsplit model's, for each pair.
fn ratios(whole: &[Answer], chain: &[Answer], figure: Figure) -> impl Iterator<Item = f64> {
    chain.iter().zip(whole).map(move |(chain, whole)| figure(chain) / figure(whole))
}
