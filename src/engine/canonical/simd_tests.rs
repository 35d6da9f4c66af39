//! Every operation gives the same bits on every instruction set.

use proptest::prelude::*;

use crate::engine::canonical::simd::BYTES;
use crate::engine::canonical::simd::InstructionSet;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;
use crate::engine::canonical::simd::kernels;

/// Arguments of every operation.
#[derive(Clone, Debug)]
struct Arguments {
    a: [f32; LANES],
    b: [f32; LANES],
    c: [f32; LANES],
    small: [f32; LANES],
    /// Within [½, 2].
    near: [f32; LANES],
    ints: [i32; LANES],
    halves: [u16; LANES],
    bytes: [u8; BYTES],
    codes: [i32; 4],
}

/// Results of every operation, as bits; any not-a-number is the same.
type Results = Vec<u32>;

kernels! {
    fn every_operation(arguments: &Arguments, results: &mut Results) = perform;
}

#[inline(always)]
fn perform<S: Simd>(s: S, arguments: &Arguments, results: &mut Results) {
    let Arguments { a, b, c, small, near, ints, halves, bytes, codes } = arguments;
    let (a, b, c) = (s.load(a), s.load(b), s.load(c));
    let floats = [
        s.add(a, b),
        s.sub(a, b),
        s.mul(a, b),
        s.div(a, b),
        s.fma(a, b, c),
        s.fnma(a, b, c),
        s.max(a, b),
        s.min(a, b),
        s.load_halves(halves),
        s.load_brains(halves),
        s.float(s.load_ints(ints)),
        s.splat(s.sum(a)),
        s.scale(s.load(near), s.float(s.round(s.load(small)))),
        s.swap_pairs(a),
    ];
    for value in floats {
        let mut lanes = [0.0; LANES];
        s.store(value, &mut lanes);
        results.extend(lanes.map(|lane| if lane.is_nan() { u32::MAX } else { lane.to_bits() }));
    }
    let mut lanes = [0; LANES];
    s.store_halves(a, &mut lanes);
    results.extend(lanes.map(|bits| if bits & 0x7fff > 0x7c00 { u32::MAX } else { u32::from(bits) }));

    let (x, y) = (s.load_ints(ints), s.round(s.load(small)));
    let mut lowest = [0; LANES];
    s.store_bytes(s.and_ints(x, s.splat_int(0x7f)), &mut lowest);
    results.extend(lowest.map(|byte| byte as u32));
    let weights = s.load_bytes(bytes);
    let quarters = [
        s.bits_of::<0>(weights, 31),
        s.bits_of::<3>(weights, 31),
        s.or_bytes(s.bits_of::<4>(weights, 15), s.raise::<4>(s.bits_of::<1>(weights, 1))),
        s.bits_of::<2>(weights, 3),
    ];
    let total: i32 = codes.iter().flat_map(|codes| codes.to_le_bytes()).map(|code| i32::from(code as i8)).sum();
    let mut biased = s.biased(total);
    let mut dots = x;
    let mut run = s.open(dots);
    for (quarter, codes) in quarters.into_iter().zip(codes) {
        biased = s.close(biased, s.dot_biased(s.open(biased), weights, *codes));
        run = s.dot(run, quarter, *codes);
    }
    dots = s.close(dots, run);
    let (first, second) = bytes.split_first_chunk().map_or(([0; LANES], [1; LANES]), |(first, _)| (*first, *first));
    let ints = [
        y,
        s.add_ints(x, y),
        s.mul_ints(x, y),
        s.max_ints(x, y),
        s.shift_left::<7>(x),
        s.shift_right::<5>(x),
        s.and_ints(x, y),
        s.load_signed(&first),
        s.load_unsigned(&second),
        dots,
        s.add_ints(x, biased),
    ];
    for value in ints {
        let mut lanes = [0; LANES];
        s.store_ints(value, &mut lanes);
        results.extend(lanes.map(|lane| lane as u32));
    }
}

kernels! {
    /// `sums[0]` plus the dot products of weights up to 127, and `sums[1]` plus those of weights less 128.
    fn both_dots(weights: &[[u8; BYTES]; 2], codes: [i8; 4], sums: &mut [[i32; LANES]; 2]) = both_dots_body;
}

#[inline(always)]
fn both_dots_body<S: Simd>(s: S, weights: &[[u8; BYTES]; 2], codes: [i8; 4], sums: &mut [[i32; LANES]; 2]) {
    let total = codes.into_iter().map(i32::from).sum();
    let codes = i32::from_le_bytes(codes.map(|code| code as u8));
    let sum = s.load_ints(&sums[0]);
    let run = s.dot(s.open(sum), s.load_bytes(&weights[0]), codes);
    s.store_ints(s.close(sum, run), &mut sums[0]);
    let sum = s.biased(total);
    let run = s.dot_biased(s.open(sum), s.load_bytes(&weights[1]), codes);
    s.store_ints(s.add_ints(s.load_ints(&sums[1]), s.close(sum, run)), &mut sums[1]);
}

#[test]
fn dot_products_are_exact_at_their_extremes() {
    let extremes = [-127, 127, 0, -1];
    let codes =
        extremes.into_iter().flat_map(|a| extremes.map(|b| [[a, a, b, b], [a, b, b, a], [a, b, a, b]])).flatten();
    // Each lane has another mixture of the least, the most and others.
    let weights: [u8; BYTES] = std::array::from_fn(|at| [0, 255, 127, 128, 1][(at + at / 4 + at / 16) % 5]);
    let weights = [weights.map(|weight| weight & 127), weights];
    for (codes, start) in codes.flat_map(|codes| [(codes, 0), (codes, 1 << 30), (codes, -(1 << 30))]) {
        for set in InstructionSet::ALL.into_iter().filter(|set| set.is_available()) {
            let mut sums = [[start; LANES]; 2];

            both_dots(set, &weights, codes, &mut sums);

            for ((weights, bias), sums) in weights.iter().zip([0, 128]).zip(sums) {
                for (quad, sum) in weights.as_chunks::<4>().0.iter().zip(sums) {
                    let products =
                        quad.iter().zip(codes).map(|(weight, code)| (i32::from(*weight) - bias) * i32::from(code));
                    assert_eq!(sum, start + products.sum::<i32>(), "{} {quad:?} − {bias}, {codes:?}", set.name());
                }
            }
        }
    }
}

fn any_float() -> impl Strategy<Value = f32> {
    prop_oneof![4 => -4.0_f32..4.0, 2 => any::<u32>().prop_map(f32::from_bits), 1 => Just(0.0), 1 => Just(-0.0)]
}

/// Four codes in a word, none of them −128.
fn codes() -> impl Strategy<Value = i32> {
    [-127..=127_i8, -127..=127_i8, -127..=127_i8, -127..=127_i8]
        .prop_map(|codes| i32::from_le_bytes(codes.map(|code| code as u8)))
}

prop_compose! {
    fn arguments()(
        a in prop::array::uniform16(any_float()),
        b in prop::array::uniform16(any_float()),
        c in prop::array::uniform16(any_float()),
        small in prop::array::uniform16(prop_oneof![-160.0..160.0_f32, (-260..260).prop_map(|value| value as f32 / 2.0)]),
        near in prop::array::uniform16(prop_oneof![9 => 0.5..=2.0_f32, 1 => Just(f32::NAN)]),
        ints in prop::array::uniform16(any::<i32>()),
        halves in prop::array::uniform16(any::<u16>()),
        bytes in prop::collection::vec(any::<u8>(), BYTES),
        codes in [codes(), codes(), codes(), codes()],
    ) -> Arguments {
        Arguments { a, b, c, small, near, ints, halves, bytes: bytes.try_into().unwrap(), codes }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn every_instruction_set_gives_the_same_bits(arguments in arguments()) {
        assert_alike(&arguments);
    }
}

#[test]
fn sums_at_the_end_of_their_range_wrap_round_alike() {
    let ones = [1.0; LANES];
    let codes = [i32::from_le_bytes([127; 4]); 4];
    for ints in [[i32::MAX; LANES], [i32::MIN; LANES]] {
        let (halves, bytes) = ([0; LANES], [u8::MAX; BYTES]);
        assert_alike(&Arguments { a: ones, b: ones, c: ones, small: ones, near: ones, ints, halves, bytes, codes });
    }
}

fn assert_alike(arguments: &Arguments) {
    let mut expected = Vec::new();
    every_operation(InstructionSet::Plain, arguments, &mut expected);

    for set in InstructionSet::ALL.into_iter().filter(|set| set.is_available()) {
        let mut results = Vec::new();
        every_operation(set, arguments, &mut results);
        assert_eq!(results, expected, "{} with {arguments:?}", set.name());
    }
}
