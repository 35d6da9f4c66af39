//! Real processes of the real binary, on ephemeral ports of this machine: what a user sees.

#![allow(clippy::unwrap_used, reason = "every line here is part of a test")]

mod answers;
mod demo;
mod harness;
mod house;
mod loss;
mod multicast;
