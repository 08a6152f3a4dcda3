//! Method `file`: the bytes of the pinned file, read beside `SQLite`, in the process that
//! holds the pin or in another one.
//!
//! Three threads, because each would else wait for the others: this one reads and writes,
//! one hashes, one syncs what was written while more is. The sync in between is what keeps
//! the last one short, and writers of the same disk from waiting behind gigabytes. A copy
//! that is given up waits for no sync: the pin must come back at once.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, ScopedJoinHandle};

use sha2::{Digest, Sha256};

use super::sync::Syncer;
use super::{CHUNK, Error, Pace};
use crate::disk::{self, Disk};
use crate::sqlite::{Identity, Pin, kept};

/// Chunks in memory at once: enough that reading goes on while a few wait to be hashed.
const CHUNKS: usize = 8;

/// Bytes written between two syncs: what the disk is behind at most twice over.
const SYNC_EVERY: u64 = 32 << 20;

/// A chunk on its way; whoever holds the last reference may fill it again.
type Chunk = Arc<Vec<u8>>;

/// Whether the method can be used: the file is the one that was pinned, and as long as
/// its pages.
pub(super) fn fits(pin: &Pin) -> bool {
    open(pin).is_ok()
}

/// A file that somebody holds still.
pub(super) struct Source<'a> {
    /// Its path, for messages.
    pub(super) path: &'a Path,
    /// Bytes to copy.
    pub(super) bytes: u64,
    /// Fills the buffer from this offset on.
    pub(super) read: &'a dyn Fn(&mut [u8], u64) -> io::Result<()>,
}

/// Copies the pinned file.
pub(super) fn copy_pinned(
    pin: &Pin,
    raw: &Path,
    disk: &Disk,
    pace: &Pace<'_>,
) -> Result<String, Error> {
    let file = open(pin)?;
    let source = Source {
        path: pin.path(),
        bytes: pin.facts.bytes(),
        read: &|buffer, offset| file.read_exact_at(buffer, offset),
    };
    copy(&source, raw, disk, pace)
}

/// Copies to the new file `raw`, syncs it, and returns the SHA-256 of what was read.
pub(super) fn copy(
    source: &Source<'_>,
    raw: &Path,
    disk: &Disk,
    pace: &Pace<'_>,
) -> Result<String, Error> {
    let target = disk.create(raw)?;
    let mut syncer = Syncer::of(disk.open(raw)?, pace.watch)?;

    thread::scope(|scope| {
        let (to_hash, hashing) = mpsc::sync_channel(CHUNKS);
        let (used, free) = mpsc::sync_channel(CHUNKS);
        for _ in 0..CHUNKS {
            // There is room for all, and `free` listens.
            let _ = used.send(Chunk::new(vec![0; CHUNK]));
        }
        let hasher = scope.spawn(move || hash(&hashing, &used));
        let copied = Pump {
            source,
            target,
            raw,
            pace,
            to_hash,
            free,
            syncer: &mut syncer,
        }
        .run();
        // The pump is gone, and with it its end of the channel: the thread finishes.
        let sum = joined(hasher, "hashing");
        copied?;
        syncer.finish()?;
        sum
    })
}

/// The kept descriptor of the pinned file, if it is as long as its pages.
fn open(pin: &Pin) -> Result<&'static File, Error> {
    let identity = Identity {
        device: pin.facts.device,
        inode: pin.facts.inode,
    };
    let file = kept::descriptor(pin.path(), identity)?;
    let found = file
        .metadata()
        .map_err(|source| Error::Io {
            doing: "see the size of",
            path: pin.path().into(),
            source,
        })?
        .len();
    let expected = pin.facts.bytes();
    if found == expected {
        Ok(file)
    } else {
        Err(Error::Size {
            path: pin.path().into(),
            expected,
            found,
        })
    }
}

/// Reads, hands on to be hashed, writes, and says what can be synced.
struct Pump<'a> {
    source: &'a Source<'a>,
    target: disk::File,
    raw: &'a Path,
    pace: &'a Pace<'a>,
    to_hash: SyncSender<Chunk>,
    free: Receiver<Chunk>,
    syncer: &'a mut Syncer,
}

impl Pump<'_> {
    fn run(mut self) -> Result<(), Error> {
        let total = self.source.bytes;
        let mut done = 0;
        let mut unsynced = 0;
        while done < total {
            self.pace.go_on()?;
            let bytes = self.step(done, total - done)?;
            done += bytes;
            unsynced += bytes;
            if unsynced >= SYNC_EVERY {
                unsynced = 0;
                self.syncer.sync()?;
            }
            self.pace.advance(bytes, done)?;
        }
        Ok(())
    }

    /// Copies the chunk at `offset`; says how many bytes that were.
    fn step(&mut self, offset: u64, left: u64) -> Result<u64, Error> {
        let gone = |_| Error::Panicked("hashing");
        let mut chunk = self.free.recv().map_err(|_| Error::Panicked("hashing"))?;
        let length = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        let bytes = Arc::get_mut(&mut chunk).ok_or(Error::Panicked("hashing"))?;
        bytes.resize(length, 0);
        (self.source.read)(bytes, offset).map_err(|source| Error::Io {
            doing: "read",
            path: self.source.path.into(),
            source,
        })?;
        self.to_hash.send(Arc::clone(&chunk)).map_err(gone)?;
        self.target.write_all(&chunk).map_err(|source| Error::Io {
            doing: "write",
            path: self.raw.into(),
            source,
        })?;
        Ok(length as u64)
    }
}

fn hash(chunks: &Receiver<Chunk>, used: &SyncSender<Chunk>) -> String {
    let mut sum = Sha256::new();
    for chunk in chunks {
        sum.update(&*chunk);
        // The pump does not want it back once it has read everything.
        let _ = used.send(chunk);
    }
    format!("{:x}", sum.finalize())
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>, doing: &'static str) -> Result<T, Error> {
    thread.join().map_err(|_| Error::Panicked(doing))
}
