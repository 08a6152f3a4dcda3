//! One run at a time, from "announces flow" through "the file may be copied" back to
//! "announces flow": what the gate, the readiness signal and the jobs should be at any
//! moment, decided by one pure function.
//!
//! ```text
//!             Start            Prepared           Drained            Pinned
//!  Serving ─────────▶ Preparing ──────▶ Draining ───────▶ Flushing ────────▶ Copying = READY
//!     ▲                               ▲ gate closed ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒   │ gate open in WAL,
//!     │                               │                 │ busy, or too slow   │ closed otherwise
//!     │                               └── Retrying ◀────┘                     │
//!     │ Published                         gate open                           │ Copied
//!     └───────────────────────── Finishing ◀──────────────────────────────────┘
//!                                verify, compress, publish, prune; gate open
//! ```
//!
//! Where a sidecar copies ([`Rules::lease`]), the pinned file is offered instead, and what
//! becomes of the copy is the sidecar's affair:
//!
//! ```text
//!            Pinned             Claim            Renew ↺
//!  Flushing ────────▶ Offered ─────────▶ Leased ─────────┐     both READY; the gate is
//!     ▲                  │ Done, by file    │ Finish     │     open in WAL, else closed
//!  Serving ◀─────────────┴──────────────────┘◀───────────┘
//!              nobody came in time: NoSidecar; not renewed, or the deadline: Deadline
//! ```
//!
//! Every state but `Serving` also has two edges that are not drawn: a job that failed and
//! an abort both lead straight back to `Serving`, with an [`Outcome`] that says so.
//! Failure is an outcome, never a state one could be stuck in.
//!
//! # Projections
//!
//! The state is the only truth. What the world should look like is *asked of it* and
//! made so by the driver after every step: [`Window::gate`], [`Window::ready`],
//! [`Window::job`], [`Window::wake_at`]; and what a sidecar is to be answered, [`Window::claimed`].
//! There are no actions that could be forgotten and no flags that could drift.
//!
//! # Time
//!
//! `step` reads no clock. Whether a window is due is asked of the wall clock
//! ([`Window::due`]), which may jump; everything that limits a run that has begun is an
//! instant of the monotonic clock, which does not.
//!
//! A state that wants the gate closed carries the instant at which the driver ends it,
//! and the gate is told to open by itself [`Rules::grace`] later. So in the ordinary case
//! the order is kept (the write lock goes, the pin goes, then the gate opens), and when
//! the driver or a job hangs the gate opens all the same. Both instants lie within
//! [`Rules::hold_for`] of the closing.
//!
//! A lease ends with its time to live unless it is renewed, and at the deadline of its run
//! in any case: the end of the window, or of the closure where announces wait. Either ends
//! the run. It is not offered again: what the sidecar has copied so far would pass for a
//! copy of the next one's, and a night has a next night.
//!
//! # Completions
//!
//! A job's completion carries the run and the attempt it was started for. One that is not
//! of the current run, attempt and phase changes nothing: it belongs to a job that was
//! given up.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::lease::{Finished, Granted, Holder, Lease, Nonce, Refused, Terms};
use crate::schedule::{Interval, Schedule};

/// Names one run for all time: the UTC second it began in and four random letters, so that
/// a completion, a lease or a file of an earlier life can never be taken for this run's.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(String);

impl RunId {
    /// A new id for a run that begins at `began`.
    #[must_use]
    pub fn new(began: DateTime<Utc>) -> Self {
        let letters: String = std::iter::repeat_with(fastrand::lowercase)
            .take(4)
            .collect();
        Self(format!("{}-{letters}", began.format("%Y%m%dT%H%M%SZ")))
    }

    /// An id that came from elsewhere, if it may stand in a file's name and in a URL: letters,
    /// digits and hyphens, at most 64.
    #[must_use]
    pub fn parse(id: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        let sound = (1..=64).contains(&id.len()) && id.bytes().all(plain);
        sound.then(|| Self(id.to_owned()))
    }

    /// The id as it stands in files and URLs.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for RunId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The wall clock; may jump.
    pub utc: DateTime<Utc>,
    /// The monotonic clock; does not.
    pub monotonic: Instant,
}

/// Who asked for a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// Its window began.
    Schedule,
    /// An operator, through the endpoint.
    Operator,
    /// Its window was missed while the process was down or asleep, and `catch_up` is set.
    CatchUp,
}

/// Where a window stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// No run; announces flow.
    Serving,
    /// A run has begun; announces flow.
    Preparing,
    /// The gate is closed and what was in flight is finishing.
    Draining,
    /// The gate is closed and nothing is in flight; the pin is being taken.
    Flushing,
    /// The pin could not be taken yet; announces flow until the next attempt.
    Retrying,
    /// Pinned: the file may be copied, by this process.
    Copying,
    /// Pinned: a sidecar may claim the run, and copy.
    Offered,
    /// Pinned: a sidecar copies.
    Leased,
    /// The raw copy is complete; it is verified, compressed and published.
    Finishing,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Serving,
        Self::Preparing,
        Self::Draining,
        Self::Flushing,
        Self::Retrying,
        Self::Copying,
        Self::Offered,
        Self::Leased,
        Self::Finishing,
    ];

    /// As statuses and metrics name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Preparing => "preparing",
            Self::Draining => "draining",
            Self::Flushing => "flushing",
            Self::Retrying => "retrying",
            Self::Copying => "copying",
            Self::Offered => "offered",
            Self::Leased => "leased",
            Self::Finishing => "finishing",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Outcome {
    /// A verified backup was published; where a sidecar copies, it says that it has its copy.
    Done,
    /// Something went wrong; the service was not harmed.
    Failed {
        /// Where.
        phase: Phase,
        /// What kind of thing.
        cause: Cause,
        /// What happened, to what, and what to do.
        message: String,
    },
    /// Copying would have kept the gate closed for longer than allowed, so it was not
    /// closed at all.
    WouldNotFit {
        /// The estimate and the remedies.
        message: String,
    },
    /// The file was pinned for a sidecar, and none came.
    NoSidecar {
        /// How long it was waited for, and what to look at.
        message: String,
    },
    /// A limit was reached and the run was given up.
    Deadline {
        /// Where.
        phase: Phase,
        /// Which limit.
        message: String,
    },
    /// The run was called off.
    Aborted {
        /// Where.
        phase: Phase,
        /// Why.
        message: String,
    },
}

impl Outcome {
    /// The names of all kinds but [`Self::Failed`], which has causes.
    pub const KINDS: [&str; 5] = ["done", "would_not_fit", "no_sidecar", "deadline", "aborted"];

    /// As statuses and metrics name it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed { .. } => "failed",
            Self::WouldNotFit { .. } => "would_not_fit",
            Self::NoSidecar { .. } => "no_sidecar",
            Self::Deadline { .. } => "deadline",
            Self::Aborted { .. } => "aborted",
        }
    }

    /// Of a failure, what kind of thing went wrong.
    #[must_use]
    pub fn cause(&self) -> Option<Cause> {
        match self {
            Self::Failed { cause, .. } => Some(*cause),
            _ => None,
        }
    }

    /// What happened, to what, and what to do; nothing for what went well.
    #[must_use]
    pub fn message(&self) -> &str {
        match self {
            Self::Done => "",
            Self::Failed { message, .. }
            | Self::WouldNotFit { message }
            | Self::NoSidecar { message }
            | Self::Deadline { message, .. }
            | Self::Aborted { message, .. } => message,
        }
    }
}

/// What kind of thing went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The copy or the artifact did not stand the check; it was not published.
    Verification,
    /// The write-ahead log grew past `backup.wal_limit` while the file was pinned.
    WalLimit,
    /// The database was busy at every attempt.
    Busy,
    /// The sidecar says that it failed.
    Sidecar,
    /// The pin broke, or the file changed under it: what was copied cannot be trusted.
    BrokenPin,
    /// As many announces were held for the copy as may be: any more would be turned away.
    HeldLimit,
    /// A file system has, or would have had, too little room left.
    NoRoom,
    /// The service could not make durable what it wrote while the file was pinned.
    Database,
    /// The operator's command that comes before a run did not let it begin.
    Hook,
    /// A defect: a job panicked.
    Panicked,
    /// Anything else: disk, database, permissions.
    Other,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Verification,
        Self::WalLimit,
        Self::Busy,
        Self::Sidecar,
        Self::BrokenPin,
        Self::HeldLimit,
        Self::NoRoom,
        Self::Database,
        Self::Hook,
        Self::Panicked,
        Self::Other,
    ];

    /// As statuses and metrics name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Verification => "verification",
            Self::WalLimit => "wal_limit",
            Self::Busy => "busy",
            Self::Sidecar => "sidecar",
            Self::BrokenPin => "broken_pin",
            Self::HeldLimit => "held_limit",
            Self::NoRoom => "no_room",
            Self::Database => "database",
            Self::Hook => "hook",
            Self::Panicked => "panicked",
            Self::Other => "other",
        }
    }
}

/// A job that failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Failure {
    /// What kind of thing went wrong.
    pub cause: Cause,
    /// What happened, to what, and what to do.
    pub message: String,
}

impl Failure {
    /// A failure of no particular kind.
    #[must_use]
    pub fn other(error: &impl std::fmt::Display) -> Self {
        Self {
            cause: Cause::Other,
            message: error.to_string(),
        }
    }
}

/// What a window keeps to.
#[derive(Debug, Clone)]
pub struct Rules {
    /// When windows begin.
    pub schedule: Schedule,
    /// Whether a missed window is made up.
    pub catch_up: bool,
    /// Hard limit on one closure of the gate.
    pub hold_for: Duration,
    /// Limit on draining and flushing together, at most `hold_for`.
    pub flush_within: Duration,
    /// Attempts at the pin in one run.
    pub attempts: u32,
    /// Pause between two attempts, with the gate open.
    pub retry_after: Duration,
    /// How long before the gate's own limit the driver acts.
    pub grace: Duration,
    /// Limit on verifying, compressing and publishing.
    pub finish_within: Duration,
    /// What a sidecar that copies has to keep to; `None`: this process copies.
    pub lease: Option<Terms>,
}

impl Rules {
    /// After how long of a closure the driver opens the gate: the longest a copy that
    /// announces wait for may take.
    #[must_use]
    pub fn held_at_most(&self) -> Duration {
        self.hold_for.saturating_sub(self.grace)
    }

    /// After how long of a closure the driver gives up draining and flushing.
    #[must_use]
    pub fn flushed_within(&self) -> Duration {
        self.flush_within
            .min(self.hold_for)
            .saturating_sub(self.grace)
    }
}

/// The state machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Window {
    /// The beginning of the newest scheduled window that has had its run.
    served: Option<DateTime<Utc>>,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum State {
    Serving {
        last: Option<(RunId, Outcome)>,
    },
    Preparing {
        run: Run,
    },
    Draining {
        run: Run,
        closed: Closed,
    },
    Flushing {
        run: Run,
        closed: Closed,
    },
    Retrying {
        run: Run,
        pause: Pause,
        until: Instant,
    },
    /// `held_until` is when the gate's closure ends; `None`: the gate is open.
    Copying {
        run: Run,
        held_until: Option<Instant>,
    },
    Finishing {
        run: Run,
        until: Instant,
    },
    /// Pinned for a sidecar that is yet to come. `held_until` as above.
    Offered {
        run: Run,
        held_until: Option<Instant>,
        claim_until: Instant,
    },
    /// Pinned for the sidecar that has come. `held_until` as above.
    Leased {
        run: Run,
        held_until: Option<Instant>,
        lease: Lease,
    },
}

/// One attempt at a backup.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Run {
    /// Its name.
    pub id: RunId,
    /// Who asked for it.
    pub trigger: Trigger,
    /// When it began.
    pub began: DateTime<Utc>,
    /// When its window ends: the hard limit on its pin.
    pub ends: Instant,
    /// Which attempt at the pin this is, from 1.
    pub attempt: u32,
    /// Whether the database is to go over to WAL in it, before the pin. The driver's to say: for
    /// a window it makes no difference but for what the run then costs.
    pub to_wal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Closed {
    since: Instant,
    /// When draining and flushing are given up.
    until: Instant,
    pause: Pause,
}

/// How long announces have to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pause {
    /// Until the file is pinned. Copying it takes this long afterwards; `None`: not known.
    UntilPinned(Option<Duration>),
    /// Until the file is copied, which is expected to take this long.
    UntilCopied(Duration),
}

/// What happens to a window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// A run is to begin.
    Start {
        /// Its name.
        id: RunId,
        /// Who asked.
        trigger: Trigger,
        /// The scheduled window this run is for, if it is for one.
        serves: Option<DateTime<Utc>>,
        /// How long its window lasts from now.
        lasts: Duration,
    },
    /// A job has ended.
    Ended {
        /// The run and attempt it was started for.
        of: Attempt,
        /// How.
        how: Completion,
    },
    /// A sidecar wants a lease on the run; or has one, and did not hear so.
    Claim {
        /// The run it wants.
        run: RunId,
        /// Who it is.
        holder: Holder,
        /// What its lease is to be known by.
        nonce: Nonce,
    },
    /// A sidecar is alive and needs more time.
    Renew {
        /// The run it has a lease on.
        run: RunId,
        /// What the lease is known by.
        nonce: Nonce,
    },
    /// A sidecar has finished.
    Finish {
        /// The run it has a lease on.
        run: RunId,
        /// What the lease is known by.
        nonce: Nonce,
        /// Whether it has a copy.
        how: Finished,
    },
    /// A sidecar that took no lease says by a file that it has finished.
    FinishedByFile {
        /// The run it names.
        run: RunId,
        /// Whether it has a copy.
        how: Finished,
    },
    /// The pinned file is of no use any more.
    Spoiled(Failure),
    /// The run, if there is one, is to be given up.
    Abort {
        /// Why.
        reason: String,
    },
}

/// Names one attempt of one run.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// The run.
    pub run: RunId,
    /// The attempt, from 1.
    pub number: u32,
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Completion {
    /// [`Job::Prepare`]: the run can go on, and this is what it costs.
    Prepared(Pause),
    /// [`Job::Drain`]: nothing is in flight.
    Drained,
    /// [`Job::Pin`]: the file is pinned.
    Pinned,
    /// [`Job::Pin`]: something was in the way that may be gone next time.
    Busy(String),
    /// [`Job::Copy`]: the raw copy is durable and the pin is released.
    Copied,
    /// [`Job::Finish`]: the backup is published.
    Published,
    /// Any job: it failed.
    Failed(Failure),
}

/// What should be running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Job {
    /// Look at the database and the disk; checkpoint what can be while announces flow.
    Prepare,
    /// Wait until nothing is in flight.
    Drain,
    /// Flush and pin.
    Pin,
    /// Copy the pinned file, then release the pin.
    Copy,
    /// Verify, compress, publish, prune.
    Finish,
}

/// What the gate should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GateWanted {
    /// Announces pass.
    Open,
    /// Announces wait; the gate opens by itself at `until`.
    Closed {
        /// The gate's own deadline.
        until: Instant,
    },
}

impl Window {
    /// A window that serves. `served` is the beginning of the newest scheduled window
    /// known to have had its run, so that a restart within a window does not repeat it.
    #[must_use]
    pub fn new(served: Option<DateTime<Utc>>) -> Self {
        Self {
            served,
            state: State::Serving { last: None },
        }
    }

    /// The next state. Total: an event that does not apply changes nothing.
    #[must_use]
    pub fn step(self, rules: &Rules, now: Now, event: Event) -> Self {
        let Self { mut served, state } = self;
        let mono = now.monotonic;
        let state = match (state, event) {
            (
                State::Serving { .. },
                Event::Start {
                    id,
                    trigger,
                    serves,
                    lasts,
                },
            ) => {
                served = serves.or(served);
                let run = Run {
                    id,
                    trigger,
                    began: now.utc,
                    ends: mono + lasts,
                    attempt: 1,
                    to_wal: false,
                };
                State::Preparing { run }
            }

            (state, Event::Abort { reason }) => state.end(|phase| Outcome::Aborted {
                phase,
                message: reason,
            }),

            (state, Event::Ended { of, how })
                if state.job().is_some_and(|(current, _)| current == of) =>
            {
                state.ended(how, rules, mono)
            }

            (state, Event::Tick) => state.tick(rules, mono),

            (state, Event::Claim { run, holder, nonce }) if state.is_of(&run) => {
                state.claim(holder, nonce, rules, mono)
            }

            (state, Event::Renew { run, nonce }) if state.is_leased(&run, &nonce) => {
                state.renew(rules, mono)
            }

            (state, Event::Finish { run, nonce, how }) if state.is_leased(&run, &nonce) => {
                state.finish(how)
            }

            (state @ State::Offered { .. }, Event::FinishedByFile { run, how })
                if state.is_of(&run) =>
            {
                state.finish(how)
            }

            (state, Event::Spoiled(failure)) if state.ready() => state.fail(failure),

            (state, _) => state,
        };
        Self { served, state }
    }

    /// The run that should begin at `now`, if any: who asks for it, the window it is for
    /// and how long that lasts from now.
    #[must_use]
    pub fn due(&self, rules: &Rules, now: DateTime<Utc>) -> Option<(Trigger, Interval)> {
        if !matches!(self.state, State::Serving { .. }) {
            return None;
        }
        let unserved = |window: &Interval| self.served != Some(window.begins);
        if let Some(window) = rules.schedule.containing(now).filter(unserved) {
            return Some((Trigger::Schedule, window));
        }
        if !rules.catch_up {
            return None;
        }
        let missed = rules.schedule.last_before(now)?;
        let newer = self.served.is_none_or(|served| missed.begins > served);
        let ends = now + rules.schedule.duration();
        newer.then_some((
            Trigger::CatchUp,
            Interval {
                begins: missed.begins,
                ends,
            },
        ))
    }

    /// What the gate should be.
    #[must_use]
    pub fn gate(&self, rules: &Rules) -> GateWanted {
        let until = match &self.state {
            State::Draining { closed, .. } | State::Flushing { closed, .. } => Some(closed.until),
            State::Copying { held_until, .. }
            | State::Offered { held_until, .. }
            | State::Leased { held_until, .. } => *held_until,
            State::Serving { .. }
            | State::Preparing { .. }
            | State::Retrying { .. }
            | State::Finishing { .. } => None,
        };
        until.map_or(GateWanted::Open, |until| GateWanted::Closed {
            until: until + rules.grace,
        })
    }

    /// Whether the file may be copied.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.state.ready()
    }

    /// Whether whoever comes by may be told so by a file: nobody has claimed the run.
    #[must_use]
    pub fn shown(&self) -> bool {
        self.ready() && !matches!(self.state, State::Leased { .. })
    }

    /// When what is ready ceases to be at the latest, whoever renews what: the end of the
    /// window, or of the closure where announces wait. `None`: nothing is ready.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Copying { run, held_until }
            | State::Offered {
                run, held_until, ..
            }
            | State::Leased {
                run, held_until, ..
            } => Some(deadline_of(run, *held_until)),
            _ => None,
        }
    }

    /// Until when the run can be claimed; `None`: it cannot be.
    #[must_use]
    pub fn claim_until(&self) -> Option<Instant> {
        match &self.state {
            State::Offered { claim_until, .. } => Some(*claim_until),
            _ => None,
        }
    }

    /// The lease on the run.
    #[must_use]
    pub fn leased(&self) -> Option<&Lease> {
        match &self.state {
            State::Leased { lease, .. } => Some(lease),
            _ => None,
        }
    }

    /// What `nonce` has on `run`; asked after [`Event::Claim`], which is as much as to ask
    /// what came of it.
    ///
    /// # Errors
    ///
    /// Why it has nothing, as whoever claims is to be told.
    pub fn claimed(
        &self,
        rules: &Rules,
        run: &RunId,
        nonce: &Nonce,
        now: Instant,
    ) -> Result<Granted, Refused> {
        if !self.state.is_of(run) {
            return Err(Refused::StaleRun);
        }
        let Some(Terms { ttl, .. }) = rules.lease else {
            return Err(Refused::TakenByTracker);
        };
        let left = |until: Instant| until.saturating_duration_since(now);
        match &self.state {
            State::Leased {
                run,
                held_until,
                lease,
            } if lease.nonce == *nonce => Ok(Granted {
                holder: lease.holder.clone(),
                ttl,
                expires: left(lease.until),
                deadline: left(deadline_of(run, *held_until)),
            }),
            State::Leased { lease, .. } => Err(Refused::Taken {
                holder: lease.holder.clone(),
                expires: left(lease.until),
            }),
            state => Err(Refused::NotReady {
                phase: state.phase(),
            }),
        }
    }

    /// As [`Window::claimed`], for whoever says he has a lease already.
    ///
    /// # Errors
    ///
    /// Why he has none.
    pub fn held(
        &self,
        rules: &Rules,
        run: &RunId,
        nonce: &Nonce,
        now: Instant,
    ) -> Result<Granted, Refused> {
        self.claimed(rules, run, nonce, now)
            .map_err(|refused| match refused {
                Refused::StaleRun => Refused::StaleRun,
                _ => Refused::NotHolder,
            })
    }

    /// What should be running, and for which attempt.
    #[must_use]
    pub fn job(&self) -> Option<(Attempt, Job)> {
        self.state.job()
    }

    /// The next instant at which a tick changes something of a run; the schedule's next
    /// beginning is asked of [`Schedule::next_after`].
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        match &self.state {
            State::Serving { .. } => None,
            State::Preparing { run } => Some(run.ends),
            State::Draining { closed, .. } | State::Flushing { closed, .. } => Some(closed.until),
            State::Retrying { until, .. } | State::Finishing { until, .. } => Some(*until),
            State::Copying { run, held_until } => Some(deadline_of(run, *held_until)),
            // Neither is ever past the deadline.
            State::Offered { claim_until, .. } => Some(*claim_until),
            State::Leased { lease, .. } => Some(lease.until),
        }
    }

    /// The newest window that has passed and has had no run. One that is to be made up is
    /// [`Window::due`] instead. `None` while a run is on, which may be one of it.
    #[must_use]
    pub fn missed(&self, rules: &Rules, now: DateTime<Utc>) -> Option<Interval> {
        if rules.catch_up || !matches!(self.state, State::Serving { .. }) {
            return None;
        }
        let last = rules.schedule.last_before(now)?;
        let unserved = self.served.is_none_or(|served| last.begins > served);
        (unserved && last.ends <= now).then_some(last)
    }

    /// Where the window stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.state.phase()
    }

    /// The run in progress.
    #[must_use]
    pub fn run(&self) -> Option<&Run> {
        self.state.run()
    }

    /// How the last run of this process ended; `None` while one is in progress.
    #[must_use]
    pub fn last(&self) -> Option<&(RunId, Outcome)> {
        match &self.state {
            State::Serving { last } => last.as_ref(),
            _ => None,
        }
    }
}

impl State {
    /// A job of the current attempt ended.
    fn ended(self, how: Completion, rules: &Rules, now: Instant) -> Self {
        match (self, how) {
            (Self::Preparing { run }, Completion::Prepared(pause)) => match pause {
                Pause::UntilCopied(estimate) if estimate > rules.held_at_most() => {
                    let limit = format!("gate.hold_for is {:?}", rules.hold_for);
                    Self::Preparing { run }.would_not_fit(estimate, &limit)
                }
                Pause::UntilCopied(estimate)
                    if estimate > run.ends.saturating_duration_since(now) =>
                {
                    let left = run.ends.saturating_duration_since(now);
                    let limit = format!("{left:.0?} are left of the window");
                    Self::Preparing { run }.would_not_fit(estimate, &limit)
                }
                // The file would be copied in vain, night by night, and the log would grow for it.
                Pause::UntilPinned(Some(copy))
                    if copy > run.ends.saturating_duration_since(now) =>
                {
                    let left = run.ends.saturating_duration_since(now);
                    Self::Preparing { run }.end(|_| Outcome::WouldNotFit {
                        message: format!(
                            "copying the database takes about {copy:.0?}, and {left:.0?} are left \
                             of the window; lengthen the window, or raise backup.bandwidth if \
                             that is what holds the copy back"
                        ),
                    })
                }
                _ => Self::close(run, pause, rules, now),
            },

            (Self::Draining { run, closed }, Completion::Drained) => Self::Flushing { run, closed },

            (Self::Flushing { run, closed }, Completion::Pinned) => {
                let held_until = match closed.pause {
                    Pause::UntilPinned(_) => None,
                    Pause::UntilCopied(_) => {
                        Some((closed.since + rules.held_at_most()).min(run.ends))
                    }
                };
                match rules.lease {
                    None => Self::Copying { run, held_until },
                    Some(terms) => {
                        let deadline = deadline_of(&run, held_until);
                        Self::Offered {
                            run,
                            held_until,
                            claim_until: deadline.min(now + terms.claimed_within(held_until)),
                        }
                    }
                }
            }

            (Self::Flushing { run, closed }, Completion::Busy(why)) => {
                Self::retry(run, closed.pause, Phase::Flushing, &why, rules, now)
            }

            (Self::Copying { run, .. }, Completion::Copied) => Self::Finishing {
                run,
                until: now + rules.finish_within,
            },

            (state @ Self::Finishing { .. }, Completion::Published) => state.end(|_| Outcome::Done),

            (state, Completion::Failed(failure)) => state.fail(failure),

            // A completion of the right attempt but of another phase: given up, stale.
            (state, _) => state,
        }
    }

    /// Time has passed.
    fn tick(self, rules: &Rules, now: Instant) -> Self {
        match self {
            Self::Preparing { run } if now >= run.ends => Self::Preparing { run }
                .end(|phase| deadline(phase, "the window ended before the gate was closed")),

            Self::Draining { run, closed } if now >= closed.until => {
                let why = "announces in flight did not finish in time; \
                           the database may be locked by another program";
                Self::retry(run, closed.pause, Phase::Draining, why, rules, now)
            }

            Self::Flushing { run, closed } if now >= closed.until => {
                let why = "the database was not flushed and pinned in time; \
                           another program may be writing or checkpointing";
                Self::retry(run, closed.pause, Phase::Flushing, why, rules, now)
            }

            Self::Retrying {
                mut run,
                pause,
                until,
            } if now >= until => {
                run.attempt += 1;
                Self::close(run, pause, rules, now)
            }

            Self::Copying { run, held_until } if now >= run.ends => {
                Self::Copying { run, held_until }.end(|phase| {
                    deadline(
                        phase,
                        "the window ended before the copy did; lengthen the window",
                    )
                })
            }

            Self::Copying {
                run,
                held_until: Some(held),
            } if now >= held => Self::Copying {
                run,
                held_until: None,
            }
            .end(|phase| deadline(phase, HELD_FOR_TOO_LONG)),

            Self::Offered {
                run,
                held_until,
                claim_until,
            } if now >= claim_until => {
                let message = no_sidecar(&run, held_until, rules, now);
                Self::over(run, Outcome::NoSidecar { message })
            }

            Self::Leased {
                run,
                held_until,
                lease,
            } if now >= lease.until => {
                let message = lost_lease(&run, held_until, &lease, rules, now);
                let phase = Phase::Leased;
                Self::over(run, Outcome::Deadline { phase, message })
            }

            Self::Finishing { run, until } if now >= until => {
                Self::Finishing { run, until }.end(|phase| {
                    deadline(
                        phase,
                        "verifying and compressing took longer than a backup may",
                    )
                })
            }

            state => state,
        }
    }

    /// Grants a lease on what is offered; a claim that is made again by who has it renews.
    fn claim(self, holder: Holder, nonce: Nonce, rules: &Rules, now: Instant) -> Self {
        match self {
            Self::Offered {
                run, held_until, ..
            } => {
                let until = lease_until(&run, held_until, rules, now);
                Self::Leased {
                    run,
                    held_until,
                    lease: Lease {
                        holder,
                        nonce,
                        until,
                    },
                }
            }
            Self::Leased { ref lease, .. } if lease.nonce == nonce => self.renew(rules, now),
            state => state,
        }
    }

    fn renew(self, rules: &Rules, now: Instant) -> Self {
        match self {
            Self::Leased {
                run,
                held_until,
                lease,
            } => {
                let until = lease_until(&run, held_until, rules, now);
                Self::Leased {
                    run,
                    held_until,
                    lease: Lease { until, ..lease },
                }
            }
            state => state,
        }
    }

    /// A sidecar has its copy, or will have none.
    fn finish(self, how: Finished) -> Self {
        match how {
            Finished::Ok => self.end(|_| Outcome::Done),
            Finished::Failed(message) => self.fail(Failure {
                cause: Cause::Sidecar,
                message,
            }),
        }
    }

    /// Closes the gate for an attempt.
    fn close(run: Run, pause: Pause, rules: &Rules, now: Instant) -> Self {
        let until = now + rules.flushed_within();
        let closed = Closed {
            since: now,
            until: until.min(run.ends),
            pause,
        };
        Self::Draining { run, closed }
    }

    /// Opens the gate after an attempt that came to nothing, to try again or give up.
    fn retry(run: Run, pause: Pause, phase: Phase, why: &str, rules: &Rules, now: Instant) -> Self {
        let until = now + rules.retry_after;
        if until >= run.ends {
            let message = format!("the window ended after {} attempts: {why}", run.attempt);
            return Self::over(run, Outcome::Deadline { phase, message });
        }
        if run.attempt >= rules.attempts {
            let message = format!("{} attempts came to nothing, the last: {why}", run.attempt);
            return Self::over(
                run,
                Outcome::Failed {
                    phase,
                    cause: Cause::Busy,
                    message,
                },
            );
        }
        Self::Retrying { run, pause, until }
    }

    fn would_not_fit(self, estimate: Duration, limit: &str) -> Self {
        self.end(|_| Outcome::WouldNotFit {
            message: format!(
                "announces would have to wait about {estimate:.0?} for the copy, and {limit}; use \
                 journal_mode = \"wal\" with announces = \"auto\", where they flow while the file \
                 is copied, or one XFS or btrfs for database and backups, where it is cloned; on \
                 MySQL have InnoDB tables alone, and announces = \"auto\""
            ),
        })
    }

    fn fail(self, Failure { cause, message }: Failure) -> Self {
        self.end(|phase| Outcome::Failed {
            phase,
            cause,
            message,
        })
    }

    /// Ends the run, if there is one.
    fn end(self, outcome: impl FnOnce(Phase) -> Outcome) -> Self {
        let phase = self.phase();
        match self {
            Self::Serving { last } => Self::Serving { last },
            Self::Preparing { run }
            | Self::Draining { run, .. }
            | Self::Flushing { run, .. }
            | Self::Retrying { run, .. }
            | Self::Copying { run, .. }
            | Self::Offered { run, .. }
            | Self::Leased { run, .. }
            | Self::Finishing { run, .. } => Self::over(run, outcome(phase)),
        }
    }

    fn over(run: Run, outcome: Outcome) -> Self {
        Self::Serving {
            last: Some((run.id, outcome)),
        }
    }

    fn run(&self) -> Option<&Run> {
        match self {
            Self::Serving { .. } => None,
            Self::Preparing { run }
            | Self::Draining { run, .. }
            | Self::Flushing { run, .. }
            | Self::Retrying { run, .. }
            | Self::Copying { run, .. }
            | Self::Offered { run, .. }
            | Self::Leased { run, .. }
            | Self::Finishing { run, .. } => Some(run),
        }
    }

    fn is_of(&self, id: &RunId) -> bool {
        self.run().is_some_and(|run| run.id == *id)
    }

    fn is_leased(&self, id: &RunId, nonce: &Nonce) -> bool {
        matches!(self, Self::Leased { run, lease, .. } if run.id == *id && lease.nonce == *nonce)
    }

    fn ready(&self) -> bool {
        matches!(
            self,
            Self::Copying { .. } | Self::Offered { .. } | Self::Leased { .. }
        )
    }

    fn job(&self) -> Option<(Attempt, Job)> {
        let (run, job) = match self {
            // Between two attempts nothing runs, and what still comes in is stale; what a
            // sidecar does is not of this process.
            Self::Serving { .. }
            | Self::Retrying { .. }
            | Self::Offered { .. }
            | Self::Leased { .. } => return None,
            Self::Preparing { run } => (run, Job::Prepare),
            Self::Draining { run, .. } => (run, Job::Drain),
            Self::Flushing { run, .. } => (run, Job::Pin),
            Self::Copying { run, .. } => (run, Job::Copy),
            Self::Finishing { run, .. } => (run, Job::Finish),
        };
        Some((
            Attempt {
                run: run.id.clone(),
                number: run.attempt,
            },
            job,
        ))
    }

    fn phase(&self) -> Phase {
        match self {
            Self::Serving { .. } => Phase::Serving,
            Self::Preparing { .. } => Phase::Preparing,
            Self::Draining { .. } => Phase::Draining,
            Self::Flushing { .. } => Phase::Flushing,
            Self::Retrying { .. } => Phase::Retrying,
            Self::Copying { .. } => Phase::Copying,
            Self::Offered { .. } => Phase::Offered,
            Self::Leased { .. } => Phase::Leased,
            Self::Finishing { .. } => Phase::Finishing,
        }
    }
}

const HELD_FOR_TOO_LONG: &str = "announces were held for as long as gate.hold_for allows; use \
                                 journal_mode = \"wal\" with announces = \"auto\", where they \
                                 flow while the file is copied";

/// When the pin of a run ends at the latest.
fn deadline_of(run: &Run, held_until: Option<Instant>) -> Instant {
    held_until.map_or(run.ends, |held| held.min(run.ends))
}

/// Until when a lease that is granted or renewed now lasts: never past the deadline.
fn lease_until(run: &Run, held_until: Option<Instant>, rules: &Rules, now: Instant) -> Instant {
    let ttl = rules.lease.map_or(Duration::ZERO, |terms| terms.ttl);
    deadline_of(run, held_until).min(now + ttl)
}

/// What to say when nobody claimed a run in time.
fn no_sidecar(run: &Run, held_until: Option<Instant>, rules: &Rules, now: Instant) -> String {
    let (waits, waited) = rules.lease.map_or_else(Default::default, |terms| {
        (terms.claim_within, terms.claimed_within(held_until))
    });
    let limit = if now >= run.ends {
        "the window ended".to_owned()
    } else if held_until.is_some_and(|held| now >= held) {
        "announces were held for as long as gate.hold_for allows".to_owned()
    } else if waited < waits {
        format!(
            "{waited:?} passed, and announces are held no longer for a sidecar that does not come \
             (readiness.claim_within is {waits:?})"
        )
    } else {
        format!("readiness.claim_within = {waited:?} passed")
    };
    format!(
        "no sidecar claimed the run before {limit}; see that `torrust-maintenance sidecar` runs and \
         reaches the endpoint, or set backup.taken_by = \"tracker\""
    )
}

/// What to say when a lease has run out.
fn lost_lease(
    run: &Run,
    held_until: Option<Instant>,
    Lease { holder, .. }: &Lease,
    rules: &Rules,
    now: Instant,
) -> String {
    let ttl = rules.lease.map_or(Duration::ZERO, |terms| terms.ttl);
    if now >= run.ends {
        format!("the window ended before the sidecar {holder:?} had its copy; lengthen the window")
    } else if held_until.is_some_and(|held| now >= held) {
        format!("the sidecar {holder:?} did not have its copy in time: {HELD_FOR_TOO_LONG}")
    } else {
        format!(
            "the sidecar {holder:?} did not renew its lease within readiness.ttl = {ttl:?}: it \
             died, hangs or does not reach the endpoint; see its log"
        )
    }
}

fn deadline(phase: Phase, message: &str) -> Outcome {
    Outcome::Deadline {
        phase,
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests;
