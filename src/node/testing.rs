//! A mesh in memory: nodes on one virtual clock, streams with seeded delays, and an engine of hashes.

mod engine;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::ModelId;
use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::ids::RequestId;
use crate::ids::SessionId;
use crate::ids::StreamId;
use crate::ids::Token;
use crate::keys::Identity;
use crate::ledger::Ledger;
use crate::membership::MembershipConfig;
use crate::node::Node;
use crate::node::config::Limits;
use crate::node::config::Machine;
use crate::node::config::NodeConfig;
use crate::node::config::Privacy;
use crate::node::config::Serves;
use crate::node::io::Action;
use crate::node::io::CloseCause;
use crate::node::io::Delivery;
use crate::node::io::GenerateFailure;
use crate::node::io::GenerateSpec;
use crate::node::io::HoldPolicy;
use crate::node::io::Input;
use crate::node::io::ModelFacts;
use crate::node::io::OpenFailure;
use crate::node::io::Outgoing;
use crate::node::io::StreamInput;
use crate::node::io::Trust;
use crate::node::testing::engine::ToyEngine;
use crate::placement::PlacementConfig;
use crate::scheduler::SchedulerConfig;
use crate::shape::Architecture;
use crate::shape::ModelShape;
use crate::shape::Rope;
use crate::shape::RopeScaling;
use crate::shape::WireDtype;
use crate::units::UnitRange;
use crate::wire::control::SamplingParameters;
use crate::wire::gossip::Gossip;

pub(super) use crate::node::testing::engine::generate;

pub(super) const MODEL: ModelId = ModelId::new([0x0d; 32]);
pub(super) const NETWORK: NetworkId = NetworkId::new([0x0e; 32]);
pub(super) const EOG: Token = Token(3);

/// Inputs that one run may take before it counts as one without end.
const MAX_INPUTS: usize = 400_000;

pub(super) fn shape() -> ModelShape {
    ModelShape {
        architecture: Architecture::Llama,
        blocks: 4,
        width: 4,
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        feed_forward: 512,
        vocab: 512,
        context: 2_048,
        norm_eps: 1e-5,
        rope: Rope { dimensions: 4, base: 10_000.0, scaling: RopeScaling::None },
        tied: false,
    }
}

pub(super) fn range(start: u16, end: u16) -> UnitRange {
    UnitRange::new(start, end).unwrap()
}

pub(super) fn prompt(length: u32) -> Vec<Token> {
    (0..length).map(|index| Token(10 + (index * 7 + length) % 400)).collect()
}

pub(super) fn spec(prompt: Vec<Token>, max_tokens: u32) -> GenerateSpec {
    GenerateSpec {
        model: MODEL,
        prompt,
        parameters: SamplingParameters::default(),
        max_tokens,
        end_of_generation: vec![EOG],
        wire: WireDtype::F32,
        trust: Trust::Known,
    }
}

fn identity(name: u8) -> Identity {
    Identity::from_secret_bytes(&[name; 32])
}

pub(super) fn key(name: u8) -> PeerKey {
    identity(name).peer()
}

type End = (PeerKey, StreamId);

/// What changes a message on its way.
pub(super) type Tamper = Box<dyn FnMut(PeerKey, &mut Outgoing)>;

struct Host {
    node: Option<Node>,
    engine: ToyEngine,
    frozen: Vec<Input>,
    is_frozen: bool,
    arrivals: u64,
    deliveries: Vec<(RequestId, Time, Delivery)>,
}

/// Nodes, the streams between them, and the time.
pub(super) struct World {
    pub(super) now: Time,
    hosts: BTreeMap<PeerKey, Host>,
    queue: BTreeMap<(Time, u64), (PeerKey, Input)>,
    scheduled: u64,
    /// The other end of each open end.
    links: BTreeMap<End, End>,
    /// When the last message to an end arrives: a stream keeps its order.
    arrives: BTreeMap<End, Time>,
    random: u64,
    max_delay: Span,
    requests: u64,
    inputs: usize,
    pub(super) tamper: Option<Tamper>,
    /// Peers that nobody can dial.
    pub(super) undialable: BTreeSet<PeerKey>,
    /// Pairs of which the first cannot dial the second.
    pub(super) severed: BTreeSet<(PeerKey, PeerKey)>,
    /// Everything that was sent to ends that nobody linked: what an injected stream was answered.
    pub(super) answers: Vec<(StreamId, Option<Outgoing>)>,
}

impl World {
    /// Messages take up to `max_delay`, as `seed` says.
    pub(super) fn new(seed: u64, max_delay: Span) -> Self {
        Self {
            now: Time(1_000_000),
            hosts: BTreeMap::new(),
            queue: BTreeMap::new(),
            scheduled: 0,
            links: BTreeMap::new(),
            arrives: BTreeMap::new(),
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            max_delay,
            requests: 0,
            inputs: 0,
            tamper: None,
            undialable: BTreeSet::new(),
            severed: BTreeSet::new(),
            answers: Vec::new(),
        }
    }

    /// A mesh in which each named peer holds the given ranges, grown until all know each other.
    pub(super) fn grown(seed: u64, max_delay: Span, peers: &[(u8, &[UnitRange])]) -> Self {
        let mut world = Self::new(seed, max_delay);
        for (name, ranges) in peers {
            world.add(*name, ranges);
        }
        world.run_for(Span::seconds(3));
        world
    }

    pub(super) fn add(&mut self, name: u8, ranges: &[UnitRange]) {
        self.add_with(name, |_| {});
        self.input(key(name), Input::ModelKnown(Arc::new(facts())));
        for range in ranges {
            self.input(key(name), Input::Serve { model: MODEL, policy: HoldPolicy::Pinned(*range) });
        }
    }

    pub(super) fn add_with(&mut self, name: u8, change: impl FnOnce(&mut NodeConfig)) {
        let identity = identity(name);
        let peer = identity.peer();
        let mut config = NodeConfig {
            identity,
            network: NETWORK,
            privacy: Privacy::Private,
            boot: 1,
            memory: Bytes::mib(64),
            machine: Machine { cores: 2, arithmetic: "toy-1".to_owned(), ..Machine::default() },
            allowed: BTreeSet::new(),
            serves: Serves::Anyone,
            limits: Limits::default(),
            membership: MembershipConfig::default(),
            placement: PlacementConfig::default(),
            scheduler: SchedulerConfig::default(),
        };
        change(&mut config);
        let node = Node::new(config, Ledger::new(peer), self.now);
        let host = Host {
            node: Some(node),
            engine: ToyEngine::default(),
            frozen: Vec::new(),
            is_frozen: false,
            arrivals: 0,
            deliveries: Vec::new(),
        };
        for other in self.hosts.keys().copied().collect::<Vec<_>>() {
            self.schedule(self.now, other, Input::PeerUp(peer));
            self.schedule(self.now, peer, Input::PeerUp(other));
        }
        self.hosts.insert(peer, host);
    }

    pub(super) fn submit(&mut self, name: u8, spec: GenerateSpec) -> RequestId {
        let request = RequestId(self.requests);
        self.requests += 1;
        let mut session = [name; 16];
        session[8..].copy_from_slice(&self.requests.to_be_bytes());
        session[..8].copy_from_slice(&self.next_random().to_be_bytes());
        self.input(key(name), Input::Submit { request, session: SessionId::new(session), spec });
        request
    }

    /// The process is gone.
    pub(super) fn kill(&mut self, name: u8) {
        let peer = key(name);
        let host = self.hosts.get_mut(&peer).unwrap();
        (host.node, host.engine) = (None, ToyEngine::default());
        let ends: Vec<(End, End)> = self.links.iter().map(|(&end, &other)| (end, other)).collect();
        for (end, other) in ends.into_iter().filter(|(end, _)| end.0 == peer) {
            self.links.remove(&end);
            self.send_to(other, StreamInput::Closed(CloseCause::Lost));
        }
        for other in self.hosts.keys().copied().filter(|other| *other != peer).collect::<Vec<_>>() {
            self.schedule(self.now, other, Input::PeerDown(peer));
        }
    }

    /// The process stands still; its connections stay.
    pub(super) fn freeze(&mut self, name: u8) {
        self.hosts.get_mut(&key(name)).unwrap().is_frozen = true;
    }

    pub(super) fn thaw(&mut self, name: u8) {
        let host = self.hosts.get_mut(&key(name)).unwrap();
        host.is_frozen = false;
        for input in std::mem::take(&mut host.frozen) {
            self.input(key(name), input);
        }
    }

    pub(super) fn input(&mut self, peer: PeerKey, input: Input) {
        self.inputs += 1;
        assert!(self.inputs < MAX_INPUTS, "a run without end");
        let now = self.now;
        let Some(host) = self.hosts.get_mut(&peer) else { return };
        if host.is_frozen {
            return host.frozen.push(input);
        }
        let Some(node) = &mut host.node else { return };
        for action in node.handle(input, now) {
            self.perform(peer, action);
        }
    }

    /// Runs until `done` says so, for at most `span`; whether it did.
    pub(super) fn run_until(&mut self, span: Span, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now.after(span);
        while !done(self) {
            let message = self.queue.first_key_value().map(|(&(at, _), _)| at);
            let alarm = self.alarm();
            let next = message.into_iter().chain(alarm.map(|(at, _)| at)).min().filter(|&at| at <= end);
            let Some(at) = next else {
                self.now = end;
                return done(self);
            };
            self.now = self.now.max(at);
            if message == Some(at) {
                let (_, (peer, input)) = self.queue.pop_first().unwrap();
                self.input(peer, input);
            } else if let Some((_, peer)) = alarm {
                self.input(peer, Input::Tick);
            }
        }
        true
    }

    pub(super) fn run_for(&mut self, span: Span) {
        self.run_until(span, |_| false);
    }

    pub(super) fn node(&self, name: u8) -> &Node {
        self.hosts[&key(name)].node.as_ref().unwrap()
    }

    /// When each batch of a peer's engine began and ended, and how many steps it had.
    pub(super) fn batches(&self, name: u8) -> &[(Time, Time, usize)] {
        &self.hosts[&key(name)].engine.batches
    }

    pub(super) fn deliveries(&self, request: RequestId) -> Vec<(Time, &Delivery)> {
        let all = self.hosts.values().flat_map(|host| &host.deliveries);
        all.filter(|(of, _, _)| *of == request).map(|(_, at, delivery)| (*at, delivery)).collect()
    }

    pub(super) fn tokens(&self, request: RequestId) -> Vec<Token> {
        let token = |delivery: &Delivery| match delivery {
            Delivery::Token { token, .. } => Some(*token),
            Delivery::Started(_) | Delivery::Finished(_) | Delivery::Failed(_) => None,
        };
        self.deliveries(request).into_iter().filter_map(|(_, delivery)| token(delivery)).collect()
    }

    pub(super) fn ended(&self, request: RequestId) -> bool {
        self.deliveries(request).iter().any(|(_, end)| matches!(end, Delivery::Finished(_) | Delivery::Failed(_)))
    }

    pub(super) fn failure(&self, request: RequestId) -> Option<(Time, GenerateFailure)> {
        self.deliveries(request).into_iter().find_map(|(at, delivery)| match delivery {
            Delivery::Failed(failure) => Some((at, failure.clone())),
            Delivery::Started(_) | Delivery::Token { .. } | Delivery::Finished(_) => None,
        })
    }

    /// Every live peer has let go of everything.
    pub(super) fn assert_idle(&self) {
        for (peer, host) in self.hosts.iter().filter(|(_, host)| host.node.is_some() && !host.is_frozen) {
            let node = host.node.as_ref().unwrap();
            assert_eq!(host.engine.sessions(), 0, "{peer} has sessions in its engine");
            assert_eq!((node.sessions(), node.requests()), (0, 0), "{peer} has sessions or requests");
            assert_eq!(node.cache(), Bytes::ZERO, "{peer} has keys and values");
        }
        let standing = |end: &End| self.hosts[&end.0].node.is_some() && !self.hosts[&end.0].is_frozen;
        let open: Vec<_> = self.links.iter().filter(|(end, other)| standing(end) && standing(other)).collect();
        assert!(open.is_empty(), "streams are open: {open:?}");
    }

    /// Makes a stream arrive that no node opened; what it is answered lands in `answers`.
    pub(super) fn inject(&mut self, name: u8, arrival: StreamInput) -> StreamId {
        let stream = self.arrival(key(name));
        self.input(key(name), Input::Stream(stream, arrival));
        stream
    }

    fn alarm(&self) -> Option<(Time, PeerKey)> {
        let live = self.hosts.iter().filter(|(_, host)| !host.is_frozen);
        live.filter_map(|(&peer, host)| Some((host.node.as_ref()?.deadline().max(self.now), peer))).min()
    }

    fn perform(&mut self, peer: PeerKey, action: Action) {
        match action {
            Action::OpenControl(stream, to) => {
                self.open((peer, stream), to, StreamInput::ControlArrived(peer));
            }
            Action::OpenHop(stream, to, open) => self.open((peer, stream), to, StreamInput::HopArrived(peer, open)),
            Action::Send(stream, message) => self.carry((peer, stream), message),
            Action::Close(stream) => match self.links.remove(&(peer, stream)) {
                Some(other) => self.send_to(other, StreamInput::Closed(CloseCause::Finished)),
                None => self.answers.push((stream, None)),
            },
            Action::Engine(action) => {
                let now = self.now;
                let host = self.hosts.get_mut(&peer).unwrap();
                for (at, event) in host.engine.perform(action, now) {
                    self.schedule(at, peer, Input::Engine(event));
                }
            }
            Action::Publish(record) => self.gossip(peer, &record),
            Action::Store(entry) => self.schedule(self.now.after(Span::millis(1)), peer, Input::EntryStored(entry)),
            Action::StoreFork(_) | Action::Dial(_) => {}
            Action::Deliver(request, delivery) => {
                let now = self.now;
                self.hosts.get_mut(&peer).unwrap().deliveries.push((request, now, delivery));
            }
        }
    }

    fn open(&mut self, from: End, to: PeerKey, arrival: StreamInput) {
        let gone = self.hosts.get(&to).is_none_or(|host| host.node.is_none());
        if gone || self.undialable.contains(&to) || self.severed.contains(&(from.0, to)) {
            let failed = StreamInput::OpenFailed(OpenFailure::Unreachable);
            return self.schedule(self.now.after(self.max_delay), from.0, Input::Stream(from.1, failed));
        }
        let end = (to, self.arrival(to));
        self.links.insert(from, end);
        self.links.insert(end, from);
        self.send_to(end, arrival);
        self.send_to(from, StreamInput::Opened);
    }

    fn carry(&mut self, from: End, mut message: Outgoing) {
        if let Some(tamper) = &mut self.tamper {
            tamper(from.0, &mut message);
        }
        let Some(&other) = self.links.get(&from) else {
            return self.answers.push((from.1, Some(message)));
        };
        let arrives = match message {
            Outgoing::ToStage(message) => StreamInput::ToStage(message),
            Outgoing::FromStage(message) => StreamInput::FromStage(message),
            Outgoing::Forward(message) => StreamInput::Forward(message),
            Outgoing::Back(message) => StreamInput::Back(message),
        };
        self.send_to(other, arrives);
    }

    fn send_to(&mut self, end: End, event: StreamInput) {
        let drawn = self.now.after(self.delay());
        let at = self.arrives.get(&end).map_or(drawn, |&last| drawn.max(last));
        self.arrives.insert(end, at);
        let ends = matches!(event, StreamInput::Closed(_));
        self.schedule(at, end.0, Input::Stream(end.1, event));
        if ends {
            self.links.remove(&end);
        }
    }

    /// Others hear what passes the doors that it must pass on a real wire.
    fn gossip(&mut self, from: PeerKey, record: &Gossip) {
        let bytes = record.encode();
        assert!(bytes.len() <= Gossip::MAX);
        let heard = Gossip::decode(&bytes, NETWORK).unwrap();
        for peer in self.hosts.keys().copied().filter(|peer| *peer != from).collect::<Vec<_>>() {
            let at = self.now.after(self.delay());
            self.schedule(at, peer, Input::Gossip(heard.clone()));
        }
    }

    fn schedule(&mut self, at: Time, peer: PeerKey, input: Input) {
        self.queue.insert((at, self.scheduled), (peer, input));
        self.scheduled += 1;
    }

    fn arrival(&mut self, peer: PeerKey) -> StreamId {
        let host = self.hosts.get_mut(&peer).unwrap();
        host.arrivals += 1;
        StreamId(2 * host.arrivals + 1)
    }

    fn delay(&mut self) -> Span {
        if self.max_delay == Span::ZERO { Span::ZERO } else { Span(self.next_random() % self.max_delay.0) }
    }

    fn next_random(&mut self) -> u64 {
        // xorshift64*, Vigna 2016.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

fn facts() -> ModelFacts {
    let unit_bytes = vec![Bytes(1_000); usize::from(shape().units())];
    ModelFacts {
        id: MODEL,
        shape: shape(),
        bytes: unit_bytes.iter().copied().sum(),
        unit_bytes,
        quantisation: "F32".to_owned(),
        title: "toy".to_owned(),
    }
}
