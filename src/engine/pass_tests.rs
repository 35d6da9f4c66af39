use proptest::prelude::*;

use super::*;
use crate::engine::stage::SessionState;
use crate::engine::stage::StageOutput;
use crate::engine::tests::RandomWeights;
use crate::engine::tests::small;
use crate::engine::tests::workspace;
use crate::engine::workspace::StageView;
use crate::shape::WeightFormat;
use crate::shape::WireDtype;

#[test]
fn every_session_of_a_pass_gets_what_it_gets_alone_bit_for_bit() {
    for format in [WeightFormat::F32, WeightFormat::Q8_0, WeightFormat::Q4_0] {
        let weights = RandomWeights::new(&small(), format, 5);
        let stage = load(range(0, 6), &weights);
        for (threads, strangers) in [(1, 2), (2, 5), (3, 16)] {
            let mut workspace = workspace(threads);
            let mut sessions: Vec<SessionState> = (0..strangers).map(|_| open(&stage)).collect();
            // Prompts of 1, 8, 15, … positions, then three decode steps, in which each wants logits or not.
            for round in 0..4 {
                let fed: Vec<Vec<Token>> = (0..strangers).map(|session| tokens(session, round)).collect();
                let mut alone: Vec<SessionState> = sessions.iter().map(|_| open(&stage)).collect();
                let expected: Vec<StageOutput> = alone
                    .iter_mut()
                    .enumerate()
                    .map(|(session, state)| {
                        let history: Vec<Token> = (0..round).flat_map(|round| tokens(session, round)).collect();
                        if !history.is_empty() {
                            forward(&stage, state, &history, WantLogits::None).unwrap();
                        }
                        forward(&stage, state, &fed[session], want(session, round)).unwrap()
                    })
                    .collect();

                let mut steps: Vec<BatchStep<'_>> = sessions
                    .iter_mut()
                    .zip(&fed)
                    .enumerate()
                    .map(|(session, (state, fed))| step(state, fed, want(session, round)))
                    .collect();
                let outcomes = stage.forward_batch(&mut steps, &mut workspace);

                for (session, expected) in expected.iter().enumerate() {
                    let got = outcomes.of(session).unwrap().to_output();
                    assert_eq!(
                        bits(&got),
                        bits(expected),
                        "{format}, {threads} threads, session {session}, round {round}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_step_that_fails_fails_alone_and_leaves_its_session_as_it_was() {
    let weights = RandomWeights::new(&small(), WeightFormat::Q8_0, 5);
    let stage = load(range(2, 4), &weights);
    let row = |value: f32| vec![value; 32];
    let (good, half) = (row(0.5), row(0.25));
    let inputs = [good.clone(), row(f32::NAN), row(3e38), vec![0.5; 33], Vec::new(), vec![0.5; 32 * 65], half.clone()];
    let mut sessions: Vec<SessionState> = inputs.iter().map(|_| open(&stage)).collect();
    let mut other = stage.open(range(2, 3), Position(8), &[]).unwrap();
    let mut steps: Vec<BatchStep<'_>> = sessions
        .iter_mut()
        .zip(&inputs)
        .map(|(session, input)| BatchStep { input: StageInput::Hidden(input), ..step(session, &[], WantLogits::None) })
        .collect();
    steps.push(BatchStep { input: StageInput::Hidden(&good), ..step(&mut other, &[], WantLogits::None) });
    let mut workspace = workspace(2);

    let outcomes = stage.forward_batch(&mut steps, &mut workspace);

    let errors: Vec<Option<StepError>> = (0..outcomes.len()).map(|index| outcomes.of(index).err()).collect();
    let full = StepError::Full { capacity: Position(64), wanted: Position(65) };
    let expected = [
        None,
        Some(StepError::NonFiniteInput),
        Some(StepError::NonFinite),
        Some(StepError::WrongLength { expected: 64, got: 33 }),
        Some(StepError::Empty),
        Some(full),
        None,
        Some(StepError::OtherUnits { expected: range(2, 4), got: range(2, 3) }),
    ];
    assert_eq!(errors, expected);
    for (index, input) in [(0, &good), (6, &half)] {
        let mut alone = open(&stage);
        let expected = stage.forward(&mut alone, StageInput::Hidden(input), Position(0), WantLogits::None);
        assert_eq!(outcomes.of(index).map(StageView::to_output), expected);
    }
    let lengths: Vec<u32> = sessions.iter().chain([&other]).map(|session| session.length().0).collect();
    assert_eq!(lengths, [1, 0, 0, 0, 0, 0, 1, 0]);
}

#[test]
fn a_failed_step_may_be_repeated_and_one_out_of_order_is_refused_among_others() {
    let weights = RandomWeights::new(&small(), WeightFormat::F32, 5);
    let stage = load(range(0, 6), &weights);
    let (mut first, mut second) = (open(&stage), open(&stage));
    let fed = tokens(3, 0);
    let mut workspace = workspace(1);
    let mut steps = [step(&mut first, &fed, WantLogits::LastRow), step(&mut second, &fed, WantLogits::LastRow)];
    steps[0].first = Position(1);
    steps[1].input = StageInput::Tokens(&[Token(3), Token(100)]);
    let outcomes = stage.forward_batch(&mut steps, &mut workspace);
    assert_eq!(outcomes.of(0), Err(StepError::OutOfOrder { expected: Position(0), got: Position(1) }));
    assert_eq!(outcomes.of(1), Err(StepError::OutsideVocabulary { token: Token(100), vocabulary: 100 }));

    let mut steps = [step(&mut first, &fed, WantLogits::LastRow), step(&mut second, &fed, WantLogits::LastRow)];
    let outcomes = stage.forward_batch(&mut steps, &mut workspace);

    let expected = forward(&stage, &mut open(&stage), &fed, WantLogits::LastRow);
    assert_eq!(outcomes.of(0).map(StageView::to_output), expected);
    assert_eq!(outcomes.of(1).map(StageView::to_output), expected);
}

#[test]
fn a_boundary_is_rounded_for_the_sessions_that_say_so() {
    let weights = RandomWeights::new(&small(), WeightFormat::F32, 5);
    let stage = load(range(0, 6), &weights);
    let rounded = || stage.open(range(0, 6), Position(64), &[(3, WireDtype::F16)]).unwrap();
    let fed = tokens(2, 0);
    let mut sessions = [open(&stage), rounded(), open(&stage)];
    let mut steps: Vec<BatchStep<'_>> =
        sessions.iter_mut().map(|session| step(session, &fed, WantLogits::LastRow)).collect();
    let mut workspace = workspace(1);

    let outcomes = stage.forward_batch(&mut steps, &mut workspace);

    let plain = forward(&stage, &mut open(&stage), &fed, WantLogits::LastRow);
    let other = forward(&stage, &mut rounded(), &fed, WantLogits::LastRow);
    assert_ne!(plain, other);
    let came: Vec<_> = (0..3).map(|index| outcomes.of(index).map(StageView::to_output)).collect();
    assert_eq!(came, [plain.clone(), other, plain]);
}

#[test]
fn a_pass_of_nothing_comes_to_nothing() {
    let weights = RandomWeights::new(&small(), WeightFormat::F32, 5);
    let mut workspace = workspace(1);

    assert!(load(range(0, 6), &weights).forward_batch(&mut [], &mut workspace).is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Sessions that stop and go, each in its own chunks, in passes with whoever is there.
    #[test]
    fn any_schedule_gives_every_session_the_bits_of_its_whole_prompt(
        schedule in prop::collection::vec(prop::collection::vec(0..6_usize, 4), 1..8),
        threads in 1..3_usize,
    ) {
        let weights = RandomWeights::new(&small(), WeightFormat::Q8_0, 5);
        let stage = load(range(0, 6), &weights);
        let mut workspace = workspace(threads);
        let mut sessions: Vec<SessionState> = (0..4).map(|_| open(&stage)).collect();
        let mut last: Vec<Option<StageOutput>> = vec![None; 4];
        let mut fed: Vec<Vec<Token>> = vec![Vec::new(); 4];
        for counts in schedule {
            let pieces: Vec<Vec<Token>> = counts.iter().enumerate().map(|(session, &count)| {
                (0..count).map(|index| token(session, fed[session].len() + index)).collect()
            }).collect();
            let present: Vec<usize> = (0..4).filter(|&session| !pieces[session].is_empty()).collect();
            let mut steps: Vec<BatchStep<'_>> = sessions.iter_mut().zip(&pieces)
                .filter(|(_, piece)| !piece.is_empty())
                .map(|(state, piece)| step(state, piece, WantLogits::LastRow))
                .collect();
            let outcomes = stage.forward_batch(&mut steps, &mut workspace);
            for (index, &session) in present.iter().enumerate() {
                last[session] = Some(outcomes.of(index).unwrap().to_output());
                fed[session].extend(&pieces[session]);
            }
        }

        for (fed, last) in fed.iter().zip(last).filter(|(fed, _)| !fed.is_empty()) {
            let expected = forward(&stage, &mut open(&stage), fed, WantLogits::LastRow).unwrap();
            prop_assert_eq!(bits(&last.unwrap()), bits(&expected));
        }
    }
}

fn want(session: usize, round: usize) -> WantLogits {
    if (session + round).is_multiple_of(3) { WantLogits::None } else { WantLogits::LastRow }
}

fn token(session: usize, position: usize) -> Token {
    Token(((session * 31 + position * 7) % 100) as u32)
}

/// What a session is fed in a round: a prompt, then one token at a time.
fn tokens(session: usize, round: usize) -> Vec<Token> {
    let prompt = 1 + session * 7 % 43;
    if round == 0 { (0..prompt).map(|at| token(session, at)).collect() } else { vec![token(session, prompt + round)] }
}

fn step<'a>(session: &'a mut SessionState, tokens: &'a [Token], want: WantLogits) -> BatchStep<'a> {
    let first = session.length();
    BatchStep { session, input: StageInput::Tokens(tokens), first, want }
}

fn forward(
    stage: &StageModel,
    session: &mut SessionState,
    tokens: &[Token],
    want: WantLogits,
) -> Result<StageOutput, StepError> {
    let first = session.length();
    stage.forward(session, StageInput::Tokens(tokens), first, want)
}

fn load(range: UnitRange, weights: &RandomWeights) -> StageModel {
    StageModel::load(small(), range, weights, &mut |_| {}).unwrap()
}

fn open(stage: &StageModel) -> SessionState {
    stage.open(stage.range(), Position(64), &[]).unwrap()
}

fn range(start: u16, end: u16) -> UnitRange {
    UnitRange::new(start, end).unwrap()
}

fn bits(output: &StageOutput) -> Option<Vec<u32>> {
    match output {
        StageOutput::Hidden(values) | StageOutput::Logits(values) => {
            Some(values.iter().map(|value| value.to_bits()).collect())
        }
        StageOutput::Nothing => None,
    }
}
