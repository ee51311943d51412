-- The live keys, each with its latest value. key_state tells what latest means, and which keys a removal of their dataset
-- has taken.
SELECT
  pool, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count,
  last_modified_date, device_last_modified_date
FROM key_state
WHERE is_after_removal AND op <> 'remove'
