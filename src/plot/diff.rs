//! The picture of a comparison: a map of modules over blocks, the hue saying what happened and the depth how much.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use scruple_weights::lineage::{Blocks, Change, Diff, TensorDiff};

use super::{fail, register};

/// Rows of one stack that are drawn; the rest is counted.
const MOST_ROWS: usize = 40;
/// Tensors outside of blocks that are drawn.
const MOST_OUTSIDE: usize = 8;
const ROW: i32 = 26;
const MARGIN: i32 = 20;
const WIDTH: i32 = 1080;
/// Tones in the legend.
const TONES: i32 = 5;

/// Hues that stay apart for colour-blind readers too (Okabe & Ito), in the legend's order.
const HUES: [(&str, &str, RGBColor); 9] = [
    ("retyped", "re-typed", RGBColor(86, 180, 233)),
    ("quantised", "quantised", RGBColor(0, 114, 178)),
    ("pruned", "pruned", RGBColor(0, 158, 115)),
    ("low-rank", "low rank", RGBColor(230, 159, 0)),
    ("rescaled", "rescaled", RGBColor(204, 121, 167)),
    ("rows", "some rows", RGBColor(150, 130, 0)),
    ("retrained", "changed throughout", RGBColor(213, 94, 0)),
    ("unrelated", "unrelated", RGBColor(40, 40, 40)),
    ("reshaped", "another shape", RGBColor(120, 60, 150)),
];
const EQUAL: RGBColor = RGBColor(232, 236, 232);
const GONE: RGBColor = RGBColor(150, 150, 150);
const INK: RGBColor = RGBColor(40, 40, 40);

/// A column of the map: a block of B, or one of A that B lacks.
#[derive(Clone, Copy, PartialEq)]
enum Column {
    Block(usize),
    Removed(usize),
}

struct Panel<'d> {
    title: String,
    columns: Vec<Column>,
    modules: Vec<&'d str>,
    cells: Vec<&'d TensorDiff>,
}

fn panels(diff: &Diff) -> Vec<Panel<'_>> {
    let of_stack = |stack: &'_ Blocks| {
        let mut columns = Vec::new();
        let mut removed = stack.removed.iter().copied().peekable();
        for &(block, from) in &stack.from {
            while let Some(gone) = removed.next_if(|gone| from.is_some_and(|from| *gone < from)) {
                columns.push(Column::Removed(gone));
            }
            columns.push(Column::Block(block));
        }
        columns.extend(removed.map(Column::Removed));
        columns
    };
    let panel = |stack: &Blocks| {
        let cells: Vec<&TensorDiff> =
            diff.tensors.iter().filter(|t| t.block.is_some() && t.stack == stack.stack).collect();
        let mut modules: Vec<&str> = Vec::new();
        for tensor in &cells {
            if !modules.contains(&tensor.module.as_str()) {
                modules.push(&tensor.module);
            }
        }
        let hidden = modules.len().saturating_sub(MOST_ROWS);
        modules.truncate(MOST_ROWS);
        let more = if hidden > 0 { format!(", {hidden} more kinds not shown") } else { String::new() };
        let title = format!("{} (block of B{more})", stack.stack);
        Panel { title, columns: of_stack(stack), modules, cells }
    };
    diff.blocks.iter().map(panel).filter(|panel| !panel.modules.is_empty()).collect()
}

fn hue(change: &Change) -> Option<RGBColor> {
    HUES.iter().find(|(name, ..)| *name == change.name()).map(|(.., hue)| *hue)
}

/// The relative changes that the palest and the deepest tone stand for.
#[derive(Debug, Clone, Copy)]
struct Scale {
    least: f64,
    most: f64,
}

impl Scale {
    /// Over the changes of `diff`, ends rounded outwards to one digit.
    fn of(diff: &Diff) -> Self {
        let changes = diff.tensors.iter().filter_map(relative).filter(|change| *change > 0.0 && change.is_finite());
        let (least, most) =
            changes.fold((f64::INFINITY, 0.0f64), |(least, most), change| (least.min(change), most.max(change)));
        if most == 0.0 {
            return Self { least: 0.1, most: 1.0 };
        }
        let step = |value: f64, up: bool| {
            let decade = 10f64.powf(value.log10().floor());
            let steps: [f64; 10] = std::array::from_fn(|step| (step + 1) as f64 * decade);
            let found = if up {
                steps.into_iter().find(|step| *step >= value)
            } else {
                steps.into_iter().rev().find(|step| *step <= value)
            };
            found.unwrap_or(value)
        };
        let (least, most) = (step(least, false), step(most, true));
        Self { least, most: if most > least { most } else { 2.0 * least } }
    }

    /// The change that stands at `share` of the way from the least to the most, on a logarithmic scale.
    fn at(self, share: f64) -> f64 {
        self.least * (self.most / self.least).powf(share)
    }

    /// `hue` in the tone of `change`.
    fn tone(self, hue: RGBColor, change: f64) -> RGBColor {
        let share = (change / self.least).ln() / (self.most / self.least).ln();
        let depth = 0.15 + 0.85 * if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) };
        let mix = |channel: u8| (255.0 - depth * (255.0 - f64::from(channel))).round() as u8;
        RGBColor(mix(hue.0), mix(hue.1), mix(hue.2))
    }
}

fn relative(tensor: &TensorDiff) -> Option<f64> {
    tensor.measured.and_then(|measured| measured.relative)
}

fn colour(tensor: &TensorDiff, scale: Scale) -> RGBColor {
    match (hue(&tensor.change), relative(tensor)) {
        (None, _) => EQUAL,
        // What cannot be measured, another shape, is as much as there is.
        (Some(hue), change) => scale.tone(hue, change.unwrap_or(scale.most)),
    }
}

/// Draws `diff`, as PNG or SVG by the file's ending.
///
/// # Errors
/// If the file cannot be written.
pub fn draw(path: &Path, diff: &Diff) -> Result<()> {
    register()?;
    let panels = panels(diff);
    let lines = wrapped(&diff.verdict.sentence, 125);
    let outside: Vec<&TensorDiff> = diff.tensors.iter().filter(|tensor| !in_panels(tensor, &panels)).collect();
    let shown = outside.len().min(MOST_OUTSIDE);
    let outside_height =
        if outside.is_empty() { 0 } else { 40 + (shown as i32 + i32::from(outside.len() > shown)) * ROW };
    let panel_height = |panel: &Panel<'_>| 64 + panel.modules.len() as i32 * ROW;
    let height =
        MARGIN + lines.len() as i32 * 26 + 72 + panels.iter().map(panel_height).sum::<i32>() + outside_height + MARGIN;
    let size = (WIDTH as u32, height as u32);
    let picture = Picture { lines, panels, outside, shown, scale: Scale::of(diff) };
    let drawn = if path.extension().is_some_and(|ending| ending == "svg") {
        picture.draw(&SVGBackend::new(path, size).into_drawing_area(), diff)
    } else {
        picture.draw(&BitMapBackend::new(path, size).into_drawing_area(), diff)
    };
    drawn.with_context(|| path.display().to_string())
}

fn in_panels(tensor: &TensorDiff, panels: &[Panel<'_>]) -> bool {
    tensor.block.is_some() && panels.iter().any(|panel| panel.cells.iter().any(|cell| std::ptr::eq(*cell, tensor)))
}

/// `text` in lines of at most `width` characters.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    const MOST_LINES: usize = 6;
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    if lines.len() > MOST_LINES {
        lines.truncate(MOST_LINES);
        lines[MOST_LINES - 1].push('…');
    }
    lines
}

struct Picture<'d> {
    lines: Vec<String>,
    panels: Vec<Panel<'d>>,
    outside: Vec<&'d TensorDiff>,
    shown: usize,
    scale: Scale,
}

struct Pen<'a, B: DrawingBackend>(&'a DrawingArea<B, Shift>);

impl<B: DrawingBackend> Pen<'_, B> {
    fn text(&self, text: impl Into<String>, at: (i32, i32), size: i32, horizontal: HPos) -> Result<()> {
        let style = ("sans-serif", size).into_font().color(&INK).pos(Pos::new(horizontal, VPos::Center));
        self.0.draw(&Text::new(text.into(), at, style)).map_err(fail)
    }

    fn fill(&self, from: (i32, i32), to: (i32, i32), colour: RGBColor) -> Result<()> {
        self.0.draw(&Rectangle::new([from, to], colour.filled())).map_err(fail)
    }

    fn line(&self, from: (i32, i32), to: (i32, i32), colour: RGBColor) -> Result<()> {
        self.0.draw(&PathElement::new([from, to], colour)).map_err(fail)
    }
}

impl Picture<'_> {
    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>, diff: &Diff) -> Result<()> {
        area.fill(&WHITE).map_err(fail)?;
        let pen = Pen(area);
        let mut y = MARGIN + 8;
        for line in &self.lines {
            pen.text(line, (MARGIN, y), 18, HPos::Left)?;
            y += 26;
        }
        y = legend(&pen, diff, self.scale, y + 10)?;
        for panel in &self.panels {
            y = panel.draw(&pen, self.scale, y)?;
        }
        if !self.outside.is_empty() {
            pen.text("outside of blocks", (MARGIN, y + 18), 15, HPos::Left)?;
            y += 36;
            let widest = self.outside.iter().take(self.shown).map(|tensor| tensor.b.chars().count()).max();
            let names = label_width(widest.unwrap_or(0));
            for tensor in self.outside.iter().take(self.shown) {
                let middle = y + ROW / 2;
                pen.text(cut(&tensor.b, 44), (names - 8, middle), 14, HPos::Right)?;
                pen.fill((names, y + 1), (names + 40, y + ROW - 1), colour(tensor, self.scale))?;
                let change = match relative(tensor) {
                    Some(relative) if relative > 0.0 => format!("{}, relative change {relative:.2e}", tensor.phrase()),
                    _ => tensor.phrase(),
                };
                pen.text(cut(&change, 90), (names + 50, middle), 14, HPos::Left)?;
                y += ROW;
            }
            if self.outside.len() > self.shown {
                let more = format!("and {} more", self.outside.len() - self.shown);
                pen.text(more, (names + 50, y + ROW / 2), 14, HPos::Left)?;
            }
        }
        area.present().map_err(fail)
    }
}

/// The hues that occur, and the scale of their depth; the y under it.
fn legend<B: DrawingBackend>(pen: &Pen<'_, B>, diff: &Diff, scale: Scale, y: i32) -> Result<i32> {
    const BOX: i32 = 16;
    let mut x = MARGIN;
    let mut entry = |name: &str, colour: RGBColor| -> Result<()> {
        pen.fill((x, y - BOX / 2), (x + BOX, y + BOX / 2), colour)?;
        pen.text(name, (x + BOX + 6, y), 14, HPos::Left)?;
        x += BOX + 24 + 8 * name.chars().count() as i32;
        Ok(())
    };
    let occurs = |name: &str| diff.tensors.iter().any(|tensor| tensor.change.name() == name);
    if occurs("equal") {
        entry("equal", EQUAL)?;
    }
    for (_, label, hue) in HUES.iter().filter(|(name, ..)| occurs(name)) {
        entry(label, *hue)?;
    }
    if diff.blocks.iter().any(|stack| !stack.removed.is_empty()) {
        entry("removed", GONE)?;
    }
    let y = y + 28;
    let first = HUES.iter().find(|(name, ..)| occurs(name)).map_or(INK, |(.., hue)| *hue);
    let label = "relative change |B − A| / |A|:";
    pen.text(label, (MARGIN, y), 14, HPos::Left)?;
    let mut x = MARGIN + 8 * label.chars().count() as i32;
    for tone in 0..TONES {
        let change = scale.at(f64::from(tone) / f64::from(TONES - 1));
        pen.fill((x, y - BOX / 2), (x + 30, y + BOX / 2), scale.tone(first, change))?;
        let words = if (1e-3..1e4).contains(&change) {
            let digits = (1 - change.log10().floor() as i32).clamp(0, 4) as usize;
            format!("{change:.digits$}")
        } else {
            format!("{change:.1e}")
        };
        pen.text(&words, (x + 36, y), 13, HPos::Left)?;
        x += 54 + 8 * words.chars().count() as i32;
    }
    Ok(y + 24)
}

fn label_width(characters: usize) -> i32 {
    MARGIN + 8 * characters.min(44) as i32 + 16
}

fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.into();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

impl Panel<'_> {
    fn draw<B: DrawingBackend>(&self, pen: &Pen<'_, B>, scale: Scale, top: i32) -> Result<i32> {
        pen.text(&self.title, (MARGIN, top + 12), 15, HPos::Left)?;
        let left = label_width(self.modules.iter().map(|module| module.chars().count()).max().unwrap_or(0));
        let count = self.columns.len() as i32;
        let width = (WIDTH - MARGIN - left).min(count * 60);
        let edge = |column: i32| left + width * column / count.max(1);
        let top = top + 28;
        // A thin line between cells as long as they are wide enough for one.
        let gap = i32::from(width >= 6 * count);
        for (row, module) in self.modules.iter().enumerate() {
            let y = top + row as i32 * ROW;
            pen.text(cut(module, 44), (left - 8, y + ROW / 2), 14, HPos::Right)?;
            for (at, column) in self.columns.iter().enumerate() {
                let (from, to) = ((edge(at as i32), y), (edge(at as i32 + 1) - gap, y + ROW - 1));
                match column {
                    Column::Removed(_) => pen.fill(from, to, GONE)?,
                    Column::Block(block) => {
                        // Experts share a cell, which shows the one that changed most.
                        let cells = self.cells.iter().filter(|t| t.block == Some(*block) && t.module == *module);
                        let change = |t: &TensorDiff| relative(t).unwrap_or(0.0);
                        if let Some(tensor) = cells.max_by(|x, y| change(x).total_cmp(&change(y))) {
                            pen.fill(from, to, colour(tensor, scale))?;
                        }
                    }
                }
            }
        }
        let bottom = top + self.modules.len() as i32 * ROW;
        let every = (count * 26 / width.max(1) + 1).max(1);
        for (at, column) in self.columns.iter().enumerate() {
            let middle = (edge(at as i32) + edge(at as i32 + 1)) / 2;
            if let Column::Block(block) = column
                && at as i32 % every == 0
            {
                pen.line((middle, bottom), (middle, bottom + 4), INK)?;
                pen.text(block.to_string(), (middle, bottom + 14), 13, HPos::Center)?;
            }
        }
        Ok(bottom + 36)
    }
}
