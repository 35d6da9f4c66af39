//! What a stage computes from: hidden states from upstream, or at the driver the prompt and the tokens that return.

use std::collections::VecDeque;
use std::mem;

use crate::amounts::Position;
use crate::ids::Epoch;
use crate::ids::SessionId;
use crate::ids::StageIndex;
use crate::ids::Step;
use crate::ids::Token;
#[cfg(feature = "mutants")]
use crate::mutants::Mutant;
#[cfg(feature = "mutants")]
use crate::mutants::is_planted;
use crate::session::stage::WINDOW;
use crate::session::step::StepInput;
use crate::shape::WireDtype;
use crate::wire::control::Feed;
use crate::wire::control::LastFeed;
use crate::wire::control::MAX_FEED;
use crate::wire::hop::Frame;
use crate::wire::hop::FrameHeader;
use crate::wire::hop::HopRefusal;
use crate::wire::hop::Sample;
use crate::wire::hop::TokenFrame;

/// How an upstream neighbour broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Violation {
    /// Its epoch is old; the current one.
    Fenced(Epoch),
    /// It is refused for this reason.
    Refused(HopRefusal),
}

/// The requester fed what does not follow, does not fit or is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadFeed;

/// A step as it is taken from an inflow.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Taken {
    /// The position of the first row.
    pub(super) first: Position,
    /// How many rows.
    pub(super) count: u32,
    /// The rows.
    pub(super) input: StepInput,
    /// Whether the tail samples after them.
    pub(super) sample: Sample,
    /// The hop's step that is to be acknowledged, if it came over one.
    pub(super) step: Option<Step>,
}

/// The next step that an inflow has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) count: u32,
    pub(super) sample: Sample,
}

/// What every frame of a hop is checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) session: SessionId,
    pub(super) stage: StageIndex,
    pub(super) epoch: Epoch,
    pub(super) dtype: WireDtype,
    pub(super) row_bytes: u64,
    pub(super) budget: Position,
}

/// Hidden states that an upstream stage sent.
#[derive(Debug)]
pub(super) struct Frames {
    terms: Terms,
    expected: Step,
    next: Position,
    rows: u64,
    queue: VecDeque<Frame>,
}

impl Frames {
    /// Those of a chain that goes on after `cached` positions, or earlier.
    pub(super) fn new(terms: Terms, cached: Position) -> Self {
        Self { terms, expected: Step(0), next: cached, rows: 0, queue: VecDeque::new() }
    }

    /// Only positions before `keep` are cached. Frames may have come before the word of it.
    fn resume(&mut self, keep: Position) -> Result<(), Violation> {
        match self.queue.front() {
            Some(frame) if frame.header.first > keep => Err(Violation::Refused(HopRefusal::OutOfOrder)),
            Some(_) => Ok(()),
            None => {
                self.next = keep;
                Ok(())
            }
        }
    }

    /// Takes a frame into the queue. One that was seen already is dropped.
    pub(super) fn accept(&mut self, frame: Frame) -> Result<(), Violation> {
        let header = frame.header;
        check_epoch(header.epoch, self.terms.epoch)?;
        #[cfg(feature = "mutants")]
        if is_planted(Mutant::ApplyStepTwice) && header.step < self.expected && self.queue.len() < WINDOW {
            self.queue.push_back(frame);
            return Ok(());
        }
        if header.step < self.expected {
            return Ok(());
        }
        self.check_order(&header)?;
        self.check_shape(&header, frame.payload.len() as u64)?;
        if self.queue.len() >= WINDOW {
            return Err(Violation::Refused(HopRefusal::WindowExceeded));
        }
        self.expected = self.expected.next();
        self.next = Position(header.first.0 + header.count);
        self.rows += u64::from(header.count);
        self.queue.push_back(frame);
        Ok(())
    }

    fn check_order(&self, header: &FrameHeader) -> Result<(), Violation> {
        // A first position before the next rewinds; all rewinding together is bounded, or it would be work without end.
        let rows = self.rows + u64::from(header.count);
        let follows = header.step == self.expected && header.first <= self.next;
        if !follows || rows > 2 * u64::from(self.terms.budget.0) {
            return Err(Violation::Refused(HopRefusal::OutOfOrder));
        }
        Ok(())
    }

    fn check_shape(&self, header: &FrameHeader, bytes: u64) -> Result<(), Violation> {
        let fits = header.first.plus(Position(header.count)) <= self.terms.budget;
        let shaped = header.session == self.terms.session
            && header.stage == self.terms.stage
            && header.dtype == self.terms.dtype
            && header.count > 0
            && bytes == self.terms.row_bytes.saturating_mul(u64::from(header.count));
        if !fits || !shaped {
            return Err(Violation::Refused(HopRefusal::WrongShape));
        }
        Ok(())
    }

    fn waiting(&self) -> Option<Waiting> {
        self.queue.front().map(|frame| Waiting { count: frame.header.count, sample: frame.header.sample })
    }

    fn take(&mut self, most: u32) -> Option<Taken> {
        if self.queue.front()?.header.count > most {
            return self.take_part(most);
        }
        let Frame { header, payload } = self.queue.pop_front()?;
        Some(Taken {
            first: header.first,
            count: header.count,
            input: StepInput::Hidden(payload, header.dtype),
            sample: header.sample,
            step: Some(header.step),
        })
    }

    /// Takes the first rows of the oldest frame, which is acknowledged with the last.
    fn take_part(&mut self, count: u32) -> Option<Taken> {
        let Frame { header, payload } = self.queue.front_mut()?;
        let bytes = usize::try_from(self.terms.row_bytes.saturating_mul(u64::from(count))).ok()?;
        let (first, rows) = (header.first, payload.split_to(bytes.min(payload.len())));
        header.first = first.plus(Position(count));
        header.count -= count;
        Some(Taken { first, count, input: StepInput::Hidden(rows, header.dtype), sample: Sample::No, step: None })
    }
}

fn check_epoch(got: Epoch, expected: Epoch) -> Result<(), Violation> {
    if got < expected {
        return Err(Violation::Fenced(expected));
    }
    // A stream carries one epoch, so a newer one has its own stream.
    if got > expected {
        return Err(Violation::Refused(HopRefusal::OutOfOrder));
    }
    Ok(())
}

/// The driver's tokens: the prompt, then each one that the tail sampled.
#[derive(Debug)]
pub(super) struct Tokens {
    session: SessionId,
    epoch: Epoch,
    budget: Position,
    vocab: u32,
    chunk: u32,
    queue: VecDeque<Token>,
    /// The position of the queue's first token.
    next: Position,
    prompt: Prompt,
    expected: Step,
    /// The hop's step that brought the queue's only token.
    brought_by: Option<Step>,
    /// The tokens that came over the hop, and the position of the first.
    heard: Heard,
}

/// Tokens that the driver heard from the tail, maybe before the requester.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    first: Position,
    tokens: Vec<Token>,
}

impl Heard {
    fn push(&mut self, position: Position, token: Token) {
        if self.tokens.is_empty() {
            self.first = position;
        }
        self.tokens.push(token);
    }

    /// Those from `known` on, as many as one message carries. None if there is a hole before them.
    pub(super) fn since(&self, known: Position) -> Vec<Token> {
        if known < self.first {
            return Vec::new();
        }
        let skipped = known.minus(self.first).0 as usize;
        self.tokens.iter().skip(skipped).take(MAX_FEED).copied().collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prompt {
    Growing,
    Complete,
}

impl Tokens {
    pub(super) fn new(session: SessionId, epoch: Epoch, budget: Position, vocab: u32, chunk: u32) -> Self {
        Self {
            session,
            epoch,
            budget,
            vocab,
            chunk,
            queue: VecDeque::new(),
            next: Position(0),
            prompt: Prompt::Growing,
            expected: Step(0),
            brought_by: None,
            heard: Heard::default(),
        }
    }

    /// Takes a piece of the prompt.
    pub(super) fn feed(&mut self, feed: &Feed) -> Result<(), BadFeed> {
        let end = u64::from(feed.first.0) + feed.tokens.len() as u64;
        let follows = self.prompt == Prompt::Growing && feed.first == self.end() && !feed.tokens.is_empty();
        let known = feed.tokens.iter().all(|token| token.0 < self.vocab);
        if !follows || !known || end > u64::from(self.budget.0) {
            return Err(BadFeed);
        }
        self.queue.extend(&feed.tokens);
        if feed.last == LastFeed::Yes {
            self.prompt = Prompt::Complete;
        }
        Ok(())
    }

    /// Takes the token that the tail sampled. One that was seen already is dropped.
    pub(super) fn accept(&mut self, frame: TokenFrame) -> Result<(), Violation> {
        check_epoch(frame.epoch, self.epoch)?;
        if frame.step < self.expected {
            return Ok(());
        }
        let decoding = self.prompt == Prompt::Complete && self.queue.is_empty();
        let follows = frame.step == self.expected && frame.position == self.next && frame.position < self.budget;
        if !decoding || !follows {
            return Err(Violation::Refused(HopRefusal::OutOfOrder));
        }
        if frame.token.0 >= self.vocab || frame.session != self.session {
            return Err(Violation::Refused(HopRefusal::WrongShape));
        }
        self.expected = self.expected.next();
        self.queue.push_back(frame.token);
        self.brought_by = Some(frame.step);
        self.heard.push(frame.position, frame.token);
        Ok(())
    }

    fn end(&self) -> Position {
        self.next.plus(Position(u32::try_from(self.queue.len()).unwrap_or(u32::MAX)))
    }

    /// Cuts lie at multiples of the chunk, however the prompt was fed.
    fn waiting(&self) -> Option<Waiting> {
        let queued = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        let cut = self.chunk - self.next.0 % self.chunk;
        match self.prompt {
            _ if queued == 0 => None,
            Prompt::Complete if queued <= cut => Some(Waiting { count: queued, sample: Sample::LastRow }),
            Prompt::Growing if queued <= cut => (queued == cut).then_some(Waiting { count: cut, sample: Sample::No }),
            Prompt::Complete => Some(Waiting { count: cut, sample: Sample::No }),
            Prompt::Growing => Some(Waiting { count: cut, sample: Sample::No }),
        }
    }

    fn take(&mut self, most: u32) -> Option<Taken> {
        let Waiting { count, sample } = self.waiting()?;
        let (count, sample) = if count > most { (most, Sample::No) } else { (count, sample) };
        let first = self.next;
        let tokens = self.queue.drain(..count as usize).collect();
        self.next = first.plus(Position(count));
        Some(Taken { first, count, input: StepInput::Tokens(tokens), sample, step: self.brought_by.take() })
    }
}

/// What a stage computes from.
#[derive(Debug)]
pub(super) enum Inflow {
    /// At the driver.
    Tokens(Tokens),
    /// Everywhere else.
    Frames(Frames),
}

impl Inflow {
    /// Goes on after `keep` positions.
    pub(super) fn resume(&mut self, keep: Position) -> Result<(), Violation> {
        match self {
            Self::Tokens(tokens) => {
                tokens.next = keep;
                Ok(())
            }
            Self::Frames(frames) => frames.resume(keep),
        }
    }

    /// What the driver heard in this chain, if it went on in it.
    pub(super) fn heard(&mut self) -> Option<Heard> {
        match self {
            Self::Tokens(tokens) if tokens.prompt == Prompt::Complete => Some(mem::take(&mut tokens.heard)),
            Self::Tokens(_) | Self::Frames(_) => None,
        }
    }

    pub(super) fn waiting(&self) -> Option<Waiting> {
        match self {
            Self::Tokens(tokens) => tokens.waiting(),
            Self::Frames(frames) => frames.waiting(),
        }
    }

    /// Takes the next step, or its first `most` positions.
    pub(super) fn take(&mut self, most: u32) -> Option<Taken> {
        match self {
            Self::Tokens(tokens) => tokens.take(most),
            Self::Frames(frames) => frames.take(most),
        }
    }
}
