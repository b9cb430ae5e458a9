//! Compression methods, one file each, and the one list of them.
