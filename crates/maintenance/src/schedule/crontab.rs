//! Five-field crontab lines, by the rules of crontab(5).
//!
//! The `cron` crate walks the calendar, but speaks another dialect: it wants seconds first,
//! counts Sunday as 1, knows no range through Sunday, and lets a day through only if day of
//! month *and* day of week match. So a line is read here, into sets of numbers, and the
//! crate is given those sets as plain lists; where crontab(5) means *either* day, it is given
//! two lines.

use std::collections::BTreeSet;
use std::ops::{Range, RangeInclusive};

use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, SubsecRound, TimeDelta, Utc};

use super::Error;

/// The times a crontab line names.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Crontab {
    /// One line of the `cron` crate, or two of which either may match.
    rules: Vec<cron::Schedule>,
    /// The first and the last time of every day that matches.
    times: (NaiveTime, NaiveTime),
}

/// Years the `cron` crate knows.
const YEARS: RangeInclusive<i32> = 1970..=2100;
/// Any 28 years in a row, without a century among them, hold every combination of weekday
/// and leap year there is, and the step from the last to what follows it.
const CYCLE: Range<i32> = 2026..2026 + 28;

impl Crontab {
    pub(super) fn parse(line: &str) -> Result<Self, Error> {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let &[minute, hour, day, month, weekday] = fields.as_slice() else {
            return Err(Error::Fields(fields.len()));
        };
        let minutes = MINUTE.read(minute)?;
        let hours = HOUR.read(hour)?;
        let months = MONTH.read(month)?;
        let days = DAY.read(day)?;
        let weekdays = WEEKDAY.read(weekday)?;

        let time =
            |hour: Option<&u32>, minute: Option<&u32>| NaiveTime::from_hms_opt(*hour?, *minute?, 0);
        let first = time(hours.first(), minutes.first()).expect("a field that was read has values");
        let last = time(hours.last(), minutes.last()).expect("a field that was read has values");

        let [minutes, hours, months] = [&minutes, &hours, &months].map(list);
        let days = list(&days);
        let weekdays = list(&weekdays.iter().map(|sunday_is_0| sunday_is_0 + 1).collect());
        let rule = |days: &str, weekdays: &str| {
            format!("0 {minutes} {hours} {days} {months} {weekdays}")
                .parse()
                .expect("a line of plain lists of numbers in range")
        };
        let both_restricted = !day.starts_with('*') && !weekday.starts_with('*');
        let rules = if both_restricted {
            vec![rule(&days, "*"), rule("*", &weekdays)]
        } else {
            vec![rule(&days, &weekdays)]
        };
        Ok(Self {
            rules,
            times: (first, last),
        })
    }

    pub(super) fn ever_fires(&self) -> bool {
        self.next_after(DateTime::UNIX_EPOCH).is_some()
    }

    pub(super) fn next_after(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let now = now.max(DateTime::UNIX_EPOCH);
        if now.year() > *YEARS.end() {
            return None;
        }
        let next = |rule: &cron::Schedule| rule.after(&now).next();
        self.rules.iter().filter_map(next).min()
    }

    pub(super) fn last_before(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        if !YEARS.contains(&now.year()) {
            return None;
        }
        // `cron` looks strictly before what it is given; times are whole seconds.
        let just_after = now.trunc_subsecs(0) + TimeDelta::seconds(1);
        let last = |rule: &cron::Schedule| rule.after(&just_after).next_back();
        self.rules.iter().filter_map(last).max()
    }

    /// Two times in a row at most `duration` apart, if there are any.
    pub(super) fn closer_than(
        &self,
        duration: TimeDelta,
    ) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
        let (first_time, last_time) = self.times;
        let days_may_touch = TimeDelta::days(1) - (last_time - first_time) <= duration;

        let start = NaiveDate::from_ymd_opt(CYCLE.start, 1, 1)?.and_time(NaiveTime::MIN);
        let mut begins = self.next_after(start.and_utc() - TimeDelta::seconds(1))?;
        let first_day = begins.date_naive();
        while begins.year() < CYCLE.end {
            let next = self.next_after(begins)?;
            if next - begins <= duration {
                return Some((begins, next));
            }
            // Every day that matches has the same times: the first is walked whole, and
            // of the others only the step to the next day is taken.
            begins = if next.date_naive() == first_day {
                next
            } else if days_may_touch {
                next.date_naive().and_time(last_time).and_utc()
            } else {
                return None;
            };
        }
        None
    }
}

fn list(numbers: &BTreeSet<u32>) -> String {
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    numbers.join(",")
}

/// What one field of a crontab line may hold.
struct Field {
    name: &'static str,
    least: u32,
    most: u32,
    /// Names for `least`, `least + 1`, ...
    names: &'static [&'static str],
    /// The number after which it begins again at 0, so that a range may wrap.
    cycle: Option<u32>,
}

const MINUTE: Field = Field {
    name: "minute",
    least: 0,
    most: 59,
    names: &[],
    cycle: None,
};
const HOUR: Field = Field {
    name: "hour",
    least: 0,
    most: 23,
    names: &[],
    cycle: None,
};
const DAY: Field = Field {
    name: "day of month",
    least: 1,
    most: 31,
    names: &[],
    cycle: None,
};
const MONTH: Field = Field {
    name: "month",
    least: 1,
    most: 12,
    names: &[
        "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
    ],
    cycle: None,
};
/// Sunday is 0 and 7.
const WEEKDAY: Field = Field {
    name: "day of week",
    least: 0,
    most: 7,
    names: &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
    cycle: Some(7),
};

impl Field {
    /// The numbers a field names: never none.
    fn read(&self, text: &str) -> Result<BTreeSet<u32>, Error> {
        let mut numbers = BTreeSet::new();
        for item in text.split(',') {
            let (range, step) = match item.split_once('/') {
                Some((range, step)) => (range, Some(step)),
                None => (item, None),
            };
            let (first, last) = self.range(range, step.is_some())?;
            let step = step.map_or(Ok(1), |step| self.step(step))?;
            let wrapped = |number| self.cycle.map_or(number, |cycle| number % cycle);
            numbers.extend((first..=last).step_by(step).map(wrapped));
        }
        Ok(numbers)
    }

    /// First and last number of `*`, `a-b` or `a`; past the cycle if the range wraps.
    fn range(&self, text: &str, stepped: bool) -> Result<(u32, u32), Error> {
        if text == "*" {
            return Ok((self.least, self.cycle.map_or(self.most, |cycle| cycle - 1)));
        }
        let Some((first, last)) = text.split_once('-') else {
            if stepped {
                // Some crons read `5/15` as `5-59/15` and some as `5`.
                return self.refuse(
                    text,
                    format!("a range before the step, {text}-{}", self.most),
                );
            }
            let only = self.number(text)?;
            return Ok((only, only));
        };
        let (first, last) = (self.number(first)?, self.number(last)?);
        match self.cycle {
            _ if first <= last => Ok((first, last)),
            Some(cycle) => Ok((first, last + cycle)),
            None => self.refuse(text, "the lesser end of a range first".to_owned()),
        }
    }

    fn number(&self, text: &str) -> Result<u32, Error> {
        let named = (self.least..)
            .zip(self.names)
            .find(|(_, name)| name.eq_ignore_ascii_case(text));
        if let Some((number, _)) = named {
            return Ok(number);
        }
        match digits(text) {
            Some(number) if (self.least..=self.most).contains(&number) => Ok(number),
            _ => self.refuse(text, self.expected()),
        }
    }

    fn step(&self, text: &str) -> Result<usize, Error> {
        match digits(text) {
            Some(step) if (1..=self.most).contains(&step) => Ok(step as usize),
            _ => self.refuse(
                &format!("/{text}"),
                format!("a step from /1 to /{}", self.most),
            ),
        }
    }

    fn expected(&self) -> String {
        let numbers = format!("a number from {} to {}", self.least, self.most);
        match (self.names.first(), self.names.last()) {
            (Some(first), Some(last)) => format!("{numbers}, {first} to {last}, or *"),
            _ => format!("{numbers}, or *"),
        }
    }

    fn refuse<T>(&self, text: &str, expected: String) -> Result<T, Error> {
        Err(Error::Field {
            field: self.name,
            text: text.to_owned(),
            expected,
        })
    }
}

/// One or two decimal digits and nothing else: `u32::from_str` would let `+5` pass.
fn digits(text: &str) -> Option<u32> {
    let strict = matches!(text.len(), 1..=2) && text.bytes().all(|byte| byte.is_ascii_digit());
    strict.then(|| text.parse().ok()).flatten()
}
