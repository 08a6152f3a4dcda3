//! The stored form of a database: written, read back and unpacked as a stream, with sizes
//! and checksums taken on the way.

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::num::NonZero;
use std::path::Path;
use std::thread;

use sha2::{Digest, Sha256};
use zstd::zstd_safe::{CParameter, DParameter};

use super::Error;
use crate::catalogue::Artifact;
use crate::config::Compression;
use crate::disk::{self, Disk, File};
use crate::snapshot::Watch;

/// Bytes moved at a time. A fixed buffer: memory must not grow with the database.
const CHUNK: usize = 256 << 10;
/// The step of a watch in which an artifact is read back.
const READING_BACK: &str = "reading back";
/// Bytes written between two syncs. Many small ones, because one sync of gigabytes makes
/// every commit of the database in service wait for it.
const SYNC_EVERY: u64 = 4 << 20;
/// Largest zstd window written (4 MiB, as its base-2 logarithm), and read back.
const WINDOW_LOG: u32 = 22;
/// zstd's level while a pin holds: the lowest there is, three times as fast as level 3.
const HURRIED_LEVEL: i32 = 1;
/// Threads that compress while a pin holds. More would take the service's processors, and
/// 4 MiB each.
const HURRIED_WORKERS: u32 = 2;
/// Bytes each of these threads compresses at a time.
const JOB: u32 = 1 << 20;

/// Stores the database `raw` at `artifact`, checksums both on the way and makes the
/// result durable. With [`Compression::None`], `raw` itself becomes the artifact: it is
/// renamed, which costs neither time nor room.
///
/// Compression is done by the calling thread alone. One core is what a machine with a
/// tracker on it can spare, and zstd's own threads would each add buffers of several
/// megabytes; at level 3 about 4 MiB are used, at no level more than 24 MiB, whatever the
/// size of the database. The frame carries the content's size and checksum, so `zstd -d`
/// checks what it restores.
///
/// # Errors
///
/// If a file cannot be read or written, or `watch` is cancelled. Part of the artifact may
/// be left.
pub fn compress(
    raw: &Path,
    artifact: &Path,
    compression: Compression,
    disk: &Disk,
    watch: &Watch,
) -> Result<Artifact, Error> {
    match compression {
        Compression::None => {
            disk.rename(raw, artifact)?;
            let raw = checksum(artifact, disk, watch)?;
            disk.sync_file(artifact)?;
            Ok(described(artifact, raw.clone(), raw, "none"))
        }
        Compression::Zstd(level) => {
            let mut from = disk.open(raw)?;
            let size = from.size()?;
            let encoding = Encoding::patient(level);
            watch.begin("compressing", Some(size));
            compress_from(&mut from, raw, Some(size), artifact, encoding, disk, watch)
        }
    }
}

/// As [`compress`], of bytes that are read from a stream, those of `source`: so many, if that
/// is known. The step of the watch is the caller's.
pub(crate) fn compress_from(
    from: &mut impl Read,
    source: &Path,
    size: Option<u64>,
    artifact: &Path,
    encoding: Encoding,
    disk: &Disk,
    watch: &Watch,
) -> Result<Artifact, Error> {
    let writing = |error| disk::Error::new("write", artifact, error);
    let mut from = Summed::new(from);
    let to = Summed::new(Synced::new(disk.create(artifact)?));
    let mut encoder = encoding.encoder(to, size).map_err(writing)?;
    pump(&mut from, &mut encoder, watch).map_err(|stopped| match stopped {
        Stopped::Cancelled(why) => Error::Cancelled { why },
        Stopped::Reading(error) => disk::Error::new("read", source, error).into(),
        Stopped::Writing(error) => writing(error).into(),
    })?;
    let (to, stored) = encoder.finish().map_err(writing)?.sum();
    to.finish()?;
    Ok(described(artifact, from.sum().1, stored, "zstd"))
}

/// As [`compress`], of what is read from a stream, those bytes of `source`, however many they
/// are. The step of the watch is the caller's.
pub(crate) fn store(
    from: &mut impl Read,
    source: &Path,
    artifact: &Path,
    compression: Compression,
    disk: &Disk,
    watch: &Watch,
) -> Result<Artifact, Error> {
    match compression {
        Compression::Zstd(level) => {
            let encoding = Encoding::patient(level);
            compress_from(from, source, None, artifact, encoding, disk, watch)
        }
        Compression::None => {
            let mut to = Summed::new(Synced::new(disk.create(artifact)?));
            pump(from, &mut to, watch).map_err(|stopped| match stopped {
                Stopped::Cancelled(why) => Error::Cancelled { why },
                Stopped::Reading(error) => disk::Error::new("read", source, error).into(),
                Stopped::Writing(error) => disk::Error::new("write", artifact, error).into(),
            })?;
            let (to, raw) = to.sum();
            to.finish()?;
            Ok(described(artifact, raw.clone(), raw, "none"))
        }
    }
}

fn described(artifact: &Path, raw: Sum, stored: Sum, compression: &str) -> Artifact {
    let name = artifact.file_name().unwrap_or_default().to_string_lossy();
    Artifact {
        name: name.into_owned(),
        stored_bytes: stored.bytes,
        stored_sha256: stored.sha256,
        raw_bytes: raw.bytes,
        raw_sha256: raw.sha256,
        compression: compression.to_owned(),
    }
}

/// Reads an artifact back, decompresses it and compares sizes and checksums, those of the
/// stored bytes and those of the database inside.
///
/// # Errors
///
/// [`Error::Corrupt`] if anything differs; or if it cannot be read, or `watch` is cancelled.
pub fn artifact(path: &Path, expected: &Artifact, disk: &Disk, watch: &Watch) -> Result<(), Error> {
    decode(path, expected, READING_BACK, io::sink(), disk, watch)
}

/// As [`artifact`], writing what is inside to `to` on the way, as the step `doing` of the watch.
/// What was written is not to be trusted unless this ends well.
pub(crate) fn read_into(
    path: &Path,
    expected: &Artifact,
    doing: &'static str,
    to: impl Write,
    disk: &Disk,
    watch: &Watch,
) -> Result<(), Error> {
    decode(path, expected, doing, to, disk, watch)
}

/// Decompresses an artifact into the new file `to`, checking it as [`artifact`] does, and
/// makes it durable.
///
/// # Errors
///
/// As [`artifact`]; also if `to` exists or cannot be written. What was written of it is
/// left and not to be trusted.
pub fn unpack(
    path: &Path,
    expected: &Artifact,
    to: &Path,
    disk: &Disk,
    watch: &Watch,
) -> Result<(), Error> {
    let mut sink = Synced::new(disk.create(to)?);
    decode(path, expected, READING_BACK, &mut sink, disk, watch)?;
    Ok(sink.finish()?)
}

/// A length and a SHA-256 in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sum {
    bytes: u64,
    pub(crate) sha256: String,
}

/// Passes bytes through and sums them up.
struct Summed<T> {
    inner: T,
    bytes: u64,
    hasher: Sha256,
}

impl<T> Summed<T> {
    fn new(inner: T) -> Self {
        Self {
            inner,
            bytes: 0,
            hasher: Sha256::new(),
        }
    }

    fn sum(self) -> (T, Sum) {
        let sha256 = format!("{:x}", self.hasher.finalize());
        let bytes = self.bytes;
        (self.inner, Sum { bytes, sha256 })
    }

    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hasher.update(bytes);
    }
}

impl<T: Read> Read for Summed<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.add(&buffer[..read]);
        Ok(read)
    }
}

impl<T: Write> Write for Summed<T> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.add(&buffer[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Writes a file and syncs it every [`SYNC_EVERY`] bytes.
pub(super) struct Synced {
    file: File,
    unsynced: u64,
}

impl Synced {
    pub(super) fn new(file: File) -> Self {
        Self { file, unsynced: 0 }
    }

    pub(super) fn finish(self) -> Result<(), disk::Error> {
        let path = self.file.path();
        self.file
            .sync_all()
            .map_err(|error| disk::Error::new("sync", path, error))?;
        self.file.forget_cached();
        Ok(())
    }
}

impl Write for Synced {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.unsynced += written as u64;
        if self.unsynced >= SYNC_EVERY {
            self.unsynced = 0;
            self.file.sync_data()?;
            self.file.forget_cached();
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// What stopped [`pump`].
pub(super) enum Stopped {
    Reading(io::Error),
    Writing(io::Error),
    Cancelled(String),
}

/// Moves everything from one to the other and says how it is going.
pub(super) fn pump(
    from: &mut impl Read,
    to: &mut impl Write,
    watch: &Watch,
) -> Result<(), Stopped> {
    let mut buffer = vec![0; CHUNK];
    loop {
        if let Some(why) = watch.cancelled() {
            return Err(Stopped::Cancelled(why));
        }
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Stopped::Reading(error)),
        };
        to.write_all(&buffer[..read]).map_err(Stopped::Writing)?;
        watch.advance(read as u64);
    }
}

/// The sum of a file, as it is read from the device.
pub(crate) fn checksum(path: &Path, disk: &Disk, watch: &Watch) -> Result<Sum, Error> {
    let file = disk.open(path)?;
    watch.begin("checksumming", Some(file.size()?));
    file.forget_cached();
    let mut file = Summed::new(file);
    pump(&mut file, &mut io::sink(), watch).map_err(|stopped| match stopped {
        Stopped::Cancelled(why) => Error::Cancelled { why },
        Stopped::Reading(error) | Stopped::Writing(error) => {
            disk::Error::new("read", path, error).into()
        }
    })?;
    file.inner.forget_cached();
    Ok(file.sum().1)
}

/// How zstd is set: what it makes of a database, and what it may take for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Encoding {
    pub(crate) level: i32,
    /// Threads of its own; 0: the caller's does it all.
    workers: u32,
}

impl Encoding {
    /// For a copy that waits for nobody and for which nobody waits.
    pub(crate) fn patient(level: i32) -> Self {
        Self { level, workers: 0 }
    }

    /// For while a pin holds: as fast as a machine can with a service on it.
    pub(crate) fn hurried() -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            level: HURRIED_LEVEL,
            workers: u32::try_from(cores).unwrap_or(1).min(HURRIED_WORKERS),
        }
    }

    fn encoder<W: Write>(self, to: W, size: Option<u64>) -> io::Result<zstd::Encoder<'static, W>> {
        let mut encoder = zstd::Encoder::new(to, self.level)?;
        encoder.set_pledged_src_size(size)?;
        for parameter in self.parameters() {
            encoder.set_parameter(parameter)?;
        }
        Ok(encoder)
    }

    /// Beyond the level; so that its memory stays within bounds that are known.
    fn parameters(self) -> Vec<CParameter> {
        let mut parameters = vec![
            CParameter::ContentSizeFlag(true),
            CParameter::ChecksumFlag(true),
        ];
        if self.level >= 10 {
            // From here on zstd's own tables alone grow past 32 MiB, to 90 at level 19.
            parameters.extend([
                CParameter::WindowLog(WINDOW_LOG),
                CParameter::HashLog(21),
                CParameter::ChainLog(21),
            ]);
        }
        if self.workers > 0 {
            parameters.extend([
                CParameter::NbWorkers(self.workers),
                CParameter::JobSize(JOB),
            ]);
        }
        parameters
    }
}

fn decode(
    path: &Path,
    expected: &Artifact,
    doing: &'static str,
    to: impl Write,
    disk: &Disk,
    watch: &Watch,
) -> Result<(), Error> {
    let file = disk.open(path)?;
    // What has been written a moment ago would otherwise be compared with memory.
    file.forget_cached();
    let size = file.size()?;
    if size != expected.stored_bytes {
        let finding = format!("it has {size} bytes, not {}", expected.stored_bytes);
        return Err(Error::corrupt(path, finding));
    }
    watch.begin(doing, Some(expected.raw_bytes));

    let stored = Summed::new(file);
    // One byte more than expected shows that there is too much; reading on would only let
    // a forged frame fill the disk.
    let limit = expected.raw_bytes.saturating_add(1);
    let mut raw = Summed::new(to);
    let (file, stored) = match expected.compression.as_str() {
        "none" => {
            let mut from = stored.take(limit);
            pump(&mut from, &mut raw, watch).map_err(|stopped| failed(path, stopped))?;
            from.into_inner().sum()
        }
        "zstd" => {
            let reading = |error| failed(path, Stopped::Reading(error));
            let mut decoder = zstd::Decoder::new(stored).map_err(reading)?.single_frame();
            decoder
                .set_parameter(DParameter::WindowLogMax(WINDOW_LOG))
                .map_err(reading)?;
            let mut from = decoder.take(limit);
            pump(&mut from, &mut raw, watch).map_err(|stopped| failed(path, stopped))?;
            // `zstd -d` would go on with what follows the frame, or skip it.
            let mut rest: BufReader<_> = from.into_inner().finish();
            if raw.bytes < limit && !rest.fill_buf().map_err(reading)?.is_empty() {
                return Err(Error::corrupt(path, "more follows the end of its frame"));
            }
            rest.into_inner().sum()
        }
        unknown => {
            let finding = format!("its compression `{unknown}` is unknown");
            return Err(Error::corrupt(path, finding));
        }
    };
    file.forget_cached();
    raw.flush()
        .map_err(|error| failed(path, Stopped::Writing(error)))?;
    compare(path, expected, &stored, &raw.sum().1)
}

fn compare(path: &Path, expected: &Artifact, stored: &Sum, raw: &Sum) -> Result<(), Error> {
    let same = |what: &str, found: &Sum, bytes: u64, sha256: &str| {
        if found.bytes != bytes {
            return Some(format!("{what}: {} bytes, not {bytes}", found.bytes));
        }
        (found.sha256 != sha256)
            .then(|| format!("{what}: SHA-256 is {}, not {sha256}", found.sha256))
    };
    let (name, inside) = ("the file", "what is inside");
    let findings: Vec<_> = [
        same(name, stored, expected.stored_bytes, &expected.stored_sha256),
        same(inside, raw, expected.raw_bytes, &expected.raw_sha256),
    ]
    .into_iter()
    .flatten()
    .collect();
    if findings.is_empty() {
        return Ok(());
    }
    let path = path.to_owned();
    Err(Error::Corrupt { path, findings })
}

/// What the operating system says is trouble with the disk; what the decoder says is
/// damage.
pub(super) fn failed(path: &Path, stopped: Stopped) -> Error {
    match stopped {
        Stopped::Cancelled(why) => Error::Cancelled { why },
        Stopped::Reading(error) if error.raw_os_error().is_none() => {
            Error::corrupt(path, format!("it does not decompress: {error}"))
        }
        Stopped::Reading(error) => disk::Error::new("read", path, error).into(),
        Stopped::Writing(error) => disk::Error::new("unpack", path, error).into(),
    }
}

#[cfg(test)]
mod tests {
    use zstd::zstd_safe::{CCtx, InBuffer, OutBuffer};

    use super::*;

    /// Bytes zstd takes for itself, once it has all it ever takes.
    fn memory(encoding: Encoding) -> usize {
        let mut context = CCtx::create();
        let level = CParameter::CompressionLevel(encoding.level);
        context.set_pledged_src_size(Some(1 << 34)).expect("set");
        for parameter in std::iter::once(level).chain(encoding.parameters()) {
            context
                .set_parameter(parameter)
                .expect("a parameter of zstd's");
        }
        let input: Vec<u8> = (0..1_u32 << 18).flat_map(u32::to_le_bytes).collect();
        let mut output = vec![0; 4 << 20];
        for _ in 0..24 {
            let mut from = InBuffer::around(&input);
            while from.pos() < input.len() {
                let mut to = OutBuffer::around(&mut output);
                context.compress_stream(&mut to, &mut from).expect("room");
            }
        }
        context.sizeof()
    }

    #[test]
    fn memory_is_bounded_at_every_level() {
        let levels = (1..=19).map(Encoding::patient);
        for encoding in levels.chain([Encoding::hurried()]) {
            let mib = memory(encoding) >> 20;
            println!("{encoding:?}: {mib} MiB");
            assert!(mib < 24, "{encoding:?} takes {mib} MiB");
        }
    }
}
