-- Each change once, with the number of its copies. The view returns the latest copy.
SELECT
  pool, event_date, identity_pool_id, identity_id, dataset_name, operation, key, value, op, sync_count,
  last_modified_date, device_last_modified_date, event_sync_count, event_last_modified_date,
  shard_id, sequence_number, sub_sequence, record_index, arrived_at, extra, CAST(all_copies AS bigint) AS copies
FROM (
  SELECT
    pool, event_date, identity_pool_id, identity_id, dataset_name, operation, key, value, op, sync_count,
    last_modified_date, device_last_modified_date, event_sync_count, event_last_modified_date,
    shard_id, sequence_number, sub_sequence, record_index, arrived_at, extra,
    ${copies} OVER (
      PARTITION BY pool, event_date, identity_id, dataset_name, key, sync_count, op, value
    ) AS all_copies,
    row_number() OVER (
      PARTITION BY pool, event_date, identity_id, dataset_name, key, sync_count, op, value
      ORDER BY last_modified_date DESC, arrived_at DESC, length(sequence_number) DESC, sequence_number DESC,
        coalesce(sub_sequence, -1) DESC, record_index DESC, shard_id DESC
    ) AS nth
  FROM ${db}sync_records
  WHERE key IS NOT NULL OR op = 'remove'
) copies_of
WHERE nth = 1
