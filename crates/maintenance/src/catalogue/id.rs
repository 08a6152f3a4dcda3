//! Names of backups. The only parser of them, and of the temporary names beside them.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, NaiveDateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};

const SECOND: &str = "%Y%m%dT%H%M%SZ";

/// Name of a backup's directory: the UTC second its run began, `20261122T030000Z`, with
/// `-2`, `-3`, ... where several began in one second. Sorts by time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId {
    second: DateTime<Utc>,
    nth: u32,
}

/// A name that is not that of a backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not the name of a backup: those look like 20261122T030000Z or 20261122T030000Z-2"
)]
pub struct NotAnId(String);

impl BackupId {
    /// The name of the `nth` backup (from 1) of a run that began in this second.
    pub(super) fn new(began: DateTime<Utc>, nth: u32) -> Self {
        let second = began.trunc_subsecs(0);
        Self { second, nth }
    }

    /// The name of a backup whose run began in this second, beside those that are taken. It
    /// comes after all of them, also where an earlier one is free again: names sort by time.
    pub(super) fn after(began: DateTime<Utc>, taken: impl Iterator<Item = Self>) -> Self {
        let first = Self::new(began, 1);
        let of_this_second = taken.filter(|id| id.second == first.second);
        of_this_second.max().map_or(first, |last| Self {
            nth: last.nth.saturating_add(1),
            ..last
        })
    }

    /// The backup that a name in a catalogue is of, be it a temporary one.
    pub(super) fn in_name(name: &str) -> Option<Self> {
        match Temporary::parse(name) {
            None => name.parse().ok(),
            Some(
                Temporary::Partial(id)
                | Temporary::Removing(id)
                | Temporary::Scratch(id)
                | Temporary::Upload(id),
            ) => Some(id),
            Some(Temporary::Unpacking(_) | Temporary::Probe(_)) => None,
        }
    }

    /// The second its run began.
    #[must_use]
    pub fn second(&self) -> DateTime<Utc> {
        self.second
    }
}

impl FromStr for BackupId {
    type Err = NotAnId;

    fn from_str(name: &str) -> Result<Self, NotAnId> {
        let (second, nth) = name.split_once('-').unwrap_or((name, "1"));
        NaiveDateTime::parse_from_str(second, SECOND)
            .ok()
            .zip(nth.parse().ok())
            .map(|(second, nth)| Self::new(second.and_utc(), nth))
            // One name for one backup: what would be written in another way is not ours,
            // nor is a leap second, which no clock here shows.
            .filter(|id| id.nth > 0 && id.to_string() == name)
            .filter(|id| id.second.timestamp_subsec_nanos() == 0)
            .ok_or_else(|| NotAnId(name.to_owned()))
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.second.format(SECOND))?;
        match self.nth {
            1 => Ok(()),
            nth => write!(f, "-{nth}"),
        }
    }
}

impl TryFrom<String> for BackupId {
    type Error = NotAnId;

    fn try_from(name: String) -> Result<Self, NotAnId> {
        name.parse()
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> Self {
        id.to_string()
    }
}

/// Temporary names in a catalogue: what stands under one is unfinished, or half removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Temporary {
    /// A backup in the making.
    Partial(BackupId),
    /// A backup on its way out.
    Removing(BackupId),
    /// Scratch space of a verification.
    Scratch(BackupId),
    /// Scratch space of the process of this id, for a file that was not made here.
    Unpacking(u32),
    /// How far the upload of a backup is. Unlike the others it outlives its owner: the next one
    /// goes on from there.
    Upload(BackupId),
    /// Shows the process of this id that it can write to the directory.
    Probe(u32),
}

impl Temporary {
    pub(super) fn parse(name: &str) -> Option<Self> {
        let (id, kind) = name.strip_prefix('.')?.split_once('.')?;
        match kind {
            "probe" => return id.parse().ok().map(Self::Probe),
            "unpacking" => return id.parse().ok().map(Self::Unpacking),
            _ => {}
        }
        let id = id.parse().ok()?;
        match kind {
            "partial" => Some(Self::Partial(id)),
            "removing" => Some(Self::Removing(id)),
            "scratch" => Some(Self::Scratch(id)),
            "upload" => Some(Self::Upload(id)),
            _ => None,
        }
    }
}

impl fmt::Display for Temporary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Partial(id) => write!(f, ".{id}.partial"),
            Self::Removing(id) => write!(f, ".{id}.removing"),
            Self::Scratch(id) => write!(f, ".{id}.scratch"),
            Self::Upload(id) => write!(f, ".{id}.upload"),
            Self::Unpacking(process) => write!(f, ".{process}.unpacking"),
            Self::Probe(process) => write!(f, ".{process}.probe"),
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;

    use super::*;

    fn id(name: &str) -> BackupId {
        name.parse().expect(name)
    }

    #[test]
    fn a_name_reads_back_as_it_is_written() {
        for name in [
            "20261122T030000Z",
            "20261122T030000Z-2",
            "20261122T030000Z-10",
            "20240229T235959Z",
            "20261122T030000Z-4294967295",
        ] {
            assert_eq!(id(name).to_string(), name);
            let json = serde_json::to_string(&id(name)).expect("a string");
            assert_eq!(json, format!("\"{name}\""));
            assert_eq!(
                serde_json::from_str::<BackupId>(&json).expect("the same"),
                id(name)
            );
        }
    }

    #[test]
    fn anything_else_is_no_name() {
        for name in [
            "",
            ".",
            "..",
            "20261122T030000",
            "20261122T030000Z ",
            " 20261122T030000Z",
            "20261122t030000z",
            "20261122T030000Z-",
            "20261122T030000Z-0",
            "20261122T030000Z-1",
            "20261122T030000Z-02",
            "20261122T030000Z-+2",
            "20261122T030000Z--2",
            "20261122T030000Z-2-3",
            "20261122T030000Z-4294967296",
            "20261122T030000Z/..",
            "20261322T030000Z",
            "20260229T030000Z",
            "20261122T240000Z",
            "20261122T236060Z",
            "20261122T235960Z",
            "2026112T0030000Z",
            "+20261122T030000Z",
            "120261122T030000Z",
            "tracker_backup_20261122_030000.db",
            "sqlite_20261122_030000.db.gz",
        ] {
            assert!(name.parse::<BackupId>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn names_sort_by_time_then_by_number() {
        let sorted = [
            "20251122T030000Z",
            "20261122T030000Z",
            "20261122T030000Z-2",
            "20261122T030000Z-9",
            "20261122T030000Z-10",
            "20261122T030001Z",
        ]
        .map(id);
        assert!(sorted.is_sorted());
    }

    #[test]
    fn a_name_is_of_the_second_the_run_began_in() {
        let began = Utc
            .with_ymd_and_hms(2026, 11, 22, 3, 0, 0)
            .single()
            .expect("a valid time")
            + chrono::Duration::milliseconds(999);
        assert_eq!(BackupId::new(began, 1).to_string(), "20261122T030000Z");
        assert_eq!(BackupId::new(began, 2).to_string(), "20261122T030000Z-2");
    }

    #[test]
    fn temporary_names_are_told_from_all_others() {
        let id = id("20261122T030000Z-2");
        for temporary in [
            Temporary::Partial(id.clone()),
            Temporary::Removing(id.clone()),
            Temporary::Scratch(id.clone()),
            Temporary::Upload(id),
            Temporary::Unpacking(7),
            Temporary::Probe(7),
        ] {
            assert_eq!(Temporary::parse(&temporary.to_string()), Some(temporary));
        }
        for name in [
            ".partial",
            ".x.partial",
            ".x.probe",
            ".x.unpacking",
            "20261122T030000Z.partial",
            ".20261122T030000Z",
            ".20261122T030000Z.partial.partial",
            ".20261122T030000Z.PARTIAL",
            ".20261122T030000Z.tmp",
        ] {
            assert_eq!(Temporary::parse(name), None, "{name}");
        }
    }
}
