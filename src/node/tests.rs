//! The mesh in memory keeps its promises.

mod batches;
mod breach;
mod loss;
mod mending;
mod redundancy;
mod ring;
