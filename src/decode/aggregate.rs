//! Splits records into which the Kinesis Producer Library (KPL) has packed several user records.
//!
//! ```text
//! F3 89 9A C2 | protobuf AggregatedRecord | MD5 of the protobuf, 16 bytes
//! ```
//! A record is an aggregate only if it has the magic *and* the right digest *and* is that protobuf. Every other record
//! is plain, whatever it starts with. The sub-records of a record are committed together with its sequence number, so a
//! position never lies inside an aggregate.

use bytes::Bytes;
use md5::{Digest, Md5};
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};

const MAGIC: [u8; 4] = [0xf3, 0x89, 0x9a, 0xc2];
const DIGEST_BYTES: usize = 16;
/// An aggregate with more fields than this counts as a plain record: ten megabytes of empty fields must not become
/// gigabytes.
const FIELDS_MAX: usize = 200_000;
/// An aggregate may have `FIELDS_FREE` fields, plus one for every so many bytes: an event has more than a hundred
/// bytes.
const FIELD_BYTES: usize = 16;
const FIELDS_FREE: usize = 16;

/// Returns the most fields that an aggregate of this many bytes may have.
pub fn fields_max(bytes: usize) -> usize {
    (FIELDS_FREE + bytes / FIELD_BYTES).min(FIELDS_MAX)
}

/// A user record: a plain record, or a sub-record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Index inside the aggregate, from 0; `None` for a plain record.
    pub sub_sequence: Option<i64>,
    /// Payload, unchanged.
    pub bytes: Bytes,
}

/// Returns the user records of a record: itself, or its sub-records. An empty aggregate has none.
pub fn parts(record: &Bytes) -> impl Iterator<Item = Part> {
    let aggregate = aggregate(record);
    let plain = aggregate.is_none().then(|| Part { sub_sequence: None, bytes: record.clone() });
    let parts = aggregate.map(|a| a.records).unwrap_or_default();
    plain.into_iter().chain((0..).zip(parts).map(|(n, part)| Part { sub_sequence: Some(n), bytes: part.data }))
}

#[derive(Clone, PartialEq, Message)]
struct Aggregate {
    #[prost(string, repeated, tag = "1")]
    partition_keys: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    hash_keys: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    records: Vec<UserRecord>,
}

#[derive(Clone, PartialEq, Message)]
struct UserRecord {
    #[prost(uint64, tag = "1")]
    partition_key: u64,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}

fn aggregate(record: &Bytes) -> Option<Aggregate> {
    let inner = record.len().checked_sub(MAGIC.len() + DIGEST_BYTES)?;
    if !record.starts_with(&MAGIC) {
        return None;
    }
    let body = record.slice(MAGIC.len()..MAGIC.len() + inner);
    let digest = &record[MAGIC.len() + inner..];
    if Md5::digest(&body).as_slice() != digest || count(&body)? > fields_max(record.len()) {
        return None;
    }
    Aggregate::decode(body).ok()
}

/// Counts the fields of a message without keeping any.
fn count(body: &Bytes) -> Option<usize> {
    let mut rest = body.clone();
    let mut fields = 0;
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).ok()?;
        skip_field(wire_type, tag, &mut rest, DecodeContext::default()).ok()?;
        fields += 1;
    }
    Some(fields)
}

/// Builds an aggregate of these parts, for tests and simulated streams.
pub fn pack(parts: &[&[u8]]) -> Vec<u8> {
    let records = parts.iter().map(|part| UserRecord { partition_key: 0, data: Bytes::copy_from_slice(part) });
    let body = Aggregate { partition_keys: vec!["k".to_owned()], hash_keys: Vec::new(), records: records.collect() };
    let body = body.encode_to_vec();
    let digest = Md5::digest(&body);
    [&MAGIC[..], &body, digest.as_slice()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(record: &[u8]) -> Vec<(Option<i64>, Vec<u8>)> {
        parts(&Bytes::copy_from_slice(record)).map(|p| (p.sub_sequence, p.bytes.to_vec())).collect()
    }

    #[test]
    fn aggregates_are_taken_apart() {
        let packed = pack(&[b"one", b"", b"three"]);
        let expected = [(Some(0), b"one".to_vec()), (Some(1), vec![]), (Some(2), b"three".to_vec())];
        assert_eq!(opened(&packed), expected);
        assert_eq!(opened(&pack(&[])), []);
        // An aggregate as the KPL writes it: the partition key table, then records that refer to it by index.
        let body = b"\x0a\x01a\x1a\x08\x08\x00\x1a\x04data";
        let by_library = [&MAGIC[..], body, Md5::digest(body).as_slice()].concat();
        assert_eq!(opened(&by_library), [(Some(0), b"data".to_vec())]);
    }

    #[test]
    fn everything_else_is_plain() {
        let packed = pack(&[b"one"]);
        let mut wrong_digest = packed.clone();
        *wrong_digest.last_mut().unwrap() ^= 1;
        let garbage = b"\xff\xff\xff\xff";
        let no_protobuf = [&MAGIC[..], garbage, Md5::digest(garbage).as_slice()].concat();
        let too_many = pack(&vec![&b"0123456789abcdef"[..]; FIELDS_MAX + 1]);
        let too_small = pack(&[&b""[..]; 40]);
        let cut = &packed[..packed.len() - 1];
        for plain in [&wrong_digest[..], &no_protobuf, &too_many, &too_small, cut, &MAGIC, b"", b"{}"] {
            assert_eq!(opened(plain), [(None, plain.to_vec())]);
        }
    }
}
