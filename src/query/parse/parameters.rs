//! Parameters of a statement: `$name` stands for a text, a number or a truth value.
//!
//! A parameter is put into the parsed statement as a literal. So it means what the literal would mean in its place, and
//! no text can become SQL.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{Expr, Statement, UnaryOperator, Value, ValueWithSpan, VisitMut, VisitorMut};

/// Values of `$name`, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters(BTreeMap<String, Parameter>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Parameter {
    Number(String),
    Truth(bool),
    Text(String),
}

impl Parameters {
    /// Reads parameters, each `name=value`. The value is an integer, a decimal number, `true`, `false`, or else a text.
    /// Between single quotes it is always a text.
    ///
    /// # Errors
    /// A parameter has no `=`, its name is no name, or a name is given twice.
    pub fn read<T: AsRef<str>>(given: impl IntoIterator<Item = T>) -> Result<Self, String> {
        let mut found = BTreeMap::new();
        for text in given {
            let text = text.as_ref();
            let Some((name, value)) = text.split_once('=') else {
                return Err(format!("parameter {text:?} has no value; write --param name=value"));
            };
            let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            if !is_name {
                return Err(format!("{name:?} is no name of a parameter; it has letters, digits and _"));
            }
            if found.insert(name.to_owned(), parameter(value)).is_some() {
                return Err(format!("parameter {name} is given twice; leave one out"));
            }
        }
        Ok(Self(found))
    }

    /// Sets one more parameter, `name=value` as for [`Parameters::read`], or another value of one.
    ///
    /// # Errors
    /// There is no `=`, or the name is no name.
    pub fn set(&mut self, given: &str) -> Result<(), String> {
        self.0.extend(Self::read([given])?.0);
        Ok(())
    }

    /// Puts the parameters into a statement.
    ///
    /// # Errors
    /// The statement names a parameter that is not there, or writes it in another way than `$name`.
    pub(super) fn bind(&self, statement: &mut Statement) -> Result<(), String> {
        match VisitMut::visit(statement, &mut Binder(self)) {
            ControlFlow::Break(found) => Err(found.into()),
            ControlFlow::Continue(()) => Ok(()),
        }
    }
}

fn parameter(value: &str) -> Parameter {
    let quoted = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\''));
    match value {
        "true" => Parameter::Truth(true),
        "false" => Parameter::Truth(false),
        number if is_number(number) => Parameter::Number(number.to_owned()),
        text => Parameter::Text(quoted.unwrap_or(text).to_owned()),
    }
}

/// Returns whether a text is a number in the only form that loses nothing: 007 and 1e3 may be names.
fn is_number(text: &str) -> bool {
    let text = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_digits(whole) && is_digits(fraction) && (whole == "0" || !whole.starts_with('0'))
}

struct Binder<'a>(&'a Parameters);

impl VisitorMut for Binder<'_> {
    type Break = Box<str>;

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<Box<str>> {
        let Expr::Value(ValueWithSpan { value: Value::Placeholder(sign), .. }) = expr else {
            return ControlFlow::Continue(());
        };
        let Some(name) = sign.strip_prefix('$').filter(|name| !name.is_empty()) else {
            return ControlFlow::Break(format!("{sign} is no parameter; write $name, and --param name=value").into());
        };
        let Some(parameter) = self.0.0.get(name) else {
            return ControlFlow::Break(format!("parameter ${name} has no value; add --param {name}=value").into());
        };
        *expr = match parameter {
            Parameter::Number(number) => match number.strip_prefix('-') {
                Some(number) => {
                    let expr = Box::new(Expr::Value(Value::Number(number.to_owned(), false).into()));
                    Expr::Nested(Box::new(Expr::UnaryOp { op: UnaryOperator::Minus, expr }))
                }
                None => Expr::Value(Value::Number(number.clone(), false).into()),
            },
            Parameter::Truth(truth) => Expr::Value(Value::Boolean(*truth).into()),
            Parameter::Text(text) => Expr::Value(Value::SingleQuotedString(text.clone()).into()),
        };
        ControlFlow::Continue(())
    }
}

#[cfg(test)]
mod tests {
    use datafusion::sql::sqlparser::parser::Parser;

    use super::*;
    use crate::query::parse::dialect::LakeDialect;

    fn bound(text: &str, given: &[&str]) -> Result<String, String> {
        let mut statement = Parser::parse_sql(&LakeDialect::default(), text).unwrap().remove(0);
        Parameters::read(given)?.bind(&mut statement)?;
        Ok(statement.to_string())
    }

    #[test]
    fn a_parameter_becomes_a_literal() {
        let given =
            ["n=5", "d=-0.5", "t=true", "k=a'b; drop", "day=2026-01-02", "zeros=007", "quoted='5'", "e=", "eq=a=b"];
        for (text, expected) in [
            ("SELECT $n, $d, $t", "SELECT 5, (-0.5), true"),
            ("SELECT $k, $e, $eq", "SELECT 'a''b; drop', '', 'a=b'"),
            ("SELECT $zeros, $quoted", "SELECT '007', '5'"),
            (
                "SELECT a FROM t WHERE d >= $day AND k IN ($k) LIMIT $n",
                "SELECT a FROM t WHERE d >= '2026-01-02' AND k IN ('a''b; drop') LIMIT 5",
            ),
            ("SELECT '$n'", "SELECT '$n'"),
        ] {
            assert_eq!(bound(text, &given).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_missing_parameter_is_named() {
        let error = bound("SELECT $day", &["dya=1"]).unwrap_err();
        assert_eq!(error, "parameter $day has no value; add --param day=value");
        for (given, part) in [("day", "has no value"), ("=1", "no name"), ("a b=1", "no name")] {
            assert!(Parameters::read([given]).unwrap_err().contains(part), "{given}");
        }
        assert!(Parameters::read(["a=1", "a=2"]).unwrap_err().contains("twice"));
        assert!(bound("SELECT ?", &[]).unwrap_err().contains("$name"));
    }
}
