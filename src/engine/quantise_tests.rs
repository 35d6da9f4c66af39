//! The quantiser beside candle's, which the floor of words cannot name.

use candle_core::Device;
use candle_core::Tensor;
use candle_core::quantized::QStorage;
use candle_core::quantized::QTensor;

use crate::engine::tests::candle_format;
use crate::quantise::TARGETS;
use crate::quantise::decode;
use crate::quantise::encode;
use crate::quantise::tests::Random;
use crate::shape::WeightFormat;

/// Elements of a test's row: 64 super-blocks.
const ROW: usize = 64 * 256;

#[test]
fn every_format_is_decoded_to_the_bits_of_candle() {
    for &format in WeightFormat::ALL {
        let data = random_blocks(format);
        let shape = data.len() / format.block_bytes() as usize * format.block_elements() as usize;
        let storage = QStorage::from_data(data.clone().into(), &Device::Cpu, candle_format(format)).unwrap();
        let theirs = values(&QTensor::new(storage, shape).unwrap());

        let ours = decoded(format, &data);

        let differ = ours.iter().zip(&theirs).position(|(ours, theirs)| ours.to_bits() != theirs.to_bits());
        assert_eq!((differ, ours.len()), (None, theirs.len()), "{format}");
    }
}

#[test]
fn formats_of_one_scale_have_the_bytes_of_the_reference() {
    let rows = [gaussian(0.02), gaussian(40.0), gaussian(1e-4), vec![0.0; ROW], vec![-0.25; ROW]];
    for row in rows {
        for format in [WeightFormat::Q8_0, WeightFormat::Q4_0] {
            assert_eq!(encoded(format, &row), quantised(format, &row).data().unwrap().as_ref(), "{format}");
        }
    }
}

#[test]
fn quantising_is_at_least_as_exact_as_candle() {
    for row in [gaussian(0.02), gaussian(3.0), shifted(), outliers()] {
        let deviation = |near: &[f32]| {
            let squares = row.iter().zip(near).map(|(value, near)| f64::from(value - near).powi(2));
            (squares.sum::<f64>() / ROW as f64).sqrt()
        };
        for target in TARGETS {
            let ours = deviation(&decoded(target, &encoded(target, &row)));
            let theirs = deviation(&values(&quantised(target, &row)));
            assert!(ours <= 1.0001 * theirs, "{target}: {ours:e} beside {theirs:e}");
        }
    }
}

fn encoded(format: WeightFormat, row: &[f32]) -> Vec<u8> {
    let mut out = Vec::new();
    encode(format, row, &mut out).unwrap();
    out
}

fn decoded(format: WeightFormat, data: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; data.len() / format.block_bytes() as usize * format.block_elements() as usize];
    decode(format, data, &mut out).unwrap();
    out
}

fn quantised(format: WeightFormat, row: &[f32]) -> QTensor {
    let tensor = Tensor::from_slice(row, row.len(), &Device::Cpu).unwrap();
    QTensor::quantize(&tensor, candle_format(format)).unwrap()
}

fn values(tensor: &QTensor) -> Vec<f32> {
    tensor.dequantize(&Device::Cpu).unwrap().to_vec1().unwrap()
}

/// Blocks of random bits whose scales are finite.
fn random_blocks(format: WeightFormat) -> Vec<u8> {
    let mut random = Random(9);
    let blocks = ROW / format.block_elements() as usize;
    let mut data: Vec<u8> = (0..blocks * format.block_bytes() as usize).map(|_| random.next() as u8).collect();
    // The upper bytes of what must be finite: a cleared bit of the exponent makes it so.
    let upper: &[usize] = match format {
        WeightFormat::F32 => &[3],
        WeightFormat::F16 | WeightFormat::BF16 | WeightFormat::Q4_0 | WeightFormat::Q5_0 | WeightFormat::Q8_0 => &[1],
        WeightFormat::Q4_1 | WeightFormat::Q5_1 | WeightFormat::Q4K | WeightFormat::Q5K => &[1, 3],
        WeightFormat::Q6K => &[209],
    };
    for block in data.chunks_exact_mut(format.block_bytes() as usize) {
        upper.iter().for_each(|at| block[*at] &= !0x40);
    }
    data
}

/// Weights around several means.
fn shifted() -> Vec<f32> {
    let shifts = [0.0, 0.01, -0.01, 0.05, -0.05, 0.1, -0.2, 1.0];
    gaussian(0.02).into_iter().enumerate().map(|(index, value)| value + shifts[index / 256 % shifts.len()]).collect()
}

/// Weights of which a few are ten times as large.
fn outliers() -> Vec<f32> {
    let larger = |index| if index % 97 == 0 { 10.0 } else { 1.0 };
    gaussian(0.02).into_iter().enumerate().map(|(index, value)| larger(index) * value).collect()
}

/// Sums of twelve uniform numbers.
fn gaussian(deviation: f64) -> Vec<f32> {
    let mut random = Random(3);
    let mut sum = || (0..12).map(|_| random.next() as f64 / 2.0_f64.powi(64)).sum::<f64>() - 6.0;
    (0..ROW).map(|_| (deviation * sum()) as f32).collect()
}
