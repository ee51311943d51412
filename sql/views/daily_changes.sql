-- The net change of each key on each day: the last change of the day, and the number of changes on that day. The day is
-- the UTC day of the server date. A row without a key is the removal of a dataset.
SELECT
  pool, event_date, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count,
  last_modified_date, device_last_modified_date, changes_in_day
FROM (
  -- The order is ascending, as resolved.sql defines it: the latest row has no successor, and its row number is the
  -- count.
  SELECT *,
    row_number() OVER latest_last AS changes_in_day,
    lead(sync_count) OVER latest_last AS another
  FROM changes
  WINDOW latest_last AS (
    PARTITION BY pool, event_date, identity_id, dataset_name, key
    ORDER BY sync_count, last_modified_date, arrived_at, octet_length(sequence_number), sequence_number,
      coalesce(sub_sequence, -1), record_index, shard_id
  )
)
WHERE another IS NULL
