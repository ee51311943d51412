//! The policy: table properties of the Delta metadata, where every writer can see and set them.
//!
//! | property | table | value |
//! |---|---|---|
//! | `synclake.retain` | `sync_records`, `daily_state` | a number of days such as `400d`, or `forever` |
//! | `synclake.retain.<pool>` | `sync_records` | the same, for one pool |
//!
//! A pool without its own property has that of the table. Without any property, everything stays.

use std::collections::BTreeMap;
use std::fmt;

use chrono::{Days, NaiveDate};
use serde::{Serialize, Serializer};

use crate::lake::commit::{Draft, Operation, Proposal, metadata_of};
use crate::lake::log::Transactions;
use crate::lake::paths::pool_partition;
use crate::lake::{LakeError, Store, replace, snapshot};
use crate::schema::Table;

/// The property of the policy; a pool follows after a dot.
const PROPERTY: &str = "synclake.retain";
/// The shortest retention, in days. Records are at most a week old when they come from a stream, and files of versions that
/// a vacuum keeps are as old.
pub const RETAIN_DAYS_MIN: u32 = 7;
/// The longest retention, in days.
const RETAIN_DAYS_MAX: u32 = 36_500;
/// The word for a pool that has no policy of its own any more.
pub const POOL_DEFAULT: &str = "default";

/// How long rows stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retain {
    /// Until somebody deletes them.
    Forever,
    /// For this many days after their date.
    Days(u32),
}

impl fmt::Display for Retain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forever => f.write_str("forever"),
            Self::Days(days) => write!(f, "{days}d"),
        }
    }
}

impl Serialize for Retain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Retain {
    /// Returns the first date that stays.
    fn first_date(self, today: NaiveDate) -> Option<NaiveDate> {
        match self {
            Self::Forever => None,
            Self::Days(days) => today.checked_sub_days(Days::new(days.into())),
        }
    }
}

/// Parses a retention: `400d` or `forever`.
///
/// # Errors
/// Returns one line that shows the format, or says why a shorter retention is refused.
pub fn parse_retain(text: &str) -> Result<Retain, String> {
    if text == "forever" {
        return Ok(Retain::Forever);
    }
    let digits = text.strip_suffix('d').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    let days = digits.and_then(|digits| digits.parse::<u32>().ok()).filter(|days| *days <= RETAIN_DAYS_MAX);
    match days {
        Some(days) if days >= RETAIN_DAYS_MIN => Ok(Retain::Days(days)),
        Some(_) => Err(format!(
            "{text:?} is shorter than {RETAIN_DAYS_MIN}d: rows that come late, and answers about the last week, would lose \
             their days; give {RETAIN_DAYS_MIN}d or more"
        )),
        None => Err(format!("{text:?} is no retention; write 7 to 36500 days such as 400d, or forever")),
    }
}

/// The policy of a table.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct TablePolicy {
    /// How long rows stay; null if nobody said it, which means for ever.
    pub retain: Option<Retain>,
    /// The same for single pools, by their partition value.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pools: BTreeMap<String, Retain>,
}

impl TablePolicy {
    /// Reads the policy from the properties of a table.
    ///
    /// # Errors
    /// A property has no meaning. The message names it, and says what to do.
    pub(crate) fn read(table: Table, known: &Transactions) -> Result<Self, LakeError> {
        let mut policy = Self::default();
        for (property, value) in known.requirements.properties() {
            let Some(pool) = property.strip_prefix(PROPERTY) else { continue };
            let pool = match pool.strip_prefix('.') {
                Some(pool) if table == Table::SyncRecords => Some(pool_partition(pool)),
                None if pool.is_empty() => None,
                _ => continue,
            };
            let retain = parse_retain(value).map_err(|why| {
                let of_pool = pool.iter().map(|pool| format!(" --pool {pool}")).collect::<String>();
                LakeError::Invalid(format!(
                    "the property {property} of the table {name} cannot be used, so nothing leaves: {why}; set it with \
                     `synclake policy --table {name}{of_pool} --retain …`",
                    name = table.name(),
                ))
            })?;
            match pool {
                Some(pool) => drop(policy.pools.insert(pool, retain)),
                None => policy.retain = Some(retain),
            }
        }
        Ok(policy)
    }

    /// Returns whether everything stays.
    pub(super) fn is_forever(&self) -> bool {
        self.retain.iter().chain(self.pools.values()).all(|retain| *retain == Retain::Forever)
    }

    /// Returns the first date that stays by the policy of the table; `None` if all stay.
    pub(super) fn first_date(&self, today: NaiveDate) -> Option<NaiveDate> {
        self.retain?.first_date(today)
    }

    /// Returns whether a date of a pool is older than the policy.
    pub(super) fn is_due(&self, pool: &str, date: NaiveDate, today: NaiveDate) -> bool {
        let retain = self.pools.get(pool).copied().or(self.retain).unwrap_or(Retain::Forever);
        retain.first_date(today).is_some_and(|first| date < first)
    }
}

/// A change of the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyChange {
    /// The table: `sync_records` or `daily_state`.
    pub table: Table,
    /// Only this pool: its id or its partition value.
    pub pool: Option<String>,
    /// How long rows stay; `None` takes the property of a pool away, so that it has that of the table.
    pub retain: Option<Retain>,
}

impl PolicyChange {
    fn property(&self) -> String {
        match &self.pool {
            Some(pool) => format!("{PROPERTY}.{}", pool_partition(pool)),
            None => PROPERTY.to_owned(),
        }
    }

    /// Returns the new value of the property; `None` takes it away. A pool keeps `forever`, because the table may have
    /// another retention.
    fn value(&self) -> Option<String> {
        self.retain.filter(|retain| self.pool.is_some() || *retain != Retain::Forever).map(|retain| retain.to_string())
    }
}

impl Proposal for PolicyChange {
    async fn draft(&self, known: &Transactions) -> Result<Option<Draft>, LakeError> {
        let (property, value) = (self.property(), self.value());
        let Some(metadata) = known.requirements.with_property(&property, value.as_deref()) else { return Ok(None) };
        let metadata = metadata_of(self.table, metadata)?;
        let operation = Operation::SetProperties([(property, value.unwrap_or_default())].into());
        Ok(Some(Draft { metadata: Some(metadata), operation, ..Draft::default() }))
    }
}

/// Changes the policy of a lake: one property, in a commit of its own. All others stay as they are.
///
/// # Errors
/// There is no lake, it has no such pool, or it cannot be read or committed to.
pub async fn set(lake: &Store, change: &PolicyChange) -> Result<(), LakeError> {
    let records = Table::SyncRecords.store(lake);
    let loaded = snapshot::load(&records, None).await?.ok_or_else(|| LakeError::NoLake(lake.to_string()))?;
    if let Some(pool) = &change.pool {
        check_pool(lake, &snapshot::files(&records, &loaded).await?, &loaded, pool, &change.property())?;
    }
    change.table.ensure(lake).await?;
    replace::propose(lake, change.table, change).await?;
    Ok(())
}

/// Checks that the lake has the pool: a policy of a misspelt pool would never apply.
fn check_pool(
    lake: &Store,
    files: &[snapshot::ActiveFile],
    loaded: &deltalake::DeltaTable,
    pool: &str,
    property: &str,
) -> Result<(), LakeError> {
    let wanted = pool_partition(pool);
    let has_rows = files.iter().any(|file| file.partition.get("pool").and_then(Option::as_ref) == Some(&wanted));
    let has_policy = loaded.snapshot().is_ok_and(|snapshot| snapshot.metadata().configuration().contains_key(property));
    (has_rows || has_policy).then_some(()).ok_or_else(|| {
        LakeError::Invalid(format!(
            "{lake} has no rows of the pool {pool:?}, which --pool names; `synclake status --verbose` lists the pools"
        ))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn known(properties: Value) -> Transactions {
        let mut known = Transactions::default();
        let metadata = json!({"schemaString": "{}", "configuration": properties});
        known.requirements.apply_action(&json!({ "metaData": metadata })).unwrap();
        known
    }

    #[test]
    fn retentions_are_days() {
        assert_eq!(parse_retain("400d"), Ok(Retain::Days(400)));
        assert_eq!(parse_retain("forever"), Ok(Retain::Forever));
        for short in ["6d", "0d"] {
            assert!(parse_retain(short).unwrap_err().contains("shorter than 7d"), "{short}");
        }
        for none in ["", "400", "d", "+9d", "1y", "99999999999d", "40000d", "7 d", "-8d"] {
            assert!(parse_retain(none).unwrap_err().contains("no retention"), "{none}");
        }
    }

    #[test]
    fn a_pool_has_its_own_policy_or_that_of_the_table() {
        let date = |text: &str| text.parse::<NaiveDate>().unwrap();
        let properties = json!({
            "synclake.retain": "400d", "synclake.retain.eu-west-1:0a": "30d", "synclake.retain.us-east-1_0b": "forever",
            "synclake.retained": "x", "delta.logRetentionDuration": "interval 9 days",
        });
        let policy = TablePolicy::read(Table::SyncRecords, &known(properties.clone())).unwrap();
        let today = date("2026-03-01");
        assert!(policy.is_due("eu-west-1_0a", date("2026-01-29"), today));
        assert!(!policy.is_due("eu-west-1_0a", date("2026-01-30"), today), "30 days");
        assert!(!policy.is_due("us-east-1_0b", date("2000-01-01"), today));
        assert!(
            !policy.is_due("another", date("2026-01-01"), today) && policy.is_due("another", date("2025-01-01"), today)
        );
        assert!(!policy.is_forever() && TablePolicy::default().is_forever());
        let of_extracts = TablePolicy::read(Table::DailyState, &known(properties)).unwrap();
        assert_eq!((of_extracts.retain, of_extracts.pools.len()), (Some(Retain::Days(400)), 0));
    }

    #[test]
    fn a_property_without_meaning_is_named() {
        for (property, value, part) in [
            ("synclake.retain", "a year", "--table sync_records --retain"),
            ("synclake.retain.us-east-1_0b", "3d", "--pool us-east-1_0b --retain"),
        ] {
            let error =
                TablePolicy::read(Table::SyncRecords, &known(json!({ property: value }))).unwrap_err().to_string();
            assert!(error.contains(&format!("property {property} of")) && error.contains(part), "{error}");
        }
    }

    #[tokio::test]
    async fn a_change_touches_one_property() {
        let properties = json!({"synclake.retain": "400d", "delta.appendOnly": "false"});
        let change = |retain, pool: Option<&str>| PolicyChange {
            table: Table::SyncRecords,
            pool: pool.map(str::to_owned),
            retain,
        };
        let known = known(properties);
        let drafted = async |change: PolicyChange| {
            let metadata = known.requirements.with_property(&change.property(), change.value().as_deref());
            metadata.map(|metadata| metadata["configuration"].clone())
        };
        assert_eq!(drafted(change(Some(Retain::Days(400)), None)).await, None, "it is like that");
        assert_eq!(drafted(change(Some(Retain::Forever), None)).await, Some(json!({"delta.appendOnly": "false"})));
        assert_eq!(
            drafted(change(Some(Retain::Forever), Some("a:b"))).await,
            Some(json!({"synclake.retain": "400d", "delta.appendOnly": "false", "synclake.retain.a_b": "forever"})),
            "the pool does not fall to the policy of the table"
        );
        assert_eq!(drafted(change(None, Some("a:b"))).await, None);
    }
}
