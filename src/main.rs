//! Brigade's binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    brigade::cli::main()
}
