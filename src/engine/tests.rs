//! The engine against candle-transformers, against itself cut in pieces, and against broken input.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::num::NonZeroUsize;

use candle_core::Device;
use candle_core::Tensor;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file;
use candle_transformers::models::llama;
use candle_transformers::models::quantized_llama;

use crate::amounts::Bytes;
use crate::amounts::Position;
use crate::engine::block::multiply;
use crate::engine::canonical::simd::InstructionSet;
use crate::engine::error::LoadError;
use crate::engine::error::OpenError;
use crate::engine::error::StepError;
use crate::engine::exact;
use crate::engine::matrix::Matrix;
use crate::engine::matrix::Rounded;
use crate::engine::pool::Pool;
use crate::engine::source::TensorData;
use crate::engine::source::TensorSource;
use crate::engine::stage::BatchStep;
use crate::engine::stage::SessionState;
use crate::engine::stage::StageInput;
use crate::engine::stage::StageModel;
use crate::engine::stage::StageOutput;
use crate::engine::stage::WantLogits;
use crate::engine::workspace::StageView;
use crate::engine::workspace::Workspace;
use crate::ids::Token;
use crate::shape::Architecture;
use crate::shape::ModelShape;
use crate::shape::Rope;
use crate::shape::RopePairs;
use crate::shape::RopeScaling;
use crate::shape::WeightFormat;
use crate::shape::WireDtype;
use crate::units::UnitRange;

pub(super) const PROMPT: [u32; 11] = [3, 17, 90, 4, 4, 61, 8, 25, 99, 0, 42];

/// How far logits may be from candle's, relative to the largest: keys and values are halves here, with steps of 2⁻¹¹, and f32 there.
/// [`exact`], which has halves too, is the sharp comparison.
const HALVES: f32 = 4e-3;

/// How far logits may be from those of f64: the rounding of f32, and now and then a key that it makes the neighbouring half.
const ROUNDING: f32 = 1e-4;

#[test]
fn logits_agree_with_candle_transformers_in_every_format() {
    // Relative to the largest logit. Formats of whole numbers round the input to 8 bits; sums in another order make some of
    // these round the other way (and on some machines candle rounds in other blocks), after which the results
    // differ by the noise of the rounding itself, of which 3 % was measured.
    for (format, tolerance) in [
        (WeightFormat::F32, HALVES),
        (WeightFormat::F16, HALVES),
        (WeightFormat::BF16, HALVES),
        (WeightFormat::Q8_0, 5e-2),
        (WeightFormat::Q4_0, 5e-2),
        (WeightFormat::Q4_1, 5e-2),
        (WeightFormat::Q5_0, 5e-2),
        (WeightFormat::Q5_1, 5e-2),
        (WeightFormat::Q4K, 5e-2),
        (WeightFormat::Q5K, 5e-2),
        (WeightFormat::Q6K, 5e-2),
    ] {
        for tied in [false, true] {
            let shape = ModelShape { tied, ..wide() };
            let weights = RandomWeights::new(&shape, format, 7);

            let ours = Unsplit::new(&shape, &weights).logits(&PROMPT);

            let difference = relative_difference(&ours, &weights.reference_logits(&shape, &PROMPT));
            assert!(difference <= tolerance, "{format}, tied {tied}: {difference}");
        }
    }
}

#[test]
fn a_product_is_that_of_the_stored_values() {
    let (rows, inputs) = (37, 5);
    for format in WeightFormat::ALL {
        for columns in
            [256_u32, 512, 96].into_iter().filter(|columns| u64::from(*columns) % format.block_elements() == 0)
        {
            let mut weights = RandomWeights { tensors: BTreeMap::new() };
            let mut random = Random(u64::from(columns));
            let values = (0..rows * columns).map(|_| random.next()).collect();
            weights.insert("matrix", &[columns, rows], values, *format);
            let (size, bytes) = ([rows as usize, columns as usize], &weights.tensors["matrix"].bytes);
            let matrix = Matrix::new(&Pool::alone(), *format, size, bytes, &|_| ());
            let input: Vec<f32> = (0..inputs * columns).map(|_| random.next()).collect();

            let output = product(&matrix, &input);

            let mut row = vec![0.0; columns as usize];
            for (index, input) in input.chunks_exact(columns as usize).enumerate() {
                let alone = product(&matrix, input);
                assert_eq!(bits(&output[index * rows as usize..][..rows as usize]), bits(&alone), "{format}");
                for (number, product) in alone.iter().enumerate() {
                    matrix.row(number, &mut row);
                    let exact: f64 = row.iter().zip(input).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    // The input is rounded to steps of 1/127: at most half a step each, in both directions alike.
                    let bound = 0.5 / 127.0 * row.iter().map(|weight| f64::from(weight.abs())).sum::<f64>() / 2.0;
                    assert!((f64::from(*product) - exact).abs() < bound, "{format}: {product} for {exact} ± {bound}");
                }
            }
        }
    }
}

#[test]
fn odd_widths_agree_with_candle_transformers() {
    for format in [WeightFormat::F32, WeightFormat::F16] {
        let shape = odd();
        let weights = RandomWeights::new(&shape, format, 11);

        let ours = Unsplit::new(&shape, &weights).logits(&PROMPT);

        let difference = relative_difference(&ours, &weights.reference_logits(&shape, &PROMPT));
        assert!(difference <= HALVES, "{format}: {difference}");
        let exact = exact::logits(&shape, &weights.exact(), &PROMPT);
        let difference = relative_difference(&ours, &exact[PROMPT.len() - 1]);
        assert!(difference <= ROUNDING, "{format}: {difference} from f64");
    }
}

#[test]
fn every_family_agrees_with_f64() {
    for (name, shape) in families() {
        let weights = RandomWeights::new(&shape, WeightFormat::F32, 11);

        let ours = Unsplit::new(&shape, &weights).logits(&PROMPT);

        let exact = exact::logits(&shape, &weights.exact(), &PROMPT);
        let difference = relative_difference(&ours, &exact[PROMPT.len() - 1]);
        assert!(difference <= ROUNDING, "{name}: {difference}");
    }
}

#[test]
fn what_a_family_computes_beside_llama_is_seen() {
    for (name, shape) in families() {
        let weights = RandomWeights::new(&shape, WeightFormat::F32, 11);
        let plain = ModelShape { architecture: Architecture::Llama, window: None, ..shape };
        let interleaved = ModelShape { rope: Rope { pairs: RopePairs::Interleaved, ..shape.rope }, ..plain };

        let ours = Unsplit::new(&shape, &weights).logits(&PROMPT);

        if shape != plain {
            let without = Unsplit::new(&plain, &weights).logits(&PROMPT);
            assert!(relative_difference(&ours, &without) > 100.0 * ROUNDING, "{name}");
        }
        let turned = Unsplit::new(&interleaved, &weights).logits(&PROMPT);
        assert!(relative_difference(&ours, &turned) > 100.0 * ROUNDING, "{name}");
    }
}

#[test]
fn every_cut_and_chunk_of_every_family_equals_the_unsplit_model_bit_for_bit() {
    for (name, shape) in families() {
        for format in [WeightFormat::F32, WeightFormat::Q8_0] {
            let weights = RandomWeights::new(&shape, format, 5);
            let expected = Unsplit::new(&shape, &weights).logits(&PROMPT);

            for cut in 1..shape.units() {
                let logits = Split::new(&shape, &weights, &[cut]).logits(&PROMPT);
                assert_eq!(bits(&logits), bits(&expected), "{name}, {format} cut at {cut}");
            }
            for chunk in [1, 2, 3, 7] {
                let mut model = Unsplit::new(&shape, &weights);
                let logits = PROMPT.chunks(chunk).map(|tokens| model.logits(tokens)).last().unwrap();
                assert_eq!(bits(&logits), bits(&expected), "{name}, {format} in chunks of {chunk}");
            }
        }
    }
}

#[test]
fn shapes_that_no_family_has_are_refused() {
    let interleaved = ModelShape { architecture: Architecture::Qwen2, ..small() };
    let blind = ModelShape { window: Some(0), ..small() };
    let weights = RandomWeights::new(&interleaved, WeightFormat::F32, 5);

    for shape in [interleaved, blind] {
        let error = StageModel::load(shape, range(0, 6), &weights, &mut |_| {}).unwrap_err();
        assert!(matches!(error, LoadError::BadShape { .. }), "{error}");
    }
}

#[test]
fn rope_scaling_of_llama_3_agrees_with_candle_transformers() {
    let scaling =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 16 };
    let mut shape = small();
    shape.rope.scaling = scaling;
    let weights = RandomWeights::new(&shape, WeightFormat::F32, 3);

    let ours = Unsplit::new(&shape, &weights).logits(&PROMPT);

    let plain = Unsplit::new(&small(), &weights).logits(&PROMPT);
    let difference = relative_difference(&ours, &weights.reference_llama_logits(&shape, &PROMPT));
    assert!(difference <= HALVES, "{difference}");
    let difference = relative_difference(&ours, &exact::logits(&shape, &weights.exact(), &PROMPT)[PROMPT.len() - 1]);
    assert!(difference <= ROUNDING, "{difference} from f64");
    assert!(relative_difference(&ours, &plain) > 1e-3, "the scaling changes something");
}

#[test]
fn rope_divisors_of_the_model_equal_the_scaling_they_stand_for() {
    let mut linear = small();
    linear.rope.scaling = RopeScaling::Linear { factor: 4.0 };
    let mut divided = small();
    divided.rope.scaling = RopeScaling::Tensor;
    let mut weights = RandomWeights::new(&linear, WeightFormat::F32, 3);
    weights.insert("rope_freqs.weight", &[linear.rope.dimensions / 2], vec![4.0; 4], WeightFormat::F32);

    let expected = Unsplit::new(&linear, &weights).logits(&PROMPT);

    assert_eq!(bits(&Unsplit::new(&divided, &weights).logits(&PROMPT)), bits(&expected));
}

#[test]
fn every_cut_into_two_and_three_equals_the_unsplit_model_bit_for_bit() {
    for format in [WeightFormat::F32, WeightFormat::Q8_0] {
        let shape = small();
        let weights = RandomWeights::new(&shape, format, 5);
        let expected = Unsplit::new(&shape, &weights).logits(&PROMPT);
        let units = shape.units();
        let twos = (1..units).map(|cut| vec![cut]);
        let threes = (1..units).flat_map(|first| (first + 1..units).map(move |second| vec![first, second]));

        for cuts in twos.chain(threes) {
            let logits = Split::new(&shape, &weights, &cuts).logits(&PROMPT);
            assert_eq!(bits(&logits), bits(&expected), "{format} cut at {cuts:?}");
        }
    }
}

#[test]
fn a_part_of_a_wider_range_computes_the_same_bits() {
    let shape = small();
    let weights = RandomWeights::new(&shape, WeightFormat::Q8_0, 5);
    let hidden: Vec<f32> = (0..3 * shape.width).map(|index| (index as f32 * 0.7).sin()).collect();
    let through = |loaded: UnitRange| {
        let stage = load(&shape, loaded, &weights);
        let mut session = stage.open(range(2, 4), Position(8), &[]).unwrap();
        stage.forward(&mut session, StageInput::Hidden(&hidden), Position(0), WantLogits::None).unwrap()
    };

    assert_eq!(through(range(2, 4)), through(range(0, 6)));
    assert_eq!(through(range(2, 4)), through(range(1, 5)));
}

#[test]
fn chunks_of_any_size_give_the_bits_of_the_whole_prompt() {
    for format in [WeightFormat::F32, WeightFormat::Q8_0, WeightFormat::Q4_0, WeightFormat::Q6K] {
        let shape = wide();
        let weights = RandomWeights::new(&shape, format, 9);
        let expected = Unsplit::new(&shape, &weights).logits(&PROMPT);

        for chunk in [1, 2, 3, 7] {
            let mut model = Unsplit::new(&shape, &weights);
            let logits = PROMPT.chunks(chunk).map(|tokens| model.logits(tokens)).last().unwrap();
            assert_eq!(bits(&logits), bits(&expected), "{format} in chunks of {chunk}");
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let shape = wide();
    let weights = RandomWeights::new(&shape, WeightFormat::Q8_0, 13);
    let prompt: Vec<u32> = (0..40).map(|index| index * 7 % shape.vocab).collect();
    let with_threads = |threads| {
        let mut workspace = workspace(threads);
        let mut model = Unsplit::new(&shape, &weights);
        let tokens: Vec<Token> = prompt.iter().copied().map(Token).collect();
        let (first, want) = (Position(0), WantLogits::LastRow);
        let mut steps = [BatchStep { session: &mut model.session, input: StageInput::Tokens(&tokens), first, want }];
        let outcomes = model.stage.forward_batch(&mut steps, &mut workspace);
        let Ok(StageView::Logits(logits)) = outcomes.of(0) else { panic!("logits were wanted") };
        logits.to_vec()
    };

    assert_eq!(bits(&with_threads(1)), bits(&with_threads(2)));
    assert_eq!(bits(&with_threads(1)), bits(&with_threads(3)));
}

#[test]
fn a_rewound_session_repeats_its_bits() {
    let shape = small();
    let weights = RandomWeights::new(&shape, WeightFormat::Q8_0, 1);
    let mut model = Unsplit::new(&shape, &weights);
    model.logits(&PROMPT[..6]);
    let expected = model.logits(&PROMPT[6..]);
    model.logits(&[5, 6]);

    model.session.rewind(Position(6));

    assert_eq!(bits(&model.logits(&PROMPT[6..])), bits(&expected));
}

#[test]
fn interleaved_sessions_equal_each_alone() {
    let shape = small();
    let weights = RandomWeights::new(&shape, WeightFormat::F32, 2);
    let prompts: Vec<Vec<u32>> =
        (0..5_u32).map(|seed| (0..9).map(|index| (seed * 31 + index * 7) % 100).collect()).collect();
    let alone: Vec<Vec<u32>> =
        prompts.iter().map(|prompt| bits(&Unsplit::new(&shape, &weights).logits(prompt))).collect();

    let stage = load(&shape, range(0, shape.units()), &weights);
    let mut sessions: Vec<SessionState> = prompts.iter().map(|_| open(&stage)).collect();
    let mut last = vec![Vec::new(); prompts.len()];
    for position in 0..9 {
        for ((prompt, session), last) in prompts.iter().zip(&mut sessions).zip(&mut last) {
            *last = bits(&step(&stage, session, &prompt[position..=position]));
        }
    }

    assert_eq!(last, alone);
}

#[test]
fn a_rounded_boundary_is_rounded_inside_a_stage_too() {
    let shape = small();
    let weights = RandomWeights::new(&shape, WeightFormat::F32, 5);
    let rounding = [(3, WireDtype::F16)];
    let whole = load(&shape, range(0, 6), &weights);
    let mut session = whole.open(range(0, 6), Position(32), &rounding).unwrap();

    let inside = step(&whole, &mut session, &PROMPT);

    let mut split = Split::new(&shape, &weights, &[3]);
    split.dtype = WireDtype::F16;
    assert_eq!(bits(&inside), bits(&split.logits(&PROMPT)));
    assert_ne!(bits(&inside), bits(&Unsplit::new(&shape, &weights).logits(&PROMPT)));
}

#[test]
fn a_stage_reads_only_the_tensors_of_its_units() {
    let shape = ModelShape { tied: true, ..small() };
    let weights = RandomWeights::new(&shape, WeightFormat::F32, 5);
    let only = |kept: &dyn Fn(&str) -> bool| {
        let mut weights = weights.clone();
        weights.tensors.retain(|name, _| kept(name));
        weights
    };
    let middle = only(&|name| name.starts_with("blk.1.") || name.starts_with("blk.2."));
    let first = only(&|name| name == "token_embd.weight");
    let last = only(&|name| name == "token_embd.weight" || name == "output_norm.weight");

    assert!(StageModel::load(shape, range(2, 4), &middle, &mut |_| {}).is_ok());
    assert!(StageModel::load(shape, range(0, 1), &first, &mut |_| {}).is_ok());
    assert!(StageModel::load(shape, range(5, 6), &last, &mut |_| {}).is_ok());
    let missing = StageModel::load(shape, range(2, 5), &middle, &mut |_| {}).unwrap_err();
    assert_eq!(missing, LoadError::Missing { name: "blk.3.attn_norm.weight".to_owned() });
}

#[test]
fn tensors_that_disagree_with_the_shape_are_named() {
    let shape = small();
    let weights = RandomWeights::new(&shape, WeightFormat::F32, 5);
    let whole = range(0, shape.units());
    let fault = |shape: ModelShape, change: &dyn Fn(&mut RandomWeights)| {
        let mut weights = weights.clone();
        change(&mut weights);
        StageModel::load(shape, whole, &weights, &mut |_| {}).unwrap_err()
    };
    let name = "blk.0.ffn_up.weight";

    let wider = fault(ModelShape { feed_forward: 100, ..shape }, &|_| {});
    assert!(matches!(wider, LoadError::WrongDimensions { name, .. } if name == "blk.0.ffn_gate.weight"));
    let cut = fault(shape, &|weights| weights.tensors.get_mut(name).unwrap().bytes.truncate(10));
    assert_eq!(cut, LoadError::WrongLength { name: name.to_owned(), expected: 32 * 96 * 4, got: 10 });
    let ragged = fault(shape, &|weights| weights.tensors.get_mut(name).unwrap().format = WeightFormat::Q4K);
    assert_eq!(ragged, LoadError::RaggedRows { name: name.to_owned(), columns: 32, block: 256 });
    let norm = "output_norm.weight";
    let not_finite = fault(shape, &|weights| weights.tensors.get_mut(norm).unwrap().bytes.fill(0xFF));
    assert_eq!(not_finite, LoadError::BadValue { name: norm.to_owned() });
    let heads = fault(ModelShape { kv_heads: 3, ..shape }, &|_| {});
    assert!(matches!(heads, LoadError::BadShape { .. }));
    let outside = StageModel::load(shape, range(0, 9), &weights, &mut |_| {}).unwrap_err();
    assert_eq!(outside, LoadError::OutsideModel { range: range(0, 9), units: 6 });
}

#[test]
fn broken_steps_are_typed_errors_and_change_nothing() {
    let shape = small();
    let weights = RandomWeights::new(&shape, WeightFormat::F32, 5);
    let stage = load(&shape, range(0, 6), &weights);
    let mut session = stage.open(range(0, 6), Position(4), &[]).unwrap();
    let mut step = |tokens: &[u32], first: u32| {
        let tokens: Vec<Token> = tokens.iter().copied().map(Token).collect();
        stage.forward(&mut session, StageInput::Tokens(&tokens), Position(first), WantLogits::LastRow)
    };
    step(&[1, 2], 0).unwrap();

    let outside = StepError::OutsideVocabulary { token: Token(100), vocabulary: 100 };
    assert_eq!(step(&[3, 100], 2), Err(outside));
    assert_eq!(step(&[3], 1), Err(StepError::OutOfOrder { expected: Position(2), got: Position(1) }));
    assert_eq!(step(&[3], 3), Err(StepError::OutOfOrder { expected: Position(2), got: Position(3) }));
    assert_eq!(step(&[3; 3], 2), Err(StepError::Full { capacity: Position(4), wanted: Position(5) }));
    assert_eq!(step(&[], 2), Err(StepError::Empty));
    assert!(step(&[3, 4], 2).is_ok());
}

#[test]
fn hidden_states_of_the_wrong_kind_length_or_value_are_refused() {
    let shape = small();
    let weights = RandomWeights::new(&shape, WeightFormat::F32, 5);
    let stage = load(&shape, range(1, 3), &weights);
    let mut session = open(&stage);
    let mut step = |input: StageInput<'_>| stage.forward(&mut session, input, Position(0), WantLogits::None);

    assert!(matches!(step(StageInput::Tokens(&[Token(1)])), Err(StepError::WrongInput { .. })));
    assert_eq!(step(StageInput::Hidden(&[0.0; 33])), Err(StepError::WrongLength { expected: 64, got: 33 }));
    assert_eq!(step(StageInput::Hidden(&[f32::NAN; 32])), Err(StepError::NonFiniteInput));
    // Squares of these overflow f32.
    assert_eq!(step(StageInput::Hidden(&[3e38; 32])), Err(StepError::NonFinite));
    assert!(step(StageInput::Hidden(&[1.0; 32])).is_ok());
}

#[test]
fn the_estimator_bounds_what_a_session_allocates() {
    let shape = small();
    let weights = RandomWeights::new(&shape, WeightFormat::F32, 5);
    let stage = load(&shape, range(0, 6), &weights);
    let capacity = Position(300);
    let mut session = stage.open(range(0, 6), capacity, &[]).unwrap();
    assert_eq!(session.bytes(), Bytes::ZERO);

    step(&stage, &mut session, &[7; 10]);
    assert_eq!(session.bytes(), shape.kv_bytes(range(0, 6), Position(10)));
    step(&stage, &mut session, &[7; 290]);

    assert_eq!(session.bytes(), shape.kv_bytes(range(0, 6), capacity));
    assert_eq!(stage.bytes(), weights.bytes());
    let beyond = stage.open(range(0, 6), Position(513), &[]).unwrap_err();
    assert_eq!(beyond, OpenError::BadCapacity { got: Position(513), context: Position(512) });
}

/// Four blocks of width 32.
pub(super) fn small() -> ModelShape {
    ModelShape {
        architecture: Architecture::Llama,
        blocks: 4,
        width: 32,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        feed_forward: 96,
        vocab: 100,
        context: 512,
        window: None,
        norm_eps: 1e-5,
        rope: Rope { dimensions: 8, pairs: RopePairs::Interleaved, base: 10_000.0, scaling: RopeScaling::None },
        tied: false,
    }
}

/// Two blocks whose widths every format can store.
pub(super) fn wide() -> ModelShape {
    ModelShape {
        blocks: 2,
        width: 256,
        heads: 8,
        kv_heads: 2,
        head_dim: 32,
        feed_forward: 512,
        vocab: 128,
        rope: Rope { dimensions: 32, ..small().rope },
        ..small()
    }
}

/// The widths of stories260K.
pub(super) fn odd() -> ModelShape {
    ModelShape { blocks: 3, width: 64, heads: 8, kv_heads: 4, head_dim: 8, feed_forward: 172, ..small() }
}

/// A small shape of everything that is not plain Llama.
pub(super) fn families() -> [(&'static str, ModelShape); 5] {
    let halves = Rope { pairs: RopePairs::Halves, ..small().rope };
    let llama = ModelShape { rope: halves, ..small() };
    let of = |architecture| ModelShape { architecture, ..llama };
    [
        ("halves", llama),
        ("a window", ModelShape { window: Some(4), ..llama }),
        ("qwen2", ModelShape { tied: true, ..of(Architecture::Qwen2) }),
        // Heads that together are wider than the hidden state.
        ("qwen3", ModelShape { head_dim: 24, rope: Rope { dimensions: 24, ..halves }, ..of(Architecture::Qwen3) }),
        ("qwen3 and a window", ModelShape { window: Some(1), ..of(Architecture::Qwen3) }),
    ]
}

pub(super) fn range(start: u16, end: u16) -> UnitRange {
    UnitRange::new(start, end).unwrap()
}

pub(super) fn workspace(threads: usize) -> Workspace {
    Workspace::new(Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap())
}

fn product(matrix: &Matrix, input: &[f32]) -> Vec<f32> {
    let mut output = vec![0.0; input.len() / matrix.columns() * matrix.rows()];
    multiply(&Pool::alone(), InstructionSet::best(), &mut Rounded::default(), input, [(matrix, &mut output)]);
    output
}

fn load(shape: &ModelShape, range: UnitRange, weights: &RandomWeights) -> StageModel {
    StageModel::load(*shape, range, weights, &mut |_| {}).unwrap()
}

fn open(stage: &StageModel) -> SessionState {
    stage.open(stage.range(), Position(64), &[]).unwrap()
}

fn step(stage: &StageModel, session: &mut SessionState, tokens: &[u32]) -> Vec<f32> {
    let tokens: Vec<Token> = tokens.iter().copied().map(Token).collect();
    let first = session.length();
    let output = stage.forward(session, StageInput::Tokens(&tokens), first, WantLogits::LastRow).unwrap();
    let StageOutput::Logits(logits) = output else { panic!("logits were wanted") };
    logits
}

/// A whole model with one session.
struct Unsplit {
    stage: StageModel,
    session: SessionState,
}

impl Unsplit {
    fn new(shape: &ModelShape, weights: &RandomWeights) -> Self {
        let stage = load(shape, range(0, shape.units()), weights);
        let session = open(&stage);
        Self { stage, session }
    }

    fn logits(&mut self, tokens: &[u32]) -> Vec<f32> {
        step(&self.stage, &mut self.session, tokens)
    }
}

/// A model cut into stages, with one session.
struct Split {
    stages: Vec<(StageModel, SessionState)>,
    dtype: WireDtype,
}

impl Split {
    fn new(shape: &ModelShape, weights: &RandomWeights, cuts: &[u16]) -> Self {
        let starts = [0].iter().chain(cuts);
        let ends = cuts.iter().copied().chain([shape.units()]);
        let stages = starts.zip(ends).map(|(start, end)| {
            let stage = load(shape, range(*start, end), weights);
            let session = open(&stage);
            (stage, session)
        });
        Self { stages: stages.collect(), dtype: WireDtype::F32 }
    }

    fn logits(&mut self, tokens: &[u32]) -> Vec<f32> {
        let tokens: Vec<Token> = tokens.iter().copied().map(Token).collect();
        let mut hidden = Vec::new();
        for (index, (stage, session)) in self.stages.iter_mut().enumerate() {
            let input = if index == 0 { StageInput::Tokens(&tokens) } else { StageInput::Hidden(&hidden) };
            let first = session.length();
            match stage.forward(session, input, first, WantLogits::LastRow).unwrap() {
                StageOutput::Logits(logits) => return logits,
                StageOutput::Hidden(states) => {
                    let payload = super::payload::to_payload(&states, self.dtype);
                    hidden = super::payload::from_payload(&payload, self.dtype).unwrap();
                }
                StageOutput::Nothing => panic!("logits were wanted"),
            }
        }
        panic!("the last stage ends the model");
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The largest difference, relative to the largest value.
pub(super) fn relative_difference(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let largest = theirs.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let difference = ours.iter().zip(theirs).map(|(ours, theirs)| (ours - theirs).abs());
    difference.fold(0.0, f32::max) / largest
}

/// Random weights of a shape, in memory.
#[derive(Clone)]
pub(super) struct RandomWeights {
    tensors: BTreeMap<String, Stored>,
}

#[derive(Clone)]
struct Stored {
    format: WeightFormat,
    dimensions: Vec<u64>,
    bytes: Vec<u8>,
}

impl TensorSource for RandomWeights {
    fn tensor(&self, name: &str) -> Option<TensorData<'_>> {
        self.tensors.get(name).map(|stored| TensorData {
            format: stored.format,
            dimensions: stored.dimensions.clone(),
            bytes: &stored.bytes,
        })
    }
}

impl RandomWeights {
    /// Matrices in `format`, norms in f32.
    pub(super) fn new(shape: &ModelShape, format: WeightFormat, seed: u64) -> Self {
        let mut weights = Self { tensors: BTreeMap::new() };
        let mut random = Random(seed);
        let (width, query, kv) = (shape.width, shape.heads * shape.head_dim, shape.kv_width());
        let mut matrix = |weights: &mut Self, name: String, columns: u32, rows: u32| {
            let scale = 2.0 / (columns as f32).sqrt();
            let values = (0..columns * rows).map(|_| random.next() * scale).collect();
            weights.insert(&name, &[columns, rows], values, format);
        };
        let norm = |weights: &mut Self, name: String| {
            let values = (0..width).map(|index| 0.75 + (index % 5) as f32 / 8.0).collect();
            weights.insert(&name, &[width], values, WeightFormat::F32);
        };
        matrix(&mut weights, "token_embd.weight".to_owned(), width, shape.vocab);
        if !shape.tied {
            matrix(&mut weights, "output.weight".to_owned(), width, shape.vocab);
        }
        norm(&mut weights, "output_norm.weight".to_owned());
        for block in 0..shape.blocks {
            let sizes = [
                ("attn_q", width, query),
                ("attn_k", width, kv),
                ("attn_v", width, kv),
                ("attn_output", query, width),
                ("ffn_gate", width, shape.feed_forward),
                ("ffn_up", width, shape.feed_forward),
                ("ffn_down", shape.feed_forward, width),
            ];
            for (part, columns, rows) in sizes {
                matrix(&mut weights, format!("blk.{block}.{part}.weight"), columns, rows);
            }
            norm(&mut weights, format!("blk.{block}.attn_norm.weight"));
            norm(&mut weights, format!("blk.{block}.ffn_norm.weight"));
            weights.insert_own_parts(shape, block);
        }
        weights
    }

    /// What only blocks of the shape's family have.
    fn insert_own_parts(&mut self, shape: &ModelShape, block: u16) {
        let (query, kv) = (shape.heads * shape.head_dim, shape.kv_width());
        let mut insert = |part: &str, length: u32| {
            let values = (0..length).map(|index| 0.5 + ((index * 7 + u32::from(block)) % 11) as f32 / 8.0).collect();
            self.insert(&format!("blk.{block}.{part}"), &[length], values, WeightFormat::F32);
        };
        if shape.architecture.has_biases() {
            insert("attn_q.bias", query);
            insert("attn_k.bias", kv);
            insert("attn_v.bias", kv);
        }
        if shape.architecture.normalises_heads() {
            insert("attn_q_norm.weight", shape.head_dim);
            insert("attn_k_norm.weight", shape.head_dim);
        }
    }

    pub(super) fn insert(&mut self, name: &str, dimensions: &[u32], values: Vec<f32>, format: WeightFormat) {
        let shape: Vec<usize> = dimensions.iter().rev().map(|dimension| *dimension as usize).collect();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        let bytes = QTensor::quantize(&tensor, candle_format(format)).unwrap().data().unwrap().into_owned();
        let dimensions = dimensions.iter().copied().map(u64::from).collect();
        self.tensors.insert(name.to_owned(), Stored { format, dimensions, bytes });
    }

    pub(super) fn bytes(&self) -> Bytes {
        self.tensors.values().map(|stored| Bytes(stored.bytes.len() as u64)).sum()
    }

    fn candle_tensors(&self) -> Vec<(String, QTensor)> {
        let convert = |(name, stored): (&String, &Stored)| {
            let shape: Vec<usize> = stored.dimensions.iter().rev().map(|dimension| *dimension as usize).collect();
            let data = stored.bytes.clone().into();
            let storage = candle_core::quantized::QStorage::from_data(data, &Device::Cpu, candle_format(stored.format));
            (name.clone(), QTensor::new(storage.unwrap(), shape).unwrap())
        };
        self.tensors.iter().map(convert).collect()
    }

    /// The values of all tensors.
    pub(super) fn exact(&self) -> exact::Tensors {
        let values =
            |tensor: QTensor| tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let widen = |(name, tensor)| (name, values(tensor).into_iter().map(f64::from).collect());
        self.candle_tensors().into_iter().map(widen).collect()
    }

    /// What candle's `quantized_llama` makes of the same bytes in a GGUF file.
    fn reference_logits(&self, shape: &ModelShape, tokens: &[u32]) -> Vec<f32> {
        use gguf_file::Value;
        let metadata = [
            ("general.architecture", Value::String("llama".to_owned())),
            ("llama.attention.head_count", Value::U32(shape.heads)),
            ("llama.attention.head_count_kv", Value::U32(shape.kv_heads)),
            ("llama.block_count", Value::U32(u32::from(shape.blocks))),
            ("llama.embedding_length", Value::U32(shape.width)),
            ("llama.rope.dimension_count", Value::U32(shape.rope.dimensions)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(shape.norm_eps)),
            ("llama.rope.freq_base", Value::F32(shape.rope.base)),
        ];
        let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(name, value)| (*name, value)).collect();
        let tensors = self.candle_tensors();
        let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut file = Cursor::new(Vec::new());
        gguf_file::write(&mut file, &metadata, &tensors).unwrap();
        file.set_position(0);
        let content = gguf_file::Content::read(&mut file).unwrap();
        let mut model = quantized_llama::ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
        let input = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        model.forward(&input, 0).unwrap().squeeze(0).unwrap().to_vec1().unwrap()
    }

    /// What candle's `llama`, which knows the scaling of Llama 3.1, makes of the same weights.
    fn reference_llama_logits(&self, shape: &ModelShape, tokens: &[u32]) -> Vec<f32> {
        let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } = shape.rope.scaling
        else {
            panic!("a model of Llama 3.1 is compared");
        };
        let config = llama::Config {
            hidden_size: shape.width as usize,
            intermediate_size: shape.feed_forward as usize,
            vocab_size: shape.vocab as usize,
            num_hidden_layers: usize::from(shape.blocks),
            num_attention_heads: shape.heads as usize,
            num_key_value_heads: shape.kv_heads as usize,
            use_flash_attn: false,
            rms_norm_eps: f64::from(shape.norm_eps),
            rope_theta: shape.rope.base,
            bos_token_id: None,
            eos_token_id: None,
            rope_scaling: Some(llama::Llama3RopeConfig {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: original_context as usize,
                rope_type: llama::Llama3RopeType::Llama3,
            }),
            max_position_embeddings: shape.context as usize,
            tie_word_embeddings: shape.tied,
        };
        let tensors = self.candle_tensors().into_iter().map(|(name, tensor)| {
            let tensor = tensor.dequantize(&Device::Cpu).unwrap();
            let heads = match () {
                () if name.contains("attn_q.") => Some(shape.heads),
                () if name.contains("attn_k.") => Some(shape.kv_heads),
                () => None,
            };
            let tensor = heads.map_or(tensor.clone(), |heads| in_halves(&tensor, heads as usize));
            (hugging_face_name(&name), tensor)
        });
        let builder = candle_nn::VarBuilder::from_tensors(tensors.collect(), candle_core::DType::F32, &Device::Cpu);
        let model = llama::Llama::load(builder, &config).unwrap();
        let mut cache = llama::Cache::new(true, candle_core::DType::F32, &config, &Device::Cpu).unwrap();
        let input = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        model.forward(&input, 0, &mut cache).unwrap().squeeze(0).unwrap().to_vec1().unwrap()
    }
}

/// Rows of interleaved pairs, as GGUF has them, to rows of halves, as Hugging Face has them.
fn in_halves(matrix: &Tensor, heads: usize) -> Tensor {
    let (rows, columns) = matrix.dims2().unwrap();
    let pairs = matrix.reshape((heads, rows / heads / 2, 2, columns)).unwrap();
    pairs.transpose(1, 2).unwrap().contiguous().unwrap().reshape((rows, columns)).unwrap()
}

fn hugging_face_name(name: &str) -> String {
    let pairs = [
        ("blk.", "model.layers."),
        ("attn_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
    ];
    let renamed = pairs.iter().fold(name.to_owned(), |name, (ours, theirs)| name.replace(ours, theirs));
    renamed.replace("output.weight", "lm_head.weight")
}

pub(super) fn candle_format(format: WeightFormat) -> GgmlDType {
    match format {
        WeightFormat::F32 => GgmlDType::F32,
        WeightFormat::F16 => GgmlDType::F16,
        WeightFormat::BF16 => GgmlDType::BF16,
        WeightFormat::Q4_0 => GgmlDType::Q4_0,
        WeightFormat::Q4_1 => GgmlDType::Q4_1,
        WeightFormat::Q5_0 => GgmlDType::Q5_0,
        WeightFormat::Q5_1 => GgmlDType::Q5_1,
        WeightFormat::Q8_0 => GgmlDType::Q8_0,
        WeightFormat::Q4K => GgmlDType::Q4K,
        WeightFormat::Q5K => GgmlDType::Q5K,
        WeightFormat::Q6K => GgmlDType::Q6K,
    }
}

/// Uniform over `-1..1`; SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((bits ^ (bits >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
