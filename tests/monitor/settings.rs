//! Tier: any machine. The monitor's configuration: accepted values, and errors for others.

use crate::says;
use exitmark_monitor::cell::Directions;
use exitmark_monitor::mirror::Unwrap;
use exitmark_monitor::places::Countries;
use exitmark_monitor::row::Dimension;
use exitmark_monitor::settings::{Overrides, Settings};
use exitmark_policy::PrefixSet;
use std::net::Ipv4Addr;
use std::path::Path;

const ADDRESSES: &str = "addresses = [\"192.0.2.10\"]\n";

fn parse(text: &str) -> Result<Settings, String> {
    Settings::parse(text, Path::new("/base"), &Overrides::default())
        .map_err(|error| error.to_string())
}

#[test]
fn every_key_has_its_effect() {
    let text = r#"
exit = "alder-2"
addresses = ["192.0.2.10", "2001:db8::10"]
user = "monitor"
[tap]
interfaces = ["tap0", "tap1"]
directions = "both"
unwrap = ["erspan", "vxlan"]
vxlan_port = 8472
[mark]
tos = 0x20
[places]
countries = "geo"
systems = "/abs/asn.mmdb"
[period]
length = "6h"
directory = "periods"
state = "/run/m"
[publish]
top = 7
threshold_flows = 1000
bin_flows = 10
bin_bytes = 1000
bin_packets = 100
bin_down_bytes = 2000
bin_down_packets = 200
cross = ["port_country", "system_country"]
[noise]
epsilon = 0.5
flows = 20
bytes = 30
packets = 40
down_bytes = 300
down_packets = 400
[memory]
cells = 2048
ring = 256
[metrics]
listen = "[::1]:1234"
"#;
    let settings = parse(text).unwrap();
    assert_eq!(settings.exit, "alder-2");
    assert_eq!(settings.interfaces, ["tap0", "tap1"]);
    assert_eq!(settings.directions, Directions::Both);
    assert_eq!(settings.publish.directions, Directions::Both);
    let unwrap = Unwrap {
        erspan: true,
        vxlan: Some(8472),
    };
    assert_eq!(settings.unwrap, unwrap);
    let ranges = |settings: &Settings| {
        let addresses = &settings.addresses;
        (addresses.v4_ranges().len(), addresses.v6_ranges().len())
    };
    assert_eq!(ranges(&settings), (1, 1));
    assert_eq!(settings.user.as_deref(), Some("monitor"));
    assert_eq!(settings.mark.bits(), 8);
    assert_eq!(settings.places.countries, Countries::At("/base/geo".into()));
    assert_eq!(settings.places.systems, Some("/abs/asn.mmdb".into()));
    assert_eq!(settings.length.seconds(), 6 * 3600);
    assert_eq!(settings.directory, Path::new("/base/periods"));
    assert_eq!(settings.state, Path::new("/run/m"));
    let publish = &settings.publish;
    assert_eq!((publish.top, publish.threshold_flows), (7, 1000));
    let bins: [u64; 5] = publish.bins.map(|bin| bin.get()).into();
    assert_eq!(bins, [10, 1000, 100, 2000, 200]);
    let cross = [Dimension::PortCountry, Dimension::SystemCountry];
    assert_eq!(publish.cross, cross);
    let noise = publish.noise.as_ref().unwrap();
    assert!((noise.epsilon.as_f64() - 0.5).abs() < 1e-9);
    assert_eq!(
        (noise.user, noise.seed),
        ([20, 30, 40, 300, 400].into(), None)
    );
    assert_eq!((settings.cells, settings.ring), (2048, 256));
    assert_eq!(settings.metrics, Some("[::1]:1234".parse().unwrap()));

    let given = Overrides {
        interfaces: vec!["other0".to_owned()],
        addresses: vec!["198.51.100.0/25".parse().unwrap()],
        directory: Some("here".into()),
    };
    let settings = Settings::parse(text, Path::new("/base"), &given).unwrap();
    assert_eq!(settings.interfaces, given.interfaces);
    assert_eq!(settings.addresses, PrefixSet::new(given.addresses));
    assert!(settings.summary().contains(" from and to 1 address range "));
    assert_eq!(settings.directory, Path::new("here"));
}

#[test]
fn addresses_and_prefixes_are_merged_into_ranges() {
    let ranges = |texts: &[&str]| {
        let addresses = parse(&format!("addresses = {texts:?}")).unwrap().addresses;
        let v4 = addresses.v4_ranges().to_vec();
        (v4, addresses.v6_ranges().to_vec())
    };
    let mixed = [
        "192.0.2.128/25",
        "2001:db8::/48",
        "192.0.2.0/25",
        "198.51.100.7",
        "192.0.2.200",
        "2001:db8:0:1::/64",
    ];
    let v4 = vec![(0xc000_0200, 0xc000_02ff), (0xc633_6407, 0xc633_6407)];
    let first = 0x2001_0db8_u128 << 96;
    assert_eq!(ranges(&mixed), (v4, vec![(first, first | u128::MAX >> 48)]));
    // More than 1,024 addresses, in a few ranges.
    let all: Vec<_> = (0..4096_u32)
        .map(|low| Ipv4Addr::from(0x0a00_0000 | low).to_string())
        .collect();
    let all: Vec<_> = all.iter().map(String::as_str).collect();
    assert_eq!(ranges(&all).0, [(0x0a00_0000, 0x0a00_0fff)]);
}

#[test]
fn refuses_invalid_values_by_key_and_says_what_is_accepted() {
    #[rustfmt::skip]
    let table = [
        ("", "addresses = []: name the clearnet addresses"),
        ("addresses = [\"exit\"]", "\"exit\": is neither an address such as"),
        ("addresses = [\"192.0.2.1/24\"]", "did you mean 192.0.2.0/24?"),
        ("addresses = [\"0.0.0.0\"]", "is not an address that a host sends to the Internet from"),
        ("addresses = [\"ff02::1\"]", "it is in ff00::/8"),
        ("addresses = [\"0.0.0.0/0\"]", "contains 0.0.0.0/8"),
        ("addresses = [\"::/0\"]", "contains ::/127"),
        ("addresses = [\"::ffff:192.0.2.10\"]", "it is in ::ffff:0.0.0.0/96"),
        ("addresses = [\"192.0.2.10\", \"192.0.2.10\"]", "is named twice"),
        ("user = \"root\"\n[x]", "unknown field `x`"),
    ];
    for (text, expected) in table {
        says(&parse(text).unwrap_err(), expected);
    }
    let many = |count: u32| {
        // No two of them adjacent.
        let addresses = (0..count).map(|index| Ipv4Addr::from(0x0a00_0000 + 2 * index).to_string());
        format!("addresses = {:?}", addresses.collect::<Vec<_>>())
    };
    assert!(parse(&many(1024)).is_ok());
    says(
        &parse(&many(1025)).unwrap_err(),
        "1025 ranges: are more than 1024",
    );
    #[rustfmt::skip]
    let table = [
        ("exit = \"a/b\"", "exit = \"a/b\": is not a valid exit name"),
        ("exit = \"\"", "exit = \"\""),
        ("interface = \"\"", "the name of a NIC is missing"),
        ("interface = \"..\"", "this is a directory"),
        ("interface = \"a b\"", "has no spaces, `/` and `:`"),
        ("interface = \"a:b\"", "has no spaces, `/` and `:`"),
        ("interface = \"a\"\n[tap]\ninterfaces = [\"b\"]", "interface = \"a\": is set beside"),
        ("[tap]\ninterfaces = []", "tap.interfaces = []: names no NIC"),
        ("[tap]\ninterfaces = [\"a\", \"a\"]", "tap.interfaces = \"a\": is named twice"),
        ("[tap]\ninterfaces = [\"a\", \"b/c\"]", "tap.interfaces = \"b/c\""),
        ("[tap]\ndirections = \"in\"", "tap.directions = \"in\": is not \"out\""),
        ("[tap]\nunwrap = [\"gre\"]", "tap.unwrap = \"gre\": cannot be unwrapped"),
        ("[tap]\nunwrap = [\"vxlan\"]\nvxlan_port = 0", "tap.vxlan_port = 0: is not within"),
        ("[tap]\nunwrap = [\"erspan\"]\nvxlan_port = 9", "tap.vxlan_port = 9: has no effect"),
        ("user = \"root\"", "user = \"root\""),
        ("[mark]\ndscp = 64", "mark.dscp = 64"),
        ("[mark]\ntos = 0x29", "mark.tos = 0x29"),
        ("[mark]\ndscp = 0", "a mark must differ"),
        ("[places]\nsystems = \"\"", "places.systems = \"\": is not a path"),
        ("[places]\ncountries = \"\"", "places.countries = \"\""),
        ("[period]\ndirectory = \"\"", "period.directory = \"\""),
        ("[period]\nstate = \"\"", "period.state = \"\""),
        ("[period]\nlength = \"5h\"", "period.length = \"5h\""),
        ("[period]\nlength = \"10m\"", "at least an hour"),
        ("[period]\nlength = \"soon\"", "is not a length of time such as"),
        ("[publish]\ntop = 0", "publish.top = 0: is not within 1 to 10000"),
        ("[publish]\nthreshold_flows = 1", "publish.threshold_flows = 1"),
        ("[publish]\nbin_flows = 0", "publish.bin_flows = 0: is less than 1"),
        ("[publish]\nbin_bytes = -1", "publish.bin_bytes = -1"),
        ("[publish]\ncross = [\"port\"]", "there are \"port_country\""),
        ("[publish]\ncross = [\"port_system\", \"port_system\"]", "publish.cross"),
        ("[noise]\nflows = 5", "noise.flows = 5: has no effect without noise.epsilon"),
        ("[noise]\nepsilon = 0", "noise.epsilon = 0"),
        ("[noise]\nepsilon = -1.0", "noise.epsilon = -1"),
        ("[noise]\nepsilon = nan", "noise.epsilon = NaN"),
        ("[noise]\nepsilon = 1.0\nflows = 100", "noise.epsilon"),
        ("[memory]\ncells = 10", "memory.cells = 10: is not within"),
        ("[memory]\nring = 100", "memory.ring = 100: is not a power of two"),
        ("[memory]\nring = 16384", "memory.ring = 16384: is not within 64 to 8192"),
        ("[metrics]\nlisten = \"0.0.0.0:1\"", "metrics.listen = \"0.0.0.0:1\""),
        ("[metrics]\nlisten = \"9788\"", "such as 127.0.0.1:9788"),
    ];
    for (lines, expected) in table {
        let error = parse(&format!("{ADDRESSES}{lines}")).unwrap_err();
        assert!(error.contains(expected), "{lines}: {error}");
    }
    let nine: Vec<_> = (0..9).map(|number| format!("tap{number}")).collect();
    let error = parse(&format!("{ADDRESSES}[tap]\ninterfaces = {nine:?}")).unwrap_err();
    says(&error, "tap.interfaces = 9 NICs: are more than 8");
    // Alternative interface names may be longer than the kernel's own names.
    let named = |bytes| format!("{ADDRESSES}interface = \"{}\"", "n".repeat(bytes));
    assert!(parse(&named(127)).is_ok());
    let error = parse(&named(128)).unwrap_err();
    says(&error, "an alternative one at most 127");
}
