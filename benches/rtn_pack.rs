//! Round to nearest, bf16 to packed 4 bit: GB/s of input on one core, beside what the memory allows.
//!
//! ```text
//! cargo bench --bench rtn_pack -- [--mib 512] [--repeat 5]
//! ```
//!
//! The input is a file in the page cache, mapped; the output goes to a buffer that is used again. Beside it: reading the
//! same bytes (a sum), and copying them.

#![allow(clippy::print_stdout, missing_docs, reason = "a program that prints its results")]

mod common;

use std::io::Write;

use common::{Random, flag, median, option, timed};
use half::bf16;
use scruple_compress::grid::{GridSpec, ScaleDtype, Search, round_to_nearest};
use scruple_compress::kernel::gemm::widen_bf16;
use scruple_compress::kernel::rtn_pack::{Packed, Stored, rtn_pack};
use scruple_compress::pack::pack_rows;
use serde_json::json;

const COLUMNS: usize = 4096;

/// Rows quantised by one call: a tensor of 64 MiB.
const ROWS: usize = 8192;

fn main() {
    if flag("--test") || flag("--list") {
        return; // run as a test harness: nothing to do
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    pool.install(run);
}

/// Reads every byte: the sum of its 64-bit words.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .as_chunks::<64>()
        .0
        .iter()
        .fold([0u64; 8], |mut sums, chunk| {
            for (sum, word) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*word));
            }
            sums
        })
        .iter()
        .fold(0, |a, &b| a.wrapping_add(b))
}

fn run() {
    let mib: usize = option("--mib").map_or(512, |value| value.parse().expect("a number"));
    let repeat: usize = option("--repeat").map_or(5, |value| value.parse().expect("a number"));
    let tensors = (mib << 20).div_ceil(2 * ROWS * COLUMNS);
    let mut file = tempfile::tempfile().expect("a temporary file");
    let mut random = Random(3);
    for _ in 0..tensors {
        let values: Vec<u8> =
            (0..ROWS * COLUMNS).flat_map(|_| bf16::from_f32(0.02 * random.normal()).to_le_bytes()).collect();
        file.write_all(&values).expect("room for the input");
    }
    // SAFETY: the file is this process's own and nobody else writes to it.
    let map = unsafe { memmap2::Mmap::map(&file) }.expect("the input can be mapped");
    let bytes = map.len() as f64;
    // SAFETY: every pattern of 16 bits is a bf16; a map begins on a page, so the alignment holds.
    let values = unsafe { std::slice::from_raw_parts(map.as_ptr().cast::<bf16>(), map.len() / 2) };

    let rate = |seconds: Vec<f64>| bytes / median(seconds) / 1e9;
    let read = rate((0..repeat).map(|_| timed(|| std::hint::black_box(sum(&map))).1).collect());
    let mut copy = vec![0u8; 2 * ROWS * COLUMNS];
    let copied = (0..repeat)
        .map(|_| timed(|| map.chunks(copy.len()).for_each(|part| copy[..part.len()].copy_from_slice(part))).1)
        .collect();
    let copied = rate(copied);
    println!("{:.0} MiB of bf16, one thread: read {read:.1} GB/s, copy {copied:.1} GB/s", bytes / (1 << 20) as f64);

    let mut results = vec![json!({ "what": "limits", "read_gb_per_s": read, "copy_gb_per_s": copied })];
    let mut packed = Packed::default();
    for (bits, symmetric, search) in [
        (4, true, Search::None),
        (4, false, Search::None),
        (2, true, Search::None),
        (3, true, Search::None),
        (8, true, Search::None),
        (4, true, Search::Mse),
    ] {
        let spec = GridSpec { bits, group_size: 128, symmetric, scale_dtype: ScaleDtype::Bf16, search };
        // Before the figures count: the words are those of the general path.
        let mut wide = vec![0.0; 64 * COLUMNS];
        widen_bf16(&values[..64 * COLUMNS], &mut wide);
        let expected = round_to_nearest(&wide, 64, COLUMNS, &spec).expect("finite weights");
        rtn_pack(&(Stored::Bf16(&values[..64 * COLUMNS]), COLUMNS), &spec, &mut packed).expect("finite weights");
        assert_eq!(packed.words, pack_rows(&expected.codes, 64, COLUMNS, bits).expect("whole words"));

        let runs = (0..if search == Search::None { repeat } else { 1 })
            .map(|_| {
                timed(|| {
                    for tensor in values.chunks_exact(ROWS * COLUMNS) {
                        rtn_pack(&(Stored::Bf16(tensor), COLUMNS), &spec, &mut packed).expect("finite weights");
                    }
                })
                .1
            })
            .collect();
        let rate = rate(runs);
        println!("  {bits} bit, groups of 128, symmetric {symmetric}, search {search:?}: {rate:.2} GB/s");
        results.push(json!({ "what": "rtn_pack", "bits": bits, "group_size": 128, "symmetric": symmetric,
            "search": search, "gb_per_s": rate }));
    }
    common::record("rtn_pack", json!(results));
}
