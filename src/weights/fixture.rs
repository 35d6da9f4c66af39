//! Models of random weights, for tests, examples and benches of any module.
//!
//! A [`RandomModel`] is a valid GGUF file of any shape and weight format, the same on every machine. It is written
//! piece by
//! piece, so that shapes of billions of weights need little memory.

use std::fs::File;
use std::io;
use std::io::BufWriter;
use std::io::Write;
use std::path::Path;

use crate::ids::Token;
use crate::shape::Architecture;
use crate::shape::RopeScaling;
use crate::shape::WeightFormat;
use crate::weights::bytepairs::character_of;
use crate::weights::layout::ROPE_FREQS;
use crate::weights::noise::Noise;
use crate::weights::writer::GgufWriter;
use crate::wire::vocabulary::TokenType;
use crate::wire::vocabulary::Vocabulary;
use crate::wire::vocabulary::VocabularyKind;

/// Elements generated at once; a multiple of every format's block.
const PIECE: u64 = 1 << 16;

/// The name of the pre-tokenizer of [`byte_vocabulary`].
const PRE: &str = "gpt-2";

/// A model of random weights.
///
/// The vocabulary is [`byte_vocabulary`]. Vectors (norms) are stored as F32; so are matrices whose rows don't fill
/// whole
/// blocks of `format`. Weights are scaled by the width of their input, so that activations stay near 1 in any depth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomModel {
    /// The family.
    pub architecture: Architecture,
    /// Transformer blocks.
    pub blocks: u16,
    /// Elements of a hidden state; a multiple of `heads`.
    pub width: u32,
    /// Query heads.
    pub heads: u32,
    /// Key/value heads; divides `heads`.
    pub kv_heads: u32,
    /// Elements of the feed-forward layer.
    pub feed_forward: u32,
    /// Token ids. The first three are special, then come 256 bytes, then words that no text encodes to.
    pub vocab: u32,
    /// Positions.
    pub context: u32,
    /// How many of them a position sees, if not all.
    pub window: Option<u32>,
    /// Whether the output head is the token embedding.
    pub tied: bool,
    /// How matrices are stored.
    pub format: WeightFormat,
    /// Whether matrices to which the output is sensitive are `Q6_K` instead, as in llama.cpp's `_M` mixtures: the embedding,
    /// and the value and down matrices of about half of the blocks.
    pub mixed: bool,
    /// `Llama3` is stored as GGUF has it, as a tensor of divisors; `Tensor` is Llama 3.1's own.
    pub rope_scaling: RopeScaling,
    /// Whether any token ends a generation.
    pub ends: Ends,
    /// Other seeds give other weights.
    pub seed: u64,
}

/// Whether any token of a fixture ends a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// `<|endoftext|>` and `<|im_end|>` do.
    Marked,
    /// None does: a generation runs to its limit.
    Never,
}

/// One tensor of the model.
struct Planned {
    name: String,
    format: WeightFormat,
    dimensions: Vec<u64>,
}

impl RandomModel {
    /// Three blocks of width 64: small enough for any test, with grouped-query attention and odd sizes.
    pub fn tiny() -> Self {
        Self {
            architecture: Architecture::Llama,
            blocks: 3,
            width: 64,
            heads: 4,
            kv_heads: 2,
            feed_forward: 172,
            vocab: 300,
            context: 256,
            window: None,
            tied: false,
            format: WeightFormat::F32,
            mixed: false,
            rope_scaling: RopeScaling::None,
            ends: Ends::Never,
            seed: 1,
        }
    }

    /// The shape of Llama 3.2 1B: 16 blocks of width 2048, a vocabulary of 128,256, tied.
    pub fn one_billion(format: WeightFormat) -> Self {
        Self {
            architecture: Architecture::Llama,
            blocks: 16,
            width: 2048,
            heads: 32,
            kv_heads: 8,
            feed_forward: 8192,
            vocab: 128_256,
            context: 4096,
            window: None,
            tied: true,
            format,
            mixed: false,
            rope_scaling: RopeScaling::None,
            ends: Ends::Never,
            seed: 1,
        }
    }

    /// Writes the file at `path`.
    ///
    /// # Errors
    /// What the system says.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut target = BufWriter::new(File::create(path)?);
        self.write_to(&mut target)?;
        target.flush()
    }

    /// The file's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write_to(&mut bytes).expect("a vector takes every byte");
        bytes
    }

    /// Writes the file's bytes.
    ///
    /// # Errors
    /// What the target says.
    pub fn write_to(&self, target: &mut impl Write) -> io::Result<()> {
        let mut writer = GgufWriter::new();
        self.put_hyperparameters(&mut writer);
        put_vocabulary(&mut writer, &byte_vocabulary(self.vocab, self.ends));
        let plan = self.plan();
        for tensor in &plan {
            writer.tensor(&tensor.name, tensor.format, &tensor.dimensions);
        }
        writer.write_tables(target)?;
        plan.iter().try_for_each(|tensor| self.write_tensor(target, tensor))
    }

    fn head_dim(&self) -> u32 {
        self.width / self.heads
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture.name())
    }

    /// The tensors that only blocks of the family have.
    fn own_parts(&self) -> Vec<(&'static str, u32)> {
        let keys = self.kv_heads * self.head_dim();
        match self.architecture {
            Architecture::Llama => Vec::new(),
            Architecture::Qwen2 => vec![("attn_q.bias", self.width), ("attn_k.bias", keys), ("attn_v.bias", keys)],
            Architecture::Qwen3 => {
                ["attn_q_norm.weight", "attn_k_norm.weight"].map(|it| (it, self.head_dim())).to_vec()
            }
        }
    }

    fn put_hyperparameters(&self, writer: &mut GgufWriter) {
        writer
            .text("general.architecture", self.architecture.name())
            .text("general.name", "random weights")
            .number(&self.key("block_count"), self.blocks.into())
            .number(&self.key("context_length"), self.context)
            .number(&self.key("embedding_length"), self.width)
            .number(&self.key("feed_forward_length"), self.feed_forward)
            .number(&self.key("attention.head_count"), self.heads)
            .number(&self.key("attention.head_count_kv"), self.kv_heads)
            .float(&self.key("attention.layer_norm_rms_epsilon"), 1e-5)
            .number(&self.key("rope.dimension_count"), self.head_dim())
            .float(&self.key("rope.freq_base"), 10_000.0)
            .number(&self.key("vocab_size"), self.vocab);
        if let Some(window) = self.window {
            writer.number(&self.key("attention.sliding_window"), window);
        }
        if let RopeScaling::Linear { factor } = self.rope_scaling {
            writer.text(&self.key("rope.scaling.type"), "linear").float(&self.key("rope.scaling.factor"), factor);
        }
    }

    /// Every tensor, embedding first, in the order of the forward pass.
    fn plan(&self) -> Vec<Planned> {
        let (width, inner) = (u64::from(self.width), u64::from(self.feed_forward));
        let keys = u64::from(self.kv_heads * self.head_dim());
        let vocab = u64::from(self.vocab);
        let mut plan = vec![self.planned("token_embd.weight", &[width, vocab])];
        if divisors(self.rope_scaling).is_some() {
            plan.push(self.planned(ROPE_FREQS, &[u64::from(self.head_dim() / 2)]));
        }
        for block in 0..self.blocks {
            let parts: [(&str, &[u64]); 9] = [
                ("attn_norm", &[width]),
                ("attn_q", &[width, width]),
                ("attn_k", &[width, keys]),
                ("attn_v", &[width, keys]),
                ("attn_output", &[width, width]),
                ("ffn_norm", &[width]),
                ("ffn_gate", &[width, inner]),
                ("ffn_up", &[width, inner]),
                ("ffn_down", &[inner, width]),
            ];
            plan.extend(parts.map(|(part, sizes)| self.planned(&format!("blk.{block}.{part}.weight"), sizes)));
            let own = self.own_parts().into_iter();
            plan.extend(own.map(|(part, size)| self.planned(&format!("blk.{block}.{part}"), &[size.into()])));
        }
        plan.push(self.planned("output_norm.weight", &[width]));
        if !self.tied {
            plan.push(self.planned("output.weight", &[width, vocab]));
        }
        plan
    }

    fn planned(&self, name: &str, dimensions: &[u64]) -> Planned {
        let wanted = if self.mixed && self.is_sensitive(name) { WeightFormat::Q6K } else { self.format };
        let fits = dimensions.len() > 1 && dimensions[0].is_multiple_of(wanted.block_elements());
        let format = if fits { wanted } else { WeightFormat::F32 };
        Planned { name: name.to_owned(), format, dimensions: dimensions.to_vec() }
    }

    /// Which matrices llama.cpp's mixtures spare: the head, the first and the last eighth of the blocks and every third between.
    fn is_sensitive(&self, name: &str) -> bool {
        let Some((block, part)) = name.strip_prefix("blk.").and_then(|name| name.split_once('.')) else { return true };
        let block: u16 = block.parse().unwrap_or_default();
        let eighth = self.blocks / 8;
        let spared = block < eighth || block >= self.blocks - eighth || (block - eighth) % 3 == 2;
        spared && matches!(part, "attn_v.weight" | "ffn_down.weight")
    }

    fn write_tensor(&self, target: &mut impl Write, tensor: &Planned) -> io::Result<()> {
        let mut noise = Noise::new(self.seed, &tensor.name);
        if let (ROPE_FREQS, Some(divisors)) = (tensor.name.as_str(), divisors(self.rope_scaling)) {
            let values = divisors(self.head_dim()).into_iter().flat_map(f32::to_le_bytes).collect();
            return GgufWriter::write_data(target, [values]);
        }
        if tensor.dimensions.len() == 1 {
            return GgufWriter::write_data(target, [noise.gains(tensor.dimensions[0])]);
        }
        let elements: u64 = tensor.dimensions.iter().product();
        let deviation = 1.0 / (tensor.dimensions[0] as f32).sqrt();
        let starts = (0..elements).step_by(PIECE as usize);
        let pieces = starts.map(|start| noise.weights(tensor.format, PIECE.min(elements - start), deviation));
        GgufWriter::write_data(target, pieces)
    }
}

/// How the rotary divisors of a head are computed, where a file stores them.
fn divisors(scaling: RopeScaling) -> Option<impl Fn(u32) -> Vec<f32>> {
    let (factor, low, high, original) = match scaling {
        RopeScaling::None | RopeScaling::Linear { .. } => return None,
        // Llama 3.1's own.
        RopeScaling::Tensor => (8.0, 1.0, 4.0, 8192),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            (factor, low_freq_factor, high_freq_factor, original_context)
        }
    };
    Some(move |head_dim: u32| {
        let divisor = |pair: u32| {
            let wavelength = std::f32::consts::TAU * 10_000_f32.powf((2 * pair) as f32 / head_dim as f32);
            let ratio = original as f32 / wavelength;
            if ratio > high {
                1.0
            } else if ratio < low {
                factor
            } else {
                let ramp = (ratio - low) / (high - low);
                1.0 / ((1.0 - ramp) / factor + ramp)
            }
        };
        (0..head_dim / 2).map(divisor).collect()
    })
}

/// `elements` random weights around 0 as a file stores them, in whole blocks.
pub fn random_weights(format: WeightFormat, elements: u64) -> Vec<u8> {
    Noise::new(1, "weights").weights(format, elements, 0.02)
}

/// A byte-level vocabulary of `vocab` tokens without merges: three special ones, then all 256 bytes, then words that no
/// text encodes to. A smaller one has fewer bytes.
pub fn byte_vocabulary(vocab: u32, ends: Ends) -> Vocabulary {
    let specials = match ends {
        Ends::Marked => ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        Ends::Never => ["<|reserved_0|>", "<|reserved_1|>", "<|reserved_2|>"],
    };
    let bytes = (0..=u8::MAX).map(|byte| character_of(byte).to_string());
    let words = (0..).map(|number: u32| format!("{}w{number}", character_of(b' ')));
    let all = specials.into_iter().map(str::to_owned).chain(bytes).chain(words);
    let tokens: Vec<String> = all.take(vocab as usize).collect();
    let kind = |index| if index < specials.len() { TokenType::Control } else { TokenType::Normal };
    let ends = [Token(0), Token(2)].into_iter().filter(|end| ends == Ends::Marked && end.0 < vocab);
    Vocabulary {
        kind: VocabularyKind::BytePairs { pre: PRE.to_owned() },
        types: (0..tokens.len()).map(kind).collect(),
        tokens,
        scores: Vec::new(),
        merges: Vec::new(),
        bos: None,
        add_bos: false,
        add_space_prefix: false,
        end_of_generation: ends.collect(),
        chat_template: None,
    }
}

fn put_vocabulary(writer: &mut GgufWriter, vocabulary: &Vocabulary) {
    let code = |kind: &TokenType| if *kind == TokenType::Control { 3 } else { 1 };
    writer
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", PRE)
        .texts("tokenizer.ggml.tokens", &vocabulary.tokens)
        .numbers("tokenizer.ggml.token_type", &vocabulary.types.iter().map(code).collect::<Vec<_>>())
        .texts("tokenizer.ggml.merges", &vocabulary.merges);
    if let Some(end) = vocabulary.end_of_generation.last() {
        writer.number("tokenizer.ggml.eos_token_id", end.0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use candle_core::Device;
    use candle_core::quantized::gguf_file::Content;

    use super::*;
    use crate::weights::gguf::GgufFile;
    use crate::weights::llama;
    use crate::weights::vocabulary::read_vocabulary;

    #[test]
    fn every_format_is_read_by_candle_and_has_the_deviation_asked_for() {
        for &format in WeightFormat::ALL {
            let model = RandomModel { width: 256, feed_forward: 512, format, ..RandomModel::tiny() };
            let mut bytes = Cursor::new(model.bytes());
            let content = Content::read(&mut bytes).unwrap();

            let tensor = content.tensor(&mut bytes, "blk.1.ffn_down.weight", &Device::Cpu).unwrap();

            let values = tensor.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let deviation = (values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32).sqrt();
            let ratio = deviation * 512_f32.sqrt();
            assert!((0.7..1.4).contains(&ratio), "{format}: deviation is {ratio} of what was asked");
            assert!(mean.abs() < 0.1 * deviation, "{format}: mean {mean}");
        }
    }

    #[test]
    fn the_files_own_reader_finds_the_shape_that_was_asked_for() {
        let divisors =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 128 };
        for (tied, asked, stored) in [
            (true, RopeScaling::None, RopeScaling::None),
            (false, RopeScaling::Linear { factor: 2.0 }, RopeScaling::Linear { factor: 2.0 }),
            (true, divisors, RopeScaling::Tensor),
        ] {
            let model = RandomModel { tied, rope_scaling: asked, ..RandomModel::tiny() };

            let shape = llama::shape(&GgufFile::from_bytes(model.bytes()).unwrap()).unwrap();

            assert_eq!((shape.tied, shape.rope.scaling), (tied, stored));
            assert_eq!((shape.blocks, shape.width, shape.heads, shape.kv_heads), (3, 64, 4, 2));
            assert_eq!((shape.head_dim, shape.feed_forward, shape.vocab, shape.context), (16, 172, 300, 256));
        }
    }

    #[test]
    fn every_architecture_has_a_random_model() {
        for architecture in Architecture::ALL {
            let model = RandomModel { architecture, ..RandomModel::tiny() };

            let shape = llama::shape(&GgufFile::from_bytes(model.bytes()).unwrap()).unwrap();

            assert_eq!(shape.architecture, architecture);
        }
        let windowed = RandomModel { window: Some(9), ..RandomModel::tiny() };
        let shape = llama::shape(&GgufFile::from_bytes(windowed.bytes()).unwrap()).unwrap();
        assert_eq!(shape.window, Some(9));
    }

    #[test]
    fn the_vocabulary_in_the_file_is_the_documented_one() {
        for ends in [Ends::Marked, Ends::Never] {
            let model = RandomModel { ends, ..RandomModel::tiny() };

            let vocabulary = read_vocabulary(&GgufFile::from_bytes(model.bytes()).unwrap()).unwrap();

            assert_eq!(vocabulary, byte_vocabulary(model.vocab, ends));
        }
    }

    #[test]
    fn another_seed_gives_other_weights_and_the_same_seed_the_same() {
        let model = RandomModel::tiny();

        assert_eq!(model.bytes(), model.bytes());
        assert_ne!(model.bytes(), RandomModel { seed: 2, ..model }.bytes());
    }
}
