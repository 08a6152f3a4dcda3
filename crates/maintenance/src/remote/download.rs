//! A backup on its way back.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::upload::Pace;
use super::{Error, Remote};
use crate::catalogue::{self, Artifact, Backup, BackupId, MANIFEST, Manifest, Notes, SUMS};
use crate::disk::{self, Disk};
use crate::snapshot::Watch;
use crate::verify;

/// Room beyond the files themselves, for the file system's own.
const MARGIN: u64 = 1 << 20;

impl Remote {
    /// Downloads a backup into the directory `to`, which is empty, and compares every byte with
    /// the checksums it was published with.
    ///
    /// # Errors
    ///
    /// If there is none of this name, it is not what was published, or cannot be read or
    /// written. What was written is left, and not to be trusted.
    pub async fn download(&self, id: &BackupId, to: &Path, watch: &Watch) -> Result<Backup, Error> {
        let manifest = self.check_there(id).await?;
        let disk = self.disk.private();
        let needed = manifest.stored_bytes().saturating_add(MARGIN);
        let free = disk.free_bytes(to)?;
        if free < needed {
            let path = to.to_owned();
            return Err(Error::NoRoom { path, needed, free });
        }
        for name in [MANIFEST, SUMS] {
            let bytes = self.store.read_small(id, name).await?;
            disk.create(&to.join(name))?.fill(&bytes)?;
        }
        for artifact in manifest.artifacts() {
            self.fetch(id, artifact, &to.join(&artifact.name), &disk, watch)
                .await?;
        }
        let backup = Backup {
            dir: to.to_owned(),
            manifest,
            notes: Notes::default(),
            identities: None,
        };
        verify::published(&backup, &disk)?;
        Ok(backup)
    }

    /// What a backup there says of itself. Its directory is none: nothing is downloaded.
    ///
    /// # Errors
    ///
    /// If there is none of this name, or it cannot be read.
    pub async fn peek(&self, id: &BackupId) -> Result<Backup, Error> {
        Ok(Backup {
            dir: PathBuf::new(),
            manifest: self.check_there(id).await?,
            notes: Notes::default(),
            identities: None,
        })
    }

    /// Reads every byte of a backup there and compares it with its checksums.
    ///
    /// # Errors
    ///
    /// [`Error::Differs`] if it is not what was published; or if it cannot be read.
    pub async fn verify(&self, id: &BackupId, watch: &Watch) -> Result<Manifest, Error> {
        self.read_back(id, Pace::Free, watch).await
    }

    /// As [`Self::verify`], with the `bandwidth` that uploads have.
    pub(super) async fn check_again(
        &self,
        id: &BackupId,
        watch: &Watch,
    ) -> Result<Manifest, Error> {
        self.read_back(id, Pace::Kept, watch).await
    }

    async fn read_back(&self, id: &BackupId, pace: Pace, watch: &Watch) -> Result<Manifest, Error> {
        let manifest = self.check_there(id).await?;
        let json = self.store.read_small(id, MANIFEST).await?;
        let sums = self.store.read_small(id, SUMS).await?;
        if sums != catalogue::sums(&json, &manifest) {
            return Err(Error::Differs {
                object: self.store.object(id, SUMS),
                why: format!("it does not agree with {MANIFEST}"),
            });
        }
        for artifact in manifest.artifacts() {
            watch.begin("reading", Some(artifact.stored_bytes));
            let mut sum = Sha256::new();
            self.read_all(id, artifact, pace, watch, |bytes| {
                sum.update(bytes);
                Ok(())
            })
            .await?;
            self.check_sum(id, artifact, sum)?;
        }
        Ok(manifest)
    }

    /// Its manifest, if it is there and is one.
    async fn check_there(&self, id: &BackupId) -> Result<Manifest, Error> {
        let at = self.at().to_owned();
        if self.store.size(id, MANIFEST).await?.is_none() {
            let name = id.to_string();
            return Err(Error::Unknown { name, at });
        }
        self.manifest(id).await?.map_err(|why| Error::Broken {
            id: id.clone(),
            at,
            why,
        })
    }

    async fn fetch(
        &self,
        id: &BackupId,
        artifact: &Artifact,
        to: &Path,
        disk: &Disk,
        watch: &Watch,
    ) -> Result<(), Error> {
        let found = self.store.size(id, &artifact.name).await?;
        if found != Some(artifact.stored_bytes) {
            let why = found.map_or_else(
                || "it is not there".to_owned(),
                |found| format!("it has {found} bytes, not {}", artifact.stored_bytes),
            );
            let object = self.store.object(id, &artifact.name);
            return Err(Error::Differs { object, why });
        }
        watch.begin("downloading", Some(artifact.stored_bytes));
        let mut file = disk.create(to)?;
        let mut sum = Sha256::new();
        self.read_all(id, artifact, Pace::Free, watch, |bytes| {
            sum.update(bytes);
            file.write_all(bytes)
                .and_then(|()| file.sync_data())
                .map_err(|error| disk::Error::new("write", to, error).into())
        })
        .await?;
        file.forget_cached();
        self.check_sum(id, artifact, sum)
    }

    fn check_sum(&self, id: &BackupId, artifact: &Artifact, sum: Sha256) -> Result<(), Error> {
        let (sum, expected) = (format!("{:x}", sum.finalize()), &artifact.stored_sha256);
        if sum == *expected {
            return Ok(());
        }
        Err(Error::Differs {
            object: self.store.object(id, &artifact.name),
            why: format!("its SHA-256 is {sum}, not {expected}"),
        })
    }
}
