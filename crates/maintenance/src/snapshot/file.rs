//! Method `file`: the bytes of the pinned file, read beside `SQLite`, in the process that
//! holds the pin or in another one.
//!
//! ```text
//!  read ─▶ write, past the cache ─▶ hash ─▶ (the chunk is filled again)
//!             └─ every so often ─▶ sync
//! ```
//!
//! Four threads, because each would else wait for the others: the disk has something to
//! write while the next chunk is read and the last one hashed. Past the cache
//! ([`Direct`]), so that commits of the service do not wait behind gigabytes that are yet
//! to be written. What is left to sync then is short: the sizes of the file, and what the
//! device keeps to itself. While there is time for those who write, it goes by smaller pieces and
//! rests ([`Ease`]). A copy that is given up waits for no sync: the pin must come
//! back at once.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::ease::Ease;
use super::sync::Syncer;
use super::{CHUNK, Error, Pace};
use crate::disk::{self, Aligned, Direct, Disk};
use crate::priority;
use crate::sqlite::{Identity, Pin, kept};

/// Chunks in memory at once: enough that reading goes on while a few wait to be hashed.
const CHUNKS: usize = 8;

/// Bytes written between two syncs: what the disk is behind at most twice over.
const SYNC_EVERY: u64 = 32 << 20;

/// A file that somebody holds still.
pub(super) struct Source<'a> {
    /// Its path, for messages.
    pub(super) path: &'a Path,
    /// Bytes to copy.
    pub(super) bytes: u64,
    /// That there is time for those who write meanwhile.
    pub(super) ease: Option<Ease<'a>>,
    /// Fills the buffer from this offset on.
    pub(super) read: &'a dyn Fn(&mut [u8], u64) -> io::Result<()>,
}

impl Source<'_> {
    /// Bytes read and written at a time.
    fn chunk(&self) -> usize {
        if self.ease.as_ref().is_some_and(Ease::lasts) {
            disk::REQUEST
        } else {
            CHUNK
        }
    }
}

/// What a copy came to.
pub(super) struct Made {
    /// SHA-256 of what was read.
    pub(super) sha256: String,
    /// How long it left the disk to others.
    pub(super) rested: Duration,
}

/// Copies to the new file `target` and syncs it.
pub(super) fn copy(
    source: &Source<'_>,
    target: disk::File,
    disk: &Disk,
    pace: &Pace<'_>,
) -> Result<Made, Error> {
    let syncer = Syncer::of(disk.open(target.path())?, pace.watch)?;
    let target = Direct::new(target);

    thread::scope(|scope| {
        let (filled, to_write) = mpsc::sync_channel(CHUNKS);
        let (written, to_hash) = mpsc::sync_channel(CHUNKS);
        let (used, free) = mpsc::sync_channel(CHUNKS);
        for _ in 0..CHUNKS {
            // There is room for all, and `free` listens.
            let _ = used.send(Aligned::zeroed(CHUNK));
        }
        let hasher = scope.spawn(move || hash(&to_hash, &used));
        let writer = Writer {
            target,
            ease: source.ease.as_ref(),
            pace,
            syncer,
        };
        let writer = scope.spawn(move || writer.run(&to_write, &written));
        let read = Reader {
            source,
            pace,
            free,
            filled,
        }
        .run();
        // The reader is gone, and with it its end of the first channel: the others finish,
        // one after the other. Whoever stops before the one in front of it has the cause.
        let (wrote, sum) = (joined(writer, "writing"), joined(hasher, "hashing"));
        let (syncer, rested) = wrote??;
        let sha256 = sum?;
        read?;
        syncer.finish()?;
        Ok(Made { sha256, rested })
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

/// Fills chunks.
struct Reader<'a> {
    source: &'a Source<'a>,
    pace: &'a Pace<'a>,
    free: Receiver<Aligned>,
    filled: SyncSender<Aligned>,
}

impl Reader<'_> {
    fn run(self) -> Result<(), Error> {
        let total = self.source.bytes;
        let mut done = 0;
        while done < total {
            self.pace.go_on()?;
            let bytes = self.step(done, total - done)?;
            done += bytes;
            self.pace.advance(bytes, done)?;
        }
        Ok(())
    }

    /// Hands on the chunk at `offset`; says how many bytes that were.
    fn step(&self, offset: u64, left: u64) -> Result<u64, Error> {
        let mut chunk = self.free.recv().map_err(|_| Error::Panicked("hashing"))?;
        let most = self.source.chunk();
        chunk.set_len(usize::try_from(left).map_or(most, |left| left.min(most)));
        (self.source.read)(&mut chunk, offset).map_err(|source| Error::Io {
            doing: "read",
            path: self.source.path.into(),
            source,
        })?;
        let bytes = chunk.len() as u64;
        let gone = |_| Error::Panicked("writing");
        self.filled.send(chunk).map_err(gone)?;
        Ok(bytes)
    }
}

/// Writes chunks in their order, and says what can be synced; the rest is left to sync.
struct Writer<'a> {
    target: Direct,
    ease: Option<&'a Ease<'a>>,
    pace: &'a Pace<'a>,
    syncer: Syncer,
}

impl Writer<'_> {
    #[expect(
        clippy::disallowed_methods,
        reason = "measures how long a write takes, and leaves the disk to others for as long"
    )]
    fn run(
        mut self,
        to_write: &Receiver<Aligned>,
        written: &SyncSender<Aligned>,
    ) -> Result<(Syncer, Duration), Error> {
        let mut unsynced = 0;
        let mut rested = Duration::ZERO;
        for chunk in to_write {
            self.pace.go_on()?;
            let began = Instant::now();
            self.target.write_all(&chunk).map_err(|source| Error::Io {
                doing: "write",
                path: self.target.path().into(),
                source,
            })?;
            if let Some(ease) = self.ease.filter(|ease| ease.lasts()) {
                let wrote = Instant::now();
                self.pace.watch.pause(ease.rest(wrote - began, wrote));
                rested += wrote.elapsed();
            }
            unsynced += chunk.len() as u64;
            let gone = |_| Error::Panicked("hashing");
            written.send(chunk).map_err(gone)?;
            if unsynced >= SYNC_EVERY {
                unsynced = 0;
                self.syncer.sync()?;
            }
        }
        Ok((self.syncer, rested))
    }
}

fn hash(chunks: &Receiver<Aligned>, used: &SyncSender<Aligned>) -> String {
    let mut sum = Sha256::new();
    for chunk in chunks {
        sum.update(&*chunk);
        priority::give_way();
        // The reader does not want it back once it has read everything.
        let _ = used.send(chunk);
    }
    format!("{:x}", sum.finalize())
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>, doing: &'static str) -> Result<T, Error> {
    thread.join().map_err(|_| Error::Panicked(doing))
}
