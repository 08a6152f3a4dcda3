//! Sizes and times as people read them. Programs get bytes and seconds.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// `17.2 GB`; decimal, as disks are sold.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub fn bytes(bytes: u64) -> String {
    const STEPS: [(u64, &str); 4] = [
        (1_000_000_000_000, "TB"),
        (1_000_000_000, "GB"),
        (1_000_000, "MB"),
        (1_000, "kB"),
    ];
    for (step, unit) in STEPS {
        if bytes >= step {
            let value = bytes as f64 / step as f64;
            let digits = usize::from(value < 100.0);
            return format!("{value:.digits$} {unit}");
        }
    }
    format!("{bytes} B")
}

/// `3 d 4 h`, `18 h 12 min`, `5 min`, `40 s`: two units at most, the rest cut off.
pub fn span(span: TimeDelta) -> String {
    let seconds = span.num_seconds().max(0);
    let units = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "min"),
        (seconds % 60, "s"),
    ];
    let Some(first) = units.iter().position(|(count, _)| *count > 0) else {
        return "0 s".to_owned();
    };
    let shown = units
        .iter()
        .skip(first)
        .take(2)
        .filter(|(count, _)| *count > 0);
    shown
        .map(|(count, unit)| format!("{count} {unit}"))
        .collect::<Vec<_>>()
        .join(" ")
}

/// As [`span`].
pub fn duration(duration: Duration) -> String {
    span(TimeDelta::from_std(duration).unwrap_or(TimeDelta::max_value()))
}

/// `0.4 s`, `41 s`, `3 min 2 s`.
pub fn seconds(duration: Duration) -> String {
    match duration.as_secs_f64() {
        short if short < 10.0 => format!("{short:.1} s"),
        _ => self::duration(duration),
    }
}

/// How long ago.
pub fn ago(then: DateTime<Utc>, now: DateTime<Utc>) -> String {
    format!("{} ago", span(now - then))
}

/// `12.3 ms`, `4.50 s`.
pub fn milliseconds(milliseconds: f64) -> String {
    match milliseconds {
        short if short < 1000.0 => format!("{short:.1} ms"),
        long => format!("{:.2} s", long / 1000.0),
    }
}

/// `2026-11-22 03:00:00`; everything shown is UTC and says so once.
pub fn time(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d %H:%M:%S").to_string()
}

/// A window's beginning or end, to the minute where that is all there is.
pub fn minute(time: DateTime<Utc>) -> String {
    let seconds = time.timestamp() % 60 != 0;
    time.format(if seconds {
        "%Y-%m-%d %H:%M:%S"
    } else {
        "%Y-%m-%d %H:%M"
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (size, shown) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (99_900, "99.9 kB"),
            (247_000_000, "247 MB"),
            (17_179_869_184, "17.2 GB"),
            (2_000_000_000_000, "2.0 TB"),
        ] {
            assert_eq!(bytes(size), shown);
        }
    }

    #[test]
    fn spans() {
        for (seconds, shown) in [
            (-5, "0 s"),
            (0, "0 s"),
            (40, "40 s"),
            (60, "1 min"),
            (61, "1 min 1 s"),
            (300, "5 min"),
            (3600, "1 h"),
            (3601, "1 h"),
            (65_520, "18 h 12 min"),
            (273_600, "3 d 4 h"),
            (259_260, "3 d"),
        ] {
            assert_eq!(span(TimeDelta::seconds(seconds)), shown, "{seconds}");
        }
    }

    #[test]
    fn pauses() {
        assert_eq!(milliseconds(12.34), "12.3 ms");
        assert_eq!(milliseconds(4500.0), "4.50 s");
    }
}
