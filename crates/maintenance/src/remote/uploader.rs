//! The thread that uploads, and what is known of how far it is.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{oneshot, watch};

use super::alarm::{Alarm, Word};
use super::ledger::Ledger;
use super::store::pause;
use super::{Error, Remote, Report, There, here, outline, place};
use crate::catalogue::{BackupId, Catalogue};
use crate::config;
use crate::disk::Disk;
use crate::driver::LOG_TARGET;
use crate::herald::{OfUploads, Teller, Turn};
use crate::snapshot::Watch;
use crate::status::{BrokenThere, Reader, RemoteStatus};

/// It is looked again after this time though no run has published: somebody may have emptied
/// the bucket.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// The longest pause after a pass that has failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(30 * 60);

/// Uploads what the catalogue has, for as long as the service lives.
#[derive(Debug)]
pub struct Uploader {
    settings: config::Remote,
    disk: Disk,
    catalogue: Catalogue,
    known: watch::Sender<Known>,
    alarm: Alarm,
}

/// What is known of it.
#[derive(Debug, Clone, Default)]
struct Known {
    there: There,
    behind: u64,
    /// When the oldest of what is missing there was published.
    behind_since: Option<DateTime<Utc>>,
    last_uploaded: Option<DateTime<Utc>>,
    /// Why, and since when.
    failure: Option<(String, DateTime<Utc>)>,
    /// What is broken there and could not be replaced.
    broken: Vec<BrokenThere>,
    replaced: u64,
}

/// Reads how far it is. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Uploads(watch::Receiver<Known>);

impl Uploads {
    /// As of now.
    #[must_use]
    pub fn status(&self) -> RemoteStatus {
        self.0.borrow().status(now())
    }
}

impl Known {
    fn status(&self, now: DateTime<Utc>) -> RemoteStatus {
        let seconds_since = |since: DateTime<Utc>| {
            let since = (now - since).to_std().unwrap_or_default();
            since.as_secs_f64()
        };
        let failure = self.failure.as_ref();
        RemoteStatus {
            behind: self.behind,
            behind_since_seconds: self.behind_since.map(seconds_since),
            last_uploaded: self.last_uploaded,
            failure: failure.map(|(why, _)| why.clone()),
            failing_since_seconds: failure.map(|(_, since)| seconds_since(*since)),
            broken: self.broken.clone(),
            replaced: self.replaced,
        }
    }
}

impl Uploader {
    /// One that is yet to run. What is known to begin with is what was seen there last, before
    /// the service was started.
    #[must_use]
    pub fn new(settings: config::Remote, disk: Disk, catalogue: Catalogue) -> (Self, Uploads) {
        // One that cannot be read fails the first pass, which says so.
        let ledger = Ledger::read(&catalogue, &place(&settings)).ok().flatten();
        let seen = ledger.and_then(|ledger| ledger.seen().cloned());
        let seen = seen.unwrap_or_default();
        let known = watch::Sender::new(Known {
            last_uploaded: seen.last_uploaded,
            ..Known::default()
        });
        let uploads = Uploads(known.subscribe());
        let uploader = Self {
            settings,
            disk,
            catalogue,
            known,
            alarm: Alarm::default(),
        };
        uploader.take_stock(Some(&seen.there));
        (uploader, uploads)
    }

    /// Starts its thread. It ends when `stop` is used or dropped, wherever it is: what it was
    /// at is taken up again at the next start. Nobody need wait for that. `teller` tells who is to
    /// be told.
    ///
    /// # Errors
    ///
    /// When the operating system gives no thread or timer.
    pub fn start(
        self,
        runs: Reader,
        teller: Option<Teller>,
        stop: oneshot::Receiver<()>,
    ) -> Result<(), std::io::Error> {
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
                        () = self.run(runs, teller) => {}
                    }
                });
                // What hangs in a disk or a name server keeps nobody.
                runtime.shutdown_background();
            })?;
        Ok(())
    }

    async fn run(mut self, mut runs: Reader, teller: Option<Teller>) {
        tracing::info!(target: LOG_TARGET, "Backups are uploaded to {}", self.settings.describe());
        let mut failed = 0;
        loop {
            let seen = newest(&runs);
            let report = self.pass(&mut runs).await;
            let good = report.as_ref().is_ok_and(|it| it.failure.is_none());
            self.tell(report, teller.as_ref());
            let wait = if good {
                failed = 0;
                LOOK_EVERY
            } else {
                failed += 1;
                self.pause(failed)
            };
            tokio::select! {
                alive = published(&mut runs, seen.as_ref()) => {
                    if !alive {
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
        let first = (self.settings.back_off).saturating_mul(1 << self.settings.attempts.min(6));
        let doubled = first.saturating_mul(2_u32.saturating_pow(failed - 1));
        pause(doubled.min(LONGEST_PAUSE), 1, fastrand::f64())
    }

    /// One pass, with everything opened anew: a secret may have been written, or changed, and a
    /// volume mounted. What is published meanwhile is missing from then on.
    async fn pass(&self, runs: &mut Reader) -> Result<Report, Error> {
        let passing = async {
            let remote = Remote::open(&self.settings, &self.disk)?;
            let tell = |there: &There| self.take_stock(Some(there));
            let watch = Watch::default();
            remote.pass(&self.catalogue, now(), &watch, &tell).await
        };
        tokio::pin!(passing);
        loop {
            let seen = newest(runs);
            tokio::select! {
                report = &mut passing => return report,
                true = published(runs, seen.as_ref()) => self.take_stock(None),
            }
        }
    }

    /// Says what came of a pass, in the log, in the status, and to who is to be told.
    fn tell(&mut self, report: Result<Report, Error>, teller: Option<&Teller>) {
        let mut report = report.unwrap_or_else(|error| {
            // What was broken before is not mended by it.
            let broken = self.known.borrow().broken.clone();
            Report {
                failure: Some(error),
                broken,
                ..Report::default()
            }
        });
        // The operator's tool is at it: no trouble, and looked at again soon.
        report.failure = (report.failure).filter(|failure| !matches!(failure, Error::Busy(_)));
        self.log(&report);
        let now = now();
        let replaced = report.replaced.len() as u64;
        let ledger = Ledger::read(&self.catalogue, &place(&self.settings));
        let ledger = ledger.ok().flatten();
        // First, so that whoever sees the failure sees what it keeps from being there.
        self.take_stock(None);
        self.known.send_modify(|known| {
            let since = known.failure.as_ref().map_or(now, |(_, since)| *since);
            known.failure = report.failure.map(|failure| (failure.to_string(), since));
            known.broken = report.broken;
            known.replaced += replaced;
            if let Some(seen) = ledger.as_ref().and_then(Ledger::seen) {
                known.last_uploaded = seen.last_uploaded;
            }
        });
        let Some(teller) = teller else { return };
        let status = self.known.borrow().status(now);
        let at = self.settings.describe();
        let news = |turn, text| OfUploads {
            turn,
            text,
            status: status.clone(),
        };
        if !report.replaced.is_empty() {
            let text = replacements(&report.replaced, &at);
            teller.tell(news(Turn::Replaced, text));
        }
        match self.alarm.heed(&status, now) {
            Some(Word::Trouble(why)) => {
                let text = format!("the second place of the backups, {at}: {why}");
                teller.tell(news(Turn::Trouble, text));
            }
            Some(Word::Recovered) => {
                let text = format!("backups are uploaded to {at} again");
                teller.tell(news(Turn::Recovered, text));
            }
            None => {}
        }
    }

    /// Says what is new, and once.
    fn log(&self, report: &Report) {
        let at = self.settings.describe();
        let was_replaced = |id: &BackupId| report.replaced.iter().any(|it| it.id == *id);
        for id in report.uploaded.iter().filter(|id| !was_replaced(id)) {
            tracing::info!(target: LOG_TARGET, "Backup {id} is in {at}");
        }
        if !report.replaced.is_empty() {
            tracing::warn!(target: LOG_TARGET, "{}", replacements(&report.replaced, &at));
        }
        for id in &report.removed {
            tracing::info!(
                target: LOG_TARGET,
                "Backup {id} was removed from {at}: no rule of remote.keep takes it"
            );
        }
        let known = self.known.borrow();
        for BrokenThere { id, why } in &report.broken {
            if known.broken.iter().all(|former| former.id != *id) {
                tracing::error!(
                    target: LOG_TARGET,
                    "Backup {id} in {at} is broken: {why}; it could not be replaced by the one \
                     here, and is left as it is"
                );
            }
        }
        let former = known.failure.as_ref().map(|(why, _)| why);
        match &report.failure {
            Some(failure) if former != Some(&failure.to_string()) => tracing::warn!(
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

    /// Works out what is missing, by what is there, or was last known to be.
    fn take_stock(&self, there: Option<&There>) {
        let there = there.map_or_else(|| self.known.borrow().there.clone(), There::clone);
        // Not while the status waits for it.
        let missing = here(&self.catalogue).map(|mut missing| {
            let plan = outline(&missing, &there, &self.settings.keep);
            missing.retain(|backup| plan.upload.contains(&backup.manifest.id));
            missing
        });
        self.known.send_modify(|known| {
            known.there = there;
            // A catalogue that cannot be read is in the failure.
            if let Ok(missing) = missing {
                known.behind = missing.len() as u64;
                let published = missing.iter().map(|backup| backup.manifest.published);
                known.behind_since = published.min();
            }
        });
    }
}

fn replacements(replaced: &[BrokenThere], at: &str) -> String {
    let replaced = replaced.iter().map(|BrokenThere { id, why }| {
        format!("backup {id} in {at} was broken ({why}) and was replaced by the one here")
    });
    replaced.collect::<Vec<_>>().join("; ")
}

/// Waits until a run has published another backup than this; `false`: none ever will.
async fn published(runs: &mut Reader, seen: Option<&BackupId>) -> bool {
    let is_new = runs.wait_for(|status| {
        let newest = status.runs.iter().find_map(|run| run.backup.as_ref());
        newest.is_some() && newest != seen
    });
    is_new.await.is_some()
}

/// The backup of the newest run that has published one.
fn newest(runs: &Reader) -> Option<BackupId> {
    let status = runs.now();
    status.runs.into_iter().find_map(|run| run.backup)
}

#[expect(
    clippy::disallowed_methods,
    reason = "this thread is the driver of uploads: it reads the clock and hands it on"
)]
fn now() -> DateTime<Utc> {
    Utc::now()
}
