//! Functions of DataFusion that would build one enormous string outside the memory pool, with a cap on it.

use std::sync::Arc;

use arrow::array::Array;
use arrow::datatypes::{DataType, Int64Type};
use datafusion::common::cast::as_int64_array;
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature};
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;

/// Longest string that one call may make of one value, in characters.
const CHARS_MAX: i64 = 1 << 20;

/// Replaces the functions whose second argument says how long the result becomes.
pub fn register(context: &SessionContext) {
    for inner in [
        datafusion::functions::string::repeat(),
        datafusion::functions::unicode::lpad(),
        datafusion::functions::unicode::rpad(),
    ] {
        context.register_udf(ScalarUDF::new_from_impl(Capped { inner }));
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Capped {
    inner: Arc<ScalarUDF>,
}

impl ScalarUDFImpl for Capped {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.inner.return_type(types)
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.inner().coerce_types(types)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let longest = match args.args.get(1) {
            Some(ColumnarValue::Scalar(ScalarValue::Int64(n))) => n.unwrap_or(0),
            Some(ColumnarValue::Array(lengths)) if lengths.data_type() == &DataType::Int64 => {
                arrow::compute::max::<Int64Type>(as_int64_array(lengths)?).unwrap_or(0)
            }
            _ => 0,
        };
        if longest > CHARS_MAX {
            let message = format!("{}: {longest} is too long; the limit is {CHARS_MAX}", self.name());
            return Err(DataFusionError::Execution(message));
        }
        self.inner.invoke_with_args(args)
    }
}
