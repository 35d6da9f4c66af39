//! How exact the logits of a model are: this engine's, llama.cpp's and candle's, each beside a model in f64 on the same weights.
//!
//! ```sh
//! (cd benches/llama && npm ci)                             # once; else llama.cpp is left out
//! cargo run --release --example accuracy                   # random weights in some formats, and the demo model
//! cargo run --release --example accuracy -- FILE.gguf …
//! ```
//!
//! Keys and values are halves in all of them but candle. Fails if an error here is larger than llama.cpp's.

#![allow(clippy::print_stdout, reason = "this is a command-line program")]

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::ExitCode;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;
use brigade::amounts::Position;
use brigade::demo;
use brigade::engine::stage::StageInput;
use brigade::engine::stage::StageModel;
use brigade::engine::stage::StageOutput;
use brigade::engine::stage::WantLogits;
use brigade::ids::Token;
use brigade::shape::WeightFormat;
use brigade::units::UnitRange;
use brigade::weights::fixture::RandomModel;
use brigade::weights::gguf::GgufFile;
use brigade::weights::llama;
use brigade::weights::tokenizer::EncodeOptions;
use brigade::weights::tokenizer::Tokenizer;
use brigade::weights::vocabulary::read_vocabulary;
use candle_core::Device;
use candle_core::Tensor;
use candle_core::quantized::gguf_file::Content;
use candle_transformers::models::quantized_llama::ModelWeights;
use clap::Parser;

#[path = "../src/engine/exact.rs"]
mod exact;
/// What the model in f64 is told of shapes.
mod shape {
    pub(crate) use brigade::shape::ModelShape;
    pub(crate) use brigade::shape::RopeScaling;
}

/// Where llama.cpp is asked.
const LLAMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/llama");

/// Formats of random weights.
const FORMATS: [WeightFormat; 7] = [
    WeightFormat::F16,
    WeightFormat::Q8_0,
    WeightFormat::Q5_0,
    WeightFormat::Q4_0,
    WeightFormat::Q6K,
    WeightFormat::Q5K,
    WeightFormat::Q4K,
];

/// What the demo model would say.
const TEXT: &str = "Once upon a time, there lived a clever girl called Ruby. One day she heard someone crying in the kitchen. It was \
    a little dog that could not get home. The dog looked very scared. Ruby sat down next to the dog and spoke softly. Then she \
    called Mia, who came with a golden drum. Together they used the golden drum to help the dog. They took the dog home and made \
    a warm bed for it. That night Ruby felt proud and slept well.";

/// Compares the logits of this engine, of llama.cpp and of candle with those of a model in f64.
#[derive(Debug, Parser)]
struct Args {
    /// GGUF files; without any, random weights and the demo model.
    files: Vec<PathBuf>,
    /// Tokens to evaluate
    #[arg(long, default_value_t = 256)]
    tokens: usize,
    /// The text whose first tokens they are, again and again if it is short
    #[arg(long, default_value = TEXT)]
    text: String,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether no error is larger than llama.cpp's.
fn run(args: &Args) -> anyhow::Result<bool> {
    println!(
        "root mean square errors of the logarithms of probabilities, over {} tokens and the vocabulary\n",
        args.tokens
    );
    println!("{:<24}{:>12}{:>22}{:>22}{:>12}", "", "ours", "llama.cpp, flash", "without flash", "candle");
    let folder = tempfile::tempdir().context("no folder for models")?;
    let mut is_exact = true;
    for (name, file) in files(args, folder.path())? {
        let errors = Errors::of(&file, args).with_context(|| format!("{}", file.display()))?;
        let verdict = if errors.is_no_larger() { "" } else { "  larger" };
        println!("{name:<24}{errors}{verdict}");
        is_exact &= errors.is_no_larger();
    }
    Ok(is_exact)
}

/// What is compared, by name.
fn files(args: &Args, folder: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let name = |file: &PathBuf| file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !args.files.is_empty() {
        return Ok(args.files.iter().map(|file| (name(file), file.clone())).collect());
    }
    let mut files = Vec::new();
    for format in FORMATS {
        // As deep as stories260K, and as wide as whole blocks of every format.
        let sizes =
            RandomModel { blocks: 5, width: 256, heads: 8, kv_heads: 4, feed_forward: 768, ..RandomModel::tiny() };
        let file = folder.join(format!("{format}.gguf"));
        RandomModel { vocab: 512, context: 512, format, ..sizes }.write(&file)?;
        files.push((format!("random, {format}"), file));
    }
    let file = folder.join("demo.gguf");
    std::fs::write(&file, demo::MODEL)?;
    files.push(("demo, Q8_0".to_owned(), file));
    Ok(files)
}

/// How far logits are from those of f64.
struct Errors {
    ours: f64,
    /// With flash attention and without; none where llama.cpp is not installed.
    llama: Option<[f64; 2]>,
    candle: f64,
}

impl Errors {
    fn of(file: &Path, args: &Args) -> anyhow::Result<Self> {
        let model = GgufFile::open(file)?;
        let shape = llama::shape(&model)?;
        let most = shape.context as usize;
        ensure!(args.tokens <= most, "{} tokens are more than the context of {most}", args.tokens);
        let said = Tokenizer::new(read_vocabulary(&model)?)?.encode(&args.text, EncodeOptions::RAW);
        ensure!(!said.is_empty(), "the text is empty");
        let tokens: Vec<u32> = said.iter().map(|token| token.0).cycle().take(args.tokens).collect();
        let exact = logarithms(&exact::logits(&shape, &exact_tensors(&model, file)?, &tokens));
        let error = |logits: &Logits| distance(&logarithms(logits), &exact);
        let asked = if Path::new(LLAMA).join("node_modules").exists() {
            let ask = |flash| anyhow::Ok(error(&llamas(file, &tokens, flash, shape.vocab)?));
            Some([ask("on")?, ask("off")?])
        } else {
            None
        };
        Ok(Self { ours: error(&ours(&model, &tokens)?), llama: asked, candle: error(&candles(file, &tokens)?) })
    }

    /// Whether the error here is no larger than llama.cpp's.
    ///
    /// Which way a value is rounded where two ways are as near is chance, and rounding one key another way changes all that
    /// follows: two settings of llama.cpp differ by a seventh in formats of whole numbers, and tenfold in F16 (measured). So the
    /// larger of its errors counts, and a twentieth more is no more.
    fn is_no_larger(&self) -> bool {
        let largest = |errors: [f64; 2]| errors[0].max(errors[1]);
        self.llama.is_none_or(|errors| self.ours <= 1.05 * largest(errors))
    }
}

impl std::fmt::Display for Errors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>12.3e}", self.ours)?;
        for error in self.llama.map_or([None; 2], |errors| errors.map(Some)) {
            match error {
                Some(error) => write!(f, "{:>22}", format!("{error:.3e} ({:.2} ×)", self.ours / error))?,
                None => write!(f, "{:>22}", "not installed")?,
            }
        }
        write!(f, "{:>12.3e}", self.candle)
    }
}

/// For each token the logits after it.
type Logits = Vec<Vec<f32>>;

fn ours(file: &GgufFile, tokens: &[u32]) -> anyhow::Result<Logits> {
    let shape = llama::shape(file)?;
    let whole = UnitRange::whole(shape.units())?;
    let model = StageModel::load(shape, whole, file, &mut |_| {})?;
    let mut session = model.open(whole, Position(shape.context), &[])?;
    let mut step = |token: &u32| {
        let first = session.length();
        match model.forward(&mut session, StageInput::Tokens(&[Token(*token)]), first, WantLogits::LastRow)? {
            StageOutput::Logits(logits) => Ok(logits),
            StageOutput::Hidden(_) | StageOutput::Nothing => bail!("the whole model gives no logits"),
        }
    };
    tokens.iter().map(&mut step).collect()
}

fn candles(file: &Path, tokens: &[u32]) -> anyhow::Result<Logits> {
    let mut file = File::open(file)?;
    let content = Content::read(&mut file)?;
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    let mut step = |(at, token): (usize, &u32)| {
        let input = Tensor::new(&[*token], &Device::Cpu)?.unsqueeze(0)?;
        anyhow::Ok(model.forward(&input, at)?.squeeze(0)?.to_vec1()?)
    };
    tokens.iter().enumerate().map(&mut step).collect()
}

/// Asks llama.cpp.
///
/// - `flash`: flash attention, on or off
fn llamas(file: &Path, tokens: &[u32], flash: &str, vocabulary: u32) -> anyhow::Result<Logits> {
    let found = tempfile::NamedTempFile::new()?;
    let list: Vec<String> = tokens.iter().map(u32::to_string).collect();
    let mut command = Command::new("node");
    command.arg(Path::new(LLAMA).join("accuracy.mjs")).arg(std::path::absolute(file)?);
    command.arg(list.join(",")).arg(found.path()).arg(flash);
    let ended = command.output().context("node cannot be started")?;
    ensure!(ended.status.success(), "llama.cpp: {}", String::from_utf8_lossy(&ended.stderr));
    let bytes = std::fs::read(found.path())?;
    let (numbers, []) = bytes.as_chunks::<4>() else { bail!("what llama.cpp says is not made of numbers") };
    let numbers: Vec<f32> = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    ensure!(numbers.len() == tokens.len() * vocabulary as usize, "llama.cpp has another vocabulary");
    Ok(numbers.chunks_exact(vocabulary as usize).map(<[f32]>::to_vec).collect())
}

/// The weights of a file as f64.
fn exact_tensors(model: &GgufFile, file: &Path) -> anyhow::Result<exact::Tensors> {
    let mut file = File::open(file)?;
    let content = Content::read(&mut file)?;
    let mut tensors = BTreeMap::new();
    for (name, _) in model.tensors() {
        let tensor = content.tensor(&mut file, name, &Device::Cpu)?.dequantize(&Device::Cpu)?;
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        tensors.insert(name.to_owned(), values.into_iter().map(f64::from).collect());
    }
    Ok(tensors)
}

/// The logarithms of the probabilities that logits stand for.
fn logarithms(logits: &Logits) -> Vec<f64> {
    let row = |row: &Vec<f32>| {
        let largest = f64::from(row.iter().copied().fold(f32::MIN, f32::max));
        let sum: f64 = row.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
        row.iter().map(|logit| f64::from(*logit) - largest - sum.ln()).collect::<Vec<f64>>()
    };
    logits.iter().flat_map(row).collect()
}

/// The root of the mean of the squares of the differences.
fn distance(found: &[f64], expected: &[f64]) -> f64 {
    let squares: f64 = found.iter().zip(expected).map(|(found, expected)| (found - expected).powi(2)).sum();
    (squares / expected.len() as f64).sqrt()
}
