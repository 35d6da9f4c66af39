//! What is missing for a job, and whether there is room for it. Reads what a run before left; for a thread that may wait.

use std::collections::BTreeSet;

use crate::amounts::Bytes;
use crate::daemon::library::Library;
use crate::daemon::pull::target::Target;
use crate::ids::ModelId;
use crate::swarm::outline::PIECE;
use crate::units::UnitRange;
use crate::weights::lookup::Missing;

/// Bytes of the disk that are left free (arbitrary: what else runs on the machine must not stand still for this).
const HEADROOM: Bytes = Bytes::mib(1_024);

/// A tensor that is not on this machine, or not whole.
#[derive(Debug)]
pub(super) struct Lack {
    pub(super) target: Target,
    /// The pieces that are there, if its outline is known.
    pub(super) there: Option<BTreeSet<u64>>,
    /// Bytes that are not.
    pub(super) left: Bytes,
    pub(super) model: ModelId,
    pub(super) units: Vec<u16>,
}

/// Looks at the disk.
pub(super) struct Survey {
    pub(super) library: Library,
    /// Bytes that are on their way already.
    pub(super) expected: Bytes,
}

impl Survey {
    /// What is missing for a range of units.
    ///
    /// # Errors
    /// What is in the way, in words.
    pub(super) fn of(&self, model: ModelId, range: UnitRange) -> Result<Vec<Lack>, String> {
        let missing = self.library.missing(model, range).map_err(|error| error.to_string())?;
        let lacks: Vec<Lack> = missing.into_iter().map(|missing| self.lack(missing)).collect::<Result<_, _>>()?;
        let left = lacks.iter().map(|lack| lack.left).sum();
        check_room(self.library.room(), left, self.expected)?;
        Ok(lacks)
    }

    /// What was found damaged since the last time.
    ///
    /// # Errors
    /// What is in the way, in words.
    pub(super) fn of_damaged(&self) -> Result<Vec<Lack>, String> {
        self.library.take_damaged().into_iter().map(|missing| self.lack(missing)).collect()
    }

    fn lack(&self, missing: Missing) -> Result<Lack, String> {
        let Missing { model, tensor, bytes, units } = missing;
        let resumed = Target::resume(self.library.tensors().clone(), tensor, bytes);
        let (target, there) = resumed.map_err(|error| error.to_string())?;
        let had = there.as_ref().map_or(0, |there| (there.len() as u64).saturating_mul(PIECE));
        Ok(Lack { target, there, left: bytes.minus(Bytes(had)), model, units })
    }
}

fn check_room(room: Option<Bytes>, left: Bytes, expected: Bytes) -> Result<(), String> {
    let needed = left.plus(expected).plus(HEADROOM);
    match room {
        Some(room) if room < needed && left > Bytes::ZERO => Err(format!(
            "the disk has no room for the weights: {left} are to be fetched, {expected} are on their way and {HEADROOM} stay free, but only \
             {room} are left"
        )),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_would_fill_is_refused_with_all_figures() {
        let room = |mib| Some(Bytes::mib(mib));

        assert_eq!(check_room(room(1_034), Bytes::mib(7), Bytes::mib(3)), Ok(()));
        assert_eq!(check_room(room(0), Bytes::ZERO, Bytes::ZERO), Ok(()), "nothing is to be fetched");
        assert_eq!(check_room(None, Bytes::mib(7), Bytes::mib(3)), Ok(()), "nobody knows");
        let refused = check_room(room(1_033), Bytes::mib(7), Bytes::mib(3)).unwrap_err();
        for figure in [Bytes::mib(7), Bytes::mib(3), HEADROOM, Bytes::mib(1_033)] {
            assert!(refused.contains(&figure.to_string()), "{refused}");
        }
    }
}
