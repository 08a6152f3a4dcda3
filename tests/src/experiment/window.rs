//! What a maintenance window does to a tracker under load, beside the procedure it
//! replaces: stop, copy, start.
//!
//! ```text
//!   window    warm up │ before │ run ... its end │ after
//!   stop      warm up │ before │ SIGTERM, cp, start ... it answers │ after
//!   repeated  warm up │ before │ run ... its end │ run ... its end │ ...
//! ```
//!
//! Requests go on at one rate all along: the highest at which the tracker, when it does
//! nothing else, answers all. The rate is found first, in each journal mode.

mod page;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::page::document;
use super::capacity::{self, Try};
use super::machine::Machine;
use super::reading::Reading;
use crate::announce::Torrent;
use crate::completions::Shown;
use crate::database::{self, Seeds};
use crate::generator::{
    ANNOUNCES, Before, Clock, Found, Generator, Kind, Mark, Plan, Report, Summary,
};
use crate::tracker::{Setup, Tracker};
use crate::udp::UdpClient;
use crate::usage::dropped_datagrams;
use crate::{PATIENCE, backups, session};

/// Longest a run may take, verifying and compressing included.
const A_RUN: Duration = Duration::from_secs(900);

/// Size of the database on which the rate is found.
const SMALL: u64 = 30_000_000;

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where databases and backups are put for the while.
    pub directory: PathBuf,
    /// Sizes of the database, in 10^6 bytes.
    pub megabytes: Vec<u64>,
    /// The highest rates, and the rest of the plan.
    pub plan: Plan,
    /// Seconds of load before anything is measured.
    pub warm_up: u64,
    /// Seconds before and after the interruption.
    pub around: u64,
    /// Seconds of each rate that is tried.
    pub probe: u64,
    /// Windows one after the other, judged; `None`: not measured.
    pub repeat: Option<Repeat>,
}

/// Windows one after the other, in WAL.
#[derive(Debug, Clone, Copy)]
pub struct Repeat {
    /// Size of the database, in 10^6 bytes.
    pub megabytes: u64,
    /// How many.
    pub windows: usize,
    /// Seconds before the first that all are compared with.
    pub before: u64,
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
    /// The rates that were tried in each journal mode.
    pub rates: Vec<Rate>,
    /// One for each size, mode and procedure.
    pub cases: Vec<Case>,
    /// Windows one after the other.
    pub repeated: Option<Repeated>,
}

/// Windows one after the other, in WAL, in one load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Repeated {
    /// Size of the database in bytes, when the load began.
    pub bytes: u64,
    /// Seconds before the first.
    pub seconds: usize,
    /// Announces of that time.
    pub before: Summary,
    /// Announces from the beginning of the first window to the end of the last.
    pub during: Summary,
    /// Each window.
    pub windows: Vec<Window>,
    /// The whole load.
    pub report: Report,
}

/// One of several windows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Milliseconds the gate was closed in all.
    pub pause_ms: f64,
    /// Seconds from the beginning of the run until the backup was published.
    pub backup_seconds: f64,
    /// Announces from the second it began in to the one it ended in.
    pub announces: Summary,
}

/// The rates a journal mode was tried with; the last was held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// `wal` or `delete`.
    pub journal: String,
    /// From the highest down.
    pub tries: Vec<Try>,
}

/// One load with one interruption.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Size of the database in bytes, when the load began.
    pub bytes: u64,
    /// `wal` or `delete`.
    pub journal: String,
    /// Before, during, after.
    pub phases: Vec<Phase>,
    /// What was done to the tracker.
    pub interruption: Interruption,
    /// Peers that scrapes counted just before the interruption and just after.
    pub peers: [i64; 2],
    /// Datagrams dropped at the full buffer of the tracker's socket.
    pub dropped_at_tracker: u64,
    /// The whole load.
    pub report: Report,
}

/// A part of a load, in whole seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// `before`, `during` or `after`.
    pub name: String,
    /// Its length.
    pub seconds: usize,
    /// All requests planned for it.
    pub all: Summary,
    /// The announces among them.
    pub announces: Summary,
    /// Processors the tracker kept busy; `None` where it was stopped meanwhile.
    pub tracker: Option<f64>,
    /// Processors that something else than the tracker and the load kept busy.
    pub others: f64,
}

/// What was done to the tracker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Interruption {
    /// A maintenance run.
    Window {
        /// Milliseconds the gate was closed in all.
        pause_ms: f64,
        /// Seconds from ready until the raw copy was durable.
        copy_seconds: f64,
        /// Seconds from the beginning of the run until the backup was published.
        backup_seconds: f64,
        /// Bytes of the backup.
        stored: u64,
        /// What the backup shows of the load.
        shown: Backed,
    },
    /// SIGTERM, `cp`, start.
    Stop {
        /// Seconds from SIGTERM until the process was gone.
        stop_seconds: f64,
        /// Seconds of `cp`, which syncs nothing.
        copy_seconds: f64,
        /// Seconds from the start until a connect was answered.
        start_seconds: f64,
    },
}

/// Completions a backup has, between those it must have and those it can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backed {
    /// Acknowledged before the instant of the backup; each is in it.
    pub acknowledged: u32,
    /// In the backup.
    pub found: u32,
    /// Sent before that instant.
    pub sent: u32,
}

impl From<Shown> for Backed {
    fn from(shown: Shown) -> Self {
        Self {
            acknowledged: shown.acknowledged,
            found: shown.found,
            sent: shown.sent,
        }
    }
}

/// Measures everything.
///
/// # Errors
/// When something cannot be measured: a run that is not done, a backup that does not show
/// its instant, a tracker that does not start again.
pub async fn run(options: &Options, command: String) -> Result<Outcome> {
    let (date, began) = (Utc::now(), Instant::now());
    let machine = Machine::this(&options.directory)?;
    let seeds = Seeds::new(&options.directory)?;
    let mut rates = Vec::new();
    let mut cases = Vec::new();
    let mut repeated = None;
    for journal in ["wal", "delete"] {
        eprintln!("{journal}: the highest rate at which everything is answered");
        let tries = find_rate(options, &seeds, journal).await?;
        let held = tries.last().context("a rate was held")?;
        let plan = Plan {
            udp_per_second: held.udp_per_second,
            http_per_second: held.http_per_second,
            ..options.plan
        };
        for megabytes in &options.megabytes {
            let bytes = megabytes * 1_000_000;
            eprintln!("{journal}: {megabytes} MB, a window");
            cases.push(window(options, &seeds, plan, bytes, journal).await?);
        }
        // The procedure it replaces, on what upstream sets up.
        if journal == "delete" {
            for megabytes in &options.megabytes {
                eprintln!("{journal}: {megabytes} MB, stop, cp, start");
                cases.push(stop(options, &seeds, plan, megabytes * 1_000_000, journal).await?);
            }
        } else if let Some(repeat) = options.repeat {
            let Repeat {
                megabytes, windows, ..
            } = repeat;
            eprintln!("{journal}: {megabytes} MB, {windows} windows");
            repeated = Some(windows_in_turn(options, &seeds, repeat, plan, journal).await?);
        }
        rates.push(Rate {
            journal: journal.to_owned(),
            tries,
        });
    }
    Ok(Outcome {
        command,
        date,
        seconds: began.elapsed().as_secs_f64(),
        machine,
        rates,
        cases,
        repeated,
    })
}

async fn find_rate(options: &Options, seeds: &Seeds, journal: &str) -> Result<Vec<Try>> {
    let setup = setup(&options.directory, journal)?;
    seeds.plant(&setup.database(), SMALL, journal)?;
    let tracker = setup.start().await?;
    capacity::search(&tracker, &options.plan, options.probe).await
}

/// Everything in the directory given, a copy as long as it may take, and what an operator
/// runs: log at its default, zstd, a quick check.
fn setup(directory: &Path, journal: &str) -> Result<Setup> {
    Ok(Setup::new_in(directory)?
        .set("maintenance", "journal_mode", &format!("\"{journal}\""))
        .set("maintenance.gate", "hold_for", "\"90s\""))
}

/// A load, and what was read of the machine at its boundaries.
struct Session {
    generator: Generator,
    marks: Vec<Mark>,
    /// Each with the second it was taken at.
    readings: Vec<(usize, Reading)>,
}

impl Session {
    async fn start(plan: Plan, tracker: &Tracker, grace: Duration) -> Result<Self> {
        let addresses = tracker.addresses;
        Ok(Self {
            generator: Generator::start(plan, addresses.udp, addresses.http, grace).await?,
            marks: Vec::new(),
            readings: Vec::new(),
        })
    }

    fn clock(&self) -> Clock {
        self.generator.clock
    }

    fn mark(&mut self, what: &str) {
        self.marks.push(Mark::new(self.clock().elapsed(), what));
    }

    /// Waits until a whole second, a phase beginning with it, and reads the machine.
    async fn boundary(&mut self, second: u64, tracker: &Tracker) -> Result<()> {
        self.generator.until(Duration::from_secs(second)).await?;
        let reading = Reading::now(&self.clock(), tracker)?;
        self.readings.push((usize::try_from(second)?, reading));
        Ok(())
    }

    /// The next whole second.
    fn next_second(&self) -> u64 {
        self.clock().elapsed().as_secs() + 1
    }
}

/// What was found between each two readings.
fn phases(readings: &[(usize, Reading)], found: &Found) -> Vec<Phase> {
    let mut phases = Vec::new();
    for (name, pair) in ["before", "during", "after"]
        .iter()
        .zip(readings.windows(2))
    {
        let [(from, earlier), (to, later)] = pair else {
            continue;
        };
        let spent = later.since(earlier);
        phases.push(Phase {
            name: (*name).to_owned(),
            seconds: to - from,
            all: found.tally.over(&Kind::ALL, *from..*to),
            announces: found.tally.over(&ANNOUNCES, *from..*to),
            tracker: spent.processors,
            others: spent.others,
        });
    }
    phases
}

async fn window(
    options: &Options,
    seeds: &Seeds,
    plan: Plan,
    bytes: u64,
    journal: &str,
) -> Result<Case> {
    let setup = setup(&options.directory, journal)?;
    seeds.plant(&setup.database(), bytes, journal)?;
    let bytes = size(&setup.database())?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let status = Before::ask(endpoint).await?;
    let mut session = Session::start(plan, &tracker, PATIENCE).await?;
    let marks = status.watch(session.clock());
    session.boundary(options.warm_up, &tracker).await?;
    session
        .boundary(options.warm_up + options.around, &tracker)
        .await?;
    let before = peers(&tracker, &plan).await?;
    let run = endpoint.run(A_RUN).await?;
    ensure!(
        run["outcome"]["kind"] == "done",
        "a run was not done: {run:#}"
    );
    let after = peers(&tracker, &plan).await?;
    let second = session.next_second();
    session.boundary(second, &tracker).await?;
    session.boundary(second + options.around, &tracker).await?;
    session.marks.extend(marks.stop().await?);
    let dropped_at_tracker = dropped_datagrams(&[tracker.addresses.udp.port()])?;
    let (phases, found, report) = finish(session, plan).await?;

    let backup = backups::published(&setup.backups())?;
    let backup = backup.first().context("a backup was published")?;
    let interruption = look_at(backup, &run, &found)?;
    Ok(Case {
        bytes,
        journal: journal.to_owned(),
        phases,
        interruption,
        peers: [before, after],
        dropped_at_tracker,
        report,
    })
}

async fn windows_in_turn(
    options: &Options,
    seeds: &Seeds,
    repeat: Repeat,
    plan: Plan,
    journal: &str,
) -> Result<Repeated> {
    let setup = setup(&options.directory, journal)?;
    seeds.plant(&setup.database(), repeat.megabytes * 1_000_000, journal)?;
    let bytes = size(&setup.database())?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let addresses = tracker.addresses;
    let generator = Generator::start(plan, addresses.udp, addresses.http, PATIENCE).await?;
    let warm_up = Duration::from_secs(options.warm_up);
    generator
        .until(warm_up + Duration::from_secs(repeat.before))
        .await?;
    let mut runs = Vec::new();
    for _ in 0..repeat.windows {
        let from = generator.clock.elapsed().as_secs();
        let run = endpoint.run(A_RUN).await?;
        ensure!(
            run["outcome"]["kind"] == "done",
            "a run was not done: {run:#}"
        );
        let to = generator.clock.elapsed().as_secs() + 1;
        generator.until(Duration::from_secs(to)).await?;
        runs.push((usize::try_from(from)?..usize::try_from(to)?, run));
    }
    let found = generator.stop().await?;
    let over = |seconds| found.tally.over(&ANNOUNCES, seconds);
    let (first, last) = runs.first().zip(runs.last()).context("a window")?;
    let before = usize::try_from(options.warm_up)?..first.0.start;
    let window = |(seconds, run): &(Range<usize>, Value)| -> Result<Window> {
        Ok(Window {
            pause_ms: session::pause_ms(run)?,
            backup_seconds: seconds_of(run)?,
            announces: over(seconds.clone()),
        })
    };
    Ok(Repeated {
        bytes,
        seconds: before.len(),
        before: over(before),
        during: over(first.0.start..last.0.end),
        windows: runs.iter().map(window).collect::<Result<_>>()?,
        report: Report::new(plan, &found, Vec::new()),
    })
}

async fn finish(session: Session, plan: Plan) -> Result<(Vec<Phase>, Found, Report)> {
    let Session {
        generator,
        marks,
        readings,
    } = session;
    let found = generator.stop().await?;
    let report = Report::new(plan, &found, marks);
    Ok((phases(&readings, &found), found, report))
}

/// What a run says of itself, and what its backup has of the load.
fn look_at(backup: &Path, run: &Value, found: &Found) -> Result<Interruption> {
    let backup = backups::Backup::unpack(backup)?;
    let counters = database::completed(&backup.database)?;
    let shown = found.completions.shown(&counters, backup.pinned()?)?;
    let copied = backup.copied_until()? - backup.pinned()?;
    Ok(Interruption::Window {
        pause_ms: session::pause_ms(run)?,
        copy_seconds: copied.to_std()?.as_secs_f64(),
        backup_seconds: seconds_of(run)?,
        stored: backup.manifest["database"]["stored_bytes"]
            .as_u64()
            .context("stored_bytes in the manifest")?,
        shown: shown.into(),
    })
}

/// From its beginning to its end.
fn seconds_of(run: &Value) -> Result<f64> {
    let instant = |name: &str| -> Result<DateTime<Utc>> {
        let text = run[name].as_str();
        Ok(text.with_context(|| format!("{name} of a run"))?.parse()?)
    };
    let length = instant("ended")? - instant("began")?;
    Ok(length.to_std()?.as_secs_f64())
}

async fn stop(
    options: &Options,
    seeds: &Seeds,
    plan: Plan,
    bytes: u64,
    journal: &str,
) -> Result<Case> {
    let setup = setup(&options.directory, journal)?.set("maintenance", "enabled", "false");
    seeds.plant(&setup.database(), bytes, journal)?;
    let bytes = size(&setup.database())?;
    let mut tracker = setup.start().await?;
    let mut session = Session::start(plan, &tracker, Duration::from_secs(5)).await?;
    session.boundary(options.warm_up, &tracker).await?;
    session
        .boundary(options.warm_up + options.around, &tracker)
        .await?;
    let before = peers(&tracker, &plan).await?;

    session.mark("SIGTERM");
    let began = Instant::now();
    tracker.signal(Signal::TERM)?;
    tracker.exited(A_RUN).await?;
    let stop_seconds = began.elapsed().as_secs_f64();
    session.mark("cp");
    let began = Instant::now();
    let copy = setup.home().join("copy.db");
    let copied = Command::new("cp")
        .arg(setup.database())
        .arg(&copy)
        .status()?;
    ensure!(copied.success(), "cp: {copied}");
    let copy_seconds = began.elapsed().as_secs_f64();
    session.mark("start");
    let began = Instant::now();
    let tracker = setup.in_place_of(&tracker.addresses).start().await?;
    UdpClient::connect(tracker.addresses.udp).await?;
    let start_seconds = began.elapsed().as_secs_f64();
    session.mark("answers");
    let after = peers(&tracker, &plan).await?;
    let second = session.next_second();
    session.boundary(second, &tracker).await?;
    session.boundary(second + options.around, &tracker).await?;
    let dropped_at_tracker = dropped_datagrams(&[tracker.addresses.udp.port()])?;
    let (phases, _, report) = finish(session, plan).await?;
    Ok(Case {
        bytes,
        journal: journal.to_owned(),
        phases,
        interruption: Interruption::Stop {
            stop_seconds,
            copy_seconds,
            start_seconds,
        },
        peers: [before, after],
        dropped_at_tracker,
        report,
    })
}

/// Seeders and leechers of all torrents that are announced over UDP.
async fn peers(tracker: &Tracker, plan: &Plan) -> Result<i64> {
    let mut client = UdpClient::connect(tracker.addresses.udp).await?;
    let torrents: Vec<Torrent> = (0..plan.torrents).map(Torrent).collect();
    let found = client.scrape_all(&torrents).await?;
    let peers = found
        .iter()
        .map(|[seeders, _, leechers]| i64::from(seeders + leechers));
    Ok(peers.sum())
}

/// From its metadata: a live database is not opened.
fn size(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path)
        .with_context(|| format!("{}", path.display()))?
        .len())
}
