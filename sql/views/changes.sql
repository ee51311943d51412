-- Every change once. The stream delivers a change any number of times (bulk publishes, retries of the publisher). Copies
-- agree in identity, dataset, key, sync_count, op, value and day; the latest, by the order of resolved.sql, stands for
-- all, so that this view and the current state never tell different stories. `copies` counts them.
SELECT
  pool, event_date, identity_pool_id, identity_id, dataset_name, operation, key, value, op, sync_count,
  last_modified_date, device_last_modified_date, event_sync_count, event_last_modified_date,
  shard_id, sequence_number, sub_sequence, record_index, arrived_at, extra, copies
FROM (
  -- Latest last: it has no successor, and its number is how many there are.
  SELECT *,
    row_number() OVER latest_last AS copies,
    lead(sync_count) OVER latest_last AS another
  FROM sync_records
  -- A row without a key that is no removal marks an event without records: it changed nothing.
  WHERE key IS NOT NULL OR op = 'remove'
  WINDOW latest_last AS (
    PARTITION BY pool, event_date, identity_id, dataset_name, key, sync_count, op, value
    ORDER BY last_modified_date, arrived_at, octet_length(sequence_number), sequence_number,
      coalesce(sub_sequence, -1), record_index, shard_id
  )
)
WHERE another IS NULL
