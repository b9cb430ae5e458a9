//! Which tensor of A each tensor of B is to be compared with.
//!
//! Names are read as (stack, block, kind), without the prefixes that wrappers put in front and with GGUF's words turned
//! into Hugging Face's. Blocks are then aligned by content: a sketch of a tensor is some of its values at places that only
//! depend on its shape, and a block of B belongs to the block of A whose sketches correlate most. What has no partner by
//! name is looked for among the parts of fused tensors, and at last by the sketches of all tensors of its shape.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rayon::prelude::*;
use serde::Serialize;

use super::{
    pair::Arrangement,
    side::{Array, Model},
};
use crate::{Result, name::place};

/// How a pair was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Matched {
    /// The same name.
    Name,
    /// The same name in a block with another number, whose content it has.
    Renumbered,
    /// The same name but for a prefix.
    Prefix,
    /// GGUF's name for it.
    Convention,
    /// Part of a fused tensor.
    Fused,
    /// Its values, under another name.
    Content,
    /// Beside a tensor whose values were found under another name.
    Sibling,
}

/// A tensor of A and one of B, by index.
#[derive(Debug, Clone)]
pub(super) struct Match {
    pub a: usize,
    pub b: usize,
    pub arrangement: Arrangement,
    pub how: Matched,
}

/// The blocks of a stack of B, and where each comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Blocks {
    /// The stack, without prefixes.
    pub stack: String,
    /// Blocks of A.
    pub a: usize,
    /// Blocks of B.
    pub b: usize,
    /// For each block of B (by number) the block of A it comes from, if any.
    pub from: Vec<(usize, Option<usize>)>,
    /// Blocks of A that are in no block of B.
    pub removed: Vec<usize>,
    /// Blocks of B that repeat a block of A which an earlier one has already.
    pub repeated: Vec<usize>,
    /// Blocks of B that come from none.
    pub added: Vec<usize>,
    /// The order was found in the blocks' content, not in their numbers.
    pub by_content: bool,
}

/// All that was found.
pub(super) struct Matching {
    pub pairs: Vec<Match>,
    pub blocks: Vec<Blocks>,
    pub missing: Vec<usize>,
    pub added: Vec<usize>,
}

/// Prefixes that say nothing about the tensor.
const PREFIXES: [&str; 11] = [
    "module.",
    "_orig_mod.",
    "_model.",
    "base_model.",
    "model.",
    "transformer.",
    "gpt_neox.",
    "bert.",
    "roberta.",
    "distilbert.",
    "language_model.",
];

/// GGUF's words (of a module in a block) and Hugging Face's.
const GGUF: [(&str, &str); 14] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_gate_up", "mlp.gate_up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_gate_inp", "mlp.gate"),
];

/// The same outside of blocks.
const GGUF_OUTSIDE: [(&str, &str); 3] = [
    ("token_embd.weight", "embed_tokens.weight"),
    ("output_norm.weight", "norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Fused modules and what they are made of, in order of rows.
const FUSED: [(&str, &[&str]); 6] = [
    ("qkv_proj", &["q_proj", "k_proj", "v_proj"]),
    ("Wqkv", &["q_proj", "k_proj", "v_proj"]),
    ("query_key_value", &["query", "key", "value"]),
    ("qkv", &["q", "k", "v"]),
    ("gate_up_proj", &["gate_proj", "up_proj"]),
    ("w13", &["w1", "w3"]),
];

/// A name as it is matched.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub stack: String,
    pub block: Option<usize>,
    pub kind: String,
    pub expert: Option<usize>,
}

impl Key {
    pub fn of(name: &str) -> Self {
        let mut short = name;
        while let Some(rest) = PREFIXES.iter().find_map(|prefix| short.strip_prefix(prefix)) {
            short = rest;
        }
        let place = place(short);
        let (mut stack, mut kind) = (place.stack, place.kind);
        if stack == "blk" {
            stack = "layers".into();
            if let Some((module, rest)) = kind.split_once('.')
                && let Some((_, hf)) = GGUF.iter().find(|(gguf, _)| *gguf == module)
            {
                kind = format!("{hf}.{rest}");
            }
        } else if let Some((_, hf)) = GGUF_OUTSIDE.iter().find(|(gguf, _)| *gguf == kind && short == name) {
            kind = (*hf).into();
        }
        Self { stack, block: place.block, kind, expert: place.expert }
    }
}

/// Whether `name` is one of GGUF's.
fn is_gguf(name: &str) -> bool {
    name.starts_with("blk.") || GGUF_OUTSIDE.iter().any(|(gguf, _)| *gguf == name)
}

/// The keys of `model`; a name whose key another has too keeps its whole name.
pub(super) fn keys(model: &Model) -> Vec<Key> {
    let mut keys: Vec<Key> = model.arrays().iter().map(|array| Key::of(array.name())).collect();
    let mut counts: HashMap<Key, usize> = HashMap::new();
    keys.iter().for_each(|key| *counts.entry(key.clone()).or_default() += 1);
    for (key, array) in keys.iter_mut().zip(model.arrays()) {
        if counts[&*key] > 1 {
            let place = place(array.name());
            *key = Key { stack: place.stack, block: place.block, kind: place.kind, expert: place.expert };
        }
    }
    keys
}

/// Some values of an array, at places that only depend on its shape; of mean 0 and length 1.
struct Sketch(Vec<f32>);

impl Sketch {
    fn of(array: &Array) -> Result<Self> {
        const ROWS: usize = 16;
        const COLUMNS: usize = 64;
        let (rows, columns) = array.matrix();
        if rows == 0 || columns == 0 {
            return Ok(Self(Vec::new()));
        }
        let opened = array.open()?;
        let (some_rows, some_columns) = (rows.min(ROWS), columns.min(if rows == 1 { ROWS * COLUMNS } else { COLUMNS }));
        let mut row = vec![0.0; columns];
        let mut values = Vec::with_capacity(some_rows * some_columns);
        for at in 0..some_rows {
            let from = at * rows / some_rows;
            opened.read(from..from + 1, &mut row)?;
            values.extend((0..some_columns).map(|at| row[at * columns / some_columns]));
        }
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        values.iter_mut().for_each(|value| *value -= mean);
        let norm = values.iter().map(|value| value * value).sum::<f32>().sqrt();
        if norm > 0.0 && norm.is_finite() {
            values.iter_mut().for_each(|value| *value /= norm);
        }
        Ok(Self(values))
    }

    fn correlation(&self, other: &Self) -> f64 {
        if self.0.len() != other.0.len() {
            return 0.0;
        }
        let dot: f64 = self.0.iter().zip(&other.0).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        if dot.is_finite() { dot } else { 0.0 }
    }

    /// The very same values, and enough of them to mean something.
    fn is_same(&self, other: &Self) -> bool {
        self.0.len() >= 8 && self.0 == other.0 && self.0.iter().any(|value| *value != self.0[0])
    }
}

/// Correlation of blocks, or tensors, that belong together. Two independent sketches of 1024 values correlate by 0.03.
const ALIKE: f64 = 0.3;

pub(super) fn find(a: &Model, b: &Model) -> Result<Matching> {
    let (keys_a, keys_b) = (keys(a), keys(b));
    let blocks = align(a, b, &keys_a, &keys_b)?;
    let mut source: HashMap<(&str, usize), Option<usize>> = HashMap::new();
    for stack in &blocks {
        source.extend(stack.from.iter().map(|&(block, from)| ((stack.stack.as_str(), block), from)));
    }
    let index: HashMap<&Key, usize> = keys_a.iter().enumerate().map(|(at, key)| (key, at)).collect();
    // The name B's tensor would have in A; none in a block that comes from nowhere.
    let in_a = |key: &Key| {
        let mut key = key.clone();
        if let Some(block) = key.block {
            key.block = Some(source.get(&(key.stack.as_str(), block)).copied().unwrap_or(Some(block))?);
        }
        Some(key)
    };
    let mut pairs = Vec::new();
    for (at, key) in keys_b.iter().enumerate() {
        let Some(&partner) = in_a(key).as_ref().and_then(|key| index.get(key)) else { continue };
        let (x, y) = (&a.arrays()[partner], &b.arrays()[at]);
        let how = if x.name() == y.name() {
            Matched::Name
        } else if keys_a[partner].block != key.block {
            Matched::Renumbered
        } else if is_gguf(x.name()) != is_gguf(y.name()) {
            Matched::Convention
        } else {
            Matched::Prefix
        };
        pairs.push(Match { a: partner, b: at, arrangement: Arrangement::Same, how });
    }
    let mut used_a: BTreeSet<usize> = pairs.iter().map(|pair| pair.a).collect();
    let mut used_b: BTreeSet<usize> = pairs.iter().map(|pair| pair.b).collect();
    fused(a, b, &keys_a, &keys_b, &in_a, &mut pairs, &mut used_a, &mut used_b);
    by_content(a, b, &mut pairs, &mut used_a, &mut used_b)?;
    pairs.sort_by_key(|pair| (pair.b, pair.a));
    Ok(Matching {
        pairs,
        blocks,
        missing: (0..a.arrays().len()).filter(|at| !used_a.contains(at)).collect(),
        added: (0..b.arrays().len()).filter(|at| !used_b.contains(at)).collect(),
    })
}

/// What an array is in its block: its kind and its expert.
type Kind<'m> = (&'m str, Option<usize>);

/// Arrays of a block.
type Block<'m> = BTreeMap<Kind<'m>, &'m Array>;

/// Blocks by number.
type Stack<'m> = BTreeMap<usize, Block<'m>>;

fn stacks<'m>(model: &'m Model, keys: &'m [Key]) -> BTreeMap<&'m str, Stack<'m>> {
    let mut stacks: BTreeMap<&str, Stack<'_>> = BTreeMap::new();
    for (key, array) in keys.iter().zip(model.arrays()) {
        if let Some(block) = key.block {
            let stack = stacks.entry(&key.stack).or_default();
            stack.entry(block).or_default().insert((&key.kind, key.expert), array);
        }
    }
    stacks
}

fn align(a: &Model, b: &Model, keys_a: &[Key], keys_b: &[Key]) -> Result<Vec<Blocks>> {
    let stacks_a = stacks(a, keys_a);
    let mut all = Vec::new();
    for (name, stack_b) in stacks(b, keys_b) {
        let Some(stack_a) = stacks_a.get(name) else { continue };
        all.push(align_stack(name, stack_a, &stack_b)?);
    }
    Ok(all)
}

fn align_stack(name: &str, a: &Stack<'_>, b: &Stack<'_>) -> Result<Blocks> {
    let likeness = likeness(a, b)?;
    let (numbers_a, numbers_b): (Vec<usize>, Vec<usize>) = (a.keys().copied().collect(), b.keys().copied().collect());
    let by_content = likeness.iter().flatten().any(|&alike| alike > ALIKE);
    let mut from: Vec<(usize, Option<usize>)> = Vec::new();
    let mut last = None;
    for (at, &block) in numbers_b.iter().enumerate() {
        let source = if by_content {
            let row = &likeness[at];
            let best = row.iter().copied().fold(ALIKE, f64::max);
            let equals = || (0..row.len()).filter(|&other| row[other] > ALIKE && row[other] >= best - 1e-6);
            // Of equals the block of the same number, or else the one that follows.
            let follows = |other: &usize| last.is_some_and(|last| numbers_a[*other] > last);
            equals()
                .find(|&other| numbers_a[other] == block)
                .or_else(|| equals().find(follows))
                .or_else(|| equals().next())
                .map(|other| numbers_a[other])
        } else {
            a.contains_key(&block).then_some(block)
        };
        last = source.or(last);
        from.push((block, source));
    }
    // A block that has become unlike any keeps its number's place if that is free.
    let mut used: BTreeSet<usize> = from.iter().filter_map(|(_, source)| *source).collect();
    if numbers_a.len() == numbers_b.len() {
        for (block, source) in &mut from {
            if source.is_none() && a.contains_key(block) && used.insert(*block) {
                *source = Some(*block);
            }
        }
    }
    let mut seen = BTreeSet::new();
    let repeated = from.iter().filter(|(_, source)| source.is_some_and(|source| !seen.insert(source)));
    let repeated = repeated.map(|(block, _)| *block).collect();
    Ok(Blocks {
        stack: name.into(),
        a: numbers_a.len(),
        b: numbers_b.len(),
        removed: numbers_a.into_iter().filter(|block| !used.contains(block)).collect(),
        repeated,
        added: from.iter().filter(|(_, source)| source.is_none()).map(|(block, _)| *block).collect(),
        from,
        by_content,
    })
}

/// Mean correlation of sketches for each block of B and each of A: of two kinds of matrices that both have, the smallest
/// whose rows no rotary embedding reorders.
fn likeness(a: &Stack<'_>, b: &Stack<'_>) -> Result<Vec<Vec<f64>>> {
    const KINDS: usize = 2;
    let first = |stack: &Stack<'_>, kind: &Kind<'_>| stack.values().find_map(|block| block.get(kind).copied().cloned());
    let mut kinds: BTreeSet<(bool, usize, Kind<'_>)> = BTreeSet::new();
    for block in b.values() {
        for (kind, array) in block {
            let (rows, columns) = array.matrix();
            let reordered = kind.0.contains("q_proj") || kind.0.contains("k_proj");
            if rows >= 4 && columns >= 4 && first(a, kind).is_some_and(|other| other.shape() == array.shape()) {
                kinds.insert((reordered, array.elements(), *kind));
            }
        }
    }
    let kinds: Vec<_> = kinds.into_iter().map(|(.., kind)| kind).take(KINDS).collect();
    let sketches = |stack: &Stack<'_>| -> Result<Vec<Vec<Option<Sketch>>>> {
        let blocks: Vec<_> = stack.values().collect();
        let of_block = |block: &&Block<'_>| {
            kinds.iter().map(|kind| block.get(kind).map(|array| Sketch::of(array)).transpose()).collect()
        };
        blocks.par_iter().map(of_block).collect()
    };
    let (of_a, of_b) = (sketches(a)?, sketches(b)?);
    let mean = |x: &[Option<Sketch>], y: &[Option<Sketch>]| {
        let both: Vec<f64> = x.iter().zip(y).filter_map(|(x, y)| Some(x.as_ref()?.correlation(y.as_ref()?))).collect();
        if both.is_empty() { 0.0 } else { both.iter().sum::<f64>() / both.len() as f64 }
    };
    Ok(of_b.iter().map(|y| of_a.iter().map(|x| mean(x, y)).collect()).collect())
}

/// Pairs the parts of fused tensors: a fused one of A with its parts in B, or the reverse.
fn fused(
    a: &Model,
    b: &Model,
    keys_a: &[Key],
    keys_b: &[Key],
    in_a: &dyn Fn(&Key) -> Option<Key>,
    pairs: &mut Vec<Match>,
    used_a: &mut BTreeSet<usize>,
    used_b: &mut BTreeSet<usize>,
) {
    let free_a: HashMap<Key, usize> =
        (0..keys_a.len()).filter(|at| !used_a.contains(at)).map(|at| (keys_a[at].clone(), at)).collect();
    let free_b: HashMap<Key, usize> =
        (0..keys_b.len()).filter(|at| !used_b.contains(at)).filter_map(|at| Some((in_a(&keys_b[at])?, at))).collect();
    for (whole_in_a, whole, parts) in [(true, &free_a, &free_b), (false, &free_b, &free_a)] {
        let (whole_model, part_model) = if whole_in_a { (a, b) } else { (b, a) };
        let mut wholes: Vec<_> = whole.iter().collect();
        wholes.sort();
        for (key, &at) in wholes {
            let (rows, columns) = whole_model.arrays()[at].matrix();
            let found = FUSED.iter().find_map(|(name, names)| {
                let segments: Vec<&str> = key.kind.split('.').collect();
                let place = segments.iter().position(|segment| segment == name)?;
                let part = |name: &&str| {
                    let mut segments = segments.clone();
                    segments[place] = name;
                    parts.get(&Key { kind: segments.join("."), ..key.clone() }).copied()
                };
                names.iter().map(part).collect::<Option<Vec<usize>>>()
            });
            let Some(found) = found else { continue };
            let shapes: Vec<_> = found.iter().map(|&part| part_model.arrays()[part].matrix()).collect();
            if shapes.iter().any(|shape| shape.1 != columns)
                || shapes.iter().map(|shape| shape.0).sum::<usize>() != rows
            {
                continue;
            }
            let mut from = 0;
            for (part, (rows, _)) in found.into_iter().zip(shapes) {
                let (x, y, arrangement) = if whole_in_a {
                    (at, part, Arrangement::RowsOfA { from })
                } else {
                    (part, at, Arrangement::RowsOfB { from })
                };
                pairs.push(Match { a: x, b: y, arrangement, how: Matched::Fused });
                used_a.insert(x);
                used_b.insert(y);
                from += rows;
            }
        }
    }
}

/// Pairs what is left by values: with what is left of the other side first, then with anything there (a head that is a
/// copy of the embedding).
fn by_content(
    a: &Model,
    b: &Model,
    pairs: &mut Vec<Match>,
    used_a: &mut BTreeSet<usize>,
    used_b: &mut BTreeSet<usize>,
) -> Result<()> {
    /// Pairs of sketches compared at most for one shape.
    const MOST: usize = 1 << 22;
    /// A copy among tensors that have a partner already must be close.
    const COPY: f64 = 0.95;
    let mut shapes: BTreeMap<&[usize], (Vec<usize>, Vec<usize>)> = BTreeMap::new();
    for (at, array) in a.arrays().iter().enumerate() {
        shapes.entry(array.shape()).or_default().0.push(at);
    }
    for (at, array) in b.arrays().iter().enumerate() {
        shapes.entry(array.shape()).or_default().1.push(at);
    }
    for (_, (of_a, of_b)) in shapes {
        let free = of_a.iter().any(|at| !used_a.contains(at)) || of_b.iter().any(|at| !used_b.contains(at));
        if !free || of_a.is_empty() || of_b.is_empty() || of_a.len().saturating_mul(of_b.len()) > MOST {
            continue;
        }
        let sketches = |model: &Model, of: &[usize]| -> Result<Vec<Sketch>> {
            of.par_iter().map(|&at| Sketch::of(&model.arrays()[at])).collect()
        };
        let (sketches_a, sketches_b) = (sketches(a, &of_a)?, sketches(b, &of_b)?);
        let mut alike: Vec<(f64, usize, usize)> = Vec::new();
        for (&x, sketch_a) in of_a.iter().zip(&sketches_a) {
            for (&y, sketch_b) in of_b.iter().zip(&sketches_b) {
                let (taken_a, taken_b) = (used_a.contains(&x), used_b.contains(&y));
                if taken_a && taken_b {
                    continue;
                }
                let matrix = a.arrays()[x].matrix().0 > 1;
                let close = sketch_a.correlation(sketch_b);
                let same = sketch_a.is_same(sketch_b);
                let enough = if taken_a || taken_b { COPY } else { 2.0 * ALIKE };
                if same || matrix && close > enough {
                    alike.push((if same { 2.0 } else { close }, x, y));
                }
            }
        }
        alike.sort_by(|x, y| y.0.total_cmp(&x.0).then((x.1, x.2).cmp(&(y.1, y.2))));
        for copies in [false, true] {
            for &(_, x, y) in &alike {
                let (taken_a, taken_b) = (used_a.contains(&x), used_b.contains(&y));
                if if copies { taken_a == taken_b } else { taken_a || taken_b } {
                    continue;
                }
                used_a.insert(x);
                used_b.insert(y);
                pairs.push(Match { a: x, b: y, arrangement: Arrangement::Same, how: Matched::Content });
            }
        }
    }
    siblings(a, b, pairs, used_a, used_b);
    Ok(())
}

/// Pairs what is left of a module, such as its bias, where one of the module's tensors was found by its values.
fn siblings(a: &Model, b: &Model, pairs: &mut Vec<Match>, used_a: &mut BTreeSet<usize>, used_b: &mut BTreeSet<usize>) {
    let module = |name: &'_ str| name.rsplit_once('.').map_or(String::new(), |(module, _)| format!("{module}."));
    let mut modules: BTreeMap<String, String> = BTreeMap::new();
    for pair in pairs.iter().filter(|pair| pair.how == Matched::Content) {
        let (x, y) = (a.arrays()[pair.a].name(), b.arrays()[pair.b].name());
        modules.entry(module(x)).or_insert_with(|| module(y));
    }
    let left: HashMap<&str, usize> =
        (0..b.arrays().len()).filter(|at| !used_b.contains(at)).map(|at| (b.arrays()[at].name(), at)).collect();
    for (at, array) in a.arrays().iter().enumerate() {
        let from = module(array.name());
        let Some(to) = modules.get(&from).filter(|_| !used_a.contains(&at)) else { continue };
        let Some(&partner) = left.get(format!("{to}{}", &array.name()[from.len()..]).as_str()) else { continue };
        if b.arrays()[partner].shape() == array.shape() && used_b.insert(partner) {
            used_a.insert(at);
            pairs.push(Match { a: at, b: partner, arrangement: Arrangement::Same, how: Matched::Sibling });
        }
    }
}
