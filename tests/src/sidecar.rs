//! A sidecar as a child process.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::binaries;
use crate::tracker::{Log, Setup};

/// A sidecar to be started beside a tracker, with a directory of its own below the tracker's.
#[derive(Debug, Clone)]
pub struct Beside {
    home: PathBuf,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(String, String)>,
    user: Option<(u32, u32)>,
}

/// A running sidecar. Killed when dropped; if the test is failing, its log is shown first.
pub struct Sidecar {
    child: Child,
    /// What it wrote to stdout and stderr.
    pub log: Log,
}

impl Beside {
    /// One that publishes to the directory `copies`, which is made.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(setup: &Setup) -> Result<Self> {
        let home = setup.home().to_owned();
        std::fs::create_dir_all(home.join("copies"))?;
        let beside = Self {
            home,
            program: binaries::path(binaries::TOOL)?,
            arguments: Vec::new(),
            environment: Vec::new(),
            user: None,
        };
        Ok(beside.with(["sidecar", "--directory", "copies"]))
    }

    /// With these arguments besides.
    #[must_use]
    pub fn with(mut self, arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// At this endpoint.
    #[must_use]
    pub fn at(self, endpoint: impl std::fmt::Display) -> Self {
        self.with(["--endpoint".to_owned(), endpoint.to_string()])
    }

    /// With a shell's command in place of our engine; last, as nothing can follow it.
    #[must_use]
    pub fn running(self, script: &str) -> Self {
        self.with(["--", "sh", "-c", script])
    }

    /// With an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// As this user and group, from this copy of the program, in this directory.
    #[must_use]
    pub fn run_as(mut self, user: u32, group: u32, program: PathBuf, home: PathBuf) -> Self {
        self.user = Some((user, group));
        self.program = program;
        self.home = home;
        self
    }

    /// Where it publishes to.
    #[must_use]
    pub fn copies(&self) -> PathBuf {
        self.home.join("copies")
    }

    /// The names there, sorted; those that are not final, too.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn made(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.copies())? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.retain(|name| name != ".lock");
        names.sort_unstable();
        Ok(names)
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be.
    pub fn start(&self) -> Result<Sidecar> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(self.environment.iter().cloned())
            .current_dir(&self.home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some((user, group)) = self.user {
            command.uid(user).gid(group);
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let log = Log::default();
        log.follow(child.stdout.take().context("a piped stdout")?);
        log.follow(child.stderr.take().context("a piped stderr")?);
        Ok(Sidecar { child, log })
    }
}

impl Sidecar {
    /// Sends a signal.
    ///
    /// # Errors
    /// When it has exited.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.child.id().context("the sidecar has exited")?;
        let id = Pid::from_raw(i32::try_from(id)?).context("a process id above 0")?;
        Ok(kill_process(id, signal)?)
    }

    /// Waits for it to exit by itself.
    ///
    /// # Errors
    /// When it does not `within` this time.
    pub async fn exited(&mut self, within: Duration) -> Result<ExitStatus> {
        let status = timeout(within, self.child.wait())
            .await
            .with_context(|| format!("the sidecar still runs after {within:?}"))??;
        self.log.ended().await?;
        Ok(status)
    }

    /// The exit code, once it exits by itself.
    ///
    /// # Errors
    /// When it does not, or was killed.
    pub async fn code(&mut self, within: Duration) -> Result<i32> {
        let status = self.exited(within).await?;
        status.code().with_context(|| format!("{status}"))
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub async fn kill(&mut self) -> Result<()> {
        Ok(self.child.kill().await?)
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the sidecar's last lines ---\n{}\n---", self.log.last());
        }
    }
}

/// Waits until a file that a sidecar's command makes is there.
///
/// # Errors
/// When it is not `within` this time.
pub async fn appears(path: &Path, within: Duration) -> Result<()> {
    let what = format!("{} to appear", path.display());
    crate::until(&what, within, async || Ok(path.exists().then_some(()))).await
}
