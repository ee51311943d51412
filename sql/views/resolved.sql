-- Every change, with two flags: is_latest marks the latest row of a key, and is_after_removal marks a row after every
-- removal of its dataset. The other views in this folder use the same order.
--
-- Order of changes: sync_count, then server date, then arrival time by the clock of the stream, then sequence number,
-- then position inside the record. Sequence numbers compare as integers, by length and then by digits. They follow the
-- arrival time, because sequence numbers of different shards are not comparable. The order never uses the clock of a
-- device.
-- A key is live if its latest row is no `remove`, and no removal of its dataset is at or after that row. A removal of a
-- dataset is a row without a key.
--
-- One sort suffices, and the window functions hold only the previous row. Removals of a dataset sort before its keys,
-- and the latest removal comes first. So the first row of a dataset holds the latest removal, if there is one. The
-- first row of a key is its latest row. The window uses `pool`, the pool as a partition value, because it identifies
-- the same pool as identity_pool_id.
SELECT
  pool, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count,
  last_modified_date, device_last_modified_date,
  (key IS NULL) AS is_dataset_removal,
  (key IS NOT NULL AND (key IS DISTINCT FROM previous_key)) AS is_latest,
  (key IS NOT NULL AND (
    removal_count IS NULL
    OR sync_count > removal_count
    OR (sync_count = removal_count AND last_modified_date > removal_date)
  )) AS is_after_removal
FROM (
  SELECT
    pool, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count,
    last_modified_date, device_last_modified_date,
    lag(key) OVER latest_first AS previous_key,
    first_value(CASE WHEN key IS NULL THEN sync_count END) OVER latest_first AS removal_count,
    first_value(CASE WHEN key IS NULL THEN last_modified_date END) OVER latest_first AS removal_date
  FROM sync_records
  -- Excludes events without records. Such a row has no key and is no removal, and it changes nothing.
  WHERE key IS NOT NULL OR op = 'remove'
  WINDOW latest_first AS (
    PARTITION BY pool, identity_id, dataset_name
    ORDER BY key ASC NULLS FIRST, sync_count DESC, last_modified_date DESC,
      arrived_at DESC, octet_length(sequence_number) DESC, sequence_number DESC,
      coalesce(sub_sequence, -1) DESC, record_index DESC, shard_id DESC
    ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
  )
)
