//! Tests that the published schema of the event and the decoder agree.

use serde_json::Value;

/// The schema names exactly the fields that the decoder reads, and its examples decode.
#[test]
fn the_event_schema_names_what_the_decoder_reads() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/sync_event.schema.json");
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let samples = schema["examples"].as_array().unwrap();
    assert!(samples.len() >= 3);
    for sample in samples {
        synclake::decode::decode(sample.to_string().as_bytes()).unwrap();
    }
    // A field of the schema never lands in `extra`; any other field does.
    let event = samples[0].as_object().unwrap();
    for (name, value) in event {
        assert!(schema["properties"].get(name).is_some(), "{name}");
        let mut renamed = event.clone();
        renamed.insert(format!("{name}x"), value.clone());
        let text = Value::from(renamed).to_string();
        let event = synclake::decode::decode(text.as_bytes()).unwrap();
        let extra = event.extra(&event.rows[0]).unwrap();
        assert!(extra.contains(&format!("\"{name}x\"")), "{extra}");
    }
    let required: Vec<_> = schema["required"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    for name in required {
        let mut without = event.clone();
        without.remove(name);
        assert!(synclake::decode::decode(Value::from(without).to_string().as_bytes()).is_err(), "{name}");
    }
}
