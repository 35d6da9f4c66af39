//! Several peers as processes of this machine, in a private network of their own.

use std::collections::VecDeque;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use tokio::process::Child;
use tokio::process::Command;

use crate::cli::client::Client;
use crate::cli::house;
use crate::cli::output;
use crate::cli::output::Waiting;
use crate::cli::up;
use crate::cli::up::LOOK_AGAIN;
use crate::cli::up::STOP_TIMEOUT;
use crate::config::datadir::DataDir;
use crate::config::datadir::RunFile;
use crate::config::networks;
use crate::daemon::views::ModelView;
use crate::daemon::views::PeersView;
use crate::daemon::views::StatusView;
use crate::demo;
use crate::keys::NetworkSecret;
use crate::keys::invite::Invite;
use crate::os;
use crate::units::UnitRange;
use crate::weights::gguf::GgufFile;
use crate::weights::llama;

/// The name of the network; its key is drawn anew each time.
const NETWORK: &str = "testnet";

/// How long a peer gets to listen.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Lines of a peer's log that are shown when it fails.
const LOG_LINES: usize = 12;

/// Which peers to start. Peer 0 serves nothing.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Each peer's data and log are in `peer-N` of it.
    pub(crate) folder: PathBuf,
    /// How many, at least 2.
    pub(crate) peers: usize,
    /// The most units that one holds.
    pub(crate) units_per_peer: Option<u16>,
    /// The units of each serving peer in turn; those beyond agree among themselves.
    pub(crate) pinned: Vec<UnitRange>,
    /// A file, or the name of the model that the program carries.
    pub(crate) model: String,
    /// Engine threads of each.
    pub(crate) threads: usize,
    /// How long they live.
    pub(crate) life: Life,
}

/// How long the peers live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Until they are stopped.
    OnTheirOwn,
    /// No longer than this process, however it ends.
    WithParent,
}

/// Peers that run. Those that live with their parent are killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Swarm {
    plan: Plan,
    members: Vec<Member>,
}

/// One peer.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) root: PathBuf,
    child: Child,
    pub(crate) run: RunFile,
}

impl Member {
    fn client(&self) -> Client {
        Client::new(&self.run.api, &self.run.token)
    }
}

impl Plan {
    /// # Errors
    /// If the model cannot be read, or the peers cannot hold all of it.
    fn check(&self) -> anyhow::Result<()> {
        let serving = self.peers.saturating_sub(1);
        if serving == 0 {
            bail!("at least 2 peers are needed: peer 0 serves nothing");
        }
        let units = units(&self.model)?;
        match self.units_per_peer {
            Some(each) if serving * usize::from(each) < usize::from(units) => {
                bail!("{serving} serving peers of {each} units each cannot hold the model's {units} units")
            }
            _ => Ok(()),
        }
    }
}

/// How many units the model has that is given by its file, or by the name of the one that the program carries.
pub(crate) fn units(model: &str) -> anyhow::Result<u16> {
    let file = if model == demo::NAME { GgufFile::from_static(demo::MODEL) } else { GgufFile::open(Path::new(model)) };
    let shape = file.map_err(anyhow::Error::from).and_then(|file| Ok(llama::shape(&file)?));
    Ok(shape.with_context(|| model.to_owned())?.units())
}

/// A peer's data directory inside `folder`.
pub(crate) fn root(folder: &Path, peer: usize) -> PathBuf {
    folder.join(format!("peer-{peer}"))
}

impl Swarm {
    /// Starts the peers. Where one fails, those that run already are stopped.
    pub(crate) async fn start(plan: Plan) -> anyhow::Result<Self> {
        plan.check()?;
        for peer in 0..plan.peers {
            if DataDir::holder(&root(&plan.folder, peer)).is_some() {
                let folder = plan.folder.display();
                bail!("peers run in {folder} already: `brigade testnet down --dir {folder}` stops them");
            }
        }
        let mut swarm = Self { plan, members: Vec::new() };
        match swarm.start_all().await {
            Ok(()) => Ok(swarm),
            Err(error) => {
                swarm.stop().await;
                Err(error)
            }
        }
    }

    async fn start_all(&mut self) -> anyhow::Result<()> {
        let secret = NetworkSecret::new(house::random()?);
        let invite = Invite::new(NETWORK.to_owned(), Some(secret), Vec::new())?;
        // The first one alone, so that the others can be told where it is.
        let first = self.spawn(0, &invite, &[])?;
        let first = self.listening(0, first).await?;
        let join = first.run.p2p.clone();
        self.members.push(first);
        let mut starting = VecDeque::new();
        for peer in 1..self.plan.peers {
            starting.push_back((peer, self.spawn(peer, &invite, &join)?));
        }
        while let Some((peer, child)) = starting.pop_front() {
            match self.listening(peer, child).await {
                Ok(member) => self.members.push(member),
                Err(error) => {
                    for (peer, child) in starting {
                        end(&root(&self.plan.folder, peer), child).await;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn spawn(&self, peer: usize, invite: &Invite, join: &[String]) -> anyhow::Result<Child> {
        let root = root(&self.plan.folder, peer);
        std::fs::create_dir_all(&root).with_context(|| format!("{} cannot be made", root.display()))?;
        networks::keep(&root, invite)?;
        RunFile::remove(&root)?;
        let settings = self.settings(peer, join);
        std::fs::write(root.join("config.toml"), toml::to_string(&settings)?)
            .with_context(|| format!("{} cannot be written", root.join("config.toml").display()))?;
        let log = File::create(log_file(&root)).context("the peer's log cannot be written")?;
        let mut command = Command::new(std::env::current_exe().context("this program cannot be found")?);
        command.arg("--data-dir").arg(&root).arg("up").stdout(log.try_clone()?).stderr(log);
        for (name, _) in std::env::vars_os() {
            // What is set for this machine's own peer is not meant for these.
            if name.to_string_lossy().starts_with("BRIGADE_") && name != crate::telemetry::VARIABLE {
                command.env_remove(name);
            }
        }
        match self.plan.life {
            Life::OnTheirOwn => {
                os::in_own_group(command.as_std_mut());
                command.stdin(Stdio::null());
            }
            Life::WithParent => {
                command.arg("--exit-with-parent").stdin(Stdio::piped()).kill_on_drop(true);
            }
        }
        command.spawn().context("a peer cannot be started")
    }

    fn settings(&self, peer: usize, join: &[String]) -> toml::Table {
        let plan = &self.plan;
        let serving = plan.peers - 1;
        let mut settings = toml::Table::from_iter([
            ("network".to_owned(), NETWORK.into()),
            ("listen".to_owned(), vec!["/ip4/127.0.0.1/tcp/0"].into()),
            ("api".to_owned(), "127.0.0.1:0".into()),
            ("mdns".to_owned(), "off".into()),
            ("join".to_owned(), join.to_vec().into()),
            ("threads".to_owned(), i64::try_from(plan.threads).unwrap_or(1).into()),
        ]);
        // Together they offer what one peer of this machine would.
        if let Some(memory) = os::memory() {
            settings.insert("memory".to_owned(), (memory.total.0 / 2 / serving as u64).to_string().into());
        }
        if peer == 0 {
            settings.insert("no-serve".to_owned(), true.into());
        } else {
            settings.insert("model".to_owned(), vec![plan.model.clone()].into());
            if let Some(range) = plan.pinned.get(peer - 1) {
                settings.insert("units".to_owned(), range.to_string().into());
            } else if let Some(units) = plan.units_per_peer {
                settings.insert("units-per-peer".to_owned(), i64::from(units).into());
            }
        }
        settings
    }

    /// Waits until the peer has said where it listens.
    async fn listening(&self, peer: usize, mut child: Child) -> anyhow::Result<Member> {
        let root = root(&self.plan.folder, peer);
        let said = tokio::time::timeout(START_TIMEOUT, async {
            loop {
                if let Some(run) = RunFile::read(&root)?.filter(|run| Some(run.pid) == child.id()) {
                    return Ok(run);
                }
                if child.try_wait()?.is_some() {
                    bail!("peer {peer} stopped:\n{}", log_end(&root));
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        });
        let waited = START_TIMEOUT.as_secs();
        match said.await.unwrap_or_else(|_| bail!("peer {peer} did not start within {waited} s:\n{}", log_end(&root))) {
            Ok(run) => Ok(Member { root, child, run }),
            Err(error) => {
                end(&root, child).await;
                Err(error)
            }
        }
    }

    /// Waits until peer 0 knows that the model is served completely.
    pub(crate) async fn covered(&mut self, patience: Duration) -> anyhow::Result<ModelView> {
        let mut waiting = Waiting::new();
        let mut missing = "no peer has chosen its units yet".to_owned();
        let covered = tokio::time::timeout(patience, async {
            loop {
                self.check_alive()?;
                if let Some(id) = self.served_model().await? {
                    let models: Vec<ModelView> = self.client().get("models").await?;
                    match models.into_iter().find(|model| model.id == id) {
                        Some(model) if model.covered => return Ok(model),
                        Some(model) => missing = format!("units {} are not served yet", model.missing.join(", ")),
                        None => missing = "peer 0 has not heard of the model yet".to_owned(),
                    }
                }
                waiting.say(format!("the peers agree on who holds what: {missing}"));
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        });
        match covered.await {
            Ok(covered) => covered,
            Err(_) => bail!("the model was not covered within {} s: {missing}", patience.as_secs()),
        }
    }

    /// Waits until peer 0 knows that every unit of the model is held by two peers, so that any one can be spared.
    pub(crate) async fn covered_twice(&self, model: &ModelView, patience: Duration) -> anyhow::Result<()> {
        let waiting = Waiting::saying("the peers agree on who holds what a second time");
        let twice = async {
            loop {
                let peers: PeersView = self.client().get("peers").await?;
                let ready = peers.peers.iter().flat_map(|peer| &peer.holdings).filter(|held| held.state == "ready");
                let ranges: Vec<UnitRange> = ready.filter_map(|held| held.units.parse().ok()).collect();
                let copies = |unit: u16| ranges.iter().filter(|range| range.contains(unit)).count();
                if (0..model.units).all(|unit| copies(unit) >= 2) {
                    return Ok(());
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        let covered = tokio::time::timeout(patience, twice).await;
        drop(waiting);
        covered.unwrap_or_else(|_| bail!("not every unit was held twice within {} s", patience.as_secs()))
    }

    /// The id of the model that was given, as soon as a peer holds units of it.
    async fn served_model(&self) -> anyhow::Result<Option<String>> {
        for member in self.members.iter().skip(1) {
            let status: StatusView = member.client().get("status").await?;
            if let Some(holding) = status.holdings.first() {
                return Ok(Some(holding.model.clone()));
            }
        }
        Ok(None)
    }

    fn check_alive(&mut self) -> anyhow::Result<()> {
        for (peer, member) in self.members.iter_mut().enumerate() {
            if member.child.try_wait()?.is_some() {
                bail!("peer {peer} stopped:\n{}", log_end(&member.root));
            }
        }
        Ok(())
    }

    /// Peer 0, which only asks.
    pub(crate) fn client(&self) -> Client {
        self.members[0].client()
    }

    /// Every peer, in order.
    pub(crate) fn members(&self) -> &[Member] {
        &self.members
    }

    /// Stops every peer, by force if need be.
    pub(crate) async fn stop(self) {
        futures::future::join_all(self.members.into_iter().map(|member| async move {
            end(&member.root, member.child).await;
        }))
        .await;
    }
}

/// Stops a peer that this process started.
async fn end(root: &Path, mut child: Child) {
    drop(child.stdin.take());
    let asked = async {
        // It may not have come so far that it can be asked, or be gone.
        let _ = up::stop_peer(root).await;
        child.wait().await
    };
    if tokio::time::timeout(2 * STOP_TIMEOUT, asked).await.is_err() {
        // A process that cannot be killed is the system's matter.
        let _ = child.kill().await;
    }
}

/// Waits until no peer uses `folder` any more, so that it can be removed.
pub(crate) async fn gone(folder: &Path) {
    for peer in 0.. {
        let root = root(folder, peer);
        if !root.exists() || !up::is_free_within(&root, STOP_TIMEOUT).await {
            return;
        }
    }
}

fn log_file(root: &Path) -> PathBuf {
    root.join("peer.log")
}

/// The last lines of a peer's log.
fn log_end(root: &Path) -> String {
    let text = std::fs::read_to_string(log_file(root)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// A peer's key as it is shown.
pub(crate) fn label(members: &[Member], key: &str) -> String {
    match members.iter().position(|member| member.run.peer == key) {
        Some(peer) => format!("peer {peer}"),
        None => output::short(key),
    }
}
