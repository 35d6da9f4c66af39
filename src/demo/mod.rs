//! The demo model: small enough to travel inside the binary. `MODEL_CARD.md` beside it says what it is.

/// Its name wherever a model is named.
pub const NAME: &str = "demo";

/// A GGUF file; `examples/train_demo_model.rs` makes it.
pub static MODEL: &[u8] = include_bytes!("model.gguf");
