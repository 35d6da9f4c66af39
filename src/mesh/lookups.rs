//! Finding a peer that streams wait for: where it was, or where the DHT says that it is.

use std::collections::BTreeSet;

use libp2p::Multiaddr;
use libp2p::PeerId;
use libp2p::kad::QueryId;
use libp2p::swarm;
use libp2p::swarm::dial_opts::PeerCondition;

use crate::mesh::addresses;
use crate::mesh::error::DialError;
use crate::mesh::failure::dial_error;
use crate::mesh::identity;
use crate::mesh::task::Task;

/// Walks through the DHT for the addresses of one peer, a tick apart: its neighbours may only just have met it.
const MAX_WALKS: u32 = 4;

/// A walk through the DHT for the addresses of a peer that streams wait for.
pub(super) struct Lookup {
    query: QueryId,
    peer: PeerId,
    /// The addresses that were known when it began: they were dialled.
    known: Vec<Multiaddr>,
}

impl Task {
    /// A peer could not be reached by any address.
    pub(super) fn on_dial_failed(&mut self, peer: PeerId, error: swarm::DialError) {
        self.dialer.on_failed(&peer, self.tick);
        let unknown = matches!(error, swarm::DialError::NoAddresses);
        self.drop_addresses(peer, failed_addresses(&error));
        // Whoever came back listens elsewhere than before, and its neighbours may know where.
        if self.waiting.contains_key(&peer) && self.look_up(peer) {
            return;
        }
        let error = match identity::peer_key(&peer) {
            Some(peer) if unknown => DialError::NoAddress { peer },
            _ => dial_error(error, self.private),
        };
        tracing::debug!(%peer, %error, "could not connect");
        self.fail_waiting(peer, &error);
    }

    /// Nobody was met at these addresses of a peer: the DHT is not to name it there, least of all to this peer's own
    /// walks, which would begin there and then pass over the peer.
    pub(super) fn drop_addresses(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let failed: BTreeSet<_> = addresses.into_iter().map(|address| addresses::split_peer(address).0).collect();
        failed.iter().for_each(|address| self.dialer.on_address_failed(&peer, address));
        let left: BTreeSet<_> = self.placed_in_dht(&peer).difference(&failed).cloned().collect();
        self.place_in_dht(&peer, &left);
    }

    /// Names a peer in the DHT at these addresses, and at no others. None takes it out.
    pub(super) fn place_in_dht(&mut self, peer: &PeerId, addresses: &BTreeSet<Multiaddr>) {
        if self.placed_in_dht(peer) == *addresses {
            return;
        }
        let kad = &mut self.swarm.behaviour_mut().kad;
        // One by one they could not all be taken out: kad keeps the dialled address twice, with the peer and without.
        kad.remove_peer(peer);
        for address in addresses {
            kad.add_address(peer, address.clone());
        }
    }

    fn placed_in_dht(&mut self, peer: &PeerId) -> BTreeSet<Multiaddr> {
        let mut placed = BTreeSet::new();
        if let Some(bucket) = self.swarm.behaviour_mut().kad.kbucket(*peer) {
            let entries = bucket.iter().filter(|entry| entry.node.key.preimage() == peer);
            for entry in entries {
                placed.extend(entry.node.value.iter().map(|address| addresses::split_peer(address.clone()).0));
            }
        }
        placed
    }

    /// Asks the DHT for the addresses of a peer that streams wait for. False if there is nobody to ask, or it was
    /// asked often enough.
    fn look_up(&mut self, peer: PeerId) -> bool {
        if self.neighbours.members().next().is_none() {
            return false;
        }
        if self.lookups.iter().any(|lookup| lookup.peer == peer) {
            return true;
        }
        let walks = self.walks.entry(peer).or_default();
        // Of a peer that was somewhere, the first walk finds the new place or none does: the caller decides what then.
        let enough = if self.dialer.addresses(&peer).is_empty() { MAX_WALKS } else { 1 };
        if *walks >= enough {
            return false;
        }
        *walks += 1;
        let query = self.swarm.behaviour_mut().kad.get_closest_peers(peer);
        self.lookups.push(Lookup { query, peer, known: self.dialer.addresses(&peer) });
        true
    }

    /// A walk through the DHT has ended. What it found is known to the dialer.
    pub(super) fn on_looked_up(&mut self, query: QueryId) {
        let Some(index) = self.lookups.iter().position(|lookup| lookup.query == query) else { return };
        let Lookup { peer, known, .. } = self.lookups.swap_remove(index);
        if !self.waiting.contains_key(&peer) {
            return;
        }
        let fresh = self.dialer.fresh(&peer);
        let found: Vec<_> = fresh.iter().filter(|address| !known.contains(address)).cloned().collect();
        let walks = self.walks.get(&peer).copied().unwrap_or_default();
        if !found.is_empty() {
            // A dial to where the peer was may still be under way.
            self.dial_peer(peer, found, PeerCondition::Disconnected);
        } else if fresh.is_empty() {
            match (self.dialer.addresses(&peer).first(), identity::peer_key(&peer)) {
                (Some(address), _) => {
                    let (address, reason) = (address.to_string(), "nobody knows of another address".to_owned());
                    self.fail_waiting(peer, &DialError::Unreachable { address, reason });
                }
                (None, Some(key)) if walks >= MAX_WALKS => {
                    self.fail_waiting(peer, &DialError::NoAddress { peer: key });
                }
                (None, _) => {}
            }
        }
    }

    /// Asks the DHT also for the peers that streams wait for and the DHT did not know of, and for those that do not
    /// answer where they were: it may take long until such a dial fails.
    pub(super) fn walk_again(&mut self) {
        self.waiting.retain(|_, callers| {
            callers.retain(|(_, reply)| !reply.is_closed());
            !callers.is_empty()
        });
        self.walks.retain(|peer, _| self.waiting.contains_key(peer));
        for peer in self.waiting.keys().copied().collect::<Vec<_>>() {
            self.look_up(peer);
            let fresh = self.dialer.fresh(&peer);
            if !fresh.is_empty() {
                self.dial_peer(peer, fresh, PeerCondition::DisconnectedAndNotDialing);
            }
        }
    }

    fn fail_waiting(&mut self, peer: PeerId, error: &DialError) {
        self.walks.remove(&peer);
        for (_, reply) in self.waiting.remove(&peer).unwrap_or_default() {
            // A caller that has gone away needs no answer.
            let _ = reply.send(Err(error.clone().into()));
        }
    }
}

/// The addresses at which nobody was met, or somebody else.
fn failed_addresses(error: &swarm::DialError) -> Vec<Multiaddr> {
    match error {
        swarm::DialError::Transport(attempts) => attempts.iter().map(|(address, _)| address.clone()).collect(),
        swarm::DialError::WrongPeerId { address, .. } => vec![address.clone()],
        swarm::DialError::LocalPeerId { .. }
        | swarm::DialError::NoAddresses
        | swarm::DialError::DialPeerConditionFalse(_)
        | swarm::DialError::Aborted
        | swarm::DialError::Denied { .. } => Vec::new(),
    }
}
