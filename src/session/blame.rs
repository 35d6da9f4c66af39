//! Which stage a broken session is blamed on, from what is known of each.
//!
//! When one stage dies, its neighbours report a lost hop, free the session and close their own hops, so that soon
//! every stage reports some neighbour as lost. The culprit is the one at the end of the accusations: the stage that is
//! accused and has itself nothing to report.

use crate::ids::StageIndex;
use crate::wire::control::StageFailure;

/// What is known of one stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Evidence {
    /// Nothing is wrong.
    #[default]
    None,
    /// Its control stream ended without a word, or it fell silent.
    Gone,
    /// It reported a failure.
    Reported(StageFailure),
}

/// Who is to blame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The stage was lost.
    Lost(StageIndex),
    /// The stage could not go on.
    Failed(StageIndex, StageFailure),
}

/// What the evidence says at once, without waiting for more: a stage is gone, or failed by itself.
pub fn certain(evidence: &[Evidence]) -> Option<Verdict> {
    let gone = indexed(evidence).find(|(_, known)| **known == Evidence::Gone);
    gone.map(|(index, _)| Verdict::Lost(index))
        .or_else(|| indexed(evidence).find_map(|(index, known)| own(index, known)))
}

/// What the evidence says when no more is waited for. `None` if nothing is wrong.
pub fn verdict(evidence: &[Evidence]) -> Option<Verdict> {
    certain(evidence).or_else(|| {
        let accuser = indexed(evidence).find(|(_, known)| **known != Evidence::None)?.0;
        Some(follow(accuser, evidence))
    })
}

/// Follows accusations from `accuser` to the stage that accuses nobody; in a ring of accusations, to the first one accused.
fn follow(accuser: StageIndex, evidence: &[Evidence]) -> Verdict {
    let mut accused = accuser;
    for _ in evidence {
        let known = evidence.get(usize::from(accused.0));
        let Some(Evidence::Reported(StageFailure::HopLost { stage, .. })) = known else {
            return Verdict::Lost(accused);
        };
        accused = *stage;
    }
    // Each end of a hop says that it lost the other: the hop failed, and one end must be named.
    Verdict::Lost(accused)
}

fn own(index: StageIndex, known: &Evidence) -> Option<Verdict> {
    match known {
        Evidence::None | Evidence::Gone | Evidence::Reported(StageFailure::HopLost { .. }) => None,
        Evidence::Reported(failure) => Some(Verdict::Failed(index, failure.clone())),
    }
}

fn indexed(evidence: &[Evidence]) -> impl Iterator<Item = (StageIndex, &Evidence)> {
    (0..).map(StageIndex).zip(evidence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PeerKey;

    fn accuses(stage: u16) -> Evidence {
        Evidence::Reported(StageFailure::HopLost { stage: StageIndex(stage), peer: PeerKey::new([0; 32]) })
    }

    #[test]
    fn the_last_of_the_accused_is_to_blame() {
        // Stage 2 froze; 1 lost it and let go; 0 lost 1; 3 lost 2.
        let evidence = [accuses(1), accuses(2), Evidence::None, accuses(2)];

        assert_eq!(certain(&evidence), None);
        assert_eq!(verdict(&evidence), Some(Verdict::Lost(StageIndex(2))));
    }

    #[test]
    fn a_stage_that_is_gone_is_blamed_at_once() {
        let evidence = [accuses(1), Evidence::Gone];

        assert_eq!(certain(&evidence), Some(Verdict::Lost(StageIndex(1))));
    }

    #[test]
    fn a_failure_of_its_own_outweighs_what_follows_from_it() {
        let evidence = [accuses(1), Evidence::Reported(StageFailure::NonFinite), accuses(1)];

        assert_eq!(certain(&evidence), Some(Verdict::Failed(StageIndex(1), StageFailure::NonFinite)));
    }

    #[test]
    fn two_ends_that_accuse_each_other_name_one_of_them() {
        assert!(matches!(verdict(&[accuses(1), accuses(0)]), Some(Verdict::Lost(_))));
        assert_eq!(verdict(&[Evidence::None, Evidence::None]), None);
        // An index beyond the chain is refused where it is heard, yet harmless here.
        assert_eq!(verdict(&[accuses(7)]), Some(Verdict::Lost(StageIndex(7))));
    }
}
