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

#[path = "../../src/redact.rs"]
pub mod redact;

#[path = "../../src/payload/policy.rs"]
pub mod policy;
