//! Brigade: a bucket brigade for large language models.

pub mod amounts;
pub mod api;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod engine;
pub mod ids;
pub mod keys;
pub mod ledger;
pub mod membership;
pub mod mesh;
pub mod node;
pub mod os;
pub mod placement;
pub mod routing;
pub mod sampling;
pub mod scheduler;
pub mod session;
pub mod shape;
pub mod store;
pub mod telemetry;
pub mod units;
pub mod weights;
pub mod wire;
