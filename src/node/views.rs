//! What can be asked of the node.

use crate::amounts::Bytes;
use crate::amounts::Time;
use crate::ids::BootSeq;
use crate::ids::ModelId;
use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::ledger::Ledger;
use crate::membership::Membership;
use crate::node::Departure;
use crate::node::Node;
use crate::node::io::ModelFacts;
use crate::placement::CannotServe;
use crate::units::Cover;
use crate::wire::profile::HoldingState;

impl Node {
    /// This peer's key.
    pub fn peer(&self) -> PeerKey {
        self.me
    }

    /// The network.
    pub fn network(&self) -> NetworkId {
        self.config.network
    }

    /// What is known of the other peers and of their models.
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    /// The credit logs.
    pub fn ledger(&self) -> &Ledger {
        self.credit.ledger()
    }

    /// The models whose facts are known, by id.
    pub fn models(&self) -> impl Iterator<Item = &ModelFacts> {
        self.models.values().map(|facts| &**facts)
    }

    /// What is known of a model.
    pub fn facts(&self, model: ModelId) -> Option<&ModelFacts> {
        self.models.get(&model).map(|facts| &**facts)
    }

    /// The models that can take a model's place, itself first, then coarser ones; only itself if nothing is known of it.
    pub fn family(&self, model: ModelId) -> Vec<ModelId> {
        self.models.get(&model).map_or_else(|| vec![model], |facts| facts.precisions.clone())
    }

    /// How many peers, this one included, have each unit of a model ready, at whatever precision; `None` if nobody said how many it has.
    pub fn cover(&self, model: ModelId, now: Time) -> Option<Cover> {
        let Some(facts) = self.models.get(&model) else { return self.membership.cover(model, now) };
        let mut cover = Cover::empty(facts.shape.units());
        for &precision in &facts.precisions {
            let others = self.membership.holders(precision, now).into_iter();
            let ready = others.filter(|holder| holder.holding.state == HoldingState::Ready);
            ready.for_each(|holder| cover.add(holder.holding.range));
            self.holdings.ready(precision).for_each(|range| cover.add(range));
        }
        Some(cover)
    }

    /// Why a model that was to be served here is not.
    pub fn refused(&self, model: ModelId) -> Option<&CannotServe> {
        self.holdings.refused(model)
    }

    /// Memory offered to the mesh.
    pub fn memory(&self) -> Bytes {
        self.config.memory
    }

    /// Memory that nothing uses yet.
    pub fn memory_free(&self) -> Bytes {
        self.config.memory.minus(self.holdings.weights(&self.models)).minus(self.cache()).minus(self.stages.journals())
    }

    /// Memory of the keys and values of the sessions leased from this peer.
    pub fn cache(&self) -> Bytes {
        self.stages.cache()
    }

    /// Memory held ready for them: their keys and values, and what they may have to send again.
    pub fn memory_reserved(&self) -> Bytes {
        self.cache().plus(self.stages.journals_reserved())
    }

    /// Stages leased from this peer.
    pub fn sessions(&self) -> usize {
        self.stages.len()
    }

    /// This peer's own requests under way.
    pub fn requests(&self) -> usize {
        self.requests.len()
    }

    /// Whether this peer is about to leave.
    pub fn departure(&self) -> Departure {
        self.departure
    }

    /// Whether this peer is about to leave and nobody needs it any more.
    pub fn is_drained(&self) -> bool {
        self.departure == Departure::Draining && self.sessions() == 0 && self.requests() == 0
    }

    /// The order under which another process speaks with this peer's key, if one was heard.
    pub fn impostor(&self) -> Option<BootSeq> {
        self.impostor
    }
}
