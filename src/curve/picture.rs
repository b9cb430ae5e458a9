//! A figure as PNG or SVG, with the bundled font: panels side by side under one heading.

use anyhow::Result;
use plotters::{
    coord::Shift,
    prelude::*,
    style::{
        register_font,
        text_anchor::{HPos, Pos, VPos},
    },
};

use super::{
    data::Curve,
    figure::{Figure, Panel, panel},
    scene::{Anchor, COLOURS, Ink, Shape, glyph, glyph_of},
    words::{clean, clip},
};
use crate::plot::{fail, register};

/// Pixels drawn for each of the layout, and how many of them in a row become one of a PNG: the bitmap painter draws hard
/// edges, which the mean of neighbours softens.
const DRAWN: f64 = 3.0;
const TOGETHER: u32 = 2;

/// The bitmap painter centres words by a box that leaves room for what hangs below the line: so far too high.
const SINK: f64 = 0.09;

const MARGIN: f64 = 32.0;
const GAP: f64 = 26.0;
/// Room of a panel's heading and note, and of a caution under them.
const HEAD: f64 = 40.0;
const CAUTION: f64 = 16.0;
const COLUMNS: usize = 3;

/// The kinds of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Dots.
    Png,
    /// Lines.
    Svg,
}

/// Where things go, in units of the layout.
struct Layout<'a> {
    title: String,
    notes: Vec<String>,
    foot: Vec<String>,
    figure: &'a Figure,
    columns: usize,
    /// Upper end of each row, and its headings' height.
    rows: Vec<(f64, f64)>,
    width: f64,
    height: f64,
}

impl<'a> Layout<'a> {
    fn of(curve: &Curve, figure: &'a Figure) -> Self {
        let columns = figure.panels.len().clamp(1, COLUMNS);
        // Headings need the room of two panels.
        let width = 2.0 * MARGIN + (columns.max(2) as f64) * (panel::WIDTH + GAP) - GAP;
        let letters = |size: f64| ((width - 2.0 * MARGIN) / (0.6 * size)) as usize;
        let title = format!("What compression did to {}", clean(&curve.dense.name));
        let items: usize = curve.dimensions.iter().map(|dimension| dimension.items).sum();
        let suite = format!(
            "{}: scores from 0 to 100, higher is better. Suite {}, {} items.",
            figure.axis.heading(),
            clip(&clean(&curve.suite.name), 40),
            super::words::count(items as u64)
        );
        let foot = [
            "Bands and bars: 95 % of the paired difference, around the score. Grey band: the dense model's own 95 %.",
            "Hollow: refusals shifted, or one answer to everything. Small dots: calibration seeds.",
            "Every panel of a dimension spans the same number of points.",
        ];
        let foot = foot.into_iter().flat_map(|line| wrap(line, letters(11.5))).chain([clip(
            &format!("scruple {}, {} replicates of the bootstrap", clean(&curve.scruple), curve.bootstrap.replicates),
            letters(11.5),
        )]);
        let foot: Vec<String> = foot.collect();
        let notes = wrap(&suite, letters(13.0));
        let key = if figure.key.is_empty() { 0.0 } else { 26.0 * key_rows(figure, width) as f64 };
        let top = MARGIN + 38.0 + 20.0 * notes.len() as f64 + key + 12.0;
        let mut rows = Vec::new();
        let mut end = top;
        for row in figure.panels.chunks(columns) {
            let head = HEAD + if row.iter().any(|panel| panel.caution.is_some()) { CAUTION } else { 0.0 };
            rows.push((end, head));
            end += head + panel::HEIGHT + GAP;
        }
        let height = end + 18.0 * foot.len() as f64 + MARGIN - 8.0;
        Self { title: clip(&title, letters(23.0)), notes, foot, figure, columns, rows, width, height }
    }
}

/// Words in lines of at most so many letters.
fn wrap(text: &str, letters: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= letters => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(clip(word, letters)),
        }
    }
    lines
}

/// Where the names of a key go: column and row.
fn key_places(figure: &Figure, width: f64) -> Vec<(f64, usize)> {
    let (mut x, mut row) = (MARGIN, 0);
    let mut places = Vec::new();
    for (name, _) in &figure.key {
        let needed = 34.0 + 7.6 * name.chars().count().min(24) as f64;
        if x + needed > width - MARGIN && x > MARGIN {
            (x, row) = (MARGIN, row + 1);
        }
        places.push((x, row));
        x += needed;
    }
    places
}

fn key_rows(figure: &Figure, width: f64) -> usize {
    key_places(figure, width).last().map_or(0, |(_, row)| row + 1)
}

fn colour(ink: Ink) -> RGBColor {
    match ink {
        Ink::Text => RGBColor(32, 33, 38),
        Ink::Faint => RGBColor(98, 100, 108),
        Ink::Rule => RGBColor(224, 225, 230),
        Ink::Dense => RGBColor(32, 33, 38),
        Ink::Published => RGBColor(140, 142, 150),
        Ink::Series(number) => {
            let (r, g, b) = COLOURS[number % COLOURS.len()];
            RGBColor(r, g, b)
        }
    }
}

/// Draws a figure.
///
/// # Errors
/// If the font is unreadable or memory for the picture cannot be had.
pub fn draw(curve: &Curve, figure: &Figure, format: Format) -> Result<Vec<u8>> {
    register()?;
    register_font("sans-serif", FontStyle::Bold, dejavu::sans::bold())
        .map_err(|_| fail("the bold font is unreadable"))?;
    let layout = Layout::of(curve, figure);
    let even = |length: f64| ((length * DRAWN / f64::from(TOGETHER)).ceil() as u32) * TOGETHER;
    let size = (even(layout.width), even(layout.height));
    match format {
        Format::Svg => {
            let mut text = String::new();
            layout.paint(&SVGBackend::with_string(&mut text, size).into_drawing_area(), 0.0)?;
            // Shown in the size of the layout; its pixels are thirds of that.
            let drawn = format!("width=\"{}\" height=\"{}\"", size.0, size.1);
            let shown = format!("width=\"{:.0}\" height=\"{:.0}\"", layout.width, layout.height);
            Ok(text.replacen(&drawn, &shown, 1).into_bytes())
        }
        Format::Png => {
            let mut pixels = vec![0; size.0 as usize * size.1 as usize * 3];
            layout.paint(&BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area(), SINK)?;
            let (small, soft) = soften(&pixels, size);
            let folder = tempfile::tempdir()?;
            let path = folder.path().join("picture.png");
            let mut file = BitMapBackend::new(&path, small);
            file.blit_bitmap((0, 0), small, &soft).map_err(fail)?;
            file.present().map_err(fail)?;
            drop(file);
            Ok(std::fs::read(&path)?)
        }
    }
}

/// Each pixel the mean of [`TOGETHER`]² pixels.
fn soften(pixels: &[u8], (width, height): (u32, u32)) -> ((u32, u32), Vec<u8>) {
    let small = (width / TOGETHER, height / TOGETHER);
    let (together, row) = (TOGETHER as usize, width as usize * 3);
    let mut soft = Vec::with_capacity(small.0 as usize * small.1 as usize * 3);
    for y in 0..small.1 as usize {
        for x in 0..small.0 as usize {
            for channel in 0..3 {
                let mut sum = 0u32;
                for down in 0..together {
                    for across in 0..together {
                        sum += u32::from(pixels[(y * together + down) * row + (x * together + across) * 3 + channel]);
                    }
                }
                let count = TOGETHER * TOGETHER;
                soft.push(((sum + count / 2) / count) as u8);
            }
        }
    }
    (small, soft)
}

/// Draws in units of the layout.
struct Pen<'a, B: DrawingBackend> {
    area: &'a DrawingArea<B, Shift>,
    /// What is added to every place.
    origin: (f64, f64),
    /// How far words stand too high, in heights of their font.
    sink: f64,
}

impl<B: DrawingBackend> Pen<'_, B> {
    fn at(&self, (x, y): (f64, f64)) -> (i32, i32) {
        (((x + self.origin.0) * DRAWN).round() as i32, ((y + self.origin.1) * DRAWN).round() as i32)
    }

    fn corners(&self, points: &[(f64, f64)]) -> Vec<(i32, i32)> {
        points.iter().map(|point| self.at(*point)).collect()
    }

    fn words(&self, text: &str, at: (f64, f64), size: f64, ink: Ink, anchor: Anchor, bold: bool) -> Result<()> {
        let horizontal = match anchor {
            Anchor::Start => HPos::Left,
            Anchor::Middle => HPos::Center,
            Anchor::End => HPos::Right,
        };
        let style = if bold { FontStyle::Bold } else { FontStyle::Normal };
        let font = ("sans-serif", size * DRAWN, style).into_text_style(self.area);
        let ink = colour(ink);
        let font = font.color(&ink).pos(Pos::new(horizontal, VPos::Center));
        let at = self.at((at.0, at.1 + self.sink * size));
        self.area.draw(&Text::new(text.to_owned(), at, font)).map_err(fail)
    }

    fn line(&self, points: &[(f64, f64)], ink: Ink, width: f64) -> Result<()> {
        let stroke = colour(ink).stroke_width((width * DRAWN).round().max(1.0) as u32);
        self.area.draw(&PathElement::new(self.corners(points), stroke)).map_err(fail)
    }

    fn glyph(&self, at: (f64, f64), kind: usize, radius: f64, ink: Ink, hollow: bool) -> Result<()> {
        let around = |radius: f64| {
            let corners = glyph(kind, radius).into_iter().map(|(x, y)| (at.0 + x, at.1 + y));
            self.corners(&corners.collect::<Vec<_>>())
        };
        let fill = |radius: f64, colour: RGBColor| {
            if kind == 0 {
                let circle = Circle::new(self.at(at), (radius * DRAWN).round() as i32, colour.filled());
                return self.area.draw(&circle).map_err(fail);
            }
            self.area.draw(&Polygon::new(around(radius), colour)).map_err(fail)
        };
        // A ring of ground keeps a mark apart from the lines it lies on.
        fill(radius + 1.0, WHITE)?;
        fill(radius, colour(ink))?;
        if hollow { fill(radius * 0.6, WHITE) } else { Ok(()) }
    }

    fn shape(&self, shape: &Shape) -> Result<()> {
        match shape {
            Shape::Area { points, ink, opacity } => {
                let fill = colour(*ink).mix(*opacity);
                self.area.draw(&Polygon::new(self.corners(points), fill)).map_err(fail)
            }
            Shape::Line { points, ink, width, dash: None } => self.line(points, *ink, *width),
            Shape::Line { points, ink, width, dash: Some((dash, gap)) } => {
                points.windows(2).try_for_each(|ends| self.dashes(ends[0], ends[1], (*dash, *gap), *ink, *width))
            }
            Shape::Glyph { at, glyph, radius, ink } => self.glyph(*at, *glyph, *radius, *ink, false),
            Shape::Text { at, text, size, ink, anchor } => self.words(text, *at, *size, *ink, *anchor, false),
        }
    }

    fn dashes(&self, from: (f64, f64), to: (f64, f64), (dash, gap): (f64, f64), ink: Ink, width: f64) -> Result<()> {
        let length = (to.0 - from.0).hypot(to.1 - from.1);
        let place = |along: f64| {
            let share = (along / length).min(1.0);
            (from.0 + share * (to.0 - from.0), from.1 + share * (to.1 - from.1))
        };
        let mut along = 0.0;
        while along < length {
            self.line(&[place(along), place(along + dash)], ink, width)?;
            along += dash + gap;
        }
        Ok(())
    }

    fn panel(&self, panel: &Panel, head: f64) -> Result<()> {
        self.words(&clip(&panel.title, 38), (0.0, 8.0), 15.0, Ink::Text, Anchor::Start, true)?;
        self.words(&clip(&panel.note, 56), (0.0, 27.0), 11.5, Ink::Faint, Anchor::Start, false)?;
        if let Some(caution) = &panel.caution {
            self.words(&clip(caution, 50), (0.0, 43.0), 11.5, Ink::Text, Anchor::Start, false)?;
        }
        let below = Pen { area: self.area, origin: (self.origin.0, self.origin.1 + head), sink: self.sink };
        panel.scene.shapes.iter().try_for_each(|shape| below.shape(shape))?;
        let spots = panel.scene.spots.iter();
        spots.clone().try_for_each(|spot| below.glyph(spot.at, spot.glyph, spot.radius, spot.ink, spot.hollow))
    }
}

impl Layout<'_> {
    fn paint<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>, sink: f64) -> Result<()> {
        area.fill(&WHITE).map_err(fail)?;
        let page = Pen { area, origin: (0.0, 0.0), sink };
        page.words(&self.title, (MARGIN, MARGIN + 6.0), 23.0, Ink::Text, Anchor::Start, true)?;
        let mut y = MARGIN + 38.0;
        for note in &self.notes {
            page.words(note, (MARGIN, y), 13.0, Ink::Faint, Anchor::Start, false)?;
            y += 20.0;
        }
        for ((name, number), (x, row)) in self.figure.key.iter().zip(key_places(self.figure, self.width)) {
            let at = (x + 6.0, y + 6.0 + 26.0 * row as f64);
            page.glyph(at, glyph_of(*number), 4.2, Ink::Series(*number), false)?;
            page.words(&clip(&clean(name), 24), (at.0 + 11.0, at.1), 12.0, Ink::Text, Anchor::Start, false)?;
        }
        for (number, panel) in self.figure.panels.iter().enumerate() {
            let x = MARGIN + (number % self.columns) as f64 * (panel::WIDTH + GAP);
            let (y, head) = self.rows[number / self.columns];
            Pen { area, origin: (x, y), sink }.panel(panel, head)?;
        }
        let mut y = self.height - MARGIN - 18.0 * (self.foot.len() as f64 - 1.0);
        for line in &self.foot {
            page.words(line, (MARGIN, y), 11.5, Ink::Faint, Anchor::Start, false)?;
            y += 18.0;
        }
        area.present().map_err(fail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::curve::{figure::axis::Axis, sample};

    #[test]
    fn a_picture_has_its_words_and_panels_in_both_formats() {
        let curve = sample::single();
        let figure = Figure::of(&curve, Axis::Bits).unwrap();
        let svg = String::from_utf8(draw(&curve, &figure, Format::Svg).unwrap()).unwrap();
        for words in
            ["What compression did to Sample-135M", "Machine ethics", "Worst dimension", "Mean |Δ|", "chance", "dense"]
        {
            assert!(svg.contains(words), "{words} is missing");
        }
        let png = draw(&curve, &figure, Format::Png).unwrap();
        assert_eq!(&png[1..4], b"PNG");
        let side = |at: usize| f64::from(u32::from_be_bytes(png[at..at + 4].try_into().unwrap()));
        let layout = Layout::of(&curve, &figure);
        let ratio = DRAWN / f64::from(TOGETHER);
        assert!((side(16) - layout.width * ratio).abs() <= 1.0 && (side(20) - layout.height * ratio).abs() <= 1.0);
    }

    #[test]
    fn neighbouring_pixels_become_their_mean() {
        let pixels: Vec<u8> = [[0, 10, 255], [4, 10, 255], [8, 10, 255], [4, 10, 254]].concat();
        assert_eq!(soften(&pixels, (2, 2)), ((1, 1), vec![4, 10, 255]));
    }

    #[test]
    fn long_lines_break_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("incomprehensible", 5), ["inco…"]);
    }
}
