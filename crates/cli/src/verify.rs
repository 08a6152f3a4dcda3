//! `verify`: whether backups are still what was published.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use torrust_tracker_maintenance::catalogue::{
    self, Backup, Catalogue, Check, Entry, Flaw, Foreign, Owner,
};
use torrust_tracker_maintenance::config::Depth;
use torrust_tracker_maintenance::disk::Disk;
use torrust_tracker_maintenance::snapshot::Watch;
use torrust_tracker_maintenance::verify::{self, Report};

use crate::configuration::Configuration;
use crate::exit::{Answer, Exit, Failure};
use crate::identity;
use crate::keep::writable;
use crate::progress::watched;
use crate::selection::Selection;
use crate::units;

/// What `integrity_check` was seen to read in a second; `quick_check` and checksums take
/// little beside it.
const FULL_RATE: u64 = 21_000_000;
/// How long to wait for another writer before a check that was made is not noted down.
const NOTE_WITHIN: Duration = Duration::from_secs(10);

/// Read backups back and compare every byte with the checksums they were published with.
#[derive(clap::Args)]
pub struct Arguments {
    /// The backup to verify: its id, or the name of a database in the directory that was not
    /// made by this program [default: the newest].
    #[arg(value_name = "ID", default_value = "latest", hide_default_value = true)]
    backup: Selection,
    /// Verify every backup there is.
    #[arg(long, conflicts_with = "backup")]
    all: bool,
    /// Verify fully those whose turn it is today: each backup on N of M days, `1/7` for one
    /// that is run daily and takes each once a week.
    #[arg(long, value_name = "N/M", conflicts_with_all = ["backup", "all"])]
    sample: Option<Sample>,
    /// Unpack the database beside the backups and check its structure and row counts too
    /// (the full integrity check: about a minute a gigabyte).
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    identity: identity::Options,
}

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Examination {
    /// Every byte, against the checksums.
    Checksums,
    /// The unpacked database too.
    Full,
}

/// What a look at a backup gave: the rows in all tables if they were counted.
pub type Examined = Result<Option<u64>, Error>;

/// Why a look gave nothing, or nothing good.
#[derive(Debug)]
pub enum Error {
    Catalogue(catalogue::Error),
    Verify(verify::Error),
}

/// What came of one backup.
struct Verdict {
    name: String,
    came: Came,
    took: Duration,
    /// Why it was not noted down, if it should have been.
    unnoted: Option<catalogue::Error>,
}

enum Came {
    Good {
        rows: Option<u64>,
        /// Whether it was looked into: of an encrypted one without an identity only what is
        /// stored was.
        opened: bool,
    },
    Damaged {
        why: String,
    },
    /// It is encrypted, and was to be looked into.
    Closed {
        why: String,
    },
    /// It could not be found out.
    Unknown {
        why: String,
    },
}

impl Came {
    /// Of what has the name of a backup and could not be read as one.
    fn unread(flaw: Flaw, why: String) -> Self {
        match flaw {
            Flaw::Damaged => Self::Damaged { why },
            Flaw::Unreadable | Flaw::Newer => Self::Unknown { why },
        }
    }
}

impl Arguments {
    pub fn carry_out(
        self,
        configuration: &Configuration,
        json: bool,
        now: DateTime<Utc>,
    ) -> Result<Answer, Failure> {
        let catalogue = configuration.catalogue()?;
        let identities = self.identity.read()?;
        let entries = self.chosen(&catalogue, now)?;
        let entries = entries.into_iter().map(|entry| match entry {
            Entry::Good(backup) => Entry::Good(backup.opened_with(identities.clone())),
            other => other,
        });
        let entries: Vec<_> = entries.collect();
        let catalogue = self.prepared(catalogue, &entries)?;
        let began = instant();
        let mut verdicts = Vec::new();
        for entry in entries {
            let (verdict, cancelled) = self.verdict(&catalogue, entry, json, (now, began));
            verdicts.push(verdict);
            if cancelled {
                break;
            }
        }
        let nothing = self.sample.filter(|_| verdicts.is_empty());
        let mut answer = answer(catalogue.directory(), &verdicts);
        if let Some(sample) = nothing {
            answer.text = format!("no backup has its turn today (--sample {sample})");
        }
        Ok(answer)
    }

    fn chosen(&self, catalogue: &Catalogue, now: DateTime<Utc>) -> Result<Vec<Entry>, Failure> {
        match &self.backup {
            Selection::Latest => {}
            Selection::Foreign(name) => return Ok(vec![Entry::Foreign(catalogue.foreign(name)?)]),
            Selection::Id(id) => {
                return Ok(vec![match catalogue.get(id) {
                    Err(catalogue::Error::Broken { id, flaw, why }) => Entry::Broken {
                        name: id,
                        flaw,
                        why,
                    },
                    backup => Entry::Good(backup?),
                }]);
            }
        }
        let mut entries = catalogue.list()?;
        entries.retain(|entry| !matches!(entry, Entry::Foreign(_)));
        if entries.is_empty() {
            let message = format!(
                "there is no backup in {}: `torrust-maintenance run` makes one",
                catalogue.directory().display()
            );
            return Err(Failure::new(Exit::NotApplicable, "no_backup", message));
        }
        if let Some(sample) = self.sample {
            entries.retain(|entry| match entry {
                Entry::Good(backup) => sample.takes(backup.manifest.id.second(), now),
                Entry::Broken { .. } | Entry::Foreign(_) => true,
            });
        } else if !self.all {
            entries.truncate(1);
        }
        Ok(entries)
    }

    /// The catalogue for what is to be done: unpacking writes beside the backups; noting
    /// down is done where it can be.
    fn prepared(&self, catalogue: Catalogue, entries: &[Entry]) -> Result<Catalogue, Failure> {
        let unpacks = entries.iter().any(|entry| match entry {
            Entry::Good(_) => self.examination() == Examination::Full,
            Entry::Foreign(foreign) => foreign.form == Some(catalogue::Form::Gzip),
            Entry::Broken { .. } => false,
        });
        match writable(&catalogue) {
            Err(failure) if unpacks => Err(failure),
            Err(_) => Ok(catalogue),
            writable => writable,
        }
    }

    fn examination(&self) -> Examination {
        if self.full || self.sample.is_some() {
            Examination::Full
        } else {
            Examination::Checksums
        }
    }

    /// Of a dump there is no more to be looked at than its bytes, its end and its rows, which is
    /// done in any case.
    fn examination_of(&self, backup: &Backup, json: bool) -> Examination {
        if !backup.manifest.is_dump() {
            return self.examination();
        }
        if self.full && !json {
            eprintln!(
                "{} is a dump: its rows are counted in any case, and that a server takes it shows \
                 in a restore to a new database (restore --to-database) alone",
                backup.manifest.id
            );
        }
        Examination::Checksums
    }

    /// Also whether the operator has had enough. The start is that of the program on the
    /// wall clock, and of the verification on the monotonic one.
    fn verdict(
        &self,
        catalogue: &Catalogue,
        entry: Entry,
        json: bool,
        (now, start): (DateTime<Utc>, Instant),
    ) -> (Verdict, bool) {
        let began = instant();
        let opened = match &entry {
            Entry::Good(backup) => {
                backup.identities.is_some() || backup.manifest.encrypted().is_none()
            }
            Entry::Broken { .. } | Entry::Foreign(_) => true,
        };
        let (name, examined, unnoted) = match entry {
            Entry::Broken { name, flaw, why } => {
                let verdict = Verdict {
                    name: name.to_string(),
                    came: Came::unread(flaw, why),
                    took: began.elapsed(),
                    unnoted: None,
                };
                return (verdict, false);
            }
            Entry::Foreign(foreign) => {
                let examined = self.examine_foreign(catalogue, &foreign, json);
                (foreign.name, examined, None)
            }
            Entry::Good(backup) => {
                let examination = self.examination_of(&backup, json);
                let examined = examine(catalogue, &backup, examination, json);
                let at = now + TimeDelta::from_std(start.elapsed()).unwrap_or_default();
                let check = check(&examined, examination, at, began.elapsed());
                let noted = check.map(|check| {
                    let owner = Owner::this("torrust-maintenance verify", at);
                    catalogue
                        .lock_within(NOTE_WITHIN, &owner, &Watch::default())?
                        .record(&backup.manifest.id, check)
                });
                let unnoted = noted.and_then(Result::err);
                (backup.manifest.id.to_string(), examined, unnoted)
            }
        };
        let cancelled = matches!(
            examined,
            Err(Error::Verify(verify::Error::Cancelled { .. }))
        );
        let came = match examined {
            Ok(rows) => Came::Good { rows, opened },
            Err(Error::Verify(error @ verify::Error::Closed { .. })) => Came::Closed {
                why: error.to_string(),
            },
            Err(error) if error.is_damage() => Came::Damaged {
                why: error.to_string(),
            },
            Err(error) => Came::Unknown {
                why: error.to_string(),
            },
        };
        let took = began.elapsed();
        let verdict = Verdict {
            name,
            came,
            took,
            unnoted,
        };
        (verdict, cancelled)
    }

    fn examine_foreign(&self, catalogue: &Catalogue, foreign: &Foreign, json: bool) -> Examined {
        let (depth, what) = if self.full {
            (Depth::Full, "structure and rows")
        } else {
            (Depth::Quick, "structure")
        };
        if !json {
            announce(what, &foreign.name, foreign.bytes, None);
        }
        watched(json, |watch| {
            let disk = Disk::default();
            let report = if foreign.form == Some(catalogue::Form::Gzip) {
                let scratch = catalogue.scratch_for_foreign()?;
                verify::foreign(foreign, depth, scratch.path(), &disk, watch)?
            } else {
                verify::foreign(foreign, depth, catalogue.directory(), &disk, watch)?
            };
            Ok(Some(rows(&report)))
        })
    }
}

/// Looks at a backup, and shows how far it is.
pub fn examine(
    catalogue: &Catalogue,
    backup: &Backup,
    examination: Examination,
    json: bool,
) -> Examined {
    if !json {
        let raw = backup.manifest.database.raw_bytes;
        let (what, takes) = match examination {
            Examination::Checksums => ("checksums", None),
            Examination::Full => ("checksums, structure and rows", Some(raw / FULL_RATE)),
        };
        announce(what, &backup.manifest.id.to_string(), raw, takes);
    }
    watched(json, |watch| {
        let disk = Disk::default();
        let report = match examination {
            Examination::Checksums => verify::backup(backup, None, &backup.dir, &disk, watch)?,
            Examination::Full => {
                let scratch = catalogue.scratch(&backup.manifest.id)?;
                verify::backup(backup, Some(Depth::Full), scratch.path(), &disk, watch)?
            }
        };
        Ok(report.as_ref().map(rows))
    })
}

/// What is to be noted down of a look, if it has shown anything.
pub fn check(
    examined: &Examined,
    examination: Examination,
    at: DateTime<Utc>,
    took: Duration,
) -> Option<Check> {
    let findings = match examined {
        Ok(_) => Vec::new(),
        Err(Error::Verify(verify::Error::Corrupt { findings, .. })) => findings.clone(),
        Err(_) => return None,
    };
    let depth = match examination {
        Examination::Checksums => None,
        Examination::Full => Some(Depth::Full),
    };
    Some(Check {
        at,
        depth,
        seconds: took.as_secs_f64(),
        findings,
    })
}

fn rows(report: &Report) -> u64 {
    report.rows.values().sum()
}

/// A big one takes minutes.
fn announce(what: &str, name: &str, bytes: u64, seconds: Option<u64>) {
    let size = units::bytes(bytes);
    let takes = seconds
        .filter(|seconds| *seconds > 10)
        .map(|seconds| format!(", about {}", units::duration(Duration::from_secs(seconds))))
        .unwrap_or_default();
    eprintln!("verifying {what} of {name} ({size}{takes})");
}

impl Error {
    /// It was read, and it is not what it should be.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Verify(verify::Error::Corrupt { .. }))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Catalogue(error) => error.fmt(f),
            Self::Verify(error) => error.fmt(f),
        }
    }
}

impl From<catalogue::Error> for Error {
    fn from(error: catalogue::Error) -> Self {
        Self::Catalogue(error)
    }
}

impl From<verify::Error> for Error {
    fn from(error: verify::Error) -> Self {
        Self::Verify(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Catalogue(error) => error.into(),
            Error::Verify(error) => error.into(),
        }
    }
}

fn answer(directory: &Path, verdicts: &[Verdict]) -> Answer {
    let has = |wanted: fn(&Verdict) -> bool| verdicts.iter().any(wanted);
    let exit = if has(|verdict| matches!(verdict.came, Came::Damaged { .. })) {
        Exit::Verification
    } else if has(|verdict| matches!(verdict.came, Came::Unknown { .. })) {
        Exit::Failed
    } else if has(|verdict| matches!(verdict.came, Came::Closed { .. })) {
        Exit::Usage
    } else if has(|verdict| matches!(verdict.unnoted, Some(catalogue::Error::Busy { .. }))) {
        Exit::Busy
    } else {
        Exit::Done
    };
    Answer {
        exit,
        text: verdicts
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n"),
        json: json!({
            "directory": directory,
            "backups": verdicts.iter().map(Verdict::json).collect::<Vec<_>>(),
        }),
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  ", self.name)?;
        match &self.came {
            Came::Good { opened: false, .. } => {
                f.write_str("verified: checksums of what is stored; not opened: encrypted")?;
            }
            Came::Good { rows: None, .. } => f.write_str("good")?,
            Came::Good {
                rows: Some(rows), ..
            } => write!(f, "good, {rows} rows")?,
            Came::Damaged { why } => write!(f, "DAMAGED: {why}")?,
            Came::Unknown { why } | Came::Closed { why } => write!(f, "not verified: {why}")?,
        }
        match &self.unnoted {
            Some(error) => write!(f, " (not noted down: {error})"),
            None => Ok(()),
        }
    }
}

impl Verdict {
    fn json(&self) -> Value {
        let mut json = match &self.came {
            Came::Good { rows, opened } => {
                json!({ "verdict": "good", "rows": rows, "opened": opened })
            }
            Came::Damaged { why } => json!({ "verdict": "damaged", "why": why }),
            Came::Unknown { why } => json!({ "verdict": "unknown", "why": why }),
            Came::Closed { why } => json!({ "verdict": "closed", "why": why }),
        };
        json["id"] = json!(self.name);
        json["seconds"] = json!(self.took.as_secs_f64());
        if let Some(error) = &self.unnoted {
            json["not_noted"] = json!(error.to_string());
        }
        json
    }
}

/// Takes each backup on `days` of every `of` days. Which ones a day takes follows from the
/// days the backups are of, so that nothing has to be remembered, and from nightly backups
/// each night takes an equal share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    days: u32,
    of: u32,
}

impl Sample {
    fn takes(self, backup: DateTime<Utc>, now: DateTime<Utc>) -> bool {
        let day = |time: DateTime<Utc>| time.timestamp().div_euclid(86_400);
        (day(now) - day(backup)).rem_euclid(self.of.into()) < self.days.into()
    }
}

impl FromStr for Sample {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once('/')
            .and_then(|(days, of)| {
                Some(Self {
                    days: days.parse().ok()?,
                    of: of.parse().ok()?,
                })
            })
            .filter(|sample| (1..=sample.of).contains(&sample.days))
            .ok_or("two numbers are expected, the first not above the second: 1/7")
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.days, self.of)
    }
}

/// For how long something takes; nothing hangs on it.
pub fn instant() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "measures how long something took; nothing hangs on it"
    )]
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_decides_the_exit() {
        let verdict = |came, unnoted| Verdict {
            name: "x".to_owned(),
            came,
            took: Duration::ZERO,
            unnoted,
        };
        let busy = || catalogue::Error::Busy {
            path: "backups".into(),
            owner: None,
        };
        let read_only = || catalogue::Error::ReadOnly {
            path: "backups".into(),
        };
        let good = || Came::Good {
            rows: None,
            opened: true,
        };
        let closed = || Came::Closed { why: String::new() };
        let unknown = || Came::Unknown { why: String::new() };
        let damaged = || Came::Damaged { why: String::new() };
        for (verdicts, exit) in [
            (vec![], Exit::Done),
            (vec![verdict(good(), None)], Exit::Done),
            (vec![verdict(good(), Some(read_only()))], Exit::Done),
            (vec![verdict(good(), Some(busy()))], Exit::Busy),
            (
                vec![verdict(good(), Some(busy())), verdict(closed(), None)],
                Exit::Usage,
            ),
            (
                vec![verdict(closed(), None), verdict(unknown(), None)],
                Exit::Failed,
            ),
            (
                vec![verdict(good(), Some(busy())), verdict(unknown(), None)],
                Exit::Failed,
            ),
            (
                vec![verdict(damaged(), None), verdict(unknown(), None)],
                Exit::Verification,
            ),
        ] {
            assert_eq!(answer(Path::new("backups"), &verdicts).exit, exit);
        }
        let shown = verdict(good(), Some(busy())).to_string();
        assert!(
            shown.starts_with("x  good (not noted down: the backups in "),
            "{shown}"
        );
    }

    #[test]
    fn what_could_not_be_read_is_not_called_damaged() {
        for (flaw, exit, shown) in [
            (Flaw::Unreadable, Exit::Failed, "x  not verified: y"),
            (Flaw::Newer, Exit::Failed, "x  not verified: y"),
            (Flaw::Damaged, Exit::Verification, "x  DAMAGED: y"),
        ] {
            let verdict = Verdict {
                name: "x".to_owned(),
                came: Came::unread(flaw, "y".to_owned()),
                took: Duration::ZERO,
                unnoted: None,
            };
            assert_eq!(verdict.to_string(), shown);
            assert_eq!(answer(Path::new("backups"), &[verdict]).exit, exit);
        }
    }

    #[test]
    fn a_sample_is_two_numbers() {
        for (text, expected) in [
            ("1/7", Some((1, 7))),
            ("7/7", Some((7, 7))),
            ("0/7", None),
            ("8/7", None),
            ("0/0", None),
            ("1", None),
            ("1/", None),
            ("-1/7", None),
            ("1/7/7", None),
            ("one/seven", None),
        ] {
            let found = text.parse().ok().map(|Sample { days, of }| (days, of));
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn every_backup_has_its_turn_and_every_night_its_share() {
        let day = |n: i64| DateTime::UNIX_EPOCH + TimeDelta::days(20_000 + n) + TimeDelta::hours(3);
        for of in 1..=10 {
            for days in 1..=of {
                let sample = Sample { days, of };
                for first in 0..40 {
                    let window = first..first + i64::from(of);
                    let turns = window.clone().filter(|n| sample.takes(day(0), day(*n)));
                    assert_eq!(turns.count(), days as usize, "{sample} from day {first}");
                    let share = window.filter(|n| sample.takes(day(*n), day(50)));
                    assert_eq!(share.count(), days as usize, "{sample} of {first}");
                }
            }
        }
        let evening = day(0) + TimeDelta::hours(20);
        assert!(Sample { days: 1, of: 7 }.takes(day(0), evening));
    }
}
