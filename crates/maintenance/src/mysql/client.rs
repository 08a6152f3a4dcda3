//! The client programs of MySQL or MariaDB, and what they are asked.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};
use std::time::Duration;

use rustix::io::{FdFlags, fcntl_setfd};

use super::process::Process;
use super::{Address, Error};
use crate::snapshot::Watch;

/// How long a question may take. The server answers each from its own tables.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What dumps, and what runs SQL, MariaDB's own names first: its packages warn of the others.
const DUMP: [&str; 2] = ["mariadb-dump", "mysqldump"];
const SQL: [&str; 2] = ["mariadb", "mysql"];

/// Asks for a lock on a table that nobody has. Both servers look at the privileges first.
const LOCK_OF_NOTHING: &str = "LOCK TABLES `torrust maintenance: no such table` READ";
/// What either client writes of the error that says so, `ER_NO_SUCH_TABLE`.
const NO_SUCH_TABLE: &str = "ERROR 1146 ";

/// Where an option file is read from that is written to a program's standard input.
const FROM_STDIN: &str = "--defaults-file=/dev/stdin";

/// Whose client it is. The two have drifted apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// MariaDB's.
    MariaDb,
    /// Oracle's, or a descendant of it.
    MySql,
}

/// The programs for one database.
#[derive(Debug, Clone)]
pub struct Client {
    address: Address,
    dump: Program,
    sql: Program,
}

#[derive(Debug, Clone)]
struct Program {
    path: PathBuf,
    /// What it says of itself: `mariadb-dump  Ver 10.19 Distrib 10.11.6-MariaDB, ...`.
    version: String,
}

/// What there is to be dumped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The server's version.
    pub server: String,
    /// Its tables, views left out.
    pub tables: Vec<Table>,
}

/// One table of a [`Survey`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Its storage engine.
    pub engine: String,
    /// Whether that has transactions, and so a snapshot.
    pub transactional: bool,
    /// Bytes of its rows, as the server reckons.
    pub bytes: u64,
}

impl Survey {
    /// Bytes of all rows, as the server reckons.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.bytes).sum()
    }

    /// Tables that have no snapshot, each with its engine.
    #[must_use]
    pub fn without_snapshot(&self) -> Option<String> {
        let tables = self.tables.iter().filter(|table| !table.transactional);
        let tables: Vec<_> = tables
            .map(|Table { name, engine, .. }| format!("{name} ({engine})"))
            .collect();
        (!tables.is_empty()).then(|| tables.join(", "))
    }
}

impl Client {
    /// Finds the programs: the dump program that is configured, or else the first there is.
    /// The other is looked for beside it first.
    ///
    /// # Errors
    ///
    /// When there is none, or it does not start.
    pub fn find(address: Address, configured: Option<&Path>) -> Result<Self, Error> {
        let dump = match configured {
            Some(path) => Program::at(path, &address)?,
            None => Program::first(
                DUMP.map(PathBuf::from),
                &address,
                "maintenance.backup.dump_program names another",
            )?,
        };
        let sql = Program::sql(&dump.path, &address)?;
        Ok(Self { address, dump, sql })
    }

    /// As [`Client::find`], of the program that runs SQL alone: what a restore needs.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn find_for_import(address: Address, configured: Option<&Path>) -> Result<Self, Error> {
        let beside = configured.unwrap_or(Path::new(DUMP[0]));
        let sql = Program::sql(beside, &address)?;
        let dump = sql.clone();
        Ok(Self { address, dump, sql })
    }

    /// The database.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// What the dump program says of itself.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.dump.version
    }

    /// Whose the dump program is.
    #[must_use]
    pub fn vendor(&self) -> Vendor {
        if self.dump.version.contains("MariaDB") {
            Vendor::MariaDb
        } else {
            Vendor::MySql
        }
    }

    /// The tables and their engines.
    ///
    /// # Errors
    ///
    /// When the server does not answer, or not this user.
    pub fn survey(&self, watch: &Watch) -> Result<Survey, Error> {
        let sql = "SELECT VERSION(); \
                   SELECT t.table_name, COALESCE(t.engine, ''), \
                   COALESCE(e.transactions, 'NO'), COALESCE(t.data_length, 0) \
                   FROM information_schema.tables t \
                   LEFT JOIN information_schema.engines e ON e.engine = t.engine \
                   WHERE t.table_schema = DATABASE() AND t.table_type = 'BASE TABLE' \
                   ORDER BY t.table_name";
        let answer = self.ask(sql, "the tables", ANSWER_WITHIN, watch)?;
        let mut rows = answer.into_iter();
        let server = rows.next().and_then(|row| row.into_iter().next());
        let tables = rows.map(|row| match row.as_slice() {
            [name, engine, transactions, bytes] => Ok(Table {
                name: name.clone(),
                engine: engine.clone(),
                transactional: transactions == "YES",
                bytes: bytes.parse().unwrap_or(0),
            }),
            other => Err(self.unexpected(&other.join(" "))),
        });
        Ok(Survey {
            tables: tables.collect::<Result<_, _>>()?,
            server: server.ok_or_else(|| self.unexpected("nothing"))?,
        })
    }

    /// Whether the user may lock the tables, without doing so: asks for the lock of one that there
    /// is not, and is told that only if it would have been given.
    ///
    /// # Errors
    ///
    /// When it may not, or the server does not answer.
    pub(super) fn may_lock(&self, within: Duration, watch: &Watch) -> Result<(), Error> {
        let locked = self.ask(LOCK_OF_NOTHING, "a lock", within, watch);
        match locked {
            Err(Error::Failed { said, .. }) if said.contains(NO_SUCH_TABLE) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The rows that the statements return in the database.
    pub(super) fn ask(
        &self,
        sql: &str,
        what: &'static str,
        within: Duration,
        watch: &Watch,
    ) -> Result<Vec<Vec<String>>, Error> {
        self.run(sql, Some(self.address.database()), what, within, watch)
    }

    /// The same in no database, which need not be there.
    pub(super) fn ask_server(
        &self,
        sql: &str,
        what: &'static str,
        watch: &Watch,
    ) -> Result<Vec<Vec<String>>, Error> {
        self.run(sql, None, what, ANSWER_WITHIN, watch)
    }

    fn run(
        &self,
        sql: &str,
        database: Option<&str>,
        what: &'static str,
        within: Duration,
        watch: &Watch,
    ) -> Result<Vec<Vec<String>>, Error> {
        let mut command = Command::new(&self.sql.path);
        command
            .arg(FROM_STDIN)
            .args(["--batch", "--skip-column-names", "--quick"])
            .arg("--default-character-set=utf8mb4")
            .arg(format!("--execute={sql}"))
            .arg("--")
            .args(database);
        let options = self.address.options();
        let process = Process::start(&self.sql.name(), &self.address, &mut command, &options)?;
        let answer = process.output(what, within, watch)?;
        let rows = answer
            .lines()
            .map(|row| row.split('\t').map(unescaped).collect());
        Ok(rows.collect())
    }

    /// Starts a dump with these options besides those of every dump.
    pub(super) fn dump(&self, options: &[&str]) -> Result<Process, Error> {
        let mut command = Command::new(&self.dump.path);
        command
            .arg(FROM_STDIN)
            .args([
                "--quick",
                "--no-tablespaces",
                "--hex-blob",
                "--skip-dump-date",
            ])
            .arg("--default-character-set=utf8mb4");
        if self.vendor() == Vendor::MySql {
            // The first would write of a replica's history what a restore must not have; for
            // the second, versions before 8.0 do not know it, and servers other than 8.0
            // have no such table.
            command.args(["--set-gtid-purged=OFF", "--loose-column-statistics=0"]);
        }
        command.args(options).arg("--").arg(self.address.database());
        Process::start(
            &self.dump.name(),
            &self.address,
            &mut command,
            &self.address.options(),
        )
    }

    /// Starts an import, whose SQL is to be written to the pipe. In binary mode, where a
    /// dump cannot make the program run commands.
    pub(super) fn import(&self) -> Result<(Process, ChildStdin), Error> {
        let options = self.options_by_descriptor()?;
        let mut command = Command::new(&self.sql.path);
        command
            .arg(format!("--defaults-file=/dev/fd/{}", options.as_raw_fd()))
            .args(["--batch", "--binary-mode"])
            .arg("--default-character-set=utf8mb4")
            .arg("--")
            .arg(self.address.database());
        Process::start_fed(&self.sql.name(), &self.address, &mut command)
    }

    /// The option file as a descriptor that children inherit, as standard input is taken.
    /// For a process that starts no other meanwhile: that would inherit it too.
    fn options_by_descriptor(&self) -> Result<OwnedFd, Error> {
        let broke = |source: io::Error| Error::Pipe {
            program: self.sql.name(),
            source,
        };
        let (reader, mut writer) = io::pipe().map_err(broke)?;
        io::Write::write_all(&mut writer, self.address.options().as_bytes()).map_err(broke)?;
        let reader = OwnedFd::from(reader);
        fcntl_setfd(&reader, FdFlags::empty()).map_err(|error| broke(error.into()))?;
        Ok(reader)
    }

    pub(super) fn unexpected(&self, found: &str) -> Error {
        Error::Unexpected {
            program: self.sql.name(),
            found: self.address.redacted(found),
        }
    }
}

impl Program {
    fn at(path: &Path, address: &Address) -> Result<Self, Error> {
        let name = name(path);
        let mut command = Command::new(path);
        command.arg("--version");
        let process = Process::start(&name, address, &mut command, "")?;
        let version = process.output("its version", ANSWER_WITHIN, &Watch::default())?;
        Ok(Self {
            path: path.to_owned(),
            version: version.trim().to_owned(),
        })
    }

    fn first(
        candidates: impl IntoIterator<Item = PathBuf>,
        address: &Address,
        hint: &'static str,
    ) -> Result<Self, Error> {
        let mut names = Vec::new();
        for candidate in candidates {
            match Self::at(&candidate, address) {
                Err(Error::NotStarted { source, .. })
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    names.push(candidate.display().to_string());
                }
                found => return found,
            }
        }
        Err(Error::NoProgram { names, hint })
    }

    /// The program that runs SQL and came with this dump program.
    fn sql(dump: &Path, address: &Address) -> Result<Self, Error> {
        let beside = dump
            .parent()
            .filter(|directory| !directory.as_os_str().is_empty());
        let beside = beside.into_iter().flat_map(|directory| {
            let names = SQL.into_iter();
            names.map(move |name| directory.join(name))
        });
        let hint = "it is looked for beside maintenance.backup.dump_program first";
        Self::first(beside.chain(SQL.map(PathBuf::from)), address, hint)
    }

    fn name(&self) -> String {
        name(&self.path)
    }
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(OsStr::new("the client program"));
    name.to_string_lossy().into_owned()
}

/// A value as `--batch` writes it.
fn unescaped(value: &str) -> String {
    let mut plain = String::with_capacity(value.len());
    let mut signs = value.chars();
    while let Some(sign) = signs.next() {
        plain.push(match sign {
            '\\' => match signs.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('0') => '\0',
                Some(other) => other,
                None => '\\',
            },
            sign => sign,
        });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Address {
        "mysql://u:p@127.0.0.1/x".parse().expect("an address")
    }

    #[test]
    fn batch_output_is_read_as_it_is_written() {
        assert_eq!(unescaped(r"a\tb\nc\\d\0"), "a\tb\nc\\d\0");
        assert_eq!(unescaped("plain"), "plain");
    }

    #[test]
    fn a_program_that_is_missing_is_named_with_its_remedy() {
        let names = ["no-such-dump", "nor-such"].map(PathBuf::from);
        let error = Program::first(names, &address(), "a hint").expect_err("there is none");
        let said = error.to_string();
        for part in ["no-such-dump", "nor-such", "install", "a hint"] {
            assert!(said.contains(part), "{said}");
        }
        let error = Client::find(address(), Some(Path::new("/no/such/program")));
        let said = error.expect_err("there is none").to_string();
        assert!(said.contains("program could not be started"), "{said}");
    }

    #[test]
    fn tables_without_transactions_are_told() {
        let table = |name: &str, engine: &str, transactional| Table {
            name: name.to_owned(),
            engine: engine.to_owned(),
            transactional,
            bytes: 7,
        };
        let mut survey = Survey {
            server: String::new(),
            tables: vec![table("a", "InnoDB", true)],
        };
        assert_eq!(survey.without_snapshot(), None);
        survey.tables.push(table("b", "MyISAM", false));
        survey.tables.push(table("c", "Aria", false));
        let told = survey.without_snapshot();
        assert_eq!(told.as_deref(), Some("b (MyISAM), c (Aria)"));
        assert_eq!(survey.bytes(), 21);
    }
}
