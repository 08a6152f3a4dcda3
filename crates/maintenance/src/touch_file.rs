//! The file that exists while the database may be copied, for a sidecar that cannot or
//! will not speak HTTP.
//!
//! It is a projection of the status, as `GET /ready` is, with one weakness: it cannot
//! vanish when the process is killed. So one that an earlier life left behind is removed
//! before the database is opened, and a copy made on its word is good only if the file
//! still names the same run after the copy as it did before.
//!
//! The path is an operator's, and may name something else by mistake, the database for one.
//! So nothing is removed or replaced but a file that reads as a [`Ready`].

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, io};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::disk::{self, Disk};
use crate::window::RunId;

/// More bytes than a [`Ready`] has: two paths and change.
const LIMIT: u64 = 16 << 10;

/// The touch-file of one endpoint. Creating the value touches nothing.
#[derive(Debug, Clone)]
pub struct TouchFile {
    path: PathBuf,
    disk: Disk,
}

/// What the file says, as JSON: the body of `GET /ready` and a deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The run that holds the pin.
    pub run: RunId,
    /// The database that may be copied, as this process was told its path.
    pub database: PathBuf,
    /// [`crate::readiness::DRIVER`].
    pub driver: String,
    /// When the pin is let go at the latest. For people and for planning: the limit itself
    /// is kept on the monotonic clock, and the file goes when the pin does.
    pub until: DateTime<Utc>,
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

    /// Removes what an earlier life of this process left. To be called before the database
    /// is opened: from then on the old file would invite a copy of a moving database.
    ///
    /// # Errors
    ///
    /// If there is something that is no touch-file, or cannot be removed.
    pub fn clear_stale(&self) -> Result<(), Error> {
        if self.check_ours()? {
            self.remove()?;
        }
        self.clear_temporary()
    }

    /// Finds out whether it can be written, by preparing one: at the start, and not when
    /// the first window begins. Nothing of it is left.
    ///
    /// # Errors
    ///
    /// If the directory does not exist or is not writable, or there is something in its
    /// place that is no touch-file.
    pub fn probe(&self) -> Result<(), Error> {
        self.check_ours()?;
        self.clear_temporary()?;
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
        let mut bytes = serde_json::to_vec_pretty(ready).map_err(|source| Error::Unwritable {
            path: self.path.clone(),
            source,
        })?;
        bytes.push(b'\n');
        self.check_ours()?;
        Ok(self.disk.write_atomically(&self.path, &bytes)?)
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

    /// Whether there is a touch-file.
    fn check_ours(&self) -> Result<bool, Error> {
        let Some(bytes) = size_of_small_file(&self.path)? else {
            return Ok(false);
        };
        let contents = self.disk.read(&self.path, bytes)?;
        match serde_json::from_slice::<Ready>(&contents) {
            Ok(_) => Ok(true),
            Err(_) => Err(foreign(&self.path, "does not read as a touch-file")),
        }
    }

    /// What a process that was killed while it prepared the file has left: part of one.
    fn clear_temporary(&self) -> Result<(), Error> {
        let temporary = disk::temporary_of(&self.path);
        match size_of_small_file(&temporary)? {
            Some(_) => self.remove_if_there(&temporary),
            None => Ok(()),
        }
    }
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

/// A touch-file that is shown and hidden from threads that may be late: whatever order they
/// come in, hidden wins over what was shown before.
#[derive(Debug, Clone)]
pub(crate) struct Signal {
    file: TouchFile,
    /// The number of the newest change that was begun. Locked while the file is changed.
    done: Arc<Mutex<u64>>,
    /// The number of changes asked for.
    asked: Arc<AtomicU64>,
}

impl Signal {
    pub(crate) fn new(file: TouchFile) -> Self {
        Self {
            file,
            done: Arc::default(),
            asked: Arc::default(),
        }
    }

    /// What shows the file, to be called where it may block.
    pub(crate) fn show(&self, ready: Ready) -> impl FnOnce() -> Result<(), Error> + Send + use<> {
        self.change(move |file| file.write(&ready))
    }

    /// What hides it, to be called where it may block.
    pub(crate) fn hide(&self) -> impl FnOnce() -> Result<(), Error> + Send + use<> {
        self.change(TouchFile::remove)
    }

    /// A change that is left out if a later one was done before it.
    fn change<F>(&self, change: F) -> impl FnOnce() -> Result<(), Error> + Send + use<F>
    where
        F: FnOnce(&TouchFile) -> Result<(), Error> + Send,
    {
        let turn = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let Self { file, done, .. } = self.clone();
        move || {
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            if *done > turn {
                return Ok(());
            }
            *done = turn;
            change(&file)
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::disallowed_methods,
        reason = "tests read and write files of their own"
    )]

    use std::fs;

    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_show_that_comes_late_does_not_undo_a_hide() {
        let directory = TempDir::new().expect("a directory");
        let signal = Signal::new(touch_file(&directory));
        let (show, hide) = (signal.show(ready()), signal.hide());
        hide().expect("nothing to remove is fine");
        show().expect("left out");
        assert!(
            fs::read_dir(directory.path())
                .expect("lists")
                .next()
                .is_none()
        );
    }

    fn ready() -> Ready {
        let now = DateTime::from_timestamp(1_795_000_000, 0).expect("a date");
        Ready {
            run: RunId::new(now),
            database: "/var/lib/db".into(),
            driver: "sqlite3".to_owned(),
            until: now,
        }
    }

    fn touch_file(directory: &TempDir) -> TouchFile {
        TouchFile::new(directory.path().join("ready.json"), Disk::default())
    }

    #[test]
    fn says_which_run_until_when_and_is_gone_after() -> Result<(), Box<dyn std::error::Error>> {
        let directory = TempDir::new()?;
        let file = touch_file(&directory);
        file.write(&ready())?;
        let written: serde_json::Value = serde_json::from_slice(&fs::read(file.path())?)?;
        assert_eq!(written["database"], "/var/lib/db");
        assert_eq!(written["driver"], "sqlite3");
        assert_eq!(written["until"], "2026-11-18T11:06:40Z");
        assert!(
            written["run"]
                .as_str()
                .is_some_and(|run| run.starts_with("20261118T110640Z-"))
        );
        file.remove()?;
        assert_eq!(fs::read_dir(&directory)?.count(), 0);
        Ok(())
    }

    #[test]
    fn a_second_run_replaces_the_first() -> Result<(), Box<dyn std::error::Error>> {
        let directory = TempDir::new()?;
        let file = touch_file(&directory);
        file.write(&ready())?;
        let second = ready();
        file.write(&second)?;
        assert_eq!(
            serde_json::from_slice::<Ready>(&fs::read(file.path())?)?,
            second
        );
        Ok(())
    }

    #[test]
    fn removing_what_is_not_there_is_not_an_error() -> Result<(), Box<dyn std::error::Error>> {
        let directory = TempDir::new()?;
        touch_file(&directory).remove()?;
        touch_file(&directory).clear_stale()?;
        Ok(())
    }

    #[test]
    fn what_a_killed_process_left_is_cleared_and_nothing_else()
    -> Result<(), Box<dyn std::error::Error>> {
        let directory = TempDir::new()?;
        touch_file(&directory).write(&ready())?;
        for name in [".ready.json.tmp", "other"] {
            fs::write(directory.path().join(name), "{")?;
        }
        touch_file(&directory).clear_stale()?;
        let left: Vec<_> = fs::read_dir(&directory)?
            .map(|e| e.map(|e| e.file_name()))
            .collect::<Result<_, _>>()?;
        assert_eq!(left, ["other"]);
        Ok(())
    }

    #[test]
    fn a_directory_in_its_place_is_an_error_that_says_where_to_look()
    -> Result<(), Box<dyn std::error::Error>> {
        let directory = TempDir::new()?;
        fs::create_dir(directory.path().join("ready.json"))?;
        let error = touch_file(&directory)
            .clear_stale()
            .expect_err("a directory stays");
        assert!(error.to_string().contains("ready.json"), "{error}");
        assert!(
            error
                .to_string()
                .contains("maintenance.readiness.touch_file"),
            "{error}"
        );
        Ok(())
    }

    #[test]
    fn what_is_no_touch_file_is_neither_removed_nor_replaced()
    -> Result<(), Box<dyn std::error::Error>> {
        let directory = TempDir::new()?;
        let file = touch_file(&directory);
        let valid = serde_json::to_vec(&ready())?;
        let long = [&valid[..], &[b' '; 1 << 14]].concat();
        let contents = [
            &b"SQLite format 3\0"[..],
            b"[maintenance]",
            b"{}",
            b"",
            &long,
        ];
        for name in ["ready.json", ".ready.json.tmp"] {
            for contents in contents {
                let path = directory.path().join(name);
                if name.starts_with('.') && contents.len() < long.len() {
                    // Part of one, for all that is known.
                    continue;
                }
                fs::write(&path, contents)?;
                for refused in [file.clear_stale(), file.probe()] {
                    let error = refused.expect_err("not ours").to_string();
                    assert!(error.contains("readiness.touch_file"), "{error}");
                }
                assert_eq!(fs::read(&path)?, contents);
                if path == file.path() {
                    file.write(&ready()).expect_err("not ours");
                    assert_eq!(fs::read(&path)?, contents);
                }
                fs::remove_file(&path)?;
            }
        }
        fs::write(directory.path().join("elsewhere"), &valid)?;
        std::os::unix::fs::symlink("elsewhere", file.path())?;
        file.clear_stale().expect_err("a link is not ours");
        assert!(file.path().exists());
        Ok(())
    }

    #[test]
    fn one_that_names_the_database_leaves_it_alone() -> Result<(), Box<dyn std::error::Error>> {
        let directory = TempDir::new()?;
        let path = directory.path().join("ready.json");
        let disk = Disk::default().guarding(&path);
        let file = TouchFile::new(path.clone(), disk);
        file.write(&ready()).expect_err("it will be the database");
        // Even if it should read as a touch-file.
        fs::write(&path, serde_json::to_vec(&ready())?)?;
        for refused in [file.clear_stale(), file.probe(), file.write(&ready())] {
            refused.expect_err("it is the database");
        }
        assert!(path.exists());
        Ok(())
    }

    #[test]
    fn a_probe_leaves_nothing_and_needs_a_writable_directory()
    -> Result<(), Box<dyn std::error::Error>> {
        let directory = TempDir::new()?;
        touch_file(&directory).probe()?;
        assert_eq!(fs::read_dir(&directory)?.count(), 0);
        fs::write(directory.path().join(".ready.json.tmp"), "{")?;
        touch_file(&directory).write(&ready())?;
        touch_file(&directory).probe()?;
        assert_eq!(fs::read_dir(&directory)?.count(), 1);
        let missing = TouchFile::new(directory.path().join("run/ready.json"), Disk::default());
        let error = missing.probe().expect_err("there is no directory");
        assert!(
            error.to_string().contains("readiness.touch_file"),
            "{error}"
        );
        Ok(())
    }

    #[test]
    fn a_missing_directory_is_an_error_and_is_not_created() -> Result<(), Box<dyn std::error::Error>>
    {
        let directory = TempDir::new()?;
        let file = TouchFile::new(directory.path().join("run/ready.json"), Disk::default());
        file.clear_stale()?;
        file.write(&ready()).expect_err("its directory is missing");
        assert_eq!(fs::read_dir(&directory)?.count(), 0);
        Ok(())
    }
}
