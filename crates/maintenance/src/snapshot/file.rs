//! Method `file`: the bytes of the pinned file, read beside `SQLite`.
//!
//! Three threads, because each would else wait for the others: this one reads and writes,
//! one hashes, one syncs what was written while more is. The sync in between is what keeps
//! the last one short, and writers of the same disk from waiting behind gigabytes. A copy
//! that is given up waits for no sync: the pin must come back at once.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
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

/// Copies `source`, as [`open`]ed, to the new file `target`, syncs it, and returns the
/// SHA-256 of what was read.
pub(super) fn copy(
    pin: &Pin,
    source: &'static File,
    target: disk::File,
    disk: &Disk,
    pace: &Pace<'_>,
) -> Result<String, Error> {
    let mut syncer = Syncer::of(disk.open(target.path())?, pace.watch)?;

    thread::scope(|scope| {
        let (to_hash, hashing) = mpsc::sync_channel(CHUNKS);
        let (used, free) = mpsc::sync_channel(CHUNKS);
        for _ in 0..CHUNKS {
            // There is room for all, and `free` listens.
            let _ = used.send(Chunk::new(vec![0; CHUNK]));
        }
        let hasher = scope.spawn(move || hash(&hashing, &used));
        let copied = Pump {
            pin,
            source,
            target,
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

/// The kept descriptor of the pinned file: if the path still names the one that was
/// pinned, and that is as long as its pages.
pub(super) fn open(pin: &Pin) -> Result<&'static File, Error> {
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
    pin: &'a Pin,
    source: &'static File,
    target: disk::File,
    pace: &'a Pace<'a>,
    to_hash: SyncSender<Chunk>,
    free: Receiver<Chunk>,
    syncer: &'a mut Syncer,
}

impl Pump<'_> {
    fn run(mut self) -> Result<(), Error> {
        let total = self.pin.facts.bytes();
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
        self.source
            .read_exact_at(bytes, offset)
            .map_err(|source| Error::Io {
                doing: "read",
                path: self.pin.path().into(),
                source,
            })?;
        self.to_hash.send(Arc::clone(&chunk)).map_err(gone)?;
        self.target.write_all(&chunk).map_err(|source| Error::Io {
            doing: "write",
            path: self.target.path().into(),
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
