-- DuckDB with its extension delta: exact, because the extension reads the Delta log.
INSTALL delta;
LOAD delta;
CREATE OR REPLACE VIEW sync_records AS SELECT * FROM delta_scan('${lake}/sync_records');
CREATE OR REPLACE VIEW state AS SELECT * FROM delta_scan('${lake}/state');
CREATE OR REPLACE VIEW daily_state AS SELECT * FROM delta_scan('${lake}/daily_state');
CREATE OR REPLACE VIEW quarantine AS SELECT * FROM delta_scan('${lake}/quarantine');
CREATE OR REPLACE VIEW gaps AS SELECT * FROM delta_scan('${lake}/gaps');
