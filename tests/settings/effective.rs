//! `exitmark check --explain`: the effective policy of each group.

use std::process::Command;

/// Runs `check`; returns its status, standard output and standard error.
pub(crate) fn check(text: &str, options: &[&str]) -> (Option<i32>, String, String) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("exitmark.toml"), text).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_exitmark"));
    command
        .args(["check", "--config", "exitmark.toml"])
        .args(options);
    let output = command.current_dir(directory.path()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

const EXPLAINED: &str = "\
exitmark.toml: fine (mode audit, eth0 and eth1 are a wire, relay traffic by eth2 to 4 next hops, \
3 groups, marks le (1), cs1 (8), af12 (12))

group guards
  addresses        192.0.2.10, 2001:db8:1::10
  relay_addresses  none
  listeners        22, 443
  resolvers        none
  exempt           203.0.113.0/24
  mark             af12 (12)
  at_uplink        keep
  protocols        tcp
  mac              learned
  vlan             VLAN 10
  uplink vlan      VLAN 10
  relays by IPv4   203.0.113.1, VLAN 30, PCP kept
  relays by IPv6   fe80::1, VLAN 30, PCP kept

group exits
  addresses        192.0.2.64/27
  relay_addresses  2001:db8:1::20
  listeners        22, [2001:db8:1::20]:9001
  resolvers        9.9.9.9
  exempt           none
  mark             le (1)
  at_uplink        keep
  protocols        tcp+udp
  mac              02:00:5e:10:00:01
  vlan             VLAN 200.11
  uplink vlan      VLAN 200.11
  relays by IPv4   203.0.113.1, VLAN 31, PCP kept
  relays by IPv6   fe80::1, VLAN 31, PCP kept

group host-3
  addresses        192.0.2.128
  relay_addresses  none
  listeners        none
  resolvers        any
  exempt           none
  mark             cs1 (8)
  at_uplink        strip
  protocols        tcp
  mac              learned
  vlan             untagged
  uplink vlan      untagged
  relays by IPv4   uplink, unmarked
  relays by IPv6   uplink, unmarked

all groups
  classify_by      relay-set
  mode             audit: nothing is marked or steered
  ports            host eth0, uplink eth1, incoming eth2
  on_unavailable   uplink
  consensus        cached-consensus
  extra relays     0
  signatures       5 of 9 authorities
  when_stale       pass
";

#[test]
fn the_policy_of_each_group_is_explained() {
    let site = super::groups::SITE;
    let (status, stdout, stderr) = check(site, &["--explain"]);
    assert_eq!(status, Some(0), "{stderr}");
    assert_eq!(stdout, EXPLAINED);
    assert!(stderr.contains("warning: host.mark.protocols"), "{stderr}");
    let (fine, _) = EXPLAINED.split_once('\n').unwrap();
    assert_eq!(check(site, &[]).1, format!("{fine}\n"));
    let (status, stdout, _) = check("[ports]", &["--explain"]);
    assert_eq!((status, &*stdout), (Some(1), ""));
}

/// The block of the first group, or of all groups, from `name` on.
fn block(text: &str, heading: &str, name: &str) -> String {
    let (status, stdout, stderr) = check(text, &["--explain"]);
    assert_eq!(status, Some(0), "{stderr}");
    let (_, block) = stdout.split_once(&format!("\n{heading}\n")).unwrap();
    let block = block.split("\n\n").next().unwrap();
    block[block.find(name).unwrap()..].trim_end().to_owned()
}

#[test]
fn relay_traffic_leaves_by_a_next_hop_or_the_uplink_or_is_dropped() {
    let relays = |lines: &str, of_all: &str| {
        let text = super::GOOD
            .replacen("next_hop = \"02:00:5e:10:00:02\"", of_all, 1)
            .replacen("[mark]", &format!("[host.steer]\n{lines}\n[mark]"), 1);
        block(&text, "group host", "relays by IPv4")
    };
    let two = |v4: &str, v6: &str| format!("relays by IPv4   {v4}\n  relays by IPv6   {v6}");
    for (lines, of_all, expected) in [
        (
            "",
            "next_hop = \"02:00:5e:10:00:02\"",
            two("02:00:5e:10:00:02, untagged", "02:00:5e:10:00:02, untagged"),
        ),
        (
            "vlan = [200, 30]\npcp = 0",
            "next_hop = \"203.0.113.1\"",
            two("203.0.113.1, VLAN 200.30, PCP 0", "uplink, unmarked"),
        ),
        (
            "",
            "next_hop = \"203.0.113.1\"\non_unavailable = \"drop\"\nvlan = 3\npcp = 7",
            two("203.0.113.1, VLAN 3, PCP 7", "dropped"),
        ),
        (
            "enabled = false",
            "next_hop = \"203.0.113.1\"\non_unavailable = \"drop\"",
            two("uplink, unmarked", "uplink, unmarked"),
        ),
    ] {
        assert_eq!(relays(lines, of_all), expected, "{lines} {of_all}");
    }
}

#[test]
fn what_all_groups_share_is_explained() {
    let shared = |from: &str, to: &str| {
        let text = super::GOOD.replacen(from, to, 1);
        block(&text, "all groups", "classify_by")
    };
    assert_eq!(
        shared("", ""),
        "classify_by      relay-set\n  \
         mode             enforce\n  \
         ports            host eth0, uplink eth1, incoming eth2\n  \
         on_unavailable   uplink\n  \
         consensus        none\n  \
         extra relays     1\n  \
         when_stale       pass"
    );
    let by_mark = "classify_by = \"host-mark\"\n[ports]";
    assert!(shared("[ports]", by_mark).starts_with("classify_by      host-mark, af11 (10)\n"));
    let documents = "consensus = [\"/a/cached-consensus\", \"/b/*/x\"]\nverify = false\n\
                     when_stale = \"keep\"\nextra";
    let expected = "consensus        /a/cached-consensus, /b/*/x\n  \
                    extra relays     1\n  \
                    signatures       not checked\n  \
                    when_stale       keep";
    assert!(shared("extra", documents).ends_with(expected));
    let wire = "on_unavailable = \"uplink\"";
    let text = super::GOOD
        .replacen("incoming = \"eth2\"\n", "", 1)
        .replacen("next_hop = \"02:00:5e:10:00:02\"", wire, 1);
    let shared = block(&text, "all groups", "ports");
    assert!(
        shared.starts_with("ports            host eth0, uplink eth1\n  consensus"),
        "{shared}"
    );
}

#[test]
fn a_tor_host_is_one_group() {
    let (status, stdout, stderr) = check(super::connect::GOOD, &["--explain"]);
    assert_eq!(status, Some(0), "{stderr}");
    let (_, explained) = stdout.split_once("\n\n").unwrap();
    assert_eq!(
        explained,
        "group tor\n  \
         resolvers        none\n  \
         exempt           203.0.113.0/24\n  \
         mark             af11 (10), unless tor sets another DSCP\n  \
         relays by IPv4   from 203.0.113.10\n  \
         relays by IPv6   from 2001:db8:3::10\n\n\
         all groups\n  \
         classify_by      relay-set\n  \
         mode             enforce\n  \
         tor              debian-tor\n  \
         consensus        /var/lib/tor/cached-microdesc-consensus\n  \
         extra relays     0\n  \
         signatures       5 of 9 authorities\n  \
         when_stale       pass\n"
    );
    let source = "source = [\"203.0.113.10\", \"2001:db8:3::10\"]";
    let relays = |lines: &str| {
        let text = super::connect::GOOD.replacen(source, lines, 1);
        block(&text, "group tor", "relays by IPv4")
    };
    let two = |v4: &str, v6: &str| format!("relays by IPv4   {v4}\n  relays by IPv6   {v6}");
    assert_eq!(relays(""), two("as other programs", "as other programs"));
    assert_eq!(
        relays("source = [\"203.0.113.10\"]\nfwmark = 0x2a\ninterface = \"eth1\""),
        two(
            "from 203.0.113.10, fwmark 0x2a, by eth1",
            "fwmark 0x2a, by eth1"
        )
    );
}
