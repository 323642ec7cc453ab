//! The programs, with the few texts that clap has no place for.

use clap::Command;

/// A program that has a manual.
pub(crate) struct Program {
    /// What it is called by.
    pub(crate) name: &'static str,
    /// Its command line.
    pub(crate) command: fn() -> Command,
    /// The command that the service runs, which goes by the configuration.
    pub(crate) service: &'static str,
    /// The configuration with every key; its page is called `NAME.toml`.
    pub(crate) example: &'static str,
    /// What clap cannot know, in the order of the pages.
    pub(crate) texts: &'static [Text],
}

/// A section that clap has no place for.
pub(crate) struct Text {
    /// The command whose page has it; all pages have it where this is empty.
    pub(crate) command: &'static str,
    /// Its heading.
    pub(crate) heading: &'static str,
    /// Paragraphs; one with a tag is a tag, a tab, and what it means.
    pub(crate) paragraphs: &'static [&'static str],
}

/// Both.
pub(crate) const PROGRAMS: [&Program; 2] = [&BOX, &MONITOR];

const BOX: Program = Program {
    name: "exitmark",
    command: exitmark::cli::command,
    service: "run",
    example: include_str!("../../../dist/exitmark.example.toml"),
    texts: &[
        Text {
            command: "run",
            heading: "SIGNALS",
            paragraphs: &[
                "SIGTERM, SIGINT\tDrain the rings, print the counters, end. What is attached \
                 stays, and the kernel goes on marking and steering, unless pin.on_stop says \
                 otherwise.",
                "SIGHUP\tRead the relay files now, not when they change. What cannot be used \
                 changes nothing.",
                "SIGUSR1\tPrint a line of counters.",
            ],
        },
        environment("run"),
        EXIT_STATUS,
        Text {
            command: "",
            heading: "FILES",
            paragraphs: &[
                "/etc/exitmark/exitmark.toml\tThe configuration that the service uses.",
                "/usr/share/exitmark/exitmark.example.toml\tAn example to start from, with every \
                 key.",
                "/var/lib/exitmark/relays.state\tThe relay set in force, with who has left it.",
                "/run/bpf/exitmark/box\tWhat the service has pinned: as long as it is there, \
                 frames are marked and steered.",
                "/usr/share/doc/exitmark\tREADME.md; docs/install.md, docs/operating.md, \
                 docs/troubleshooting.md and further pages.",
            ],
        },
    ],
};

const MONITOR: Program = Program {
    name: "exitmark-monitor",
    command: exitmark::monitor::cli::command,
    service: "capture",
    example: include_str!("../../../dist/exitmark-monitor.example.toml"),
    texts: &[
        Text {
            command: "capture",
            heading: "SIGNALS",
            paragraphs: &[
                "SIGTERM, SIGINT\tKeep the running period's counts for the next start, and end.",
                "SIGUSR1\tPrint a line of counters.",
            ],
        },
        environment("capture"),
        EXIT_STATUS,
        Text {
            command: "",
            heading: "FILES",
            paragraphs: &[
                "/etc/exitmark-monitor/exitmark-monitor.toml\tThe configuration that the service \
                 uses.",
                "/usr/share/exitmark-monitor/exitmark-monitor.example.toml\tAn example to start \
                 from, with every key.",
                "/var/lib/exitmark-monitor\tA file of JSON Lines for each closed period, which \
                 may be published.",
                "/run/exitmark-monitor\tThe running period's exact counts, in memory and for the \
                 service alone.",
                "/var/cache/exitmark-monitor\tThe page that exitmark-monitor-report.timer has \
                 made, once that is enabled.",
                "/usr/share/doc/exitmark-monitor\tREADME.md; docs/monitor.md, docs/periods.md, \
                 docs/troubleshooting.md and further pages.",
            ],
        },
    ],
};

const fn environment(command: &'static str) -> Text {
    Text {
        command,
        heading: "ENVIRONMENT",
        paragraphs: &[
            "RUST_LOG\tWhat is logged to standard error: error, warn, info (the default), debug \
             or trace. No level names a destination address.",
        ],
    }
}

const EXIT_STATUS: Text = Text {
    command: "",
    heading: "EXIT STATUS",
    paragraphs: &[
        "0\tAll is fine.",
        "1\tThe machine is not as required, or the answer is no; the message says what to do.",
        "2\tWrong usage or configuration.",
    ],
};
