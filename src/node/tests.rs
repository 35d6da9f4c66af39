//! The mesh in memory keeps its promises.

mod admission;
mod batches;
mod breach;
mod leaving;
mod loss;
mod mending;
mod precisions;
mod redundancy;
mod ring;
