-- The live keys, each with its latest value. What latest and live mean is said in resolved.sql.
SELECT
  pool, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count,
  last_modified_date, device_last_modified_date
FROM resolved
WHERE is_latest AND is_after_removal AND op <> 'remove'
