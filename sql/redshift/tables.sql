-- Redshift Spectrum: an external schema on the Glue database that sql/athena/hive.sql has made (run `synclake ddl --engine
-- athena-hive` first). Replace the role by yours.
-- NOT EXACT: Spectrum reads the plain Parquet files, not the Delta log. Files that are being written, and files that a
-- crashed worker left until the next sweep, are read too. Views collapse their copies; counts do not.
CREATE EXTERNAL SCHEMA IF NOT EXISTS ${database}
FROM DATA CATALOG DATABASE '${database}'
IAM_ROLE 'arn:aws:iam::000000000000:role/replace-me';
