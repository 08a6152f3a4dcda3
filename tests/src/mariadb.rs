//! A MariaDB server of a test's own: in a temporary directory, on a free port, gone with it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::announce::Torrent;
use crate::tracker::{Setup, fast_directory};
use crate::{PATIENCE, until};

/// The database, and the user that trackers of tests have.
pub const DATABASE: &str = "torrust";
const USER: &str = "tracker";

/// Of signs that a URL, an option file or a shell would take for something else.
pub const PASSWORD: &str = "pl4nted's \"#\\%/;=$`";

/// How many servers a test may find their ports taken.
const ATTEMPTS: usize = 5;

/// Where a server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Port {
    Any,
    /// Where it is known to be.
    AsBefore,
}

/// A running server, or one that was killed. Its files go when it is dropped.
#[derive(Debug)]
pub struct MariaDb {
    home: TempDir,
    port: u16,
    server: Option<Child>,
}

impl MariaDb {
    /// Makes a server with the database [`DATABASE`] and its user, and starts it.
    ///
    /// # Errors
    /// When MariaDB is not installed, with what it said.
    pub async fn start() -> Result<Self> {
        let home = TempDir::with_prefix_in("mariadb-", fast_directory())?;
        fs::create_dir(home.path().join("tmp"))?;
        let output = Command::new("mariadb-install-db")
            .args(["--no-defaults", "--skip-test-db", "--skip-name-resolve"])
            .arg("--auth-root-authentication-method=normal")
            .arg(format!("--datadir={}", home.path().join("data").display()))
            .arg(own_temporaries(home.path()))
            .args(as_root())
            .output()
            .context("starting mariadb-install-db: install mariadb-server")?;
        ensure!(
            output.status.success(),
            "mariadb-install-db: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        let mut server = Self {
            home,
            port: 0,
            server: None,
        };
        server.launch(Port::Any).await?;
        let password = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
        server.sql(&format!(
            "CREATE DATABASE {DATABASE}; \
             CREATE USER {USER}@'127.0.0.1' IDENTIFIED BY '{password}'; \
             GRANT ALL ON {DATABASE}.* TO {USER}@'127.0.0.1'; \
             GRANT ALL ON `restored\\_%`.* TO {USER}@'127.0.0.1'"
        ))?;
        Ok(server)
    }

    async fn launch(&mut self, port: Port) -> Result<()> {
        for _ in 0..ATTEMPTS {
            if port == Port::Any {
                self.port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            }
            let log = fs::File::create(self.log())?;
            let child = Command::new("mariadbd")
                .arg("--no-defaults")
                .arg(format!(
                    "--datadir={}",
                    self.home.path().join("data").display()
                ))
                .arg(own_temporaries(self.home.path()))
                .arg(format!("--socket={}", self.socket().display()))
                .arg(format!("--port={}", self.port))
                .args(["--bind-address=127.0.0.1", "--skip-name-resolve"])
                .args([
                    "--innodb-buffer-pool-size=64M",
                    "--innodb-log-file-size=64M",
                ])
                .args(["--character-set-server=utf8mb4"])
                .args(as_root())
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .context("starting mariadbd: install mariadb-server")?;
            self.server = Some(child);
            let mut ended = false;
            until("MariaDB to answer", PATIENCE, async || {
                let child = self.server.as_mut().context("it was started")?;
                ended = child.try_wait()?.is_some();
                Ok((ended || self.ask("SELECT 1", None).is_ok()).then_some(()))
            })
            .await?;
            if !ended {
                return Ok(());
            }
            // Another process may have taken the port in between, if only for a moment.
        }
        bail!("mariadbd ends: {}", fs::read_to_string(self.log())?)
    }

    fn log(&self) -> PathBuf {
        self.home.path().join("log")
    }

    fn socket(&self) -> PathBuf {
        self.home.path().join("socket")
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut server) = self.server.take() {
            server.kill()?;
            server.wait()?;
        }
        Ok(())
    }

    /// Starts it again, on the same port, and lets it recover.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.launch(Port::AsBefore).await
    }

    /// Runs statements as its administrator, in [`DATABASE`] if it is there yet; what they
    /// return, one row a line.
    ///
    /// # Errors
    /// When one fails.
    pub fn sql(&self, sql: &str) -> Result<String> {
        self.ask(sql, None)
    }

    /// The same in a database.
    ///
    /// # Errors
    /// When one fails.
    pub fn sql_in(&self, database: &str, sql: &str) -> Result<String> {
        self.ask(sql, Some(database))
    }

    fn ask(&self, sql: &str, database: Option<&str>) -> Result<String> {
        let mut child = Command::new("mariadb")
            .args(["--no-defaults", "--user=root", "--batch"])
            .args(["--skip-column-names", "--default-character-set=utf8mb4"])
            .arg(format!("--socket={}", self.socket().display()))
            .args(database)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting mariadb: install mariadb-client")?;
        let mut stdin = child.stdin.take().context("a piped stdin")?;
        // One that cannot connect ends without having read it.
        let _ = stdin.write_all(sql.as_bytes());
        drop(stdin);
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The URL of a database of it, with the password.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        let password = PASSWORD.bytes().map(|byte| format!("%{byte:02x}"));
        format!(
            "mysql://{USER}:{}@127.0.0.1:{}/{database}",
            password.collect::<String>(),
            self.port
        )
    }

    /// The same as a person may write it on a command line.
    #[must_use]
    pub fn url_without_password(&self, database: &str) -> String {
        format!("mysql://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    /// A tracker with a maintenance window on [`DATABASE`] of this server.
    ///
    /// # Errors
    /// When no directory can be made.
    pub fn setup(&self) -> Result<Setup> {
        let path = format!("\"{}\"", self.url(DATABASE));
        Ok(Setup::new()?
            .set("core.database", "driver", "\"mysql\"")
            .set("core.database", "path", &path)
            .unset("maintenance", "journal_mode")
            .unset("maintenance.readiness", "touch_file"))
    }

    /// Makes the tracker's tables, with so many torrents in one of them.
    ///
    /// # Errors
    /// When a statement fails.
    pub fn fill(&self, torrents: u64) -> Result<()> {
        self.sql_in(
            DATABASE,
            &format!(
                "CREATE TABLE IF NOT EXISTS torrents (id integer PRIMARY KEY AUTO_INCREMENT, \
                 info_hash VARCHAR(40) NOT NULL UNIQUE, completed INTEGER DEFAULT 0 NOT NULL); \
                 INSERT INTO torrents (info_hash, completed) \
                 SELECT SHA1(seq), seq % 97 FROM seq_1_to_{torrents}; ANALYZE TABLE torrents"
            ),
        )
        .map(drop)
    }

    /// The checksum of every table, as the server computes it of all its rows.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn checksums(&self, database: &str) -> Result<BTreeMap<String, String>> {
        let tables = self.sql_in(database, "SHOW TABLES")?;
        let sums = tables.lines().map(|table| {
            let sum = self.checksum(database, table)?;
            Ok((table.to_owned(), sum))
        });
        sums.collect()
    }

    /// The same but for the torrents that a test's load announces, whose counters go on: of the
    /// others, and of all other tables.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn checksums_beside_load(&self, database: &str) -> Result<BTreeMap<String, String>> {
        self.sql(&format!(
            "CREATE DATABASE IF NOT EXISTS scratch; \
             CREATE OR REPLACE TABLE scratch.torrents AS \
             SELECT * FROM `{database}`.torrents WHERE NOT {} ORDER BY id",
            of_load()
        ))?;
        let mut sums = self.checksums(database)?;
        let others = self.checksum("scratch", "torrents")?;
        sums.insert("torrents".to_owned(), others);
        Ok(sums)
    }

    fn checksum(&self, database: &str, table: &str) -> Result<String> {
        let table = table.replace('`', "``");
        let answer = self.sql_in(database, &format!("CHECKSUM TABLE `{table}` EXTENDED"))?;
        let sum = answer.trim().rsplit('\t').next();
        Ok(sum.unwrap_or_default().to_owned())
    }

    /// Removes the torrents that a test's load has announced; nobody may be announcing.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn forget_load(&self) -> Result<()> {
        let sql = format!("DELETE FROM torrents WHERE {}", of_load());
        self.sql_in(DATABASE, &sql).map(drop)
    }

    /// Rows of a table.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn count(&self, database: &str, table: &str) -> Result<u64> {
        let count = self.sql_in(database, &format!("SELECT COUNT(*) FROM `{table}`"))?;
        Ok(count.trim().parse()?)
    }

    /// Of each torrent of a test's load, the completions that are stored.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn completed(&self, database: &str) -> Result<HashMap<Torrent, u32>> {
        let rows = self.sql_in(
            database,
            &format!(
                "SELECT info_hash, completed FROM torrents WHERE {}",
                of_load()
            ),
        )?;
        rows.lines()
            .map(|row| {
                let (hash, count) = row.split_once('\t').context("two columns")?;
                let number = hash.get(32..).context("a hash of 40 digits")?;
                Ok((Torrent(u32::from_str_radix(number, 16)?), count.parse()?))
            })
            .collect()
    }

    /// Process ids of the programs that dump from it now: children of others whose command
    /// line names its database.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn dumps(database: &str) -> Result<Vec<i32>> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let path = entry?.path();
            let Some(pid) = path
                .file_name()
                .and_then(|name| name.to_str()?.parse().ok())
            else {
                continue;
            };
            // A process may end while it is looked at.
            let line = fs::read(path.join("cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            let program = words.next().unwrap_or_default();
            if program.ends_with(b"-dump") && words.any(|word| word == database.as_bytes()) {
                found.push(pid);
            }
        }
        Ok(found)
    }
}

impl Drop for MariaDb {
    fn drop(&mut self) {
        // Its directory is about to go in any case.
        let _ = self.kill();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            eprintln!("--- the server's log ---\n{log}\n---");
        }
    }
}

/// A condition that holds of the torrents of a test's load: what all of them have in common, see
/// `Torrent::info_hash`.
fn of_load() -> String {
    format!("SUBSTR(info_hash, 9, 24) = '{}'", &Torrent(0).hex()[8..32])
}

/// Where a server has its temporary tables. Each that starts removes all there are in the
/// directory, whoever's they are, so two of them must not share one.
fn own_temporaries(home: &Path) -> String {
    format!("--tmpdir={}", home.join("tmp").display())
}

/// MariaDB refuses to run as root unless it is told to.
fn as_root() -> Option<&'static str> {
    rustix::process::geteuid()
        .is_root()
        .then_some("--user=root")
}

/// A program that runs `script` (POSIX sh) and is called like a dump program.
///
/// # Errors
/// When it cannot be written.
pub fn program(directory: &Path, script: &str) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = directory.join("some-dump");
    fs::write(&path, format!("#!/bin/sh\n{script}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}
