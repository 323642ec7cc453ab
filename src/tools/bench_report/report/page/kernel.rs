//! The time of one run of the XDP program.

use super::super::sources::{KernelDecision, Sources};
use super::super::table;

/// The compared programs, and the one that the others are compared with.
const PROGRAMS: [&str; 4] = ["touch", "bare-xdp", "exitmark-xdp", "exitmark-xdp-frags"];
const BASE: &str = "redirect";

pub(super) fn section(sources: &Sources) -> Option<String> {
    let bases = sources.kernel.iter().filter(|row| row.program == BASE);
    let rows: Vec<_> = bases.map(|base| line(sources, base)).collect();
    let head = [&["kind of frame", "B", "set"], &PROGRAMS[..]].concat();
    (!rows.is_empty()).then(|| {
        format!(
            "ns of a run (BPF_PROG_RUN) more than of a redirect that does nothing else, each run with \
             the frame\nof another flow. `ring`: 1,024 flows and relay endpoints; `cold`: 65,536. \
             `touch` marks every frame;\n`exitmark-xdp-frags` is loaded for frames in several \
             buffers.\n\n{}",
            table::table(&head, rows)
        )
    })
}

fn line(sources: &Sources, base: &KernelDecision) -> Vec<String> {
    let same = |row: &&KernelDecision| {
        (&row.kind, row.frame_bytes, &row.set) == (&base.kind, base.frame_bytes, &base.set)
    };
    let figure = |program: &str| {
        let mut rows = sources.kernel.iter().filter(same);
        let row = rows.find(|row| row.program == program);
        row.map_or_else(
            || "-".to_owned(),
            |row| format!("{:+.1}", row.over_redirect),
        )
    };
    let mut line = vec![
        base.kind.clone(),
        base.frame_bytes.to_string(),
        base.set.clone(),
    ];
    line.extend(PROGRAMS.map(figure));
    line
}
