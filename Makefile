# Needs Rust and make, nothing else. `make` alone lists what there is.

PREFIX = /usr/local
SYSCONFDIR = /etc
SEED = 1
TARGET = aarch64
STATIC =
TARGETS =
export STATIC
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR

bin = $(CARGO_TARGET_DIR)/release
config = $(DESTDIR)$(SYSCONFDIR)/hadm
doc = $(DESTDIR)$(PREFIX)/share/doc/hadmd

.PHONY: help build demo test sim fmt lint clean install uninstall msrv cross cross-test cross-pair size

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

fmt: ## format the source
	cargo fmt

lint: ## clippy, warnings are errors
	cargo clippy --locked --all-targets -- -D warnings

msrv: ## build everything and run the unit tests with Debian's Rust 1.85, the oldest that will do
	cross/cargo.sh x86_64 test --locked --no-run
	cross/cargo.sh x86_64 test --locked --lib

cross: ## build for another machine; TARGET=aarch64 (cross/targets has all), STATIC=1
	cross/cargo.sh $(TARGET) build --release --locked

cross-test: cross ## that, and run the unit tests and two daemons emulated
	cross/cargo.sh $(TARGET) test --locked --lib
	cross/pair.sh $(TARGET) $(TARGET)

cross-pair: build ## a big-endian daemon and one of this machine form a cluster and exchange files
	cross/cargo.sh s390x build --release --locked
	cross/pair.sh s390x native

size: ## how large hadmd is for each target, and whether it keeps to cross/size-budget; TARGETS="x86_64 armv7"
	@cross/size.sh $(TARGETS)

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
