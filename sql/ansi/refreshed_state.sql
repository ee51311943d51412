-- The live keys as of the last `synclake refresh`: as cheap as reading them. current_state is exact to the newest commit.
SELECT
  pool, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count,
  last_modified_date, device_last_modified_date
FROM ${db}state
WHERE is_after_removal AND op <> 'remove'
