//! What a probe is: which sides of a weight are looked at, how wide, and what comes out.
//!
//! A layer X (rows d_H, columns d_W) meets learned probes U; every response S is a matrix of r_U columns:
//!
//! ```text
//! xu     S = X U          U (d_W, r_U)    S (d_H, r_U)
//! xtu    S = Xᵀ U         U (d_H, r_U)    S (d_W, r_U)
//! xxtu   S = X (Xᵀ U)     U (d_H, r_U)    S (d_H, r_U)
//! xtxu   S = Xᵀ (X U)     U (d_W, r_U)    S (d_W, r_U)
//! ```
//!
//! The first alone is ProbeX (Horwitz et al. 2025); all four, with standardised responses, are MVProbe (arXiv 2605.23410).

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// One way to look at a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum View {
    /// X U.
    Xu,
    /// Xᵀ U.
    Xtu,
    /// X (Xᵀ U).
    Xxtu,
    /// Xᵀ (X U).
    Xtxu,
}

/// All views, in the order of the module's table.
pub const ALL_VIEWS: [View; 4] = [View::Xu, View::Xtu, View::Xxtu, View::Xtxu];

impl View {
    /// Its name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xu => "xu",
            Self::Xtu => "xtu",
            Self::Xxtu => "xxtu",
            Self::Xtxu => "xtxu",
        }
    }

    /// Rows of U for a layer of `rows` × `columns`.
    pub fn probe_rows(self, rows: usize, columns: usize) -> usize {
        if matches!(self, Self::Xu | Self::Xtxu) { columns } else { rows }
    }

    /// Rows of S for a layer of `rows` × `columns`.
    pub fn response_rows(self, rows: usize, columns: usize) -> usize {
        if matches!(self, Self::Xu | Self::Xxtu) { rows } else { columns }
    }

    /// How often X stands in the view: what a factor on X does to S.
    pub fn degree(self) -> i32 {
        if matches!(self, Self::Xu | Self::Xtu) { 1 } else { 2 }
    }
}

/// What is taken off a layer before it is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Input {
    /// Nothing, as in the paper.
    Raw,
    /// The mean of the training models of the tree.
    Centroid,
    /// The ancestor's own layer.
    Base,
}

impl Input {
    /// Its name in files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Centroid => "minus centroid",
            Self::Base => "minus base",
        }
    }
}

/// What stands between the projection and the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// Nothing: the probe is then a dense expert of Tucker form.
    None,
    /// max(0, x).
    Relu,
}

/// The part that reads the layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Body {
    /// One weight for every element of the layer and class: y = T vec(X) + b.
    Dense,
    /// e = Σ over views and probes of M_l · act(V S_l) + b, y = head(e).
    Probe {
        /// Which sides are looked at.
        views: Vec<View>,
        /// r_U.
        probes: usize,
        /// r_V.
        projection: usize,
        /// r_T.
        representation: usize,
        /// Whether each model's responses are brought to mean 0 and deviation 1 over both axes.
        standardise: bool,
        /// What follows the projection.
        activation: Activation,
    },
}

/// What comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Head {
    /// A logit a class.
    Labels {
        /// C.
        classes: usize,
    },
    /// Likeness to texts: cos(e, P t + b) of a text's embedding t, times a factor.
    Text {
        /// Numbers of a text's embedding.
        width: usize,
        /// Whether the factor is learnt (starting at 1/0.07); it is 1 otherwise.
        temperature: bool,
    },
}

/// A probe's shape: everything but its numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// d_H.
    pub rows: usize,
    /// d_W.
    pub columns: usize,
    /// What reads the layer.
    pub body: Body,
    /// What comes out.
    pub head: Head,
}

/// One array of parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its name in the expert's file.
    pub name: String,
    /// Its shape, row-major.
    pub shape: Vec<usize>,
    /// Where it lies among all parameters.
    pub range: Range<usize>,
    /// Inputs of one output, by which the starting values are bounded (uniform within ± 1/√fan).
    pub fan: usize,
}

impl Spec {
    /// The arrays in their order.
    pub fn sections(&self) -> Vec<Section> {
        let mut list: Vec<Section> = Vec::new();
        let mut add = |name: String, shape: Vec<usize>, fan: usize| {
            let start = list.last().map_or(0, |last| last.range.end);
            let range = start..start + shape.iter().product::<usize>();
            list.push(Section { name, shape, range, fan });
        };
        let inner = match &self.body {
            Body::Dense => self.rows * self.columns,
            Body::Probe { views, probes, projection, representation, .. } => {
                for view in views {
                    let from = view.probe_rows(self.rows, self.columns);
                    add(format!("{}.probes", view.name()), vec![from, *probes], *probes);
                }
                for view in views {
                    let to = view.response_rows(self.rows, self.columns);
                    add(format!("{}.projection", view.name()), vec![*projection, to], to);
                }
                let width = views.len() * probes * projection;
                add("encoder.weight".into(), vec![*representation, width], width);
                add("encoder.bias".into(), vec![*representation], width);
                *representation
            }
        };
        match self.head {
            Head::Labels { classes } => {
                add("head.weight".into(), vec![classes, inner], inner);
                add("head.bias".into(), vec![classes], inner);
            }
            Head::Text { width, temperature } => {
                add("text.weight".into(), vec![inner, width], width);
                add("text.bias".into(), vec![inner], width);
                if temperature {
                    add("text.log_factor".into(), vec![1], 1);
                }
            }
        }
        list
    }

    /// Numbers of all arrays.
    pub fn parameters(&self) -> usize {
        self.sections().last().map_or(0, |last| last.range.end)
    }

    /// Numbers of a model's representation, by which models are compared: r_T, or the logits of a dense body.
    pub fn representation(&self) -> usize {
        match (&self.body, self.head) {
            (Body::Probe { representation, .. }, _) => *representation,
            (Body::Dense, Head::Labels { classes }) => classes,
            (Body::Dense, Head::Text { .. }) => self.rows * self.columns,
        }
    }
}

/// A named probe: what `--preset` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// A weight for every element of the raw layer.
    Dense,
    /// The paper's probe without the activation.
    Linear,
    /// The paper: X U on the raw layer, ReLU.
    Probex,
    /// The paper's probe on the layer minus base (or centroid), with standardised responses.
    Delta,
    /// Four views, standardised, on the layer minus base (or centroid).
    Mvprobe,
    /// A weight for every element, in closed form, with a penalty on the squares.
    Ridge,
}

/// All presets, from the plainest to the richest.
pub const PRESETS: [Preset; 6] =
    [Preset::Ridge, Preset::Dense, Preset::Linear, Preset::Probex, Preset::Delta, Preset::Mvprobe];

impl Preset {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Linear => "linear",
            Self::Probex => "probex",
            Self::Delta => "delta",
            Self::Mvprobe => "mvprobe",
            Self::Ridge => "ridge",
        }
    }

    /// Whether the probe is meant for what fine-tuning changed, not for the layer itself.
    pub fn on_change(self) -> bool {
        matches!(self, Self::Delta | Self::Mvprobe)
    }

    /// The body with these ranks (r_U, r_V, r_T).
    pub fn body(self, (probes, projection, representation): (usize, usize, usize)) -> Body {
        let probe = |views: &[View], standardise, activation| Body::Probe {
            views: views.to_vec(),
            probes,
            projection,
            representation,
            standardise,
            activation,
        };
        match self {
            Self::Dense | Self::Ridge => Body::Dense,
            Self::Linear => probe(&[View::Xu], false, Activation::None),
            Self::Probex => probe(&[View::Xu], false, Activation::Relu),
            Self::Delta => probe(&[View::Xu], true, Activation::Relu),
            Self::Mvprobe => probe(&ALL_VIEWS, true, Activation::Relu),
        }
    }
}

/// Ranks (r_U, r_V, r_T) for a layer: the paper's 128 each where the layer is that wide, else a quarter of its narrower
/// side, with r_T twice that; never below 4.
pub fn ranks(rows: usize, columns: usize) -> (usize, usize, usize) {
    let quarter = (rows.min(columns) / 4).clamp(4, 128);
    (quarter, quarter, (2 * quarter).min(128))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(rows: usize, columns: usize, preset: Preset, ranks: (usize, usize, usize), classes: usize) -> usize {
        Spec { rows, columns, body: preset.body(ranks), head: Head::Labels { classes } }.parameters()
    }

    #[test]
    fn parameters_are_as_many_as_published() {
        // Horwitz et al. 2025, ViT-B; the dense expert of the same layer; the probes of the small zoo's second layer.
        assert_eq!(labels(768, 768, Preset::Probex, (128, 128, 128), 100), 2_306_788);
        assert_eq!(labels(768, 768, Preset::Dense, (128, 128, 128), 100), 58_982_500);
        assert_eq!(labels(64, 128, Preset::Delta, (16, 16, 32), 10), 11_626);
        assert_eq!(labels(64, 128, Preset::Probex, (32, 32, 64), 10), 72_394);
        assert_eq!(labels(64, 128, Preset::Mvprobe, (16, 16, 32), 10), 45_418);
        let head = Head::Text { width: 768, temperature: false };
        let text = Spec { rows: 1280, columns: 1280, body: Preset::Probex.body((128, 128, 128)), head };
        assert_eq!(text.parameters(), 2_523_392);
    }

    #[test]
    fn ranks_follow_the_narrower_side() {
        assert_eq!(ranks(768, 3072), (128, 128, 128));
        assert_eq!(ranks(64, 128), (16, 16, 32));
        assert_eq!(ranks(5, 64), (4, 4, 8));
    }
}
