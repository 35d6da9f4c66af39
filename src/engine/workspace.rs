//! What a pass computes in: buffers that stay from pass to pass, so that a step of a session that has its memory
//! allocates nothing.

use std::fmt;
use std::ops::Range;

use crate::engine::canonical::attention::Scratch;
use crate::engine::canonical::rope::Angles;
use crate::engine::canonical::simd::InstructionSet;
use crate::engine::error::StepError;
use crate::engine::matrix::Rounded;
use crate::engine::pool::Pool;
use crate::engine::stage::BatchStep;
use crate::engine::stage::StageOutput;
use crate::shape::KV_PAGE;
use crate::shape::ModelShape;

/// Rows of one session that one task lets attend. Enough that a task is worth handing out early in a prompt, few enough that the
/// last tasks of a long prompt, which are the longest, end at about the same time (arbitrary).
const ATTENTION_ROWS: usize = 16;

/// The threads and buffers that passes use, one pass at a time. The buffers grow to the largest pass seen and stay.
pub struct Workspace {
    pub(super) pool: Pool,
    pub(super) set: InstructionSet,
    pub(super) layout: Layout,
    pub(super) buffers: Buffers,
    pub(super) outcomes: Vec<Result<Came, StepError>>,
    pub(super) width: usize,
    pub(super) vocab: usize,
}

impl fmt::Debug for Workspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Workspace({:?})", self.pool)
    }
}

impl Workspace {
    /// Empty buffers for the threads of `pool`, and the fastest instructions that the machine has.
    pub fn new(pool: Pool) -> Self {
        Self::with(pool, InstructionSet::best())
    }

    /// The same with other instructions, which change no bit. Those that the machine lacks give way to plain ones.
    pub fn with(pool: Pool, set: InstructionSet) -> Self {
        let mut buffers = Buffers::default();
        buffers.scratch.resize_with(pool.threads(), Scratch::default);
        Self { pool, set, layout: Layout::default(), buffers, outcomes: Vec::new(), width: 0, vocab: 0 }
    }

    /// The threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Forgets the last pass.
    pub(super) fn begin(&mut self, shape: &ModelShape) {
        (self.width, self.vocab) = (shape.width as usize, shape.vocab as usize);
        self.layout.segments.clear();
        self.outcomes.clear();
        self.buffers.hidden.clear();
        self.buffers.angles.clear();
    }
}

/// What a step of a pass came to.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Came {
    /// Rows of the hidden states.
    Hidden(Range<usize>),
    /// A row of the logits.
    Logits(usize),
    Nothing,
}

/// What came out of a stage, where it was computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum StageView<'a> {
    /// Hidden states `[positions, width]`.
    Hidden(&'a [f32]),
    /// Logits of the last position, `[vocabulary]`.
    Logits(&'a [f32]),
    /// The model's end, and no logits were wanted.
    Nothing,
}

impl StageView<'_> {
    /// A copy.
    pub fn to_output(self) -> StageOutput {
        match self {
            Self::Hidden(hidden) => StageOutput::Hidden(hidden.to_vec()),
            Self::Logits(logits) => StageOutput::Logits(logits.to_vec()),
            Self::Nothing => StageOutput::Nothing,
        }
    }
}

/// What the steps of a pass came to, in the order of the steps.
#[derive(Clone, Copy, Debug)]
pub struct Outcomes<'a>(pub(super) &'a Workspace);

impl<'a> Outcomes<'a> {
    /// How many steps there were.
    pub fn len(&self) -> usize {
        self.0.outcomes.len()
    }

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What step `index` came to.
    ///
    /// # Errors
    /// [`StepError`] if the step failed; its session's length is then unchanged.
    ///
    /// # Panics
    /// If there were not so many steps.
    pub fn of(&self, index: usize) -> Result<StageView<'a>, StepError> {
        let Workspace { width, vocab, buffers, outcomes, .. } = self.0;
        outcomes[index].clone().map(|came| match came {
            Came::Hidden(rows) => StageView::Hidden(&buffers.hidden[rows.start * width..rows.end * width]),
            Came::Logits(row) => StageView::Logits(&buffers.logits[row * vocab..(row + 1) * vocab]),
            Came::Nothing => StageView::Nothing,
        })
    }

    /// The threads, which are idle by now.
    pub fn pool(&self) -> &'a Pool {
        &self.0.pool
    }
}

/// The rows of one session in a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// The step that they belong to.
    pub(super) step: usize,
    pub(super) start: usize,
    pub(super) end: usize,
    /// The position of the first.
    pub(super) first: usize,
}

impl Segment {
    pub(super) fn rows(&self) -> Range<usize> {
        self.start..self.end
    }

    /// The elements of its rows in a matrix of `width` columns.
    pub(super) fn elements(&self, width: usize) -> Range<usize> {
        self.start * width..self.end * width
    }
}

/// Whose row each row of a pass is.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub(super) segments: Vec<Segment>,
    /// Where attention's tiles of rows begin and the last ends; none has rows of two sessions.
    pub(super) cuts: Vec<usize>,
    /// The index of each row's segment.
    pub(super) owners: Vec<usize>,
}

impl Layout {
    pub(super) fn rows(&self) -> usize {
        self.segments.last().map_or(0, |segment| segment.end)
    }

    /// Fills in what follows from the segments.
    pub(super) fn complete(&mut self) {
        self.cuts.clear();
        self.owners.clear();
        self.cuts.push(0);
        for (index, segment) in self.segments.iter().enumerate() {
            self.cuts.extend(segment.rows().step_by(ATTENTION_ROWS).skip(1));
            self.cuts.push(segment.end);
            self.owners.extend(segment.rows().map(|_| index));
        }
    }
}

/// Matrices of a pass, a row for each position; what is in them between passes means nothing, but for the outcomes.
#[derive(Default)]
pub(super) struct Buffers {
    pub(super) hidden: Vec<f32>,
    pub(super) normed: Vec<f32>,
    pub(super) rounded: Rounded,
    pub(super) angles: Angles,
    pub(super) queries: Vec<f32>,
    pub(super) keys: Vec<f32>,
    pub(super) values: Vec<f32>,
    pub(super) attended: Vec<f32>,
    pub(super) projected: Vec<f32>,
    pub(super) gate: Vec<f32>,
    pub(super) up: Vec<f32>,
    pub(super) logits: Vec<f32>,
    /// One for each thread.
    pub(super) scratch: Vec<Scratch>,
}

impl Buffers {
    /// Room for tasks of attention of up to `rows` query heads × positions over up to `positions`, for every thread, since any may
    /// do any task; as for whole pages, so that it grows with the caches only.
    pub(super) fn reserve_scores(&mut self, rows: usize, dim: usize, positions: usize) {
        for scratch in &mut self.scratch {
            scratch.reserve(rows, dim, positions.next_multiple_of(KV_PAGE as usize));
        }
    }

    /// Gives every matrix but `hidden` and `logits` so many rows.
    pub(super) fn fit(&mut self, rows: usize, shape: &ModelShape) {
        let (width, kv) = (shape.width as usize, shape.kv_width() as usize);
        let (query, feed) = (shape.heads as usize * shape.head_dim as usize, shape.feed_forward as usize);
        for (matrix, columns) in [
            (&mut self.normed, width),
            (&mut self.queries, query),
            (&mut self.keys, kv),
            (&mut self.values, kv),
            (&mut self.attended, query),
            (&mut self.projected, width),
            (&mut self.gate, feed),
            (&mut self.up, feed),
        ] {
            matrix.resize(rows * columns, 0.0);
        }
    }
}

/// The heads of a model, and how far back they see.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) query: usize,
    pub(super) kv: usize,
    pub(super) dim: usize,
    /// Positions that each sees at most, its own and those before.
    pub(super) window: Option<usize>,
}

impl Heads {
    /// Query heads that share one key/value head.
    pub(super) fn group(self) -> usize {
        self.query / self.kv
    }

    /// The first position that is seen from `position`.
    pub(super) fn first_seen(self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// A pass on its way through the blocks.
pub(super) struct Pass<'a, 'b> {
    pub(super) pool: &'a Pool,
    pub(super) set: InstructionSet,
    pub(super) layout: &'a Layout,
    pub(super) buffers: &'a mut Buffers,
    pub(super) steps: &'a mut [BatchStep<'b>],
    pub(super) heads: Heads,
}

impl Pass<'_, '_> {
    /// Elements of a hidden state.
    pub(super) fn width(&self) -> usize {
        self.buffers.hidden.len() / self.layout.rows()
    }

    /// Whether [`Self::round`] changes anything at `unit`.
    pub(super) fn rounds(&self, unit: u16) -> bool {
        self.layout.segments.iter().any(|segment| self.steps[segment.step].session.rounds(unit))
    }

    /// Rounds what enters `unit` in the sessions that say so.
    pub(super) fn round(&mut self, unit: u16) {
        let width = self.width();
        for segment in &self.layout.segments {
            self.steps[segment.step].session.round(unit, &mut self.buffers.hidden[segment.elements(width)]);
        }
    }
}
