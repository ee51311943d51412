-- Per pool, day of the server date (UTC) and identity: datasets with changes, and changes without their copies.
SELECT pool, event_date, identity_id, count(*) AS datasets, CAST(sum(changes) AS bigint) AS changes
FROM daily_datasets
GROUP BY pool, event_date, identity_id
