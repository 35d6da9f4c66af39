//! The demo model: small enough to travel inside the binary. `MODEL_CARD.md` beside it says what it is.

/// The model's GGUF file.
pub static MODEL: &[u8] = include_bytes!("model.gguf");

/// The name under which every peer's catalogue has it.
pub const ALIAS: &str = "demo";
