-- One row per dataset: the number of live keys, the last change, and whether the dataset is removed.
SELECT
  c.pool, c.identity_pool_id, c.identity_id, c.dataset_name,
  coalesce(max(s.live_keys), 0) AS live_keys,
  max(c.sync_count) AS sync_count,
  max(CASE WHEN c.nth = 1 THEN c.last_modified_date END) AS last_modified_date,
  (max(CASE WHEN c.key IS NULL THEN 1 ELSE 0 END) = 1 AND max(CASE WHEN c.key IS NOT NULL AND (
    c.sync_count > c.removal_count OR (c.sync_count = c.removal_count AND c.last_modified_date > c.removal_date)
  ) THEN 1 ELSE 0 END) = 0) AS removed
FROM (
  SELECT
    pool, identity_pool_id, identity_id, dataset_name, key, sync_count, last_modified_date,
    row_number() OVER (
      PARTITION BY pool, identity_id, dataset_name ORDER BY sync_count DESC, last_modified_date DESC
    ) AS nth,
    first_value(CASE WHEN key IS NULL THEN sync_count END) OVER (
      PARTITION BY pool, identity_id, dataset_name
      ORDER BY CASE WHEN key IS NULL THEN 0 ELSE 1 END, sync_count DESC, last_modified_date DESC
      ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
    ) AS removal_count,
    first_value(CASE WHEN key IS NULL THEN last_modified_date END) OVER (
      PARTITION BY pool, identity_id, dataset_name
      ORDER BY CASE WHEN key IS NULL THEN 0 ELSE 1 END, sync_count DESC, last_modified_date DESC
      ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
    ) AS removal_date
  FROM ${db}sync_records
  WHERE key IS NOT NULL OR op = 'remove'
) c
LEFT JOIN (
  SELECT pool, identity_id, dataset_name, count(*) AS live_keys
  FROM ${db}current_state
  GROUP BY pool, identity_id, dataset_name
) s
  ON s.pool = c.pool AND s.identity_id = c.identity_id AND s.dataset_name = c.dataset_name
GROUP BY c.pool, c.identity_pool_id, c.identity_id, c.dataset_name
