//! What goes on beside the driver: the operator's commands are called, and somebody is told
//! how runs end. On a thread of its own with a runtime of its own: none of it can hold the
//! gate, the pin or, but for the hook `before`, a run.
//!
//! ```text
//!  driver ── before ⇄ ──┐                               ┌─▶ outbox ─▶ post ─▶ webhook
//!         ── ready ─────┤▶ queue ─▶ hooks, one by one ──┤
//!         ── ended ─────┤              │                └─▶ outbox ─▶ post ─▶ heartbeat
//!         ── missed ────┘              └─▶ remarks ─▶ status ◀─ delivered, or why not
//! ```
//!
//! The driver puts what happens into a queue and goes on. News of a run wait for its hooks,
//! so that they say how those went; each hook has its limit. What a hook or a delivery came to
//! is told in the status alone, where it stands with the run it belongs to.
//!
//! Nothing that happens is dropped before its hooks are called: `after` takes down what `before`
//! built up. So that the queue is bounded all the same, no run begins while too much waits in it.
//! What cannot be delivered is kept for a day, bounded too (module `post`).
//!
//! # Going down
//!
//! The notice of the run that the shutdown cuts off is the one that matters, so it does not
//! wait for hooks then; and everything has a limit of its own that lies within
//! [`crate::maintenance::SHUTDOWN_WITHIN`]. `ready` is ended at once, `after` has a second.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc as blocking;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;

use crate::config;
use crate::driver::{self, LOG_TARGET};
use crate::hook::{self, Facts, Hook};
use crate::notify::{self, Delivery, Header, Messenger, Notice, Origin, Pauses, Target};
use crate::schedule::Interval;
use crate::snapshot::Watch;
use crate::status::{
    BackupStatus, ChannelStatus, NotifyStatus, RUNS_KEPT, RemoteStatus, RunReport, Told,
};
use crate::window::{Cause, Failure, Outcome, RunId};

mod outbox;
mod post;

use post::{Channel, Post, Slot};

/// While so much waits no run begins: runs that are begun one after the other, each failing at
/// once, come faster than hooks end.
const QUEUED: usize = 64;
/// How long each of `after` and `on_failure` has when the service goes down.
const LAST_HOOK_WITHIN: Duration = Duration::from_secs(1);

/// The driver's end of the queue.
#[derive(Debug, Clone)]
pub struct Herald {
    queue: mpsc::UnboundedSender<Happening>,
    /// How much is in it, what is being done included.
    queued: Arc<AtomicUsize>,
    calls_before: bool,
}

/// A run that has ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// How.
    pub report: RunReport,
    /// The backup it published.
    pub made: Option<BackupStatus>,
}

impl Ended {
    /// Whether there is a verified backup: one of ours, which is published only if it is, or that
    /// of a sidecar which finished well and for which the file held throughout. That it has
    /// verified it, or will, is the sidecar's word.
    fn is_success(&self) -> bool {
        let RunReport {
            outcome,
            backup,
            sidecar,
            ..
        } = &self.report;
        let copied = sidecar.as_ref().is_some_and(|it| it.held_throughout);
        *outcome == Outcome::Done && (backup.is_some() || copied)
    }
}

/// News of uploads.
#[derive(Debug, Clone, PartialEq)]
pub struct OfUploads {
    /// What they are.
    pub turn: Turn,
    /// For people.
    pub text: String,
    /// How uploads stand.
    pub status: RemoteStatus,
}

/// What has become of uploads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// They fail, are late, or what is there is broken: from now on, or still.
    Trouble,
    /// A backup there was broken, and is not any more.
    Replaced,
    /// They do not fail any more.
    Recovered,
}

/// The end of the queue of who uploads. It keeps nobody from going down.
#[derive(Debug, Clone)]
pub struct Teller {
    queue: mpsc::WeakUnboundedSender<Happening>,
    queued: Arc<AtomicUsize>,
}

impl Teller {
    /// Tells who is to be told.
    pub fn tell(&self, news: OfUploads) {
        // Nobody is told any more of a service that goes down.
        if let Some(queue) = self.queue.upgrade() {
            self.queued.fetch_add(1, Ordering::Relaxed);
            let _ = queue.send(Happening::OfUploads(Box::new(news)));
        }
    }
}

#[derive(Debug)]
enum Happening {
    Begins {
        run: RunId,
        watch: Watch,
        reply: blocking::Sender<Result<(), Failure>>,
    },
    Ready(RunId),
    Ended(Box<Ended>),
    Missed(Interval),
    OfUploads(Box<OfUploads>),
}

/// What somebody is told of.
#[derive(Debug)]
enum News {
    /// `troubled`: one of its hooks failed.
    Ended {
        ended: Box<Ended>,
        troubled: bool,
    },
    Missed(Interval),
    OfUploads(Box<OfUploads>),
}

/// What a herald is made of.
#[derive(Debug)]
pub struct Parts {
    /// Who is told.
    pub notify: config::Notify,
    /// What is sent with each notice.
    pub header: Option<Header>,
    /// What is called.
    pub hooks: config::Hooks,
    /// The service, with its version.
    pub service: String,
    /// The database, as configured.
    pub database: PathBuf,
    /// The directory of the backups, as configured.
    pub directory: PathBuf,
}

/// A herald's thread.
#[derive(Debug)]
pub struct Running {
    pub(crate) told: watch::Receiver<Told>,
    going_down: watch::Sender<bool>,
    ended: oneshot::Receiver<()>,
}

impl Running {
    /// From now on everything is short. Dropping it says the same.
    pub fn go_down(&self) {
        self.going_down.send_replace(true);
    }

    /// Waits until all is done that was asked for; the driver has to be gone.
    pub async fn ended(self) {
        // A thread that panicked has ended as well.
        let _ = self.ended.await;
    }
}

impl Herald {
    /// Starts a herald's thread. `None` if there is nobody to tell and nothing to call.
    ///
    /// # Errors
    ///
    /// When the operating system gives no thread.
    pub fn start(parts: Parts) -> std::io::Result<Option<(Self, Running)>> {
        if !parts.notify.is_wanted() && parts.hooks.commands.is_empty() {
            return Ok(None);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (queue, happenings) = mpsc::unbounded_channel();
        let queued = Arc::new(AtomicUsize::new(0));
        let (going_down, down) = watch::channel(false);
        let (say_ended, ended) = oneshot::channel();
        let (sender, told) = watch::channel(blank(&parts));
        let herald = Self {
            queue,
            queued: Arc::clone(&queued),
            calls_before: parts.hooks.commands.contains_key(&Hook::Before),
        };
        std::thread::Builder::new()
            .name("maintenance-herald".into())
            .spawn(move || {
                let queue = Queue { happenings, queued };
                runtime.block_on(proclaim(parts, queue, Arc::new(sender), Down(down)));
                // Whoever shuts down may have stopped waiting.
                let _ = say_ended.send(());
            })?;
        let running = Running {
            told,
            going_down,
            ended,
        };
        Ok(Some((herald, running)))
    }

    /// Calls the hook `before` and waits for its end, or until `watch` is cancelled; without one,
    /// waits until not too much else waits. Blocks.
    ///
    /// # Errors
    ///
    /// When it failed: then there is to be no run.
    pub fn before(&self, run: RunId, watch: &Watch) -> Result<(), Failure> {
        if !self.calls_before && self.queued.load(Ordering::Relaxed) < QUEUED {
            return Ok(());
        }
        let (reply, replied) = blocking::channel();
        let cancelled = reply.clone();
        let begins = Happening::Begins {
            run,
            watch: watch.clone(),
            reply,
        };
        self.put(begins);
        watch.on_cancel(move || {
            // The hook may have ended.
            let _ = cancelled.send(Err(not_called("the run was given up first")));
        });
        replied
            .recv()
            .unwrap_or_else(|_| Err(not_called("its thread is gone")))
    }

    /// Calls the hook `ready`.
    pub fn ready(&self, run: RunId) {
        self.put(Happening::Ready(run));
    }

    /// Calls the hooks of the end, and tells who is to be told.
    pub fn ended(&self, ended: Ended) {
        self.put(Happening::Ended(Box::new(ended)));
    }

    /// For who uploads, and is not waited for.
    #[must_use]
    pub fn teller(&self) -> Teller {
        Teller {
            queue: self.queue.downgrade(),
            queued: Arc::clone(&self.queued),
        }
    }

    /// Tells who is to be told of a window that had no run.
    pub fn missed(&self, window: Interval) {
        self.put(Happening::Missed(window));
    }

    fn put(&self, happening: Happening) {
        self.queued.fetch_add(1, Ordering::Relaxed);
        if self.queue.send(happening).is_err() {
            tracing::error!(
                target: LOG_TARGET,
                "A hook is not called, and nobody told, of what happened: the thread that does so \
                 is gone; this is a defect, please report it"
            );
        }
    }
}

fn not_called(why: &str) -> Failure {
    Failure {
        cause: Cause::Hook,
        message: format!("the hook `before` has not run to its end: {why}"),
    }
}

fn blank(parts: &Parts) -> Told {
    let channel = |target: Option<&Target>| {
        target.map(|target| ChannelStatus {
            target: target.to_string(),
            delivered: 0,
            failed: 0,
            waiting: 0,
            dropped: 0,
            last_delivered: None,
            failing: None,
        })
    };
    let config::Notify {
        webhook,
        heartbeat,
        heartbeat_failure,
        ..
    } = &parts.notify;
    let heartbeat = heartbeat.as_ref().or(heartbeat_failure.as_ref());
    Told {
        notify: parts.notify.is_wanted().then(|| NotifyStatus {
            webhook: channel(webhook.as_ref()),
            heartbeat: channel(heartbeat),
        }),
        hooks_failed: parts.hooks.commands.keys().map(|hook| (*hook, 0)).collect(),
        remarks: Vec::new(),
    }
}

/// The thread's end of the queue.
#[derive(Debug)]
struct Queue {
    happenings: mpsc::UnboundedReceiver<Happening>,
    queued: Arc<AtomicUsize>,
}

/// The thread's work.
async fn proclaim(
    parts: Parts,
    Queue {
        mut happenings,
        queued,
    }: Queue,
    told: Arc<watch::Sender<Told>>,
    down: Down,
) {
    let messenger = Messenger::new(parts.notify.timeout);
    let post = |channel| {
        let (messenger, told, down) = (messenger.clone(), Arc::clone(&told), down.clone());
        Post::new(channel, messenger, Pauses::default(), told, down)
    };
    let (webhook, webhook_post) = post(Channel::Webhook);
    let (heartbeat, heartbeat_post) = post(Channel::Heartbeat);
    let crier = Crier {
        pulse: Pulse::default(),
        notify: parts.notify,
        header: parts.header,
        origin: Origin {
            service: parts.service,
            host: crate::host(),
        },
        webhook,
        heartbeat,
    };
    let mut caller = Caller {
        hooks: parts.hooks,
        database: parts.database,
        directory: parts.directory,
        begun: None,
        queued,
        crier,
        told,
        down,
    };
    let calling = async move {
        while let Some(happening) = happenings.recv().await {
            caller.take(happening).await;
            caller.queued.fetch_sub(1, Ordering::Relaxed);
        }
    };
    // One that hangs does not hold up the other.
    tokio::join!(calling, webhook_post.run(), heartbeat_post.run());
}

/// Whether the service goes down.
#[derive(Debug, Clone)]
struct Down(watch::Receiver<bool>);

impl Down {
    fn is(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    /// Completes when it does, or has.
    async fn comes(&self) {
        // Whoever would say so is gone: that is the same.
        let _ = self.0.clone().wait_for(|down| *down).await;
    }

    async fn came(&self, ago: Duration) {
        self.comes().await;
        sleep(ago).await;
    }
}

/// Calls hooks, one after the other.
#[derive(Debug)]
struct Caller {
    hooks: config::Hooks,
    database: PathBuf,
    directory: PathBuf,
    /// The run whose `before` was called last.
    begun: Option<RunId>,
    queued: Arc<AtomicUsize>,
    crier: Crier,
    told: Arc<watch::Sender<Told>>,
    down: Down,
}

impl Caller {
    async fn take(&mut self, happening: Happening) {
        match happening {
            Happening::Begins { run, watch, reply } => {
                // The run may have been given up; then nobody waits.
                let _ = reply.send(self.before(run, &watch).await);
            }
            Happening::Ready(run) => {
                let going_down = async {
                    self.down.comes().await;
                    "the service goes down".to_owned()
                };
                // Whatever came after it says that the run has ended.
                let still_ready = || self.queued.load(Ordering::Relaxed) <= 1;
                self.call(Hook::Ready, &self.facts(run), going_down, still_ready)
                    .await;
            }
            Happening::Ended(ended) => self.ended(ended).await,
            Happening::Missed(window) => self.crier.tell(&News::Missed(window)),
            Happening::OfUploads(news) => self.crier.tell(&News::OfUploads(news)),
        }
    }

    async fn before(&mut self, run: RunId, watch: &Watch) -> Result<(), Failure> {
        let (cancel, cancelled) = oneshot::channel();
        watch.on_cancel(move || {
            // The hook may have ended.
            let _ = cancel.send(());
        });
        if let Some(why) = watch.cancelled() {
            return Err(not_called(&why));
        }
        self.begun = Some(run.clone());
        let Some(command) = self.hooks.commands.get(&Hook::Before) else {
            return Ok(());
        };
        let facts = self.facts(run);
        let given_up = async {
            let _ = cancelled.await;
            watch.cancelled().unwrap_or_default()
        };
        let called = hook::carry_out(
            Hook::Before,
            command,
            &facts,
            self.hooks.timeout,
            given_up,
            || watch.cancelled().is_none(),
        );
        called.await.map_err(|error| {
            // What ended with its run says so there, and is no failure of the hook.
            if watch.cancelled().is_none() {
                self.count(Hook::Before);
            }
            Failure {
                cause: Cause::Hook,
                message: error.to_string(),
            }
        })
    }

    async fn ended(&mut self, ended: Box<Ended>) {
        let report = &ended.report;
        let begun = self.begun.take_if(|begun| *begun == report.id).is_some();
        // A run whose `before` was never called has nothing that `after` could take down.
        let after = begun || !self.hooks.commands.contains_key(&Hook::Before);
        let failed = report.outcome != Outcome::Done;
        let hooks = [(Hook::After, after), (Hook::OnFailure, failed)];
        let hooks = hooks.into_iter().filter(|(_, wanted)| *wanted);
        let hooks = hooks.map(|(hook, _)| hook);
        let facts = Facts {
            outcome: Some(report.outcome.clone()),
            backup: report.backup.clone(),
            ..self.facts(report.id.clone())
        };
        if self.down.is() {
            self.tell_of(ended);
            self.call_last(hooks, &facts).await;
        } else {
            self.call_last(hooks, &facts).await;
            self.tell_of(ended);
        }
    }

    async fn call_last(&self, hooks: impl Iterator<Item = Hook>, facts: &Facts) {
        for hook in hooks {
            // Each of them from when it is called.
            let going_down = async {
                self.down.came(LAST_HOOK_WITHIN).await;
                "the service goes down".to_owned()
            };
            self.call(hook, facts, going_down, || !self.down.is()).await;
        }
    }

    /// Hands the news on, with what the hooks of the run came to.
    fn tell_of(&mut self, mut ended: Box<Ended>) {
        let told = self.told.borrow();
        let remarks = told.remarks.iter().filter(|(id, _)| *id == ended.report.id);
        let remarks: Vec<_> = remarks.map(|(_, remark)| remark.clone()).collect();
        drop(told);
        let troubled = !remarks.is_empty();
        ended.report.warnings.extend(remarks);
        self.crier.tell(&News::Ended { ended, troubled });
    }

    fn facts(&self, run: RunId) -> Facts {
        Facts {
            run,
            database: self.database.clone(),
            directory: self.directory.clone(),
            outcome: None,
            backup: None,
        }
    }

    /// Calls a hook that nothing waits for.
    async fn call(
        &self,
        hook: Hook,
        facts: &Facts,
        cut_short: impl Future<Output = String>,
        again: impl Fn() -> bool,
    ) {
        let Some(command) = self.hooks.commands.get(&hook) else {
            return;
        };
        let timeout = self.hooks.timeout;
        let called = hook::carry_out(hook, command, facts, timeout, cut_short, again).await;
        if let Err(error) = called {
            tracing::warn!(target: LOG_TARGET, run = %facts.run, "{error}");
            self.count(hook);
            self.told.send_modify(|told| {
                let excess = told.remarks.len().saturating_sub(4 * RUNS_KEPT);
                told.remarks.drain(..excess);
                told.remarks.push((facts.run.clone(), error.to_string()));
            });
        }
    }

    fn count(&self, hook: Hook) {
        self.told
            .send_modify(|told| *told.hooks_failed.entry(hook).or_default() += 1);
    }
}

/// Which heartbeat is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beat {
    Good,
    Failure,
}

/// Whether all is well: that is what a heartbeat says. A backup was published, which it is only
/// when verified, and nothing is wrong with uploads, if there are any.
#[derive(Debug, Default)]
struct Pulse {
    uploads_fail: bool,
    /// A backup was published that none was asked for, as uploads fail.
    owed: bool,
}

impl Pulse {
    fn of(&mut self, news: &News) -> Option<Beat> {
        match news {
            News::Ended { ended, .. } if ended.is_success() => self.owed = true,
            // Neither good nor bad is known of it.
            News::Ended { ended, .. } if ended.report.outcome == Outcome::Done => return None,
            News::Ended { .. } | News::Missed(_) => {
                self.owed = false;
                return Some(Beat::Failure);
            }
            News::OfUploads(news) => match news.turn {
                Turn::Trouble => {
                    self.uploads_fail = true;
                    return Some(Beat::Failure);
                }
                Turn::Recovered => self.uploads_fail = false,
                Turn::Replaced => {}
            },
        }
        let is_due = self.owed && !self.uploads_fail;
        self.owed &= !is_due;
        is_due.then_some(Beat::Good)
    }
}

/// Says what is to be delivered of news, and to whom.
#[derive(Debug)]
struct Crier {
    pulse: Pulse,
    notify: config::Notify,
    header: Option<Header>,
    origin: Origin,
    webhook: Slot,
    heartbeat: Slot,
}

impl Crier {
    fn tell(&mut self, news: &News) {
        if let Some(notice) = self.notice(news) {
            self.webhook.put(notice);
        }
        let target = match self.pulse.of(news) {
            Some(Beat::Good) => self.notify.heartbeat.clone(),
            Some(Beat::Failure) => self.notify.heartbeat_failure.clone(),
            None => None,
        };
        if let Some(target) = target {
            self.heartbeat.put(Delivery::Heartbeat { target });
        }
    }

    fn notice(&self, news: &News) -> Option<Delivery> {
        let target = self.notify.webhook.clone()?;
        let report;
        let notice = match news {
            News::Ended { ended, troubled } => {
                report = notify::bounded(ended.report.clone());
                Notice::of_run(&self.origin, &report, ended.made.as_ref(), *troubled)
            }
            News::Missed(window) => {
                Notice::of_missed(&self.origin, *window, &driver::missed(*window))
            }
            News::OfUploads(news) => Notice::of_uploads(&self.origin, news),
        };
        if notice.good && self.notify.on == config::TellOf::Failure {
            return None;
        }
        Some(Delivery::Webhook {
            target,
            header: self.header.clone(),
            json: serde_json::to_string(&notice).ok()?,
        })
    }
}

#[cfg(test)]
mod tests;
