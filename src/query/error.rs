//! Errors of queries, in the words of the user.

use datafusion::error::DataFusionError;

use super::spill;
use super::teach::{self, Place, Planned, Written};
use crate::lake::LakeError;

/// An error of a query.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// Failure to read the lake.
    #[error(transparent)]
    Lake(#[from] LakeError),
    /// Statement that synclake rejects, before or while it is planned or executed.
    #[error("{0}")]
    Refused(String),
    /// Statement that is no SQL at a place, or names there what does not exist.
    #[error("{what}{}{hint}", at(*.place))]
    Placed {
        /// What was expected, and what was found.
        what: String,
        /// The name that was probably meant, or the names that exist, with the separator before it; may be empty.
        hint: String,
        /// Where it was found.
        place: Option<Place>,
        /// The line of the statement and a caret below it, for a terminal; empty without a place.
        excerpt: String,
    },
    /// Failure of a statement or command of a file.
    #[error("{path}{}", in_line(*.line))]
    InFile {
        /// The file.
        path: String,
        /// The line where the statement begins, if the error does not tell a place.
        line: Option<usize>,
        /// The error.
        #[source]
        source: Box<QueryError>,
    },
    /// More memory needed than allowed.
    #[error("out of memory ({0}); raise --memory, or filter by pool or date")]
    Memory(String),
    /// Failure to keep spilled data on disk.
    #[error("{0}")]
    Disk(String),
    /// Error of DataFusion, from planning or execution.
    #[error("{}", one_line(.0))]
    Sql(#[source] DataFusionError),
    /// Failure to read a file of statements.
    #[error("read {path}")]
    Script {
        /// The file.
        path: String,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// Failure to write the result.
    #[error("write {path}")]
    Output {
        /// Destination of the result.
        path: String,
        /// Error of the operating system.
        #[source]
        source: std::io::Error,
    },
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        // Without the statement: what is not planned from a user's text.
        if let Some(told) = teach::told(&error, &Written { statement: "", planned: Planned::Other }) {
            return told;
        }
        match error.find_root() {
            // DataFusion's message suggests settings that users cannot change here.
            DataFusionError::ResourcesExhausted(what) => {
                Self::Memory(what.split(" with ").next().unwrap_or(what).to_owned())
            }
            DataFusionError::External(told) if told.is::<UserError>() => Self::Refused(told.to_string()),
            root => match spill::told(root) {
                Some(what) => Self::Disk(what),
                None => Self::Sql(error),
            },
        }
    }
}

impl QueryError {
    /// Returns the line of the statement with a caret below the place of the error, for a terminal.
    pub fn excerpt(&self) -> Option<&str> {
        match self {
            Self::Placed { excerpt, .. } if !excerpt.is_empty() => Some(excerpt),
            Self::InFile { source, .. } => source.excerpt(),
            _ => None,
        }
    }

    /// Returns whether the error tells where in a statement it lies.
    pub(crate) fn has_place(&self) -> bool {
        matches!(self, Self::Placed { place: Some(_), .. })
    }

    /// Returns the error of a statement as one of a text in which the statement begins at a place.
    pub(crate) fn moved(self, begin: Place) -> Self {
        match self {
            Self::Placed { what, hint, place: Some(place), excerpt } => {
                Self::Placed { what, hint, place: Some(begin.then(place)), excerpt }
            }
            error => error,
        }
    }

    /// Returns whether the reader of the output is gone. Then nobody is left to read an error message.
    pub fn is_broken_pipe(&self) -> bool {
        match self {
            Self::Output { source, .. } => source.kind() == std::io::ErrorKind::BrokenPipe,
            Self::InFile { source, .. } => source.is_broken_pipe(),
            _ => false,
        }
    }
}

fn at(place: Option<Place>) -> String {
    place.map_or_else(String::new, |place| format!(" at line {}, column {}", place.line, place.column))
}

fn in_line(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(", line {line}"))
}

/// Formats an error without hints, line breaks, secrets and the names of the engine's parts.
fn one_line(error: &DataFusionError) -> String {
    let text = crate::text::plain(&crate::text::joined(&error.strip_backtrace()));
    let limited: String = text.chars().take(2_000).collect();
    crate::redact::redact(&limited)
}

/// A complete message for the user, passed through DataFusion.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UserError(pub String);

impl From<UserError> for DataFusionError {
    fn from(told: UserError) -> Self {
        Self::External(Box::new(told))
    }
}
