//! The rooms under test, by path.
#![allow(missing_docs, dead_code)]

#[path = "../../src/decode"]
pub mod decode {
    pub mod aggregate;
    pub mod event;
    pub mod reject;
    pub mod rows;

    pub use aggregate::{Part, parts};
    pub use reject::{Reason, Reject, redact, redact_payload};
    pub use rows::{Event, Row, decode, decode_with, payload_url};
}

#[path = "../../src/payload/policy.rs"]
pub mod policy;
