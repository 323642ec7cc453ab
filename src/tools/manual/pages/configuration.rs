//! A configuration's page, generated from the examples: their comments are the text, their keys the
//! tags.
//!
//! A block is comment lines and the keys below them. A comment that is indented further keeps its
//! line breaks.

use super::programs::Program;
use clap_mangen::roff::{Roff, bold, roman};

impl Program {
    pub(super) fn configuration(&self) -> Vec<u8> {
        let name = self.name;
        let title = format!("{}.TOML", name.to_uppercase());
        let mut roff = Roff::new();
        roff.control("TH", [&title, "5", "", &self.source(), name]);
        roff.control("SH", ["NAME"])
            .text([roman(format!("{name}.toml - configuration of {name}"))]);
        for (heading, example) in self.examples {
            roff.control("SH", [*heading]);
            for block in blocks(example) {
                block.render(&mut roff);
            }
        }
        let service = self.service;
        roff.control("SH", ["SEE ALSO"])
            .text([roman(format!("{name}(1), {name}-{service}(1)"))]);
        roff.render().into_bytes()
    }
}

#[derive(Default)]
struct Block {
    /// The name of the table that begins with this block.
    table: Option<&'static str>,
    comment: Vec<&'static str>,
    /// Keys and values; a key that is commented out keeps its comment sign.
    keys: Vec<(&'static str, &'static str)>,
}

fn blocks(example: &'static str) -> Vec<Block> {
    let mut blocks = vec![Block::default()];
    for line in example.lines() {
        let table = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let key = key(line);
        let last = blocks.last().is_none_or(|block| {
            table.is_some() || line.is_empty() || key.is_none() && !block.keys.is_empty()
        });
        if last {
            blocks.push(Block::default());
        }
        let Some(block) = blocks.last_mut() else {
            continue;
        };
        match key {
            Some(key) => block.keys.push(key),
            None if table.is_some() => block.table = table,
            None => block.comment.extend(line.strip_prefix('#')),
        }
    }
    blocks
}

/// Parses a line with a key. A key may be commented out, without a space after the sign.
fn key(line: &'static str) -> Option<(&'static str, &'static str)> {
    let (key, value) = line.split_once(" = ")?;
    let name = key.strip_prefix('#').unwrap_or(key);
    name.bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        .then_some((key, value))
}

impl Block {
    fn render(&self, roff: &mut Roff) {
        if let Some(table) = self.table {
            roff.control("SH", [format!("[{table}]").as_str()]);
        }
        for (position, (key, value)) in self.keys.iter().enumerate() {
            roff.control(if position == 0 { "TP" } else { "TQ" }, [])
                .text([bold(*key), roman(format!(" = {value}"))]);
        }
        if self.keys.is_empty() && self.table.is_none() && !self.comment.is_empty() {
            roff.control("PP", []);
        }
        let mut is_kept = false;
        for line in &self.comment {
            let keeps = line.starts_with("  ");
            if keeps != is_kept {
                // A kept line is indented by its own spaces.
                roff.control(if keeps { "nf" } else { "fi" }, []);
                is_kept = keeps;
            }
            roff.text([roman(if keeps { line } else { line.trim() })]);
        }
        if is_kept {
            roff.control("fi", []);
        }
    }
}
