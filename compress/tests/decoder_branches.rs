//! Many sequences in one run, held to each sequence on its own, for a tiny decoder of every family.

#![allow(clippy::print_stdout)] // differences, shown by `--nocapture`

use std::{fs, path::Path};

use candle_core::Tensor;
use scruple_compress::model::{
    Decoder,
    decoder::{KvCache, Stretch},
};
use scruple_weights::Checkpoint;

/// Largest accepted difference of a number of the last hidden states, relative to the largest: both ways compute in f32
/// and add in another order where a product has few rows (1e-6 is seen). Keys of a wrong place show as 0.1 and more.
const MAX_RELATIVE_DIFFERENCE: f32 = 1e-5;

/// Of the families, the one whose rotary positions switch with the length, and where they do.
const LONG: &str = "phi3-long";
const SWITCHES_AFTER: usize = 32;

/// Name, decoder and the tokens of a text of each family.
fn decoders() -> Vec<(String, Decoder, Vec<u32>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/decoders");
    let mut names: Vec<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| folder.join(name).is_dir())
        .collect();
    names.sort();
    assert!(names.len() >= 30, "{names:?}");
    let open = |name: String| {
        let folder = folder.join(&name);
        let golden: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let ids = golden["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        (name, Decoder::open(&Checkpoint::open(&folder).unwrap()).unwrap(), ids)
    };
    names.into_iter().map(open).collect()
}

/// Sequences of the tokens `ids` that share beginnings: whole, cut, and cut and gone on with otherwise.
fn sequences(ids: &[u32]) -> Vec<Vec<u32>> {
    let gone_on = |cut: usize, with: &[u32]| [&ids[..cut], with].concat();
    let turned: Vec<u32> = ids.iter().rev().copied().collect();
    let mut all = vec![
        ids.to_vec(),
        ids[..20].to_vec(),
        gone_on(20, &turned[..5]),
        gone_on(20, &turned[1..2]),
        gone_on(9, &turned[3..30]),
        gone_on(9, &turned[3..12]),
        turned[..40].to_vec(),
        vec![turned[2]],
    ];
    all.sort();
    all
}

fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn rows(x: &Tensor) -> Vec<Vec<f32>> {
    x.to_vec2().unwrap()
}

#[track_caller]
fn assert_close(what: &str, found: &[Vec<f32>], expected: &[Vec<f32>]) -> f32 {
    assert_eq!(found.len(), expected.len(), "{what}");
    let flat = |rows: &[Vec<f32>]| rows.iter().flatten().copied().collect::<Vec<f32>>();
    let (found, expected) = (flat(found), flat(expected));
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs() / largest);
    let worst = worst.fold(0.0f32, |worst, x| if x.total_cmp(&worst).is_gt() { x } else { worst });
    assert!(
        worst <= MAX_RELATIVE_DIFFERENCE,
        "{what}: {worst:.1e} of the largest, allowed {MAX_RELATIVE_DIFFERENCE:.0e}"
    );
    worst
}

/// What is run for sorted `sequences`: (start, tokens, sequence), the first `limit` rows a run, the rest in further runs.
fn runs(sequences: &[Vec<u32>], limit: usize) -> Vec<Vec<(usize, Vec<u32>, usize)>> {
    let mut runs = vec![Vec::new()];
    let mut rows = 0;
    for (index, sequence) in sequences.iter().enumerate() {
        let mut start = if index == 0 { 0 } else { common(&sequences[index - 1], sequence) };
        while start < sequence.len() {
            if rows == limit {
                runs.push(Vec::new());
                rows = 0;
            }
            let end = sequence.len().min(start + limit - rows);
            runs.last_mut().unwrap().push((start, sequence[start..end].to_vec(), index));
            (rows, start) = (rows + end - start, end);
        }
    }
    runs
}

#[test]
fn branches_of_shared_paths_equal_each_sequence_on_its_own() {
    for (name, model, ids) in decoders() {
        let all = sequences(&ids);
        // Sequences that are turned otherwise share nothing.
        let (short, long): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|sequence| name != LONG || sequence.len() <= SWITCHES_AFTER);
        for sequences in [short, long] {
            let alone: Vec<Vec<Vec<f32>>> =
                sequences.iter().map(|sequence| rows(&model.hidden_once(sequence).unwrap())).collect();
            for limit in [usize::MAX / 2, 33, 7, 1] {
                let mut path = KvCache::default();
                let mut worst = 0.0f32;
                for run in runs(&sequences, limit) {
                    let mut stretches: Vec<Stretch<'_>> = run
                        .iter()
                        .map(|(start, ids, of)| Stretch {
                            start: *start,
                            ids,
                            whole: sequences[*of].len(),
                            keep: false,
                        })
                        .collect();
                    let Some(last) = stretches.last_mut() else { continue };
                    last.keep = true;
                    let count = stretches.iter().map(|stretch| stretch.ids.len()).sum();
                    // Every row but the first, so that the numbering counts.
                    let wanted: Vec<usize> = (usize::from(count > 1)..count).collect();
                    let (hidden, mut kept) = model.hidden_branches(&stretches, &path, &wanted).unwrap();
                    let expected: Vec<Vec<f32>> = run
                        .iter()
                        .flat_map(|(start, ids, of)| alone[*of][*start..start + ids.len()].iter().cloned())
                        .collect();
                    let what = format!("{name}, at most {limit} rows a run");
                    worst = worst.max(assert_close(&what, &rows(&hidden), &expected[wanted[0]..]));
                    assert_eq!(kept.len(), 1);
                    path = kept.remove(0);
                }
                println!("{name}, {limit}: {worst:.1e}");
            }
        }
    }
}

#[test]
fn kept_paths_go_on_like_caches_of_their_own() {
    for (name, model, ids) in decoders() {
        let (a, b) = (&ids[..12], [&ids[..5], &ids[20..24]].concat());
        let stretches = [
            Stretch { start: 0, ids: a, whole: 12, keep: true },
            Stretch { start: 5, ids: &b[5..], whole: 9, keep: true },
        ];
        let (_, mut caches) = model.hidden_branches(&stretches, &KvCache::default(), &[0]).unwrap();
        let mut expected = [KvCache::default(), KvCache::default()];
        model.hidden(a, &mut expected[0]).unwrap();
        model.hidden(&b, &mut expected[1]).unwrap();
        // Steps of several lengths; the last is past where the rotary positions of long texts begin.
        for (from, until) in [(24, 25), (25, 31), (0, 30)] {
            let next = [&ids[from..until], &ids[from..until - (until - from) / 2]];
            let [one, two] = &mut caches[..] else { panic!("two were kept") };
            let found = model.last_hidden_batch(&next, &mut [one, two]).unwrap();
            let alone: Vec<Vec<f32>> = next
                .iter()
                .zip(&mut expected)
                .map(|(ids, cache)| rows(&model.hidden(ids, cache).unwrap()).pop().unwrap())
                .collect();
            assert_close(&name, &rows(&found), &alone);
            for (cache, expected) in caches.iter().zip(&expected) {
                assert_eq!(cache.positions(), expected.positions());
            }
        }
        // Cut back to where they were like again.
        for cache in caches.iter_mut().chain(&mut expected) {
            cache.truncate(9);
        }
        let [one, two] = &mut caches[..] else { panic!("two were kept") };
        let next: &[u32] = &ids[3..8];
        let found = model.last_hidden_batch(&[next, next], &mut [one, two]).unwrap();
        let alone = [[a[..9].to_vec(), next.to_vec()].concat(), [b, next.to_vec()].concat()];
        let alone = alone.map(|ids| rows(&model.hidden_once(&ids).unwrap()).pop().unwrap());
        assert_close(&name, &rows(&found), &alone);
    }
}

#[test]
fn the_bits_do_not_depend_on_threads() {
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    for (name, model, ids) in decoders() {
        let ids: Vec<u32> = if name == LONG { ids[..SWITCHES_AFTER].to_vec() } else { ids };
        let run = || {
            let stretches: Vec<Stretch<'_>> = (0..40)
                .map(|i| Stretch { start: i % 2, ids: &ids[i % 2..], whole: ids.len(), keep: i == 39 })
                .collect();
            let count: usize = stretches.iter().map(|stretch| stretch.ids.len()).sum();
            let wanted: Vec<usize> = (0..count).step_by(17).collect();
            let (hidden, mut kept) = model.hidden_branches(&stretches, &KvCache::default(), &wanted).unwrap();
            let last = model.last_hidden_batch(&[&ids[..1]], &mut [&mut kept[0]]).unwrap();
            (rows(&hidden), rows(&last))
        };
        assert_eq!(pool(1).install(run), pool(2).install(run), "{name}");
    }
}

#[test]
fn stretches_that_cannot_be_are_refused() {
    let (_, model, ids) = decoders().remove(0);
    let run = |start, whole, id: u32| {
        let ids = [ids[0], id];
        let stretch = Stretch { start, ids: &ids, whole, keep: false };
        model.hidden_branches(&[stretch], &KvCache::default(), &[0]).map(|_| ()).map_err(|error| error.to_string())
    };
    run(0, 2, ids[1]).unwrap();
    assert!(run(1, 3, ids[1]).unwrap_err().contains("follow the first 1 of 0 positions"));
    assert!(run(0, 1, ids[1]).unwrap_err().contains("a sequence of 1"));
    assert!(run(0, 2, 1 << 30).unwrap_err().contains("outside the vocabulary"));
}
