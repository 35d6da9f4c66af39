//! Weights come from the peers: which piece of which blob is asked of whom. Pure: what is heard goes in, what is to be asked comes out.
//!
//! ```text
//!  wanted blobs ─▶ Download ── Ask(peer, outline | piece) ──▶ whoever drives it: asks, verifies, writes
//!                     ▲                                            │
//!                     └── outlined, had, wrong, failed, who has what ─┘
//! ```
//!
//! A blob is a tensor. Its outline (see [`outline`]) comes first; from then on every piece is verified by itself, before a byte of it
//! reaches its place, and may come from anybody.

pub mod download;
pub mod outline;
