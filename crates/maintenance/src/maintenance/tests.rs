//! What a start checks, makes and leaves alone.

#![expect(
    clippy::disallowed_methods,
    reason = "tests read and write files of their own; no database of theirs is open"
)]

mod taken_by;

use std::fs;

use tempfile::TempDir;

use super::*;
use crate::config::Source;
use crate::window::Phase;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A directory with a database, and what else a start finds there.
struct Home(TempDir);

impl Home {
    fn new() -> Result<Self> {
        let home = Self(catalogue::testing::memory_dir());
        rusqlite::Connection::open(home.path("tracker.db"))?
            .execute_batch("CREATE TABLE torrents (id INTEGER PRIMARY KEY)")?;
        Ok(home)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn names(&self) -> Result<Vec<String>> {
        let names = fs::read_dir(self.0.path())?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let mut names: Vec<String> = names.collect::<std::io::Result<_>>()?;
        names.sort();
        Ok(names)
    }

    /// A start with a port of its own, for a sidecar, unless `more` says otherwise.
    fn prepare(&self, more: &str) -> Result<std::result::Result<Maintenance, Error>> {
        let bind = if more.contains("bind_address") {
            ""
        } else {
            "readiness.bind_address = \"127.0.0.1:0\"\n"
        };
        let settings = Source::text(format!(
            "[maintenance]\nenabled = true\nwindow = \"03:00-03:05\"\njournal_mode = \"wal\"\n\
             backup.taken_by = \"sidecar\"\nbackup.directory = \"{}\"\n\
             readiness.touch_file = \"{}\"\n{bind}{more}",
            self.path("elsewhere/backups").display(),
            self.path("ready.json").display(),
        ));
        let settings = settings.maintenance()?.ok_or("it is enabled")?;
        let service = Service {
            name: "a service 1.0".to_owned(),
            database: self.path("tracker.db").into(),
        };
        Ok(Maintenance::prepare(settings, service))
    }
}

#[test]
fn an_address_that_others_reach_needs_a_token() -> Result {
    let home = Home::new()?;
    let open = "readiness.bind_address = \"0.0.0.0:0\"\n";
    let before = home.names()?;
    let error = home.prepare(open)?.expect_err("nobody knows who asks");
    assert!(matches!(error, Error::NoToken(_)), "{error}");
    let error = error.to_string();
    for named in ["0.0.0.0:0", "token_file", token::VARIABLE] {
        assert!(error.contains(named), "{error}");
    }
    assert_eq!(home.names()?, before, "nothing was written");

    fs::write(home.path("token"), "0123456789abcdef\n")?;
    let token = format!(
        "readiness.token_file = \"{}\"\n",
        home.path("token").display()
    );
    home.prepare(&format!("{open}{token}"))??;
    fs::write(home.path("token"), "short\n")?;
    // On loopback too: a token that was meant to be there is no token that is not.
    let error = home.prepare(&token)?.expect_err("too short");
    assert!(matches!(error, Error::Token(_)), "{error}");
    Ok(())
}

#[test]
fn a_start_that_fails_leaves_no_socket() -> Result {
    let home = Home::new()?;
    let before = home.names()?;
    let socket = home.path("maintenance.sock");
    let socket = format!("readiness.bind_address = \"unix:{}\"\n", socket.display());
    fs::create_dir(home.path("ready.json"))?;
    let error = home
        .prepare(&socket)?
        .expect_err("a directory is in the way");
    assert!(matches!(error, Error::TouchFile(_)), "{error}");
    fs::remove_dir(home.path("ready.json"))?;
    assert_eq!(home.names()?, before);
    let prepared = home.prepare(&socket)??;
    assert!(home.path("maintenance.sock").exists());
    drop(prepared);
    assert!(!home.path("maintenance.sock").exists());
    Ok(())
}

/// A verdict must not be lost because the tracker is stopped in the moment it is given.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_answers_who_waits_and_leaves_no_socket() -> Result {
    use std::io::{Read as _, Write as _};
    let home = Home::new()?;
    let socket = home.path("maintenance.sock");
    let bind = format!("readiness.bind_address = \"unix:{}\"\n", socket.display());
    let running = home.prepare(&bind)??.start()?;
    let mut waiting = std::os::unix::net::UnixStream::connect(&socket)?;
    let request = |what: &str| format!("GET {what} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    // When the first is answered the second is being served, on the same connection.
    waiting.write_all(request("/health_check").as_bytes())?;
    let mut first = [0; 12];
    waiting.read_exact(&mut first)?;
    assert_eq!(&first, b"HTTP/1.1 200");
    waiting.write_all(request("/ready?wait=60").as_bytes())?;
    let mut another = std::os::unix::net::UnixStream::connect(&socket)?;
    another.write_all(request("/health_check").as_bytes())?;
    another.read_exact(&mut first)?;
    running.shutdown().await;
    assert!(!socket.exists(), "before it returns");
    let mut answer = String::new();
    waiting.read_to_string(&mut answer)?;
    assert!(answer.contains("HTTP/1.1 503"), "{answer}");
    assert!(answer.ends_with('}'), "it is whole: {answer}");
    Ok(())
}

/// Its directory may be on another machine; the tracker neither needs nor makes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_offered_though_there_is_no_place_for_backups() -> Result {
    let home = Home::new()?;
    fs::write(home.path("ready.json.done"), "of an earlier life")?;
    let maintenance = home.prepare("")??;
    assert!(
        !home.path("ready.json.done").exists(),
        "before the database is opened"
    );
    let running = maintenance.start()?;
    let address = running.readiness_address().ok_or("a port")?;
    let asked = tokio::task::spawn_blocking(move || -> std::io::Result<String> {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(address)?;
        let request = "POST /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                       Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    let answer = asked.await??;
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    let mut status = running.status().clone();
    let offered = status
        .wait_for(|status| status.state == Phase::Offered)
        .await;
    assert!(offered.is_some());
    assert!(home.path("ready.json").exists());
    assert!(!home.path("elsewhere").exists());
    running.shutdown().await;
    assert!(!home.path("ready.json").exists());
    assert!(
        home.path("ready.json.result").exists(),
        "the sidecar is told"
    );
    Ok(())
}
