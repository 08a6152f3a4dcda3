//! What a run would cost if it began now, and why it would not begin, found out without
//! beginning one: by the engine before it does, and by whoever wants to know beforehand.

use std::path::{Path, PathBuf};

use super::forecast::{Forecast, Known};
use super::room;
use crate::catalogue::Manifest;
use crate::config::{self, Announces, TakenBy};
use crate::disk::{self, Disk};
use crate::files::{self, Reserved};
use crate::snapshot::{Watch, Way};
use crate::sqlite::Journal;

/// What is to be backed up, and by which rules.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The database.
    pub database: &'a Path,
    /// Its bytes.
    pub bytes: u64,
    /// Its journal mode.
    pub journal: Journal,
    /// Whether the file can be cloned to where the backups are.
    pub clones: bool,
    /// What is configured of announces ...
    pub announces: Announces,
    /// ... and of backups.
    pub backup: &'a config::Backup,
    /// Manifests of earlier backups, newest first.
    pub earlier: &'a [&'a Manifest],
}

/// What a run would cost, beside the room there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Estimate {
    /// The cost. In its room is everything that has to be free: other files, and what a run
    /// leaves of a file system.
    pub forecast: Forecast,
    /// Bytes free for backups; `None`: a sidecar makes them, elsewhere.
    pub free: Option<u64>,
    directory: PathBuf,
    with_less: String,
}

/// Why a run would not begin, or it cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// `announces = "serve"` cannot be kept.
    #[error(
        "announces = \"serve\" needs a database in WAL mode, and {} is in journal mode {journal}; \
         set journal_mode = \"wal\" or announces = \"auto\"", .database.display()
    )]
    CannotServe {
        /// The database.
        database: PathBuf,
        /// Its journal mode.
        journal: Journal,
    },
    /// The disk has no room for a backup.
    #[error(
        "{} has {} free and a backup needs about {} there while it is made ({made}, \
         what the log grows by meanwhile if it is there too, and a reserve{with_less}); \
         free space (`torrust-maintenance prune` removes what backup.keep does not keep), keep fewer \
         backups or choose another directory",
        .directory.display(), bytesize::ByteSize(*.free), bytesize::ByteSize(*.needed)
    )]
    NoRoom {
        /// Where backups are made.
        directory: PathBuf,
        /// Bytes free there.
        free: u64,
        /// Bytes needed there.
        needed: u64,
        /// What most of it is for.
        made: &'static str,
        /// What less would do, as the rest of a sentence.
        with_less: String,
    },
    /// The log, which grows under the pin, has no room.
    #[error(
        "the file system of {} has {} left, and while the database is pinned its log grows there, \
         of which a run leaves {} free for the service; free space there",
        .database.display(), bytesize::ByteSize(*.free), bytesize::ByteSize(*.reserve)
    )]
    NoRoomForLog {
        /// The database.
        database: PathBuf,
        /// Bytes free beside it.
        free: u64,
        /// Bytes a run leaves there.
        reserve: u64,
    },
    /// The other files that are to be stored.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// The file system of the backups.
    #[error(transparent)]
    Disk(#[from] disk::Error),
}

impl Subject<'_> {
    /// What a run costs. Of a sidecar's backups nothing is looked at: they may be on a volume that
    /// hangs, or where this process does not see them.
    ///
    /// # Errors
    ///
    /// [`Refusal`], except [`Refusal::NoRoom`], which [`Estimate::way`] knows of. The file system
    /// of the database is asked here: nothing has to be weighed there.
    pub fn estimate(&self, disk: &Disk, watch: &Watch) -> Result<Estimate, Refusal> {
        let Self {
            database,
            bytes,
            journal,
            clones,
            announces,
            backup,
            earlier,
        } = *self;
        let blocks_writers = journal.blocks_writers();
        if announces == Announces::Serve && blocks_writers {
            let database = database.to_owned();
            return Err(Refusal::CannotServe { database, journal });
        }
        let known = Known {
            bytes,
            blocks_writers,
            clones,
            shares: false,
            announces,
            backup,
            earlier,
        };
        if !blocks_writers {
            let beside = disk.space(disk::parent(database))?;
            let reserve = room::reserve(beside);
            if beside.free < reserve {
                return Err(Refusal::NoRoomForLog {
                    database: database.to_owned(),
                    free: beside.free,
                    reserve,
                });
            }
        }
        if backup.taken_by == TakenBy::Sidecar {
            return Ok(Estimate {
                forecast: known.forecast(),
                free: None,
                directory: backup.directory.clone(),
                with_less: String::new(),
            });
        }
        // Before the first start there may be only what it is going to be in.
        let directory = if backup.directory.is_dir() {
            &backup.directory
        } else {
            disk::parent(&backup.directory)
        };
        let shares = disk::share_file_system(database, directory);
        let space = disk.space(directory)?;
        let more = self
            .files(disk, watch)?
            .saturating_add(room::reserve(space));
        let forecast = Known { shares, ..known }.forecast().beside(more);
        Ok(Estimate {
            forecast,
            free: Some(space.free),
            directory: directory.to_owned(),
            with_less: forecast.with_less_room(backup),
        })
    }

    /// Bytes that the other files take while they are stored.
    fn files(&self, disk: &Disk, watch: &Watch) -> Result<u64, files::Error> {
        let wanted = &self.backup.files;
        let reserved = Reserved::of(self.database, &self.backup.directory);
        let choice = files::choose(wanted, &reserved, disk, watch)?;
        files::check_missing(&choice.left_out, wanted.missing)?;
        Ok(choice.room())
    }
}

impl Estimate {
    /// How the database can be got hold of in the room there is.
    ///
    /// # Errors
    ///
    /// [`Refusal::NoRoom`].
    pub fn way(&self) -> Result<Way, Refusal> {
        let Some(free) = self.free else {
            return Ok(self.forecast.way);
        };
        self.forecast.way_with(free).ok_or_else(|| Refusal::NoRoom {
            directory: self.directory.clone(),
            free,
            needed: self.forecast.room,
            made: self.forecast.what_room_is_for(),
            with_less: self.with_less.clone(),
        })
    }
}
