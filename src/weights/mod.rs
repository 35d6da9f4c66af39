//! Model files, manifests, vocabularies and blobs on disk.
//!
//! ```text
//!  GGUF file, or its parts ──gguf──▶ tables ──llama──▶ ModelShape ──layout──▶ units of every tensor
//!                                       │                                         └──manifest──▶ Manifest (its hash is the ModelId)
//!                                       └────vocabulary──▶ Vocabulary ──tokenizer──▶ token ids
//!                                                                     └──chat──────▶ prompts
//!  folder of safetensors ──huggingface──▶ ModelShape, Vocabulary, the same tables of tensors (files)
//!  blobs: manifests and vocabularies by hash      catalogue: which models this data directory knows
//!  tensors: what came from other peers, by hash, whole or on its way
//! ```

pub mod blobs;
pub mod catalogue;
pub mod chat;
pub mod files;
pub mod fixture;
pub mod gguf;
pub mod huggingface;
pub mod layout;
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
mod split;
mod splitter;
mod strftime;
mod tojson;
mod value;
