//! Steps of several sessions as the engine thread makes them: from commands to a pass, and from what came out of it to
//! payloads and tokens.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::amounts::Position;
use crate::engine::command::Rewind;
use crate::engine::command::StageKey;
use crate::engine::command::Step;
use crate::engine::command::StepInput;
use crate::engine::command::StepOutput;
use crate::engine::command::StepResult;
use crate::engine::command::TailState;
use crate::engine::error::StepError;
use crate::engine::payload::to_payload;
use crate::engine::stage::BatchStep;
use crate::engine::stage::SessionState;
use crate::engine::stage::StageInput;
use crate::engine::stage::StageModel;
use crate::engine::stage::WantLogits;
use crate::engine::workspace::StageView;
use crate::engine::workspace::Workspace;
use crate::sampling::Choice;
use crate::sampling::sample;

/// A stage of a session, open on a loaded range.
pub(super) struct Session {
    pub(super) model: Arc<StageModel>,
    pub(super) state: SessionState,
    pub(super) tail: Option<TailState>,
}

/// Takes out what can be one pass with the first step: one step of each session on the same units of the same weights.
pub(super) fn one_pass(sessions: &BTreeMap<StageKey, Session>, steps: Vec<Step>) -> (Vec<Step>, Vec<Step>) {
    let place = |step: &Step| {
        let session = sessions.get(&step.key)?;
        Some((Arc::as_ptr(&session.model), session.state.range()))
    };
    let first = steps.first().and_then(place);
    let mut seen = BTreeSet::new();
    steps.into_iter().partition(|step| place(step) == first && seen.insert(step.key))
}

/// Makes the steps of one pass.
pub(super) fn make(
    sessions: &mut BTreeMap<StageKey, Session>,
    pass: &[Step],
    workspace: &mut Workspace,
) -> Vec<Result<StepResult, StepError>> {
    let keys: BTreeSet<StageKey> = pass.iter().map(|step| step.key).collect();
    let mut present: BTreeMap<&StageKey, &mut Session> =
        sessions.iter_mut().filter(|(key, _)| keys.contains(key)).collect();
    let mut made: Vec<Made<'_>> = Vec::with_capacity(pass.len());
    let mut batch = Vec::with_capacity(pass.len());
    let mut model = None;
    for step in pass {
        let session = present.remove(&step.key).ok_or(StepError::UnknownSession);
        let entered = session.and_then(|Session { model: of, state, tail }| {
            model = Some(&*of);
            batch.push(enter(of, state, tail.as_ref(), step)?);
            Ok(tail.as_mut())
        });
        let (tail, error) = match entered {
            Ok(tail) => (tail, None),
            Err(error) => (None, Some(error)),
        };
        made.push(Made {
            step,
            tail,
            came: Ok(StageView::Nothing),
            result: error.map_or(Ok(StepResult::Nothing), Err),
        });
    }
    if let Some(model) = model {
        pass_through(model, &mut batch, &mut made, workspace);
    }
    made.into_iter().map(|made| made.result).collect()
}

/// Computes the steps that were entered, and turns what came out into what was asked for.
fn pass_through<'a>(
    model: &StageModel,
    batch: &mut [BatchStep<'_>],
    made: &mut [Made<'a>],
    workspace: &'a mut Workspace,
) {
    let outcomes = model.forward_batch(batch, workspace);
    let mut entered: Vec<&mut Made<'a>> = made.iter_mut().filter(|made| made.result.is_ok()).collect();
    for (index, made) in entered.iter_mut().enumerate() {
        made.came = outcomes.of(index);
    }
    // Choosing looks at every logit a few times.
    let work = entered.len().saturating_mul(8 * model.shape().vocab as usize);
    outcomes.pool().for_each_chunk(&mut entered, 1, work, |_, made| made.iter_mut().for_each(|made| made.conclude()));
}

/// A step on its way through [`make`].
struct Made<'a> {
    step: &'a Step,
    tail: Option<&'a mut TailState>,
    came: Result<StageView<'a>, StepError>,
    result: Result<StepResult, StepError>,
}

impl Made<'_> {
    /// Turns what came out of the stage into what was asked for.
    fn conclude(&mut self) {
        let Step { first, count, output, .. } = *self.step;
        self.result = match (self.came.clone(), output) {
            (Err(error), _) => Err(error),
            (Ok(StageView::Hidden(hidden)), StepOutput::Hidden(dtype)) => {
                Ok(StepResult::Hidden(to_payload(hidden, dtype)))
            }
            (Ok(StageView::Logits(logits)), _) => {
                choose(self.tail.as_deref_mut(), logits, first.plus(Position(count))).map(StepResult::Sampled)
            }
            (Ok(StageView::Hidden(_) | StageView::Nothing), _) => Ok(StepResult::Nothing),
        };
    }
}

/// Checks a step against its session, rewinds the session if it may, and makes the step a part of a pass.
fn enter<'a>(
    model: &StageModel,
    state: &'a mut SessionState,
    tail: Option<&TailState>,
    step: &'a Step,
) -> Result<BatchStep<'a>, StepError> {
    let ends_model = state.range().contains(model.shape().head_unit());
    let want = match step.output {
        StepOutput::Hidden(_) if ends_model => return Err(StepError::NoHidden),
        StepOutput::Sample if tail.is_none() => return Err(StepError::NotTail),
        StepOutput::Nothing if !ends_model => return Err(StepError::NotTail),
        StepOutput::Sample => WantLogits::LastRow,
        StepOutput::Hidden(_) | StepOutput::Nothing => WantLogits::None,
    };
    let count = step.count as usize;
    let (input, expected, got) = match &step.input {
        StepInput::Tokens(tokens) => (StageInput::Tokens(tokens), count, tokens.len()),
        StepInput::Hidden { payload, dtype } => {
            let row = dtype.row_bytes(model.shape().width) as usize;
            (StageInput::Payload(payload, *dtype), row.saturating_mul(count), payload.len())
        }
    };
    if step.rewind == Rewind::Allow {
        state.rewind(step.first);
    }
    if expected != got {
        return Err(StepError::WrongLength { expected, got });
    }
    Ok(BatchStep { session: state, input, first: step.first, want })
}

/// The token at `position`.
fn choose(tail: Option<&mut TailState>, logits: &[f32], position: Position) -> Result<Choice, StepError> {
    let tail = tail.ok_or(StepError::NotTail)?;
    // What was chosen at this position or later before a rewind is chosen again.
    tail.history.keep_new(position.minus(tail.prompt_length).0 as usize);
    let choice = sample(logits, &tail.parameters, position, &tail.history)?;
    if tail.parameters.looks_back() {
        tail.history.push(choice.token);
    }
    Ok(choice)
}
