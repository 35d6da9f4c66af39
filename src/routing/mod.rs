//! The requester's choice of a chain. Pure.
