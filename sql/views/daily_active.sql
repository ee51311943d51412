-- Per pool and day of the server date (UTC): identities that changed something, their datasets (a dataset counts for each
-- identity that has it), changes without their copies, and identities whose first change is of this day. Rows that left by
-- retention are not there: then an identity is new on its first day that is left.
SELECT
  pool, event_date,
  count(*) AS identities,
  CAST(sum(datasets) AS bigint) AS datasets,
  CAST(sum(changes) AS bigint) AS changes,
  count(*) FILTER (WHERE event_date = first_date) AS new_identities
FROM (
  SELECT *, min(event_date) OVER (PARTITION BY pool, identity_id) AS first_date FROM daily_identities
)
GROUP BY pool, event_date
