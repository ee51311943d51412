//! Decodes the bytes of a record into an event, or into the reason why it is none. Pure: no I/O, no clock, no state.
//!
//! Nothing is dropped on the way: a record becomes rows, or goes to the quarantine as a whole.

pub mod aggregate;
mod checks;
pub(crate) mod event;
mod extra;
pub(crate) mod fast;
pub(crate) mod reject;
pub(crate) mod rows;

pub use aggregate::{Part, parts};
pub use extra::{Flags, write_extra};
pub use reject::{Reason, Reject};
pub use rows::{Event, Row, decode, decode_with, payload_url};
