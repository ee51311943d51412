//! Tables and views that random queries read, with the columns and types that both engines agree on.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Int,
    Text,
    Bool,
    Date,
    Time,
}
use Type::{Bool, Date, Int, Text, Time};

pub(super) type Columns = &'static [(&'static str, Type)];

pub(super) const RECORDS: Columns = &[
    ("pool", Text),
    ("event_date", Date),
    ("identity_id", Text),
    ("dataset_name", Text),
    ("operation", Text),
    ("key", Text),
    ("value", Text),
    ("op", Text),
    ("sync_count", Int),
    ("last_modified_date", Time),
    ("device_last_modified_date", Time),
    ("event_sync_count", Int),
    ("shard_id", Text),
    ("record_index", Int),
    ("extra", Text),
    ("source", Text),
];
pub(super) const CHANGES: Columns = &[
    ("pool", Text),
    ("event_date", Date),
    ("identity_id", Text),
    ("dataset_name", Text),
    ("key", Text),
    ("value", Text),
    ("op", Text),
    ("sync_count", Int),
    ("last_modified_date", Time),
    ("event_sync_count", Int),
    ("copies", Int),
];
pub(super) const STATE: Columns = &[
    ("pool", Text),
    ("identity_pool_id", Text),
    ("identity_id", Text),
    ("dataset_name", Text),
    ("key", Text),
    ("value", Text),
    ("op", Text),
    ("sync_count", Int),
    ("last_modified_date", Time),
    ("device_last_modified_date", Time),
];
const KEYS: Columns = &[
    ("pool", Text),
    ("identity_id", Text),
    ("dataset_name", Text),
    ("key", Text),
    ("value", Text),
    ("op", Text),
    ("sync_count", Int),
    ("last_modified_date", Time),
    ("is_after_removal", Bool),
    ("record_index", Int),
];
const RESOLVED: Columns = &[
    ("pool", Text),
    ("identity_id", Text),
    ("dataset_name", Text),
    ("key", Text),
    ("value", Text),
    ("op", Text),
    ("sync_count", Int),
    ("is_dataset_removal", Bool),
    ("is_latest", Bool),
    ("is_after_removal", Bool),
];
const DATASETS: Columns = &[
    ("pool", Text),
    ("identity_id", Text),
    ("dataset_name", Text),
    ("live_keys", Int),
    ("sync_count", Int),
    ("last_modified_date", Time),
    ("removed", Bool),
];
const DAILY: Columns = &[
    ("pool", Text),
    ("event_date", Date),
    ("identity_id", Text),
    ("dataset_name", Text),
    ("key", Text),
    ("value", Text),
    ("op", Text),
    ("sync_count", Int),
    ("last_modified_date", Time),
    ("changes_in_day", Int),
];
const RAW: Columns = &[
    ("identitypoolid", Text),
    ("identityid", Text),
    ("datasetname", Text),
    ("key", Text),
    ("value", Text),
    ("op", Text),
    ("synccount", Int),
    ("lastmodifieddate", Time),
];
const EXTRACT: Columns = &[
    ("extract_date", Date),
    ("pool", Text),
    ("kind", Text),
    ("identity_id", Text),
    ("dataset_name", Text),
    ("key", Text),
    ("value", Text),
    ("op", Text),
    ("sync_count", Int),
    ("last_modified_date", Time),
];
const QUARANTINE: Columns = &[("arrived_date", Date), ("stream", Text), ("shard_id", Text), ("reason", Text)];

/// Relations to query; the more important ones are listed more than once, so they are picked more often.
pub(super) const RELATIONS: [(&str, Columns); 16] = [
    ("sync_records", RECORDS),
    ("sync_records", RECORDS),
    ("sync_records", RECORDS),
    ("changes", CHANGES),
    ("changes", CHANGES),
    ("current_state", STATE),
    ("current_state", STATE),
    ("key_state", KEYS),
    ("resolved", RESOLVED),
    ("dataset_state", DATASETS),
    ("daily_changes", DAILY),
    ("cognito_raw_data", RAW),
    ("daily_extract", EXTRACT),
    ("daily_state", EXTRACT),
    ("state", STATE),
    ("quarantine", QUARANTINE),
];
