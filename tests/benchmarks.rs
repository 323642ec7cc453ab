//! Tier: any machine. The report on the benches' results: figures, goals, plots, the README's
//! table; and that the published pages match the published results.

#![allow(
    clippy::unwrap_used,
    reason = "clippy's exemption of tests ends at their #[test] functions"
)]

#[path = "../src/tools/bench_report/report/mod.rs"]
mod report;

use report::{Report, publish, readme};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

const README: &str =
    "before\n<!-- benchmarks: begin -->\nby hand\n<!-- benchmarks: end -->\nafter\n";

/// Five rounds; the last two repeat the first and the second.
fn rounds<T: Copy>([first, second, third]: [T; 3]) -> [T; 5] {
    [first, second, third, first, second]
}

fn rate(forwarder: &str, bytes: u32, figures: [f64; 3], max_loss: f64) -> Value {
    json!({
        "forwarder": forwarder, "frame_bytes": bytes, "relay_share": 0.5, "queues": 1,
        "family": "ipv4", "flows": 1024, "relays": 10_000, "mpps": figures[1], "min": 0.1,
        "max": 9.0, "loss": 0.0, "max_loss": max_loss, "runs": 5, "sent": 1,
        "rounds": rounds(figures),
        "lost": {"before_box": 0, "in_box": 0, "after_box": 0},
    })
}

/// A row with these fields instead, or in addition.
fn with(mut row: Value, fields: Value) -> Value {
    let fields = fields.as_object().unwrap().clone();
    row.as_object_mut().unwrap().extend(fields);
    row
}

fn rates() -> Value {
    json!([
        rate("wire", 64, [4.0, 4.0, 4.0], 0.0),
        rate("nftables", 64, [0.5, 1.0, 0.25], 0.0),
        // The ratios are 6, 2, 12, 6 and 2; that of the figures shown is 2.
        rate("exitmark-xdp", 64, [3.0, 2.0, 3.0], 0.0),
        rate("exitmark-af_xdp-spill", 64, [2.9, 1.9, 2.9], 0.001),
        rate("touch", 64, [3.2, 2.2, 3.2], 0.0),
        rate("exitmark-xdp", 1514, [2.0, 2.0, 2.0], 0.0),
        rate("nftables", 1514, [0.5, 0.5, 0.5], 0.0),
        rate("bridge-nft", 1514, [0.25, 0.25, 0.25], 0.0),
        with(
            rate("exitmark-xdp", 64, [2.5; 3], 0.0),
            json!({"relay_share": 0.0})
        ),
        with(
            rate("touch", 64, [2.5; 3], 0.0),
            json!({"relay_share": 0.0})
        ),
        // Not a load of the goals, although it is this forwarder's only one.
        with(
            rate("testpmd-af_xdp", 64, [9.0; 3], 0.0),
            json!({"relay_share": 0.25})
        ),
        with(
            rate("exitmark-af_xdp", 64, [9.9; 3], 0.0),
            json!({"queues": 2})
        ),
    ])
}

fn growth() -> Value {
    let row = |axis: &str, value: u64, mpps: f64| {
        json!({
            "axis": axis, "value": value, "forwarder": "exitmark-xdp", "frame_bytes": 64,
            "family": "ipv4", "mpps": mpps, "min": mpps, "max": mpps, "runs": 5, "loss": 0.0,
            "rounds": vec![mpps; 5],
        })
    };
    json!([
        row("relays", 1024, 3.0),
        row("relays", 65_536, 2.0),
        row("prefixes", 0, 3.0),
        row("prefixes", 8, 2.9),
        row("queues", 1, 3.0),
        row("queues", 2, 5.7),
    ])
}

fn latency() -> Value {
    let row = |forwarder: &str, trips: [f64; 3]| {
        json!({
            "forwarder": forwarder, "frame_bytes": 64, "family": "ipv4", "lossless_mpps": 2.5,
            "min": 2.4, "max": 2.6, "runs": 5, "rounds": rounds([2.4, 2.5, 2.6]),
            "latency": [{
                "load": 0.5, "offered_mpps": 1.25, "p50_us": 5.0, "p90_us": 6.0, "p99_us": 9.0,
                "p99_9_us": 40.0, "p99_99_us": 400.0, "max_us": 0.0, "samples": 12_345, "loss": 0.0,
            }],
            "round_trip": {"p50_us": trips[1], "p99_us": 20.0, "samples": 1000,
                "rounds": rounds(trips)},
            "loss_curve": [{"offered_mpps": 2.0, "loss": 0.0}, {"offered_mpps": 5.0, "loss": 0.5}],
            "burst_frames": 512, "recovery_us": 1500.0, "idle_core": 0.002,
            "round_trips": [{
                "offered_mpps": 0.019_98, "p50_us": trips[1], "p99_us": 20.0, "p99_99_us": null,
                "max_us": 345.6, "samples": 4567, "loss": 0.0, "core": 0.1574,
                "rounds": rounds(trips),
            }],
        })
    };
    json!([
        row("wire", [5.0, 6.0, 7.0]),
        row("exitmark-xdp", [5.5, 6.5, 9.5])
    ])
}

/// Results with unknown values: in one row, every value that may be null is null.
fn latency_with_nulls() -> Value {
    let nothing = json!({
        "forwarder": "nftables", "frame_bytes": 64, "family": "ipv4", "lossless_mpps": null,
        "min": null, "max": null, "runs": 5, "rounds": [null, null, null, null, null],
        "latency": [{
            "load": 0.1, "offered_mpps": null, "p50_us": null, "p90_us": null, "p99_us": null,
            "p99_9_us": null, "p99_99_us": null, "max_us": null, "samples": 0, "loss": null,
            "batch": null,
        }],
        "round_trip": null, "loss_curve": [], "burst_frames": null, "burst_is_bound": false,
        "generator_bound": false, "overload": null, "recovery_us": null,
    });
    let mut rows = latency();
    let row = |row: &Value, trips: Value| {
        let at = json!({
            "load": 0.1, "offered_mpps": 0.25, "p50_us": 5.0, "p90_us": null, "p99_us": 9.0,
            "p99_9_us": 40.0, "p99_99_us": null, "max_us": 50.0, "samples": 3, "loss": 0.0,
            "batch": 4.0,
        });
        let trip = json!({"p50_us": 6.0, "p99_us": null, "samples": 9, "offered_mpps": 0.005,
            "batch": 1.0, "rounds": trips});
        let fields = json!({
            "latency": [at], "round_trip": trip, "burst_frames": 65_536.0, "burst_is_bound": true,
            "generator_bound": true, "overload": {"offered_mpps": 5.0, "loss": 0.0},
            "recovery_us": null,
        });
        with(row.clone(), fields)
    };
    // The differences within the second and the last round are 1 and 3. If the nulls were skipped,
    // the pairs would be others.
    rows[0] = row(&rows[0], json!([5.0, 6.0, null, 8.0, 9.0]));
    rows[1] = row(&rows[1], json!([null, 7.0, 9.0, null, 12.0]));
    rows.as_array_mut().unwrap().push(nothing);
    rows
}

fn tcp() -> Value {
    let row = |forwarder: &str, direction: &str, figure: &str, streams: u32, value: f64| {
        json!({
            "forwarder": forwarder, "direction": direction, figure: value, "min": value,
            "max": value, "runs": 5, "streams": streams, "rounds": vec![value; 5],
            "retransmits": 3, "p99_us": 50.0,
        })
    };
    json!([
        // The number of streams with the worst result counts.
        row("wire", "upload", "gbit_per_s", 4, 4.0),
        row("exitmark-xdp", "upload", "gbit_per_s", 4, 3.0),
        row("wire", "upload", "gbit_per_s", 1, 4.0),
        row("exitmark-xdp", "upload", "gbit_per_s", 1, 3.9),
        row("exitmark-xdp", "connect", "connections_per_s", 8, 18_250.4),
        row("exitmark-xdp", "round-trip", "round_trip_us", 1, 17.25),
        row("wire", "round-trip", "round_trip_us", 1, 16.0),
    ])
}

fn machine() -> Value {
    json!({
        "kernel": "6.18.1", "cpu": "Some | CPU", "cores": 2, "memory": "8.0 GiB",
        "hypervisor": "KVM", "governor": null, "commit": "abc1234", "date": "2026-01-02T03:04:05Z",
        "busy": 0.2,
    })
}

fn decisions() -> Value {
    let row = |kind: &str, set: &str, ns: f64| {
        let over = ns - 1.25;
        json!({"kind": kind, "set": set, "ns": ns, "over_nothing": over, "rounds": vec![ns; 5]})
    };
    json!([
        row("exit4", "ring", 5.0),
        row("exit6", "ring", 5.5),
        row("relay4", "ring", 4.5),
        row("relay6", "ring", 5.25),
        row("host-udp", "ring", 9.0),
        // One kind is missing: the worst is not known.
        row("exit4", "cold", 15.0),
    ])
}

fn kernel() -> Value {
    let row = |kind: &str, bytes: u32, set: &str, program: &str, over: f64| {
        json!({
            "kind": kind, "frame_bytes": bytes, "set": set, "program": program,
            "ns": 30.0 + over, "over_redirect": over, "runs": 5, "rounds": vec![30.0 + over; 5],
        })
    };
    let mut rows = vec![
        row("exit4", 64, "ring", "redirect", 0.0),
        row("exit4", 64, "ring", "touch", 3.25),
    ];
    let kinds = ["exit4", "exit6", "relay4", "relay6"];
    for (number, kind) in (0..).map(f64::from).zip(kinds) {
        rows.push(row(kind, 64, "ring", "exitmark-xdp", 8.0 + number));
        rows.push(row(kind, 64, "ring", "exitmark-xdp-frags", 99.0));
        rows.push(row(kind, 64, "cold", "exitmark-xdp", 16.0 - number));
        if number < 3.0 {
            rows.push(row(kind, 1514, "ring", "exitmark-xdp", 12.0));
        }
    }
    for kind in ["from uplink", "from uplink, IPv6", "from a relay by uplink"] {
        rows.push(row(kind, 64, "ring", "exitmark-xdp", 4.25));
    }
    Value::Array(rows)
}

fn worker() -> Value {
    let row = |kind: &str, figures: [f64; 3], cycles: Option<f64>| json!({"kind": kind, "ns": figures[1], "cycles": cycles, "rounds": rounds(figures)});
    json!([
        // The ratios are 3, 2, 1.5, 3 and 2; that of the figures shown is 2.
        row("testpmd-io", [4.0, 8.0, 8.0], Some(20.0)),
        row("exit4", [12.0, 16.0, 12.0], Some(40.0)),
        row("exit6", [12.0, 16.0, 12.0], None),
        row("relay4", [4.0, 8.0, 8.0], None),
        row("relay6", [10.0, 20.0, 20.0], None),
        row("arp", [99.0; 3], None),
    ])
}

fn monitor() -> Value {
    let row = |name: &str, mpps: f64| json!({"name": name, "unit": "ns/packet", "mpps": mpps, "rounds": vec![1e3 / mpps; 5]});
    json!({
        "machine": machine(), "missing": [],
        "rows": [
            row("mix-cached", 30.0), row("mix-cold", 12.5), row("mix-worst-cold", 9.75),
            {"name": "memory-now", "unit": "MiB", "rounds": vec![54.0; 5]},
        ],
    })
}

fn results() -> TempDir {
    let directory = TempDir::new().unwrap();
    for (name, content) in [
        ("pps.json", rates()),
        ("growth.json", growth()),
        ("latency.json", latency()),
        ("tcp.json", tcp()),
        ("machine.json", machine()),
        ("decision.json", decisions()),
        ("kernel.json", kernel()),
        ("worker.json", worker()),
        ("monitor.json", monitor()),
    ] {
        fs::write(directory.path().join(name), content.to_string()).unwrap();
    }
    directory
}

#[track_caller]
fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
}

/// The line of a table whose first cell is `begin`.
fn line<'t>(text: &'t str, begin: &str) -> &'t str {
    let begin = format!("| {begin} |");
    text.lines()
        .find(|line| line.starts_with(&begin))
        .unwrap_or_else(|| panic!("no line begins with {begin} in\n{text}"))
}

#[test]
fn goals_are_compared_with_ratios_within_rounds() {
    let report = Report::of(results().path()).unwrap();
    #[rustfmt::skip]
    let table = [
        ("kernel's decision over a redirect, exit and relay, 64 B",
         "exit4 8.00, exit6 9.00, relay4 10.00, relay6 11.00", "11.000 ns", "met"),
        ("kernel's decision over a redirect, inbound, 64 B",
         "from uplink 4.25, from uplink, IPv6 4.25, from a relay by uplink 4.25", "4.250 ns",
         "**not met**"),
        ("kernel's decision over a redirect, exit and relay, 1514 B",
         "exit4 12.00, exit6 12.00, relay4 12.00", "-", "not measured"),
        ("the same, 64 B, 65,536 flows and endpoints / 1,024",
         "exit4 2.00, exit6 1.67, relay4 1.40, relay6 1.18", "2.000", "**not met**"),
        ("exitmark-xdp / touch, 64 B", "2.000 / 2.200 Mpps", "0.938", "**not met**"),
        ("exitmark-xdp / touch, 64 B, exit traffic only", "2.500 / 2.500 Mpps", "1.000", "met"),
        ("exitmark-xdp / touch, 1514 B", "-", "-", "not measured"),
        ("exitmark-xdp / wire, 64 B", "2.000 / 4.000 Mpps", "0.750", "**not met**"),
        ("exitmark-af_xdp / testpmd-af_xdp, 64 B", "-", "-", "not measured"),
        ("exitmark-af_xdp-spill / exitmark-xdp, 64 B", "1.900 / 2.000 Mpps",
         "0.967, lost at worst: 0.1000 %", "**not met**"),
        ("exitmark-af_xdp-spill / exitmark-xdp, 1514 B", "-", "-", "not measured"),
        ("exitmark-xdp, 2 queues / 1 queue", "5.700 / 3.000 Mpps", "1.900", "met"),
        ("exitmark-xdp, 65,536 relay endpoints / 1,024, 65,536 flows", "2.000 / 3.000 Mpps", "0.667",
         "**not met**"),
        ("one decision, a ring's worth of frames",
         "exit4 5.00, exit6 5.50, relay4 4.50, relay6 5.25", "5.500 ns", "met"),
        ("one decision, no frame in the cache", "exit4 15.00", "-", "not measured"),
        ("one decision, a ring's worth of frames, over a pass that decides nothing",
         "exit4 3.75, exit6 4.25, relay4 3.25, relay6 4.00", "4.250 ns", "met"),
        ("one decision, no frame in the cache, over a pass that decides nothing", "exit4 13.75", "-",
         "not measured"),
        ("worker over ports in memory / testpmd's io over net_null, cycles a packet",
         "exit4 2.00, exit6 2.00, relay4 1.00, relay6 2.50", "2.500", "**not met**"),
        ("monitor, cold", "mix-cold 12.50, mix-worst-cold 9.75", "9.750 Mpps", "**not met**"),
        ("TCP upload, exitmark-xdp / wire", "3.00 / 4.00 Gbit/s, 4 streams", "0.750",
         "**not met**"),
        ("TCP download, exitmark-xdp / wire", "-", "-", "not measured"),
        ("round trip, exitmark-xdp more than wire", "6.50 − 6.00 µs", "0.500 µs, over TCP 1.250 µs",
         "met"),
        ("core time of the box without frames", "-", "0.200 %", "met"),
    ];
    for (what, figures, measured, verdict) in table {
        let line = line(&report.page, what);
        let end = format!("| {figures} | {measured} | {verdict} |");
        assert!(line.ends_with(&end), "{line}");
    }
}

#[test]
fn the_page_has_every_measurement() {
    let report = Report::of(results().path()).unwrap();
    let page = &report.page;
    assert_eq!(
        line(page, "exitmark-xdp"),
        "| exitmark-xdp | 2.000 | 0.100–9.000 | none | none | 6.000 | 0.750 | +83.3 |"
    );
    let parts = [
        "### 64 B, IPv4, half of the flows to relays, 1 queue, 1,024 flows, 10,000 relay endpoints",
        "| CPU | Some \\| CPU |",
        "Other processes used this machine meanwhile",
        "| exitmark-xdp | 64 | IPv4 | 1.250 | - | 5.00 | 6.00 | 9.00 | 40.0 | 400 | 0.00 | 12,345 |",
        "| exitmark-xdp | 64 | IPv4 | 512 | - | - | 1,500 |",
        "| exitmark-xdp | 64 | IPv4 | 20,000 | 6.50 | 20.0 | - | 346 | 15.7 % | 0.2 % | 4,567 |",
        "| exit4 | 64 | ring | +3.2 | - | +8.0 | +99.0 |",
        "| exit4 | ring | 5.00 | +3.75 |",
        "| testpmd-io | 8.00 | 20.0 | 1.00 |",
        "| exit6 | 16.00 | - | 2.00 |",
        "| forwarder | B | family | prefixes of the host |",
        "\n\nThe generators of this many queues use every core",
        "| exitmark-xdp | 8 | 18,250 | 18,250–18,250 | - |",
        "| exitmark-xdp | 17.2 | 17.2–17.2 | 50.0 | +1.25 |",
        "| exitmark-xdp | 64 | IPv4 | 65,536 | 2.000 | 2.000–2.000 | none | 0.667 |",
    ];
    assert_has(page, &parts);
    // At two queues among the rates, and where queues grow.
    assert_eq!(page.matches("of this many queues").count(), 2);
    assert!(!page.contains("Not measured here"));
}

#[test]
fn unknown_values_are_shown_as_such() {
    let directory = results();
    let write = |name: &str, content: Value| {
        fs::write(directory.path().join(name), content.to_string()).unwrap();
    };
    write("latency.json", latency_with_nulls());
    write(
        "missing.json",
        json!([{"bench": "rates", "forwarder": "testpmd-af_xdp", "reason": "no | tool\nis here"}]),
    );
    let report = Report::of(directory.path()).unwrap();
    let parts = [
        "Not measured here:\n\n| bench |",
        "| rates | testpmd-af_xdp | no \\| tool is here |",
        "| nftables | 64 | IPv4 | - | - |",
        "| exitmark-xdp | 64 | IPv4 | 2.500 † | 2.400–2.600 |",
        "\n\n† Limited by the generator",
        "| nftables | 64 | IPv4 | - | - | - | - | - | - | - | - | 0 |",
        "| exitmark-xdp | 64 | IPv4 | 0.250 | 4 | 5.00 | - | 9.00 | 40.0 | - | 50.0 | 3 |",
        "| exitmark-xdp | 64 | IPv4 | 0.0050 | 1 | 6.00 | - | 9 |",
        "| exitmark-xdp | 64 | IPv4 | ≥ 65,536 | 5.000 | none | - |",
    ];
    assert_has(&report.page, &parts);
    let trip = line(&report.page, "round trip, exitmark-xdp more than wire");
    assert!(trip.contains("| 2.000 µs, over TCP"), "{trip}");
    let plot = &report.plots["latency-10.svg"];
    assert!(plot.contains(">\nexitmark-xdp\n<") && !plot.contains("nftables"));
    assert!(report.plots["throughput.svg"].contains(">\nbridge-nft\n<"));

    // Without any value there is no plot, and no error.
    let rows = latency_with_nulls();
    write("latency.json", json!([rows[2]]));
    let report = Report::of(directory.path()).unwrap();
    assert!(!report.plots.contains_key("latency-10.svg"));
}

#[test]
fn every_link_has_its_plot_and_every_plot_its_link() {
    let report = Report::of(results().path()).unwrap();
    let names: Vec<_> = report.plots.keys().map(String::as_str).collect();
    let expected = [
        "growth-prefixes.svg",
        "growth-queues.svg",
        "growth-relays.svg",
        "latency-50.svg",
        "loss.svg",
        "throughput.svg",
    ];
    assert_eq!(names, expected);
    for (name, svg) in &report.plots {
        let link = format!("(benchmarks/{name})");
        assert_eq!(report.page.matches(&link).count(), 1);
        assert!(svg.starts_with("<svg "), "{name}");
        assert!(svg.trim_end().ends_with("</svg>"), "{name}");
        assert!(svg.contains(">\nexitmark-xdp\n<"), "{name}");
    }
}

#[test]
fn a_time_of_zero_is_the_lowest_point_of_its_line() {
    let report = Report::of(results().path()).unwrap();
    let line = report.plots["latency-50.svg"]
        .lines()
        .find(|line| line.starts_with("<polyline") && line.contains("#0072B2"))
        .unwrap();
    let (_, points) = line.split_once("points=\"").unwrap();
    let heights = points.split_whitespace().filter_map(|point| {
        let (_, y) = point.split_once(',')?;
        y.parse::<u32>().ok()
    });
    // SVG counts from above: five percentiles rise, and the greatest time is 0.
    let heights: Vec<_> = heights.collect();
    assert_eq!(heights.len(), 6, "{line}");
    assert!(heights[..5].is_sorted_by(|one, next| one > next), "{line}");
    assert!(heights[5] > heights[0], "{line}");
}

#[test]
fn a_missing_file_is_named_and_a_broken_one_is_an_error() {
    let directory = results();
    let path = |name: &str| directory.path().join(name);
    fs::remove_file(path("latency.json")).unwrap();
    let report = Report::of(directory.path()).unwrap();
    assert_eq!(report.missing, ["latency.json"]);
    assert!(report.page.contains("is not there: latency.json."));
    assert!(!report.page.contains("## Latency"));

    for broken in [
        "[{\"forwarder\": \"wire\"".to_owned(),
        "[{}]".to_owned(),
        json!([rate("wire", 64, [1.0, -1.0, 1.0], 0.0)]).to_string(),
    ] {
        fs::write(path("pps.json"), broken).unwrap();
        let error = Report::of(directory.path()).err().unwrap();
        assert!(error.contains("pps.json"), "{error}");
    }
    let nothing = Report::of(TempDir::new().unwrap().path()).err().unwrap();
    assert!(nothing.contains("make bench"), "{nothing}");
}

/// The published files of a project that differ from a report on its own results.
fn differences(project: &Path) -> Vec<String> {
    let report = Report::of(&project.join(publish::DATA)).unwrap();
    let read = |path: &str| fs::read_to_string(project.join(path)).unwrap_or_default();
    let readme = read("README.md");
    let new_readme = readme::with_block(&readme, &report.block).unwrap();
    let mut expected = BTreeMap::from([
        ("README.md".to_owned(), new_readme),
        ("docs/benchmarks.md".to_owned(), report.page),
    ]);
    for (name, svg) in report.plots {
        expected.insert(format!("docs/benchmarks/{name}"), svg);
    }
    let differ = |(path, text): (String, String)| (read(&path) != text).then_some(path);
    expected.into_iter().filter_map(differ).collect()
}

#[test]
fn published_pages_match_the_results_published_with_them() {
    let project = TempDir::new().unwrap();
    let path = |name: &str| project.path().join(name);
    fs::write(path("README.md"), README).unwrap();
    let report = Report::of(results().path()).unwrap();
    // Files of an earlier publication.
    fs::create_dir_all(path("docs/benchmarks/data")).unwrap();
    fs::write(path("docs/benchmarks/old.svg"), "").unwrap();
    fs::write(path("docs/benchmarks/data/tcp-machine.json"), "{}").unwrap();
    publish::publish(&report, project.path()).unwrap();
    assert_eq!(differences(project.path()), [""; 0]);
    assert!(!path("docs/benchmarks/old.svg").exists());

    let readme = fs::read_to_string(path("README.md")).unwrap();
    assert!(readme.starts_with("before\n<!--") && readme.ends_with("-->\nafter\n"));
    assert!(!readme.contains("by hand"), "{readme}");
    let parts = [
        "| exitmark, `xdp` | 2.00 Mpps, 6.0 × nftables | 2.00 Mpps, 4.0 × nftables | none |",
        "| exitmark, `af_xdp` | 1.90 Mpps, 5.8 × nftables | - | 0.1000 % |",
        "| exitmark, `xdp` | 3.9 Gbit/s | - | 18,250 | 17.2 µs |",
        "one stream; connections 8 at a time:",
    ];
    assert_has(&readme, &parts);
    fs::write(path("README.md"), readme.replace("6.0 ×", "7.0 ×")).unwrap();
    assert_eq!(differences(project.path()), ["README.md"]);
}

#[test]
fn a_quick_run_or_a_readme_without_markers_is_not_published() {
    let project = TempDir::new().unwrap();
    let readme = project.path().join("README.md");
    let mut report = Report::of(results().path()).unwrap();
    for wrong in ["no markers", &README.repeat(2)] {
        fs::write(&readme, wrong).unwrap();
        let error = publish::publish(&report, project.path()).unwrap_err();
        assert!(error.contains("<!-- benchmarks: begin -->"), "{error}");
    }
    fs::write(&readme, README).unwrap();
    for file in 0..report.fewest_rounds.len() {
        let (name, enough) = report.fewest_rounds[file];
        report.fewest_rounds[file].1 = 4;
        let error = publish::publish(&report, project.path()).unwrap_err();
        assert_has(&error, &["--quick", name]);
        report.fewest_rounds[file].1 = enough;
    }
    let commit = |commit: &str| Some(commit.to_owned());
    for wrong in [
        vec![],
        vec![None],
        vec![commit("abc1234-dirty")],
        vec![commit("abc1234"), commit("abc1235")],
        vec![commit("abc1234"), None],
    ] {
        report.commits = wrong;
        let error = publish::publish(&report, project.path()).unwrap_err();
        assert!(error.contains("one commit"), "{error}");
    }
    assert!(!project.path().join("docs").exists());
}

#[test]
fn the_projects_figures_match_its_results() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = fs::read_to_string(project.join("README.md")).unwrap();
    readme::with_block(&readme, "").unwrap();
    if project.join(publish::DATA).exists() {
        let edited = differences(project);
        assert_eq!(edited, [""; 0], "do not edit by hand: `make bench-publish`");
    } else {
        // Before the first publication there is no page to check.
        assert!(!project.join("docs/benchmarks.md").exists());
    }
}
