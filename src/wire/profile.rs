//! A peer's signed, gossiped statement of what it has and can do; at most 512 bytes.

mod codec;

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::ids::BootSeq;
use crate::ids::ModelId;
use crate::ids::PeerKey;
use crate::shape::WeightFormat;
use crate::units::UnitRange;

/// The most bytes of a profile's body.
pub const MAX_PROFILE: usize = 512;

/// The longest time that a peer may ask to be believed (arbitrary; ten thousand peers announce every 200 s).
pub const MAX_VALID_FOR: Span = Span::seconds(3_600);

/// The most devices of one profile.
pub const MAX_DEVICES: usize = 4;

/// The most weight formats of one profile (arbitrary; GGUF has about 30).
pub const MAX_FORMATS: usize = 32;

/// The longest name of an arithmetic class, in bytes.
pub const MAX_ARITHMETIC: usize = 32;

/// The most holdings of one profile.
pub const MAX_HOLDINGS: usize = 8;

/// The most ranges of stored weights in one profile.
pub const MAX_STORED: usize = 8;

/// The most round trips of one profile.
pub const MAX_ROUND_TRIPS: usize = 8;

/// What a peer says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Whose profile it is; equals the signature's author.
    pub peer: PeerKey,
    /// Orders this peer's announcements.
    pub order: BootSeq,
    /// How long to believe it, counted by the receiver from first sight.
    pub valid_for: Span,
    /// Memory offered to the mesh.
    pub memory: Bytes,
    /// The part of it that nothing uses yet.
    pub memory_free: Bytes,
    /// CPU cores that the engine may use.
    pub cores: u16,
    /// CPU features, as bits of [`cpu`].
    pub cpu_features: u32,
    /// Devices found, at most 4.
    pub devices: Vec<Device>,
    /// Weight formats it can serve.
    pub formats: Vec<WeightFormat>,
    /// The arithmetic class that its stages compute in, such as `canonical-1-f16`; at most 32 bytes.
    pub arithmetic: String,
    /// What it holds, is loading or intends to; at most 8.
    pub holdings: Vec<Holding>,
    /// Sessions leased from it at the moment.
    pub sessions: u16,
    /// How long a new step would wait for the engine.
    pub queue: Span,
    /// Measured round trips to neighbours, at most 8.
    pub round_trips: Vec<RoundTrip>,
    /// Whether it is about to leave and takes no new leases.
    pub draining: bool,
    /// Weights on its disk that it gives to others; at most 8.
    pub stored: Vec<Stored>,
}

/// A device that could compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// What it is.
    pub kind: DeviceKind,
    /// Its memory.
    pub memory: Bytes,
}

/// The kinds of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// An Apple GPU.
    Metal,
}

/// A range of a model's units at a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The model.
    pub model: ModelId,
    /// The units.
    pub range: UnitRange,
    /// How far along it is.
    pub state: HoldingState,
    /// Measured time for one position through one unit of it; zero while unknown.
    pub per_unit: Span,
}

/// How far along a holding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HoldingState {
    /// Announced, to be loaded after a back-off.
    Intended,
    /// On its way into memory.
    Loading,
    /// Can be leased.
    Ready,
}

/// A range of a model's units whose weights a peer has on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The model.
    pub model: ModelId,
    /// The units.
    pub range: UnitRange,
}

/// A measured round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrip {
    /// The first eight bytes of the neighbour's key.
    pub neighbour: [u8; 8],
    /// The round trip.
    pub span: Span,
}

/// Bits of [`Profile::cpu_features`].
pub mod cpu {
    /// AVX2 and FMA.
    pub const AVX2_FMA: u32 = 1;
    /// AVX-512 F, BW, DQ and VL.
    pub const AVX512: u32 = 1 << 1;
    /// AVX-512 VNNI.
    pub const AVX512_VNNI: u32 = 1 << 2;
    /// AMX int8 tiles.
    pub const AMX_INT8: u32 = 1 << 3;
    /// NEON.
    pub const NEON: u32 = 1 << 4;
    /// NEON dot product.
    pub const NEON_DOTPROD: u32 = 1 << 5;
    /// Each bit with its name for people.
    pub const NAMES: [(u32, &str); 6] = [
        (AVX2_FMA, "avx2+fma"),
        (AVX512, "avx512"),
        (AVX512_VNNI, "avx512-vnni"),
        (AMX_INT8, "amx-int8"),
        (NEON, "neon"),
        (NEON_DOTPROD, "neon-dotprod"),
    ];
}
