//! Every kernel gives the bits of the reference.

use proptest::prelude::*;

use crate::engine::canonical::packed::Packed;
use crate::engine::canonical::products::multiply;
use crate::engine::canonical::reference;
use crate::engine::canonical::round::round;
use crate::engine::canonical::simd::InstructionSet;
use crate::engine::pool::Grid;
use crate::engine::pool::Pool;
use crate::shape::WeightFormat;

#[derive(Clone, Debug)]
struct Case {
    format: WeightFormat,
    rows: usize,
    columns: usize,
    weights: Vec<u8>,
    inputs: Vec<f32>,
}

fn all_products(set: InstructionSet, case: &Case) -> Vec<u32> {
    let weights = Packed::new(case.format, case.rows, case.columns, &case.weights);
    let count = case.inputs.len() / case.columns;
    let mut words = vec![0; count * weights.rounding().row_words(case.columns)];
    round(set, weights.rounding(), case.columns, &case.inputs, &mut words);
    let mut output = vec![f32::NAN; count * case.rows];
    let rows = [0, count];
    let mut grid = [Grid::new(&mut output, case.rows, &rows, 32)];
    Pool::alone().for_each_tile(&mut grid, 0, |_, mut tile| multiply(set, &weights, &words, &mut tile));
    bits(output)
}

fn bits(values: Vec<f32>) -> Vec<u32> {
    values.into_iter().map(|value| if value.is_nan() { u32::MAX } else { value.to_bits() }).collect()
}

fn expected(case: &Case) -> Vec<u32> {
    let row_bytes = case.weights.len() / case.rows;
    let inputs = case.inputs.chunks_exact(case.columns);
    let products = inputs.flat_map(|input| {
        let rows = case.weights.chunks_exact(row_bytes);
        rows.map(|row| reference::product(case.format, row, input))
    });
    bits(products.collect())
}

fn any_input() -> impl Strategy<Value = f32> {
    prop_oneof![
        20 => -4.0_f32..4.0,
        2 => Just(0.0),
        1 => (0_u32..0x0080_0000).prop_map(f32::from_bits),
        1 => prop_oneof![Just(f32::MAX), Just(f32::MIN), Just(127.0), Just(-127.0)],
    ]
}

prop_compose! {
    fn shapes()(format in prop::sample::select(WeightFormat::ALL), rows in 1..40_usize, blocks in 1..4_usize, odd in 1..173_usize, inputs in prop_oneof![6 => 1..20_usize, 1 => 32..70_usize])
        -> (WeightFormat, usize, usize, usize)
    {
        let block = format.block_elements() as usize;
        (format, rows, if block == 1 { odd } else { block * blocks }, inputs)
    }
}

fn cases() -> impl Strategy<Value = Case> {
    shapes().prop_flat_map(|(format, rows, columns, inputs)| {
        let bytes = format.bytes((rows * columns) as u64).unwrap().0 as usize;
        let one = prop::collection::vec(any_input(), columns * inputs);
        let not_finite =
            prop::option::weighted(0.2, (0..columns * inputs, prop::sample::select(&[f32::NAN, f32::INFINITY][..])));
        (prop::collection::vec(any::<u8>(), bytes), one, not_finite).prop_map(move |(weights, mut inputs, broken)| {
            if let Some((at, value)) = broken {
                inputs[at] = value;
            }
            Case { format, rows, columns, weights, inputs }
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn every_instruction_set_equals_the_reference(case in cases()) {
        let expected = expected(&case);
        for set in InstructionSet::ALL.into_iter().filter(|set| set.is_available()) {
            prop_assert_eq!(&all_products(set, &case), &expected, "{}", set.name());
        }
    }
}
