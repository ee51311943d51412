//! Spill files: storage for data of a query that does not fit into its memory.
//!
//! **No reader waits for a batch that exists, nor for a batch that never comes.** DataFusion 55 repartitions through
//! spill files that are read one after the other, each until it is closed. Two concurrent writers each have a file. So
//! a reader may wait forever for a file whose writer waits for the reader. This is apache/datafusion#24883, fixed after
//! 55.2. A reader may also wait forever for a file after a failed write.
//!
//! Therefore a file is closed after its first batch ([`FILE_BYTES_MAX`]), and no write fails: readers report the error,
//! and no further file is created. This makes many files, so no file keeps a descriptor open.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SpillFile, SpillWriter, TempFileFactory};
use futures::{Stream, StreamExt, TryStreamExt};
use tempfile::{NamedTempFile, TempDir, TempPath};
use tokio_util::io::ReaderStream;

/// DataFusion setting that closes a file after its first batch.
pub(super) const FILE_BYTES_MAX: (&str, usize) = ("datafusion.execution.max_spill_file_size_bytes", 1);
/// Most bytes kept at a time, so that no query fills a disk by itself.
const KEPT_BYTES_MAX: u64 = 100 << 30;
/// Bytes read at a time.
const CHUNK_BYTES: usize = 128 << 10;

/// Failure to write or read a spill file.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot spill to {folder}: {cause}; free space there, or set TMPDIR to another folder")]
struct SpillError {
    folder: String,
    cause: String,
}

impl SpillError {
    fn new(folder: &Path, cause: &io::Error) -> Self {
        Self { folder: folder.display().to_string(), cause: cause.to_string() }
    }
}

impl From<SpillError> for DataFusionError {
    fn from(error: SpillError) -> Self {
        Self::External(Box::new(error))
    }
}

/// Returns the message of a spill error; `None` for any other error.
pub(super) fn told(error: &DataFusionError) -> Option<String> {
    let DataFusionError::External(error) = error else { return None };
    error.downcast_ref::<SpillError>().map(ToString::to_string)
}

/// Spill files in a folder of their own. The folder is created with the first file and removed with the session.
#[derive(Debug, Default)]
pub(super) struct Spills(Mutex<Option<Arc<Folder>>>);

#[derive(Debug)]
struct Folder {
    dir: TempDir,
    /// Bytes of all files.
    kept_bytes: AtomicU64,
    /// Error of the first failed write.
    failure: OnceLock<SpillError>,
}

#[derive(Debug)]
struct Spilled {
    path: TempPath,
    bytes: Arc<AtomicU64>,
    folder: Arc<Folder>,
}

struct Writer {
    /// `None` if the file could not be opened. After a failed write, no file is written.
    file: Option<File>,
    bytes: Arc<AtomicU64>,
    folder: Arc<Folder>,
}

impl Spills {
    fn folder(&self) -> Result<Arc<Folder>> {
        let mut folder = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = &*folder {
            return Ok(folder.clone());
        }
        let dir = tempfile::tempdir().map_err(|error| SpillError::new(&std::env::temp_dir(), &error))?;
        Ok(folder.insert(Arc::new(Folder { dir, kept_bytes: AtomicU64::new(0), failure: OnceLock::new() })).clone())
    }
}

impl Folder {
    fn error(&self, cause: &io::Error) -> SpillError {
        SpillError::new(self.dir.path(), cause)
    }

    /// Returns the value of a result, and keeps an error for the readers.
    fn note<T>(&self, done: io::Result<T>) -> Option<T> {
        done.map_err(|error| self.failure.set(self.error(&error))).ok()
    }

    fn is_well(&self) -> Result<()> {
        self.failure.get().map_or(Ok(()), |failure| Err(failure.clone().into()))
    }
}

impl TempFileFactory for Spills {
    fn create_temp_file(&self, _: &str) -> Result<Arc<dyn SpillFile>> {
        let folder = self.folder()?;
        folder.is_well()?;
        let file = NamedTempFile::new_in(folder.dir.path()).map_err(|error| folder.error(&error))?;
        Ok(Arc::new(Spilled { path: file.into_temp_path(), bytes: Arc::default(), folder }))
    }
}

impl SpillFile for Spilled {
    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn size(&self) -> Option<u64> {
        Some(self.bytes.load(Ordering::Relaxed))
    }

    fn read_stream(&self) -> Result<Pin<Box<dyn Stream<Item = Result<Bytes>> + Send>>> {
        let (path, folder) = (self.path.to_path_buf(), self.folder.clone());
        let bytes = async move {
            folder.is_well()?;
            let file = tokio::fs::File::open(path).await.map_err(|error| folder.error(&error))?;
            let chunks = ReaderStream::with_capacity(file, CHUNK_BYTES);
            Ok::<_, DataFusionError>(chunks.map(move |chunk| chunk.map_err(|error| folder.error(&error).into())))
        };
        Ok(Box::pin(futures::stream::once(bytes).try_flatten()))
    }

    fn open_writer(&self) -> Result<Box<dyn SpillWriter>> {
        // The spill pool already waits for this file, and would wait forever after an error.
        let file = self.folder.note(File::options().append(true).open(&self.path));
        Ok(Box::new(Writer { file, bytes: self.bytes.clone(), folder: self.folder.clone() }))
    }
}

impl Drop for Spilled {
    fn drop(&mut self) {
        self.folder.kept_bytes.fetch_sub(self.bytes.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let more = bytes.len() as u64;
        if let Some(file) = self.file.as_mut().filter(|_| self.folder.failure.get().is_none()) {
            self.bytes.fetch_add(more, Ordering::Relaxed);
            let kept = self.folder.kept_bytes.fetch_add(more, Ordering::Relaxed) + more;
            let written = match kept > KEPT_BYTES_MAX {
                true => {
                    Err(io::Error::new(io::ErrorKind::QuotaExceeded, format!("more than {} GiB", KEPT_BYTES_MAX >> 30)))
                }
                false => file.write_all(bytes),
            };
            self.folder.note(written);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SpillWriter for Writer {
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use arrow::array::{AsArray, Int64Array, RecordBatch};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use datafusion::datasource::MemTable;
    use datafusion::physical_expr::expressions::col;
    use datafusion::physical_plan::repartition::RepartitionExec;
    use datafusion::physical_plan::{ExecutionPlan, Partitioning};
    use datafusion::prelude::SessionContext;

    use super::*;
    use crate::query::{Limits, session};

    /// Numbers of partitions, batches per partition, and rows per batch.
    const SIZES: [usize; 3] = [8, 40, 16];

    /// Repartitions with no memory at all. Returns the number of rows that came through, and their sum.
    async fn repartitioned() -> Result<(usize, i64)> {
        let [partitions, batches, rows] = SIZES;
        let schema = Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]));
        let batch = |n: usize| {
            let numbers = (n * rows..(n + 1) * rows).map(|n| n as i64).collect::<Int64Array>();
            RecordBatch::try_new(schema.clone(), vec![Arc::new(numbers)])
        };
        let partition = |p: usize| (p * batches..(p + 1) * batches).map(batch).collect::<Result<Vec<_>, _>>();
        let table = MemTable::try_new(schema.clone(), (0..partitions).map(partition).collect::<Result<_, _>>()?)?;
        let context = session(&Limits { memory_bytes: 1, threads: partitions, ..Limits::default() }).unwrap();
        // Batches are combined to this many rows before they are sent.
        let config = context.copied_config().with_batch_size(rows);
        let context = SessionContext::new_with_config_rt(config, context.runtime_env());
        let source = context.read_table(Arc::new(table))?.create_physical_plan().await?;
        let by = Partitioning::Hash(vec![col("n", &schema)?], partitions);
        let plan: Arc<dyn ExecutionPlan> = Arc::new(RepartitionExec::try_new(source, by)?);
        // Streams are read one after the other, as in a join that holds one side first: nobody empties the others.
        let streams = (0..partitions).map(|p| plan.execute(p, context.task_ctx())).collect::<Result<Vec<_>>>()?;
        let found: Vec<RecordBatch> = futures::stream::iter(streams).flatten().try_collect().await?;
        let sum = |batch: &RecordBatch| batch.column(0).as_primitive::<Int64Type>().values().iter().sum::<i64>();
        Ok((found.iter().map(RecordBatch::num_rows).sum(), found.iter().map(sum).sum()))
    }

    /// A truncated file may still be readable, with fewer batches. So every read after a failed write must fail.
    #[tokio::test]
    async fn what_was_not_written_is_told_by_whoever_reads() {
        let spills = Spills::default();
        let write = |file: &Arc<dyn SpillFile>| file.open_writer().unwrap().write_all(b"batch").unwrap();
        let read = |file: &Arc<dyn SpillFile>| file.read_stream().unwrap().try_collect::<Vec<Bytes>>();
        let [early, lost, late] = [(); 3].map(|()| spills.create_temp_file("").unwrap());
        write(&early);
        assert_eq!((read(&early).await.unwrap().concat(), early.size()), (b"batch".to_vec(), Some(5)));
        std::fs::remove_file(lost.path().unwrap()).unwrap();
        write(&lost);
        write(&late);
        for file in [&early, &lost, &late] {
            let told = told(&read(file).await.unwrap_err()).unwrap();
            assert!(told.contains("No such file") && told.contains("TMPDIR"), "{told}");
        }
        assert!(spills.create_temp_file("").is_err(), "no more work for what is lost");
        let folder = spills.folder().unwrap();
        drop((early, lost, late));
        assert_eq!(folder.kept_bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn writers_at_once_leave_nobody_waiting() {
        let rows: usize = SIZES.iter().product();
        for _ in 0..20 {
            let found = tokio::time::timeout(Duration::from_secs(60), repartitioned()).await;
            assert_eq!(found.expect("it hangs").unwrap(), (rows, (0..rows as i64).sum()));
        }
    }
}
