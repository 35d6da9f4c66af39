//! Products of many rows on AMX, the matrix unit of x86-64: a 16 × 16 tile of sums at once.
//!
//! Its integer sums are exact, so only what surrounds them matters: blocks are finished one by one, as everywhere. Super-blocks
//! go as two planes, `64 × high + low`, whose sums are joined once per 256 columns: exact too, and that is why K-formats are
//! the faster ones here.
//!
//! The compiler knows no tile registers on stable Rust, and never uses them by itself; so plain assembly may.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::OnceLock;
use std::thread::LocalKey;

use crate::engine::canonical::formats::Format;
use crate::engine::canonical::formats::Large;
use crate::engine::canonical::formats::Q4_0;
use crate::engine::canonical::formats::Q4_1;
use crate::engine::canonical::formats::Q4K;
use crate::engine::canonical::formats::Q5_0;
use crate::engine::canonical::formats::Q5_1;
use crate::engine::canonical::formats::Q5K;
use crate::engine::canonical::formats::Q6K;
use crate::engine::canonical::formats::Q8_0;
use crate::engine::canonical::formats::Small;
use crate::engine::canonical::packed::Quads;
use crate::engine::canonical::products::Task;
use crate::engine::canonical::products::write;
use crate::engine::canonical::round::LargeBlock;
use crate::engine::canonical::round::SmallBlock;
use crate::engine::canonical::simd::LANES;
use crate::engine::canonical::simd::Simd;
use crate::engine::canonical::x86::Avx512;
use crate::engine::pool::Tile;
use crate::shape::WeightFormat;

/// Inputs of a tile.
const TILE: usize = 16;

/// Inputs from which on tiles are used: with fewer, unpacking the weights takes longer than is gained (measured: 16 are the
/// slower, 32 the faster).
const WORTH_TILES: usize = 32;

/// Inputs for which a tile of their own is worth it (measured roughly).
const WORTH_A_TILE: usize = 8;

/// Groups that are unpacked together, so that a tile of inputs stays in the cache for all of them (4 to 64 were measured).
const GROUPS: usize = 8;

/// Whether the processor has AMX-int8 and the system lets this process use it.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| Avx512::<true>::detect().is_some() && has_instructions() && is_permitted())
}

/// Source: Intel's manual, volume 2, `CPUID`, leaf 7: bits 24 and 25 of EDX.
fn has_instructions() -> bool {
    const TILES_OF_BYTES: u32 = 3 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & TILES_OF_BYTES == TILES_OF_BYTES
}

/// Asks Linux for the tile registers, which it saves only for processes that asked. Source: the kernel's `arch/x86/xstate.rst`.
fn is_permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const REQUEST_PERMISSION: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call takes two numbers and touches no memory of ours; the kernel may change rcx and r11.
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") REQUEST_PERMISSION, in("rsi") TILE_DATA, out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

/// Multiplies the inputs for which tiles are worth it; returns how many.
pub(super) fn multiply_tiles(task: &Task<'_>, output: &mut Tile<'_, f32>) -> usize {
    let count = output.rows().len();
    let rest = count % TILE;
    let count = if rest < WORTH_A_TILE { count - rest } else { count };
    if count < WORTH_TILES || !is_available() {
        return 0;
    }
    // SAFETY: the machine has what the kernels are compiled for, as just checked.
    unsafe {
        match task.weights.format() {
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => return 0,
            WeightFormat::Q4_0 => run::<SmallBlocks<Q4_0>>(task, count, output),
            WeightFormat::Q4_1 => run::<SmallBlocks<Q4_1>>(task, count, output),
            WeightFormat::Q5_0 => run::<SmallBlocks<Q5_0>>(task, count, output),
            WeightFormat::Q5_1 => run::<SmallBlocks<Q5_1>>(task, count, output),
            WeightFormat::Q8_0 => run::<SmallBlocks<Q8_0>>(task, count, output),
            WeightFormat::Q4K => run::<LargeBlocks<Q4K>>(task, count, output),
            WeightFormat::Q5K => run::<LargeBlocks<Q5K>>(task, count, output),
            WeightFormat::Q6K => run::<LargeBlocks<Q6K>>(task, count, output),
        }
    }
    count
}

/// What `LDTILECFG` reads. Source: Intel's manual, volume 2.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// The tile registers set up while this lives: sums in 0 to 3, weights in 4 and 5, inputs in 6 and 7.
struct Tiles(());

impl Tiles {
    /// - `bytes`: of a row of inputs: 32 or 64
    ///
    /// # Safety
    /// The machine must have AMX, and the process the permission to use it.
    unsafe fn new(bytes: u16) -> Self {
        let mut config = TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for (tiles, rows, bytes) in [(0..4, 16, 64), (4..6, (bytes / 4) as u8, 64), (6..8, 16, bytes)] {
            config.row_bytes[tiles.clone()].fill(bytes);
            config.rows[tiles].fill(rows);
        }
        // SAFETY: the configuration is 64 bytes long and valid.
        unsafe { asm!("ldtilecfg [{config}]", config = in(reg) &raw const config, options(nostack, readonly)) };
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: a value exists only where the machine has AMX.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}

/// A 16 × 16 tile of dot products: one row for each input.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Dots([[i32; LANES]; TILE]);

const NO_DOTS: Dots = Dots([[0; LANES]; TILE]);

/// The sums of a tile: one vector for each input.
type Sums = [__m512; TILE];

/// What a thread unpacks into: kept, so that nothing is allocated in a step.
struct Scratch<W, C> {
    /// `[groups, blocks]`.
    weights: Vec<W>,
    /// `[tiles, blocks]`.
    codes: Vec<C>,
}

thread_local! {
    static SMALL: RefCell<Scratch<SmallWeights, SmallCodes>> =
        const { RefCell::new(Scratch { weights: Vec::new(), codes: Vec::new() }) };
    static LARGE: RefCell<Scratch<LargeWeights, LargeCodes>> =
        const { RefCell::new(Scratch { weights: Vec::new(), codes: Vec::new() }) };
}

/// How blocks of a size are unpacked and multiplied.
trait Blocks {
    type Format: Format;
    /// A block of a group, unpacked.
    type Weights: Clone + 'static;
    /// A block of the sixteen inputs of a tile.
    type Codes: 'static;
    type Sums: AsRef<[Sums]>;
    /// Bytes of a row of a tile of inputs.
    const ROW_BYTES: u16;
    /// Tiles that are multiplied at once.
    const TILES: usize;
    const EMPTY: Self::Weights;

    fn scratch() -> &'static LocalKey<RefCell<Scratch<Self::Weights, Self::Codes>>>;

    fn unpack(simd: Avx512<true>, block: &<Self::Format as Format>::Block, weights: &mut Self::Weights);

    /// - `inputs`: a block of each input, sixteen or fewer
    fn gather<'a>(inputs: impl Iterator<Item = &'a <Self::Format as Format>::Input>) -> Self::Codes;

    /// The products of a group with up to `TILES` tiles of inputs.
    ///
    /// - `codes`: `[tiles, blocks]`
    fn product(simd: Avx512<true>, weights: &[Self::Weights], codes: &[Self::Codes], tiles: &Tiles) -> Self::Sums;
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn run<B: Blocks>(task: &Task<'_>, count: usize, output: &mut Tile<'_, f32>) {
    let (Some(simd), Some(inputs)) = (Avx512::<true>::detect(), B::Format::inputs(task.inputs)) else { return };
    // SAFETY: the caller checked that there is AMX.
    let tiles = unsafe { Tiles::new(B::ROW_BYTES) };
    let length = task.weights.columns() / B::Format::COLUMNS;
    B::scratch().with_borrow_mut(|Scratch { weights, codes }| {
        codes.clear();
        for tile in inputs[..count * length].chunks(TILE * length) {
            codes.extend((0..length).map(|block| B::gather(tile.chunks_exact(length).map(|row| &row[block]))));
        }
        for first in task.groups.clone().step_by(GROUPS) {
            let groups = first..task.groups.end.min(first + GROUPS);
            weights.resize(groups.len() * length, B::EMPTY);
            for (group, weights) in groups.clone().zip(weights.chunks_exact_mut(length)) {
                let blocks = task.weights.group::<B::Format>(group);
                blocks.iter().zip(weights).for_each(|(block, weights)| B::unpack(simd, block, weights));
            }
            for (number, codes) in codes.chunks(B::TILES * length).enumerate() {
                let first = number * B::TILES * TILE;
                let rows = first..count.min(first + B::TILES * TILE);
                for (group, weights) in groups.clone().zip(weights.chunks_exact(length)) {
                    ask_for(simd, output, rows.clone(), group);
                    let sums = B::product(simd, weights, codes, &tiles);
                    for (input, sum) in rows.clone().zip(sums.as_ref().as_flattened()) {
                        write(simd, output, input, group, *sum);
                    }
                }
            }
        }
    });
}

/// Asks for the memory of some products, which is far apart.
#[inline(always)]
fn ask_for(simd: Avx512<true>, output: &mut Tile<'_, f32>, inputs: Range<usize>, group: usize) {
    let start = group * LANES - output.columns().start;
    for input in inputs {
        simd.prefetch_at(&output.row(input)[start]);
    }
}

/// Blocks of 32.
struct SmallBlocks<F>(PhantomData<F>);

#[derive(Clone)]
#[repr(C, align(64))]
struct SmallWeights {
    quads: [Quads; 8],
    scales: [[f32; LANES]; 2],
}

#[repr(C, align(64))]
struct SmallCodes {
    codes: [[i32; 8]; TILE],
    scales: [f32; TILE],
    totals: [f32; TILE],
}

/// Blocks by which the matrix unit is ahead of the sums: the time until what it stores can be loaded (2 to 4 hardly differ).
const LEAD: usize = 3;

/// Blocks for whose dot products there is room.
const RING: usize = LEAD + 1;

/// Blocks by which memory is asked for ahead (6 to 9 hardly differ).
const AHEAD: usize = 8;

impl<F: Small> Blocks for SmallBlocks<F> {
    type Format = F;
    type Weights = SmallWeights;
    type Codes = SmallCodes;
    type Sums = [Sums; 1];
    const ROW_BYTES: u16 = 32;
    const TILES: usize = 1;
    const EMPTY: SmallWeights = SmallWeights { quads: [[0; 4 * LANES]; 8], scales: [[0.0; LANES]; 2] };

    fn scratch() -> &'static LocalKey<RefCell<Scratch<SmallWeights, SmallCodes>>> {
        &SMALL
    }

    #[inline(always)]
    fn unpack(simd: Avx512<true>, block: &F::Block, weights: &mut SmallWeights) {
        F::expand(simd, block, &mut weights.quads);
        store_scales(simd, F::scales(simd, block), &mut weights.scales);
    }

    #[inline(always)]
    fn gather<'a>(inputs: impl Iterator<Item = &'a SmallBlock>) -> SmallCodes {
        let mut codes = SmallCodes { codes: [[0; 8]; TILE], scales: [0.0; TILE], totals: [0.0; TILE] };
        for (input, block) in inputs.enumerate() {
            codes.codes[input] = block.codes;
            codes.scales[input] = block.scale;
            codes.totals[input] = block.total as f32;
        }
        codes
    }

    #[inline(always)]
    fn product(simd: Avx512<true>, weights: &[SmallWeights], codes: &[SmallCodes], tiles: &Tiles) -> [Sums; 1] {
        let (codes, mut sums) = (&codes[..weights.len()], [simd.splat(0.0); TILE]);
        let mut ring = [NO_DOTS; RING];
        for index in 0..LEAD.min(weights.len()) {
            multiply_small(&codes[index], &weights[index], &mut ring[index % RING], tiles);
        }
        for (index, (block, inputs)) in weights.iter().zip(codes).enumerate() {
            if let (Some(weights), Some(codes)) = (weights.get(index + LEAD), codes.get(index + LEAD)) {
                multiply_small(codes, weights, &mut ring[(index + LEAD) % RING], tiles);
            }
            if let (Some(weights), Some(codes)) = (weights.get(index + AHEAD), codes.get(index + AHEAD)) {
                for line in 0..8 {
                    simd.prefetch_at(&weights.quads[line]);
                    simd.prefetch_at(&codes.codes[2 * line]);
                }
            }
            let scales = [simd.load(&block.scales[0]), simd.load(&block.scales[1])];
            for (input, sum) in sums.iter_mut().enumerate() {
                let dot = simd.load_ints(&ring[index % RING].0[input]);
                *sum = F::finish(simd, &scales, inputs.scales[input], inputs.totals[input], dot, *sum);
            }
        }
        [sums]
    }
}

#[inline(always)]
fn store_scales(simd: Avx512<true>, scales: [__m512; 2], to: &mut [[f32; LANES]; 2]) {
    simd.store(scales[0], &mut to[0]);
    simd.store(scales[1], &mut to[1]);
}

#[inline(always)]
fn multiply_small(codes: &SmallCodes, weights: &SmallWeights, dots: &mut Dots, _: &Tiles) {
    // SAFETY: the tiles are set up; the codes are 16 rows of 32 bytes, the weights 8 of 64, and `dots` 16 of 64.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tileloadd tmm6, [{codes} + {half}]",
            "tileloadd tmm4, [{weights} + {row}]",
            "tdpbssd tmm0, tmm6, tmm4",
            "tilestored [{dots} + {row}], tmm0",
            codes = in(reg) &raw const codes.codes,
            weights = in(reg) &raw const weights.quads,
            dots = in(reg) &raw mut dots.0,
            half = in(reg) 32_usize,
            row = in(reg) 64_usize,
            options(nostack),
        );
    }
}

/// Super-blocks of 256.
struct LargeBlocks<F>(PhantomData<F>);

/// Columns of a quarter of a super-block, which is what tile registers hold.
const QUARTERS: usize = 4;

#[derive(Clone)]
#[repr(C, align(64))]
struct LargeWeights {
    planes: [[[i8; 4 * LANES]; 64]; 2],
    minima: Option<[[i32; LANES]; 4]>,
    scales: [[f32; LANES]; 2],
}

#[repr(C, align(64))]
struct LargeCodes {
    codes: [[[i32; 16]; TILE]; QUARTERS],
    /// The sums of 32 codes each as pairs of 16 bits.
    totals: [[i32; 4]; TILE],
    scales: [f32; TILE],
}

impl<F: Large> Blocks for LargeBlocks<F> {
    type Format = F;
    type Weights = LargeWeights;
    type Codes = LargeCodes;
    type Sums = [Sums; 2];
    const ROW_BYTES: u16 = 64;
    const TILES: usize = 2;
    const EMPTY: LargeWeights =
        LargeWeights { planes: [[[0; 4 * LANES]; 64]; 2], minima: None, scales: [[0.0; LANES]; 2] };

    fn scratch() -> &'static LocalKey<RefCell<Scratch<LargeWeights, LargeCodes>>> {
        &LARGE
    }

    #[inline(always)]
    fn unpack(simd: Avx512<true>, block: &F::Block, weights: &mut LargeWeights) {
        F::expand(block, &mut weights.planes);
        weights.minima = F::minima(block);
        store_scales(simd, F::scales(simd, block), &mut weights.scales);
    }

    #[inline(always)]
    fn gather<'a>(inputs: impl Iterator<Item = &'a LargeBlock>) -> LargeCodes {
        let mut codes = LargeCodes { codes: [[[0; 16]; TILE]; QUARTERS], totals: [[0; 4]; TILE], scales: [0.0; TILE] };
        for (input, block) in inputs.enumerate() {
            for (quarter, words) in block.codes.as_chunks().0.iter().enumerate() {
                codes.codes[quarter][input] = *words;
            }
            for (total, sums) in codes.totals[input].iter_mut().zip(block.totals.as_chunks().0) {
                *total = pair_of_totals(sums);
            }
            codes.scales[input] = block.scale;
        }
        codes
    }

    #[inline(always)]
    fn product(simd: Avx512<true>, weights: &[LargeWeights], codes: &[LargeCodes], tiles: &Tiles) -> [Sums; 2] {
        match codes.split_at(weights.len()) {
            (codes, []) => {
                let [sums] = large_product::<F, 1>(simd, weights, [codes], tiles);
                [sums, sums]
            }
            (first, second) => large_product::<F, 2>(simd, weights, [first, second], tiles),
        }
    }
}

/// The sums of the codes of two pairs of parts of 16 as halves of a word. Each fits into 16 bits: 32 × 127 is 4,064.
#[inline(always)]
fn pair_of_totals(sums: &[i32; 4]) -> i32 {
    let [a, b, c, d] = *sums;
    (a + b) & 0xffff | (c + d) << 16
}

/// The matrix unit works on a super-block, quarter by quarter, while the one before is finished.
#[inline(always)]
fn large_product<F: Large, const N: usize>(
    simd: Avx512<true>,
    weights: &[LargeWeights],
    codes: [&[LargeCodes]; N],
    tiles: &Tiles,
) -> [Sums; N] {
    let mut sums = [[simd.splat(0.0); TILE]; N];
    let mut dots = [[[NO_DOTS; 2]; N]; 2];
    for index in 0..=weights.len() {
        for quarter in 0..QUARTERS {
            if let Some(weights) = weights.get(index) {
                multiply_quarter(weights, codes.map(|codes| &codes[index]), quarter, tiles);
            }
            if let Some(weights) = weights.get(index + 1) {
                for line in 16 * quarter..16 * quarter + 16 {
                    simd.prefetch_at(&weights.planes[0][line]);
                    simd.prefetch_at(&weights.planes[1][line]);
                    for codes in codes {
                        simd.prefetch_at(&codes[index + 1].codes[quarter][line % 16]);
                    }
                }
            }
            let Some(done) = index.checked_sub(1) else { continue };
            for n in 0..N {
                let rows = quarter * TILE / QUARTERS..(quarter + 1) * TILE / QUARTERS;
                finish_rows::<F>(simd, &weights[done], &codes[n][done], &dots[done % 2][n], rows, &mut sums[n]);
            }
        }
        if index < weights.len() {
            store_dots(&mut dots[index % 2], tiles);
        }
    }
    sums
}

#[inline(always)]
fn finish_rows<F: Large>(
    simd: Avx512<true>,
    weights: &LargeWeights,
    codes: &LargeCodes,
    [high, low]: &[Dots; 2],
    rows: Range<usize>,
    sums: &mut Sums,
) {
    let scales = [simd.load(&weights.scales[0]), simd.load(&weights.scales[1])];
    for input in rows {
        let (high, low) = (simd.load_ints(&high.0[input]), simd.load_ints(&low.0[input]));
        let dot = simd.add_ints(simd.shift_left::<6>(high), low);
        let minimum = match &weights.minima {
            Some(minima) => sum_minima(simd, minima, &codes.totals[input]),
            None => simd.splat_int(0),
        };
        sums[input] = F::finish(simd, &scales, codes.scales[input], dot, minimum, sums[input]);
    }
}

/// Adds a quarter of a super-block to the sums in tiles 0 to 3.
#[inline(always)]
fn multiply_quarter<const N: usize>(weights: &LargeWeights, codes: [&LargeCodes; N], quarter: usize, _: &Tiles) {
    if quarter == 0 {
        // SAFETY: the tiles are set up.
        unsafe { asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nomem, nostack)) };
    }
    // SAFETY: the tiles are set up; quarters are 16 rows of 64 bytes.
    unsafe {
        asm!(
            "tileloadd tmm4, [{high} + {row}]",
            "tileloadd tmm6, [{codes} + {row}]",
            "tdpbssd tmm0, tmm6, tmm4",
            "tileloadd tmm5, [{low} + {row}]",
            "tdpbssd tmm1, tmm6, tmm5",
            high = in(reg) &raw const weights.planes[0][16 * quarter],
            low = in(reg) &raw const weights.planes[1][16 * quarter],
            codes = in(reg) &raw const codes[0].codes[quarter],
            row = in(reg) 64_usize,
            options(nostack, readonly),
        );
    }
    if let Some(codes) = codes.get(1) {
        // SAFETY: as above; the weights are still in their tiles.
        unsafe {
            asm!(
                "tileloadd tmm7, [{codes} + {row}]",
                "tdpbssd tmm2, tmm7, tmm4",
                "tdpbssd tmm3, tmm7, tmm5",
                codes = in(reg) &raw const codes.codes[quarter],
                row = in(reg) 64_usize,
                options(nostack, readonly),
            );
        }
    }
}

#[inline(always)]
fn store_dots<const N: usize>(dots: &mut [[Dots; 2]; N], _: &Tiles) {
    macro_rules! store {
        ($high:literal, $low:literal, $dots:expr) => {
            asm!(
                concat!("tilestored [{dots} + {row}], ", $high),
                concat!("tilestored [{dots} + {row} + 1024], ", $low),
                dots = in(reg) &raw mut *$dots,
                row = in(reg) 64_usize,
                options(nostack),
            )
        };
    }
    // SAFETY: the tiles are set up, and `dots` are twice 16 rows of 64 bytes for each tile.
    unsafe {
        store!("tmm0", "tmm1", &mut dots[0]);
        if let Some(dots) = dots.get_mut(1) {
            store!("tmm2", "tmm3", dots);
        }
    }
}

/// The part minima times the sums of the codes of one input.
#[inline(always)]
fn sum_minima(simd: Avx512<true>, minima: &[[i32; LANES]; 4], totals: &[i32; 4]) -> __m512i {
    let mut sum = simd.splat_int(0);
    for (minima, total) in minima.iter().zip(totals) {
        // SAFETY: `simd` proves that the machine has the instruction.
        sum = unsafe { _mm512_dpwssd_epi32(sum, simd.load_ints(minima), simd.splat_int(*total)) };
    }
    sum
}
