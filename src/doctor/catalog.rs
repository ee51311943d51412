//! The Glue catalogue: whether its tables and views are those of the lake.

use super::lake::Seen;
use super::{Check, DoctorOptions};
use crate::catalog::{self, CatalogError, CatalogOptions};

const CATALOG: &str = "catalogue";

pub(super) async fn check(options: &DoctorOptions, seen: &Seen) -> Option<Check> {
    let (engine, database) = options.catalog.as_ref()?;
    // Another check tells what is wrong with the lake.
    let store = seen.store().filter(|_| seen.report().is_some())?;
    let command = format!("synclake catalog sync --engine {} --database {database} --lake {store}", engine.name());
    let wanted = CatalogOptions { engine: *engine, database: database.clone(), may_replace: false, is_dry_run: true };
    Some(match catalog::sync(store, &options.aws, &wanted).await {
        Ok(report) => {
            let drift: Vec<String> = report
                .drift()
                .map(|entry| match entry.differences.first() {
                    Some(first) => format!("{} differs: {first}", entry.name),
                    None => format!("{} is missing", entry.name),
                })
                .collect();
            match &drift[..] {
                [] => {
                    Check::ok(CATALOG, format!("{} entries of {database} are as they should be", report.entries.len()))
                }
                [one] => Check::warning(CATALOG, one.as_str(), format!("run `{command}`")),
                [one, rest @ ..] => {
                    Check::warning(CATALOG, format!("{one}, and {} more", rest.len()), format!("run `{command}`"))
                }
            }
        }
        Err(CatalogError::Call(error)) => Check::of_error(CATALOG, &error),
        Err(error) => Check::fault(CATALOG, error.to_string(), "see the advice in this error"),
    })
}
