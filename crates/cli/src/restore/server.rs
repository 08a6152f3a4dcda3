//! `restore` of a dump: into a database of a MySQL or MariaDB server that has no rows.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use torrust_tracker_maintenance::catalogue::Backup;
use torrust_tracker_maintenance::disk::Disk;
use torrust_tracker_maintenance::mysql::import::{self, ImportPlan, Imported, Objection};
use torrust_tracker_maintenance::mysql::{Address, Client};
use torrust_tracker_maintenance::snapshot::Watch;

use crate::configuration::{Configuration, read_password};
use crate::exit::{Answer, Exit, Failure};
use crate::progress::watched;
use crate::units;
use crate::verify::instant;

/// What is asked about a server.
#[derive(clap::Args)]
#[group(id = "server")]
pub struct Options {
    /// Import a dump into this database, by its name on the tracker's own server or as
    /// `mysql://user@host:port/name`, without the password [default: the tracker's].
    #[arg(long, value_name = "NAME | URL", conflicts_with = "files")]
    to_database: Option<String>,
    /// A file whose first line is the password for that database [default: the tracker's
    /// own password, if user and server are the tracker's].
    #[arg(long, value_name = "PATH", conflicts_with = "files")]
    password_file: Option<PathBuf>,
}

/// What was asked about the restore itself.
#[derive(Debug, Clone, Copy)]
pub struct Flags {
    pub dry_run: bool,
    pub force: bool,
}

/// A dump cannot become a file.
pub fn no_file(backup: &Backup) -> Failure {
    let message = format!(
        "backup {} is a dump of a server, not a file: name a database with --to-database, or \
         unpack {} yourself",
        backup.manifest.id, backup.manifest.database.name
    );
    Failure::new(Exit::Usage, "not_a_file", message)
}

/// Only a dump can be imported.
pub fn no_dump() -> Failure {
    let message = "the backup is an SQLite file, not a dump: name a file with --to";
    Failure::new(Exit::Usage, "not_a_dump", message)
}

impl Options {
    pub fn wanted(&self) -> bool {
        self.to_database.is_some() || self.password_file.is_some()
    }

    pub fn carry_out(
        &self,
        configuration: &Configuration,
        backup: Backup,
        flags: Flags,
        json: bool,
        now: DateTime<Utc>,
    ) -> Result<Answer, Failure> {
        let address = self.address(configuration)?;
        let settings = configuration.maintenance().ok().flatten();
        let program = settings.and_then(|settings| settings.backup.dump_program);
        let client =
            Client::find_for_import(address, program.as_deref()).map_err(import::Error::Client)?;
        let plan = import::plan(backup, client, &Watch::default())?;
        let shown = text(&plan, flags.force, now);
        let planned = json!(plan);
        let objections = plan.standing(flags.force);
        if flags.dry_run {
            let verdict = super::verdict(objections.is_empty());
            return Ok(Answer {
                exit: exit(&objections),
                text: format!("{shown}\n{verdict}"),
                json: json!({
                    "plan": planned, "would_restore": objections.is_empty(),
                    "restored": Value::Null,
                }),
            });
        }
        if !json {
            eprintln!("{shown}");
        }
        let began = instant();
        let imported = watched(json, |watch| {
            plan.execute(flags.force, &Disk::default(), watch)
        });
        let imported = imported?;
        let took = began.elapsed();
        let Imported { target, rows } = &imported;
        let rows: u64 = rows.values().sum();
        Ok(Answer {
            exit: Exit::Done,
            text: format!(
                "restored {target} in {}: the server counts {rows} rows, as the backup has",
                units::seconds(took)
            ),
            json: json!({
                "plan": planned, "would_restore": true, "restored": imported,
                "seconds": took.as_secs_f64(),
            }),
        })
    }

    /// Where to import to, and with which password.
    fn address(&self, configuration: &Configuration) -> Result<Address, Failure> {
        let usage = |message: String| Failure::new(Exit::Usage, "to_database", message);
        let configured = configuration.server()?;
        let address = match &self.to_database {
            None => configured.clone().ok_or_else(|| {
                usage(
                    "the backup is a dump, and the tracker's database is no MySQL one: name a \
                     database with --to-database"
                        .to_owned(),
                )
            })?,
            Some(url) if url.contains("://") => {
                let address: Address = url
                    .parse()
                    .map_err(|error| usage(format!("--to-database {error}")))?;
                if address.password().is_some() {
                    return Err(usage(
                        "a password on the command line is seen by every user of this machine: \
                         leave it out, and use --password-file"
                            .to_owned(),
                    ));
                }
                let same = configured.filter(|configured| configured.same_login(&address));
                let password = same.and_then(|configured| configured.password().cloned());
                address.with_password(password)
            }
            Some(name) => configured
                .clone()
                .ok_or_else(|| {
                    usage(format!(
                        "the tracker's database is no MySQL one, so \"{name}\" does not say \
                         where: write mysql://user@host:port/{name}"
                    ))
                })?
                .with_database(name.clone()),
        };
        match &self.password_file {
            Some(path) => Ok(address.with_password(Some(read_password(path)?))),
            None => Ok(address),
        }
    }
}

/// The plan, for people.
fn text(plan: &ImportPlan, force: bool, now: DateTime<Utc>) -> String {
    let source = format!(
        "{}, of {} UTC, {}",
        plan.source,
        units::time(plan.pinned),
        units::ago(plan.pinned, now)
    );
    let created = if plan.creates {
        ", which is created"
    } else {
        ""
    };
    let size = units::bytes(plan.bytes);
    let mut lines = vec![
        ("restore", source),
        ("to", format!("{}{created}", plan.target)),
        ("import", format!("{} rows, {size} of SQL", plan.rows)),
    ];
    let standing = plan.standing(force);
    lines.extend(plan.objections.iter().map(|objection| {
        let stands = standing.contains(objection);
        let name = if stands { "but" } else { "overruled" };
        (name, objection.to_string())
    }));
    let lines = lines.iter().map(|(name, what)| format!("{name:<11}{what}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// By the objection that weighs most.
pub fn exit(objections: &[Objection]) -> Exit {
    let is_in_use = |objection: &Objection| matches!(objection, Objection::InUse { .. });
    match objections {
        [] => Exit::Done,
        some if some.iter().all(is_in_use) => Exit::Busy,
        _ => Exit::NotApplicable,
    }
}
