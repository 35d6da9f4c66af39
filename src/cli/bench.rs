//! `brigade bench`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::bail;
use clap::Args;
use serde::Serialize;

use crate::amounts::Bytes;
use crate::amounts::Position;
use crate::cli::output;
use crate::cli::output::Waiting;
use crate::clock::Clock;
use crate::engine::bench::BenchPlan;
use crate::engine::bench::bench as measure;
use crate::engine::device::Device;
use crate::engine::device::DeviceName;
use crate::engine::pool::Pool;
use crate::engine::stage::StageModel;
use crate::os;
use crate::units::UnitRange;
use crate::weights::gguf::GgufFile;
use crate::weights::llama;

/// What `brigade bench` takes.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchArgs {
    /// The GGUF file.
    file: PathBuf,
    /// Measure these units only, such as 0..3 (the end is not included). By default the whole model.
    #[arg(long, value_name = "A..B")]
    units: Option<UnitRange>,
    /// What computes: cpu, cuda, cuda:N or metal; all but the cpu need a build with that feature.
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceName::Cpu)]
    device: DeviceName,
    /// Engine threads. One for each physical core by default.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Tokens to read.
    #[arg(long, value_name = "N", default_value_t = 256)]
    prefill: u32,
    /// Tokens to write.
    #[arg(long, value_name = "N", default_value_t = 64)]
    decode: u32,
    /// Tokens before those that are written. As many as were read by default.
    #[arg(long, value_name = "N")]
    depth: Option<u32>,
    /// Sessions that write at the same time; their tokens are counted together.
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::MIN)]
    batch: NonZeroUsize,
    /// Print a JSON object: file, units, device, threads, bytes, prefill_tokens, prefill_micros, prefill_per_second, depth, batch,
    /// decode_tokens, decode_micros, decode_per_second.
    #[arg(long)]
    json: bool,
}

/// The JSON form. Its names are stable.
#[derive(Debug, Serialize)]
struct BenchView {
    file: String,
    units: String,
    device: String,
    threads: usize,
    bytes: u64,
    prefill_tokens: u32,
    prefill_micros: u64,
    prefill_per_second: f64,
    depth: u32,
    batch: usize,
    decode_tokens: u32,
    decode_micros: u64,
    decode_per_second: f64,
}

/// Measures a file on this machine; no peer is needed.
pub(crate) fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    let device = Device::open(args.device)?;
    let file = GgufFile::open(&args.file).with_context(|| args.file.display().to_string())?;
    let shape = llama::shape(&file).with_context(|| args.file.display().to_string())?;
    let range = args.units.map_or_else(|| UnitRange::whole(shape.units()), Ok)?;
    let depth = args.depth.unwrap_or(args.prefill);
    let positions = args.prefill.max(depth).saturating_add(args.decode);
    if positions == 0 || positions > shape.context {
        let context = shape.context;
        bail!(
            "--prefill or --depth, and --decode, must make 1 to {context} tokens, the model's context; got {positions}"
        );
    }
    let waiting = Waiting::saying(format!("loading and measuring units {range}"));
    let threads = args.threads.or_else(|| NonZeroUsize::new(os::physical_cores().into())).unwrap_or(NonZeroUsize::MIN);
    let clock = Clock::start();
    let model = StageModel::load_on(&device, &Pool::new(threads)?, shape, range, &file, &mut |_| {})?;
    let (prefill, decode) = (Position(args.prefill), Position(args.decode));
    let plan = BenchPlan { threads, prefill, depth: Position(depth), decode, batch: args.batch };
    let figures = measure(&model, &plan, &|| clock.now())?;
    drop(waiting);
    let view = BenchView {
        file: args.file.display().to_string(),
        units: range.to_string(),
        device: args.device.to_string(),
        threads: threads.get(),
        bytes: model.bytes().0,
        prefill_tokens: figures.prefill.0,
        prefill_micros: figures.prefill_took.0,
        prefill_per_second: figures.prefill_per_second(),
        depth,
        batch: args.batch.get(),
        decode_tokens: figures.decode.0,
        decode_micros: figures.decode_took.0,
        decode_per_second: figures.decode_per_second(),
    };
    if args.json { output::json(&view) } else { Ok(output::line(text(&view))?) }
}

fn text(view: &BenchView) -> String {
    let row = |what: &str, tokens: u32, micros, rate: f64| {
        vec![what.to_owned(), tokens.to_string(), output::micros(micros), format!("{rate:.1}")]
    };
    let rows = [
        row("prefill", view.prefill_tokens, view.prefill_micros, view.prefill_per_second),
        row("decode", view.decode_tokens, view.decode_micros, view.decode_per_second),
    ];
    let table = output::table(&["", "tokens", "took", "tokens per second"], &rows);
    let BenchView { file, units, device, threads, .. } = view;
    format!("{file}  units {units}  {}  {device}, {threads} threads\n{table}", Bytes(view.bytes))
}
