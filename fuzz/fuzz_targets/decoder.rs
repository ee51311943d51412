#![no_main]
use libfuzzer_sys::fuzz_target;
use synclake_fuzz::decode::{decode, decode_with, payload_url, redact_payload};

fuzz_target!(|data: &[u8]| {
    // The first byte tells where an envelope ends and what lies behind its URL begins.
    let (envelope, payload) = match data.split_first() {
        Some((at, rest)) => rest.split_at(rest.len() * usize::from(*at) / 255),
        None => (data, data),
    };
    for outcome in [decode(data), decode(envelope), decode_with(envelope, Some(payload))] {
        match outcome {
            // Whatever is accepted has rows, on a day that can be written.
            Ok(event) => {
                assert!(!event.rows.is_empty());
                for row in &event.rows {
                    assert!(row.event_date().to_string().len() == 10);
                    assert!(row.extra.as_deref().is_none_or(|e| serde_json::from_str::<serde_json::Value>(e).is_ok()));
                }
            }
            Err(reject) => assert!(!reject.detail.is_empty()),
        }
    }
    let _ = payload_url(data);
    // What was redacted once holds nothing more to redact.
    let once = redact_payload(data).into_owned();
    let secret = b"X-Amz-Signature=";
    assert!(!once.windows(secret.len() + 1).any(|w| w.starts_with(secret) && w[secret.len()].is_ascii_alphanumeric()));
});
