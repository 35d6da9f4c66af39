//! What the mesh is told at its start.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use zeroize::Zeroizing;

use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::mesh::fetch::BlobSource;

/// The port on which peers listen unless told otherwise, over UDP and TCP.
pub const DEFAULT_PORT: u16 = 2744;

/// Everything that the mesh needs to know.
pub struct MeshConfig {
    /// This peer's ed25519 secret.
    pub secret: Zeroizing<[u8; 32]>,
    /// The network; part of every protocol name and topic.
    pub network: NetworkId,
    /// The pre-shared key of a private network, which then runs over TCP alone.
    pub private_key: Option<Zeroizing<[u8; 32]>>,
    /// Where to listen, as multiaddrs; see [`default_listen`].
    pub listen: Vec<String>,
    /// Addresses at which this peer says it can be reached.
    pub announce: Vec<String>,
    /// Addresses of this machine that others are never told, such as those of bridges to containers.
    pub never_announce: BTreeSet<IpAddr>,
    /// Peers to join through: multiaddrs with or without `/p2p/…`, or `host:port`.
    pub join: Vec<String>,
    /// Whether peers on the local network are looked for.
    pub mdns: Mdns,
    /// What kind of network this is.
    pub reach: Reach,
    /// Connections opened by others that are kept at once, and as many opened by this peer.
    pub max_connections: u32,
    /// If set, nobody else is connected to.
    pub allow: Option<BTreeSet<PeerKey>>,
    /// Name and version of the software, told to other peers.
    pub software: String,
    /// What is served to peers that fetch by hash.
    pub blobs: Arc<dyn BlobSource>,
    /// Bytes a second of it at most, if limited.
    pub upload_limit: Option<u64>,
}

impl fmt::Debug for MeshConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshConfig")
            .field("network", &self.network)
            .field("private", &self.private_key.is_some())
            .field("listen", &self.listen)
            .field("announce", &self.announce)
            .field("join", &self.join)
            .field("mdns", &self.mdns)
            .field("reach", &self.reach)
            .field("max_connections", &self.max_connections)
            .field("allow", &self.allow)
            .field("software", &self.software)
            .field("upload_limit", &self.upload_limit)
            .finish_non_exhaustive()
    }
}

/// Whether peers on the local network are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mdns {
    /// Multicast on every interface.
    On,
    /// Nothing is sent.
    Off,
}

/// What kind of network this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// A private network or one of this LAN: every peer serves the DHT, no relay or public address is sought.
    Local,
    /// An open one over the internet: a peer serves the DHT once an address of its own is confirmed.
    Open,
}

/// The addresses to listen on when none are given: IPv4 and IPv6, QUIC and TCP; a private network has no QUIC.
pub fn default_listen(port: u16, transports: Transports) -> Vec<String> {
    let mut addresses = vec![format!("/ip4/0.0.0.0/tcp/{port}"), format!("/ip6/::/tcp/{port}")];
    if transports == Transports::QuicAndTcp {
        addresses.push(format!("/ip4/0.0.0.0/udp/{port}/quic-v1"));
        addresses.push(format!("/ip6/::/udp/{port}/quic-v1"));
    }
    addresses
}

/// Which transports a network runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transports {
    /// QUIC, and TCP where UDP does not pass.
    QuicAndTcp,
    /// TCP alone, as a pre-shared key needs it.
    TcpOnly,
}
