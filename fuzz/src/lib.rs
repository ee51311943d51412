//! Modules under test, included by path.
#![allow(missing_docs, dead_code)]

#[path = "../../src/decode"]
pub mod decode {
    pub mod aggregate;
    pub mod event;
    pub mod reject;
    pub mod rows;

    pub use aggregate::{Part, parts};
    pub use reject::{Reason, Reject};
    pub use rows::{Event, Flags, Row, decode, decode_with, payload_url, write_extra};
}

// An inline module, because a file that `path` names looks for its modules beside itself, not in `redact`.
#[path = "../../src"]
mod sources {
    pub mod redact;
}
pub use sources::redact;

#[path = "../../src/payload/policy.rs"]
pub mod policy;
