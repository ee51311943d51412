-- DuckDB over the plain Parquet files of sync_records, without an extension.
-- NOT EXACT: plain files know nothing of the log. Files that are being written, and those that a crashed worker left until
-- the next one sweeps, are read too. Views collapse their copies; counts of sync_records do not. The tables that are
-- rewritten (state, daily_state, quarantine) must not be read like this: replaced files stay until they are vacuumed.
CREATE OR REPLACE VIEW sync_records AS
SELECT * FROM read_parquet('${lake}/sync_records/*/*/*.parquet', hive_partitioning = true, hive_types = {'pool': VARCHAR, 'event_date': DATE});
