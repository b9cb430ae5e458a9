//! Inputs that other programs cut short or replace while they are being read: always an exit code and a sentence, never a
//! signal, never something half-written under the final name.

use std::{fs, process::Stdio, thread, time::Instant};

use super::support::{Model, Place, copy_folder, program};
use crate::scruple;

const TRIALS: u32 = 24;

#[test]
fn inputs_cut_short_at_any_moment_never_kill_the_program() {
    let place = Place::new();
    let good = Model::sized(6, 256, 768).write(place.path("good"));
    let weights = fs::read(good.join("model.safetensors")).unwrap();
    let started = Instant::now();
    scruple!["convert", good, "-o", place.out("whole")].succeeds();
    let whole_run = started.elapsed();
    fs::remove_dir_all(place.out("whole")).unwrap();
    let mut refused = 0;
    for trial in 0..TRIALS {
        let model = copy_folder(&good, place.path(&format!("model{trial}")));
        let out = place.out("out");
        let verb = if trial % 2 == 0 { vec!["convert"] } else { vec!["compress", "--method", "rtn", "--no-speed"] };
        let mut command = program();
        command.args(&verb).arg(&model).arg("-o").arg(&out).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        // From before the file is opened to after the work is done.
        thread::sleep(whole_run * trial * 3 / (2 * TRIALS));
        let left = weights.len() as u64 * u64::from(trial % 5) / 7;
        fs::OpenOptions::new().write(true).open(model.join("model.safetensors")).unwrap().set_len(left).unwrap();
        let run = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        match run.status.code() {
            Some(0) => fs::remove_dir_all(&out).unwrap(),
            Some(2) => {
                refused += 1;
                assert!(said.contains("model.safetensors") || said.contains("model"), "{said}");
                // What stands under the final name is whole, even if the program failed at what came after.
                if out.exists() {
                    scruple!["verify", out].succeeds();
                    fs::remove_dir_all(&out).unwrap();
                }
            }
            other => panic!("trial {trial} ended with {other:?} ({:?}): {said}", run.status),
        }
        fs::remove_dir_all(model).unwrap();
    }
    assert!(refused > 0, "no trial met a file cut short");
}
