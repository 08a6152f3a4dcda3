//! Which backups stay, and why. Pure: reads no clock, removes nothing.
//!
//! Each rule sorts the backups into buckets (a day, an ISO week, a month), takes the
//! newest of each bucket and keeps the newest N of those. A rule counts buckets that have
//! a backup, not calendar time, so that a service that stood still for a month does not
//! come back to find its history expired.

use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize};

use crate::catalogue::BackupId;
use crate::config::Keep;

/// A good backup, as retention sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its name.
    pub id: BackupId,
    /// When its run began: the time all rules go by.
    pub began: DateTime<Utc>,
    /// Whether it holds the whole database. Rules are applied to full and to partial
    /// backups separately: a partial one never stands in for a full one.
    pub full: bool,
    /// Whether the operator has asked to keep it.
    pub protected: bool,
}

/// What becomes of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Its name.
    pub id: BackupId,
    /// Whether it holds the whole database.
    pub full: bool,
    /// Whether it stays.
    pub keep: bool,
    /// Why it stays, `daily 2026-11-22` for one; empty if it goes.
    pub reasons: Vec<String>,
}

/// Decides about every backup, newest first. The newest full and the newest partial one
/// stay whatever `keep` says.
#[must_use]
pub fn plan(backups: &[Candidate], keep: &Keep) -> Vec<Decision> {
    let mut newest_first: Vec<_> = backups.iter().collect();
    newest_first.sort_by(|one, other| (other.began, &other.id).cmp(&(one.began, &one.id)));

    let mut full = Series::new("the newest good backup", keep);
    let mut partial = Series::new("the newest partial backup", keep);
    newest_first
        .into_iter()
        .map(|backup| {
            let series = if backup.full { &mut full } else { &mut partial };
            let mut reasons = series.reasons(backup.began);
            if backup.protected {
                reasons.push("protected".to_owned());
            }
            Decision {
                id: backup.id.clone(),
                full: backup.full,
                keep: !reasons.is_empty(),
                reasons,
            }
        })
        .collect()
}

/// The rules, fed with the backups of one kind from the newest on.
struct Series {
    newest: Option<&'static str>,
    last: usize,
    seen: usize,
    periods: [Period; 3],
}

/// Keeps the newest of each of `most` buckets.
struct Period {
    name: &'static str,
    /// The bucket's key. It names the bucket to people as well, so two buckets that look
    /// the same are the same.
    bucket: fn(DateTime<Utc>) -> String,
    most: usize,
    kept: usize,
    current: Option<String>,
}

impl Series {
    fn new(newest: &'static str, keep: &Keep) -> Self {
        let period = |name, bucket, most| Period {
            name,
            bucket,
            most,
            kept: 0,
            current: None,
        };
        Self {
            newest: Some(newest),
            last: keep.last,
            seen: 0,
            periods: [
                period("daily", day, keep.daily),
                period("weekly", week, keep.weekly),
                period("monthly", month, keep.monthly),
            ],
        }
    }

    fn reasons(&mut self, began: DateTime<Utc>) -> Vec<String> {
        self.seen += 1;
        let newest = self.newest.take().map(str::to_owned);
        let last = (self.seen <= self.last).then(|| format!("last {} of {}", self.seen, self.last));
        let periods = self.periods.iter_mut().filter_map(|p| p.reason(began));
        newest.into_iter().chain(last).chain(periods).collect()
    }
}

impl Period {
    fn reason(&mut self, began: DateTime<Utc>) -> Option<String> {
        let bucket = (self.bucket)(began);
        if self.kept == self.most || self.current.as_ref() == Some(&bucket) {
            return None;
        }
        self.kept += 1;
        let reason = format!("{} {bucket}", self.name);
        self.current = Some(bucket);
        Some(reason)
    }
}

fn day(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%d").to_string()
}

/// The ISO week with the year it belongs to, which is not the calendar's around New Year.
fn week(time: DateTime<Utc>) -> String {
    let week = time.iso_week();
    format!("{}-W{:02}", week.year(), week.week())
}

fn month(time: DateTime<Utc>) -> String {
    time.format("%Y-%m").to_string()
}

#[cfg(test)]
mod tests;
