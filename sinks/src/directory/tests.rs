//! Cases of the directory.
