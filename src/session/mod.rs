//! One generation: the requester's and the stage's state machines. Pure.
