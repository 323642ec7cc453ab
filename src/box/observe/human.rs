//! Formats numbers: short, with their unit, never longer than nine characters.

use std::time::Duration;

/// A count: exact up to 99999, then with three digits.
pub(super) fn count(number: u64) -> String {
    if number < 100_000 {
        number.to_string()
    } else {
        scaled(as_f64(number), "")
    }
}

/// A size in bytes with a decimal prefix.
pub(super) fn bytes(number: u64) -> String {
    scaled(as_f64(number), "B")
}

/// A number with a decimal prefix and a unit.
pub(super) fn scaled(number: f64, unit: &str) -> String {
    let mut number = number;
    let mut prefix = "";
    for larger in ["k", "M", "G", "T", "P", "E"] {
        if number < 999.5 {
            break;
        }
        number /= 1000.0;
        prefix = larger;
    }
    let digits = match number {
        _ if prefix.is_empty() => 0,
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    match (prefix, unit) {
        ("", "") => format!("{number:.digits$}"),
        _ => format!("{number:.digits$} {prefix}{unit}"),
    }
}

pub(super) fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{:.1} %", as_f64(part) * 100.0 / as_f64(whole))
}

/// A time in seconds, usually less than one.
pub(super) fn latency(seconds: f64) -> String {
    let (number, unit) = match seconds {
        ..1e-6 => (seconds * 1e9, "ns"),
        ..1e-3 => (seconds * 1e6, "µs"),
        ..1.0 => (seconds * 1e3, "ms"),
        _ => (seconds, "s"),
    };
    format!("{number:.1} {unit}")
}

/// A long time, in its two largest units.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// Converts with a precision that is sufficient for display.
#[allow(clippy::cast_precision_loss, reason = "a number to look at")]
pub(super) fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (number, shown) in [
            (0, "0"),
            (99_999, "99999"),
            (100_000, "100 k"),
            (999_499, "999 k"),
            (999_500, "1.00 M"),
            (12_345_678, "12.3 M"),
            (u64::MAX, "18.4 E"),
        ] {
            assert_eq!(count(number), shown);
        }
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1500), "1.50 kB");
        assert_eq!(bytes(u64::MAX), "18.4 EB");
        assert_eq!(scaled(1.25e9, "bit/s"), "1.25 Gbit/s");
        assert_eq!(share(1, 3), "33.3 %");
        assert_eq!(share(0, 0), "-");
    }

    #[test]
    fn times_have_their_unit() {
        assert_eq!(latency(1.5e-7), "150.0 ns");
        assert_eq!(latency(2.5e-6), "2.5 µs");
        assert_eq!(latency(0.02), "20.0 ms");
        for (seconds, shown) in [
            (59, "59 s"),
            (61, "1 min 1 s"),
            (3 * 3600 + 120, "3 h 2 min"),
            (3 * 86_400 + 7200, "3 d 2 h"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), shown);
        }
    }
}
