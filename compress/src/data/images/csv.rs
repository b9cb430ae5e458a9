//! Digits as comma-separated values without a header, an image a line: the pixels row by row, then the digit. 64 values of
//! 0 to 16 are the UCI digits of 8 × 8 pixels (Alpaydin and Kaynak 1998), 784 of 0 to 255 MNIST's of 28 × 28.

use super::{ImageSet, MOST_IMAGES, MOST_VALUES, Source};
use crate::Result;

const CLASSES: u8 = 10;

/// Most bytes of a file.
const MOST_BYTES: usize = 1 << 29;

/// Whether a file that begins so is of this form: numbers, commas and line ends.
pub(super) fn looks(start: &[u8]) -> bool {
    let of_numbers = |&byte: &u8| byte.is_ascii_digit() || matches!(byte, b',' | b'.' | b'\r' | b'\n' | b' ');
    start.first().is_some_and(u8::is_ascii_digit) && start.contains(&b',') && start.iter().all(of_numbers)
}

pub(super) fn read(mut source: Source) -> Result<ImageSet> {
    let bytes = source.take(MOST_BYTES)?;
    if bytes.len() == MOST_BYTES {
        return Err(source.refuse(format!("has more than {MOST_BYTES} bytes of comma-separated values")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        source.refuse(format!(
            "begins as comma-separated values, but byte {} is not text",
            error.utf8_error().valid_up_to()
        ))
    })?;
    let (mut pixels, mut labels, mut columns) = (Vec::new(), Vec::new(), None);
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |what: String| source.refuse(format!("line {}: {what}", number + 1));
        let before = pixels.len();
        for value in line.split(',') {
            pixels
                .push(byte(value.trim()).ok_or_else(|| wrong(format!("`{value}` is not a whole number of 0 to 255")))?);
        }
        let found = pixels.len() - before;
        let expected = *columns.get_or_insert(found);
        if found != expected {
            return Err(wrong(format!("has {found} values, the first line has {expected}")));
        }
        let label = pixels.pop().unwrap_or(CLASSES);
        if label >= CLASSES {
            return Err(wrong(format!("has label {label}, expected 0 to {}", CLASSES - 1)));
        }
        labels.push(label);
        if labels.len() > MOST_IMAGES {
            return Err(source.refuse(format!("has more than {MOST_IMAGES} images")));
        }
    }
    let values = columns.unwrap_or(1) - 1;
    let side = values.isqrt();
    if side * side != values || values == 0 || values > MOST_VALUES {
        let what = format!("has {values} values and a label a line, expected a square of pixels such as 64 or 784");
        return Err(source.refuse(what));
    }
    let white = if values == 64 && pixels.iter().all(|&value| value <= 16) { 16 } else { 255 };
    Ok(ImageSet { height: side, width: side, channels: 1, classes: usize::from(CLASSES), white, pixels, labels })
}

/// A byte written as `12`, `12.` or `12.000`.
fn byte(text: &str) -> Option<u8> {
    match text.split_once('.') {
        None => text.parse().ok(),
        Some((whole, rest)) if rest.bytes().all(|digit| digit == b'0') => whole.parse().ok(),
        Some(_) => None,
    }
}
