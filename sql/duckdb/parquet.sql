-- DuckDB over the plain Parquet files of sync_records, without an extension.
-- NOT EXACT: the Delta log is not read. Files that are being written, and files that a crashed worker left until the
-- next sweep, are read too. Views collapse their copies; counts of sync_records do not. Do not read the tables that are
-- rewritten (state, daily_state, quarantine) like this: replaced files stay until they are vacuumed.
CREATE OR REPLACE VIEW sync_records AS
SELECT * FROM read_parquet('${lake}/sync_records/*/*/*.parquet', hive_partitioning = true, hive_types = {'pool': VARCHAR, 'event_date': DATE});
