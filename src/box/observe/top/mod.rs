//! A live view of a running box. The state, [`Top`], is pure and is fed with reports and the time;
//! only [`watch`] uses the terminal.

mod connections;
mod rates;
mod screen;

pub use rates::Top;

use super::Report;
use crossbeam::channel::{Receiver, bounded};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, restore, try_init};
use std::io::{self, IsTerminal};
use std::thread;
use std::time::{Duration, Instant};

/// The longest delay from a report's arrival to the screen; keys take effect at once.
const LOOK: Duration = Duration::from_millis(100);

type TimedReport = (Result<Report, String>, Instant);

/// Shows the answers of `ask`, called every `interval`, until the user quits. A failed request is
/// repeated. The terminal is restored at the end, also after a panic.
///
/// # Errors
///
/// If standard input or output is not a terminal, or the terminal fails.
pub fn watch(
    interval: Duration,
    ask: impl FnMut() -> Result<Report, String> + Send + 'static,
) -> io::Result<()> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(io::Error::other(
            "this is not a terminal; `exitmark status` prints the same once, with --json for programs",
        ));
    }
    let answers = poll_reports(interval, ask)?;
    let terminal = try_init();
    let ended = terminal.and_then(|terminal| show(terminal, &answers));
    restore();
    ended
}

/// Starts a thread that calls `ask`, because an answer may take long while keys are handled. It
/// ends when the receiver is dropped.
fn poll_reports(
    interval: Duration,
    mut ask: impl FnMut() -> Result<Report, String> + Send + 'static,
) -> io::Result<Receiver<TimedReport>> {
    let (sender, answers) = bounded(1);
    thread::Builder::new()
        .name("exitmark-poll".to_owned())
        .spawn(move || {
            while sender.send((ask(), Instant::now())).is_ok() {
                thread::sleep(interval);
            }
        })?;
    Ok(answers)
}

fn show(mut terminal: DefaultTerminal, answers: &Receiver<TimedReport>) -> io::Result<()> {
    let begun = Instant::now();
    let mut top = Top::default();
    loop {
        for (answer, at) in answers.try_iter() {
            match answer {
                Ok(report) => top.answered(report, at.duration_since(begun)),
                Err(error) => top.failed(error),
            }
        }
        terminal.draw(|frame| top.draw(frame))?;
        if event::poll(LOOK)? && quits(&event::read()?) {
            return Ok(());
        }
    }
}

fn quits(event: &Event) -> bool {
    let Event::Key(KeyEvent {
        code,
        modifiers,
        kind: KeyEventKind::Press,
        ..
    }) = event
    else {
        return false;
    };
    match code {
        KeyCode::Char('c') => modifiers.contains(KeyModifiers::CONTROL),
        KeyCode::Char('q') | KeyCode::Esc => true,
        _ => false,
    }
}
