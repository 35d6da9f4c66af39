//! What this peer should hold, decided from profiles and its own memory. Pure.
