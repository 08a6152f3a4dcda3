//! A dump while it runs: until its snapshot exists, and then its text as a stream.

use std::io::{self, Read};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::process::{Handle, Process, now};
use super::{Client, Error, Rows, Statements};
use crate::snapshot::Watch;

/// How all tables of a dump are of one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// It was made in one transaction: announces flowed meanwhile.
    Snapshot,
    /// All tables were locked until its end: there is one without transactions.
    Locks,
}

/// Where a dump looks for rows: nowhere, so that all else of it is tried.
const NO_ROWS: &str = "--where=1=0";

/// Longest first line that is looked at.
const FIRST_LINE: usize = 256;

/// A running dump, and what of its text has come but was not read.
#[derive(Debug)]
pub struct Dump {
    process: Process,
    client: Client,
    sandbox: Sandbox,
    statements: Statements,
    waiting: Vec<u8>,
    /// Bytes of `waiting` that have been read.
    read: usize,
}

impl Dump {
    /// Does all that a dump does, but for the rows and the locks, since announces flow: logs in,
    /// takes the snapshot, asks for every table. What it may not do shows now and not when
    /// announces wait.
    ///
    /// # Errors
    ///
    /// As of a dump.
    pub fn rehearse(
        client: &Client,
        consistency: Consistency,
        within: Duration,
        watch: &Watch,
    ) -> Result<(), Error> {
        let began = now();
        if consistency == Consistency::Locks {
            client.may_lock(within, watch)?;
        }
        let mut dump = Self::begin(client, &[consistency.rehearsed(), &[NO_ROWS]].concat())?;
        while dump.take(Some((began, within)), watch)? {
            dump.waiting.clear();
        }
        dump.finish(watch).map(drop)
    }

    /// Starts a dump.
    ///
    /// # Errors
    ///
    /// When the program does not start.
    pub fn start(client: &Client, consistency: Consistency) -> Result<Self, Error> {
        Self::begin(client, consistency.options())
    }

    fn begin(client: &Client, options: &[&str]) -> Result<Self, Error> {
        Ok(Self {
            process: client.dump(options)?,
            client: client.clone(),
            sandbox: Sandbox::default(),
            statements: Statements::default(),
            waiting: Vec::new(),
            read: 0,
        })
    }

    /// Waits until the structure of the first table has come out: the program asks for it
    /// after it has begun its transaction, or locked the tables.
    ///
    /// # Errors
    ///
    /// When it fails or takes longer than this.
    pub fn until_pinned(&mut self, within: Duration, watch: &Watch) -> Result<(), Error> {
        let began = now();
        while !self.statements.has_table() {
            if !self.take(Some((began, within)), watch)? {
                // A database without tables: the dump is its own end. Or it failed.
                return self.process.finish(watch);
            }
        }
        Ok(())
    }

    /// What ends it from outside.
    pub(super) fn handle(&self) -> Handle {
        self.process.handle()
    }

    /// Its text as a stream, which only ends well with a dump that is complete.
    pub(super) fn text<'a>(
        &'a mut self,
        pace: &'a dyn Fn(u64) -> io::Result<()>,
        watch: &'a Watch,
    ) -> Text<'a> {
        Text {
            dump: self,
            pace,
            watch,
            done: 0,
            rows: None,
            failure: None,
        }
    }

    /// Takes what the program writes next; `false`: it has ended its output.
    fn take(
        &mut self,
        limit: Option<(std::time::Instant, Duration)>,
        watch: &Watch,
    ) -> Result<bool, Error> {
        let chunk = self.process.next("the first table", limit, watch)?;
        let before = self.waiting.len();
        match &chunk {
            Some(chunk) => self.sandbox.strip(chunk, &mut self.waiting),
            None => self.sandbox.rest(&mut self.waiting),
        }
        self.statements.read(&self.waiting[before..]);
        Ok(chunk.is_some())
    }

    /// The rows of each table, if the program ended well and the dump is complete.
    fn finish(&mut self, watch: &Watch) -> Result<Rows, Error> {
        self.process.finish(watch)?;
        std::mem::take(&mut self.statements)
            .finish()
            .map_err(|why| Error::Incomplete {
                program: self.process.name().to_owned(),
                address: Box::new(self.client.address().clone()),
                why,
            })
    }
}

impl Consistency {
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Snapshot => &["--single-transaction"],
            Self::Locks => &["--skip-single-transaction", "--lock-tables"],
        }
    }

    /// Those of a rehearsal, which keeps no writer waiting.
    fn rehearsed(self) -> &'static [&'static str] {
        match self {
            Self::Snapshot => self.options(),
            Self::Locks => &["--skip-single-transaction", "--skip-lock-tables"],
        }
    }
}

/// The text of a [`Dump`].
pub(super) struct Text<'a> {
    dump: &'a mut Dump,
    /// Waits until so many bytes are not too fast.
    pace: &'a dyn Fn(u64) -> io::Result<()>,
    watch: &'a Watch,
    done: u64,
    rows: Option<Rows>,
    failure: Option<Error>,
}

impl Text<'_> {
    /// The rows of each table, once it has ended well.
    ///
    /// # Errors
    ///
    /// Why it has not, if it was the dump that failed, and not who read it.
    pub(super) fn rows(self) -> Result<Option<Rows>, Error> {
        match self.failure {
            Some(failure) => Err(failure),
            None => Ok(self.rows),
        }
    }

    fn fill(&mut self) -> Result<(), Error> {
        if self.dump.read < self.dump.waiting.len() || self.rows.is_some() {
            return Ok(());
        }
        self.dump.waiting.clear();
        self.dump.read = 0;
        // The sandbox line alone is no text.
        while self.dump.waiting.is_empty() {
            if !self.dump.take(None, self.watch)? {
                self.rows = Some(self.dump.finish(self.watch)?);
                break;
            }
        }
        Ok(())
    }
}

impl Read for Text<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (self.pace)(self.done)?;
        if let Err(error) = self.fill() {
            let told = error.to_string();
            self.failure = Some(error);
            return Err(io::Error::other(told));
        }
        let waiting = &self.dump.waiting[self.dump.read..];
        let length = waiting.len().min(buffer.len());
        buffer[..length].copy_from_slice(&waiting[..length]);
        self.dump.read += length;
        self.done += length as u64;
        Ok(length)
    }
}

/// Takes out the first line of MariaDB's dumps, `/*M!999999\- enable the sandbox mode */` or
/// the like (since 10.5.25), with which they ask MariaDB's client to run no commands. To
/// MySQL's client, and to older ones of MariaDB, it is an unknown command, and the import ends.
#[derive(Debug, Default)]
enum Sandbox {
    #[default]
    Begin,
    /// What there is of the first line.
    Line(Vec<u8>),
    Past,
}

impl Sandbox {
    /// Appends what is not of that line to `to`.
    fn strip(&mut self, chunk: &[u8], to: &mut Vec<u8>) {
        let mut line = match std::mem::replace(self, Self::Past) {
            Self::Past => return to.extend_from_slice(chunk),
            Self::Begin => Vec::new(),
            Self::Line(line) => line,
        };
        line.extend_from_slice(chunk);
        match line.iter().position(|&byte| byte == b'\n') {
            Some(end) if is_sandbox(&line[..end]) => to.extend_from_slice(&line[end + 1..]),
            None if line.len() < FIRST_LINE => *self = Self::Line(line),
            _ => to.extend_from_slice(&line),
        }
    }

    /// There is no more: what was a line is text after all.
    fn rest(&mut self, to: &mut Vec<u8>) {
        if let Self::Line(line) = std::mem::replace(self, Self::Past) {
            to.extend(line);
        }
    }
}

fn is_sandbox(line: &[u8]) -> bool {
    let mark = br"999999\-";
    line.starts_with(b"/*") && line.windows(mark.len()).any(|part| part == mark)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is left of `text`, whatever the chunks it comes in.
    fn stripped(text: &[u8]) -> Vec<u8> {
        let in_chunks = |size: usize| {
            let (mut sandbox, mut left) = (Sandbox::default(), Vec::new());
            for chunk in text.chunks(size) {
                sandbox.strip(chunk, &mut left);
            }
            sandbox.rest(&mut left);
            left
        };
        let whole = in_chunks(text.len().max(1));
        for size in 1..text.len() {
            assert_eq!(in_chunks(size), whole, "in chunks of {size}");
        }
        whole
    }

    #[test]
    fn the_sandbox_line_goes_and_nothing_else() {
        for (text, left) in [
            (
                "/*M!999999\\- enable the sandbox mode */ \n-- MariaDB\n",
                "-- MariaDB\n",
            ),
            (
                "/*!999999\\- enable the sandbox mode */\n-- MariaDB\n",
                "-- MariaDB\n",
            ),
            (
                "-- MySQL dump\n/*M!999999\\- x */\n",
                "-- MySQL dump\n/*M!999999\\- x */\n",
            ),
            (
                "/*!40101 SET NAMES utf8mb4 */;\n",
                "/*!40101 SET NAMES utf8mb4 */;\n",
            ),
            ("no line", "no line"),
            ("", ""),
        ] {
            assert_eq!(String::from_utf8_lossy(&stripped(text.as_bytes())), left);
        }
        let long = format!("{}\n", "x".repeat(3 * FIRST_LINE));
        assert_eq!(stripped(long.as_bytes()), long.as_bytes());
    }
}
