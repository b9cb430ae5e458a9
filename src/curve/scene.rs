//! What a plot is made of, before anybody paints it: the pictures and the page draw the same scenes.

/// Colours by what they stand for; each painter has its own for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ink {
    /// Words.
    Text,
    /// Words of less weight.
    Faint,
    /// Lines of a grid.
    Rule,
    /// The model before compression.
    Dense,
    /// The series of this number.
    Series(usize),
    /// Results of others.
    Published,
}

/// Colours that stay apart for colour-blind readers too (Okabe & Ito 2008, its yellow darkened to be seen on white).
pub const COLOURS: [(u8, u8, u8); 7] =
    [(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (150, 130, 0)];

/// How many shapes of points there are.
pub const GLYPHS: usize = 7;

/// The shape of the points of a series: as long as possible, no two series have both colour and shape in common.
pub fn glyph_of(series: usize) -> usize {
    (series + series / COLOURS.len()) % GLYPHS
}

/// The corners of a shape of this radius around the origin. All shapes have about the same area.
pub fn glyph(kind: usize, radius: f64) -> Vec<(f64, f64)> {
    let regular = |corners: usize, turn: f64, scale: f64| {
        let corner = move |at: usize| {
            let angle = std::f64::consts::TAU * (at as f64 / corners as f64 + turn) - std::f64::consts::FRAC_PI_2;
            (radius * scale * angle.cos(), radius * scale * angle.sin())
        };
        (0..corners).map(corner).collect()
    };
    match kind % GLYPHS {
        0 => regular(32, 0.0, 1.0),
        1 => regular(4, 0.125, 1.25),
        2 => regular(3, 0.0, 1.4),
        3 => regular(4, 0.0, 1.35),
        4 => regular(3, 0.5, 1.4),
        5 => regular(5, 0.0, 1.2),
        _ => regular(6, 0.0, 1.15).into_iter().map(|(x, y): (f64, f64)| (x * 0.62, y * 1.25)).collect(),
    }
}

/// Where a text begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// At its left end.
    Start,
    /// In its middle.
    Middle,
    /// At its right end.
    End,
}

/// Something drawn; later ones lie on top.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// A filled polygon.
    Area {
        /// Its corners.
        points: Vec<(f64, f64)>,
        /// Its colour.
        ink: Ink,
        /// 0 clear, 1 solid.
        opacity: f64,
    },
    /// A line through points.
    Line {
        /// Its corners.
        points: Vec<(f64, f64)>,
        /// Its colour.
        ink: Ink,
        /// Its width.
        width: f64,
        /// Lengths of dashes and of the gaps between them.
        dash: Option<(f64, f64)>,
    },
    /// The mark of a series, in a label.
    Glyph {
        /// Its middle.
        at: (f64, f64),
        /// See [`glyph`].
        glyph: usize,
        /// About half its width.
        radius: f64,
        /// Its colour.
        ink: Ink,
    },
    /// One line of words.
    Text {
        /// Its anchor, in the middle of its height.
        at: (f64, f64),
        /// The words.
        text: String,
        /// Height of the font.
        size: f64,
        /// Its colour.
        ink: Ink,
        /// Which end `at` is.
        anchor: Anchor,
    },
}

/// A value that says more of itself when pointed at.
#[derive(Debug, Clone, PartialEq)]
pub struct Spot {
    /// Where.
    pub at: (f64, f64),
    /// See [`glyph`].
    pub glyph: usize,
    /// About half its width.
    pub radius: f64,
    /// Its colour.
    pub ink: Ink,
    /// An outline alone: the value is not to be compared.
    pub hollow: bool,
    /// Which point it shows: the same name in every panel.
    pub name: String,
    /// Number of its line, from 0.
    pub line: usize,
    /// What it says, line by line; the first is a heading.
    pub tip: Vec<String>,
}

/// A plot without its heading.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scene {
    /// Its width.
    pub width: f64,
    /// Its height.
    pub height: f64,
    /// What lies below the spots.
    pub shapes: Vec<Shape>,
    /// The values, line by line from left to right.
    pub spots: Vec<Spot>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_series_differ_in_colour_or_shape() {
        let looks: std::collections::HashSet<_> = (0..42).map(|n| (n % COLOURS.len(), glyph_of(n))).collect();
        assert_eq!(looks.len(), 42);
    }

    #[test]
    fn shapes_have_about_the_same_area() {
        for kind in 0..GLYPHS {
            let corners = glyph(kind, 1.0);
            let twice: f64 = (0..corners.len())
                .map(|at| (corners[at], corners[(at + 1) % corners.len()]))
                .map(|((x, y), (u, v))| x * v - u * y)
                .sum();
            assert!((2.2..4.0).contains(&(twice.abs() / 2.0)), "shape {kind} has an area of {}", twice.abs() / 2.0);
        }
    }
}
