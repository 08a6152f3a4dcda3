//! The four phases of an evaluation, and what is to be done next in each. Pure: it takes what
//! the tracker says, and instants, and does no I/O.
//!
//! ```text
//!  Baseline ── enough ──▶ Switching ── in WAL ──▶ Comparing ── enough ──▶ Decided
//!    │ ▲                   │ ▲   │ ▲                │ ▲
//!    └─┘ a slice, or one   │ │   └─┘ not yet,       └─┘ as in the baseline
//!        left out          │ │       a run failed
//!                          └─┘ order it, again after a restart of the tracker
//! ```
//!
//! A slice ends when it is long enough, or where a run begins: the status is read within it, too, so
//! that what came before the run is had.
//!
//! What was measured and the phase are [`Kept`] in a file; everything else is forgotten when the
//! tool ends, and found out anew: the slice in progress is lost, and an order that the tracker
//! still has shows in its status.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use torrust_tracker_maintenance::evaluation::{Evaluation, evaluate_paired};
use torrust_tracker_maintenance::status::Status;
use torrust_tracker_maintenance::switch::{NotSwitched, WAL};
use torrust_tracker_maintenance::window::RunId;

use super::figures::{self, LeftOut, Slice};
use crate::exit::{Exit, Failure};
use crate::units;

/// Of the state file.
pub const FORMAT: u32 = 2;

/// Between two looks at a tracker that is waited for.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The longest between two looks within a slice: what was seen last before a run ends the slice.
const LOOK_WITHIN: Duration = Duration::from_secs(60);

/// A slice ends so long before a window begins, if that is known.
const BEFORE_WINDOW: Duration = Duration::from_secs(2);

/// After so many slices in a row that were left out it is said what to choose.
const LEFT_OUT_AT_MOST: u32 = 3;

/// By how much a slice may be longer than it should be: half as much, and in any case this.
const LONGER_AT_MOST: Duration = Duration::from_secs(5);

/// How many looks in a row may find no order before it counts as withdrawn. One that was just
/// given is published a moment later.
const MISSING_AT_MOST: u32 = 3;

/// Seconds, where nothing else was said.
const HOUR: u64 = 3_600;
const WEEK: u64 = 7 * 24 * HOUR;

/// In so many slices of a baseline, with so many announces together, something has to be stored.
const STORED_WITHIN: usize = 3;
const STORED_AMONG: u64 = 10_000;

/// Fewest slices of a side: how far one is from itself is not known.
const LEAST: u64 = 2;
/// Most slices of a side, all of which are in the state file.
const MOST: u64 = 10_000;

/// What is kept in a file, and is all that there is to go on from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    pub format: u32,
    /// Whose figures these are.
    pub tracker: Tracker,
    pub began: DateTime<Utc>,
    pub plan: Plan,
    pub phase: Phase,
    /// On the rollback journal.
    pub before: Side,
    /// In WAL.
    pub after: Side,
}

/// What tells one tracker from another, as far as it can be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tracker {
    pub endpoint: String,
    /// With its version: two of them are not as fast as each other.
    pub service: String,
    /// Of what is linked into it, which may be another though the service calls itself the same.
    pub version: String,
    pub database: PathBuf,
}

/// For how long what is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_field_names,
    reason = "they are keys of a file, and say their unit"
)]
pub struct Plan {
    pub slice_seconds: u64,
    pub baseline_seconds: u64,
    pub comparison_seconds: u64,
}

/// Where an evaluation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Baseline,
    Switching,
    Comparing,
    Decided,
}

/// What was measured in one journal mode.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Side {
    pub slices: Vec<Slice>,
    /// How many were not counted, and why.
    pub left_out: BTreeMap<LeftOut, u64>,
}

/// An evaluation under way.
#[derive(Debug, Clone)]
pub struct Course {
    pub kept: Kept,
    /// A run is to be begun as soon as the switch is ordered.
    at_once: bool,
    /// The beginning of the slice in progress.
    mark: Option<Mark>,
    /// The last look within it.
    last: Option<Mark>,
    /// How many slices in a row were left out.
    left_out: u32,
    /// The tracker does not answer, which was said.
    away: bool,
    /// When the tracker was started that answered last.
    started: Option<DateTime<Utc>>,
    ordered: Option<Ordered>,
    /// How many looks in a row found no order.
    missing: u32,
    /// The run that was last said not to have switched.
    told: Option<RunId>,
    /// No run could be begun, which was said.
    held_up: bool,
}

/// A reading, and when it was made.
#[derive(Debug, Clone)]
struct Mark {
    at: Instant,
    utc: DateTime<Utc>,
    status: Box<Status>,
}

/// The tracker that has the order: one that was started later knows nothing of it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ordered {
    started: Option<DateTime<Utc>>,
}

/// Both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub now: Instant,
    pub utc: DateTime<Utc>,
}

/// What came of the last action.
#[derive(Debug)]
pub enum Event {
    /// The tracker has answered.
    Seen(Box<Status>),
    /// It has not, or not so that anything follows; that may pass.
    Away(Failure),
    /// It was told to switch, with its words; or will not.
    Ordered(Result<String, Failure>),
    /// A run was begun, or was not.
    Begun(Result<RunId, Failure>),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Look at the status, not before this.
    Look(Instant),
    /// Order the switch to WAL.
    Order,
    /// Begin a run.
    Begin,
    /// Nothing: it is decided, or cannot be.
    End(Result<(), Failure>),
}

/// A line for whoever reads what goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// A short name for programs.
    pub event: &'static str,
    pub message: String,
}

/// What follows from an event.
#[derive(Debug)]
pub struct Step {
    pub course: Course,
    pub action: Action,
    pub says: Vec<Line>,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Baseline => "baseline",
            Self::Switching => "switch",
            Self::Comparing => "comparison",
            Self::Decided => "decided",
        })
    }
}

impl Plan {
    pub fn slice(&self) -> Duration {
        Duration::from_secs(self.slice_seconds)
    }

    /// Slices of the baseline, and of the comparison.
    pub fn slices(&self) -> [u64; 2] {
        let slice = self.slice_seconds.max(1);
        [self.baseline_seconds, self.comparison_seconds].map(|span| span.div_ceil(slice))
    }

    /// What a slice that a run ended must have at least.
    fn shortest(&self) -> Duration {
        self.slice() / 2
    }

    fn longest(&self) -> Duration {
        let slice = self.slice();
        slice.saturating_add(LONGER_AT_MOST.max(slice / 2))
    }
}

impl Side {
    fn leave_out(&mut self, why: LeftOut) {
        *self.left_out.entry(why).or_default() += 1;
    }

    fn has(&self, slices: u64) -> bool {
        self.slices.len() as u64 >= slices
    }
}

impl Kept {
    /// Begins with a tracker, if there is anything to be found out about it.
    pub fn begin(
        status: &Status,
        endpoint: String,
        plan: Plan,
        now: DateTime<Utc>,
    ) -> Result<Self, Failure> {
        if let Some(failure) = unfit(status) {
            return Err(failure);
        }
        Ok(Self {
            format: FORMAT,
            tracker: Tracker {
                endpoint,
                service: status.service.clone(),
                version: status.version.clone(),
                database: status.database.path.clone(),
            },
            began: now,
            plan,
            phase: Phase::Baseline,
            before: Side::default(),
            after: Side::default(),
        })
    }

    /// What has been found so far.
    pub fn evaluation(&self) -> Evaluation {
        let (figures, asked) = figures::figures(&self.before.slices, &self.after.slices);
        evaluate_paired(&figures, &asked, self.plan.slice())
    }

    /// How far it is, as in `baseline, 3 of 168 slices`.
    pub fn extent(&self) -> String {
        let [baseline, comparison] = self.plan.slices();
        let of = |side: &Side, needed: u64| {
            format!("{}, {} of {needed} slices", self.phase, side.slices.len())
        };
        match self.phase {
            Phase::Baseline => of(&self.before, baseline),
            Phase::Comparing => of(&self.after, comparison),
            Phase::Switching | Phase::Decided => self.phase.to_string(),
        }
    }

    /// With other spans, from an operator's options; `said`: of the baseline there was one.
    pub fn change(&mut self, plan: Plan, said: bool) -> Result<(), Failure> {
        let is_over = self.phase != Phase::Baseline;
        if said && is_over && plan.baseline_seconds != self.plan.baseline_seconds {
            let message = format!(
                "--baseline: the baseline is over, with {} slices, and the database is on its way to \
                 WAL or there, so it can be made neither longer nor shorter; leave --baseline out, or \
                 begin anew with another --state",
                self.before.slices.len()
            );
            return Err(Failure::new(Exit::Usage, "usage", message));
        }
        self.plan = plan;
        let [_, needed] = plan.slices();
        if self.phase == Phase::Decided && !self.after.has(needed) {
            self.phase = Phase::Comparing;
        }
        Ok(())
    }

    fn another(&self, status: &Status) -> Option<Failure> {
        let Tracker {
            service,
            version,
            database,
            ..
        } = &self.tracker;
        let is_same = status.service == *service && status.database.path == *database;
        if is_same && status.version == *version {
            return None;
        }
        let message = if is_same {
            format!(
                "the tracker was updated in the middle: what was measured is of {service} with version \
                 {version} of its maintenance, and what answers has {}; figures of two cannot be \
                 compared; go back to that version to go on, or name another file with --state to \
                 begin anew",
                status.version
            )
        } else {
            format!(
                "what was measured is of {service} with the database {}, and what answers is {} with \
                 {}: figures of two cannot be compared; name another file with --state to begin anew",
                database.display(),
                status.service,
                status.database.path.display()
            )
        };
        Some(Failure::new(Exit::Usage, "another_tracker", message))
    }

    /// That there is nothing to be found out: the journal matters to what is stored alone.
    fn nothing_stored(&self) -> Option<Failure> {
        let slices = &self.before.slices;
        let announces: u64 = slices.iter().map(|slice| slice.announces).sum();
        let is_enough = slices.len() >= STORED_WITHIN && announces >= STORED_AMONG;
        if !is_enough || slices.iter().any(|slice| slice.database_ms > 0.0) {
            return None;
        }
        let message = format!(
            "nothing was stored in {} slices with {announces} announces, so there is nothing to find \
             out: a journal mode matters only to what is written; if completed downloads are to be \
             stored (persistent_torrent_completed_stat in [core.tracker_policy]), enable that and begin \
             anew with another --state",
            slices.len()
        );
        Some(Failure::new(Exit::NotApplicable, "nothing_stored", message))
    }
}

/// Why there is nothing to be found out.
fn unfit(status: &Status) -> Option<Failure> {
    let refusal = |error, message: String| Some(Failure::new(Exit::NotApplicable, error, message));
    let database = status.database.path.display();
    if !figures::are_told(status) {
        let message = format!(
            "{} does not tell how long requests take: it is of an earlier version; update it first",
            status.service
        );
        return refusal("no_figures", message);
    }
    match status.database.journal_mode.as_str() {
        WAL => {
            let message = format!(
                "{database} is in WAL mode already, so there is nothing to compare it with; to go \
                 back first, set journal_mode = \"delete\" in [maintenance], restart the tracker, set it \
                 to \"keep\" and restart it once more: with \"delete\" it would not switch"
            );
            refusal("already_wal", message)
        }
        "none" => {
            let message = format!("{database} is no SQLite file, and has no journal mode");
            refusal("not_sqlite", message)
        }
        // It would be refused when the baseline is complete.
        _ => refusal("switch_refused", status.database.not_switchable.clone()?),
    }
}

impl Course {
    /// Goes on from what was kept. `at_once`: with a run by hand as soon as the switch is
    /// ordered.
    pub fn new(kept: Kept, at_once: bool) -> Self {
        Self {
            kept,
            at_once,
            mark: None,
            last: None,
            left_out: 0,
            away: false,
            started: None,
            ordered: None,
            missing: 0,
            told: None,
            held_up: false,
        }
    }

    /// What follows.
    pub fn step(mut self, event: Event, moment: Moment) -> Step {
        let mut says = Vec::new();
        let action = match event {
            Event::Seen(seen) => {
                if std::mem::take(&mut self.away) {
                    say(&mut says, "answers", "the tracker answers again");
                }
                self.seen(&seen, moment, &mut says)
            }
            Event::Away(failure) => {
                if !std::mem::replace(&mut self.away, true) {
                    let message = format!("{}; it is waited for", failure.message);
                    say(&mut says, "no_answer", message);
                }
                self.look_again(moment)
            }
            Event::Ordered(Ok(message)) => {
                say(&mut says, "ordered", message);
                self.has_order();
                if self.at_once {
                    Action::Begin
                } else {
                    self.look_again(moment)
                }
            }
            Event::Ordered(Err(failure)) => Action::End(Err(not_ordered(failure))),
            Event::Begun(Ok(run)) => {
                self.at_once = false;
                say(&mut says, "run", format!("run {run} has begun"));
                self.look_again(moment)
            }
            // Another is in progress, or announces are to flow for a while first.
            Event::Begun(Err(failure)) if failure.exit == Exit::Busy => {
                if !std::mem::replace(&mut self.held_up, true) {
                    let message = format!("no run could be begun yet: {}", failure.message);
                    say(&mut says, "held_up", message);
                }
                self.look_again(moment)
            }
            Event::Begun(Err(failure)) => Action::End(Err(failure)),
        };
        Step {
            course: self,
            action,
            says,
        }
    }

    fn seen(&mut self, status: &Status, moment: Moment, says: &mut Vec<Line>) -> Action {
        if let Some(failure) = self.kept.another(status) {
            return Action::End(Err(failure));
        }
        self.started = status.started;
        match self.kept.phase {
            Phase::Baseline => self.baseline(status, moment, says),
            Phase::Switching => self.switching(status, moment, says),
            Phase::Comparing => self.comparing(status, moment, says),
            Phase::Decided => Action::End(Ok(())),
        }
    }

    fn baseline(&mut self, status: &Status, moment: Moment, says: &mut Vec<Line>) -> Action {
        if let Some(failure) = unfit(status) {
            return Action::End(Err(failure));
        }
        let action = self.collect(status, moment, says);
        if let Some(failure) = self.kept.nothing_stored() {
            return Action::End(Err(failure));
        }
        let [needed, _] = self.kept.plan.slices();
        if !self.kept.before.has(needed) {
            return action;
        }
        self.kept.phase = Phase::Switching;
        self.mark = None;
        self.last = None;
        say(says, "baseline", "the baseline is complete");
        self.switching(status, moment, says)
    }

    fn switching(&mut self, status: &Status, moment: Moment, says: &mut Vec<Line>) -> Action {
        if status.database.journal_mode == WAL {
            self.kept.phase = Phase::Comparing;
            say(says, "switched", "the database is in WAL mode");
            return self.collect(status, moment, says);
        }
        let Some(switch) = &status.database.switch else {
            return self.without_order(status, moment, says);
        };
        self.has_order();
        if let Some(NotSwitched { run, reason }) = &switch.failed
            && self.told.as_ref() != Some(run)
        {
            let message = format!(
                "run {run} did not switch: {reason}; the order stays, and the next run tries again"
            );
            say(says, "not_switched", message);
            self.told = Some(run.clone());
        }
        if self.at_once && status.run.is_none() {
            return Action::Begin;
        }
        self.look_again(moment)
    }

    /// It was never given, or the tracker has forgotten it, or somebody does not want it.
    fn without_order(&mut self, status: &Status, moment: Moment, says: &mut Vec<Line>) -> Action {
        let Some(ordered) = &self.ordered else {
            return Action::Order;
        };
        if ordered.started != status.started {
            let message =
                "the tracker was restarted and has forgotten the order: it is given again";
            say(says, "restarted", message);
            return Action::Order;
        }
        // A run that carries it out may have put it away already.
        if status.run.is_none() {
            self.missing += 1;
        }
        if self.missing < MISSING_AT_MOST {
            return self.look_again(moment);
        }
        let message = "the order to switch was withdrawn, or a run ended without it; start this \
                       again to give it again";
        Action::End(Err(Failure::new(Exit::Failed, "withdrawn", message)))
    }

    fn has_order(&mut self) {
        let started = self.started;
        self.ordered = Some(Ordered { started });
        self.missing = 0;
    }

    fn comparing(&mut self, status: &Status, moment: Moment, says: &mut Vec<Line>) -> Action {
        if status.database.journal_mode != WAL {
            let message = format!(
                "the database was put back into journal mode {} before the comparison was \
                 complete; put it into WAL again (journal_mode = \"wal\" and a restart) and start this \
                 again to go on, or leave it as it is",
                status.database.journal_mode
            );
            return Action::End(Err(Failure::new(Exit::NotApplicable, "not_wal", message)));
        }
        let action = self.collect(status, moment, says);
        let [_, needed] = self.kept.plan.slices();
        if !self.kept.after.has(needed) {
            return action;
        }
        self.kept.phase = Phase::Decided;
        say(says, "comparison", "the comparison is complete");
        Action::End(Ok(()))
    }

    /// Ends the slice in progress, if it is long enough or a run has begun, and begins the next
    /// one.
    fn collect(&mut self, status: &Status, moment: Moment, says: &mut Vec<Line>) -> Action {
        let here = Mark {
            at: moment.now,
            utc: moment.utc,
            status: Box::new(status.clone()),
        };
        if let Some(mark) = self.mark.take() {
            let length = here.at.saturating_duration_since(mark.at);
            // One that was restarted has forgotten its runs, which is none.
            let had_run =
                mark.status.started == status.started && figures::had_run(&mark.status, status);
            if length < self.kept.plan.slice() && !had_run {
                let due = self.due(&mark, &here);
                self.mark = Some(mark);
                self.last = Some(here);
                return Action::Look(due);
            }
            let end = if had_run { self.last.take() } else { None };
            let slice = self.slice(&mark, end.as_ref().unwrap_or(&here));
            self.last = None;
            self.count(slice, says);
        }
        // What begins within a run would be left out.
        if status.run.is_some() {
            return self.look_again(moment);
        }
        let due = self.due(&here, &here);
        self.mark = Some(here);
        Action::Look(due)
    }

    /// What lies between two looks, if it counts.
    fn slice(&self, mark: &Mark, end: &Mark) -> Result<Slice, LeftOut> {
        let plan = self.kept.plan;
        let length = end.at.saturating_duration_since(mark.at);
        if length > plan.longest() {
            return Err(LeftOut::TooLong);
        }
        let slice = Slice::between(&mark.status, &end.status, mark.utc, length)?;
        if length < plan.shortest() {
            return Err(LeftOut::Run);
        }
        Ok(slice)
    }

    fn count(&mut self, slice: Result<Slice, LeftOut>, says: &mut Vec<Line>) {
        let side = match self.kept.phase {
            Phase::Baseline | Phase::Switching => &mut self.kept.before,
            Phase::Comparing | Phase::Decided => &mut self.kept.after,
        };
        match slice {
            Ok(slice) => {
                self.left_out = 0;
                side.slices.push(slice);
                say(says, "slice", self.kept.extent());
            }
            Err(why) => {
                self.left_out += 1;
                side.leave_out(why);
                let message = format!("{}; a slice was left out: {why}", self.kept.extent());
                say(says, "left_out", message);
                if self.left_out == LEFT_OUT_AT_MOST {
                    let message = format!(
                        "warning: {LEFT_OUT_AT_MOST} slices in a row were left out, the last because \
                         {why}; {}",
                        why.remedy()
                    );
                    say(says, "warning", message);
                }
            }
        }
    }

    /// When to look next: at the end of the slice, or within it so that as much as can be is had of
    /// it should a run begin.
    fn due(&self, mark: &Mark, here: &Mark) -> Instant {
        let end = (mark.at + self.kept.plan.slice()).min(here.at + LOOK_WITHIN);
        let window = here.status.next.and_then(|next| {
            let left = (next.begins - here.utc).to_std().ok()?;
            left.checked_sub(BEFORE_WINDOW)
        });
        window
            // It is looked at that moment already.
            .filter(|left| !left.is_zero())
            .map_or(end, |left| end.min(here.at + left))
    }

    fn look_again(&self, moment: Moment) -> Action {
        Action::Look(moment.now + LOOK_EVERY.min(self.kept.plan.slice()))
    }
}

fn say(says: &mut Vec<Line>, event: &'static str, message: impl Into<String>) {
    says.push(Line {
        event,
        message: message.into(),
    });
}

/// That another run is in the way of it cannot be: what is in the way stays there.
fn not_ordered(failure: Failure) -> Failure {
    if failure.exit == Exit::Busy {
        return Failure::new(Exit::NotApplicable, "switch_refused", failure.message);
    }
    failure
}

/// What an operator types, checked: `None` for what was not said.
pub fn plan(
    known: Option<Plan>,
    slice: Option<Duration>,
    baseline: Option<Duration>,
    comparison: Option<Duration>,
) -> Result<Plan, Failure> {
    let usage = |message: String| Err(Failure::new(Exit::Usage, "usage", message));
    let otherwise = known.unwrap_or(Plan {
        slice_seconds: HOUR,
        baseline_seconds: WEEK,
        comparison_seconds: WEEK,
    });
    let seconds = |said: Option<Duration>, otherwise| said.map_or(otherwise, |said| said.as_secs());
    let plan = Plan {
        slice_seconds: seconds(slice, otherwise.slice_seconds),
        baseline_seconds: seconds(baseline, otherwise.baseline_seconds),
        comparison_seconds: seconds(comparison, otherwise.comparison_seconds),
    };
    if let Some(known) = known
        && known.slice_seconds != plan.slice_seconds
    {
        return usage(format!(
            "--slice: what was measured is in slices of {}, and slices of another length cannot be \
             compared with them; leave --slice out, or name another file with --state",
            units::duration(known.slice())
        ));
    }
    if plan.slice_seconds == 0 {
        return usage("--slice: a second is the least".to_owned());
    }
    let slice = units::duration(plan.slice());
    for (option, slices) in ["--baseline", "--comparison"]
        .into_iter()
        .zip(plan.slices())
    {
        if slices < LEAST {
            return usage(format!(
                "{option}: it has to be twice the {slice} of --slice at least, or it is not known \
                 by how much two slices differ"
            ));
        }
        if slices > MOST {
            return usage(format!(
                "{option}: it would be {slices} slices of {slice}, and {MOST} are the most; make \
                 --slice longer"
            ));
        }
    }
    Ok(plan)
}

#[cfg(test)]
mod tests;
