//! Encodes events as publisher and network do: oversize payloads behind a URL, junk records, and aggregates.

use std::io::Write;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::deliver::Event;
use crate::decode::aggregate;

/// Records that no decoder can turn into rows.
const JUNK: [&[u8]; 6] =
    [b"not json", b"[]", b"{}{}", b"null", b"\xff\xfe{", br#"{"identityPoolId":"us-east-1:0a","dataSetName":"d"}"#];
/// Events in one aggregate, at most.
const PARTS_MAX: usize = 8;

/// The location of oversize payloads.
#[derive(Debug, Clone)]
pub struct Payloads {
    /// Share of events whose sync records are behind a URL.
    pub share: f64,
    /// Folder of the files: `0.json`, `1.json.gz`, and so on.
    pub folder: PathBuf,
    /// Base URL under which the folder is served.
    pub url: String,
}

/// Options of the wire.
#[derive(Debug, Clone, Default)]
pub struct WireOptions {
    /// Share of records that are KPL aggregates, of up to eight events.
    pub aggregates: f64,
    /// Share of events that are followed by a record that cannot be decoded.
    pub poison: f64,
    /// Oversize payloads, if any.
    pub payloads: Option<Payloads>,
}

/// A record as it is put into the stream.
#[derive(Debug)]
pub struct Record {
    /// Key that determines the shard.
    pub partition_key: String,
    /// Bytes of the record.
    pub data: Vec<u8>,
    /// Number of events in the record.
    pub events: u64,
    /// Number of key changes in these events.
    pub changes: u64,
}

/// An encoder of events into records. It has its own random generator, so that its options do not change the events.
#[derive(Debug)]
pub struct Wire {
    options: WireOptions,
    rng: ChaCha8Rng,
    payloads: u64,
    wanted: usize,
    parts: Vec<Event>,
}

impl Wire {
    /// Creates an encoder; draws nothing from the generator of the events.
    pub fn new(options: WireOptions, seed: u64) -> Self {
        Self { options, rng: ChaCha8Rng::seed_from_u64(!seed), payloads: 0, wanted: 0, parts: Vec::new() }
    }

    /// Returns the records that this event completes, in their order.
    ///
    /// # Errors
    /// A payload cannot be written.
    pub fn send(&mut self, mut event: Event) -> std::io::Result<Vec<Record>> {
        if let Some(payloads) = self.options.payloads.clone()
            && self.draw(payloads.share)
        {
            event.json = self.set_apart(&payloads, event.json)?;
        }
        let mut records = Vec::new();
        if self.parts.is_empty() && self.draw(self.options.aggregates) {
            self.wanted = self.rng.random_range(2..=PARTS_MAX);
        }
        self.parts.push(event);
        if self.parts.len() >= self.wanted {
            records.extend(self.finish());
        }
        if self.draw(self.options.poison) {
            let data = JUNK[self.rng.random_range(0..JUNK.len())].to_vec();
            let partition_key = self.rng.random::<u32>().to_string();
            records.push(Record { partition_key, data, events: 0, changes: 0 });
        }
        Ok(records)
    }

    /// Returns the record that is being filled.
    pub fn finish(&mut self) -> Option<Record> {
        let parts = std::mem::take(&mut self.parts);
        let is_aggregate = std::mem::take(&mut self.wanted) > 0;
        let first = parts.first()?;
        let data = if is_aggregate {
            aggregate::pack(&parts.iter().map(|part| part.json.as_bytes()).collect::<Vec<_>>())
        } else {
            first.json.clone().into_bytes()
        };
        let changes = parts.iter().map(|part| part.changes).sum();
        Some(Record { partition_key: first.partition_key.clone(), data, events: parts.len() as u64, changes })
    }

    /// Returns whether an event of this probability happens; draws nothing if the probability is zero.
    fn draw(&mut self, share: f64) -> bool {
        share > 0.0 && self.rng.random_bool(share)
    }

    /// Moves the sync records of an event into a file. A removal of a dataset has none, and stays unchanged.
    fn set_apart(&mut self, payloads: &Payloads, json: String) -> std::io::Result<String> {
        let mut event: Value = serde_json::from_str(&json)?;
        let records = event["kinesisSyncRecords"].take();
        if !records.is_array() {
            return Ok(json);
        }
        let number = self.payloads;
        self.payloads += 1;
        let mut body = records.to_string().into_bytes();
        let mut name = format!("{number}.json");
        if number % 2 == 1 {
            name += ".gz";
            let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
            gzip.write_all(&body)?;
            body = gzip.finish()?;
        }
        std::fs::write(payloads.folder.join(&name), body)?;
        let signature: u128 = self.rng.random();
        let query = format!("X-Amz-Date=20990101T000000Z&X-Amz-Expires=604800&X-Amz-Signature={signature:032x}");
        event["kinesisSyncRecordsURL"] = format!("{}/{name}?{query}", payloads.url.trim_end_matches('/')).into();
        event["payloadType"] = "S3Url".into();
        Ok(event.to_string())
    }
}
