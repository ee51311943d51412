//! Writes that never ended: multipart uploads of a bucket, and temporary files of a local folder. No listing of objects
//! shows them. object_store can abort an upload, but not list uploads.

use std::path::Path as FsPath;

use chrono::{DateTime, Utc};
use object_store::aws::AmazonS3;
use object_store::client::{HttpError, HttpErrorKind};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use serde::Deserialize;

use super::bucket_requests::{BucketRequests, failed};
use super::request_runtime::on_request_runtime;
use super::{LakeError, Store};

/// A write that was begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UnfinishedWrite {
    /// Path relative to the store: of the object to be, or of the temporary file.
    pub path: String,
    /// When it began; of a temporary file, when it was last written to.
    pub at: DateTime<Utc>,
    /// Size in bytes; 0 for an upload, whose parts are not listed.
    pub bytes: u64,
    /// The id of the upload; `None` for a temporary file.
    upload: Option<String>,
}

/// The multipart uploads of a bucket.
#[derive(Debug)]
pub(super) struct Uploads {
    pub objects: AmazonS3,
    pub bucket: BucketRequests,
}

/// A page of the list, as S3 answers `ListMultipartUploads`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default, rename = "Upload")]
    uploads: Vec<Upload>,
    #[serde(default)]
    is_truncated: bool,
    #[serde(default)]
    next_key_marker: String,
    #[serde(default)]
    next_upload_id_marker: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Upload {
    key: String,
    upload_id: String,
    initiated: DateTime<Utc>,
}

impl Uploads {
    /// Returns a page of the uploads below a prefix, after the markers of the page before it.
    async fn page(&self, prefix: &str, (key, id): (&str, &str)) -> object_store::Result<Page> {
        let mut query = vec![("uploads", ""), ("prefix", prefix)];
        if !key.is_empty() {
            query.extend([("key-marker", key), ("upload-id-marker", id)]);
        }
        let (status, body) = self.bucket.get(&query).await?;
        if !status.is_success() {
            let status = std::io::Error::other(format!("S3 answered {status}"));
            return Err(failed(HttpError::new(HttpErrorKind::Unknown, status)));
        }
        quick_xml::de::from_reader(body.as_ref()).map_err(failed)
    }
}

impl Store {
    /// Returns the writes below this root that were begun before a time and have not ended.
    ///
    /// # Errors
    /// The store failed, or the credentials do not allow it.
    pub(crate) async fn unfinished_writes(&self, before: DateTime<Utc>) -> Result<Vec<UnfinishedWrite>, LakeError> {
        let Some(uploads) = self.uploads() else { return self.temporary_files(before).await };
        let prefix = format!("{}/", self.key(""));
        let (mut found, mut after) = (Vec::new(), (String::new(), String::new()));
        loop {
            let (bucket, prefix_of_page, markers) = (uploads.clone(), prefix.clone(), after.clone());
            let page = async move { bucket.page(&prefix_of_page, (&markers.0, &markers.1)).await };
            let page = on_request_runtime(page).await;
            let page = page.map_err(|source| LakeError::storage("list the multipart uploads of", self, "", source))?;
            let old = page.uploads.into_iter().filter(|upload| upload.initiated < before);
            found.extend(old.filter_map(|Upload { key, upload_id, initiated }| {
                let path = key.strip_prefix(&prefix)?.to_owned();
                Some(UnfinishedWrite { path, at: initiated, bytes: 0, upload: Some(upload_id) })
            }));
            let next = (page.next_key_marker, page.next_upload_id_marker);
            if !page.is_truncated || next.0.is_empty() || next == after {
                return Ok(found);
            }
            after = next;
        }
    }

    /// Aborts an upload, or deletes a temporary file. One that has ended meanwhile is no error.
    ///
    /// # Errors
    /// The store failed, or the credentials do not allow it.
    pub(crate) async fn abort(&self, write: &UnfinishedWrite) -> Result<(), LakeError> {
        let fail = |source| LakeError::storage("abort the multipart upload of", self, &write.path, source);
        if let (Some(uploads), Some(id)) = (self.uploads(), write.upload.clone()) {
            let key = format!("{}/{}", self.key(""), write.path);
            let key = Path::parse(key).map_err(|error| fail(error.into()))?;
            let abort = async move { uploads.objects.abort_multipart(&key, &id).await };
            return match on_request_runtime(abort).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(source) => Err(fail(source)),
            };
        }
        let Some(path) = self.folder().map(|folder| folder.join(&write.path)) else { return Ok(()) };
        match tokio::fs::remove_file(&path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(LakeError::folder("delete the temporary file", &path, error))
            }
            _ => Ok(()),
        }
    }

    async fn temporary_files(&self, before: DateTime<Utc>) -> Result<Vec<UnfinishedWrite>, LakeError> {
        let Some(root) = self.folder().map(FsPath::to_owned) else { return Ok(Vec::new()) };
        let shown = root.clone();
        let walk = move || {
            let mut found = Vec::new();
            add_temporary_files(&root, "", before, &mut found).map(|()| found)
        };
        let found = tokio::task::spawn_blocking(walk).await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        found.map_err(|source| LakeError::folder("list the temporary files of", &shown, source))
    }
}

/// Adds the temporary files of a folder of a table and of its subfolders. Links are not followed.
fn add_temporary_files(
    root: &FsPath,
    folder: &str,
    before: DateTime<Utc>,
    found: &mut Vec<UnfinishedWrite>,
) -> std::io::Result<()> {
    let is_ours =
        |name: &str| !name.starts_with(['_', '.']) || name == "_delta_log" || name == "_symlink_format_manifest";
    for entry in std::fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let (path, kind) = (format!("{folder}{name}"), entry.file_type()?);
        if kind.is_dir() && is_ours(&name) {
            add_temporary_files(root, &format!("{path}/"), before, found)?;
        } else if kind.is_file() && is_temporary(folder, &name) {
            // The file may end while the folder is read.
            let Ok(metadata) = entry.metadata() else { continue };
            let at = DateTime::<Utc>::from(metadata.modified()?);
            if at < before {
                found.push(UnfinishedWrite { path, at, bytes: metadata.len(), upload: None });
            }
        }
    }
    Ok(())
}

/// Returns whether a file of a table is one that a writer of a local folder renames or links at its end:
/// `.<name>.<token>.tmp` of this program (`lake/store.rs`), outside of the folders of data files, where a vacuum judges it
/// by the name of its data file; and `<name>#<number>` of object_store.
fn is_temporary(folder: &str, name: &str) -> bool {
    let staged =
        name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp")).and_then(|name| name.rsplit_once('.'));
    let is_token = |token: &str| token.len() == 16 && token.bytes().all(|b| b.is_ascii_hexdigit());
    if let Some((_, token)) = staged {
        return folder.starts_with('_') && is_token(token);
    }
    let is_written = |name: &str| [".parquet", ".json", "_last_checkpoint"].iter().any(|end| name.ends_with(end));
    name.rsplit_once('#').is_some_and(|(name, number)| {
        is_written(name) && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_files_and_others() {
        let (log, data) = ("_delta_log/", "pool=p/event_date=2026-01-01/");
        let staged = ".00000000000000000010.json.0011223344556677.tmp";
        let part = ".part-0.parquet.0011223344556677.tmp";
        for (folder, name, is) in [
            (log, staged, true),
            ("_symlink_format_manifest/pool=p/", ".manifest.0011223344556677.tmp", true),
            (log, "00000000000000000010.checkpoint.parquet#1", true),
            (log, "_last_checkpoint#12", true),
            (data, "part-0.parquet#1", true),
            (data, part, false),
            (log, ".00000000000000000010.json.crc", false),
            (log, "_commit_0b5f.json.tmp", false),
            (data, "part-0.parquet", false),
            (data, "part-0.parquet#a", false),
            (data, "part-0.parquet#", false),
            (data, "notes#1", false),
        ] {
            assert_eq!(is_temporary(folder, name), is, "{folder}{name}");
        }
    }

    #[test]
    fn a_page_of_uploads_is_read() {
        let xml = r#"<?xml version="1.0"?><ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
            <Bucket>b</Bucket><NextKeyMarker>a&amp;b</NextKeyMarker><NextUploadIdMarker>2</NextUploadIdMarker>
            <MaxUploads>1000</MaxUploads><IsTruncated>true</IsTruncated>
            <Upload><Key>a</Key><UploadId>1</UploadId><Initiator><ID>i</ID></Initiator><StorageClass>STANDARD</StorageClass>
            <Initiated>2026-11-10T20:48:33.000Z</Initiated></Upload>
            <Upload><Key>a&amp;b</Key><UploadId>2</UploadId><Initiated>2026-11-11T20:48:33.000Z</Initiated></Upload>
            </ListMultipartUploadsResult>"#;
        let page: Page = quick_xml::de::from_str(xml).unwrap();
        let read: Vec<_> = page.uploads.iter().map(|upload| (&*upload.key, &*upload.upload_id)).collect();
        assert_eq!(read, [("a", "1"), ("a&b", "2")]);
        assert_eq!(page.uploads[0].initiated, "2026-11-10T20:48:33Z".parse::<DateTime<Utc>>().unwrap());
        assert_eq!((page.is_truncated, &*page.next_key_marker, &*page.next_upload_id_marker), (true, "a&b", "2"));
        let none: Page = quick_xml::de::from_str("<ListMultipartUploadsResult/>").unwrap();
        assert!(none.uploads.is_empty() && !none.is_truncated);
    }
}
