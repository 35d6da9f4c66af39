//! Stages that are about to leave: others take their places while the old chain goes on.
//!
//! ```text
//!  Running, Rejoining ──Leaving──▶ Mending ──chain given──▶ Rejoining (see `mending`): the leaver is let go, and is owed
//!          ▲                         │
//!          └──── no chain: as before, and again a while later; when the leaver is gone it is lost like any other
//! ```
//!
//! Nobody is reproached: a peer that says that it leaves does as it should.

use crate::amounts::Time;
use crate::ids::PeerKey;
use crate::ids::StageIndex;
#[cfg(feature = "mutants")]
use crate::mutants::Mutant;
#[cfg(feature = "mutants")]
use crate::mutants::is_planted;
use crate::session::outcome::GenerateFailure;
use crate::session::requester::Phase;
use crate::session::requester::Requester;
use crate::session::requester::mending::Trouble;
use crate::units::Stage;
use crate::wire::control::Decline;
use crate::wire::control::DeclineReason;
use crate::wire::control::StageFailure;

/// What goes on where there is no chain without those that leave.
#[derive(Clone, Debug)]
pub(super) struct Meanwhile {
    phase: Phase,
    trouble: Option<Trouble>,
}

impl Requester {
    /// A stage is about to leave, and so is every other one of its peer.
    pub(super) fn leaves(&mut self, index: StageIndex, now: Time) {
        #[cfg(feature = "mutants")]
        if is_planted(Mutant::IgnoreLeaving) {
            return;
        }
        let peer = self.control(index).stage.peer;
        let stages = self.controls.iter_mut().filter(|control| control.stage.peer == peer);
        stages.for_each(|control| control.is_leaving = true);
        match self.phase {
            // Nothing was fed yet, so a refusal costs no more than it would have before.
            Phase::Leasing { .. } => {
                let decline = Decline { reason: DeclineReason::Draining, retry_after: None };
                self.refused(index, decline, now);
            }
            Phase::Running | Phase::Rejoining { .. } => self.hand_over(now),
            // The next try does without it.
            Phase::Mending | Phase::Waiting { .. } => {}
            Phase::Planning | Phase::Pausing { .. } | Phase::Settling { .. } | Phase::Over => {}
        }
    }

    /// Asks for a chain without those that leave; what there is goes on until there is one.
    pub(super) fn hand_over(&mut self, now: Time) {
        let Some(leaver) = self.controls.iter().find(|control| control.is_leaving) else { return };
        let Stage { peer, range } = leaver.stage;
        let meanwhile = Meanwhile { phase: self.phase.clone(), trouble: self.trouble.clone() };
        let cause = GenerateFailure::StageFailed { peer, range, failure: StageFailure::Draining };
        self.note_trouble(cause, now);
        self.meanwhile = Some(meanwhile);
        self.phase = Phase::Mending;
        self.plan(now);
    }

    /// There is no chain without those that leave. Whether all goes on as before: not if others were lost meanwhile.
    pub(super) fn goes_on(&mut self) -> bool {
        let Some(Meanwhile { phase, trouble }) = self.meanwhile.take() else { return false };
        (self.phase, self.trouble) = (phase, trouble);
        true
    }

    /// Peers that leave and are still needed.
    pub(super) fn leavers(&self) -> impl Iterator<Item = PeerKey> {
        self.controls.iter().filter(|control| control.is_leaving).map(|control| control.stage.peer)
    }
}

#[cfg(test)]
mod tests;
