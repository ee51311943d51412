//! Names and values, as users of an app write them.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

pub(super) const DATASETS: [&str; 8] =
    ["profile", "settings", "game.progress", "inventory", "friends", "bookmarks", "drafts", "achievements:v2"];
const KEYS: [&str; 16] = [
    "level",
    "score",
    "theme",
    "volume",
    "lang",
    "nickname",
    "avatar",
    "last_seen",
    "tutorial.done",
    "coins",
    "имя",
    "キー",
    "clé",
    "cle\u{301}",
    "a b",
    "slot",
];
const WORDS: [&str; 20] = [
    "dark",
    "light",
    "on",
    "off",
    "north",
    "river",
    "granite",
    "café",
    "Zürich",
    "東京",
    "🚀",
    "نعم",
    "line\nbreak",
    "tab\there",
    "\"quoted\"",
    "back\\slash",
    "comma,separated",
    "=1+1",
    "semi;colon",
    "naïve",
];

/// Returns a number below `n`; small numbers are far more frequent.
pub(super) fn skewed(n: usize, rng: &mut ChaCha8Rng) -> usize {
    let u: f64 = rng.random();
    // Inverse of a power law: half of the picks fall on the first few per cent.
    ((u.powi(4) * n as f64) as usize).min(n.saturating_sub(1))
}

/// Returns a key of a dataset.
pub(super) fn key(rng: &mut ChaCha8Rng) -> String {
    let base = KEYS[skewed(KEYS.len(), rng)];
    match rng.random_range(0..4u8) {
        0 => base.to_owned(),
        _ => format!("{base}.{}", skewed(40, rng)),
    }
}

/// Returns a value; `None` is JSON null, which is not the empty string.
pub(super) fn value(chars: usize, rng: &mut ChaCha8Rng) -> Option<String> {
    match rng.random_range(0..100u8) {
        0..=2 => Some(String::new()),
        3..=4 => None,
        5..=34 => Some(rng.random_range(0..1_000_000u32).to_string()),
        _ => {
            let length = rng.random_range(1..=chars.max(1) * 2);
            let mut text = String::with_capacity(length + 16);
            while text.len() < length {
                if !text.is_empty() {
                    text.push(' ');
                }
                match rng.random_range(0..3u8) {
                    0 => text.push_str(WORDS[rng.random_range(0..WORDS.len())]),
                    _ => text.push_str(&format!("{:x}", rng.random::<u32>())),
                }
            }
            Some(text)
        }
    }
}

/// Returns a GUID: `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
pub(super) fn guid(rng: &mut ChaCha8Rng) -> String {
    let n: u128 = rng.random();
    let hex = format!("{n:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
