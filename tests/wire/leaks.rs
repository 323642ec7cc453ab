//! A hundred runs of the box on one set of NICs leave nothing behind after a detach.

use crate::craft::{exit, relay};
use crate::rig::{
    Config, EXITMARK, Side, assert_moved, detach, eventually, moved, needs_root, port, silent,
    wait_until, watch,
};
use exitmark_lab::site::{Plan, Site};
use exitmark_lab::{Capture, RawPort, RunningBox};
use libbpf_rs::query::{LinkInfoIter, MapInfoIter, ProgInfoIter};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// BPF objects of the kernel, by their IDs, which the kernel does not reuse.
#[derive(Debug, Default, PartialEq, Eq)]
struct Objects {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl Objects {
    /// The programs and maps of a process, from its descriptors in /proc, and the links of these
    /// programs, which no process holds.
    fn of(pid: u32) -> Self {
        let mut objects = Self::default();
        for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap() {
            let text = std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
            for line in text.lines() {
                let Some((name, number)) = line.split_once(':') else {
                    continue;
                };
                let set = match name {
                    "prog_id" => &mut objects.programs,
                    "map_id" => &mut objects.maps,
                    _ => continue,
                };
                set.insert(number.trim().parse().unwrap());
            }
        }
        let links = LinkInfoIter::default();
        let attached = links.filter(|link| objects.programs.contains(&link.prog_id));
        objects.links = attached.map(|link| link.id).collect();
        objects
    }

    /// The objects that still exist.
    fn left(&self) -> Self {
        let programs = ProgInfoIter::default().map(|one| one.id).collect();
        let maps = MapInfoIter::default().map(|one| one.id).collect();
        let links = LinkInfoIter::default().map(|one| one.id).collect();
        Self {
            programs: &self.programs & &programs,
            maps: &self.maps & &maps,
            links: &self.links & &links,
        }
    }

    fn add(&mut self, other: Self) {
        self.programs.extend(other.programs);
        self.maps.extend(other.maps);
        self.links.extend(other.links);
    }

    fn assert_gone(&self) {
        let is_gone = || self.left() == Self::default();
        let left = || format!("{:?} is left", self.left());
        wait_until("programs, maps and links go", is_gone, left);
    }
}

/// The pins in the box's BPF file system.
pub(crate) fn pins(site: &Site) -> Vec<String> {
    let names = site.middle.command("ls", &["/sys/fs/bpf"]).unwrap();
    // The kernel has two files of its own in it.
    let is_pin = |name: &&str| !name.ends_with(".debug");
    let names = names.split_whitespace().filter(is_pin);
    names.map(str::to_owned).collect()
}

/// The host's end of the box and its two egress ends.
struct Ends {
    host: RawPort,
    uplink: Capture,
    incoming: Capture,
    forwarded: usize,
}

impl Ends {
    fn open(site: &Site) -> Self {
        Self {
            host: port(site, Side::Host),
            uplink: watch(site, Side::Clearnet),
            incoming: watch(site, Side::Tornet),
            forwarded: 0,
        }
    }

    /// Sends an exit frame and a relay frame, and checks that both arrive.
    fn forward_one(&mut self) {
        self.host.send(&exit(0, 60).outbound(&[])).unwrap();
        self.host.send(&relay(1, 60).outbound(&[])).unwrap();
        self.forwarded += 1;
        let forwarded = self.forwarded;
        for eye in [&mut self.uplink, &mut self.incoming] {
            assert!(eye.counts(forwarded));
        }
    }

    fn finish(self) {
        let (marked, steered) = (exit(0, 60).marked(), relay(1, 60).steered());
        for (eye, frame) in [(self.uplink, marked), (self.incoming, steered)] {
            let captured = eye.finish().unwrap();
            assert!(captured.iter().all(|one| one.bytes == frame));
            assert_eq!(captured.len(), self.forwarded);
        }
    }
}

/// Waits until the kernel has removed a namespace, with its veth pairs.
fn assert_namespace_goes(site: Site) {
    let Site { host, middle, .. } = site;
    drop(middle);
    let is_gone = || host.ip("link show eth0").is_err();
    let left = || "its end of the host's link is there";
    wait_until("the box's namespace goes", is_gone, left);
}

/// A silent site, and a configuration for its box.
fn ground() -> (Site, tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let configuration = Config::default().write(directory.path()).unwrap();
    (silent(Plan::default()), directory, configuration)
}

#[test]
fn a_hundred_starts_and_stops_leave_nothing() {
    needs_root!();
    let (site, _directory, configuration) = ground();
    let mut ends = Ends::open(&site);
    let mut all = Objects::default();
    for cycle in 0..100_u64 {
        let mut running = site.run(EXITMARK, &configuration).unwrap();
        let pid = running.pid();
        // While other tests create and free objects, iterating over all of them may end early.
        let objects = eventually("its programs and links are seen", || {
            let objects = Objects::of(pid);
            match (objects.programs.len(), objects.links.len()) {
                (5, 5) => Ok(objects),
                _ => Err(format!("cycle {cycle}: {objects:?}")),
            }
        });
        assert!(objects.maps.len() >= 4, "{objects:?}");
        let is_seen = || objects.left() == objects;
        wait_until("what runs is seen", is_seen, || format!("{objects:?}"));
        all.add(objects);
        ends.forward_one();
        let moved = moved(&running.stop().unwrap());
        // Counters continue after a takeover.
        let lives = cycle + 1;
        let expected = format!(
            "host_received={} exit={lives} marked={lives} relay={lives} uplink_forwarded={lives} \
             incoming_forwarded={lives}",
            2 * lives
        );
        assert_moved(&moved, &expected);
    }
    // Programs are new every time. Those on the NICs keep their three links; the two that trace
    // drops get new ones.
    assert_eq!((all.programs.len(), all.links.len()), (500, 203));
    ends.forward_one();
    assert_eq!(pins(&site), ["exitmark"]);
    assert!(detach(&site).starts_with("detached"));
    all.assert_gone();
    assert_eq!(pins(&site), Vec::<String>::new());
    assert!(detach(&site).starts_with("nothing to detach"));
    // Every socket is closed, and its memory shared with the kernel is freed.
    let words = ["--no-header", "--xdp", "--all"];
    assert_eq!(site.middle.command("ss", &words).unwrap(), "");
    ends.finish();
    assert_namespace_goes(site);
}

#[test]
fn a_killed_box_leaves_nothing_and_starts_again() {
    needs_root!();
    let (site, _directory, configuration) = ground();
    let mut ends = Ends::open(&site);
    let mut all = Objects::default();
    for _ in 0..5 {
        let mut running = site.run(EXITMARK, &configuration).unwrap();
        let objects = Objects::of(running.pid());
        ends.forward_one();
        running.signal(Signal::SIGKILL).unwrap();
        // The box still works without its process.
        ends.forward_one();
        // The killed process holds the queue for a while; the next one waits for it.
        let next: RunningBox = site.run(EXITMARK, &configuration).unwrap();
        ends.forward_one();
        drop(running);
        let programs = Objects {
            programs: objects.programs.clone(),
            ..Objects::default()
        };
        programs.assert_gone();
        moved(&next.stop().unwrap());
        all.add(objects);
    }
    detach(&site);
    all.assert_gone();
    ends.finish();
    assert_namespace_goes(site);
}
