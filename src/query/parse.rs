//! Parses SQL so that a statement means what it says.
//!
//! Operators bind as in standard SQL ([`dialect`]). Parameters are filled in ([`parameters`]). Calls that other engines
//! know are rewritten ([`calls`]). Syntax that the planner drops silently is refused by name ([`ignored`]). Syntax that
//! the planner misunderstands is rewritten to the correct meaning ([`mistaken`]).

use datafusion::execution::{FunctionRegistry, SessionState};
use datafusion::sql::parser::{DFParser, DFParserBuilder, Statement as Parsed};
use datafusion::sql::sqlparser::ast::{DescribeAlias, ObjectName, ShowStatementIn, ShowStatementOptions, Statement};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::tokenizer::Token;

use super::QueryError;

mod calls;
mod dialect;
mod ignored;
mod mistaken;
mod parameters;

pub use parameters::Parameters;

/// What a statement asks for.
#[derive(Debug)]
pub(super) enum Request {
    /// Rows of a query, and the characters that were put before its first line.
    Rows(Box<Parsed>, usize),
    /// A summary of each column of a query.
    Summary(Box<Parsed>),
    /// Columns of a query.
    ColumnsOf(Box<Parsed>),
    /// Columns of a table or view.
    Columns(String),
    /// Tables and views, or only one of these kinds.
    Tables(Option<&'static str>),
}

/// Stands before a statement that begins with FROM.
const SELECT_ALL: &str = "SELECT * ";

/// Parses one statement.
///
/// # Errors
/// The text is no SQL, holds several statements, holds syntax that the planner ignores or misunderstands, or names a
/// parameter that has no value.
pub(super) fn request(text: &str, session: &SessionState, parameters: &Parameters) -> Result<Request, QueryError> {
    let dialect = dialect::LakeDialect::default();
    let limit = session.config_options().sql_parser.recursion_limit.get();
    let parser = Parsers { dialect: &dialect, limit };
    let mut whole = parser.of(text)?;
    let is_summary = takes(&mut whole, "summarize");
    let (mut first, added) = match is_summary && !begins_query(&whole) {
        true => {
            let name = whole.parser.parse_object_name(true).map_err(|error| invalid(&error))?;
            let end = whole.parser.peek_token();
            if !matches!(end.token, Token::EOF | Token::SemiColon) {
                return Err(QueryError::Refused(format!(
                    "SUMMARIZE {name} is complete before {end}; write SUMMARIZE SELECT … for a query"
                )));
            }
            (one(parser.of(&format!("SELECT * FROM {name}"))?)?, 0)
        }
        // The parser ends `FROM x` after the table.
        false if !is_summary && next(&whole) == Some(Keyword::FROM) => {
            match parser.of(&format!("{SELECT_ALL}{text}")).and_then(one) {
                Ok(parsed) => (parsed, SELECT_ALL.len()),
                Err(_) => (one(whole)?, 0),
            }
        }
        false => (one(whole)?, 0),
    };
    if let Some(shown) = shown(&first)? {
        return Ok(shown);
    }
    if let Some(inner) = inner(&mut first) {
        parameters.bind(inner).map_err(QueryError::Refused)?;
        calls::rewrite(inner).map_err(QueryError::Refused)?;
        ignored::refuse(inner, session as &dyn FunctionRegistry).map_err(QueryError::Refused)?;
        mistaken::mend(inner).map_err(QueryError::Refused)?;
    }
    Ok(match (is_summary, described(first)) {
        (true, Ok(query) | Err(query)) => Request::Summary(query),
        (false, Ok(query)) => Request::ColumnsOf(query),
        (false, Err(statement)) => Request::Rows(statement, added),
    })
}

fn invalid(error: &datafusion::sql::sqlparser::parser::ParserError) -> QueryError {
    super::teach::syntax(&error.to_string())
}

fn one(mut parser: DFParser<'_>) -> Result<Parsed, QueryError> {
    let mut parsed = parser.parse_statements()?;
    match (parsed.pop_front(), parsed.is_empty()) {
        (Some(first), true) => Ok(first),
        _ => Err(QueryError::Refused("one statement is expected, and there are several; end the first one".to_owned())),
    }
}

/// Takes a word that the parser does not know.
fn takes(parser: &mut DFParser<'_>, word: &str) -> bool {
    let is_there =
        matches!(&parser.parser.peek_token_ref().token, Token::Word(next) if next.value.eq_ignore_ascii_case(word));
    if is_there {
        parser.parser.advance_token();
    }
    is_there
}

/// Returns the next word, if it is a keyword.
fn next(parser: &DFParser<'_>) -> Option<Keyword> {
    if let Token::Word(word) = &parser.parser.peek_token_ref().token { Some(word.keyword) } else { None }
}

fn begins_query(parser: &DFParser<'_>) -> bool {
    match next(parser) {
        Some(word) => matches!(word, Keyword::SELECT | Keyword::WITH | Keyword::VALUES | Keyword::FROM),
        None => parser.parser.peek_token_ref().token == Token::LParen,
    }
}

/// Makes parsers of statements.
struct Parsers<'a> {
    dialect: &'a dialect::LakeDialect,
    limit: usize,
}

impl<'a> Parsers<'a> {
    fn of<'t>(&self, text: &'t str) -> Result<DFParser<'t>, QueryError>
    where
        'a: 't,
    {
        Ok(DFParserBuilder::new(text).with_dialect(self.dialect).with_recursion_limit(self.limit).build()?)
    }
}

/// Returns what a statement shows of the catalogue, or `None` if it is a query.
fn shown(parsed: &Parsed) -> Result<Option<Request>, QueryError> {
    let Parsed::Statement(statement) = parsed else { return Ok(None) };
    let plain = |is_plain: bool, options: &ShowStatementOptions, what: &str| match is_plain
        && options.starts_with.is_none()
        && options.limit.is_none()
        && options.limit_from.is_none()
        && options.filter_position.is_none()
    {
        true => Ok(()),
        false => Err(QueryError::Refused(format!("{what} shows all of them; leave the other words out"))),
    };
    Ok(Some(match statement.as_ref() {
        Statement::ExplainTable {
            describe_alias: DescribeAlias::Describe | DescribeAlias::Desc,
            table_name,
            hive_format: None,
            ..
        } => Request::Columns(relation(table_name)?),
        Statement::ShowColumns { extended, full, show_options } => {
            plain(!extended && !full, show_options, "SHOW COLUMNS FROM x")?;
            match &show_options.show_in {
                Some(ShowStatementIn { parent_type: None, parent_name: Some(name), .. }) => {
                    Request::Columns(relation(name)?)
                }
                _ => {
                    return Err(QueryError::Refused(
                        "SHOW COLUMNS takes a table or view: SHOW COLUMNS FROM x".to_owned(),
                    ));
                }
            }
        }
        Statement::ShowTables { terse, history, extended, full, external, show_options } => {
            let is_plain = !(*terse || *history || *extended || *full || *external) && show_options.show_in.is_none();
            plain(is_plain, show_options, "SHOW TABLES")?;
            Request::Tables(None)
        }
        Statement::ShowViews { terse, materialized, show_options } => {
            plain(!terse && !materialized && show_options.show_in.is_none(), show_options, "SHOW VIEWS")?;
            Request::Tables(Some("view"))
        }
        _ => return Ok(None),
    }))
}

/// Returns the name of a table or view, which has one part.
fn relation(name: &ObjectName) -> Result<String, QueryError> {
    let ident = match name.0.as_slice() {
        [part] => part.as_ident(),
        _ => None,
    };
    let unknown = || QueryError::Refused(format!("{name} is no table or view; SHOW TABLES lists them"));
    let ident = ident.ok_or_else(unknown)?;
    Ok(if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() })
}

/// Returns the query whose columns are asked for, or the statement itself.
fn described(parsed: Parsed) -> Result<Box<Parsed>, Box<Parsed>> {
    let is_described = matches!(
        &parsed,
        Parsed::Statement(statement) if matches!(
            statement.as_ref(),
            Statement::Explain { describe_alias: DescribeAlias::Describe | DescribeAlias::Desc, analyze: false, .. }
        )
    );
    match parsed {
        Parsed::Statement(statement) if is_described => match *statement {
            Statement::Explain { statement, .. } => Ok(Box::new(Parsed::Statement(statement))),
            other => Err(Box::new(Parsed::Statement(Box::new(other)))),
        },
        other => Err(Box::new(other)),
    }
}

/// Returns the statement itself, also under EXPLAIN.
fn inner(parsed: &mut Parsed) -> Option<&mut Statement> {
    match parsed {
        Parsed::Statement(statement) => Some(statement.as_mut()),
        Parsed::Explain(explain) => inner(&mut explain.statement),
        _ => None,
    }
}
