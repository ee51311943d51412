//! Expressions that can fail on a row. They must not be evaluated on rows that a guard beside them excludes.

use arrow::datatypes::DataType;
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Operator, Volatility};
use datafusion::scalar::ScalarValue;

use super::identity::SAME;
use crate::query::functions::json;

/// Functions that return a result for every row.
const TOTAL: [&str; 47] = [
    "array_length",
    "arrow_typeof",
    "ascii",
    "bit_length",
    "btrim",
    "cardinality",
    "character_length",
    "checked_concat",
    "coalesce",
    "concat",
    "concat_ws",
    "contains",
    "digest",
    "ends_with",
    "get_field",
    "greatest",
    "initcap",
    "interval_length",
    "isnan",
    "iszero",
    "least",
    "length",
    "levenshtein",
    "lower",
    "ltrim",
    "make_array",
    "md5",
    "named_struct",
    "nullif",
    "nvl",
    "nvl2",
    "octet_length",
    "reverse",
    "round",
    "rtrim",
    SAME,
    "sha224",
    "sha256",
    "sha384",
    "sha512",
    "starts_with",
    "strpos",
    "struct",
    "to_hex",
    "trim",
    "trunc",
    "upper",
];
/// Functions that return a result for every row if all their arguments but one are constants.
const TOTAL_OF_ONE: [&str; 14] = [
    "date_bin",
    "date_part",
    "date_trunc",
    "left",
    "regexp_count",
    "regexp_extract",
    "regexp_instr",
    "regexp_like",
    "regexp_match",
    "regexp_replace",
    "right",
    "split_part",
    "substr",
    "encode",
];

/// Returns whether evaluating the expression on a row may fail.
pub(crate) fn can_fail(expr: &Expr, schema: &DFSchema) -> bool {
    let mut found = false;
    let looked = expr.apply(|part| {
        if is_folded(part) {
            return Ok(TreeNodeRecursion::Jump);
        }
        found = fails_itself(part, schema);
        Ok(if found { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    found || looked.is_err()
}

/// Returns whether constant folding has replaced the expression, or has failed, before rows are read.
fn is_folded(expr: &Expr) -> bool {
    let is_open = |part: &Expr| match part {
        Expr::Literal(..) | Expr::Cast(_) | Expr::TryCast(_) | Expr::Negative(_) => false,
        Expr::BinaryExpr(binary) => matches!(binary.op, Operator::Divide | Operator::Modulo),
        Expr::ScalarFunction(function) => function.func.signature().volatility == Volatility::Volatile,
        _ => true,
    };
    !expr.exists(|part| Ok(is_open(part))).unwrap_or(true)
}

fn fails_itself(expr: &Expr, schema: &DFSchema) -> bool {
    let type_of = |expr: &Expr| expr.get_type(schema).ok();
    match expr {
        Expr::Cast(cast) => type_of(&cast.expr).is_none_or(|from| !is_total(&from, cast.field.data_type())),
        Expr::Negative(inner) => type_of(inner).is_none_or(|of| is_bounded(&of)),
        Expr::BinaryExpr(BinaryExpr { op, right, .. }) => {
            let constant = match right.as_ref() {
                Expr::Literal(value, _) => Some(value),
                _ => None,
            };
            can_operator_fail(*op, || type_of(expr), constant)
        }
        Expr::SimilarTo(like) => !matches!(*like.pattern, Expr::Literal(..)),
        Expr::ScalarFunction(function) => {
            let variable = function.args.iter().filter(|arg| !matches!(arg, Expr::Literal(..))).count();
            !is_total_function(function.name(), variable)
        }
        Expr::HigherOrderFunction(_) | Expr::Lambda(_) | Expr::Unnest(_) => true,
        _ => false,
    }
}

/// Returns whether sums and products of this type may exceed it. (Dates and times are assumed to be near the present.)
fn is_bounded(of: &DataType) -> bool {
    of.is_integer() || of.is_decimal()
}

/// Returns whether an operator may fail. `of`: type of its result. `right`: its right operand, if that is a constant.
pub(crate) fn can_operator_fail(op: Operator, of: impl Fn() -> Option<DataType>, right: Option<&ScalarValue>) -> bool {
    let is_bounded = || of().is_none_or(|of| is_bounded(&of));
    let is_safe = |by: &ScalarValue| {
        let by = by.cast_to(&DataType::Int64).unwrap_or(ScalarValue::Null);
        !matches!(by, ScalarValue::Null | ScalarValue::Int64(None | Some(0 | -1)))
    };
    match op {
        Operator::Plus | Operator::Minus | Operator::Multiply => is_bounded(),
        Operator::Divide | Operator::Modulo => is_bounded() && !right.is_some_and(is_safe),
        Operator::RegexMatch | Operator::RegexIMatch | Operator::RegexNotMatch | Operator::RegexNotIMatch => {
            right.is_none()
        }
        Operator::BitwiseShiftLeft | Operator::BitwiseShiftRight => true,
        _ => false,
    }
}

/// Returns whether a function has a result for every row, when `variable` of its arguments are not constants.
pub(crate) fn is_total_function(name: &str, variable: usize) -> bool {
    TOTAL.contains(&name) || json::NAMES.contains(&name) || (variable <= 1 && TOTAL_OF_ONE.contains(&name))
}

/// Returns whether every value of type `from` can be cast to type `to`.
pub(crate) fn is_total(from: &DataType, to: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, Boolean, Dictionary, Float32, Float64, LargeBinary, LargeUtf8, Null, Utf8, Utf8View,
    };
    let bits = |of: &DataType| of.primitive_width().map_or(0, |bytes| 8 * bytes);
    let is_text = |of: &DataType| matches!(of, Utf8 | LargeUtf8 | Utf8View);
    match (from, to) {
        (Dictionary(_, from), _) => is_total(from, to),
        (_, Dictionary(_, to)) => is_total(from, to),
        _ if from == to => true,
        (Null, _) => true,
        (from, to) if is_text(to) => is_text(from) || from.is_integer() || from.is_floating() || *from == Boolean,
        (from, Binary | LargeBinary | BinaryView) => is_text(from) || matches!(from, Binary | LargeBinary | BinaryView),
        (Boolean, to) => to.is_integer() || to.is_floating(),
        (from, Boolean) => from.is_integer() || from.is_floating(),
        (from, Float32 | Float64) => from.is_integer() || *from == Float32 || matches!(from, DataType::Float16),
        (from, to) if from.is_integer() && to.is_integer() => {
            match (from.is_signed_integer(), to.is_signed_integer()) {
                (true, true) | (false, false) => bits(from) <= bits(to),
                (false, true) => bits(from) < bits(to),
                (true, false) => false,
            }
        }
        // Dates and times are assumed to be near the present.
        (from, to) if from.is_temporal() && to.is_temporal() => true,
        _ => false,
    }
}
