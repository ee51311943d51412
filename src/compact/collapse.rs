//! Collapses exact copies of changes while files are merged. Pure: bytes in, bytes out.
//!
//! The merged file is read once more, in its order, and written without the copies. If it has none, it stays as it is.
//!
//! **Invariant: the rows of the new file stand for as many delivered rows as the rows of the files that it replaces.** Both are
//! counted from the bytes of the files, and not by the code that collapses.

use std::collections::HashMap;

use bytes::Bytes;
use parquet::errors::ParquetError;

use super::merge::{Input, MergeError, MergeLimits, Merged, MergedFile, is_enough, merge, open, write_groups};
use crate::batch::file::COMPRESSED_BYTES_MIN;
use crate::batch::file::stored::StoredWriter;
use crate::batch::stored::copies::Collapser;
use crate::batch::stored::{Ordered, StoredRows, delivered_rows};

/// Merges files, and collapses the copies in them.
///
/// # Errors
/// See [`MergeError`].
pub(super) fn merge_collapsed(inputs: Vec<Input>, limits: MergeLimits) -> Result<Merged, MergeError> {
    let input_bytes = inputs.iter().map(|input| input.bytes.len()).sum::<usize>();
    // A file that cannot be read is an error of the merge, or is not merged.
    let delivered = |input: &Input| Some((input.path.clone(), delivered_rows(&input.bytes).ok()?));
    let delivered: HashMap<String, u64> = inputs.iter().filter_map(delivered).collect();
    let mut merged = merge(inputs, limits)?;
    if let Some(file) = &merged.file
        && let Some(collapsed) = collapsed(file, limits, input_bytes >= COMPRESSED_BYTES_MIN)?
    {
        let read: u64 = merged.paths.iter().filter_map(|path| delivered.get(path)).sum();
        let written = delivered_rows(&collapsed.bytes)?;
        if read != written {
            return Err(MergeError::Lost { read, written });
        }
        merged.file = Some(collapsed);
    }
    Ok(merged)
}

/// Returns the file without copies; `None` if it has none.
fn collapsed(file: &MergedFile, limits: MergeLimits, is_compressed: bool) -> Result<Option<MergedFile>, MergeError> {
    if !has_copies(&file.bytes, limits)? {
        return Ok(None);
    }
    let mut writer = StoredWriter::new(file.bytes.len(), is_compressed, true)?;
    let (mut collapser, mut ready) = (Collapser::default(), Vec::new());
    for rows in reader(&file.bytes, limits)? {
        ready.extend(collapser.push(rows?).map_err(ParquetError::from)?);
        if is_enough(std::slice::from_ref(&ready), limits) {
            write(&mut writer, &mut ready, limits, false)?;
        }
    }
    ready.extend(collapser.finish());
    write(&mut writer, &mut ready, limits, true)?;
    let (bytes, statistics, rows) = writer.finish()?;
    Ok(Some(MergedFile { bytes, statistics, rows, rows_collapsed: collapser.dropped(), has_copies: true }))
}

/// Returns whether a sorted file has copies to collapse. Reads it up to the first one.
fn has_copies(file: &Bytes, limits: MergeLimits) -> Result<bool, MergeError> {
    let mut collapser = Collapser::default();
    for rows in reader(file, limits)? {
        collapser.push(rows?).map_err(ParquetError::from)?;
        if collapser.dropped() > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

fn reader(
    file: &Bytes,
    limits: MergeLimits,
) -> Result<impl Iterator<Item = Result<StoredRows, MergeError>>, MergeError> {
    let unreadable = |error: ParquetError| {
        MergeError::Encode(ParquetError::General(format!("cannot read the merged file: {error}")))
    };
    Ok(open(file, limits).map_err(unreadable)?.map(move |rows| rows.map_err(unreadable)))
}

/// Writes rows as full row groups, and keeps the rest; at the end, writes all.
fn write(
    writer: &mut StoredWriter,
    ready: &mut Vec<StoredRows>,
    limits: MergeLimits,
    is_end: bool,
) -> Result<(), MergeError> {
    let ordered = Ordered::new(ready);
    let mut written = write_groups(writer, &ordered, limits.group_rows, is_end)?;
    if written == 0 {
        // Rows that fill memory but no row group become a smaller row group.
        written = write_groups(writer, &ordered, limits.group_rows, true)?;
    }
    let taken = ordered.rows_of_batches(0..written);
    let rest = ready.iter().zip(taken).filter(|(rows, taken)| rows.len() > *taken);
    *ready = rest.map(|(rows, taken)| rows.slice(taken, rows.len() - taken)).collect();
    Ok(())
}

#[cfg(test)]
mod tests;
