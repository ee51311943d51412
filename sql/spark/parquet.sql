-- Spark without Delta Lake, over the plain Parquet files of sync_records.
-- NOT EXACT: the Delta log is not read. Files that are being written, and files that a crashed worker left until the
-- next sweep, are read too. Views collapse their copies; counts of sync_records do not. Do not read the tables that are
-- rewritten (state, daily_state, quarantine) like this: replaced files stay until they are vacuumed.
CREATE DATABASE IF NOT EXISTS ${database};
CREATE TABLE IF NOT EXISTS ${db}sync_records (
  identity_pool_id STRING, identity_id STRING, dataset_name STRING, operation STRING, key STRING, value STRING,
  op STRING, sync_count BIGINT, last_modified_date TIMESTAMP, device_last_modified_date TIMESTAMP,
  event_sync_count BIGINT, event_last_modified_date TIMESTAMP, shard_id STRING, sequence_number STRING,
  sub_sequence BIGINT, record_index INT, arrived_at TIMESTAMP, extra STRING, pool STRING, event_date DATE
)
USING PARQUET
PARTITIONED BY (pool, event_date)
LOCATION '${lake}/sync_records';
MSCK REPAIR TABLE ${db}sync_records;
