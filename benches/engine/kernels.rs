//! Each kernel on every instruction set, beside a read of memory.

use std::num::NonZeroUsize;
use std::time::Instant;

use brigade::engine::bench::kernels::Kernel;
use brigade::engine::canonical::simd::InstructionSet;
use brigade::shape::WeightFormat;
use brigade::weights::fixture::random_weights;

use crate::figures::median;
use crate::figures::processor;
use crate::figures::spread;
use crate::pool;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Formats to measure. All by default.
    #[arg(long, value_delimiter = ',')]
    formats: Vec<WeightFormat>,
    /// Input rows of the products.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 512])]
    rows: Vec<usize>,
    /// Threads.
    #[arg(long, default_value_t = NonZeroUsize::MIN)]
    threads: NonZeroUsize,
    /// How often each is run; their order rotates.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
}

/// One contestant of a round and how long it took each time.
struct Contestant {
    name: String,
    set: InstructionSet,
    kernel: usize,
    seconds: Vec<f64>,
}

pub(crate) fn measure(options: &Options) -> anyhow::Result<()> {
    println!("machine  {}, {} threads\n", processor(), options.threads);
    println!("{:<28}{:>30}{:>22}", "median (least … most)", "", "part of the read test");
    let formats = if options.formats.is_empty() { WeightFormat::ALL } else { &options.formats };
    for &format in formats {
        let stored = random_weights(format, Kernel::matrix_elements());
        for &rows in &options.rows {
            let kernels = vec![Kernel::read(), Kernel::product(format, &stored, rows)];
            let products = sets().map(|set| (format!("{format} × {rows} {}", set.name()), set, 1));
            race(options, kernels, products.collect())?;
        }
        let best = InstructionSet::best();
        race(
            options,
            vec![Kernel::read(), Kernel::packing(format, stored)],
            vec![(format!("{format} packing"), best, 1)],
        )?;
    }
    for (name, kernel) in [
        ("attention at 2,048", Kernel::attention(2048)),
        ("rounding to blocks of 32", Kernel::rounding()),
        ("norm", Kernel::norm()),
        ("gate", Kernel::gate()),
    ] {
        let contestants = sets().map(|set| (format!("{name} {}", set.name()), set, 1)).collect();
        race(options, vec![Kernel::read(), kernel], contestants)?;
    }
    Ok(())
}

/// The machine's instruction sets but for the plain one.
fn sets() -> impl Iterator<Item = InstructionSet> {
    InstructionSet::ALL.into_iter().filter(|set| set.is_available() && *set != InstructionSet::Plain)
}

/// Runs a read of memory (kernel 0) and the contestants in turn, in an order that rotates, and prints a line for each.
fn race(
    options: &Options,
    mut kernels: Vec<Kernel>,
    contestants: Vec<(String, InstructionSet, usize)>,
) -> anyhow::Result<()> {
    let pool = pool(options.threads)?;
    let read = ("read".to_owned(), InstructionSet::best(), 0);
    let mut contestants: Vec<Contestant> = std::iter::once(read)
        .chain(contestants)
        .map(|(name, set, kernel)| Contestant { name, set, kernel, seconds: Vec::new() })
        .collect();
    for round in 0..=options.rounds {
        let count = contestants.len();
        for index in 0..count {
            let contestant = &mut contestants[(index + round) % count];
            let kernel = &mut kernels[contestant.kernel];
            let began = Instant::now();
            kernel.run(contestant.set, &pool);
            // The first round warms up.
            if round > 0 {
                contestant.seconds.push(began.elapsed().as_secs_f64());
            }
        }
    }
    let rate = |contestant: &Contestant| {
        kernels[contestant.kernel].bytes.0 as f64 / median(contestant.seconds.iter().copied()) / 1e9
    };
    let read = rate(&contestants[0]);
    for contestant in &contestants[1..] {
        let kernel = &kernels[contestant.kernel];
        let is_bound = kernel.multiplications <= 4 * kernel.bytes.0;
        let (amount, unit) = if is_bound { (kernel.bytes.0, "GB/s") } else { (kernel.multiplications, "GMAC/s") };
        let shown = spread(contestant.seconds.iter().map(|seconds| amount as f64 / seconds / 1e9), 1);
        let part = if is_bound { format!("{:.0} %", 100.0 * rate(contestant) / read) } else { String::new() };
        println!("{:<28}{shown:>30} {unit:<7}{part:>10}", contestant.name);
    }
    Ok(())
}
