#![expect(
    clippy::disallowed_methods,
    reason = "a report says when its run was; nothing is decided by it"
)]

use std::fmt::Write as _;
use std::path::Path;

use chrono::Utc;
use figment::Figment;
use figment::providers::{Format as _, Toml};
use tempfile::TempDir;

use super::*;
use crate::catalogue::BackupId;
use crate::config::{File, Settings};
use crate::disk::Disk;
use crate::lease::Holder;
use crate::status::SidecarReport;
use crate::window::Phase;

/// How long anything may take that should happen at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// A herald whose hooks note in a file that they were called.
struct Bench {
    home: TempDir,
    herald: Option<Herald>,
    running: Running,
}

impl Bench {
    /// `hooks`: names and scripts, with `$NOTE` for the file.
    fn new(hooks: &[(&str, &str)]) -> Self {
        Self::within("2s", hooks)
    }

    /// The same, with this limit on each of them.
    fn within(limit: &str, hooks: &[(&str, &str)]) -> Self {
        let home = TempDir::new().expect("a directory");
        let note = home.path().join("note");
        let mut toml = format!(
            "[maintenance]\nenabled = true\nwindow = \"03:00-03:05\"\n\
             [maintenance.hooks]\ntimeout = \"{limit}\"\n"
        );
        for (name, script) in hooks {
            let script = script.replace("$NOTE", &note.display().to_string());
            let script = serde_json::json!(["sh", "-c", script]);
            writeln!(toml, "{name} = {script}").expect("a text takes everything");
        }
        let (herald, running) = Herald::start(parts(&toml))
            .expect("a thread")
            .expect("there is something to call");
        Self {
            home,
            herald: Some(herald),
            running,
        }
    }

    fn herald(&self) -> &Herald {
        self.herald.as_ref().expect("the driver is there")
    }

    /// What was noted when everything asked for is done.
    async fn noted(self) -> (Vec<String>, Told) {
        drop(self.herald);
        let told = self.running.told.clone();
        tokio::time::timeout(PATIENCE, self.running.ended())
            .await
            .expect("the thread ends");
        let told = told.borrow().clone();
        (lines(&self.home.path().join("note")), told)
    }
}

fn parts(toml: &str) -> Parts {
    let figment = Figment::from(Toml::string(toml));
    let file = File::find_in(&figment).expect("TOML").expect("a table");
    let settings = Settings::check(&file).expect("settings");
    let Settings { notify, hooks, .. } = settings.expect("enabled");
    Parts {
        notify,
        header: None,
        hooks,
        service: "service 1.0".to_owned(),
        database: "db".into(),
        directory: "backups".into(),
    }
}

fn lines(path: &Path) -> Vec<String> {
    let noted = Disk::default().read(path, 1 << 20).unwrap_or_default();
    let noted = String::from_utf8(noted).expect("text");
    noted.lines().map(str::to_owned).collect()
}

fn run(name: &str) -> RunId {
    RunId::parse(name).expect("an id")
}

fn ended(name: &str, outcome: Outcome) -> Ended {
    let began = Utc::now();
    Ended {
        report: RunReport {
            id: run(name),
            trigger: crate::window::Trigger::Schedule,
            began,
            ended: began,
            outcome,
            pause_ms: 0.0,
            longest_pause_ms: 0.0,
            pause_limit_ms: None,
            backup: None,
            sidecar: None,
            warnings: Vec::new(),
            wal_bytes: None,
            switched_to: None,
        },
        made: None,
    }
}

fn failed() -> Outcome {
    Outcome::WouldNotFit {
        message: "too long".to_owned(),
    }
}

/// Notes the hook and its run.
const SAY: &str = "echo $TORRUST_MAINTENANCE_HOOK $TORRUST_MAINTENANCE_RUN >> $NOTE";

#[tokio::test]
async fn hooks_come_in_their_order_and_never_overlap() {
    let slow = format!("{SAY}; sleep 0.2; echo . >> $NOTE");
    let bench = Bench::new(&[
        ("before", &slow),
        ("ready", &slow),
        ("after", &slow),
        ("on_failure", &slow),
    ]);
    let herald = bench.herald().clone();
    let begun = std::thread::spawn(move || {
        for name in ["a", "b"] {
            herald
                .before(run(name), &Watch::default())
                .expect("it is good");
            herald.ready(run(name));
            let outcome = if name == "a" { Outcome::Done } else { failed() };
            herald.ended(ended(name, outcome));
        }
    });
    begun.join().expect("both runs began");
    let (noted, told) = bench.noted().await;
    let dotted = |line: &str| [line.to_owned(), ".".to_owned()];
    let expected = [
        "before a",
        "ready a",
        "after a",
        "before b",
        "ready b",
        "after b",
        "on_failure b",
    ];
    assert_eq!(noted, expected.map(dotted).concat());
    assert!(told.remarks.is_empty());
}

#[tokio::test]
async fn what_was_built_up_is_taken_down_though_it_failed_and_only_then() {
    let hooks = [
        ("before", &*format!("{SAY}; exit 1")),
        ("after", SAY),
        ("on_failure", SAY),
    ];
    let bench = Bench::within("1m", &hooks);
    // One that never came to its first hook.
    bench.herald().ended(ended("a", failed()));
    let failure = bench
        .herald()
        .before(run("b"), &Watch::default())
        .expect_err("it fails");
    assert_eq!(failure.cause, Cause::Hook);
    bench.herald().ended(ended("b", failed()));
    let (noted, told) = bench.noted().await;
    assert_eq!(
        noted,
        [
            "on_failure a",
            // Attempted again before it is given up.
            "before b",
            "before b",
            "before b",
            "after b",
            "on_failure b"
        ]
    );
    assert_eq!(told.hooks_failed[&Hook::Before], 1);
    assert_eq!(told.hooks_failed[&Hook::After], 0);
}

#[tokio::test]
async fn a_run_that_is_given_up_waits_for_no_hook() {
    let bench = Bench::new(&[("before", "echo begun >> $NOTE; exec sleep 600")]);
    let herald = bench.herald().clone();
    let watch = Watch::default();
    let watched = watch.clone();
    let waiting = std::thread::spawn(move || herald.before(run("a"), &watched));
    let note = bench.home.path().join("note");
    let begun = async {
        while lines(&note).is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, begun)
        .await
        .expect("the hook begins");
    watch.cancel("the window ended");
    let failure = waiting.join().expect("it returns").expect_err("given up");
    assert!(failure.message.contains("given up"), "{failure:?}");
    let (_, told) = bench.noted().await;
    assert_eq!(told.hooks_failed[&Hook::Before], 0, "no fault of the hook");
}

#[tokio::test]
async fn a_hook_that_fails_is_told_of_with_its_run() {
    let bench = Bench::new(&[("ready", "echo no; exit 7"), ("after", "sleep 600")]);
    bench.herald().ready(run("a"));
    bench.herald().ended(ended("a", Outcome::Done));
    let (_, told) = bench.noted().await;
    let remarks: Vec<(&str, &str)> = told
        .remarks
        .iter()
        .map(|(run, remark)| (run.as_str(), remark.as_str()))
        .collect();
    assert_eq!(
        remarks,
        [
            ("a", "the hook `ready` (`sh`) exited with 7; it said: no"),
            (
                "a",
                "the hook `after` (`sh`) was ended after 2s: make it faster, or raise \
                 maintenance.hooks.timeout; it said nothing"
            ),
        ]
    );
}

#[tokio::test]
async fn going_down_leaves_the_last_hooks_a_second_each() {
    let bench = Bench::new(&[
        ("ready", "trap '' TERM; sleep 600"),
        ("after", SAY),
        ("on_failure", &format!("{SAY}; sleep 600")),
    ]);
    bench.herald().ready(run("a"));
    bench.herald().ended(ended("a", failed()));
    bench.running.go_down();
    let gone = tokio::time::timeout(crate::maintenance::SHUTDOWN_WITHIN, bench.noted()).await;
    let (noted, told) = gone.expect("within the limit of a shutdown");
    assert_eq!(noted, ["after a", "on_failure a"]);
    let cut: Vec<_> = told.remarks.iter().map(|(_, remark)| remark).collect();
    assert!(
        cut.iter()
            .all(|remark| remark.contains("the service goes down")),
        "{cut:?}"
    );
    assert_eq!(cut.len(), 2);
}

/// More of them than wait otherwise: what `before` built up must be taken down.
#[tokio::test]
async fn after_is_called_of_every_run_however_many_end_at_once() {
    let bench = Bench::within("1m", &[("after", SAY)]);
    let runs: Vec<String> = (0..3 * QUEUED).map(|run| format!("run-{run}")).collect();
    for run in &runs {
        bench.herald().ended(ended(run, failed()));
    }
    let (noted, told) = bench.noted().await;
    let expected: Vec<_> = runs.iter().map(|run| format!("after {run}")).collect();
    assert_eq!(noted, expected);
    assert_eq!(told.hooks_failed[&Hook::After], 0);
}

/// What bounds the queue, since nothing in it is dropped.
#[tokio::test]
async fn no_run_begins_while_too_many_ends_wait_for_their_hooks() {
    let until = "until [ -e $NOTE.go ]; do sleep 0.01; done";
    let bench = Bench::within("1m", &[("after", &format!("{SAY}; {until}"))]);
    let run_of = |name: &'static str, watch: &Watch| {
        let (herald, watch) = (bench.herald().clone(), watch.clone());
        std::thread::spawn(move || herald.before(run(name), &watch))
    };
    for _ in 1..QUEUED {
        bench.herald().ended(ended("a", failed()));
    }
    let watch = Watch::default();
    let early = run_of("early", &watch).join().expect("it returns");
    early.expect("there is no hook to wait for");

    bench.herald().ended(ended("a", failed()));
    let given_up = run_of("given-up", &watch);
    watch.cancel("the window ended");
    let failure = given_up.join().expect("it returns").expect_err("it waited");
    assert_eq!(failure.cause, Cause::Hook);
    let late = run_of("late", &Watch::default());
    // What was given up has its place in the queue still.
    while bench.herald().queued.load(Ordering::Relaxed) < QUEUED + 2 {
        std::thread::yield_now();
    }
    let note = bench.home.path().join("note");
    Disk::default()
        .write_atomically(&note.with_file_name("note.go"), b"")
        .expect("it can be written");
    let late = late.join().expect("it returns");
    late.expect("they are done");
    assert_eq!(lines(&note).len(), QUEUED, "all of them came first");
    bench.noted().await;
}

#[tokio::test]
async fn a_hook_that_fails_once_has_not_failed() {
    let once = format!("{SAY}; [ $(wc -l < $NOTE) -ge 2 ]");
    let bench = Bench::within("1m", &[("after", &once)]);
    bench.herald().ended(ended("a", Outcome::Done));
    let (noted, told) = bench.noted().await;
    assert_eq!(noted, ["after a", "after a"]);
    assert_eq!(told.hooks_failed[&Hook::After], 0);
    assert_eq!(told.remarks, []);
}

/// It would say of a file that it is ready which is not any more, and keep `after` waiting.
#[tokio::test]
async fn ready_is_not_called_again_for_a_run_that_has_ended() {
    let bench = Bench::within("1m", &[("ready", &format!("{SAY}; exit 1"))]);
    bench.herald().ready(run("a"));
    bench.herald().ended(ended("a", Outcome::Done));
    let (noted, told) = bench.noted().await;
    assert_eq!(noted, ["ready a"]);
    assert_eq!(told.hooks_failed[&Hook::Ready], 1);
}

/// What the heartbeats are asked for, by how a run ended and what it made.
#[test]
fn a_heartbeat_is_of_success_and_the_other_of_none() {
    let sidecar = |held_throughout| SidecarReport {
        holder: Holder::by_touch_file(),
        held_throughout,
        reason: None,
    };
    let backup: BackupId = "20261122T030000Z".parse().expect("an id");
    let aborted = || Outcome::Aborted {
        phase: Phase::Leased,
        message: String::new(),
    };
    for (outcome, backup, sidecar, asked) in [
        (Outcome::Done, Some(backup.clone()), None, Some(Beat::Good)),
        (Outcome::Done, None, Some(sidecar(true)), Some(Beat::Good)),
        // Which cannot be.
        (Outcome::Done, None, Some(sidecar(false)), None),
        (Outcome::Done, None, None, None),
        (failed(), None, None, Some(Beat::Failure)),
        (failed(), None, Some(sidecar(true)), Some(Beat::Failure)),
        (aborted(), None, Some(sidecar(false)), Some(Beat::Failure)),
        (aborted(), Some(backup), None, Some(Beat::Failure)),
    ] {
        let mut ended = ended("a", outcome);
        ended.report.backup = backup;
        ended.report.sidecar = sidecar;
        let told = format!("{:?}", ended.report);
        let news = News::Ended {
            ended: Box::new(ended),
            troubled: false,
        };
        assert_eq!(Pulse::default().of(&news), asked, "{told}");
        let missed = Pulse::default().of(&News::Missed(window()));
        assert_eq!(missed, Some(Beat::Failure));
    }
}

fn window() -> Interval {
    let begins = Utc::now();
    Interval {
        begins,
        ends: begins + chrono::TimeDelta::minutes(5),
    }
}

#[test]
fn nobody_to_tell_and_nothing_to_call_is_no_thread() {
    let started = Herald::start(parts(
        "[maintenance]\nenabled = true\nwindow = \"03:00-03:05\"",
    ));
    assert!(started.expect("no thread is asked for").is_none());
}

fn published(id: &str) -> News {
    let mut ended = ended(id, Outcome::Done);
    ended.report.backup = Some("20261122T030000Z".parse().expect("an id"));
    News::Ended {
        ended: Box::new(ended),
        troubled: false,
    }
}

fn of_uploads(turn: Turn) -> News {
    News::OfUploads(Box::new(OfUploads {
        turn,
        text: "uploads".to_owned(),
        status: RemoteStatus::default(),
    }))
}

#[test]
fn a_heartbeat_is_owed_while_uploads_fail_and_paid_when_they_do_not() {
    use Turn::{Recovered, Replaced, Trouble};
    let missed = || {
        let at = "2026-11-22T03:00:00Z".parse().expect("a time");
        News::Missed(Interval {
            begins: at,
            ends: at,
        })
    };
    let failed = || News::Ended {
        ended: Box::new(ended("f", failed())),
        troubled: false,
    };
    let (good, failure) = (Some(Beat::Good), Some(Beat::Failure));
    for (what, news) in [
        (
            "no uploads",
            vec![(published("a"), good), (failed(), failure)],
        ),
        (
            "trouble, and its end after a run",
            vec![
                (published("a"), good),
                (of_uploads(Trouble), failure),
                (published("b"), None),
                (of_uploads(Trouble), failure),
                (published("c"), None),
                (of_uploads(Recovered), good),
                (published("d"), good),
            ],
        ),
        (
            "and its end before one",
            vec![
                (published("a"), good),
                (of_uploads(Trouble), failure),
                (of_uploads(Recovered), None),
                (published("b"), good),
            ],
        ),
        (
            "a run that failed since is not made good by an upload",
            vec![
                (of_uploads(Trouble), failure),
                (published("a"), None),
                (failed(), failure),
                (of_uploads(Recovered), None),
            ],
        ),
        (
            "nor a window that was missed",
            vec![
                (of_uploads(Trouble), failure),
                (published("a"), None),
                (missed(), failure),
                (of_uploads(Recovered), None),
            ],
        ),
        (
            "what was replaced is good",
            vec![(of_uploads(Replaced), None), (published("a"), good)],
        ),
    ] {
        let mut pulse = Pulse::default();
        for (nth, (news, expected)) in news.iter().enumerate() {
            assert_eq!(pulse.of(news), *expected, "{what}: {nth}");
        }
    }
}

#[tokio::test]
async fn who_uploads_keeps_no_herald_from_its_end() {
    let bench = Bench::new(&[("after", SAY)]);
    let teller = bench.herald().teller();
    let (noted, _) = bench.noted().await;
    assert!(noted.is_empty());
    teller.tell(OfUploads {
        turn: Turn::Trouble,
        text: "nobody hears".to_owned(),
        status: RemoteStatus::default(),
    });
}
