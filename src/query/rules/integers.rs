//! Makes counting functions return a `bigint`. DataFusion returns row numbers and some counts as unsigned integers,
//! whose difference wraps around.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::error::Result;
use datafusion::logical_expr::expr::{AggregateFunction, WindowFunction, WindowFunctionParams};
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult, RawAggregateExpr, RawWindowExpr};
use datafusion::logical_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, cast};

/// Counting functions that return an unsigned integer.
const COUNTS: [&str; 6] = ["row_number", "rank", "dense_rank", "ntile", "approx_distinct", "regr_count"];

/// A planner that casts counts to `bigint`.
#[derive(Debug)]
pub(crate) struct SignedCounts;

impl ExprPlanner for SignedCounts {
    fn plan_window(&self, raw: RawWindowExpr) -> Result<PlannerResult<RawWindowExpr>> {
        if !COUNTS.contains(&raw.func_def.name()) {
            return Ok(PlannerResult::Original(raw));
        }
        let RawWindowExpr {
            func_def: fun,
            args,
            partition_by,
            order_by,
            window_frame,
            filter,
            null_treatment,
            distinct,
        } = raw;
        let params =
            WindowFunctionParams { args, partition_by, order_by, window_frame, filter, null_treatment, distinct };
        Ok(PlannerResult::Planned(cast(Expr::from(WindowFunction { fun, params }), DataType::Int64)))
    }

    fn plan_aggregate(&self, raw: RawAggregateExpr) -> Result<PlannerResult<RawAggregateExpr>> {
        if !COUNTS.contains(&raw.func.name()) {
            return Ok(PlannerResult::Original(raw));
        }
        let RawAggregateExpr { func, args, distinct, filter, order_by, null_treatment } = raw;
        let counted = AggregateFunction::new_udf(func, args, distinct, filter, order_by, null_treatment);
        Ok(PlannerResult::Planned(cast(Expr::AggregateFunction(counted), DataType::Int64)))
    }
}

/// List functions that return unsigned integers.
pub(crate) const UNSIGNED: [&str; 6] =
    ["array_length", "cardinality", "array_ndims", "array_position", "array_positions", "array_dims"];

/// A function whose result is cast to signed integers.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Signed {
    inner: Arc<ScalarUDF>,
}

impl Signed {
    /// Wraps a function.
    pub(crate) fn new(inner: Arc<ScalarUDF>) -> Self {
        Self { inner }
    }
}

fn signed(of: &DataType) -> DataType {
    match of {
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => DataType::Int64,
        DataType::List(item) => {
            DataType::List(Arc::new(item.as_ref().clone().with_data_type(signed(item.data_type()))))
        }
        other => other.clone(),
    }
}

impl ScalarUDFImpl for Signed {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types).map(|of| signed(&of))
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.inner().coerce_types(types)
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let ours = args.return_field.data_type().clone();
        let types: Vec<DataType> = args.arg_fields.iter().map(|f| f.data_type().clone()).collect();
        let theirs = self.inner.return_type(&types)?;
        args.return_field = Arc::new(args.return_field.as_ref().clone().with_data_type(theirs));
        self.inner.invoke_with_args(args)?.cast_to(&ours, None)
    }
}
