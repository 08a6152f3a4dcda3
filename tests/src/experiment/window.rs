//! What a maintenance window does to a tracker under load, beside the procedure it
//! replaces: stop, copy, start.
//!
//! ```text
//!   window    warm up │ before │ (peers) │ run ... its end │ (peers) │ after
//!   stop      warm up │ before │ (peers) │ SIGTERM, cp, start ... it answers, peers │ after
//!   repeated  warm up │ before │ run ... its end │ run ... its end │ ...
//! ```
//!
//! The tracker bears nothing in one phase that it does not in the others: its status is asked
//! for as often in all of them, and peers are counted in seconds that belong to none.
//!
//! What goes wrong with one case is a result of it, and the others are measured all the same.
//!
//! Requests go on at one rate all along: the highest at which the tracker, when it does
//! nothing else, answers all. The rate is found first, in each journal mode.

mod page;
mod session;
mod verdict;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::page::document;
use self::session::Session;
pub use self::verdict::{Holds, Verdict, judge, verdicts};
use super::capacity::{self, Try};
use super::machine::Machine;
use crate::announce::Torrent;
use crate::completions::Shown;
use crate::database::{self, Seeds};
use crate::endpoint::Endpoint;
use crate::generator::{ANNOUNCES, Before, Found, Generator, Marks, Plan, Report, Summary};
use crate::tracker::{Addresses, Setup, Tracker};
use crate::udp::UdpClient;
use crate::usage::dropped_datagrams;
use crate::{PATIENCE, backups};

/// Longest a run may take, verifying and compressing included.
const A_RUN: Duration = Duration::from_secs(900);

/// How often the status is asked for, whether a run goes on or not: seldom enough to cost the
/// tracker nothing beside the load.
const LOOK: Duration = Duration::from_millis(250);

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
    /// What could not be measured.
    #[serde(default)]
    pub lost: Vec<Lost>,
}

impl Outcome {
    fn enter(&mut self, what: &str, case: Result<Case>) {
        match case {
            Ok(case) => self.cases.push(case),
            Err(error) => self.lose(what, &error),
        }
    }

    fn lose(&mut self, what: &str, error: &anyhow::Error) {
        let why = format!("{error:#}");
        eprintln!("{what}: not measured: {why}");
        self.lost.push(Lost {
            what: what.to_owned(),
            why,
        });
    }
}

/// A measurement that came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Which.
    pub what: String,
    /// Why.
    pub why: String,
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
    /// Milliseconds the gate was closed in all; `None` if the run does not say.
    pub pause_ms: Option<f64>,
    /// Seconds from the beginning of the run until the backup was published.
    pub backup_seconds: Option<f64>,
    /// Why it is no window as it should be.
    #[serde(default)]
    pub flaw: Option<String>,
    /// Announces from the second it began in to the one it ended in.
    pub announces: Summary,
}

/// The rates a journal mode was tried with; [`capacity::held`] is the one that was held.
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
    /// Peers that scrapes counted just before the interruption and just after; `None` of a
    /// tracker that is gone.
    pub peers: [Option<i64>; 2],
    /// What must not be: a run that is not done, a backup that does not show its instant, a
    /// tracker that does not start again.
    #[serde(default)]
    pub flaws: Vec<String>,
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
        /// Milliseconds the gate was closed in all; `None`, as all of these, of a run that has
        /// a flaw and does not say.
        pause_ms: Option<f64>,
        /// Seconds from ready until the raw copy was durable.
        copy_seconds: Option<f64>,
        /// Seconds from the beginning of the run until the backup was published.
        backup_seconds: Option<f64>,
        /// Bytes of the backup.
        stored: Option<u64>,
        /// What the backup shows of the load.
        shown: Option<Backed>,
    },
    /// SIGTERM, `cp`, start.
    Stop {
        /// Seconds from SIGTERM until the process was gone.
        stop_seconds: f64,
        /// Seconds of `cp`, which syncs nothing.
        copy_seconds: f64,
        /// Seconds from the start until a connect was answered; `None` if none was.
        start_seconds: Option<f64>,
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

/// Measures everything, and hands over what there is after each case.
///
/// # Errors
/// When nothing can be measured, or what there is cannot be kept. What goes wrong with one
/// case is in the outcome.
pub async fn run(
    options: &Options,
    command: String,
    keep: impl Fn(&Outcome) -> Result<()>,
) -> Result<Outcome> {
    let began = Instant::now();
    let mut outcome = Outcome {
        command,
        date: Utc::now(),
        seconds: 0.0,
        machine: Machine::this(&options.directory)?,
        rates: Vec::new(),
        cases: Vec::new(),
        repeated: None,
        lost: Vec::new(),
    };
    let seeds = Seeds::new(&options.directory)?;
    let kept = |outcome: &mut Outcome| {
        outcome.seconds = began.elapsed().as_secs_f64();
        keep(outcome)
    };
    for journal in ["wal", "delete"] {
        let Some(plan) = rate(options, &seeds, journal, &mut outcome).await else {
            kept(&mut outcome)?;
            continue;
        };
        for megabytes in &options.megabytes {
            let what = format!("{journal}: {megabytes} MB, a window");
            eprintln!("{what}");
            let case = window(options, &seeds, plan, megabytes * 1_000_000, journal).await;
            outcome.enter(&what, case);
            kept(&mut outcome)?;
        }
        // The procedure it replaces, on what upstream sets up.
        if journal == "delete" {
            for megabytes in &options.megabytes {
                let what = format!("{journal}: {megabytes} MB, stop, cp, start");
                eprintln!("{what}");
                let case = stop(options, &seeds, plan, megabytes * 1_000_000, journal).await;
                outcome.enter(&what, case);
                kept(&mut outcome)?;
            }
        } else if let Some(repeat) = options.repeat {
            let Repeat {
                megabytes, windows, ..
            } = repeat;
            let what = format!("{journal}: {megabytes} MB, {windows} windows");
            eprintln!("{what}");
            match windows_in_turn(options, &seeds, repeat, plan, journal).await {
                Ok(repeated) => outcome.repeated = Some(repeated),
                Err(error) => outcome.lose(&what, &error),
            }
            kept(&mut outcome)?;
        }
    }
    Ok(outcome)
}

/// The load of a journal mode: the highest rate that was held, if one was.
async fn rate(
    options: &Options,
    seeds: &Seeds,
    journal: &str,
    outcome: &mut Outcome,
) -> Option<Plan> {
    let what = format!("{journal}: the highest rate at which everything is answered");
    eprintln!("{what}");
    let tries = match find_rate(options, seeds, journal).await {
        Ok(tries) => tries,
        Err(error) => {
            outcome.lose(&what, &error);
            return None;
        }
    };
    let plan = capacity::held(&tries).map(|held| Plan {
        udp_per_second: held.udp_per_second,
        http_per_second: held.http_per_second,
        ..options.plan
    });
    outcome.rates.push(Rate {
        journal: journal.to_owned(),
        tries,
    });
    plan
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

async fn window(
    options: &Options,
    seeds: &Seeds,
    plan: Plan,
    bytes: u64,
    journal: &str,
) -> Result<Case> {
    let setup = setup(&options.directory, journal)?;
    let bytes = seeds.plant(&setup.database(), bytes, journal)?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let status = Before::ask(endpoint).await?;
    let mut session = Session::start(plan, &tracker, PATIENCE).await?;
    let marks = status.watch_every(LOOK, session.clock());
    session
        .phase("before", options.warm_up, options.around, &tracker)
        .await?;
    let before = peers(&tracker, &plan).await?;
    let begins = session.boundary(session.next_second(), &tracker).await?;
    let run = a_run(endpoint, &marks).await;
    let ends = session.boundary(session.next_second(), &tracker).await?;
    session.span("during", &begins, &ends)?;
    let after = peers(&tracker, &plan).await?;
    let second = session.next_second();
    session
        .phase("after", second, options.around, &tracker)
        .await?;
    session.marks.extend(marks.stop().await?);
    let dropped_at_tracker = dropped_datagrams(&[tracker.addresses.udp.port()])?;
    let (phases, found, report) = session.finish(plan).await?;
    let (interruption, flaws) = look_at(&setup.backups(), run, &found);
    Ok(Case {
        bytes,
        journal: journal.to_owned(),
        phases,
        interruption,
        peers: [Some(before), Some(after)],
        flaws,
        dropped_at_tracker,
        report,
    })
}

/// Has a run done, and asks for nothing but what is looked at anyhow; its entry in the status.
async fn a_run(endpoint: Endpoint, marks: &Marks) -> Result<Value> {
    let run = endpoint.start_run_asking(LOOK).await?;
    marks.ended(&run, A_RUN).await
}

async fn windows_in_turn(
    options: &Options,
    seeds: &Seeds,
    repeat: Repeat,
    plan: Plan,
    journal: &str,
) -> Result<Repeated> {
    let setup = setup(&options.directory, journal)?;
    let bytes = seeds.plant(&setup.database(), repeat.megabytes * 1_000_000, journal)?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let status = Before::ask(endpoint).await?;
    let addresses = tracker.addresses;
    let generator = Generator::start(plan, addresses.udp, addresses.http, PATIENCE).await?;
    let marks = status.watch_every(LOOK, generator.clock);
    let warm_up = Duration::from_secs(options.warm_up);
    generator
        .until(warm_up + Duration::from_secs(repeat.before))
        .await?;
    let mut runs = Vec::new();
    for _ in 0..repeat.windows {
        let from = generator.clock.elapsed().as_secs();
        let run = a_run(endpoint, &marks).await;
        let to = generator.clock.elapsed().as_secs() + 1;
        generator.until(Duration::from_secs(to)).await?;
        runs.push((usize::try_from(from)?..usize::try_from(to)?, run));
    }
    // They would hide the lines: there is a row of each window.
    marks.stop().await?;
    let found = generator.stop().await?;
    let over = |seconds| found.tally.over(&ANNOUNCES, seconds);
    let (first, last) = runs.first().zip(runs.last()).context("a window")?;
    let before = usize::try_from(options.warm_up)?..first.0.start;
    let during = first.0.start..last.0.end;
    let windows = runs.into_iter().map(|(seconds, run)| {
        let (run, flaw) = done(run);
        Window {
            pause_ms: run["pause_ms"].as_f64(),
            backup_seconds: seconds_of(&run).ok(),
            flaw,
            announces: over(seconds),
        }
    });
    Ok(Repeated {
        bytes,
        seconds: before.len(),
        windows: windows.collect(),
        before: over(before),
        during: over(during),
        report: Report::new(plan, &found, Vec::new()),
    })
}

/// A run's entry, null if there is none, and what is wrong with it unless it is done.
fn done(run: Result<Value>) -> (Value, Option<String>) {
    match run {
        Ok(run) if run["outcome"]["kind"] == "done" => (run, None),
        Ok(run) => {
            let flaw = format!("a run was not done: {}", run["outcome"]);
            (run, Some(flaw))
        }
        Err(error) => (Value::Null, Some(format!("a run did not end: {error:#}"))),
    }
}

/// What a run says of itself, what its backup has of the load, and what is wrong with either.
fn look_at(catalogue: &Path, run: Result<Value>, found: &Found) -> (Interruption, Vec<String>) {
    let (run, flaw) = done(run);
    let mut flaws: Vec<String> = flaw.into_iter().collect();
    // Only a run that is done has published.
    let backup = if flaws.is_empty() {
        look_at_backup(catalogue, found, &mut flaws)
            .inspect_err(|error| flaws.push(format!("the backup is not good: {error:#}")))
            .ok()
    } else {
        None
    };
    let interruption = Interruption::Window {
        pause_ms: run["pause_ms"].as_f64(),
        copy_seconds: backup.as_ref().map(|backup| backup.copy_seconds),
        backup_seconds: seconds_of(&run).ok(),
        stored: backup.as_ref().map(|backup| backup.stored),
        shown: backup.and_then(|backup| backup.shown),
    };
    (interruption, flaws)
}

/// What is in a backup.
struct Contents {
    copy_seconds: f64,
    stored: u64,
    /// `None` if it does not show its instant, which is a flaw.
    shown: Option<Backed>,
}

fn look_at_backup(catalogue: &Path, found: &Found, flaws: &mut Vec<String>) -> Result<Contents> {
    let published = backups::published(catalogue)?;
    let newest = published.last().context("none was published")?;
    let backup = backups::Backup::unpack(newest)?;
    let counters = database::completed(&backup.database)?;
    let shown = found.completions.shown(&counters, backup.pinned()?);
    let copied = backup.copied_until()? - backup.pinned()?;
    Ok(Contents {
        copy_seconds: copied.to_std()?.as_secs_f64(),
        stored: backup.manifest["database"]["stored_bytes"]
            .as_u64()
            .context("stored_bytes in the manifest")?,
        shown: shown
            .inspect_err(|error| {
                flaws.push(format!("the backup does not show its instant: {error:#}"));
            })
            .ok()
            .map(Backed::from),
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
    let bytes = seeds.plant(&setup.database(), bytes, journal)?;
    let mut tracker = setup.start().await?;
    let mut session = Session::start(plan, &tracker, Duration::from_secs(5)).await?;
    session
        .phase("before", options.warm_up, options.around, &tracker)
        .await?;
    let before = peers(&tracker, &plan).await?;
    let begins = session.boundary(session.next_second(), &tracker).await?;

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
    let again = start_again(&setup, &tracker.addresses).await;
    let took = began.elapsed().as_secs_f64();
    let (mut start_seconds, mut after, mut flaws) = (None, None, Vec::new());
    // Of one that does not start again there is no phase after, and none during that ends.
    let dropped_at_tracker = match &again {
        Ok(tracker) => {
            session.mark("answers");
            start_seconds = Some(took);
            after = Some(peers(tracker, &plan).await?);
            let ends = session.boundary(session.next_second(), tracker).await?;
            session.span("during", &begins, &ends)?;
            let second = session.next_second();
            session
                .phase("after", second, options.around, tracker)
                .await?;
            dropped_datagrams(&[tracker.addresses.udp.port()])?
        }
        Err(error) => {
            flaws.push(format!("the tracker did not start again: {error:#}"));
            0
        }
    };
    let (phases, _, report) = session.finish(plan).await?;
    Ok(Case {
        bytes,
        journal: journal.to_owned(),
        phases,
        interruption: Interruption::Stop {
            stop_seconds,
            copy_seconds,
            start_seconds,
        },
        peers: [Some(before), after],
        flaws,
        dropped_at_tracker,
        report,
    })
}

/// Until it answers.
async fn start_again(setup: &Setup, addresses: &Addresses) -> Result<Tracker> {
    let tracker = setup.clone().in_place_of(addresses).start().await?;
    UdpClient::connect(tracker.addresses.udp).await?;
    Ok(tracker)
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

#[cfg(test)]
mod tests {
    use anyhow::anyhow;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_that_is_not_done_is_a_flaw_and_says_what_it_can() {
        let run = |kind: &str| json!({ "pause_ms": 3.0, "outcome": { "kind": kind } });
        assert_eq!(done(Ok(run("done"))), (run("done"), None));
        let (entry, flaw) = done(Ok(run("would_not_fit")));
        assert_eq!(entry["pause_ms"], 3.0);
        assert!(flaw.is_some_and(|flaw| flaw.contains("would_not_fit")));
        let (entry, flaw) = done(Err(anyhow!("no answer")));
        assert_eq!(entry, Value::Null);
        assert!(flaw.is_some_and(|flaw| flaw.contains("no answer")));
    }

    #[test]
    fn what_could_not_be_measured_does_not_take_the_rest_along() {
        let mut outcome = page::tests::outcome();
        let cases = outcome.cases.len();
        outcome.enter("the first", Err(anyhow!("the cause").context("the step")));
        let case = outcome.cases[0].clone();
        outcome.enter("the second", Ok(case));
        assert_eq!(outcome.cases.len(), cases + 1);
        let lost = outcome.lost.last().expect("one was lost");
        assert_eq!(
            (lost.what.as_str(), lost.why.as_str()),
            ("the first", "the step: the cause")
        );
    }
}
