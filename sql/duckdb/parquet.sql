-- DuckDB over the plain Parquet files of sync_records, without an extension.
-- NOT EXACT: DuckDB reads the Parquet files without the Delta log. The result includes files that are not committed
-- yet, and files that a crashed worker left behind, until a sweep deletes them. The views collapse the copies of a
-- change. Counts of sync_records include the copies.
-- Do not read state, daily_state or quarantine in this way. Their replaced files stay until a vacuum deletes them.
CREATE OR REPLACE VIEW sync_records AS
SELECT * FROM read_parquet('${lake}/sync_records/*/*/*.parquet', hive_partitioning = true, hive_types = {'pool': VARCHAR, 'event_date': DATE});
