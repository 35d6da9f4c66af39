//! The mesh: libp2p behind a typed handle. One task owns the Swarm.
