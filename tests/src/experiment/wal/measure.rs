//! What is done with one mode: load at a rate it holds, more than that, tracing, the switch.

use std::ops::Range;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use super::{Mode, Options, Round, Saturation, Switch, Syncs, prepare};
use crate::PATIENCE;
use crate::database::Seeds;
use crate::experiment::capacity;
use crate::experiment::reading::Reading;
use crate::generator::{ANNOUNCES, Generator, Kind, Plan, Report, Tally};
use crate::tracker::Tracker;
use crate::usage::flushes;

/// Seconds until a tracker that is offered too much has a queue as long as it gets: it drops
/// what has waited for 5 s, and at three times what it answers a second adds two seconds.
const FULL_AFTER: u64 = 3;

/// How long a tracker may take to exit.
const EXIT: Duration = Duration::from_secs(60);

/// The seconds of a load in which calls are counted: whole ones, as announces are counted by
/// the second they were planned for.
const TRACED: Range<u32> = 1..4;

/// A mode at the common rate, and then at what is too much.
pub(super) async fn measure(
    options: &Options,
    seeds: &Seeds,
    plan: Plan,
    too_much: Plan,
    mode: Mode,
) -> Result<(Round, Report)> {
    let setup = prepare(options, seeds, mode)?;
    let mut tracker = setup.start().await?;
    let addresses = tracker.addresses;
    let generator = Generator::start(plan, addresses.udp, addresses.http, PATIENCE).await?;
    generator
        .until(Duration::from_secs(options.warm_up))
        .await?;
    let read = || -> Result<_> {
        let reading = Reading::now(&generator.clock, &tracker)?;
        Ok((reading, flushes(&options.directory)))
    };
    let endpoint = tracker.endpoint()?;
    let spent_before = database_seconds(&endpoint.status().await?);
    let (before, flushed_before) = read()?;
    let mut log = 0;
    let ends = options.warm_up + options.seconds;
    for second in options.warm_up..ends {
        generator.until(Duration::from_secs(second + 1)).await?;
        log = log.max(size_of_log(&setup.database()));
    }
    let (after, flushed_after) = read()?;
    let spent_after = database_seconds(&endpoint.status().await?);
    let found = generator.stop().await?;
    let most = saturate(options, too_much, &tracker).await?;
    tracker.signal(Signal::TERM)?;
    tracker.exited(EXIT).await?;

    let seconds = usize::try_from(options.warm_up)?..usize::try_from(ends)?;
    let over = |kinds: &[Kind]| found.tally.over(kinds, seconds.clone());
    let (all, announces) = (over(&Kind::ALL), over(&ANNOUNCES));
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let per_announce = |count: u64| count as f64 / announces.counts.answered.max(1) as f64;
    let spent = after.since(&before);
    let cpu = spent.tracker.context("one process was measured")?;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let thousands = all.counts.answered.max(1) as f64 / 1_000.0;
    // A disk that counts none has counted none in all its life.
    let flushed = flushed_after
        .filter(|count| *count > 0)
        .zip(flushed_before)
        .map(|(after, before)| after.saturating_sub(before));
    let in_database = spent_after
        .zip(spent_before)
        .map(|(after, before)| after - before);
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let answered = announces.counts.answered.max(1) as f64;
    let round = Round {
        database_ms: in_database.map(|seconds| seconds * 1e6 / answered),
        dropped: found.health.dropped,
        cpu_ms: cpu.as_secs_f64() * 1_000.0 / thousands,
        resident: after.resident(),
        written: per_announce(spent.written),
        flushes: flushed.map(per_announce),
        log,
        others: spent.others,
        most,
        scrapes: over(&[Kind::UdpScrape, Kind::HttpScrape]),
        all,
        announces,
    };
    Ok((round, Report::new(plan, &found, Vec::new())))
}

/// What a tracker answers when it is offered more than it can.
async fn saturate(options: &Options, too_much: Plan, tracker: &Tracker) -> Result<Saturation> {
    let addresses = tracker.addresses;
    let generator =
        Generator::start(too_much, addresses.udp, addresses.http, capacity::GRACE).await?;
    let ends = FULL_AFTER + options.probe;
    generator.until(Duration::from_secs(ends)).await?;
    let found = generator.stop().await?;
    let seconds = usize::try_from(FULL_AFTER)?..usize::try_from(ends)?;
    let announces = found.tally.over(&[Kind::UdpAnnounce], seconds);
    Ok(Saturation::of(
        too_much.udp_per_second,
        options.probe,
        &announces,
        found.health.dropped,
    ))
}

/// Seconds a tracker has spent in its database for both doors, if its status tells.
fn database_seconds(status: &Value) -> Option<f64> {
    let of = |door: &str| status["traffic"][door]["database_seconds"].as_f64();
    Some(of("udp")? + of("http")?)
}

/// From its metadata: no file of a live database is opened.
fn size_of_log(database: &Path) -> u64 {
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).map_or(0, |log| log.len())
}

/// Counts the calls that sync, for some seconds of load: `None` where they cannot be.
pub(super) async fn count_syncs(
    options: &Options,
    seeds: &Seeds,
    plan: Plan,
    mode: Mode,
) -> Result<Option<Syncs>> {
    let tracker = prepare(options, seeds, mode)?.start().await?;
    let addresses = tracker.addresses;
    let generator = Generator::start(plan, addresses.udp, addresses.http, PATIENCE).await?;
    generator
        .until(Duration::from_secs(TRACED.start.into()))
        .await?;
    let strace = Command::new("strace")
        .args(["-f", "-c", "-e", "trace=fsync,fdatasync", "-p"])
        .arg(tracker.pid()?.as_raw_nonzero().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    // Not installed.
    let Ok(strace) = strace else {
        return Ok(None);
    };
    let id = strace.id().context("strace has just been started")?;
    let id = Pid::from_raw(i32::try_from(id)?).context("a process id above 0")?;
    generator
        .until(Duration::from_secs(TRACED.end.into()))
        .await?;
    // It detaches, prints its table and exits. Gone: it was not permitted to attach.
    if kill_process(id, Signal::INT).is_err() {
        return Ok(None);
    }
    let output = timeout(PATIENCE, strace.wait_with_output()).await??;
    let found = generator.stop().await?;
    Ok(syncs(
        &String::from_utf8_lossy(&output.stderr),
        &found.tally,
    ))
}

/// Calls and announces of the same seconds.
fn syncs(table: &str, tally: &Tally) -> Option<Syncs> {
    let seconds = TRACED.start as usize..TRACED.end as usize;
    Some(Syncs {
        calls: parse_syncs(table)?,
        announces: tally.over(&ANNOUNCES, seconds).counts.answered,
    })
}

/// The calls of a table of `strace -c`; `None` if it has none of them and no total, as when
/// it could not attach.
fn parse_syncs(table: &str) -> Option<u64> {
    let calls = |line: &str| -> Option<u64> {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, _, _, calls, .., "fsync" | "fdatasync"] = fields.as_slice() else {
            return None;
        };
        calls.parse().ok()
    };
    let attached = table.contains("attached");
    attached.then(|| table.lines().filter_map(calls).sum())
}

/// How long a tracker takes to start, to start and switch, and to switch back.
pub(super) async fn switch(options: &Options, seeds: &Seeds) -> Result<Switch> {
    let setup = prepare(options, seeds, Mode::Rollback)?;
    let mut seconds = Vec::new();
    for journal in ["delete", "wal", "delete"] {
        let setup = setup
            .clone()
            .set("maintenance", "journal_mode", &format!("\"{journal}\""));
        let began = Instant::now();
        let mut tracker = setup.start().await?;
        seconds.push(began.elapsed().as_secs_f64());
        let found = tracker.endpoint()?.status().await?["database"]["journal_mode"].clone();
        ensure!(found == journal, "{journal} was asked for, it is {found}");
        tracker.signal(Signal::TERM)?;
        tracker.exited(EXIT).await?;
    }
    let &[plain, to_wal, back] = seconds.as_slice() else {
        anyhow::bail!("three starts were measured");
    };
    Ok(Switch {
        plain,
        to_wal,
        back,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The load begins before the tracer does and ends after it.
    #[test]
    fn announces_are_counted_in_the_seconds_in_which_calls_are() {
        let mut tally = Tally::default();
        for second in 0..6 {
            for kind in [Kind::UdpAnnounce, Kind::HttpAnnounce, Kind::UdpScrape] {
                let planned = Duration::from_secs(second) + Duration::from_millis(500);
                tally.sent(kind, planned, Duration::ZERO);
                tally.answered(kind, planned, Duration::from_millis(1));
            }
        }
        let table = "strace: Process 7 attached\n100.00 0.1 66 9 fdatasync\n";
        let wanted = Syncs {
            calls: 9,
            announces: 2 * 3,
        };
        assert_eq!(syncs(table, &tally), Some(wanted));
        assert_eq!(syncs("not permitted", &tally), None);
    }

    #[test]
    fn the_time_in_the_database_is_of_both_doors_or_not_known() {
        let both = json!({ "traffic": {
            "udp": { "database_seconds": 1.5 }, "http": { "database_seconds": 0.5 },
        }});
        assert_eq!(database_seconds(&both), Some(2.0));
        let one = json!({ "traffic": { "udp": { "database_seconds": 1.5 } } });
        assert_eq!(database_seconds(&one), None);
        assert_eq!(database_seconds(&json!({})), None);
    }

    #[test]
    fn the_table_of_strace_is_read() {
        let table = "strace: Process 7 attached with 9 threads\nstrace: Process 7 detached\n\
            % time     seconds  usecs/call     calls    errors syscall\n\
            ------ ----------- ----------- --------- --------- ----------------\n\
            \x20 99.96    0.012273          67       182           fdatasync\n\
            \x20  0.04    0.000005           5         1         1 fsync\n\
            ------ ----------- ----------- --------- --------- ----------------\n\
            100.00    0.012278          66       183         1 total\n";
        assert_eq!(parse_syncs(table), Some(183));
        assert_eq!(parse_syncs("strace: Process 7 attached\n"), Some(0));
        let refused = "strace: attach: ptrace(PTRACE_SEIZE, 1): Operation not permitted\n";
        assert_eq!(parse_syncs(refused), None);
    }
}
