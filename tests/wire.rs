//! Tier: root. The box on veth pairs between real network stacks.

use exitmark::lab::site::{OR_PORT, Plan, RELAY_V4, RELAY_V6, SERVER_V4, SERVER_V6, Site};
use exitmark::lab::{LabError, Netns};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

const EXITMARK: &str = env!("CARGO_BIN_EXE_exitmark");
const RELAYS: &str = "extra = [\"198.18.0.1:9001\", \"[2001:db8:18::1]:9001\"]";

fn serve(netns: &Netns, address: IpAddr, port: u16) -> Result<JoinHandle<()>, LabError> {
    let listener = netns.run(move || TcpListener::bind(SocketAddr::new(address, port)).unwrap());
    netns.spawn("server", move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        stream.read_to_end(&mut request).unwrap();
        stream.write_all(&request).unwrap();
    })
}

fn talk(netns: &Netns, address: IpAddr, port: u16, bytes: usize) {
    netns.run(move || {
        let target = SocketAddr::new(address, port);
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(10)).unwrap();
        let said = vec![0x5a; bytes];
        let mut writer = stream.try_clone().unwrap();
        let sent = said.clone();
        let sending = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        sending.join().unwrap();
        assert!(
            heard == said,
            "{} of {} bytes came back",
            heard.len(),
            said.len()
        );
    });
}

#[test]
fn tcp_of_both_kinds_and_both_families() {
    let directory = tempfile::tempdir().unwrap();
    let site = Site::build(Plan::default()).unwrap();
    let configuration = site.configuration(directory.path(), RELAYS, "").unwrap();
    let running = site.run(Path::new(EXITMARK), &configuration).unwrap();
    println!("{}", running.ready);
    for (netns, address, port) in [
        (&site.clearnet, IpAddr::from(SERVER_V4), 80),
        (&site.clearnet, IpAddr::from(SERVER_V6), 80),
        (&site.tornet, IpAddr::from(RELAY_V4), OR_PORT),
        (&site.tornet, IpAddr::from(RELAY_V6), OR_PORT),
    ] {
        let server = serve(netns, address, port).unwrap();
        talk(&site.host, address, port, 1_000_000);
        server.join().unwrap();
    }
    println!("{:?}", running.counters());
    let last = running.stop().unwrap();
    println!("{}\n{:?} {:?}", last.log, last.counters, last.status);
    assert!(last.status.success());
}
