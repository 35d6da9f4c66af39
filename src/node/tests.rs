//! The mesh in memory keeps its promises.

mod breach;
mod loss;
mod ring;
