//! Model files, manifests, vocabularies and blobs on disk.
//!
//! ```text
//!  GGUF file ──gguf──▶ tables ──llama──▶ ModelShape, units of every tensor ──manifest──▶ Manifest (its hash is the ModelId)
//!                         └────vocabulary──▶ Vocabulary ──tokenizer──▶ token ids
//!                                                       └──chat──────▶ prompts
//!  blobs: manifests and vocabularies by hash      catalogue: which models this data directory knows
//!  tensors: what came from other peers, by hash, whole or on its way
//! ```

pub mod blobs;
pub mod catalogue;
pub mod chat;
pub mod fixture;
pub mod gguf;
pub mod llama;
pub mod lookup;
pub mod manifest;
pub mod tensors;
pub mod tokenizer;
pub mod vocabulary;
pub mod writer;

mod bytepairs;
mod cursor;
mod durable;
mod merge;
mod models_file;
mod noise;
mod sentencepiece;
mod splitter;
mod strftime;
mod tojson;
mod value;
