//! The engine alone: each kernel beside a read of memory, and the whole beside llama.cpp.
//!
//! ```text
//! cargo bench --bench engine -- kernels
//! cargo bench --bench engine -- llama
//! ```
//!
//! `benches/README.md` says how to read the figures.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints what it measured")]
#![allow(clippy::disallowed_methods, reason = "a bench looks at the clock")]

#[path = "../figures/mod.rs"]
mod figures;
mod kernels;
mod llama;
mod worker;

use std::num::NonZeroUsize;

use brigade::engine::pool::Pool;
use clap::Parser;
use clap::Subcommand;

/// Measures the engine on this machine.
#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    what: Option<What>,
    /// What `cargo bench` passes, and `cargo test --benches` does not.
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Each kernel on every instruction set, beside a read of memory.
    Kernels(kernels::Options),
    /// Whole models beside llama.cpp, in turn.
    Llama(llama::Options),
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if cfg!(debug_assertions) {
        println!("DEBUG BUILD: the figures mean nothing");
    }
    match options.what {
        Some(What::Kernels(options)) => kernels::measure(&options),
        Some(What::Llama(options)) => llama::measure(&options),
        None => {
            println!("nothing was measured: `cargo bench --bench engine -- kernels` or `… -- llama` does");
            Ok(())
        }
    }
}

fn pool(threads: NonZeroUsize) -> anyhow::Result<Pool> {
    Ok(Pool::new(threads)?)
}
