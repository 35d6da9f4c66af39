//! The blocks and the head of a stage on a device, and a pass through them.

use std::ops::Range;

use candle_core::Device;
use candle_core::Tensor;

use crate::engine::accelerated::attention::Plan;
use crate::engine::accelerated::block::DeviceMatrix;
use crate::engine::accelerated::block::DeviceMemory;
use crate::engine::accelerated::block::DeviceNorm;
use crate::engine::block::Layers;
use crate::engine::error::LoadError;
use crate::engine::error::StepError;
use crate::engine::load::Loader;
use crate::engine::workspace::Pass;
use crate::units::UnitRange;

/// Blocks and head on a device.
#[derive(Debug)]
pub(in crate::engine) struct DeviceLayers {
    device: Device,
    layers: Layers<DeviceMatrix, DeviceNorm, Tensor>,
}

impl DeviceLayers {
    /// Brings the blocks and the head of `range` to the device.
    pub(in crate::engine) fn load(
        device: &Device,
        loader: &mut Loader<'_>,
        range: UnitRange,
    ) -> Result<Self, LoadError> {
        let device = device.clone();
        let layers = loader.layers(&DeviceMemory(device.clone()), range, None)?;
        Ok(Self { device, layers })
    }

    /// Where they are.
    pub(in crate::engine) fn device(&self) -> &Device {
        &self.device
    }

    /// Takes a pass' hidden states through the blocks of `units`, and leaves them where they were.
    ///
    /// - `first`: which of this stage's blocks is the first
    ///
    /// # Errors
    /// [`StepError::Device`]. Caches then hold nothing beyond their sessions' lengths that will be read.
    pub(in crate::engine) fn forward(
        &self,
        pass: &mut Pass<'_, '_>,
        units: Range<u16>,
        first: usize,
    ) -> Result<(), StepError> {
        let plan = Plan::new(&self.device, pass)?;
        let mut hidden = self.upload(&pass.buffers.hidden, pass.layout.rows())?;
        for (index, unit) in units.enumerate() {
            if pass.rounds(unit) {
                pass.buffers.hidden = download(&hidden)?;
                pass.round(unit);
                hidden = self.upload(&pass.buffers.hidden, pass.layout.rows())?;
            }
            hidden = self.layers.blocks[first + index].forward(&hidden, pass, &plan, index)?;
        }
        pass.buffers.hidden = download(&hidden)?;
        Ok(())
    }

    /// The logits of `rows` hidden states, `[rows, vocabulary]`.
    ///
    /// # Errors
    /// [`StepError::Device`].
    pub(in crate::engine) fn logits(&self, hidden: &[f32], rows: usize) -> Result<Vec<f32>, StepError> {
        let Some(head) = &self.layers.head else { return Err(StepError::NotTail) };
        let normed = head.norm.apply(&self.upload(hidden, rows)?)?;
        Ok(download(&head.output.multiply(&normed)?)?)
    }

    /// Hidden states `[rows, width]` on the device.
    fn upload(&self, hidden: &[f32], rows: usize) -> candle_core::Result<Tensor> {
        Tensor::from_slice(hidden, (rows, hidden.len() / rows), &self.device)
    }
}

fn download(tensor: &Tensor) -> candle_core::Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1()
}
