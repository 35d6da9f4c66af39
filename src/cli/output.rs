//! What the commands show: tables, JSON, progress.

use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::time::Duration;

use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use serde::Serialize;

use crate::amounts::Bytes;
use crate::amounts::Span;
use crate::amounts::Time;
use crate::clock::Clock;

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// Writes a line to the standard output.
pub(crate) fn line(text: impl AsRef<str>) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", text.as_ref())
}

/// Writes text to the standard output at once.
pub(crate) fn piece(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes a line to the standard error output, if it is still there.
pub(crate) fn note(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr().lock(), "{}", text.as_ref());
}

/// Writes a value as JSON to the standard output.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    Ok(line(serde_json::to_string_pretty(value)?)?)
}

/// Rows under headings, each column as wide as its widest cell; columns of amounts to the right.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..headings.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let amounts: Vec<bool> = (0..headings.len())
        .map(|column| rows.iter().filter_map(|row| row.get(column)).all(|cell| cell.is_empty() || is_amount(cell)))
        .collect();
    let headings = headings.iter().map(|heading| (*heading).to_owned()).collect::<Vec<_>>();
    let lines = std::iter::once(&headings).chain(rows).map(|row| {
        let cells = row.iter().zip(widths.iter().zip(&amounts)).map(|(cell, (&width, &to_the_right))| {
            if to_the_right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Whether a cell is a number, with or without a unit.
fn is_amount(cell: &str) -> bool {
    let number = cell.split(' ').next().unwrap_or_default();
    !number.is_empty()
        && number.chars().all(|character| character.is_ascii_digit() || character == '.')
        && !number.contains("..")
}

/// The first digits of a key or id, enough to tell them apart and to name a model by.
pub(crate) fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

/// A number of microseconds as people read it.
pub(crate) fn micros(micros: u64) -> String {
    Span(micros).to_string()
}

/// How long something may take before it is said that it does.
const PATIENCE: Span = Span::seconds(1);

/// Says what is waited for once it takes a while: a spinner on a terminal, else a line for each change.
#[derive(Debug)]
pub(crate) struct Waiting {
    bar: ProgressBar,
    clock: Clock,
    said: String,
}

impl Waiting {
    pub(crate) fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        Self { bar, clock: Clock::start(), said: String::new() }
    }

    /// Says it at once, for what is known to take a while.
    pub(crate) fn saying(text: impl Into<String>) -> Self {
        let mut waiting = Self::new();
        waiting.say_at_once(text.into());
        waiting
    }

    pub(crate) fn say(&mut self, text: impl Into<String>) {
        let text = text.into();
        if text != self.said && self.clock.now().since(Time::ZERO) >= PATIENCE {
            self.say_at_once(text);
        }
    }

    fn say_at_once(&mut self, text: String) {
        if io::stderr().is_terminal() {
            self.bar.enable_steady_tick(TICK);
            self.bar.set_message(text.clone());
        } else {
            note(&text);
        }
        self.said = text;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Shows how far something of a known size is, on a terminal.
#[derive(Debug)]
pub(crate) struct Filling {
    bar: ProgressBar,
}

impl Filling {
    pub(crate) fn new(what: &'static str) -> Self {
        let bar = ProgressBar::new(0).with_message(what);
        let style = ProgressStyle::with_template("{msg} {bar:40} {binary_bytes} of {binary_total_bytes}, {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar }
    }

    pub(crate) fn fill(&self, done: Bytes, total: Bytes) {
        self.bar.set_length(total.0);
        self.bar.set_position(done.0);
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_table_lines_up_words_left_and_amounts_right() {
        let rows = [
            vec!["a".to_owned(), "0..3".to_owned(), "12.5 KiB".to_owned()],
            vec!["longer".to_owned(), "3..10".to_owned(), "7 B".to_owned()],
        ];

        let table = table(&["peer", "units", "bytes"], &rows);

        expect![[r#"
            peer    units     bytes
            a       0..3   12.5 KiB
            longer  3..10       7 B"#]]
        .assert_eq(&table);
    }
}
