//! An engine of hashes: each output depends on the unit, the position and every earlier row of the cache, so that one
//! wrong, missing or doubled row changes every later token.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use bytes::Bytes;

use crate::amounts::Position;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::ids::Token;
use crate::node::io::EngineAction;
use crate::node::io::EngineInput;
use crate::node::io::StageKey;
use crate::node::io::StageStep;
use crate::node::io::StepInput;
use crate::node::io::StepOutput;
use crate::node::io::StepWanted;
use crate::node::testing::EOG;
use crate::node::testing::shape;
use crate::shape::WireDtype;
use crate::units::UnitRange;

/// A hidden state: as many bytes as a row of the toy model in f32.
type Row = [u8; 16];

/// Time of one position through the toy, whatever its range.
const PACE: Span = Span(50);

#[derive(Default)]
pub(super) struct ToyEngine {
    stages: BTreeMap<StageKey, Toy>,
    free_at: Time,
    /// When each batch began and ended, and how many steps it had.
    pub(super) batches: Vec<(Time, Time, usize)>,
}

struct Toy {
    range: UnitRange,
    capacity: Position,
    /// Per unit, the digest of the cache after each position.
    caches: Vec<Vec<Row>>,
}

impl ToyEngine {
    pub(super) fn sessions(&self) -> usize {
        self.stages.len()
    }

    /// What the engine answers, and when.
    pub(super) fn perform(&mut self, action: EngineAction, now: Time) -> Vec<(Time, EngineInput)> {
        match action {
            EngineAction::Load(model, range) => {
                vec![(now.after(Span::millis(10)), EngineInput::Loaded(model, range, Span::ZERO))]
            }
            EngineAction::Unload(..) => Vec::new(),
            EngineAction::Open { key, range, capacity, .. } => {
                let before = self.stages.insert(key, Toy::new(range, capacity));
                assert!(before.is_none(), "{key:?} was opened twice");
                Vec::new()
            }
            EngineAction::Steps(steps) => self.steps(steps, now),
            EngineAction::Free(key) => {
                assert!(self.stages.remove(&key).is_some(), "{key:?} was freed twice");
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
            let Some(toy) = self.stages.get_mut(&key) else { panic!("a step of {key:?}, which is not open") };
            let rows = rows(input);
            let end = Position(first.0 + rows.len() as u32);
            let share = PACE.times(rows.len() as u64);
            let output = toy.step(first, rows, wanted);
            self.free_at = self.free_at.max(now).after(share);
            done.push((key, end, output, share));
        }
        self.batches.push((now, self.free_at, done.len()));
        let (at, took) = (self.free_at, self.free_at.since(now));
        let answer = |(key, end, output, share)| (at, EngineInput::Stepped { key, end, output, took, share });
        done.into_iter().map(answer).collect()
    }
}

impl Toy {
    fn new(range: UnitRange, capacity: Position) -> Self {
        Self { range, capacity, caches: vec![Vec::new(); usize::from(range.count())] }
    }

    fn step(&mut self, first: Position, rows: Vec<Row>, wanted: StepWanted) -> StepOutput {
        assert!(first.0 as usize + rows.len() <= self.capacity.0 as usize, "beyond the capacity");
        let rows: Vec<Row> =
            (first.0..).zip(rows).map(|(position, row)| self.forward(position as usize, row)).collect();
        match wanted {
            StepWanted::Hidden(dtype) => StepOutput::Hidden(payload(&rows, dtype)),
            StepWanted::Token => StepOutput::Sampled { token: sample(rows.last().unwrap()), logprobs: None },
            StepWanted::Nothing => StepOutput::Nothing,
        }
    }

    fn forward(&mut self, position: usize, mut row: Row) -> Row {
        for (unit, cache) in self.range.iter().zip(&mut self.caches) {
            assert!(position <= cache.len(), "a hole in the cache");
            cache.truncate(position);
            let before = cache.last().copied().unwrap_or_default();
            let digest = hash(&[&before, &row]);
            cache.push(digest);
            row = hash(&[&unit.to_be_bytes(), &(position as u32).to_be_bytes(), &digest]);
        }
        row
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

/// Never the end of generation, except once in a while.
fn sample(row: &Row) -> Token {
    match u16::from_be_bytes([row[0], row[1]]) {
        drawn if drawn % 97 == 0 => EOG,
        drawn => Token(10 + u32::from(drawn) % 500),
    }
}

/// What the unsplit engine generates.
pub(crate) fn generate(prompt: &[Token], max_tokens: u32) -> Vec<Token> {
    let whole = UnitRange::whole(shape().units()).unwrap();
    let mut toy = Toy::new(whole, Position(u32::MAX));
    let mut next = prompt.iter().enumerate().map(|(at, &token)| toy.forward(at, embed(token))).last().unwrap();
    let mut tokens = Vec::new();
    while tokens.len() < max_tokens as usize {
        let token = sample(&next);
        tokens.push(token);
        if token == EOG {
            break;
        }
        next = toy.forward(prompt.len() + tokens.len() - 1, embed(token));
    }
    tokens
}
