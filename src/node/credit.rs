//! The credit log: what this peer owes, signed; what others owe, checked. Plan, store, commit, then tell.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use crate::amounts::Position;
use crate::amounts::Time;
use crate::ids::ModelId;
use crate::ids::RequestId;
use crate::ids::SessionId;
use crate::ledger::Ledger;
use crate::ledger::Plan;
#[cfg(feature = "mutants")]
use crate::mutants::Mutant;
#[cfg(feature = "mutants")]
use crate::mutants::is_planted;
use crate::node::Node;
use crate::node::io::Action;
use crate::node::io::StageKey;
use crate::wire::control::SettleRefusal;
use crate::wire::credit::CreditEntry;
use crate::wire::credit::CreditLine;
use crate::wire::gossip::Gossip;

/// Entries on their way to the disk (arbitrary; a disk that is this far behind takes no more from gossip).
const MAX_PLANNED: usize = 256;

/// Own debts that may wait before no more requests are taken: those under way may each leave one more (arbitrary).
const MAX_DEBTS: usize = 64;

/// What an own request owes.
#[derive(Debug)]
pub(super) struct Debt {
    pub(super) request: RequestId,
    pub(super) session: SessionId,
    pub(super) model: ModelId,
    pub(super) positions: Position,
    pub(super) lines: Vec<CreditLine>,
}

/// Names an entry: blake3 of its header.
type EntryHash = [u8; 32];

/// An entry that is being stored, and who waits for it.
#[derive(Debug)]
struct Planned {
    plan: Plan,
    stages: Vec<StageKey>,
    /// The own request that owes, and the session of it.
    request: Option<(RequestId, SessionId)>,
}

/// The log and what is on its way into it.
#[derive(Debug)]
pub(super) struct Credit {
    ledger: Ledger,
    planned: BTreeMap<EntryHash, Planned>,
    /// Own debts that wait: an entry continues the one before, so one is stored at a time. At most one per session.
    debts: VecDeque<Debt>,
    /// The own entry that is being stored.
    own: Option<EntryHash>,
}

impl Credit {
    pub(super) fn new(ledger: Ledger) -> Self {
        Self { ledger, planned: BTreeMap::new(), debts: VecDeque::new(), own: None }
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Whether the disk is too far behind to owe any more.
    pub(super) fn is_behind(&self) -> bool {
        self.debts.len() >= MAX_DEBTS
    }
}

impl Node {
    /// Signs and stores what a request owes, after those that wait.
    pub(super) fn owe(&mut self, debt: Debt, now: Time) {
        self.credit.debts.push_back(debt);
        self.sign_next(now);
    }

    fn sign_next(&mut self, now: Time) {
        while self.credit.own.is_none() {
            let Some(debt) = self.credit.debts.pop_front() else { return };
            let (request, session) = (debt.request, debt.session);
            match self.sign(debt) {
                Some((entry, plan)) => {
                    let hash = entry.header.value.hash();
                    self.credit.own = Some(hash);
                    self.credit
                        .planned
                        .insert(hash, Planned { plan, stages: Vec::new(), request: Some((request, session)) });
                    #[cfg(feature = "mutants")]
                    if is_planted(Mutant::TellBeforeStored) {
                        self.actions.push(Action::Publish(Gossip::Credit(entry.clone())));
                    }
                    self.actions.push(Action::Store(entry));
                }
                None => self.with_request(request, now, |replicas, _| replicas.on_not_signed(session, now)),
            }
        }
    }

    /// The entry of a debt, or `None` if the own log takes no more: its numbers are used up, or it was forked.
    fn sign(&self, debt: Debt) -> Option<(CreditEntry, Plan)> {
        let Debt { session, model, positions, lines, .. } = debt;
        let header = self.credit.ledger.next_header(session, model, positions, &lines).ok()?;
        let entry = CreditEntry::seal(&header, lines, &self.config.identity, self.config.network).ok()?;
        let plan = self.credit.ledger.plan(&entry).ok()?;
        Some((entry, plan))
    }

    /// A requester settles with a stage here.
    pub(super) fn on_settlement(&mut self, key: StageKey, entry: CreditEntry, now: Time) {
        if let Some(planned) = self.credit.planned.get_mut(&entry.header.value.hash()) {
            // This peer is two stages of the session, or gossip was faster.
            return planned.stages.push(key);
        }
        match self.credit.ledger.plan(&entry) {
            Ok(Plan::Known) => self.with_stage(key, now, |stage| stage.on_stored()),
            Ok(Plan::Fork(fork)) => {
                self.forked(Plan::Fork(fork));
                self.with_stage(key, now, |stage| stage.on_refused(SettleRefusal::Fork));
            }
            Ok(plan @ Plan::Append(_)) => self.store(entry, Planned { plan, stages: vec![key], request: None }),
            Err(error) => self.with_stage(key, now, |stage| stage.on_refused(error.refusal())),
        }
    }

    /// An entry came by gossip. One that the ledger does not take is of no use, and nobody waits for an answer.
    pub(super) fn on_credit_heard(&mut self, entry: CreditEntry) {
        let hash = entry.header.value.hash();
        if self.credit.planned.contains_key(&hash) || self.credit.planned.len() >= MAX_PLANNED {
            return;
        }
        match self.credit.ledger.plan(&entry) {
            Ok(Plan::Known) | Err(_) => {}
            Ok(plan @ Plan::Fork(_)) => self.forked(plan),
            Ok(plan @ Plan::Append(_)) => self.store(entry, Planned { plan, stages: Vec::new(), request: None }),
        }
    }

    pub(super) fn on_entry_stored(&mut self, entry: &CreditEntry, now: Time) {
        let Some(planned) = self.credit.planned.remove(&entry.header.value.hash()) else { return };
        self.credit.ledger.commit(planned.plan);
        for key in planned.stages {
            self.with_stage(key, now, |stage| stage.on_stored());
        }
        if let Some((request, _)) = planned.request {
            self.credit.own = None;
            self.actions.push(Action::Publish(Gossip::Credit(entry.clone())));
            self.with_request(request, now, |replicas, _| replicas.on_signed(entry, now));
            self.sign_next(now);
        }
    }

    pub(super) fn on_entry_not_stored(&mut self, entry: &CreditEntry, now: Time) {
        let Some(planned) = self.credit.planned.remove(&entry.header.value.hash()) else { return };
        for key in planned.stages {
            self.with_stage(key, now, |stage| stage.on_refused(SettleRefusal::NotStored));
        }
        if let Some((request, session)) = planned.request {
            self.credit.own = None;
            self.with_request(request, now, |replicas, _| replicas.on_not_signed(session, now));
            self.sign_next(now);
        }
    }

    fn store(&mut self, entry: CreditEntry, planned: Planned) {
        self.credit.planned.insert(entry.header.value.hash(), planned);
        self.actions.push(Action::Store(entry));
    }

    /// A proof of cheating stands by itself, so it counts before it is on disk.
    fn forked(&mut self, plan: Plan) {
        if let Plan::Fork(fork) = &plan {
            self.actions.push(Action::StoreFork(fork.clone()));
        }
        self.credit.ledger.commit(plan);
    }
}
