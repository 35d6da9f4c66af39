//! The command line.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::Subcommand;

use crate::cli::ask::AskArgs;
use crate::cli::ask::GenerateArgs;
use crate::cli::bench::BenchArgs;
use crate::cli::demo::DemoArgs;
use crate::cli::listings::Form;
use crate::cli::models::ModelsArgs;
use crate::cli::network::NetworkCommand;
use crate::cli::plan::PlanArgs;
use crate::cli::testnet::TestnetCommand;
use crate::cli::up::UpArgs;
use crate::config::datadir;
use crate::telemetry;
use crate::telemetry::LogFormat;

mod access;
mod ask;
mod bench;
mod client;
mod demo;
mod house;
mod import;
mod listings;
mod models;
mod network;
mod output;
mod plan;
mod privacy;
mod swarm;
mod testnet;
mod up;

/// What the shell is told when Ctrl-C ended a command: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

/// A bucket brigade for large language models: every machine that joins holds some of a model's layers and passes the
/// work along. Nobody is in charge.
///
/// `brigade demo` shows it on this machine. `brigade up --model FILE.gguf` serves a model on this LAN, `brigade ask
/// "…"` asks the mesh.
#[derive(Debug, Parser)]
#[command(name = "brigade", version, propagate_version = true)]
struct Cli {
    /// Where a peer keeps its identity, settings, models and log. It also selects the running peer that commands talk
    /// to.
    #[arg(long, global = true, value_name = "DIR", env = datadir::VARIABLE)]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a peer: join a network, serve models, answer the API.
    ///
    /// Flags win over the environment (BRIGADE_PORT and so on), that over config.toml in the data directory, which has
    /// the same names.
    Up(Box<UpArgs>),
    /// Stop the peer that runs on the data directory.
    Down,
    /// Ask one question, through the running peer or, if none runs, as a passing peer of its own.
    Ask(Box<AskArgs>),
    /// Talk to and fro.
    Chat(Box<GenerateArgs>),
    /// See it work: four peers on this machine, a small model split over three of them, a prompt from the fourth.
    Demo(DemoArgs),
    /// Add a GGUF file or a folder of safetensors to the models that this peer can serve.
    Import {
        /// The file, the first of several parts of one, or the folder.
        file: PathBuf,
        /// Print a JSON object: id, title, architecture, units, bytes, memory_bytes, quantisation.
        #[arg(long)]
        json: bool,
    },
    /// List the models known here, and whether the mesh serves all of each; remove or verify one.
    Models(ModelsArgs),
    /// Say, before anything is downloaded, whether the mesh, or machines described in a file, can run a model: at what quantisation, who would
    /// hold what, how fast it would be, and what is missing.
    Plan(PlanArgs),
    /// List the peers known: who holds what, how fast, how far; and which units of which model are missing.
    Peers {
        /// Print a JSON object: peers (peer, this, connected, round_trip_micros, round_trips (neighbour, micros), cores, memory_bytes,
        /// memory_free_bytes, cpu_features, arithmetic, holdings (model, source, quantisation, units, state, micros_per_unit), sessions, draining) and models (model, title,
        /// units, covered, missing).
        #[arg(long)]
        json: bool,
    },
    /// Show what is owed between this peer and others.
    Credits {
        /// Print a JSON object: earned_mflop, owed_mflop, balances (peer, earned_mflop, owed_mflop), entries
        /// (requester, sequence, session, model, positions, total_mflop, lines (peer, units, mflop)), forks.
        #[arg(long)]
        json: bool,
    },
    /// List the lies that were found in this peer's own answers with `--redundancy`.
    Lies {
        /// Print a JSON list of objects: found (seconds since 1970), suspects (peer and units of each), certainty (proven,
        /// one_of_them or undecided), position, commitments (what was signed, in hexadecimal).
        #[arg(long)]
        json: bool,
    },
    /// Show how the running peer is, and who can reach it.
    Status {
        /// Print a JSON object: peer, network, private, version, uptime_seconds, listening, announced, reachability,
        /// connected, memory_bytes, memory_free_bytes, threads, holdings, fetching (model, units, had_bytes, wanted_bytes), sessions,
        /// requests, notices.
        #[arg(long)]
        json: bool,
    },
    /// Make a private network, or invite others to it.
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Run a private network of several peers on this machine, to try things on.
    #[command(subcommand)]
    Testnet(TestnetCommand),
    /// Measure how many tokens per second this machine reads and writes with a model.
    Bench(BenchArgs),
}

/// The user ended the command.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted;

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if !matches!(cli.command, Command::Up(_)) {
        telemetry::init("off", LogFormat::Text);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.map_err(Into::into).and_then(|runtime| {
        let outcome = runtime.block_on(run(cli));
        // A thread that waits for input would hold the process.
        runtime.shutdown_background();
        outcome
    });
    outcome.map_or_else(|error| report(&error), |()| ExitCode::SUCCESS)
}

fn report(error: &anyhow::Error) -> ExitCode {
    if error.is::<Interrupted>() {
        return ExitCode::from(INTERRUPTED);
    }
    // Whoever reads the output has enough, as `head` does.
    if error.downcast_ref::<io::Error>().is_some_and(|fault| fault.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    output::note(format!("error: {}", in_words(error)));
    ExitCode::FAILURE
}

/// An error and its causes, leaving out those whose words an error above repeats.
fn in_words(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if words.is_empty() {
            words = cause;
        } else if !words.contains(cause.trim_end()) {
            words = format!("{words}: {cause}");
        }
    }
    words
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    let root = datadir::locate(cli.data_dir.as_deref())?;
    let form = |json| if json { Form::Json } else { Form::Text };
    match cli.command {
        Command::Up(args) => up::up(&root, *args).await,
        Command::Down => up::down(&root).await,
        Command::Ask(args) => ask::ask(&root, *args).await,
        Command::Chat(args) => ask::chat(&root, *args).await,
        Command::Demo(args) => demo::demo(args).await,
        Command::Import { file, json } => import::import(&root, &file, form(json)).await,
        Command::Models(args) => models::models(&root, args).await,
        Command::Plan(args) => plan::plan(&root, args).await,
        Command::Peers { json } => listings::peers(&root, form(json)).await,
        Command::Credits { json } => listings::credits(&root, form(json)).await,
        Command::Lies { json } => listings::lies(&root, form(json)).await,
        Command::Status { json } => listings::status(&root, form(json)).await,
        Command::Network(command) => network::network(&root, command).await,
        Command::Testnet(command) => testnet::testnet(&root, command).await,
        Command::Bench(args) => bench::bench(&args),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_of_every_command_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_data_directory_is_taken_before_and_after_the_command() {
        for words in [["brigade", "--data-dir", "d", "status"], ["brigade", "status", "--data-dir", "d"]] {
            assert_eq!(Cli::parse_from(words).data_dir, Some(PathBuf::from("d")));
        }
    }

    #[test]
    fn causes_are_told_unless_the_error_tells_them_already() {
        let source = || io::Error::other("the disk is full");
        let told = Err::<(), _>(source()).with_context(|| format!("a cannot be written: {}", source())).unwrap_err();
        let untold = Err::<(), _>(source()).context("a cannot be written").unwrap_err();

        assert_eq!(in_words(&told), "a cannot be written: the disk is full");
        assert_eq!(in_words(&untold), "a cannot be written: the disk is full");
    }
}
