//! Encodes one column of a row group as a Parquet column chunk.
//!
//! The sorted rows already know their distinct values, and most columns consist of long runs. So the codes of the
//! dictionary are written as they are, without looking up every value of every row again.
//!
//! ```text
//! [dictionary page]  values, plain
//! data page          definition levels, then codes (hybrid) or values (plain); at most PAGE_ROWS rows
//! ```

use bytes::Bytes;
use parquet::basic::{BoundaryOrder, Compression, Encoding, PageType, ZstdLevel};
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{CompressedPage, Page, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ColumnIndexBuilder, OffsetIndexBuilder, PageEncodingStats};
use parquet::file::statistics::Statistics;
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;

use super::hybrid;

/// Code of a null.
pub(in crate::batch) const NULL: u32 = u32::MAX;
/// Maximum rows of a data page.
const PAGE_ROWS: usize = 20_000;
/// Bytes of plain values at which a data page is full.
const PAGE_BYTES: usize = 1 << 20;
/// Maximum bytes of a dictionary: a reader loads all of it for the first row.
const DICTIONARY_BYTES_MAX: usize = 1 << 20;
/// Longer texts have no statistics: a bound in the footer must cost less than the page that it saves.
const BOUND_BYTES_MAX: usize = 64;

/// A value of a column, as Parquet stores it.
pub(super) trait Value: Copy + PartialOrd {
    /// Appends the plain encoding.
    fn put(self, out: &mut Vec<u8>);
    /// Returns the bytes of the plain encoding.
    fn size(self) -> usize;
    /// Returns the form for the column index; `None` if the value is too long.
    fn bound(self) -> Option<Vec<u8>>;
    /// Returns statistics of a chunk.
    fn statistics(range: Option<(Self, Self)>, nulls: u64) -> Statistics;
}

impl Value for i32 {
    fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }
    fn size(self) -> usize {
        4
    }
    fn bound(self) -> Option<Vec<u8>> {
        Some(self.to_le_bytes().to_vec())
    }
    fn statistics(range: Option<(Self, Self)>, nulls: u64) -> Statistics {
        Statistics::int32(range.map(|r| r.0), range.map(|r| r.1), None, Some(nulls), false)
    }
}

impl Value for i64 {
    fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }
    fn size(self) -> usize {
        8
    }
    fn bound(self) -> Option<Vec<u8>> {
        Some(self.to_le_bytes().to_vec())
    }
    fn statistics(range: Option<(Self, Self)>, nulls: u64) -> Statistics {
        Statistics::int64(range.map(|r| r.0), range.map(|r| r.1), None, Some(nulls), false)
    }
}

impl Value for &str {
    fn put(self, out: &mut Vec<u8>) {
        // A text is at most as long as the arena of its partition, whose offsets have 32 bits.
        out.extend_from_slice(&(self.len() as u32).to_le_bytes());
        out.extend_from_slice(self.as_bytes());
    }
    fn size(self) -> usize {
        4 + self.len()
    }
    fn bound(self) -> Option<Vec<u8>> {
        (self.len() <= BOUND_BYTES_MAX).then(|| self.as_bytes().to_vec())
    }
    fn statistics(range: Option<(Self, Self)>, nulls: u64) -> Statistics {
        let range = range.filter(|(low, high)| low.len().max(high.len()) <= BOUND_BYTES_MAX);
        let [low, high] = [range.map(|r| r.0), range.map(|r| r.1)].map(|text| text.map(ByteArray::from));
        Statistics::byte_array(low, high, None, Some(nulls), false)
    }
}

/// A column: a code for each row, and the value of each code. A code may occur in no row, and two codes may have equal
/// values.
#[derive(Debug)]
pub(in crate::batch) struct Column<V> {
    pub(in crate::batch) codes: Vec<u32>,
    pub(in crate::batch) values: Vec<V>,
}

/// A column whose values belong to another column.
#[derive(Debug)]
pub(in crate::batch) struct Coded<'a, V> {
    pub(in crate::batch) codes: Vec<u32>,
    pub(in crate::batch) values: &'a [V],
}

/// A finished column chunk.
pub(super) struct Encoded {
    pub(super) bytes: Bytes,
    pub(super) close: ColumnCloseResult,
}

/// Encodes the rows of `codes`.
///
/// # Errors
/// The library rejects a page (a bug, never the data).
pub(super) fn encode<V: Value>(
    mut target: Target<'_>,
    codes: &[u32],
    values: &[V],
    filter: Option<Sbbf>,
) -> Result<Encoded, ParquetError> {
    let dictionary = Dictionary::of(codes, values);
    if let Some(dictionary) = &dictionary {
        target.dictionary(dictionary.page(values), dictionary.order.len())?;
    }
    let mut range: Option<(V, V)> = None;
    let mut last = range;
    let mut is_ascending = true;
    let mut bounds = Bounds::new(values.len());
    let mut rows = codes;
    while !rows.is_empty() {
        let (page, rest) = rows.split_at(page_rows(rows, values));
        rows = rest;
        let present: Vec<u32> = page.iter().map(|code| u32::from(*code != NULL)).collect();
        let mut body = levels(&present);
        match &dictionary {
            Some(dictionary) => dictionary.put(page, &mut body),
            None => page.iter().filter(|code| **code != NULL).for_each(|code| values[*code as usize].put(&mut body)),
        }
        let found = if target.has_statistics { bounds.of(page, values) } else { None };
        let nulls = present.iter().filter(|present| **present == 0).count();
        target.data(body, page.len(), nulls, found.and_then(|(low, high)| low.bound().zip(high.bound())))?;
        if let Some(found) = found {
            is_ascending &= last.is_none_or(|last| last.0 <= found.0 && last.1 <= found.1);
            last = Some(found);
            range = Some(range.map_or(found, |range| (min(range.0, found.0), max(range.1, found.1))));
        }
    }
    if is_ascending {
        target.columns.set_boundary_order(BoundaryOrder::ASCENDING);
    }
    let statistics = target.has_statistics.then(|| V::statistics(range, target.nulls));
    target.finish(statistics, filter)
}

/// Encodes a column of long texts without dictionary and statistics. `text` appends the text of a row, and returns
/// `false` for a null.
///
/// # Errors
/// As [`encode`].
pub(super) fn encode_rendered<R>(
    mut target: Target<'_>,
    mut rows: impl ExactSizeIterator<Item = R>,
    mut text: impl FnMut(R, &mut String) -> bool,
) -> Result<Encoded, ParquetError> {
    let mut scratch = String::new();
    while rows.len() > 0 {
        let (mut present, mut plain) = (Vec::new(), Vec::new());
        while present.len() < PAGE_ROWS
            && plain.len() < PAGE_BYTES
            && let Some(row) = rows.next()
        {
            scratch.clear();
            let is_present = text(row, &mut scratch);
            present.push(u32::from(is_present));
            if is_present {
                scratch.as_str().put(&mut plain);
            }
        }
        let nulls = present.iter().filter(|present| **present == 0).count();
        let mut body = levels(&present);
        body.append(&mut plain);
        target.data(body, present.len(), nulls, None)?;
    }
    target.without_statistics().finish(None, None)
}

fn min<V: PartialOrd>(a: V, b: V) -> V {
    if b < a { b } else { a }
}

fn max<V: PartialOrd>(a: V, b: V) -> V {
    if b > a { b } else { a }
}

/// Returns how many of the next rows one page takes.
fn page_rows<V: Value>(codes: &[u32], values: &[V]) -> usize {
    let mut bytes = 0;
    let full = codes.iter().take(PAGE_ROWS).position(|code| {
        let is_full = bytes >= PAGE_BYTES;
        bytes += values.get(*code as usize).map_or(0, |value| value.size());
        is_full
    });
    full.unwrap_or(codes.len().min(PAGE_ROWS))
}

/// Finds the smallest and the largest value of each page. Each code of a page is compared once.
struct Bounds {
    /// The page in which each code was seen last, counted from 1.
    seen: Vec<u32>,
    page: u32,
}

impl Bounds {
    fn new(codes: usize) -> Self {
        Self { seen: vec![0; codes], page: 0 }
    }

    fn of<V: Value>(&mut self, codes: &[u32], values: &[V]) -> Option<(V, V)> {
        self.page += 1;
        let mut range: Option<(V, V)> = None;
        for code in codes.iter().filter(|code| **code != NULL) {
            let seen = &mut self.seen[*code as usize];
            if *seen != self.page {
                *seen = self.page;
                let value = values[*code as usize];
                range = Some(range.map_or((value, value), |(low, high)| (min(low, value), max(high, value))));
            }
        }
        range
    }
}

/// Returns the definition levels of a page of an optional column (0 for null, else 1), with their length before them.
fn levels(levels: &[u32]) -> Vec<u8> {
    let mut body = vec![0; 4];
    hybrid::encode(&mut body, levels, 1);
    // A page has at most `PAGE_ROWS` levels.
    let length = (body.len() as u32 - 4).to_le_bytes();
    body[..4].copy_from_slice(&length);
    body
}

/// The dictionary of a chunk: the values that occur in it, in the order of their first row.
struct Dictionary {
    /// Code of the chunk for each code of the column.
    code_of: Vec<u32>,
    /// Code of the column for each code of the chunk.
    order: Vec<u32>,
    width: u8,
}

impl Dictionary {
    /// Returns `None` if a dictionary would not make the chunk smaller.
    fn of<V: Value>(codes: &[u32], values: &[V]) -> Option<Self> {
        let mut code_of = vec![NULL; values.len()];
        let (mut order, mut size, mut plain, mut present) = (Vec::new(), 0, 0, 0);
        for code in codes.iter().filter(|code| **code != NULL) {
            let bytes = values[*code as usize].size();
            let known = &mut code_of[*code as usize];
            if *known == NULL {
                // A chunk has fewer rows than 2³².
                *known = order.len() as u32;
                order.push(*code);
                size += bytes;
            }
            plain += bytes;
            present += 1;
        }
        let width = hybrid::width_of(order.len().saturating_sub(1) as u32);
        let packed = present * usize::from(width) / 8;
        (!order.is_empty() && size <= DICTIONARY_BYTES_MAX && size + packed < plain).then_some(Self {
            code_of,
            order,
            width,
        })
    }

    fn page<V: Value>(&self, values: &[V]) -> Vec<u8> {
        let mut page = Vec::new();
        self.order.iter().for_each(|code| values[*code as usize].put(&mut page));
        page
    }

    fn put(&self, codes: &[u32], body: &mut Vec<u8>) {
        let present = codes.iter().filter(|code| **code != NULL);
        let codes: Vec<u32> = present.map(|code| self.code_of[*code as usize]).collect();
        body.push(self.width);
        hybrid::encode(body, &codes, self.width);
    }
}

/// A page that is not written yet.
enum Raw {
    Dictionary { body: Vec<u8>, values: u32 },
    Data { body: Vec<u8>, rows: u32 },
}

impl Raw {
    fn body(&self) -> &[u8] {
        match self {
            Self::Dictionary { body, .. } | Self::Data { body, .. } => body,
        }
    }
}

/// Where a column chunk is written. The first data page decides whether the chunk is compressed.
pub(super) struct Target<'a> {
    column: ColumnDescPtr,
    /// `None` if the file is not compressed.
    zstd: Option<&'a mut zstd::bulk::Compressor<'static>>,
    is_compressed: bool,
    dictionary: Option<Raw>,
    sink: TrackedWrite<Vec<u8>>,
    encoding: Encoding,
    data_pages: i32,
    data_offset: Option<i64>,
    dictionary_offset: Option<i64>,
    uncompressed: usize,
    rows: u64,
    nulls: u64,
    columns: ColumnIndexBuilder,
    has_statistics: bool,
    has_bounds: bool,
    offsets: OffsetIndexBuilder,
}

impl<'a> Target<'a> {
    /// Creates a chunk without pages.
    pub(super) fn new(column: ColumnDescPtr, zstd: Option<&'a mut zstd::bulk::Compressor<'static>>) -> Self {
        Self {
            columns: ColumnIndexBuilder::new(column.physical_type()),
            column,
            zstd,
            is_compressed: false,
            dictionary: None,
            sink: TrackedWrite::new(Vec::new()),
            encoding: Encoding::PLAIN,
            data_pages: 0,
            data_offset: None,
            dictionary_offset: None,
            uncompressed: 0,
            rows: 0,
            nulls: 0,
            has_statistics: true,
            has_bounds: true,
            offsets: OffsetIndexBuilder::new(),
        }
    }

    /// Leaves out all statistics.
    pub(super) fn without_statistics(mut self) -> Self {
        (self.has_statistics, self.has_bounds) = (false, false);
        self
    }

    fn dictionary(&mut self, body: Vec<u8>, values: usize) -> Result<(), ParquetError> {
        self.encoding = Encoding::RLE_DICTIONARY;
        self.dictionary = Some(Raw::Dictionary { body, values: count(values)? });
        Ok(())
    }

    /// Adds a data page. `bounds` has the smallest and the largest value of the page, if they may go into the index.
    fn data(
        &mut self,
        body: Vec<u8>,
        rows: usize,
        nulls: usize,
        bounds: Option<(Vec<u8>, Vec<u8>)>,
    ) -> Result<(), ParquetError> {
        let page = Raw::Data { body, rows: count(rows)? };
        let packed = self.pack(page.body())?;
        if self.data_pages == 0 {
            let dictionary = self.dictionary.take();
            let packed_dictionary = dictionary.as_ref().map(|page| self.pack(page.body())).transpose()?.flatten();
            // The first pages decide for the chunk: compression must save a sixteenth.
            let length = |packed: &Option<Vec<u8>>| packed.as_ref().map_or(0, Vec::len);
            let raw = page.body().len() + dictionary.as_ref().map_or(0, |page| page.body().len());
            self.is_compressed = packed.is_some() && length(&packed) + length(&packed_dictionary) + raw / 16 < raw;
            if let Some(dictionary) = dictionary {
                self.dictionary_offset = Some(self.write(dictionary, packed_dictionary)?.0);
            }
        }
        let (offset, size) = self.write(page, packed)?;
        self.data_offset.get_or_insert(offset);
        self.data_pages += 1;
        self.offsets.append_offset_and_size(offset, size);
        self.offsets.append_row_count(rows as i64);
        self.index(rows == nulls, nulls, bounds);
        self.rows += rows as u64;
        self.nulls += nulls as u64;
        Ok(())
    }

    fn index(&mut self, is_null: bool, nulls: usize, bounds: Option<(Vec<u8>, Vec<u8>)>) {
        match bounds {
            Some((low, high)) => self.columns.append(false, low, high, nulls as i64),
            _ if is_null => self.columns.append(true, Vec::new(), Vec::new(), nulls as i64),
            _ => self.has_bounds = false,
        }
    }

    /// Compresses a page, unless it is known that the chunk is not compressed.
    fn pack(&mut self, body: &[u8]) -> Result<Option<Vec<u8>>, ParquetError> {
        let is_open = self.data_pages == 0 || self.is_compressed;
        let zstd = self.zstd.as_deref_mut().filter(|_| is_open);
        Ok(zstd.map(|zstd| zstd.compress(body)).transpose()?)
    }

    /// Writes a page. Returns its offset, and its size with its header.
    fn write(&mut self, page: Raw, packed: Option<Vec<u8>>) -> Result<(i64, i32), ParquetError> {
        let uncompressed = page.body().len();
        let packed = packed.filter(|_| self.is_compressed);
        let page = match page {
            Raw::Dictionary { body, values } => Page::DictionaryPage {
                buf: packed.unwrap_or(body).into(),
                num_values: values,
                encoding: Encoding::PLAIN,
                is_sorted: false,
            },
            Raw::Data { body, rows } => Page::DataPage {
                buf: packed.unwrap_or(body).into(),
                num_values: rows,
                encoding: self.encoding,
                def_level_encoding: Encoding::RLE,
                rep_level_encoding: Encoding::RLE,
                statistics: None,
            },
        };
        let written = SerializedPageWriter::new(&mut self.sink).write_page(CompressedPage::new(page, uncompressed))?;
        self.uncompressed += written.uncompressed_size;
        let (offset, size) = (i64::try_from(written.offset), i32::try_from(written.compressed_size));
        Ok((offset.map_err(too_large)?, size.map_err(too_large)?))
    }

    fn finish(self, statistics: Option<Statistics>, bloom_filter: Option<Sbbf>) -> Result<Encoded, ParquetError> {
        let bytes = Bytes::from(self.sink.into_inner()?);
        let size = |bytes: usize| i64::try_from(bytes).map_err(too_large);
        let codec =
            if self.is_compressed { Compression::ZSTD(ZstdLevel::default()) } else { Compression::UNCOMPRESSED };
        let mut encodings = vec![Encoding::RLE, self.encoding];
        let mut pages =
            vec![PageEncodingStats { page_type: PageType::DATA_PAGE, encoding: self.encoding, count: self.data_pages }];
        if self.dictionary_offset.is_some() {
            encodings.push(Encoding::PLAIN);
            pages.push(PageEncodingStats { page_type: PageType::DICTIONARY_PAGE, encoding: Encoding::PLAIN, count: 1 });
        }
        let mut metadata = ColumnChunkMetaData::builder(self.column)
            .set_compression(codec)
            .set_encodings(encodings)
            .set_page_encoding_stats(pages)
            .set_num_values(self.rows as i64)
            .set_total_compressed_size(size(bytes.len())?)
            .set_total_uncompressed_size(size(self.uncompressed)?)
            .set_data_page_offset(self.data_offset.unwrap_or(0))
            .set_dictionary_page_offset(self.dictionary_offset);
        if let Some(statistics) = statistics {
            metadata = metadata.set_statistics(statistics);
        }
        let metadata = metadata.build()?;
        let column_index = if self.has_bounds { Some(self.columns.build()?) } else { None };
        let close = ColumnCloseResult {
            bytes_written: bytes.len() as u64,
            rows_written: self.rows,
            metadata,
            bloom_filter,
            column_index,
            offset_index: Some(self.offsets.build()),
        };
        Ok(Encoded { bytes, close })
    }
}

fn count(rows: usize) -> Result<u32, ParquetError> {
    u32::try_from(rows).map_err(too_large)
}

fn too_large(error: std::num::TryFromIntError) -> ParquetError {
    ParquetError::External(Box::new(error))
}
