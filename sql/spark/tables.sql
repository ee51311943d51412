-- Spark with Delta Lake (io.delta:delta-spark): exact, because Spark reads the Delta log. Set the session time zone to
-- UTC.
CREATE DATABASE IF NOT EXISTS ${database};
CREATE TABLE IF NOT EXISTS ${db}sync_records USING DELTA LOCATION '${lake}/sync_records';
CREATE TABLE IF NOT EXISTS ${db}state USING DELTA LOCATION '${lake}/state';
CREATE TABLE IF NOT EXISTS ${db}daily_state USING DELTA LOCATION '${lake}/daily_state';
CREATE TABLE IF NOT EXISTS ${db}quarantine USING DELTA LOCATION '${lake}/quarantine';
CREATE TABLE IF NOT EXISTS ${db}gaps USING DELTA LOCATION '${lake}/gaps';
