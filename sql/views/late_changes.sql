-- Changes that arrived on a later day than the server dated them: the UTC day of `arrived_at` is after `event_date`, the UTC day
-- of `last_modified_date`. The columns are those of sync_records. Of the copies of a change, as changes.sql defines them, the
-- first to arrive counts: a bulk publish does not make a change late. `arrived_at` is its arrival, `days_late` the difference of
-- the two days in days, `late_copies` the number of copies. If `synclake compact --collapse-duplicates` collapsed copies, only
-- the arrival of the copy that stayed is known.
-- `arrived_at` of a file is the time at which it was read, so changes from old files are late.
SELECT
  pool, event_date, identity_pool_id, identity_id, dataset_name, key, op, value, sync_count, last_modified_date,
  arrived_at, arrived_date - event_date AS days_late, late_copies
FROM (
  SELECT
    pool, event_date, identity_pool_id, identity_id, dataset_name, key, op, value, sync_count,
    min(last_modified_date) AS last_modified_date,
    min(arrived_at) AS arrived_at,
    CAST(min(arrived_at) AS date) AS arrived_date,
    CAST(sum(coalesce(copies, 1)) AS bigint) AS late_copies
  FROM sync_records
  -- Excludes events without records. Such a row has no key and is no removal, and it changes nothing.
  WHERE (key IS NOT NULL OR op = 'remove') AND CAST(arrived_at AS date) > event_date
  GROUP BY pool, event_date, identity_pool_id, identity_id, dataset_name, key, op, value, sync_count
) late
-- Few changes of a stream are late. So the aggregate and the join hold little, and the other rows only pass by.
WHERE NOT EXISTS (
  SELECT 1 FROM sync_records in_time
  WHERE CAST(in_time.arrived_at AS date) <= in_time.event_date
    AND in_time.pool = late.pool AND in_time.event_date = late.event_date AND in_time.identity_id = late.identity_id
    AND in_time.dataset_name = late.dataset_name AND coalesce(in_time.key, '') = coalesce(late.key, '')
    AND in_time.op = late.op AND (in_time.value IS NOT DISTINCT FROM late.value) AND in_time.sync_count = late.sync_count
)
