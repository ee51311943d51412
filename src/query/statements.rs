//! Statements that DataFusion lacks, or answers with the insides of its catalogue: `SUMMARIZE`, `DESCRIBE`,
//! `SHOW TABLES` and `SHOW COLUMNS`.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Schema};
use datafusion::common::Column;
use datafusion::error::Result;
use datafusion::functions::encoding::expr_fn::encode;
use datafusion::functions_aggregate::expr_fn::{approx_distinct, count, max, min};
use datafusion::functions_nested::expr_fn::make_array;
use datafusion::logical_expr::{Expr, cast};
use datafusion::prelude::{DataFrame, SessionContext, col, lit};
use datafusion::scalar::ScalarValue;

use super::UserError;
use super::catalog::{relations, type_name};
use crate::describe::meaning_of;

/// Returns the tables and views, with their purpose.
pub(super) fn tables(context: &SessionContext, of: Option<&str>) -> Result<DataFrame> {
    let shown = || relations().into_iter().filter(|known| of.is_none_or(|kind| known.kind == kind));
    let columns: [(&str, ArrayRef); 3] = [
        ("name", Arc::new(StringArray::from_iter_values(shown().map(|known| known.name)))),
        ("kind", Arc::new(StringArray::from_iter_values(shown().map(|known| known.kind)))),
        ("comment", Arc::new(StringArray::from_iter_values(shown().map(|known| known.about)))),
    ];
    context.read_batch(RecordBatch::try_from_iter(columns)?)
}

/// Returns the columns of a schema, with their meaning if it is that of a table or view.
pub(super) fn columns(context: &SessionContext, schema: &Schema, relation: Option<&str>) -> Result<DataFrame> {
    let fields = schema.fields();
    let meanings = fields.iter().map(|field| meaning_of(relation?, field.name()));
    let columns: [(&str, ArrayRef, bool); 3] = [
        ("column_name", Arc::new(StringArray::from_iter_values(fields.iter().map(|field| field.name()))), false),
        (
            "data_type",
            Arc::new(StringArray::from_iter_values(fields.iter().map(|field| type_name(field.data_type())))),
            false,
        ),
        ("comment", Arc::new(meanings.collect::<StringArray>()), true),
    ];
    context.read_batch(RecordBatch::try_from_iter_with_nullable(columns)?)
}

/// Returns a row for each column of a query: its type, number of rows and NULLs, distinct values, least and greatest
/// value. All of it comes from one aggregation, whose only row is unfolded.
pub(super) fn summary(frame: DataFrame) -> Result<DataFrame> {
    const NAMES: [&str; 7] = ["column_name", "data_type", "rows", "nulls", "approx_distinct", "min", "max"];
    let columns: Vec<(Column, DataType)> = frame
        .schema()
        .iter()
        .map(|(relation, field)| (Column::new(relation.cloned(), field.name()), field.data_type().clone()))
        .collect();
    if columns.is_empty() {
        return Err(UserError("there is no column to summarize".to_owned()).into());
    }
    let mut aggregates = vec![count(lit(1_i64)).alias("rows")];
    let mut unfolded: [Vec<Expr>; 7] = Default::default();
    for (at, (column, of)) in columns.into_iter().enumerate() {
        let name = |what: &str| format!("{what}{at}");
        let null = || lit(ScalarValue::Utf8(None));
        let value = plain(Expr::Column(column.clone()), &of);
        aggregates.push(count(Expr::Column(column.clone())).alias(name("known")));
        let (mut distinct, mut least, mut greatest) = (lit(ScalarValue::Int64(None)), null(), null());
        if let Some(value) = value {
            // Sketches of distinct values know text and bytes, and not all other types.
            let counted = if is_binary(&of) { value.clone() } else { cast(value.clone(), DataType::Utf8) };
            aggregates.push(approx_distinct(counted).alias(name("distinct")));
            aggregates.push(min(value.clone()).alias(name("least")));
            aggregates.push(max(value).alias(name("greatest")));
            let text = |what: &str| match is_binary(&of) {
                true => encode(col(name(what)), lit("hex")),
                false => col(name(what)),
            };
            distinct = cast(col(name("distinct")), DataType::Int64);
            (least, greatest) = (cast(text("least"), DataType::Utf8), cast(text("greatest"), DataType::Utf8));
        }
        let row = [
            lit(column.name),
            lit(type_name(&of)),
            col("rows"),
            col("rows") - col(name("known")),
            distinct,
            least,
            greatest,
        ];
        unfolded.iter_mut().zip(row).for_each(|(list, cell)| list.push(cell));
    }
    let lists = NAMES.into_iter().zip(unfolded).map(|(name, list)| make_array(list).alias(name));
    frame.aggregate(Vec::new(), aggregates)?.select(lists.collect::<Vec<_>>())?.unnest_columns(&NAMES)
}

fn is_binary(of: &DataType) -> bool {
    matches!(of, DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_))
}

/// Returns a column in a type that has an order and can be counted, or `None` if its values have no order.
fn plain(column: Expr, of: &DataType) -> Option<Expr> {
    match of {
        DataType::Dictionary(_, value) => plain(cast(column, value.as_ref().clone()), value),
        of if is_binary(of) => Some(cast(column, DataType::Binary)),
        DataType::Interval(_) | DataType::Duration(_) => None,
        DataType::Null | DataType::Boolean => Some(column),
        of if of.is_numeric() || of.is_temporal() || of.is_string() => Some(column),
        _ => None,
    }
}
