//! Modules under test, included by path.
#![allow(missing_docs, dead_code)]

#[path = "../../src/decode"]
pub mod decode {
    pub mod aggregate;
    pub mod checks;
    pub mod event;
    pub mod extra;
    pub mod fast;
    pub mod reject;
    pub mod rows;

    pub use aggregate::{Part, parts};
    pub use extra::{Flags, write_extra};
    pub use reject::{Reason, Reject};
    pub use rows::{Event, Row, decode, decode_with, payload_url};
}

// An inline module, because a file that `path` names looks for its modules beside itself, not in `redact`.
#[path = "../../src"]
mod sources {
    pub mod redact;
}
pub use sources::redact;

#[path = "../../src/payload/policy.rs"]
pub mod policy;

/// Returns whether the parser of one pass reads a text as serde_json does, or leaves it to serde_json.
pub fn parsers_agree(text: &str) -> bool {
    let Some(fast) = decode::fast::event(text) else { return true };
    let slow: Result<decode::event::WireEvent<'_>, _> = serde_json::from_str(text);
    slow.is_ok_and(|slow| format!("{fast:?}") == format!("{slow:?}"))
}
