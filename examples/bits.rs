//! Shows that a model's bits depend on nothing but its weights and tokens: runs a GGUF file in every arrangement of instructions,
//! threads, chunks, company and cuts, and compares logits and caches bit for bit.
//!
//! ```sh
//! cargo run --release --example bits -- FILE.gguf
//! ```

#![allow(clippy::print_stdout, reason = "this is a command-line program")]

use std::path::PathBuf;
use std::process::ExitCode;

use brigade::engine::canonical::simd::InstructionSet;
use brigade::engine::stage::StageModel;
use brigade::ids::Token;
use brigade::units::UnitRange;
use brigade::weights::gguf::GgufFile;
use brigade::weights::llama;
use clap::Parser;

#[path = "bits/arrangements.rs"]
mod arrangements;

use arrangements::Arrangement;
use arrangements::Chunks;
use arrangements::trace;

/// Compares every arrangement of a model's computation with the plainest, bit for bit.
#[derive(Debug, Parser)]
struct Args {
    /// A GGUF file.
    file: PathBuf,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 40)]
    prompt: u32,
    /// Rows of logits to compare, the first after the prompt
    #[arg(long, default_value_t = 4)]
    logits: usize,
    /// Also the plain instructions, which are slow
    #[arg(long)]
    plain: bool,
    /// Only a few arrangements of each kind, for large models
    #[arg(long)]
    few: bool,
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
    let file = GgufFile::open(&args.file)?;
    let shape = llama::shape(&file)?;
    let whole = UnitRange::whole(shape.units())?;
    let model = StageModel::load(shape, whole, &file, &mut |_| {})?;
    let prompt: Vec<Token> = (0..args.prompt).map(|at| Token((at * 7919 + 1) % shape.vocab)).collect();
    let expected = trace(&model, &Arrangement::plainest(InstructionSet::best()), &prompt, args.logits);
    let (mut same, mut different) = (0, 0);
    for arrangement in arrangements_of(args, shape.units()) {
        if trace(&model, &arrangement, &prompt, args.logits) == expected {
            same += 1;
        } else {
            different += 1;
            println!("differs: {arrangement:?}");
        }
    }
    let bits = (expected.logits.iter().flatten().count() + expected.caches.len()).max(1);
    println!("{same} arrangements give the same {bits} logits and caches bit for bit, {different} do not");
    Ok(different)
}

fn arrangements_of(args: &Args, units: u16) -> Vec<Arrangement> {
    let sets = InstructionSet::ALL.into_iter().filter(|set| set.is_available());
    let sets = sets.filter(|set| args.plain || *set != InstructionSet::Plain);
    let mut all = Vec::new();
    for set in sets {
        for threads in [1, 2, 3] {
            for chunks in Chunks::ALL {
                for strangers in [0, 1, 4, 15] {
                    for cuts in cuts(units) {
                        all.push(Arrangement { set, threads, chunks, strangers, cuts });
                    }
                }
            }
        }
    }
    // Every 29th still meets every value of everything, since 29 divides no count of values.
    if args.few { all.into_iter().step_by(29).collect() } else { all }
}

/// No cut, every cut into two, and several into three.
fn cuts(units: u16) -> Vec<Vec<u16>> {
    let twos = (1..units).map(|cut| vec![cut]);
    let threes = (1..units - 1).step_by(2).map(|first| vec![first, first + (units - first) / 2]);
    std::iter::once(Vec::new()).chain(twos).chain(threes).collect()
}
