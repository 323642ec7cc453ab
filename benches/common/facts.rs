//! Facts about the machine and its tools, without its name or paths.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

/// A field of the first processor in `/proc/cpuinfo`.
pub(crate) fn processor(field: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(name, _)| name.trim() == field)?;
    Some(value.trim().to_owned())
}

/// The caches of the first processor, own and shared, nearest first.
pub(crate) fn caches() -> Option<String> {
    let cache = |index: u8| {
        let directory = format!("/sys/devices/system/cpu/cpu0/cache/index{index}");
        let read = |what: &str| content(&format!("{directory}/{what}"));
        let kind = match read("type")?.as_str() {
            "Data" => "d",
            "Instruction" => "i",
            _ => "",
        };
        Some(format!("L{}{kind} {}", read("level")?, read("size")?))
    };
    let all: Vec<_> = (0..8).map_while(cache).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// The kernel's memory in GiB.
pub(crate) fn memory() -> Option<String> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(format!("{:.1} GiB", kib / f64::from(1 << 20)))
}

/// The hypervisor; `None` unless the machine is a guest.
pub(crate) fn hypervisor() -> Option<String> {
    let flags = processor("flags")?;
    flags.split(' ').find(|flag| *flag == "hypervisor")?;
    let text = output("lscpu", &[]).unwrap_or_default();
    let mut lines = text.lines();
    let vendor = lines.find_map(|line| line.strip_prefix("Hypervisor vendor:"));
    Some(vendor.unwrap_or("of unknown make").trim().to_owned())
}

/// The kernel's mitigations of CPU vulnerabilities; those that do not affect the CPU are omitted.
pub(crate) fn mitigations() -> Option<String> {
    let directory = fs::read_dir("/sys/devices/system/cpu/vulnerabilities").ok()?;
    let reported: BTreeSet<_> = directory
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let text = fs::read_to_string(entry.path()).ok()?;
            let name = entry.file_name().into_string().ok()?;
            let state = text.trim();
            let short = state.strip_prefix("Mitigation: ").unwrap_or(state);
            let short = short.split(';').next().unwrap_or_default();
            (state != "Not affected").then(|| format!("{name}: {short}"))
        })
        .collect();
    Some(match reported.is_empty() {
        true => "none is needed".to_owned(),
        false => Vec::from_iter(reported).join("; "),
    })
}

pub(crate) fn governor() -> Option<String> {
    content("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
}

/// The commit of these sources, with `-dirty` at the end if they differ from it.
pub(crate) fn commit() -> Option<String> {
    let sources = env!("CARGO_MANIFEST_DIR");
    output("git", &["-C", sources, "describe", "--always", "--dirty"])
}

/// The DPDK version of testpmd.
pub(crate) fn testpmd() -> Option<String> {
    let text = output("dpdk-testpmd", &["-v", "--help"])?;
    let line = text.lines().find(|line| line.contains("RTE Version"))?;
    line.split('\'').nth(1).map(str::to_owned)
}

/// The first line of a tool's version output.
pub(crate) fn version(program: &str, argument: &str) -> Option<String> {
    let text = output(program, &[argument])?;
    text.lines().next().map(|line| line.trim().to_owned())
}

pub(crate) fn date() -> Option<String> {
    output("date", &["-u", "+%FT%TZ"])
}

/// The standard output or standard error of a command, if it runs and prints anything.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let (said, warned) = (output.stdout, output.stderr);
    let text = [said, warned].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let fine = output.status.success();
    let text = text.join("\n").trim().to_owned();
    (fine && !text.is_empty()).then_some(text)
}

fn content(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned())
}
