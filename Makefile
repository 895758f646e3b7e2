# Needs Rust and make, nothing else. `make` alone lists what there is.

PREFIX = /usr/local
SYSCONFDIR = /etc
SEED = 1
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR

bin = $(CARGO_TARGET_DIR)/release
config = $(DESTDIR)$(SYSCONFDIR)/hadm
doc = $(DESTDIR)$(PREFIX)/share/doc/hadmd

.PHONY: help build demo test sim bench bench-plot fmt lint clean install uninstall

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18

build: ## build hadmd and hadm-probe, optimised
	cargo build --release --locked

demo: build ## three daemons on this machine carry files; takes half a minute, touches nothing else
	@tests/demo.sh $(bin)

test: ## every check: formatting, lints, documentation, all tests
	@tests/all.sh

sim: ## run a whole cluster in virtual time; SEED=7 chooses the run, the same seed gives the same run
	SEED=$(SEED) cargo test --locked --release --test sim -- --nocapture

bench: ## side by side with HAProxy and direct TCP, two to three minutes; QUICK=1 shorter, HADMD=path other builds, too
	@command -v haproxy > /dev/null || [ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null || \
		apt-get install -qy haproxy > /dev/null || { apt-get update -q && apt-get install -qy haproxy; } > /dev/null || true
	cargo bench --locked --bench side_by_side

bench-plot: ## draw the last results of `make bench` as SVG
	cargo bench --locked --bench side_by_side -- plot

fmt: ## format the source
	cargo fmt

lint: ## clippy, warnings are errors
	cargo clippy --locked --all-targets -- -D warnings

clean: ## remove what was built
	cargo clean

install: ## install what `make build` built; PREFIX=/usr/local, SYSCONFDIR=/etc, DESTDIR= for packages
	@test -x $(bin)/hadmd || { echo "nothing is built yet: run 'make build' first" >&2; exit 1; }
	install -d $(DESTDIR)$(PREFIX)/sbin $(DESTDIR)$(PREFIX)/bin $(doc) $(config)
	install -m 755 $(bin)/hadmd $(DESTDIR)$(PREFIX)/sbin/hadmd
	install -m 755 $(bin)/hadm-probe $(DESTDIR)$(PREFIX)/bin/hadm-probe
	install -m 644 README.md etc/one-site.xml etc/two-sites.xml LICENSE-MIT LICENSE-APACHE $(doc)
	@test -e $(config)/hadm.xml || { set -x; install -m 644 etc/one-site.xml $(config)/hadm.xml; }

uninstall: ## remove what `make install` installed, but not the configuration
	rm -f $(DESTDIR)$(PREFIX)/sbin/hadmd $(DESTDIR)$(PREFIX)/bin/hadm-probe
	rm -rf $(doc)
