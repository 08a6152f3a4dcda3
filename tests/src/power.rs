//! What a power failure leaves of a database, for any instant of a recorded life.
//!
//! `strace` records every write, sync and cut of the database and its log, and every answer
//! that is sent, in the order in which the kernel saw them begin and end. A failure is put
//! between any two of them: what was written before a sync began that has ended is there;
//! what else was begun is there, is not, or is there in part, each sector by chance. This is
//! what `SQLite` assumes of a disk (<https://www.sqlite.org/atomiccommit.html>, 2.0), a file's
//! name excepted, which is taken to be there as soon as it was made.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use rustix::process::Pid;

/// What a disk writes wholly or not at all.
const SECTOR: usize = 512;

/// The calls that are recorded. `write` belongs to none of the files, which is checked.
const CALLS: &str =
    "pwrite64,write,writev,pwritev,fdatasync,fsync,ftruncate,sendmmsg,sendto,sendmsg";

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
    calls: Vec<Call>,
    lines: usize,
    database: Vec<u8>,
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
    Send(Vec<Vec<u8>>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum File {
    Database,
    Log,
}

impl Recording {
    /// Reads the recording of a process that has ended, which found `database` with this
    /// content and no log.
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

    /// How many syncs of the log there were, and how many writes to the database itself.
    #[must_use]
    pub fn syncs_and_checkpointed_pages(&self) -> (usize, usize) {
        let count =
            |wanted: fn(&What) -> bool| self.calls.iter().filter(|call| wanted(&call.what)).count();
        (
            count(|what| matches!(what, What::Sync(File::Log))),
            count(|what| matches!(what, What::Write(File::Database, ..))),
        )
    }

    /// Every packet that may have left before an instant.
    pub fn sent_before(&self, instant: usize) -> impl Iterator<Item = &[u8]> {
        self.calls
            .iter()
            .filter(move |call| call.began < instant)
            .filter_map(|call| match &call.what {
                What::Send(packets) => Some(packets),
                _ => None,
            })
            .flatten()
            .map(Vec::as_slice)
    }

    /// Writes the database and its log as a failure at an instant leaves them.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn fail(&self, instant: usize, chance: &mut Rng, to: &Path) -> Result<()> {
        fs::write(to, self.left(File::Database, instant, chance))?;
        fs::write(log_of(to), self.left(File::Log, instant, chance))?;
        Ok(())
    }

    fn left(&self, file: File, instant: usize, chance: &mut Rng) -> Vec<u8> {
        let begun = || self.calls.iter().filter(|call| call.began < instant);
        let synced = begun()
            .filter(|call| {
                call.ended < instant && matches!(call.what, What::Sync(of) if of == file)
            })
            .map(|call| call.began)
            .max();
        let mut content = match file {
            File::Database => self.database.clone(),
            File::Log => Vec::new(),
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

fn log_of(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-wal");
    path.into()
}

/// What a call does to one of the files or tells somebody, if it does.
fn understand(call: &str, database: &Path) -> Result<Option<What>> {
    let (name, arguments) = call.split_once('(').context("a call")?;
    if name.starts_with("send") {
        let packets = arguments
            .split(if name == "sendto" { ">, " } else { "iov_base=" })
            .skip(1)
            .map(|part| Ok(bytes(part)?.0))
            .collect::<Result<_>>()?;
        return Ok(Some(What::Send(packets)));
    }
    let (_, named) = arguments.split_once('<').context("a descriptor's path")?;
    let (path, rest) = named.split_once('>').context("a descriptor's path")?;
    let path = PathBuf::from(String::from_utf8_lossy(&unescape(path)?).into_owned());
    let file = if path == database {
        File::Database
    } else if path == log_of(database) {
        File::Log
    } else {
        return Ok(None);
    };
    let (_, result) = rest.rsplit_once(" = ").context("a result")?;
    ensure!(!result.starts_with('-'), "it failed");
    let rest = rest.trim_start_matches(", ");
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
            ensure!(number(result)? == bytes.len(), "it was done in part");
            What::Write(file, number(offset)?, bytes)
        }
        other => bail!("{other} is not understood"),
    }))
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
