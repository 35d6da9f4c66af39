//! Loading the tensors of a unit range, checked before they are used.

use std::sync::Arc;

use crate::amounts::Bytes;
use crate::engine::block::Block;
use crate::engine::block::Head;
use crate::engine::block::Layers;
use crate::engine::block::Norm;
use crate::engine::block::Projection;
use crate::engine::error::LoadError;
use crate::engine::matrix::Matrix;
use crate::engine::pool::Pool;
use crate::engine::source::TensorData;
use crate::engine::source::TensorSource;
use crate::shape::ModelShape;
use crate::shape::RopeScaling;
use crate::shape::WeightFormat;
use crate::units::UnitRange;

/// The divisors of rotary frequencies, where a model brings them.
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// Where weights go and in what form, which decides how they are computed with.
pub(super) trait Place {
    /// A matrix there.
    type Matrix;
    /// A norm there.
    type Norm;
    /// A vector there.
    type Vector;

    /// Brings the matrix of that name, which maps `columns` elements to `rows`.
    fn matrix(&self, loader: &mut Loader<'_>, name: String, columns: u32, rows: u32)
    -> Result<Self::Matrix, LoadError>;

    /// Brings the norm of that name, over so many elements.
    fn norm(&self, loader: &mut Loader<'_>, name: String, length: u32) -> Result<Self::Norm, LoadError>;

    /// Brings the vector of that name.
    fn vector(&self, loader: &mut Loader<'_>, name: String, length: u32) -> Result<Self::Vector, LoadError>;
}

/// The processor's memory, repacked for canonical arithmetic.
#[derive(Debug)]
pub(super) struct Memory;

impl Place for Memory {
    type Matrix = Matrix;
    type Norm = Norm;
    type Vector = Vec<f32>;

    fn matrix(&self, loader: &mut Loader<'_>, name: String, columns: u32, rows: u32) -> Result<Matrix, LoadError> {
        loader.matrix(name, columns, rows)
    }

    fn norm(&self, loader: &mut Loader<'_>, name: String, length: u32) -> Result<Norm, LoadError> {
        Ok(Norm { weight: loader.vector(name, length)?, epsilon: loader.shape.norm_eps })
    }

    fn vector(&self, loader: &mut Loader<'_>, name: String, length: u32) -> Result<Vec<f32>, LoadError> {
        loader.vector(name, length)
    }
}

/// What makes queries, keys or values, in a place.
type ProjectionOf<P> = Projection<<P as Place>::Matrix, <P as Place>::Norm, <P as Place>::Vector>;

/// A block in a place.
type BlockOf<P> = Block<<P as Place>::Matrix, <P as Place>::Norm, <P as Place>::Vector>;

/// Blocks and head in a place.
pub(super) type LayersOf<P> = Layers<<P as Place>::Matrix, <P as Place>::Norm, <P as Place>::Vector>;

/// Reads tensors of one model and counts their bytes.
pub(super) struct Loader<'a> {
    pub(super) shape: ModelShape,
    pool: &'a Pool,
    source: &'a dyn TensorSource,
    progress: &'a mut dyn FnMut(Bytes),
    loaded: Bytes,
    held: Bytes,
}

impl<'a> Loader<'a> {
    /// # Errors
    /// [`LoadError::BadShape`] if the hyper-parameters contradict themselves.
    pub(super) fn new(
        pool: &'a Pool,
        shape: ModelShape,
        source: &'a dyn TensorSource,
        progress: &'a mut dyn FnMut(Bytes),
    ) -> Result<Self, LoadError> {
        check(&shape)?;
        Ok(Self { shape, pool, source, progress, loaded: Bytes::ZERO, held: Bytes::ZERO })
    }

    /// Bytes that what was read so far takes in memory.
    pub(super) fn held(&self) -> Bytes {
        self.held
    }

    /// The token embedding.
    pub(super) fn embedding<P: Place>(&mut self, place: &P) -> Result<Arc<P::Matrix>, LoadError> {
        place.matrix(self, "token_embd.weight".to_owned(), self.shape.width, self.shape.vocab).map(Arc::new)
    }

    /// Blocks and head of a range.
    ///
    /// - `embedding`: that, if it is in this place already
    pub(super) fn layers<P: Place>(
        &mut self,
        place: &P,
        range: UnitRange,
        embedding: Option<&Arc<P::Matrix>>,
    ) -> Result<LayersOf<P>, LoadError> {
        let blocks = range.start().max(1)..range.end().min(self.shape.head_unit());
        let blocks = blocks.map(|unit| self.block(place, unit - 1)).collect::<Result<_, _>>()?;
        let head = range.contains(self.shape.head_unit()).then(|| self.head(place, embedding)).transpose()?;
        Ok(Layers { blocks, head })
    }

    /// The output head, whose matrix is the embedding in a tied model.
    fn head<P: Place>(
        &mut self,
        place: &P,
        embedding: Option<&Arc<P::Matrix>>,
    ) -> Result<Head<P::Matrix, P::Norm>, LoadError> {
        let norm = place.norm(self, "output_norm.weight".to_owned(), self.shape.width)?;
        let output = match embedding {
            Some(embedding) if self.shape.tied => Arc::clone(embedding),
            None if self.shape.tied => self.embedding(place)?,
            _ => Arc::new(place.matrix(self, "output.weight".to_owned(), self.shape.width, self.shape.vocab)?),
        };
        Ok(Head { norm, output })
    }

    /// Transformer block `index`, from 0.
    fn block<P: Place>(&mut self, place: &P, index: u16) -> Result<BlockOf<P>, LoadError> {
        let ModelShape { width, feed_forward, architecture, .. } = self.shape;
        let (query, kv) = (self.shape.heads * self.shape.head_dim, self.shape.kv_width());
        let name = |part: &str| format!("blk.{index}.{part}.weight");
        let normed = architecture.normalises_heads();
        Ok(Block {
            attention_norm: place.norm(self, name("attn_norm"), width)?,
            query: self.projection(place, name("attn_q"), query, normed.then(|| name("attn_q_norm")))?,
            key: self.projection(place, name("attn_k"), kv, normed.then(|| name("attn_k_norm")))?,
            value: self.projection(place, name("attn_v"), kv, None)?,
            output: place.matrix(self, name("attn_output"), query, width)?,
            feed_norm: place.norm(self, name("ffn_norm"), width)?,
            gate: place.matrix(self, name("ffn_gate"), width, feed_forward)?,
            up: place.matrix(self, name("ffn_up"), width, feed_forward)?,
            down: place.matrix(self, name("ffn_down"), feed_forward, width)?,
        })
    }

    /// What makes queries, keys or values out of a hidden state.
    ///
    /// - `head_norm`: the name of the norm over each head, if there is one
    fn projection<P: Place>(
        &mut self,
        place: &P,
        name: String,
        rows: u32,
        head_norm: Option<String>,
    ) -> Result<ProjectionOf<P>, LoadError> {
        let ModelShape { width, head_dim, architecture, .. } = self.shape;
        let bias = architecture.has_biases().then(|| name.replace(".weight", ".bias"));
        Ok(Projection {
            matrix: place.matrix(self, name, width, rows)?,
            bias: bias.map(|name| place.vector(self, name, rows)).transpose()?,
            head_norm: head_norm.map(|name| place.norm(self, name, head_dim)).transpose()?,
        })
    }

    /// The divisors of the rotary frequencies, if the shape says that the model brings them.
    pub(super) fn rope_divisors(&mut self) -> Result<Option<Vec<f32>>, LoadError> {
        if self.shape.rope.scaling != RopeScaling::Tensor {
            return Ok(None);
        }
        let divisors = self.vector(ROPE_DIVISORS.to_owned(), self.shape.rope.dimensions / 2)?;
        if divisors.iter().any(|divisor| *divisor <= 0.0) {
            return Err(LoadError::BadValue { name: ROPE_DIVISORS.to_owned() });
        }
        Ok(Some(divisors))
    }

    /// A vector of finite values.
    pub(super) fn vector(&mut self, name: String, length: u32) -> Result<Vec<f32>, LoadError> {
        let data = self.data(&name, &[u64::from(length)])?;
        let mut values = vec![0.0; length as usize];
        Matrix::new(self.pool, data.format, [1, length as usize], data.bytes, &|_| ()).row(0, &mut values);
        if values.iter().any(|value| !value.is_finite()) {
            return Err(LoadError::BadValue { name });
        }
        self.holds(&data, size_of_val(values.as_slice()));
        Ok(values)
    }

    /// A matrix for canonical products.
    fn matrix(&mut self, name: String, columns: u32, rows: u32) -> Result<Matrix, LoadError> {
        let data = self.data(&name, &[u64::from(columns), u64::from(rows)])?;
        let size = [rows as usize, columns as usize];
        let release = |bytes| self.source.release(&name, bytes);
        let matrix = Matrix::new(self.pool, data.format, size, data.bytes, &release);
        // Pages that two tasks shared are still there.
        release(0..data.bytes.len());
        self.holds(&data, matrix.bytes());
        Ok(matrix)
    }

    /// Says that a tensor takes so many bytes in memory.
    fn holds(&mut self, data: &TensorData<'_>, bytes: usize) {
        self.held = self.held.minus(Bytes(data.bytes.len() as u64)).plus(Bytes(bytes as u64));
    }

    /// Says that a tensor will not be looked at soon.
    pub(super) fn release(&self, name: &str, data: &TensorData<'_>) {
        self.source.release(name, 0..data.bytes.len());
    }

    /// The tensor of that name with its dimensions and length checked.
    pub(super) fn data(&mut self, name: &str, expected: &[u64]) -> Result<TensorData<'a>, LoadError> {
        let name = || name.to_owned();
        let data = self.source.tensor(&name()).ok_or_else(|| LoadError::Missing { name: name() })?;
        if data.dimensions != expected {
            return Err(LoadError::WrongDimensions { name: name(), expected: expected.to_vec(), got: data.dimensions });
        }
        let (columns, block) = (expected[0], data.format.block_elements());
        if !columns.is_multiple_of(block) {
            return Err(LoadError::RaggedRows { name: name(), columns, block });
        }
        let length = length_of(data.format, expected);
        if data.bytes.len() as u64 != length {
            return Err(LoadError::WrongLength { name: name(), expected: length, got: data.bytes.len() as u64 });
        }
        self.loaded = self.loaded.plus(Bytes(length));
        self.held = self.held.plus(Bytes(length));
        (self.progress)(self.loaded);
        Ok(data)
    }
}

/// Bytes of a tensor; the largest number if they overflow, which no slice has.
fn length_of(format: WeightFormat, dimensions: &[u64]) -> u64 {
    let elements = dimensions.iter().try_fold(1_u64, |product, dimension| product.checked_mul(*dimension));
    elements.and_then(|elements| format.bytes(elements)).map_or(u64::MAX, |bytes| bytes.0)
}

fn check(shape: &ModelShape) -> Result<(), LoadError> {
    let refuse = |reason| Err(LoadError::BadShape { reason });
    let sizes =
        [shape.width, shape.heads, shape.kv_heads, shape.head_dim, shape.feed_forward, shape.vocab, shape.context];
    // 2²⁴ keeps every product of two sizes far from overflow; the largest public models stay below 2¹⁸.
    if sizes.iter().any(|size| !(1..=1 << 24).contains(size)) {
        return refuse("a size is 0 or above 2^24");
    }
    if shape.blocks == 0 || shape.blocks > u16::MAX - 2 {
        return refuse("the number of blocks is 0 or too large");
    }
    if !shape.heads.is_multiple_of(shape.kv_heads) {
        return refuse("key/value heads do not divide the query heads");
    }
    if u64::from(shape.heads) * u64::from(shape.head_dim) > 1 << 24 {
        return refuse("the heads together are above 2^24 elements");
    }
    if shape.window == Some(0) {
        return refuse("no position sees even itself");
    }
    if !shape.architecture.rotates(shape.rope.pairs) {
        return refuse("the family does not rotate such pairs");
    }
    if !(shape.norm_eps.is_finite() && shape.norm_eps >= 0.0) {
        return refuse("the epsilon of the norms is negative or not finite");
    }
    check_rope(shape)
}

fn check_rope(shape: &ModelShape) -> Result<(), LoadError> {
    let refuse = |reason| Err(LoadError::BadShape { reason });
    let above_zero = |value: f32| value.is_finite() && value > 0.0;
    let rope = &shape.rope;
    if rope.dimensions == 0 || !rope.dimensions.is_multiple_of(2) || rope.dimensions > shape.head_dim {
        return refuse("the rotated dimensions are 0, odd, or more than a head has");
    }
    if !above_zero(rope.base) {
        return refuse("the base of the rotary frequencies is not above 0");
    }
    match rope.scaling {
        RopeScaling::None | RopeScaling::Tensor => Ok(()),
        RopeScaling::Linear { factor } if above_zero(factor) => Ok(()),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context }
            if above_zero(factor)
                && above_zero(low_freq_factor)
                && above_zero(high_freq_factor)
                && high_freq_factor > low_freq_factor
                && original_context > 0 =>
        {
            Ok(())
        }
        RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => {
            refuse("the rotary scaling's factors are not possible")
        }
    }
}
