//! The directory of backups: names, manifests, listing, pruning. One directory per backup.
//!
//! ```text
//!  <directory>/
//!    20261122T030000Z/            a backup: complete, verified and synced
//!      database.sqlite3.zst       `zstd -d` alone restores it; of MySQL database.sql.zst;
//!                                 encrypted: `....age`
//!      files.tar.zst              other files, if any are wanted; for its owner alone
//!      manifest.json              what it is; never changed after publishing
//!      SHA256SUMS                 of those above; `sha256sum -c` checks them
//!      verified.json, protected   what was learned and wished since; may be missing
//!    .20261123T030000Z.partial/   a backup in the making, locked by its maker
//!    .20261115T030000Z.removing/  a backup on its way out
//!    .20261122T030000Z.upload     how far its upload is, if that was not ended
//!    .remote                      what is known of the place they are uploaded to
//!    .lock                        held by whoever removes or notes something
//!    anything else                foreign: listed, never touched
//! ```
//!
//! **A final name is a promise.** A [`Draft`] gathers a backup under a temporary name;
//! [`Draft::publish`] syncs every file and then renames the directory. Removing goes the
//! other way round: the name goes first. So whatever fails in between, a full disk, a
//! kill, a power cut, a final name never shows half a backup. What stands under a
//! temporary name and has no living owner is swept when a catalogue is opened for writing
//! and before a new backup is begun.
//!
//! **Listing never fails because of one entry.** What has the name of a backup and cannot
//! be read as one is [`Entry::Broken`], with the [`Flaw`] and the reason; any other name is
//! [`Entry::Foreign`]. Neither is ever a candidate for removal: pruning takes only what
//! was read as good, never the newest, and nothing at all unless the newest is the one
//! that was just verified. A backup that a later check has found damaged counts for no
//! rule and stays, until a check denies it or the operator deletes it; so does one of which
//! it cannot be read what checks have found.
//!
//! **One writer at a time.** What removes or notes something takes the lock first
//! ([`Catalogue::lock`]): the service after a run, the operator's tool. Reading needs none.
//!
//! Reading trusts metadata (the stored size), so that listing hundreds of backups stays
//! cheap; [`crate::verify::backup`] reads every byte.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, SubsecRound, Utc};
use serde::Serialize;

pub use self::draft::Draft;
pub(crate) use self::draft::sums;
pub use self::flaw::Flaw;
use self::flaw::Unread;
pub use self::foreign::{Foreign, Form};
use self::id::Temporary;
pub use self::id::{BackupId, NotAnId};
pub use self::lock::{Locked, Owner};
pub use self::manifest::{
    Artifact, DumpOf, Encrypted, MANIFEST_FORMAT, Manifest, StoredFile, StoredFiles,
};
pub use self::notes::{Check, Notes};
use crate::config::Keep;
use crate::disk::{self, Claim, Disk, Hold};
use crate::encryption::Identities;
use crate::retention::{self, Candidate, Decision};

mod draft;
mod flaw;
mod foreign;
mod id;
mod lock;
mod manifest;
mod notes;

/// Name of the manifest in a backup's directory.
pub const MANIFEST: &str = "manifest.json";
/// Name of the checksums in a backup's directory, in the format of `sha256sum`.
pub const SUMS: &str = "SHA256SUMS";

/// Name of the lock file in a catalogue's directory.
const LOCK: &str = ".lock";
/// Name of the file with what is remembered of second places.
const LEDGER: &str = ".remote";

/// Longest manifest or checksum file worth reading; real ones are a few kilobytes.
pub(crate) const SMALL_FILE: u64 = 16 << 20;

/// A directory of backups.
#[derive(Debug, Clone)]
pub struct Catalogue {
    disk: Disk,
    directory: PathBuf,
    writable: bool,
}

/// A published backup: complete when it was published, and still of the right size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Backup {
    /// Its directory.
    pub dir: PathBuf,
    /// What it says of itself.
    pub manifest: Manifest,
    /// What was learned of it since.
    pub notes: Notes,
    /// What it is to be opened with, should it be encrypted. `None`: it stays closed, and of
    /// what is stored the checksums are all that can be compared.
    #[serde(skip)]
    pub identities: Option<Identities>,
}

impl Backup {
    /// The same, to be opened with these.
    #[must_use]
    pub fn opened_with(self, identities: Option<Identities>) -> Self {
        Self { identities, ..self }
    }
}

/// One name in the catalogue's directory.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
#[expect(
    clippy::large_enum_variant,
    reason = "most entries are good ones, and there are hundreds at most"
)]
pub enum Entry {
    /// A backup.
    Good(Backup),
    /// It has the name of a backup, but is none, or none that can be read here and now.
    Broken {
        /// Its name.
        name: BackupId,
        /// Which of these it is.
        flaw: Flaw,
        /// What is wrong with it.
        why: String,
    },
    /// Not made here. Never touched.
    Foreign(Foreign),
}

/// What a prune did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// What was removed, oldest first.
    pub removed: Vec<BackupId>,
    /// What stays and why, newest first, of the kind that was pruned: full or partial ones.
    pub kept: Vec<Decision>,
}

/// Why the catalogue, or a backup in it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system refused.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// No place for a catalogue.
    #[error("{} cannot hold backups: {why}", .path.display())]
    Unusable {
        /// The configured directory.
        path: PathBuf,
        /// What is wrong and how to mend it.
        why: &'static str,
    },
    /// Opened with [`Catalogue::read_only`].
    #[error("the catalogue {} was opened for reading only", .path.display())]
    ReadOnly {
        /// Its directory.
        path: PathBuf,
    },
    /// No backup of this name.
    #[error("there is no backup {name} in {}: `torrust-maintenance list` shows what there is", .path.display())]
    Unknown {
        /// The name asked for.
        name: String,
        /// The catalogue's directory.
        path: PathBuf,
    },
    /// The backup cannot be read.
    #[error("backup {id} {flaw}: {why}")]
    Broken {
        /// Its name.
        id: BackupId,
        /// Whether it is for damage.
        flaw: Flaw,
        /// What is wrong with it.
        why: String,
    },
    /// Something of this name is there, but no database can be had from it.
    #[error("{} cannot be used as a backup: {why}", .path.display())]
    NoDatabase {
        /// What is there.
        path: PathBuf,
        /// What is wrong with it and how to mend it.
        why: String,
    },
    /// Somebody else removes or notes something just now.
    #[error(
        "the backups in {} are being changed by {}; try again when that has ended",
        .path.display(),
        .owner.as_ref().map_or_else(|| "another process".to_owned(), ToString::to_string)
    )]
    Busy {
        /// The catalogue's directory.
        path: PathBuf,
        /// Who that is, if it could be told.
        owner: Option<Owner>,
    },
    /// It is not deleted unless by force.
    #[error("backup {id} was not deleted: {why}; to delete it all the same, use --force")]
    Kept {
        /// Its name.
        id: BackupId,
        /// What speaks for keeping it.
        why: String,
    },
    /// The manifest handed in does not describe the draft.
    #[error("backup {id} was not published: {why}")]
    Mismatch {
        /// The draft's name.
        id: BackupId,
        /// Where the two differ.
        why: String,
    },
    /// A check was not noted down, because it would take the place of others.
    #[error(
        "what was found of backup {id} was not noted down, as what was found before cannot be \
         read: {why}; `torrust-maintenance verify --full` takes its place"
    )]
    NotNoted {
        /// Its name.
        id: BackupId,
        /// Why that cannot be read.
        why: String,
    },
    /// Nothing was pruned, because the backup that would justify it does not.
    #[error("nothing was pruned: {why}")]
    NotPruned {
        /// What speaks against it, and what to do.
        why: String,
    },
}

impl Catalogue {
    /// Opens a catalogue for writing. Creates its directory, but not the parents of it;
    /// shows that it can be written to; removes what dead runs have left.
    ///
    /// # Errors
    ///
    /// If the directory cannot be created, read or written to.
    pub fn open(disk: Disk, directory: &Path) -> Result<Self, Error> {
        if !directory.exists() {
            if !disk::parent(directory).is_dir() {
                return Err(Error::Unusable {
                    path: directory.to_owned(),
                    why: "the directory it would be created in does not exist; create that first",
                });
            }
            disk.create_dir(directory)?;
            disk.sync_dir(disk::parent(directory))?;
        }
        let mut catalogue = Self::read_only(disk, directory)?;
        catalogue.writable = true;
        catalogue.sweep()?;
        catalogue.probe()?;
        Ok(catalogue)
    }

    /// Opens a catalogue for reading. Creates and removes nothing, now or later.
    ///
    /// # Errors
    ///
    /// If it is not a directory.
    pub fn read_only(disk: Disk, directory: &Path) -> Result<Self, Error> {
        if !directory.is_dir() {
            return Err(Error::Unusable {
                path: directory.to_owned(),
                why: "it is not a directory",
            });
        }
        Ok(Self::elsewhere(disk, directory))
    }

    /// As [`Catalogue::read_only`], of one that another process keeps and that need not be
    /// there yet. Whoever lists it finds out.
    #[must_use]
    pub fn elsewhere(disk: Disk, directory: &Path) -> Self {
        Self {
            disk,
            directory: directory.to_owned(),
            writable: false,
        }
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Begins a backup for a run that began at `began`, under a temporary name. Sweeps
    /// first: the room that dead runs take is needed now.
    ///
    /// # Errors
    ///
    /// If the directory cannot be read or written to.
    pub fn begin(&self, began: DateTime<Utc>) -> Result<Draft, Error> {
        self.check_writable()?;
        // What cannot be swept costs room, not the backup. `open` reports it.
        let _ = self.sweep();
        let taken = self.disk.list(&self.directory)?;
        let taken = taken
            .iter()
            .filter_map(|name| BackupId::in_name(name.to_str()?));
        let id = BackupId::after(began, taken);
        let claim = self.claim(&Temporary::Partial(id.clone()))?;
        let destination = self.directory.join(id.to_string());
        Ok(Draft::new(self.disk.clone(), id, claim, destination))
    }

    /// Everything in the directory: backups and what is broken newest first, then what is
    /// foreign by name. Temporary names are left out.
    ///
    /// # Errors
    ///
    /// If the directory itself cannot be read. What is wrong with an entry is said in it.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let (mut dated, mut foreign) = (Vec::<BackupId>::new(), Vec::new());
        for name in self.disk.list(&self.directory)? {
            match name.to_str().map(|name| (name, name.parse())) {
                Some((_, Ok(id))) => dated.push(id),
                Some((LOCK | LEDGER, _)) => {}
                Some((name, Err(_))) if Temporary::parse(name).is_some() => {}
                _ => foreign.push(Entry::Foreign(Foreign::at(self.directory.join(&name)))),
            }
        }
        dated.sort_by(|one, other| other.cmp(one));
        let mut entries: Vec<_> = dated.into_iter().map(|id| self.entry(id)).collect();
        entries.append(&mut foreign);
        Ok(entries)
    }

    /// The good backups, newest first.
    ///
    /// # Errors
    ///
    /// As [`Self::list`].
    pub fn backups(&self) -> Result<Vec<Backup>, Error> {
        let entries = self.list()?.into_iter();
        Ok(entries
            .filter_map(|entry| match entry {
                Entry::Good(backup) => Some(backup),
                Entry::Broken { .. } | Entry::Foreign { .. } => None,
            })
            .collect())
    }

    /// One backup.
    ///
    /// # Errors
    ///
    /// If there is none of this name, or it is broken.
    pub fn get(&self, id: &BackupId) -> Result<Backup, Error> {
        let dir = self.directory.join(id.to_string());
        if fs::symlink_metadata(&dir).is_err() {
            return Err(self.unknown(&id.to_string()));
        }
        self.read(id).map_err(|Unread { flaw, why }| Error::Broken {
            id: id.clone(),
            flaw,
            why,
        })
    }

    /// A database that was not made here, by its name in the directory.
    ///
    /// # Errors
    ///
    /// If there is none of this name, or no database can be had from it alone.
    pub fn foreign(&self, name: &str) -> Result<Foreign, Error> {
        let listed = self.list()?.into_iter().find_map(|entry| match entry {
            Entry::Foreign(foreign) if foreign.name == name => Some(foreign),
            _ => None,
        });
        let foreign = listed.ok_or_else(|| self.unknown(name))?;
        match foreign.objection() {
            None => Ok(foreign),
            Some(why) => Err(Error::NoDatabase {
                path: foreign.path,
                why,
            }),
        }
    }

    /// The newest backup of a whole database that is good as far as is known; only where
    /// there is none, the newest that is partial.
    ///
    /// # Errors
    ///
    /// As [`Self::list`].
    pub fn newest_good(&self) -> Result<Option<BackupId>, Error> {
        let full = self.newest_of(true)?;
        full.map_or_else(|| self.newest_of(false), |full| Ok(Some(full)))
    }

    /// The newest backup that is good as far as is known, of those that are `full` or of
    /// those that are partial.
    ///
    /// # Errors
    ///
    /// As [`Self::list`].
    pub fn newest_of(&self, full: bool) -> Result<Option<BackupId>, Error> {
        let backups = self.backups()?.into_iter();
        Ok(backups
            .filter(|backup| backup.manifest.is_full() == full && !backup.notes.is_damaged())
            .max_by(|one, other| {
                let key = |backup: &Backup| (backup.manifest.began, backup.manifest.id.clone());
                key(one).cmp(&key(other))
            })
            .map(|backup| backup.manifest.id))
    }

    /// What `keep` would keep and drop, newest first, of the backups against which nothing is
    /// known, as far as that can be read. Changes nothing.
    ///
    /// # Errors
    ///
    /// As [`Self::list`].
    pub fn plan(&self, keep: &Keep) -> Result<Vec<Decision>, Error> {
        let candidates: Vec<_> = self
            .backups()?
            .into_iter()
            .filter(|backup| backup.notes.are_clean())
            .map(|backup| Candidate {
                full: backup.manifest.is_full(),
                id: backup.manifest.id,
                began: backup.manifest.began,
                protected: backup.notes.protected,
            })
            .collect();
        Ok(retention::plan(&candidates, keep))
    }

    /// Keeps a backup from being removed while the result lives, though not by force. `None`:
    /// somebody else does so, or is removing it.
    ///
    /// # Errors
    ///
    /// If there is none of this name, or the file system refuses.
    pub fn hold(&self, id: &BackupId) -> Result<Option<Hold>, Error> {
        let dir = self.directory.join(id.to_string());
        if !fs::symlink_metadata(&dir).is_ok_and(|found| found.is_dir()) {
            return Err(self.unknown(&id.to_string()));
        }
        Ok(self.disk.hold_dir(&dir)?)
    }

    /// The backups whose uploads were begun and not ended.
    ///
    /// # Errors
    ///
    /// As [`Self::list`].
    pub(crate) fn uploads(&self) -> Result<Vec<BackupId>, Error> {
        let names = self.disk.list(&self.directory)?.into_iter();
        let ids = names.filter_map(|name| match Temporary::parse(name.to_str()?)? {
            Temporary::Upload(id) => Some(id),
            _ => None,
        });
        Ok(ids.collect())
    }

    /// Where it is noted how far the upload of a backup is.
    pub(crate) fn upload_path(&self, id: &BackupId) -> PathBuf {
        self.temporary(&Temporary::Upload(id.clone()))
    }

    /// Where it is noted what is known of the places that backups are uploaded to.
    pub(crate) fn ledger_path(&self) -> PathBuf {
        self.directory.join(LEDGER)
    }

    pub(crate) fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Removes a backup: its name first, durably, then its files. For the holder of the
    /// lock, who has looked at what it is.
    fn remove(&self, id: &BackupId) -> Result<(), Error> {
        let removing = self.temporary(&Temporary::Removing(id.clone()));
        if removing.exists() {
            self.disk.sweep(&removing)?;
        }
        let dir = self.directory.join(id.to_string());
        self.disk.rename(&dir, &removing)?;
        self.disk.sync_dir(&self.directory)?;
        // What has the name of a backup but is none may be a file.
        if fs::symlink_metadata(&removing).is_ok_and(|found| found.is_dir()) {
            self.disk.remove_dir_all(&removing)?;
        } else {
            self.disk.remove_file(&removing)?;
        }
        Ok(())
    }

    /// Removes what stands under a temporary name and has no living owner. Says what went.
    ///
    /// # Errors
    ///
    /// If the directory cannot be read, or something in it not be removed; all else that
    /// can be removed is.
    pub fn sweep(&self) -> Result<Vec<PathBuf>, Error> {
        self.check_writable()?;
        let mut swept = Vec::new();
        let mut failed = None;
        for name in self.disk.list(&self.directory)? {
            match name.to_str().and_then(Temporary::parse) {
                None | Some(Temporary::Upload(_)) => continue,
                Some(_) => {}
            }
            let path = self.directory.join(name);
            match self.disk.sweep(&path) {
                Ok(true) => swept.push(path),
                Ok(false) => {}
                // Its owner was alive after all, and has just finished with it.
                Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            None => Ok(swept),
            Some(error) => Err(error.into()),
        }
    }

    /// A directory to unpack this backup in, removed when dropped. For a catalogue opened
    /// for writing; others bring their own.
    ///
    /// # Errors
    ///
    /// If it cannot be created, or another verification of the same backup has it.
    pub fn scratch(&self, id: &BackupId) -> Result<Claim, Error> {
        self.check_writable()?;
        let _ = self.sweep();
        self.claim(&Temporary::Scratch(id.clone()))
    }

    /// A directory to unpack a [`Foreign`] database in, removed when dropped.
    ///
    /// # Errors
    ///
    /// If it cannot be created, or this process has one already.
    pub fn scratch_for_foreign(&self) -> Result<Claim, Error> {
        self.check_writable()?;
        let _ = self.sweep();
        self.claim(&Temporary::Unpacking(std::process::id()))
    }

    fn entry(&self, id: BackupId) -> Entry {
        match self.read(&id) {
            Ok(backup) => Entry::Good(backup),
            Err(Unread { flaw, why }) => Entry::Broken {
                name: id,
                flaw,
                why,
            },
        }
    }

    /// Reads a backup, or says why it is none.
    fn read(&self, id: &BackupId) -> Result<Backup, Unread> {
        let dir = self.directory.join(id.to_string());
        let found = fs::symlink_metadata(&dir)
            .map_err(|error| Unread::looking(&error, error.to_string()))?;
        if !found.is_dir() {
            return Err("it is not a directory".to_owned().into());
        }
        let json = self.disk.read(&dir.join(MANIFEST), SMALL_FILE)?;
        let manifest = Manifest::parse(&json)?;
        if manifest.id != *id {
            return Err(format!("its manifest is that of {}", manifest.id).into());
        }
        if manifest.began.trunc_subsecs(0) != id.second() {
            let began = manifest.began.to_rfc3339();
            return Err(format!("its manifest says it began {began}").into());
        }
        check_artifacts(&dir, &manifest)?;
        let notes = Notes::read(&dir, &self.disk);
        Ok(Backup {
            dir,
            manifest,
            notes,
            identities: None,
        })
    }

    fn unknown(&self, name: &str) -> Error {
        Error::Unknown {
            name: name.to_owned(),
            path: self.directory.clone(),
        }
    }

    fn check_writable(&self) -> Result<(), Error> {
        if self.writable {
            return Ok(());
        }
        Err(Error::ReadOnly {
            path: self.directory.clone(),
        })
    }

    fn probe(&self) -> Result<(), Error> {
        self.claim(&Temporary::Probe(std::process::id())).map(drop)
    }

    fn claim(&self, name: &Temporary) -> Result<Claim, Error> {
        Ok(self.disk.claim(&self.temporary(name))?)
    }

    fn temporary(&self, name: &Temporary) -> PathBuf {
        self.directory.join(name.to_string())
    }
}

/// Whether the stored files are there, each with a name and the size it should have.
fn check_artifacts(dir: &Path, manifest: &Manifest) -> Result<(), Unread> {
    check_names(manifest)?;
    manifest
        .artifacts()
        .try_for_each(|artifact| check_size(dir, artifact))
}

/// Whether each stored file has a name of its own. A manifest is input: none of its names must
/// lead out of the directory.
pub(crate) fn check_names(manifest: &Manifest) -> Result<(), String> {
    let mut names = vec![MANIFEST, SUMS];
    for Artifact { name, .. } in manifest.artifacts() {
        if names.contains(&name.as_str()) {
            return Err(format!("`{name}` is the name of two files"));
        }
        if Path::new(name).file_name() != Some(OsStr::new(name)) {
            return Err(format!("`{name}` is not a plain file name"));
        }
        names.push(name);
    }
    Ok(())
}

fn check_size(dir: &Path, artifact: &Artifact) -> Result<(), Unread> {
    let name = &artifact.name;
    match fs::symlink_metadata(dir.join(name)) {
        Ok(found) if found.is_file() && found.len() == artifact.stored_bytes => Ok(()),
        Ok(found) if found.is_file() => Err(format!(
            "{name} has {} bytes, not {}",
            found.len(),
            artifact.stored_bytes
        )
        .into()),
        Ok(_) => Err(format!("{name} is not a regular file").into()),
        Err(error) => Err(Unread::looking(&error, format!("{name}: {error}"))),
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
