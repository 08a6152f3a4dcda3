//! Writing a large file beside a service whose commits go to the same device.

use std::io::{self, Write};

use super::{Aligned, Direct, Error, File, REQUEST};

/// Bytes between two syncs of what is written past the cache: there is what the file system
/// keeps about the file, what the device keeps to itself, and, of a file system that has direct
/// writes in name only, all of it.
const SYNC_EVERY: u64 = 4 << 20;

/// Bytes between two syncs of what is written through the cache: that much goes to the device
/// at once, and a service's commits wait behind it.
const SYNC_CACHED_EVERY: u64 = 1 << 20;

/// A new file that is written by and by: [`REQUEST`] bytes at a time and past the cache, where
/// its file system can do that. It is synced every so often, so that no sync has much to do,
/// and leaves nothing in the cache. Durable once it is finished.
#[derive(Debug)]
pub struct Steady {
    to: Direct,
    request: Aligned,
    filled: usize,
    unsynced: u64,
    sync_every: u64,
}

impl Steady {
    /// For a file nothing was written to yet.
    #[must_use]
    pub fn new(file: File) -> Self {
        let to = Direct::new(file);
        Self {
            sync_every: if to.is_direct() {
                SYNC_EVERY
            } else {
                SYNC_CACHED_EVERY
            },
            to,
            request: Aligned::zeroed(REQUEST),
            filled: 0,
            unsynced: 0,
        }
    }

    /// Writes what is left, and makes all of it durable.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn finish(mut self) -> Result<(), Error> {
        let failed = |doing, file: &File, error| Error::new(doing, file.path(), error);
        self.pass_on()
            .map_err(|error| failed("write", self.to.file(), error))?;
        let file = self.to.file();
        file.sync_all()
            .map_err(|error| failed("sync", file, error))?;
        file.forget_cached();
        Ok(())
    }

    /// Writes what was collected.
    fn pass_on(&mut self) -> io::Result<()> {
        self.to.write_all(&self.request[..self.filled])?;
        self.unsynced += self.filled as u64;
        self.filled = 0;
        if self.unsynced >= self.sync_every {
            self.unsynced = 0;
            let file = self.to.file();
            file.sync_data()?;
            file.forget_cached();
        }
        Ok(())
    }
}

impl Write for Steady {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.filled == REQUEST {
            self.pass_on()?;
        }
        let taken = buffer.len().min(REQUEST - self.filled);
        self.request[self.filled..][..taken].copy_from_slice(&buffer[..taken]);
        self.filled += taken;
        Ok(taken)
    }

    /// Nothing: a request is written when it is full, and the last one by [`Self::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;

    /// The bytes that `lengths` give when they are written one after the other.
    fn written(directory: &std::path::Path, lengths: &[usize]) -> (Vec<u8>, Vec<u8>) {
        let disk = Disk::default();
        let path = directory.join("file");
        let mut file = Steady::new(disk.create(&path).expect("a new file"));
        // A sync after each third request.
        file.sync_every = 3 * REQUEST as u64;
        let mut expected = Vec::new();
        for (nth, &length) in (1..).zip(lengths) {
            let bytes = vec![nth; length];
            file.write_all(&bytes).expect("it is written");
            expected.extend(bytes);
        }
        file.finish().expect("it is durable");
        let found = disk.read(&path, 1 << 30).expect("it is read");
        disk.remove_file(&path).expect("it is removed");
        (found, expected)
    }

    #[test]
    fn what_was_written_is_there_whatever_it_was_cut_into() {
        for directory in [
            crate::catalogue::testing::memory_dir(),
            tempfile::tempdir().expect("a directory"),
        ] {
            for lengths in [
                &[][..],
                &[1],
                &[REQUEST],
                &[REQUEST, 1],
                &[1, REQUEST],
                &[3 * REQUEST + 511, 2 * REQUEST],
                &[5, 3 << 20, REQUEST - 5],
            ] {
                let (found, expected) = written(directory.path(), lengths);
                assert!(found == expected, "{lengths:?}");
            }
        }
    }

    #[test]
    fn a_write_or_a_sync_that_fails_is_told_and_not_retried() {
        let directory = tempfile::tempdir().expect("a directory");
        let bytes = vec![7; 2 * REQUEST + 1];
        let mut failed = 0;
        for nth in 0.. {
            let disk = Disk::failing_at(nth);
            let path = directory.path().join(format!("{nth}"));
            let Ok(file) = disk.create(&path) else {
                continue;
            };
            let mut file = Steady::new(file);
            file.sync_every = 1;
            let done = match file.write_all(&bytes) {
                Ok(()) => file.finish().is_ok(),
                Err(_) => false,
            };
            if disk.operations() <= nth {
                assert!(done);
                break;
            }
            assert!(!done, "{nth}");
            // Nothing more was tried.
            assert_eq!(disk.operations(), nth + 1);
            failed += 1;
        }
        // Three writes with a sync each, and the last sync.
        assert_eq!(failed, 7);
    }
}
