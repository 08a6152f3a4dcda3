//! The stored form of a database: written, read back and unpacked as a stream, with sizes
//! and checksums taken on the way.
//!
//! ```text
//!  raw ─ SHA-256 ─▶ zstd ─▶ age ─▶ SHA-256 ─▶ synced       either of the two may be left out
//! ```

use std::io::{self, BufRead as _, BufReader, Read, Write};
use std::num::NonZero;
use std::path::Path;
use std::thread;

use age::stream::StreamWriter;
use sha2::{Digest, Sha256};
use zstd::zstd_safe::{CParameter, DParameter};

use super::Error;
use crate::catalogue::Artifact;
use crate::config::Compression;
use crate::disk::{self, Disk, Steady};
use crate::encryption::{Closed, Identities, Seal};
use crate::priority;
use crate::snapshot::Watch;

/// Bytes moved at a time. A fixed buffer: memory must not grow with the database.
const CHUNK: usize = disk::REQUEST;
/// The step of a watch in which an artifact is read back.
const READING_BACK: &str = "reading back";
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
    store(raw, artifact, compression, None, disk, watch)
}

/// As [`compress`], and encrypted if there is a `seal`: then `raw` stays whatever the
/// compression is.
///
/// # Errors
///
/// As [`compress`].
pub fn store(
    raw: &Path,
    artifact: &Path,
    compression: Compression,
    seal: Option<&Seal>,
    disk: &Disk,
    watch: &Watch,
) -> Result<Artifact, Error> {
    let doing = match (compression, seal) {
        (Compression::None, None) => {
            disk.rename(raw, artifact)?;
            let raw = checksum(artifact, disk, watch)?;
            disk.sync_file(artifact)?;
            return Ok(described(artifact, raw.clone(), raw, Encoding::NONE));
        }
        (Compression::None, Some(_)) => "encrypting",
        (Compression::Zstd(_), _) => "compressing",
    };
    let mut from = disk.open(raw)?.by_requests();
    let size = from.size()?;
    let encoding = Encoding::patient(compression).sealed(seal);
    watch.begin(doing, Some(size));
    compress_from(&mut from, raw, Some(size), artifact, encoding, disk, watch)
}

/// As [`compress`], of bytes that are read from a stream, those of `source`: so many, if that
/// is known. The step of the watch is the caller's.
pub(crate) fn compress_from(
    from: &mut impl Read,
    source: &Path,
    size: Option<u64>,
    artifact: &Path,
    encoding: Encoding<'_>,
    disk: &Disk,
    watch: &Watch,
) -> Result<Artifact, Error> {
    let writing = |error| disk::Error::new("write", artifact, error);
    let mut from = Summed::new(from);
    let to = Summed::new(Steady::new(disk.create(artifact)?));
    let mut encoder = encoding.encoder(to, size).map_err(writing)?;
    pump(&mut from, &mut encoder, watch).map_err(|stopped| match stopped {
        Stopped::Cancelled(why) => Error::Cancelled { why },
        Stopped::Reading(error) => disk::Error::new("read", source, error).into(),
        Stopped::Writing(error) => writing(error).into(),
    })?;
    let (to, stored) = encoder.finish().map_err(writing)?.sum();
    to.finish()?;
    Ok(described(artifact, from.sum().1, stored, encoding))
}

fn described(artifact: &Path, raw: Sum, stored: Sum, encoding: Encoding<'_>) -> Artifact {
    let name = artifact.file_name().unwrap_or_default().to_string_lossy();
    Artifact {
        name: name.into_owned(),
        stored_bytes: stored.bytes,
        stored_sha256: stored.sha256,
        raw_bytes: raw.bytes,
        raw_sha256: raw.sha256,
        compression: match encoding.zstd {
            Some(_) => "zstd".to_owned(),
            None => "none".to_owned(),
        },
        encrypted: encoding.seal.map(Seal::describe),
    }
}

/// Reads an artifact back, decrypts and decompresses it and compares sizes and checksums,
/// those of the stored bytes and those of the database inside. Of one that is encrypted,
/// without `identities`, those of the stored bytes alone.
///
/// # Errors
///
/// [`Error::Corrupt`] if anything differs; [`Error::Closed`] if it is for others; or if it
/// cannot be read, or `watch` is cancelled.
pub fn artifact(
    path: &Path,
    expected: &Artifact,
    identities: Option<&Identities>,
    disk: &Disk,
    watch: &Watch,
) -> Result<(), Error> {
    let doing = READING_BACK;
    decode(path, expected, identities, doing, io::sink(), disk, watch)
}

/// As [`artifact`], writing what is inside to `to` on the way, as the step `doing` of the watch.
/// What was written is not to be trusted unless this ends well.
///
/// # Errors
///
/// As [`artifact`], and [`Error::Closed`] without identities, too.
pub(crate) fn read_into(
    path: &Path,
    expected: &Artifact,
    identities: Option<&Identities>,
    doing: &'static str,
    to: impl Write,
    disk: &Disk,
    watch: &Watch,
) -> Result<(), Error> {
    if expected.encrypted.is_some() && identities.is_none() {
        return Err(closed(path, expected, None));
    }
    decode(path, expected, identities, doing, to, disk, watch)
}

/// Decrypts and decompresses an artifact into the new file `to`, checking it as
/// [`artifact`] does, and makes it durable.
///
/// # Errors
///
/// As [`artifact`], and [`Error::Closed`] without identities, too; also if `to` exists or
/// cannot be written. What was written of it is left and not to be trusted.
pub fn unpack(
    path: &Path,
    expected: &Artifact,
    identities: Option<&Identities>,
    to: &Path,
    disk: &Disk,
    watch: &Watch,
) -> Result<(), Error> {
    if expected.encrypted.is_some() && identities.is_none() {
        return Err(closed(path, expected, None));
    }
    let mut sink = Steady::new(disk.create(to)?);
    let doing = READING_BACK;
    decode(path, expected, identities, doing, &mut sink, disk, watch)?;
    Ok(sink.finish()?)
}

/// Whether it can be opened, from its first bytes: nothing else is read.
///
/// # Errors
///
/// [`Error::Closed`] if it is encrypted and none of the identities is of a recipient; or if
/// it cannot be read.
pub(crate) fn opens(
    path: &Path,
    expected: &Artifact,
    identities: Option<&Identities>,
    disk: &Disk,
) -> Result<(), Error> {
    opened(path, expected, disk.open(path)?, identities).map(drop)
}

/// What is read of `from`, decrypted if it is encrypted. It is not decompressed.
///
/// # Errors
///
/// As [`opens`].
pub(crate) fn opened<'a, R: Read + 'a>(
    path: &Path,
    expected: &Artifact,
    from: R,
    identities: Option<&Identities>,
) -> Result<Box<dyn Read + 'a>, Error> {
    match (&expected.encrypted, identities) {
        (None, _) => Ok(Box::new(from)),
        (Some(_), None) => Err(closed(path, expected, None)),
        (Some(_), Some(identities)) => {
            match identities.open(BufReader::with_capacity(CHUNK, from)) {
                Ok(decrypted) => Ok(Box::new(decrypted)),
                Err(Closed::ForOthers) => Err(closed(path, expected, Some(identities))),
                Err(Closed::Unreadable(error)) => Err(failed(path, Stopped::Reading(error))),
            }
        }
    }
}

fn closed(path: &Path, expected: &Artifact, identities: Option<&Identities>) -> Error {
    Error::Closed {
        path: path.to_owned(),
        recipients: expected
            .encrypted
            .as_ref()
            .map_or(0, |encrypted| encrypted.recipients),
        given: identities.map_or(0, Identities::count),
    }
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
        priority::give_way();
        to.write_all(&buffer[..read]).map_err(Stopped::Writing)?;
        priority::give_way();
        watch.advance(read as u64);
    }
}

/// The sum of a file, as it is read from the device.
pub(crate) fn checksum(path: &Path, disk: &Disk, watch: &Watch) -> Result<Sum, Error> {
    let file = disk.open(path)?.by_requests();
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

/// What becomes of a database on its way into its file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encoding<'a> {
    /// `None`: it is not compressed.
    zstd: Option<Zstd>,
    seal: Option<&'a Seal>,
}

/// How zstd is set: what it makes of a database, and what it may take for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Zstd {
    level: i32,
    /// Threads of its own; 0: the caller's does it all.
    workers: u32,
}

impl<'a> Encoding<'a> {
    const NONE: Self = Self {
        zstd: None,
        seal: None,
    };

    /// For a copy that waits for nobody and for which nobody waits.
    pub(crate) fn patient(compression: Compression) -> Self {
        Self::with(compression, |level| Zstd { level, workers: 0 })
    }

    /// For while a pin holds: as fast as a machine can with a service on it.
    pub(crate) fn hurried(compression: Compression) -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        Self::with(compression, |_| Zstd {
            level: HURRIED_LEVEL,
            workers: u32::try_from(cores).unwrap_or(1).min(HURRIED_WORKERS),
        })
    }

    fn with(compression: Compression, zstd: impl FnOnce(i32) -> Zstd) -> Self {
        Self {
            zstd: match compression {
                Compression::None => None,
                Compression::Zstd(level) => Some(zstd(level)),
            },
            seal: None,
        }
    }

    /// The same, encrypted if there is a seal.
    pub(crate) fn sealed(self, seal: Option<&'a Seal>) -> Self {
        Self { seal, ..self }
    }

    /// zstd's level.
    pub(crate) fn level(self) -> Option<i32> {
        self.zstd.map(|zstd| zstd.level)
    }

    fn encoder<W: Write>(self, to: W, size: Option<u64>) -> io::Result<Compressed<Sealed<W>>> {
        let to = match self.seal {
            None => Sealed::Plain(to),
            Some(seal) => Sealed::Age(Box::new(seal.writer(to)?)),
        };
        Ok(match self.zstd {
            None => Compressed::Plain(to),
            Some(zstd) => Compressed::Zstd(zstd.encoder(to, size)?),
        })
    }
}

impl Zstd {
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

/// Compresses what is written, or does not.
enum Compressed<W: Write> {
    Plain(W),
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Compressed<Sealed<W>> {
    /// Ends both formats.
    fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(to) => to.finish(),
            Self::Zstd(encoder) => encoder.finish()?.finish(),
        }
    }
}

impl<W: Write> Write for Compressed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(to) => to.write(buffer),
            Self::Zstd(encoder) => encoder.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(to) => to.flush(),
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// Encrypts what is written, or does not.
enum Sealed<W: Write> {
    Plain(W),
    Age(Box<StreamWriter<W>>),
}

impl<W: Write> Sealed<W> {
    fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(to) => Ok(to),
            Self::Age(encryptor) => encryptor.finish(),
        }
    }
}

impl<W: Write> Write for Sealed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(to) => to.write(buffer),
            Self::Age(encryptor) => encryptor.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(to) => to.flush(),
            Self::Age(encryptor) => encryptor.flush(),
        }
    }
}

fn decode(
    path: &Path,
    expected: &Artifact,
    identities: Option<&Identities>,
    doing: &'static str,
    to: impl Write,
    disk: &Disk,
    watch: &Watch,
) -> Result<(), Error> {
    let file = disk.open(path)?.by_requests();
    // What has been written a moment ago would otherwise be compared with memory.
    file.forget_cached();
    let size = file.size()?;
    if size != expected.stored_bytes {
        let finding = format!("it has {size} bytes, not {}", expected.stored_bytes);
        return Err(Error::corrupt(path, finding));
    }
    let mut stored = Summed::new(file);
    let mut raw = Summed::new(to);
    let is_closed = expected.encrypted.is_some() && identities.is_none();
    let decoded = if is_closed {
        watch.begin(doing, Some(size));
        Ok(())
    } else {
        watch.begin(doing, Some(expected.raw_bytes));
        opened(path, expected, &mut stored, identities)
            .and_then(|from| decompress(path, expected, from, &mut raw, watch))
    };
    match decoded {
        // A damaged beginning may look as if it were for somebody else.
        Err(Error::Closed { .. }) | Ok(()) => {
            pump(&mut stored, &mut io::sink(), watch).map_err(|stopped| failed(path, stopped))?;
        }
        Err(_) => {}
    }
    let (file, stored) = stored.sum();
    file.forget_cached();
    match decoded {
        Ok(()) if is_closed => compare(path, expected, &stored, None),
        Ok(()) => {
            raw.flush()
                .map_err(|error| failed(path, Stopped::Writing(error)))?;
            compare(path, expected, &stored, Some(&raw.sum().1))
        }
        Err(error @ Error::Closed { .. }) => compare(path, expected, &stored, None).and(Err(error)),
        Err(error) => Err(error),
    }
}

/// Decompresses all of `from`, and no more than was expected.
fn decompress<R: Read>(
    path: &Path,
    expected: &Artifact,
    from: R,
    raw: &mut Summed<impl Write>,
    watch: &Watch,
) -> Result<(), Error> {
    // One byte more than expected shows that there is too much; reading on would only let
    // a forged frame fill the disk.
    let limit = expected.raw_bytes.saturating_add(1);
    match expected.compression.as_str() {
        "none" => {
            let mut from = from.take(limit);
            pump(&mut from, raw, watch).map_err(|stopped| failed(path, stopped))
        }
        "zstd" => {
            let reading = |error| failed(path, Stopped::Reading(error));
            let mut decoder = zstd::Decoder::new(from).map_err(reading)?.single_frame();
            decoder
                .set_parameter(DParameter::WindowLogMax(WINDOW_LOG))
                .map_err(reading)?;
            let mut from = decoder.take(limit);
            pump(&mut from, raw, watch).map_err(|stopped| failed(path, stopped))?;
            // `zstd -d` would go on with what follows the frame, or skip it.
            let mut rest: BufReader<_> = from.into_inner().finish();
            if raw.bytes < limit && !rest.fill_buf().map_err(reading)?.is_empty() {
                return Err(Error::corrupt(path, "more follows the end of its frame"));
            }
            Ok(())
        }
        unknown => {
            let finding = format!("its compression `{unknown}` is unknown");
            Err(Error::corrupt(path, finding))
        }
    }
}

/// `raw` is `None` if it stayed closed.
fn compare(path: &Path, expected: &Artifact, stored: &Sum, raw: Option<&Sum>) -> Result<(), Error> {
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
        raw.and_then(|raw| same(inside, raw, expected.raw_bytes, &expected.raw_sha256)),
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
    fn memory(encoding: Zstd) -> usize {
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
        let levels = (1..=19).map(|level| Encoding::patient(Compression::Zstd(level)));
        let hurried = Encoding::hurried(Compression::Zstd(3));
        for encoding in levels.chain([hurried]).filter_map(|encoding| encoding.zstd) {
            let mib = memory(encoding) >> 20;
            println!("{encoding:?}: {mib} MiB");
            assert!(mib < 24, "{encoding:?} takes {mib} MiB");
        }
    }
}
