//! Multiaddrs: reading what people write, and judging which may be believed, dialled and announced.

use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;

use libp2p::Multiaddr;
use libp2p::PeerId;
use libp2p::multiaddr::Protocol;

/// From how far away an address can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Scope {
    /// Names no host.
    Nowhere,
    /// This machine.
    Loopback,
    /// This site: RFC 1918, link-local, unique local, shared address space.
    Site,
    /// Anywhere: a global address or a name.
    Global,
}

/// Reads a multiaddr, or `host:port` as TCP (`[::1]:2744` for IPv6).
pub(super) fn parse(text: &str) -> Result<Multiaddr, String> {
    let text = text.trim();
    if text.starts_with('/') {
        return text.parse().map_err(|error: libp2p::multiaddr::Error| error.to_string());
    }
    if let Ok(socket) = text.parse::<SocketAddr>() {
        return Ok(Multiaddr::from(socket.ip()).with(Protocol::Tcp(socket.port())));
    }
    let form = || "expected /ip4/…/tcp/…, /ip4/…/udp/…/quic-v1 or host:port".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(form)?;
    let port = port.parse().map_err(|_| form())?;
    let named = |host: &str| {
        !host.is_empty()
            && host.len() <= 253
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
    };
    if !named(host) {
        return Err(form());
    }
    Ok(Multiaddr::empty().with(Protocol::Dns(host.to_owned().into())).with(Protocol::Tcp(port)))
}

/// The peer that an address names, and the address without it.
pub(super) fn split_peer(mut address: Multiaddr) -> (Multiaddr, Option<PeerId>) {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => {
            address.pop();
            (address, Some(peer))
        }
        _ => (address, None),
    }
}

/// From how far away the address can be reached.
pub(super) fn scope(address: &Multiaddr) -> Scope {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => scope_of(IpAddr::V4(ip)),
        Some(Protocol::Ip6(ip)) => scope_of(IpAddr::V6(ip)),
        Some(Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name)) if name == "localhost" => {
            Scope::Loopback
        }
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_)) => Scope::Global,
        _ => Scope::Nowhere,
    }
}

fn scope_of(ip: IpAddr) -> Scope {
    match ip.to_canonical() {
        ip if ip.is_unspecified() || ip.is_multicast() => Scope::Nowhere,
        ip if ip.is_loopback() => Scope::Loopback,
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            let shared = first == 100 && (64..128).contains(&second);
            if ip.is_private() || ip.is_link_local() || shared { Scope::Site } else { Scope::Global }
        }
        IpAddr::V6(ip) => {
            if is_site(ip) {
                Scope::Site
            } else {
                Scope::Global
            }
        }
    }
}

/// Unique local (RFC 4193) and link-local (RFC 4291).
fn is_site(ip: Ipv6Addr) -> bool {
    let head = ip.segments()[0];
    head & 0xfe00 == 0xfc00 || head & 0xffc0 == 0xfe80
}

/// Whether the address passes through a relay.
pub(super) fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// Whether the address is one of QUIC.
pub(super) fn is_quic(address: &Multiaddr) -> bool {
    address.iter().any(|part| matches!(part, Protocol::Quic | Protocol::QuicV1))
}

/// The socket that the address names, if it names one by number.
pub(super) fn socket(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let (host, transport) = (parts.next()?, parts.next()?);
    let (Protocol::Tcp(port) | Protocol::Udp(port)) = transport else {
        return None;
    };
    if let Protocol::Ip4(ip) = host {
        return Some(SocketAddr::from((ip, port)));
    }
    if let Protocol::Ip6(ip) = host { Some(SocketAddr::from((ip, port))) } else { None }
}

/// Whether an address that a peer claims for itself may be believed, when the peer was met at `via`.
///
/// Somebody met on this machine may live on it, somebody met at this site may live there; anybody else is reached by
/// global addresses only.
pub(super) fn believable(claimed: &Multiaddr, via: &Multiaddr) -> bool {
    let met = if is_relayed(via) { Scope::Global } else { scope(via) };
    let claim = scope(claimed);
    claim != Scope::Nowhere && met != Scope::Nowhere && claim >= met
}

/// Whether this peer may announce an address of its own: loopback only if it listens nowhere else.
pub(super) fn announceable<'a>(address: &Multiaddr, mut listening: impl Iterator<Item = &'a Multiaddr>) -> bool {
    match scope(address) {
        Scope::Nowhere => false,
        Scope::Loopback => listening.all(|own| scope(own) == Scope::Loopback),
        Scope::Site | Scope::Global => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn people_may_write_host_and_port() {
        assert_eq!(parse("10.0.0.1:2744"), Ok(address("/ip4/10.0.0.1/tcp/2744")));
        assert_eq!(parse("[::1]:2744"), Ok(address("/ip6/::1/tcp/2744")));
        assert_eq!(parse(" seed.example.org:1 "), Ok(address("/dns/seed.example.org/tcp/1")));
        for bad in ["", "host", "host:", "host:99999", "a b:1", "/ip4/1.2.3/tcp/1", "::1:2744x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_peer_is_believed_only_about_addresses_of_where_it_was_met() {
        let (here, site, world) =
            (address("/ip4/127.0.0.1/tcp/1"), address("/ip4/192.168.1.9/tcp/1"), address("/ip4/1.1.1.1/tcp/1"));

        assert!(believable(&here, &here) && believable(&site, &here) && believable(&world, &here));
        assert!(!believable(&here, &site) && believable(&site, &site) && believable(&world, &site));
        assert!(!believable(&here, &world) && !believable(&site, &world) && believable(&world, &world));
        assert!(!believable(&address("/ip4/0.0.0.0/tcp/1"), &here));
    }

    #[test]
    fn loopback_is_announced_only_by_a_peer_that_listens_nowhere_else() {
        let (here, everywhere) = (address("/ip4/127.0.0.1/tcp/1"), address("/ip4/10.0.0.1/tcp/1"));

        assert!(announceable(&here, [&here].into_iter()));
        assert!(!announceable(&here, [&here, &everywhere].into_iter()));
        assert!(announceable(&everywhere, [&here, &everywhere].into_iter()));
        assert!(!announceable(&address("/ip6/::/tcp/1"), [&here].into_iter()));
    }

    #[test]
    fn the_peer_is_split_off() {
        let peer = PeerId::random();
        let whole = address("/ip4/1.2.3.4/tcp/1").with(Protocol::P2p(peer));

        assert_eq!(split_peer(whole), (address("/ip4/1.2.3.4/tcp/1"), Some(peer)));
    }
}
