//! The handle that everybody but the task holds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use libp2p::Multiaddr;
use libp2p::Stream;
use libp2p::identity::Keypair;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::ids::BlobHash;
use crate::ids::ModelId;
use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::mesh::ControlClient;
use crate::mesh::FetchClient;
use crate::mesh::HopClient;
use crate::mesh::MeshEvent;
use crate::mesh::acceptor::Acceptor;
use crate::mesh::acceptor::LOCAL_CAPACITY;
use crate::mesh::acceptor::Local;
use crate::mesh::addresses;
use crate::mesh::config::MeshConfig;
use crate::mesh::error::DialError;
use crate::mesh::error::FetchError;
use crate::mesh::error::MeshError;
use crate::mesh::error::OpenError;
use crate::mesh::error::PublishError;
use crate::mesh::fetch;
use crate::mesh::framing::Pipe;
use crate::mesh::gossip;
use crate::mesh::gossip::Topic;
use crate::mesh::hop::HopWriter;
use crate::mesh::identity;
use crate::mesh::status::MeshStatus;
use crate::mesh::streams::Greeted;
use crate::mesh::streams::MessageReader;
use crate::mesh::streams::MessageWriter;
use crate::mesh::streams::Protocol;
use crate::mesh::streams::greet;
use crate::mesh::swarm;
use crate::mesh::task::Task;
use crate::wire::hello::Hello;
use crate::wire::hop::HopOpen;

/// Commands waiting for the swarm task. Callers wait on the reply, so this bounds callers, not bytes.
const COMMAND_CAPACITY: usize = 64;

/// Events that the node has not taken yet.
const EVENT_CAPACITY: usize = 256;

/// Incoming streams waiting for the acceptor, which is always quick.
const INCOMING_CAPACITY: usize = 256;

/// Bytes under way in a stream that this process opened to itself.
const LOCAL_WINDOW: usize = 1 << 20;

/// How long a connection and a stream on it may take together.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

/// What the handle asks of the task.
pub(super) enum Command {
    /// Publish, or say why not.
    Publish { topic: Topic, bytes: Bytes, reply: oneshot::Sender<Result<(), PublishError>> },
    /// Take part in a topic.
    Subscribe(Topic),
    /// Leave a topic.
    Unsubscribe(Topic),
    /// Connect if need be, and open a stream.
    Open { peer: PeerKey, protocol: Protocol, reply: oneshot::Sender<Result<Stream, OpenError>> },
    /// Connect to an address.
    Dial { address: Multiaddr, reply: oneshot::Sender<Result<PeerKey, DialError>> },
    /// Tell the DHT that this peer can name holders of a model.
    Provide(ModelId),
    /// Take that back.
    Withdraw(ModelId),
    /// Ask the DHT.
    Find { model: ModelId, reply: oneshot::Sender<Vec<PeerKey>> },
    /// Look around.
    Status(oneshot::Sender<MeshStatus>),
    /// End.
    Stop(oneshot::Sender<()>),
}

/// A handle to the running mesh.
#[derive(Clone)]
pub struct Mesh {
    me: PeerKey,
    network: NetworkId,
    hello: Arc<Hello>,
    commands: mpsc::Sender<Command>,
    local: mpsc::Sender<Local>,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").field("me", &self.me).field("network", &self.network).finish_non_exhaustive()
    }
}

/// Starts the mesh: it listens when this returns. Events must be taken; while they are not, the mesh stands still.
///
/// # Errors
/// [`MeshError`] if an address is bad or in use, or a part of libp2p cannot be set up.
// Nothing is awaited here, but sockets need the runtime that only an async caller surely has.
pub async fn start(config: MeshConfig) -> Result<(Mesh, mpsc::Receiver<MeshEvent>), MeshError> {
    let keypair = identity::keypair(&config.secret)?;
    let me = own_key(&keypair)?;
    let (incoming, incoming_streams) = mpsc::channel(INCOMING_CAPACITY);
    let (events, event_stream) = mpsc::channel(EVENT_CAPACITY);
    let (commands, command_stream) = mpsc::channel(COMMAND_CAPACITY);
    let (local, local_streams) = mpsc::channel(LOCAL_CAPACITY);
    let mut swarm = swarm::build(&config, &keypair, incoming)?;
    swarm::listen(&mut swarm, &config)?;
    let task = Task::new(swarm, me, &config, command_stream, events.clone())?;
    let hello = Arc::new(Hello::current(&config.software));
    let fetches = fetch::Server::new(config.blobs, config.upload_limit);
    let acceptor = Acceptor { me, network: config.network, hello: Arc::clone(&hello), fetches, events };
    tokio::spawn(acceptor.run(incoming_streams, local_streams));
    tokio::spawn(task.run());
    Ok((Mesh { me, network: config.network, hello, commands, local }, event_stream))
}

fn own_key(keypair: &Keypair) -> Result<PeerKey, MeshError> {
    identity::peer_key(&keypair.public().to_peer_id())
        .ok_or_else(|| MeshError::Setup { part: "the identity", reason: "it is not an ed25519 key".to_owned() })
}

impl Mesh {
    /// This peer.
    pub fn me(&self) -> PeerKey {
        self.me
    }

    /// Publishes a signed record. That nobody listens yet, or the record went round already, is no error.
    ///
    /// # Errors
    /// [`PublishError`] if it is too large or the mesh has stopped.
    pub async fn publish(&self, topic: Topic, bytes: Bytes) -> Result<(), PublishError> {
        gossip::checked(&bytes)?;
        let (reply, answer) = oneshot::channel();
        let command = Command::Publish { topic, bytes, reply };
        self.commands.send(command).await.map_err(|_| PublishError::Stopped)?;
        answer.await.map_err(|_| PublishError::Stopped)?
    }

    /// Takes part in a topic from now on.
    pub async fn subscribe(&self, topic: Topic) {
        self.tell(Command::Subscribe(topic)).await;
    }

    /// Leaves a topic.
    pub async fn unsubscribe(&self, topic: Topic) {
        self.tell(Command::Unsubscribe(topic)).await;
    }

    /// Connects to a peer by its key alone, as opening a stream to it would.
    ///
    /// # Errors
    /// [`OpenError`] if it cannot be reached.
    pub async fn connect(&self, peer: PeerKey) -> Result<(), OpenError> {
        self.open(peer, Protocol::Fetch).await.map(|_| ())
    }

    /// Opens a control stream to a stage of `peer`, connecting if need be; `peer` may be this one.
    ///
    /// # Errors
    /// [`OpenError`] if the peer cannot be reached or does not speak the protocol.
    pub async fn open_control(&self, peer: PeerKey) -> Result<ControlClient, OpenError> {
        let Greeted { reader, writer } = self.open(peer, Protocol::Control).await?;
        Ok(ControlClient { peer, reader: MessageReader::new(reader), writer: MessageWriter::new(writer) })
    }

    /// Opens a hop to `peer` and names it; the answer `Opened` or `Refused` comes through the reader. `peer` may be
    /// this one.
    ///
    /// # Errors
    /// [`OpenError`] if the peer cannot be reached or does not speak the protocol.
    pub async fn open_hop(&self, peer: PeerKey, open: HopOpen) -> Result<HopClient, OpenError> {
        let Greeted { reader, mut writer } = self.open(peer, Protocol::Hop).await?;
        writer.send(&open).await?;
        Ok(HopClient { peer, reader: MessageReader::new(reader), writer: HopWriter::new(writer) })
    }

    /// Fetches a blob of at most `max` bytes from `peer` and verifies it.
    ///
    /// # Errors
    /// [`FetchError`] if the peer does not have it, is busy, or sends something else.
    pub async fn fetch(&self, peer: PeerKey, blob: BlobHash, max: u64) -> Result<Bytes, FetchError> {
        let stream = self.open(peer, Protocol::Fetch).await?;
        fetch::fetch(peer, stream, blob, max).await
    }

    /// Opens a fetch stream to `peer`, connecting if need be; `peer` may be this one.
    ///
    /// # Errors
    /// [`OpenError`] if the peer cannot be reached or does not speak the protocol.
    pub async fn open_fetch(&self, peer: PeerKey) -> Result<FetchClient, OpenError> {
        self.open(peer, Protocol::Fetch).await.map(|stream| FetchClient::new(peer, stream))
    }

    /// Connects to a multiaddr or `host:port`, and waits until the peer there has shown that it is one of this network.
    ///
    /// # Errors
    /// [`DialError`] if nobody answers, or somebody else does.
    pub async fn dial(&self, address: &str) -> Result<PeerKey, DialError> {
        let address = addresses::parse(address)
            .map_err(|reason| DialError::BadAddress { address: address.to_owned(), reason })?;
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Dial { address, reply }).await.map_err(|_| DialError::Stopped)?;
        let limit = 2 * OPEN_LIMIT;
        timeout(limit, answer).await.map_err(|_| DialError::TimedOut { limit })?.map_err(|_| DialError::Stopped)?
    }

    /// Tells the DHT that this peer can name holders of a model. A hint to newcomers, renewed by itself.
    pub async fn provide(&self, model: ModelId) {
        self.tell(Command::Provide(model)).await;
    }

    /// Takes [`Self::provide`] back.
    pub async fn withdraw(&self, model: ModelId) {
        self.tell(Command::Withdraw(model)).await;
    }

    /// Asks the DHT who can name holders of a model. A hint: whoever is named may know nothing.
    pub async fn find(&self, model: ModelId) -> Vec<PeerKey> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Find { model, reply }).await;
        answer.await.unwrap_or_default()
    }

    /// A look at the mesh; `None` once it has stopped.
    pub async fn status(&self) -> Option<MeshStatus> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Status(reply)).await;
        answer.await.ok()
    }

    /// Closes every connection and ends the task.
    pub async fn stop(&self) {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Stop(reply)).await;
        // The task that is gone has stopped, too.
        let _ = answer.await;
    }

    /// A stream before anything was said on it.
    #[cfg(test)]
    pub(super) async fn raw(&self, peer: PeerKey, protocol: Protocol) -> Pipe {
        self.open_remote(peer, protocol).await.unwrap()
    }

    async fn tell(&self, command: Command) {
        // A mesh that has stopped needs no telling.
        let _ = self.commands.send(command).await;
    }

    async fn open(&self, peer: PeerKey, protocol: Protocol) -> Result<Greeted, OpenError> {
        let pipe =
            if peer == self.me { self.open_local(protocol).await? } else { self.open_remote(peer, protocol).await? };
        greet(pipe, peer, protocol, self.network, &self.hello).await
    }

    async fn open_local(&self, protocol: Protocol) -> Result<Pipe, OpenError> {
        let (near, far) = tokio::io::duplex(LOCAL_WINDOW);
        let local = Local { protocol, pipe: Pipe::Local(far) };
        self.local.send(local).await.map_err(|_| DialError::Stopped)?;
        Ok(Pipe::Local(near))
    }

    async fn open_remote(&self, peer: PeerKey, protocol: Protocol) -> Result<Pipe, OpenError> {
        let (reply, answer) = oneshot::channel();
        let opened = async {
            let command = Command::Open { peer, protocol, reply };
            self.commands.send(command).await.map_err(|_| DialError::Stopped)?;
            answer.await.map_err(|_| DialError::Stopped)?
        };
        let stream = timeout(OPEN_LIMIT, opened).await.map_err(|_| DialError::TimedOut { limit: OPEN_LIMIT })??;
        Ok(Pipe::remote(stream, None))
    }
}
