//! Counts of the files and bytes that a statement reads, for EXPLAIN ANALYZE.

use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::SchemaRef;
use datafusion::error::Result;
use indicatif::{HumanBytes, HumanCount};

use super::parse::{self, Request};
use super::{Engine, QueryError, relations};
use crate::lake::counted::Reads;

/// Counts of the files that a statement reads, and of all files of its tables.
#[derive(Debug, Clone)]
pub struct Scan {
    reads: Reads,
    /// Files of all tables below the statement.
    files: u64,
    /// Their bytes.
    bytes: u64,
}

impl Engine {
    /// Returns what a statement reads. The statement was planned before, and nothing else runs beside it.
    ///
    /// # Errors
    /// The log of a table cannot be read.
    pub async fn scan(&self, statement: &str) -> Result<Scan, QueryError> {
        let state = self.context.state();
        let names = match parse::request(statement, &state, &self.parameters)? {
            Request::Rows(parsed, _) => relations::named(&parsed, &state),
            _ => relations::Names::new(),
        };
        let (files, bytes) = self.relations.files(names, &state).await?;
        Ok(Scan { reads: self.reads.clone(), files, bytes })
    }
}

impl Scan {
    /// Returns the counts as a last row of the plan.
    ///
    /// # Errors
    /// The schema is not that of a plan.
    pub fn row(&self, schema: SchemaRef) -> Result<RecordBatch> {
        let (read, bytes) = self.reads.counts();
        let told = format!(
            "{} of {} files, {} (all files have {}); {} files were skipped",
            HumanCount(read),
            HumanCount(self.files),
            HumanBytes(bytes),
            HumanBytes(self.bytes),
            HumanCount(self.files.saturating_sub(read)),
        );
        let column = |text: &str| Arc::new(StringArray::from(vec![text])) as _;
        Ok(RecordBatch::try_new(schema, vec![column("Read"), column(&told)])?)
    }
}
