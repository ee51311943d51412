-- Per pool and identity: how much of Cognito Sync's limits its live state uses. The limits are the defaults of the service,
-- which AWS raises on request: 20 datasets and 20 MB per identity, 1,024 keys and 1 MB per dataset; 1 MB is 1,048,576 bytes.
-- `share_of_limits` is the largest of the four shares, and `nearest_limit` names its limit. A share above 1 is over it.
-- `bytes` are those of the live keys and of their values in UTF-8. How the service counts bytes is not documented.
-- A dataset without live keys counts as long as it is not removed. An identity whose datasets are all removed has 0 of each.
SELECT
  pool, identity_pool_id, identity_id, datasets, live_keys, bytes, largest_dataset_keys, largest_dataset_bytes,
  CASE share_of_limits
    WHEN bytes / 20971520.0 THEN 'bytes of the identity'
    WHEN datasets / 20.0 THEN 'datasets of the identity'
    WHEN largest_dataset_bytes / 1048576.0 THEN 'bytes of a dataset'
    ELSE 'keys of a dataset'
  END AS nearest_limit,
  share_of_limits
FROM (
  SELECT *,
    greatest(
      bytes / 20971520.0, datasets / 20.0, largest_dataset_bytes / 1048576.0, largest_dataset_keys / 1024.0
    ) AS share_of_limits
  FROM (
    SELECT
      pool, identity_pool_id, identity_id,
      count(*) FILTER (WHERE NOT removed) AS datasets,
      CAST(sum(live_keys) AS bigint) AS live_keys,
      CAST(sum(bytes) AS bigint) AS bytes,
      max(live_keys) AS largest_dataset_keys,
      max(bytes) AS largest_dataset_bytes
    FROM (
      SELECT
        pool, identity_pool_id, identity_id,
        (bool_or(key IS NULL) AND NOT bool_or(is_after_removal)) AS removed,
        count(*) FILTER (WHERE is_after_removal AND op <> 'remove') AS live_keys,
        coalesce(
          sum(octet_length(key) + coalesce(octet_length(value), 0)) FILTER (WHERE is_after_removal AND op <> 'remove'), 0
        ) AS bytes
      FROM key_state
      GROUP BY pool, identity_pool_id, identity_id, dataset_name
    )
    GROUP BY pool, identity_pool_id, identity_id
  )
)
