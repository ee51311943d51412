-- The predecessor's table under its own column names (Redshift folds names to lower case), so that its queries run
-- unchanged. Raw: copies of a change are here as often as they arrived.
SELECT
  identity_pool_id AS identitypoolid,
  identity_id AS identityid,
  dataset_name AS datasetname,
  operation,
  key,
  value,
  op,
  sync_count AS synccount,
  device_last_modified_date AS devicelastmodifieddate,
  last_modified_date AS lastmodifieddate
FROM sync_records
