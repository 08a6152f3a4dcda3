//! Whether WAL pays: a baseline in the rollback journal, the switch, the same measurement
//! in WAL, and a decision by the rule of the library.
//!
//! ```text
//!   rates      the highest rate each mode holds
//!   rounds     rollback journal │ WAL, durable │ WAL, committed │ WAL, FULL
//!              WAL, FULL │ WAL, committed │ WAL, durable │ rollback journal
//!              ...       one rate that all of them hold, then more than each can answer;
//!                        in turn, forth and back, as the machine's speed drifts
//!   switch     start, start and switch to WAL, start and switch back
//!   flushes    strace counts the calls that sync, for a moment, and slows the tracker down
//! ```
//!
//! In WAL the tracker is built to commit with `synchronous = NORMAL` and syncs the log itself,
//! once for many commits and before it answers them, or, with `acknowledge = "committed"`, not
//! at all. That `SQLite` syncs at each commit, `FULL`, is a matter of how it was built: that
//! mode is measured where such a tracker is given, and else said to be missing.
//!
//! A mode that holds no rate is not measured, and a round of which the generator was the limit
//! counts for nothing; the page says so.

mod page;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;
use torrust_tracker_maintenance::evaluation::{Evaluation, Figure, Good, Weight, evaluate};

pub use self::page::document;
use super::capacity::{self, Try, Verdict};
use super::machine::Machine;
use super::reading::Reading;
use super::{Judgement, order};
use crate::PATIENCE;
use crate::database::Seeds;
use crate::generator::{ANNOUNCES, Generator, Kind, MOST, Plan, Report, Summary};
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

/// What a rate may be off by because requests left late or answers were lost, as a part of
/// it: past that it is not known. Where more is offered than can be answered the machine is
/// busy in any case, and a request that leaves some milliseconds late changes no rate.
const OFF: f64 = 0.02;

/// Failures of 1,000 requests that are none: one in ten thousand is no difference between two
/// journal modes, however steady it is.
const FAILURES: f64 = 0.1;

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
    /// The rates at which the rounds were measured: UDP and HTTP; `None` where no mode held
    /// any, and none was measured.
    pub rate: Option<[u32; 2]>,
    /// What was found of each mode.
    pub modes: Vec<Measured>,
    /// How long starting took; `None` if that failed.
    pub switch: Option<Switch>,
    /// From the rollback journal to WAL, both durable.
    pub to_wal: Evaluation,
    /// From answers that are durable to answers that are not yet, both in WAL.
    pub to_committed: Evaluation,
    /// From a sync at each commit to one before many answers, both in WAL; `None` where the
    /// former was not measured.
    pub from_full: Option<Evaluation>,
    /// What went wrong.
    #[serde(default)]
    pub flaws: Vec<String>,
}

/// One mode.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Which.
    pub mode: Mode,
    /// The rates that were tried; [`capacity::held`] is the one that was held.
    pub tries: Vec<Try>,
    /// Each measurement at the common rate; none where no rate was held.
    pub rounds: Vec<Round>,
    /// Calls that sync, by name, of a tracker that was traced; `None` where `strace` is not
    /// installed or not permitted.
    pub syncs: Option<Syncs>,
    /// The last round, second by second.
    pub report: Option<Report>,
}

impl Measured {
    /// A figure of each round, but for those of which the generator was the limit.
    fn values(&self, value: OfRound) -> Vec<f64> {
        let counted = self.rounds.iter().filter(|round| !round.limited());
        counted.filter_map(value).collect()
    }

    /// What each round has answered at most, where that is known: a load of its own, so that
    /// what the generator was at the common rate does not matter.
    fn at_most(&self) -> Vec<f64> {
        let rounds = self.rounds.iter();
        rounds.filter_map(|round| round.most.announces).collect()
    }
}

/// A figure of a round, if it has it.
type OfRound = fn(&Round) -> Option<f64>;

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
    /// Milliseconds spent executing and making durable what is stored, for 1,000 announces;
    /// `None` where the tracker does not tell.
    #[serde(default)]
    pub database_ms: Option<f64>,
    /// Answers that the generator did not read in time.
    pub dropped: u64,
    /// What was answered when more was offered.
    pub most: Saturation,
}

impl Round {
    /// Whether requests left late, or the generator lost answers: then nothing is known of the
    /// tracker.
    #[must_use]
    pub fn limited(&self) -> bool {
        self.all.late() || self.dropped > 0
    }
}

/// What was answered when three times the rate that is held was offered, or as much as the
/// generator is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Saturation {
    /// UDP requests a second that were offered.
    pub offered: u32,
    /// UDP announces a second that were answered; `None` where the generator was the limit.
    pub announces: Option<f64>,
    /// Whether these were all that were offered: the tracker could have answered more.
    pub spare: bool,
}

impl Saturation {
    fn of(offered: u32, seconds: u64, announces: &Summary, dropped: u64) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let [sent, answered, dropped, seconds] = [
            announces.counts.sent,
            announces.counts.answered,
            dropped,
            seconds,
        ]
        .map(|count| count as f64);
        let late = announces.late_p99_ms.unwrap_or(0.0) / 1_000.0;
        let limited = late > seconds * OFF || dropped > answered * OFF;
        let known = !limited && sent > 0.0;
        Self {
            offered,
            announces: known.then_some(announces.answered_per_second),
            spare: known && answered >= sent * (1.0 - OFF),
        }
    }
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

/// A mode, while it is being measured.
struct Course {
    mode: Mode,
    tries: Vec<Try>,
    rounds: Vec<(Round, Report)>,
}

/// Measures everything.
///
/// # Errors
/// When nothing can be measured. What goes wrong with one measurement is in the outcome.
pub async fn run(options: &Options, command: String) -> Result<Outcome> {
    let (date, began) = (Utc::now(), Instant::now());
    let machine = Machine::this(&options.directory)?;
    let seeds = Seeds::new(&options.directory)?;
    let mut flaws = Vec::new();
    let mut courses = Vec::new();
    for mode in modes(options) {
        let what = format!("{}: the highest rate", mode.name());
        eprintln!("{what}");
        let tries = search(options, &seeds, mode).await;
        courses.push(Course {
            mode,
            tries: or_flaw(&what, tries, &mut flaws).unwrap_or_default(),
            rounds: Vec::new(),
        });
    }
    let plan = common(options.plan, &courses);
    if let Some(plan) = plan {
        rounds(options, &seeds, plan, &mut courses, &mut flaws).await;
    }
    let mut measured = Vec::new();
    for course in courses {
        let mut syncs = None;
        if let Some(plan) = plan.filter(|_| !course.rounds.is_empty()) {
            let what = format!("{}: calls that sync", course.mode.name());
            let counted = count_syncs(options, &seeds, plan, course.mode).await;
            syncs = or_flaw(&what, counted, &mut flaws).flatten();
        }
        let (rounds, mut reports): (Vec<_>, Vec<_>) = course.rounds.into_iter().unzip();
        measured.push(Measured {
            mode: course.mode,
            tries: course.tries,
            rounds,
            syncs,
            report: reports.pop(),
        });
    }
    let switch = switch(options, &seeds).await;
    let switch = or_flaw("the switch", switch, &mut flaws);
    let of = |wanted| measured.iter().find(|one| one.mode == wanted);
    let compare =
        |before, after| -> Option<Evaluation> { Some(evaluate(&figures(of(before)?, of(after)?))) };
    Ok(Outcome {
        command,
        date,
        seconds: began.elapsed().as_secs_f64(),
        machine,
        bytes: options.megabytes * 1_000_000,
        rate: plan.map(|plan| [plan.udp_per_second, plan.http_per_second]),
        switch,
        to_wal: compare(Mode::Rollback, Mode::Durable).context("both have an entry")?,
        to_committed: compare(Mode::Durable, Mode::Committed).context("both have an entry")?,
        from_full: compare(Mode::Full, Mode::Durable),
        modes: measured,
        flaws,
    })
}

fn modes(options: &Options) -> Vec<Mode> {
    let mut modes = vec![Mode::Rollback, Mode::Durable, Mode::Committed];
    if options.full.is_some() {
        modes.push(Mode::Full);
    }
    modes
}

/// What was found; or why nothing was, among the flaws.
fn or_flaw<T>(what: &str, found: Result<T>, flaws: &mut Vec<String>) -> Option<T> {
    found
        .inspect_err(|error| {
            let flaw = format!("{what}: not measured: {error:#}");
            eprintln!("{flaw}");
            flaws.push(flaw);
        })
        .ok()
}

async fn search(options: &Options, seeds: &Seeds, mode: Mode) -> Result<Vec<Try>> {
    let tracker = prepare(options, seeds, mode)?.start().await?;
    capacity::search(&tracker, &options.plan, options.probe).await
}

/// Measures each mode that holds a rate, again and again, in turn.
async fn rounds(
    options: &Options,
    seeds: &Seeds,
    plan: Plan,
    courses: &mut [Course],
    flaws: &mut Vec<String>,
) {
    for round in 0..options.rounds {
        for index in order(round, courses.len()) {
            let course = &mut courses[index];
            let Some(held) = capacity::held(&course.tries) else {
                continue;
            };
            let what = format!("{}: round {}", course.mode.name(), round + 1);
            eprintln!("{what}");
            let too_much = Plan {
                udp_per_second: held.udp_per_second.saturating_mul(TOO_MUCH).min(MOST),
                http_per_second: held.http_per_second,
                ..plan
            };
            let found = measure(options, seeds, plan, too_much, course.mode).await;
            course.rounds.extend(or_flaw(&what, found, flaws));
        }
    }
}

/// Whether everything that must hold does: each mode holds a rate, and nothing went wrong. A
/// comparison that decides nothing is no failure.
#[must_use]
pub fn judge(outcome: &Outcome) -> Judgement {
    let mut judgement = Judgement {
        broken: outcome.flaws.clone(),
        unknown: Vec::new(),
    };
    // One that was not tried at all is a flaw already.
    for one in outcome.modes.iter().filter(|one| !one.tries.is_empty()) {
        let said = format!("{}: no rate was held", one.mode.name());
        match capacity::shown(&one.tries) {
            Verdict::Held => {}
            Verdict::NotHeld => judgement.broken.push(said),
            Verdict::Unknown => judgement.unknown.push(said),
        }
    }
    judgement
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

/// What every mode that holds a rate holds, and less; `None` where none does.
fn common(plan: Plan, courses: &[Course]) -> Option<Plan> {
    let held = courses.iter().filter_map(|one| capacity::held(&one.tries));
    let lowest = held.min_by_key(|one| one.udp_per_second)?;
    Some(Plan {
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
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let failed: OfRound = |round| {
        Some(round.all.counts.failed() as f64 * 1_000.0 / round.all.counts.sent.max(1) as f64)
    };
    #[expect(clippy::cast_precision_loss, reason = "bytes far below 2^52")]
    let resident: OfRound = |round| Some(round.resident as f64 / 1e6);
    let rows: [(&str, Weight, f64, OfRound); 9] = [
        (
            "requests that failed, of 1,000",
            Weight::Essential,
            FAILURES,
            failed,
        ),
        ("announce p99, ms", Weight::Essential, 0.0, |round| {
            round.announces.p99_ms
        }),
        ("announce p50, ms", Weight::Told, 0.0, |round| {
            round.announces.p50_ms
        }),
        ("scrape p99, ms", Weight::Told, 0.0, |round| {
            round.scrapes.p99_ms
        }),
        (
            "database time, ms for 1,000 announces",
            Weight::Told,
            0.0,
            |round| round.database_ms,
        ),
        (
            "tracker CPU, ms for 1,000 answers",
            Weight::Told,
            0.0,
            |round| Some(round.cpu_ms),
        ),
        ("tracker memory, MB", Weight::Told, 0.0, resident),
        (
            "written to disk, bytes an announce",
            Weight::Told,
            0.0,
            |round| Some(round.written),
        ),
        (
            "flushes of the disk, an announce",
            Weight::Told,
            0.0,
            |round| round.flushes,
        ),
    ];
    let mut figures: Vec<Figure> = rows
        .into_iter()
        .map(|(name, weight, least, value)| Figure {
            name: name.to_owned(),
            good: Good::Low,
            weight,
            least,
            before: before.values(value),
            after: after.values(value),
        })
        .collect();
    figures.push(Figure {
        name: "UDP announces/s at most".to_owned(),
        good: Good::High,
        weight: Weight::Essential,
        least: 0.0,
        before: before.at_most(),
        after: after.at_most(),
    });
    figures
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use torrust_tracker_maintenance::evaluation::Decision;

    use super::page::tests::{measured, outcome, round};
    use super::*;
    use crate::experiment::capacity::tests::tried;
    use crate::generator::LATE_MS;

    /// Late, lost, all answered and not: at 1,000 offered in 10 seconds.
    #[test]
    fn what_is_answered_at_most_is_known_unless_the_generator_was_the_limit() {
        for (late_ms, dropped, answered, known, spare) in [
            (2.0 * LATE_MS, 0, 500, true, false),
            (199.0, 10, 500, true, false),
            (201.0, 0, 500, false, false),
            (0.0, 11, 500, false, false),
            (0.0, 0, 979, true, false),
            (0.0, 0, 980, true, true),
            (201.0, 0, 1_000, false, false),
        ] {
            let mut announces = Summary::default();
            announces.counts.sent = 1_000;
            announces.counts.answered = answered;
            announces.answered_per_second = 50.0;
            announces.late_p99_ms = Some(late_ms);
            let found = Saturation::of(100, 10, &announces, dropped);
            let wanted = Saturation {
                offered: 100,
                announces: known.then_some(50.0),
                spare,
            };
            assert_eq!(found, wanted, "{late_ms} {dropped} {answered}");
        }
        let nothing = Saturation::of(100, 10, &Summary::default(), 0);
        assert_eq!(nothing.announces, None);
    }

    /// Round by round: what is left of four decides while two are left, and only then.
    #[test]
    fn a_round_of_which_the_generator_was_the_limit_counts_for_nothing() {
        for limited in 0..=4 {
            let mut after = measured(Mode::Durable, 4, 1.0);
            for round in &mut after.rounds[..limited] {
                round.dropped = 1;
                // It would be worse.
                round.announces.p99_ms = Some(1_000.0);
            }
            let before = measured(Mode::Rollback, 4, 10.0);
            let found = evaluate(&figures(&before, &after)).decision;
            let wanted = if limited <= 2 {
                Decision::Keep
            } else {
                Decision::Undecided
            };
            assert_eq!(found, wanted, "{limited}");
        }
        let mut late = round(1.0);
        assert!(!late.limited());
        late.all.late_p99_ms = Some(LATE_MS + 0.1);
        assert!(late.limited());
    }

    #[test]
    fn one_failure_in_ten_thousand_decides_nothing() {
        for (failed, wanted) in [(1, Decision::Keep), (20, Decision::Revert)] {
            let mut after = measured(Mode::Durable, 4, 1.0);
            for round in &mut after.rounds {
                round.all.counts.unanswered = failed;
                round.all.counts.answered = 10_000 - failed;
            }
            let before = measured(Mode::Rollback, 4, 1.0);
            let found = evaluate(&figures(&before, &after));
            assert_eq!(found.decision, wanted, "{failed}: {found:#?}");
        }
    }

    #[test]
    fn the_common_rate_is_what_every_mode_that_holds_one_holds() {
        let course = |tries| Course {
            mode: Mode::Durable,
            tries,
            rounds: Vec::new(),
        };
        let held = |rate| course(vec![tried(rate, 1_000, 1.0, 0.0)]);
        let none = || course(vec![tried(5, 900, 1.0, 0.0)]);
        let common = |courses: &[Course]| {
            let plan = common(Plan::default(), courses)?;
            Some(plan.udp_per_second)
        };
        assert_eq!(common(&[held(100), held(50)]), Some(30));
        assert_eq!(common(&[held(100), none()]), Some(60));
        assert_eq!(common(&[none(), none()]), None);
        assert_eq!(common(&[]), None);
    }

    #[test]
    fn undecided_is_no_failure_and_no_rate_is_one() {
        let mut undecided = outcome();
        undecided.to_wal.decision = Decision::Undecided;
        assert_eq!(judge(&undecided), Judgement::default());
        for (late, code) in [(0.0, 1), (99.0, 3)] {
            let mut none = outcome();
            none.modes[0].tries = vec![tried(12, 900, 1.0, late)];
            assert_eq!(judge(&none).exit_code(), code, "{late}");
        }
        let mut flawed = outcome();
        flawed.flaws.push("a round: not measured".to_owned());
        assert_eq!(judge(&flawed).broken, ["a round: not measured"]);
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
