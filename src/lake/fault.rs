//! Classification of storage errors: whether a retry may help, and one sentence of advice for the user.
//!
//! The types in an error's chain decide, never its message.

use std::error::Error;
use std::io::ErrorKind;

use super::{LakeError, s3};
use crate::aws;
use crate::causes::causes;

/// Returns whether a retry cannot help.
pub(crate) fn is_permanent(error: &(dyn Error + 'static)) -> bool {
    let mut by_network = false;
    for cause in causes(error) {
        by_network |= cause.is::<object_store::client::HttpError>();
        if let Some(fault) = cause.downcast_ref::<s3::Fault>() {
            return fault.is_permanent();
        }
        // An I/O error below an HTTP error comes from the network, so a retry may help.
        if let Some(io) = cause.downcast_ref::<std::io::Error>().filter(|_| !by_network) {
            return advice(io.kind()).is_some_and(|(is_permanent, _)| is_permanent);
        }
        if matches!(
            cause.downcast_ref::<object_store::Error>(),
            Some(
                object_store::Error::PermissionDenied { .. }
                    | object_store::Error::Unauthenticated { .. }
                    | object_store::Error::NotSupported { .. }
                    | object_store::Error::NotImplemented { .. }
                    | object_store::Error::InvalidPath { .. }
            )
        ) {
            return true;
        }
    }
    aws::credentials_error(error).is_some_and(aws::is_hopeless)
}

/// Returns the cause of an error and what to do about it, in one sentence, if the kind of the error is known.
pub(crate) fn sentence(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(error) = aws::credentials_error(error) {
        let what = aws::describe_credentials(error);
        return Some(format!("{what}; give --profile, or set AWS_PROFILE or AWS_ACCESS_KEY_ID"));
    }
    let (mut in_store, mut by_network) = (false, false);
    for cause in causes(error) {
        in_store |= cause.is::<object_store::Error>();
        in_store |= matches!(cause.downcast_ref(), Some(LakeError::Folder { .. }));
        by_network |= cause.is::<object_store::client::HttpError>();
        if let Some(fault) = cause.downcast_ref::<s3::Fault>() {
            return Some(fault.to_string());
        }
        if let Some(io) = cause.downcast_ref::<std::io::Error>().filter(|_| in_store && !by_network) {
            return advice(io.kind()).map(|(_, advice)| advice.to_owned());
        }
    }
    None
}

/// Classifies file system errors: whether the error is permanent, and what to do.
fn advice(kind: ErrorKind) -> Option<(bool, &'static str)> {
    Some(match kind {
        ErrorKind::PermissionDenied => {
            (true, "permission denied; give the user that runs this the right to read and write there")
        }
        ErrorKind::ReadOnlyFilesystem => {
            (true, "the file system is read-only; mount it for writing, or name another place")
        }
        ErrorKind::NotADirectory | ErrorKind::IsADirectory => {
            (true, "a file and a folder have the same name; move one of them")
        }
        ErrorKind::InvalidFilename => (true, "the file system does not take that name; name another place"),
        // Somebody may free space.
        ErrorKind::StorageFull => (false, "the disk is full; make room"),
        ErrorKind::QuotaExceeded => (false, "the disk quota is used up; raise it, or make room"),
        ErrorKind::FileTooLarge => {
            (true, "the file is larger than the file system or `ulimit -f` allows; raise the limit")
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::client::{HttpError, HttpErrorKind};

    fn stored(source: impl Error + Send + Sync + 'static) -> object_store::Error {
        object_store::Error::Generic { store: "test", source: Box::new(source) }
    }

    fn io(kind: ErrorKind) -> std::io::Error {
        kind.into()
    }

    #[test]
    fn what_lasts_and_what_may_pass() {
        for kind in [ErrorKind::PermissionDenied, ErrorKind::ReadOnlyFilesystem, ErrorKind::NotADirectory] {
            assert!(is_permanent(&stored(io(kind))), "{kind}");
        }
        for kind in [ErrorKind::StorageFull, ErrorKind::Interrupted, ErrorKind::TimedOut] {
            assert!(!is_permanent(&stored(io(kind))), "{kind}");
        }
        // A refusal by a firewall is a network error.
        let refused = HttpError::new(HttpErrorKind::Connect, io(ErrorKind::PermissionDenied));
        assert!(!is_permanent(&stored(refused)));
        let fault = |kind| s3::Fault { kind, code: "C".into(), bucket: "b".into(), region: "r".into() };
        let by_s3 = |kind| stored(HttpError::new(HttpErrorKind::Unknown, fault(kind)));
        assert!(is_permanent(&by_s3(s3::Kind::NoBucket)));
        assert!(!is_permanent(&by_s3(s3::Kind::Expired)));
        assert_eq!(sentence(&by_s3(s3::Kind::NoBucket)), Some(fault(s3::Kind::NoBucket).to_string()));
        assert!(sentence(&stored(io(ErrorKind::ReadOnlyFilesystem))).unwrap().contains("read-only"));
        assert_eq!(sentence(&io(ErrorKind::ReadOnlyFilesystem)), None, "not of a lake");
        let folder = LakeError::folder("open folder", "/a".as_ref(), io(ErrorKind::PermissionDenied));
        assert!(sentence(&folder).unwrap().contains("give the user"));
        let file = LakeError::folder("create folder", "/a".as_ref(), io(ErrorKind::AlreadyExists));
        assert!(file.to_string().contains("it is a file"), "{file}");
    }
}
