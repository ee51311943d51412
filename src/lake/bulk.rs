//! Deletion of many objects, and the clock of the store that ages of objects are measured by.

use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt;
use object_store::ObjectStoreExt;

use super::{LakeError, Store};
use crate::failpoint;

/// The object that the clock is read from. No table has it, and readers skip names with an underscore.
const PROBE: &str = "_vacuum";
/// Attempts to read the time of the probe. A concurrent vacuum may delete it.
const PROBES: usize = 5;

impl Store {
    /// Returns the current time by the clock of the store: the time that it gives an object that is written now.
    ///
    /// The clock of this machine is not asked. If it were ahead, young files would seem to be old.
    ///
    /// # Errors
    /// The store failed, or does not allow writing.
    pub(crate) async fn clock(&self) -> Result<DateTime<Utc>, LakeError> {
        let mut last = None;
        for _ in 0..PROBES {
            self.put(PROBE, bytes::Bytes::new()).await?;
            match self.objects().head(&self.key(PROBE)).await {
                Ok(object) => {
                    self.delete(PROBE).await?;
                    return Ok(object.last_modified + TimeDelta::seconds(failpoint::seconds_ahead()));
                }
                Err(error @ object_store::Error::NotFound { .. }) => last = Some(error),
                Err(error) => return Err(LakeError::storage("read", self, PROBE, error)),
            }
        }
        Err(match last {
            Some(error) => LakeError::storage("read the time of", self, PROBE, error),
            None => LakeError::Invalid(format!("cannot read the time of {self}")),
        })
    }

    /// Deletes objects, many in one request where the store can do that. Missing objects are no error.
    ///
    /// # Errors
    /// The store failed after its own retries, or refused some of the objects. The others are deleted.
    pub(crate) async fn delete_all(&self, relative: &[String]) -> Result<(), LakeError> {
        if failpoint::refuses("store/delete") {
            let (path, source) = (self.to_string(), "a test refuses it".into());
            let denied = object_store::Error::PermissionDenied { path, source };
            return Err(LakeError::storage("delete", self, "", denied));
        }
        let keys: Vec<_> = relative.iter().map(|path| Ok(self.key(path))).collect();
        let mut deleted = self.objects().delete_stream(futures::stream::iter(keys).boxed());
        let mut failed = None;
        while let Some(answer) = deleted.next().await {
            match answer {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(()), |error| Err(LakeError::storage("delete files of", self, "", error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::AwsSettings;
    use crate::lake::Location;

    #[tokio::test]
    async fn many_objects_go_and_missing_ones_are_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(&Location::Folder(folder.path().into()), &AwsSettings::default()).await.unwrap();
        let names: Vec<String> = (0..2_500).map(|n| format!("a/{n}")).collect();
        for name in names.iter().step_by(500).chain([&"a/stays".to_owned()]) {
            store.put_new(name, "x".into()).await.unwrap();
        }
        store.delete_all(&names).await.unwrap();
        let left: Vec<_> = store.list("").await.unwrap().into_iter().map(|(path, _)| path).collect();
        assert_eq!(left, ["a/stays"]);
    }

    #[tokio::test]
    async fn the_clock_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::create(&Location::Folder(folder.path().into()), &AwsSettings::default()).await.unwrap();
        let (before, now) = (Utc::now(), store.clock().await.unwrap());
        assert!((now - before).abs() < TimeDelta::minutes(1), "{now}");
        assert!(store.list("").await.unwrap().is_empty());
    }
}
