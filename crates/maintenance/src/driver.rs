//! The one loop that moves the gate.
//!
//! ```text
//!            ┌──────────────────────────────────────────────────────────┐
//!            ▼                                                          │
//!   reconcile: what the state projects is made so                       │
//!     1. a job that is no longer wanted is cancelled and waited for     │
//!     2. a pin that is no longer wanted ends                            │
//!     3. the gate is closed or opened                                   │
//!     4. files that are no longer wanted are removed                    │
//!     5. the job that is wanted is started                              │
//!     6. status and touch-file say so                                   │
//!            │                                                          │
//!            ▼                                                          │
//!   wait: a job ended · a command · nothing in flight · time ───▶ step ─┘
//! ```
//!
//! Before each step the limits are looked at, and while a sidecar copies the pin and the
//! file as well: what happens after a limit, or a break, came too late.
//!
//! The order of 1 to 3 is invariant 2 of the design: the write lock is gone, then the pin,
//! then the gate opens. The readiness signal is withdrawn before any of them, so that
//! nobody is told "you may copy" of a file that is no longer pinned.
//!
//! # What a run owns
//!
//! A draft (its temporary directory), a pin and a raw copy move from job to job and, in
//! between, lie here. Each cleans up after itself when dropped, so ending a run in any
//! state is dropping what is left of it.
//!
//! While a sidecar copies no job runs, and the pin lies here.
//!
//! # What a sidecar is told
//!
//! That the file held from ready to the end is said only while the pin still stands: at the
//! moment of the finish the limits, the pin and the file's metadata are looked at, then the
//! run ends, signal, pin and gate in their order, and the verdict is remembered; only then
//! is it answered. So the answer can be lost, and asked for again, and is the same.
//!
//! # Jobs that hang
//!
//! Jobs block, so each has a thread of its own. A cancelled job is waited for, but not
//! for long ([`Rules::grace`] while announces wait): a thread stuck in a dead disk must not
//! keep the gate closed. It is left behind, still owning what it was given, and no new run begins until
//! it has ended: two copies at once would be worse than none. What it hands in then is
//! dropped.
//!
//! # A door that is full
//!
//! Announces that are held for a copy are answered late. Once a door holds as many as it
//! may, any more are turned away, and that is worse than a night without a backup: the run
//! is given up, and the gate opens. What has come to its end by then is not.
//!
//! # Runs in a row
//!
//! Whoever starts run after run must not keep announces waiting all along. After a closure
//! for a whole copy none is begun on demand until announces have flowed for as long as they
//! were held: a figure that goes with what it makes up for, so that a copy of a second costs
//! a second, and half of the time is theirs at least. The schedule is the operator's own, and
//! its windows do not overlap.
//!
//! # Panics
//!
//! A job that panics has failed, like any other. Should the loop itself panic, its `Drop`
//! withdraws the signal, ends the pin, opens the gate and says that it is gone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::catalogue::BackupId;
use crate::consumption::Consumption;
use crate::gate::{Gate, Keeper};
use crate::herald::{Ended, Herald};
use crate::lease::{self, Finished, Granted, Holder, Nonce, Verdict, Verdicts};
use crate::readiness;
use crate::schedule::Interval;
use crate::snapshot::Watch;
use crate::status::{
    BackupStatus, CopyOf, DatabaseStatus, GateStatus, Offer, PerDoor, PinnedFile,
    Published as PublishedStatus, RUNS_KEPT, RunReport, RunStatus, SidecarReport, Status, Taker,
    Totals, Traffic, milliseconds,
};
use crate::switch::{self, NoSwitch, NotSwitched, Order, Ordered};
use crate::touch_file::{self, Signal, TouchFile};
use crate::window::{
    Attempt, Cause, Completion, Event, Failure, GateWanted, Job, Now, Outcome, Pause, Phase, Rules,
    Run, RunId, Trigger, Window,
};

/// Log target of everything the driver says, in the style of the services beside it.
pub const LOG_TARGET: &str = "MAINTENANCE";

/// The longest sleep. Clocks jump and machines are suspended; asking again costs nothing.
const NAP: Duration = Duration::from_secs(60);

/// How often a pinned database's write-ahead log is looked at.
const PINNED_NAP: Duration = Duration::from_millis(250);

/// How often it is tried to remove a touch-file that could not be.
const HIDE_AGAIN: Duration = Duration::from_secs(1);

/// How long a job that was given up is waited for while announces flow.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a run does, in the order of the phases. Every method blocks and is called on a
/// thread of its own; each is to return soon after `watch` is cancelled.
pub trait Engine: Send + Sync + 'static {
    /// What a run writes to before it is published; dropping it removes it.
    type Draft: Send + 'static;
    /// The read transaction that keeps the file still; dropping it ends it.
    type Pin: Send + 'static;
    /// The durable raw copy.
    type Copy: Send + 'static;

    /// Everything that can be done, or found impossible, while announces flow. No draft if
    /// a sidecar copies.
    ///
    /// # Errors
    ///
    /// When the run cannot succeed.
    fn prepare(&self, run: &Run, watch: &Watch) -> Result<(Pause, Option<Self::Draft>), Failure>;

    /// Flushes and pins, within `limit`. The gate is closed and nothing is in flight. On
    /// return no write lock is held.
    ///
    /// # Errors
    ///
    /// When the pin could not be taken, now or at all.
    fn pin(&self, run: &Run, limit: Duration, watch: &Watch) -> Result<Self::Pin, NotPinned>;

    /// What is pinned, and since when.
    fn describe(&self, pin: &Self::Pin) -> Pinned;

    /// What became of the pin, or of the file under it, if it is not what it was when it was
    /// pinned. While a sidecar copies this is looked at several times a second, and at the
    /// end: cheap.
    fn broken(&self) -> Option<Failure>;

    /// Learns for how long announces were held for a copy, and whether it was then done: for
    /// what the next run is going to cost. Of a copy of our own only if it was not: how long one
    /// took that was done, the engine knows.
    fn held_for_copy(&self, _held: Duration, _done: bool) {}

    /// Copies the pinned file. The pin stays: the readiness signal is withdrawn before it.
    ///
    /// # Errors
    ///
    /// When the copy did not become complete and durable.
    fn copy(
        &self,
        run: &Run,
        draft: &Self::Draft,
        pin: &Self::Pin,
        watch: &Watch,
    ) -> Result<Self::Copy, Failure>;

    /// Ends a pin under which the service wrote, and tidies up what that left. May take
    /// long. Where nothing was written, dropping the pin is enough.
    fn release(&self, pin: Self::Pin);

    /// Ends the pin of a copy that hangs, from outside, within the time given. Says
    /// whether writers are free to write.
    fn end_pin(&self, within: Duration) -> bool;

    /// Verifies, compresses, publishes and prunes.
    ///
    /// # Errors
    ///
    /// When nothing was published.
    fn finish(
        &self,
        run: &Run,
        draft: Self::Draft,
        copy: Self::Copy,
        pauses: Pauses,
        watch: &Watch,
    ) -> Result<Published, Failure>;

    /// A reason to give up a pinned run, looked for several times a second: cheap.
    fn pinned_too_long(&self) -> Option<Failure>;

    /// Bytes that what the service writes meanwhile has grown by under the pin; `None`: not
    /// known, or it writes nothing. As cheap.
    fn grown_under_pin(&self) -> Option<u64> {
        None
    }

    /// The journal mode last seen.
    fn journal_mode(&self) -> String;

    /// Whether the database could be ordered to go over to WAL in a run ([`Run::to_wal`]),
    /// whatever mode it is in.
    ///
    /// # Errors
    ///
    /// Why not.
    fn can_switch(&self) -> Result<(), NoSwitch> {
        Err(NoSwitch::Server)
    }
}

/// Why there is no pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotPinned {
    /// Something was in the way that may be gone next time.
    Busy(String),
    /// It will not work next time either.
    Failed(Failure),
}

/// What a pin holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    /// The file; `None`: there is none that others could copy.
    pub file: Option<PinnedFile>,
    /// The instant it shows: every commit before is in it, none after.
    pub taken: DateTime<Utc>,
}

/// For how long a run kept the gate closed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pauses {
    /// All its closures together.
    pub total: Duration,
    /// The longest.
    pub longest: Duration,
    /// After how long one is given up, of those there were the one that may last longest.
    pub limit: Duration,
}

/// What a run published.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// The backup.
    pub backup: BackupId,
    /// What is to be told of it; `None`: no more than its id.
    pub made: Option<BackupStatus>,
    /// What to look at though it is good.
    pub warnings: Vec<String>,
}

/// What the driver can be asked for.
#[derive(Debug)]
pub enum Command {
    /// Begin a run now, window or not.
    Start {
        /// Told the run's id, or why there is none.
        reply: oneshot::Sender<Result<RunId, Refused>>,
    },
    /// A sidecar wants the lease on a run.
    Claim {
        /// The run.
        run: RunId,
        /// Who it is.
        holder: Holder,
        /// What the lease is to be known by.
        nonce: Nonce,
        /// Told what it has, or why it has not.
        reply: oneshot::Sender<Result<Granted, lease::Refused>>,
    },
    /// A sidecar needs more time.
    Renew {
        /// The run.
        run: RunId,
        /// What its lease is known by.
        nonce: Nonce,
        /// Told what it has now, or why it has nothing.
        reply: oneshot::Sender<Result<Granted, lease::Refused>>,
    },
    /// A sidecar has finished.
    Finish {
        /// The run.
        run: RunId,
        /// What its lease is known by.
        nonce: Nonce,
        /// Whether it has a copy.
        how: Finished,
        /// Told whether the copy may be trusted, or why that cannot be said.
        reply: oneshot::Sender<Result<Verdict, lease::Refused>>,
    },
    /// A commit of the service could not be made durable. If a file is pinned, the run is given
    /// up: the log cannot be begun anew under a pin, and until it is none can be
    /// ([`durability`](crate::durability)).
    GiveWay {
        /// What went wrong.
        why: String,
    },
    /// The database is to go over to WAL in the next run.
    OrderWal {
        /// Told what will happen, or why it cannot.
        reply: oneshot::Sender<Result<Ordered, Refused>>,
    },
    /// It is to stay as it is.
    WithdrawWal {
        /// Told what there was, or why it is too late.
        reply: oneshot::Sender<Result<Ordered, Refused>>,
    },
}

/// Why the driver did not do as it was asked. A value, not an error: nothing broke.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another run is in progress.
    #[error("run {run} is in progress ({phase}); wait for it to end")]
    Busy {
        /// The run in the way.
        run: RunId,
        /// What it is doing.
        phase: Phase,
    },
    /// A job that was given up has not ended.
    #[error(
        "run {run} was given up but its thread has not ended, which points at a disk that does \
         not answer; no run begins until it has"
    )]
    Stuck {
        /// The run it belongs to.
        run: RunId,
    },
    /// Announces were held for a copy and have not flowed for as long since.
    #[error(
        "announces were held for {held:.1?} for a copy, and flow for as long before another run \
         is begun on demand; ask again in {left:.1?}, or use journal_mode = \"wal\", where they \
         are not held"
    )]
    TooSoon {
        /// For how long they were held.
        held: Duration,
        /// From when on they may be held again.
        left: Duration,
    },
    /// The journal mode cannot be switched.
    #[error(transparent)]
    NoSwitch(#[from] NoSwitch),
    /// The process is going down.
    #[error("the service is shutting down; ask again when it is back")]
    ShuttingDown,
}

/// What the driver is built from, but for its engine.
#[derive(Debug)]
pub struct Parts {
    /// The gate's one keeper.
    pub keeper: Keeper,
    /// What windows keep to.
    pub rules: Rules,
    /// How many requests each door holds before it turns any away.
    pub hold_at_most: PerDoor,
    /// The beginning of the newest scheduled window known to have had its run.
    pub served: Option<DateTime<Utc>>,
    /// The touch-file, if one is configured.
    pub touch_file: Option<TouchFile>,
    /// The service's name and version.
    pub service: String,
    /// The database, as configured.
    pub database: std::path::PathBuf,
}

/// The loop and everything it owns.
#[derive(Debug)]
pub struct Driver<E: Engine> {
    engine: Arc<E>,
    rules: Rules,
    hold_at_most: PerDoor,
    window: Window,
    signal: Option<Signal>,
    service: String,
    database: std::path::PathBuf,

    /// The run in progress, as it will be reported.
    record: Option<Record>,
    /// What it owns between two jobs.
    draft: Option<E::Draft>,
    pin: Option<E::Pin>,
    copy: Option<E::Copy>,
    job: Option<Running>,
    /// Jobs that were given up and have not ended.
    stuck: Vec<Attempt>,
    /// Whether a closure is yet to be counted. Not whether the gate is closed: the
    /// watchdog may have opened it.
    closed: bool,
    /// What the doors had turned away when it began.
    turned_away: PerDoor,
    /// Whether announces wait for a whole copy in it.
    for_a_copy: bool,
    /// The last closure for a whole copy: how long it was, and when announces will have
    /// flowed for as long.
    rest: Option<(Duration, Instant)>,
    /// How often the watchdog is known to have opened the gate.
    forced: u64,
    /// What the touch-file says, unless it is known to be gone.
    signalled: Option<Shown>,
    /// A look, under way, for a file that says that a sidecar without a lease has finished.
    looking: Option<JoinHandle<Look>>,
    reports: Vec<RunReport>,
    verdicts: Verdicts,
    totals: Totals,
    /// The newest good backup, as far as known.
    newest: Option<BackupStatus>,
    /// What the next run is to do besides; a restart forgets it.
    order: Option<Order>,
    /// When the driver was started.
    started: DateTime<Utc>,
    /// Windows that began up to then had their run, have been told of, or are of before.
    accounted: DateTime<Utc>,
    herald: Option<Herald>,

    ends: mpsc::UnboundedReceiver<End<E>>,
    hand_in: mpsc::UnboundedSender<End<E>>,
    commands: mpsc::Receiver<Command>,
    status: watch::Sender<PublishedStatus>,
    keeper: Keeper,
}

#[derive(Debug)]
struct Record {
    run: Run,
    pauses: Pauses,
    published: Option<Published>,
    pinned: Option<Pinned>,
    /// When it ceases to be ready at the latest, by the wall clock; noted once, so that
    /// everybody is told the same.
    deadline: Option<DateTime<Utc>>,
    sidecar: Option<Sidecar>,
    warnings: Vec<String>,
    /// What the write-ahead log was last seen to have grown by under the pin.
    wal_bytes: Option<u64>,
    /// Whether the database went over to WAL meanwhile.
    switched: bool,
}

/// The sidecar that came for a run.
#[derive(Debug)]
struct Sidecar {
    holder: Holder,
    /// `None`: it has no lease, but a file.
    nonce: Option<Nonce>,
    /// `None`: it has not finished.
    verdict: Option<Verdict>,
    /// Why it has no copy, in its words.
    said: Option<String>,
}

impl Record {
    fn new(run: Run) -> Self {
        Self {
            run,
            pauses: Pauses::default(),
            published: None,
            pinned: None,
            deadline: None,
            sidecar: None,
            warnings: Vec::new(),
            wal_bytes: None,
            switched: false,
        }
    }
}

/// What the touch-file says.
#[derive(Debug)]
struct Shown {
    run: RunId,
    /// The removal under way.
    hiding: Option<JoinHandle<Result<(), touch_file::Error>>>,
    /// Why it is not gone, though it should be.
    stays: Option<String>,
}

impl Shown {
    fn new(run: RunId) -> Self {
        Self {
            run,
            hiding: None,
            stays: None,
        }
    }
}

#[derive(Debug)]
struct Running {
    of: Attempt,
    job: Job,
    watch: Watch,
}

/// What a job's thread hands in.
struct End<E: Engine> {
    of: Attempt,
    job: Job,
    result: JobResult<E>,
}

enum JobResult<E: Engine> {
    Prepared(Pause, Option<E::Draft>),
    Pinned(E::Pin),
    Busy(String),
    /// However the copy went, draft and pin come back: the pin ends after the signal is
    /// withdrawn, and files are removed after the gate has opened.
    Copied(Result<E::Copy, Failure>, E::Draft, E::Pin),
    Published(Published),
    Failed(Failure),
}

/// The run that a file says a sidecar has finished, if there is one, and how.
type Look = Result<Option<(RunId, Finished)>, touch_file::Error>;

/// What ended a wait.
enum Woken<E: Engine> {
    Time,
    Drained,
    Ended(End<E>),
    Looked(Look),
    Asked(Command),
    ShuttingDown,
}

/// The ends of a driver's channels that belong to others.
#[derive(Debug)]
pub struct Handles {
    /// Asks it for things.
    pub commands: mpsc::Sender<Command>,
    /// Reads what it publishes.
    pub status: crate::status::Reader,
}

impl<E: Engine> Driver<E> {
    /// A driver that serves and has this engine do the work, and the handles to it.
    #[must_use]
    pub fn new(engine: E, parts: Parts) -> (Self, Handles) {
        let (hand_in, ends) = mpsc::unbounded_channel();
        let (ask, commands) = mpsc::channel(16);
        let gate = parts.keeper.gate().clone();
        let started = now().utc;
        let driver = Self {
            window: Window::new(parts.served),
            status: watch::Sender::new(PublishedStatus {
                status: blank_status(&engine, &parts, &gate, started),
                job: None,
                offer: None,
            }),
            engine: Arc::new(engine),
            keeper: parts.keeper,
            rules: parts.rules,
            hold_at_most: parts.hold_at_most,
            signal: parts.touch_file.map(Signal::new),
            service: parts.service,
            database: parts.database,
            record: None,
            draft: None,
            pin: None,
            copy: None,
            job: None,
            stuck: Vec::new(),
            closed: false,
            turned_away: PerDoor::default(),
            for_a_copy: false,
            rest: None,
            forced: 0,
            signalled: None,
            looking: None,
            reports: Vec::new(),
            verdicts: Verdicts::default(),
            totals: Totals::default(),
            newest: None,
            order: None,
            started,
            accounted: parts.served.unwrap_or(started),
            herald: None,
            ends,
            hand_in,
            commands,
        };
        let status = crate::status::Reader::new(driver.status.subscribe(), gate);
        (
            driver,
            Handles {
                commands: ask,
                status,
            },
        )
    }

    /// Begins with the newest backup that was found, and has a herald call the hooks and tell
    /// how runs end.
    #[must_use]
    pub fn telling(mut self, newest: Option<BackupStatus>, herald: Option<Herald>) -> Self {
        self.status
            .send_modify(|published| published.status.backup.clone_from(&newest));
        self.newest = newest;
        self.herald = herald;
        self
    }

    /// Runs until `shutdown` completes. On return the gate is open, nothing is pinned and
    /// no temporary file is left, unless a job's thread hangs.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        loop {
            // A run that has ended is seen off before the next one begins.
            self.reconcile().await;
            if self.begin_what_is_due() {
                self.reconcile().await;
            }
            self.look_for_missed();
            let woken = self.wait(shutdown.as_mut()).await;
            // Whatever woke it, limits come first: what happens after one came too late.
            self.tick();
            match woken {
                Woken::Time => self.look_for_done(),
                Woken::Drained => self.ended_now(Completion::Drained),
                Woken::Ended(end) => self.take(end),
                Woken::Looked(found) => self.take_look(found),
                Woken::Asked(command) => {
                    // Of what the limits ended something may be asked.
                    self.reconcile().await;
                    self.obey(command).await;
                }
                Woken::ShuttingDown => break,
            }
            self.make_room();
        }
        self.step(Event::Abort {
            reason: "the service is shutting down".into(),
        });
        self.reconcile().await;
    }

    // ---- events -------------------------------------------------------------------

    fn step(&mut self, event: Event) {
        let window = std::mem::replace(&mut self.window, Window::new(None));
        self.window = window.step(&self.rules, now(), event);
    }

    /// Whether there was anything.
    fn begin_what_is_due(&mut self) -> bool {
        let now = now();
        let Some((trigger, window)) = self.window.due(&self.rules, now.utc) else {
            return false;
        };
        let lasts = (window.ends - now.utc).to_std().unwrap_or_default();
        let id = RunId::new(now.utc);
        let stuck = self.stuck.first().cloned();
        self.begin(id.clone(), trigger, Some(window.begins), lasts);
        if let Some(stuck) = stuck {
            let of = Attempt { run: id, number: 1 };
            let failure = Failure::other(&Refused::Stuck { run: stuck.run });
            self.step(Event::Ended {
                of,
                how: Completion::Failed(failure),
            });
        }
        true
    }

    /// Silence is told like a failure.
    fn look_for_missed(&mut self) {
        let Some(window) = self.window.missed(&self.rules, now().utc) else {
            return;
        };
        if window.begins <= self.accounted {
            return;
        }
        self.accounted = window.begins;
        self.totals.missed += 1;
        tracing::error!(target: LOG_TARGET, "{}", missed(window));
        if let Some(herald) = &self.herald {
            herald.missed(window);
        }
        self.publish();
    }

    fn begin(
        &mut self,
        id: RunId,
        trigger: Trigger,
        serves: Option<DateTime<Utc>>,
        lasts: Duration,
    ) {
        let before = self.window.last().map(|(id, _)| id.clone());
        self.step(Event::Start {
            id,
            trigger,
            serves,
            lasts,
        });
        if let Some(run) = self.window.run() {
            tracing::info!(target: LOG_TARGET, run = %run.id, ?trigger, "A run begins");
            let order = self.order.as_ref();
            self.record = Some(Record::new(Run {
                to_wal: order.is_some_and(|order| order.is_for(trigger, before.as_ref())),
                ..run.clone()
            }));
        }
    }

    /// Whoever asked may have hung up; what was asked for stands.
    async fn obey(&mut self, command: Command) {
        match command {
            Command::Start { reply } => drop(reply.send(self.start())),
            Command::Claim {
                run,
                holder,
                nonce,
                reply,
            } => {
                let answer = self.claim(&run, holder, &nonce);
                // Who has the lease is seen before it is told: nobody else comes by the file.
                self.reconcile().await;
                drop(reply.send(answer));
            }
            Command::Renew { run, nonce, reply } => {
                let answer = self.renew(&run, &nonce);
                self.publish();
                drop(reply.send(answer));
            }
            Command::Finish {
                run,
                nonce,
                how,
                reply,
            } => drop(reply.send(self.finish(&run, &nonce, how).await)),
            Command::GiveWay { why } => self.step(Event::Spoiled(Failure {
                cause: Cause::Database,
                message: format!(
                    "given up, for the service to recover, which it cannot while the file is \
                     pinned: {why}"
                ),
            })),
            Command::OrderWal { reply } => {
                let answer = self.order_wal();
                self.publish();
                drop(reply.send(answer));
            }
            Command::WithdrawWal { reply } => {
                let answer = self.withdraw_wal();
                self.publish();
                drop(reply.send(answer));
            }
        }
    }

    fn start(&mut self) -> Result<RunId, Refused> {
        if let Some(run) = self.window.run() {
            Err(Refused::Busy {
                run: run.id.clone(),
                phase: self.window.phase(),
            })
        } else if let Some(stuck) = self.stuck.first() {
            Err(Refused::Stuck {
                run: stuck.run.clone(),
            })
        } else if let Some((held, left)) = self.rests(now().monotonic) {
            Err(Refused::TooSoon { held, left })
        } else {
            let id = RunId::new(now().utc);
            self.begin(
                id.clone(),
                Trigger::Operator,
                None,
                self.rules.schedule.duration(),
            );
            Ok(id)
        }
    }

    /// For the next run to begin: the one in progress was reckoned without.
    fn order_wal(&mut self) -> Result<Ordered, Refused> {
        self.engine.can_switch()?;
        let journal_mode = self.engine.journal_mode();
        if journal_mode == switch::WAL {
            return Ok(Ordered::already());
        }
        if self.order.is_none() {
            tracing::info!(
                target: LOG_TARGET, "The database is to go over to WAL in the next run"
            );
        }
        let order = self.order.get_or_insert_with(|| Order::new(now().utc));
        let run = self.record.as_ref().map(|record| &record.run);
        Ok(Ordered::will_be(journal_mode, order.clone(), run))
    }

    /// Not from under a run that was reckoned with it: its pin would keep writers out while
    /// announces flow.
    fn withdraw_wal(&mut self) -> Result<Ordered, Refused> {
        if let (Some(_), Some(Record { run, .. })) = (&self.order, &self.record)
            && run.to_wal
        {
            return Err(Refused::Busy {
                run: run.id.clone(),
                phase: self.window.phase(),
            });
        }
        let stood = self.order.take().is_some();
        if stood {
            tracing::info!(target: LOG_TARGET, "The database is not to go over to WAL any more");
        }
        Ok(Ordered::withdrawn(self.engine.journal_mode(), stood))
    }

    /// An order has been carried out once the database is in WAL: in its pin's job, which may
    /// yet fail, or by somebody else.
    fn look_for_switch(&mut self) {
        if self.order.is_none() || self.engine.journal_mode() != switch::WAL {
            return;
        }
        self.order = None;
        if let Some(record) = &mut self.record {
            record.switched = record.run.to_wal;
        }
        tracing::info!(
            target: LOG_TARGET, "The journal mode was switched: {}", switch::SWITCHED
        );
    }

    /// For how long announces were held for a copy, and for how long they are yet to flow.
    fn rests(&self, now: Instant) -> Option<(Duration, Duration)> {
        let (held, until) = self.rest?;
        let left = until.saturating_duration_since(now);
        (!left.is_zero()).then_some((held, left))
    }

    fn claim(
        &mut self,
        run: &RunId,
        holder: Holder,
        nonce: &Nonce,
    ) -> Result<Granted, lease::Refused> {
        self.step(Event::Claim {
            run: run.clone(),
            holder,
            nonce: nonce.clone(),
        });
        let now = now().monotonic;
        let granted = self.window.claimed(&self.rules, run, nonce, now)?;
        if let Some(record) = &mut self.record
            && record.sidecar.is_none()
        {
            tracing::info!(
                target: LOG_TARGET, run = %run, "The sidecar {:?} has the lease", granted.holder
            );
            record.sidecar = Some(Sidecar {
                holder: granted.holder.clone(),
                nonce: Some(nonce.clone()),
                verdict: None,
                said: None,
            });
        }
        Ok(granted)
    }

    fn renew(&mut self, run: &RunId, nonce: &Nonce) -> Result<Granted, lease::Refused> {
        self.step(Event::Renew {
            run: run.clone(),
            nonce: nonce.clone(),
        });
        let now = now().monotonic;
        self.window.held(&self.rules, run, nonce, now)
    }

    async fn finish(
        &mut self,
        run: &RunId,
        nonce: &Nonce,
        how: Finished,
    ) -> Result<Verdict, lease::Refused> {
        if let Some(verdict) = self.verdicts.of(run, nonce) {
            return Ok(verdict.clone());
        }
        let now = now().monotonic;
        self.window.held(&self.rules, run, nonce, now)?;
        // The pin was found to stand, and the file to be as it was, after this was asked
        // for, or the run would have ended.
        let verdict = Verdict::held();
        if let Some(sidecar) = self.sidecar() {
            sidecar.verdict = Some(verdict.clone());
            if let Finished::Failed(reason) = &how {
                sidecar.said = Some(reason.clone());
            }
        }
        self.step(Event::Finish {
            run: run.clone(),
            nonce: nonce.clone(),
            how,
        });
        self.reconcile().await;
        Ok(verdict)
    }

    fn sidecar(&mut self) -> Option<&mut Sidecar> {
        self.record.as_mut()?.sidecar.as_mut()
    }

    /// Begins a look for the file that says that a sidecar has finished. On a thread of its
    /// own, like everything that is done in that directory; one at a time.
    fn look_for_done(&mut self) {
        if self.window.phase() != Phase::Offered
            || self.signalled.is_none()
            || self.looking.is_some()
        {
            return;
        }
        if let (Some(signal), Some(run)) = (&self.signal, self.window.run()) {
            self.looking = Some(tokio::task::spawn_blocking(signal.look_for_done(&run.id)));
        }
    }

    fn take_look(&mut self, found: Look) {
        let (run, how) = match found {
            Ok(Some(finished)) => finished,
            Ok(None) => return,
            Err(error) => return self.warn_once(error.to_string()),
        };
        if self.window.phase() != Phase::Offered
            || self.window.run().is_none_or(|current| current.id != run)
        {
            return;
        }
        let (verdict, said) = match &how {
            // As for a lease: the pin was found to stand after the file was found.
            Finished::Ok => (Some(Verdict::held()), None),
            // Of whoever else was at the file nothing is known, so nobody is told to trust it.
            Finished::Failed(reason) => (None, Some(reason.clone())),
        };
        if let Some(record) = &mut self.record {
            record.sidecar = Some(Sidecar {
                holder: Holder::by_touch_file(),
                nonce: None,
                verdict,
                said,
            });
        }
        self.step(Event::FinishedByFile { run, how });
    }

    /// A warning of the run, and of the log, but not four times a second.
    fn warn_once(&mut self, problem: String) {
        if let Some(record) = &mut self.record
            && !record.warnings.contains(&problem)
        {
            tracing::warn!(target: LOG_TARGET, "{problem}");
            record.warnings.push(problem);
        }
    }

    /// Limits, and what would end a pinned run before them.
    fn tick(&mut self) {
        self.step(Event::Tick);
        if let Some(record) = &mut self.record
            && self.window.ready()
            && let Some(grown) = self.engine.grown_under_pin()
        {
            record.wal_bytes = Some(grown);
        }
        if let Some(failure) = self.spoiled() {
            self.step(Event::Spoiled(failure));
        }
    }

    /// Gives the run up whose pause makes a door turn announces away. After what has come to
    /// its end was taken: a copy that is complete opens the gate as well.
    fn make_room(&mut self) {
        if let Some(failure) = self.crowded() {
            self.step(Event::Spoiled(failure));
        }
    }

    fn crowded(&self) -> Option<Failure> {
        if !self.window.ready() || self.keeper.gate().is_open() {
            return None;
        }
        let GateStatus {
            held, turned_away, ..
        } = GateStatus::of(self.keeper.gate());
        let Self {
            hold_at_most: most,
            turned_away: before,
            ..
        } = self;
        let full = |held, most, now, before| held >= most || now > before;
        let door = if full(held.udp, most.udp, turned_away.udp, before.udp) {
            "udp"
        } else if full(held.http, most.http, turned_away.http, before.http) {
            "http"
        } else {
            return None;
        };
        Some(Failure {
            cause: Cause::HeldLimit,
            message: format!(
                "as many requests were held for the copy as gate.hold_at_most.{door} allows, and \
                 any more would have been turned away; use journal_mode = \"wal\" with announces \
                 = \"auto\", where they flow while the file is copied, raise the limit, or have \
                 the window at a quieter hour"
            ),
        })
    }

    fn spoiled(&self) -> Option<Failure> {
        match self.window.phase() {
            Phase::Copying => self.engine.pinned_too_long(),
            // The tracker's own copy looks after its pin; a sidecar cannot.
            Phase::Offered | Phase::Leased => {
                let broken = self.engine.broken();
                broken.or_else(|| self.engine.pinned_too_long())
            }
            _ => None,
        }
    }

    /// A completion of the current attempt.
    fn ended_now(&mut self, how: Completion) {
        if let Some((of, _)) = self.window.job() {
            self.step(Event::Ended { of, how });
        }
    }

    /// Takes what a job hands in, or drops it if the job was given up.
    fn take(&mut self, end: End<E>) {
        let End { of, job, result } = end;
        self.stuck.retain(|stuck| *stuck != of);
        if !self
            .job
            .as_ref()
            .is_some_and(|running| running.of == of && running.job == job)
        {
            self.take_back(result);
            return;
        }
        self.job = None;
        let how = match result {
            JobResult::Prepared(pause, draft) => {
                self.draft = draft;
                Completion::Prepared(pause)
            }
            JobResult::Pinned(pin) => {
                if let Some(record) = &mut self.record {
                    record.pinned = Some(self.engine.describe(&pin));
                }
                self.pin = Some(pin);
                Completion::Pinned
            }
            JobResult::Busy(why) => Completion::Busy(why),
            JobResult::Copied(copied, draft, pin) => {
                self.draft = Some(draft);
                self.pin = Some(pin);
                match copied {
                    Ok(copy) => {
                        self.copy = Some(copy);
                        Completion::Copied
                    }
                    Err(failure) => Completion::Failed(failure),
                }
            }
            JobResult::Published(published) => {
                if let Some(record) = &mut self.record {
                    record.published = Some(published);
                }
                Completion::Published
            }
            JobResult::Failed(failure) => Completion::Failed(failure),
        };
        self.step(Event::Ended { of, how });
    }

    /// Keeps what a job that was given up hands in late, to be let go of in order.
    fn take_back(&mut self, result: JobResult<E>) {
        if let JobResult::Copied(copied, draft, pin) = result {
            self.pin = Some(pin);
            self.draft = Some(draft);
            self.copy = copied.ok();
        }
    }

    // ---- projections made so --------------------------------------------------------

    async fn reconcile(&mut self) {
        self.withdraw_ready().await;
        self.stop_unwanted_job().await;
        self.look_for_switch();
        self.give_up_beside_a_stuck_job();
        self.release_unwanted_pin();
        self.move_gate();
        self.discard_unwanted_files().await;
        self.start_wanted_job();
        self.signal_ready().await;
        self.report_ended_run().await;
        self.publish();
    }

    async fn stop_unwanted_job(&mut self) {
        let wanted = self.window.job();
        let unwanted = |running: &mut Running| {
            wanted
                .as_ref()
                .is_none_or(|(of, job)| (of, job) != (&running.of, &running.job))
        };
        let Some(running) = self.job.take_if(unwanted) else {
            return;
        };
        running.watch.cancel("the run was given up");
        // While announces wait for it, the gate's own deadline is only the grace away.
        let closed = !self.keeper.gate().is_open();
        let patience = if closed {
            self.rules.grace / 2
        } else {
            PATIENCE
        };
        if tokio::time::timeout(patience, self.ended(&running.of))
            .await
            .is_err()
        {
            tracing::error!(
                target: LOG_TARGET, run = %running.of.run, job = ?running.job,
                "A job that was given up does not end; no run begins until it does"
            );
            // Its pin may keep writers out, and they come as soon as the gate opens.
            if closed && !self.engine.end_pin(self.rules.grace / 4) {
                tracing::error!(
                    target: LOG_TARGET,
                    "Its pin could not be ended either; on a rollback journal the service's \
                     writes fail until it is"
                );
            }
            self.stuck.push(running.of);
        }
    }

    /// Waits for the end of a job that was given up.
    async fn ended(&mut self, given_up: &Attempt) {
        while let Some(End { of, result, .. }) = self.ends.recv().await {
            self.stuck.retain(|stuck| *stuck != of);
            self.take_back(result);
            if of == *given_up {
                return;
            }
        }
    }

    fn release_unwanted_pin(&mut self) {
        if !self.window.ready() {
            self.release_pin();
        }
    }

    /// Removes what a run that has ended leaves on the disk. After the gate has opened,
    /// and off this thread: removing gigabytes takes its time, and a dead disk for ever.
    async fn discard_unwanted_files(&mut self) {
        if self.window.phase() != Phase::Serving {
            return;
        }
        let files = (self.draft.take(), self.copy.take());
        if let (None, None) = files {
            return;
        }
        let discarded = tokio::task::spawn_blocking(move || drop(files));
        if tokio::time::timeout(PATIENCE, discarded).await.is_err() {
            tracing::warn!(
                target: LOG_TARGET,
                "Temporary files of the run are still being removed; does the disk answer?"
            );
        }
    }

    /// A second attempt beside a thread of the first that hangs would hang as well.
    fn give_up_beside_a_stuck_job(&mut self) {
        let Some(run) = self.window.run().map(|run| run.id.clone()) else {
            return;
        };
        if self.stuck.iter().any(|stuck| stuck.run == run) {
            let reason = Refused::Stuck { run }.to_string();
            self.step(Event::Abort { reason });
        }
    }

    /// With the gate closed nothing was written under the pin, so ending it is quick and
    /// has to come before the gate opens. With the gate open there is no hurry, and a log
    /// that has grown.
    fn release_pin(&mut self) {
        let Some(pin) = self.pin.take() else { return };
        if !self.keeper.gate().is_open() {
            return;
        }
        let engine = Arc::clone(&self.engine);
        let thread = std::thread::Builder::new().name("maintenance-release".into());
        if let Err(error) = thread.spawn(move || engine.release(pin)) {
            // The closure is gone, and the pin with it.
            tracing::warn!(
                target: LOG_TARGET,
                "No thread to shrink the write-ahead log ({error}); SQLite will, at some commit"
            );
        }
    }

    fn move_gate(&mut self) {
        match self.window.gate(&self.rules) {
            GateWanted::Closed { until } => {
                self.keeper.close(until);
                if !std::mem::replace(&mut self.closed, true) {
                    self.turned_away = GateStatus::of(self.keeper.gate()).turned_away;
                }
                self.for_a_copy |= self.window.ready();
                let limit = if self.for_a_copy {
                    self.rules.held_at_most()
                } else {
                    self.rules.flushed_within()
                };
                if let Some(Record { pauses, .. }) = &mut self.record {
                    pauses.limit = pauses.limit.max(limit);
                }
            }
            GateWanted::Open => {
                let forced = self.keeper.gate().forced();
                if forced > self.forced {
                    self.forced = forced;
                    tracing::error!(
                        target: LOG_TARGET,
                        "The gate had to be opened by its watchdog: the driver was late. This is \
                         a defect or a machine that stood still; please report it"
                    );
                }
                let closed_for = self.keeper.open();
                if std::mem::replace(&mut self.closed, false) {
                    self.count_pause(closed_for);
                }
                if std::mem::replace(&mut self.for_a_copy, false) {
                    self.rest = Some((closed_for, now().monotonic + closed_for));
                    self.learn(closed_for);
                }
            }
        }
    }

    /// Only what says something about the copy: that it was done, was not at the limit, or
    /// was not in all the time there was for somebody to come, which by touch-file is that of
    /// the copy as well.
    fn learn(&self, held: Duration) {
        let Some((_, outcome)) = self.window.last() else {
            return;
        };
        let all_the_time = held + self.rules.grace >= self.rules.held_at_most();
        match outcome {
            Outcome::Done => self.engine.held_for_copy(held, true),
            // Nobody came; or at its own limit or at the end of the window, where there was no
            // more time.
            Outcome::NoSidecar { .. }
            | Outcome::Deadline {
                phase: Phase::Copying,
                ..
            } => self.engine.held_for_copy(held, false),
            // Of a sidecar, which may have died before. It counts from before it asked, so at
            // the limit either may be the first.
            Outcome::Deadline { .. }
            | Outcome::Failed {
                cause: Cause::Sidecar,
                ..
            } if all_the_time => self.engine.held_for_copy(held, false),
            _ => {}
        }
    }

    fn count_pause(&mut self, closed_for: Duration) {
        tracing::info!(
            target: LOG_TARGET,
            "Announces resume after {:.1} ms", milliseconds(closed_for)
        );
        if let Some(Record { pauses, .. }) = &mut self.record {
            pauses.total += closed_for;
            pauses.longest = pauses.longest.max(closed_for);
        }
    }

    fn start_wanted_job(&mut self) {
        let Some((of, job)) = self.window.job() else {
            return;
        };
        if self.job.is_some() {
            return;
        }
        let Some(Record { run, pauses, .. }) = &self.record else {
            return;
        };
        let run = Run {
            attempt: of.number,
            ..run.clone()
        };
        let pauses = *pauses;
        let engine = Arc::clone(&self.engine);
        let watch = Watch::default();
        let work: Work<E> = match job {
            // Waited for in `wait`; it needs no thread.
            Job::Drain => return,
            Job::Prepare => {
                let before = self.herald.clone();
                let id = run.id.clone();
                Box::new(move |watch| {
                    // While announces flow: of the hooks this one alone can keep a run waiting.
                    let begun = before.map_or(Ok(()), |herald| herald.before(id, watch));
                    match begun.and_then(|()| engine.prepare(&run, watch)) {
                        Ok((pause, draft)) => JobResult::Prepared(pause, draft),
                        Err(failure) => JobResult::Failed(failure),
                    }
                })
            }
            Job::Pin => {
                let limit = self.time_left();
                Box::new(move |watch| match engine.pin(&run, limit, watch) {
                    Ok(pin) => JobResult::Pinned(pin),
                    Err(NotPinned::Busy(why)) => JobResult::Busy(why),
                    Err(NotPinned::Failed(failure)) => JobResult::Failed(failure),
                })
            }
            Job::Copy => {
                let parts = self.draft.take().zip(self.pin.take());
                Box::new(move |watch| {
                    let (draft, pin) = parts.expect("Copying is reached with a draft and a pin");
                    let copied = caught(|| engine.copy(&run, &draft, &pin, watch));
                    JobResult::Copied(copied.unwrap_or_else(Err), draft, pin)
                })
            }
            Job::Finish => {
                let parts = self.draft.take().zip(self.copy.take());
                Box::new(move |watch| {
                    let (draft, copy) = parts.expect("Finishing is reached with draft and copy");
                    match engine.finish(&run, draft, copy, pauses, watch) {
                        Ok(published) => JobResult::Published(published),
                        Err(failure) => JobResult::Failed(failure),
                    }
                })
            }
        };
        self.job = Some(Running {
            of: of.clone(),
            job,
            watch: watch.clone(),
        });
        spawn(of, job, watch, work, self.hand_in.clone());
    }

    fn time_left(&self) -> Duration {
        let now = now().monotonic;
        // So that a reason told by the job itself comes before the limit does.
        let margin = self.rules.grace / 2;
        self.window
            .wake_at()
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
            .saturating_sub(margin)
    }

    // ---- what the world is told -------------------------------------------------------

    async fn signal_ready(&mut self) {
        let now = now();
        let copy = self.copy_of();
        let (Some(deadline), Some(record)) = (self.window.deadline(), &mut self.record) else {
            return;
        };
        let by_wall_clock = |at: Instant| now.utc + at.saturating_duration_since(now.monotonic);
        if record.deadline.is_none() {
            record.deadline = Some(by_wall_clock(deadline));
            if let Some(herald) = &self.herald {
                herald.ready(record.run.id.clone());
            }
        }
        let run = &record.run.id;
        let known = self.signalled.as_ref();
        if !self.window.shown() || known.is_some_and(|shown| shown.run == *run) {
            return;
        }
        let (Some(signal), Some(pinned)) = (&self.signal, &record.pinned) else {
            return;
        };
        let Some(file) = pinned.file else {
            return;
        };
        self.signalled = Some(Shown::new(run.clone()));
        let ready = touch_file::Ready {
            run: record.run.id.clone(),
            database: self.database.clone(),
            driver: readiness::DRIVER.to_owned(),
            copy,
            until: by_wall_clock(self.window.claim_until().unwrap_or(deadline)),
            began: record.run.began,
            pinned: pinned.taken,
            journal_mode: self.engine.journal_mode(),
            pause_ms: milliseconds(record.pauses.total),
            file,
        };
        let shown = signal.show(ready);
        if let Some(problem) = aside(self.patience(1), shown).await {
            self.warn_once(problem);
        }
    }

    /// What there is to be copied while the file is ready.
    fn copy_of(&self) -> CopyOf {
        match self.window.gate(&self.rules) {
            GateWanted::Open => CopyOf::PinnedFile,
            GateWanted::Closed { .. } => CopyOf::PausedDatabase,
        }
    }

    async fn withdraw_ready(&mut self) {
        if !self.window.ready() {
            self.status.send_if_modified(|published| {
                published.offer = None;
                std::mem::replace(&mut published.status.ready, false)
            });
        }
        if self.window.shown() {
            return;
        }
        let patience = self.patience(8);
        let (Some(signal), Some(shown)) = (&self.signal, &mut self.signalled) else {
            return;
        };
        // What hangs holds one thread, and is waited for once.
        let patience = shown.hiding.as_ref().map_or(patience, |_| Duration::ZERO);
        let hiding = shown
            .hiding
            .get_or_insert_with(|| tokio::task::spawn_blocking(signal.hide()));
        let hidden = tokio::time::timeout(patience, &mut *hiding).await;
        if hidden.is_ok() {
            shown.hiding = None;
        }
        let problem = problem_of(hidden);
        let news = problem.is_some() && shown.stays != problem;
        shown.stays = problem;
        match &shown.stays {
            // It may stand there no longer.
            None => self.signalled = None,
            Some(problem) if news => tracing::error!(
                target: LOG_TARGET,
                "{problem}; the touch-file says that the database may be copied, which is no \
                 longer so: it is tried again until it is gone, or remove it by hand"
            ),
            Some(_) => {}
        }
    }

    /// How long a file operation is waited for: while announces wait too, a share of what
    /// the gate has left.
    fn patience(&self, share: u32) -> Duration {
        if self.keeper.gate().is_open() {
            PATIENCE
        } else {
            self.rules.grace / share
        }
    }

    async fn report_ended_run(&mut self) {
        let Some((id, outcome)) = self.window.last() else {
            return;
        };
        let Some(record) = self.record.take_if(|record| record.run.id == *id) else {
            return;
        };
        let outcome = outcome.clone();
        if let Some(order) = &mut self.order
            && record.run.to_wal
        {
            order.failed = Some(NotSwitched {
                run: record.run.id.clone(),
                reason: outcome.message().to_owned(),
            });
        }
        let missed = self.missed_meanwhile(&record.run);
        let by_file = record.sidecar.as_ref().is_some_and(|it| it.nonce.is_none());
        let made = record.published.as_ref().and_then(|it| it.made.clone());
        let mut report = reported(record, outcome, &mut self.verdicts);
        report.warnings.extend(missed);
        if let (Some(signal), Some(_)) = (&self.signal, self.rules.lease) {
            let result = touch_file::RunResult::of(&report, by_file);
            if let Some(problem) = aside(PATIENCE, signal.tell(result)).await {
                report.warnings.push(problem);
            }
        }
        log(&report);
        self.totals.count(&report.outcome, report.pause_ms);
        if made.is_some() {
            self.newest.clone_from(&made);
        }
        if let Some(herald) = &self.herald {
            herald.ended(Ended {
                report: report.clone(),
                made,
            });
        }
        self.reports.insert(0, report);
        self.reports.truncate(RUNS_KEPT);
    }

    /// What to say of a window that came and went while this run was on.
    fn missed_meanwhile(&self, run: &Run) -> Option<String> {
        let now = now().utc;
        let window = self.rules.schedule.last_before(now)?;
        let missed = window.begins > run.began && window.ends <= now;
        missed.then(|| {
            format!(
                "the window that began at {} had no run of its own, because this one was still on",
                window.begins.format("%F %H:%M")
            )
        })
    }

    fn publish(&self) {
        let status = Status {
            version: crate::VERSION.into(),
            service: self.service.clone(),
            alive: true,
            state: self.window.phase(),
            ready: self.window.ready() && !self.has_no_file(),
            gate: GateStatus::of(self.keeper.gate()),
            next: self.rules.schedule.next_after(now().utc),
            run: self.window.run().map(|run| RunStatus {
                id: run.id.clone(),
                trigger: run.trigger,
                began: run.began,
                attempt: run.attempt,
                progress: None,
                lease: None,
                wal_bytes: self.record.as_ref().and_then(|record| record.wal_bytes),
            }),
            runs: self.reports.clone(),
            database: DatabaseStatus {
                path: self.database.clone(),
                journal_mode: self.engine.journal_mode(),
                switch: self.order.clone(),
                not_switchable: not_switchable(&*self.engine),
                wal_bytes: None,
            },
            started: Some(self.started),
            backup: self.newest.clone(),
            taken_by: taker(&self.rules),
            hold_for_seconds: self.rules.hold_for.as_secs_f64(),
            totals: self.totals.clone(),
            // The herald says it itself.
            notify: None,
            hooks_failed: BTreeMap::new(),
            remote: None,
            // Read when the status is asked for, as the size of the log is.
            traffic: Traffic::default(),
            process: Consumption::default(),
        };
        let job = self.job.as_ref().map(|running| running.watch.clone());
        let offer = self.offer();
        self.status
            .send_replace(PublishedStatus { status, job, offer });
    }

    /// Whether what is pinned is nothing that others could copy.
    fn has_no_file(&self) -> bool {
        let record = self.record.as_ref();
        let pinned = record.and_then(|record| record.pinned.as_ref());
        pinned.is_some_and(|pinned| pinned.file.is_none())
    }

    /// What whoever is to copy has to know.
    fn offer(&self) -> Option<Offer> {
        let until = self.window.deadline()?;
        let record = self.record.as_ref()?;
        let Pinned { file, taken } = record.pinned.clone()?;
        let file = file?;
        Some(Offer {
            copy: self.copy_of(),
            terms: self.rules.lease,
            claim_until: self.window.claim_until(),
            until,
            deadline: record.deadline?,
            lease: self
                .window
                .leased()
                .map(|lease| (lease.holder.clone(), lease.until)),
            file,
            pinned: taken,
            pause: record.pauses.total,
        })
    }

    // ---- waiting ------------------------------------------------------------------------

    async fn wait(&mut self, shutdown: std::pin::Pin<&mut impl Future<Output = ()>>) -> Woken<E> {
        let nap = self.nap();
        let draining = matches!(self.window.job(), Some((_, Job::Drain)));
        let Self {
            keeper,
            ends,
            commands,
            looking,
            ..
        } = self;
        let drained = async {
            if draining {
                keeper.drained().await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        let looked = async {
            match looking {
                Some(look) => match look.await {
                    Ok(found) => found,
                    // A look that panicked has found nothing.
                    Err(_) => Ok(None),
                },
                None => std::future::pending().await,
            }
        };
        let woken = tokio::select! {
            () = shutdown => Woken::ShuttingDown,
            // The driver keeps a sender of its own, so this never ends.
            Some(end) = ends.recv() => Woken::Ended(end),
            () = drained => Woken::Drained,
            found = looked => Woken::Looked(found),
            Some(command) = commands.recv() => Woken::Asked(command),
            () = tokio::time::sleep(nap) => Woken::Time,
        };
        if let Woken::Looked(_) = woken {
            self.looking = None;
        }
        woken
    }

    /// How long nothing needs doing, unless something happens.
    fn nap(&self) -> Duration {
        let now = now();
        let mut nap = if self.window.ready() { PINNED_NAP } else { NAP };
        if self.signalled.as_ref().is_some_and(|it| it.stays.is_some()) {
            nap = nap.min(HIDE_AGAIN);
        }
        if let Some(at) = self.window.wake_at() {
            nap = nap.min(at.saturating_duration_since(now.monotonic));
        }
        if let Some(next) = self.rules.schedule.next_after(now.utc) {
            nap = nap.min((next.begins - now.utc).to_std().unwrap_or_default());
        }
        nap
    }
}

/// A driver that ends, by return or by panic, leaves nobody waiting and nobody misled: the
/// signal is withdrawn, the pin goes, and then the gate opens.
impl<E: Engine> Drop for Driver<E> {
    fn drop(&mut self) {
        if self.signalled.take().is_some()
            && let Some(signal) = &self.signal
        {
            // Only a panic leads here with the signal up, or a volume on which it stayed; there
            // is nobody left to tell. On a thread of its own: its volume may hang, and neither
            // pin nor gate wait for that.
            let (say_hidden, hidden) = std::sync::mpsc::channel();
            let hide = signal.hide();
            let thread = std::thread::Builder::new().name("maintenance-hide".into());
            let spawned = thread.spawn(move || say_hidden.send(hide()));
            if spawned.is_ok() {
                let _ = hidden.recv_timeout(self.rules.grace / 4);
            }
        }
        self.pin = None;
        if let Some(running) = self.job.take() {
            running.watch.cancel("the driver is gone");
            if !self.keeper.gate().is_open() {
                self.engine.end_pin(self.rules.grace / 4);
            }
        }
        self.keeper.open();
        let interrupted = self.record.take().filter(|_| std::thread::panicking());
        let interrupted = interrupted.map(broken);
        if let (Some(herald), Some(report)) = (&self.herald, &interrupted) {
            herald.ended(Ended {
                report: report.clone(),
                made: None,
            });
        }
        self.status.send_modify(|published| {
            let status = &mut published.status;
            status.alive = false;
            status.ready = false;
            status.next = None;
            status.run = None;
            status.state = Phase::Serving;
            if let Some(report) = interrupted {
                status.totals.count(&report.outcome, report.pause_ms);
                status.runs.insert(0, report);
            }
            published.job = None;
            published.offer = None;
        });
    }
}

/// What there is to say of a run that has ended. The verdict on its lease is remembered,
/// for a sidecar that asks.
fn reported(record: Record, outcome: Outcome, verdicts: &mut Verdicts) -> RunReport {
    let Record {
        run,
        pauses,
        published,
        sidecar,
        mut warnings,
        wal_bytes,
        switched,
        ..
    } = record;
    let sidecar = sidecar.map(|sidecar| {
        let verdict = sidecar
            .verdict
            .unwrap_or_else(|| Verdict::broken(outcome.message()));
        if let Some(nonce) = sidecar.nonce {
            verdicts.remember(run.id.clone(), nonce, verdict.clone());
        }
        SidecarReport {
            holder: sidecar.holder,
            held_throughout: verdict.held_throughout,
            reason: sidecar.said.or(verdict.why),
        }
    });
    let (backup, more) = published.map_or((None, Vec::new()), |published| {
        (Some(published.backup), published.warnings)
    });
    warnings.extend(more);
    RunReport {
        id: run.id,
        trigger: run.trigger,
        began: run.began,
        ended: now().utc,
        outcome,
        pause_ms: milliseconds(pauses.total),
        longest_pause_ms: milliseconds(pauses.longest),
        pause_limit_ms: (!pauses.limit.is_zero()).then(|| milliseconds(pauses.limit)),
        backup,
        sidecar,
        warnings,
        wal_bytes,
        switched_to: switched.then(|| switch::WAL.to_owned()),
    }
}

/// The report of a run whose driver panicked.
fn broken(record: Record) -> RunReport {
    let outcome = Outcome::Failed {
        phase: Phase::Serving,
        cause: Cause::Panicked,
        message: "the maintenance driver broke; there are no more backups until the service is \
                  restarted; this is a defect, please report it"
            .to_owned(),
    };
    // What it published, if it did, is not known to be whole; and nobody is left to ask.
    let record = Record {
        published: None,
        ..record
    };
    reported(record, outcome, &mut Verdicts::default())
}

/// Does something with the touch-file on a thread of its own, since its volume may be a
/// network's and hang, and says what went wrong.
async fn aside(
    limit: Duration,
    work: impl FnOnce() -> Result<(), touch_file::Error> + Send + 'static,
) -> Option<String> {
    problem_of(tokio::time::timeout(limit, tokio::task::spawn_blocking(work)).await)
}

fn problem_of(
    ended: Result<
        Result<Result<(), touch_file::Error>, tokio::task::JoinError>,
        tokio::time::error::Elapsed,
    >,
) -> Option<String> {
    match ended {
        Ok(Ok(Ok(()))) => None,
        Ok(Ok(Err(error))) => Some(error.to_string()),
        Ok(Err(panicked)) => Some(format!("the touch-file was not changed: {panicked}")),
        Err(_) => Some("the volume of the touch-file does not answer".to_owned()),
    }
}

type Work<E> = Box<dyn FnOnce(&Watch) -> JobResult<E> + Send>;

/// Runs a job on a thread of its own, which hands in a result whatever happens.
fn spawn<E: Engine>(
    of: Attempt,
    job: Job,
    watch: Watch,
    work: Work<E>,
    hand_in: mpsc::UnboundedSender<End<E>>,
) {
    let failed = hand_in.clone();
    let failed_of = of.clone();
    let thread = std::thread::Builder::new().name(format!("maintenance-{job:?}").to_lowercase());
    let spawned = thread.spawn(move || {
        let result = caught(|| work(&watch)).unwrap_or_else(JobResult::Failed);
        // The driver may be gone; then the result is dropped here, and cleans up.
        drop(hand_in.send(End { of, job, result }));
    });
    if let Err(error) = spawned {
        let message = format!("could not start a thread: {error}; raise the limit on threads");
        let result = JobResult::Failed(Failure {
            cause: Cause::Other,
            message,
        });
        drop(failed.send(End {
            of: failed_of,
            job,
            result,
        }));
    }
}

/// What `work` returns, or that it panicked.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Failure> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .map_err(|panic| panicked(panic.as_ref()))
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Failure {
    let said = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let message = format!("the job panicked ({said}); this is a defect, please report it");
    Failure {
        cause: Cause::Panicked,
        message,
    }
}

fn log(report: &RunReport) {
    let RunReport {
        id,
        outcome,
        pause_ms,
        backup,
        sidecar,
        ..
    } = report;
    for warning in &report.warnings {
        tracing::warn!(target: LOG_TARGET, run = %id, "{warning}");
    }
    match (outcome, sidecar) {
        (Outcome::Done, Some(SidecarReport { holder, .. })) => tracing::info!(
            target: LOG_TARGET, run = %id,
            "The sidecar {holder:?} has its copy: announces paused {pause_ms:.1} ms"
        ),
        (Outcome::Done, None) => {
            let backup = backup.as_ref().map(BackupId::to_string).unwrap_or_default();
            let seconds = (report.ended - report.began)
                .to_std()
                .unwrap_or_default()
                .as_secs_f64();
            tracing::info!(
                target: LOG_TARGET, run = %id,
                "Backup {backup} published: announces paused {pause_ms:.1} ms, {seconds:.1} s in all"
            );
        }
        (Outcome::Failed { phase, message, .. }, _) => tracing::error!(
            target: LOG_TARGET, run = %id, "The run failed while {phase}: {message}"
        ),
        (Outcome::WouldNotFit { message }, _) => tracing::error!(
            target: LOG_TARGET, run = %id, "The run did not begin: {message}"
        ),
        (Outcome::NoSidecar { message }, _) => tracing::error!(
            target: LOG_TARGET, run = %id, "The run came to nothing: {message}"
        ),
        (Outcome::Deadline { phase, message }, _) => tracing::error!(
            target: LOG_TARGET, run = %id, "The run was given up while {phase}: {message}"
        ),
        (Outcome::Aborted { phase, message }, _) => tracing::warn!(
            target: LOG_TARGET, run = %id, "The run was called off while {phase}: {message}"
        ),
    }
}

/// What to say of a window without a run.
pub(crate) fn missed(window: Interval) -> String {
    format!(
        "the window that began at {} UTC had no run: the service did not run then, the machine \
         slept, or another run was still on; `torrust-maintenance run` makes up for it",
        window.begins.format("%F %H:%M")
    )
}

fn taker(rules: &Rules) -> Taker {
    rules.lease.map_or(Taker::Tracker, |_| Taker::Sidecar)
}

fn not_switchable(engine: &impl Engine) -> Option<String> {
    engine.can_switch().err().map(|no| no.to_string())
}

fn blank_status(
    engine: &impl Engine,
    parts: &Parts,
    gate: &Gate,
    started: DateTime<Utc>,
) -> Status {
    Status {
        version: crate::VERSION.into(),
        service: parts.service.clone(),
        alive: true,
        state: Phase::Serving,
        ready: false,
        gate: GateStatus::of(gate),
        next: None,
        run: None,
        runs: Vec::new(),
        database: DatabaseStatus {
            path: parts.database.clone(),
            journal_mode: engine.journal_mode(),
            switch: None,
            not_switchable: not_switchable(engine),
            wal_bytes: None,
        },
        started: Some(started),
        backup: None,
        taken_by: taker(&parts.rules),
        hold_for_seconds: parts.rules.hold_for.as_secs_f64(),
        totals: Totals::default(),
        notify: None,
        hooks_failed: BTreeMap::new(),
        remote: None,
        traffic: Traffic::default(),
        process: Consumption::default(),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the driver reads the clocks, once per event, for everybody"
)]
fn now() -> Now {
    // Tokio's reading of the monotonic clock is the one its timers go by.
    Now {
        utc: Utc::now(),
        monotonic: tokio::time::Instant::now().into_std(),
    }
}

#[cfg(test)]
mod tests;
