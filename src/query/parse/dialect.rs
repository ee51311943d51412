//! The SQL dialect: DataFusion's generic one, but some operators bind as in standard SQL and PostgreSQL.
//!
//! - `IS [NOT] DISTINCT FROM`: sqlparser 0.62 takes everything up to the next parenthesis as the right operand.
//!   `a IS DISTINCT FROM b AND c` would become `a IS DISTINCT FROM (b AND c)`.
//! - `->`, `->>`, `?` and `||` bind less than `+` and more than comparisons. In sqlparser, `->` binds less than `=`:
//!   `a ->> 'b' = 'c'` would become `a ->> ('b' = 'c')`. And `||` binds as `*`.
//! - `?` is an operator. In sqlparser it is a placeholder, which has no use here.

use std::any::TypeId;

use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr};
use datafusion::sql::sqlparser::dialect::{Dialect, GenericDialect};
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;

/// Precedence of the operators that PostgreSQL calls "any other": between `+` (30) and the bit operators (24).
const OTHER: u8 = 25;

/// The generic dialect, except for the operators named above.
#[derive(Debug, Default)]
pub(crate) struct LakeDialect(GenericDialect);

macro_rules! as_generic {
    ($($name:ident,)*) => {
        $(fn $name(&self) -> bool {
            self.0.$name()
        })*
    };
}

impl Dialect for LakeDialect {
    /// Returns the generic dialect's id. The parser compares this id where it does not call a method of the dialect.
    fn dialect(&self) -> TypeId {
        TypeId::of::<GenericDialect>()
    }

    fn parse_infix(&self, parser: &mut Parser, expr: &Expr, precedence: u8) -> Option<Result<Expr, ParserError>> {
        let is = [Keyword::IS, Keyword::DISTINCT, Keyword::FROM];
        let is_not = [Keyword::IS, Keyword::NOT, Keyword::DISTINCT, Keyword::FROM];
        let operands = |parser: &mut Parser| Ok((Box::new(expr.clone()), Box::new(parser.parse_subexpr(precedence)?)));
        if parser.parse_keywords(&is) {
            return Some(operands(parser).map(|(left, right)| Expr::IsDistinctFrom(left, right)));
        }
        if parser.parse_keywords(&is_not) {
            return Some(operands(parser).map(|(left, right)| Expr::IsNotDistinctFrom(left, right)));
        }
        if is_question(&parser.peek_token_ref().token) {
            parser.advance_token();
            let op = BinaryOperator::Question;
            return Some(operands(parser).map(|(left, right)| Expr::BinaryOp { left, op, right }));
        }
        None
    }

    fn get_next_precedence(&self, parser: &Parser) -> Option<Result<u8, ParserError>> {
        let token = &parser.peek_token_ref().token;
        let is_other = matches!(
            token,
            Token::StringConcat | Token::Arrow | Token::LongArrow | Token::HashArrow | Token::HashLongArrow
        );
        (is_other || is_question(token)).then_some(Ok(OTHER))
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        self.0.is_delimited_identifier_start(ch)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        self.0.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        self.0.is_identifier_part(ch)
    }

    as_generic! {
        supports_unicode_string_literal,
        supports_partition_by_after_order_by,
        supports_array_join_syntax,
        supports_group_by_expr,
        supports_group_by_with_modifier,
        supports_left_associative_joins_without_parens,
        supports_connect_by,
        supports_match_recognize,
        supports_pipe_operator,
        supports_start_transaction_modifier,
        supports_window_function_null_treatment_arg,
        supports_dictionary_syntax,
        supports_window_clause_named_window_reference,
        supports_parenthesized_set_variables,
        supports_select_wildcard_except,
        support_map_literal_syntax,
        allow_extract_custom,
        allow_extract_single_quotes,
        supports_extract_comma_syntax,
        supports_create_view_comment_syntax,
        supports_parens_around_table_factor,
        supports_values_as_table_factor,
        supports_create_index_with_clause,
        supports_explain_with_utility_options,
        supports_limit_comma,
        supports_update_order_by,
        supports_from_first_select,
        supports_projection_trailing_commas,
        supports_asc_desc_in_column_definition,
        supports_try_convert,
        supports_bitwise_shift_operators,
        supports_comment_on,
        supports_load_extension,
        supports_named_fn_args_with_assignment_operator,
        supports_struct_literal,
        supports_empty_projections,
        supports_nested_comments,
        supports_multiline_comment_hints,
        supports_user_host_grantee,
        supports_string_escape_constant,
        supports_array_typedef_with_brackets,
        supports_match_against,
        supports_set_names,
        supports_comma_separated_set_assignments,
        supports_filter_during_aggregation,
        supports_select_wildcard_exclude,
        supports_data_type_signed_suffix,
        supports_interval_options,
        supports_quote_delimited_string,
        supports_select_wildcard_replace,
        supports_select_wildcard_ilike,
        supports_select_wildcard_rename,
        supports_optimize_table,
        supports_install,
        supports_detach,
        supports_prewhere,
        supports_with_fill,
        supports_limit_by,
        supports_interpolate,
        supports_settings,
        supports_select_format,
        supports_comment_optimizer_hint,
        supports_constraint_keyword_without_name,
        supports_key_column_option,
        supports_comma_separated_trim,
        supports_cte_without_as,
        supports_select_item_multi_column_alias,
        supports_xml_expressions,
    }
}

fn is_question(token: &Token) -> bool {
    matches!(token, Token::Placeholder(sign) if sign == "?")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn same(text: &str, explicit: &str) {
        let shape = |text: &str| {
            format!("{:?}", Parser::new(&LakeDialect::default()).try_with_sql(text).unwrap().parse_expr().unwrap())
        };
        let bare = |text: &str| text.replace("Nested(", "").replace(')', "").replace(char::is_numeric, "");
        assert_eq!(bare(&shape(text)), bare(&shape(explicit)), "{text}");
    }

    #[test]
    fn is_distinct_from_binds_more_than_and() {
        same("a is distinct from b and c", "(a is distinct from b) and c");
        same("p and a is not distinct from b or c", "(p and (a is not distinct from b)) or c");
        same("not a is distinct from b and c", "(not (a is distinct from b)) and c");
        same("a is distinct from b + 1", "a is distinct from (b + 1)");
        same("a is not null and b", "(a is not null) and b");
    }

    #[test]
    fn operators_of_json_bind_as_in_postgresql() {
        same("a ->> 'b' = 'c'", "(a ->> 'b') = 'c'");
        same("a -> 'b' -> 'c' ->> 'd' in ('e')", "(((a -> 'b') -> 'c') ->> 'd') in ('e')");
        same("a ->> 'b' || 'c' like 'd'", "((a ->> 'b') || 'c') like 'd'");
        same("a -> 0 + 1", "a -> (0 + 1)");
        same("a ->> 'b' is null and c", "((a ->> 'b') is null) and c");
        same("not a ? 'b' or a ? 'c'", "(not (a ? 'b')) or (a ? 'c')");
        same("a -> -1 ? 'b'", "(a -> (-1)) ? 'b'");
        same("a || b * c", "a || (b * c)");
        same("x between a -> 'b' and a -> 'c'", "x between (a -> 'b') and (a -> 'c')");
        same("a -> 'b'::text", "a -> ('b'::text)");
    }
}
