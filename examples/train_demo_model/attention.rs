//! Causal grouped-query attention with rotary positions, as one candle operation.

use std::ops::Range;
use std::sync::Arc;

use candle_core::CpuStorage;
use candle_core::CustomOp1;
use candle_core::Layout;
use candle_core::Result;
use candle_core::Shape;
use candle_core::Tensor;

use super::kernels::Matrix;
use super::kernels::Rotation;
use super::kernels::Write;
use super::kernels::dot;
use super::kernels::multiply;
use super::kernels::softmax;
use super::ops::View;
use super::ops::contiguous;
use super::ops::like;

/// Query positions worked on at once; keys after them are never touched. Measured.
const BLOCK: usize = 32;

/// How the columns of a row are divided: queries, then keys, then values.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// Query heads.
    pub(crate) queries: usize,
    /// Key and value heads; divides `queries`.
    pub(crate) keys: usize,
    /// Values per head.
    pub(crate) width: usize,
}

/// Attention inside each document of a batch.
pub(crate) struct Attention {
    /// The division of columns.
    pub(crate) heads: Heads,
    /// The rows of each document; together all rows, in order.
    pub(crate) documents: Arc<[Range<usize>]>,
    /// Positions from 0 at each document's start.
    pub(crate) rotation: Arc<Rotation>,
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    /// Takes `[rows, (queries + 2 * keys) * width]`, gives `[rows, queries * width]`.
    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, _) = layout.shape().dims2()?;
        let input = contiguous(storage, layout)?;
        let mut out = vec![0.0; rows * self.heads.queries * self.heads.width];
        for document in self.documents.iter() {
            for group in 0..self.heads.keys {
                self.attend(&Group::load(self, input, document.clone(), group), &mut out);
            }
        }
        Ok((CpuStorage::F32(out), Shape::from((rows, self.heads.queries * self.heads.width))))
    }

    fn bwd(&self, input: &Tensor, result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (input_view, result_view, grad_view) = (View::of(input), View::of(result), View::of(grad));
        let mut to_input = vec![0.0; input.elem_count()];
        for document in self.documents.iter() {
            for index in 0..self.heads.keys {
                let group = Group::load(self, input_view.values()?, document.clone(), index);
                let result = group.gather(self.heads, result_view.values()?);
                let grad = group.gather(self.heads, grad_view.values()?);
                let back = self.attend_back(&group, &result, &grad);
                back.store(self, &mut to_input);
            }
        }
        Ok(Some(like(input, to_input)?))
    }
}

impl Attention {
    fn attend(&self, group: &Group, out: &mut [f32]) {
        let (shared, width) = (self.heads.shared(), self.heads.width);
        let mut part = vec![0.0; BLOCK * shared * width];
        for block in group.blocks() {
            let weights = self.weights(group, &block);
            let rows = block.len() * shared;
            let values = Matrix::new(&group.values, block.end, width);
            multiply(&mut part, Write::Set, 1.0, Matrix::new(&weights, rows, block.end), values);
            for (row, head) in part[..rows * width].chunks_exact(width).enumerate() {
                let at = group.column(self.heads, block.start * shared + row);
                out[at..at + width].copy_from_slice(head);
            }
        }
    }

    fn attend_back(&self, group: &Group, result: &[f32], grad: &[f32]) -> Group {
        let (shared, width) = (self.heads.shared(), self.heads.width);
        let mut back = group.zeros();
        for block in group.blocks() {
            let rows = block.len() * shared;
            let here = block.start * shared * width..block.end * shared * width;
            let (result, grad) = (&result[here.clone()], &grad[here.clone()]);
            let grad_rows = Matrix::new(grad, rows, width);
            let weights = self.weights(group, &block);
            let all = Matrix::new(&weights, rows, block.end);
            multiply(&mut back.values, Write::Add, 1.0, all.transposed(), grad_rows);
            let mut scores = vec![0.0; rows * block.end];
            let values = Matrix::new(&group.values, block.end, width);
            multiply(&mut scores, Write::Set, 1.0, grad_rows, values.transposed());
            for (row, scores) in scores.chunks_exact_mut(block.end).enumerate() {
                let head = row * width..(row + 1) * width;
                let mean = dot(&result[head.clone()], &grad[head]);
                let weights = &weights[row * block.end..(row + 1) * block.end];
                scores.iter_mut().zip(weights).for_each(|(score, weight)| *score = (*score - mean) * weight);
            }
            let scores = Matrix::new(&scores, rows, block.end);
            let keys = Matrix::new(&group.keys, block.end, width);
            multiply(&mut back.queries[here.clone()], Write::Set, self.scale(), scores, keys);
            let queries = Matrix::new(&group.queries[here], rows, width);
            multiply(&mut back.keys, Write::Add, self.scale(), scores.transposed(), queries);
        }
        back
    }

    /// The attention weights of a block's query rows over all keys up to the block's end.
    fn weights(&self, group: &Group, block: &Range<usize>) -> Vec<f32> {
        let (shared, width) = (self.heads.shared(), self.heads.width);
        let rows = block.len() * shared;
        let mut weights = vec![0.0; rows * block.end];
        let queries = Matrix::new(&group.queries[block.start * shared * width..], rows, width);
        let keys = Matrix::new(&group.keys, block.end, width);
        multiply(&mut weights, Write::Set, self.scale(), queries, keys.transposed());
        for (row, weights) in weights.chunks_exact_mut(block.end).enumerate() {
            let (seen, hidden) = weights.split_at_mut(block.start + row / shared + 1);
            softmax(seen);
            hidden.fill(0.0);
        }
        weights
    }

    fn scale(&self) -> f32 {
        1.0 / (self.heads.width as f32).sqrt()
    }
}

impl Heads {
    /// Columns of an input row.
    pub(crate) fn columns(self) -> usize {
        (self.queries + 2 * self.keys) * self.width
    }

    /// Query heads that share one key head.
    fn shared(self) -> usize {
        self.queries / self.keys
    }
}

/// One key head of one document with its query heads, rotated, one head per row. Query rows are
/// ordered by position, then head.
struct Group {
    document: Range<usize>,
    index: usize,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Group {
    fn load(attention: &Attention, input: &[f32], document: Range<usize>, index: usize) -> Self {
        let heads = attention.heads;
        let width = heads.width;
        let mut group = Self { document, index, queries: Vec::new(), keys: Vec::new(), values: Vec::new() };
        for (position, row) in group.document.clone().enumerate() {
            let row = &input[row * heads.columns()..(row + 1) * heads.columns()];
            let (queries, key, value) = group.parts(heads);
            let start = group.queries.len();
            group.queries.extend_from_slice(&row[queries]);
            group.queries[start..].chunks_exact_mut(width).for_each(|head| attention.rotation.turn(position, head));
            group.keys.extend_from_slice(&row[key]);
            attention.rotation.turn(position, &mut group.keys[position * width..]);
            group.values.extend_from_slice(&row[value]);
        }
        group
    }

    /// Writes gradients to the places the values were loaded from.
    fn store(mut self, attention: &Attention, out: &mut [f32]) {
        let heads = attention.heads;
        let (width, shared) = (heads.width, heads.shared());
        for (position, row) in self.document.clone().enumerate() {
            let row = &mut out[row * heads.columns()..(row + 1) * heads.columns()];
            let (queries, key, value) = self.parts(heads);
            let own = &mut self.queries[position * shared * width..(position + 1) * shared * width];
            own.chunks_exact_mut(width).for_each(|head| attention.rotation.turn_back(position, head));
            row[queries].copy_from_slice(own);
            let here = position * width..(position + 1) * width;
            attention.rotation.turn_back(position, &mut self.keys[here.clone()]);
            row[key].copy_from_slice(&self.keys[here.clone()]);
            row[value].copy_from_slice(&self.values[here]);
        }
    }

    fn zeros(&self) -> Self {
        Self {
            document: self.document.clone(),
            index: self.index,
            queries: vec![0.0; self.queries.len()],
            keys: vec![0.0; self.keys.len()],
            values: vec![0.0; self.values.len()],
        }
    }

    /// The columns of this group's queries, key and value in an input row.
    fn parts(&self, heads: Heads) -> (Range<usize>, Range<usize>, Range<usize>) {
        let shared = heads.shared() * heads.width;
        let key = (heads.queries + self.index) * heads.width;
        let value = key + heads.keys * heads.width;
        (self.index * shared..(self.index + 1) * shared, key..key + heads.width, value..value + heads.width)
    }

    /// This group's columns of an output-shaped matrix, one head per row.
    fn gather(&self, heads: Heads, from: &[f32]) -> Vec<f32> {
        let shared = heads.shared() * heads.width;
        let row_width = heads.queries * heads.width;
        let starts = self.document.clone().map(|row| row * row_width + self.index * shared);
        starts.flat_map(|start| &from[start..start + shared]).copied().collect()
    }

    /// Where query row `row` of this group lies in an output-shaped matrix.
    fn column(&self, heads: Heads, row: usize) -> usize {
        let (position, head) = (row / heads.shared(), row % heads.shared());
        ((self.document.start + position) * heads.queries + self.index * heads.shared() + head) * heads.width
    }

    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let end = self.document.len();
        (0..end).step_by(BLOCK).map(move |start| start..end.min(start + BLOCK))
    }
}
