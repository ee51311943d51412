-- The rows that `synclake extract` wrote. Each extract_date has three kinds of rows:
-- 'state': the full state at the end of that day.
-- 'change': the net changes of that day.
-- 'correction': the keys that late rows changed since an earlier extract of that day. The row of a key is the row that
-- is live now, or a `remove`.
SELECT
  extract_date, pool, kind, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count,
  last_modified_date, device_last_modified_date
FROM ${db}daily_state
WHERE kind <> 'removed'
