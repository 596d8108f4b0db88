# PGXS's names (all, install, installcheck, uninstall) for an extension that cargo
# builds. `make help` lists the targets.
#
#   PG=17                          which PostgreSQL: 15 is Debian's, the default; others
#                                  are built into target/postgres by `make setup`
#   PG_CONFIG=/path/to/pg_config   or one of your own
#   PORTABLE=1                     build for any x86-64 instead of x86-64-v3 with AES-NI,
#                                  as packages always are
#   DESTDIR=/some/folder           install below this folder, for packagers

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
# The steps of `make test` follow one another, and cargo is parallel by itself.
.NOTPARALLEL:

PG ?= 15
BUILT_PG = $(filter-out 15,$(PG))
ifneq ($(BUILT_PG),)
PG_CONFIG = $(CURDIR)/target/postgres/$(PG)/bin/pg_config
endif
# Deferred on purpose: `setup` may install what these look for.
PG_CONFIG ?= $(shell . scripts/common.sh && find_pg_config)
PG_MAJOR = $(shell . scripts/common.sh && pg_major "$(PG_CONFIG)")
PKGLIBDIR = $(shell "$(PG_CONFIG)" --pkglibdir)
EXTENSIONDIR = $(shell "$(PG_CONFIG)" --sharedir)/extension
VERSION = $(shell sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)

CARGO_TARGET_DIR ?= $(CURDIR)/target
ifeq ($(PORTABLE),1)
# Replaces the flags in .cargo/config.toml; in a folder of its own, so that both
# builds live side by side.
override CARGO_TARGET_DIR := $(CURDIR)/target/portable
# The library names no folder of this machine, so that it is the same wherever it is built.
export RUSTFLAGS := -C target-cpu=x86-64 --remap-path-prefix=$(CURDIR)=/colcrypt \
	--remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/cargo
endif
export CARGO_TARGET_DIR PG_CONFIG
# Stands in for `cargo pgrx init`, which would write to the user's home.
export PGRX_PG_CONFIG_PATH = $(PG_CONFIG)

# Where `cargo pgrx package` lays out the files, as they will lie below /.
PACKAGE = $(CARGO_TARGET_DIR)/release/colcrypt-pg$(PG_MAJOR)
PYTHON = target/venv/bin/python
# Only the copying into PostgreSQL's folders needs root; cargo never runs as root.
AS_ROOT = $(if $(DESTDIR),,$(if $(filter 0,$(shell id -u)),,sudo))

.PHONY: all install installcheck uninstall setup demo test test-all lint test-core \
	test-server test-client bench package package-check freeze clean help

all: ## build the extension
	@cargo pgrx --version >/dev/null 2>&1 \
		|| { echo "cargo-pgrx is missing: run 'make setup' first" >&2; exit 1; }
	rm -rf "$(PACKAGE)"
	cargo pgrx package --pg-config "$(PG_CONFIG)"

install: all ## build it and install it into PostgreSQL
	$(AS_ROOT) install -d "$(DESTDIR)$(PKGLIBDIR)" "$(DESTDIR)$(EXTENSIONDIR)"
	$(AS_ROOT) install -m 755 "$(PACKAGE)$(PKGLIBDIR)"/colcrypt.so "$(DESTDIR)$(PKGLIBDIR)"
	$(AS_ROOT) install -m 644 "$(PACKAGE)$(EXTENSIONDIR)"/colcrypt* "$(DESTDIR)$(EXTENSIONDIR)"

uninstall: ## remove what install installed
	$(AS_ROOT) rm -f "$(DESTDIR)$(PKGLIBDIR)"/colcrypt.so
	$(AS_ROOT) rm -f "$(DESTDIR)$(EXTENSIONDIR)"/colcrypt.control
	$(AS_ROOT) rm -f "$(DESTDIR)$(EXTENSIONDIR)"/colcrypt--*.sql

installcheck: ## run pg_test/ on the installed extension (TESTS="name name")
	@echo "== installcheck: pg_regress and isolation tests"
	scripts/installcheck.sh $(TESTS)

setup: ## install what the other targets need
	@echo "== setup"
	@$(if $(BUILT_PG),scripts/postgres.sh $(BUILT_PG))
	@scripts/setup.sh

demo: setup install ## see the product at work on a private server
	@scripts/demo.sh

# pytest comes last: its summary is the run's last line. test-server leaves a test
# build installed, so install follows it.
test: setup lint test-core test-server install installcheck test-client ## run every test

test-all: ## run every test on PostgreSQL 15, 17 and 18
	for pg in 15 17 18; do echo "== PostgreSQL $$pg"; $(MAKE) test PG=$$pg; done

lint: ## check format and style
	@echo "== lint"
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --no-default-features --features pg$(PG_MAJOR) \
		-- -D warnings
	for script in scripts/*.sh .ci/run; do bash -n "$$script"; done
	PYTHONPYCACHEPREFIX=target/pycache python3 -m compileall -q scripts tests
	! grep -nP '\t' -r sql

test-core: ## run the core's tests, which need no PostgreSQL
	@echo "== core tests"
	cargo test --release -p colcrypt-memory -p colcrypt-core -- --include-ignored

test-server: ## run the tests inside the server; leaves a test build installed
	@echo "== in-server tests"
	scripts/pgrx-test.sh

test-client: ## run tests/ on the installed extension (TESTS="-k name")
	@echo "== client tests"
	@$(PYTHON) -m pytest tests $(TESTS)

bench: setup install ## measure against a text column, then the core by itself
	$(PYTHON) scripts/bench.py
	cargo bench -p colcrypt-core

# What others get runs on any x86-64.
ifeq ($(PORTABLE),1)
package: all
	scripts/package.sh "$(PACKAGE)"
else
package: ## make a .deb and a tar file in target/package
	$(MAKE) package PORTABLE=1
endif

package-check: package ## install the .deb in a clean Debian, and try it there
	scripts/package-check.sh

freeze: all ## keep this version's install script in sql/install, for a release
	scripts/freeze.sh "$(PACKAGE)$(EXTENSIONDIR)/colcrypt--$(VERSION).sql"

clean: ## remove everything that was built
	rm -rf target

help: ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/p' Makefile | column -t -s '|'
