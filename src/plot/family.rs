//! The picture of a family: its trees from left to right, what was done along each edge, and how sure that is.

use std::path::Path;

use anyhow::{Context, Result};
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use scruple_weights::lineage::family::{Direction, Edge, Family, Kind};

use super::{fail, register};

/// Models drawn; the rest is counted.
const MOST: usize = 150;
/// Columns drawn; what is deeper stands in the last.
const MOST_DEPTH: usize = 12;
/// Characters of a name and of an edge's label.
const NAME: usize = 34;
const LABEL: usize = 40;
const ROW: i32 = 50;
const MARGIN: i32 = 24;
const CHARACTER: i32 = 8;
const INK: RGBColor = RGBColor(40, 40, 40);
const BOX: RGBColor = RGBColor(238, 243, 247);
const ROOT: RGBColor = RGBColor(214, 229, 240);

/// Hues that stay apart for colour-blind readers too (Okabe & Ito).
fn hue(kind: Kind) -> RGBColor {
    match kind {
        Kind::Equal | Kind::Retyped => RGBColor(86, 180, 233),
        Kind::FineTune | Kind::FrozenFineTune => RGBColor(213, 94, 0),
        Kind::MergedLora => RGBColor(200, 130, 0),
        Kind::Quantised => RGBColor(0, 114, 178),
        Kind::Pruned => RGBColor(0, 158, 115),
        Kind::LayersRemoved | Kind::LayersRepeated => RGBColor(120, 60, 150),
        Kind::Merge => RGBColor(204, 121, 167),
        Kind::Rows | Kind::Rescaled => RGBColor(150, 130, 0),
        Kind::Other | Kind::Unread => RGBColor(120, 120, 120),
    }
}

fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.into();
    }
    text.chars().take(most - 1).chain(['…']).collect()
}

/// What was done, in a few words.
pub(crate) fn what(edge: &Edge) -> String {
    match &edge.detail {
        Some(detail) => format!("{}, {detail}", edge.kind.words()),
        None => edge.kind.words().into(),
    }
}

/// A probability with two digits; less than one never reads as one.
pub(crate) fn share(p: f64) -> String {
    if p < 1.0 && p > 0.99 { ">0.99".into() } else { format!("{p:.2}") }
}

/// How sure an edge and its direction are.
fn how_sure(edge: &Edge) -> String {
    let direction = match edge.direction {
        Direction::Certain => "direction certain".into(),
        Direction::Likely => format!("direction {}", share(edge.direction_confidence)),
        Direction::Undirected => "direction unknown".into(),
    };
    format!("edge {} · {direction}", share(edge.confidence))
}

/// A model in the picture.
struct Node {
    model: usize,
    depth: usize,
    /// Where its middle is, in half rows.
    y: i32,
}

/// The trees laid out: parents amid their children, leaves one a row.
struct Layout<'f> {
    family: &'f Family,
    nodes: Vec<Node>,
    /// The edge that a model hangs from.
    hangs: Vec<Option<&'f Edge>>,
    /// First free half row.
    next: i32,
}

impl<'f> Layout<'f> {
    fn of(family: &'f Family) -> Self {
        let mut hangs: Vec<Option<&Edge>> = vec![None; family.models.len()];
        for edge in &family.edges {
            let part = |edge: &Edge| edge.coefficient.map_or(0.0, f64::abs);
            // A merge hangs from what has most part in it.
            if hangs[edge.to].is_none_or(|known| part(edge) > part(known)) {
                hangs[edge.to] = Some(edge);
            }
        }
        let mut layout = Self { family, nodes: Vec::new(), hangs, next: 0 };
        for tree in family.trees.iter().filter(|tree| tree.models.len() > 1) {
            layout.place(tree.root);
            layout.next += 1;
        }
        layout
    }

    /// Places `root` and all that hangs from it, without recursion: a chain may be as long as there are models.
    fn place(&mut self, root: usize) {
        let children = |model: usize| -> Vec<usize> {
            let hangs = |&child: &usize| self.hangs[child].is_some_and(|edge| edge.from == model);
            (0..self.family.models.len()).filter(hangs).collect()
        };
        let mut order: Vec<(usize, usize, Vec<usize>)> = Vec::new();
        let mut open = vec![(root, 0)];
        while let Some((model, depth)) = open.pop() {
            let below = children(model);
            open.extend(below.iter().rev().map(|&child| (child, depth + 1)));
            order.push((model, depth, below));
        }
        let first = self.nodes.len();
        for (model, depth, below) in &order {
            let y = if below.is_empty() { self.next } else { 0 };
            self.next += if below.is_empty() { 2 } else { 0 };
            self.nodes.push(Node { model: *model, depth: (*depth).min(MOST_DEPTH - 1), y });
        }
        // Children come after their parents.
        for at in (0..order.len()).rev().filter(|&at| !order[at].2.is_empty()) {
            let y =
                |child: &usize| self.nodes[first..].iter().find(|node| node.model == *child).map_or(0, |node| node.y);
            let (low, high) = (order[at].2.iter().map(y).min(), order[at].2.iter().map(y).max());
            self.nodes[first + at].y = (low.unwrap_or(0) + high.unwrap_or(0)) / 2;
        }
    }
}

/// Draws `family`, as PNG or SVG by the file's ending.
///
/// # Errors
/// If the file cannot be written.
pub fn draw(path: &Path, family: &Family) -> Result<()> {
    register()?;
    let layout = Layout::of(family);
    let names = layout.nodes.iter().map(|node| family.models[node.model].name.chars().count().min(NAME)).max();
    let labels = family.edges.iter().map(|edge| what(edge).chars().count().max(how_sure(edge).chars().count()));
    let (name, label) = (names.unwrap_or(0) as i32, labels.max().unwrap_or(0).min(LABEL) as i32);
    let (name, label) = (name * CHARACTER + 20, label * 7 + 48);
    let depth = layout.nodes.iter().map(|node| node.depth).max().unwrap_or(0) as i32;
    let shown = layout.nodes.iter().filter(|node| node.y < 2 * MOST as i32).map(|node| node.y).max().unwrap_or(0);
    let alone = family.trees.iter().filter(|tree| tree.models.len() == 1).count().min(MOST);
    let height = 96 + (shown / 2 + 1) * ROW + ROW / 2 + if alone > 0 { 40 + 24 * alone as i32 } else { 0 } + MARGIN;
    let width = (2 * MARGIN + (depth + 1) * name + depth * label).max(900);
    let picture = Picture { layout, name, label, shown, alone };
    let size = (width as u32, height as u32);
    let drawn = if path.extension().is_some_and(|ending| ending == "svg") {
        picture.draw(&SVGBackend::new(path, size).into_drawing_area())
    } else {
        picture.draw(&BitMapBackend::new(path, size).into_drawing_area())
    };
    drawn.with_context(|| path.display().to_string())
}

struct Picture<'f> {
    layout: Layout<'f>,
    name: i32,
    label: i32,
    shown: i32,
    alone: usize,
}

struct Pen<'a, B: DrawingBackend>(&'a DrawingArea<B, Shift>);

impl<B: DrawingBackend> Pen<'_, B> {
    fn text(&self, text: impl Into<String>, at: (i32, i32), size: i32, colour: RGBColor) -> Result<()> {
        let style = ("sans-serif", size).into_font().color(&colour).pos(Pos::new(HPos::Left, VPos::Center));
        self.0.draw(&Text::new(text.into(), at, style)).map_err(fail)
    }

    fn line(&self, points: &[(i32, i32)], colour: RGBColor, width: u32, dashed: bool) -> Result<()> {
        for pair in points.windows(2) {
            let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
            let length = (x1 - x0).abs().max((y1 - y0).abs());
            let step = if dashed { 10 } else { length.max(1) };
            for from in (0..length).step_by(step as usize) {
                let to = (from + if dashed { 5 } else { step }).min(length);
                let at = |along: i32| (x0 + (x1 - x0) * along / length, y0 + (y1 - y0) * along / length);
                let style = colour.stroke_width(width);
                self.0.draw(&PathElement::new([at(from), at(to)], style)).map_err(fail)?;
            }
        }
        Ok(())
    }
}

impl Picture<'_> {
    fn x(&self, depth: usize) -> i32 {
        MARGIN + depth as i32 * (self.name + self.label)
    }

    fn draw<B: DrawingBackend>(&self, area: &DrawingArea<B, Shift>) -> Result<()> {
        area.fill(&WHITE).map_err(fail)?;
        let pen = Pen(area);
        let family = self.layout.family;
        let trees = family.trees.iter().filter(|tree| tree.models.len() > 1).count();
        let strangers = family.trees.len() - trees;
        let plural = |n: usize, noun: &str| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
        let title = format!(
            "{} in {}, {}",
            plural(family.models.len(), "model"),
            plural(trees, "tree"),
            plural(strangers, "stranger")
        );
        pen.text(title, (MARGIN, MARGIN + 8), 20, INK)?;
        let legend = "arrow: parent to child; thick if certain, dashed and without a head if the direction is unknown; thin dashed: a merge's other parents";
        pen.text(legend, (MARGIN, MARGIN + 36), 13, INK)?;
        let top = 96;
        let y = |node: &Node| top + node.y * ROW / 2 + ROW / 2;
        let drawn = || self.layout.nodes.iter().filter(|node| node.y <= self.shown);
        let find = |model: usize| drawn().find(|node| node.model == model);
        for node in drawn() {
            let Some(edge) = self.layout.hangs[node.model] else { continue };
            let Some(parent) = find(edge.from) else { continue };
            let (from, to) = (self.x(parent.depth) + self.name, self.x(node.depth));
            let colour = hue(edge.kind);
            let middle = from + 16;
            let unknown = edge.direction == Direction::Undirected;
            let width = if edge.direction == Direction::Certain { 3 } else { 2 };
            pen.line(
                &[(from, y(parent)), (middle, y(parent)), (middle, y(node)), (to - 2, y(node))],
                colour,
                width,
                unknown,
            )?;
            if !unknown {
                let head = [(to - 9, y(node) - 5), (to, y(node)), (to - 9, y(node) + 5)];
                area.draw(&Polygon::new(head.to_vec(), colour.filled())).map_err(fail)?;
            }
            pen.text(cut(&what(edge), LABEL), (middle + 8, y(node) - 10), 13, colour)?;
            pen.text(how_sure(edge), (middle + 8, y(node) + 11), 12, INK)?;
        }
        for edge in &family.edges {
            let hangs = self.layout.hangs[edge.to].is_some_and(|known| std::ptr::eq(known, edge));
            let (Some(from), Some(to), false) = (find(edge.from), find(edge.to), hangs) else { continue };
            let ends = ((self.x(from.depth) + self.name, y(from) + 6), (self.x(to.depth), y(to) + 6));
            pen.line(&[ends.0, ends.1], hue(edge.kind), 1, true)?;
        }
        for node in drawn() {
            let x = self.x(node.depth);
            let root = self.layout.hangs[node.model].is_none();
            let corners = [(x, y(node) - 14), (x + self.name, y(node) + 14)];
            let fill = if root { ROOT } else { BOX };
            area.draw(&Rectangle::new(corners, fill.filled())).map_err(fail)?;
            area.draw(&Rectangle::new(corners, RGBColor(150, 170, 185).stroke_width(1))).map_err(fail)?;
            pen.text(cut(&family.models[node.model].name, NAME), (x + 8, y(node)), 14, INK)?;
        }
        let mut bottom = top + (self.shown / 2 + 1) * ROW + ROW / 2;
        let hidden = self.layout.nodes.len() - drawn().count();
        if hidden > 0 {
            pen.text(format!("and {} not shown", plural(hidden, "more model")), (MARGIN, bottom - 12), 13, INK)?;
        }
        if self.alone > 0 {
            pen.text("No relative among these models:", (MARGIN, bottom + 12), 15, INK)?;
            bottom += 38;
            let alone = family.trees.iter().filter(|tree| tree.models.len() == 1);
            for tree in alone.take(self.alone) {
                let model = &family.models[tree.models[0]];
                let near = model.nearest.map_or(String::new(), |near| {
                    let name = cut(&family.models[near.model].name, NAME);
                    match near.common > 0.0 {
                        true => format!(" (nearest: {name}, correlation {:.3})", near.correlation),
                        false => " (no tensors of one name and shape with any other)".into(),
                    }
                });
                pen.text(format!("{}{near}", cut(&model.name, NAME)), (MARGIN + 8, bottom), 14, INK)?;
                bottom += 24;
            }
        }
        area.present().map_err(fail)
    }
}
