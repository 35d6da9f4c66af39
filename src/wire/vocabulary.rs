//! A model's vocabulary: what a requester needs to turn text into token ids and back. Stored and fetched as one blob.
//!
//! Its bytes, all numbers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | mark, `BRGV` |
//! | 2 | version, 1 |
//! | 1 | kind: 0 SentencePiece, 1 byte pairs |
//! | 1 + n | byte pairs: name of the pre-tokenizer |
//! | 4 | how many tokens |
//! | 2 + n each | the tokens' texts |
//! | 1 each | the tokens' types |
//! | 1 (+ 4 each) | 1 and the tokens' scores (f32), or 0 |
//! | 4 | how many merges |
//! | 2 + n each | the merges |
//! | 1 (+ 4) | 1 and the beginning of sequence, or 0 |
//! | 1, 1 | whether it is put before every text; whether a space is |
//! | 1 + 4 each | how many ids end a generation, and those |
//! | 1 (+ 4 + n) | 1 and the chat template, or 0 |
//!
//! One vocabulary has exactly one encoding: what is accepted encodes to the same bytes again.

use crate::ids::BlobHash;
use crate::ids::Token;

mod codec;

/// The longest text of a token or a merge, in bytes (arbitrary; the longest in use are runs of a few hundred spaces).
pub const MAX_TOKEN_TEXT: usize = 8_192;

/// The most merges (arbitrary; the most in use are about 515,000).
pub const MAX_MERGES: usize = 1 << 21;

/// The most ids that end a generation; as many as a tail takes.
pub const MAX_ENDS: usize = crate::wire::control::MAX_END_OF_GENERATION;

/// The longest chat template, in bytes (arbitrary; the longest in use take about 20,000).
pub const MAX_TEMPLATE: usize = 1 << 20;

/// The longest name of a pre-tokenizer, in bytes.
pub const MAX_PRE: usize = 64;

/// The tokenizer and chat template of a model, as GGUF's metadata gives them.
#[derive(Clone, Debug, PartialEq)]
pub struct Vocabulary {
    /// How text is cut into tokens.
    pub kind: VocabularyKind,
    /// Every token's text, by id. In byte-level BPE, in GPT-2's byte alphabet.
    pub tokens: Vec<String>,
    /// What each token is, by id; as many as `tokens`.
    pub types: Vec<TokenType>,
    /// Every token's score, by id, where the kind has them; else empty.
    pub scores: Vec<f32>,
    /// The merges of byte-level BPE, best first, as `left right`; else empty.
    pub merges: Vec<String>,
    /// Beginning of sequence.
    pub bos: Option<Token>,
    /// Whether `bos` is put before every text.
    pub add_bos: bool,
    /// Whether SentencePiece puts a space before the text.
    pub add_space_prefix: bool,
    /// Ids that end a generation, ascending: end of sequence, end of turn, end of message.
    pub end_of_generation: Vec<Token>,
    /// The chat template (Jinja), if the model has one.
    pub chat_template: Option<String>,
}

/// The kinds of tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VocabularyKind {
    /// SentencePiece as Llama 1 and 2 use it (`tokenizer.ggml.model = llama`).
    SentencePiece,
    /// Byte-level BPE (`gpt2`), with the name of its pre-tokenizer, such as `llama-bpe`.
    BytePairs {
        /// GGUF's `tokenizer.ggml.pre`.
        pre: String,
    },
}

/// What a token is; GGUF's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenType {
    /// Text (1).
    Normal,
    /// Stands for what is unknown (2).
    Unknown,
    /// Never text, such as end of sequence (3).
    Control,
    /// Added by a user of the vocabulary (4).
    UserDefined,
    /// Unused (5).
    Unused,
    /// One raw byte, written `<0x0A>` (6).
    Byte,
}

impl Vocabulary {
    /// The hash by which a manifest names this vocabulary and peers fetch it: blake3 of the encoding.
    pub fn hash(&self) -> BlobHash {
        BlobHash::new(*blake3::hash(&self.encode()).as_bytes())
    }
}
