//! Rotation and attention on a device.

use std::ops::Range;

use candle_core::D;
use candle_core::Device;
use candle_core::Result;
use candle_core::Tensor;
use candle_nn::ops::softmax_last_dim;
use candle_nn::rotary_emb::rope;
use candle_nn::rotary_emb::rope_i;

use crate::engine::workspace::Heads;
use crate::engine::workspace::Pass;
use crate::engine::workspace::Segment;
use crate::shape::RopePairs;

/// Scores that attention computes at a time, of all heads together: 64 MiB in f32, of which about three copies live at once
/// (arbitrary). So few in tests that short prompts are cut too.
const SCORES: usize = if cfg!(test) { 1 << 8 } else { 1 << 24 };

/// What all blocks of a pass share.
#[derive(Debug)]
pub(in crate::engine) struct Plan {
    heads: Heads,
    /// Cosines and sines of the rotated pairs, `[rows, pairs]` each.
    angles: [Tensor; 2],
    pairs: RopePairs,
    tiles: Vec<Tile>,
}

/// Rows of one session that attend together.
#[derive(Debug)]
struct Tile {
    step: usize,
    rows: Range<usize>,
    /// Positions that any of them sees.
    seen: Range<usize>,
    /// `[rows, seen]`: 0 where a row may look, −∞ elsewhere. One row sees all of them.
    mask: Option<Tensor>,
}

impl Plan {
    pub(in crate::engine) fn new(device: &Device, pass: &Pass<'_, '_>) -> Result<Self> {
        let rows = pass.layout.rows();
        let angle = |values: Vec<f32>| {
            let pairs = values.len() / rows;
            Tensor::from_vec(values, (rows, pairs), device)
        };
        let (pairs, [cosines, sines]) = (pass.buffers.angles.pairs(), pass.buffers.angles.by_pair());
        let tiles = pass.layout.segments.iter().flat_map(|segment| tiles_of(segment, pass.heads.query));
        let tiles = tiles.map(|(segment, rows)| Tile::new(device, pass.heads, segment, rows));
        let tiles = tiles.collect::<Result<_>>()?;
        Ok(Self { heads: pass.heads, angles: [angle(cosines)?, angle(sines)?], pairs, tiles })
    }

    /// Takes `[rows, heads × dim]` apart into `[heads, rows, dim]`, contiguous.
    fn by_head(&self, rows: &Tensor, heads: usize) -> Result<Tensor> {
        let (count, _) = rows.dims2()?;
        rows.reshape((count, heads, self.heads.dim))?.transpose(0, 1)?.contiguous()
    }

    /// Turns the first dimensions of `[heads, rows, dim]`.
    fn rotate(&self, by_head: &Tensor) -> Result<Tensor> {
        let [cosines, sines] = &self.angles;
        let turned = 2 * cosines.dim(D::Minus1)?;
        let left = self.heads.dim - turned;
        let by_head = by_head.unsqueeze(0)?;
        let rotate = match self.pairs {
            RopePairs::Interleaved => rope_i,
            RopePairs::Halves => rope,
        };
        let rotated = if left == 0 {
            rotate(&by_head, cosines, sines)?
        } else {
            let rotated = rotate(&by_head.narrow(D::Minus1, 0, turned)?.contiguous()?, cosines, sines)?;
            Tensor::cat(&[rotated, by_head.narrow(D::Minus1, turned, left)?], D::Minus1)?
        };
        rotated.squeeze(0)
    }
}

/// The rows of a segment in as many parts as scores need.
fn tiles_of(segment: &Segment, heads: usize) -> impl Iterator<Item = (Segment, Range<usize>)> + use<> {
    let (segment, end) = (*segment, segment.end);
    let longest = segment.first + segment.rows().len();
    let height = (SCORES / (heads * longest)).max(1);
    segment.rows().step_by(height).map(move |start| (segment, start..(start + height).min(end)))
}

impl Tile {
    fn new(device: &Device, heads: Heads, segment: Segment, rows: Range<usize>) -> Result<Self> {
        let position = |row: usize| segment.first + row - segment.start;
        let seen = heads.first_seen(position(rows.start))..position(rows.end);
        let mask = if rows.len() == 1 {
            None
        } else {
            let sees = |row, other: &usize| (heads.first_seen(position(row))..=position(row)).contains(other);
            let value = |row, other| if sees(row, &other) { 0.0 } else { f32::NEG_INFINITY };
            let others = seen.clone();
            let mask = rows.clone().flat_map(|row| others.clone().map(move |other| value(row, other)));
            Some(Tensor::from_vec(mask.collect::<Vec<f32>>(), (rows.len(), seen.len()), device)?)
        };
        Ok(Self { step: segment.step, rows, seen, mask })
    }
}

/// Rotates queries and keys, writes keys and values into the sessions' caches, and lets every row attend to the positions of its
/// session up to its own.
///
/// - `index`: which of each session's caches is to be used
/// - `projected`: queries, keys and values, each `[rows, heads × dim]`
///
/// Returns `[rows, query heads × dim]`, contiguous.
pub(in crate::engine) fn attend(
    pass: &mut Pass<'_, '_>,
    plan: &Plan,
    index: usize,
    [queries, keys, values]: [Tensor; 3],
) -> Result<Tensor> {
    let heads = plan.heads;
    let queries = plan.rotate(&plan.by_head(&queries, heads.query)?)?;
    let queries = (queries * (1.0 / (heads.dim as f64).sqrt()))?;
    let keys = plan.rotate(&plan.by_head(&keys, heads.kv)?)?;
    let values = plan.by_head(&values, heads.kv)?;
    for segment in &pass.layout.segments {
        let part = |of: &Tensor| of.narrow(1, segment.start, segment.rows().len());
        pass.steps[segment.step].session.device_cache(index).write(segment.first, &part(&keys)?, &part(&values)?)?;
    }
    let attend = |tile: &Tile| {
        let queries = queries.narrow(1, tile.rows.start, tile.rows.len())?.contiguous()?;
        let [keys, values] = pass.steps[tile.step].session.device_cached(index).read(&tile.seen)?;
        attend_tile(heads, tile, &queries, &keys, &values)
    };
    match plan.tiles.as_slice() {
        [tile] => attend(tile),
        tiles => Tensor::cat(&tiles.iter().map(attend).collect::<Result<Vec<_>>>()?, 0),
    }
}

/// - `queries`: `[query heads, rows, dim]`; `keys`, `values`: `[kv heads, seen, dim]`; all contiguous
///
/// Query heads that share a key/value head follow each other, so that together they are the rows of one product.
fn attend_tile(heads: Heads, tile: &Tile, queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
    let (rows, seen) = (tile.rows.len(), tile.seen.len());
    let grouped = (heads.kv, heads.group() * rows, seen);
    let scores = queries.reshape((heads.kv, heads.group() * rows, heads.dim))?.matmul(&keys.t()?)?;
    let weights = match &tile.mask {
        None => softmax_last_dim(&scores)?,
        Some(mask) => {
            let masked = scores.reshape((heads.query, rows, seen))?.broadcast_add(mask)?;
            softmax_last_dim(&masked)?.reshape(grouped)?
        }
    };
    let attended = weights.matmul(values)?.reshape((heads.query, rows, heads.dim))?;
    attended.transpose(0, 1)?.contiguous()?.reshape((rows, heads.query * heads.dim))
}
