//! Which type each tensor gets, by the rules of llama.cpp's quantiser.
//!
//! Vectors and norms are F32. A pure scheme gives every matrix its type, embedding and output included. The mixtures
//! spend more bits where they count: Q6_K for the output (for the embedding, where it is tied to it), and
//!
//! ```text
//!           attn_v                                  ffn_down
//! Q4_K_S    Q5_K in the first 4 layers              Q5_K in the first eighth
//! Q4_K_M    Q6_K in some layers                     Q6_K in the same
//! Q5_K_M    Q6_K in some layers                     Q6_K in the same
//! ```
//!
//! `some` layers are the first and the last eighth and every third between. Rows that are no whole blocks of 256 get a
//! type of blocks of 32 instead, rows that are not even those F16.

use crate::{Dtype, gguf_to_hf::architecture::Network};

/// How a model is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// One type for all matrices; one of [`WRITTEN`](crate::ggml::WRITTEN).
    Pure(Dtype),
    /// Q4_K, a little more in few places.
    Q4KS,
    /// Q4_K and Q6_K.
    Q4KM,
    /// Q5_K and Q6_K.
    Q5KM,
}

impl Scheme {
    /// llama.cpp's number of the scheme (`general.file_type`).
    pub fn file_type(self) -> u32 {
        match self {
            Self::Pure(Dtype::F32) => 0,
            Self::Pure(Dtype::F16) => 1,
            Self::Pure(Dtype::Q4_0) => 2,
            Self::Pure(Dtype::Q4_1) => 3,
            Self::Pure(Dtype::Q8_0) => 7,
            Self::Pure(Dtype::Q5_0) => 8,
            Self::Pure(Dtype::Q5_1) => 9,
            Self::Pure(Dtype::Q2K) => 10,
            Self::Pure(Dtype::Q3K) => 11,
            Self::Pure(Dtype::Q4K) | Self::Q4KS => 14,
            Self::Q4KM => 15,
            Self::Pure(Dtype::Q5K) => 16,
            Self::Q5KM => 17,
            Self::Pure(Dtype::Q6K) => 18,
            Self::Pure(Dtype::Bf16) => 32,
            // Readers take it for "not said".
            Self::Pure(_) => 1024,
        }
    }

    /// The type of tensor `name`, and the one it should have had if its rows had filled the blocks.
    pub(super) fn dtype(self, name: &str, shape: &[usize], network: &Network) -> (Dtype, Option<Dtype>) {
        let Some(&columns) = shape.last().filter(|_| shape.len() > 1 && !name.ends_with("_norm.weight")) else {
            return (Dtype::F32, None);
        };
        let wanted = match self {
            Self::Pure(dtype) => dtype,
            _ => self.mixed(name, columns, network),
        };
        match fallback(wanted, columns) {
            dtype if dtype == wanted => (dtype, None),
            dtype => (dtype, Some(wanted)),
        }
    }

    fn mixed(self, name: &str, columns: usize, network: &Network) -> Dtype {
        let base = if self == Self::Q5KM { Dtype::Q5K } else { Dtype::Q4K };
        let layers = network.layers;
        let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok()).unwrap_or(0usize);
        let some = layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
        if name == "output.weight" || (network.tied && name == "token_embd.weight") {
            // The exception for odd rows is made before the type is chosen: such an output is Q8_0 by rule.
            return if columns.is_multiple_of(256) { Dtype::Q6K } else { Dtype::Q8_0 };
        }
        if name.ends_with("attn_v.weight") {
            let dtype = match self {
                Self::Q4KM | Self::Q5KM if some => Dtype::Q6K,
                Self::Q4KS if layer < 4 => Dtype::Q5K,
                _ => base,
            };
            // Llama 2 70B and its like share each value head among eight queries, so it is small and worth more.
            let shared = network.family.gguf == "llama" && layers == 80 && network.heads != network.kv_heads;
            return if shared && dtype == Dtype::Q4K { Dtype::Q5K } else { dtype };
        }
        if name.ends_with("ffn_down.weight") {
            return match self {
                Self::Q4KM | Self::Q5KM if some => Dtype::Q6K,
                Self::Q4KS if layer < layers / 8 => Dtype::Q5K,
                _ => base,
            };
        }
        base
    }
}

/// `wanted`, or what rows of `columns` get instead.
fn fallback(wanted: Dtype, columns: usize) -> Dtype {
    if columns.is_multiple_of(wanted.block().0) {
        return wanted;
    }
    let smaller = match wanted {
        Dtype::Q2K | Dtype::Q3K => Dtype::Q4_0,
        Dtype::Q4K => Dtype::Q5_0,
        Dtype::Q5K => Dtype::Q5_1,
        Dtype::Q6K => Dtype::Q8_0,
        _ => Dtype::F16,
    };
    if columns.is_multiple_of(smaller.block().0) { smaller } else { Dtype::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_fill_no_blocks_fall_back() {
        let cases = [
            (Dtype::Q4K, 512, Dtype::Q4K),
            (Dtype::Q4K, 576, Dtype::Q5_0),
            (Dtype::Q5K, 576, Dtype::Q5_1),
            (Dtype::Q6K, 576, Dtype::Q8_0),
            (Dtype::Q2K, 576, Dtype::Q4_0),
            (Dtype::Q3K, 576, Dtype::Q4_0),
            (Dtype::Q6K, 40, Dtype::F16),
            (Dtype::Q4_0, 40, Dtype::F16),
            (Dtype::Bf16, 41, Dtype::Bf16),
        ];
        for (wanted, columns, expected) in cases {
            assert_eq!(fallback(wanted, columns), expected, "{wanted} with rows of {columns}");
        }
    }
}
