//! One stage of one session, as the peer that serves it sees it.
//!
//! ```text
//!  Offered ──hop opened, upstream attached: Accept──▶ Running ──Settle──▶ Settling ──stored: Settled──▶ Settled
//!     │                                               │  ▲                                             │
//!     │                                   Reconfigure ▼  │ Resume                                      │
//!     │                    Rejoining ──stopped, hops open: Rejoined──▶ Ready                           │
//!     └──────────Decline──────────▶ Ended ◀── control closed, lease expired, engine failed ────────────┘
//! ```
//!
//! A stage that loses a neighbour says so and holds what it has; what becomes of the session is the requester's decision. The
//! lease, the cache and the journal outlive a chain; hops do not, so nothing of an old chain can arrive in a new one.
//!
//! Whatever ends it frees the engine's stage, closes both hops and the control stream, each once. Steps are taken
//! from outside ([`LeasedStage::waiting`], [`LeasedStage::take`]), since the engine is shared between sessions.
//!
//! A stage whose peer is about to leave says so and computes on. The requester has another take its place, and closes the
//! control stream when it is not needed any more.

mod inflow;
mod journal;
mod outflow;
mod rejoin;
mod terms;
#[cfg(test)]
mod tests;
mod trail;

use std::collections::VecDeque;
use std::mem;

use crate::amounts::Bytes;
use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::Epoch;
use crate::ids::PeerKey;
use crate::ids::StageIndex;
use crate::ids::StreamId;
use crate::ids::Token;
#[cfg(feature = "mutants")]
use crate::mutants::Mutant;
#[cfg(feature = "mutants")]
use crate::mutants::is_planted;
use crate::session::stage::inflow::Frames;
use crate::session::stage::inflow::Heard;
use crate::session::stage::inflow::Inflow;
use crate::session::stage::inflow::Tokens;
use crate::session::stage::inflow::Violation;
use crate::session::stage::journal::Journal;
use crate::session::stage::outflow::Outflow;
use crate::session::stage::outflow::Rows;
pub use crate::session::stage::terms::Terms;
use crate::session::stage::trail::Trails;
use crate::session::step::StepFailure;
use crate::session::step::StepInput;
use crate::session::step::StepOutput;
use crate::session::step::StepWanted;
use crate::session::streams::Outgoing;
use crate::shape::WireDtype;
use crate::wire::commitment::Commitment;
use crate::wire::control::Begins;
use crate::wire::control::Break;
use crate::wire::control::Commits;
use crate::wire::control::Decline;
use crate::wire::control::DeclineReason;
use crate::wire::control::FromStage;
use crate::wire::control::SettleRefusal;
use crate::wire::control::StageFailure;
use crate::wire::control::StageReport;
use crate::wire::control::ToStage;
use crate::wire::control::TokenLogprobs;
use crate::wire::control::TokenOut;
use crate::wire::credit::CreditEntry;
use crate::wire::hop::Frame;
use crate::wire::hop::FrameHeader;
use crate::wire::hop::HopBack;
use crate::wire::hop::HopForward;
use crate::wire::hop::HopOpen;
use crate::wire::hop::HopRefusal;
use crate::wire::hop::MAX_PAYLOAD;
use crate::wire::hop::Sample;
use crate::wire::hop::TokenFrame;
use crate::wire::text::printable;

/// Frames that may be sent down a hop before the first of them was taken up by the engine (arbitrary: enough to keep
/// every stage of a prefill busy, few enough to bound what a slow stage holds).
pub const WINDOW: usize = 4;

/// Positions of one step of a prompt in a chain of several stages (arbitrary: large enough to amortise reading the weights,
/// small enough that all stages work at once).
pub const CHUNK: u32 = 128;

/// Positions of one step of a prompt where one stage has all units (arbitrary: products of more rows gain nothing).
const CHUNK_ALONE: u32 = 512;

/// Steps of one stage that the engine may hold: one computes, one waits.
const IN_FLIGHT: usize = 2;

/// How long the neighbours' hops may take before the stage declines.
pub const SETUP: Span = Span::seconds(4);

/// Positions that a requester may credit less than were computed: what the ring computed before it heard of the end
/// (the design's exposure window).
const OVERSHOOT: Position = Position(32);

/// Bytes of an engine's message to a requester, at most.
const MAX_MESSAGE: usize = 200;

/// What a stage asks for. To be done in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Make room for the stage in the engine.
    Reserve,
    /// Open the hop to the downstream neighbour.
    OpenHop(StreamId, PeerKey, HopOpen),
    /// Send on a stream.
    Send(StreamId, Outgoing),
    /// Sign the commitment, and send it on the stream.
    Commit(StreamId, Box<Commitment>),
    /// Send what is queued, then end the stream.
    Close(StreamId),
    /// Hold the entry against the log and store it; then say [`LeasedStage::on_stored`] or [`LeasedStage::on_refused`].
    Store(Box<CreditEntry>),
    /// Free the stage in the engine.
    Free,
    /// The stage is over; forget it.
    Ended,
}

/// What a stage has for the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Positions to compute.
    pub positions: Position,
    /// Whether a reader waits for this very step.
    pub kind: WaitingKind,
}

/// The kinds of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitingKind {
    /// The next token's.
    Decode,
    /// A chunk of the prompt.
    Prefill,
}

/// A step for the engine.
#[derive(Clone, Debug, PartialEq)]
pub struct TakenStep {
    /// The position of the first row.
    pub first: Position,
    /// The rows.
    pub input: StepInput,
    /// What is wanted.
    pub wanted: StepWanted,
}

/// A step that the engine has.
#[derive(Clone, Copy, Debug)]
struct Flight {
    first: Position,
    count: u32,
    sample: Sample,
    /// The chain in which it was taken.
    epoch: Epoch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Offered,
    Running,
    /// Stands in a newer chain in which its neighbours have not come yet, or the engine has not stopped.
    Rejoining,
    /// Waits for the word where to go on.
    Ready,
    /// The session has ended in order; the entry is being stored.
    Settling,
    Settled,
    Ended,
}

/// A stage that was offered to and leased from this peer.
#[derive(Debug)]
pub struct LeasedStage {
    terms: Terms,
    control: StreamId,
    upstream: Option<StreamId>,
    inflow: Inflow,
    outflow: Outflow,
    flights: VecDeque<Flight>,
    phase: Phase,
    /// Positions that the cache holds.
    length: Position,
    /// The most that it held.
    reach: Position,
    /// Work on positions that it held and had to forget.
    rewound: Mflop,
    /// What the driver heard in the last chain that went on.
    heard: Heard,
    /// How many tokens the requester knew when it asked last.
    known: Position,
    /// Until when the neighbours must have come.
    setup: Time,
    /// When the lease runs out.
    expires: Time,
    report: StageReport,
    /// What it received and sent, if it is to commit itself to it.
    trails: Option<Trails>,
    effects: Vec<Effect>,
}

impl LeasedStage {
    /// Takes up an offer that came on `control`, and opens the hop downstream under the id `hop`.
    pub fn new(terms: Terms, control: StreamId, hop: StreamId, now: Time) -> (Self, Vec<Effect>) {
        let mut stage = Self {
            inflow: inflow(&terms, Position::ZERO),
            outflow: Outflow::new(hop, row_bytes(&terms), journal(&terms)),
            upstream: None,
            flights: VecDeque::new(),
            phase: Phase::Offered,
            length: Position::ZERO,
            reach: Position::ZERO,
            rewound: Mflop::ZERO,
            heard: Heard::default(),
            known: Position::ZERO,
            setup: now.after(SETUP),
            expires: now.after(terms.expires_after),
            report: StageReport::default(),
            trails: (terms.commits == Commits::Yes).then(Trails::default),
            effects: vec![Effect::Reserve],
            control,
            terms,
        };
        let (open, downstream) = (stage.terms.hop(), stage.terms.downstream());
        stage.effects.push(Effect::OpenHop(hop, stage.terms.peer(downstream), open));
        let effects = stage.drain();
        (stage, effects)
    }

    /// The requester said something.
    pub fn on_control(&mut self, message: ToStage, now: Time) -> Vec<Effect> {
        match message {
            // One offer per stream.
            ToStage::Offer(_) => self.fail(StageFailure::BadRequest),
            ToStage::Ping(number) => {
                self.expires = now.after(self.terms.expires_after);
                self.tell(FromStage::Pong(number));
            }
            ToStage::Feed(feed) => match &mut self.inflow {
                Inflow::Tokens(tokens) if self.phase == Phase::Running => {
                    if tokens.feed(&feed).is_err() {
                        self.fail(StageFailure::BadRequest);
                    }
                }
                Inflow::Tokens(_) | Inflow::Frames(_) => self.fail(StageFailure::BadRequest),
            },
            ToStage::Settle(entry) => self.settle(entry),
            // Takes a stream, so it comes by a way of its own.
            ToStage::Reconfigure(_) => self.fail(StageFailure::BadRequest),
            ToStage::Resume(resume) => self.resume(resume),
        }
        self.drain()
    }

    /// The upstream neighbour's hop came. `None` if the lease names another neighbour, or has one: the stage is as before.
    pub fn on_upstream(&mut self, stream: StreamId, from: StageIndex, peer: PeerKey) -> Option<Vec<Effect>> {
        let named = from == self.terms.upstream() && peer == self.terms.peer(from);
        if !named || self.upstream.is_some() || self.phase == Phase::Ended {
            return None;
        }
        self.upstream = Some(stream);
        self.effects.push(Effect::Send(stream, Outgoing::Back(HopBack::Opened)));
        self.accept_when_attached();
        Some(self.drain())
    }

    /// The downstream neighbour answered on the stage's own hop.
    pub fn on_back(&mut self, message: HopBack) -> Vec<Effect> {
        match message {
            HopBack::Opened => {
                self.outflow.opened();
                self.accept_when_attached();
            }
            HopBack::Taken(step) => match self.outflow.taken(step) {
                Ok(()) => self.send_again(),
                Err(_) => self.downstream_broken(Break::Breach),
            },
            // A newer chain exists without this stage, or one in which it waits for the requester's word.
            HopBack::Fenced(_) => self.downstream_broken(Break::Lost),
            // If the refusal is this stage's doing, the neighbour says so to the requester.
            HopBack::Refused(_) => self.downstream_broken(Break::Lost),
        }
        self.drain()
    }

    /// The stage's own hop could not be opened, or has ended.
    pub fn on_downstream_lost(&mut self) -> Vec<Effect> {
        self.outflow.lose();
        self.broken(self.terms.downstream(), DeclineReason::DownstreamUnreachable, Break::Lost);
        self.drain()
    }

    /// The upstream neighbour's hop has ended.
    pub fn on_upstream_lost(&mut self) -> Vec<Effect> {
        self.upstream = None;
        self.broken(self.terms.upstream(), DeclineReason::UpstreamMissing, Break::Lost);
        self.drain()
    }

    /// The upstream neighbour sent bytes that are no message.
    pub fn on_upstream_malformed(&mut self) -> Vec<Effect> {
        self.upstream = None;
        self.broken(self.terms.upstream(), DeclineReason::UpstreamMissing, Break::Breach);
        self.drain()
    }

    /// The upstream neighbour sent something.
    pub fn on_forward(&mut self, message: HopForward) -> Vec<Effect> {
        if self.is_in_chain() {
            let accepted = match (&mut self.inflow, message) {
                (Inflow::Frames(frames), HopForward::Frame(frame)) => frames.accept(frame),
                (Inflow::Tokens(tokens), HopForward::Token(frame)) => tokens.accept(frame),
                (Inflow::Frames(_) | Inflow::Tokens(_), _) => Err(Violation::Refused(HopRefusal::WrongShape)),
            };
            if let Err(violation) = accepted {
                self.refuse(violation);
            }
        }
        self.drain()
    }

    /// The control stream has ended: the session is over.
    pub fn on_control_closed(&mut self) -> Vec<Effect> {
        self.end();
        self.drain()
    }

    /// The engine has done the stage's oldest step.
    pub fn on_stepped(&mut self, end: Position, output: StepOutput, took: Span) -> Vec<Effect> {
        if matches!(self.phase, Phase::Running | Phase::Rejoining) {
            self.stepped(end, output, took);
            self.rejoin_when_ready();
        }
        self.drain()
    }

    /// The engine could not do the stage's oldest step.
    pub fn on_step_failed(&mut self, failure: StepFailure) -> Vec<Effect> {
        if self.phase == Phase::Offered {
            // The engine made no room.
            self.decline(DeclineReason::NoMemory);
        } else if self.is_in_chain() {
            match failure {
                StepFailure::NonFinite => self.fail(StageFailure::NonFinite),
                StepFailure::BadInput => self.input_refused(),
                StepFailure::Engine(message) => self.fail(StageFailure::Engine(printable(&message, MAX_MESSAGE))),
            }
        }
        self.drain()
    }

    /// The engine has not come back with what it has.
    pub fn on_engine_stuck(&mut self) -> Vec<Effect> {
        match self.phase {
            Phase::Offered => self.decline(DeclineReason::Busy),
            Phase::Running | Phase::Rejoining | Phase::Ready => self.fail(StageFailure::Stuck),
            // It is not needed any more.
            Phase::Settling | Phase::Settled | Phase::Ended => {}
        }
        self.drain()
    }

    /// The entry is in the log.
    pub fn on_stored(&mut self) -> Vec<Effect> {
        if self.phase == Phase::Settling {
            self.phase = Phase::Settled;
            self.tell(FromStage::Settled(self.report));
        }
        self.drain()
    }

    /// The entry is not in the log.
    pub fn on_refused(&mut self, refusal: SettleRefusal) -> Vec<Effect> {
        if self.phase == Phase::Settling {
            self.phase = Phase::Settled;
            self.tell(FromStage::NotSettled(refusal));
        }
        self.drain()
    }

    /// Time passed.
    pub fn on_tick(&mut self, now: Time) -> Vec<Effect> {
        if self.phase == Phase::Offered && self.setup <= now {
            let reason = match self.upstream {
                Some(_) => DeclineReason::DownstreamUnreachable,
                None if self.outflow.is_opened() => DeclineReason::UpstreamMissing,
                None => DeclineReason::DownstreamUnreachable,
            };
            self.decline(reason);
        } else if self.phase != Phase::Ended && self.expires <= now {
            self.fail(StageFailure::Expired);
        } else if self.phase == Phase::Rejoining && self.setup <= now {
            self.miss_neighbours();
        }
        self.drain()
    }

    /// A newer chain of the session takes this stage's place, or more important work of its peer does.
    pub fn on_superseded(&mut self) -> Vec<Effect> {
        self.end();
        self.drain()
    }

    /// The peer is about to leave. What is not held yet is refused; for what is, the requester is told, and all goes on until it
    /// lets go.
    pub fn on_drain(&mut self) -> Vec<Effect> {
        match self.phase {
            Phase::Offered => self.decline(DeclineReason::Draining),
            Phase::Running | Phase::Rejoining | Phase::Ready => self.tell(FromStage::Leaving),
            // The session is over.
            Phase::Settling | Phase::Settled | Phase::Ended => {}
        }
        self.drain()
    }

    /// Takes the next step for the engine, or its first `most` positions (at least one), and says so to the upstream
    /// neighbour once all of what it sent is taken. `None` if none [`Self::waiting`].
    pub fn take(&mut self, most: Position) -> Option<(TakenStep, Vec<Effect>)> {
        self.waiting()?;
        let taken = self.inflow.take(most.0.max(1))?;
        self.note_received(taken.first, &taken.input);
        if let (Some(step), Some(stream)) = (taken.step, self.upstream) {
            self.effects.push(Effect::Send(stream, Outgoing::Back(HopBack::Taken(step))));
        }
        let epoch = self.terms.epoch;
        self.flights.push_back(Flight { first: taken.first, count: taken.count, sample: taken.sample, epoch });
        let step = TakenStep { first: taken.first, input: taken.input, wanted: self.wanted(taken.sample) };
        Some((step, self.drain()))
    }

    /// The step that the stage has for the engine, if it may be done: its outcome can be sent.
    pub fn waiting(&self) -> Option<Waiting> {
        if self.phase != Phase::Running || self.flights.len() >= IN_FLIGHT {
            return None;
        }
        let next = self.inflow.waiting()?;
        let sends = !self.is_tail() || next.sample == Sample::LastRow;
        if sends && !self.outflow.has_room(self.flights.len()) {
            return None;
        }
        let decode = next.count == 1 && next.sample == Sample::LastRow;
        let kind = if decode { WaitingKind::Decode } else { WaitingKind::Prefill };
        Some(Waiting { positions: Position(next.count), kind })
    }

    /// The terms of the lease.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Positions that the session may still use.
    pub fn left(&self) -> Position {
        self.terms.budget.minus(self.length)
    }

    /// Bytes of what it could send again.
    pub fn journal(&self) -> Bytes {
        Bytes(self.outflow.journal_bytes())
    }

    /// Forgets what it could send again, unless it is just doing so, or has just promised it to the requester. If that is
    /// needed, it is computed again.
    pub fn evict_journal(&mut self) {
        if self.phase != Phase::Ready {
            self.outflow.evict();
        }
    }

    /// What it counted.
    pub fn report(&self) -> StageReport {
        self.report
    }

    /// When to come back with [`Self::on_tick`].
    pub fn deadline(&self) -> Time {
        match self.phase {
            Phase::Offered | Phase::Rejoining => self.setup.min(self.expires),
            Phase::Running | Phase::Ready | Phase::Settling | Phase::Settled | Phase::Ended => self.expires,
        }
    }

    fn drain(&mut self) -> Vec<Effect> {
        mem::take(&mut self.effects)
    }

    fn tell(&mut self, message: FromStage) {
        self.effects.push(Effect::Send(self.control, Outgoing::FromStage(message)));
    }

    fn accept_when_attached(&mut self) {
        if self.phase == Phase::Offered && self.upstream.is_some() && self.outflow.is_opened() {
            self.phase = match self.terms.begins {
                Begins::Here => Phase::Running,
                Begins::Earlier => Phase::Ready,
            };
            self.tell(FromStage::Accept);
        }
        self.rejoin_when_ready();
    }

    fn stepped(&mut self, end: Position, output: StepOutput, took: Span) {
        let Some(flight) = self.flights.pop_front() else {
            return self.fail(StageFailure::Engine("a step that was not asked for".to_owned()));
        };
        self.report.positions = self.report.positions.plus(Position(flight.count));
        self.report.busy = self.report.busy.plus(took);
        (self.length, self.reach) = (end, self.reach.max(end));
        match output {
            StepOutput::Hidden(payload) if !self.is_tail() && self.is_whole(&flight, &payload) => {
                self.note_sent(flight.first, &payload);
                self.pass_on(flight, payload);
                self.commit(&flight, None);
            }
            StepOutput::Sampled { token, logprobs } if self.is_tail() && flight.sample == Sample::LastRow => {
                self.sampled(flight, end, token, logprobs);
                self.commit(&flight, Some(token));
            }
            StepOutput::Nothing if self.is_tail() && flight.sample == Sample::No => self.commit(&flight, None),
            StepOutput::Hidden(_) | StepOutput::Sampled { .. } | StepOutput::Nothing => {
                self.fail(StageFailure::Engine("an outcome that was not asked for".to_owned()));
            }
        }
    }

    fn is_whole(&self, flight: &Flight, payload: &bytes::Bytes) -> bool {
        payload.len() as u64 == self.terms.dtype_out.row_bytes(self.terms.shape.width) * u64::from(flight.count)
    }

    /// Keeps what was computed, and sends what the next stage lacks of it, if it is there.
    fn pass_on(&mut self, flight: Flight, payload: bytes::Bytes) {
        let rows = Rows { first: flight.first, count: flight.count, payload };
        let is_of_chain = flight.epoch == self.terms.epoch;
        #[cfg(feature = "mutants")]
        let is_of_chain = is_of_chain || is_planted(Mutant::AcceptOldEpoch);
        if let Some(rows) = self.outflow.computed(rows)
            && is_of_chain
        {
            self.send_rows(rows, flight.sample);
        }
    }

    fn send_rows(&mut self, rows: Rows, sample: Sample) {
        let Some(stream) = self.outflow.stream() else { return };
        self.report.payload = self.report.payload.plus(Bytes(rows.payload.len() as u64));
        self.report.frames += 1;
        let header = FrameHeader {
            session: self.terms.key.session,
            stage: self.terms.downstream(),
            epoch: self.terms.epoch,
            step: self.outflow.send(),
            first: rows.first,
            count: rows.count,
            dtype: self.terms.dtype_out,
            sample,
        };
        let frame = HopForward::Frame(Frame { header, payload: rows.payload });
        self.effects.push(Effect::Send(stream, Outgoing::Forward(frame)));
    }

    /// A token of a chain that was left meanwhile is the requester's to know, and its to feed.
    fn sampled(&mut self, flight: Flight, position: Position, token: Token, logprobs: Option<TokenLogprobs>) {
        let epoch = flight.epoch;
        let finish = self.terms.ending().and_then(|ending| ending.of(position, token));
        self.tell(FromStage::Token(TokenOut { epoch, position, token, finish, logprobs }));
        if finish.is_none()
            && epoch == self.terms.epoch
            && let Some(stream) = self.outflow.stream()
        {
            self.report.frames += 1;
            let (session, step) = (self.terms.key.session, self.outflow.send());
            let frame = HopForward::Token(TokenFrame { session, epoch, step, position, token });
            self.effects.push(Effect::Send(stream, Outgoing::Forward(frame)));
        }
    }

    fn settle(&mut self, entry: Box<CreditEntry>) {
        if !matches!(self.phase, Phase::Running | Phase::Rejoining | Phase::Ready) {
            return self.tell(FromStage::NotSettled(SettleRefusal::Invalid));
        }
        // What is in flight is of no use any more, and the memory of some to others.
        self.phase = Phase::Settling;
        self.flights.clear();
        self.effects.push(Effect::Free);
        match self.check(&entry) {
            Ok(()) => self.effects.push(Effect::Store(entry)),
            Err(refusal) => {
                self.phase = Phase::Settled;
                self.tell(FromStage::NotSettled(refusal));
            }
        }
    }

    fn check(&self, entry: &CreditEntry) -> Result<(), SettleRefusal> {
        let (header, terms) = (&entry.header.value, &self.terms);
        let named =
            header.requester == terms.requester && header.session == terms.key.session && header.model == terms.model;
        let me = terms.peer(terms.stage);
        let lines = || entry.lines.iter().filter(|line| line.stage == me && line.range == terms.range);
        if !named || lines().next().is_none() {
            return Err(SettleRefusal::Invalid);
        }
        let work = |positions| terms.shape.work(terms.range, Position::ZERO, positions);
        let owed: Mflop = lines().map(|line| line.work).sum();
        // What had to be computed again is owed again.
        if owed < work(header.positions).plus(self.rewound) || header.positions.plus(OVERSHOOT) < self.reach {
            return Err(SettleRefusal::TooLittle { counted: work(self.reach).plus(self.rewound) });
        }
        Ok(())
    }

    fn decline(&mut self, reason: DeclineReason) {
        self.tell(FromStage::Decline(Decline { reason, retry_after: None }));
        self.end();
    }

    fn fail(&mut self, failure: StageFailure) {
        if self.phase != Phase::Ended {
            self.tell(FromStage::Failed(failure));
            self.end();
        }
    }

    fn end(&mut self) {
        let before = mem::replace(&mut self.phase, Phase::Ended);
        if before == Phase::Ended {
            return;
        }
        let is_free = matches!(before, Phase::Settling | Phase::Settled);
        #[cfg(feature = "mutants")]
        let is_free = is_free && !is_planted(Mutant::ReleaseTwice);
        if !is_free {
            self.effects.push(Effect::Free);
        }
        let streams = [self.outflow.lose(), self.upstream.take(), Some(self.control)];
        self.effects.extend(streams.into_iter().flatten().map(Effect::Close));
        self.effects.push(Effect::Ended);
    }

    fn wanted(&self, sample: Sample) -> StepWanted {
        match sample {
            _ if !self.is_tail() => StepWanted::Hidden(self.terms.dtype_out),
            Sample::LastRow => StepWanted::Token,
            Sample::No => StepWanted::Nothing,
        }
    }

    fn is_tail(&self) -> bool {
        self.terms.stage == self.terms.chain.tail()
    }

    /// Whether it takes part in a session that has not ended.
    fn is_in_chain(&self) -> bool {
        matches!(self.phase, Phase::Offered | Phase::Running | Phase::Rejoining | Phase::Ready)
    }
}

fn inflow(terms: &Terms, cached: Position) -> Inflow {
    let (session, epoch) = (terms.key.session, terms.epoch);
    if terms.stage == StageIndex(0) {
        let chunk = chunk(terms, WireDtype::F32);
        return Inflow::Tokens(Tokens::new(session, epoch, terms.budget, terms.shape.vocab, chunk));
    }
    let terms = inflow::Terms {
        session,
        stage: terms.stage,
        epoch,
        dtype: terms.dtype_in,
        row_bytes: terms.dtype_in.row_bytes(terms.shape.width),
        budget: terms.budget,
    };
    Inflow::Frames(Frames::new(terms, cached))
}

/// Positions of one step of a prompt, or of what is sent again: as many as a frame can carry.
fn chunk(terms: &Terms, dtype: WireDtype) -> u32 {
    let row = dtype.row_bytes(terms.shape.width).max(1);
    let alone = terms.chain.tail() == StageIndex(0);
    let chunk = if alone { CHUNK_ALONE } else { CHUNK };
    u32::try_from(u64::from(MAX_PAYLOAD) / row).unwrap_or(chunk).clamp(1, chunk)
}

fn row_bytes(terms: &Terms) -> usize {
    usize::try_from(terms.dtype_out.row_bytes(terms.shape.width)).unwrap_or(usize::MAX)
}

/// The tail sends tokens only, and these the requester has.
fn journal(terms: &Terms) -> Option<Journal> {
    (terms.stage != terms.chain.tail()).then(|| Journal::new(row_bytes(terms)))
}
