//! What the mesh says of itself to its user.

use std::fmt;

use libp2p::Multiaddr;

use crate::amounts::Span;
use crate::ids::PeerKey;
use crate::mesh::addresses;
use crate::mesh::addresses::Scope;

/// A look at the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshStatus {
    /// This peer.
    pub peer: PeerKey,
    /// The same in libp2p's form, as it stands in multiaddrs after `/p2p/`.
    pub peer_id: String,
    /// Where this peer listens.
    pub listening: Vec<String>,
    /// Addresses at which another peer reached this one.
    pub confirmed: Vec<String>,
    /// Addresses that others are told: the confirmed ones and those given by the user.
    pub announced: Vec<String>,
    /// Who is connected.
    pub neighbours: Vec<Neighbour>,
    /// What came of each join address.
    pub joins: Vec<JoinStatus>,
    /// From where others can reach this peer.
    pub reachability: Reachability,
    /// The last connections that were refused or failed, each with its reason, oldest first.
    pub refusals: Vec<String>,
}

/// A connected peer of this network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Who.
    pub peer: PeerKey,
    /// The remote address of the connection.
    pub address: String,
    /// Who dialled.
    pub direction: Direction,
    /// The last round trip measured.
    pub round_trip: Option<Span>,
    /// What it says it runs, at most 64 bytes of printable text.
    pub software: String,
}

/// Who dialled a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The other peer.
    Inbound,
    /// This peer.
    Outbound,
}

/// What came of a join address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinStatus {
    /// The address.
    pub address: String,
    /// What came of it, for people.
    pub state: String,
}

/// From where others can reach this peer, and if from nowhere, why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reachability {
    /// Anybody can: a global address is confirmed or was given.
    Global,
    /// Peers of this site can.
    Site,
    /// Only peers on this machine can, because it listens on loopback alone.
    LoopbackOnly,
    /// It listens nowhere.
    NotListening,
    /// Nobody is connected who could confirm an address.
    NobodyToAsk,
    /// Neighbours could not, or not yet, reach any address of this peer: a router or firewall is in between.
    Unconfirmed,
}

impl fmt::Display for Reachability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Global => "reachable from anywhere",
            Self::Site => "reachable from this local network",
            Self::LoopbackOnly => "reachable on this machine only: it listens on loopback alone",
            Self::NotListening => "not reachable: it listens nowhere",
            Self::NobodyToAsk => "unknown: nobody is connected who could confirm an address",
            Self::Unconfirmed => {
                "not reachable as far as known: no neighbour has reached an address of this peer; open the port or give --announce"
            }
        })
    }
}

/// Judges from what is listened on, what is announced, and whether anybody is connected.
pub(super) fn reachability(listening: &[Multiaddr], announced: &[Multiaddr], neighbours: usize) -> Reachability {
    if listening.is_empty() {
        return Reachability::NotListening;
    }
    match announced.iter().map(addresses::scope).max() {
        Some(Scope::Global) => Reachability::Global,
        Some(Scope::Site) => Reachability::Site,
        _ if listening.iter().all(|address| addresses::scope(address) == Scope::Loopback) => Reachability::LoopbackOnly,
        _ if neighbours == 0 => Reachability::NobodyToAsk,
        _ => Reachability::Unconfirmed,
    }
}

/// A text from another peer, cut and made safe to show.
pub(super) fn shown(text: &str, limit: usize) -> String {
    text.chars().filter(|character| character.is_ascii_graphic() || *character == ' ').take(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_says_from_where_this_peer_can_be_reached() {
        let address = |text: &str| text.parse::<Multiaddr>().unwrap();
        let (here, site) = (address("/ip4/127.0.0.1/tcp/1"), address("/ip4/10.0.0.2/tcp/1"));

        assert_eq!(reachability(&[], &[], 0), Reachability::NotListening);
        assert_eq!(reachability(std::slice::from_ref(&here), &[], 3), Reachability::LoopbackOnly);
        assert_eq!(reachability(&[here.clone(), site.clone()], &[], 0), Reachability::NobodyToAsk);
        assert_eq!(reachability(&[here.clone(), site.clone()], &[], 1), Reachability::Unconfirmed);
        assert_eq!(reachability(&[here.clone(), site.clone()], std::slice::from_ref(&site), 1), Reachability::Site);
        assert_eq!(reachability(&[here, site], &[address("/dns4/a.example/tcp/1")], 1), Reachability::Global);
    }

    #[test]
    fn what_others_say_is_cut_and_harmless() {
        assert_eq!(shown("brigade 0.1\u{1b}[31m\n", 64), "brigade 0.1[31m");
        assert_eq!(shown("aaaa", 2), "aa");
    }
}
