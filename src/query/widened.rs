//! A table with the columns that it lacks, because it has an older format or because only some lakes have them: they are
//! null.

use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{Column, Literal};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::scalar::ScalarValue;

use crate::schema::Table;

/// A table with more columns at its end than its files have.
#[derive(Debug)]
pub(super) struct Widened {
    inner: Arc<dyn TableProvider>,
    /// The inner columns, and those that it lacks.
    schema: SchemaRef,
}

impl Widened {
    /// Wraps a table that lacks columns; returns any other as it is.
    pub(super) fn over(inner: Arc<dyn TableProvider>, table: Table) -> Arc<dyn TableProvider> {
        let known = inner.schema();
        let (wanted, always) = (table.query_schema(), table.schema());
        let may_lack = |name: &str| table.is_added(name) || always.column_with_name(name).is_none();
        let is_lacking = |name: &str| may_lack(name) && known.column_with_name(name).is_none();
        let lacking: Vec<_> = wanted.fields().iter().filter(|field| is_lacking(field.name())).cloned().collect();
        if lacking.is_empty() {
            return inner;
        }
        let schema = Arc::new(Schema::new(known.fields().iter().cloned().chain(lacking).collect::<Vec<_>>()));
        Arc::new(Self { inner, schema })
    }

    fn is_inner(&self, filter: &Expr) -> bool {
        let inner = self.inner.schema();
        filter.column_refs().iter().all(|column| inner.column_with_name(&column.name).is_some())
    }
}

#[async_trait::async_trait]
impl TableProvider for Widened {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        self.inner.table_type()
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let inner = |filter: &&Expr| match self.is_inner(filter) {
            true => Ok(self.inner.supports_filters_pushdown(&[*filter])?.pop()),
            false => Ok(None),
        };
        let found = filters.iter().map(inner).collect::<Result<Vec<_>>>()?;
        Ok(found.into_iter().map(|one| one.unwrap_or(TableProviderFilterPushDown::Unsupported)).collect())
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let count = self.inner.schema().fields().len();
        let wanted: Vec<usize> = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let inner: Vec<usize> = wanted.iter().copied().filter(|column| *column < count).collect();
        let filters: Vec<Expr> = filters.iter().filter(|filter| self.is_inner(filter)).cloned().collect();
        let rows = self.inner.scan(session, Some(&inner), &filters, limit).await?;
        if inner.len() == wanted.len() {
            return Ok(rows);
        }
        let mut next = 0;
        let columns = wanted.iter().map(|column| -> Result<(Arc<dyn PhysicalExpr>, String)> {
            let field = self.schema.field(*column);
            let expr: Arc<dyn PhysicalExpr> = if *column < count {
                next += 1;
                Arc::new(Column::new(field.name(), next - 1))
            } else {
                Arc::new(Literal::new(ScalarValue::try_from(field.data_type())?))
            };
            Ok((expr, field.name().clone()))
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        Ok(Arc::new(ProjectionExec::try_new(columns, rows)?))
    }
}
