//! A model's vocabulary: what a requester needs to turn text into token ids and back. Stored and fetched as one blob.

use crate::ids::Token;

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
