//! The wire form of an event: what the JSON says, before the checks of its meaning.
//!
//! Field names are matched without allocating. Fields outside the contract are kept as their JSON text. Duplicates of a
//! contract field are rejected, because nobody can know which of the two the sender meant.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use serde_json::value::RawValue;

/// Fields outside the contract: name and JSON text.
pub(crate) type Extra<'a> = Vec<(Cow<'a, str>, &'a RawValue)>;

/// Prefix of our errors among those of serde_json, for a duplicate field.
pub(crate) const DUPLICATE: &str = "duplicate field";
/// Prefix for a value of the wrong kind.
pub(crate) const INVALID: &str = "invalid field";
/// Prefix for a record without a key.
pub(crate) const MISSING: &str = "missing field";
/// Prefix for more records than [`RECORDS_MAX`].
pub(crate) const TOO_MANY: &str = "too many records";

/// Most records of one event: a hundred times what the service allows in a dataset. A record is larger in memory than
/// on the wire, so ten megabytes of the smallest records must not become hundreds.
pub(crate) const RECORDS_MAX: usize = 100_000;

/// An event as on the wire.
#[derive(Debug, Default)]
pub(crate) struct WireEvent<'a> {
    /// `identityPoolId`.
    pub identity_pool_id: Option<Cow<'a, str>>,
    /// `identityId`.
    pub identity_id: Option<Cow<'a, str>>,
    /// `dataSetName`, the spelling of the documentation.
    pub data_set_name: Option<Cow<'a, str>>,
    /// `datasetName`, the spelling to which consumers of the real stream bind.
    pub dataset_name: Option<Cow<'a, str>>,
    /// `operation`.
    pub operation: Option<Cow<'a, str>>,
    /// `kinesisSyncRecords`; `None` when absent or null.
    pub records: Option<Vec<WireRecord<'a>>>,
    /// `lastModifiedDate`, in epoch milliseconds.
    pub last_modified_date: Option<i64>,
    /// `kinesisSyncRecordsURL`.
    pub records_url: Option<Cow<'a, str>>,
    /// `payloadType`.
    pub payload_type: Option<Cow<'a, str>>,
    /// `syncCount`.
    pub sync_count: Option<i64>,
    /// Fields outside the contract.
    pub extra: Extra<'a>,
}

/// One change of one key, as on the wire.
#[derive(Debug, Default)]
pub(crate) struct WireRecord<'a> {
    /// `key`.
    pub key: Option<Cow<'a, str>>,
    /// `value`; `None` when absent or null.
    pub value: Option<Cow<'a, str>>,
    /// `syncCount`.
    pub sync_count: Option<i64>,
    /// `lastModifiedDate`, in epoch milliseconds.
    pub last_modified_date: Option<i64>,
    /// `deviceLastModifiedDate`, unparsed: the client's clock may say anything.
    pub device_last_modified_date: Option<&'a str>,
    /// `op`.
    pub op: Option<Cow<'a, str>>,
    /// Fields outside the contract.
    pub extra: Extra<'a>,
}

/// The records of an event: at most [`RECORDS_MAX`], each with a key.
#[derive(Debug)]
pub(crate) struct Records<'a>(pub Vec<WireRecord<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for Records<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RecordsVisitor;
        impl<'de> Visitor<'de> for RecordsVisitor {
            type Value = Records<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of sync records")
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Records<'de>, E> {
                Err(not_text(&self))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Records<'de>, A::Error> {
                let mut records = Vec::new();
                while let Some(record) = seq.next_element::<WireRecord<'de>>()? {
                    if records.len() == RECORDS_MAX {
                        return Err(de::Error::custom(format_args!("{TOO_MANY}, more than {RECORDS_MAX}")));
                    }
                    // Checked here, so that a million `{}` are never held: every record that is held has taken eleven
                    // bytes of input.
                    if record.key.is_none() {
                        let number = records.len();
                        return Err(de::Error::custom(format_args!("{MISSING} kinesisSyncRecords[{number}].key")));
                    }
                    records.push(record);
                }
                Ok(Records(records))
            }
        }
        deserializer.deserialize_any(RecordsVisitor)
    }
}

/// A string that borrows from the input if it contains no escape.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(v)))
            }
            fn visit_str<E>(self, v: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(v.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// A 64-bit integer.
struct Integer(i64);

impl<'de> Deserialize<'de> for Integer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IntegerVisitor;
        impl Visitor<'_> for IntegerVisitor {
            type Value = Integer;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer of 64 bits")
            }
            fn visit_i64<E>(self, v: i64) -> Result<Integer, E> {
                Ok(Integer(v))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> Result<Integer, E> {
                i64::try_from(v).map(Integer).map_err(|_| E::invalid_value(Unexpected::Unsigned(v), &self))
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Integer, E> {
                Err(not_text(&self))
            }
        }
        // `deserialize_i64` would quote a whole string in its error.
        deserializer.deserialize_any(IntegerVisitor)
    }
}

/// Returns the error for an unexpected string. serde's own error quotes the whole string.
fn not_text<E: de::Error>(expected: &dyn de::Expected) -> E {
    E::invalid_type(Unexpected::Other("string"), expected)
}

fn set<'de, A: MapAccess<'de>, T: Deserialize<'de>>(
    map: &mut A,
    seen: &mut u32,
    bit: u32,
    name: &str,
) -> Result<Option<T>, A::Error> {
    if *seen & (1 << bit) != 0 {
        return Err(de::Error::custom(format_args!("{DUPLICATE} `{name}`")));
    }
    *seen |= 1 << bit;
    // The field name is added here, because serde_json's own message contains only the type.
    map.next_value().map_err(|e| match e.to_string() {
        message if message.starts_with("invalid type") || message.starts_with("invalid value") => {
            de::Error::custom(format_args!("{INVALID} `{name}`: {message}"))
        }
        _ => e,
    })
}

fn text<'de, A: MapAccess<'de>>(
    map: &mut A,
    seen: &mut u32,
    bit: u32,
    name: &str,
) -> Result<Option<Cow<'de, str>>, A::Error> {
    Ok(set::<A, Option<Text<'de>>>(map, seen, bit, name)?.flatten().map(|t| t.0))
}

fn integer<'de, A: MapAccess<'de>>(map: &mut A, seen: &mut u32, bit: u32, name: &str) -> Result<Option<i64>, A::Error> {
    Ok(set::<A, Option<Integer>>(map, seen, bit, name)?.flatten().map(|n| n.0))
}

impl<'de: 'a, 'a> Deserialize<'de> for WireEvent<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EventVisitor;
        impl<'de> Visitor<'de> for EventVisitor {
            type Value = WireEvent<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WireEvent<'de>, A::Error> {
                let mut event = WireEvent::default();
                let seen = &mut 0;
                while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
                    match &*name {
                        "identityPoolId" => event.identity_pool_id = text(&mut map, seen, 0, &name)?,
                        "identityId" => event.identity_id = text(&mut map, seen, 1, &name)?,
                        "dataSetName" => event.data_set_name = text(&mut map, seen, 2, &name)?,
                        "datasetName" => event.dataset_name = text(&mut map, seen, 3, &name)?,
                        "operation" => event.operation = text(&mut map, seen, 4, &name)?,
                        "kinesisSyncRecords" => {
                            let records = set::<A, Option<Records<'de>>>(&mut map, seen, 5, &name)?;
                            event.records = records.flatten().map(|records| records.0);
                        }
                        "lastModifiedDate" => event.last_modified_date = integer(&mut map, seen, 6, &name)?,
                        "kinesisSyncRecordsURL" => event.records_url = text(&mut map, seen, 7, &name)?,
                        "payloadType" => event.payload_type = text(&mut map, seen, 8, &name)?,
                        "syncCount" => event.sync_count = integer(&mut map, seen, 9, &name)?,
                        _ => event.extra.push((name, map.next_value()?)),
                    }
                }
                Ok(event)
            }
        }
        deserializer.deserialize_map(EventVisitor)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for WireRecord<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RecordVisitor;
        impl<'de> Visitor<'de> for RecordVisitor {
            type Value = WireRecord<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a sync record object")
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<WireRecord<'de>, E> {
                Err(not_text(&self))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WireRecord<'de>, A::Error> {
                let mut record = WireRecord::default();
                let seen = &mut 0;
                while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
                    match &*name {
                        "key" => record.key = text(&mut map, seen, 0, &name)?,
                        "value" => record.value = text(&mut map, seen, 1, &name)?,
                        "syncCount" => record.sync_count = integer(&mut map, seen, 2, &name)?,
                        "lastModifiedDate" => record.last_modified_date = integer(&mut map, seen, 3, &name)?,
                        "deviceLastModifiedDate" => {
                            let raw = set::<A, &'de RawValue>(&mut map, seen, 4, &name)?.map(RawValue::get);
                            record.device_last_modified_date = raw.filter(|raw| *raw != "null");
                        }
                        "op" => record.op = text(&mut map, seen, 5, &name)?,
                        _ => record.extra.push((name, map.next_value()?)),
                    }
                }
                Ok(record)
            }
        }
        deserializer.deserialize_any(RecordVisitor)
    }
}
