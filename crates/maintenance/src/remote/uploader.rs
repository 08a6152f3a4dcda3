//! The thread that uploads, and what is known of how far it is.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{oneshot, watch};

use super::store::pause;
use super::{Entry, Error, Remote, Report, There};
use crate::catalogue::{BackupId, Catalogue};
use crate::driver::LOG_TARGET;
use crate::snapshot::Watch;
use crate::status::{Reader, RemoteStatus};

/// It is looked again after this time though no run has published: somebody may have emptied
/// the bucket.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// The longest pause after a pass that has failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(30 * 60);

/// Uploads what the catalogue has, for as long as the service lives.
#[derive(Debug)]
pub struct Uploader {
    remote: Remote,
    catalogue: Catalogue,
    known: watch::Sender<Known>,
    there: There,
}

/// What is known of it.
#[derive(Debug, Clone, Default)]
struct Known {
    behind: u64,
    /// When the oldest of what is missing there was published.
    behind_since: Option<DateTime<Utc>>,
    last_uploaded: Option<DateTime<Utc>>,
    failure: Option<String>,
}

/// Reads how far it is. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Uploads(watch::Receiver<Known>);

impl Uploads {
    /// As of now.
    #[must_use]
    pub fn status(&self) -> RemoteStatus {
        let Known {
            behind,
            behind_since,
            last_uploaded,
            failure,
        } = self.0.borrow().clone();
        RemoteStatus {
            behind,
            behind_since_seconds: behind_since
                .and_then(|since| (now() - since).to_std().ok())
                .map(|since| since.as_secs_f64()),
            last_uploaded,
            failure,
        }
    }
}

impl Uploader {
    /// One that is yet to run.
    #[must_use]
    pub fn new(remote: Remote, catalogue: Catalogue) -> (Self, Uploads) {
        let known = watch::Sender::new(Known::default());
        let uploads = Uploads(known.subscribe());
        let mut uploader = Self {
            remote,
            catalogue,
            known,
            there: There::default(),
        };
        uploader.take_stock(None);
        (uploader, uploads)
    }

    /// Starts its thread. It ends when `stop` is used or dropped, wherever it is: what it was
    /// at is taken up again at the next start. Nobody need wait for that.
    ///
    /// # Errors
    ///
    /// When the operating system gives no thread or timer.
    pub fn start(self, runs: Reader, stop: oneshot::Receiver<()>) -> Result<(), std::io::Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        std::thread::Builder::new()
            .name("uploader".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        biased;
                        _ = stop => {}
                        () = self.run(runs) => {}
                    }
                });
                // What hangs in a disk or a name server keeps nobody.
                runtime.shutdown_background();
            })?;
        Ok(())
    }

    async fn run(mut self, mut runs: Reader) {
        tracing::info!(target: LOG_TARGET, "Backups are uploaded to {}", self.remote.at());
        let mut failed = 0;
        loop {
            let seen = newest(&runs);
            let wait = if self.pass().await {
                failed = 0;
                LOOK_EVERY
            } else {
                failed += 1;
                self.pause(failed)
            };
            tokio::select! {
                published = runs.wait_for(|status| {
                    let newest = status.runs.iter().find_map(|run| run.backup.as_ref());
                    newest.is_some() && newest != seen.as_ref()
                }) => {
                    if published.is_none() {
                        // The driver is gone, and with it all that could be new.
                        tokio::time::sleep(wait).await;
                    }
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// How long it is waited after so many passes in a row have failed: longer than between the
    /// attempts of one request.
    fn pause(&self, failed: u32) -> Duration {
        let settings = &self.remote.settings;
        let first = settings
            .back_off
            .saturating_mul(1 << settings.attempts.min(6));
        let doubled = first.saturating_mul(2_u32.saturating_pow(failed - 1));
        pause(doubled.min(LONGEST_PAUSE), 1, fastrand::f64())
    }

    /// Whether there is nothing left to do.
    async fn pass(&mut self) -> bool {
        let report = self.remote.pass(&self.catalogue, &Watch::default()).await;
        let listed = match &report {
            Ok(_) => self.remote.list().await.ok(),
            // Asked again, it would say the same.
            Err(_) => None,
        };
        let failure = match report {
            Ok(Report {
                uploaded,
                removed,
                failure,
                ..
            }) => {
                for id in &uploaded {
                    tracing::info!(target: LOG_TARGET, "Backup {id} is in {}", self.remote.at());
                }
                for id in &removed {
                    tracing::info!(
                        target: LOG_TARGET,
                        "Backup {id} was removed from {}: no rule of remote.keep takes it",
                        self.remote.at()
                    );
                }
                failure
            }
            Err(error) => Some(error),
        };
        if let Some(entries) = &listed {
            self.there = There::of(entries);
        }
        let good = failure.is_none();
        self.say(failure.as_ref());
        self.take_stock(failure.map(|failure| failure.to_string()));
        if let Some(last) = listed.as_deref().and_then(last_uploaded) {
            self.known
                .send_modify(|known| known.last_uploaded = Some(last));
        }
        good
    }

    /// Says what is new of a failure, and once.
    fn say(&self, failure: Option<&Error>) {
        let former = self.known.borrow().failure.clone();
        match failure {
            Some(failure) if former.as_ref() != Some(&failure.to_string()) => tracing::warn!(
                target: LOG_TARGET,
                "Backups were not uploaded: {failure}; it is tried again, and what is here stays \
                 by the rules of backup.keep"
            ),
            None if former.is_some() => {
                tracing::info!(target: LOG_TARGET, "Backups are uploaded again");
            }
            _ => {}
        }
    }

    /// Works out what is missing, by what was last known to be there.
    fn take_stock(&mut self, failure: Option<String>) {
        let outlined = self.remote.outline(&self.catalogue, &self.there);
        let missing = outlined.map(|(plan, backups)| {
            let missing = backups
                .into_iter()
                .filter(|backup| plan.upload.contains(&backup.manifest.id));
            missing
                .map(|backup| backup.manifest.published)
                .collect::<Vec<_>>()
        });
        self.known.send_modify(|known| {
            // A catalogue that cannot be read is in the failure.
            if let Ok(missing) = missing {
                known.behind = missing.len() as u64;
                known.behind_since = missing.into_iter().min();
            }
            known.failure = failure;
        });
    }
}

/// The backup of the newest run that has published one.
fn newest(runs: &Reader) -> Option<BackupId> {
    let status = runs.now();
    status.runs.into_iter().find_map(|run| run.backup)
}

fn last_uploaded(entries: &[Entry]) -> Option<DateTime<Utc>> {
    let complete = entries.iter().filter_map(|entry| match entry {
        Entry::Complete(stored) => Some(stored.uploaded),
        Entry::Unfinished { .. } | Entry::Broken { .. } => None,
    });
    complete.max()
}

#[expect(
    clippy::disallowed_methods,
    reason = "for how long is told as of the moment it is asked for; nothing is decided by it"
)]
fn now() -> DateTime<Utc> {
    Utc::now()
}
