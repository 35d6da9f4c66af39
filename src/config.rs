//! Configuration: file, environment and flags, parsed once into something that cannot be wrong.
