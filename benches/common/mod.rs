//! What every benchmark here shares: CPU clocks, arguments, and records that say where they come from.

#![allow(dead_code, reason = "each benchmark uses a part")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

pub mod linear;

pub mod synthetic;

/// CPU seconds this process has used so far, all threads together.
pub fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid timespec for the call to fill.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "the process has a CPU clock");
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// What `run` gives, and the CPU seconds it took.
pub fn timed<T>(run: impl FnOnce() -> T) -> (T, f64) {
    let start = cpu_seconds();
    let out = run();
    (out, cpu_seconds() - start)
}

/// The middle value.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The value after `--name` on the command line.
pub fn option(name: &str) -> Option<String> {
    let mut arguments = std::env::args();
    arguments.find(|argument| argument == name)?;
    arguments.next()
}

/// Whether `--name` is on the command line.
pub fn flag(name: &str) -> bool {
    std::env::args().any(|argument| argument == name)
}

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct Random(pub u64);

impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// About normal with unit variance: the sum of eight 16-bit uniforms.
    pub fn normal(&mut self) -> f32 {
        let sum = [self.bits(), self.bits()]
            .iter()
            .fold(0i64, |sum, bits| sum + (0..4).map(|part| i64::from((bits >> (16 * part)) as u16)).sum::<i64>());
        (sum as f32 / 65536.0 - 4.0) * 1.224_744_9 // 8 uniforms have a variance of 8/12
    }
}

/// GFLOP/s of fused multiply-adds in registers on one thread: what no kernel can exceed. None without AVX-512 or AVX2.
pub fn multiply_add_limit() -> Option<f64> {
    const STEPS: usize = 20_000_000;

    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{
            _mm256_add_ps, _mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps, _mm512_add_ps, _mm512_cvtss_f32,
            _mm512_fmadd_ps, _mm512_set1_ps,
        };
        // Independent chains, more than the latency of two units needs.
        #[target_feature(enable = "avx512f")]
        fn wide() -> f32 {
            let (a, b) =
                (_mm512_set1_ps(std::hint::black_box(0.999_999_9)), _mm512_set1_ps(std::hint::black_box(1e-9)));
            let mut sums = [_mm512_set1_ps(1.0); 10];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = _mm512_fmadd_ps(*sum, a, b);
                }
            }
            _mm512_cvtss_f32(sums.into_iter().fold(a, |sum, value| _mm512_add_ps(sum, value)))
        }
        #[target_feature(enable = "avx2,fma")]
        fn narrow() -> f32 {
            let (a, b) =
                (_mm256_set1_ps(std::hint::black_box(0.999_999_9)), _mm256_set1_ps(std::hint::black_box(1e-9)));
            let mut sums = [_mm256_set1_ps(1.0); 10];
            for _ in 0..STEPS {
                for sum in &mut sums {
                    *sum = _mm256_fmadd_ps(*sum, a, b);
                }
            }
            _mm256_cvtss_f32(sums.into_iter().fold(a, |sum, value| _mm256_add_ps(sum, value)))
        }
        let best = |flop: usize, run: &dyn Fn() -> f32| {
            let seconds = (0..5).map(|_| timed(|| std::hint::black_box(run())).1).fold(f64::MAX, f64::min);
            Some((flop * STEPS) as f64 / seconds / 1e9)
        };
        if std::is_x86_feature_detected!("avx512f") {
            // SAFETY: AVX-512 was detected.
            return best(2 * 10 * 16, &|| unsafe { wide() });
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            // SAFETY: AVX2 and FMA were detected.
            return best(2 * 10 * 8, &|| unsafe { narrow() });
        }
    }
    None
}

fn output(program: &str, arguments: &[&str]) -> String {
    let run = Command::new(program).args(arguments).output();
    run.ok().map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()).unwrap_or_default()
}

/// The machine, the moment and the code a record was made with.
pub fn circumstances() -> Value {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    json!({
        "commit": output("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
        "date": output("date", &["-u", "+%Y-%m-%d"]),
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "rustc": output("rustc", &["--version"]),
        "load_average": std::fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next(),
    })
}

/// Writes `results` with the circumstances to `benches/record/NAME.json`, or where `--record` says.
pub fn record(name: &str, results: Value) {
    let path = option("--record").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/record").join(format!("{name}.json")),
        PathBuf::from,
    );
    let record = json!({ "benchmark": name, "circumstances": circumstances(), "results": results });
    let text = serde_json::to_string_pretty(&record).expect("a record is plain JSON") + "\n";
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).expect("the folder for records can be made");
    }
    std::fs::write(&path, text).expect("the record can be written");
    println!("record: {}", path.display());
}
