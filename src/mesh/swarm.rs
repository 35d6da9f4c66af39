//! Builds the Swarm: transports, behaviours, listeners.

use std::error::Error;
use std::io;
use std::net::TcpListener;
use std::net::UdpSocket;
use std::time::Duration;

use libp2p::Multiaddr;
use libp2p::PeerId;
use libp2p::Swarm;
use libp2p::Transport;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::core::transport::timeout::TransportTimeout;
use libp2p::core::transport::timeout::TransportTimeoutError;
use libp2p::core::upgrade::Version;
use libp2p::dns;
use libp2p::identity::Keypair;
use libp2p::noise;
use libp2p::pnet::PnetConfig;
use libp2p::pnet::PreSharedKey;
use libp2p::quic;
use libp2p::relay;
use libp2p::swarm;
use libp2p::tcp;
use libp2p::yamux;
use tokio::sync::mpsc;

use crate::mesh::addresses;
use crate::mesh::behaviour::Behaviour;
use crate::mesh::behaviour::Parts;
use crate::mesh::config::MeshConfig;
use crate::mesh::config::Reach;
use crate::mesh::error::MeshError;
use crate::mesh::substreams::Incoming;

/// How long a TCP connection may take before its handshake begins.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long a connection may take, its handshake included.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// A killed peer is noticed over QUIC when nothing came for this long, so it is short: a reader waits for it.
const QUIC_IDLE_MILLIS: u32 = 4_500;

/// Several keep-alives may be lost before a connection is.
const QUIC_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Streams at once on one connection; our own allowance per peer is smaller, the rest is libp2p's.
const MAX_STREAMS: u16 = 1024;

/// Bytes in flight on one QUIC stream: one large frame.
const QUIC_STREAM_WINDOW: u32 = 16 << 20;

/// Bytes in flight on one QUIC connection.
const QUIC_CONNECTION_WINDOW: u32 = 64 << 20;

/// Connections that are not the chosen one to their peer, and on which nothing runs, end after this.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

type Muxed = Boxed<(PeerId, StreamMuxerBox)>;

/// Builds the Swarm of a peer; it does not listen yet.
pub(super) fn build(
    config: &MeshConfig,
    keypair: &Keypair,
    incoming: mpsc::Sender<Incoming>,
) -> Result<Swarm<Behaviour>, MeshError> {
    let local = keypair.public().to_peer_id();
    let (transport, relay) = transport(config, keypair)?;
    let behaviour = Behaviour::new(Parts {
        keypair,
        network: config.network,
        software: config.software.clone(),
        mdns: config.mdns,
        reach: config.reach,
        max_connections: config.max_connections,
        allow: config.allow.clone(),
        relay,
        incoming,
    })?;
    let settings = swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(IDLE_LIMIT)
        .with_max_negotiating_inbound_streams(usize::from(MAX_STREAMS));
    Ok(Swarm::new(transport, behaviour, local, settings))
}

/// Listens on every address of the configuration.
pub(super) fn listen(swarm: &mut Swarm<Behaviour>, config: &MeshConfig) -> Result<(), MeshError> {
    let addresses = config.listen.iter().map(|text| parse_listen(text, config)).collect::<Result<Vec<_>, _>>()?;
    // All are tried before any is taken, since a wildcard of IPv6 may overlap one of IPv4.
    addresses.iter().try_for_each(probe)?;
    let mut listening = 0;
    for address in addresses {
        match swarm.listen_on(address.clone()) {
            Ok(_) => listening += 1,
            Err(error)
                if is_ip6(&address)
                    && has_kind(&error, &[io::ErrorKind::AddrNotAvailable, io::ErrorKind::Unsupported]) =>
            {
                tracing::info!(%address, "this machine has no IPv6");
            }
            Err(error) => return Err(listen_error(&address, error)),
        }
    }
    if listening == 0 { Err(MeshError::NoListener) } else { Ok(()) }
}

fn parse_listen(text: &str, config: &MeshConfig) -> Result<Multiaddr, MeshError> {
    let address =
        addresses::parse(text).map_err(|reason| MeshError::BadAddress { address: text.to_owned(), reason })?;
    if config.private_key.is_some() && addresses::is_quic(&address) {
        return Err(MeshError::QuicInPrivateNetwork { address: address.to_string() });
    }
    Ok(address)
}

/// libp2p shares a TCP port with whoever else shares it, so that two peers could end up on one. This finds out.
fn probe(address: &Multiaddr) -> Result<(), MeshError> {
    let Some(socket) = addresses::socket(address).filter(|socket| socket.port() != 0) else {
        return Ok(());
    };
    let tried = if addresses::is_quic(address) {
        UdpSocket::bind(socket).map(drop)
    } else {
        TcpListener::bind(socket).map(drop)
    };
    match tried {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(MeshError::PortInUse { address: address.to_string() })
        }
        // Whatever else is wrong, listening will say.
        _ => Ok(()),
    }
}

fn listen_error(address: &Multiaddr, error: libp2p::TransportError<io::Error>) -> MeshError {
    let text = address.to_string();
    if has_kind(&error, &[io::ErrorKind::AddrInUse]) {
        return MeshError::PortInUse { address: text };
    }
    match error {
        libp2p::TransportError::MultiaddrNotSupported(_) => {
            MeshError::BadAddress { address: text, reason: "no transport listens there".to_owned() }
        }
        libp2p::TransportError::Other(source) => MeshError::Listen { address: text, source },
    }
}

fn is_ip6(address: &Multiaddr) -> bool {
    matches!(address.iter().next(), Some(libp2p::multiaddr::Protocol::Ip6(_)))
}

/// Whether an I/O error of one of these kinds lies anywhere below `error`.
pub(super) fn has_kind(error: &(dyn Error + 'static), kinds: &[io::ErrorKind]) -> bool {
    causes(error).any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| kinds.contains(&error.kind())))
}

/// The error and everything below it. An I/O error that wraps another is no source of it, but holds it.
pub(super) fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| below(error))
}

fn below<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}

fn transport(config: &MeshConfig, keypair: &Keypair) -> Result<(Muxed, Option<relay::client::Behaviour>), MeshError> {
    let base = match dns::tokio::Transport::system(base(config, keypair)?) {
        Ok(transport) => transport.boxed(),
        Err(error) => {
            tracing::info!(%error, "no resolver is configured, so names cannot be dialled");
            base(config, keypair)?
        }
    };
    if config.reach == Reach::Local {
        return Ok((base, None));
    }
    let (relayed, behaviour) = relay::client::new(keypair.public().to_peer_id());
    let relayed = relayed
        .upgrade(Version::V1Lazy)
        .authenticate(noise(keypair)?)
        .multiplex(yamux())
        .timeout(HANDSHAKE_LIMIT)
        .boxed();
    Ok((relayed.or_transport(base).map(|either, _| either.into_inner()).boxed(), Some(behaviour)))
}

/// QUIC and TCP; with a pre-shared key, TCP alone.
fn base(config: &MeshConfig, keypair: &Keypair) -> Result<Muxed, MeshError> {
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
    let tcp = TransportTimeout::new(tcp, CONNECT_LIMIT).map_err(connect_error);
    if let Some(key) = &config.private_key {
        let key = PreSharedKey::new(**key);
        let sealed = tcp.and_then(move |socket, _| PnetConfig::new(key).handshake(socket));
        return Ok(sealed
            .upgrade(Version::V1Lazy)
            .authenticate(noise(keypair)?)
            .multiplex(yamux())
            .timeout(HANDSHAKE_LIMIT)
            .boxed());
    }
    let tcp =
        tcp.upgrade(Version::V1Lazy).authenticate(noise(keypair)?).multiplex(yamux()).timeout(HANDSHAKE_LIMIT).boxed();
    let mut settings = quic::Config::new(keypair);
    settings.max_idle_timeout = QUIC_IDLE_MILLIS;
    settings.keep_alive_interval = QUIC_KEEP_ALIVE;
    settings.max_concurrent_stream_limit = u32::from(MAX_STREAMS);
    settings.max_stream_data = QUIC_STREAM_WINDOW;
    settings.max_connection_data = QUIC_CONNECTION_WINDOW;
    let quic = quic::tokio::Transport::new(settings).map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    Ok(quic.or_transport(tcp).map(|either, _| either.into_inner()).boxed())
}

/// A host that does not answer is told from one that answers and then fails the handshake.
fn connect_error(error: TransportTimeoutError<io::Error>) -> io::Error {
    match error {
        TransportTimeoutError::Timeout => io::ErrorKind::TimedOut.into(),
        TransportTimeoutError::TimerError(error) | TransportTimeoutError::Other(error) => error,
    }
}

fn noise(keypair: &Keypair) -> Result<noise::Config, MeshError> {
    noise::Config::new(keypair).map_err(|error| MeshError::Setup { part: "encryption", reason: error.to_string() })
}

/// Windows start at 256 KiB and grow with the bandwidth-delay product, up to 1 GiB per connection.
fn yamux() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(usize::from(MAX_STREAMS));
    config
}
