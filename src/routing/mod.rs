//! Which chain a session takes: the requester's own choice, by shortest path over (holding, unit boundary).
//!
//! [`plan`] is a function of a [`View`]: what peers hold, how fast they say they are, how long they let one wait, and
//! how far they are from each other. The cost of a chain is the time one token takes round its ring.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Span;
use crate::ids::PeerKey;
use crate::units::Chain;
use crate::units::UnitRange;

/// A range that a peer has ready to be leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The peer.
    pub peer: PeerKey,
    /// The units; a stage may be any part of them.
    pub range: UnitRange,
    /// Measured time of one position through one unit; zero while unknown.
    pub per_unit: Span,
    /// How long a step waits for the engine.
    pub queue: Span,
}

/// Whom the prompt may pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Anyone.
    Any,
    /// These, and the requester itself.
    Only(BTreeSet<PeerKey>),
}

/// All that a plan depends on.
#[derive(Clone, Debug)]
pub struct View {
    /// The requester. Its own holdings are listed among the others'.
    pub me: PeerKey,
    /// Units of the model.
    pub units: u16,
    /// Ready holdings; one peer may have several, and they may overlap.
    pub holders: Vec<Holder>,
    /// Measured round trips, by pair with the smaller key first (see [`pair`]).
    pub round_trips: BTreeMap<(PeerKey, PeerKey), Span>,
    /// The round trip of pairs that nobody measured.
    pub default_round_trip: Span,
    /// The time of one position through one unit where a holder does not know.
    pub default_per_unit: Span,
    /// Peers that failed in this attempt or may not be used for another reason.
    pub avoid: BTreeSet<PeerKey>,
    /// Whom the prompt may pass.
    pub trust: Trust,
    /// Differs from request to request, so that equals share the load.
    pub seed: u64,
}

/// The key of a pair in [`View::round_trips`].
pub fn pair(one: PeerKey, other: PeerKey) -> (PeerKey, PeerKey) {
    (one.min(other), one.max(other))
}

/// A chain, what it should cost, and who could step in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The chain to lease.
    pub chain: Chain,
    /// Per stage, the best other peer that holds all of the stage's units.
    pub standby: Vec<Option<PeerKey>>,
    /// The predicted time of one token.
    pub cost: Cost,
}

/// The predicted time of one token round the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Units × time per unit.
    pub compute: Span,
    /// Waiting for engines.
    pub queue: Span,
    /// One-way trips between stages, and from the tail back to the driver.
    pub trips: Span,
    /// A fixed amount per stage, with what spreads load among equals.
    pub overhead: Span,
}

/// Why there is no chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// Some units have no holder that may be used.
    #[error("no chain: nobody holds units [{}], only excluded peers hold units [{}]", list(missing), list(excluded))]
    Uncovered {
        /// Runs of units that nobody holds.
        missing: Vec<UnitRange>,
        /// Runs of units that only avoided or untrusted peers hold.
        excluded: Vec<UnitRange>,
    },
    /// Only chains longer than [`Chain::MAX_STAGES`] exist.
    #[error("no chain: {got} stages would be needed, at most {} are allowed", Chain::MAX_STAGES)]
    TooLong {
        /// Stages of the best chain.
        got: usize,
    },
}

fn list(runs: &[UnitRange]) -> String {
    runs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Plans the cheapest chain.
///
/// # Errors
/// [`NoRoute`] if the units can't all be reached.
pub fn plan(view: &View) -> Result<Plan, NoRoute> {
    todo!("{view:?}")
}
