-- The live keys as of the last `synclake refresh`. The view reads only the table state, so it is cheaper than
-- current_state. The view current_state is exact for the newest commit.
SELECT
  pool, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count,
  last_modified_date, device_last_modified_date
FROM ${db}state
WHERE is_after_removal AND op <> 'remove'
