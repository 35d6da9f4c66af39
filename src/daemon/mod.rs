//! The running peer: drives the node with the mesh, the engine and the store.

mod answer;
mod bridge;
pub mod handle;
mod library;
mod streams;
pub mod views;
