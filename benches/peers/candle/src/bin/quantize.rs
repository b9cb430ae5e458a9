// SPDX-License-Identifier: MIT OR Apache-2.0
//! candle's own quantiser on a Hugging Face folder: every matrix to Q4_0, the rest as f32, into one GGUF file, as candle's
//! `tensor-tools quantize` does it: all tensors are loaded, quantised by `QTensor::quantize`, and written at the end.
//!
//! ```text
//! RAYON_NUM_THREADS=1 quantize FOLDER OUT.gguf
//! ```

use std::{fs::File, io::BufWriter, path::Path};

use candle_core::{
    quantized::{gguf_file, GgmlDType, QTensor},
    safetensors, Device,
};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, folder, out] = arguments.as_slice() else { anyhow::bail!("usage: quantize FOLDER OUT.gguf") };
    let mut tensors = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            tensors.extend(safetensors::load(&path, &Device::Cpu)?);
        }
    }
    let quantised = tensors
        .iter()
        .map(|(name, tensor)| {
            let dtype = match tensor.rank() {
                2 if tensor.dim(1)? % 32 == 0 => GgmlDType::Q4_0,
                _ => GgmlDType::F32,
            };
            Ok((name.as_str(), QTensor::quantize(tensor, dtype)?))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let views: Vec<(&str, &QTensor)> = quantised.iter().map(|(name, tensor)| (*name, tensor)).collect();
    gguf_file::write(&mut BufWriter::new(File::create(Path::new(out))?), &[], &views)?;
    Ok(())
}
