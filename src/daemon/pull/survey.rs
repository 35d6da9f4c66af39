//! What is missing for a job, and whether there is room for it. Reads what a run before left; for a thread that may wait.

use std::collections::BTreeSet;

use crate::amounts::Bytes;
use crate::daemon::library::Library;
use crate::daemon::pull::target::Target;
use crate::ids::BlobHash;
use crate::ids::ModelId;
use crate::swarm::outline::PIECE;
use crate::units::UnitRange;
use crate::weights::lookup::Missing;
use crate::weights::lookup::Recipe;

/// Bytes of the disk that are left free (arbitrary: what else runs on the machine must not stand still for this).
const HEADROOM: Bytes = Bytes::mib(1_024);

/// How much of what tensors are made of by quantising may lie on the disk at once, if it is more than one tensor (arbitrary).
pub(super) const PASSING: Bytes = Bytes::mib(512);

/// A tensor that is not on this machine, or not whole.
#[derive(Debug)]
pub(super) struct Lack {
    pub(super) missing: Missing,
    /// How it is made, if it is made here, of another that may be lacking.
    pub(super) made: Option<Made>,
    /// Where it goes, and the pieces that are there if its outline is known. None if it was on its way already.
    pub(super) begun: Option<(Target, Option<BTreeSet<u64>>)>,
    /// Bytes that are not there.
    pub(super) left: Bytes,
}

/// A tensor that is made here.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) recipe: Recipe,
    /// What it is made of, if that is not here.
    pub(super) of: Option<Box<Lack>>,
}

impl Lack {
    /// Bytes that are to be fetched.
    pub(super) fn fetched(&self) -> Bytes {
        match &self.made {
            Some(made) => made.of.as_ref().map_or(Bytes::ZERO, |lack| lack.missing.bytes),
            None => self.missing.bytes,
        }
    }
}

/// What was found of damaged tensors: those that can be fetched, the others, and why not.
#[derive(Debug, Default)]
pub(super) struct Damaged {
    pub(super) lacks: Vec<Lack>,
    pub(super) others: Vec<Missing>,
    pub(super) reason: Option<String>,
}

/// Looks at the disk. There is one at a time, so that no room is given twice.
pub(super) struct Survey {
    pub(super) library: Library,
    /// What is on its way, and how many bytes of it are to come.
    pub(super) wanted: BTreeSet<BlobHash>,
    pub(super) expected: Bytes,
}

impl Survey {
    /// What is missing for a range of units.
    ///
    /// # Errors
    /// What is in the way, in words.
    pub(super) fn of(&self, model: ModelId, range: UnitRange) -> Result<Vec<Lack>, String> {
        let missing = self.library.missing(model, range).map_err(|error| error.to_string())?;
        self.library.keep(model, range).map_err(|error| error.to_string())?;
        let lacks: Vec<Lack> = missing.into_iter().map(|missing| self.lack(missing)).collect::<Result<_, _>>()?;
        let passing = lacks.iter().filter(|lack| lack.made.is_some()).map(|lack| lack.fetched().plus(PASSING)).max();
        let left = lacks.iter().map(|lack| lack.left).sum::<Bytes>().plus(passing.unwrap_or_default());
        check_room(self.library.room(), left, self.expected)?;
        Ok(lacks)
    }

    /// What of the damaged can be fetched again.
    pub(super) fn of_damaged(&self, damaged: Vec<Missing>) -> Damaged {
        let mut found = Damaged::default();
        let mut expected = self.expected;
        for missing in damaged {
            let lack = self.lack(missing.clone());
            let fits = lack.and_then(|lack| check_room(self.library.room(), lack.left, expected).map(|()| lack));
            match fits {
                Ok(lack) => {
                    expected = expected.plus(lack.left);
                    found.lacks.push(lack);
                }
                Err(reason) => {
                    found.others.push(missing);
                    found.reason = Some(reason);
                }
            }
        }
        found
    }

    fn lack(&self, missing: Missing) -> Result<Lack, String> {
        if self.wanted.contains(&missing.tensor) {
            return Ok(Lack { missing, made: None, begun: None, left: Bytes::ZERO });
        }
        if let Some((recipe, is_here)) = self.library.recipe(&missing).map_err(|error| error.to_string())? {
            let source = || self.lack(recipe.source.clone()).map(Box::new);
            let of = if is_here { None } else { Some(source()?) };
            let left = missing.bytes;
            return Ok(Lack { missing, made: Some(Made { recipe, of }), begun: None, left });
        }
        let resumed = Target::resume(self.library.tensors().clone(), missing.tensor, missing.bytes);
        let (target, there) = resumed.map_err(|error| error.to_string())?;
        let had = there.as_ref().map_or(0, |there| (there.len() as u64).saturating_mul(PIECE));
        let left = missing.bytes.minus(Bytes(had));
        Ok(Lack { missing, made: None, begun: Some((target, there)), left })
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
