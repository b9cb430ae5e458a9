//! Memory between the phases of long work.

/// Hands freed memory back to the system, so that the peaks of one phase and the next do not add up. The allocator would
/// keep it, and a walk through many blocks would creep upwards.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: malloc_trim only gives back pages that the allocator holds free.
    unsafe {
        libc::malloc_trim(0);
    }
}
