//! `evaluate-wal`: whether WAL pays, found out on the tracker that serves: a baseline on the
//! rollback journal, the switch, the same again in WAL, and a decision.
//!
//! What is to be done next is decided in [`course`], which is pure; the one loop here acts on it,
//! and keeps what was measured in a file, so that it can be ended and started again over weeks.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};
use tokio::time::sleep_until;
use torrust_tracker_maintenance::disk::{self, Disk, Lock};
use torrust_tracker_maintenance::evaluation::{Decision, Difference, Evaluation, Weight};

use self::course::{Action, Course, Event, FORMAT, Kept, Line, Moment, Phase, Side, Step};
use crate::client::{self, Client, block_on};
use crate::configuration::Configuration;
use crate::exit::{Answer, Exit, Failure};
use crate::signals::Signals;
use crate::table::{self, Table};
use crate::units;
use crate::verify::instant;

mod course;
mod figures;
#[cfg(test)]
mod testing;

/// What the state file is called, unless it is named.
const STATE: &str = "evaluate-wal.json";

/// More bytes than a state file has.
const STATE_LIMIT: u64 = 64 << 20;

/// How it is decided, in a sentence.
const RULE: &str = "go back if a figure that decides is clearly worse, else keep; clearly: compared \
                    with the slices before at the same time of day, by more than a tenth and by \
                    more than the noise; undecided if the sides share too few hours of the day, or \
                    if one was asked for more than a third more than the other";

/// Find out on the running tracker whether WAL pays: baseline, switch, comparison, decision.
///
/// Takes weeks, and may be ended and started again at any time: what was measured is in a file.
#[derive(clap::Args)]
pub struct Arguments {
    /// How long each measurement takes [default: 1h].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    slice: Option<Duration>,
    /// For how long the tracker is measured before the switch [default: 7d].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    baseline: Option<Duration>,
    /// For how long after it [default: 7d].
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    comparison: Option<Duration>,
    /// Begin a run as soon as the baseline is complete, rather than to wait for the next window.
    #[arg(long)]
    now: bool,
    /// Where to keep what was measured [default: `evaluate-wal.json` beside the database of the
    /// configuration, else in the current directory].
    #[arg(long, value_name = "PATH")]
    state: Option<PathBuf>,
    /// Print what was found so far; measure nothing, order nothing.
    #[arg(long, conflicts_with_all = ["slice", "baseline", "comparison", "now"])]
    report: bool,
}

/// The file of an evaluation.
struct Store {
    path: PathBuf,
    disk: Disk,
}

/// Says what goes on, on standard error.
struct Log {
    json: bool,
}

impl Arguments {
    pub fn carry_out(self, configuration: &Configuration, json: bool) -> Result<Answer, Failure> {
        let store = Store {
            path: self.state_path(configuration),
            disk: Disk::default(),
        };
        if self.report {
            let kept = store.read()?.ok_or_else(|| store.missing())?;
            return Ok(answer(&kept, &store.path));
        }
        let client = configuration.client()?;
        let log = Log { json };
        block_on(async {
            // Listened for before there is anything to lose.
            let signals = Signals::listen()?;
            let _lock = store.lock()?;
            let kept = self.begin(&client, &store).await?;
            if kept.phase != Phase::Decided {
                log.begins(&kept, &store.path);
            }
            let course = Course::new(kept, self.now);
            let again = self.again(&store.path, configuration);
            let kept = follow(course, &client, &store, &log, signals, &again).await?;
            Ok(answer(&kept, &store.path))
        })
    }

    fn state_path(&self, configuration: &Configuration) -> PathBuf {
        if let Some(path) = &self.state {
            return path.clone();
        }
        let database = configuration.database().ok().and_then(Result::ok);
        let beside = database.as_deref().map(disk::parent);
        // That of a container, say, is not here.
        let beside = beside.filter(|directory| directory.is_dir());
        beside.map_or_else(|| PathBuf::from(STATE), |directory| directory.join(STATE))
    }

    /// What is typed to go on: as this was, but for the spans, which are in the file.
    fn again(&self, path: &Path, configuration: &Configuration) -> String {
        let mut words = vec!["torrust-maintenance".to_owned()];
        words.extend(configuration.given());
        words.push("evaluate-wal".to_owned());
        if self.now {
            words.push("--now".to_owned());
        }
        words.extend(["--state".to_owned(), path.display().to_string()]);
        let quoted: Vec<String> = words.iter().map(|word| shell_word(word)).collect();
        quoted.join(" ")
    }

    /// What to go on from: what is in the file, else a new beginning, if it makes sense.
    async fn begin(&self, client: &Client, store: &Store) -> Result<Kept, Failure> {
        let plan = |known| course::plan(known, self.slice, self.baseline, self.comparison);
        let endpoint = client.endpoint().to_string();
        if let Some(mut kept) = store.read()? {
            if kept.tracker.endpoint != endpoint {
                let message = format!(
                    "what was measured is of the tracker at {}, and not of that at {endpoint}; if \
                     it has moved, write so in {}, else name another file with --state",
                    kept.tracker.endpoint,
                    store.path.display()
                );
                return Err(Failure::new(Exit::Usage, "another_tracker", message));
            }
            kept.change(plan(Some(kept.plan))?, self.baseline.is_some())?;
            if kept.phase != Phase::Decided {
                match client.lets_in().await {
                    // It is waited for.
                    Err(error) if may_pass(&error) => {}
                    tried => tried?,
                }
            }
            // With what is wanted now; and whether it can be is known at once.
            store.write(&kept)?;
            return Ok(kept);
        }
        let plan = plan(None)?;
        let status = client.status().await?;
        let kept = Kept::begin(&status, endpoint, plan, moment().utc)?;
        // A wrong token is to be known now, and not when the baseline is complete.
        client.lets_in().await?;
        store.write(&kept)?;
        Ok(kept)
    }
}

/// Acts on what the course says until it has ended.
async fn follow(
    course: Course,
    client: &Client,
    store: &Store,
    log: &Log,
    mut signals: Signals,
    again: &str,
) -> Result<Kept, Failure> {
    let mut saved = course.kept.clone();
    let mut unsaved = false;
    let now = moment().now;
    let mut step = match course.kept.phase {
        Phase::Decided => return Ok(course.kept),
        Phase::Baseline | Phase::Switching | Phase::Comparing => Step {
            course,
            action: Action::Look(now),
            says: Vec::new(),
        },
    };
    loop {
        let Step {
            course,
            action,
            says,
        } = step;
        // Kept before it is said.
        if course.kept != saved {
            match store.write(&course.kept) {
                Ok(()) => {
                    saved = course.kept.clone();
                    unsaved = false;
                }
                // What is in memory is not lost yet, and a full disk may have room again.
                Err(failure) if !unsaved => {
                    unsaved = true;
                    log.warn(&format!("{}; it is tried again", failure.message));
                }
                Err(_) => {}
            }
        }
        for line in &says {
            log.say(line);
        }
        if let Action::End(ended) = &action {
            ended.clone()?;
            return Ok(course.kept);
        }
        let event = tokio::select! {
            biased;
            why = signals.next() => return Err(interrupted(&course.kept, &store.path, again, why)),
            event = act(client, &action) => event,
        };
        step = course.step(event, moment());
    }
}

async fn act(client: &Client, action: &Action) -> Event {
    match action {
        Action::Look(at) => {
            sleep_until((*at).into()).await;
            match client.status().await {
                Ok(status) => Event::Seen(Box::new(status)),
                Err(error) => Event::Away(error.into()),
            }
        }
        Action::Order => match client.order_wal().await {
            Ok(ordered) => Event::Ordered(Ok(ordered.message)),
            Err(error) if may_pass(&error) => Event::Away(error.into()),
            Err(error) => Event::Ordered(Err(error.into())),
        },
        Action::Begin => match client.start().await {
            Ok(run) => Event::Begun(Ok(run)),
            Err(error) if may_pass(&error) => Event::Away(error.into()),
            Err(error) => Event::Begun(Err(error.into())),
        },
        // Whoever acts looks at this first.
        Action::End(_) => std::future::pending().await,
    }
}

/// Whether it may be another time of itself: a tracker that is started again, or is busy.
fn may_pass(error: &client::Error) -> bool {
    match error {
        client::Error::Refused { status, .. } => *status >= 500,
        client::Error::NotAllowed { .. } => false,
        client::Error::NotRunning { .. }
        | client::Error::Unreachable { .. }
        | client::Error::Silent { .. }
        | client::Error::NotUnderstood { .. } => true,
    }
}

/// As a shell takes it for one word.
fn shell_word(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn interrupted(kept: &Kept, path: &Path, again: &str, why: &str) -> Failure {
    let order = match kept.phase {
        Phase::Switching => {
            "; if the switch was ordered, the tracker still has the order (DELETE \
             /api/v1/journal-mode withdraws it)"
        }
        Phase::Baseline | Phase::Comparing | Phase::Decided => "",
    };
    let message = format!(
        "ended by {why}: {}, kept in {}{order}; start `{again}` to go on",
        kept.extent(),
        path.display()
    );
    Failure::new(Exit::Failed, "interrupted", message)
}

impl Store {
    /// `None`: there is none yet.
    fn read(&self) -> Result<Option<Kept>, Failure> {
        let path = self.path.display();
        let unusable = |why: &dyn std::fmt::Display| {
            let message = format!(
                "{path} is not what this program keeps of an evaluation ({why}); name another file \
                 with --state, or remove it to begin anew"
            );
            Failure::new(Exit::Usage, "state", message)
        };
        let bytes = match self.disk.read(&self.path, STATE_LIMIT) {
            Ok(bytes) => bytes,
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::new(Exit::Usage, "state", error.to_string())),
        };
        // The format first: another may have other fields.
        let text: Value = serde_json::from_slice(&bytes).map_err(|error| unusable(&error))?;
        if text["format"] != FORMAT {
            return Err(unusable(&format!("its format is {}", text["format"])));
        }
        let kept = serde_json::from_value(text).map_err(|error| unusable(&error))?;
        Ok(Some(kept))
    }

    fn write(&self, kept: &Kept) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(kept);
        let text = text.map_err(|error| Failure::new(Exit::Failed, "disk", error.to_string()))?;
        let written = self.disk.write_atomically(&self.path, &text);
        written.map_err(|error| Failure::new(Exit::Failed, "disk", error.to_string()))
    }

    /// Two that collect into one file would each undo what the other has.
    fn lock(&self) -> Result<Lock, Failure> {
        let mut path = self.path.clone().into_os_string();
        path.push(".lock");
        let path = PathBuf::from(path);
        let locked = self.disk.lock_file(&path, disk::parent(&path));
        let locked =
            locked.map_err(|error| Failure::new(Exit::Failed, "disk", error.to_string()))?;
        locked.ok_or_else(|| {
            let message = format!(
                "another `torrust-maintenance evaluate-wal` collects into {}; --report prints what \
                 it has",
                self.path.display()
            );
            Failure::new(Exit::Busy, "busy", message)
        })
    }

    fn missing(&self) -> Failure {
        let message = format!(
            "there is no {}: nothing was measured yet, or it is in another file, to be named with \
             --state",
            self.path.display()
        );
        Failure::new(Exit::NotApplicable, "no_evaluation", message)
    }
}

impl Log {
    fn begins(&self, kept: &Kept, path: &Path) {
        let [baseline, comparison] = kept.plan.slices();
        let message = format!(
            "{} at {}: {}; {baseline} slices of {} before the switch to WAL and {comparison} after it, \
             kept in {}",
            kept.tracker.service,
            kept.tracker.endpoint,
            kept.extent(),
            units::duration(kept.plan.slice()),
            path.display()
        );
        self.write("begins", &message);
    }

    fn say(&self, line: &Line) {
        self.write(line.event, &line.message);
    }

    fn warn(&self, message: &str) {
        self.write("warning", &format!("warning: {message}"));
    }

    fn write(&self, event: &str, message: &str) {
        let time = moment().utc.to_rfc3339_opts(SecondsFormat::Secs, true);
        let line = if self.json {
            json!({ "time": time, "event": event, "message": message }).to_string()
        } else {
            format!("{time} {message}")
        };
        // A reader that went away is no reason to end the work.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// What was found, and what to do.
fn answer(kept: &Kept, path: &Path) -> Answer {
    let evaluation = kept.evaluation();
    let decided = kept.phase == Phase::Decided;
    Answer {
        exit: if decided {
            exit(&evaluation.decision)
        } else {
            Exit::Done
        },
        text: text(kept, &evaluation),
        json: json!({
            "state": path.display().to_string(),
            "phase": kept.phase,
            "tracker": kept.tracker,
            "began": kept.began,
            "plan": kept.plan,
            "before": of_side(&kept.before),
            "after": of_side(&kept.after),
            "evaluation": evaluation,
            "rule": RULE,
            "to_do": decided.then(|| to_do(&evaluation.decision)),
        }),
    }
}

fn exit(decision: &Decision) -> Exit {
    match decision {
        Decision::Keep => Exit::Done,
        Decision::Revert => Exit::Verification,
        Decision::Undecided => Exit::Failed,
    }
}

fn of_side(side: &Side) -> Value {
    json!({ "slices": side.slices.len(), "left_out": side.left_out })
}

fn text(kept: &Kept, evaluation: &Evaluation) -> String {
    let lines = [
        (
            "tracker",
            format!(
                "{} at {}, database {}",
                kept.tracker.service,
                kept.tracker.endpoint,
                kept.tracker.database.display()
            ),
        ),
        ("phase", kept.extent()),
        ("before", measured(&kept.before, kept)),
        ("after", measured(&kept.after, kept)),
    ];
    let head = lines.map(|(name, what)| format!("{name:<11}{what}"));
    let (decision, to_do) = if kept.phase == Phase::Decided {
        let word = match evaluation.decision {
            Decision::Keep => "keep WAL",
            Decision::Revert => "GO BACK",
            Decision::Undecided => "NOT DECIDED",
        };
        (
            format!("{word}; {}", evaluation.because),
            to_do(&evaluation.decision),
        )
    } else {
        let so_far = format!("none yet; so far {}", evaluation.because);
        (so_far, "start it again to go on, without --report")
    };
    let remarks = evaluation.remarks.iter();
    let remarks: Vec<String> = remarks
        .map(|remark| format!("remark     {remark}\n"))
        .collect();
    let remarks = remarks.concat();
    format!(
        "{}\n\n{}\n\n{remarks}rule       {RULE}\ndecision   {decision}\nto do      {to_do}",
        head.join("\n"),
        table_of(&evaluation.differences)
    )
}

/// `168 slices of 1 h since 2026-11-01 00:00:00 UTC; left out: 2 (a run took place in it)`.
fn measured(side: &Side, kept: &Kept) -> String {
    let Some(first) = side.slices.first() else {
        return format!("nothing{}", left_out(side));
    };
    format!(
        "{} slices of {} since {} UTC{}",
        side.slices.len(),
        units::duration(kept.plan.slice()),
        units::time(first.began),
        left_out(side)
    )
}

fn left_out(side: &Side) -> String {
    if side.left_out.is_empty() {
        return String::new();
    }
    let each = side.left_out.iter();
    let each: Vec<String> = each
        .map(|(why, count)| format!("{count} ({why})"))
        .collect();
    format!("; left out: {}", each.join(", "))
}

fn table_of(differences: &[Difference]) -> Table<7> {
    use table::Side::{Left, Right};
    let mut table = Table::new([
        ("FIGURE", Left),
        ("BEFORE", Right),
        ("AFTER", Right),
        ("TIMES", Right),
        ("NOISE", Right),
        ("AFTER IS", Left),
        ("DECIDES", Left),
    ]);
    for one in differences {
        let decides = match one.weight {
            Weight::Essential => "yes",
            Weight::Told => "",
        };
        table.row([
            one.name.clone(),
            figure(one.before),
            figure(one.after),
            figure(one.ratio),
            figure(one.before.map(|_| one.noise)),
            one.verdict.to_string(),
            decides.to_owned(),
        ]);
    }
    table
}

/// Three digits, or all before the point; `-` for what is not known.
fn figure(value: Option<f64>) -> String {
    let Some(value) = value else {
        return "-".to_owned();
    };
    let digits = match value.abs() {
        small if small < 1.0 => 3,
        small if small < 10.0 => 2,
        middle if middle < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

/// What an operator is to do about a decision. Nothing is done for them.
fn to_do(decision: &Decision) -> &'static str {
    match decision {
        Decision::Keep => {
            "set journal_mode = \"wal\" in [maintenance], so that the configuration says what the \
             database is in; there is nothing to restart"
        }
        Decision::Revert => {
            "set journal_mode = \"delete\" in [maintenance] and restart the tracker: in WAL every \
             open connection has a lock, so it cannot go back while it serves"
        }
        Decision::Undecided => {
            "look at what was not measured or cannot be compared, and go on for longer with \
             --comparison, or begin anew with another --state"
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place where this command reads the clock; the course is handed it"
)]
fn moment() -> Moment {
    let utc: DateTime<Utc> = Utc::now();
    Moment {
        now: instant(),
        utc,
    }
}

#[cfg(test)]
mod tests;
