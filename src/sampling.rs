//! The choice of the next token: a pure function of logits, parameters, seed, position and history.
