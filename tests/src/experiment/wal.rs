//! Whether WAL pays: a baseline in the rollback journal, the switch, the same measurement
//! in WAL, and a decision by the rule of the library.
//!
//! ```text
//!   rates      the highest rate each mode holds
//!   rounds     rollback journal │ WAL, durable │ WAL, committed │ WAL, FULL
//!              rollback journal │ WAL, durable │ WAL, committed │ WAL, FULL
//!              ...       one rate that all of them hold, then more than each can answer;
//!                        in turn, as the machine's speed drifts
//!   switch     start, start and switch to WAL, start and switch back
//!   flushes    strace counts the calls that sync, for a moment, and slows the tracker down
//! ```
//!
//! In WAL the tracker is built to commit with `synchronous = NORMAL` and syncs the log itself,
//! once for many commits and before it answers them, or, with `acknowledge = "committed"`, not
//! at all. That `SQLite` syncs at each commit, `FULL`, is a matter of how it was built: that
//! mode is measured where such a tracker is given, and else said to be missing.

mod page;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::timeout;
use torrust_tracker_maintenance::evaluation::{Evaluation, Figure, Good, Weight, evaluate};

pub use self::page::document;
use super::capacity::{self, Try};
use super::machine::Machine;
use super::reading::Reading;
use crate::PATIENCE;
use crate::database::Seeds;
use crate::generator::{ANNOUNCES, Generator, Kind, Plan, Report, Summary};
use crate::tracker::{Setup, Tracker};
use crate::usage::flushes;

/// Of the highest rate that every mode holds, what the rounds are measured at, in percent:
/// at the limit itself any disturbance makes a queue, and the queue would be measured.
const PART: u32 = 60;

/// Times the rate a mode holds that is offered to see what it answers at most.
const TOO_MUCH: u32 = 3;

/// Seconds until a tracker that is offered too much has a queue as long as it gets: it drops
/// what has waited for 5 s, and at three times what it answers a second adds two seconds.
const FULL_AFTER: u64 = 3;

/// How long a tracker may take to exit.
const EXIT: Duration = Duration::from_secs(60);

/// How long calls are counted.
const TRACED: Duration = Duration::from_secs(3);

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where databases are put for the while.
    pub directory: PathBuf,
    /// Size of the database, in 10^6 bytes.
    pub megabytes: u64,
    /// The highest rates, and the rest of the plan.
    pub plan: Plan,
    /// A tracker built without `LIBSQLITE3_FLAGS`, so with `synchronous = FULL`.
    pub full: Option<PathBuf>,
    /// How often each mode is measured.
    pub rounds: usize,
    /// Seconds of load before anything is measured.
    pub warm_up: u64,
    /// Seconds of each measurement.
    pub seconds: u64,
    /// Seconds of each rate that is tried.
    pub probe: u64,
}

/// How a database is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// `journal_mode = "delete"`, `synchronous = FULL`: what upstream sets up.
    Rollback,
    /// `journal_mode = "wal"`, `acknowledge = "durable"`: `NORMAL`, and the tracker syncs the
    /// log before it answers.
    Durable,
    /// `journal_mode = "wal"`, `acknowledge = "committed"`: `NORMAL` alone.
    Committed,
    /// `journal_mode = "wal"`, `FULL`: `SQLite` syncs the log at each commit.
    Full,
}

impl Mode {
    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rollback => "rollback journal",
            Self::Durable => "WAL, durable",
            Self::Committed => "WAL, committed",
            Self::Full => "WAL, FULL",
        }
    }

    fn journal(self) -> &'static str {
        match self {
            Self::Rollback => "delete",
            Self::Durable | Self::Committed | Self::Full => "wal",
        }
    }

    fn acknowledge(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Rollback | Self::Durable | Self::Full => "durable",
        }
    }
}

/// Everything that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The command that measured it.
    pub command: String,
    /// When it began.
    pub date: DateTime<Utc>,
    /// How long it took.
    pub seconds: f64,
    /// On what.
    pub machine: Machine,
    /// Size of the database in bytes.
    pub bytes: u64,
    /// The rates at which the rounds were measured: UDP and HTTP.
    pub rate: [u32; 2],
    /// What was found of each mode.
    pub modes: Vec<Measured>,
    /// How long starting took.
    pub switch: Switch,
    /// From the rollback journal to WAL, both durable.
    pub to_wal: Evaluation,
    /// From answers that are durable to answers that are not yet, both in WAL.
    pub to_committed: Evaluation,
    /// From a sync at each commit to one before many answers, both in WAL; `None` where the
    /// former was not measured.
    pub from_full: Option<Evaluation>,
}

/// One mode.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Which.
    pub mode: Mode,
    /// The rates that were tried; the last was held.
    pub tries: Vec<Try>,
    /// Each measurement at the common rate.
    pub rounds: Vec<Round>,
    /// Calls that sync, by name, of a tracker that was traced; `None` where `strace` is not
    /// installed or not permitted.
    pub syncs: Option<Syncs>,
    /// The last round, second by second.
    pub report: Report,
}

/// One measurement at the common rate, and one of more than the tracker can answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Everything that was sent.
    pub all: Summary,
    /// The announces of both doors.
    pub announces: Summary,
    /// The scrapes of both doors.
    pub scrapes: Summary,
    /// Processor time of the tracker, in milliseconds for 1,000 answers.
    pub cpu_ms: f64,
    /// Bytes of memory the tracker had resident at the end.
    pub resident: u64,
    /// Bytes the tracker caused to be written to the disk, for each announce.
    pub written: f64,
    /// Flushes the disk did for whomever, for each announce; `None` where it counts none.
    pub flushes: Option<f64>,
    /// Largest size of the write-ahead log, looked at every second.
    pub log: u64,
    /// Processors that something else than the tracker and the load kept busy.
    pub others: f64,
    /// UDP announces a second that it answered when three times what it holds was offered.
    pub at_most: f64,
}

/// Calls that sync.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Syncs {
    /// `fsync` and `fdatasync` together.
    pub calls: u64,
    /// Announces answered meanwhile.
    pub announces: u64,
}

/// Seconds from starting a tracker until every service of it had started.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Switch {
    /// In the rollback journal, nothing to switch.
    pub plain: f64,
    /// Switching to WAL.
    pub to_wal: f64,
    /// Switching back to the rollback journal.
    pub back: f64,
}

/// Measures everything.
///
/// # Errors
/// When something cannot be measured.
pub async fn run(options: &Options, command: String) -> Result<Outcome> {
    let (date, began) = (Utc::now(), Instant::now());
    let machine = Machine::this(&options.directory)?;
    let seeds = Seeds::new(&options.directory)?;
    let mut modes = vec![Mode::Rollback, Mode::Durable, Mode::Committed];
    if options.full.is_some() {
        modes.push(Mode::Full);
    }
    let mut tries = Vec::new();
    for mode in &modes {
        eprintln!("{}: the highest rate", mode.name());
        let tracker = prepare(options, &seeds, *mode)?.start().await?;
        tries.push(capacity::search(&tracker, &options.plan, options.probe).await?);
    }
    let plan = common(options.plan, &tries)?;

    let mut rounds: Vec<Vec<(Round, Report)>> = modes.iter().map(|_| Vec::new()).collect();
    for round in 0..options.rounds {
        for ((mode, tries), rounds) in modes.iter().zip(&tries).zip(&mut rounds) {
            eprintln!("{}: round {}", mode.name(), round + 1);
            let held = tries.last().context("each mode was tried")?;
            let too_much = Plan {
                udp_per_second: held.udp_per_second * TOO_MUCH,
                http_per_second: held.http_per_second,
                ..plan
            };
            rounds.push(measure(options, &seeds, plan, too_much, *mode).await?);
        }
    }
    let mut measured = Vec::new();
    for ((mode, tries), rounds) in modes.iter().zip(tries).zip(rounds) {
        let (rounds, mut reports): (Vec<_>, Vec<_>) = rounds.into_iter().unzip();
        measured.push(Measured {
            mode: *mode,
            tries,
            rounds,
            syncs: count_syncs(options, &seeds, plan, *mode).await?,
            report: reports.pop().context("a mode was measured")?,
        });
    }
    let switch = switch(options, &seeds).await?;
    let of = |wanted| measured.iter().find(|one| one.mode == wanted);
    let compare =
        |before, after| -> Option<Evaluation> { Some(evaluate(&figures(of(before)?, of(after)?))) };
    Ok(Outcome {
        command,
        date,
        seconds: began.elapsed().as_secs_f64(),
        machine,
        bytes: options.megabytes * 1_000_000,
        rate: [plan.udp_per_second, plan.http_per_second],
        switch,
        to_wal: compare(Mode::Rollback, Mode::Durable).context("both were measured")?,
        to_committed: compare(Mode::Durable, Mode::Committed).context("both were measured")?,
        from_full: compare(Mode::Full, Mode::Durable),
        modes: measured,
    })
}

/// A database of its own each time: what one measurement left must not speed up the next.
fn prepare(options: &Options, seeds: &Seeds, mode: Mode) -> Result<Setup> {
    let journal = mode.journal();
    let text = |value: &str| format!("\"{value}\"");
    let mut setup = Setup::new_in(&options.directory)?
        .set("maintenance", "journal_mode", &text(journal))
        .set("maintenance", "acknowledge", &text(mode.acknowledge()));
    if let (Mode::Full, Some(program)) = (mode, &options.full) {
        setup = setup.program_at(program);
    }
    seeds.plant(&setup.database(), options.megabytes * 1_000_000, journal)?;
    Ok(setup)
}

/// What every mode holds, and less.
fn common(plan: Plan, tries: &[Vec<Try>]) -> Result<Plan> {
    let held = tries.iter().filter_map(|tries| tries.last());
    let lowest = held
        .min_by_key(|one| one.udp_per_second)
        .context("each mode held a rate")?;
    Ok(Plan {
        udp_per_second: (lowest.udp_per_second * PART / 100).max(1),
        http_per_second: (lowest.http_per_second * PART / 100).max(1),
        ..plan
    })
}

async fn measure(
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
    let (before, flushed_before) = read()?;
    let mut log = 0;
    let ends = options.warm_up + options.seconds;
    for second in options.warm_up..ends {
        generator.until(Duration::from_secs(second + 1)).await?;
        log = log.max(size_of_log(&setup.database()));
    }
    let (after, flushed_after) = read()?;
    let found = generator.stop().await?;
    let at_most = saturate(options, too_much, &tracker).await?;
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
    let round = Round {
        cpu_ms: cpu.as_secs_f64() * 1_000.0 / thousands,
        resident: after.resident(),
        written: per_announce(spent.written),
        flushes: flushed.map(per_announce),
        log,
        others: spent.others,
        at_most,
        scrapes: over(&[Kind::UdpScrape, Kind::HttpScrape]),
        all,
        announces,
    };
    Ok((round, Report::new(plan, &found, Vec::new())))
}

/// What a tracker answers when it is offered more than it can: UDP announces a second.
async fn saturate(options: &Options, too_much: Plan, tracker: &Tracker) -> Result<f64> {
    let addresses = tracker.addresses;
    let generator =
        Generator::start(too_much, addresses.udp, addresses.http, capacity::GRACE).await?;
    let ends = FULL_AFTER + options.probe;
    generator.until(Duration::from_secs(ends)).await?;
    let found = generator.stop().await?;
    let seconds = usize::try_from(FULL_AFTER)?..usize::try_from(ends)?;
    let announces = found.tally.over(&[Kind::UdpAnnounce], seconds);
    Ok(announces.answered_per_second)
}

/// From its metadata: no file of a live database is opened.
fn size_of_log(database: &Path) -> u64 {
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    std::fs::metadata(log).map_or(0, |log| log.len())
}

/// Counts the calls that sync, for a moment of load.
async fn count_syncs(
    options: &Options,
    seeds: &Seeds,
    plan: Plan,
    mode: Mode,
) -> Result<Option<Syncs>> {
    let tracker = prepare(options, seeds, mode)?.start().await?;
    let addresses = tracker.addresses;
    let generator = Generator::start(plan, addresses.udp, addresses.http, PATIENCE).await?;
    generator.until(Duration::from_secs(1)).await?;
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
    let from = generator.clock.elapsed();
    generator.until(from + TRACED).await?;
    // It detaches, prints its table and exits. Gone: it was not permitted to attach.
    if kill_process(id, Signal::INT).is_err() {
        return Ok(None);
    }
    let output = timeout(PATIENCE, strace.wait_with_output()).await??;
    let found = generator.stop().await?;
    // Whole seconds, so that one at either end may be counted in part.
    let seconds = usize::try_from(from.as_secs())?..found.tally.seconds();
    let table = String::from_utf8_lossy(&output.stderr);
    Ok(parse_syncs(&table).map(|calls| Syncs {
        calls,
        announces: found.tally.over(&ANNOUNCES, seconds).counts.answered,
    }))
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
async fn switch(options: &Options, seeds: &Seeds) -> Result<Switch> {
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

/// What decides, and what is told.
fn figures(before: &Measured, after: &Measured) -> Vec<Figure> {
    type Value = fn(&Round) -> Option<f64>;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let failed: Value = |round| {
        Some(round.all.counts.failed() as f64 * 1_000.0 / round.all.counts.sent.max(1) as f64)
    };
    #[expect(clippy::cast_precision_loss, reason = "bytes far below 2^52")]
    let resident: Value = |round| Some(round.resident as f64 / 1e6);
    let rows: [(&str, Weight, Value); 8] = [
        ("requests that failed, of 1,000", Weight::Essential, failed),
        ("announce p99, ms", Weight::Essential, |round| {
            round.announces.p99_ms
        }),
        ("announce p50, ms", Weight::Told, |round| {
            round.announces.p50_ms
        }),
        ("scrape p99, ms", Weight::Told, |round| round.scrapes.p99_ms),
        ("tracker CPU, ms for 1,000 answers", Weight::Told, |round| {
            Some(round.cpu_ms)
        }),
        ("tracker memory, MB", Weight::Told, resident),
        (
            "written to disk, bytes an announce",
            Weight::Told,
            |round| Some(round.written),
        ),
        ("flushes of the disk, an announce", Weight::Told, |round| {
            round.flushes
        }),
    ];
    let figure = |name: &str, good, weight, value: Value| Figure {
        name: name.to_owned(),
        good,
        weight,
        before: before.rounds.iter().filter_map(value).collect(),
        after: after.rounds.iter().filter_map(value).collect(),
    };
    let mut figures: Vec<Figure> = rows
        .into_iter()
        .map(|(name, weight, value)| figure(name, Good::Low, weight, value))
        .collect();
    figures.push(figure(
        "UDP announces/s at most",
        Good::High,
        Weight::Essential,
        |round| Some(round.at_most),
    ));
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

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
