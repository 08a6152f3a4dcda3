//! The pinned file, read straight into the compressor: where there is no room for a copy, and
//! where there is to be none because backups are encrypted.
//!
//! The pin lasts until the artifact is durable and the structure is checked, so this is
//! for those two cases alone, and only where writers do not wait for the pin.
//!
//! # What is checked, without a copy to check
//!
//! The bytes that were read are summed on their way, and the artifact is later read back,
//! decompressed and compared with that sum, as ever. The structure and the rows are
//! checked on the pinned connection, while the pin still holds: it sees the very snapshot
//! that the file is. `SQLite` may take a page from the log instead of the file if the
//! page came there while the pin was being taken; the checkpoint that the pin was accepted
//! by has put the same bytes into the file.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Error, Pace, Watch, file};
use crate::catalogue::Artifact;
use crate::config::{Compression, Depth};
use crate::disk::{self, Disk};
use crate::encryption::Seal;
use crate::sqlite::Pin;
use crate::verify::{self, Encoding, Report};

/// A durable artifact, made without a raw copy.
#[derive(Debug, Clone, PartialEq)]
pub struct Streamed {
    /// What was stored.
    pub artifact: Artifact,
    /// zstd's level, if it was compressed.
    pub level: Option<i32>,
    /// What `quick_check` and the row counts on the pinned connection said.
    pub report: Report,
    /// Seconds from the call until it was durable and checked.
    pub seconds: f64,
}

/// Compresses the pinned database into the new file `artifact`, encrypted if there is a
/// `seal`, and checks its structure. The pin stays. `bandwidth` is in bytes a second read.
///
/// # Errors
///
/// As [`Error`] says; [`Error::Stored`] also when the database is damaged. What was
/// written of the artifact is left.
pub fn stream(
    pin: &Pin,
    artifact: &Path,
    compression: Compression,
    seal: Option<&Seal>,
    disk: &Disk,
    bandwidth: Option<u64>,
    watch: &Watch,
) -> Result<Streamed, Error> {
    let still = super::still(pin);
    let pace = Pace::new(bandwidth, &still, watch);
    pace.go_on()?;
    let source = file::open(pin)?;
    disk::set_readahead(source, false);
    let mut from = Reader {
        source,
        total: pin.facts.bytes(),
        done: 0,
        pace: &pace,
    };
    // That it was given up says more than what that led to.
    let why = |error: verify::Error| pace.go_on().err().unwrap_or(error.into());
    let encoding = Encoding::hurried(compression).sealed(seal);
    watch.begin("streaming", Some(from.total));
    let (size, path) = (from.total, pin.path());
    let known = Some(size);
    let artifact = verify::compress_from(&mut from, path, known, artifact, encoding, disk, watch)
        .map_err(why)?;
    watch.expect(verify::CHECKING, verify::expected(size, Depth::Quick, &[]));
    let report = {
        let connection = pin.connection().ok_or(Error::Ended)?;
        verify::structure_of(&connection, path, watch).map_err(why)?
    };
    // After the last page was looked at, or it says nothing about that one.
    (pace.still)()?;
    Ok(Streamed {
        artifact,
        level: encoding.level(),
        report,
        seconds: pace.began.elapsed().as_secs_f64(),
    })
}

/// The pinned file as a stream, at its pace.
struct Reader<'a> {
    source: &'static File,
    total: u64,
    done: u64,
    pace: &'a Pace<'a>,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.pace.keep(self.done).map_err(io::Error::other)?;
        let left = usize::try_from(self.total - self.done).unwrap_or(usize::MAX);
        let length = buffer.len().min(left);
        self.source
            .read_exact_at(&mut buffer[..length], self.done)?;
        self.done += length as u64;
        disk::will_read(self.source, self.done);
        Ok(length)
    }
}
