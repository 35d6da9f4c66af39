//! A peer inside this process: the daemon and its API, for `up` and for commands that find no running peer.

use std::path::Path;

use anyhow::Context;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::Server;
use crate::cli::client::Client;
use crate::config::Config;
use crate::config::Machine;
use crate::config::datadir::DataDir;
use crate::config::datadir::RunFile;
use crate::config::key::ApiKey;
use crate::config::load::load;
use crate::config::settings::Settings;
use crate::daemon;
use crate::daemon::Running;

/// A running peer with its API.
#[derive(Debug)]
pub(crate) struct House {
    pub(crate) running: Running,
    pub(crate) config: Config,
    /// How commands reach it.
    pub(crate) run: RunFile,
    /// Cancelled when the peer is asked to stop through its API.
    pub(crate) stop: CancellationToken,
    /// Ends the API.
    closed: CancellationToken,
    server: JoinHandle<()>,
}

impl House {
    /// Starts a peer on the data directory `root` as `flags` and its file say.
    pub(crate) async fn start(root: &Path, flags: Settings) -> anyhow::Result<Self> {
        let data = DataDir::open(root)?;
        let config = load(root, flags, Machine::this())?;
        let token = ApiKey::from_random(&random()?);
        // First, so that a port in use is known before anything is loaded.
        let server = Server::bind(&config.api, token.clone()).await?;
        let api = server.address();
        let running = daemon::start(&config, data).await?;
        let run = RunFile {
            pid: std::process::id(),
            api: api.to_string(),
            token: token.reveal().to_owned(),
            peer: running.key.to_string(),
            p2p: running.p2p_addresses.clone(),
        };
        let (stop, closed) = (CancellationToken::new(), CancellationToken::new());
        let server = tokio::spawn(server.serve(running.peer.clone(), stop.clone(), closed.clone()));
        Ok(Self { running, config, run, stop, closed, server })
    }

    /// Talks to it as any command does.
    pub(crate) fn client(&self) -> Client {
        Client::new(&self.run.api, &self.run.token)
    }

    /// Leaves the mesh, then ends the API: answers under way may end first, and new ones are refused in words.
    pub(crate) async fn close(self) {
        // A peer that has stopped by itself is stopped.
        let _ = self.running.peer.stop().await;
        self.closed.cancel();
        let _ = self.server.await;
    }
}

pub(crate) fn random() -> anyhow::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).context("the system gives no random bytes")?;
    Ok(bytes)
}
