//! Findings on the kernel, the caller's privileges, and tor's files.

use super::facts::{Facts, RelayFile, Trial};
use super::{Finding, word};
use crate::settings::Engine;
use caps::Capability;
use exitmark_datapath::CPU_LATENCY_DEVICE;
use exitmark_relays::{Age, CLOCK_SLACK, Validity, utc};
use std::io;
use std::path::Path;
use std::time::Duration;

/// More bytes than a box of four queues and three ports with the default rings locks.
const ENOUGH_LOCKED: u64 = 1 << 30;

/// The BPF file system that the package mounts, and its unit (dist/systemd).
const PACKAGED_PINS: &str = "/run/bpf/exitmark";
const PINS_UNIT: &str = "run-bpf-exitmark.mount";

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![kernel(facts)];
    findings.extend(programs(facts));
    findings.push(btf(facts));
    findings.extend(facts.has_jit.map(jit));
    findings.push(pins(facts));
    findings.extend(capabilities(facts));
    findings.extend(memory(facts));
    findings.extend(facts.cpu_latency.as_ref().map(cpu_latency));
    findings.extend(facts.files.iter().map(|file| relay_file(file, facts)));
    let warning = facts.own_resolver.as_deref();
    findings.extend(warning.map(|text| Finding::warning("host.resolvers", text)));
    findings
}

impl Facts {
    const fn is_tor_host(&self) -> bool {
        matches!(self.scope.engine, Engine::Connect)
    }

    /// The programs that the engine loads, as the subject of a sentence.
    const fn programs(&self) -> &'static str {
        match self.is_tor_host() {
            true => "the programs of engine connect",
            false => "the XDP programs",
        }
    }
}

fn kernel(facts: &Facts) -> Finding {
    let subject = "kernel";
    let version = facts.kernel;
    let what = format!("Linux {}.{}", version.0, version.1);
    match version {
        old if old < (6, 1) => Finding::fault(subject, what).because(format!(
            "{} need Linux 6.1; install a newer kernel",
            facts.programs()
        )),
        _ if facts.is_tor_host() => Finding::ok(subject, what),
        old if old < (6, 3) => Finding::warning(subject, what).because(
            "this kernel does not report the XDP features of drivers before the start (Linux 6.3 \
             does), and has no multi-buffer AF_XDP (Linux 6.6 has): the MTU may be 3498 at most \
             (virtio_net: 3486)",
        ),
        old if old < (6, 6) => Finding::warning(subject, what).because(
            "this kernel has no multi-buffer AF_XDP (Linux 6.6 has): the MTU may be 3498 at most \
             (virtio_net: 3486)",
        ),
        _ => Finding::ok(subject, what),
    }
}

fn programs(facts: &Facts) -> Vec<Finding> {
    let subject = "kernel";
    let (release, programs) = (&facts.release, facts.programs());
    match &facts.trial {
        Trial::NotTried => vec![
            Finding::ok(
                subject,
                format!("whether {programs} load on Linux {release} was not tried"),
            )
            .because("that takes CAP_BPF: run this as root"),
        ],
        Trial::Refused(reason) => vec![
            Finding::fault(
                subject,
                format!("{programs} do not load on Linux {release}"),
            )
            .because(reason.as_str()),
        ],
        Trial::Loads(optional) => {
            let loads = format!("{programs} load on Linux {release}");
            let mut findings = vec![Finding::ok(subject, loads)];
            // Another finding has the cause.
            let is_reported = !facts.has_btf
                || facts.is_tor_host() && facts.missing.contains(&Capability::CAP_PERFMON);
            if let (Err(reason), false) = (optional, is_reported) {
                let what = match facts.is_tor_host() {
                    true => "connections that are open before the start cannot be found",
                    false => "redirected frames that a NIC drops cannot be counted",
                };
                findings.push(Finding::warning(subject, what).because(reason.as_str()));
            }
            findings
        }
    }
}

fn btf(facts: &Facts) -> Finding {
    if facts.has_btf {
        return Finding::ok("btf", "the kernel provides BTF");
    }
    let finding = Finding::warning("btf", "/sys/kernel/btf/vmlinux does not exist");
    finding.because(match facts.is_tor_host() {
        true => {
            "connections that are open before the start are neither counted nor marked; finding \
             them requires a kernel with CONFIG_DEBUG_INFO_BTF"
        }
        false => {
            "redirected frames that a NIC drops are not counted; counting them requires a kernel \
             with CONFIG_DEBUG_INFO_BTF"
        }
    })
}

fn jit(is_on: bool) -> Finding {
    match is_on {
        true => Finding::ok("jit", "BPF programs are compiled"),
        false => Finding::warning("jit", "BPF programs are interpreted")
            .because("every decision takes several times as much CPU time")
            .mended_by("sysctl -w net.core.bpf_jit_enable=1"),
    }
}

fn cpu_latency(limit: &Result<Duration, String>) -> Finding {
    let subject = "cpu_latency";
    match limit {
        Ok(limit) => Finding::ok(
            subject,
            format!(
                "while frames arrive often, cores get ready within {} us",
                limit.as_micros()
            ),
        ),
        Err(error) => Finding::warning(
            subject,
            format!("{CPU_LATENCY_DEVICE} cannot be opened: {error}"),
        )
        .because(
            "the box forwards all the same, but a frame that arrives after a pause waits until \
             its core has left an idle state; datapath.cpu_latency = \"off\" makes no request",
        ),
    }
}

fn pins(facts: &Facts) -> Finding {
    let directory = &facts.scope.pin.directory;
    let shown = directory.display();
    if !facts.has_bpf_fs {
        let above = directory.parent().unwrap_or(Path::new("/sys/fs/bpf"));
        let above = word(&above.to_string_lossy());
        // The package's mount unit also sets the directory's permissions.
        let command = match directory.starts_with(PACKAGED_PINS) {
            true => format!("systemctl start {PINS_UNIT}"),
            false => format!("mkdir -p {above} && mount -t bpf bpf {above}"),
        };
        return Finding::fault("pins", format!("{shown} is not in a BPF file system"))
            .because("only pins in a BPF file system keep the policy when the process ends")
            .mended_by(command);
    }
    if facts.is_pinned {
        let (ports, cgroups) = (facts.attached.len(), facts.attached_cgroups);
        let what = match (ports, cgroups) {
            (0, 0) => {
                let what = "but this user sees no attached program";
                format!("there are pins at {shown}, {what}")
            }
            (0, 1) => format!("engine connect is at {shown}, attached to a cgroup"),
            (0, _) => format!("engine connect is at {shown}, attached to {cgroups} cgroups"),
            _ => format!("there is a box at {shown}, attached to {ports} ports"),
        };
        let is_of_others = match facts.is_tor_host() {
            true => ports > 0,
            false => cgroups > 0 && facts.ports.iter().any(|port| port.role.is_some()),
        };
        if is_of_others {
            return Finding::fault("pins", what)
                .because("`exitmark run` refuses to start; detach it, or set another pin.directory")
                .mended_by(format!(
                    "exitmark detach --pins {}",
                    word(&directory.to_string_lossy())
                ));
        }
        return Finding::ok("pins", what).because(
            "`exitmark run` takes it over, unless another process holds it; `exitmark detach` \
             detaches it",
        );
    }
    Finding::ok(
        "pins",
        format!("{shown} does not exist yet, and can be created"),
    )
}

fn capabilities(facts: &Facts) -> Vec<Finding> {
    let needed = facts.missing.iter().filter_map(|&capability| {
        let why = match facts.is_tor_host() {
            true => why_tor_host(capability)?,
            false => why_box(capability)?,
        };
        let finding = Finding::fault("rights", format!("this user lacks {capability}"));
        Some(finding.because(format!(
            "{why}; run it as root, or grant the capability in its service"
        )))
    });
    let mut findings: Vec<Finding> = needed.collect();
    if findings.is_empty() {
        findings.push(Finding::ok("rights", "all needed capabilities"));
    }
    findings
}

/// What a box cannot do without a capability.
const fn why_box(capability: Capability) -> Option<&'static str> {
    match capability {
        Capability::CAP_NET_ADMIN => {
            Some("NIC settings cannot be changed, and programs cannot be attached")
        }
        Capability::CAP_BPF => Some("the XDP program cannot be loaded"),
        Capability::CAP_NET_RAW => Some("AF_XDP sockets cannot be created"),
        Capability::CAP_PERFMON => Some(
            "the programs that count dropped frames cannot be loaded, and older kernels refuse an \
             XDP program that compares packet pointers",
        ),
        // CAP_IPC_LOCK matters only under a limit; see `memory`.
        _ => None,
    }
}

/// Why engine connect does not start without a capability.
const fn why_tor_host(capability: Capability) -> Option<&'static str> {
    match capability {
        Capability::CAP_NET_ADMIN => {
            Some("the kernel loads programs that change sockets only with it")
        }
        Capability::CAP_BPF => Some("programs and their maps cannot be loaded"),
        Capability::CAP_PERFMON => Some(
            "the kernel's verifier refuses the programs without it, and connections that are open \
             before the start are found only with it",
        ),
        _ => None,
    }
}

fn memory(facts: &Facts) -> Option<Finding> {
    let limit = facts
        .memlock
        .filter(|_| facts.missing.contains(&Capability::CAP_IPC_LOCK) && !facts.is_tor_host())?;
    let what = format!("this user may lock {} KiB of memory", limit / 1024);
    if limit >= ENOUGH_LOCKED {
        return Some(Finding::ok("memory", what));
    }
    Some(
        Finding::warning("memory", what)
            .because(
                "packet memory is locked: large rings or many queues do not fit; in a service, set \
                 `LimitMEMLOCK=infinity`",
            )
            .mended_by("ulimit -l unlimited"),
    )
}

fn relay_file(file: &RelayFile, facts: &Facts) -> Finding {
    let path = file.path.display();
    match file.trouble {
        None => match file.validity {
            Some(validity) => consensus(file, validity, facts),
            None => Finding::ok("relays", format!("{path} can be read"))
                .because("`exitmark relays` shows its content"),
        },
        Some(io::ErrorKind::PermissionDenied) => {
            Finding::fault("relays", format!("{path} may not be read")).because(
                "nothing is marked until the relay set is read from tor's files, which only tor's \
                 user may read: run this as root, or grant CAP_DAC_READ_SEARCH in its service",
            )
        }
        Some(io::ErrorKind::NotFound) => Finding::fault("relays", format!("{path} does not exist"))
            .because(
                "until this file exists there is no relay set, and nothing is marked; a running tor \
                 writes it into its CacheDirectory, usually /var/lib/tor",
            ),
        Some(other) => Finding::fault("relays", format!("{path} cannot be opened: {other}"))
            .because(
                "without tor's files there is no relay set, and nothing is marked",
            ),
    }
}

impl Facts {
    /// Whether there is a newer consensus that is not stale.
    fn has_newer(&self, than: Validity) -> bool {
        let others = self.files.iter().filter_map(|file| file.validity);
        let mut newer = others.filter(|other| other.valid_after > than.valid_after);
        newer.any(|other| other.age(self.now) != Age::Stale)
    }
}

/// The age of a consensus by this machine's clock, which may be wrong.
fn consensus(file: &RelayFile, validity: Validity, facts: &Facts) -> Finding {
    let (path, now) = (file.path.display(), facts.now);
    let clock = utc(now);
    let until = utc(validity.valid_until);
    let why = "check the clock (`timedatectl`), and tor's log for why it fetches no consensus";
    match validity.age(now) {
        Age::Early => {
            let from = utc(validity.valid_after);
            let what = format!("{path} is valid from {from} UTC on, the clock is at {clock} UTC");
            let is_refused = now
                .checked_add(CLOCK_SLACK)
                .is_some_and(|limit| validity.valid_after > limit);
            let finding = match is_refused {
                true => Finding::fault("clock", what),
                false => Finding::warning("clock", what),
            };
            finding
                .because("the clock is slow: a consensus more than an hour ahead of it is refused")
                .mended_by("timedatectl set-ntp true")
        }
        Age::Fresh => Finding::ok("relays", format!("{path} is valid until {until} UTC"))
            .because(format!("the clock is at {clock} UTC")),
        Age::Old => Finding::warning(
            "relays",
            format!(
                "{path} is past its fresh-until time, and valid until {until} UTC; the clock is at \
                 {clock} UTC"
            ),
        )
        .because(why),
        Age::Expired => Finding::warning(
            "relays",
            format!("{path} was valid until {until} UTC, the clock is at {clock} UTC"),
        )
        .because(why),
        Age::Stale if facts.has_newer(validity) => Finding::warning(
            "relays",
            format!("{path} is stale: it was valid until {until} UTC, the clock is at {clock} UTC"),
        )
        .because(format!(
            "it is refused, and a newer one decides; {why}, or remove the file"
        )),
        Age::Stale => Finding::fault(
            "relays",
            format!("{path} is stale: it was valid until {until} UTC, the clock is at {clock} UTC"),
        )
        .because(format!(
            "relays cannot be distinguished from other destinations any more; {why}"
        )),
    }
}
