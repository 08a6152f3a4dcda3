//! Commands of the operator's that belong to a run: what one is told, how long it may take,
//! and what is kept of what it says.
//!
//! | hook         | when                                                    | what waits for it  |
//! |--------------|---------------------------------------------------------|--------------------|
//! | `before`     | first of all; if it fails, so does the run              | the run, gate open |
//! | `ready`      | when the file is ready                                  | nothing            |
//! | `after`      | at the end, whatever it was, once `before` has begun    | the next `before`  |
//! | `on_failure` | then, unless a backup was made                          | the next `before`  |
//!
//! A command is its words, and no shell reads them. It has a process group of its own, which
//! ends with it or at the limit; its standard input is empty. Hooks never overlap: who calls
//! them ([`crate::herald`]) does so one after the other, so that what `after` takes down is
//! down before the next run's `before` builds it up.
//!
//! # When one fails
//!
//! What exits with anything but 0, or cannot be started, is called again, up to [`ATTEMPTS`]
//! times in all, a second and then two apart. All of them together have the time that one has, so
//! a hook that fails holds nothing up for longer than one that is slow. What was ended is not
//! called again.
//!
//! # What a hook learns
//!
//! Its environment is made, not inherited: the variables of [`HANDED_ON`], and those of
//! [`Facts::variables`]. The service's own may hold its whole configuration, or keys of a
//! store, and what is not handed on cannot be printed by a script.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::time::{Sleep, sleep};

use crate::catalogue::BackupId;
use crate::driver::LOG_TARGET;
use crate::lease;
use crate::process::{Group, TERM_WITHIN, how};
use crate::window::{Outcome, RunId};

/// Bytes kept of the beginning of what a hook says, and of its end.
pub const KEPT_OF_EACH_END: usize = 8 * 1024;
/// How often a hook is called that fails.
pub const ATTEMPTS: u32 = 3;
/// Between the first attempt and the second; twice as long before the next.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Lines of it that are part of an error.
const LINES_TOLD: usize = 3;
/// Characters of such a line.
const LINE_TOLD: usize = 300;
/// Reads of what is left in the pipe when a command has ended: more than a pipe holds.
const LAST_READS: usize = 32;

/// How long a command has from SIGTERM to SIGKILL when it is cut short.
const TERM_WITHIN_WHEN_CUT_SHORT: Duration = Duration::from_millis(200);

/// Variables that a hook has from the service: where programs are, and how to speak.
pub const HANDED_ON: [&str; 10] = [
    "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER",
];

/// When a command is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// Before anything else of a run.
    Before,
    /// When the file is ready.
    Ready,
    /// At the end.
    After,
    /// At the end of a run that was not done.
    OnFailure,
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Before, Self::Ready, Self::After, Self::OnFailure];

    /// As it is written in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Ready => "ready",
            Self::After => "after",
            Self::OnFailure => "on_failure",
        }
    }
}

impl std::fmt::Display for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What a hook is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The run.
    pub run: RunId,
    /// The database, as configured.
    pub database: PathBuf,
    /// The directory of the backups, as configured.
    pub directory: PathBuf,
    /// How the run ended; `None`: it has not.
    pub outcome: Option<Outcome>,
    /// The backup it published.
    pub backup: Option<BackupId>,
}

impl Facts {
    /// The variables a hook has from them. All are always set, so that a script may insist on
    /// that (`set -u`); one there is nothing to say of is empty.
    #[must_use]
    pub fn variables(&self, hook: Hook) -> [(&'static str, std::ffi::OsString); 8] {
        let outcome = self.outcome.as_ref();
        let backup = self.backup.as_ref();
        [
            ("TORRUST_MAINTENANCE_HOOK", hook.name().into()),
            ("TORRUST_MAINTENANCE_RUN", self.run.as_str().into()),
            ("TORRUST_MAINTENANCE_DATABASE", self.database.clone().into()),
            (
                "TORRUST_MAINTENANCE_DIRECTORY",
                self.directory.clone().into(),
            ),
            (
                "TORRUST_MAINTENANCE_OUTCOME",
                outcome.map_or("", Outcome::kind).into(),
            ),
            (
                "TORRUST_MAINTENANCE_CAUSE",
                outcome
                    .and_then(Outcome::cause)
                    .map_or("", |cause| cause.name())
                    .into(),
            ),
            (
                "TORRUST_MAINTENANCE_MESSAGE",
                // A variable ends at a zero byte, and one that has any is refused.
                lease::on_one_line(outcome.map_or("", Outcome::message)).into(),
            ),
            (
                "TORRUST_MAINTENANCE_BACKUP",
                backup.map(ToString::to_string).unwrap_or_default().into(),
            ),
        ]
    }
}

/// Why a hook did not do what it was to do. The command is called by its first word: the
/// others may be secrets.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such program, or it may not be run.
    #[error("the hook `{hook}` (`{program}`) could not be started: {source}")]
    NotStarted {
        /// Which hook.
        hook: Hook,
        /// The first word of its command.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It said so, or was killed.
    #[error("the hook `{hook}` (`{program}`) {how}{said}")]
    Failed {
        /// Which hook.
        hook: Hook,
        /// The first word of its command.
        program: String,
        /// In what way.
        how: String,
        /// The last lines of what it said.
        said: Said,
    },
    /// It ended, and what it had started did not.
    #[error(
        "the hook `{hook}` (`{program}`) left processes running, which were ended: have it wait \
         for all that it starts{said}"
    )]
    Lingered {
        /// Which hook.
        hook: Hook,
        /// The first word of its command.
        program: String,
        /// The last lines of what it said.
        said: Said,
    },
    /// It took too long.
    #[error(
        "the hook `{hook}` (`{program}`) was ended after {limit:?}: make it faster, or raise \
         maintenance.hooks.timeout{said}"
    )]
    TimedOut {
        /// Which hook.
        hook: Hook,
        /// The first word of its command.
        program: String,
        /// How long it had.
        limit: Duration,
        /// The last lines of what it said.
        said: Said,
    },
    /// Somebody else wanted it to end.
    #[error("the hook `{hook}` (`{program}`) was ended: {why}{said}")]
    CutShort {
        /// Which hook.
        hook: Hook,
        /// The first word of its command.
        program: String,
        /// What for.
        why: String,
        /// The last lines of what it said.
        said: Said,
    },
}

impl Error {
    /// Whether another attempt may do better.
    fn may_pass(&self) -> bool {
        match self {
            Self::NotStarted { .. } | Self::Failed { .. } => true,
            Self::Lingered { .. } | Self::TimedOut { .. } | Self::CutShort { .. } => false,
        }
    }
}

/// Runs `command` to its end, in several attempts if need be, for as long as another has a
/// meaning (`again`). What runs is ended after `within`, counted from the first attempt, or when
/// `cut_short` says why. What it says goes to the log, by line.
///
/// # Errors
///
/// When it could not be started, did not exit with 0, left processes running or was ended; of
/// several attempts what became of the last.
pub async fn carry_out(
    hook: Hook,
    command: &[String],
    facts: &Facts,
    within: Duration,
    cut_short: impl Future<Output = String>,
    again: impl Fn() -> bool,
) -> Result<(), Error> {
    let limit = sleep(within);
    tokio::pin!(limit, cut_short);
    let mut pause = FIRST_PAUSE;
    for attempt in 1.. {
        let left = Left {
            of: within,
            limit: limit.as_mut(),
            cut_short: cut_short.as_mut(),
        };
        let Err(error) = left.attempt(hook, command, facts).await else {
            break;
        };
        if attempt == ATTEMPTS || !error.may_pass() || !again() {
            return Err(error);
        }
        tracing::warn!(
            target: LOG_TARGET, run = %facts.run, "{error}; it is called again if there is time"
        );
        tokio::select! {
            () = sleep(pause) => {}
            () = &mut limit => return Err(error),
            _ = &mut cut_short => return Err(error),
        }
        if !again() {
            return Err(error);
        }
        pause *= 2;
    }
    Ok(())
}

/// The time that is left to a hook.
struct Left<'a, C> {
    /// How long it was.
    of: Duration,
    limit: Pin<&'a mut Sleep>,
    cut_short: Pin<&'a mut C>,
}

impl<C: Future<Output = String>> Left<'_, C> {
    /// Runs `command` to its end, or ends it.
    async fn attempt(self, hook: Hook, command: &[String], facts: &Facts) -> Result<(), Error> {
        let program = command.first().cloned().unwrap_or_default();
        let not_started = |source| Error::NotStarted {
            hook,
            program: program.clone(),
            source,
        };
        let (mut group, mut output) = spawn(hook, command, facts).map_err(not_started)?;
        let mut kept = Kept::default();
        let end = {
            let reading = read(&mut output, &mut kept);
            let ending = async {
                let end = tokio::select! {
                    biased;
                    ended = group.ended() => End::Itself(ended),
                    why = self.cut_short => End::CutShort(why),
                    () = self.limit => End::Limit,
                };
                // Who cuts it short waits.
                let term_within = match end {
                    End::CutShort(_) => TERM_WITHIN_WHEN_CUT_SHORT,
                    End::Itself(_) | End::Limit => TERM_WITHIN,
                };
                group.end(term_within).await;
                end
            };
            tokio::pin!(reading, ending);
            tokio::select! {
                biased;
                end = &mut ending => end,
                never = &mut reading => match never {},
            }
        };
        read_rest(&output, &mut kept);
        kept.log(hook, &facts.run);
        let said = kept.last_lines();
        match end {
            End::Itself(Ok((status, false))) if status.success() => Ok(()),
            End::Itself(Ok((status, false))) => Err(Error::Failed {
                hook,
                program,
                how: how(status),
                said,
            }),
            End::Itself(Ok((_, true))) => Err(Error::Lingered {
                hook,
                program,
                said,
            }),
            End::Itself(Err(error)) => Err(Error::Failed {
                hook,
                program,
                how: format!("could not be waited for: {error}"),
                said,
            }),
            End::Limit => Err(Error::TimedOut {
                hook,
                program,
                limit: self.of,
                said,
            }),
            End::CutShort(why) => Err(Error::CutShort {
                hook,
                program,
                why,
                said,
            }),
        }
    }
}

/// What ended the wait for a command.
enum End {
    /// How it ended, and whether something it started went on.
    Itself(io::Result<(std::process::ExitStatus, bool)>),
    Limit,
    CutShort(String),
}

/// Starts a command whose output and errors come through one pipe, so that they are in order.
fn spawn(hook: Hook, command: &[String], facts: &Facts) -> io::Result<(Group, pipe::Receiver)> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let (output, input) = io::pipe()?;
    let handed_on = HANDED_ON
        .into_iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)));
    // The command goes at the end of this, and with it this process's ends of the pipe.
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(handed_on)
        .envs(facts.variables(hook))
        .stdin(Stdio::null())
        .stdout(input.try_clone()?)
        .stderr(input)
        // A group of its own, so that what it starts ends with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let output = pipe::Receiver::from_owned_fd(output.into())?;
    Ok((Group::of(child), output))
}

/// Reads for as long as it is polled: that the pipe is closed does not mean that the command
/// has ended.
async fn read(output: &mut pipe::Receiver, kept: &mut Kept) -> Infallible {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = output.read(&mut buffer).await {
        kept.take(&buffer[..read]);
    }
    std::future::pending().await
}

/// What is in the pipe still. Somebody who left the group may go on writing.
fn read_rest(output: &pipe::Receiver, kept: &mut Kept) {
    let mut buffer = vec![0; 16 * 1024];
    for _ in 0..LAST_READS {
        let Ok(read @ 1..) = output.try_read(&mut buffer) else {
            return;
        };
        kept.take(&buffer[..read]);
    }
}

/// The beginning and the end of what a command says.
#[derive(Debug, Default)]
struct Kept {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    /// Bytes between the two.
    dropped: u64,
}

impl Kept {
    fn take(&mut self, mut bytes: &[u8]) {
        let room = KEPT_OF_EACH_END - self.head.len();
        let (first, rest) = bytes.split_at(room.min(bytes.len()));
        self.head.extend_from_slice(first);
        bytes = rest;
        self.tail.extend(bytes);
        let excess = self.tail.len().saturating_sub(KEPT_OF_EACH_END);
        self.tail.drain(..excess);
        self.dropped += excess as u64;
    }

    /// What was kept, line by line, fit for a log. Where something is missing a line says so.
    fn lines(&self) -> Vec<String> {
        let (head, tail) = (
            String::from_utf8_lossy(&self.head).into_owned(),
            self.tail.iter().copied().collect::<Vec<u8>>(),
        );
        let tail = String::from_utf8_lossy(&tail).into_owned();
        let text = match self.dropped {
            0 => head + &tail,
            dropped => format!("{head}\n[{dropped} bytes are left out here]\n{tail}"),
        };
        let lines = text.lines().map(|line| lease::on_one_line(line.trim_end()));
        lines.filter(|line| !line.is_empty()).collect()
    }

    fn last_lines(&self) -> Said {
        let lines = self.lines();
        let last = lines.iter().rev().take(LINES_TOLD).rev();
        Said(
            last.map(|line| line.chars().take(LINE_TOLD).collect())
                .collect(),
        )
    }

    fn log(&self, hook: Hook, run: &RunId) {
        for line in self.lines() {
            tracing::info!(target: LOG_TARGET, run = %run, hook = %hook, "{line}");
        }
    }
}

/// The last lines of what a hook said, as the end of a sentence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said(Vec<String>);

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("; it said nothing");
        }
        write!(f, "; it said: {}", self.0.join(" / "))
    }
}

#[cfg(test)]
mod tests;
