//! What stays and what goes: `prune`, `protect`, `unprotect`, `delete`.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use torrust_tracker_maintenance::catalogue::{BackupId, Catalogue, Owner};
use torrust_tracker_maintenance::disk::Disk;
use torrust_tracker_maintenance::retention::Decision;

use crate::configuration::Configuration;
use crate::exit::{Answer, Exit, Failure};
use crate::table::{Side, Table};
use crate::verify::{self, Examination};

/// Remove the backups that `backup.keep` does not keep, after reading the newest one back.
#[derive(clap::Args)]
pub struct Prune {
    /// Say what would go and why the others stay; remove nothing.
    #[arg(long)]
    dry_run: bool,
}

/// Keep a backup from being pruned.
#[derive(clap::Args)]
pub struct Protect {
    /// The backup.
    id: BackupId,
}

/// Leave a protected backup to `backup.keep` again.
#[derive(clap::Args)]
pub struct Unprotect {
    /// The backup.
    id: BackupId,
}

/// Remove one backup.
#[derive(clap::Args)]
pub struct Delete {
    /// The backup.
    id: BackupId,
    /// Even if it is the newest good one, is protected, or cannot be read.
    #[arg(long)]
    force: bool,
}

impl Prune {
    pub fn carry_out(
        self,
        configuration: &Configuration,
        json: bool,
        now: DateTime<Utc>,
    ) -> Result<Answer, Failure> {
        let keep = configuration.settings()?.backup.keep;
        let catalogue = configuration.catalogue()?;
        let plan = catalogue.plan(&keep)?;
        let goes: Vec<_> = plan.iter().filter(|backup| !backup.keep).collect();
        if self.dry_run || goes.is_empty() {
            let goes: Vec<_> = goes.into_iter().rev().map(|backup| &backup.id).collect();
            return Ok(Answer {
                exit: Exit::Done,
                text: decisions(&plan, "would go"),
                json: json!({
                    "directory": catalogue.directory(), "dry_run": self.dry_run,
                    "removed": if self.dry_run { goes } else { Vec::new() },
                    "kept": kept(&plan),
                }),
            });
        }
        let catalogue = writable(&catalogue)?;
        let goes_on = strengths(&plan);
        for newest in &goes_on {
            verify_newest(&catalogue, &newest.id, json, now)?;
        }
        let owner = Owner::this("torrust-maintenance prune", now);
        let locked = catalogue.lock(&owner)?;
        let untouched = |decision: &&Decision| goes_on.iter().all(|on| on.full != decision.full);
        let mut done: Vec<_> = plan.iter().filter(untouched).cloned().collect();
        for newest in &goes_on {
            let pruned = locked.prune(&keep, &newest.id)?;
            // Another writer may have been first: what was done counts, not what was planned.
            done.extend(pruned.removed.into_iter().map(|id| Decision {
                id,
                full: newest.full,
                keep: false,
                reasons: Vec::new(),
            }));
            done.extend(pruned.kept);
        }
        done.sort_by(|one, other| other.id.cmp(&one.id));
        let removed = done.iter().rev().filter(|decision| !decision.keep);
        let removed: Vec<_> = removed.map(|decision| &decision.id).collect();
        Ok(Answer {
            exit: Exit::Done,
            text: decisions(&done, "removed"),
            json: json!({
                "directory": catalogue.directory(), "dry_run": false,
                "removed": removed, "kept": kept(&done),
            }),
        })
    }
}

/// On the strength of which backups others go: the newest full one for full ones and the
/// newest partial one for partial ones, where any goes.
fn strengths(plan: &[Decision]) -> Vec<&Decision> {
    [true, false]
        .into_iter()
        .filter_map(|full| {
            let mut of_kind = plan.iter().filter(|decision| decision.full == full);
            let newest = of_kind.next()?;
            of_kind.any(|decision| !decision.keep).then_some(newest)
        })
        .collect()
}

/// Reads the newest backup back: nothing older goes on the strength of one that is good for
/// all that is known, but is not.
fn verify_newest(
    catalogue: &Catalogue,
    newest: &BackupId,
    json: bool,
    now: DateTime<Utc>,
) -> Result<(), Failure> {
    let backup = catalogue.get(newest)?;
    let began = verify::instant();
    let checksums = Examination::Checksums;
    let examined = verify::examine(catalogue, &backup, checksums, json);
    let took = began.elapsed();
    let at = now + TimeDelta::from_std(took).unwrap_or_default();
    if let Some(check) = verify::check(&examined, checksums, at, took) {
        let owner = Owner::this("torrust-maintenance prune", at);
        catalogue.lock(&owner)?.record(newest, check)?;
    }
    match examined {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::from(error).also("; nothing was pruned")),
    }
}

fn kept(plan: &[Decision]) -> Vec<&Decision> {
    plan.iter().filter(|backup| backup.keep).collect()
}

fn decisions(plan: &[Decision], goes: &str) -> String {
    let mut table = Table::new([("ID", Side::Left), ("", Side::Left), ("WHY", Side::Left)]);
    for Decision {
        id, keep, reasons, ..
    } in plan
    {
        let what = if *keep { "stays" } else { goes };
        let why = if *keep {
            reasons.join(", ")
        } else {
            "no rule of backup.keep takes it".to_owned()
        };
        table.row([id.to_string(), what.to_owned(), why]);
    }
    if plan.iter().all(|backup| backup.keep) {
        return format!("{table}\nnothing to prune");
    }
    table.to_string()
}

impl Protect {
    pub fn carry_out(
        self,
        configuration: &Configuration,
        now: DateTime<Utc>,
    ) -> Result<Answer, Failure> {
        let catalogue = writable(&configuration.catalogue()?)?;
        let owner = Owner::this("torrust-maintenance protect", now);
        catalogue.lock(&owner)?.protect(&self.id, now)?;
        Ok(about(&self.id, "protected"))
    }
}

impl Unprotect {
    pub fn carry_out(
        self,
        configuration: &Configuration,
        now: DateTime<Utc>,
    ) -> Result<Answer, Failure> {
        let catalogue = writable(&configuration.catalogue()?)?;
        let owner = Owner::this("torrust-maintenance unprotect", now);
        catalogue.lock(&owner)?.unprotect(&self.id)?;
        Ok(about(&self.id, "no longer protected"))
    }
}

impl Delete {
    pub fn carry_out(
        self,
        configuration: &Configuration,
        now: DateTime<Utc>,
    ) -> Result<Answer, Failure> {
        let catalogue = writable(&configuration.catalogue()?)?;
        let owner = Owner::this("torrust-maintenance delete", now);
        catalogue.lock(&owner)?.delete(&self.id, self.force)?;
        Ok(about(&self.id, "deleted"))
    }
}

fn about(id: &BackupId, what: &str) -> Answer {
    Answer {
        exit: Exit::Done,
        text: format!("{id} is {what}"),
        json: json!({ "id": id, "is": what }),
    }
}

/// The same catalogue for a command that changes something in it.
pub fn writable(catalogue: &Catalogue) -> Result<Catalogue, Failure> {
    Ok(Catalogue::open(Disk::default(), catalogue.directory())?)
}
