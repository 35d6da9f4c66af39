//! What the task does about each event of the Swarm.

use std::collections::BTreeSet;

use libp2p::Multiaddr;
use libp2p::PeerId;
use libp2p::core::ConnectedPoint;
use libp2p::gossipsub;
use libp2p::identify;
use libp2p::kad;
use libp2p::mdns;
use libp2p::ping;
use libp2p::swarm::ConnectionId;
use libp2p::swarm::SwarmEvent;

use crate::amounts::Span;
use crate::mesh::MeshEvent;
use crate::mesh::addresses;
use crate::mesh::behaviour::BehaviourEvent;
use crate::mesh::behaviour::kad_protocol;
use crate::mesh::behaviour::protocol_version;
use crate::mesh::dialer::JoinState;
use crate::mesh::error::DialError;
use crate::mesh::failure::dial_error;
use crate::mesh::failure::last_word;
use crate::mesh::gossip::Verdict;
use crate::mesh::identity;
use crate::mesh::neighbours::Connection;
use crate::mesh::neighbours::Left;
use crate::mesh::status::Direction;
use crate::mesh::status::shown;
use crate::mesh::task::Dialling;
use crate::mesh::task::Task;

/// Addresses that a peer may claim.
const MAX_CLAIMED: usize = 16;

/// The longest name of a software that is kept.
const MAX_SOFTWARE: usize = 64;

impl Task {
    pub(super) fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        #[expect(clippy::wildcard_enum_match_arm, reason = "libp2p's enum is open")]
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::NewListenAddr { address, .. } => self.tell(MeshEvent::Listening(address.to_string())),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, concurrent_dial_errors, .. } => {
                let failed = concurrent_dial_errors.into_iter().flatten().map(|(address, _)| address);
                self.drop_addresses(peer_id, failed.collect());
                self.on_established(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, endpoint, .. } => {
                self.on_closed(peer_id, connection_id, endpoint.get_remote_address());
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.on_not_connected(connection_id, peer_id, error);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                self.refuse(format!("refused a connection from {send_back_addr}: {}", last_word(&error)));
            }
            SwarmEvent::ExternalAddrConfirmed { address } => self.on_confirmed(address),
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a listener failed"),
            SwarmEvent::ListenerClosed { addresses, reason: Err(error), .. } => {
                tracing::warn!(?addresses, %error, "a listener closed");
            }
            _ => {}
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        #[expect(clippy::wildcard_enum_match_arm, reason = "libp2p's events are open, and the rest keeps itself")]
        match event {
            BehaviourEvent::Identify(identify::Event::Received { connection_id, peer_id, info }) => {
                self.on_identified(peer_id, connection_id, info);
            }
            BehaviourEvent::Ping(event) => self.on_ping(event),
            BehaviourEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                self.on_gossip(propagation_source, &message_id, &message.data);
            }
            BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed { id, result, step, .. }) => match result {
                kad::QueryResult::GetProviders(result) => self.on_search(id, result, step.last),
                kad::QueryResult::GetClosestPeers(found) => {
                    let peers = match found {
                        Ok(found) => found.peers,
                        Err(kad::GetClosestPeersError::Timeout { peers, .. }) => peers,
                    };
                    self.on_found(peers);
                    if step.last {
                        self.on_looked_up(id);
                    }
                }
                _ => {}
            },
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => self.on_discovered(found),
            _ => {}
        }
    }

    fn on_established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let Some(key) = identity::peer_key(&peer) else {
            // Barred already, where connections are admitted.
            return;
        };
        let direction = if endpoint.is_dialer() { Direction::Outbound } else { Direction::Inbound };
        let remote = addresses::split_peer(endpoint.get_remote_address().clone()).0;
        self.neighbours.on_connected(peer, key, id, Connection { remote, direction }, self.tick);
        match self.dialling.remove(&id) {
            Some(Dialling::Caller(reply)) => self.neighbours.await_member(&peer, reply),
            Some(Dialling::Join(index)) => self.dialer.on_joined(index, JoinState::Joined(peer), self.tick),
            None => {}
        }
        self.open_waiting(key, peer);
    }

    fn on_closed(&mut self, peer: PeerId, id: ConnectionId, remote: &Multiaddr) {
        let reason = "the connection was closed before the peer said of which network it is".to_owned();
        let why = DialError::Unreachable { address: remote.to_string(), reason };
        let left = self.neighbours.on_closed(&peer, id, &why);
        if left == Left::Stays {
            return;
        }
        self.judge.forget(&peer);
        self.dialer.on_lost(&peer, self.tick);
        if let Left::Member(key) = left {
            self.changed = self.tick;
            self.tell(MeshEvent::PeerDown(key));
        }
    }

    fn on_not_connected(&mut self, id: ConnectionId, peer: Option<PeerId>, error: libp2p::swarm::DialError) {
        if self.dialling.contains_key(&id) {
            let error = dial_error(error, self.private);
            self.on_address_failed(id, &error);
        } else if let Some(peer) = peer.filter(|peer| !self.swarm.is_connected(peer)) {
            self.on_dial_failed(peer, error);
        }
    }

    fn on_identified(&mut self, peer: PeerId, id: ConnectionId, info: identify::Info) {
        if info.protocol_version != protocol_version(self.network) {
            self.on_stranger(peer, id, &info.protocol_version);
            return;
        }
        if let Some(key) = self.neighbours.on_member(&peer, shown(&info.agent_version, MAX_SOFTWARE)) {
            self.changed = self.tick;
            self.dialer.on_connected(&peer);
            self.tell(MeshEvent::PeerUp(key));
        }
        let Some(connection) = self.neighbours.connection(&peer, id).cloned() else {
            return;
        };
        if connection.direction == Direction::Inbound {
            self.on_reached(addresses::split_peer(info.observed_addr).0);
        }
        let claimed = info.listen_addrs.into_iter().take(MAX_CLAIMED).map(|address| addresses::split_peer(address).0);
        let believed = claimed.filter(|address| addresses::believable(address, &connection.remote));
        let addresses: BTreeSet<_> = believed.chain(self.neighbours.reached_at(&peer).cloned()).collect();
        // One that does not know its own addresses yet takes none of them back.
        if addresses.is_empty() {
            return;
        }
        if info.protocols.contains(&kad_protocol(self.network)) {
            self.place_in_dht(&peer, &addresses);
        }
        self.dialer.hear(peer, &addresses);
    }

    fn on_stranger(&mut self, peer: PeerId, id: ConnectionId, theirs: &str) {
        let remote = self.neighbours.connection(&peer, id).map(|connection| connection.remote.to_string());
        let theirs = shown(theirs, 100);
        let error = DialError::OtherNetwork { address: remote.unwrap_or_default(), theirs };
        self.neighbours.on_stranger(&peer, &error);
        self.dialer.on_refused(&peer, &error.to_string(), self.tick);
        self.bar(peer);
        self.refuse(error.to_string());
    }

    /// A member says that it reached us at this address. It is believed if we do listen there.
    fn on_reached(&mut self, address: Multiaddr) {
        if self.swarm.listeners().any(|own| *own == address) && self.may_announce(&address) {
            if !self.swarm.external_addresses().any(|known| *known == address) {
                self.swarm.add_external_address(address.clone());
            }
            self.on_confirmed(address);
        }
    }

    fn on_confirmed(&mut self, address: Multiaddr) {
        if !self.may_announce(&address) {
            self.swarm.remove_external_address(&address);
            return;
        }
        if self.confirmed.insert(address.clone()) {
            let members: Vec<_> = self.neighbours.members().collect();
            self.swarm.behaviour_mut().identify.push(members);
            self.tell(MeshEvent::AddressConfirmed(address.to_string()));
        }
    }

    fn may_announce(&self, address: &Multiaddr) -> bool {
        let barred = addresses::socket(address).is_some_and(|socket| self.never_announce.contains(&socket.ip()));
        !barred && addresses::announceable(address, self.swarm.listeners())
    }

    fn on_ping(&mut self, event: ping::Event) {
        match event.result {
            Ok(round_trip) => {
                let span = Span::from(round_trip);
                if let Some(peer) = self.neighbours.on_round_trip(&event.peer, span) {
                    self.tell(MeshEvent::RoundTrip { peer, span });
                }
            }
            Err(error) => {
                tracing::debug!(peer = %event.peer, %error, "a connection is dead");
                self.swarm.close_connection(event.connection);
            }
        }
    }

    fn on_gossip(&mut self, from: PeerId, id: &gossipsub::MessageId, data: &[u8]) {
        let acceptance = match self.judge.judge(from, data, self.network) {
            Verdict::Good(message) => {
                if let Some(from) = identity::peer_key(&from) {
                    self.tell(MeshEvent::Gossip { from, message: *message });
                }
                gossipsub::MessageAcceptance::Accept
            }
            Verdict::Drop(acceptance) => acceptance,
        };
        self.swarm.behaviour_mut().gossip.report_message_validation_result(id, &from, acceptance);
    }

    /// The DHT names peers. A hint: their addresses are tried.
    fn on_found(&mut self, found: Vec<kad::PeerInfo>) {
        let local = *self.swarm.local_peer_id();
        for info in found.into_iter().filter(|info| info.peer_id != local) {
            let usable: Vec<_> =
                info.addrs.into_iter().take(MAX_CLAIMED).filter(|address| self.may_announce(address)).collect();
            self.dialer.learn(info.peer_id, usable.into_iter().map(|address| addresses::split_peer(address).0));
        }
        self.dial_due();
    }

    /// Somebody on this LAN answered; of which network they are shows when they are connected.
    fn on_discovered(&mut self, found: Vec<(PeerId, Multiaddr)>) {
        let local = *self.swarm.local_peer_id();
        for (peer, address) in found.into_iter().filter(|(peer, _)| *peer != local) {
            if self.swarm.behaviour().substreams.barred(&peer).is_none() {
                self.dialer.learn(peer, [addresses::split_peer(address).0]);
            }
        }
        self.dial_due();
    }
}
