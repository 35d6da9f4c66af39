//! The node: composes the decisions of membership, placement, routing, session and ledger. Pure: `Input` in, `Action` out.
//!
//! ```text
//!            Input                                                     Action
//!  user ────▶ requests ── routing ── session::replicas ───────────────▶ streams, deliveries
//!  streams ─▶ requests | stages ── session::stage ── scheduler ────────▶ streams, engine
//!  engine ──▶ stages | holdings
//!  gossip ──▶ neighbours ── membership ── holdings ── placement ───────▶ engine, gossip
//!         └─▶ credit ── ledger ───────────────────────────────────────▶ store, then gossip
//! ```

mod admission;
pub mod config;
mod credit;
mod holdings;
pub mod io;
pub mod needs;
mod neighbours;
mod planning;
mod profile;
mod requests;
#[cfg(test)]
mod sim;
mod stages;
mod streams;
mod stuck;
#[cfg(test)]
mod tests;
mod views;

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use crate::amounts::Time;
use crate::ids::BootSeq;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::ids::RequestId;
use crate::ids::StreamId;
use crate::ledger::Ledger;
use crate::membership::Membership;
use crate::membership::announcer::Announcer;
use crate::node::config::NodeConfig;
use crate::node::credit::Credit;
use crate::node::holdings::Holdings;
use crate::node::io::Action;
use crate::node::io::EngineInput;
use crate::node::io::Input;
use crate::node::io::ModelFacts;
use crate::node::requests::Request;
use crate::node::stages::Pace;
use crate::node::stages::Stages;
use crate::node::streams::Owner;
use crate::session::replicas::Replicas;
use crate::session::streams::StreamIds;
use crate::units::UnitRange;

/// One peer's mind.
#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
    me: PeerKey,
    membership: Membership,
    announcer: Announcer,
    models: BTreeMap<ModelId, Arc<ModelFacts>>,
    holdings: Holdings,
    /// Weights on disk that are given to others.
    given: BTreeMap<ModelId, Vec<UnitRange>>,
    requests: BTreeMap<RequestId, Request>,
    stages: Stages,
    credit: Credit,
    owners: BTreeMap<StreamId, Owner>,
    ids: StreamIds,
    departure: Departure,
    /// The order under which another process speaks with this peer's key, if one was heard.
    impostor: Option<BootSeq>,
    actions: Vec<Action>,
}

/// Whether the peer is about to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It stays.
    Staying,
    /// It takes no new leases and requests; those that others have are handed over.
    Draining,
}

impl Node {
    /// A node that knows nobody yet. `ledger` is what the store has.
    pub fn new(config: NodeConfig, ledger: Ledger, now: Time) -> Self {
        let me = config.identity.peer();
        Self {
            me,
            membership: Membership::new(me, config.membership),
            announcer: Announcer::new(config.boot, now),
            models: BTreeMap::new(),
            holdings: Holdings::default(),
            given: BTreeMap::new(),
            requests: BTreeMap::new(),
            stages: Stages::new(config.scheduler),
            credit: Credit::new(ledger),
            owners: BTreeMap::new(),
            ids: StreamIds::default(),
            departure: Departure::Staying,
            impostor: None,
            actions: Vec::new(),
            config,
        }
    }

    /// Advances by one input. The driver performs the returned actions in order.
    pub fn handle(&mut self, input: Input, now: Time) -> Vec<Action> {
        match input {
            Input::Submit { request, session, spec } => self.on_submit(request, session, spec, now),
            Input::Cancel(request) => self.with_request(request, now, |replicas, _| replicas.cancel(now)),
            Input::Conclude(request) => self.with_request(request, now, |replicas, _| replicas.conclude(now)),
            Input::ModelKnown(facts) => self.on_model_known(facts, now),
            Input::Given(model, ranges) => self.on_given(model, ranges, now),
            Input::Serve { model, policy } => self.on_serve(model, policy, now),
            Input::PeerUp(peer) => self.on_peer_up(peer, now),
            Input::PeerDown(peer) => self.on_peer_down(peer, now),
            Input::RoundTrip(peer, span) => self.on_round_trip(peer, span, now),
            Input::Gossip(record) => self.on_gossip(record, now),
            Input::Stream(stream, event) => self.on_stream(stream, event, now),
            Input::Engine(event) => self.on_engine(event, now),
            Input::EntryStored(entry) => self.on_entry_stored(&entry, now),
            Input::EntryNotStored(entry) => self.on_entry_not_stored(&entry, now),
            Input::Drain => self.on_drain(now),
            Input::Tick => self.on_tick(now),
        }
        self.welcome_engine(now);
        self.pump(now);
        mem::take(&mut self.actions)
    }

    /// When to come back with [`Input::Tick`] at the latest, if nothing else happens.
    pub fn deadline(&self) -> Time {
        let requests = self.requests.values().filter_map(|request| request.replicas.deadline());
        let others = [self.membership.next_deadline(), self.holdings.deadline(), self.stages.deadline()];
        requests.chain(others.into_iter().flatten()).fold(self.announcer.next_deadline(), Time::min)
    }

    fn on_engine(&mut self, event: EngineInput, now: Time) {
        match event {
            EngineInput::Loaded(model, range, per_unit) => self.on_loaded(model, range, per_unit, now),
            EngineInput::LoadFailed(model, range, _) => self.on_load_failed(model, range, now),
            EngineInput::Stepped { key, end, output, took, share } => {
                self.on_stepped(key, end, output, Pace { took, share }, now);
            }
            EngineInput::StepFailed(key, failure) => self.on_step_failed(key, failure, now),
        }
    }

    fn on_drain(&mut self, now: Time) {
        if self.departure == Departure::Staying {
            self.departure = Departure::Draining;
            self.profile_changed(now);
            self.drain_stages(now);
        }
    }

    fn on_tick(&mut self, now: Time) {
        self.tick_neighbours(now);
        self.tick_holdings(now);
        self.tick_stages(now);
        self.watch_engine(now);
        for request in self.requests.keys().copied().collect::<Vec<_>>() {
            self.with_request(request, now, |replicas: &mut Replicas, _| replicas.on_tick(now));
        }
    }
}
