//! The running peer: drives the node with the mesh, the engine and the store.

pub mod handle;
pub mod views;
