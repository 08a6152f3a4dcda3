//! A backup in the making.

use std::path::{Path, PathBuf};

use chrono::SubsecRound;
use sha2::{Digest, Sha256};

use super::{Backup, BackupId, Error, MANIFEST, Manifest, Notes, SUMS, check_artifacts};
use crate::config::Compression;
use crate::disk::{Claim, Disk};

/// The raw copy in a draft, an excerpt of it, and what `SQLite` may leave beside databases of
/// those names.
const RAW: &str = "database.sqlite3.raw";
const EXCERPT: &str = "database.sqlite3.excerpt";
const SIDE_FILES: [&str; 4] = ["", "-wal", "-shm", "-journal"];

/// The archive of files, before and after it is compressed.
const TAR: &str = "files.tar";
const FILES: &str = "files.tar.zst";

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

    /// Where an excerpt of the raw copy goes. It is not published.
    #[must_use]
    pub fn excerpt_path(&self) -> PathBuf {
        self.dir().join(EXCERPT)
    }

    /// Where other files are gathered. It is not published.
    #[must_use]
    pub fn tar_path(&self) -> PathBuf {
        self.dir().join(TAR)
    }

    /// Where the stored archive of other files goes.
    #[must_use]
    pub fn files_path(&self) -> PathBuf {
        self.dir().join(FILES)
    }

    /// Where the stored database goes.
    #[must_use]
    pub fn artifact_path(&self, compression: &Compression) -> PathBuf {
        self.dir().join(match compression {
            Compression::None => "database.sqlite3",
            Compression::Zstd(_) => "database.sqlite3.zst",
        })
    }

    /// Where the stored dump of a server goes.
    #[must_use]
    pub fn dump_path(&self, compression: &Compression) -> PathBuf {
        self.dir().join(match compression {
            Compression::None => "database.sql",
            Compression::Zstd(_) => "database.sql.zst",
        })
    }

    /// Gives it its final name, after everything in it is written and synced.
    ///
    /// # Errors
    ///
    /// If the manifest is not that of this draft, or the file system refuses. There is no
    /// backup then, and the draft is removed.
    pub fn publish(self, manifest: &Manifest) -> Result<Backup, Error> {
        let json = self.check(manifest)?;
        let databases = [RAW, EXCERPT].into_iter().flat_map(|name| {
            let names = SIDE_FILES.iter();
            names.map(move |suffix| format!("{name}{suffix}"))
        });
        for name in databases.chain([TAR.to_owned()]) {
            let unpublished = self.dir().join(name);
            if unpublished.exists() {
                self.disk.remove_gradually(&unpublished)?;
            }
        }
        let sums = sums(&json, manifest);
        self.disk.create(&self.dir().join(MANIFEST))?.fill(&json)?;
        self.disk
            .create(&self.dir().join(SUMS))?
            .fill(sums.as_bytes())?;
        for artifact in manifest.artifacts() {
            self.disk.sync_file(&self.dir().join(&artifact.name))?;
        }
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
            check_artifacts(self.dir(), manifest)?;
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
pub(crate) fn sums(json: &[u8], manifest: &Manifest) -> String {
    let own = format!("{:x}  {MANIFEST}\n", Sha256::digest(json));
    let stored = manifest
        .artifacts()
        .map(|artifact| format!("{}  {}\n", artifact.stored_sha256, artifact.name));
    std::iter::once(own).chain(stored).collect()
}
