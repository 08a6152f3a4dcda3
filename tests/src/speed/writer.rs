//! Commits beside a copy, as the tracker makes them, at a steady rate; each is timed.
//!
//! The load is open: a commit is due at its time whether or not the last one is done. What
//! was missed in one phase is not made up for in the next.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::announce::hex;
use crate::database;

/// What goes on beside a commit. It counts for the phase it began in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Nothing.
    Before,
    /// The log is flushed and the pin taken; in the tracker the gate is closed then.
    Pinning,
    /// The copy is made.
    Beside,
    /// The pin has ended, for as long as is looked at.
    After,
    /// Until the writer is told to end.
    Later,
    /// It is to end.
    Ended,
}

impl Phase {
    const ALL: [Self; 6] = [
        Self::Before,
        Self::Pinning,
        Self::Beside,
        Self::After,
        Self::Later,
        Self::Ended,
    ];
}

/// The commits of one phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Commits {
    /// How many.
    pub count: u64,
    /// How many of them were refused.
    pub refused: u64,
    /// How long the phase was.
    pub seconds: f64,
    /// Half of them took no longer, in milliseconds.
    pub p50_ms: f64,
    /// 99 of 100 took no longer.
    pub p99_ms: f64,
    /// None took longer.
    pub max_ms: f64,
}

impl Commits {
    /// Commits a second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate to tell a human")]
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }
}

/// The commits of a whole measurement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// [`Phase::Before`].
    pub before: Commits,
    /// [`Phase::Pinning`].
    pub pinning: Commits,
    /// [`Phase::Beside`].
    pub beside: Commits,
    /// [`Phase::After`].
    pub after: Commits,
    /// [`Phase::Later`].
    pub later: Commits,
}

/// Where a writer lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Home {
    /// In a process of its own: what it knows of the pin, it knows by file locks.
    Process,
    /// In the process that copies, on a thread: the tracker's own writers.
    Thread,
}

/// A writer at work.
#[derive(Debug)]
pub enum Writer {
    /// See [`Home::Process`].
    Process {
        /// The process.
        child: Child,
        /// Told the phases.
        told: ChildStdin,
        /// Says that it writes, and at the end its account.
        says: BufReader<ChildStdout>,
    },
    /// See [`Home::Thread`].
    Thread {
        /// The phase it is in.
        phase: Arc<AtomicUsize>,
        /// The thread.
        thread: JoinHandle<Result<Account>>,
    },
}

impl Writer {
    /// Starts one with `rate` commits a second; returns after its first.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(home: Home, database: &Path, rate: u32) -> Result<Self> {
        match home {
            Home::Process => {
                let mut child = Command::new(std::env::current_exe()?)
                    .args(["writer", "--rate", &rate.to_string(), "--database"])
                    .arg(database)
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
                    .context("starting a writer")?;
                let told = child.stdin.take().context("it is piped")?;
                let mut says = BufReader::new(child.stdout.take().context("it is piped")?);
                says.read_line(&mut String::new())
                    .context("the first commit of the writer")?;
                Ok(Self::Process { child, told, says })
            }
            Home::Thread => {
                let phase = Arc::new(AtomicUsize::new(0));
                let (began, begins) = mpsc::channel();
                let thread = thread::Builder::new().name("writer".into()).spawn({
                    let (phase, database) = (Arc::clone(&phase), database.to_owned());
                    move || {
                        write(&database, rate, &phase, || {
                            // Whoever started it waits for the first alone.
                            let _ = began.send(());
                            Ok(())
                        })
                    }
                })?;
                // Should it fail before, `end` says how.
                let _ = begins.recv();
                Ok(Self::Thread { phase, thread })
            }
        }
    }

    /// Has what it commits from here on counted for this phase.
    ///
    /// # Errors
    /// When it has ended.
    pub fn enter(&mut self, phase: Phase) -> Result<()> {
        match self {
            Self::Process { told, .. } => {
                writeln!(told, "{}", phase as usize).context("the writer has ended")
            }
            Self::Thread { phase: shared, .. } => {
                shared.store(phase as usize, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Ends it; what it committed.
    ///
    /// # Errors
    /// When it failed.
    pub fn end(mut self) -> Result<Account> {
        self.enter(Phase::Ended)?;
        match self {
            Self::Process {
                mut child,
                mut says,
                ..
            } => {
                let mut account = String::new();
                says.read_line(&mut account)?;
                if !child.wait()?.success() {
                    bail!("the writer failed");
                }
                serde_json::from_str(&account).context("the writer's account")
            }
            Self::Thread { thread, .. } => match thread.join() {
                Ok(account) => account,
                Err(_) => bail!("the writer panicked"),
            },
        }
    }
}

/// What a writer's process does: commits, and is told the phases on its standard input.
///
/// # Errors
/// When the database cannot be opened.
pub fn serve(database: &Path, rate: u32) -> Result<()> {
    let phase = Arc::new(AtomicUsize::new(0));
    thread::spawn({
        let phase = Arc::clone(&phase);
        move || {
            for line in std::io::stdin().lines() {
                let told = line.ok().and_then(|line| line.parse().ok());
                phase.store(told.unwrap_or(Phase::Ended as usize), Ordering::Relaxed);
            }
            // Whoever started it is gone, or has told it to end before.
            phase.store(Phase::Ended as usize, Ordering::Relaxed);
        }
    });
    let account = write(database, rate, &phase, || {
        let mut out = std::io::stdout();
        writeln!(out, "writing")?;
        Ok(out.flush()?)
    })?;
    println!("{}", serde_json::to_string(&account)?);
    Ok(())
}

/// Commits at `rate` a second until the phase is [`Phase::Ended`]; calls `began` after the
/// first.
///
/// # Errors
/// When the database cannot be opened, or `began` fails.
pub fn write(
    database: &Path,
    rate: u32,
    phase: &AtomicUsize,
    began: impl FnOnce() -> Result<()>,
) -> Result<Account> {
    // As the tracker opens it: every commit is synced, a lock is waited for 5 s.
    let connection = database::open(database)?;
    let mut tally = Tally::new()?;
    let announce = |tally: &mut Tally, now: Phase| {
        let info_hash = hex(&std::array::from_fn::<u8, 20, _>(|_| fastrand::u8(..)));
        let began = Instant::now();
        let committed = connection.execute(UPSERT, (info_hash, 1));
        tally.count(now, began.elapsed(), committed.is_err());
    };
    announce(&mut tally, Phase::Before);
    began()?;
    let every = Duration::from_secs(1) / rate.max(1);
    let mut due = Instant::now();
    loop {
        due += every;
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let now = Phase::ALL[phase.load(Ordering::Relaxed).min(Phase::Ended as usize)];
        if now != tally.now {
            tally.enter(now);
            due = Instant::now();
        }
        if now == Phase::Ended {
            return Ok(tally.account());
        }
        announce(&mut tally, now);
    }
}

/// As torrust-tracker 3.0.0 stores a completion (`core/databases/sqlite.rs`). Of a torrent
/// it has not seen, which costs most: four pages.
pub const UPSERT: &str = "INSERT INTO torrents (info_hash, completed) VALUES (?1, ?2)
     ON CONFLICT(info_hash) DO UPDATE SET completed = ?2";

/// Commits by phase.
struct Tally {
    phases: Vec<OfPhase>,
    now: Phase,
    since: Instant,
}

struct OfPhase {
    microseconds: Histogram<u64>,
    refused: u64,
    lasted: Duration,
}

impl Tally {
    fn new() -> Result<Self> {
        let of_phase = || {
            Ok(OfPhase {
                // Up to a minute, of which 5 s is the longest wait for a lock.
                microseconds: Histogram::new_with_bounds(1, 60_000_000, 3)?,
                refused: 0,
                lasted: Duration::ZERO,
            })
        };
        Ok(Self {
            phases: Phase::ALL
                .iter()
                .map(|_| of_phase())
                .collect::<Result<_>>()?,
            now: Phase::Before,
            since: Instant::now(),
        })
    }

    fn enter(&mut self, phase: Phase) {
        if phase != self.now {
            let at = Instant::now();
            self.phases[self.now as usize].lasted += at - self.since;
            (self.now, self.since) = (phase, at);
        }
    }

    fn count(&mut self, phase: Phase, took: Duration, refused: bool) {
        let of_phase = &mut self.phases[phase as usize];
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        of_phase.microseconds.saturating_record(microseconds.max(1));
        of_phase.refused += u64::from(refused);
    }

    fn account(&self) -> Account {
        let of = |phase: Phase| {
            let of_phase = &self.phases[phase as usize];
            let quantile = |share| milliseconds(of_phase.microseconds.value_at_quantile(share));
            Commits {
                count: of_phase.microseconds.len(),
                refused: of_phase.refused,
                seconds: of_phase.lasted.as_secs_f64(),
                p50_ms: quantile(0.5),
                p99_ms: quantile(0.99),
                max_ms: milliseconds(of_phase.microseconds.max()),
            }
        };
        Account {
            before: of(Phase::Before),
            pinning: of(Phase::Pinning),
            beside: of(Phase::Beside),
            after: of(Phase::After),
            later: of(Phase::Later),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "at most a minute")]
fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_count_for_the_phase_they_began_in() -> Result<()> {
        let mut tally = Tally::new()?;
        for (phase, ms) in [
            (Phase::Before, 1),
            (Phase::Beside, 2),
            (Phase::Beside, 40),
            (Phase::After, 3),
        ] {
            tally.enter(phase);
            tally.count(phase, Duration::from_millis(ms), ms == 40);
        }
        tally.enter(Phase::Ended);
        let account = tally.account();
        assert_eq!((account.before.count, account.pinning.count), (1, 0));
        assert_eq!((account.beside.count, account.beside.refused), (2, 1));
        assert!(account.beside.max_ms >= 40.0 && account.beside.max_ms < 41.0);
        assert!(account.after.max_ms >= 3.0 && account.after.max_ms < 3.1);
        Ok(())
    }

    #[test]
    fn a_thread_writes_until_it_is_told_to_end() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("tracker.db");
        let rows = database::make_random(&path, 1, "wal")?;
        let mut writer = Writer::start(Home::Thread, &path, 1_000)?;
        writer.enter(Phase::Beside)?;
        while database::count(&path, "torrents")? < rows + 20 {
            thread::yield_now();
        }
        let account = writer.end()?;
        let committed = account.before.count + account.beside.count;
        assert_eq!(database::count(&path, "torrents")?, rows + committed);
        assert_eq!(account.before.refused + account.beside.refused, 0);
        assert!(account.beside.p50_ms > 0.0 && account.beside.p50_ms <= account.beside.max_ms);
        Ok(())
    }
}
