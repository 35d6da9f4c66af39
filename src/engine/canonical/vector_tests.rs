//! The vector arithmetic against a second reading of its rules, one number at a time.
//!
//! What is computed here follows the modules' docs and uses nothing of theirs.

use half::f16;
use proptest::prelude::*;

use crate::engine::canonical::attention::Scratch;
use crate::engine::canonical::attention::Task;
use crate::engine::canonical::attention::attend;
use crate::engine::canonical::cache::Cache;
use crate::engine::canonical::cache::Rows;
use crate::engine::canonical::exponential::Gate;
use crate::engine::canonical::exponential::exponentiate;
use crate::engine::canonical::exponential::gate_in_place;
use crate::engine::canonical::norm::add;
use crate::engine::canonical::norm::normalise;
use crate::engine::canonical::norm::normalise_in_place;
use crate::engine::canonical::rope::Angles;
use crate::engine::canonical::rope::Rotation;
use crate::engine::canonical::simd::InstructionSet;
use crate::engine::canonical::wrong::Slip;
use crate::engine::pool::Pool;
use crate::shape::Rope;
use crate::shape::RopePairs;
use crate::shape::RopeScaling;

#[test]
fn exp_is_defined_at_its_edges() {
    let edges = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, 88.8, -104.5, f32::MAX, f32::MIN, 1e-45];
    let expected = [1.0, 1.0, f32::INFINITY, 0.0, f32::INFINITY, 0.0, f32::INFINITY, 0.0, 1.0];

    for set in sets() {
        let mut values = edges;
        exponentiate(set, &mut values);
        assert_eq!(values.map(f32::to_bits), expected.map(f32::to_bits), "{}", set.name());
        let mut lost = [f32::NAN];
        exponentiate(set, &mut lost);
        assert!(lost[0].is_nan());
    }
}

#[test]
fn exp_is_within_one_ulp_where_its_result_is_normal_or_denormal() {
    // A prime step through all bits of −104 … 88.7.
    for (start, end) in [(0.0_f32, 88.7_f32), (-0.0, -104.0)] {
        let inputs: Vec<f32> = (start.to_bits()..end.to_bits()).step_by(1_009).map(f32::from_bits).collect();
        let mut results = inputs.clone();

        exponentiate(InstructionSet::best(), &mut results);

        for (x, ours) in inputs.into_iter().zip(results) {
            let exact = f64::from(x).exp();
            let rounded = exact as f32;
            let ulp = f64::from(f32::from_bits(rounded.to_bits() + 1)) - f64::from(rounded);
            assert!((f64::from(ours) - exact).abs() <= ulp, "{x:e}: {ours:e}, {exact:e}");
        }
    }
}

#[test]
fn gates_are_near_the_exact_functions() {
    let inputs: Vec<f32> = (-4_000..4_000).map(|step| step as f32 / 100.0).collect();
    let silu = |x: f64| x / (1.0 + (-x).exp());
    let gelu = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh());
    for (function, exact) in [(Gate::Silu, &silu as &dyn Fn(f64) -> f64), (Gate::Gelu, &gelu)] {
        let mut gate = inputs.clone();

        gate_in_place(InstructionSet::best(), function, &mut gate, &vec![1.0; inputs.len()]);

        for (x, ours) in inputs.iter().zip(gate) {
            let allowed = f64::from(x.abs()) / f64::from(1 << 22);
            assert!((f64::from(ours) - exact(f64::from(*x))).abs() <= allowed, "{function:?} of {x}: {ours}");
        }
    }
}

#[test]
fn squares_that_overflow_give_a_row_of_no_numbers() {
    for set in sets() {
        let mut out = [0.0; 34];
        let mut input = [1.0; 34];
        input[3] = 3e38;

        normalise(set, &input, &[1.0; 17], 1e-5, &mut out);

        assert!(out[..17].iter().all(|value| value.is_nan()));
        assert!(out[17..].iter().all(|value| (value - 1.0).abs() < 1e-4));
    }
}

#[test]
fn rotary_tables_are_near_those_of_the_platform() {
    for (scaling, divisors) in scalings() {
        let rope = Rope { dimensions: 64, pairs: RopePairs::Interleaved, base: 500_000.0, scaling };
        let rotation = Rotation::new(&rope, divisors.as_deref());
        for position in [0, 1, 77, 4_095, 131_071] {
            let (mut angles, mut ones) = (Angles::default(), vec![0.0; 64]);
            ones.iter_mut().step_by(2).for_each(|element| *element = 1.0);

            rotation.append(position, 1, &mut angles);
            angles.rotate(InstructionSet::best(), 0, &mut ones, 64, 1, 64);

            for (pair, turned) in ones.chunks(2).enumerate() {
                let plain = f64::from(rope.base).powf(-2.0 * pair as f64 / 64.0);
                let divisor = divisors.as_ref().map_or(1.0, |divisors| f64::from(divisors[pair]));
                let (sine, cosine) = (position as f64 * stretched(plain, scaling, divisor)).sin_cos();
                assert!((f64::from(turned[0]) - cosine).abs() < 1e-7, "{scaling:?} {position} {pair}");
                assert!((f64::from(turned[1]) - sine).abs() < 1e-7, "{scaling:?} {position} {pair}");
            }
        }
    }
}

#[test]
fn attention_follows_its_rule_at_every_length_head_and_instruction_set() {
    let shapes = [(1, 1, 1), (2, 3, 3), (1, 8, 2), (2, 16, 1), (1, 17, 5), (1, 64, 4), (1, 40, 9), (2, 80, 2)];
    let spans = [(0, 1), (0, 18), (62, 3), (130, 1), (505, 10), (1_023, 2)];
    let mut scratch = Scratch::default();
    for (heads, dim, group) in shapes {
        let session = Session::new(heads, dim, group, 1_060, Extremes::None);
        for (first, count) in spans {
            session.check(first, count, &mut scratch);
        }
    }
}

#[test]
fn attention_follows_its_rule_with_extreme_numbers() {
    let mut scratch = Scratch::default();
    for (heads, dim, group) in [(1, 8, 2), (2, 16, 4), (1, 33, 3)] {
        for window in [None, Some(17), Some(90)] {
            let session = Session::new(heads, dim, group, 600, Extremes::Some).seeing(window);
            for (first, count) in [(0, 20), (500, 20)] {
                session.check(first, count, &mut scratch);
            }
        }
    }
}

#[test]
fn a_window_is_followed_at_every_length_on_every_instruction_set() {
    let shapes = [(2, 3, 3), (1, 8, 2), (2, 16, 1), (1, 64, 4), (1, 40, 9)];
    let spans = [(0, 18), (62, 3), (130, 1), (505, 10), (1_000, 40)];
    let mut scratch = Scratch::default();
    for (heads, dim, group) in shapes {
        for window in [1, 15, 16, 64, 100, 513] {
            let session = Session::new(heads, dim, group, 1_060, Extremes::None).seeing(Some(window));
            for (first, count) in spans {
                session.check(first, count, &mut scratch);
            }
        }
    }
}

#[test]
fn nothing_outside_the_window_matters() {
    let bits_of = |hidden: f32| {
        let mut session = Session::new(1, 32, 3, 600, Extremes::None).seeing(Some(70));
        // The first position that is seen from 540 is 471.
        session.keys[..471 * 32].fill(hidden);
        session.values[..471 * 32].fill(hidden);
        session.rewrite();
        bits(&session.attend(InstructionSet::best(), 0, 540, 60, &mut Scratch::default()))
    };

    assert_eq!(bits_of(1.0), bits_of(f32::NAN));
}

#[test]
fn a_window_as_long_as_the_session_changes_no_bit() {
    let (all, windowed) = (Session::new(2, 32, 3, 200, Extremes::None), Session::new(2, 32, 3, 200, Extremes::None));
    let windowed = windowed.seeing(Some(200));
    let attend = |session: &Session| bits(&session.attend(InstructionSet::best(), 1, 0, 200, &mut Scratch::default()));

    assert_eq!(attend(&all), attend(&windowed));
    assert_ne!(attend(&all), attend(&windowed.seeing(Some(199))));
}

#[test]
fn pairs_get_the_same_bits_wherever_they_lie() {
    let (dimensions, dim, heads) = (34, 40, 3);
    let rope = |pairs| Rope { dimensions: dimensions as u32, pairs, base: 10_000.0, scaling: RopeScaling::None };
    // Of the row of halves, where its elements are in the row of neighbours.
    let place = |element: usize| match element % dim {
        inside if inside >= dimensions => element,
        inside => element - inside + 2 * (inside % (dimensions / 2)) + inside / (dimensions / 2),
    };
    let neighbours = Noise(3).row(5 * heads * dim);
    let halves: Vec<f32> = (0..neighbours.len()).map(|element| neighbours[place(element)]).collect();
    for set in sets() {
        let turned = |pairs, row: &[f32]| {
            let (mut angles, mut row) = (Angles::default(), row.to_vec());
            Rotation::new(&rope(pairs), None).append(1_000, 5, &mut angles);
            angles.rotate(set, 0, &mut row, heads * dim, heads, dim);
            (row, angles.by_pair())
        };

        let (expected, tables) = turned(RopePairs::Interleaved, &neighbours);
        let (got, other_tables) = turned(RopePairs::Halves, &halves);

        let expected: Vec<f32> = (0..expected.len()).map(|element| expected[place(element)]).collect();
        assert_eq!(bits(&got), bits(&expected), "{}", set.name());
        assert_eq!(tables, other_tables);
    }
}

#[test]
fn another_order_or_rounding_is_seen() {
    let session = Session::new(1, 64, 1, 600, Extremes::None);
    let got = session.attend(InstructionSet::best(), 0, 599, 1, &mut Scratch::default());

    assert_eq!(bits(&got), bits(&session.expected_by(599, 0, 0, f32::mul_add, 512)));
    assert_ne!(bits(&got), bits(&session.expected_by(599, 0, 0, |a, b, c| a * b + c, 512)));
    assert_ne!(bits(&got), bits(&session.expected_by(599, 0, 0, f32::mul_add, 256)));
}

#[test]
fn kernels_that_break_a_rule_are_seen() {
    // Of a hundred outputs, how many must change at least: about half of what was measured. Those of functions not named may not.
    let slips: [(Slip, &[(&str, usize)]); 6] = [
        (Slip::Unfused, &[("exp", 4), ("Silu", 2), ("Gelu", 6), ("norms", 4), ("rope", 12), ("attention", 30)]),
        (Slip::InOrder, &[("norms", 7), ("norm", 45), ("add", 35), ("attention", 20)]),
        (Slip::Flushing, &[("exp", 4)]),
        (Slip::CutHalves, &[("keys", 20)]),
        (Slip::OtherScales, &[]),
        (Slip::TiesAway, &[]),
    ];
    let all = |set| [outputs(set), more_outputs(set)].concat();
    let right = all(InstructionSet::best());

    for (slip, seen_in) in slips {
        for ((name, wrong), (_, right)) in all(InstructionSet::Wrong(slip)).iter().zip(&right) {
            let changed = 100 * wrong.iter().zip(right).filter(|(wrong, right)| wrong != right).count() / right.len();
            match seen_in.iter().find(|(function, _)| name.starts_with(function)) {
                Some((_, least)) => assert!(changed >= *least, "{slip:?} {name}: {changed}"),
                None => assert_eq!(wrong, right, "{slip:?} {name}"),
            }
        }
    }
}

#[test]
fn a_prompt_cut_anywhere_gives_the_same_bits() {
    let session = Session::new(2, 32, 3, 200, Extremes::None);
    let windowed = Session::new(2, 32, 3, 200, Extremes::None).seeing(Some(70));
    let mut scratch = Scratch::default();
    for (set, session) in sets().flat_map(|set| [(set, &session), (set, &windowed)]) {
        let whole = session.attend(set, 1, 0, 200, &mut scratch);
        for chunk in [1, 7, 16, 64] {
            let starts = (0..200).step_by(chunk);
            let parts = starts.map(|start| session.attend(set, 1, start, chunk.min(200 - start), &mut scratch));
            assert_eq!(bits(&parts.collect::<Vec<_>>().concat()), bits(&whole), "{} by {chunk}", set.name());
        }
    }
}

#[test]
fn a_reserved_scratch_does_not_grow() {
    let session = Session::new(1, 24, 4, 128, Extremes::None);
    let mut scratch = Scratch::default();
    scratch.reserve(4, 24, 128);
    let before = scratch.size();

    for position in 0..128 {
        session.attend(InstructionSet::best(), 0, position, 1, &mut scratch);
    }

    assert_eq!(scratch.size(), before);
}

#[test]
fn the_bits_never_change() {
    let traces: Vec<String> = sets().map(golden).collect();

    for (trace, set) in traces.iter().zip(sets()) {
        assert_eq!(trace, &traces[0], "{}", set.name());
    }
    expect_test::expect![[r#"
        exp dd7676c2d18470fc798bd75a56bf7d79
        Silu 51a2205475058af1374d378f01536f8a
        Gelu a1e6f901d0f04b2e046e2ab585944977
        norm dbcfefbd64985799f71748b49bdd0477
        add e69384fa885d761ab5ab4ca2dedbf1b9
        rope None e5e9df4841bba7dba274f3840d443fe3
        rope Linear { factor: 4.0 } b506167d6b473693d4606ecf4d6ee278
        rope Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 } 402ae19f7104bb4f422e4d870b4eee33
        rope Tensor a3f7dcdc6210e297eb8e22830a6f72ac
        attention 2 64 4 530 3 b2ee1f4b58d6144fbbcdda0d74086aca
        attention 1 8 2 0 40 9a92d4948a7738a0d15181a66cbc7974
        attention 1 17 1 1020 9 d0419f812c57ab183b82aa10f310a62a
        rope in halves 3ab457585de7c6c0995c2362cd1eaff4
        bias af5dcbfce13ae34e5bcd5fb175c5e4dd
        norms of heads caf30728bca57ee80135495ac735a7d7
        attention 2 64 4 530 3 window 100 6e465c7b5dbf041203eefc4b965c6316
        attention 1 8 2 0 40 window 9 3346b23cfa9a07d811c3f2667b83016a
        attention 1 17 1 1020 9 window 600 f996d1b0dbdb113dbb4c6d82c6d4ea33"#]].assert_eq(&traces[0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn elementwise_functions_follow_their_rules(
        gate in prop::collection::vec(any_float(), 1..70), seed: u64, gelu: bool,
    ) {
        let up = Noise(seed).row(gate.len());
        let function = if gelu { Gate::Gelu } else { Gate::Silu };
        let gated: Vec<f32> = gate.iter().zip(&up).map(|(x, up)| gate_of(*x, function) * up).collect();
        let exps: Vec<f32> = gate.iter().map(|x| exp(*x)).collect();
        let sums: Vec<f32> = gate.iter().zip(&up).map(|(x, up)| x + up).collect();
        let normal = norm(&gate, &up, 1e-5);
        for set in sets() {
            let (mut a, mut b, mut c, mut d) = (gate.clone(), gate.clone(), gate.clone(), gate.clone());
            let mut e = gate.clone();
            normalise_in_place(set, &mut e, &up, 1e-5);
            gate_in_place(set, function, &mut a, &up);
            exponentiate(set, &mut b);
            add(set, &mut c, &up);
            normalise(set, &gate, &up, 1e-5, &mut d);
            prop_assert_eq!(bits(&a), bits(&gated), "{}", set.name());
            prop_assert_eq!(bits(&b), bits(&exps), "{}", set.name());
            prop_assert_eq!(bits(&c), bits(&sums), "{}", set.name());
            prop_assert_eq!(bits(&d), bits(&normal), "{}", set.name());
            prop_assert_eq!(bits(&e), bits(&normal), "{}", set.name());
        }
    }

    #[test]
    fn rotation_follows_its_rule(
        seed: u64, pairs in 1..20_usize, beyond in 0..5_usize, heads in 1..4_usize, gap in 0..3_usize,
        first in 0..200_000_usize, extreme in any_float(), halves: bool,
    ) {
        let (dim, stride) = (2 * pairs + beyond, heads * (2 * pairs + beyond) + gap);
        let dimensions = 2 * pairs as u32;
        let pairs = if halves { RopePairs::Halves } else { RopePairs::Interleaved };
        let rope = Rope { dimensions, pairs, base: 10_000.0, scaling: RopeScaling::None };
        let mut rows = Noise(seed).row(3 * stride);
        rows[seed as usize % (3 * stride)] = extreme;
        let expected = rotated(&rows, &rope, first, stride, heads, dim);
        let mut angles = Angles::default();
        Rotation::new(&rope, None).append(first, 3, &mut angles);
        for set in sets() {
            let mut turned = rows.clone();
            angles.rotate(set, 0, &mut turned, stride, heads, dim);
            prop_assert_eq!(bits(&turned), bits(&expected), "{}", set.name());
        }
    }
}

fn sets() -> impl Iterator<Item = InstructionSet> {
    InstructionSet::ALL.into_iter().filter(|set| set.is_available())
}

/// Any not-a-number is the same.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| if value.is_nan() { u32::MAX } else { value.to_bits() }).collect()
}

fn any_float() -> impl Strategy<Value = f32> {
    let special =
        [0.0, -0.0, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-45, 88.722_84, -103.97];
    prop_oneof![
        8 => -20.0..20.0_f32,
        2 => -110.0..95.0_f32,
        1 => any::<u32>().prop_map(f32::from_bits),
        1 => prop::sample::select(special.to_vec()),
    ]
}

/// Deterministic numbers: SplitMix64. Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
#[derive(Clone, Copy)]
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform within ±2.
    fn row(mut self, length: usize) -> Vec<f32> {
        (0..length).map(|_| (self.next() >> 40) as f32 / (1 << 22) as f32 - 2.0).collect()
    }
}

fn exp(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    let x = x.clamp(-105.0, 90.0);
    let magic = 1.5 * 2.0_f32.powi(23);
    let k = x.mul_add(std::f32::consts::LOG2_E, magic) - magic;
    let r = (-k).mul_add((std::f64::consts::LN_2 - 0.693_145_751_953_125) as f32, (-k).mul_add(0.693_145_75, x));
    let coefficients: [f32; 7] = [0.001_381_460_2, 0.008_368_716, 0.041_668_39, 0.166_665_21, 0.499_999_94, 1.0, 1.0];
    let p = coefficients.into_iter().reduce(|sum, coefficient| sum.mul_add(r, coefficient)).unwrap();
    (f64::from(p) * 2.0_f64.powi(k as i32)) as f32
}

fn gate_of(x: f32, function: Gate) -> f32 {
    let g1 = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    let slope = match function {
        Gate::Silu => x,
        Gate::Gelu => x * (x * x).mul_add((0.044_715 * g1) as f32, g1 as f32),
    };
    x / (1.0 + exp(0.0 - slope))
}

fn tree(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

fn norm(row: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let mut lanes = [0.0; 16];
    for (i, x) in row.iter().enumerate() {
        lanes[i % 16] = x.mul_add(*x, lanes[i % 16]);
    }
    let sum = tree(lanes);
    let scale = if sum.is_finite() { 1.0 / (sum / row.len() as f32 + epsilon).sqrt() } else { f32::NAN };
    row.iter().zip(weight).map(|(x, weight)| (x * scale) * weight).collect()
}

fn rotated(rows: &[f32], rope: &Rope, first: usize, stride: usize, heads: usize, dim: usize) -> Vec<f32> {
    let mut rows = rows.to_vec();
    for (position, row) in (first..).zip(rows.chunks_mut(stride)) {
        for head in row[..heads * dim].chunks_mut(dim) {
            let pairs = rope.dimensions as usize / 2;
            for pair in 0..pairs {
                let (one, other) =
                    if rope.pairs == RopePairs::Halves { (pair, pair + pairs) } else { (2 * pair, 2 * pair + 1) };
                let exponent = -2.0 * pair as f64 / f64::from(rope.dimensions);
                let frequency = crate::elementary::pow(f64::from(rope.base), exponent);
                let (sine, cosine) = crate::elementary::sin_cos(position as f64 * frequency);
                let (a, b, sine, cosine) = (head[one], head[other], sine as f32, cosine as f32);
                head[one] = a.mul_add(cosine, b * -sine);
                head[other] = b.mul_add(cosine, a * sine);
            }
        }
    }
    rows
}

fn scalings() -> [(RopeScaling, Option<Vec<f32>>); 4] {
    let llama =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8_192 };
    let divisors = (0..32).map(|pair| 1.0 + pair as f32 / 4.0).collect();
    [
        (RopeScaling::None, None),
        (RopeScaling::Linear { factor: 4.0 }, None),
        (llama, None),
        (RopeScaling::Tensor, Some(divisors)),
    ]
}

fn stretched(plain: f64, scaling: RopeScaling, divisor: f64) -> f64 {
    match scaling {
        RopeScaling::None => plain,
        RopeScaling::Linear { factor } => plain / f64::from(factor),
        RopeScaling::Tensor => plain / divisor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let wavelength = std::f64::consts::TAU / plain;
            let (short, long) = (f64::from(high_freq_factor), f64::from(low_freq_factor));
            let ramp = (f64::from(original_context) / wavelength - long) / (short - long);
            let kept = ramp.clamp(0.0, 1.0);
            plain * kept + plain / f64::from(factor) * (1.0 - kept)
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Extremes {
    None,
    /// Among the numbers are largest ones, zeros, denormals, infinities and, rarely, no numbers.
    Some,
}

/// Queries, keys and values of a session, and its cache written on each instruction set.
struct Session {
    heads: usize,
    dim: usize,
    group: usize,
    window: Option<usize>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    cache: Cache,
}

impl Session {
    fn new(heads: usize, dim: usize, group: usize, positions: usize, extremes: Extremes) -> Self {
        let row = |seed: u64, width: usize| {
            let mut row = Noise(seed).row(width * positions);
            if extremes == Extremes::Some {
                let special = [0.0, -0.0, 1e38, -1e38, 1e-45, -7e-39, 1e-7, 65_504.0, -1e6];
                for (index, element) in row.iter_mut().enumerate().filter(|(index, _)| (index * 7_919) % 13 == 0) {
                    *element = special[index / 13 % special.len()];
                }
                let late = row.len() - width;
                row[late / 2] = f32::INFINITY;
                row[late] = f32::NAN;
            }
            row
        };
        let width = heads * dim;
        let (queries, keys, values) = (row(1, width * group), row(2, width), row(3, width));
        let cache = Cache::new(2, heads, dim, positions);
        let mut session = Self { heads, dim, group, window: None, queries, keys, values, cache };
        session.rewrite();
        session
    }

    /// Writes keys and values into the cache again.
    fn rewrite(&mut self) {
        let rows = |elements| Rows { elements, stride: self.heads * self.dim };
        let (keys, values) = (rows(&self.keys), rows(&self.values));
        self.cache.write((&Pool::alone(), InstructionSet::best()), 1, 0, keys, values);
    }

    /// The same with a window.
    fn seeing(self, window: Option<usize>) -> Self {
        Self { window, ..self }
    }

    fn attend(&self, set: InstructionSet, head: usize, first: usize, count: usize, scratch: &mut Scratch) -> Vec<f32> {
        let stride = self.heads * self.group * self.dim;
        let begin = first * stride + head * self.group * self.dim;
        let queries = Rows { elements: &self.queries[begin..(first + count) * stride], stride };
        let Self { group, window, .. } = *self;
        let task = Task { cache: self.cache.block(1), kv_head: head, group, window, first, queries };
        attend(set, &task, scratch).to_vec()
    }

    fn check(&self, first: usize, count: usize, scratch: &mut Scratch) {
        for head in 0..self.heads {
            let expected: Vec<f32> = (first..first + count)
                .flat_map(|position| (0..self.group).map(move |member| (position, member)))
                .flat_map(|(position, member)| self.expected(position, head, member))
                .collect();
            for set in sets() {
                let got = self.attend(set, head, first, count, scratch);
                let name = format!("{} dim {} group {} {first}+{count}", set.name(), self.dim, self.group);
                assert_eq!(bits(&got), bits(&expected), "{name}");
            }
        }
    }

    fn expected(&self, position: usize, head: usize, member: usize) -> Vec<f32> {
        self.expected_by(position, head, member, f32::mul_add, 512)
    }

    /// - `fused`: a × b + c; `block`: positions over which sums run
    fn expected_by(
        &self,
        position: usize,
        head: usize,
        member: usize,
        fused: fn(f32, f32, f32) -> f32,
        block: usize,
    ) -> Vec<f32> {
        let (dim, width) = (self.dim, self.heads * self.dim);
        let half = |value: f32| f16::from_f32(value.clamp(-65_504.0, 65_504.0)).to_f32();
        let element = |rows: &[f32], p: usize, d: usize| half(rows[p * width + head * dim + d]);
        let query = &self.queries[position * width * self.group + (head * self.group + member) * dim..][..dim];

        let score = |p: usize| {
            let sum = (0..dim).fold(0.0_f32, |sum, d| fused(query[d], element(&self.keys, p, d), sum));
            sum * (1.0 / (dim as f32).sqrt())
        };
        let start = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        // What is outside the window is no number, should anything look at it.
        let scores: Vec<f32> = (0..=position).map(|p| if p < start { f32::NAN } else { score(p) }).collect();
        let largest = scores[start..].iter().copied().filter(|score| !score.is_nan()).fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f32> = scores.iter().map(|score| exp(score - largest)).collect();
        let mut denominator = 0.0;
        let mut totals = vec![0.0; dim];
        for (index, weights) in weights.chunks(block).enumerate().skip(start / block) {
            let seen = weights.iter().enumerate().skip(start.saturating_sub(index * block));
            let mut lanes = [0.0; 16];
            seen.clone().for_each(|(p, weight)| lanes[p % 16] += weight);
            denominator += tree(lanes);
            for (d, total) in totals.iter_mut().enumerate() {
                let weighted = seen.clone();
                *total += weighted
                    .fold(0.0_f32, |sum, (p, weight)| fused(*weight, element(&self.values, index * block + p, d), sum));
            }
        }
        totals.iter().map(|total| total * (1.0 / denominator)).collect()
    }
}

/// The hashes of what each function makes of given numbers.
fn golden(set: InstructionSet) -> String {
    let hash = |bits: &[u32]| {
        let bytes: Vec<u8> = bits.iter().copied().flat_map(u32::to_le_bytes).collect();
        blake3::hash(&bytes).to_hex()[..32].to_owned()
    };
    let lines: Vec<String> = outputs(set).iter().map(|(name, bits)| format!("{name} {}", hash(bits))).collect();
    lines.join("\n")
}

/// What each function makes of given numbers, as bits.
fn outputs(set: InstructionSet) -> Vec<(String, Vec<u32>)> {
    let mut outputs = Vec::new();
    let mut note = |name: String, values: &[f32]| outputs.push((name, bits(values)));
    let (row, other) = (Noise(1).row(1_003), Noise(2).row(1_003));
    let mut wide: Vec<f32> = row.iter().map(|x| x * 55.0).collect();
    exponentiate(set, &mut wide);
    note("exp".to_owned(), &wide);
    for function in [Gate::Silu, Gate::Gelu] {
        let mut gate: Vec<f32> = row.iter().map(|x| x * 4.0).collect();
        gate_in_place(set, function, &mut gate, &other);
        note(format!("{function:?}"), &gate);
    }
    let mut out = vec![0.0; 1_003];
    normalise(set, &row, &other, 1e-5, &mut out);
    note("norm".to_owned(), &out);
    add(set, &mut out, &other);
    note("add".to_owned(), &out);
    for (scaling, divisors) in scalings() {
        let rope = Rope { dimensions: 64, pairs: RopePairs::Interleaved, base: 500_000.0, scaling };
        let (mut angles, mut rows) = (Angles::default(), Noise(3).row(5 * 128));
        Rotation::new(&rope, divisors.as_deref()).append(1_000, 5, &mut angles);
        angles.rotate(set, 0, &mut rows, 128, 2, 64);
        note(format!("rope {scaling:?}"), &rows);
    }
    for (heads, dim, group, first, count) in [(2, 64, 4, 530, 3), (1, 8, 2, 0, 40), (1, 17, 1, 1_020, 9)] {
        let session = Session::new(heads, dim, group, first + count, Extremes::None);
        let out = session.attend(set, heads - 1, first, count, &mut Scratch::default());
        note(format!("attention {heads} {dim} {group} {first} {count}"), &out);
    }
    for (name, values) in younger_outputs(set) {
        note(name, &values);
    }
    outputs
}

/// The same of what came later: halves, biases, norms of heads, windows.
fn younger_outputs(set: InstructionSet) -> Vec<(String, Vec<f32>)> {
    let mut outputs = Vec::new();
    let rope = Rope {
        dimensions: 64,
        pairs: RopePairs::Halves,
        base: 1_000_000.0,
        scaling: RopeScaling::Linear { factor: 4.0 },
    };
    let (mut angles, mut rows) = (Angles::default(), Noise(3).row(5 * 160));
    Rotation::new(&rope, None).append(1_000, 5, &mut angles);
    angles.rotate(set, 0, &mut rows, 160, 2, 80);
    outputs.push(("rope in halves".to_owned(), rows));
    let mut rows = Noise(6).row(1_003);
    add(set, &mut rows, &Noise(7).row(1_003));
    outputs.push(("bias".to_owned(), rows));
    let mut rows = Noise(8).row(100 * 40);
    normalise_in_place(set, &mut rows, &Noise(9).row(40), 1e-6);
    outputs.push(("norms of heads".to_owned(), rows));
    for (heads, dim, group, first, count, window) in
        [(2, 64, 4, 530, 3, 100), (1, 8, 2, 0, 40, 9), (1, 17, 1, 1_020, 9, 600)]
    {
        let session = Session::new(heads, dim, group, first + count, Extremes::None).seeing(Some(window));
        let out = session.attend(set, heads - 1, first, count, &mut Scratch::default());
        outputs.push((format!("attention {heads} {dim} {group} {first} {count} window {window}"), out));
    }
    outputs
}

/// The same of functions of which one row is too little to see a rounding, and of what is not frozen by itself.
fn more_outputs(set: InstructionSet) -> Vec<(String, Vec<u32>)> {
    let rows = Noise(4).row(100 * 64);
    let mut normal = vec![0.0; rows.len()];
    normalise(set, &rows, &Noise(5).row(64), 1e-5, &mut normal);
    let mut cache = Cache::new(1, 1, 64, 64);
    let rows = Rows { elements: &rows[..64 * 64], stride: 64 };
    cache.write((&Pool::alone(), set), 0, 0, rows, rows);
    let keys = cache.block(0).keys(0, 0).as_flattened().as_flattened().iter().copied().map(u32::from);
    vec![("norms".to_owned(), bits(&normal)), ("keys".to_owned(), keys.collect())]
}
