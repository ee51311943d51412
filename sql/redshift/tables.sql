-- Redshift Spectrum over the Parquet files that the manifests list: exact, as of the last `synclake manifest` or
-- `synclake care`. Run one of them first, replace the role with yours, and choose a database of its own: Spectrum does not
-- know the partition projection of `--engine athena-hive`.
-- Spectrum sees only partitions that the catalogue has. In Athena, after each new date or pool:
-- MSCK REPAIR TABLE sync_records (and state, daily_state, quarantine).
CREATE EXTERNAL SCHEMA IF NOT EXISTS ${database}
FROM DATA CATALOG DATABASE '${database}'
IAM_ROLE 'arn:aws:iam::000000000000:role/replace-me'
CREATE EXTERNAL DATABASE IF NOT EXISTS;
CREATE EXTERNAL TABLE ${database}.sync_records (
  identity_pool_id varchar(65535), identity_id varchar(65535), dataset_name varchar(65535), operation varchar(65535), key varchar(65535), value varchar(65535),
  op varchar(65535), sync_count bigint, last_modified_date timestamp, device_last_modified_date timestamp,
  event_sync_count bigint, event_last_modified_date timestamp, shard_id varchar(65535), sequence_number varchar(65535),
  sub_sequence bigint, record_index int, arrived_at timestamp, extra varchar(65535),
  source varchar(256)${copies_column}
)
PARTITIONED BY (pool varchar(256), event_date date)
ROW FORMAT SERDE 'org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe'
STORED AS INPUTFORMAT 'org.apache.hadoop.hive.ql.io.SymlinkTextInputFormat'
OUTPUTFORMAT 'org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat'
LOCATION '${lake}/sync_records/_symlink_format_manifest/';
CREATE EXTERNAL TABLE ${database}.state (
  identity_pool_id varchar(65535), identity_id varchar(65535), dataset_name varchar(65535), key varchar(65535), value varchar(65535), op varchar(65535),
  sync_count bigint, last_modified_date timestamp, device_last_modified_date timestamp, is_after_removal boolean,
  shard_id varchar(65535), sequence_number varchar(65535), sub_sequence bigint, record_index int, arrived_at timestamp
)
PARTITIONED BY (pool varchar(256))
ROW FORMAT SERDE 'org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe'
STORED AS INPUTFORMAT 'org.apache.hadoop.hive.ql.io.SymlinkTextInputFormat'
OUTPUTFORMAT 'org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat'
LOCATION '${lake}/state/_symlink_format_manifest/';
CREATE EXTERNAL TABLE ${database}.daily_state (
  kind varchar(65535), identity_pool_id varchar(65535), identity_id varchar(65535), dataset_name varchar(65535), key varchar(65535), value varchar(65535), op varchar(65535),
  sync_count bigint, last_modified_date timestamp, device_last_modified_date timestamp, is_after_removal boolean,
  shard_id varchar(65535), sequence_number varchar(65535), sub_sequence bigint, record_index int, arrived_at timestamp
)
PARTITIONED BY (extract_date date, pool varchar(256))
ROW FORMAT SERDE 'org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe'
STORED AS INPUTFORMAT 'org.apache.hadoop.hive.ql.io.SymlinkTextInputFormat'
OUTPUTFORMAT 'org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat'
LOCATION '${lake}/daily_state/_symlink_format_manifest/';
CREATE EXTERNAL TABLE ${database}.quarantine (
  stream varchar(65535), shard_id varchar(65535), sequence_number varchar(65535), sub_sequence bigint, arrived_at timestamp, reason varchar(65535),
  detail varchar(65535), raw varbyte(1024000)
)
PARTITIONED BY (arrived_date date)
ROW FORMAT SERDE 'org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe'
STORED AS INPUTFORMAT 'org.apache.hadoop.hive.ql.io.SymlinkTextInputFormat'
OUTPUTFORMAT 'org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat'
LOCATION '${lake}/quarantine/_symlink_format_manifest/';
CREATE EXTERNAL TABLE ${database}.gaps (
  stream varchar(65535), shard_id varchar(65535), after_sequence_number varchar(65535), arrived_from timestamp, arrived_until timestamp,
  whole_rest boolean, noted_at timestamp
)
ROW FORMAT SERDE 'org.apache.hadoop.hive.ql.io.parquet.serde.ParquetHiveSerDe'
STORED AS INPUTFORMAT 'org.apache.hadoop.hive.ql.io.SymlinkTextInputFormat'
OUTPUTFORMAT 'org.apache.hadoop.hive.ql.io.HiveIgnoreKeyTextOutputFormat'
LOCATION '${lake}/gaps/_symlink_format_manifest/';
