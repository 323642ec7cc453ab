//! Tables in Markdown, and the format of their numbers.

pub(crate) use exitmark_service::grouped as count;
use std::fmt::Write;

/// The headings of text columns; all others but the first are numbers.
const TEXT_COLUMNS: [&str; 3] = ["family", "direction", "set"];

/// A Markdown table of numbers, aligned right.
pub(crate) fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let rule = |(column, heading): (usize, &&str)| {
        if column == 0 || TEXT_COLUMNS.contains(heading) {
            "---"
        } else {
            "---:"
        }
    };
    let rules = headings.iter().enumerate().map(rule);
    lines(headings, rules.collect(), rows)
}

/// A Markdown table of text, aligned left.
pub(crate) fn text_table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    lines(headings, vec!["---"; headings.len()], rows)
}

fn lines(
    headings: &[&str],
    rules: Vec<&str>,
    rows: impl IntoIterator<Item = Vec<String>>,
) -> String {
    let mut text = String::new();
    line(&mut text, headings);
    let _ = writeln!(text, "|{}|", rules.join("|"));
    for row in rows {
        line(&mut text, &row);
    }
    text
}

fn line<T: AsRef<str>>(text: &mut String, cells: &[T]) {
    for cell in cells {
        // Text from a file must not end a cell or a line.
        let cell = cell.as_ref().replace('|', "\\|").replace(['\n', '\r'], " ");
        let _ = write!(text, "| {cell} ");
    }
    text.push_str("|\n");
}

pub(crate) fn mpps(mpps: Option<f64>) -> String {
    known(mpps, |mpps| format!("{mpps:.3}"))
}

/// A ratio, with enough digits to compare it with a goal.
pub(crate) fn ratio(ratio: Option<f64>) -> String {
    known(ratio, |ratio| format!("{ratio:.3}"))
}

/// A fraction of lost frames, with enough digits to distinguish ten in a million from none.
pub(crate) fn percent(part: f64) -> String {
    if part == 0.0 {
        "none".to_owned()
    } else if part < 0.000_001 {
        "< 0.0001 %".to_owned()
    } else if part < 0.01 {
        format!("{:.4} %", part * 100.0)
    } else {
        format!("{:.1} %", part * 100.0)
    }
}

/// A figure rounded to an integer.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` keeps it within the type's range"
)]
pub(crate) fn whole(number: f64) -> u64 {
    number.round() as u64
}

/// Microseconds with three significant digits.
pub(crate) fn micros(us: f64) -> String {
    if us < 10.0 {
        format!("{us:.2}")
    } else if us < 100.0 {
        format!("{us:.1}")
    } else {
        format!("{us:.0}")
    }
}

/// A number, or `-` if it is unknown.
pub(crate) fn known(number: Option<f64>, shown: impl Fn(f64) -> String) -> String {
    number.map_or_else(|| "-".to_owned(), shown)
}

/// The display name of an address family.
pub(crate) fn family(name: &str) -> &str {
    match name {
        "ipv4" => "IPv4",
        "ipv6" => "IPv6",
        other => other,
    }
}
