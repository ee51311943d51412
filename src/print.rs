//! Results as text, Parquet or Arrow, written batch by batch: no format holds a whole result in memory.

use std::io::{self, Write};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use unicode_width::UnicodeWidthStr;

use crate::text::{escaped, steers};

mod binary;
mod fitted;
mod plan;
mod spelled;
mod table;

use binary::Binary;
pub use fitted::Fit;
use table::Table;

/// Extensions of files that hold a table for people.
const TEXT_EXTENSIONS: [&str; 5] = ["txt", "text", "out", "log", "table"];

/// Output format of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Ruled columns, for people.
    Table,
    /// RFC 4180; null is empty, the empty string is `""`.
    Csv,
    /// As PostgreSQL's COPY: null is `\N`, tab and line break are `\t` and `\n`.
    Tsv,
    /// One array of objects.
    Json,
    /// An object a line.
    Ndjson,
    /// A Markdown table.
    Markdown,
    /// A line a column.
    Vertical,
    /// The exact form, with types.
    Parquet,
    /// Arrow IPC, with types: the file format in a file, the stream format elsewhere.
    Arrow,
}

impl Format {
    /// Returns the format that the extension of a file's name stands for, if it stands for one.
    pub fn of_name(name: &str) -> Option<Self> {
        let (_, extension) = name.rsplit_once('.')?;
        Some(match extension.to_ascii_lowercase().as_str() {
            "csv" => Self::Csv,
            "tsv" => Self::Tsv,
            "json" => Self::Json,
            "ndjson" | "jsonl" => Self::Ndjson,
            "md" | "markdown" => Self::Markdown,
            "parquet" => Self::Parquet,
            "arrow" | "arrows" | "ipc" | "feather" => Self::Arrow,
            _ => return None,
        })
    }

    /// Checks that the extension of a file's name stands for a format, or for none: a table in a file with the name of
    /// another format would be a surprise to whoever opens it.
    ///
    /// # Errors
    /// Returns what to do.
    pub fn check_name(name: &str) -> Result<(), String> {
        let file = name.rsplit('/').next().unwrap_or(name);
        let extension = file.trim_start_matches('.').rsplit_once('.').map_or("", |(_, extension)| extension);
        // A version or a date has no letter at its beginning.
        let is_name = extension.starts_with(|c: char| c.is_ascii_alphabetic());
        let is_text = TEXT_EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str());
        match is_name && !is_text && Self::of_name(name).is_none() {
            true => Err(format!("{name:?}: .{extension} stands for no format; choose one with --format or \\format")),
            false => Ok(()),
        }
    }

    /// Returns whether results are bytes that no terminal shows.
    pub fn is_binary(self) -> bool {
        matches!(self, Self::Parquet | Self::Arrow)
    }

    /// Returns whether a file can hold one result only.
    pub fn holds_one_result(self) -> bool {
        matches!(self, Self::Parquet | Self::Arrow | Self::Json)
    }

    /// Returns the name that a user writes.
    pub fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Options for writing cells.
#[derive(Debug, Clone, Copy, Default)]
pub struct Style {
    /// Whether control characters stay as they are.
    pub raw: bool,
    /// Whether the output is a terminal. Then control characters, which steer it, are written only if `raw` is set.
    pub is_terminal: bool,
    /// Whether CSV text that a spreadsheet would read as a formula gets a `'` before it.
    pub guards_formulas: bool,
    /// Whether CSV begins with a byte order mark, which tells Excel that it is UTF-8.
    pub has_bom: bool,
    /// Whether the output is a pipe or a terminal, whose reader cannot seek.
    pub is_stream: bool,
    /// What a table shows of the result; `None` for all of it.
    pub fit: Option<Fit>,
}

impl Style {
    /// Style for a file, or for a program that reads the output.
    pub const EXACT: Self =
        Self { raw: true, is_terminal: false, guards_formulas: false, has_bom: false, is_stream: false, fit: None };
}

/// Checks that a format can hold a result of these columns.
///
/// # Errors
/// Two columns have one name, and the format identifies columns by name.
pub fn distinct_names(format: Format, schema: &Schema) -> Result<(), String> {
    if !matches!(format, Format::Json | Format::Ndjson | Format::Parquet | Format::Arrow) {
        return Ok(());
    }
    let mut seen = std::collections::HashSet::new();
    match schema.fields().iter().find(|field| !seen.insert(field.name())) {
        None => Ok(()),
        Some(field) => {
            let name = field.name();
            Err(format!("two columns are named {name:?}, which this format cannot tell apart; name them with AS"))
        }
    }
}

/// First characters of text that a spreadsheet reads as a formula.
const FORMULAS: [char; 6] = ['=', '+', '-', '@', '\t', '\r'];

/// A writer for one result.
pub struct Printer<W: Write + Send> {
    format: Format,
    style: Style,
    schema: SchemaRef,
    out: W,
    rows: usize,
    state: State,
}

type JsonEncoder = Box<dyn FnMut(&mut Vec<u8>, &RecordBatch) -> Result<(), ArrowError> + Send>;

enum State {
    Text,
    /// The plan of an EXPLAIN, as it is indented.
    Plan,
    Table(Table),
    Json(JsonEncoder),
    Binary(Binary),
}

fn options() -> FormatOptions<'static> {
    FormatOptions::default().with_display_error(false)
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::other(error)
}

impl<W: Write + Send> Printer<W> {
    /// Creates a printer for results of `schema`.
    ///
    /// # Errors
    /// A binary format cannot hold a column's type, or writing fails.
    pub fn new(format: Format, style: Style, schema: SchemaRef, out: W) -> io::Result<Self> {
        let state = match format {
            Format::Table if plan::is_plan(&schema) => State::Plan,
            Format::Table | Format::Markdown => {
                let columns = schema.fields().iter();
                let columns = columns.map(|f| (shown(Some(f.name().clone()), false), f.data_type().is_numeric()));
                State::Table(Table::new(format == Format::Markdown, style.fit, columns.collect()))
            }
            Format::Json => json_state::<arrow::json::writer::JsonArray>(),
            Format::Ndjson => json_state::<arrow::json::writer::LineDelimited>(),
            Format::Parquet => State::Binary(Binary::parquet(&schema).map_err(other)?),
            Format::Arrow if style.is_stream => State::Binary(Binary::arrow_stream(&schema).map_err(other)?),
            Format::Arrow => State::Binary(Binary::arrow_file(&schema).map_err(other)?),
            Format::Csv | Format::Tsv | Format::Vertical => State::Text,
        };
        let mut printer = Self { format, style, schema, out, rows: 0, state };
        if matches!(format, Format::Csv | Format::Tsv) {
            if format == Format::Csv && style.has_bom {
                printer.out.write_all("\u{feff}".as_bytes())?;
            }
            let guarded = |name: &String| match style.guards_formulas && name.starts_with(FORMULAS) {
                true => format!("'{name}"),
                false => name.clone(),
            };
            let names: Vec<_> = printer.schema.fields().iter().map(|f| Some(guarded(f.name()))).collect();
            printer.separated(&names)?;
        }
        Ok(printer)
    }

    /// Returns whether the next batch, of so many rows, makes the printer write something.
    pub fn is_writing(&self, rows: usize) -> bool {
        match &self.state {
            State::Table(table) => table.is_writing(rows),
            _ => true,
        }
    }

    /// Writes a batch.
    ///
    /// # Errors
    /// Writing fails.
    pub fn write(&mut self, batch: &RecordBatch) -> io::Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        if matches!(&self.state, State::Table(table) if table.is_full()) {
            self.rows += batch.num_rows();
            return Ok(());
        }
        if let State::Binary(binary) = &mut self.state {
            binary.write(batch, &mut self.out)?;
            self.rows += batch.num_rows();
            return Ok(());
        }
        let batch = &spelled::batch(batch).map_err(other)?;
        match &mut self.state {
            State::Json(encode) => {
                let mut buffer = Vec::new();
                encode(&mut buffer, batch).map_err(other)?;
                if self.style.is_terminal && !self.style.raw {
                    buffer = escaped_json(&buffer);
                }
                self.out.write_all(&buffer)?;
            }
            State::Binary(_) => {}
            State::Text | State::Plan | State::Table(_) => {
                let options = options();
                let columns = batch.columns().iter().map(unnested).collect::<Result<Vec<_>, _>>().map_err(other)?;
                let columns: Vec<_> = columns
                    .iter()
                    .map(|column| {
                        ArrayFormatter::try_new(column.as_ref(), &options).map(|f| (column.logical_nulls(), f))
                    })
                    .collect::<Result<_, _>>()
                    .map_err(other)?;
                for row in 0..batch.num_rows() {
                    // A value that cannot be formatted is an error; error text must not appear among the data.
                    let cells = columns
                        .iter()
                        .map(|(nulls, f)| {
                            let is_null = nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
                            (!is_null).then(|| f.value(row).try_to_string()).transpose()
                        })
                        .collect::<Result<Vec<Option<String>>, _>>()
                        .map_err(other)?;
                    self.row(cells, self.rows + row + 1)?;
                }
            }
        }
        self.rows += batch.num_rows();
        Ok(())
    }

    fn row(&mut self, cells: Vec<Option<String>>, number: usize) -> io::Result<()> {
        match self.format {
            Format::Csv | Format::Tsv => return self.separated(&cells),
            Format::Vertical => {
                let raw = self.style.raw;
                let names: Vec<String> =
                    self.schema.fields().iter().map(|field| shown(Some(field.name().clone()), raw)).collect();
                let width = names.iter().map(|name| name.width()).max().unwrap_or(0);
                writeln!(self.out, "-[ row {number} ]{}", "-".repeat(40))?;
                for (name, cell) in names.iter().zip(cells) {
                    writeln!(self.out, "{name:width$} | {}", shown(cell, raw))?;
                }
                return Ok(());
            }
            _ => {}
        }
        if matches!(self.state, State::Plan) {
            return plan::write(&cells, self.style.fit.map(|fit| fit.columns), &mut self.out);
        }
        let raw = self.style.raw;
        let cells: Vec<String> = cells.into_iter().map(|cell| shown(cell, raw)).collect();
        match &mut self.state {
            State::Table(table) => table.row(cells, &mut self.out),
            _ => Ok(()),
        }
    }

    fn separated(&mut self, cells: &[Option<String>]) -> io::Result<()> {
        let steers = self.style.is_terminal && !self.style.raw;
        let cells = cells.iter().zip(self.schema.fields()).map(|(cell, field)| {
            let cell = cell.as_ref().map(|cell| if steers { escaped(cell, "\n") } else { cell.clone() });
            let is_text = matches!(field.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
            match cell {
                Some(text) if self.style.guards_formulas && is_text && text.starts_with(FORMULAS) => {
                    Some(format!("'{text}"))
                }
                cell => cell,
            }
        });
        let (separator, line) = match self.format {
            Format::Csv => (",", cells.map(|c| csv_cell(c.as_deref())).collect::<Vec<_>>()),
            _ => ("\t", cells.map(|c| tsv_cell(c.as_deref())).collect()),
        };
        writeln!(self.out, "{}", line.join(separator))
    }

    /// Returns what the printer writes to.
    pub fn out(&mut self) -> &mut W {
        &mut self.out
    }

    /// Returns what the printer wrote to.
    pub fn into_out(self) -> W {
        self.out
    }

    /// Ends the result and returns its number of rows.
    ///
    /// # Errors
    /// Writing fails.
    pub fn finish(&mut self) -> io::Result<usize> {
        match &mut self.state {
            State::Table(table) => table.finish(self.rows, &mut self.out)?,
            State::Json(_) if self.rows == 0 && self.format == Format::Json => self.out.write_all(b"[]\n")?,
            State::Json(_) if self.format == Format::Json => self.out.write_all(b"]\n")?,
            State::Binary(binary) => binary.finish(&mut self.out)?,
            _ => {}
        }
        self.out.flush()?;
        Ok(self.rows)
    }
}

/// Returns an encoder on arrow's JSON writer. It takes one batch at a time, so that its output can be passed on.
fn json_state<F: arrow::json::writer::JsonFormat + Send + 'static>() -> State {
    let is_array = std::any::type_name::<F>().ends_with("JsonArray");
    let mut first = true;
    State::Json(Box::new(move |out, batch| {
        let builder = arrow::json::WriterBuilder::new().with_explicit_nulls(true);
        let mut lines = builder.build::<_, arrow::json::writer::LineDelimited>(Vec::new());
        lines.write(batch)?;
        lines.finish()?;
        let lines = lines.into_inner();
        if !is_array {
            out.extend_from_slice(&lines);
            return Ok(());
        }
        for line in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            out.extend_from_slice(if first { b"[" } else { b",\n" });
            out.extend_from_slice(line);
            first = false;
        }
        Ok(())
    }))
}

/// Converts lists and structs to JSON, which distinguishes text from separators, and NULL from text.
fn unnested(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    if !column.data_type().is_nested() {
        return Ok(column.clone());
    }
    let field = Field::new("", column.data_type().clone(), true);
    let batch = RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![column.clone()])?;
    let builder = arrow::json::WriterBuilder::new().with_explicit_nulls(true);
    let mut lines = builder.build::<_, arrow::json::writer::LineDelimited>(Vec::new());
    lines.write(&batch)?;
    lines.finish()?;
    let lines = String::from_utf8(lines.into_inner()).map_err(|e| ArrowError::JsonError(e.to_string()))?;
    let nulls = column.logical_nulls();
    let cell = |(row, line): (usize, &'_ str)| {
        let json = line.strip_prefix("{\"\":").and_then(|rest| rest.strip_suffix('}')).unwrap_or(line);
        nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)).then(|| json.to_owned())
    };
    Ok(Arc::new(lines.lines().enumerate().map(cell).collect::<StringArray>()))
}

fn csv_cell(cell: Option<&str>) -> String {
    match cell {
        None => String::new(),
        Some(text) if text.is_empty() || text.contains(['"', ',', '\n', '\r']) => {
            format!("\"{}\"", text.replace('"', "\"\""))
        }
        Some(text) => text.to_owned(),
    }
}

fn tsv_cell(cell: Option<&str>) -> String {
    match cell {
        None => "\\N".to_owned(),
        Some(text) => text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r"),
    }
}

/// Formats a cell for people: null differs from the empty string, and nothing steers a terminal unless `raw` is set.
fn shown(cell: Option<String>, raw: bool) -> String {
    let Some(text) = cell else { return "NULL".to_owned() };
    if raw || !text.chars().any(steers) { text } else { escaped(&text, "") }
}

/// Escapes the characters of JSON that could steer a terminal. Each of them fits into four hexadecimal digits.
fn escaped_json(json: &[u8]) -> Vec<u8> {
    let escape = |c: char| if c != '\n' && steers(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    String::from_utf8_lossy(json).chars().map(escape).collect::<String>().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, StringArray};
    use arrow::datatypes::{Field, Schema};
    use std::sync::Arc;

    fn print(format: Format) -> String {
        let schema = Arc::new(Schema::new(vec![
            Field::new("name", DataType::Utf8, true),
            Field::new("n", DataType::Int64, true),
        ]));
        let names = StringArray::from(vec![Some("a|\"b\""), Some(""), None, Some("x\u{1b}[2J\n東")]);
        let numbers = Int64Array::from(vec![Some(1), None, Some(-3), Some(4)]);
        let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(names), Arc::new(numbers)]).unwrap();
        let mut out = Vec::new();
        let mut printer = Printer::new(format, Style::default(), schema, &mut out).unwrap();
        printer.write(&batch.slice(0, 2)).unwrap();
        printer.write(&batch.slice(2, 2)).unwrap();
        assert_eq!(printer.finish().unwrap(), 4);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_text_format() {
        insta::assert_snapshot!("table", print(Format::Table));
        insta::assert_snapshot!("csv", print(Format::Csv));
        insta::assert_snapshot!("tsv", print(Format::Tsv));
        insta::assert_snapshot!("json", print(Format::Json));
        insta::assert_snapshot!("ndjson", print(Format::Ndjson));
        insta::assert_snapshot!("markdown", print(Format::Markdown));
        insta::assert_snapshot!("vertical", print(Format::Vertical));
    }
}
