//! The `[maintenance]` table, in two stages: [`File`] is what the operator wrote,
//! [`Settings`] is what has been checked. Nothing downstream validates again.
//!
//! [`Settings::check`] reads every key before it gives up, so that all problems are
//! reported at once, unknown keys among them, and it reads a disabled table as strictly as
//! an enabled one: a slip shows when it is made, not on the night it matters. Each default
//! and each bound stands beside its key in the `read` functions below, and the reason for a
//! bound beside the bound. `config/tracker.toml` shows every key with its default, and a test
//! holds it to that.
//!
//! Where the table comes from is [`Source`]'s affair.

mod address;
mod file;
mod mysql;
mod remote;
mod source;
mod table;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use glob::Pattern;

pub use self::address::Address;
pub use self::file::File;
use self::file::TABLE;
pub use self::remote::{Place, Readback, Remote, S3};
pub use self::source::{Error, Source};
use self::table::{Fault, Read, Table};
pub use self::table::{Problem, Problems};
use crate::encryption::Recipient;
use crate::excerpt::{Partial, TORRENTS};
use crate::hook::Hook;
use crate::notify::Target;
use crate::schedule::{self, Schedule};

/// The checked configuration. Only this module builds one (hence `non_exhaustive`), so
/// a value that exists is valid.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// When windows begin and how long they last.
    pub schedule: Schedule,
    /// Whether a window missed while the process was down is made up at start.
    pub catch_up: bool,
    /// What to do with the database's journal mode at start.
    pub journal_mode: JournalMode,
    /// What happens to announces while the file is copied.
    pub announces: Announces,
    /// When a request that wrote to the database is answered.
    pub acknowledge: Acknowledge,
    /// Load `completed` counters at start if the estimated memory is at most this many
    /// bytes; `None`: do not load them (as upstream).
    pub load_completed: Option<u64>,
    /// Limits on the closed gate.
    pub gate: Gate,
    /// How a backup is made and kept.
    pub backup: Backup,
    /// The endpoint and the touch-file; `None`: neither.
    pub readiness: Option<Readiness>,
    /// Who is told how runs end.
    pub notify: Notify,
    /// The operator's commands that belong to a run.
    pub hooks: Hooks,
    /// Where backups are uploaded to; `None`: nowhere.
    pub remote: Option<Remote>,
}

/// `journal_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalMode {
    /// Leave the database as it is.
    Keep,
    /// Switch to write-ahead logging before the service opens the file.
    Wal,
    /// Switch back to a rollback journal before the service opens the file.
    Delete,
}

/// `announces`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announces {
    /// Serve while copying in WAL, pause on a rollback journal.
    Auto,
    /// Hold everything from ready until the copy ends.
    Pause,
    /// Serve while copying; refused on a rollback journal.
    Serve,
}

/// `acknowledge`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledge {
    /// When a power failure cannot take back what it wrote.
    Durable,
    /// When the end of the process cannot. What a power failure may take back is what was
    /// written to the log since its last checkpoint.
    Committed,
}

/// `[maintenance.gate]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gate {
    /// Hard limit on a closed gate.
    pub hold_for: Duration,
    /// Most UDP announces held at once.
    pub hold_udp: usize,
    /// Most HTTP requests (announces and REST writes together) held at once.
    pub hold_http: usize,
}

/// `backup.taken_by`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenBy {
    /// This process copies, verifies and publishes.
    Tracker,
    /// Another process copies while the pin holds.
    Sidecar,
}

/// `backup.method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `File` where it can be, else `Pages`.
    Auto,
    /// Take the pinned file itself: a clone where there are any, else read through a
    /// descriptor that is never closed.
    File,
    /// `SQLite`'s online backup API from the pinned connection.
    Pages,
}

/// `backup.compression`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// The database is stored as it is.
    None,
    /// zstd at this level (1-19; 3 unless set).
    Zstd(i32),
}

/// `backup.io_priority`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoPriority {
    /// Behind the service: its reads and writes go first.
    Low,
    /// As any other thread's.
    Normal,
}

/// How deep a structural check goes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    /// `PRAGMA quick_check`: everything but index-to-table consistency.
    Quick,
    /// `PRAGMA integrity_check`.
    Full,
}

/// `[maintenance.backup]`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Backup {
    /// Who copies.
    pub taken_by: TakenBy,
    /// The catalogue's directory.
    pub directory: PathBuf,
    /// How the pinned database is read.
    pub method: Method,
    /// How the artifact is compressed.
    pub compression: Compression,
    /// The structural check every backup must pass before it is published.
    pub verify: Depth,
    /// What retention keeps.
    pub keep: Keep,
    /// Bytes of WAL growth under the pin past which a run is given up.
    pub wal_limit: u64,
    /// Bytes a second the raw copy may read; `None`: as fast as it can.
    pub bandwidth: Option<u64>,
    /// How the reads and writes of a run rank beside those of the service.
    pub io_priority: IoPriority,
    /// Which part of the database is stored; `None`: all of it.
    pub partial: Option<Partial>,
    /// Other files every backup holds.
    pub files: Files,
    /// The program that dumps a MySQL or MariaDB database; `None`: the first that is found.
    pub dump_program: Option<PathBuf>,
    /// Whom a backup is encrypted for.
    pub encryption: Encryption,
}

/// `backup.recipients` and `backup.recipients_file`: whom database and files are encrypted
/// for. If neither is there, they are not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encryption {
    /// `recipients`.
    pub recipients: Vec<Recipient>,
    /// `recipients_file`: a file with more of them, one a line.
    pub recipients_file: Option<PathBuf>,
}

/// The keys of `[maintenance.backup]` about other files than the database.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Files {
    /// `files`: paths and glob patterns; of a directory all that is in it.
    pub wanted: Vec<PathBuf>,
    /// `config_file`: whether the configuration file in use is one of them.
    pub config_file: bool,
    /// That file; `None`: it is not wanted, or the configuration is not one file.
    /// [`Source`] fills it in.
    pub configuration: Option<PathBuf>,
    /// `exclude`: what is left out of them.
    pub exclude: Vec<Pattern>,
    /// `missing_files`: what is to be made of files that are wanted and not to be had.
    pub missing: Missing,
    /// `files_limit`: bytes all of them may have together.
    pub limit: u64,
}

/// `backup.missing_files`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The backup is made without them and says so.
    Warn,
    /// The run fails.
    Error,
}

/// `backup.keep`: how many of each period's newest backups stay. 0 keeps none for that
/// period; the newest good backup always stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Keep {
    /// The newest N backups.
    pub last: usize,
    /// The newest backup of each of the last N days that have one (UTC).
    pub daily: usize,
    /// The newest backup of each of the last N ISO weeks that have one.
    pub weekly: usize,
    /// The newest backup of each of the last N months that have one.
    pub monthly: usize,
}

/// `[maintenance.readiness]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Readiness {
    /// Where the endpoint listens.
    pub bind_address: Address,
    /// Names, besides IP addresses and `localhost`, that a request may give as its host.
    pub hosts: Vec<String>,
    /// The file that exists exactly while the database may be copied.
    pub touch_file: Option<PathBuf>,
    /// A file with the token that whatever changes something must carry.
    pub token_file: Option<PathBuf>,
    /// How long a sidecar's lease lasts unless it is renewed.
    pub ttl: Duration,
    /// How long a run waits, ready, for a sidecar to claim it.
    pub claim_within: Duration,
}

/// `[maintenance.notify]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Notify {
    /// Gets a notice as JSON, by POST.
    pub webhook: Option<Target>,
    /// A file whose first line is a header sent with it, `Name: value`.
    pub webhook_header_file: Option<PathBuf>,
    /// Which runs the webhook is told of.
    pub on: TellOf,
    /// Is asked for, by GET, once a verified backup was published, or a sidecar has its copy of
    /// a file that held throughout.
    pub heartbeat: Option<Target>,
    /// Is asked for when a run came to nothing, or a window had none.
    pub heartbeat_failure: Option<Target>,
    /// Limit on one attempt to reach either.
    pub timeout: Duration,
}

/// `notify.on`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TellOf {
    /// Those that were not done, those whose hooks failed, and windows without a run.
    Failure,
    /// All, and windows without a run.
    Always,
}

impl Notify {
    /// Whether anybody is to be told anything.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.webhook.is_some() || self.heartbeat.is_some() || self.heartbeat_failure.is_some()
    }
}

/// `[maintenance.hooks]`.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hooks {
    /// Each hook's command: the program and its arguments.
    pub commands: BTreeMap<Hook, Vec<String>>,
    /// Limit on each.
    pub timeout: Duration,
}

/// Without the arguments of commands, which may be secrets.
impl std::fmt::Debug for Hooks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let programs = self.commands.iter().map(|(hook, words)| (hook, &words[0]));
        f.debug_struct("Hooks")
            .field("programs", &programs.collect::<BTreeMap<_, _>>())
            .field("timeout", &self.timeout)
            .finish()
    }
}

impl Settings {
    /// Checks what was written. `None` if it is disabled.
    ///
    /// # Errors
    ///
    /// All problems, also those of a disabled table.
    pub fn check(file: &File) -> Result<Option<Self>, Problems> {
        let (settings, read) = Self::read(file);
        Problems::of(read.problems).map_or(Ok(settings), Err)
    }

    fn read(file: &File) -> (Option<Self>, Read) {
        Table::read(TABLE.to_owned(), Some(&file.0), |table| {
            let enabled = table.optional("enabled", value::flag);
            if !table.has("enabled") {
                let hint = "write true or false: a table that is there says which is meant";
                table.object("enabled", Fault::new("is missing", hint));
            }
            let enabled = enabled.unwrap_or(false);
            let schedule = read_schedule(table, enabled);
            let catch_up = table.or("catch_up", false, value::flag);
            let modes = [
                ("keep", JournalMode::Keep),
                ("wal", JournalMode::Wal),
                ("delete", JournalMode::Delete),
            ];
            let journal_mode = table.or("journal_mode", JournalMode::Keep, value::choice(&modes));
            let policies = [
                ("auto", Announces::Auto),
                ("pause", Announces::Pause),
                ("serve", Announces::Serve),
            ];
            let announces = table.or("announces", Announces::Auto, value::choice(&policies));
            let answers = [
                ("durable", Acknowledge::Durable),
                ("committed", Acknowledge::Committed),
            ];
            let acknowledge =
                table.or("acknowledge", Acknowledge::Durable, value::choice(&answers));
            let load_completed = read_load_completed(table);
            let gate = table.table("gate", Gate::read);
            let backup = table.table("backup", Backup::read);
            let readiness = table.table("readiness", Readiness::read);
            let notify = table.table("notify", Notify::read);
            let hooks = table.table("hooks", Hooks::read);
            let remote = table.table("remote", Remote::read);

            if announces == Announces::Serve && journal_mode == JournalMode::Delete {
                let what = r#"cannot go with journal_mode = "delete""#;
                let hint = r#"write "auto" or "pause": a rollback journal lets nobody write during the copy"#;
                table.object("announces", Fault::new(what, hint));
            }
            if backup.taken_by == TakenBy::Sidecar && readiness.is_none() {
                let what = "needs [maintenance.readiness], where a sidecar learns of a run";
                let hint = r#"enable that, or write "tracker""#;
                table.object("backup.taken_by", Fault::new(what, hint));
            }

            let schedule = schedule.filter(|_| enabled)?;
            Some(Self {
                schedule,
                catch_up,
                journal_mode,
                announces,
                acknowledge,
                load_completed,
                gate,
                backup,
                readiness,
                notify,
                hooks,
                remote,
            })
        })
    }
}

/// `window`, or `schedule` and `duration`. `None` if there is a problem, or nothing is written
/// and nothing `needed`.
fn read_schedule(table: &mut Table<'_>, needed: bool) -> Option<Schedule> {
    let daily = table.optional("window", value::window);
    let line = table.optional("schedule", value::text);
    let duration = table.optional("duration", value::duration);
    let [has_window, has_line, has_duration] =
        ["window", "schedule", "duration"].map(|key| table.has(key));

    // Without its duration a line can still be told right from wrong.
    let crontab = line.and_then(|line| {
        let shortest = Duration::from_secs(1);
        match Schedule::crontab(&line, duration.unwrap_or(shortest)) {
            Ok(schedule) => Some(schedule),
            Err(error) => {
                use schedule::Error as Why;
                let key = match error {
                    Why::Duration(_) | Why::Overlapping { .. } => "duration",
                    _ => "schedule",
                };
                table.object(key, Fault::because(&error));
                None
            }
        }
    });

    let mut missing = |key, hint| table.object(key, Fault::new("is missing", hint));
    match (has_window, has_line, has_duration) {
        (true, false, false) => return daily,
        (false, true, true) => return crontab,
        (false, true, false) => missing(
            "duration",
            r#"write how long a window lasts, such as "30m""#,
        ),
        (false, false, true) => missing(
            "schedule",
            r#"write when windows begin, such as "0 3 * * 0""#,
        ),
        (false, false, false) if needed => missing(
            "window",
            r#"write one, such as "03:00-03:05", or a schedule and a duration"#,
        ),
        (false, false, false) => {}
        (true, ..) => {
            let hint = "remove it, or else schedule and duration";
            table.object(
                "window",
                Fault::new("says a second time when windows are", hint),
            );
        }
    }
    None
}

fn read_load_completed(table: &mut Table<'_>) -> Option<u64> {
    let load = table.or("load_completed", false, value::flag);
    let limit = table.or("load_completed_limit", 2 * GIB, value::size(MIB));
    load.then_some(limit)
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

impl Gate {
    fn read(table: &mut Table<'_>) -> Self {
        // Less than a second is less than a busy database may take to flush. More than ten
        // minutes, and the tracker forgets peers it did not let announce (after 15).
        let bounds = Duration::from_secs(1)..=Duration::from_secs(600);
        let hold_for = table.or(
            "hold_for",
            Duration::from_secs(90),
            value::duration_in(bounds),
        );
        let (hold_udp, hold_http) = table.table("hold_at_most", |table| {
            // A held datagram takes memory, a held connection a file descriptor too.
            let udp = table.or("udp", 65_536, value::whole(1..=4_194_304));
            let http = table.or("http", 500, value::whole(1..=65_536));
            (udp, http)
        });
        Self {
            hold_for,
            hold_udp,
            hold_http,
        }
    }
}

impl Backup {
    fn read(table: &mut Table<'_>) -> Self {
        let taken_by = [("tracker", TakenBy::Tracker), ("sidecar", TakenBy::Sidecar)];
        let method = [
            ("auto", Method::Auto),
            ("file", Method::File),
            ("pages", Method::Pages),
        ];
        let verify = [("quick", Depth::Quick), ("full", Depth::Full)];
        let priority = [("low", IoPriority::Low), ("normal", IoPriority::Normal)];
        Self {
            taken_by: table.or("taken_by", TakenBy::Tracker, value::choice(&taken_by)),
            directory: table.or(
                "directory",
                "./storage/tracker/lib/backups".into(),
                value::path,
            ),
            method: table.or("method", Method::Auto, value::choice(&method)),
            compression: Compression::read(table),
            verify: table.or("verify", Depth::Quick, value::choice(&verify)),
            keep: table.table("keep", Keep::read),
            partial: read_partial(table),
            files: Files::read(table),
            // Below the least a run would be given up by the first announces it lets through.
            // There is no "unlimited": the disk is not.
            wal_limit: table.or("wal_limit", GIB, value::size(MIB)),
            // Below the least a figure is a slip of the unit: a gigabyte would take five hours.
            bandwidth: table.or("bandwidth", None, value::limit(64 * KIB)),
            io_priority: table.or("io_priority", IoPriority::Low, value::choice(&priority)),
            dump_program: table.optional("dump_program", value::path),
            encryption: Encryption::read(table),
        }
    }
}

impl Encryption {
    fn read(table: &mut Table<'_>) -> Self {
        let texts = table.secret("recipients", value::recipients);
        let recipients_file = table.optional("recipients_file", value::path);
        let mut recipients = Vec::new();
        for text in texts.unwrap_or_default() {
            match Recipient::parse(&text) {
                Ok(recipient) => recipients.push(recipient),
                // What is written may be a secret by mistake, so it is not shown.
                Err(why) => {
                    table.object_unseen("recipients", Fault::of(format!("has one that {why}")));
                }
            }
        }
        Self {
            recipients,
            recipients_file,
        }
    }

    /// Whether backups are encrypted.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        !self.recipients.is_empty() || self.recipients_file.is_some()
    }
}

/// `tables` and `completed_only`.
fn read_partial(table: &mut Table<'_>) -> Option<Partial> {
    let tables = table.optional("tables", value::texts);
    let completed_only = table.or("completed_only", false, value::flag);
    let tables: Option<BTreeSet<_>> = tables.map(|tables| tables.into_iter().collect());
    if let Some(tables) = &tables {
        if tables.is_empty() {
            let hint = "name the tables whose rows are stored, or remove it to store all";
            table.object("tables", Fault::new("names no table", hint));
        }
        if completed_only && !tables.contains(TORRENTS) {
            let what = "has no meaning without the table torrents in tables";
            let hint = r#"remove it, or add "torrents""#;
            table.object("completed_only", Fault::new(what, hint));
        }
    }
    (tables.is_some() || completed_only).then_some(Partial {
        tables,
        completed_only,
    })
}

impl Files {
    fn read(table: &mut Table<'_>) -> Self {
        let missing = [("warn", Missing::Warn), ("error", Missing::Error)];
        Self {
            wanted: table.or("files", Vec::new(), value::paths_or_patterns),
            config_file: table.or("config_file", true, value::flag),
            configuration: None,
            exclude: table.or("exclude", Vec::new(), value::patterns),
            missing: table.or("missing_files", Missing::Warn, value::choice(&missing)),
            // Configuration is small. What is larger is a slip of a pattern, or deserves a
            // figure of its own.
            limit: table.or("files_limit", 64 * MIB, value::size(KIB)),
        }
    }

    /// Takes note of where the configuration was read from.
    fn read_from(&mut self, path: Option<&Path>) {
        let path = path.filter(|_| self.config_file);
        self.configuration = path.map(Path::to_owned);
    }
}

impl Default for Backup {
    /// Of an empty table.
    fn default() -> Self {
        Table::read(format!("{TABLE}.backup"), None, Self::read).0
    }
}

impl Compression {
    /// Two keys, so that the level has a place whatever the method.
    fn read(table: &mut Table<'_>) -> Self {
        let compressed = [("zstd", true), ("none", false)];
        let compressed = table.or("compression", true, value::choice(&compressed));
        // Above 19 zstd needs memory by the gigabyte, to restore as well.
        let level = table.or("compression_level", 3, value::whole(1..=19));
        if compressed {
            return Self::Zstd(level);
        }
        if table.has("compression_level") {
            let what = r#"has no meaning with compression = "none""#;
            table.object("compression_level", Fault::new(what, "remove it"));
        }
        Self::None
    }
}

impl Keep {
    fn read(table: &mut Table<'_>) -> Self {
        let mut count = |key, default| table.or(key, default, value::whole(0..=10_000));
        Self {
            last: count("last", 1),
            daily: count("daily", 7),
            weekly: count("weekly", 4),
            monthly: count("monthly", 6),
        }
    }
}

impl Readiness {
    fn read(table: &mut Table<'_>) -> Option<Self> {
        let enabled = table.or("enabled", true, value::flag);
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 1414));
        let second = Duration::from_secs(1);
        let readiness = Self {
            bind_address: table.or("bind_address", Address::Tcp(loopback), value::address),
            hosts: table.or("hosts", Vec::new(), value::hosts),
            touch_file: table.optional("touch_file", value::path),
            token_file: table.optional("token_file", value::path),
            // A lease that is too short is lost to a slow disk, one too long holds the pin for
            // a sidecar that died.
            ttl: table.or(
                "ttl",
                45 * second,
                value::duration_in(5 * second..=600 * second),
            ),
            claim_within: table.or(
                "claim_within",
                60 * second,
                value::duration_in(second..=3600 * second),
            ),
        };
        enabled.then_some(readiness)
    }
}

impl Notify {
    fn read(table: &mut Table<'_>) -> Self {
        let of = [("failure", TellOf::Failure), ("always", TellOf::Always)];
        let second = Duration::from_secs(1);
        let notify = Self {
            webhook: table.secret("webhook", value::target),
            webhook_header_file: table.optional("webhook_header_file", value::path),
            on: table.or("on", TellOf::Failure, value::choice(&of)),
            heartbeat: table.secret("heartbeat", value::target),
            heartbeat_failure: table.secret("heartbeat_failure", value::target),
            // What has not answered by then holds up the next attempt, and the next notice.
            timeout: table.or(
                "timeout",
                10 * second,
                value::duration_in(second..=60 * second),
            ),
        };
        if notify.webhook_header_file.is_some() && !table.has("webhook") {
            let what = "has no meaning without webhook";
            let hint = "write where notices are to be sent, or remove it";
            table.object("webhook_header_file", Fault::new(what, hint));
        }
        notify
    }
}

impl Hooks {
    fn read(table: &mut Table<'_>) -> Self {
        let mut commands = BTreeMap::new();
        for hook in Hook::ALL {
            // Its arguments may be secrets.
            if let Some(command) = table.secret(hook.name(), value::command) {
                commands.insert(hook, command);
            }
        }
        let second = Duration::from_secs(1);
        Self {
            commands,
            // `before` delays its run, and `after` the next one's `before`.
            timeout: table.or(
                "timeout",
                30 * second,
                value::duration_in(second..=3600 * second),
            ),
        }
    }
}

#[cfg(test)]
mod tests;
