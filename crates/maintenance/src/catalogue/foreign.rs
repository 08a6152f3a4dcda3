//! What others have put into the catalogue's directory: the copies of a script that this
//! replaces, for one. Listed, readable by name, never written to, renamed or removed.

use std::fs;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::Serialize;

/// How names of `SQLite` files end.
const DATABASES: [&str; 3] = [".db", ".sqlite", ".sqlite3"];
const GZIP: &str = ".gz";

/// Something in the catalogue's directory that was not made here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Foreign {
    /// Its name, made readable where it is not UTF-8.
    pub name: String,
    /// Its length if it is a file, else 0.
    pub bytes: u64,
    /// When it was last written to, if it is a file.
    pub written: Option<DateTime<Utc>>,
    /// How its database is stored, if it is a file with the name of one.
    pub form: Option<Form>,
    /// Where it is.
    #[serde(skip)]
    pub path: PathBuf,
}

/// How a database that was not made here is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// As it is: `tracker_backup_1.db`.
    Plain,
    /// Compressed with gzip (RFC 1952): `sqlite_1.db.gz`.
    Gzip,
}

impl Form {
    fn of(name: &str) -> Option<Self> {
        let (name, form) = match name.strip_suffix(GZIP) {
            Some(name) => (name, Self::Gzip),
            None => (name, Self::Plain),
        };
        let is_database = DATABASES.iter().any(|suffix| {
            name.strip_suffix(suffix)
                .is_some_and(|stem| !stem.is_empty())
        });
        is_database.then_some(form)
    }
}

impl Foreign {
    /// Looks at what is there from outside.
    pub(super) fn at(path: PathBuf) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // A link may lead to the database in service, which must not be opened here.
        let file = fs::symlink_metadata(&path)
            .ok()
            .filter(fs::Metadata::is_file);
        Self {
            bytes: file.as_ref().map_or(0, fs::Metadata::len),
            written: file
                .as_ref()
                .and_then(|file| file.modified().ok())
                .map(DateTime::from),
            form: file.and_then(|_| Form::of(&name)),
            name: name.into_owned(),
            path,
        }
    }

    /// Why it cannot stand for a database, if it cannot.
    pub(super) fn objection(&self) -> Option<String> {
        if self.form.is_none() {
            return Some(
                "it is not a file that is named like a database (.db, .sqlite, .sqlite3, and \
                 those with .gz)"
                    .to_owned(),
            );
        }
        let part = ["-wal", "-journal"]
            .into_iter()
            .map(|suffix| format!("{}{suffix}", self.name))
            .find(|part| is_filled(&self.path.with_file_name(part)))?;
        Some(format!(
            "{part} beside it holds part of it; have `sqlite3 {} 'PRAGMA wal_checkpoint'` make one \
             file of the two, or move {part} away to do without",
            self.path.display()
        ))
    }
}

fn is_filled(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.len() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_known_by_the_name() {
        for (name, form) in [
            ("tracker_backup_2026-11-22_03-00-00.db", Some(Form::Plain)),
            ("sqlite_20261122_030000.db.gz", Some(Form::Gzip)),
            ("x.sqlite", Some(Form::Plain)),
            ("x.sqlite3.gz", Some(Form::Gzip)),
            (".db", None),
            ("db", None),
            ("x.db-wal", None),
            ("x.db.gz.gz", None),
            ("x.db.zst", None),
            ("x.sql", None),
            ("x.gz", None),
            (".gz", None),
        ] {
            assert_eq!(Form::of(name), form, "{name}");
        }
    }
}
