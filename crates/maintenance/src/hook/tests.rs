#![expect(
    clippy::disallowed_methods,
    reason = "how long a hook was let run is what one test is about"
)]

use std::future::pending;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::disk::Disk;
use crate::window::{Cause, Phase};

const A_MINUTE: Duration = Duration::from_secs(60);

fn facts() -> Facts {
    Facts {
        run: RunId::parse("20261122T030000Z-abcd").expect("an id"),
        database: "/var/lib/tracker/sqlite3.db".into(),
        directory: "/var/lib/tracker/backups".into(),
        outcome: Some(Outcome::Failed {
            phase: Phase::Copying,
            cause: Cause::WalLimit,
            message: "the log grew\nby much".to_owned(),
        }),
        backup: None,
    }
}

fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).to_vec()
}

/// One attempt.
async fn run(script: &str, within: Duration) -> Result<(), Error> {
    let command = shell(script);
    carry_out(Hook::After, &command, &facts(), within, pending(), || false).await
}

async fn refused(script: &str, within: Duration) -> String {
    run(script, within).await.expect_err(script).to_string()
}

#[tokio::test]
async fn a_hook_is_told_of_the_run_and_nothing_of_the_service() {
    let home = TempDir::new().expect("a directory");
    let said = home.path().join("said");
    let script = format!("env > {}; read -r line && exit 9; exit 0", said.display());
    run(&script, A_MINUTE).await.expect("its input is empty");
    let said = Disk::default().read(&said, 1 << 20).expect("what it wrote");
    let said = String::from_utf8(said).expect("text");
    for line in [
        "TORRUST_MAINTENANCE_HOOK=after",
        "TORRUST_MAINTENANCE_RUN=20261122T030000Z-abcd",
        "TORRUST_MAINTENANCE_DATABASE=/var/lib/tracker/sqlite3.db",
        "TORRUST_MAINTENANCE_DIRECTORY=/var/lib/tracker/backups",
        "TORRUST_MAINTENANCE_OUTCOME=failed",
        "TORRUST_MAINTENANCE_CAUSE=wal_limit",
        "TORRUST_MAINTENANCE_MESSAGE=the log grew by much",
        "TORRUST_MAINTENANCE_BACKUP=",
    ] {
        assert!(said.lines().any(|found| found == line), "{line} in {said}");
    }
    // Cargo sets many, and a shell adds its own.
    let own = ["PWD", "OLDPWD", "SHLVL", "_"];
    for line in said.lines() {
        let name = line.split('=').next().unwrap_or_default();
        let known = HANDED_ON.contains(&name) || own.contains(&name);
        assert!(
            known || name.starts_with("TORRUST_MAINTENANCE_"),
            "{name} was handed on"
        );
    }
}

#[tokio::test]
async fn one_that_fails_is_told_by_its_last_lines() {
    let message = refused(
        "echo one; echo two >&2; echo three; echo four; exit 3",
        A_MINUTE,
    )
    .await;
    assert_eq!(
        message,
        "the hook `after` (`sh`) exited with 3; it said: two / three / four"
    );
    let silent = refused("kill -9 $$", A_MINUTE).await;
    assert!(silent.ends_with("was killed by signal 9; it said nothing"));
    let missing = carry_out(
        Hook::Before,
        &["/no/such/program".to_owned(), "SECRET".to_owned()],
        &facts(),
        A_MINUTE,
        pending(),
        || false,
    )
    .await
    .expect_err("there is none")
    .to_string();
    assert!(missing.contains("`before` (`/no/such/program`) could not be started"));
    assert!(!missing.contains("SECRET"), "{missing}");
}

#[tokio::test]
async fn one_that_hangs_is_ended_with_all_it_started() {
    let within = Duration::from_millis(300);
    // Deaf to SIGTERM, all of them.
    let message = refused("trap '' TERM; echo here; sleep 600 & sleep 600", within).await;
    assert!(message.contains("was ended after 300ms"), "{message}");
    assert!(message.ends_with("it said: here"), "{message}");
}

#[tokio::test]
async fn one_that_is_cut_short_says_why() {
    let why = async { "the window ended".to_owned() };
    let command = shell("sleep 600");
    let cut = carry_out(Hook::Before, &command, &facts(), A_MINUTE, why, || true).await;
    let message = cut.expect_err("it was ended").to_string();
    assert!(message.contains("was ended: the window ended"), "{message}");
}

#[tokio::test]
async fn what_outlives_it_is_ended_and_told_of() {
    let message = refused("sleep 600 & exit 0", A_MINUTE).await;
    assert!(message.contains("left processes running"), "{message}");
}

/// A hook that notes each call, and what is to come after the note.
struct Counted {
    home: TempDir,
}

impl Counted {
    fn new() -> Self {
        Self {
            home: TempDir::new().expect("a directory"),
        }
    }

    /// What becomes of it, and how often it was called.
    async fn run(
        &self,
        script: &str,
        within: Duration,
        cut_short: impl Future<Output = String>,
        again: impl Fn() -> bool,
    ) -> (Result<(), String>, usize) {
        let note = self.home.path().join("note");
        let script = format!("n={}; echo . >> $n; {script}", note.display());
        let command = shell(&script);
        let ran = carry_out(Hook::After, &command, &facts(), within, cut_short, again).await;
        let noted = Disk::default().read(&note, 1 << 10).expect("it was called");
        (ran.map_err(|error| error.to_string()), noted.len() / 2)
    }
}

#[tokio::test]
async fn one_that_fails_is_called_again_until_it_does_not() {
    let second = "[ $(wc -l < $n) -ge 2 ]";
    let (ran, calls) = Counted::new()
        .run(second, A_MINUTE, pending(), || true)
        .await;
    assert_eq!((ran, calls), (Ok(()), 2));
}

#[tokio::test]
async fn one_that_goes_on_failing_is_not_called_for_ever() {
    let script = "echo $(wc -l < $n); exit 5";
    let (ran, calls) = Counted::new()
        .run(script, A_MINUTE, pending(), || true)
        .await;
    let said = ran.expect_err("it fails");
    assert!(said.ends_with("exited with 5; it said: 3"), "{said}");
    assert_eq!(calls, 3);
}

/// So that attempts take no more time than one that is slow.
#[tokio::test]
async fn attempts_share_the_time_there_is() {
    let within = Duration::from_millis(500);
    let (ran, calls) = Counted::new()
        .run("exit 5", within, pending(), || true)
        .await;
    let said = ran.expect_err("it fails");
    assert!(said.contains("exited with 5"), "{said}");
    assert_eq!(calls, 1, "the next would begin after the limit");

    // The second one is ended when both have had two seconds together.
    let script = "[ $(wc -l < $n) -ge 2 ] && exec sleep 600; exit 5";
    let within = Duration::from_secs(2);
    let began = Instant::now();
    let (ran, calls) = Counted::new().run(script, within, pending(), || true).await;
    let said = ran.expect_err("it hangs");
    assert!(said.contains("was ended after 2s"), "{said}");
    assert_eq!(calls, 2);
    assert!(began.elapsed() < Duration::from_secs(20), "and not 600");
}

#[tokio::test]
async fn what_would_be_in_vain_is_not_attempted_again() {
    let linger = "sleep 600 & exit 0";
    let (ran, calls) = Counted::new()
        .run(linger, A_MINUTE, pending(), || true)
        .await;
    assert!(ran.is_err());
    assert_eq!(calls, 1, "it did what it is for");

    let (ran, calls) = Counted::new()
        .run("exit 5", A_MINUTE, pending(), || false)
        .await;
    assert!(ran.is_err());
    assert_eq!(calls, 1, "nobody wants it any more");

    // Somebody ends the wait for the next.
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let asked = AtomicU32::new(0);
    let end = Mutex::new(Some(end));
    let again = || {
        asked.fetch_add(1, Ordering::Relaxed);
        drop(end.lock().expect("unpoisoned").take());
        true
    };
    let cut_short = async {
        drop(ended.await);
        "the service goes down".to_owned()
    };
    let (ran, calls) = Counted::new()
        .run("exit 5", A_MINUTE, cut_short, again)
        .await;
    let said = ran.expect_err("it failed");
    assert!(said.contains("exited with 5"), "{said}");
    assert_eq!((calls, asked.load(Ordering::Relaxed)), (1, 1));
}

#[tokio::test]
async fn ten_megabytes_neither_block_it_nor_are_kept() {
    let script = "echo first; head -c 10485760 /dev/zero | tr '\\0' x; echo; echo last; exit 1";
    let message = refused(script, A_MINUTE).await;
    assert!(message.ends_with(" / last"), "{message}");
    assert!(message.len() < 2 * LINE_TOLD + 200, "{}", message.len());
}

#[test]
fn the_beginning_and_the_end_are_kept() {
    let mut kept = Kept::default();
    let line = b"0123456789abcde\n";
    // However it is cut into pieces.
    for piece in line.repeat(4096).chunks(777) {
        kept.take(piece);
    }
    kept.take(b"the end");
    assert_eq!(kept.head.len(), KEPT_OF_EACH_END);
    assert_eq!(kept.tail.len(), KEPT_OF_EACH_END);
    let left_out = 16 * 4096 + 7 - 2 * KEPT_OF_EACH_END;
    assert_eq!(kept.dropped, left_out as u64);
    let lines = kept.lines();
    assert_eq!(lines.first().map(String::as_str), Some("0123456789abcde"));
    assert_eq!(lines.last().map(String::as_str), Some("the end"));
    let told = format!("[{left_out} bytes are left out here]");
    assert!(lines.contains(&told), "{told}");
}

#[test]
fn lines_are_fit_for_a_log() {
    let mut kept = Kept::default();
    kept.take(b"\x1b[31mred\x1b[0m\r\n\n\xff\xfe\nplain\n");
    let lines = kept.lines();
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(
        lines.iter().all(|line| !line.contains('\x1b')),
        "no escape gets through: {lines:?}"
    );
    assert_eq!(lines[2], "plain");
}
