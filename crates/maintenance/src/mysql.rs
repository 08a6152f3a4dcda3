//! A MySQL or MariaDB database, which there is no file of: it is dumped by its own client
//! program, as one SQL text.
//!
//! ```text
//!  gate   open ──────┐ closed ┌──────────────────────────────────────────────────
//!                    └────────┘
//!  client  rehearsal  start ─▶ START TRANSACTION WITH CONSISTENT SNAPSHOT
//!                              ─▶ CREATE TABLE … ─▶ INSERT … ─▶ -- Dump completed
//!                               └─ seen in its output: pinned
//! ```
//!
//! **The pin is the dump's own transaction.** The client begins it before it asks for the
//! first table, so the first table's structure in its output says that the snapshot exists;
//! what is committed from then on is not in the dump. The gate opens at that byte.
//!
//! **Tables without transactions** (MyISAM, Aria, MEMORY) have no snapshot. If there is one,
//! all tables are locked instead, and the gate stays closed until the dump has ended.
//!
//! **A dump is complete** if the program ended with status 0 and its last line is
//! `-- Dump completed`; a dump that was cut off compresses and decompresses as well as any
//! other. While it streams, its rows are counted by [`Statements`], so the figures of the
//! manifest are those of the snapshot.
//!
//! **The password** goes to the program as an option file on its standard input. It is on
//! no command line and in no environment, and what the program says is searched for it.
//! That file is the only one the program reads: a `where` or a `no-data` in `/etc/my.cnf`
//! would make something else of a backup.

mod address;
mod client;
mod dump;
mod engine;
mod forecast;
pub mod import;
mod process;
mod statements;

pub use self::address::{Address, NotAnAddress, Password};
pub use self::client::{Client, Survey, Table, Vendor};
pub use self::dump::{Consistency, Dump};
pub use self::engine::DumpEngine;
pub use self::statements::{Rows, Statements};

use std::time::Duration;

/// What configurations and manifests call a MySQL or MariaDB database.
pub const DRIVER: &str = "mysql";

/// Why a client program did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such program.
    #[error(
        "there is none of the programs {} on the PATH: install MariaDB's or MySQL's client \
         ({hint})",
        .names.join(", ")
    )]
    NoProgram {
        /// What was looked for.
        names: Vec<String>,
        /// Where else one could be named.
        hint: &'static str,
    },
    /// It is there, but does not start.
    #[error("{program} could not be started: {source}")]
    NotStarted {
        /// The program.
        program: String,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("{program} failed on {address} ({status}): {said}{}", hint(.said, .address))]
    Failed {
        /// The program.
        program: String,
        /// The database it was to work on.
        address: Box<Address>,
        /// Its exit status.
        status: String,
        /// What it said last, without the password.
        said: String,
    },
    /// It ended well, but not with what every dump ends with.
    #[error(
        "{program} ended without the line \"-- Dump completed\" ({why}): what it wrote is not \
         a whole dump of {address}"
    )]
    Incomplete {
        /// The program.
        program: String,
        /// The database it was to dump.
        address: Box<Address>,
        /// What is missing.
        why: &'static str,
    },
    /// It neither ended nor said anything in time.
    #[error(
        "{program} gave no answer for {} within {within:?}; is the server at {address} blocked?",
        .what
    )]
    Silent {
        /// The program.
        program: String,
        /// The database it was to work on.
        address: Box<Address>,
        /// What was waited for.
        what: &'static str,
        /// For how long.
        within: Duration,
    },
    /// Its output is none that it should write.
    #[error("{program} answered what was not expected: {found}")]
    Unexpected {
        /// The program.
        program: String,
        /// What it wrote.
        found: String,
    },
    /// A pipe to it broke.
    #[error("the pipe to {program} broke: {source}")]
    Pipe {
        /// The program.
        program: String,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// It was asked to end before it was done.
    #[error("the dump was given up: {0}")]
    Cancelled(String),
}

/// What to do about an error of the server, by its number.
fn hint(said: &str, address: &Address) -> String {
    let numbers = said.split(|sign: char| !sign.is_ascii_digit());
    let known = numbers.filter_map(|number| match number {
        "1045" | "1698" => Some(
            "; check user and password in core.database.path, and from where the user may log in"
                .to_owned(),
        ),
        "1044" | "1142" | "1143" | "1227" | "1370" => Some(format!(
            "; the user needs at least: GRANT SELECT, SHOW VIEW, TRIGGER, LOCK TABLES ON \
             `{}`.* TO ...",
            address.database()
        )),
        "1049" => Some("; create the database, or correct core.database.path".to_owned()),
        "2002" | "2003" | "2005" => Some("; does the server run, and listen there?".to_owned()),
        "2006" | "2013" | "2026" => {
            Some("; see the server's log for why the connection ended".to_owned())
        }
        "1062" | "1050" => Some("; the database was not empty".to_owned()),
        _ => None,
    });
    known.take(1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_server_have_a_remedy() {
        let address: Address = "mysql://u:p@h/tracker".parse().expect("an address");
        for (said, remedy) in [
            ("Got error: 1045: \"Access denied\"", "user and password"),
            ("SHOW command denied (1142)", "`tracker`.*"),
            ("ERROR 2002 (HY000): Can't connect", "does the server run"),
            ("Error 2013: Lost connection", "server's log"),
        ] {
            let hint = hint(said, &address);
            assert!(hint.contains(remedy), "{said}: {hint}");
        }
        assert_eq!(hint("row 10450", &address), "");
    }
}
