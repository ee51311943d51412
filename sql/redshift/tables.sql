-- Redshift Spectrum: an external schema on a Glue database. To create that database, first run the SQL of
-- `synclake ddl --engine athena-hive` in Athena. Replace the role with your role.
-- NOT EXACT: Spectrum reads the Parquet files without the Delta log. The result includes files that are not committed
-- yet, and files that a crashed worker left behind, until a sweep deletes them. The views collapse the copies of a
-- change. Counts of sync_records include the copies.
CREATE EXTERNAL SCHEMA IF NOT EXISTS ${database}
FROM DATA CATALOG DATABASE '${database}'
IAM_ROLE 'arn:aws:iam::000000000000:role/replace-me';
