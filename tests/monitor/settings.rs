//! Tier: any machine. The monitor's configuration: accepted values, and errors for others.

use crate::says;
use exitmark_monitor::places::Countries;
use exitmark_monitor::row::Dimension;
use exitmark_monitor::settings::{Overrides, Settings};
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
interface = "tap0"
addresses = ["192.0.2.10", "2001:db8::10"]
user = "monitor"
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
cross = ["port_country", "system_country"]
[noise]
epsilon = 0.5
flows = 20
bytes = 30
packets = 40
[memory]
cells = 2048
ring = 256
[metrics]
listen = "[::1]:1234"
"#;
    let settings = parse(text).unwrap();
    assert_eq!(settings.exit, "alder-2");
    assert_eq!(settings.interface.as_deref(), Some("tap0"));
    assert_eq!(settings.addresses.len(), 2);
    assert_eq!(settings.user.as_deref(), Some("monitor"));
    assert_eq!(settings.mark.bits(), 8);
    assert_eq!(settings.places.countries, Countries::At("/base/geo".into()));
    assert_eq!(settings.places.systems, Some("/abs/asn.mmdb".into()));
    assert_eq!(settings.length.seconds(), 6 * 3600);
    assert_eq!(settings.directory, Path::new("/base/periods"));
    assert_eq!(settings.state, Path::new("/run/m"));
    let publish = &settings.publish;
    assert_eq!((publish.top, publish.threshold_flows), (7, 1000));
    let bins: [u64; 3] = publish.bins.map(|bin| bin.get()).into();
    assert_eq!(bins, [10, 1000, 100]);
    let cross = [Dimension::PortCountry, Dimension::SystemCountry];
    assert_eq!(publish.cross, cross);
    let noise = publish.noise.as_ref().unwrap();
    assert!((noise.epsilon.as_f64() - 0.5).abs() < 1e-9);
    assert_eq!((noise.user, noise.seed), ([20, 30, 40].into(), None));
    assert_eq!((settings.cells, settings.ring), (2048, 256));
    assert_eq!(settings.metrics, Some("[::1]:1234".parse().unwrap()));

    let given = Overrides {
        interface: Some("other0".to_owned()),
        addresses: vec!["198.51.100.1".parse().unwrap()],
        directory: Some("here".into()),
    };
    let settings = Settings::parse(text, Path::new("/base"), &given).unwrap();
    assert_eq!(settings.interface, given.interface);
    assert_eq!(settings.addresses, given.addresses);
    assert_eq!(settings.directory, Path::new("here"));
}

#[test]
fn refuses_invalid_values_by_key_and_says_what_is_accepted() {
    #[rustfmt::skip]
    let table = [
        ("", "addresses = []: name the clearnet addresses"),
        ("addresses = [\"192.0.2.0/24\"]", "\"192.0.2.0/24\": is not an address"),
        ("addresses = [\"0.0.0.0\"]", "is not an address that a host sends from"),
        ("addresses = [\"192.0.2.10\", \"192.0.2.10\"]", "is named twice"),
        ("user = \"root\"\n[x]", "unknown field `x`"),
    ];
    for (text, expected) in table {
        says(&parse(text).unwrap_err(), expected);
    }
    let many: Vec<_> = (0..65).map(|last| format!("192.0.2.{last}")).collect();
    let error = parse(&format!("addresses = {many:?}")).unwrap_err();
    says(&error, "65 entries: are more than 64");
    #[rustfmt::skip]
    let table = [
        ("exit = \"a/b\"", "exit = \"a/b\": is not a valid exit name"),
        ("exit = \"\"", "exit = \"\""),
        ("interface = \"\"", "the name of a NIC is missing"),
        ("interface = \"..\"", "this is a directory"),
        ("interface = \"a b\"", "has no spaces, `/` and `:`"),
        ("interface = \"a:b\"", "has no spaces, `/` and `:`"),
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
    // Alternative interface names may be longer than the kernel's own names.
    let named = |bytes| format!("{ADDRESSES}interface = \"{}\"", "n".repeat(bytes));
    assert!(parse(&named(127)).is_ok());
    let error = parse(&named(128)).unwrap_err();
    says(&error, "an alternative one at most 127");
}
