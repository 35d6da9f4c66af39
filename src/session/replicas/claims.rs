//! What a chain's stages have committed themselves to, bounded.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::amounts::Position;
use crate::wire::commitment::COMMIT_EVERY;
use crate::wire::commitment::Commitment;
use crate::wire::signed::Signed;

/// Positions between the usual ones of which commitments are kept (arbitrary: how many tokens one chain may be ahead of another and
/// still be compared at each; beyond that they are compared chunk by chunk).
const MAX_BETWEEN: usize = 512;

/// Of one position, by the first unit of the stage.
pub(super) type Claimed = BTreeMap<u16, Signed<Commitment>>;

/// By position, and there by the first unit of the stage.
#[derive(Debug, Default)]
pub(super) struct Claims {
    by_position: BTreeMap<Position, Claimed>,
    /// The positions between the usual ones.
    between: BTreeSet<Position>,
}

impl Claims {
    /// Takes a commitment; one of the same stage and position makes way.
    pub(super) fn insert(&mut self, signed: Signed<Commitment>) {
        let Commitment { end, range, .. } = signed.value;
        self.by_position.entry(end).or_default().insert(range.start(), signed);
        if !end.0.is_multiple_of(COMMIT_EVERY) {
            self.between.insert(end);
        }
        if self.between.len() > MAX_BETWEEN
            && let Some(oldest) = self.between.pop_first()
        {
            self.by_position.remove(&oldest);
        }
    }

    pub(super) fn at(&self, position: Position) -> Option<&Claimed> {
        self.by_position.get(&position)
    }
}
