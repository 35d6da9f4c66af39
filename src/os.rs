//! What differs between operating systems: locks, signals, processor features, memory.
