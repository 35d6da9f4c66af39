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
use std::sync::OnceLock;

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

/// Inputs from which on tiles are used (arbitrary: at 512 they are the faster, and unpacking a group has to pay).
const WORTH_TILES: usize = 32;

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

/// Multiplies as many inputs as fill tiles; returns how many.
pub(super) fn multiply_tiles(task: &Task<'_>, output: &mut Tile<'_, f32>) -> usize {
    let count = output.rows().len() / TILE * TILE;
    if count < WORTH_TILES || !is_available() {
        return 0;
    }
    // SAFETY: the machine has what the kernels are compiled for, as just checked.
    unsafe {
        match task.weights.format() {
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::BF16 => return 0,
            WeightFormat::Q4_0 => small::<Q4_0>(task, count, output),
            WeightFormat::Q4_1 => small::<Q4_1>(task, count, output),
            WeightFormat::Q5_0 => small::<Q5_0>(task, count, output),
            WeightFormat::Q5_1 => small::<Q5_1>(task, count, output),
            WeightFormat::Q8_0 => small::<Q8_0>(task, count, output),
            WeightFormat::Q4K => large::<Q4K>(task, count, output),
            WeightFormat::Q5K => large::<Q5K>(task, count, output),
            WeightFormat::Q6K => large::<Q6K>(task, count, output),
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

/// The tile registers set up while this lives: sums in 0 and 3, inputs in 1 and 4, weights in 2 and 5.
struct Tiles(());

impl Tiles {
    /// - `bytes`: of a row of inputs: 32 or 64
    ///
    /// # Safety
    /// The machine must have AMX, and the process the permission to use it.
    unsafe fn new(bytes: u16) -> Self {
        let mut config = TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for (tile, rows, bytes) in [(0, 16, 64), (1, 16, bytes), (2, (bytes / 4) as u8, 64)] {
            for tile in [tile, tile + 3] {
                config.row_bytes[tile] = bytes;
                config.rows[tile] = rows;
            }
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

/// A 16 × 16 tile of sums: one row for each input.
#[repr(C, align(64))]
struct Sums([[i32; LANES]; TILE]);

/// What belongs to one block of the sixteen inputs of a tile.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Parts {
    scales: [f32; TILE],
    totals: [i32; TILE],
}

thread_local! {
    /// A group's weights as bytes.
    static EXPANDED: RefCell<Vec<Quads>> = const { RefCell::new(Vec::new()) };
    /// `[tiles, blocks]`.
    static PARTS: RefCell<Vec<Parts>> = const { RefCell::new(Vec::new()) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn small<F: Small>(task: &Task<'_>, count: usize, output: &mut Tile<'_, f32>) {
    let Some(simd) = Avx512::<true>::detect() else { return };
    // SAFETY: the caller checked that there is AMX.
    let tiles = unsafe { Tiles::new(32) };
    let Some(inputs) = F::inputs(task.inputs) else { return };
    let length = task.weights.columns() / F::COLUMNS;
    EXPANDED.with_borrow_mut(|expanded| {
        PARTS.with_borrow_mut(|parts| {
            parts.clear();
            for tile in inputs[..count * length].chunks_exact(TILE * length) {
                parts.extend((0..length).map(|block| parts_of(tile, length, block)));
            }
            for group in task.groups.clone() {
                let blocks = task.weights.group::<F>(group);
                expanded.clear();
                for block in blocks {
                    expanded.extend_from_slice(&F::expand(simd, block));
                }
                let each = inputs.chunks_exact(TILE * length).zip(parts.chunks_exact(length)).enumerate();
                for (number, (inputs, parts)) in each {
                    let sums = small_tile::<F>(simd, blocks, expanded, (inputs, parts), &tiles);
                    write_tile(simd, group, number * TILE, &sums, output);
                }
            }
        });
    });
}

/// - `inputs`: `[16, length]`
#[inline(always)]
fn parts_of(inputs: &[SmallBlock], length: usize, block: usize) -> Parts {
    let mut parts = Parts { scales: [0.0; TILE], totals: [0; TILE] };
    for (input, row) in inputs.chunks_exact(length).enumerate() {
        parts.scales[input] = row[block].scale;
        parts.totals[input] = row[block].total;
    }
    parts
}

/// - `inputs`: `[16, blocks]`
#[inline(always)]
fn small_tile<F: Small>(
    simd: Avx512<true>,
    blocks: &[F::Block],
    expanded: &[Quads],
    (inputs, parts): (&[SmallBlock], &[Parts]),
    _: &Tiles,
) -> [__m512; TILE] {
    assert_eq!(inputs.len(), TILE * blocks.len(), "a tile has sixteen inputs");
    let (stride, weights) = (size_of_val(blocks_of(inputs, blocks.len())), expanded.as_chunks::<8>().0);
    let mut sums = [simd.splat(0.0); TILE];
    let mut dots = [Sums([[0; LANES]; TILE]), Sums([[0; LANES]; TILE])];
    // The matrix unit works on a block while the one before is finished.
    for index in 0..=blocks.len() {
        if let Some(weights) = weights.get(index) {
            let codes = inputs[index].codes.as_ptr();
            // SAFETY: 16 rows of 32 bytes lie at `codes`, each `stride` after the one before, as just checked.
            unsafe { multiply_block(codes, stride, weights, &mut dots[index % 2], index % 2) };
        }
        let Some(done) = index.checked_sub(1) else { continue };
        let (scales, parts) = (F::scales(simd, &blocks[done]), &parts[done]);
        for (input, sum) in sums.iter_mut().enumerate() {
            let dot = simd.load_ints(&dots[done % 2].0[input]);
            *sum = F::finish(simd, &scales, parts.scales[input], parts.totals[input], dot, *sum);
        }
    }
    sums
}

/// The first row of inputs.
fn blocks_of<T>(inputs: &[T], length: usize) -> &[T] {
    &inputs[..length]
}

/// # Safety
/// At `codes` there must be 16 rows of 32 bytes, `stride` bytes apart.
#[inline(always)]
unsafe fn multiply_block(codes: *const i32, stride: usize, weights: &[Quads; 8], dots: &mut Sums, parity: usize) {
    macro_rules! multiply {
        ($dots:literal, $codes:literal, $weights:literal) => {
            asm!(
                concat!("tilezero ", $dots),
                concat!("tileloadd ", $codes, ", [{codes} + {stride}]"),
                concat!("tileloadd ", $weights, ", [{weights} + {row}]"),
                concat!("tdpbsud ", $dots, ", ", $codes, ", ", $weights),
                concat!("tilestored [{dots} + {row}], ", $dots),
                codes = in(reg) codes,
                stride = in(reg) stride,
                weights = in(reg) weights,
                dots = in(reg) dots,
                row = in(reg) 64_usize,
                options(nostack),
            )
        };
    }
    // SAFETY: as the caller promises; `weights` are 8 rows of 64 bytes and `dots` 16 of them.
    unsafe {
        if parity == 0 {
            multiply!("tmm0", "tmm1", "tmm2");
        } else {
            multiply!("tmm3", "tmm4", "tmm5");
        }
    }
}

/// A super-block of a group: two planes, and the minima.
#[derive(Clone)]
#[repr(C, align(64))]
struct Planes {
    planes: [[[i8; 4 * LANES]; 64]; 2],
    minima: Option<[[i32; LANES]; 4]>,
}

thread_local! {
    static PLANES: RefCell<Vec<Planes>> = const { RefCell::new(Vec::new()) };
    /// The sums of codes of the task's inputs as pairs of 16 bits, one for each 32 elements.
    static TOTALS: RefCell<Vec<i32>> = const { RefCell::new(Vec::new()) };
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn large<F: Large>(task: &Task<'_>, count: usize, output: &mut Tile<'_, f32>) {
    let Some(simd) = Avx512::<true>::detect() else { return };
    // SAFETY: the caller checked that there is AMX.
    let tiles = unsafe { Tiles::new(64) };
    let Some(inputs) = F::inputs(task.inputs) else { return };
    let length = task.weights.columns() / F::COLUMNS;
    TOTALS.with_borrow_mut(|totals| {
        totals.clear();
        totals.extend(
            inputs[..count * length].iter().flat_map(|block| block.totals.as_chunks::<4>().0).map(pair_of_totals),
        );
        PLANES.with_borrow_mut(|planes| {
            for group in task.groups.clone() {
                let blocks = task.weights.group::<F>(group);
                planes.resize(blocks.len(), Planes { planes: [[[0; 4 * LANES]; 64]; 2], minima: None });
                for (planes, block) in planes.iter_mut().zip(blocks) {
                    F::expand(block, &mut planes.planes);
                    planes.minima = F::minima(block);
                }
                let each = inputs.chunks_exact(TILE * length).zip(totals.chunks_exact(4 * TILE * length)).enumerate();
                for (number, (inputs, totals)) in each {
                    let sums = large_tile::<F>(simd, blocks, planes, (inputs, totals), &tiles);
                    write_tile(simd, group, number * TILE, &sums, output);
                }
            }
        });
    });
}

/// The sums of the codes of two pairs of parts of 16 as halves of a word. Each fits into 16 bits: 32 × 127 is 4,064.
#[inline(always)]
fn pair_of_totals(sums: &[i32; 4]) -> i32 {
    let [a, b, c, d] = *sums;
    (a + b) & 0xffff | (c + d) << 16
}

/// - `inputs`: `[16, blocks]`; `totals`: `[16, blocks, 4]`
#[inline(always)]
fn large_tile<F: Large>(
    simd: Avx512<true>,
    blocks: &[F::Block],
    planes: &[Planes],
    (inputs, totals): (&[LargeBlock], &[i32]),
    _: &Tiles,
) -> [__m512; TILE] {
    let length = blocks.len();
    assert_eq!(inputs.len(), TILE * length, "a tile has sixteen inputs");
    let stride = size_of_val(blocks_of(inputs, length));
    let mut sums = [simd.splat(0.0); TILE];
    let (mut high, mut low) = (Sums([[0; LANES]; TILE]), Sums([[0; LANES]; TILE]));
    for (index, (block, planes)) in blocks.iter().zip(planes).enumerate() {
        let codes = inputs[index].codes.as_ptr();
        // SAFETY: 16 rows of 256 bytes lie at `codes`, each `stride` after the one before, as just checked.
        unsafe { multiply_planes(codes, stride, &planes.planes, &mut high, &mut low) };
        let scales = F::scales(simd, block);
        for (input, sum) in sums.iter_mut().enumerate() {
            let (high, low) = (simd.load_ints(&high.0[input]), simd.load_ints(&low.0[input]));
            let dot = simd.add_ints(simd.shift_left::<6>(high), low);
            let at = input * length + index;
            let minimum = match &planes.minima {
                Some(minima) => sum_minima(simd, minima, &totals[4 * at..4 * at + 4]),
                None => simd.splat_int(0),
            };
            *sum = F::finish(simd, &scales, inputs[at].scale, dot, minimum, *sum);
        }
    }
    sums
}

/// # Safety
/// At `codes` there must be 16 rows of 256 bytes, `stride` bytes apart.
#[inline(always)]
unsafe fn multiply_planes(
    codes: *const i32,
    stride: usize,
    planes: &[[[i8; 4 * LANES]; 64]; 2],
    high: &mut Sums,
    low: &mut Sums,
) {
    // SAFETY: as the caller promises; a plane is four times 16 rows of 64 bytes, a tile of sums 16 of them.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm3",
            "tileloadd tmm1, [{codes} + {stride}]",
            "tileloadd tmm2, [{first} + {row}]",
            "tdpbssd tmm0, tmm1, tmm2",
            "tileloadd tmm5, [{second} + {row}]",
            "tdpbssd tmm3, tmm1, tmm5",
            "tileloadd tmm4, [{codes} + {stride} + 64]",
            "tileloadd tmm2, [{first} + {row} + 1024]",
            "tdpbssd tmm0, tmm4, tmm2",
            "tileloadd tmm5, [{second} + {row} + 1024]",
            "tdpbssd tmm3, tmm4, tmm5",
            "tileloadd tmm1, [{codes} + {stride} + 128]",
            "tileloadd tmm2, [{first} + {row} + 2048]",
            "tdpbssd tmm0, tmm1, tmm2",
            "tileloadd tmm5, [{second} + {row} + 2048]",
            "tdpbssd tmm3, tmm1, tmm5",
            "tileloadd tmm4, [{codes} + {stride} + 192]",
            "tileloadd tmm2, [{first} + {row} + 3072]",
            "tdpbssd tmm0, tmm4, tmm2",
            "tileloadd tmm5, [{second} + {row} + 3072]",
            "tdpbssd tmm3, tmm4, tmm5",
            "tilestored [{high} + {row}], tmm0",
            "tilestored [{low} + {row}], tmm3",
            codes = in(reg) codes,
            stride = in(reg) stride,
            first = in(reg) planes[0].as_ptr(),
            second = in(reg) planes[1].as_ptr(),
            high = in(reg) high,
            low = in(reg) low,
            row = in(reg) 64_usize,
            options(nostack),
        );
    }
}

/// The part minima times the sums of the codes of one input.
#[inline(always)]
fn sum_minima(simd: Avx512<true>, minima: &[[i32; LANES]; 4], totals: &[i32]) -> __m512i {
    let mut sum = simd.splat_int(0);
    for (minima, total) in minima.iter().zip(totals) {
        // SAFETY: `simd` proves that the machine has the instruction.
        sum = unsafe { _mm512_dpwssd_epi32(sum, simd.load_ints(minima), simd.splat_int(*total)) };
    }
    sum
}

#[inline(always)]
fn write_tile(simd: Avx512<true>, group: usize, first: usize, sums: &[__m512; TILE], output: &mut Tile<'_, f32>) {
    for (input, sum) in (first..).zip(sums) {
        let mut values = [0.0; LANES];
        simd.store(*sum, &mut values);
        write(output, input, group, &values);
    }
}
