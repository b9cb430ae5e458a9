//! What work took: joules by the best meter there is, and the carbon they stand for.
//!
//! In this order: the GPU's own counter (NVML's total energy, where its library and a device are there), the processor's
//! (RAPL's `energy_uj`, which most virtual machines and ordinary accounts cannot read), or an estimate
//!
//! ```text
//! J = CPU seconds / cores · TDP / 2 + wall seconds · 0.375 W / GiB · GiB        the constant mode of CodeCarbon
//! ```
//!
//! An estimate is proportional to CPU time, so a ratio of its joules is the ratio of times and no measurement of its own. Whole
//! processors and GPUs are metered, whatever else they do meanwhile. None of this belongs into a record that is the same each time.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use serde::Serialize;

use crate::clock::cpu_seconds;

/// Watts of the processor at full load, where the user does not say.
pub const TDP_WATTS: f64 = 85.0;

/// Share of [`TDP_WATTS`] a busy processor is taken to draw.
const LOAD: f64 = 0.5;

/// Watts of memory a GiB.
const MEMORY_WATTS: f64 = 0.375;

/// Where joules come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The GPU's counter.
    Nvml,
    /// The processor's counter.
    Rapl,
    /// CPU time and the user's watts.
    Estimate,
}

impl Method {
    /// What a reader must know.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Nvml => "method nvml: the GPU's own counter, without the processor",
            Self::Rapl => "method rapl: the processor packages' own counters, without anything else",
            Self::Estimate => {
                "method estimate: CPU time times watts, so ratios of energy and carbon equal ratios of CPU time by \
                 construction"
            }
        }
    }
}

/// The circumstances of carbon.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Circumstances {
    /// Grams of CO₂ equivalents a kWh.
    pub intensity: f64,
    /// What the building draws for each joule of the machine.
    pub pue: f64,
    /// Watts of the whole processor at full load.
    pub tdp_watts: f64,
    /// Cores that share them; all of the machine's where 0.
    pub cores: usize,
    /// GiB of memory that count.
    pub memory_gib: f64,
}

impl Default for Circumstances {
    fn default() -> Self {
        // About the mean of the world's electricity of recent years.
        Self { intensity: 480.0, pue: 1.0, tdp_watts: TDP_WATTS, cores: 0, memory_gib: 4.0 }
    }
}

impl Circumstances {
    /// Grams of CO₂ equivalents of so many joules.
    pub fn grams(&self, joules: f64) -> f64 {
        joules / 3.6e6 * self.pue * self.intensity
    }

    /// The estimate for work of so many CPU seconds on one core after the other.
    pub fn estimate(&self, cpu: f64, wall: f64) -> f64 {
        let cores =
            if self.cores > 0 { self.cores } else { std::thread::available_parallelism().map_or(1, usize::from) };
        cpu / cores as f64 * self.tdp_watts * LOAD + wall * MEMORY_WATTS * self.memory_gib
    }
}

/// A counter of one processor package.
#[derive(Debug)]
struct Package {
    file: PathBuf,
    range: u64,
    start: u64,
}

/// A running measurement.
#[derive(Debug)]
pub struct Meter {
    method: Method,
    packages: Vec<Package>,
    gpu: Option<nvml::Counter>,
    circumstances: Circumstances,
    started: Instant,
    cpu: f64,
}

/// What a measurement found.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Energy {
    /// By what.
    pub method: Method,
    /// How much.
    pub joules: f64,
    /// CPU seconds of the process meanwhile.
    pub cpu_seconds: f64,
    /// Wall seconds.
    pub wall_seconds: f64,
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The counters of whole packages (`intel-rapl:0`, not its parts `intel-rapl:0:0`) that can be read below `root`.
fn packages(root: &Path) -> Vec<Package> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let whole = entries.filter(|path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.contains("rapl") && name.matches(':').count() == 1
    });
    let open = |folder: PathBuf| {
        let file = folder.join("energy_uj");
        Some(Package { start: number(&file)?, range: number(&folder.join("max_energy_range_uj"))?, file })
    };
    let mut found: Vec<Package> = whole.filter_map(open).collect();
    found.sort_by(|a, b| a.file.cmp(&b.file));
    found
}

impl Meter {
    /// Starts to measure by the best counter there is; `gpu` only where work runs on it.
    pub fn start(circumstances: Circumstances, gpu: bool) -> Self {
        Self::start_at(circumstances, gpu, Path::new("/sys/class/powercap"))
    }

    fn start_at(circumstances: Circumstances, gpu: bool, powercap: &Path) -> Self {
        let gpu = if gpu { nvml::Counter::start() } else { None };
        let packages = if gpu.is_some() { Vec::new() } else { packages(powercap) };
        let method = match (&gpu, packages.is_empty()) {
            (Some(_), _) => Method::Nvml,
            (None, false) => Method::Rapl,
            (None, true) => Method::Estimate,
        };
        Self { method, packages, gpu, circumstances, started: Instant::now(), cpu: cpu_seconds() }
    }

    /// By what is measured.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Since the start. A counter that can no longer be read leaves an estimate, which says so.
    pub fn read(&self) -> Energy {
        let (cpu, wall) = (cpu_seconds() - self.cpu, self.started.elapsed().as_secs_f64());
        let rapl = || -> Option<f64> {
            let of = |package: &Package| {
                let now = number(&package.file)?;
                // Counters go back to 0 at their range; more than once in one measurement cannot be told.
                let more = if now >= package.start { now - package.start } else { now + package.range - package.start };
                Some(more as f64 * 1e-6)
            };
            self.packages.iter().map(of).sum()
        };
        let measured = match self.method {
            Method::Nvml => self.gpu.as_ref().and_then(nvml::Counter::joules),
            Method::Rapl => rapl(),
            Method::Estimate => None,
        };
        match measured {
            Some(joules) => Energy { method: self.method, joules, cpu_seconds: cpu, wall_seconds: wall },
            None => Energy {
                method: Method::Estimate,
                joules: self.circumstances.estimate(cpu, wall),
                cpu_seconds: cpu,
                wall_seconds: wall,
            },
        }
    }
}

mod nvml {
    //! NVML's total energy, from a library that is looked for at run time: builds and machines without it do not notice.

    use std::{ffi::c_void, os::raw::c_int};

    type Init = unsafe extern "C" fn() -> c_int;
    type Handle = unsafe extern "C" fn(u32, *mut *mut c_void) -> c_int;
    type Total = unsafe extern "C" fn(*mut c_void, *mut u64) -> c_int;

    /// The first device's counter.
    #[derive(Debug)]
    pub struct Counter {
        device: *mut c_void,
        total: Total,
        start: u64,
    }

    // SAFETY: NVML says that its functions and handles can be used from every thread.
    unsafe impl Send for Counter {}
    // SAFETY: as above.
    unsafe impl Sync for Counter {}

    impl Counter {
        pub fn start() -> Option<Self> {
            // SAFETY: the library is NVIDIA's, its functions have these types (nvml.h), and it is never closed.
            unsafe {
                let library = libc::dlopen(c"libnvidia-ml.so.1".as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
                if library.is_null() {
                    return None;
                }
                let symbol = |name: &std::ffi::CStr| {
                    let found = libc::dlsym(library, name.as_ptr());
                    (!found.is_null()).then_some(found)
                };
                let init: Init = std::mem::transmute::<*mut c_void, Init>(symbol(c"nvmlInit_v2")?);
                let handle: Handle =
                    std::mem::transmute::<*mut c_void, Handle>(symbol(c"nvmlDeviceGetHandleByIndex_v2")?);
                let total: Total =
                    std::mem::transmute::<*mut c_void, Total>(symbol(c"nvmlDeviceGetTotalEnergyConsumption")?);
                let mut device = std::ptr::null_mut();
                let mut start = 0;
                if init() != 0 || handle(0, &mut device) != 0 || total(device, &mut start) != 0 {
                    return None;
                }
                Some(Self { device, total, start })
            }
        }

        /// Joules since the start; the counter is in millijoules.
        pub fn joules(&self) -> Option<f64> {
            let mut now = 0;
            // SAFETY: as in `start`; the handle is the one NVML gave.
            let code = unsafe { (self.total)(self.device, &mut now) };
            (code == 0 && now >= self.start).then(|| (now - self.start) as f64 * 1e-3)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_and_may_go_round() {
        let folder = tempfile::tempdir().unwrap();
        let package = folder.path().join("intel-rapl:0");
        // A part of the package, which must not count twice.
        for (at, energy) in [(&package, 900_000_000u64), (&folder.path().join("intel-rapl:0:0"), 5)] {
            fs::create_dir(at).unwrap();
            fs::write(at.join("energy_uj"), energy.to_string()).unwrap();
            fs::write(at.join("max_energy_range_uj"), "1000000000").unwrap();
        }
        let meter = Meter::start_at(Circumstances::default(), false, folder.path());
        assert_eq!(meter.method(), Method::Rapl);
        fs::write(package.join("energy_uj"), "950000000").unwrap();
        assert_eq!(meter.read().joules, 50.0);
        fs::write(package.join("energy_uj"), "100000000").unwrap();
        assert_eq!(meter.read().joules, 200.0);
        fs::remove_file(package.join("energy_uj")).unwrap();
        assert_eq!(meter.read().method, Method::Estimate);
    }

    #[test]
    fn an_estimate_follows_cpu_time_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let circumstances = Circumstances { cores: 2, memory_gib: 0.0, ..Circumstances::default() };
        let meter = Meter::start_at(circumstances, false, folder.path());
        assert_eq!(meter.method(), Method::Estimate);
        assert!(Method::Estimate.sentence().contains("by construction"));
        assert_eq!(circumstances.estimate(100.0, 50.0), 50.0 * TDP_WATTS / 2.0);
        // One kWh at 480 g.
        assert!((circumstances.grams(3.6e6) - 480.0).abs() < 1e-9);
    }
}
