//! A backup in the making.

use std::path::{Path, PathBuf};

use chrono::SubsecRound;
use sha2::{Digest, Sha256};

use super::{Backup, BackupId, Error, MANIFEST, Manifest, Notes, SUMS, check_artifacts};
use crate::config::Compression;
use crate::disk::{self, Claim, Disk};
use crate::encryption::Seal;

/// The raw copy in a draft, an excerpt of it, and what `SQLite` may leave beside databases of
/// those names.
const RAW: &str = "database.sqlite3.raw";
const EXCERPT: &str = "database.sqlite3.excerpt";
const SIDE_FILES: [&str; 4] = ["", "-wal", "-shm", "-journal"];

/// The archive of files, before and after it is compressed.
const TAR: &str = "files.tar";
const FILES: &str = "files.tar.zst";

/// What the name of an encrypted file ends with.
const AGE: &str = ".age";

/// A backup in the making, under a temporary name. Dropped, it is removed.
#[derive(Debug)]
pub struct Draft {
    disk: Disk,
    id: BackupId,
    destination: PathBuf,
    claim: Claim,
    seal: Option<Seal>,
}

impl Draft {
    pub(super) fn new(disk: Disk, id: BackupId, claim: Claim, destination: PathBuf) -> Self {
        Self {
            disk,
            id,
            destination,
            claim,
            seal: None,
        }
    }

    /// What is stored in it is to be encrypted so.
    #[must_use]
    pub fn sealed(self, seal: Option<Seal>) -> Self {
        Self { seal, ..self }
    }

    /// How what is stored in it is to be encrypted; `None`: it is not.
    #[must_use]
    pub fn seal(&self) -> Option<&Seal> {
        self.seal.as_ref()
    }

    /// What its files are to be made with: if they are to be encrypted, what lies there
    /// while it is being made is for its owner alone.
    #[must_use]
    pub fn disk(&self, disk: &Disk) -> Disk {
        match &self.seal {
            Some(_) => disk.private(),
            None => disk.clone(),
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
        self.stored_path(FILES)
    }

    /// Where the stored database goes.
    #[must_use]
    pub fn artifact_path(&self, compression: &Compression) -> PathBuf {
        self.stored_path(match compression {
            Compression::None => "database.sqlite3",
            Compression::Zstd(_) => "database.sqlite3.zst",
        })
    }

    /// Where the stored dump of a server goes.
    #[must_use]
    pub fn dump_path(&self, compression: &Compression) -> PathBuf {
        self.stored_path(match compression {
            Compression::None => "database.sql",
            Compression::Zstd(_) => "database.sql.zst",
        })
    }

    /// Where a file of this name goes: with the ending of an encrypted one, if it is to be.
    fn stored_path(&self, name: &str) -> PathBuf {
        let age = if self.seal.is_some() { AGE } else { "" };
        self.dir().join(format!("{name}{age}"))
    }

    /// Removes what is not published: the raw copy, an excerpt, the archive before it is
    /// compressed.
    ///
    /// # Errors
    ///
    /// If the file system refuses.
    pub fn remove_unpublished(&self) -> Result<(), disk::Error> {
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
        Ok(())
    }

    /// Gives it its final name, after everything in it is written and synced.
    ///
    /// # Errors
    ///
    /// If the manifest is not that of this draft, or the file system refuses. There is no
    /// backup then, and the draft is removed.
    pub fn publish(self, manifest: &Manifest) -> Result<Backup, Error> {
        let json = self.check(manifest)?;
        self.remove_unpublished()?;
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
            identities: None,
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
