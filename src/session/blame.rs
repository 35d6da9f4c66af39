//! What is wrong with a chain, from what is known of each stage.
//!
//! A stage that is gone or has failed is to be replaced. A stage that complains of a neighbour is not: if the neighbour is gone, that
//! will show; if it answers, the hop between the two has failed, and one of them must be gone round.

use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::StageIndex;
use crate::wire::control::Break;
use crate::wire::control::StageFailure;

/// What is known of one stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Evidence {
    /// Nothing is wrong.
    #[default]
    None,
    /// Its control stream ended without a word, it fell silent, or it broke the protocol.
    Gone,
    /// It reported a failure, and has freed the session.
    Failed(StageFailure),
    /// It reported a broken hop, and waits.
    Complains {
        /// The neighbour's stage.
        of: StageIndex,
        /// In what way it broke.
        how: Break,
        /// When it said so.
        since: Time,
    },
}

/// What the requester has of one stage.
#[derive(Clone, Copy, Debug)]
pub struct Witness<'a> {
    /// What is known of it.
    pub evidence: &'a Evidence,
    /// When it last said anything.
    pub heard: Time,
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The stage is lost.
    Lost(StageIndex),
    /// The stage could not go on.
    Failed(StageIndex, StageFailure),
    /// The hop between two stages that live has failed.
    Severed {
        /// Who said so.
        by: StageIndex,
        /// Of whom.
        of: StageIndex,
        /// In what way.
        how: Break,
    },
    /// The stage complains of one that the chain does not have.
    Absurd(StageIndex),
}

/// What the evidence says, if it says enough. A neighbour that is complained of has `grace` to be found gone, and must have been
/// heard since.
pub fn verdict(chain: &[Witness<'_>], grace: Span, now: Time) -> Option<Verdict> {
    let first = |of: fn(StageIndex, &Evidence) -> Option<Verdict>| {
        (0..).map(StageIndex).zip(chain).find_map(|(index, witness)| of(index, witness.evidence))
    };
    first(gone).or_else(|| first(failed)).or_else(|| {
        (0..).map(StageIndex).zip(chain).find_map(|(index, witness)| complaint(index, witness, chain, grace, now))
    })
}

/// When a complaint can be decided on, if nothing else is heard.
pub fn decides(chain: &[Witness<'_>], grace: Span) -> Option<Time> {
    let decided = |witness: &Witness<'_>| match witness.evidence {
        Evidence::Complains { of, since, .. } => {
            let accused = chain.get(usize::from(of.0))?;
            (accused.heard > *since).then(|| since.after(grace))
        }
        Evidence::None | Evidence::Gone | Evidence::Failed(_) => None,
    };
    chain.iter().filter_map(decided).min()
}

fn gone(index: StageIndex, evidence: &Evidence) -> Option<Verdict> {
    (*evidence == Evidence::Gone).then_some(Verdict::Lost(index))
}

fn failed(index: StageIndex, evidence: &Evidence) -> Option<Verdict> {
    match evidence {
        Evidence::Failed(failure) => Some(Verdict::Failed(index, failure.clone())),
        Evidence::None | Evidence::Gone | Evidence::Complains { .. } => None,
    }
}

fn complaint(by: StageIndex, witness: &Witness<'_>, chain: &[Witness<'_>], grace: Span, now: Time) -> Option<Verdict> {
    let Evidence::Complains { of, how, since } = *witness.evidence else { return None };
    let Some(accused) = chain.get(usize::from(of.0)) else { return Some(Verdict::Absurd(by)) };
    let certain = how == Break::Breach || (accused.heard > since && since.after(grace) <= now);
    certain.then_some(Verdict::Severed { by, of, how })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Span = Span(10);

    fn complains(of: u16, how: Break) -> Evidence {
        Evidence::Complains { of: StageIndex(of), how, since: Time(100) }
    }

    fn says(evidence: &[Evidence], heard: u64, now: u64) -> Option<Verdict> {
        let chain: Vec<_> = evidence.iter().map(|evidence| Witness { evidence, heard: Time(heard) }).collect();
        verdict(&chain, GRACE, Time(now))
    }

    #[test]
    fn a_stage_that_is_gone_is_lost_whoever_complains() {
        let evidence = [complains(1, Break::Lost), Evidence::Gone, complains(1, Break::Lost)];

        assert_eq!(says(&evidence, 0, 0), Some(Verdict::Lost(StageIndex(1))));
    }

    #[test]
    fn a_failure_of_its_own_is_certain() {
        let evidence = [complains(1, Break::Lost), Evidence::Failed(StageFailure::NonFinite)];

        assert_eq!(says(&evidence, 0, 0), Some(Verdict::Failed(StageIndex(1), StageFailure::NonFinite)));
    }

    #[test]
    fn a_hop_has_failed_when_the_accused_was_heard_since_and_the_grace_is_over() {
        let evidence = [Evidence::None, complains(0, Break::Lost)];
        let severed = Some(Verdict::Severed { by: StageIndex(1), of: StageIndex(0), how: Break::Lost });

        assert_eq!(says(&evidence, 100, 200), None);
        assert_eq!(says(&evidence, 101, 109), None);
        assert_eq!(says(&evidence, 101, 110), severed);
    }

    #[test]
    fn a_breach_waits_for_nobody_and_an_absurd_complaint_falls_back() {
        let severed = Some(Verdict::Severed { by: StageIndex(1), of: StageIndex(0), how: Break::Breach });

        assert_eq!(says(&[Evidence::None, complains(0, Break::Breach)], 0, 100), severed);
        assert_eq!(says(&[complains(7, Break::Lost)], 0, 100), Some(Verdict::Absurd(StageIndex(0))));
        assert_eq!(says(&[Evidence::None, Evidence::None], 0, 100), None);
    }
}
