//! The credit log: hash chains of signed entries, balances, proofs of forks. Pure.
