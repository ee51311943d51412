//! An object store wrapper that reads no byte twice while a version is loaded, and a small Parquet file in one request.
//!
//! - **The log.** deltalake and this crate both read `_last_checkpoint`, list the log, and read the commits after the
//!   checkpoint; deltalake reads each of these commits twice. A checkpoint that was read whole is read no more. [`LogReads`] remembers their answers until it is dropped.
//!   So all readers of one loading also see the log at one moment.
//! - **Ends of Parquet files.** Readers ask for the last eight bytes of a file, then for the footer, and then for
//!   indexes and columns, which small files have within the same few KiB. The first of these requests brings the last
//!   [`END_BYTES`]; the others are answered from them.
//!
//! **Invariant: an answer is remembered only where the object cannot have changed.** Data files never change. Objects of
//! the log are remembered within one loading only. No error is remembered.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};

use super::{Objects, Store};

/// Bytes of the end of a Parquet file that one request brings. Data files below this size are not compressed.
const END_BYTES: u64 = 64 << 10;
/// Bytes of a footer's last part, which readers ask for first.
const FOOTER_TAIL: u64 = 8;
/// Bytes of ends of Parquet files that a table keeps.
const ENDS_MAX: usize = 16 << 20;
/// Bytes of a log that one loading keeps.
const LOG_MAX: usize = 64 << 20;

/// A table whose log is remembered until this is dropped. The store may live longer, and forgets the log then.
pub(crate) struct LogReads {
    store: Store,
    remembering: Arc<RememberingStore>,
}

impl LogReads {
    /// Begins to remember the log of a table.
    pub(crate) fn begin(table: &Store) -> Self {
        let log = Arc::new(Mutex::new(Some(LogMemory::default())));
        let remembering = Arc::new(RememberingStore { objects: table.objects(), log, ends: Mutex::default() });
        Self { store: table.with_objects(remembering.clone()), remembering }
    }

    /// Returns the table.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }
}

impl Drop for LogReads {
    fn drop(&mut self) {
        *lock(&self.remembering.log) = None;
        // A checkpoint is no data file: another writer may replace it.
        *lock(&self.remembering.ends) = Ends::default();
    }
}

fn lock<T>(memory: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change of the memory is whole, also if its thread panicked afterwards.
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An object that was read, or a part of it.
#[derive(Debug, Clone)]
struct Remembered {
    bytes: Bytes,
    meta: ObjectMeta,
    attributes: Attributes,
}

impl Remembered {
    async fn read(found: GetResult) -> Result<Self> {
        let (meta, attributes) = (found.meta.clone(), found.attributes.clone());
        Ok(Self { bytes: found.bytes().await?, meta, attributes })
    }

    /// Returns a part of the object. The known bytes begin at `start`.
    fn slice(&self, start: u64, range: &Range<u64>) -> Option<Self> {
        let place = |at: u64| usize::try_from(at.checked_sub(start)?).ok();
        let (from, to) = (place(range.start)?, place(range.end)?);
        let is_inside = from <= to && to <= self.bytes.len();
        is_inside.then(|| Self { bytes: self.bytes.slice(from..to), ..self.clone() })
    }

    fn whole(self) -> GetResult {
        let range = 0..self.bytes.len() as u64;
        self.part(range)
    }

    fn part(self, range: Range<u64>) -> GetResult {
        let Self { bytes, meta, attributes } = self;
        let payload = GetResultPayload::Stream(futures::stream::once(async move { Ok(bytes) }).boxed());
        GetResult { payload, meta, range, attributes }
    }
}

/// A listing of a log: the folder, the name after which it begins, and what was found.
#[derive(Debug, Clone)]
struct Listed {
    folder: Path,
    offset: Option<Path>,
    found: Vec<ObjectMeta>,
}

/// What one loading has read of a log.
#[derive(Debug, Default)]
struct LogMemory {
    /// Objects by their path; `None` if there is none.
    objects: HashMap<Path, Option<Remembered>>,
    bytes: usize,
    listings: Vec<Listed>,
}

impl LogMemory {
    fn keep(&mut self, path: &Path, object: Option<Remembered>) {
        let bytes = object.as_ref().map_or(0, |object| object.bytes.len());
        if self.bytes + bytes <= LOG_MAX {
            self.bytes += bytes;
            self.objects.insert(path.clone(), object);
        }
    }

    /// Returns a part of an object that was read whole.
    fn part(&self, path: &Path, range: &Range<u64>) -> Option<Remembered> {
        self.objects.get(path)?.as_ref()?.slice(0, range)
    }

    /// Returns the names after `offset`, if a listing holds them.
    fn names(&self, folder: &Path, offset: Option<&Path>) -> Option<Vec<ObjectMeta>> {
        let is_wider = |listed: &&Listed| {
            let begins_before = listed.offset.as_ref().is_none_or(|from| offset.is_some_and(|offset| from <= offset));
            listed.folder == *folder && begins_before
        };
        let listed = self.listings.iter().find(is_wider)?;
        let is_after = |meta: &&ObjectMeta| offset.is_none_or(|offset| meta.location > *offset);
        Some(listed.found.iter().filter(is_after).cloned().collect())
    }
}

/// The ends of Parquet files that were read last.
#[derive(Debug, Default)]
struct Ends {
    /// Where the end begins, and the end, by the path of the file.
    ends: HashMap<Path, (u64, Remembered)>,
    /// The paths, the oldest first.
    order: VecDeque<Path>,
    bytes: usize,
}

impl Ends {
    fn keep(&mut self, path: &Path, start: u64, end: Remembered) {
        self.bytes += end.bytes.len();
        match self.ends.insert(path.clone(), (start, end)) {
            Some((_, older)) => self.bytes -= older.bytes.len(),
            None => self.order.push_back(path.clone()),
        }
        while self.bytes > ENDS_MAX {
            let Some((_, dropped)) = self.order.pop_front().and_then(|oldest| self.ends.remove(&oldest)) else { break };
            self.bytes -= dropped.bytes.len();
        }
    }

    /// Returns a part of a file if it lies in the end that is kept.
    fn part(&self, path: &Path, range: &Range<u64>) -> Option<Remembered> {
        let (start, end) = self.ends.get(path)?;
        end.slice(*start, range)
    }
}

/// The store behind [`LogReads`]. DataFusion reads data files through it, too.
#[derive(Debug)]
struct RememberingStore {
    objects: Objects,
    /// The log; `None` after the loading.
    log: Arc<Mutex<Option<LogMemory>>>,
    ends: Mutex<Ends>,
}

/// Returns whether a folder is that of a log.
fn is_log(folder: &Path) -> bool {
    folder.filename() == Some("_delta_log")
}

/// Returns whether an object lies in the folder of a log.
fn is_of_log(path: &Path) -> bool {
    path.as_ref().rsplit('/').nth(1) == Some("_delta_log")
}

impl RememberingStore {
    /// Reads a whole object of the log.
    async fn log_object(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let known = lock(&self.log).as_ref().and_then(|log| log.objects.get(location).cloned());
        match known {
            Some(Some(object)) => return Ok(object.whole()),
            Some(None) => {
                let source = "an earlier request did not find it".into();
                return Err(Error::NotFound { path: location.to_string(), source });
            }
            None => {}
        }
        let keep =
            |object: Option<Remembered>| lock(&self.log).iter_mut().for_each(|log| log.keep(location, object.clone()));
        match self.objects.get_opts(location, options).await {
            Ok(found) => {
                let object = Remembered::read(found).await?;
                keep(Some(object.clone()));
                Ok(object.whole())
            }
            Err(error) => {
                // Each reader asks for the hint again. A commit that is missing may be there a moment later.
                if matches!(error, Error::NotFound { .. }) && location.filename() == Some("_last_checkpoint") {
                    keep(None);
                }
                Err(error)
            }
        }
    }

    /// Reads a part of a Parquet file, if it lies in an end that was read, or is the last part of the footer.
    async fn part(&self, location: &Path, range: &Range<u64>) -> Result<Option<Remembered>> {
        if !location.as_ref().ends_with(".parquet") {
            return Ok(None);
        }
        let known = self.known(location, range);
        if known.is_some() || range.end.checked_sub(range.start) != Some(FOOTER_TAIL) {
            return Ok(known);
        }
        let start = range.end.saturating_sub(END_BYTES);
        let options = GetOptions { range: Some((start..range.end).into()), ..GetOptions::default() };
        let found = self.objects.get_opts(location, options).await?;
        let start = found.range.start;
        let end = Remembered::read(found).await?;
        lock(&self.ends).keep(location, start, end);
        // A file that is shorter than the log states has no such part; the reader's own request tells so.
        Ok(lock(&self.ends).part(location, range))
    }

    /// Returns a part of a Parquet file if it was read before.
    fn known(&self, location: &Path, range: &Range<u64>) -> Option<Remembered> {
        let of_log = lock(&self.log).as_ref().and_then(|log| log.part(location, range));
        of_log.or_else(|| lock(&self.ends).part(location, range))
    }

    /// Lists a log once. The names after another offset are taken from what was listed.
    fn log_names(&self, folder: &Path, offset: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let known = lock(&self.log).as_ref().and_then(|log| log.names(folder, offset));
        if let Some(names) = known {
            return futures::stream::iter(names.into_iter().map(Ok)).boxed();
        }
        let found = match offset {
            Some(offset) => self.objects.list_with_offset(Some(folder), offset),
            None => self.objects.list(Some(folder)),
        };
        let (memory, folder, offset) = (self.log.clone(), folder.clone(), offset.cloned());
        let listing = async move {
            let found: Vec<ObjectMeta> = found.try_collect().await?;
            let listed = Listed { folder, offset, found: found.clone() };
            lock(&memory).iter_mut().for_each(|log| log.listings.push(listed.clone()));
            Ok::<_, Error>(futures::stream::iter(found.into_iter().map(Ok)))
        };
        futures::stream::once(listing).try_flatten().boxed()
    }
}

impl fmt::Display for RememberingStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.objects)
    }
}

#[async_trait::async_trait]
impl ObjectStore for RememberingStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.objects.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        if options.head {
            return self.objects.get_opts(location, options).await;
        }
        match &options.range {
            None if is_of_log(location) => self.log_object(location, options).await,
            Some(GetRange::Bounded(range)) => match self.part(location, range).await? {
                Some(found) => Ok(found.part(range.clone())),
                None => self.objects.get_opts(location, options).await,
            },
            _ => self.objects.get_opts(location, options).await,
        }
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        if let [range] = ranges
            && let Some(part) = self.part(location, range).await?
        {
            return Ok(vec![part.bytes]);
        }
        let known = ranges.iter().map(|range| Some(self.known(location, range)?.bytes)).collect();
        match known {
            Some(parts) => Ok(parts),
            None => self.objects.get_ranges(location, ranges).await,
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match prefix.filter(|folder| is_log(folder)) {
            Some(folder) => self.log_names(folder, None),
            None => self.objects.list(prefix),
        }
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        match prefix.filter(|folder| is_log(folder)) {
            Some(folder) => self.log_names(folder, Some(offset)),
            None => self.objects.list_with_offset(prefix, offset),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.objects.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::{ObjectStoreExt, PutPayload};

    use super::*;

    fn remembering() -> (Arc<InMemory>, RememberingStore) {
        let objects = Arc::new(InMemory::new());
        let log = Arc::new(Mutex::new(Some(LogMemory::default())));
        (objects.clone(), RememberingStore { objects, log, ends: Mutex::default() })
    }

    async fn names(store: &RememberingStore, offset: Option<&str>) -> Vec<String> {
        let folder = Path::from("t/_delta_log");
        let found = match offset {
            Some(offset) => store.list_with_offset(Some(&folder), &folder.clone().join(offset)),
            None => store.list(Some(&folder)),
        };
        found.map_ok(|meta| meta.location.filename().unwrap().to_owned()).try_collect().await.unwrap()
    }

    #[tokio::test]
    async fn a_log_is_read_once_until_it_is_forgotten() {
        let (objects, store) = remembering();
        let log = |name: &str| Path::from("t/_delta_log").join(name);
        objects.put(&log("1.json"), PutPayload::from_static(b"one")).await.unwrap();
        objects.put(&log("2.json"), PutPayload::from_static(b"two")).await.unwrap();
        let read = async |name: &str| Some(store.get(&log(name)).await.ok()?.bytes().await.unwrap());
        assert_eq!(read("1.json").await.unwrap(), "one");
        assert_eq!((read("_last_checkpoint").await, read("3.json").await), (None, None));
        assert_eq!(names(&store, Some("1.json")).await, ["2.json"]);
        for name in ["1.json", "3.json", "_last_checkpoint"] {
            objects.put(&log(name), PutPayload::from_static(b"new")).await.unwrap();
        }
        // A listing that begins later is a part of the one before; one that begins earlier is not.
        assert_eq!(names(&store, Some("1.json")).await, ["2.json"]);
        assert_eq!(names(&store, Some("2.json")).await, Vec::<String>::new());
        assert_eq!(names(&store, None).await, ["1.json", "2.json", "3.json", "_last_checkpoint"]);
        assert_eq!(read("1.json").await.unwrap(), "one");
        assert_eq!(read("_last_checkpoint").await, None, "all readers see the same checkpoint");
        assert_eq!(read("3.json").await.unwrap(), "new", "a commit that is missing may come");
        let checkpoint = log("1.checkpoint.parquet");
        objects.put(&checkpoint, PutPayload::from_static(b"0123456789")).await.unwrap();
        read("1.checkpoint.parquet").await.unwrap();
        objects.delete(&checkpoint).await.unwrap();
        assert_eq!(store.get_ranges(&checkpoint, &[1..3, 4..10]).await.unwrap(), ["12", "456789"]);
        assert_eq!(store.get_range(&checkpoint, 2..10).await.unwrap(), "23456789");
        *lock(&store.log) = None;
        assert!(store.get_range(&checkpoint, 2..10).await.is_err());
        assert_eq!(read("1.json").await.unwrap(), "new");
        assert_eq!(names(&store, Some("2.json")).await, ["3.json", "_last_checkpoint"]);
    }

    #[tokio::test]
    async fn the_end_of_a_parquet_file_is_read_with_its_last_bytes() {
        let (objects, store) = remembering();
        let (small, large) = (Path::from("t/small.parquet"), Path::from("t/large.parquet"));
        let bytes = |n: u64| Bytes::from((0..n).map(|n| (n % 251) as u8).collect::<Vec<u8>>());
        let (few, many) = (bytes(1_000), bytes(3 * END_BYTES));
        objects.put(&small, few.clone().into()).await.unwrap();
        objects.put(&large, many.clone().into()).await.unwrap();
        let end = many.len() as u64;
        assert_eq!(store.get_range(&small, 992..1_000).await.unwrap(), few.slice(992..));
        let last = end - 8..end;
        let found = store.get_ranges(&large, std::slice::from_ref(&last)).await.unwrap();
        assert_eq!(found, [many.slice(many.len() - 8..)]);
        // A range behind the end of the file fails as it does without this store.
        assert!(store.get_range(&small, 5_000..5_008).await.is_err());
        for path in [&small, &large] {
            objects.delete(path).await.unwrap();
        }
        assert_eq!(store.get_range(&small, 0..10).await.unwrap(), few.slice(..10));
        let inside = end - END_BYTES;
        assert_eq!(store.get_ranges(&large, &[inside..inside + 1, end - 9..end]).await.unwrap()[1].len(), 9);
        assert!(store.get_range(&large, inside - 1..end).await.is_err(), "only the end is kept");
    }

    #[test]
    fn the_ends_that_are_kept_are_bounded() {
        let mut ends = Ends::default();
        let meta = |path: &Path| ObjectMeta {
            location: path.clone(),
            last_modified: chrono::DateTime::UNIX_EPOCH,
            size: END_BYTES,
            e_tag: None,
            version: None,
        };
        let paths: Vec<Path> = (0..=ENDS_MAX as u64 / END_BYTES).map(|n| Path::from(format!("{n}.parquet"))).collect();
        for path in paths.iter().chain([&paths[1]]) {
            let bytes = vec![0; END_BYTES as usize].into();
            ends.keep(path, 0, Remembered { bytes, meta: meta(path), attributes: Attributes::default() });
        }
        assert_eq!((ends.bytes, ends.ends.len(), ends.order.len()), (ENDS_MAX, paths.len() - 1, paths.len() - 1));
        assert!(ends.part(&paths[0], &(0..1)).is_none(), "the oldest went");
        assert!(ends.part(&paths[1], &(0..1)).is_some());
    }
}
