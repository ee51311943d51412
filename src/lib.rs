//! synclake exports Amazon Cognito Streams from Kinesis into a Parquet data lake and answers SQL queries over it.
//!
//! ```text
//! source ─▶ decode ─▶ batch ─▶ lake ◀─ query ◀─ extract
//!   (ingest connects these)
//! ```
//!
//! **The promise.** Every record of a source is in the lake exactly once, or in the quarantine with a reason. A reader
//! never sees a half-written batch. Memory is bounded.
//!
//! | module | what it does | what it never does |
//! |---|---|---|
//! | [`source`] | reads shards and files into records | decide what a record means |
//! | [`decode`] | turns bytes into rows, or into a decode error | I/O |
//! | [`payload`] | fetches payloads that events point to, under a policy | use credentials |
//! | `batch` | turns rows into Arrow batches, by shard, pool and date | I/O, read a clock |
//! | [`lake`] | files, commits, positions: the commit is the truth | interpret a position |
//! | [`ingest`] | the loop over the modules above | |
//! | [`query`] | views over one lake snapshot | write; import `source`; list folders |
//! | [`extract`] | daily extracts, and deliveries to consumers | |
//! | [`compact`] | merges small files, and their rows stay the same | change a row |
//! | [`retain`] | lets old rows leave, and never their state | delete a file |
//! | [`status`] | what an operator wants to know of a lake | open a data file |
//! | [`cognito`], [`streaming`], [`publishing`] | the stream of a pool, and bulk publishes | read records |
//! | [`doctor`] | checks everything around a pipeline | change anything |
//! | [`ddl`] | tables and views for other engines | read a lake |
//! | [`simulate`] | a stream from a seed, and its true end state | use any of the above |
//! | [`steps`] | shows the steps of ingest to measurements | be used by a program |
//!
//! `docs/architecture.md` is the map with its invariants.

pub mod aws;
pub(crate) mod backoff;
pub(crate) mod batch;
pub(crate) mod budget;
pub mod catalog;
pub(crate) mod causes;
pub mod cognito;
pub mod compact;
pub mod config;
pub mod cpu;
pub mod ddl;
pub mod decode;
pub(crate) mod describe;
pub mod doctor;
pub mod extract;
pub mod failpoint;
pub mod iam;
pub mod ids;
pub mod ingest;
pub mod lake;
pub mod payload;
pub mod print;
pub mod publishing;
pub mod query;
pub(crate) mod record;
pub mod redact;
pub mod redrive;
pub mod retain;
pub mod schema;
pub mod shell;
pub mod simulate;
pub mod source;
pub mod status;
pub mod steps;
pub mod streaming;
pub mod terminal;
pub(crate) mod text;
pub mod timeouts;
pub mod vacuum;
pub mod verify;
