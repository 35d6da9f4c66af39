//! What goes wrong in the mesh, and whose fault it is.

use std::io;
use std::time::Duration;

use crate::ids::BlobHash;
use crate::ids::PeerKey;
use crate::wire::hello::VersionMismatch;

/// Who pays for a failure: routing retries the network, reputation charges the peer, the operator hears about us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The way between the peers; trying again or elsewhere may help.
    Network,
    /// The peer broke the protocol.
    Peer,
    /// This process.
    Local,
}

/// Why the mesh could not start.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// An address that cannot be read or used.
    #[error("cannot use the address \"{address}\": {reason}")]
    BadAddress {
        /// The text as given.
        address: String,
        /// Why not.
        reason: String,
    },
    /// Somebody else listens there.
    #[error("the port of {address} is in use by another program (or another peer)")]
    PortInUse {
        /// The address to listen on.
        address: String,
    },
    /// QUIC in a network with a pre-shared key.
    #[error("a private network runs over TCP alone, so it cannot listen on {address}")]
    QuicInPrivateNetwork {
        /// The address to listen on.
        address: String,
    },
    /// The operating system refused to listen.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address to listen on.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Nothing to listen on worked, or nothing was given.
    #[error("no address to listen on")]
    NoListener,
    /// A part of the network stack refused its configuration.
    #[error("cannot set up {part}: {reason}")]
    Setup {
        /// The part.
        part: &'static str,
        /// Why not.
        reason: String,
    },
}

impl MeshError {
    /// Starting concerns this machine alone.
    pub fn fault(&self) -> Fault {
        match self {
            Self::BadAddress { .. }
            | Self::PortInUse { .. }
            | Self::QuicInPrivateNetwork { .. }
            | Self::Listen { .. }
            | Self::NoListener
            | Self::Setup { .. } => Fault::Local,
        }
    }
}

/// Why a peer could not be connected to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The mesh has stopped.
    #[error("the mesh has stopped")]
    Stopped,
    /// An address that cannot be read.
    #[error("cannot use the address \"{address}\": {reason}")]
    BadAddress {
        /// The text as given.
        address: String,
        /// Why not.
        reason: String,
    },
    /// The key is not a point of the curve, so nobody can have it.
    #[error("{peer} is not an ed25519 public key")]
    NotAKey {
        /// The key.
        peer: PeerKey,
    },
    /// Nobody has said where the peer is.
    #[error("no address of peer {} is known", peer.short())]
    NoAddress {
        /// The peer.
        peer: PeerKey,
    },
    /// The address leads to this very process, or to another with this peer's identity.
    #[error("{address} leads to a peer with this peer's own identity")]
    OwnIdentity {
        /// The address.
        address: String,
    },
    /// Another peer answered than the one expected.
    #[error("expected another peer at {address}, got {got}")]
    WrongPeer {
        /// The address.
        address: String,
        /// Who answered, as text.
        got: String,
    },
    /// The peer there belongs to another network, or speaks another major version.
    #[error("the peer at {address} belongs to another network or protocol version: it speaks {theirs}")]
    OtherNetwork {
        /// The address.
        address: String,
        /// What it says it speaks: `/brigade/<network>/<major>`.
        theirs: String,
    },
    /// The peer is known to be of another network, is not on the allow-list, or there are too many connections.
    #[error("refused to connect: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The peers could not agree on a secure connection; in a private network the sign of another key.
    #[error("the handshake with {address} failed: {reason}{}", if *.private { "; it may have another network key" } else { "" })]
    Handshake {
        /// The address.
        address: String,
        /// What the transport says.
        reason: String,
        /// Whether this network has a pre-shared key.
        private: bool,
    },
    /// No connection.
    #[error("cannot reach {address}: {reason}")]
    Unreachable {
        /// The address.
        address: String,
        /// What the transport says.
        reason: String,
    },
    /// Too many callers wait for this peer.
    #[error("too many streams wait for a connection to peer {}", peer.short())]
    TooManyWaiting {
        /// The peer.
        peer: PeerKey,
    },
    /// Nothing came in time.
    #[error("no connection within {} s", limit.as_secs())]
    TimedOut {
        /// How long was waited.
        limit: Duration,
    },
}

impl DialError {
    /// Who pays for this failure.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Stopped
            | Self::BadAddress { .. }
            | Self::OwnIdentity { .. }
            | Self::Refused { .. }
            | Self::TooManyWaiting { .. } => Fault::Local,
            Self::NotAKey { .. } => Fault::Peer,
            Self::NoAddress { .. }
            | Self::WrongPeer { .. }
            | Self::OtherNetwork { .. }
            | Self::Handshake { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. } => Fault::Network,
        }
    }
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The peer does not speak the protocol in this network.
    #[error("peer {} does not speak {protocol}", peer.short())]
    Unsupported {
        /// The peer.
        peer: PeerKey,
        /// The protocol's name.
        protocol: String,
    },
    /// The peers have no version in common.
    #[error("peer {} and this one cannot speak {protocol}: {source}", peer.short())]
    NoCommonVersion {
        /// The protocol's name.
        protocol: String,
        /// The peer.
        peer: PeerKey,
        /// What each of them speaks.
        source: VersionMismatch,
    },
    /// The peer said nothing in time.
    #[error("peer {} did not answer within {} s", peer.short(), limit.as_secs())]
    Silent {
        /// The peer.
        peer: PeerKey,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection was lost while the stream was opened.
    #[error("the connection to peer {} was lost", peer.short())]
    Lost {
        /// The peer.
        peer: PeerKey,
    },
    /// The first messages failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl OpenError {
    /// Who pays for this failure.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Dial(error) => error.fault(),
            Self::Unsupported { .. } | Self::NoCommonVersion { .. } => Fault::Peer,
            Self::Silent { .. } | Self::Lost { .. } => Fault::Network,
            Self::Stream(error) => error.fault(),
        }
    }
}

/// Why a stream ended badly.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The stream closed in the middle of a message.
    #[error("the stream closed in the middle of a {what}")]
    Cut {
        /// The kind of message.
        what: &'static str,
    },
    /// The announced length exceeds the limit. Nothing was allocated for it.
    #[error("expected a {what} of at most {limit} bytes, got one of {got}")]
    TooLarge {
        /// The kind of message.
        what: &'static str,
        /// The limit.
        limit: usize,
        /// The announced length.
        got: u64,
    },
    /// The bytes are no message of the kind.
    #[error("a {what} is malformed: {reason}")]
    Malformed {
        /// The kind of message.
        what: &'static str,
        /// What the decoder says.
        reason: String,
    },
    /// The stream was reset or its connection lost.
    #[error("the stream of a {what} failed")]
    Io {
        /// The kind of message.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An earlier message was only partly written, so nothing can follow it.
    #[error("an earlier {what} was not written to its end")]
    Broken {
        /// The kind of message.
        what: &'static str,
    },
}

impl StreamError {
    /// Who pays for this failure.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Cut { .. } | Self::Io { .. } => Fault::Network,
            Self::TooLarge { .. } | Self::Malformed { .. } => Fault::Peer,
            Self::Broken { .. } => Fault::Local,
        }
    }
}

/// Why a blob could not be fetched from a peer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No stream.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The stream failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The peer does not have it.
    #[error("peer {} does not have {}", peer.short(), blob.short())]
    NotFound {
        /// The peer.
        peer: PeerKey,
        /// The blob.
        blob: BlobHash,
    },
    /// The peer serves as many as it will at the moment.
    #[error("peer {} is busy", peer.short())]
    Busy {
        /// The peer.
        peer: PeerKey,
    },
    /// The blob is larger than the caller wants.
    #[error("expected a blob of at most {limit} bytes, got one of {got}")]
    TooLarge {
        /// The limit.
        limit: u64,
        /// The length that the peer names.
        got: u64,
    },
    /// The peer answered something that does not fit what was asked.
    #[error("peer {} sent a piece that does not fit: {reason}", peer.short())]
    BadPiece {
        /// The peer.
        peer: PeerKey,
        /// What does not fit.
        reason: &'static str,
    },
    /// The bytes are not the blob that was asked for.
    #[error("expected the blob {expected}, got {got}")]
    WrongHash {
        /// The hash asked for.
        expected: BlobHash,
        /// The hash of what came.
        got: BlobHash,
    },
    /// Too slow.
    #[error("peer {} sent nothing for {} s", peer.short(), limit.as_secs())]
    Silent {
        /// The peer.
        peer: PeerKey,
        /// How long was waited.
        limit: Duration,
    },
}

impl FetchError {
    /// Who pays for this failure.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Open(error) => error.fault(),
            Self::Stream(error) => error.fault(),
            Self::NotFound { .. } | Self::Busy { .. } | Self::Silent { .. } => Fault::Network,
            Self::TooLarge { .. } | Self::BadPiece { .. } | Self::WrongHash { .. } => Fault::Peer,
        }
    }
}

/// Why a message was not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The mesh has stopped.
    #[error("the mesh has stopped")]
    Stopped,
    /// Over the limit of gossip.
    #[error("expected at most {limit} bytes of gossip, got {got}")]
    TooLarge {
        /// The limit.
        limit: usize,
        /// The length.
        got: usize,
    },
    /// Every neighbour's queue is full.
    #[error("every neighbour's queue is full")]
    QueuesFull,
}

impl PublishError {
    /// Who pays for this failure.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Stopped | Self::TooLarge { .. } => Fault::Local,
            Self::QueuesFull => Fault::Network,
        }
    }
}
