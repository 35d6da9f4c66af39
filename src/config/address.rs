//! Addresses of peers as people write them.

use std::net::IpAddr;

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;

use crate::config::NetworkKind;
use crate::config::P2P_PORT;

/// What is wrong with an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressFault {
    /// It is neither form.
    #[error("expected HOST:PORT or a multiaddress such as /ip4/192.0.2.7/tcp/{P2P_PORT}, got \"{got}\"")]
    Form {
        /// The text as given, cut to 120 characters.
        got: String,
    },
    /// A private network's key guards TCP alone.
    #[error("{address} is QUIC, which the key of a private network cannot guard: use TCP")]
    QuicInPrivate {
        /// The address.
        address: Multiaddr,
    },
}

/// Every address of the machine at `port`: IPv4 and IPv6, TCP and, in an open network, QUIC.
pub fn everywhere(port: u16, kind: NetworkKind) -> Vec<Multiaddr> {
    let unspecified = [Protocol::Ip4([0; 4].into()), Protocol::Ip6([0; 16].into())];
    unspecified.into_iter().flat_map(|host| at(host, port, kind)).collect()
}

/// Reads addresses; a `HOST:PORT` becomes one for each transport of the network.
///
/// # Errors
/// [`AddressFault`] with the first that is none or not of this kind of network.
pub fn parse_all(texts: &[String], kind: NetworkKind) -> Result<Vec<Multiaddr>, AddressFault> {
    let mut addresses = Vec::new();
    for text in texts {
        addresses.extend(parse(text.trim(), kind)?);
    }
    Ok(addresses)
}

/// Those of `addresses` that mean something to other machines: neither loopback nor link-local. Where there are none,
/// as on a network of one machine, all of them.
pub fn worth_telling(addresses: &[String]) -> Vec<&String> {
    let told: Vec<&String> = addresses.iter().filter(|address| !is_for_this_machine(address)).collect();
    if told.is_empty() { addresses.iter().collect() } else { told }
}

fn is_for_this_machine(address: &str) -> bool {
    let Ok(address) = address.parse::<Multiaddr>() else { return true };
    address.iter().any(|protocol| {
        matches!(protocol, Protocol::Ip4(ip) if ip.is_loopback() || ip.is_link_local())
            || matches!(protocol, Protocol::Ip6(ip) if ip.is_loopback() || ip.is_unicast_link_local())
    })
}

fn parse(text: &str, kind: NetworkKind) -> Result<Vec<Multiaddr>, AddressFault> {
    let bad = || AddressFault::Form { got: text.chars().take(120).collect() };
    if !text.starts_with('/') {
        let (host, port) = host_and_port(text).ok_or_else(bad)?;
        return Ok(at(host, port, kind));
    }
    let address: Multiaddr = text.parse().map_err(|_| bad())?;
    let mut protocols = address.iter();
    let is_quic = protocols.any(|protocol| matches!(protocol, Protocol::QuicV1 | Protocol::Quic));
    let is_tcp = address.iter().any(|protocol| matches!(protocol, Protocol::Tcp(_)));
    match (kind, is_quic, is_tcp) {
        (NetworkKind::Private, true, _) => Err(AddressFault::QuicInPrivate { address }),
        (_, false, false) => Err(bad()),
        _ => Ok(vec![address]),
    }
}

/// Reads `192.0.2.7:2744`, `[2001:db8::1]:2744`, `host.example:2744`, each also without its port.
fn host_and_port(text: &str) -> Option<(Protocol<'static>, u16)> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some((ip.into(), P2P_PORT));
    }
    if let Ok(socket) = text.parse::<std::net::SocketAddr>() {
        return Some((socket.ip().into(), socket.port()));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().ok()?),
        None => (text, P2P_PORT),
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.' || byte == b'_';
    let is_name = (1..=253).contains(&name.len()) && name.bytes().all(plain);
    is_name.then(|| (Protocol::Dns(name.to_owned().into()), port))
}

fn at(host: Protocol<'static>, port: u16, kind: NetworkKind) -> Vec<Multiaddr> {
    let tcp = Multiaddr::empty().with(host.clone()).with(Protocol::Tcp(port));
    let quic = Multiaddr::empty().with(host).with(Protocol::Udp(port)).with(Protocol::QuicV1);
    match kind {
        NetworkKind::Open => vec![quic, tcp],
        NetworkKind::Private => vec![tcp],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, kind: NetworkKind) -> Vec<String> {
        parse(text, kind).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_host_and_port_becomes_every_transport_of_the_network() {
        let open = parsed("192.0.2.7:99", NetworkKind::Open);

        assert_eq!(open, ["/ip4/192.0.2.7/udp/99/quic-v1", "/ip4/192.0.2.7/tcp/99"]);
        assert_eq!(parsed("[2001:db8::1]:99", NetworkKind::Private), ["/ip6/2001:db8::1/tcp/99"]);
        assert_eq!(parsed("box.lan", NetworkKind::Private), ["/dns/box.lan/tcp/2744"]);
    }

    #[test]
    fn others_are_told_of_addresses_that_mean_something_to_them() {
        let all = ["/ip4/127.0.0.1/tcp/1", "/ip6/fe80::1/tcp/1", "/ip4/192.0.2.7/tcp/1", "/ip6/::1/udp/1/quic-v1"];
        let all = all.map(str::to_owned);

        assert_eq!(worth_telling(&all), [&all[2]]);
        assert_eq!(worth_telling(&all[..2]), [&all[0], &all[1]]);
    }

    #[test]
    fn a_private_network_refuses_quic() {
        let fault = parse("/ip4/192.0.2.7/udp/1/quic-v1", NetworkKind::Private).unwrap_err();

        assert!(matches!(fault, AddressFault::QuicInPrivate { .. }), "{fault}");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", ":1", "host:port", "host:99999", "/ip4/1.2.3.4", "/nonsense", "a b:1", "/ip4/1.2.3.4/tcp/x"] {
            assert!(parse(text, NetworkKind::Open).is_err(), "{text}");
        }
    }
}
