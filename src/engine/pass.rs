//! Steps of many sessions in one pass through a stage.

use std::mem;

use crate::amounts::Position;
use crate::engine::block::Layers;
use crate::engine::block::multiply;
use crate::engine::error::StepError;
use crate::engine::float_control;
use crate::engine::matrix::Matrix;
use crate::engine::payload::append_payload;
use crate::engine::stage::BatchStep;
use crate::engine::stage::StageInput;
use crate::engine::stage::StageModel;
use crate::engine::stage::WantLogits;
use crate::engine::stage::Weights;
use crate::engine::workspace::Came;
use crate::engine::workspace::Heads;
use crate::engine::workspace::Outcomes;
use crate::engine::workspace::Pass;
use crate::engine::workspace::Segment;
use crate::engine::workspace::Workspace;
use crate::ids::Token;
use crate::shape::ModelShape;
use crate::units::UnitRange;

impl StageModel {
    /// Feeds each step's positions, which follow its session's last, through the session's range and appends them to its
    /// cache: the rows of all steps together, so that weights are read once for all.
    ///
    /// - `steps`: of sessions on one range, which is the first's; what each comes to is that of the step alone, bit for bit
    ///
    /// A step comes to hidden states `[positions, width]`, or, where the range ends the model, to the logits of its last
    /// position if wanted. One that fails leaves its session's length unchanged, so that it may be repeated, and does not
    /// touch the others. Once the workspace has seen a pass as large, nothing is allocated, but for pages of keys and
    /// values and the scores that go with them where [`Self::make_room`] has not done so. (On another device than the processor, bits
    /// may differ and much is allocated.)
    pub fn forward_batch<'w>(&self, steps: &mut [BatchStep<'_>], workspace: &'w mut Workspace) -> Outcomes<'w> {
        workspace.begin(&self.shape);
        let Some(range) = steps.first().map(|step| step.session.range()) else { return Outcomes(workspace) };
        let rounds = float_control::make_canonical().is_ok();
        for (index, step) in steps.iter().enumerate() {
            let entered = if rounds { self.enter(range, index, step, workspace) } else { Err(StepError::Rounding) };
            workspace.outcomes.push(entered.map(|()| Came::Nothing));
        }
        if !workspace.layout.segments.is_empty() {
            match self.compute(range, steps, workspace) {
                Ok(()) => self.leave(range, steps, workspace),
                Err(error) => fail(workspace, |_| true, &error),
            }
        }
        Outcomes(workspace)
    }

    /// Checks a step and appends its rows to the pass.
    fn enter(
        &self,
        range: UnitRange,
        step: usize,
        BatchStep { session, input, first, .. }: &BatchStep<'_>,
        workspace: &mut Workspace,
    ) -> Result<(), StepError> {
        if session.range() != range {
            return Err(StepError::OtherUnits { expected: range, got: session.range() });
        }
        let width = self.shape.width as usize;
        let hidden = &mut workspace.buffers.hidden;
        let start = hidden.len();
        self.append(range, *input, hidden)?;
        let count = (hidden.len() - start) / width;
        let fits = session.admit(*first, count);
        let checked = match fits {
            Err(error) => Err(error),
            Ok(_) if !all_finite(&hidden[start..]) => Err(StepError::NonFiniteInput),
            Ok(_) => Ok(()),
        };
        if checked.is_err() {
            hidden.truncate(start);
            return checked;
        }
        let (start, end) = (start / width, start / width + count);
        let first = first.0 as usize;
        self.rotation.append(first, count, &mut workspace.buffers.angles);
        workspace.layout.segments.push(Segment { step, start, end, first });
        Ok(())
    }

    /// Appends a step's hidden states, or nothing if it fails.
    fn append(&self, range: UnitRange, input: StageInput<'_>, hidden: &mut Vec<f32>) -> Result<(), StepError> {
        let width = self.shape.width as usize;
        let wrong = |expected| Err(StepError::WrongInput { range, expected });
        match input {
            StageInput::Tokens([]) | StageInput::Hidden([]) | StageInput::Payload([], _) => Err(StepError::Empty),
            StageInput::Tokens(tokens) => match &self.embedding {
                Some(embedding) if range.contains(0) => embed(&self.shape, embedding, tokens, hidden),
                _ => wrong("hidden states"),
            },
            StageInput::Hidden(_) | StageInput::Payload(..) if range.contains(0) => wrong("tokens"),
            StageInput::Hidden(states) => {
                check_length(states.len(), width)?;
                hidden.extend_from_slice(states);
                Ok(())
            }
            StageInput::Payload(bytes, dtype) => {
                check_length(bytes.len(), dtype.row_bytes(self.shape.width) as usize)?;
                let whole = append_payload(bytes, dtype, hidden);
                debug_assert!(whole, "whole rows are whole elements");
                Ok(())
            }
        }
    }

    /// Takes all rows through the blocks of the range.
    fn compute(
        &self,
        range: UnitRange,
        steps: &mut [BatchStep<'_>],
        workspace: &mut Workspace,
    ) -> Result<(), StepError> {
        let Workspace { pool, set, layout, buffers, .. } = workspace;
        layout.complete();
        let mut pass = Pass { pool, set: *set, layout, buffers, steps, heads: self.heads() };
        let units = range.start().max(1)..range.end().min(self.shape.head_unit());
        let first = usize::from(units.start - self.range.start().max(1));
        match &self.weights {
            Weights::Canonical(layers) => {
                pass.buffers.fit(pass.layout.rows(), &self.shape);
                for (index, unit) in units.enumerate() {
                    pass.round(unit);
                    layers.blocks[first + index].forward(&mut pass, index);
                }
            }
            Weights::Accelerated(layers) => layers.forward(&mut pass, units, first)?,
        }
        if range.contains(self.shape.head_unit()) {
            pass.round(self.shape.head_unit());
        }
        Ok(())
    }

    /// Says what each step came to, and lengthens the sessions of those that succeeded.
    fn leave(&self, range: UnitRange, steps: &mut [BatchStep<'_>], workspace: &mut Workspace) {
        let ends_model = range.contains(self.shape.head_unit());
        let (width, mut wanting) = (self.shape.width as usize, 0);
        let Workspace { layout, buffers, outcomes, .. } = workspace;
        for segment in &layout.segments {
            let finite = all_finite(&buffers.hidden[segment.elements(width)]);
            outcomes[segment.step] = match steps[segment.step].want {
                _ if !finite => Err(StepError::NonFinite),
                _ if !ends_model => Ok(Came::Hidden(segment.rows())),
                WantLogits::None => Ok(Came::Nothing),
                WantLogits::LastRow => {
                    // The rows that want logits move to the front; a later segment's last row is never before them.
                    buffers.hidden.copy_within((segment.end - 1) * width..segment.end * width, wanting * width);
                    wanting += 1;
                    Ok(Came::Logits(wanting - 1))
                }
            };
        }
        if wanting > 0
            && let Err(error) = self.decide(wanting, workspace)
        {
            fail(workspace, |came| matches!(came, Came::Logits(_)), &error);
        }
        for segment in &workspace.layout.segments {
            if workspace.outcomes[segment.step].is_ok() {
                let end = segment.first + segment.rows().len();
                steps[segment.step].session.reach(Position(u32::try_from(end).unwrap_or(u32::MAX)));
            }
        }
    }

    /// Computes the logits of the first `wanting` rows.
    fn decide(&self, wanting: usize, workspace: &mut Workspace) -> Result<(), StepError> {
        let (width, vocab) = (self.shape.width as usize, self.shape.vocab as usize);
        let Workspace { pool, set, layout, buffers, outcomes, .. } = workspace;
        let hidden = &buffers.hidden[..wanting * width];
        match &self.weights {
            Weights::Canonical(Layers { head: Some(head), .. }) => {
                let mut normed = mem::take(&mut buffers.normed);
                normed.truncate(wanting * width);
                head.norm.apply(pool, *set, hidden, &mut normed);
                buffers.logits.resize(wanting * vocab, 0.0);
                multiply(pool, *set, &mut buffers.rounded, &normed, [(&head.output, &mut buffers.logits)]);
                buffers.normed = normed;
            }
            Weights::Accelerated(layers) => buffers.logits = layers.logits(hidden, wanting)?,
            Weights::Canonical(Layers { head: None, .. }) => {
                unreachable!("a session's range is within the stage's, which so ends the model too")
            }
        }
        for segment in &layout.segments {
            let outcome = &mut outcomes[segment.step];
            if let Ok(Came::Logits(row)) = outcome
                && !all_finite(&buffers.logits[*row * vocab..(*row + 1) * vocab])
            {
                *outcome = Err(StepError::NonFinite);
            }
        }
        Ok(())
    }

    fn heads(&self) -> Heads {
        let ModelShape { heads, kv_heads, head_dim, window, .. } = self.shape;
        let window = window.map(|window| window as usize);
        Heads { query: heads as usize, kv: kv_heads as usize, dim: head_dim as usize, window }
    }
}

/// Fails the steps that came to something like that.
fn fail(workspace: &mut Workspace, like: impl Fn(&Came) -> bool, error: &StepError) {
    for segment in &workspace.layout.segments {
        let outcome = &mut workspace.outcomes[segment.step];
        if outcome.as_ref().is_ok_and(&like) {
            *outcome = Err(error.clone());
        }
    }
}

fn embed(shape: &ModelShape, embedding: &Matrix, tokens: &[Token], hidden: &mut Vec<f32>) -> Result<(), StepError> {
    let (width, start) = (shape.width as usize, hidden.len());
    if let Some(&token) = tokens.iter().find(|token| token.0 >= shape.vocab) {
        return Err(StepError::OutsideVocabulary { token, vocabulary: shape.vocab });
    }
    hidden.resize(start + tokens.len() * width, 0.0);
    for (token, row) in tokens.iter().zip(hidden[start..].chunks_exact_mut(width)) {
        embedding.row(token.0 as usize, row);
    }
    Ok(())
}

fn check_length(got: usize, row: usize) -> Result<(), StepError> {
    let expected = got.next_multiple_of(row);
    if got == expected { Ok(()) } else { Err(StepError::WrongLength { expected, got }) }
}

fn all_finite(values: &[f32]) -> bool {
    values.iter().all(|value| value.is_finite())
}

#[cfg(test)]
#[path = "pass_tests.rs"]
mod tests;
