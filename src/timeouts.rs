//! Timeouts and intervals, and their relations, which the compiler checks.

use std::time::Duration;

// The store and the log.

/// Total time for the retries of one S3 request, with jitter, before the caller gets the error.
pub const STORE_RETRY_TIMEOUT: Duration = Duration::from_secs(60);
/// Total time for the tries of one file, beyond the store's own retries.
pub const FILE_TIMEOUT: Duration = Duration::from_secs(600);
/// Total time for the attempts at one commit. The limit is a time, because a number of attempts says nothing.
pub const COMMIT_TIMEOUT: Duration = Duration::from_secs(300);
/// Time for the answer to a request with a small body. A large body may take as long as its transfer.
pub const SLOW_REQUEST: Duration = Duration::from_secs(5);
/// Time for aborting the uploads of a program that ends.
pub const ABORT_TIMEOUT: Duration = Duration::from_secs(5);

// Kinesis.

/// Timeout of one call, including a full read of 10 MiB over a slow line.
pub const KINESIS_CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for which the service may refuse before the caller gets the error.
pub const KINESIS_TIMEOUT: Duration = Duration::from_secs(600);
/// The service accepts five reads per second and shard.
pub const READ_INTERVAL: Duration = Duration::from_millis(200);
/// An idle shard is read once per second.
pub const IDLE_READ_INTERVAL: Duration = Duration::from_secs(1);
/// The shards of the stream are listed this often, and after every end of a shard.
pub const RELIST_INTERVAL: Duration = Duration::from_secs(30);
/// Delay of the next listing after a lease arrived for a shard that the last listing did not allow.
pub const RELIST_SOON: Duration = Duration::from_secs(1);

// Leases.

/// Time between two rounds, at least, however often the ingest loop asks for one.
pub const LEASE_ROUND_MIN: Duration = Duration::from_millis(100);
/// Shortest timeout of a call, however short the failover is.
pub const LEASE_CALL_TIMEOUT_MIN: Duration = Duration::from_secs(2);
/// Time for giving all leases back at the end, at most.
pub const LEASE_CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

// Payloads.

/// Time for the connection to the host of a payload.
pub const PAYLOAD_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time after which a body must have arrived at the lowest accepted rate on average.
pub const PAYLOAD_RATE_GRACE: Duration = Duration::from_secs(5);
/// How long a payload is retried if its object fails, or if its host has never answered.
pub const PAYLOAD_TIMEOUT: Duration = Duration::from_secs(900);
/// Time for which a payload of an unknown host is retried while no host has answered.
pub const PAYLOAD_COLD_TIMEOUT: Duration = Duration::from_secs(3_600);
/// Limit of an outage for a URL without a known expiry.
pub const PAYLOAD_OUTAGE_MAX: Duration = Duration::from_secs(6 * 3_600);

// The ingest loop.

/// Longest time between two turns of the loop.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);
/// Received records are committed after this long without a new record.
pub const IDLE_FLUSH: Duration = Duration::from_secs(5);
/// After a signal, received records are committed within this time or dropped. The next run reads dropped records
/// again.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// The loop counts as stuck after this time without a turn: longer than a file or a call is retried.
pub const SILENCE_MAX: Duration = Duration::from_secs(660);
/// Interval of the lines of embedded metrics: the resolution of CloudWatch's metrics.
pub const EMF_INTERVAL: Duration = Duration::from_secs(60);
/// Longest time of a client, from its connection to its response.
pub const MONITOR_CLIENT_TIMEOUT: Duration = Duration::from_secs(5);

// Vacuum.

/// Retention of a vacuum unless the user gives another one.
pub const VACUUM_RETENTION: Duration = Duration::from_secs(7 * 86_400);
/// Shortest retention of a vacuum. Queries that run at that time may read what was replaced meanwhile.
pub const VACUUM_RETENTION_MIN: Duration = Duration::from_secs(3_600);
/// Age of an unlisted file, at least, if only its age tells that no writer will list it any more.
pub const VACUUM_UNPROVEN_AGE_MIN: Duration = Duration::from_secs(86_400);
/// Age of the commits that a vacuum deletes, unless the table states another one (`delta.logRetentionDuration`). Readers by
/// version are spared at any age, so this is the time that `verify` looks back. Three months let a monthly `verify` check
/// each commit twice or more, and a log of a commit a minute be listed by 130 requests.
pub const LOG_RETENTION: Duration = Duration::from_secs(90 * 86_400);

// Messages about failures.

/// A failure is logged at WARN after this time; failures that pass sooner need no attention.
pub const WARN_AFTER: Duration = Duration::from_secs(2);
/// Interval of repeated warnings.
pub const WARN_INTERVAL: Duration = Duration::from_secs(15);
/// A failure is logged at ERROR after this time, and once per this time from then on: an operator should look.
pub const ERROR_AFTER: Duration = Duration::from_secs(60);

// Programs.

/// Time that a program waits at its end for the tasks of a failed query. These tasks hold the query's files on disk
/// until they end.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// The relations.
const _: () = {
    const fn is_less(a: Duration, b: Duration) -> bool {
        a.as_millis() < b.as_millis()
    }
    // A commit lists files that were written: its writer gives up before the writer of a file does.
    assert!(is_less(COMMIT_TIMEOUT, FILE_TIMEOUT));
    // One request is retried several times within each of these.
    assert!(is_less(STORE_RETRY_TIMEOUT, COMMIT_TIMEOUT));
    assert!(is_less(KINESIS_CALL_TIMEOUT, KINESIS_TIMEOUT));
    // A loop that waits for a file or a call, as long as these are retried, is not stuck.
    assert!(is_less(FILE_TIMEOUT, SILENCE_MAX) && is_less(KINESIS_TIMEOUT, SILENCE_MAX));
    assert!(is_less(HEARTBEAT_INTERVAL, SILENCE_MAX));
    // An idle shard is read several times before its records are committed.
    assert!(is_less(READ_INTERVAL, IDLE_READ_INTERVAL) && is_less(IDLE_READ_INTERVAL, IDLE_FLUSH));
    assert!(is_less(RELIST_SOON, RELIST_INTERVAL));
    assert!(is_less(PAYLOAD_CONNECT_TIMEOUT, PAYLOAD_TIMEOUT) && is_less(PAYLOAD_TIMEOUT, PAYLOAD_COLD_TIMEOUT));
    assert!(is_less(PAYLOAD_COLD_TIMEOUT, PAYLOAD_OUTAGE_MAX));
    assert!(is_less(WARN_AFTER, WARN_INTERVAL) && is_less(WARN_INTERVAL, ERROR_AFTER));
    // A file is written, and its commit is tried, within the shortest retention: with the retries of the last try.
    assert!(
        FILE_TIMEOUT.as_secs() + COMMIT_TIMEOUT.as_secs() + 2 * STORE_RETRY_TIMEOUT.as_secs()
            < VACUUM_RETENTION_MIN.as_secs()
    );
    assert!(is_less(VACUUM_RETENTION_MIN, VACUUM_UNPROVEN_AGE_MIN));
    assert!(is_less(VACUUM_UNPROVEN_AGE_MIN, VACUUM_RETENTION) && is_less(VACUUM_RETENTION, LOG_RETENTION));
    // Docs tell operators to allow 60 s for a stop.
    assert!(STOP_TIMEOUT.as_secs() + LEASE_CLOSE_TIMEOUT.as_secs() < 60);
};
