//! When to announce oneself: on change, gathered for a moment, and again before the others forget.

use std::collections::BTreeMap;

use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::BootSeq;
use crate::ids::ModelId;

/// The least time between two announcements of a network of `peers`: `max(10 s, peers / 50 s)`, as the design has it,
/// so that a network of any size hears about fifty profiles a second.
pub fn period(peers: usize) -> Span {
    Span::millis(20).times(u64::try_from(peers).unwrap_or(u64::MAX)).max(Span::seconds(10))
}

/// How long an announcement is to be believed: 4.5 periods, so that four may be lost.
pub fn lifetime(peers: usize) -> Span {
    Span(period(peers).times(9).0 / 2)
}

/// What the announcer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// What the profile says has changed.
    ProfileChanged,
    /// A model's manifest can be had here; its card is to be said.
    ModelAdded(ModelId),
    /// A model's manifest can't be had here any more.
    ModelRemoved(ModelId),
    /// A neighbour connected, who has heard nothing yet.
    NeighbourJoined,
    /// How many peers are known.
    PeersCounted(usize),
    /// Time has passed.
    Ticked,
}

/// What to publish, signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publish {
    /// The profile, as it is at this moment.
    Profile {
        /// Its order.
        order: BootSeq,
        /// How long it is to be believed.
        valid_for: Span,
    },
    /// A model's card.
    Card {
        /// The model.
        model: ModelId,
        /// Its order.
        order: BootSeq,
        /// How long it is to be believed.
        valid_for: Span,
    },
}

/// The least time from a change to its announcement, in which further changes join it (the design's 200 ms).
const GATHER: Span = Span::millis(200);

/// The least time between two announcements that are made for newcomers only (arbitrary).
const GREET: Span = Span::seconds(2);

/// One thing that is announced: when it was, and when it is to be next.
#[derive(Clone, Copy, Debug)]
struct Slot {
    last: Option<Time>,
    due: Time,
}

impl Slot {
    fn changed(&mut self, now: Time) {
        self.due = self.due.min(now.after(GATHER));
    }

    fn greet(&mut self, now: Time) {
        let earliest = self.last.map_or(now, |last| last.after(GREET));
        self.due = self.due.min(earliest.max(now.after(GATHER)));
    }
}

/// Decides when this peer announces its profile and its models' cards, and numbers the announcements.
#[derive(Clone, Debug)]
pub struct Announcer {
    next: BootSeq,
    peers: usize,
    profile: Slot,
    cards: BTreeMap<ModelId, Slot>,
}

impl Announcer {
    /// Numbers announcements of this boot from 0. The first profile is due one gathering time after `now`.
    pub fn new(boot: u64, now: Time) -> Self {
        let profile = Slot { last: None, due: now.after(GATHER) };
        Self { next: BootSeq { boot, seq: 0 }, peers: 0, profile, cards: BTreeMap::new() }
    }

    /// Advances by one event. What is due is published in order.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Publish> {
        match event {
            Event::ProfileChanged => self.profile.changed(now),
            Event::ModelAdded(model) => {
                self.cards.entry(model).or_insert(Slot { last: None, due: now.after(GATHER) });
            }
            Event::ModelRemoved(model) => {
                self.cards.remove(&model);
            }
            Event::NeighbourJoined => {
                self.profile.greet(now);
                self.cards.values_mut().for_each(|card| card.greet(now));
            }
            Event::PeersCounted(peers) => self.peers = peers,
            Event::Ticked => {}
        }
        self.due(now)
    }

    /// When to come back with [`Event::Ticked`], if nothing else happens.
    pub fn next_deadline(&self) -> Time {
        self.cards.values().fold(self.profile.due, |earliest, card| earliest.min(card.due))
    }

    fn due(&mut self, now: Time) -> Vec<Publish> {
        let (again, valid_for) = (now.after(period(self.peers)), lifetime(self.peers));
        let mut publish = Vec::new();
        if self.profile.due <= now {
            self.profile = Slot { last: Some(now), due: again };
            publish.push(Publish::Profile { order: self.number(), valid_for });
        }
        let cards = self.cards.iter().filter(|(_, card)| card.due <= now);
        for model in cards.map(|(&model, _)| model).collect::<Vec<_>>() {
            self.cards.insert(model, Slot { last: Some(now), due: again });
            publish.push(Publish::Card { model, order: self.number(), valid_for });
        }
        publish
    }

    fn number(&mut self) -> BootSeq {
        let order = self.next;
        self.next.seq = self.next.seq.saturating_add(1);
        order
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn trace(announcer: &mut Announcer, until: u64, events: &[(u64, Event)]) -> String {
        let mut lines = String::new();
        let mut events = events.iter().peekable();
        loop {
            let tick = announcer.next_deadline();
            let (at, event) = match events.next_if(|(at, _)| Time::ZERO.after(Span::millis(*at)) <= tick) {
                Some((at, event)) => (Time::ZERO.after(Span::millis(*at)), *event),
                None => (tick, Event::Ticked),
            };
            if at > Time::ZERO.after(Span::millis(until)) {
                return lines;
            }
            for publish in announcer.handle(event, at) {
                let millis = at.0 / 1_000;
                lines += &match publish {
                    Publish::Profile { order, valid_for } => {
                        format!("{millis}: profile {} for {valid_for}\n", order.seq)
                    }
                    Publish::Card { model, order, .. } => format!("{millis}: card {} {}\n", model.short(), order.seq),
                };
            }
        }
    }

    #[test]
    fn changes_are_gathered_and_the_profile_is_said_again_before_it_is_forgotten() {
        let mut announcer = Announcer::new(3, Time::ZERO);
        let events = [
            (1_000, Event::ProfileChanged),
            (1_150, Event::ProfileChanged),
            (1_190, Event::ProfileChanged),
            (1_300, Event::ProfileChanged),
        ];

        expect![[r#"
            200: profile 0 for 45.0 s
            1200: profile 1 for 45.0 s
            1500: profile 2 for 45.0 s
            11500: profile 3 for 45.0 s
            21500: profile 4 for 45.0 s
        "#]]
        .assert_eq(&trace(&mut announcer, 25_000, &events));
    }

    #[test]
    fn a_large_network_is_told_less_often() {
        let mut announcer = Announcer::new(3, Time::ZERO);

        expect![[r#"
            200: profile 0 for 180.0 s
            40200: profile 1 for 180.0 s
        "#]]
        .assert_eq(&trace(&mut announcer, 60_000, &[(0, Event::PeersCounted(2_000))]));
    }

    #[test]
    fn cards_are_said_while_the_manifest_is_here() {
        let mut announcer = Announcer::new(3, Time::ZERO);
        let model = ModelId::new([0xab; 32]);
        let events = [(500, Event::ModelAdded(model)), (15_000, Event::ModelRemoved(model))];

        expect![[r#"
            200: profile 0 for 45.0 s
            700: card abababab 1
            10200: profile 2 for 45.0 s
            10700: card abababab 3
            20200: profile 4 for 45.0 s
        "#]]
        .assert_eq(&trace(&mut announcer, 25_000, &events));
    }

    #[test]
    fn newcomers_are_greeted_and_a_crowd_of_them_once() {
        let mut announcer = Announcer::new(3, Time::ZERO);
        let crowd: Vec<_> = (0..10).map(|index| (5_000 + 100 * index, Event::NeighbourJoined)).collect();

        expect![[r#"
            200: profile 0 for 45.0 s
            5200: profile 1 for 45.0 s
            7200: profile 2 for 45.0 s
        "#]]
        .assert_eq(&trace(&mut announcer, 9_000, &crowd));
    }
}
