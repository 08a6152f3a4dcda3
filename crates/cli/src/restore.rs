//! `restore`: a backup back in place.

use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use torrust_tracker_maintenance::config::Depth;
use torrust_tracker_maintenance::disk::{Disk, parent};
use torrust_tracker_maintenance::restore::{self, Objection, RestorePlan, Restored};

use crate::configuration::Configuration;
use crate::exit::{Answer, Exit, Failure};
use crate::identity;
use crate::progress::watched;
use crate::remote::{self, Downloaded, Place};
use crate::selection::{Selected, Selection};
use crate::units;
use crate::verify::instant;

pub mod files;
pub mod server;

/// Put a backup back in place of the database, which is kept aside; or import a dump into a
/// database of a server that has no rows. The tracker must not be running.
#[derive(clap::Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a flag of the command line"
)]
pub struct Arguments {
    /// The backup: its id, `latest`, or the name of a database in the directory that was
    /// not made by this program.
    #[arg(value_name = "ID", default_value = "latest")]
    backup: Selection,
    /// Download the backup from `[maintenance.remote]` first, into a directory beside what it
    /// becomes, which is removed afterwards.
    #[arg(long, value_name = "WHERE")]
    from: Option<Place>,
    /// Restore to this file [default: the tracker's database].
    #[arg(long, value_name = "PATH")]
    to: Option<PathBuf>,
    /// Also a partial backup, which does not have all rows. Then `latest` is the newest of
    /// all, partial or not.
    #[arg(long)]
    partial: bool,
    #[command(flatten)]
    files: files::Options,
    #[command(flatten)]
    server: server::Options,
    #[command(flatten)]
    identity: identity::Options,
    /// Say what would be done and what speaks against it; change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Overrule what may be overruled: a database newer than the backup, users of it that
    /// cannot be seen, something in its place that is no database.
    #[arg(long)]
    force: bool,
    /// Run the full integrity check on what was unpacked, not the quick one.
    #[arg(long)]
    full: bool,
}

impl Arguments {
    pub fn carry_out(
        self,
        configuration: &Configuration,
        json: bool,
        now: DateTime<Utc>,
    ) -> Result<Answer, Failure> {
        let whatever = self.partial || self.files.wanted();
        let identities = self.identity.read()?;
        let mut downloaded = None;
        let source = match self.from {
            None => {
                let catalogue = configuration.catalogue()?;
                let found = self.backup.find(&catalogue, whatever)?;
                found.opened_with(identities)?
            }
            // What would be restored shows without downloading it; whether it opens does not.
            Some(Place::Remote) if self.dry_run => {
                let remote = remote::open(configuration)?;
                Selected::Backup(remote::peek(&remote, &self.backup, whatever)?)
            }
            Some(Place::Remote) => {
                let remote = remote::open(configuration)?;
                let below = self.scratch(configuration)?;
                let fetched = remote::download(&remote, &self.backup, whatever, &below, json)?;
                let Downloaded { backup, .. } = downloaded.insert(fetched);
                Selected::Backup(backup.clone()).opened_with(identities)?
            }
        };
        if self.files.wanted() {
            return (self.files).carry_out(configuration, source, self.dry_run, json, now);
        }
        let source = match source {
            Selected::Backup(backup) if backup.manifest.is_dump() => {
                if self.to.is_some() {
                    return Err(server::no_file(&backup));
                }
                let flags = server::Flags {
                    dry_run: self.dry_run,
                    force: self.force,
                };
                return (self.server).carry_out(configuration, backup, flags, json, now);
            }
            file => file,
        };
        if self.server.wanted() {
            return Err(server::no_dump());
        }
        let target = self.target(configuration)?;
        let disk = Disk::default();
        let mut plan = restore::plan(source, &target, now, &disk)?;
        if self.partial {
            plan = plan.accept_partial();
        }
        let shown = self.text(&plan, now);
        let planned = json!(plan);
        let objections = plan.standing(self.force);
        if self.dry_run {
            return Ok(Answer {
                exit: exit(&objections),
                text: format!("{shown}\n{}", verdict(objections.is_empty())),
                json: json!({
                    "plan": planned, "would_restore": objections.is_empty(), "restored": Value::Null,
                }),
            });
        }
        if !json {
            eprintln!("{shown}");
        }
        let (restored, took) = watched(json, |watch| {
            let began = instant();
            let restored = plan.execute(self.force, self.depth(), &disk, watch);
            (restored, began.elapsed())
        });
        Ok(done(&restored?, took, &planned))
    }

    /// The file a database is restored to.
    fn target(&self, configuration: &Configuration) -> Result<PathBuf, Failure> {
        match &self.to {
            Some(to) => Ok(to.clone()),
            None => tracker_database(configuration),
        }
    }

    /// Where a backup is downloaded to: beside what it becomes. A dump becomes nothing here, so
    /// it lies where backups do.
    fn scratch(&self, configuration: &Configuration) -> Result<PathBuf, Failure> {
        if self.files.wanted() {
            return Ok(parent(&self.files.directory()).to_owned());
        }
        if self.to.is_none() && configuration.server()?.is_some() || self.server.wanted() {
            let directory = configuration.settings()?.backup.directory;
            return Ok(if directory.is_dir() {
                directory
            } else {
                parent(&directory).to_owned()
            });
        }
        Ok(parent(&self.target(configuration)?).to_owned())
    }

    fn depth(&self) -> Depth {
        if self.full { Depth::Full } else { Depth::Quick }
    }

    /// The plan, for people.
    fn text(&self, plan: &RestorePlan, now: DateTime<Utc>) -> String {
        let source = match plan.pinned {
            Some(pinned) => format!(
                "{}, of {} UTC, {}",
                plan.source,
                units::time(pinned),
                units::ago(pinned, now)
            ),
            None => plan.source.clone(),
        };
        let size = units::bytes(plan.bytes);
        let mut lines = vec![
            ("restore", source),
            ("to", format!("{}, {size}", plan.target.display())),
        ];
        lines.extend(
            plan.kept_as
                .iter()
                .map(|kept| ("keep", format!("what is there as {}", kept.display()))),
        );
        lines.extend(plan.second_names.iter().map(|name| {
            let what = format!("{}, a second name of what is there", name.display());
            ("remove", what)
        }));
        let standing = plan.standing(self.force);
        for objection in &plan.objections {
            let stands = standing.contains(objection);
            lines.push((
                if stands { "but" } else { "overruled" },
                objection.to_string(),
            ));
        }
        let lines = lines.iter().map(|(name, what)| format!("{name:<11}{what}"));
        lines.collect::<Vec<_>>().join("\n")
    }
}

fn tracker_database(configuration: &Configuration) -> Result<PathBuf, Failure> {
    configuration.database()?.map_err(|driver| {
        let message = format!(
            "the tracker's database ({driver}) is not an SQLite file: \
             name the file to restore to with --to"
        );
        Failure::new(Exit::Usage, "configuration", message)
    })
}

/// By the objection that weighs most.
pub fn exit(objections: &[Objection]) -> Exit {
    let weigh = |objection: &Objection| match objection {
        Objection::InUse => (3, Exit::Busy),
        Objection::NoRoom { .. } => (2, Exit::Failed),
        Objection::NoLinks | Objection::NotOwner { .. } => (1, Exit::Usage),
        Objection::UsersUnseen
        | Objection::Newer { .. }
        | Objection::NotADatabase
        | Objection::Partial { .. } => (0, Exit::NotApplicable),
    };
    objections
        .iter()
        .map(weigh)
        .max_by_key(|(weight, _)| *weight)
        .map_or(Exit::Done, |(_, exit)| exit)
}

fn verdict(would: bool) -> &'static str {
    if would {
        "would be restored; nothing was changed"
    } else {
        "would be refused; nothing was changed"
    }
}

fn done(restored: &Restored, took: Duration, plan: &Value) -> Answer {
    let Restored {
        target,
        kept_as,
        report,
    } = restored;
    let rows: u64 = report.rows.values().sum();
    let check = match report.depth {
        Depth::Quick => "quick_check",
        Depth::Full => "integrity_check",
    };
    let kept = kept_as.as_ref().map_or_else(String::new, |kept| {
        format!("\nthe former database is {}", kept.display())
    });
    let text = format!(
        "restored {} in {}: {check} is ok, {rows} rows{kept}",
        target.display(),
        units::seconds(took),
    );
    Answer {
        exit: Exit::Done,
        text,
        json: json!({
            "plan": plan, "would_restore": true, "restored": restored,
            "seconds": took.as_secs_f64(),
        }),
    }
}
