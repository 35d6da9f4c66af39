//! Who owes whom: every requester's signed log, checked, summed and watched for forks.
//!
//! An entry is its requester's own statement of a debt, so it counts whoever brings it and in whatever order entries
//! come: a balance is the sum over the entries known. A peer that joins late has not seen a requester's first entries
//! and is paid all the same; entries that meet must be linked by their hashes, and two headers with one number are
//! proof of cheating ([`Fork`]), after which nothing more of that requester is taken.
//!
//! Nothing is applied by [`Ledger::plan`]. The caller stores the plan's [`Row`]s, then calls [`Ledger::commit`], and
//! only then tells anybody.
//!
//! Memory is bounded: anybody can make keys and sign debts with them, so strangers' logs (those that owe this peer
//! nothing) have bounds of their own that leave room for the logs of this peer's debtors.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use thiserror::Error;

use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::ids::SessionId;
use crate::wire::control::SettleRefusal;
use crate::wire::credit::CreditEntry;
use crate::wire::credit::CreditHeader;
use crate::wire::credit::CreditLine;
use crate::wire::credit::hash_lines;
use crate::wire::credit::sum_lines;

mod fork;
mod log;
#[cfg(test)]
mod tests;

pub use fork::Fork;
use log::Log;
use log::Seen;

/// Logs, pairs of peers and entries of each class that are kept (arbitrary; together about 100 MiB at the worst).
const STRANGERS: Bounds = Bounds { logs: 2_048, pairs: 65_536, entries: 100_000 };
const DEBTORS: Bounds = Bounds { logs: 4_096, pairs: 262_144, entries: 10_000_000 };

/// The most entries that [`Ledger::entries`] has; older ones are in the store only (arbitrary).
const MAX_RECENT: usize = 1_024;

/// The most proofs that are kept (arbitrary).
const MAX_FORKS: usize = 4_096;

/// The credit logs of all requesters, as far as this peer knows them.
#[derive(Clone, Debug)]
pub struct Ledger {
    me: PeerKey,
    logs: BTreeMap<PeerKey, Log>,
    used: BTreeMap<Class, Bounds>,
    forks: BTreeMap<PeerKey, Fork>,
    /// In the order of their coming.
    recent: VecDeque<CreditEntry>,
}

/// What is to be stored and then applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The entry is known. There is nothing to store.
    Known,
    /// The entry is new and belongs to its log.
    Append(Box<CreditEntry>),
    /// The requester has signed two headers with one number.
    Fork(Box<Fork>),
}

/// A row of the stored log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// A new entry.
    Entry(Box<CreditEntry>),
    /// A new proof of cheating.
    Fork(Box<Fork>),
}

/// Why an entry is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LedgerError {
    /// Its neighbour in the log has another hash: the requester keeps two logs, or none.
    #[error("entry {sequence} of {} is not linked to its neighbour in the log", .requester.short())]
    Broken {
        /// Whose log.
        requester: PeerKey,
        /// The entry.
        sequence: u64,
    },
    /// The requester is known to have forked its log.
    #[error("{} has signed two entries with the number {sequence}", .requester.short())]
    Forked {
        /// Whose log.
        requester: PeerKey,
        /// The number that has two headers.
        sequence: u64,
    },
    /// An entry with this number is known, but too old to be compared from memory. [`Fork::between`] compares it with
    /// the stored one.
    #[error("entry {sequence} of {} is too old to be compared from memory", .requester.short())]
    Old {
        /// Whose log.
        requester: PeerKey,
        /// The entry.
        sequence: u64,
    },
    /// The log has more holes than are kept count of.
    #[error("the log of {} has too many holes", .requester.short())]
    Holes {
        /// Whose log.
        requester: PeerKey,
    },
    /// As much of the log's class is kept as will be.
    #[error("no room for the log of {}", .requester.short())]
    Full {
        /// Whose log.
        requester: PeerKey,
    },
    /// A sum that cannot be counted.
    #[error("the debts of {} cannot be counted", .requester.short())]
    Overflow {
        /// Whose log.
        requester: PeerKey,
    },
    /// No more numbers.
    #[error("the log of {} has reached its last number", .requester.short())]
    Exhausted {
        /// Whose log.
        requester: PeerKey,
    },
}

impl LedgerError {
    /// Whether the requester broke its own log, and not this peer ran out of room.
    pub const fn is_requesters_fault(&self) -> bool {
        match self {
            Self::Broken { .. } | Self::Forked { .. } | Self::Holes { .. } => true,
            Self::Overflow { .. } | Self::Exhausted { .. } => true,
            Self::Old { .. } | Self::Full { .. } => false,
        }
    }

    /// What a stage answers to a requester whose entry it does not take.
    pub const fn refusal(&self) -> SettleRefusal {
        match self {
            Self::Broken { .. } | Self::Holes { .. } => SettleRefusal::Invalid,
            Self::Overflow { .. } | Self::Exhausted { .. } => SettleRefusal::Invalid,
            Self::Forked { .. } => SettleRefusal::Fork,
            Self::Old { .. } | Self::Full { .. } => SettleRefusal::NotStored,
        }
    }
}

/// Whose log it is, as far as this peer is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Class {
    Own,
    Debtor,
    Stranger,
}

impl Class {
    /// The most that is kept of all logs of the class; its own log a peer must never lose sight of.
    const fn bounds(self) -> Bounds {
        match self {
            Self::Own => Bounds { logs: usize::MAX, pairs: usize::MAX, entries: usize::MAX },
            Self::Debtor => DEBTORS,
            Self::Stranger => STRANGERS,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Bounds {
    logs: usize,
    pairs: usize,
    entries: usize,
}

impl Bounds {
    fn of(log: &Log) -> Self {
        Self { logs: 1, pairs: log.creditors(), entries: log.entries() }
    }

    const fn plus(self, other: Self) -> Self {
        Self {
            logs: self.logs.saturating_add(other.logs),
            pairs: self.pairs.saturating_add(other.pairs),
            entries: self.entries.saturating_add(other.entries),
        }
    }

    const fn minus(self, other: Self) -> Self {
        Self {
            logs: self.logs.saturating_sub(other.logs),
            pairs: self.pairs.saturating_sub(other.pairs),
            entries: self.entries.saturating_sub(other.entries),
        }
    }

    const fn within(self, limit: Self) -> bool {
        self.logs <= limit.logs && self.pairs <= limit.pairs && self.entries <= limit.entries
    }
}

impl Plan {
    /// What is to be stored before the plan is committed.
    pub fn rows(&self) -> Vec<Row> {
        match self {
            Self::Known => Vec::new(),
            Self::Append(entry) => vec![Row::Entry(entry.clone())],
            Self::Fork(fork) => vec![Row::Fork(fork.clone())],
        }
    }
}

impl Ledger {
    /// An empty ledger of the peer `me`.
    pub const fn new(me: PeerKey) -> Self {
        Self { me, logs: BTreeMap::new(), used: BTreeMap::new(), forks: BTreeMap::new(), recent: VecDeque::new() }
    }

    /// Takes up stored rows, in the order in which they were stored. What no longer fits is left out.
    pub fn restore(me: PeerKey, rows: impl IntoIterator<Item = Row>) -> Self {
        let mut ledger = Self::new(me);
        for row in rows {
            let plan = match row {
                Row::Entry(entry) => ledger.plan(&entry).unwrap_or(Plan::Known),
                Row::Fork(fork) => Plan::Fork(fork),
            };
            ledger.commit(plan);
        }
        ledger
    }

    /// Applies a plan whose rows are stored. A plan that was already committed changes nothing.
    pub fn commit(&mut self, plan: Plan) {
        match plan {
            Plan::Known => {}
            Plan::Append(entry) => self.append(*entry),
            Plan::Fork(fork) => {
                if self.forks.len() < MAX_FORKS || fork.requester() == self.me {
                    self.forks.entry(fork.requester()).or_insert(*fork);
                }
            }
        }
    }

    fn append(&mut self, entry: CreditEntry) {
        let header = entry.header.value;
        if self.logs.get(&header.requester).is_some_and(|log| log.has(header.sequence)) {
            return;
        }
        let class_before = self.class(header.requester);
        let log = self.logs.entry(header.requester).or_default();
        let before = if log.entries() == 0 { Bounds::default() } else { Bounds::of(log) };
        log.append(&entry);
        let after = Bounds::of(log);
        let used = self.used.entry(class_before).or_default();
        *used = used.minus(before);
        let used = self.used.entry(self.class(header.requester)).or_default();
        *used = used.plus(after);
        if self.recent.len() == MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(entry);
    }

    /// Says what a verified entry changes, without changing it.
    ///
    /// # Errors
    /// [`LedgerError`] if the entry is not taken.
    pub fn plan(&self, entry: &CreditEntry) -> Result<Plan, LedgerError> {
        let CreditHeader { requester, sequence, .. } = entry.header.value;
        let seen = self.logs.get(&requester).map_or(Seen::New, |log| log.look_up(&entry.header.value));
        match (seen, self.forks.get(&requester)) {
            (Seen::Same, _) => return Ok(Plan::Known),
            (_, Some(fork)) => return Err(LedgerError::Forked { requester, sequence: fork.sequence() }),
            (Seen::Other(known), None) => {
                let fork = Fork::between(&known, &entry.header);
                return fork.map(|fork| Plan::Fork(Box::new(fork))).ok_or(LedgerError::Old { requester, sequence });
            }
            (Seen::Forgotten, None) => return Err(LedgerError::Old { requester, sequence }),
            (Seen::Unlinked, None) => return Err(LedgerError::Broken { requester, sequence }),
            (Seen::New, None) => {}
        }
        self.check_room(entry)?;
        Ok(Plan::Append(Box::new(entry.clone())))
    }

    /// Plans to take up a proof from elsewhere: from gossip, or from comparison with a stored entry.
    pub fn plan_fork(&self, fork: Fork) -> Plan {
        if self.forks.contains_key(&fork.requester()) { Plan::Known } else { Plan::Fork(Box::new(fork)) }
    }

    fn check_room(&self, entry: &CreditEntry) -> Result<(), LedgerError> {
        let requester = entry.header.value.requester;
        let empty = Log::default();
        let log = self.logs.get(&requester).unwrap_or(&empty);
        log.check_holes(entry.header.value.sequence).then_some(()).ok_or(LedgerError::Holes { requester })?;
        let pairs = log.new_creditors(entry).ok_or(LedgerError::Overflow { requester })?;
        let becomes = if entry.lines.iter().any(|line| line.stage == self.me && requester != self.me) {
            Class::Debtor
        } else {
            self.class(requester)
        };
        let used = self.used.get(&becomes).copied().unwrap_or_default();
        let more = if log.entries() == 0 || becomes != self.class(requester) {
            Bounds { logs: 1, pairs: log.creditors() + pairs, entries: log.entries() + 1 }
        } else {
            Bounds { logs: 0, pairs, entries: 1 }
        };
        used.plus(more).within(becomes.bounds()).then_some(()).ok_or(LedgerError::Full { requester })
    }

    /// What the log of `requester` is to this peer.
    fn class(&self, requester: PeerKey) -> Class {
        if requester == self.me {
            return Class::Own;
        }
        let owes_me = self.logs.get(&requester).is_some_and(|log| log.owes(self.me).is_some());
        if owes_me { Class::Debtor } else { Class::Stranger }
    }

    /// The header of this peer's next entry, to be signed only after the plan of its entry is stored.
    ///
    /// # Errors
    /// [`LedgerError::Overflow`] if the lines' sum cannot be counted, [`LedgerError::Exhausted`] after the last number.
    pub fn next_header(
        &self,
        session: SessionId,
        model: ModelId,
        positions: Position,
        lines: &[CreditLine],
    ) -> Result<CreditHeader, LedgerError> {
        let requester = self.me;
        let (sequence, previous) = match self.newest(requester) {
            Some(newest) => {
                let next = newest.sequence.checked_add(1).ok_or(LedgerError::Exhausted { requester })?;
                (next, newest.hash())
            }
            None => (0, [0; 32]),
        };
        let total = sum_lines(lines).ok_or(LedgerError::Overflow { requester })?;
        Ok(CreditHeader { requester, sequence, previous, session, model, positions, lines: hash_lines(lines), total })
    }

    /// The entry of `requester` with the highest number.
    pub fn newest(&self, requester: PeerKey) -> Option<CreditHeader> {
        self.logs.get(&requester)?.newest()
    }

    /// What `debtor` owes `creditor`: the sum over all known entries. Nobody owes itself.
    pub fn balance(&self, debtor: PeerKey, creditor: PeerKey) -> Mflop {
        self.logs.get(&debtor).and_then(|log| log.owes(creditor)).unwrap_or_default()
    }

    /// Every debtor with each of its creditors and what it owes it, ascending.
    pub fn balances(&self) -> impl Iterator<Item = (PeerKey, PeerKey, Mflop)> {
        self.logs.iter().flat_map(|(&debtor, log)| log.debts().map(move |(creditor, owed)| (debtor, creditor, owed)))
    }

    /// What `peer` owes to all others.
    pub fn owed_by(&self, peer: PeerKey) -> Mflop {
        self.logs.get(&peer).map_or(Mflop::ZERO, |log| log.debts().map(|(_, owed)| owed).sum())
    }

    /// What all others owe to `peer`.
    pub fn earned_by(&self, peer: PeerKey) -> Mflop {
        self.logs.values().filter_map(|log| log.owes(peer)).sum()
    }

    /// The latest entries, newest first, at most 1,024 of them.
    pub fn entries(&self) -> impl Iterator<Item = &CreditEntry> {
        self.recent.iter().rev()
    }

    /// Every known proof of cheating, one per requester.
    pub fn forks(&self) -> impl Iterator<Item = &Fork> {
        self.forks.values()
    }

    /// The proof that `requester` has cheated, if there is one.
    pub fn fork_of(&self, requester: PeerKey) -> Option<&Fork> {
        self.forks.get(&requester)
    }
}
