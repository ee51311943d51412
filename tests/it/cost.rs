//! Tests that a record costs memory, files and time in proportion to its bytes, whatever is in it. The good records
//! around it are stored.

use std::time::{Duration, Instant};

use synclake::decode::{Event, Reason, decode};

use crate::harness::{count, synclake};

/// Returns an event with more fields (each with a comma before it) and these records.
fn event(fields: &str, records: &str) -> String {
    format!(
        r#"{{"identityPoolId":"us-east-1:0a","identityId":"us-east-1:0b","dataSetName":"d","operation":"replace","syncCount":1,"lastModifiedDate":1767226325759{fields},"kinesisSyncRecords":[{records}]}}"#
    )
}

fn many(n: usize, one: &str) -> String {
    vec![one; n].join(",")
}

fn days(n: u64) -> String {
    let one = |day: u64| format!(r#"{{"key":"k","lastModifiedDate":{}}}"#, day * 86_400_000);
    (0..n).map(one).collect::<Vec<_>>().join(",")
}

/// Returns named records with their outcomes: a number of rows, or a reason.
fn cases() -> Vec<(&'static str, String, Result<i64, Reason>)> {
    let (long, key) = ("e".repeat(1 << 18), r#"{"key":"k"}"#);
    let named =
        |bytes: usize, n| event("", &many(n, key)).replace(r#":"d","#, &format!(r#":"{}","#, "d".repeat(bytes)));
    let operation = |text: &str| event("", &many(20_000, key)).replace(r#""replace""#, &format!("\"{text}\""));
    let (invalid, expands) = (Err(Reason::InvalidField), Err(Reason::ExpandsTooMuch));
    vec![
        ("unknown field", event(&format!(r#","x":"{long}""#), &many(20_000, key)), expands),
        (
            "unknown field, rows with their own",
            event(&format!(r#","x":"{long}""#), &many(20_000, r#"{"key":"k","y":1}"#)),
            expands,
        ),
        ("unknown fields", event(&r#","":0"#.repeat(200_000), &many(2_000, key)), expands),
        ("unknown field, few rows", event(&format!(r#","x":"{long}""#), &many(16, key)), Ok(16)),
        ("unknown field, short", event(&format!(r#","x":"{}""#, "e".repeat(150)), &many(20_000, key)), Ok(20_000)),
        ("operation", operation(&long), invalid),
        ("operation, escaped", operation(&r"\u006f".repeat(1_000)), expands),
        ("dataset name", named(1 << 19, 40_000), invalid),
        ("dataset name, the limit", named(1 << 10, 40_000), expands),
        ("dataset name, the service's limit", named(128, 40_000), Ok(40_000)),
        ("key", event("", &format!(r#"{{"key":"{}"}}"#, "k".repeat(1 << 20))), invalid),
        ("key, far above the service's limit", event("", &format!(r#"{{"key":"{}"}}"#, "k".repeat(60 << 10))), Ok(1)),
        ("records", event("", &many(100_000, key)), Ok(100_000)),
        ("too many records", event("", &many(800_000, key)), expands),
        ("records of nothing", event("", &many(3_000_000, "{}")), Err(Reason::MissingField)),
        ("days", event("", &days(2_048)), Ok(2_048)),
        ("too many days", event("", &days(20_000)), expands),
        ("a day far away", event("", r#"{"key":"k","lastModifiedDate":253402300799999}"#), invalid),
        ("fields of a record", event("", &format!(r#"{{"key":"k"{}}}"#, r#","":0"#.repeat(1_000_000))), Ok(1)),
        (
            "a long text for a number",
            event("", &format!(r#"{{"key":"k","syncCount":"{}"}}"#, "\u{7f}".repeat(5 << 20))),
            invalid,
        ),
        (
            "two long names",
            event(&format!(r#","datasetName":"{}""#, "\u{7f}".repeat(5 << 20)), key),
            Err(Reason::ConflictingDatasetName),
        ),
        ("what looks secret", event(&format!(r#","x":"{}""#, "X-Amz-".repeat(500_000)), key), Ok(1)),
        ("device dates", event("", &many(100_000, r#"{"key":"k","deviceLastModifiedDate":""}"#)), Ok(100_000)),
    ]
}

/// Ingests a good line, `line` and a good line; returns the peak memory in KiB, the summary and the time.
fn ingest(line: &str) -> (usize, serde_json::Value, Duration) {
    let folder = tempfile::tempdir().unwrap();
    let (events, lake) = (folder.path().join("events.ndjson"), folder.path().join("lake"));
    let good = event("", r#"{"key":"good"}"#);
    std::fs::write(&events, format!("{good}\n{line}\n{good}\n")).unwrap();
    let began = Instant::now();
    let mut child = synclake()
        .args(["ingest", "--memory", "64MiB", "--source", &format!("file:{}", events.display()), "--lake"])
        .arg(&lake)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut peak_kib = 0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
        peak_kib = peak_kib.max(line.trim().trim_end_matches(" kB").parse().unwrap_or(0));
        std::thread::sleep(Duration::from_millis(2));
    }
    let took = began.elapsed();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let summary = serde_json::from_slice(&output.stdout).unwrap();
    let good = count(lake.to_str().unwrap(), "select count(*) as n from sync_records where key = 'good'");
    assert_eq!(good, 2, "the good ones land");
    (peak_kib, summary, took)
}

/// Memory, files, bytes written and time are bounded by the size of the record, and good records around it are stored.
#[test]
fn a_record_costs_what_its_bytes_cost() {
    let (plain_kib, ..) = ingest(&event("", r#"{"key":"k"}"#));
    for (name, line, expected) in cases() {
        let (peak_kib, summary, took) = ingest(&line);
        let kib = line.len() >> 10;
        assert!(peak_kib < plain_kib + (64 << 10) + 8 * kib, "{name}: {peak_kib} KiB, without it {plain_kib} KiB");
        assert!(took < Duration::from_secs(60), "{name}: {took:?}");
        assert!(summary["files"].as_u64().unwrap() < 2_100, "{name}: {summary}");
        assert!(summary["file_bytes"].as_u64().unwrap() < (20 << 20) + 2 * line.len() as u64, "{name}: {summary}");
        match expected {
            Ok(rows) => assert_eq!(summary["rows"], rows + 2, "{name}: {summary}"),
            Err(reason) => assert_eq!(summary["quarantined"][reason.as_str()], 1, "{name}: {summary}"),
        }
    }
}

/// Returns the bytes that a decoded event holds in addition to the record.
fn held(event: &Event<'_>) -> usize {
    use std::borrow::Cow;
    let owned =
        |text: &Option<Cow<'_, str>>| matches!(text, Some(Cow::Owned(_))).then(|| text.as_deref().map_or(0, str::len));
    let rows = event.rows.iter().map(|row| {
        [&row.key, &row.value, &row.op].into_iter().filter_map(owned).sum::<usize>()
            + row.extra.as_deref().map_or(0, str::len)
    });
    event.rows.capacity() * size_of_val(&event.rows[0])
        + rows.sum::<usize>()
        + event.extra.as_deref().map_or(0, str::len)
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// Whatever an event repeats, the memory it holds and the text of its rows are bounded by the record's bytes.
    #[test]
    fn what_is_held_is_bounded(
        rows in 1..3_000usize, shape in 0..6usize, extra in 0..40_000usize, name in 1..1_100usize, operation in 1..1_100usize,
    ) {
        let records = match shape {
            0 => many(rows, r#"{"key":"k"}"#),
            1 => many(rows, r#"{"key":"\u006b","value":"\u0076","op":"\u006f"}"#),
            2 => many(rows, r#"{"key":"k","y":[1]}"#),
            3 => many(rows, r#"{"key":"k","deviceLastModifiedDate":1e400}"#),
            4 => days(rows as u64),
            _ => many(rows, r#"{"key":"k","value":"","op":"replace","syncCount":1,"lastModifiedDate":1}"#),
        };
        let json = event(&format!(r#","x":"{}""#, "e".repeat(extra)), &records)
            .replace(r#":"d","#, &format!(r#":"{}","#, "d".repeat(name)))
            .replacen(r#""replace""#, &format!("\"\\u006f{}\"", "o".repeat(operation)), 1);
        match decode(json.as_bytes()) {
            Ok(event) => {
                let held = held(&event);
                assert!(held <= 24 * json.len() + (1 << 12), "{held} of {}", json.len());
                let said: usize = event
                    .rows
                    .iter()
                    .map(|row| {
                        event.dataset_name.len()
                            + event.operation.as_deref().map_or(0, str::len)
                            + event.op(row).map_or(0, str::len)
                            + event.extra(row).map_or(0, |extra| extra.len())
                    })
                    .sum();
                // Besides the repeated text, each row has its own fields and the names of its flags.
                assert!(said <= 32 * json.len() + (64 << 10), "{said} of {}", json.len());
            }
            Err(reject) => assert!(reject.detail.len() < 600, "{}", reject.detail.len()),
        }
    }
}
