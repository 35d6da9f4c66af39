//! The libp2p behaviours that make up a peer, and their settings.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use libp2p::PeerId;
use libp2p::StreamProtocol;
use libp2p::autonat::v2 as autonat;
use libp2p::connection_limits;
use libp2p::connection_limits::ConnectionLimits;
use libp2p::dcutr;
use libp2p::identify;
use libp2p::identity::Keypair;
use libp2p::kad;
use libp2p::kad::store::MemoryStore;
use libp2p::kad::store::MemoryStoreConfig;
use libp2p::mdns;
use libp2p::ping;
use libp2p::relay;
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::sync::mpsc;

use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::mesh::config::Mdns;
use crate::mesh::config::Reach;
use crate::mesh::error::MeshError;
use crate::mesh::gossip;
use crate::mesh::streams::Protocol;
use crate::mesh::streams::protocol_name;
use crate::mesh::substreams::Incoming;
use crate::mesh::substreams::Substreams;

/// How often each neighbour's round trip is measured.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// After this long without an answer a connection is dead. A peer that was killed is noticed at once over TCP, and
/// after QUIC's idle time over QUIC; this is for machines that vanish. A busy machine needs some patience.
const PING_LIMIT: Duration = Duration::from_secs(10);

/// How often addresses that wait for confirmation are put to a neighbour.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(500);

/// Connections per peer: one each way, a relayed one, and one that confirms an address.
const MAX_PER_PEER: u32 = 4;

/// Connections whose handshake is not done.
const MAX_PENDING: u32 = 64;

/// Keys that this peer keeps provider records of for others (arbitrary; a record takes about 200 bytes).
const MAX_PROVIDED_FOR_OTHERS: usize = 4096;

/// Everything a peer does on the wire.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) substreams: Substreams,
    limits: connection_limits::Behaviour,
    pub(super) identify: identify::Behaviour,
    ping: ping::Behaviour,
    pub(super) kad: kad::Behaviour<MemoryStore>,
    pub(super) gossip: gossip::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
    confirm: autonat::client::Behaviour<StdRng>,
    confirm_others: autonat::server::Behaviour<StdRng>,
    relay: Toggle<relay::client::Behaviour>,
    hole_punching: Toggle<dcutr::Behaviour>,
}

/// What the behaviours are made from.
pub(super) struct Parts<'a> {
    pub(super) keypair: &'a Keypair,
    pub(super) network: NetworkId,
    pub(super) software: String,
    pub(super) mdns: Mdns,
    pub(super) reach: Reach,
    pub(super) max_connections: u32,
    pub(super) allow: Option<BTreeSet<PeerKey>>,
    pub(super) relay: Option<relay::client::Behaviour>,
    pub(super) incoming: mpsc::Sender<Incoming>,
}

/// What identify says of our network and major version; peers that say something else are strangers.
pub(super) fn protocol_version(network: NetworkId) -> String {
    format!("/brigade/{network}/1")
}

/// The DHT's protocol name.
pub(super) fn kad_protocol(network: NetworkId) -> StreamProtocol {
    protocol_name(network, "kad")
}

impl Behaviour {
    pub(super) fn new(parts: Parts<'_>) -> Result<Self, MeshError> {
        let local = parts.keypair.public().to_peer_id();
        let protocols: Arc<[_]> = Protocol::ALL.map(|protocol| (protocol.name(parts.network), protocol)).into();
        let identify = identify::Config::new(protocol_version(parts.network), parts.keypair.public())
            .with_agent_version(parts.software)
            .with_hide_listen_addrs(true);
        let ping = ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_LIMIT);
        let confirm = autonat::client::Config::default().with_probe_interval(CONFIRM_INTERVAL);
        let hole_punching = parts.relay.as_ref().map(|_| dcutr::Behaviour::new(local));
        Ok(Self {
            substreams: Substreams::new(local, protocols, parts.allow, parts.incoming),
            limits: limits(parts.max_connections),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping),
            kad: kad(local, parts.network, parts.reach),
            gossip: gossip::behaviour(parts.network)?,
            mdns: mdns(local, parts.mdns).into(),
            confirm: autonat::client::Behaviour::new(random()?, confirm),
            confirm_others: autonat::server::Behaviour::new(random()?),
            relay: parts.relay.into(),
            hole_punching: hole_punching.into(),
        })
    }
}

/// Others cannot take the places that our own dials need.
fn limits(max_connections: u32) -> connection_limits::Behaviour {
    connection_limits::Behaviour::new(
        ConnectionLimits::default()
            .with_max_pending_incoming(Some(MAX_PENDING))
            .with_max_pending_outgoing(Some(MAX_PENDING))
            .with_max_established_incoming(Some(max_connections))
            .with_max_established_outgoing(Some(max_connections))
            .with_max_established_per_peer(Some(MAX_PER_PEER)),
    )
}

fn kad(local: PeerId, network: NetworkId, reach: Reach) -> kad::Behaviour<MemoryStore> {
    let mut config = kad::Config::new(kad_protocol(network));
    config.set_kbucket_inserts(kad::BucketInserts::Manual);
    config.set_query_timeout(Duration::from_secs(20));
    let store = MemoryStoreConfig {
        max_records: 0,
        max_value_bytes: 0,
        max_provided_keys: MAX_PROVIDED_FOR_OTHERS,
        ..MemoryStoreConfig::default()
    };
    let mut kad = kad::Behaviour::with_config(local, MemoryStore::with_config(local, store), config);
    if reach == Reach::Local {
        kad.set_mode(Some(kad::Mode::Server));
    }
    kad
}

/// A machine without multicast still makes a peer.
fn mdns(local: PeerId, wanted: Mdns) -> Option<mdns::tokio::Behaviour> {
    match wanted {
        Mdns::Off => None,
        Mdns::On => mdns::tokio::Behaviour::new(mdns::Config::default(), local)
            .inspect_err(|error| tracing::warn!(%error, "cannot look for peers on the local network"))
            .ok(),
    }
}

fn random() -> Result<StdRng, MeshError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)
        .map_err(|error| MeshError::Setup { part: "the random generator", reason: error.to_string() })?;
    Ok(StdRng::from_seed(seed))
}
