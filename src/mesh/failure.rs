//! Turns libp2p's connection failures into ours.

use std::io;

use libp2p::Multiaddr;
use libp2p::TransportError;
use libp2p::dns;
use libp2p::quic;
use libp2p::swarm;

use crate::mesh::error::DialError;
use crate::mesh::status::shown;
use crate::mesh::substreams::Barred;
use crate::mesh::swarm::causes;
use crate::mesh::swarm::has_kind;

/// The longest reason that is kept of what a transport says.
const MAX_REASON: usize = 160;

/// Kinds of I/O error that say the other side was never spoken to.
const UNREACHABLE: [io::ErrorKind; 7] = [
    io::ErrorKind::ConnectionRefused,
    io::ErrorKind::TimedOut,
    io::ErrorKind::HostUnreachable,
    io::ErrorKind::NetworkUnreachable,
    io::ErrorKind::NetworkDown,
    io::ErrorKind::AddrNotAvailable,
    io::ErrorKind::PermissionDenied,
];

/// Why a dial failed, in a word of ours.
pub(super) fn dial_error(error: swarm::DialError, private: bool) -> DialError {
    match error {
        swarm::DialError::LocalPeerId { address } => DialError::OwnIdentity { address: address.to_string() },
        swarm::DialError::WrongPeerId { obtained, address } => {
            DialError::WrongPeer { address: address.to_string(), got: obtained.to_string() }
        }
        swarm::DialError::Denied { cause } => {
            let reason = cause.downcast_ref::<Barred>().map_or_else(|| last_word(&cause), Barred::to_string);
            DialError::Refused { reason }
        }
        swarm::DialError::Transport(attempts) => transport_error(&attempts, private),
        swarm::DialError::NoAddresses => {
            DialError::Unreachable { address: "the peer".to_owned(), reason: "no address of it is known".to_owned() }
        }
        swarm::DialError::DialPeerConditionFalse(_) | swarm::DialError::Aborted => {
            DialError::Refused { reason: "the attempt was given up".to_owned() }
        }
    }
}

/// Of several attempts, the one that got furthest says most.
fn transport_error(attempts: &[(Multiaddr, TransportError<io::Error>)], private: bool) -> DialError {
    let Some((address, error)) = attempts.iter().max_by_key(|(_, error)| progress(error)) else {
        return DialError::Unreachable { address: "the peer".to_owned(), reason: "nothing was tried".to_owned() };
    };
    let address = address.to_string();
    match (progress(error), error) {
        (_, TransportError::MultiaddrNotSupported(_)) => {
            let reason = if private { "a private network runs over TCP alone" } else { "no transport reaches it" };
            DialError::BadAddress { address, reason: reason.to_owned() }
        }
        (Progress::Met, TransportError::Other(error)) => {
            DialError::Handshake { address, reason: last_word(error), private }
        }
        (_, TransportError::Other(error)) => DialError::Unreachable { address, reason: last_word(error) },
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    Unusable,
    Unreachable,
    Met,
}

fn progress(error: &TransportError<io::Error>) -> Progress {
    match error {
        TransportError::MultiaddrNotSupported(_) => Progress::Unusable,
        TransportError::Other(error)
            if has_kind(error, &UNREACHABLE) || is_quic_silence(error) || is_unresolved(error) =>
        {
            Progress::Unreachable
        }
        TransportError::Other(_) => Progress::Met,
    }
}

/// Over UDP nobody says that nobody is there.
fn is_quic_silence(error: &io::Error) -> bool {
    causes(error).any(|cause| matches!(cause.downcast_ref(), Some(quic::Error::HandshakeTimedOut)))
}

fn is_unresolved(error: &io::Error) -> bool {
    causes(error).any(|cause| matches!(cause.downcast_ref(), Some(dns::Error::<io::Error>::ResolveError(_))))
}

/// What the innermost cause says.
pub(super) fn last_word(error: &(dyn std::error::Error + 'static)) -> String {
    causes(error).last().map(|cause| shown(&cause.to_string(), MAX_REASON)).unwrap_or_default()
}
