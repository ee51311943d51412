//! The rooms under test, by path.
#![allow(missing_docs, dead_code)]

#[path = "../../src/decode"]
pub mod decode {
    pub mod aggregate;
    pub mod event;
    pub mod redact;
    pub mod reject;
    pub mod rows;

    pub use aggregate::{Part, parts};
    pub use redact::{redact, redact_payload, redact_url};
    pub use reject::{Reason, Reject};
    pub use rows::{Event, Flags, Row, decode, decode_with, payload_url, write_extra};
}

#[path = "../../src/payload/policy.rs"]
pub mod policy;
