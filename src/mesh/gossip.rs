//! Gossip: anonymous envelopes around signed records. A message is forwarded only after its signature has been
//! checked here; who sends many bad ones, or too many at all, is no longer listened to.

use std::collections::BTreeMap;

use bytes::Bytes;
use libp2p::PeerId;
use libp2p::gossipsub;
use libp2p::gossipsub::AllowAllSubscriptionFilter;
use libp2p::gossipsub::IdentTopic;
use libp2p::gossipsub::IdentityTransform;
use libp2p::gossipsub::MaxCountSubscriptionFilter;
use libp2p::gossipsub::MessageAcceptance;
use libp2p::gossipsub::MessageAuthenticity;
use libp2p::gossipsub::MessageId;
use libp2p::gossipsub::PeerScoreParams;
use libp2p::gossipsub::PeerScoreThresholds;
use libp2p::gossipsub::TopicHash;
use libp2p::gossipsub::TopicScoreParams;
use libp2p::gossipsub::ValidationMode;

use crate::ids::ModelId;
use crate::ids::NetworkId;
use crate::mesh::error::MeshError;
use crate::mesh::streams::protocol_name;
use crate::wire::gossip::Gossip;

/// The largest message (`DESIGN.md` §9).
pub(super) const MAX_GOSSIP: usize = Gossip::MAX;

/// Room for the envelope around the largest message: topic, lengths, control messages.
const ENVELOPE: usize = 1 << 10;

/// Topics that a peer may subscribe to: one per model and the common one (arbitrary).
const MAX_TOPICS: usize = 256;

/// Messages per second that a peer may forward to us. A mesh of a thousand peers makes about 100 per second over
/// all neighbours (every profile each 10 s or slower, `DESIGN.md` §9).
const RATE: u32 = 100;

/// Messages that may come in one burst, as when many peers come up at once.
const BURST: u32 = 500;

/// What a message above the rate costs its forwarder, in points of gossipsub's score.
const FLOOD_COST: f64 = 0.1;

/// How much of the flooding penalty remains after each second: it is forgotten within about a minute.
const FLOOD_DECAY: f64 = 0.9;

/// The behaviour, with a bound on topics per peer.
pub(super) type Behaviour =
    gossipsub::Behaviour<IdentityTransform, MaxCountSubscriptionFilter<AllowAllSubscriptionFilter>>;

/// What gossip is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// What concerns everybody: model cards and credit entries.
    Network,
    /// The profiles of those who serve a model.
    Model(ModelId),
}

impl Topic {
    pub(super) fn name(self, network: NetworkId) -> IdentTopic {
        IdentTopic::new(match self {
            Self::Network => format!("/brigade/{network}/gossip/1"),
            Self::Model(model) => format!("/brigade/{network}/gossip/1/{model}"),
        })
    }
}

/// Sets gossipsub up.
pub(super) fn behaviour(network: NetworkId) -> Result<Behaviour, MeshError> {
    let failed = |reason: String| MeshError::Setup { part: "gossip", reason };
    let config = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(protocol_name(network, "gossipsub").to_string())
        .validation_mode(ValidationMode::Anonymous)
        .validate_messages()
        .message_id_fn(|message| MessageId::new(&content_hash(&message.topic, &message.data)))
        .max_transmit_size(MAX_GOSSIP + ENVELOPE)
        .build()
        .map_err(|error| failed(error.to_string()))?;
    let filter = MaxCountSubscriptionFilter {
        filter: AllowAllSubscriptionFilter {},
        max_subscribed_topics: MAX_TOPICS,
        max_subscriptions_per_request: MAX_TOPICS,
    };
    let mut behaviour = Behaviour::new_with_subscription_filter(MessageAuthenticity::Anonymous, config, filter)
        .map_err(|error| failed(error.to_owned()))?;
    behaviour.with_peer_score(score(), PeerScoreThresholds::default()).map_err(failed)?;
    Ok(behaviour)
}

/// Names a message by what it says and where, so that the same record is passed on once.
fn content_hash(topic: &TopicHash, data: &[u8]) -> [u8; 20] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(topic.as_str().len() as u64).to_le_bytes());
    hasher.update(topic.as_str().as_bytes());
    hasher.update(data);
    let mut id = [0; 20];
    hasher.finalize_xof().fill(&mut id);
    id
}

/// Many peers may share an address (one machine, one router), so that costs nothing.
fn score() -> PeerScoreParams {
    PeerScoreParams { app_specific_weight: 1.0, ip_colocation_factor_weight: 0.0, ..PeerScoreParams::default() }
}

/// Only what is wrong counts: a quiet peer is a good one. Three bad messages in a row reach the threshold (-80) below
/// which a peer is not listened to, and half a minute of silence forgives them.
pub(super) fn topic_score() -> TopicScoreParams {
    TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.0,
        first_message_deliveries_weight: 0.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: -10.0,
        invalid_message_deliveries_decay: 0.9,
        ..TopicScoreParams::default()
    }
}

/// Judges what neighbours forward: how much, and whether it is what it should be.
#[derive(Debug, Default)]
pub(super) struct Judge {
    neighbours: BTreeMap<PeerId, Allowance>,
}

#[derive(Debug)]
struct Allowance {
    left: u32,
    flood: f64,
}

/// What to do with a message.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Forward it, and tell the node.
    Good(Box<Gossip>),
    /// Drop it; `MessageAcceptance` says whether its forwarder pays.
    Drop(MessageAcceptance),
}

impl Judge {
    /// Judges one message from a neighbour.
    pub(super) fn judge(&mut self, from: PeerId, data: &[u8], network: NetworkId) -> Verdict {
        let allowance = self.neighbours.entry(from).or_insert(Allowance { left: BURST, flood: 0.0 });
        if allowance.left == 0 {
            allowance.flood += FLOOD_COST;
            return Verdict::Drop(MessageAcceptance::Ignore);
        }
        allowance.left -= 1;
        match Gossip::decode(data, network) {
            Ok(message) => Verdict::Good(Box::new(message)),
            Err(error) => {
                tracing::debug!(%from, %error, "refused gossip");
                Verdict::Drop(MessageAcceptance::Reject)
            }
        }
    }

    /// Called once a second: refills the allowances and names the peers whose flooding penalty changed, with it.
    pub(super) fn tick(&mut self) -> Vec<(PeerId, f64)> {
        let mut penalties = Vec::new();
        for (peer, allowance) in &mut self.neighbours {
            allowance.left = (allowance.left + RATE).min(BURST);
            if allowance.flood > 0.0 {
                penalties.push((*peer, -allowance.flood));
                allowance.flood = if allowance.flood < FLOOD_COST { 0.0 } else { allowance.flood * FLOOD_DECAY };
            }
        }
        penalties
    }

    /// Forgets a peer that is gone.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.neighbours.remove(peer);
    }
}

/// What a caller wants to publish, checked.
pub(super) fn checked(bytes: &Bytes) -> Result<(), crate::mesh::error::PublishError> {
    if bytes.len() > MAX_GOSSIP {
        return Err(crate::mesh::error::PublishError::TooLarge { limit: MAX_GOSSIP, got: bytes.len() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_ignored_and_then_costs() {
        let (mut judge, peer, network) = (Judge::default(), PeerId::random(), NetworkId::new([1; 32]));
        for _ in 0..BURST {
            assert!(matches!(judge.judge(peer, b"junk", network), Verdict::Drop(MessageAcceptance::Reject)));
        }

        for _ in 0..1000 {
            assert!(matches!(judge.judge(peer, b"junk", network), Verdict::Drop(MessageAcceptance::Ignore)));
        }

        let penalties = judge.tick();
        assert_eq!(penalties.len(), 1);
        assert!(penalties[0].1 < PeerScoreThresholds::default().graylist_threshold, "{penalties:?}");
        assert!(matches!(judge.judge(peer, b"junk", network), Verdict::Drop(MessageAcceptance::Reject)));
    }

    #[test]
    fn one_message_has_one_name_on_one_topic() {
        let (one, other) = (TopicHash::from_raw("a"), TopicHash::from_raw("b"));

        assert_eq!(content_hash(&one, b"x"), content_hash(&one, b"x"));
        assert_ne!(content_hash(&one, b"x"), content_hash(&other, b"x"));
        assert_ne!(content_hash(&one, b"x"), content_hash(&one, b"y"));
    }
}
