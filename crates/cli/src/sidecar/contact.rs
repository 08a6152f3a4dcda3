//! How a sidecar speaks with a tracker: over HTTP, by files, or, where none runs, with a
//! pin of its own. All three carry out a [`Request`] and give a [`Reply`]; none of them
//! decides anything.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use http::StatusCode;
use rustix::rand::{GetRandomFlags, getrandom};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;
use torrust_tracker_maintenance::disk::{Disk, Lock};
use torrust_tracker_maintenance::restore;
use torrust_tracker_maintenance::sidecar::Offer;
use torrust_tracker_maintenance::snapshot::Watch;
use torrust_tracker_maintenance::sqlite::{Database, Journal, Pin, PinError};
use torrust_tracker_maintenance::status::{self, CopyOf, PinnedFile, Taker};
use torrust_tracker_maintenance::window::RunId;

use super::round::{Grant, Ready, Refusal, Reply, Request};
use super::touch_file::TouchFile;
use crate::client::{self, Client, Endpoint};
use crate::exit::{Exit, Failure};

/// How long a tracker may take to say that nothing is ready. Short enough to notice within
/// a claim's time that the connection is dead.
pub const LOOK_FOR: Duration = Duration::from_secs(10);

/// How long a tracker may take to say whether it takes the token, before it is looked at
/// for runs.
const LET_IN_WITHIN: Duration = Duration::from_secs(3);

/// How long one's own pin waits for locks.
const PIN_WITHIN: Duration = Duration::from_secs(20);

/// One's own pin has no deadline; as long as no run takes.
const FOR_DAYS: Duration = Duration::from_secs(30 * 86_400);

/// Who is asked.
#[derive(Debug)]
pub enum Contact {
    Http(Http),
    TouchFile(TouchFile),
    Own(OwnPin),
}

impl Contact {
    pub async fn ask(&self, request: &Request) -> Reply {
        match self {
            Self::Http(http) => http.ask(request).await,
            Self::TouchFile(file) => file.ask(request).await,
            Self::Own(own) => own.ask(request).await,
        }
    }

    /// Why no run could be taken, where that is known before there is one. What may pass by
    /// itself is none of it.
    pub async fn keeps_out(&self) -> Option<Failure> {
        let Self::Http(http) = self else {
            return None;
        };
        let let_in = timeout(LET_IN_WITHIN, http.lets_in()).await.ok()?;
        let_in
            .err()
            .map(Failure::from)
            .filter(|failure| failure.error == "unauthorized")
    }

    /// The pin to copy from, if it is this process's own.
    pub fn pin(&self) -> Option<Arc<Pin>> {
        match self {
            Self::Http(_) | Self::TouchFile(_) => None,
            Self::Own(own) => own.pin(),
        }
    }
}

/// A tracker's endpoint.
#[derive(Debug)]
pub struct Http {
    client: Client,
    /// Who claims.
    name: String,
    /// What proves that the lease on a run is this process's, when a reply was lost or two
    /// sidecars have the same name.
    nonce: Mutex<Option<(RunId, String)>>,
}

impl Http {
    pub fn new(client: Client, name: String) -> Self {
        Self {
            client,
            name,
            nonce: Mutex::default(),
        }
    }

    /// Where it is.
    pub fn endpoint(&self) -> &Endpoint {
        self.client.endpoint()
    }

    async fn ask(&self, request: &Request) -> Reply {
        let nonce = match request {
            Request::Look | Request::Start => Ok(String::new()),
            Request::Claim(run) | Request::Renew(run, _) | Request::Finish(run, _) => {
                self.nonce(run)
            }
        };
        let nonce = match nonce {
            Ok(nonce) => nonce,
            Err(failure) => return Reply::Unclear(failure),
        };
        let asked = match request {
            Request::Look => self.look(LOOK_FOR).await,
            Request::Start => self.client.start().await.map(Reply::Started),
            Request::Claim(run) => {
                let body = json!({ "holder": self.name, "lease": nonce });
                self.lease(run, "claim", &body).await
            }
            Request::Renew(run, within) => {
                let body = json!({ "lease": nonce });
                timeout(*within, self.lease(run, "renew", &body))
                    .await
                    .unwrap_or_else(|_| {
                        Err(self.client.silent(&format!("nothing within {within:?}")))
                    })
            }
            Request::Finish(run, reason) => self.finish(run, &nonce, reason.as_deref()).await,
        };
        asked.unwrap_or_else(refused)
    }

    /// What the lease on this run is known by: the same in each request, and of no other run.
    fn nonce(&self, run: &RunId) -> Result<String, Failure> {
        let mut known = self.nonce.lock().unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((of, nonce)) if of == run => Ok(nonce.clone()),
            _ => {
                let nonce = random()?;
                *known = Some((run.clone(), nonce.clone()));
                Ok(nonce)
            }
        }
    }

    /// `GET /ready`; waits for it up to `wait`.
    pub async fn look(&self, wait: Duration) -> Result<Reply, client::Error> {
        let path = format!("/ready?wait={}", wait.as_secs());
        let answer = self.client.get(&path, wait).await?;
        if answer.status == StatusCode::SERVICE_UNAVAILABLE && answer.body["ready"] == false {
            let run = answer.body["run"].as_str().and_then(RunId::parse);
            return Ok(Reply::NotReady(run));
        }
        let said = self.client.understand(self.client.accepted(answer)?)?;
        let ready = understood(said);
        let ready = ready.map_err(|why| self.client.not_understood(&why))?;
        Ok(Reply::Ready(Box::new(ready)))
    }

    /// Whether whoever has this token may take runs.
    pub async fn lets_in(&self) -> Result<(), client::Error> {
        self.client.lets_in().await
    }

    async fn lease(&self, run: &RunId, what: &str, body: &Value) -> Result<Reply, client::Error> {
        #[derive(Deserialize)]
        struct Granted {
            ttl_seconds: f64,
            expires_seconds: f64,
            deadline: DateTime<Utc>,
            deadline_seconds: f64,
        }
        let granted = self.client.post(&path(run, what), body).await?;
        let granted: Granted = self.client.understand(granted)?;
        Ok(Reply::Granted(Grant {
            ttl: seconds(granted.ttl_seconds),
            expires: seconds(granted.expires_seconds),
            deadline: seconds(granted.deadline_seconds),
            deadline_utc: granted.deadline,
        }))
    }

    async fn finish(
        &self,
        run: &RunId,
        nonce: &str,
        reason: Option<&str>,
    ) -> Result<Reply, client::Error> {
        #[derive(Deserialize)]
        struct Verdict {
            held_throughout: bool,
            why: Option<String>,
        }
        let mut body = json!({ "lease": nonce, "result": "ok" });
        if let Some(reason) = reason {
            body["result"] = json!("failed");
            body["reason"] = json!(shortened(reason));
        }
        let verdict = self.client.post(&path(run, "finish"), &body).await?;
        let verdict: Verdict = self.client.understand(verdict)?;
        Ok(Reply::Verdict {
            held: verdict.held_throughout,
            why: verdict.why,
        })
    }
}

/// 16 bytes that nobody can guess, in hexadecimal digits.
fn random() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    // So few come whole, and once the system has begun at once.
    getrandom(&mut bytes, GetRandomFlags::empty()).map_err(|error| {
        let why = format!("the system gives no random bytes: {error}");
        Failure::new(Exit::Failed, "no_lease", why)
    })?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

fn path(run: &RunId, what: &str) -> String {
    format!("/api/v1/runs/{run}/{what}")
}

/// The tracker takes 1,000 characters.
pub fn shortened(reason: &str) -> String {
    reason.chars().take(1000).collect()
}

/// What no clock can hold is as good as a month.
pub fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).map_or(FOR_DAYS, |time| time.min(FOR_DAYS))
}

fn refused(error: client::Error) -> Reply {
    use client::Error;
    let reply = match &error {
        Error::NotRunning { .. } | Error::Unreachable { .. } => Reply::Nobody,
        Error::NotAllowed { .. } => |failure| Reply::Refused(Refusal::Other, failure),
        Error::Silent { .. } | Error::NotUnderstood { .. } => Reply::Unclear,
        Error::Refused { status, error, .. } => match (status, error.as_str()) {
            (410, _) | (409, "not_ready") => |failure| Reply::Refused(Refusal::Gone, failure),
            // It may be different the next time. Nothing is in progress that could be taken.
            (409, "too_soon" | "stuck") | (408 | 429 | 500.., _) => Reply::Unclear,
            (409, _) => |failure| Reply::Refused(Refusal::Taken, failure),
            _ => |failure| Reply::Refused(Refusal::Other, failure),
        },
    };
    reply(error.into())
}

/// What is to be made of a 200 of `GET /ready`.
fn understood(said: status::Ready) -> Result<Ready, String> {
    Ok(Ready {
        offer: Offer {
            // It will stand in the names of files.
            run: RunId::parse(said.run.as_str()).ok_or("the run's id is none")?,
            began: said.began,
            pinned: said.pinned,
            journal: Journal::named(&said.journal_mode)
                .ok_or_else(|| format!("`{}` is no journal mode", said.journal_mode))?,
            pause: seconds(said.pause_ms / 1000.0),
            file: said.file,
        },
        database: said.database,
        copy: said.copy,
        for_sidecars: said.taken_by == Taker::Sidecar,
        holder: said.lease.map(|lease| {
            let left = lease.expires_seconds;
            format!(
                "{:?}, for another {left:.0} s unless it is renewed,",
                lease.holder
            )
        }),
        claim_within: said.claim_within_seconds.map(seconds),
    })
}

/// A pin of this process's own, for `--force` where no tracker answers. It needs the right
/// to write to the database and its directory.
#[derive(Debug)]
pub struct OwnPin {
    path: PathBuf,
    began: DateTime<Utc>,
    watch: Watch,
    taken: Mutex<Option<Own>>,
}

/// A pin and, on a rollback journal, the word that the database is in use: a service that
/// started meanwhile could not write.
#[derive(Debug)]
struct Own {
    pin: Arc<Pin>,
    _in_use: Option<Lock>,
}

impl OwnPin {
    pub fn new(path: PathBuf, began: DateTime<Utc>) -> Self {
        Self {
            path,
            began,
            watch: Watch::default(),
            taken: Mutex::default(),
        }
    }

    fn pin(&self) -> Option<Arc<Pin>> {
        self.taken().as_ref().map(|own| Arc::clone(&own.pin))
    }

    fn taken(&self) -> MutexGuard<'_, Option<Own>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, request: &Request) -> Reply {
        match request {
            Request::Look => self.look().await,
            Request::Start => Reply::Started(RunId::new(self.began)),
            Request::Claim(_) | Request::Renew(..) => Reply::Granted(Grant {
                ttl: FOR_DAYS,
                expires: FOR_DAYS,
                deadline: FOR_DAYS,
                deadline_utc: self.began + FOR_DAYS,
            }),
            Request::Finish(..) => {
                let held = self.taken().take().is_some_and(|own| own.pin.stands());
                Reply::Verdict { held, why: None }
            }
        }
    }

    /// Pins the database: then it is ready.
    async fn look(&self) -> Reply {
        let (path, watch) = (self.path.clone(), self.watch.clone());
        let taken = tokio::task::spawn_blocking(move || pin(&path, &watch)).await;
        let own = match taken {
            Ok(Ok(own)) => own,
            Ok(Err(failure)) if failure.error == "not_pinned" && failure.exit == Exit::Busy => {
                return Reply::Unclear(failure);
            }
            Ok(Err(failure)) => return Reply::Refused(Refusal::Other, failure),
            Err(panicked) => {
                let failure = Failure::new(Exit::Failed, "not_pinned", panicked.to_string());
                return Reply::Refused(Refusal::Other, failure);
            }
        };
        let pin = &own.pin;
        let facts = &pin.facts;
        let ready = Ready {
            offer: Offer {
                run: RunId::new(self.began),
                began: self.began,
                pinned: pin.taken,
                journal: facts.journal,
                pause: Duration::ZERO,
                file: PinnedFile {
                    device: facts.device,
                    inode: facts.inode,
                    page_size: facts.page_size,
                    page_count: facts.page_count,
                    bytes: facts.bytes(),
                    // What cannot be looked at is not the file that is found later.
                    modified: std::fs::metadata(&facts.path)
                        .map_or(0, |found| PinnedFile::modified_of(&found)),
                },
            },
            database: facts.path.clone(),
            copy: if facts.journal.blocks_writers() {
                CopyOf::PausedDatabase
            } else {
                CopyOf::PinnedFile
            },
            for_sidecars: true,
            holder: None,
            claim_within: None,
        };
        *self.taken() = Some(own);
        Reply::Ready(Box::new(ready))
    }
}

fn pin(path: &Path, watch: &Watch) -> Result<Own, Failure> {
    let wrong =
        |error: &dyn std::fmt::Display| Failure::new(Exit::Usage, "no_database", error.to_string());
    let database = Database::open(path).map_err(|error| wrong(&error))?;
    let journal = database.facts().map_err(|error| wrong(&error))?.journal;
    let in_use = if journal.blocks_writers() {
        let held = restore::hold(path, &Disk::default());
        let held =
            held.map_err(|error| Failure::new(Exit::Failed, "not_pinned", error.to_string()))?;
        Some(held.ok_or_else(|| {
            let message = format!(
                "{} is on a rollback journal and a tracker has it open, which could not write \
                 during the copy: stop it, or give its --endpoint",
                path.display()
            );
            Failure::new(Exit::Busy, "in_use", message)
        })?)
    } else {
        None
    };
    let pin = database.pin(PIN_WITHIN, watch).map_err(|error| {
        let exit = match error {
            PinError::Busy(_) => Exit::Busy,
            PinError::Failed(_) => Exit::Failed,
        };
        Failure::new(exit, "not_pinned", error.to_string())
    })?;
    Ok(Own {
        pin: Arc::new(pin),
        _in_use: in_use,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn only_a_run_in_progress_is_taken() {
        let refused = |error: &str| {
            refused(client::Error::Refused {
                status: 409,
                error: error.to_owned(),
                message: "as told".to_owned(),
            })
        };
        for taken in ["busy", "taken"] {
            let reply = refused(taken);
            assert!(
                matches!(reply, Reply::Refused(Refusal::Taken, _)),
                "{reply:?}"
            );
        }
        // There is none: it is asked again, with patience, which has an end.
        for later in ["stuck", "too_soon"] {
            let reply = refused(later);
            assert!(matches!(reply, Reply::Unclear(_)), "{reply:?}");
        }
    }

    #[test]
    fn a_lease_is_known_by_random_bytes_of_each_run() {
        let endpoint = Endpoint::Tcp("127.0.0.1:1".to_owned());
        let http = || Http::new(Client::new(endpoint.clone(), None), "x".to_owned());
        let run = |n| RunId::parse(&format!("20261122T030000Z-{n}")).expect("a run's id");
        let mut seen = HashSet::new();
        for _ in 0..2 {
            let http = http();
            for n in 0..100 {
                let nonce = http.nonce(&run(n)).expect("the system has some");
                assert_eq!(
                    http.nonce(&run(n)),
                    Ok(nonce.clone()),
                    "the same when asked again"
                );
                assert_eq!(nonce.len(), 32, "{nonce}");
                assert!(
                    nonce.bytes().all(|byte| byte.is_ascii_hexdigit()),
                    "{nonce}"
                );
                assert!(seen.insert(nonce));
            }
        }
    }
}
