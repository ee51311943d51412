//! The plans of an EXPLAIN, as they are indented.

use std::io::{self, Write};

use arrow::datatypes::Schema;
use unicode_width::UnicodeWidthChar;

use crate::text::escaped;

/// Spaces before the rest of a line that is wrapped, beyond those of the line.
const HANGING: usize = 4;

/// Returns whether a result is what EXPLAIN answers.
pub(super) fn is_plan(schema: &Schema) -> bool {
    schema.fields().iter().map(|field| field.name().as_str()).eq(["plan_type", "plan"])
}

/// Writes the kind of a plan, and its lines below. A terminal of some columns gets lines that fit, and nothing is cut:
/// the end of a line tells what is read.
pub(super) fn write(cells: &[Option<String>], columns: Option<usize>, out: &mut impl Write) -> io::Result<()> {
    let mut cells = cells.iter().map(|cell| escaped(cell.as_deref().unwrap_or_default(), "\n"));
    writeln!(out, "{}", cells.next().unwrap_or_default())?;
    for cell in cells {
        for line in cell.lines() {
            let line = format!("  {line}");
            for part in wrapped(&line, columns.unwrap_or(usize::MAX)) {
                writeln!(out, "{part}")?;
            }
        }
    }
    Ok(())
}

/// Breaks a line behind spaces, commas and slashes, or where it must.
fn wrapped(line: &str, columns: usize) -> Vec<String> {
    // Deep plans keep half of the terminal for their text.
    let most = columns / 2;
    let mut rest = line.trim_start_matches(' ');
    let indent = line.len() - rest.len();
    let (first, hanging) = (indent.min(most), (indent + HANGING).min(most));
    let mut lines: Vec<String> = Vec::new();
    loop {
        let spaces = if lines.is_empty() { first } else { hanging };
        let end = too_long(rest, columns.saturating_sub(spaces));
        let cut = match end {
            // Not even one character fits.
            None | Some(0) => rest.len(),
            Some(end) => rest[..end].rfind([' ', ',', '/']).map_or(end, |at| at + 1),
        };
        lines.push(format!("{}{}", " ".repeat(spaces), rest[..cut].trim_end()));
        rest = rest[cut..].trim_start();
        if rest.is_empty() {
            return lines;
        }
    }
}

/// Returns the end of the characters that fit; `None` if all of them do.
fn too_long(line: &str, columns: usize) -> Option<usize> {
    let mut width = 0;
    for (at, c) in line.char_indices() {
        width += c.width().unwrap_or(0);
        if width > columns {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_and_lose_nothing() {
        let line = "      DataSourceExec: file_groups={1 group: [[lake/sync_records/pool=a/part-東.parquet, lake/b.parquet]]}, x";
        for columns in [20, 40, 80] {
            let lines = wrapped(line, columns);
            assert!(lines.iter().all(|line| too_long(line, columns).is_none()), "{columns}: {lines:#?}");
            let text = |lines: &[String]| lines.concat().replace(' ', "");
            assert_eq!(text(&lines), text(&[line.to_owned()]), "{columns}");
        }
        assert_eq!(wrapped(line, usize::MAX), [line]);
        assert_eq!(wrapped("  a, b", 6), ["  a, b"]);
    }
}
