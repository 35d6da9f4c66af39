//! What is known of every other peer, bounded.
//!
//! A full table refuses strangers. A neighbour always finds room: the stranger that came last makes way, so that
//! whoever floods the table with keys evicts its own. Only the order of an expired profile is remembered; when there
//! are too many of those, the one that would be forgotten first is.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::BootSeq;
use crate::ids::PeerKey;
use crate::membership::Change;
use crate::membership::Failure;
use crate::membership::MembershipConfig;
use crate::membership::PeerState;
use crate::membership::Standing;
use crate::membership::announcer::lifetime;
use crate::wire::profile::Profile;

/// How long after a lost connection a profile of the same boot may still be one that was under way (arbitrary).
const UNDER_WAY: Span = Span::seconds(2);

/// A profile and the end of its validity.
#[derive(Clone, Debug)]
struct Heard {
    profile: Profile,
    expires: Time,
}

/// Failures of a peer since its last success.
#[derive(Clone, Copy, Debug)]
struct Demotion {
    failure: Failure,
    count: u32,
    until: Time,
    served: Served,
}

/// Whether the end of a penalty was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    Not,
    Told,
}

/// What is kept of a peer with a connection or a valid profile.
#[derive(Clone, Debug)]
struct Record {
    first_seen: Time,
    order: Option<BootSeq>,
    heard: Option<Heard>,
    connected: bool,
    suspected: Option<Time>,
    demotion: Option<Demotion>,
    round_trip: Option<Span>,
    /// The record's entry among the deadlines.
    wake: Option<Time>,
}

impl Record {
    fn new(now: Time) -> Self {
        Self {
            first_seen: now,
            order: None,
            heard: None,
            connected: false,
            suspected: None,
            demotion: None,
            round_trip: None,
            wake: None,
        }
    }

    fn profile(&self, now: Time) -> Option<&Profile> {
        self.heard.as_ref().filter(|heard| now < heard.expires).map(|heard| &heard.profile)
    }

    fn standing(&self, now: Time) -> Standing {
        let Some(profile) = self.profile(now) else {
            return Standing::Silent;
        };
        if profile.draining {
            return Standing::Draining;
        }
        match self.demotion {
            Some(demotion) if now < demotion.until => Standing::Demoted { until: demotion.until },
            Some(_) | None if self.suspected.is_some() => Standing::Suspected,
            Some(_) | None => Standing::Offered,
        }
    }

    fn deadline(&self) -> Option<Time> {
        let expires = self.heard.as_ref().map(|heard| heard.expires);
        let until = self.demotion.filter(|demotion| demotion.served == Served::Not).map(|demotion| demotion.until);
        [expires, until].into_iter().flatten().min()
    }
}

/// What is kept of a peer that is gone.
#[derive(Clone, Copy, Debug)]
struct Ghost {
    order: BootSeq,
    demotion: Option<Demotion>,
    forget: Time,
}

/// The table of peers.
#[derive(Clone, Debug)]
pub(super) struct Peers {
    config: MembershipConfig,
    records: BTreeMap<PeerKey, Record>,
    deadlines: BTreeSet<(Time, PeerKey)>,
    ghosts: BTreeMap<PeerKey, Ghost>,
    forgetting: BTreeSet<(Time, PeerKey)>,
}

impl Peers {
    pub(super) fn new(config: MembershipConfig) -> Self {
        Self {
            config,
            records: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            ghosts: BTreeMap::new(),
            forgetting: BTreeSet::new(),
        }
    }

    pub(super) fn profile_heard(&mut self, profile: Profile, now: Time) -> Vec<Change> {
        let peer = profile.peer;
        if self.order(peer).is_some_and(|seen| profile.order <= seen) || !self.admit(peer, now) {
            return Vec::new();
        }
        let expires = now.after(profile.valid_for.min(lifetime(self.records.len())));
        let Some(record) = self.records.get_mut(&peer) else {
            return Vec::new();
        };
        let known = record.profile(now).is_some();
        let rebooted = record.order.is_some_and(|seen| seen.boot < profile.order.boot);
        let mut changes = vec![if known { Change::ProfileRenewed(peer) } else { Change::PeerAppeared(peer) }];
        if record.suspected.is_some_and(|since| rebooted || now >= since.after(UNDER_WAY)) {
            record.suspected = None;
            changes.push(Change::PeerRestored(peer));
        }
        record.order = Some(profile.order);
        record.heard = Some(Heard { profile, expires });
        self.rearm(peer);
        changes
    }

    pub(super) fn connected(&mut self, peer: PeerKey, now: Time) -> Vec<Change> {
        if !self.admit_neighbour(peer, now) {
            return Vec::new();
        }
        let Some(record) = self.records.get_mut(&peer) else {
            return Vec::new();
        };
        record.connected = true;
        let suspected = record.suspected.take().is_some();
        let undialled = record.demotion.take_if(|demotion| demotion.failure == Failure::Dial);
        let demoted = undialled.is_some_and(|demotion| now < demotion.until);
        self.rearm(peer);
        if suspected || demoted { vec![Change::PeerRestored(peer)] } else { Vec::new() }
    }

    pub(super) fn disconnected(&mut self, peer: PeerKey, now: Time) -> Vec<Change> {
        let Some(record) = self.records.get_mut(&peer) else {
            return Vec::new();
        };
        record.connected = false;
        record.round_trip = None;
        if record.profile(now).is_none() {
            self.bury(peer, now);
            return Vec::new();
        }
        if record.suspected.replace(now).is_some() {
            return Vec::new();
        }
        vec![Change::PeerSuspected(peer)]
    }

    /// A shorter one is believed at once: the way is no longer than that. A longer one may be a machine that was busy, so it is smoothed
    /// in with a weight of 1/8 (RFC 6298 §2).
    pub(super) fn round_trip_measured(&mut self, peer: PeerKey, span: Span) {
        if let Some(record) = self.records.get_mut(&peer) {
            let smoothed = |old: Span| Span(old.times(7).plus(span).0 / 8);
            record.round_trip = Some(record.round_trip.map_or(span, |old| span.min(smoothed(old))));
        }
    }

    pub(super) fn failed(&mut self, peer: PeerKey, failure: Failure, now: Time) -> Vec<Change> {
        let MembershipConfig { first_penalty, longest_penalty, .. } = self.config;
        let Some(record) = self.records.get_mut(&peer) else {
            return Vec::new();
        };
        let count = record.demotion.map_or(0, |demotion| demotion.count);
        let penalty = match failure {
            Failure::Lie => longest_penalty,
            Failure::Dial | Failure::Lease => first_penalty.times(1 << count.min(32)).min(longest_penalty),
        };
        let until = now.after(penalty);
        // What was graver stays until it is made up for, and a lie as long as its penalty lasts.
        let standing = record.demotion.filter(|old| old.failure != Failure::Lie || now < old.until);
        let failure = standing.map_or(failure, |old| failure.max(old.failure));
        let until = standing.filter(|old| old.failure == Failure::Lie).map_or(until, |old| until.max(old.until));
        record.demotion = Some(Demotion { failure, count: count.saturating_add(1), until, served: Served::Not });
        self.rearm(peer);
        vec![Change::PeerDemoted { peer, until }]
    }

    pub(super) fn succeeded(&mut self, peer: PeerKey, now: Time) -> Vec<Change> {
        let Some(record) = self.records.get_mut(&peer) else {
            return Vec::new();
        };
        let lied = |demotion: &mut Demotion| demotion.failure == Failure::Lie && now < demotion.until;
        let demoted = record.demotion.take_if(|demotion| !lied(demotion)).is_some_and(|demotion| now < demotion.until);
        let suspected = record.suspected.take().is_some();
        self.rearm(peer);
        if demoted || suspected { vec![Change::PeerRestored(peer)] } else { Vec::new() }
    }

    pub(super) fn ticked(&mut self, now: Time) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Some(&(_, peer)) = self.deadlines.first().filter(|(at, _)| *at <= now) {
            self.wake(peer, now, &mut changes);
        }
        while let Some(&(at, peer)) = self.forgetting.first().filter(|(at, _)| *at <= now) {
            self.forgetting.remove(&(at, peer));
            self.ghosts.remove(&peer);
        }
        changes
    }

    pub(super) fn next_deadline(&self) -> Option<Time> {
        let first = |set: &BTreeSet<(Time, PeerKey)>| set.first().map(|(at, _)| *at);
        [first(&self.deadlines), first(&self.forgetting)].into_iter().flatten().min()
    }

    pub(super) fn states(&self, now: Time) -> impl Iterator<Item = PeerState<'_>> {
        let state = move |(&peer, record)| Self::state_of(peer, record, now);
        self.records.iter().map(state).filter(|state| state.connected || state.profile.is_some())
    }

    pub(super) fn state(&self, peer: PeerKey, now: Time) -> Option<PeerState<'_>> {
        self.records.get(&peer).map(|record| Self::state_of(peer, record, now))
    }

    /// The order of the newest announcement seen, also of a peer that is gone.
    pub(super) fn order(&self, peer: PeerKey) -> Option<BootSeq> {
        let remembered = || self.ghosts.get(&peer).map(|ghost| ghost.order);
        self.records.get(&peer).and_then(|record| record.order).or_else(remembered)
    }

    pub(super) fn is_neighbour(&self, peer: PeerKey) -> bool {
        self.records.get(&peer).is_some_and(|record| record.connected)
    }

    pub(super) fn round_trip(&self, peer: PeerKey) -> Option<Span> {
        self.records.get(&peer).and_then(|record| record.round_trip)
    }

    pub(super) fn nearest(&self, count: usize) -> Vec<(PeerKey, Span)> {
        let measured = self.records.iter().filter_map(|(&peer, record)| Some((record.round_trip?, peer)));
        let mut measured: Vec<_> = measured.collect();
        measured.sort_unstable();
        measured.into_iter().take(count).map(|(span, peer)| (peer, span)).collect()
    }

    fn state_of(peer: PeerKey, record: &Record, now: Time) -> PeerState<'_> {
        PeerState {
            peer,
            profile: record.profile(now),
            connected: record.connected,
            standing: record.standing(now),
            round_trip: record.round_trip,
        }
    }

    /// Makes sure that `peer` has a record, if there is room for a stranger.
    fn admit(&mut self, peer: PeerKey, now: Time) -> bool {
        if self.records.contains_key(&peer) {
            return true;
        }
        if self.records.len() >= self.config.max_peers {
            return false;
        }
        self.open(peer, now);
        true
    }

    /// Makes sure that `peer` has a record, at the cost of the latest stranger; fails only among neighbours alone.
    fn admit_neighbour(&mut self, peer: PeerKey, now: Time) -> bool {
        if !self.records.contains_key(&peer) && self.records.len() >= self.config.max_peers {
            let strangers = self.records.iter().filter(|(_, record)| !record.connected);
            let Some((_, stranger)) = strangers.map(|(&key, record)| (record.first_seen, key)).max() else {
                return false;
            };
            self.bury(stranger, now);
        }
        self.admit(peer, now)
    }

    fn open(&mut self, peer: PeerKey, now: Time) {
        let mut record = Record::new(now);
        if let Some(ghost) = self.ghosts.remove(&peer) {
            self.forgetting.remove(&(ghost.forget, peer));
            record.order = Some(ghost.order);
            record.demotion = ghost.demotion;
        }
        self.records.insert(peer, record);
        self.rearm(peer);
    }

    /// Keeps of a peer only what a stale announcement must not undo.
    fn bury(&mut self, peer: PeerKey, now: Time) {
        let Some(record) = self.records.remove(&peer) else {
            return;
        };
        if let Some(wake) = record.wake {
            self.deadlines.remove(&(wake, peer));
        }
        let Some(order) = record.order else {
            return;
        };
        let full = self.ghosts.len() >= self.config.max_peers;
        if let Some((_, forgotten)) = full.then(|| self.forgetting.pop_first()).flatten() {
            self.ghosts.remove(&forgotten);
        }
        let forget = now.after(self.config.remember);
        self.ghosts.insert(peer, Ghost { order, demotion: record.demotion, forget });
        self.forgetting.insert((forget, peer));
    }

    fn wake(&mut self, peer: PeerKey, now: Time, changes: &mut Vec<Change>) {
        let Some(record) = self.records.get_mut(&peer) else {
            return;
        };
        if let Some(demotion) = record.demotion.as_mut().filter(|demotion| demotion.until <= now) {
            if demotion.served == Served::Not && record.suspected.is_none() {
                changes.push(Change::PeerRestored(peer));
            }
            demotion.served = Served::Told;
        }
        if record.heard.take_if(|heard| heard.expires <= now).is_some() {
            record.suspected = None;
            changes.push(Change::PeerExpired(peer));
        }
        if record.heard.is_none() && !record.connected {
            self.bury(peer, now);
        } else {
            self.rearm(peer);
        }
    }

    fn rearm(&mut self, peer: PeerKey) {
        let Some(record) = self.records.get_mut(&peer) else {
            return;
        };
        if let Some(old) = record.wake.take() {
            self.deadlines.remove(&(old, peer));
        }
        record.wake = record.deadline();
        if let Some(wake) = record.wake {
            self.deadlines.insert((wake, peer));
        }
    }
}
