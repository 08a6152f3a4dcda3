//! The parts every document of an experiment has: its head, its machine, its tables.

use std::fmt::Write;

use torrust_tracker_maintenance::evaluation::median;

use super::capacity::{PROMPT_MS, Try, Verdict};
use super::machine::Machine;
use crate::generator::{LATE_MS, MOST, Summary};

/// What an experiment is meant to take at most, in minutes.
const MINUTES: f64 = 15.0;

/// Others that keep more than this of a processor busy have a part in the figures.
pub const DISTURBED: f64 = 0.2;

/// A table of Markdown.
#[derive(Debug, Clone, Default)]
pub struct Table {
    text: String,
    columns: usize,
}

impl Table {
    /// With these columns; numbers are to the right, the first column is to the left.
    #[must_use]
    pub fn new(columns: &[&str]) -> Self {
        let mut table = Self {
            text: String::new(),
            columns: columns.len(),
        };
        let names: Vec<String> = columns.iter().map(|name| (*name).to_owned()).collect();
        table.row(&names);
        let rule = columns
            .iter()
            .enumerate()
            .map(|(index, _)| if index == 0 { "---" } else { "---:" });
        let rule: Vec<String> = rule.map(str::to_owned).collect();
        table.row(&rule);
        table
    }

    /// One row more.
    ///
    /// # Panics
    /// When it has not as many cells as there are columns.
    pub fn row(&mut self, cells: &[String]) {
        assert_eq!(cells.len(), self.columns, "a cell for each column");
        self.text.push_str("| ");
        self.text.push_str(&cells.join(" | "));
        self.text.push_str(" |\n");
    }

    /// As Markdown.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The first lines of a document: its title, and that it is not to be edited.
#[must_use]
pub fn head(title: &str, command: &str, date: &str) -> String {
    format!(
        "# {title}\n\n<!-- Written by the command below. Do not edit: run it again. -->\n\n\
         Written on {date} by\n\n```\n{command}\n```\n\n"
    )
}

/// The rates that were tried, under a column of what they were tried with.
#[must_use]
pub fn rates<'a>(what: &str, tried: impl Iterator<Item = (&'a str, &'a [Try])>) -> String {
    let mut table = Table::new(&[
        what,
        "UDP/s",
        "HTTP/s",
        "failed",
        "UDP announces: p50 ms",
        "p99 ms",
        "held",
    ]);
    for (name, tries) in tried {
        for one in tries {
            table.row(&[
                name.to_owned(),
                count(one.udp_per_second.into()),
                count(one.http_per_second.into()),
                count(one.all.counts.failed()),
                ms(one.announces.p50_ms),
                ms(one.announces.p99_ms),
                match one.verdict() {
                    Verdict::Held => "yes",
                    Verdict::NotHeld => "no",
                    Verdict::Unknown => "not known",
                }
                .to_owned(),
            ]);
        }
    }
    format!(
        "Tried from the highest down, until every request was answered and 99 in 100 UDP \
         announces within {PROMPT_MS} ms; rates far above what was answered before are left out, \
         and those above {} UDP requests a second, which the generator is meant for. *Not known*: \
         1 request in 100 left more than {LATE_MS} ms late, or answers were dropped before the \
         generator read them, so that the tracker was not what was tried. Of the UDP requests \
         some are connects and scrapes. A latency counts from the instant a request was planned \
         for.\n\n{}",
        count(MOST.into()),
        table.text()
    )
}

/// How long a measurement took, in bold if that was too long.
#[must_use]
pub fn took(seconds: f64) -> String {
    let minutes = seconds / 60.0;
    let said = format!("The measurement took {} min.", digits(minutes));
    if minutes > MINUTES {
        format!("{said} **That is more than the {MINUTES} min it is meant to take.**")
    } else {
        said
    }
}

/// That the latencies of a phase may be the generator's, if so.
#[must_use]
pub fn blurred(phase: &str, announces: &Summary) -> Option<String> {
    announces.blurred().then(|| {
        format!(
            "**The generator's own lateness:** in {phase}, 1 request in 100 left {} ms or more \
             after its planned instant, more than a quarter of the p99 of {} ms",
            ms(announces.late_p99_ms),
            ms(announces.p99_ms)
        )
    })
}

/// A list, with an empty line after it; nothing for nothing.
#[must_use]
pub fn list(items: &[String]) -> String {
    if items.is_empty() {
        return String::new();
    }
    let lines: Vec<String> = items.iter().map(|item| format!("- {item}\n")).collect();
    lines.concat() + "\n"
}

/// A page ends with one line break.
#[must_use]
pub fn page(text: &str) -> String {
    format!("{}\n", text.trim_end())
}

/// What it ran on.
#[must_use]
pub fn machine(machine: &Machine) -> String {
    let mut table = Table::new(&["machine", ""]).left();
    for (what, value) in [
        (
            "processors",
            format!("{} x {}", machine.processors, machine.processor),
        ),
        ("memory", bytes(machine.memory)),
        ("kernel", format!("Linux {}", machine.kernel)),
        ("file system", machine.file_system.clone()),
        (
            "a flush (`fdatasync` after 4 KiB)",
            format!("{} us, median", machine.flush_us),
        ),
        ("build", machine.build.clone()),
    ] {
        table.row(&[what.to_owned(), value]);
    }
    format!("{}\nRatios travel; seconds do not.\n\n", table.text())
}

impl Table {
    /// All columns to the left.
    #[must_use]
    pub fn left(mut self) -> Self {
        self.text = self.text.replace("---:", "---");
        self
    }
}

/// A number of bytes with a decimal unit and three digits.
#[must_use]
pub fn bytes(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = count as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            return format!("{} {unit}", digits(value));
        }
        value /= 1_000.0;
    }
    format!("{} TB", digits(value))
}

/// Milliseconds of a latency; a dash for none.
#[must_use]
pub fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), digits)
}

/// `median (least to most)` of what several rounds showed; a dash for none.
#[must_use]
pub fn spread(values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (median(&sorted), sorted.as_slice()) {
        (Some(middle), [least, .., most]) => format!(
            "{} ({} to {})",
            digits(middle),
            digits(*least),
            digits(*most)
        ),
        (Some(only), _) => digits(only),
        (None, _) => "-".to_owned(),
    }
}

/// A number with at least three digits, and no more behind the point than that needs.
#[must_use]
pub fn digits(value: f64) -> String {
    let places = match value.abs() {
        large if large >= 99.95 => 0,
        middle if middle >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.places$}");
    match text.strip_suffix(".00") {
        Some(whole) if value.fract() == 0.0 => whole.to_owned(),
        _ => text,
    }
}

/// A count with its thousands apart.
#[must_use]
pub fn count(value: u64) -> String {
    let plain = value.to_string();
    let mut text = String::new();
    for (index, digit) in plain.chars().enumerate() {
        if index > 0 && (plain.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        let _ = write!(text, "{digit}"); // to a String: cannot fail
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_units() {
        for (value, text) in [
            (0.0, "0"),
            (0.123, "0.12"),
            (1.0, "1"),
            (12.34, "12.3"),
            (123.4, "123"),
            (99.97, "100"),
            (1234.5, "1234"),
        ] {
            assert_eq!(digits(value), text);
        }
        for (value, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1 kB"),
            (30_123_456, "30.1 MB"),
            (999_600_000, "1.00 GB"),
            (3_000_000_000, "3 GB"),
        ] {
            assert_eq!(bytes(value), text);
        }
        for (value, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(count(value), text);
        }
    }

    #[test]
    fn what_took_too_long_is_said_in_bold() {
        assert_eq!(took(90.0), "The measurement took 1.50 min.");
        assert!(!took(900.0).contains("**"));
        assert!(took(901.0).contains("**That is more than the 15 min"));
    }

    #[test]
    fn a_try_that_shows_nothing_is_neither_held_nor_not() {
        use crate::experiment::capacity::tests::tried;
        let tries = [
            tried(400, 1_000, 1.0, 2.0 * LATE_MS),
            tried(200, 900, 1.0, 0.0),
            tried(100, 1_000, 1.0, 0.0),
        ];
        let text = rates("mode", [("wal", tries.as_slice())].into_iter());
        let last = |line: &str| {
            line.trim_end_matches(" |")
                .rsplit("| ")
                .next()
                .map(str::to_owned)
        };
        let rows = text.lines().filter(|line| line.starts_with("| wal"));
        let said: Vec<_> = rows.filter_map(last).collect();
        assert_eq!(said, ["not known", "no", "yes"]);
    }

    #[test]
    fn rounds_are_told_by_their_median_and_their_ends() {
        let table: [(&[f64], &str); 4] = [
            (&[], "-"),
            (&[2.5], "2.50"),
            (&[300.0, 100.0], "200 (100 to 300)"),
            (&[9.0, 1.0, 2.0], "2 (1 to 9)"),
        ];
        for (values, text) in table {
            assert_eq!(spread(values), text);
        }
    }

    #[test]
    fn a_table_has_a_rule_below_its_head() {
        let mut table = Table::new(&["what", "n"]);
        table.row(&["a".to_owned(), "1".to_owned()]);
        assert_eq!(table.text(), "| what | n |\n| --- | ---: |\n| a | 1 |\n");
    }
}
