use super::*;
use crate::amounts::Bytes;
use crate::amounts::Position;
use crate::engine::command::Rewind;
use crate::engine::command::StepInput;
use crate::engine::command::StepOutput;
use crate::engine::command::TailState;
use crate::engine::source::TensorData;
use crate::engine::source::TensorSource;
use crate::engine::tests::RandomWeights;
use crate::engine::tests::small;
use crate::ids::SessionId;
use crate::ids::Token;
use crate::sampling::History;
use crate::shape::WeightFormat;
use crate::shape::WireDtype;
use crate::wire::control::SamplingParameters;

const MODEL: ModelId = ModelId::new([9; 32]);

#[test]
fn a_chain_of_two_stages_generates_what_one_stage_does() {
    let mut engine = Running::new(2);
    for range in [range(0, 6), range(0, 4), range(2, 6)] {
        engine.load(range);
    }
    let parameters = SamplingParameters { temperature: 0.9, repetition_penalty: 1.2, seed: 5, ..greedy() };
    engine.open(key(0), range(0, 6), tail(&parameters));
    engine.open(key(1), range(0, 3), None);
    engine.open(key(2), range(3, 6), tail(&parameters));

    let mut alone = Vec::new();
    let mut split = Vec::new();
    let mut fed = PROMPT.to_vec();
    let mut first = Position(0);
    for _ in 0..6 {
        let token = sampled(engine.step(key(0), first, &fed, StepOutput::Sample));
        let StepResult::Hidden(payload) = engine.step(key(1), first, &fed, HIDDEN).unwrap() else { panic!() };
        let count = fed.len() as u32;
        let input = StepInput::Hidden { payload, dtype: WireDtype::F32 };
        split.push(sampled(engine.send_step(key(2), first, count, input, StepOutput::Sample)));
        alone.push(token);
        first = first.plus(Position(count));
        fed = vec![token];
    }

    assert_eq!(split, alone);
}

#[test]
fn a_rewound_tail_chooses_the_same_tokens_again() {
    let mut engine = Running::new(1);
    engine.load(range(0, 6));
    let parameters = SamplingParameters { temperature: 1.0, frequency_penalty: 1.0, seed: 3, ..greedy() };
    engine.open(key(0), range(0, 6), tail(&parameters));
    let first = sampled(engine.step(key(0), Position(0), &PROMPT, StepOutput::Sample));
    let second = sampled(engine.step(key(0), Position(3), &[first], StepOutput::Sample));
    engine.step(key(0), Position(4), &[second], StepOutput::Sample).unwrap();

    assert_eq!(sampled(engine.step(key(0), Position(3), &[first], StepOutput::Sample)), second);
}

#[test]
fn a_device_is_driven_as_the_processor_is() {
    let written = |device| {
        // What is not rounded to integers differs so little between devices that they choose the same tokens.
        let mut engine = Running::on(device, 1, WeightFormat::F32);
        engine.load(range(0, 6));
        engine.open(key(0), range(0, 6), tail(&greedy()));
        let first = sampled(engine.step(key(0), Position(0), &PROMPT, StepOutput::Sample));
        let second = sampled(engine.step(key(0), Position(3), &[first], StepOutput::Sample));
        engine.step(key(0), Position(4), &[second], StepOutput::Sample).unwrap();
        let again = sampled(engine.step(key(0), Position(3), &[first], StepOutput::Sample));
        [first, second, again]
    };

    let tokens = written(Device::like_an_accelerator());

    assert_eq!(tokens, written(Device::CPU));
    assert_eq!(tokens[1], tokens[2], "a rewound step is repeated");
}

#[test]
fn a_step_that_does_not_follow_is_refused_unless_it_may_rewind() {
    let mut engine = Running::new(1);
    engine.load(range(0, 6));
    engine.open(key(0), range(0, 6), None);
    engine.step(key(0), Position(0), &PROMPT, StepOutput::Nothing).unwrap();
    let step = Step { rewind: Rewind::Refuse, ..step_of(key(0), Position(1), &PROMPT, StepOutput::Nothing) };

    let refused = engine.send(step);

    assert_eq!(refused, Err(StepError::OutOfOrder { expected: Position(3), got: Position(1) }));
    assert_eq!(engine.step(key(0), Position(1), &PROMPT, StepOutput::Nothing), Ok(StepResult::Nothing));
}

#[test]
fn steps_that_the_stage_cannot_make_are_typed_errors() {
    let mut engine = Running::new(1);
    engine.load(range(0, 6));
    engine.open(key(0), range(0, 6), None);
    engine.open(key(1), range(0, 3), None);
    let input = StepInput::Hidden { payload: vec![0; 12].into(), dtype: WireDtype::F16 };

    let p = Position(0);
    assert_eq!(engine.step(key(7), p, &PROMPT, HIDDEN), Err(StepError::UnknownSession));
    assert_eq!(engine.step(key(0), p, &PROMPT, HIDDEN), Err(StepError::NoHidden));
    assert_eq!(engine.step(key(0), p, &PROMPT, StepOutput::Sample), Err(StepError::NotTail));
    assert_eq!(engine.step(key(1), p, &PROMPT, StepOutput::Nothing), Err(StepError::NotTail));
    let length = engine.send_step(key(0), p, 1, input, StepOutput::Nothing);
    assert_eq!(length, Err(StepError::WrongLength { expected: 64, got: 12 }));
    let short = Step { count: 2, ..step_of(key(1), p, &PROMPT, HIDDEN) };
    assert_eq!(engine.send(short), Err(StepError::WrongLength { expected: 2, got: 3 }));
}

#[test]
fn a_session_outlives_the_range_it_was_opened_on() {
    let mut engine = Running::new(1);
    engine.load(range(0, 6));
    engine.open(key(0), range(0, 6), tail(&greedy()));

    engine.command(EngineCommand::Unload { model: MODEL, range: range(0, 6) });

    assert_eq!(engine.event(), EngineEvent::Unloaded { model: MODEL, range: range(0, 6) });
    assert!(engine.step(key(0), Position(0), &PROMPT, StepOutput::Sample).is_ok());
    let error = OpenError::NotLoaded { range: range(0, 6) };
    assert_eq!(engine.try_open(key(1), range(0, 6), None), EngineEvent::OpenFailed { key: key(1), error });
}

#[test]
fn a_freed_session_is_gone_and_its_key_may_be_used_again() {
    let mut engine = Running::new(1);
    engine.load(range(0, 6));
    engine.open(key(0), range(0, 3), None);
    let again = engine.try_open(key(0), range(0, 3), None);
    assert_eq!(again, EngineEvent::OpenFailed { key: key(0), error: OpenError::AlreadyOpen });

    engine.command(EngineCommand::Free { key: key(0) });

    assert_eq!(engine.step(key(0), Position(0), &PROMPT, HIDDEN), Err(StepError::UnknownSession));
    engine.open(key(0), range(0, 3), None);
}

#[test]
fn a_load_that_fails_or_panics_is_reported_and_the_engine_lives() {
    struct Panicking;
    impl TensorSource for Panicking {
        fn tensor(&self, _: &str) -> Option<TensorData<'_>> {
            panic!("the source is broken");
        }
    }
    let mut engine = Running::new(1);
    let (shape, range) = (small(), range(0, 6));

    engine.command(EngineCommand::Load(Load { model: MODEL, shape, range, source: Arc::new(Panicking) }));

    let error = LoadError::Panicked { message: "the source is broken".to_owned() };
    assert_eq!(engine.event(), EngineEvent::LoadFailed { model: MODEL, range, error });
    engine.load(range);
}

#[test]
fn steps_of_many_sessions_and_ranges_are_answered_each_as_if_alone() {
    let mut engine = Running::new(2);
    engine.load(range(0, 6));
    engine.load(range(0, 3));
    let prompts: Vec<Vec<Token>> = (1..6).map(|length| PROMPT.iter().cycle().take(length).copied().collect()).collect();
    let alone: Vec<Token> = (1..6)
        .zip(&prompts)
        .map(|(stage, prompt)| {
            engine.open(key(stage), range(0, 6), tail(&greedy()));
            sampled(engine.step(key(stage), Position(0), prompt, StepOutput::Sample))
        })
        .collect();
    engine.open(key(9), range(0, 3), None);
    let part = engine.step(key(9), Position(0), &PROMPT, HIDDEN);

    let mut steps: Vec<Step> = (1..6)
        .zip(&prompts)
        .map(|(stage, prompt)| step_of(key(stage), Position(0), prompt, StepOutput::Sample))
        .collect();
    steps.insert(1, step_of(key(7), Position(0), &PROMPT, HIDDEN));
    steps.insert(2, Step { count: 9, ..step_of(key(9), Position(0), &PROMPT, HIDDEN) });
    steps.push(step_of(key(9), Position(0), &PROMPT, HIDDEN));
    engine.command(EngineCommand::Steps(steps));
    let mut results: BTreeMap<StageKey, Vec<Result<StepResult, StepError>>> = BTreeMap::new();
    for _ in 0..8 {
        let EngineEvent::Stepped { key, result, .. } = engine.event() else { panic!("expected a step's result") };
        results.entry(key).or_default().push(result);
    }

    for (stage, alone) in (1..6).zip(alone) {
        assert_eq!(results.remove(&key(stage)).unwrap().into_iter().map(sampled).collect::<Vec<_>>(), [alone]);
    }
    assert_eq!(results[&key(7)], [Err(StepError::UnknownSession)]);
    assert_eq!(results[&key(9)], [Err(StepError::WrongLength { expected: 9, got: 3 }), part]);
}

#[test]
fn the_time_of_a_pass_is_shared_by_rows() {
    assert_eq!([1, 3, 0].map(|rows| share(Span(1_000), rows, 4)), [Span(250), Span(750), Span(0)]);
    assert_eq!(share(Span(1_000), 0, 0), Span(0));
}

#[test]
fn a_panic_in_a_step_is_its_error() {
    let result: Result<(), StepError> = caught(|| panic!("position {}", 3));

    assert_eq!(result, Err(StepError::Panicked { message: "position 3".to_owned() }));
}

#[test]
fn stopping_is_the_last_event() {
    let mut engine = Running::new(1);

    engine.command(EngineCommand::Stop);

    assert_eq!(engine.event(), EngineEvent::Stopped);
    assert_eq!(engine.events.blocking_recv(), None);
}

const PROMPT: [Token; 3] = [Token(3), Token(17), Token(90)];
const HIDDEN: StepOutput = StepOutput::Hidden(WireDtype::F32);

struct Running {
    handle: EngineHandle,
    events: mpsc::Receiver<EngineEvent>,
    weights: Arc<RandomWeights>,
}

impl Running {
    fn new(threads: usize) -> Self {
        Self::on(Device::CPU, threads, WeightFormat::Q8_0)
    }

    fn on(device: Device, threads: usize, format: WeightFormat) -> Self {
        let count = |count| NonZeroUsize::new(count).unwrap();
        let (handle, events) = start(device, count(threads), count(8), Arc::new(|| Time::ZERO)).unwrap();
        Self { handle, events, weights: Arc::new(RandomWeights::new(&small(), format, 4)) }
    }

    fn command(&self, command: EngineCommand) {
        self.handle.try_send(command).unwrap();
    }

    /// The next event that is no progress.
    fn event(&mut self) -> EngineEvent {
        loop {
            let event = self.events.blocking_recv().unwrap();
            if !matches!(event, EngineEvent::Loading { .. }) {
                return event;
            }
        }
    }

    fn load(&mut self, range: UnitRange) {
        let source = Arc::clone(&self.weights) as Arc<dyn TensorSource>;
        self.command(EngineCommand::Load(Load { model: MODEL, shape: small(), range, source }));
        let event = self.event();
        assert!(matches!(event, EngineEvent::Loaded { bytes, .. } if bytes > Bytes::ZERO), "{event:?}");
    }

    fn try_open(&mut self, key: StageKey, range: UnitRange, tail: Option<TailState>) -> EngineEvent {
        let (capacity, rounding) = (Position(64), Vec::new());
        self.command(EngineCommand::Open(Box::new(Open { key, model: MODEL, range, capacity, rounding, tail })));
        self.event()
    }

    fn open(&mut self, key: StageKey, range: UnitRange, tail: Option<TailState>) {
        assert_eq!(self.try_open(key, range, tail), EngineEvent::Opened { key });
    }

    fn send(&mut self, step: Step) -> Result<StepResult, StepError> {
        self.command(EngineCommand::Steps(vec![step]));
        let EngineEvent::Stepped { result, .. } = self.event() else { panic!("expected a step's result") };
        result
    }

    fn send_step(
        &mut self,
        key: StageKey,
        first: Position,
        count: u32,
        input: StepInput,
        output: StepOutput,
    ) -> Result<StepResult, StepError> {
        self.send(Step { key, input, first, count, rewind: Rewind::Allow, output })
    }

    fn step(
        &mut self,
        key: StageKey,
        first: Position,
        tokens: &[Token],
        output: StepOutput,
    ) -> Result<StepResult, StepError> {
        self.send(step_of(key, first, tokens, output))
    }
}

fn step_of(key: StageKey, first: Position, tokens: &[Token], output: StepOutput) -> Step {
    let input = StepInput::Tokens(tokens.to_vec());
    Step { key, input, first, count: tokens.len() as u32, rewind: Rewind::Allow, output }
}

fn sampled(result: Result<StepResult, StepError>) -> Token {
    match result {
        Ok(StepResult::Sampled(choice)) => choice.token,
        other => panic!("expected a token, got {other:?}"),
    }
}

fn key(stage: u16) -> StageKey {
    StageKey { session: SessionId::new([1; 16]), range: range(stage, stage + 1) }
}

fn range(start: u16, end: u16) -> UnitRange {
    UnitRange::new(start, end).unwrap()
}

fn greedy() -> SamplingParameters {
    SamplingParameters::default()
}

fn tail(parameters: &SamplingParameters) -> Option<TailState> {
    let history = History::new(PROMPT.to_vec());
    Some(TailState { parameters: parameters.clone(), prompt_length: Position(3), history })
}
