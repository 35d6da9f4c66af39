//! The HTTP API of a peer: OpenAI's endpoints under `/v1`, the commands' own under `/brigade/v1`, `/health` and
//! `/metrics`.
//!
//! ```text
//!  connection ─▶ Gate (Host, Origin, key, content type) ─▶ slot (64 at once) ─▶ parse ─▶ Peer::generate
//!                                                                                           │
//!  closing the connection drops the answer, which cancels the session ◀── answer ◀── events ┘
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::gate::Gate;
use crate::api::routes::State;
use crate::config::Api;
use crate::config::key::ApiKey;
use crate::daemon::handle::Peer;

mod answer;
mod error;
mod fields;
mod gate;
pub mod internal;
mod logprobs;
mod request;
mod routes;

/// Requests answered at once; more are told to come back.
pub const MAX_REQUESTS: usize = 64;

/// The largest body of a request.
pub const MAX_BODY: usize = 4 << 20;

/// Connections at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 512;

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// How long what the peer said last gets to go out when the server stops; the peer has stopped before.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to wait after the system refused to accept a connection, such as for want of file handles.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The API cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("the api cannot listen on {address}: {source}{}", hint(source))]
pub struct BindError {
    /// Where it should.
    pub address: SocketAddr,
    /// Why not.
    #[source]
    pub source: io::Error,
}

fn hint(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::AddrInUse {
        " (another peer or program uses the port: choose another with --api, 0 is any)"
    } else {
        ""
    }
}

/// An API that listens, not yet serving.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    gate: Gate,
}

impl Server {
    /// Listens as `settings` say. `token` lets this machine's own commands in.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(settings: &Api, token: ApiKey) -> Result<Self, BindError> {
        let failed = |source| BindError { address: settings.address, source };
        let listener = TcpListener::bind(settings.address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, gate: Gate::new(address, settings, token) })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` is cancelled; then answers under way get a moment to end. `asked` is cancelled when a command asks the
    /// peer to stop, which goes on answering until it has.
    pub async fn serve(self, peer: Peer, asked: CancellationToken, stop: CancellationToken) {
        let state = Arc::new(State::new(peer, self.gate, asked));
        let service = routes::router(state);
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let tasks = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accept(&self.listener, &connections) => accepted,
            };
            let Some((socket, slot)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (service, stop) = (TowerToHyperService::new(service.clone()), stop.clone());
            tasks.spawn(async move {
                serve_connection(socket, service, stop).await;
                drop(slot);
            });
        }
        tasks.close();
        // Whoever has not finished by then is cut off, as the process is about to end.
        let _ = tokio::time::timeout(STOP_TIMEOUT, tasks.wait()).await;
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(connections).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((socket, _)) => Some((socket, slot)),
        Err(fault) => {
            tracing::warn!(%fault, "the api could not accept a connection");
            None
        }
    }
}

async fn serve_connection(socket: TcpStream, service: TowerToHyperService<axum::Router>, stop: CancellationToken) {
    // Tokens are small and each should arrive at once.
    let _ = socket.set_nodelay(true);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(socket), service));
    tokio::select! {
        ended = connection.as_mut() => log_end(ended),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            log_end(connection.await);
        }
    }
}

fn log_end(ended: Result<(), hyper::Error>) {
    if let Err(fault) = ended {
        tracing::debug!(%fault, "a connection to the api ended early");
    }
}

#[cfg(test)]
mod tests;
