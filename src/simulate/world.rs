//! The model: pools, identities, datasets and keys, and the effect of a synchronization on them.

use std::collections::BTreeMap;

use chrono::NaiveTime;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::SimulateOptions;
use super::deliver::Event;
use super::words;

const DAY_MS: i64 = 86_400_000;

pub(super) struct World {
    pools: Vec<String>,
    identities: Vec<Identity>,
    start_ms: i64,
    span_ms: i64,
    events: u64,
    dataset_removals: f64,
    bulk_copies: f64,
    value_chars: usize,
}

struct Identity {
    id: String,
    pool: usize,
    datasets: BTreeMap<&'static str, Dataset>,
}

#[derive(Default)]
struct Dataset {
    sync_count: i64,
    keys: BTreeMap<String, Key>,
}

struct Key {
    value: Option<String>,
    sync_count: i64,
    last_modified_ms: i64,
    device_ms: i64,
}

/// A live key.
pub(super) struct Live<'a> {
    pub pool: &'a str,
    pub identity: &'a str,
    pub dataset: &'a str,
    pub key: &'a str,
    pub value: Option<&'a str>,
    pub sync_count: i64,
    pub last_modified_ms: i64,
}

impl World {
    pub(super) fn new(options: &SimulateOptions, rng: &mut ChaCha8Rng) -> Self {
        let pools: Vec<String> = (0..options.pools.max(1)).map(|_| format!("us-east-1:{}", words::guid(rng))).collect();
        let identities = (0..options.identities.max(1))
            .map(|_| Identity {
                id: format!("us-east-1:{}", words::guid(rng)),
                pool: words::skewed(pools.len(), rng),
                datasets: BTreeMap::new(),
            })
            .collect();
        Self {
            pools,
            identities,
            start_ms: options.start.and_time(NaiveTime::MIN).and_utc().timestamp_millis(),
            span_ms: i64::from(options.days.max(1)) * DAY_MS,
            events: options.events.max(1),
            dataset_removals: options.dataset_removals,
            bulk_copies: options.bulk_copies,
            value_chars: options.value_chars,
        }
    }

    /// Performs synchronization `index`. Returns its event, sometimes followed by bulk-publish copies of all datasets
    /// of one identity.
    pub(super) fn step(&mut self, index: u64, rng: &mut ChaCha8Rng) -> Vec<Event> {
        let share = index as f64 / self.events as f64;
        // Increases with `index`, strictly while there are fewer events than milliseconds. So the server's clock and
        // its counter give the same order.
        let now_ms = self.start_ms + (share * (self.span_ms - 1) as f64) as i64;
        let who = words::skewed(self.identities.len(), rng);
        let which = words::DATASETS[words::skewed(words::DATASETS.len(), rng)];
        let removal = rng.random_bool(self.dataset_removals);
        let bulk = rng.random_bool(self.bulk_copies);
        let value_chars = self.value_chars;
        let identity = &mut self.identities[who];
        let pool = &self.pools[identity.pool];
        let dataset = identity.datasets.entry(which).or_default();
        dataset.sync_count += 1;
        let mut events = Vec::new();
        if removal && !dataset.keys.is_empty() {
            dataset.keys.clear();
            events.push(event(pool, &identity.id, which, "remove", Value::Null, dataset.sync_count, now_ms, index));
        } else {
            let records = update(dataset, now_ms, value_chars, rng);
            events.push(event(pool, &identity.id, which, "replace", records, dataset.sync_count, now_ms, index));
        }
        if bulk {
            let who = words::skewed(self.identities.len(), rng);
            let identity = &self.identities[who];
            let pool = &self.pools[identity.pool];
            for (name, dataset) in identity.datasets.iter().filter(|(_, d)| !d.keys.is_empty()) {
                let records = dataset.keys.iter().map(|(key, state)| {
                    record(key, &state.value, "replace", state.sync_count, state.last_modified_ms, state.device_ms)
                });
                let latest = dataset.keys.values().map(|k| k.last_modified_ms).max().unwrap_or(now_ms);
                let records = records.collect();
                events.push(event(pool, &identity.id, name, "replace", records, dataset.sync_count, latest, index));
            }
        }
        events
    }

    /// Returns every live key.
    pub(super) fn live(&self) -> impl Iterator<Item = Live<'_>> {
        self.identities.iter().flatten_datasets(&self.pools)
    }
}

trait FlattenDatasets<'a> {
    fn flatten_datasets(self, pools: &'a [String]) -> impl Iterator<Item = Live<'a>>;
}

impl<'a, I: Iterator<Item = &'a Identity>> FlattenDatasets<'a> for I {
    fn flatten_datasets(self, pools: &'a [String]) -> impl Iterator<Item = Live<'a>> {
        self.flat_map(move |identity| {
            identity.datasets.iter().flat_map(move |(name, dataset)| {
                dataset.keys.iter().map(move |(key, state)| Live {
                    pool: &pools[identity.pool],
                    identity: &identity.id,
                    dataset: name,
                    key,
                    value: state.value.as_deref(),
                    sync_count: state.sync_count,
                    last_modified_ms: state.last_modified_ms,
                })
            })
        })
    }
}

fn update(dataset: &mut Dataset, now_ms: i64, value_chars: usize, rng: &mut ChaCha8Rng) -> Value {
    let mut records = BTreeMap::new();
    for _ in 0..=words::skewed(12, rng) {
        let key = words::key(rng);
        // The device's clock is mostly near the server's, and now and then decades away.
        let device_ms = match rng.random_range(0..200u8) {
            0 => -86_400_000,
            1 => 4_102_444_800_000,
            _ => now_ms - rng.random_range(0..5_000i64),
        };
        let remove = dataset.keys.contains_key(&key) && rng.random_bool(0.08);
        if remove {
            dataset.keys.remove(&key);
            records.insert(key.clone(), record(&key, &None, "remove", dataset.sync_count, now_ms, device_ms));
        } else {
            let value = words::value(value_chars, rng);
            records.insert(key.clone(), record(&key, &value, "replace", dataset.sync_count, now_ms, device_ms));
            let state = Key { value, sync_count: dataset.sync_count, last_modified_ms: now_ms, device_ms };
            dataset.keys.insert(key, state);
        }
    }
    records.into_values().collect()
}

fn record(key: &str, value: &Option<String>, op: &str, sync_count: i64, modified_ms: i64, device_ms: i64) -> Value {
    json!({
        "key": key, "value": value, "syncCount": sync_count, "lastModifiedDate": modified_ms,
        "deviceLastModifiedDate": device_ms, "op": op,
    })
}

#[allow(clippy::too_many_arguments, reason = "the fields of the wire format, in its order")]
fn event(
    pool: &str,
    identity: &str,
    dataset: &str,
    operation: &str,
    records: Value,
    sync_count: i64,
    modified_ms: i64,
    index: u64,
) -> Event {
    let changes = records.as_array().map_or(1, |r| r.len() as u64);
    // Real events have both spellings.
    let name_field = if index.is_multiple_of(5) { "datasetName" } else { "dataSetName" };
    let mut json = json!({
        "identityPoolId": pool, "identityId": identity, name_field: dataset, "operation": operation,
        "kinesisSyncRecords": records, "lastModifiedDate": modified_ms, "kinesisSyncRecordsURL": null,
        "payloadType": "Inline", "syncCount": sync_count,
    });
    if index.is_multiple_of(97)
        && let Some(fields) = json.as_object_mut()
    {
        fields.insert("newField".to_owned(), json!({"since": "2027"}));
    }
    Event { partition_key: identity.to_owned(), json: json.to_string(), changes }
}
