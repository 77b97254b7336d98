# `make` lists what there is. Everything is plain cargo; what the targets add is Chromium where it is missing.

CARGO ?= cargo
CHROMIUM = chromium chromium-browser google-chrome google-chrome-stable
HAVE_CHROMIUM = for name in $(CHROMIUM); do command -v $$name >/dev/null 2>&1 && exit 0; done; exit 1
INSTALL = apt-get update -qq && apt-get install -y --no-install-recommends chromium

.PHONY: help demo demo-live test check sabotage bench bench-stores chromium

help:
	@echo "make demo       a gateway with a recorded session to look at"
	@echo "make demo-live  the same with a real Chromium"
	@echo "make check      format, lints and the fast tests"
	@echo "make test       format, lints, every test, and each safety check switched off once"
	@echo "make sabotage   switches each safety check off and sees its tests fail"
	@echo "make bench      what durability costs: publishing, restarting, resuming (about 10 minutes, quiet machine)"
	@echo "make bench-stores  redb, fjall and SQLite on the log's workload (about 5 minutes)"

demo:
	@echo "==> building"
	@$(CARGO) build --release --bin onlooker
	@target/release/onlooker demo

demo-live: chromium
	@echo "==> building"
	@$(CARGO) build --release --bin onlooker
	@$(CARGO) build --release -p onlooker-runtime --features chromium --bin onlooker-chromium
	@target/release/onlooker demo --runtime-command target/release/onlooker-chromium

check:
	@echo "==> format"
	@$(CARGO) fmt --all --check
	@echo "==> lints"
	@$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	@echo "==> tests"
	@$(CARGO) test --workspace
	@echo "==> all of it is fine"

test: chromium
	@echo "==> format"
	@$(CARGO) fmt --all --check
	@echo "==> lints"
	@$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	@echo "==> tests of the workspace"
	@$(CARGO) test --workspace
	@echo "==> tests with a real Chromium"
	@$(CARGO) test -p onlooker-runtime --features chromium
	@echo "==> every safety check switched off in turn, to see its tests fail"
	@CARGO='$(CARGO)' sh tests/sabotage.sh
	@echo "==> all of it is fine"

sabotage:
	@CARGO='$(CARGO)' sh tests/sabotage.sh

bench:
	@$(CARGO) build --release --bin onlooker
	@$(CARGO) bench --bench engine
	@$(CARGO) bench --bench durable

bench-stores:
	@$(CARGO) run --release --manifest-path benches/stores/Cargo.toml

# Installs Debian's package where it is missing, and only where that needs no password.
chromium:
	@if ( $(HAVE_CHROMIUM) ); then \
		echo "==> chromium is here"; \
	elif ! command -v apt-get >/dev/null 2>&1; then \
		echo "Chromium is missing, and this is no Debian: install it, then run make again." >&2; exit 1; \
	elif [ "$$(id -u)" = 0 ]; then \
		echo "==> installing chromium"; $(INSTALL); \
	elif sudo -n true 2>/dev/null; then \
		echo "==> installing chromium"; sudo -n sh -c '$(INSTALL)'; \
	else \
		echo "Chromium is missing: run  sudo apt-get install chromium  and then make again." >&2; exit 1; \
	fi
