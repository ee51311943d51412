//! The column `extra`: fields that the contract does not know, and anomalies of a row.

use std::borrow::Cow;

use super::event::Extra;
use crate::redact::redact_payload;

/// Anomalies of an accepted row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags(u8);

impl Flags {
    const NAMES: [&str; 4] = ["unknown_operation", "unknown_payload_type", "device_date_out_of_range", "unknown_op"];
    pub(super) const UNKNOWN_OPERATION: u8 = 1;
    pub(super) const UNKNOWN_PAYLOAD_TYPE: u8 = 2;
    pub(super) const DEVICE_DATE_OUT_OF_RANGE: u8 = 4;
    pub(super) const UNKNOWN_OP: u8 = 8;

    pub(super) fn with(self, flag: u8, is_set: bool) -> Self {
        Self(self.0 | if is_set { flag } else { 0 })
    }
}

/// Writes the column `extra`: `{"record":{…},"event":{…},"flags":[…]}`, only with the parts that are not empty. Returns
/// `false` if all parts are empty.
pub fn write_extra(out: &mut String, record: Option<&str>, event: Option<&str>, flags: Flags) -> bool {
    let mut separator = "{";
    for (name, members) in [("record", record), ("event", event)] {
        if let Some(members) = members {
            out.extend([separator, "\"", name, "\":{", members, "}"]);
            separator = ",";
        }
    }
    let mut before = "\"flags\":[\"";
    for (bit, name) in Flags::NAMES.iter().enumerate() {
        if flags.0 & (1 << bit) != 0 {
            out.extend([separator, before, name, "\""]);
            (separator, before) = ("", ",\"");
        }
    }
    if flags != Flags::default() {
        out.push(']');
    }
    let is_any = separator != "{";
    if is_any {
        out.push('}');
    }
    is_any
}

/// Returns unknown fields as members of a JSON object, redacted. `odd_device` is a client date that cannot be
/// represented.
pub(super) fn members(fields: &Extra<'_>, odd_device: Option<&str>) -> Option<String> {
    if fields.is_empty() && odd_device.is_none() {
        return None;
    }
    let mut text = String::from("{");
    let fields = fields.iter().map(|(name, raw)| (&**name, raw.get()));
    for (name, raw) in fields.chain(odd_device.map(|raw| ("deviceLastModifiedDate", raw))) {
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&serde_json::Value::from(name).to_string());
        text.push(':');
        text.push_str(raw);
    }
    text.push('}');
    if let Cow::Owned(clean) = redact_payload(text.as_bytes()) {
        text = String::from_utf8_lossy(&clean).into_owned();
    }
    text.pop();
    text.remove(0);
    Some(text)
}
