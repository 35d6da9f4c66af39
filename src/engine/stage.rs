//! A unit range of a model, loaded, and what it computes.

use std::sync::Arc;

use crate::amounts::Bytes;
use crate::amounts::Position;
use crate::engine::block::Block;
use crate::engine::block::Norm;
use crate::engine::canonical::cache::BlockCache;
use crate::engine::canonical::cache::Cache;
use crate::engine::canonical::rope::Rotation;
use crate::engine::error::LoadError;
use crate::engine::error::OpenError;
use crate::engine::error::StepError;
use crate::engine::load::Loader;
use crate::engine::matrix::Matrix;
use crate::engine::payload::round_as_sent;
use crate::engine::pool::Pool;
use crate::engine::source::TensorSource;
use crate::engine::workspace::StageView;
use crate::engine::workspace::Workspace;
use crate::ids::Token;
use crate::shape::ModelShape;
use crate::shape::WireDtype;
use crate::units::UnitRange;

/// The weights of a unit range and the arithmetic over them.
///
/// What a unit computes for a position depends on its weights and on the earlier positions of the session alone: not on the
/// range it was loaded with, on how positions were cut into steps, on the number of threads, or on other sessions. So
/// a split model equals the unsplit one bit for bit.
#[derive(Debug)]
pub struct StageModel {
    pub(super) shape: ModelShape,
    pub(super) range: UnitRange,
    bytes: Bytes,
    pub(super) rotation: Rotation,
    pub(super) embedding: Option<Arc<Matrix>>,
    /// The blocks of the range, ascending.
    pub(super) blocks: Vec<Block>,
    pub(super) head: Option<Head>,
}

#[derive(Debug)]
pub(super) struct Head {
    pub(super) norm: Norm,
    pub(super) output: Arc<Matrix>,
}

impl StageModel {
    /// As [`Self::load_with`], on the caller's thread alone.
    ///
    /// # Errors
    /// As there.
    pub fn load(
        shape: ModelShape,
        range: UnitRange,
        source: &dyn TensorSource,
        progress: &mut dyn FnMut(Bytes),
    ) -> Result<Self, LoadError> {
        Self::load_with(&Pool::alone(), shape, range, source, progress)
    }

    /// Copies the tensors of `range`, and no others, out of `source`.
    ///
    /// - `pool`: the threads that repack them; how many changes nothing but the time
    /// - `progress`: called after each tensor with the bytes read so far
    ///
    /// # Errors
    /// [`LoadError`] with the first tensor that is missing or not as the shape says.
    pub fn load_with(
        pool: &Pool,
        shape: ModelShape,
        range: UnitRange,
        source: &dyn TensorSource,
        progress: &mut dyn FnMut(Bytes),
    ) -> Result<Self, LoadError> {
        let mut loader = Loader::new(pool, shape, source, progress)?;
        if range.end() > shape.units() {
            return Err(LoadError::OutsideModel { range, units: shape.units() });
        }
        let embedding = range.contains(0).then(|| loader.embedding()).transpose()?;
        let blocks = range.iter().filter(|unit| (1..=shape.blocks).contains(unit));
        let blocks = blocks.map(|unit| loader.block(unit - 1)).collect::<Result<Vec<_>, _>>()?;
        let divisors = if blocks.is_empty() { None } else { loader.rope_divisors()? };
        let head = range.contains(shape.head_unit()).then(|| load_head(&mut loader, embedding.as_ref())).transpose()?;
        let rotation = Rotation::new(&shape.rope, divisors.as_deref());
        Ok(Self { shape, range, bytes: loader.loaded(), rotation, embedding, blocks, head })
    }

    /// The units loaded.
    pub fn range(&self) -> UnitRange {
        self.range
    }

    /// The model's hyper-parameters.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// Bytes of the weights held.
    pub fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// Opens a session on `range`, which may be a part of what is loaded.
    ///
    /// - `capacity`: positions at most; key/value memory grows up to `ModelShape::kv_bytes` of it as they are used
    /// - `rounding`: unit boundaries at which hidden states are rounded; those strictly inside `range` are applied here,
    ///   the others where states are sent
    ///
    /// # Errors
    /// [`OpenError`] if the range is not loaded or the capacity is not possible.
    pub fn open(
        &self,
        range: UnitRange,
        capacity: Position,
        rounding: &[(u16, WireDtype)],
    ) -> Result<SessionState, OpenError> {
        if !self.range.covers(range) {
            return Err(OpenError::NotLoaded { range });
        }
        let context = Position(self.shape.context);
        if capacity == Position::ZERO || capacity > context {
            return Err(OpenError::BadCapacity { got: capacity, context });
        }
        let (heads, dim) = (self.shape.kv_heads as usize, self.shape.head_dim as usize);
        let cache = Cache::new(usize::from(self.shape.blocks_in(range)), heads, dim, capacity.0 as usize);
        let inside = rounding.iter().filter(|(boundary, _)| range.start() < *boundary && *boundary < range.end());
        Ok(SessionState { range, capacity, length: Position::ZERO, cache, rounding: inside.copied().collect() })
    }

    /// Allocates what a session's next position needs, so that its step does not: a page of keys and values now and then, and
    /// room for scores.
    pub fn make_room(&self, session: &mut SessionState, workspace: &mut Workspace) {
        let next = session.length.plus(Position(1)).min(session.capacity).0 as usize;
        session.cache.reserve(next);
        let ModelShape { heads, kv_heads, head_dim, .. } = self.shape;
        workspace.buffers.reserve_scores((heads / kv_heads) as usize, head_dim as usize, next);
    }

    /// Feeds one session's step alone, on the caller's thread: [`Self::forward_batch`] for tests and small tools.
    ///
    /// # Errors
    /// [`StepError`]; the session's length is then unchanged, so that the step may be repeated.
    pub fn forward(
        &self,
        session: &mut SessionState,
        input: StageInput<'_>,
        first: Position,
        want: WantLogits,
    ) -> Result<StageOutput, StepError> {
        let mut workspace = Workspace::new(Pool::alone());
        let mut steps = [BatchStep { session, input, first, want }];
        self.forward_batch(&mut steps, &mut workspace).of(0).map(StageView::to_output)
    }
}

fn load_head(loader: &mut Loader<'_>, embedding: Option<&Arc<Matrix>>) -> Result<Head, LoadError> {
    let norm = loader.head_norm()?;
    let output = match embedding {
        Some(embedding) if loader.shape.tied => Arc::clone(embedding),
        None if loader.shape.tied => loader.embedding()?,
        _ => loader.head()?,
    };
    Ok(Head { norm, output })
}

/// What goes into a stage.
#[derive(Clone, Copy, Debug)]
pub enum StageInput<'a> {
    /// Token ids, for a range that begins with the embedding.
    Tokens(&'a [Token]),
    /// Hidden states `[positions, width]`, for any other.
    Hidden(&'a [f32]),
    /// Hidden states as they came: row-major, little-endian, in this dtype.
    Payload(&'a [u8], WireDtype),
}

/// One session's part of a pass.
#[derive(Debug)]
pub struct BatchStep<'a> {
    /// The session; each is in a pass once.
    pub session: &'a mut SessionState,
    /// What goes in.
    pub input: StageInput<'a>,
    /// The absolute position of the first row; must be the session's length.
    pub first: Position,
    /// Whether the end of the model computes the logits of the last row.
    pub want: WantLogits,
}

/// Whether the end of the model computes logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WantLogits {
    /// More of the prompt follows.
    None,
    /// Of the last position.
    LastRow,
}

/// What comes out of a stage.
#[derive(Clone, Debug, PartialEq)]
pub enum StageOutput {
    /// Hidden states `[positions, width]`.
    Hidden(Vec<f32>),
    /// Logits of the last position, `[vocabulary]`.
    Logits(Vec<f32>),
    /// The model's end, and no logits were wanted.
    Nothing,
}

/// What a stage keeps of one session: keys and values of the positions fed.
#[derive(Debug)]
pub struct SessionState {
    range: UnitRange,
    capacity: Position,
    length: Position,
    /// Of the blocks of the range, ascending.
    cache: Cache,
    /// Boundaries inside the range at which hidden states are rounded.
    rounding: Vec<(u16, WireDtype)>,
}

impl SessionState {
    /// Forgets positions from `length` on. A longer length changes nothing.
    pub fn rewind(&mut self, length: Position) {
        self.length = self.length.min(length);
    }

    /// Positions fed.
    pub fn length(&self) -> Position {
        self.length
    }

    /// The units that the session runs through.
    pub fn range(&self) -> UnitRange {
        self.range
    }

    /// Bytes of keys and values allocated; at most `ModelShape::kv_bytes` of the capacity.
    pub fn bytes(&self) -> Bytes {
        self.cache.bytes()
    }

    /// The hash (blake3) of the keys and values of each block, ascending: those of a session that was rebuilt from its tokens
    /// equal those of the lost one.
    pub fn cache_hashes(&self) -> Vec<[u8; 32]> {
        (0..self.cache.blocks()).map(|block| self.cached(block).hash(self.length.0 as usize)).collect()
    }

    /// The keys and values.
    pub(super) fn cache(&mut self) -> &mut Cache {
        &mut self.cache
    }

    /// The keys and values of block `index` of the range.
    pub(super) fn cached(&self, index: usize) -> BlockCache<'_> {
        self.cache.block(index)
    }

    /// The positions up to `length` are in the caches.
    pub(super) fn reach(&mut self, length: Position) {
        self.length = length;
    }

    /// Checks that `count` positions from `first` on may follow; returns the length after them.
    pub(super) fn admit(&self, first: Position, count: usize) -> Result<Position, StepError> {
        if first != self.length {
            return Err(StepError::OutOfOrder { expected: self.length, got: first });
        }
        let wanted = first.plus(Position(u32::try_from(count).unwrap_or(u32::MAX)));
        if wanted > self.capacity {
            return Err(StepError::Full { capacity: self.capacity, wanted });
        }
        Ok(wanted)
    }

    /// Rounds what enters `unit` if the session says so.
    pub(super) fn round(&self, unit: u16, hidden: &mut [f32]) {
        for (_, dtype) in self.rounding.iter().filter(|(boundary, _)| *boundary == unit) {
            round_as_sent(hidden, *dtype);
        }
    }
}
