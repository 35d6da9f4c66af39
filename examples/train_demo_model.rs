//! Trains the model that `brigade demo` runs, from text that this program makes up.
//!
//! ```sh
//! cargo run --release --example train_demo_model
//! ```
//!
//! Takes at most two hours on two cores, and writes `src/demo/model.gguf`: the same bytes each time on
//! one machine. At the end it prints the loss on unseen documents and the accuracy on 1,000 held-out
//! questions, both of the file as written. With `--check` it only does that, for an existing file.

#![allow(clippy::print_stdout, reason = "this is a command-line program")]

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::ExitCode;
use std::time::Instant;

use candle_core::Result;
use clap::Parser;

#[path = "train_demo_model/attention.rs"]
mod attention;
#[path = "train_demo_model/bpe.rs"]
mod bpe;
#[path = "train_demo_model/chat.rs"]
mod chat;
#[path = "train_demo_model/data.rs"]
mod data;
#[path = "train_demo_model/encoded.rs"]
mod encoded;
#[path = "train_demo_model/eval.rs"]
mod eval;
#[path = "train_demo_model/facts.rs"]
mod facts;
#[path = "train_demo_model/file.rs"]
mod file;
#[path = "train_demo_model/kernels.rs"]
mod kernels;
#[path = "train_demo_model/lexicon.rs"]
mod lexicon;
#[path = "train_demo_model/model.rs"]
mod model;
#[path = "train_demo_model/ops.rs"]
mod ops;
#[path = "train_demo_model/plots.rs"]
mod plots;
#[path = "train_demo_model/random.rs"]
mod random;
#[path = "train_demo_model/start.rs"]
mod start;
#[path = "train_demo_model/tales.rs"]
mod tales;
#[path = "train_demo_model/train.rs"]
mod train;

use bpe::BEGIN;
use bpe::Bpe;
use chat::Part;
use file::Precision;
use model::Model;
use train::Trainer;

/// Tokens in the vocabulary.
const VOCABULARY: usize = 1024;
/// Steps between progress lines.
const REPORT_EVERY: usize = 25;
/// Steps between checkpoints and small evaluations.
const CHECK_EVERY: usize = 100;
/// Held-out questions in a small evaluation, and in the final one.
const QUESTIONS: (usize, usize) = (100, 1000);
/// Unseen documents for the final loss.
const DOCUMENTS: u64 = 500;

/// Trains the demo model and measures it.
#[derive(Debug, Parser)]
struct Args {
    /// Steps to train
    #[arg(long, default_value_t = 3500)]
    steps: usize,
    /// Where the model goes
    #[arg(long, default_value = "src/demo/model.gguf")]
    out: PathBuf,
    /// Where the weights go before quantisation, as a GGUF too
    #[arg(long)]
    full: Option<PathBuf>,
    /// Seed of weights and text
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Saves the state of training here now and then, and goes on from it if it exists
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// Measures this file and trains nothing
    #[arg(long)]
    check: Option<PathBuf>,
    /// Asks the checked file something and prints its answer
    #[arg(long, requires = "check")]
    ask: Vec<String>,
    /// Prints this many training documents and trains nothing
    #[arg(long)]
    show: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match if is_set_up() { run(&args).map(|()| ExitCode::SUCCESS) } else { run_set_up() } {
        Ok(code) => code,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the environment must say before the program starts. One thread per candle operation, because
/// the shards keep the cores busy already; and glibc should keep the memory of freed tensors, which
/// saves a fifth of the time (measured). Neither changes a bit of the result.
const SET_UP: [(&str, &str); 5] = [
    ("CANDLE_NUM_THREADS", "1"),
    ("RAYON_NUM_THREADS", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "1073741824"),
    ("MALLOC_TRIM_THRESHOLD_", "4294967296"),
    ("MALLOC_TOP_PAD_", "67108864"),
];

fn is_set_up() -> bool {
    SET_UP.iter().all(|(name, value)| std::env::var(name).is_ok_and(|found| found == *value))
}

/// Runs this program again, with its environment set up.
fn run_set_up() -> Result<ExitCode> {
    let mut again = Command::new(std::env::current_exe()?);
    let status = again.args(std::env::args_os().skip(1)).envs(SET_UP).status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(args: &Args) -> Result<()> {
    match (&args.check, args.show) {
        (Some(path), _) if args.ask.is_empty() => measure(path),
        (Some(path), _) => ask(path, &args.ask),
        (None, Some(count)) => show(args.seed, count),
        (None, None) => train(args),
    }
}

fn train(args: &Args) -> Result<()> {
    let start = now();
    let bpe = data::learn_vocabulary(args.seed, VOCABULARY);
    let mut trainer = Trainer::new(bpe.size(), args.seed, args.steps);
    if let Some(path) = args.checkpoint.as_ref().filter(|path| path.exists()) {
        trainer.restore(path)?;
    }
    println!("{} tokens in the vocabulary, from step {} to {}", bpe.size(), trainer.step(), args.steps);
    let mut tokens = 0;
    while !trainer.is_done() {
        let progress = trainer.advance(&bpe)?;
        tokens += progress.tokens;
        if trainer.step().is_multiple_of(REPORT_EVERY) {
            let seconds = start.elapsed().as_secs_f64();
            let rate = tokens as f64 / seconds;
            let (step, loss, gradient) = (trainer.step(), progress.loss, progress.gradient);
            println!("step {step:5}  loss {loss:.4}  gradient {gradient:.3}  {seconds:6.0} s  {rate:.0} tokens/s");
        }
        if trainer.step().is_multiple_of(CHECK_EVERY) && !trainer.is_done() {
            look(args, &bpe, &trainer)?;
        }
    }
    file::write(&args.out, &bpe, trainer.values(), Precision::Q8)?;
    if let Some(path) = &args.full {
        file::write(path, &bpe, trainer.values(), Precision::Full)?;
    }
    println!("{} steps and {tokens} tokens in {:.0} s", trainer.step(), start.elapsed().as_secs_f64());
    measure(&args.out)
}

/// Saves the state of training, and says how far the model has come.
fn look(args: &Args, bpe: &Bpe, trainer: &Trainer) -> Result<()> {
    if let Some(path) = &args.checkpoint {
        trainer.save(path)?;
        file::write(&path.with_extension("gguf"), bpe, trainer.values(), Precision::Q8)?;
    }
    let model = Model::new(bpe.size(), trainer.values())?;
    let right = eval::right_answers(&model, bpe, QUESTIONS.0)?;
    println!("step {:5}  {right} of {} held-out questions right", trainer.step(), QUESTIONS.0);
    Ok(())
}

fn measure(path: &Path) -> Result<()> {
    let (bpe, values) = file::read(path)?;
    let model = Model::new(bpe.size(), &values)?;
    let bytes = std::fs::read(path)?;
    println!("{}: {} bytes, blake3 {}", path.display(), bytes.len(), blake3::hash(&bytes));
    let losses = eval::losses(&model, &bpe, DOCUMENTS)?;
    println!("loss on {DOCUMENTS} unseen documents: {:.4}, on their answers: {:.4}", losses.all, losses.answers);
    let right = eval::right_answers(&model, &bpe, QUESTIONS.1)?;
    println!("held-out questions answered exactly: {right} of {}", QUESTIONS.1);
    let tokens = [vec![BEGIN], bpe.encode(BEGINNING)].concat();
    println!("\n> {BEGINNING} ...\n{BEGINNING}{}", eval::complete(&model, &bpe, tokens)?);
    for conversation in CONVERSATIONS {
        converse(&model, &bpe, conversation)?;
    }
    Ok(())
}

fn ask(path: &Path, said: &[String]) -> Result<()> {
    let (bpe, values) = file::read(path)?;
    let said: Vec<&str> = said.iter().map(String::as_str).collect();
    converse(&Model::new(bpe.size(), &values)?, &bpe, &said)
}

/// Prints a conversation in which the user says `said`, one after the other.
fn converse(model: &Model, bpe: &Bpe, said: &[&str]) -> Result<()> {
    let mut parts = Vec::new();
    println!();
    for said in said {
        parts.push(Part::User((*said).to_owned()));
        let answer = eval::reply(model, bpe, &parts)?;
        println!("> {said}\n{answer}");
        parts.push(Part::Answer(answer));
    }
    Ok(())
}

fn show(seed: u64, count: u64) -> Result<()> {
    let bpe = data::learn_vocabulary(seed, VOCABULARY);
    for index in 0..count {
        let mut random = random::Random::stream(seed, index);
        let parts = chat::document(&mut random, chat::Stage::at(usize::MAX));
        println!("{} tokens: {parts:#?}", encoded::Encoded::new(&bpe, &parts).tokens.len());
    }
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "only to print how long training took")]
fn now() -> Instant {
    Instant::now()
}

const BEGINNING: &str = "Once upon a time";

const CONVERSATIONS: [&[&str]; 4] = [
    &["Tell me a story about Mia and a red ball.", "Where did Mia go?", "How did Mia feel at the end?"],
    &[
        "Anna went to the garden with the kite. Ben is at the market. He has the golden key. Clara took the drum to \
         the hill. Tom felt tired and stayed in the barn. Where is Clara?",
        "Who has the golden key?",
        "Where is Tom?",
    ],
    &["Tell me a story."],
    &["Hello!", "Who are you?"],
];
