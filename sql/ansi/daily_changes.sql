-- The net change of each key on each day: the last change of the day, and the number of changes on that day. The day is
-- the UTC day of the server date. A row without a key is the removal of a dataset.
SELECT
  pool, event_date, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count,
  last_modified_date, device_last_modified_date, changes_in_day
FROM (
  SELECT
    pool, event_date, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count,
    last_modified_date, device_last_modified_date,
    count(*) OVER (PARTITION BY pool, event_date, identity_id, dataset_name, key) AS changes_in_day,
    row_number() OVER (
      PARTITION BY pool, event_date, identity_id, dataset_name, key
      ORDER BY sync_count DESC, last_modified_date DESC, arrived_at DESC, length(sequence_number) DESC,
        sequence_number DESC, coalesce(sub_sequence, -1) DESC, record_index DESC, shard_id DESC
    ) AS nth
  FROM ${db}changes
) changes_of
WHERE nth = 1
