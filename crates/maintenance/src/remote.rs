//! A second place for backups: a bucket, or a directory on another volume.
//!
//! ```text
//!  <prefix>/owner.json                   whose it is
//!          /<id>/database.sqlite3.zst    in parts, taken up again after a kill; read back
//!               /files.tar.zst           as the database
//!               /SHA256SUMS
//!               /manifest.json           last of all: with it the backup is complete
//! ```
//!
//! **The manifest comes last and goes first.** So what is listed as a backup there is whole:
//! every other file was uploaded and read back before. Whatever lies there without one is an
//! upload that goes on, or was given up; it is never listed.
//!
//! **A place belongs to one catalogue** (`claim`): two that shared one would remove each
//! other's backups. It is looked at before anything is written, and so is that a directory is
//! the one it was, and not an empty one below which a volume is not mounted.
//!
//! **What is to be done is decided by one pure function**, [`plan()`], from what is here and
//! what is there; nothing is remembered that it goes by but how far the upload of one file is
//! (`note::Note`), and what was found wrong with a backup there (`ledger`). So a kill, a pruned
//! backup, a bucket that was emptied, all lead to the next pass doing what is left. Removing
//! comes after uploading, and never takes the newest good backup that is there.
//!
//! **What breaks there is replaced** by the backup here, if that is good, and told of either
//! way. A missing object, and one of another size, show in every list; what shows only to who
//! reads all of it is looked for every `check_every`, one backup a pass.
//!
//! **Nobody waits for it.** [`Uploader`] has a thread and a runtime of its own, wakes when a
//! run has published, and holds nothing but a lock on the backup it is at, which keeps that
//! one from being pruned.
//!
//! # What fails
//!
//! A request that fails for want of a network or a server is tried again, after a while that
//! doubles; what the server refuses is not. A pass that has failed is repeated, again after a
//! while that doubles, from the part it had come to; and if the place cannot even be opened, a
//! secret that is missing for one, the service starts all the same. What was uploaded and does
//! not read back as it was is removed there, and that is an error, not a retry: somebody should
//! look. Who is told of all this and when is decided in `alarm`.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::Serialize;

use self::claim::OWNER;
pub use self::claim::Owner;
pub use self::ledger::Instance;
pub use self::pass::Report;
pub use self::plan::{Plan, There, plan};
use self::store::Store;
pub use self::uploader::{Uploader, Uploads};
use crate::catalogue::{self, Backup, BackupId, Catalogue, MANIFEST, Manifest, SUMS};
use crate::config;
use crate::disk::{self, Disk};
use crate::retention::Candidate;
use crate::snapshot::Watch;
use crate::verify;

mod alarm;
mod claim;
mod download;
mod ledger;
mod note;
mod pass;
mod plan;
mod store;
mod stray;
mod upload;
mod uploader;

/// The second place.
#[derive(Debug, Clone)]
pub struct Remote {
    store: Store,
    settings: config::Remote,
    disk: Disk,
}

/// A backup that is complete there, as far as names and sizes tell.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stored {
    /// What it says of itself.
    pub manifest: Manifest,
    /// When its manifest was uploaded, and with that all of it.
    pub uploaded: DateTime<Utc>,
}

/// What lies under the name of a backup there.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
#[expect(
    clippy::large_enum_variant,
    reason = "most entries are complete ones, and there are hundreds at most"
)]
pub enum Entry {
    /// A backup.
    Complete(Stored),
    /// An upload that goes on, or was given up.
    Unfinished {
        /// The name.
        name: BackupId,
    },
    /// It has a manifest, and is no backup all the same.
    Broken {
        /// The name.
        name: BackupId,
        /// What is wrong with it.
        why: String,
    },
    /// It has a manifest that cannot be read at this moment. Never touched.
    Unreadable {
        /// The name.
        name: BackupId,
        /// Why not.
        why: String,
    },
}

/// Why something could not be done there. No secret is in any of them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The secret cannot be read.
    #[error("maintenance.remote.secret_access_key_file: {0}")]
    Secret(disk::Error),
    /// The secret is none.
    #[error(
        "the first line of {} (maintenance.remote.secret_access_key_file) is empty or no text",
        .0.display()
    )]
    NoSecret(PathBuf),
    /// The settings cannot be used together.
    #[error("maintenance.remote cannot be used: {0}")]
    Unusable(String),
    /// The directory of the second place is not there.
    #[error(
        "{} (maintenance.remote.url) is not a directory; mount the volume, or create it: a \
         directory that were created here could be on the wrong volume", .0.display()
    )]
    NoDirectory(PathBuf),
    /// The directory is not the one that was used.
    #[error(
        "{} (maintenance.remote.url) is not the directory that backups were uploaded to before: \
         it has no {OWNER}; mount the volume there; or, where another volume takes its place, \
         have `torrust-maintenance upload --take-over` begin anew", .0.display()
    )]
    NotMounted(PathBuf),
    /// It belongs to another catalogue.
    #[error(
        "{at} belongs to the instance {theirs}, and this is the instance {ours}: give each \
         tracker a place of its own (maintenance.remote.url); or, where this one takes the place \
         of that, have `torrust-maintenance upload --take-over` say so"
    )]
    NotOurs {
        /// What it is called.
        at: String,
        /// Whose it is.
        theirs: Box<Owner>,
        /// Who wanted it.
        ours: Box<Owner>,
    },
    /// There are backups, of nobody knows whom.
    #[error(
        "{at} has {count} backups that are not in this catalogue, and no {OWNER} that says whose \
         it is: give each tracker a place of its own (maintenance.remote.url); or, if they are \
         this tracker's, have `torrust-maintenance upload --take-over` say so"
    )]
    Strangers {
        /// What it is called.
        at: String,
        /// How many.
        count: usize,
    },
    /// What a catalogue remembers of its places cannot be read.
    #[error(
        "{}, which says who uploads, cannot be read: {why}; remove it, and have \
         `torrust-maintenance upload --take-over` begin anew", .path.display()
    )]
    Ledger {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// An object is where nothing can be read at once.
    #[error(
        "{object} is in an archive there, such as S3 Glacier, and cannot be read as it is: have \
         it restored there first (`aws s3api restore-object`), and exempt these backups from \
         the rule that moves them"
    )]
    Archived {
        /// The object, with where it is.
        object: String,
    },
    /// Something there that nothing can be said of.
    #[error("backup {id} in {at} is left as it is: {why}")]
    Odd {
        /// Its name.
        id: BackupId,
        /// Where.
        at: String,
        /// What is wrong with it.
        why: String,
    },
    /// The server will not have it: credentials, permissions, a bucket that is not there.
    #[error("could not {doing} {object}: {why}; correct maintenance.remote, or what it names")]
    Refused {
        /// The verb.
        doing: &'static str,
        /// The object, with where it is.
        object: String,
        /// What the server said.
        why: String,
        /// Its word for it, such as `NoSuchUpload`.
        code: Option<String>,
    },
    /// It could not be had, however often it was tried.
    #[error("could not {doing} {object}: {why} (tried {attempts} times)")]
    Failed {
        /// The verb.
        doing: &'static str,
        /// The object, with where it is.
        object: String,
        /// What went wrong the last time.
        why: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// What is there is not what was uploaded.
    #[error("{object} is not what was uploaded: {why}")]
    Differs {
        /// The object, with where it is.
        object: String,
        /// In what.
        why: String,
    },
    /// There is no such backup there.
    #[error(
        "there is no backup {name} in {at}: `torrust-maintenance list --remote` shows what there is"
    )]
    Unknown {
        /// The name asked for.
        name: String,
        /// Where.
        at: String,
    },
    /// It has a manifest and is none.
    #[error("backup {id} in {at} is broken: {why}")]
    Broken {
        /// Its name.
        id: BackupId,
        /// Where.
        at: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is no room for what is to be downloaded.
    #[error("{needed} bytes are needed in {} and {free} are free; free space", .path.display())]
    NoRoom {
        /// Where.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        free: u64,
    },
    /// Another process is uploading it, or removing it.
    #[error(
        "backup {0} is being uploaded or removed by another process; try again when that has ended"
    )]
    Busy(BackupId),
    /// It was asked to end before it was done.
    #[error("the transfer was given up: {0}")]
    Cancelled(String),
    /// The backup here is not good.
    #[error("not uploaded: {0}")]
    Verify(#[from] verify::Error),
    /// The backup here cannot be had.
    #[error(transparent)]
    Catalogue(#[from] catalogue::Error),
    /// The file system refused.
    #[error(transparent)]
    Disk(#[from] disk::Error),
}

impl Error {
    /// Whether it is about one backup: others can be uploaded all the same.
    fn is_of_one_backup(&self) -> bool {
        matches!(
            self,
            Self::Verify(_)
                | Self::Catalogue(_)
                | Self::Busy(_)
                | Self::Differs { .. }
                | Self::Archived { .. }
                | Self::Odd { .. }
        )
    }

    /// Whether what is written in the configuration is wrong: nothing that time mends.
    #[must_use]
    pub fn is_of_configuration(&self) -> bool {
        matches!(self, Self::Unusable(_))
    }
}

impl Remote {
    /// Gets everything ready to speak to it. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// If a secret cannot be read, or the settings cannot be used together.
    pub fn open(settings: &config::Remote, disk: &Disk) -> Result<Self, Error> {
        Ok(Self {
            store: Store::open(settings, disk)?,
            settings: settings.clone(),
            disk: disk.clone(),
        })
    }

    /// What it is called in messages: its url.
    #[must_use]
    pub fn at(&self) -> &str {
        self.store.at()
    }

    /// What is there, newest first. What has no name of a backup is left out, and never
    /// touched.
    ///
    /// # Errors
    ///
    /// If it cannot be asked.
    pub async fn list(&self) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        let mut was_reached = true;
        for (id, objects) in self.store.list().await?.into_iter().rev() {
            let Some(uploaded) = objects.uploaded(MANIFEST) else {
                entries.push(Entry::Unfinished { name: id });
                continue;
            };
            let manifest = match self.manifest(&id).await {
                Ok(manifest) => manifest,
                Err(Error::Differs { why, .. }) => Err(format!("{MANIFEST}: {why}")),
                // Each is waited for: two in a row, and it is the network.
                Err(error @ Error::Failed { .. }) if !was_reached => return Err(error),
                Err(error) => {
                    was_reached = !matches!(error, Error::Failed { .. });
                    let why = error.to_string();
                    entries.push(Entry::Unreadable { name: id, why });
                    continue;
                }
            };
            was_reached = true;
            let complete = manifest.and_then(|manifest| {
                let expected = manifest.artifacts();
                let missing = expected
                    .map(|artifact| (artifact.name.as_str(), Some(artifact.stored_bytes)))
                    .chain([(SUMS, None)])
                    .find(|(name, bytes)| !objects.has(name, *bytes));
                match missing {
                    None => Ok(manifest),
                    Some((name, _)) => Err(format!("{name} is not there, or of another size")),
                }
            });
            entries.push(match complete {
                Ok(manifest) => Entry::Complete(Stored { manifest, uploaded }),
                Err(why) => Entry::Broken { name: id, why },
            });
        }
        Ok(entries)
    }

    /// The manifest there, or what is wrong with it.
    async fn manifest(&self, id: &BackupId) -> Result<Result<Manifest, String>, Error> {
        let json = self.store.read_small(id, MANIFEST).await?;
        Ok(Manifest::parse(&json)
            .map_err(String::from)
            .and_then(|manifest| {
                catalogue::check_names(&manifest)?;
                if manifest.id == *id {
                    Ok(manifest)
                } else {
                    Err(format!("its manifest is that of {}", manifest.id))
                }
            }))
    }

    /// The newest complete backup of a whole database that is there; only where there is none,
    /// the newest that is partial. Or with `partial` the newest of all.
    ///
    /// # Errors
    ///
    /// As [`Self::list`].
    pub async fn newest(&self, partial: bool) -> Result<Option<BackupId>, Error> {
        let entries = self.list().await?;
        let complete = entries.iter().filter_map(|entry| match entry {
            Entry::Complete(stored) => Some(&stored.manifest),
            Entry::Unfinished { .. } | Entry::Broken { .. } | Entry::Unreadable { .. } => None,
        });
        let rank = |manifest: &&Manifest| (partial || manifest.is_full(), manifest.began);
        Ok(complete.max_by_key(rank).map(|newest| newest.id.clone()))
    }
}

/// What a second place is called where several are remembered: servers have buckets of the same
/// name.
fn place(settings: &config::Remote) -> String {
    let at = settings.describe();
    match &settings.place {
        config::Place::S3(config::S3 {
            endpoint: Some(endpoint),
            ..
        }) => format!("{at} at {endpoint}"),
        _ => at,
    }
}

/// The good backups here.
fn here(catalogue: &Catalogue) -> Result<Vec<Backup>, catalogue::Error> {
    let mut backups = catalogue.backups()?;
    backups.retain(|backup| !backup.notes.is_damaged());
    Ok(backups)
}

/// What is to be done, by the backups here and what is there.
fn outline(here: &[Backup], there: &There, keep: &config::Keep) -> Plan {
    let candidates: Vec<_> = here.iter().map(candidate).collect();
    plan(&candidates, there, keep)
}

/// Whether two manifests are of one backup: the id is the second it began in, and the run has
/// letters of its own.
fn is_same(one: &Manifest, other: &Manifest) -> bool {
    (&one.id, &one.run) == (&other.id, &other.run)
}

/// Whether it is to go on.
fn check(watch: &Watch) -> Result<(), Error> {
    watch
        .cancelled()
        .map_or(Ok(()), |why| Err(Error::Cancelled(why)))
}

/// A backup, as retention sees it.
fn candidate(backup: &Backup) -> Candidate {
    Candidate {
        full: backup.manifest.is_full(),
        id: backup.manifest.id.clone(),
        began: backup.manifest.began,
        protected: backup.notes.protected,
    }
}

#[cfg(test)]
mod tests;
