-- Per pool, day of the server date (UTC), identity and dataset: changes without their copies, as changes.sql defines them. The
-- removal of a dataset is one of them.
SELECT pool, event_date, identity_id, dataset_name, count(*) AS changes
FROM changes
GROUP BY pool, event_date, identity_id, dataset_name
