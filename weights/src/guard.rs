//! What happens when a mapped file is made shorter by someone else: the system sends SIGBUS to whoever touches the pages
//! that are gone. Unhandled, the program dies without a word. With the guard installed it says which file it was, in one
//! sentence, and exits with 2; outputs are written under temporary names, so nothing half-made is left under a final one.

use std::{
    ffi::CString,
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicPtr, AtomicUsize, Ordering},
    },
};

/// One mapped range. Entries are never freed, only reused, because the signal may arrive while the list is walked.
struct Entry {
    start: AtomicUsize,
    /// One past the last byte; 0 while the entry is free.
    end: AtomicUsize,
    /// The file's path, ending in NUL; owned by the entry.
    path: AtomicPtr<libc::c_char>,
    next: *const Entry,
}

// SAFETY: `next` is written before the entry is shared and never again; all other fields are atomic.
unsafe impl Sync for Entry {}

static HEAD: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());

/// Held by whoever changes the list; the signal handler only reads.
static WRITERS: Mutex<()> = Mutex::new(());

/// A range that is watched for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Watched {
    entry: &'static Entry,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed))
    }
}

fn entries() -> impl Iterator<Item = &'static Entry> {
    // SAFETY: entries are leaked boxes, alive for ever, and linked before they are published.
    let first = unsafe { HEAD.load(Ordering::Acquire).as_ref() };
    // SAFETY: as above; the last entry's `next` is null.
    std::iter::successors(first, |entry| unsafe { entry.next.as_ref() })
}

/// Watches the mapping `bytes` of the file `path`.
pub(crate) fn watch(bytes: &[u8], path: &Path) -> Watched {
    let name = path.as_os_str().as_bytes().iter().copied().filter(|&byte| byte != 0).collect::<Vec<_>>();
    let name = CString::new(name).unwrap_or_default().into_raw();
    let start = bytes.as_ptr() as usize;
    let end = start + bytes.len();
    let _held = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(entry) = entries().find(|entry| entry.end.load(Ordering::Relaxed) == 0) {
        entry.path.store(name, Ordering::Relaxed);
        entry.start.store(start, Ordering::Relaxed);
        entry.end.store(end, Ordering::Release);
        return Watched { entry };
    }
    let entry: &'static Entry = Box::leak(Box::new(Entry {
        start: AtomicUsize::new(start),
        end: AtomicUsize::new(end),
        path: AtomicPtr::new(name),
        next: HEAD.load(Ordering::Relaxed),
    }));
    HEAD.store(ptr::from_ref(entry).cast_mut(), Ordering::Release);
    Watched { entry }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _held = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
        self.entry.end.store(0, Ordering::Release);
        let name = self.entry.path.swap(ptr::null_mut(), Ordering::Relaxed);
        if !name.is_null() {
            // SAFETY: the pointer came from `CString::into_raw` in `watch` and is taken back once: it was swapped out.
            drop(unsafe { CString::from_raw(name) });
        }
    }
}

/// Installs the guard for this process. Programs call it once at their start; a library's host may prefer its own.
pub fn install() {
    // SAFETY: the action is fully initialised, the handler has the signature SA_SIGINFO asks for, and does nothing that
    // is not allowed in a signal handler: atomic loads, `write`, `_exit`, `signal`.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_bus_error as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
    }
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the system passes a valid siginfo; for SIGBUS it holds the address.
    let address = unsafe { (*info).si_addr() } as usize;
    let hit = entries()
        .find(|entry| (entry.start.load(Ordering::Relaxed)..entry.end.load(Ordering::Acquire)).contains(&address));
    let Some(entry) = hit else {
        // Not ours: the default action takes over when the faulting instruction runs again.
        // SAFETY: `signal` may be called in a handler.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    };
    let say = |text: &[u8]| {
        // SAFETY: the bytes are valid for their length; a failed write changes nothing.
        unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    };
    say(b"error: ");
    let path = entry.path.load(Ordering::Relaxed);
    if !path.is_null() {
        // SAFETY: the string ends in NUL and lives as long as its mapping, which is being read right now.
        let len = unsafe { libc::strlen(path) };
        // SAFETY: as above.
        say(unsafe { std::slice::from_raw_parts(path.cast(), len) });
    }
    say(b": the file was made shorter while it was being read, or its disk failed; fetch it again, keep other programs from \
        writing to it, and start anew\n");
    // SAFETY: `_exit` may be called in a handler; nothing of this process is needed any more.
    unsafe { libc::_exit(2) };
}
