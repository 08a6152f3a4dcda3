//! When windows begin and end. Pure: takes `now`, reads no clock. All times are UTC, so
//! no hour is skipped or repeated, and intervals are half-open, so no instant lies in two.
//!
//! Nothing here remembers what it said before. A caller that was suspended, or whose clock
//! was set, asks again and gets the right answer.

mod crontab;

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Days, NaiveTime, TimeDelta, Utc};

use self::crontab::Crontab;

/// The shortest window of a crontab schedule.
const SHORTEST: Duration = Duration::from_secs(1);
/// The longest window of a crontab schedule. A database pinned for longer than a week is a
/// slip of the unit, not a plan.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A half-open interval of time, `[begins, ends)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Interval {
    /// First instant inside.
    pub begins: DateTime<Utc>,
    /// First instant outside.
    pub ends: DateTime<Utc>,
}

impl Interval {
    /// Whether `instant` lies inside.
    #[must_use]
    pub fn contains(&self, instant: DateTime<Utc>) -> bool {
        self.begins <= instant && instant < self.ends
    }
}

/// A repeating window whose occurrences never touch or overlap.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// As the operator wrote it, for [`fmt::Display`].
    written: String,
    duration: Duration,
    recurrence: Recurrence,
}

#[derive(Debug, Clone, PartialEq)]
enum Recurrence {
    Daily { begins: NaiveTime },
    Crontab(Crontab),
}

impl Schedule {
    /// A window every day, `HH:MM-HH:MM` in UTC. One that ends at or before the minute it
    /// begins ends on the next day: `23:50-00:20` lasts 30 minutes. It lasts from a minute
    /// to 23 hours and 59 minutes.
    ///
    /// # Errors
    ///
    /// [`Error::Daily`], [`Error::TimeOfDay`], or [`Error::Empty`] if it ends as it begins.
    pub fn daily(window: &str) -> Result<Self, Error> {
        let (begins, ends) = window
            .split_once('-')
            .ok_or_else(|| Error::Daily(window.to_owned()))?;
        let (begins, ends) = (time_of_day(begins)?, time_of_day(ends)?);
        // The difference is negative across midnight, hence modulo a day.
        let seconds = (ends - begins).num_seconds().rem_euclid(24 * 60 * 60);
        if seconds == 0 {
            return Err(Error::Empty(begins));
        }
        Ok(Self {
            written: window.to_owned(),
            duration: Duration::from_secs(seconds.unsigned_abs()),
            recurrence: Recurrence::Daily { begins },
        })
    }

    /// A window of `duration` (a second to seven days) at each time of a five-field crontab
    /// line: minute, hour, day of month, month, day of week. The fields hold what
    /// crontab(5) allows: `*`, numbers, lists, ranges, steps after a range or `*`, and the
    /// names `JAN`-`DEC` and `SUN`-`SAT`. Sunday is 0 or 7, and a range of weekdays may
    /// wrap: `5-7`, `FRI-MON`. As in crontab(5), if neither the day of month nor the day
    /// of week begins with `*`, a day that matches either is meant.
    ///
    /// Windows must not touch, since one that ends as the next begins is one window. Checked
    /// exactly: the times of day are the same on every day that matches, so it takes the
    /// gaps inside one day and the gaps from day to day over 28 years, after which weekdays
    /// and leap years repeat.
    ///
    /// # Errors
    ///
    /// [`Error::Fields`] or [`Error::Field`] if the line cannot be read, [`Error::Never`] if
    /// it names no day that exists, [`Error::Duration`] or [`Error::Overlapping`] if the
    /// duration does not fit.
    pub fn crontab(line: &str, duration: Duration) -> Result<Self, Error> {
        let crontab = Crontab::parse(line)?;
        if !crontab.ever_fires() {
            return Err(Error::Never);
        }
        if !(SHORTEST..=LONGEST).contains(&duration) {
            return Err(Error::Duration(duration));
        }
        let apart = TimeDelta::from_std(duration).map_err(|_| Error::Duration(duration))?;
        if let Some((first, second)) = crontab.closer_than(apart) {
            return Err(Error::Overlapping {
                duration,
                first,
                second,
            });
        }
        Ok(Self {
            written: line.to_owned(),
            duration,
            recurrence: Recurrence::Crontab(crontab),
        })
    }

    /// How long a window lasts.
    #[must_use]
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// The next window that begins strictly after `now`; `None` if none ever does. A crontab
    /// schedule ends with the year 2100, the last the `cron` crate knows.
    #[must_use]
    pub fn next_after(&self, now: DateTime<Utc>) -> Option<Interval> {
        let begins = match &self.recurrence {
            Recurrence::Daily { begins } => {
                let today = now.date_naive().and_time(*begins).and_utc();
                if today > now {
                    today
                } else {
                    today.checked_add_days(Days::new(1))?
                }
            }
            Recurrence::Crontab(crontab) => crontab.next_after(now)?,
        };
        self.beginning(begins)
    }

    /// The window `now` lies in, if any.
    #[must_use]
    pub fn containing(&self, now: DateTime<Utc>) -> Option<Interval> {
        // Windows do not overlap, so none but the last can still be on.
        self.last_before(now).filter(|last| last.contains(now))
    }

    /// The last window that began at or before `now`, whether or not it has ended; `None` if
    /// none did. A crontab schedule begins with the year 1970.
    #[must_use]
    pub fn last_before(&self, now: DateTime<Utc>) -> Option<Interval> {
        let begins = match &self.recurrence {
            Recurrence::Daily { begins } => {
                let today = now.date_naive().and_time(*begins).and_utc();
                if today <= now {
                    today
                } else {
                    today.checked_sub_days(Days::new(1))?
                }
            }
            Recurrence::Crontab(crontab) => crontab.last_before(now)?,
        };
        self.beginning(begins)
    }

    fn beginning(&self, begins: DateTime<Utc>) -> Option<Interval> {
        let ends = begins.checked_add_signed(TimeDelta::from_std(self.duration).ok()?)?;
        Some(Interval { begins, ends })
    }
}

/// As written: `03:00-03:05`, or `0 3 * * 0 for 30m`.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)?;
        match self.recurrence {
            Recurrence::Daily { .. } => Ok(()),
            Recurrence::Crontab(_) => {
                write!(f, " for {}", humantime::format_duration(self.duration))
            }
        }
    }
}

/// `HH:MM`, all five characters of it: `3:00` or `24:00` is more often a slip than a style.
fn time_of_day(text: &str) -> Result<NaiveTime, Error> {
    let digits = |part: &str| {
        let strict = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
        strict.then(|| part.parse().ok()).flatten()
    };
    text.split_once(':')
        .and_then(|(hour, minute)| NaiveTime::from_hms_opt(digits(hour)?, digits(minute)?, 0))
        .ok_or_else(|| Error::TimeOfDay(text.to_owned()))
}

/// Why a schedule was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not two times with a hyphen between them.
    #[error(r#"{0:?} is not a daily window: write when it begins and ends, as in "03:00-03:05""#)]
    Daily(String),
    /// One of the two times of a daily window.
    #[error("{0:?} is not a time of day: write HH:MM, from 00:00 to 23:59")]
    TimeOfDay(String),
    /// A daily window that ends when it begins: no time at all, or all of it.
    #[error("the window begins and ends at {}: leave at least a minute between", .0.format("%H:%M"))]
    Empty(NaiveTime),
    /// A crontab line with more or fewer than five fields.
    #[error(
        "a crontab line has five fields (minute, hour, day of month, month, day of week) \
         and this one has {0}"
    )]
    Fields(usize),
    /// One field of a crontab line.
    #[error("the {field} cannot be {text:?}: write {expected}")]
    Field {
        /// Which of the five.
        field: &'static str,
        /// The part that cannot be read.
        text: String,
        /// What would be right.
        expected: String,
    },
    /// A crontab line whose days do not exist, such as the 30th of February.
    #[error("it never begins: no year has such a day")]
    Never,
    /// A duration out of bounds.
    #[error(
        "a window of {} is out of bounds: it may last from {} to {}",
        humantime::format_duration(*.0),
        humantime::format_duration(SHORTEST),
        humantime::format_duration(LONGEST)
    )]
    Duration(Duration),
    /// A window that has not ended when the next begins.
    #[error(
        "overlapping: a window of {} that begins at {} has not ended before the next begins, \
         at {}: shorten it, or let it begin less often",
        humantime::format_duration(*.duration),
        .first.format("%F %R"),
        .second.format("%F %R")
    )]
    Overlapping {
        /// How long a window lasts.
        duration: Duration,
        /// When one begins.
        first: DateTime<Utc>,
        /// When the one after it does.
        second: DateTime<Utc>,
    },
}

#[cfg(test)]
mod tests;
