//! Identities, signatures and network ids.
