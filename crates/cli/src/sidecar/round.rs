//! One run as a sidecar sees it, from looking out for it to knowing what became of it.
//! Pure: it takes replies and instants and does no I/O.
//!
//! ```text
//!  Starting ─▶ Watching ─ ready ─▶ Claiming ─ granted ─▶ Leased ─ copied ─▶ Finishing ─ verdict ─▶ Over
//!                 ▲  │                │                    │ failed, deadline, lost,   │
//!                 └──┘ not yet,       └─ taken, gone ──▶   │ told to stop              │
//!                      unfit             Watching          └──────────▶ Finishing ─────┘
//! ```
//!
//! What is asked of the tracker and when, whether the copy is to be made, and when to look
//! at the clock are projections of the state: [`State::request`], [`State::works`],
//! [`State::wakes`]. Whoever acts on them has nothing to remember.
//!
//! A copy is good in one case alone: the state is `Over` and its verdict `Ok`, which only a
//! tracker's `held_throughout` makes it. Every limit is reckoned from the moment *before*
//! the request was sent that granted it, so the tracker, which counts from later, never
//! gives up first.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use torrust_tracker_maintenance::sidecar::Offer;
use torrust_tracker_maintenance::status::CopyOf;
use torrust_tracker_maintenance::window::RunId;

use crate::exit::{Exit, Failure};
use crate::units;

/// Between two looks at a tracker that answers at once.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The longest wait before a tracker that does not answer is asked again.
const CEILING: Duration = Duration::from_secs(30);
/// The same while a lease runs: it is to be renewed before it ends.
const CEILING_LEASED: Duration = Duration::from_secs(2);
/// The first wait; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// How long `--once` puts up with answers that are none. A tracker that was restarted
/// serves again by then.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a run may take to be seen after it was started.
const SEEN_WITHIN: Duration = Duration::from_secs(5);
/// How long a claim is tried where the tracker does not say until when it takes one.
const CLAIM_WITHIN: Duration = Duration::from_secs(10);
/// How long the verdict is asked for. The tracker remembers it, so a good copy is not thrown
/// away because a connection was.
const VERDICT_WITHIN: Duration = Duration::from_secs(120);
/// How long it is tried to tell a tracker that there will be no copy: it finds out by itself.
const REPORT_WITHIN: Duration = Duration::from_secs(10);
/// The same when the sidecar has to end.
const STOP_WITHIN: Duration = Duration::from_millis(2500);

/// What is the same for every run.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// `--once`: what only time can mend ends it.
    pub once: bool,
}

/// The clock, and a number from 0 to 1 that makes waits differ between sidecars.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub now: Instant,
    pub chance: f64,
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// The tracker is to begin a run.
    Starting { ask: Ask, trouble: Option<Trouble> },
    /// Looking out for a run that is ready.
    Watching(Watching),
    /// It is ready, and may be ours.
    Claiming {
        ask: Ask,
        ready: Ready,
        until: Instant,
    },
    /// It is ours: the copy is made.
    Leased { ask: Ask, lease: Lease },
    /// The copy is there, or was given up: the tracker is told, and says what it is worth.
    Finishing {
        ask: Ask,
        run: RunId,
        result: Result<(), Failure>,
        until: Instant,
    },
    /// `Ok`: the file was still throughout, and the copy is to be published.
    Over {
        run: Option<RunId>,
        verdict: Result<(), Failure>,
    },
}

/// A request that is due, or under way. No two have the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub number: u64,
    pub at: Instant,
    /// In a row.
    failures: u32,
}

/// Looking out for a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Watching {
    ask: Ask,
    /// Whether a tracker has answered.
    heard: bool,
    /// Why there is no answer at present.
    pub trouble: Option<Trouble>,
    /// The run that was started, and when.
    pub started: Option<(RunId, Instant)>,
    /// One is to be started as soon as none is in progress.
    to_start: bool,
    /// A run that is not for this sidecar, or no longer.
    pub passed: Option<Passed>,
}

/// The tracker does not answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Trouble {
    pub failure: Failure,
    since: Instant,
}

/// A run that is let go by.
#[derive(Debug, Clone, PartialEq)]
pub struct Passed {
    pub run: RunId,
    /// `None`: it was this sidecar's.
    pub why: Option<Failure>,
}

/// What the tracker says of a run that is ready.
#[derive(Debug, Clone, PartialEq)]
pub struct Ready {
    pub offer: Offer,
    /// The database, as the tracker names it.
    pub database: PathBuf,
    pub copy: CopyOf,
    /// Whether it is for a sidecar to take.
    pub for_sidecars: bool,
    /// Who has it, in words.
    pub holder: Option<String>,
    /// How long it may still be claimed.
    pub claim_within: Option<Duration>,
}

/// A run that is this sidecar's.
#[derive(Debug, Clone, PartialEq)]
pub struct Lease {
    pub ready: Ready,
    /// When it ends unless it is renewed.
    expires: Instant,
    ttl: Duration,
    /// When it ends in any case.
    pub deadline: Instant,
    /// The same for a command's eyes.
    pub deadline_utc: DateTime<Utc>,
}

/// What is asked of a tracker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    Look,
    Start,
    Claim(RunId),
    /// With how long it may take: the next one must have its turn.
    Renew(RunId, Duration),
    /// With the reason why there is no copy.
    Finish(RunId, Option<String>),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    Ready(Box<Ready>),
    /// Not ready; the run on its way there.
    NotReady(Option<RunId>),
    Started(RunId),
    /// The lease is given, or renewed.
    Granted(Grant),
    /// The verdict, and why it is not good.
    Verdict {
        held: bool,
        why: Option<String>,
    },
    Refused(Refusal, Failure),
    /// Nobody is there, so nothing was done.
    Nobody(Failure),
    /// No answer, or no proper one: whether it was done is not known.
    Unclear(Failure),
    /// A run is ready, but could not be copied from here.
    Unfit(RunId, Failure),
}

/// Why a tracker will not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// 410, or 409 because it is not (or no longer) to be had: this run is past.
    Gone,
    /// 409: another has it, or does it.
    Taken,
    /// Anything else, which will be no different the next time.
    Other,
}

/// A lease as granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    pub ttl: Duration,
    pub expires: Duration,
    pub deadline: Duration,
    pub deadline_utc: DateTime<Utc>,
}

/// What happens to a state.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The request that was under way ended. `asked`: when it was sent.
    Replied { asked: Instant, reply: Reply },
    /// The copy was made, or failed.
    Worked(Result<(), Failure>),
    /// The sidecar is to end.
    Stop(String),
    /// Time has passed.
    Tick,
}

impl Ask {
    fn first(at: Instant) -> Self {
        Self {
            number: 0,
            at,
            failures: 0,
        }
    }

    /// The next one, after an answer.
    fn then(self, at: Instant) -> Self {
        Self {
            number: self.number + 1,
            at,
            failures: 0,
        }
    }

    /// The next one, after none: each time twice as long after, up to the ceiling, and never
    /// at the same moment as another sidecar.
    fn again(self, moment: Moment, ceiling: Duration) -> Self {
        let wait = FIRST_WAIT
            .saturating_mul(1 << self.failures.min(16))
            .min(ceiling)
            .mul_f64(0.5 + moment.chance.clamp(0.0, 1.0) / 2.0);
        Self {
            number: self.number + 1,
            at: moment.now + wait,
            failures: self.failures + 1,
        }
    }
}

impl State {
    /// Begins to look out, from now on, first starting a run if told to.
    pub fn begin(now: Instant, start: bool) -> Self {
        let ask = Ask::first(now);
        if start {
            return Self::Starting { ask, trouble: None };
        }
        Self::Watching(Watching {
            ask,
            heard: false,
            trouble: None,
            started: None,
            to_start: false,
            passed: None,
        })
    }

    /// Looks out for the next run after this one.
    pub fn after(run: Option<RunId>, now: Instant) -> Self {
        Self::Watching(Watching {
            ask: Ask::first(now),
            heard: true,
            trouble: None,
            started: None,
            to_start: false,
            passed: run.map(|run| Passed { run, why: None }),
        })
    }

    /// What is to be asked, and when.
    pub fn request(&self) -> Option<(Ask, Request)> {
        Some(match self {
            Self::Starting { ask, .. } => (*ask, Request::Start),
            Self::Watching(Watching { ask, .. }) => (*ask, Request::Look),
            Self::Claiming { ask, ready, .. } => (*ask, Request::Claim(ready.offer.run.clone())),
            Self::Leased { ask, lease } => {
                let run = lease.ready.offer.run.clone();
                (*ask, Request::Renew(run, lease.ttl / 3))
            }
            Self::Finishing {
                ask, run, result, ..
            } => {
                let reason = result.as_ref().err().map(|failure| failure.message.clone());
                (*ask, Request::Finish(run.clone(), reason))
            }
            Self::Over { .. } => return None,
        })
    }

    /// The lease the copy is to be made under.
    pub fn works(&self) -> Option<&Lease> {
        match self {
            Self::Leased { lease, .. } => Some(lease),
            _ => None,
        }
    }

    /// Whether a run that is ready would be claimed unless something speaks against it that
    /// is seen only from here. One that was started from here always is: nobody else waits
    /// for it, so it is to end at once, with the reason.
    pub fn considers(&self, ready: &Ready) -> bool {
        let Self::Watching(watching) = self else {
            return false;
        };
        let run = &ready.offer.run;
        let started = watching.started.as_ref();
        let is_own = started.is_some_and(|(started, _)| started == run);
        ready.for_sidecars && ready.holder.is_none() && !watching.has_passed(run) && !is_own
    }

    /// Why a copy that is under way is to be given up, or one that is there to be removed.
    pub fn gives_up(&self) -> Option<&Failure> {
        match self {
            Self::Finishing { result, .. } => result.as_ref().err(),
            Self::Over { verdict, .. } => verdict.as_ref().err(),
            _ => None,
        }
    }

    /// When it changes though nothing happens.
    pub fn wakes(&self) -> Option<Instant> {
        match self {
            Self::Starting { .. } | Self::Watching(_) | Self::Over { .. } => None,
            Self::Claiming { until, .. } | Self::Finishing { until, .. } => Some(*until),
            Self::Leased { lease, .. } => Some(lease.expires.min(lease.deadline)),
        }
    }

    /// What it is after this event.
    pub fn step(self, rules: Rules, event: Event, moment: Moment) -> Self {
        // Limits first: what comes at the same moment comes too late.
        let state = self.limited(moment.now);
        let state = match event {
            Event::Replied { asked, reply } => state.replied(rules, asked, reply, moment),
            Event::Worked(result) => state.worked(result, moment.now),
            Event::Stop(why) => state.stopped(&why, moment.now),
            Event::Tick => state,
        };
        // A grant that was long on its way may be worth nothing any more.
        state.limited(moment.now)
    }

    fn limited(self, now: Instant) -> Self {
        match self {
            Self::Claiming { ask, ready, until } if now >= until => {
                let why = Failure::new(
                    Exit::Failed,
                    "no_answer",
                    "the run could not be claimed in time",
                );
                Self::pass(ask, ready.offer.run, why, now)
            }
            Self::Leased { ask, lease } if now >= lease.deadline => {
                let why = "the copy was not complete by the deadline, so it was given up; \
                           make windows longer or the copy faster";
                let failure = Failure::new(Exit::Deadline, "deadline", why);
                Self::finish(ask, lease.ready.offer.run, Err(failure), now, REPORT_WITHIN)
            }
            Self::Leased { ask, lease } if now >= lease.expires => {
                let why = format!(
                    "the lease ran out: it could not be renewed for {}, so the tracker has let \
                     go of the file",
                    units::seconds(lease.ttl)
                );
                let failure = Failure::new(Exit::Failed, "lost", why);
                Self::finish(ask, lease.ready.offer.run, Err(failure), now, REPORT_WITHIN)
            }
            Self::Finishing {
                run, result, until, ..
            } if now >= until => Self::Over {
                run: Some(run),
                verdict: Err(result.err().unwrap_or_else(|| {
                    let why = "the tracker could not be asked whether the file was still \
                               throughout, so the copy cannot be trusted";
                    Failure::new(Exit::Failed, "no_verdict", why)
                })),
            },
            state => state,
        }
    }

    fn replied(self, rules: Rules, asked: Instant, reply: Reply, moment: Moment) -> Self {
        match self {
            Self::Starting { ask, trouble } => started(rules, ask, trouble, reply, moment),
            Self::Watching(watching) => watching.looked(rules, reply, moment),
            Self::Claiming { ask, ready, until } => match reply {
                Reply::Granted(grant) => Self::granted(ask, ready, grant, asked),
                Reply::Refused(refusal, failure) => {
                    let ends = rules.once && refusal != Refusal::Gone;
                    let run = ready.offer.run;
                    if ends {
                        return Self::over(Some(run), failure);
                    }
                    Self::pass(ask, run, failure, moment.now)
                }
                _ => Self::Claiming {
                    ask: ask.again(moment, CEILING_LEASED),
                    ready,
                    until,
                },
            },
            Self::Leased { ask, lease } => match reply {
                Reply::Granted(grant) => Self::granted(ask, lease.ready, grant, asked),
                // What has become of it is asked for: there will be no copy in any case.
                Reply::Refused(Refusal::Gone | Refusal::Taken, failure) => Self::finish(
                    ask,
                    lease.ready.offer.run,
                    Err(Failure::new(Exit::Failed, "lost", failure.message)),
                    moment.now,
                    REPORT_WITHIN,
                ),
                _ => Self::Leased {
                    ask: ask.again(moment, CEILING_LEASED),
                    lease,
                },
            },
            Self::Finishing {
                ask,
                run,
                result,
                until,
            } => match reply {
                Reply::Verdict { held, why } => Self::judged(run, result, held, why),
                Reply::Refused(Refusal::Gone | Refusal::Taken, failure) => {
                    let lost = |()| Failure::new(Exit::Failed, "lost", failure.message);
                    Self::over(Some(run), result.map_or_else(|failure| failure, lost))
                }
                Reply::Refused(Refusal::Other, failure) => {
                    Self::over(Some(run), result.err().unwrap_or(failure))
                }
                _ => Self::Finishing {
                    ask: ask.again(moment, CEILING_LEASED),
                    run,
                    result,
                    until,
                },
            },
            over @ Self::Over { .. } => over,
        }
    }

    fn worked(self, result: Result<(), Failure>, now: Instant) -> Self {
        match self {
            Self::Leased { ask, lease } => {
                let within = if result.is_ok() {
                    VERDICT_WITHIN
                } else {
                    REPORT_WITHIN
                };
                Self::finish(ask, lease.ready.offer.run, result, now, within)
            }
            // It was given up already.
            state => state,
        }
    }

    fn stopped(self, why: &str, now: Instant) -> Self {
        let interrupted = || {
            let message = format!("the sidecar was asked to stop ({why})");
            Failure::new(Exit::Failed, "interrupted", message)
        };
        match self {
            Self::Starting { .. } | Self::Watching(_) => Self::over(None, interrupted()),
            // The claim may have been granted, whatever has been heard of it.
            Self::Claiming {
                ask,
                ready: Ready { offer, .. },
                ..
            } => Self::finish(ask, offer.run, Err(interrupted()), now, STOP_WITHIN),
            Self::Leased { ask, lease } => {
                let run = lease.ready.offer.run;
                Self::finish(ask, run, Err(interrupted()), now, STOP_WITHIN)
            }
            Self::Finishing {
                ask,
                run,
                result,
                until,
            } => Self::Finishing {
                ask,
                run,
                result,
                until: until.min(now + STOP_WITHIN),
            },
            over @ Self::Over { .. } => over,
        }
    }

    fn granted(ask: Ask, ready: Ready, grant: Grant, asked: Instant) -> Self {
        Self::Leased {
            ask: ask.then(asked + grant.ttl / 3),
            lease: Lease {
                ready,
                expires: asked + grant.expires,
                ttl: grant.ttl,
                deadline: asked + grant.deadline,
                deadline_utc: grant.deadline_utc,
            },
        }
    }

    fn judged(run: RunId, result: Result<(), Failure>, held: bool, why: Option<String>) -> Self {
        let why = why.unwrap_or_else(|| "the tracker does not say why".to_owned());
        let verdict = match result {
            Ok(()) if held => Ok(()),
            Ok(()) => {
                let why = format!("the file was not still throughout: {why}");
                Err(Failure::new(Exit::Failed, "not_held", why))
            }
            // The tracker knows better why than one that only heard it was over.
            Err(lost) if lost.error == "lost" && !held => Err(Failure::new(
                lost.exit,
                "lost",
                format!("the lease was lost: {why}"),
            )),
            Err(failure) => Err(failure),
        };
        Self::Over {
            run: Some(run),
            verdict,
        }
    }

    fn finish(
        ask: Ask,
        run: RunId,
        result: Result<(), Failure>,
        now: Instant,
        within: Duration,
    ) -> Self {
        Self::Finishing {
            ask: ask.then(now),
            run,
            result,
            until: now + within,
        }
    }

    fn over(run: Option<RunId>, failure: Failure) -> Self {
        Self::Over {
            run,
            verdict: Err(failure),
        }
    }

    fn pass(ask: Ask, run: RunId, why: Failure, now: Instant) -> Self {
        Self::Watching(Watching {
            ask: ask.then(now + LOOK_EVERY),
            heard: true,
            trouble: None,
            started: None,
            to_start: false,
            passed: Some(Passed {
                run,
                why: Some(why),
            }),
        })
    }
}

/// The reply to a start. It may be sent again: had the first one arrived, the second is told
/// that a run is in progress.
fn started(
    rules: Rules,
    ask: Ask,
    trouble: Option<Trouble>,
    reply: Reply,
    moment: Moment,
) -> State {
    let watching = |started: Option<(RunId, Instant)>| {
        State::Watching(Watching {
            ask: ask.then(moment.now),
            heard: true,
            trouble: None,
            to_start: started.is_none(),
            started,
            passed: None,
        })
    };
    match reply {
        Reply::Started(run) => watching(Some((run, moment.now))),
        // One is in progress: that one, if it comes to be ready.
        Reply::Refused(Refusal::Taken, _) => watching(None),
        Reply::Refused(_, failure) => State::over(None, failure),
        Reply::Nobody(failure) if rules.once => State::over(None, failure),
        Reply::Nobody(failure) | Reply::Unclear(failure) => {
            let trouble = Trouble::again(trouble, failure, moment.now);
            if rules.once && trouble.lasts(moment.now) {
                return State::over(None, trouble.failure);
            }
            State::Starting {
                ask: ask.again(moment, CEILING),
                trouble: Some(trouble),
            }
        }
        _ => State::Starting {
            ask: ask.again(moment, CEILING),
            trouble,
        },
    }
}

impl Watching {
    fn looked(mut self, rules: Rules, reply: Reply, moment: Moment) -> State {
        let Moment { now, .. } = moment;
        let failure = match reply {
            Reply::Ready(ready) => return self.found(rules, *ready, now),
            Reply::Unfit(run, failure) => return self.let_by(rules, run, failure, now),
            Reply::NotReady(None) if self.to_start => {
                // Another's may come and go between two looks: not in a hurry.
                return State::Starting {
                    ask: self.ask.then(now + LOOK_EVERY),
                    trouble: None,
                };
            }
            Reply::NotReady(run) => {
                if self.is_lost(run.as_ref(), now) {
                    let why = "the run that was started ended before it was ready: \
                               `torrust-maintenance status` and the tracker's log say why";
                    let run = self.started.map(|(run, _)| run);
                    return State::over(run, Failure::new(Exit::Failed, "not_ready", why));
                }
                let next = (self.ask.at + LOOK_EVERY).max(now);
                return State::Watching(self.heard(next));
            }
            Reply::Nobody(failure) if rules.once && !self.heard => {
                return State::over(None, failure);
            }
            Reply::Refused(_, failure) if rules.once => return State::over(None, failure),
            Reply::Refused(_, failure) | Reply::Nobody(failure) | Reply::Unclear(failure) => {
                failure
            }
            // No reply to a look.
            Reply::Started(_) | Reply::Granted(_) | Reply::Verdict { .. } => {
                return State::Watching(self.heard(now + LOOK_EVERY));
            }
        };
        let trouble = Trouble::again(self.trouble.take(), failure, now);
        if rules.once && trouble.lasts(now) {
            return State::over(None, trouble.failure);
        }
        self.trouble = Some(trouble);
        self.ask = self.ask.again(moment, CEILING);
        State::Watching(self)
    }

    fn found(self, rules: Rules, ready: Ready, now: Instant) -> State {
        let run = ready.offer.run.clone();
        if self.has_passed(&run) {
            return State::Watching(self.heard(now + LOOK_EVERY));
        }
        let why = if !ready.for_sidecars {
            Failure::new(
                Exit::Usage,
                "taken_by_tracker",
                "the tracker takes its backups itself: set backup.taken_by = \"sidecar\" in its \
                 [maintenance] and restart it",
            )
        } else if let Some(holder) = &ready.holder {
            let why = format!("run {run} is taken: {holder} has it");
            Failure::new(Exit::Busy, "taken", why)
        } else {
            let within = ready.claim_within.unwrap_or(CLAIM_WITHIN);
            return State::Claiming {
                ask: self.ask.then(now),
                ready,
                until: now + within,
            };
        };
        self.let_by(rules, run, why, now)
    }

    /// Not this one.
    fn let_by(mut self, rules: Rules, run: RunId, why: Failure, now: Instant) -> State {
        if self.has_passed(&run) {
            return State::Watching(self.heard(now + LOOK_EVERY));
        }
        if rules.once {
            return State::over(Some(run), why);
        }
        self.passed = Some(Passed {
            run,
            why: Some(why),
        });
        State::Watching(self.heard(now + LOOK_EVERY))
    }

    fn has_passed(&self, run: &RunId) -> bool {
        self.passed
            .as_ref()
            .is_some_and(|passed| passed.run == *run)
    }

    /// Whether the run that was started has gone by without being ready.
    fn is_lost(&self, current: Option<&RunId>, now: Instant) -> bool {
        self.started
            .as_ref()
            .is_some_and(|(run, at)| current != Some(run) && now >= *at + SEEN_WITHIN)
    }

    fn heard(self, next: Instant) -> Self {
        Self {
            ask: self.ask.then(next),
            heard: true,
            trouble: None,
            ..self
        }
    }
}

impl Trouble {
    fn again(before: Option<Self>, failure: Failure, now: Instant) -> Self {
        let since = before.map_or(now, |before| before.since);
        Self { failure, since }
    }

    fn lasts(&self, now: Instant) -> bool {
        now >= self.since + PATIENCE
    }
}

#[cfg(test)]
mod tests;
