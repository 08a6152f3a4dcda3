//! The binary as an operator meets it: what it prints, where, and how it exits.

#![expect(
    clippy::disallowed_methods,
    reason = "the tests set files up and damage them; no database of theirs is open"
)]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use torrust_tracker_maintenance::catalogue::{
    BackupId, Catalogue, Draft, MANIFEST_FORMAT, Manifest,
};
use torrust_tracker_maintenance::config::{Address, Compression, Depth, JournalMode};
use torrust_tracker_maintenance::disk::Disk;
use torrust_tracker_maintenance::driver::{
    Driver, Engine, NotPinned, Parts, Pauses, Pinned, Published,
};
use torrust_tracker_maintenance::gate::Gate;
use torrust_tracker_maintenance::readiness::{Access, Listener};
use torrust_tracker_maintenance::schedule::Schedule;
use torrust_tracker_maintenance::snapshot::{Watch, Way};
use torrust_tracker_maintenance::status::{PerDoor, PinnedFile};
use torrust_tracker_maintenance::switch::NoSwitch;
use torrust_tracker_maintenance::window::{Cause, Failure, Pause, Rules, Run, RunId};
use torrust_tracker_maintenance::{readiness, sqlite, verify};

#[path = "cli/backups.rs"]
mod backups;
#[path = "cli/evaluate_wal.rs"]
mod evaluate_wal;
#[path = "cli/monitor.rs"]
mod monitor;
#[path = "cli/offsite.rs"]
mod offsite;
#[path = "cli/sidecar.rs"]
mod sidecar;

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// What the tracker insists on.
const MANDATORY: &str = "[metadata]\nschema_version = \"2.0.0\"\n[logging]\nthreshold = \"info\"\n\
     [core]\nprivate = false\nlisted = false\n";

/// A directory with a configuration, a database and room for backups.
struct Home {
    directory: TempDir,
    endpoint: SocketAddr,
}

/// What the binary did.
#[derive(Debug)]
struct Output {
    code: i32,
    out: String,
    err: String,
}

impl Home {
    fn new() -> Result<Self> {
        // Free a moment ago, and nobody else is told of it.
        let nobody = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        Self::at(nobody)
    }

    fn at(endpoint: SocketAddr) -> Result<Self> {
        let home = Self {
            directory: TempDir::new()?,
            endpoint,
        };
        sqlite::set_journal_mode(&home.path("tracker.db"), JournalMode::Wal)?;
        home.configure("")?;
        Ok(home)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `more` is of the table `[maintenance]`.
    fn configure(&self, more: &str) -> Result {
        self.configure_with(more, "")
    }

    /// `more` is of the table `[maintenance.backup]`.
    fn configure_backup(&self, more: &str) -> Result {
        self.configure_with("", more)
    }

    fn configure_with(&self, more: &str, of_backup: &str) -> Result {
        let text = format!(
            "{MANDATORY}\
             [core.database]\n\
             path = \"tracker.db\"\n\
             [maintenance]\n\
             enabled = true\n\
             window = \"03:00-03:05\"\n\
             {more}\n\
             [maintenance.backup]\n\
             directory = \"backups\"\n\
             {of_backup}\n\
             [maintenance.readiness]\n\
             bind_address = \"{}\"\n",
            self.endpoint
        );
        Ok(fs::write(self.path("tracker.toml"), text)?)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_torrust-maintenance"));
        command
            .args(["--config", "tracker.toml"])
            .args(arguments)
            .current_dir(&self.directory)
            .env_clear();
        command
    }

    fn run(&self, arguments: &[&str]) -> Result<Output> {
        let output = self.command(arguments).output()?;
        Ok(Output {
            code: output.status.code().ok_or("killed")?,
            out: String::from_utf8(output.stdout)?,
            err: String::from_utf8(output.stderr)?,
        })
    }

    /// Publishes a backup of an empty database, as the tracker would.
    fn publish(&self, began: &str) -> Result<BackupId> {
        self.publish_with(began, |_, _| Ok(()))
    }

    /// As [`Self::publish`], with something more in it, or said of it.
    fn publish_with(
        &self,
        began: &str,
        more: impl FnOnce(&Draft, &mut Manifest) -> Result,
    ) -> Result<BackupId> {
        let began: DateTime<Utc> = began.parse()?;
        let (disk, watch) = (Disk::default(), Watch::default());
        let draft = Catalogue::open(disk.clone(), &self.path("backups"))?.begin(began)?;
        let raw = draft.raw_path();
        sqlite::set_journal_mode(&raw, JournalMode::Wal)?;
        let artifact = draft.artifact_path(&Compression::Zstd(3));
        let database = verify::compress(&raw, &artifact, Compression::Zstd(3), &disk, &watch)?;
        let mut manifest = Manifest {
            format: MANIFEST_FORMAT,
            id: draft.id().clone(),
            run: RunId::new(began),
            began,
            pinned: began,
            published: began,
            service: "service 1.0".to_owned(),
            library: "0.1.0".to_owned(),
            sqlite: "3.53.0".to_owned(),
            driver: "sqlite3".to_owned(),
            source: "tracker.db".into(),
            journal_mode: "wal".to_owned(),
            read_mark_zero: Some(false),
            page_size: 4096,
            page_count: 1,
            method: Way::Pages,
            pause_ms: 12.0,
            copy_seconds: 0.5,
            rested_seconds: 0.0,
            wal_growth: None,
            bandwidth: None,
            dump: None,
            database,
            compression_level: Some(3),
            partial: None,
            files: None,
            rows: BTreeMap::new(),
            verified: Depth::Quick,
            verify_seconds: Some(0.1),
            warnings: Vec::new(),
        };
        more(&draft, &mut manifest)?;
        Ok(draft.publish(&manifest)?.manifest.id)
    }

    /// The stored file of a backup.
    fn artifact(&self, id: &BackupId) -> PathBuf {
        self.path("backups")
            .join(id.to_string())
            .join("database.sqlite3.zst")
    }
}

impl Output {
    fn json(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.out)?)
    }

    fn error(&self) -> Result<Value> {
        assert_eq!(self.out, "", "errors leave standard output alone");
        Ok(serde_json::from_str(&self.err)?)
    }
}

/// The real driver and endpoint with an engine that does nothing.
struct Tracker {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Copies when told to, or at once, and ends as it was told.
struct Idle {
    go_on: Option<Mutex<mpsc::Receiver<()>>>,
    end: std::result::Result<BackupId, Failure>,
    journal_mode: &'static str,
    /// Whether it could be ordered to go over to WAL.
    switch: std::result::Result<(), NoSwitch>,
}

/// At once, with a backup, in WAL mode.
impl Default for Idle {
    fn default() -> Self {
        Self {
            go_on: None,
            end: Ok(published()),
            journal_mode: "wal",
            switch: Ok(()),
        }
    }
}

impl Engine for Idle {
    type Draft = ();
    type Pin = ();
    type Copy = ();

    fn prepare(&self, _: &Run, _: &Watch) -> std::result::Result<(Pause, Option<()>), Failure> {
        Ok((Pause::UntilPinned(None), Some(())))
    }

    fn pin(&self, _: &Run, _: Duration, _: &Watch) -> std::result::Result<(), NotPinned> {
        Ok(())
    }

    fn copy(&self, _: &Run, (): &(), (): &(), watch: &Watch) -> std::result::Result<(), Failure> {
        watch.begin("copying", Some(4096));
        watch.advance(1024);
        if let Some(go_on) = &self.go_on {
            // Told, or whoever would tell is gone.
            let _ = go_on.lock().expect("one copy at a time").recv();
        }
        Ok(())
    }

    fn describe(&self, (): &()) -> Pinned {
        Pinned {
            file: Some(PinnedFile {
                device: 0,
                inode: 0,
                page_size: 4096,
                page_count: 1,
                bytes: 4096,
                modified: 1_795_000_000_123_456_789,
            }),
            taken: DateTime::UNIX_EPOCH,
        }
    }

    fn broken(&self) -> Option<Failure> {
        None
    }

    fn release(&self, (): ()) {}

    fn end_pin(&self, _: Duration) -> bool {
        true
    }

    fn finish(
        &self,
        _: &Run,
        (): (),
        (): (),
        _: Pauses,
        _: &Watch,
    ) -> std::result::Result<Published, Failure> {
        self.end.clone().map(|backup| Published {
            backup,
            made: None,
            warnings: Vec::new(),
        })
    }

    fn pinned_too_long(&self) -> Option<Failure> {
        None
    }

    fn journal_mode(&self) -> String {
        self.journal_mode.to_owned()
    }

    fn can_switch(&self) -> std::result::Result<(), NoSwitch> {
        self.switch
    }
}

impl Tracker {
    fn start(engine: Idle) -> Result<Self> {
        Ok(Self::with_gate(engine)?.0)
    }

    /// With the gate its requests would pass.
    fn with_gate(engine: Idle) -> Result<(Self, Gate)> {
        let listener = Listener::bind(&"127.0.0.1:0".parse()?, &Disk::default())?;
        let Address::Tcp(address) = listener.address()? else {
            return Err("a port was asked for".into());
        };
        let (gate, keeper) = Gate::new()?;
        let parts = Parts {
            keeper,
            rules: Rules {
                // Never due in this test: begun a while ago, or far from beginning.
                schedule: Schedule::crontab("0 0 29 2 *", Duration::from_secs(600))?,
                catch_up: false,
                hold_for: Duration::from_secs(10),
                flush_within: Duration::from_secs(5),
                attempts: 3,
                retry_after: Duration::from_millis(10),
                grace: Duration::from_millis(100),
                finish_within: Duration::from_secs(60),
                lease: None,
            },
            hold_at_most: PerDoor { udp: 1, http: 1 },
            served: None,
            touch_file: None,
            service: "service 1.0".to_owned(),
            database: "tracker.db".into(),
        };
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("a runtime").block_on(async move {
                let (driver, handles) = Driver::new(engine, parts);
                let serving = readiness::serve(
                    listener,
                    Access::default(),
                    handles.status,
                    handles.commands,
                    std::future::pending(),
                );
                let serving = tokio::spawn(serving);
                driver.run(async move { drop(stopped.await) }).await;
                serving.abort();
            });
        });
        let tracker = Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        };
        Ok((tracker, gate))
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// The backup that [`Idle`] claims to have published.
fn published() -> BackupId {
    "20261122T030000Z".parse().expect("an id")
}

#[test]
fn check_finds_nothing_wrong() -> Result {
    let home = Home::new()?;
    let output = home.run(&["check"])?;
    assert_eq!((output.code, output.err.as_str()), (0, ""), "{output:?}");
    let lines: Vec<&str> = output.out.lines().collect();
    assert_eq!(lines.len(), 9, "{}", output.out);
    assert!(
        lines[0].contains("tracker.toml: no problems found in [maintenance]"),
        "{}",
        lines[0]
    );
    assert!(
        lines[1].starts_with("windows        ") && lines[1].contains("03:00 to "),
        "{}",
        lines[1]
    );
    assert_eq!(
        lines[4],
        "database       tracker.db: 4.1 kB, journal mode wal"
    );
    assert!(
        lines[5].starts_with("backups        backups: 0, "),
        "{}",
        lines[5]
    );
    assert_eq!(
        lines[6],
        "verify         quick: less than a second for each backup"
    );
    let would = "run            would begin: method ";
    assert!(lines[7].starts_with(would), "{}", lines[7]);
    assert_eq!(
        lines[8],
        format!("endpoint       {}: no tracker answers", home.endpoint)
    );
    assert!(!home.path("backups").exists(), "check writes nothing");

    let json = home.run(&["check", "--json"])?.json()?;
    assert_eq!(json["problems"], json!([]));
    assert_eq!(json["running"], false);
    assert_eq!(
        json["database"],
        json!({ "path": "tracker.db", "bytes": 4096, "journal_mode": "wal" })
    );
    assert_eq!(
        json["verify"],
        json!({ "depth": "quick", "seconds": Duration::from_secs_f64(4096.0 / 420e6).as_secs_f64() })
    );
    let windows = json["windows"].as_array().ok_or("windows")?;
    assert_eq!(windows.len(), 3);
    for window in windows {
        assert!(
            window["begins"]
                .as_str()
                .is_some_and(|begins| begins.ends_with("T03:00:00Z")),
            "{window}"
        );
    }
    Ok(())
}

/// Nothing of what the tracker would refuse is promised: announces that cannot be served, and
/// room for the other files, which lie there once more while they are stored.
#[test]
fn what_a_run_would_need_is_reckoned_as_the_tracker_does() -> Result {
    let tracker = Tracker::start(Idle::default())?;
    let home = Home::at(tracker.address)?;
    let needed = |of: &Value| of["needed_bytes"].as_u64().ok_or("bytes");
    let dry_run = || home.run(&["run", "--dry-run", "--json"])?.json();
    let without = dry_run()?;
    assert_eq!(without["would_begin"], true, "{without}");
    fs::write(home.path("more"), vec![0; 1_000_000])?;
    home.configure_backup("files = [\"more\"]")?;
    let with = dry_run()?;
    let more = needed(&with)? - needed(&without)?;
    assert!((2_000_000..2_010_000).contains(&more), "{more}");

    let checked = home.run(&["check", "--json"])?.json()?;
    assert_eq!(needed(&checked["run"])?, needed(&with)?, "{checked}");
    assert_eq!(checked["run"]["objection"], Value::Null);

    home.configure_backup("files = [\"none\"]\nmissing_files = \"error\"")?;
    let refused = home.run(&["run", "--dry-run"])?;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.out.contains("would fail: "), "{}", refused.out);
    assert!(refused.out.contains("missing_files"), "{}", refused.out);
    Ok(())
}

#[test]
fn check_reports_all_problems_at_once() -> Result {
    let home = Home::new()?;
    home.configure("journal_mode = \"fast\"\ncatchup = true")?;
    let output = home.run(&["check"])?;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(output.out.starts_with("2 problems in "), "{}", output.out);
    let keys = ["maintenance.journal_mode", "maintenance.catchup"];
    for key in keys {
        assert!(output.out.contains(key), "{key}: {}", output.out);
    }
    let json = home.run(&["--json", "check"])?.json()?;
    let problems = json["problems"].as_array().ok_or("problems")?;
    assert!(
        keys.iter()
            .all(|key| problems.iter().any(|problem| problem["key"] == *key)),
        "{json}"
    );
    Ok(())
}

#[test]
fn check_looks_beyond_the_configuration() -> Result {
    let home = Home::new()?;
    let text = fs::read_to_string(home.path("tracker.toml"))?;
    let text = text.replace("\"backups\"", "\"missing/backups\"").replace(
        "bind_address",
        "touch_file = \"gone/ready.json\"\nbind_address",
    );
    fs::write(home.path("tracker.toml"), text)?;
    fs::write(
        home.path("tracker.db"),
        "this is not a database, whatever its name says",
    )?;
    let output = home.run(&["check"])?;
    assert_eq!(output.code, 2, "{output:?}");
    for what in ["core.database.path", "missing/backups", "gone/ready.json"] {
        assert!(output.out.contains(what), "{what}: {}", output.out);
    }
    assert!(output.out.starts_with("3 problems"), "{}", output.out);
    Ok(())
}

#[test]
fn check_knows_that_a_sidecars_directory_may_be_elsewhere() -> Result {
    let home = Home::new()?;
    let text = fs::read_to_string(home.path("tracker.toml"))?;
    let text = text.replace(
        "directory = \"backups\"",
        "directory = \"missing/backups\"\ntaken_by = \"sidecar\"",
    );
    fs::write(home.path("tracker.toml"), &text)?;
    let output = home.run(&["check"])?;
    assert_eq!(output.code, 0, "{output:?}");
    // Nor is that one problem more where there is another.
    fs::write(
        home.path("tracker.toml"),
        format!("{text}ttl = \"never\"\n"),
    )?;
    let output = home.run(&["check"])?;
    assert!(output.out.starts_with("1 problem in"), "{output:?}");
    Ok(())
}

#[test]
fn check_looks_for_the_socket_and_the_token() -> Result {
    let home = Home::new()?;
    let text = fs::read_to_string(home.path("tracker.toml"))?;
    fs::write(home.path("short"), "too short")?;
    fs::write(home.path("token"), "0123456789abcdef")?;
    let (token, address) = ("readiness.token_file", "readiness.bind_address");
    for (endpoint, file, problem) in [
        ("0.0.0.0:1414", None, Some(token)),
        ("0.0.0.0:1414", Some("none"), Some(token)),
        ("0.0.0.0:1414", Some("short"), Some(token)),
        ("0.0.0.0:1414", Some("token"), None),
        ("127.0.0.1:1414", None, None),
        ("127.0.0.1:1414", Some("none"), Some(token)),
        ("unix:none/endpoint.sock", None, Some(address)),
        ("unix:endpoint.sock", None, None),
    ] {
        let text = text.replace(&home.endpoint.to_string(), endpoint);
        let file = file.map(|file| format!("token_file = \"{file}\"\n"));
        let more = file.clone().unwrap_or_default();
        fs::write(home.path("tracker.toml"), text + &more)?;
        let json = home.run(&["check", "--json"])?.json()?;
        let problems = json["problems"].as_array().ok_or("problems")?;
        let keys: Vec<_> = problems.iter().map(|problem| &problem["key"]).collect();
        let wanted: Vec<_> = problem
            .map(|key| json!(format!("maintenance.{key}")))
            .into_iter()
            .collect();
        assert_eq!(
            keys,
            wanted.iter().collect::<Vec<_>>(),
            "{endpoint} {file:?}"
        );
    }
    Ok(())
}

#[test]
fn check_reports_wrong_keys_and_missing_directories_together() -> Result {
    let home = Home::new()?;
    home.configure("catchup = true")?;
    let text = fs::read_to_string(home.path("tracker.toml"))?;
    let text = text
        .replace("\"tracker.db\"", "\"absent/tracker.db\"")
        .replace("\"backups\"", "\"missing/backups\"")
        .replace(
            "bind_address",
            "touch_file = \"gone/ready.json\"\nbind_address",
        );
    fs::write(home.path("tracker.toml"), text)?;
    let output = home.run(&["check"])?;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(output.out.starts_with("4 problems"), "{}", output.out);
    for what in ["catchup", "absent/", "missing/backups", "gone/ready.json"] {
        assert!(output.out.contains(what), "{what}: {}", output.out);
    }
    Ok(())
}

/// With and without `[maintenance]`: the tracker does not start either way.
#[test]
fn check_names_every_mandatory_key_that_is_missing() -> Result {
    let home = Home::new()?;
    let whole = fs::read_to_string(home.path("tracker.toml"))?;
    for text in [MANDATORY.to_owned(), whole] {
        for key in ["schema_version", "threshold", "private", "listed"] {
            let line = |line: &&str| !line.starts_with(key);
            let without: Vec<&str> = text.lines().filter(line).collect();
            fs::write(home.path("tracker.toml"), without.join("\n"))?;
            let output = home.run(&["check"])?;
            assert_eq!(output.code, 2, "{output:?}");
            assert!(
                output.out.contains(&format!(".{key} is missing")),
                "{}",
                output.out
            );
        }
    }
    let other = MANDATORY.replace("2.0.0", "1.0.0");
    fs::write(home.path("tracker.toml"), other)?;
    let output = home.run(&["check"])?;
    assert!(output.out.contains("\"1.0.0\""), "{}", output.out);
    Ok(())
}

#[test]
fn check_knows_what_cannot_go_together() -> Result {
    let home = Home::new()?;
    for (more, database, key) in [
        ("announces = \"serve\"", false, "maintenance.announces"),
        ("load_completed = true", true, "maintenance.load_completed"),
    ] {
        home.configure(more)?;
        if !database {
            fs::rename(home.path("tracker.db"), home.path("elsewhere.db"))?;
        }
        let json = home.run(&["check", "--json"])?.json()?;
        assert_eq!(json["problems"][0]["key"], key, "{json}");
        if !database {
            fs::rename(home.path("elsewhere.db"), home.path("tracker.db"))?;
        }
        // The other half of each.
        home.configure("announces = \"serve\"\njournal_mode = \"wal\"")?;
        assert_eq!(home.run(&["check"])?.code, 0);
    }
    Ok(())
}

/// The last connection that closes moves the log into the file and removes it; looking at
/// a database that a tracker left behind when it was killed must not.
#[test]
fn check_opens_no_connection_to_the_database() -> Result {
    let home = Home::new()?;
    let log = home.path("tracker.db-wal");
    fs::write(&log, "whatever a killed tracker left")?;
    let before = fs::read(home.path("tracker.db"))?;
    assert_eq!(home.run(&["check"])?.code, 0);
    assert_eq!(fs::read(home.path("tracker.db"))?, before);
    assert_eq!(fs::read(&log)?, b"whatever a killed tracker left");
    Ok(())
}

#[test]
fn check_never_shows_a_connection_string() -> Result {
    let home = Home::new()?;
    let text = fs::read_to_string(home.path("tracker.toml"))?;
    let text = text.replace(
        "path = \"tracker.db\"",
        "driver = \"mysql\"\npath = \"mysql://root:secret@db/torrust\"",
    );
    let text = text.replace(
        "[maintenance.backup]\n",
        "[maintenance.backup]\ndump_program = \"/nowhere/mariadb-dump\"\n",
    );
    fs::write(home.path("tracker.toml"), text)?;
    for arguments in [&["check"][..], &["check", "--json"]] {
        let output = home.run(arguments)?;
        assert_eq!(output.code, 2, "{output:?}");
        assert!(
            output.out.contains("maintenance.backup.dump_program"),
            "{}",
            output.out
        );
        assert!(
            !output.out.contains("secret") && !output.err.contains("secret"),
            "{output:?}"
        );
    }
    Ok(())
}

#[test]
fn a_disabled_table_is_no_problem_but_has_no_endpoint() -> Result {
    let home = Home::new()?;
    let text = format!("{MANDATORY}[core.database]\npath = \"tracker.db\"\n");
    fs::write(home.path("tracker.toml"), text)?;
    let output = home.run(&["check"])?;
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.out.contains("absent or disabled"), "{}", output.out);
    let output = home.run(&["status", "--json"])?;
    assert_eq!(output.code, 2);
    assert_eq!(output.error()?["error"], "disabled");
    Ok(())
}

#[test]
fn a_missing_configuration_is_an_error_of_its_own() -> Result {
    let home = Home::new()?;
    fs::remove_file(home.path("tracker.toml"))?;
    for command in [
        "check", "status", "run", "list", "verify", "restore", "prune",
    ] {
        let output = home.run(&[command, "--json"])?;
        assert_eq!(output.code, 2, "{command}");
        let error = output.error()?;
        assert_eq!(error["error"], "configuration");
        assert_eq!(error["exit_code"], 2);
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|message| message.contains("tracker.toml")),
            "{error}"
        );
    }
    Ok(())
}

#[test]
fn a_wrong_command_line_exits_with_2() -> Result {
    let home = Home::new()?;
    for wrong in [
        &["backup"][..],
        &[],
        &["run", "--dry-run", "--no-wait"],
        &["verify", "--all", "20261122T030000Z"],
        &["verify", "--sample", "8/7"],
        &["verify", "--sample", "1/7", "--all"],
        &["protect"],
        &["delete", "latest"],
    ] {
        let output = home.run(wrong)?;
        assert_eq!(output.code, 2, "{wrong:?}");
        assert_eq!(output.out, "", "{wrong:?}");
    }
    let output = home.run(&["--json", "backup"])?;
    assert_eq!(output.code, 2);
    assert_eq!(output.error()?["error"], "usage");
    let output = home.run(&["--help"])?;
    assert_eq!(output.code, 0);
    assert!(output.out.contains("Exit codes: 0 done;"), "{}", output.out);
    Ok(())
}

#[test]
fn list_shows_backups_and_what_else_lies_there() -> Result {
    let home = Home::new()?;
    let output = home.run(&["list"])?;
    assert_eq!(output.code, 3, "no catalogue yet: {output:?}");

    let older = home.publish("2026-11-21T03:00:00Z")?;
    let newer = home.publish("2026-11-22T03:00:00Z")?;
    let broken = home.publish("2026-11-20T03:00:00Z")?;
    fs::write(
        home.path("backups")
            .join(broken.to_string())
            .join("manifest.json"),
        "{",
    )?;
    fs::write(home.path("backups/tracker_backup_1.db"), "not ours")?;

    let output = home.run(&["list"])?;
    assert_eq!((output.code, output.err.as_str()), (0, ""), "{output:?}");
    let lines: Vec<&str> = output.out.lines().collect();
    assert!(lines[0].starts_with("ID "), "{}", lines[0]);
    assert_eq!(lines.len(), 5, "{}", output.out);
    let line = |start: &str| lines.iter().position(|line| line.starts_with(start));
    assert_eq!(line(&newer.to_string()), Some(1), "{}", output.out);
    assert_eq!(line(&older.to_string()), Some(2), "{}", output.out);
    assert!(
        lines[1].contains("  pages   12.0 ms  quick     newest last daily"),
        "{}",
        lines[1]
    );
    let line = |start: &str| line(start).map(|line| lines[line]).unwrap_or_default();
    assert!(
        line(&broken.to_string()).contains("BROKEN: "),
        "{}",
        output.out
    );
    assert!(
        line("tracker_backup_1.db").contains("8 B"),
        "{}",
        output.out
    );
    assert!(
        line("tracker_backup_1.db").contains("foreign: not made here"),
        "{}",
        output.out
    );

    let json = home.run(&["list", "--json"])?.json()?;
    let entries = json["entries"].as_array().ok_or("entries")?;
    assert_eq!(entries[0]["state"], "good");
    assert_eq!(entries[0]["manifest"]["id"], json!(newer));
    Ok(())
}

#[test]
fn verify_takes_the_newest_or_one_or_all() -> Result {
    let home = Home::new()?;
    let older = home.publish("2026-11-21T03:00:00Z")?;
    let newer = home.publish("2026-11-22T03:00:00Z")?;
    let (older, newer) = (older.to_string(), newer.to_string());
    for (arguments, expected) in [
        (vec!["verify"], format!("{newer}  good\n")),
        (vec!["verify", &older], format!("{older}  good\n")),
        (
            vec!["verify", "--all"],
            format!("{newer}  good\n{older}  good\n"),
        ),
        (vec!["verify", "--full"], format!("{newer}  good, 0 rows\n")),
    ] {
        let output = home.run(&arguments)?;
        assert_eq!(
            (output.code, output.out.as_str()),
            (0, expected.as_str()),
            "{arguments:?}: {output:?}"
        );
    }
    assert_eq!(
        fs::read_dir(home.path("backups"))?.count(),
        3,
        "nothing is left behind but the lock file"
    );
    let output = home.run(&["verify", "20200101T000000Z", "--json"])?;
    assert_eq!(output.code, 2, "{output:?}");
    assert_eq!(output.error()?["error"], "unknown_backup");
    Ok(())
}

#[test]
fn verify_says_which_one_is_damaged() -> Result {
    let home = Home::new()?;
    let older = home.publish("2026-11-21T03:00:00Z")?;
    let newer = home.publish("2026-11-22T03:00:00Z")?;
    flip_last_byte(&home.artifact(&older))?;
    let output = home.run(&["verify", "--all"])?;
    assert_eq!(output.code, 6, "{output:?}");
    assert!(
        output.out.contains(&format!("{newer}  good\n")),
        "{}",
        output.out
    );
    assert!(
        output.out.contains(&format!("{older}  DAMAGED: ")),
        "{}",
        output.out
    );
    let json = home.run(&["verify", "--json", &older.to_string()])?;
    assert_eq!(json.code, 6);
    assert_eq!(json.json()?["backups"][0]["verdict"], "damaged");
    assert_eq!(home.run(&["verify"])?.code, 0, "the newest is good");

    fs::remove_file(home.artifact(&newer))?;
    assert_eq!(
        home.run(&["verify"])?.code,
        6,
        "a backup without its file is damaged"
    );
    assert_eq!(home.run(&["verify", &newer.to_string()])?.code, 6);
    Ok(())
}

fn flip_last_byte(path: &Path) -> Result {
    let mut bytes = fs::read(path)?;
    *bytes.last_mut().ok_or("empty")? ^= 1;
    Ok(fs::write(path, bytes)?)
}

#[test]
fn without_a_tracker_it_says_where_it_looked() -> Result {
    let home = Home::new()?;
    let backup = home.publish("2026-11-22T03:00:00Z")?;
    for arguments in [&["status"][..], &["run"], &["run", "--dry-run"]] {
        let output = home.run(arguments)?;
        assert_eq!(
            (output.code, output.out.as_str()),
            (3, ""),
            "{arguments:?}: {output:?}"
        );
        assert!(
            output
                .err
                .starts_with(&format!("error: no tracker answers at {}", home.endpoint)),
            "{}",
            output.err
        );
    }
    let error = home.run(&["status", "--json"])?.error()?;
    assert_eq!(error["error"], "not_running");
    assert_eq!(error["exit_code"], 3);
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|message| message.contains(&backup.to_string())),
        "{error}"
    );
    Ok(())
}

#[test]
fn run_waits_for_the_end_and_tells_it() -> Result {
    let tracker = Tracker::start(Idle::default())?;
    let home = Home::at(tracker.address)?;
    let output = home.run(&["run"])?;
    assert_eq!(output.code, 0, "{output:?}");
    assert!(
        output.out.contains(" done: 20261122T030000Z\n"),
        "{}",
        output.out
    );
    let output = home.run(&["run", "--json"])?;
    assert_eq!((output.code, output.err.as_str()), (0, ""), "{output:?}");
    let report = output.json()?;
    assert_eq!(report["outcome"]["kind"], "done");
    assert_eq!(report["trigger"], "operator");

    let status = home.run(&["status", "--json"])?.json()?;
    assert_eq!(status["runs"][0]["id"], report["id"]);
    let screen = home.run(&["status"])?;
    assert_eq!(screen.code, 0);
    assert!(
        screen.out.contains("announces  flow\nrun        none\n"),
        "{}",
        screen.out
    );
    assert!(screen.out.contains("20261122T030000Z"), "{}", screen.out);
    Ok(())
}

/// The first line of progress of a run whose copy goes on until that is there.
fn first_line(arguments: &[&str]) -> Result<String> {
    let (go_on, told) = mpsc::channel();
    let tracker = Tracker::start(Idle {
        go_on: Some(Mutex::new(told)),
        ..Idle::default()
    })?;
    let home = Home::at(tracker.address)?;
    let mut running = home
        .command(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(running.stderr.take().ok_or("it is piped")?).lines();
    let line = lines.next().ok_or("it ended without a line")??;
    drop(go_on);
    // Or it would be ended by a reader that is gone.
    lines.for_each(drop);
    assert_eq!(running.wait()?.code(), Some(0), "{line}");
    Ok(line)
}

#[test]
fn run_shows_how_far_the_tracker_is() -> Result {
    let lines = std::thread::spawn(|| first_line(&["run"]).map_err(|error| error.to_string()));
    let line: Value = serde_json::from_str(&first_line(&["run", "--json"])?)?;
    assert_eq!(line["phase"], "copying");
    let progress = &line["progress"];
    assert_eq!(progress["doing"], "copying");
    assert_eq!(
        (&progress["done"], &progress["total"]),
        (&json!(1024), &json!(4096))
    );
    let line = lines.join().map_err(|_| "it panicked")??;
    assert!(
        line.starts_with("copying: 1.0 kB of 4.1 kB, 25 %, "),
        "{line}"
    );
    Ok(())
}

#[test]
fn run_exits_by_the_outcome() -> Result {
    for (cause, code) in [
        (Cause::Verification, 6),
        (Cause::Busy, 4),
        (Cause::Other, 1),
    ] {
        let failure = Failure {
            cause,
            message: "the copy is no good".to_owned(),
        };
        let tracker = Tracker::start(Idle {
            end: Err(failure),
            ..Idle::default()
        })?;
        let output = Home::at(tracker.address)?.run(&["run"])?;
        assert_eq!(output.code, code, "{output:?}");
        assert!(
            output
                .out
                .contains("FAILED: while finishing: the copy is no good"),
            "{}",
            output.out
        );
    }
    Ok(())
}

#[test]
fn a_second_run_is_busy() -> Result {
    let (go_on, told) = mpsc::channel();
    let tracker = Tracker::start(Idle {
        go_on: Some(Mutex::new(told)),
        ..Idle::default()
    })?;
    let home = Home::at(tracker.address)?;
    assert_eq!(home.run(&["run", "--dry-run"])?.code, 0);
    let begun = home.run(&["run", "--no-wait", "--json"])?.json()?;
    let output = home.run(&["run", "--json"])?;
    assert_eq!(output.code, 4, "{output:?}");
    let error = output.error()?;
    assert_eq!(error["error"], "busy");
    let run = begun["run"].as_str().ok_or("a run")?;
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|message| message.contains(run)),
        "{error}"
    );
    let forecast = home.run(&["run", "--dry-run", "--json"])?;
    assert_eq!(forecast.code, 4, "{forecast:?}");
    assert_eq!(forecast.json()?["would_begin"], false);
    drop(go_on);
    Ok(())
}

#[test]
fn an_endpoint_that_is_named_needs_no_configuration() -> Result {
    let tracker = Tracker::start(Idle::default())?;
    let home = Home::new()?;
    fs::remove_file(home.path("tracker.toml"))?;
    let output = home.run(&["status", "--endpoint", &tracker.address.to_string()])?;
    assert_eq!(output.code, 0, "{output:?}");
    assert!(
        output
            .out
            .starts_with("service    service 1.0, maintenance "),
        "{}",
        output.out
    );
    Ok(())
}

/// An endpoint that says what it is told to, one answer a connection, and is gone then.
/// `None`: it takes the connection and hangs up.
fn endpoint(answers: Vec<Option<String>>) -> Result<(SocketAddr, JoinHandle<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let thread = std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().expect("a connection");
            let Some(body) = answer else { continue };
            // The request is longer than nothing and is read before the connection closes.
            let mut request = [0; 4_096];
            let _ = stream.read(&mut request).expect("a request");
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            )
            .expect("an answer");
        }
    });
    Ok((address, thread))
}

#[test]
fn a_tracker_that_is_lost_during_a_run_is_a_failure() -> Result {
    let begun = json!({ "run": "20261122T030000Z-abcd" }).to_string();
    let (address, thread) = endpoint(vec![Some(begun)])?;
    let output = Home::at(address)?.run(&["run", "--json"])?;
    thread.join().map_err(|_| "the endpoint failed")?;
    assert_eq!(
        output.code, 1,
        "not 3, which says that nothing was begun: {output:?}"
    );
    assert_eq!(output.error()?["error"], "lost");
    Ok(())
}

#[test]
fn a_refusal_during_a_run_is_outlasted() -> Result {
    let run = "20261122T030000Z-abcd";
    let none = json!({ "udp": 0, "http": 0 });
    let status = json!({
        "version": "0.1.0", "service": "service 1.0", "state": "serving", "ready": false,
        "gate": {
            "open": true, "closed_for_ms": null, "held": none, "released": none,
            "merged": none, "turned_away": none, "forced_open": 0,
        },
        "next": null, "alive": true, "run": null,
        "runs": [{
            "id": run, "trigger": "operator", "began": "2026-11-22T03:00:00Z",
            "ended": "2026-11-22T03:00:01Z", "outcome": { "kind": "done" }, "pause_ms": 1.0,
            "longest_pause_ms": 1.0, "backup": published(), "warnings": [],
        }],
        "database": { "path": "tracker.db", "journal_mode": "wal" },
    });
    let begun = json!({ "run": run }).to_string();
    let (address, thread) = endpoint(vec![Some(begun), None, None, Some(status.to_string())])?;
    let output = Home::at(address)?.run(&["run"])?;
    thread.join().map_err(|_| "the endpoint failed")?;
    assert_eq!(output.code, 0, "{output:?}");
    Ok(())
}
