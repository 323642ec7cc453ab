//! `exitmark run` with its engines, on the cores that the generators leave.

use super::{Forwarder, Job, Started};
use crate::common::exitmark::Variant;
use crate::load::Load;
use crate::site::{FAR_END, Site, pin_to_forwarder_cpus};
use ::exitmark_lab::{Config, Netns, VethEnd, contained, veth};
use ::exitmark_policy::MAX_GROUPS;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

/// After an overload the XDP program decides alone for about a second, and returns frames to the
/// worker within another second and a third.
const SPILL_RECOVERS_IN: Duration = Duration::from_millis(2500);

pub(super) const VARIANTS: [Variant; 3] = [
    Variant::new("exitmark-xdp", "xdp", ""),
    Variant::new("exitmark-af_xdp", "af_xdp", "spill = false"),
    Variant::new("exitmark-af_xdp-spill", "af_xdp", "spill = true"),
];

pub(super) fn all() -> [Forwarder; 3] {
    let [xdp, af_xdp, mut spill] = VARIANTS.map(|variant| {
        Forwarder::new(variant.name, Job::MarkAndSteer, move |site, _, load| {
            start(variant, site, load)
        })
    });
    spill.recovers_in = SPILL_RECOVERS_IN;
    [xdp, af_xdp, spill]
}

fn start(variant: Variant, site: &Site, load: &Load) -> Started {
    start_with(
        variant,
        site,
        load,
        configuration(load, load.host_prefixes()),
    )
}

fn configuration(load: &Load, addresses: impl IntoIterator<Item = String>) -> Config {
    let relays: Vec<_> = load.relays().map(|relay| relay.to_string()).collect();
    Config::default()
        .addresses(addresses)
        .relays(format!("extra = {relays:?}"))
        .more("[mark]\ndscp = \"af11\"")
}

fn start_with(variant: Variant, site: &Site, load: &Load, config: Config) -> Started {
    let generators = load.queues;
    site.middle.run(move || pin_to_forwarder_cpus(generators))?;
    let running = variant.start(&site.middle, config)?;
    Ok(Box::new(|| running.stop_well().map(drop)))
}

/// Engine `xdp` with as many groups of hosts as there can be; the load's hosts are spread over them.
pub(crate) fn of_groups() -> Forwarder {
    let [xdp, ..] = VARIANTS;
    Forwarder::new(
        "exitmark-xdp-groups",
        Job::MarkAndSteer,
        move |site, _, load| {
            let mut groups = vec![Vec::new(); MAX_GROUPS];
            for (number, prefix) in load.host_prefixes().enumerate() {
                groups[number % MAX_GROUPS].push(prefix);
            }
            for (number, group) in groups.iter_mut().enumerate() {
                // Addresses that send nothing: nearly 1,024 in all.
                group.extend((0..15).map(|last| format!("10.77.{number}.{last}")));
            }
            let mut config = configuration(load, groups.remove(0));
            for group in groups {
                config = config.group(format_args!("addresses = {group:?}"));
            }
            start_with(xdp, site, load, config)
        },
    )
}

/// Engine `xdp` that translates the source address of every host's relay frames.
pub(super) fn translating() -> Forwarder {
    let [xdp, ..] = VARIANTS;
    Forwarder::new(
        "exitmark-xdp-translate",
        Job::MarkAndSteer,
        move |site, _, load| {
            // Prefixes of the same lengths, one behind the other.
            let sources = (0_u32..).zip(load.host_prefixes()).map(|(number, host)| {
                let length = host.split_once('/').map(|(_, length)| format!("/{length}"));
                let source = match host.contains(':') {
                    true => format!("2001:db8:3:{number:x}::"),
                    false => Ipv4Addr::from(0xcb00_0000 | number << 4).to_string(),
                };
                format!("{host:?} = \"{source}{}\"", length.unwrap_or_default())
            });
            let table = sources.collect::<Vec<_>>().join(", ");
            let config = configuration(load, load.host_prefixes());
            let config = config.steer(format_args!("source = {{ {table} }}"));
            start_with(xdp, site, load, config)
        },
    )
}

/// Engine `xdp` with a tap that gets copies of the exit frames, and a monitor behind it that takes
/// them from the wire and drops them.
pub(super) fn tapped() -> Forwarder {
    const TAP: &str = "tap0";
    let [xdp, ..] = VARIANTS;
    Forwarder::new(
        "exitmark-xdp-tap",
        Job::MarkAndSteer,
        move |site, _, load| {
            let monitor = Netns::new("monitor")?;
            monitor.disable_ipv6()?;
            let far = VethEnd::new(&monitor, FAR_END, "02:00:00:00:04:02");
            let near = VethEnd::new(&site.middle, TAP, "02:00:00:00:04:01");
            veth(&far, &near, 1500)?;
            let config = configuration(load, load.host_prefixes()).tap(TAP);
            let stop = start_with(xdp, site, load, config)?;
            Ok(Box::new(move || {
                let stopped = stop();
                drop(monitor);
                stopped
            }))
        },
    )
}

/// Engine `af_xdp` with these lines in `[datapath]`, which are its name too.
pub(crate) fn with_datapath(lines: &str) -> Forwarder {
    // Names live as long as the bench.
    let name: &'static str = Box::leak(lines.to_owned().into_boxed_str());
    let lines: &'static str = Box::leak(format!("spill = false\n{lines}").into_boxed_str());
    let variant = Variant::new(name, "af_xdp", lines);
    Forwarder::new(name, Job::MarkAndSteer, move |site, _, load| {
        start(variant, site, load)
    })
}

/// The engines while `exitmark capture` writes every frame that its limit allows.
pub(crate) fn captured() -> [Forwarder; 2] {
    let [xdp, af_xdp, _] = VARIANTS;
    [
        ("exitmark-xdp-capture", xdp),
        ("exitmark-af_xdp-capture", af_xdp),
    ]
    .map(|(name, variant)| {
        Forwarder::new(name, Job::MarkAndSteer, move |site, _, load| {
            start_captured(variant, site, load)
        })
    })
}

fn start_captured(variant: Variant, site: &Site, load: &Load) -> Started {
    let stop = start(variant, site, load)?;
    let mut command = contained(env!("CARGO_BIN_EXE_exitmark"));
    command
        .args([
            "capture",
            "--frames",
            "1000000",
            "--seconds",
            "3600",
            "--out",
            "-",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let capture = site.middle.start(command)?;
    Ok(Box::new(move || {
        drop(capture);
        stop()
    }))
}
