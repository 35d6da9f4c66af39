//! Whom to dial, and when: join addresses for ever but ever more rarely, known peers a few times. Pure; time is the
//! number of ticks (seconds) since the start.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use libp2p::Multiaddr;
use libp2p::PeerId;

/// The longest pause between two attempts, in ticks.
const MAX_PAUSE: u64 = 60;

/// Attempts at a known peer before it is forgotten; the DHT may name it again.
const MAX_FAILURES: u32 = 6;

/// Known peers, at most.
const MAX_KNOWN: usize = 2048;

/// Addresses kept per peer.
const MAX_ADDRESSES: usize = 8;

/// Dials begun per tick, at most.
const MAX_PER_TICK: usize = 16;

/// Up to this many connected peers, everybody known is connected to. Above, dials are on demand.
const FULL_MESH: usize = 64;

/// What to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A join address, by its place in the list.
    Join(usize, Multiaddr),
    /// A known peer.
    Peer(PeerId, Vec<Multiaddr>),
}

/// What came of a join address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum JoinState {
    /// Not answered yet.
    Waiting,
    /// Answered by this peer.
    Joined(PeerId),
    /// It is this very peer's.
    Own,
    /// Failed, for this reason, so far.
    Failed(String),
}

#[derive(Debug)]
struct Join {
    address: Multiaddr,
    state: JoinState,
    failures: u32,
    next: u64,
}

/// What is known of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing speaks against it.
    Fresh,
    /// The last dial to it failed, or the peer itself has named others since.
    Doubtful,
}

#[derive(Debug, Default)]
struct Known {
    addresses: BTreeMap<Multiaddr, Standing>,
    failures: u32,
    next: u64,
}

impl Known {
    /// Adds an address that is not known yet. When there are too many, a doubtful one makes way first.
    fn add(&mut self, address: Multiaddr) {
        if self.addresses.contains_key(&address) {
            return;
        }
        if self.addresses.len() >= MAX_ADDRESSES {
            let doubtful = self.addresses.iter().find(|(_, standing)| **standing == Standing::Doubtful);
            if let Some((least, _)) = doubtful.or_else(|| self.addresses.first_key_value()) {
                let least = least.clone();
                self.addresses.remove(&least);
            }
        }
        self.addresses.insert(address, Standing::Fresh);
    }
}

/// Remembers addresses, attempts and pauses.
#[derive(Debug)]
pub(super) struct Dialer {
    joins: Vec<Join>,
    known: BTreeMap<PeerId, Known>,
}

/// Twice as long after each failure, up to a minute.
fn pause(failures: u32) -> u64 {
    1u64.checked_shl(failures).unwrap_or(MAX_PAUSE).min(MAX_PAUSE)
}

impl Dialer {
    pub(super) fn new(joins: Vec<Multiaddr>) -> Self {
        let join = |address| Join { address, state: JoinState::Waiting, failures: 0, next: 0 };
        Self { joins: joins.into_iter().map(join).collect(), known: BTreeMap::new() }
    }

    /// What to dial at this tick. Everything returned counts as tried.
    pub(super) fn due(&mut self, tick: u64, connected: &BTreeSet<PeerId>) -> Vec<Target> {
        let mut due = Vec::new();
        for (index, join) in self.joins.iter_mut().enumerate() {
            let done = match &join.state {
                JoinState::Joined(peer) => connected.contains(peer),
                JoinState::Own => true,
                JoinState::Waiting | JoinState::Failed(_) => false,
            };
            if !done && join.next <= tick && due.len() < MAX_PER_TICK {
                join.next = tick + pause(join.failures.saturating_add(1));
                due.push(Target::Join(index, join.address.clone()));
            }
        }
        if connected.len() >= FULL_MESH {
            return due;
        }
        for (peer, known) in &mut self.known {
            if !connected.contains(peer) && known.next <= tick && due.len() < MAX_PER_TICK {
                known.next = tick + pause(known.failures.saturating_add(1));
                due.push(Target::Peer(*peer, known.addresses.keys().cloned().collect()));
            }
        }
        due
    }

    /// Hears of addresses of a peer, from anyone. That one of them failed is remembered: whoever names it may not know.
    pub(super) fn learn(&mut self, peer: PeerId, addresses: impl IntoIterator<Item = Multiaddr>) {
        let mut addresses = addresses.into_iter().peekable();
        if addresses.peek().is_some()
            && let Some(known) = self.entry(peer)
        {
            addresses.for_each(|address| known.add(address));
        }
    }

    /// Hears from a peer itself where it is: at these addresses, and no longer at others as far as it knows.
    pub(super) fn hear(&mut self, peer: PeerId, addresses: &BTreeSet<Multiaddr>) {
        if let Some(known) = self.entry(peer) {
            for (address, standing) in &mut known.addresses {
                *standing = if addresses.contains(address) { Standing::Fresh } else { Standing::Doubtful };
            }
            addresses.iter().for_each(|address| known.add(address.clone()));
        }
    }

    /// A dial to an address of a peer failed.
    pub(super) fn on_address_failed(&mut self, peer: &PeerId, address: &Multiaddr) {
        let known = self.known.get_mut(peer).and_then(|known| known.addresses.get_mut(address));
        if let Some(standing) = known {
            *standing = Standing::Doubtful;
        }
    }

    /// The addresses known of a peer.
    pub(super) fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.known.get(peer).map(|known| known.addresses.keys().cloned().collect()).unwrap_or_default()
    }

    /// Those of them that nothing speaks against.
    pub(super) fn fresh(&self, peer: &PeerId) -> Vec<Multiaddr> {
        let known = self.known.get(peer).into_iter().flat_map(|known| &known.addresses);
        known.filter(|(_, standing)| **standing == Standing::Fresh).map(|(address, _)| address.clone()).collect()
    }

    fn entry(&mut self, peer: PeerId) -> Option<&mut Known> {
        let room = self.known.len() < MAX_KNOWN || self.known.contains_key(&peer);
        room.then(|| self.known.entry(peer).or_default())
    }

    /// A peer is one of us.
    pub(super) fn on_connected(&mut self, peer: &PeerId) {
        if let Some(known) = self.known.get_mut(peer) {
            known.failures = 0;
        }
    }

    /// The last connection to a peer is gone: it is tried again soon.
    pub(super) fn on_lost(&mut self, peer: &PeerId, tick: u64) {
        if let Some(known) = self.known.get_mut(peer) {
            known.next = tick + 1;
        }
    }

    /// A known peer could not be reached.
    pub(super) fn on_failed(&mut self, peer: &PeerId, tick: u64) {
        if let Some(known) = self.known.get_mut(peer) {
            known.failures += 1;
            known.next = tick + pause(known.failures);
            if known.failures >= MAX_FAILURES {
                self.known.remove(peer);
            }
        }
    }

    /// Nothing more is to be had of this peer.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.known.remove(peer);
    }

    /// A join address was answered.
    pub(super) fn on_joined(&mut self, index: usize, state: JoinState, tick: u64) {
        if let Some(join) = self.joins.get_mut(index) {
            join.failures = if matches!(state, JoinState::Failed(_)) { join.failures.saturating_add(1) } else { 0 };
            join.next = tick + pause(join.failures);
            join.state = state;
        }
    }

    /// Marks the join addresses that led to `peer` as failed.
    pub(super) fn on_refused(&mut self, peer: &PeerId, reason: &str, tick: u64) {
        for index in 0..self.joins.len() {
            if self.joins[index].state == JoinState::Joined(*peer) {
                // The pause goes on growing over the refusals.
                self.joins[index].failures = self.joins[index].failures.max(4);
                self.on_joined(index, JoinState::Failed(reason.to_owned()), tick);
            }
        }
    }

    /// Every join address with what came of it.
    pub(super) fn joins(&self) -> impl Iterator<Item = (&Multiaddr, &JoinState)> {
        self.joins.iter().map(|join| (&join.address, &join.state))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap()
    }

    #[test]
    fn a_join_address_is_tried_for_ever_but_ever_more_rarely() {
        let mut dialer = Dialer::new(vec![address(1)]);
        let mut attempts = Vec::new();
        for tick in 0..400 {
            if !dialer.due(tick, &BTreeSet::new()).is_empty() {
                attempts.push(tick);
                dialer.on_joined(0, JoinState::Failed("no".to_owned()), tick);
            }
        }

        let pauses: Vec<_> = attempts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses[..6], [2, 4, 8, 16, 32, 60]);
        assert!(pauses[6..].iter().all(|&pause| pause == 60) && pauses.len() > 8);
    }

    #[test]
    fn a_lost_peer_is_dialled_again_and_forgotten_after_some_failures() {
        let (mut dialer, peer) = (Dialer::new(vec![]), PeerId::random());
        dialer.learn(peer, [address(1)]);
        assert_eq!(dialer.due(0, &BTreeSet::new()), [Target::Peer(peer, vec![address(1)])]);
        assert_eq!(dialer.due(9, &BTreeSet::from([peer])), []);
        dialer.on_lost(&peer, 9);

        let mut attempts = 0;
        for tick in 10..10_000 {
            if !dialer.due(tick, &BTreeSet::new()).is_empty() {
                attempts += 1;
                dialer.on_failed(&peer, tick);
            }
        }

        assert_eq!(attempts, MAX_FAILURES);
        assert_eq!(dialer.addresses(&peer), []);
    }

    #[test]
    fn an_address_that_failed_is_fresh_again_only_at_the_peers_own_word() {
        let (mut dialer, peer) = (Dialer::new(vec![]), PeerId::random());
        dialer.learn(peer, [address(1)]);
        dialer.on_address_failed(&peer, &address(1));

        dialer.learn(peer, [address(1), address(2)]);
        assert_eq!((dialer.addresses(&peer), dialer.fresh(&peer)), (vec![address(1), address(2)], vec![address(2)]));
        dialer.hear(peer, &BTreeSet::from([address(1)]));
        assert_eq!((dialer.addresses(&peer), dialer.fresh(&peer)), (vec![address(1), address(2)], vec![address(1)]));
    }

    #[test]
    fn an_address_that_failed_makes_way_first() {
        let (mut dialer, peer) = (Dialer::new(vec![]), PeerId::random());
        dialer.learn(peer, (0..8).map(address));
        dialer.on_address_failed(&peer, &address(5));

        dialer.learn(peer, [address(9)]);

        assert_eq!(dialer.fresh(&peer), [0, 1, 2, 3, 4, 6, 7, 9].map(address));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut dialer = Dialer::new(vec![]);
        let peer = PeerId::random();
        dialer.learn(peer, (0..100).map(address));
        for _ in 0..3 * MAX_KNOWN {
            dialer.learn(PeerId::random(), [address(1)]);
        }

        assert_eq!(dialer.addresses(&peer).len(), MAX_ADDRESSES);
        assert_eq!(dialer.known.len(), MAX_KNOWN);
        assert_eq!(dialer.due(0, &BTreeSet::new()).len(), MAX_PER_TICK);
    }
}
