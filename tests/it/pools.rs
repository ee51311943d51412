//! Tests of `stream` and `bulk-publish` against a server that answers as Cognito Sync does, with real streams and roles.

use std::path::Path;
use std::process::{Command, Stdio};

use aws_sdk_kinesis::primitives::Blob;
use serde_json::{Value, json};

use crate::harness::{ok, refused, setting, simulate, synclake, text};
use crate::kinesis::client;

/// Returns a command that finds all services of AWS on loopback.
pub(crate) fn aws(args: &[&str]) -> Command {
    let mut command = synclake();
    command.args(args);
    let s3 = setting("SYNCLAKE_TEST_S3");
    for service in ["S3", "DYNAMODB", "IAM", "STS"] {
        command.env(format!("AWS_ENDPOINT_URL_{service}"), &s3);
    }
    command.env("AWS_ENDPOINT_URL_KINESIS", setting("SYNCLAKE_TEST_KINESIS"));
    command.env("AWS_ENDPOINT_URL_COGNITO_SYNC", setting("SYNCLAKE_TEST_COGNITO_SYNC"));
    command
}

/// Runs a command that prints one JSON document.
#[track_caller]
fn report(args: &[&str]) -> Value {
    serde_json::from_str(&ok(&mut aws(args))).unwrap()
}

fn curl(method: &str, url: &str, body: &str) -> String {
    let output = Command::new("curl").args(["-sSf", "-X", method, "--data", body, url]).output().unwrap();
    assert!(output.status.success(), "{method} {url}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Sends a request to the control interface of the server.
#[track_caller]
pub(crate) fn control(method: &str, path: &str, body: &Value) -> Value {
    let url = format!("{}/_control/{path}", setting("SYNCLAKE_TEST_COGNITO_SYNC"));
    serde_json::from_str(&curl(method, &url, &body.to_string())).unwrap_or(Value::Null)
}

/// Sends a request to IAM.
fn iam(parameters: &str) {
    // The server knows the service by the credential scope.
    let scope = "Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/iam/aws4_request, SignedHeaders=host, Signature=0";
    let body = format!("{parameters}&Version=2010-05-08");
    let output = Command::new("curl")
        .args(["-sSf", "-H", scope, "--data", &body, &setting("SYNCLAKE_TEST_S3")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{parameters}: {}", text(&output.stderr));
}

pub(crate) fn pool(n: u32) -> String {
    format!("us-east-1:{n:08x}-6aea-7089-a2dd-0800200c9a66")
}

/// Makes a pool, with push sync.
fn make_pool(n: u32) -> (String, Value) {
    let id = pool(n);
    let push = json!({ "ApplicationArns": ["arn:aws:sns:us-east-1:000000000000:app/GCM/app"],
        "RoleArn": "arn:aws:iam::000000000000:role/push" });
    control("PUT", &format!("pools/{id}"), &json!({ "PushSync": push }));
    (id, push)
}

/// Turns streaming of a pool on, with a new stream and role.
pub(crate) fn enable(pool: &str, name: &str) -> Value {
    report(&["stream", "enable", "--pool", pool, "--stream", name, "--create-stream", "--create-role", name, "--yes"])
}

fn findings(report: &Value) -> Vec<&str> {
    report["findings"].as_array().unwrap().iter().map(|finding| finding["text"].as_str().unwrap()).collect()
}

fn changes(report: &Value) -> Vec<&str> {
    report["changes"].as_array().unwrap().iter().map(|change| change["change"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn streaming_is_turned_on_and_off() {
    let (pool, push) = make_pool(1);
    let status = report(&["stream", "status", "--pool", &pool]);
    assert_eq!((&status["streaming"], findings(&status)), (&json!("none"), vec!["the pool has no stream"]));
    // What only the user can decide is a usage error that says how.
    for (args, part) in [
        (vec![], "give --stream NAME"),
        (vec!["--stream", "on-off"], "give --create-role"),
        (vec!["--stream", "on-off", "--create-role"], "give --create-stream"),
        (
            vec!["--stream", "on-off", "--create-stream", "--role-arn", "arn:aws:iam::000000000000:role/none"],
            "give --create-role",
        ),
        (vec!["--stream", "on-off", "--create-stream", "--create-role"], "give --yes"),
        (vec!["--stream", "on-off", "--role-arn", "none"], "is no ARN of a role"),
    ] {
        let args = [vec!["stream", "enable", "--pool", &pool], args].concat();
        let output = aws(&args).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?} {error}");
        assert!(error.contains(part), "{part:?} is not in {error}");
    }

    let enable_args =
        ["stream", "enable", "--pool", &pool, "--stream", "on-off", "--create-stream", "--create-role", "on-off"];
    let dry = report(&[&enable_args[..], &["--dry-run"]].concat());
    assert_eq!(changes(&dry), ["create_stream", "create_role", "permit", "set_stream"]);
    assert_eq!((&dry["is_applied"], &dry["streaming"]), (&json!(false), &json!("none")));
    assert!(
        client().await.describe_stream_summary().stream_name("on-off").send().await.is_err(),
        "a dry run makes nothing"
    );

    let done = report(&[&enable_args[..], &["--yes"]].concat());
    assert_eq!((&done["is_applied"], &done["streaming"], findings(&done)), (&json!(true), &json!("enabled"), vec![]));
    assert_eq!(done["configured"]["role_arn"], "arn:aws:iam::000000000000:role/on-off");
    assert_eq!((&done["stream"]["status"], &done["stream"]["retention_hours"]), (&json!("ACTIVE"), &json!(168)));
    assert_eq!((&done["role"]["is_trusted"], &done["role"]["denied"]), (&json!(true), &json!([])));
    assert_eq!(control("GET", &format!("pools/{pool}"), &Value::Null)["PushSync"], push, "push sync is as it was");
    // A second run has nothing to do.
    let again = report(&["stream", "enable", "--pool", &pool, "--yes"]);
    assert_eq!((changes(&again), &again["is_applied"]), (vec![], &json!(false)));

    let off = report(&["stream", "disable", "--pool", &pool, "--yes"]);
    assert_eq!((&off["streaming"], findings(&off)), (&json!("disabled"), vec!["streaming is off"]));
    assert_eq!(off["configured"]["stream"], "on-off", "stream and role stay");
    let on = report(&["stream", "enable", "--pool", &pool, "--yes"]);
    assert_eq!((changes(&on), &on["streaming"]), (vec!["set_stream"], &json!("enabled")));
    assert_eq!(control("GET", &format!("pools/{pool}"), &Value::Null)["PushSync"], push, "push sync is as it was");
}

/// Each way in which streaming turns itself off is found, and mended by one command.
#[tokio::test(flavor = "multi_thread")]
async fn what_turned_streaming_off_is_found_and_repaired() {
    let (pool, push) = make_pool(2);
    enable(&pool, "repaired");
    let turned_off = |reason: &str| {
        let role = "arn:aws:iam::000000000000:role/repaired";
        let streams = json!({ "StreamName": "repaired", "RoleArn": role, "StreamingStatus": "DISABLED", "DisabledReason": reason });
        control("PUT", &format!("pools/{pool}"), &json!({ "CognitoStreams": streams }));
    };
    let repaired = |parts: &[&str], expected: &[&str]| {
        let status = report(&["stream", "status", "--pool", &pool]);
        for part in parts {
            assert!(findings(&status).iter().any(|text| text.contains(part)), "{part:?} is not in {status}");
        }
        for finding in status["findings"].as_array().unwrap() {
            assert_eq!(finding["remedy"], format!("run `synclake stream repair --pool {pool}`"));
        }
        let output = aws(&["stream", "repair", "--pool", &pool, "--yes"]).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains(&format!("run `synclake bulk-publish start --pool {pool}`")));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(changes(&report), expected);
        assert_eq!((&report["streaming"], findings(&report)), (&json!("enabled"), vec![]), "{report}");
        assert_eq!(control("GET", &format!("pools/{pool}"), &Value::Null)["PushSync"], push, "push sync is as it was");
    };
    turned_off("the role failed for some minutes");
    repaired(&["Cognito Sync turned streaming off: the role failed for some minutes"], &["set_stream"]);

    iam("Action=DeleteRolePolicy&RoleName=repaired&PolicyName=synclake-us-east-1-repaired");
    turned_off("not authorized");
    repaired(&["does not allow kinesis:PutRecord, kinesis:PutRecords"], &["permit", "set_stream"]);

    iam(
        "Action=UpdateAssumeRolePolicy&RoleName=repaired&PolicyDocument=%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%7B%22Effect%22%3A%22Allow%22%2C%22Principal%22%3A%7B%22Service%22%3A%22ec2.amazonaws.com%22%7D%2C%22Action%22%3A%22sts%3AAssumeRole%22%7D%5D%7D",
    );
    repaired(&["does not let cognito-sync.amazonaws.com assume it"], &["set_trust", "set_stream"]);

    iam("Action=DeleteRolePolicy&RoleName=repaired&PolicyName=synclake-us-east-1-repaired");
    iam("Action=DeleteRole&RoleName=repaired");
    client().await.delete_stream().stream_name("repaired").send().await.unwrap();
    while client().await.describe_stream_summary().stream_name("repaired").send().await.is_ok() {
        tokio::task::yield_now().await;
    }
    turned_off("the stream was deleted");
    repaired(
        &["stream repaired does not exist", "role/repaired does not exist", "the stream was deleted"],
        &["create_stream", "create_role", "permit", "set_stream"],
    );
}

/// Errors of the service: those that pass are tried again, the others are one line with a remedy.
#[test]
fn errors_of_the_service_are_told_with_a_remedy() {
    let (pool, _) = make_pool(3);
    enable(&pool, "errors");
    let fail = |operation: &str, code: &str, times: i32| {
        let rule = json!({ "operation": operation, "code": code, "times": times, "pool": pool });
        control("POST", "fail", &rule);
    };
    let calm = |operation: &str| control("POST", "fail", &json!({ "operation": operation, "clear": true }));
    let status = ["stream", "status", "--pool", &pool];
    fail("GetIdentityPoolConfiguration", "TooManyRequestsException", 2);
    assert_eq!(report(&status)["streaming"], "enabled");
    fail("GetIdentityPoolConfiguration", "InternalErrorException", 1);
    assert_eq!(report(&status)["streaming"], "enabled");
    for (code, remedy) in [
        ("NotAuthorizedException", "allow cognito-sync:GetIdentityPoolConfiguration for these credentials"),
        ("ResourceNotFoundException", "check the name, the region and the account"),
        ("TooManyRequestsException", "wait a minute and run again"),
    ] {
        fail("GetIdentityPoolConfiguration", code, -1);
        let output = aws(&status).output().unwrap();
        refused(&output, 1, &["cognito-sync:GetIdentityPoolConfiguration on pool", code, remedy]);
        calm("GetIdentityPoolConfiguration");
    }
    // Somebody else changes push sync between read and write: their change stays.
    let theirs = json!({ "ApplicationArns": [], "RoleArn": "arn:aws:iam::000000000000:role/theirs" });
    let rule = json!({ "operation": "SetIdentityPoolConfiguration", "pool": pool, "before": { "PushSync": theirs } });
    control("POST", "fail", &rule);
    assert_eq!(report(&["stream", "disable", "--pool", &pool, "--yes"])["streaming"], "disabled");
    assert_eq!(control("GET", &format!("pools/{pool}"), &Value::Null)["PushSync"], theirs);
    fail("SetIdentityPoolConfiguration", "ConcurrentModificationException", -1);
    let output = aws(&["stream", "enable", "--pool", &pool, "--yes", "--quiet"]).output().unwrap();
    refused(&output, 1, &["SetIdentityPoolConfiguration", "somebody else changes the pool"]);
    calm("SetIdentityPoolConfiguration");
    let output = aws(&["stream", "status", "--pool", &pool, "--region", "eu-west-1"]).output().unwrap();
    refused(&output, 2, &["is in region us-east-1, and the region is set to eu-west-1"]);
    let output = aws(&["stream", "status", "--pool", "no-pool"]).output().unwrap();
    refused(&output, 2, &["is no id of an identity pool"]);
}

/// A bulk publish is started, followed, and compared with the lake.
#[tokio::test(flavor = "multi_thread")]
async fn a_bulk_publish_is_followed_and_reconciled() {
    let folder = tempfile::tempdir().unwrap();
    let lake = folder.path().join("lake");
    let lake = lake.to_str().unwrap();
    let (pool, _) = make_pool(4);
    let start = ["bulk-publish", "start", "--pool", &pool];
    refused(&aws(&start).output().unwrap(), 1, &["streaming of pool", "is off"]);
    enable(&pool, "published");
    let client = client().await;
    let event = |identity: u32, value: &str, count: u32| {
        json!({ "identityPoolId": pool, "identityId": format!("us-east-1:{identity:02x}"), "dataSetName": "d",
            "operation": "replace", "lastModifiedDate": 1_700_000_000_000_u64, "syncCount": count, "kinesisSyncRecords":
            [{ "key": "k", "value": value, "op": "replace", "syncCount": count, "lastModifiedDate": 1_700_000_000_000_u64 }] })
        .to_string()
    };
    let put = async |events: &[String]| {
        for event in events {
            let request = client.put_record().stream_name("published").partition_key("p");
            request.data(Blob::new(event.clone())).send().await.unwrap();
        }
        let source = "kinesis:published";
        ok(&mut aws(&["ingest", "--source", source, "--lake", lake, "--until-idle", "2s", "--care", "off"]));
    };
    // Three datasets before; the third is removed in Cognito, and the lake does not know it.
    put(&[event(1, "a", 1), event(2, "b", 1), event(3, "c", 1)]).await;

    let started = report(&start);
    assert_eq!((&started["status"], &started["received"]), (&json!("IN_PROGRESS"), &Value::Null));
    refused(&aws(&start).output().unwrap(), 1, &["DuplicateRequestException", "synclake bulk-publish wait --pool"]);
    let status = ["bulk-publish", "status", "--pool", &pool, "--lake", lake];
    assert_eq!(report(&status)["received"]["changes"], 0);

    let mut wait = aws(&["bulk-publish", "wait", "--pool", &pool, "--lake", lake, "--every", "100ms"]);
    let waiting = wait.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Two datasets are published again, one of them twice; a fourth is new, and one changed meanwhile.
    put(&[event(1, "a", 1), event(1, "a", 1), event(2, "b", 1), event(2, "b2", 2), event(4, "d", 1)]).await;
    let before = report(&status);
    assert_eq!((&before["status"], &before["received"]["is_complete"]), (&json!("IN_PROGRESS"), &json!(false)));
    control("PUT", &format!("pools/{pool}"), &json!({ "BulkPublish": { "status": "SUCCEEDED" } }));
    // The service is done; the lake has not been read so far.
    put(&[]).await;
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    let got = &done["received"];
    let counts = ["datasets", "new_datasets", "keys", "changes", "copies", "delivered", "live_datasets_absent"];
    assert_eq!(counts.map(|name| got[name].as_i64().unwrap()), [3, 1, 3, 4, 2, 5, 1], "{done}");
    assert_eq!((&done["status"], &got["is_complete"]), (&json!("SUCCEEDED"), &json!(true)));
    refused(&aws(&start).output().unwrap(), 1, &["AlreadyStreamedException", "one success in 24 hours"]);

    let failed = json!({ "status": "FAILED", "message": "some portion of the publish has failed" });
    control("PUT", &format!("pools/{pool}"), &json!({ "BulkPublish": failed }));
    let output = aws(&["bulk-publish", "wait", "--pool", &pool]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("some portion of the publish has failed; run `synclake bulk-publish start"), "{error}");
    control("PUT", &format!("pools/{pool}"), &json!({ "BulkPublish": { "status": "IN_PROGRESS" } }));
    let late = ["bulk-publish", "wait", "--pool", &pool, "--every", "50ms", "--max-duration", "100ms"];
    let output = aws(&late).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--max-duration is over"), "{}", text(&output.stderr));
    let never = make_pool(5).0;
    let output = aws(&["bulk-publish", "wait", "--pool", &never]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("has no bulk publish; run `synclake bulk-publish start"),
        "{}",
        text(&output.stderr)
    );
}

/// A fleet's worker prints what it counted as embedded metrics; a health check asks a running one.
#[test]
fn embedded_metrics_are_printed_to_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (events, _) = simulate(folder.path(), &["--events", "50"]);
    let source = format!("file:{}", events.display());
    let mut ingest = aws(&["ingest", "--source", &source, "--metrics", "emf", "--lake"]);
    let output = ingest.arg(folder.path().join("lake")).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let error = text(&output.stderr);
    let lines: Vec<Value> = error.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let lines: Vec<&Value> = lines.iter().filter(|line| line["_aws"].is_object()).collect();
    let sum = |name: &str| lines.iter().map(|line| line[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!(
        (sum("Records"), sum("Rows")),
        (summary["records"].as_u64().unwrap(), summary["rows"].as_u64().unwrap())
    );
    assert_eq!(lines[0]["Stream"], "file");
    let unanswered = aws(&["health", "127.0.0.1:1"]).output().unwrap();
    refused(&unanswered, 1, &["no ingest answers at http://127.0.0.1:1/healthz"]);
    assert!(Path::new(&events).exists());
}
