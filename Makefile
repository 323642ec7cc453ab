# exitmark. `make demo` and `make test` do all the set-up on a Debian machine, as root.
# Without root nothing is installed, and what needs root is skipped by name.

PACKAGES := build-essential clang libclang-dev m4 pkg-config libelf-dev zlib1g-dev libbpf-dev \
            linux-libc-dev iproute2 ethtool tcpdump nftables iputils-ping util-linux tor \
            debhelper systemd tshark postgresql chromium-headless-shell python3
# What exitmark is compared with, beside what is above.
BENCH_PACKAGES := dpdk-dev

.PHONY: setup demo test test-survive test-tor vm-test vm-install-test vm-publish bench bench-publish \
        bench-check bench-baseline fuzz fuzz-engines mutants check deb clean

# No service of a package is started: the tests run a tor of their own.
setup:
	@missing=$$(for p in $(PACKAGES); do dpkg-query -Wf '$${Status}' $$p 2>/dev/null | grep -q '^install ok installed' || echo $$p; done); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then echo "make setup: not root, so these Debian packages are not installed:" $$missing; exit 0; fi; \
	policy=/usr/sbin/policy-rc.d; made=; \
	[ -e $$policy ] || { printf '#!/bin/sh\nexit 101\n' > $$policy && chmod 755 $$policy && made=$$policy; }; \
	apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing; \
	status=$$?; [ -z "$$made" ] || rm -f $$made; exit $$status
	@command -v cargo >/dev/null || { echo "make setup: there is no cargo; install Rust 1.92 or newer (https://rustup.rs)"; exit 1; }

demo: setup
	cargo run --locked --release -- demo $(ARGS)

# Every tier that this machine allows; what is skipped says so in a line with SKIPPED. The private
# Tor network mostly waits: it goes beside the others, and before them when it wakes. Suites that
# compute and need no namespace go beside them, too. Suites that judge what is lost under load have
# the machine for themselves, at the end; the tests of wire wait for processes more than they compute,
# so more run at a time than there are cores.
BESIDE := tor relays rule
ALONE := survive wire
WIRE_THREADS ?= 4
SUITES := $(patsubst tests/%/main.rs,%,$(wildcard tests/*/main.rs)) \
          $(patsubst tests/%.rs,%,$(wildcard tests/*.rs))
named = $(addprefix --test ,$(1))
test: setup
	cargo test --locked --no-run
	@status=0; outputs=$$(mktemp -d); \
	run() { echo "cargo test $$*"; $$nice cargo test --locked --no-fail-fast "$$@" -- --show-output $$threads $(ARGS); }; \
	for suite in $(BESIDE); do \
		nice=nice; [ $$suite != tor ] || nice=; \
		run --test $$suite > $$outputs/$$suite 2>&1 & besides="$$besides $$suite=$$!"; done; \
	nice=nice; \
	run --lib --bins $(call named,$(filter-out $(ALONE) $(BESIDE),$(SUITES))) || status=1; \
	run --doc || status=1; \
	for each in $$besides; do \
		wait $${each#*=} || status=1; cat $$outputs/$${each%=*}; done; rm -r $$outputs; nice=; \
	run --test survive || status=1; \
	threads=--test-threads=$(WIRE_THREADS); run --test wire || status=1; exit $$status

# What frames come to when the box is killed, stopped, replaced, starved: target/survive.json.
test-survive: setup
	EXITMARK_EVERY_STEP=1 cargo test --locked --test survive -- --show-output $(ARGS)
	EXITMARK_EVERY_STEP=1 cargo test --locked --test wire killed -- --show-output

# A private Tor network, with a box behind each of three exits, against tor's own counts:
# target/tor.json.
test-tor: setup
	cargo test --locked --test tor -- --show-output $(ARGS)

# The box in guests, on Linux 6.1 to 7.3 and every NIC that QEMU emulates: target/vm.json. QEMU and
# the kernels are fetched by apt and installed nowhere; CELLS is a regular expression of cells.
CELLS ?= .
vm-test: setup
	cargo build --locked --release --bin exitmark --bin exitmark-monitor
	python3 tests/vm/run.py matrix --cells '$(CELLS)' --program $(TARGET)/release/exitmark $(ARGS)

# What was found, into docs/kernels.md.
vm-publish:
	python3 tests/vm/run.py publish

# Everything that is measured, side by side with what one would use instead: packet rates, latency,
# growth, TCP, ns per decision, the monitor; then target/bench/report.md with its plots. ARGS is for
# all but the decision, which share --runs, --seconds, --quick; PPS_ARGS, LATENCY_ARGS, GROWTH_ARGS,
# TCP_ARGS and MONITOR_ARGS are for one.
bench: PACKAGES += $(BENCH_PACKAGES)
bench: setup
	@status=0; run() { echo "$$*"; "$$@" || status=1; }; \
	run cargo bench --locked --bench pps -- $(ARGS) $(PPS_ARGS); \
	run cargo bench --locked --bench pps -- latency $(ARGS) $(LATENCY_ARGS); \
	run cargo bench --locked --bench pps -- growth $(ARGS) $(GROWTH_ARGS); \
	run cargo bench --locked --bench tcp -- $(ARGS) $(TCP_ARGS); \
	run cargo bench --locked --bench decision; \
	run cargo bench --locked --bench monitor -- $(ARGS) $(MONITOR_ARGS); \
	run cargo run --locked --quiet --example bench_report; exit $$status

# What was measured, into docs/benchmarks.md and the README's table.
bench-publish:
	cargo run --locked --quiet --example bench_report -- --publish

# Instructions per decision, counted: fails where they differ from benches/instructions.json by more
# than 2 %. bench-baseline writes that file anew; it goes into the commit that has the reason.
bench-check bench-baseline: PACKAGES += valgrind
bench-check: setup
	cargo bench --locked --bench instructions
bench-baseline: setup
	cargo bench --locked --bench instructions -- --write-baseline

# Made-up frames through both engines, as root: fails, and stores the frame, where they disagree.
FRAMES ?= 100000000
SEED ?=
fuzz-engines: setup
	FRAMES=$(FRAMES) SEED=$(SEED) cargo run --locked --release --example engines

# The same, then each fuzzer of fuzz/ for FUZZ_SECONDS; those take cargo-fuzz and a nightly Rust.
FUZZ_SECONDS ?= 60
fuzz: fuzz-engines
	@if ! command -v cargo-fuzz >/dev/null; then \
		echo "make fuzz: SKIPPED fuzz/: there is no cargo-fuzz (cargo install cargo-fuzz)"; exit 0; fi; \
	if ! rustc +nightly --version >/dev/null 2>&1; then \
		echo "make fuzz: SKIPPED fuzz/: there is no nightly Rust (rustup toolchain install nightly)"; exit 0; fi; \
	set -e; cargo run --locked --release --example fuzz_seeds; \
	for target in frame consensus engines; do \
		cargo +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS); \
	done

# Mutants of the packet reader, the rule, and the monitor's count and publication: fails where one
# survives that tests/mutants/accepted.toml gives no reason for, or the other way round. An hour or
# more; figures in target/mutants.json. MUTANTS is `rule` or `monitor` for one of the two parts.
MUTANTS ?=
mutants: setup
	command -v cargo-mutants >/dev/null || cargo install --locked cargo-mutants
	python3 tests/mutants/run.py $(MUTANTS) $(ARGS)

# Two Debian packages for this machine's architecture, in target/deb: exitmark for the box, and
# exitmark-monitor. PROFILE=dev packs what the tests use; DEBFULLNAME and DEBEMAIL say who made
# them, VERSION another version than Cargo.toml's, of the packages and of the programs.
PROFILE ?= release
TARGET = $(or $(CARGO_TARGET_DIR),target)
deb: setup
	$(if $(VERSION),EXITMARK_VERSION=$(VERSION)) cargo build --locked --profile $(PROFILE) --bin exitmark --bin exitmark-monitor
	$(if $(VERSION),EXITMARK_VERSION=$(VERSION)) cargo run --locked --quiet --example manual -- $(TARGET)/manual
	dist/deb $(TARGET)/$(PROFILE:dev=debug) $(TARGET)/manual $(TARGET)/deb $(VERSION)

# The README's steps, and the monitor's, read out of the pages and run on a Debian 12 and a Debian 13
# machine in guests, with reboot, watchdog, kill, upgrade and purge: target/vm-install.json. Images
# are made once, in EXITMARK_VM_CACHE; RELEASES=bookworm takes one release alone. Root.
RELEASES ?=
vm-install-test: PACKAGES += mmdebstrap dpkg-dev e2fsprogs
vm-install-test: deb
	rm -rf $(TARGET)/vm-install && mkdir -p $(TARGET)/vm-install/first
	cp $(TARGET)/deb/*_$$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)_*.deb $(TARGET)/vm-install/first
	dist/deb $(TARGET)/$(PROFILE:dev=debug) $(TARGET)/manual $(TARGET)/vm-install/second 9999 >/dev/null
	python3 tests/vm/install.py $(TARGET)/vm-install/first $(TARGET)/vm-install/second \
		$(TARGET)/vm-install.json $(RELEASES)

check: setup
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

clean:
	cargo clean
