//! Messages: what peers say to each other, valid by type.
//!
//! The prost types stay private here. Each message has one door in (`decode`, which checks every count, size and
//! name) and one out (`encode`); whatever passed the door needs no further check by its reader. Signed records
//! travel as `body bytes + signature` and are stored and relayed byte for byte.

pub mod card;
pub mod control;
pub mod credit;
pub mod fetch;
pub mod gossip;
pub mod hello;
pub mod hop;
pub mod manifest;
pub mod profile;
pub mod signed;
pub mod vocabulary;
