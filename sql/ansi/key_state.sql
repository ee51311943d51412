-- The latest change of each key, including removed keys, and the latest removal of each dataset (a row without a key).
-- The view reads all rows, so it is exact for the version that is read. The comment on current_state defines the order
-- of rows and live keys.
SELECT
  l.pool, l.identity_pool_id, l.identity_id, l.dataset_name, l.key, l.value, l.op, l.sync_count,
  l.last_modified_date, l.device_last_modified_date,
  (l.key IS NOT NULL AND (
    l.removal_count IS NULL
    OR l.sync_count > l.removal_count
    OR (l.sync_count = l.removal_count AND l.last_modified_date > l.removal_date)
  )) AS is_after_removal,
  l.shard_id, l.sequence_number, l.sub_sequence, l.record_index, l.arrived_at
FROM (
  SELECT
    pool, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count,
    last_modified_date, device_last_modified_date, shard_id, sequence_number, sub_sequence, record_index, arrived_at,
    row_number() OVER (
      PARTITION BY pool, identity_id, dataset_name, key
      ORDER BY sync_count DESC, last_modified_date DESC, arrived_at DESC,
        length(sequence_number) DESC, sequence_number DESC, coalesce(sub_sequence, -1) DESC, record_index DESC,
        shard_id DESC
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
  -- Excludes events without records. Such a row has no key and is no removal, and it changes nothing.
  WHERE key IS NOT NULL OR op = 'remove'
) l
WHERE l.nth = 1
