-- The table of the predecessor with its column names, so that queries for the predecessor run unchanged.
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
FROM ${db}sync_records
