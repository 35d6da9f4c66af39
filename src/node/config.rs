//! What a node is made with.

use std::collections::BTreeSet;

use crate::amounts::Bytes;
use crate::ids::NetworkId;
use crate::ids::PeerKey;
use crate::keys::Identity;
use crate::membership::MembershipConfig;
use crate::node::io::ModelFacts;
use crate::placement::PlacementConfig;
use crate::scheduler::SchedulerConfig;
use crate::shape::WeightFormat;
use crate::wire::profile::Device;

/// What a node is made with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Who this peer is.
    pub identity: Identity,
    /// The network it belongs to.
    pub network: NetworkId,
    /// Who is in the network.
    pub privacy: Privacy,
    /// The boot number: rises at each start.
    pub boot: u64,
    /// Memory offered to the mesh.
    pub memory: Bytes,
    /// The machine, for the profile.
    pub machine: Machine,
    /// Peers that prompts may go to although the network is open.
    pub allowed: BTreeSet<PeerKey>,
    /// Whom this peer serves.
    pub serves: Serves,
    /// At which precisions.
    pub precisions: Precisions,
    /// The bounds.
    pub limits: Limits,
    /// The bounds of what is remembered of others.
    pub membership: MembershipConfig,
    /// The pace of placement.
    pub placement: PlacementConfig,
    /// The bounds of the queue for the engine.
    pub scheduler: SchedulerConfig,
}

/// Who is in a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privacy {
    /// Anyone who knows its name.
    Open,
    /// Holders of its key, who trust each other with their prompts.
    Private,
}

/// Whom a peer serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// Anyone.
    Anyone,
    /// The allowed peers and itself.
    Allowed,
}

/// At which precisions a peer serves models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Precisions {
    /// Whether at the one that a model has, whatever that is.
    pub source: bool,
    /// And at these.
    pub formats: BTreeSet<WeightFormat>,
}

impl Precisions {
    /// Whether a model, which may have been made of another, may be served.
    pub fn allow(&self, facts: &ModelFacts) -> bool {
        self.source && facts.source.is_none() || self.formats.contains(&facts.format)
    }
}

impl Default for Precisions {
    /// At any.
    fn default() -> Self {
        Self { source: true, formats: WeightFormat::ALL.iter().copied().collect() }
    }
}

/// The machine, as the profile says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// CPU cores that the engine may use.
    pub cores: u16,
    /// CPU features, as bits of [`crate::wire::profile::cpu`].
    pub cpu_features: u32,
    /// Devices found, at most 4.
    pub devices: Vec<Device>,
    /// Weight formats that the engine can serve.
    pub formats: Vec<WeightFormat>,
    /// The arithmetic class that the engine computes in.
    pub arithmetic: String,
}

/// The bounds of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests of this peer's user at once.
    pub requests: usize,
    /// Stages leased from this peer at once.
    pub leases: usize,
    /// Stages that one requester may lease of them.
    pub leases_per_requester: usize,
    /// Memory for what stages could send again, should the next one be lost.
    pub journals: Bytes,
}

impl Default for Limits {
    /// The design's 64 requests; the rest is arbitrary.
    fn default() -> Self {
        Self { requests: 64, leases: 128, leases_per_requester: 64, journals: Bytes::mib(256) }
    }
}
