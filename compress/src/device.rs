//! Where heavy arithmetic runs, as it is said on the command line: `cpu`, or `cuda:1`.
//!
//! On the processor the kernels of these crates do the work. Elsewhere candle does, and what is written over its tensors
//! is written once: `candle-cpu` runs the same on the processor, which is how the tests hold it to the kernels on machines
//! without a GPU.

use std::{fmt, str::FromStr};

use candle_core::Device;

use crate::{Error, Result};

/// A device by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceName {
    /// The processor, by the kernels of these crates.
    #[default]
    Cpu,
    /// An NVIDIA GPU by its number, by candle.
    Cuda(usize),
    /// The processor, by candle: slower than the kernels, and there to be compared with.
    CandleCpu,
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |number: &str| number.parse().ok().filter(|_| number.bytes().all(|byte| byte.is_ascii_digit()));
        let name = match text.split_once(':') {
            None if text == "cpu" => Some(Self::Cpu),
            None if text == "cuda" => Some(Self::Cuda(0)),
            None if text == "candle-cpu" => Some(Self::CandleCpu),
            Some(("cuda", after)) => number(after).map(Self::Cuda),
            _ => None,
        };
        name.ok_or_else(|| format!("a device is cpu, cuda or cuda:N, found `{}`", text.escape_debug()))
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::CandleCpu => f.write_str("candle-cpu"),
        }
    }
}

impl DeviceName {
    /// Candle's device of this name; none where the kernels of these crates do the work.
    ///
    /// # Errors
    /// If this program was built without CUDA, or the machine has no such GPU. One sentence.
    pub fn open(self) -> Result<Option<Device>> {
        match self {
            Self::Cpu => Ok(None),
            Self::CandleCpu => Ok(Some(Device::Cpu)),
            Self::Cuda(_) if !cfg!(feature = "cuda") => Err(Error::Device(format!(
                "device {self}: this build has no CUDA; build the program with `--features cuda` as docs/cuda.md says, or \
                 leave --device out"
            ))),
            Self::Cuda(number) => match Device::new_cuda(number) {
                Ok(device) => Ok(Some(device)),
                Err(error) => Err(Error::Device(format!(
                    "device {self}: there is no such GPU, or its driver is older than this build wants ({}); leave --device \
                     out to work on the processor",
                    first_line(&error)
                ))),
            },
        }
    }
}

/// What candle says, without the backtrace it adds where one was asked for.
pub fn first_line(error: &candle_core::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for (text, name) in [
            ("cpu", DeviceName::Cpu),
            ("cuda:0", DeviceName::Cuda(0)),
            ("cuda:3", DeviceName::Cuda(3)),
            ("candle-cpu", DeviceName::CandleCpu),
        ] {
            assert_eq!(text.parse(), Ok(name));
            assert_eq!(name.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceName::Cuda(0)));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cpu:0", "cuda:99999999999999999999", "CUDA"]
        {
            let error = wrong.parse::<DeviceName>().unwrap_err();
            assert!(error.contains(&format!("found `{wrong}`")), "{error}");
        }
    }

    #[test]
    fn a_gpu_that_is_not_there_is_one_sentence() {
        // No machine has a thousand GPUs, with the feature or without.
        let error = DeviceName::Cuda(999).open().unwrap_err().to_string();
        assert!(error.starts_with("device cuda:999: ") && !error.contains('\n'), "{error}");
        assert!(DeviceName::Cpu.open().unwrap().is_none());
    }
}
