//! An engine of hashes: each output depends on the unit, the position and every earlier row of the cache, so that one
//! wrong, missing or doubled row changes every later token.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use bytes::Bytes;

use crate::amounts::Position;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::SessionId;
use crate::ids::Token;
use crate::node::io::EngineAction;
use crate::node::io::EngineInput;
use crate::node::io::StageKey;
use crate::node::io::StageStep;
use crate::node::io::StepFailure;
use crate::node::io::StepInput;
use crate::node::io::StepOutput;
use crate::node::io::StepWanted;
use crate::node::sim::setting::COARSE;
use crate::node::sim::setting::EOG;
use crate::node::sim::setting::shape;
use crate::shape::WireDtype;
use crate::units::UnitRange;
use crate::wire::control::SamplingParameters;
use crate::wire::control::TailOffer;

/// A hidden state: as many bytes as a row of the toy model in f32.
type Row = [u8; 16];

/// Time of one position through the toy, whatever its range.
const PACE: Span = Span(50);

#[derive(Default)]
pub(super) struct ToyEngine {
    stages: BTreeMap<StageKey, Toy>,
    free_at: Time,
    /// So many times as long takes everything, if not 0.
    slow: u64,
    /// When each batch began and ended, and how many steps it had.
    pub(super) batches: Vec<(Time, Time, usize)>,
    /// From which position on it computes something else than it is asked for.
    pub(super) lies_from: Option<Position>,
    /// The first position for which it did, by session.
    pub(super) lied: BTreeMap<SessionId, Position>,
}

/// A stage of one session.
struct Toy {
    range: UnitRange,
    capacity: Position,
    /// Where hidden states are rounded inside the range.
    rounding: Vec<(u16, WireDtype)>,
    /// Per unit, the digest of the cache after each position.
    caches: Vec<Vec<Row>>,
    tail: Option<Tail>,
    /// Units that compute with quantised weights.
    coarse: Vec<UnitRange>,
}

/// What the tail samples with.
struct Tail {
    /// The tokens so far, if a parameter looks back at them.
    history: Option<Vec<Token>>,
}

impl ToyEngine {
    pub(super) fn sessions(&self) -> usize {
        self.stages.len()
    }

    /// The sessions that it holds something of.
    pub(super) fn holds(&self) -> BTreeSet<SessionId> {
        self.stages.keys().map(|key| key.session).collect()
    }

    /// The process is gone; the machine stays as it is.
    pub(super) fn die(&mut self) {
        let (lies_from, lied) = (self.lies_from, std::mem::take(&mut self.lied));
        *self = Self { lies_from, lied, ..Self::default() };
    }

    pub(super) fn slow(&mut self, factor: u64) {
        self.slow = factor;
    }

    /// What the engine answers, and when. It is as lenient as the real one: whoever asks for what makes no sense is told so.
    pub(super) fn perform(&mut self, action: EngineAction, now: Time) -> Vec<(Time, EngineInput)> {
        match action {
            EngineAction::Load(model, range) => {
                vec![(now.after(Span::millis(10)), EngineInput::Loaded(model, range, Span::ZERO))]
            }
            EngineAction::Unload(..) => Vec::new(),
            EngineAction::Open { key, model, range, capacity, rounding, tail } => {
                let toy = Toy::new(range, capacity, rounding, tail.as_ref());
                let coarse = if model == COARSE { vec![range] } else { Vec::new() };
                self.stages.insert(key, Toy { coarse, ..toy });
                Vec::new()
            }
            EngineAction::Steps(steps) => self.steps(steps, now),
            EngineAction::Free(key) => {
                self.stages.remove(&key);
                Vec::new()
            }
        }
    }

    /// A batch takes as long as its rows one after another, and is answered when all are done.
    fn steps(&mut self, steps: Vec<StageStep>, now: Time) -> Vec<(Time, EngineInput)> {
        assert!(self.free_at <= now, "a batch is handed over when the one before is done");
        let keys: BTreeSet<StageKey> = steps.iter().map(|step| step.key).collect();
        assert_eq!(keys.len(), steps.len(), "a batch has one step of a stage");
        let mut done = Vec::new();
        for StageStep { key, first, input, wanted } in steps {
            let rows = rows(input);
            let end = Position(first.0 + rows.len() as u32);
            let share = PACE.times(self.slow.max(1) * rows.len() as u64);
            let toy = self.stages.get_mut(&key);
            let output = toy.ok_or(StepFailure::BadInput).and_then(|toy| toy.step(first, rows, wanted));
            let output = output.map(|output| self.falsify(key.session, first, end, output));
            self.free_at = self.free_at.max(now).after(share);
            done.push((key, end, output, share));
        }
        self.batches.push((now, self.free_at, done.len()));
        let (at, took) = (self.free_at, self.free_at.since(now));
        let answer = |(key, end, output, share)| match output {
            Ok(output) => (at, EngineInput::Stepped { key, end, output, took, share }),
            Err(failure) => (at, EngineInput::StepFailed(key, failure)),
        };
        done.into_iter().map(answer).collect()
    }
}

impl ToyEngine {
    /// What it says in the place of what it has computed, from some position on.
    fn falsify(&mut self, session: SessionId, first: Position, end: Position, output: StepOutput) -> StepOutput {
        let Some(from) = self.lies_from.filter(|from| *from < end) else { return output };
        let (at, told) = match output {
            StepOutput::Hidden(payload) => {
                let row = payload.len() / end.minus(first).0 as usize;
                let honest = from.minus(first).0 as usize * row;
                let (kept, changed) = payload.split_at(honest);
                let told = kept.iter().copied().chain(changed.iter().map(|byte| !byte)).collect();
                (from.max(first), StepOutput::Hidden(told))
            }
            StepOutput::Sampled { token, logprobs } => {
                (end, StepOutput::Sampled { token: Token(10 + (token.0 + 1) % 500), logprobs })
            }
            StepOutput::Nothing => return StepOutput::Nothing,
        };
        self.lied.entry(session).or_insert(at);
        told
    }
}

impl Toy {
    fn new(range: UnitRange, capacity: Position, rounding: Vec<(u16, WireDtype)>, tail: Option<&TailOffer>) -> Self {
        let tail = tail.map(|tail| Tail { history: tail.parameters.looks_back().then(|| tail.history.clone()) });
        let caches = vec![Vec::new(); usize::from(range.count())];
        Self { range, capacity, rounding, caches, tail, coarse: Vec::new() }
    }

    fn step(&mut self, first: Position, rows: Vec<Row>, wanted: StepWanted) -> Result<StepOutput, StepFailure> {
        let end = first.0 + rows.len() as u32;
        let cached = self.caches.iter().map(Vec::len).min().unwrap_or_default();
        if end > self.capacity.0 || first.0 as usize > cached {
            return Err(StepFailure::BadInput);
        }
        let rows: Vec<Row> =
            (first.0..).zip(rows).map(|(position, row)| self.forward(position as usize, row)).collect();
        match (wanted, &mut self.tail, rows.last()) {
            (StepWanted::Hidden(dtype), ..) => Ok(StepOutput::Hidden(payload(&rows, dtype))),
            (StepWanted::Token, Some(tail), Some(last)) => {
                Ok(StepOutput::Sampled { token: tail.sample(end as usize, last), logprobs: None })
            }
            (StepWanted::Nothing, ..) => Ok(StepOutput::Nothing),
            (StepWanted::Token, ..) => Err(StepFailure::BadInput),
        }
    }

    fn forward(&mut self, position: usize, mut row: Row) -> Row {
        for (unit, cache) in self.range.iter().zip(&mut self.caches) {
            let inside = self.range.start() < unit;
            if let Some((_, dtype)) = self.rounding.iter().find(|(boundary, _)| inside && *boundary == unit) {
                row = rounded(row, *dtype);
            }
            cache.truncate(position);
            let before = cache.last().copied().unwrap_or_default();
            let digest = hash(&[&before, &row]);
            cache.push(digest);
            row = hash(&[&unit.to_be_bytes(), &(position as u32).to_be_bytes(), &digest]);
            if self.coarse.iter().any(|range| range.contains(unit)) {
                row = hash(&[&row]);
            }
        }
        row
    }
}

impl Tail {
    /// The token at `position`; what was chosen there or later before is chosen again.
    fn sample(&mut self, position: usize, row: &Row) -> Token {
        let Some(history) = &mut self.history else { return sample(row) };
        history.truncate(position);
        let seen: Vec<u8> = history.iter().flat_map(|token| token.0.to_be_bytes()).collect();
        let token = sample(&hash(&[row, &seen]));
        history.push(token);
        token
    }
}

fn hash(parts: &[&[u8]]) -> Row {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().as_bytes()[..16].try_into().unwrap()
}

fn embed(token: Token) -> Row {
    hash(&[&token.0.to_be_bytes()])
}

fn rows(input: StepInput) -> Vec<Row> {
    let widened = |bytes: &[u8]| std::array::from_fn(|index| bytes.get(index).copied().unwrap_or_default());
    match input {
        StepInput::Tokens(tokens) => tokens.into_iter().map(embed).collect(),
        StepInput::Hidden(bytes, dtype) => bytes.chunks(dtype.row_bytes(shape().width) as usize).map(widened).collect(),
    }
}

fn payload(rows: &[Row], dtype: WireDtype) -> Bytes {
    let bytes = dtype.row_bytes(shape().width) as usize;
    rows.iter().flat_map(|row| &row[..bytes]).copied().collect()
}

/// What is left of a row that crosses a wire.
fn rounded(row: Row, dtype: WireDtype) -> Row {
    let kept = dtype.row_bytes(shape().width) as usize;
    std::array::from_fn(|index| if index < kept { row[index] } else { 0 })
}

/// Never the end of generation, except once in a while.
fn sample(row: &Row) -> Token {
    match u16::from_be_bytes([row[0], row[1]]) {
        drawn if drawn % 397 == 0 => EOG,
        drawn => Token(10 + u32::from(drawn) % 500),
    }
}

/// What the unsplit engine generates greedily.
pub(in crate::node) fn generate(prompt: &[Token], max_tokens: u32) -> Vec<Token> {
    generate_with(prompt, max_tokens, &SamplingParameters::default(), Vec::new())
}

/// What it generates if some of its weights are quantised.
pub(in crate::node) fn generate_mixed(prompt: &[Token], max_tokens: u32, coarse: Vec<UnitRange>) -> Vec<Token> {
    let toy = Toy { coarse, ..unsplit(Vec::new()) };
    generate_by(toy, prompt, max_tokens, &SamplingParameters::default())
}

/// What the unsplit engine generates that rounds where a chain does.
pub(super) fn generate_with(
    prompt: &[Token],
    max_tokens: u32,
    parameters: &SamplingParameters,
    rounding: Vec<(u16, WireDtype)>,
) -> Vec<Token> {
    generate_by(unsplit(rounding), prompt, max_tokens, parameters)
}

fn unsplit(rounding: Vec<(u16, WireDtype)>) -> Toy {
    let whole = UnitRange::whole(shape().units()).unwrap();
    Toy::new(whole, Position(u32::MAX), rounding, None)
}

fn generate_by(mut toy: Toy, prompt: &[Token], max_tokens: u32, parameters: &SamplingParameters) -> Vec<Token> {
    let mut tail = Tail { history: parameters.looks_back().then(|| prompt.to_vec()) };
    let mut next = prompt.iter().enumerate().map(|(at, &token)| toy.forward(at, embed(token))).last().unwrap();
    let mut tokens = Vec::new();
    while tokens.len() < max_tokens as usize {
        let token = tail.sample(prompt.len() + tokens.len(), &next);
        tokens.push(token);
        if token == EOG {
            break;
        }
        next = toy.forward(prompt.len() + tokens.len() - 1, embed(token));
    }
    tokens
}
