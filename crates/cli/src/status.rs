//! `status`: the one screen for the middle of the night.

use std::time::Duration;

use chrono::{DateTime, Utc};
use torrust_tracker_maintenance::catalogue::Backup;
use torrust_tracker_maintenance::snapshot::Progress;
use torrust_tracker_maintenance::status::{
    ChannelStatus, DatabaseStatus, GateStatus, LeaseStatus, PerDoor, RemoteStatus, RunReport,
    RunStatus, Status,
};
use torrust_tracker_maintenance::switch::{NotSwitched, Order};
use torrust_tracker_maintenance::window::{Outcome, Trigger};

use crate::client::{Client, block_on};
use crate::configuration::Configuration;
use crate::exit::{Answer, Exit, Failure};
use crate::table::{Side, Table};
use crate::units;

/// Ended runs shown; `--json` has all that the tracker remembers.
const RUNS_SHOWN: usize = 7;

pub fn carry_out(
    configuration: &Configuration,
    json: bool,
    now: DateTime<Utc>,
) -> Result<Answer, Failure> {
    let client = Client::new(configuration.endpoint()?, None);
    let newest = configuration.newest_backup();
    let given = block_on(client.status_as_given()).map_err(|error| {
        // A tracker that is down is when one wants to know what there is to go back to.
        let newest = newest.as_ref().map(|backup| backup_line(backup, now));
        let note = newest.map(|newest| format!("\nthe newest backup is {newest}"));
        Failure::from(error).also(&note.unwrap_or_default())
    })?;
    // Handed on as it is, so that programs are not limited to what this version knows.
    let text = if json {
        String::new()
    } else {
        screen(&client.understand(given.clone())?, newest.as_ref(), now)
    };
    Ok(Answer {
        exit: Exit::Done,
        text,
        json: given,
    })
}

fn screen(status: &Status, newest: Option<&Backup>, now: DateTime<Utc>) -> String {
    let mut lines = vec![
        (
            "service",
            format!("{}, maintenance {}", status.service, status.version),
        ),
        ("announces", announces(&status.gate)),
        (
            "run",
            status
                .run
                .as_ref()
                .map_or_else(|| "none".to_owned(), |run| run_line(run, status, now)),
        ),
        ("next", next(status, now)),
        ("backup", newest_line(status, newest, now)),
        ("database", database(&status.database)),
        ("gate", counters(&status.gate)),
    ];
    if let Some(remote) = &status.remote {
        lines.insert(5, ("remote", uploads(remote, now)));
    }
    if status.gate.forced_open > 0 {
        let forced = format!(
            "the watchdog had to open the gate {} times: a defect, please report it with the log",
            status.gate.forced_open
        );
        lines.insert(2, ("WARNING", forced));
    }
    lines.extend(told(status).map(|told| ("notify", told)));
    let lines = lines.iter().map(|(name, what)| format!("{name:<11}{what}"));
    let head = lines.collect::<Vec<_>>().join("\n");
    match runs(status) {
        Some(runs) => format!("{head}\n\n{runs}"),
        None => format!("{head}\n\nno run has ended since the service started"),
    }
}

/// Where it is, its journal mode, and whether that is going to change.
fn database(database: &DatabaseStatus) -> String {
    let DatabaseStatus {
        path,
        journal_mode,
        switch,
        not_switchable: _,
        wal_bytes: _,
    } = database;
    let switch = match switch {
        None => String::new(),
        Some(Order { failed: None, .. }) => ", to WAL in the next run".to_owned(),
        Some(Order {
            failed: Some(NotSwitched { run, reason }),
            ..
        }) => format!(", to WAL in the next run\n           NOT SWITCHED in run {run}: {reason}"),
    };
    format!("{}, journal mode {journal_mode}{switch}", path.display())
}

/// One line for each way of telling somebody.
fn told(status: &Status) -> impl Iterator<Item = String> {
    let channels = status.notify.iter().flat_map(|notify| {
        [
            ("webhook", &notify.webhook),
            ("heartbeat", &notify.heartbeat),
        ]
    });
    channels.filter_map(|(name, channel)| {
        let ChannelStatus {
            target,
            delivered,
            failed,
            waiting,
            dropped,
            failing,
            ..
        } = channel.as_ref()?;
        let lost = failed + dropped;
        let again = match waiting {
            0 => String::new(),
            waiting => format!(", {waiting} tried again"),
        };
        let counts = format!("{name} {target}: {delivered} delivered, {lost} not{again}");
        Some(match failing {
            Some(failing) => format!("{counts}; FAILING: {}", failing.reason),
            None => counts,
        })
    })
}

/// How far the second place is.
fn uploads(remote: &RemoteStatus, now: DateTime<Utc>) -> String {
    let behind = match remote.behind {
        0 => "has all it should have".to_owned(),
        1 => "LACKS 1 backup".to_owned(),
        behind => format!("LACKS {behind} backups"),
    };
    let since = remote
        .behind_since_seconds
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .map(|since| format!(" since {}", units::duration(since)));
    let last = remote
        .last_uploaded
        .map(|last| format!(", last upload {}", units::ago(last, now)));
    let failure = remote
        .failure
        .as_ref()
        .map(|failure| format!("\n           {failure}"));
    let broken = (!remote.broken.is_empty()).then(|| {
        let broken = remote.broken.iter();
        let broken = broken.map(|it| format!("\n           {} there is BROKEN: {}", it.id, it.why));
        broken.collect()
    });
    [since, last, failure, broken]
        .into_iter()
        .flatten()
        .fold(behind, |line, more| line + &more)
}

fn announces(gate: &GateStatus) -> String {
    match gate.closed_for_ms {
        None => "flow".to_owned(),
        Some(closed) => format!(
            "HELD for {} now: {} wait",
            units::milliseconds(closed),
            doors(gate.held)
        ),
    }
}

fn doors(PerDoor { udp, http }: PerDoor) -> String {
    format!("{udp} UDP, {http} HTTP")
}

fn run_line(run: &RunStatus, status: &Status, now: DateTime<Utc>) -> String {
    let attempt = match run.attempt {
        0 | 1 => String::new(),
        attempt => format!(", attempt {attempt}"),
    };
    let lease = run.lease.as_ref().map(lease);
    let progress = run.progress.as_ref().map(progress);
    let below = lease.into_iter().chain(progress);
    let below = below.map(|line| format!("\n           {line}"));
    format!(
        "{} ({}): {}{attempt}, began {}{}",
        run.id,
        trigger(run.trigger),
        status.state,
        units::ago(run.began, now),
        below.collect::<String>(),
    )
}

/// Who copies, and for how long that is known: `sidecar vault-1, its lease runs out in 31 s
/// unless renewed`.
fn lease(lease: &LeaseStatus) -> String {
    let left = Duration::try_from_secs_f64(lease.expires_seconds.max(0.0).round());
    format!(
        "sidecar {}, its lease runs out in {} unless renewed",
        lease.holder,
        units::duration(left.unwrap_or(Duration::MAX))
    )
}

/// How far something is: `copying: 3.1 GB of 17.2 GB, 18 %, 1.1 GB/s, 5 s left`.
pub fn progress(progress: &Progress) -> String {
    format!("{}: {}", progress.doing, extent(progress))
}

/// As [`progress`], without what is being done.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "shown as whole percents, seconds and bytes a second"
)]
pub fn extent(progress: &Progress) -> String {
    let Progress {
        done,
        total,
        seconds,
        expected,
        ..
    } = progress;
    let Some(total) = total.filter(|total| *total > 0) else {
        return match (done, expected) {
            (0, Some(expected)) => so_far(*seconds, *expected),
            (0, None) => format!("{seconds:.0} s so far"),
            (done, _) => units::bytes(*done),
        };
    };
    let share = (*done as f64 / total as f64).min(1.0);
    let left = match seconds * (1.0 - share) / share {
        left if left.is_finite() && *seconds >= 1.0 => {
            let rate = units::bytes((*done as f64 / seconds) as u64);
            let left = units::duration(Duration::from_secs_f64(left));
            format!(", {rate}/s, {left} left")
        }
        _ => String::new(),
    };
    let (done, total) = (units::bytes(*done), units::bytes(total));
    format!("{done} of {total}, {:.0} %{left}", (share * 100.0).floor())
}

/// How far something is that cannot be measured, by how long it is expected to take.
fn so_far(seconds: f64, expected: f64) -> String {
    let about = |seconds: f64| {
        let duration = Duration::try_from_secs_f64(seconds.round()).unwrap_or(Duration::MAX);
        units::duration(duration)
    };
    if seconds < expected {
        let left = about(expected - seconds);
        format!("{seconds:.0} s so far, about {left} left")
    } else {
        let expected = about(expected);
        format!("{seconds:.0} s so far, longer than the {expected} expected")
    }
}

fn next(status: &Status, now: DateTime<Utc>) -> String {
    if !status.alive {
        return "NEVER: the maintenance driver broke; restart the tracker".to_owned();
    }
    let Some(next) = status.next else {
        return "no window is ever due".to_owned();
    };
    format!(
        "{} UTC, in {}, for {}",
        units::minute(next.begins),
        units::span(next.begins - now),
        units::span(next.ends - next.begins)
    )
}

fn newest_line(status: &Status, newest: Option<&Backup>, now: DateTime<Utc>) -> String {
    if let Some(newest) = newest {
        return backup_line(newest, now);
    }
    // Without the configuration, or from another machine: what the runs remember.
    let run = status.runs.iter().find(|run| run.backup.is_some());
    let remembered = run.and_then(|run| Some((run.backup.as_ref()?, run.began)));
    match remembered {
        Some((id, began)) => format!("{id}, {}", units::ago(began, now)),
        None => "NONE that is known of; `torrust-maintenance run` makes one".to_owned(),
    }
}

fn backup_line(Backup { manifest, .. }: &Backup, now: DateTime<Utc>) -> String {
    let part = if manifest.is_full() { "" } else { ", PARTIAL" };
    format!(
        "{}{part}, {}, {} ({} unpacked), method {}",
        manifest.id,
        units::ago(manifest.pinned, now),
        units::bytes(manifest.stored_bytes()),
        units::bytes(manifest.database.raw_bytes),
        manifest.method
    )
}

fn counters(gate: &GateStatus) -> String {
    let turned_away = doors(gate.turned_away);
    let unconfirmed = if gate.unconfirmed == PerDoor::default() {
        String::new()
    } else {
        let requests = doors(gate.unconfirmed);
        format!("; executed, and NOT CERTAIN TO BE STORED: {requests}")
    };
    format!(
        "since start: {} held and answered; {} UDP resends merged; turned away: \
         {turned_away}{unconfirmed}",
        doors(gate.released),
        gate.merged.udp,
    )
}

fn runs(status: &Status) -> Option<String> {
    let mut table = Table::new([
        ("ENDED (UTC)", Side::Left),
        ("BY", Side::Left),
        ("OUTCOME", Side::Left),
        ("TOOK", Side::Right),
        ("PAUSE", Side::Right),
        ("BACKUP OR REASON", Side::Left),
    ]);
    for run in status.runs.iter().take(RUNS_SHOWN) {
        table.row([
            units::time(run.ended),
            trigger(run.trigger).to_owned(),
            outcome(&run.outcome).to_owned(),
            units::span(run.ended - run.began),
            units::milliseconds(run.pause_ms),
            result(run),
        ]);
    }
    (!status.runs.is_empty()).then(|| table.to_string())
}

/// The backup with its warnings, or why there is none.
pub fn result(run: &RunReport) -> String {
    let message = match &run.outcome {
        Outcome::Done => None,
        Outcome::Failed { phase, message, .. }
        | Outcome::Deadline { phase, message }
        | Outcome::Aborted { phase, message } => Some(format!("while {phase}: {message}")),
        Outcome::WouldNotFit { message } | Outcome::NoSidecar { message } => Some(message.clone()),
    };
    let backup = run.backup.as_ref().map(ToString::to_string);
    let sidecar = run.sidecar.as_ref();
    let sidecar = sidecar.map(|sidecar| format!("sidecar {}", sidecar.holder));
    let warnings = run
        .warnings
        .iter()
        .map(|warning| format!("warning: {warning}"));
    let switched = run.switched_to.as_ref();
    let switched = switched.map(|mode| format!("to journal mode {mode}"));
    let made = backup.into_iter().chain(sidecar).chain(switched);
    let parts = made.chain(message).chain(warnings);
    parts.collect::<Vec<_>>().join("; ")
}

/// How a run ended, in a word or three; loud unless it is good.
pub fn outcome(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Done => "done",
        Outcome::Failed { .. } => "FAILED",
        Outcome::WouldNotFit { .. } => "WOULD NOT FIT",
        Outcome::NoSidecar { .. } => "NO SIDECAR",
        Outcome::Deadline { .. } => "DEADLINE",
        Outcome::Aborted { .. } => "ABORTED",
    }
}

fn trigger(trigger: Trigger) -> &'static str {
    match trigger {
        Trigger::Schedule => "schedule",
        Trigger::Operator => "operator",
        Trigger::CatchUp => "catch-up",
    }
}

#[cfg(test)]
mod tests;
