//! A second place for backups: a bucket, or a directory on another volume.
//!
//! ```text
//!  <prefix>/<id>/database.sqlite3.zst    in parts, taken up again after a kill; read back
//!               /files.tar.zst           as the database
//!               /SHA256SUMS
//!               /manifest.json           last of all: with it the backup is complete
//! ```
//!
//! **The manifest comes last and goes first.** So what is listed as a backup there is whole:
//! every other file was uploaded and read back before. Whatever lies there without one is an
//! upload that goes on, or was given up; it is never listed.
//!
//! **What is to be done is decided by one pure function**, [`plan()`], from what is here and
//! what is there; nothing is remembered but how far the upload of one file is (`upload::Note`).
//! So a kill, a pruned backup, a bucket that was emptied, all lead to the next pass doing
//! what is left. Removing comes after uploading, and never takes the newest good backup
//! that is there.
//!
//! **Nobody waits for it.** [`Uploader`] has a thread and a runtime of its own, wakes when a
//! run has published, and holds nothing but a lock on the backup it is at, which keeps that
//! one from being pruned.
//!
//! # What fails
//!
//! A request that fails for want of a network or a server is tried again, after a while that
//! doubles; what the server refuses is not. A pass that has failed is repeated, again after a
//! while that doubles. What was uploaded and does not read back as it was is removed there, and
//! that is an error, not a retry: somebody should look.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde::Serialize;

pub use self::plan::{Plan, There, plan};
use self::store::Store;
pub use self::uploader::{Uploader, Uploads};
use crate::catalogue::{self, Backup, BackupId, Catalogue, MANIFEST, Manifest, SUMS};
use crate::config;
use crate::disk::{self, Disk};
use crate::retention::Candidate;
use crate::snapshot::Watch;
use crate::verify;

mod download;
mod note;
mod plan;
mod store;
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
    /// It has a manifest, and is no backup all the same. Never touched.
    Broken {
        /// The name.
        name: BackupId,
        /// What is wrong with it.
        why: String,
    },
}

/// What a pass did.
#[derive(Debug, Default)]
pub struct Report {
    /// What was uploaded, in that order.
    pub uploaded: Vec<BackupId>,
    /// What should be there and is not.
    pub pending: Vec<BackupId>,
    /// What was removed there, because no rule keeps it.
    pub removed: Vec<BackupId>,
    /// What went wrong first. What could be done in spite of it was.
    pub failure: Option<Error>,
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
    /// The server will not have it: credentials, permissions, a bucket that is not there.
    #[error("could not {doing} {object}: {why}; correct maintenance.remote, or what it names")]
    Refused {
        /// The verb.
        doing: &'static str,
        /// The object, with where it is.
        object: String,
        /// What the server said.
        why: String,
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
    /// Whether it is about one backup here: others can be uploaded all the same.
    fn is_of_one_backup(&self) -> bool {
        matches!(
            self,
            Self::Verify(_) | Self::Catalogue(_) | Self::Busy(_) | Self::Differs { .. }
        )
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
        for (id, objects) in self.store.list().await?.into_iter().rev() {
            let Some(uploaded) = objects.uploaded(MANIFEST) else {
                entries.push(Entry::Unfinished { name: id });
                continue;
            };
            let manifest = self.manifest(&id).await?;
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
            Entry::Unfinished { .. } | Entry::Broken { .. } => None,
        });
        let rank = |manifest: &&Manifest| (partial || manifest.is_full(), manifest.began);
        Ok(complete.max_by_key(rank).map(|newest| newest.id.clone()))
    }

    /// What the catalogue has and is to be there, and what is there.
    pub(crate) fn outline(
        &self,
        catalogue: &Catalogue,
        there: &There,
    ) -> Result<(Plan, Vec<Backup>), Error> {
        let mut backups = catalogue.backups()?;
        backups.retain(|backup| !backup.notes.is_damaged());
        let here: Vec<_> = backups.iter().map(candidate).collect();
        Ok((plan(&here, there, &self.settings.keep), backups))
    }

    /// Uploads what is missing there, newest first, and then removes there what no rule keeps.
    ///
    /// # Errors
    ///
    /// If it cannot be found out what is to be done. What goes wrong later is in the report.
    pub async fn pass(&self, catalogue: &Catalogue, watch: &Watch) -> Result<Report, Error> {
        let there = There::of(&self.list().await?);
        let (plan, backups) = self.outline(catalogue, &there)?;
        let mut report = Report::default();
        for id in plan.upload {
            let stop = report
                .failure
                .as_ref()
                .is_some_and(|failure| !failure.is_of_one_backup());
            let Some(backup) = backups.iter().find(|backup| backup.manifest.id == id) else {
                continue;
            };
            let uploaded = if stop {
                None
            } else {
                Some(self.upload(catalogue, backup, watch).await)
            };
            match uploaded {
                Some(Ok(())) => report.uploaded.push(id),
                // Pruned since: it is not missed.
                Some(Err(Error::Catalogue(catalogue::Error::Unknown { .. }))) => {}
                Some(Err(error)) => {
                    report.failure.get_or_insert(error);
                    report.pending.push(id);
                }
                None => report.pending.push(id),
            }
        }
        if report.failure.is_none() {
            let tidied = self.tidy(catalogue, &there, &mut report, watch).await;
            report.failure = tidied.err();
        }
        Ok(report)
    }

    /// Removes there what no rule keeps, and what was begun and will not be ended.
    async fn tidy(
        &self,
        catalogue: &Catalogue,
        there: &There,
        report: &mut Report,
        watch: &Watch,
    ) -> Result<(), Error> {
        // Somebody else may have been at it, or an operator have removed something.
        let there = if report.uploaded.is_empty() {
            there.clone()
        } else {
            There::of(&self.list().await?)
        };
        let (plan, _) = self.outline(catalogue, &there)?;
        for id in plan.remove {
            check(watch)?;
            self.store.remove(&id).await?;
            report.removed.push(id);
        }
        for id in plan.sweep {
            check(watch)?;
            self.store.remove(&id).await?;
        }
        for id in catalogue.uploads()? {
            if !plan.upload.contains(&id) {
                self.give_up(catalogue, &id).await?;
            }
        }
        Ok(())
    }
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
