//! Several machines on one link of the box: a switch, VLAN tags, connections that last, and counters
//! of what a machine receives.

use crate::rig::timeout;
use exitmark_lab::bpf::Programs;
use exitmark_lab::site::FAR_END;
use exitmark_lab::{Netns, VethEnd, eventually, veth};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The bytes that go back and forth in a round of a [`Conversation`].
const ROUND: usize = 16 << 10;
/// The pause between two rounds.
const PAUSE: Duration = Duration::from_millis(5);
/// How many rounds show that a connection goes on: data that were on the way before are in the first
/// one.
const ROUNDS: u64 = 3;

/// Makes a namespace a switch with the link to the box as its first port. It has no address.
pub(crate) fn make_switch(netns: &Netns) {
    netns.silence(FAR_END).unwrap();
    // The switch is not the machine whose address the site has given it.
    netns
        .ip(&format!("link set {FAR_END} address 06:00:00:00:00:01"))
        .unwrap();
    for conf in ["all", "default"] {
        let key = format!("net/ipv6/conf/{conf}/disable_ipv6");
        netns.sysctl(&key, "1").unwrap();
    }
    netns
        .ip("link add br0 type bridge mcast_snooping 0")
        .unwrap();
    netns.ip("link set br0 up").unwrap();
    add_port(netns, FAR_END);
}

/// Makes an interface a port of a switch.
pub(crate) fn add_port(switch: &Netns, port: &str) {
    complete_frames(switch, port);
    switch.ip(&format!("link set {port} master br0")).unwrap();
}

/// Lets an interface send frames whole: a veth pair computes no checksums, and a tag that is beside
/// the frame is lost where XDP receives it.
pub(crate) fn complete_frames(netns: &Netns, interface: &str) {
    let features = ["tx", "txvlan", "tx-vlan-stag-hw-insert"];
    let off = features.map(|feature| [feature, "off"]).concat();
    let arguments = [&["-K", interface][..], &off].concat();
    netns.command("ethtool", &arguments).unwrap();
}

/// A machine with the NIC `eth0`.
pub(crate) struct Machine {
    pub(crate) netns: Netns,
    pub(crate) mac: &'static str,
}

impl Machine {
    /// A new machine at a port of a switch. The label is the name of the port, too.
    pub(crate) fn new(switch: &Netns, label: &str, mac: &'static str, mtu: u32) -> Self {
        let netns = Netns::new(label).unwrap();
        let port_mac = format!("06{}", &mac[2..]);
        let ends = [
            VethEnd::new(&netns, FAR_END, mac),
            VethEnd::new(switch, label, &port_mac),
        ];
        veth(&ends[0], &ends[1], mtu).unwrap();
        complete_frames(&netns, FAR_END);
        add_port(switch, label);
        // Unicast frames for other machines do not arrive there, even if the switch does not know
        // where those are.
        let floods = format!("link set {label} type bridge_slave flood off");
        switch.ip(&floods).unwrap();
        for conf in ["all", FAR_END] {
            let key = format!("net/ipv4/conf/{conf}/rp_filter");
            netns.sysctl(&key, "0").unwrap();
        }
        Self { netns, mac }
    }

    /// Gives `eth0` these addresses, each with its prefix length.
    pub(crate) fn with_addresses(self, addresses: &[&str]) -> Self {
        add_addresses(&self.netns, FAR_END, addresses);
        self
    }

    /// Runs `ip` with each of these lines.
    pub(crate) fn ip(&self, lines: &[&str]) {
        for line in lines {
            self.netns.ip(line).unwrap();
        }
    }
}

/// Gives an interface these addresses, each with its prefix length.
pub(crate) fn add_addresses(netns: &Netns, interface: &str, addresses: &[&str]) {
    for address in addresses {
        netns
            .ip(&format!("addr add {address} dev {interface}"))
            .unwrap();
    }
}

/// Whether this kernel has VLAN interfaces (CONFIG_VLAN_8021Q). If not, prints a line with SKIPPED.
pub(crate) fn has_vlan_interfaces() -> bool {
    let netns = Netns::new("probe").unwrap();
    netns.ip("link add probe0 type veth").unwrap();
    let made = netns.ip("link add link probe0 name probe0.1 type vlan id 1");
    if let Err(error) = &made {
        // Not by a print macro: the test harness captures the output of passing tests.
        let _ = writeln!(std::io::stderr(), "SKIPPED (VLAN interfaces): {error}");
    }
    made.is_ok()
}

/// A VLAN tag: its protocol identifier (TPID) and its content (TCI).
pub(crate) type Tag = (u16, u16);

/// Puts `eth0` of a namespace into a VLAN: frames that it sends get these tags, the outer one first,
/// and frames that it receives without exactly these are dropped.
pub(crate) struct Vlan(Programs);

impl Vlan {
    pub(crate) fn enter(netns: &Netns, tags: &[Tag]) -> Self {
        complete_frames(netns, FAR_END);
        let source = "tests/bpf/tags.bpf.c";
        let compiled = exitmark_lab::bpf::compile(source).unwrap();
        let constants: Vec<u8> = tags
            .iter()
            .flat_map(|(tpid, tci)| (u32::from(*tpid) << 16 | u32::from(*tci)).to_ne_bytes())
            .collect();
        let programs = Programs::load_prepared(source, &compiled, &[], &constants).unwrap();
        programs.attach_tc("pop", netns, FAR_END).unwrap();
        programs.attach_egress("push", netns, FAR_END).unwrap();
        Self(programs)
    }

    /// The frames to its own MAC address that arrived with other tags.
    pub(crate) fn refused(&self) -> u64 {
        let [count] = self.0.numbers("refused", 0).unwrap();
        count
    }
}

/// Counts what `eth0` of a namespace receives, as [`inspect_at`].
pub(crate) fn inspect(netns: &Netns, wrong: &[String]) {
    inspect_at(netns, &[FAR_END], wrong);
}

/// Counts what interfaces of a namespace receive: frames that match one of `wrong` (matches of
/// nft(8)), which are dropped, and other TCP segments.
pub(crate) fn inspect_at(netns: &Netns, interfaces: &[&str], wrong: &[String]) {
    let wrong = wrong
        .iter()
        .map(|one| format!("    {one} counter name wrong drop\n"));
    let table = format!(
        "table netdev inspection {{\n  counter right {{ }}\n  counter wrong {{ }}\n  \
         chain received {{\n    type filter hook ingress devices = {{ {} }} priority 0;\n{}    \
         meta l4proto tcp counter name right\n  }}\n}}\n",
        interfaces.join(", "),
        wrong.collect::<String>()
    );
    netns.command("nft", &[&table]).unwrap();
}

/// The frames that [`inspect`] has counted as `right` or `wrong`.
pub(crate) fn inspected(netns: &Netns, counter: &str) -> u64 {
    let arguments = ["list", "counter", "netdev", "inspection", counter];
    let text = netns.command("nft", &arguments).unwrap();
    let mut words = text
        .split_whitespace()
        .skip_while(|word| *word != "packets");
    words.nth(1).unwrap().parse().unwrap()
}

/// Accepts this many connections and echoes their data; the thread ends when all have ended.
pub(crate) fn serve(
    netns: &Netns,
    address: IpAddr,
    port: u16,
    connections: usize,
) -> JoinHandle<()> {
    let listener = netns.run(move || TcpListener::bind(SocketAddr::new(address, port)).unwrap());
    let echo_all = move || {
        let accept = |_| {
            let (mut stream, _) = listener.accept().unwrap();
            std::thread::spawn(move || {
                let mut answer = stream.try_clone().unwrap();
                std::io::copy(&mut stream, &mut answer).unwrap();
                answer.shutdown(Shutdown::Write).unwrap();
            })
        };
        let echoes: Vec<_> = (0..connections).map(accept).collect();
        echoes.into_iter().for_each(|echo| echo.join().unwrap());
    };
    netns.spawn("server", echo_all).unwrap()
}

/// Connects from an address; `None` leaves the choice to the kernel.
fn dial(source: Option<IpAddr>, target: SocketAddr) -> nix::Result<TcpStream> {
    let family = match target {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(family, SockType::Stream, flags, SockProtocol::Tcp)?;
    // This limits connecting too.
    let timeout = TimeVal::seconds(timeout().as_secs().try_into().unwrap());
    setsockopt(&socket, sockopt::SendTimeout, &timeout)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &timeout)?;
    if let Some(source) = source {
        let source = SockaddrStorage::from(SocketAddr::new(source, 0));
        bind(socket.as_raw_fd(), &source)?;
    }
    nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(target))?;
    Ok(socket.into())
}

/// A connection to a server of [`serve`], over which data go back and forth until its end.
pub(crate) struct Conversation {
    what: String,
    rounds: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    /// How the connection has ended.
    client: JoinHandle<Result<(), String>>,
}

impl Conversation {
    /// Connects from an address of a namespace; `None` leaves the choice to the kernel.
    pub(crate) fn start(from: &Netns, source: Option<IpAddr>, target: SocketAddr) -> Self {
        let rounds = Arc::new(AtomicU64::new(0));
        let ends = Arc::new(AtomicBool::new(false));
        let (count, stop) = (Arc::clone(&rounds), Arc::clone(&ends));
        let client = from.spawn("client", move || {
            let ended = talk(source, target, &count, &stop).map_err(|error| error.to_string());
            if let Err(error) = &ended {
                println!("connection to {target}: {error}");
            }
            ended
        });
        Self {
            what: format!("{} {source:?} to {target}", from.label()),
            rounds,
            ends,
            client: client.unwrap(),
        }
    }

    /// Waits until each of these connections goes on.
    #[track_caller]
    pub(crate) fn all_go_on<'a>(all: impl IntoIterator<Item = &'a Self>, when: &str) {
        let all: Vec<_> = all.into_iter().collect();
        let count = |one: &&Self| one.rounds.load(Ordering::Relaxed);
        let before: Vec<_> = all.iter().map(count).collect();
        eventually(when, || {
            let stuck = all.iter().zip(&before);
            let mut stuck = stuck.filter(|(one, before)| count(one) < *before + ROUNDS);
            std::thread::sleep(PAUSE);
            match stuck.next() {
                None => Ok(()),
                Some((one, before)) if one.client.is_finished() => {
                    panic!("{when}: {} has ended after {before} rounds", one.what)
                }
                Some((one, _)) => Err(format!("{} does not go on", one.what)),
            }
        });
    }

    /// Ends the connection, and checks that no byte was lost.
    #[track_caller]
    pub(crate) fn end(self) {
        self.ends.store(true, Ordering::Relaxed);
        let ended = self.client.join().unwrap();
        ended.unwrap_or_else(|error| panic!("{}: {error}", self.what));
    }
}

fn talk(
    source: Option<IpAddr>,
    target: SocketAddr,
    rounds: &AtomicU64,
    ends: &AtomicBool,
) -> io::Result<()> {
    let mut stream = dial(source, target)?;
    let mut received = vec![0; ROUND];
    let mut seed = u32::from(target.port());
    while !ends.load(Ordering::Relaxed) {
        seed += 1;
        let sent = crate::craft::noise(seed, ROUND);
        stream.write_all(&sent)?;
        stream.read_exact(&mut received)?;
        if received != sent {
            return Err(io::Error::other("other bytes came back"));
        }
        rounds.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(PAUSE);
    }
    stream.shutdown(Shutdown::Write)?;
    match stream.read_to_end(&mut received)? {
        0 => Ok(()),
        more => Err(io::Error::other(format!("{more} bytes too many came back"))),
    }
}
