//! The findings in words: a phrase a tensor, and one sentence for the whole.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    Arrangement, Blocks, Change, Grid, Group, Lone, Mask, Rounding, Scaled, Side, Size, TensorDiff,
    matching::{Key, Matched},
};

/// Largest median ‖B−A‖/‖A‖ that is called "trained further". Fine-tuning moves weights by a few percent; networks whose
/// weights differ by more share an origin, not a purpose.
const FURTHER_AT_MOST: f64 = 0.1;

/// The whole comparison in one word and one sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// One word for programs: the kind of change that most of the changed weights underwent, `equal`, `different`
    /// (architectures), `other-training`, or `blocks` where only whole blocks came or went.
    pub verdict: &'static str,
    /// A sentence for people.
    pub sentence: String,
}

/// `[1, 2, 3, 7]` as `1–3, 7`.
pub fn ranges(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let run = |&(first, last): &(usize, usize)| {
        if first == last { first.to_string() } else { format!("{first}–{last}") }
    };
    runs.iter().map(run).collect::<Vec<_>>().join(", ")
}

/// `1 tensor`, `2 tensors`.
fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// Three significant digits.
fn short(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    if !(1e-3..1e4).contains(&value.abs()) {
        return format!("{value:.1e}");
    }
    let digits = (2 - value.abs().log10().floor() as i32).clamp(0, 5) as usize;
    format!("{value:.digits$}")
}

fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    // What is nearly all or nothing must not look like it.
    if share < 1.0 && percent > 99.95 {
        return "almost 100 %".into();
    }
    let digits = if percent > 0.0 && percent < 1.0 { 2 } else { 1 };
    format!("{} %", format!("{percent:.digits$}").trim_end_matches('0').trim_end_matches('.'))
}

impl Mask {
    fn phrase(&self) -> String {
        let zeros = format!("{} zeros", percent(self.sparsity));
        match (self.n_of_m, self.structured) {
            (Some(pattern), _) => format!("{zeros}, {}:{}", pattern.keep, pattern.of),
            (None, true) => {
                let mut lines = Vec::new();
                if self.zero_rows > 0 {
                    lines.push(count(self.zero_rows, "row"));
                }
                if self.zero_columns > 0 {
                    lines.push(count(self.zero_columns, "column"));
                }
                format!("{zeros}, {} whole", lines.join(" and "))
            }
            (None, false) => zeros,
        }
    }
}

impl Grid {
    /// `4-bit group-64 symmetric`.
    fn words(&self) -> String {
        let group = match self.group {
            Group::Tensor => "per-tensor".into(),
            Group::Row => "per-row".into(),
            Group::Columns(size) => format!("group-{size}"),
        };
        let kind = match (self.offset, self.symmetric) {
            (true, _) => "affine",
            (false, true) => "symmetric",
            (false, false) => "asymmetric",
        };
        format!("{}-bit {group} {kind}", self.bits)
    }
}

fn grid_words(change: &Change) -> Option<String> {
    match change {
        Change::Quantised { grid, .. } => Some(grid.words()),
        _ => None,
    }
}

impl Change {
    /// What happened, without the figures in which one tensor differs from the next.
    pub fn class(&self) -> String {
        match self {
            Self::Rescaled { scales } => match scales.of {
                Scaled::Tensor => "rescaled".into(),
                Scaled::Rows => "rows rescaled".into(),
                Scaled::Columns => "columns rescaled".into(),
            },
            Self::Pruned { copy, mask, kept_equal } => {
                let side = if *copy == Side::A { "A is " } else { "" };
                let pattern = match mask.n_of_m {
                    Some(pattern) => format!(" {}:{}", pattern.keep, pattern.of),
                    None if mask.structured => " by rows and columns".into(),
                    None => String::new(),
                };
                format!("{side}pruned{pattern}, the rest {}", if *kept_equal { "equal" } else { "changed" })
            }
            Self::Quantised { copy, pruned, .. } => {
                let side = if *copy == Side::A { "A is " } else { "" };
                let pruned = if pruned.is_some() { ", pruned" } else { "" };
                format!("{side}{}{pruned}", grid_words(self).unwrap_or_default())
            }
            Self::Rows { .. } => "some rows changed".into(),
            Self::LowRank { .. } => "low-rank change".into(),
            Self::Unrelated { .. } => "unrelated".into(),
            Self::Equal | Self::Retyped { .. } | Self::Retrained { .. } | Self::Reshaped => self.phrase(),
        }
    }

    /// What happened, in a few words.
    pub fn phrase(&self) -> String {
        let of = |copy: Side| if copy == Side::A { "A is " } else { "" };
        match self {
            Self::Equal => "equal".into(),
            Self::Retyped { rounding } => match rounding {
                Rounding::Exact => "equal, other type".into(),
                Rounding::Nearest => "rounded to its type".into(),
                Rounding::Truncated => "cut off to its type".into(),
                Rounding::Reverse => "A is rounded to its type".into(),
            },
            Self::Rescaled { scales } => {
                let range = format!("{}–{}", short(scales.least), short(scales.most));
                match scales.of {
                    Scaled::Tensor => format!("rescaled by {}", short(scales.least)),
                    Scaled::Rows => format!("rows rescaled by {range}"),
                    Scaled::Columns => format!("columns rescaled by {range}"),
                }
            }
            Self::Pruned { copy, mask, kept_equal } => {
                let kept = if *kept_equal { "the rest equal" } else { "the rest changed" };
                format!("{}pruned ({}), {kept}", of(*copy), mask.phrase())
            }
            Self::Quantised { copy, grid, pruned, origin } => {
                let words = grid_words(self).unwrap_or_default();
                let nearest =
                    if grid.nearest > 0.995 { "nearest".into() } else { format!("nearest {}", percent(grid.nearest)) };
                let pruned = pruned.map(|mask| format!(", pruned ({})", mask.phrase())).unwrap_or_default();
                let other = if *copy == Side::A { "B" } else { "A" };
                let origin = origin.map(|grid| format!("; {other} is on a grid too, {}", grid.words()));
                format!("{}{words}, {nearest}{pruned}{}", of(*copy), origin.unwrap_or_default())
            }
            Self::Rows { changed, of, .. } => format!("{changed} of {} changed", count(*of, "row")),
            Self::LowRank { spectrum } => {
                format!("low-rank change, rank {} ({})", spectrum.rank, percent(spectrum.explained_beyond_rounding))
            }
            Self::Retrained { .. } => "changed throughout".into(),
            Self::Unrelated { z } => format!("unrelated (z {z:.1})"),
            Self::Reshaped => "another shape".into(),
        }
    }
}

impl TensorDiff {
    /// Its change in a few words, with how its rows lie where that is not plain.
    pub fn phrase(&self) -> String {
        self.with_order(match self.bytes_differ {
            0 => self.change.phrase(),
            bytes => format!("equal as f32, {} differ", count(bytes, "byte")),
        })
    }

    /// As [`phrase`](Self::phrase), with [`Change::class`].
    pub fn class(&self) -> String {
        self.with_order(match self.bytes_differ {
            0 => self.change.class(),
            _ => "equal as f32, bytes differ".into(),
        })
    }

    fn with_order(&self, what: String) -> String {
        let order = match &self.arrangement {
            Arrangement::Same => None,
            Arrangement::Transposed => Some("transposed".into()),
            Arrangement::Rope { head_dim, interleaved } => {
                let order = if *interleaved { "GGUF's" } else { "HF's" };
                Some(format!("rows in {order} rope order (heads of {head_dim})"))
            }
            Arrangement::PermutedRows { moved } => Some(format!("{} permuted", count(*moved, "row"))),
            Arrangement::FirstRows { a, b } => Some(format!("{a} rows became {b}, of the common ones")),
            Arrangement::RowsOfA { from } => Some(format!("split from row {from}")),
            Arrangement::RowsOfB { from } => Some(format!("fused at row {from}")),
        };
        match order {
            Some(order) => format!("{order}: {what}"),
            None => what,
        }
    }
}

/// The last words of a module's name: `self_attn.q_proj.weight` is `q_proj`.
fn module_name(module: &str) -> &str {
    let module = module.strip_suffix(".weight").unwrap_or(module);
    module.rsplit_once('.').map_or(module, |(_, last)| last)
}

/// `a`, `a and b`, `a, b and c`.
fn list(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

fn elements(tensor: &TensorDiff) -> f64 {
    tensor.shape_b.iter().map(|&n| n as f64).product()
}

/// The middle relative change of `tensors`.
fn median_relative(tensors: &[&TensorDiff]) -> Option<f64> {
    let mut values: Vec<f64> =
        tensors.iter().filter_map(|tensor| tensor.measured.and_then(|measured| measured.relative)).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The commonest of `words`, ties to the first in order.
fn commonest(words: impl Iterator<Item = String>) -> Option<(String, usize)> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    words.for_each(|word| *counts.entry(word).or_default() += 1);
    counts.into_iter().rev().max_by_key(|(_, count)| *count)
}

fn modules(tensors: &[&TensorDiff]) -> String {
    const MOST: usize = 6;
    let mut names: Vec<String> = Vec::new();
    for tensor in tensors {
        let name = module_name(&tensor.module).to_string();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.sort();
    if names.len() > MOST { count(names.len(), "kind") + " of tensors" } else { list(&names) }
}

/// What came and went besides values, in phrases that follow "B is A".
fn structure(tensors: &[TensorDiff], blocks: &[Blocks], missing: &[Lone], added: &[Lone]) -> Vec<String> {
    let mut phrases = Vec::new();
    for stack in blocks {
        let of = if blocks.len() > 1 { format!(" of `{}`", stack.stack) } else { String::new() };
        let noun = |numbers: &[usize]| if numbers.len() == 1 { "block" } else { "blocks" };
        let renumbered = stack.from.iter().any(|(block, from)| from.is_some_and(|from| from != *block));
        if !stack.removed.is_empty() {
            let removed = &stack.removed;
            let rest = if renumbered { " (the others renumbered)" } else { "" };
            phrases.push(format!("without {} {} of {}{of}{rest}", noun(removed), ranges(removed), stack.a));
        }
        if !stack.repeated.is_empty() {
            let from = |block: &usize| stack.from.iter().find(|(b, _)| b == block).and_then(|(_, from)| *from);
            let sources: Vec<usize> = stack.repeated.iter().filter_map(from).collect();
            let (what, at) = (noun(&sources), noun(&stack.repeated));
            phrases.push(format!("with {what} {}{of} repeated as {at} {}", ranges(&sources), ranges(&stack.repeated)));
        }
        if !stack.added.is_empty() {
            phrases.push(format!("with new {} {}{of}", noun(&stack.added), ranges(&stack.added)));
        }
        if renumbered && stack.removed.is_empty() && stack.repeated.is_empty() {
            phrases.push(format!("with its blocks{of} in another order"));
        }
    }
    for tensor in tensors {
        if let Arrangement::FirstRows { a, b } = tensor.arrangement {
            phrases.push(format!("with {} of {} rows instead of {a}", module_name(&tensor.module), b));
        }
    }
    // What went with its block has been told.
    let outside = |lone: &[Lone], gone: &dyn Fn(&Blocks, usize) -> bool| {
        let told = |lone: &&Lone| {
            let key = Key::of(&lone.name);
            key.block.is_some_and(|block| blocks.iter().any(|stack| stack.stack == key.stack && gone(stack, block)))
        };
        lone.iter().filter(|lone| !told(lone)).count()
    };
    let missing = outside(missing, &|stack, block| stack.removed.contains(&block));
    let added = outside(added, &|stack, block| stack.added.contains(&block));
    if missing > 0 {
        phrases.push(format!("without {}", count(missing, "tensor")));
    }
    if added > 0 {
        phrases.push(format!("with {}", count(added, "new tensor")));
    }
    phrases
}

/// How the tensors of one kind of change are told in a list of the others.
fn remainder(name: &str, n: usize) -> String {
    match name {
        "low-rank" => format!("{n} changed at low rank"),
        "rows" => format!("{n} changed in some rows"),
        "retyped" => format!("{n} in another type"),
        "retrained" => format!("{n} changed throughout"),
        "reshaped" => format!("{n} of another shape"),
        other => format!("{n} {other}"),
    }
}

pub(super) fn of(
    tensors: &[TensorDiff],
    blocks: &[Blocks],
    missing: &[Lone],
    added: &[Lone],
    a: Size,
    b: Size,
) -> Verdict {
    let total = tensors.len();
    if tensors.is_empty() {
        let sentence =
            format!("different architectures (0 tensors in common; A has {}, B has {})", a.tensors, b.tensors);
        return Verdict { verdict: "different", sentence };
    }
    let mut by_kind: BTreeMap<&str, Vec<&TensorDiff>> = BTreeMap::new();
    for tensor in tensors {
        let name = if tensor.change.is_equal() { "equal" } else { tensor.change.name() };
        by_kind.entry(name).or_default().push(tensor);
    }
    let weight = |name: &str| by_kind.get(name).map_or(0.0, |of| of.iter().map(|tensor| elements(tensor)).sum::<f64>());
    let all: f64 = tensors.iter().map(elements).sum();
    let strangers = weight("unrelated") + weight("reshaped");
    let equal = by_kind.get("equal").map_or(0, Vec::len);

    if strangers > 0.5 * all {
        let unrelated = by_kind.get("unrelated").map_or(0, Vec::len);
        let others: Vec<String> = by_kind
            .iter()
            .filter(|(name, _)| **name != "unrelated")
            .map(|(name, of)| remainder(name, of.len()))
            .collect();
        let rest = if others.is_empty() { String::new() } else { format!(", {}", list(&others)) };
        // By weights, not by tensors: an exporter writes hundreds of constants of one element.
        let lone =
            |of: &[Lone]| of.iter().map(|lone| lone.shape.iter().map(|&n| n as f64).product::<f64>()).sum::<f64>();
        if weight("reshaped") > 0.5 * strangers || lone(missing) + lone(added) > all {
            let reshaped = by_kind.get("reshaped").map_or(0, Vec::len);
            let sentence = if reshaped == total {
                let names = count(total, "name");
                format!("different architectures (0 tensors in common; {names} on both sides stand for other shapes)")
            } else {
                format!(
                    "different architectures: {total} of A's {} and B's {} tensors have a partner, {unrelated} of them \
                     unrelated{rest}",
                    a.tensors, b.tensors
                )
            };
            return Verdict { verdict: "different", sentence };
        }
        let same = if missing.is_empty() && added.is_empty() && blocks.iter().all(|stack| stack.a == stack.b) {
            "of the same architecture"
        } else {
            "of a similar architecture"
        };
        let sentence = format!("other training {same}: {unrelated} of {total} tensors unrelated{rest}");
        return Verdict { verdict: "other-training", sentence };
    }

    // The kind that most of the changed weights underwent gives the word.
    let main = by_kind.keys().filter(|name| **name != "equal").copied().max_by(|x, y| weight(x).total_cmp(&weight(y)));
    let structure = structure(tensors, blocks, missing, added);
    let mut rest: Vec<String> = Vec::new();
    for (name, of) in &by_kind {
        if Some(*name) != main {
            rest.push(remainder(name, of.len()));
        }
    }
    let rest = if rest.is_empty() { String::new() } else { format!(", {}", list(&rest)) };
    let renamed =
        tensors.iter().filter(|tensor| !matches!(tensor.matched, Matched::Name | Matched::Renumbered)).count();
    let reordered = tensors
        .iter()
        .filter(|tensor| matches!(tensor.arrangement, Arrangement::Rope { .. } | Arrangement::PermutedRows { .. }))
        .count();
    let mut notes = String::new();
    if renamed > 0 {
        notes.push_str(&format!("; {} under another name", count(renamed, "tensor")));
    }
    if reordered > 0 {
        notes.push_str(&format!("; {} with rows in another order", count(reordered, "tensor")));
    }
    let bytes: usize = tensors.iter().map(|tensor| tensor.bytes_differ).sum();
    if bytes > 0 {
        let in_tensors = tensors.iter().filter(|tensor| tensor.bytes_differ > 0).count();
        let (bytes, in_tensors) = (count(bytes, "byte"), count(in_tensors, "tensor"));
        notes.push_str(&format!("; {bytes} of {in_tensors} differ beyond what f32 tells apart"));
    }

    let Some(main) = main else {
        let types = tensors.iter().filter(|tensor| tensor.stored_a != tensor.stored_b);
        let other_type = commonest(types.map(|tensor| tensor.stored_b.clone()));
        let (verdict, sentence) = match (structure.is_empty(), other_type) {
            (true, None) => {
                let total = count(total, "tensor");
                // What was measured was not found equal by its bytes: reordered rows, packed weights.
                let sentence = match (bytes, tensors.iter().any(|tensor| tensor.measured.is_some())) {
                    (0, false) => format!("A and B are equal: {total}, bit for bit{notes}"),
                    (0, true) => format!("A and B are equal: {total}, every value the same as f32{notes}"),
                    _ => format!("A and B are equal as f32: {total}{notes}"),
                };
                ("equal", sentence)
            }
            (true, Some((stored, n))) => {
                let sentence =
                    format!("B is A in {stored}: {n} of {total} tensors re-typed, every value the same{notes}");
                ("retyped", sentence)
            }
            (false, _) => {
                let sentence =
                    format!("B is A {}; {} in common, all equal{notes}", list(&structure), count(total, "tensor"));
                (if blocks_changed(blocks) { "blocks" } else { "equal" }, sentence)
            }
        };
        return Verdict { verdict, sentence };
    };
    let of = &by_kind[main];
    let n = of.len();
    let relative = median_relative(of).map(short);
    let error = |words: &str| relative.as_ref().map(|value| format!(" ({words} {value})")).unwrap_or_default();
    let copies = |side: Side| {
        of.iter().filter(move |tensor| {
            matches!(tensor.change, Change::Quantised { copy, .. } | Change::Pruned { copy, .. } if copy == side)
        })
    };
    let (copy, origin) = if copies(Side::A).count() * 2 > n { ("A", "B") } else { ("B", "A") };
    let value = match main {
        "retyped" => {
            let reverse = of
                .iter()
                .filter(|tensor| matches!(tensor.change, Change::Retyped { rounding: Rounding::Reverse }))
                .count();
            let (copy, origin, stored): (_, _, fn(&TensorDiff) -> &str) = if reverse * 2 > n {
                ("A", "B", |tensor| &tensor.stored_a)
            } else {
                ("B", "A", |tensor| &tensor.stored_b)
            };
            let stored = commonest(of.iter().map(|tensor| stored(tensor).to_string())).map(|(word, _)| word);
            let stored = stored.unwrap_or_default();
            format!("{copy} is {origin} rounded to {stored}: {n} of {total} tensors{}{rest}", error("relative error"))
        }
        "quantised" => {
            let (words, most) =
                commonest(of.iter().filter_map(|tensor| grid_words(&tensor.change))).unwrap_or_default();
            let others = if most < n { format!(", {} of them on other grids", n - most) } else { String::new() };
            let pruned = of.iter().filter(|tensor| matches!(tensor.change, Change::Quantised { pruned: Some(_), .. }));
            let pruned = if pruned.count() * 2 > n { " pruned and" } else { "" };
            format!(
                "{copy} is a{pruned} {words} quantised copy of {origin}: {n} of {total} tensors rounded{}{others}{rest}",
                error("median relative error")
            )
        }
        "pruned" => {
            let masks = of.iter().filter_map(|tensor| match &tensor.change {
                Change::Pruned { mask, .. } => {
                    Some(mask.n_of_m.map_or(format!("{:.0} % zeros", 100.0 * mask.sparsity), |pattern| {
                        format!("{}:{}", pattern.keep, pattern.of)
                    }))
                }
                _ => None,
            });
            let words = commonest(masks).map(|(words, _)| words).unwrap_or_default();
            let changed = of.iter().filter(|tensor| matches!(tensor.change, Change::Pruned { kept_equal: false, .. }));
            let kept = match changed.count() {
                0 => "what they keep is equal".to_string(),
                changed => format!("{changed} of them changed in what they keep"),
            };
            format!("{copy} is a pruned copy of {origin} ({words}): {n} of {total} tensors have zeros, {kept}{rest}")
        }
        "low-rank" => {
            let ranks = of.iter().filter_map(|tensor| match &tensor.change {
                Change::LowRank { spectrum } => Some(spectrum.rank),
                _ => None,
            });
            let (least, most) = ranks.fold((usize::MAX, 0), |(least, most), rank| (least.min(rank), most.max(rank)));
            let rank = if least == most { format!("rank {most}") } else { format!("ranks {least} to {most}") };
            format!(
                "B is A with a merged LoRA of {rank} on {}: {n} of {total} tensors{}{rest}",
                modules(of),
                error("median relative change")
            )
        }
        "rescaled" => format!("B is A with {n} of {total} tensors rescaled ({}){rest}", modules(of)),
        "rows" => format!("B is A with some rows changed in {n} of {total} tensors ({}){rest}", modules(of)),
        "retrained" => {
            let far = median_relative(of).is_some_and(|relative| relative > FURTHER_AT_MOST);
            let what = if far { "another training of A's network, from one origin" } else { "A trained further" };
            format!("B is {what}: {n} of {total} tensors changed throughout{}{rest}", error("median relative change"))
        }
        // Weights that have no relative are fewer than half.
        _ => format!("B shares weights with A: {equal} of {total} tensors equal, {}", remainder(main, n)),
    };
    let sentence = if structure.is_empty() {
        format!("{value}{notes}")
    } else {
        format!("B is A {}; of what they share, {value}{notes}", list(&structure))
    };
    Verdict { verdict: main, sentence }
}

fn blocks_changed(blocks: &[Blocks]) -> bool {
    blocks.iter().any(|stack| !(stack.removed.is_empty() && stack.added.is_empty() && stack.repeated.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_joined_to_ranges() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[3]), "3");
        assert_eq!(ranges(&[1, 2, 3, 7, 9, 10]), "1–3, 7, 9–10");
    }

    #[test]
    fn shares_near_the_ends_do_not_look_like_them() {
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(percent(0.99999), "almost 100 %");
        assert_eq!(percent(0.5), "50 %");
        assert_eq!(percent(0.0012), "0.12 %");
    }
}
