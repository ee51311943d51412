-- DuckDB over the Parquet files of sync_records that the manifests list, without an extension: exact, as of the last
-- `synclake manifest` or `synclake care`. Run one of them first. Run these statements in each session, because the view
-- reads the list of files from a variable. DuckDB takes every folder name=value of a path for a column, so columns are named.
SET VARIABLE sync_records_files = (
  SELECT list(file) FROM (
    SELECT unnest(string_split(content, chr(10))) AS file
    FROM read_text('${lake}/sync_records/_symlink_format_manifest/*/*/manifest')
  ) WHERE file <> ''
);
CREATE OR REPLACE VIEW sync_records AS
SELECT COLUMNS('^(pool|event_date|identity_pool_id|identity_id|dataset_name|operation|key|value|op|sync_count|last_modified_date|device_last_modified_date|event_sync_count|event_last_modified_date|shard_id|sequence_number|sub_sequence|record_index|arrived_at|extra|source|copies)$')
FROM read_parquet(getvariable('sync_records_files'), hive_partitioning = true, union_by_name = true, hive_types = {'pool': VARCHAR, 'event_date': DATE})${copies_row};
