//! Writing past the kernel's cache (`O_DIRECT`, open(2)).
//!
//! What is copied under a pin, and what is stored of it, is written at once to the device.
//! Written through the cache it would be copied once more in memory, which takes most of the processor time of a
//! copy, and gigabytes would wait to be written back, behind which every commit that is
//! synced to the same disk has to wait in its turn.

use std::io::{self, Write};
use std::ops::{Deref, DerefMut};
use std::path::Path;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::File;

/// What offset, length and place in memory of a direct write are multiples of: the largest
/// block of common devices, in bytes.
const BLOCK: usize = 4096;

/// A new file whose blocks are written past the cache, where its file system can do that;
/// elsewhere, and from the first write on that is no whole number of blocks, through it.
/// Like the [`File`] it is, it is durable only when synced.
#[derive(Debug)]
pub struct Direct {
    file: File,
    is_direct: bool,
}

impl Direct {
    /// For a file nothing was written to yet.
    #[must_use]
    pub fn new(file: File) -> Self {
        let mut this = Self {
            file,
            is_direct: false,
        };
        // Refused by file systems that have no such thing.
        this.is_direct = this.set(OFlags::DIRECT).is_ok();
        this
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The file, to be synced.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether what is written next goes past the cache, if it is whole blocks.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.is_direct
    }

    /// The flags of the descriptor, with `direct` for that one.
    fn set(&self, direct: OFlags) -> io::Result<()> {
        let flags = fcntl_getfl(&self.file.inner)?.difference(OFlags::DIRECT);
        Ok(fcntl_setfl(&self.file.inner, flags | direct)?)
    }

    fn through_the_cache(&mut self) -> io::Result<()> {
        self.set(OFlags::empty())?;
        self.is_direct = false;
        Ok(())
    }
}

impl Write for Direct {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.is_direct && !buffer.len().is_multiple_of(BLOCK) {
            self.through_the_cache()?;
        }
        match self.file.write(buffer) {
            // Larger blocks than any known: nothing was written.
            Err(error) if self.is_direct && error.kind() == io::ErrorKind::InvalidInput => {
                self.through_the_cache()?;
                self.file.write(buffer)
            }
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Bytes at a place in memory a [`Direct`] write can be made from.
#[derive(Debug)]
pub struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    /// This many bytes, and never more.
    #[must_use]
    pub fn zeroed(length: usize) -> Self {
        let bytes = vec![0; length + BLOCK];
        // `usize::MAX` where it cannot be told: then writes go through the cache.
        let start = bytes.as_ptr().align_offset(BLOCK);
        Self {
            start: if start <= BLOCK { start } else { 0 },
            bytes,
            length,
        }
    }

    /// Makes it `length` bytes long, at most as many as at first.
    pub fn set_len(&mut self, length: usize) {
        self.length = length.min(self.bytes.len() - BLOCK);
    }
}

impl Deref for Aligned {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..][..self.length]
    }
}

impl AsRef<[u8]> for Aligned {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..][..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;

    /// Lengths of writes that end on a block, and then not.
    const WRITES: [usize; 6] = [BLOCK, 3 * BLOCK, 1, BLOCK, 511, 7];

    #[test]
    fn what_is_written_is_there_whatever_its_length_and_place() {
        // In memory, and on a disk: not both have direct writes.
        for directory in [
            crate::catalogue::testing::memory_dir(),
            tempfile::tempdir().expect("a directory"),
        ] {
            for shift in [0, 1, 512] {
                let disk = Disk::default();
                let path = directory.path().join(format!("file-{shift}"));
                let mut file = Direct::new(disk.create(&path).expect("a new file"));
                let mut expected = Vec::new();
                for (nth, length) in (1..).zip(WRITES) {
                    let mut bytes = Aligned::zeroed(shift + length);
                    bytes.fill(nth);
                    file.write_all(&bytes[shift..]).expect("it is written");
                    expected.extend_from_slice(&bytes[shift..]);
                }
                let found = disk.read(&path, 1 << 20).expect("it is read");
                assert!(found == expected, "{shift}");
            }
        }
    }

    #[test]
    fn it_is_direct_until_a_write_is_no_whole_block() -> io::Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("file");
        let mut file = Direct::new(Disk::default().create(&path).expect("a new file"));
        // Not every file system has direct writes; those that do say so.
        let is_direct = |file: &Direct| {
            let flags = fcntl_getfl(&file.file.inner).expect("flags");
            flags.contains(OFlags::DIRECT)
        };
        assert_eq!(is_direct(&file), file.is_direct);
        file.write_all(&Aligned::zeroed(BLOCK))?;
        assert_eq!(is_direct(&file), file.is_direct);
        file.write_all(b"x")?;
        assert!(!file.is_direct && !is_direct(&file));
        Ok(())
    }

    #[test]
    fn aligned_bytes_are_and_stay_where_blocks_begin() {
        let mut bytes = Aligned::zeroed(2 * BLOCK);
        assert_eq!(bytes.as_ptr().align_offset(BLOCK), 0);
        bytes[BLOCK - 1] = 7;
        bytes.set_len(BLOCK);
        assert_eq!((bytes.len(), bytes[BLOCK - 1]), (BLOCK, 7));
        bytes.set_len(usize::MAX);
        assert_eq!(bytes.len(), 2 * BLOCK);
        assert_eq!(bytes.as_ptr().align_offset(BLOCK), 0);
    }
}
