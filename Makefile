# `make demo` and `make test` are all a fresh machine needs. Both install what is missing.

# The extension runs in PostgreSQL's Python, so the virtual environment must be of that interpreter.
PYTHON ?= $(shell test -x /usr/bin/python3 && echo /usr/bin/python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
PG_VERSION := 15
DEBIAN := postgresql postgresql-plpython3-$(PG_VERSION) python3-venv
# What `heap ingest broker` fetches and runs Kafka with; without it, the tests that need a Kafka are skipped.
DEBIAN_KAFKA := openjdk-17-jre-headless maven

.PHONY: all demo test check bench clean .kafka

all: $(VENV)/.ready

demo: $(VENV)/.ready
	$(BIN)/heap demo

# Two processes, each with clusters of its own; a file's tests share what it sets up.
test: $(VENV)/.ready $(VENV)/.peers .kafka
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

check: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/sqlfluff lint --disable-progress-bar extension/heap_extension/sql

EVENTS ?= 10000000

bench: $(VENV)/.ready $(VENV)/.peers
	$(BIN)/python -m pytest benchmarks --events $(EVENTS) --capture=no --benchmark-columns=min,median,max,rounds

clean:
	-test -x $(BIN)/heap && $(BIN)/heap down && $(BIN)/heap ingest broker --down
	rm -rf $(VENV) .heap .heap-bench .heap-kafka

$(VENV)/.ready: pyproject.toml Makefile
	@$(MAKE) --no-print-directory .debian
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,parquet,ingest]'
	$(BIN)/heap install > /dev/null
	touch $@

# What answers and times are compared with; where it is not to be had, tests that need it are skipped.
$(VENV)/.peers: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[clickhouse,bench]' \
	  || echo "ClickHouse and DuckDB cannot be installed here: nothing is compared with them"
	touch $@

# PostgreSQL with PL/Python from Debian's packages: installed when we are root, else said.
.PHONY: .debian
.debian:
	@if ! test -e /usr/share/postgresql/$(PG_VERSION)/extension/plpython3u.control \
	   || ! $(PYTHON) -c 'import ensurepip' 2> /dev/null; then \
	  if test "$$(id -u)" = 0; then \
	    apt-get update --quiet --quiet && \
	    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet $(DEBIAN) > /dev/null; \
	  else \
	    echo "Missing packages. As root, run: apt-get install $(DEBIAN)"; exit 1; \
	  fi; \
	fi

# Kafka and what runs it: installed when we are root, fetched once.
.kafka: $(VENV)/.ready
	@if ! command -v java > /dev/null || ! command -v mvn > /dev/null; then \
	  if test "$$(id -u)" = 0; then \
	    apt-get update --quiet --quiet && \
	    DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet $(DEBIAN_KAFKA) > /dev/null || true; \
	  else \
	    echo "Tests with Kafka are skipped. As root, run: apt-get install $(DEBIAN_KAFKA)"; \
	  fi; \
	fi
	@$(BIN)/python -c 'from heap_ingest.broker import find_kafka; print("Kafka:", find_kafka())' 2> /dev/null \
	  || echo "Kafka cannot be fetched here: its tests are skipped"
