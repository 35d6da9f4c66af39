//! What holding units of a model costs a peer: the estimator's answer for the passes that its scheduler makes.

use crate::amounts::Bytes;
use crate::amounts::Position;
use crate::estimate::Footprint;
use crate::estimate::Passes;
use crate::ids::ModelId;
use crate::node::io::HoldPolicy;
use crate::placement::Needs;
use crate::placement::Offer;
use crate::scheduler::Budget;

/// Positions of keys and values that are reserved for each unit held, if the context is as long (arbitrary: a session
/// of some length, or several short ones).
pub const RESERVED_POSITIONS: u32 = 4_096;

/// The passes that an engine of so many threads makes at the most, over sessions of the reserved length.
pub fn passes(budget: &Budget, threads: u16, context: u32) -> Passes {
    let logits = u32::try_from(budget.decodes).unwrap_or(u32::MAX);
    Passes {
        threads: threads.into(),
        rows: budget.positions.plus(Position(logits)).0,
        logits,
        positions: Position(context.min(RESERVED_POSITIONS)),
    }
}

/// What placement counts with: weights with room for keys and values of one session, and what passes work in.
pub fn of(model: ModelId, footprint: &Footprint, passes: &Passes) -> Needs {
    Needs {
        model,
        unit_bytes: (0..footprint.count()).map(|unit| footprint.unit(unit, passes)).collect(),
        shared_ends: footprint.shared_ends,
        reserve: footprint.scratch(passes),
    }
}

/// What a peer of so much memory offers under a policy.
pub fn offer(policy: HoldPolicy, budget: Bytes) -> Offer {
    match policy {
        HoldPolicy::Pinned(range) => Offer { budget, max_units: None, pinned: Some(range) },
        HoldPolicy::Automatic { max_units } => Offer { budget, max_units, pinned: None },
    }
}
