//! What can go wrong at the seam, and what a disk still has after a power cut.
//!
//! A crash is played on the real directories. Until a directory is synced, every name
//! created, renamed or removed in it can be taken back; until a file is synced, its bytes
//! can. Both are recorded while a test runs and undone, newest first, when the machine
//! goes down. Names are reached through descriptors of their directories, so that a
//! directory that was renamed meanwhile is still found.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
#[cfg(test)]
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::AtFlags;
use rustix::io::Errno;

/// What a power cut takes of what was not synced. Real file systems do any of these,
/// and mixtures of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Nothing: the process was killed, the machine lives on.
    Nothing,
    /// Bytes of files; names stay (delayed allocation).
    Contents,
    /// Names in directories; bytes stay.
    Names,
    /// Both.
    Everything,
}

impl Loss {
    /// Every kind there is.
    pub const ALL: [Self; 4] = [Self::Nothing, Self::Contents, Self::Names, Self::Everything];
}

/// The operation counter and the fault it sets off.
#[derive(Debug, Default)]
pub(super) struct Seam {
    operations: AtomicUsize,
    fault: Fault,
}

#[derive(Debug, Default)]
pub(super) enum Fault {
    #[default]
    None,
    Fail {
        at: usize,
        /// Whether it is the only one to fail, or the first.
        once: bool,
    },
    Crash {
        at: usize,
        loss: Loss,
        unsynced: Mutex<Unsynced>,
    },
    /// No fault: what others do at the same time.
    #[cfg(test)]
    Meanwhile {
        at: usize,
        action: fn(&Path),
        path: PathBuf,
    },
}

impl Fault {
    pub(super) fn crash(at: usize, loss: Loss, stash: &Path) -> io::Result<Self> {
        let unsynced = Mutex::new(Unsynced::new(stash)?);
        Ok(Self::Crash { at, loss, unsynced })
    }
}

impl Seam {
    pub(super) fn new(fault: Fault) -> Self {
        Self {
            operations: AtomicUsize::new(0),
            fault,
        }
    }

    pub(super) fn operations(&self) -> usize {
        self.operations.load(Ordering::Relaxed)
    }

    /// Counts one operation and lets it pass, or not.
    pub(super) fn count(&self) -> io::Result<()> {
        let index = self.operations.fetch_add(1, Ordering::Relaxed);
        match &self.fault {
            Fault::Fail { at, once } if index == *at || index > *at && !once => {
                Err(Errno::NOSPC.into())
            }
            Fault::Crash { at, loss, unsynced } if index >= *at => {
                if index == *at {
                    lock(unsynced).lose(*loss)?;
                }
                Err(Errno::IO.into())
            }
            #[cfg(test)]
            Fault::Meanwhile { at, action, path } if index == *at => {
                action(path);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether a failing write leaves part of its bytes.
    pub(super) fn tears_writes(&self) -> bool {
        matches!(self.fault, Fault::Fail { .. })
    }

    pub(super) fn created(&self, path: &Path) -> io::Result<()> {
        self.note(|unsynced| unsynced.created(path)).map(drop)
    }

    /// A file begins to be written: so far nothing of it is durable.
    pub(super) fn begun(&self, file: &fs::File) -> io::Result<()> {
        self.note(|unsynced| unsynced.begun(file)).map(drop)
    }

    pub(super) fn synced(&self, file: &fs::File) -> io::Result<()> {
        self.note(|unsynced| unsynced.synced(file)).map(drop)
    }

    /// Keeps a second name of a file that is about to lose its own.
    pub(super) fn set_aside(&self, path: &Path) -> io::Result<Option<Name>> {
        self.note(|unsynced| unsynced.set_aside(path))
            .map(Option::flatten)
    }

    pub(super) fn renamed(&self, from: &Path, to: &Path, over: Option<Name>) -> io::Result<()> {
        self.note(|unsynced| unsynced.renamed(from, to, over))
            .map(drop)
    }

    pub(super) fn removed(&self, path: &Path, kept: Option<Name>) -> io::Result<()> {
        self.note(|unsynced| unsynced.removed(path, kept)).map(drop)
    }

    /// In place of removing an empty directory, which could not be undone; says whether it
    /// did.
    pub(super) fn stash_dir(&self, path: &Path) -> io::Result<bool> {
        self.note(|unsynced| unsynced.stash_dir(path))
            .map(|stashed| stashed.is_some())
    }

    pub(super) fn dir_synced(&self, directory: &fs::File) -> io::Result<()> {
        self.note(|unsynced| unsynced.settle(directory)).map(drop)
    }

    fn note<T>(&self, note: impl FnOnce(&mut Unsynced) -> io::Result<T>) -> io::Result<Option<T>> {
        match &self.fault {
            Fault::Crash { unsynced, .. } => note(&mut lock(unsynced)).map(Some),
            Fault::None | Fault::Fail { .. } => Ok(None),
            #[cfg(test)]
            Fault::Meanwhile { .. } => Ok(None),
        }
    }
}

/// What would be lost if the machine went down now.
#[derive(Debug)]
pub(super) struct Unsynced {
    stash: Arc<fs::File>,
    stashed: usize,
    names: Vec<Undo>,
    /// By device and inode: the file, and its bytes at the last sync.
    contents: HashMap<Identity, (fs::File, Vec<u8>)>,
}

/// A name, in a directory that may have been renamed since.
#[derive(Debug)]
pub(super) struct Name {
    directory: Arc<fs::File>,
    name: OsString,
}

/// How to take back a change of names, until `directory` is synced.
#[derive(Debug)]
struct Undo {
    directory: Identity,
    moves: Vec<(Name, Name)>,
}

type Identity = (u64, u64);

impl Unsynced {
    fn new(stash: &Path) -> io::Result<Self> {
        Ok(Self {
            stash: Arc::new(open_dir(stash)?),
            stashed: 0,
            names: Vec::new(),
            contents: HashMap::new(),
        })
    }

    fn created(&mut self, path: &Path) -> io::Result<()> {
        let away = self.stash_name();
        self.undo_by(path, vec![(Name::of(path)?, away)])
    }

    fn begun(&mut self, file: &fs::File) -> io::Result<()> {
        // Anew, not a second descriptor: written to past the cache, that could not be read
        // into any place in memory.
        let anew = format!("/proc/self/fd/{}", file.as_raw_fd());
        let anew = OpenOptions::new().read(true).write(true).open(anew)?;
        let entry = (anew, Vec::new());
        self.contents.insert(identity(file)?, entry);
        Ok(())
    }

    /// A file that was not begun here was there before, and cannot lose anything.
    fn synced(&mut self, file: &fs::File) -> io::Result<()> {
        if let Some((anew, bytes)) = self.contents.get_mut(&identity(file)?) {
            *bytes = read_back(anew)?;
        }
        Ok(())
    }

    fn set_aside(&mut self, path: &Path) -> io::Result<Option<Name>> {
        if !fs::symlink_metadata(path).is_ok_and(|found| !found.is_dir()) {
            return Ok(None);
        }
        let (name, kept) = (Name::of(path)?, self.stash_name());
        rustix::fs::linkat(
            &name.directory,
            &name.name,
            &kept.directory,
            &kept.name,
            AtFlags::empty(),
        )?;
        Ok(Some(kept))
    }

    fn renamed(&mut self, from: &Path, to: &Path, over: Option<Name>) -> io::Result<()> {
        let mut moves = vec![(Name::of(to)?, Name::of(from)?)];
        if let Some(kept) = over {
            moves.push((kept, Name::of(to)?));
        }
        self.undo_by(to, moves)
    }

    fn removed(&mut self, path: &Path, kept: Option<Name>) -> io::Result<()> {
        let moves = kept.map(|kept| Ok::<_, io::Error>((kept, Name::of(path)?)));
        self.undo_by(path, moves.into_iter().collect::<io::Result<_>>()?)
    }

    fn stash_dir(&mut self, path: &Path) -> io::Result<()> {
        let kept = self.stash_name();
        Name::of(path)?.move_to(&kept)?;
        self.undo_by(path, vec![(kept, Name::of(path)?)])
    }

    fn settle(&mut self, directory: &fs::File) -> io::Result<()> {
        let directory = identity(directory)?;
        self.names.retain(|undo| undo.directory != directory);
        Ok(())
    }

    fn lose(&mut self, loss: Loss) -> io::Result<()> {
        if matches!(loss, Loss::Names | Loss::Everything) {
            for undo in self.names.drain(..).rev() {
                for (from, to) in undo.moves {
                    from.move_to(&to)?;
                }
            }
        }
        if matches!(loss, Loss::Contents | Loss::Everything) {
            for (file, bytes) in self.contents.values() {
                file.set_len(0)?;
                file.write_all_at(bytes, 0)?;
            }
        }
        Ok(())
    }

    fn undo_by(&mut self, path: &Path, moves: Vec<(Name, Name)>) -> io::Result<()> {
        let directory = identity(&open_dir(super::parent(path))?)?;
        self.names.push(Undo { directory, moves });
        Ok(())
    }

    fn stash_name(&mut self) -> Name {
        self.stashed += 1;
        Name {
            directory: Arc::clone(&self.stash),
            name: self.stashed.to_string().into(),
        }
    }
}

impl Name {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            directory: Arc::new(open_dir(super::parent(path))?),
            name: path.file_name().unwrap_or_default().to_owned(),
        })
    }

    fn move_to(&self, to: &Self) -> io::Result<()> {
        Ok(rustix::fs::renameat(
            &self.directory,
            &self.name,
            &to.directory,
            &to.name,
        )?)
    }
}

fn lock(unsynced: &Mutex<Unsynced>) -> MutexGuard<'_, Unsynced> {
    unsynced.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_dir(path: &Path) -> io::Result<fs::File> {
    fs::File::open(path)
}

fn identity(file: &fs::File) -> io::Result<Identity> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

fn read_back(file: &fs::File) -> io::Result<Vec<u8>> {
    let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
