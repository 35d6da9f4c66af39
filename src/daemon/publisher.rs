//! Gossip: which topics this peer takes part in, and what goes to which.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::oneshot;

use crate::ids::ModelId;
use crate::mesh::Mesh;
use crate::mesh::Topic;
use crate::wire::gossip::Gossip;
use crate::wire::profile::Profile;

/// Records waiting to be published. Everything gossiped is said again sooner or later, so what finds no room is dropped.
const CAPACITY: usize = 256;

/// Models whose profiles this peer listens to (arbitrary; a topic costs a few hundred bytes per neighbour).
const MAX_TOPICS: usize = 64;

/// Peers up to which profiles go to everybody (arbitrary: 64 peers make 7 profiles a second at most).
const SMALL: usize = 64;

/// How long the last records may take to go out at the end.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// Publishes beside the loop.
pub(super) struct Publisher {
    queue: mpsc::Sender<Order>,
    followed: BTreeSet<ModelId>,
    /// Models that were made of another, with that other: what concerns them goes to those who follow that one.
    origins: BTreeMap<ModelId, ModelId>,
}

enum Order {
    Publish(Topic, bytes::Bytes),
    Subscribe(Topic),
    Flush(oneshot::Sender<()>),
}

impl Publisher {
    pub(super) fn start(mesh: Mesh) -> Self {
        let (queue, orders) = mpsc::channel(CAPACITY);
        tokio::spawn(run(mesh, orders));
        let publisher = Self { queue, followed: BTreeSet::new(), origins: BTreeMap::new() };
        publisher.order(Order::Subscribe(Topic::Network));
        publisher
    }

    /// Publishes a record to whom it concerns, in a network of about `peers` peers.
    pub(super) fn publish(&self, gossip: &Gossip, peers: usize) {
        let bytes = gossip.encode();
        for topic in topics(gossip, peers, &self.origins) {
            self.order(Order::Publish(topic, bytes.clone()));
        }
    }

    /// Takes note of a record from others: a card makes its model's profiles worth hearing.
    pub(super) fn heard(&mut self, gossip: &Gossip) {
        if let Gossip::Card(card) = gossip {
            self.follow(card.value.model);
        }
    }

    /// Says of which model another was made.
    pub(super) fn belongs(&mut self, made: ModelId, source: ModelId) {
        self.origins.insert(made, source);
    }

    /// Listens to the profiles of those who serve a model.
    pub(super) fn follow(&mut self, model: ModelId) {
        if self.followed.len() < MAX_TOPICS && self.followed.insert(model) {
            self.order(Order::Subscribe(Topic::Model(model)));
        }
    }

    /// Waits a moment for what is queued to go out.
    pub(super) async fn flush(&self) {
        let (reply, done) = oneshot::channel();
        self.order(Order::Flush(reply));
        // What takes longer is said by the connection's end.
        let _ = tokio::time::timeout(FLUSH_LIMIT, done).await;
    }

    fn order(&self, order: Order) {
        if self.queue.try_send(order).is_err() {
            tracing::debug!("gossip finds no room and is dropped");
        }
    }
}

/// A profile concerns those who follow its models. In a small network, and from a peer that holds nothing, it goes to
/// everybody, so that a newcomer need not learn of the model first.
fn topics(gossip: &Gossip, peers: usize, origins: &BTreeMap<ModelId, ModelId>) -> Vec<Topic> {
    match gossip {
        Gossip::Profile(profile) if peers > SMALL => profile_topics(&profile.value, origins),
        Gossip::Profile(_) | Gossip::Card(_) | Gossip::Credit(_) => vec![Topic::Network],
    }
}

fn profile_topics(profile: &Profile, origins: &BTreeMap<ModelId, ModelId>) -> Vec<Topic> {
    let held = profile.holdings.iter().map(|holding| holding.model);
    let all = held.chain(profile.stored.iter().map(|stored| stored.model));
    let models: BTreeSet<ModelId> = all.map(|model| origins.get(&model).copied().unwrap_or(model)).collect();
    if models.is_empty() {
        return vec![Topic::Network];
    }
    models.into_iter().map(Topic::Model).collect()
}

async fn run(mesh: Mesh, mut orders: mpsc::Receiver<Order>) {
    while let Some(order) = orders.recv().await {
        match order {
            Order::Publish(topic, bytes) => {
                if let Err(error) = mesh.publish(topic, bytes).await {
                    tracing::debug!(%error, "a record was not published");
                }
            }
            Order::Subscribe(topic) => mesh.subscribe(topic).await,
            Order::Flush(reply) => drop(reply.send(())),
        }
    }
}
