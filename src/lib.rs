//! Brigade: a bucket brigade for large language models.
//!
//! Every machine that joins holds some of a model's layers and passes the work along. Nobody is in charge: there is no
//! coordinator, scheduler, tracker or account server anywhere, only peers.
//!
//! # The way of a prompt
//!
//! ```text
//!  user ──HTTP/CLI──▶ requester: tokenize, plan a chain, lease every stage (in parallel)
//!                         │
//!         prompt chunks   ▼                     one stream per (session, hop)
//!    ┌──────────▶ driver (unit 0 …) ──▶ stage ──▶ stage ──▶ tail (… head, sampler)
//!    │                ▲                                        │
//!    │                └──────────── next token ────────────────┤
//!    └──────────── tokens on the control streams ◀─────────────┘
//! ```
//!
//! # The house
//!
//! A module imports only from floors below it; `tests/floors.rs` keeps it so.
//!
//! | floor | modules | knows |
//! |---|---|---|
//! | 0 words | [`ids`] [`units`] [`amounts`] [`shape`] [`elementary`] [`quantise`] | std |
//! | 1 messages | [`wire`] (one door in per message), [`keys`] | prost, ed25519-dalek, blake3 |
//! | 2 decisions, pure | [`membership`] [`placement`] [`routing`] [`session`] [`scheduler`] [`ledger`] [`sampling`] [`swarm`] | no clock, no await, no I/O; siblings are strangers |
//! | 3 the node, pure | [`node`]: composes floor 2; `Input` in, `Action` out | |
//! | 4 ground | [`os`]: what differs between systems | |
//! | 5 hands | [`mesh`] (libp2p), [`engine`] (kernels, own threads), [`weights`] (files), [`store`] (sled), [`clock`] | siblings are strangers |
//! | 6 house | [`daemon`] [`config`] [`telemetry`] [`api`] [`cli`] [`demo`] | all |
//!
//! Architecture invariant: whatever arrives from a peer passes one `decode` in [`wire`] before anything else sees it.
//!
//! Architecture invariant: every decision about peers, ranges, sessions and credits is made in [`node`] as a function of
//! state, input and time; [`daemon`] only translates and performs.

// Tests may unwrap anywhere and match what they look for.
#![cfg_attr(test, allow(clippy::unwrap_in_result, clippy::wildcard_enum_match_arm))]

pub mod amounts;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod elementary;
pub mod engine;
pub mod ids;
pub mod keys;
pub mod ledger;
pub mod membership;
pub mod mesh;
#[cfg(feature = "mutants")]
pub mod mutants;
pub mod node;
pub mod os;
pub mod placement;
pub mod quantise;
pub mod routing;
pub mod sampling;
pub mod scheduler;
pub mod session;
pub mod shape;
pub mod store;
pub mod swarm;
pub mod telemetry;
pub mod units;
pub mod weights;
pub mod wire;
