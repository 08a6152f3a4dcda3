//! What a `.result` is worth and to whom, and a volume that hangs.

#![expect(
    clippy::disallowed_methods,
    reason = "the tests play the tracker, which has its files elsewhere"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::mpsc;

use chrono::TimeDelta;
use tempfile::TempDir;
use torrust_tracker_maintenance::status::{CopyOf, PinnedFile};

use super::*;
use crate::client::block_on;

/// The tracker's side of the files.
struct Tracker(TempDir);

fn run(letter: char) -> RunId {
    RunId::parse(&format!("20261122T030000Z-{letter}")).expect("a run's id")
}

impl Tracker {
    fn new() -> Self {
        Self(TempDir::new().expect("there is room"))
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.0.path().join(format!("ready.json{suffix}"))
    }

    fn sidecar(&self) -> TouchFile {
        TouchFile::new(self.path(""))
    }

    fn show(&self, run: RunId) {
        self.show_until(run, now() + TimeDelta::minutes(1));
    }

    fn show_until(&self, run: RunId, until: DateTime<Utc>) {
        let ready = touch_file::Ready {
            run,
            database: "tracker.db".into(),
            driver: "sqlite3".to_owned(),
            copy: CopyOf::PinnedFile,
            until,
            began: until,
            pinned: until,
            journal_mode: "wal".to_owned(),
            pause_ms: 1.5,
            file: PinnedFile {
                device: 1,
                inode: 7,
                page_size: 4096,
                page_count: 10,
                bytes: 40960,
                modified: 1_795_000_000_123_456_789,
            },
        };
        let ready = serde_json::to_vec(&ready).expect("plain text");
        fs::write(self.path(""), ready).expect("there is room");
    }

    /// Takes up what was written, and says how the run ended.
    fn ends(&self, run: RunId) {
        let result = RunResult {
            run,
            held_throughout: true,
            done: true,
            why: None,
            ended: now(),
        };
        let result = serde_json::to_vec(&result).expect("plain text");
        let _ = fs::remove_file(self.path(".done"));
        let _ = fs::remove_file(self.path(""));
        fs::write(self.path(".new"), result).expect("there is room");
        fs::rename(self.path(".new"), self.path(".result")).expect("the same directory");
    }

    /// Has this sidecar finish; the tracker takes it up.
    fn finished(&self, sidecar: &TouchFile, run: &RunId) -> Reply {
        block_on(async {
            let taking_up = async {
                while !self.path(".done").exists() {
                    sleep(Duration::from_millis(1)).await;
                }
                self.ends(run.clone());
                std::future::pending::<()>().await;
            };
            tokio::select! {
                reply = finish(sidecar, run) => reply,
                () = taking_up => unreachable!("it ends with the reply"),
            }
        })
    }

    fn said(&self) -> Done {
        let said = fs::read(self.path(".done")).expect("something was said");
        serde_json::from_slice(&said).expect("JSON")
    }
}

async fn fail(sidecar: &TouchFile, run: &RunId) -> Reply {
    let reason = Some("no room".to_owned());
    sidecar.ask(&Request::Finish(run.clone(), reason)).await
}

async fn finish(sidecar: &TouchFile, run: &RunId) -> Reply {
    sidecar.ask(&Request::Finish(run.clone(), None)).await
}

fn is_held(reply: &Reply) -> bool {
    matches!(reply, Reply::Verdict { held: true, .. })
}

fn is_gone(reply: &Reply) -> bool {
    matches!(reply, Reply::Refused(Refusal::Gone, _))
}

#[test]
fn of_two_sidecars_only_the_one_that_ended_the_run_has_a_copy() {
    let tracker = Tracker::new();
    let (first, second) = (tracker.sidecar(), tracker.sidecar());
    tracker.show(run('a'));
    let reply = tracker.finished(&first, &run('a'));
    assert!(is_held(&reply), "{reply:?}");
    // The result is there, and is of this run, but the file was free before the other was done.
    let reply = block_on(finish(&second, &run('a')));
    assert!(is_gone(&reply), "{reply:?}");
    assert!(!tracker.path(".done").exists());
    // Asked again, the first is told the same.
    let reply = block_on(finish(&first, &run('a')));
    assert!(is_held(&reply), "{reply:?}");

    // The next run is on already.
    tracker.show(run('b'));
    let reply = block_on(finish(&second, &run('a')));
    assert!(is_gone(&reply), "{reply:?}");
    assert!(!tracker.path(".done").exists());
    let reply = tracker.finished(&second, &run('b'));
    assert!(is_held(&reply), "{reply:?}");
}

#[test]
fn a_word_that_was_not_taken_up_is_worth_nothing() {
    let tracker = Tracker::new();
    // Ended by another sidecar, and not yet hidden.
    tracker.ends(run('a'));
    tracker.show(run('a'));
    let reply = block_on(finish(&tracker.sidecar(), &run('a')));
    assert!(
        matches!(&reply, Reply::Verdict { held: false, why: Some(why) } if why.contains("another sidecar")),
        "{reply:?}"
    );
    let done = fs::metadata(tracker.path(".done")).expect("nobody took it up");
    // The tracker is another user.
    assert_eq!(done.permissions().mode() & 0o777, 0o644);
}

#[test]
fn the_tracker_is_told_that_there_will_be_no_copy() {
    let tracker = Tracker::new();
    let sidecar = tracker.sidecar();
    let reply = block_on(fail(&sidecar, &run('a')));
    assert!(is_gone(&reply), "{reply:?}");
    assert!(!tracker.path(".done").exists(), "nobody waits for it");

    tracker.show(run('a'));
    // Of yesterday; nobody took it up.
    fs::write(tracker.path(".done"), run('z').as_str()).expect("there is room");
    let reply = block_on(fail(&sidecar, &run('a')));
    assert!(
        matches!(&reply, Reply::Verdict { held: false, .. }),
        "{reply:?}"
    );
    let (of, reason) = (run('a').as_str().to_owned(), "no room".to_owned());
    let failed = Done {
        run: of.clone(),
        failed: Some(reason),
    };
    assert_eq!(tracker.said(), failed);

    // The word of a sidecar that has its copy stands.
    let done = format!("{{\"run\": \"{of}\"}}");
    fs::write(tracker.path(".done"), done).expect("there is room");
    block_on(fail(&sidecar, &run('a')));
    assert_eq!(tracker.said().failed, None);
}

/// It was killed while it showed one, and has not been started since.
#[test]
fn a_file_that_a_dead_tracker_left_invites_nobody() {
    let tracker = Tracker::new();
    let sidecar = tracker.sidecar();
    tracker.show_until(run('a'), now() - TimeDelta::seconds(1));
    assert_eq!(sidecar.glance(), Ok(None));
    for request in [Request::Claim(run('a')), Request::Finish(run('a'), None)] {
        let reply = block_on(sidecar.ask(&request));
        assert!(is_gone(&reply), "{request:?}: {reply:?}");
    }
    assert!(!tracker.path(".done").exists());
    // The next life shows the next run.
    tracker.show(run('b'));
    let reply = block_on(sidecar.ask(&Request::Look));
    assert!(
        matches!(&reply, Reply::Ready(ready) if ready.offer.run == run('b')),
        "{reply:?}"
    );
}

/// A WAL database may be paused, too, and the manifest is to say what it was.
#[test]
fn a_touch_file_says_what_the_manifest_is_to_say() {
    let tracker = Tracker::new();
    tracker.show(run('a'));
    let shown = fs::read(tracker.path("")).expect("it is shown");
    let mut shown: touch_file::Ready = serde_json::from_slice(&shown).expect("JSON");
    shown.copy = CopyOf::PausedDatabase;
    shown.began = shown.until - TimeDelta::minutes(3);
    shown.pinned = shown.until - TimeDelta::minutes(2);
    let ready = understood(&shown).expect("it is a touch-file");
    assert_eq!(ready.offer.journal, Journal::Wal);
    assert_eq!(
        (ready.offer.began, ready.offer.pinned),
        (shown.began, shown.pinned)
    );
    assert_eq!(ready.offer.pause, Duration::from_micros(1500));
    shown.journal_mode = "none".to_owned();
    let why = understood(&shown).expect_err("no journal mode");
    assert!(why.contains("`none`"), "{why}");
}

#[test]
fn a_volume_that_hangs_holds_up_nobody() {
    let tracker = Tracker::new();
    tracker.show(run('a'));
    let mut sidecar = tracker.sidecar();
    sidecar.answer_within = Duration::from_millis(20);
    block_on(async {
        let (answers, hangs) = mpsc::channel::<()>();
        let hung = sidecar.at(move |_| {
            let _ = hangs.recv();
            Ok(())
        });
        let failure = hung.await.expect_err("it hangs");
        assert!(failure.message.contains("does not answer"), "{failure:?}");
        // Nothing else goes there meanwhile.
        for request in [
            Request::Look,
            Request::Claim(run('a')),
            Request::Finish(run('a'), None),
        ] {
            let reply = sidecar.ask(&request).await;
            assert!(
                matches!(&reply, Reply::Unclear(failure) if failure.error == "touch_file"),
                "{request:?}: {reply:?}"
            );
        }
        assert!(!tracker.path(".done").exists());
        drop(answers);
        sidecar.answer_within = Duration::from_secs(60);
        let reply = sidecar.ask(&Request::Claim(run('a'))).await;
        assert!(matches!(reply, Reply::Granted(_)), "{reply:?}");
    });
}
