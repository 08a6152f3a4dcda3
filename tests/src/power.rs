//! What a power failure leaves of a database, for any instant of a recorded life.
//!
//! `strace` records every write, sync and cut of the database, its log and its rollback journal,
//! every removal of that journal, and every answer that is sent, over UDP or HTTP, in the order
//! in which the kernel saw them begin and end. A failure is put between any two of them: what
//! was written before a sync began that has ended is there; what else was begun is there, is
//! not, or is there in part, each sector by chance. This is what `SQLite` assumes of a disk
//! (<https://www.sqlite.org/atomiccommit.html>, 2.0).
//!
//! Names come and go in order, and for certain once their directory has been synced. That
//! matters to a rollback journal, whose removal is the commit: where it comes back, the commit
//! is undone. Of the log, which stays, the name is taken to be there as soon as it was made.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use rustix::process::Pid;

/// What a disk writes wholly or not at all.
const SECTOR: usize = 512;

/// The calls that are recorded. `write`, `writev` and `pwritev` belong to none of the files,
/// which is checked.
const CALLS: &str =
    "pwrite64,write,writev,pwritev,fdatasync,fsync,ftruncate,unlink,sendmmsg,sendto,sendmsg";

/// What an answer over HTTP begins with that says that all went well.
const WELL: &[u8] = b"HTTP/1.1 200";

/// The recorder and its arguments, to stand before the command that is to be recorded. It
/// leaves the command its process id.
#[must_use]
pub fn recorder(to: &Path) -> Vec<String> {
    let trace = format!("trace={CALLS}");
    let to = to.display().to_string();
    [
        "strace",
        "-D",
        "-f",
        "--seccomp-bpf",
        "-y",
        "-v",
        "-xx",
        "-s",
        "70000",
        "-e",
        &trace,
        "-o",
        &to,
    ]
    .map(str::to_owned)
    .to_vec()
}

/// What there is in the file system for as long as the process lives that records this one.
///
/// # Errors
/// When none does.
pub fn recorder_of(process: Pid) -> Result<PathBuf> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero()))?;
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"));
    let tracer: u32 = tracer.context("who traces it")?.trim().parse()?;
    ensure!(tracer != 0, "nobody records process {process:?}");
    Ok(PathBuf::from(format!("/proc/{tracer}")))
}

/// A life, recorded.
#[derive(Debug)]
pub struct Recording {
    /// In the order in which they ended.
    calls: Vec<Call>,
    lines: usize,
    database: Vec<u8>,
}

/// How often something was done in a life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Syncs of the log.
    pub log_syncs: usize,
    /// Writes to the database itself.
    pub pages: usize,
    /// Removals of the journal.
    pub removals: usize,
}

/// A packet that was sent, or what was written to a connection at once.
#[derive(Debug)]
pub struct Sent {
    /// The socket, as the kernel names it: `socket:[4711]`.
    pub socket: String,
    /// What was sent.
    pub bytes: Vec<u8>,
}

impl Sent {
    /// Whether it is an answer over HTTP, or its beginning, which says that all went well.
    #[must_use]
    pub fn says_well(&self) -> bool {
        self.bytes.starts_with(WELL)
    }
}

/// A call and the lines of the recording at which it began and ended.
#[derive(Debug)]
struct Call {
    began: usize,
    ended: usize,
    what: What,
}

#[derive(Debug)]
enum What {
    Write(File, usize, Vec<u8>),
    Cut(File, usize),
    Sync(File),
    /// The journal is removed. The next that is written is another file.
    Remove,
    /// Of the directory they are in.
    SyncNames,
    Send(Vec<Sent>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum File {
    Database,
    Log,
    Journal,
}

impl Recording {
    /// Reads the recording of a process that has ended, which found `database` with this
    /// content, no log and no journal.
    ///
    /// # Errors
    /// When it cannot be read, or tells of a call that is not understood.
    pub fn read(recorded: &Path, database: &Path, content: Vec<u8>) -> Result<Self> {
        let text = fs::read_to_string(recorded).context("reading the recording")?;
        let mut unfinished: HashMap<&str, (usize, String)> = HashMap::new();
        let mut calls = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let (process, call) = line.trim().split_once(' ').context("a process id")?;
            let call = call.trim_start();
            if call.starts_with("+++") || call.starts_with("---") {
                continue;
            }
            let (began, whole) = if let Some(rest) = call.strip_prefix("<... ") {
                let (_, rest) = rest.split_once("resumed>").context("a resumed call")?;
                let (began, first) = unfinished
                    .remove(process)
                    .context("a call that had begun")?;
                (began, first + rest)
            } else if let Some(first) = call.strip_suffix("<unfinished ...>") {
                unfinished.insert(process, (number, first.trim_end().to_owned()));
                continue;
            } else {
                (number, call.to_owned())
            };
            if let Some(what) = understand(&whole, database)
                .with_context(|| format!("line {}: {:.200}", number + 1, whole))?
            {
                calls.push(Call {
                    began,
                    ended: number,
                    what,
                });
            }
        }
        Ok(Self {
            calls,
            lines: text.lines().count(),
            database: content,
        })
    }

    /// How many instants there are at which the power can fail.
    #[must_use]
    pub fn instants(&self) -> usize {
        self.lines
    }

    /// How often what was done.
    #[must_use]
    pub fn done(&self) -> Done {
        let count =
            |wanted: fn(&What) -> bool| self.calls.iter().filter(|call| wanted(&call.what)).count();
        Done {
            log_syncs: count(|what| matches!(what, What::Sync(File::Log))),
            pages: count(|what| matches!(what, What::Write(File::Database, ..))),
            removals: count(|what| matches!(what, What::Remove)),
        }
    }

    /// All that may have left before an instant, in order.
    pub fn sent_before(&self, instant: usize) -> impl Iterator<Item = &Sent> {
        self.begun_before(instant)
            .filter_map(|call| match &call.what {
                What::Send(sent) => Some(sent),
                _ => None,
            })
            .flatten()
    }

    /// Writes the database, its log and its journal as a failure at an instant leaves them.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn fail(&self, instant: usize, chance: &mut Rng, to: &Path) -> Result<()> {
        let always = 0..usize::MAX;
        let database = self.left(File::Database, instant, &always, chance);
        fs::write(to, database)?;
        let log = self.left(File::Log, instant, &always, chance);
        let journal = self.journal(instant, chance);
        for (name, content) in [("-wal", log), ("-journal", journal)] {
            // An empty one says as little as none, but of a mode that may not be the database's.
            if !content.is_empty() {
                fs::write(beside(to, name), content)?;
            }
        }
        Ok(())
    }

    fn begun_before(&self, instant: usize) -> impl Iterator<Item = &Call> {
        self.calls.iter().filter(move |call| call.began < instant)
    }

    /// The journal a failure leaves: which of those there were, by whether their removals have
    /// reached the disk, and what is in it. Empty if there is none.
    fn journal(&self, instant: usize, chance: &mut Rng) -> Vec<u8> {
        let removals: Vec<&Call> = self
            .begun_before(instant)
            .filter(|call| matches!(call.what, What::Remove))
            .collect();
        let certain = removals
            .iter()
            .filter(|removal| self.names_synced(removal.ended, instant))
            .count();
        // Removals reach it in order.
        let gone = chance.usize(certain..=removals.len());
        let from = gone.checked_sub(1).map_or(0, |last| removals[last].began);
        let until = removals.get(gone).map_or(instant, |removal| removal.began);
        let life = from..until;
        let made = self.begun_before(instant).find(|call| {
            life.contains(&call.began) && matches!(call.what, What::Write(File::Journal, ..))
        });
        // It has its name for certain once that was synced, and else perhaps.
        let named = made.is_some_and(|made| self.names_synced(made.began, instant));
        if named || (made.is_some() && chance.bool()) {
            self.left(File::Journal, instant, &life, chance)
        } else {
            Vec::new()
        }
    }

    /// Whether the directory was synced between two instants.
    fn names_synced(&self, from: usize, until: usize) -> bool {
        self.calls.iter().any(|call| {
            call.began > from && call.ended < until && matches!(call.what, What::SyncNames)
        })
    }

    /// What is left of a file of which all was written within these instants.
    fn left(&self, file: File, instant: usize, life: &Range<usize>, chance: &mut Rng) -> Vec<u8> {
        let begun = || {
            self.begun_before(instant)
                .filter(|call| life.contains(&call.began))
        };
        let synced = begun()
            .filter(|call| {
                call.ended < instant && matches!(call.what, What::Sync(of) if of == file)
            })
            .map(|call| call.began)
            .max();
        let mut content = match file {
            File::Database => self.database.clone(),
            File::Log | File::Journal => Vec::new(),
        };
        for call in begun() {
            let certain = synced.is_some_and(|synced| call.ended < synced);
            match &call.what {
                What::Write(of, offset, bytes) if *of == file => {
                    for (sector, part) in bytes.chunks(SECTOR).enumerate() {
                        if certain || chance.bool() {
                            put(&mut content, offset + sector * SECTOR, part);
                        }
                    }
                }
                What::Cut(of, length) if *of == file && (certain || chance.bool()) => {
                    content.resize(*length, 0);
                }
                _ => {}
            }
        }
        content
    }
}

fn put(content: &mut Vec<u8>, offset: usize, part: &[u8]) {
    let end = offset + part.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(part);
}

/// The file beside a database whose name is the database's and more.
fn beside(database: &Path, more: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(more);
    path.into()
}

/// What a call does to one of the files or tells somebody, if it does.
fn understand(call: &str, database: &Path) -> Result<Option<What>> {
    let (name, arguments) = call.split_once('(').context("a call")?;
    let (_, result) = arguments.rsplit_once(" = ").context("a result")?;
    let failed = result.starts_with('-');
    // The process was killed meanwhile.
    let cut_off = result.starts_with('?');
    if name == "unlink" {
        let (path, _) = bytes(arguments)?;
        let removed = !failed && path == beside(database, "-journal").as_os_str().as_bytes();
        return Ok(removed.then_some(What::Remove));
    }
    let (_, named) = arguments.split_once('<').context("a descriptor's path")?;
    let (path, rest) = named.split_once('>').context("a descriptor's path")?;
    let path = PathBuf::from(OsString::from_vec(unescape(path)?));
    let rest = rest.trim_start_matches(", ");
    let is_sync = matches!(name, "fdatasync" | "fsync");
    let file = if path == database {
        File::Database
    } else if path == beside(database, "-wal") {
        File::Log
    } else if path == beside(database, "-journal") {
        File::Journal
    } else if is_sync && database.parent() == Some(path.as_path()) {
        return Ok((!failed && !cut_off).then_some(What::SyncNames));
    } else {
        return Ok(match path.to_str() {
            Some(socket) if socket.starts_with("socket:") => Some(sent(name, socket, rest)?),
            _ => None,
        });
    };
    ensure!(!failed, "it failed");
    if is_sync && cut_off {
        return Ok(None);
    }
    let number = |text: &str| -> Result<usize> {
        let digits = text.trim_start_matches([',', ' ']);
        let end = digits
            .find(|character: char| !character.is_ascii_digit())
            .unwrap_or(digits.len());
        digits[..end].parse().context("a number")
    };
    Ok(Some(match name {
        "fdatasync" | "fsync" => What::Sync(file),
        "ftruncate" => What::Cut(file, number(rest)?),
        "pwrite64" => {
            let (bytes, rest) = bytes(rest)?;
            let rest = rest.trim_start_matches(", ");
            let (length, offset) = rest.split_once(", ").context("a length and an offset")?;
            ensure!(number(length)? == bytes.len(), "it is recorded in part");
            ensure!(
                cut_off || number(result)? == bytes.len(),
                "it was done in part"
            );
            What::Write(file, number(offset)?, bytes)
        }
        other => bail!("{other} is not understood"),
    }))
}

/// What leaves through a socket: with `sendmmsg` packets, with any other call what is one,
/// though it may be handed over in parts. That a call fails, or the other end is gone, makes no
/// difference: it was going to be said.
fn sent(name: &str, socket: &str, arguments: &str) -> Result<What> {
    let parts = if matches!(name, "write" | "sendto") {
        vec![bytes(arguments)?.0]
    } else {
        let parts = arguments.split("iov_base=").skip(1);
        parts
            .map(|part| Ok(bytes(part)?.0))
            .collect::<Result<Vec<_>>>()?
    };
    let parts = if name == "sendmmsg" {
        parts
    } else {
        vec![parts.concat()]
    };
    let sent = parts.into_iter().map(|bytes| Sent {
        socket: socket.to_owned(),
        bytes,
    });
    Ok(What::Send(sent.collect()))
}

/// The string that a text begins with, and what follows it.
fn bytes(text: &str) -> Result<(Vec<u8>, &str)> {
    let text = text.strip_prefix('"').context("a string")?;
    let (escaped, rest) = text.split_once('"').context("the end of a string")?;
    ensure!(!rest.starts_with("..."), "it is recorded in part");
    Ok((unescape(escaped)?, rest))
}

/// `\x2f\x74` as bytes.
fn unescape(escaped: &str) -> Result<Vec<u8>> {
    let digits = escaped.split("\\x").skip(1);
    let bytes = digits.map(|digits| u8::from_str_radix(digits, 16).context("a byte"));
    bytes.collect()
}
