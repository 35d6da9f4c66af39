//! Matrices, norms and transformer blocks on a device.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::DType;
use candle_core::Device;
use candle_core::Module;
use candle_core::Result;
use candle_core::Tensor;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::QMatMul;
use candle_core::quantized::QStorage;
use candle_core::quantized::QTensor;
use candle_nn::ops::rms_norm;

use crate::engine::accelerated::attention::Plan;
use crate::engine::accelerated::attention::attend;
use crate::engine::block::Block;
use crate::engine::block::Projection;
use crate::engine::error::LoadError;
use crate::engine::load::Loader;
use crate::engine::load::Place;
use crate::engine::workspace::Pass;
use crate::shape::WeightFormat;

/// The memory of a device.
#[derive(Debug)]
pub(in crate::engine) struct DeviceMemory(pub(in crate::engine) Device);

impl Place for DeviceMemory {
    type Matrix = DeviceMatrix;
    type Norm = DeviceNorm;
    type Vector = Tensor;

    fn matrix(
        &self,
        loader: &mut Loader<'_>,
        name: String,
        columns: u32,
        rows: u32,
    ) -> std::result::Result<DeviceMatrix, LoadError> {
        let data = loader.data(&name, &[u64::from(columns), u64::from(rows)])?;
        let matrix = DeviceMatrix::new(&self.0, data.format, [rows as usize, columns as usize], data.bytes);
        loader.release(&name, &data);
        matrix.map_err(|error| LoadError::Device { name, message: error.to_string() })
    }

    fn norm(&self, loader: &mut Loader<'_>, name: String, length: u32) -> std::result::Result<DeviceNorm, LoadError> {
        Ok(DeviceNorm { weight: self.vector(loader, name, length)?, epsilon: loader.shape.norm_eps })
    }

    fn vector(&self, loader: &mut Loader<'_>, name: String, length: u32) -> std::result::Result<Tensor, LoadError> {
        let vector = Tensor::new(loader.vector(name.clone(), length)?, &self.0);
        vector.map_err(|error| LoadError::Device { name, message: error.to_string() })
    }
}

/// A root-mean-square norm on a device.
#[derive(Debug)]
pub(in crate::engine) struct DeviceNorm {
    weight: Tensor,
    epsilon: f32,
}

impl DeviceNorm {
    /// The rows of `input` (`[rows, width]`, f32), normalised.
    pub(in crate::engine) fn apply(&self, input: &Tensor) -> Result<Tensor> {
        rms_norm(input, &self.weight, self.epsilon)
    }
}

/// A weight matrix on a device, in the format of the file.
#[derive(Debug)]
pub(in crate::engine) enum DeviceMatrix {
    /// Quantised, `[rows, columns]`.
    Blocks(QMatMul),
    /// `[rows, columns]` of F32, F16 or BF16. `QMatMul` would widen them all, to twice the memory.
    Plain(Tensor),
}

impl DeviceMatrix {
    /// Copies a matrix of `[rows, columns]` to the device.
    pub(in crate::engine) fn new(
        device: &Device,
        format: WeightFormat,
        size: [usize; 2],
        bytes: &[u8],
    ) -> Result<Self> {
        let plain = |dtype| Tensor::from_raw_buffer(bytes, dtype, &size, device).map(Self::Plain);
        let blocks = |dtype| {
            let storage = QStorage::from_data(Cow::Borrowed(&Aligned::new(bytes)), device, dtype)?;
            Ok(Self::Blocks(QMatMul::from_arc(Arc::new(QTensor::new(storage, (size[0], size[1]))?))?))
        };
        match format {
            WeightFormat::F32 => plain(DType::F32),
            WeightFormat::F16 => plain(DType::F16),
            WeightFormat::BF16 => plain(DType::BF16),
            WeightFormat::Q4_0 => blocks(GgmlDType::Q4_0),
            WeightFormat::Q4_1 => blocks(GgmlDType::Q4_1),
            WeightFormat::Q5_0 => blocks(GgmlDType::Q5_0),
            WeightFormat::Q5_1 => blocks(GgmlDType::Q5_1),
            WeightFormat::Q8_0 => blocks(GgmlDType::Q8_0),
            WeightFormat::Q4K => blocks(GgmlDType::Q4K),
            WeightFormat::Q5K => blocks(GgmlDType::Q5K),
            WeightFormat::Q6K => blocks(GgmlDType::Q6K),
        }
    }

    /// The products `[inputs, rows]`, f32, of `input` (`[inputs, columns]`, f32, contiguous).
    pub(in crate::engine) fn multiply(&self, input: &Tensor) -> Result<Tensor> {
        match self {
            Self::Blocks(matrix) => matrix.forward(input),
            Self::Plain(matrix) => input.to_dtype(matrix.dtype())?.matmul(&matrix.t()?)?.to_dtype(DType::F32),
        }
    }
}

/// Bytes at an address that any of candle's blocks may stand at.
enum Aligned<'a> {
    There(&'a [u8]),
    Copied(Vec<u64>, usize),
}

impl<'a> Aligned<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        if bytes.as_ptr().cast::<u64>().is_aligned() {
            return Self::There(bytes);
        }
        let mut words = vec![0_u64; bytes.len().div_ceil(size_of::<u64>())];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self::Copied(words, bytes.len())
    }
}

impl std::ops::Deref for Aligned<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::There(bytes) => bytes,
            Self::Copied(words, length) => &bytemuck::cast_slice(words)[..*length],
        }
    }
}

impl Projection<DeviceMatrix, DeviceNorm, Tensor> {
    /// The products `[rows, heads × dim]`, with bias and norm of heads where there are such.
    fn apply(&self, normed: &Tensor, dim: usize) -> Result<Tensor> {
        let mut output = self.matrix.multiply(normed)?;
        if let Some(bias) = &self.bias {
            output = output.broadcast_add(bias)?;
        }
        match &self.head_norm {
            None => Ok(output),
            Some(norm) => norm.apply(&output.reshape(((), dim))?)?.reshape(output.shape()),
        }
    }
}

impl Block<DeviceMatrix, DeviceNorm, Tensor> {
    /// Runs the block over `hidden`, `[rows, width]`; returns the same shape.
    ///
    /// - `index`: which of each session's caches is this block's
    ///
    /// Writes keys and values of all rows into the caches.
    pub(in crate::engine) fn forward(
        &self,
        hidden: &Tensor,
        pass: &mut Pass<'_, '_>,
        plan: &Plan,
        index: usize,
    ) -> Result<Tensor> {
        let normed = self.attention_norm.apply(hidden)?;
        let dim = pass.heads.dim;
        let products = [&self.query, &self.key, &self.value].map(|projection| projection.apply(&normed, dim));
        let [query, key, value] = products;
        let attended = attend(pass, plan, index, [query?, key?, value?])?;
        let hidden = (hidden + self.output.multiply(&attended)?)?;

        let normed = self.feed_norm.apply(&hidden)?;
        let gated = (self.gate.multiply(&normed)?.silu()? * self.up.multiply(&normed)?)?;
        hidden + self.down.multiply(&gated)?
    }
}
