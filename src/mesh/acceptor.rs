//! Takes in the streams that peers open: says hello, reads what a hop is for, and hands the typed stream on. What is
//! pending is bounded, in all and per peer, so a hostile peer wastes its own places only.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::mesh::ControlServer;
use crate::mesh::HopServer;
use crate::mesh::MeshEvent;
use crate::mesh::error::OpenError;
use crate::mesh::fetch::Server;
use crate::mesh::framing::Pipe;
use crate::mesh::hop::HopReader;
use crate::mesh::streams::Greeted;
use crate::mesh::streams::HELLO_LIMIT;
use crate::mesh::streams::MessageReader;
use crate::mesh::streams::MessageWriter;
use crate::mesh::streams::Protocol;
use crate::mesh::streams::greet;
use crate::mesh::substreams::Incoming;
use crate::wire::hello::Hello;
use crate::wire::hop::HopOpen;

/// Streams at once between their opening and their end (fetch) or their hand-over (the rest).
const MAX_PENDING: usize = 512;

/// Of these, from one peer.
const MAX_PENDING_PER_PEER: usize = 128;

/// How long the node has to take a stream over.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(10);

/// Streams that this process opened to itself, waiting to be taken in.
pub(super) const LOCAL_CAPACITY: usize = 64;

/// One end of a stream that this process opened to itself.
pub(super) struct Local {
    pub(super) protocol: Protocol,
    pub(super) pipe: Pipe,
}

/// Takes in streams until both sources end.
pub(super) struct Acceptor {
    pub(super) me: PeerKey,
    pub(super) network: NetworkId,
    pub(super) hello: Arc<Hello>,
    pub(super) fetches: Server,
    pub(super) events: mpsc::Sender<MeshEvent>,
}

impl Acceptor {
    pub(super) async fn run(self, mut remote: mpsc::Receiver<Incoming>, mut local: mpsc::Receiver<Local>) {
        let mut pending = Pending::default();
        loop {
            let (peer, protocol, pipe) = tokio::select! {
                Some(incoming) = remote.recv() => {
                    (incoming.peer, incoming.protocol, Pipe::remote(incoming.stream, Some(incoming.lent)))
                }
                Some(own) = local.recv() => (self.me, own.protocol, own.pipe),
                Some(done) = pending.tasks.join_next_with_id() => {
                    pending.on_done(done.map_or_else(|error| error.id(), |(id, ())| id));
                    continue;
                }
                else => return,
            };
            if pending.admits(peer) {
                pending.spawn(peer, self.take_in(peer, protocol, pipe));
            } else {
                tracing::debug!(peer = %peer.short(), ?protocol, "refused a stream: too many of this peer's are pending");
            }
        }
    }

    fn take_in(&self, peer: PeerKey, protocol: Protocol, pipe: Pipe) -> impl Future<Output = ()> + Send + use<> {
        let (network, hello) = (self.network, Arc::clone(&self.hello));
        let (fetches, events) = (self.fetches.clone(), self.events.clone());
        async move {
            match greeted(peer, protocol, pipe, network, &hello).await {
                Ok(Taken::Fetch(stream)) => fetches.serve(peer, stream).await,
                // A node that takes nothing over in time is stuck or gone; the stream closes.
                Ok(Taken::Event(event)) => drop(timeout(HAND_OVER_LIMIT, events.send(*event)).await),
                Err(error) => tracing::debug!(peer = %peer.short(), ?protocol, %error, "refused a stream"),
            }
        }
    }
}

enum Taken {
    Event(Box<MeshEvent>),
    Fetch(Greeted),
}

async fn greeted(
    peer: PeerKey,
    protocol: Protocol,
    pipe: Pipe,
    network: NetworkId,
    hello: &Hello,
) -> Result<Taken, OpenError> {
    let mut stream = greet(pipe, peer, protocol, network, hello).await?;
    let event = match protocol {
        Protocol::Fetch => return Ok(Taken::Fetch(stream)),
        Protocol::Control => MeshEvent::Control(ControlServer {
            peer,
            reader: MessageReader::new(stream.reader),
            writer: MessageWriter::new(stream.writer),
        }),
        Protocol::Hop => {
            let silent = |_| OpenError::Silent { peer, limit: HELLO_LIMIT };
            let open = timeout(HELLO_LIMIT, stream.reader.receive::<HopOpen>()).await.map_err(silent)??;
            MeshEvent::Hop(HopServer {
                peer,
                open: open.ok_or(OpenError::Lost { peer })?,
                reader: HopReader::new(stream.reader),
                writer: MessageWriter::new(stream.writer),
            })
        }
    };
    Ok(Taken::Event(Box::new(event)))
}

/// The tasks under way, counted per peer.
#[derive(Default)]
struct Pending {
    tasks: JoinSet<()>,
    peers: HashMap<tokio::task::Id, PeerKey>,
    counts: BTreeMap<PeerKey, usize>,
}

impl Pending {
    fn admits(&self, peer: PeerKey) -> bool {
        self.tasks.len() < MAX_PENDING && self.counts.get(&peer).is_none_or(|&count| count < MAX_PENDING_PER_PEER)
    }

    fn spawn(&mut self, peer: PeerKey, task: impl Future<Output = ()> + Send + 'static) {
        let id = self.tasks.spawn(task).id();
        self.peers.insert(id, peer);
        *self.counts.entry(peer).or_default() += 1;
    }

    fn on_done(&mut self, task: tokio::task::Id) {
        let Some(peer) = self.peers.remove(&task) else {
            return;
        };
        if let Some(count) = self.counts.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&peer);
            }
        }
    }
}
