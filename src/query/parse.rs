//! Parses SQL so that a statement means what it says.
//!
//! Operators bind as in standard SQL ([`dialect`]). Syntax that the planner drops silently is refused by name
//! ([`ignored`]). Syntax that the planner misunderstands is rewritten to the correct meaning ([`mistaken`]).

use datafusion::execution::{FunctionRegistry, SessionState};
use datafusion::sql::parser::{DFParserBuilder, Statement as Parsed};
use datafusion::sql::sqlparser::ast::Statement;

use super::QueryError;

mod dialect;
mod ignored;
mod mistaken;

/// Parses one statement.
///
/// # Errors
/// The text is no SQL, holds several statements, or holds syntax that the planner ignores or misunderstands.
pub(crate) fn statement(text: &str, session: &SessionState) -> Result<Parsed, QueryError> {
    let dialect = dialect::LakeDialect::default();
    let limit = session.config_options().sql_parser.recursion_limit.get();
    let parser = DFParserBuilder::new(text).with_dialect(&dialect).with_recursion_limit(limit).build();
    let mut parsed = parser.and_then(|mut parser| parser.parse_statements())?;
    let (Some(mut first), true) = (parsed.pop_front(), parsed.is_empty()) else {
        return Err(QueryError::Refused(
            "one statement is expected, and there are several; end the first one".to_owned(),
        ));
    };
    if let Some(inner) = inner(&mut first) {
        ignored::refuse(inner, session as &dyn FunctionRegistry).map_err(QueryError::Refused)?;
        mistaken::mend(inner).map_err(QueryError::Refused)?;
    }
    Ok(first)
}

/// Returns the statement itself, also under EXPLAIN.
fn inner(parsed: &mut Parsed) -> Option<&mut Statement> {
    match parsed {
        Parsed::Statement(statement) => Some(statement.as_mut()),
        Parsed::Explain(explain) => inner(&mut explain.statement),
        _ => None,
    }
}
