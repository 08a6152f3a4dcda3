//! `sidecar`: takes the backup of a tracker that holds its database still for it, night for
//! night, or once.
//!
//! What is to be done next is decided in [`round`], which is pure; the one loop here acts on
//! it. It keeps three things going at once, and none waits for another: a request to the
//! tracker, the copy, and the signals of whoever wants it to end.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rustix::fs::{Access, access};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, sleep_until, timeout};
use torrust_tracker_maintenance::catalogue::Catalogue;
use torrust_tracker_maintenance::config::{self, Settings};
use torrust_tracker_maintenance::disk::Disk;
use torrust_tracker_maintenance::encryption::Recipient;
use torrust_tracker_maintenance::lease::{self, Holder};
use torrust_tracker_maintenance::snapshot::Watch;
use torrust_tracker_maintenance::window::RunId;
use torrust_tracker_maintenance::{VERSION, sidecar};

use self::contact::{Contact, Http, OwnPin};
use self::log::Log;
use self::round::{Event, Moment, Ready, Reply, Request, Rules, State};
use self::touch_file::TouchFile;
use self::work::{Library, Product, Program, Published, Task, Work};
use crate::configuration::Configuration;
use crate::exit::{Answer, Exit, Failure};
use crate::signals::Signals;
use crate::verify::instant;

mod contact;
mod log;
mod rehearsal;
mod round;
mod touch_file;
mod work;

/// How long what was given up is waited for: longer than a command has between its two
/// signals, and short enough to end within 5 s of a signal.
const ENDED_WITHIN: Duration = Duration::from_millis(4500);
/// The same while nobody wants it to end: removing gigabytes takes its time.
const REMOVED_WITHIN: Duration = Duration::from_secs(30);

/// How long it may take to look at the file and the room before a run is claimed. What is
/// not known by then is no objection: a disk may have been asleep, and a run that nobody
/// claims is lost. It is looked at again after the claim.
const LOOKED_WITHIN: Duration = Duration::from_secs(3);

/// Take the backups of a tracker that has `backup.taken_by = "sidecar"`.
///
/// Waits until the tracker holds its database still, claims the run, copies the database
/// into --directory or runs COMMAND, and publishes what was made once the tracker has said
/// that the file was still throughout. Without --once it waits for the next run, for ever.
#[derive(clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub struct Arguments {
    /// The tracker's touch-file, instead of its endpoint.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["endpoint", "start", "force"])]
    touch_file: Option<PathBuf>,
    /// Where the tracker's database is for this process [default: where the tracker says].
    #[arg(long, value_name = "PATH")]
    database: Option<PathBuf>,
    /// Where to publish to [default: `backup.directory` of the configuration; with COMMAND
    /// nowhere].
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// What the tracker is to call this sidecar [default: its host and process].
    #[arg(long, value_parser = name)]
    name: Option<Holder>,
    /// Encrypt for this recipient (`age1...`), besides those of the configuration. May be given
    /// several times.
    #[arg(
        long = "recipient",
        value_name = "RECIPIENT",
        value_parser = Recipient::parse,
        conflicts_with = "command"
    )]
    recipients: Vec<Recipient>,
    /// Exit after one run.
    #[arg(long)]
    once: bool,
    /// Take a backup though no tracker answers, with a pin of this program's own. Implies
    /// --once.
    #[arg(long)]
    force: bool,
    /// Say what would be done and what speaks against it; claim nothing, write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Have the tracker begin a run now, and take it.
    #[arg(long)]
    start: bool,
    /// Run this instead of copying, with the run in its environment:
    /// `TORRUST_MAINTENANCE_{RUN,DATABASE,DEADLINE,COPY,STAGING}`.
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// As the tracker takes them.
fn name(name: &str) -> Result<Holder, lease::Unfit> {
    name.to_owned().try_into()
}

/// One sidecar.
struct Sidecar {
    contact: Arc<Contact>,
    task: Task,
    database: Option<PathBuf>,
    rules: Rules,
    log: Log,
}

/// How a run ended for this sidecar.
struct Ended {
    run: Option<RunId>,
    verdict: Result<Published, Failure>,
    /// It was told to stop.
    stopped: bool,
}

impl Arguments {
    pub fn carry_out(
        self,
        configuration: &Configuration,
        json: bool,
        now: DateTime<Utc>,
    ) -> Result<Answer, Failure> {
        let mut backup = rules_of(configuration)?;
        backup
            .encryption
            .recipients
            .extend(self.recipients.iter().cloned());
        if self.dry_run {
            return rehearsal::of(&self, configuration, &backup);
        }
        let task = self.task(configuration, backup, json)?;
        let contact = match &self.touch_file {
            Some(path) => Contact::TouchFile(TouchFile::new(path.clone())),
            None => Contact::Http(Http::new(configuration.client()?, self.name())),
        };
        let own = self
            .force
            .then(|| self.own_database(configuration))
            .transpose()?;
        let sidecar = Sidecar {
            contact: Arc::new(contact),
            task,
            database: self.database.clone(),
            rules: Rules {
                once: self.once || self.force,
            },
            log: Log::new(json),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .map_err(|error| Failure::new(Exit::Failed, "no_threads", error.to_string()))?;
        let answer = runtime.block_on(sidecar.run(self.start, own, now));
        // A copy that hangs in a disk must not keep the process.
        runtime.shutdown_background();
        answer
    }

    /// What is to be done with every run. Directories are looked at now, not at night.
    fn task(
        &self,
        configuration: &Configuration,
        backup: config::Backup,
        json: bool,
    ) -> Result<Task, Failure> {
        let disk = Disk::default();
        if !self.command.is_empty() {
            if let Some(directory) = &self.directory {
                sidecar::sweep(&disk, directory).map_err(|error| {
                    Failure::new(Exit::Usage, "no_catalogue", error.to_string())
                })?;
                writable(directory)?;
            }
            return Ok(Task::Command(Arc::new(Program {
                command: self.command.clone(),
                directory: self.directory.clone(),
                disk,
                quiet: json,
            })));
        }
        let directory = self.catalogue_directory(configuration, &backup)?;
        Ok(Task::Engine(Arc::new(Library {
            catalogue: Catalogue::open(disk.clone(), &directory)?,
            disk,
            backup,
            service: format!("torrust-maintenance {VERSION}, sidecar {}", self.name()),
        })))
    }

    /// The default directory is the tracker's own only where its configuration was read.
    fn catalogue_directory(
        &self,
        configuration: &Configuration,
        backup: &config::Backup,
    ) -> Result<PathBuf, Failure> {
        match &self.directory {
            Some(directory) => Ok(directory.clone()),
            None if settings(configuration)?.is_some() => Ok(backup.directory.clone()),
            None => {
                let message = format!(
                    "there is no [maintenance] in {}, so it is not known where backups go: \
                     give --directory",
                    configuration.describe()
                );
                Err(Failure::new(Exit::Usage, "no_catalogue", message))
            }
        }
    }

    fn own_database(&self, configuration: &Configuration) -> Result<PathBuf, Failure> {
        match &self.database {
            Some(database) => Ok(database.clone()),
            None => configuration.database()?.map_err(|driver| {
                let message = format!(
                    "the tracker's database ({driver}) is not an SQLite file: name the file \
                     with --database"
                );
                Failure::new(Exit::Usage, "configuration", message)
            }),
        }
    }

    fn name(&self) -> String {
        let given = self.name.clone().map(String::from);
        given.unwrap_or_else(|| {
            let host: String = torrust_tracker_maintenance::host()
                .chars()
                .filter(char::is_ascii_graphic)
                .take(64)
                .collect();
            format!("torrust-maintenance@{host}:{}", std::process::id())
        })
    }
}

/// The tracker's `[maintenance]`, where there is a configuration. A sidecar in a container of
/// its own need not have one.
fn settings(configuration: &Configuration) -> Result<Option<Settings>, Failure> {
    match configuration.maintenance() {
        Err(config::Error::NoFile { .. }) => Ok(None),
        other => Ok(other?),
    }
}

/// That this user may make files in a directory, without making one.
fn writable(directory: &Path) -> Result<(), Failure> {
    access(directory, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| {
        let why = format!(
            "this user may not write to {}: {error}",
            directory.display()
        );
        Failure::new(Exit::Usage, "no_catalogue", why)
    })
}

fn rules_of(configuration: &Configuration) -> Result<config::Backup, Failure> {
    let settings = settings(configuration)?;
    Ok(settings.map(|settings| settings.backup).unwrap_or_default())
}

impl Sidecar {
    async fn run(
        mut self,
        start: bool,
        own: Option<PathBuf>,
        now: DateTime<Utc>,
    ) -> Result<Answer, Failure> {
        let mut signals = Signals::listen()?;
        let mut state = State::begin(instant(), start);
        self.log.begins(&self.contact, self.rules.once);
        // A wrong token is to be known now, not when the first run is there.
        tokio::select! {
            biased;
            why = signals.next() => {
                state = state.step(self.rules, Event::Stop(why.to_owned()), moment());
            }
            kept_out = self.contact.keeps_out() => match kept_out {
                Some(failure) if self.rules.once => return Err(failure),
                Some(failure) => self.log.kept_out(&failure),
                None => {}
            },
        }
        loop {
            let mut ended = self.round(state, &mut signals).await;
            if let (Some(path), Err(failure)) = (&own, &ended.verdict)
                && failure.error == "not_running"
            {
                self.log.forced(failure, path);
                self.contact = Arc::new(Contact::Own(OwnPin::new(path.clone(), now)));
                ended = self
                    .round(State::begin(instant(), false), &mut signals)
                    .await;
            }
            let last = self.rules.once || ended.stopped;
            self.log.ended(&ended, last);
            if last {
                return ended.answer(self.rules.once);
            }
            state = State::after(ended.run, instant());
        }
    }

    /// From looking out for a run to what became of it.
    async fn round(&self, mut state: State, signals: &mut Signals) -> Ended {
        let mut asked: Option<Asked> = None;
        let mut work: Option<Work> = None;
        let mut product: Option<Product> = None;
        let mut stopped: Option<Instant> = None;
        let mut ticks = self.log.show.ticks();
        let (run, verdict) = loop {
            if let State::Over { run, verdict } = state {
                break (run, verdict);
            }
            self.reconcile(&state, &mut asked, &mut work);
            let showing = work.is_some();
            let event = tokio::select! {
                biased;
                why = signals.next(), if stopped.is_none() => {
                    stopped = Some(instant());
                    Event::Stop(why.to_owned())
                }
                made = worked(&mut work) => {
                    work = None;
                    match made {
                        Ok(made) => {
                            self.log.copied(&made);
                            product = Some(made);
                            Event::Worked(Ok(()))
                        }
                        Err(failure) => Event::Worked(Err(failure)),
                    }
                }
                (at, reply) = replied(&mut asked) => {
                    asked = None;
                    Event::Replied { asked: at, reply }
                }
                () = woken(state.wakes()) => Event::Tick,
                _ = ticks.tick(), if showing => {
                    if let Some(work) = &work {
                        self.log.show.progress(work.watch());
                    }
                    continue;
                }
            };
            let before = state.clone();
            state = state.step(self.rules, event, moment());
            self.log.news(&before, &state);
        };
        self.log.show.end();
        if let Some(mut work) = work {
            if let Err(failure) = &verdict {
                work.give_up(&failure.message);
            }
            // What is made all the same is removed.
            let ended = self.ends(work.ended(), signals, &mut stopped).await;
            product = ended.and_then(Result::ok).or(product);
        }
        let verdict = match (verdict, product) {
            (Ok(()), Some(product)) => self.publish(product, signals, stopped.is_some()).await,
            (verdict, product) => {
                let removing = spawn_blocking(move || drop(product));
                self.ends(removing, signals, &mut stopped).await;
                let nothing = "there is a verdict and no copy: a defect, please report it";
                Err(verdict
                    .err()
                    .unwrap_or_else(|| Failure::new(Exit::Failed, "not_copied", nothing)))
            }
        };
        let interrupted = matches!(&verdict, Err(failure) if failure.error == "interrupted");
        Ended {
            run,
            verdict,
            stopped: stopped.is_some() || interrupted,
        }
    }

    /// Waits for the end of what was given up, but not for ever, and less when told to stop.
    async fn ends<T>(
        &self,
        ending: impl Future<Output = T>,
        signals: &mut Signals,
        stopped: &mut Option<Instant>,
    ) -> Option<T> {
        tokio::pin!(ending);
        let given_up = instant();
        loop {
            let until = stopped.map_or(given_up + REMOVED_WITHIN, |at| at + ENDED_WITHIN);
            tokio::select! {
                biased;
                ended = &mut ending => return Some(ended),
                _ = signals.next(), if stopped.is_none() => *stopped = Some(instant()),
                () = sleep_until(until.into()) => {
                    self.log.hangs();
                    return None;
                }
            }
        }
    }

    /// Makes the world what the state says: one request at most, and a copy or none.
    fn reconcile(&self, state: &State, asked: &mut Option<Asked>, work: &mut Option<Work>) {
        let due = state.request();
        let number = due.as_ref().map(|(ask, _)| ask.number);
        if asked.as_ref().map(|asked| asked.number) != number {
            *asked = due.map(|(ask, request)| {
                let contact = Arc::clone(&self.contact);
                let (before, task) = (state.clone(), self.task.clone());
                let database = self.database.clone();
                Asked {
                    number: ask.number,
                    reply: Box::pin(async move {
                        sleep_until(ask.at.into()).await;
                        let at = instant();
                        let reply = match contact.ask(&request).await {
                            Reply::Ready(ready) if before.considers(&ready) => {
                                considered(ready, &contact, task, database).await
                            }
                            reply => reply,
                        };
                        (at, reply)
                    }),
                }
            });
        }
        if let Some(lease) = state.works()
            && work.is_none()
        {
            let database = self.database.as_ref().unwrap_or(&lease.ready.database);
            let pin = self.contact.pin();
            *work = Some(Work::begin(&self.task, lease, database.clone(), pin));
        }
        if let (Some(failure), Some(work)) = (state.gives_up(), work) {
            work.give_up(&failure.message);
        }
    }

    /// Publishes what may be; a signal ends that, too.
    async fn publish(
        &self,
        product: Product,
        signals: &mut Signals,
        stopped: bool,
    ) -> Result<Published, Failure> {
        let watch = Watch::default();
        let interrupted = || {
            let message = "the copy was good, but the sidecar was asked to stop before it was \
                           published";
            Failure::new(Exit::Failed, "interrupted", message)
        };
        if stopped {
            return Err(interrupted());
        }
        let (watched, mut stopped) = (watch.clone(), false);
        let mut publishing = spawn_blocking(move || product.publish(&watched));
        let mut ticks = self.log.show.ticks();
        let published = loop {
            tokio::select! {
                biased;
                published = &mut publishing => break published,
                signal = signals.next(), if !stopped => {
                    watch.cancel(signal);
                    stopped = true;
                }
                () = sleep(ENDED_WITHIN), if stopped => return Err(interrupted()),
                _ = ticks.tick(), if !stopped => self.log.show.progress(&watch),
            }
        };
        self.log.show.end();
        let published = published
            .unwrap_or_else(|error| Err(Failure::new(Exit::Failed, "panicked", error.to_string())));
        published.map_err(|failure| if stopped { interrupted() } else { failure })
    }
}

/// A request that is due, or under way.
struct Asked {
    number: u64,
    reply: Pin<Box<dyn Future<Output = (Instant, Reply)> + Send>>,
}

/// What is ready, unless something here speaks against it.
async fn considered(
    ready: Box<Ready>,
    contact: &Contact,
    task: Task,
    database: Option<PathBuf>,
) -> Reply {
    // Whoever reads files claims nothing, so takes no run from another; and a pin of one's own
    // is of the right file.
    if !matches!(contact, Contact::Http(_)) {
        return Reply::Ready(ready);
    }
    let offered = ready.clone();
    let looking = spawn_blocking(move || {
        let database = database.as_ref().unwrap_or(&offered.database);
        task.suits(&offered, database)
    });
    let Ok(Ok(Err(failure))) = timeout(LOOKED_WITHIN, looking).await else {
        return Reply::Ready(ready);
    };
    // The file is written to again once the run has ended, and is then another than was said.
    match contact.ask(&Request::Look).await {
        Reply::Ready(still) if still.offer.run == ready.offer.run => {
            Reply::Unfit(still.offer.run, failure)
        }
        reply => reply,
    }
}

async fn replied(asked: &mut Option<Asked>) -> (Instant, Reply) {
    match asked {
        Some(asked) => asked.reply.as_mut().await,
        None => std::future::pending().await,
    }
}

async fn worked(work: &mut Option<Work>) -> Result<Product, Failure> {
    match work {
        Some(work) => work.ended().await,
        None => std::future::pending().await,
    }
}

async fn woken(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn moment() -> Moment {
    Moment {
        now: instant(),
        chance: fastrand::f64(),
    }
}

impl Ended {
    /// What the program has to say at its end.
    fn answer(self, once: bool) -> Result<Answer, Failure> {
        let json = self.json();
        match self.verdict {
            Ok(published) => Ok(Answer {
                exit: Exit::Done,
                text: published.describe(),
                json,
            }),
            // Nothing was under way: to end is what was wanted.
            Err(_) if self.stopped && self.run.is_none() && !once => Ok(Answer {
                exit: Exit::Done,
                text: "stopped".to_owned(),
                json,
            }),
            Err(failure) => Err(failure),
        }
    }

    fn json(&self) -> Value {
        let published = self.verdict.as_ref().ok();
        json!({
            "run": self.run,
            "held_throughout": published.is_some(),
            "backup": published.and_then(|published| published.backup.as_ref()),
            "promoted": published.and_then(|published| published.promoted.as_ref()),
            "warnings": published.map_or(&[][..], |published| &published.warnings),
        })
    }
}
