//! Reads an archive of files by the list its manifest has, and takes nothing else.

use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};
use zstd::zstd_safe::DParameter;

use super::member;
use crate::catalogue::{StoredFile, StoredFiles};
use crate::disk::{self, Attributes, Disk};
use crate::encryption::Identities;
use crate::snapshot::Watch;
use crate::verify::{self, Error};

/// What a member takes at most besides its contents: its header, and a long name with a
/// header of its own (`PATH_MAX` is 4096 on Linux), both rounded up to blocks.
const OVERHEAD: u64 = 16 << 10;

/// Largest zstd window read (4 MiB, as its base-2 logarithm), as of databases.
const WINDOW_LOG: u32 = 22;

/// Bytes read at a time.
const CHUNK: usize = 64 << 10;

/// Reads a stored archive back and compares everything there is to compare: checksums of
/// the file and of the archive inside, and each member with its entry. Of one that is
/// encrypted, without `identities`, the checksum of the file alone.
///
/// # Errors
///
/// [`Error::Corrupt`] if anything differs; [`Error::Closed`] if it is for others; or if it
/// cannot be read, or `watch` is cancelled.
pub fn check(
    path: &Path,
    stored: &StoredFiles,
    identities: Option<&Identities>,
    disk: &Disk,
    watch: &Watch,
) -> Result<(), Error> {
    if stored.artifact.encrypted.is_some() && identities.is_none() {
        check_list(path, stored)?;
        return verify::artifact(path, &stored.artifact, None, disk, watch);
    }
    read(path, stored, identities, disk, watch, |_, _, contents| {
        contents
            .copy_to(&mut io::sink())
            .map_err(|error| broken(path, error))
    })
}

/// Reads a stored archive and hands each member to `each`, in their order, which has to
/// read all of it. Only then, after `each` has returned, is it compared with its checksum.
pub(super) fn read(
    path: &Path,
    stored: &StoredFiles,
    identities: Option<&Identities>,
    disk: &Disk,
    watch: &Watch,
    mut each: impl FnMut(&StoredFile, &Attributes, &mut Contents<'_>) -> Result<(), Error>,
) -> Result<(), Error> {
    check_list(path, stored)?;
    verify::artifact(path, &stored.artifact, identities, disk, watch)?;

    watch.begin("reading files", Some(total(stored)));
    let broken = |error| broken(path, error);
    let from = verify::opened(path, &stored.artifact, disk.open(path)?, identities)?;
    let mut decoder = zstd::Decoder::new(from).map_err(broken)?;
    decoder
        .set_parameter(DParameter::WindowLogMax(WINDOW_LOG))
        .map_err(broken)?;
    let mut archive = tar::Archive::new(decoder.take(stored.artifact.raw_bytes));
    let mut members = archive.entries().map_err(broken)?;
    for entry in &stored.entries {
        let Some(found) = members.next() else {
            return Err(differs(
                path,
                format!("{} is not in it", entry.path.display()),
            ));
        };
        let mut found = found.map_err(broken)?;
        let attributes = attributes(path, entry, &found)?;
        let mut contents = Contents {
            from: &mut found,
            bytes: 0,
            hasher: Sha256::new(),
            watch,
        };
        each(entry, &attributes, &mut contents)?;
        if let Some(why) = watch.cancelled() {
            return Err(Error::Cancelled { why });
        }
        if contents.bytes != entry.bytes || contents.sum() != entry.sha256 {
            return Err(differs(
                path,
                format!("{} is not as it was", entry.path.display()),
            ));
        }
    }
    match members.next() {
        None => Ok(()),
        Some(_) => Err(differs(path, "there is more in it than the manifest says")),
    }
}

/// That the list itself leads nowhere it should not: a manifest is input too.
pub(super) fn check_list(path: &Path, stored: &StoredFiles) -> Result<(), Error> {
    let mut room: u64 = 2 * OVERHEAD;
    let mut last: Option<&Path> = None;
    for entry in &stored.entries {
        let listed = entry.path.display();
        if member(&entry.path).is_none() {
            let finding = format!("the manifest lists {listed:?}, which is no path to a file");
            return Err(differs(path, finding));
        }
        if last.is_some_and(|last| last >= entry.path.as_path()) {
            let finding = format!("the manifest lists {listed} twice, or not in order");
            return Err(differs(path, finding));
        }
        last = Some(&entry.path);
        room = room.saturating_add(entry.bytes).saturating_add(OVERHEAD);
    }
    // A name, too, is read into memory whatever length it claims to have.
    if stored.artifact.raw_bytes > room || stored.artifact.raw_bytes < total(stored) {
        let finding = "the manifest lists files of another size than the archive's";
        return Err(differs(path, finding));
    }
    Ok(())
}

/// Bytes of all files, as they are listed.
pub(super) fn total(stored: &StoredFiles) -> u64 {
    let bytes = stored.entries.iter().map(|entry| entry.bytes);
    bytes.fold(0, u64::saturating_add)
}

/// What a member says of itself, if it is the one that is listed.
fn attributes<R: Read>(
    path: &Path,
    entry: &StoredFile,
    found: &tar::Entry<'_, R>,
) -> Result<Attributes, Error> {
    let header = found.header();
    let is_listed = member(&entry.path)
        .is_some_and(|listed| listed.as_os_str().as_encoded_bytes() == &*found.path_bytes());
    if !is_listed {
        let name = String::from_utf8_lossy(&found.path_bytes()).into_owned();
        let finding = format!("it has {name:?} where {} is listed", entry.path.display());
        return Err(differs(path, finding));
    }
    if header.entry_type() != tar::EntryType::Regular {
        let finding = format!("{} is not a regular file in it", entry.path.display());
        return Err(differs(path, finding));
    }
    if found.size() != entry.bytes {
        let (is, listed) = (found.size(), entry.bytes);
        let finding = format!(
            "{} has {is} bytes in it, not {listed}",
            entry.path.display()
        );
        return Err(differs(path, finding));
    }
    let mode = header.mode().map_err(|error| broken(path, error))?;
    if mode != entry.mode {
        let (name, listed) = (entry.path.display(), entry.mode);
        let finding = format!("{name} has mode {mode:o} in it, not {listed:o}");
        return Err(differs(path, finding));
    }
    let number = |number: io::Result<u64>| number.ok().and_then(|number| number.try_into().ok());
    Ok(Attributes {
        mode,
        owner: number(header.uid()).zip(number(header.gid())),
        modified: header.mtime().map_err(|error| broken(path, error))?,
    })
}

/// The contents of a member, summed up as they are read.
pub(super) struct Contents<'a> {
    from: &'a mut dyn Read,
    bytes: u64,
    hasher: Sha256,
    watch: &'a Watch,
}

impl Contents<'_> {
    /// Writes them all; ends early if the watch is cancelled.
    pub(super) fn copy_to(&mut self, to: &mut impl io::Write) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK];
        while self.watch.cancelled().is_none() {
            let read = self.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            to.write_all(&buffer[..read])?;
        }
        Ok(())
    }

    fn sum(self) -> String {
        format!("{:x}", self.hasher.finalize())
    }
}

impl Read for Contents<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.bytes += read as u64;
        self.hasher.update(&buffer[..read]);
        self.watch.advance(read as u64);
        Ok(read)
    }
}

fn differs(path: &Path, finding: impl Into<String>) -> Error {
    Error::Corrupt {
        path: path.to_owned(),
        findings: vec![finding.into()],
    }
}

/// What the operating system says is trouble with the disk; the rest is damage.
fn broken(path: &Path, error: io::Error) -> Error {
    if error.raw_os_error().is_some() {
        return disk::Error::new("read", path, error).into();
    }
    differs(path, format!("it is not an archive of files: {error}"))
}
