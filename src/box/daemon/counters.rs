//! Reads the counters of both engines once a second for the checks that need them, and prints them
//! on SIGUSR1 and at the end.

use super::Daemon;
use exitmark_datapath::Role;
use std::io::{self, Write};

impl Daemon {
    /// Checks the counts since the last call for lost frames, blind programs, and traffic that does
    /// not fit the configuration.
    pub(super) fn look_at_counters(&mut self) {
        // If reading fails, the next call compares.
        let Ok(kernel) = self.kernel.counts() else {
            return;
        };
        let sums = self.workers.sums(self.counted_groups());
        let groups = self.groups(&kernel, &sums.groups);
        let mut tally = sums.tally.clone();
        tally.add(&kernel.tally);
        self.rising.look(&tally, &sums, &self.bound);
        self.look_at_ports(&kernel, &sums);
        self.look_at_sides(&tally);
        self.look_at_topology(&tally, &groups);
    }

    pub(super) fn print_counters(&self) {
        let sums = self.workers.sums(0);
        let kernel = self.kernel.counts().unwrap_or_default();
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
        let (relays, audit) = (self.in_force.relay_service.numbers(), self.audit.numbers());
        for (name, number) in engines.into_iter().chain(relays).chain(audit) {
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

/// Prints and flushes a line. A closed standard output does not stop the box.
pub(super) fn print_line(line: &str) {
    let mut stdout = io::stdout().lock();
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
