//! `list`: what is in the catalogue's directory, or in the second place.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use torrust_tracker_maintenance::catalogue::{
    Backup, BackupId, Check, Entry, Flaw, Foreign, Manifest,
};
use torrust_tracker_maintenance::config::Depth;
use torrust_tracker_maintenance::remote::{Entry as There, Stored};

use crate::client::block_on;
use crate::configuration::Configuration;
use crate::exit::{Answer, Exit, Failure};
use crate::remote;
use crate::table::{Side, Table};
use crate::units;

/// Why each backup stays; nothing for those that go with the next prune.
type Kept = BTreeMap<BackupId, Vec<String>>;

/// List the backups, newest first. Reads no more than their manifests.
#[derive(clap::Args)]
pub struct Arguments {
    /// Those in `[maintenance.remote]` instead of those here.
    #[arg(long)]
    remote: bool,
}

impl Arguments {
    pub fn carry_out(
        self,
        configuration: &Configuration,
        now: DateTime<Utc>,
    ) -> Result<Answer, Failure> {
        if self.remote {
            there(configuration, now)
        } else {
            here(configuration, now)
        }
    }
}

fn there(configuration: &Configuration, now: DateTime<Utc>) -> Result<Answer, Failure> {
    let remote = remote::open(configuration)?;
    let entries = block_on(remote.list())?;
    let mut table = Table::new([
        ("ID", Side::Left),
        ("AGE", Side::Right),
        ("SIZE", Side::Right),
        ("RATIO", Side::Right),
        ("UPLOADED", Side::Right),
        ("NOTE", Side::Left),
    ]);
    for entry in &entries {
        table.row(match entry {
            There::Complete(Stored { manifest, uploaded }) => [
                manifest.id.to_string(),
                units::span(now - manifest.pinned),
                units::bytes(manifest.stored_bytes()),
                ratio(manifest.database.raw_bytes, manifest.database.stored_bytes),
                units::ago(*uploaded, now),
                notes_of(manifest).collect::<Vec<_>>().join("; "),
            ],
            There::Unfinished { name } => odd_there(name, "not complete: never restored".into()),
            There::Broken { name, why } => odd_there(name, format!("BROKEN: {why}")),
            There::Unreadable { name, why } => odd_there(name, format!("UNREADABLE: {why}")),
        });
    }
    Ok(Answer {
        exit: Exit::Done,
        text: if entries.is_empty() {
            format!("no backups in {}", remote.at())
        } else {
            table.to_string()
        },
        json: json!({ "remote": remote.at(), "entries": entries }),
    })
}

fn odd_there(name: &BackupId, note: String) -> [String; 6] {
    let [age, size, ratio, uploaded] = Default::default();
    [name.to_string(), age, size, ratio, uploaded, note]
}

fn here(configuration: &Configuration, now: DateTime<Utc>) -> Result<Answer, Failure> {
    let catalogue = configuration.catalogue()?;
    let directory = catalogue.directory();
    let entries = catalogue.list()?;
    let kept: Kept = catalogue
        .plan(&configuration.settings()?.backup.keep)?
        .into_iter()
        .map(|decision| (decision.id, decision.reasons))
        .collect();
    let json: Vec<_> = entries
        .iter()
        .map(|entry| described(entry, &kept))
        .collect();
    Ok(Answer {
        exit: Exit::Done,
        text: text(&entries, &kept, now)
            .unwrap_or_else(|| format!("no backups in {}", directory.display())),
        json: json!({ "directory": directory, "entries": json }),
    })
}

fn described(entry: &Entry, kept: &Kept) -> Value {
    let mut json = json!(entry);
    if let Entry::Good(backup) = entry {
        // No word on one that was found damaged, or may have been: no rule looks at it.
        json["kept"] = json!(kept.get(&backup.manifest.id));
    }
    json
}

/// `None` if there is nothing.
fn text(entries: &[Entry], kept: &Kept, now: DateTime<Utc>) -> Option<String> {
    let mut table = Table::new([
        ("ID", Side::Left),
        ("AGE", Side::Right),
        ("SIZE", Side::Right),
        ("RATIO", Side::Right),
        ("METHOD", Side::Left),
        ("PAUSE", Side::Right),
        ("VERIFIED", Side::Left),
        ("KEPT", Side::Left),
        ("NOTE", Side::Left),
    ]);
    for entry in entries {
        table.row(match entry {
            Entry::Good(backup) => good(backup, kept, now),
            Entry::Broken { name, flaw, why } => {
                let age = units::span(now - name.second());
                let what = match flaw {
                    Flaw::Damaged => "BROKEN",
                    Flaw::Unreadable => "UNREADABLE",
                    Flaw::Newer => "NEWER",
                };
                odd(
                    name.to_string(),
                    age,
                    String::new(),
                    format!("{what}: {why}"),
                )
            }
            Entry::Foreign(Foreign {
                name,
                bytes,
                written,
                form,
                ..
            }) => {
                let age = written.map_or_else(String::new, |written| units::span(now - written));
                let note = match form {
                    Some(_) => "foreign: not made here, never pruned; can be restored by name",
                    None => "foreign: not made here, never touched",
                };
                odd(name.clone(), age, units::bytes(*bytes), note.to_owned())
            }
        });
    }
    (!entries.is_empty()).then(|| table.to_string())
}

fn good(backup: &Backup, kept: &Kept, now: DateTime<Utc>) -> [String; 9] {
    let Backup {
        manifest, notes, ..
    } = backup;
    let found = notes.checks.iter().flat_map(|check| &check.findings);
    let damage = found.map(|finding| format!("DAMAGED: {finding}"));
    let unknown = notes.unreadable.iter();
    let unknown = unknown.map(|why| format!("UNKNOWN what checks have found: {why}"));
    let reasons = kept.get(&manifest.id).map(Vec::as_slice);
    [
        manifest.id.to_string(),
        units::span(now - manifest.pinned),
        units::bytes(manifest.stored_bytes()),
        ratio(manifest.database.raw_bytes, manifest.database.stored_bytes),
        manifest.method.to_string(),
        units::milliseconds(manifest.pause_ms),
        verified(manifest.verified, notes.deepest(), now),
        reasons.map_or_else(String::new, rules),
        damage
            .chain(unknown)
            .chain(notes_of(manifest))
            .collect::<Vec<_>>()
            .join("; "),
    ]
}

/// What is worth knowing of a backup, by its manifest.
fn notes_of(manifest: &Manifest) -> impl Iterator<Item = String> {
    let partial = manifest.partial.iter().map(|of| format!("PARTIAL: {of}"));
    let encrypted = manifest
        .encrypted()
        .map(|how| format!("encrypted for {}", how.recipients));
    let warnings = manifest
        .warnings
        .iter()
        .map(|warning| format!("warning: {warning}"));
    partial.chain(encrypted).chain(warnings)
}

/// The check it passed before it was published, and the deepest since.
fn verified(published: Depth, since: Option<&Check>, now: DateTime<Utc>) -> String {
    let published = depth(published);
    match since {
        None => published.to_owned(),
        Some(check) => {
            let how = check.depth.map_or("checksums", depth);
            format!("{published}; {how} {}", units::ago(check.at, now))
        }
    }
}

/// The rules alone; `prune --dry-run` has the whole reasons.
fn rules(reasons: &[String]) -> String {
    if reasons.is_empty() {
        return "goes with the next prune".to_owned();
    }
    let rules = reasons.iter().map(|reason| {
        let reason = reason.strip_prefix("the ").unwrap_or(reason);
        reason.split(' ').next().unwrap_or_default()
    });
    rules.collect::<Vec<_>>().join(" ")
}

fn odd(name: String, age: String, size: String, note: String) -> [String; 9] {
    let [ratio, method, pause, verified, kept] = Default::default();
    [name, age, size, ratio, method, pause, verified, kept, note]
}

/// How much smaller a backup is than its database.
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
fn ratio(raw: u64, stored: u64) -> String {
    format!("{:.1}x", raw as f64 / stored.max(1) as f64)
}

/// The check a backup has passed.
pub fn depth(depth: Depth) -> &'static str {
    match depth {
        Depth::Quick => "quick",
        Depth::Full => "full",
    }
}
