//! Tests of `catalog sync` against the Glue catalogue of the test server.

use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{ok, refused, setting, simulate, synclake, text};
use crate::kinesis::make_bucket;

/// Calls Glue directly, as another program would.
fn glue(operation: &str, input: &Value) -> Value {
    let target = format!("x-amz-target: AWSGlue.{operation}");
    let scope = "authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/glue/aws4_request, SignedHeaders=host, \
                 Signature=0";
    let mut command = Command::new("curl");
    command.args(["-sS", "-H", "content-type: application/x-amz-json-1.1", "-H", &target, "-H", scope]);
    let answer = ok(command.args(["--data", &input.to_string(), &setting("SYNCLAKE_TEST_S3")]));
    if answer.is_empty() { Value::Null } else { serde_json::from_str(&answer).unwrap() }
}

fn table(database: &str, name: &str) -> Value {
    glue("GetTable", &json!({ "DatabaseName": database, "Name": name }))["Table"].clone()
}

fn partitions(database: &str, name: &str) -> Vec<Value> {
    let found = glue("GetPartitions", &json!({ "DatabaseName": database, "TableName": name }));
    found["Partitions"].as_array().unwrap().clone()
}

/// Replaces a table as another program would, after a change of its description.
fn change(database: &str, name: &str, edit: impl FnOnce(&mut Value)) {
    let mut input = table(database, name);
    for key in ["DatabaseName", "CreateTime", "UpdateTime", "VersionId", "CatalogId", "IsRegisteredWithLakeFormation"] {
        input.as_object_mut().unwrap().remove(key);
    }
    edit(&mut input);
    glue("UpdateTable", &json!({ "DatabaseName": database, "TableInput": input }));
}

fn sync(args: &[&str]) -> Command {
    let mut command = synclake();
    command.args(["catalog", "sync"]).args(args).env("AWS_ENDPOINT_URL", setting("SYNCLAKE_TEST_S3"));
    command.env("AWS_REGION", "us-east-1").env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
    command
}

/// Runs `catalog sync`; returns action and differences of each entry, by name and kind.
fn synced(args: &[&str]) -> Vec<(String, String, Vec<String>)> {
    let report: Value = serde_json::from_str(&ok(&mut sync(args))).unwrap();
    let entries = report["entries"].as_array().unwrap().iter();
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let lines = |value: &Value| value.as_array().unwrap().iter().map(word).collect();
    entries
        .map(|entry| {
            let name = format!("{} {}", word(&entry["kind"]), word(&entry["name"]));
            (name, word(&entry["action"]), lines(&entry["differences"]))
        })
        .collect()
}

fn actions(of: &[(String, String, Vec<String>)], action: &str) -> Vec<String> {
    of.iter().filter(|(_, known, _)| known == action).map(|(name, ..)| name.clone()).collect()
}

/// Makes a lake of some events on S3.
fn lake(seed: &str, lake: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "300", "--seed", seed]);
    ok(synclake()
        .args(["ingest", "--care", "off", "--lake", lake, "--source"])
        .arg(format!("file:{}", events.display()))
        .env("AWS_ENDPOINT_URL", setting("SYNCLAKE_TEST_S3")));
}

/// Deletes a partition of `sync_records`, leads one elsewhere, and creates one of nothing.
fn disturb_partitions(database: &str, found: &[Value]) {
    let of =
        |values: &Value| json!({ "DatabaseName": database, "TableName": "sync_records", "PartitionValues": values });
    glue("DeletePartition", &of(&found[0]["Values"]));
    let storage = json!({ "Location": "s3://elsewhere/", "Columns": [] });
    let mut moved = of(&Value::Null);
    let input = json!({ "Values": found[1]["Values"], "StorageDescriptor": storage });
    moved["Entries"] = json!([{ "PartitionValueList": found[1]["Values"], "PartitionInput": input }]);
    glue("BatchUpdatePartition", &moved);
    let mut odd = of(&Value::Null);
    odd["PartitionInput"] = json!({ "Values": ["nobody", "2020-01-01"], "StorageDescriptor": storage });
    glue("CreatePartition", &odd);
}

/// Makes `catalog sync` do everything that it can do, at an endpoint.
pub(crate) fn change_all(place: &str, database: &str, endpoint: &str) {
    lake("1", place);
    on_s3(&["manifest", "--lake", place]);
    let sync = || {
        ok(sync(&["--engine", "redshift", "--lake", place, "--database", database]).env("AWS_ENDPOINT_URL", endpoint))
    };
    sync();
    change(database, "gaps", |table| table["Description"] = "changed".into());
    disturb_partitions(database, &partitions(database, "sync_records"));
    sync();
}

fn on_s3(args: &[&str]) -> String {
    ok(synclake().args(args).env("AWS_ENDPOINT_URL", setting("SYNCLAKE_TEST_S3")))
}

#[tokio::test(flavor = "multi_thread")]
async fn athena_gets_tables_and_views_and_drift_is_told_and_mended() {
    make_bucket("catalog-athena").await;
    let (place, other) = ("s3://catalog-athena/deep/lake", "s3://catalog-athena/other");
    lake("1", place);
    let args = ["--engine", "athena", "--lake", place, "--database", "athena_db"];
    let dry = [&args[..], &["--dry-run"]].concat();

    let planned = synced(&dry);
    assert_eq!(actions(&planned, "create").len(), planned.len());
    assert_eq!(synced(&dry), planned, "a dry run changes nothing");
    assert_eq!(synced(&args), planned);
    for name in ["database athena_db", "table athena_db.sync_records", "view athena_db.current_state"] {
        assert!(planned.iter().any(|(known, ..)| known == name), "{name}: {planned:?}");
    }
    assert_eq!(actions(&synced(&args), "none").len(), planned.len(), "a second run has nothing to do");

    let records = table("athena_db", "sync_records");
    assert_eq!(records["Parameters"]["table_type"], "DELTA");
    assert_eq!(records["StorageDescriptor"]["Location"], format!("{place}/sync_records/"));
    let columns = records["StorageDescriptor"]["Columns"].as_array().unwrap();
    let column = columns.iter().find(|column| column["Name"] == "sync_count").unwrap();
    assert_eq!(column["Type"], "bigint");
    assert!(column["Comment"].as_str().unwrap().starts_with("Sync count of the record"));
    assert_eq!(table("athena_db", "changes")["TableType"], "VIRTUAL_VIEW");

    // What somebody changed.
    for name in ["state", "refreshed_state"] {
        glue("DeleteTable", &json!({ "DatabaseName": "athena_db", "Name": name }));
    }
    change("athena_db", "changes", |view| view["ViewOriginalText"] = "/* Presto View: e30= */".into());
    change("athena_db", "sync_records", |table| {
        table["StorageDescriptor"]["Columns"].as_array_mut().unwrap().retain(|column| column["Name"] != "source");
        table["Parameters"]["team"] = "analytics".into();
    });
    let doctor = |args: &[&str]| -> Value {
        let mut command = synclake();
        command.args(["doctor", "--format", "json", "--lake", place, "--engine", "athena"]).args(args);
        command.env("AWS_ENDPOINT_URL", setting("SYNCLAKE_TEST_S3"));
        command.env("AWS_REGION", "us-east-1").env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        let report: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        let checks = report["checks"].as_array().unwrap();
        checks.iter().find(|check| check["check"] == "catalogue").unwrap().clone()
    };
    let check = doctor(&["--database", "athena_db"]);
    assert_eq!(check["verdict"], "warning", "{check}");
    assert!(check["remedy"].as_str().unwrap().contains("catalog sync --engine athena --database athena_db"), "{check}");
    let drift = synced(&dry);
    assert_eq!(actions(&drift, "create"), ["table athena_db.state", "view athena_db.refreshed_state"]);
    assert_eq!(actions(&drift, "update"), ["table athena_db.sync_records", "view athena_db.changes"]);
    let told: Vec<&String> = drift.iter().flat_map(|(.., differences)| differences).collect();
    assert_eq!(told, ["column source is missing", "the definition of the view differs"]);
    assert_eq!(synced(&args), drift);
    assert_eq!(actions(&synced(&args), "none").len(), drift.len());
    assert_eq!(table("athena_db", "sync_records")["Parameters"]["team"], "analytics", "what others add stays");
    assert_eq!(doctor(&["--database", "athena_db"])["verdict"], "ok");

    // Another lake, another engine, and a table of somebody else: refused before anything is changed.
    lake("2", other);
    let taken = ["--engine", "athena", "--lake", other, "--database", "athena_db"];
    refused(
        &sync(&taken).output().unwrap(),
        1,
        &["athena_db.sync_records", &format!("of the lake {place}"), "--replace"],
    );
    assert_eq!(actions(&synced(&args), "none").len(), drift.len());
    on_s3(&["manifest", "--lake", place]);
    let taken = ["--engine", "redshift", "--lake", place, "--database", "athena_db"];
    refused(&sync(&taken).output().unwrap(), 1, &["athena_db.sync_records", "registered for athena", "--database"]);
    glue("CreateDatabase", &json!({ "DatabaseInput": { "Name": "shared_db" } }));
    let storage = json!({ "Location": "s3://elsewhere/gaps", "Columns": [] });
    let input = json!({ "Name": "gaps", "TableType": "EXTERNAL_TABLE", "StorageDescriptor": storage });
    glue("CreateTable", &json!({ "DatabaseName": "shared_db", "TableInput": input }));
    let shared = ["--engine", "athena", "--lake", other, "--database", "shared_db"];
    refused(&sync(&shared).output().unwrap(), 1, &["shared_db.gaps", "s3://elsewhere/gaps", "--replace"]);
    assert_eq!(table("shared_db", "sync_records"), Value::Null);
    let replaced = synced(&[&shared[..], &["--replace"]].concat());
    assert_eq!(actions(&replaced, "update"), ["table shared_db.gaps"]);
    assert_eq!(actions(&synced(&shared), "none").len(), replaced.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn redshift_gets_the_partitions_of_the_manifests() {
    make_bucket("catalog-redshift").await;
    let place = "s3://catalog-redshift/lake";
    lake("1", place);
    let args = ["--engine", "redshift", "--lake", place, "--database", "spectrum"];
    refused(&sync(&args).output().unwrap(), 1, &["sync_records", "no manifests", "`synclake manifest --lake"]);
    on_s3(&["manifest", "--lake", place]);
    let report = on_s3(&["manifest", "--lake", place, "--table", "sync_records"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    synced(&args);
    let found = partitions("spectrum", "sync_records");
    assert_eq!(Some(found.len() as u64), report["manifests"].as_u64());
    for partition in &found {
        let values = partition["Values"].as_array().unwrap();
        let [pool, date] = [0, 1].map(|n| values[n].as_str().unwrap());
        let folder = format!("{place}/sync_records/_symlink_format_manifest/pool={pool}/event_date={date}/");
        assert_eq!(partition["StorageDescriptor"]["Location"], folder);
    }
    let again = synced(&args);
    assert_eq!(actions(&again, "none").len(), again.len());

    disturb_partitions("spectrum", &found);
    let drift = synced(&[&args[..], &["--dry-run"]].concat());
    assert_eq!(actions(&drift, "update"), ["partitions spectrum.sync_records"]);
    let (.., differences) = drift.iter().find(|(_, action, _)| action == "update").unwrap();
    let words = [" partitions missing", "at another place", "not of the lake"];
    assert!(
        differences.len() == 3 && differences.iter().zip(words).all(|(d, word)| d.contains(word)),
        "{differences:?}"
    );
    assert_eq!(synced(&args), drift);
    let places = |found: &[Value]| -> Vec<Value> {
        let mut places: Vec<Value> = found.iter().map(|p| p["StorageDescriptor"]["Location"].clone()).collect();
        places.sort_by_key(Value::to_string);
        places
    };
    assert_eq!(places(&partitions("spectrum", "sync_records")), places(&found));
}

#[test]
fn what_cannot_be_registered_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "50"]);
    let place = folder.path().join("lake");
    crate::harness::ingest_file(&events, &place);
    let lake = place.to_str().unwrap();
    let run = |args: &[&str]| sync(args).output().unwrap();
    refused(&run(&["--engine", "athena", "--lake", lake]), 2, &["folder", "s3://"]);
    let odd = ["--engine", "athena", "--lake", "s3://b/lake", "--database", "a;b"];
    refused(&run(&odd), 2, &["a;b", "a-z0-9_"]);
    let mut nowhere = sync(&["--engine", "athena", "--lake", "s3://b/lake"]);
    let output = nowhere.env_remove("AWS_REGION").env("HOME", folder.path()).output().unwrap();
    refused(&output, 2, &["region"]);
    let doctor = synclake().args(["doctor", "--engine", "athena", "--source", "kinesis:s"]).output().unwrap();
    assert!(text(&doctor.stderr).contains("--lake"), "{}", text(&doctor.stderr));
    assert_eq!(doctor.status.code(), Some(2));
}
