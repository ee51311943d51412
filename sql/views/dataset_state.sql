-- One row per dataset: the number of live keys, the last change, and whether the dataset is removed. A dataset is
-- removed if it has a removal, and no change of a key comes after the latest removal.
SELECT
  pool, identity_pool_id, identity_id, dataset_name,
  count(*) FILTER (WHERE is_after_removal AND op <> 'remove') AS live_keys,
  max(sync_count) AS sync_count,
  first_value(last_modified_date ORDER BY sync_count DESC, last_modified_date DESC) AS last_modified_date,
  (bool_or(key IS NULL) AND NOT bool_or(is_after_removal)) AS removed
FROM key_state
GROUP BY pool, identity_pool_id, identity_id, dataset_name
