//! The mesh: libp2p behind a typed handle. One task owns the Swarm; everybody else holds a [`Mesh`].
//!
//! ```text
//!                commands (bounded)                     libp2p
//!   Mesh ─────────────────────────────▶ task ◀────────▶ Swarm ◀──▶ other peers
//!                                        │ events (bounded; gossip is dropped before the rest waits)
//!   daemon ◀─────────────────────────────┤
//!                typed streams           │
//!   daemon ◀───────── acceptor ◀─────────┘ incoming streams (bounded, and per peer)
//! ```
//!
//! Architecture invariant: libp2p's types never leave this module. A peer is its [`PeerKey`], an address is text.
//!
//! Architecture invariant: whatever a peer sends, it costs that peer its own stream, connection or place, and nobody
//! else anything. Every queue here is bounded, and the swarm is not polled while the node is behind.

mod acceptor;
mod addresses;
mod behaviour;
mod config;
mod dialer;
mod error;
mod failure;
mod fetch;
mod framing;
mod gossip;
mod handle;
mod hop;
mod identity;
mod lookups;
mod neighbours;
mod network_events;
mod status;
mod streams;
mod substreams;
mod swarm;
mod task;
#[cfg(test)]
mod tests;

pub use config::DEFAULT_PORT;
pub use config::Mdns;
pub use config::MeshConfig;
pub use config::Reach;
pub use config::Transports;
pub use config::default_listen;
pub use error::DialError;
pub use error::Fault;
pub use error::FetchError;
pub use error::MeshError;
pub use error::OpenError;
pub use error::PublishError;
pub use error::StreamError;
pub use fetch::BlobPiece;
pub use fetch::BlobSource;
pub use fetch::FetchClient;
pub use fetch::NoBlobs;
pub use gossip::Topic;
pub use handle::Mesh;
pub use handle::start;
pub use hop::HopReader;
pub use hop::HopWriter;
pub use status::Direction;
pub use status::JoinStatus;
pub use status::MeshStatus;
pub use status::Neighbour;
pub use status::Reachability;
pub use streams::MessageReader;
pub use streams::MessageWriter;

use crate::amounts::Span;
use crate::ids::PeerKey;
use crate::wire::control::FromStage;
use crate::wire::control::ToStage;
use crate::wire::gossip::Gossip;
use crate::wire::hop::HopBack;
use crate::wire::hop::HopOpen;

/// What happens in the mesh.
#[derive(Debug)]
pub enum MeshEvent {
    /// A peer of this network is connected.
    PeerUp(PeerKey),
    /// The last connection to a peer is gone.
    PeerDown(PeerKey),
    /// A round trip to a neighbour was measured.
    RoundTrip {
        /// The neighbour.
        peer: PeerKey,
        /// The round trip.
        span: Span,
    },
    /// A record whose signature holds.
    Gossip {
        /// The neighbour that passed it on, which need not be its author.
        from: PeerKey,
        /// The record.
        message: Gossip,
    },
    /// A requester opened a control stream.
    Control(ControlServer),
    /// An upstream stage opened a hop.
    Hop(HopServer),
    /// This peer listens on another address.
    Listening(String),
    /// Another peer reached this one at an address.
    AddressConfirmed(String),
    /// A connection failed or was refused for a reason that the user may want to know.
    Refused(String),
}

/// The stage's side of a control stream.
#[derive(Debug)]
pub struct ControlServer {
    /// The requester.
    pub peer: PeerKey,
    /// What the requester says.
    pub reader: MessageReader<ToStage>,
    /// What the stage says.
    pub writer: MessageWriter<FromStage>,
}

/// The requester's side of a control stream.
#[derive(Debug)]
pub struct ControlClient {
    /// The stage's peer.
    pub peer: PeerKey,
    /// What the stage says.
    pub reader: MessageReader<FromStage>,
    /// What the requester says.
    pub writer: MessageWriter<ToStage>,
}

/// The downstream side of a hop.
#[derive(Debug)]
pub struct HopServer {
    /// The upstream peer.
    pub peer: PeerKey,
    /// Which hop it is.
    pub open: HopOpen,
    /// Frames and tokens.
    pub reader: HopReader,
    /// Acknowledgements.
    pub writer: MessageWriter<HopBack>,
}

/// The upstream side of a hop.
#[derive(Debug)]
pub struct HopClient {
    /// The downstream peer.
    pub peer: PeerKey,
    /// Acknowledgements.
    pub reader: MessageReader<HopBack>,
    /// Frames and tokens.
    pub writer: HopWriter,
}
