//! ggml's blocks against the `gguf` Python package: `fixtures/gguf/make_kquants.py` made the file and says how.

use safetensors::SafeTensors;
use scruple_weights::{Dtype, format::gguf::dequantize};

const GOLDENS: &[u8] = include_bytes!("../../../fixtures/gguf/kquants.safetensors");

const TYPES: [(&str, Dtype); 12] = [
    ("q4_0", Dtype::Q4_0),
    ("q4_1", Dtype::Q4_1),
    ("q5_0", Dtype::Q5_0),
    ("q5_1", Dtype::Q5_1),
    ("q8_0", Dtype::Q8_0),
    ("q2_k", Dtype::Q2K),
    ("q3_k", Dtype::Q3K),
    ("q4_k", Dtype::Q4K),
    ("q5_k", Dtype::Q5K),
    ("q6_k", Dtype::Q6K),
    ("f16", Dtype::F16),
    ("bf16", Dtype::Bf16),
];

#[test]
fn blocks_decode_to_the_bits_of_the_python_package() {
    let goldens = SafeTensors::deserialize(GOLDENS).unwrap();
    assert_eq!(goldens.len(), 2 * TYPES.len(), "a golden type is not tested");
    for (name, dtype) in TYPES {
        let bytes = goldens.tensor(&format!("{name}.bytes")).unwrap().data().to_vec();
        let golden = goldens.tensor(&format!("{name}.f32")).unwrap().data().to_vec();
        let expected: Vec<f32> = golden.as_chunks::<4>().0.iter().map(|&x| f32::from_le_bytes(x)).collect();
        let mut found = vec![f32::NAN; expected.len()];
        dequantize(dtype, &bytes, &mut found);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.to_bits(), expected.to_bits(), "{name}: value {i} is {found}, expected {expected}");
        }
    }
}

#[test]
fn unaligned_bytes_decode_as_aligned_ones() {
    let goldens = SafeTensors::deserialize(GOLDENS).unwrap();
    for (name, dtype) in TYPES {
        let bytes = goldens.tensor(&format!("{name}.bytes")).unwrap().data().to_vec();
        let n = bytes.len() / dtype.block().1 * dtype.block().0;
        let shifted = [&[0u8], &bytes[..]].concat();
        let (mut a, mut b) = (vec![0.0; n], vec![0.0; n]);
        dequantize(dtype, &bytes, &mut a);
        dequantize(dtype, &shifted[1..], &mut b);
        assert_eq!(a, b, "{name}");
    }
}

#[test]
#[should_panic(expected = "31 elements of Q4_0")]
fn a_wrong_length_is_a_mistake_of_the_caller() {
    dequantize(Dtype::Q4_0, &[0; 18], &mut [0.0; 31]);
}
