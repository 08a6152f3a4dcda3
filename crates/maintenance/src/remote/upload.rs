//! One backup on its way there.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::multipart::MultipartStore;
use sha2::{Digest, Sha256};

use super::note::Note;
use super::store::Kind;
use super::{Error, Remote, check};
use crate::catalogue::{Artifact, Backup, BackupId, Catalogue, MANIFEST, SUMS};
use crate::config::Readback;
use crate::disk::{self, File, Hold, Steady};
use crate::snapshot::Watch;
use crate::verify;

/// The most parts S3 puts together
/// (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html>).
const MOST_PARTS: u64 = 10_000;

/// How fast it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// As `bandwidth` has it: what is read back beside the service.
    Kept,
    /// As fast as it can: somebody waits for a backup.
    Free,
}

/// Keeps a backup from being removed, and from being uploaded twice at once.
fn held(catalogue: &Catalogue, id: &BackupId) -> Result<Hold, Error> {
    catalogue.hold(id)?.ok_or_else(|| Error::Busy(id.clone()))
}

impl Remote {
    /// Uploads a backup: its files, each of which is read back, then its manifest. What is
    /// there already, and is as it should be, is not uploaded again.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] if another process is at it; [`Error::Verify`] if it is not good here;
    /// or if it cannot be uploaded. It is not listed there then.
    pub async fn upload(
        &self,
        catalogue: &Catalogue,
        backup: &Backup,
        watch: &Watch,
    ) -> Result<(), Error> {
        let _held = held(catalogue, &backup.manifest.id)?;
        self.upload_held(catalogue, backup, watch).await
    }

    /// Uploads a backup in the place of one that broke there, of which nothing stays. Not before
    /// all of that here was read, and is good: what is there may be worth more.
    pub(super) async fn replace(
        &self,
        catalogue: &Catalogue,
        backup: &Backup,
        watch: &Watch,
    ) -> Result<(), Error> {
        let id = &backup.manifest.id;
        let _held = held(catalogue, id)?;
        for artifact in backup.manifest.artifacts() {
            watch.begin("reading", Some(artifact.stored_bytes));
            let from = backup.dir.join(&artifact.name);
            let mut parts = Parts::of(&from, artifact, self.settings.part_size, self)?;
            while let Some(bytes) = parts.next()? {
                check(watch)?;
                watch.advance(bytes.len() as u64);
            }
            parts.finish()?;
        }
        verify::published(backup, &self.disk)?;
        self.check_mounted().await?;
        self.store.remove(id).await?;
        self.upload_held(catalogue, backup, watch).await
    }

    /// Of a backup that nobody removes meanwhile.
    async fn upload_held(
        &self,
        catalogue: &Catalogue,
        backup: &Backup,
        watch: &Watch,
    ) -> Result<(), Error> {
        let id = &backup.manifest.id;
        let (json, sums) = verify::published(backup, &self.disk)?;
        self.check_mounted().await?;
        for artifact in backup.manifest.artifacts() {
            self.upload_file(catalogue, backup, artifact, watch).await?;
        }
        self.upload_small(id, SUMS, sums.into()).await?;
        // Whoever sees it may rely on all the others.
        check(watch)?;
        self.upload_small(id, MANIFEST, json.into()).await
    }

    /// What a file is called there, and all of it at once.
    async fn upload_small(&self, id: &BackupId, name: &str, bytes: Bytes) -> Result<(), Error> {
        match self.store.kind() {
            Kind::Parts(_) => self.store.write(id, name, bytes.clone()).await?,
            Kind::Directory(directory) => {
                let to = self.directory_of(directory, id)?.join(name);
                self.disk.private().write_atomically(&to, &bytes)?;
            }
        }
        if self.store.read_small(id, name).await? == bytes {
            return Ok(());
        }
        self.differs(id, name, "its contents differ".to_owned())
            .await
    }

    async fn upload_file(
        &self,
        catalogue: &Catalogue,
        backup: &Backup,
        artifact: &Artifact,
        watch: &Watch,
    ) -> Result<(), Error> {
        let (id, name) = (&backup.manifest.id, artifact.name.as_str());
        let from = backup.dir.join(name);
        let found = self.store.size(id, name).await?;
        if found == Some(artifact.stored_bytes)
            && self.compare(id, artifact, watch).await?.is_none()
        {
            return Ok(Note::remove(catalogue, id)?);
        }
        match self.store.kind() {
            Kind::Directory(directory) => {
                let to = self.directory_of(directory, id)?.join(name);
                self.place(&from, artifact, &to, watch).await?;
            }
            Kind::Parts(_) if artifact.stored_bytes <= self.settings.part_size => {
                let mut parts = Parts::of(&from, artifact, self.settings.part_size, self)?;
                let bytes = parts.next()?.unwrap_or_default();
                parts.finish()?;
                watch.begin("uploading", Some(artifact.stored_bytes));
                let began = instant();
                self.store.write(id, name, bytes).await?;
                self.keep_pace(artifact.stored_bytes, began).await;
            }
            Kind::Parts(store) => {
                let store = store.as_ref();
                self.upload_parts(catalogue, (id, &from), artifact, store, watch)
                    .await?;
            }
        }
        match self.compare(id, artifact, watch).await? {
            None => Ok(()),
            Some(why) => self.differs(id, name, why).await,
        }
    }

    /// In parts, from where a former attempt has come to.
    async fn upload_parts(
        &self,
        catalogue: &Catalogue,
        (id, from): (&BackupId, &Path),
        artifact: &Artifact,
        store: &dyn MultipartStore,
        watch: &Watch,
    ) -> Result<(), Error> {
        let part_bytes = part_bytes(artifact.stored_bytes, self.settings.part_size);
        let former = Note::read(catalogue, id);
        let taken_up = former.filter(|note| note.is_of(artifact, self.at(), part_bytes));
        if taken_up.is_none() {
            self.give_up(catalogue, id).await?;
        }
        let was_begun = taken_up.is_some();
        let mut note = match taken_up {
            Some(note) => note,
            None => {
                self.begin(catalogue, id, artifact, part_bytes, store)
                    .await?
            }
        };
        let uploaded = self
            .go_on(catalogue, (id, from), artifact, &mut note, store, watch)
            .await;
        // Whatever else it refuses, what it has stays, to be gone on from.
        let is_lost = match &uploaded {
            Err(error @ (Error::Refused { .. } | Error::Failed { .. })) if was_begun => {
                error.is_of_lost_upload()
                    || (self.store.has_lost(id, &note.name, &note.upload)).await
            }
            _ => false,
        };
        match uploaded {
            // Put together before that could be told.
            Err(_) if is_lost && self.is_of_size(id, artifact).await? => {}
            // Forgotten.
            Err(_) if is_lost => {
                self.give_up(catalogue, id).await?;
                note = self
                    .begin(catalogue, id, artifact, part_bytes, store)
                    .await?;
                self.go_on(catalogue, (id, from), artifact, &mut note, store, watch)
                    .await?;
            }
            Err(error @ Error::Verify(_)) => {
                self.give_up(catalogue, id).await?;
                return Err(error);
            }
            other => other?,
        }
        Ok(Note::remove(catalogue, id)?)
    }

    async fn is_of_size(&self, id: &BackupId, artifact: &Artifact) -> Result<bool, Error> {
        let found = self.store.size(id, &artifact.name).await?;
        Ok(found == Some(artifact.stored_bytes))
    }

    async fn begin(
        &self,
        catalogue: &Catalogue,
        id: &BackupId,
        artifact: &Artifact,
        part_bytes: u64,
        store: &dyn MultipartStore,
    ) -> Result<Note, Error> {
        let name = artifact.name.clone();
        let note = Note {
            remote: self.at().to_owned(),
            upload: self.store.begin(store, id, &name).await?,
            name,
            sha256: artifact.stored_sha256.clone(),
            part_bytes,
            parts: Vec::new(),
        };
        note.write(catalogue, id)?;
        Ok(note)
    }

    async fn go_on(
        &self,
        catalogue: &Catalogue,
        (id, from): (&BackupId, &Path),
        artifact: &Artifact,
        note: &mut Note,
        store: &dyn MultipartStore,
        watch: &Watch,
    ) -> Result<(), Error> {
        let name = artifact.name.as_str();
        watch.begin("uploading", Some(artifact.stored_bytes));
        let mut parts = Parts::of(from, artifact, note.part_bytes, self)?;
        let mut nth = 0;
        while let Some(bytes) = parts.next()? {
            check(watch)?;
            let length = bytes.len() as u64;
            // What was uploaded is read here all the same: all of it must be what it was.
            if nth >= note.parts.len() {
                let began = instant();
                let part = self
                    .store
                    .write_part(store, (id, name), &note.upload, nth, bytes)
                    .await?;
                note.parts.push(part);
                note.write(catalogue, id)?;
                self.keep_pace(length, began).await;
            }
            watch.advance(length);
            nth += 1;
        }
        parts.finish()?;
        self.store
            .complete(store, (id, name), &note.upload, &note.parts)
            .await
    }

    /// Ends what was begun of a backup and is not to go on, here and there.
    pub(super) async fn give_up(&self, catalogue: &Catalogue, id: &BackupId) -> Result<(), Error> {
        if let Some(note) = Note::read(catalogue, id)
            && let Kind::Parts(parts) = self.store.kind()
            && note.remote == self.at()
        {
            self.store
                .abort(parts.as_ref(), id, &note.name, &note.upload)
                .await?;
        }
        Ok(Note::remove(catalogue, id)?)
    }

    /// The directory of a backup there. That of all of them is never created.
    fn directory_of(&self, directory: &Path, id: &BackupId) -> Result<PathBuf, Error> {
        let of_backup = directory.join(id.to_string());
        if !of_backup.is_dir() {
            self.disk.create_dir(&of_backup)?;
            self.disk.sync_dir(directory)?;
        }
        Ok(of_backup)
    }

    /// Copies a file to a directory: under a temporary name, synced, renamed.
    async fn place(
        &self,
        from: &Path,
        artifact: &Artifact,
        to: &Path,
        watch: &Watch,
    ) -> Result<(), Error> {
        let temporary = disk::temporary_of(to);
        if temporary.exists() {
            self.disk.remove_file(&temporary)?;
        }
        watch.begin("uploading", Some(artifact.stored_bytes));
        let mut parts = Parts::of(from, artifact, self.settings.part_size, self)?;
        // By and by: gigabytes at once would hold up the commits of others.
        let mut file = Steady::new(self.disk.private().create(&temporary)?);
        while let Some(bytes) = parts.next()? {
            check(watch)?;
            let began = instant();
            file.write_all(&bytes)
                .map_err(|error| disk::Error::new("write", &temporary, error))?;
            watch.advance(bytes.len() as u64);
            self.keep_pace(bytes.len() as u64, began).await;
        }
        parts.finish()?;
        file.finish()?;
        self.disk.rename(&temporary, to)?;
        Ok(self.disk.sync_dir(disk::parent(to))?)
    }

    /// Waits until so many bytes since then are not too many.
    async fn keep_pace(&self, bytes: u64, began: Instant) {
        let Some(bandwidth) = self.settings.bandwidth else {
            return;
        };
        let micros = u128::from(bytes) * 1_000_000 / u128::from(bandwidth.max(1));
        let due = Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
    }

    /// In what an object differs from what it should be; of its contents only if they are to
    /// be read back.
    pub(super) async fn compare(
        &self,
        id: &BackupId,
        artifact: &Artifact,
        watch: &Watch,
    ) -> Result<Option<String>, Error> {
        let (name, bytes) = (artifact.name.as_str(), artifact.stored_bytes);
        match self.store.size(id, name).await? {
            Some(found) if found == bytes => {}
            Some(found) => return Ok(Some(format!("it has {found} bytes, not {bytes}"))),
            None => return Ok(Some("it is not there".to_owned())),
        }
        if self.settings.verify == Readback::Size {
            return Ok(None);
        }
        watch.begin("reading back", Some(bytes));
        let mut sum = Sha256::new();
        self.read_all(id, artifact, Pace::Kept, watch, |bytes| {
            sum.update(bytes);
            Ok(())
        })
        .await?;
        let sum = format!("{:x}", sum.finalize());
        let expected = &artifact.stored_sha256;
        Ok((sum != *expected).then(|| format!("its SHA-256 is {sum}, not {expected}")))
    }

    /// Reads an object part by part.
    pub(super) async fn read_all(
        &self,
        id: &BackupId,
        artifact: &Artifact,
        pace: Pace,
        watch: &Watch,
        mut each: impl FnMut(&[u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let bytes = artifact.stored_bytes;
        let mut done = 0;
        while done < bytes {
            check(watch)?;
            let end = bytes.min(done + self.settings.part_size);
            let began = instant();
            let part = self.store.read(id, &artifact.name, done..end).await?;
            if part.len() as u64 != end - done {
                return Err(Error::Differs {
                    object: self.store.object(id, &artifact.name),
                    why: format!("of the bytes {done} to {end} there are {}", part.len()),
                });
            }
            each(&part)?;
            watch.advance(part.len() as u64);
            if pace == Pace::Kept {
                self.keep_pace(end - done, began).await;
            }
            done = end;
        }
        Ok(())
    }

    /// Removes what is not what it should be, and says so.
    async fn differs(&self, id: &BackupId, name: &str, why: String) -> Result<(), Error> {
        self.store.remove_object(id, name).await?;
        let object = self.store.object(id, name);
        Err(Error::Differs { object, why })
    }
}

/// A file of a backup, part by part, summed up on its way.
struct Parts {
    file: File,
    left: u64,
    part_bytes: u64,
    sum: Sha256,
    expected: String,
}

impl Parts {
    fn of(
        from: &Path,
        artifact: &Artifact,
        part_bytes: u64,
        remote: &Remote,
    ) -> Result<Self, Error> {
        let file = remote.disk.open(from)?.by_requests();
        let size = file.size()?;
        if size != artifact.stored_bytes {
            let finding = format!("it has {size} bytes, not {}", artifact.stored_bytes);
            return Err(verify::Error::corrupt(from, finding).into());
        }
        Ok(Self {
            file,
            left: size,
            part_bytes,
            sum: Sha256::new(),
            expected: artifact.stored_sha256.clone(),
        })
    }

    /// The next part; `None` at the end.
    fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let length = self.left.min(self.part_bytes);
        if length == 0 {
            return Ok(None);
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        let path = self.file.path().to_owned();
        self.file
            .read_exact(&mut bytes)
            .map_err(|error| disk::Error::new("read", &path, error))?;
        self.left -= length;
        self.sum.update(&bytes);
        Ok(Some(bytes.into()))
    }

    /// That what was read is what was published.
    fn finish(self) -> Result<(), Error> {
        self.file.forget_cached();
        let sum = format!("{:x}", self.sum.finalize());
        if sum == self.expected {
            return Ok(());
        }
        let finding = format!("its SHA-256 is {sum}, not {}", self.expected);
        Err(verify::Error::corrupt(self.file.path(), finding).into())
    }
}

/// Bytes of a part: larger than configured where there would be too many.
fn part_bytes(bytes: u64, configured: u64) -> u64 {
    configured.max(bytes.div_ceil(MOST_PARTS))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a rate is measured where the bytes go by"
)]
fn instant() -> Instant {
    Instant::now()
}
