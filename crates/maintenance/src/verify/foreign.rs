//! Databases that were not made here. There is no manifest to compare them with, so all
//! that can be said is whether `SQLite` takes them for sound.

use std::io::{self, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::artifact::{failed, pump};
use super::{Error, Report, structure};
use crate::catalogue::{Foreign, Form};
use crate::config::Depth;
use crate::disk::{self, Disk, File, Steady};
use crate::snapshot::Watch;

/// The database header (<https://www.sqlite.org/fileformat2.html>, 1.3).
const HEADER: usize = 100;
const MAGIC: &[u8] = b"SQLite format 3\0";

/// Checks a database that was not made here. One that is compressed is unpacked into the
/// directory `scratch` first and removed again.
///
/// # Errors
///
/// [`Error::Corrupt`] with what is wrong; or if it cannot be read, `scratch` not be
/// written, or `watch` is cancelled.
pub fn foreign(
    foreign: &Foreign,
    depth: Depth,
    scratch: &Path,
    disk: &Disk,
    watch: &Watch,
) -> Result<Report, Error> {
    if foreign.form != Some(Form::Gzip) {
        unpacked_size(foreign, disk)?;
        return structure(&foreign.path, depth, watch);
    }
    let unpacked = scratch.join("unpacked.sqlite3");
    let checked = unpack_foreign(foreign, &unpacked, depth, disk, watch);
    if unpacked.exists() {
        let removed = disk.remove_file(&unpacked);
        return checked.and_then(|report| Ok(removed.map(|()| report)?));
    }
    checked
}

/// Unpacks, or copies, a database that was not made here into the new file `to`, makes it
/// durable and checks it.
///
/// # Errors
///
/// As [`foreign`]. What was written of `to` is left and not to be trusted.
pub fn unpack_foreign(
    foreign: &Foreign,
    to: &Path,
    depth: Depth,
    disk: &Disk,
    watch: &Watch,
) -> Result<Report, Error> {
    // Shows before anything is written that it is a database at all.
    let size = unpacked_size(foreign, disk)?;
    let mut from = reader(foreign, disk)?;
    let mut sink = Steady::new(disk.create(to)?);
    watch.begin("unpacking", Some(size));
    pump(&mut from, &mut sink, watch).map_err(|stopped| failed(&foreign.path, stopped))?;
    sink.finish()?;
    structure(to, depth, watch)
}

/// Bytes of the database inside, from its header where that can be relied on, else not less
/// than what is stored.
///
/// # Errors
///
/// [`Error::Corrupt`] if it is no database; or if it cannot be read.
pub fn unpacked_size(foreign: &Foreign, disk: &Disk) -> Result<u64, Error> {
    let mut header = Vec::with_capacity(HEADER);
    reader(foreign, disk)?
        .take(HEADER as u64)
        .read_to_end(&mut header)
        .map_err(|error| failed(&foreign.path, super::artifact::Stopped::Reading(error)))?;
    if header.is_empty() {
        return Err(Error::corrupt(&foreign.path, "it is empty"));
    }
    if header.len() < HEADER || !header.starts_with(MAGIC) {
        return Err(Error::corrupt(
            &foreign.path,
            "it is not an SQLite database",
        ));
    }
    Ok(match foreign.form {
        Some(Form::Gzip) => stated_size(&header).unwrap_or(0).max(foreign.bytes),
        Some(Form::Plain) | None => foreign.bytes,
    })
}

/// Page size times pages. The number of pages is valid only if it was written by the same
/// transaction as the change counter (1.3.7 there).
fn stated_size(header: &[u8]) -> Option<u64> {
    let number = |at: usize| {
        let bytes = header.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_be_bytes(bytes))
    };
    let page_size = match u16::from_be_bytes([*header.get(16)?, *header.get(17)?]) {
        1 => 65_536,
        size => u64::from(size),
    };
    (number(24)? == number(92)?).then_some(page_size * u64::from(number(28)?))
}

/// What is read of it, decompressed.
enum Reader {
    Plain(File),
    Gzip(Box<MultiGzDecoder<File>>),
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
        }
    }
}

fn reader(foreign: &Foreign, disk: &Disk) -> Result<Reader, disk::Error> {
    let file = disk.open(&foreign.path)?;
    Ok(match foreign.form {
        Some(Form::Gzip) => Reader::Gzip(Box::new(MultiGzDecoder::new(file))),
        Some(Form::Plain) | None => Reader::Plain(file),
    })
}
