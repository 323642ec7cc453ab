//! The metrics: their format, and their documentation in docs/metrics.md.

use crate::sample;
use exitmark_box::observe::{Report, metrics};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Metric {
    pub(crate) kind: String,
    pub(crate) labels: BTreeSet<String>,
    pub(crate) meaning: String,
}

/// Splits a line with a value into its name, its labels and the value.
fn series(line: &str) -> (&str, BTreeMap<&str, &str>, &str) {
    let (name, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = name.split_once('{').unwrap_or((name, "}"));
    let labels = labels.strip_suffix('}').unwrap();
    let labels = labels.strip_suffix('"').unwrap_or(labels);
    let labels = labels
        .split("\",")
        .filter(|label| !label.is_empty())
        .map(|label| label.split_once("=\"").unwrap())
        .collect();
    (name, labels, value)
}

/// The metrics in this text, by the names that a query uses.
fn served(text: &str) -> BTreeMap<String, Metric> {
    let mut found: BTreeMap<String, Metric> = BTreeMap::new();
    let mut meaning = "";
    let mut family = String::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            meaning = help.split_once(' ').unwrap().1;
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            family = match kind {
                "counter" => format!("{name}_total"),
                "info" => format!("{name}_info"),
                _ => name.to_owned(),
            };
            let metric = Metric {
                kind: kind.to_owned(),
                meaning: meaning.to_owned(),
                ..Metric::default()
            };
            let twice = found.insert(family.clone(), metric);
            assert!(twice.is_none(), "{family} is there twice");
        } else if !line.starts_with('#') {
            let (name, labels, _) = series(line);
            let name = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .filter(|name| *name == family)
                .unwrap_or(name);
            assert_eq!(name, family, "{line}");
            let metric = found.get_mut(name).unwrap();
            let labels = labels.into_keys().filter(|label| *label != "le");
            let labels: BTreeSet<String> = labels.map(str::to_owned).collect();
            let is_same = metric.labels.is_empty() || metric.labels == labels;
            assert!(is_same, "{line}: other labels than the line before");
            metric.labels = labels;
        }
    }
    found
}

/// The page with the metrics of the box.
pub(crate) const PAGE: &str = "docs/metrics.md";

/// The metrics that this page documents.
pub(crate) fn documented(page: &str) -> BTreeMap<String, Metric> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(page);
    let text = fs::read_to_string(path).unwrap();
    let mut found = BTreeMap::new();
    for row in text.lines().filter(|line| line.starts_with("| `exitmark_")) {
        let row = row.trim_start_matches("| ").trim_end_matches(" |");
        let cells: Vec<_> = row.split(" | ").collect();
        let [name, kind, labels, meaning] = cells[..] else {
            panic!("{row}: not four cells");
        };
        let metric = Metric {
            kind: kind.to_owned(),
            labels: labels
                .split(", ")
                .map(|label| label.trim_matches('`').to_owned())
                .filter(|label| label != "none")
                .collect(),
            meaning: meaning.to_owned(),
        };
        let twice = found.insert(name.trim_matches('`').to_owned(), metric);
        assert!(twice.is_none(), "{name} is there twice");
    }
    found
}

/// The metrics of a box and of engine connect.
fn all() -> BTreeMap<String, Metric> {
    let reports = [sample::of_site(), sample::report_of_connect()];
    let of = |report: &Report| served(&metrics(report).unwrap());
    reports.iter().flat_map(of).collect()
}

#[test]
fn a_box_counts_frames_and_engine_connect_counts_connections() {
    let of = |report: &Report| served(&metrics(report).unwrap());
    let (frames, connections) = (of(&sample::report()), of(&sample::report_of_connect()));
    let counts = |all: &BTreeMap<String, Metric>, what: &str| {
        all.keys().filter(|name| name.contains(what)).count()
    };
    assert_eq!(counts(&frames, "connections"), 0);
    assert_eq!(counts(&connections, "frames"), 0);
    assert_eq!(counts(&connections, "connections"), 11);
    assert!(!connections.contains_key("exitmark_steering_up"));
    let text = metrics(&sample::report_of_connect()).unwrap();
    for (line, expected) in [
        ("exitmark_marked_connections_total", sample::EXACT),
        (
            "exitmark_class_connections_total{class=\"exit\"}",
            sample::EXACT,
        ),
        (
            "exitmark_class_earlier_connections_total{class=\"exit\"}",
            12,
        ),
        ("exitmark_unsteered_connections_total", 6),
        ("exitmark_users", 2),
    ] {
        assert_eq!(value(&text, line), expected.to_string());
    }
}

#[test]
fn served_and_documented_metrics_are_the_same() {
    let served = all();
    let documented = documented(PAGE);
    for (name, metric) in &served {
        let Metric { kind, meaning, .. } = metric;
        let labels: Vec<_> = metric.labels.iter().map(|l| format!("`{l}`")).collect();
        let labels = match labels.is_empty() {
            true => "none".to_owned(),
            false => labels.join(", "),
        };
        let row = format!("| `{name}` | {kind} | {labels} | {meaning} |");
        let found = documented.get(name);
        assert_eq!(found, Some(metric), "docs/metrics.md needs the row\n{row}");
    }
    for name in documented.keys() {
        let is_served = served.contains_key(name);
        assert!(is_served, "{name} is documented, not served");
    }
}

#[test]
fn names_follow_the_prometheus_conventions() {
    for (name, metric) in all() {
        assert!(name.starts_with("exitmark_"), "{name}");
        assert_eq!(name.ends_with("_total"), metric.kind == "counter", "{name}");
        assert_eq!(name.ends_with("_info"), metric.kind == "info", "{name}");
        for bad in ["_ms", "_us", "_ns", "_percent", "_count", "_bucket", "_sum"] {
            assert!(!name.ends_with(bad), "{name}");
        }
        let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        assert!(name.bytes().all(is_plain), "{name}");
        assert!(!metric.meaning.is_empty(), "{name}");
        assert!(!metric.meaning.ends_with('.'), "{name}");
    }
}

fn value(text: &str, line: &str) -> String {
    text.lines()
        .find_map(|found| found.strip_prefix(line)?.strip_prefix(' '))
        .unwrap_or_else(|| panic!("no {line} in\n{text}"))
        .to_owned()
}

#[test]
fn values_are_exact() {
    let text = metrics(&sample::report()).unwrap();
    for (line, expected) in [
        ("exitmark_marked_frames_total", sample::EXACT),
        ("exitmark_class_bytes_total{class=\"host\"}", sample::EXACT),
        (
            "exitmark_port_received_bytes_total{port=\"incoming\",interface=\"eth2\"}",
            u64::MAX,
        ),
        ("exitmark_engine_frames_total{engine=\"af_xdp\"}", 750_000),
        ("exitmark_start_timestamp_seconds", 1_700_000_000),
        ("exitmark_steering_up", 1),
        ("exitmark_steering_state{state=\"no-carrier\"}", 0),
        ("exitmark_relay_set_age{age=\"stale\"}", 1),
        ("exitmark_relay_set_age{age=\"fresh\"}", 0),
        (
            "exitmark_dropped_frames_total{reason=\"no_egress\",port=\"\"}",
            0,
        ),
        ("exitmark_worker_frames{queue=\"0\",place=\"sending\"}", 48),
        (
            "exitmark_warning{kind=\"relay-set-stale\",severity=\"alarm\"}",
            1,
        ),
        ("exitmark_build_info{version=\"0.1.0\"}", 1),
    ] {
        assert_eq!(value(&text, line), expected.to_string(), "{line}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn groups_and_next_hops_have_series_of_their_own() {
    let text = metrics(&sample::of_site()).unwrap();
    for (line, expected) in [
        (
            "group_frames_total{group=\"exits-a\",class=\"exit\"}",
            sample::EXACT,
        ),
        (
            "group_bytes_total{group=\"exits-a\",class=\"relay\"}",
            560_000_000,
        ),
        (
            "group_marked_frames_total{group=\"exits-a\"}",
            sample::EXACT,
        ),
        ("group_unrouted_vlan_frames_total{group=\"exits-a\"}", 8),
        ("group_unrouted_vlan_frames_total{group=\"exits-b\"}", 0),
        (
            "next_hop_up{next_hop=\"198.51.100.1\",vlan=\"untagged\"}",
            1,
        ),
        ("next_hop_up{next_hop=\"2001:db8:3::1\",vlan=\"200.30\"}", 0),
        ("next_hop_up{next_hop=\"02:00:5e:10:00:09\",vlan=\"30\"}", 1),
        // The worst state of all.
        ("steering_up", 0),
        ("steering_state{state=\"unresolved\"}", 1),
        ("steering_state{state=\"steering\"}", 0),
        ("host_addresses", 4),
        ("hosts_full_frames_total", 14),
    ] {
        let line = format!("exitmark_{line}");
        assert_eq!(value(&text, &line), expected.to_string(), "{line}");
    }
    // Nothing is counted twice.
    let one = metrics(&sample::report()).unwrap();
    assert!(!one.contains("\nexitmark_group_"), "{one}");
}

/// No series has the address of a host: there may be thousands.
#[test]
fn host_addresses_are_not_in_the_metrics() {
    let report = sample::of_site();
    let text = metrics(&report).unwrap();
    for host in &report.hosts {
        assert!(!text.contains(&host.address), "{}", host.address);
    }
}

#[test]
fn the_histogram_adds_up() {
    let mut report = sample::report();
    let of = |report: &Report| {
        let text = metrics(report).unwrap();
        let bucket = |le: &str| {
            let line =
                format!("exitmark_residence_seconds_bucket{{le=\"{le}\",engine=\"af_xdp\"}}");
            value(&text, &line).parse::<u64>().unwrap()
        };
        let count = value(&text, "exitmark_residence_seconds_count{engine=\"af_xdp\"}");
        let counts = ["0.000001", "0.000005", "0.00001", "+Inf"].map(bucket);
        (counts, count.parse::<u64>().unwrap())
    };
    assert_eq!(of(&report), ([1, 8, 9, 10], 10));
    // Inconsistent, read during an update: the result is still monotonic and ends with the count.
    report.residence[0].buckets = vec![(1e-6, 4), (5e-6, 3), (1e-5, 12)];
    assert_eq!(of(&report), ([4, 4, 10, 10], 10));
    report.residence[0].samples = 2;
    let (counts, count) = of(&report);
    assert!(counts.is_sorted());
    assert_eq!(counts[3], count);
}

#[test]
fn label_values_are_escaped() {
    let mut report = sample::report();
    report.relay_set.sources[0].path = "a\"b\\c\nd".to_owned();
    let text = metrics(&report).unwrap();
    assert!(text.contains(r#"{path="a\"b\\c\nd"} 1700010800"#), "{text}");
}

#[test]
fn each_source_has_a_state_and_accepted_ones_have_times() {
    let text = metrics(&sample::with_several_sources()).unwrap();
    let state = |path: &str, state: &str| {
        let series = format!("exitmark_relay_document_state{{path=\"{path}\",state=\"{state}\"}}");
        value(&text, &series)
    };
    let paths = ["/var/lib/tor/cached-microdesc-consensus"].into_iter();
    let instances =
        ["a", "b"].map(|name| format!("/var/lib/tor-instances/{name}/cached-consensus"));
    let paths = paths.map(str::to_owned).chain(instances);
    for (path, expected) in paths.zip(["in-force", "older", "refused"]) {
        for name in ["in-force", "older", "refused"] {
            let is = if name == expected { "1" } else { "0" };
            assert_eq!(state(&path, name), is, "{path}: {name}");
        }
    }
    let times = "\nexitmark_relay_document_valid_until_timestamp_seconds{";
    assert_eq!(text.matches(times).count(), 2, "{text}");
}

#[test]
fn several_warnings_of_one_kind_are_one_series() {
    let mut report = sample::report();
    let warning = report.warnings[0].clone();
    report.warnings.push(warning);
    let text = metrics(&report).unwrap();
    let warnings = text
        .lines()
        .filter(|line| line.starts_with("exitmark_warning{"));
    let different: BTreeSet<_> = warnings.clone().collect();
    assert_eq!(warnings.count(), different.len(), "{text}");
}

#[test]
fn an_empty_report_has_every_metric() {
    let text = metrics(&Report::default()).unwrap();
    assert_eq!(value(&text, "exitmark_steering_up"), "0");
    assert!(!text.contains("\nexitmark_relay_set_accepted_timestamp_seconds "));
    assert!(!text.contains("{}"));
    let names: Vec<_> = served(&text).into_keys().collect();
    let all = served(&metrics(&sample::of_site()).unwrap());
    assert_eq!(names, all.into_keys().collect::<Vec<_>>());
}
