-- Athena (engine version 3) over the Delta tables: exact, because Athena reads the Delta log.
CREATE DATABASE IF NOT EXISTS ${database};
CREATE EXTERNAL TABLE IF NOT EXISTS ${db}sync_records LOCATION '${lake}/sync_records/' TBLPROPERTIES ('table_type' = 'DELTA');
CREATE EXTERNAL TABLE IF NOT EXISTS ${db}state LOCATION '${lake}/state/' TBLPROPERTIES ('table_type' = 'DELTA');
CREATE EXTERNAL TABLE IF NOT EXISTS ${db}daily_state LOCATION '${lake}/daily_state/' TBLPROPERTIES ('table_type' = 'DELTA');
CREATE EXTERNAL TABLE IF NOT EXISTS ${db}quarantine LOCATION '${lake}/quarantine/' TBLPROPERTIES ('table_type' = 'DELTA');
CREATE EXTERNAL TABLE IF NOT EXISTS ${db}gaps LOCATION '${lake}/gaps/' TBLPROPERTIES ('table_type' = 'DELTA');
