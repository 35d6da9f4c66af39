//! Shows that a model's bits depend on nothing but its weights and tokens: runs a GGUF file in every arrangement of instructions,
//! threads, chunks, company and cuts, and compares logits and caches bit for bit.
//!
//! ```sh
//! cargo run --release --example bits -- FILE.gguf
//! ```

#![allow(clippy::print_stdout, reason = "this is a command-line program")]

use std::fmt;
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
use clap::ValueEnum;

#[path = "bits/arrangements.rs"]
mod arrangements;

use arrangements::Chain;
use arrangements::Company;
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
    #[arg(long, default_value_t = KV_PAGE as usize + 1)]
    text: usize,
    /// Tokens of each text that are read beforehand, once, so that a large model reads the end of a long text only
    #[arg(long, default_value_t = KV_PAGE as usize - 2)]
    before: usize,
    /// Rows of logits to compare, the first after the text
    #[arg(long, default_value_t = 2)]
    logits: usize,
    /// In how many arrangements the plain instructions take part, which are slow
    #[arg(long, default_value = "some")]
    plain: Plain,
}

/// In how many arrangements the plain instructions take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Plain {
    /// In none.
    None,
    /// In all of no cut, of one into two and of one into three, and in one of every other cut.
    Some,
    /// In all.
    All,
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
    ensure!(shape.units() > 4, "{} units are too few for every kind of cut", shape.units());
    let cuts = cuts(shape.units());
    let jobs = jobs(args.plain, &cuts);
    let plainest = jobs.first().map_or(InstructionSet::Plain, |job| job.set);
    println!(
        "{} arrangements of {} units, cut in {} ways",
        jobs.iter().map(Job::size).sum::<usize>(),
        shape.units(),
        cuts.len()
    );

    let mut progress = Progress::new(&jobs);
    println!("the texts are first read with {} instructions, one thread, in one chunk, alone, uncut", plainest.name());
    let text = |seed: u32| (0..args.text as u32).map(|at| Token((at * 7919 + seed) % shape.vocab)).collect();
    let subject = Subject::new(&Chain::load(shape, &file, &[])?, plainest, [1, 17, 255].map(text), args.logits);
    for jobs in jobs.chunk_by(|job, next| job.cuts == next.cuts) {
        let mut stand = Stand::new(&subject, Chain::load(shape, &file, &jobs[0].cuts)?, args.before);
        for job in jobs {
            let (same, different) =
                stand.check(&mut workspace(job.set, job.threads), job.companies, from(args, job.set));
            for (chunks, company) in &different {
                println!("differs: {job:?}: {chunks:?} in {company:?}");
            }
            progress.add(job, same, different.len());
            println!("{progress} ({}, {} threads, cut at {:?})", job.set.name(), job.threads, job.cuts);
        }
    }
    let Progress { same, different, .. } = progress;
    println!("{same} arrangements give the same {} bits of logits and caches, {different} do not", subject.bits());
    Ok(different)
}

/// Arrangements with the same instructions, threads and cuts.
#[derive(Debug)]
struct Job {
    cuts: Vec<u16>,
    set: InstructionSet,
    threads: usize,
    companies: &'static [Company],
}

impl Job {
    /// How many arrangements these are.
    fn size(&self) -> usize {
        self.companies.iter().map(|company| company.readers.len()).sum()
    }

    /// About how long it takes: to compare with other jobs only.
    fn cost(&self) -> f64 {
        // Measured with Q4_0.
        let slowness = if self.set == InstructionSet::Plain { 40.0 } else { 1.0 };
        let rows: usize = self.companies.iter().map(|company| company.batch + 4).sum();
        slowness * rows as f64 / self.threads.min(2) as f64
    }
}

/// What is to be done, cut by cut; slow instructions first.
fn jobs(plain: Plain, cuts: &[Vec<u16>]) -> Vec<Job> {
    let mut jobs = Vec::new();
    let thorough = [0, cuts.iter().rposition(|cuts| cuts.len() == 1).unwrap_or(0) / 2, cuts.len() - 1];
    for (number, cuts) in cuts.iter().enumerate() {
        for set in InstructionSet::ALL.into_iter().filter(|set| set.is_available()) {
            let job = |threads, companies| Job { cuts: cuts.clone(), set, threads, companies };
            match plain {
                Plain::None if set == InstructionSet::Plain => {}
                Plain::Some if set == InstructionSet::Plain && !thorough.contains(&number) => {
                    // One of the smaller companies.
                    let company = number % 5;
                    jobs.push(job(THREADS[number % THREADS.len()], &Company::ALL[company..=company]));
                }
                Plain::None | Plain::Some | Plain::All => {
                    jobs.extend(THREADS.map(|threads| job(threads, Company::ALL.as_slice())));
                }
            }
        }
    }
    jobs
}

/// Where reading begins: of a text in one chunk early enough that instructions for many rows have as many.
fn from(args: &Args, set: InstructionSet) -> [usize; 3] {
    let many = if set == InstructionSet::Amx { MANY_ROWS } else { 0 };
    [args.before.min(args.text.saturating_sub(many)), args.before, args.before]
}

/// A few more rows than instructions for many want at least, which is 32.
const MANY_ROWS: usize = 35;

/// How far it has come.
struct Progress {
    clock: Clock,
    arrangements: usize,
    cost: f64,
    done: f64,
    same: usize,
    different: usize,
}

impl Progress {
    fn new(jobs: &[Job]) -> Self {
        let (arrangements, cost) = (jobs.iter().map(Job::size).sum(), jobs.iter().map(Job::cost).sum());
        Self { clock: Clock::start(), arrangements, cost, done: 0.0, same: 0, different: 0 }
    }

    fn add(&mut self, job: &Job, same: usize, different: usize) {
        self.done += job.cost();
        self.same += same;
        self.different += different;
    }
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = Span(self.clock.now().0).as_seconds() / 60.0;
        let left = minutes * (self.cost / self.done - 1.0);
        let done = self.same + self.different;
        write!(f, "{done} of {} in {minutes:.1} min, about {left:.0} min left", self.arrangements)
    }
}
