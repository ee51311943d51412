//! A table whose scan receives only filters that it evaluates correctly, and whose result is filtered again.
//!
//! **Invariant: no filter is exact.** A scan may use a filter to skip files, row groups and rows. The query evaluates
//! every filter again on the scan's result. deltalake calls every filter on partition columns exact before it knows
//! whether its kernel can evaluate it. So a filter that a scan cannot evaluate, or evaluates in its own way, costs time
//! and no rows.
//!
//! **Only comparisons of a column with constants reach a scan.** They cannot fail, so no guard beside them matters. All
//! libraries evaluate them in the same way.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::Result;
use datafusion::logical_expr::{Expr, Operator, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::{ExecutionPlan, Statistics};

/// A table that limits the filters its scan receives.
#[derive(Debug)]
pub(crate) struct Rechecked {
    inner: Arc<dyn TableProvider>,
}

impl Rechecked {
    /// Wraps a table.
    pub(crate) fn new(inner: Arc<dyn TableProvider>) -> Self {
        Self { inner }
    }
}

/// Returns whether a filter only compares columns with constants.
pub(crate) fn is_plain(filter: &Expr) -> bool {
    let column = |expr: &Expr| matches!(expr, Expr::Column(_));
    let constant = |expr: &Expr| matches!(expr, Expr::Literal(value, _) if !value.is_null());
    match filter {
        Expr::BinaryExpr(binary) => match binary.op {
            Operator::And | Operator::Or => is_plain(&binary.left) && is_plain(&binary.right),
            Operator::Eq | Operator::NotEq | Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq => {
                (column(&binary.left) && constant(&binary.right)) || (constant(&binary.left) && column(&binary.right))
            }
            _ => false,
        },
        Expr::InList(list) => !list.negated && column(&list.expr) && list.list.iter().all(constant),
        Expr::Between(between) => {
            !between.negated && column(&between.expr) && constant(&between.low) && constant(&between.high)
        }
        Expr::IsNull(inner) | Expr::IsNotNull(inner) => column(inner),
        _ => false,
    }
}

/// Returns whether a filter only compares columns with constants, and `has` accepts each of the columns.
pub(crate) fn is_plain_on(filter: &Expr, has: impl Fn(&str) -> bool) -> bool {
    is_plain(filter) && filter.column_refs().iter().all(|column| has(&column.name))
}

/// Returns which filters a scan receives: those that [`is_plain_on`] accepts. None is exact, so the query evaluates each
/// of them again.
pub(crate) fn pushed_down(filters: &[&Expr], has: impl Fn(&str) -> bool) -> Vec<TableProviderFilterPushDown> {
    let usable = |filter: &&Expr| match is_plain_on(filter, &has) {
        true => TableProviderFilterPushDown::Inexact,
        false => TableProviderFilterPushDown::Unsupported,
    };
    filters.iter().map(usable).collect()
}

#[async_trait::async_trait]
impl TableProvider for Rechecked {
    fn schema(&self) -> SchemaRef {
        self.inner.schema()
    }

    fn table_type(&self) -> TableType {
        self.inner.table_type()
    }

    fn statistics(&self) -> Option<Statistics> {
        self.inner.statistics()
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        let inner = self.inner.supports_filters_pushdown(filters)?;
        let usable = |(filter, inner): (&&Expr, TableProviderFilterPushDown)| match inner {
            TableProviderFilterPushDown::Unsupported => TableProviderFilterPushDown::Unsupported,
            _ if is_plain(filter) => TableProviderFilterPushDown::Inexact,
            _ => TableProviderFilterPushDown::Unsupported,
        };
        Ok(filters.iter().zip(inner).map(usable).collect())
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let filters: Vec<Expr> = filters.iter().filter(|filter| is_plain(filter)).cloned().collect();
        self.inner.scan(session, projection, &filters, limit).await
    }
}
