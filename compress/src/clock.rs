//! CPU time: what a piece of work costs, whatever else the machine is doing.

/// CPU seconds of this process so far, all threads.
pub fn cpu_seconds() -> f64 {
    // SAFETY: timespec is plain numbers, for which zero is valid, and clock_gettime only writes to it.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time);
        time
    };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
