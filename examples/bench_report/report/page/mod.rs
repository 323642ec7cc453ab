//! The page: every section that has something to show, in the order in which it is read.

mod growth;
mod latency;
mod machine;
mod rates;
mod tcp;

use super::sources::Sources;
use super::{PLOTS, goals, names, table};
use std::collections::BTreeMap;

const HEAD: &str = "# Benchmarks\n\n\
    Made by `make bench` and `make bench-publish`; a test finds what is changed by hand.\n\
    All hosts are network namespaces of one machine, joined by veth pairs in copy mode. Every\n\
    forwarder gets the same frames from the same generator, on a fresh site, and must mark and\n\
    steer what it is there for, or it has no rate. They take turns within every round, every\n\
    second round in the reverse order. A figure is the median of the rounds; a ratio is taken\n\
    within each round, and its median told. Trust the ratios, not the rates.\n\n\
    Of packet rates and latency: with one queue, generator, forwarder in the kernel and sink share\n\
    one core; the process of a forwarder, where it has one, has the other cores.\n\n";

/// In characters.
const LONGEST_REASON: usize = 300;

/// The whole page, with links to these plots.
pub(crate) fn of(sources: &Sources, plots: &BTreeMap<String, String>) -> String {
    let page = Page { sources, plots };
    let sections = [
        page.section("Goals", page.goals()),
        page.section("Machine", machine::section(sources)),
        page.section("Forwarders", Some(forwarders())),
        page.section("Rates", rates::section(&page)),
        page.section("Rates without loss", latency::lossless(&page)),
        page.section("Latency", latency::section(&page)),
        page.section("Bursts and recovery", latency::bursts(&page)),
        page.section("TCP", tcp::section(&page)),
        page.section("Growth", growth::section(&page)),
        page.section("One decision in user space", decision(sources)),
    ];
    let mut text = HEAD.to_owned();
    if !sources.missing.is_empty() {
        text.push_str("Not measured here, because the file is not there: ");
        text.push_str(&sources.missing.join(", "));
        text.push_str(".\n\n");
    }
    if !sources.unmeasured.is_empty() {
        text.push_str("Not measured here:\n\n");
        text.push_str(&unmeasured(sources));
        text.push('\n');
    }
    text.extend(sections.into_iter().flatten());
    // One line break at the end.
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// What the sections are made from.
struct Page<'s> {
    sources: &'s Sources,
    plots: &'s BTreeMap<String, String>,
}

impl Page<'_> {
    fn section(&self, heading: &str, content: Option<String>) -> Option<String> {
        content.map(|content| format!("## {heading}\n\n{}\n\n", content.trim_end()))
    }

    /// What is not met, or not measured, is told as plainly as the rest.
    fn goals(&self) -> Option<String> {
        let all = goals::all(self.sources);
        let count = |verdict| all.iter().filter(|goal| goal.is_met() == verdict).count();
        let (met, missed, unknown) = (count(Some(true)), count(Some(false)), count(None));
        Some(format!(
            "Goals: {}; met: {met}; not met: {missed}; not measured: {unknown}.\n\n{}",
            all.len(),
            goals::table(self.sources)
        ))
    }

    /// A footnote for so many queues.
    fn shared_cores(&self, queues: u64) -> &'static str {
        if queues > 1 && self.sources.cores_are_shared(queues) {
            "The generators of so many queues take every core: processes of forwarders share them.\n\n"
        } else {
            ""
        }
    }

    /// A link to a plot, if it was drawn.
    fn plot(&self, name: &str, words: &str) -> String {
        if self.plots.contains_key(name) {
            format!("![{words}]({PLOTS}/{name})\n\n")
        } else {
            String::new()
        }
    }
}

fn unmeasured(sources: &Sources) -> String {
    let rows = sources.unmeasured.iter().map(|one| {
        // An error may tell a whole log.
        let reason = one.reason.chars().take(LONGEST_REASON).collect();
        vec![one.bench.clone(), one.forwarder.clone(), reason]
    });
    table::words(&["bench", "forwarder", "why"], rows)
}

fn forwarders() -> String {
    let rows = names::all().map(|(name, words)| vec![format!("`{name}`"), words.to_owned()]);
    table::words(&["name", "what it is"], rows)
}

fn decision(sources: &Sources) -> Option<String> {
    if sources.decisions.is_empty() {
        return None;
    }
    let rows = sources
        .decisions
        .iter()
        .map(|row| vec![row.kind.clone(), row.set.clone(), format!("{:.2}", row.ns)]);
    Some(format!(
        "Headers, look-up in a full relay set, rewrite, checksum. `ring`: over as many frames as \
         a ring\nholds; `cold`: over so many that none is in the cache.\n\n{}",
        table::table(&["kind of frame", "set", "ns"], rows)
    ))
}
