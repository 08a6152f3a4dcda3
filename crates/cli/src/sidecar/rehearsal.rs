//! `sidecar --dry-run`: what a night would meet, found out by day. Claims nothing and
//! writes nothing.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, access};
use serde_json::json;
use torrust_tracker_maintenance::catalogue::Catalogue;
use torrust_tracker_maintenance::config::Backup;
use torrust_tracker_maintenance::disk::Disk;
use torrust_tracker_maintenance::publication::Publisher;
use torrust_tracker_maintenance::status::Taker;
use torrust_tracker_maintenance::{sidecar, sqlite};

use super::contact::Http;
use super::round::{Ready, Reply};
use super::touch_file::TouchFile;
use super::{Arguments, writable};
use crate::client::block_on;
use crate::configuration::Configuration;
use crate::exit::{Answer, Exit, Failure};
use crate::units;

/// What was found of one thing: in words, or what speaks against it.
type Found = Result<String, Failure>;

/// Looks at the tracker, the database and the directory, as a run would find them.
pub fn of(
    arguments: &Arguments,
    configuration: &Configuration,
    backup: &Backup,
) -> Result<Answer, Failure> {
    let Word {
        tracker,
        access,
        ready,
        named,
    } = match &arguments.touch_file {
        Some(path) => touch_file(path)?,
        None => endpoint(arguments, configuration)?,
    };
    let database = arguments.database.clone().or(named);
    let seen = look(database.as_deref(), ready.as_ref());
    let bytes = seen.as_ref().ok().map(|(_, bytes)| *bytes);
    let seen = seen.map(|(text, _)| text);
    let directory = directory(arguments, configuration, backup, bytes);
    let task = match arguments.command.first() {
        Some(program) => format!("run `{}`", program.to_string_lossy()),
        None => "copy, check, compress and publish".to_owned(),
    };

    let mut found = vec![
        ("tracker", tracker),
        ("access", access),
        ("database", seen),
        ("directory", directory),
    ];
    found.extend(
        arguments
            .command
            .first()
            .map(|program| ("command", command(program))),
    );
    let objection = found.iter().find_map(|(_, found)| found.as_ref().err());
    let exit = objection.map_or(Exit::Done, |failure| failure.exit);
    let verdict = match objection {
        None => "would take the next run".to_owned(),
        Some(failure) => format!("would fail: {}", failure.message),
    };
    let mut lines = vec![("sidecar", verdict.clone()), ("task", task.clone())];
    lines.extend(found.iter().map(|(name, found)| {
        let text = found
            .as_ref()
            .map_or_else(|failure| failure.message.clone(), String::clone);
        (*name, text)
    }));
    let lines = lines.iter().map(|(name, text)| format!("{name:<11}{text}"));
    Ok(Answer {
        exit,
        text: lines.collect::<Vec<_>>().join("\n"),
        json: json!({
            "would_take": exit == Exit::Done, "verdict": verdict, "task": task,
            "error": objection.map(|failure| failure.error),
            "run": ready.map(|ready| ready.offer.run),
            "database": database, "database_bytes": bytes,
        }),
    })
}

/// The tracker's word.
struct Word {
    tracker: Found,
    /// Whether a run could be taken of it.
    access: Found,
    ready: Option<Ready>,
    /// What it calls its database.
    named: Option<PathBuf>,
}

fn endpoint(arguments: &Arguments, configuration: &Configuration) -> Result<Word, Failure> {
    let client = configuration.client()?;
    let status = block_on(client.status())?;
    let http = Http::new(client, arguments.name());
    let ready = match block_on(http.look(Duration::ZERO))? {
        Reply::Ready(ready) => Some(*ready),
        _ => None,
    };
    let access = block_on(http.lets_in())
        .map(|()| "the tracker lets this sidecar take runs".to_owned())
        .map_err(Failure::from);
    let tracker = match &ready {
        _ if status.taken_by == Taker::Tracker => Err(Failure::new(
            Exit::Usage,
            "taken_by_tracker",
            "the tracker takes its backups itself, so it will never offer a run: set \
             backup.taken_by = \"sidecar\" in its [maintenance] and restart it",
        )),
        Some(Ready {
            offer,
            holder: Some(holder),
            ..
        }) => {
            let why = format!("run {} is taken: {holder} has it", offer.run);
            Err(Failure::new(Exit::Busy, "taken", why))
        }
        Some(ready) => Ok(format!(
            "{}: run {} is ready",
            status.service, ready.offer.run
        )),
        None => Ok(format!(
            "{}: {}, {}",
            status.service,
            status.state,
            status.next.as_ref().map_or_else(
                || "no window is ever due".to_owned(),
                |next| format!("the next window begins {} UTC", units::minute(next.begins))
            )
        )),
    };
    Ok(Word {
        tracker,
        access,
        ready,
        named: Some(status.database.path),
    })
}

fn touch_file(path: &Path) -> Result<Word, Failure> {
    let ready = TouchFile::new(path.to_owned()).glance()?;
    let tracker = match &ready {
        Some(ready) => format!("run {} is shown by {}", ready.offer.run, path.display()),
        None => format!("{} is not there: nothing is ready", path.display()),
    };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let access = writable(directory)
        .map(|()| format!("{} can be written to", directory.display()))
        .map_err(|failure| Failure::new(Exit::Failed, "touch_file", failure.message));
    let named = ready.as_ref().map(|ready| ready.database.clone());
    Ok(Word {
        tracker: Ok(tracker),
        access,
        ready,
        named,
    })
}

/// Whether there is such a program, looked for as it will be when it is started.
fn command(program: &OsStr) -> Found {
    let is_program = |path: &PathBuf| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    let found = if program.as_bytes().contains(&b'/') {
        Some(PathBuf::from(program)).filter(is_program)
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|directory| directory.join(program))
            .find(is_program)
    };
    found.map(|path| path.display().to_string()).ok_or_else(|| {
        let why = format!(
            "there is no program `{}` that this user may run",
            program.to_string_lossy()
        );
        Failure::new(Exit::Failed, "command_failed", why)
    })
}

/// The database as this process sees it, and its size. Compared only where something is
/// ready: before, it is on its way.
fn look(path: Option<&Path>, ready: Option<&Ready>) -> Result<(String, u64), Failure> {
    let Some(path) = path else {
        return Ok(("as the touch-file will say".to_owned(), 0));
    };
    let wrong = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Usage, "wrong_database", error.to_string())
    };
    let header = sqlite::inspect(path).map_err(|error| wrong(&error))?;
    let same = match ready {
        Some(ready) => {
            let checked = ready.offer.check(path);
            checked.map_err(|error| wrong(&error))?;
            ", the one that is held still"
        }
        None => "",
    };
    let bytes = header.bytes();
    let shown = units::bytes(bytes);
    Ok((format!("{}, {shown}{same}", path.display()), bytes))
}

fn directory(
    arguments: &Arguments,
    configuration: &Configuration,
    backup: &Backup,
    bytes: Option<u64>,
) -> Found {
    let disk = Disk::default();
    let directory = if arguments.command.is_empty() {
        arguments.catalogue_directory(configuration, backup)?
    } else {
        match &arguments.directory {
            Some(directory) => directory.clone(),
            None => return Ok("none: the command sees to what it makes".to_owned()),
        }
    };
    let catalogue = Catalogue::read_only(disk.clone(), &directory)?;
    writable(&directory)?;
    let failed = |message: String| Failure::new(Exit::Failed, "no_room", message);
    let free = disk
        .free_bytes(&directory)
        .map_err(|error| failed(error.to_string()))?;
    let publisher = Publisher {
        catalogue: &catalogue,
        disk: &disk,
        backup,
        service: "",
    };
    let needed = match bytes {
        Some(bytes) if arguments.command.is_empty() => {
            sidecar::needed(bytes, &publisher).map_err(|failure| failed(failure.message))?
        }
        _ => 0,
    };
    let text = format!(
        "{}, {} free, about {} needed while a backup is made",
        directory.display(),
        units::bytes(free),
        units::bytes(needed)
    );
    if free < needed {
        Err(failed(text))
    } else {
        Ok(text)
    }
}
