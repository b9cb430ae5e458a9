//! Tesseract's bundles: what is said of them, what is refused, and files that were damaged on purpose.

use std::{env, fs, path::PathBuf};

use scruple_weights::{Checkpoint, Shard, format, format::traineddata};

fn fixture() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/containers/lines.traineddata")
}

fn refusal(bytes: Vec<u8>) -> String {
    format::read(&Shard::from_bytes("lines.traineddata", bytes)).unwrap_err().to_string()
}

/// Where the recogniser begins: behind the table of 24 components.
const START: usize = 4 + 24 * 8;

#[test]
fn a_recogniser_says_its_network_and_version() {
    let checkpoint = Checkpoint::open(fixture()).unwrap();
    let metadata = checkpoint.metadata();
    assert_eq!(metadata["container"], "traineddata");
    assert_eq!(metadata["network"], "[1,8,0,1 Ct3,3,4 ...]");
    assert_eq!(metadata["version"], "4.1.0-own");
    assert!(checkpoint.contains("lstm.series.4.parallel.1.rtlreversed.0.lstm.gate_gf1.weight"));
}

#[test]
fn what_cannot_be_read_is_refused_in_words() {
    let good = fs::read(fixture()).unwrap();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        refusal(bytes)
    };
    let place = |component: usize| 4 + 8 * component..4 + 8 * (component + 1);
    // The recogniser's bytes become those of a table of the older engine.
    let legacy = with(&|bytes| {
        bytes.copy_within(place(17), place(3).start);
        bytes[place(17)].fill(0xff);
    });
    assert!(legacy.contains("no LSTM recogniser (component 17)") && legacy.contains("older engine"), "{legacy}");
    let swapped = with(&|bytes| {
        bytes[..4].reverse();
        (0..24).for_each(|component| bytes[place(component)].reverse());
    });
    assert!(swapped.contains("big-endian"), "{swapped}");
    let kind = with(&|bytes| bytes[START + 5] = b'Z');
    assert!(kind.contains("unknown type") && kind.contains("lines.traineddata"), "{kind}");
    let cut = with(&|bytes| bytes.truncate(START + 700));
    assert!(!cut.is_empty());
    // A component that begins three bytes later leaves three bytes of the recogniser unexplained.
    let left = with(&|bytes| bytes[place(21).start] += 3);
    assert!(left.contains("3 bytes are left over"), "{left}");
}

#[test]
fn networks_without_end_are_refused() {
    let mut bytes = fs::read(fixture()).unwrap()[..START].to_vec();
    for _ in 0..100_000 {
        // A series (type 9) of one network.
        bytes.push(9);
        bytes.extend([0; 2 + 4 * 4 + 4]);
        bytes.extend(1u32.to_le_bytes());
    }
    for component in [21, 22, 23] {
        bytes[4 + 8 * component..][..8].fill(0xff);
    }
    let said = refusal(bytes);
    assert!(said.contains("nested more than 32 deep"), "{said}");
}

/// Every cut and every changed byte is refused, or leaves tensors that are no larger than the file justifies.
#[test]
fn no_damage_reaches_outside_the_file() {
    let good = fs::read(fixture()).unwrap();
    let check = |bytes: Vec<u8>| {
        let len = bytes.len();
        if let Ok(contents) = traineddata::read(&Shard::from_bytes("damaged.traineddata", bytes)) {
            // A code of one byte becomes a number of four.
            assert!(contents.tensors.iter().map(|tensor| tensor.bytes().len()).sum::<usize>() <= 4 * len);
        }
    };
    (0..good.len()).step_by(7).for_each(|len| check(good[..len].to_vec()));
    let mut state = 1u64;
    for _ in 0..20_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = (state >> 33) as usize % good.len();
        let mut bytes = good.clone();
        bytes[at] = (state >> 20) as u8;
        // Counts and sizes near the ends of numbers.
        if state.is_multiple_of(3) && at + 4 <= bytes.len() {
            bytes[at..at + 4].copy_from_slice(&(u32::MAX - (state % 64) as u32).to_le_bytes());
        }
        check(bytes);
    }
}
