//! Whatever network a checkpoint holds: decoder, encoder, vision transformer or residual net, told by `model_type` in
//! `config.json` or, where there is none, by the names of the tensors.

use scruple_weights::Checkpoint;

use super::{Decoder, Encoder, encoder, family, resnet, resnet::ResNet, vit, vit::Vit};
use crate::{Error, Result, sharing::stored::expect_no_pool};

/// What a network takes and gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Text to the next token.
    Decoder,
    /// Text to vectors or classes.
    Encoder,
    /// Images to vectors or classes, by attention.
    Vit,
    /// Images to classes, by convolutions.
    ResNet,
}

impl Kind {
    /// In a sentence: "a decoder, which continues text".
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Decoder => "a decoder, which continues text",
            Self::Encoder => "an encoder of text",
            Self::Vit => "a vision transformer",
            Self::ResNet => "a residual net for images",
        }
    }
}

/// A model family that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// What it takes and gives.
    pub kind: Kind,
    /// `model_type` in `config.json`; for the residual nets, which have none, their name.
    pub name: &'static str,
    /// With what its results were compared.
    pub checked_by: &'static str,
}

/// Every family that runs, kind by kind.
pub fn families() -> Vec<Listed> {
    let decoders = family::FAMILIES.iter().flat_map(|family| {
        let listed = |&name| Listed { kind: Kind::Decoder, name, checked_by: family.checked_by };
        family.model_types.iter().map(listed)
    });
    let wrappers = family::WRAPPERS.iter().map(|wrapper| Listed {
        kind: Kind::Decoder,
        name: wrapper.model_type,
        checked_by: "the text part, as its own family",
    });
    let encoders = encoder::FAMILIES.iter().map(|family| Listed {
        kind: Kind::Encoder,
        name: family.model_type,
        checked_by: family.checked_by,
    });
    let vits = vit::FAMILIES.iter().map(|family| Listed {
        kind: Kind::Vit,
        name: family.model_type,
        checked_by: family.checked_by,
    });
    let resnet = Listed { kind: Kind::ResNet, name: "resnet (CIFAR)", checked_by: resnet::CHECKED_BY };
    decoders.chain(wrappers).chain(encoders).chain(vits).chain([resnet]).collect()
}

/// What kind of network `checkpoint` holds.
///
/// # Errors
/// If it is none that runs here: the known ones are listed.
pub fn kind(checkpoint: &Checkpoint) -> Result<Kind> {
    if ResNet::recognises(checkpoint) {
        return Ok(Kind::ResNet);
    }
    let config = checkpoint.config()?;
    let model_type = config.get("model_type").and_then(serde_json::Value::as_str);
    let known = families();
    let kind = known.iter().find(|family| Some(family.name) == model_type).map(|family| family.kind);
    if kind.is_some_and(|kind| kind != Kind::Decoder) {
        expect_no_pool(checkpoint)?; // decoders alone run from one
    }
    kind.ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|family| family.name).collect();
        Error::Model(format!(
            "{}: model type `{}` is not one that runs here; the families that run are {}",
            checkpoint.dir().join("config.json").display(),
            model_type.unwrap_or_default().escape_debug(),
            names.join(", ")
        ))
    })
}

/// A network that runs.
#[derive(Debug)]
pub enum AnyModel {
    /// Continues text.
    Decoder(Box<Decoder>),
    /// Reads text.
    Encoder(Box<Encoder>),
    /// Sees images, by attention.
    Vit(Box<Vit>),
    /// Sees images, by convolutions.
    ResNet(Box<ResNet>),
}

impl AnyModel {
    /// Opens the network of `checkpoint`.
    ///
    /// # Errors
    /// As [`kind`], and as the network's own `open`.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self> {
        Ok(match kind(checkpoint)? {
            Kind::Decoder => Self::Decoder(Box::new(Decoder::open(checkpoint)?)),
            Kind::Encoder => Self::Encoder(Box::new(Encoder::open(checkpoint)?)),
            Kind::Vit => Self::Vit(Box::new(Vit::open(checkpoint)?)),
            Kind::ResNet => Self::ResNet(Box::new(ResNet::open(checkpoint)?)),
        })
    }

    /// What it takes and gives.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Decoder(_) => Kind::Decoder,
            Self::Encoder(_) => Kind::Encoder,
            Self::Vit(_) => Kind::Vit,
            Self::ResNet(_) => Kind::ResNet,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_each_says_what_checked_it() {
        let listed = families();
        let names: HashSet<_> = listed.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), listed.len());
        assert!(listed.iter().all(|family| !family.name.is_empty() && family.checked_by.len() > 10));
        for kind in [Kind::Decoder, Kind::Encoder, Kind::Vit, Kind::ResNet] {
            assert!(listed.iter().any(|family| family.kind == kind), "{kind:?}");
        }
    }
}
