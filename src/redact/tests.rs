use super::*;

#[track_caller]
fn both(text: &str, expected: &str, clean: impl Fn(&str) -> String) {
    assert_eq!(clean(text), expected, "of {text}");
    assert_eq!(clean(expected), expected, "a second time");
}

#[test]
fn no_url_of_ours_keeps_its_query() {
    for (text, clean) in [
        (r#"{"u":"https://b.s3/k?X-Amz-Signature=abc&x=1","n":1}"#, r#"{"u":"https://b.s3/k?REDACTED","n":1}"#),
        (r"https:\/\/b\/k?X-Amz-Credential=AK", r"https:\/\/b\/k?REDACTED"),
        (r"https:\u002f\u002fb\u002fk?token=SECRET", r"https:\u002f\u002fb\u002fk?REDACTED"),
        (r"https:\b\k?token=SECRET rest", r"https:\b\k?REDACTED rest"),
        ("https:b/k?token=SECRET", "https:b/k?REDACTED"),
        ("HTTPS:/b/k?token=SECRET", "HTTPS:/b/k?REDACTED"),
        ("https:////b/k?token=SECRET", "https:////b/k?REDACTED"),
        ("see https://b/k#SECRET now", "see https://b/k#REDACTED now"),
        ("see https://b/k;token=SECRET now", "see https://b/k;REDACTED now"),
        ("cannot reach https://b/k; try again", "cannot reach https://b/k; try again"),
        ("https://user:SECRET@host/k: 403", "https://REDACTED@host/k: 403"),
        ("https://user;x:SECRET@host;SECRET", "https://REDACTED@host;REDACTED"),
        ("https://u:p@SECRET@host/k?SECRET", "https://REDACTED@host/k?REDACTED"),
        ("(see https://host/k?SECRET): 403", "(see https://host/k?REDACTED): 403"),
        (r"https://user:SE\/CRET@host/k", r"https://user:SE\/CRET@host/k"), // a slash ends the authority
        ("postgres://user:SECRET@host/db", "postgres://REDACTED@host/db"),
        ("https://proxy/https://user:SECRET@host/", "https://proxy/https://REDACTED@host/"),
        ("https://b/k%3Ftoken=SECRET", "https://b/k?REDACTED"),
        ("https://b/k?a=\"SECRET", "https://b/k?REDACTED\"SECRET"), // a quote ends a URL of ours
        (r"half of one: X-Amz-Signature\u003dsecret\u0026", r"half of one: REDACTED\u0026"),
        ("x-amz-security-token: SECRET/SE=\nhost: b", "x-amz-security-token: REDACTED\nhost: b"),
        (
            "{\"authorization\": \"AWS4-HMAC-SHA256 Credential=A/b, Signature=SECRET\"}",
            "{\"authorization\": \"REDACTED\"}",
        ),
        (r#"X-Amz-Signature="SECRET" n"#, r#"X-Amz-Signature="REDACTED" n"#),
        (r#"session_token: Some("SECRET"), n: 1"#, r#"session_token: Some("REDACTED"), n: 1"#),
        ("<SignatureProvided>SECRET</SignatureProvided>", "<SignatureProvided>REDACTED</SignatureProvided>"),
        ("plain? yes", "plain? yes"),
        ("https://host/path", "https://host/path"),
        ("is it https://host/path?", "is it https://host/path?"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        (
            "12:30: SignatureDoesNotMatch: the signature we calculated",
            "12:30: SignatureDoesNotMatch: the signature we calculated",
        ),
    ] {
        both(text, clean, redact);
    }
}

#[test]
fn payloads_keep_all_but_the_secret() {
    let payload = |text: &str| String::from_utf8(redact_payload(text.as_bytes()).into_owned()).unwrap();
    for (text, clean) in [
        (
            r#"{"kinesisSyncRecordsURL" : "https://b/k?a=SECRET"}"#,
            r#"{"kinesisSyncRecordsURL" : "https://b/k?REDACTED"}"#,
        ),
        (
            r#"{"kinesisSyncRecordsURL":"https:\/\/b\/k\u003fx\u0058=SECRET","n":1}"#,
            r#"{"kinesisSyncRecordsURL":"https:\/\/b\/k?REDACTED","n":1}"#,
        ),
        (
            r#"{"kinesisSyncRecordsURL":"https:\\b\k?a=\"SE\nCRET\\","n":1}"#,
            // Backslashes before the closing quote stay, so that the quote still closes the string.
            r#"{"kinesisSyncRecordsURL":"https:\\b\k?REDACTED\\","n":1}"#,
        ),
        (
            r#"{"kinesisSyncRecordsURL":"https://b/X-Amz-Signature=SECRET;x","n":1}"#,
            r#"{"kinesisSyncRecordsURL":"https://b/REDACTED","n":1}"#,
        ),
        (
            r#"{"kinesisSyncRecordsURL":"https://u:aX-Amz-Signature=SECRET@b;x","n":1}"#,
            r#"{"kinesisSyncRecordsURL":"https://REDACTED","n":1}"#,
        ),
        (
            r#"{"kinesisSyncRecordsURL":"https://u:SECRET@aX-Amz-Signature=SECRET;x","n":1}"#,
            r#"{"kinesisSyncRecordsURL":"https://REDACTED","n":1}"#,
        ),
        (
            r#"{"kinesisSyncRecordsURL":"https://u:SECRET@b/k","n":1}"#,
            r#"{"kinesisSyncRecordsURL":"https://REDACTED@b/k","n":1}"#,
        ),
        (r#"{"kinesisSyncRecordsURL":"https://b/k;SECRET#S"}"#, r#"{"kinesisSyncRecordsURL":"https://b/k;REDACTED"}"#),
        (r#"{"kinesisSyncRecordsURL":["https://b/k?S"],"n":1}"#, r#"{"kinesisSyncRecordsURL":"REDACTED","n":1}"#),
        (r#"{"kinesisSyncRecordsURL":null,"n":"a?b"}"#, r#"{"kinesisSyncRecordsURL":null,"n":"a?b"}"#),
        (
            r#"{"Data":"{\"kinesisSyncRecordsURL\":\"https://b/k?SECRET\",\"n\":1}"}"#,
            r#"{"Data":"{\"kinesisSyncRecordsURL\":\"https://b/k?REDACTED\",\"n\":1}"}"#,
        ),
        (
            r#"{"Data":"{\\\"u\\\":\\\"k?X-Amz-Signature\\u003dSECRET\\\"}"}"#,
            r#"{"Data":"{\\\"u\\\":\\\"k?REDACTED\\\"}"}"#,
        ),
        (
            r#"{"\u006binesisSyncRecordsURL":"https://b/k?a=SECRET"}"#,
            r#"{"\u006binesisSyncRecordsURL":"https://b/k?REDACTED"}"#,
        ),
        (r#"{"u":"https://b/k?X-Amz-\u0053ignature=SECRET"}"#, r#"{"u":"https://b/k?REDACTED"}"#),
        (r#"{"u":"k?X-Amz-Security-Token=AB\/SECRET&x=1"}"#, r#"{"u":"k?REDACTED&x=1"}"#),
        (r#"{"u":"k?X-Amz-Security-Token=AB\u002fSECRET&x=1"}"#, r#"{"u":"k?REDACTED&x=1"}"#),
        (r#"{"u":"k?X%2DAmz\u00252dSigna\tture=SECRET&x=1"}"#, r#"{"u":"k?REDACTED&x=1"}"#),
        (r#"{"u":"k?x=1;X-Amz-Signature=SECRET"}"#, r#"{"u":"k?x=1;REDACTED"}"#),
        (r#"{"X-Amz-Signature":"SECRET","n":1}"#, r#"{"X-Amz-Signature":"REDACTED","n":1}"#),
        (r#"{"X-Amz-Expires" : 60 ,"n":1}"#, r#"{"X-Amz-Expires" : "REDACTED" ,"n":1}"#),
        (r#"{"x-amz-security-token":["SE]C","R"],"n":1}"#, r#"{"x-amz-security-token":"REDACTED","n":1}"#),
        (r#"{"v":"{\"X-Amz-Date\":{\"a\":[1]},\"n\":1}"}"#, r#"{"v":"{\"X-Amz-Date\":\"REDACTED\",\"n\":1}"}"#),
        (r#"{"v":"{\"X-Amz-Date\":[1,\"a\"","n":1}"#, r#"{"v":"{\"X-Amz-Date\":\"REDACTED\"","n":1}"#),
        (r#"{"v":"X-Amz-Date: [a","n":[]}"#, r#"{"v":"X-Amz-Date: REDACTED","n":[]}"#),
        (r#"{"u":"k?X-Amz-Date=","n":1}"#, r#"{"u":"k?REDACTED","n":1}"#),
        (r#"{"v":"X-Amz-Date='a","n":[]}"#, r#"{"v":"X-Amz-Date='REDACTED","n":[]}"#),
        (r#"{"v":"X-Amz-Security-Token: SECRET"}"#, r#"{"v":"X-Amz-Security-Token: REDACTED"}"#),
        (r#"{"AWSAccessKeyId":"A","Signature":"SECRET"}"#, r#"{"AWSAccessKeyId":"REDACTED","Signature":"REDACTED"}"#),
        (r#"{"v":"{\"signature\":\"of a receipt\"}"}"#, r#"{"v":"{\"signature\":\"of a receipt\"}"}"#),
        (r#"{"value":"https://u:p@b/k?page=1#top;x"}"#, r#"{"value":"https://u:p@b/k?page=1#top;x"}"#),
        (r#"{"value":"\u0041 and \u00e4 stay"}"#, r#"{"value":"\u0041 and \u00e4 stay"}"#),
        (r#"torn https://b/k?X-Amz-Signature=SECRET&b=1"#, r#"torn https://b/k?REDACTED&b=1"#),
        (r#"{"kinesisSyncRecordsURL":"https://b/k?SECR"#, r#"{"kinesisSyncRecordsURL":"https://b/k?REDACTED"#),
        ("kinesisSyncRecordsURL: https://b/k?a=SECRET", "kinesisSyncRecordsURL: https://b/k?REDACTED"),
    ] {
        both(text, clean, payload);
    }
    let hidden = r#"{"kinesisSyncRecordsURL":"https://b/k?a=SECRET"}"#;
    for unit in [u16::to_le_bytes, u16::to_be_bytes] {
        let wide: Vec<u8> = hidden.encode_utf16().flat_map(unit).collect();
        assert_eq!(&*redact_payload(&wide), br#"{"kinesisSyncRecordsURL":"https://b/k?REDACTED"}"#);
        let mixed = [&b"x".repeat(1_000)[..], &wide].concat();
        let clean = redact_payload(&mixed).into_owned();
        assert!(!clean.windows(5).any(|w| w == b"S\0E\0C"), "not mostly UTF-16");
    }
}

#[test]
fn of_a_url_only_the_place_is_shown() {
    for (url, shown) in [
        ("https://u:SECRET@b:444/k?SECRET#S", "https://b:444/k?REDACTED"),
        ("ht\ntps:\\\\b\\k?SECRET", "https://b/k?REDACTED"),
        ("https://b/k;v=SECRET", "https://b/k;REDACTED"),
        ("https://b/k%3FX-Amz-Signature=SECRET", "https://b/k?REDACTED"),
        ("nonsense?X-Amz-Signature=SECRET", "a text of 31 bytes that is no URL"),
        ("data:text/plain,SECRET", "data:REDACTED"),
        ("https://b/k", "https://b/k"),
    ] {
        assert_eq!(redact_url(url), shown, "{url:?}");
    }
}

/// Texts that `Url::parse` accepts as URLs, written in JSON in any way, in any field that is searched.
#[test]
fn however_it_is_written() {
    let escape = |text: &str, how: usize| -> String {
        text.chars()
            .enumerate()
            .map(|(n, c)| match (c, (n + how) % (how + 1)) {
                ('"', _) => "\\\"".to_owned(),
                ('\\', _) => "\\\\".to_owned(),
                ('/', 0) => "\\/".to_owned(),
                (c, 0) => format!("\\u{:04X}", c as u32),
                (c, _) => c.to_string(),
            })
            .collect()
    };
    let urls = [
        "https://b.s3.amazonaws.com/k?X-Amz-Signature=SECRET",
        "https://b.s3.amazonaws.com/k?X%2dAmz%2DSignature=SECRET&X-Amz-Security-Token=SECRET/SECRET+a=",
        "https:\\\\b.s3.amazonaws.com\\k?AWSAccessKeyId=SECRET&Signature=SECRET%3D&Expires=1",
        "https://user:SECRET@b.s3.amazonaws.com/k",
        " https://b.s3.amazonaws.com/k?X-Amz-\tSign\nature=SECRET",
        "https://b.s3.amazonaws.com/k#SECRET",
        "https://b.s3.amazonaws.com/k;SECRET?SECRET",
        "https:b.s3.amazonaws.com/k?a=\"SECRET",
    ];
    for url in urls {
        assert!(Url::parse(url).is_ok(), "{url:?}");
        assert!(!redact_url(url).contains("SECRET"), "{url:?}");
        for how in 0..12 {
            let json = format!(r#"{{"kinesisSyncRecordsURL":"{}","n":"kept"}}"#, escape(url, how));
            let json = json.replace('\t', "\\t").replace('\n', "\\n");
            let outer = format!(r#"{{"Data":{}}}"#, serde_json::Value::from(json.as_str()));
            for text in [json, outer] {
                let clean = redact_payload(text.as_bytes()).into_owned();
                let parsed: serde_json::Value = serde_json::from_slice(&clean).unwrap();
                let shown = parsed.to_string();
                let plain = shown.replace("\\\\", "\\").replace("\\u0053", "S");
                assert!(!plain.contains("SECRET") && plain.contains("kept"), "{how} {url:?} became {plain}");
                assert_eq!(redact_payload(&clean), clean, "a second time");
            }
        }
    }
}

thread_local! {
    /// Characters that all functions together looked at.
    pub(super) static STEPS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

#[test]
fn time_grows_with_the_text_alone() {
    let n = 1 << 18;
    for text in [
        "kinesisSyncRecordsURL=".repeat(n / 22),
        "\"kinesisSyncRecordsURL\":".repeat(n / 24),
        "a://".repeat(n / 4),
        "http:".repeat(n / 5),
        format!("https://{}@", ";".repeat(n)),
        "X-Amz-".repeat(n / 6),
        "x-amz-security-token:[".repeat(n / 22),
        "%25".repeat(n / 3),
        "\\".repeat(n),
        "Signature \n".repeat(n / 11),
        "{\"key\":\"k\",\"value\":\"v\"},".repeat(n / 24),
    ] {
        for clean in [|text: &str| drop(redact(text)), |text: &str| drop(redact_payload(text.as_bytes()))] {
            STEPS.set(0);
            clean(&text);
            let steps = STEPS.get() / text.len();
            assert!(steps < 200, "{steps} steps a byte of {}…", &text[..20]);
        }
    }
}
