//! The programs, with the texts that their clap definitions do not contain.

use clap::Command;

pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) command: fn() -> Command,
    /// The subcommand that the service runs, which reads the configuration.
    pub(crate) service: &'static str,
    /// The configurations with every key, each below a heading; their page is `NAME.toml`.
    pub(crate) examples: &'static [(&'static str, &'static str)],
    /// Additional sections, in the order of the pages.
    pub(crate) texts: &'static [Text],
}

/// An additional section of a page.
pub(crate) struct Text {
    /// The command whose page contains it; empty for all pages.
    pub(crate) command: &'static str,
    /// The heading, in capitals.
    pub(crate) heading: &'static str,
    /// The paragraphs; a tagged one is the tag, a tab, and its text.
    pub(crate) paragraphs: &'static [&'static str],
}

pub(crate) const PROGRAMS: [&Program; 2] = [&BOX, &MONITOR];

const BOX: Program = Program {
    name: "exitmark",
    command: exitmark_box::cli::command,
    service: "run",
    examples: &[
        (
            "DESCRIPTION",
            include_str!("../../../../dist/exitmark.example.toml"),
        ),
        (
            "ON THE TOR HOST ITSELF",
            include_str!("../../../../dist/exitmark-connect.example.toml"),
        ),
    ],
    texts: &[
        Text {
            command: "run",
            heading: "SIGNALS",
            paragraphs: &[
                "SIGTERM, SIGINT\tDrain the rings, print the counters, exit. The XDP programs \
                 stay attached, and the kernel continues to mark and steer, unless pin.on_stop \
                 says otherwise.",
                "SIGHUP\tReload the configuration and the relay files, as exitmark reload does; the \
                 outcome is in the log. A refused configuration changes nothing.",
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
                 key of a box.",
                "/usr/share/exitmark/exitmark-connect.example.toml\tThe same for engine connect, on \
                 the Tor host itself.",
                "/var/lib/exitmark/relays.state\tThe relay set in force, with departed relays.",
                "/run/bpf/exitmark/box\tThe service's pins: while they exist, frames are marked \
                 and steered.",
                "/usr/share/doc/exitmark\tREADME.md; docs/install.md, docs/operating.md, \
                 docs/troubleshooting.md and further pages.",
            ],
        },
    ],
};

const MONITOR: Program = Program {
    name: "exitmark-monitor",
    command: exitmark_monitor::cli::command,
    service: "capture",
    examples: &[(
        "DESCRIPTION",
        include_str!("../../../../dist/exitmark-monitor.example.toml"),
    )],
    texts: &[
        Text {
            command: "capture",
            heading: "SIGNALS",
            paragraphs: &[
                "SIGTERM, SIGINT\tSave the running period's counts for the next start, and exit.",
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
                "/run/exitmark-monitor\tThe running period's exact counts, in memory, readable \
                 by the service only.",
                "/var/cache/exitmark-monitor\tThe page that exitmark-monitor-report.timer \
                 generates, if it is enabled.",
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
            "RUST_LOG\tThe level of the log on standard error: error, warn, info (the default), \
             debug or trace. No level logs a destination address.",
        ],
    }
}

const EXIT_STATUS: Text = Text {
    command: "",
    heading: "EXIT STATUS",
    paragraphs: &[
        "0\tSuccess.",
        "1\tA precondition is not met, or the answer is no; the message says what to do.",
        "2\tWrong usage or configuration.",
    ],
};
