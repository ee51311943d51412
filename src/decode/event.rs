//! The wire form of an event: what the JSON says, before anybody asks whether it makes sense.
//!
//! Field names are an enum, so that a field is recognised without allocating; a field outside the contract is kept as
//! the text it came in. Duplicates of a contract field are refused: which of the two the sender meant is a guess.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Fields outside the contract: name and JSON text.
pub type Extra<'a> = Vec<(Cow<'a, str>, &'a RawValue)>;

/// Marks an error of ours among serde_json's, with the reason that it stands for.
pub const DUPLICATE: &str = "duplicate field";
/// Likewise, for a value of the wrong kind.
pub const INVALID: &str = "invalid field";

/// An event as it is on the wire.
#[derive(Debug, Default)]
pub struct WireEvent<'a> {
    /// `identityPoolId`.
    pub identity_pool_id: Option<Cow<'a, str>>,
    /// `identityId`.
    pub identity_id: Option<Cow<'a, str>>,
    /// `dataSetName`, as the documents spell it.
    pub data_set_name: Option<Cow<'a, str>>,
    /// `datasetName`, as consumers of the real stream bind it.
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
    /// Everything else.
    pub extra: Extra<'a>,
}

/// One change of one key, as it is on the wire.
#[derive(Debug, Default)]
pub struct WireRecord<'a> {
    /// `key`.
    pub key: Option<Cow<'a, str>>,
    /// `value`; `None` when absent or null.
    pub value: Option<Cow<'a, str>>,
    /// `syncCount`.
    pub sync_count: Option<i64>,
    /// `lastModifiedDate`, in epoch milliseconds.
    pub last_modified_date: Option<i64>,
    /// `deviceLastModifiedDate`, as it came: the client's clock may say anything.
    pub device_last_modified_date: Option<&'a RawValue>,
    /// `op`.
    pub op: Option<Cow<'a, str>>,
    /// Everything else.
    pub extra: Extra<'a>,
}

/// A string that borrows from the input whenever it holds no escape.
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
    // The name is put in front here, because serde_json's own message tells only the type.
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
                            event.records = set::<A, Option<Vec<WireRecord<'de>>>>(&mut map, seen, 5, &name)?.flatten();
                        }
                        "lastModifiedDate" => {
                            event.last_modified_date = set::<A, Option<i64>>(&mut map, seen, 6, &name)?.flatten();
                        }
                        "kinesisSyncRecordsURL" => event.records_url = text(&mut map, seen, 7, &name)?,
                        "payloadType" => event.payload_type = text(&mut map, seen, 8, &name)?,
                        "syncCount" => event.sync_count = set::<A, Option<i64>>(&mut map, seen, 9, &name)?.flatten(),
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
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WireRecord<'de>, A::Error> {
                let mut record = WireRecord::default();
                let seen = &mut 0;
                while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
                    match &*name {
                        "key" => record.key = text(&mut map, seen, 0, &name)?,
                        "value" => record.value = text(&mut map, seen, 1, &name)?,
                        "syncCount" => record.sync_count = set::<A, Option<i64>>(&mut map, seen, 2, &name)?.flatten(),
                        "lastModifiedDate" => {
                            record.last_modified_date = set::<A, Option<i64>>(&mut map, seen, 3, &name)?.flatten();
                        }
                        "deviceLastModifiedDate" => {
                            record.device_last_modified_date =
                                set::<A, &'de RawValue>(&mut map, seen, 4, &name)?.filter(|raw| raw.get() != "null");
                        }
                        "op" => record.op = text(&mut map, seen, 5, &name)?,
                        _ => record.extra.push((name, map.next_value()?)),
                    }
                }
                Ok(record)
            }
        }
        deserializer.deserialize_map(RecordVisitor)
    }
}
