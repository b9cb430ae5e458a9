//! A heat map of tensors: blocks from left to right, kinds from top to bottom, and a strip for what stands outside of
//! blocks.

use anyhow::Result;
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{fail, register};

/// What is drawn.
#[derive(Debug, Clone)]
pub struct Heatmap {
    /// The model, its size.
    pub title: String,
    /// What the colours say.
    pub subtitle: String,
    /// Names of the rows.
    pub kinds: Vec<String>,
    /// Stacks of blocks, side by side.
    pub stacks: Vec<Stack>,
    /// Tensors outside of blocks: names and cells.
    pub outside: Vec<(String, Cell)>,
    /// The values of the lightest and the darkest colour.
    pub range: (f64, f64),
    /// Whether colours follow the logarithm.
    pub logarithmic: bool,
    /// Whether values beyond the range take the last colour.
    pub open_ended: bool,
    /// What the glyphs mean.
    pub legend: &'static [(Mark, &'static str)],
}

/// One list of blocks.
#[derive(Debug, Clone)]
pub struct Stack {
    /// Its name.
    pub name: String,
    /// The blocks' numbers, and a cell for each kind; `None` where the block has no such tensor.
    pub blocks: Vec<(usize, Vec<Option<Cell>>)>,
}

/// One tensor, or the oddest of several in one place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cell {
    /// What its colour shows; `None` where that cannot be said.
    pub value: Option<f64>,
    /// Whether it is flagged.
    pub mark: Mark,
}

/// A glyph in a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// None.
    No,
    /// Unusual.
    Flag,
    /// Cannot be right.
    Fault,
}

const INK: RGBColor = RGBColor(38, 38, 46);
const FAINT: RGBColor = RGBColor(112, 112, 122);
const RULE: RGBColor = RGBColor(206, 206, 212);
/// Cells whose value cannot be said.
const UNKNOWN: RGBColor = RGBColor(236, 236, 240);

/// Room around everything, and between parts.
const MARGIN: i32 = 28;
const GAP: i32 = 12;
/// Cells this wide have their values written in them.
const WRITTEN: i32 = 40;
/// Rows of the strip at most; the rest is counted.
const MOST_OUTSIDE: usize = 30;

/// Draws `map` as a file of this `ending`: png or svg.
///
/// # Errors
/// If the font or the file cannot be used.
pub fn draw(map: &Heatmap, ending: &str) -> Result<Vec<u8>> {
    register()?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(format!("health.{ending}"));
    let plan = Plan::of(map);
    let size = (plan.width as u32, plan.height as u32);
    if ending == "svg" {
        plan.draw(&SVGBackend::new(&path, size).into_drawing_area())?;
    } else {
        plan.draw(&BitMapBackend::new(&path, size).into_drawing_area())?;
    }
    Ok(std::fs::read(&path)?)
}

/// The colour at `t` from 0 to 1: steps that look even, since the lightness of OKLab (Ottosson 2020) falls in a line while
/// the hue turns from yellow through red to violet. Readable without colour too.
fn colour(t: f64) -> RGBColor {
    let t = t.clamp(0.0, 1.0);
    let lightness = 0.97 - 0.68 * t;
    let chroma = 0.035 + 0.125 * (std::f64::consts::PI * (0.08 + 0.80 * t)).sin();
    let hue = (98.0 - 158.0 * t).to_radians();
    let (a, b) = (chroma * hue.cos(), chroma * hue.sin());
    let l = (lightness + 0.396_337_777_4 * a + 0.215_803_757_3 * b).powi(3);
    let m = (lightness - 0.105_561_345_8 * a - 0.063_854_172_8 * b).powi(3);
    let s = (lightness - 0.089_484_177_5 * a - 1.291_485_548_0 * b).powi(3);
    let channel = |linear: f64| {
        let linear = linear.clamp(0.0, 1.0);
        let encoded = if linear <= 0.003_130_8 { 12.92 * linear } else { 1.055 * linear.powf(1.0 / 2.4) - 0.055 };
        (255.0 * encoded).round() as u8
    };
    RGBColor(
        channel(4.076_741_662_1 * l - 3.307_711_591_3 * m + 0.230_969_929_2 * s),
        channel(-1.268_438_004_6 * l + 2.609_757_401_1 * m - 0.341_319_396_5 * s),
        channel(-0.004_196_086_3 * l - 0.703_418_614_7 * m + 1.707_614_701_0 * s),
    )
}

/// Where everything goes, in pixels.
struct Plan<'a> {
    map: &'a Heatmap,
    /// Of a cell.
    cell: (i32, i32),
    /// Left end of each stack's cells.
    stacks: Vec<i32>,
    /// Upper end of the cells.
    top: i32,
    /// Upper end of the strip's cells, and their left end.
    strip: (i32, i32),
    /// Upper end of the legend.
    legend: i32,
    width: i32,
    height: i32,
}

/// About the width of `text` in pixels: the bundled font's letters are this wide on average.
fn text_width(text: &str, size: i32) -> i32 {
    (text.chars().count() as f64 * f64::from(size) * 0.60).ceil() as i32
}

impl<'a> Plan<'a> {
    fn of(map: &'a Heatmap) -> Self {
        let blocks: i32 = map.stacks.iter().map(|stack| stack.blocks.len() as i32).sum();
        let cell = ((1000 / blocks.max(1)).clamp(13, 58), if map.kinds.len() > 16 { 22 } else { 28 });
        let labels = map.kinds.iter().map(|kind| text_width(kind, 14)).max().unwrap_or(0);
        let top = MARGIN + 74 + if map.stacks.len() > 1 { 22 } else { 0 };
        let mut left = MARGIN + labels + GAP;
        let mut stacks = Vec::new();
        for stack in &map.stacks {
            stacks.push(left);
            let name = if map.stacks.len() > 1 { text_width(&stack.name, 13) } else { 0 };
            left += (stack.blocks.len() as i32 * cell.0).max(name) + GAP;
        }
        let strip_left = if map.stacks.is_empty() { MARGIN } else { left + 2 * GAP };
        let shown = map.outside.len().min(MOST_OUTSIDE) as i32;
        let names = map.outside.iter().take(MOST_OUTSIDE).map(|(name, _)| text_width(name, 14)).max().unwrap_or(0);
        let strip_width =
            if shown > 0 { WRITTEN + 14 + GAP + names.max(text_width("outside of blocks", 14)) } else { 0 };
        let rows = (map.kinds.len() as i32).max(shown + i32::from(map.outside.len() > MOST_OUTSIDE));
        let legend = top + rows * cell.1 + 58;
        let titles = text_width(&map.title, 22).max(text_width(&map.subtitle, 14)) + 2 * MARGIN;
        let width = (strip_left + strip_width + MARGIN).max(titles).max(700);
        Self { map, cell, stacks, top, strip: (top, strip_left), legend, width, height: legend + 52 + MARGIN }
    }

    /// `value` between the ends of the colours, 0 to 1.
    fn place(&self, value: f64) -> f64 {
        let scale = |x: f64| if self.map.logarithmic { x.max(1e-300).ln() } else { x };
        let (low, high) = (scale(self.map.range.0), scale(self.map.range.1));
        if high > low { ((scale(value) - low) / (high - low)).clamp(0.0, 1.0) } else { 0.0 }
    }

    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()> {
        area.fill(&WHITE).map_err(fail)?;
        text(area, &self.map.title, (MARGIN, MARGIN), 22, INK, HPos::Left, VPos::Top)?;
        text(area, &self.map.subtitle, (MARGIN, MARGIN + 32), 14, FAINT, HPos::Left, VPos::Top)?;
        for (row, kind) in self.map.kinds.iter().enumerate() {
            let y = self.top + row as i32 * self.cell.1 + self.cell.1 / 2;
            text(area, kind, (self.stacks[0] - GAP, y), 14, INK, HPos::Right, VPos::Center)?;
        }
        for (stack, &left) in self.map.stacks.iter().zip(&self.stacks) {
            self.draw_stack(area, stack, left)?;
        }
        self.draw_strip(area)?;
        self.draw_legend(area)?;
        area.present().map_err(fail)
    }

    fn draw_stack<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>, stack: &Stack, left: i32) -> Result<()> {
        let (width, height) = self.cell;
        if self.map.stacks.len() > 1 {
            text(area, &stack.name, (left, self.top - 10), 13, INK, HPos::Left, VPos::Bottom)?;
        }
        // Numbers need their own width and some air.
        let step = [1, 2, 5, 10, 20, 50].into_iter().find(|step| step * width >= 28).unwrap_or(100);
        let bottom = self.top + self.map.kinds.len() as i32 * height;
        for (column, (block, cells)) in stack.blocks.iter().enumerate() {
            let x = left + column as i32 * width;
            for (row, cell) in cells.iter().enumerate() {
                if let Some(cell) = cell {
                    self.draw_cell(area, *cell, (x, self.top + row as i32 * height), (width, height))?;
                }
            }
            if block % step as usize == 0 {
                text(area, &block.to_string(), (x + width / 2, bottom + 7), 13, FAINT, HPos::Center, VPos::Top)?;
            }
        }
        text(area, "block", (left, bottom + 25), 13, FAINT, HPos::Left, VPos::Top)
    }

    fn draw_strip<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()> {
        if self.map.outside.is_empty() {
            return Ok(());
        }
        let ((top, left), height) = (self.strip, self.cell.1);
        let width = WRITTEN + 14;
        text(area, "outside of blocks", (left, top - 10), 13, FAINT, HPos::Left, VPos::Bottom)?;
        for (row, (name, cell)) in self.map.outside.iter().take(MOST_OUTSIDE).enumerate() {
            let y = top + row as i32 * height;
            self.draw_cell(area, *cell, (left, y), (width, height))?;
            text(area, name, (left + width + GAP, y + height / 2), 14, INK, HPos::Left, VPos::Center)?;
        }
        if self.map.outside.len() > MOST_OUTSIDE {
            let more = format!("and {} more", self.map.outside.len() - MOST_OUTSIDE);
            let y = top + MOST_OUTSIDE as i32 * height + height / 2;
            text(area, &more, (left, y), 14, FAINT, HPos::Left, VPos::Center)?;
        }
        Ok(())
    }

    fn draw_cell<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, Shift>,
        cell: Cell,
        (x, y): (i32, i32),
        (width, height): (i32, i32),
    ) -> Result<()> {
        let share = cell.value.map(|value| self.place(value));
        let fill = share.map_or(UNKNOWN, colour);
        // A pixel of white between neighbours.
        area.draw(&Rectangle::new([(x, y), (x + width - 2, y + height - 2)], fill.filled())).map_err(fail)?;
        let dark = share.is_some_and(|share| share > 0.45);
        if let Some(value) = cell.value.filter(|_| width >= WRITTEN) {
            let ink = if dark { WHITE } else { INK };
            // The glyph stands on the right.
            let at = (x + width / 2 - if cell.mark == Mark::No { 1 } else { 6 }, y + height / 2);
            text(area, &short(value), at, 12, ink, HPos::Center, VPos::Center)?;
        }
        let centre = (if width >= WRITTEN { x + width - 10 } else { x + width / 2 - 1 }, y + height / 2 - 1);
        mark(area, cell.mark, centre)
    }

    fn draw_legend<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()> {
        const LENGTH: i32 = 240;
        let (left, top) = (MARGIN, self.legend);
        for step in 0..LENGTH {
            let fill = colour(f64::from(step) / f64::from(LENGTH - 1)).filled();
            area.draw(&Rectangle::new([(left + step, top), (left + step + 1, top + 14)], fill)).map_err(fail)?;
        }
        let (low, high) = self.map.range;
        let middle = if self.map.logarithmic { (low.max(1e-300) * high).sqrt() } else { (low + high) / 2.0 };
        let last = if self.map.open_ended { format!("{} or more", short(high)) } else { short(high) };
        for (share, label) in [(0, short(low)), (1, short(middle)), (2, last)] {
            let x = left + share * LENGTH / 2;
            area.draw(&PathElement::new([(x, top + 14), (x, top + 19)], FAINT)).map_err(fail)?;
            text(area, &label, (x, top + 23), 13, INK, if share == 0 { HPos::Left } else { HPos::Center }, VPos::Top)?;
        }
        let mut x = left + LENGTH + 70;
        for &(glyph, label) in self.map.legend {
            area.draw(&Rectangle::new([(x - 11, top - 3), (x + 9, top + 17)], colour(0.25).filled())).map_err(fail)?;
            mark(area, glyph, (x - 1, top + 7))?;
            text(area, label, (x + 18, top + 7), 13, INK, HPos::Left, VPos::Center)?;
            x += 44 + text_width(label, 13) + GAP;
        }
        let inside = self.map.stacks.iter().flat_map(|stack| &stack.blocks).flat_map(|(_, cells)| cells).flatten();
        if inside.chain(self.map.outside.iter().map(|(_, cell)| cell)).any(|cell| cell.value.is_none()) {
            area.draw(&Rectangle::new([(x - 11, top - 3), (x + 9, top + 17)], UNKNOWN.filled())).map_err(fail)?;
            text(area, "no figure", (x + 18, top + 7), 13, INK, HPos::Left, VPos::Center)?;
        }
        area.draw(&PathElement::new([(MARGIN, top - 16), (self.width - MARGIN, top - 16)], RULE)).map_err(fail)
    }
}

/// A value in at most five characters or so.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size >= 10_000.0 => format!("{value:.0e}"),
        size if size >= 9.95 => format!("{value:.0}"),
        size if size >= 0.995 => format!("{value:.1}"),
        size if size >= 0.0995 => format!("{value:.2}"),
        size if size >= 0.001 => format!("{value:.3}"),
        _ => format!("{value:.0e}"),
    }
}

fn mark<B: DrawingBackend>(area: &DrawingArea<B, Shift>, mark: Mark, (x, y): (i32, i32)) -> Result<()> {
    match mark {
        Mark::No => {}
        Mark::Flag => {
            area.draw(&Circle::new((x, y), 5, WHITE.filled())).map_err(fail)?;
            area.draw(&Circle::new((x, y), 3, INK.filled())).map_err(fail)?;
        }
        Mark::Fault => {
            area.draw(&Circle::new((x, y), 6, WHITE.filled())).map_err(fail)?;
            for line in [[(x - 3, y - 3), (x + 3, y + 3)], [(x - 3, y + 3), (x + 3, y - 3)]] {
                area.draw(&PathElement::new(line, INK.stroke_width(2))).map_err(fail)?;
            }
        }
    }
    Ok(())
}

fn text<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    text: &str,
    at: (i32, i32),
    size: i32,
    ink: RGBColor,
    horizontal: HPos,
    vertical: VPos,
) -> Result<()> {
    let style = ("sans-serif", size).into_font().color(&ink).pos(Pos::new(horizontal, vertical));
    area.draw(&Text::new(text.to_owned(), at, style)).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_grow_darker_evenly() {
        let luminance = |t: f64| {
            let RGBColor(r, g, b) = colour(t);
            0.2126 * f64::from(r) + 0.7152 * f64::from(g) + 0.0722 * f64::from(b)
        };
        let steps: Vec<f64> =
            (0..20).map(|i| luminance(f64::from(i) / 20.0) - luminance(f64::from(i + 1) / 20.0)).collect();
        assert!(steps.iter().all(|step| *step > 3.0), "{steps:?}");
    }
}
