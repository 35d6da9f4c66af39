//! Every way to arrange a computation that must not matter: instructions, threads, chunks of the prompt, company in the batch,
//! cuts of the model.

use std::num::NonZeroUsize;

use brigade::amounts::Position;
use brigade::engine::canonical::simd::InstructionSet;
use brigade::engine::pool::Pool;
use brigade::engine::stage::BatchStep;
use brigade::engine::stage::SessionState;
use brigade::engine::stage::StageInput;
use brigade::engine::stage::StageModel;
use brigade::engine::stage::StageOutput;
use brigade::engine::stage::WantLogits;
use brigade::engine::workspace::StageView;
use brigade::engine::workspace::Workspace;
use brigade::ids::Token;
use brigade::units::UnitRange;

/// How a prompt is cut into steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunks {
    /// In one.
    Whole,
    /// 1, 2, 3 … tokens.
    Odd,
    /// Token by token.
    Single,
}

impl Chunks {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Whole, Self::Odd, Self::Single];

    /// The chunks of `tokens`.
    fn of(self, tokens: &[Token]) -> Vec<Vec<Token>> {
        let mut rest = tokens;
        let mut chunks = Vec::new();
        for number in 1.. {
            if rest.is_empty() {
                break;
            }
            let length = match self {
                Self::Whole => rest.len(),
                Self::Odd => number,
                Self::Single => 1,
            };
            let (chunk, left) = rest.split_at(length.min(rest.len()));
            chunks.push(chunk.to_vec());
            rest = left;
        }
        chunks
    }
}

/// One way to arrange the computation.
#[derive(Clone, Debug)]
pub(crate) struct Arrangement {
    /// The instructions.
    pub(crate) set: InstructionSet,
    /// How many threads compute.
    pub(crate) threads: usize,
    /// How the prompt is cut.
    pub(crate) chunks: Chunks,
    /// Other sessions in every pass.
    pub(crate) strangers: usize,
    /// The units before which the model is cut, ascending.
    pub(crate) cuts: Vec<u16>,
}

impl Arrangement {
    /// The plainest: one thread, one chunk, alone, uncut.
    pub(crate) fn plainest(set: InstructionSet) -> Self {
        Self { set, threads: 1, chunks: Chunks::Whole, strangers: 0, cuts: Vec::new() }
    }
}

/// What must be the same in every arrangement, as bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    /// The logits after the prompt and after each generated token.
    pub(crate) logits: Vec<Vec<u32>>,
    /// The hash of the keys and values of each block at the end.
    pub(crate) caches: Vec<[u8; 32]>,
}

/// Reads `prompt` and generates greedily until there are `logits` rows of logits.
///
/// - `model`: the whole model; cuts are made between sessions on parts of it
pub(crate) fn trace(model: &StageModel, arrangement: &Arrangement, prompt: &[Token], logits: usize) -> Trace {
    let threads = NonZeroUsize::new(arrangement.threads).expect("there is a thread");
    let pool = Pool::new(threads).expect("threads can be started");
    let mut workspace = Workspace::with(pool, arrangement.set);
    let mut stages = stages(model, arrangement);
    let mut found = Vec::new();
    let mut steps = Chunks::of(arrangement.chunks, prompt);
    steps.reverse();
    let mut number = 0;
    while let Some(step) = steps.pop() {
        let left = pass(model, &mut workspace, &mut stages, &step, number);
        number += 1;
        if steps.is_empty() {
            found.push(left.iter().map(|value| value.to_bits()).collect());
            if found.len() < logits {
                steps.push(vec![argmax(&left)]);
            }
        }
    }
    let caches = stages.iter().flat_map(|sessions| sessions[0].cache_hashes()).collect();
    Trace { logits: found, caches }
}

/// For each stage the session that is looked at, and then those of the strangers.
fn stages(model: &StageModel, arrangement: &Arrangement) -> Vec<Vec<SessionState>> {
    let units = model.shape().units();
    let starts = [0].into_iter().chain(arrangement.cuts.iter().copied());
    let ends = arrangement.cuts.iter().copied().chain([units]);
    let open = |(start, end)| {
        let range = UnitRange::new(start, end).expect("cuts ascend");
        let session = || model.open(range, Position(model.shape().context), &[]).expect("the whole model is loaded");
        (0..=arrangement.strangers).map(|_| session()).collect()
    };
    starts.zip(ends).map(open).collect()
}

/// Takes one step of every session through all stages; returns the logits of the first's last position.
fn pass(
    model: &StageModel,
    workspace: &mut Workspace,
    stages: &mut [Vec<SessionState>],
    step: &[Token],
    number: usize,
) -> Vec<f32> {
    let vocabulary = model.shape().vocab as usize;
    let company = stages.first().map_or(0, Vec::len);
    // Strangers say other things, one to three at a time.
    let said = |who: usize| {
        (0..1 + (who + number) % 3).map(move |at| Token(((who * 31 + number * 7 + at) % vocabulary) as u32))
    };
    let mut tokens: Vec<Vec<Token>> = (0..company).map(|who| said(who).collect()).collect();
    tokens[0] = step.to_vec();
    let mut inputs: Vec<StageOutput> = Vec::new();
    for sessions in stages {
        let steps = sessions.iter_mut().enumerate().map(|(who, session)| {
            let first = session.length();
            let input = match inputs.get(who) {
                None => StageInput::Tokens(&tokens[who]),
                Some(StageOutput::Hidden(hidden)) => StageInput::Hidden(hidden),
                Some(_) => unreachable!("only the last stage has the head"),
            };
            BatchStep { session, input, first, want: WantLogits::LastRow }
        });
        let mut steps: Vec<BatchStep<'_>> = steps.collect();
        // The session that is looked at is not always the first of the batch.
        let turn = number % steps.len();
        steps.rotate_left(turn);
        let outcomes = model.forward_batch(&mut steps, workspace);
        let output = |who: usize| outcomes.of((who + company - turn) % company).map(StageView::to_output);
        inputs = (0..company).map(output).collect::<Result<_, _>>().expect("steps fit");
    }
    match inputs.swap_remove(0) {
        StageOutput::Logits(logits) => logits,
        StageOutput::Hidden(_) | StageOutput::Nothing => {
            unreachable!("the last stage has the head, and logits were wanted")
        }
    }
}

/// The first of the largest.
fn argmax(logits: &[f32]) -> Token {
    let best = logits.iter().enumerate().rev().max_by(|(_, a), (_, b)| a.total_cmp(b));
    Token(best.map_or(0, |(index, _)| index) as u32)
}
