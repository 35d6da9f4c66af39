//! The quantiser's bytes, which never change, and what it refuses.

use proptest::prelude::*;

use super::*;

/// Elements of a test's row: four super-blocks.
const ROW: usize = 1024;

#[test]
fn the_bytes_never_change() {
    let mut trace = String::new();
    for (name, row) in rows() {
        trace.push_str(name);
        for target in TARGETS {
            let hash = blake3::hash(&encoded(target, &row)).to_hex();
            trace.push_str(&format!(" {}", &hash[..12]));
        }
        trace.push('\n');
    }

    assert_eq!(VERSION, 1, "another version has other bytes");
    expect_test::expect![[r#"
        gaussian e530f5a5cbe1 030a995cfebf cf6b7b91bf46 193dec8388b5 7a5a466da848
        zeros 935181db1771 0c8de9c1183d 512630926b17 41dd6e68ecf4 bd8d04edaeb2
        negative zeros 935181db1771 0c8de9c1183d 512630926b17 41dd6e68ecf4 bd8d04edaeb2
        denormals 935181db1771 0c8de9c1183d 512630926b17 41dd6e68ecf4 bd8d04edaeb2
        smallest scales e6b363d195e1 6e1f3eeedf01 d9185a8670d4 eda97758272c 0c4fe3ae3d2d
        smallest scales of six bits 3d42af16ea16 6427f0f556e0 f4db827d4c44 f7be1939169d 3b4d47ecb464
        largest halves 9f9f47e2a039 242f19b9c31f c3a6e0d346ba 491f83da1db8 f0c42bb9f1f7
        one outlier a block 853188953fc5 4831644abd6c c2e7f90f1add 3afbb58273c5 c5aba83bbc06
        all equal d8445c3576b1 f0bdb3e08036 6d98137b55bf 5981231ebf9a deadcf989bd3
        all equal and negative 48314ee2700c 7f07c171e090 d244d997167f a82669c52f19 1759f52991c5
        negative only 8a5eb878abff 7f740e2cfbb8 3e23ebf0fdf7 6ee62a58c27f 40c17ef4d256
        positive only 0a93f03518ad b93772827b35 a4f367018d6c 7a19625938be d5cc482c18e7
        far from zero 0839d87894b3 0e7dea43c5ed e5a12e9daa74 b1168f617b09 c9a7de31657c
        all sizes 6819bd02334d d780af0c07a8 294e3f0a4778 1ac784c5c237 5fde02eb3b41
        mostly zeros 8af96e0dcf04 22a891f75dee d28175a04910 f21ecf04f86b 1c42c1bb903b
        ties fb038e217893 41cad3d0a93c 798ebb95f059 dcf8b09834be 16ba8b865072
    "#]]
    .assert_eq(&trace);
}

#[test]
fn the_bytes_of_every_pair_of_formats_never_change() {
    let mut hasher = blake3::Hasher::new();
    for &from in WeightFormat::ALL {
        for to in TARGETS {
            let mut out = Vec::new();
            requantise(from, to, &stored(from), &mut out).unwrap();
            hasher.update(&out);
        }
    }

    expect_test::expect!["763d3ac6274dac2d43adf45e2803a75fbc6d2a86fdeefb3b05b0bd7a9dfa815a"]
        .assert_eq(&hasher.finalize().to_hex());
}

#[test]
fn parts_give_what_the_whole_gives() {
    for &from in WeightFormat::ALL {
        let data = stored(from);
        for to in TARGETS {
            let mut whole = Vec::new();
            requantise(from, to, &data, &mut whole).unwrap();
            for super_blocks in [1, 3, 17] {
                let part = super_blocks * 256 / from.block_elements() as usize * from.block_bytes() as usize;
                let mut parts = Vec::new();
                data.chunks(part).for_each(|part| requantise(from, to, part, &mut parts).unwrap());
                assert_eq!(parts, whole, "{from} to {to} by {super_blocks}");
            }
        }
    }
}

#[test]
fn requantising_is_decoding_and_encoding() {
    for &from in WeightFormat::ALL {
        let data = stored(from);
        for to in TARGETS.into_iter().filter(|to| *to != from) {
            let mut out = Vec::new();
            requantise(from, to, &data, &mut out).unwrap();
            assert_eq!(out, encoded(to, &decoded(from, &data)), "{from} to {to}");
        }
    }
}

#[test]
fn what_is_in_the_format_already_keeps_its_bytes() {
    for target in TARGETS {
        let data = stored(target);
        let mut out = vec![7];
        requantise(target, target, &data, &mut out).unwrap();
        assert_eq!(out[1..], data);
    }
}

#[test]
fn formats_of_one_scale_are_their_own_again() {
    for target in [WeightFormat::Q8_0, WeightFormat::Q4_0] {
        for (name, row) in rows() {
            let once = encoded(target, &row);
            assert_eq!(encoded(target, &decoded(target, &once)), once, "{target} of {name}");
        }
    }
}

#[test]
fn nothing_is_further_off_than_its_steps_allow() {
    // Relative to the largest magnitude of the row. A weight may be off by half a step, and clipped by one more.
    let bounds = [0.5 / 127.0, 1.5 / 32.0, 1.5 / 31.0, 1.5 / 15.0, 1.0 / 8.0];
    for (target, bound) in TARGETS.into_iter().zip(bounds) {
        for (name, row) in rows() {
            let largest = row.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            // Halves have steps of 2⁻¹¹ of a scale, and none below 2⁻²⁴.
            let allowed = largest * (bound * 1.05 + 1.0 / 1024.0) + 64.0 * 2.0_f32.powi(-24);
            for (value, near) in row.iter().zip(decoded(target, &encoded(target, &row))) {
                assert!((value - near).abs() <= allowed, "{target} of {name}: {value:e} is {near:e}");
            }
        }
    }
}

#[test]
fn what_is_smaller_than_any_scale_becomes_zero() {
    for target in TARGETS {
        for row in [vec![0.0; ROW], vec![-0.0; ROW], vec![f32::from_bits(1); ROW], vec![-1e-30; ROW]] {
            assert!(decoded(target, &encoded(target, &row)).iter().all(|value| *value == 0.0), "{target}");
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    use WeightFormat::Q4_0;
    use WeightFormat::Q6K;
    use WeightFormat::Q8_0;
    let mut out = vec![1, 2, 3];
    let ragged = QuantiseError::Ragged { format: Q8_0, bytes: 35 };
    let unfilled = |format, elements| Err(QuantiseError::Unfilled { format, elements });

    assert_eq!(decode(Q8_0, &[0; 35], &mut [0.0; 32]), Err(ragged));
    assert_eq!(decode(Q8_0, &[0; 34], &mut [0.0; 31]), Err(QuantiseError::WrongRoom { expected: 32, got: 31 }));
    assert_eq!(encode(Q4_0, &[0.0; 33], &mut out), unfilled(Q4_0, 33));
    assert_eq!(requantise(Q8_0, Q4_0, &[0; 35], &mut out), Err(ragged));
    assert_eq!(requantise(Q8_0, Q6K, &[0; 7 * 34], &mut out), unfilled(Q6K, 224));
    assert_eq!(out, [1, 2, 3]);
    assert_eq!(encode(Q6K, &[], &mut out), Ok(()));
    assert_eq!(requantise(Q8_0, Q6K, &[], &mut out), Ok(()));
    assert_eq!(out, [1, 2, 3]);
}

#[test]
fn formats_that_are_no_targets_are_refused() {
    let others = WeightFormat::ALL.iter().filter(|format| !TARGETS.contains(format));
    for &format in others {
        assert_eq!(encode(format, &[0.0; 256], &mut Vec::new()), Err(QuantiseError::NotATarget(format)));
        let refused = requantise(WeightFormat::F32, format, &[0; 1024], &mut Vec::new());
        assert_eq!(refused, Err(QuantiseError::NotATarget(format)));
    }
}

#[test]
fn weights_that_are_no_numbers_are_named_and_nothing_is_written() {
    for target in TARGETS {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut row = vec![0.5; 2 * STEP];
            row[STEP + 300] = wrong;
            let refused = Err(QuantiseError::NotFinite { element: STEP + 300 });
            let mut out = vec![9];

            assert_eq!(encode(target, &row, &mut out), refused, "{target}");
            assert_eq!(requantise(WeightFormat::F32, target, &bytes(&row), &mut out), refused, "{target}");
            assert_eq!(out, [9]);
        }
    }
}

#[test]
fn weights_too_large_for_scales_are_named_and_nothing_is_written() {
    for (target, factor) in TARGETS.into_iter().zip([127.0, 32.0 * 128.0, 31.0 * 63.0, 15.0 * 63.0, 8.0]) {
        for large in [1.05 * 65_520.0 * factor, 1e20, f32::MAX] {
            let mut row = vec![0.5; 2 * STEP];
            row[STEP + 259] = large;
            let element = STEP + 259 / target.block_elements() as usize * target.block_elements() as usize;
            let refused = Err(QuantiseError::TooLarge { element });
            let mut out = vec![9];

            assert_eq!(encode(target, &row, &mut out), refused, "{target}");
            assert_eq!(requantise(WeightFormat::F32, target, &bytes(&row), &mut out), refused, "{target}");
            assert_eq!(out, [9]);
        }
        assert!(encode(target, &[0.7 * 65_504.0 * factor; 256], &mut Vec::new()).is_ok(), "{target}");
    }
}

#[test]
fn stored_weights_that_are_not_finite_are_refused_in_their_own_format_too() {
    let mut data = stored(WeightFormat::Q8_0);
    data[34 * 5..34 * 5 + 2].copy_from_slice(&0x7C00_u16.to_le_bytes());

    let kept = requantise(WeightFormat::Q8_0, WeightFormat::Q8_0, &data, &mut Vec::new());

    assert!(matches!(kept, Err(QuantiseError::NotFinite { element: 160..192 })), "{kept:?}");
}

#[test]
fn targets_go_from_the_most_precise_to_the_least() {
    let (_, row) = rows().remove(0);
    let error = |target| {
        let near = decoded(target, &encoded(target, &row));
        row.iter().zip(near).map(|(value, near)| f64::from(value - near).powi(2)).sum::<f64>()
    };

    assert!(TARGETS.map(error).is_sorted());
}

proptest! {
    #[test]
    fn any_numbers_give_blocks_or_a_typed_error(
        bits in proptest::collection::vec(any::<u32>(), 256),
        shift in 0..32_u32,
    ) {
        // Shifts make small exponents as frequent as large ones.
        let values: Vec<f32> = bits.iter().map(|bits| f32::from_bits(bits >> shift | bits << 31)).collect();
        for target in TARGETS {
            let mut out = Vec::new();
            if encode(target, &values, &mut out).is_ok() {
                prop_assert!(decoded(target, &out).iter().all(|value| value.is_finite()), "{target}");
            }
        }
    }

    #[test]
    fn any_bytes_give_blocks_or_a_typed_error(bytes in proptest::collection::vec(any::<u8>(), 0..3_000)) {
        for &from in WeightFormat::ALL {
            let whole = bytes.len() / from.block_bytes() as usize * from.block_bytes() as usize;
            for to in TARGETS {
                let _ = requantise(from, to, &bytes, &mut Vec::new());
                let mut out = Vec::new();
                if requantise(from, to, &bytes[..whole], &mut out).is_ok() {
                    prop_assert!(decoded(to, &out).iter().all(|value| value.is_finite()), "{from} to {to}");
                }
            }
        }
    }
}

fn encoded(format: WeightFormat, values: &[f32]) -> Vec<u8> {
    let mut out = Vec::new();
    encode(format, values, &mut out).unwrap();
    assert_eq!(out.len() as u64, values.len() as u64 / format.block_elements() * format.block_bytes());
    out
}

fn decoded(format: WeightFormat, data: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; data.len() / format.block_bytes() as usize * format.block_elements() as usize];
    decode(format, data, &mut out).unwrap();
    out
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Some steps and a part of one of weights near 0 in the format.
fn stored(format: WeightFormat) -> Vec<u8> {
    let values = gaussian(2 * STEP + 512);
    match format {
        WeightFormat::F32 => bytes(&values),
        WeightFormat::F16 => values.iter().flat_map(|value| halves::narrow(*value).to_le_bytes()).collect(),
        WeightFormat::BF16 => values.iter().flat_map(|value| value.to_le_bytes().into_iter().skip(2)).collect(),
        WeightFormat::Q8_0 | WeightFormat::Q6K | WeightFormat::Q5K | WeightFormat::Q4K | WeightFormat::Q4_0 => {
            encoded(format, &values)
        }
        WeightFormat::Q4_1 | WeightFormat::Q5_0 | WeightFormat::Q5_1 => random_blocks(format, values.len() / 32),
    }
}

/// Blocks of a scale (and an offset of its size) of about 2⁻⁶ and random bits.
fn random_blocks(format: WeightFormat, count: usize) -> Vec<u8> {
    let mut random = Random(5);
    let mut data: Vec<u8> = (0..count * format.block_bytes() as usize).map(|_| random.next() as u8).collect();
    for block in data.chunks_exact_mut(format.block_bytes() as usize) {
        let offset = if format == WeightFormat::Q5_0 { 1 } else { 3 };
        block[1] = 0x24;
        block[offset] = if offset == 3 { 0xB0 } else { 0x24 };
    }
    data
}

/// Rows of every kind that must be told apart.
fn rows() -> Vec<(&'static str, Vec<f32>)> {
    let gaussian = gaussian(ROW);
    let mapped = |map: fn(usize, f32) -> f32| -> Vec<f32> {
        gaussian.iter().enumerate().map(|(index, value)| map(index, *value)).collect()
    };
    let power = |exponent: i32| f32::from_bits(((127 + exponent) as u32) << 23);
    let powers = gaussian.iter().enumerate().map(|(index, value)| value * power(index as i32 % 46 - 30)).collect();
    vec![
        ("gaussian", gaussian.clone()),
        ("zeros", vec![0.0; ROW]),
        ("negative zeros", vec![-0.0; ROW]),
        ("denormals", mapped(|index, _| f32::from_bits(index as u32 * 8_191))),
        ("smallest scales", mapped(|_, value| value * 4e-4)),
        ("smallest scales of six bits", mapped(|_, value| value * 5e-3)),
        ("largest halves", mapped(|_, value| if value < 0.0 { -65_504.0 } else { 65_504.0 })),
        ("one outlier a block", mapped(|index, value| if index % 256 == 77 { -40.0 } else { value })),
        ("all equal", vec![0.1; ROW]),
        ("all equal and negative", vec![-0.1; ROW]),
        ("negative only", mapped(|_, value| -value.abs() - 0.01)),
        ("positive only", mapped(|_, value| value.abs() + 0.01)),
        ("far from zero", mapped(|_, value| value * 0.01 - 1_000.0)),
        ("all sizes", powers),
        ("mostly zeros", mapped(|index, value| if index % 19 == 0 { value } else { 0.0 })),
        ("ties", mapped(|index, _| (index % 16) as f32 - 7.5)),
    ]
}

/// Sums of twelve uniform numbers, of deviation 0.02: exact in `f64`, so the same everywhere.
fn gaussian(count: usize) -> Vec<f32> {
    let mut random = Random(1);
    let mut sum = || (0..12).map(|_| (random.next() >> 40) as f64 / (1 << 24) as f64).sum::<f64>() - 6.0;
    (0..count).map(|_| (0.02 * sum()) as f32).collect()
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
