//! A libp2p behaviour that opens and accepts streams of our protocols, and decides whom to connect to at all.
//!
//! It differs from `libp2p-stream` in what a mesh under load needs: many streams may be opened on one connection at
//! once; incoming ones wait in a bounded queue of their own and are not dropped because another came in the same
//! instant; each peer has an allowance; and of several connections to a peer one is chosen, the same on both sides.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Ready;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

use libp2p::Multiaddr;
use libp2p::PeerId;
use libp2p::Stream;
use libp2p::StreamProtocol;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::InboundUpgrade;
use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::core::upgrade::UpgradeInfo;
use libp2p::swarm::ConnectionDenied;
use libp2p::swarm::ConnectionHandler;
use libp2p::swarm::ConnectionHandlerEvent;
use libp2p::swarm::ConnectionId;
use libp2p::swarm::FromSwarm;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::NotifyHandler;
use libp2p::swarm::StreamUpgradeError;
use libp2p::swarm::SubstreamProtocol;
use libp2p::swarm::ToSwarm;
use libp2p::swarm::handler::ConnectionEvent;
use libp2p::swarm::handler::DialUpgradeError;
use libp2p::swarm::handler::FullyNegotiatedInbound;
use libp2p::swarm::handler::FullyNegotiatedOutbound;
use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::ids::PeerKey;
use crate::mesh::addresses::Scope;
use crate::mesh::addresses::is_relayed;
use crate::mesh::addresses::scope;
use crate::mesh::identity::peer_key;
use crate::mesh::streams::Protocol;

/// Streams that a peer may have open towards us on one connection at once. A requester of 64 sessions (the API's
/// limit) uses one per stage for control and two for hops.
const MAX_INCOMING_PER_CONNECTION: usize = 384;

/// Streams waiting to be negotiated on one connection.
const MAX_OPENING: usize = 256;

/// A stream that a peer opened.
pub(super) struct Incoming {
    pub(super) peer: PeerKey,
    pub(super) protocol: Protocol,
    pub(super) stream: Stream,
    pub(super) lent: Lent,
}

/// A place in a connection's allowance of incoming streams, given back when dropped.
#[derive(Debug)]
pub(super) struct Lent(Arc<AtomicUsize>);

impl Lent {
    fn take(live: &Arc<AtomicUsize>) -> Option<Self> {
        let taken = live.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
            (count < MAX_INCOMING_PER_CONNECTION).then_some(count + 1)
        });
        taken.ok().map(|_| Self(Arc::clone(live)))
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Why a stream was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotOpened {
    /// The peer does not speak the protocol.
    Unsupported,
    /// The connection is gone, or too slow.
    Lost,
}

/// Asks a connection for a stream.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) protocol: StreamProtocol,
    pub(super) reply: oneshot::Sender<Result<Stream, NotOpened>>,
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Barred {
    /// Not an inline ed25519 key.
    #[error("its identity is not an ed25519 key")]
    NotAKey,
    /// There is an allow-list without it.
    #[error("it is not on the allow-list")]
    NotAllowed,
    /// It was met a moment ago and spoke for another network or version.
    #[error("it belongs to another network or protocol version")]
    Stranger,
}

/// Opens and accepts streams, and bars connections.
pub(super) struct Substreams {
    local: PeerId,
    protocols: Arc<[(StreamProtocol, Protocol)]>,
    incoming: mpsc::Sender<Incoming>,
    allow: Option<BTreeSet<PeerKey>>,
    strangers: BTreeSet<PeerId>,
    connections: BTreeMap<PeerId, Vec<Connection>>,
    events: VecDeque<ToSwarm<Infallible, Order>>,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Debug)]
struct Connection {
    id: ConnectionId,
    relayed: bool,
    dialled_by: PeerId,
}

impl Substreams {
    pub(super) fn new(
        local: PeerId,
        protocols: Arc<[(StreamProtocol, Protocol)]>,
        allow: Option<BTreeSet<PeerKey>>,
        incoming: mpsc::Sender<Incoming>,
    ) -> Self {
        Self {
            local,
            protocols,
            incoming,
            allow,
            strangers: BTreeSet::new(),
            connections: BTreeMap::new(),
            events: VecDeque::new(),
            waker: None,
        }
    }

    /// Opens a stream on the best connection to `peer`. The reply comes through the opening.
    pub(super) fn open(&mut self, peer: PeerId, opening: Opening) {
        let Some(connection) = self.connections.get(&peer).and_then(|all| all.iter().min_by_key(|one| one.rank()))
        else {
            // A caller that has gone away needs no answer.
            let _ = opening.reply.send(Err(NotOpened::Lost));
            return;
        };
        let handler = NotifyHandler::One(connection.id);
        self.push(ToSwarm::NotifyHandler { peer_id: peer, handler, event: Order::Open(opening) });
    }

    /// Bars a peer until [`Self::forgive`].
    pub(super) fn bar(&mut self, peer: PeerId) {
        self.strangers.insert(peer);
    }

    /// Lets a stranger try again.
    pub(super) fn forgive(&mut self, peer: &PeerId) {
        self.strangers.remove(peer);
    }

    /// Whether connecting to `peer` would be refused.
    pub(super) fn barred(&self, peer: &PeerId) -> Option<Barred> {
        let Some(key) = peer_key(peer) else {
            return Some(Barred::NotAKey);
        };
        if self.allow.as_ref().is_some_and(|allowed| !allowed.contains(&key)) {
            return Some(Barred::NotAllowed);
        }
        self.strangers.contains(peer).then_some(Barred::Stranger)
    }

    fn admit(&self, peer: PeerId) -> Result<Handler, ConnectionDenied> {
        match (self.barred(&peer), peer_key(&peer)) {
            (None, Some(key)) => Ok(Handler {
                peer: key,
                protocols: Arc::clone(&self.protocols),
                incoming: self.incoming.clone(),
                live: Arc::new(AtomicUsize::new(0)),
                opening: VecDeque::new(),
                keep: Keep::Alive,
            }),
            (barred, _) => Err(ConnectionDenied::new(barred.unwrap_or(Barred::NotAKey))),
        }
    }

    fn on_established(&mut self, peer: PeerId, connection: Connection) {
        self.connections.entry(peer).or_default().push(connection);
        self.choose(peer);
    }

    fn on_closed(&mut self, peer: PeerId, id: ConnectionId) {
        if let Some(all) = self.connections.get_mut(&peer) {
            all.retain(|connection| connection.id != id);
            if all.is_empty() {
                self.connections.remove(&peer);
            }
        }
        self.choose(peer);
    }

    /// Of several connections to one peer keeps the best, and lets the others end when their streams have.
    fn choose(&mut self, peer: PeerId) {
        let all = self.connections.get(&peer).map_or(&[][..], Vec::as_slice);
        let best = all.iter().min_by_key(|connection| connection.rank()).map(|connection| connection.id);
        let orders: Vec<_> = all
            .iter()
            .map(|connection| {
                let keep = if Some(connection.id) == best { Keep::Alive } else { Keep::WhileUsed };
                let handler = NotifyHandler::One(connection.id);
                ToSwarm::NotifyHandler { peer_id: peer, handler, event: Order::Keep(keep) }
            })
            .collect();
        orders.into_iter().for_each(|order| self.push(order));
    }

    fn push(&mut self, event: ToSwarm<Infallible, Order>) {
        self.events.push_back(event);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Connection {
    /// Lowest is best, and both sides agree: direct before relayed, then by who dialled, then the oldest.
    fn rank(&self) -> (bool, PeerId, ConnectionId) {
        (self.relayed, self.dialled_by, self.id)
    }
}

impl NetworkBehaviour for Substreams {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_pending_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: Option<PeerId>,
        _: &[Multiaddr],
        _: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        match peer.and_then(|peer| self.barred(&peer)) {
            Some(barred) => Err(ConnectionDenied::new(barred)),
            None => Ok(Vec::new()),
        }
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        self.admit(peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        self.admit(peer)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        if let FromSwarm::ConnectionEstablished(established) = &event {
            let relayed = is_relayed(established.endpoint.get_remote_address());
            let dialled_by = if established.endpoint.is_dialer() { self.local } else { established.peer_id };
            let connection = Connection { id: established.connection_id, relayed, dialled_by };
            self.on_established(established.peer_id, connection);
        }
        // Neighbours are asked to confirm where this peer listens; loopback needs no asking.
        if let FromSwarm::NewListenAddr(listening) = &event
            && scope(listening.addr) > Scope::Loopback
        {
            self.push(ToSwarm::NewExternalAddrCandidate(listening.addr.clone()));
        }
        if let FromSwarm::ConnectionClosed(closed) = &event {
            self.on_closed(closed.peer_id, closed.connection_id);
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: Infallible) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Infallible, Order>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(event);
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// What the behaviour tells one of its connections.
#[derive(Debug)]
pub(super) enum Order {
    /// Open a stream.
    Open(Opening),
    /// Whether to stay.
    Keep(Keep),
}

/// How long a connection stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// As long as both sides live.
    Alive,
    /// As long as a stream runs over it.
    WhileUsed,
}

/// One connection's part.
pub(super) struct Handler {
    peer: PeerKey,
    protocols: Arc<[(StreamProtocol, Protocol)]>,
    incoming: mpsc::Sender<Incoming>,
    live: Arc<AtomicUsize>,
    opening: VecDeque<Opening>,
    keep: Keep,
}

impl Handler {
    fn on_incoming(&self, stream: Stream, protocol: Protocol) {
        let Some(lent) = Lent::take(&self.live) else {
            tracing::debug!(peer = %self.peer, ?protocol, "refused a stream beyond the peer's allowance");
            return;
        };
        let incoming = Incoming { peer: self.peer, protocol, stream, lent };
        if self.incoming.try_send(incoming).is_err() {
            tracing::debug!(peer = %self.peer, ?protocol, "refused a stream: too many wait");
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Order;
    type ToBehaviour = Infallible;
    type InboundProtocol = Accept;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = oneshot::Sender<Result<Stream, NotOpened>>;

    fn listen_protocol(&self) -> SubstreamProtocol<Accept> {
        SubstreamProtocol::new(Accept(Arc::clone(&self.protocols)), ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep == Keep::Alive
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<ReadyUpgrade<StreamProtocol>, Self::OutboundOpenInfo, Infallible>> {
        match self.opening.pop_front() {
            Some(Opening { protocol, reply }) => Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(ReadyUpgrade::new(protocol), reply),
            }),
            None => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, order: Order) {
        match order {
            Order::Open(opening) if self.opening.len() < MAX_OPENING => self.opening.push_back(opening),
            Order::Open(opening) => {
                // A caller that has gone away needs no answer.
                let _ = opening.reply.send(Err(NotOpened::Lost));
            }
            Order::Keep(keep) => self.keep = keep,
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<Accept, ReadyUpgrade<StreamProtocol>, (), Self::OutboundOpenInfo>,
    ) {
        #[expect(clippy::wildcard_enum_match_arm, reason = "libp2p's enum is open, and only streams concern us")]
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, protocol), ..
            }) => {
                self.on_incoming(stream, protocol);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: stream, info: reply }) => {
                // A caller that has gone away needs no answer.
                let _ = reply.send(Ok(stream));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: reply, error }) => {
                let unsupported = matches!(error, StreamUpgradeError::NegotiationFailed);
                // A caller that has gone away needs no answer.
                let _ = reply.send(Err(if unsupported { NotOpened::Unsupported } else { NotOpened::Lost }));
            }
            _ => {}
        }
    }
}

/// Accepts any of our protocols.
pub(super) struct Accept(Arc<[(StreamProtocol, Protocol)]>);

impl UpgradeInfo for Accept {
    type Info = StreamProtocol;
    type InfoIter = std::vec::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>().into_iter()
    }
}

impl InboundUpgrade<Stream> for Accept {
    type Output = (Stream, Protocol);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, name: StreamProtocol) -> Self::Future {
        let known = self.0.iter().find(|(known, _)| *known == name).map(|(_, protocol)| *protocol);
        ready(Ok((stream, known.expect("libp2p negotiates only a protocol that was offered"))))
    }
}
