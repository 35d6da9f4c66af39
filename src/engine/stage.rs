//! A unit range of a model, loaded, and what it computes.

use std::sync::Arc;

use crate::amounts::Bytes;
use crate::amounts::Position;
use crate::engine::accelerated::cache::DeviceCache;
use crate::engine::accelerated::stage::DeviceLayers;
use crate::engine::block::Layers;
use crate::engine::canonical::cache::BlockCache;
use crate::engine::canonical::cache::Cache;
use crate::engine::canonical::rope::Rotation;
use crate::engine::device::Device;
use crate::engine::error::LoadError;
use crate::engine::error::OpenError;
use crate::engine::error::StepError;
use crate::engine::load::Loader;
use crate::engine::load::Memory;
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
/// a split model equals the unsplit one bit for bit. On another device than the processor the same holds up to rounding.
#[derive(Debug)]
pub struct StageModel {
    pub(super) shape: ModelShape,
    pub(super) range: UnitRange,
    bytes: Bytes,
    pub(super) rotation: Rotation,
    /// The processor looks its rows up, whatever computes with them.
    pub(super) embedding: Option<Arc<Matrix>>,
    pub(super) weights: Weights,
}

/// Blocks and head, where they are computed with.
#[derive(Debug)]
pub(super) enum Weights {
    Canonical(Layers),
    Accelerated(DeviceLayers),
}

impl StageModel {
    /// As [`Self::load_on`], for the processor and on the caller's thread alone.
    ///
    /// # Errors
    /// As there.
    pub fn load(
        shape: ModelShape,
        range: UnitRange,
        source: &dyn TensorSource,
        progress: &mut dyn FnMut(Bytes),
    ) -> Result<Self, LoadError> {
        Self::load_on(&Device::CPU, &Pool::alone(), shape, range, source, progress)
    }

    /// Copies the tensors of `range`, and no others, out of `source`.
    ///
    /// - `device`: what will compute with them; the token embedding stays with the processor
    /// - `pool`: the threads that repack what stays with the processor; how many changes nothing but the time
    /// - `progress`: called after each tensor with the bytes read so far
    ///
    /// # Errors
    /// [`LoadError`] with the first tensor that is missing or not as the shape says, or for which the device has no room.
    pub fn load_on(
        device: &Device,
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
        let embedding = range.contains(0).then(|| loader.embedding(&Memory)).transpose()?;
        let weights = match device.accelerator() {
            None => Weights::Canonical(loader.layers(&Memory, range, embedding.as_ref())?),
            Some(device) => Weights::Accelerated(DeviceLayers::load(device, &mut loader, range)?),
        };
        let divisors = if shape.blocks_in(range) == 0 { None } else { loader.rope_divisors()? };
        let rotation = Rotation::new(&shape.rope, divisors.as_deref());
        Ok(Self { shape, range, bytes: loader.held(), rotation, embedding, weights })
    }

    /// The units loaded.
    pub fn range(&self) -> UnitRange {
        self.range
    }

    /// The model's hyper-parameters.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// Bytes of the weights held: `Footprint::weights` of the range, on a processor. On a device a tied embedding counts twice, for it is there and with the processor.
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
        let inside = rounding.iter().filter(|(boundary, _)| range.start() < *boundary && *boundary < range.end());
        let (caches, rounding) = (self.caches(range, capacity.0 as usize), inside.copied().collect());
        Ok(SessionState { range, capacity, length: Position::ZERO, caches, rounding })
    }

    /// Allocates what a session's next position needs, so that its step does not: a page of keys and values now and then, and
    /// room for scores. On another device than the processor steps do that themselves.
    pub fn make_room(&self, session: &mut SessionState, workspace: &mut Workspace) {
        let next = session.length.plus(Position(1)).min(session.capacity).0 as usize;
        let Caches::Canonical(cache) = &mut session.caches else { return };
        cache.reserve(next);
        let ModelShape { heads, kv_heads, head_dim, .. } = self.shape;
        workspace.buffers.reserve_scores((heads / kv_heads) as usize, head_dim as usize, next);
    }

    /// Empty caches for the blocks of `range`.
    fn caches(&self, range: UnitRange, capacity: usize) -> Caches {
        let (heads, dim) = (self.shape.kv_heads as usize, self.shape.head_dim as usize);
        let blocks = 0..self.shape.blocks_in(range);
        match &self.weights {
            Weights::Canonical(_) => Caches::Canonical(Cache::new(blocks.len(), heads, dim, capacity)),
            Weights::Accelerated(layers) => {
                let new = |_| DeviceCache::new(layers.device(), heads, dim, capacity);
                Caches::Accelerated(blocks.map(new).collect())
            }
        }
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
    caches: Caches,
    /// Boundaries inside the range at which hidden states are rounded.
    rounding: Vec<(u16, WireDtype)>,
}

/// Keys and values of each block of the range, ascending.
#[derive(Debug)]
enum Caches {
    Canonical(Cache),
    Accelerated(Vec<DeviceCache>),
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
        match &self.caches {
            Caches::Canonical(cache) => cache.bytes(),
            Caches::Accelerated(caches) => caches.iter().map(DeviceCache::bytes).sum(),
        }
    }

    /// The hash (blake3) of the keys and values of each block, ascending: those of a session that was rebuilt from its tokens
    /// equal those of the lost one. `None` where arithmetic is not canonical, for which this does not hold.
    pub fn cache_hashes(&self) -> Option<Vec<[u8; 32]>> {
        match &self.caches {
            Caches::Canonical(cache) => {
                let hash = |block| cache.block(block).hash(self.length.0 as usize);
                Some((0..cache.blocks()).map(hash).collect())
            }
            Caches::Accelerated(_) => None,
        }
    }

    /// The keys and values.
    ///
    /// # Panics
    /// If the session was opened on a stage that is not canonical.
    pub(super) fn cache(&mut self) -> &mut Cache {
        match &mut self.caches {
            Caches::Canonical(cache) => cache,
            Caches::Accelerated(_) => unreachable!("a session is stepped by the stage that opened it"),
        }
    }

    /// The keys and values of block `index` of the range, to look at.
    pub(super) fn cached(&self, index: usize) -> BlockCache<'_> {
        match &self.caches {
            Caches::Canonical(cache) => cache.block(index),
            Caches::Accelerated(_) => unreachable!("a session is stepped by the stage that opened it"),
        }
    }

    /// The keys and values of block `index` of the range, on a device.
    ///
    /// # Panics
    /// If the session was opened on a canonical stage.
    pub(super) fn device_cache(&mut self, index: usize) -> &mut DeviceCache {
        match &mut self.caches {
            Caches::Accelerated(caches) => &mut caches[index],
            Caches::Canonical(_) => unreachable!("a session is stepped by the stage that opened it"),
        }
    }

    /// As [`Self::device_cache`], to look at.
    pub(super) fn device_cached(&self, index: usize) -> &DeviceCache {
        match &self.caches {
            Caches::Accelerated(caches) => &caches[index],
            Caches::Canonical(_) => unreachable!("a session is stepped by the stage that opened it"),
        }
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

    /// Whether [`Self::round`] changes anything at `unit`.
    pub(super) fn rounds(&self, unit: u16) -> bool {
        self.rounding.iter().any(|(boundary, dtype)| *boundary == unit && *dtype != WireDtype::F32)
    }

    /// Rounds what enters `unit` if the session says so.
    pub(super) fn round(&self, unit: u16, hidden: &mut [f32]) {
        for (_, dtype) in self.rounding.iter().filter(|(boundary, _)| *boundary == unit) {
            round_as_sent(hidden, *dtype);
        }
    }
}
