//! The task that owns the Swarm.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use libp2p::Multiaddr;
use libp2p::PeerId;
use libp2p::Stream;
use libp2p::Swarm;
use libp2p::gossipsub;
use libp2p::kad;
use libp2p::kad::QueryId;
use libp2p::kad::RecordKey;
use libp2p::swarm::ConnectionId;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::swarm::dial_opts::PeerCondition;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;
use tokio::time::interval;

use crate::ids::ModelId;
use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::mesh::MeshEvent;
use crate::mesh::addresses;
use crate::mesh::behaviour::Behaviour;
use crate::mesh::config::MeshConfig;
use crate::mesh::dialer::Dialer;
use crate::mesh::dialer::JoinState;
use crate::mesh::dialer::Target;
use crate::mesh::error::DialError;
use crate::mesh::error::MeshError;
use crate::mesh::error::OpenError;
use crate::mesh::error::PublishError;
use crate::mesh::failure::dial_error;
use crate::mesh::gossip;
use crate::mesh::gossip::Judge;
use crate::mesh::gossip::Topic;
use crate::mesh::handle::Command;
use crate::mesh::identity;
use crate::mesh::lookups::Lookup;
use crate::mesh::neighbours::DialReply;
use crate::mesh::neighbours::Neighbours;
use crate::mesh::status::JoinStatus;
use crate::mesh::status::MeshStatus;
use crate::mesh::status::reachability;
use crate::mesh::streams::Protocol;
use crate::mesh::substreams::NotOpened;
use crate::mesh::substreams::Opening;

/// How often dialling, discovery and allowances are looked at. Everything that lasts is counted in these ticks.
const TICK: Duration = Duration::from_secs(1);

/// Ticks between two walks through the DHT while the mesh is changing, and when it is not.
const DISCOVERY_TICKS: (u64, u64) = (2, 30);

/// Ticks after the last peer came or went during which the mesh counts as changing.
const CHANGING_TICKS: u64 = 60;

/// Ticks until a peer of another network may try again.
const STRANGER_TICKS: u64 = 300;

/// Ticks that a stranger stays connected, so that it, too, learns of which network we are.
const PARTING_TICKS: u64 = 2;

/// Strangers remembered; beyond, they are met anew.
const MAX_STRANGERS: usize = 1024;

/// Events that wait for the node before gossip and round trips are dropped.
const CROWDED: usize = 512;

/// Events that wait for the node before the swarm is left alone.
const FULL: usize = 1024;

/// Streams that wait for one connection.
const MAX_WAITING: usize = 64;

/// Refusals kept for the status.
const MAX_REFUSALS: usize = 16;

/// Refusals of others that are logged per tick.
const MAX_LOGGED: u32 = 5;

/// The callers that wait for a stream until its peer is connected.
pub(super) type Waiting = Vec<(Protocol, oneshot::Sender<Result<Stream, OpenError>>)>;

/// Owns the Swarm.
pub(super) struct Task {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) me: PeerKey,
    pub(super) network: NetworkId,
    pub(super) private: bool,
    pub(super) never_announce: BTreeSet<IpAddr>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<MeshEvent>,
    outbox: VecDeque<MeshEvent>,
    pub(super) neighbours: Neighbours,
    pub(super) dialer: Dialer,
    pub(super) judge: Judge,
    pub(super) dialling: BTreeMap<ConnectionId, Dialling>,
    pub(super) waiting: BTreeMap<PeerId, Waiting>,
    pub(super) searches: HashMap<QueryId, Search>,
    /// Walks through the DHT for the addresses of peers that streams wait for.
    pub(super) lookups: Vec<Lookup>,
    /// How many walks there were for each of them.
    pub(super) walks: BTreeMap<PeerId, u32>,
    strangers: BTreeMap<PeerId, u64>,
    parting: BTreeMap<PeerId, u64>,
    pub(super) confirmed: BTreeSet<Multiaddr>,
    refusals: VecDeque<String>,
    logged: u32,
    pub(super) tick: u64,
    pub(super) changed: u64,
}

/// Who wants to know what comes of a dial to an address.
pub(super) enum Dialling {
    /// A caller.
    Caller(DialReply),
    /// The list of join addresses.
    Join(usize),
}

/// A question to the DHT.
pub(super) struct Search {
    found: BTreeSet<PeerKey>,
    reply: oneshot::Sender<Vec<PeerKey>>,
}

impl Task {
    pub(super) fn new(
        mut swarm: Swarm<Behaviour>,
        me: PeerKey,
        config: &MeshConfig,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<MeshEvent>,
    ) -> Result<Self, MeshError> {
        let joins = parse_all(&config.join)?;
        for address in parse_all(&config.announce)? {
            swarm.add_external_address(addresses::split_peer(address).0);
        }
        Ok(Self {
            swarm,
            me,
            network: config.network,
            private: config.private_key.is_some(),
            never_announce: config.never_announce.clone(),
            commands,
            events,
            outbox: VecDeque::new(),
            neighbours: Neighbours::default(),
            dialer: Dialer::new(joins),
            judge: Judge::default(),
            dialling: BTreeMap::new(),
            waiting: BTreeMap::new(),
            searches: HashMap::new(),
            lookups: Vec::new(),
            walks: BTreeMap::new(),
            strangers: BTreeMap::new(),
            parting: BTreeMap::new(),
            confirmed: BTreeSet::new(),
            refusals: VecDeque::new(),
            logged: 0,
            tick: 0,
            changed: 0,
        })
    }

    /// Runs until it is told to stop, or nobody holds a handle or takes events any more.
    pub(super) async fn run(mut self) {
        let events = self.events.clone();
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stopped = loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::Stop(reply)) => break Some(reply),
                    Some(command) => self.on_command(command),
                    None => break None,
                },
                _ = tick.tick() => self.on_tick(),
                room = events.reserve(), if !self.outbox.is_empty() => match (room, self.outbox.pop_front()) {
                    (Ok(room), Some(event)) => room.send(event),
                    _ => break None,
                },
                event = self.swarm.select_next_some(), if self.outbox.len() < FULL => self.on_swarm(event),
            }
        };
        for peer in self.neighbours.connected() {
            // Whoever is gone already needs no parting.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        drop(self);
        if let Some(reply) = stopped {
            // A caller that does not wait needs no answer.
            let _ = reply.send(());
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Publish { topic, bytes, reply } => {
                // A caller that has gone away needs no answer.
                let _ = reply.send(self.publish(topic, bytes));
            }
            Command::Subscribe(topic) => self.subscribe(topic),
            Command::Unsubscribe(topic) => {
                self.swarm.behaviour_mut().gossip.unsubscribe(&topic.name(self.network));
            }
            Command::Open { peer, protocol, reply } => self.open(peer, protocol, reply),
            Command::Dial { address, reply } => self.dial(address, Dialling::Caller(reply)),
            Command::Provide(model) => self.provide(model),
            Command::Withdraw(model) => self.swarm.behaviour_mut().kad.stop_providing(&key_of(model)),
            Command::Find { model, reply } => {
                let query = self.swarm.behaviour_mut().kad.get_providers(key_of(model));
                self.searches.insert(query, Search { found: BTreeSet::new(), reply });
            }
            Command::Status(reply) => {
                // A caller that has gone away needs no answer.
                let _ = reply.send(self.status());
            }
            // The loop takes it before it comes here.
            Command::Stop(_) => {}
        }
    }

    fn on_tick(&mut self) {
        self.tick += 1;
        self.logged = 0;
        for (peer, penalty) in self.judge.tick() {
            self.swarm.behaviour_mut().gossip.set_application_score(&peer, penalty);
        }
        self.part();
        let due: Vec<_> =
            self.strangers.iter().filter(|(_, until)| **until <= self.tick).map(|(peer, _)| *peer).collect();
        for peer in due {
            self.strangers.remove(&peer);
            self.swarm.behaviour_mut().substreams.forgive(&peer);
        }
        self.dial_due();
        self.walk_again();
        self.discover();
    }

    /// Dials whoever is due.
    pub(super) fn dial_due(&mut self) {
        for target in self.dialer.due(self.tick, &self.neighbours.connected()) {
            match target {
                Target::Join(index, address) => self.dial(address, Dialling::Join(index)),
                Target::Peer(peer, _) if self.swarm.behaviour().substreams.barred(&peer).is_some() => {
                    self.dialer.forget(&peer);
                }
                Target::Peer(peer, known) => {
                    self.dial_peer(peer, known, PeerCondition::DisconnectedAndNotDialing);
                }
            }
        }
    }

    pub(super) fn dial_peer(&mut self, peer: PeerId, known: Vec<Multiaddr>, condition: PeerCondition) {
        let options =
            DialOpts::peer_id(peer).condition(condition).addresses(known).extend_addresses_through_behaviour().build();
        match self.swarm.dial(options) {
            // Somebody else dials already; that one's outcome serves.
            Ok(()) | Err(libp2p::swarm::DialError::DialPeerConditionFalse(_)) => {}
            Err(error) => self.on_dial_failed(peer, error),
        }
    }

    fn dial(&mut self, address: Multiaddr, dialling: Dialling) {
        // A port dialled from itself fails in ways that say nothing.
        let own = addresses::split_peer(address.clone()).0;
        if self.swarm.listeners().any(|listening| *listening == own) {
            self.report(Some(dialling), &DialError::OwnIdentity { address: address.to_string() });
            return;
        }
        let options = DialOpts::unknown_peer_id().address(address).build();
        let id = options.connection_id();
        self.dialling.insert(id, dialling);
        if let Err(error) = self.swarm.dial(options) {
            let error = dial_error(error, self.private);
            self.on_address_failed(id, &error);
        }
    }

    /// Reports what came of a dial to an address.
    pub(super) fn on_address_failed(&mut self, id: ConnectionId, error: &DialError) {
        let dialling = self.dialling.remove(&id);
        self.report(dialling, error);
    }

    fn report(&mut self, dialling: Option<Dialling>, error: &DialError) {
        match dialling {
            Some(Dialling::Caller(reply)) => {
                // A caller that has gone away needs no answer.
                let _ = reply.send(Err(error.clone()));
            }
            Some(Dialling::Join(index)) => {
                let own = matches!(error, DialError::OwnIdentity { .. });
                let state = if own { JoinState::Own } else { JoinState::Failed(error.to_string()) };
                let news = !self.dialer.joins().any(|(_, known)| *known == state);
                self.dialer.on_joined(index, state, self.tick);
                if news {
                    self.refuse(format!("joining failed: {error}"));
                }
            }
            None => {}
        }
    }

    fn open(&mut self, key: PeerKey, protocol: Protocol, reply: oneshot::Sender<Result<Stream, OpenError>>) {
        let Some(peer) = identity::peer_id(key) else {
            // A caller that has gone away needs no answer.
            let _ = reply.send(Err(DialError::NotAKey { peer: key }.into()));
            return;
        };
        if self.swarm.is_connected(&peer) {
            self.open_on_connection(key, peer, protocol, reply);
            return;
        }
        let waiting = self.waiting.entry(peer).or_default();
        waiting.retain(|(_, reply)| !reply.is_closed());
        if waiting.len() >= MAX_WAITING {
            // A caller that has gone away needs no answer.
            let _ = reply.send(Err(DialError::TooManyWaiting { peer: key }.into()));
            return;
        }
        waiting.push((protocol, reply));
        let known = self.dialer.addresses(&peer);
        self.dial_peer(peer, known, PeerCondition::DisconnectedAndNotDialing);
    }

    /// Serves those who waited for the connection.
    pub(super) fn open_waiting(&mut self, key: PeerKey, peer: PeerId) {
        self.walks.remove(&peer);
        for (protocol, reply) in self.waiting.remove(&peer).unwrap_or_default() {
            self.open_on_connection(key, peer, protocol, reply);
        }
    }

    fn open_on_connection(
        &mut self,
        key: PeerKey,
        peer: PeerId,
        protocol: Protocol,
        reply: oneshot::Sender<Result<Stream, OpenError>>,
    ) {
        let (opened, stream) = oneshot::channel();
        let protocol = protocol.name(self.network);
        self.swarm.behaviour_mut().substreams.open(peer, Opening { protocol: protocol.clone(), reply: opened });
        // Ends with the connection at the latest, which drops the other end.
        tokio::spawn(async move {
            let result = match stream.await {
                Ok(Ok(stream)) => Ok(stream),
                Ok(Err(NotOpened::Unsupported)) => {
                    Err(OpenError::Unsupported { peer: key, protocol: protocol.to_string() })
                }
                Ok(Err(NotOpened::Lost)) | Err(_) => Err(OpenError::Lost { peer: key }),
            };
            // A caller that has gone away needs no answer.
            let _ = reply.send(result);
        });
    }

    fn publish(&mut self, topic: Topic, bytes: Bytes) -> Result<(), PublishError> {
        match self.swarm.behaviour_mut().gossip.publish(topic.name(self.network), bytes) {
            Ok(_) | Err(gossipsub::PublishError::Duplicate | gossipsub::PublishError::NoPeersSubscribedToTopic) => {
                Ok(())
            }
            Err(gossipsub::PublishError::AllQueuesFull(_)) => Err(PublishError::QueuesFull),
            Err(error) => {
                tracing::warn!(%error, "could not publish");
                Err(PublishError::QueuesFull)
            }
        }
    }

    fn subscribe(&mut self, topic: Topic) {
        let name = topic.name(self.network);
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        match gossip.subscribe(&name).map_err(|error| error.to_string()) {
            Ok(true) => {
                if let Err(error) = gossip.set_topic_params(name, gossip::topic_score()) {
                    tracing::warn!(%error, "could not set the scores of a topic");
                }
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "could not subscribe"),
        }
    }

    fn provide(&mut self, model: ModelId) {
        if let Err(error) = self.swarm.behaviour_mut().kad.start_providing(key_of(model)) {
            tracing::warn!(%error, "could not provide a model's key");
        }
    }

    /// Walks the DHT: towards itself, and every other time towards anywhere.
    fn discover(&mut self) {
        let changing = self.tick.saturating_sub(self.changed) < CHANGING_TICKS;
        let every = if changing { DISCOVERY_TICKS.0 } else { DISCOVERY_TICKS.1 };
        if !self.tick.is_multiple_of(every) || self.neighbours.members().next().is_none() {
            return;
        }
        let towards =
            if (self.tick / every).is_multiple_of(2) { *self.swarm.local_peer_id() } else { PeerId::random() };
        self.swarm.behaviour_mut().kad.get_closest_peers(towards);
    }

    /// Answers from the DHT about holders.
    pub(super) fn on_search(&mut self, id: QueryId, result: kad::GetProvidersResult, last: bool) {
        let Some(search) = self.searches.get_mut(&id) else {
            return;
        };
        if let Ok(kad::GetProvidersOk::FoundProviders { providers, .. }) = result {
            search.found.extend(providers.iter().filter_map(identity::peer_key));
        }
        if last && let Some(search) = self.searches.remove(&id) {
            // A caller that has gone away needs no answer.
            let _ = search.reply.send(search.found.into_iter().collect());
        }
    }

    /// Bars a peer of another network for a while, and soon parts from it.
    pub(super) fn bar(&mut self, peer: PeerId) {
        if self.strangers.len() < MAX_STRANGERS {
            self.strangers.insert(peer, self.tick + STRANGER_TICKS);
            self.swarm.behaviour_mut().substreams.bar(peer);
        }
        self.dialer.forget(&peer);
        self.parting.insert(peer, self.tick + PARTING_TICKS);
    }

    fn part(&mut self) {
        let overdue = self.neighbours.overdue(self.tick);
        let strangers: Vec<_> =
            self.parting.iter().filter(|(_, at)| **at <= self.tick).map(|(peer, _)| *peer).collect();
        for peer in overdue.into_iter().chain(strangers) {
            self.parting.remove(&peer);
            // Whoever is gone already needs no parting.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
    }

    /// Tells the node. What comes again by itself is dropped first.
    pub(super) fn tell(&mut self, event: MeshEvent) {
        let dispensable = matches!(event, MeshEvent::Gossip { .. } | MeshEvent::RoundTrip { .. });
        if !(dispensable && self.outbox.len() >= CROWDED) {
            self.outbox.push_back(event);
        }
    }

    /// Tells the user that something was refused: in the status, as an event, and in the log at a bounded rate.
    pub(super) fn refuse(&mut self, reason: String) {
        if self.logged < MAX_LOGGED {
            self.logged += 1;
            tracing::info!("{reason}");
            if self.refusals.len() >= MAX_REFUSALS {
                self.refusals.pop_front();
            }
            self.refusals.push_back(reason.clone());
            self.tell(MeshEvent::Refused(reason));
        }
    }

    fn status(&self) -> MeshStatus {
        let texts = |addresses: &[Multiaddr]| addresses.iter().map(Multiaddr::to_string).collect();
        let mut listening: Vec<_> = self.swarm.listeners().cloned().collect();
        let mut announced: Vec<_> = self.swarm.external_addresses().cloned().collect();
        listening.sort();
        announced.sort();
        let neighbours = self.neighbours.list();
        MeshStatus {
            peer: self.me,
            peer_id: self.swarm.local_peer_id().to_string(),
            listening: texts(&listening),
            confirmed: self.confirmed.iter().map(Multiaddr::to_string).collect(),
            announced: texts(&announced),
            joins: self.dialer.joins().map(|(address, state)| join_status(address, state)).collect(),
            reachability: reachability(&listening, &announced, neighbours.len()),
            neighbours,
            refusals: self.refusals.iter().cloned().collect(),
        }
    }
}

fn parse_all(texts: &[String]) -> Result<Vec<Multiaddr>, MeshError> {
    let bad = |text: &String, reason| MeshError::BadAddress { address: text.clone(), reason };
    texts.iter().map(|text| addresses::parse(text).map_err(|reason| bad(text, reason))).collect()
}

fn key_of(model: ModelId) -> RecordKey {
    RecordKey::new(model.as_bytes())
}

fn join_status(address: &Multiaddr, state: &JoinState) -> JoinStatus {
    let state = match state {
        JoinState::Waiting => "not answered yet".to_owned(),
        JoinState::Joined(peer) => format!("joined through {peer}"),
        JoinState::Own => "it is this peer's own address".to_owned(),
        JoinState::Failed(reason) => reason.clone(),
    };
    JoinStatus { address: address.to_string(), state }
}
