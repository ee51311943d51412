//! What publisher and network make of events: oversize payloads behind a URL, junk among them, and several in one record.

use std::io::Write;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::deliver::Event;
use crate::decode::aggregate;

/// Lines that no decoder can make rows of.
const JUNK: [&[u8]; 6] =
    [b"not json", b"[]", b"{}{}", b"null", b"\xff\xfe{", br#"{"identityPoolId":"us-east-1:0a","dataSetName":"d"}"#];
/// Most events of one aggregate.
const PARTS_MAX: usize = 8;

/// Where oversize payloads lie.
#[derive(Debug, Clone)]
pub struct Payloads {
    /// Share of events whose records are behind a URL.
    pub share: f64,
    /// Where their files are written: `0.json`, `1.json.gz`, and so on.
    pub folder: PathBuf,
    /// What the URLs begin with: where the folder is served.
    pub url: String,
}

/// How events go over the wire.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Share of records that are aggregates of the Kinesis Producer Library, of up to eight events.
    pub aggregates: f64,
    /// Share of records that are followed by one that cannot be decoded.
    pub poison: f64,
    /// Oversize payloads, if any.
    pub payloads: Option<Payloads>,
}

/// A record as it is put into the stream.
#[derive(Debug)]
pub struct Record {
    /// Decides on the shard.
    pub partition_key: String,
    /// The bytes.
    pub data: Vec<u8>,
    /// Events in it.
    pub events: u64,
    /// Changes in them.
    pub changes: u64,
}

/// Makes records of events. Draws from a generator of its own, so that its options do not change the events.
#[derive(Debug)]
pub struct Wire {
    options: Options,
    rng: ChaCha8Rng,
    payloads: u64,
    wanted: usize,
    parts: Vec<Event>,
}

impl Wire {
    /// Nothing is drawn from the generator of the events.
    pub fn new(options: Options, seed: u64) -> Self {
        Self { options, rng: ChaCha8Rng::seed_from_u64(!seed), payloads: 0, wanted: 0, parts: Vec::new() }
    }

    /// The records that this event completes, in their order.
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

    /// The record that is being filled.
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

    /// Whether something of this share happens; nothing is drawn for what never does.
    fn draw(&mut self, share: f64) -> bool {
        share > 0.0 && self.rng.random_bool(share)
    }

    /// Moves the records of an event into a file. A removal of a dataset has none.
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
