//! What this peer says about itself and its models, signed.

use crate::amounts::Span;
use crate::ids::BootSeq;
use crate::ids::ModelId;
use crate::membership::announcer::Publish;
use crate::node::Departure;
use crate::node::Node;
use crate::node::io::Action;
use crate::units::UnitRange;
use crate::wire::card::ModelCard;
use crate::wire::gossip::Gossip;
use crate::wire::profile::MAX_HOLDINGS;
use crate::wire::profile::MAX_ROUND_TRIPS;
use crate::wire::profile::MAX_STORED;
use crate::wire::profile::Profile;
use crate::wire::profile::RoundTrip;
use crate::wire::profile::Stored;
use crate::wire::signed::Signed;
use crate::wire::text::printable;

/// Bytes of a card's quantisation and title, at most.
const CARD_TEXTS: (usize, usize) = (16, 96);

impl Node {
    pub(super) fn publish(&mut self, publish: Publish) {
        let (order, record) = match publish {
            Publish::Profile { order, valid_for } => (order, self.sealed_profile(order, valid_for)),
            Publish::Card { model, order, valid_for } => (order, self.sealed_card(model, order, valid_for)),
        };
        if let Some(record) = record {
            self.membership.announced(order);
            self.actions.push(Action::Publish(record));
        }
    }

    /// A profile has a size limit that all of its lists together may exceed: then the shortest round trips must do.
    fn sealed_profile(&self, order: BootSeq, valid_for: Span) -> Option<Gossip> {
        (0..=MAX_ROUND_TRIPS).rev().find_map(|trips| {
            let profile = self.profile(order, valid_for, trips);
            Signed::seal(&profile, &self.config.identity, self.config.network).ok().map(Gossip::Profile)
        })
    }

    fn profile(&self, order: BootSeq, valid_for: Span, trips: usize) -> Profile {
        let machine = &self.config.machine;
        let mut holdings = self.holdings();
        holdings.truncate(MAX_HOLDINGS);
        Profile {
            peer: self.me,
            order,
            valid_for,
            memory: self.config.memory,
            memory_free: self.memory_free(),
            cores: machine.cores,
            cpu_features: machine.cpu_features,
            devices: machine.devices.clone(),
            formats: machine.formats.clone(),
            arithmetic: machine.arithmetic.clone(),
            holdings,
            sessions: u16::try_from(self.sessions()).unwrap_or(u16::MAX),
            queue: self.stages.queue(),
            round_trips: self.nearest(trips),
            // Nobody is to begin anything here: it leaves, or its engine does not come back.
            draining: self.departure == Departure::Draining || self.is_stuck(),
            stored: self.stored(),
        }
    }

    /// The longest ranges, of as many as a profile has room for.
    fn stored(&self) -> Vec<Stored> {
        let ranges = |(&model, ranges): (&ModelId, &Vec<UnitRange>)| {
            ranges.iter().map(|&range| Stored { model, range }).collect::<Vec<_>>()
        };
        let mut stored: Vec<Stored> = self.given.iter().flat_map(ranges).collect();
        stored.sort_by_key(|stored| std::cmp::Reverse(stored.range.count()));
        stored.truncate(MAX_STORED);
        stored
    }

    fn nearest(&self, count: usize) -> Vec<RoundTrip> {
        let nearest = self.membership.nearest(count).into_iter();
        let first = |bytes: &[u8; 32]| std::array::from_fn(|index| bytes[index]);
        nearest.map(|(peer, span)| RoundTrip { neighbour: first(peer.as_bytes()), span }).collect()
    }

    fn sealed_card(&self, model: ModelId, order: BootSeq, valid_for: Span) -> Option<Gossip> {
        let facts = self.models.get(&model)?;
        let card = ModelCard {
            peer: self.me,
            order,
            valid_for,
            model,
            architecture: facts.shape.architecture.name().to_owned(),
            units: facts.shape.units(),
            bytes: facts.bytes,
            quantisation: printable(facts.format.name(), CARD_TEXTS.0),
            context: facts.shape.context,
            title: printable(&facts.title, CARD_TEXTS.1),
        };
        Signed::seal(&card, &self.config.identity, self.config.network).ok().map(Gossip::Card)
    }
}
