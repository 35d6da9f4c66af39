//! The model that the program carries, so that it has something to show on a machine without weights.

/// Its name wherever a model is named.
pub const NAME: &str = "demo";

/// What its file is called.
pub const FILE: &str = "demo.gguf";

/// How many units it has.
pub const UNITS: u16 = 8;

/// A GGUF file; `examples/train_demo_model.rs` makes it.
pub static MODEL: &[u8] = include_bytes!("model.gguf");
