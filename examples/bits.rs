//! Shows that a model's bits depend on nothing but its weights and tokens: runs a GGUF file in every arrangement of instructions,
//! threads, chunks, company and cuts, and compares logits and caches bit for bit.
//!
//! ```sh
//! cargo run --release --example bits -- FILE.gguf
//! ```

#![allow(clippy::print_stdout, reason = "this is a command-line program")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;
use brigade::amounts::Span;
use brigade::clock::Clock;
use brigade::engine::canonical::simd::InstructionSet;
use brigade::ids::Token;
use brigade::shape::KV_PAGE;
use brigade::weights::gguf::GgufFile;
use brigade::weights::llama;
use clap::Parser;

#[path = "bits/arrangements.rs"]
mod arrangements;

use arrangements::Chain;
use arrangements::Stand;
use arrangements::Subject;
use arrangements::cuts;
use arrangements::workspace;

/// Numbers of threads.
const THREADS: [usize; 3] = [1, 2, 3];

/// Compares every arrangement of a model's computation with the plainest, bit for bit.
#[derive(Debug, Parser)]
struct Args {
    /// A GGUF file.
    file: PathBuf,
    /// Tokens of each text
    #[arg(long, default_value_t = KV_PAGE as usize + 2)]
    text: usize,
    /// Tokens of each text that are read beforehand, once, so that a large model reads the end of a long text only
    #[arg(long, default_value_t = KV_PAGE as usize - 2)]
    before: usize,
    /// Rows of logits to compare, the first after the text
    #[arg(long, default_value_t = 2)]
    logits: usize,
    /// Leaves out the plain instructions, which are slow
    #[arg(long)]
    no_plain: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns how many arrangements differed.
fn run(args: &Args) -> anyhow::Result<usize> {
    ensure!(args.before < args.text, "of {} tokens, {} cannot be read beforehand", args.text, args.before);
    ensure!(args.logits > 0, "there are no logits to compare");
    let file = GgufFile::open(&args.file)?;
    let shape = llama::shape(&file)?;
    let cuts = cuts(shape.units());
    let sets: Vec<InstructionSet> = InstructionSet::ALL
        .into_iter()
        .filter(|set| set.is_available() && !(args.no_plain && *set == InstructionSet::Plain))
        .collect();
    println!(
        "{} instruction sets × {} numbers of threads × 3 ways to cut the prompt × 4 sizes of a batch × {} ways to cut the model",
        sets.len(),
        THREADS.len(),
        cuts.len()
    );

    let text = |seed: u32| (0..args.text as u32).map(|at| Token((at * 7919 + seed) % shape.vocab)).collect();
    let subject = Subject::new(&Chain::load(shape, &file, &[])?, sets[0], [1, 17, 255].map(text), args.logits);
    let mut progress = Progress::new(cuts.len() * sets.len() * THREADS.len());
    for cuts in cuts {
        let mut stand = Stand::new(&subject, Chain::load(shape, &file, &cuts)?, args.before);
        for set in &sets {
            for threads in THREADS {
                let began = progress.clock.now();
                let (same, different) = stand.check(&mut workspace(*set, threads), from(args, *set));
                for (chunks, company) in &different {
                    println!("differs: {set:?}, {threads} threads, cut at {cuts:?}, {chunks:?} in {company:?}");
                }
                progress.step(same, different.len());
                let took = progress.clock.now().since(began);
                println!("{} cut at {cuts:?}, {}, {threads} threads: {took}", progress.line(), set.name());
            }
        }
    }
    let Progress { same, different, .. } = progress;
    let bits = subject.bits();
    println!(
        "{same} of {} arrangements give the same {bits} bits of logits and caches, {different} do not",
        same + different
    );
    Ok(different)
}

/// Where reading begins: of a prompt in one chunk early enough that instructions for many rows have as many.
fn from(args: &Args, set: InstructionSet) -> [usize; 3] {
    let many = if set == InstructionSet::Amx { MANY_ROWS } else { 0 };
    [args.before.min(args.text.saturating_sub(many)), args.before, args.before]
}

/// More rows than the instructions for many want at least, which is 32.
const MANY_ROWS: usize = 35;

/// How far it has come.
struct Progress {
    clock: Clock,
    steps: usize,
    done: usize,
    same: usize,
    different: usize,
}

impl Progress {
    fn new(steps: usize) -> Self {
        Self { clock: Clock::start(), steps, done: 0, same: 0, different: 0 }
    }

    fn step(&mut self, same: usize, different: usize) {
        self.done += 1;
        self.same += same;
        self.different += different;
    }

    /// What is done and about how long the rest takes.
    fn line(&self) -> String {
        let passed = self.clock.now().0;
        let left = Span(passed / self.done as u64 * (self.steps - self.done) as u64);
        format!("{} of {} in {}, {left} left:", self.done, self.steps, Span(passed))
    }
}
