#!/usr/bin/env bash
# Builds the application for KCL 2 and for KCL 3 into a folder: build.sh TARGET
#
# TARGET/kcl2 and TARGET/kcl3 then have the folders classes and lib. Every jar must be listed in jars.txt with its SHA-256.
# UPDATE=1 writes jars.txt anew, after a change of a version.
set -euo pipefail
if ! command -v mvn >/dev/null || ! command -v javac >/dev/null; then
  echo "error: mvn or javac is missing, which the KCL application needs; install Maven and a JDK:" \
    "apt-get install maven openjdk-17-jdk-headless" >&2
  exit 1
fi
here=$(cd "$(dirname "$0")" && pwd)
rm -rf "$1"
mkdir -p "$1"
cd "$1"
for build in kcl2:2.7.2 kcl3:3.3.0; do
  mvn -q -B -Dstyle.color=never -f "$here/pom.xml" -Dkcl.sources="${build%:*}" -Dkcl.version="${build#*:}" -Dtarget="$PWD/${build%:*}" compile
done
if [ -n "${UPDATE:-}" ]; then
  LC_ALL=C sha256sum kcl*/lib/*.jar >"$here/jars.txt"
fi
sha256sum --check --strict --quiet "$here/jars.txt"
if ! diff <(cut -c67- "$here/jars.txt") <(LC_ALL=C ls kcl*/lib/*.jar); then
  echo "error: Maven resolved other jars than tests/engines/kcl/jars.txt lists; UPDATE=1 lists them anew" >&2
  exit 1
fi
