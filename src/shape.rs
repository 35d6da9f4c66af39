//! The shape of a model: what the planner, the admission and the loader all compute with.

use std::fmt;
use std::str::FromStr;

use crate::amounts::Bytes;
use crate::amounts::Mflop;
use crate::amounts::Position;
use crate::units::UnitRange;

/// A family of models that the engine can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Architecture {
    /// Llama 1 to 3.x, Mistral, and everything of the same form.
    Llama,
    /// Qwen 2 and 2.5: queries, keys and values have biases.
    Qwen2,
    /// Qwen 3: every head of queries and keys is normalised before it is rotated.
    Qwen3,
}

impl Architecture {
    /// Every family.
    pub const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];

    /// The name that GGUF's `general.architecture` uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// Whether biases are added to queries, keys and values.
    pub const fn has_biases(self) -> bool {
        matches!(self, Self::Qwen2)
    }

    /// Whether every head of queries and keys is normalised before it is rotated.
    pub const fn normalises_heads(self) -> bool {
        matches!(self, Self::Qwen3)
    }

    /// Whether models of the family may rotate such pairs: GGUF's `llama` files interleave what everybody else halves.
    pub const fn rotates(self, pairs: RopePairs) -> bool {
        matches!((self, pairs), (_, RopePairs::Halves) | (Self::Llama, RopePairs::Interleaved))
    }
}

/// A text that names nothing of the kind that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownName {
    /// What was to be named, such as "architecture".
    pub kind: &'static str,
    /// The text as given.
    pub got: String,
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown {} \"{}\"", self.kind, self.got)
    }
}

impl std::error::Error for UnknownName {}

impl FromStr for Architecture {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let named = Self::ALL.into_iter().find(|architecture| architecture.name() == text);
        named.ok_or_else(|| UnknownName { kind: "architecture", got: text.to_owned() })
    }
}

macro_rules! weight_formats {
    ($($variant:ident = $code:literal, $name:literal, $block:literal, $bytes:literal;)*) => {
        /// How a tensor's elements are stored. The codes are GGUF's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[allow(non_camel_case_types, reason = "the field's own names")]
        pub enum WeightFormat {
            $(#[doc = concat!("`", $name, "`: ", $block, " elements in ", $bytes, " bytes.")] $variant,)*
        }

        impl WeightFormat {
            /// Every format.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// GGUF's number for the format.
            pub const fn code(self) -> u32 {
                match self { $(Self::$variant => $code),* }
            }

            /// The format of GGUF's number, if it is one that the engine reads.
            pub const fn from_code(code: u32) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }

            /// The field's name for it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// Elements in one block.
            pub const fn block_elements(self) -> u64 {
                match self { $(Self::$variant => $block),* }
            }

            /// Bytes of one block.
            pub const fn block_bytes(self) -> u64 {
                match self { $(Self::$variant => $bytes),* }
            }
        }

        impl FromStr for WeightFormat {
            type Err = UnknownName;

            fn from_str(text: &str) -> Result<Self, UnknownName> {
                $(if text.eq_ignore_ascii_case($name) { return Ok(Self::$variant); })*
                Err(UnknownName { kind: "weight format", got: text.to_owned() })
            }
        }
    };
}

weight_formats! {
    F32 = 0, "F32", 1, 4;
    F16 = 1, "F16", 1, 2;
    Q4_0 = 2, "Q4_0", 32, 18;
    Q4_1 = 3, "Q4_1", 32, 20;
    Q5_0 = 6, "Q5_0", 32, 22;
    Q5_1 = 7, "Q5_1", 32, 24;
    Q8_0 = 8, "Q8_0", 32, 34;
    Q4K = 12, "Q4_K", 256, 144;
    Q5K = 13, "Q5_K", 256, 176;
    Q6K = 14, "Q6_K", 256, 210;
    BF16 = 30, "BF16", 1, 2;
}

impl WeightFormat {
    /// From the coarsest to the most precise: by bits of an element, of equals the one with a better grid.
    const BY_PRECISION: [Self; 11] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q4K,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q5K,
        Self::Q6K,
        Self::Q8_0,
        Self::BF16,
        Self::F16,
        Self::F32,
    ];

    /// Where the format stands among all, the coarsest being 0.
    pub fn precision(self) -> usize {
        Self::BY_PRECISION.iter().position(|format| *format == self).unwrap_or_default()
    }

    /// The more precise of two.
    pub fn max_precision(self, other: Self) -> Self {
        if self.precision() >= other.precision() { self } else { other }
    }

    /// Bytes of `elements` elements, or `None` if they do not fill whole blocks or the size overflows.
    pub fn bytes(self, elements: u64) -> Option<Bytes> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes()).map(Bytes)
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How hidden states are rounded where they cross a unit boundary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WireDtype {
    /// Lossless: four bytes an element, little-endian.
    #[default]
    F32,
    /// Two bytes an element, little-endian, rounded to nearest even.
    F16,
}

impl WireDtype {
    /// Bytes of one position of a model of `width`.
    pub const fn row_bytes(self, width: u32) -> u64 {
        match self {
            Self::F32 => 4 * width as u64,
            Self::F16 => 2 * width as u64,
        }
    }
}

/// How rotary frequencies are stretched to contexts longer than the model was first trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Every frequency divided by the factor.
    Linear {
        /// The divisor, above 0.
        factor: f32,
    },
    /// Llama 3.1's: long wavelengths divided by the factor, short ones kept, a ramp between. Sources that
    /// carry the ready per-dimension divisors (`rope_freqs.weight`) are `Tensor`, not this.
    Llama3 {
        /// The divisor of the long wavelengths.
        factor: f32,
        /// Wavelengths longer than `original_context / low_freq_factor` are divided by the factor.
        low_freq_factor: f32,
        /// Wavelengths shorter than `original_context / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// The context length that the model was first trained on.
        original_context: u32,
    },
    /// Divisors given by the model's own tensor `rope_freqs.weight`, one per rotated pair.
    Tensor,
}

/// Which two of a head's D rotated dimensions turn together as pair i.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RopePairs {
    /// 2i and 2i + 1: GGUF's `llama` files, whose query and key matrices were reordered so.
    Interleaved,
    /// i and i + D/2: every other GGUF, and the files of Hugging Face.
    Halves,
}

/// The rotary position embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// How many of a head's dimensions are rotated, even.
    pub dimensions: u32,
    /// Which of them turn together.
    pub pairs: RopePairs,
    /// The base of the frequencies.
    pub base: f32,
    /// How the frequencies are stretched.
    pub scaling: RopeScaling,
}

/// The hyper-parameters of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModelShape {
    /// The family.
    pub architecture: Architecture,
    /// Transformer blocks (L); the model has L + 2 units.
    pub blocks: u16,
    /// Elements of a hidden state.
    pub width: u32,
    /// Query heads.
    pub heads: u32,
    /// Key/value heads; divides `heads`.
    pub kv_heads: u32,
    /// Elements of one head.
    pub head_dim: u32,
    /// Elements of the feed-forward layer.
    pub feed_forward: u32,
    /// Token ids.
    pub vocab: u32,
    /// Positions that a session may have.
    pub context: u32,
    /// If a position sees only so many: itself and the ones just before it. Below `context`, for else it limits nothing.
    pub window: Option<u32>,
    /// The epsilon of the root-mean-square norms.
    pub norm_eps: f32,
    /// The rotary embedding.
    pub rope: Rope,
    /// Whether the output head is the token embedding, which then belongs to two units.
    pub tied: bool,
}

/// Bytes of one element of the key/value cache, a half.
pub const KV_ELEMENT_BYTES: u64 = 2;

/// Positions of one page of the key/value cache: what it grows by. Small, so that short sessions stay small; a power of two
/// that divides the 512 positions over which sums run.
pub const KV_PAGE: u32 = 64;

/// Bytes of keys and values of one block for `positions` positions of `width` elements each, in whole pages.
pub const fn kv_bytes(width: u32, positions: Position) -> Bytes {
    let pages = positions.0.div_ceil(KV_PAGE) as u64;
    Bytes(2 * KV_ELEMENT_BYTES * width as u64 * KV_PAGE as u64).times(pages)
}

impl ModelShape {
    /// How many units the model has: embedding, blocks, head.
    pub const fn units(&self) -> u16 {
        self.blocks + 2
    }

    /// The unit of the final norm and output head.
    pub const fn head_unit(&self) -> u16 {
        self.blocks + 1
    }

    /// Elements of one position's keys (or values) of one block.
    pub const fn kv_width(&self) -> u32 {
        self.kv_heads * self.head_dim
    }

    /// How many transformer blocks lie in `range`.
    pub fn blocks_in(&self, range: UnitRange) -> u16 {
        range.end().min(self.head_unit()).saturating_sub(range.start().max(1))
    }

    /// Bytes of the key/value cache of one session of `positions` positions on a stage of `range`: [`kv_bytes`] per block.
    pub fn kv_bytes(&self, range: UnitRange, positions: Position) -> Bytes {
        kv_bytes(self.kv_width(), positions).times(u64::from(self.blocks_in(range)))
    }

    /// The work of feeding `count` positions, the first at `first`, through `range`: twice the active
    /// parameters per position, plus attention over all earlier positions, in whole MFLOP rounded up.
    ///
    /// Source: the usual count of two operations per parameter and position; attention adds
    /// `4 × heads × head_dim` per position seen and block (scores and weighted sum).
    pub fn work(&self, range: UnitRange, first: Position, count: Position) -> Mflop {
        let (width, count, first) = (u128::from(self.width), u128::from(count.0), u128::from(first.0));
        let query = u128::from(self.heads) * u128::from(self.head_dim);
        let attention_weights = 2 * width * query + 2 * width * u128::from(self.kv_width());
        let block = attention_weights + 3 * width * u128::from(self.feed_forward);
        let head = if range.contains(self.head_unit()) { width * u128::from(self.vocab) } else { 0 };
        let blocks = u128::from(self.blocks_in(range));
        let window = self.window.map_or(u128::MAX, u128::from);
        // Those that see all positions up to their own, and the rest, which see a whole window.
        let all = window.saturating_sub(first).min(count);
        let seen = all * first + all * (all + 1) / 2 + (count - all).checked_mul(window).unwrap_or_default();
        let flop = 2 * (blocks * block + head) * count + 4 * blocks * query * seen;
        Mflop(u64::try_from(flop.div_ceil(1_000_000)).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stories260k() -> ModelShape {
        ModelShape {
            architecture: Architecture::Llama,
            blocks: 5,
            width: 64,
            heads: 8,
            kv_heads: 4,
            head_dim: 8,
            feed_forward: 172,
            vocab: 512,
            context: 512,
            window: None,
            norm_eps: 1e-5,
            rope: Rope { dimensions: 8, pairs: RopePairs::Interleaved, base: 10_000.0, scaling: RopeScaling::None },
            tied: true,
        }
    }

    #[test]
    fn a_window_limits_the_work_of_positions_beyond_it_only() {
        let whole = UnitRange::new(0, 7).unwrap();
        let (all, windowed) = (stories260k(), ModelShape { window: Some(100), ..stories260k() });
        let work = |shape: &ModelShape, first, count| shape.work(whole, Position(first), Position(count)).0;
        let large = |shape: ModelShape| ModelShape { heads: 1 << 12, head_dim: 1 << 12, ..shape };
        let by_one = |shape: &ModelShape| (0..200).map(|first| work(shape, first, 1)).sum::<u64>();

        assert_eq!(work(&windowed, 0, 100), work(&all, 0, 100));
        assert_eq!(work(&large(windowed), 150, 1), work(&large(windowed), 99, 1));
        assert!(work(&large(windowed), 0, 200) < work(&large(all), 0, 200));
        assert!(by_one(&large(windowed)).abs_diff(work(&large(windowed), 0, 200)) <= 200);
    }

    #[test]
    fn every_architecture_has_one_name() {
        for architecture in Architecture::ALL {
            assert_eq!(architecture.name().parse(), Ok(architecture));
        }
        assert!("mistral".parse::<Architecture>().is_err(), "its files say llama");
    }

    #[test]
    fn key_value_bytes_count_blocks_only() {
        let shape = stories260k();

        assert_eq!(shape.units(), 7);
        assert_eq!(shape.blocks_in(UnitRange::new(0, 7).unwrap()), 5);
        assert_eq!(shape.blocks_in(UnitRange::new(0, 1).unwrap()), 0);
        assert_eq!(shape.blocks_in(UnitRange::new(5, 7).unwrap()), 1);
        assert_eq!(shape.kv_bytes(UnitRange::new(0, 7).unwrap(), Position(128)), Bytes(2 * 32 * 2 * 5 * 128));
    }

    #[test]
    fn key_value_bytes_are_of_whole_pages_of_halves() {
        let page = Bytes(2 * 32 * 2 * 64);

        assert_eq!(kv_bytes(32, Position::ZERO), Bytes::ZERO);
        assert_eq!([1, 64].map(|positions| kv_bytes(32, Position(positions))), [page; 2]);
        assert_eq!(kv_bytes(32, Position(65)), page.times(2));
        assert_eq!(kv_bytes(u32::MAX, Position(u32::MAX)), Bytes(u64::MAX));
    }

    #[test]
    fn every_weight_format_has_one_code_and_one_name() {
        for &format in WeightFormat::ALL {
            assert_eq!(WeightFormat::from_code(format.code()), Some(format));
            assert_eq!(format.name().parse(), Ok(format));
        }
        let mut places: Vec<usize> = WeightFormat::ALL.iter().map(|format| format.precision()).collect();
        places.sort_unstable();
        assert_eq!(places, (0..WeightFormat::ALL.len()).collect::<Vec<_>>());
        assert_eq!(WeightFormat::Q4K.max_precision(WeightFormat::Q6K), WeightFormat::Q6K);
        assert_eq!(WeightFormat::from_code(4), None);
        assert_eq!(WeightFormat::Q4_0.bytes(33), None);
        assert_eq!(WeightFormat::Q6K.bytes(512), Some(Bytes(420)));
    }
}
