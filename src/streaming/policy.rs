//! The two documents of the role by which Cognito Sync writes into a stream: who may assume it, and what it allows.

use serde_json::{Value, json};

/// Service that assumes the role.
const SERVICE: &str = "cognito-sync.amazonaws.com";
/// Calls by which the service writes.
pub(super) const WRITES: [&str; 2] = ["kinesis:PutRecord", "kinesis:PutRecords"];

/// Returns the trust policy of a new role.
pub(super) fn trust() -> Value {
    json!({ "Version": "2012-10-17", "Statement": [statement()] })
}

fn statement() -> Value {
    json!({ "Effect": "Allow", "Principal": { "Service": SERVICE }, "Action": "sts:AssumeRole" })
}

/// Returns a trust policy with one statement more, which lets the service assume the role. A text that is no policy is
/// replaced.
pub(super) fn with_trust(document: &Value) -> Value {
    let mut document = document.clone();
    let mut statements = match document.get_mut("Statement").map(Value::take) {
        Some(Value::Array(statements)) => statements,
        Some(statement @ Value::Object(_)) => vec![statement],
        _ => return trust(),
    };
    statements.push(statement());
    document["Statement"] = statements.into();
    document
}

/// Returns whether a trust policy lets the service assume the role. Conditions are not evaluated: a denial with a
/// condition is meant for others.
pub(super) fn is_trusted(document: &Value) -> bool {
    let is_allowed = statements(document).any(|s| s["Effect"] == "Allow" && is_about_service(s));
    is_allowed && !denies(document)
}

/// Returns whether a trust policy denies the role to the service. Nobody but its author may take that out.
pub(super) fn denies(document: &Value) -> bool {
    statements(document).any(|s| s["Effect"] == "Deny" && s["Condition"].is_null() && is_about_service(s))
}

fn statements(document: &Value) -> impl Iterator<Item = &Value> {
    let statements = &document["Statement"];
    statements.as_array().map(Vec::as_slice).unwrap_or(std::slice::from_ref(statements)).iter()
}

fn is_about_service(statement: &Value) -> bool {
    let principal = &statement["Principal"];
    let is_principal =
        principal == "*" || texts(&principal["Service"]).any(|service| service == SERVICE || service == "*");
    let is_action = |action: &str| ["sts:assumerole", "sts:*", "*"].contains(&action.to_ascii_lowercase().as_str());
    is_principal && texts(&statement["Action"]).any(is_action)
}

/// Returns the texts of a value that is one text or a list.
fn texts(value: &Value) -> impl Iterator<Item = &str> {
    let list = value.as_array().map(Vec::as_slice).unwrap_or(std::slice::from_ref(value));
    list.iter().filter_map(Value::as_str)
}

/// Returns the permissions of the role: writes into one stream, encrypted with a key if it has one of the user's.
pub(super) fn permissions(stream_arn: &str, key_arn: Option<&str>) -> Value {
    let mut statements = vec![json!({ "Effect": "Allow", "Action": WRITES, "Resource": stream_arn })];
    statements
        .extend(key_arn.map(|key| json!({ "Effect": "Allow", "Action": "kms:GenerateDataKey", "Resource": key })));
    json!({ "Version": "2012-10-17", "Statement": statements })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_is_recognized_and_added() {
        assert!(is_trusted(&trust()));
        let lists = json!({ "Statement": [{ "Effect": "Allow", "Action": ["sts:TagSession", "sts:AssumeRole"],
            "Principal": { "Service": ["ec2.amazonaws.com", SERVICE] } }] });
        assert!(is_trusted(&lists));
        assert_eq!(with_trust(&json!(null)), trust());
        let other = json!({ "Version": "2012-10-17", "Id": "mine", "Statement":
            { "Effect": "Allow", "Principal": { "Service": "ec2.amazonaws.com" }, "Action": "sts:AssumeRole" } });
        assert!(!is_trusted(&other));
        let mended = with_trust(&other);
        assert!(is_trusted(&mended));
        assert_eq!((&mended["Id"], &mended["Statement"][0]), (&json!("mine"), &other["Statement"]));
        let mut denied = trust();
        denied["Statement"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "Effect": "Deny", "Principal": "*", "Action": "sts:*" }));
        assert!(denies(&denied) && !is_trusted(&denied) && !is_trusted(&with_trust(&denied)));
        denied["Statement"][1]["Condition"] = json!({ "StringNotEquals": { "aws:SourceAccount": "123456789012" } });
        assert!(!denies(&denied) && is_trusted(&denied));
        assert!(!is_trusted(&json!({ "Statement": [{ "Effect": "Allow", "Principal": { "Service": SERVICE },
            "Action": "kinesis:PutRecord" }] })));
    }
}
