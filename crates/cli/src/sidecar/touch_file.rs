//! A tracker that is seen by its touch-file alone, for a sidecar that does not reach its
//! endpoint:
//!
//! ```text
//!  ready.json          the tracker's: this run may be copied, until then
//!  ready.json.done     ours: the copy of this run is complete, or there will be none
//!  ready.json.result   the tracker's: whether the file was still until that was accepted
//! ```
//!
//! The files cannot ask for more time: a copy that needs it ends with the run. And the
//! touch-file outlives a tracker that is killed, so nothing is believed but a `.result` of
//! the same run.
//!
//! Nor do the files say whose they are, and two sidecars may copy the same run. The first to
//! be done ends it, and from then on the file moves under the other. So a `.result` counts
//! only for whoever wrote its `.done` while the run was still shown, and only if the tracker
//! has taken up that very file, which it removes before it writes the result.
//!
//! The volume may hang. So files are looked at on a thread of their own, and what takes too
//! long is no answer.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use torrust_tracker_maintenance::disk::{self, Disk};
use torrust_tracker_maintenance::sidecar::Offer;
use torrust_tracker_maintenance::sqlite::Journal;
use torrust_tracker_maintenance::touch_file::{self, Done, RunResult};
use torrust_tracker_maintenance::window::RunId;

use super::contact::{LOOK_FOR, seconds, shortened};
use super::round::{Grant, Ready, Refusal, Reply, Request};
use crate::exit::{Exit, Failure};
use crate::units;

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long one request waits for the tracker to take up what was written.
const RESULT_WITHIN: Duration = Duration::from_secs(10);
/// More bytes than one of the files has.
const LIMIT: u64 = 64 << 10;

/// How long a volume may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The touch-file of a tracker.
#[derive(Debug)]
pub struct TouchFile {
    files: Arc<Files>,
    /// The run of which the tracker was told that there is a copy.
    told: Mutex<Option<RunId>>,
    /// Held by whoever is at the files: what hangs there holds one thread and no more.
    turn: Arc<AsyncMutex<()>>,
    answer_within: Duration,
}

/// The files themselves. Whatever is done with them may block.
#[derive(Debug)]
struct Files {
    path: PathBuf,
    disk: Disk,
}

impl TouchFile {
    pub fn new(path: PathBuf) -> Self {
        Self {
            files: Arc::new(Files {
                path,
                // The tracker is another user.
                disk: Disk::default().public(),
            }),
            told: Mutex::default(),
            turn: Arc::default(),
            answer_within: ANSWER_WITHIN,
        }
    }

    pub fn path(&self) -> &Path {
        &self.files.path
    }

    pub async fn ask(&self, request: &Request) -> Reply {
        let reply = match request {
            Request::Look => self.look().await,
            Request::Start => {
                let why = "a run cannot be started by a file: use --endpoint";
                let failure = Failure::new(Exit::Usage, "usage", why);
                Ok(Reply::Refused(Refusal::Other, failure))
            }
            Request::Claim(run) | Request::Renew(run, _) => self.still_shown(run).await,
            Request::Finish(run, None) => self.finish(run).await,
            Request::Finish(run, Some(reason)) => self.fail(run, reason).await,
        };
        reply.unwrap_or_else(Reply::Unclear)
    }

    async fn look(&self) -> Result<Reply, Failure> {
        let looking = async {
            loop {
                match self.at(Files::shown).await? {
                    None => sleep(LOOK_EVERY).await,
                    Some((ready, _)) => break Ok(Reply::Ready(Box::new(ready))),
                }
            }
        };
        let looked = timeout(LOOK_FOR, looking).await;
        looked.unwrap_or(Ok(Reply::NotReady(None)))
    }

    /// What is shown at this moment; nobody asks the tracker.
    pub fn glance(&self) -> Result<Option<Ready>, Failure> {
        Ok(self.files.shown()?.map(|(ready, _)| ready))
    }

    async fn still_shown(&self, run: &RunId) -> Result<Reply, Failure> {
        Ok(match self.at(Files::shown).await? {
            Some((ready, until)) if ready.offer.run == *run => {
                let left = (until - now()).to_std().unwrap_or_default();
                Reply::Granted(Grant {
                    ttl: left.min(Duration::from_secs(3)),
                    expires: left,
                    deadline: left,
                    deadline_utc: until,
                })
            }
            _ => self.gone(run),
        })
    }

    /// Says that there is a copy, and waits for what it is worth.
    async fn finish(&self, run: &RunId) -> Result<Reply, Failure> {
        if !self.has_told(run) {
            let shown = self.at(Files::shown).await?;
            if shown.is_none_or(|(ready, _)| ready.offer.run != *run) {
                return Ok(self.gone(run));
            }
            self.tell(run, None).await?;
            *self.told() = Some(run.clone());
        }
        let waiting = async {
            loop {
                let of = run.clone();
                match self.at(move |files| files.verdict(&of)).await? {
                    Some(verdict) => break Ok(verdict),
                    None => sleep(LOOK_EVERY).await,
                }
            }
        };
        timeout(RESULT_WITHIN, waiting).await.unwrap_or_else(|_| {
            let why = format!(
                "there is no {} of run {run}",
                self.files.beside(".result").display()
            );
            Err(Failure::new(Exit::Failed, "no_verdict", why))
        })
    }

    /// Says that there will be no copy: announces may be waiting for it. Nothing is to be
    /// waited for.
    async fn fail(&self, run: &RunId, reason: &str) -> Result<Reply, Failure> {
        let shown = self.at(Files::shown).await?;
        if shown.is_none_or(|(ready, _)| ready.offer.run != *run) {
            return Ok(self.gone(run));
        }
        self.tell(run, Some(shortened(reason))).await?;
        Ok(Reply::Verdict {
            held: false,
            why: Some("the tracker was told that there is no copy".to_owned()),
        })
    }

    async fn tell(&self, run: &RunId, failed: Option<String>) -> Result<(), Failure> {
        let done = Done {
            run: run.as_str().to_owned(),
            failed,
        };
        self.at(move |files| files.tell(&done)).await
    }

    fn gone(&self, run: &RunId) -> Reply {
        let why = format!(
            "{} no longer says that run {run} may be copied: the run has ended, or another \
             sidecar has claimed or finished it",
            self.files.path.display()
        );
        Reply::Refused(Refusal::Gone, Failure::new(Exit::Failed, "stale_run", why))
    }

    fn has_told(&self, run: &RunId) -> bool {
        self.told().as_ref() == Some(run)
    }

    fn told(&self) -> MutexGuard<'_, Option<RunId>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something at the files, in the time that a volume may take.
    async fn at<T: Send + 'static>(
        &self,
        doing: impl FnOnce(&Files) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (files, turn) = (Arc::clone(&self.files), Arc::clone(&self.turn));
        let answered = async {
            let turn = turn.lock_owned().await;
            spawn_blocking(move || {
                let done = doing(&files);
                drop(turn);
                done
            })
            .await
        };
        match timeout(self.answer_within, answered).await {
            Ok(Ok(done)) => done,
            Ok(Err(panicked)) => Err(Failure::new(Exit::Failed, "panicked", panicked.to_string())),
            Err(_) => {
                let why = format!(
                    "the directory of {} does not answer: nothing came of looking there for {}",
                    self.files.path.display(),
                    units::seconds(self.answer_within)
                );
                Err(Failure::new(Exit::Failed, "touch_file", why))
            }
        }
    }
}

impl Files {
    /// Says that there is a copy of this run, or that there will be none.
    fn tell(&self, done: &Done) -> Result<(), Failure> {
        let path = self.beside(".done");
        // Another's copy of this run may be good, though ours is not: its word stands.
        if done.failed.is_some()
            && let Some(said) = self.read(&path)?
            && String::from_utf8_lossy(&said).contains(&done.run)
        {
            return Ok(());
        }
        let written = format!("{}\n", json!(done));
        let written = self.disk.write_atomically(&path, written.as_bytes());
        written.map_err(|error| {
            let what = match done.failed {
                None => "there is a copy",
                Some(_) => "there is no copy",
            };
            let why = format!(
                "the tracker cannot be told that {what}: {error}; the directory of the \
                 touch-file must be writable"
            );
            Failure::new(Exit::Failed, "not_told", why)
        })
    }

    /// The verdict on this run, of which [`Self::tell`] told, once there is one.
    fn verdict(&self, run: &RunId) -> Result<Option<Reply>, Failure> {
        let Some(bytes) = self.read(&self.beside(".result"))? else {
            return Ok(None);
        };
        // It is written whole; another one is that of an earlier run.
        let ended = serde_json::from_slice::<RunResult>(&bytes).ok();
        let Some(ended) = ended.filter(|ended| ended.run == *run) else {
            return Ok(None);
        };
        if ended.held_throughout && self.read(&self.beside(".done"))?.is_some() {
            let why = "another sidecar was done first, which ended the run";
            return Ok(Some(Reply::Verdict {
                held: false,
                why: Some(why.to_owned()),
            }));
        }
        Ok(Some(Reply::Verdict {
            held: ended.held_throughout,
            why: ended.why,
        }))
    }

    /// What is shown, and until when. What should be gone by now is what a tracker left that
    /// was killed, or is about to go.
    fn shown(&self) -> Result<Option<(Ready, DateTime<Utc>)>, Failure> {
        let Some(bytes) = self.read(&self.path)? else {
            return Ok(None);
        };
        let parsed = serde_json::from_slice::<touch_file::Ready>(&bytes)
            .map_err(|error| error.to_string())
            .and_then(|shown| Ok((understood(&shown)?, shown.until)));
        let parsed = parsed.map(|shown| Some(shown).filter(|(_, until)| *until > now()));
        parsed.map_err(|why| {
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
    Ok(Ready {
        offer: Offer {
            run,
            began: shown.began,
            pinned: shown.pinned,
            journal: Journal::named(&shown.journal_mode)
                .ok_or_else(|| format!("`{}` is no journal mode", shown.journal_mode))?,
            pause: seconds(shown.pause_ms / 1000.0),
            file: shown.file,
        },
        database: shown.database.clone(),
        copy: shown.copy,
        for_sidecars: true,
        holder: None,
        claim_within: None,
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "the file says until when by the wall clock, which is the same for both processes"
)]
fn now() -> DateTime<Utc> {
    Utc::now()
}

#[cfg(test)]
mod tests;
