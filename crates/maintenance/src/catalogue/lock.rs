//! One writer at a time: who holds the catalogue, and what only its holder may do.
//!
//! The lock is an `flock` on a file of its own, so it ends with its owner, however that
//! ends: there is nothing to take over, to time out or to clean up. What the file says is
//! for people who are told to wait. It is never removed; removing it could take it from
//! under the next holder.
//!
//! Publishing needs no lock: it adds a name that nobody else has, and everything here
//! looks at what there is after it has the lock.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use super::notes::{Check, PROTECTED, VERIFIED};
use super::{BackupId, Catalogue, Error, LOCK, Pruned};
use crate::config::Keep;
use crate::disk;
use crate::snapshot::Watch;

/// Time between two attempts to take the lock.
const RETRY: Duration = Duration::from_millis(50);
/// Why a backup stays that no rule keeps.
const UPLOADING: &str = "it is being uploaded";
/// Longest description of an owner worth reading.
const LONGEST: u64 = 4096;

/// Who holds the catalogue, as others are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Process id, on `host`.
    pub process: u32,
    /// Host name; that of a container, for one in a container.
    pub host: String,
    /// What it is doing: `torrust-maintenance prune`.
    pub command: String,
    /// Since when.
    pub since: DateTime<Utc>,
}

impl Owner {
    /// This process, about to do `command`.
    #[must_use]
    pub fn this(command: impl Into<String>, now: DateTime<Utc>) -> Self {
        Self {
            process: std::process::id(),
            host: crate::host(),
            command: command.into(),
            since: now,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            process,
            host,
            command,
            since,
        } = self;
        let since = since.to_rfc3339_opts(SecondsFormat::Secs, true);
        write!(f, "`{command}`, process {process} on {host}, since {since}")
    }
}

/// The right to remove, and to note down, until dropped.
#[derive(Debug)]
pub struct Locked<'catalogue> {
    catalogue: &'catalogue Catalogue,
    _lock: disk::Lock,
}

impl Catalogue {
    /// Takes the right to remove backups and to note down what is learned of them.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] at once if somebody else has it, and says who; or if the catalogue
    /// was opened for reading only, or the lock file cannot be created.
    pub fn lock(&self, owner: &Owner) -> Result<Locked<'_>, Error> {
        self.check_writable()?;
        let path = self.directory.join(LOCK);
        let Some(lock) = self.disk.lock_file(&path, &self.directory)? else {
            let owner = self.disk.read(&path, LONGEST).ok();
            return Err(Error::Busy {
                path: self.directory.clone(),
                // Its holder may be just about to write it.
                owner: owner.and_then(|json| serde_json::from_slice(&json).ok()),
            });
        };
        lock.inscribe(&serde_json::to_string(owner).unwrap_or_default());
        Ok(Locked {
            catalogue: self,
            _lock: lock,
        })
    }

    /// As [`Self::lock`], but waits up to `limit` for another to end. Whoever holds it
    /// removes files or writes a small one, so that takes seconds at most.
    ///
    /// # Errors
    ///
    /// As [`Self::lock`]; also as soon as `watch` is cancelled.
    pub fn lock_within(
        &self,
        limit: Duration,
        owner: &Owner,
        watch: &Watch,
    ) -> Result<Locked<'_>, Error> {
        let mut waited = Duration::ZERO;
        loop {
            match self.lock(owner) {
                Err(Error::Busy { .. }) if waited < limit && watch.cancelled().is_none() => {
                    watch.pause(RETRY);
                    waited += RETRY;
                }
                result => return result,
            }
        }
    }
}

impl Locked<'_> {
    /// Removes what `keep` does not keep, oldest first, on the strength of the backup
    /// `just_verified`: of full ones if that is full, else of partial ones, since neither
    /// stands in for the other.
    ///
    /// # Errors
    ///
    /// If that one is not good, or not the newest of its kind; then nothing is removed. If a
    /// removal fails, what is newer stays.
    pub fn prune(&self, keep: &Keep, just_verified: &BackupId) -> Result<Pruned, Error> {
        let verified = self.catalogue.get(just_verified)?;
        if let Some(why) = &verified.notes.unreadable {
            return Err(Error::NotPruned {
                why: format!(
                    "what checks of {just_verified} have found cannot be read ({why}); \
                     `torrust-maintenance verify --full` notes it anew"
                ),
            });
        }
        if verified.notes.is_damaged() {
            return Err(Error::NotPruned {
                why: format!(
                    "{just_verified} was found damaged; `torrust-maintenance run` makes a new one"
                ),
            });
        }
        let (kept, dropped): (Vec<_>, Vec<_>) = self
            .catalogue
            .plan(keep)?
            .into_iter()
            .filter(|decision| decision.full == verified.manifest.is_full())
            .partition(|decision| decision.keep);
        // The plan always keeps the newest of either kind, so the first of what is kept is it.
        match kept.first() {
            Some(newest) if newest.id == *just_verified => {}
            newest => {
                let newest = newest.map_or_else(String::new, |newest| newest.id.to_string());
                return Err(Error::NotPruned {
                    why: format!(
                        "{just_verified} was just verified, but {newest} is newer; if the clock \
                         has jumped, move {newest} out of {}",
                        self.catalogue.directory.display()
                    ),
                });
            }
        }
        let (mut removed, mut kept) = (Vec::new(), kept);
        for mut decision in dropped.into_iter().rev() {
            let Some(_held) = self.catalogue.hold(&decision.id)? else {
                // Until the next prune: what is half uploaded would be lost twice.
                decision.keep = true;
                decision.reasons.push(UPLOADING.to_owned());
                kept.push(decision);
                continue;
            };
            self.catalogue.remove(&decision.id)?;
            removed.push(decision.id);
        }
        kept.sort_by(|one, other| other.id.cmp(&one.id));
        Ok(Pruned { removed, kept })
    }

    /// Removes one backup, whatever retention says of it. Without `force` neither the
    /// newest good one of its kind, nor one that is protected, nor one that cannot be read: a newer
    /// version may have made it.
    ///
    /// # Errors
    ///
    /// [`Error::Kept`] for those; or if there is none of this name, or the file system
    /// refuses. When only the files could not be removed, the backup is gone all the same
    /// and the next sweep takes the rest.
    pub fn delete(&self, id: &BackupId, force: bool) -> Result<(), Error> {
        let objection = match self.catalogue.get(id) {
            Err(Error::Broken { why, .. }) => Some(format!("it cannot be read ({why})")),
            Err(error) => return Err(error),
            Ok(backup) if backup.notes.protected => {
                Some("it is protected; `torrust-maintenance unprotect` ends that".to_owned())
            }
            Ok(backup) => self
                .catalogue
                .newest_of(backup.manifest.is_full())?
                .is_some_and(|newest| newest == *id)
                .then(|| {
                    let kind = if backup.manifest.is_full() {
                        "good"
                    } else {
                        "partial"
                    };
                    format!("it is the newest {kind} backup")
                }),
        };
        // What cannot be held, being no directory for one, is not uploaded either.
        let held = self.catalogue.hold(id);
        let is_uploaded = matches!(held, Ok(None));
        let objection = objection.or_else(|| is_uploaded.then(|| UPLOADING.to_owned()));
        match objection {
            Some(why) if !force => Err(Error::Kept {
                id: id.clone(),
                why,
            }),
            _ => self.catalogue.remove(id),
        }
    }

    /// Keeps a backup from being pruned, until [`Self::unprotect`].
    ///
    /// # Errors
    ///
    /// If there is none of this name, it is broken, or the file system refuses.
    pub fn protect(&self, id: &BackupId, now: DateTime<Utc>) -> Result<(), Error> {
        let backup = self.catalogue.get(id)?;
        if !backup.notes.protected {
            let since = now.to_rfc3339_opts(SecondsFormat::Secs, true);
            self.note(&backup.dir.join(PROTECTED), format!("{since}\n").as_bytes())?;
        }
        Ok(())
    }

    /// Leaves a backup to retention again.
    ///
    /// # Errors
    ///
    /// As [`Self::protect`].
    pub fn unprotect(&self, id: &BackupId) -> Result<(), Error> {
        let backup = self.catalogue.get(id)?;
        if backup.notes.protected {
            let disk = &self.catalogue.disk;
            disk.remove_file(&backup.dir.join(PROTECTED))?;
            disk.sync_dir(&backup.dir)?;
        }
        Ok(())
    }

    /// Notes what a check of a published backup has found.
    ///
    /// # Errors
    ///
    /// As [`Self::protect`]; also [`Error::NotNoted`] if former checks cannot be read and may have
    /// found what this one would not.
    pub fn record(&self, id: &BackupId, check: Check) -> Result<(), Error> {
        let mut backup = self.catalogue.get(id)?;
        let former = backup.notes.unreadable.take();
        if let Some(why) = former.filter(|_| !check.is_conclusive()) {
            return Err(Error::NotNoted {
                id: id.clone(),
                why,
            });
        }
        backup.notes.add(check);
        self.note(&backup.dir.join(VERIFIED), &backup.notes.to_json())
    }

    /// By root for whom the backup belongs to, or the service could not read what the operator
    /// has found out.
    fn note(&self, path: &Path, text: &[u8]) -> Result<(), Error> {
        let disk = self.catalogue.disk.inheriting();
        Ok(disk.write_atomically(path, text)?)
    }
}
