#!/usr/bin/env bash
# Commit latency and throughput with 1, 4 and 16 writers, on a local folder and on the S3 server of the tests.
# Run by `make bench-commits`, inside with_servers.py.
set -euo pipefail
bench=$1
export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true
export AWS_ENDPOINT_URL_S3=$SYNCLAKE_TEST_S3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
curl -sf -X PUT "$SYNCLAKE_TEST_S3/commit-bench"
for writers in 1 4 16; do
  echo "local $("$bench" "$folder/$writers" "$writers" $((800 / writers)))"
  echo "s3    $("$bench" "s3://commit-bench/$writers" "$writers" $((400 / writers)))"
done
