//! The network: streams that keep their order and nothing else, connections that break, and directions that are cut.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::StreamId;
use crate::node::io::CloseCause;
use crate::node::io::Input;
use crate::node::io::OpenFailure;
use crate::node::io::StreamInput;
use crate::node::sim::agenda::Agenda;
use crate::node::sim::agenda::Event;
use crate::node::sim::agenda::Life;
use crate::node::sim::chance::Chance;

/// How long a peer that does not answer is dialled.
const DIAL: Span = Span::seconds(3);

/// How long a connection lasts over which nothing comes through in one direction.
pub(super) const IDLE: Span = Span::seconds(8);

/// One end of a stream.
pub(super) type End = (PeerKey, Life, StreamId);

/// A live end.
#[derive(Debug)]
struct Link {
    other: End,
    /// When the last message to this end arrives: a stream keeps its order.
    arrives: Time,
}

/// Streams between hosts, and what befalls them.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) chance: Chance,
    pub(super) max_delay: Span,
    /// Of messages down a hop and of gossip, so many in a hundred come twice.
    pub(super) doubled: u64,
    links: BTreeMap<End, Link>,
    /// Directions in which nothing comes through.
    cut: BTreeSet<(PeerKey, PeerKey)>,
    /// What waits for a direction to be open again.
    held: BTreeMap<(PeerKey, PeerKey), Vec<(End, StreamInput)>>,
    /// Peers that are slow to answer, with the factor of their delays.
    slow: BTreeMap<PeerKey, u64>,
}

impl Network {
    pub(super) fn new(chance: Chance, max_delay: Span) -> Self {
        Self {
            chance,
            max_delay,
            doubled: 0,
            links: BTreeMap::new(),
            cut: BTreeSet::new(),
            held: BTreeMap::new(),
            slow: BTreeMap::new(),
        }
    }

    /// Opens a stream between two ends.
    pub(super) fn link(&mut self, from: End, to: End, arrival: StreamInput, agenda: &mut Agenda, now: Time) {
        if self.is_cut(from.0, to.0) || self.is_cut(to.0, from.0) {
            return Self::refuse(from, DIAL, agenda, now);
        }
        self.links.insert(from, Link { other: to, arrives: now });
        self.links.insert(to, Link { other: from, arrives: now });
        self.send(to, arrival, agenda, now);
        self.send(from, StreamInput::Opened, agenda, now);
    }

    /// A stream does not come about.
    pub(super) fn refuse(from: End, after: Span, agenda: &mut Agenda, now: Time) {
        let failed = StreamInput::OpenFailed(OpenFailure::Unreachable);
        agenda.schedule(now.after(after), Event::Tell(from.0, from.1, Input::Stream(from.2, failed)));
    }

    /// Takes a message from an end that is live; says whether it is.
    pub(super) fn carry(&mut self, from: End, message: StreamInput, agenda: &mut Agenda, now: Time) -> bool {
        let Some(other) = self.links.get(&from).map(|link| link.other) else { return false };
        let twice = matches!(message, StreamInput::Forward(_)) && self.chance.percent(self.doubled);
        if twice {
            self.send(other, message.clone(), agenda, now);
        }
        self.send(other, message, agenda, now);
        true
    }

    /// Closes an end in order; says whether it was live.
    pub(super) fn close(&mut self, from: End, agenda: &mut Agenda, now: Time) -> bool {
        let Some(link) = self.links.remove(&from) else { return false };
        self.send(link.other, StreamInput::Closed(CloseCause::Finished), agenda, now);
        true
    }

    /// Whether what arrives at an end is heard there.
    pub(super) fn arrives(&mut self, end: End, event: &StreamInput) -> bool {
        if matches!(event, StreamInput::Closed(_)) {
            self.links.remove(&end).is_some()
        } else {
            self.links.contains_key(&end)
        }
    }

    /// A process is gone: what it sent still arrives.
    pub(super) fn die(&mut self, peer: PeerKey, agenda: &mut Agenda, now: Time) {
        let ends: Vec<End> = self.links.keys().filter(|end| end.0 == peer).copied().collect();
        for end in ends {
            let Some(link) = self.links.remove(&end) else { continue };
            if link.other.0 == peer {
                self.links.remove(&link.other);
            } else {
                self.send(link.other, StreamInput::Closed(CloseCause::Lost), agenda, now);
            }
        }
    }

    /// A connection breaks: what is on its way is lost, and each side hears of it in its own time.
    pub(super) fn sever(&mut self, one: PeerKey, other: PeerKey, agenda: &mut Agenda, now: Time) {
        let between =
            |end: &End, link: &Link| (end.0 == one && link.other.0 == other) || (end.0 == other && link.other.0 == one);
        let broken: Vec<End> =
            self.links.iter().filter(|(end, link)| between(end, link)).map(|(end, _)| *end).collect();
        for end in broken {
            self.links.remove(&end);
            let at = now.after(self.delay(end.0));
            let closed = Input::Stream(end.2, StreamInput::Closed(CloseCause::Lost));
            agenda.schedule(at, Event::Tell(end.0, end.1, closed));
        }
        self.held.remove(&(one, other));
        self.held.remove(&(other, one));
    }

    /// Nothing comes through from one peer to another any more.
    pub(super) fn cut(&mut self, from: PeerKey, to: PeerKey) {
        self.cut.insert((from, to));
    }

    /// A direction is open again: what waited comes through, in order.
    pub(super) fn mend(&mut self, from: PeerKey, to: PeerKey, agenda: &mut Agenda, now: Time) {
        self.cut.remove(&(from, to));
        for (end, message) in self.held.remove(&(from, to)).unwrap_or_default() {
            if self.links.contains_key(&end) {
                self.send(end, message, agenda, now);
            }
        }
    }

    pub(super) fn cuts(&self) -> Vec<(PeerKey, PeerKey)> {
        self.cut.iter().copied().collect()
    }

    pub(super) fn is_cut(&self, from: PeerKey, to: PeerKey) -> bool {
        self.cut.contains(&(from, to))
    }

    /// All that comes to the peer takes so many times as long.
    pub(super) fn slow(&mut self, peer: PeerKey, factor: u64) {
        self.slow.insert(peer, factor);
    }

    pub(super) fn delay(&mut self, to: PeerKey) -> Span {
        let factor = self.slow.get(&to).copied().unwrap_or(1);
        if self.max_delay == Span::ZERO { Span::ZERO } else { Span(self.chance.below(self.max_delay.0)).times(factor) }
    }

    /// Live ends, each with the other.
    pub(super) fn links(&self) -> impl Iterator<Item = (End, End)> {
        self.links.iter().map(|(&end, link)| (end, link.other))
    }

    fn send(&mut self, to: End, event: StreamInput, agenda: &mut Agenda, now: Time) {
        let at = now.after(self.delay(to.0));
        let Some(link) = self.links.get_mut(&to) else { return };
        let way = (link.other.0, to.0);
        if self.cut.contains(&way) {
            return self.held.entry(way).or_default().push((to, event));
        }
        link.arrives = link.arrives.max(at);
        agenda.schedule(link.arrives, Event::Arrive(to, event));
    }
}
