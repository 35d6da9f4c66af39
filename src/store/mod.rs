//! What survives a restart: the credit log in sled, behind a small trait.
