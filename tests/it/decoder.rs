//! Table tests of the decoder: inputs that it must survive, and their outcomes.

use synclake::decode::{Reason, decode};

/// Returns an event with fields replaced or added. Values are JSON text; `absent` removes a field.
fn event(changes: &[(&str, &str)]) -> String {
    let mut fields = vec![
        ("identityPoolId", r#""us-east-1:0a1b""#),
        ("identityId", r#""us-east-1:0c0d""#),
        ("dataSetName", r#""d""#),
        ("operation", r#""replace""#),
        ("kinesisSyncRecords", r#"[{"key":"k","value":"v","syncCount":1,"lastModifiedDate":5,"op":"replace"}]"#),
        ("lastModifiedDate", "5"),
        ("payloadType", r#""Inline""#),
        ("syncCount", "1"),
    ];
    for (name, value) in changes {
        fields.retain(|(n, _)| n != name);
        if *value != "absent" {
            fields.push((name, value));
        }
    }
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}

fn record(fields: &str) -> String {
    event(&[("kinesisSyncRecords", &format!("[{{{fields}}}]"))])
}

#[track_caller]
fn rejected(bytes: &[u8], reason: Reason) {
    match decode(bytes) {
        Err(reject) => assert_eq!(reject.reason, reason, "{}", reject.detail),
        Ok(event) => panic!("{} became {event:?}", String::from_utf8_lossy(bytes)),
    }
}

/// Every record that is no valid event is rejected with the right reason.
#[test]
fn what_is_quarantined() {
    let utf16: Vec<u8> = "\u{feff}{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let utf16_bare: Vec<u8> = "{\"a\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let long_id = format!("\"us-east-1:{}\"", "0".repeat(46));
    let cases: Vec<(Vec<u8>, Reason)> = vec![
        (b"".to_vec(), Reason::Empty),
        (b" \t\r\n ".to_vec(), Reason::Empty),
        ("\u{feff}".into(), Reason::Empty),
        (b"null".to_vec(), Reason::NotAnObject),
        (b"[]".to_vec(), Reason::NotAnObject),
        (b"\"x\"".to_vec(), Reason::NotAnObject),
        (b"1e400".to_vec(), Reason::NotAnObject),
        (b"NaN".to_vec(), Reason::NotJson),
        (event(&[])[..60].into(), Reason::NotJson),
        (b"{}{}".to_vec(), Reason::NotJson),
        (utf16, Reason::NotUtf8),
        (utf16_bare, Reason::NotJson),
        (b"{\"a\":\"\xff\"}".to_vec(), Reason::NotUtf8),
        (event(&[("dataSetName", r#""\ud800""#)]).into(), Reason::NotJson),
        ("[".repeat(100_000).into(), Reason::NotJson),
        (format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)).into(), Reason::NotAnObject),
        (
            event(&[("kinesisSyncRecords", &format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)))]).into(),
            Reason::InvalidField,
        ),
        (
            event(&[]).replace("{\"identityPoolId\"", "{\"identityPoolId\":\"us-east-1:0\",\"identityPoolId\"").into(),
            Reason::DuplicateField,
        ),
        (record(r#""key":"a","key":"b","op":"replace""#).into(), Reason::DuplicateField),
        (event(&[("syncCount", "1e400")]).into(), Reason::NotJson),
        (event(&[("syncCount", "NaN")]).into(), Reason::NotJson),
        (event(&[("syncCount", "9223372036854775808")]).into(), Reason::InvalidField),
        (event(&[("syncCount", "-1")]).into(), Reason::InvalidField),
        (event(&[("syncCount", "\"1\"")]).into(), Reason::InvalidField),
        (event(&[("lastModifiedDate", "-1")]).into(), Reason::InvalidField),
        (event(&[("lastModifiedDate", "1e19")]).into(), Reason::InvalidField),
        (event(&[("lastModifiedDate", "1.5")]).into(), Reason::InvalidField),
        (event(&[("lastModifiedDate", "\"2024\"")]).into(), Reason::InvalidField),
        (event(&[("lastModifiedDate", "253402300800000")]).into(), Reason::InvalidField),
        (event(&[("lastModifiedDate", "7258118400000")]).into(), Reason::InvalidField),
        (record(r#""key":"a","op":"replace","lastModifiedDate":-1"#).into(), Reason::InvalidField),
        (event(&[("identityId", "absent")]).into(), Reason::MissingField),
        (event(&[("identityId", "null")]).into(), Reason::MissingField),
        (event(&[("identityPoolId", "7")]).into(), Reason::InvalidField),
        (event(&[("dataSetName", "absent")]).into(), Reason::MissingField),
        (event(&[("dataSetName", "\"\"")]).into(), Reason::MissingField),
        (event(&[("datasetName", "\"other\"")]).into(), Reason::ConflictingDatasetName),
        (event(&[("payloadType", "\"S3Url\""), ("kinesisSyncRecords", "null")]).into(), Reason::ContradictoryPayload),
        (
            event(&[("payloadType", "\"S3Url\""), ("kinesisSyncRecordsURL", "\"\"")]).into(),
            Reason::ContradictoryPayload,
        ),
        (event(&[("kinesisSyncRecordsURL", "\"https://b/k\"")]).into(), Reason::ContradictoryPayload),
        (
            event(&[("kinesisSyncRecordsURL", "\"https://b/k\""), ("payloadType", "absent")]).into(),
            Reason::ContradictoryPayload,
        ),
        (
            event(&[
                ("kinesisSyncRecordsURL", "\"https://b/k\""),
                ("payloadType", "\"S3Url\""),
                ("kinesisSyncRecords", "null"),
            ])
            .into(),
            Reason::PayloadNotFetched,
        ),
        (
            event(&[
                ("kinesisSyncRecordsURL", "\"https://b/k\""),
                ("payloadType", "absent"),
                ("kinesisSyncRecords", "absent"),
            ])
            .into(),
            Reason::PayloadNotFetched,
        ),
        (event(&[("kinesisSyncRecords", "null")]).into(), Reason::ContradictoryPayload),
        (event(&[("kinesisSyncRecords", "null"), ("operation", "absent")]).into(), Reason::MissingField),
        (
            event(&[("kinesisSyncRecords", "null"), ("operation", "\"remove\""), ("syncCount", "absent")]).into(),
            Reason::MissingField,
        ),
        (record(r#""key":"","op":"replace""#).into(), Reason::InvalidField),
        (record(r#""key":null,"op":"replace""#).into(), Reason::MissingField),
        (event(&[("kinesisSyncRecords", "[null]")]).into(), Reason::InvalidField),
        (record(r#""key":"a","value":1,"op":"replace""#).into(), Reason::InvalidField),
        (event(&[("identityPoolId", r#""../../x""#)]).into(), Reason::InvalidId),
        (event(&[("identityPoolId", r#""a=b""#)]).into(), Reason::InvalidId),
        (event(&[("identityPoolId", r#""%2e%2e""#)]).into(), Reason::InvalidId),
        (event(&[("identityPoolId", r#""us-east-1:0/../1""#)]).into(), Reason::InvalidId),
        (event(&[("identityPoolId", &long_id)]).into(), Reason::InvalidId),
        (event(&[("identityId", r#""us-east-1:XYZ""#)]).into(), Reason::InvalidId),
        (vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0], Reason::NotUtf8),
    ];
    for (bytes, reason) in cases {
        rejected(&bytes, reason);
    }
}

#[track_caller]
fn value(json: &str) -> Option<String> {
    decode(json.as_bytes()).unwrap().rows[0].value.as_deref().map(str::to_owned)
}

fn extra(json: &str) -> Option<String> {
    let event = decode(json.as_bytes()).unwrap();
    event.extra(&event.rows[0])
}

/// Every valid event is accepted, and its values and unknown fields are kept byte for byte.
#[test]
fn what_is_accepted_byte_exact() {
    let with_bom = format!("\u{feff}{}", event(&[]));
    assert_eq!(decode(with_bom.as_bytes()).unwrap().rows.len(), 1);

    let unknown = event(&[("new", r#"{"a":[1, 2]}"#)]);
    assert_eq!(extra(&unknown).as_deref(), Some(r#"{"event":{"new":{"a":[1, 2]}}}"#));
    let unknown = record(r#""key":"k","op":"frobnicate","x":1e400"#);
    assert_eq!(extra(&unknown).as_deref(), Some(r#"{"record":{"x":1e400},"flags":["unknown_op"]}"#));
    let both =
        event(&[("new", "1"), ("kinesisSyncRecords", r#"[{"key":"k","x":2,"y":3}]"#), ("operation", r#""odd""#)]);
    let all = r#"{"record":{"x":2,"y":3},"event":{"new":1},"flags":["unknown_operation","unknown_op"]}"#;
    assert_eq!(extra(&both).as_deref(), Some(all));
    assert_eq!(extra(&event(&[])), None);

    for (records, operation, op) in [
        ("[]", "\"replace\"", "replace"),
        ("[]", "\"remove\"", "remove"),
        ("null", "\"remove\"", "remove"),
        ("null", "\"compact\"", "compact"),
    ] {
        let json = event(&[("kinesisSyncRecords", records), ("operation", operation)]);
        let event = decode(json.as_bytes()).unwrap();
        assert_eq!((event.rows.len(), event.rows[0].key.is_none(), event.rows[0].op.as_deref()), (1, true, Some(op)));
        assert_eq!((event.rows[0].sync_count, event.rows[0].last_modified_date), (1, 5_000));
    }

    assert_eq!(value(&record(r#""key":"k","op":"remove""#)), None);
    assert_eq!(value(&record(r#""key":"k","op":"replace","value":null"#)), None);
    assert_eq!(value(&record(r#""key":"k","op":"replace","value":"""#)), Some(String::new()));
    assert_eq!(value(&record(r#""key":"k","op":"replace","value":"a\u0000b""#)), Some("a\0b".to_owned()));
    let long = "x".repeat(1 << 20);
    assert_eq!(value(&record(&format!(r#""key":"k","op":"replace","value":"{long}""#))), Some(long));

    let names = ["..", "Profile", "profile", "a:b", "x.us-east-1:0c0d"];
    for name in names {
        let json = event(&[("dataSetName", "absent"), ("datasetName", &format!("\"{name}\""))]);
        assert_eq!(decode(json.as_bytes()).unwrap().dataset_name, name);
    }
    let both = event(&[("datasetName", "\"d\"")]);
    assert_eq!(decode(both.as_bytes()).unwrap().dataset_name, "d");

    let naughty = [
        "",
        " ",
        "undefined",
        "null",
        "NULL",
        "(null)",
        "true",
        "NaN",
        "1e400",
        "0x0",
        "'",
        "\"",
        "'; DROP TABLE x; --",
        "%s%n",
        "${jndi:ldap://x}",
        "{{7*7}}",
        "../../../etc/passwd",
        "<script>alert(1)</script>",
        "=1+1",
        "\u{202e}abc",
        "\u{feff}",
        "\u{200b}",
        "é",
        "e\u{301}",
        "Ω≈ç√∫",
        "田中さん",
        "👩‍👩‍👧‍👦",
        "ﷺ",
        "Z̮̞̠͙͔ͅḀ̗̞͈̻̗Ḷ͙͎̯̹̞͓G̻O̭̗̮",
        "\u{7f}\u{80}",
        "\r\n\t\u{b}",
        "\u{10ffff}",
        "a\\b",
        "\\u0041",
    ];
    for text in naughty {
        let json = serde_json::Value::from(text).to_string();
        assert_eq!(value(&record(&format!(r#""key":"k","op":"replace","value":{json}"#))).as_deref(), Some(text));
        if !text.is_empty() {
            let json = record(&format!(r#""key":{json},"op":"replace""#));
            assert_eq!(decode(json.as_bytes()).unwrap().rows[0].key.as_deref(), Some(text));
        }
    }
}

/// A bad device date never costs a row: the date becomes NULL and `extra` keeps the raw value.
#[test]
fn a_clients_clock_never_costs_a_row() {
    for (raw, micros, kept) in [
        ("5", Some(5_000), false),
        ("-86400000", Some(-86_400_000_000), false),
        ("9223372036854775807", None, true),
        ("1e19", None, true),
        ("1.5", None, true),
        ("\"2024\"", None, true),
        ("null", None, false),
    ] {
        let json = record(&format!(r#""key":"k","op":"replace","deviceLastModifiedDate":{raw}"#));
        let row = decode(json.as_bytes()).unwrap().rows.remove(0).device_last_modified_date;
        assert_eq!(row, micros, "{raw}");
        assert_eq!(
            extra(&json).is_some_and(|e| e.contains(&format!("\"deviceLastModifiedDate\":{raw}"))),
            kept,
            "{raw}"
        );
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// Damage at any place of an event gives an event or a reason, never a panic.
    #[test]
    fn damage_never_panics(at in 0..400usize, with in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..6), cut in 0..6usize) {
        let mut bytes = record(r#""key":"k","value":"é\u0041","syncCount":1,"deviceLastModifiedDate":-5,"op":"replace","x":{}"#).into_bytes();
        let at = at.min(bytes.len());
        let end = (at + cut).min(bytes.len());
        bytes.splice(at..end, with);
        match decode(&bytes) {
            Ok(event) => assert!(!event.rows.is_empty()),
            Err(reject) => assert!(!reject.detail.is_empty()),
        }
    }

    /// Field order and JSON escapes do not change the decoded event.
    #[test]
    fn order_and_escapes_change_nothing(seed in 0..5_040usize, escape in proptest::prelude::any::<bool>()) {
        let mut fields = [
            r#""identityPoolId":"us-east-1:0a""#.to_owned(), r#""identityId":"us-east-1:0b""#.to_owned(),
            r#""dataSetName":"d""#.to_owned(), r#""operation":"replace""#.to_owned(), r#""lastModifiedDate":7"#.to_owned(),
            r#""syncCount":3"#.to_owned(), r#""kinesisSyncRecords":[{"op":"replace","value":"v","key":"k"}]"#.to_owned(),
        ];
        let plain = format!("{{{}}}", fields.join(","));
        let mut left = seed;
        for n in (1..fields.len()).rev() {
            fields.swap(n, left % (n + 1));
            left /= n + 1;
        }
        let mut shuffled = format!("{{ {} }}", fields.join(" ,\n"));
        if escape {
            shuffled = shuffled.replace("replace", r"\u0072eplace").replace(r#""key""#, r#""\u006bey""#);
        }
        let (a, b) = (decode(plain.as_bytes()).unwrap(), decode(shuffled.as_bytes()).unwrap());
        assert_eq!(a, b);
    }
}
