//! The ways to a copy of a database in use, and back: each carried out once, and timed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use chrono::Utc;
use serde::{Deserialize, Serialize};
use torrust_tracker_maintenance::catalogue::Catalogue;
use torrust_tracker_maintenance::config::{Depth, Source};
use torrust_tracker_maintenance::disk::Disk;
use torrust_tracker_maintenance::driver::{Engine, NotPinned, Pauses};
use torrust_tracker_maintenance::engine::BackupEngine;
use torrust_tracker_maintenance::restore;
use torrust_tracker_maintenance::snapshot::Watch;
use torrust_tracker_maintenance::sqlite::Database;
use torrust_tracker_maintenance::window::{Run, RunId, Trigger};

use super::writer::{Account, Home, Phase, Writer};

/// For how long the writer is looked at once the pin has ended.
pub const AFTER: Duration = Duration::from_secs(10);

/// For how long it is looked at before anything is done.
const BEFORE: Duration = Duration::from_secs(4);

/// As long as the longest copy that is not slowed down takes for 1.5 GB, or so: what a writer
/// meets without a copy is to be looked for as long as with one.
const ALONE: Duration = Duration::from_secs(10);

/// For how long [`Method::FileHeld`] has the pin.
pub const HELD: Duration = Duration::from_secs(20);

/// Commits a second that are many.
const MANY: u32 = 1_000;

/// How often a program is asked whether it has ended.
const ASK_EVERY: Duration = Duration::from_millis(2);

/// How long a pin may take, as in a run.
const FLUSH_WITHIN: Duration = Duration::from_secs(4);

/// A way to copy a database, or to get it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Nothing is copied: what the writer meets by itself.
    Alone,
    /// `cp`, then `sync` of the file and its directory. Of a database in use it is no
    /// backup; it says how fast the disk is.
    Cp,
    /// `.backup` of the sqlite3 command line.
    CommandLine,
    /// `VACUUM INTO` by the sqlite3 command line.
    VacuumInto,
    /// A run with `method = "pages"`, uncompressed.
    Pages,
    /// A run with `method = "file"`, uncompressed.
    File,
    /// A run with `method = "file"`, compressed by zstd at level 3.
    FileZstd,
    /// A run with `method = "file"`, uncompressed, slowed down to [`HELD`]: the log grows as
    /// it does under a database ten times the size.
    FileHeld,
    /// `zstd -d` of a backup, then `sync`.
    ZstdD,
    /// A restore of that backup: unpacked, compared, its structure checked, put in place.
    Restore,
}

impl Method {
    /// All of them, in the order they are measured in a round.
    pub const ALL: [Self; 10] = [
        Self::Alone,
        Self::Cp,
        Self::File,
        Self::Pages,
        Self::CommandLine,
        Self::VacuumInto,
        Self::FileZstd,
        Self::FileHeld,
        Self::ZstdD,
        Self::Restore,
    ];

    /// Whether it is worth measuring beside a writer of `rate` commits a second, in this
    /// round. A database that is restored has no writer, and alone is only who is there. What
    /// begins anew with every commit of others, or keeps them out, needs no proof beside many
    /// once it has failed beside some; a log that grows long is had beside many. What is held
    /// against a limit is measured in every round, the rest in the first.
    #[must_use]
    pub fn applies(self, rate: u32, round: u32) -> bool {
        match self {
            Self::Alone => rate > 0,
            Self::Cp | Self::File => true,
            Self::FileHeld => rate >= MANY && round == 1,
            Self::Pages | Self::FileZstd => round == 1,
            Self::CommandLine | Self::VacuumInto => rate < MANY && round == 1,
            Self::ZstdD | Self::Restore => rate == 0 && round == 1,
        }
    }

    /// The homes a writer is tried in beside it.
    #[must_use]
    pub fn homes(self, rate: u32) -> &'static [Home] {
        match self {
            Self::Alone | Self::File | Self::FileZstd if rate > 0 => &[Home::Process, Home::Thread],
            Self::FileHeld => &[Home::Thread],
            _ => &[Home::Process],
        }
    }
}

/// What one measurement shows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Bytes of the copy, or of the database that was restored.
    pub bytes: u64,
    /// Seconds until it was durable; of a run, from ready. `None`: it did not end in time,
    /// or there is nothing to time.
    pub seconds: Option<f64>,
    /// Of a run: seconds from ready until the backup was published.
    pub published: Option<f64>,
    /// Of a run: bytes the log's file had when the pin ended.
    pub log: Option<u64>,
    /// Of a run: seconds from the end of the pin until the log was moved and cut.
    pub shrunk: Option<f64>,
    /// What the writer met.
    pub commits: Option<Account>,
}

/// One database and the directory it is copied to.
#[derive(Debug, Clone, Copy)]
pub struct Bench<'a> {
    /// The database.
    pub database: &'a Path,
    /// An empty directory on the same file system, for one measurement.
    pub directory: &'a Path,
    /// When a program that does not end is ended.
    pub give_up: Duration,
}

impl Bench<'_> {
    /// Does it once, beside a writer of `rate` commits a second.
    ///
    /// `kept` is the catalogue of [`Method::FileZstd`], which each such run makes anew, and
    /// which [`Method::ZstdD`] and [`Method::Restore`] read.
    ///
    /// # Errors
    /// When a program, a run or the writer fails.
    pub fn measure(&self, method: Method, rate: u32, home: Home, kept: &Path) -> Result<Timing> {
        settle(self.database, self.directory)?;
        let mut writer = (rate > 0)
            .then(|| Writer::start(home, self.database, rate))
            .transpose()?;
        if writer.is_some() {
            thread::sleep(BEFORE);
        }
        let measured = self.carry_out(method, &mut writer, kept);
        // Ended in any case; why the measurement failed comes first.
        let commits = writer.map(Writer::end).transpose();
        let measured = measured?;
        Ok(Timing {
            commits: commits?,
            ..measured
        })
    }

    fn carry_out(
        &self,
        method: Method,
        writer: &mut Option<Writer>,
        kept: &Path,
    ) -> Result<Timing> {
        let copy = self.directory.join("copy.db");
        match method {
            Method::Alone => {
                enter(writer, Phase::Beside)?;
                thread::sleep(ALONE);
                enter(writer, Phase::After)?;
                thread::sleep(AFTER);
                Ok(Timing::default())
            }
            Method::Cp => {
                let mut cp = Command::new("cp");
                cp.arg(self.database).arg(&copy);
                self.program(cp, &copy, writer)
            }
            Method::CommandLine => {
                let statement = format!(".backup '{}'", copy.display());
                self.sqlite3(&statement, &copy, writer)
            }
            Method::VacuumInto => {
                let statement = format!("VACUUM INTO '{}'", copy.display());
                self.sqlite3(&statement, &copy, writer)
            }
            Method::Pages => self.run(
                "method = 'pages'\ncompression = 'none'",
                self.directory,
                writer,
            ),
            Method::File => self.run(
                "method = 'file'\ncompression = 'none'",
                self.directory,
                writer,
            ),
            Method::FileHeld => {
                let bandwidth = fs::metadata(self.database)?.len() / HELD.as_secs();
                let settings =
                    format!("method = 'file'\ncompression = 'none'\nbandwidth = {bandwidth}");
                self.run(&settings, self.directory, writer)
            }
            Method::FileZstd => {
                if kept.exists() {
                    fs::remove_dir_all(kept)?;
                }
                fs::create_dir(kept)?;
                self.run("method = 'file'\ncompression = 'zstd'", kept, writer)
            }
            Method::ZstdD => {
                let newest = newest(kept)?;
                let mut zstd = Command::new("zstd");
                zstd.args(["-d", "-q", "-o"])
                    .arg(&copy)
                    .arg(newest.dir.join(&newest.manifest.database.name));
                self.program(zstd, &copy, writer)
            }
            Method::Restore => restore(kept, &copy),
        }
    }

    fn sqlite3(&self, statement: &str, copy: &Path, writer: &mut Option<Writer>) -> Result<Timing> {
        let mut sqlite3 = Command::new("sqlite3");
        sqlite3
            .args(["-bail", "-cmd", ".timeout 5000"])
            .arg(self.database)
            .arg(statement)
            .stdout(Stdio::null());
        self.program(sqlite3, copy, writer)
    }

    /// Times a program that writes the file `copy`, and the sync of it.
    fn program(
        &self,
        mut command: Command,
        copy: &Path,
        writer: &mut Option<Writer>,
    ) -> Result<Timing> {
        enter(writer, Phase::Beside)?;
        let began = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let ended = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if began.elapsed() > self.give_up {
                child.kill()?;
                child.wait()?;
                break None;
            }
            thread::sleep(ASK_EVERY);
        };
        let Some(status) = ended else {
            enter(writer, Phase::Later)?;
            return Ok(Timing::default());
        };
        ensure!(status.success(), "{command:?}: {status}");
        for path in [copy, self.directory] {
            let synced = Command::new("sync").arg(path).status()?;
            ensure!(synced.success(), "sync: {synced}");
        }
        let seconds = began.elapsed().as_secs_f64();
        enter(writer, Phase::Later)?;
        Ok(Timing {
            bytes: fs::metadata(copy)?.len(),
            seconds: Some(seconds),
            ..Timing::default()
        })
    }

    /// A run by the library's own engine, step by step as the driver has it done, without a
    /// gate: the writer of another process passes none.
    fn run(&self, settings: &str, catalogue: &Path, writer: &mut Option<Writer>) -> Result<Timing> {
        let engine = engine(self.database, catalogue, settings)?;
        let watch = Watch::default();
        let run = Run {
            id: RunId::new(Utc::now()),
            trigger: Trigger::Operator,
            began: Utc::now(),
            ends: Instant::now() + Duration::from_secs(3_600),
            attempt: 1,
            to_wal: false,
        };
        let failed = |failure| anyhow!("the run failed: {failure:?}");
        let (_, draft) = engine.prepare(&run, &watch).map_err(failed)?;
        let draft = draft.context("the engine was told that it copies")?;
        enter(writer, Phase::Pinning)?;
        let pin = loop {
            match engine.pin(&run, FLUSH_WITHIN, &watch) {
                Ok(pin) => break pin,
                // As without a gate it may well be.
                Err(NotPinned::Busy(_)) => {}
                Err(NotPinned::Failed(failure)) => return Err(failed(failure)),
            }
        };
        enter(writer, Phase::Beside)?;
        let ready = Instant::now();
        let copied = engine.copy(&run, &draft, &pin, &watch).map_err(failed)?;
        let seconds = ready.elapsed().as_secs_f64();
        let bytes = pin.facts.bytes();
        let log = wal_bytes(self.database);
        enter(writer, Phase::After)?;
        let unpinned = Instant::now();
        let engine = &engine;
        thread::scope(|scope| {
            let release = scope.spawn(move || {
                engine.release(pin);
                unpinned.elapsed().as_secs_f64()
            });
            let finish = scope.spawn(move || {
                engine
                    .finish(&run, draft, copied, Pauses::default(), &watch)
                    .map_err(failed)?;
                Ok::<_, anyhow::Error>(ready.elapsed().as_secs_f64())
            });
            if writer.is_some() {
                thread::sleep(AFTER);
                enter(writer, Phase::Later)?;
            }
            let (Ok(published), Ok(shrunk)) = (finish.join(), release.join()) else {
                bail!("a step of the run panicked");
            };
            Ok(Timing {
                bytes,
                seconds: Some(seconds),
                published: Some(published?),
                log: Some(log),
                shrunk: Some(shrunk),
                commits: None,
            })
        })
    }
}

fn restore(kept: &Path, target: &Path) -> Result<Timing> {
    let backup = newest(kept)?;
    let bytes = backup.manifest.database.raw_bytes;
    let (disk, watch) = (Disk::default(), Watch::default());
    let began = Instant::now();
    let plan = restore::plan(backup, target, Utc::now(), &disk)?;
    plan.execute(false, Depth::Quick, &disk, &watch)?;
    Ok(Timing {
        bytes,
        seconds: Some(began.elapsed().as_secs_f64()),
        ..Timing::default()
    })
}

fn enter(writer: &mut Option<Writer>, phase: Phase) -> Result<()> {
    writer.as_mut().map_or(Ok(()), |writer| writer.enter(phase))
}

fn engine(database: &Path, catalogue: &Path, more: &str) -> Result<BackupEngine> {
    let settings = Source::text(format!(
        "[maintenance]\nenabled = true\nwindow = '03:00-03:05'\n[maintenance.backup]\n\
         directory = '{}'\nwal_limit = '16GiB'\n{more}",
        catalogue.display()
    ));
    let settings = settings.maintenance()?.context("it is enabled")?;
    let disk = Disk::default().guarding(database);
    let catalogue = Catalogue::open(disk.clone(), catalogue)?;
    let service = "backup_speed".to_owned();
    let database = Database::open(database)?;
    Ok(BackupEngine::new(
        database, catalogue, disk, &settings, service,
    )?)
}

fn newest(catalogue: &Path) -> Result<torrust_tracker_maintenance::catalogue::Backup> {
    let catalogue = Catalogue::read_only(Disk::default(), catalogue)?;
    let mut backups = catalogue.backups()?.into_iter();
    backups.next().context("a backup, compressed, made before")
}

/// From metadata alone: the database is in use.
fn wal_bytes(database: &Path) -> u64 {
    let mut wal = database.as_os_str().to_owned();
    wal.push("-wal");
    fs::metadata(PathBuf::from(wal)).map_or(0, |metadata| metadata.len())
}

/// Each measurement begins with an empty log and a disk that has nothing left to write.
fn settle(database: &Path, directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(path)?;
        } else {
            fs::remove_file(path)?;
        }
    }
    let connection = crate::database::open(database)?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    drop(connection);
    // Also what the removals above have left to the journal of the file system.
    let status = Command::new("sync").arg("-f").arg(directory).status()?;
    ensure!(status.success(), "sync: {status}");
    Ok(())
}
