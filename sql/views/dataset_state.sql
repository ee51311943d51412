-- One row a dataset: how many keys are live, when it last changed, and whether it is removed (its last change is the
-- removal of the whole dataset).
SELECT
  d.pool, d.identity_pool_id, d.identity_id, d.dataset_name,
  coalesce(live.live_keys, 0) AS live_keys,
  d.sync_count,
  d.last_modified_date,
  d.place_is_removal AS removed
FROM (
  SELECT pool, identity_pool_id, identity_id, dataset_name, sync_count, last_modified_date,
    key IS NULL AS place_is_removal,
    row_number() OVER (
      PARTITION BY pool, identity_pool_id, identity_id, dataset_name
      -- A removal supersedes what is at the same count and date: it comes first.
      ORDER BY sync_count DESC, last_modified_date DESC, key IS NULL DESC
    ) AS place
  FROM sync_records
  WHERE key IS NOT NULL OR op = 'remove'
) d
LEFT JOIN (
  SELECT pool, identity_pool_id, identity_id, dataset_name, count(*) AS live_keys
  FROM current_state
  GROUP BY pool, identity_pool_id, identity_id, dataset_name
) live
  ON d.pool = live.pool AND d.identity_pool_id = live.identity_pool_id
  AND d.identity_id = live.identity_id AND d.dataset_name = live.dataset_name
WHERE d.place = 1
