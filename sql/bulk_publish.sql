-- What arrived of a pool since a time, and what of it the lake had before.
WITH changes_of AS (
  SELECT
    identity_id, dataset_name, key,
    min(arrived_at) < timestamptz '${since}' AS was_there,
    max(arrived_at) >= timestamptz '${since}' AS has_arrived,
    count(*) FILTER (WHERE arrived_at >= timestamptz '${since}') AS delivered
  FROM sync_records
  WHERE pool = '${pool}' AND (key IS NOT NULL OR op = 'remove')
  GROUP BY event_date, identity_id, dataset_name, key, sync_count, op, value
),
datasets AS (
  SELECT
    identity_id, dataset_name,
    sum(delivered) AS delivered,
    count(*) FILTER (WHERE has_arrived) AS changes,
    count(*) FILTER (WHERE has_arrived AND was_there) AS copies,
    count(DISTINCT CASE WHEN has_arrived THEN key END) AS keys,
    count(*) FILTER (WHERE was_there) = 0 AS is_new
  FROM changes_of
  GROUP BY identity_id, dataset_name
)
SELECT
  count(*) FILTER (WHERE d.changes > 0) AS datasets,
  count(*) FILTER (WHERE d.changes > 0 AND d.is_new) AS new_datasets,
  coalesce(sum(d.keys), 0) AS keys,
  coalesce(sum(d.changes), 0) AS changes,
  coalesce(sum(d.copies), 0) AS copies,
  coalesce(sum(d.delivered), 0) AS delivered,
  count(*) FILTER (WHERE s.dataset_name IS NOT NULL AND coalesce(d.changes, 0) = 0) AS live_datasets_absent
FROM datasets d
-- A dataset whose rows left by retention is in the state alone.
FULL JOIN (SELECT identity_id, dataset_name FROM dataset_state WHERE pool = '${pool}' AND NOT removed) s
  ON s.identity_id = d.identity_id AND s.dataset_name = d.dataset_name
