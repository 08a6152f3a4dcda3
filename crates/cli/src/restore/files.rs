//! `restore --files`: what is stored with the database, back in place or beside.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use torrust_tracker_maintenance::disk::Disk;
use torrust_tracker_maintenance::files::{self, Destination, FilesPlan, Objection, Reserved};

use crate::configuration::Configuration;
use crate::exit::{Answer, Exit, Failure};
use crate::progress::watched;
use crate::selection::Selected;
use crate::units;

/// What is asked about files.
#[derive(clap::Args)]
pub struct Options {
    /// Restore the files that are stored with the database, and not the database: into a
    /// directory, unless they are to be replaced.
    #[arg(long, conflicts_with_all = ["to", "force", "full"])]
    files: bool,
    /// The directory the files are restored into, which must not exist yet; `files-<ID>` in the
    /// working directory unless given.
    #[arg(
        long,
        value_name = "DIR",
        requires = "files",
        conflicts_with = "replace_files"
    )]
    files_to: Option<PathBuf>,
    /// Restore the files to where they were. What is there is kept aside.
    #[arg(long, requires = "files")]
    replace_files: bool,
}

impl Options {
    pub fn wanted(&self) -> bool {
        self.files
    }

    /// Beside what they become.
    pub fn directory(&self) -> PathBuf {
        self.files_to.clone().unwrap_or_else(|| "files".into())
    }

    pub fn carry_out(
        &self,
        configuration: &Configuration,
        backup: Selected,
        dry_run: bool,
        json: bool,
        now: DateTime<Utc>,
    ) -> Result<Answer, Failure> {
        let Selected::Backup(backup) = backup else {
            let message = "a database that was not made here has no files with it: name a backup";
            return Err(Failure::new(Exit::Usage, "no_files", message));
        };
        let destination = match &self.files_to {
            _ if self.replace_files => Destination::Originals,
            Some(directory) => Destination::Directory(directory.clone()),
            None => Destination::Directory(format!("files-{}", backup.manifest.id).into()),
        };
        let mut disk = Disk::default();
        let mut database = PathBuf::new();
        if let Ok(path) = configuration.database()? {
            disk = disk.guarding(&path);
            database = path;
        }
        let reserved = Reserved::of(&database, &configuration.settings()?.backup.directory);
        let plan = files::plan(&backup, &destination, &reserved, now, &disk)?;
        let shown = text(&plan);
        let planned = json!(plan);
        if dry_run {
            let would = plan.objections.is_empty();
            let verdict = super::verdict(would);
            return Ok(Answer {
                exit: exit(&plan.objections),
                text: format!("{shown}\n{verdict}"),
                json: json!({
                    "plan": planned, "would_restore": would, "restored": Value::Null,
                }),
            });
        }
        if !json {
            eprintln!("{shown}");
        }
        let restored = watched(json, |watch| plan.execute(&disk, watch))?;
        let owned = match restored.not_given_back {
            0 => String::new(),
            count => format!("; {count} of them are yours now, as only root gives files away"),
        };
        let text = format!("restored {} files{owned}", restored.files.len());
        Ok(Answer {
            exit: Exit::Done,
            text,
            json: json!({ "plan": planned, "would_restore": true, "restored": restored }),
        })
    }
}

/// The plan, for people.
fn text(plan: &FilesPlan) -> String {
    let size = units::bytes(plan.bytes);
    let what = format!("{} files of {}, {size}", plan.files.len(), plan.source);
    let mut lines = vec![("restore", what)];
    for file in &plan.files {
        lines.push(("to", file.target.display().to_string()));
        lines.extend(
            file.kept_as
                .iter()
                .map(|kept| ("keep", format!("what is there as {}", kept.display()))),
        );
    }
    lines.extend(
        plan.objections
            .iter()
            .map(|objection| ("but", objection.to_string())),
    );
    let lines = lines.iter().map(|(name, what)| format!("{name:<11}{what}"));
    lines.collect::<Vec<_>>().join("\n")
}

pub fn exit(objections: &[Objection]) -> Exit {
    match objections {
        [] => Exit::Done,
        [
            Objection::Exists { .. }
            | Objection::NotAFile { .. }
            | Objection::Ambiguous { .. }
            | Objection::Reserved { .. },
            ..,
        ] => Exit::Usage,
        [Objection::NoRoom { .. }, ..] => Exit::Failed,
    }
}
