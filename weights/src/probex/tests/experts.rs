//! Experts on disk, and the way to them.
