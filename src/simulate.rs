//! Generates a realistic stream from a seed, and the true state that it leads to.
//!
//! The state (`--oracle`) is the generator's own model, kept while it makes the events. It uses nothing of the decoder
//! or the query layer, so that it can judge both.

use std::io::Write;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

mod deliver;
pub mod publish;
pub mod wire;
mod words;
mod world;

use deliver::Delivery;
use wire::Wire;
use world::World;

/// Options of a simulation.
#[derive(Debug, Clone)]
pub struct SimulateOptions {
    /// Seed of all random choices.
    pub seed: u64,
    /// Number of synchronizations, without copies.
    pub events: u64,
    /// Number of identity pools.
    pub pools: u32,
    /// Number of identities in all pools together.
    pub identities: u32,
    /// Number of days over which the events are spread.
    pub days: u32,
    /// First day.
    pub start: chrono::NaiveDate,
    /// Share of events that are delivered twice.
    pub duplicates: f64,
    /// Number of later events that may overtake an event.
    pub reorder: u64,
    /// Share of events that come very late.
    pub late: f64,
    /// Share of events that remove a whole dataset.
    pub dataset_removals: f64,
    /// Share of events that are followed by bulk-publish copies of all datasets of one identity.
    pub bulk_copies: f64,
    /// Typical length of a value, in characters.
    pub value_chars: usize,
    /// Options of the wire.
    pub wire: wire::WireOptions,
}

/// The totals of a simulation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Produced {
    /// Delivered events, including copies.
    pub events: u64,
    /// Key changes in these events.
    pub changes: u64,
    /// Records that cannot be decoded.
    pub undecodable: u64,
    /// Bytes of all records, with one line break each.
    pub bytes: u64,
    /// Keys that are live at the end.
    pub live_keys: u64,
}

/// Generates the records in the order of their delivery, each with a partition key. Returns the totals and the true
/// state at the end.
///
/// # Errors
/// The error of `emit`, or a payload cannot be written.
pub fn run<E: From<std::io::Error>>(
    options: &SimulateOptions,
    mut emit: impl FnMut(&str, Vec<u8>) -> Result<(), E>,
) -> Result<(Produced, Truth), E> {
    let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
    let mut world = World::new(options, &mut rng);
    let mut delivery = Delivery::new(options);
    let mut wire = Wire::new(options.wire.clone(), options.seed);
    let mut produced = Produced { events: 0, changes: 0, undecodable: 0, bytes: 0, live_keys: 0 };
    let mut send = |record: wire::Record| {
        produced.events += record.events;
        produced.changes += record.changes;
        produced.undecodable += u64::from(record.events == 0);
        produced.bytes += record.data.len() as u64 + 1;
        emit(&record.partition_key, record.data)
    };
    for index in 0..options.events {
        for event in world.step(index, &mut rng) {
            delivery.accept(event, index, &mut rng);
        }
        while let Some(event) = delivery.due(index) {
            wire.send(event)?.into_iter().try_for_each(&mut send)?;
        }
    }
    while let Some(event) = delivery.due(u64::MAX) {
        wire.send(event)?.into_iter().try_for_each(&mut send)?;
    }
    wire.finish().into_iter().try_for_each(&mut send)?;
    produced.live_keys = world.live().count() as u64;
    Ok((produced, Truth(world)))
}

/// The true state at the end.
pub struct Truth(World);

impl Truth {
    /// Writes every live key as a JSON line, sorted.
    ///
    /// # Errors
    /// Writing fails.
    pub fn write(&self, out: &mut impl Write) -> std::io::Result<()> {
        let mut lines: Vec<_> = self.0.live().collect();
        lines.sort_by(|a, b| (a.pool, a.identity, a.dataset, a.key).cmp(&(b.pool, b.identity, b.dataset, b.key)));
        for live in lines {
            let line = serde_json::json!({
                "identity_pool_id": live.pool,
                "identity_id": live.identity,
                "dataset_name": live.dataset,
                "key": live.key,
                "value": live.value,
                "sync_count": live.sync_count,
                "last_modified_date": live.last_modified_ms,
            });
            writeln!(out, "{line}")?;
        }
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> SimulateOptions {
        SimulateOptions {
            seed: 7,
            events: 2_000,
            pools: 2,
            identities: 50,
            days: 3,
            start: chrono::NaiveDate::from_ymd_opt(2026, 1, 1).unwrap(),
            duplicates: 0.05,
            reorder: 200,
            late: 0.01,
            dataset_removals: 0.01,
            bulk_copies: 0.02,
            value_chars: 24,
            wire: wire::WireOptions::default(),
        }
    }

    #[test]
    fn a_seed_is_a_stream() {
        let lines = |options: &SimulateOptions| {
            let mut lines = Vec::new();
            let (produced, truth) = run(options, |_, json| {
                lines.push(String::from_utf8(json).unwrap());
                Ok::<_, std::io::Error>(())
            })
            .unwrap();
            let mut oracle = Vec::new();
            truth.write(&mut oracle).unwrap();
            (lines, oracle, produced)
        };
        let (first, oracle, produced) = lines(&options());
        assert_eq!((&first, &oracle), (&lines(&options()).0, &lines(&options()).1));
        assert_ne!(first, lines(&SimulateOptions { seed: 8, ..options() }).0);
        assert!(produced.events > 2_050 && produced.live_keys > 50, "{produced:?}");
        let removals = first.iter().filter(|l| l.contains(r#""kinesisSyncRecords":null"#)).count();
        assert!(removals > 0 && first.iter().any(|l| l.contains(r#""value":"""#)));
        for line in &first {
            crate::decode::decode(line.as_bytes()).unwrap();
        }
    }

    /// The wire's options change how events travel, but not what they say.
    #[test]
    fn the_wire_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let payloads =
            wire::Payloads { share: 0.1, folder: folder.path().to_owned(), url: "http://127.0.0.1:9/p/".to_owned() };
        let wire = wire::WireOptions { aggregates: 0.2, poison: 0.05, payloads: Some(payloads) };
        let mut plain = Vec::new();
        run(&options(), |_, data| {
            plain.push(crate::decode::decode(&data).unwrap().rows.len());
            Ok::<_, std::io::Error>(())
        })
        .unwrap();
        let (mut found, mut junk, mut aggregates, mut fetched) = (Vec::new(), 0, 0, 0);
        let (produced, _) = run(&SimulateOptions { wire, ..options() }, |_, data| {
            let parts: Vec<_> = crate::decode::aggregate::parts(&data.into()).collect();
            aggregates += usize::from(parts.len() > 1);
            for part in parts {
                let Some(url) = crate::decode::payload_url(&part.bytes) else {
                    match crate::decode::decode(&part.bytes) {
                        Ok(event) => found.push(event.rows.len()),
                        Err(_) => junk += 1,
                    }
                    continue;
                };
                fetched += 1;
                let name = url.split_once("/p/").unwrap().1.split_once('?').unwrap().0;
                let body = std::fs::read(folder.path().join(name)).unwrap();
                let mut text = String::new();
                match name.ends_with(".gz") {
                    true => drop(std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&*body), &mut text)),
                    false => text = String::from_utf8(body).unwrap(),
                }
                let records: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
                // An event without records becomes one row.
                found.push(records.len().max(1));
            }
            Ok::<_, std::io::Error>(())
        })
        .unwrap();
        assert_eq!(found, plain);
        assert!(aggregates > 20 && fetched > 100 && junk > 20, "{aggregates} {fetched} {junk}");
        assert_eq!((produced.undecodable, produced.events), (junk, plain.len() as u64));
    }
}
