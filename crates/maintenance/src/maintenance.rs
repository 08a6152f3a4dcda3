//! What a service links: [`Maintenance::prepare`] before it opens its database,
//! [`Maintenance::start`] after, [`Running::shutdown`] at the end.
//!
//! Driver and endpoint run on a thread of their own with a runtime of their own. The
//! service's runtime may be busy, or blocked by its database, at the very moment the gate
//! has to open or a probe has to be answered.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{mpsc, oneshot};

use crate::catalogue::{self, Backup, Catalogue};
use crate::config::{self, Address, Announces, JournalMode, Problems, Settings, TakenBy};
use crate::disk::{self, Disk, Lock};
use crate::driver::{Command, Driver, Engine, Handles, LOG_TARGET, Parts};
use crate::durability::Failures;
use crate::encryption::{self, Seal};
use crate::engine::BackupEngine;
use crate::excerpt;
use crate::files::{self, Reserved};
use crate::gate::{Gate, Keeper};
use crate::herald::{self, Herald};
use crate::lease::Terms;
use crate::mysql::{Address as ServerAddress, Client, DumpEngine};
use crate::notify::{self, Header};
use crate::readiness::{self, Access, Listener, Token, token};
use crate::remote::{self, Remote, Uploader, Uploads};
use crate::restore;
use crate::snapshot::Watch;
use crate::sqlite::{self, Database, Journal};
use crate::status::{BackupStatus, PerDoor, Reader};
use crate::touch_file::{self, TouchFile};
use crate::window::Rules;

/// What the library needs to know of the service it is linked into.
#[derive(Debug, Clone)]
pub struct Service {
    /// Name and version, as manifests and statuses carry them.
    pub name: String,
    /// What is backed up.
    pub database: Storage,
}

/// The service's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// An `SQLite` file.
    Sqlite(PathBuf),
    /// A database of a MySQL or MariaDB server.
    MySql(ServerAddress),
}

impl From<PathBuf> for Storage {
    fn from(path: PathBuf) -> Self {
        Self::Sqlite(path)
    }
}

impl Storage {
    /// What statuses call it. Never shows a password.
    fn name(&self) -> PathBuf {
        match self {
            Self::Sqlite(path) => path.clone(),
            Self::MySql(address) => address.to_string().into(),
        }
    }

    /// The file, which is never read by descriptor; of a server there is none.
    fn file(&self) -> &Path {
        match self {
            Self::Sqlite(path) => path,
            Self::MySql(_) => Path::new(""),
        }
    }
}

/// Everything checked and bound; nothing runs yet.
#[derive(Debug)]
pub struct Maintenance {
    settings: Settings,
    service: Service,
    gate: Gate,
    keeper: Keeper,
    disk: Disk,
    catalogue: Catalogue,
    endpoint: Option<(Listener, Access)>,
    touch_file: Option<TouchFile>,
    notify_header: Option<Header>,
    /// Of an `SQLite` file.
    lock: Option<Lock>,
    remote: Option<config::Remote>,
}

/// A running driver and its endpoint.
#[derive(Debug)]
pub struct Running {
    commands: mpsc::Sender<Command>,
    status: Reader,
    readiness: Option<Address>,
    stop: oneshot::Sender<()>,
    stopped: oneshot::Receiver<()>,
    herald: Option<herald::Running>,
    /// Dropped, it ends the uploads.
    _uploader: Option<oneshot::Sender<()>>,
}

/// Why windows cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database's directory is not there.
    #[error(
        "the directory {0:?} of the database does not exist; create it or correct \
         core.database.path"
    )]
    NoDatabaseDirectory(PathBuf),
    /// The directory that is to hold the catalogue's is not there.
    #[error(
        "the directory {0:?} that is to hold maintenance.backup.directory does not exist; \
         create it or correct the path"
    )]
    NoParentDirectory(PathBuf),
    /// The endpoint's address cannot be had.
    #[error(transparent)]
    Listen(#[from] readiness::Error),
    /// The endpoint's token cannot be had.
    #[error(transparent)]
    Token(#[from] token::Error),
    /// Whoever reaches the network could end a run.
    #[error(
        "maintenance.readiness.bind_address = \"{0}\" can be reached from other machines, and \
         there is no token; set maintenance.readiness.token_file or {variable}, or keep to a \
         loopback address or a Unix domain socket",
        variable = token::VARIABLE
    )]
    NoToken(Address),
    /// `announces = "serve"` cannot be kept.
    #[error(
        "maintenance.announces = \"serve\" needs a database in WAL mode, and {path:?} is in \
         journal mode {journal}; set maintenance.journal_mode = \"wal\" or announces = \"auto\""
    )]
    CannotServe {
        /// The database.
        path: PathBuf,
        /// Its journal mode.
        journal: Journal,
    },
    /// What only an `SQLite` file has was asked for.
    #[error(transparent)]
    Unfit(#[from] Problems),
    /// Another process uses the database, or is restoring it.
    #[error(
        "{0:?} is in use by another process that holds its lock file, a tracker or a restore; \
         stop that first"
    )]
    InUse(PathBuf),
    /// The operating system gives no thread or timer.
    #[error("could not start the maintenance thread: {0}")]
    Thread(std::io::Error),
    /// The database.
    #[error(transparent)]
    Database(#[from] sqlite::Error),
    /// The catalogue.
    #[error("maintenance.backup.directory: {0}")]
    Catalogue(#[from] catalogue::Error),
    /// The lock file beside the database.
    #[error("could not lock the database: {0}")]
    Lock(#[from] disk::Error),
    /// The files to be stored with the database.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// The part of the database that is to be stored.
    #[error(transparent)]
    Excerpt(#[from] excerpt::Error),
    /// Whom backups are to be encrypted for.
    #[error("maintenance.backup: {0}")]
    Encryption(#[from] encryption::Error),
    /// The second place of the backups.
    #[error(transparent)]
    Remote(#[from] remote::Error),
    /// The touch-file.
    #[error(transparent)]
    TouchFile(#[from] touch_file::Error),
    /// What is to be sent with a notice.
    #[error(transparent)]
    NotifyHeader(#[from] notify::HeaderError),
}

impl Maintenance {
    /// Checks and binds everything, then puts the database into the journal mode asked
    /// for. To be called before the service opens the database: to leave WAL nobody else
    /// may have it open, and a touch-file of an earlier life must be gone before a new one
    /// begins.
    ///
    /// # Errors
    ///
    /// What is wrong and what to do. Nothing is written before everything that can be
    /// checked without writing has been.
    pub fn prepare(settings: Settings, service: Service) -> Result<Self, Error> {
        let disk = match &service.database {
            Storage::Sqlite(path) => Disk::default().guarding(path),
            Storage::MySql(_) => Disk::default(),
        };
        let endpoint = settings
            .readiness
            .as_ref()
            .map(|readiness| open(readiness, &disk))
            .transpose()?;
        match &service.database {
            Storage::Sqlite(path) => must_exist(path, Error::NoDatabaseDirectory)?,
            Storage::MySql(_) => settings.check_for_mysql()?,
        }
        if settings.backup.taken_by == TakenBy::Tracker {
            must_exist(&settings.backup.directory, Error::NoParentDirectory)?;
        }
        let touch_file = settings
            .readiness
            .as_ref()
            .and_then(|readiness| readiness.touch_file.clone())
            .map(|path| TouchFile::new(path, disk.clone()));
        if let Some(touch_file) = &touch_file {
            touch_file.probe()?;
        }
        let notify_header = settings
            .notify
            .webhook_header_file
            .as_deref()
            .map(|path| Header::read(path, &disk))
            .transpose()?;
        match &service.database {
            Storage::Sqlite(path) => check_journal(&settings, path)?,
            Storage::MySql(address) => warn_of_programs(&settings, address),
        }
        if settings.backup.taken_by == TakenBy::Tracker {
            check_files(&settings, service.database.file(), &disk)?;
            Seal::of(&settings.backup.encryption, &disk)?;
        }
        let remote = remote(&settings, &disk)?;
        let (gate, keeper) = Gate::new().map_err(Error::Thread)?;

        let directory = &settings.backup.directory;
        let catalogue = match settings.backup.taken_by {
            TakenBy::Tracker => Catalogue::open(disk.clone(), directory)?,
            TakenBy::Sidecar => Catalogue::elsewhere(disk.clone(), directory),
        };
        let lock = match &service.database {
            Storage::Sqlite(path) => {
                Some(restore::hold(path, &disk)?.ok_or_else(|| Error::InUse(path.clone()))?)
            }
            Storage::MySql(_) => None,
        };
        if let Some(touch_file) = &touch_file {
            touch_file.clear_stale()?;
        }
        if let Storage::Sqlite(path) = &service.database {
            sqlite::set_journal_mode(path, settings.journal_mode)?;
        }
        Ok(Self {
            settings,
            service,
            gate,
            keeper,
            disk,
            catalogue,
            endpoint,
            touch_file,
            notify_header,
            lock,
            remote,
        })
    }

    /// The gate the service's requests are to pass.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Starts the driver and the endpoint. To be called when the service has opened its
    /// database.
    ///
    /// # Errors
    ///
    /// When the database cannot be opened or there is no thread to be had.
    pub fn start(self) -> Result<Running, Error> {
        let Self {
            settings,
            service,
            keeper,
            disk,
            catalogue,
            endpoint,
            touch_file,
            notify_header,
            lock,
            remote,
            ..
        } = self;
        // Until the process ends: the service has the file open for longer than windows
        // are run, and a restore must not slip in between.
        std::mem::forget(lock);
        let backups = backups(&settings, &catalogue)?;
        let served = served(&settings, &backups);
        let mut good = backups.iter().filter(|backup| backup.notes.are_clean());
        let newest = good.next().map(BackupStatus::found);
        let rules = rules(&settings);
        warn_of_catch_up(&settings, &rules);
        let (name, database) = (service.name.clone(), service.database);
        let herald = herald::Parts {
            notify: settings.notify.clone(),
            header: notify_header,
            hooks: settings.hooks.clone(),
            service: name.clone(),
            database: database.name(),
            directory: settings.backup.directory.clone(),
        };
        let parts = Parts {
            keeper,
            rules,
            hold_at_most: PerDoor {
                udp: settings.gate.hold_udp as u64,
                http: settings.gate.hold_http as u64,
            },
            served,
            touch_file,
            service: service.name,
            database: database.name(),
        };
        let beside = Beside {
            newest,
            herald,
            uploads: remote.map(|remote| Uploader::new(remote, disk.clone(), catalogue.clone())),
        };
        match database {
            Storage::Sqlite(path) => {
                let database = Database::open(&path)?;
                if let (Some(partial), TakenBy::Tracker) =
                    (&settings.backup.partial, settings.backup.taken_by)
                {
                    excerpt::check(&database, partial)?;
                }
                let engine = BackupEngine::new(database, catalogue, disk, &settings, name)?;
                launch(engine, parts, beside, endpoint)
            }
            Storage::MySql(address) => {
                let engine = DumpEngine::new(address, catalogue, disk, &settings, name);
                launch(engine, parts, beside, endpoint)
            }
        }
    }
}

/// What goes on beside the driver: who is told of runs, and of which backup there is to begin
/// with; and who uploads what they publish.
struct Beside {
    newest: Option<BackupStatus>,
    herald: herald::Parts,
    uploads: Option<(Uploader, Uploads)>,
}

/// Starts the driver of this engine, and the endpoint, on a thread of their own, and on one each
/// whoever tells of the runs and whoever uploads.
fn launch<E: Engine>(
    engine: E,
    parts: Parts,
    beside: Beside,
    endpoint: Option<(Listener, Access)>,
) -> Result<Running, Error> {
    let address = endpoint
        .as_ref()
        .and_then(|(listener, _)| listener.address().ok());
    let herald = Herald::start(beside.herald).map_err(Error::Thread)?;
    let (herald, heralding) = herald.unzip();
    let teller = herald.as_ref().map(Herald::teller);
    let (driver, handles) = Driver::new(engine, parts);
    let driver = driver.telling(beside.newest, herald);
    let Handles {
        commands,
        mut status,
    } = handles;
    if let Some(heralding) = &heralding {
        status = status.with(heralding.told.clone());
    }
    let (uploader, uploads) = beside.uploads.unzip();
    if let Some(uploads) = uploads {
        status = status.with_uploads(uploads);
    }
    let reader = status.clone();
    let ask = commands.clone();
    let (stop, stopped) = spawn(driver, endpoint, status, commands)?;
    let uploader = uploader
        .map(|uploader| {
            let (stop, asked_to_stop) = oneshot::channel();
            uploader.start(reader.clone(), teller, asked_to_stop)?;
            Ok(stop)
        })
        .transpose()
        .map_err(Error::Thread)?;
    match &address {
        Some(Address::Tcp(address)) => {
            tracing::info!(target: LOG_TARGET, "Started on: http://{address}");
        }
        Some(unix @ Address::Unix(_)) => {
            tracing::info!(target: LOG_TARGET, "Started on: {unix}");
        }
        None => {}
    }
    Ok(Running {
        status: reader,
        commands: ask,
        readiness: address,
        stop,
        stopped,
        herald: heralding,
        _uploader: uploader,
    })
}

impl Running {
    /// Reads the status.
    #[must_use]
    pub fn status(&self) -> &Reader {
        &self.status
    }

    /// From now on a sync that fails ends the run in progress, if there is one with a pinned
    /// file: under a pin the service cannot recover from it. Needs an async runtime.
    pub fn heed(&self, mut failures: Failures) {
        let commands = self.commands.clone();
        tokio::spawn(async move {
            while let Some((_, error)) = failures.next().await {
                let why = error.to_string();
                if commands.send(Command::GiveWay { why }).await.is_err() {
                    // There are no more runs.
                    break;
                }
            }
        });
    }

    /// Where the endpoint listens, if it does so on a port.
    #[must_use]
    pub fn readiness_address(&self) -> Option<SocketAddr> {
        match self.readiness {
            Some(Address::Tcp(address)) => Some(address),
            Some(Address::Unix(_)) | None => None,
        }
    }

    /// Opens the gate, gives up the run in progress, removes what is temporary, and
    /// returns; after [`SHUTDOWN_WITHIN`] at the latest.
    pub async fn shutdown(self) {
        // The driver may have broken; then there is nothing to stop.
        let _ = self.stop.send(());
        if let Some(herald) = &self.herald {
            herald.go_down();
        }
        let mut driver_stopped = false;
        let stopped = async {
            // The sender is dropped by a thread that has ended without a word.
            driver_stopped = self.stopped.await.is_ok();
            if let Some(herald) = self.herald {
                herald.ended().await;
            }
        };
        if tokio::time::timeout(SHUTDOWN_WITHIN, stopped).await.is_ok() {
            return;
        }
        if driver_stopped {
            tracing::error!(
                target: LOG_TARGET,
                "Hooks or notices of the last run do not end and are left behind"
            );
        } else {
            tracing::error!(
                target: LOG_TARGET,
                "The maintenance driver does not stop; what is temporary is removed at the next start"
            );
        }
    }
}

/// Starts the thread of driver and endpoint: how it is told to stop, and says that it has.
fn spawn<E: Engine>(
    driver: Driver<E>,
    endpoint: Option<(Listener, Access)>,
    status: Reader,
    commands: mpsc::Sender<Command>,
) -> Result<(oneshot::Sender<()>, oneshot::Receiver<()>), Error> {
    let (stop, asked_to_stop) = oneshot::channel();
    let (say_stopped, stopped) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Thread)?;
    std::thread::Builder::new()
        .name("maintenance".into())
        .spawn(move || {
            runtime.block_on(async move {
                let driver = tokio::spawn(driver.run(async {
                    // A handle that was dropped stops the driver as well.
                    drop(asked_to_stop.await);
                }));
                let (end, told_to_end) = oneshot::channel::<()>();
                let serving = endpoint.map(|(listener, access)| {
                    tokio::spawn(serve(listener, access, status, commands, told_to_end))
                });
                if let Err(error) = driver.await {
                    tracing::error!(
                        target: LOG_TARGET,
                        "The maintenance driver broke ({error}); announces flow, but there \
                         will be no backups until the service is restarted"
                    );
                    // The endpoint goes on saying so.
                    std::future::pending::<()>().await;
                }
                // Who was promised an answer gets it, a verdict for one. That takes
                // `readiness::SHUTDOWN_WITHIN` at most.
                drop(end);
                if let Some(serving) = serving {
                    let _ = serving.await;
                }
            });
            // Not waiting for what hangs in a dead volume.
            runtime.shutdown_background();
            // Whoever shuts down may have stopped waiting.
            let _ = say_stopped.send(());
        })
        .map_err(Error::Thread)?;
    Ok((stop, stopped))
}

/// Serves until told to end. Should it end before, that is said.
async fn serve(
    listener: Listener,
    access: Access,
    status: Reader,
    commands: mpsc::Sender<Command>,
    told_to_end: oneshot::Receiver<()>,
) {
    let ended = async {
        // Whoever tells it to drops the other end.
        drop(told_to_end.await);
    };
    if let Err(error) = readiness::serve(listener, access, status, commands, ended).await {
        tracing::error!(
            target: LOG_TARGET,
            "The readiness endpoint ended: {error}; windows go on without it"
        );
    }
}

/// Limit on [`Running::shutdown`].
pub const SHUTDOWN_WITHIN: Duration = Duration::from_secs(4);

/// Limit on the time that announces are held for a sidecar that is yet to claim the run, where
/// none can come by touch-file: ten times what one needs that looks once a second.
const CLAIM_WITHIN_HELD: Duration = Duration::from_secs(10);

/// The endpoint's address and who may ask for what there. An address that others can reach
/// needs a token.
fn open(readiness: &config::Readiness, disk: &Disk) -> Result<(Listener, Access), Error> {
    let file = readiness.token_file.as_deref();
    let variable = std::env::var_os(token::VARIABLE);
    let token = Token::find(variable.as_deref(), file, disk)?;
    if token.is_none() && !readiness.bind_address.is_local() {
        return Err(Error::NoToken(readiness.bind_address.clone()));
    }
    if let Some(file) = token::readable_by_others(file) {
        tracing::warn!(
            target: LOG_TARGET,
            "{} (maintenance.readiness.token_file) can be read by every user of this machine; \
             chmod o-r it",
            file.display()
        );
    }
    let listener = Listener::bind(&readiness.bind_address, disk)?;
    let hosts = readiness.hosts.clone();
    Ok((listener, Access { token, hosts }))
}

/// The second place of the backups. What a sidecar publishes is not this process's to upload.
/// One that cannot be had at this moment keeps no tracker from serving: who uploads tries again,
/// and says so.
fn remote(settings: &Settings, disk: &Disk) -> Result<Option<config::Remote>, remote::Error> {
    let Some(remote) = &settings.remote else {
        return Ok(None);
    };
    match settings.backup.taken_by {
        TakenBy::Tracker => match Remote::open(remote, disk) {
            Err(error) if error.is_of_configuration() => Err(error),
            _ => Ok(Some(remote.clone())),
        },
        TakenBy::Sidecar => {
            tracing::warn!(
                target: LOG_TARGET,
                "[maintenance.remote] has no effect here with backup.taken_by = \"sidecar\": where \
                 the backups are, `torrust-maintenance upload` after each run uploads them"
            );
            Ok(None)
        }
    }
}

fn must_exist(path: &Path, error: fn(PathBuf) -> Error) -> Result<(), Error> {
    let parent = disk::parent(path);
    if parent.is_dir() {
        Ok(())
    } else {
        Err(error(parent.to_owned()))
    }
}

/// Whether `announces = "serve"` can be kept, from the header alone: the service has not
/// opened the database yet, so reading it disturbs nobody.
fn check_journal(settings: &Settings, database: &Path) -> Result<(), Error> {
    let found = match sqlite::inspect(database) {
        Ok(header) => header.journal,
        // The service will create one, which starts out with a rollback journal.
        Err(sqlite::Error::Missing { .. }) => Journal::Delete,
        Err(error) => return Err(error.into()),
    };
    let journal = match settings.journal_mode {
        JournalMode::Keep => found,
        JournalMode::Wal => Journal::Wal,
        JournalMode::Delete => Journal::Delete,
    };
    if settings.announces == Announces::Serve && journal.blocks_writers() {
        let path = database.to_owned();
        return Err(Error::CannotServe { path, journal });
    }
    Ok(())
}

/// That nothing is to be stored as a file that never is. What is missing may yet come.
fn check_files(settings: &Settings, database: &Path, disk: &Disk) -> Result<(), files::Error> {
    let reserved = Reserved::of(database, &settings.backup.directory);
    let wanted = &settings.backup.files;
    match files::choose(wanted, &reserved, disk, &Watch::default()) {
        Ok(choice) => files::check_reserved(&choice.left_out),
        // How many files there are, and how long it takes to find them, may change from one
        // day to the next: no reason not to serve. The run will say so again.
        Err(
            error @ (files::Error::TooFar { .. }
            | files::Error::TooMany { .. }
            | files::Error::TooLarge { .. }),
        ) => {
            tracing::warn!(target: LOG_TARGET, "{error}");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The backups this process made, newest first.
fn backups(settings: &Settings, catalogue: &Catalogue) -> Result<Vec<Backup>, catalogue::Error> {
    match settings.backup.taken_by {
        TakenBy::Tracker => catalogue.backups(),
        // Its backups are its own affair: not looked at, for they may lie on a volume that
        // hangs, or where this process does not see them.
        TakenBy::Sidecar => Ok(Vec::new()),
    }
}

/// The beginning of the newest window that has had its run, as far as the backups show.
fn served(settings: &Settings, backups: &[Backup]) -> Option<DateTime<Utc>> {
    let newest = backups.first()?;
    let window = settings.schedule.last_before(newest.manifest.began)?;
    Some(window.begins)
}

/// A run without the client program fails, and says so; but somebody who looks at the start
/// should not have to wait for one.
fn warn_of_programs(settings: &Settings, address: &ServerAddress) {
    let program = settings.backup.dump_program.as_deref();
    if let Err(error) = Client::find(address.clone(), program) {
        tracing::warn!(target: LOG_TARGET, "There will be no backups as it is: {error}");
    }
}

fn warn_of_catch_up(settings: &Settings, rules: &Rules) {
    if settings.catch_up && !rules.catch_up {
        tracing::warn!(
            target: LOG_TARGET,
            "maintenance.catch_up has no effect with backup.taken_by = \"sidecar\": whether a \
             window was missed shows in the backups, which are the sidecar's; begin a run with \
             `torrust-maintenance run`, or remove catch_up"
        );
    }
}

/// What windows keep to: what is configured, and limits that are not, each with its reason.
#[must_use]
pub fn rules(settings: &Settings) -> Rules {
    let hold_for = settings.gate.hold_for;
    Rules {
        schedule: settings.schedule.clone(),
        // A sidecar's backups do not tell this process what it missed, and every start would
        // make up for the same window.
        catch_up: settings.catch_up && settings.backup.taken_by == TakenBy::Tracker,
        hold_for,
        // No client notices a pause below 5 s, and a flush that takes longer is blocked by
        // another program, which may be gone at the next attempt.
        flush_within: hold_for.min(Duration::from_secs(4)),
        attempts: 5,
        // Long enough for what was held to be answered before the gate closes again.
        retry_after: Duration::from_secs(10),
        grace: (hold_for / 4).min(Duration::from_millis(500)),
        // 17 GB take five minutes; a full check of them, at 21 MB/s, a quarter of an hour.
        finish_within: Duration::from_secs(12 * 3600),
        lease: match (settings.backup.taken_by, &settings.readiness) {
            (TakenBy::Sidecar, Some(readiness)) => Some(Terms {
                ttl: readiness.ttl,
                claim_within: readiness.claim_within,
                // A sidecar that lives claims at once, and one by touch-file never: it needs
                // all of the time.
                claim_within_held: match readiness.touch_file {
                    Some(_) => readiness.claim_within,
                    None => readiness.claim_within.min(CLAIM_WITHIN_HELD),
                },
            }),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests;
