//! Hive partitions of a result: its rows in the order of the partition columns, and the folder of each row.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::compute::partition;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};

use crate::lake::manifest::NULL;
use crate::query::QueryError;

/// ASCII characters that Hive escapes in the name of a folder, beside control characters. Others stay as they are:
/// Spark reads each escape as a character of its own.
const ESCAPED: &str = "\"#%'*/:=?\\{[]^\u{7f}";

/// The partition columns of a result.
pub(super) struct Partitions {
    /// Their places and names.
    columns: Vec<(usize, String)>,
    /// The places of the other columns.
    others: Vec<usize>,
}

impl Partitions {
    /// Finds the columns in a result.
    ///
    /// # Errors
    /// A column is missing, its type has no exact name, or no column is left for the files.
    pub(super) fn new(schema: &Schema, names: &[String]) -> Result<Self, QueryError> {
        let refused = |text: String| QueryError::Refused(format!("--partition-by {}: {text}", names.join(",")));
        let mut columns: Vec<(usize, String)> = Vec::new();
        for name in names {
            let Some((at, field)) = schema.column_with_name(name) else {
                let has: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
                return Err(refused(format!("the result has no column {name}; it has {}", has.join(", "))));
            };
            if columns.iter().any(|(known, _)| *known == at) {
                return Err(refused(format!("{name} is named twice")));
            }
            if !names_a_folder(field.data_type()) {
                let of = field.data_type();
                return Err(refused(format!("{name} is {of}, which names no folder; cast it to text or a date")));
            }
            columns.push((at, name.clone()));
        }
        // Readers of such folders compare names without their case.
        for (at, name) in &columns {
            let mut fields = schema.fields().iter().enumerate();
            if fields.any(|(other, field)| other != *at && field.name().eq_ignore_ascii_case(name)) {
                return Err(refused(format!("two columns are named {name}, but for capitals; name them with AS")));
            }
        }
        let is_other = |at: &usize| columns.iter().all(|(partition, _)| partition != at);
        let others: Vec<usize> = (0..schema.fields().len()).filter(is_other).collect();
        match others.is_empty() {
            true => Err(refused("no column is left for the files; select one more".to_owned())),
            false => Ok(Self { columns, others }),
        }
    }

    /// Returns a plan with the rows in the order of the partition columns, and of the statement within each partition.
    ///
    /// # Errors
    /// DataFusion does not accept the plan.
    pub(super) fn sorted(&self, plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>, QueryError> {
        let planned = plan.schema();
        let first = self
            .columns
            .iter()
            .map(|(at, _)| PhysicalSortExpr::new_default(Arc::new(Column::new(planned.field(*at).name(), *at))));
        let within = plan.output_ordering().into_iter().flat_map(|order| order.iter().cloned());
        let Some(order) = LexOrdering::new(first.chain(within).collect::<Vec<_>>()) else { return Ok(plan) };
        let one = match plan.output_partitioning().partition_count() {
            1 => plan,
            _ => Arc::new(CoalescePartitionsExec::new(plan)),
        };
        Ok(Arc::new(SortExec::new(order, one)))
    }

    /// Returns the columns of the files.
    pub(super) fn stored(&self, schema: &Schema) -> SchemaRef {
        let fields = self.others.iter().map(|at| schema.field(*at).clone());
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    /// Splits a batch where the folder changes, without the partition columns.
    ///
    /// # Errors
    /// A value is a text that readers of such folders take for NULL.
    pub(super) fn split(&self, batch: &RecordBatch) -> Result<Vec<(String, RecordBatch)>, QueryError> {
        if batch.num_rows() == 0 {
            return Ok(Vec::new());
        }
        let failed = |error: ArrowError| QueryError::Sql(error.into());
        let columns: Vec<ArrayRef> = self.columns.iter().map(|(at, _)| batch.column(*at).clone()).collect();
        let files = batch.project(&self.others).map_err(failed)?;
        let ranges = partition(&columns).map_err(failed)?.ranges().into_iter();
        ranges.map(|rows| Ok((self.folder(&columns, rows.start)?, files.slice(rows.start, rows.len())))).collect()
    }

    fn folder(&self, columns: &[ArrayRef], row: usize) -> Result<String, QueryError> {
        let options = FormatOptions::default().with_display_error(false);
        let part = |((_, name), column): (&(usize, String), &ArrayRef)| {
            if column.logical_nulls().is_some_and(|nulls| nulls.is_null(row)) {
                return Ok(format!("{}={NULL}", escaped(name)));
            }
            let text = ArrayFormatter::try_new(column, &options).and_then(|f| f.value(row).try_to_string());
            match text.map_err(|error| QueryError::Sql(error.into()))?.as_str() {
                // DuckDB reads `null` in any case as NULL.
                text if text.is_empty() || text == NULL || text.eq_ignore_ascii_case("null") => {
                    Err(QueryError::Refused(format!(
                        "--partition-by: {name} has the text '{text}', which readers of folders take for NULL; write \
                     nullif({name}, '{text}') as {name}"
                    )))
                }
                text => Ok(format!("{}={}", escaped(name), escaped(text))),
            }
        };
        let parts = self.columns.iter().zip(columns).map(part).collect::<Result<Vec<_>, _>>()?;
        Ok(parts.join("/"))
    }
}

/// Returns whether a value has one text that readers take for it. (Some guess types, and read the text `007` as 7.)
fn names_a_folder(of: &DataType) -> bool {
    match of {
        DataType::Dictionary(_, values) => names_a_folder(values),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Boolean | DataType::Date32 => true,
        of => of.is_integer(),
    }
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_ascii_control() || ESCAPED.contains(c) {
            true => escaped.push_str(&format!("%{:02X}", u32::from(c))),
            false => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Int64Array, StringArray};

    fn batch(days: Vec<Option<&str>>) -> RecordBatch {
        let numbers = Int64Array::from_iter_values(0..days.len() as i64);
        RecordBatch::try_from_iter([
            ("n", Arc::new(numbers) as ArrayRef),
            ("day", Arc::new(StringArray::from(days)) as ArrayRef),
        ])
        .unwrap()
    }

    #[test]
    fn rows_go_to_the_folder_of_their_values() {
        let rows = batch(vec![Some("a/b=c"), Some("a/b=c"), Some("é .."), None]);
        let partitions = Partitions::new(&rows.schema(), &["day".to_owned()]).unwrap();
        let split = partitions.split(&rows).unwrap();
        let folders: Vec<_> = split.iter().map(|(folder, rows)| (folder.as_str(), rows.num_rows())).collect();
        assert_eq!(folders, [("day=a%2Fb%3Dc", 2), ("day=é ..", 1), ("day=__HIVE_DEFAULT_PARTITION__", 1)]);
        assert_eq!(partitions.stored(&rows.schema()).fields().len(), 1);
        for text in ["", NULL, "Null"] {
            let refused = partitions.split(&batch(vec![Some(text)])).unwrap_err().to_string();
            assert!(refused.contains(&format!("nullif(day, '{text}')")), "{refused}");
        }
    }

    #[test]
    fn a_column_that_names_no_folder_is_refused() {
        let schema = batch(vec![]).schema();
        let refused = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            Partitions::new(&schema, &names).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(refused(&["date"]).contains("the result has no column date; it has n, day"));
        assert!(refused(&["day", "day"]).contains("named twice"));
        assert!(refused(&["day", "n"]).contains("no column is left"));
        assert_eq!(refused(&["day"]), "");
    }
}
