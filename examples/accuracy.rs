//! How exact the logits of a model are: this engine's, llama.cpp's and candle's, each beside a model in f64 on the same weights.
//!
//! ```sh
//! (cd benches/llama && npm install --ignore-scripts)       # once; else llama.cpp is left out
//! cargo run --release --example accuracy                   # random weights in some formats, and the demo model
//! cargo run --release --example accuracy -- --samples 24 --formats Q8_0
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
    pub(crate) use brigade::shape::RopePairs;
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

/// Tokens by which the beginnings of samples are apart (arbitrary, prime).
const STRIDE: usize = 61;

/// What the demo model would say.
const TEXT: &str = "Once upon a time, there lived a clever girl called Ruby. One day she heard someone crying in the kitchen. It was \
    a little dog that could not get home. The dog looked very scared. Ruby sat down next to the dog and spoke softly. Then she \
    called Mia, who came with a golden drum. Together they used the golden drum to help the dog. They took the dog home and made \
    a warm bed for it. That night Ruby felt proud and slept well.";

/// Compares the logits of this engine, of llama.cpp and of candle with those of a model in f64.
#[derive(Debug, Parser)]
struct Args {
    /// GGUF files; without any, random weights and the demo model
    files: Vec<PathBuf>,
    /// Formats of the random weights; without any, some of them, and the demo model
    #[arg(long, value_delimiter = ',')]
    formats: Vec<WeightFormat>,
    /// Samples of each, pooled: other random weights, and the text begun elsewhere
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    samples: u64,
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
    let Args { tokens, samples, .. } = args;
    println!(
        "root mean square errors of the logarithms of probabilities, over {tokens} tokens and the vocabulary; samples: {samples}\n"
    );
    println!("{:<24}{:>12}{:>28}{:>28}{:>12}", "", "ours", "llama.cpp, flash", "without flash", "candle");
    let folder = tempfile::tempdir().context("no folder for models")?;
    let mut is_exact = true;
    for subject in subjects(args) {
        let sample = |number| {
            let file = subject.file(folder.path(), number)?;
            Errors::of(&file, args, number).with_context(|| format!("{}", file.display()))
        };
        let pooled = Pooled((0..args.samples).map(sample).collect::<anyhow::Result<_>>()?);
        let verdict = if pooled.is_no_larger() { "" } else { "  larger" };
        println!("{:<24}{pooled}{verdict}", subject.name());
        is_exact &= pooled.is_no_larger();
    }
    Ok(is_exact)
}

/// A model that is looked at.
enum Subject {
    Random(WeightFormat),
    Demo,
    File(PathBuf),
}

fn subjects(args: &Args) -> Vec<Subject> {
    if !args.files.is_empty() {
        return args.files.iter().cloned().map(Subject::File).collect();
    }
    if !args.formats.is_empty() {
        return args.formats.iter().copied().map(Subject::Random).collect();
    }
    FORMATS.into_iter().map(Subject::Random).chain([Subject::Demo]).collect()
}

impl Subject {
    fn name(&self) -> String {
        match self {
            Self::Random(format) => format!("random, {format}"),
            Self::Demo => "demo, Q8_0".to_owned(),
            Self::File(file) => file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }

    /// The model's file for a sample: other random weights for each.
    fn file(&self, folder: &Path, sample: u64) -> anyhow::Result<PathBuf> {
        let file = folder.join("model.gguf");
        match self {
            Self::Random(format) => {
                // As deep as stories260K, and as wide as whole blocks of every format.
                let sizes = RandomModel {
                    blocks: 5,
                    width: 256,
                    heads: 8,
                    kv_heads: 4,
                    feed_forward: 768,
                    ..RandomModel::tiny()
                };
                RandomModel { vocab: 512, context: 512, format: *format, seed: sample + 1, ..sizes }.write(&file)?;
            }
            Self::Demo => std::fs::write(&file, demo::MODEL)?,
            Self::File(file) => return Ok(file.clone()),
        }
        Ok(file)
    }
}

/// How far logits are from those of f64.
struct Errors {
    ours: f64,
    /// With flash attention and without; none where llama.cpp is not installed.
    llama: Option<[f64; 2]>,
    candle: f64,
}

impl Errors {
    /// - `sample`: each begins elsewhere in the text
    fn of(file: &Path, args: &Args, sample: u64) -> anyhow::Result<Self> {
        let model = GgufFile::open(file)?;
        let shape = llama::shape(&model)?;
        let most = shape.context as usize;
        ensure!(args.tokens <= most, "{} tokens are more than the context of {most}", args.tokens);
        let said = Tokenizer::new(read_vocabulary(&model)?)?.encode(&args.text, EncodeOptions::RAW);
        ensure!(!said.is_empty(), "the text is empty");
        let start = sample as usize * STRIDE % said.len();
        let tokens: Vec<u32> = said.iter().map(|token| token.0).cycle().skip(start).take(args.tokens).collect();
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
}

/// The errors of several samples.
struct Pooled(Vec<Errors>);

impl Pooled {
    /// The root of the mean of the squares.
    fn error(&self, of: impl Fn(&Errors) -> f64) -> f64 {
        (self.0.iter().map(|errors| of(errors).powi(2)).sum::<f64>() / self.0.len() as f64).sqrt()
    }

    /// llama.cpp's error for each sample, with flash attention (0) or without (1).
    fn llamas(&self, setting: usize) -> Option<Vec<f64>> {
        self.0.iter().map(|errors| errors.llama.map(|llama| llama[setting])).collect()
    }

    /// How many times llama.cpp's error is ours: the geometric mean, and the standard error of its logarithm.
    fn ratio(&self, setting: usize) -> Option<(f64, f64)> {
        let theirs = self.llamas(setting)?;
        let count = theirs.len() as f64;
        let ratios: Vec<f64> = self.0.iter().zip(theirs).map(|(errors, theirs)| (errors.ours / theirs).ln()).collect();
        let mean = ratios.iter().sum::<f64>() / count;
        let variance = ratios.iter().map(|ratio| (ratio - mean).powi(2)).sum::<f64>() / (count - 1.0);
        Some((mean.exp(), (variance / count).sqrt()))
    }

    /// Whether the error here is no larger than that of llama.cpp's less exact setting.
    ///
    /// Which way a value is rounded where two ways are as near is chance, and rounding one key another way changes all that
    /// follows: in one sample two settings of llama.cpp differ by a seventh in formats of whole numbers, and tenfold in F16
    /// (measured). So a twentieth more is no more in one sample, and two standard errors in several.
    fn is_no_larger(&self) -> bool {
        let ratios: Vec<_> = [0, 1].into_iter().filter_map(|setting| self.ratio(setting)).collect();
        let chance = |error: f64| if error.is_nan() { 0.05 } else { 2.0 * error };
        ratios.is_empty() || ratios.iter().any(|(ratio, error)| ratio.ln() <= chance(*error))
    }
}

impl std::fmt::Display for Pooled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:>12.3e}", self.error(|errors| errors.ours))?;
        for setting in [0, 1] {
            let shown = match self.ratio(setting) {
                None => "not installed".to_owned(),
                Some((ratio, error)) => {
                    let theirs = self.error(|errors| errors.llama.map_or(f64::NAN, |llama| llama[setting]));
                    let chance = if error.is_nan() { String::new() } else { format!(" ± {error:.3}") };
                    format!("{theirs:.3e} ({ratio:.3}{chance} ×)")
                }
            };
            write!(f, "{shown:>28}")?;
        }
        write!(f, "{:>12.3e}", self.error(|errors| errors.candle))
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
