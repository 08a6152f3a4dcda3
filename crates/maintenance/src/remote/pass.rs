//! One pass: what is missing there is uploaded, what broke is replaced, one backup is read back
//! again, and what no rule keeps is removed.

use chrono::{DateTime, Utc};

use super::ledger::{Check, Ledger, Seen};
use super::{Entry, Error, Plan, Remote, Stored, There, candidate, check, here, outline};
use crate::catalogue::{self, Backup, BackupId, Catalogue};
use crate::config::Readback;
use crate::snapshot::Watch;
use crate::status::BrokenThere;

/// What a pass did.
#[derive(Debug, Default)]
pub struct Report {
    /// What was uploaded, in that order.
    pub uploaded: Vec<BackupId>,
    /// What of these was there and broken, and why.
    pub replaced: Vec<BrokenThere>,
    /// What should be there and is not.
    pub pending: Vec<BackupId>,
    /// What was removed there, because no rule keeps it.
    pub removed: Vec<BackupId>,
    /// What is broken there and could not be replaced.
    pub broken: Vec<BrokenThere>,
    /// What went wrong first. What could be done in spite of it was.
    pub failure: Option<Error>,
}

/// A pass on its way.
struct Pass<'a> {
    remote: &'a Remote,
    catalogue: &'a Catalogue,
    now: DateTime<Utc>,
    watch: &'a Watch,
    /// Told what is there, whenever that changes.
    tell: &'a dyn Fn(&There),
    ledger: Ledger,
    seen: Seen,
    complete: Vec<Stored>,
    report: Report,
}

impl Remote {
    /// Uploads what is missing there, newest first, replaces what is broken there, and then
    /// removes there what no rule keeps. Tells `tell` what is there, at first and whenever that
    /// has changed.
    ///
    /// # Errors
    ///
    /// If it cannot be found out what is to be done, or the place is not this catalogue's. What
    /// goes wrong later is in the report.
    pub async fn pass(
        &self,
        catalogue: &Catalogue,
        now: DateTime<Utc>,
        watch: &Watch,
        tell: &dyn Fn(&There),
    ) -> Result<Report, Error> {
        let (ledger, entries) = self.claim(catalogue, &here(catalogue)?, now, watch).await?;
        let mut pass = Pass {
            remote: self,
            catalogue,
            now,
            watch,
            tell,
            seen: ledger.seen().cloned().unwrap_or_default(),
            ledger,
            complete: Vec::new(),
            report: Report::default(),
        };
        pass.look(entries)?;
        let done = pass.carry_out().await;
        let mut report = pass.report;
        report.failure = report.failure.or(done.err());
        Ok(report)
    }
}

impl Pass<'_> {
    async fn carry_out(&mut self) -> Result<(), Error> {
        self.end_uploads().await?;
        self.upload_missing().await?;
        self.check_one().await?;
        self.tidy().await
    }

    /// Takes down what is there.
    fn look(&mut self, entries: Vec<Entry>) -> Result<(), Error> {
        let here = here(self.catalogue)?;
        let checks = &self.seen.checks;
        let finding = |stored: &Stored| {
            let check = checks.get(&stored.manifest.id)?;
            // Uploaded anew since, it is another one.
            check.finding.clone().filter(|_| stored.uploaded < check.at)
        };
        self.seen.there = There::of(&entries, &here, finding);
        let complete = entries.into_iter().filter_map(|entry| match entry {
            Entry::Complete(stored) => Some(stored),
            Entry::Unfinished { .. } | Entry::Broken { .. } | Entry::Unreadable { .. } => None,
        });
        self.complete = complete.collect();
        self.seen.last_uploaded = self.complete.iter().map(|stored| stored.uploaded).max();
        let complete = &self.complete;
        let is_there = |id: &BackupId| complete.iter().any(|stored| stored.manifest.id == *id);
        self.seen.checks.retain(|id, _| is_there(id));
        self.note()
    }

    /// Remembers what is there, says so, and what is broken of it.
    fn note(&mut self) -> Result<(), Error> {
        let there = &self.seen.there;
        (self.tell)(there);
        let broken = there.broken.iter().map(|(id, why)| BrokenThere {
            id: id.clone(),
            why: why.clone(),
        });
        self.report.broken = broken.collect();
        self.ledger.note(self.seen.clone())
    }

    fn outline(&self) -> Result<(Plan, Vec<Backup>), Error> {
        let here = here(self.catalogue)?;
        let plan = outline(&here, &self.seen.there, &self.remote.settings.keep);
        Ok((plan, here))
    }

    /// Ends the uploads that were begun and are not to go on.
    async fn end_uploads(&mut self) -> Result<(), Error> {
        let (plan, _) = self.outline()?;
        for id in self.catalogue.uploads()? {
            if !plan.upload.contains(&id) {
                self.remote.give_up(self.catalogue, &id).await?;
            }
        }
        Ok(())
    }

    async fn upload_missing(&mut self) -> Result<(), Error> {
        let (plan, backups) = self.outline()?;
        for id in plan.upload {
            let stop = self
                .report
                .failure
                .as_ref()
                .is_some_and(|failure| !failure.is_of_one_backup());
            let Some(backup) = backups.iter().find(|backup| backup.manifest.id == id) else {
                continue;
            };
            if stop {
                self.report.pending.push(id);
            } else {
                self.upload(backup).await?;
            }
        }
        // Told last: what is left alone keeps nothing else from being uploaded.
        if let Some((id, why)) = self.seen.there.odd.first_key_value() {
            let (id, at) = (id.clone(), self.remote.at().to_owned());
            let why = why.clone();
            self.report
                .failure
                .get_or_insert(Error::Odd { id, at, why });
        }
        Ok(())
    }

    /// Uploads one, in the place of what is broken there if something is.
    async fn upload(&mut self, backup: &Backup) -> Result<(), Error> {
        let id = &backup.manifest.id;
        let broken = self.seen.there.broken.get(id).cloned();
        let uploaded = match &broken {
            None => (self.remote.upload(self.catalogue, backup, self.watch)).await,
            Some(_) => (self.remote.replace(self.catalogue, backup, self.watch)).await,
        };
        match uploaded {
            Ok(()) => {
                self.seen.checks.remove(id);
                self.seen.there.add(candidate(backup));
                let broken = broken.map(|why| BrokenThere {
                    id: id.clone(),
                    why,
                });
                self.report.replaced.extend(broken);
                self.report.uploaded.push(id.clone());
                self.note()?;
            }
            // Pruned since: it is not missed.
            Err(Error::Catalogue(catalogue::Error::Unknown { .. })) => {}
            Err(error) => {
                self.report.failure.get_or_insert(error);
                self.report.pending.push(id.clone());
            }
        }
        Ok(())
    }

    /// Reads the backup back again that was not for the longest time, if that is long enough ago.
    async fn check_one(&mut self) -> Result<(), Error> {
        let settings = &self.remote.settings;
        let Some(every) = settings.check_every else {
            return Ok(());
        };
        if settings.verify == Readback::Size || self.report.failure.is_some() {
            return Ok(());
        }
        let last = |stored: &Stored| {
            let check = self.seen.checks.get(&stored.manifest.id);
            check.map_or(stored.uploaded, |check| check.at.max(stored.uploaded))
        };
        let known = |stored: &&Stored| {
            let mut complete = self.seen.there.complete.iter();
            complete.any(|there| there.id == stored.manifest.id)
        };
        let oldest = self.complete.iter().filter(known).min_by_key(|it| last(it));
        let is_due = |stored: &&Stored| {
            let ago = self.now - last(stored);
            ago.to_std().is_ok_and(|ago| ago >= every)
        };
        let Some(id) = oldest.filter(is_due).map(|due| due.manifest.id.clone()) else {
            return Ok(());
        };
        let finding = match self.remote.check_again(&id, self.watch).await {
            // Whoever moved it to an archive knows that it cannot be read there.
            Ok(_) | Err(Error::Archived { .. }) => None,
            Err(error @ (Error::Differs { .. } | Error::Broken { .. })) => Some(error.to_string()),
            Err(error) => return Err(error),
        };
        let at = self.now;
        if let Some(why) = &finding {
            let there = &mut self.seen.there;
            there.complete.retain(|there| there.id != id);
            there.broken.insert(id.clone(), why.clone());
        }
        self.seen.checks.insert(id.clone(), Check { at, finding });
        self.note()?;
        // What broke is replaced at once.
        let (plan, backups) = self.outline()?;
        let broken = backups.iter().find(|backup| backup.manifest.id == id);
        match broken {
            Some(backup) if plan.upload.contains(&id) => self.upload(backup).await,
            _ => Ok(()),
        }
    }

    /// Removes there what no rule keeps, and what was begun and will not be ended.
    async fn tidy(&mut self) -> Result<(), Error> {
        // Somebody else may have been at it, or an operator have removed something.
        if !self.report.uploaded.is_empty() {
            let entries = self.remote.list().await?;
            self.remote.check_mounted().await?;
            self.look(entries)?;
        }
        if self.report.failure.is_some() {
            return Ok(());
        }
        self.remote.end_strays(self.catalogue).await?;
        let (plan, _) = self.outline()?;
        for id in &plan.remove {
            check(self.watch)?;
            self.remote.store.remove(id).await?;
            self.report.removed.push(id.clone());
        }
        for id in &plan.sweep {
            check(self.watch)?;
            self.remote.store.remove(id).await?;
        }
        let there = &mut self.seen.there;
        there.complete.retain(|it| !plan.remove.contains(&it.id));
        there.unfinished.retain(|id| !plan.sweep.contains(id));
        there.broken.retain(|id, _| !plan.sweep.contains(id));
        self.note()
    }
}
