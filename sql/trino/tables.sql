-- Trino with its Delta Lake connector: exact, because the connector reads the Delta log. The catalog must have the name
-- delta and the setting delta.register-table-procedure.enabled=true; for a lake in a folder also fs.native-local.enabled=true
-- and local.location=/. Run the CALL statements once; the others can be run again. Trino shows times in milliseconds.
CREATE SCHEMA IF NOT EXISTS delta.${database};
CALL delta.system.register_table(schema_name => '${database}', table_name => 'sync_records', table_location => '${lake}/sync_records');
CALL delta.system.register_table(schema_name => '${database}', table_name => 'state', table_location => '${lake}/state');
CALL delta.system.register_table(schema_name => '${database}', table_name => 'daily_state', table_location => '${lake}/daily_state');
CALL delta.system.register_table(schema_name => '${database}', table_name => 'quarantine', table_location => '${lake}/quarantine');
CALL delta.system.register_table(schema_name => '${database}', table_name => 'gaps', table_location => '${lake}/gaps');
