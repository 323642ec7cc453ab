//! `exitmark top` on a test terminal.

use crate::sample;
use exitmark_box::observe::{Report, SteeringState, Top};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;
use std::time::Duration;

fn drawn(top: &Top, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| top.draw(frame)).unwrap();
    terminal
}

fn lines(top: &Top) -> Vec<String> {
    lines_of(top, 25)
}

fn lines_of(top: &Top, height: u16) -> Vec<String> {
    let terminal = drawn(top, 80, height);
    let buffer = terminal.backend().buffer();
    buffer
        .content()
        .chunks(80)
        .map(|cells| cells.iter().map(|cell| cell.symbol()).collect())
        .map(|line: String| line.trim_end().to_owned())
        .collect()
}

fn line(top: &Top, begin: &str) -> String {
    let lines = lines(top);
    let found = lines.iter().find(|line| line.starts_with(begin)).cloned();
    found.unwrap_or_else(|| panic!("no {begin}: {lines:#?}"))
}

/// The report with this many more exit frames of 1000 bytes each.
fn later(report: &Report, frames: u64) -> Report {
    let mut later = report.clone();
    let mut classes = later.classes.iter_mut();
    let exit = classes.find(|of| of.class == "exit").unwrap();
    exit.frames += frames;
    exit.bytes += frames * 1000;
    later.ports[0].received_frames += frames;
    later.ports[0].received_bytes += frames * 1000;
    later.engine.af_xdp_frames += frames;
    later
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn rates_are_of_the_time_between_two_reports() {
    let mut top = Top::default();
    assert!(line(&top, "exitmark").contains("waiting for the first answer"));
    let report = sample::report();
    top.answered(report.clone(), SECOND);
    // One report has no rate.
    assert!(line(&top, "exit ").contains("         -             -"));
    top.answered(later(&report, 3000), 3 * SECOND);
    let exit = line(&top, "exit ");
    assert!(exit.contains("   1.50 k   12.0 Mbit/s  "), "{exit}");
    assert!(exit.ends_with('█'), "{exit}");
    assert!(line(&top, "relay ").contains("        0       0 bit/s"));
    let port = lines(&top).into_iter().find(|line| line.contains("eth0"));
    assert!(port.unwrap().contains("1.50 k   12.0 Mbit/s"));
    assert!(line(&top, "engines").contains("xdp 0 %, af_xdp 100 % (configured: auto)"));
    assert!(line(&top, "drops/s").contains("none"));
}

#[test]
fn everything_fits_a_small_screen() {
    let mut top = Top::default();
    top.answered(sample::report(), SECOND);
    top.answered(sample::report(), 2 * SECOND);
    let lines = lines(&top);
    let first = "exitmark 0.1.0  enforce, engine af_xdp, up 3 d 2 h, generation 17";
    assert_eq!(lines[0], first);
    assert!(lines[1].starts_with("ALARM relay-set-stale: "));
    assert!(lines[2].starts_with("warning generic-xdp: "));
    for begin in [
        "non_ip",
        "malformed",
        "foreign",
        "resolver",
        "reply",
        "relay ",
        "exempt",
        "exit ",
        "host ",
        "uplink",
        "incoming",
        "engines",
        "drops/s",
        "relay set",
        "steering",
        "faults",
        "q quits",
    ] {
        line(&top, begin);
    }
    assert!(line(&top, "incoming").ends_with("eth2            no link"));
    assert!(line(&top, "relay set").contains("8123 endpoints, stale, in force for 3 d 1 h"));
    assert!(line(&top, "steering").contains("to 198.51.100.1 at 02:00:5e:10:00:09"));
    // On smaller screens it is cut off, without a panic.
    for (width, height) in [(1, 1), (10, 3), (36, 12), (300, 100)] {
        drawn(&top, width, height);
    }
}

#[test]
fn each_of_several_groups_has_a_row() {
    let mut top = Top::default();
    let report = sample::of_site();
    let line = |top: &Top, begin: &str| {
        let mut lines = lines_of(top, 40).into_iter();
        let found = lines.find(|line| line.starts_with(begin));
        found.unwrap_or_else(|| panic!("no {begin}"))
    };
    top.answered(report.clone(), SECOND);
    assert!(line(&top, "exits-a").ends_with("-             -"));
    let mut later = report.clone();
    let relay = &mut later.groups[0].classes[0];
    (relay.frames, relay.bytes) = (relay.frames + 3000, relay.bytes + 3_000_000);
    top.answered(later.clone(), 3 * SECOND);
    let title = "group                   exit/s        bits/s   relay/s        bits/s";
    assert_eq!(line(&top, "group"), title);
    let row = "exits-a                      0       0 bit/s    1.50 k   12.0 Mbit/s";
    assert_eq!(line(&top, "exits-a"), row);
    let row = "exits-b                      0       0 bit/s         0       0 bit/s";
    assert_eq!(line(&top, "exits-b"), row);
    // Of other groups there are no rates yet.
    later.groups.reverse();
    top.answered(later, 4 * SECOND);
    assert!(line(&top, "exits-b").ends_with("-             -"));
    top.answered(sample::report(), 5 * SECOND);
    let lines = lines_of(&top, 40);
    assert!(lines.iter().all(|line| !line.starts_with("group")));
}

#[test]
fn several_next_hops_are_counted() {
    let mut top = Top::default();
    let mut report = sample::of_site();
    top.answered(report.clone(), SECOND);
    let steering = line(&top, "steering");
    let expected = "unresolved: 1 of 3 next hops; on_unavailable: uplink";
    assert!(steering.ends_with(expected), "{steering}");
    report.steering.next_hops.remove(1);
    report.steering.state = SteeringState::Steering;
    top.answered(report, 2 * SECOND);
    assert!(line(&top, "steering").ends_with("to 2 next hops"));
}

#[test]
fn a_box_that_was_replaced_has_no_negative_rates() {
    let mut top = Top::default();
    let report = later(&sample::report(), 1_000_000);
    top.answered(report.clone(), SECOND);
    top.answered(sample::report(), 2 * SECOND);
    assert!(line(&top, "exit ").contains("        0       0 bit/s"));
    // No rates if time goes backwards or stands still, or if the box has other classes.
    top.answered(later(&report, 5), SECOND);
    assert!(line(&top, "exit ").contains("         -             -"));
    let mut other = report.clone();
    other.classes.remove(0);
    top.answered(other.clone(), 9 * SECOND);
    assert!(line(&top, "exit ").contains("         -             -"));
    top.answered(other, 10 * SECOND);
    assert!(line(&top, "exit ").contains("        0       0 bit/s"));
    top.answered(Report::default(), 11 * SECOND);
    line(&top, "drops/s");
}

#[test]
fn only_the_last_minute_is_shown() {
    let mut top = Top::default();
    let mut report = sample::report();
    top.answered(report.clone(), SECOND);
    for second in 2..200 {
        // One burst, which leaves the window in the end.
        report = later(&report, if second == 10 { 1000 } else { 10 });
        top.answered(report.clone(), second * SECOND);
        let exit = line(&top, "exit ");
        let bars: Vec<char> = exit.chars().skip(35).collect();
        let tall = bars.iter().filter(|bar| **bar == '█').count();
        match second {
            10..69 => assert_eq!(tall, 1, "{second}: {exit}"),
            75.. => assert_eq!(tall, 45, "{second}: {exit}"),
            _ => {}
        }
    }
}

#[test]
fn a_box_that_stops_answering_is_reported() {
    let mut top = Top::default();
    top.answered(sample::report(), SECOND);
    top.failed("no exitmark answers at /run/exitmark/control.sock".to_owned());
    let foot = line(&top, "no exitmark answers");
    assert!(foot.contains("/run/exitmark/control.sock; trying again, q quits"));
    // The last report stays.
    assert!(line(&top, "relay set").contains("8123"));
    assert!(line(&top, "exit ").contains("         -"));
    top.answered(sample::report(), 20 * SECOND);
    line(&top, "q quits");
}

#[test]
fn copies_and_lost_copies_have_rates() {
    let mut report = sample::report();
    let mut top = Top::default();
    top.answered(report.clone(), SECOND);
    let copies = |top: &Top| {
        let lines = lines_of(top, 40);
        let found = lines.iter().find(|line| line.starts_with("copies/s"));
        found.cloned().unwrap_or_else(|| panic!("{lines:#?}"))
    };
    assert_eq!(
        copies(&top).split_whitespace().collect::<Vec<_>>(),
        ["copies/s", "tap0", "-"]
    );
    report.taps[0].copied_in += 10;
    report.taps[0].lost[0].copies += 4;
    top.answered(report, 3 * SECOND);
    assert!(copies(&top).contains("tap0 5, lost 2"), "{}", copies(&top));
}

#[test]
fn faults_are_red() {
    let mut report = sample::report();
    report.steering.state = SteeringState::NoCarrier;
    let mut top = Top::default();
    top.answered(report.clone(), SECOND);
    report.drops[0].frames += 5;
    report.unaccounted_frames = 1;
    top.answered(report, 2 * SECOND);
    assert!(line(&top, "drops/s").contains("tx_full uplink 5"));
    assert!(line(&top, "steering").contains("no-carrier: 198.51.100.1"));
    let terminal = drawn(&top, 80, 25);
    let buffer = terminal.backend().buffer();
    for begin in ["drops/s", "steering", "faults", "ALARM", "relay set"] {
        let mut rows = (0..).zip(lines(&top));
        let (row, _) = rows.find(|(_, line)| line.starts_with(begin)).unwrap();
        let cell = buffer.cell((12, row)).unwrap();
        assert_eq!(cell.fg, Color::Red, "{begin}");
    }
}

#[test]
fn control_characters_are_replaced() {
    let mut report = sample::report();
    report.version = "\x1b[31m".to_owned();
    report.ports[0].interface = "\x1b]0;x\x07".to_owned();
    report.steering.next_hop = Some("\x1b[2J".to_owned());
    let mut top = Top::default();
    top.answered(report, SECOND);
    top.failed("\x1b[2J".to_owned());
    assert!(lines(&top).concat().chars().all(|c| !c.is_control()));
}

/// The report with this many more connections: opened to exits and marked, and not steered.
fn more_connections(report: &Report, exit: u64, unsteered: u64) -> Report {
    let mut later = report.clone();
    let connections = later.connections.as_mut().unwrap();
    connections.classes[0].opened += exit;
    connections.marked += exit;
    connections.unsteered += unsteered;
    later
}

#[test]
fn connections_have_rates_and_totals() {
    let mut top = Top::default();
    let mut report = sample::report_of_connect();
    report.connections.as_mut().unwrap().classes[0].opened = 1000;
    top.answered(report.clone(), SECOND);
    assert_eq!(line(&top, "exit "), "exit           -     1000      12");
    top.answered(more_connections(&report, 3000, 0), 3 * SECOND);
    let all = lines(&top);
    let first = "exitmark 0.1.0  enforce, engine connect, up 3 d 2 h, generation 17";
    assert_eq!(all[0], first);
    assert!(all[1].starts_with("ALARM relay-set-stale: "), "{}", all[1]);
    assert!(all[2].starts_with("warning generic-xdp: "), "{}", all[2]);
    let exit = line(&top, "exit ");
    assert!(
        exit.starts_with("exit      1.50 k     4000      12  "),
        "{exit}"
    );
    assert!(exit.ends_with('█'), "{exit}");
    for expected in [
        "class     conn/s    total earlier  last minute",
        "relay          0        7       3",
        "resolver       0        0       0",
        "socket           conn/s    total",
        "marked           1.50 k   9.01 P",
        "own tos               0        1",
        "unmarked              0        2",
        "earlier marked        0       10",
        "earlier unmarked      0       11",
        "no policy             0       13",
        "steered               0        4",
        "own source            0        5",
        "unsteered             0        6",
    ] {
        assert!(all.contains(&expected.to_owned()), "{expected}: {all:#?}");
    }
    let set = line(&top, "relay set");
    assert!(set.ends_with("in force for 3 d 1 h, all unmarked"), "{set}");
    // A box's lines of frames are left out.
    for absent in ["port ", "engines", "drops/s", "steering", "faults"] {
        let found = all.iter().find(|line| line.starts_with(absent));
        assert_eq!(found, None);
    }
    for (width, height) in [(1, 1), (10, 3), (36, 12), (300, 100)] {
        drawn(&top, width, height);
    }
}

#[test]
fn failing_sockets_are_red_while_their_count_grows() {
    let colour = |top: &Top, begin: &str| {
        let mut rows = (0..).zip(lines(top));
        let (row, _) = rows.find(|(_, line)| line.starts_with(begin)).unwrap();
        drawn(top, 80, 25)
            .backend()
            .buffer()
            .cell((0, row))
            .unwrap()
            .fg
    };
    let report = sample::report_of_connect();
    let mut top = Top::default();
    top.answered(report.clone(), SECOND);
    assert_eq!(colour(&top, "unsteered"), Color::Reset);
    let failing = more_connections(&report, 5, 1);
    top.answered(failing.clone(), 2 * SECOND);
    assert_eq!(colour(&top, "unsteered"), Color::Red);
    for begin in ["marked", "unmarked", "no policy"] {
        assert_eq!(colour(&top, begin), Color::Reset, "{begin}");
    }
    top.answered(failing, 3 * SECOND);
    assert_eq!(colour(&top, "unsteered"), Color::Reset);
}
