//! Every kernel gives the bits of the reference.

use proptest::prelude::*;

use crate::engine::canonical::packed::Packed;
use crate::engine::canonical::products::multiply;
use crate::engine::canonical::reference;
use crate::engine::canonical::reference::Breach;
use crate::engine::canonical::round::InputBlock;
use crate::engine::canonical::round::Inputs;
use crate::engine::canonical::round::LargeBlock;
use crate::engine::canonical::round::Rounding;
use crate::engine::canonical::round::SmallBlock;
use crate::engine::canonical::simd::InstructionSet;
use crate::engine::canonical::wrong::Slip;
use crate::engine::pool::Grid;
use crate::engine::pool::Pool;
use crate::shape::WeightFormat;

#[test]
fn products_and_rounding_are_frozen() {
    let traces: Vec<String> = available().map(golden).collect();

    for trace in &traces {
        assert_eq!(trace, &traces[0]);
    }
    expect_test::expect![[r#"
        F32 ba1b10c97ca8d51cb2b4ed73a9e9c424
        F16 c593a02d52c08c7f0378de0af8d8dec2
        Q4_0 4881ad9f5d5046df670c340d0777b81e
        Q4_1 38ac9805a288421cc88c95156e1622a9
        Q5_0 e57884f05b3534b112ccbcb93c15008e
        Q5_1 b9d7c3b3b3c5f19f19c65f8a12726611
        Q8_0 061c45177272d5eb025f8b3f33d60972
        Q4_K 674de73cc99676a01d6fbfbf0034a48e
        Q5_K bf4cc7c24b368220e338185c7b9c3eb2
        Q6_K a6c6708d16295862919e8fb6e15419ac
        BF16 96ae8a06b7f23b5b19707a09a4a0ceb1
        Small f8e676aca45cc81a4250d3001a44ca2c
        Large 162d401ca3f8015ff9606fc2bdf56605"#]]
    .assert_eq(&traces[0]);
}

#[test]
fn kernels_that_break_a_rule_are_seen() {
    for format in WeightFormat::ALL {
        let case = Case::fixed(*format);
        let right = expected(&case);
        let per_cent = |wrong: &[u32]| changed(wrong, &right);

        let unfused = all_products(InstructionSet::Wrong(Slip::Unfused), &case);
        let other_scales = all_products(InstructionSet::Wrong(Slip::OtherScales), &case);
        let reversed = all_products(InstructionSet::best(), &case.reversed());

        // Measured: 34 to 75, 57 to 91 and 42 to 55. The least is of Q6_K, of whose 2,048 columns come but eight roundings.
        assert!(per_cent(&unfused) >= 30, "{format}: {}", per_cent(&unfused));
        assert!(per_cent(&reversed) >= 50, "{format}: {}", per_cent(&reversed));
        if format.block_elements() == 1 {
            assert_eq!(other_scales, right, "{format} has no scales");
        } else {
            assert!(per_cent(&other_scales) >= 40, "{format}: {}", per_cent(&other_scales));
        }
    }
}

#[test]
fn kernels_that_break_a_rule_break_that_one() {
    let case = Case::fixed(WeightFormat::Q8_0);
    let row_bytes = case.weights.len() / case.rows;
    let wrong = |breach| {
        let inputs = case.inputs.chunks_exact(case.columns);
        let products = inputs.flat_map(|input| {
            case.weights.chunks_exact(row_bytes).map(move |row| reference::wrong_product(breach, row, input))
        });
        bits(products.collect())
    };

    assert_eq!(all_products(InstructionSet::Wrong(Slip::Unfused), &case), wrong(Breach::Unfused));
    assert_eq!(all_products(InstructionSet::Wrong(Slip::OtherScales), &case), wrong(Breach::OtherScales));
    for set in available() {
        assert_eq!(all_products(set, &case.reversed()), wrong(Breach::Reversed), "{}", set.name());
    }
}

#[test]
fn another_rounding_of_ties_is_seen() {
    // The largest of each block is 127, so that codes are the inputs rounded; of the others every second is rounded down.
    let mut case = Case::fixed(WeightFormat::Q8_0);
    for (index, input) in case.inputs.iter_mut().enumerate() {
        *input = if index % 32 == 0 { 127.0 } else { (index * 37 % 126) as f32 + 0.5 };
    }
    let right = expected(&case);

    let wrong = all_products(InstructionSet::Wrong(Slip::TiesAway), &case);

    assert!(changed(&wrong, &right) >= 90, "{}", changed(&wrong, &right));
}

/// Of a hundred, how many differ.
fn changed(wrong: &[u32], right: &[u32]) -> usize {
    assert_eq!(wrong.len(), right.len());
    100 * wrong.iter().zip(right).filter(|(wrong, right)| wrong != right).count() / right.len()
}

/// The hashes of products and of rounded inputs, on fixed noise.
fn golden(set: InstructionSet) -> String {
    let hash = |words: &[u32]| blake3::hash(bytemuck::cast_slice(words)).to_hex()[..32].to_owned();
    let mut lines = Vec::new();
    for format in WeightFormat::ALL {
        lines.push(format!("{format} {}", hash(&all_products(set, &Case::fixed(*format)))));
    }
    for rounding in [Rounding::Small, Rounding::Large] {
        let words = match Rounded::of(set, rounding, &Case::fixed(WeightFormat::Q4K)) {
            Rounded::Plain(_) => Vec::new(),
            Rounded::Small(blocks) => blocks
                .iter()
                .flat_map(|block| [&block.codes[..], &[block.scale.to_bits() as i32, block.total]].concat())
                .collect(),
            Rounded::Large(blocks) => blocks
                .iter()
                .flat_map(|block| [&block.codes[..], &block.totals, &[block.scale.to_bits() as i32]].concat())
                .collect(),
        };
        lines.push(format!("{rounding:?} {}", hash(bytemuck::cast_slice::<i32, u32>(&words))));
    }
    lines.join("\n")
}

fn available() -> impl Iterator<Item = InstructionSet> {
    InstructionSet::ALL.into_iter().filter(|set| set.is_available())
}

#[derive(Clone, Debug)]
struct Case {
    format: WeightFormat,
    rows: usize,
    columns: usize,
    weights: Vec<u8>,
    inputs: Vec<f32>,
}

impl Case {
    /// 40 rows of 2,048 columns and 33 inputs of fixed noise.
    fn fixed(format: WeightFormat) -> Self {
        // Knuth's MMIX generator (TAOCP vol. 2, §3.3.4).
        let mut state = 1_u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as u32
        };
        let (rows, columns, inputs) = (40, 2048, 33);
        let bytes = format.bytes(rows * columns).unwrap().0;
        // Without this bit no half, and no float, is infinite or not a number.
        let weights = (0..bytes).map(|_| next() as u8 & 0xbf).collect();
        let inputs = (0..inputs * columns).map(|_| next() as f32 / (1 << 22) as f32 - 2.0).collect();
        Self { format, rows: rows as usize, columns: columns as usize, weights, inputs }
    }

    /// The same with the last block of columns first: for a kernel that keeps the order, the same as the reverse order.
    fn reversed(&self) -> Self {
        let columns = self.format.block_elements() as usize;
        let weights = reversed(&self.weights, self.weights.len() / self.rows, self.format.block_bytes() as usize);
        Self { weights, inputs: reversed(&self.inputs, self.columns, columns), ..self.clone() }
    }
}

/// Each row's blocks in reverse order.
fn reversed<T: Copy>(elements: &[T], row: usize, block: usize) -> Vec<T> {
    elements.chunks_exact(row).flat_map(|row| row.rchunks_exact(block).flatten().copied()).collect()
}

/// A case's inputs, rounded.
enum Rounded {
    Plain(Vec<f32>),
    Small(Vec<SmallBlock>),
    Large(Vec<LargeBlock>),
}

impl Rounded {
    fn of(set: InstructionSet, rounding: Rounding, case: &Case) -> Self {
        match rounding {
            Rounding::None => Self::Plain(case.inputs.clone()),
            Rounding::Small => Self::Small(blocks(set, case)),
            Rounding::Large => Self::Large(blocks(set, case)),
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        match self {
            Self::Plain(elements) => Inputs::Plain(elements),
            Self::Small(blocks) => Inputs::Small(blocks),
            Self::Large(blocks) => Inputs::Large(blocks),
        }
    }
}

fn blocks<B: InputBlock>(set: InstructionSet, case: &Case) -> Vec<B> {
    let mut blocks = vec![B::zeroed(); case.inputs.len() / B::ELEMENTS];
    let rows = case.inputs.chunks_exact(case.columns).zip(blocks.chunks_exact_mut(case.columns / B::ELEMENTS));
    rows.for_each(|(row, blocks)| B::round(set, row, blocks));
    blocks
}

fn all_products(set: InstructionSet, case: &Case) -> Vec<u32> {
    let weights = Packed::new(&Pool::alone(), case.format, [case.rows, case.columns], &case.weights, &|_| ());
    let count = case.inputs.len() / case.columns;
    let rounded = Rounded::of(set, weights.rounding(), case);
    let mut output = vec![f32::NAN; count * case.rows];
    let rows = [0, count];
    let mut grid = [Grid::new(&mut output, case.rows, &rows, 32)];
    Pool::alone().for_each_tile(&mut grid, 0, |_, mut tile| multiply(set, &weights, rounded.inputs(), &mut tile));
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
        for set in available() {
            prop_assert_eq!(&all_products(set, &case), &expected, "{}", set.name());
        }
    }
}
