//! Ruled tables for people: the first rows decide the widths, and a terminal shows only what fits on it.

use std::io::{self, Write};

use unicode_width::UnicodeWidthStr;

use super::fitted::{self, Fit, Slot};

/// Number of rows that decide the column widths; later rows use the same widths.
const SAMPLE_ROWS: usize = 1_000;
/// Widest column; longer cells extend beyond it.
const CELL_CHARS_MAX: usize = 120;

/// A table that is being written.
pub(super) struct Table {
    is_markdown: bool,
    fit: Option<Fit>,
    names: Vec<String>,
    /// Whether a column stands at the right, as numbers do.
    is_right: Vec<bool>,
    phase: Phase,
    /// Rows that were written.
    shown: usize,
}

enum Phase {
    /// The cells of the first rows, before the widths are known.
    Sampling(Vec<Vec<String>>),
    Ruled(Vec<Slot>),
}

impl Table {
    pub(super) fn new(is_markdown: bool, fit: Option<Fit>, columns: Vec<(String, bool)>) -> Self {
        let fit = fit.filter(|_| !is_markdown);
        let (names, is_right) = columns.into_iter().map(|(name, is_right)| (name, is_right && !is_markdown)).unzip();
        Self { is_markdown, fit, names, is_right, phase: Phase::Sampling(Vec::new()), shown: 0 }
    }

    fn rows_max(&self) -> usize {
        self.fit.map_or(usize::MAX, |fit| fit.rows)
    }

    fn sample_rows(&self) -> usize {
        self.rows_max().min(SAMPLE_ROWS)
    }

    /// Returns whether so many more rows make the table write something.
    pub(super) fn is_writing(&self, rows: usize) -> bool {
        match &self.phase {
            Phase::Sampling(sample) => sample.len() + rows >= self.sample_rows(),
            Phase::Ruled(_) => !self.is_full(),
        }
    }

    /// Returns whether as many rows were written as are to be shown.
    pub(super) fn is_full(&self) -> bool {
        matches!(self.phase, Phase::Ruled(_)) && self.shown >= self.rows_max()
    }

    pub(super) fn row(&mut self, cells: Vec<String>, out: &mut impl Write) -> io::Result<()> {
        if self.is_full() {
            return Ok(());
        }
        let sample_rows = self.sample_rows();
        match &mut self.phase {
            Phase::Sampling(sample) => {
                sample.push(cells);
                if sample.len() >= sample_rows {
                    self.rule(out)?;
                }
                Ok(())
            }
            Phase::Ruled(slots) => {
                self.shown += 1;
                line(self.is_markdown, self.fit.is_some(), &cells, slots, &self.is_right, out)
            }
        }
    }

    /// Fixes the widths, and writes the head and the sample rows.
    fn rule(&mut self, out: &mut impl Write) -> io::Result<()> {
        let Phase::Sampling(sample) = &mut self.phase else { return Ok(()) };
        let sample = std::mem::take(sample);
        let widths = self.names.iter().enumerate().map(|(column, name)| {
            let cells = sample.iter().map(|row| row[column].width());
            cells.chain([name.width(), 3]).max().unwrap_or(3).min(CELL_CHARS_MAX)
        });
        let widths: Vec<usize> = widths.collect();
        let slots = match self.fit {
            Some(fit) => fitted::layout(&widths, fit.columns),
            None => widths.into_iter().enumerate().map(|(column, width)| Slot::Column(column, width)).collect(),
        };
        let (is_markdown, is_fitted) = (self.is_markdown, self.fit.is_some());
        if !is_markdown {
            border(&slots, out)?;
        }
        line(is_markdown, is_fitted, &self.names, &slots, &self.is_right, out)?;
        match is_markdown {
            false => border(&slots, out)?,
            true => writeln!(out, "|{}|", dashes(&slots).join("|"))?,
        }
        for row in &sample {
            line(is_markdown, is_fitted, row, &slots, &self.is_right, out)?;
        }
        self.shown = sample.len();
        self.phase = Phase::Ruled(slots);
        Ok(())
    }

    /// Writes the end of a table of a result of `rows` rows.
    pub(super) fn finish(&mut self, rows: usize, out: &mut impl Write) -> io::Result<()> {
        self.rule(out)?;
        let Phase::Ruled(slots) = &self.phase else { return Ok(()) };
        if !self.is_markdown {
            border(slots, out)?;
        }
        let columns = slots.iter().filter(|slot| **slot != Slot::Gap).count();
        let mut parts = Vec::new();
        if self.shown < rows {
            parts.push(format!("{rows} rows, {} shown (\\all shows all)", self.shown));
        }
        if columns < self.names.len() {
            parts.push(format!("{} columns, {columns} shown (\\x shows a line a column)", self.names.len()));
        }
        match parts.is_empty() {
            true => Ok(()),
            false => writeln!(out, "{}", parts.join("; ")),
        }
    }
}

fn dashes(slots: &[Slot]) -> Vec<String> {
    slots.iter().map(|slot| "-".repeat(slot.width() + 2)).collect()
}

fn border(slots: &[Slot], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "+{}+", dashes(slots).join("+"))
}

fn line(
    is_markdown: bool,
    is_fitted: bool,
    cells: &[String],
    slots: &[Slot],
    is_right: &[bool],
    out: &mut impl Write,
) -> io::Result<()> {
    for slot in slots {
        let cell = match slot {
            Slot::Gap => "…".to_owned(),
            Slot::Column(column, _) if is_markdown => {
                cells[*column].replace('\\', "\\\\").replace('|', "\\|").replace('\n', "<br>")
            }
            Slot::Column(column, width) if is_fitted => fitted::cut(&cells[*column], *width),
            Slot::Column(column, _) => cells[*column].clone(),
        };
        let pad = " ".repeat(slot.width().saturating_sub(cell.width()));
        match slot {
            Slot::Column(column, _) if is_right[*column] => write!(out, "| {pad}{cell} ")?,
            _ => write!(out, "| {cell}{pad} ")?,
        }
    }
    writeln!(out, "|")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(fit: Fit, rows: usize) -> Vec<String> {
        let mut table = Table::new(false, Some(fit), vec![("n".to_owned(), true), ("text".to_owned(), false)]);
        let mut out = Vec::new();
        for n in 0..rows {
            table.row(vec![n.to_string(), "x".repeat(200)], &mut out).unwrap();
        }
        table.finish(rows, &mut out).unwrap();
        String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_terminal_shows_the_first_rows_and_counts_the_others() {
        let lines = printed(Fit { columns: 30, rows: 3 }, 5);
        assert_eq!(lines.len(), 3 + 3 + 2, "{lines:?}");
        assert!(lines.iter().take(7).all(|line| line.width() == 30), "{lines:?}");
        assert!(lines[3].ends_with("x… |"), "{lines:?}");
        assert_eq!(lines[7], "5 rows, 3 shown (\\all shows all)");
        assert_eq!(printed(Fit { columns: 30, rows: 3 }, 3).len(), 3 + 3 + 1);
        assert_eq!(printed(Fit { columns: 30, rows: usize::MAX }, 1_500).len(), 1_500 + 4);
    }
}
