//! What the first hundred bytes of a database file say
//! ([file format, 1.3](https://www.sqlite.org/fileformat2.html#the_database_header)).

use std::io::Read;
use std::path::Path;

use super::{Error, Identity, Journal};
use crate::disk::{self, Disk};

/// Bytes of the header.
const LENGTH: usize = 100;

/// How it begins.
const MAGIC: &[u8] = b"SQLite format 3\0";

/// The payload fractions at 21, 22 and 23, which are the same in every database.
const FRACTIONS: [u8; 3] = [64, 32, 32];

/// Bytes in a page of a new database, unless its first connection says otherwise.
const NEW_PAGE_SIZE: u32 = 4096;

/// What a file says of itself. In WAL mode its log, which is not looked at, may know of
/// more pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// [`Journal::Wal`], or [`Journal::Delete`] for a rollback journal of any kind, which
    /// a file does not tell apart.
    pub journal: Journal,
    /// Bytes in a page: a power of two, 512 to 65536; 4096 for an empty file.
    pub page_size: u32,
    /// Pages of the file; 0 for an empty one, which is a new database.
    pub page_count: u64,
}

impl Header {
    /// Bytes of the database: pages times page size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.page_count * u64::from(self.page_size)
    }

    /// `None` for what SQLite would not take for a database.
    fn parse(header: &[u8; LENGTH], file_bytes: u64) -> Option<Self> {
        let number = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let page_size = match u16::from_be_bytes([header[16], header[17]]) {
            1 => 65536,
            size => u32::from(size),
        };
        // What reads it decides; a higher write version only makes it read-only.
        let journal = match header[19] {
            1 => Journal::Delete,
            2 => Journal::Wal,
            _ => return None,
        };
        let sound = header.starts_with(MAGIC)
            && page_size.is_power_of_two()
            && page_size >= 512
            && header[21..24] == FRACTIONS;
        // The count is valid if it was written with the change counter; releases before
        // 3.7.0 left it as it was.
        let counted = number(28) != 0 && number(24) == number(92);
        sound.then(|| Self {
            journal,
            page_size,
            page_count: if counted {
                u64::from(number(28))
            } else {
                file_bytes / u64::from(page_size)
            },
        })
    }
}

/// Reads the header of a database file, nothing more, and changes nothing.
///
/// Through a plain descriptor, so **only in a process that has no SQLite connection to the
/// file**: closing the descriptor drops the locks of all of them
/// ([How to corrupt, 2.2](https://www.sqlite.org/howtocorrupt.html)). That is a service
/// before it opens its database, or a tool of the operator's.
///
/// # Errors
///
/// [`Error::Missing`], [`Error::NotAFile`], [`Error::NotADatabase`], and
/// [`Error::Io`] when it may not be read. An empty file is a new database.
pub fn inspect(path: &Path) -> Result<Header, Error> {
    // From metadata: a pipe would block in `open`.
    Identity::of(path)?;
    let failed = |error: disk::Error| Error::Io {
        doing: error.doing,
        path: error.path,
        source: error.source,
    };
    let mut file = Disk::default().open(path).map_err(failed)?;
    let size = file.size().map_err(failed)?;
    if size == 0 {
        return Ok(Header {
            journal: Journal::Delete,
            page_size: NEW_PAGE_SIZE,
            page_count: 0,
        });
    }
    let not_a_database = || Error::NotADatabase { path: path.into() };
    if size < LENGTH as u64 {
        return Err(not_a_database());
    }
    let mut header = [0; LENGTH];
    file.read_exact(&mut header).map_err(|source| Error::Io {
        doing: "read",
        path: path.into(),
        source,
    })?;
    Header::parse(&header, size).ok_or_else(not_a_database)
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::disallowed_methods,
        reason = "tests handle files as no other code here may"
    )]

    use std::fs;

    use rusqlite::Connection;
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_header_says_what_sqlite_says() {
        let directory = TempDir::new().expect("a temporary directory");
        for size in [512_u32, 1024, 4096, 65536] {
            for journal in [Journal::Wal, Journal::Delete] {
                let path = directory.path().join(format!("{size}-{journal}.db"));
                let connection = Connection::open(&path).expect("a new database");
                connection
                    .execute_batch(&format!(
                        "PRAGMA page_size = {size}; PRAGMA journal_mode = {journal};
                         CREATE TABLE t (a); INSERT INTO t VALUES (zeroblob(200000));"
                    ))
                    .expect("an empty database");
                let pages = connection.query_row("PRAGMA page_count", [], |row| row.get(0));
                let pages: u32 = pages.expect("a number");
                // Nobody has it open any more, and nothing is in a log.
                connection.close().expect("nothing is under way");
                let header = inspect(&path).expect("a database");
                let expected = Header {
                    journal,
                    page_size: size,
                    page_count: u64::from(pages),
                };
                assert_eq!(header, expected);
                assert_eq!(
                    header.bytes(),
                    fs::metadata(&path).expect("it exists").len()
                );
                // One an old release wrote to: its count is not to be believed.
                let mut old = fs::read(&path).expect("it exists");
                old[28..32].copy_from_slice(&7_u32.to_be_bytes());
                old[92..96].copy_from_slice(&[0xff; 4]);
                fs::write(&path, &old).expect("it is ours");
                assert_eq!(inspect(&path).expect("a database"), expected);
            }
        }
    }

    #[test]
    fn an_empty_file_is_a_new_database() {
        let directory = TempDir::new().expect("a temporary directory");
        let path = directory.path().join("empty.db");
        fs::write(&path, "").expect("a writable directory");
        let header = inspect(&path).expect("SQLite takes it for one");
        assert_eq!((header.journal, header.bytes()), (Journal::Delete, 0));
        assert_eq!(fs::metadata(&path).expect("it exists").len(), 0);
    }

    #[test]
    fn what_is_no_database_says_what_it_is() {
        let directory = TempDir::new().expect("a temporary directory");
        let at = |name: &str| directory.path().join(name);
        for missing in ["none.db", "no/none.db"] {
            let missing = inspect(&at(missing));
            assert!(matches!(missing, Err(Error::Missing { .. })), "{missing:?}");
        }
        let folder = inspect(directory.path());
        assert!(matches!(folder, Err(Error::NotAFile { .. })), "{folder:?}");

        let sound = at("sound.db");
        Connection::open(&sound)
            .and_then(|database| database.execute_batch("CREATE TABLE t (a)"))
            .expect("a database");
        let sound = fs::read(sound).expect("it exists");
        let mut cases = vec![b"x".to_vec(), vec![7; 9000], sound[..99].to_vec()];
        // Each byte SQLite looks at before it believes the rest.
        for at in (0..18).chain([19]).chain(21..24) {
            let mut broken = sound.clone();
            broken[at] ^= 0x44;
            cases.push(broken);
        }
        for contents in cases {
            fs::write(at("text"), &contents).expect("a writable directory");
            let text = inspect(&at("text"));
            assert!(matches!(text, Err(Error::NotADatabase { .. })), "{text:?}");
        }
    }
}
