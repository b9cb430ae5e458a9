//! A step of training takes no memory of its own: everything was taken when the net was made.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use scruple_compress::nn::{
    Architecture, Input, Mode, Net, Shortcut, Spec, Weights,
    optimiser::{Optimiser, Rule},
};

/// The system's memory, with a count of how often it was asked for.
struct Counting;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static MEMORY: Counting = Counting;

/// What the library of matrix products may take in a step for each of a linear's three.
const MAX_TAKEN: usize = 3;

/// Steps that are counted.
const STEPS: usize = 3;

#[test]
fn a_step_of_training_takes_no_memory_of_its_own() {
    let architecture =
        Architecture::ResNet { blocks: vec![1, 1, 1], width: 8, shortcut: Shortcut::Project, inner: vec![] };
    let spec = Spec { architecture, input: Input { height: 16, width: 16, channels: 3 }, classes: 10 };
    let mut net = Net::new(&spec, 8).unwrap();
    let mut weights = Weights::start(net.graph(), 1);
    let rule = Rule::Sgd { momentum: 0.9, nesterov: true, weight_decay: 1e-4 };
    let mut optimiser = Optimiser::new(rule, net.graph().layout(), false);
    let mut gradient = vec![0.0; weights.values.len()];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let taken = pool.install(|| {
        let mut step = || {
            net.input_mut(8).fill(0.5);
            net.forward(&weights.values, &mut weights.running, Mode::Train);
            net.loss(&[0, 1, 2, 3, 4, 5, 6, 7], 0.0).unwrap();
            net.backward(&weights.values, &mut gradient, true);
            optimiser.step(&mut weights.values, &mut gradient, 0.01);
        };
        step(); // what the libraries below keep for each thread
        let before = TAKEN.load(Ordering::Relaxed);
        (0..STEPS).for_each(|_| step());
        TAKEN.load(Ordering::Relaxed) - before
    });
    assert!(taken <= STEPS * MAX_TAKEN, "{taken} allocations in {STEPS} steps");
}
