//! Putting a dump back into a database: plan, look, execute.
//!
//! ```text
//!  plan      which database · is it there · is it empty · who uses it      (changes nothing)
//!  execute   read all of the dump once · create the database · import · count the rows
//! ```
//!
//! **Only into a database without rows.** SQL cannot be swapped by a rename: an import that
//! fails halfway leaves half a database, and the tables it replaced are gone. So nothing
//! that has a row is ever replaced, force or not: what is there is kept by restoring into a
//! new name beside it. Tables without rows, which the service makes when it starts, are
//! replaced by those of the dump.
//!
//! The dump is read, summed and counted to its end before the first statement is sent, and
//! afterwards the database is asked for its rows, table by table.

use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{Client, Error as ClientError, Rows};
use crate::catalogue::Backup;
use crate::disk::Disk;
use crate::snapshot::Watch;
use crate::verify;

/// How long counting the rows of all tables may take.
const COUNT_WITHIN: Duration = Duration::from_secs(3600);

/// What an import would do.
#[derive(Debug, Serialize)]
pub struct ImportPlan {
    /// The backup's id.
    pub source: String,
    /// The instant the backup shows.
    pub pinned: DateTime<Utc>,
    /// The database, without the password.
    pub target: String,
    /// Whether that is not there yet and will be created.
    pub creates: bool,
    /// Bytes of SQL.
    pub bytes: u64,
    /// Rows of all tables.
    pub rows: u64,
    /// What speaks against it.
    pub objections: Vec<Objection>,
    #[serde(skip)]
    from: Backup,
    #[serde(skip)]
    client: Client,
}

/// What speaks against an import.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum Objection {
    /// There are rows in the database.
    NotEmpty {
        /// The tables that have any.
        tables: Vec<String>,
    },
    /// Somebody else is connected to it.
    InUse {
        /// Connections that this user may see.
        connections: u64,
    },
}

/// An import that was carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// The database, without the password.
    pub target: String,
    /// Rows of each table, as the server counted them: those of the manifest.
    pub rows: Rows,
}

/// Why nothing was imported, or not all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The plan has objections that were not, or cannot be, overruled.
    #[error("{target} is not restored to: {}", list(.objections))]
    Refused {
        /// The database.
        target: String,
        /// What speaks against it.
        objections: Vec<Objection>,
    },
    /// It is of another driver.
    #[error("backup {id} is no dump but of the driver {driver}")]
    NotADump {
        /// The backup.
        id: String,
        /// Its driver.
        driver: String,
    },
    /// The backup is not what was published. Nothing was sent.
    #[error(transparent)]
    Verify(#[from] verify::Error),
    /// The client program. Nothing was sent.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The import ended in the middle.
    #[error(
        "the import into {target} failed: {why}; what was imported so far is in it: drop and \
         create the database, or restore to another, and do not let a tracker use it"
    )]
    Halfway {
        /// The database.
        target: String,
        /// What the client program, or the disk, said.
        why: String,
    },
    /// The server has other rows than the backup.
    #[error(
        "{target} has not the rows of the backup: {}; do not let a tracker use it",
        .findings.join("; ")
    )]
    Differs {
        /// The database.
        target: String,
        /// Where the two differ.
        findings: Vec<String>,
    },
}

fn list(objections: &[Objection]) -> String {
    let objections: Vec<_> = objections.iter().map(ToString::to_string).collect();
    objections.join("; ")
}

impl Objection {
    /// Whether the operator may overrule it.
    #[must_use]
    pub fn yields_to_force(&self) -> bool {
        matches!(self, Self::InUse { .. })
    }
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEmpty { tables } => write!(
                f,
                "there are rows in {}, and nothing with rows in it is ever replaced; restore to \
                 another database (--to-database), or drop those tables yourself",
                tables.join(", ")
            ),
            Self::InUse { connections } => write!(
                f,
                "{connections} other connections to it are open, of a tracker for one; stop that \
                 first, or use --force"
            ),
        }
    }
}

/// Looks at the database that `client` is for. Changes nothing.
///
/// # Errors
///
/// When the server does not answer, or the backup is no dump.
pub fn plan(backup: Backup, client: Client, watch: &Watch) -> Result<ImportPlan, Error> {
    if !backup.manifest.is_dump() {
        return Err(Error::NotADump {
            id: backup.manifest.id.to_string(),
            driver: backup.manifest.driver,
        });
    }
    let name = literal(client.address().database());
    let sql = format!(
        "SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = {name}; \
         SELECT COUNT(*) FROM information_schema.processlist \
         WHERE db = {name} AND id <> CONNECTION_ID()"
    );
    let answer = client.ask_server(&sql, "whether the database is there", watch)?;
    let mut figures = answer.iter().map(|row| row.concat().parse::<u64>());
    let (Some(Ok(there)), Some(Ok(connections))) = (figures.next(), figures.next()) else {
        let found: Vec<_> = answer.into_iter().flatten().collect();
        return Err(client.unexpected(&found.join(" ")).into());
    };
    let mut objections = Vec::new();
    if there > 0 {
        let tables = filled(&client, watch)?;
        if !tables.is_empty() {
            objections.push(Objection::NotEmpty { tables });
        }
    }
    if connections > 0 {
        objections.push(Objection::InUse { connections });
    }
    Ok(ImportPlan {
        source: backup.manifest.id.to_string(),
        pinned: backup.manifest.pinned,
        target: client.address().to_string(),
        creates: there == 0,
        bytes: backup.manifest.database.raw_bytes,
        rows: backup.manifest.rows.values().sum(),
        objections,
        from: backup,
        client,
    })
}

/// The tables that have rows.
fn filled(client: &Client, watch: &Watch) -> Result<Vec<String>, ClientError> {
    let tables = client.survey(watch)?.tables;
    let selects = tables.iter().map(|table| {
        let (text, name) = (literal(&table.name), identifier(&table.name));
        format!("SELECT {text}, EXISTS (SELECT 1 FROM {name})")
    });
    let sql = selects.collect::<Vec<_>>().join(" UNION ALL ");
    if sql.is_empty() {
        return Ok(Vec::new());
    }
    let rows = client.ask(&sql, "whether there are rows", COUNT_WITHIN, watch)?;
    let filled = rows.into_iter().filter_map(|row| match row.as_slice() {
        [table, found] => (found == "1").then(|| table.clone()),
        _ => None,
    });
    Ok(filled.collect())
}

impl ImportPlan {
    /// What speaks against it and is not overruled.
    #[must_use]
    pub fn standing(&self, force: bool) -> Vec<Objection> {
        let objections = self.objections.iter();
        objections
            .filter(|objection| !(force && objection.yields_to_force()))
            .cloned()
            .collect()
    }

    /// Carries it out.
    ///
    /// # Errors
    ///
    /// As [`Error`] says, which tells whether anything was sent.
    pub fn execute(self, force: bool, disk: &Disk, watch: &Watch) -> Result<Imported, Error> {
        let objections = self.standing(force);
        let Self {
            target,
            creates,
            from,
            client,
            ..
        } = self;
        if !objections.is_empty() {
            return Err(Error::Refused { target, objections });
        }
        verify::check_opens(&from, disk)?;
        verify::backup(&from, None, &from.dir, disk, watch)?;
        if creates {
            let name = identifier(client.address().database());
            let sql = format!("CREATE DATABASE {name}");
            client.ask_server(&sql, "the new database", watch)?;
        }
        let halfway = |why: String| Error::Halfway {
            target: target.clone(),
            why,
        };
        send(&client, &from, disk, watch).map_err(|error| halfway(error.to_string()))?;
        watch.begin("counting rows", None);
        let rows = count(&client, &from.manifest.rows, watch)
            .map_err(|error| halfway(error.to_string()))?;
        let findings = verify::differing_rows(&from.manifest.rows, &rows);
        if findings.is_empty() {
            Ok(Imported { target, rows })
        } else {
            Err(Error::Differs { target, findings })
        }
    }
}

/// Sends the dump to the server.
fn send(client: &Client, backup: &Backup, disk: &Disk, watch: &Watch) -> Result<(), Error> {
    let (process, mut stdin) = client.import()?;
    let handle = process.handle();
    // A server that takes nothing more would hold this thread in a write.
    watch.on_cancel(move || handle.kill());
    let stored = &backup.manifest.database;
    let path = backup.dir.join(&stored.name);
    let identities = backup.identities.as_ref();
    let sent = verify::read_into(
        &path,
        stored,
        identities,
        "importing",
        &mut stdin,
        disk,
        watch,
    );
    if let Err(error) = sent {
        // Killed before its input ends, or it would take a text that was cut off for whole.
        // Why it hung up, if it did, says more than that the pipe broke.
        return match process.finish_or_kill() {
            Some(why) => Err(why.into()),
            None => Err(error.into()),
        };
    }
    drop(stdin);
    Ok(process.finish_within(COUNT_WITHIN, watch)?)
}

/// The rows the server has in each of these tables.
fn count(client: &Client, tables: &Rows, watch: &Watch) -> Result<Rows, ClientError> {
    let mut rows = Rows::new();
    for table in tables.keys() {
        let sql = format!("SELECT COUNT(*) FROM {}", identifier(table));
        let answer = client.ask(&sql, "the number of rows", COUNT_WITHIN, watch)?;
        let figure = answer.concat().concat();
        let count = figure.parse().map_err(|_| client.unexpected(&figure))?;
        rows.insert(table.clone(), count);
    }
    Ok(rows)
}

/// A name, quoted.
fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A text as SQL, whatever is in it and in whatever mode the server is.
fn literal(text: &str) -> String {
    let digits = text.bytes().map(|byte| format!("{byte:02x}"));
    format!("CONVERT(X'{}' USING utf8mb4)", digits.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_can_be_put_into_a_statement() {
        assert_eq!(identifier("a`; DROP"), "`a``; DROP`");
        assert_eq!(literal("a'\\"), "CONVERT(X'61275c' USING utf8mb4)");
    }

    #[test]
    fn only_users_are_overruled() {
        let not_empty = Objection::NotEmpty {
            tables: vec!["torrents".into()],
        };
        assert!(!not_empty.yields_to_force());
        assert!(not_empty.to_string().contains("torrents"));
        assert!(Objection::InUse { connections: 2 }.yields_to_force());
    }
}
