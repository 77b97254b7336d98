# `make` lists what there is. Everything is plain cargo; what the targets add is Chromium, and the clients that the tests
# run, where they are missing.

CARGO ?= cargo
CHROMIUM = chromium chromium-browser google-chrome google-chrome-stable
HAVE_CHROMIUM = for name in $(CHROMIUM); do command -v $$name >/dev/null 2>&1 && exit 0; done; exit 1
HAVE_CLIENT_TOOLS = command -v node && command -v npm && command -v curl && python3 -c 'import ensurepip'
# The same everywhere, so that everything is built once.
TESTED = onlooker/sabotage,onlooker-runtime/chromium
INSTALL = apt-get update -qq && apt-get install -y --no-install-recommends

NODE_MODULES = tests/clients/node_modules
VENV = target/clients/venv

.PHONY: help demo demo-live test check sabotage conformance instructions bench bench-peers bench-stores chromium valgrind \
	clients client-tools

# $(call install,what,packages): Debian's packages, and only where that needs no password.
define install
if ! command -v apt-get >/dev/null 2>&1; then \
	echo "$(1) is missing, and this is no Debian: install it, then run make again." >&2; exit 1; \
elif [ "$$(id -u)" = 0 ]; then \
	echo "==> installing $(2)"; $(INSTALL) $(2); \
elif sudo -n true 2>/dev/null; then \
	echo "==> installing $(2)"; sudo -n sh -c '$(INSTALL) $(2)'; \
else \
	echo "$(1) is missing: run  sudo apt-get install $(2)  and then make again." >&2; exit 1; \
fi
endef

help:
	@echo "make demo       a gateway with a recorded session to look at"
	@echo "make demo-live  the same with a real Chromium"
	@echo "make check      format, lints and the fast tests"
	@echo "make test       format, lints, every test, and each safety check switched off once"
	@echo "make sabotage   switches each safety check off and sees its tests fail"
	@echo "make conformance  Autobahn|Testsuite's cases against the WebSockets (needs a CPython 2.7, and says so)"
	@echo "make instructions  instructions of an event's way, compared with kept ones; UPDATE=1 keeps the new ones"
	@echo "make clients    installs the clients that the tests run: npm's and Python's, pinned"
	@echo "make bench      what the pieces, durability, the surfaces and watching cost, then bench-peers (about an hour, quiet machine)"
	@echo "make bench-peers  beside other servers and a bare write loop; PEERS='--works a,c --gate' and so on"
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

check: clients
	@echo "==> format"
	@$(CARGO) fmt --all --check
	@echo "==> lints"
	@$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	@echo "==> tests"
	@$(CARGO) test --workspace
	@echo "==> all of it is fine"

test: chromium clients valgrind
	@echo "==> format"
	@$(CARGO) fmt --all --check
	@echo "==> lints"
	@$(CARGO) clippy --workspace --all-targets --all-features -- -D warnings
	@echo "==> tests of the workspace, those with a real Chromium among them"
	@$(CARGO) test --workspace --features $(TESTED)
	@echo "==> every safety check switched off in turn, to see its tests fail"
	@CARGO='$(CARGO)' FEATURES=$(TESTED) sh tests/sabotage.sh
	@echo "==> all of it is fine"

sabotage:
	@CARGO='$(CARGO)' FEATURES=$(TESTED) sh tests/sabotage.sh

conformance:
	@CARGO='$(CARGO)' python3 tests/conformance/run.py

# Flags of one's own and incremental compilation would be counted as well.
instructions: valgrind
	@echo "==> instructions of an event's way, optimised"
	@env -u RUSTFLAGS CARGO_INCREMENTAL=0 $(CARGO) run --quiet --profile instructions -p onlooker-instructions -- \
		$(if $(UPDATE),--update)
	@echo "==> the same as the tests are built"
	@ONLOOKER_KEEP_INSTRUCTIONS=$(UPDATE) $(CARGO) test --workspace --features $(TESTED) --test kept -- --nocapture

bench:
	@$(CARGO) build --release --bin onlooker
	@$(CARGO) bench --bench paths
	@$(CARGO) bench --bench engine
	@$(CARGO) bench --bench durable
	@$(CARGO) bench --bench surfaces
	@$(CARGO) bench --bench reach_out
	@$(MAKE) bench-peers

# Without the servers that cannot be had here the others are compared. The crate is no member of the workspace.
bench-peers:
	@$(CARGO) build --release --bin onlooker
	@sh benches/peers/install.sh
	@$(CARGO) build --release --manifest-path benches/peers/Cargo.toml
	@$(CARGO) run --release --quiet --manifest-path benches/peers/Cargo.toml --bin run -- \
		--json target/peers.json --svg docs/peers.svg $(PEERS)

bench-stores:
	@$(CARGO) run --release --manifest-path benches/stores/Cargo.toml

chromium:
	@if ( $(HAVE_CHROMIUM) ); then echo "==> chromium is here"; else $(call install,Chromium,chromium); fi

valgrind:
	@if command -v valgrind >/dev/null 2>&1; then :; else $(call install,valgrind,valgrind); fi

# Existing WebRun, Socket.IO and Python clients, pinned by their lock files, for `cargo test --test clients`.
clients: $(NODE_MODULES)/.installed $(VENV)/.installed

$(NODE_MODULES)/.installed: tests/clients/package.json tests/clients/package-lock.json | client-tools
	@echo "==> npm's clients"
	@cd tests/clients && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

$(VENV)/.installed: tests/clients/requirements.txt | client-tools
	@echo "==> Python's clients"
	@rm -rf $(VENV) && python3 -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r tests/clients/requirements.txt
	@touch $@

client-tools:
	@if ( $(HAVE_CLIENT_TOOLS) ) >/dev/null 2>&1; then :; else \
		$(call install,Node.js or npm or curl or Python's venv,nodejs npm curl python3-venv); fi
