//! How fast a loaded range is on this machine, and single kernels.

pub mod kernels;

use std::num::NonZeroUsize;

use crate::amounts::Position;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::engine::error::OpenError;
use crate::engine::error::StepError;
use crate::engine::pool::Pool;
use crate::engine::stage::BatchStep;
use crate::engine::stage::SessionState;
use crate::engine::stage::StageInput;
use crate::engine::stage::StageModel;
use crate::engine::stage::WantLogits;
use crate::engine::workspace::Workspace;
use crate::ids::Token;

/// Positions fed in one step while a prompt is read: as many as a stage with all units is given at once.
const CHUNK: u32 = 512;

/// Positions fed before measuring: reads every weight once, wakes the threads and allocates the first pages.
const WARM_UP: u32 = 8;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchPlan {
    /// Threads that compute.
    pub threads: NonZeroUsize,
    /// Positions read in chunks of 512, into an empty session.
    pub prefill: Position,
    /// Positions that every session holds when decoding begins.
    pub depth: Position,
    /// Positions that every session decodes, one in a pass.
    pub decode: Position,
    /// Sessions that decode in one pass.
    pub batch: NonZeroUsize,
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchFigures {
    /// Positions read in chunks.
    pub prefill: Position,
    /// How long they took.
    pub prefill_took: Span,
    /// Positions fed one in a pass, of all sessions together.
    pub decode: Position,
    /// How long they took.
    pub decode_took: Span,
}

impl BenchFigures {
    /// Positions per second while reading a prompt.
    pub fn prefill_per_second(&self) -> f64 {
        per_second(self.prefill, self.prefill_took)
    }

    /// Positions per second while generating.
    pub fn decode_per_second(&self) -> f64 {
        per_second(self.decode, self.decode_took)
    }
}

fn per_second(positions: Position, took: Span) -> f64 {
    f64::from(positions.0) / took.as_seconds().max(1e-6)
}

/// Why nothing was measured.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BenchError {
    /// The threads could not be started.
    #[error("the threads could not be started: {0}")]
    Threads(String),
    /// The session could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A step failed.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// Measures a loaded range on random input of fixed seed: tokens, or hidden states where it does not begin the model.
///
/// - `clock`: the monotonic clock
///
/// # Errors
/// [`BenchError`], also if a session would exceed the model's context.
pub fn bench(model: &StageModel, plan: &BenchPlan, clock: &dyn Fn() -> Time) -> Result<BenchFigures, BenchError> {
    let pool = Pool::new(plan.threads).map_err(|error| BenchError::Threads(error.to_string()))?;
    let positions = plan.prefill.max(plan.depth).plus(plan.decode);
    let mut runs = Runs::open(model, Workspace::new(pool), plan.batch.get(), positions)?;
    runs.feed(0, WARM_UP.min(plan.prefill.plus(plan.decode).0))?;
    runs.rewind(Position::ZERO);

    let began = clock();
    runs.fill(0, plan.prefill)?;
    let prefill_took = clock().since(began);
    // What is to be decoded after the prompt that was just read need not be read again.
    for session in usize::from(plan.depth == plan.prefill)..plan.batch.get() {
        runs.sessions[session].rewind(Position::ZERO);
        runs.fill(session, plan.depth)?;
    }
    let began = clock();
    for _ in 0..plan.decode.0 {
        runs.decode()?;
    }
    let decode_took = clock().since(began);
    let decoded = u32::try_from(plan.batch.get()).unwrap_or(u32::MAX).saturating_mul(plan.decode.0);
    Ok(BenchFigures { prefill: plan.prefill, prefill_took, decode: Position(decoded), decode_took })
}

/// Sessions on a loaded range that are fed random input of fixed seed.
#[derive(Debug)]
pub struct Runs<'a> {
    model: &'a StageModel,
    sessions: Vec<SessionState>,
    workspace: Workspace,
    random: u64,
}

/// Input of one step.
enum Given {
    Tokens(Vec<Token>),
    Hidden(Vec<f32>),
}

impl Given {
    fn input(&self) -> StageInput<'_> {
        match self {
            Self::Tokens(tokens) => StageInput::Tokens(tokens),
            Self::Hidden(hidden) => StageInput::Hidden(hidden),
        }
    }
}

impl<'a> Runs<'a> {
    /// Opens `sessions` for at most `positions` each.
    ///
    /// # Errors
    /// [`OpenError`] if they exceed the model's context.
    pub fn open(
        model: &'a StageModel,
        workspace: Workspace,
        sessions: usize,
        positions: Position,
    ) -> Result<Self, OpenError> {
        let open = |_| model.open(model.range(), positions, &[]);
        let sessions = (0..sessions).map(open).collect::<Result<_, _>>()?;
        Ok(Self { model, sessions, workspace, random: 0 })
    }

    /// Has every session forget what came after its first `length` positions.
    pub fn rewind(&mut self, length: Position) {
        self.sessions.iter_mut().for_each(|session| session.rewind(length));
    }

    /// Feeds so many positions to one session, 512 at a time, and computes the logits of each chunk's last.
    ///
    /// # Errors
    /// [`StepError`], if there is no room for them, say.
    ///
    /// # Panics
    /// If there is no such session.
    pub fn fill(&mut self, session: usize, positions: Position) -> Result<(), StepError> {
        for start in (0..positions.0).step_by(CHUNK as usize) {
            self.feed(session, CHUNK.min(positions.0 - start))?;
        }
        Ok(())
    }

    /// Feeds `count` random positions to one session, and computes the logits of the last where the range ends the model.
    fn feed(&mut self, session: usize, count: u32) -> Result<(), StepError> {
        if count == 0 {
            return Ok(());
        }
        let given = self.given(count);
        let session = &mut self.sessions[session];
        let first = session.length();
        let mut steps = [BatchStep { session, input: given.input(), first, want: WantLogits::LastRow }];
        self.model.forward_batch(&mut steps, &mut self.workspace).of(0)?;
        Ok(())
    }

    /// Feeds one position to every session in one pass, and computes its logits where the range ends the model.
    ///
    /// # Errors
    /// As [`Self::fill`].
    pub fn decode(&mut self) -> Result<(), StepError> {
        let given: Vec<Given> = (0..self.sessions.len()).map(|_| self.given(1)).collect();
        let steps = self.sessions.iter_mut().zip(&given).map(|(session, given)| {
            let first = session.length();
            BatchStep { session, input: given.input(), first, want: WantLogits::LastRow }
        });
        let mut steps: Vec<BatchStep<'_>> = steps.collect();
        let outcomes = self.model.forward_batch(&mut steps, &mut self.workspace);
        for index in 0..outcomes.len() {
            outcomes.of(index)?;
        }
        Ok(())
    }

    /// Random input of `count` positions.
    fn given(&mut self, count: u32) -> Given {
        let shape = *self.model.shape();
        if self.model.range().contains(0) {
            Given::Tokens((0..count).map(|_| Token(self.next() % shape.vocab)).collect())
        } else {
            Given::Hidden((0..count * shape.width).map(|_| self.next() as f32 / (1 << 23) as f32 - 1.0).collect())
        }
    }

    /// 24 random bits; Knuth's MMIX generator (TAOCP vol. 2, §3.3.4).
    fn next(&mut self) -> u32 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 40) as u32
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::engine::tests::RandomWeights;
    use crate::engine::tests::small;
    use crate::shape::WeightFormat;
    use crate::units::UnitRange;

    #[test]
    fn a_whole_model_and_a_middle_range_are_measured() {
        let ticks = AtomicU64::new(0);
        let clock = || Time(ticks.fetch_add(1_000_000, Ordering::Relaxed));
        let weights = RandomWeights::new(&small(), WeightFormat::F32, 1);

        for range in [UnitRange::new(0, 6).unwrap(), UnitRange::new(2, 4).unwrap()] {
            let model = StageModel::load(small(), range, &weights, &mut |_| {}).unwrap();
            let figures = bench(&model, &plan(200, 200, 5), &clock).unwrap();
            assert_eq!((figures.prefill_per_second(), figures.decode_per_second()), (200.0, 5.0));
            let batch = BenchPlan { batch: NonZeroUsize::new(3).unwrap(), ..plan(20, 70, 5) };
            let figures = bench(&model, &batch, &clock).unwrap();
            assert_eq!((figures.prefill_per_second(), figures.decode_per_second()), (20.0, 15.0));
        }
    }

    #[test]
    fn more_than_the_context_is_refused() {
        let weights = RandomWeights::new(&small(), WeightFormat::F32, 1);
        let model = StageModel::load(small(), UnitRange::new(2, 4).unwrap(), &weights, &mut |_| {}).unwrap();

        let refused = bench(&model, &plan(512, 512, 1), &|| Time::ZERO);

        let context = Position(512);
        assert_eq!(refused, Err(BenchError::Open(OpenError::BadCapacity { got: Position(513), context })));
    }

    fn plan(prefill: u32, depth: u32, decode: u32) -> BenchPlan {
        let (threads, batch) = (NonZeroUsize::MIN, NonZeroUsize::MIN);
        BenchPlan { threads, prefill: Position(prefill), depth: Position(depth), decode: Position(decode), batch }
    }
}
