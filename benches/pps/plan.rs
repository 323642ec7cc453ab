//! The selection of loads: all of them would take days.

use crate::load::{Family, Load};

/// The axes that can be set on the command line.
#[derive(clap::Args)]
pub(crate) struct Axes {
    /// Frame sizes in bytes, without the FCS; a TCP frame of IPv6 has at least 74. With any of
    /// these options, without `--full`, the others keep their first value
    #[arg(long, value_delimiter = ',',
          value_parser = clap::value_parser!(u16).range(60..=1514))]
    sizes: Vec<u16>,
    /// The percentage of flows to relays
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u8).range(0..=100))]
    relay_percent: Vec<u8>,
    /// Address families
    #[arg(long, value_delimiter = ',')]
    families: Vec<Family>,
    /// Queues of every port, each with a generator on a core of its own
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=64))]
    queues: Vec<u32>,
    /// The number of the host's flows
    #[arg(long, value_delimiter = ',',
          value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    flows: Vec<u32>,
    /// Endpoints in the relay set
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=65_536))]
    relays: Vec<u32>,
    /// Every combination of all axes, which takes hours
    #[arg(long)]
    full: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    All,
    Exitmark,
}

impl Axes {
    pub(crate) fn loads(&self, quick: bool) -> Vec<(Load, Whom)> {
        if self.full || self.is_any_given() {
            self.product()
        } else if quick {
            let large = Load {
                size: 1514,
                ..Load::BASE
            };
            vec![(Load::BASE, Whom::All), (large, Whom::All)]
        } else {
            star()
        }
    }

    fn is_any_given(&self) -> bool {
        !(self.sizes.is_empty()
            && self.relay_percent.is_empty()
            && self.families.is_empty()
            && self.queues.is_empty()
            && self.flows.is_empty()
            && self.relays.is_empty())
    }

    fn product(&self) -> Vec<(Load, Whom)> {
        let base = Load::BASE;
        let sizes: Vec<usize> = self.sizes.iter().copied().map(usize::from).collect();
        let sizes = self.values(&sizes, base.size, &[64, 256, 512, 1514]);
        let shares = self.values(&self.relay_percent, base.relay_percent, &[0, 10, 50]);
        let families = [Family::Ipv4, Family::Ipv6];
        let families = self.values(&self.families, base.family, &families);
        let queues = self.values(&self.queues, base.queues, &[1, 2]);
        let flows = self.values(&self.flows, base.flows, &[1024, 65_536]);
        let relays = self.values(&self.relays, base.relays, &[1024, 10_000, 65_536]);
        let mut loads = vec![base];
        spread(&mut loads, &families, |load, family| load.family = family);
        spread(&mut loads, &queues, |load, queues| load.queues = queues);
        spread(&mut loads, &flows, |load, flows| load.flows = flows);
        spread(&mut loads, &relays, |load, relays| load.relays = relays);
        spread(&mut loads, &shares, |load, share| {
            load.relay_percent = share;
        });
        spread(&mut loads, &sizes, |load, size| load.size = size);
        loads.into_iter().map(|load| (load, Whom::All)).collect()
    }

    fn values<T: Copy>(&self, given: &[T], base: T, all: &[T]) -> Vec<T> {
        match given {
            [] if self.full => all.to_vec(),
            [] => vec![base],
            given => given.to_vec(),
        }
    }
}

/// Varies one axis at a time, with the first value of all others.
fn star() -> Vec<(Load, Whom)> {
    let base = Load::BASE;
    let mut loads = vec![base];
    let mut one = |change: &dyn Fn(&mut Load)| {
        let mut load = base;
        change(&mut load);
        loads.push(load);
    };
    for size in [256, 512, 1514] {
        one(&|load| load.size = size);
    }
    for share in [0, 10] {
        one(&|load| load.relay_percent = share);
    }
    one(&|load| (load.size, load.relay_percent) = (1514, 0));
    one(&|load| load.family = Family::Ipv6);
    one(&|load| load.queues = 2);
    one(&|load| load.flows = 65_536);
    let mut loads: Vec<_> = loads.into_iter().map(|load| (load, Whom::All)).collect();
    for relays in [1024, 65_536] {
        loads.push((Load { relays, ..base }, Whom::Exitmark));
    }
    loads
}

/// Combines every load with every value.
fn spread<T: Copy>(loads: &mut Vec<Load>, values: &[T], set: impl Fn(&mut Load, T)) {
    *loads = loads
        .iter()
        .flat_map(|load| {
            values.iter().map(|&value| {
                let mut load = *load;
                set(&mut load, value);
                load
            })
        })
        .collect();
}
