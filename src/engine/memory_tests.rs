//! The estimator against what is allocated.

use crate::engine::canonical::packed::Packed;
use crate::engine::canonical::round::Rounding;
use crate::engine::pool::Pool;
use crate::engine::stage::StageModel;
use crate::engine::tests::RandomWeights;
use crate::engine::tests::small;
use crate::engine::tests::wide;
use crate::estimate::Footprint;
use crate::estimate::Tensor;
use crate::shape::Architecture;
use crate::shape::ModelShape;
use crate::shape::Rope;
use crate::shape::RopePairs;
use crate::shape::WeightFormat;
use crate::units::UnitRange;

/// The units that need a tensor of that name.
fn units(name: &str, shape: &ModelShape) -> Vec<u16> {
    let block = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<u16>().ok());
    match (block, name) {
        (Some(block), _) => vec![block + 1],
        (None, "token_embd.weight") if shape.tied => vec![0, shape.head_unit()],
        (None, "token_embd.weight") => vec![0],
        (None, _) => vec![shape.head_unit()],
    }
}

fn footprint(shape: &ModelShape, weights: &RandomWeights) -> Footprint {
    let tensors = weights.all();
    let units: Vec<Vec<u16>> = tensors.iter().map(|(name, _)| units(name, shape)).collect();
    let tensors = tensors.iter().zip(&units).map(|((_, data), units)| Tensor {
        units,
        dimensions: &data.dimensions,
        format: data.format,
    });
    Footprint::of(shape, tensors)
}

#[test]
fn what_is_loaded_is_what_was_estimated_in_every_format_and_range() {
    // Of 100 or 101 rows the last group is filled up.
    let odd = |shape: ModelShape| ModelShape { vocab: 101, tied: true, ..shape };
    let rope = Rope { pairs: RopePairs::Halves, ..small().rope };
    let biased = ModelShape { architecture: Architecture::Qwen2, rope, ..small() };
    let shapes = [(small(), WeightFormat::F16), (odd(small()), WeightFormat::Q8_0), (biased, WeightFormat::Q4_0)];
    let wide = WeightFormat::ALL.iter().map(|format| (odd(wide()), *format));

    for (shape, format) in shapes.into_iter().chain(wide) {
        let weights = RandomWeights::new(&shape, format, 3);
        let footprint = footprint(&shape, &weights);
        let units = shape.units();
        for (start, end) in [(0, units), (0, 1), (0, 2), (1, units), (units - 1, units), (2, 3)] {
            let range = UnitRange::new(start, end).unwrap();

            let stage = StageModel::load(shape, range, &weights, &mut |_| {}).unwrap();

            assert_eq!(stage.bytes(), footprint.weights(range), "{format}, units {range} of {units}");
        }
    }
}

#[test]
fn inputs_are_rounded_in_blocks_of_the_weights_as_the_estimator_has_it() {
    for &format in WeightFormat::ALL {
        let bytes = vec![0; format.bytes(16 * 256).unwrap().0 as usize];

        let packed = Packed::new(&Pool::alone(), format, [16, 256], &bytes, &|_| ());

        let expected = match format.block_elements() {
            32 => Rounding::Small,
            256 => Rounding::Large,
            _ => Rounding::None,
        };
        assert!(packed.rounding() == expected, "{format}");
    }
}
