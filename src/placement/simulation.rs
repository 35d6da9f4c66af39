//! Many peers on one virtual clock and one lossy, slow gossip, from one seed.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::*;

/// A deterministic source of chance (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % sides
    }

    fn span(&mut self, least_millis: u64, most_millis: u64) -> Span {
        Span::millis(least_millis + self.roll(most_millis - least_millis + 1))
    }
}

/// What one peer heard of another last.
#[derive(Clone)]
struct Said {
    order: u64,
    other: Other,
}

struct Peer {
    key: PeerKey,
    starts: Time,
    placement: Option<Placement>,
    needs: Needs,
    offer: Offer,
    heard: BTreeMap<PeerKey, Said>,
    published: u64,
    dirty: Option<Time>,
    next_publish: Time,
    dead: bool,
}

enum Happening {
    Gossip { to: usize, said: Said },
    Own { peer: usize, event: Event },
    Noticed { peer: usize, gone: PeerKey },
}

/// How the mesh behaves.
#[derive(Clone, Copy)]
struct Weather {
    lost_percent: u64,
    slowest_millis: u64,
    /// Before, nobody hears anybody.
    deaf: Span,
}

const FAIR: Weather = Weather { lost_percent: 0, slowest_millis: 100, deaf: Span::ZERO };
const ROUGH: Weather = Weather { lost_percent: 20, slowest_millis: 500, deaf: Span::ZERO };
const LATE: Weather = Weather { lost_percent: 0, slowest_millis: 100, deaf: Span::seconds(6) };

pub(super) struct Simulation {
    dice: Dice,
    weather: Weather,
    now: Time,
    units: u16,
    peers: Vec<Peer>,
    queue: BTreeMap<(Time, u64), Happening>,
    queued: u64,
    pub(super) trace: String,
    /// When the last decision was taken.
    last_decision: Time,
    loads: usize,
}

const MODEL: ModelId = ModelId::new([7; 32]);
const TICK: Span = Span::millis(25);
const UNIT: u64 = 100;

pub(super) fn key(index: usize) -> PeerKey {
    PeerKey::new([u8::try_from(index + 1).unwrap(); 32])
}

pub(super) fn needs(units: u16) -> Needs {
    Needs {
        model: MODEL,
        unit_bytes: vec![Bytes(UNIT); usize::from(units)],
        shared_ends: Bytes::ZERO,
        reserve: Bytes::ZERO,
    }
}

pub(super) fn capped(cap: u16) -> Offer {
    Offer { budget: Bytes(UNIT * 1_000), max_units: Some(cap), pinned: None }
}

pub(super) fn limited(units: u16) -> Offer {
    Offer { budget: Bytes(UNIT * u64::from(units)), max_units: None, pinned: None }
}

impl Simulation {
    fn new(seed: u64, weather: Weather, units: u16, offers: &[Offer]) -> Self {
        let mut dice = Dice(seed);
        let peer = |(index, offer): (usize, &Offer)| Peer {
            key: key(index),
            starts: Time::ZERO.after(dice.span(0, 2_000)),
            placement: None,
            needs: needs(units),
            offer: *offer,
            heard: BTreeMap::new(),
            published: 0,
            dirty: None,
            next_publish: Time::ZERO,
            dead: false,
        };
        let peers = offers.iter().enumerate().map(peer).collect();
        Self {
            dice,
            weather,
            now: Time::ZERO,
            units,
            peers,
            queue: BTreeMap::new(),
            queued: 0,
            trace: String::new(),
            last_decision: Time::ZERO,
            loads: 0,
        }
    }

    fn later(&mut self, span: Span, happening: Happening) {
        self.queue.insert((self.now.after(span), self.queued), happening);
        self.queued += 1;
    }

    fn run(&mut self, until: Time) {
        while self.now < until {
            self.now = self.now.after(TICK);
            while let Some(entry) = self.queue.first_entry().filter(|entry| entry.key().0 <= self.now) {
                let happening = entry.remove();
                self.happen(happening);
            }
            for index in 0..self.peers.len() {
                self.wake(index);
            }
        }
    }

    /// Runs until every unit is ready somewhere, and says when that was.
    fn run_until_covered(&mut self, limit: Time) -> Option<Time> {
        while self.now < limit {
            self.run(self.now.after(TICK));
            if self.cover().is_full() {
                return Some(self.now);
            }
        }
        None
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Gossip { to, said } => {
                let peer = &mut self.peers[to];
                let stale = peer.heard.get(&said.other.peer).is_some_and(|known| known.order >= said.order);
                if !stale {
                    peer.heard.insert(said.other.peer, said);
                    self.look(to);
                }
            }
            Happening::Noticed { peer, gone } => {
                // Nothing that was under way may bring it back.
                if let Some(said) = self.peers[peer].heard.get_mut(&gone) {
                    said.order = u64::MAX;
                    said.other.holdings.clear();
                }
                self.look(peer);
            }
            Happening::Own { peer, event } => self.tell(peer, event),
        }
    }

    fn look(&mut self, index: usize) {
        let heard = self.peers[index].heard.values().map(|said| said.other.clone()).collect();
        self.tell(index, Event::Seen(heard));
    }

    fn wake(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        if peer.dead || self.now < peer.starts {
            return;
        }
        if peer.placement.is_none() {
            let (needs, offer) = (peer.needs.clone(), peer.offer);
            let placement = Placement::new(peer.key, needs, offer, PlacementConfig::default(), self.now).unwrap();
            peer.placement = Some(placement);
            self.look(index);
        }
        let placement = self.peers[index].placement.as_ref().unwrap();
        if placement.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.tell(index, Event::Ticked);
        }
        let peer = &self.peers[index];
        if peer.dirty.is_some_and(|due| due <= self.now) || peer.next_publish <= self.now {
            self.publish(index);
        }
    }

    fn tell(&mut self, index: usize, event: Event) {
        let now = self.now;
        let peer = &mut self.peers[index];
        let Some(placement) = peer.placement.as_mut().filter(|_| !peer.dead) else {
            return;
        };
        let before = placement.holdings();
        let decisions = placement.handle(event, now);
        if placement.holdings() != before && peer.dirty.is_none() {
            peer.dirty = Some(now.after(Span::millis(200)));
        }
        for decision in decisions {
            writeln!(self.trace, "{:6} ms  peer {index}  {decision:?}", now.0 / 1_000).unwrap();
            self.last_decision = now;
            self.perform(index, decision);
        }
    }

    fn perform(&mut self, peer: usize, decision: Decision) {
        match decision {
            Decision::Load(range) => {
                self.loads += 1;
                let span = self.dice.span(100, 1_500);
                self.later(span, Happening::Own { peer, event: Event::Loaded(range) });
            }
            Decision::Unload(range) => {
                let span = self.dice.span(20, 300);
                self.later(span, Happening::Own { peer, event: Event::Unloaded(range) });
            }
            Decision::Announce(_) | Decision::Withdraw(_) | Decision::Retire(_) | Decision::Restore(_) => {}
        }
    }

    fn publish(&mut self, index: usize) {
        let peer = &mut self.peers[index];
        peer.published += 1;
        peer.dirty = None;
        peer.next_publish = self.now.after(Span::seconds(10));
        let holdings = peer.placement.as_ref().unwrap().holdings();
        let used: u64 = holdings.iter().map(|(range, _)| u64::from(range.count()) * UNIT).sum();
        let holding = |(range, state)| Holding { model: MODEL, range, state, per_unit: Span::ZERO };
        let other = Other {
            peer: peer.key,
            holdings: holdings.into_iter().map(holding).collect(),
            memory_free: peer.offer.budget.minus(Bytes(used)),
            is_near: false,
        };
        let said = Said { order: peer.published, other };
        for to in (0..self.peers.len()).filter(|to| *to != index) {
            let deaf = self.now < Time::ZERO.after(self.weather.deaf);
            if !deaf && self.dice.roll(100) >= self.weather.lost_percent {
                let delay = self.dice.span(5, self.weather.slowest_millis);
                self.later(delay, Happening::Gossip { to, said: said.clone() });
            }
        }
    }

    fn kill(&mut self, index: usize) {
        self.peers[index].dead = true;
        let gone = self.peers[index].key;
        for peer in 0..self.peers.len() {
            let span = self.dice.span(50, 500);
            self.later(span, Happening::Noticed { peer, gone });
        }
    }

    fn ready(&self, index: usize) -> Vec<UnitRange> {
        let peer = &self.peers[index];
        let holdings = peer.placement.as_ref().filter(|_| !peer.dead).map(Placement::holdings).unwrap_or_default();
        holdings.into_iter().filter(|(_, state)| *state == HoldingState::Ready).map(|(range, _)| range).collect()
    }

    fn cover(&self) -> Cover {
        let mut cover = Cover::empty(self.units);
        (0..self.peers.len()).flat_map(|index| self.ready(index)).for_each(|range| cover.add(range));
        cover
    }

    fn held(&self, index: usize) -> u64 {
        self.ready(index).iter().map(|range| u64::from(range.count())).sum()
    }
}

fn at(seconds: u64) -> Time {
    Time::ZERO.after(Span::seconds(seconds))
}

/// Checks that peers with `offers` cover the model, for good and without churn, whatever the interleaving.
fn converges(name: &str, units: u16, offers: &[Offer], weather: Weather, seeds: u64, limit: u64) {
    let (mut slowest, mut exceeded) = (Time::ZERO, 0_usize);
    for seed in 0..seeds {
        let mut simulation = Simulation::new(seed, weather, units, offers);
        let covered = simulation.run_until_covered(at(limit));
        assert!(covered.is_some(), "{name}, seed {seed}: {:?}\n{}", simulation.cover(), simulation.trace);
        slowest = slowest.max(covered.unwrap());
        simulation.run(simulation.now.after(Span::seconds(40)));
        let settled = simulation.last_decision;
        simulation.run(simulation.now.after(Span::seconds(25)));
        assert_eq!(simulation.last_decision, settled, "{name}, seed {seed}: churn\n{}", simulation.trace);
        assert!(simulation.cover().is_full(), "{name}, seed {seed}: lost again\n{}", simulation.trace);
        let over = |(index, offer): (usize, &Offer)| {
            offer.max_units.is_some_and(|most| simulation.held(index) > u64::from(most))
        };
        exceeded += usize::from(offers.iter().enumerate().any(over));
    }
    // Where gossip is lost, two may give up the same units at a time; the one that notices keeps them beyond its cap
    // (never beyond its memory), since else nobody would hold them.
    let tolerated = if weather.lost_percent > 0 { seeds / 20 } else { 0 };
    assert!(exceeded as u64 <= tolerated, "{name}: {exceeded} of {seeds} seeds end with a peer beyond its cap");
    println!("{name}: slowest {} ms of {seeds} seeds, {exceeded} beyond the cap", slowest.0 / 1_000);
}

#[test]
fn peers_that_come_up_together_cover_the_model() {
    for (peers, cap, units) in [(4, 2, 7), (3, 3, 7), (1, 7, 7), (7, 1, 7), (2, 4, 7), (5, 2, 7), (4, 2, 8), (8, 3, 10)]
    {
        let offers = vec![capped(cap); peers];
        converges(&format!("{peers}x{cap} of {units}, fair"), units, &offers, FAIR, 100, 30);
        converges(&format!("{peers}x{cap} of {units}, rough"), units, &offers, ROUGH, 100, 60);
        converges(&format!("{peers}x{cap} of {units}, late"), units, &offers, LATE, 50, 90);
    }
}

#[test]
fn peers_of_different_size_cover_the_model() {
    for sizes in [[1, 2, 4, 0], [4, 2, 1, 0], [3, 3, 1, 0], [5, 1, 1, 1], [2, 2, 2, 1]] {
        let offers: Vec<_> = sizes.iter().filter(|size| **size > 0).map(|size| capped(*size)).collect();
        converges(&format!("{sizes:?}, rough"), 7, &offers, ROUGH, 100, 90);
    }
    for sizes in [[4, 4, 2, 2], [3, 3, 3, 3], [6, 2, 2, 2]] {
        let offers: Vec<_> = sizes.iter().map(|size| limited(*size)).collect();
        converges(&format!("{sizes:?} of memory, rough"), 7, &offers, ROUGH, 100, 90);
        converges(&format!("{sizes:?} of memory, late"), 7, &offers, LATE, 50, 90);
    }
}

#[test]
fn a_lost_range_is_taken_over_and_nothing_else_moves() {
    for (peers, cap, units) in [(5, 2, 7), (4, 3, 7), (3, 7, 7), (6, 3, 12)] {
        for seed in 0..100 {
            let mut simulation = Simulation::new(seed, ROUGH, units, &vec![capped(cap); peers]);
            simulation.run(at(60));
            let victim = usize::try_from(seed).unwrap() % peers;
            let lost = simulation.held(victim);
            let (loads, killed) = (simulation.loads, simulation.now);
            simulation.kill(victim);
            simulation.run(killed.after(Span::seconds(1)));

            let covered = simulation.run_until_covered(killed.after(Span::seconds(30)));

            assert!(covered.is_some(), "{peers}x{cap}, seed {seed}, victim {victim}\n{}", simulation.trace);
            simulation.run(killed.after(Span::seconds(120)));
            let moved = simulation.loads - loads;
            assert!(moved as u64 <= lost + 1, "{peers}x{cap}, seed {seed}: {moved} loads\n{}", simulation.trace);
            assert!(simulation.cover().is_full(), "{peers}x{cap}, seed {seed}\n{}", simulation.trace);
            let settled = simulation.last_decision;
            assert!(settled < killed.after(Span::seconds(60)), "{peers}x{cap}, seed {seed}\n{}", simulation.trace);
        }
    }
}

#[test]
fn where_room_does_not_suffice_nobody_moves_in_circles() {
    for (peers, cap, units) in [(3, 2, 7), (4, 2, 9), (5, 1, 7)] {
        for seed in 0..50 {
            let mut simulation = Simulation::new(seed, ROUGH, units, &vec![capped(cap); peers]);
            simulation.run(at(60));
            let settled = simulation.last_decision;

            simulation.run(at(90));

            assert_eq!(simulation.last_decision, settled, "{peers}x{cap}, seed {seed}\n{}", simulation.trace);
            let room = peers * usize::from(cap);
            let held = simulation.cover().counts().iter().filter(|count| **count > 0).count();
            assert!(held >= room, "{peers}x{cap}, seed {seed}\n{}", simulation.trace);
        }
    }
}

#[test]
fn moves_for_gain_come_to_an_end() {
    for seed in 0..3 {
        let mut simulation = Simulation::new(seed, FAIR, 10, &[capped(3); 8]);
        simulation.run(at(45 * 60));
        let settled = simulation.last_decision;

        simulation.run(at(60 * 60));

        assert_eq!(simulation.last_decision, settled, "seed {seed}\n{}", simulation.trace);
        assert!(simulation.cover().is_full(), "seed {seed}\n{}", simulation.trace);
    }
}
