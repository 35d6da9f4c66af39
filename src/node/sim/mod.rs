//! A mesh in memory: nodes on one virtual clock and network, from one seed, and an engine of hashes.
//!
//! [`World`] drives real nodes as the daemon does: it performs their actions and tells them what comes of it. Everything that
//! is left to chance comes from the seed, so a run can be had again: [`World::trace`] is the same for the same seed.
//! [`scenario`] makes whole runs of it: a safety phase in which things go wrong, then a liveness phase in which
//! nothing does; [`invariants`] hold throughout, one file each.

mod agenda;
mod chance;
mod clock;
mod engine;
mod fault;
mod host;
mod invariants;
mod network;
mod scenario;
mod seeds;
mod setting;
mod trace;

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Bytes;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::ReplicaIndex;
use crate::ids::RequestId;
use crate::ids::SessionId;
use crate::ids::StreamId;
use crate::ids::Token;
use crate::node::Node;
use crate::node::config::NodeConfig;
use crate::node::io::Action;
use crate::node::io::Delivery;
use crate::node::io::EngineInput;
use crate::node::io::GenerateFailure;
use crate::node::io::GenerateSpec;
use crate::node::io::HoldPolicy;
use crate::node::io::Input;
use crate::node::io::Outgoing;
use crate::node::io::Redundancy;
use crate::node::io::StreamInput;
use crate::node::sim::agenda::Agenda;
use crate::node::sim::agenda::Event;
use crate::node::sim::agenda::Life;
use crate::node::sim::chance::Chance;
use crate::node::sim::clock::HostClock;
use crate::node::sim::fault::Blow;
use crate::node::sim::fault::BlowKind;
use crate::node::sim::fault::Fault;
use crate::node::sim::fault::Moment;
use crate::node::sim::host::Host;
use crate::node::sim::invariants::Invariants;
use crate::node::sim::invariants::Seen;
use crate::node::sim::network::End;
use crate::node::sim::network::IDLE;
use crate::node::sim::network::Network;
use crate::node::sim::trace::Trace;
use crate::session::replicas::session_of;
use crate::units::Chain;
use crate::units::UnitRange;
use crate::wire::control::ToStage;
use crate::wire::gossip::Gossip;

pub(super) use crate::node::sim::engine::generate;
pub(super) use crate::node::sim::engine::generate_mixed;
pub(super) use crate::node::sim::setting::COARSE;
pub(super) use crate::node::sim::setting::MODEL;
pub(super) use crate::node::sim::setting::NETWORK;
pub(super) use crate::node::sim::setting::key;
pub(super) use crate::node::sim::setting::prompt;
pub(super) use crate::node::sim::setting::range;
pub(super) use crate::node::sim::setting::shape;
pub(super) use crate::node::sim::setting::spec;

/// Inputs that one run may take before it counts as one without end.
const MAX_INPUTS: usize = 400_000;

/// How long an entry takes to the disk, and the word of it back.
const DISK: (Span, Span) = (Span::millis(1), Span(200));

/// Chains that one answer begins with, at most.
const CHAINS: u16 = 3;

/// How long peers take to find each other again.
const REDIAL: Span = Span::millis(300);

/// How long a process that was asked to stop may take (the daemon's limit).
const DRAIN: Span = Span::seconds(8);

/// How long a process that has stopped takes to be there again.
const REBOOT: Span = Span::seconds(1);

/// What changes a message on its way.
pub(super) type Tamper = Box<dyn FnMut(PeerKey, &mut Outgoing)>;

/// What one of the chains of an answer computes.
#[derive(Clone, Copy, Debug)]
struct Part {
    request: RequestId,
    index: u16,
    redundancy: Redundancy,
}

/// Nodes, the streams between them, and the time.
pub(super) struct World {
    pub(super) now: Time,
    hosts: BTreeMap<PeerKey, Host>,
    agenda: Agenda,
    network: Network,
    requests: u64,
    /// Whom each was asked of.
    asked: BTreeMap<RequestId, (PeerKey, Life)>,
    /// What is computed in which session.
    sessions: BTreeMap<SessionId, Part>,
    /// The newest chain of each session.
    chains: BTreeMap<SessionId, Chain>,
    inputs: usize,
    trace: Trace,
    /// How often what befell a chain.
    struck: BTreeMap<&'static str, u64>,
    invariants: Invariants,
    /// Whether the model may be held at two precisions.
    pub(super) is_mixed: bool,
    pub(super) tamper: Option<Tamper>,
    /// Peers that nobody can dial.
    pub(super) undialable: BTreeSet<PeerKey>,
    /// Pairs of which the first cannot dial the second.
    pub(super) severed: BTreeSet<(PeerKey, PeerKey)>,
    injected: BTreeSet<(PeerKey, StreamId)>,
    /// What was sent to ends that a test made: what an injected stream was answered.
    pub(super) answers: Vec<(StreamId, Option<Outgoing>)>,
}

impl World {
    /// Messages take up to `max_delay`, as `seed` says.
    pub(super) fn new(seed: u64, max_delay: Span) -> Self {
        Self {
            now: Time(1_000_000),
            hosts: BTreeMap::new(),
            agenda: Agenda::default(),
            network: Network::new(Chance::new(seed), max_delay),
            requests: 0,
            asked: BTreeMap::new(),
            sessions: BTreeMap::new(),
            chains: BTreeMap::new(),
            inputs: 0,
            trace: Trace::default(),
            struck: BTreeMap::new(),
            invariants: Invariants::default(),
            is_mixed: false,
            tamper: None,
            undialable: BTreeSet::new(),
            severed: BTreeSet::new(),
            injected: BTreeSet::new(),
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
        let policies = ranges.iter().map(|range| HoldPolicy::Pinned(*range)).collect();
        self.give(key(name), policies);
    }

    /// A peer that knows no model yet.
    pub(super) fn add_with(&mut self, name: u8, change: impl FnOnce(&mut NodeConfig)) {
        let mut config = setting::config(name);
        change(&mut config);
        let peer = config.identity.peer();
        for other in self.hosts.keys().copied().collect::<Vec<_>>() {
            self.agenda.schedule(self.now, Event::Meet(other, Input::PeerUp(peer)));
            self.agenda.schedule(self.now, Event::Meet(peer, Input::PeerUp(other)));
        }
        self.hosts.insert(peer, Host::new(config, self.now));
    }

    /// Gives a peer the model and lets it serve it, in this life and the next ones.
    pub(super) fn give(&mut self, peer: PeerKey, policies: Vec<HoldPolicy>) {
        self.host(peer).serves = Some(policies);
        self.tell_what_it_serves(peer);
    }

    pub(super) fn submit(&mut self, name: u8, spec: GenerateSpec) -> RequestId {
        self.submit_to(key(name), spec)
    }

    pub(super) fn submit_to(&mut self, peer: PeerKey, spec: GenerateSpec) -> RequestId {
        let request = RequestId(self.requests);
        self.requests += 1;
        let mut session = [0; 16];
        session[..8].copy_from_slice(&self.network.chance.next().to_be_bytes());
        session[8..].copy_from_slice(&self.requests.to_be_bytes());
        let session = SessionId::new(session);
        if !self.hosts[&peer].is_up() {
            return request;
        }
        self.asked.insert(request, (peer, self.hosts[&peer].life));
        let redundancy = spec.redundancy;
        for index in (0..CHAINS).filter(|index| *index == 0 || redundancy != Redundancy::NONE) {
            self.sessions.insert(session_of(session, ReplicaIndex(index)), Part { request, index, redundancy });
        }
        self.see(&Seen::Submitted { request, session, peer, spec: &spec });
        self.input(peer, Input::Submit { request, session, spec });
        request
    }

    /// The process is gone.
    pub(super) fn kill(&mut self, name: u8) {
        self.befall(Fault::Crash(key(name)));
    }

    /// The process stands still; its connections stay.
    pub(super) fn freeze(&mut self, name: u8) {
        self.befall(Fault::Freeze(key(name)));
    }

    /// From a position on, its engine computes something else than it is asked for.
    pub(super) fn lie(&mut self, name: u8, from: Position) {
        self.host(key(name)).engine.lies_from = Some(from);
    }

    /// Its engine does not come back any more.
    pub(super) fn hang(&mut self, name: u8) {
        self.befall(Fault::Hang(key(name)));
    }

    pub(super) fn unhang(&mut self, name: u8) {
        self.befall(Fault::Unhang(key(name)));
    }

    pub(super) fn thaw(&mut self, name: u8) {
        self.befall(Fault::Thaw(key(name)));
    }

    /// Computing and hearing take a peer so many times as long.
    pub(super) fn slow(&mut self, name: u8, factor: u64) {
        self.befall(Fault::Slow(key(name), factor));
    }

    /// The process is asked to stop.
    pub(super) fn leave(&mut self, name: u8) {
        self.befall(Fault::Leave(key(name)));
    }

    /// The connection between two peers breaks; who cannot dial the other does not find it again.
    pub(super) fn part_for_good(&mut self, one: PeerKey, other: PeerKey) {
        self.network.sever(one, other, &mut self.agenda, self.now);
    }

    /// Lets a fault befall the mesh, or makes it right again. One that no longer applies changes nothing.
    pub(super) fn befall(&mut self, fault: Fault) {
        let now = self.now;
        self.trace.note(now, &fault);
        trace::tell(now, PeerKey::new([0; 32]), &fault);
        self.see(&Seen::Befell(fault));
        match fault {
            Fault::Crash(peer) => self.crash(peer),
            Fault::CrashAtStore(peer, moment) => self.host(peer).doomed = Some(moment),
            Fault::Restart(peer) => self.restart(peer),
            Fault::Freeze(peer) => self.host(peer).is_frozen = true,
            Fault::Thaw(peer) => self.melt(peer),
            Fault::Hang(peer) => drop(self.host(peer).stuck.get_or_insert_default()),
            Fault::Unhang(peer) => {
                for input in self.host(peer).stuck.take().unwrap_or_default() {
                    self.input(peer, input);
                }
            }
            Fault::Break(one, other) => {
                self.network.sever(one, other, &mut self.agenda, now);
                self.part(one, other);
                self.meet(one, other, REDIAL);
            }
            Fault::Cut(from, to) => {
                self.network.cut(from, to);
                self.agenda.schedule(now.after(IDLE), Event::Befall(Fault::GiveUp(from, to)));
            }
            Fault::Mend(from, to) => {
                self.network.mend(from, to, &mut self.agenda, now);
                self.meet(from, to, REDIAL);
            }
            Fault::GiveUp(from, to) if self.network.is_cut(from, to) => {
                self.network.sever(from, to, &mut self.agenda, now);
                self.part(from, to);
            }
            // It was mended in time.
            Fault::GiveUp(..) => {}
            Fault::Slow(peer, factor) => {
                self.network.slow(peer, factor.div_ceil(8));
                self.host(peer).engine.slow(factor);
            }
            Fault::Leave(peer) => self.begin_to_leave(peer),
            Fault::Depart(peer, life) if self.hosts[&peer].life == life => self.depart(peer),
            // It could go earlier.
            Fault::Depart(..) => {}
        }
    }

    /// Nothing is wrong any more.
    pub(super) fn heal(&mut self) {
        for (from, to) in self.network.cuts() {
            self.befall(Fault::Mend(from, to));
        }
        self.network.doubled = 0;
        for peer in self.peers() {
            self.host(peer).doomed = None;
            self.befall(Fault::Slow(peer, 1));
            self.befall(Fault::Thaw(peer));
            self.befall(Fault::Unhang(peer));
            self.befall(Fault::Restart(peer));
        }
    }

    pub(super) fn input(&mut self, peer: PeerKey, input: Input) {
        self.inputs += 1;
        let now = self.now;
        if self.inputs >= MAX_INPUTS {
            assert!(self.invariants.is_watching(), "a run without end");
            return self.invariants.never_ends(now);
        }
        let Some(host) = self.hosts.get_mut(&peer) else { return };
        if host.is_frozen {
            return host.frozen.push(input);
        }
        if let (Some(stuck), Input::Engine(EngineInput::Stepped { .. } | EngineInput::StepFailed(..))) =
            (&mut host.stuck, &input)
        {
            return stuck.push(input);
        }
        let at = host.clock.at(now);
        let life = host.life;
        let Some(node) = &mut host.node else { return };
        self.trace.note(now, &(peer, trace::tag(&input)));
        trace::tell(now, peer, &input);
        for action in node.handle(input, at) {
            // It may have died of the one before.
            if self.hosts[&peer].life == life && self.hosts[&peer].node.is_some() {
                self.perform(peer, action);
            }
        }
        if self.hosts[&peer].may_go() {
            self.depart(peer);
        }
    }

    /// Runs until `done` says so, for at most `span`; whether it did.
    pub(super) fn run_until(&mut self, span: Span, mut done: impl FnMut(&Self) -> bool) -> bool {
        let end = self.now.after(span);
        while !done(self) {
            let event = self.agenda.next();
            let alarm = self.alarm();
            let next = event.into_iter().chain(alarm.map(|(at, _)| at)).min().filter(|&at| at <= end);
            let Some(at) = next else {
                self.now = end;
                return done(self);
            };
            self.now = self.now.max(at);
            if event == Some(at) {
                if let Some(event) = self.agenda.pop() {
                    self.happen(event);
                }
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
            _ => None,
        };
        self.deliveries(request).into_iter().filter_map(|(_, delivery)| token(delivery)).collect()
    }

    pub(super) fn ended(&self, request: RequestId) -> bool {
        self.deliveries(request).iter().any(|(_, end)| matches!(end, Delivery::Finished(_) | Delivery::Failed(_)))
    }

    pub(super) fn failure(&self, request: RequestId) -> Option<(Time, GenerateFailure)> {
        self.deliveries(request).into_iter().find_map(|(at, delivery)| match delivery {
            Delivery::Failed(failure) => Some((at, failure.clone())),
            _ => None,
        })
    }

    /// Every live peer has let go of everything.
    pub(super) fn assert_idle(&self) {
        assert_eq!(self.idle(), Ok(()));
    }

    /// Who still holds something, if anybody does.
    pub(super) fn idle(&self) -> Result<(), String> {
        for (peer, host) in self.hosts.iter().filter(|(_, host)| host.is_up()) {
            let Some(node) = &host.node else { continue };
            let held = (host.engine.sessions(), node.sessions(), node.requests(), node.cache());
            if held != (0, 0, 0, Bytes::ZERO) {
                return Err(format!("{peer} holds (in the engine, leases, requests, cache) {held:?}"));
            }
        }
        let up = |end: &End| self.hosts[&end.0].is_up();
        match self.network.links().find(|(end, other)| up(end) && up(other)) {
            Some((end, other)) => Err(format!("a stream is open: {end:?} to {other:?}")),
            None => Ok(()),
        }
    }

    /// Makes a stream arrive that no node opened; what it is answered lands in `answers`.
    pub(super) fn inject(&mut self, name: u8, arrival: StreamInput) -> StreamId {
        let stream = self.host(key(name)).arrival();
        self.injected.insert((key(name), stream));
        self.input(key(name), Input::Stream(stream, arrival));
        stream
    }

    /// Whether the process of the user who asked is the one that was asked.
    fn is_asked(&self, request: RequestId) -> bool {
        self.asked.get(&request).is_some_and(|(peer, life)| self.hosts[peer].life == *life)
    }

    /// Sets a host's clock, before it has been asked for anything.
    fn set_clock(&mut self, peer: PeerKey, offset: u64, drift: i64) {
        let now = self.now;
        self.host(peer).restart_clock(HostClock { began: now, shows: Time(now.0 + offset), drift });
    }

    fn peers(&self) -> Vec<PeerKey> {
        self.hosts.keys().copied().collect()
    }

    fn host(&mut self, peer: PeerKey) -> &mut Host {
        self.hosts.get_mut(&peer).expect("peers are named as they were added")
    }

    fn see(&mut self, seen: &Seen<'_>) {
        self.invariants.see(seen, self.now);
    }

    fn alarm(&self) -> Option<(Time, PeerKey)> {
        let up = self.hosts.iter().filter(|(_, host)| !host.is_frozen);
        up.filter_map(|(&peer, host)| Some((host.clock.when(host.node.as_ref()?.deadline()).max(self.now), peer))).min()
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tell(peer, life, input) if self.hosts[&peer].life == life => self.input(peer, input),
            Event::Meet(peer, input) => self.input(peer, input),
            Event::Arrive(end, event) => {
                if self.network.arrives(end, &event) {
                    self.input(end.0, Input::Stream(end.2, event));
                }
            }
            Event::Written(peer, life, entry) if self.hosts[&peer].life == life => {
                let host = self.host(peer);
                host.disk.push((*entry).clone());
                if host.doomed == Some(Moment::AfterWrite) {
                    return self.befall(Fault::Crash(peer));
                }
                let told = Event::Tell(peer, life, Input::EntryStored(*entry));
                self.agenda.schedule(self.now.after(DISK.1), told);
            }
            Event::Ask(peer, spec) => drop(self.submit_to(peer, *spec)),
            Event::Strike(blow) => self.strike(blow),
            Event::Befall(fault) => self.befall(fault),
            // It died meanwhile.
            Event::Tell(..) | Event::Written(..) => {}
        }
    }

    fn perform(&mut self, peer: PeerKey, action: Action) {
        let (now, life) = (self.now, self.hosts[&peer].life);
        trace::tell(now, peer, &action);
        self.see(&Seen::Asked { peer, life, action: &action });
        match action {
            Action::OpenControl(stream, to) => self.open((peer, life, stream), to, StreamInput::ControlArrived(peer)),
            Action::OpenHop(stream, to, open) => {
                self.open((peer, life, stream), to, StreamInput::HopArrived(peer, open));
            }
            Action::Send(stream, message) => self.carry((peer, life, stream), message),
            Action::Close(stream) => {
                if !self.network.close((peer, life, stream), &mut self.agenda, now)
                    && self.injected.contains(&(peer, stream))
                {
                    self.answers.push((stream, None));
                }
            }
            Action::Engine(action) => {
                for (at, event) in self.host(peer).engine.perform(action, now) {
                    self.agenda.schedule(at, Event::Tell(peer, life, Input::Engine(event)));
                }
            }
            Action::Publish(record) => self.gossip(peer, &record),
            Action::Store(entry) if self.host(peer).doomed == Some(Moment::BeforeWrite) => {
                drop(entry);
                self.befall(Fault::Crash(peer));
            }
            Action::Store(entry) => {
                self.agenda.schedule(now.after(DISK.0), Event::Written(peer, life, Box::new(entry)));
            }
            Action::StoreFork(_) | Action::Dial(_) => {}
            Action::Deliver(request, delivery) => {
                self.trace.note(now, &trace::delivered(request, &delivery));
                self.host(peer).deliveries.push((request, now, delivery));
            }
        }
    }

    fn open(&mut self, from: End, to: PeerKey, arrival: StreamInput) {
        let now = self.now;
        let gone = self.hosts.get(&to).is_none_or(|host| host.node.is_none());
        if gone || self.undialable.contains(&to) || self.severed.contains(&(from.0, to)) {
            return Network::refuse(from, self.network.max_delay, &mut self.agenda, now);
        }
        let host = self.host(to);
        let end = (to, host.life, host.arrival());
        self.network.link(from, end, arrival, &mut self.agenda, now);
    }

    fn carry(&mut self, from: End, mut message: Outgoing) {
        if let Outgoing::ToStage(ToStage::Offer(offer)) = &message
            && self.sessions.contains_key(&offer.session)
        {
            self.chains.insert(offer.session, offer.chain.clone());
        }
        if let Some(tamper) = &mut self.tamper {
            tamper(from.0, &mut message);
        }
        if self.injected.contains(&(from.0, from.2)) {
            return self.answers.push((from.2, Some(message)));
        }
        let arrives = match message {
            Outgoing::ToStage(message) => StreamInput::ToStage(message),
            Outgoing::FromStage(message) => StreamInput::FromStage(message),
            Outgoing::Forward(message) => StreamInput::Forward(message),
            Outgoing::Back(message) => StreamInput::Back(message),
        };
        // What is sent on a stream that has broken goes nowhere.
        self.network.carry(from, arrives, &mut self.agenda, self.now);
    }

    /// Others hear what passes the doors that it must pass on a real wire.
    fn gossip(&mut self, from: PeerKey, record: &Gossip) {
        let bytes = record.encode();
        assert!(bytes.len() <= Gossip::MAX);
        let heard = Gossip::decode(&bytes, NETWORK).unwrap();
        for peer in self.peers().into_iter().filter(|peer| *peer != from) {
            let twice = self.network.chance.percent(self.network.doubled);
            for _ in 0..=u8::from(twice) {
                let at = self.now.after(self.network.delay(peer));
                if !self.network.is_cut(from, peer) {
                    self.agenda.schedule(at, Event::Meet(peer, Input::Gossip(heard.clone())));
                }
            }
        }
    }

    /// Strikes a stage of a chain that an answer is on its way through, if there is any.
    fn strike(&mut self, Blow { kind, lasts }: Blow) {
        let chains: Vec<(PeerKey, Chain)> = self.asked.keys().flat_map(|request| self.under_way(*request)).collect();
        if chains.is_empty() {
            return;
        }
        let (requester, chain) = &chains[self.network.chance.below(chains.len() as u64) as usize];
        let place = self.network.chance.below(chain.stages().len() as u64) as usize;
        let peer = chain.stages()[place].peer;
        let next = chain.stages()[(place + 1) % chain.stages().len()].peer;
        let later = self.now.after(lasts);
        let (fault, end) = match kind {
            BlowKind::Crash => (Fault::Crash(peer), Some(Fault::Restart(peer))),
            BlowKind::Freeze => (Fault::Freeze(peer), Some(Fault::Thaw(peer))),
            BlowKind::Hang => (Fault::Hang(peer), Some(Fault::Unhang(peer))),
            BlowKind::Break => (Fault::Break(peer, next), None),
            BlowKind::Cut => (Fault::Cut(peer, next), Some(Fault::Mend(peer, next))),
            BlowKind::BreakControl => (Fault::Break(*requester, peer), None),
            BlowKind::Slow => (Fault::Slow(peer, 60), Some(Fault::Slow(peer, 1))),
            BlowKind::Leave => (Fault::Leave(peer), None),
        };
        *self.struck.entry(fault.kind()).or_default() += 1;
        self.befall(fault);
        if let Some(end) = end {
            self.agenda.schedule(later, Event::Befall(end));
        }
    }

    /// Who asked, and the chains that the answer is on its way through.
    fn under_way(&self, request: RequestId) -> Vec<(PeerKey, Chain)> {
        let first = self.first_under_way(request);
        let compared = self.sessions.iter().filter(|(_, part)| part.request == request && part.index > 0);
        let others: BTreeMap<u16, &Chain> =
            compared.filter_map(|(session, part)| Some((part.index, self.chains.get(session)?))).collect();
        let others = first.iter().flat_map(|(peer, _)| others.values().map(|chain| (*peer, (*chain).clone())));
        let others: Vec<_> = others.collect();
        first.into_iter().chain(others).collect()
    }

    fn first_under_way(&self, request: RequestId) -> Option<(PeerKey, Chain)> {
        let (peer, _) = self.asked.get(&request).filter(|_| self.is_asked(request) && !self.ended(request))?;
        let chain = self.deliveries(request).into_iter().rev().find_map(|(_, delivery)| match delivery {
            Delivery::Started(chain, _) => Some(chain.clone()),
            Delivery::Mended(mended) => Some(mended.chain.clone()),
            _ => None,
        });
        Some((*peer, chain?))
    }

    fn crash(&mut self, peer: PeerKey) {
        if self.hosts[&peer].node.is_none() {
            return;
        }
        let now = self.now;
        self.see(&Seen::Died(peer));
        self.host(peer).die();
        self.network.die(peer, &mut self.agenda, now);
        for other in self.peers().into_iter().filter(|other| *other != peer) {
            let at = now.after(self.network.delay(other));
            self.agenda.schedule(at, Event::Meet(other, Input::PeerDown(peer)));
        }
    }

    fn begin_to_leave(&mut self, peer: PeerKey) {
        if self.hosts[&peer].node.is_none() || self.hosts[&peer].leaving.is_some() {
            return;
        }
        let others = self.hosts.iter().filter(|(of, host)| **of != peer && host.is_up() && host.leaving.is_none());
        let others = others.map(|(of, host)| (*of, host.life)).collect();
        self.host(peer).leaving = Some(others);
        let latest = Event::Befall(Fault::Depart(peer, self.hosts[&peer].life));
        self.agenda.schedule(self.now.after(DRAIN), latest);
        self.input(peer, Input::Drain);
    }

    /// A process that was asked to stop goes, and another takes its place.
    fn depart(&mut self, peer: PeerKey) {
        let needless = self.holds_needlessly(peer);
        self.see(&Seen::Left { peer, needless: &needless });
        self.crash(peer);
        self.agenda.schedule(self.now.after(REBOOT), Event::Befall(Fault::Restart(peer)));
    }

    /// Sessions of others that a leaver holds, though others that have been there since it was asked to stop could have taken over.
    fn holds_needlessly(&self, peer: PeerKey) -> BTreeSet<SessionId> {
        let is_needless = |session: &SessionId| {
            let Some(Part { request, redundancy, .. }) = self.sessions.get(session) else { return false };
            // Its own user's answers end with it.
            let is_of_another = self.asked.get(request).is_some_and(|(requester, _)| *requester != peer);
            is_of_another && self.can_be_taken_over(peer, *session, *redundancy)
        };
        self.hosts[&peer].engine.holds().into_iter().filter(is_needless).collect()
    }

    /// Whether a chain of the session can do without the leaver. One chain may be cut anywhere; several are cut at the same units, and
    /// no unit of two is at one peer.
    fn can_be_taken_over(&self, leaver: PeerKey, session: SessionId, redundancy: Redundancy) -> bool {
        let Some(others) = &self.hosts[&leaver].leaving else { return false };
        let spares: Vec<&Host> =
            self.hosts.iter().filter(|(of, host)| others.get(*of) == Some(&host.life)).map(|(_, host)| host).collect();
        let spares = || spares.iter().filter(|host| host.is_up() && host.leaving.is_none());
        let serving = |range: UnitRange| spares().filter(|host| range.iter().all(|unit| host.serves(unit))).count();
        let parts: Vec<UnitRange> = match self.chains.get(&session) {
            Some(chain) if redundancy != Redundancy::NONE => chain.stages().iter().map(|stage| stage.range).collect(),
            Some(_) | None => (0..shape().units()).map(|unit| range(unit, unit + 1)).collect(),
        };
        parts.into_iter().all(|part| serving(part) >= usize::from(redundancy.chains()))
    }

    fn restart(&mut self, peer: PeerKey) {
        if self.hosts[&peer].node.is_some() {
            return;
        }
        let now = self.now;
        let drift = self.hosts[&peer].clock.drift;
        self.host(peer).start(now, drift);
        for other in self.peers().into_iter().filter(|other| *other != peer) {
            self.meet(peer, other, REDIAL);
        }
        self.tell_what_it_serves(peer);
    }

    fn tell_what_it_serves(&mut self, peer: PeerKey) {
        let Some(policies) = self.hosts[&peer].serves.clone() else { return };
        let known = if self.is_mixed { setting::facts_of_two_precisions().to_vec() } else { vec![setting::facts()] };
        known.into_iter().for_each(|facts| self.input(peer, Input::ModelKnown(facts.into())));
        for policy in policies {
            self.input(peer, Input::Serve { model: MODEL, policy });
        }
    }

    fn melt(&mut self, peer: PeerKey) {
        self.host(peer).is_frozen = false;
        for input in std::mem::take(&mut self.host(peer).frozen) {
            self.input(peer, input);
        }
    }

    fn part(&mut self, one: PeerKey, other: PeerKey) {
        for (peer, gone) in [(one, other), (other, one)] {
            let at = self.now.after(self.network.delay(peer));
            self.agenda.schedule(at, Event::Meet(peer, Input::PeerDown(gone)));
        }
    }

    /// Two peers find each other, if nothing keeps them apart.
    fn meet(&mut self, one: PeerKey, other: PeerKey, after: Span) {
        let apart = self.network.is_cut(one, other) || self.network.is_cut(other, one);
        let gone = [one, other].iter().any(|peer| self.hosts[peer].node.is_none());
        if !apart && !gone {
            let at = self.now.after(after);
            self.agenda.schedule(at, Event::Meet(one, Input::PeerUp(other)));
            self.agenda.schedule(at, Event::Meet(other, Input::PeerUp(one)));
        }
    }
}
