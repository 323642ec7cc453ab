//! The configuration of a site's box.

use super::LabError;
use super::site::{HOST_V4, HOST_V6, OR_PORT, RELAY_V4, RELAY_V6, TORNET_MAC};
use std::cell::Cell;
use std::fmt::Display;
use std::path::{Path, PathBuf};

thread_local! {
    static ENGINE: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// Runs a test of the tier *root* with every frame decided in user space, and with fast-path frames
/// decided in the kernel: the result must be the same. Configurations that the test's thread writes
/// have the engine.
pub fn both_engines(test: impl Fn()) {
    crate::needs_root!();
    for engine in ["af_xdp", "xdp"] {
        println!("engine {engine}");
        ENGINE.set(Some(engine));
        test();
    }
    ENGINE.set(None);
}

/// An example configuration with every optional key uncommented: lines with `#` directly before a
/// key.
pub fn uncommented(example: &str) -> String {
    let is_key = |line: &str| {
        let (key, _) = line.split_once(" = ").unwrap_or_default();
        !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let lines = example.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if is_key(rest) => rest,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// An example configuration with the `[[wire]]` of its comments in place of `[ports]`, which exclude
/// each other: the comment lines from `[[wire]]` on that are indented by three spaces. `None` without
/// such a comment.
pub fn with_wires(example: &str) -> Option<String> {
    let lines = example.lines().skip_while(|line| *line != "#   [[wire]]");
    let wires: Vec<_> = lines.map_while(|line| line.strip_prefix("#   ")).collect();
    let (before, rest) = example.split_once("[ports]\n")?;
    let (_, after) = rest.split_once("\n[host]\n")?;
    let wires = wires.join("\n");
    (!wires.is_empty()).then(|| format!("{before}{wires}\n\n[host]\n{after}"))
}

/// A configuration; the default is that of the site, whose relay is listed by hand.
#[derive(Clone)]
#[must_use]
pub struct Config {
    /// Lines before the first table.
    pub top: String,
    /// The NIC, and the value of `steer.next_hop`.
    incoming: Option<(String, String)>,
    /// The NIC of the tap.
    tap: Option<String>,
    steer: String,
    /// The host's addresses.
    pub addresses: Vec<String>,
    host: String,
    /// Further groups of hosts: the lines of `[[host]]` of each.
    groups: Vec<String>,
    /// The wires in place of `[ports]`: the lines of `[[wire]]` of each.
    wires: Vec<String>,
    /// The lines of the table `[relays]`.
    pub relays: String,
    more: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            top: String::new(),
            incoming: Some(("incoming0".to_owned(), format!("{TORNET_MAC:?}"))),
            tap: None,
            steer: String::new(),
            addresses: vec![HOST_V4.to_string(), HOST_V6.to_string()],
            host: String::new(),
            groups: Vec::new(),
            wires: Vec::new(),
            relays: format!("extra = [\"{RELAY_V4}:{OR_PORT}\", \"[{RELAY_V6}]:{OR_PORT}\"]"),
            more: String::new(),
        }
    }
}

fn add(lines: &mut String, more: impl Display) {
    *lines += &format!("{more}\n");
}

impl Config {
    /// With more lines before the first table.
    pub fn top(mut self, lines: impl Display) -> Self {
        add(&mut self.top, lines);
        self
    }

    /// With `engine` set to this name.
    pub fn engine(self, name: &str) -> Self {
        self.top(format_args!("engine = \"{name}\""))
    }

    /// With another NIC and next hop of `incoming`.
    pub fn incoming(mut self, nic: &str, next_hop: &str) -> Self {
        self.incoming = Some((nic.to_owned(), format!("{next_hop:?}")));
        self
    }

    /// With this next hop of `incoming0`.
    pub fn next_hop(self, next_hop: &str) -> Self {
        self.incoming("incoming0", next_hop)
    }

    /// With this TOML value as the next hops of `incoming0`: a list, or a table.
    pub fn next_hops(mut self, value: impl Into<String>) -> Self {
        self.incoming = Some(("incoming0".to_owned(), value.into()));
        self
    }

    /// Without an `incoming` port.
    pub fn without_incoming(mut self) -> Self {
        self.incoming = None;
        self
    }

    /// With this NIC as the tap.
    pub fn tap(mut self, nic: &str) -> Self {
        self.tap = Some(nic.to_owned());
        self
    }

    /// With more lines of `[steer]`.
    pub fn steer(mut self, lines: impl Display) -> Self {
        add(&mut self.steer, lines);
        self
    }

    /// With these addresses of the host instead.
    pub fn addresses(mut self, addresses: impl IntoIterator<Item: ToString>) -> Self {
        self.addresses = addresses.into_iter().map(|one| one.to_string()).collect();
        self
    }

    /// With more lines of `[host]`.
    pub fn host(mut self, lines: impl Display) -> Self {
        add(&mut self.host, lines);
        self
    }

    /// With a further group of hosts, of these lines.
    pub fn group(mut self, lines: impl Display) -> Self {
        self.groups.push(format!("[[host]]\n{lines}\n"));
        self
    }

    /// With a wire, of these lines, in place of `[ports]`.
    pub fn wire(mut self, lines: impl Display) -> Self {
        self.wires.push(format!("[[wire]]\n{lines}\n"));
        self
    }

    /// With these lines of `[relays]` instead.
    pub fn relays(mut self, lines: impl Into<String>) -> Self {
        self.relays = lines.into();
        self
    }

    /// With more tables at the end of the file.
    pub fn more(mut self, tables: impl Display) -> Self {
        add(&mut self.more, tables);
        self
    }

    /// With these lines of `[datapath]`.
    pub fn datapath(self, lines: impl Display) -> Self {
        self.more(format_args!("[datapath]\n{lines}"))
    }

    /// The configuration in TOML.
    pub fn text(&self) -> String {
        let engine = ENGINE.get().map(|name| format!("engine = \"{name}\"\n"));
        let (incoming, steer) = match &self.incoming {
            Some((nic, hop)) => (
                format!("incoming = \"{nic}\"\n"),
                format!("[steer]\nnext_hop = {hop}\n{}", self.steer),
            ),
            None => (String::new(), String::new()),
        };
        let tap = self.tap.as_ref().map(|nic| format!("tap = \"{nic}\"\n"));
        let tap = tap.unwrap_or_default();
        let ports = match self.wires.is_empty() {
            true => format!("[ports]\nhost = \"host0\"\nuplink = \"uplink0\"\n{incoming}{tap}"),
            false => self.wires.concat(),
        };
        let host = match self.groups.is_empty() {
            true => "[host]",
            false => "[[host]]",
        };
        format!(
            "{}{}{ports}{steer}\
             {host}\naddresses = {:?}\n{}{}[relays]\n{}\n{}",
            engine.unwrap_or_default(),
            self.top,
            self.addresses,
            self.host,
            self.groups.concat(),
            self.relays,
            self.more
        )
    }

    /// Writes the configuration into a directory; returns its path.
    ///
    /// # Errors
    /// Fails if the file cannot be written.
    pub fn write(&self, directory: &Path) -> Result<PathBuf, LabError> {
        let path = directory.join("exitmark.toml");
        std::fs::write(&path, self.text())
            .map_err(|error| LabError(format!("cannot write {}: {error}", path.display())))?;
        Ok(path)
    }
}
