//! A run that is killed, whenever that is: nothing under the final name, and the next run ends in the same bytes.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::support::{Model, Place, Run, assert_same_files, json_file, program, values};

const BLOCKS: usize = 5;

/// Longest wait for a run to get somewhere.
const PATIENCE: Duration = Duration::from_secs(60);

struct Case {
    place: Place,
    model: PathBuf,
    text: PathBuf,
    method: &'static str,
}

impl Case {
    fn new() -> Self {
        let place = Place::new();
        let model = Model::sized(BLOCKS, 128, 192).write(place.path("model"));
        let text = place.text("text", 16 * 64);
        Self { place, model, text, method: "gptq" }
    }

    fn command(&self, out: &Path, bits: &str) -> Command {
        let mut command = program();
        command.arg("compress").arg(&self.model).arg("--calibration").arg(&self.text).arg("-o").arg(out);
        command.args([
            "--method",
            self.method,
            "--bits",
            bits,
            "--group-size",
            "32",
            "--seq-len",
            "64",
            "--n-samples",
            "16",
            "--no-speed",
        ]);
        command
    }

    fn finish(&self, out: &Path) -> Run {
        Run::of(&mut self.command(out, "4")).succeeds()
    }

    /// Starts a run and kills it `delay` after its journal has `lines` lines. Whether there was still something to kill.
    fn kill(&self, out: &Path, lines: usize, delay: Duration) -> bool {
        let journal = self.partial(out).join("journal.jsonl");
        let mut child = self.command(out, "4").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        while count_lines(&journal) < lines && child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < PATIENCE, "the journal has {} lines", count_lines(&journal));
            sleep(Duration::from_micros(200));
        }
        sleep(delay);
        let _ = child.kill(); // SIGKILL; it may have ended by itself
        child.wait().unwrap().signal() == Some(9)
    }

    fn partial(&self, out: &Path) -> PathBuf {
        out.with_file_name(format!(".{}.partial", out.file_name().unwrap().to_str().unwrap()))
    }
}

fn count_lines(journal: &Path) -> usize {
    fs::read(journal).map_or(0, |text| text.iter().filter(|&&byte| byte == b'\n').count())
}

#[test]
fn a_run_killed_again_and_again_ends_in_the_bytes_of_an_undisturbed_one() {
    let case = Case::new();
    let whole = case.place.out("whole");
    case.finish(&whole);
    // One output, killed as soon as each further block is done.
    let out = case.place.out("again");
    for lines in 1..=BLOCKS + 1 {
        assert!(case.kill(&out, lines, Duration::ZERO), "too late for line {lines}");
        assert!(!out.exists(), "nothing may be there before the end");
        assert!(case.partial(&out).is_dir());
    }
    let last = case.finish(&out);
    assert!(last.stderr.contains("went on after"), "{last:#?}");
    assert_same_files(&whole, &out);
    // Outputs killed once, at moments that have nothing to do with blocks.
    let mut killed = 0;
    for (number, x) in values("moments", 8).into_iter().enumerate() {
        let out = case.place.out(&format!("once-{number}"));
        let delay = Duration::from_micros((f64::from(x + 1.0) * 20_000.0) as u64);
        if case.kill(&out, number % 4, delay) {
            killed += 1;
            assert!(!out.exists(), "nothing may be there before the end");
            case.finish(&out);
        }
        assert_same_files(&whole, &out);
    }
    assert!(killed >= 4, "only {killed} of 8 runs were still there to be killed");
    assert!(case.place.results().iter().all(|name| !name.contains("partial")), "{:?}", case.place.results());
}

#[test]
fn scales_folded_into_norms_survive_a_kill() {
    let case = Case { method: "awq", ..Case::new() };
    let whole = case.place.out("whole");
    case.finish(&whole);
    let out = case.place.out("again");
    let mut killed = 0;
    for lines in [2, 4] {
        killed += usize::from(case.kill(&out, lines, Duration::from_millis(5)));
    }
    assert!(killed > 0, "no run was still there to be killed");
    case.finish(&out);
    assert_same_files(&whole, &out);
    assert_eq!(json_file(&out.join("scruple.json"))["scalings"].as_array().unwrap().len(), 4 * BLOCKS);
}

#[test]
fn an_interrupted_run_is_not_continued_with_other_settings() {
    let case = Case::new();
    let out = case.place.out("out");
    assert!(case.kill(&out, 3, Duration::ZERO));
    let before = count_lines(&case.partial(&out).join("journal.jsonl"));
    let words = ["journal.jsonl", "interrupted run", "cannot be continued", "delete the folder"];
    Run::of(&mut case.command(&out, "8")).refuses(&words); // other tensors
    Run::of(case.command(&out, "4").arg("--asymmetric")).refuses(&words); // the same tensors, another grid
    let config = case.model.join("config.json");
    let own = fs::read_to_string(&config).unwrap();
    let mut changed = json_file(&config);
    changed["rms_norm_eps"] = 1e-3.into();
    fs::write(&config, changed.to_string()).unwrap();
    Run::of(&mut case.command(&out, "4")).refuses(&words); // the same weights, run in another way
    fs::write(&config, own).unwrap();
    assert_eq!(count_lines(&case.partial(&out).join("journal.jsonl")), before, "it is kept as it was");
    assert!(!out.exists());
    let last = case.finish(&out);
    assert!(last.stderr.contains("went on after"), "{last:#?}");
    assert_eq!(json_file(&out.join("scruple.json"))["linears"].as_array().unwrap().len(), 7 * BLOCKS);
}

#[test]
fn damaged_activations_of_an_interrupted_run_are_noticed() {
    let case = Case::new();
    let out = case.place.out("out");
    assert!(case.kill(&out, 3, Duration::ZERO));
    let finished = count_lines(&case.partial(&out).join("journal.jsonl")) - 2; // blocks, after the head and the rest
    let activations = case.partial(&out).join(format!("scratch/residual-{}", finished % 2));
    let mut bytes = fs::read(&activations).unwrap();
    bytes[1000] ^= 1;
    fs::write(&activations, bytes).unwrap();
    Run::of(&mut case.command(&out, "4")).refuses(&["activations", "damaged", "start over"]);
}
