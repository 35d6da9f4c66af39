//! `brigade testnet up` and `brigade testnet down`.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use clap::Subcommand;

use crate::cli::Interrupted;
use crate::cli::output;
use crate::cli::swarm;
use crate::cli::swarm::Life;
use crate::cli::swarm::Plan;
use crate::cli::swarm::Swarm;
use crate::cli::up;
use crate::demo;
use crate::os;

/// What can be done with a network on this machine.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum TestnetCommand {
    /// Start a private network of real processes on this machine, and leave them running.
    ///
    /// Peer 0 serves nothing; the others share the model among themselves. Each one's data and log are in DIR/peer-N,
    /// and `brigade --data-dir DIR/peer-N …` talks to it.
    Up {
        /// How many peers, peer 0 among them.
        #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(2..=256))]
        peers: u16,
        /// The most units that one peer holds. By default as many as memory allows.
        #[arg(long, value_name = "U", value_parser = clap::value_parser!(u16).range(1..))]
        units_per_peer: Option<u16>,
        /// A GGUF file. By default the small model that the program carries.
        #[arg(long, value_name = "FILE", default_value = demo::NAME)]
        model: String,
        /// Where the peers keep their data and logs. By default `testnet` in the data directory.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// Engine threads of each peer. By default the machine's, shared among them.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        threads: Option<u16>,
        /// Seconds to wait until the whole model is served.
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        wait: u64,
    },
    /// Stop the peers of a network that `testnet up` started. Their data stay.
    Down {
        /// Where the peers keep their data and logs. By default `testnet` in the data directory.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

pub(crate) async fn testnet(root: &Path, command: TestnetCommand) -> anyhow::Result<()> {
    let folder = |dir: Option<PathBuf>| std::path::absolute(dir.unwrap_or_else(|| root.join("testnet")));
    match command {
        TestnetCommand::Up { peers, units_per_peer, model, dir, threads, wait } => {
            let serving = usize::from(peers) - 1;
            let shared = std::thread::available_parallelism().map_or(1, usize::from) / serving;
            let plan = Plan {
                folder: folder(dir)?,
                peers: peers.into(),
                units_per_peer,
                pinned: Vec::new(),
                model: model_file(&model)?,
                threads: threads.map_or(shared.max(1), usize::from),
                life: Life::OnTheirOwn,
            };
            up(plan, Duration::from_secs(wait)).await
        }
        TestnetCommand::Down { dir } => down(&folder(dir)?).await,
    }
}

/// The peers have other working directories than this command may have.
fn model_file(model: &str) -> anyhow::Result<String> {
    if model == demo::NAME {
        return Ok(model.to_owned());
    }
    let file = std::fs::canonicalize(model).with_context(|| format!("{model} cannot be found"))?;
    file.into_os_string().into_string().map_err(|_| anyhow::anyhow!("the path of {model} is not UTF-8"))
}

async fn up(plan: Plan, patience: Duration) -> anyhow::Result<()> {
    let folder = plan.folder.clone();
    let mut swarm = tokio::select! {
        started = Swarm::start(plan) => started?,
        asked = os::shutdown_requested() => {
            asked?;
            down(&folder).await?;
            return Err(Interrupted.into());
        }
    };
    let covered = tokio::select! {
        covered = swarm.covered(patience) => covered,
        asked = os::shutdown_requested() => asked.map_err(Into::into).and(Err(Interrupted.into())),
    };
    let model = match covered {
        Ok(model) => model,
        Err(error) => {
            swarm.stop().await;
            return Err(error.context(format!("the peers were stopped; their logs are in {}", folder.display())));
        }
    };
    output::line(format!("{} peers serve {} ({} units)", swarm.members().len(), model.title, model.units))?;
    let rows: Vec<Vec<String>> = swarm.members().iter().enumerate().map(|(peer, member)| row(peer, member)).collect();
    output::line(output::table(&["peer", "key", "process", "api", "data and log"], &rows))?;
    let first = swarm::root(&folder, 0);
    output::line(format!("\nAsk:   brigade --data-dir {} ask \"…\"", first.display()))?;
    output::line(format!("Look:  brigade --data-dir {} peers", first.display()))?;
    output::line(format!("Stop:  brigade testnet down --dir {}", folder.display()))?;
    Ok(())
}

fn row(peer: usize, member: &swarm::Member) -> Vec<String> {
    let api = format!("http://{}/v1", member.run.api);
    vec![
        peer.to_string(),
        output::short(&member.run.peer),
        member.run.pid.to_string(),
        api,
        member.root.display().to_string(),
    ]
}

async fn down(folder: &Path) -> anyhow::Result<()> {
    let mut roots = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("peer-") && entry.path().join("lock").exists() {
            roots.push(entry.path());
        }
    }
    if roots.is_empty() {
        bail!("{} holds no peers", folder.display());
    }
    let stopped = futures::future::join_all(roots.iter().map(|root| up::stop_peer(root))).await;
    let mut count = 0;
    for was_running in stopped {
        count += usize::from(was_running?);
    }
    output::line(format!("stopped {count} of {} peers; their data stay in {}", roots.len(), folder.display()))?;
    Ok(())
}
