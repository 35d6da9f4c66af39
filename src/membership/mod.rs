//! Who is there, what they say they hold, and whether to believe it.
//!
//! [`Membership`] is told what was heard and what happened ([`Event`]) and answers with what changed
//! ([`Change`]); everything else is asked. Nobody's clock is trusted: announcements carry durations, counted here
//! from first sight, and are ordered by (boot, sequence). [`announcer::Announcer`] says when to speak oneself.

pub mod announcer;
mod cards;
mod peers;

use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::BootSeq;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::membership::cards::Cards;
use crate::membership::peers::Peers;
use crate::units::Cover;
use crate::wire::card::ModelCard;
use crate::wire::profile::Holding;
use crate::wire::profile::HoldingState;
use crate::wire::profile::Profile;
use crate::wire::profile::RoundTrip;
use crate::wire::signed::Signed;

/// The bounds of what is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MembershipConfig {
    /// Peers with a valid profile or a connection; as many again are remembered by their order alone.
    pub max_peers: usize,
    /// Models heard of.
    pub max_models: usize,
    /// Models that one peer may make known.
    pub max_models_per_peer: usize,
    /// How long the first failure keeps a peer from being offered; doubles with each that follows.
    pub first_penalty: Span,
    /// The longest penalty.
    pub longest_penalty: Span,
    /// How long the order of an expired announcement is remembered.
    pub remember: Span,
}

impl Default for MembershipConfig {
    /// Arbitrary bounds, but for the day of memory, which the design states.
    fn default() -> Self {
        Self {
            max_peers: 10_000,
            max_models: 1_000,
            max_models_per_peer: 16,
            first_penalty: Span::seconds(5),
            longest_penalty: Span::seconds(300),
            remember: Span::seconds(24 * 60 * 60),
        }
    }
}

/// What membership is told. Signatures were verified at the door.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A profile came, from anyone.
    ProfileHeard(Box<Signed<Profile>>),
    /// A model's card came, from anyone.
    CardHeard(Box<Signed<ModelCard>>),
    /// The first connection to a peer is up.
    Connected(PeerKey),
    /// The last connection to a peer is gone.
    Disconnected(PeerKey),
    /// A neighbour answered a ping.
    RoundTripMeasured {
        /// The neighbour.
        peer: PeerKey,
        /// The time its answer took.
        span: Span,
    },
    /// A peer did not live up to its claims.
    PeerFailed {
        /// The peer.
        peer: PeerKey,
        /// In what.
        failure: Failure,
    },
    /// A peer answered as it should: a lease was accepted, a stage did its work.
    PeerSucceeded(PeerKey),
    /// Time has passed.
    Ticked,
}

/// In what a peer failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// It could not be dialled. A connection makes up for it.
    Dial,
    /// It did not answer an offer, or broke off a session. Only a success makes up for it.
    Lease,
    /// It computed something else than it was asked for, and said that it had not. Only time makes up for it: the longest penalty.
    Lie,
}

/// What became different.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// A peer is known that was not, or is known again.
    PeerAppeared(PeerKey),
    /// A peer's profile says something else than the one before, or its order only.
    ProfileRenewed(PeerKey),
    /// A peer's profile has expired.
    PeerExpired(PeerKey),
    /// A peer's claims count again.
    PeerRestored(PeerKey),
    /// A peer's claims don't count until it is heard from, connected to or successful again.
    PeerSuspected(PeerKey),
    /// A peer's claims don't count until a moment, or a success.
    PeerDemoted {
        /// The peer.
        peer: PeerKey,
        /// The end of the penalty.
        until: Time,
    },
    /// A model is known that was not.
    ModelAppeared(ModelId),
    /// A model's card was said again.
    CardRenewed(ModelId),
    /// The last card of a model has expired.
    ModelExpired(ModelId),
    /// Another process announces under this peer's own key, with this order.
    OwnKeyElsewhere(BootSeq),
}

/// Whether a peer's claims are offered to routing and placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// They are.
    Offered,
    /// It is about to leave.
    Draining,
    /// Its connection was lost, and nothing was heard from it since.
    Suspected,
    /// It failed.
    Demoted {
        /// The end of the penalty.
        until: Time,
    },
    /// It is connected or known by its order only: no valid profile.
    Silent,
}

/// What is known of one peer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PeerState<'a> {
    /// The peer.
    pub peer: PeerKey,
    /// Its valid profile.
    pub profile: Option<&'a Profile>,
    /// Whether there is a connection to it.
    pub connected: bool,
    /// Whether its claims are offered.
    pub standing: Standing,
    /// The smoothed round trip to it, if it was measured here.
    pub round_trip: Option<Span>,
}

/// A holding of a model at a peer whose claims are offered.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Holder<'a> {
    /// The peer's profile.
    pub profile: &'a Profile,
    /// The holding, in whatever state.
    pub holding: Holding,
    /// The smoothed round trip to the peer, if it was measured here.
    pub round_trip: Option<Span>,
}

/// A model that was heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelHeard<'a> {
    /// The card to show: the one most peers agree with.
    pub card: &'a ModelCard,
    /// How many peers say so.
    pub said_by: usize,
    /// Whether the title is its own.
    pub title: Title,
}

/// Whether a title names one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Title {
    /// One model has it.
    Sole,
    /// Two or more models claim it, so it names none.
    Contested,
}

/// Everything known about the other peers of the network.
#[derive(Clone, Debug)]
pub struct Membership {
    me: PeerKey,
    own: BootSeq,
    peers: Peers,
    cards: Cards,
}

impl Membership {
    /// Knows nobody yet.
    pub fn new(me: PeerKey, config: MembershipConfig) -> Self {
        Self { me, own: BootSeq::default(), peers: Peers::new(config), cards: Cards::new(config) }
    }

    /// Advances by one event. An announcement that changes nothing (stale, or no room) is not worth relaying.
    pub fn handle(&mut self, event: Event, now: Time) -> Vec<Change> {
        let mut changes = self.expire(now);
        changes.extend(match event {
            Event::ProfileHeard(signed) if signed.value.peer == self.me => self.heard_own(signed.value.order),
            Event::ProfileHeard(signed) => self.peers.profile_heard(signed.value, now),
            Event::CardHeard(signed) if signed.value.peer == self.me => self.heard_own(signed.value.order),
            Event::CardHeard(signed) => self.card_heard(signed.value, now),
            // A peer is no neighbour of its own.
            Event::Connected(peer) if peer == self.me => Vec::new(),
            Event::Connected(peer) => self.peers.connected(peer, now),
            Event::Disconnected(peer) => self.peers.disconnected(peer, now),
            Event::RoundTripMeasured { peer, span } => {
                self.peers.round_trip_measured(peer, span);
                Vec::new()
            }
            Event::PeerFailed { peer, failure } => self.peers.failed(peer, failure, now),
            Event::PeerSucceeded(peer) => self.peers.succeeded(peer, now),
            Event::Ticked => Vec::new(),
        });
        // An announcement may be valid for no time at all: a farewell.
        changes.extend(self.expire(now));
        changes
    }

    /// Records the order of an own announcement, so that a higher one under the own key is noticed.
    pub fn announced(&mut self, order: BootSeq) {
        self.own = self.own.max(order);
    }

    /// Records a model's units from its manifest, which outweighs every card.
    pub fn manifest_known(&mut self, model: ModelId, units: u16) {
        self.cards.manifest_known(model, units);
    }

    /// When to come back with [`Event::Ticked`], if nothing else happens.
    pub fn next_deadline(&self) -> Option<Time> {
        [self.peers.next_deadline(), self.cards.next_deadline()].into_iter().flatten().min()
    }

    /// Everyone that is connected or has a valid profile, by key.
    pub fn peers(&self, now: Time) -> impl Iterator<Item = PeerState<'_>> {
        self.peers.states(now)
    }

    /// One peer, if anything is known of it.
    pub fn peer(&self, peer: PeerKey, now: Time) -> Option<PeerState<'_>> {
        self.peers.state(peer, now)
    }

    /// How many others have a valid profile.
    pub fn count(&self, now: Time) -> usize {
        self.peers(now).filter(|state| state.profile.is_some()).count()
    }

    /// The profiles of peers whose claims are offered, by key.
    pub fn offered(&self, now: Time) -> impl Iterator<Item = &Profile> {
        self.peers(now).filter(|state| state.standing == Standing::Offered).filter_map(|state| state.profile)
    }

    /// The profiles of peers that placement counts on, by key: those offered, and neighbours whose failure here does
    /// not mean that they are gone.
    pub fn present(&self, now: Time) -> impl Iterator<Item = &Profile> {
        let present = |state: &PeerState<'_>| match state.standing {
            Standing::Offered => true,
            Standing::Demoted { .. } => state.connected,
            Standing::Draining | Standing::Suspected | Standing::Silent => false,
        };
        self.peers(now).filter(present).filter_map(|state| state.profile)
    }

    /// Every holding of a model, in whatever state, of peers whose claims are offered.
    pub fn holders(&self, model: ModelId, now: Time) -> Vec<Holder<'_>> {
        let offered =
            self.offered(now).flat_map(|profile| profile.holdings.iter().map(move |holding| (profile, *holding)));
        let of_model = offered.filter(|(_, holding)| holding.model == model);
        of_model
            .map(|(profile, holding)| Holder { profile, holding, round_trip: self.round_trip(profile.peer) })
            .collect()
    }

    /// How many offered peers have each unit of a model ready; `None` if nobody said how many units it has.
    pub fn cover(&self, model: ModelId, now: Time) -> Option<Cover> {
        let mut cover = Cover::empty(self.units(model)?);
        let ready = |holder: &Holder<'_>| holder.holding.state == HoldingState::Ready;
        self.holders(model, now).into_iter().filter(ready).for_each(|holder| cover.add(holder.holding.range));
        Some(cover)
    }

    /// How many units a model has: by its manifest, else by most of its cards.
    pub fn units(&self, model: ModelId) -> Option<u16> {
        self.cards.units(model)
    }

    /// The models heard of, by id.
    pub fn models(&self) -> Vec<ModelHeard<'_>> {
        self.cards.models()
    }

    /// The smoothed round trip to a neighbour.
    pub fn round_trip(&self, peer: PeerKey) -> Option<Span> {
        self.peers.round_trip(peer)
    }

    /// The round trip between two peers: measured here if one of them is this peer, else what one of them said.
    pub fn round_trip_between(&self, one: PeerKey, other: PeerKey, now: Time) -> Option<Span> {
        if one == self.me || other == self.me {
            return self.round_trip(if one == self.me { other } else { one });
        }
        self.said_by(one, other, now).or_else(|| self.said_by(other, one, now))
    }

    /// The neighbours with the shortest round trips, nearest first: for the own profile.
    pub fn nearest(&self, count: usize) -> Vec<(PeerKey, Span)> {
        self.peers.nearest(count)
    }

    fn expire(&mut self, now: Time) -> Vec<Change> {
        let mut changes = self.peers.ticked(now);
        changes.extend(self.cards.ticked(now));
        changes
    }

    fn said_by(&self, sayer: PeerKey, other: PeerKey, now: Time) -> Option<Span> {
        let profile = self.peer(sayer, now)?.profile?;
        let named = |trip: &&RoundTrip| other.as_bytes().starts_with(&trip.neighbour);
        profile.round_trips.iter().find(named).map(|trip| trip.span)
    }

    fn heard_own(&self, order: BootSeq) -> Vec<Change> {
        if order <= self.own { Vec::new() } else { vec![Change::OwnKeyElsewhere(order)] }
    }

    fn card_heard(&mut self, card: ModelCard, now: Time) -> Vec<Change> {
        // A card of an earlier boot than one already heard from is a ghost's.
        if self.peers.order(card.peer).is_some_and(|seen| card.order.boot < seen.boot) {
            return Vec::new();
        }
        let (count, peers) = (self.count(now), &self.peers);
        self.cards.heard(card, count, |peer| peers.is_neighbour(peer), now)
    }
}

#[cfg(test)]
mod tests;
