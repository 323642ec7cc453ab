//! Loads BPF objects, and turns the output of libbpf and the kernel's verifier into errors.
//!
//! libbpf prints a rejected program's whole verifier log, tens of KB, to standard error. Here the
//! loading thread captures it; `RUST_LOG=debug` logs each of its lines. The log is about
//! instructions and contains no packets; constants that are set before the load, such as the
//! monitor's clearnet addresses, may appear in it as numbers.
//!
//! Sources: libbpf's libbpf.c, the kernel's Documentation/bpf/verifier.rst.

#![forbid(unsafe_code)]

use caps::{CapSet, Capability};
use libbpf_rs::{PrintLevel, set_print};
use std::cell::RefCell;
use std::fmt;
use std::sync::Once;

/// The capabilities needed to load the programs. Without CAP_PERFMON, older kernels (before Linux
/// 6.6 and stable backports) refuse an XDP program that compares packet pointers. `CAP_SYS_ADMIN`
/// covers CAP_BPF and CAP_PERFMON.
const NEEDED: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_PERFMON,
];

/// The most lines of a verifier log that an error message quotes.
const REASON_LINES: usize = 2;

thread_local! {
    /// The output of libbpf since this thread began to load.
    static PRINTED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Why an object cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The kernel's verifier rejects one of its programs.
    #[error(transparent)]
    Verifier(Refusal),
    /// Any other failure: a capability, memory, a map, a pin.
    #[error("{source}{hint}")]
    System {
        /// The error from libbpf.
        source: libbpf_rs::Error,
        /// The remedy; empty, or begins with a semicolon.
        hint: String,
    },
}

/// A program that the kernel's verifier rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the verifier of Linux {kernel} refuses the program {program}: {reason}; {hint}")]
pub struct Refusal {
    /// The name of the program, e.g. `exitmark_host`.
    pub program: String,
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: String,
    /// The last lines of the verifier's log, which give the reason, and the source line that they
    /// refer to if the log has it.
    pub reason: String,
    /// The remedy, a clause without a full stop.
    pub hint: String,
}

impl Refusal {
    /// Parses the output of libbpf; `None` if the verifier rejected nothing.
    fn read(printed: &str, kernel: &str, missing: &[Capability]) -> Option<Self> {
        let (before, log) = printed.rsplit_once("-- BEGIN PROG LOAD LOG --")?;
        let (log, _) = log
            .split_once("-- END PROG LOAD LOG --")
            .unwrap_or((log, ""));
        let program = before.rsplit('\'').nth(1)?;
        let lines = log.lines().map(str::trim).filter(|line| !is_noise(line));
        let lines: Vec<_> = lines.collect();
        // The lines after the last instruction; its source line is in front of it.
        let about_code = |line: &&str| line.starts_with(|c: char| c == ';' || c.is_ascii_digit());
        let words = lines.iter().rposition(about_code).map_or(0, |at| at + 1);
        let words = &lines[words.max(lines.len().saturating_sub(REASON_LINES))..];
        if words.is_empty() {
            return None;
        }
        let mut reason = words.join(": ");
        if let Some(source) = lines.iter().rev().find_map(|line| line.strip_prefix(';')) {
            reason += &format!(" (at `{}`)", source.trim());
        }
        let hint = match missing {
            [] => "use a kernel that the README names, or report this: RUST_LOG=debug prints the \
                   verifier's whole log"
                .to_owned(),
            missing => format!(
                "this process lacks {}, without which the verifier refuses more: run it as root, \
                 or grant that in its service",
                Names(missing)
            ),
        };
        Some(Self {
            program: program.to_owned(),
            kernel: kernel.to_owned(),
            reason,
            hint,
        })
    }
}

/// Whether a line of the log is one of the statistics at its end, or about register tracking.
fn is_noise(line: &str) -> bool {
    const BEGINNINGS: [&str; 7] = [
        "processed ",
        "verification time ",
        "stack depth ",
        "mark_precise:",
        "last_idx ",
        "regs=",
        "parent ",
    ];
    line.is_empty() || BEGINNINGS.iter().any(|one| line.starts_with(one))
}

impl BpfError {
    fn of(source: libbpf_rs::Error, printed: &str) -> Self {
        let missing = missing_capabilities();
        if let Some(refusal) = Refusal::read(printed, &kernel_release(), &missing) {
            return Self::Verifier(refusal);
        }
        let is_denied = source.kind() == libbpf_rs::ErrorKind::PermissionDenied;
        Self::System {
            hint: match (is_denied, &missing[..]) {
                (false, _) => String::new(),
                (true, []) => "; this process has the required capabilities: kernel lockdown \
                               (`cat /sys/kernel/security/lockdown`), a seccomp filter or a user \
                               namespace forbids it"
                    .to_owned(),
                (true, missing) => format!(
                    "; this process lacks {}: run it as root, or grant that in its service",
                    Names(missing)
                ),
            },
            source,
        }
    }
}

/// Lists capabilities in a sentence: "A, B and C".
struct Names<'c>(&'c [Capability]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, name) in self.0.iter().enumerate() {
            let before = match index {
                0 => "",
                _ if index + 1 == self.0.len() => " and ",
                _ => ", ",
            };
            write!(f, "{before}{name}")?;
        }
        Ok(())
    }
}

fn missing_capabilities() -> Vec<Capability> {
    let has = caps::read(None, CapSet::Effective).unwrap_or_default();
    if has.contains(&Capability::CAP_SYS_ADMIN) && has.contains(&Capability::CAP_NET_ADMIN) {
        return Vec::new();
    }
    let needed = NEEDED.into_iter();
    needed.filter(|one| !has.contains(one)).collect()
}

/// The kernel's release, as `uname -r` prints it.
pub fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map(|names| names.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Opens or loads an object, and captures the output of libbpf meanwhile.
///
/// # Errors
/// The error of `load`, with the verifier's reason if the verifier rejected a program.
pub fn load<T>(load: impl FnOnce() -> libbpf_rs::Result<T>) -> Result<T, BpfError> {
    static CAPTURED: Once = Once::new();
    CAPTURED.call_once(|| {
        set_print(Some((PrintLevel::Info, print)));
    });
    PRINTED.set(Some(String::new()));
    let loaded = load();
    let printed = PRINTED.take().unwrap_or_default();
    loaded.map_err(|error| BpfError::of(error, &printed))
}

fn print(_: PrintLevel, text: String) {
    for line in text.lines() {
        tracing::debug!("{line}");
    }
    PRINTED.with_borrow_mut(|printed| {
        if let Some(printed) = printed {
            printed.push_str(&text);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The output of libbpf around a verifier log.
    fn printed(program: &str, log: &str) -> String {
        format!(
            "libbpf: prog '{program}': BPF program load failed: Permission denied\n\
             libbpf: prog '{program}': -- BEGIN PROG LOAD LOG --\n{log}\
             -- END PROG LOAD LOG --\n\
             libbpf: prog '{program}': failed to load: -13\n\
             libbpf: failed to load object 'exitmark_bpf'\n"
        )
    }

    #[test]
    fn the_decisive_line_of_a_log_is_the_reason() {
        let log = "reg type unsupported for arg#0 function exitmark_host#18\n\
                   ; bytes = bytes < LIMIT ? bytes : LIMIT;\n\
                   1204: (67) r7 <<= 32                     ; R7_w=scalar()\n\
                   1210: (85) call bpf_xdp_load_bytes#189\n\
                   invalid access to map value, value_size=96 off=48 size=0\n\
                   R3 min value is outside of the allowed memory range\n\
                   processed 4243 insns (limit 1000000) max_states_per_insn 4 total_states 194 \
                   peak_states 194 mark_read 17\n";
        let refusal = Refusal::read(&printed("exitmark_host", log), "6.1.0-42-amd64", &[]).unwrap();
        let said = refusal.to_string();
        for words in [
            "verifier of Linux 6.1.0-42-amd64 refuses the program exitmark_host: invalid access to \
             map value, value_size=96 off=48 size=0: R3 min value is outside of the allowed memory \
             range",
            "`bytes = bytes < LIMIT ? bytes : LIMIT;`",
            "RUST_LOG=debug",
        ] {
            assert!(said.contains(words), "{said}");
        }
        assert!(
            !said.contains("processed") && !said.contains("1210"),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1);
        // Newer kernels print more statistics; the size of a program is refused with E2BIG.
        let log = "BPF program is too large. Processed 1000001 insn\n\
                   verification time 912345 usec\nstack depth 312\nprocessed 1000001 insns\n";
        let refusal = Refusal::read(&printed("exitmark_host", log), "7.3.4", &[]).unwrap();
        assert_eq!(
            refusal.reason,
            "BPF program is too large. Processed 1000001 insn"
        );
    }

    #[test]
    fn other_failures_are_not_reported_as_verifier_rejections() {
        let denied =
            "libbpf: Error in bpf_create_map_xattr(policies):Operation not permitted(-1)\n";
        assert_eq!(Refusal::read(denied, "6.12", &NEEDED), None);
        // The verifier accepted the program, and a later step failed.
        let log = "processed 12 insns (limit 1000000) max_states_per_insn 0\n";
        assert_eq!(
            Refusal::read(&printed("exitmark_host", log), "6.12", &[]),
            None
        );
    }

    #[test]
    fn a_rejection_names_the_missing_capability() {
        let log = "R8 pointer comparison prohibited\nprocessed 5 insns (limit 1000000)\n";
        let missing = [Capability::CAP_PERFMON];
        let refusal = Refusal::read(&printed("exitmark_host", log), "6.12", &missing).unwrap();
        let said = refusal.to_string();
        assert!(said.contains("R8 pointer comparison prohibited; this process lacks CAP_PERFMON"));
        assert!(!said.contains("RUST_LOG"), "{said}");
        assert_eq!(
            Names(&NEEDED).to_string(),
            "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
        );
    }
}
