//! Checks the ports' numbers of receive queues: refuses those with which the kernel would panic or
//! that workers cannot serve, and warns of others.

use super::DaemonError;
use super::nics::Nics;
use crate::settings::Engine;
use exitmark_datapath::MAX_QUEUES;
use exitmark_nic::{Nic, common_queues};

#[allow(clippy::cast_possible_truncation, reason = "a small number")]
const LIMIT: u32 = MAX_QUEUES as u32;

impl Nics {
    /// Checks the numbers on a machine of `cpus` CPUs. `has_program` tells whether a NIC's driver
    /// already runs an XDP program.
    pub(super) fn check_queues(
        &self,
        engine: Engine,
        cpus: u32,
        has_program: impl Fn(&Nic) -> Result<bool, DaemonError>,
    ) -> Result<(), DaemonError> {
        let all: Vec<&Nic> = self.present().map(|(_, nic)| nic).collect();
        let common = common_queues(&all, cpus, LIMIT);
        for nic in &all {
            let most = nic.most_queues_with_xdp(cpus);
            // A driver with a program does not change its queues.
            if nic.queues > most && !has_program(nic)? {
                let driver = nic.driver.as_deref();
                return Err(DaemonError::Unmet(format!(
                    "{} has {} queue pairs, and its driver ({}) is safe with {most} on {cpus} \
                     CPUs: with more the kernel panics when XDP redirects a frame to it; {}",
                    nic.name,
                    nic.queues,
                    driver.unwrap_or("which the kernel does not name"),
                    nic.queues_advice(common.unwrap_or(most))
                )));
            }
        }
        let Some((first, others)) = all.split_first() else {
            return Ok(());
        };
        let other = others.iter().find(|nic| nic.queues != first.queues);
        match (engine, other) {
            (Engine::Xdp | Engine::Connect, _) => Ok(()),
            (_, Some(other)) => Err(DaemonError::Unmet(format!(
                "{} has {} receive queues but {} has {}; engines af_xdp and auto need the same \
                 number on every port, engine = \"xdp\" does not: {}",
                first.name,
                first.queues,
                other.name,
                other.queues,
                set_queues(&all, common)
            ))),
            (_, None) if first.queues > LIMIT => Err(DaemonError::Unmet(format!(
                "{} has {} receive queues, more than {MAX_QUEUES}: {}",
                first.name,
                first.queues,
                set_queues(&all, common)
            ))),
            (_, None) => Ok(()),
        }
    }

    pub(super) fn remarks_on_queues(&self, engine: Engine, cpus: u32) -> Vec<String> {
        let all: Vec<&Nic> = self.present().map(|(_, nic)| nic).collect();
        let common = common_queues(&all, cpus, LIMIT);
        let losing = all.iter().filter(|nic| nic.loses_redirects(cpus));
        let mut remarks: Vec<_> = losing
            .map(|nic| {
                let possible = match engine {
                    Engine::Xdp | Engine::Connect => cpus.min(nic.most_queues),
                    Engine::Auto | Engine::AfXdp => common.unwrap_or(nic.queues),
                };
                lossy(nic, cpus, possible)
            })
            .collect();
        let workers = self.workers();
        remarks.extend(all.iter().filter(|nic| nic.queues > workers).map(|nic| {
            format!(
                "{} has {} receive queues and {workers} of them have a worker: slow-path \
                 frames (IP fragments, IPv6 extension headers) from the others are forwarded \
                 unmarked and counted as no_user_space; {}",
                nic.name,
                nic.queues,
                set_queues(&all, common),
            )
        }));
        remarks
    }

    /// The number of workers: one for each queue that every port has.
    pub(super) fn workers(&self) -> u32 {
        let fewest = self.own().map(|(_, nic)| nic.queues).min();
        fewest.unwrap_or(0).min(LIMIT)
    }
}

/// The warning for a NIC with fewer queues than CPUs, which could have `possible`.
fn lossy(nic: &Nic, cpus: u32, possible: u32) -> String {
    let advice = match possible > nic.queues {
        true => format!("{}, or ", nic.queues_advice(possible)),
        false => String::new(),
    };
    format!(
        "{} has {} queues for {cpus} CPUs, and its driver drops frames that XDP redirects to it on \
         a CPU without a queue of that number: {advice}let the interrupts of every port come to \
         the first {} CPUs only (/proc/irq/*/smp_affinity_list, without irqbalance)",
        nic.name, nic.queues, nic.queues
    )
}

/// The commands that give every port this many queues, for a message.
fn set_queues(nics: &[&Nic], queues: Option<u32>) -> String {
    let Some(queues) = queues else {
        return "no number of queues is possible on every port".to_owned();
    };
    let wrong = nics.iter().filter(|nic| nic.queues != queues);
    let advices: Vec<_> = wrong.map(|nic| nic.queues_advice(queues)).collect();
    advices.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use exitmark_datapath::Role;

    /// Two ports of these drivers, with queues in use and at most.
    fn ports(host: (&str, u32, u32), uplink: (&str, u32, u32)) -> Nics {
        let nic = |name: &str, (driver, queues, most_queues): (&str, u32, u32)| Nic {
            queues,
            most_queues,
            sets_queues: !["e1000e", "vmxnet3"].contains(&driver),
            ..Nic::example(name, Some(driver).filter(|driver| !driver.is_empty()))
        };
        let mut nics = Nics::default();
        nics.ports[Role::Host] = Some(nic("host0", host));
        nics.ports[Role::Uplink] = Some(nic("uplink0", uplink));
        nics
    }

    #[track_caller]
    fn says(text: &str, words: &str) {
        assert!(text.contains(words), "{text}");
    }

    fn check(nics: &Nics, engine: Engine, cpus: u32) -> Result<(), String> {
        nics.check_queues(engine, cpus, |_| Ok(false))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn queues_with_which_the_kernel_panics_are_refused_by_every_engine() {
        for driver in ["virtio_net", ""] {
            let nics = ports((driver, 4, 4), (driver, 4, 4));
            for engine in [Engine::Auto, Engine::AfXdp, Engine::Xdp] {
                let refused = check(&nics, engine, 2).unwrap_err();
                says(&refused, "host0 has 4 queue pairs");
                says(&refused, "`ethtool -L host0 combined 2`");
                assert!(check(&nics, engine, 4).is_ok());
            }
            // With a program attached the number cannot be changed.
            assert!(nics.check_queues(Engine::Auto, 2, |_| Ok(true)).is_ok());
        }
        // With a pair to spare for each CPU.
        let nics = ports(("virtio_net", 4, 6), ("virtio_net", 4, 6));
        assert!(check(&nics, Engine::Auto, 2).is_ok());
    }

    #[test]
    fn no_advice_leads_to_queues_with_which_the_kernel_panics() {
        let drivers = ["virtio_net", "igb", "i40e", "e1000e", ""];
        for (host, uplink) in drivers.iter().flat_map(|&a| drivers.map(|b| (a, b))) {
            for cpus in 1..=4 {
                for (a, b) in (1..=4).flat_map(|a| (1..=4).map(move |b| (a, b))) {
                    let nics = ports((host, a, 4), (uplink, b, 4));
                    let Err(refused) = check(&nics, Engine::Auto, cpus) else {
                        continue;
                    };
                    for command in refused
                        .split('`')
                        .filter(|text| text.starts_with("ethtool"))
                    {
                        let words: Vec<_> = command.split(' ').collect();
                        let (_, nic) = nics
                            .present()
                            .find(|(_, nic)| nic.name == words[2])
                            .unwrap();
                        let number: u32 = words[4].parse().unwrap();
                        let may_be_virtio = [None, Some("virtio_net")];
                        let panics = may_be_virtio.contains(&nic.driver.as_deref())
                            && number > cpus
                            && number + cpus > 4;
                        assert!(!panics, "{refused}");
                        assert!(nic.sets_queues, "{refused}");
                    }
                }
            }
        }
    }

    #[test]
    fn ports_with_different_numbers_have_the_workers_of_the_fewest() {
        let nics = ports(("e1000e", 1, 1), ("igb", 4, 8));
        for engine in [Engine::Auto, Engine::AfXdp] {
            let refused = check(&nics, engine, 2).unwrap_err();
            says(&refused, "host0 has 1 receive queues but uplink0 has 4");
            says(&refused, "engine = \"xdp\" does not");
            says(&refused, "`ethtool -L uplink0 combined 1`");
        }
        assert!(check(&nics, Engine::Xdp, 2).is_ok());
        assert_eq!(nics.workers(), 1);
        let nics = ports(("e1000e", 1, 1), ("vmxnet3", 4, 4));
        let refused = check(&nics, Engine::Auto, 2).unwrap_err();
        says(&refused, "no number of queues is possible on every port");
        assert!(!refused.contains("ethtool"), "{refused}");
        let nics = ports(("ice", 96, 96), ("ice", 96, 96));
        let refused = check(&nics, Engine::Auto, 96).unwrap_err();
        says(&refused, "`ethtool -L host0 combined 64`");
        assert!(check(&nics, Engine::Xdp, 96).is_ok());
        assert_eq!(nics.workers(), 64);
    }

    #[test]
    fn the_advice_for_a_lossy_driver_is_a_number_that_it_supports() {
        let nics = ports(("i40e", 4, 64), ("i40e", 4, 64));
        let (_, nic) = nics.present().next().unwrap();
        let said = lossy(nic, 8, 8);
        says(
            &said,
            "`ethtool -L host0 combined 8`, or let the interrupts",
        );
        says(&said, "the first 4 CPUs only");
        assert!(!lossy(nic, 8, 4).contains("ethtool"));
    }
}
