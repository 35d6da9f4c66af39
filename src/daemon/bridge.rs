//! Between the node's words for the engine and the engine's own.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::amounts::Bytes;
use crate::amounts::Position;
use crate::amounts::Span;
use crate::engine::command;
use crate::engine::command::EngineCommand;
use crate::engine::command::EngineEvent;
use crate::engine::command::Rewind;
use crate::engine::command::StepResult;
use crate::engine::device::DeviceName;
use crate::engine::error::StepError;
use crate::engine::error::StepFault;
use crate::engine::source::TensorData;
use crate::engine::source::TensorSource;
use crate::engine::thread::EngineHandle;
use crate::engine::thread::SendError;
use crate::ids::ModelId;
use crate::node::io::EngineAction;
use crate::node::io::EngineInput;
use crate::node::io::ModelFacts;
use crate::node::io::StageKey;
use crate::node::io::StageStep;
use crate::node::io::StepFailure;
use crate::node::io::StepInput;
use crate::node::io::StepOutput;
use crate::node::io::StepWanted;
use crate::os;
use crate::sampling::History;
use crate::units::UnitRange;
use crate::weights::files::ModelFiles;
use crate::weights::gguf::GgufFile;
use crate::weights::lookup::Weights;
use crate::wire::control::TailOffer;

/// The engine as the node sees it, with what was counted.
pub(super) struct Bridge {
    engine: EngineHandle,
    device: DeviceName,
    /// Models that may be served.
    models: BTreeMap<ModelId, Arc<ModelFacts>>,
    /// The width of the hidden states of every open stage.
    widths: BTreeMap<StageKey, u32>,
    /// Stages opened.
    pub(super) opened: u64,
    /// Unit ranges loaded.
    pub(super) loaded: u64,
    /// Steps computed.
    pub(super) steps: u64,
    /// Positions computed.
    pub(super) positions: u64,
    /// Time in the engine.
    pub(super) busy: Span,
}

impl Bridge {
    pub(super) fn new(engine: EngineHandle, device: DeviceName) -> Self {
        Self {
            engine,
            device,
            models: BTreeMap::new(),
            widths: BTreeMap::new(),
            opened: 0,
            loaded: 0,
            steps: 0,
            positions: 0,
            busy: Span::ZERO,
        }
    }

    /// Makes a model known, so that the node may have units of it loaded.
    pub(super) fn offer(&mut self, facts: Arc<ModelFacts>) {
        self.models.insert(facts.id, facts);
    }

    /// Has units loaded from their weights. What is refused at once comes back.
    pub(super) fn load(&self, model: ModelId, range: UnitRange, weights: Arc<Weights>) -> Vec<EngineInput> {
        let refused = |reason: String| vec![EngineInput::LoadFailed(model, range, reason)];
        let Some(facts) = self.models.get(&model) else { return refused("the model is not served".to_owned()) };
        if let Err(reason) = self.has_room(facts.footprint.weights(range)) {
            return refused(reason);
        }
        let shape = facts.shape;
        match self.engine.try_send(EngineCommand::Load(command::Load { model, shape, range, source: weights })) {
            Ok(()) => Vec::new(),
            Err(error @ (SendError::Busy(_) | SendError::Stopped)) => refused(error.to_string()),
        }
    }

    /// Whether the machine has so much memory left. How much a device has, its driver says.
    fn has_room(&self, needed: Bytes) -> Result<(), String> {
        let available = os::memory().filter(|_| self.device == DeviceName::Cpu).map(|memory| memory.available);
        match available.filter(|available| *available < needed) {
            Some(available) => Err(format!("the units need {needed} of memory, and this machine has {available} left")),
            None => Ok(()),
        }
    }

    /// Hands an action to the engine, but for loading, for which [`Self::load`] is. What it refuses at once comes back.
    pub(super) fn perform(&mut self, action: EngineAction) -> Vec<EngineInput> {
        let subjects = subjects(&action);
        let refused = |reason: &str| subjects.into_iter().map(|subject| subject.refused(reason)).collect();
        let Some(command) = self.command(action) else { return refused("the model is not served") };
        match self.engine.try_send(command) {
            Ok(()) => Vec::new(),
            Err(error @ (SendError::Busy(_) | SendError::Stopped)) => refused(&error.to_string()),
        }
    }

    /// The width of the hidden states of an open stage.
    #[cfg(feature = "faults")]
    pub(super) fn width(&self, key: StageKey) -> u32 {
        self.widths.get(&key).copied().unwrap_or_default()
    }

    /// What an event of the engine tells the node, if anything.
    pub(super) fn event(&mut self, event: EngineEvent) -> Option<EngineInput> {
        match event {
            EngineEvent::Loading { .. }
            | EngineEvent::Unloaded { .. }
            | EngineEvent::Opened { .. }
            | EngineEvent::Stopped => None,
            EngineEvent::Loaded { model, range, bytes, took } => {
                tracing::info!(model = %model.short(), %range, %bytes, %took, "units loaded");
                self.loaded += 1;
                // Nothing was computed yet; the node measures with the first steps.
                Some(EngineInput::Loaded(model, range, Span::ZERO))
            }
            EngineEvent::LoadFailed { model, range, error } => {
                tracing::error!(model = %model.short(), %range, %error, "units could not be loaded");
                Some(EngineInput::LoadFailed(model, range, error.to_string()))
            }
            EngineEvent::OpenFailed { key, error } => {
                Some(EngineInput::StepFailed(node_key(key), StepFailure::Engine(error.to_string())))
            }
            EngineEvent::Stepped { key, first, count, result, took, share } => {
                self.steps += 1;
                self.positions += u64::from(count);
                self.busy = self.busy.plus(share);
                Some(stepped(node_key(key), first.plus(Position(count)), result, (took, share)))
            }
        }
    }

    fn command(&mut self, action: EngineAction) -> Option<EngineCommand> {
        Some(match action {
            EngineAction::Load(..) => return None,
            EngineAction::Unload(model, range) => EngineCommand::Unload { model, range },
            EngineAction::Open { key, model, range, capacity, rounding, tail } => {
                self.widths.insert(key, self.models.get(&model)?.shape.width);
                self.opened += 1;
                let (key, tail) = (engine_key(key), tail.map(tail_state));
                EngineCommand::Open(Box::new(command::Open { key, model, range, capacity, rounding, tail }))
            }
            EngineAction::Steps(steps) => {
                let command = |step: StageStep| Some(engine_step(*self.widths.get(&step.key)?, step));
                EngineCommand::Steps(steps.into_iter().map(command).collect::<Option<_>>()?)
            }
            EngineAction::Free(key) => {
                self.widths.remove(&key);
                EngineCommand::Free { key: engine_key(key) }
            }
        })
    }
}

/// What the node is told about if an action cannot be handed over.
enum Subject {
    Stage(StageKey),
    Units(ModelId, UnitRange),
}

impl Subject {
    fn refused(self, reason: &str) -> EngineInput {
        match self {
            Self::Stage(key) => EngineInput::StepFailed(key, StepFailure::Engine(reason.to_owned())),
            Self::Units(model, range) => EngineInput::LoadFailed(model, range, reason.to_owned()),
        }
    }
}

fn subjects(action: &EngineAction) -> Vec<Subject> {
    match action {
        EngineAction::Load(model, range) => vec![Subject::Units(*model, *range)],
        EngineAction::Open { key, .. } => vec![Subject::Stage(*key)],
        EngineAction::Steps(steps) => steps.iter().map(|step| Subject::Stage(step.key)).collect(),
        EngineAction::Unload(..) | EngineAction::Free(_) => Vec::new(),
    }
}

fn tail_state(tail: TailOffer) -> command::TailState {
    let TailOffer { parameters, prompt_length, history: mut prompt, .. } = tail;
    // A tail that takes another's place is told what was generated as well.
    let generated = prompt.split_off(prompt.len().min(prompt_length.0 as usize));
    let mut history = History::new(prompt);
    generated.into_iter().for_each(|token| history.push(token));
    command::TailState { parameters, prompt_length, history }
}

fn engine_step(width: u32, StageStep { key, first, input, wanted }: StageStep) -> command::Step {
    let (input, rows) = match input {
        StepInput::Tokens(tokens) => {
            let rows = tokens.len() as u64;
            (command::StepInput::Tokens(tokens), rows)
        }
        StepInput::Hidden(payload, dtype) => {
            let rows = payload.len() as u64 / dtype.row_bytes(width).max(1);
            (command::StepInput::Hidden { payload, dtype }, rows)
        }
    };
    let count = u32::try_from(rows).unwrap_or(u32::MAX);
    let output = match wanted {
        StepWanted::Hidden(dtype) => command::StepOutput::Hidden(dtype),
        StepWanted::Token => command::StepOutput::Sample,
        StepWanted::Nothing => command::StepOutput::Nothing,
    };
    command::Step { key: engine_key(key), input, first, count, rewind: Rewind::Allow, output }
}

fn stepped(
    key: StageKey,
    end: Position,
    result: Result<StepResult, StepError>,
    (took, share): (Span, Span),
) -> EngineInput {
    let output = match result {
        Ok(StepResult::Hidden(payload)) => StepOutput::Hidden(payload),
        Ok(StepResult::Sampled(choice)) => StepOutput::Sampled { token: choice.token, logprobs: choice.logprobs },
        Ok(StepResult::Nothing) => StepOutput::Nothing,
        Err(error) => return EngineInput::StepFailed(key, failure(&error)),
    };
    EngineInput::Stepped { key, end, output, took, share }
}

fn failure(error: &StepError) -> StepFailure {
    match error.fault() {
        StepFault::Request => StepFailure::NonFinite,
        StepFault::Sender => StepFailure::BadInput,
        StepFault::Local => StepFailure::Engine(error.to_string()),
    }
}

const fn engine_key(key: StageKey) -> command::StageKey {
    command::StageKey { session: key.session, range: key.range }
}

const fn node_key(key: command::StageKey) -> StageKey {
    StageKey { session: key.session, range: key.range }
}

/// Weights as the engine reads them.
impl TensorSource for Weights {
    fn tensor(&self, name: &str) -> Option<TensorData<'_>> {
        let view = Self::tensor(self, name)?;
        Some(TensorData { format: view.format, dimensions: view.dimensions.to_vec(), bytes: view.bytes })
    }

    fn release(&self, name: &str, bytes: Range<usize>) {
        Self::release(self, name, bytes);
    }
}

/// A model's files as the engine reads them.
impl TensorSource for ModelFiles {
    fn tensor(&self, name: &str) -> Option<TensorData<'_>> {
        let view = Self::tensor(self, name)?;
        Some(TensorData { format: view.format, dimensions: view.dimensions.to_vec(), bytes: view.bytes })
    }

    fn release(&self, name: &str, bytes: Range<usize>) {
        Self::release(self, name, bytes);
    }
}

/// The same of a GGUF file.
impl TensorSource for GgufFile {
    fn tensor(&self, name: &str) -> Option<TensorData<'_>> {
        TensorSource::tensor(self.files(), name)
    }

    fn release(&self, name: &str, bytes: Range<usize>) {
        Self::release(self, name, bytes);
    }
}
