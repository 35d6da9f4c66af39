//! The keys and values of one session in one block, on a device.

use std::ops::Range;

use candle_core::DType;
use candle_core::Device;
use candle_core::Result;
use candle_core::Tensor;

use crate::amounts::Bytes;
use crate::shape::KV_ELEMENT_BYTES;
use crate::shape::KV_PAGE;

/// Positions that a buffer grows by: enough that copying it on growth is little beside reading it at each step (arbitrary).
pub(in crate::engine) const CHUNK: usize = 4 * KV_PAGE as usize;

/// Keys and values of one session in one block.
#[derive(Debug)]
pub(in crate::engine) struct DeviceCache {
    device: Device,
    heads: usize,
    dim: usize,
    /// Positions that there will ever be room for: whole pages.
    limit: usize,
    room: usize,
    /// Keys and values, each `[heads, room, dim]` of halves; `None` before the first position.
    buffers: Option<[Tensor; 2]>,
}

impl DeviceCache {
    /// A cache of no positions, which takes no memory yet.
    ///
    /// - `heads`: key/value heads; `dim`: elements of one
    /// - `capacity`: positions at most
    pub(in crate::engine) fn new(device: &Device, heads: usize, dim: usize, capacity: usize) -> Self {
        let limit = capacity.next_multiple_of(KV_PAGE as usize);
        Self { device: device.clone(), heads, dim, limit, room: 0, buffers: None }
    }

    /// Writes the keys and values of the positions from `first` on, making room where there is none.
    ///
    /// - `keys`, `values`: `[heads, positions, dim]`, f32, on the device; at most up to the capacity
    pub(in crate::engine) fn write(&mut self, first: usize, keys: &Tensor, values: &Tensor) -> Result<()> {
        let (_, count, _) = keys.dims3()?;
        let [kept_keys, kept_values] = self.reserve(first + count)?;
        // A conversion of part of a tensor gives a contiguous one, which `slice_set` asks for.
        kept_keys.slice_set(&keys.to_dtype(DType::F16)?.contiguous()?, 1, first)?;
        kept_values.slice_set(&values.to_dtype(DType::F16)?.contiguous()?, 1, first)
    }

    /// The keys and the values of these positions, which were written, widened: `[heads, positions, dim]` each, contiguous.
    pub(in crate::engine) fn read(&self, positions: &Range<usize>) -> Result<[Tensor; 2]> {
        let Some([keys, values]) = &self.buffers else { candle_core::bail!("a cache was read before it was written") };
        let part =
            |buffer: &Tensor| buffer.narrow(1, positions.start, positions.len())?.to_dtype(DType::F32)?.contiguous();
        Ok([part(keys)?, part(values)?])
    }

    /// Bytes on the device: those of whole chunks, and never more than [`crate::shape::kv_bytes`] of the capacity.
    pub(in crate::engine) fn bytes(&self) -> Bytes {
        Bytes(2 * KV_ELEMENT_BYTES).times((self.heads * self.dim * self.room) as u64)
    }

    /// Makes room for positions `0..positions`. If the device has none left, what is there stays.
    fn reserve(&mut self, positions: usize) -> Result<[Tensor; 2]> {
        if let Some(buffers) = &self.buffers
            && positions <= self.room
        {
            return Ok(buffers.clone());
        }
        let room = positions.next_multiple_of(CHUNK).min(self.limit).max(positions);
        let buffers = self.grown(room)?;
        self.room = room;
        self.buffers = Some(buffers.clone());
        Ok(buffers)
    }

    fn grown(&self, room: usize) -> Result<[Tensor; 2]> {
        let grow = |index: usize| {
            let buffer = Tensor::zeros((self.heads, room, self.dim), DType::F16, &self.device)?;
            if let Some(buffers) = &self.buffers {
                buffer.slice_set(&buffers[index], 1, 0)?;
            }
            Ok::<_, candle_core::Error>(buffer)
        };
        Ok([grow(0)?, grow(1)?])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amounts::Position;
    use crate::shape::kv_bytes;

    #[test]
    fn what_is_written_is_read_after_growing_and_rewriting() {
        let mut cache = DeviceCache::new(&Device::Cpu, 2, 4, 700);
        let mut expected = Vec::new();
        for (first, count) in [(0, 3), (3, 1), (4, 300), (200, 10), (210, 490)] {
            expected.truncate(first);
            expected.extend((first..first + count).map(|position| position as f32 + count as f32 / 1024.0));
            let rows = filled(&expected[first..]);
            cache.write(first, &rows, &rows.neg().unwrap()).unwrap();

            let [keys, values] = cache.read(&(0..first + count)).unwrap();

            assert!(keys.is_contiguous());
            for head in keys.to_vec3::<f32>().unwrap() {
                let got: Vec<f32> = head.into_iter().map(|row| row[3]).collect();
                let halves: Vec<f32> = expected.iter().map(|value| half::f16::from_f32(*value).to_f32()).collect();
                assert_eq!(got, halves);
            }
            let [late, _] = cache.read(&(first..first + count)).unwrap();
            let narrow = keys.narrow(1, first, count).unwrap();
            assert_eq!(late.to_vec3::<f32>().unwrap(), narrow.to_vec3::<f32>().unwrap());
            let sum = (keys + values).unwrap().sqr().unwrap().sum_all().unwrap();
            assert_eq!(sum.to_scalar::<f32>().unwrap(), 0.0, "values are the negated keys");
        }
    }

    #[test]
    fn memory_grows_by_chunks_up_to_what_the_capacity_takes() {
        let mut cache = DeviceCache::new(&Device::Cpu, 2, 4, 700);
        assert_eq!(cache.bytes(), Bytes::ZERO);
        let mut room = Vec::new();

        for first in [0, 255, 256, 600, 699] {
            let row = filled(&[1.0]);
            cache.write(first, &row, &row).unwrap();
            room.push(cache.bytes());
        }

        let of = |positions| kv_bytes(8, Position(positions));
        assert_eq!(room, [of(256), of(256), of(512), of(700), of(700)]);
    }

    /// One value a position, in all of two heads of four.
    fn filled(positions: &[f32]) -> Tensor {
        let rows = Tensor::new(positions, &Device::Cpu).unwrap().reshape((1, positions.len(), 1)).unwrap();
        rows.broadcast_as((2, positions.len(), 4)).unwrap().contiguous().unwrap()
    }
}
