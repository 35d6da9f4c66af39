//! One requester's log, as far as it is known.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::amounts::Mflop;
use crate::ids::PeerKey;
use crate::wire::credit::CreditEntry;
use crate::wire::credit::CreditHeader;
use crate::wire::signed::Signed;

/// How many of the newest headers stay in memory, to be linked and compared (arbitrary).
const MAX_KEPT: usize = 32;

/// The most runs of known numbers: a log with more holes is not followed (arbitrary).
const MAX_RUNS: usize = 64;

/// What one requester has signed.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    /// The newest headers with their signatures, by number.
    kept: BTreeMap<u64, (CreditHeader, [u8; 64])>,
    /// Runs of known numbers, first and last, ascending, never adjacent.
    runs: Vec<(u64, u64)>,
    owed: BTreeMap<PeerKey, Mflop>,
    entries: usize,
}

/// What a log knows of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It is known.
    Same,
    /// Another one with its number is known.
    Other(Box<Signed<CreditHeader>>),
    /// One with its number is known, but no longer in memory.
    Forgotten,
    /// Its number is not known, and a neighbour's hash is another.
    Unlinked,
    /// Its number is not known.
    New,
}

impl Log {
    /// Takes up an entry that the other methods have found to fit.
    pub(super) fn append(&mut self, entry: &CreditEntry) {
        let Signed { value: header, signature, .. } = entry.header;
        self.runs = self.runs_with(header.sequence);
        self.kept.insert(header.sequence, (header, signature));
        if self.kept.len() > MAX_KEPT {
            self.kept.pop_first();
        }
        for line in entry.lines.iter().filter(|line| line.stage != header.requester) {
            let owed = self.owed.entry(line.stage).or_default();
            *owed = owed.plus(line.work);
        }
        self.entries += 1;
    }

    pub(super) fn look_up(&self, header: &CreditHeader) -> Seen {
        match self.kept.get(&header.sequence) {
            Some((known, _)) if known == header => Seen::Same,
            Some((known, signature)) => {
                let (author, body) = (known.requester, Bytes::copy_from_slice(&known.encode()));
                Seen::Other(Box::new(Signed { value: *known, author, body, signature: *signature }))
            }
            None if self.has(header.sequence) => Seen::Forgotten,
            None if self.is_linked(header) => Seen::New,
            None => Seen::Unlinked,
        }
    }

    /// Whether the neighbours that are in memory agree with `header`.
    fn is_linked(&self, header: &CreditHeader) -> bool {
        let neighbour = |sequence: Option<u64>| sequence.and_then(|sequence| self.kept.get(&sequence));
        let before = neighbour(header.sequence.checked_sub(1));
        let after = neighbour(header.sequence.checked_add(1));
        before.is_none_or(|(before, _)| before.hash() == header.previous)
            && after.is_none_or(|(after, _)| after.previous == header.hash())
    }

    /// Whether an entry with this number is known.
    pub(super) fn has(&self, sequence: u64) -> bool {
        let run = self.runs.partition_point(|&(_, last)| last < sequence);
        self.runs.get(run).is_some_and(|&(first, _)| first <= sequence)
    }

    /// Whether the log with this number has few enough holes.
    pub(super) fn check_holes(&self, sequence: u64) -> bool {
        self.runs_with(sequence).len() <= MAX_RUNS
    }

    fn runs_with(&self, sequence: u64) -> Vec<(u64, u64)> {
        let mut points = self.runs.clone();
        points.push((sequence, sequence));
        points.sort_unstable();
        let mut runs: Vec<(u64, u64)> = Vec::with_capacity(points.len());
        for (first, last) in points {
            match runs.last_mut() {
                Some(run) if first <= run.1.saturating_add(1) => run.1 = run.1.max(last),
                _ => runs.push((first, last)),
            }
        }
        runs
    }

    /// How many creditors `entry` adds; `None` if a sum could no longer be counted.
    pub(super) fn new_creditors(&self, entry: &CreditEntry) -> Option<usize> {
        let mut sums: BTreeMap<PeerKey, u64> = BTreeMap::new();
        for line in entry.lines.iter().filter(|line| line.stage != entry.header.value.requester) {
            let known = self.owed.get(&line.stage).map_or(0, |owed| owed.0);
            let sum = sums.entry(line.stage).or_insert(known);
            *sum = sum.checked_add(line.work.0)?;
        }
        Some(sums.keys().filter(|creditor| !self.owed.contains_key(creditor)).count())
    }

    pub(super) fn newest(&self) -> Option<CreditHeader> {
        self.kept.last_key_value().map(|(_, (header, _))| *header)
    }

    /// What the requester owes `creditor`, if it is one.
    pub(super) fn owes(&self, creditor: PeerKey) -> Option<Mflop> {
        self.owed.get(&creditor).copied()
    }

    /// Every creditor with what it is owed, ascending.
    pub(super) fn debts(&self) -> impl Iterator<Item = (PeerKey, Mflop)> {
        self.owed.iter().map(|(&creditor, &owed)| (creditor, owed))
    }

    pub(super) const fn entries(&self) -> usize {
        self.entries
    }

    pub(super) fn creditors(&self) -> usize {
        self.owed.len()
    }
}
