# exitmark. `make demo` and `make test` do all the set-up on a Debian machine, as root.
# Without root nothing is installed, and tests that require root are listed as skipped.

# Debian packages, by their use. For `cargo build`: libbpf-sys compiles libbpf with make, pkg-config
# and the headers of libelf and zlib; libxdp-sys expands a file with m4, compiles libxdp and its BPF
# programs with gcc and clang, and bindgen loads libclang; clang also compiles bpf/. The headers of
# libbpf that bpf/ includes are libbpf-sys's; only the tests and benches use Debian's.
BUILD_PACKAGES := gcc libc6-dev make pkg-config m4 clang libclang1 libelf-dev zlib1g-dev
DEMO_PACKAGES := iproute2 ethtool tcpdump util-linux
DEB_PACKAGES := debhelper python3
TEST_PACKAGES := libbpf-dev nftables iputils-ping tor systemd tshark postgresql \
                 chromium-headless-shell
# For the comparisons of the benches.
BENCH_PACKAGES := dpdk-dev
ALL_PACKAGES := $(BUILD_PACKAGES) $(DEMO_PACKAGES) $(DEB_PACKAGES) $(TEST_PACKAGES)
TARGET = $(or $(CARGO_TARGET_DIR),target)

SETUPS := setup setup-build setup-demo setup-deb setup-bench setup-instructions setup-fuzz \
          setup-vm-install
.PHONY: $(SETUPS) demo test test-survive test-tor vm-test vm-install-test vm-publish bench \
        bench-publish bench-check bench-baseline fuzz fuzz-engines mutants check deb \
        deb-reproducible clean

# `setup` is for the tests; each of the others installs only what its target requires.
setup: PACKAGES = $(ALL_PACKAGES)
setup-build: PACKAGES = $(BUILD_PACKAGES)
setup-demo: PACKAGES = $(BUILD_PACKAGES) $(DEMO_PACKAGES)
setup-deb: PACKAGES = $(BUILD_PACKAGES) $(DEB_PACKAGES)
setup-bench: PACKAGES = $(ALL_PACKAGES) $(BENCH_PACKAGES)
setup-instructions: PACKAGES = $(ALL_PACKAGES) valgrind
setup-fuzz: PACKAGES = $(BUILD_PACKAGES) g++
setup-vm-install: PACKAGES = $(ALL_PACKAGES) mmdebstrap dpkg-dev e2fsprogs

# The tests run a tor and a database of their own. policy-rc.d keeps the packages' services from
# starting now, and services that were not installed before are disabled, for the next boot.
SERVICES := tor.service postgresql.service
UNITS := /lib/systemd/system
$(SETUPS):
	@missing=$$(for p in $(PACKAGES); do dpkg-query -Wf '$${Status}' $$p 2>/dev/null | grep -q '^install ok installed' || echo $$p; done); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then echo "make $@: not root, so these Debian packages are not installed:" $$missing; exit 0; fi; \
	policy=/usr/sbin/policy-rc.d; made=; \
	[ -e $$policy ] || { printf '#!/bin/sh\nexit 101\n' > $$policy && chmod 755 $$policy && made=$$policy; }; \
	new=$$(for s in $(SERVICES); do [ -e $(UNITS)/$$s ] || echo $$s; done); \
	apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $$missing; \
	status=$$?; [ -z "$$made" ] || rm -f $$made; \
	for s in $$new; do [ ! -e $(UNITS)/$$s ] || systemctl disable $$s || status=1; done; exit $$status
	@command -v cargo >/dev/null || { echo "make $@: there is no cargo; install Rust 1.92 or newer (https://rustup.rs)"; exit 1; }

# Cargo.toml says how the profile differs from a release.
demo: setup-demo
	cargo build --locked --profile demo --no-default-features --bin exitmark --bin exitmark-demo
	$(TARGET)/demo/exitmark demo $(ARGS)

# Every tier that this machine allows; skipped tests print a line with SKIPPED. Suites that mostly
# wait, for Tor's votes or for processes, run in parallel to the others, at a higher priority; so do
# suites that compute and have no time limits. The suite that counts losses under load runs last, alone.
WAITING := tor wire
BESIDE := $(WAITING) relays rule audit engines
ALONE := survive
WIRE_THREADS ?= 4
SUITES := $(patsubst tests/%/main.rs,%,$(wildcard tests/*/main.rs)) \
          $(patsubst tests/%.rs,%,$(wildcard tests/*.rs)) audit demo
named = $(addprefix --test ,$(1))
test: setup
	cargo test --locked --no-run --lib --bins --tests
	@status=0; outputs=$$(mktemp -d); \
	run() { echo "cargo test $$*"; $$nice cargo test --locked --no-fail-fast "$$@" -- --show-output $$threads $(ARGS); }; \
	for suite in $(BESIDE); do \
		nice=nice; threads=; case " $(WAITING) " in *" $$suite "*) nice= ;; esac; \
		[ $$suite != wire ] || threads=--test-threads=$(WIRE_THREADS); \
		run --test $$suite > $$outputs/$$suite 2>&1 & besides="$$besides $$suite=$$!"; done; \
	nice=nice; threads=; \
	run --lib --bins $(call named,$(filter-out $(ALONE) $(BESIDE),$(SUITES))) || status=1; \
	run --doc || status=1; \
	for each in $$besides; do \
		wait $${each#*=} || status=1; cat $$outputs/$${each%=*}; done; rm -r $$outputs; nice=; \
	run --test survive || status=1; exit $$status

# Lost frames when the box is killed, stopped, replaced, starved: target/survive.json.
test-survive: setup
	EXITMARK_EVERY_STEP=1 cargo test --locked --test survive -- --show-output $(ARGS)
	EXITMARK_EVERY_STEP=1 cargo test --locked --test wire killed -- --show-output

# A private Tor network with a box behind each of three exits, compared with tor's own counts:
# target/tor.json.
test-tor: setup
	cargo test --locked --test tor -- --show-output $(ARGS)

# The box in guests, on Linux 6.1 to 7.3 and every NIC that QEMU emulates: target/vm.json. Then two
# wires in a link aggregate whose cables are cut: target/vm-lag.json. QEMU and the kernels are fetched
# by apt and not installed; CELLS is a regular expression of cells.
CELLS ?= .
vm-test: setup
	cargo build --locked --release --bin exitmark --bin exitmark-demo --bin exitmark-monitor
	python3 tests/vm/run.py matrix --cells '$(CELLS)' --program $(TARGET)/release/exitmark $(ARGS)
	python3 tests/vm/run.py lag --middles direct,box --program $(TARGET)/release/exitmark

# Writes the results into docs/kernels.md.
vm-publish:
	python3 tests/vm/run.py publish

# All benches, compared with alternatives: packet rates, latency, growth, TCP, ns per decision and per
# packet of a worker, consensus documents, the monitor; then target/bench/report.md with its plots.
# ARGS (--runs, --seconds, --quick) is for all but the documents; PPS_ARGS, LATENCY_ARGS, GROWTH_ARGS,
# TCP_ARGS and MONITOR_ARGS are for one bench.
bench: setup-bench
	@status=0; run() { echo "$$*"; "$$@" || status=1; }; \
	run cargo bench --locked --bench pps -- $(ARGS) $(PPS_ARGS); \
	run cargo bench --locked --bench pps -- latency $(ARGS) $(LATENCY_ARGS); \
	run cargo bench --locked --bench pps -- growth $(ARGS) $(GROWTH_ARGS); \
	run cargo bench --locked --bench tcp -- $(ARGS) $(TCP_ARGS); \
	run cargo bench --locked --bench kernel -- $(ARGS); \
	run cargo bench --locked --bench worker -- $(ARGS); \
	run cargo bench --locked --bench decision -- $(ARGS); \
	run cargo bench --locked --bench consensus; \
	run cargo bench --locked --bench monitor -- $(ARGS) $(MONITOR_ARGS); \
	run cargo run --locked --quiet --bin bench-report; exit $$status

# Writes the results into docs/benchmarks.md and the README's table.
bench-publish:
	cargo run --locked --quiet --bin bench-report -- --publish

# Instructions per decision: fails if they differ from benches/instructions.json by more than 2 %. Then
# one short run of the benches of user space, whose figures `make bench-publish` refuses.
# bench-baseline rewrites instructions.json; commit it with the change that is the reason.
bench-check: setup-instructions
	cargo bench --locked --bench instructions
	cargo bench --locked --bench worker -- --quick
	cargo bench --locked --bench decision -- --quick
bench-baseline: setup-instructions
	cargo bench --locked --bench instructions -- --write-baseline

# Generated frames through both engines, as root: fails, and stores the frame, if they differ.
FRAMES ?= 100000000
SEED ?=
fuzz-engines: setup-build
	FRAMES=$(FRAMES) SEED=$(SEED) cargo run --locked --release --bin engines

# The same, then each fuzzer of fuzz/ for FUZZ_SECONDS; they require cargo-fuzz and a nightly Rust.
FUZZ_SECONDS ?= 60
fuzz: setup-fuzz fuzz-engines
	@if ! command -v cargo-fuzz >/dev/null; then \
		echo "make fuzz: SKIPPED fuzz/: there is no cargo-fuzz (cargo install cargo-fuzz)"; exit 0; fi; \
	if ! rustc +nightly --version >/dev/null 2>&1; then \
		echo "make fuzz: SKIPPED fuzz/: there is no nightly Rust (rustup toolchain install nightly)"; exit 0; fi; \
	set -e; cargo run --locked --release --bin fuzz-seeds; \
	for target in frame consensus engines; do \
		cargo +nightly fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS); \
	done

# Mutants of the packet parser, the rule, and the monitor's counting and publication: fails if one
# survives without a reason in tests/mutants/accepted.toml, or if a mutant listed there does not. An
# hour or more; figures in target/mutants.json. MUTANTS is `rule` or `monitor` for one part.
MUTANTS ?=
mutants: setup
	command -v cargo-mutants >/dev/null || cargo install --locked cargo-mutants
	python3 tests/mutants/run.py $(MUTANTS) $(ARGS)

# Two Debian packages for this machine's architecture, in target/deb: exitmark for the box, and
# exitmark-monitor. PROFILE=dev packages the build of the tests; DEBFULLNAME and DEBEMAIL set the
# maintainer, VERSION overrides Cargo.toml's version, of the packages and of the programs.
PROFILE ?= release
BUILT = $(TARGET)/$(PROFILE:dev=debug)
# The tests are built without it, and would be built again.
REPRODUCIBLY = $(if $(filter dev,$(PROFILE)),,dist/reproducible/run)
deb: setup-deb
	$(REPRODUCIBLY) env $(if $(VERSION),EXITMARK_VERSION=$(VERSION)) cargo build --locked --profile $(PROFILE) \
		--bin exitmark --bin exitmark-demo --bin exitmark-monitor --bin manual
	$(BUILT)/manual $(TARGET)/manual
	dist/deb $(BUILT) $(TARGET)/manual $(TARGET)/deb $(VERSION)

# Builds the packages in two copies of these sources, in directories of different lengths, and fails
# if they differ.
deb-reproducible: setup-deb
	dist/reproducible/compare $(TARGET)/reproducible

# Reads the commands of docs/install.md and docs/monitor.md and runs them on a Debian 12 and a
# Debian 13 guest, with reboot, watchdog, kill, upgrade and purge: target/vm-install.json. Images are
# created once, in EXITMARK_VM_CACHE; RELEASES=bookworm selects one release. Requires root.
RELEASES ?=
vm-install-test: setup-vm-install deb
	rm -rf $(TARGET)/vm-install && mkdir -p $(TARGET)/vm-install/first
	cp $(TARGET)/deb/*_$$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)_*.deb $(TARGET)/vm-install/first
	dist/deb $(BUILT) $(TARGET)/manual $(TARGET)/vm-install/second 9999 >/dev/null
	python3 tests/vm/install.py $(TARGET)/vm-install/first $(TARGET)/vm-install/second \
		$(TARGET)/vm-install.json $(RELEASES)

# deny.toml: the allowed licences and sources, and which crates may depend on which.
check: setup-build
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
	@if ! command -v cargo-deny >/dev/null; then \
		echo "make check: SKIPPED deny.toml: there is no cargo-deny (cargo install --locked cargo-deny)"; exit 0; fi; \
	set -ex; cargo deny --locked --workspace check licenses sources; \
	cargo deny --locked --workspace --exclude-dev check bans

clean:
	cargo clean
