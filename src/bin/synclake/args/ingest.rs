//! Flags of `ingest`.

use clap::Args;

use super::AwsArgs;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclake ingest --source file:events.ndjson.gz --lake lake
  zcat *.gz | synclake ingest --source file:- --lake lake
  synclake ingest --source s3://firehose/cognito/ --lake s3://bucket/lake
  synclake ingest --source kinesis:cognito --lake s3://bucket/lake --until-idle 1m
  synclake ingest --source kinesis:cognito --lake s3://bucket/lake --lease-table dynamodb:synclake-cognito
  synclake ingest --source kinesis:a --source kinesis:b --lake s3://bucket/lake --lease-table 'dynamodb:leases-{stream}'

Files are identified by content: a file is not read twice, and a file that has grown is continued.
Objects of a bucket are identified by ETag and size, and read in the order of their keys; their events
need no line breaks between them. Run again for objects that arrive later, or give --follow.
Workers with the same --lease-table share the shards or objects, and replace workers that die.
Several streams share memory and care; one that fails is tried again while the others go on.
On SIGTERM or SIGINT the program commits the records it has read, returns its leases, and exits with 0.")]
pub(crate) struct IngestArgs {
    /// kinesis:<stream>, file:<path> (NDJSON, .gz, .zst, or a folder of them), file:- for standard input, or
    /// s3://<bucket>/<prefix>/ (objects of the same formats). Repeat the flag for several streams.
    #[arg(long, env = "SYNCLAKE_SOURCE", value_name = "SOURCE")]
    pub source: Vec<String>,
    /// Lake: s3://bucket/prefix, or a folder. Created if missing.
    #[arg(long, env = "SYNCLAKE_LAKE", value_name = "LAKE")]
    pub lake: Option<String>,
    /// Where to start a stream that the lake does not know: trim-horizon (default), latest, or a time such as
    /// 2026-11-20T00:00:00Z.
    #[arg(long, env = "SYNCLAKE_FROM", value_name = "WHERE")]
    pub from: Option<String>,
    /// Stop once every shard has had nothing to read for this long.
    #[arg(long, env = "SYNCLAKE_UNTIL_IDLE", value_name = "DURATION")]
    pub until_idle: Option<String>,
    /// Objects of a bucket: go on with objects that arrive later, until a signal.
    #[arg(long, env = "SYNCLAKE_FOLLOW")]
    pub follow: bool,
    /// Limit the buffers to this many bytes [default: 256MiB].
    #[arg(long, env = "SYNCLAKE_MEMORY", value_name = "SIZE")]
    pub memory: Option<String>,
    /// Commit after this many bytes of records [default: 2GiB].
    #[arg(long, env = "SYNCLAKE_FLUSH_BYTES", value_name = "SIZE")]
    pub flush_bytes: Option<String>,
    /// Commit after this long [default: 60s].
    #[arg(long, alias = "flush-age", env = "SYNCLAKE_FLUSH_INTERVAL", value_name = "DURATION")]
    pub flush_interval: Option<String>,
    /// Also refresh the maintained state at this interval, in the background; see `synclake refresh`.
    #[arg(long, env = "SYNCLAKE_REFRESH_EVERY", value_name = "DURATION")]
    pub refresh_every: Option<String>,
    /// Care for the lake in the background, one worker of a fleet at a time: light merges small files; full also
    /// refreshes the state, lets rows leave by the policy, and deletes old files; see `synclake care` [default: full].
    #[arg(long, env = "SYNCLAKE_CARE", value_name = "off|light|full")]
    pub care: Option<String>,
    /// Longest time from one round of care to the next of a running ingest; one also comes after 64 versions of the log
    /// [default: 1h].
    #[arg(long, env = "SYNCLAKE_CARE_EVERY", value_name = "DURATION")]
    pub care_every: Option<String>,
    /// Share the shards of a stream, or the objects of a bucket, with other workers: dynamodb:<table>, created if missing.
    #[arg(long, env = "SYNCLAKE_LEASE_TABLE", value_name = "TABLE", help_heading = "Fleet")]
    pub lease_table: Option<String>,
    /// Treat a lease as expired after this long without a renewal [default: 10s].
    #[arg(long, env = "SYNCLAKE_LEASE_FAILOVER", value_name = "DURATION", help_heading = "Fleet")]
    pub lease_failover: Option<String>,
    /// Name of this worker in the lease table [default: derived from the host name].
    #[arg(long, env = "SYNCLAKE_WORKER_ID", value_name = "NAME", help_heading = "Fleet")]
    pub worker_id: Option<String>,
    /// Start a stream that the lake does not know at the checkpoints of a Kinesis Client Library application: the name
    /// of its DynamoDB table, which is only read.
    #[arg(long, value_name = "TABLE", help_heading = "Fleet")]
    pub import_kcl_checkpoints: Option<String>,
    /// Also fetch oversize payloads from these hosts, besides S3: host, host:port, http://host:port, *.suffix.
    #[arg(long, env = "SYNCLAKE_PAYLOAD_HOSTS", value_name = "HOST", value_delimiter = ',', help_heading = "Payloads")]
    pub payload_hosts: Option<Vec<String>>,
    /// Limit the size of a payload, decompressed [default: 16MiB].
    #[arg(long, env = "SYNCLAKE_PAYLOAD_BYTES", value_name = "SIZE", help_heading = "Payloads")]
    pub payload_bytes: Option<String>,
    /// Retry a payload for this long, and never after its URL expires. While its host is unreachable, retry until the
    /// URL expires [default: 15m; on 5xx responses, until the URL expires].
    #[arg(
        long,
        alias = "payload-patience",
        env = "SYNCLAKE_PAYLOAD_TIMEOUT",
        value_name = "DURATION",
        help_heading = "Payloads"
    )]
    pub payload_timeout: Option<String>,
    /// Allow payload hosts with private addresses, such as an S3 endpoint in a VPC.
    #[arg(long, env = "SYNCLAKE_PAYLOAD_PRIVATE_ADDRESSES", help_heading = "Payloads")]
    pub payload_private_addresses: bool,
    /// Serve /metrics, /healthz and /readyz at this address, such as 127.0.0.1:9464; `emf` prints CloudWatch's embedded
    /// metrics to stderr once a minute. Both: 127.0.0.1:9464,emf
    #[arg(long, env = "SYNCLAKE_METRICS", value_name = "ADDRESS", help_heading = "Monitoring")]
    pub metrics: Option<String>,
    #[command(flatten)]
    pub aws: AwsArgs,
}
