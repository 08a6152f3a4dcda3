//! A tracker that is seen by its touch-file alone, for a sidecar that does not reach its
//! endpoint:
//!
//! ```text
//!  ready.json          the tracker's: this run may be copied, until then
//!  ready.json.done     ours: the copy of this run is complete
//!  ready.json.result   the tracker's: whether the file was still until that was accepted
//! ```
//!
//! The files cannot say that a copy failed, nor ask for more time: such a run ends by
//! itself. And the touch-file outlives a tracker that is killed, so nothing is believed
//! but a `.result` of the same run.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::json;
use tokio::time::{sleep, timeout};
use torrust_tracker_maintenance::disk::{self, Disk};
use torrust_tracker_maintenance::sidecar::Offer;
use torrust_tracker_maintenance::sqlite::Journal;
use torrust_tracker_maintenance::status::CopyOf;
use torrust_tracker_maintenance::touch_file::{self, RunResult};
use torrust_tracker_maintenance::window::RunId;

use super::contact::LOOK_FOR;
use super::round::{Grant, Ready, Refusal, Reply, Request};
use crate::exit::{Exit, Failure};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long one request waits for the tracker to take up what was written.
const RESULT_WITHIN: Duration = Duration::from_secs(10);
/// More bytes than one of the files has.
const LIMIT: u64 = 64 << 10;

/// The touch-file of a tracker.
#[derive(Debug)]
pub struct TouchFile {
    path: PathBuf,
    disk: Disk,
}

impl TouchFile {
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            disk: Disk::default(),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub async fn ask(&self, request: &Request) -> Reply {
        match request {
            Request::Look => self.look().await,
            Request::Start => {
                let why = "a run cannot be started by a file: use --endpoint";
                Reply::Refused(Refusal::Other, Failure::new(Exit::Usage, "usage", why))
            }
            Request::Claim(run) | Request::Renew(run, _) => self.still_shown(run),
            Request::Finish(run, None) => self.finish(run).await,
            Request::Finish(..) => Reply::Verdict {
                held: false,
                why: Some("the tracker was not told that there is a copy".to_owned()),
            },
        }
    }

    async fn look(&self) -> Reply {
        let looking = async {
            loop {
                match self.shown() {
                    Ok(None) => sleep(LOOK_EVERY).await,
                    Ok(Some(shown)) => break Ok(shown),
                    Err(failure) => break Err(failure),
                }
            }
        };
        match timeout(LOOK_FOR, looking).await {
            Err(_) => Reply::NotReady(None),
            Ok(Ok((ready, _))) => Reply::Ready(Box::new(ready)),
            Ok(Err(failure)) => Reply::Unclear(failure),
        }
    }

    /// What is shown at this moment; nobody asks the tracker.
    pub fn glance(&self) -> Result<Option<Ready>, Failure> {
        Ok(self.shown()?.map(|(ready, _)| ready))
    }

    fn still_shown(&self, run: &RunId) -> Reply {
        match self.shown() {
            Ok(Some((ready, until))) if ready.offer.run == *run => {
                let left = (until - now()).to_std().unwrap_or_default();
                Reply::Granted(Grant {
                    ttl: left.min(Duration::from_secs(3)),
                    expires: left,
                    deadline: left,
                    deadline_utc: until,
                })
            }
            Ok(_) => {
                let why = format!(
                    "{} no longer says that run {run} may be copied: the run has ended, or \
                     another sidecar has claimed it",
                    self.path.display()
                );
                Reply::Refused(Refusal::Gone, Failure::new(Exit::Failed, "stale_run", why))
            }
            Err(failure) => Reply::Unclear(failure),
        }
    }

    /// Says that there is a copy, and waits for what it is worth.
    async fn finish(&self, run: &RunId) -> Reply {
        match self.ended(run) {
            Ok(Some(verdict)) => return verdict,
            Ok(None) => {}
            Err(failure) => return Reply::Unclear(failure),
        }
        let done = format!("{}\n", json!({ "run": run }));
        let written = self
            .disk
            .write_atomically(&self.beside(".done"), done.as_bytes());
        if let Err(error) = written {
            let why = format!(
                "the tracker cannot be told that there is a copy: {error}; the directory of \
                 the touch-file must be writable"
            );
            return Reply::Unclear(Failure::new(Exit::Failed, "not_told", why));
        }
        let waiting = async {
            loop {
                match self.ended(run) {
                    Ok(Some(verdict)) => break verdict,
                    Ok(None) => sleep(LOOK_EVERY).await,
                    Err(failure) => break Reply::Unclear(failure),
                }
            }
        };
        timeout(RESULT_WITHIN, waiting).await.unwrap_or_else(|_| {
            let why = format!(
                "there is no {} of run {run}",
                self.beside(".result").display()
            );
            Reply::Unclear(Failure::new(Exit::Failed, "no_verdict", why))
        })
    }

    /// The verdict on this run, once there is one.
    fn ended(&self, run: &RunId) -> Result<Option<Reply>, Failure> {
        let Some(bytes) = self.read(&self.beside(".result"))? else {
            return Ok(None);
        };
        // It is written whole; another one is that of an earlier run.
        let ended = serde_json::from_slice::<RunResult>(&bytes).ok();
        let ended = ended.filter(|ended| ended.run == *run);
        Ok(ended.map(|ended| Reply::Verdict {
            held: ended.held_throughout,
            why: ended.why,
        }))
    }

    /// What is shown, and until when.
    fn shown(&self) -> Result<Option<(Ready, DateTime<Utc>)>, Failure> {
        let Some(bytes) = self.read(&self.path)? else {
            return Ok(None);
        };
        let parsed = serde_json::from_slice::<touch_file::Ready>(&bytes)
            .map_err(|error| error.to_string())
            .and_then(|shown| Ok((understood(&shown)?, shown.until)));
        parsed.map(Some).map_err(|why| {
            let why = format!(
                "{} is no touch-file that this version understands: {why}",
                self.path.display()
            );
            Failure::new(Exit::Failed, "not_understood", why)
        })
    }

    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Failure> {
        match self.disk.read(path, LIMIT) {
            Ok(bytes) => Ok(Some(bytes)),
            // Where there is no directory there will be no file either.
            Err(error)
                if error.source.kind() == io::ErrorKind::NotFound
                    && disk::parent(path).is_dir() =>
            {
                Ok(None)
            }
            Err(error) => Err(Failure::new(Exit::Failed, "touch_file", error.to_string())),
        }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = OsString::from(&self.path);
        path.push(suffix);
        path.into()
    }
}

/// What is to be made of a touch-file.
fn understood(shown: &touch_file::Ready) -> Result<Ready, String> {
    let run = RunId::parse(shown.run.as_str()).ok_or("the run's id is none")?;
    let began = second(&run).ok_or("the run's id does not say when it began")?;
    Ok(Ready {
        offer: Offer {
            run,
            began,
            // Everything committed before the run began is in the file.
            pinned: began,
            journal: match shown.copy {
                CopyOf::PinnedFile => Journal::Wal,
                CopyOf::PausedDatabase => Journal::Delete,
            },
            pause: Duration::ZERO,
            file: shown.file,
        },
        database: shown.database.clone(),
        copy: shown.copy,
        for_sidecars: true,
        holder: None,
        claim_within: None,
    })
}

/// The second a run began in, with which its id begins.
fn second(run: &RunId) -> Option<DateTime<Utc>> {
    let (second, _) = run.as_str().split_once('-')?;
    let second = NaiveDateTime::parse_from_str(second, "%Y%m%dT%H%M%SZ").ok()?;
    Some(second.and_utc())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the file says until when by the wall clock, which is the same for both processes"
)]
fn now() -> DateTime<Utc> {
    Utc::now()
}
