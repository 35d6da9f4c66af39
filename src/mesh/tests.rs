//! Real peers of one process, on loopback.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::amounts::Bytes as Amount;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::ids::BlobHash;
use crate::ids::BootSeq;
use crate::ids::Epoch;
use crate::ids::ModelId;
use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::ids::SessionId;
use crate::ids::StageIndex;
use crate::ids::Step;
use crate::ids::Token;
use crate::keys::Identity;
use crate::mesh::BlobPiece;
use crate::mesh::BlobSource;
use crate::mesh::ControlServer;
use crate::mesh::DialError;
use crate::mesh::Fault;
use crate::mesh::FetchError;
use crate::mesh::HopServer;
use crate::mesh::Mdns;
use crate::mesh::Mesh;
use crate::mesh::MeshConfig;
use crate::mesh::MeshError;
use crate::mesh::MeshEvent;
use crate::mesh::OpenError;
use crate::mesh::Reach;
use crate::mesh::Reachability;
use crate::mesh::StreamError;
use crate::mesh::Topic;
use crate::mesh::start;
use crate::mesh::streams::Protocol;
use crate::shape::WireDtype;
use crate::wire::control::FromStage;
use crate::wire::control::MAX_CONTROL;
use crate::wire::control::ToStage;
use crate::wire::fetch::FetchAnswer;
use crate::wire::fetch::FetchPart;
use crate::wire::fetch::FetchRequest;
use crate::wire::fetch::MAX_PIECE;
use crate::wire::gossip::Gossip;
use crate::wire::hop::Frame;
use crate::wire::hop::FrameHeader;
use crate::wire::hop::HopBack;
use crate::wire::hop::HopForward;
use crate::wire::hop::HopOpen;
use crate::wire::hop::Sample;
use crate::wire::hop::TokenFrame;
use crate::wire::profile::Profile;
use crate::wire::signed::Signed;

const NETWORK: NetworkId = NetworkId::new([1; 32]);
const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// Nothing here takes longer, unless it never comes. A bound, not a wait.
const BOUND: Duration = Duration::from_secs(60);

#[tokio::test]
async fn two_peers_find_each_other_over_tcp() {
    find_each_other(TCP).await;
}

#[tokio::test]
async fn two_peers_find_each_other_over_quic() {
    find_each_other(QUIC).await;
}

async fn find_each_other(listen: &str) {
    let mut first = Peer::start(1, |config| config.listen = vec![listen.to_owned()]).await;
    let address = first.address.clone();
    let mut second = Peer::start(2, |config| {
        config.listen = vec![listen.to_owned()];
        config.join = vec![address];
    })
    .await;

    first.until_up(second.key()).await;
    second.until_up(first.key()).await;

    first.until(|event| matches!(event, MeshEvent::RoundTrip { .. }).then_some(())).await;
    let status = second.mesh.status().await.unwrap();
    assert_eq!(status.neighbours[0].peer, first.key());
    assert!(status.joins[0].state.starts_with("joined"), "{status:?}");
    assert_eq!(status.reachability, Reachability::LoopbackOnly);

    second.mesh.stop().await;
    first.until(|event| matches!(event, MeshEvent::PeerDown(peer) if peer == second.mesh.me()).then_some(())).await;
}

#[tokio::test]
async fn three_peers_know_each_other_from_one_address() {
    let mut first = Peer::start(1, |_| {}).await;
    let address = first.address.clone();
    let mut second = Peer::start(2, |config| config.join = vec![address.clone()]).await;
    let mut third = Peer::start(3, |config| config.join = vec![address]).await;

    second.until_up(third.key()).await;
    third.until_up(second.key()).await;
    first.until_up(third.key()).await;
}

#[tokio::test]
async fn a_peer_that_only_a_neighbour_knows_is_reached_at_the_first_try() {
    let mut hub = Peer::start(1, |_| {}).await;
    let address = hub.address.clone();
    let mut second = Peer::start(2, |config| config.join = vec![address.clone()]).await;
    let third = Peer::start(3, |config| config.join = vec![address]).await;
    hub.until_up(second.key()).await;
    hub.until_up(third.key()).await;
    second.until_up(hub.key()).await;

    let opened = second.mesh.open_control(third.key()).await;

    assert!(opened.is_ok(), "{opened:?}");
}

#[tokio::test]
async fn a_peer_that_came_back_elsewhere_is_reached_where_a_neighbour_knows_it_to_be() {
    let mut hub = Peer::start(1, |_| {}).await;
    let address = hub.address.clone();
    let mut second = Peer::start(2, |config| config.join = vec![address.clone()]).await;
    let third = Peer::start(3, |config| config.join = vec![address.clone()]).await;
    // Both have dialled its first address.
    assert_eq!(second.mesh.dial(&third.address).await, Ok(third.key()));
    assert_eq!(hub.mesh.dial(&third.address).await, Ok(third.key()));
    third.mesh.stop().await;
    hub.until_down(third.key()).await;
    second.until_down(third.key()).await;

    let elsewhere = free_address();
    let back = Peer::start(3, |config| {
        config.listen = vec![elsewhere.clone()];
        config.announce = vec![elsewhere.clone()];
        config.join = vec![address];
    });
    let back = back.await;
    hub.until_up(back.key()).await;
    let opened = second.mesh.open_control(back.key()).await;

    assert!(opened.is_ok(), "{opened:?}");
}

#[tokio::test]
async fn peers_that_join_over_loopback_learn_addresses_that_others_can_reach() {
    let everywhere = |config: &mut MeshConfig| config.listen = vec!["/ip4/0.0.0.0/tcp/0".to_owned()];
    let first = Peer::start(1, everywhere).await;
    let port = first.address.rsplit('/').next().unwrap();
    let join = format!("/ip4/127.0.0.1/tcp/{port}");
    let at = |config: &mut MeshConfig| {
        everywhere(config);
        config.join = vec![join.clone()];
    };
    let (mut second, third) = (Peer::start(2, at).await, Peer::start(3, at).await);

    second.until_up(third.key()).await;

    let status = second.mesh.status().await.unwrap();
    let site = status.listening.iter().any(|address| !address.contains("/127."));
    assert!(!site || status.announced.iter().all(|address| !address.contains("/127.")), "{status:?}");
}

#[tokio::test]
async fn gossip_goes_on_only_if_its_signature_holds() {
    // A line: the ends never connect, so whatever arrives was forwarded by the middle.
    let keys = [1, 2, 3].map(key_of);
    let mut middle = Peer::start(2, |_| {}).await;
    let address = middle.address.clone();
    let end = |seed| {
        let address = address.clone();
        Peer::start(seed, move |config| {
            config.allow = Some(BTreeSet::from([keys[1]]));
            config.join = vec![address];
        })
    };
    let (mut left, mut right) = (end(1).await, end(3).await);
    for peer in [&middle, &left, &right] {
        peer.mesh.subscribe(Topic::Network).await;
    }
    left.until_up(keys[1]).await;
    right.until_up(keys[1]).await;
    let mut forged = profile(1, 1).encode().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;

    // Published again and again, since who listens to what spreads on its own.
    let arrived =
        async {
            let mut seq = 2;
            loop {
                left.mesh.publish(Topic::Network, Bytes::from(forged.clone())).await.unwrap();
                left.mesh.publish(Topic::Network, profile(1, seq).encode()).await.unwrap();
                let heard = right.until(|event| {
                    if let MeshEvent::Gossip { from, message } = event { Some((from, message)) } else { None }
                });
                if let Ok(heard) = timeout(Duration::from_millis(500), heard).await {
                    return heard;
                }
                seq += 1;
            }
        };
    let (from, message) = timeout(BOUND, arrived).await.unwrap();

    assert_eq!(from, keys[1]);
    let Gossip::Profile(signed) = message else { panic!("{message:?}") };
    assert!(signed.author == keys[0] && signed.value.order.seq >= 2);
    let heard = middle.until(|event| {
        let MeshEvent::Gossip { message: Gossip::Profile(signed), .. } = event else { return None };
        Some(signed.value.order.seq)
    });
    assert!(heard.await >= 2);
}

#[tokio::test]
async fn control_messages_go_both_ways_and_closing_is_seen() {
    let (mut first, second) = pair(TCP).await;
    let mut client = second.mesh.open_control(first.key()).await.unwrap();
    let mut server = first.until_control().await;
    assert_eq!(server.peer, second.key());

    client.writer.send(&ToStage::Ping(7)).await.unwrap();
    assert_eq!(server.reader.receive().await.unwrap(), Some(ToStage::Ping(7)));
    server.writer.send(&FromStage::Pong(7)).await.unwrap();
    assert_eq!(client.reader.receive().await.unwrap(), Some(FromStage::Pong(7)));

    drop(client);
    let end = timeout(BOUND, server.reader.receive()).await.unwrap();
    assert!(matches!(end, Ok(None) | Err(StreamError::Io { .. })), "{end:?}");
}

#[tokio::test]
async fn a_hop_carries_large_frames_over_tcp() {
    let (mut first, second) = pair(TCP).await;
    hop_round_trip(&mut first, &second.mesh).await;
}

#[tokio::test]
async fn a_hop_carries_large_frames_over_quic() {
    let (mut first, second) = pair(QUIC).await;
    hop_round_trip(&mut first, &second.mesh).await;
}

#[tokio::test]
async fn a_peer_can_be_its_own_neighbour() {
    let mut alone = Peer::start(1, |_| {}).await;
    let mesh = alone.mesh.clone();

    hop_round_trip(&mut alone, &mesh).await;

    let mut client = mesh.open_control(mesh.me()).await.unwrap();
    let mut server = alone.until_control().await;
    assert_eq!(server.peer, mesh.me());
    client.writer.send(&ToStage::Ping(1)).await.unwrap();
    assert_eq!(server.reader.receive().await.unwrap(), Some(ToStage::Ping(1)));
    drop(client);
    assert!(matches!(server.reader.receive().await, Ok(None)));
}

async fn hop_round_trip(downstream: &mut Peer, upstream: &Mesh) {
    let open = hop_open();
    let mut client = upstream.open_hop(downstream.key(), open).await.unwrap();
    let mut server = downstream.until_hop().await;
    assert_eq!((server.peer, server.open), (upstream.me(), open));
    let (small, large) = (token(0), frame(5 << 20));
    let expected = [small.clone(), large.clone(), token(1)];

    let sent = tokio::spawn(async move {
        for message in [small, large, token(1)] {
            client.writer.send(&message).await.unwrap();
        }
        client
    });
    for message in expected {
        assert_eq!(timeout(BOUND, server.reader.receive()).await.unwrap().unwrap(), Some(message));
    }
    server.writer.send(&HopBack::Taken(Step(2))).await.unwrap();

    let mut client = sent.await.unwrap();
    assert_eq!(client.reader.receive().await.unwrap(), Some(HopBack::Taken(Step(2))));
}

#[tokio::test]
async fn many_streams_open_at_once() {
    let (mut first, second) = pair(TCP).await;
    let opened = futures::future::join_all((0..100).map(|_| second.mesh.open_control(first.key())));
    let took = async {
        let mut servers = Vec::new();
        while servers.len() < 100 {
            servers.push(first.until_control().await);
        }
        servers
    };

    let (clients, servers) = timeout(BOUND, futures::future::join(opened, took)).await.unwrap();

    assert!(clients.iter().all(Result::is_ok) && servers.len() == 100);
}

#[tokio::test]
async fn a_peer_of_another_network_is_refused_by_name() {
    let mut first = Peer::start(1, |_| {}).await;
    let second = Peer::start(2, |config| config.network = NetworkId::new([2; 32])).await;

    let error = second.mesh.dial(&first.address).await.unwrap_err();

    let DialError::OtherNetwork { theirs, .. } = &error else { panic!("{error}") };
    assert!(theirs.contains(&NETWORK.to_string()), "{error}");
    let refused = first.until(|event| {
        assert!(!matches!(event, MeshEvent::PeerUp(_)), "a stranger is no peer");
        if let MeshEvent::Refused(reason) = event { Some(reason) } else { None }
    });
    assert!(refused.await.contains("another network"));
    assert_eq!(second.mesh.status().await.unwrap().neighbours, []);
}

#[tokio::test]
async fn a_private_network_takes_nobody_with_another_key() {
    let private = |key| move |config: &mut MeshConfig| config.private_key = Some(Zeroizing::new([key; 32]));
    let mut first = Peer::start(1, private(7)).await;
    let friend = Peer::start(2, private(7)).await;
    let stranger = Peer::start(3, private(8)).await;
    let outsider = Peer::start(4, |_| {}).await;

    assert_eq!(friend.mesh.dial(&first.address).await, Ok(first.key()));
    first.until_up(friend.key()).await;
    let error = stranger.mesh.dial(&first.address).await.unwrap_err();
    assert!(matches!(error, DialError::Handshake { private: true, .. }), "{error}");
    assert!(outsider.mesh.dial(&first.address).await.is_err());
}

#[tokio::test]
async fn a_private_network_refuses_quic() {
    let mut config = config(1);
    config.private_key = Some(Zeroizing::new([7; 32]));
    config.listen = vec![QUIC.to_owned()];

    let error = start(config).await.unwrap_err();

    assert!(matches!(error, MeshError::QuicInPrivateNetwork { .. }), "{error}");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    for listen in [TCP, QUIC] {
        let first = Peer::start(1, |config| config.listen = vec![listen.to_owned()]).await;
        let mut second = config(2);
        second.listen = vec![first.address.clone()];

        let error = start(second).await.unwrap_err();

        assert!(matches!(&error, MeshError::PortInUse { address } if *address == first.address), "{error}");
        assert_eq!(error.fault(), Fault::Local);
    }
}

#[tokio::test]
async fn addresses_that_cannot_be_used_are_named() {
    for bad in ["/ip4/1.2.3/tcp/1", "nonsense", "/ip4/127.0.0.1/udp/0"] {
        let mut config = config(1);
        config.listen = vec![bad.to_owned()];
        let error = start(config).await.unwrap_err();
        assert!(matches!(&error, MeshError::BadAddress { address, .. } if address == bad), "{error}");
    }
}

#[tokio::test]
async fn a_second_peer_with_this_identity_is_told_apart() {
    let first = Peer::start(1, |_| {}).await;
    let twin = Peer::start(1, |_| {}).await;

    let error = twin.mesh.dial(&first.address).await.unwrap_err();

    assert!(matches!(error, DialError::OwnIdentity { .. }), "{error}");
    assert_eq!(twin.mesh.dial(&twin.address).await.unwrap_err().fault(), Fault::Local);
}

#[tokio::test]
async fn a_peer_that_nobody_knows_cannot_be_opened_to() {
    let alone = Peer::start(1, |_| {}).await;

    let error = alone.mesh.open_control(key_of(9)).await.unwrap_err();

    assert!(matches!(error, OpenError::Dial(DialError::NoAddress { peer }) if peer == key_of(9)), "{error}");
}

#[tokio::test]
async fn the_allow_list_keeps_others_out() {
    let closed = Peer::start(1, |config| config.allow = Some(BTreeSet::from([key_of(2)]))).await;
    let (friend, other) = (Peer::start(2, |_| {}).await, Peer::start(3, |_| {}).await);

    assert_eq!(friend.mesh.dial(&closed.address).await, Ok(closed.key()));
    assert!(other.mesh.dial(&closed.address).await.is_err());
}

#[tokio::test]
async fn an_oversized_message_ends_the_stream_with_a_typed_error() {
    let (mut first, second) = pair(TCP).await;
    let mut raw = second.mesh.raw(first.key(), Protocol::Control).await;
    say_hello(&mut raw).await;
    let mut server = first.until_control().await;

    raw.write_all(&[0xff, 0xff, 0xff, 0x7f]).await.unwrap();
    raw.flush().await.unwrap();

    let error = server.reader.receive().await.unwrap_err();
    assert!(matches!(error, StreamError::TooLarge { limit: MAX_CONTROL, got: 0x0fff_ffff, .. }), "{error}");
    assert_eq!(error.fault(), Fault::Peer);
}

#[tokio::test]
async fn malformed_bytes_cost_their_sender_its_stream_and_nothing_else() {
    let (mut first, second) = pair(TCP).await;
    for protocol in Protocol::ALL {
        for after_hello in [false, true] {
            let mut raw = second.mesh.raw(first.key(), protocol).await;
            if after_hello {
                say_hello(&mut raw).await;
            }
            raw.write_all(&[20; 200]).await.unwrap();
            raw.flush().await.unwrap();
            if after_hello && protocol == Protocol::Control {
                let error = first.until_control().await.reader.receive().await.unwrap_err();
                assert!(matches!(error, StreamError::Malformed { .. }), "{error}");
            }
            // The other side lets go of the stream.
            let mut rest = Vec::new();
            let end = timeout(BOUND, raw.read_to_end(&mut rest)).await.unwrap();
            assert!(end.is_ok() || end.is_err_and(|error| error.kind() != std::io::ErrorKind::TimedOut));
        }
    }

    let mut client = second.mesh.open_control(first.key()).await.unwrap();
    let mut server = first.until_control().await;
    client.writer.send(&ToStage::Ping(1)).await.unwrap();
    assert_eq!(server.reader.receive().await.unwrap(), Some(ToStage::Ping(1)));
}

#[tokio::test]
async fn blobs_are_fetched_in_pieces_and_verified() {
    let blob = Bytes::from((0..3_000_000u32).map(|index| (index % 251) as u8).collect::<Vec<_>>());
    let (good, bad) = (hash_of(&blob), BlobHash::new([9; 32]));
    let shelf = Shelf(BTreeMap::from([(good, blob.clone()), (bad, blob.clone())]));
    let first = Peer::start(1, |config| config.blobs = Arc::new(shelf)).await;
    let second = Peer::start(2, |_| {}).await;
    second.mesh.dial(&first.address).await.unwrap();
    let fetch = |hash, max| second.mesh.fetch(first.key(), hash, max);

    assert_eq!(fetch(good, 4 << 20).await.unwrap(), blob);
    assert!(matches!(fetch(bad, 4 << 20).await, Err(FetchError::WrongHash { got, .. }) if got == good));
    assert!(matches!(fetch(good, 1000).await, Err(FetchError::TooLarge { limit: 1000, got: 3_000_000 })));
    assert!(matches!(fetch(hash_of(b"no"), 1000).await, Err(FetchError::NotFound { .. })));
}

#[tokio::test]
async fn pieces_come_in_the_order_asked_for_and_what_is_not_there_ends_nothing() {
    let blob = Bytes::from((0..3_000_000u32).map(|index| (index % 249) as u8).collect::<Vec<_>>());
    let shelf = Shelf(BTreeMap::from([(hash_of(&blob), blob.clone())]));
    let first = Peer::start(1, |config| config.blobs = Arc::new(shelf)).await;
    let second = Peer::start(2, |_| {}).await;
    second.mesh.dial(&first.address).await.unwrap();
    let mut stream = second.mesh.open_fetch(first.key()).await.unwrap();
    let piece = |blob, offset| FetchRequest { blob, part: FetchPart::Data, offset, length: MAX_PIECE };
    let at = |offset: usize| FetchAnswer::Piece {
        total: blob.len() as u64,
        data: blob.slice(offset..(offset + MAX_PIECE as usize).min(blob.len())),
    };

    for (hash, offset) in [(hash_of(&blob), 2 << 20), (hash_of(b"no"), 0), (hash_of(&blob), 0)] {
        stream.writer.send(&piece(hash, offset)).await.unwrap();
    }

    for expected in [at(2 << 20), FetchAnswer::NotFound, at(0)] {
        assert_eq!(stream.reader.receive().await.unwrap(), Some(expected));
    }
}

#[tokio::test]
async fn holders_of_a_model_are_named_by_the_dht() {
    let (first, second) = pair(TCP).await;
    let model = ModelId::new([5; 32]);

    // Asked again and again, since the provider's word spreads on its own.
    let named = async {
        loop {
            first.mesh.provide(model).await;
            let found = second.mesh.find(model).await;
            if found.contains(&first.key()) {
                return found;
            }
        }
    };

    assert_eq!(timeout(BOUND, named).await.unwrap(), [first.key()]);
}

struct Peer {
    mesh: Mesh,
    events: mpsc::Receiver<MeshEvent>,
    address: String,
}

impl Peer {
    async fn start(seed: u8, change: impl FnOnce(&mut MeshConfig)) -> Self {
        let mut config = config(seed);
        change(&mut config);
        let (mesh, mut events) = start(config).await.unwrap();
        let listening = async {
            loop {
                if let Some(MeshEvent::Listening(address)) = events.recv().await {
                    return address;
                }
            }
        };
        let address = timeout(BOUND, listening).await.unwrap();
        Self { mesh, events, address }
    }

    fn key(&self) -> PeerKey {
        self.mesh.me()
    }

    async fn until<T>(&mut self, pick: impl Fn(MeshEvent) -> Option<T>) -> T {
        let found = async {
            loop {
                if let Some(found) = pick(self.events.recv().await.expect("the mesh runs")) {
                    return found;
                }
            }
        };
        timeout(BOUND, found).await.expect("it happens")
    }

    async fn until_up(&mut self, other: PeerKey) {
        self.until(|event| matches!(event, MeshEvent::PeerUp(peer) if peer == other).then_some(())).await;
    }

    async fn until_down(&mut self, other: PeerKey) {
        self.until(|event| matches!(event, MeshEvent::PeerDown(peer) if peer == other).then_some(())).await;
    }

    async fn until_control(&mut self) -> ControlServer {
        self.until(|event| if let MeshEvent::Control(server) = event { Some(server) } else { None }).await
    }

    async fn until_hop(&mut self) -> HopServer {
        self.until(|event| if let MeshEvent::Hop(server) = event { Some(server) } else { None }).await
    }
}

/// An address at which nobody listens for the moment.
fn free_address() -> String {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    format!("/ip4/127.0.0.1/tcp/{}", socket.port())
}

async fn pair(listen: &str) -> (Peer, Peer) {
    let at = |config: &mut MeshConfig| config.listen = vec![listen.to_owned()];
    let (first, second) = (Peer::start(1, at).await, Peer::start(2, at).await);
    assert_eq!(second.mesh.dial(&first.address).await, Ok(first.key()));
    (first, second)
}

fn config(seed: u8) -> MeshConfig {
    MeshConfig {
        secret: Zeroizing::new([seed; 32]),
        network: NETWORK,
        private_key: None,
        listen: vec![TCP.to_owned()],
        announce: Vec::new(),
        never_announce: BTreeSet::new(),
        join: Vec::new(),
        mdns: Mdns::Off,
        reach: Reach::Local,
        max_connections: 64,
        allow: None,
        software: "brigade test".to_owned(),
        blobs: Arc::new(Shelf::default()),
        upload_limit: None,
    }
}

fn identity_of(seed: u8) -> Identity {
    Identity::from_secret_bytes(&[seed; 32])
}

fn key_of(seed: u8) -> PeerKey {
    identity_of(seed).peer()
}

fn profile(seed: u8, seq: u64) -> Gossip {
    let profile = Profile {
        peer: key_of(seed),
        order: BootSeq { boot: 1, seq },
        valid_for: Span::seconds(45),
        memory: Amount::mib(100),
        memory_free: Amount::mib(50),
        cores: 2,
        cpu_features: 0,
        devices: Vec::new(),
        formats: Vec::new(),
        arithmetic: "canonical-1-f16".to_owned(),
        holdings: Vec::new(),
        sessions: 0,
        queue: Span::ZERO,
        round_trips: Vec::new(),
        draining: false,
        stored: Vec::new(),
    };
    Gossip::Profile(Signed::seal(&profile, &identity_of(seed), NETWORK).unwrap())
}

const SESSION: SessionId = SessionId::new([3; 16]);

fn hop_open() -> HopOpen {
    HopOpen { session: SESSION, epoch: Epoch(0), from: StageIndex(0), to: StageIndex(1) }
}

fn token(step: u64) -> HopForward {
    let (epoch, position) = (Epoch(0), Position(9));
    HopForward::Token(TokenFrame { session: SESSION, epoch, step: Step(step), position, token: Token(42) })
}

fn frame(bytes: u32) -> HopForward {
    let header = FrameHeader {
        session: SESSION,
        stage: StageIndex(1),
        epoch: Epoch(0),
        step: Step(0),
        first: Position(0),
        count: bytes / 4096,
        dtype: WireDtype::F32,
        sample: Sample::LastRow,
    };
    HopForward::Frame(Frame { header, payload: (0..bytes).map(|index| (index % 253) as u8).collect() })
}

async fn say_hello(raw: &mut crate::mesh::framing::Pipe) {
    let hello = crate::wire::hello::Hello::current("hostile").encode();
    raw.write_all(&[u8::try_from(hello.len()).unwrap()]).await.unwrap();
    raw.write_all(&hello).await.unwrap();
}

fn hash_of(bytes: &[u8]) -> BlobHash {
    BlobHash::new(*blake3::hash(bytes).as_bytes())
}

/// Blobs in memory, some under a wrong name.
#[derive(Default)]
struct Shelf(BTreeMap<BlobHash, Bytes>);

impl BlobSource for Shelf {
    fn piece(&self, _: PeerKey, request: FetchRequest) -> Option<BlobPiece> {
        let bytes = self.0.get(&request.blob)?;
        let start = usize::try_from(request.offset).unwrap().min(bytes.len());
        let end = (start + request.length as usize).min(bytes.len());
        Some(BlobPiece { total: bytes.len() as u64, data: bytes.slice(start..end) })
    }
}
