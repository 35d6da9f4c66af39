//! One generation, as its requester leads it.
//!
//! ```text
//!  Planning ──chain given──▶ Leasing ──all accepted──▶ Running ──finished, or enough──▶ Settling ──▶ Over
//!   │  ▲  ▲                     │ declined, unreachable   │  ▲                                         ▲
//!   │  │  └─ without that peer ─┘      lost, failed, hop  │  │ all are there, Resume                   │ patience
//!   │  │     or that hop                          severed ▼  │                                         │ is over
//!   └──┴─ Pausing, if there is no other            Mending ──▶ Rejoining (see `mending`) ──▶ Waiting ───┘
//!         chain and a hop failed
//! ```
//!
//! A stage that is about to leave has another take its place in the same way (see `leaving`).
//!
//! Each attempt at a lease, and each mended chain, is a new epoch, so that what is left of an earlier one is fenced off. When it is over,
//! every control stream has been closed, which frees every stage.

mod control;
mod job;
mod keeps;
mod late;
mod leasing;
mod leaving;
mod mending;
mod pulse;
mod running;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::mem;

use crate::amounts::Position;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::Epoch;
use crate::ids::PeerKey;
use crate::ids::SessionId;
use crate::ids::StageIndex;
use crate::ids::StreamId;
use crate::ids::Token;
use crate::session::blame;
use crate::session::blame::Evidence;
use crate::session::blame::Verdict;
use crate::session::blame::Witness;
use crate::session::outcome::Finish;
use crate::session::outcome::GenerateFailure;
use crate::session::outcome::Mended;
use crate::session::requester::control::Control;
pub use crate::session::requester::job::Job;
pub use crate::session::requester::late::Standing;
use crate::session::requester::leasing::Doubt;
use crate::session::requester::leaving::Meanwhile;
use crate::session::requester::mending::Trouble;
pub use crate::session::requester::pulse::SILENCE;
use crate::session::streams::CloseCause;
use crate::session::streams::OpenFailure;
use crate::session::streams::StreamIds;
use crate::shape::WireDtype;
use crate::units::Chain;
use crate::units::Stage;
use crate::units::UnitWeights;
use crate::wire::commitment::Commitment;
use crate::wire::control::FromStage;
use crate::wire::control::TailFinish;
use crate::wire::control::ToStage;
use crate::wire::control::TokenLogprobs;
use crate::wire::credit::CreditEntry;
use crate::wire::credit::CreditLine;
use crate::wire::signed::Signed;

/// How often each stage is asked whether it is alive (arbitrary).
pub const PING: Span = Span::seconds(1);

/// How long a lease is to last without a ping (arbitrary: five times the silence).
pub const EXPIRES_AFTER: Span = Span::seconds(15);

/// How long one stage's word about another waits for the other's own (arbitrary: a few round trips).
pub const GRACE: Span = Span::millis(500);

/// How long the stages may take to accept; longer than a stage waits for its neighbours, so that it can say which failed.
pub const LEASE: Span = Span::seconds(5);

/// Peers that may refuse before no other chain is tried (arbitrary).
pub const ATTEMPTS: u32 = 3;

/// How long hops that failed are left alone if there is no way round them; doubles each time (arbitrary: a peer that
/// came back needs a second or two until its neighbours know where it is).
pub const PAUSE: Span = Span::millis(500);

/// The longest such pause in mid-answer (arbitrary: the reader waits).
pub const LONGEST_PAUSE: Span = Span::seconds(2);

/// The longest that a request which has not begun waits for a peer that is busy: whoever asked is to hear within a second or so
/// when to ask again.
pub const BUSY_PATIENCE: Span = Span::seconds(1);

/// A busy peer is not asked again sooner, whatever it says (arbitrary).
pub const LEAST_RETRY: Span = Span::millis(100);

/// How long all attempts may take together, with the pauses between them.
pub const LEASE_TOTAL: Span = Span::seconds(10);

/// How long the stages may take to acknowledge what they are owed (arbitrary).
pub const SETTLE: Span = Span::seconds(2);

/// How long a live chain may take to bring the next token. Nothing but a hung engine takes so long (arbitrary).
pub const STALL: Span = Span::seconds(600);

/// What the requester asks for. To be done in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// A chain is wanted without [`Requester::avoided`] and [`Requester::severed`], and with as many of
    /// [`Requester::survivors`] as can be: [`Requester::lease`] or [`Requester::no_chain`] answers.
    Plan,
    /// Open a control stream to a stage's peer.
    OpenControl(StreamId, PeerKey),
    /// Send on a control stream.
    Send(StreamId, ToStage),
    /// Send what is queued, then end the stream.
    Close(StreamId),
    /// Every stage has accepted.
    Started(Chain),
    /// There is no chain for what was lost, for this reason; it is waited for.
    Waiting(GenerateFailure),
    /// The answer goes on in another chain.
    Mended(Mended),
    /// A new token.
    Token {
        /// Its position.
        position: Position,
        /// The token.
        token: Token,
        /// Log-probabilities if asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// A stage has committed itself to what it received and sent.
    Committed(Box<Signed<Commitment>>),
    /// Sign and store what is owed; [`Requester::on_signed`] or [`Requester::on_not_signed`] answers, if it is not over.
    Owe {
        /// Positions computed.
        positions: Position,
        /// What each stage is owed.
        lines: Vec<CreditLine>,
    },
    /// The peer did as it promised.
    Praise(PeerKey),
    /// The peer did not.
    Reproach(PeerKey, Fault),
    /// The generation ended as it should.
    Finished(Finish),
    /// It ended early.
    Failed(GenerateFailure),
    /// The generation is over; forget it.
    Ended,
}

/// In what a peer failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no connection to it.
    Unreachable,
    /// It is connected, but does not answer, or not as the protocol says, or does not hold what it claims.
    Broke,
    /// It did not compute what it was asked for, and others did.
    Lied,
}

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    Planning,
    Pausing {
        until: Time,
    },
    Leasing {
        until: Time,
    },
    Running,
    /// A chain for what was lost is asked for.
    Mending,
    /// There was none; all that is left is held until the next try.
    Waiting {
        until: Time,
    },
    /// The stages of the mended chain are called and leased.
    Rejoining {
        until: Time,
    },
    Settling {
        until: Time,
        tell: Option<TailFinish>,
        lines: Vec<CreditLine>,
        signed: bool,
    },
    Over,
}

/// One generation under way.
#[derive(Debug)]
pub struct Requester {
    job: Job,
    phase: Phase,
    began: Time,
    epoch: Epoch,
    attempts: u32,
    /// How often a peer was at fault for a lease that came to nothing.
    refusals: u32,
    avoided: BTreeSet<PeerKey>,
    /// Peers that are to be asked again at a time that they said.
    busy: BTreeMap<PeerKey, Time>,
    severed: BTreeSet<(PeerKey, PeerKey)>,
    pause: Span,
    chain: Option<Chain>,
    controls: Vec<Control>,
    doubt: Option<Doubt>,
    next_ping: Time,
    pings: u64,
    /// The position of the next token.
    next: Position,
    /// The tokens after the prompt that were accepted, and shown.
    accepted: Vec<Token>,
    /// How many tokens were known when the mended chain was asked for.
    known: Position,
    /// Where hidden states are rounded: fixed with the first chain.
    rounding: Vec<(u16, WireDtype)>,
    /// What went wrong since the last token.
    trouble: Option<Trouble>,
    /// What goes on while a chain without those that leave is asked for.
    meanwhile: Option<Meanwhile>,
    /// What is owed to stages that live and were let go.
    dismissed: Vec<CreditLine>,
    progress: Time,
    last_decline: Option<GenerateFailure>,
    effects: Vec<Effect>,
}

impl Requester {
    /// Begins; the first effect asks for a chain.
    pub fn new(job: Job, now: Time) -> (Self, Vec<Effect>) {
        let next = job.prompt_length();
        let requester = Self {
            job,
            phase: Phase::Planning,
            began: now,
            epoch: Epoch(0),
            attempts: 0,
            refusals: 0,
            avoided: BTreeSet::new(),
            busy: BTreeMap::new(),
            severed: BTreeSet::new(),
            pause: PAUSE,
            chain: None,
            controls: Vec::new(),
            doubt: None,
            next_ping: now,
            pings: 0,
            next,
            accepted: Vec::new(),
            known: next,
            rounding: Vec::new(),
            trouble: None,
            meanwhile: None,
            dismissed: Vec::new(),
            progress: now,
            last_decline: None,
            effects: Vec::new(),
        };
        (requester, vec![Effect::Plan])
    }

    /// Says with whose weights the units are computed, in the chains that are leased from now on.
    pub fn weigh(&mut self, weights: UnitWeights) {
        self.job.weights = weights;
    }

    /// Leases a chain, in answer to [`Effect::Plan`]. It may have been cancelled since it asked.
    pub fn lease(&mut self, chain: Chain, ids: &mut StreamIds, now: Time) -> Vec<Effect> {
        if self.phase == Phase::Planning {
            self.lease_all(chain, ids, now);
        } else if self.phase == Phase::Mending {
            self.meanwhile = None;
            self.rejoin(chain, ids, now);
        }
        self.drain()
    }

    fn lease_all(&mut self, chain: Chain, ids: &mut StreamIds, now: Time) {
        self.attempts += 1;
        self.epoch = Epoch(self.attempts);
        self.phase = Phase::Leasing { until: now.after(LEASE).min(self.began.after(LEASE_TOTAL)) };
        self.next_ping = now.after(PING);
        self.controls = chain.stages().iter().map(|&stage| Control::new(ids.open(), stage, self.epoch, now)).collect();
        for (index, control) in (0..).map(StageIndex).zip(&self.controls) {
            let offer = self.job.offer(&chain, index, self.epoch, EXPIRES_AFTER);
            self.rounding.clone_from(&offer.rounding);
            self.effects.push(Effect::OpenControl(control.stream, control.stage.peer));
            self.effects.push(Effect::Send(control.stream, ToStage::Offer(Box::new(offer))));
        }
        self.chain = Some(chain);
    }

    /// There is no chain, in answer to [`Effect::Plan`]. If hops failed, their ends may only not have found each other
    /// yet: all are tried again after a pause, as long as there is time; and so is a busy peer that is soon to be asked again.
    /// A peer's refusal says more than that it left a hole.
    pub fn no_chain(&mut self, failure: GenerateFailure, now: Time) -> Vec<Effect> {
        if self.phase == Phase::Planning {
            match self.next_attempt(now) {
                Some(until) => self.phase = Phase::Pausing { until },
                None => {
                    let failure = self.refusal(now).unwrap_or(failure);
                    self.over(failure);
                }
            }
        } else if self.phase == Phase::Mending && !self.goes_on() {
            self.wait_for_chain(failure, now);
        }
        self.drain()
    }

    /// A control stream is open: its stage's peer has answered.
    pub fn on_opened(&mut self, stream: StreamId, now: Time) -> Vec<Effect> {
        if let Some(index) = self.index(stream) {
            self.control(index).hears(now);
        }
        self.drain()
    }

    /// A control stream could not be opened.
    pub fn on_open_failed(&mut self, stream: StreamId, failure: OpenFailure, now: Time) -> Vec<Effect> {
        if let Some(index) = self.index(stream) {
            self.controls[usize::from(index.0)].closed = true;
            match failure {
                OpenFailure::Unreachable | OpenFailure::Unsupported => self.gone(index, now),
                // This peer's own fault; another chain may need fewer streams, but no peer is to be blamed.
                OpenFailure::LocalLimit => self.over(GenerateFailure::Busy),
            }
        }
        self.drain()
    }

    /// A stage said something.
    pub fn on_message(&mut self, stream: StreamId, message: FromStage, now: Time) -> Vec<Effect> {
        if let Some(index) = self.index(stream) {
            self.control(index).hears(now);
            self.said(index, message, now);
            // It may be one that another complains of.
            self.judge(now);
        }
        self.drain()
    }

    /// A control stream has ended.
    pub fn on_closed(&mut self, stream: StreamId, cause: CloseCause, now: Time) -> Vec<Effect> {
        if let Some(index) = self.index(stream) {
            self.controls[usize::from(index.0)].closed = true;
            match cause {
                CloseCause::Finished | CloseCause::Lost | CloseCause::Overflow => self.gone(index, now),
                CloseCause::Malformed => self.misbehaved(index, now),
            }
        }
        self.drain()
    }

    /// The entry asked for with [`Effect::Owe`] is signed and in the log.
    pub fn on_signed(&mut self, entry: &CreditEntry) -> Vec<Effect> {
        if let Phase::Settling { signed, .. } = &mut self.phase {
            *signed = true;
            for control in self.controls.iter_mut().filter(|control| !control.closed) {
                control.settle();
                self.effects.push(Effect::Send(control.stream, ToStage::Settle(Box::new(entry.clone()))));
            }
            self.settled_by_all();
        }
        self.drain()
    }

    /// The entry could not be stored: nothing is owed by signature.
    pub fn on_not_signed(&mut self) -> Vec<Effect> {
        if let Phase::Settling { lines, .. } = &mut self.phase {
            lines.clear();
            self.conclude_settling();
        }
        self.drain()
    }

    /// The user no longer wants it. What was done is settled without a word.
    pub fn cancel(&mut self, now: Time) -> Vec<Effect> {
        match &mut self.phase {
            Phase::Planning | Phase::Pausing { .. } | Phase::Leasing { .. } => self.over(GenerateFailure::Cancelled),
            Phase::Running | Phase::Mending | Phase::Waiting { .. } | Phase::Rejoining { .. } => {
                self.effects.push(Effect::Failed(GenerateFailure::Cancelled));
                if self.new_tokens() == 0 { self.close_all() } else { self.settle(None, now) }
            }
            Phase::Settling { tell, .. } => {
                if tell.take().is_some() {
                    self.effects.push(Effect::Failed(GenerateFailure::Cancelled));
                }
            }
            Phase::Over => {}
        }
        self.drain()
    }

    /// The user has enough: settles and finishes. Before the first token, the same as [`Self::cancel`].
    pub fn conclude(&mut self, now: Time) -> Vec<Effect> {
        match self.phase {
            Phase::Running | Phase::Mending | Phase::Waiting { .. } | Phase::Rejoining { .. }
                if self.new_tokens() > 0 =>
            {
                self.settle(Some(TailFinish::EndOfGeneration), now);
                self.drain()
            }
            // The tail was first.
            Phase::Settling { .. } | Phase::Over => Vec::new(),
            Phase::Planning
            | Phase::Pausing { .. }
            | Phase::Leasing { .. }
            | Phase::Running
            | Phase::Mending
            | Phase::Waiting { .. }
            | Phase::Rejoining { .. } => self.cancel(now),
        }
    }

    /// Time passed.
    pub fn on_tick(&mut self, now: Time) -> Vec<Effect> {
        match self.phase {
            Phase::Planning | Phase::Mending | Phase::Over => {}
            Phase::Pausing { until } if until <= now => {
                self.severed.clear();
                self.phase = Phase::Planning;
                self.plan(now);
            }
            Phase::Pausing { .. } => {}
            Phase::Leasing { until } => {
                self.ping(now);
                self.watch_lease(until, now);
            }
            Phase::Running => {
                let is_due = self.next_ping <= now;
                self.ping(now);
                self.watch(now);
                // Somebody may have come who can take a leaver's place.
                if is_due && self.phase == Phase::Running {
                    self.hand_over(now);
                }
            }
            Phase::Waiting { until } => {
                self.ping(now);
                self.watch(now);
                if until <= now {
                    self.try_again(now);
                }
            }
            Phase::Rejoining { until } => {
                self.ping(now);
                self.watch(now);
                self.watch_rejoining(until, now);
            }
            Phase::Settling { until, .. } if until <= now => self.conclude_settling(),
            Phase::Settling { .. } => {}
        }
        self.drain()
    }

    /// Peers that a chain is to do without: those that refused, are busy, or leave, and those that several of the hops that failed
    /// have in common.
    pub fn avoided(&self) -> BTreeSet<PeerKey> {
        let ends = || self.severed.iter().flat_map(|&(from, to)| [from, to]);
        let common = ends().filter(|end| ends().filter(|other| other == end).count() > 1);
        self.avoided.iter().chain(self.busy.keys()).copied().chain(self.leavers()).chain(common).collect()
    }

    /// Hops that a chain is to do without, from the first peer to the second: they failed, and both peers answer.
    pub fn severed(&self) -> &BTreeSet<(PeerKey, PeerKey)> {
        &self.severed
    }

    /// The stages that a mended chain is to keep, if it is one that is asked for: they have what others would have to build
    /// again.
    pub fn survivors(&self) -> Option<Vec<Stage>> {
        let stay = || self.controls.iter().filter(|control| !control.is_leaving);
        (self.phase == Phase::Mending).then(|| stay().map(|control| control.stage).collect())
    }

    /// What is generated.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// The session.
    pub fn session(&self) -> SessionId {
        self.job.session
    }

    /// When to come back with [`Self::on_tick`].
    pub fn deadline(&self) -> Option<Time> {
        match self.phase {
            Phase::Planning | Phase::Mending | Phase::Over => None,
            Phase::Leasing { until } => {
                let doubt = self.doubt.as_ref().map_or(until, |doubt| doubt.until);
                Some(until.min(doubt).min(self.next_ping).min(self.silence()))
            }
            Phase::Running => Some(self.next_look().min(self.progress.after(STALL))),
            Phase::Waiting { until } | Phase::Rejoining { until } => Some(until.min(self.next_look())),
            Phase::Settling { until, .. } | Phase::Pausing { until } => Some(until),
        }
    }
}

impl Requester {
    fn drain(&mut self) -> Vec<Effect> {
        mem::take(&mut self.effects)
    }

    /// Asks for a chain, which may pass peers again that were busy until now.
    fn plan(&mut self, now: Time) {
        self.busy.retain(|_, until| now < *until);
        self.effects.push(Effect::Plan);
    }

    fn index(&self, stream: StreamId) -> Option<StageIndex> {
        (0..).map(StageIndex).zip(&self.controls).find(|(_, control)| control.stream == stream).map(|(index, _)| index)
    }

    fn control(&mut self, index: StageIndex) -> &mut Control {
        self.controls.get_mut(usize::from(index.0)).expect("the index was found among the controls")
    }

    fn said(&mut self, index: StageIndex, message: FromStage, now: Time) {
        match message {
            FromStage::Pong(number) => self.control(index).pulse.answered(number, now),
            FromStage::Accept => self.accepted(index, now),
            FromStage::Decline(decline) => self.declined(index, decline, now),
            FromStage::Token(token) => self.sampled(index, token, now),
            FromStage::Failed(failure) => self.failed(index, failure, now),
            FromStage::Rejoined(rejoined) => self.rejoined(index, rejoined, now),
            FromStage::HopBroken(broken) => self.hop_broken(index, broken, now),
            FromStage::Leaving => self.leaves(index, now),
            FromStage::Committed(signed) => self.committed(index, signed, now),
            FromStage::Settled(report) => {
                self.control(index).answered(Some(report));
                self.settled_by_all();
            }
            FromStage::NotSettled(_) => {
                self.control(index).answered(None);
                self.settled_by_all();
            }
        }
    }

    /// A stage's control stream has ended without a word about why, or it has fallen silent.
    fn gone(&mut self, index: StageIndex, now: Time) {
        match self.phase {
            Phase::Leasing { .. } => self.unreachable(index, now),
            Phase::Running | Phase::Mending | Phase::Waiting { .. } | Phase::Rejoining { .. } => {
                let control = self.control(index);
                // One that has reported a failure closes its stream.
                if !control.is_lost() {
                    control.evidence = Evidence::Gone;
                }
                self.judge(now);
            }
            Phase::Settling { .. } => {
                self.control(index).answered(None);
                self.settled_by_all();
            }
            Phase::Planning | Phase::Pausing { .. } | Phase::Over => {}
        }
    }

    fn misbehaved(&mut self, index: StageIndex, now: Time) {
        match self.phase {
            Phase::Leasing { .. } => self.unreachable(index, now),
            Phase::Running | Phase::Mending | Phase::Waiting { .. } | Phase::Rejoining { .. } => {
                self.condemn(Verdict::Absurd(index), now);
            }
            Phase::Settling { .. } => self.gone(index, now),
            Phase::Planning | Phase::Pausing { .. } | Phase::Over => {}
        }
    }

    fn ping(&mut self, now: Time) {
        if self.next_ping <= now {
            self.next_ping = now.after(PING);
            self.pings += 1;
            for control in self.controls.iter_mut().filter(|control| !control.closed) {
                control.pulse.pinged(self.pings, now);
                self.effects.push(Effect::Send(control.stream, ToStage::Ping(self.pings)));
            }
        }
    }

    /// When the first stage is lost that has been asked and says nothing.
    fn silence(&self) -> Time {
        let open = self.controls.iter().filter(|control| control.is_expected());
        open.filter_map(|control| control.pulse.lost_at()).min().unwrap_or(Time(u64::MAX))
    }

    /// When something is to be done about a stage that lives, or does not.
    fn next_look(&self) -> Time {
        let witnesses = self.witnesses();
        let decides = blame::decides(&witnesses, GRACE).unwrap_or(self.next_ping);
        self.next_ping.min(decides).min(self.silence())
    }

    fn witnesses(&self) -> Vec<Witness<'_>> {
        self.controls.iter().map(Control::witness).collect()
    }

    /// Whether the answer has begun and not ended.
    fn is_under_way(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Mending | Phase::Waiting { .. } | Phase::Rejoining { .. })
    }

    fn silent(&self, now: Time) -> Option<StageIndex> {
        let silent = |control: &Control| control.is_expected() && control.pulse.lost_at().is_some_and(|at| at <= now);
        (0..).map(StageIndex).zip(&self.controls).find(|(_, control)| silent(control)).map(|(index, _)| index)
    }

    fn new_tokens(&self) -> u32 {
        self.next.minus(self.job.prompt_length()).0
    }

    /// Ends with a failure; what was done until then is owed to every stage but those that are gone.
    fn over(&mut self, failure: GenerateFailure) {
        if self.is_under_way() && self.new_tokens() > 0 {
            let lines = self.lines(|control| control.evidence != Evidence::Gone);
            if !lines.is_empty() {
                self.effects.push(Effect::Owe { positions: self.next, lines });
            }
        }
        self.effects.push(Effect::Failed(failure));
        self.close_all();
    }

    fn close_all(&mut self) {
        self.phase = Phase::Over;
        self.close_controls();
        self.effects.push(Effect::Ended);
    }

    fn close_controls(&mut self) {
        let open = self.controls.drain(..).filter(|control| !control.closed);
        self.effects.extend(open.map(|control| Effect::Close(control.stream)));
    }

    /// What is owed to the stages that were told to compute, and to those of earlier chains that were let go.
    fn lines(&self, owed: impl Fn(&Control) -> bool) -> Vec<CreditLine> {
        let owed = self.controls.iter().filter(|control| control.began && owed(control));
        let lines = owed.map(|control| control.line(&self.job, self.next));
        lines.chain(self.dismissed.iter().copied()).collect()
    }
}
