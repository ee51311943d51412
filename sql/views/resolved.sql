-- Every change with its fate: the one place that says which row of a key is the latest, and whether it is live.
--
-- Latest: highest sync_count, then latest server date, then latest arrival (the stream's clock, then sequence
-- numbers as integers: by length, then by digits; alone they mean nothing across shards). Never the device's clock. A key is live if its latest row is no `remove` and no removal of
-- its dataset (a row without a key) is at or after it.
--
-- One sort does it all, and nothing is held but the row before: removals of the dataset sort before its keys, the
-- latest of them first, so the first row of a dataset tells the removal; and the first row of a key is its latest.
-- (A pool's partition value stands for its id: they are the same thing in two spellings.)
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
  -- A row without a key that is no removal marks an event without records: it changed nothing.
  WHERE key IS NOT NULL OR op = 'remove'
  WINDOW latest_first AS (
    PARTITION BY pool, identity_id, dataset_name
    ORDER BY key ASC NULLS FIRST, sync_count DESC, last_modified_date DESC,
      arrived_at DESC, octet_length(sequence_number) DESC, sequence_number DESC,
      coalesce(sub_sequence, -1) DESC, record_index DESC, shard_id DESC
    ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
  )
)
