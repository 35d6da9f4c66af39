//! `brigade up` and `brigade down`.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use serde_json::Value;
use serde_json::json;
use tokio::sync::oneshot;

use crate::cli::client;
use crate::cli::house::House;
use crate::cli::output;
use crate::cli::privacy;
use crate::config::Serve;
use crate::config::address;
use crate::config::datadir::DataDir;
use crate::config::datadir::RunFile;
use crate::config::settings::Settings;
use crate::os;
use crate::os::Ending;
use crate::telemetry;
use crate::telemetry::LogFormat;

/// How long a peer gets to stop.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How often to look whether something has happened that nothing tells of.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What `brigade up` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) settings: Settings,
    /// How log lines are written. BRIGADE_LOG says what is logged, such as brigade=debug.
    #[arg(long, value_enum, default_value = "text", value_name = "text|json", hide_possible_values = true)]
    log_format: LogFormat,
    /// Stop when the standard input ends.
    #[arg(long, hide = true)]
    exit_with_parent: bool,
}

/// Runs a peer until it is asked to stop.
pub(crate) async fn up(root: &Path, args: UpArgs) -> anyhow::Result<()> {
    telemetry::init("brigade=info", args.log_format);
    let parent = if args.exit_with_parent { Some(end_of_input()) } else { None };
    let mut house = House::start(root, args.settings).await?;
    house.run.write(root)?;
    banner(root, &house)?;
    privacy::say_once(root);
    tokio::select! {
        asked = os::shutdown_requested() => asked?,
        () = house.stop.cancelled() => {}
        () = ended(parent) => {}
        () = house.running.stopped() => {
            RunFile::remove(root)?;
            bail!("the peer stopped by itself; its log says why");
        }
    }
    output::note("stopping");
    RunFile::remove(root)?;
    tokio::select! {
        () = house.close() => Ok(()),
        // Asking twice is asking firmly.
        again = os::shutdown_requested() => Ok(again?),
        () = tokio::time::sleep(STOP_TIMEOUT) => bail!("the peer took longer than {} s to stop", STOP_TIMEOUT.as_secs()),
    }
}

fn banner(root: &Path, house: &House) -> std::io::Result<()> {
    let config = &house.config;
    let kind = if config.network.secret.is_some() { "private" } else { "open" };
    output::line(format!("peer     {}", house.run.peer))?;
    output::line(format!("network  {} ({kind})", config.network.name))?;
    for address in address::worth_telling(&house.run.p2p) {
        output::line(format!("p2p      {address}"))?;
    }
    output::line(format!("api      http://{}/v1", house.run.api))?;
    output::line(format!("data     {}", root.display()))?;
    output::line(format!("serves   {}", serves(&config.serve)))?;
    output::line("")?;
    output::line("Ask it with `brigade ask \"…\"`. Others join with the invite that `brigade network invite` prints.")
}

fn serves(serve: &Serve) -> String {
    match serve {
        Serve::Nothing => "nothing: it only asks".to_owned(),
        Serve::Catalogue(_) => {
            "every imported model, as memory allows (`brigade import FILE.gguf` adds one)".to_owned()
        }
        Serve::Models(models, _) => match models.len() {
            1 => "one model, as the mesh needs it and memory allows".to_owned(),
            count => format!("{count} models, as the mesh needs them and memory allows"),
        },
    }
}

/// Told when the standard input ends, as it does when the parent that holds its other end is gone.
fn end_of_input() -> oneshot::Receiver<()> {
    let (ended, told) = oneshot::channel();
    std::thread::spawn(move || {
        let mut sink = [0; 64];
        while matches!(std::io::stdin().read(&mut sink), Ok(1..)) {}
        // Nobody waits any more if the peer has stopped for another reason.
        let _ = ended.send(());
    });
    told
}

async fn ended(parent: Option<oneshot::Receiver<()>>) {
    match parent {
        Some(told) => {
            let _ = told.await;
        }
        None => std::future::pending().await,
    }
}

/// Stops the peer that runs on the data directory.
pub(crate) async fn down(root: &Path) -> anyhow::Result<()> {
    if stop_peer(root).await? {
        output::line("stopped")?;
        return Ok(());
    }
    bail!("no peer runs on {}", root.display())
}

/// Stops the peer on `root`, asking first; says whether there was one.
pub(crate) async fn stop_peer(root: &Path) -> anyhow::Result<bool> {
    // A peer that cannot be asked can still be ended by its process.
    let found = client::find(root).await.unwrap_or_default();
    if found.is_none() && DataDir::holder(root).is_none() {
        RunFile::remove(root)?;
        return Ok(false);
    }
    if let Some(found) = found
        && found.post::<Value>("stop", &json!({})).await.is_ok()
        && is_free_within(root, STOP_TIMEOUT).await
    {
        return Ok(true);
    }
    for how in [Ending::Asked, Ending::Killed] {
        // The process that holds the lock is the peer, whatever else may have had its number before.
        let Some(holder) = DataDir::holder(root) else { break };
        let Some(pid) = holder else { bail!("the process that uses {} cannot be told", root.display()) };
        os::end_process(pid, how)?;
        if is_free_within(root, STOP_TIMEOUT).await {
            break;
        }
    }
    RunFile::remove(root)?;
    Ok(true)
}

/// Whether no peer uses `root` any more within `time`.
pub(crate) async fn is_free_within(root: &Path, time: Duration) -> bool {
    let free = async {
        while DataDir::holder(root).is_some() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    tokio::time::timeout(time, free).await.is_ok()
}
