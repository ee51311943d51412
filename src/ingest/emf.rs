//! Metrics as lines of text in CloudWatch's embedded metric format, for workers whose standard error goes to CloudWatch
//! Logs: ECS with the `awslogs` driver, Lambda, or the CloudWatch agent. No client and no permission is needed.
//!
//! Counters are the increase since the line before, so that sums over time and over workers are right.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::{Counters, counters::Numbers};
use crate::source::Retries;

/// Namespace of the metrics.
const NAMESPACE: &str = "synclake";

/// A writer of lines, which knows what the line before had.
#[derive(Debug)]
pub struct EmbeddedMetrics {
    stream: String,
    before: Counted,
}

/// Values that only grow.
#[derive(Debug, Default, Clone, Copy)]
struct Counted {
    records: u64,
    record_bytes: u64,
    rows: u64,
    commits: u64,
    gaps: u64,
    quarantined: u64,
    retries: u64,
}

impl EmbeddedMetrics {
    /// Begins with counters at zero. `stream` is the value of the dimension `Stream`.
    pub fn new(stream: &str) -> Self {
        Self { stream: stream.to_owned(), before: Counted::default() }
    }

    /// Returns the next line, without a line break.
    pub fn line(&mut self, counters: &Counters, retries: &Retries) -> String {
        let Numbers { records, record_bytes, rows, commits, gaps, unread, buffered_bytes, .. } = counters.numbers();
        let quarantined = counters.quarantine().values().sum();
        let retries = retries.counts().into_iter().map(|(_, _, n)| n).sum();
        let now = Counted { records, record_bytes, rows, commits, gaps, quarantined, retries };
        let before = std::mem::replace(&mut self.before, now);
        let shards = counters.shards();
        let lag = shards.values().map(|counts| counts.behind_ms.max(0)).max().unwrap_or(0) as f64 / 1_000.0;
        let overdue = shards.values().filter(|counts| counts.uncommitted_records > 0);
        let overdue = overdue.map(|counts| counts.last_commit.elapsed().as_secs()).max().unwrap_or(0);
        let since = |now: u64, before: u64| Value::from(now.saturating_sub(before));
        let metrics = [
            ("Records", "Count", since(now.records, before.records)),
            ("RecordBytes", "Bytes", since(now.record_bytes, before.record_bytes)),
            ("Rows", "Count", since(now.rows, before.rows)),
            ("Commits", "Count", since(now.commits, before.commits)),
            ("Quarantined", "Count", since(now.quarantined, before.quarantined)),
            ("Gaps", "Count", since(now.gaps, before.gaps)),
            ("Retries", "Count", since(now.retries, before.retries)),
            ("LagSeconds", "Seconds", Value::from(lag)),
            ("CommitOverdueSeconds", "Seconds", Value::from(overdue)),
            ("ShardsWithoutReader", "Count", Value::from(unread)),
            ("BufferedBytes", "Bytes", Value::from(buffered_bytes)),
        ];
        let declared: Vec<Value> =
            metrics.iter().map(|(name, unit, _)| json!({ "Name": name, "Unit": unit })).collect();
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        let about = json!({
            "Timestamp": u64::try_from(time).unwrap_or_default(),
            "CloudWatchMetrics": [{ "Namespace": NAMESPACE, "Dimensions": [["Stream"]], "Metrics": declared }],
        });
        let mut line = Map::from_iter([("_aws".to_owned(), about), ("Stream".to_owned(), self.stream.as_str().into())]);
        line.extend(metrics.map(|(name, _, value)| (name.to_owned(), value)));
        Value::Object(line).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_the_increase_since_the_line_before() {
        let (counters, retries) = (Counters::default(), Retries::default());
        let mut metrics = EmbeddedMetrics::new("stream");
        counters.received(None, 3, 300);
        let read = |line: &str| serde_json::from_str::<Value>(line).unwrap();
        let first = read(&metrics.line(&counters, &retries));
        assert_eq!(
            (&first["Records"], &first["RecordBytes"], &first["Stream"]),
            (&json!(3), &json!(300), &json!("stream"))
        );
        counters.received(None, 1, 50);
        retries.count("GetRecords", "no_answer");
        let second = read(&metrics.line(&counters, &retries));
        assert_eq!(
            (&second["Records"], &second["RecordBytes"], &second["Retries"]),
            (&json!(1), &json!(50), &json!(1))
        );
        // Every declared metric has a value, and every value is declared.
        let declared = first["_aws"]["CloudWatchMetrics"][0]["Metrics"].as_array().unwrap();
        let names: Vec<&str> = declared.iter().map(|metric| metric["Name"].as_str().unwrap()).collect();
        for name in &names {
            assert!(first[*name].is_number(), "{name}");
        }
        assert_eq!(first.as_object().unwrap().len(), names.len() + 2);
        let document = include_str!("../../docs/operations.md");
        for name in &names {
            assert!(document.contains(&format!("| `{name}` |")), "{name} is not in docs/operations.md");
        }
    }
}
