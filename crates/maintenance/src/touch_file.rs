//! The file that exists while the database may be copied, for a sidecar that cannot or
//! will not speak HTTP; and two beside it.
//!
//! | file                  | written by  | says                                                    |
//! |-----------------------|-------------|---------------------------------------------------------|
//! | `<touch_file>`        | this        | [`Ready`]: the file may be copied, by whoever comes     |
//! | `<touch_file>.done`   | the sidecar | [`Done`], or the run's id alone: I have my copy, or none |
//! | `<touch_file>.result` | this        | [`RunResult`]: how the run ended, and what to make of it |
//!
//! The first is a projection of the status, as `GET /ready` is, with one weakness: it cannot
//! vanish when the process is killed. So one that an earlier life left behind is removed
//! before the database is opened, and a copy made on its word is good only with the result
//! of its run, which is written by a living process that held the pin to the end. Where the
//! tracker copies by itself there is no result; then a copy is good if the file still names
//! the same run after the copy as it did before.
//!
//! The second is the only file that is read, and all it can do is end a run, and with it a
//! pause, before its time. It cannot begin one or make it last.
//!
//! The path is an operator's, and may name something else by mistake, the database for one.
//! So nothing is removed or replaced but a file that reads as what it should be. The
//! sidecar's may be anything: only a small regular file is opened, and removed when it has
//! been understood, or when it is older than this process.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, io};

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::disk::{self, Disk};
use crate::lease::{self, Finished, REASON_LIMIT};
use crate::status::{CopyOf, PinnedFile, RunReport};
use crate::window::{Outcome, RunId};

/// More bytes than any of these files has: two paths and change.
const LIMIT: u64 = 16 << 10;

/// The touch-file of one endpoint. Creating the value touches nothing.
#[derive(Debug, Clone)]
pub struct TouchFile {
    path: PathBuf,
    disk: Disk,
}

/// What the file says, as JSON: the body of `GET /ready` and a deadline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    /// The run that holds the pin.
    pub run: RunId,
    /// The database that may be copied, as this process was told its path.
    pub database: PathBuf,
    /// [`crate::readiness::DRIVER`].
    pub driver: String,
    /// What there is to be copied.
    pub copy: CopyOf,
    /// When the pin is let go at the latest if nobody takes a lease. For people and for
    /// planning: the limit itself is kept on the monotonic clock, and the file goes when the
    /// pin does.
    pub until: DateTime<Utc>,
    /// When the run began.
    pub began: DateTime<Utc>,
    /// The instant the file shows: every commit before is in it, none after.
    pub pinned: DateTime<Utc>,
    /// The database's journal mode.
    pub journal_mode: String,
    /// Milliseconds for which announces have been held for this run so far.
    pub pause_ms: f64,
    /// What the file is, by whatever path it is seen.
    pub file: PinnedFile,
}

/// How a run ended that a sidecar was to copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunResult {
    /// The run.
    pub run: RunId,
    /// Whether the copy of a sidecar that wrote [`TouchFile::done_path`] may be trusted: the
    /// pin stood from ready until that file was found.
    pub held_throughout: bool,
    /// Whether that file was found in time.
    pub done: bool,
    /// Why the copy may not be trusted.
    pub why: Option<String>,
    /// When the run ended.
    pub ended: DateTime<Utc>,
}

/// What a touch-file of any version says at least.
#[derive(Deserialize)]
struct AnyReady {
    #[serde(rename = "run")]
    _run: RunId,
    #[serde(rename = "database")]
    _database: PathBuf,
    #[serde(rename = "until")]
    _until: DateTime<Utc>,
}

/// What a sidecar writes, unless it writes the id and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The run it has finished with.
    pub run: String,
    /// Why there will be no copy; without it there is one. It ends the run, so that announces
    /// do not wait for nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

impl RunResult {
    /// Of a run that has ended, perhaps because a sidecar said so by file.
    #[must_use]
    pub fn of(report: &RunReport, by_file: bool) -> Self {
        let done = by_file && report.outcome == Outcome::Done;
        let why = match &report.sidecar {
            _ if done => None,
            _ if by_file => Some(report.outcome.message().to_owned()),
            // The report of a lease is its holder's; who copied without has nothing.
            Some(sidecar) => Some(format!(
                "the sidecar {:?} took the lease; what was copied without it is not to be used",
                sidecar.holder
            )),
            None => Some(report.outcome.message().to_owned()),
        };
        Self {
            run: report.id.clone(),
            held_throughout: done,
            done,
            why,
            ended: report.ended,
        }
    }
}

/// The touch-file could not be written or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error(
        "{0}; the file is named by maintenance.readiness.touch_file, \
         and its directory must exist and be writable"
    )]
    Disk(#[from] disk::Error),
    /// There is something else in its place.
    #[error(
        "{} {why}, so it is left alone; maintenance.readiness.touch_file must name a file of \
         its own: choose another name, or remove what is there if it is of no use", .path.display()
    )]
    Foreign {
        /// The touch-file, or where it is prepared.
        path: PathBuf,
        /// What is wrong with it, as it reads after the path.
        why: &'static str,
    },
    /// What it should say cannot be written as JSON.
    #[error("the path of the database cannot be written into the touch-file {}: {source}", .path.display())]
    Unwritable {
        /// The touch-file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

impl TouchFile {
    /// A touch-file at `path`.
    #[must_use]
    pub fn new(path: PathBuf, disk: Disk) -> Self {
        Self { path, disk }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a sidecar says that it has finished.
    #[must_use]
    pub fn done_path(&self) -> PathBuf {
        self.beside(".done")
    }

    /// Where the sidecar is told what its copy is worth.
    #[must_use]
    pub fn result_path(&self) -> PathBuf {
        self.beside(".result")
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        path.into()
    }

    /// Removes what an earlier life of this process left. To be called before the database
    /// is opened: from then on the old file would invite a copy of a moving database.
    ///
    /// # Errors
    ///
    /// If there is something that is no touch-file, or cannot be removed.
    pub fn clear_stale(&self) -> Result<(), Error> {
        if self.check_ours::<AnyReady>(&self.path)? {
            self.remove()?;
        }
        let result = self.result_path();
        if self.check_ours::<RunResult>(&result)? {
            self.remove_if_there(&result)?;
        }
        let done = self.done_path();
        // The sidecar's, whatever is in it; what it should not have put there is left alone.
        if let Ok(Some(_)) = size_of_small_file(&done) {
            self.remove_if_there(&done)?;
        }
        self.clear_temporary(&self.path)?;
        self.clear_temporary(&result)
    }

    /// Finds out whether it can be written, by preparing one: at the start, and not when
    /// the first window begins. Nothing of it is left.
    ///
    /// # Errors
    ///
    /// If the directory does not exist or is not writable, or there is something in its
    /// place that is no touch-file.
    pub fn probe(&self) -> Result<(), Error> {
        self.check_ours::<AnyReady>(&self.path)?;
        self.check_ours::<RunResult>(&self.result_path())?;
        self.clear_temporary(&self.path)?;
        let temporary = disk::temporary_of(&self.path);
        self.disk.create(&temporary)?;
        Ok(self.disk.remove_file(&temporary)?)
    }

    /// Says that the database may be copied; the file is there whole or not at all.
    ///
    /// # Errors
    ///
    /// If it cannot be written, or would replace what is no touch-file. Then it is not
    /// there, or still says what it said.
    pub fn write(&self, ready: &Ready) -> Result<(), Error> {
        self.check_ours::<AnyReady>(&self.path)?;
        self.put(&self.path, ready)
    }

    /// Says how a run ended; the file is there whole or not at all.
    ///
    /// # Errors
    ///
    /// If it cannot be written, or would replace what is no result.
    pub fn write_result(&self, result: &RunResult) -> Result<(), Error> {
        let path = self.result_path();
        self.check_ours::<RunResult>(&path)?;
        self.put(&path, result)
    }

    fn put(&self, path: &Path, contents: &impl Serialize) -> Result<(), Error> {
        let mut bytes =
            serde_json::to_vec_pretty(contents).map_err(|source| Error::Unwritable {
                path: path.to_owned(),
                source,
            })?;
        bytes.push(b'\n');
        Ok(self.disk.write_atomically(path, &bytes)?)
    }

    /// Whether a sidecar says that it has finished `run`, and how. Its file is removed then.
    /// Anything that does not say just that is as good as nothing.
    ///
    /// # Errors
    ///
    /// If there is a file that cannot be read, or not removed.
    pub fn finished(&self, run: &RunId) -> Result<Option<Finished>, Error> {
        let path = self.done_path();
        let Ok(Some(_)) = size_of_small_file(&path) else {
            return Ok(None);
        };
        // It may grow meanwhile: a shell's `echo` is not written by rename.
        let contents = match self.disk.read(&path, LIMIT) {
            Ok(contents) => contents,
            // Between the two looks it was replaced, as it should be, or removed.
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let said = said(&contents, run);
        if said.is_some() {
            self.remove_if_there(&path)?;
        }
        Ok(said)
    }

    /// Takes it back, whatever it says: [`Self::clear_stale`] made sure that the name is
    /// ours. Not an error if it is not there: a sidecar may have removed it.
    ///
    /// The removal is not synced. If a power cut brings the file back, nothing is running
    /// that could mistake it, and the next start clears it.
    ///
    /// # Errors
    ///
    /// If it is there and cannot be removed.
    pub fn remove(&self) -> Result<(), Error> {
        self.remove_if_there(&self.path)
    }

    fn remove_if_there(&self, path: &Path) -> Result<(), Error> {
        match self.disk.remove_file(path) {
            Err(error) if error.source.kind() != io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Whether there is a file, and it is of the kind it should be.
    fn check_ours<T: DeserializeOwned>(&self, path: &Path) -> Result<bool, Error> {
        let Some(bytes) = size_of_small_file(path)? else {
            return Ok(false);
        };
        let contents = self.disk.read(path, bytes)?;
        match serde_json::from_slice::<T>(&contents) {
            Ok(_) => Ok(true),
            Err(_) => Err(foreign(path, "does not read as a touch-file")),
        }
    }

    /// What a process that was killed while it prepared a file has left: part of one.
    fn clear_temporary(&self, path: &Path) -> Result<(), Error> {
        let temporary = disk::temporary_of(path);
        match size_of_small_file(&temporary)? {
            Some(_) => self.remove_if_there(&temporary),
            None => Ok(()),
        }
    }
}

/// What these say of the run, if they are its id, or a JSON object that names it.
fn said(contents: &[u8], run: &RunId) -> Option<Finished> {
    let contents = contents.trim_ascii();
    if contents == run.as_str().as_bytes() {
        return Some(Finished::Ok);
    }
    let done: Done = serde_json::from_slice(contents).ok()?;
    (done.run == run.as_str()).then(|| done.failed.map_or(Finished::Ok, |why| failed(&why)))
}

/// Of whatever was given as a reason: one that is cut off ends the run as well.
fn failed(reason: &str) -> Finished {
    let reason = lease::on_one_line(reason);
    let reason: String = reason.trim().chars().take(REASON_LIMIT).collect();
    Finished::Failed(if reason.is_empty() {
        "the sidecar has no copy and gives no reason in its file".to_owned()
    } else {
        reason
    })
}

/// From metadata alone; `None` if there is nothing. Links are not followed.
fn size_of_small_file(path: &Path) -> Result<Option<u64>, Error> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => Err(foreign(path, "is not a regular file")),
        Ok(found) if found.len() > LIMIT => Err(foreign(path, "is too long for a touch-file")),
        Ok(found) => Ok(Some(found.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(disk::Error::new("look at", path, error).into()),
    }
}

fn foreign(path: &Path, why: &'static str) -> Error {
    let path = path.to_owned();
    Error::Foreign { path, why }
}

/// A touch-file and its result, changed from threads that may be late: whatever order they
/// come in, hidden wins over what was shown before, and the newer result over the older.
#[derive(Debug, Clone)]
pub(crate) struct Signal {
    file: TouchFile,
    shown: Turns,
    told: Turns,
}

/// The changes of one file, numbered in the order in which they were asked for.
#[derive(Debug, Clone, Default)]
struct Turns {
    /// The number of the newest change that was begun. Locked while the file is changed.
    done: Arc<Mutex<u64>>,
    /// The number of changes asked for.
    asked: Arc<AtomicU64>,
}

impl Signal {
    pub(crate) fn new(file: TouchFile) -> Self {
        Self {
            file,
            shown: Turns::default(),
            told: Turns::default(),
        }
    }

    /// What shows the file, to be called where it may block.
    pub(crate) fn show(&self, ready: Ready) -> impl FnOnce() -> Result<(), Error> + Send + use<> {
        let file = self.file.clone();
        self.shown.next(move || file.write(&ready))
    }

    /// What hides it, to be called where it may block.
    pub(crate) fn hide(&self) -> impl FnOnce() -> Result<(), Error> + Send + use<> {
        let file = self.file.clone();
        self.shown.next(move || file.remove())
    }

    /// What looks whether a sidecar says that it has finished `run`, and if so gives the run
    /// and how.
    pub(crate) fn look_for_done(
        &self,
        run: &RunId,
    ) -> impl FnOnce() -> Result<Option<(RunId, Finished)>, Error> + Send + use<> {
        let (file, run) = (self.file.clone(), run.clone());
        move || Ok(file.finished(&run)?.map(|how| (run, how)))
    }

    /// What says how a run ended.
    pub(crate) fn tell(
        &self,
        result: RunResult,
    ) -> impl FnOnce() -> Result<(), Error> + Send + use<> {
        let file = self.file.clone();
        self.told.next(move || file.write_result(&result))
    }
}

impl Turns {
    /// A change that is left out if a later one was done before it.
    fn next<F>(&self, change: F) -> impl FnOnce() -> Result<(), Error> + Send + use<F>
    where
        F: FnOnce() -> Result<(), Error> + Send,
    {
        let turn = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let done = Arc::clone(&self.done);
        move || {
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            if *done > turn {
                return Ok(());
            }
            *done = turn;
            change()
        }
    }
}

#[cfg(test)]
mod tests;
