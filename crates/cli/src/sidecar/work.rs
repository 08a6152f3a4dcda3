//! What a sidecar does with a database that is held still for it: our engine, or a command
//! of the operator's. Either makes something that has no final name until it is published.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use chrono::SecondsFormat;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use torrust_tracker_maintenance::catalogue::{BackupId, Catalogue};
use torrust_tracker_maintenance::config::Backup;
use torrust_tracker_maintenance::disk::Disk;
use torrust_tracker_maintenance::process::{Group, TERM_WITHIN, how};
use torrust_tracker_maintenance::publication::Publisher;
use torrust_tracker_maintenance::readiness::token;
use torrust_tracker_maintenance::sidecar::{self, Origin, Staging, Taken};
use torrust_tracker_maintenance::snapshot::Watch;
use torrust_tracker_maintenance::sqlite::Pin;
use torrust_tracker_maintenance::status::CopyOf;
use torrust_tracker_maintenance::window::{self, Cause};

use super::round::{Lease, Ready};
use crate::exit::{Exit, Failure};
use crate::units;

/// What is to be done with every run.
#[derive(Debug, Clone)]
pub enum Task {
    Engine(Arc<Library>),
    Command(Arc<Program>),
}

/// Where our engine publishes to, and by which rules.
#[derive(Debug)]
pub struct Library {
    pub catalogue: Catalogue,
    pub disk: Disk,
    pub backup: Backup,
    /// This program and its version, for manifests and locks.
    pub service: String,
}

/// A command of the operator's.
#[derive(Debug)]
pub struct Program {
    pub command: Vec<OsString>,
    /// Where what it makes is promoted to, if anywhere.
    pub directory: Option<PathBuf>,
    pub disk: Disk,
    /// Its standard output is put on standard error, so that ours is JSON alone.
    pub quiet: bool,
}

impl Task {
    /// Whether it could do its work with this run, as far as can be seen from here without
    /// claiming it: another sidecar may be able to.
    pub fn suits(&self, ready: &Ready, database: &Path) -> Result<(), Failure> {
        check(ready, Origin::Path(database))?;
        match self {
            Self::Engine(library) => sidecar::check_room(&ready.offer, &library.publisher())
                .map_err(|failure| failed(failure, "no_room")),
            // How much a command makes of it is not known.
            Self::Command(_) => Ok(()),
        }
    }
}

impl Library {
    pub fn publisher(&self) -> Publisher<'_> {
        Publisher {
            catalogue: &self.catalogue,
            disk: &self.disk,
            backup: &self.backup,
            service: &self.service,
        }
    }
}

/// What was made, under a temporary name: dropped, it is removed.
#[derive(Debug)]
pub enum Product {
    Backup(Box<Taken>, Arc<Library>),
    Staged(Staging),
    /// Whatever the command did with it is not ours to see.
    Elsewhere,
}

/// What was published.
#[derive(Debug, Default)]
pub struct Published {
    pub backup: Option<BackupId>,
    pub promoted: Option<PathBuf>,
    pub warnings: Vec<String>,
}

/// A copy in the making.
#[derive(Debug)]
pub struct Work {
    watch: Watch,
    result: JoinHandle<Result<Product, Failure>>,
}

impl Work {
    /// Begins. `database` is where the file is for this process, `pin` one of its own.
    pub fn begin(task: &Task, lease: &Lease, database: PathBuf, pin: Option<Arc<Pin>>) -> Self {
        let watch = Watch::default();
        let result = match task.clone() {
            Task::Engine(library) => {
                let (ready, watch) = (lease.ready.clone(), watch.clone());
                spawn_blocking(move || {
                    let origin = match &pin {
                        Some(pin) => Origin::Pin(pin),
                        None => Origin::Path(&database),
                    };
                    check(&ready, origin)?;
                    let publisher = library.publisher();
                    let taken = sidecar::take(&ready.offer, origin, &publisher, &watch)
                        .map_err(|failure| failed(failure, "not_copied"))?;
                    Ok(Product::Backup(Box::new(taken), library))
                })
            }
            Task::Command(program) => {
                let (lease, watch) = (lease.clone(), watch.clone());
                tokio::spawn(async move { program.run(lease, database, pin, watch).await })
            }
        };
        Self { watch, result }
    }

    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Asks it to end.
    pub fn give_up(&self, why: &str) {
        self.watch.cancel(why);
    }

    /// What came of it. May be asked again if it was not waited for to the end.
    pub async fn ended(&mut self) -> Result<Product, Failure> {
        (&mut self.result).await.unwrap_or_else(|error| {
            let message = format!("the copying broke: {error}; please report it with the log");
            Err(Failure::new(Exit::Failed, "panicked", message))
        })
    }
}

impl Product {
    /// Gives it its final name, after it was told that the file was still throughout.
    pub fn publish(self, watch: &Watch) -> Result<Published, Failure> {
        match self {
            Self::Backup(taken, library) => {
                let published = taken
                    .publish(&library.publisher(), watch)
                    .map_err(|failure| failed(failure, "not_published"))?;
                Ok(Published {
                    backup: Some(published.backup),
                    promoted: None,
                    warnings: published.warnings,
                })
            }
            Self::Staged(staging) => {
                let promoted = staging.promote().map_err(|error| {
                    Failure::new(Exit::Failed, "not_published", error.to_string())
                })?;
                Ok(Published {
                    promoted: Some(promoted),
                    ..Published::default()
                })
            }
            Self::Elsewhere => Ok(Published::default()),
        }
    }
}

/// That the file found is the one offered; a pin of one's own cannot be of another.
fn check(ready: &Ready, origin: Origin<'_>) -> Result<(), Failure> {
    let Origin::Path(path) = origin else {
        return Ok(());
    };
    ready
        .offer
        .check(path)
        .map_err(|error| Failure::new(Exit::Usage, "wrong_database", error.to_string()))
}

fn failed(failure: window::Failure, error: &'static str) -> Failure {
    let (exit, error) = match failure.cause {
        Cause::Verification => (Exit::Verification, "damaged"),
        _ => (Exit::Failed, error),
    };
    Failure::new(exit, error, failure.message)
}

impl Program {
    async fn run(
        self: Arc<Self>,
        lease: Lease,
        database: PathBuf,
        // Held until the command has ended.
        pin: Option<Arc<Pin>>,
        watch: Watch,
    ) -> Result<Product, Failure> {
        let (cancel, cancelled) = oneshot::channel();
        watch.on_cancel(move || {
            // The command may have ended.
            let _ = cancel.send(());
        });
        let (program, own) = (Arc::clone(&self), pin.is_some());
        let begun = blocking(move || program.begin(&lease, &database, own)).await?;
        let (staging, mut group) = begun?;
        let ended = tokio::select! {
            biased;
            ended = group.ended() => self.judge(ended),
            Ok(()) = cancelled => {
                let why = watch.cancelled().unwrap_or_default();
                Err(self.failed(&format!("was ended: {why}")))
            }
        };
        group.end(TERM_WITHIN).await;
        drop(pin);
        // Removing gigabytes takes a moment, too.
        blocking(move || ended.and_then(|()| self.product(staging))).await?
    }

    /// Everything up to the command's start, which may wait for a disk.
    fn begin(
        &self,
        lease: &Lease,
        database: &Path,
        own_pin: bool,
    ) -> Result<(Option<Staging>, Group), Failure> {
        if !own_pin {
            check(&lease.ready, Origin::Path(database))?;
        }
        let run = &lease.ready.offer.run;
        let staging = self
            .directory
            .as_ref()
            .map(|directory| Staging::begin(&self.disk, directory, run));
        let staging = staging.transpose().map_err(|error| not_run(&error))?;
        let child = self.spawn(lease, database, staging.as_ref().map(Staging::path));
        let child =
            child.map_err(|error| self.failed(&format!("could not be started: {error}")))?;
        Ok((staging, Group::of(child)))
    }

    /// Whether it did what it was to do, by how it ended.
    fn judge(&self, ended: io::Result<(ExitStatus, bool)>) -> Result<(), Failure> {
        let (status, goes_on) = ended.map_err(|error| not_run(&error))?;
        if !status.success() {
            return Err(self.failed(&format!("{}: its output says why", how(status))));
        }
        if goes_on {
            return Err(self.failed(
                "exited with 0, but left processes running, which were ended: have it wait for \
                 all that it starts, or what it made may be half of it",
            ));
        }
        Ok(())
    }

    fn product(&self, staging: Option<Staging>) -> Result<Product, Failure> {
        let Some(staging) = staging else {
            return Ok(Product::Elsewhere);
        };
        if staging.is_empty().map_err(|error| not_run(&error))? {
            return Err(self.failed(
                "was good, but left nothing in $TORRUST_MAINTENANCE_STAGING: have it write there, \
                 or leave --directory out",
            ));
        }
        Ok(Product::Staged(staging))
    }

    fn spawn(&self, lease: &Lease, database: &Path, staging: Option<&Path>) -> io::Result<Child> {
        let (program, arguments) = self
            .command
            .split_first()
            .ok_or(io::ErrorKind::InvalidInput)?;
        let deadline = lease.deadline_utc;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_remove(token::VARIABLE)
            .env("TORRUST_MAINTENANCE_RUN", lease.ready.offer.run.as_str())
            .env("TORRUST_MAINTENANCE_DATABASE", database)
            .env(
                "TORRUST_MAINTENANCE_DEADLINE",
                deadline.to_rfc3339_opts(SecondsFormat::Secs, true),
            )
            .env("TORRUST_MAINTENANCE_COPY", copy_of(&lease.ready))
            .env_remove("TORRUST_MAINTENANCE_STAGING")
            .stdin(Stdio::null())
            // A group of its own, so that what it starts ends with it.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(staging) = staging {
            command.env("TORRUST_MAINTENANCE_STAGING", staging);
        }
        if self.quiet {
            command.stdout(io::stderr().as_fd().try_clone_to_owned()?);
        }
        command.spawn()
    }

    /// Of this command. It is called by its name: its arguments may hold secrets.
    fn failed(&self, how: &str) -> Failure {
        let program = self
            .command
            .first()
            .map(|program| program.to_string_lossy());
        not_run(&format!("`{}` {how}", program.unwrap_or_default()))
    }
}

/// As it is called in the tracker's answers.
fn copy_of(ready: &Ready) -> &'static str {
    match ready.copy {
        CopyOf::PinnedFile => "pinned_file",
        CopyOf::PausedDatabase => "paused_database",
    }
}

/// What may wait for a disk, where nothing else has to wait for it.
async fn blocking<T: Send + 'static>(
    doing: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let done = spawn_blocking(doing).await;
    done.map_err(|error| Failure::new(Exit::Failed, "panicked", error.to_string()))
}

fn not_run(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, "command_failed", error.to_string())
}

impl Published {
    /// What there is now, in words.
    pub fn describe(&self) -> String {
        match (&self.backup, &self.promoted) {
            (Some(backup), _) => format!("backup {backup} was published"),
            (None, Some(promoted)) => format!("{} was published", promoted.display()),
            (None, None) => "the command has what it took".to_owned(),
        }
    }
}

/// What was copied, in words.
pub fn extent(product: &Product) -> String {
    match product {
        Product::Backup(taken, _) => {
            let (bytes, seconds) = taken.extent();
            format!(
                "{} copied in {}",
                units::bytes(bytes),
                units::seconds(Duration::from_secs_f64(seconds.max(0.0)))
            )
        }
        Product::Staged(_) | Product::Elsewhere => "the command was good".to_owned(),
    }
}
