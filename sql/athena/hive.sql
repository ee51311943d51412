-- Athena over the Parquet files that the manifests list, with partition projection: exact, as of the last
-- `synclake manifest` or `synclake care`. Run one of them first. The tables need no crawler and no MSCK REPAIR. Each query
-- must name its pool (WHERE pool = 'us-east-1_…'), because the projection type of pool is "injected".
CREATE DATABASE IF NOT EXISTS ${database};
CREATE EXTERNAL TABLE IF NOT EXISTS ${db}sync_records (
  identity_pool_id string, identity_id string, dataset_name string, operation string, key string, value string,
  op string, sync_count bigint, last_modified_date timestamp, device_last_modified_date timestamp,
  event_sync_count bigint, event_last_modified_date timestamp, shard_id string, sequence_number string,
  sub_sequence bigint, record_index int, arrived_at timestamp, extra string, source string${copies_column}
)
PARTITIONED BY (pool string, event_date date)
ROW FORMAT SERDE 'org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe'
STORED AS INPUTFORMAT 'org.apache.hadoop.hive.ql.io.SymlinkTextInputFormat'
OUTPUTFORMAT 'org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat'
LOCATION '${lake}/sync_records/_symlink_format_manifest/'
TBLPROPERTIES (
  'projection.enabled' = 'true',
  'projection.pool.type' = 'injected',
  'projection.event_date.type' = 'date',
  'projection.event_date.format' = 'yyyy-MM-dd',
  'projection.event_date.range' = '1970-01-01,NOW+1DAYS',
  'storage.location.template' = '${lake}/sync_records/_symlink_format_manifest/pool=${pool}/event_date=${event_date}'
);
CREATE EXTERNAL TABLE IF NOT EXISTS ${db}state (
  identity_pool_id string, identity_id string, dataset_name string, key string, value string, op string,
  sync_count bigint, last_modified_date timestamp, device_last_modified_date timestamp, is_after_removal boolean,
  shard_id string, sequence_number string, sub_sequence bigint, record_index int, arrived_at timestamp
)
PARTITIONED BY (pool string)
ROW FORMAT SERDE 'org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe'
STORED AS INPUTFORMAT 'org.apache.hadoop.hive.ql.io.SymlinkTextInputFormat'
OUTPUTFORMAT 'org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat'
LOCATION '${lake}/state/_symlink_format_manifest/'
TBLPROPERTIES (
  'projection.enabled' = 'true',
  'projection.pool.type' = 'injected',
  'storage.location.template' = '${lake}/state/_symlink_format_manifest/pool=${pool}'
);
CREATE EXTERNAL TABLE IF NOT EXISTS ${db}daily_state (
  kind string, identity_pool_id string, identity_id string, dataset_name string, key string, value string, op string,
  sync_count bigint, last_modified_date timestamp, device_last_modified_date timestamp, is_after_removal boolean,
  shard_id string, sequence_number string, sub_sequence bigint, record_index int, arrived_at timestamp
)
PARTITIONED BY (extract_date date, pool string)
ROW FORMAT SERDE 'org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe'
STORED AS INPUTFORMAT 'org.apache.hadoop.hive.ql.io.SymlinkTextInputFormat'
OUTPUTFORMAT 'org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat'
LOCATION '${lake}/daily_state/_symlink_format_manifest/'
TBLPROPERTIES (
  'projection.enabled' = 'true',
  'projection.extract_date.type' = 'date',
  'projection.extract_date.format' = 'yyyy-MM-dd',
  'projection.extract_date.range' = '1970-01-01,NOW+1DAYS',
  'projection.pool.type' = 'injected',
  'storage.location.template' = '${lake}/daily_state/_symlink_format_manifest/extract_date=${extract_date}/pool=${pool}'
);
CREATE EXTERNAL TABLE IF NOT EXISTS ${db}quarantine (
  stream string, shard_id string, sequence_number string, sub_sequence bigint, arrived_at timestamp, reason string,
  detail string, raw binary
)
PARTITIONED BY (arrived_date date)
ROW FORMAT SERDE 'org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe'
STORED AS INPUTFORMAT 'org.apache.hadoop.hive.ql.io.SymlinkTextInputFormat'
OUTPUTFORMAT 'org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat'
LOCATION '${lake}/quarantine/_symlink_format_manifest/'
TBLPROPERTIES (
  'projection.enabled' = 'true',
  'projection.arrived_date.type' = 'date',
  'projection.arrived_date.format' = 'yyyy-MM-dd',
  'projection.arrived_date.range' = '1970-01-01,NOW+1DAYS',
  'storage.location.template' = '${lake}/quarantine/_symlink_format_manifest/arrived_date=${arrived_date}'
);
CREATE EXTERNAL TABLE IF NOT EXISTS ${db}gaps (
  stream string, shard_id string, after_sequence_number string, arrived_from timestamp, arrived_until timestamp,
  whole_rest boolean, noted_at timestamp
)
ROW FORMAT SERDE 'org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe'
STORED AS INPUTFORMAT 'org.apache.hadoop.hive.ql.io.SymlinkTextInputFormat'
OUTPUTFORMAT 'org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat'
LOCATION '${lake}/gaps/_symlink_format_manifest/';
