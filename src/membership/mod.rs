//! Who is in the mesh: profiles and model cards heard, their order and expiry. Pure.
