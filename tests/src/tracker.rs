//! A tracker as a child process: its configuration, its addresses, its log, its end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chrono::{TimeDelta, Utc};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::endpoint::Endpoint;
use crate::udp::UdpClient;
use crate::{PATIENCE, binaries, until};

/// Token of the REST API in every configuration.
pub const TOKEN: &str = "MyAccessToken";

/// A directory and a `tracker.toml` to start a tracker with. Clones share the directory,
/// which goes with the last of them.
#[derive(Debug, Clone)]
pub struct Setup {
    home: Arc<TempDir>,
    program: &'static str,
    /// Another build of it than the one beside the tests.
    program_at: Option<PathBuf>,
    /// A command that starts it, with its own arguments.
    starter: Vec<String>,
    /// Where the UDP and the HTTP tracker listen; port 0: any that is free.
    listen: [SocketAddr; 2],
    /// Section, then key, then value as TOML.
    tables: BTreeMap<String, BTreeMap<String, String>>,
    /// Further keys of the one HTTP tracker.
    http_tracker: String,
    environment: Vec<(String, String)>,
    /// User and group.
    user: Option<(u32, u32)>,
}

impl Setup {
    /// The tracker with a maintenance window: persistence on, WAL, every port free, the
    /// next window half a day away, so that runs begin only when a test asks.
    ///
    /// # Errors
    /// When no directory can be made.
    pub fn new() -> Result<Self> {
        Self::new_in(&fast_directory())
    }

    /// As [`Setup::new`], with its directory below this one.
    ///
    /// # Errors
    /// When no directory can be made.
    pub fn new_in(directory: &Path) -> Result<Self> {
        let setup = Self::without_maintenance_in(binaries::TRACKER, directory)?;
        fs::create_dir(setup.home().join("backups"))?;
        fs::create_dir(setup.home().join("run"))?;
        let (begins, ends) = (
            Utc::now() + TimeDelta::hours(12),
            Utc::now() + TimeDelta::hours(13),
        );
        Ok(setup
            .set("maintenance", "enabled", "true")
            .set(
                "maintenance",
                "window",
                &format!("\"{}-{}\"", begins.format("%H:%M"), ends.format("%H:%M")),
            )
            .set("maintenance", "journal_mode", "\"wal\"")
            .set("maintenance.gate", "hold_for", "\"20s\"")
            .set("maintenance.backup", "directory", "\"./backups\"")
            .set(
                "maintenance.backup",
                "keep",
                "{ last = 20, daily = 0, weekly = 0, monthly = 0 }",
            )
            .set("maintenance.readiness", "bind_address", "\"127.0.0.1:0\"")
            .set(
                "maintenance.readiness",
                "touch_file",
                "\"./run/ready.json\"",
            ))
    }

    /// A tracker whose configuration upstream would accept: no `[maintenance]`.
    ///
    /// # Errors
    /// When no directory can be made.
    pub fn without_maintenance(program: &'static str) -> Result<Self> {
        Self::without_maintenance_in(program, &fast_directory())
    }

    /// As [`Setup::without_maintenance`], with its directory below this one.
    ///
    /// # Errors
    /// When no directory can be made.
    pub fn without_maintenance_in(program: &'static str, directory: &Path) -> Result<Self> {
        let setup = Self {
            home: Arc::new(TempDir::with_prefix_in("tracker-", directory)?),
            program,
            program_at: None,
            starter: Vec::new(),
            listen: [SocketAddr::from(([127, 0, 0, 1], 0)); 2],
            tables: BTreeMap::new(),
            http_tracker: String::new(),
            environment: Vec::new(),
            user: None,
        };
        Ok(setup
            .set("metadata", "schema_version", "\"2.0.0\"")
            .set("logging", "threshold", "\"info\"")
            .set("core", "listed", "false")
            .set("core", "private", "false")
            .set("core.database", "driver", "\"sqlite3\"")
            .set("core.database", "path", "\"./sqlite3.db\"")
            .set(
                "core.tracker_policy",
                "persistent_torrent_completed_stat",
                "true",
            )
            .set("health_check_api", "bind_address", "\"127.0.0.1:0\"")
            .set("http_api", "bind_address", "\"127.0.0.1:0\"")
            .set("http_api.access_tokens", "admin", &format!("\"{TOKEN}\"")))
    }

    /// Sets a key, its value written as TOML, once more or for the first time.
    #[must_use]
    pub fn set(mut self, table: &str, key: &str, value: &str) -> Self {
        self.tables
            .entry(table.to_owned())
            .or_default()
            .insert(key.to_owned(), value.to_owned());
        self
    }

    /// Leaves a key out.
    #[must_use]
    pub fn unset(mut self, table: &str, key: &str) -> Self {
        if let Some(keys) = self.tables.get_mut(table) {
            keys.remove(key);
        }
        self
    }

    /// Leaves a whole table out, and those below it.
    #[must_use]
    pub fn without(mut self, table: &str) -> Self {
        let below = format!("{table}.");
        self.tables
            .retain(|name, _| name != table && !name.starts_with(&below));
        self
    }

    /// The HTTP tracker speaks TLS with this certificate and key (PEM).
    #[must_use]
    pub fn tls(mut self, certificate: &Path, key: &Path) -> Self {
        self.http_tracker = format!(
            "[http_trackers.tsl_config]\nssl_cert_path = \"{}\"\nssl_key_path = \"{}\"\n",
            certificate.display(),
            key.display()
        );
        self
    }

    /// Sets an environment variable of the tracker.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Another build of the tracker than the one beside the tests.
    #[must_use]
    pub fn program_at(mut self, path: &Path) -> Self {
        self.program_at = Some(path.to_owned());
        self
    }

    /// The UDP and the HTTP tracker listen where those of another tracker did, so that its
    /// clients find it again.
    #[must_use]
    pub fn in_place_of(mut self, addresses: &Addresses) -> Self {
        self.listen = [addresses.udp, addresses.http];
        self
    }

    /// Starts the tracker as this user and group, to whom the directory is given.
    ///
    /// # Errors
    /// When this process is not root.
    pub fn run_as(mut self, user: u32, group: u32) -> Result<Self> {
        give(self.home(), user, group)?;
        self.user = Some((user, group));
        Ok(self)
    }

    /// Starts it by this command, of which it is to be the last argument.
    #[must_use]
    pub fn started_by(mut self, starter: Vec<String>) -> Self {
        self.starter = starter;
        self
    }

    /// The directory the tracker works in.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The tracker's database.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.home().join("sqlite3.db")
    }

    /// The catalogue of backups.
    #[must_use]
    pub fn backups(&self) -> PathBuf {
        self.home().join("backups")
    }

    /// The touch-file.
    #[must_use]
    pub fn touch_file(&self) -> PathBuf {
        self.home().join("run/ready.json")
    }

    /// The configuration file, as it stands when a tracker is started.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.home().join("tracker.toml")
    }

    /// The text of the configuration.
    #[must_use]
    pub fn toml(&self) -> String {
        let mut text = String::new();
        for (table, keys) in &self.tables {
            let _ = writeln!(text, "[{table}]"); // to a String: cannot fail
            for (key, value) in keys {
                let _ = writeln!(text, "{key} = {value}");
            }
        }
        let [udp, http] = self.listen;
        let _ = writeln!(text, "[[udp_trackers]]\nbind_address = \"{udp}\"");
        let _ = writeln!(text, "[[http_trackers]]\nbind_address = \"{http}\"");
        text + &self.http_tracker
    }

    /// Starts the tracker and waits until every service it is configured for has started.
    ///
    /// # Errors
    /// When it exits instead or takes too long, with its output.
    pub async fn start(&self) -> Result<Tracker> {
        let mut tracker = self.spawn()?;
        // The HTTP tracker and both APIs start in any case.
        let wanted = 3 + usize::from(self.udp_expected()) + usize::from(self.endpoint_expected());
        tracker
            .log
            .wait("every service to start", PATIENCE, |lines| {
                started(lines).count() >= wanted
            })
            .await?;
        tracker.addresses = Addresses::find(&tracker.log.lines(), self.udp_expected())?;
        Ok(tracker)
    }

    /// Starts a tracker whose log is too quiet to say where it listens, and waits until its
    /// UDP tracker answers. The other addresses are not known.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn start_quiet(mut self) -> Result<Tracker> {
        self.listen[0] = std::net::UdpSocket::bind(self.listen[0])?.local_addr()?;
        let mut tracker = self.spawn()?;
        tracker.addresses.udp = self.listen[0];
        until("the UDP tracker to answer", PATIENCE, async || {
            let asked = UdpClient::connect_within(self.listen[0], Duration::from_millis(100)).await;
            Ok(asked.ok())
        })
        .await?;
        Ok(tracker)
    }

    /// Starts the tracker, which must refuse to and exit by itself.
    ///
    /// # Errors
    /// When it does not exit.
    pub async fn start_refused(&self) -> Result<(ExitStatus, String)> {
        let mut tracker = self.spawn()?;
        let status = tracker.exited(PATIENCE).await?;
        Ok((status, tracker.log.lines().join("\n")))
    }

    /// Whether there is an endpoint with a port: a Unix domain socket has none.
    fn endpoint_expected(&self) -> bool {
        let readiness = self.tables.get("maintenance.readiness");
        readiness.is_some_and(|keys| {
            let address = keys.get("bind_address");
            !address.is_some_and(|address| address.contains("unix:"))
        }) && self.is_true("maintenance", "enabled")
    }

    /// Upstream starts no UDP tracker in private mode.
    fn udp_expected(&self) -> bool {
        !self.is_true("core", "private")
    }

    fn is_true(&self, table: &str, key: &str) -> bool {
        let value = self.tables.get(table).and_then(|table| table.get(key));
        value.is_some_and(|value| value == "true")
    }

    fn spawn(&self) -> Result<Tracker> {
        fs::write(self.file(), self.toml())?;
        let mut program = match &self.program_at {
            Some(path) => path.clone(),
            None => binaries::path(self.program)?,
        };
        if self.user.is_some() {
            // Where it was built root alone may be.
            let copy = self.home().join(self.program);
            fs::copy(&program, &copy)?;
            program = copy;
        }
        let mut command = match self.starter.split_first() {
            None => Command::new(program),
            Some((starter, arguments)) => {
                let mut command = Command::new(starter);
                command.args(arguments).arg(program);
                command
            }
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TORRUST_") {
                command.env_remove(name);
            }
        }
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        let mut child = command
            .env("TORRUST_TRACKER_CONFIG_TOML_PATH", self.file())
            .envs(self.environment.iter().cloned())
            .current_dir(self.home())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", self.program))?;
        let log = Log::default();
        log.follow(child.stdout.take().context("a piped stdout")?);
        log.follow(child.stderr.take().context("a piped stderr")?);
        Ok(Tracker {
            setup: self.clone(),
            child,
            log,
            addresses: Addresses::default(),
        })
    }
}

/// Gives a directory and all in it to a user and a group, who may read it.
fn give(path: &Path, user: u32, group: u32) -> Result<()> {
    std::os::unix::fs::chown(path, Some(user), Some(group))
        .with_context(|| format!("giving {} to {user}: run the tests as root", path.display()))?;
    if path.is_dir() {
        fs::set_permissions(path, fs::Permissions::from_mode(0o750))?;
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), user, group)?;
        }
    }
    Ok(())
}

/// Memory where it has room, else the directory for temporary files. The tracker syncs
/// every commit, and what a test asserts of 2,000 announces a second must not be decided
/// by how long a disk takes for that.
pub(crate) fn fast_directory() -> PathBuf {
    const ENOUGH: u64 = 2 << 30;
    let memory = Path::new("/dev/shm");
    match rustix::fs::statvfs(memory) {
        Ok(free) if free.f_bavail * free.f_frsize >= ENOUGH => memory.to_owned(),
        _ => std::env::temp_dir(),
    }
}

/// Where a tracker listens, as its log says.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// The UDP tracker; port 0 in private mode, which has none.
    pub udp: SocketAddr,
    /// The HTTP tracker.
    pub http: SocketAddr,
    /// The REST API.
    pub api: SocketAddr,
    /// The health-check API.
    pub health: SocketAddr,
    /// The readiness endpoint.
    pub endpoint: Option<Endpoint>,
}

impl Default for Addresses {
    fn default() -> Self {
        let none = SocketAddr::from(([0; 4], 0));
        Self {
            udp: none,
            http: none,
            api: none,
            health: none,
            endpoint: None,
        }
    }
}

impl Addresses {
    fn find(lines: &[String], udp_expected: bool) -> Result<Self> {
        let find = |service: &str| {
            started(lines)
                .find(|(name, _)| *name == service)
                .map(|(_, address)| address)
                .with_context(|| format!("no line says where {service} has started"))
        };
        Ok(Self {
            udp: if udp_expected {
                find("UDP TRACKER")?
            } else {
                Self::default().udp
            },
            http: find("HTTP TRACKER")?,
            api: find("API")?,
            health: find("HEALTH CHECK API")?,
            endpoint: find("MAINTENANCE").ok().map(Endpoint),
        })
    }
}

/// Of each line that says a service has started, the service and its address.
///
/// Upstream writes `INFO HTTP TRACKER: Started on: http://127.0.0.1:7070`, with the spans it
/// is in before the target; of its API without the second colon.
fn started(lines: &[String]) -> impl Iterator<Item = (&str, SocketAddr)> {
    lines.iter().filter_map(|line| {
        let (before, after) = line.split_once(": Started on")?;
        let target = before.rsplit(": ").next()?;
        let service = target
            .rsplit_once("INFO ")
            .map_or(target, |(_, service)| service);
        let (_, address) = after.split_once("://")?;
        Some((service, address.trim_end_matches('/').parse().ok()?))
    })
}

/// A running tracker. Killed and gone when dropped; if the test is failing, its log is shown first.
pub struct Tracker {
    setup: Setup,
    child: Child,
    /// What it wrote to stdout and stderr.
    pub log: Log,
    /// Where it listens.
    pub addresses: Addresses,
}

impl Tracker {
    /// What it was started with.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The readiness endpoint.
    ///
    /// # Errors
    /// When there is none.
    pub fn endpoint(&self) -> Result<Endpoint> {
        self.addresses
            .endpoint
            .context("this tracker has no readiness endpoint")
    }

    /// Process id, until it has exited.
    ///
    /// # Errors
    /// When it has.
    pub fn pid(&self) -> Result<Pid> {
        let id = self.child.id().context("the tracker has exited")?;
        Pid::from_raw(i32::try_from(id)?).context("a process id above 0")
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it has exited.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(self.pid()?, signal)?)
    }

    /// Waits for it to exit by itself.
    ///
    /// # Errors
    /// When it does not `within` this time.
    pub async fn exited(&mut self, within: Duration) -> Result<ExitStatus> {
        let status = timeout(within, self.child.wait())
            .await
            .with_context(|| format!("the tracker still runs after {within:?}"))??;
        // What it wrote last is in the pipes still.
        self.log.ended().await?;
        Ok(status)
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }

    /// Peak resident memory so far, in bytes (`VmHWM` of proc(5)).
    ///
    /// # Errors
    /// When it has exited.
    pub fn peak_memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?.as_raw_nonzero()))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .context("VmHWM in proc status")?;
        let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kilobytes * 1024)
    }
}

/// Whoever starts another in its place at once must not find its locks: it is gone on return.
impl Drop for Tracker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the tracker's last lines ---\n{}\n---", self.log.last());
        }
        if let Ok(pid) = self.pid() {
            // One that has exited already is as good. It is reaped later, as ever.
            let _ = self.child.start_kill();
            let _ = waitid(
                WaitId::Pid(pid),
                WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
            );
        }
    }
}

/// The lines a process has written so far, without colours.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<watch::Sender<Written>>);

#[derive(Debug, Default)]
struct Written {
    lines: Vec<String>,
    /// Streams the process has not closed yet.
    open: usize,
}

/// Most lines shown of a failing test's tracker.
const SHOWN: usize = 60;

impl Log {
    /// Reads a stream to its end, in a task of its own.
    pub(crate) fn follow(&self, stream: impl AsyncRead + Send + Unpin + 'static) {
        let log = self.clone();
        log.0.send_modify(|written| written.open += 1);
        tokio::spawn(async move {
            let mut lines = BufReader::new(stream).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                log.0
                    .send_modify(|written| written.lines.push(plain(&line)));
            }
            log.0.send_modify(|written| written.open -= 1);
        });
    }

    /// All lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.0.borrow().lines.clone()
    }

    /// Whether a line contains this text.
    #[must_use]
    pub fn says(&self, text: &str) -> bool {
        self.0.borrow().lines.iter().any(|line| line.contains(text))
    }

    /// Waits until the lines satisfy `wanted`.
    ///
    /// # Errors
    /// When the process ends or the time is over before; with the last lines.
    pub async fn wait(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&[String]) -> bool,
    ) -> Result<()> {
        let mut written = self.0.subscribe();
        let settled = written.wait_for(|written| wanted(&written.lines) || written.open == 0);
        let good = match timeout(within, settled).await {
            Ok(settled) => wanted(&settled.context("the log is owned by its tracker")?.lines),
            Err(_) => bail!("{within:?} were not enough for {what}:\n{}", self.last()),
        };
        ensure!(good, "the process ended before {what}:\n{}", self.last());
        Ok(())
    }

    /// Waits for a line that contains this text.
    ///
    /// # Errors
    /// As [`Log::wait`].
    pub async fn wait_for(&self, text: &str) -> Result<()> {
        self.wait(text, PATIENCE, |lines| {
            lines.iter().any(|line| line.contains(text))
        })
        .await
    }

    /// Returns when the process has closed both streams.
    pub(crate) async fn ended(&self) -> Result<()> {
        let mut written = self.0.subscribe();
        timeout(PATIENCE, written.wait_for(|written| written.open == 0))
            .await
            .context("a child of the tracker keeps its output open")??;
        Ok(())
    }

    pub(crate) fn last(&self) -> String {
        let written = self.0.borrow();
        written.lines[written.lines.len().saturating_sub(SHOWN)..].join("\n")
    }
}

/// Without the escape sequences upstream colours its log with (ECMA-48, SGR).
fn plain(line: &str) -> String {
    let mut parts = line.split("\u{1b}[");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str(part.split_once('m').map_or(part, |(_, rest)| rest));
    }
    text
}
