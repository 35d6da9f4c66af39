//! One machine: a process that may die and be started again, its engine, its disk and its clock.

use std::collections::BTreeMap;

use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::RequestId;
use crate::ids::StreamId;
use crate::ledger::Ledger;
use crate::ledger::Row;
use crate::node::Node;
use crate::node::config::NodeConfig;
use crate::node::io::Delivery;
use crate::node::io::HoldPolicy;
use crate::node::io::Input;
use crate::node::sim::agenda::Life;
use crate::node::sim::clock::HostClock;
use crate::node::sim::engine::ToyEngine;
use crate::node::sim::fault::Moment;
use crate::wire::credit::CreditEntry;

/// One machine.
pub(super) struct Host {
    config: NodeConfig,
    /// What it serves of the model, once it has it.
    pub(super) serves: Option<Vec<HoldPolicy>>,
    pub(super) node: Option<Node>,
    pub(super) life: Life,
    pub(super) engine: ToyEngine,
    pub(super) clock: HostClock,
    /// Entries in the order in which they were written.
    pub(super) disk: Vec<CreditEntry>,
    /// When it is to die.
    pub(super) doomed: Option<Moment>,
    /// What it will be told when it goes on.
    pub(super) frozen: Vec<Input>,
    pub(super) is_frozen: bool,
    /// What its engine will say when it comes back, if it does not.
    pub(super) stuck: Option<Vec<Input>>,
    /// If it was asked to stop: who else was there then, in which life, and was not.
    pub(super) leaving: Option<BTreeMap<PeerKey, Life>>,
    arrivals: u64,
    pub(super) deliveries: Vec<(RequestId, Time, Delivery)>,
}

impl Host {
    pub(super) fn new(config: NodeConfig, now: Time) -> Self {
        let node = Node::new(config.clone(), Ledger::new(config.identity.peer()), now);
        Self {
            config,
            serves: None,
            node: Some(node),
            life: 1,
            engine: ToyEngine::default(),
            clock: HostClock::RIGHT,
            disk: Vec::new(),
            doomed: None,
            frozen: Vec::new(),
            is_frozen: false,
            stuck: None,
            leaving: None,
            arrivals: 0,
            deliveries: Vec::new(),
        }
    }

    /// Another process with the same identity and disk. A process counts its time from its own beginning.
    pub(super) fn start(&mut self, now: Time, drift: i64) {
        self.config.boot += 1;
        self.clock = HostClock { began: now, shows: Time(1_000), drift };
        let rows = self.disk.iter().map(|entry| Row::Entry(Box::new(entry.clone())));
        let ledger = Ledger::restore(self.config.identity.peer(), rows);
        self.node = Some(Node::new(self.config.clone(), ledger, self.clock.at(now)));
    }

    /// Begins with another clock.
    pub(super) fn restart_clock(&mut self, clock: HostClock) {
        self.clock = clock;
        self.node = Some(Node::new(self.config.clone(), Ledger::new(self.config.identity.peer()), clock.shows));
    }

    /// The process is gone, with all that it had in memory.
    pub(super) fn die(&mut self) {
        self.life += 1;
        self.node = None;
        self.engine.die();
        self.doomed = None;
        self.is_frozen = false;
        self.stuck = None;
        self.leaving = None;
        self.frozen.clear();
    }

    pub(super) fn is_up(&self) -> bool {
        self.node.is_some() && !self.is_frozen
    }

    /// Whether its process was asked to stop and nobody needs it any more.
    pub(super) fn may_go(&self) -> bool {
        self.leaving.is_some() && self.node.as_ref().is_some_and(Node::is_drained)
    }

    /// Whether it serves a unit.
    pub(super) fn serves(&self, unit: u16) -> bool {
        let of =
            |policy: &HoldPolicy| matches!(policy, HoldPolicy::Pinned(range) if range.iter().any(|own| own == unit));
        self.serves.iter().flatten().any(of)
    }

    /// The id of a stream that arrives.
    pub(super) fn arrival(&mut self) -> StreamId {
        self.arrivals += 1;
        StreamId(2 * self.arrivals + 1)
    }
}
