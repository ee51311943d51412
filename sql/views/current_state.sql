-- The live keys, each with its latest value.
--
-- Latest: highest sync_count, then latest server date, then latest arrival (sequence numbers compare as integers: by
-- length, then by digits). Never the device's clock. A key is live if its latest row is no `remove` and no removal of
-- its dataset (a row without a key) is at or after it.
SELECT
  r.pool, r.identity_pool_id, r.identity_id, r.dataset_name, r.key, r.value, r.op, r.sync_count,
  r.last_modified_date, r.device_last_modified_date
FROM (
  SELECT *,
    row_number() OVER (
      PARTITION BY pool, identity_pool_id, identity_id, dataset_name, key
      ORDER BY sync_count DESC, last_modified_date DESC, length(sequence_number) DESC, sequence_number DESC,
        coalesce(sub_sequence, -1) DESC, record_index DESC, shard_id DESC
    ) AS place
  FROM sync_records
  WHERE key IS NOT NULL
) r
LEFT JOIN (
  SELECT pool, identity_pool_id, identity_id, dataset_name, sync_count, last_modified_date
  FROM (
    SELECT *,
      row_number() OVER (
        PARTITION BY pool, identity_pool_id, identity_id, dataset_name
        ORDER BY sync_count DESC, last_modified_date DESC
      ) AS place
    FROM sync_records
    WHERE key IS NULL AND op = 'remove'
  )
  WHERE place = 1
) removal
  ON r.pool = removal.pool AND r.identity_pool_id = removal.identity_pool_id
  AND r.identity_id = removal.identity_id AND r.dataset_name = removal.dataset_name
WHERE r.place = 1
  AND r.op <> 'remove'
  AND (
    removal.sync_count IS NULL
    OR r.sync_count > removal.sync_count
    OR (r.sync_count = removal.sync_count AND r.last_modified_date > removal.last_modified_date)
  )
