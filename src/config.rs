//! Settings: flags override the environment (`SYNCLAKE_…`), which overrides a TOML file. They are checked once.
//!
//! clap merges the first two. The file only fills settings that neither of them gave. An unknown key is an error,
//! because a misspelt setting that is silently ignored is found out months later.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use crate::aws::AwsSettings;

/// The settings file; every key is optional.
#[derive(Debug, Clone, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// `kinesis:<stream>` or `file:<path>`; a list for several streams.
    pub source: Option<Sources>,
    /// `s3://bucket/prefix` or a folder.
    pub lake: Option<String>,
    /// AWS region.
    pub region: Option<String>,
    /// Endpoint of all AWS services.
    pub endpoint_url: Option<String>,
    /// AWS profile.
    pub profile: Option<String>,
    /// Where to begin a stream that the lake does not have yet.
    pub from: Option<String>,
    /// Bytes that ingest may buffer, such as `256MiB`.
    pub memory: Option<String>,
    /// Bytes of records after which ingest commits.
    pub flush_bytes: Option<String>,
    /// Time after which ingest commits, such as `60s`.
    #[serde(alias = "flush_age")]
    pub flush_interval: Option<String>,
    /// Time without new records after which ingest stops.
    pub until_idle: Option<String>,
    /// `dynamodb:<table>`: the table through which workers share the stream's shards.
    pub lease_table: Option<String>,
    /// Interval at which ingest refreshes the maintained state.
    pub refresh_every: Option<String>,
    /// `off`, `light` or `full`: what ingest does for the lake beside its work.
    pub care: Option<String>,
    /// Interval of care.
    pub care_every: Option<String>,
    /// Time without an observed renewal after which a worker has lost its lease.
    pub lease_failover: Option<String>,
    /// Address that serves metrics, such as `127.0.0.1:9464`, or `emf`, or both with a comma between.
    pub metrics: Option<String>,
    /// Hosts beside S3's own from which payloads may be fetched.
    pub payload_hosts: Option<Vec<String>>,
    /// Maximum bytes of a payload.
    pub payload_bytes: Option<String>,
    /// Time limit of retries for a payload that cannot be fetched.
    #[serde(alias = "payload_patience")]
    pub payload_timeout: Option<String>,
    /// Whether hosts of payloads may have private addresses, as VPC endpoints do.
    pub payload_private_addresses: Option<bool>,
}

/// One source, or a list.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(untagged)]
pub enum Sources {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

impl Sources {
    /// Returns the sources of flags, else of the settings file. A text with several streams, as in an environment variable,
    /// has commas between them.
    pub fn of(flags: Vec<String>, file: &File) -> Vec<String> {
        let given = match (flags.is_empty(), &file.source) {
            (false, _) | (true, None) => flags,
            (true, Some(Self::One(source))) => vec![source.clone()],
            (true, Some(Self::Several(sources))) => sources.clone(),
        };
        let split = |source: String| -> Vec<String> {
            let parts: Vec<&str> = source.split(',').map(str::trim).collect();
            // A path may have a comma.
            match parts.iter().all(|part| part.starts_with("kinesis:")) {
                true => parts.into_iter().map(str::to_owned).collect(),
                false => vec![source],
            }
        };
        given.into_iter().flat_map(split).collect()
    }

    /// Returns the names of the streams among sources.
    pub fn streams(sources: &[String]) -> Vec<String> {
        sources.iter().filter_map(|source| source.strip_prefix("kinesis:")).map(str::to_owned).collect()
    }
}

/// Placeholder for the name of the stream in the name of a lease table.
const STREAM_PLACEHOLDER: &str = "{stream}";

/// Returns the lease table of a stream: shard ids repeat in every stream, so several streams have a table each.
///
/// # Errors
/// Several streams would share one table.
pub fn lease_table_of(table: &str, stream: &str, streams: usize) -> Result<String, Unusable> {
    if streams > 1 && !table.contains(STREAM_PLACEHOLDER) {
        return Err(Unusable(format!(
            "--lease-table {table}: several streams need a table each; write {STREAM_PLACEHOLDER} into its name, \
             such as dynamodb:synclake-{STREAM_PLACEHOLDER}"
        )));
    }
    Ok(table.replace(STREAM_PLACEHOLDER, stream))
}

/// An invalid setting: exit code 2.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Unusable(pub String);

impl File {
    /// Reads the file. Without a path, reads `synclake.toml` in the working folder if it exists.
    ///
    /// **Invariant: a file that nobody named sends no credentials anywhere.** Somebody else may have filled the working
    /// folder, for example by an unpacked archive. So keys that decide where requests go are valid only in a named
    /// file.
    ///
    /// # Errors
    /// Fails if the file cannot be read, is no TOML, holds an unknown key, or holds a key that only a named file may
    /// hold.
    pub fn load(path: Option<&Path>) -> Result<Self, Unusable> {
        let default = PathBuf::from("synclake.toml");
        let (path, is_named) = match path {
            Some(path) => (path, true),
            None if default.exists() => (default.as_path(), false),
            None => return Ok(Self::default()),
        };
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|e| Unusable(format!("settings file {shown}: {e}")))?;
        let file: Self = toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            Unusable(format!("settings file {shown}, line {line}: {}", e.message().replace('\n', " ")))
        })?;
        let unasked = file.where_requests_go().filter(|_| !is_named);
        if let Some(key) = unasked {
            return Err(Unusable(format!(
                "settings file {shown} of the working folder sets {key}, which decides where requests and credentials are \
                 sent; if it is yours, name it: --config {shown}"
            )));
        }
        if let Some(url) = file.endpoint_url.as_deref().filter(|url| is_open_http(url)) {
            return Err(Unusable(format!(
                "settings file {shown}: endpoint_url {url:?} would send credentials in the open; write https, or give it \
                 with --endpoint-url if you mean it"
            )));
        }
        Ok(file)
    }

    /// Returns a key of the file that decides where requests go.
    fn where_requests_go(&self) -> Option<&'static str> {
        let keys = [
            ("endpoint_url", self.endpoint_url.is_some()),
            ("payload_hosts", self.payload_hosts.is_some()),
            ("payload_private_addresses", self.payload_private_addresses.is_some()),
        ];
        keys.into_iter().find(|(_, is_set)| *is_set).map(|(key, _)| key)
    }
}

/// Returns whether a URL leads over the network without encryption.
fn is_open_http(url: &str) -> bool {
    let Ok(url) = url::Url::parse(url) else { return false };
    let is_here = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() == "http" && !is_here
}

/// Combines the AWS settings of flags and file.
pub fn aws(region: Option<String>, endpoint_url: Option<String>, profile: Option<String>, file: &File) -> AwsSettings {
    AwsSettings {
        region: region.or_else(|| file.region.clone()),
        endpoint_url: endpoint_url.or_else(|| file.endpoint_url.clone()),
        profile: profile.or_else(|| file.profile.clone()),
    }
}

/// Parses a number of bytes: `256MiB`, `64M`, `1000000`.
///
/// # Errors
/// Returns one line that shows the format of a size.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text[digits.len()..].trim().to_ascii_lowercase();
    let scale: u64 = match unit.as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => 0,
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(scale)).filter(|n| *n > 0);
    bytes.ok_or_else(|| format!("{text:?} is no size; write 256MiB, 1GiB or a number of bytes"))
}

/// Parses a duration: `60s`, `5m`, `1h`.
///
/// # Errors
/// Returns one line that shows the format of a duration.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text).ok().filter(|d| !d.is_zero() && *d <= Duration::from_secs(604_800));
    parsed.ok_or_else(|| format!("{text:?} is no duration up to 7 days; write 500ms, 60s, 5m or 1h"))
}

/// Parses a day (its beginning in UTC), or a time in the format of RFC 3339.
///
/// # Errors
/// Returns one line that shows the possible formats.
pub fn parse_time(text: &str) -> Result<chrono::DateTime<chrono::Utc>, String> {
    let day = text.parse::<chrono::NaiveDate>().ok().and_then(|day| day.and_hms_opt(0, 0, 0)).map(|at| at.and_utc());
    let time = || chrono::DateTime::parse_from_rfc3339(text).ok().map(|at| at.to_utc());
    day.or_else(time).ok_or_else(|| format!("{text:?} is not a day or time; write 2026-11-20 or 2026-11-20T08:00:00Z"))
}

/// Parses `trim-horizon`, `latest`, or a time in the format of RFC 3339.
///
/// # Errors
/// Returns one line that shows the possible values.
pub fn parse_from(text: &str) -> Result<crate::source::kinesis::From, String> {
    use crate::source::kinesis::From;
    match text {
        "trim-horizon" => Ok(From::TrimHorizon),
        "latest" => Ok(From::Latest),
        // No record is older than the epoch, so such a time is the horizon.
        _ => chrono::DateTime::parse_from_rfc3339(text)
            .map(|at| match at.timestamp_millis() {
                ..=0 => From::TrimHorizon,
                ms => From::Timestamp(ms),
            })
            .map_err(|_| format!("{text:?} is not trim-horizon, latest or a time such as 2026-11-20T00:00:00Z")),
    }
}

/// Combines the settings of payload fetches: the allowed hosts, and the limits.
///
/// # Errors
/// Returns one line that names the setting and shows its format.
pub fn payloads(
    hosts: Option<Vec<String>>,
    bytes: Option<String>,
    patience: Option<String>,
    private: bool,
    file: &File,
) -> Result<crate::payload::PayloadOptions, Unusable> {
    let mut options = crate::payload::PayloadOptions::default();
    options.policy.private = private || file.payload_private_addresses == Some(true);
    let hosts = hosts.filter(|h| !h.is_empty()).or_else(|| file.payload_hosts.clone()).unwrap_or_default();
    let allowed = hosts.iter().map(|host| host.parse()).collect::<Result<_, _>>();
    options.policy.allowed = allowed.map_err(|e| Unusable(format!("--payload-hosts {e}")))?;
    if let Some(text) = bytes.or_else(|| file.payload_bytes.clone()) {
        let bytes = parse_bytes(&text).map_err(|e| Unusable(format!("--payload-bytes {e}")))?;
        let bytes = usize::try_from(bytes).ok().filter(|bytes| (1 << 10..=1 << 30).contains(bytes));
        options.bytes_max = bytes.ok_or_else(|| Unusable("--payload-bytes must be 1KiB to 1GiB".to_owned()))?;
    }
    if let Some(text) = patience.or_else(|| file.payload_timeout.clone()) {
        let patience = parse_duration(&text).map_err(|e| Unusable(format!("--payload-timeout {e}")))?;
        options.patience = Some(patience);
    }
    Ok(options)
}

/// Where metrics go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Address that serves them.
    pub address: Option<SocketAddr>,
    /// Whether lines of CloudWatch's embedded metric format go to standard error.
    pub is_embedded: bool,
}

/// Parses an address, `emf`, or both with a comma between.
///
/// # Errors
/// Returns one line that shows the format.
pub fn parse_metrics(text: &str) -> Result<Metrics, String> {
    let mut metrics = Metrics::default();
    for part in text.split(',').map(str::trim) {
        match part.parse() {
            Ok(address) if metrics.address.is_none() => metrics.address = Some(address),
            Err(_) if part == "emf" => metrics.is_embedded = true,
            _ => {
                return Err(format!(
                    "{part:?} is no address and not `emf`; write 127.0.0.1:9464, emf, or 127.0.0.1:9464,emf"
                ));
            }
        }
    }
    Ok(metrics)
}

/// Parses `dynamodb:<table>` and returns the name of the table.
///
/// # Errors
/// Returns one line that shows the format.
pub fn parse_lease_table(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("dynamodb:").filter(|name| !name.is_empty());
    name.map(str::to_owned).ok_or_else(|| format!("{text:?} is not dynamodb:<table>"))
}

/// Returns a unique name for this worker: the machine's name, the process id, and random digits.
pub fn worker_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    let host = host.map(|h| h.trim().to_owned()).filter(|h| !h.is_empty()).unwrap_or_else(|| "worker".to_owned());
    format!("{host}-{}-{:08x}", std::process::id(), rand::random::<u32>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations() {
        assert_eq!(parse_bytes("256MiB"), Ok(256 << 20));
        assert_eq!(parse_bytes("10"), Ok(10));
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        for bad in ["", "-1", "0", "1.5GiB", "5x", "99999999999999999999", "99999999999GiB"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
        for bad in ["", "0s", "-5s", "5", "3000000y"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn unknown_keys_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.toml");
        std::fs::write(&path, "lake = \"x\"\nfulsh_age = \"60s\"\n").unwrap();
        let error = File::load(Some(&path)).unwrap_err().0;
        assert!(error.contains("line 2") && error.contains("fulsh_age"), "{error}");
        std::fs::write(&path, "lake = \"x\"\n").unwrap();
        assert_eq!(File::load(Some(&path)).unwrap().lake.as_deref(), Some("x"));
        std::fs::write(&path, "endpoint_url = \"http://10.1.2.3:9000\"\n").unwrap();
        assert!(File::load(Some(&path)).unwrap_err().0.contains("in the open"));
        for good in ["https://10.1.2.3:9000", "http://127.0.0.1:9000", "http://[::1]:9000", "http://localhost"] {
            std::fs::write(&path, format!("endpoint_url = \"{good}\"\n")).unwrap();
            assert!(File::load(Some(&path)).is_ok(), "{good}");
        }
    }
}
