//! The real loop, the real gate and real threads with an engine whose every step does as
//! it is told. Limits are short; nothing sleeps to wait.

#![expect(
    clippy::disallowed_methods,
    reason = "a window is laid around the present"
)]

use std::collections::HashMap;
use std::sync::{Condvar, Mutex};

use super::*;
use crate::gate::Door;
use crate::schedule::Schedule;
use crate::status::Reader;

mod sidecar;
mod switch;

/// What a step of the fake engine does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Succeed,
    Busy,
    Fail,
    Panic,
    /// Until cancelled, then fail: a job that behaves.
    WaitForCancel,
    /// Until [`Script::let_go`], whatever it is told: a thread stuck in a dead disk.
    Hang,
    /// Succeed, while as many announces are held as may be.
    Crowd,
}

/// What the engine does and what has been seen.
#[derive(Debug, Default)]
struct Script {
    acts: Mutex<HashMap<Job, Vec<Act>>>,
    log: Mutex<Vec<String>>,
    let_go: Mutex<bool>,
    changed: Condvar,
    copied_when_open: Mutex<Option<bool>>,
    too_long: Mutex<bool>,
    broken: Mutex<bool>,
    break_driver: Mutex<bool>,
    /// Whether the database is on a rollback journal.
    rollback: Mutex<bool>,
}

impl Script {
    fn says(&self, job: Job, acts: &[Act]) {
        self.acts
            .lock()
            .expect("unpoisoned")
            .insert(job, acts.to_vec());
    }

    fn note(&self, what: impl Into<String>) {
        self.log.lock().expect("unpoisoned").push(what.into());
        self.changed.notify_all();
    }

    fn noted(&self) -> Vec<String> {
        self.log.lock().expect("unpoisoned").clone()
    }

    fn wait_for_note(&self, what: &str) {
        self.wait_for_notes(what, 1);
    }

    /// Pins are released on a thread of their own, beside what follows.
    fn wait_for_notes(&self, what: &str, times: usize) {
        let noted = |log: &[String]| log.iter().filter(|note| note.starts_with(what)).count();
        let log = self.log.lock().expect("unpoisoned");
        let log = self.changed.wait_while(log, |log| noted(log) < times);
        drop(log.expect("unpoisoned"));
    }

    fn let_go(&self) {
        *self.let_go.lock().expect("unpoisoned") = true;
        self.changed.notify_all();
    }

    fn act(&self, job: Job, watch: &Watch) -> Result<(), NotPinned> {
        let act = {
            let mut acts = self.acts.lock().expect("unpoisoned");
            match acts.get_mut(&job) {
                Some(acts) if acts.len() > 1 => acts.remove(0),
                Some(acts) => acts[0],
                None => Act::Succeed,
            }
        };
        let failed = |why: &str| NotPinned::Failed(Failure::other(&why));
        match act {
            Act::Succeed | Act::Crowd => Ok(()),
            Act::Busy => Err(NotPinned::Busy("in the way".into())),
            Act::Fail => Err(failed("it broke")),
            Act::Panic => panic!("as told"),
            Act::WaitForCancel => {
                let (say, heard) = std::sync::mpsc::channel();
                watch.on_cancel(move || _ = say.send(()));
                heard.recv().expect("the watch lives");
                Err(failed("cancelled"))
            }
            Act::Hang => {
                let let_go = self.let_go.lock().expect("unpoisoned");
                drop(
                    self.changed
                        .wait_while(let_go, |go| !*go)
                        .expect("unpoisoned"),
                );
                Err(failed("let go at last"))
            }
        }
    }
}

/// A part of a run that says when it is dropped and whether announces waited then.
#[derive(Debug)]
struct Part {
    name: &'static str,
    script: Arc<Script>,
    gate: Gate,
    touch_file: Option<std::path::PathBuf>,
}

impl Drop for Part {
    fn drop(&mut self) {
        let gate = if self.gate.is_open() {
            "open"
        } else {
            "closed"
        };
        let told = self.touch_file.as_ref().is_some_and(|path| path.exists());
        let told = if told { ", touch-file there" } else { "" };
        self.script
            .note(format!("{} dropped, gate {gate}{told}", self.name));
    }
}

#[derive(Debug)]
struct Fake {
    script: Arc<Script>,
    gate: Gate,
    pause: Pause,
    touch_file: Option<std::path::PathBuf>,
}

impl Fake {
    fn part(&self, name: &'static str) -> Part {
        Part {
            name,
            script: Arc::clone(&self.script),
            gate: self.gate.clone(),
            touch_file: self.touch_file.clone(),
        }
    }

    fn act(&self, job: Job, watch: &Watch) -> Result<(), Failure> {
        self.script
            .act(job, watch)
            .map_err(|refused| match refused {
                NotPinned::Busy(message) => Failure {
                    cause: Cause::Busy,
                    message,
                },
                NotPinned::Failed(failure) => failure,
            })
    }
}

impl Engine for Fake {
    type Draft = Part;
    type Pin = Part;
    type Copy = Part;

    fn prepare(&self, run: &Run, watch: &Watch) -> Result<(Pause, Option<Part>), Failure> {
        let draft = self.part("draft");
        if run.to_wal {
            self.script.note("reckoned with WAL");
        }
        self.act(Job::Prepare, watch)?;
        Ok((self.pause, Some(draft)))
    }

    fn describe(&self, _pin: &Part) -> Pinned {
        Pinned {
            file: Some(FILE),
            taken: DateTime::UNIX_EPOCH,
        }
    }

    fn broken(&self) -> Option<Failure> {
        let broken = *self.script.broken.lock().expect("unpoisoned");
        broken.then(|| Failure {
            cause: Cause::BrokenPin,
            message: "it moved".into(),
        })
    }

    fn pin(&self, run: &Run, _limit: Duration, watch: &Watch) -> Result<Part, NotPinned> {
        assert!(!self.gate.is_open(), "flushed with the gate open");
        assert_eq!(self.gate.in_flight(), 0, "flushed with announces in flight");
        let pin = self.part("pin");
        self.script.act(Job::Pin, watch)?;
        if run.to_wal {
            *self.script.rollback.lock().expect("unpoisoned") = false;
        }
        Ok(pin)
    }

    fn held_for_copy(&self, held: Duration, done: bool) {
        assert!(!held.is_zero() && self.gate.is_open());
        self.script.note(format!("learned, done: {done}"));
    }

    fn copy(&self, _: &Run, _: &Part, _: &Part, watch: &Watch) -> Result<Part, Failure> {
        *self.script.copied_when_open.lock().expect("unpoisoned") = Some(self.gate.is_open());
        self.script.note("copying");
        let crowds = [Act::Crowd];
        if self.script.acts.lock().expect("unpoisoned").get(&Job::Copy) == Some(&crowds.to_vec()) {
            hold(&self.gate, Door::Udp, MOST.udp);
        }
        self.act(Job::Copy, watch)?;
        Ok(self.part("copy"))
    }

    fn release(&self, pin: Part) {
        self.script.note("releasing");
        drop(pin);
    }

    fn finish(
        &self,
        _run: &Run,
        draft: Part,
        copy: Part,
        _pauses: Pauses,
        watch: &Watch,
    ) -> Result<Published, Failure> {
        assert!(self.gate.is_open(), "announces wait for the verification");
        self.act(Job::Finish, watch)?;
        drop((draft, copy));
        let backup = BackupId::try_from("20261122T030000Z".to_owned()).expect("an id");
        Ok(Published {
            backup,
            made: None,
            warnings: vec!["worth a look".into()],
        })
    }

    fn end_pin(&self, _within: Duration) -> bool {
        self.script.note("pin ended from outside");
        true
    }

    fn pinned_too_long(&self) -> Option<Failure> {
        let too_long = *self.script.too_long.lock().expect("unpoisoned");
        too_long.then(|| Failure {
            cause: Cause::WalLimit,
            message: "it grew".into(),
        })
    }

    fn journal_mode(&self) -> String {
        assert!(
            !*self.script.break_driver.lock().expect("unpoisoned"),
            "as told"
        );
        if *self.script.rollback.lock().expect("unpoisoned") {
            "delete".into()
        } else {
            "wal".into()
        }
    }

    fn can_switch(&self) -> Result<(), NoSwitch> {
        Ok(())
    }
}

const FILE: PinnedFile = PinnedFile {
    device: 1,
    inode: 2,
    page_size: 4096,
    page_count: 3,
    bytes: 12_288,
    modified: 1_795_000_000_123_456_789,
};

const MOST: PerDoor = PerDoor { udp: 8, http: 4 };

/// So many requests wait at this door.
fn hold(gate: &Gate, door: Door, requests: u64) {
    for _ in 0..requests {
        gate.counters(door).hold();
    }
}

/// A driver under test.
struct Bench {
    script: Arc<Script>,
    gate: Gate,
    commands: mpsc::Sender<Command>,
    status: Reader,
    stop: Option<oneshot::Sender<()>>,
    driver: JoinHandle<()>,
    touch_file: std::path::PathBuf,
    directory: tempfile::TempDir,
}

fn rules() -> Rules {
    Rules {
        // Not due while a test runs, unless it runs on a leap day at dawn.
        schedule: Schedule::crontab("0 5 29 2 *", Duration::from_secs(60)).expect("a schedule"),
        catch_up: false,
        hold_for: Duration::from_millis(1600),
        flush_within: Duration::from_millis(800),
        attempts: 3,
        retry_after: Duration::from_millis(1),
        grace: Duration::from_millis(400),
        finish_within: Duration::from_secs(60),
        lease: None,
    }
}

impl Bench {
    fn new(pause: Pause) -> Self {
        Self::with(pause, rules())
    }

    fn with(pause: Pause, rules: Rules) -> Self {
        Self::begun(pause, rules, |_, _| {})
    }

    /// With an operator's run that has begun before the first look at the schedule, and
    /// whose copy does as told; later copies succeed.
    fn with_operator_run(pause: Pause, rules: Rules, copy: Act) -> Self {
        Self::begun(pause, rules, |driver, script| {
            script.says(Job::Copy, &[copy, Act::Succeed]);
            let lasts = Duration::from_secs(60);
            driver.begin(RunId::new(Utc::now()), Trigger::Operator, None, lasts);
        })
    }

    fn begun(pause: Pause, rules: Rules, begin: impl FnOnce(&mut Driver<Fake>, &Script)) -> Self {
        let directory = crate::catalogue::testing::memory_dir();
        let path = directory.path().join("ready.json");
        let (gate, keeper) = Gate::new().expect("a thread");
        let script = Arc::new(Script::default());
        let engine = Fake {
            script: Arc::clone(&script),
            gate: gate.clone(),
            pause,
            touch_file: Some(path.clone()),
        };
        let parts = Parts {
            keeper,
            rules,
            hold_at_most: MOST,
            served: None,
            touch_file: Some(TouchFile::new(path.clone(), crate::disk::Disk::default())),
            service: "a service 1.0".into(),
            database: "db.sqlite3".into(),
        };
        let (mut driver, Handles { commands, status }) = Driver::new(engine, parts);
        begin(&mut driver, &script);
        let (stop, stopped) = oneshot::channel::<()>();
        let driver = tokio::spawn(driver.run(async { drop(stopped.await) }));
        let stop = Some(stop);
        Self {
            script,
            gate,
            commands,
            status,
            stop,
            driver,
            touch_file: path,
            directory,
        }
    }

    /// Starts a run, if need be after the wait that is asked for.
    async fn ask(&self) -> Result<RunId, Refused> {
        loop {
            match self.ask_once().await {
                Err(Refused::TooSoon { left, .. }) => tokio::time::sleep(left).await,
                answer => return answer,
            }
        }
    }

    async fn ask_once(&self) -> Result<RunId, Refused> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(Command::Start { reply })
            .await
            .expect("the driver lives");
        answer.await.expect("the driver answers")
    }

    async fn tell<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T {
        let (reply, answer) = oneshot::channel();
        let asked = self.commands.send(command(reply)).await;
        asked.expect("the driver lives");
        answer.await.expect("the driver answers")
    }

    /// Starts a run and waits for its end.
    async fn run(&mut self) -> RunReport {
        let id = self.ask().await.expect("nothing is in the way");
        self.report(id).await
    }

    async fn report(&mut self, id: RunId) -> RunReport {
        let ended = |status: &Status| status.runs.first().is_some_and(|report| report.id == id);
        let mut status = self.status.wait_for(ended).await.expect("the driver lives");
        status.runs.remove(0)
    }

    async fn stop(mut self) -> Arc<Script> {
        drop(self.stop.take());
        self.driver.await.expect("the driver ends without a panic");
        assert!(self.gate.is_open());
        assert!(!self.touch_file.exists());
        self.script
    }
}

const FLOWING: Pause = Pause::UntilPinned(None);
const HELD: Pause = Pause::UntilCopied(Duration::from_millis(1));

fn failed_in(report: &RunReport) -> Option<(Phase, Cause)> {
    match report.outcome {
        Outcome::Failed { phase, cause, .. } => Some((phase, cause)),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn announces_flow_while_the_file_is_copied_if_they_may() {
    let mut bench = Bench::new(FLOWING);
    let report = bench.run().await;
    assert_eq!(report.outcome, Outcome::Done);
    assert!(report.pause_ms > 0.0);
    assert_eq!(report.warnings, ["worth a look"]);
    let script = bench.stop().await;
    assert_eq!(
        *script.copied_when_open.lock().expect("unpoisoned"),
        Some(true)
    );
    script.wait_for_note("pin dropped, gate open");
    let noted = script.noted();
    assert_eq!(noted[0], "copying");
    assert!(noted.contains(&"releasing".to_owned()), "{noted:?}");
    assert!(
        !noted.iter().any(|note| note.contains("touch-file there")),
        "{noted:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn announces_wait_until_the_file_is_copied_if_they_must() {
    let mut bench = Bench::new(HELD);
    let report = bench.run().await;
    assert_eq!(report.outcome, Outcome::Done);
    let script = bench.stop().await;
    assert_eq!(
        *script.copied_when_open.lock().expect("unpoisoned"),
        Some(false)
    );
    assert_eq!(
        script.noted(),
        [
            "copying",
            "pin dropped, gate closed",
            "draft dropped, gate open",
            "copy dropped, gate open"
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_would_not_fit_never_closes_the_gate() {
    let mut bench = Bench::new(Pause::UntilCopied(Duration::from_secs(90)));
    let report = bench.run().await;
    assert!(
        matches!(report.outcome, Outcome::WouldNotFit { .. }),
        "{report:?}"
    );
    assert_eq!(report.pause_limit_ms, None);
    assert_eq!((report.pause_ms, report.longest_pause_ms), (0.0, 0.0));
    bench.stop().await;
}

/// Where they flow it would be made in vain all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_beside_announces_that_would_not_fit_is_not_begun() {
    let copy = Duration::from_secs(100_000);
    let mut bench = Bench::new(Pause::UntilPinned(Some(copy)));
    let report = bench.run().await;
    let Outcome::WouldNotFit { message } = &report.outcome else {
        panic!("{report:?}");
    };
    assert!(message.contains("about 100000s"), "{message}");
    assert!(message.contains("lengthen the window"), "{message}");
    assert_eq!((report.pause_ms, report.longest_pause_ms), (0.0, 0.0));
    let noted = bench.stop().await.noted();
    assert!(!noted.contains(&"copying".to_owned()), "{noted:?}");
}

/// Every step fails and panics, with announces flowing and held: the gate is open, nothing
/// is left over, the reason is told and the next run succeeds.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_or_panics_leaves_nothing_behind() {
    let steps = [
        (Job::Prepare, Phase::Preparing),
        (Job::Pin, Phase::Flushing),
        (Job::Copy, Phase::Copying),
        (Job::Finish, Phase::Finishing),
    ];
    for pause in [FLOWING, HELD] {
        for (job, phase) in steps {
            for (act, cause) in [(Act::Fail, Cause::Other), (Act::Panic, Cause::Panicked)] {
                let mut bench = Bench::new(pause);
                bench.script.says(job, &[act, Act::Succeed]);
                let report = bench.run().await;
                assert_eq!(failed_in(&report), Some((phase, cause)), "{report:?}");
                assert!(bench.gate.is_open(), "{job:?} {act:?}");
                assert_eq!(bench.run().await.outcome, Outcome::Done, "{job:?} {act:?}");
                let script = bench.stop().await;
                let drops = |name: &str| {
                    script
                        .noted()
                        .iter()
                        .filter(|note| note.starts_with(name))
                        .count()
                };
                assert_eq!(drops("draft"), 2, "{job:?} {act:?}: {:?}", script.noted());
                let pins = if job == Job::Prepare { 1 } else { 2 };
                script.wait_for_notes("pin dropped", pins);
                assert_eq!(drops("pin"), pins);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_database_is_tried_again_and_the_draft_is_kept() {
    let mut bench = Bench::new(FLOWING);
    bench
        .script
        .says(Job::Pin, &[Act::Busy, Act::Busy, Act::Succeed]);
    let report = bench.run().await;
    assert_eq!(report.outcome, Outcome::Done);
    assert!(
        report.longest_pause_ms < report.pause_ms,
        "three closures: {report:?}"
    );
    let limit = rules().flushed_within();
    assert_eq!(report.pause_limit_ms, Some(milliseconds(limit)));
    let drafts = bench
        .stop()
        .await
        .noted()
        .iter()
        .filter(|n| n.starts_with("draft"))
        .count();
    assert_eq!(drafts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_stays_busy_ends_the_run() {
    let mut bench = Bench::new(FLOWING);
    bench.script.says(Job::Pin, &[Act::Busy]);
    let report = bench.run().await;
    assert_eq!(failed_in(&report), Some((Phase::Flushing, Cause::Busy)));
    bench.stop().await;
}

/// The order of invariant 2, seen from the pin: it is dropped while announces still wait
/// and after nobody is told any more that the file may be copied.
#[tokio::test(flavor = "multi_thread")]
async fn at_the_deadline_the_signal_goes_then_the_pin_then_the_gate_opens() {
    let mut bench = Bench::new(HELD);
    bench.script.says(Job::Copy, &[Act::WaitForCancel]);
    let report = bench.run().await;
    assert!(
        matches!(
            report.outcome,
            Outcome::Deadline {
                phase: Phase::Copying,
                ..
            }
        ),
        "{report:?}"
    );
    let limit = milliseconds(rules().held_at_most());
    assert_eq!(report.pause_limit_ms, Some(limit));
    assert!(report.longest_pause_ms >= limit, "which an alert asks for");
    assert!(report.longest_pause_ms < 1600.0, "{report:?}");
    assert_eq!(bench.gate.forced(), 0);
    let noted = bench.stop().await.noted();
    for note in ["pin dropped, gate closed", "learned, done: false"] {
        assert!(noted.contains(&note.to_owned()), "{note}: {noted:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_hangs_does_not_keep_the_gate_closed() {
    let mut bench = Bench::new(HELD);
    bench.script.says(Job::Copy, &[Act::Hang, Act::Succeed]);
    let report = bench.run().await;
    assert!(
        matches!(report.outcome, Outcome::Deadline { .. }),
        "{report:?}"
    );
    assert!(bench.gate.is_open());
    assert!(report.longest_pause_ms < 2000.0, "{report:?}");

    let refused = bench.ask().await.expect_err("two copies at once");
    assert_eq!(refused, Refused::Stuck { run: report.id });
    let noted = bench.script.noted();
    assert!(
        noted.contains(&"pin ended from outside".to_owned()),
        "{noted:?}"
    );

    bench.script.let_go();
    bench.script.wait_for_note("pin dropped, gate open");
    // What it hands in is taken in some later round; until then a run is refused.
    let again = loop {
        match bench.ask().await {
            Ok(id) => break id,
            Err(refused) => assert!(matches!(refused, Refused::Stuck { .. }), "{refused}"),
        }
    };
    assert_eq!(bench.report(again).await.outcome, Outcome::Done);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_flushed_before_what_was_in_flight_is_done() {
    let mut bench = Bench::new(FLOWING);
    let gate = bench.gate.clone();
    let pass = gate.try_enter().expect("open");
    let id = bench.ask().await.expect("nothing is in the way");
    let draining = |status: &Status| status.state == Phase::Draining;
    bench
        .status
        .wait_for(draining)
        .await
        .expect("the driver lives");
    assert!(gate.try_enter().is_none());
    drop(pass);
    // The fake engine asserts that nothing is in flight when it flushes.
    assert_eq!(bench.report(id).await.outcome, Outcome::Done);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn announces_that_never_finish_end_the_run_not_the_service() {
    let mut bench = Bench::new(FLOWING);
    let gate = bench.gate.clone();
    let _stuck = gate.try_enter().expect("open");
    let report = bench.run().await;
    assert_eq!(failed_in(&report), Some((Phase::Draining, Cause::Busy)));
    assert!(gate.try_enter().is_some());
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_grows_past_its_limit_ends_the_run() {
    let mut bench = Bench::new(FLOWING);
    bench.script.says(Job::Copy, &[Act::WaitForCancel]);
    let id = bench.ask().await.expect("nothing is in the way");
    bench
        .status
        .wait_for(|status| status.ready)
        .await
        .expect("the driver lives");
    assert!(bench.touch_file.exists());
    *bench.script.too_long.lock().expect("unpoisoned") = true;
    let report = bench.report(id).await;
    assert_eq!(failed_in(&report), Some((Phase::Copying, Cause::WalLimit)));
    bench.stop().await;
}

/// It cannot be made whole again under the pin.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_cannot_make_its_commits_durable_ends_the_run() {
    let mut bench = Bench::new(FLOWING);
    bench
        .script
        .says(Job::Copy, &[Act::WaitForCancel, Act::Succeed]);
    let give_way = || Command::GiveWay {
        why: "a disk that fails".into(),
    };
    // Without a run there is nothing to give up.
    bench.commands.send(give_way()).await.expect("it lives");
    let id = bench.ask().await.expect("nothing is in the way");
    let ready = bench.status.wait_for(|status| status.ready).await;
    ready.expect("the driver lives");
    bench.commands.send(give_way()).await.expect("it lives");
    let report = bench.report(id).await;
    assert_eq!(failed_in(&report), Some((Phase::Copying, Cause::Database)));
    let Outcome::Failed { message, .. } = &report.outcome else {
        panic!("{report:?}");
    };
    assert!(message.contains("a disk that fails"), "{message}");
    assert_eq!(bench.run().await.outcome, Outcome::Done);
    bench.stop().await;
}

/// Either door, seen full or seen to have turned somebody away.
#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_is_full_ends_a_run_that_holds() {
    for (door, most, name) in [
        (Door::Udp, MOST.udp, "udp"),
        (Door::Http, MOST.http, "http"),
    ] {
        for turns_away in [false, true] {
            let mut bench = Bench::with(
                HELD,
                // The limit is not to come before.
                Rules {
                    hold_for: Duration::from_secs(60),
                    ..rules()
                },
            );
            // Of an earlier closure.
            bench.gate.counters(door).turn_away();
            bench.script.says(Job::Copy, &[Act::WaitForCancel]);
            let id = bench.ask().await.expect("nothing is in the way");
            let ready = bench.status.wait_for(|status| status.ready).await;
            assert!(ready.is_some(), "what was turned away before is no reason");
            hold(&bench.gate, door, most - 1);
            if turns_away {
                bench.gate.counters(door).turn_away();
            } else {
                hold(&bench.gate, door, 1);
            }
            let report = bench.report(id).await;
            assert_eq!(failed_in(&report), Some((Phase::Copying, Cause::HeldLimit)));
            let message = report.outcome.message();
            assert!(
                message.contains(&format!("gate.hold_at_most.{name}")),
                "{message}"
            );
            assert!(bench.gate.is_open());
            let noted = bench.stop().await.noted();
            assert!(
                noted.contains(&"pin dropped, gate closed".to_owned()),
                "{noted:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_complete_when_a_door_is_full_is_kept() {
    let mut bench = Bench::new(HELD);
    bench.script.says(Job::Copy, &[Act::Crowd]);
    assert_eq!(bench.run().await.outcome, Outcome::Done);
    bench.stop().await;
}

/// What is left of a backlog while the gate is open is nobody's pause.
#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_is_full_while_announces_flow_ends_nothing() {
    let mut bench = Bench::new(FLOWING);
    bench.script.says(Job::Copy, &[Act::Crowd]);
    assert_eq!(bench.run().await.outcome, Outcome::Done);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn announces_flow_for_as_long_as_they_were_held_before_they_are_again() {
    let mut bench = Bench::new(HELD);
    // Until the limit.
    bench
        .script
        .says(Job::Copy, &[Act::WaitForCancel, Act::Succeed]);
    let report = bench.run().await;
    let Err(Refused::TooSoon { held, left }) = bench.ask_once().await else {
        panic!("run after run would keep announces waiting")
    };
    assert!(
        (milliseconds(held) - report.longest_pause_ms).abs() < 1.0,
        "{held:?} {report:?}"
    );
    assert!(
        held >= Duration::from_secs(1) && left <= held,
        "{held:?} {left:?}"
    );
    // As it was told.
    tokio::time::sleep(left).await;
    let again = bench
        .ask_once()
        .await
        .expect("they have flowed for long enough");
    assert_eq!(bench.report(again).await.outcome, Outcome::Done);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_do_not_hold_announces_may_follow_each_other() {
    let mut bench = Bench::new(FLOWING);
    for _ in 0..5 {
        let run = bench.ask_once().await.expect("nothing is in the way");
        assert_eq!(bench.report(run).await.outcome, Outcome::Done);
    }
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_run_at_a_time() {
    let mut bench = Bench::new(FLOWING);
    bench.script.says(Job::Copy, &[Act::WaitForCancel]);
    let run = bench.ask().await.expect("nothing is in the way");
    bench
        .status
        .wait_for(|status| status.ready)
        .await
        .expect("the driver lives");
    let refused = bench.ask().await.expect_err("one at a time");
    assert_eq!(
        refused,
        Refused::Busy {
            run,
            phase: Phase::Copying
        }
    );
    bench.stop().await;
}

/// Stopped in every phase: nothing is left over and the gate is open.
#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_calls_the_run_off_in_any_phase() {
    for pause in [FLOWING, HELD] {
        for (job, phase) in [
            (Job::Prepare, Phase::Preparing),
            (Job::Pin, Phase::Flushing),
            (Job::Copy, Phase::Copying),
            (Job::Finish, Phase::Finishing),
        ] {
            let mut bench = Bench::new(pause);
            bench.script.says(job, &[Act::WaitForCancel]);
            bench.ask().await.expect("nothing is in the way");
            bench
                .status
                .wait_for(|status| status.state == phase)
                .await
                .expect("the driver lives");
            let noted = bench.stop().await.noted();
            let draft_dropped = noted.iter().any(|note| note.starts_with("draft dropped"));
            assert!(draft_dropped, "{phase}: {noted:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_breaks_leaves_the_gate_open() {
    let mut bench = Bench::with(
        HELD,
        // The limit is not to come before the break.
        Rules {
            hold_for: Duration::from_secs(60),
            ..rules()
        },
    );
    bench.script.says(Job::Copy, &[Act::WaitForCancel]);
    bench.ask().await.expect("nothing is in the way");
    bench
        .status
        .wait_for(|status| status.ready)
        .await
        .expect("the driver lives");
    assert!(!bench.gate.is_open());
    *bench.script.break_driver.lock().expect("unpoisoned") = true;
    assert!((&mut bench.driver).await.expect_err("it panics").is_panic());
    assert!(bench.gate.is_open());
    assert!(!bench.touch_file.exists());
    let status = bench.status.now();
    assert!(!status.alive && !status.ready, "{status:?}");
    let cause = failed_in(&status.runs[0]).map(|(_, cause)| cause);
    assert_eq!(cause, Some(Cause::Panicked));
    assert!(
        bench
            .script
            .noted()
            .contains(&"pin ended from outside".to_owned())
    );
}

/// A schedule whose window the present lies in.
fn due() -> Schedule {
    let now = Utc::now();
    let minute = chrono::Duration::minutes(1);
    let hours = |at: DateTime<Utc>| at.format("%H:%M").to_string();
    let window = format!("{}-{}", hours(now - minute), hours(now + minute * 3));
    Schedule::daily(&window).expect("a schedule")
}

/// A run that ends within a window that is due is seen off before the window's begins: its
/// pin ends before the gate opens, and its failure is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_ends_in_a_window_that_is_due_is_reported_first() {
    for (act, copies) in [(Act::Fail, 2), (Act::Hang, 1)] {
        let schedule = due();
        let mut bench = Bench::with_operator_run(
            HELD,
            Rules {
                schedule,
                ..rules()
            },
            act,
        );
        let two = |status: &Status| status.runs.len() == 2;
        let status = bench.status.wait_for(two).await.expect("the driver lives");
        let [second, first] = &status.runs[..] else {
            panic!("{status:?}")
        };
        assert_eq!(
            (first.trigger, second.trigger),
            (Trigger::Operator, Trigger::Schedule)
        );
        assert_ne!(first.outcome, Outcome::Done);
        let noted = bench.script.noted();
        if act == Act::Fail {
            assert_eq!(second.outcome, Outcome::Done, "{second:?}");
            let gone = noted.iter().find(|note| note.starts_with("pin dropped"));
            assert_eq!(
                gone.map(String::as_str),
                Some("pin dropped, gate closed"),
                "{noted:?}"
            );
        } else {
            // The thread of the first still hangs: no second copy beside it.
            assert!(failed_in(second).is_some(), "{second:?}");
        }
        assert_eq!(
            noted.iter().filter(|note| *note == "copying").count(),
            copies
        );
        bench.script.let_go();
        bench.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduled_window_begins_by_itself_and_once() {
    let schedule = due();
    let mut bench = Bench::with(
        FLOWING,
        Rules {
            schedule,
            ..rules()
        },
    );
    let status = bench
        .status
        .wait_for(|status| !status.runs.is_empty())
        .await;
    let first = status.expect("the driver lives").runs.remove(0);
    assert_eq!(
        (first.trigger, &first.outcome),
        (Trigger::Schedule, &Outcome::Done)
    );
    let second = bench.run().await;
    assert_eq!(second.trigger, Trigger::Operator);
    let runs = bench.status.now().runs;
    assert_eq!(runs.len(), 2, "{runs:?}");
    bench.stop().await;
}
