//! Model files, manifests, vocabularies and blobs on disk.
