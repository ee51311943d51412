//! Tests with public suites: the Big List of Naughty Strings and JSONTestSuite.

use std::path::PathBuf;

use serde_json::{Value, json};
use synclake::decode::{Reason, decode};

use crate::harness::setting;

fn module(path: &str) -> String {
    let path = PathBuf::from(setting("SYNCLAKE_TEST_TOOLS")).join("node/node_modules").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Keys, values and dataset names come through byte for byte, whatever text they hold.
#[test]
fn naughty_strings_come_through_byte_for_byte() {
    let strings: Vec<String> = serde_json::from_str(&module("blns/resources/blns.json")).unwrap();
    assert!(strings.len() > 400);
    for text in &strings {
        let key = if text.is_empty() { "k" } else { text.as_str() };
        let record = json!({"key": key, "value": text, "op": "replace", "syncCount": 1, "lastModifiedDate": 1});
        let event = json!({
            "identityPoolId": "us-east-1:0a", "identityId": "us-east-1:0b", "dataSetName": text.clone() + "d",
            "operation": "replace", "kinesisSyncRecords": [record], "lastModifiedDate": 1, "syncCount": 1,
        });
        let bytes = event.to_string();
        let decoded = decode(bytes.as_bytes()).unwrap();
        assert_eq!(decoded.dataset_name, text.clone() + "d");
        assert_eq!(
            (decoded.rows[0].key.as_deref(), decoded.rows[0].value.as_deref()),
            (Some(key), Some(text.as_str()))
        );
    }
}

/// The decoder accepts valid JSON and rejects invalid JSON, as JSONTestSuite classifies them.
#[test]
fn json_is_told_from_what_is_not() {
    let module = module("json-test-suite/data/parsing.js");
    let cases: Value =
        serde_json::from_str(module.split_once("export default").unwrap().1.trim().trim_end_matches(';')).unwrap();
    let (mut accepted, mut refused) = (0, 0);
    for case in cases.as_array().unwrap() {
        let (name, input) = (case["name"].as_str().unwrap(), case["input"].as_str().unwrap());
        // As a record, no case is an event, so each is rejected; valid JSON is never rejected as invalid JSON or
        // UTF-8.
        let reject = decode(input.as_bytes()).unwrap_err();
        if name.starts_with("y_") {
            assert!(!matches!(reject.reason, Reason::NotJson | Reason::NotUtf8), "{name}: {reject:?}");
        }
        // As an unknown field of an event, valid JSON is kept unchanged; invalid JSON makes the event a decode error.
        let event = format!(
            r#"{{"identityPoolId":"us-east-1:0a","identityId":"us-east-1:0b","dataSetName":"d","operation":"remove","lastModifiedDate":1,"syncCount":1,"x":{input}}}"#
        );
        match (&name[..2], decode(event.as_bytes())) {
            ("y_", Ok(decoded)) => {
                accepted += 1;
                let extra = decoded.extra(&decoded.rows[0]).unwrap();
                assert!(extra.contains(input.trim_matches([' ', '\n', '\t', '\r', '\u{feff}'])), "{name}: {extra}");
            }
            ("n_", Err(_)) => refused += 1,
            ("i_", _) => {}
            (_, outcome) => panic!("{name}: {outcome:?}"),
        }
    }
    assert!(accepted > 80 && refused > 150, "{accepted} accepted, {refused} refused");
}
