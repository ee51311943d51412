-- Spark without Delta Lake, over the plain Parquet files of sync_records.
-- NOT EXACT: Spark reads the Parquet files without the Delta log, and its Hive reader cannot read the timestamps of files
-- that manifests list. The result includes files that are not committed yet, files that a crashed worker left behind, and,
-- until a vacuum, files that a compaction replaced. The views collapse the copies of a change. Counts of sync_records
-- include the copies. Use Delta Lake (`--engine spark`) if you can.
-- Do not read state, daily_state or quarantine in this way. Their replaced files stay until a vacuum deletes them.
CREATE DATABASE IF NOT EXISTS ${database};
CREATE TABLE IF NOT EXISTS ${db}sync_records (
  identity_pool_id STRING, identity_id STRING, dataset_name STRING, operation STRING, key STRING, value STRING,
  op STRING, sync_count BIGINT, last_modified_date TIMESTAMP, device_last_modified_date TIMESTAMP,
  event_sync_count BIGINT, event_last_modified_date TIMESTAMP, shard_id STRING, sequence_number STRING,
  sub_sequence BIGINT, record_index INT, arrived_at TIMESTAMP, extra STRING, source STRING${copies_column}, pool STRING, event_date DATE
)
USING PARQUET
PARTITIONED BY (pool, event_date)
LOCATION '${lake}/sync_records';
MSCK REPAIR TABLE ${db}sync_records;
