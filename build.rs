//! Compiles `proto/` without an installed `protoc`.

use std::error::Error;

const SCHEMAS: [&str; 1] = ["proto/brigade.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(SCHEMAS, ["proto"])?;
    prost_build::Config::new().bytes(["."]).compile_fds(descriptors)?;
    Ok(())
}
