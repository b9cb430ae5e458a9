//! What a small net is: one description from which its tensors, its arithmetic and its size follow.

use serde::{Deserialize, Serialize};

use super::graph::{Around, Builder, Graph};
use crate::{Error, Result};

/// Height, width and channels of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Rows of pixels.
    pub height: usize,
    /// Pixels in a row.
    pub width: usize,
    /// Numbers a pixel.
    pub channels: usize,
}

/// How a residual block leads around its convolutions where the number of channels changes (He et al. 2016, section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shortcut {
    /// Option A: every second pixel, with zero channels on both sides. It has no weights.
    Slice,
    /// Option B: a 1 × 1 convolution and its norm.
    Project,
}

/// A family of nets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Architecture {
    /// A residual net of the CIFAR kind (He et al. 2016, section 4.2): a 3 × 3 convolution, stages of blocks of two, the
    /// mean over all places, a linear. Each stage but the first halves the image and doubles the channels.
    #[serde(rename = "resnet")]
    ResNet {
        /// Blocks of each stage: n, n, n for a ResNet-(6n + 2).
        blocks: Vec<usize>,
        /// Channels of the first stage: 16 in the paper.
        width: usize,
        /// How blocks that change the number of channels are led around.
        shortcut: Shortcut,
        /// Channels between the two convolutions of each block, stage by stage; empty: as many as the block's result.
        #[serde(default)]
        inner: Vec<Vec<usize>>,
    },
    /// Linears with rectifiers between them.
    Mlp {
        /// Features after each linear but the last.
        hidden: Vec<usize>,
        /// Whether each is normed over the batch.
        #[serde(default)]
        norm: bool,
    },
    /// A linear, residual blocks of two linears, a linear.
    ResidualMlp {
        /// Features of the residual stream and inside the blocks.
        width: usize,
        /// Blocks.
        blocks: usize,
    },
    /// 3 × 3 convolutions, each but the first halving the image, the mean over all places, a linear.
    Cnn {
        /// Channels of each convolution.
        widths: Vec<usize>,
    },
}

impl Architecture {
    /// The ResNet of `depth` = 6n + 2 layers.
    ///
    /// # Errors
    /// If the depth is not of that form.
    pub fn resnet(depth: usize, width: usize, shortcut: Shortcut) -> Result<Self> {
        if depth < 8 || !(depth - 2).is_multiple_of(6) {
            return Err(Error::Recipe(format!(
                "a ResNet of depth {depth} does not exist in this family; expected 6n + 2, such as 20, 32, 44 or 56"
            )));
        }
        Ok(Self::ResNet { blocks: vec![(depth - 2) / 6; 3], width, shortcut, inner: Vec::new() })
    }
}

/// A net for images of one size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// What it is made of.
    pub architecture: Architecture,
    /// What it sees.
    pub input: Input,
    /// How many classes it tells apart.
    pub classes: usize,
}

/// Most of anything in a description, so that a slip of the keyboard is told and not computed.
const MOST: usize = 1 << 16;

impl Spec {
    /// Checks every number.
    ///
    /// # Errors
    /// If one is zero or absurd, or lists do not fit each other. The message says which.
    pub fn check(&self) -> Result<()> {
        let refuse = |what: String| Err(Error::Recipe(what));
        let Input { height, width, channels } = self.input;
        for (name, value) in
            [("height", height), ("width", width), ("channels", channels), ("the number of classes", self.classes)]
        {
            if value == 0 || value > MOST {
                return refuse(format!("{name} of the images is {value}, expected 1 to {MOST}"));
            }
        }
        let positive = |name: &str, values: &[usize]| match values.iter().find(|value| **value == 0 || **value > MOST) {
            Some(value) => Err(Error::Recipe(format!("{name} holds {value}, expected 1 to {MOST}"))),
            None => Ok(()),
        };
        match &self.architecture {
            Architecture::ResNet { blocks, width, inner, .. } => {
                positive("the list of blocks a stage", blocks)?;
                positive("the width", &[*width])?;
                if blocks.is_empty() || blocks.len() > 8 {
                    return refuse(format!("a residual net has {} stages, expected 1 to 8", blocks.len()));
                }
                if !inner.is_empty() && inner.iter().map(Vec::len).ne(blocks.iter().copied()) {
                    let found: Vec<usize> = inner.iter().map(Vec::len).collect();
                    return refuse(format!(
                        "inner widths are given for {found:?} blocks a stage, the net has {blocks:?}"
                    ));
                }
                inner.iter().try_for_each(|widths| positive("the list of inner widths", widths))
            }
            Architecture::Mlp { hidden, .. } => positive("the list of hidden features", hidden),
            Architecture::ResidualMlp { width, blocks } => {
                if *blocks > MOST {
                    return refuse(format!("{blocks} blocks, expected at most {MOST}"));
                }
                positive("the width", &[*width])
            }
            Architecture::Cnn { widths } => {
                if widths.is_empty() || widths.len() > 16 {
                    return refuse(format!("{} convolutions, expected 1 to 16", widths.len()));
                }
                positive("the list of widths", widths)
            }
        }
    }

    /// The arithmetic of the net.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn graph(&self) -> Result<Graph> {
        self.check()?;
        let mut net = Builder::new(self.input);
        let features = match &self.architecture {
            Architecture::ResNet { blocks, width, shortcut, inner } => {
                residual(&mut net, blocks, *width, *shortcut, inner)
            }
            Architecture::Cnn { widths } => {
                let mut at = net.input();
                for (i, &width) in widths.iter().enumerate() {
                    let stride = if i == 0 { 1 } else { 2 };
                    at = net.conv(&format!("conv{}", i + 1), at, width, 3, stride);
                    net.norm(&format!("bn{}", i + 1), at);
                    net.relu(at);
                }
                net.pool(at)
            }
            Architecture::Mlp { hidden, norm } => {
                let mut at = net.input();
                for (i, &features) in hidden.iter().enumerate() {
                    at = net.linear(&format!("fc{}", i + 1), at, features, !norm);
                    if *norm {
                        net.norm(&format!("bn{}", i + 1), at);
                    }
                    net.relu(at);
                }
                at
            }
            Architecture::ResidualMlp { width, blocks } => {
                let input = net.input();
                let mut at = net.linear("fc", input, *width, false);
                net.norm("bn", at);
                net.relu(at);
                for block in 0..*blocks {
                    let name = |part: &str| format!("blocks.{block}.{part}");
                    let inside = net.linear(&name("fc1"), at, *width, false);
                    net.norm(&name("bn1"), inside);
                    net.relu(inside);
                    let outside = net.linear(&name("fc2"), inside, *width, false);
                    net.norm(&name("bn2"), outside);
                    at = net.join(outside, at, Around::Same);
                }
                at
            }
        };
        net.linear("linear", features, self.classes, true);
        Ok(net.finish())
    }
}

fn residual(net: &mut Builder, blocks: &[usize], width: usize, shortcut: Shortcut, inner: &[Vec<usize>]) -> usize {
    let input = net.input();
    let mut at = net.conv("conv1", input, width, 3, 1);
    net.norm("bn1", at);
    net.relu(at);
    let mut before = width;
    for (stage, &count) in blocks.iter().enumerate() {
        let channels = width << stage;
        for block in 0..count {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let name = |part: &str| format!("layer{}.{block}.{part}", stage + 1);
            let between = inner.get(stage).map_or(channels, |widths| widths[block]);
            let inside = net.conv(&name("conv1"), at, between, 3, stride);
            net.norm(&name("bn1"), inside);
            net.relu(inside);
            let outside = net.conv(&name("conv2"), inside, channels, 3, 1);
            net.norm(&name("bn2"), outside);
            at = match shortcut {
                _ if stride == 1 => net.join(outside, at, Around::Same),
                Shortcut::Slice => net.join(outside, at, Around::Slice { stride, below: (channels - before) / 2 }),
                Shortcut::Project => {
                    let around = net.conv(&name("shortcut.0"), at, channels, 1, stride);
                    net.norm(&name("shortcut.1"), around);
                    net.join(outside, around, Around::Same)
                }
            };
            before = channels;
        }
    }
    net.pool(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CIFAR: Input = Input { height: 32, width: 32, channels: 3 };

    #[test]
    fn resnets_have_the_published_size() {
        // He et al. 2016, table 6: 0.27, 0.46, 0.66 and 0.85 million parameters; multiply-adds counted by hand.
        for (depth, parameters, multiply_adds) in [
            (20, 269_722, 40_551_040),
            (32, 464_154, 68_862_592),
            (44, 658_586, 97_174_144),
            (56, 853_018, 125_485_696),
        ] {
            let architecture = Architecture::resnet(depth, 16, Shortcut::Slice).unwrap();
            let graph = Spec { architecture, input: CIFAR, classes: 10 }.graph().unwrap();
            assert_eq!(graph.layout().len(), parameters);
            assert_eq!(graph.multiply_adds(), multiply_adds, "ResNet-{depth}");
        }
        assert!(Architecture::resnet(21, 16, Shortcut::Slice).is_err());
    }

    #[test]
    fn a_description_reads_back_and_refuses_what_it_does_not_know() {
        let text = r#"{"architecture": {"kind": "resnet", "blocks": [2, 1], "width": 8, "shortcut": "project"},
                       "input": {"height": 8, "width": 8, "channels": 1}, "classes": 3}"#;
        let spec: Spec = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::from_value::<Spec>(serde_json::to_value(&spec).unwrap()).unwrap(), spec);
        let error = serde_json::from_str::<Spec>(&text.replace("width\": 8, \"s", "wdth\": 8, \"s")).unwrap_err();
        assert!(error.to_string().contains("wdth"), "{error}");
    }

    #[test]
    fn numbers_that_cannot_be_are_refused_by_name() {
        let resnet = |blocks: &[usize], inner: &[Vec<usize>]| Architecture::ResNet {
            blocks: blocks.to_vec(),
            width: 8,
            shortcut: Shortcut::Slice,
            inner: inner.to_vec(),
        };
        for (architecture, part) in [
            (resnet(&[1, 0], &[]), "list of blocks a stage holds 0"),
            (resnet(&[], &[]), "0 stages"),
            (resnet(&[1, 2], &[vec![4], vec![4]]), "inner widths are given for [1, 1]"),
            (Architecture::Mlp { hidden: vec![0], norm: false }, "hidden features holds 0"),
            (Architecture::Cnn { widths: vec![] }, "0 convolutions"),
            (Architecture::ResidualMlp { width: 0, blocks: 1 }, "the width holds 0"),
        ] {
            let error = Spec { architecture, input: CIFAR, classes: 10 }.graph().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
