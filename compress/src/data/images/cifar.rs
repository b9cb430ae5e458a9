//! CIFAR-10 and CIFAR-100 in binary form (Krizhevsky 2009): records of one label byte (CIFAR-100: a coarse and a fine one)
//! and 3,072 pixel bytes, the red, green and blue planes of 32 × 32 pixels.

use super::{ImageSet, MOST_IMAGES, Source, check_labels};
use crate::Result;

const SIDE: usize = 32;
const CHANNELS: usize = 3;
const PIXELS: usize = SIDE * SIDE * CHANNELS;

/// Coarse classes of CIFAR-100.
const COARSE: u8 = 20;

pub(super) fn read(mut source: Source) -> Result<ImageSet> {
    let bytes = source.take(MOST_IMAGES * (PIXELS + 2))?;
    if bytes.len() == MOST_IMAGES * (PIXELS + 2) {
        return Err(source.refuse(format!("has more than {MOST_IMAGES} images of CIFAR's binary form")));
    }
    let forms = [(1, 10), (2, 100)];
    // The form whose records fill the file; both can only where the file is that long that one image more or less tells.
    let fits = |&(labels, classes): &(usize, usize)| {
        let mut records = bytes.chunks(PIXELS + labels);
        !bytes.is_empty()
            && bytes.len().is_multiple_of(PIXELS + labels)
            && records.all(|record| usize::from(record[labels - 1]) < classes && (labels == 1 || record[0] < COARSE))
    };
    let by_length = |&(labels, _): &(usize, usize)| !bytes.is_empty() && bytes.len().is_multiple_of(PIXELS + labels);
    let form = forms.into_iter().find(fits).or_else(|| forms.into_iter().find(by_length));
    let Some((labels, classes)) = form else {
        let (start, len) = (bytes.iter().take(4).copied().collect::<Vec<u8>>(), bytes.len());
        let what = format!(
            "holds {len} bytes, beginning with {start:02x?}: neither IDX, a numpy array nor comma-separated values, and no \
             whole number of CIFAR records of {} or {} bytes",
            PIXELS + 1,
            PIXELS + 2
        );
        return Err(source.refuse(what));
    };
    let records = bytes.chunks_exact(PIXELS + labels);
    let found: Vec<u8> = records.clone().map(|record| record[labels - 1]).collect();
    check_labels(&source.file, &found, found.len(), classes)?;
    let mut pixels = Vec::with_capacity(found.len() * PIXELS);
    for record in records {
        let planes = &record[labels..];
        pixels.extend((0..PIXELS).map(|at| planes[at % CHANNELS * SIDE * SIDE + at / CHANNELS]));
    }
    Ok(ImageSet { height: SIDE, width: SIDE, channels: CHANNELS, classes, white: 255, pixels, labels: found })
}
