//! Findings on the NICs: each alone, and all together.

use super::facts::{Facts, Port};
use super::{Finding, Severity, next_hops, word};
use crate::settings::Engine;
use exitmark_datapath::{MAX_QUEUES, Role};
use exitmark_nic::{Nic, NicError, Offload, OffloadState, common_queues, is_link_local};

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    for port in &facts.ports {
        let of_port = match &port.nic {
            Ok(nic) => of_nic(facts, port, nic),
            Err(reason) => vec![Finding::fault(&port.name, reason.as_str())],
        };
        // A NIC without a role need not meet the requirements: at most a warning.
        findings.extend(of_port.into_iter().map(|mut finding| {
            if port.role.is_none() {
                finding.severity = finding.severity.min(Severity::Warning);
            }
            finding
        }));
    }
    findings
}

fn of_nic(facts: &Facts, port: &Port, nic: &Nic) -> Vec<Finding> {
    let mut findings = vec![link(nic, port.role)];
    findings.extend(related_interfaces(facts, port, nic));
    findings.extend(xdp(facts, port, nic));
    findings.extend(mtu(facts, port, nic));
    findings.extend(queues(facts, port, nic));
    findings.extend(
        Offload::ALL
            .into_iter()
            .filter_map(|offload| offloaded(nic, offload)),
    );
    findings.push(promiscuous(nic, port.role));
    findings.extend(addresses(facts, port, nic));
    findings.extend(next_hops::judge(facts, port, nic));
    findings
}

fn link(nic: &Nic, role: Option<Role>) -> Finding {
    let subject = &nic.name;
    let role = role.map_or("no role given".to_owned(), |role| role.to_string());
    if !nic.is_up {
        return Finding::fault(subject, format!("{role}: down"))
            .because("nothing is received or sent")
            .mended_by(format!("ip link set dev {} up", word(subject)));
    }
    if !nic.has_carrier {
        return Finding::warning(subject, format!("{role}: up, no carrier"))
            .because("the other end is down, or no cable is plugged in");
    }
    Finding::ok(subject, format!("{role}: up, carrier, {}", nic.mac))
}

/// Finds other interfaces that send or receive by the NIC.
fn related_interfaces(facts: &Facts, port: &Port, nic: &Nic) -> Option<Finding> {
    let refused = match nic.refuse_bundles() {
        Ok(()) if facts.scope.is_egress(port.role) => return None,
        Ok(()) => nic.refuse_uppers().err()?,
        Err(error) => error,
    };
    let finding = Finding::fault(&port.name, refused.to_string());
    Some(match refused {
        NicError::Member(name, _) => {
            finding.mended_by(format!("ip link set dev {} nomaster", word(&name)))
        }
        NicError::Upper(_, upper) => {
            finding.mended_by(format!("ip link set dev {} down", word(&upper.name)))
        }
        _ => finding,
    })
}

fn xdp(facts: &Facts, port: &Port, nic: &Nic) -> Vec<Finding> {
    let subject = &nic.name;
    let driver = match &nic.driver {
        Some(driver) => format!("driver {driver}"),
        None => "unknown driver".to_owned(),
    };
    let Some(state) = port.xdp else {
        return vec![Finding::warning(
            subject,
            format!("{driver}; the kernel does not report its XDP state"),
        )];
    };
    let mut findings = vec![match state.features {
        None => Finding::ok(subject, driver).because(
            "Linux before 6.3 does not report XDP features: the start shows whether XDP is native",
        ),
        Some(can) if !can.native => {
            Finding::warning(subject, format!("{driver}: XDP in generic mode only")).because(
                "the box works, several times slower; use a NIC whose driver has native XDP",
            )
        }
        Some(can) => {
            // Only binding a socket proves zero-copy, and that resets queues of a NIC in use.
            let zero_copy = if can.zero_copy {
                "zero-copy advertised"
            } else {
                "no zero-copy"
            };
            let finding = Finding::ok(subject, format!("{driver}: native XDP, {zero_copy}"));
            match (can.zero_copy, nic.driver.as_deref()) {
                (true, Some("virtio_net")) => finding.because(
                    "zero-copy sockets bind only if the virtual machine gives the NIC an IOMMU and \
                     queue reset (QEMU: iommu_platform=on,queue_reset=on); `exitmark status` \
                     shows whether they did",
                ),
                (true, _) => {
                    finding.because("`exitmark status` shows whether zero-copy sockets were bound")
                }
                (false, _) => finding,
            }
        }
    }];
    if facts.scope.needs_zero_copy && state.features.is_some_and(|can| !can.zero_copy) {
        findings.push(
            Finding::fault(subject, "the driver has no zero-copy")
                .because("datapath.zero_copy = \"require\"; \"auto\" falls back to copy mode"),
        );
    }
    // With the other engines the box runs, and warns at its start.
    if facts.scope.needs_zero_copy
        && facts.scope.engine == Engine::Xdp
        && port.role.is_some()
        && !nic.takes_zero_copy_redirects()
    {
        findings.push(
            Finding::fault(
                subject,
                "the driver drops frames that are redirected to it from a zero-copy port",
            )
            .because(
                "engine = \"xdp\" redirects every frame; datapath.zero_copy = \"auto\" keeps copy \
                 mode here",
            ),
        );
    }
    let is_ours = |&(_, ifindex, program): &(Role, u32, u32)| {
        ifindex == nic.index && program == state.program
    };
    if facts.attached.iter().any(is_ours) {
        findings.push(Finding::ok(subject, "exitmark's XDP program is attached"));
    } else if state.program != 0 && facts.hides_pins {
        findings.push(
            Finding::warning(subject, "an XDP program is attached")
                .because("only root can read whether the program is exitmark's: run this as root"),
        );
    } else if state.program != 0 {
        let mode = if state.is_generic {
            "xdpgeneric"
        } else {
            "xdpdrv"
        };
        findings.push(
            Finding::fault(
                subject,
                format!("another XDP program is attached, ID {}", state.program),
            )
            .because(
                "a NIC runs one program at a time; if the command is refused, the program was \
                 attached by a BPF link: end the program that attached it, or `exitmark detach` if \
                 that was exitmark",
            )
            .mended_by(format!("ip link set dev {} {mode} off", word(subject))),
        );
    }
    findings
}

/// The NICs of the ports that have a role.
fn nics_with_role(facts: &Facts) -> impl Iterator<Item = &Nic> {
    let ports = facts.ports.iter().filter(|port| port.role.is_some());
    ports.filter_map(|port| port.nic.as_ref().ok())
}

fn mtu(facts: &Facts, port: &Port, nic: &Nic) -> Option<Finding> {
    let subject = &nic.name;
    let set = |mtu: u32| format!("ip link set dev {} mtu {mtu}", word(subject));
    let has_several = |port: &Port| {
        port.xdp
            .and_then(|xdp| xdp.features)
            .is_none_or(|can| can.multi_buffer || !can.native)
    };
    let takes_long =
        !facts.scope.forbids_frags && facts.kernel >= (6, 6) && facts.ports.iter().all(has_several);
    let least = nics_with_role(facts).map(Nic::one_buffer_mtu).min();
    let most = match takes_long {
        true => u32::MAX,
        false => least.unwrap_or(u32::MAX).min(nic.one_buffer_mtu()),
    };
    let wanted = match port.role {
        Some(_) => nics_with_role(facts)
            .next()
            .map_or(nic.mtu, |first| first.mtu),
        None => nic.mtu,
    };
    let wanted = wanted.min(most);
    if nic.mtu > most {
        let why = format!(
            "a packet longer than {most} bytes needs several buffers, which requires Linux 6.6, a \
             driver that supports them on every port, and datapath.frags other than \"off\""
        );
        let finding = Finding::fault(subject, format!("MTU {}", nic.mtu));
        return Some(finding.because(why).mended_by(set(wanted)));
    }
    if nic.mtu != wanted {
        let finding = Finding::fault(subject, format!("MTU {}, not {wanted}", nic.mtu));
        return Some(
            finding
                .because("a wire needs the same MTU on every port")
                .mended_by(set(wanted)),
        );
    }
    Some(Finding::ok(subject, format!("MTU {}", nic.mtu)))
}

fn queues(facts: &Facts, port: &Port, nic: &Nic) -> Vec<Finding> {
    let subject = &nic.name;
    let is_one = |count: u32| if count == 1 { "queue" } else { "queues" };
    let what = format!("{} receive {}", nic.queues, is_one(nic.queues));
    let set = |finding: Finding, queues: u32| match nic.sets_queues {
        true => {
            let kind = nic.queues_kind();
            finding.mended_by(format!("ethtool -L {} {kind} {queues}", word(subject)))
        }
        false => finding,
    };
    let limit = u32::try_from(MAX_QUEUES).unwrap_or(u32::MAX);
    let cpus = facts.cpus;
    let nics: Vec<&Nic> = match port.role {
        Some(_) => nics_with_role(facts).collect(),
        None => vec![nic],
    };
    let common = common_queues(&nics, cpus, limit);
    // With a program attached the number cannot be changed, and virtio_net's includes the queues
    // that it has added for XDP.
    let has_program = port.xdp.is_some_and(|xdp| xdp.is_native());
    if has_program && nics.iter().all(|other| other.queues == nic.queues) {
        return vec![Finding::ok(subject, what)];
    }
    let most = nic.most_queues_with_xdp(cpus);
    if nic.queues > most && !has_program {
        let finding = Finding::fault(subject, format!("{what}, more than {most}")).because(
            format!("on {cpus} CPUs the kernel panics when XDP redirects a frame to this NIC"),
        );
        return vec![set(finding, common.unwrap_or(most))];
    }
    let Some(wanted) = common else {
        let what = format!("{what}, and no number of queues is possible on every port");
        return vec![match facts.scope.engine {
            Engine::Xdp => Finding::warning(subject, what)
                .because("slow-path frames from queues without a worker are forwarded unmarked"),
            _ => Finding::fault(subject, what).because(
                "every port needs the same number of queues, except with engine = \"xdp\"",
            ),
        }];
    };
    let lost =
        "its driver drops frames that XDP redirects to it on a CPU without a queue of that number";
    let is_lossy = nic.loses_redirects(cpus);
    if nic.queues != wanted {
        let what = format!("{what}, not {wanted}");
        let finding = if is_lossy {
            Finding::fault(subject, what).because(lost)
        } else if facts.scope.engine == Engine::Xdp {
            Finding::warning(subject, what).because(
                "slow-path frames (IP fragments, IPv6 extension headers) from the queues that the \
                 other ports lack are forwarded unmarked",
            )
        } else {
            Finding::fault(subject, what).because(format!(
                "every port needs the same number of queues, {MAX_QUEUES} at most"
            ))
        };
        return vec![set(finding, wanted)];
    }
    let mut findings = vec![Finding::ok(subject, what)];
    if is_lossy {
        let what = format!("fewer queues than the {cpus} CPUs");
        findings.push(Finding::warning(subject, what).because(format!(
            "{lost}: let the interrupts of every port come to the first {wanted} CPUs only \
             (/proc/irq/*/smp_affinity_list, without irqbalance)"
        )));
    }
    findings
}

fn offloaded(nic: &Nic, offload: Offload) -> Option<Finding> {
    match nic.offloads.state(offload) {
        OffloadState::FixedOn => Some(
            Finding::fault(
                &nic.name,
                format!("{offload} is on and cannot be turned off"),
            )
            .because(format!("{}; use another NIC", offload.harm())),
        ),
        OffloadState::On => Some(
            Finding::ok(&nic.name, format!("{offload} is on"))
                .because("`exitmark run` turns it off, `exitmark detach` on again"),
        ),
        OffloadState::Off | OffloadState::FixedOff | OffloadState::Absent => None,
    }
}

fn promiscuous(nic: &Nic, role: Option<Role>) -> Finding {
    match (nic.is_promiscuous, role) {
        (true, _) => Finding::ok(&nic.name, "promiscuous"),
        (false, Some(Role::Incoming) | None) => Finding::ok(&nic.name, "not promiscuous"),
        (false, _) => Finding::ok(&nic.name, "not promiscuous")
            .because("`exitmark run` turns it on, `exitmark detach` off again"),
    }
}

fn addresses(facts: &Facts, port: &Port, nic: &Nic) -> Vec<Finding> {
    let subject = &nic.name;
    if facts.scope.is_egress(port.role) {
        return Vec::new();
    }
    let Some(role) = port.role else {
        let count = nic.addresses.len();
        let finding = Finding::ok(
            subject,
            match count {
                1 => "an address of the box".to_owned(),
                _ => format!("{count} addresses of the box"),
            },
        );
        let why = "with an address, this NIC can be `incoming`, but neither `host` nor `uplink`";
        return (count > 0)
            .then(|| finding.because(why))
            .into_iter()
            .collect();
    };
    // In reverse order: deleting a network's first address deletes its others too, and the commands
    // for those would fail.
    let mut findings: Vec<Finding> = nic
        .addresses
        .iter()
        .rev()
        .filter(|address| !is_link_local(address))
        .map(|address| {
            Finding::fault(subject, format!("the box has the address {address} here"))
                .because(format!(
                    "{role} is an end of the wire: frames sent to that address do not reach the box"
                ))
                .mended_by(format!("ip addr del {address} dev {}", word(subject)))
        })
        .collect();
    if nic.addresses.iter().any(is_link_local) {
        let key = format!("net.ipv6.conf.{}.disable_ipv6=1", nic.sysctl_name());
        findings.push(
            Finding::warning(subject, "the box has an IPv6 link-local address here")
                .because("the kernel sends IPv6 packets from it on the wire")
                .mended_by(format!("sysctl -w {}", word(&key))),
        );
    }
    findings
}
