//! Steps of many sessions in one pass through a stage.

use std::mem;

use crate::amounts::Position;
use crate::engine::block::multiply;
use crate::engine::error::StepError;
use crate::engine::float_control;
use crate::engine::matrix::Matrix;
use crate::engine::payload::append_payload;
use crate::engine::stage::BatchStep;
use crate::engine::stage::Head;
use crate::engine::stage::StageInput;
use crate::engine::stage::StageModel;
use crate::engine::stage::WantLogits;
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
    /// values and the scores that go with them where [`Self::make_room`] has not done so.
    pub fn forward_batch<'w>(&self, steps: &mut [BatchStep<'_>], workspace: &'w mut Workspace) -> Outcomes<'w> {
        workspace.begin(&self.shape);
        let Some(range) = steps.first().map(|step| step.session.range()) else { return Outcomes(workspace) };
        let rounds = float_control::make_canonical().is_ok();
        for (index, step) in steps.iter().enumerate() {
            let entered = if rounds { self.enter(range, index, step, workspace) } else { Err(StepError::Rounding) };
            workspace.outcomes.push(entered.map(|()| Came::Nothing));
        }
        if !workspace.layout.segments.is_empty() {
            self.compute(range, steps, workspace);
            self.leave(range, steps, workspace);
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
    fn compute(&self, range: UnitRange, steps: &mut [BatchStep<'_>], workspace: &mut Workspace) {
        let width = self.shape.width as usize;
        let Workspace { pool, set, layout, buffers, .. } = workspace;
        layout.complete();
        buffers.fit(layout.rows(), &self.shape);
        let mut pass = Pass { pool, set: *set, layout, buffers, steps, heads: self.heads() };
        let first_unit = range.start().max(1);
        let offset = usize::from(first_unit - self.range.start().max(1));
        for (index, unit) in (0..usize::from(self.shape.blocks_in(range))).zip(first_unit..) {
            round(&mut pass, unit, width);
            self.blocks[offset + index].forward(&mut pass, index);
        }
        if range.contains(self.shape.head_unit()) {
            round(&mut pass, self.shape.head_unit(), width);
        }
    }

    /// Says what each step came to, and lengthens the sessions of those that succeeded.
    fn leave(&self, range: UnitRange, steps: &mut [BatchStep<'_>], workspace: &mut Workspace) {
        let head = self.head.as_ref().filter(|_| range.contains(self.shape.head_unit()));
        let (width, mut wanting) = (self.shape.width as usize, 0);
        let Workspace { layout, buffers, outcomes, .. } = workspace;
        for segment in &layout.segments {
            let finite = all_finite(&buffers.hidden[segment.elements(width)]);
            outcomes[segment.step] = match steps[segment.step].want {
                _ if !finite => Err(StepError::NonFinite),
                _ if head.is_none() => Ok(Came::Hidden(segment.rows())),
                WantLogits::None => Ok(Came::Nothing),
                WantLogits::LastRow => {
                    // The rows that want logits move to the front; a later segment's last row is never before them.
                    buffers.hidden.copy_within((segment.end - 1) * width..segment.end * width, wanting * width);
                    wanting += 1;
                    Ok(Came::Logits(wanting - 1))
                }
            };
        }
        if let Some(head) = head {
            self.decide(head, wanting, workspace);
        }
        for segment in &workspace.layout.segments {
            if workspace.outcomes[segment.step].is_ok() {
                let end = segment.first + segment.rows().len();
                steps[segment.step].session.reach(Position(u32::try_from(end).unwrap_or(u32::MAX)));
            }
        }
    }

    /// Computes the logits of the first `wanting` rows.
    fn decide(&self, head: &Head, wanting: usize, workspace: &mut Workspace) {
        let (width, vocab) = (self.shape.width as usize, self.shape.vocab as usize);
        let Workspace { pool, set, layout, buffers, outcomes, .. } = workspace;
        buffers.logits.resize(wanting * vocab, 0.0);
        if wanting == 0 {
            return;
        }
        let mut normed = mem::take(&mut buffers.normed);
        normed.truncate(wanting * width);
        head.norm.apply(pool, *set, &buffers.hidden[..wanting * width], &mut normed);
        multiply(pool, *set, &mut buffers.rounded, &normed, [(&head.output, &mut buffers.logits)]);
        buffers.normed = normed;
        for segment in &layout.segments {
            let outcome = &mut outcomes[segment.step];
            if let Ok(Came::Logits(row)) = outcome
                && !all_finite(&buffers.logits[*row * vocab..(*row + 1) * vocab])
            {
                *outcome = Err(StepError::NonFinite);
            }
        }
    }

    fn heads(&self) -> Heads {
        let ModelShape { heads, kv_heads, head_dim, .. } = self.shape;
        Heads { query: heads as usize, kv: kv_heads as usize, dim: head_dim as usize }
    }
}

/// Rounds what enters `unit` in the sessions that say so.
fn round(pass: &mut Pass<'_, '_>, unit: u16, width: usize) {
    for segment in &pass.layout.segments {
        let hidden = &mut pass.buffers.hidden[segment.elements(width)];
        pass.steps[segment.step].session.round(unit, hidden);
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
