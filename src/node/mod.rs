//! The node: composes the decisions of membership, placement, routing, session and ledger. Pure: `Input` in, `Action` out.

pub mod io;
