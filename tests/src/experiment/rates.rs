//! How fast the tracker and upstream's answer announces: rates, processor time and latency,
//! each beside upstream's in the same round, because a machine's speed drifts.
//!
//! ```text
//!   round    upstream, memory │ ours, memory │ upstream, stored │ ours, stored │ ...   in turn, then again
//!
//!   case     a tracker, an empty database:   a moderate load that waits for nobody ─▶ latency
//!            another, another:               the public tester ─▶ rate, processor time
//!                                              └ a connect every 10 ms ─▶ latency
//!            another, another:               more than it answered, of our own load ─▶ rate
//! ```
//!
//! Upstream is the published program, with its own lock file, built apart and without what
//! `.cargo/config.toml` compiles into `SQLite` for us
//! ([`binaries::upstream_apart`]). Trackers are configured
//! alike, so neither has a `[maintenance]`: the gate is there, and open.
//!
//! What goes wrong with one measurement is a flaw of the outcome, and the others are done all
//! the same.

pub mod case;
mod gate;
mod page;
mod tester;
mod verdict;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aquatic_udp_protocol::Response;
use chrono::{DateTime, Utc};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use self::case::{Case, Program};
pub use self::gate::Entering;
pub use self::page::document;
pub use self::verdict::judge;
use super::machine::Machine;
use super::order;
use super::reading::Reading;
use crate::generator::{Counts, Generator, Kind, Plan};
use crate::load::{self, Load, Record};
use crate::tracker::{Setup, Tracker};
use crate::udp::UdpClient;
use crate::usage::{Usage, flushes};
use crate::{PATIENCE, binaries};

/// How long answers are waited for when the moderate load has ended.
const GRACE: Duration = Duration::from_secs(2);

/// How long a connect is waited for.
const CONNECT: Duration = Duration::from_secs(1);

/// How often there is one.
const CONNECT_EVERY: Duration = Duration::from_millis(10);

/// Of what the public tester was answered, what our own load offers: more than can be
/// answered, and more than the generator is meant for. Where it could not send as much, and
/// was itself the limit, [`Own::is_bound_by_the_load`] says so.
const TIMES: f64 = 3.0;

/// And at least this, requests a second.
const LEAST: f64 = 1_000.0;

/// Answered more than this of what was sent: the tracker could have answered more.
const NEARLY_ALL: f64 = 0.95;

/// Answers lost on their way, in parts of those that arrived, above which as much can be said
/// of the load.
const LOST: f64 = 0.05;

/// What a case takes besides its loads: three starts, the answers waited for, and the
/// tester's making up a million torrents.
const BESIDE: Duration = Duration::from_secs(9);

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where databases are put for the while: on a disk, or syncs cost nothing.
    pub directory: PathBuf,
    /// The tracker; `None`: the one beside this program, built if it is older than its source.
    pub tracker: Option<PathBuf>,
    /// Upstream's; `None`: it is built.
    pub upstream: Option<PathBuf>,
    /// The public load tester.
    pub load_test: PathBuf,
    /// Only cases whose name contains this.
    pub only: String,
    /// How long and how much.
    pub loads: Loads,
}

/// How long and how much the loads are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loads {
    /// How often each case is measured.
    pub rounds: usize,
    /// Seconds of the public tester, in fives.
    pub tester_seconds: u64,
    /// Seconds of each of our own two.
    pub own_seconds: u64,
    /// Announces per second of the moderate one.
    pub moderate: u32,
}

impl Default for Loads {
    fn default() -> Self {
        Self {
            rounds: 3,
            tester_seconds: 10,
            own_seconds: 6,
            moderate: 1_000,
        }
    }
}

impl Loads {
    /// About how long measuring so many cases takes.
    #[must_use]
    pub fn estimate(&self, cases: usize) -> Duration {
        let case = Duration::from_secs(self.tester_seconds + 2 * self.own_seconds) + BESIDE;
        let times = u32::try_from(cases * self.rounds).unwrap_or(u32::MAX);
        case.saturating_mul(times)
    }
}

/// Everything that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The command that measured it.
    pub command: String,
    /// When it began.
    pub date: DateTime<Utc>,
    /// How long it took, without what had to be built.
    pub seconds: f64,
    /// On what.
    pub machine: Machine,
    /// Version of `SQLite` in ours. Upstream's tracker has that of its own lock file.
    pub sqlite: String,
    /// What the public tester says of its version.
    pub tester: String,
    /// Whether the command was given upstream's tracker, and did not build it.
    pub upstream_given: bool,
    /// How long and how much.
    pub loads: Loads,
    /// What our own load sends, but for its rate, which each round has.
    pub plan: Plan,
    /// A pass of the gate; `None` where only some cases were asked for.
    pub entering: Option<Entering>,
    /// In the order they were measured in.
    pub cases: Vec<Measured>,
    /// What went wrong.
    #[serde(default)]
    pub flaws: Vec<String>,
}

impl Outcome {
    /// What was measured of a case; `None` if it was left out.
    fn measured(&self, case: Case) -> Option<&Measured> {
        self.cases.iter().find(|measured| measured.case == case)
    }

    /// The rounds of a case; none if it was left out.
    #[must_use]
    pub fn rounds(&self, case: Case) -> &[Round] {
        match self.measured(case) {
            Some(measured) => &measured.rounds,
            None => &[],
        }
    }

    /// The rounds of a case, with their numbers.
    fn numbered(&self, case: Case) -> impl Iterator<Item = (usize, &Round)> {
        self.measured(case).into_iter().flat_map(Measured::numbered)
    }

    /// What two cases showed in the same rounds.
    fn pairs(&self, one: Case, other: Case) -> Vec<(&Round, &Round)> {
        let mut pairs = Vec::new();
        for (number, round) in self.numbered(one) {
            let same = self.numbered(other).find(|(of, _)| *of == number);
            pairs.extend(same.map(|(_, of_other)| (round, of_other)));
        }
        pairs
    }

    /// Enters a round of a case; of one that failed, why.
    fn enter(&mut self, index: usize, number: usize, found: Result<Round>) {
        let measured = &mut self.cases[index];
        match found {
            Ok(round) => measured.rounds.push(round),
            Err(error) => {
                measured.failed.push(number);
                let what = format!("{}, round {}", measured.case, number + 1);
                self.flaw(&what, &error);
            }
        }
    }

    fn flaw(&mut self, what: &str, error: &anyhow::Error) {
        let flaw = format!("{what}: not measured: {error:#}");
        eprintln!("{flaw}");
        self.flaws.push(flaw);
    }
}

/// One case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Which.
    pub case: Case,
    /// Each measurement.
    pub rounds: Vec<Round>,
    /// Numbers of the rounds in which there is none, as it failed; the first is 0.
    #[serde(default)]
    pub failed: Vec<usize>,
}

impl Measured {
    fn new(case: Case) -> Self {
        Self {
            case,
            rounds: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Each measurement, with the number of its round.
    fn numbered(&self) -> impl Iterator<Item = (usize, &Round)> {
        let done = (0..).filter(move |number| !self.failed.contains(number));
        done.zip(&self.rounds)
    }
}

/// What was measured of a case in a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// Saturated by the public tester.
    pub tester: Tested,
    /// Saturated by our own load.
    pub own: Own,
    /// Announces at the moderate rate: of the first half of the load and of the second, each
    /// for itself, so that a few rounds show how far a tracker is from itself.
    pub moderate: [Latencies; 2],
}

/// A tracker under the public tester, which sends as fast as it is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    /// Announces answered per second.
    pub announces: f64,
    /// All requests answered per second.
    pub responses: f64,
    /// Processor time of the tracker for each of those, in microseconds; `None` if there were
    /// none.
    pub processor_us: Option<f64>,
    /// Connects of a client beside it.
    pub connects: Latencies,
}

/// Latencies of requests, of which each that was not answered counts as long as it was waited
/// for.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// Requests sent.
    pub sent: usize,
    /// Answered as they should be.
    pub answered: usize,
    /// Milliseconds that half of them did not exceed; `None` if none was sent.
    pub p50_ms: Option<f64>,
    /// The same of 99 in 100.
    pub p99_ms: Option<f64>,
}

impl Latencies {
    /// Of all that were sent, of which so many were answered.
    fn of(mut all: Vec<Duration>, answered: usize) -> Self {
        all.sort_unstable();
        Self {
            sent: all.len(),
            answered,
            p50_ms: quantile(&all, 0.5),
            p99_ms: quantile(&all, 0.99),
        }
    }
}

/// In milliseconds.
fn quantile(sorted: &[Duration], share: f64) -> Option<f64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index"
    )]
    let index = (share * sorted.len().saturating_sub(1) as f64).round() as usize;
    let found = sorted.get(index)?;
    Some(found.as_secs_f64() * 1_000.0)
}

/// A tracker under our own load, which offers more than it can answer and does not wait.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Own {
    /// UDP requests per second that were to be sent.
    pub offered: u32,
    /// How long.
    pub seconds: f64,
    /// What became of all requests until then.
    pub all: Counts,
    /// And of the announces.
    pub announces: Counts,
    /// Answers that arrived and were dropped, since the load did not read them in time.
    pub dropped: u64,
    /// Processor time of the tracker for each answer, in microseconds; `None` if there were
    /// none.
    pub processor_us: Option<f64>,
    /// Processors the tracker kept busy.
    pub processors: f64,
    /// Processors that something else than the tracker and the load kept busy.
    pub others: f64,
    /// Flushes the disk did for whomever, for each announce answered; `None` where it counts
    /// none, or there was no answer.
    pub flushes: Option<f64>,
}

impl Own {
    /// Requests sent per second.
    #[must_use]
    pub fn sent_per_second(&self) -> f64 {
        whole(self.all.sent) / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Announces answered per second.
    #[must_use]
    pub fn announces_per_second(&self) -> f64 {
        whole(self.announces.answered) / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Whether the load, and not the tracker, decided how many were answered: it sent little
    /// more than that, or did not read what came.
    #[must_use]
    pub fn is_bound_by_the_load(&self) -> bool {
        let answered = whole(self.all.answered);
        let sent_all_there_was = answered > 0.0 && answered >= NEARLY_ALL * whole(self.all.sent);
        sent_all_there_was || whole(self.dropped) > LOST * answered.max(1.0)
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn whole(value: u64) -> f64 {
    value as f64
}

/// Measures everything, and hands over what there is after each round of a case.
///
/// # Errors
/// When nothing can be measured, or what there is cannot be kept. What goes wrong with one
/// round is in the outcome.
pub async fn run(
    options: &Options,
    command: String,
    keep: impl Fn(&Outcome) -> Result<()>,
) -> Result<Outcome> {
    let cases: Vec<Case> = Case::ALL
        .into_iter()
        .filter(|case| case.to_string().contains(&options.only))
        .collect();
    ensure!(
        !cases.is_empty(),
        "--only {:?}: no case has that in its name; they are: {}",
        options.only,
        Case::ALL.map(|case| case.to_string()).join("; ")
    );
    let tester = tester::version(&options.load_test).await?;
    let programs = Programs::find(options)?;
    let (date, began) = (Utc::now(), Instant::now());
    let machine = Machine::this(&options.directory)?;
    let loads = options.loads;
    eprintln!(
        "{} cases, {} rounds: about {} min",
        cases.len(),
        loads.rounds,
        loads.estimate(cases.len()).as_secs().div_ceil(60)
    );
    let mut outcome = Outcome {
        command,
        date,
        seconds: 0.0,
        machine,
        sqlite: rusqlite::version().to_owned(),
        tester,
        upstream_given: options.upstream.is_some(),
        loads,
        plan: plan(0),
        entering: None,
        cases: cases.into_iter().map(Measured::new).collect(),
        flaws: Vec::new(),
    };
    if options.only.is_empty() {
        match tokio::task::spawn_blocking(Entering::measure).await? {
            Ok(entering) => outcome.entering = Some(entering),
            Err(error) => outcome.flaw("a pass of the open gate", &error),
        }
    }
    for number in 0..loads.rounds {
        for index in order(number, outcome.cases.len()) {
            let case = outcome.cases[index].case;
            eprintln!("round {} of {}: {case}", number + 1, loads.rounds);
            let found = measure(options, &programs, case).await;
            outcome.enter(index, number, found);
            outcome.seconds = began.elapsed().as_secs_f64();
            keep(&outcome)?;
        }
    }
    Ok(outcome)
}

/// Where the two trackers are.
struct Programs {
    ours: PathBuf,
    upstream: PathBuf,
}

impl Programs {
    /// Builds what is not given.
    fn find(options: &Options) -> Result<Self> {
        Ok(Self {
            ours: match &options.tracker {
                Some(given) => given.clone(),
                None => binaries::path(binaries::TRACKER)?,
            },
            upstream: match &options.upstream {
                Some(given) => given.clone(),
                None => binaries::upstream_apart()?,
            },
        })
    }
}

async fn measure(options: &Options, programs: &Programs, case: Case) -> Result<Round> {
    let moderate = {
        let tracker = start(options, programs, case).await?;
        moderate(options.loads, &tracker).await?
    };
    // Another process and database each time, as the load before has left torrents behind.
    let tested = {
        let tracker = start(options, programs, case).await?;
        tested(options, &tracker).await?
    };
    let tracker = start(options, programs, case).await?;
    let own = saturated(options, &tracker, offer(tested.responses)).await?;
    Ok(Round {
        tester: tested,
        own,
        moderate,
    })
}

async fn start(options: &Options, programs: &Programs, case: Case) -> Result<Tracker> {
    let (program, path) = match case.program {
        Program::Upstream => (binaries::UPSTREAM, &programs.upstream),
        Program::Ours => (binaries::TRACKER, &programs.ours),
    };
    // As upstream's own benchmarking configuration, but for what the case is about.
    let setup = Setup::without_maintenance_in(program, &options.directory)?
        .program_at(path)
        .set(
            "logging",
            "threshold",
            &format!("\"{}\"", case.threshold.name()),
        )
        .set("core", "tracker_usage_statistics", "false")
        .set("core.tracker_policy", "remove_peerless_torrents", "false")
        .set(
            "core.tracker_policy",
            "persistent_torrent_completed_stat",
            &case.storage.persists().to_string(),
        );
    // Before the tracker has it open.
    Connection::open(setup.database())?.execute_batch(&format!(
        "PRAGMA journal_mode = {}; VACUUM",
        case.storage.journal()
    ))?;
    setup.start_quiet().await
}

/// Announces at the moderate rate, from the load that waits for nobody.
async fn moderate(loads: Loads, tracker: &Tracker) -> Result<[Latencies; 2]> {
    let plan = load::Plan {
        udp_per_second: loads.moderate,
        http_per_second: 0,
        ..load::Plan::default()
    };
    let load = Load::start(plan, tracker.addresses.udp, tracker.addresses.http).await?;
    let wanted = usize::try_from(u64::from(loads.moderate) * loads.own_seconds)?;
    let within = PATIENCE + Duration::from_secs(loads.own_seconds);
    load.until(within, |counts| counts.sent >= wanted).await?;
    let account = load.stop(GRACE).await?;
    Ok(halves(account.records))
}

/// Of what was sent first, and of the other half.
fn halves(mut first: Vec<Record>) -> [Latencies; 2] {
    first.sort_by_key(|record| record.sent);
    let second = first.split_off(first.len() / 2);
    [first, second].map(|half| {
        let answered = |record: &&Record| record.outcome == load::Outcome::Answered;
        let count = half.iter().filter(answered).count();
        // Of an announce without an answer, how long it was waited for.
        let all = half.iter().map(|record| record.latency);
        Latencies::of(all.collect(), count)
    })
}

async fn tested(options: &Options, tracker: &Tracker) -> Result<Tested> {
    let seconds = options.loads.tester_seconds;
    let address = tracker.addresses.udp;
    let before = processor_time(tracker)?;
    let (loaded, load) = oneshot::channel();
    let (report, connects) = tokio::try_join!(
        tester::run(&options.load_test, address, seconds, loaded),
        connects(address, load, Duration::from_secs(seconds)),
    )?;
    let spent = processor_time(tracker)?.saturating_sub(before);
    let answered = report.responses * report.seconds;
    Ok(Tested {
        announces: report.announces,
        responses: report.responses,
        processor_us: (answered > 0.0).then(|| spent.as_secs_f64() * 1e6 / answered),
        connects,
    })
}

/// Of the tracker, since it started.
fn processor_time(tracker: &Tracker) -> Result<Duration> {
    let process = u32::try_from(tracker.pid()?.as_raw_nonzero().get())?;
    Ok(Usage::of(process)?.cpu)
}

/// Connects once there is load, one every [`CONNECT_EVERY`] whatever comes back.
async fn connects(
    tracker: SocketAddr,
    load: oneshot::Receiver<()>,
    during: Duration,
) -> Result<Latencies> {
    let mut client = UdpClient::connect(tracker).await?;
    load.await.context("the load tester did not begin")?;
    client.patience = CONNECT;
    let began = Instant::now();
    let (mut sent, mut taken) = (HashMap::new(), Vec::new());
    let mut next = began;
    while next.duration_since(began) < during {
        answers_until(next, &client, &mut sent, &mut taken).await;
        let transaction = client.post_connect().await?;
        sent.insert(transaction.0.get(), Instant::now());
        next += CONNECT_EVERY;
    }
    answers_until(next + CONNECT, &client, &mut sent, &mut taken).await;
    let answered = taken.len();
    taken.extend(sent.values().map(|_| CONNECT));
    Ok(Latencies::of(taken, answered))
}

/// Takes answers in until an instant.
async fn answers_until(
    until: Instant,
    client: &UdpClient,
    sent: &mut HashMap<i32, Instant>,
    taken: &mut Vec<Duration>,
) {
    loop {
        let Ok(reply) = timeout_at(until.into(), client.reply()).await else {
            return;
        };
        if let Ok(Response::Connect(reply)) = reply
            && let Some(at) = sent.remove(&reply.transaction_id.0.get())
        {
            taken.push(at.elapsed());
        }
    }
}

/// What our own load offers a tracker that answered the public tester so many requests a
/// second.
fn offer(responses: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate of at least 1,000; more than fit would be none"
    )]
    let offered = (responses * TIMES).max(LEAST) as u32;
    offered
}

fn plan(udp_per_second: u32) -> Plan {
    Plan {
        udp_per_second,
        http_per_second: 0,
        ..Plan::default()
    }
}

/// Counts what is answered until the end, and not what comes after: a second that is planned
/// is no second where the load cannot send all that was to be sent in it.
async fn saturated(options: &Options, tracker: &Tracker, offered: u32) -> Result<Own> {
    let addresses = tracker.addresses;
    let generator =
        Generator::start(plan(offered), addresses.udp, addresses.http, Duration::ZERO).await?;
    let read = || -> Result<_> {
        let reading = Reading::now(&generator.clock, tracker)?;
        Ok((reading, flushes(&options.directory)))
    };
    let (before, flushed_before) = read()?;
    generator
        .until(Duration::from_secs(options.loads.own_seconds))
        .await?;
    let (after, flushed_after) = read()?;
    let seconds = generator.clock.elapsed().as_secs_f64();
    let found = generator.stop().await?;

    let spent = after.since(&before);
    let cpu = spent.tracker.context("one process was measured")?;
    let all = found.tally.total(&Kind::ALL).counts;
    let announces = found.tally.total(&[Kind::UdpAnnounce]).counts;
    let per = |amount: f64, count: u64| (count > 0).then(|| amount / whole(count));
    // A disk that counts none has counted none in all its life.
    let flushed = flushed_after
        .filter(|count| *count > 0)
        .zip(flushed_before)
        .map(|(after, before)| whole(after.saturating_sub(before)));
    Ok(Own {
        offered,
        seconds,
        all,
        announces,
        dropped: found.health.dropped,
        processor_us: per(cpu.as_secs_f64() * 1e6, all.answered),
        processors: spent.processors.context("one process was measured")?,
        others: spent.others,
        flushes: flushed.and_then(|flushed| per(flushed, announces.answered)),
    })
}

#[cfg(test)]
mod tests;
