-- What `synclake extract` wrote: for each extract_date the full state at the end of that day (kind = 'state'), the day's
-- net changes (kind = 'change'), and what late rows made different from an earlier extract of the day (kind = 'correction':
-- by key, the row that is live now, or a remove).
SELECT
  extract_date, pool, kind, identity_pool_id, identity_id, dataset_name, key, value, op, sync_count,
  last_modified_date, device_last_modified_date
FROM daily_state
-- Removed keys are kept for the next day's extract alone.
WHERE kind <> 'removed'
