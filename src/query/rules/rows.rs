//! Computes `count(distinct (a, b, c))` on the bytes of its rows.
//!
//! DataFusion keeps each distinct row as a slice of its batch, and counts the whole batch as the row's size. Ten
//! thousand rows request gigabytes, and a batch is kept as long as one of its rows is.

use std::sync::Arc;

use arrow::array::{Array, LargeBinaryBuilder};
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, SortField};
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::expr::AggregateFunction;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};
use datafusion::optimizer::AnalyzerRule;

use super::keeping_names;

/// The analyzer rule that counts distinct rows by their bytes. Runs after types are coerced.
#[derive(Debug)]
pub(crate) struct DistinctRows {
    bytes: Arc<ScalarUDF>,
}

impl Default for DistinctRows {
    fn default() -> Self {
        let signature = Signature::any(1, Volatility::Immutable);
        Self { bytes: Arc::new(ScalarUDF::new_from_impl(RowBytes { signature })) }
    }
}

impl AnalyzerRule for DistinctRows {
    fn name(&self) -> &str {
        "distinct_rows"
    }

    fn analyze(&self, plan: LogicalPlan, _: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|plan| self.of_bytes(plan)).data()
    }
}

impl DistinctRows {
    fn of_bytes(&self, plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
        if !matches!(plan, LogicalPlan::Aggregate(_) | LogicalPlan::Window(_)) {
            return Ok(Transformed::no(plan));
        }
        let schema = merge_schema(&plan.inputs());
        keeping_names(plan, |expr| expr.transform_up(|expr| self.counted(expr, &schema)))
    }

    fn counted(&self, expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
        let Expr::AggregateFunction(AggregateFunction { func, mut params }) = expr else {
            return Ok(Transformed::no(expr));
        };
        let is_of_rows = func.name() == "count" && params.distinct && params.args.len() == 1;
        let is_of_rows =
            is_of_rows && params.args.iter().all(|arg| arg.get_type(schema).is_ok_and(|of| is_nested(&of)));
        if is_of_rows {
            params.args = vec![self.bytes.call(params.args)];
        }
        Ok(Transformed::new_transformed(Expr::AggregateFunction(AggregateFunction { func, params }), is_of_rows))
    }
}

fn is_nested(of: &DataType) -> bool {
    of.is_nested() && RowConverter::supports_fields(&[SortField::new(of.clone())])
}

/// A function that encodes a row as bytes. Bytes are equal if and only if the rows are.
#[derive(Debug, PartialEq, Eq, Hash)]
struct RowBytes {
    signature: Signature,
}

impl ScalarUDFImpl for RowBytes {
    fn name(&self) -> &str {
        "row_bytes"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::LargeBinary)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = ColumnarValue::values_to_arrays(&args.args)?.remove(0);
        let converter = RowConverter::new(vec![SortField::new(rows.data_type().clone())])?;
        let bytes = converter.convert_columns(std::slice::from_ref(&rows))?;
        let mut built = LargeBinaryBuilder::with_capacity(rows.len(), bytes.size());
        for (n, bytes) in bytes.iter().enumerate() {
            built.append_option((!rows.is_null(n)).then_some(bytes));
        }
        Ok(ColumnarValue::Array(Arc::new(built.finish())))
    }
}
