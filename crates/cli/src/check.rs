//! `check`: what is wrong with the configuration, and what will happen when.
//!
//! It knows `[maintenance]`, what that needs (the database, the directories), and the keys
//! without which the tracker does not start. What the tracker alone knows, such as its
//! other keys and whether its ports are free, shows when it starts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use torrust_tracker_maintenance::catalogue::Entry;
use torrust_tracker_maintenance::config::{
    Address, Announces, Error, JournalMode, Readiness, Settings, TakenBy,
};
use torrust_tracker_maintenance::disk::{Disk, parent};
use torrust_tracker_maintenance::encryption::Seal;
use torrust_tracker_maintenance::excerpt::{self, Error as Unfit};
use torrust_tracker_maintenance::files::{self, Reserved};
use torrust_tracker_maintenance::mysql::{self, Client as DumpClient};
use torrust_tracker_maintenance::notify::Header;
use torrust_tracker_maintenance::readiness::{self, token};
use torrust_tracker_maintenance::schedule::{Interval, Schedule};
use torrust_tracker_maintenance::snapshot::Watch;
use torrust_tracker_maintenance::sqlite::{self, inspect};
use torrust_tracker_maintenance::status::Status;
use torrust_tracker_maintenance::verify;

use crate::client::{self, Client, block_on};
use crate::configuration::Configuration;
use crate::exit::{Answer, Exit, Failure};
use crate::forecast::Forecast;
use crate::{list, units};

/// Windows shown.
const WINDOWS: usize = 3;

/// One thing that has to be put right before the tracker can do its windows.
#[derive(Debug, Serialize)]
struct Problem {
    key: String,
    message: String,
}

/// The database as it is found.
#[derive(Debug, Serialize)]
struct Found {
    path: PathBuf,
    /// From metadata; `null` if it is not there yet.
    bytes: Option<u64>,
    /// `null` if it is not there, or could not be read.
    journal_mode: Option<String>,
}

/// What the tracker wants written, default or not, and what to write.
const MANDATORY: [(&str, &str); 4] = [
    (SCHEMA_VERSION, "\"2.0.0\""),
    ("logging.threshold", "a level, such as \"info\""),
    ("core.private", "true or false"),
    ("core.listed", "true or false"),
];
/// What stands for the journal mode of a server.
const NO_JOURNAL: &str = "none";
const SCHEMA_VERSION: &str = "metadata.schema_version";

/// Without which [`Settings::load_completed`] has no effect; upstream's default is false.
const PERSISTENT: &str = "core.tracker_policy.persistent_torrent_completed_stat";

pub fn carry_out(configuration: &Configuration, now: DateTime<Utc>) -> Result<Answer, Failure> {
    let mut problems = Vec::new();
    let (enabled, settings) = match configuration.maintenance() {
        Ok(settings) => (settings.is_some(), settings),
        Err(Error::Refused { problems: keys, .. }) => {
            problems.extend(keys.iter().map(|problem| Problem {
                key: problem.key.clone(),
                message: problem.to_string(),
            }));
            (true, None)
        }
        Err(error) => return Err(error.into()),
    };
    check_mandatory(configuration, &mut problems)?;
    let status = settings.as_ref().and_then(|_| running(configuration));
    let database = match configuration.database()? {
        Ok(path) => Some(look(path, status.as_ref(), &mut problems)),
        Err(driver) if enabled && driver == mysql::DRIVER => {
            check_server(configuration, settings.as_ref(), &mut problems)
        }
        Err(driver) if enabled => {
            problems.push(Problem {
                key: "core.database.driver".to_owned(),
                message: format!(
                    "core.database.driver = \"{driver}\" has no maintenance windows in this \
                     version; use \"sqlite3\" or \"mysql\", or disable [maintenance]"
                ),
            });
            None
        }
        Err(_) => None,
    };
    if enabled {
        check_directories(configuration, settings.as_ref(), &mut problems)?;
    }
    if let Some(readiness) = settings.as_ref().and_then(|all| all.readiness.as_ref()) {
        check_endpoint(readiness, &mut problems);
    }
    if let Some(settings) = &settings {
        check_notify(settings, &mut problems);
        check_together(configuration, settings, database.as_ref(), &mut problems)?;
        if let Some(found) = &database {
            check_contents(settings, found, &mut problems);
        }
    }
    Ok(match settings {
        _ if !problems.is_empty() => refused(configuration, enabled, &problems),
        None => disabled(configuration),
        Some(settings) => good(
            configuration,
            &settings,
            database.as_ref(),
            status.as_ref(),
            now,
        ),
    })
}

/// What is sent with a notice has to be there.
fn check_notify(settings: &Settings, problems: &mut Vec<Problem>) {
    let file = settings.notify.webhook_header_file.as_deref();
    if let Some(Err(error)) = file.map(|path| Header::read(path, &Disk::default())) {
        problems.push(Problem {
            key: "maintenance.notify.webhook_header_file".to_owned(),
            message: error.to_string(),
        });
    }
}

/// The keys of the tracker's that no default stands in for.
fn check_mandatory(
    configuration: &Configuration,
    problems: &mut Vec<Problem>,
) -> Result<(), Failure> {
    for (key, right) in MANDATORY {
        if !configuration.has(key)? {
            problems.push(Problem {
                key: key.to_owned(),
                message: format!("{key} is missing; write {right}"),
            });
        }
    }
    let version: Option<String> = configuration.value(SCHEMA_VERSION)?;
    if let Some(version) = version.filter(|version| version != "2.0.0") {
        problems.push(Problem {
            key: SCHEMA_VERSION.to_owned(),
            message: format!(
                "{SCHEMA_VERSION} = \"{version}\" is not that of torrust-tracker 3.0.0; write \
                 \"2.0.0\""
            ),
        });
    }
    Ok(())
}

/// The running tracker's word, if it gives one: then nobody else need touch its database.
fn running(configuration: &Configuration) -> Option<Status> {
    let client = Client::new(configuration.endpoint().ok()?, None);
    let answer: Result<Status, client::Error> = block_on(client.status());
    answer.ok()
}

/// Reads the header of the file at most: a connection that closes as the last one changes
/// the database.
fn look(path: PathBuf, status: Option<&Status>, problems: &mut Vec<Problem>) -> Found {
    let key = "core.database.path";
    let mut problem = |message: String| {
        problems.push(Problem {
            key: key.to_owned(),
            message,
        });
    };
    if !parent(&path).is_dir() {
        problem(lies_nowhere(key, &path));
    }
    let bytes = path.metadata().ok().map(|metadata| metadata.len());
    // A file of no bytes is one that SQLite has yet to make a database of.
    let journal_mode = match status.filter(|status| status.database.path == path) {
        _ if bytes.is_none_or(|bytes| bytes == 0) => None,
        Some(status) => Some(status.database.journal_mode.clone()),
        None => match inspect(&path) {
            Ok(header) => Some(header.journal.to_string()),
            Err(sqlite::Error::Missing { .. }) => None,
            Err(error) => {
                problem(format!("{key}: {error}"));
                None
            }
        },
    };
    Found {
        path,
        bytes,
        journal_mode,
    }
}

/// What of the settings a server cannot have, and whether there is a program to dump it with.
/// The server is not asked: that is for a run to do.
fn check_server(
    configuration: &Configuration,
    settings: Option<&Settings>,
    problems: &mut Vec<Problem>,
) -> Option<Found> {
    let mut problem = |key: &str, message: String| {
        problems.push(Problem {
            key: key.to_owned(),
            message,
        });
    };
    let address = match configuration.server() {
        Ok(address) => address?,
        Err(failure) => {
            problem("core.database.path", failure.message);
            return None;
        }
    };
    let settings = settings?;
    if let Err(unfit) = settings.check_for_mysql() {
        for each in &unfit {
            problem(&each.key, each.to_string());
        }
    }
    let path = address.to_string().into();
    let program = settings.backup.dump_program.as_deref();
    if let Err(error) = DumpClient::find(address, program) {
        let key = "maintenance.backup.dump_program";
        let message = format!(
            "{key}: {error}; install the server's client programs, or name theirs with this key"
        );
        problem(key, message);
    }
    Some(Found {
        path,
        bytes: None,
        journal_mode: Some(NO_JOURNAL.to_owned()),
    })
}

/// What the tracker would stumble over at its start. Of a table that is refused what is
/// written counts, as far as it can be read.
fn check_directories(
    configuration: &Configuration,
    settings: Option<&Settings>,
    problems: &mut Vec<Problem>,
) -> Result<(), Failure> {
    let (backups_key, touch_file_key) = (
        "maintenance.backup.directory",
        "maintenance.readiness.touch_file",
    );
    let (taken_by, backups, touch_file) = match settings {
        Some(settings) => (
            settings.backup.taken_by,
            Some(settings.backup.directory.clone()),
            settings
                .readiness
                .as_ref()
                .and_then(|readiness| readiness.touch_file.clone()),
        ),
        None => (
            match configuration.value::<String>("maintenance.backup.taken_by")? {
                Some(who) if who == "sidecar" => TakenBy::Sidecar,
                _ => TakenBy::Tracker,
            },
            configuration.value(backups_key)?,
            configuration.value(touch_file_key)?,
        ),
    };
    let backups = backups.filter(|path| !path.as_os_str().is_empty());
    let touch_file = touch_file.filter(|path| !path.as_os_str().is_empty());
    let mut problem = |key: &str, message| {
        problems.push(Problem {
            key: key.to_owned(),
            message,
        });
    };
    if let Some(path) = backups
        .as_ref()
        .filter(|path| path.exists() && !path.is_dir())
    {
        let path = path.display();
        let message = format!("{backups_key} = \"{path}\" is not a directory; name one");
        problem(backups_key, message);
    }
    // A sidecar's is for it to find, and need not be to be seen from here.
    let backups = backups.filter(|_| taken_by == TakenBy::Tracker);
    for (key, path) in [(backups_key, backups), (touch_file_key, touch_file)] {
        if let Some(path) = path.filter(|path| !parent(path).is_dir()) {
            problem(key, lies_nowhere(key, &path));
        }
    }
    Ok(())
}

/// Whether the tracker can listen, and has the token that it wants for addresses others reach.
fn check_endpoint(readiness: &Readiness, problems: &mut Vec<Problem>) {
    let mut problem = |key: &str, message| {
        problems.push(Problem {
            key: key.to_owned(),
            message,
        });
    };
    let address = &readiness.bind_address;
    if let Address::Unix(path) = address
        && !parent(path).is_dir()
    {
        let key = "maintenance.readiness.bind_address";
        problem(key, lies_nowhere(key, path));
    }
    let key = "maintenance.readiness.token_file";
    let variable = std::env::var_os(token::VARIABLE);
    let file = readiness.token_file.as_deref();
    match readiness::Token::find(variable.as_deref(), file, &Disk::default()) {
        Ok(None) if !address.is_local() => {
            let message = format!(
                "maintenance.readiness.bind_address = \"{address}\" can be reached from other \
                 machines, and there is no token; set {key} or {} (here, too), or keep to a \
                 loopback address or a Unix domain socket",
                token::VARIABLE
            );
            problem(key, message);
        }
        Ok(_) => {}
        Err(error) => problem(key, error.to_string()),
    }
}

fn lies_nowhere(key: &str, path: &Path) -> String {
    let path = path.display();
    format!("{key} = \"{path}\" lies in a directory that does not exist; create it")
}

/// What is right by itself, but not with the rest.
fn check_together(
    configuration: &Configuration,
    settings: &Settings,
    database: Option<&Found>,
    problems: &mut Vec<Problem>,
) -> Result<(), Failure> {
    let mut problem = |key: &str, message: &str| {
        problems.push(Problem {
            key: key.to_owned(),
            message: message.to_owned(),
        });
    };
    // The tracker creates a database that is missing with a rollback journal.
    let rollback = match settings.journal_mode {
        JournalMode::Keep => {
            database.is_some_and(|found| found.journal_mode.as_deref() != Some("wal"))
        }
        JournalMode::Wal => false,
        JournalMode::Delete => true,
    };
    if rollback && settings.announces == Announces::Serve {
        problem(
            "maintenance.announces",
            "maintenance.announces = \"serve\" is not possible on a rollback journal, which \
             blocks announces during the copy; set journal_mode = \"wal\" or announces = \"auto\"",
        );
    }
    let persistent: Option<bool> = configuration.value(PERSISTENT)?;
    if settings.load_completed.is_some() && persistent != Some(true) {
        problem(
            "maintenance.load_completed",
            &format!(
                "maintenance.load_completed = true has no effect that lasts without {PERSISTENT} = \
                 true: the first clean-up drops the counters again; set both or neither"
            ),
        );
    }
    Ok(())
}

/// Whether what is to be stored can be, as far as can be told now.
fn check_contents(settings: &Settings, database: &Found, problems: &mut Vec<Problem>) {
    let mut problem = |key: &str, message: String| {
        problems.push(Problem {
            key: format!("maintenance.backup.{key}"),
            message,
        });
    };
    let wanted = &settings.backup.files;
    let reserved = Reserved::of(&database.path, &settings.backup.directory);
    let chosen = files::choose(wanted, &reserved, &Disk::default(), &Watch::default());
    let checked = chosen.and_then(|choice| {
        files::check_reserved(&choice.left_out)?;
        files::check_missing(&choice.left_out, wanted.missing)
    });
    if let Err(error) = checked {
        problem("files", error.to_string());
    }
    if let Err(error) = Seal::of(&settings.backup.encryption, &Disk::default()) {
        problem("recipients_file", error.to_string());
    }
    if let Some(partial) = &settings.backup.partial
        && database.is_settled()
    {
        let key = if partial.tables.is_some() {
            "tables"
        } else {
            "completed_only"
        };
        // What is the matter with the database itself has been told.
        let checked = excerpt::check_file(&database.path, partial);
        if let Err(error @ (Unfit::UnknownTables { .. } | Unfit::NoCounters)) = checked {
            problem(key, error.to_string());
        }
    }
}

fn disabled(configuration: &Configuration) -> Answer {
    Answer {
        exit: Exit::Done,
        text: format!(
            "{}: [maintenance] is absent or disabled; the tracker runs without windows",
            configuration.describe()
        ),
        json: json!({
            "configuration": configuration.describe(), "enabled": false, "problems": [],
            "windows": [], "database": null, "backups": null, "verify": null,
            "run": null, "running": null,
        }),
    }
}

fn refused(configuration: &Configuration, enabled: bool, problems: &[Problem]) -> Answer {
    let count = match problems.len() {
        1 => "1 problem".to_owned(),
        count => format!("{count} problems"),
    };
    let mut lines = vec![format!("{count} in {}", configuration.describe())];
    lines.extend(
        problems
            .iter()
            .map(|problem| format!("  {}", problem.message)),
    );
    Answer {
        exit: Exit::Usage,
        text: lines.join("\n"),
        json: json!({
            "configuration": configuration.describe(), "enabled": enabled, "problems": problems,
            "windows": [], "database": null, "backups": null, "verify": null,
            "run": null, "running": null,
        }),
    }
}

fn good(
    configuration: &Configuration,
    settings: &Settings,
    database: Option<&Found>,
    status: Option<&Status>,
    now: DateTime<Utc>,
) -> Answer {
    let windows = windows(&settings.schedule, now);
    let directory = &settings.backup.directory;
    let entries = configuration
        .catalogue()
        .and_then(|catalogue| Ok(catalogue.list()?))
        .unwrap_or_default();
    let count = entries
        .iter()
        .filter(|entry| matches!(entry, Entry::Good(_)))
        .count();
    let room = if directory.is_dir() {
        directory.as_path()
    } else {
        parent(directory)
    };
    let free = Disk::default().free_bytes(room).ok();
    let endpoint = settings
        .readiness
        .as_ref()
        .map(|readiness| readiness.bind_address.clone());

    let mut lines = vec![format!(
        "configuration  {}: no problems found in [maintenance], the mandatory keys and the paths",
        configuration.describe()
    )];
    for (n, window) in windows.iter().enumerate() {
        let name = if n == 0 { "windows" } else { "" };
        lines.push(format!(
            "{name:<15}{} to {} UTC, in {}",
            units::minute(window.begins),
            units::minute(window.ends),
            units::span(window.begins - now)
        ));
    }
    if let Some(found) = database {
        lines.push(format!(
            "database       {}: {}",
            found.path.display(),
            found.describe(settings)
        ));
    }
    let free = free
        .map(|free| format!(", {} free", units::bytes(free)))
        .unwrap_or_default();
    lines.push(format!(
        "backups        {}: {count}{free}",
        directory.display()
    ));
    let backup = &settings.backup;
    let takes = database.and_then(|found| found.bytes).map(|bytes| {
        let earlier: Vec<_> = entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::Good(backup) => Some(&backup.manifest),
                _ => None,
            })
            .collect();
        verify::expected(bytes, backup.verify, &earlier)
    });
    let forecast = database
        .and_then(|found| Some((found, found.mode_when_started(settings)?)))
        .map(|(found, mode)| Forecast::of(configuration, settings, &found.path, mode));
    lines.push(verify_line(list::depth(backup.verify), takes));
    lines.extend(forecast.as_ref().map(run_line));
    lines.push(match (endpoint, status) {
        (None, _) => "endpoint       disabled".to_owned(),
        (Some(endpoint), Some(status)) => {
            format!("endpoint       {endpoint}: {} answers", status.service)
        }
        (Some(endpoint), None) => format!("endpoint       {endpoint}: no tracker answers"),
    });
    Answer {
        exit: Exit::Done,
        text: lines.join("\n"),
        json: json!({
            "configuration": configuration.describe(),
            "enabled": true,
            "problems": [],
            "windows": windows,
            "database": database,
            "backups": { "directory": directory, "good": count },
            "verify": {
                "depth": backup.verify,
                "seconds": takes.map(|takes| takes.as_secs_f64()),
            },
            "run": forecast.as_ref().map(run_json),
            "running": status.is_some(),
        }),
    }
}

fn verify_line(depth: &str, takes: Option<Duration>) -> String {
    match takes {
        Some(takes) if takes < Duration::from_secs(1) => {
            format!("verify         {depth}: less than a second for each backup")
        }
        Some(takes) => format!(
            "verify         {depth}: about {} for each backup",
            units::seconds(takes)
        ),
        None => format!("verify         {depth}"),
    }
}

fn run_line(forecast: &Forecast) -> String {
    let would = forecast.objection().unwrap_or_else(|| {
        let (copy, room) = (forecast.copy(), forecast.room());
        format!("would begin: {copy}; {room}")
    });
    format!("run            {would}")
}

fn run_json(forecast: &Forecast) -> Value {
    let mut json = forecast.json();
    json["objection"] = json!(forecast.objection());
    json
}

impl Found {
    /// Whether the file has all of the database: it is there, and nothing is in a log.
    fn is_settled(&self) -> bool {
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        let log = std::fs::metadata(log).map_or(0, |log| log.len());
        self.bytes.is_some_and(|bytes| bytes > 0) && log == 0
    }

    /// The journal mode the tracker's runs meet; `None` for a database that is not there yet.
    fn mode_when_started(&self, settings: &Settings) -> Option<&str> {
        let found = self.journal_mode.as_deref()?;
        Some(wanted(settings).unwrap_or(found))
    }

    fn describe(&self, settings: &Settings) -> String {
        if self.journal_mode.as_deref() == Some(NO_JOURNAL) {
            return "of a server; its client program dumps it".to_owned();
        }
        let Some(bytes) = self.bytes else {
            return "not there yet; the tracker creates it".to_owned();
        };
        let wanted = wanted(settings);
        let mode = self.journal_mode.as_deref().unwrap_or("not set yet");
        let change = match wanted {
            Some(wanted) if wanted != mode => {
                format!(" (the tracker makes it {wanted} when it starts)")
            }
            _ => String::new(),
        };
        format!("{}, journal mode {mode}{change}", units::bytes(bytes))
    }
}

/// The journal mode the tracker sets when it starts.
fn wanted(settings: &Settings) -> Option<&'static str> {
    match settings.journal_mode {
        JournalMode::Keep => None,
        JournalMode::Wal => Some("wal"),
        JournalMode::Delete => Some("delete"),
    }
}

fn windows(schedule: &Schedule, now: DateTime<Utc>) -> Vec<Interval> {
    let first = schedule.next_after(now);
    std::iter::successors(first, |window| schedule.next_after(window.begins))
        .take(WINDOWS)
        .collect()
}
