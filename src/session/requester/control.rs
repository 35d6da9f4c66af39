//! What the requester knows of one stage.

use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::amounts::Time;
use crate::ids::Epoch;
use crate::ids::StreamId;
use crate::ids::Token;
use crate::session::blame::Evidence;
use crate::session::blame::Witness;
use crate::session::requester::job::Job;
use crate::session::requester::keeps::Held;
use crate::session::requester::pulse::Pulse;
use crate::units::Stage;
use crate::wire::control::StageReport;
use crate::wire::credit::CreditLine;

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
    /// The chain for which its lease was asked.
    pub(super) offered: Epoch,
    pub(super) accepted: bool,
    pub(super) closed: bool,
    /// Whether it has answered on the stream.
    pub(super) reached: bool,
    /// When it last said anything.
    pub(super) heard: Time,
    /// How quickly it answers.
    pub(super) pulse: Pulse,
    pub(super) evidence: Evidence,
    /// Whether it has been told to compute.
    pub(super) began: bool,
    /// Whether its peer has said that it leaves.
    pub(super) is_leaving: bool,
    /// What it has, once it stands in the mended chain.
    pub(super) held: Option<Held>,
    /// What it heard from the tail, if it is the driver.
    pub(super) heard_tokens: Vec<Token>,
    /// What it had computed and was told to forget.
    rewound: Mflop,
    settlement: Settlement,
}

impl Control {
    pub(super) fn new(stream: StreamId, stage: Stage, offered: Epoch, now: Time) -> Self {
        Self {
            stream,
            stage,
            offered,
            accepted: false,
            closed: false,
            reached: false,
            heard: now,
            pulse: Pulse::new(now),
            evidence: Evidence::None,
            began: false,
            is_leaving: false,
            held: None,
            heard_tokens: Vec::new(),
            rewound: Mflop::ZERO,
            settlement: Settlement::NotAsked,
        }
    }

    /// It said something.
    pub(super) fn hears(&mut self, now: Time) {
        (self.reached, self.heard) = (true, now);
        self.pulse.heard();
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

    /// It was called into a newer chain: what it complained of was the older one's.
    pub(super) fn called(&mut self) {
        (self.evidence, self.held) = (Evidence::None, None);
        self.heard_tokens.clear();
    }

    /// It goes on, and forgets what it has beyond `keep`.
    pub(super) fn resumes(&mut self, keep: Position, job: &Job) {
        let length = self.held.take().map_or(keep, |held| held.length);
        let forgotten = job.shape.work(self.stage.range, keep, length.minus(keep));
        self.rewound = self.rewound.plus(forgotten);
        self.began = true;
    }

    /// What is owed to it for `positions`.
    pub(super) fn line(&self, job: &Job, positions: Position) -> CreditLine {
        let mut line = job.line(self.stage, positions);
        line.work = line.work.plus(self.rewound);
        line
    }

    /// Whether something is to be heard from it.
    pub(super) fn is_expected(&self) -> bool {
        !self.closed && !self.is_lost()
    }

    /// Whether it has nothing of the session any more, as far as is known.
    pub(super) fn is_lost(&self) -> bool {
        matches!(self.evidence, Evidence::Gone | Evidence::Failed(_))
    }

    pub(super) fn witness(&self) -> Witness<'_> {
        Witness { evidence: &self.evidence, heard: self.heard }
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
