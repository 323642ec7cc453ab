//! A running box on a terminal, live. What is shown is a pure state, [`Top`], fed with reports and
//! the time; only [`watch`] touches a terminal.

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

/// A key is noticed at once; a report so soon after it came.
const LOOK: Duration = Duration::from_millis(100);

type Asked = (Result<Report, String>, Instant);

/// Shows what `ask` answers, every `interval`, until somebody quits. A box that goes away is
/// asked again and again. The terminal is as before when this ends, also by a panic.
///
/// # Errors
///
/// If standard output is no terminal, or is one no more.
pub fn watch(
    interval: Duration,
    ask: impl FnMut() -> Result<Report, String> + Send + 'static,
) -> io::Result<()> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(io::Error::other(
            "this is no terminal; `exitmark status` shows the same once, --json for programs",
        ));
    }
    let answers = asking(interval, ask)?;
    let terminal = try_init();
    let ended = terminal.and_then(|terminal| show(terminal, &answers));
    restore();
    ended
}

/// Asks on a thread of its own, because an answer may take long and keys do not wait. It ends
/// when nobody receives any more.
fn asking(
    interval: Duration,
    mut ask: impl FnMut() -> Result<Report, String> + Send + 'static,
) -> io::Result<Receiver<Asked>> {
    let (sender, answers) = bounded(1);
    thread::Builder::new()
        .name("exitmark-asking".to_owned())
        .spawn(move || {
            while sender.send((ask(), Instant::now())).is_ok() {
                thread::sleep(interval);
            }
        })?;
    Ok(answers)
}

fn show(mut terminal: DefaultTerminal, answers: &Receiver<Asked>) -> io::Result<()> {
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
