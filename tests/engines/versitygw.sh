#!/usr/bin/env bash
# Builds the Versity S3 gateway (Apache License 2.0) into a folder: versitygw.sh TARGET
#
# The sum pins the module, and the go.sum inside it pins everything that the module needs.
set -euo pipefail
module=github.com/versity/versitygw
version=v1.8.0
sum=h1:au+wI+aybno/STsQiSm35Uu6Q6iK5MWReQxgO6SEMFc=
if ! command -v go >/dev/null; then
  echo "error: go is missing, which the Versity S3 gateway needs; install Go 1.25 or later" >&2
  exit 1
fi
mkdir -p "$1"
target=$(cd "$1" && pwd)
# Outside of the clone: a module in a parent folder would be used otherwise.
cd /
answer=$(go mod download -json "$module@$version")
field() { sed -n "s/^\t\"$1\": \"\(.*\)\",\?$/\1/p" <<<"$answer"; }
if [ "$(field Sum)" != "$sum" ]; then
  echo "error: $module@$version has the sum $(field Sum), not $sum" >&2
  exit 1
fi
cd "$(field Dir)"
GOFLAGS=-mod=readonly go build -buildvcs=false -ldflags "-s -w -X main.Version=$version" \
  -o "$target/bin/versitygw" ./cmd/versitygw
