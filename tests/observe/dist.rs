//! The alerts and the dashboard in dist/ use only documented metrics and labels.

use crate::metrics::{Metric, PAGE, documented};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use yaml_rust2::{Yaml, YamlLoader};

/// Labels that Prometheus itself adds, or a histogram has.
const GIVEN: [&str; 3] = ["instance", "job", "le"];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// The names in a query, each with the text that follows it.
fn words(query: &str) -> Vec<(&str, &str)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    let mut rest = query;
    while let Some(begin) = rest.find(is_name) {
        rest = &rest[begin..];
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        found.push((&rest[..end], &rest[end..]));
        rest = &rest[end..];
    }
    found
}

/// The metrics of a query with the labels that it selects by, and the labels that it groups by.
fn used(query: &str) -> (Vec<(String, Vec<String>)>, Vec<String>) {
    let (mut metrics, mut grouped) = (Vec::new(), Vec::new());
    for (word, rest) in words(query) {
        if word.starts_with("exitmark_") || word == "up" {
            let picked = rest.strip_prefix('{').map_or("", |rest| {
                rest.split_once('}').expect("a brace that closes").0
            });
            let labels = picked
                .split(',')
                .filter(|label| !label.is_empty())
                .map(|label| label.split(['=', '!']).next().unwrap().trim().to_owned());
            metrics.push((word.to_owned(), labels.collect()));
        }
        if [
            "by",
            "on",
            "without",
            "ignoring",
            "group_left",
            "group_right",
        ]
        .contains(&word)
        {
            let rest = rest
                .trim_start()
                .strip_prefix('(')
                .expect("a list of labels");
            let list = rest.split_once(')').unwrap().0;
            grouped.extend(list.split(',').map(|label| label.trim().to_owned()));
        }
    }
    (metrics, grouped)
}

/// The documented metric of a name in a query.
fn metric<'a>(documented: &'a BTreeMap<String, Metric>, name: &str) -> Option<&'a Metric> {
    let of_histogram = ["_bucket", "_sum", "_count"]
        .iter()
        .find_map(|suffix| documented.get(name.strip_suffix(suffix)?))
        .filter(|metric| metric.kind == "histogram");
    documented.get(name).or(of_histogram)
}

/// Fails unless everything that a query uses is documented. Returns the labels of its result.
fn check(documented: &BTreeMap<String, Metric>, query: &str) -> BTreeSet<String> {
    let (metrics, grouped) = used(query);
    assert!(!metrics.is_empty(), "{query}: no metric");
    let mut known: BTreeSet<String> = GIVEN.map(str::to_owned).into();
    for (name, picked) in metrics {
        let metric = metric(documented, &name);
        let is_known = metric.is_some() || name == "up";
        assert!(is_known, "{query}: {name} is not documented");
        let labels = metric.map_or_else(BTreeSet::new, |metric| metric.labels.clone());
        for label in picked {
            assert!(
                labels.contains(&label) || GIVEN.contains(&label.as_str()),
                "{query}: {name} has no label {label}"
            );
        }
        if metric.is_some_and(|metric| metric.kind == "counter") {
            let is_rate = ["rate(", "increase("]
                .iter()
                .any(|of| query.contains(&format!("{of}{name}")));
            let is_fine = is_rate || name.contains("reloads") || name.contains("mismatched");
            assert!(is_fine, "{query}: {name} is a counter, so take its rate");
        }
        known.extend(labels);
    }
    for label in &grouped {
        assert!(known.contains(label), "{query}: no metric has {label}");
    }
    if query.contains(" by (") && !query.contains(" or ") {
        known.retain(|label| grouped.contains(label));
    }
    known
}

/// The placeholders in double braces, without this prefix.
fn placeholders<'a>(text: &'a str, prefix: &str) -> Vec<&'a str> {
    text.split("{{")
        .skip(1)
        .map(|rest| rest.split_once("}}").unwrap().0.trim())
        .map(|name| name.strip_prefix(prefix).unwrap_or(name))
        .collect()
}

#[test]
fn every_alert_uses_documented_metrics_and_names_a_remedy() {
    let mut names = BTreeSet::new();
    for (program, page, at_least) in [
        ("exitmark", PAGE, 20),
        ("exitmark-monitor", "docs/monitor.md", 6),
    ] {
        let documented = documented(page);
        let file = read(&format!("dist/prometheus/{program}.rules.yml"));
        let files = YamlLoader::load_from_str(&file).unwrap();
        let group = &files[0]["groups"][0];
        assert_eq!(group["name"].as_str(), Some(program));
        let rules = group["rules"].as_vec().unwrap();
        for rule in rules {
            let name = check_rule(&documented, program, rule);
            assert!(names.insert(name.clone()), "{name} is there twice");
        }
        assert!(rules.len() >= at_least, "{program}");
    }
}

/// Fails unless an alert uses documented metrics and has a summary and a description. Returns its
/// name.
fn check_rule(documented: &BTreeMap<String, Metric>, program: &str, rule: &Yaml) -> String {
    let text = |yaml: &Yaml| {
        yaml.as_str()
            .unwrap_or_else(|| panic!("{rule:?}"))
            .to_owned()
    };
    let name = text(&rule["alert"]);
    assert!(name.starts_with("Exitmark"), "{name}");
    let query = text(&rule["expr"]);
    let labels = check(documented, &query);
    let is_of_program = !query.contains("job=") || query.contains(&format!("job=\"{program}\""));
    assert!(is_of_program, "{name} is about another program");
    let severity = text(&rule["labels"]["severity"]);
    let is_known = ["critical", "warning"].contains(&&*severity);
    assert!(is_known, "{name}: {severity}");
    let summary = text(&rule["annotations"]["summary"]);
    let description = text(&rule["annotations"]["description"]);
    let is_long = description.len() > 50;
    assert!(is_long && description.ends_with('.'), "{name}");
    assert!(summary.contains("$labels.instance"), "{name}");
    for label in placeholders(&format!("{summary}{description}"), "$labels.") {
        assert!(labels.contains(label), "{name}: there is no label {label}");
    }
    name
}

/// A single socket that is left alone is an alert: the alarm in the report lasts for a minute only.
#[test]
fn sockets_that_are_not_changed_and_missing_connections_have_alerts() {
    let file = read("dist/prometheus/exitmark.rules.yml");
    let files = YamlLoader::load_from_str(&file).unwrap();
    let rules = files[0]["groups"][0]["rules"].as_vec().unwrap();
    let page = read("docs/operating.md");
    for (metric, limit) in [
        ("unmarked", "> 0"),
        ("unsteered", "> 0"),
        ("no_policy", "> 0"),
        ("class", "== 0"),
    ] {
        let query = format!("increase(exitmark_{metric}_connections_total[");
        let is_on = |rule: &&Yaml| {
            let expr = rule["expr"].as_str().unwrap();
            expr.contains(&query) && expr.ends_with(limit)
        };
        let rule = rules.iter().find(is_on);
        let rule = rule.unwrap_or_else(|| panic!("no alert on {metric} {limit}"));
        let name = rule["alert"].as_str().unwrap();
        assert!(
            page.contains(&format!("`{name}`")),
            "{name} is undocumented"
        );
        // A hold time would hide a single connection.
        assert_eq!(rule["for"].is_badvalue(), limit == "> 0", "{name}");
    }
}

/// The series of a next hop and of a conflict, as the metrics have them.
#[test]
fn an_unusable_next_hop_and_a_host_conflict_have_alerts() {
    let file = read("dist/prometheus/exitmark.rules.yml");
    let files = YamlLoader::load_from_str(&file).unwrap();
    let rules = files[0]["groups"][0]["rules"].as_vec().unwrap();
    let page = read("docs/operating.md");
    for (name, expr, holds) in [
        (
            "ExitmarkSteeringUnavailable",
            "unless on (instance, job) exitmark_next_hop_up == 1",
            true,
        ),
        (
            "ExitmarkNextHopUnusable",
            "exitmark_next_hop_up == 0 and on (instance, job) exitmark_next_hop_up == 1",
            true,
        ),
        // The alarm ends a minute after the last change.
        (
            "ExitmarkHostConflict",
            "exitmark_warning{kind=\"host_conflict\"} == 1",
            false,
        ),
    ] {
        let rule = rules
            .iter()
            .find(|rule| rule["alert"].as_str() == Some(name));
        let rule = rule.unwrap_or_else(|| panic!("no {name}"));
        assert!(rule["expr"].as_str().unwrap().ends_with(expr), "{name}");
        assert_eq!(!rule["for"].is_badvalue(), holds, "{name}");
        assert_eq!(rule["labels"]["severity"].as_str(), Some("critical"));
        assert!(
            page.contains(&format!("`{name}`")),
            "{name} is undocumented"
        );
    }
}

#[test]
fn every_panel_uses_documented_metrics() {
    let documented = documented(PAGE);
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("dist/grafana/exitmark.json")).unwrap();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    assert_eq!(variables[0]["type"], "datasource");
    let mut ids = BTreeSet::new();
    let mut shown = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let id = panel["id"].as_u64().unwrap();
        assert!(ids.insert(id), "panel {id} is there twice");
        let place = &panel["gridPos"];
        assert!(place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24);
        if panel["type"] == "row" {
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "panel {id}");
        for target in panel["targets"].as_array().unwrap() {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "panel {id}");
            let query = target["expr"].as_str().unwrap();
            let labels = check(&documented, query);
            for label in placeholders(target["legendFormat"].as_str().unwrap(), "") {
                assert!(labels.contains(label), "panel {id}: no label {label}");
            }
            shown.extend(used(query).0.into_iter().map(|(name, _)| name));
        }
    }
    // Every counter is on the dashboard.
    for (name, metric) in &documented {
        let is_shown = metric.kind != "counter" || shown.contains(name);
        assert!(is_shown, "no panel shows {name}");
    }
}

#[test]
fn queries_with_unknown_metrics_or_labels_fail() {
    let documented = documented(PAGE);
    for wrong in [
        "exitmark_nothing",
        "rate(exitmark_class_frames_total{klass=\"exit\"}[5m])",
        "sum by (klass) (rate(exitmark_class_frames_total[5m]))",
        "exitmark_class_frames_total > 0",
    ] {
        let checked = std::panic::catch_unwind(|| check(&documented, wrong));
        assert!(checked.is_err(), "{wrong}");
    }
}
