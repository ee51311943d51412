//! Integration tests, in one binary, because each further binary would link DataFusion again.
//!
//! Tests that need a server read its address from the environment, where `make test` puts it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests end by panicking")]

mod answers;
mod bad_input;
mod benches;
mod care;
mod catalog;
mod collapse;
mod compact;
mod cost;
mod crash;
mod damage;
mod decoder;
mod doctor;
mod documents;
mod exports;
mod extract;
mod files;
mod fleet;
mod formats;
mod functions;
#[path = "../fuzz_sql/mod.rs"]
mod fuzz_sql;
mod harness;
mod interop;
mod kinesis;
mod layers;
mod manifest;
mod objects;
mod opening;
mod payload;
mod policies;
mod pools;
mod quarantine;
mod questions;
mod readers;
mod readme;
mod redrive;
mod retain;
mod schemas;
mod several;
mod shell;
mod state;
mod status;
mod stores;
mod streams;
mod suites;
mod trimming;
mod vacuum;
mod verify;
mod views;
mod writers;
