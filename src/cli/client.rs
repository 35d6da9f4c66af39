//! The commands' side of a peer's API.

use std::path::Path;
use std::time::Duration;

use http_body_util::BodyExt;
use http_body_util::Full;
use hyper::Method;
use hyper::Request;
use hyper::Response;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::api::internal::EventBody;
use crate::api::internal::GenerateBody;
use crate::config::datadir::DataDirError;
use crate::config::datadir::RunFile;
use crate::daemon::views::StatusView;

/// How long a listing may take; a peer answers it from memory.
const LISTING_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a peer may be silent in mid-answer before the command gives it up. Its API sends a sign of life every 15 s.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// The longest event that is read.
const MAX_EVENT: usize = 4 << 20;

/// Talks to one peer.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    address: String,
    token: String,
}

/// Why a peer did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens there.
    #[error("the peer at {address} cannot be reached: {source}")]
    Unreachable { address: String, source: std::io::Error },
    /// It does not answer.
    #[error("the peer at {address} does not answer")]
    Silent { address: String },
    /// The connection broke.
    #[error("the connection to the peer at {address} broke: {source}")]
    Broken { address: String, source: hyper::Error },
    /// It said no.
    #[error("{message}")]
    Refused { status: StatusCode, message: String },
    /// It said something else than it should.
    #[error("the peer at {address} answered in an unknown form: is it another version of brigade?")]
    Form { address: String },
}

/// Why it cannot be told whether a peer runs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FindError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("process {pid} should be the peer of {root}, but: {source}")]
    Peer { pid: u32, root: String, source: ClientError },
}

/// The peer that runs on the data directory `root`, if one does. A `run.json` that a killed peer left behind counts
/// as none.
pub(crate) async fn find(root: &Path) -> Result<Option<Client>, FindError> {
    let Some(run) = RunFile::read(root)? else { return Ok(None) };
    let client = Client::new(&run.api, &run.token);
    match client.get::<StatusView>("status").await {
        Ok(status) if status.peer == run.peer => Ok(Some(client)),
        // Somebody else took the port of a peer that is gone.
        Ok(_) | Err(ClientError::Unreachable { .. } | ClientError::Refused { .. } | ClientError::Form { .. }) => {
            Ok(None)
        }
        Err(source @ (ClientError::Silent { .. } | ClientError::Broken { .. })) => {
            Err(FindError::Peer { pid: run.pid, root: root.display().to_string(), source })
        }
    }
}

impl Client {
    pub(crate) fn new(address: &str, token: &str) -> Self {
        Self { address: address.to_owned(), token: token.to_owned() }
    }

    /// Asks for a listing.
    pub(crate) async fn get<T: DeserializeOwned>(&self, name: &str) -> Result<T, ClientError> {
        let answer = self.read(self.send(Method::GET, name, Bytes::new()));
        let silent = |_| ClientError::Silent { address: self.address.clone() };
        tokio::time::timeout(LISTING_TIMEOUT, answer).await.map_err(silent)?
    }

    /// Asks for something to be done, however long it takes.
    pub(crate) async fn post<T: DeserializeOwned>(&self, name: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.read(self.send(Method::POST, name, self.encode(body)?)).await
    }

    /// Asks for an answer.
    pub(crate) async fn generate(&self, body: &GenerateBody) -> Result<Events, ClientError> {
        let response = self.send(Method::POST, "generate", self.encode(body)?).await?;
        Ok(Events { client: self.clone(), body: response.into_body(), received: Received::default() })
    }

    fn encode(&self, body: &impl Serialize) -> Result<Bytes, ClientError> {
        serde_json::to_vec(body).map(Bytes::from).map_err(|_| self.form())
    }

    async fn read<T: DeserializeOwned>(
        &self,
        response: impl Future<Output = Result<Response<Incoming>, ClientError>>,
    ) -> Result<T, ClientError> {
        let body = response.await?.into_body().collect().await.map_err(|source| self.broken(source))?;
        serde_json::from_slice(&body.to_bytes()).map_err(|_| self.form())
    }

    async fn send(&self, method: Method, name: &str, body: Bytes) -> Result<Response<Incoming>, ClientError> {
        let unreachable = |source| ClientError::Unreachable { address: self.address.clone(), source };
        let socket = TcpStream::connect(&self.address).await.map_err(unreachable)?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(socket)).await.map_err(|source| self.broken(source))?;
        // Its end, in order or not, shows in the response.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(format!("/brigade/v1/{name}"))
            .header(header::HOST, &self.address)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.token))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|_| self.form())?;
        let response = sender.send_request(request).await.map_err(|source| self.broken(source))?;
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
    }

    async fn refusal(&self, response: Response<Incoming>) -> ClientError {
        let status = response.status();
        let body = match response.into_body().collect().await {
            Ok(body) => body.to_bytes(),
            Err(source) => return self.broken(source),
        };
        let said = serde_json::from_slice::<Value>(&body).unwrap_or_default();
        match said["error"]["message"].as_str() {
            Some(message) => ClientError::Refused { status, message: message.to_owned() },
            None => self.form(),
        }
    }

    fn broken(&self, source: hyper::Error) -> ClientError {
        ClientError::Broken { address: self.address.clone(), source }
    }

    fn form(&self) -> ClientError {
        ClientError::Form { address: self.address.clone() }
    }
}

/// The events of an answer. Dropping it closes the connection, which cancels the answer.
#[derive(Debug)]
pub(crate) struct Events {
    client: Client,
    body: Incoming,
    received: Received,
}

/// Bytes of a stream of server-sent events that were not read yet.
#[derive(Debug, Default)]
struct Received {
    bytes: Vec<u8>,
}

impl Events {
    /// The next event; `None` if the connection ended.
    pub(crate) async fn next(&mut self) -> Result<Option<EventBody>, ClientError> {
        loop {
            if let Some(data) = self.received.event() {
                return serde_json::from_slice(&data).map(Some).map_err(|_| self.client.form());
            }
            if self.received.bytes.len() > MAX_EVENT {
                return Err(self.client.form());
            }
            let silent = |_| ClientError::Silent { address: self.client.address.clone() };
            match tokio::time::timeout(SILENCE_TIMEOUT, self.body.frame()).await.map_err(silent)? {
                None => return Ok(None),
                Some(frame) => {
                    let frame = frame.map_err(|source| self.client.broken(source))?;
                    self.received.bytes.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                }
            }
        }
    }
}

impl Received {
    /// The data of the first whole line that carries some; other lines, such as signs of life, are skipped.
    fn event(&mut self) -> Option<Vec<u8>> {
        loop {
            let end = self.bytes.iter().position(|byte| *byte == b'\n')?;
            let line: Vec<u8> = self.bytes.drain(..=end).collect();
            if let Some(data) = line.strip_prefix(b"data:") {
                return Some(data.trim_ascii().to_vec());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_however_they_are_cut() {
        let stream = b": alive\n\ndata: one\n\ndata:two\r\n\r\n";
        let mut received = Received::default();
        let mut events = Vec::new();

        for byte in stream {
            received.bytes.push(*byte);
            events.extend(received.event());
        }

        assert_eq!(events, [b"one", b"two"]);
        assert!(received.bytes.is_empty());
    }

    #[tokio::test]
    async fn a_peer_that_is_gone_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        // The port was free a moment ago, so nobody listens there.
        let api = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let run = RunFile { pid: 1, api, token: "t".to_owned(), peer: "ab".repeat(32), p2p: Vec::new() };
        run.write(folder.path()).unwrap();

        assert!(find(folder.path()).await.unwrap().is_none());
    }
}
