//! Brigade's binary.

fn main() {}
