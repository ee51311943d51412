//! The input of all measurements of this folder.

use std::path::Path;

use synclake::source::Chunk;
use synclake::source::files::{FileReader, Opened, ReadOptions};
use tokio_util::sync::CancellationToken;

/// Reads a file of events into chunks.
pub(crate) fn chunks(path: &Path) -> Vec<Chunk> {
    let options = ReadOptions::new(1 << 30, CancellationToken::new());
    let Opened::Reader(mut reader) = FileReader::open(path, &options, |_| None).unwrap() else {
        panic!("{}: no events", path.display());
    };
    std::iter::from_fn(|| reader.next_chunk(0).unwrap()).collect()
}
