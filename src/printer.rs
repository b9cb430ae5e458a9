//! stdout is data, stderr is talk. The only file that prints.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// Prints `error` and the chain of its causes.
pub fn error(error: &anyhow::Error) {
    eprintln!("error: {}", sentence(error));
}

/// `error` and the chain of its causes in one line. Names from files and paths may hold line ends and the terminal's
/// control sequences; they are shown escaped.
pub fn sentence(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // A wrapper that only repeats its cause adds nothing.
        if !line.ends_with(&cause) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&cause);
        }
    }
    plain(&line)
}

/// `text` with control characters escaped: what a file calls its tensors may hold line ends and the terminal's control
/// sequences.
pub fn plain(text: &str) -> String {
    escaped(text, "")
}

/// `text` with control characters escaped but those in `kept`.
fn escaped(text: &str, kept: &str) -> String {
    let shown = |c: char| match c.is_control() && !kept.contains(c) {
        true => c.escape_default().to_string(),
        false => c.into(),
    };
    text.chars().map(shown).collect()
}

/// Control characters of texts of several lines.
const LAYOUT: &str = "\n\t";

/// A line of talk.
pub fn say(line: impl AsRef<str>) {
    eprintln!("{}", escaped(line.as_ref(), LAYOUT));
}

/// A warning.
pub fn warn(line: impl AsRef<str>) {
    eprintln!("warning: {}", escaped(line.as_ref(), LAYOUT));
}

/// A line of data, or several. A closed pipe ends the program quietly.
pub fn data(line: impl AsRef<str>) {
    raw(&escaped(line.as_ref(), LAYOUT));
}

/// A line as it is.
fn raw(line: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").is_err() {
        std::process::exit(0);
    }
}

/// Data without a line end, at once.
pub fn data_now(text: &str) {
    let mut out = std::io::stdout().lock();
    if write!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Data as JSON.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    raw(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Data as JSON in one line.
pub fn json_line<T: Serialize + ?Sized>(value: &T) -> anyhow::Result<()> {
    raw(&serde_json::to_string(value)?);
    Ok(())
}

/// A table whose columns are as wide as their widest cell; columns of numbers are right-aligned, others left. Control
/// characters in cells are escaped.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads.
    pub fn new<const N: usize>(heads: [&str; N]) -> Self {
        Self { rows: vec![heads.iter().map(|head| (*head).to_string()).collect()] }
    }

    /// A table of these rows, the first of them the heads.
    pub fn of(rows: Vec<Vec<String>>) -> Self {
        Self { rows: rows.into_iter().map(cells_of).collect() }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells_of(cells));
    }

    /// Prints the table as data.
    pub fn print(&self) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let is_number = |cell: &String| cell.starts_with(|c: char| c.is_ascii_digit() || c == '-');
        let numbers: Vec<bool> = (0..columns)
            .map(|column| column > 0 && self.rows[1..].iter().filter_map(|row| row.get(column)).all(is_number))
            .collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let gap = " ".repeat(widths[column] - cell.chars().count());
                let space = if column > 0 { "  " } else { "" };
                match numbers[column] {
                    true => line.push_str(&format!("{space}{gap}{cell}")),
                    false => line.push_str(&format!("{space}{cell}{gap}")),
                }
            }
            data(line.trim_end());
        }
    }
}

fn cells_of(cells: impl IntoIterator<Item = String>) -> Vec<String> {
    cells.into_iter().map(|cell| plain(&cell)).collect()
}

/// Progress of long work on stderr: a bar with an ETA on a terminal, a line every ten seconds elsewhere.
pub struct Progress {
    bar: Option<ProgressBar>,
    label: String,
    total: u64,
    in_bytes: bool,
    started: Instant,
    told: Instant,
}

impl Progress {
    /// Starts counting to `total`.
    pub fn new(label: &str, total: u64) -> Self {
        Self::counting(label, total, "{prefix} {wide_bar} {pos}/{len} {msg} eta {eta}", false)
    }

    /// Starts counting to `total` bytes, which are shown in larger units.
    pub fn bytes(label: &str, total: u64) -> Self {
        let template = "{prefix} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {msg} eta {eta}";
        Self::counting(label, total, template, true)
    }

    fn counting(label: &str, total: u64, template: &'static str, in_bytes: bool) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total);
            let style = ProgressStyle::with_template(template);
            bar.set_style(style.expect("the template is constant and valid"));
            bar.set_prefix(plain(label));
            bar
        });
        let now = Instant::now();
        Self { bar, label: plain(label), total, in_bytes, started: now, told: now }
    }

    /// `done` of the total are done.
    pub fn at(&mut self, done: u64, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(plain(message));
        } else if self.told.elapsed() > Duration::from_secs(10) && done > 0 {
            self.told = Instant::now();
            let left = self.started.elapsed().as_secs_f64() * (self.total.saturating_sub(done)) as f64 / done as f64;
            let shown = |count: u64| match self.in_bytes {
                true => format!("{:.1} MB", count as f64 / 1e6),
                false => count.to_string(),
            };
            let message = plain(message);
            eprintln!("{} {}/{} {message} eta {left:.0}s", self.label, shown(done), shown(self.total));
        }
    }

    /// Ends the bar.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_reach_the_terminal_as_commands() {
        assert_eq!(plain("q\u{1b}]0;t\u{7}\r\nerror: é"), r"q\u{1b}]0;t\u{7}\r\nerror: é");
        assert_eq!(escaped("a\tb\nc\u{9b}2J", LAYOUT), "a\tb\nc\\u{9b}2J");
        let mut table = Table::new(["tensor"]);
        table.row(["w\u{1b}[2J".into()]);
        assert_eq!(table.rows[1], [r"w\u{1b}[2J"]);
    }
}
