//! Whether WAL pays: a baseline in the rollback journal, the switch, the same measurement
//! in WAL, and a decision by the rule of the library.
//!
//! ```text
//!   rates      the highest rate each mode holds
//!   rounds     rollback journal │ WAL, durable │ WAL, committed │ WAL, FULL
//!              WAL, FULL │ WAL, committed │ WAL, durable │ rollback journal
//!              ...       one rate that all of them hold, then one that is too much, the same
//!                        for all; in turn, forth and back, as the machine's speed drifts
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

mod figures;
mod measure;
mod page;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use torrust_tracker_maintenance::evaluation::{Evaluation, evaluate};

use self::figures::{OfRound, figures};
use self::measure::{count_syncs, measure, switch};
pub use self::page::document;
use super::capacity::{self, Try, Verdict};
use super::machine::Machine;
use super::{Judgement, order};
use crate::database::Seeds;
use crate::generator::{MOST, Plan, Report, Summary};
use crate::tracker::Setup;

/// Of the highest rate that every mode holds, what the rounds are measured at, in percent:
/// at the limit itself any disturbance makes a queue, and the queue would be measured.
const PART: u32 = 60;

/// Times the highest rate a mode holds, what all modes are offered to see what they answer at
/// most.
const TOO_MUCH: u32 = 3;

/// What a rate may be off by because requests left late or answers were lost, as a part of
/// it: past that it is not known. Where more is offered than can be answered the machine is
/// busy in any case, and a request that leaves some milliseconds late changes no rate.
const OFF: f64 = 0.02;

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

    /// Whether a round has answered all it was offered: the mode can do more than it was seen
    /// to do.
    fn spares(&self) -> bool {
        self.rounds.iter().any(|round| round.most.spare)
    }
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

/// What was answered when more was offered than the modes hold: the same to all of them.
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
    /// Announces of the same seconds that were answered.
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
    let Some(too_much) = too_much(plan, courses) else {
        return;
    };
    for round in 0..options.rounds {
        for index in order(round, courses.len()) {
            let course = &mut courses[index];
            if capacity::held(&course.tries).is_none() {
                continue;
            }
            let what = format!("{}: round {}", course.mode.name(), round + 1);
            eprintln!("{what}");
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

/// What all modes are offered to see what they answer at most: more than the best of them
/// holds, and no more than the generator is meant for. One load for all, or what is compared
/// would be what different loads do to a tracker. `None` where no mode holds a rate.
fn too_much(plan: Plan, courses: &[Course]) -> Option<Plan> {
    let held = || courses.iter().filter_map(|one| capacity::held(&one.tries));
    let udp = held().map(|one| one.udp_per_second).max()?;
    // Asked is about UDP. More connections than it can answer only pile up.
    let http = held().map(|one| one.http_per_second).min()?;
    Some(Plan {
        udp_per_second: udp.saturating_mul(TOO_MUCH).min(MOST),
        http_per_second: http,
        ..plan
    })
}

#[cfg(test)]
mod tests {
    use torrust_tracker_maintenance::evaluation::Decision;

    use super::page::tests::outcome;
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
    fn what_is_too_much_is_the_same_for_all_and_bounded() {
        let course = |udp, http| {
            let mut held = tried(udp, 1_000, 1.0, 0.0);
            held.http_per_second = http;
            Course {
                mode: Mode::Durable,
                tries: vec![held],
                rounds: Vec::new(),
            }
        };
        let offered = |courses: &[Course]| {
            let plan = too_much(Plan::default(), courses)?;
            Some([plan.udp_per_second, plan.http_per_second])
        };
        let (slow, quick) = (|| course(100, 3), || course(2_000, 60));
        assert_eq!(offered(&[slow(), quick()]), Some([6_000, 3]));
        assert_eq!(offered(&[quick(), course(MOST, 300)]), Some([MOST, 60]));
        assert_eq!(offered(&[]), None);
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
}
