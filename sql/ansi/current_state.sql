-- The live keys, each with its latest value. The view reads all rows, so it is exact for the version that is read.
-- Order of rows: sync_count, then server date, then arrival time, then sequence number as an integer. The order never
-- uses the clock of a device.
-- A key is live if its latest row is no `remove`, and no removal of its dataset is at or after that row.
SELECT
  l.pool, l.identity_pool_id, l.identity_id, l.dataset_name, l.key, l.value, l.op, l.sync_count,
  l.last_modified_date, l.device_last_modified_date
FROM (
  SELECT
    pool, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count,
    last_modified_date, device_last_modified_date,
    row_number() OVER (
      PARTITION BY pool, identity_id, dataset_name, key
      ORDER BY sync_count DESC, last_modified_date DESC, arrived_at DESC,
        length(sequence_number) DESC, sequence_number DESC, coalesce(sub_sequence, -1) DESC, record_index DESC,
        shard_id DESC
    ) AS nth
  FROM ${db}sync_records
  WHERE key IS NOT NULL
) l
LEFT JOIN (
  SELECT pool, identity_id, dataset_name, sync_count, last_modified_date
  FROM (
    SELECT
      pool, identity_id, dataset_name, sync_count, last_modified_date,
      row_number() OVER (
        PARTITION BY pool, identity_id, dataset_name ORDER BY sync_count DESC, last_modified_date DESC
      ) AS nth
    FROM ${db}sync_records
    WHERE key IS NULL AND op = 'remove'
  ) removals
  WHERE nth = 1
) r
  ON r.pool = l.pool AND r.identity_id = l.identity_id AND r.dataset_name = l.dataset_name
WHERE l.nth = 1 AND l.op <> 'remove' AND (
  r.sync_count IS NULL
  OR l.sync_count > r.sync_count
  OR (l.sync_count = r.sync_count AND l.last_modified_date > r.last_modified_date)
)
