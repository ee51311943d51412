//! synclake exports Amazon Cognito Sync streams from Kinesis into a Parquet data lake and answers SQL over it.
//!
//! ```text
//! source ─▶ decode ─▶ batch ─▶ lake ◀─ query ◀─ extract
//!   (ingest wires these)
//! ```
//!
//! **The promise.** Every record of a source is in the lake exactly once, or in the quarantine with a reason. A reader
//! never sees a half-written batch. Memory is bounded.
//!
//! | room | what it does | what it never does |
//! |---|---|---|
//! | [`source`] | reads shards and files into records | decide what a record means |
//! | [`decode`] | bytes to rows, or to a reason | I/O |
//! | [`payload`] | fetches what an event only points at, under guard | use credentials |
//! | [`batch`] | rows to Arrow, by shard, pool and date | I/O, look at a clock |
//! | [`lake`] | files, commits, positions: the commit is the truth | understand a position |
//! | [`ingest`] | the loop over those four | |
//! | [`query`] | views over one snapshot | write; import `source`; list folders |
//! | [`extract`] | daily extracts, and what is new for a consumer | |
//! | [`ddl`] | tables and views for other engines | ask a lake |
//! | [`simulate`] | a stream from a seed, and its true end state | use any of the above |
//!
//! `docs/architecture.md` is the map with its invariants.

pub mod aws;
pub(crate) mod backoff;
pub(crate) mod batch;
pub(crate) mod budget;
pub(crate) mod causes;
pub mod config;
pub mod cpu;
pub mod ddl;
pub mod decode;
pub mod extract;
pub mod failpoint;
pub mod ids;
pub mod ingest;
pub mod lake;
pub mod payload;
pub mod print;
pub mod query;
pub(crate) mod record;
pub(crate) mod redact;
pub mod redrive;
pub mod schema;
pub mod shell;
pub mod simulate;
pub mod source;
pub mod terminal;
pub(crate) mod text;
pub mod verify;
