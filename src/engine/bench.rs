//! How fast a loaded range is on this machine.

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

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchFigures {
    /// Positions read in chunks.
    pub prefill: Position,
    /// How long they took.
    pub prefill_took: Span,
    /// Positions fed one at a time, after those of the prompt.
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
/// - `prefill`: positions read in chunks of 512
/// - `decode`: positions fed one at a time after them
/// - `clock`: the monotonic clock
///
/// # Errors
/// [`BenchError`], also if `prefill + decode` exceeds the model's context.
pub fn bench(
    model: &StageModel,
    threads: NonZeroUsize,
    prefill: Position,
    decode: Position,
    clock: &dyn Fn() -> Time,
) -> Result<BenchFigures, BenchError> {
    let pool = Pool::new(threads).map_err(|error| BenchError::Threads(error.to_string()))?;
    let mut run = Run::new(model, pool, prefill.plus(decode))?;
    run.feed(WARM_UP.min(prefill.plus(decode).0))?;
    run.feed(1.min(prefill.plus(decode).0.saturating_sub(WARM_UP)))?;
    run.session.rewind(Position::ZERO);

    let began = clock();
    for start in (0..prefill.0).step_by(CHUNK as usize) {
        run.feed(CHUNK.min(prefill.0 - start))?;
    }
    let read = clock();
    for _ in 0..decode.0 {
        run.feed(1)?;
    }
    let decode_took = clock().since(read);
    Ok(BenchFigures { prefill, prefill_took: read.since(began), decode, decode_took })
}

struct Run<'a> {
    model: &'a StageModel,
    session: SessionState,
    workspace: Workspace,
    random: u64,
}

impl<'a> Run<'a> {
    fn new(model: &'a StageModel, pool: Pool, positions: Position) -> Result<Self, BenchError> {
        let session = model.open(model.range(), positions, &[])?;
        Ok(Self { model, session, workspace: Workspace::new(pool), random: 0 })
    }

    /// Feeds `count` random positions, and computes the logits of the last where the range ends the model.
    fn feed(&mut self, count: u32) -> Result<(), BenchError> {
        if count == 0 {
            return Ok(());
        }
        let (first, shape) = (self.session.length(), self.model.shape());
        if self.model.range().contains(0) {
            let tokens: Vec<Token> = (0..count).map(|_| Token(self.next() % shape.vocab)).collect();
            self.pass(StageInput::Tokens(&tokens), first)
        } else {
            let hidden: Vec<f32> =
                (0..count * shape.width).map(|_| self.next() as f32 / (1 << 23) as f32 - 1.0).collect();
            self.pass(StageInput::Hidden(&hidden), first)
        }
    }

    fn pass(&mut self, input: StageInput<'_>, first: Position) -> Result<(), BenchError> {
        let mut steps = [BatchStep { session: &mut self.session, input, first, want: WantLogits::LastRow }];
        self.model.forward_batch(&mut steps, &mut self.workspace).of(0)?;
        Ok(())
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
            let figures = bench(&model, NonZeroUsize::MIN, Position(200), Position(5), &clock).unwrap();
            assert_eq!((figures.prefill_per_second(), figures.decode_per_second()), (200.0, 5.0));
        }
    }

    #[test]
    fn more_than_the_context_is_refused() {
        let weights = RandomWeights::new(&small(), WeightFormat::F32, 1);
        let model = StageModel::load(small(), UnitRange::new(2, 4).unwrap(), &weights, &mut |_| {}).unwrap();

        let refused = bench(&model, NonZeroUsize::MIN, Position(512), Position(1), &|| Time::ZERO);

        let context = Position(512);
        assert_eq!(refused, Err(BenchError::Open(OpenError::BadCapacity { got: Position(513), context })));
    }
}
