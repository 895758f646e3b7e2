# Needs Rust and make, nothing else. `make` alone lists what there is.

PREFIX = /usr/local
SYSCONFDIR = /etc
SEED = 1
RUNS = 300
SECS = 60
HISTORIES = 100
NODES = 4
TARGET = aarch64
STATIC =
LEAN =
TARGETS =
export STATIC LEAN
CARGO_TARGET_DIR ?= target
export CARGO_TARGET_DIR

bin = $(CARGO_TARGET_DIR)/release
doc = $(PREFIX)/share/doc/hadmd
# Pacemaker looks in /usr/lib/ocf alone: with another prefix it takes a link there.
ocf = $(PREFIX)/lib/ocf/resource.d/hadm
fencing = $(PREFIX)/lib/hadm/fencing
# Debian's zsh looks for what packages bring elsewhere than for what is installed by hand.
zsh = $(PREFIX)/share/zsh/$(if $(filter /usr,$(PREFIX)),vendor-completions,site-functions)

.PHONY: help build demo test log-test systemd-test keepalived-test pacemaker-test guide-test ocf-test openrc-test sim nbd-sim chaos disk-chaos far-chaos fmt lint clean man-lint deb deb-test install uninstall msrv cross cross-test \
        cross-pair size bench bench-nbd bench-plot profile vm-test fuzz miri race deny screenshots

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18

build: ## build hadmd, hadm-nbd, hadmctl and hadm-probe, optimised
	cargo build --release --locked

demo: build ## three daemons carry files, two sites a fail-over, two more mirror a disk; two minutes, nothing stays behind
	@tests/demo.sh $(bin)
	@echo
	@tests/demo-sites.sh $(bin)
	@echo
	@tests/demo-disk.sh $(bin)

test: ## every check: formatting, lints, documentation, all tests
	@tests/all.sh

log-test: ## what real system logs file of hadmd's lines, with Debian's packages unpacked into a temporary folder; needs root
	cargo build --locked
	FETCH=1 tests/system-logs.sh $(CARGO_TARGET_DIR)/debug

systemd-test: ## the units under a real systemd; needs root
	cargo build --locked
	tests/systemd.sh $(CARGO_TARGET_DIR)/debug

keepalived-test: ## the samples for keepalived with the real one, in network namespaces; needs root
	cargo build --locked
	tests/keepalived.sh $(CARGO_TARGET_DIR)/debug
	tests/keepalived-disk.sh $(CARGO_TARGET_DIR)/debug

guide-test: ## the guides of etc/doc, line by line on machines in namespaces; needs root
	cargo build --locked
	tests/two-nodes.sh $(CARGO_TARGET_DIR)/debug
	GUIDE=wan tests/two-nodes.sh $(CARGO_TARGET_DIR)/debug
	GUIDE=from-drbd tests/two-nodes.sh $(CARGO_TARGET_DIR)/debug
	GUIDE=from-module tests/two-nodes.sh $(CARGO_TARGET_DIR)/debug

pacemaker-test: ## a mirrored disk in real clusters of corosync and Pacemaker, two and three nodes in namespaces: nodes and daemons die; needs root
	cargo build --locked
	tests/pacemaker.sh $(CARGO_TARGET_DIR)/debug
	NODES=3 tests/pacemaker.sh $(CARGO_TARGET_DIR)/debug
	NODES=3 SITES=2 tests/pacemaker.sh $(CARGO_TARGET_DIR)/debug

ocf-test: ## the resource agents for Pacemaker without a cluster, with ocf-tester and crm_simulate where they are installed
	cargo build --locked
	tests/ocf.sh $(CARGO_TARGET_DIR)/debug

openrc-test: ## the samples for OpenRC under a real one, unpacked from Debian's packages into a root of its own; needs root
	cargo build --locked
	tests/openrc.sh $(CARGO_TARGET_DIR)/debug

vm-test: ## beside a stock Debian kernel: two emulated machines, a module that plays the mirror's; a minute or two
	cargo test --locked --test vm -- --ignored --nocapture

sim: ## run a whole cluster in virtual time; SEED=7 chooses the run, the same seed gives the same run
	SEED=$(SEED) cargo test --locked --release --test sim -- --nocapture

nbd-sim: ## run the mirrored disk's core in virtual time, RUNS=300 seeds from SEED=7 on
	SEED=$(SEED) RUNS=$(RUNS) cargo test --locked --release --lib nbd::core::sim::every_seed -- --nocapture

chaos: ## a real cluster under faults that SEED=7 chooses, for SECS=60, with NODES=3 to 5; needs root
	SECS=$(SECS) SEED=$(SEED) NODES=$(NODES) cargo test --locked --test chaos

disk-chaos: ## two sites of a mirrored disk under faults that SEED=7 chooses, for SECS=60; needs root
	SECS=$(SECS) SEED=$(SEED) cargo test --locked --test nbd_chaos answered -- --nocapture

far-chaos: ## a far site of a mirrored disk under kills, cuts and promotions, HISTORIES=100 of them from SEED=7 on; needs root
	HISTORIES=$(HISTORIES) SEED=$(SEED) cargo test --locked --test nbd_chaos a_far -- --nocapture

screenshots: ## pictures of hadmctl web, light and dark, 1280 and 380 wide, in target/screenshots; two minutes; needs chromium
	SCREENSHOTS='$(abspath $(CARGO_TARGET_DIR))/screenshots' cargo test --locked --test watching -- --ignored --exact web::screenshots

bench: ## side by side with HAProxy, socat and direct TCP, a quarter of an hour; QUICK=1 shorter, BASE=path ratios to another build
	@[ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null || { command -v haproxy && command -v socat; } > /dev/null || \
		apt-get install -qy haproxy socat > /dev/null || { apt-get update -q && apt-get install -qy haproxy socat; } > /dev/null || true
	cargo bench --locked --bench side_by_side

bench-nbd: ## the mirrored disk side by side with qemu's quorum, GlusterFS, nbdkit; seven minutes; QUICK=1, BASE=directory
	@[ "$$(id -u)" != 0 ] || ! command -v apt-get > /dev/null || \
		{ command -v fio && command -v qemu-storage-daemon && command -v nbdkit && command -v nbdcopy && command -v glusterd; } > /dev/null || \
		apt-get install -qy fio qemu-utils nbdkit libnbd-bin glusterfs-server > /dev/null || true
	cargo bench --locked --bench nbd

bench-plot: ## draw the last results of `make bench` as SVG
	cargo bench --locked --bench side_by_side -- plot

profile: ## count the instructions of each step of a packet's way; needs valgrind
	cargo bench --locked --bench micro -- count

# TARGET is the machine that cross-builds are for, unless it is given.
fuzz: ## look for inputs that break a promise, with a nightly Rust and cargo-fuzz; TARGET=stream (tests/fuzz/corpus has all), SECS=60
	@tests/fuzz.sh $(CARGO_TARGET_DIR) $(SECS) $(if $(findstring command,$(origin TARGET)),$(TARGET))

miri: ## run the unit tests of wire and queue in an interpreter that notices undefined behaviour; needs a nightly Rust
	PROPTEST_CASES=4 MIRIFLAGS=-Zmiri-disable-isolation CARGO_TARGET_DIR='$(CARGO_TARGET_DIR)/miri' \
		cargo +nightly miri test --locked --lib -- wire:: queue::

race: ## run the unit tests of queue with ThreadSanitizer; needs a nightly Rust with rust-src
	RUSTFLAGS=-Zsanitizer=thread CARGO_TARGET_DIR='$(CARGO_TARGET_DIR)/race' cargo +nightly test --locked -Zbuild-std \
		--target x86_64-unknown-linux-gnu --lib -- queue::

deny: ## check licences and sources of all dependencies, with cargo-deny (`cargo deny check advisories` needs github.com)
	cargo deny --locked check licenses bans sources

fmt: ## format the source
	cargo fmt

lint: ## clippy, warnings are errors
	cargo clippy --locked --all-targets -- -D warnings

msrv: ## build everything and run the unit tests with Debian's Rust 1.85, the oldest that will do
	etc/cross/cargo.sh x86_64 test --locked --no-run
	etc/cross/cargo.sh x86_64 test --locked --lib

cross: ## build for another machine; TARGET=aarch64 (etc/cross/targets has all), STATIC=1, LEAN=1 without encrypted links
	etc/cross/cargo.sh $(TARGET) build --release --locked

cross-test: cross ## that, and run the unit tests and two daemons emulated
	etc/cross/cargo.sh $(TARGET) test --locked --lib
	etc/cross/pair.sh $(TARGET) $(TARGET)

cross-pair: build ## a big-endian daemon and one of this machine form a cluster and exchange files
	etc/cross/cargo.sh s390x build --release --locked
	etc/cross/pair.sh s390x native

size: ## how large hadmd is for each target, and whether it keeps to etc/cross/size-budget; TARGETS="x86_64 armv7"
	@etc/cross/size.sh $(TARGETS)

clean: ## remove what was built
	cargo clean

man-lint: ## check the man pages with mandoc
	mandoc -T lint -W warning etc/man/*

deb: $(if $(findstring command,$(origin TARGET)),cross,build) ## make a Debian package of it, target/hadmd_VERSION_ARCH.deb; TARGET=aarch64 for another machine
	@TARGET=$(if $(findstring command,$(origin TARGET)),$(TARGET)) etc/debian/build.sh $(bin) $(CARGO_TARGET_DIR)

deb-test: deb ## install, run and purge that package in a Debian of its own; needs root, debootstrap and ip
	@tests/deb.sh $(CARGO_TARGET_DIR)

# Where the files of etc/ say /usr and /etc, the installed ones say PREFIX and SYSCONFDIR.
# put MODE,DIRECTORY,FILES[,NAME]
define put
@install -d '$(DESTDIR)$(2)'
@for file in $(3); do to='$(DESTDIR)$(2)'/$(or $(4),$${file##*/}); \
	echo "$$to"; \
	sed -e 's|/usr/sbin/|$(PREFIX)/sbin/|g' -e 's|/usr/bin/|$(PREFIX)/bin/|g' -e 's|/etc/hadm/|$(SYSCONFDIR)/hadm/|g' \
		-e 's|/etc/default/|$(SYSCONFDIR)/default/|g' -e 's|/etc/init.d/|$(SYSCONFDIR)/init.d/|g' $$file > "$$to" && \
	chmod $(1) "$$to" || exit 1; \
done

endef

# keep PATH,FILE: a configuration that is there stays as it is, and so does a link, even if it points to nothing yet.
define keep
@test -e '$(DESTDIR)$(1)' || test -L '$(DESTDIR)$(1)' || { echo '$(DESTDIR)$(1)'; install -D -m 644 $(2) '$(DESTDIR)$(1)'; }

endef

install: ## install what `make build` built; PREFIX=/usr/local, SYSCONFDIR=/etc, DESTDIR= for packages
	@test -x $(bin)/hadmd || { echo "nothing is built yet: run 'make build' first" >&2; exit 1; }
	install -D -m 755 $(bin)/hadmd '$(DESTDIR)$(PREFIX)/sbin/hadmd'
	install -D -m 755 $(bin)/hadmctl '$(DESTDIR)$(PREFIX)/bin/hadmctl'
	@# Where it used to be. On some systems both folders are one.
	@test '$(DESTDIR)$(PREFIX)/bin' -ef '$(DESTDIR)$(PREFIX)/sbin' || ln -sf ../bin/hadmctl '$(DESTDIR)$(PREFIX)/sbin/hadmctl'
	install -D -m 755 $(bin)/hadm-nbd '$(DESTDIR)$(PREFIX)/sbin/hadm-nbd'
	install -D -m 755 $(bin)/hadm-probe '$(DESTDIR)$(PREFIX)/bin/hadm-probe'
	$(call put,644,$(PREFIX)/share/man/man8,etc/man/*.8)
	$(call put,644,$(PREFIX)/share/man/man5,etc/man/*.5)
	$(call put,644,$(PREFIX)/share/man/man7,etc/man/*.7)
	$(call put,644,$(PREFIX)/share/bash-completion/completions,etc/completion/hadmd)
	ln -sf hadmd '$(DESTDIR)$(PREFIX)/share/bash-completion/completions/hadmctl'
	ln -sf hadmd '$(DESTDIR)$(PREFIX)/share/bash-completion/completions/hadm-probe'
	ln -sf hadmd '$(DESTDIR)$(PREFIX)/share/bash-completion/completions/hadm-nbd'
	$(call put,644,$(zsh),etc/completion/_hadmctl)
	$(call put,644,$(PREFIX)/share/fish/vendor_completions.d,etc/completion/hadmctl.fish)
	$(call put,644,$(PREFIX)/lib/systemd/system,etc/systemd/hadmd.service etc/systemd/hadm-nbd.service)
	$(call put,644,$(PREFIX)/lib/sysusers.d,etc/systemd/hadm.sysusers,hadm.conf)
	$(call put,644,$(PREFIX)/lib/udev/rules.d,etc/udev/90-hadmd.rules)
	$(call put,755,$(SYSCONFDIR)/init.d,etc/init.d/hadmd etc/init.d/hadm-nbd)
	$(call put,644,$(doc),README.md etc/doc/SECURITY.md etc/doc/CHANGELOG.md etc/doc/two-nodes.md etc/doc/wan.md etc/doc/from-drbd.md etc/doc/from-module.md LICENSE-MIT LICENSE-APACHE etc/one-site.xml etc/two-sites.xml etc/mirror.xml)
	$(call put,644,$(doc)/procd,etc/procd/hadmd.init etc/procd/hadm-nbd.init)
	$(call put,644,$(doc)/openrc,etc/openrc/hadmd etc/openrc/hadm-nbd)
	$(call put,644,$(doc)/keepalived,etc/keepalived/keepalived.conf etc/keepalived/mirror.conf)
	$(call put,755,$(doc)/keepalived,etc/keepalived/hadm-disk)
	$(call put,644,$(doc)/pacemaker,etc/pacemaker/mirror.xml)
	$(call put,755,$(ocf),etc/ocf/hadm-disk etc/ocf/hadmd)
	$(call put,755,$(fencing),etc/fencing/pacemaker)
	$(call put,644,$(doc)/rsyslog,etc/rsyslog/hadmd.conf)
	$(call put,644,$(doc)/logrotate,etc/logrotate/hadmd)
	$(call put,644,$(doc)/prometheus,etc/prometheus/alerts.yml)
	$(call put,644,$(doc)/grafana,etc/grafana/hadmd.json)
	$(call put,644,$(doc)/schema,etc/schema/hadmctl.json)
	$(call keep,$(SYSCONFDIR)/hadm/hadm.xml,etc/one-site.xml)
	$(call keep,$(SYSCONFDIR)/default/hadmd,etc/default/hadmd)

uninstall: ## remove what `make install` installed, but not the configuration
	rm -f '$(DESTDIR)$(PREFIX)/sbin/hadmd' '$(DESTDIR)$(PREFIX)/sbin/hadmctl' '$(DESTDIR)$(PREFIX)/bin/hadmctl' \
		'$(DESTDIR)$(PREFIX)/bin/hadm-probe' '$(DESTDIR)$(PREFIX)/sbin/hadm-nbd'
	rm -f '$(DESTDIR)$(SYSCONFDIR)/init.d/hadmd' '$(DESTDIR)$(SYSCONFDIR)/init.d/hadm-nbd'
	rm -f $(patsubst etc/man/%,'$(DESTDIR)$(PREFIX)/share/man/man8/%',$(wildcard etc/man/*.8))
	rm -f $(patsubst etc/man/%,'$(DESTDIR)$(PREFIX)/share/man/man5/%',$(wildcard etc/man/*.5))
	rm -f $(patsubst etc/man/%,'$(DESTDIR)$(PREFIX)/share/man/man7/%',$(wildcard etc/man/*.7))
	rm -f $(patsubst %,'$(DESTDIR)$(PREFIX)/share/bash-completion/completions/%',hadmd hadmctl hadm-probe hadm-nbd)
	rm -f $(patsubst %,'$(DESTDIR)$(PREFIX)/lib/%',systemd/system/hadmd.service systemd/system/hadm-nbd.service sysusers.d/hadm.conf \
		udev/rules.d/90-hadmd.rules)
	rm -f '$(DESTDIR)$(zsh)/_hadmctl' '$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/hadmctl.fish'
	rm -f '$(DESTDIR)$(ocf)/hadm-disk' '$(DESTDIR)$(ocf)/hadmd'
	rm -rf '$(DESTDIR)$(PREFIX)/lib/hadm'
	rm -rf '$(DESTDIR)$(doc)'
