#!/usr/bin/env bash
# The main job in one go: demo.sh BIN_FOLDER DEMO_FOLDER
set -euo pipefail
bin=$1 demo=$2
synclake=$bin/synclake
query=$bin/synclake-query
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] && [ -z "${NO_COLOR:-}" ] || say() { printf '\n%s\n' "$*"; }
rm -rf "$demo"
mkdir -p "$demo"

say "1. A made-up Cognito stream: late, doubled, out of order, with removals"
"$synclake" simulate --seed 7 --events 20000 --out "$demo/events.ndjson" --oracle "$demo/truth.ndjson"

say "2. Read it into a lake, each record exactly once"
"$synclake" ingest --source "file:$demo/events.ndjson" --lake "$demo/lake" > "$demo/ingest.json"

say "3. Reading it again adds nothing"
"$synclake" ingest --source "file:$demo/events.ndjson" --lake "$demo/lake" > /dev/null

say "4. The current state of one dataset"
identity=$("$query" --lake "$demo/lake" --format csv -c \
  "select identity_id from dataset_state where dataset_name = 'profile' and live_keys between 5 and 9 order by 1 limit 1" | tail -n 1)
"$query" --lake "$demo/lake" --timing -c \
  "select dataset_name, key, value, sync_count, last_modified_date from current_state where identity_id = '$identity' and dataset_name = 'profile' order by key"

say "5. The daily extract of 2026-01-04"
"$synclake" extract --lake "$demo/lake" --date 2026-01-04 --out "$demo/extract" --format csv > /dev/null
"$query" --lake "$demo/lake" -c \
  "select extract_date, kind, count(*) as rows from daily_extract group by 1, 2 order by 1, 2"

say "6. Counts"
"$query" --lake "$demo/lake" --timing -c \
  "select (select count(*) from sync_records) as changes_as_they_came, (select count(*) from changes) as changes_once,
          (select count(*) from current_state) as live_keys, (select count(*) from quarantine) as quarantined"
live=$("$query" --lake "$demo/lake" --format csv -c "select count(*) from current_state" | tail -n 1)
true_live=$(wc -l < "$demo/truth.ndjson")
echo "The generator's own model has $((true_live)) live keys, the lake $live."
[ "$live" -eq "$true_live" ]

say "7. The lake: Parquet in Hive folders, with a Delta log"
(cd "$demo" && find lake -type d | sort | awk -F/ 'NR <= 24 { indent = ""; for (i = 1; i < NF; i++) indent = indent "  "; print indent $NF "/" }')
du -sh "$demo/events.ndjson" "$demo/lake" | awk '{ print $1 "\t" $2 }'

say "Next"
cat <<TEXT
  $query --lake $demo/lake                    # a SQL shell; \\? for help
  $synclake ingest --source kinesis:STREAM --lake s3://BUCKET/PREFIX
  $synclake extract --lake s3://BUCKET/PREFIX --date yesterday
TEXT
