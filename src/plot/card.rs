//! One model's card as a picture: which tree it is of and how far from it, what was read, and what models near by are.

use std::path::Path;

use anyhow::Result;
use plotters::{
    coord::Shift,
    prelude::*,
    style::{
        register_font,
        text_anchor::{HPos, Pos, VPos},
    },
};

use super::{fail, register};

const WIDTH: i32 = 1080;
const MARGIN: i32 = 40;
/// Where names end and bars begin, and where bars end.
const BARS: (i32, i32) = (330, 730);
const ROW: i32 = 28;
const INK: RGBColor = RGBColor(34, 34, 34);
const QUIET: RGBColor = RGBColor(110, 110, 110);
const RULE: RGBColor = RGBColor(220, 224, 228);
const EMPTY: RGBColor = RGBColor(234, 238, 242);
const KNOWN: RGBColor = RGBColor(0, 114, 178);
const PALE: RGBColor = RGBColor(150, 190, 218);
const UNKNOWN: RGBColor = RGBColor(190, 75, 0);

/// How far the model is from one tree.
#[derive(Debug, Clone)]
pub struct Distance {
    /// The tree.
    pub tree: String,
    /// The distance in words: `2.31 of 4.62`.
    pub text: String,
    /// As a share of what the tree accepts; none where the model lacks the layer.
    pub share: Option<f64>,
}

/// One label.
#[derive(Debug, Clone)]
pub struct Bar {
    /// The label.
    pub name: String,
    /// Its probability.
    pub probability: f64,
    /// Whether it is predicted.
    pub predicted: bool,
    /// Whether it is in the label set.
    pub in_set: bool,
    /// How well the model fits among those documented with the label.
    pub belongs: Option<f64>,
}

/// What one expert says.
#[derive(Debug, Clone)]
pub struct Section {
    /// What is told.
    pub title: String,
    /// What it was read from, and how good the expert is.
    pub note: String,
    /// Labels, the most likely first.
    pub bars: Vec<Bar>,
    /// Labels that are not shown.
    pub more: usize,
    /// Documented models near by: name, distance, labels.
    pub near: Vec<(String, String, String)>,
    /// What those are by their majority.
    pub vote: String,
}

/// The card.
#[derive(Debug, Clone)]
pub struct Card {
    /// The model.
    pub model: String,
    /// Its tree, where it is of a known one.
    pub tree: Option<String>,
    /// Why not, or how far from its middle.
    pub why: String,
    /// Every tree, the nearest first.
    pub distances: Vec<Distance>,
    /// What the tree's experts say.
    pub sections: Vec<Section>,
    /// What holds for all of it.
    pub footer: String,
}

/// Draws `card` as PNG into `file`, by way of a sibling.
///
/// # Errors
/// If the file cannot be written.
pub fn draw(file: &Path, card: &Card) -> Result<()> {
    register()?;
    register_font("sans-serif", FontStyle::Bold, dejavu::sans::bold()).map_err(|_| fail("the font is unreadable"))?;
    // The height is that of what is drawn: a first pass only measures.
    let mut nothing = vec![0; 3 * 8 * 8];
    let height = {
        let area = BitMapBackend::with_buffer(&mut nothing, (8, 8)).into_drawing_area();
        Page { area: &area, y: MARGIN }.card(card, false)?
    };
    let part = file.with_file_name("card.part.png");
    let drawn = {
        let area = BitMapBackend::new(&part, (WIDTH as u32, height as u32)).into_drawing_area();
        area.fill(&WHITE).map_err(fail)?;
        Page { area: &area, y: MARGIN }.card(card, true).and_then(|_| area.present().map_err(fail))
    };
    drawn.and_then(|()| Ok(std::fs::rename(&part, file)?)).inspect_err(|_| drop(std::fs::remove_file(&part)))
}

/// How a text stands.
#[derive(Clone, Copy)]
struct Style {
    size: i32,
    bold: bool,
    colour: RGBColor,
    side: HPos,
}

const PLAIN: Style = Style { size: 16, bold: false, colour: INK, side: HPos::Left };

impl Style {
    fn of(self) -> TextStyle<'static> {
        let face = if self.bold { FontStyle::Bold } else { FontStyle::Normal };
        ("sans-serif", self.size, face).into_font().color(&self.colour).pos(Pos::new(self.side, VPos::Center))
    }
}

/// The page while it is drawn: everything above `y` is taken.
struct Page<'a, B: DrawingBackend> {
    area: &'a DrawingArea<B, Shift>,
    y: i32,
}

impl<B: DrawingBackend> Page<'_, B> {
    fn width(&self, text: &str, style: Style) -> Result<i32> {
        Ok(self.area.estimate_text_size(text, &style.of()).map_err(fail)?.0 as i32)
    }

    /// `text` with its middle left out where it is wider than `most`: names differ at their ends.
    fn cut(&self, text: &str, style: Style, most: i32) -> Result<String> {
        let letters: Vec<char> = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let mut kept = letters.len();
        loop {
            let shown: String = match kept == letters.len() {
                true => letters.iter().collect(),
                false => {
                    let (head, tail) = (kept / 3, kept - kept / 3);
                    letters[..head].iter().chain(['…'].iter()).chain(&letters[letters.len() - tail..]).collect()
                }
            };
            if kept == 0 || self.width(&shown, style)? <= most {
                return Ok(shown);
            }
            kept = (kept - 1).min(kept * 9 / 10 + 8);
        }
    }

    fn text(&self, text: &str, (x, y): (i32, i32), style: Style, most: i32) -> Result<()> {
        let shown = self.cut(text, style, most)?;
        // The font's middle lies above that of its letters.
        self.area.draw(&Text::new(shown, (x, y + style.size / 8), style.of())).map_err(fail)
    }

    /// `text` in as many lines as it needs, at most `lines`.
    fn paragraph(&mut self, text: &str, style: Style, lines: usize, drawn: bool) -> Result<()> {
        let most = WIDTH - 2 * MARGIN;
        let (mut line, mut words, mut used) = (String::new(), text.split_whitespace().peekable(), 0);
        while let Some(word) = words.next() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
            let is_last = used + 1 == lines;
            let fits = match words.peek() {
                Some(next) => is_last || self.width(&format!("{line} {next}"), style)? <= most,
                None => true,
            };
            if words.peek().is_none() || !fits {
                if drawn {
                    self.text(&line, (MARGIN, self.y + style.size / 2), style, most)?;
                }
                self.y += style.size * 3 / 2;
                line.clear();
                used += 1;
            }
        }
        Ok(())
    }

    fn bar(&self, (left, right): (i32, i32), y: i32, colour: RGBColor) -> Result<()> {
        let corners = [(left, y - 8), (right.max(left), y + 8)];
        self.area.draw(&Rectangle::new(corners, colour.filled())).map_err(fail)
    }

    fn rule(&mut self, drawn: bool) -> Result<()> {
        self.y += 14;
        if drawn {
            let line = PathElement::new([(MARGIN, self.y), (WIDTH - MARGIN, self.y)], RULE.stroke_width(1));
            self.area.draw(&line).map_err(fail)?;
        }
        self.y += 18;
        Ok(())
    }

    /// The card; what it takes in height. Nothing is drawn where `drawn` is not set.
    fn card(mut self, card: &Card, drawn: bool) -> Result<i32> {
        let quiet = Style { colour: QUIET, size: 15, ..PLAIN };
        self.paragraph("What the weights say of", quiet, 1, drawn)?;
        self.y += 4;
        let name = Style { size: 25, bold: true, ..PLAIN };
        if drawn {
            self.text(&card.model, (MARGIN, self.y + 14), name, WIDTH - 2 * MARGIN)?;
        }
        self.y += 44;
        let (verdict, colour) = match &card.tree {
            Some(tree) => (format!("tree {tree}"), KNOWN),
            None => ("unknown tree".into(), UNKNOWN),
        };
        if drawn {
            let style = Style { colour, bold: true, size: 20, ..PLAIN };
            self.text(&verdict, (MARGIN, self.y + 12), style, WIDTH - 2 * MARGIN)?;
        }
        self.y += 34;
        self.paragraph(&card.why, quiet, 4, drawn)?;
        self.y += 10;
        self.distances(card, drawn)?;
        for section in &card.sections {
            self.rule(drawn)?;
            self.section(section, drawn)?;
        }
        self.rule(drawn)?;
        self.paragraph(&card.footer, Style { size: 13, ..quiet }, 4, drawn)?;
        Ok(self.y + MARGIN / 2)
    }

    /// A gauge a tree: what it accepts is its half.
    fn distances(&mut self, card: &Card, drawn: bool) -> Result<()> {
        for distance in &card.distances {
            let y = self.y + ROW / 2;
            self.y += ROW;
            if !drawn {
                continue;
            }
            let is_own = card.tree.as_ref() == Some(&distance.tree);
            let style = Style { bold: is_own, side: HPos::Right, ..PLAIN };
            self.text(&distance.tree, (BARS.0 - 14, y), style, BARS.0 - 14 - MARGIN)?;
            self.bar(BARS, y, EMPTY)?;
            if let Some(share) = distance.share {
                let length = (f64::from(BARS.1 - BARS.0) * (share / 2.0).min(1.0)) as i32;
                let colour = if share <= 1.0 { KNOWN } else { UNKNOWN };
                self.bar((BARS.0, BARS.0 + length), y, if is_own || card.tree.is_none() { colour } else { PALE })?;
            }
            let limit = i32::midpoint(BARS.0, BARS.1);
            let tick = PathElement::new([(limit, y - 11), (limit, y + 11)], INK.stroke_width(2));
            self.area.draw(&tick).map_err(fail)?;
            self.text(&distance.text, (BARS.1 + 14, y), PLAIN, WIDTH - MARGIN - BARS.1 - 14)?;
        }
        if drawn && !card.distances.is_empty() {
            let middle = i32::midpoint(BARS.0, BARS.1);
            let style = Style { size: 13, colour: QUIET, side: HPos::Center, ..PLAIN };
            self.text("farther is unknown", (middle, self.y + 8), style, BARS.1 - BARS.0)?;
        }
        self.y += if card.distances.is_empty() { 0 } else { 20 };
        Ok(())
    }

    fn section(&mut self, section: &Section, drawn: bool) -> Result<()> {
        let (quiet, small) = (Style { colour: QUIET, size: 15, ..PLAIN }, Style { colour: QUIET, size: 13, ..PLAIN });
        let columns = [(BARS.1 + 14, "probability"), (BARS.1 + 112, "in the set"), (BARS.1 + 202, "belongs")];
        self.paragraph(&section.title, Style { bold: true, size: 19, ..PLAIN }, 1, drawn)?;
        self.paragraph(&section.note, quiet, 2, drawn)?;
        self.y += 8;
        if drawn {
            for (x, head) in columns {
                self.text(head, (x, self.y + 8), small, 90)?;
            }
        }
        self.y += 22;
        for bar in &section.bars {
            let y = self.y + ROW / 2;
            self.y += ROW;
            if !drawn {
                continue;
            }
            let style = Style { bold: bar.predicted, side: HPos::Right, ..PLAIN };
            self.text(&bar.name, (BARS.0 - 14, y), style, BARS.0 - 14 - MARGIN)?;
            self.bar(BARS, y, EMPTY)?;
            let length = (f64::from(BARS.1 - BARS.0) * bar.probability.clamp(0.0, 1.0)).round() as i32;
            self.bar((BARS.0, BARS.0 + length), y, if bar.predicted { KNOWN } else { PALE })?;
            self.text(&format!("{:.3}", bar.probability), (columns[0].0, y), PLAIN, 90)?;
            self.text(if bar.in_set { "yes" } else { "–" }, (columns[1].0, y), PLAIN, 90)?;
            let belongs = bar.belongs.map_or("–".into(), |p| format!("{p:.2}"));
            self.text(&belongs, (columns[2].0, y), PLAIN, 90)?;
        }
        if section.more > 0 {
            self.paragraph(&format!("and {} less likely labels", section.more), quiet, 1, drawn)?;
        }
        if section.near.is_empty() {
            return Ok(());
        }
        self.y += 14;
        self.paragraph(&section.vote, Style { bold: true, ..PLAIN }, 2, drawn)?;
        for (model, distance, labels) in &section.near {
            let y = self.y + ROW / 2 - 2;
            self.y += ROW - 4;
            if !drawn {
                continue;
            }
            self.text(model, (MARGIN, y), Style { size: 15, ..PLAIN }, 430)?;
            self.text(distance, (MARGIN + 520, y), Style { side: HPos::Right, ..quiet }, 80)?;
            self.text(labels, (MARGIN + 540, y), Style { size: 15, ..PLAIN }, WIDTH - 2 * MARGIN - 540)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card() -> Card {
        let bar = |name: &str, probability, predicted| Bar {
            name: name.into(),
            probability,
            predicted,
            in_set: predicted,
            belongs: predicted.then_some(0.4),
        };
        Card {
            model: format!("{}.safetensors", "a-long-folder/".repeat(20)),
            tree: Some("oak".into()),
            why: "word ".repeat(200),
            distances: vec![
                Distance { tree: "oak".into(), text: "1 of 2".into(), share: Some(0.5) },
                Distance { tree: "elm\n\u{1b}".into(), text: "no such layer".into(), share: None },
            ],
            sections: vec![Section {
                title: "classes".into(),
                note: String::new(),
                bars: vec![bar("red", 1.0, true), bar("無限", f64::NAN, false)],
                more: 3,
                near: vec![("near".into(), "0.1".into(), "red".into())],
                vote: "Most are red".into(),
            }],
            footer: "ends".into(),
        }
    }

    /// Size and pixels of a PNG file, as far as its header says.
    fn size(file: &Path) -> (u32, u32) {
        let bytes = std::fs::read(file).unwrap();
        assert_eq!(&bytes[1..4], b"PNG");
        let side = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        (side(16), side(20))
    }

    #[test]
    fn the_page_is_as_high_as_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("card.png");
        draw(&file, &card()).unwrap();
        let (width, height) = size(&file);
        assert_eq!(width, WIDTH as u32);
        let mut longer = card();
        let bar = longer.sections[0].bars[0].clone();
        longer.sections[0].bars.extend(std::iter::repeat_n(bar, 5));
        draw(&file, &longer).unwrap();
        assert_eq!(size(&file).1, height + 5 * ROW as u32);
        let bare = Card { tree: None, why: String::new(), distances: Vec::new(), sections: Vec::new(), ..card() };
        draw(&file, &bare).unwrap();
        assert!(size(&file).1 < height);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
