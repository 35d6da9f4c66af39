//! Who is connected, over what, and whether they are of this network. Pure.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use libp2p::Multiaddr;
use libp2p::PeerId;
use libp2p::swarm::ConnectionId;
use tokio::sync::oneshot;

use crate::amounts::Span;
use crate::ids::PeerKey;
use crate::mesh::error::DialError;
use crate::mesh::status::Direction;
use crate::mesh::status::Neighbour;

/// Ticks (seconds) that a connected peer has to say of which network it is.
const IDENTIFY_TICKS: u64 = 15;

/// A caller that waits for a connection to prove itself.
pub(super) type DialReply = oneshot::Sender<Result<PeerKey, DialError>>;

/// One connection.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub(super) remote: Multiaddr,
    pub(super) direction: Direction,
}

/// Whether a peer is of this network.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// It has not said so yet; since this tick.
    Unknown(u64),
    /// It is, and runs this software.
    Member(String),
}

struct Peer {
    key: PeerKey,
    connections: BTreeMap<ConnectionId, Connection>,
    standing: Standing,
    round_trip: Option<Span>,
    dialled: Vec<DialReply>,
}

/// Every connected peer.
#[derive(Default)]
pub(super) struct Neighbours {
    peers: BTreeMap<PeerId, Peer>,
}

/// What a closed connection means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Others to this peer remain.
    Stays,
    /// A member is gone.
    Member(PeerKey),
    /// Somebody is gone who never proved to be one.
    Unproven,
}

impl Neighbours {
    /// A connection came up.
    pub(super) fn on_connected(
        &mut self,
        peer: PeerId,
        key: PeerKey,
        id: ConnectionId,
        connection: Connection,
        tick: u64,
    ) {
        let fresh = || Peer {
            key,
            connections: BTreeMap::new(),
            standing: Standing::Unknown(tick),
            round_trip: None,
            dialled: Vec::new(),
        };
        self.peers.entry(peer).or_insert_with(fresh).connections.insert(id, connection);
    }

    /// A connection went down; `why` goes to those who dialled it and still wait.
    pub(super) fn on_closed(&mut self, peer: &PeerId, id: ConnectionId, why: &DialError) -> Left {
        let Some(known) = self.peers.get_mut(peer) else {
            return Left::Unproven;
        };
        known.connections.remove(&id);
        if !known.connections.is_empty() {
            return Left::Stays;
        }
        let Some(gone) = self.peers.remove(peer) else {
            return Left::Unproven;
        };
        answer(gone.dialled, &Err(why.clone()));
        match gone.standing {
            Standing::Member(_) => Left::Member(gone.key),
            Standing::Unknown(_) => Left::Unproven,
        }
    }

    /// A peer has proved to be of this network: its key if that is news.
    pub(super) fn on_member(&mut self, peer: &PeerId, software: String) -> Option<PeerKey> {
        let known = self.peers.get_mut(peer)?;
        let news = matches!(known.standing, Standing::Unknown(_));
        known.standing = Standing::Member(software);
        answer(std::mem::take(&mut known.dialled), &Ok(known.key));
        news.then_some(known.key)
    }

    /// A peer is of another network: tells those who dialled it.
    pub(super) fn on_stranger(&mut self, peer: &PeerId, why: &DialError) {
        if let Some(known) = self.peers.get_mut(peer) {
            answer(std::mem::take(&mut known.dialled), &Err(why.clone()));
        }
    }

    /// A caller waits for the peer's proof; answered at once if it was given.
    pub(super) fn await_member(&mut self, peer: &PeerId, reply: DialReply) {
        if let Some(known) = self.peers.get_mut(peer) {
            match known.standing {
                Standing::Member(_) => answer(vec![reply], &Ok(known.key)),
                Standing::Unknown(_) => known.dialled.push(reply),
            }
        }
    }

    /// A round trip was measured: the peer's key if it is a member.
    pub(super) fn on_round_trip(&mut self, peer: &PeerId, span: Span) -> Option<PeerKey> {
        let known = self.peers.get_mut(peer)?;
        known.round_trip = Some(span);
        matches!(known.standing, Standing::Member(_)).then_some(known.key)
    }

    /// One connection of a peer.
    pub(super) fn connection(&self, peer: &PeerId, id: ConnectionId) -> Option<&Connection> {
        self.peers.get(peer)?.connections.get(&id)
    }

    /// The addresses at which this peer has reached a connected one.
    pub(super) fn reached_at(&self, peer: &PeerId) -> impl Iterator<Item = &Multiaddr> {
        let connections = self.peers.get(peer).into_iter().flat_map(|known| known.connections.values());
        connections.filter(|connection| connection.direction == Direction::Outbound).map(|outbound| &outbound.remote)
    }

    /// Everybody connected.
    pub(super) fn connected(&self) -> BTreeSet<PeerId> {
        self.peers.keys().copied().collect()
    }

    /// Every member.
    pub(super) fn members(&self) -> impl Iterator<Item = PeerId> {
        self.peers.iter().filter(|(_, known)| matches!(known.standing, Standing::Member(_))).map(|(peer, _)| *peer)
    }

    /// Those who have had their time to say of which network they are.
    pub(super) fn overdue(&self, tick: u64) -> Vec<PeerId> {
        let overdue =
            |known: &Peer| matches!(known.standing, Standing::Unknown(since) if since + IDENTIFY_TICKS < tick);
        self.peers.iter().filter(|(_, known)| overdue(known)).map(|(peer, _)| *peer).collect()
    }

    /// Every member, for the user.
    pub(super) fn list(&self) -> Vec<Neighbour> {
        self.peers.values().filter_map(Peer::shown).collect()
    }
}

impl Peer {
    fn shown(&self) -> Option<Neighbour> {
        let Standing::Member(software) = &self.standing else {
            return None;
        };
        let connection = self.connections.values().next()?;
        Some(Neighbour {
            peer: self.key,
            address: connection.remote.to_string(),
            direction: connection.direction,
            round_trip: self.round_trip,
            software: software.clone(),
        })
    }
}

fn answer(replies: Vec<DialReply>, result: &Result<PeerKey, DialError>) {
    for reply in replies {
        // A caller that has gone away needs no answer.
        let _ = reply.send(result.clone());
    }
}
