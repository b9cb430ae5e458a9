//! CIFAR-10 images in their binary form (Krizhevsky 2009): records of one label byte and 3,072 pixel bytes, the red, green
//! and blue planes of 32 × 32 pixels, rows first. A file may be gzipped.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::Path,
};

use flate2::read::MultiGzDecoder;
use scruple_weights::Error as WeightsError;

use crate::Result;

/// The classes, by label.
pub const CLASSES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Height and width of an image.
pub const SIDE: usize = 32;

/// Channels of an image.
pub const CHANNELS: usize = 3;

/// Bytes of an image.
const PIXELS: usize = CHANNELS * SIDE * SIDE;

/// Most images that are read: the whole data set has 60,000. A gzipped file cannot make more of itself than this.
const MOST_IMAGES: usize = 100_000;

/// Images with their labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cifar10 {
    labels: Vec<u8>,
    pixels: Vec<u8>, // (images, 3, 32, 32)
}

impl Cifar10 {
    /// Reads the first `limit` images of `file`, or all of them.
    ///
    /// # Errors
    /// If the file cannot be read, does not consist of whole records, has a label above 9 or more than 100,000 images.
    pub fn read(file: &Path, limit: Option<usize>) -> Result<Self> {
        let io = |action: &str, source| WeightsError::io(file, action, source);
        let refuse = |what: String| WeightsError::file(file, what);
        let mut reader = BufReader::new(File::open(file).map_err(|error| io("open the images", error))?);
        let mut start = [0; 2];
        let found = read_up_to(&mut reader, &mut start).map_err(|error| io("read the images", error))?;
        let whole = start[..found].chain(reader);
        let mut records: Box<dyn Read> = match start {
            [0x1f, 0x8b] => Box::new(MultiGzDecoder::new(whole)),
            _ => Box::new(whole),
        };
        let mut images = Self { labels: Vec::new(), pixels: Vec::new() };
        let mut record = [0; 1 + PIXELS];
        while limit.is_none_or(|limit| images.len() < limit) {
            let found = read_up_to(&mut records, &mut record).map_err(|error| io("read the images", error))?;
            if found == 0 {
                break;
            }
            let number = images.len() + 1;
            if found < record.len() {
                let what = format!(
                    "image {number} has {found} of {} bytes; CIFAR-10's binary form is one label byte and {PIXELS} pixel \
                     bytes an image",
                    record.len()
                );
                return Err(refuse(what).into());
            }
            if usize::from(record[0]) >= CLASSES.len() {
                let what =
                    format!("image {number} has label {}, expected 0 to 9: not CIFAR-10's binary form", record[0]);
                return Err(refuse(what).into());
            }
            if images.len() == MOST_IMAGES {
                return Err(refuse(format!("has more than {MOST_IMAGES} images; give --limit")).into());
            }
            images.labels.push(record[0]);
            images.pixels.extend_from_slice(&record[1..]);
        }
        if images.is_empty() {
            return Err(refuse("holds no images".into()).into());
        }
        Ok(images)
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The label of each, 0 to 9.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// Images `range` as (images, 3, 32, 32) flat: (byte / 255 − mean) / deviation, by channel.
    ///
    /// # Panics
    /// If the range lies outside.
    pub fn normalised(&self, range: std::ops::Range<usize>, mean: [f32; 3], deviation: [f32; 3]) -> Vec<f32> {
        let bytes = &self.pixels[range.start * PIXELS..range.end * PIXELS];
        let mut out = Vec::with_capacity(bytes.len());
        for (plane, bytes) in bytes.chunks_exact(SIDE * SIDE).enumerate() {
            let (mean, deviation) = (mean[plane % CHANNELS], deviation[plane % CHANNELS]);
            out.extend(bytes.iter().map(|&byte| (f32::from(byte) / 255.0 - mean) / deviation));
        }
        out
    }
}

/// Fills `buffer` as far as the data goes; how many bytes were found.
fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut found = 0;
    while found < buffer.len() {
        match reader.read(&mut buffer[found..]) {
            Ok(0) => break,
            Ok(n) => found += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn records(labels: &[u8]) -> Vec<u8> {
        let record = |(i, &label): (usize, &u8)| {
            let pixels = (0..PIXELS).map(move |p| (p * 7 + i * 31) as u8);
            std::iter::once(label).chain(pixels)
        };
        labels.iter().enumerate().flat_map(record).collect()
    }

    fn gzipped(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(bytes: &[u8], limit: Option<usize>) -> Result<Cifar10> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("images.bin");
        std::fs::write(&file, bytes).unwrap();
        Cifar10::read(&file, limit)
    }

    #[test]
    fn plain_and_gzipped_files_read_alike() {
        let bytes = records(&[3, 9, 0]);
        let plain = read(&bytes, None).unwrap();
        assert_eq!(plain.labels(), [3, 9, 0]);
        assert_eq!(plain, read(&gzipped(&bytes), None).unwrap());
        let two = read(&gzipped(&bytes), Some(2)).unwrap();
        assert_eq!(two.labels(), [3, 9]);
        let pixels = plain.normalised(1..2, [0.5, 0.25, 0.0], [1.0, 0.5, 2.0]);
        assert_eq!(pixels.len(), PIXELS);
        assert_eq!(pixels[0], 31.0 / 255.0 - 0.5);
        let green = (1024 * 7 + 31) as u8;
        assert_eq!(pixels[1024], (f32::from(green) / 255.0 - 0.25) / 0.5);
        // A file whose first label and pixel look like gzip's mark is still told apart by its label.
        assert!(read(&[0x1f, 0x8b, 0, 0], None).is_err());
    }

    #[test]
    fn what_is_not_cifar_is_refused_with_the_place() {
        let bytes = records(&[3, 9]);
        for (bytes, part) in [
            (bytes[..4000].to_vec(), "image 2 has 927 of 3073 bytes"),
            (records(&[1, 10]), "image 2 has label 10, expected 0 to 9"),
            (Vec::new(), "holds no images"),
            (b"<".to_vec(), "image 1 has 1 of 3073 bytes"),
            (gzipped(&bytes)[..40].to_vec(), "cannot read the images"),
        ] {
            let error = read(&bytes, None).unwrap_err().to_string();
            assert!(error.contains("images.bin: ") && error.contains(part), "{error}");
        }
        let error = Cifar10::read(Path::new("/no/such/file"), None).unwrap_err().to_string();
        assert!(error.contains("/no/such/file: cannot open the images"), "{error}");
    }
}
