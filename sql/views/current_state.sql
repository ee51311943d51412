-- The live keys, each with its latest value. The view key_state selects the latest row of each key, and determines
-- whether a removal of the dataset removed the key.
SELECT
  pool, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count,
  last_modified_date, device_last_modified_date
FROM key_state
WHERE is_after_removal AND op <> 'remove'
