//! Opens the connections of the table of connections, and explains them.

use crate::client::Client;
use crate::rig::{HOST_V4, HOST_V6, Host, RELAY_SOURCE_V4, RELAY_SOURCE_V6, ip, needs_root};
use exitmark_box::observe::ConnectionsReport;
use exitmark_bpf::kernel_release;
use exitmark_lab::cases::connections::{
    ConnectionCase, ConnectionTable, Owner, SocketOptions, Treatment, tables,
};
use exitmark_policy::Class;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;

/// The names of all counters whose sum is the number of judged connections, or of changed sockets.
fn counters(of: &ConnectionsReport) -> Vec<(String, u64)> {
    let classes = of.classes.iter();
    let classes = classes.map(|class| (class.class.clone(), class.opened));
    let others = [
        ("marked", of.marked),
        ("own_tos", of.own_tos),
        ("unmarked", of.unmarked),
        ("steered", of.steered),
        ("own_source", of.own_source),
        ("unsteered", of.unsteered),
        ("no_policy", of.no_policy),
    ];
    let others = others.map(|(name, count)| (name.to_owned(), count));
    classes.chain(others).collect()
}

/// The counters that grew, each as often as it did.
fn grown(before: &ConnectionsReport, after: &ConnectionsReport) -> Vec<String> {
    let pairs = counters(before).into_iter().zip(counters(after));
    let times = pairs.map(|((name, before), (_, after))| (name, after - before));
    times
        .flat_map(|(name, times)| (0..times).map(move |_| name.clone()))
        .collect()
}

/// Older kernels refuse a program that sets IP_TOS on an IPv4-mapped socket: 6.18.15 does, 6.18.44 and
/// 7.3.4 do not.
fn may_refuse_mapped() -> bool {
    let release = kernel_release();
    let numbers = release.split(['.', '-', '+']);
    let version: Vec<u32> = numbers.map_while(|part| part.parse().ok()).collect();
    assert!(version.len() >= 2, "{release}");
    version < vec![6, 18, 44]
}

/// The answer of the client about a socket with these options.
fn shown(options: SocketOptions, destination: IpAddr) -> String {
    let own = [HOST_V4, HOST_V6, RELAY_SOURCE_V4, RELAY_SOURCE_V6].map(ip);
    let chosen = match destination {
        own_address if own_address.is_loopback() || own.contains(&own_address) => own_address,
        IpAddr::V4(_) => ip(HOST_V4),
        IpAddr::V6(_) => ip(HOST_V6),
    };
    let source = options.source.map_or(chosen, ip).to_canonical();
    let nic = options.nic.unwrap_or_default();
    format!("{:#x} {source} {:#x} {nic}", options.tos, options.fwmark)
}

/// The request that opens a connection with the options that its owner sets.
fn request(case: &ConnectionCase) -> String {
    let mut request = format!("open {}", case.destination);
    if case.owner == Owner::TorUdp {
        request += " udp";
    }
    if case.before.tos != 0 {
        request += &format!(" tos={}", case.before.tos);
    }
    if let Some(source) = case.before.source {
        request += &format!(" source={source}");
    }
    request
}

/// Opens the connection of a case, and compares socket options and counters.
fn try_case(case: &ConnectionCase, host: &Host, client: &mut Client, title: &str) {
    let before = host.connections();
    let answer = client.ask(&request(case));
    let mut grown = grown(&before, &host.connections());
    let class = case.class.map(Class::name);
    let mut expected = Vec::from_iter(class.into_iter().chain(case.treatment.counter()));
    let mut after = case.after;
    if case.is_mapped() && may_refuse_mapped() && grown.contains(&"unmarked".to_owned()) {
        expected = vec!["exit", "unmarked"];
        after.tos = case.before.tos;
    }
    grown.sort_unstable();
    expected.sort_unstable();
    let destination: SocketAddr = case.destination.parse().unwrap();
    let after = shown(after, destination.ip().to_canonical());
    assert_eq!(answer, after.trim_end(), "{title}");
    assert_eq!(grown, expected, "{title}");
}

#[test]
fn every_connection_by_the_kernel() {
    needs_root!();
    let host = Host::new();
    let listener = host.host.run(|| TcpListener::bind("[::]:4444"));
    let _listener = listener.unwrap();
    let client = |more| Client::start(&host.host, host.user + more);
    let mut tor = [client(0)];
    // One with a bit of its own in the filter of users, and one that shares tor's.
    let mut others = [client(0x80), client(0x1000)];
    let mut running = None;
    for table in tables() {
        let text = table.configuration(host.user);
        match running {
            None => running = Some(host.start(&text)),
            Some(_) => {
                host.write(&text);
                host.exitmark(&["reload"]).unwrap();
            }
        }
        for case in &table.cases {
            let title = format!("{}: {}", table.name, case.name);
            let clients = match case.owner {
                Owner::Tor | Owner::TorUdp => &mut tor[..],
                Owner::AnotherUser => &mut others[..],
            };
            for client in clients {
                try_case(case, &host, client, &title);
            }
        }
    }
    running.unwrap().stop_well().unwrap();
}

/// The expected treatment as `explain` prints it; it does not know what tor sets itself.
fn treatment(table: &ConnectionTable, case: &ConnectionCase) -> String {
    let settings = table.settings().unwrap();
    let after = case.after;
    match case.treatment {
        Treatment::Marked => format!("DSCP {}", settings.rules.groups()[0].actions.mark()),
        Treatment::Steered => {
            let source = after.source.map(|source| format!("source {source}"));
            let fwmark = (after.fwmark != 0).then(|| format!("fwmark {:#x}", after.fwmark));
            let nic = after.nic.map(|nic| format!("NIC {nic}"));
            Vec::from_iter([source, fwmark, nic].into_iter().flatten()).join(", ")
        }
        _ => "unchanged".to_owned(),
    }
}

#[test]
fn every_connection_by_explain() {
    needs_root!();
    let host = Host::new();
    for table in tables() {
        let path = host.write(&table.configuration(host.user));
        let path: &Path = &path;
        let cases = table.cases.iter();
        let cases = cases
            .filter(|case| case.owner == Owner::Tor && case.before == SocketOptions::default());
        let cases: Vec<_> = cases.collect();
        let mut arguments = vec!["explain", "--config", path.to_str().unwrap()];
        for case in &cases {
            arguments.extend(["--connect", case.destination]);
        }
        let explained = host.exitmark(&arguments).unwrap();
        assert_eq!(explained.lines().count(), cases.len(), "{explained}");
        for (line, case) in explained.lines().zip(cases) {
            let title = format!("{}: {}: {line}", table.name, case.name);
            let (judged, done) = line.split_once(" → ").unwrap();
            let words: Vec<_> = judged.split_whitespace().take(2).collect();
            let class = case.class.map(Class::name).unwrap();
            assert_eq!(words, [case.destination, class], "{title}");
            // Behind it is the reason.
            let done = done.split(": ").next();
            assert_eq!(done, Some(&*treatment(&table, case)), "{title}");
        }
    }
}
