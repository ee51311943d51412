-- Each change once. The stream can deliver copies of a change, by bulk publishes or by retries of the publisher. Copies
-- agree in pool, day, identity, dataset, key, sync_count, op and value. The view returns the latest copy, in the order
-- that resolved.sql defines, so it agrees with the current state. `copies` is the number of copies. A row of sync_records
-- stands for several if `synclake compact --collapse-duplicates` collapsed them: its column `copies` says how many.
SELECT
  pool, event_date, identity_pool_id, identity_id, dataset_name, operation, key, value, op, sync_count,
  last_modified_date, device_last_modified_date, event_sync_count, event_last_modified_date,
  shard_id, sequence_number, sub_sequence, record_index, arrived_at, extra, all_copies AS copies
FROM (
  -- The order is ascending: the latest copy has no successor, and its sum up to here is the number of copies.
  SELECT *,
    sum(coalesce(copies, 1)) OVER latest_last AS all_copies,
    lead(sync_count) OVER latest_last AS another
  FROM sync_records
  -- Excludes events without records. Such a row has no key and is no removal, and it changes nothing.
  WHERE key IS NOT NULL OR op = 'remove'
  WINDOW latest_last AS (
    PARTITION BY pool, event_date, identity_id, dataset_name, key, sync_count, op, value
    ORDER BY last_modified_date, arrived_at, octet_length(sequence_number), sequence_number,
      coalesce(sub_sequence, -1), record_index, shard_id
    ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
  )
)
WHERE another IS NULL
