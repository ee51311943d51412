-- Every change once. The stream delivers a change any number of times (bulk publishes, retries of the publisher); copies
-- agree in everything but where and when they arrived, and the first to arrive stands for all. `copies` counts them.
SELECT
  pool, event_date, identity_pool_id, identity_id, dataset_name, operation, key, value, op, sync_count,
  last_modified_date, device_last_modified_date, event_sync_count, event_last_modified_date,
  shard_id, sequence_number, sub_sequence, record_index, arrived_at, extra, copies
FROM (
  SELECT *,
    row_number() OVER (
      PARTITION BY pool, event_date, identity_pool_id, identity_id, dataset_name, key, sync_count, op, value
      ORDER BY arrived_at, length(sequence_number), sequence_number, sub_sequence, record_index, shard_id
    ) AS copy,
    count(*) OVER (
      PARTITION BY pool, event_date, identity_pool_id, identity_id, dataset_name, key, sync_count, op, value
    ) AS copies
  FROM sync_records
  -- A row without a key that is no removal marks an event without records: it changed nothing.
  WHERE key IS NOT NULL OR op = 'remove'
)
WHERE copy = 1
