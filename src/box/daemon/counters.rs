//! Checks the counters of both engines once a second, and prints them on SIGUSR1 and at the end.

use super::relay_handle::RelayNumbers;
use super::sources::Translated;
use super::wire::Wire;
use super::workers::Sums;
use exitmark_datapath::{KernelCounts, Role};
use std::io::{self, Write};

/// What a wire has counted.
#[derive(Default)]
pub(super) struct Counted {
    workers: Sums,
    kernel: KernelCounts,
    audit: [(&'static str, u64); 3],
}

impl Counted {
    fn add(&mut self, other: &Self) {
        let (sums, more) = (&mut self.workers, &other.workers);
        sums.tally.add(&more.tally);
        sums.unaccounted += more.unaccounted;
        let (kernel, of_kernel) = (&mut self.kernel, &other.kernel);
        kernel.tally.add(&of_kernel.tally);
        for role in Role::ALL {
            sums.missed[role] += more.missed[role];
            sums.invalid[role] += more.invalid[role];
            sums.cut[role] += more.cut[role];
            kernel.to_stack[role] += of_kernel.to_stack[role];
            kernel.handed[role] += of_kernel.handed[role];
            kernel.spilled[role] += of_kernel.spilled[role];
        }
        for ((_, sum), (_, more)) in self.audit.iter_mut().zip(&other.audit) {
            *sum += more;
        }
    }

    /// Prints the sums of all wires, with the numbers of the relay set.
    pub(super) fn print(wires: Vec<Self>, relays: RelayNumbers) {
        let mut wires = wires.into_iter();
        let mut all = wires.next().unwrap_or_default();
        wires.for_each(|wire| all.add(&wire));
        let (sums, kernel) = (all.workers, all.kernel);
        let engines = [
            ("af_xdp_decided", sums.tally.decided()),
            ("xdp_decided", kernel.tally.decided()),
        ];
        let mut tally = sums.tally;
        tally.add(&kernel.tally);
        let mut line = format!("counters: {tally}");
        for role in Role::ALL {
            let numbers = [
                ("missed", sums.missed[role]),
                ("tx_invalid", sums.invalid[role]),
                ("cut", sums.cut[role]),
                ("to_stack", kernel.to_stack[role]),
                ("handed", kernel.handed[role]),
                ("spilled", kernel.spilled[role]),
            ];
            for (name, number) in numbers.into_iter().filter(|&(_, number)| number != 0) {
                line += &format!(" {role}_{name}={number}");
            }
        }
        for (name, number) in engines.into_iter().chain(relays).chain(all.audit) {
            line += &format!(" {name}={number}");
        }
        if sums.unaccounted > 0 {
            tracing::error!(
                unaccounted = sums.unaccounted,
                "frames are not accounted for, a fault of exitmark: report it"
            );
        }
        print_line(&format!("{line} unaccounted={}", sums.unaccounted));
    }
}

impl Wire {
    /// Checks the counts since the last call for lost frames, blind programs, and traffic that does
    /// not fit the configuration. `by_incoming` is how many frames the programs of all wires have
    /// seen that share this wire's NIC `incoming`. Adds to `translated`.
    pub(super) fn look_at_counters(
        &mut self,
        kernel: &KernelCounts,
        by_incoming: u64,
        lacks_relays: bool,
        translated: &mut Translated,
    ) {
        let sums = self.workers.sums(self.counted_groups());
        let groups = self.groups(kernel, &sums.groups);
        let mut tally = sums.tally.clone();
        tally.add(&kernel.tally);
        let carrying = self.carrying.as_ref();
        let is_held = |role| carrying.is_some_and(|carrying| carrying.holds(role));
        self.rising.look(&tally, &sums, &self.bound, is_held);
        self.look_at_ports(kernel, by_incoming, &sums);
        self.look_at_sides(&tally);
        self.look_at_topology(&tally, &groups, lacks_relays);
        translated.add(&tally);
    }

    /// What has been counted so far.
    pub(super) fn counted(&self) -> Counted {
        Counted {
            workers: self.workers.sums(0),
            kernel: self.kernel.counts().unwrap_or_default(),
            audit: self.audit.numbers(),
        }
    }
}

/// Prints and flushes a line. A closed standard output does not stop the box.
pub(super) fn print_line(line: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
