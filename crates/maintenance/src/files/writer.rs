//! Stores files: gathered in a tar archive, which is then compressed like a database.

use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{Choice, Chosen, Error, LeftOut, Reserved, Why, member, reader};
use crate::catalogue::{Draft, StoredFile, StoredFiles};
use crate::config::Compression;
use crate::disk::{self, Disk, File};
use crate::encryption::Seal;
use crate::snapshot::Watch;
use crate::verify;

/// How often a file is read that changes meanwhile.
const ATTEMPTS: usize = 3;

/// zstd's level for an archive if databases are not compressed: what `zstd` itself takes.
const LEVEL: i32 = 3;

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    /// What is stored; `None`: there was nothing to be.
    pub files: Option<StoredFiles>,
    /// What was wanted and is not stored.
    pub left_out: Vec<LeftOut>,
}

/// Stores what was chosen in a draft, for its owner alone to read, and reads it back.
/// `limit` is in bytes of all files together.
///
/// # Errors
///
/// If the archive cannot be written or does not read back, the files have grown beyond
/// `limit`, or `watch` is cancelled. What cannot be read of them is left out.
pub fn store(
    choice: Choice,
    limit: u64,
    reserved: &Reserved,
    draft: &Draft,
    compression: Compression,
    disk: &Disk,
    watch: &Watch,
) -> Result<Stored, Error> {
    let Choice {
        files,
        mut left_out,
    } = choice;
    if files.is_empty() {
        let files = None;
        return Ok(Stored { files, left_out });
    }
    let disk = disk.private();
    let tar = draft.tar_path();
    watch.begin(
        "storing files",
        Some(files.iter().map(|file| file.bytes).sum()),
    );
    let mut archive = Archive {
        tar: tar::Builder::new(Measured::new(disk.create(&tar)?)),
        reserved,
        disk: &disk,
        watch,
    };
    let mut entries = Vec::new();
    let mut stored = 0;
    for file in &files {
        match archive.add(file)? {
            Ok(entry) => {
                stored += entry.bytes;
                if stored > limit {
                    return Err(Error::TooLarge {
                        limit,
                        largest: entry.path,
                        bytes: entry.bytes,
                    });
                }
                entries.push(entry);
            }
            Err(why) => left_out.push(LeftOut {
                path: file.path.clone(),
                why,
            }),
        }
    }
    archive.finish()?;
    let files = if entries.is_empty() {
        None
    } else {
        let level = match compression {
            Compression::Zstd(level) => level,
            Compression::None => LEVEL,
        };
        let path = draft.files_path();
        let compression = Compression::Zstd(level);
        let seal = draft.seal();
        let artifact = verify::store(&tar, &path, compression, seal, &disk, watch)?;
        let files = StoredFiles { artifact, entries };
        reader::check(&path, &files, seal.map(Seal::identities), &disk, watch)?;
        Some(files)
    };
    disk.remove_file(&tar)?;
    Ok(Stored { files, left_out })
}

struct Archive<'a> {
    tar: tar::Builder<Measured>,
    reserved: &'a Reserved,
    disk: &'a Disk,
    watch: &'a Watch,
}

/// Why a member was taken back.
enum Failed {
    /// The file changed while it was read.
    Changed,
    /// It cannot be stored.
    Left(Why),
    /// The archive cannot be written.
    Fatal(Error),
}

impl Archive<'_> {
    /// Adds a whole file, or nothing and says why.
    fn add(&mut self, file: &Chosen) -> Result<Result<StoredFile, Why>, Error> {
        let begins = self.tar.get_ref().bytes;
        for _ in 0..ATTEMPTS {
            let failed = match self.append(&file.path) {
                Ok(entry) => return Ok(Ok(entry)),
                Err(failed) => failed,
            };
            if let Failed::Fatal(error) = failed {
                return Err(error);
            }
            self.tar.get_mut().cut(begins)?;
            if let Failed::Left(why) = failed {
                return Ok(Err(why));
            }
        }
        Ok(Err(Why::Changing))
    }

    fn append(&mut self, path: &Path) -> Result<StoredFile, Failed> {
        if let Some(why) = self.watch.cancelled() {
            return Err(Failed::Fatal(Error::Cancelled { why }));
        }
        // What was chosen need not be what has the name by now.
        if let Some(what) = self.reserved.find(path) {
            return Err(Failed::Left(Why::Reserved(what)));
        }
        let name = member(path).ok_or(Failed::Left(Why::Unnameable))?;
        let file = self
            .disk
            .open(path)
            .map_err(|error| unreadable(&error.source))?;
        let before = seen(&file)?;
        let mut header = tar::Header::new_gnu();
        header.set_size(before.bytes);
        header.set_mode(before.mode);
        header.set_uid(before.owner.0.into());
        header.set_gid(before.owner.1.into());
        header.set_mtime(before.modified.0.try_into().unwrap_or(0));
        let mut from = Contents {
            file,
            left: before.bytes,
            bytes: 0,
            hasher: Sha256::new(),
            failed: None,
            watch: self.watch,
        };
        let appended = self.tar.append_data(&mut header, name, &mut from);
        if let Some(error) = from.failed.take() {
            return Err(unreadable(&error));
        }
        appended.map_err(|source| {
            let path = self.tar.get_ref().file.path();
            Failed::Fatal(disk::Error::new("write", path, source).into())
        })?;
        if let Some(why) = self.watch.cancelled() {
            return Err(Failed::Fatal(Error::Cancelled { why }));
        }
        // It may have grown within one tick of the clock that stamps it.
        let longer = from
            .file
            .read(&mut [0])
            .map_err(|error| unreadable(&error))?
            > 0;
        if longer || from.bytes != before.bytes || seen(&from.file)? != before {
            return Err(Failed::Changed);
        }
        Ok(StoredFile {
            path: path.to_owned(),
            bytes: from.bytes,
            sha256: format!("{:x}", from.hasher.finalize()),
            mode: before.mode,
        })
    }

    /// Ends the archive. It need not be durable: what is made of it will be.
    fn finish(self) -> Result<(), Error> {
        let path = self.tar.get_ref().file.path().to_owned();
        let ended = self.tar.into_inner();
        ended.map_err(|source| disk::Error::new("write", &path, source))?;
        Ok(())
    }
}

/// What shows that a file has changed, as far as the clock of its file system is fine
/// enough.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    bytes: u64,
    mode: u32,
    owner: (u32, u32),
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

fn seen(file: &File) -> Result<Seen, Failed> {
    let found = file.metadata().map_err(|error| unreadable(&error.source))?;
    Ok(Seen {
        bytes: found.len(),
        mode: found.mode() & 0o7777,
        owner: (found.uid(), found.gid()),
        modified: (found.mtime(), found.mtime_nsec()),
        changed: (found.ctime(), found.ctime_nsec()),
    })
}

fn unreadable(error: &io::Error) -> Failed {
    Failed::Left(Why::unreadable(error))
}

/// A file as it goes into the archive: as many bytes as its header says, or fewer.
struct Contents<'a> {
    file: File,
    left: u64,
    bytes: u64,
    hasher: Sha256,
    /// What the archive's writer could not tell from an error of its own.
    failed: Option<io::Error>,
    watch: &'a Watch,
}

impl Read for Contents<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.watch.cancelled().is_some() {
            return Ok(0);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        let read = match self.file.read(&mut buffer[..most]) {
            Ok(read) => read,
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                return Err(kind.into());
            }
        };
        self.left -= read as u64;
        self.bytes += read as u64;
        self.hasher.update(&buffer[..read]);
        self.watch.advance(read as u64);
        Ok(read)
    }
}

/// The archive's file, with its length.
struct Measured {
    file: File,
    bytes: u64,
}

impl Measured {
    fn new(file: File) -> Self {
        Self { file, bytes: 0 }
    }

    /// Takes back what came after.
    fn cut(&mut self, bytes: u64) -> Result<(), disk::Error> {
        self.file.truncate(bytes)?;
        self.bytes = bytes;
        Ok(())
    }
}

impl Write for Measured {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
