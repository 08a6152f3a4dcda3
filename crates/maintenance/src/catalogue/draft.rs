//! A backup in the making.

use std::path::{Path, PathBuf};

use chrono::SubsecRound;
use sha2::{Digest, Sha256};

use super::{Artifact, Backup, BackupId, Error, MANIFEST, Manifest, Notes, SUMS, check_size};
use crate::config::Compression;
use crate::disk::{Claim, Disk};

/// The raw copy in a draft, and what `SQLite` may leave beside a database of that name.
const RAW: &str = "database.sqlite3.raw";
const RAW_SIDE_FILES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// A backup in the making, under a temporary name. Dropped, it is removed.
#[derive(Debug)]
pub struct Draft {
    disk: Disk,
    id: BackupId,
    destination: PathBuf,
    claim: Claim,
}

impl Draft {
    pub(super) fn new(disk: Disk, id: BackupId, claim: Claim, destination: PathBuf) -> Self {
        Self {
            disk,
            id,
            destination,
            claim,
        }
    }

    /// The name it will be published under.
    #[must_use]
    pub fn id(&self) -> &BackupId {
        &self.id
    }

    /// Where it is gathered.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.claim.path()
    }

    /// Where the raw copy goes. It is not published.
    #[must_use]
    pub fn raw_path(&self) -> PathBuf {
        self.dir().join(RAW)
    }

    /// Where the stored database goes.
    #[must_use]
    pub fn artifact_path(&self, compression: &Compression) -> PathBuf {
        self.dir().join(match compression {
            Compression::None => "database.sqlite3",
            Compression::Zstd(_) => "database.sqlite3.zst",
        })
    }

    /// Gives it its final name, after everything in it is written and synced.
    ///
    /// # Errors
    ///
    /// If the manifest is not that of this draft, or the file system refuses. There is no
    /// backup then, and the draft is removed.
    pub fn publish(self, manifest: &Manifest) -> Result<Backup, Error> {
        let artifact = self.dir().join(&manifest.database.name);
        let json = self.check(manifest)?;
        for suffix in std::iter::once("").chain(RAW_SIDE_FILES) {
            let raw = self.dir().join(format!("{RAW}{suffix}"));
            if raw.exists() {
                self.disk.remove_file(&raw)?;
            }
        }
        let sums = sums(&json, &manifest.database);
        self.disk.create(&self.dir().join(MANIFEST))?.fill(&json)?;
        self.disk
            .create(&self.dir().join(SUMS))?
            .fill(sums.as_bytes())?;
        self.disk.sync_file(&artifact)?;
        self.disk.sync_dir(self.dir())?;
        self.claim.promote(&self.destination)?;
        Ok(Backup {
            dir: self.destination,
            manifest: manifest.clone(),
            notes: Notes::default(),
        })
    }

    /// The manifest as it will be stored, if a reader would take the result for good.
    fn check(&self, manifest: &Manifest) -> Result<Vec<u8>, Error> {
        let checked = || {
            if manifest.id != self.id {
                return Err(format!("the manifest is that of {}", manifest.id));
            }
            if manifest.began.trunc_subsecs(0) != self.id.second() {
                return Err(format!(
                    "the manifest says it began {}",
                    manifest.began.to_rfc3339()
                ));
            }
            check_size(self.dir(), &manifest.database)?;
            let json = manifest.to_json().map_err(|error| error.to_string())?;
            match Manifest::parse(&json)? {
                read if read == *manifest => Ok(json),
                _ => Err("the manifest does not read back as written".to_owned()),
            }
        };
        checked().map_err(|why| Error::Mismatch {
            id: self.id.clone(),
            why,
        })
    }
}

/// What `SHA256SUMS` of a backup says, byte for byte.
pub(crate) fn sums(manifest: &[u8], database: &Artifact) -> String {
    let Artifact {
        name,
        stored_sha256,
        ..
    } = database;
    format!(
        "{:x}  {MANIFEST}\n{stored_sha256}  {name}\n",
        Sha256::digest(manifest)
    )
}
