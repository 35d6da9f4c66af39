//! How a command reaches the mesh: through the peer that runs on the data directory, or as a passing peer of its own.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use clap::Args;

use crate::cli::client;
use crate::cli::client::Client;
use crate::cli::house::House;
use crate::cli::import;
use crate::cli::output::Waiting;
use crate::cli::up::LOOK_AGAIN;
use crate::config::datadir::DataDir;
use crate::config::settings::Settings;
use crate::config::settings::TrustSetting;
use crate::daemon::views::ModelView;
use crate::daemon::views::StatusView;

/// How a passing peer finds the mesh; a peer that runs already has its own settings.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Where no peer runs here")]
pub(crate) struct ReachArgs {
    /// Name of the network to ask.
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// Invite to the network to ask.
    #[arg(long, value_name = "TOKEN")]
    invite: Option<String>,
    /// Address of a peer of that network. May be given several times.
    #[arg(long, value_name = "ADDR")]
    join: Vec<String>,
    /// Seconds to wait until peers are found that serve the whole model.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    wait: u64,
}

/// A way to the mesh.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) client: Client,
    passing: Option<Passing>,
    wait: Duration,
}

/// A peer for the time of one command.
#[derive(Debug)]
struct Passing {
    house: House,
    /// Where it keeps its things if the data directory was in use.
    _folder: Option<tempfile::TempDir>,
}

impl Access {
    /// The peer that runs on `root`, or a passing one. `model` is what is going to be asked.
    pub(crate) async fn open(
        root: &Path,
        reach: &ReachArgs,
        model: Option<&str>,
        trust: Option<TrustSetting>,
    ) -> anyhow::Result<Self> {
        let wait = Duration::from_secs(reach.wait);
        if let Some(found) = client::find(root).await? {
            return Ok(Self { client: found, passing: None, wait });
        }
        let settings = Settings {
            network: reach.network.clone(),
            invite: reach.invite.clone(),
            join: reach.join.clone(),
            model: model.filter(|model| is_file(model)).map(str::to_owned).into_iter().collect(),
            port: Some(0),
            api: Some("127.0.0.1:0".to_owned()),
            trust,
            ..Settings::default()
        };
        let folder = if DataDir::holder(root).is_some() { Some(tempfile::tempdir()?) } else { None };
        let house = House::start(folder.as_ref().map_or(root, tempfile::TempDir::path), settings).await?;
        Ok(Self { client: house.client(), passing: Some(Passing { house, _folder: folder }), wait })
    }

    /// The name to ask `model` by, once the mesh serves all of it. A running peer is asked at once: it says itself what
    /// is missing.
    pub(crate) async fn ready(&self, model: Option<&str>) -> anyhow::Result<Option<String>> {
        let name = match model.filter(|model| is_file(model)) {
            Some(file) => Some(import::through(&self.client, Path::new(file)).await?.id),
            None => model.map(str::to_owned),
        };
        if self.passing.is_some() {
            self.wait_for_cover(name.as_deref()).await?;
        }
        Ok(name)
    }

    /// Ends the passing peer, if there is one.
    pub(crate) async fn close(self) {
        if let Some(passing) = self.passing {
            passing.house.close().await;
        }
    }

    async fn wait_for_cover(&self, model: Option<&str>) -> anyhow::Result<()> {
        let mut waiting = Waiting::new();
        let found = tokio::time::timeout(self.wait, async {
            loop {
                let models: Vec<ModelView> = self.client.get("models").await?;
                if models.iter().any(|known| known.covered && is_meant(known, model)) {
                    return anyhow::Ok(());
                }
                waiting.say(self.what_is_missing(&models, model).await?);
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        });
        match found.await {
            Ok(found) => found,
            Err(_) => {
                let models: Vec<ModelView> = self.client.get("models").await?;
                let missing = self.what_is_missing(&models, model).await?;
                bail!(
                    "gave up after {} s: {missing}.\nStart a peer that serves it (`brigade up --model FILE.gguf`), give \
                     --join or --invite to reach a mesh that does, or try `brigade demo`",
                    self.wait.as_secs()
                )
            }
        }
    }

    async fn what_is_missing(&self, models: &[ModelView], model: Option<&str>) -> anyhow::Result<String> {
        let status: StatusView = self.client.get("status").await?;
        let peers = match status.connected {
            1 => "1 peer".to_owned(),
            count => format!("{count} peers"),
        };
        let network = format!("network {} ({peers} connected)", status.network);
        Ok(match models.iter().find(|known| is_meant(known, model)) {
            Some(known) => {
                format!("units {} of {} are served by nobody in {network}", known.missing.join(", "), known.title)
            }
            None => match model {
                Some(name) => format!("nobody in {network} serves a model \"{name}\""),
                None => format!("nobody in {network} serves a model"),
            },
        })
    }
}

/// Whether `model` names the model, or no name was given.
pub(crate) fn is_meant(known: &ModelView, model: Option<&str>) -> bool {
    model.is_none_or(|name| {
        known.id == name || known.alias.as_deref() == Some(name) || (name.len() >= 8 && known.id.starts_with(name))
    })
}

/// Whether a model is given by its file.
pub(crate) fn is_file(model: &str) -> bool {
    model.to_ascii_lowercase().ends_with(".gguf")
}
