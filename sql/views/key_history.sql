-- Every change of each key, in the order that resolved.sql defines, with the value before it and the time until the next
-- change. `change_number` counts from 1. `next_modified_date` is NULL for the latest change of a key.
-- Sync counts order the changes before server dates do. So `seconds_until_next` is negative where a
-- later change has an earlier server date.
-- The removal of a dataset is no change of a key: it is a row with `key` NULL. So the value before a change is that of the
-- key's previous change, even if the dataset was removed between them.
SELECT
  pool, event_date, identity_pool_id, identity_id, dataset_name, key, change_number, op, value, previous_op,
  previous_value, sync_count, last_modified_date, next_modified_date,
  (CAST(next_modified_date AS bigint) - CAST(last_modified_date AS bigint)) / 1000000.0 AS seconds_until_next,
  arrived_at, copies
FROM (
  SELECT *,
    row_number() OVER earliest_first AS change_number,
    lag(op) OVER earliest_first AS previous_op,
    lag(value) OVER earliest_first AS previous_value,
    lead(last_modified_date) OVER earliest_first AS next_modified_date
  FROM changes
  WINDOW earliest_first AS (
    PARTITION BY pool, identity_id, dataset_name, key
    ORDER BY sync_count, last_modified_date, arrived_at, octet_length(sequence_number), sequence_number,
      coalesce(sub_sequence, -1), record_index, shard_id
  )
)
