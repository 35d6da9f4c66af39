//! Whole models beside llama.cpp, in turn.

use std::num::NonZeroUsize;
use std::path::Path;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use brigade::amounts::Position;
use brigade::engine::bench::Runs;
use brigade::engine::bench::kernels::Kernel;
use brigade::engine::canonical::simd::InstructionSet;
use brigade::engine::device::Device;
use brigade::engine::stage::StageModel;
use brigade::engine::workspace::Workspace;
use brigade::shape::WeightFormat;
use brigade::units::UnitRange;
use brigade::weights::fixture::RandomModel;
use brigade::weights::gguf::GgufFile;
use brigade::weights::llama;
use clap::ValueEnum;
use serde_json::json;

use crate::figures::median;
use crate::figures::processor;
use crate::figures::spread;
use crate::pool;
use crate::worker::Worker;

/// Positions before those that are decoded, where depth is not what is measured.
const SHALLOW: u32 = 16;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// GGUF files to measure with. By default random weights of Llama 3.2 1B's shape, written for the purpose.
    files: Vec<PathBuf>,
    /// Formats of the random weights; `Q4_K_M` is a mixture of `Q4_K` and `Q6_K`.
    #[arg(long, value_delimiter = ',', default_value = "Q4_0,Q8_0,F16,Q4_K_M")]
    formats: Vec<String>,
    /// Threads, of either side.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<NonZeroUsize>,
    /// What to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "decode,prefill,batch,deep,load")]
    figures: Vec<Figure>,
    /// How often each is measured; their order rotates.
    #[arg(long, default_value_t = 7)]
    pairs: usize,
    /// Sessions of the batch.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Positions before a deep decode.
    #[arg(long, default_value_t = 2048)]
    depth: u32,
    /// Positions of the prompt.
    #[arg(long, default_value_t = 512)]
    prompt: u32,
    /// Tokens that are decoded each time.
    #[arg(long, default_value_t = 32)]
    tokens: u32,
    /// Limit both to AVX2.
    #[arg(long, conflicts_with = "library")]
    avx2: bool,
    /// Which of llama.cpp's processor libraries to measure beside, such as `icelake` (no AMX). By default the one that it chooses.
    #[arg(long)]
    library: Option<String>,
    /// Where models are kept; those that are there already are used. By default a folder that is removed.
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Figure {
    Decode,
    Prefill,
    Batch,
    Deep,
    Load,
}

/// What is measured of a side: sessions, what they hold before, and what they are then fed.
#[derive(Clone, Copy, Debug)]
struct Work {
    name: &'static str,
    sessions: usize,
    before: u32,
    count: u32,
    is_prompt: bool,
}

impl Work {
    fn of(figure: Figure, options: &Options) -> Option<Self> {
        let decode = Self { name: "decode", sessions: 1, before: SHALLOW, count: options.tokens, is_prompt: false };
        match figure {
            Figure::Decode => Some(decode),
            Figure::Prefill => {
                Some(Self { name: "prefill", before: 0, count: options.prompt, is_prompt: true, ..decode })
            }
            Figure::Batch => Some(Self { name: "batch", sessions: options.batch, ..decode }),
            Figure::Deep => Some(Self { name: "deep", before: options.depth, ..decode }),
            Figure::Load => None,
        }
    }

    fn positions(self) -> u32 {
        (self.before + self.count).next_multiple_of(256)
    }

    fn tokens(self) -> f64 {
        f64::from(self.count) * self.sessions as f64
    }
}

pub(crate) fn measure(options: &Options) -> anyhow::Result<()> {
    let mut worker = Worker::start(options.library.as_deref().or(options.avx2.then_some("haswell")))?;
    let set = if options.avx2 { InstructionSet::Avx2 } else { InstructionSet::best() };
    println!("machine    {}", processor());
    println!("ours       {}", set.name());
    println!("llama.cpp  {}", worker.about()?);
    println!("figures    tokens per second (of all sessions), median (least … most) of {} rounds", options.pairs);
    println!("ratio      ours / the better of llama.cpp's two, of each round; same: ours / ours, of each round\n");
    println!(
        "{:<8}{:<9}{:>2}{:>24}{:>24}{:>24}{:>24}{:>22}{:>9}",
        "model", "figure", "t", "ours", "llama.cpp flash", "llama.cpp plain", "ratio", "same", "ceiling"
    );
    let temporary = tempfile::tempdir().context("no folder for the model")?;
    let dir = options.dir.as_deref().unwrap_or(temporary.path());
    if options.files.is_empty() {
        for format in &options.formats {
            let path = dir.join(format!("{format}.gguf"));
            if !path.exists() {
                model_of(format)?.write(&path).context("the model cannot be written")?;
            }
            measure_file(options, set, &mut worker, format, &path)?;
            if options.dir.is_none() {
                std::fs::remove_file(&path)?;
            }
        }
    }
    for path in &options.files {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        measure_file(options, set, &mut worker, &name, path)?;
    }
    Ok(())
}

fn model_of(format: &str) -> anyhow::Result<RandomModel> {
    if format == "Q4_K_M" {
        return Ok(RandomModel { mixed: true, ..RandomModel::one_billion(WeightFormat::Q4K) });
    }
    Ok(RandomModel::one_billion(format.parse()?))
}

fn measure_file(
    options: &Options,
    set: InstructionSet,
    worker: &mut Worker,
    name: &str,
    path: &Path,
) -> anyhow::Result<()> {
    let file = GgufFile::open(path).with_context(|| path.display().to_string())?;
    let shape = llama::shape(&file)?;
    // llama.cpp takes all cores to load as well.
    let cores = pool(std::thread::available_parallelism()?)?;
    let load = || {
        let whole = UnitRange::whole(shape.units())?;
        StageModel::load_on(&Device::CPU, &cores, shape, whole, &file, &mut |_| {}).map_err(anyhow::Error::from)
    };
    let request = json!({ "do": "load", "file": std::fs::canonicalize(path)? });
    let mut model = load()?;
    worker.request(&request)?;
    if options.figures.contains(&Figure::Load) {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..options.pairs {
            drop(model);
            let began = Instant::now();
            model = load()?;
            ours.push(began.elapsed().as_secs_f64());
            theirs.push(worker.request(&request)?);
        }
        let ratio = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs);
        let [ours, theirs] = [&ours, &theirs].map(|seconds| spread(seconds.iter().copied(), 2));
        println!("{name:<8}{:<9}{:>2}{ours:>24}{theirs:>24}{:>24}{:>24}", "load, s", "", "", spread(ratio, 2));
    }
    for &threads in &options.threads {
        for work in options.figures.iter().filter_map(|figure| Work::of(*figure, options)) {
            let rounds = race(options, set, worker, &model, threads, work)?;
            print_row(name, threads, work, &model, &rounds);
        }
    }
    Ok(())
}

/// Tokens per second of one round, and gigabytes read a second.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    ours: f64,
    again: f64,
    flash: f64,
    plain: f64,
    read: f64,
}

/// Measures both sides in turn, ours twice, in an order that rotates.
fn race(
    options: &Options,
    set: InstructionSet,
    worker: &mut Worker,
    model: &StageModel,
    threads: NonZeroUsize,
    work: Work,
) -> anyhow::Result<Vec<Round>> {
    let mut runs = Runs::open(model, Workspace::with(pool(threads)?, set), work.sessions, Position(work.positions()))?;
    for session in 0..work.sessions {
        runs.fill(session, Position(work.before))?;
    }
    for (name, flash) in [("flash", true), ("plain", false)] {
        let (positions, sessions) = (work.positions(), work.sessions);
        worker.request(&json!({ "do": "open", "name": name, "threads": threads, "flash": flash,
            "positions": positions, "sequences": sessions }))?;
        for session in 0..sessions {
            let before = work.before;
            worker.request(&json!({ "do": "feed", "name": name, "sequence": session, "from": 0, "count": before }))?;
        }
    }
    let (reading, mut read) = (pool(threads)?, Kernel::read());
    let mut rounds = Vec::new();
    for number in 0..=options.pairs {
        let mut round = Round::default();
        for side in 0..5 {
            match (side + number) % 5 {
                0 => round.ours = our_turn(&mut runs, work)?,
                1 => round.flash = their_turn(worker, "flash", work)?,
                2 => round.again = our_turn(&mut runs, work)?,
                3 => round.plain = their_turn(worker, "plain", work)?,
                _ => {
                    let began = Instant::now();
                    read.run(set, &reading);
                    round.read = read.bytes.0 as f64 / began.elapsed().as_secs_f64() / 1e9;
                }
            }
        }
        // The first round warms up.
        if number > 0 {
            rounds.push(round);
        }
    }
    for name in ["flash", "plain"] {
        worker.request(&json!({ "do": "close", "name": name }))?;
    }
    Ok(rounds)
}

fn our_turn(runs: &mut Runs<'_>, work: Work) -> anyhow::Result<f64> {
    let began = Instant::now();
    if work.is_prompt {
        runs.fill(0, Position(work.count))?;
    } else {
        for _ in 0..work.count {
            runs.decode()?;
        }
    }
    let took = began.elapsed().as_secs_f64();
    runs.rewind(Position(work.before));
    Ok(work.tokens() / took)
}

fn their_turn(worker: &mut Worker, name: &str, work: Work) -> anyhow::Result<f64> {
    let Work { sessions, before, count, .. } = work;
    let took = if work.is_prompt {
        worker.request(&json!({ "do": "feed", "name": name, "sequence": 0, "from": 0, "count": count }))?
    } else {
        worker
            .request(&json!({ "do": "decode", "name": name, "sequences": sessions, "from": before, "count": count }))?
    };
    worker.request(&json!({ "do": "rewind", "name": name, "sequences": sessions, "to": before }))?;
    Ok(work.tokens() / took)
}

fn print_row(name: &str, threads: NonZeroUsize, work: Work, model: &StageModel, rounds: &[Round]) {
    let of = |figure: fn(&Round) -> f64| rounds.iter().map(figure);
    let flash_is_better = median(of(|round| round.flash)) >= median(of(|round| round.plain));
    let better = |round: &Round| if flash_is_better { round.flash } else { round.plain };
    let ratio = spread(rounds.iter().map(|round| round.ours / better(round)), 2);
    let same = spread(of(|round| round.again / round.ours), 2);
    // Every weight is read once a pass; what attention reads besides is not counted.
    let passes = |round: &Round| round.ours / work.sessions as f64;
    let part = median(rounds.iter().map(|round| passes(round) * model.bytes().0 as f64 / 1e9 / round.read));
    let ceiling = if work.name == "decode" { format!("{:.0} %", 100.0 * part) } else { String::new() };
    let [ours, flash, plain] =
        [of(|round| round.ours), of(|round| round.flash), of(|round| round.plain)].map(|values| spread(values, 1));
    println!("{name:<8}{:<9}{threads:>2}{ours:>24}{flash:>24}{plain:>24}{ratio:>24}{same:>22}{ceiling:>9}", work.name);
}
