//! A Tor host and the world in two namespaces, and the engine on the host.

use exitmark_box::control::{Client, DEFAULT_SOCKET};
use exitmark_box::observe::{ConnectionsReport, Report};
use exitmark_lab::{LabError, Netns, RunningBox, VethEnd, contained, veth};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use tempfile::TempDir;

pub(crate) const EXITMARK: &str = env!("CARGO_BIN_EXE_exitmark");
pub(crate) use exitmark_lab::cases::connections::{
    HOST_V4, HOST_V6, MARK, OWN, RELAY, RELAY_SOURCE_V4, RELAY_SOURCE_V6, RELAY_V6, RESOLVER, WEB,
    WEB_V6, configuration,
};
pub(crate) use exitmark_lab::{needs_root, wait_until};

/// A user ID that no other test of this process has, and hardly another process.
pub(crate) fn user() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    0x4000_0000 + (std::process::id() % 0x10_0000) * 0x100 + number
}

pub(crate) struct Host {
    pub(crate) host: Netns,
    pub(crate) world: Netns,
    pub(crate) user: u32,
    pub(crate) directory: TempDir,
}

impl Host {
    /// Makes both namespaces, with servers in the world that keep connections open.
    pub(crate) fn new() -> Self {
        let (host, world) = (Netns::new("torhost").unwrap(), Netns::new("world").unwrap());
        let ends = [
            VethEnd::new(&host, "eth0", "02:00:00:00:01:01"),
            VethEnd::new(&world, "eth0", "02:00:00:00:02:02"),
        ];
        veth(&ends[0], &ends[1], 1500).unwrap();
        let add = |address: &str| format!("addr add {address} dev eth0");
        host.ip_batch(&[
            add(&format!("{HOST_V4}/24")),
            add(&format!("{RELAY_SOURCE_V4}/32")),
            add(&format!("{HOST_V6}/64")),
            // Only used where a socket is bound to it.
            format!("addr add {RELAY_SOURCE_V6}/128 dev eth0 preferred_lft 0"),
            "route add default via 192.0.2.1".to_owned(),
            "route add default via 2001:db8:1::1".to_owned(),
        ])
        .unwrap();
        world
            .ip_batch(&[
                add("192.0.2.1/24"),
                add("2001:db8:1::1/64"),
                add("198.51.100.7/32"),
                add("198.18.0.1/32"),
                add("2001:db8:51::7/128"),
                add("2001:db8:18::1/128"),
                add("198.18.9.1/32"),
                add("2001:db8:18:1::1/128"),
                format!("route add {RELAY_SOURCE_V4}/32 via {HOST_V4}"),
                format!("route add {RELAY_SOURCE_V6}/128 via {HOST_V6}"),
            ])
            .unwrap();
        for port in [53, 80, 853, 9001] {
            world.run(move || {
                let listener = TcpListener::bind(("::", port)).unwrap();
                std::thread::spawn(move || listener.incoming().flatten().collect::<Vec<_>>());
            });
        }
        Self {
            host,
            world,
            user: user(),
            directory: TempDir::new().unwrap(),
        }
    }

    /// The configuration with more lines in `[steer]` and more tables.
    pub(crate) fn text(&self, steer: &str, more: &str) -> String {
        let configuration = configuration(self.user, "", "dscp = \"af11\"", steer);
        configuration + more
    }

    pub(crate) fn write(&self, text: &str) -> PathBuf {
        let path = self.directory.path().join("exitmark.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn run(&self, configuration: &Path) -> Result<RunningBox, LabError> {
        RunningBox::start(&self.host, EXITMARK, configuration)
    }

    /// Starts the engine with this text.
    pub(crate) fn start(&self, text: &str) -> RunningBox {
        self.run(&self.write(text)).unwrap()
    }

    pub(crate) fn status(&self) -> Report {
        self.host
            .run(|| Client::new(DEFAULT_SOCKET).status())
            .unwrap()
    }

    pub(crate) fn connections(&self) -> ConnectionsReport {
        self.status().connections.unwrap()
    }

    pub(crate) fn exitmark(&self, arguments: &[&str]) -> Result<String, LabError> {
        self.host.command(EXITMARK, arguments)
    }

    /// Runs a command of the box that may fail; its output and its errors.
    pub(crate) fn fails(&self, arguments: &[&str]) -> String {
        let mut command = contained(EXITMARK);
        command.args(arguments);
        let output = self.host.output(command).unwrap();
        assert!(!output.status.success(), "{arguments:?} did not fail");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

/// Counts of a class: opened, and open before.
pub(crate) fn class(connections: &ConnectionsReport, class: &str) -> (u64, u64) {
    let of = connections.classes.iter().find(|of| of.class == class);
    of.map_or((0, 0), |of| (of.opened, of.earlier))
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An ordinary connection from a namespace, by the user of the tests.
pub(crate) fn plain(netns: &Netns, destination: &str) -> TcpStream {
    let destination: SocketAddr = destination.parse().unwrap();
    netns.run(move || TcpStream::connect(destination)).unwrap()
}
