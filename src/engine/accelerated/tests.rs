//! The arithmetic of devices, on candle's CPU device: against canonical arithmetic, against f64, and against itself in pieces.

use crate::amounts::Bytes;
use crate::amounts::Position;
use crate::engine::device::Device;
use crate::engine::error::OpenError;
use crate::engine::error::StepError;
use crate::engine::exact;
use crate::engine::payload::from_payload;
use crate::engine::payload::to_payload;
use crate::engine::pool::Pool;
use crate::engine::stage::BatchStep;
use crate::engine::stage::SessionState;
use crate::engine::stage::StageInput;
use crate::engine::stage::StageModel;
use crate::engine::stage::StageOutput;
use crate::engine::stage::WantLogits;
use crate::engine::tests::PROMPT;
use crate::engine::tests::RandomWeights;
use crate::engine::tests::families;
use crate::engine::tests::odd;
use crate::engine::tests::range;
use crate::engine::tests::relative_difference;
use crate::engine::tests::small;
use crate::engine::tests::wide;
use crate::engine::workspace::Workspace;
use crate::ids::Token;
use crate::shape::ModelShape;
use crate::shape::Rope;
use crate::shape::RopeScaling;
use crate::shape::WeightFormat;
use crate::shape::WireDtype;
use crate::units::UnitRange;

/// How far logits of quantised weights may be from those of another order of computing, relative to the largest: inputs are rounded to
/// 8 bits, and where sums differ in the last bit some are rounded the other way (3 % was measured in the canonical tests).
const QUANTISED: f32 = 5e-2;

/// The same for f32, where only sums differ, and now and then a key or value that this makes the neighbouring half (1.4e-4 was
/// measured).
const NEIGHBOURS: f32 = 5e-4;

/// The same for products of halves, whose inputs are rounded to 11 bits, and of bfloats, to 8.
const HALVES: f32 = 4e-3;
const BFLOATS: f32 = 3e-2;

#[test]
fn logits_agree_with_canonical_arithmetic_in_every_format() {
    for &format in WeightFormat::ALL {
        for tied in [false, true] {
            let shape = ModelShape { tied, ..wide() };
            let weights = RandomWeights::new(&shape, format, 7);

            let ours = Split::new(&shape, &weights, &[]).logits(&PROMPT);

            let canonical = logits_of(&Device::CPU, &shape, &weights);
            let difference = relative_difference(&ours, &canonical);
            assert!(difference <= tolerance(format), "{format}, tied {tied}: {difference}");
        }
    }
}

#[test]
fn logits_agree_with_f64_for_every_kind_of_heads_and_rotation() {
    let scaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 16 };
    let rope = |dimensions, scaling| Rope { dimensions, scaling, ..small().rope };
    for (what, shape) in [
        ("grouped heads", small()),
        ("odd widths", odd()),
        ("wide", wide()),
        ("a head of keys for each query", ModelShape { kv_heads: 4, ..small() }),
        ("one head of keys for all", ModelShape { kv_heads: 1, ..small() }),
        ("a part of each head rotated", ModelShape { rope: rope(4, RopeScaling::None), ..small() }),
        ("linear scaling", ModelShape { rope: rope(8, RopeScaling::Linear { factor: 4.0 }), ..small() }),
        ("scaling of Llama 3", ModelShape { rope: rope(8, scaling), ..small() }),
        ("one block", ModelShape { blocks: 1, ..small() }),
    ] {
        let weights = RandomWeights::new(&shape, WeightFormat::F32, 11);

        let ours = Split::new(&shape, &weights, &[]).logits(&PROMPT);

        let expected = exact::logits(&shape, &weights.exact(), &PROMPT);
        let difference = relative_difference(&ours, &expected[PROMPT.len() - 1]);
        assert!(difference <= NEIGHBOURS, "{what}: {difference}");
    }
}

#[test]
fn every_family_agrees_with_f64_whole_and_in_chunks() {
    for (name, shape) in families() {
        let weights = RandomWeights::new(&shape, WeightFormat::F32, 11);
        let expected = exact::logits(&shape, &weights.exact(), &PROMPT);
        let expected = &expected[PROMPT.len() - 1];

        for chunk in [1, 3, PROMPT.len()] {
            let mut model = Split::new(&shape, &weights, &[]);
            let logits = PROMPT.chunks(chunk).map(|tokens| model.logits(tokens)).last().unwrap();
            let difference = relative_difference(&logits, expected);
            assert!(difference <= NEIGHBOURS, "{name} in chunks of {chunk}: {difference}");
        }
    }
}

#[test]
fn rope_divisors_of_the_model_equal_the_scaling_they_stand_for() {
    let mut linear = small();
    linear.rope.scaling = RopeScaling::Linear { factor: 4.0 };
    let mut divided = small();
    divided.rope.scaling = RopeScaling::Tensor;
    let mut weights = RandomWeights::new(&linear, WeightFormat::F32, 3);
    weights.insert("rope_freqs.weight", &[linear.rope.dimensions / 2], vec![4.0; 4], WeightFormat::F32);

    let ours = Split::new(&divided, &weights, &[]).logits(&PROMPT);

    let expected = Split::new(&linear, &weights, &[]).logits(&PROMPT);
    assert!(relative_difference(&ours, &expected) <= NEIGHBOURS);
    let plain = Split::new(&small(), &weights, &[]).logits(&PROMPT);
    assert!(relative_difference(&ours, &plain) > 4.0 * NEIGHBOURS, "the divisors change something");
}

#[test]
fn every_cut_into_two_and_three_agrees_with_the_unsplit_model() {
    for format in [WeightFormat::F32, WeightFormat::Q8_0] {
        let shape = small();
        let weights = RandomWeights::new(&shape, format, 5);
        let expected = Split::new(&shape, &weights, &[]).logits(&PROMPT);
        let units = shape.units();
        let twos = (1..units).map(|cut| vec![cut]);
        let threes = (1..units).flat_map(|first| (first + 1..units).map(move |second| vec![first, second]));

        for cuts in twos.chain(threes) {
            let difference = relative_difference(&Split::new(&shape, &weights, &cuts).logits(&PROMPT), &expected);
            assert!(difference <= NEIGHBOURS, "{format} cut at {cuts:?}: {difference}");
        }
    }
}

#[test]
fn hidden_states_of_a_canonical_stage_and_of_a_device_follow_each_other() {
    let shape = small();
    let weights = RandomWeights::new(&shape, WeightFormat::F32, 5);
    let expected = logits_of(&Device::CPU, &shape, &weights);

    for canonical in [0, 1, 2] {
        let mut split = Split::new(&shape, &weights, &[2, 4]);
        let stage = &mut split.stages[canonical];
        let only = StageModel::load(shape, stage.0.range(), &weights, &mut |_| {}).unwrap();
        *stage = opened(only);

        let difference = relative_difference(&split.logits(&PROMPT), &expected);

        assert!(difference <= NEIGHBOURS, "stage {canonical}: {difference}");
    }
}

#[test]
fn a_part_of_a_wider_range_computes_the_same() {
    let shape = small();
    let weights = RandomWeights::new(&shape, WeightFormat::F32, 5);
    let hidden = wave(3 * shape.width);
    let through = |loaded: UnitRange| {
        let stage = load(&shape, loaded, &weights);
        let mut session = stage.open(range(2, 4), Position(8), &[]).unwrap();
        let input = StageInput::Hidden(&hidden);
        values(stage.forward(&mut session, input, Position(0), WantLogits::None).unwrap())
    };

    let expected = through(range(2, 4));

    for wider in [range(0, 6), range(1, 5)] {
        assert!(relative_difference(&through(wider), &expected) <= NEIGHBOURS);
    }
}

#[test]
fn chunks_of_any_size_agree_with_the_whole_prompt() {
    for format in [WeightFormat::F32, WeightFormat::F16, WeightFormat::Q8_0, WeightFormat::Q4K] {
        let shape = wide();
        let weights = RandomWeights::new(&shape, format, 9);
        let expected = Split::new(&shape, &weights, &[]).logits(&PROMPT);

        for chunk in [1, 2, 3, 7] {
            let mut model = Split::new(&shape, &weights, &[]);
            let logits = PROMPT.chunks(chunk).map(|tokens| model.logits(tokens)).last().unwrap();
            let difference = relative_difference(&logits, &expected);
            assert!(difference <= tolerance(format), "{format} in chunks of {chunk}: {difference}");
        }
    }
}

#[test]
fn a_rewound_session_forgets_what_was_rewound() {
    let shape = small();
    let weights = RandomWeights::new(&shape, WeightFormat::F32, 1);
    let mut model = Split::new(&shape, &weights, &[3]);
    let expected = Split::new(&shape, &weights, &[3]).logits(&PROMPT);
    model.logits(&PROMPT[..6]);
    model.logits(&[5, 6, 70, 71, 72, 73, 74]);

    model.rewind(6);

    assert!(relative_difference(&model.logits(&PROMPT[6..]), &expected) <= NEIGHBOURS);
    model.rewind(0);
    assert!(relative_difference(&model.logits(&PROMPT), &expected) <= NEIGHBOURS);
}

#[test]
fn every_session_of_a_pass_gets_what_it_gets_alone() {
    let weights = RandomWeights::new(&small(), WeightFormat::F32, 5);
    let stage = load(&small(), range(0, 6), &weights);
    let prompts: Vec<Vec<Token>> = (0..5).map(prompt).collect();
    let alone: Vec<[Vec<f32>; 2]> = prompts
        .iter()
        .map(|prompt| {
            let mut session = open(&stage);
            [&prompt[..], &[Token(9)]].map(|fed| values(forward(&stage, &mut session, fed).unwrap()))
        })
        .collect();
    let mut sessions: Vec<SessionState> = prompts.iter().map(|_| open(&stage)).collect();
    let mut workspace = Workspace::new(Pool::alone());

    // Two read their prompts; then they write while the others read; then these write.
    for (fed, group) in [(0, 0..2), (1, 0..5), (2, 2..5)] {
        let writing = [Token(9)];
        let now: Vec<usize> = group.collect();
        let turn = |session: usize| if fed == 0 || (fed == 1 && session >= 2) { 0 } else { 1 };
        let mut steps: Vec<BatchStep<'_>> = sessions
            .iter_mut()
            .enumerate()
            .filter(|(session, _)| now.contains(session))
            .map(|(index, session)| {
                let first = session.length();
                let tokens = if turn(index) == 0 { &prompts[index][..] } else { &writing[..] };
                BatchStep { session, input: StageInput::Tokens(tokens), first, want: WantLogits::LastRow }
            })
            .collect();
        let outcomes = stage.forward_batch(&mut steps, &mut workspace);

        for (at, session) in now.iter().enumerate() {
            let got = values(outcomes.of(at).unwrap().to_output());
            let difference = relative_difference(&got, &alone[*session][turn(*session)]);
            assert!(difference <= NEIGHBOURS, "session {session} in pass {fed}: {difference}");
        }
    }
}

#[test]
fn interleaved_sessions_agree_with_each_alone() {
    let shape = small();
    let weights = RandomWeights::new(&shape, WeightFormat::F32, 2);
    let stage = load(&shape, range(0, shape.units()), &weights);
    let prompts = [prompt(1), prompt(1).into_iter().rev().collect::<Vec<_>>()];
    let alone = prompts.each_ref().map(|prompt| values(forward(&stage, &mut open(&stage), prompt).unwrap()));

    let mut sessions = [open(&stage), open(&stage)];
    let mut last = [Vec::new(), Vec::new()];
    for position in 0..prompts[0].len() {
        for session in 0..2 {
            let fed = &prompts[session][position..=position];
            last[session] = values(forward(&stage, &mut sessions[session], fed).unwrap());
        }
    }

    assert!(relative_difference(&last[0], &alone[0]) <= NEIGHBOURS);
    assert!(relative_difference(&last[1], &alone[1]) <= NEIGHBOURS);
    assert!(relative_difference(&alone[0], &alone[1]) > 4.0 * NEIGHBOURS, "the prompts differ");
}

#[test]
fn a_rounded_boundary_is_rounded_inside_a_stage_too() {
    let shape = small();
    let weights = RandomWeights::new(&shape, WeightFormat::F32, 5);
    let whole = load(&shape, range(0, 6), &weights);
    let run = |rounding: &[(u16, WireDtype)]| {
        let mut session = whole.open(range(0, 6), Position(32), rounding).unwrap();
        values(forward(&whole, &mut session, &PROMPT.map(Token)).unwrap())
    };

    let rounded = run(&[(3, WireDtype::F16)]);

    let mut split = Split::new(&shape, &weights, &[3]);
    split.dtype = WireDtype::F16;
    assert!(relative_difference(&rounded, &split.logits(&PROMPT)) <= 1e-6);
    let plain = run(&[(3, WireDtype::F32)]);
    assert!(relative_difference(&rounded, &plain) > 1e-5, "rounding changes something");
    assert!(relative_difference(&run(&[(5, WireDtype::F16)]), &plain) > 1e-5, "before the head as well");
}

#[test]
fn rounding_one_session_leaves_the_others_of_its_pass_alone() {
    let weights = RandomWeights::new(&small(), WeightFormat::F32, 5);
    let stage = load(&small(), range(0, 6), &weights);
    let beside = |rounding: &[(u16, WireDtype)]| {
        let mut sessions = [open(&stage), stage.open(range(0, 6), Position(32), rounding).unwrap()];
        let tokens = PROMPT.map(Token);
        let mut steps = sessions.each_mut().map(|session| BatchStep {
            session,
            input: StageInput::Tokens(&tokens),
            first: Position(0),
            want: WantLogits::LastRow,
        });
        let mut workspace = Workspace::new(Pool::alone());
        let outcomes = stage.forward_batch(&mut steps, &mut workspace);
        [0, 1].map(|index| values(outcomes.of(index).unwrap().to_output()))
    };

    let [stranger, rounded] = beside(&[(3, WireDtype::F16)]);

    let [alone, plain] = beside(&[]);
    assert_eq!(stranger, alone);
    assert_ne!(rounded, plain);
}

#[test]
fn a_step_that_fails_fails_alone_and_leaves_its_session_as_it_was() {
    // Gates that a positive state opens so wide that the product overflows, and a negative one closes.
    let mut weights = RandomWeights::new(&small(), WeightFormat::F32, 5);
    for (part, columns, rows, value) in
        [("attn_output", 32, 32, 0.0), ("ffn_gate", 32, 96, 1e36), ("ffn_up", 32, 96, 1e3), ("ffn_down", 96, 32, 1.0)]
    {
        let values = vec![value; (columns * rows) as usize];
        weights.insert(&format!("blk.1.{part}.weight"), &[columns, rows], values, WeightFormat::F32);
    }
    let stage = load(&small(), range(2, 4), &weights);
    let row = |value: f32| vec![value; 32];
    let inputs = [row(-0.5), row(f32::NAN), row(0.5), vec![0.5; 33], Vec::new(), vec![0.5; 32 * 65], row(-0.25)];
    let mut sessions: Vec<SessionState> = inputs.iter().map(|_| open(&stage)).collect();
    let mut steps: Vec<BatchStep<'_>> = sessions
        .iter_mut()
        .zip(&inputs)
        .map(|(session, input)| BatchStep {
            session,
            input: StageInput::Hidden(input),
            first: Position(0),
            want: WantLogits::None,
        })
        .collect();
    let mut workspace = Workspace::new(Pool::alone());

    let outcomes = stage.forward_batch(&mut steps, &mut workspace);

    let errors: Vec<Option<StepError>> = (0..outcomes.len()).map(|index| outcomes.of(index).err()).collect();
    let expected = [
        None,
        Some(StepError::NonFiniteInput),
        Some(StepError::NonFinite),
        Some(StepError::WrongLength { expected: 64, got: 33 }),
        Some(StepError::Empty),
        Some(StepError::Full { capacity: Position(64), wanted: Position(65) }),
        None,
    ];
    assert_eq!(errors, expected);
    let good = values(outcomes.of(6).unwrap().to_output());
    let lengths: Vec<u32> = sessions.iter().map(|session| session.length().0).collect();
    assert_eq!(lengths, [1, 0, 0, 0, 0, 0, 1]);
    // What was not finite is written over.
    let again = stage.forward(&mut sessions[2], StageInput::Hidden(&row(-0.25)), Position(0), WantLogits::None);
    assert!(relative_difference(&values(again.unwrap()), &good) <= NEIGHBOURS);
}

#[test]
fn logits_that_are_not_finite_fail_the_step() {
    let mut weights = RandomWeights::new(&small(), WeightFormat::F32, 5);
    weights.insert("output.weight", &[32, 100], vec![f32::MAX; 3_200], WeightFormat::F32);
    let stage = load(&small(), range(5, 6), &weights);
    let mut session = open(&stage);
    let hidden = [1.0; 32];
    let mut step = |want| stage.forward(&mut session, StageInput::Hidden(&hidden), Position(0), want);

    assert_eq!(step(WantLogits::LastRow), Err(StepError::NonFinite));
    assert_eq!(step(WantLogits::None), Ok(StageOutput::Nothing));
}

#[test]
fn memory_is_that_of_the_estimator_at_most() {
    for tied in [false, true] {
        let shape = ModelShape { tied, ..small() };
        let weights = RandomWeights::new(&shape, WeightFormat::F32, 5);
        let stage = load(&shape, range(0, 6), &weights);
        let capacity = Position(300);
        let mut session = stage.open(range(0, 6), capacity, &[]).unwrap();
        assert_eq!(session.bytes(), Bytes::ZERO);

        forward(&stage, &mut session, &[Token(7); 10]).unwrap();
        assert_eq!(session.bytes(), shape.kv_bytes(range(0, 6), Position(256)));
        forward(&stage, &mut session, &[Token(7); 290]).unwrap();

        assert_eq!(session.bytes(), shape.kv_bytes(range(0, 6), capacity));
        let table = Bytes(if tied { 4 * 32 * 100 } else { 0 });
        // The processor's last group of 16 rows is filled up.
        let filled = Bytes(4 * 32 * 12);
        assert_eq!(stage.bytes(), weights.bytes().plus(table).plus(filled), "a tied table is there twice");
        let beyond = stage.open(range(0, 6), Position(513), &[]).unwrap_err();
        assert_eq!(beyond, OpenError::BadCapacity { got: Position(513), context: Position(512) });
        assert_eq!(session.cache_hashes(), None);
    }
}

fn tolerance(format: WeightFormat) -> f32 {
    match format {
        WeightFormat::F32 => NEIGHBOURS,
        WeightFormat::F16 => HALVES,
        WeightFormat::BF16 => BFLOATS,
        _ => QUANTISED,
    }
}

fn load(shape: &ModelShape, range: UnitRange, weights: &RandomWeights) -> StageModel {
    StageModel::load_on(&Device::like_an_accelerator(), &Pool::alone(), *shape, range, weights, &mut |_| {}).unwrap()
}

fn open(stage: &StageModel) -> SessionState {
    stage.open(stage.range(), Position(64), &[]).unwrap()
}

fn opened(stage: StageModel) -> (StageModel, SessionState) {
    let session = open(&stage);
    (stage, session)
}

fn forward(stage: &StageModel, session: &mut SessionState, tokens: &[Token]) -> Result<StageOutput, StepError> {
    let first = session.length();
    stage.forward(session, StageInput::Tokens(tokens), first, WantLogits::LastRow)
}

/// The logits after the prompt, of the whole model.
fn logits_of(device: &Device, shape: &ModelShape, weights: &RandomWeights) -> Vec<f32> {
    let stage =
        StageModel::load_on(device, &Pool::alone(), *shape, range(0, shape.units()), weights, &mut |_| {}).unwrap();
    values(forward(&stage, &mut open(&stage), &PROMPT.map(Token)).unwrap())
}

fn values(output: StageOutput) -> Vec<f32> {
    match output {
        StageOutput::Hidden(values) | StageOutput::Logits(values) => values,
        StageOutput::Nothing => panic!("something was wanted"),
    }
}

fn prompt(seed: u32) -> Vec<Token> {
    (0..3 + 4 * seed).map(|index| Token((seed * 31 + index * index * 7) % 100)).collect()
}

fn wave(elements: u32) -> Vec<f32> {
    (0..elements).map(|index| (index as f32 * 0.7).sin()).collect()
}

/// A model cut into stages on a device, with one session.
struct Split {
    stages: Vec<(StageModel, SessionState)>,
    dtype: WireDtype,
}

impl Split {
    fn new(shape: &ModelShape, weights: &RandomWeights, cuts: &[u16]) -> Self {
        let starts = [0].iter().chain(cuts);
        let ends = cuts.iter().copied().chain([shape.units()]);
        let stages = starts.zip(ends).map(|(start, end)| opened(load(shape, range(*start, end), weights)));
        Self { stages: stages.collect(), dtype: WireDtype::F32 }
    }

    fn rewind(&mut self, length: u32) {
        self.stages.iter_mut().for_each(|(_, session)| session.rewind(Position(length)));
    }

    fn logits(&mut self, tokens: &[u32]) -> Vec<f32> {
        let tokens: Vec<Token> = tokens.iter().copied().map(Token).collect();
        let mut hidden = Vec::new();
        for (index, (stage, session)) in self.stages.iter_mut().enumerate() {
            let input = if index == 0 { StageInput::Tokens(&tokens) } else { StageInput::Hidden(&hidden) };
            let first = session.length();
            let output = values(stage.forward(session, input, first, WantLogits::LastRow).unwrap());
            hidden = from_payload(&to_payload(&output, self.dtype), self.dtype).unwrap();
            if stage.range().contains(stage.shape().head_unit()) {
                return output;
            }
        }
        panic!("the last stage ends the model");
    }
}
