//! The layers as candle operations with their own gradients. candle's elementwise graph would spend
//! most of the time on memory; these spend it on matrix products.

use std::ops::Deref;
use std::sync::Arc;

use candle_core::CpuStorage;
use candle_core::CustomOp1;
use candle_core::CustomOp2;
use candle_core::Error;
use candle_core::Layout;
use candle_core::Result;
use candle_core::Shape;
use candle_core::Storage;
use candle_core::Tensor;

use super::kernels::Matrix;
use super::kernels::Write;
use super::kernels::dot;
use super::kernels::exp;
use super::kernels::multiply;
use super::kernels::softmax;

/// The variance floor of the norms; written to the file's metadata too.
pub(crate) const NORM_EPSILON: f32 = 1e-5;

/// `input [rows, inner]` times the transpose of `weight [outer, inner]`.
pub(crate) fn linear(input: &Tensor, weight: &Tensor) -> Result<Tensor> {
    input.apply_op2(weight, Linear)
}

/// Root-mean-square norm of each row of `input [rows, width]`, times `weight [width]`.
pub(crate) fn rms_norm(input: &Tensor, weight: &Tensor) -> Result<Tensor> {
    input.apply_op2(weight, RmsNorm)
}

/// `silu(gate) * up`, where each row of `input [rows, 2 * width]` is a gate and an up half.
pub(crate) fn swiglu(input: &Tensor) -> Result<Tensor> {
    input.apply_op1(SwiGlu)
}

/// The weighted cross-entropy of `logits [rows, vocabulary]`, a scalar: the sum over rows of
/// `weight * -ln p(target)`. Rows of weight 0 cost nothing.
pub(crate) fn cross_entropy(logits: &Tensor, targets: Arc<[(u32, f32)]>) -> Result<Tensor> {
    logits.apply_op1(CrossEntropy { targets })
}

struct Linear;

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, inner) = l1.shape().dims2()?;
        let (outer, _) = l2.shape().dims2()?;
        let mut out = vec![0.0; rows * outer];
        let input = Matrix::new(contiguous(s1, l1)?, rows, inner);
        let weight = Matrix::new(contiguous(s2, l2)?, outer, inner);
        multiply(&mut out, Write::Set, 1.0, input, weight.transposed());
        Ok((CpuStorage::F32(out), Shape::from((rows, outer))))
    }

    fn bwd(
        &self,
        input: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (rows, inner) = input.dims2()?;
        let (outer, _) = weight.dims2()?;
        let (input_view, weight_view, grad_view) = (View::of(input), View::of(weight), View::of(grad));
        let grad = Matrix::new(grad_view.values()?, rows, outer);
        let mut to_input = vec![0.0; rows * inner];
        multiply(&mut to_input, Write::Set, 1.0, grad, Matrix::new(weight_view.values()?, outer, inner));
        let mut to_weight = vec![0.0; outer * inner];
        multiply(&mut to_weight, Write::Set, 1.0, grad.transposed(), Matrix::new(input_view.values()?, rows, inner));
        Ok((Some(like(input, to_input)?), Some(like(weight, to_weight)?)))
    }
}

struct RmsNorm;

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (input, weight) = (contiguous(s1, l1)?, contiguous(s2, l2)?);
        let mut out = Vec::with_capacity(input.len());
        for row in input.chunks_exact(weight.len()) {
            let scale = inverse_rms(row);
            out.extend(row.iter().zip(weight).map(|(value, weight)| value * scale * weight));
        }
        Ok((CpuStorage::F32(out), l1.shape().clone()))
    }

    fn bwd(
        &self,
        input: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (input_view, weight_view, grad_view) = (View::of(input), View::of(weight), View::of(grad));
        let weights = weight_view.values()?;
        let width = weights.len();
        let mut to_input = Vec::with_capacity(input.elem_count());
        let mut to_weight = vec![0.0; width];
        let mut weighted = vec![0.0; width];
        let rows = input_view.values()?.chunks_exact(width);
        for (row, grad) in rows.zip(grad_view.values()?.chunks_exact(width)) {
            let scale = inverse_rms(row);
            for index in 0..width {
                weighted[index] = grad[index] * weights[index];
                to_weight[index] += grad[index] * row[index] * scale;
            }
            let pull = dot(&weighted, row) * scale * scale * scale / width as f32;
            to_input.extend(row.iter().zip(&weighted).map(|(value, weighted)| weighted * scale - value * pull));
        }
        Ok((Some(like(input, to_input)?), Some(like(weight, to_weight)?)))
    }
}

fn inverse_rms(row: &[f32]) -> f32 {
    1.0 / (dot(row, row) / row.len() as f32 + NORM_EPSILON).sqrt()
}

struct SwiGlu;

impl CustomOp1 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, both) = layout.shape().dims2()?;
        let mut out = Vec::with_capacity(rows * both / 2);
        for row in contiguous(storage, layout)?.chunks_exact(both) {
            let (gate, up) = row.split_at(both / 2);
            out.extend(gate.iter().zip(up).map(|(gate, up)| gate * sigmoid(*gate) * up));
        }
        Ok((CpuStorage::F32(out), Shape::from((rows, both / 2))))
    }

    fn bwd(&self, input: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, both) = input.dims2()?;
        let width = both / 2;
        let (input_view, grad_view) = (View::of(input), View::of(grad));
        let mut to_input = vec![0.0; input.elem_count()];
        let rows = input_view.values()?.chunks_exact(both).zip(grad_view.values()?.chunks_exact(width));
        for ((row, grad), out) in rows.zip(to_input.chunks_exact_mut(both)) {
            let (gate, up) = row.split_at(width);
            let (to_gate, to_up) = out.split_at_mut(width);
            for index in 0..width {
                let open = sigmoid(gate[index]);
                let silu = gate[index] * open;
                to_up[index] = grad[index] * silu;
                to_gate[index] = grad[index] * up[index] * (open + silu * (1.0 - open));
            }
        }
        Ok(Some(like(input, to_input)?))
    }
}

fn sigmoid(value: f32) -> f32 {
    1.0 / (1.0 + exp((-value).min(80.0)))
}

struct CrossEntropy {
    targets: Arc<[(u32, f32)]>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, vocabulary) = layout.shape().dims2()?;
        let mut loss = 0f64;
        for (row, (target, weight)) in contiguous(storage, layout)?.chunks_exact(vocabulary).zip(self.targets.iter()) {
            if *weight > 0.0 {
                let mut scores = row.to_vec();
                let whole = softmax(&mut scores);
                loss += f64::from(*weight) * f64::from(whole - row[*target as usize]);
            }
        }
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (_, vocabulary) = logits.dims2()?;
        let scale = grad.to_scalar::<f32>()?;
        let view = View::of(logits);
        let mut to_logits = view.values()?.to_vec();
        for (row, (target, weight)) in to_logits.chunks_exact_mut(vocabulary).zip(self.targets.iter()) {
            if *weight > 0.0 {
                softmax(row);
                row[*target as usize] -= 1.0;
                row.iter_mut().for_each(|value| *value *= weight * scale);
            } else {
                row.fill(0.0);
            }
        }
        Ok(Some(like(logits, to_logits)?))
    }
}

/// The values of a contiguous tensor on the CPU.
pub(crate) fn contiguous<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(Error::Msg("expected a contiguous tensor".to_owned()));
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// A new tensor of the shape of `tensor`, outside any graph.
pub(crate) fn like(tensor: &Tensor, values: Vec<f32>) -> Result<Tensor> {
    Tensor::from_vec(values, tensor.shape(), tensor.device())
}

/// Read access to a tensor's values without a copy.
pub(crate) struct View<'a> {
    storage: Box<dyn Deref<Target = Storage> + 'a>,
    layout: &'a Layout,
}

impl<'a> View<'a> {
    /// Locks `tensor` for reading.
    pub(crate) fn of(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage: Box::new(storage), layout }
    }

    /// The values, row after row.
    ///
    /// # Errors
    /// If the tensor is not contiguous, or not on the CPU.
    pub(crate) fn values(&self) -> Result<&[f32]> {
        match &**self.storage {
            Storage::Cpu(storage) => contiguous(storage, self.layout),
            Storage::Cuda(_) | Storage::Metal(_) => Err(Error::Msg("expected a CPU tensor".to_owned())),
        }
    }
}
