//! The policies that `iam-policy` prints, behind a proxy that refuses every call which they do not allow: each is enough,
//! and each of its actions is used.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{ok, query, refused, setting, synclake, text};
use crate::kinesis::{client, create_stream, make_bucket};

/// Sends a request to the control interface of the proxy.
fn control(method: &str, path: &str, body: &str) -> String {
    let url = format!("{}/_policy{path}", setting("SYNCLAKE_TEST_POLICY_PROXY"));
    let output = Command::new("curl").args(["-sSf", "-X", method, "--data", body, &url]).output().unwrap();
    assert!(output.status.success(), "{method} {url}: {}", text(&output.stderr));
    text(&output.stdout)
}

fn behind(command: &mut Command) -> &mut Command {
    command.env("AWS_ENDPOINT_URL", setting("SYNCLAKE_TEST_POLICY_PROXY"))
}

fn policy(args: &[&str]) -> String {
    let resources =
        ["--source", "kinesis:allowed", "--lease-table", "dynamodb:allowed-leases", "--region", "us-east-1"];
    ok(synclake().arg("iam-policy").args(args).args(resources).args(["--account", "000000000000"]))
}

/// Makes a policy the one in force, runs commands, and asserts that none of their calls was refused and that each action
/// of the policy was used.
fn enough_and_minimal(policy: &str, run: impl FnOnce()) {
    control("PUT", "", policy);
    control("DELETE", "/log", "");
    run();
    let decisions: Vec<Value> = serde_json::from_str(&control("GET", "/log", "")).unwrap();
    let refused: Vec<&Value> = decisions.iter().filter(|decision| decision["allowed"] == false).collect();
    assert_eq!(refused, Vec::<&Value>::new(), "{policy}");
    let used: BTreeSet<&str> = decisions.iter().map(|decision| decision["action"].as_str().unwrap()).collect();
    let document: Value = serde_json::from_str(policy).unwrap();
    let statements = document["Statement"].as_array().unwrap();
    let allowed = statements.iter().flat_map(|statement| statement["Action"].as_array().unwrap());
    assert_eq!(
        used,
        allowed.map(|action| action.as_str().unwrap()).collect(),
        "an action that no call needs is allowed"
    );
    control("PUT", "", r#"{"Version": "2012-10-17", "Statement": []}"#);
}

async fn make_again(client: &aws_sdk_kinesis::Client, stream: &str) {
    client.delete_stream().stream_name(stream).send().await.unwrap();
    while client.describe_stream_summary().stream_name(stream).send().await.is_ok() {
        tokio::task::yield_now().await;
    }
    create_stream(client, stream, 2).await;
}

/// Counts the leases of a table up, like a worker that renews them, until the worker behind the proxy has read one.
async fn disturb(table: &str) {
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::latest())
        .endpoint_url(setting("SYNCLAKE_TEST_S3"))
        .region(aws_sdk_dynamodb::config::Region::new("us-east-1"))
        .credentials_provider(aws_sdk_dynamodb::config::Credentials::new("test", "test", None, None, "test"));
    let client = aws_sdk_dynamodb::Client::from_conf(config.build());
    while !control("GET", "/log", "").contains("dynamodb:GetItem") {
        let leases = client.scan().table_name(table).send().await.unwrap();
        for lease in leases.items() {
            let request = client.update_item().table_name(table).key("leaseKey", lease["leaseKey"].clone());
            let request = request.update_expression("ADD leaseCounter :one");
            let one = aws_sdk_dynamodb::types::AttributeValue::N("1".to_owned());
            request.expression_attribute_values(":one", one).send().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_policy_is_enough_and_each_of_its_actions_is_used() {
    let (bucket, lake, out) = ("allowed-bucket", "s3://allowed-bucket/deep/lake", "s3://allowed-bucket/extracts");
    make_bucket(bucket).await;
    let client = client().await;
    create_stream(&client, "allowed", 2).await;
    let publish = |seed: &str| {
        ok(synclake()
            .args(["simulate", "--events", "200", "--seed", seed, "--to", "kinesis:allowed"])
            .args(["--endpoint-url", &setting("SYNCLAKE_TEST_KINESIS")]));
    };
    let care = |lake: &str| {
        // An upload and files that are old enough to leave.
        let url = format!("{}/allowed-bucket/deep/lake/gaps/a.parquet?uploads=", setting("SYNCLAKE_TEST_S3"));
        ok(Command::new("curl").args(["-sSf", "-X", "POST", &url]));
        ok(behind(synclake().args(["care", "--lake", lake]).env("FAILPOINTS", "store/clock=return(691200)")));
    };
    let ingest = |lake: &str| {
        let source = ["--source", "kinesis:allowed", "--lease-table", "dynamodb:allowed-leases", "--until-idle", "2s"];
        ok(behind(synclake().args(["ingest", "--lake", lake, "--lease-failover", "2s"]).args(source)));
    };
    let role = |role: &str| policy(&["--role", role, "--lake", lake, "--out", out]);
    let runtime = tokio::runtime::Handle::current();
    enough_and_minimal(&role("ingest"), || {
        publish("1");
        ingest(lake);
        // A stream that is made again: the leases of the earlier one are deleted.
        tokio::task::block_in_place(|| runtime.block_on(make_again(&client, "allowed")));
        publish("2");
        ingest(lake);
        // A lease that somebody else renews: the worker reads it anew.
        let mut running = synclake();
        running.args(["ingest", "--lake", lake, "--source", "kinesis:allowed", "--care", "off"]);
        running.args(["--lease-table", "dynamodb:allowed-leases", "--lease-failover", "2s"]);
        let mut running = behind(&mut running).spawn().unwrap();
        tokio::task::block_in_place(|| runtime.block_on(disturb("allowed-leases")));
        assert!(Command::new("kill").args(["-TERM", &running.id().to_string()]).status().unwrap().success());
        assert!(running.wait().unwrap().success());
        care(lake);
    });
    enough_and_minimal(&role("query"), || {
        let sql = "select count(*) from current_state";
        ok(behind(query().args(["--lake", lake, "-c", sql])));
        ok(behind(synclake().args(["status", "--lake", lake])));
        ok(behind(synclake().args(["verify", "--deep", "--lake", lake])));
    });
    enough_and_minimal(&role("extract"), || {
        for day in ["2026-01-03", "2026-01-04", "2026-01-04"] {
            ok(behind(synclake().args(["extract", "--lake", lake, "--date", day, "--out", out])));
        }
        ok(behind(synclake().args(["deliver", "--lake", lake, "--consumer", "c", "--out", out])));
    });
    enough_and_minimal(&role("care"), || care(lake));
    let catalogued = "s3://allowed-bucket/catalogued";
    enough_and_minimal(&policy(&["--role", "catalog", "--lake", catalogued, "--database", "allowed"]), || {
        crate::catalog::change_all(catalogued, "allowed", &setting("SYNCLAKE_TEST_POLICY_PROXY"));
    });

    // The proxy does refuse: without one action, its command says what to allow.
    let mut document: Value = serde_json::from_str(&role("query")).unwrap();
    document["Statement"].as_array_mut().unwrap().retain(|statement| statement["Action"] != json!(["s3:GetObject"]));
    control("PUT", "", &document.to_string());
    let output = behind(synclake().args(["status", "--lake", lake])).output().unwrap();
    refused(&output, 1, &["s3:GetObject"]);
    let output = synclake().args(["iam-policy", "--role", "ingest", "--lake", lake, "--source", "kinesis:s"]).output();
    refused(&output.unwrap(), 2, &["--account is missing"]);
    for lake in ["s3://*/x", "s3://b/x*y", "s3://b/${aws:username}"] {
        let output = synclake().args(["iam-policy", "--role", "query", "--lake", lake]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{lake}");
    }
    refused(
        &synclake().args(["iam-policy", "--role", "query", "--lake", "lake"]).output().unwrap(),
        2,
        &["is a folder"],
    );
}
