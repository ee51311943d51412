-- One row a dataset: how many keys are live, when it last changed, and whether it is removed (there is a removal of the
-- whole dataset, and nothing after it).
SELECT
  pool, identity_pool_id, identity_id, dataset_name,
  count(*) FILTER (WHERE is_after_removal AND op <> 'remove') AS live_keys,
  max(sync_count) AS sync_count,
  first_value(last_modified_date ORDER BY sync_count DESC, last_modified_date DESC) AS last_modified_date,
  (bool_or(key IS NULL) AND NOT bool_or(is_after_removal)) AS removed
FROM key_state
GROUP BY pool, identity_pool_id, identity_id, dataset_name
