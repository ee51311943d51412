#![no_main]
//! Fuzzes every outcome of the decoder and its memory cost, which the allocator counts.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use libfuzzer_sys::fuzz_target;
use synclake_fuzz::decode::{decode, decode_with, payload_url};
use synclake_fuzz::parsers_agree;
use synclake_fuzz::redact::{redact, redact_payload};

/// An allocator that counts the bytes held now and the peak.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn grew(bytes: usize) {
    PEAK.fetch_max(HELD.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grew(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The old and the new block both count for a moment, as when the system moves the block.
        grew(size);
        HELD.fetch_sub(layout.size(), Relaxed);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Runs `work` over a record of `bytes` bytes and asserts that it holds at most `times * bytes` plus 64 KiB.
fn costs<T>(times: usize, bytes: usize, work: impl FnOnce() -> T) -> T {
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    let done = work();
    let peak = PEAK.load(Relaxed) - before;
    assert!(peak <= times * bytes + (64 << 10), "{peak} bytes for a record of {bytes}");
    done
}

fuzz_target!(|data: &[u8]| {
    // The first byte says where the envelope ends and the payload behind its URL begins.
    let (envelope, payload) = match data.split_first() {
        Some((at, rest)) => rest.split_at(rest.len() * usize::from(*at) / 255),
        None => (data, data),
    };
    for (bytes, payload) in [(data, None), (envelope, None), (envelope, Some(payload))] {
        let all = bytes.len() + payload.map_or(0, <[u8]>::len);
        match costs(64, all, || decode_with(bytes, payload)) {
            // An accepted event has rows, each on a day that can be written. The text of its rows is bounded by the
            // record's bytes.
            Ok(event) => {
                assert!(!event.rows.is_empty());
                let mut said = 0;
                for row in &event.rows {
                    assert!(row.event_date().to_string().len() == 10);
                    let extra = event.extra(row);
                    assert!(extra.as_deref().is_none_or(|e| serde_json::from_str::<serde_json::Value>(e).is_ok()));
                    said += event.dataset_name.len() + event.op(row).map_or(0, str::len);
                    said += extra.map_or(0, |extra| extra.len());
                }
                assert!(said <= 32 * all + (64 << 10), "{said} bytes in rows of a record of {all}");
            }
            Err(reject) => assert!(!reject.detail.is_empty() && reject.detail.len() < 600),
        }
    }
    let _ = costs(64, data.len(), || payload_url(data));
    // Redacted bytes hold no secret any more, and stay JSON if they were JSON.
    let once = costs(8, data.len(), || redact_payload(data).into_owned());
    let is_json = |bytes: &[u8]| serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok();
    assert!(!is_json(data) || is_json(&once));
    let secret = b"X-Amz-Signature=";
    assert!(!once.windows(secret.len() + 1).any(|w| w.starts_with(secret) && w[secret.len()].is_ascii_alphanumeric()));
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = costs(8, text.len(), || redact(text));
        assert!(parsers_agree(text), "the two parsers disagree about {text:?}");
    }
    let _ = decode(&once);
});
