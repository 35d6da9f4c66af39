//! What the requester knows of one stage.

use crate::amounts::Time;
use crate::ids::StreamId;
use crate::session::blame::Evidence;
use crate::units::Stage;
use crate::wire::control::StageReport;

/// Whether the stage has answered what it is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settlement {
    NotAsked,
    Asked,
    Answered(Option<StageReport>),
}

/// One control stream and the stage at its other end.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) stream: StreamId,
    pub(super) stage: Stage,
    pub(super) accepted: bool,
    pub(super) closed: bool,
    /// Whether it has answered on the stream.
    pub(super) reached: bool,
    /// When it last said anything.
    pub(super) heard: Time,
    pub(super) evidence: Evidence,
    settlement: Settlement,
}

impl Control {
    pub(super) fn new(stream: StreamId, stage: Stage, now: Time) -> Self {
        Self {
            stream,
            stage,
            accepted: false,
            closed: false,
            reached: false,
            heard: now,
            evidence: Evidence::None,
            settlement: Settlement::NotAsked,
        }
    }

    pub(super) fn settle(&mut self) {
        self.settlement = Settlement::Asked;
    }

    /// The first answer counts.
    pub(super) fn answered(&mut self, report: Option<StageReport>) {
        if self.settlement == Settlement::Asked {
            self.settlement = Settlement::Answered(report);
        }
    }

    /// Whether something is to be heard from it.
    pub(super) fn is_expected(&self) -> bool {
        !self.closed && self.evidence == Evidence::None
    }

    /// Whether its answer to what it is owed is still to come.
    pub(super) fn owes_answer(&self) -> bool {
        self.settlement == Settlement::Asked && !self.closed
    }

    pub(super) fn report(&self) -> Option<StageReport> {
        match self.settlement {
            Settlement::Answered(report) => report,
            Settlement::NotAsked | Settlement::Asked => None,
        }
    }
}
