-- Athena over the plain Parquet files of sync_records, with partition projection. The table needs no crawler and no
-- MSCK REPAIR. Each query must name its pool (WHERE pool = 'us-east-1_…'), because the projection type of pool is
-- "injected".
-- NOT EXACT: Athena reads the Parquet files without the Delta log. The result includes files that are not committed
-- yet, and files that a crashed worker left behind, until a sweep deletes them. The views collapse the copies of a
-- change. Counts of sync_records include the copies.
-- Do not read state, daily_state or quarantine in this way. Their replaced files stay until a vacuum deletes them.
CREATE DATABASE IF NOT EXISTS ${database};
CREATE EXTERNAL TABLE IF NOT EXISTS ${db}sync_records (
  identity_pool_id string, identity_id string, dataset_name string, operation string, key string, value string,
  op string, sync_count bigint, last_modified_date timestamp, device_last_modified_date timestamp,
  event_sync_count bigint, event_last_modified_date timestamp, shard_id string, sequence_number string,
  sub_sequence bigint, record_index int, arrived_at timestamp, extra string
)
PARTITIONED BY (pool string, event_date date)
STORED AS PARQUET
LOCATION '${lake}/sync_records/'
TBLPROPERTIES (
  'projection.enabled' = 'true',
  'projection.pool.type' = 'injected',
  'projection.event_date.type' = 'date',
  'projection.event_date.format' = 'yyyy-MM-dd',
  'projection.event_date.range' = '1970-01-01,NOW+1DAYS',
  'storage.location.template' = '${lake}/sync_records/pool=${pool}/event_date=${event_date}'
);
