//! The forwarders: their order, descriptions and colours.

use plotters::style::RGBColor;

pub(crate) const XDP: &str = "exitmark-xdp";
pub(crate) const AF_XDP: &str = "exitmark-af_xdp";
pub(crate) const SPILL: &str = "exitmark-af_xdp-spill";
pub(crate) const NFTABLES: &str = "nftables";
pub(crate) const BARE: &str = "bare-xdp";
pub(crate) const WIRE: &str = "wire";
pub(crate) const TOUCH: &str = "touch";
pub(crate) const TESTPMD: &str = "testpmd-af_xdp";
/// Not a forwarder of packets that come from somewhere: testpmd over net_null.
pub(crate) const TESTPMD_IO: &str = "testpmd-io";

/// Name, description, colour. The colours can be distinguished without red and green, and every
/// forwarder has a shape of its own too.
const FORWARDERS: [(&str, &str, RGBColor); 17] = [
    (XDP, "exitmark, `xdp`", RGBColor(0x00, 0x72, 0xb2)),
    (SPILL, "exitmark, `af_xdp`", RGBColor(0xd5, 0x5e, 0x00)),
    (
        AF_XDP,
        "exitmark, `af_xdp` with `spill = false`",
        RGBColor(0x00, 0x9e, 0x73),
    ),
    (
        "exitmark-af_xdp-both",
        "exitmark, `af_xdp` in both directions",
        RGBColor(0x6a, 0x3d, 0x9a),
    ),
    (
        NFTABLES,
        "kernel forwarding: nftables set, fwmark routing",
        RGBColor(0x00, 0x00, 0x00),
    ),
    (
        "bridge-nft",
        "kernel bridge with nftables",
        RGBColor(0x77, 0x77, 0x77),
    ),
    (
        "tc-bpf",
        "the same rule as a tc-bpf classifier",
        RGBColor(0xcc, 0x79, 0xa7),
    ),
    (
        BARE,
        "a bare XDP program with the same rule",
        RGBColor(0xe6, 0x9f, 0x00),
    ),
    (
        WIRE,
        "an XDP redirect without a rule",
        RGBColor(0x56, 0xb4, 0xe9),
    ),
    (
        TESTPMD,
        "DPDK testpmd over AF_XDP, without a rule",
        RGBColor(0x8c, 0x51, 0x0a),
    ),
    (
        "testpmd-af_packet",
        "DPDK testpmd over AF_PACKET, without a rule",
        RGBColor(0x80, 0x80, 0x00),
    ),
    (
        "exitmark-xdp-translate",
        "exitmark, `xdp`, with another source address for relay traffic",
        RGBColor(0x66, 0x33, 0x99),
    ),
    (
        "exitmark-xdp-tap",
        "exitmark, `xdp`, with a tap",
        RGBColor(0x00, 0x99, 0xcc),
    ),
    (
        "exitmark-xdp-groups",
        "exitmark, `xdp`, with 64 groups of hosts and 1,024 addresses",
        RGBColor(0x00, 0x66, 0x99),
    ),
    (
        "exitmark-xdp-capture",
        "exitmark, `xdp`, while a capture runs",
        RGBColor(0x33, 0x66, 0xff),
    ),
    (
        "exitmark-af_xdp-capture",
        "exitmark, `af_xdp`, while a capture runs",
        RGBColor(0xff, 0x99, 0x66),
    ),
    (
        TOUCH,
        "an XDP redirect that marks every frame, without a rule",
        RGBColor(0x99, 0x66, 0x33),
    ),
];

/// The position of a forwarder in every table and legend; unknown ones come last.
pub(crate) fn place(forwarder: &str) -> usize {
    let known = FORWARDERS.iter().position(|(name, ..)| *name == forwarder);
    known.unwrap_or(FORWARDERS.len())
}

pub(crate) fn description(forwarder: &str) -> String {
    let known = FORWARDERS.get(place(forwarder));
    let words = known.map_or(forwarder, |(_, description, _)| *description);
    words.to_owned()
}

pub(crate) fn color(forwarder: &str) -> RGBColor {
    let known = FORWARDERS.get(place(forwarder));
    known.map_or(RGBColor(0xaa, 0xaa, 0xaa), |(.., color)| *color)
}

/// All known forwarders with their descriptions.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    FORWARDERS
        .iter()
        .map(|&(name, description, _)| (name, description))
}

/// Sorts rows by forwarder; the sort is stable.
pub(crate) fn ordered<T>(mut rows: Vec<&T>, name: impl Fn(&T) -> &str) -> Vec<&T> {
    rows.sort_by_key(|row| place(name(row)));
    rows
}
