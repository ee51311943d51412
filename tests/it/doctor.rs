//! Tests of `doctor` over a whole pipeline on loopback, sound and broken.

use aws_sdk_kinesis::primitives::Blob;
use serde_json::{Value, json};

use crate::harness::{ok, refused, setting, synclake, text};
use crate::kinesis::{client, make_bucket};
use crate::pools::{aws, control, enable, pool};

/// Runs doctor, and returns its checks and exit code.
fn doctor(args: &[&str]) -> (Vec<Value>, i32) {
    let output = aws(&[&["doctor"], args].concat()).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    // Neither the secret key nor a signature is ever printed.
    for printed in [text(&output.stdout), text(&output.stderr)] {
        assert!(!printed.contains("SECRET-CANARY") && !printed.contains("Signature="), "{printed}");
    }
    (report["checks"].as_array().unwrap().clone(), output.status.code().unwrap())
}

/// Returns verdict and text of a check.
#[track_caller]
fn of<'a>(checks: &'a [Value], name: &str) -> Vec<(&'a str, &'a str)> {
    let found = checks.iter().filter(|check| check["check"] == name);
    found.map(|check| (check["verdict"].as_str().unwrap(), check["text"].as_str().unwrap())).collect()
}

fn set_bucket(bucket: &str, query: &str, body: &str) {
    let url = format!("{}/{bucket}?{query}", setting("SYNCLAKE_TEST_S3"));
    let output = std::process::Command::new("curl").args(["-sSf", "-X", "PUT", "--data", body, &url]).output().unwrap();
    assert!(output.status.success(), "{query}: {}", text(&output.stderr));
}

const PRIVATE: &str = "<PublicAccessBlockConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
    <BlockPublicAcls>true</BlockPublicAcls><IgnorePublicAcls>true</IgnorePublicAcls>\
    <BlockPublicPolicy>true</BlockPublicPolicy><RestrictPublicBuckets>true</RestrictPublicBuckets>\
    </PublicAccessBlockConfiguration>";
const ENCRYPTED: &str = "<ServerSideEncryptionConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Rule>\
    <ApplyServerSideEncryptionByDefault><SSEAlgorithm>AES256</SSEAlgorithm></ApplyServerSideEncryptionByDefault>\
    </Rule></ServerSideEncryptionConfiguration>";

fn lifecycle(rules: &str) -> String {
    format!(
        "<LifecycleConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Rule><ID>uploads</ID>\
         <Filter><Prefix></Prefix></Filter><Status>Enabled</Status><AbortIncompleteMultipartUpload>\
         <DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>{rules}</LifecycleConfiguration>"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_pipeline_has_no_fault_and_each_break_has_one() {
    let (pool, name) = (pool(10), "doctored");
    let lake = "s3://doctored-bucket/deep/lake";
    control("PUT", &format!("pools/{pool}"), &json!({ "SyncSessionsCount": 7, "LastModifiedDate": 1_700_000_000 }));
    enable(&pool, name);
    make_bucket("doctored-bucket").await;
    set_bucket("doctored-bucket", "publicAccessBlock", PRIVATE);
    set_bucket("doctored-bucket", "encryption", ENCRYPTED);
    set_bucket("doctored-bucket", "lifecycle", &lifecycle(""));
    let event = json!({ "identityPoolId": pool, "identityId": "us-east-1:0a", "dataSetName": "d", "operation": "replace",
        "lastModifiedDate": 1_700_000_000_000_u64, "syncCount": 1, "kinesisSyncRecords":
        [{ "key": "k", "value": "v", "op": "replace", "syncCount": 1, "lastModifiedDate": 1_700_000_000_000_u64 }] });
    let put = client().await.put_record().stream_name(name).partition_key("p").data(Blob::new(event.to_string()));
    put.send().await.unwrap();
    let source = format!("kinesis:{name}");
    let all = ["--lake", lake, "--source", &source, "--lease-table", "dynamodb:doctored-leases", "--pool", &pool];
    ok(&mut aws(&[&["ingest", "--until-idle", "2s", "--care", "off"], &all[..6]].concat()));

    let (checks, code) = doctor(&all);
    let faults: Vec<&Value> = checks.iter().filter(|check| check["verdict"] == "fault").collect();
    assert_eq!((faults, code), (vec![], 0));
    for check in [
        "region",
        "credentials",
        "stream",
        "stream retention",
        "stream permissions",
        "pool",
        "pool silence",
        "bucket region",
        "bucket access",
        "bucket encryption",
        "bucket versions",
        "bucket lifecycle",
        "lease table",
        "lake permissions",
        "lake",
    ] {
        assert_eq!(
            of(&checks, check).iter().map(|(verdict, _)| *verdict).collect::<Vec<_>>(),
            ["ok"],
            "{check} {checks:?}"
        );
    }
    // The record is in the stream as it came: not encrypted, which is a warning with its command.
    assert_eq!(of(&checks, "stream encryption")[0].0, "warning");
    // Nothing of the probe is left.
    let listed = ok(std::process::Command::new("curl")
        .args(["-sSf", &format!("{}/doctored-bucket?list-type=2", setting("SYNCLAKE_TEST_S3"))]));
    assert!(!listed.contains("_doctor-"), "{listed}");

    // A change of which no record came: silence is told.
    let now = chrono::Utc::now().timestamp();
    control("PUT", &format!("pools/{pool}"), &json!({ "LastModifiedDate": now - 4 * 3_600 }));
    let (checks, code) = doctor(&all);
    let silence = of(&checks, "pool silence");
    assert_eq!((silence[0].0, code), ("warning", 0), "{silence:?}");
    assert!(silence[0].1.contains("7 sync sessions") && silence[0].1.contains("records are missing"), "{silence:?}");

    // Streaming that was turned off behind our back.
    let role = format!("arn:aws:iam::000000000000:role/{name}");
    let streams = |stream: &str, status: &str| {
        let streams =
            json!({ "StreamName": stream, "RoleArn": role, "StreamingStatus": status, "DisabledReason": "gone" });
        control("PUT", &format!("pools/{pool}"), &json!({ "CognitoStreams": streams }));
    };
    streams(name, "DISABLED");
    let (checks, code) = doctor(&all);
    let found = of(&checks, "pool");
    assert_eq!((found[0].0, code), ("fault", 1));
    assert!(found[0].1.ends_with("Cognito Sync turned streaming off: gone"), "{found:?}");
    streams("another-stream", "ENABLED");
    let (checks, _) = doctor(&all);
    assert!(
        of(&checks, "pool")
            .iter()
            .any(|(verdict, text)| *verdict == "fault" && text.contains("streams into another-stream"))
    );
    streams(name, "ENABLED");

    // A bucket that would lose the lake, or show it.
    let rule = |what: &str| {
        format!("<Rule><ID>mine</ID><Filter><Prefix>deep/</Prefix></Filter><Status>Enabled</Status>{what}</Rule>")
    };
    set_bucket("doctored-bucket", "lifecycle", &lifecycle(&rule("<Expiration><Days>30</Days></Expiration>")));
    let (checks, code) = doctor(&all[..2]);
    assert_eq!(code, 1);
    assert!(
        of(&checks, "bucket lifecycle")
            .iter()
            .any(|(verdict, text)| *verdict == "fault" && text.contains("deletes objects of the lake"))
    );
    let moves = "<Transition><Days>30</Days><StorageClass>GLACIER</StorageClass></Transition>";
    set_bucket("doctored-bucket", "lifecycle", &lifecycle(&rule(moves)));
    assert!(
        of(&doctor(&all[..2]).0, "bucket lifecycle")
            .iter()
            .any(|(verdict, text)| *verdict == "fault" && text.contains("GLACIER"))
    );
    set_bucket("doctored-bucket", "lifecycle", &lifecycle(""));
    set_bucket(
        "doctored-bucket",
        "versioning",
        "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>",
    );
    set_bucket(
        "doctored-bucket",
        "publicAccessBlock",
        &PRIVATE.replace("<BlockPublicAcls>true", "<BlockPublicAcls>false"),
    );
    let (checks, code) = doctor(&all[..2]);
    assert_eq!(
        (of(&checks, "bucket versions")[0].0, of(&checks, "bucket access")[0].0, code),
        ("warning", "warning", 0)
    );

    // What is missing altogether.
    let (checks, code) = doctor(&["--source", "kinesis:no-such-stream", "--lease-table", "dynamodb:no-such-table"]);
    assert_eq!((of(&checks, "stream")[0].0, of(&checks, "lease table")[0].0, code), ("fault", "warning", 1));
    let (checks, code) = doctor(&["--lake", "s3://no-such-bucket/lake"]);
    let faults: Vec<&Value> = checks.iter().filter(|check| check["verdict"] != "ok").collect();
    assert_eq!(
        (faults.len(), of(&checks, "bucket"), code),
        (1, vec![("fault", "there is no bucket no-such-bucket")], 1)
    );
}

/// Without credentials one fault says so, and a lake in a folder is looked at all the same.
#[test]
fn credentials_are_checked_first() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().to_str().unwrap();
    let mut command = synclake();
    command.env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    let output = command.args(["doctor", "--lake", lake, "--source", "kinesis:none"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(of(checks, "credentials"), [("fault", "no AWS credentials were found")]);
    assert_eq!(of(checks, "stream"), []);
    assert_eq!(of(checks, "lake")[0].0, "fault", "{checks:?}");
    refused(&synclake().arg("doctor").output().unwrap(), 2, &["nothing to check; give --lake"]);
}
