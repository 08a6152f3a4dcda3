//! Files back in place: a plan, which changes nothing, then all of them or none.
//!
//! ```text
//!  into a directory   read · compared ─▶ .<name>.restoring/.. ─ synced ─ renamed to <name>
//!  over the originals read · compared ─▶ .<file>.restoring beside each, synced
//!                     each: the former gets a second name · the new one is renamed over it
//! ```
//!
//! Nothing has its name before all of the archive has been read and compared. Over the
//! originals each name has a whole file at every instant, the old one or the new one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{Error, Reserved, reader};
use crate::catalogue::{Backup, BackupId, StoredFile, StoredFiles};
use crate::disk::{self, Attributes, Disk};
use crate::encryption::Identities;
use crate::restore::{aside, beside};
use crate::snapshot::Watch;
use crate::verify;

/// Room beyond the files themselves, for the file system's own.
const MARGIN: u64 = 1 << 20;

/// Where files are restored to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Into this directory, which must not exist yet: `/etc/x` becomes `<directory>/etc/x`.
    Directory(PathBuf),
    /// Where they were.
    Originals,
}

/// What restoring the files of a backup would do.
#[derive(Debug, Serialize)]
pub struct FilesPlan {
    /// The backup.
    pub source: BackupId,
    /// The directory they are restored into; `None`: each goes where it was.
    pub directory: Option<PathBuf>,
    /// Each of them.
    pub files: Vec<PlannedFile>,
    /// Bytes of all of them.
    pub bytes: u64,
    /// What speaks against it. None of it can be overruled.
    pub objections: Vec<Objection>,
    #[serde(skip)]
    archive: PathBuf,
    #[serde(skip)]
    stored: StoredFiles,
    #[serde(skip)]
    identities: Option<Identities>,
}

/// What would become of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedFile {
    /// Where it was when it was stored.
    pub path: PathBuf,
    /// Where it goes, links resolved.
    pub target: PathBuf,
    /// The name the present file is kept under, if there is one.
    pub kept_as: Option<PathBuf>,
    /// Its length.
    pub bytes: u64,
}

/// What speaks against restoring files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Objection {
    /// The directory is there already.
    Exists {
        /// It.
        path: PathBuf,
    },
    /// There is not enough room.
    NoRoom {
        /// Bytes needed.
        needed: u64,
        /// Bytes there are.
        free: u64,
    },
    /// In the place of a file is something that is none.
    NotAFile {
        /// The place.
        path: PathBuf,
    },
    /// Two of the files are one by now, by a link, and were not alike when they were stored.
    Ambiguous {
        /// What both lead to.
        path: PathBuf,
        /// The two, as they were stored.
        stored: [PathBuf; 2],
    },
    /// In the place of a file is something that is never restored as one.
    Reserved {
        /// The place.
        path: PathBuf,
        /// What is there.
        is: &'static str,
    },
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists { path } => write!(
                f,
                "{} exists already; name another directory, or move it away",
                path.display()
            ),
            Self::NoRoom { needed, free } => {
                write!(
                    f,
                    "{needed} bytes are needed and {free} are free; free space"
                )
            }
            Self::NotAFile { path } => write!(
                f,
                "{} is not a regular file; move it away, or restore into a directory",
                path.display()
            ),
            Self::Ambiguous {
                path,
                stored: [first, second],
            } => write!(
                f,
                "{} and {} both lead to {} by now, and were not alike when they were stored; \
                 restore into a directory and choose",
                first.display(),
                second.display(),
                path.display()
            ),
            Self::Reserved { path, is } => write!(f, "{} is {is}", path.display()),
        }
    }
}

/// Files that were restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// Where they are.
    pub files: Vec<PathBuf>,
    /// Where the former ones are, of those that were there.
    pub kept: Vec<PathBuf>,
    /// How many belong to whoever restored them, since only root may give a file away.
    pub not_given_back: usize,
}

/// Looks at what is to be restored and at what is in its place. `now` names the files that
/// are kept aside; nothing that is `reserved` is ever replaced.
///
/// # Errors
///
/// If the backup has no files, its manifest is not the one that was published, or there is no
/// place for the directory. That they should not be restored is no error but an objection in
/// the plan.
pub fn plan(
    backup: &Backup,
    destination: &Destination,
    reserved: &Reserved,
    now: DateTime<Utc>,
    disk: &Disk,
) -> Result<FilesPlan, Error> {
    let id = &backup.manifest.id;
    let stored = backup.manifest.files.clone();
    let stored = stored.ok_or_else(|| Error::None(id.clone()))?;
    // Paths and modes are the manifest's word: it has to be the one that was published.
    verify::published(backup, disk)?;
    let archive = backup.dir.join(&stored.artifact.name);
    reader::check_list(&archive, &stored)?;
    let mut plan = FilesPlan {
        source: id.clone(),
        directory: None,
        files: Vec::new(),
        bytes: reader::total(&stored),
        objections: Vec::new(),
        archive,
        stored,
        identities: backup.identities.clone(),
    };
    match destination {
        Destination::Directory(directory) => plan.below_directory(directory)?,
        Destination::Originals => plan.over_originals(reserved, now),
    }
    plan.check_room(disk)?;
    Ok(plan)
}

impl FilesPlan {
    fn below_directory(&mut self, directory: &Path) -> Result<(), Error> {
        let unusable = |why| Error::Unusable {
            path: directory.to_owned(),
            why,
        };
        if directory.file_name().is_none() {
            return Err(unusable("it is not the name of a directory"));
        }
        if !disk::parent(directory).is_dir() {
            return Err(unusable(
                "the directory it would be in does not exist; create that first",
            ));
        }
        if directory.symlink_metadata().is_ok() {
            let path = directory.to_owned();
            self.objections.push(Objection::Exists { path });
        }
        let planned = self.stored.entries.iter().map(|entry| PlannedFile {
            path: entry.path.clone(),
            target: below(directory, entry),
            kept_as: None,
            bytes: entry.bytes,
        });
        self.files = planned.collect();
        self.directory = Some(directory.to_owned());
        Ok(())
    }

    fn over_originals(&mut self, reserved: &Reserved, now: DateTime<Utc>) {
        let mut planned: BTreeMap<PathBuf, &StoredFile> = BTreeMap::new();
        for entry in &self.stored.entries {
            // Where the directory is missing it is made, and there is nothing to resolve.
            let target = disk::resolve(&entry.path).unwrap_or_else(|_| entry.path.clone());
            // A link that was stored with what it leads to: one file, which is written once.
            if let Some(first) = planned.get(&target) {
                if (&first.sha256, first.mode) != (&entry.sha256, entry.mode) {
                    let stored = [first.path.clone(), entry.path.clone()];
                    let path = target;
                    self.objections.push(Objection::Ambiguous { path, stored });
                }
                continue;
            }
            planned.insert(target.clone(), entry);
            let present = target.symlink_metadata().ok();
            if present.as_ref().is_some_and(|present| !present.is_file()) {
                let path = target.clone();
                self.objections.push(Objection::NotAFile { path });
            } else if let Some(is) = reserved.find(&target) {
                let path = target.clone();
                self.objections.push(Objection::Reserved { path, is });
            }
            self.files.push(PlannedFile {
                path: entry.path.clone(),
                kept_as: present.map(|_| aside(&target, now)),
                bytes: entry.bytes,
                target,
            });
        }
    }

    fn check_room(&mut self, disk: &Disk) -> Result<(), Error> {
        let mut places = BTreeSet::new();
        match &self.directory {
            Some(directory) => drop(places.insert(disk::parent(directory))),
            None => places.extend(self.files.iter().map(|file| there(&file.target))),
        }
        // Each file system is asked for all of it, since which is which is not looked at.
        let needed = self.bytes.saturating_add(MARGIN);
        for place in places {
            let free = disk.free_bytes(place)?;
            if free < needed {
                self.objections.push(Objection::NoRoom { needed, free });
                break;
            }
        }
        Ok(())
    }

    /// Carries it out.
    ///
    /// # Errors
    ///
    /// If there is an objection, the archive is not good, the file system refuses, or
    /// `watch` is cancelled. Nothing is restored then and nothing was replaced;
    /// [`Error::Incomplete`] alone comes after some were.
    pub fn execute(self, disk: &Disk, watch: &Watch) -> Result<Restored, Error> {
        if !self.objections.is_empty() {
            return Err(Error::Refused(self.objections));
        }
        let disk = disk.private();
        match &self.directory {
            Some(directory) => self.fill_directory(directory, &disk, watch),
            None => self.replace_originals(&disk, watch),
        }
    }

    fn fill_directory(
        &self,
        directory: &Path,
        disk: &Disk,
        watch: &Watch,
    ) -> Result<Restored, Error> {
        let restoring = beside(directory, ".", ".restoring");
        if restoring.exists() {
            disk.sweep(&restoring)?;
        }
        let claim = disk.claim(&restoring)?;
        let not_given_back = self.unpack(disk, watch, |entry| Some(below(&restoring, entry)))?;
        let made = self.stored.entries.iter().flat_map(|entry| {
            let below = below(&restoring, entry);
            let above = below.ancestors().skip(1).map(Path::to_owned);
            let made: Vec<_> = above
                .take_while(|path| path.starts_with(&restoring))
                .collect();
            made
        });
        for path in made.collect::<BTreeSet<_>>() {
            disk.sync_dir(&path)?;
        }
        if directory.symlink_metadata().is_ok() {
            // Somebody has made it since the plan was.
            let path = directory.to_owned();
            return Err(Error::Refused(vec![Objection::Exists { path }]));
        }
        claim.promote(directory)?;
        Ok(self.restored(not_given_back))
    }

    fn replace_originals(&self, disk: &Disk, watch: &Watch) -> Result<Restored, Error> {
        let staged = |file: &PlannedFile| beside(&file.target, ".", ".restoring");
        let target_of = |entry: &StoredFile| {
            let planned = self.files.iter().find(|file| file.path == entry.path);
            planned.map(staged)
        };
        let swapped = self.unpack(disk, watch, target_of).and_then(|owners| {
            self.swap(disk, staged)?;
            Ok(owners)
        });
        if swapped.is_err() {
            for staged in self.files.iter().map(staged) {
                if staged.exists() {
                    // The cause says more than that of tidying up after it.
                    let _ = disk.remove_file(&staged);
                }
            }
        }
        Ok(self.restored(swapped?))
    }

    /// Puts the new files, which lie beside, into the place of the present ones.
    fn swap(&self, disk: &Disk, staged: impl Fn(&PlannedFile) -> PathBuf) -> Result<(), Error> {
        let directories: BTreeSet<_> = self
            .files
            .iter()
            .map(|file| disk::parent(&file.target))
            .collect();
        let mut kept = Vec::new();
        if let Err(error) = self.keep(&directories, &mut kept, disk) {
            for kept in kept {
                // All are still in place; a second name is of no use.
                let _ = disk.remove_file(&kept);
            }
            return Err(error);
        }
        let incomplete = |replaced| {
            move |source| match replaced {
                0 => Error::Disk(source),
                _ => Error::Incomplete {
                    replaced,
                    of: self.files.len(),
                    source,
                },
            }
        };
        for (replaced, file) in self.files.iter().enumerate() {
            disk.rename(&staged(file), &file.target)
                .map_err(incomplete(replaced))?;
        }
        for directory in &directories {
            disk.sync_dir(directory)
                .map_err(incomplete(self.files.len()))?;
        }
        Ok(())
    }

    /// Gives the present files their second names, and says which have one by now.
    fn keep(
        &self,
        directories: &BTreeSet<&Path>,
        kept: &mut Vec<PathBuf>,
        disk: &Disk,
    ) -> Result<(), Error> {
        for file in &self.files {
            match &file.kept_as {
                Some(kept_as) => {
                    disk.link(&file.target, kept_as)?;
                    kept.push(kept_as.clone());
                }
                None if file.target.symlink_metadata().is_ok() => {
                    // Somebody has made it since the plan was; nobody has looked at it.
                    let path = file.target.clone();
                    return Err(Error::Refused(vec![Objection::Exists { path }]));
                }
                None => {}
            }
        }
        for directory in directories {
            disk.sync_dir(directory)?;
        }
        Ok(())
    }

    /// Writes every file, durably, under the name that `to` gives it, and says how many
    /// could not be given their owner. One that gets no name is read and compared all the same.
    fn unpack(
        &self,
        disk: &Disk,
        watch: &Watch,
        to: impl Fn(&StoredFile) -> Option<PathBuf>,
    ) -> Result<usize, Error> {
        let mut not_given_back = 0;
        let each =
            |entry: &StoredFile, attributes: &Attributes, contents: &mut reader::Contents<'_>| {
                let Some(path) = to(entry) else {
                    return contents
                        .copy_to(&mut io::sink())
                        .map_err(|error| disk::Error::new("read", &self.archive, error).into());
                };
                disk.create_dirs(disk::parent(&path))?;
                if self.directory.is_none() && path.exists() {
                    // Of a restore that was killed.
                    disk.remove_file(&path)?;
                }
                let mut file = disk.create(&path)?;
                contents
                    .copy_to(&mut file)
                    .map_err(|error| disk::Error::new("restore", &path, error))?;
                if !file.set_attributes(attributes)? {
                    not_given_back += 1;
                }
                file.sync_all()
                    .map_err(|error| disk::Error::new("sync", &path, error))?;
                Ok::<(), verify::Error>(())
            };
        let identities = self.identities.as_ref();
        reader::read(&self.archive, &self.stored, identities, disk, watch, each)?;
        Ok(not_given_back)
    }

    fn restored(&self, not_given_back: usize) -> Restored {
        let files = self.files.iter();
        Restored {
            files: files.clone().map(|file| file.target.clone()).collect(),
            kept: files.filter_map(|file| file.kept_as.clone()).collect(),
            not_given_back,
        }
    }
}

/// Where a file goes in a directory of restored ones.
fn below(directory: &Path, entry: &StoredFile) -> PathBuf {
    // The list was checked: each path has a root, and names alone after it.
    directory.join(entry.path.strip_prefix("/").unwrap_or(&entry.path))
}

/// The nearest directory above that there is.
fn there(path: &Path) -> &Path {
    path.ancestors()
        .skip(1)
        .find(|above| above.is_dir())
        .unwrap_or(Path::new("/"))
}
