//! Files that others made. `SCRUPLE_DATA` names the folder with the data pack, `SCRUPLE_SILERO` the folder `data` of the
//! package silero-vad 6.2.3, `SCRUPLE_TESSERACT` one with Tesseract's fast models of version 4.1.0; without them the tests say what they skip.

#![allow(clippy::print_stderr, reason = "a skipped test says so")]

use std::{collections::BTreeMap, env, path::PathBuf};

use scruple_weights::{Checkpoint, Dtype, format::llama2c};

fn folder(variable: &str, what: &str) -> Option<PathBuf> {
    let folder = env::var_os(variable).map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: {what} ({variable} is not set)");
    }
    folder
}

#[test]
fn the_residual_networks_open_with_all_their_parameters() {
    let Some(data) = folder("SCRUPLE_DATA", "four residual networks as legacy pickles") else { return };
    for (file, tensors, parameters) in [
        ("resnet20-12fca82f.th", 97, 269_722),
        ("resnet32-d509ac18.th", 157, 464_154),
        ("resnet44-014dd654.th", 217, 658_586),
        ("resnet56-4bfd9763.th", 277, 853_018),
    ] {
        let checkpoint = Checkpoint::open(data.join("models/resnet_cifar10").join(file)).unwrap();
        assert_eq!(checkpoint.tensors().len(), tensors);
        // Running means and variances are no parameters.
        let trained = checkpoint.tensors().filter(|tensor| !tensor.name().contains("running_"));
        assert_eq!(trained.map(|tensor| tensor.elements()).sum::<usize>(), parameters);
        assert_eq!(checkpoint.metadata()["looked_through"], "state_dict");
        assert_eq!(checkpoint.metadata()["common_prefix"], "module.");
        assert!(checkpoint.tensors().all(|tensor| tensor.dtype() == Dtype::F32 && tensor.nonfinite().is_none()));
        assert_eq!(checkpoint.tensor("module.conv1.weight").unwrap().shape(), [16, 3, 3, 3]);
    }
}

#[test]
fn stories260k_is_a_llama_with_its_tokenizer() {
    let Some(data) = folder("SCRUPLE_DATA", "stories260K") else { return };
    let folder = data.join("models/stories260K");
    let checkpoint = Checkpoint::open(&folder).unwrap(); // the only file of weights in it
    assert_eq!((checkpoint.tensors().len(), checkpoint.parameters()), (47, 260_032));
    assert_eq!(checkpoint.config().unwrap()["num_hidden_layers"], 5);
    let vocabulary = llama2c::read_vocabulary(&folder.join("tok512.bin")).unwrap();
    assert_eq!(vocabulary.tokens.len(), 512);
    assert_eq!(vocabulary.tokens[13].0, b"<0x0A>");
    assert!(vocabulary.tokens.iter().all(|(token, _)| token.len() <= vocabulary.longest.max(6)));
    assert!(llama2c::read_vocabulary(&folder.join("stories260K.bin")).is_err());
}

#[test]
fn arrays_of_labels_and_of_words_open() {
    let Some(data) = folder("SCRUPLE_DATA", "labels and words in .npy") else { return };
    let open = |file: &str| {
        let checkpoint = Checkpoint::open(data.join("trust/fairness").join(file)).unwrap();
        checkpoint.tensors().next().unwrap().clone()
    };
    for set in ["adult_0_200_test_base_rate_0.5", "adult_32_200_train_base_rate_0.5"] {
        let labels = open(&format!("gt_labels_{set}.npy"));
        assert_eq!((labels.dtype(), labels.shape()), (Dtype::I64, &[200][..]));
        assert!(labels.to_f32().unwrap().iter().all(|&label| label == 0.0 || label == 1.0));
        // Texts are their code points, padded with zeros.
        let words = open(&format!("sensitive_attr_{set}.npy"));
        assert_eq!((words.dtype(), words.shape()), (Dtype::U32, &[200, 6][..]));
        let points = words.to_f32().unwrap();
        for word in points.chunks(6) {
            let word: String = word.iter().filter(|&&point| point > 0.0).map(|&point| point as u8 as char).collect();
            assert!(word == "Male" || word == "Female", "{word}");
        }
    }
}

#[test]
fn one_model_is_bit_equal_in_torchscript_and_both_onnx_files() {
    let Some(data) = folder("SCRUPLE_SILERO", "silero-vad in six containers") else { return };
    let open = |file: &str| Checkpoint::open(data.join(file)).unwrap();
    // What is called `_model.NAME`, `If_0_then_branch__Inline_0__NAME` and `model.NAME` in the three files.
    let named = |checkpoint: &Checkpoint, prefix: &str| -> BTreeMap<String, (Dtype, Vec<usize>, String)> {
        let own = checkpoint.tensors().filter(|tensor| tensor.dtype() == Dtype::F32);
        own.filter_map(|tensor| {
            let name = tensor.name().strip_prefix(prefix)?;
            let weight = name.starts_with("encoder") || name.starts_with("decoder") || name.starts_with("stft");
            weight.then(|| (name.to_owned(), (tensor.dtype(), tensor.shape().to_vec(), tensor.sha256())))
        })
        .collect()
    };
    let script = named(&open("silero_vad.jit"), "_model.");
    let branches = named(&open("silero_vad.onnx"), "If_0_then_branch__Inline_0__");
    let initialisers = named(&open("silero_vad_16k_op15.onnx"), "model.");
    assert_eq!(script.len(), 15);
    assert_eq!(script.values().map(|(_, shape, _)| shape.iter().product::<usize>()).sum::<usize>(), 309_633);
    assert_eq!(script, branches);
    assert_eq!(script, initialisers);
    for (name, (dtype, shape, sha256)) in &script {
        eprintln!("equal in all three: {name} {dtype} {shape:?} {}", &sha256[..16]);
    }
    // The 8 kHz model of the same files.
    let narrow = named(&open("silero_vad.jit"), "_model_8k.");
    assert_eq!((narrow.len(), &narrow), (15, &named(&open("silero_vad.onnx"), "If_0_else_branch__Inline_0__")));
    assert_eq!(open("silero_vad_16k.safetensors").parameters(), 309_633);
    assert!(open("silero_vad_half.onnx").tensors().any(|tensor| tensor.name() == "decoder.rnn.weight_ih"));
}

#[test]
fn tesseract_reads_lines_in_three_languages() {
    let Some(data) = folder("SCRUPLE_TESSERACT", "Tesseract's models of English, Russian and Japanese") else { return };
    for (language, parameters) in [("eng", 385_807), ("rus", 288_028), ("jpn", 1_055_423)] {
        let checkpoint = Checkpoint::open(data.join(language).with_extension("traineddata")).unwrap();
        // As many as the file itself counts, in the header of the outermost network.
        assert_eq!(checkpoint.parameters(), parameters, "{language}");
        assert!(checkpoint.tensors().all(|tensor| tensor.dtype() == Dtype::F32 && tensor.nonfinite().is_none()));
        assert!(checkpoint.metadata()["network"].starts_with("[1,"));
    }
    let legacy = Checkpoint::open(data.join("osd.traineddata")).unwrap_err().to_string();
    assert!(legacy.contains("no LSTM recogniser"), "{legacy}");
}
