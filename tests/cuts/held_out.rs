//! Documents that the demo model has never seen: those on which `examples/train_demo_model.rs` measures it.

#![allow(dead_code, reason = "what makes documents for training makes them here")]

#[path = "../../examples/train_demo_model/bpe.rs"]
pub(crate) mod bpe;
#[path = "../../examples/train_demo_model/chat.rs"]
pub(crate) mod chat;
#[path = "../../examples/train_demo_model/encoded.rs"]
pub(crate) mod encoded;
#[path = "../../examples/train_demo_model/facts.rs"]
pub(crate) mod facts;
#[path = "../../examples/train_demo_model/lexicon.rs"]
pub(crate) mod lexicon;
#[path = "../../examples/train_demo_model/plots.rs"]
pub(crate) mod plots;
#[path = "../../examples/train_demo_model/random.rs"]
pub(crate) mod random;
#[path = "../../examples/train_demo_model/tales.rs"]
pub(crate) mod tales;
