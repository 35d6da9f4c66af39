//! What is heard of and said to the other peers.

use std::sync::Arc;

use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::membership::Change;
use crate::membership::Event;
use crate::membership::announcer;
use crate::node::Node;
use crate::node::io::ModelFacts;
use crate::wire::gossip::Gossip;

impl Node {
    pub(super) fn on_peer_up(&mut self, peer: PeerKey, now: Time) {
        self.tell_membership(Event::Connected(peer), now);
        self.tell_announcer(announcer::Event::NeighbourJoined, now);
    }

    pub(super) fn on_peer_down(&mut self, peer: PeerKey, now: Time) {
        self.tell_membership(Event::Disconnected(peer), now);
    }

    pub(super) fn on_round_trip(&mut self, peer: PeerKey, span: Span, now: Time) {
        self.tell_membership(Event::RoundTripMeasured { peer, span }, now);
    }

    pub(super) fn on_gossip(&mut self, record: Gossip, now: Time) {
        match record {
            Gossip::Profile(profile) => self.tell_membership(Event::ProfileHeard(Box::new(profile)), now),
            Gossip::Card(card) => self.tell_membership(Event::CardHeard(Box::new(card)), now),
            Gossip::Credit(entry) => self.on_credit_heard(entry),
        }
    }

    pub(super) fn on_model_known(&mut self, facts: Arc<ModelFacts>, now: Time) {
        let model = facts.id;
        self.membership.manifest_known(model, facts.shape.units());
        // Whoever knows the source can name all that are made of it.
        let is_named = facts.source.is_some_and(|source| self.models.contains_key(&source));
        self.models.insert(model, facts);
        if !is_named {
            self.tell_announcer(announcer::Event::ModelAdded(model), now);
        }
    }

    pub(super) fn tick_neighbours(&mut self, now: Time) {
        self.tell_membership(Event::Ticked, now);
        self.tell_announcer(announcer::Event::Ticked, now);
    }

    pub(super) fn profile_changed(&mut self, now: Time) {
        self.tell_announcer(announcer::Event::ProfileChanged, now);
    }

    pub(super) fn tell_membership(&mut self, event: Event, now: Time) {
        let changes = self.membership.handle(event, now);
        let mut others_changed = false;
        for change in changes {
            match change {
                Change::PeerAppeared(_)
                | Change::ProfileRenewed(_)
                | Change::PeerExpired(_)
                | Change::PeerRestored(_)
                | Change::PeerSuspected(_)
                | Change::PeerDemoted { .. } => others_changed = true,
                Change::ModelAppeared(_) | Change::CardRenewed(_) | Change::ModelExpired(_) => {}
                Change::OwnKeyElsewhere(order) => self.impostor = Some(order),
            }
        }
        if others_changed {
            let count = self.membership.count(now);
            self.tell_announcer(announcer::Event::PeersCounted(count), now);
            self.see_others(now);
        }
    }

    fn tell_announcer(&mut self, event: announcer::Event, now: Time) {
        for publish in self.announcer.handle(event, now) {
            self.publish(publish);
        }
    }
}
