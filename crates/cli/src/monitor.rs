//! `monitor`: whether there is a backup to go back to, in a line, for a monitoring system.
//!
//! It has the exit codes of Nagios' plugins instead of the tool's own, because that is what
//! reads it: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN. What keeps it from looking, a command
//! line that is wrong included, is UNKNOWN and never OK.

use std::io::Write as _;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde_json::json;
use torrust_tracker_maintenance::catalogue::{Backup, Entry, Flaw};
use torrust_tracker_maintenance::status::{RemoteStatus, Status};
use torrust_tracker_maintenance::window::Outcome;

use crate::client::{Client, block_on};
use crate::configuration::Configuration;
use crate::exit::Failure;
use crate::{status, units};

/// Earlier backups that the newest is compared with: a week of nights.
const COMPARED: usize = 7;
/// How long an upload may take, as the alert has it.
const UPLOADED_WITHIN: Duration = Duration::from_secs(6 * 3600);
/// How far the clocks of two machines may be apart.
const CLOCKS_APART: TimeDelta = TimeDelta::minutes(5);

/// Say in a line whether there is a recent, whole backup, for Nagios and its like. Exit codes
/// are theirs: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
#[derive(clap::Args)]
pub struct Arguments {
    /// The oldest the newest good backup may be.
    #[arg(long, value_name = "DURATION", default_value = "26h", value_parser = humantime::parse_duration)]
    max_age: Duration,
    /// The least its database may have, in percent of the median of the seven before.
    #[arg(long, value_name = "PERCENT", default_value = "50%")]
    min_size: Percent,
}

/// From 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Percent(u64);

impl FromStr for Percent {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_suffix('%').unwrap_or(text);
        let number = number.parse().ok().filter(|number| *number <= 100);
        number
            .map(Self)
            .ok_or("write a percentage from 0% to 100%, such as 50%")
    }
}

/// What a monitoring system is told; the worst counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    /// Worse than a warning, and less than something that is known to be wrong.
    Unknown,
    Critical,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Unknown => "UNKNOWN",
            Self::Critical => "CRITICAL",
        }
    }

    /// As Nagios' plugins exit.
    fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Warning => 1,
            Self::Critical => 2,
            Self::Unknown => 3,
        }
    }
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    state: Verdict,
    message: String,
}

impl Finding {
    fn new(state: Verdict, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { state, message }
    }
}

/// What there is to say.
#[derive(Debug, Default, PartialEq)]
struct Report {
    findings: Vec<Finding>,
    /// Name, value with its unit, and what makes it a warning or critical.
    figures: Vec<String>,
    json: serde_json::Map<String, serde_json::Value>,
}

impl Arguments {
    /// Looks, says what it saw, and gives the exit code.
    pub fn carry_out(
        &self,
        configuration: &Configuration,
        json: bool,
        now: DateTime<Utc>,
    ) -> ExitCode {
        let tracker = asked(configuration);
        let report = match look(configuration) {
            Ok(entries) => self.judge(&entries, tracker.as_ref(), now),
            Err(finding) => Report {
                findings: vec![finding],
                ..Report::default()
            },
        };
        report.print(json)
    }

    /// Pure: what entries of a catalogue, newest first, and the tracker's status come to.
    fn judge(&self, entries: &[Entry], tracker: Option<&Status>, now: DateTime<Utc>) -> Report {
        let mut report = Report::default();
        let good: Vec<&Backup> = entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::Good(backup) if backup.notes.are_clean() => Some(backup),
                _ => None,
            })
            .collect();
        match good.split_first() {
            None => report.find(
                Verdict::Critical,
                "there is no good backup; `torrust-maintenance run` makes one",
            ),
            Some((newest, earlier)) => {
                self.judge_age(newest, now, &mut report);
                self.judge_size(newest, earlier, &mut report);
            }
        }
        judge_broken(entries, good.first().copied(), &mut report);
        match tracker {
            Some(status) => {
                judge_tracker(status, &mut report);
                if let Some(remote) = &status.remote {
                    self.judge_uploads(remote, &mut report);
                }
            }
            None => report.note("tracker", "not asked"),
        }
        report
    }

    fn judge_age(&self, newest: &Backup, now: DateTime<Utc>, report: &mut Report) {
        let manifest = &newest.manifest;
        let age = now - manifest.pinned;
        let limit = TimeDelta::from_std(self.max_age).unwrap_or(TimeDelta::max_value());
        let (id, how_old) = (&manifest.id, units::span(age));
        let part = if manifest.is_full() { "" } else { " (PARTIAL)" };
        let said = format!(
            "backup {id}{part} is {how_old} old, {} unpacked",
            units::bytes(manifest.database.raw_bytes)
        );
        if age > limit {
            let limit = units::span(limit);
            report.find(
                Verdict::Critical,
                format!("{said}: older than {limit}; `torrust-maintenance status` says why"),
            );
        } else if age < -CLOCKS_APART {
            let why = "it is of the future, so the clocks are wrong and its age is not known";
            report.find(Verdict::Unknown, format!("{said}: {why}"));
        } else {
            report.find(Verdict::Ok, said);
        }
        let seconds = age.num_seconds().max(0);
        report.figure(
            "age",
            &format!("{seconds}s"),
            "",
            &limit.num_seconds().to_string(),
        );
        report.figure(
            "pause",
            &format!("{:.6}s", manifest.pause_ms / 1000.0),
            "",
            "",
        );
        report.json.insert("backup".to_owned(), json!(manifest.id));
        report.json.insert("age_seconds".to_owned(), json!(seconds));
    }

    /// Compared with those of the same part of the database: others are of another size.
    fn judge_size(&self, newest: &Backup, earlier: &[&Backup], report: &mut Report) {
        let bytes = newest.manifest.database.raw_bytes;
        let of_same = earlier
            .iter()
            .filter(|backup| backup.manifest.partial == newest.manifest.partial);
        let before = of_same.map(|backup| backup.manifest.database.raw_bytes);
        let usual = median(before.take(COMPARED).collect());
        let least = usual.map(|usual| of_hundred(usual, self.min_size));
        if let Some((usual, least)) = usual.zip(least)
            && bytes < least
        {
            report.find(
                Verdict::Critical,
                format!(
                    "its database has {}, less than {}% of the usual {}; if nobody deleted that \
                     much, find out why before the older backups are pruned",
                    units::bytes(bytes),
                    self.min_size.0,
                    units::bytes(usual)
                ),
            );
        }
        let least = least.map(|least| format!("{least}:")).unwrap_or_default();
        report.figure("size", &format!("{bytes}B"), "", &least);
        let stored = newest.manifest.stored_bytes();
        report.figure("stored", &format!("{stored}B"), "", "");
        report.json.insert("bytes".to_owned(), json!(bytes));
        report.json.insert("usual_bytes".to_owned(), json!(usual));
    }
}

impl Arguments {
    /// What the second place lacks is as old as the newest backup there is without it.
    fn judge_uploads(&self, remote: &RemoteStatus, report: &mut Report) {
        let lag = span_of(remote.behind_since_seconds);
        let failing = span_of(remote.failing_since_seconds);
        let state = |lasts: Duration| {
            if lasts > self.max_age {
                Verdict::Critical
            } else {
                Verdict::Warning
            }
        };
        if let Some(failure) = &remote.failure {
            let verb = if failing > self.max_age {
                format!("have failed for {}", units::duration(failing))
            } else {
                "fail".to_owned()
            };
            report.find(state(failing), format!("uploads {verb}: {failure}"));
        }
        if remote.behind > 0 && lag > UPLOADED_WITHIN {
            let lacks = match remote.behind {
                1 => "1 backup is missing in the second place, for".to_owned(),
                behind => {
                    format!("{behind} backups are missing in the second place, the oldest for")
                }
            };
            report.find(state(lag), format!("{lacks} {}", units::duration(lag)));
        }
        for broken in &remote.broken {
            let message = format!(
                "backup {} in the second place is broken: {}",
                broken.id, broken.why
            );
            report.find(Verdict::Warning, message);
        }
        let figure = |span: Duration| span.as_secs().to_string();
        report.figure(
            "upload_lag",
            &format!("{}s", figure(lag)),
            &figure(UPLOADED_WITHIN),
            &figure(self.max_age),
        );
        report
            .json
            .insert("upload_lag_seconds".to_owned(), json!(lag.as_secs()));
    }
}

fn span_of(seconds: Option<f64>) -> Duration {
    let seconds = seconds.unwrap_or_default();
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

/// What came after the newest good one and is not good.
fn judge_broken(entries: &[Entry], newest: Option<&Backup>, report: &mut Report) {
    for entry in entries {
        let (id, what, why) = match entry {
            Entry::Good(backup) if backup.notes.is_damaged() => {
                (&backup.manifest.id, "is no good", "was found damaged")
            }
            Entry::Good(Backup {
                manifest, notes, ..
            }) => match &notes.unreadable {
                Some(why) => (&manifest.id, "may have been found damaged", why.as_str()),
                None => continue,
            },
            Entry::Broken { name, flaw, why } => match flaw {
                Flaw::Damaged => (name, "is no good", why.as_str()),
                Flaw::Unreadable | Flaw::Newer => (name, "cannot be read", why.as_str()),
            },
            Entry::Foreign(_) => continue,
        };
        if newest.is_none_or(|newest| *id > newest.manifest.id) {
            report.find(Verdict::Warning, format!("backup {id} {what}: {why}"));
        }
    }
}

fn judge_tracker(tracker: &Status, report: &mut Report) {
    report.note("tracker", tracker.state.name());
    if !tracker.alive {
        let message = "the maintenance driver broke: restart the tracker";
        report.find(Verdict::Critical, message);
    }
    let closed = tracker.gate.closed_for_ms.unwrap_or(0.0) / 1000.0;
    if tracker.hold_for_seconds > 0.0 && closed > tracker.hold_for_seconds {
        let message = format!("announces have waited for {closed:.0} s, longer than gate.hold_for");
        report.find(Verdict::Critical, message);
    }
    if let Some(last) = tracker
        .runs
        .first()
        .filter(|run| run.outcome != Outcome::Done)
    {
        let message = format!(
            "the last run, {}, made no backup: {}",
            last.id,
            status::result(last)
        );
        report.find(Verdict::Warning, message);
    }
    let channels = tracker.notify.iter().flat_map(|notify| {
        [
            ("webhook", &notify.webhook),
            ("heartbeat", &notify.heartbeat),
        ]
    });
    for (name, channel) in channels {
        if let Some(failing) = channel
            .as_ref()
            .and_then(|channel| channel.failing.as_ref())
        {
            let message = format!("the {name} is not reached: {}", failing.reason);
            report.find(Verdict::Warning, message);
        }
    }
}

/// The middle one; of an even number the smaller of the two.
fn median(mut sizes: Vec<u64>) -> Option<u64> {
    sizes.sort_unstable();
    sizes.get(sizes.len().checked_sub(1)? / 2).copied()
}

fn of_hundred(whole: u64, Percent(percent): Percent) -> u64 {
    let part = u128::from(whole) * u128::from(percent) / 100;
    u64::try_from(part).unwrap_or(whole)
}

/// The catalogue's entries, newest first.
fn look(configuration: &Configuration) -> Result<Vec<Entry>, Finding> {
    let listed = configuration
        .catalogue()
        .and_then(|catalogue| Ok(catalogue.list()?));
    listed.map_err(|failure: Failure| {
        // A directory that is not there holds no backup; anything else is not known.
        let state = match failure.error {
            "no_backup" => Verdict::Critical,
            _ => Verdict::Unknown,
        };
        Finding::new(state, failure.message)
    })
}

/// What the tracker says, if it answers. Whether it runs is not what is asked here.
fn asked(configuration: &Configuration) -> Option<Status> {
    let client = Client::new(configuration.endpoint().ok()?, None);
    block_on(client.status()).ok()
}

/// A command line that is not understood: nothing was looked at.
pub fn usage(message: &str, json: bool) -> ExitCode {
    let report = Report {
        findings: vec![Finding::new(Verdict::Unknown, message)],
        ..Report::default()
    };
    report.print(json)
}

impl Report {
    fn find(&mut self, state: Verdict, message: impl Into<String>) {
        self.findings.push(Finding::new(state, message));
    }

    fn note(&mut self, name: &str, value: &str) {
        self.json.insert(name.to_owned(), json!(value));
    }

    /// `name=value;warning;critical`, as the guidelines for plugins have it.
    fn figure(&mut self, name: &str, value: &str, warning: &str, critical: &str) {
        let figure = format!("{name}={value};{warning};{critical}");
        self.figures.push(figure.trim_end_matches(';').to_owned());
    }

    fn verdict(&self) -> Verdict {
        let worst = self.findings.iter().map(|finding| finding.state).max();
        worst.unwrap_or(Verdict::Unknown)
    }

    /// What makes it what it is comes first; on one line, and without the bar that ends it.
    fn line(&self) -> String {
        let mut findings: Vec<&Finding> = self.findings.iter().collect();
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.state));
        let messages: Vec<&str> = findings.iter().map(|it| it.message.as_str()).collect();
        let printable = |c: char| if c == '|' || c.is_control() { ' ' } else { c };
        let text: String = messages.join("; ").chars().map(printable).collect();
        let line = format!("{}: {text}", self.verdict().name());
        if self.figures.is_empty() {
            return line;
        }
        format!("{line} | {}", self.figures.join(" "))
    }

    fn json(&self) -> serde_json::Value {
        let verdict = self.verdict();
        let mut json = json!({
            "state": verdict,
            "exit_code": verdict.code(),
            "findings": self.findings,
        });
        for (name, value) in &self.json {
            json[name] = value.clone();
        }
        json
    }

    fn print(&self, json: bool) -> ExitCode {
        let text = if json {
            format!("{:#}", self.json())
        } else {
            self.line()
        };
        // Such systems read standard output alone.
        let _ = writeln!(std::io::stdout(), "{text}");
        self.verdict().code().into()
    }
}

#[cfg(test)]
mod tests;
