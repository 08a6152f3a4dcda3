//! A real database, the real driver, and what two sidecars do to them: a verdict that a file
//! held is checked by hash.

use std::path::Path;
use std::process::Command as Process;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::config::TakenBy;
use crate::driver;
use crate::gate::Keeper;
use crate::lease::{Finished, Granted, Holder, Nonce, Refused, Terms, Verdict};
use crate::status::{CopyOf, Reader, Status};
use crate::window::Phase;

/// What happens between ready and the end of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Claim(usize),
    Renew(usize),
    /// The service writes; on a rollback journal it cannot.
    Write,
    /// Another process writes to the file as if nobody else had it.
    Trample,
    /// Once more, if it has ended.
    Finish(usize),
    /// The tracker is stopped and another one started.
    Restart,
}

/// The driver on a real database, and a way to stop it.
struct Tracker {
    commands: mpsc::Sender<Command>,
    status: Reader,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<()>,
}

impl Bench {
    fn for_sidecars(journal: &str) -> Self {
        let mut bench = Self::new(journal, "");
        bench.settings.backup.taken_by = TakenBy::Sidecar;
        bench
    }

    fn track(&self, ttl: Duration) -> Tracker {
        let (_, keeper): (_, Keeper) = Gate::new().expect("a thread");
        let engine = self.engine(&Disk::default()).expect("starts");
        let parts = Parts {
            keeper,
            rules: Rules {
                schedule: Schedule::crontab("0 5 29 2 *", Duration::from_secs(600)).expect("valid"),
                catch_up: false,
                hold_for: Duration::from_secs(60),
                flush_within: Duration::from_secs(10),
                // What the run before left to do reads for a while.
                attempts: 200,
                retry_after: Duration::from_millis(20),
                grace: Duration::from_millis(200),
                finish_within: Duration::from_secs(60),
                lease: Some(Terms {
                    ttl,
                    claim_within: Duration::from_secs(60),
                    claim_within_held: Duration::from_secs(60),
                }),
            },
            hold_at_most: PerDoor { udp: 1, http: 1 },
            served: None,
            touch_file: None,
            service: "a service 1.0".into(),
            database: self.database(),
        };
        let (driver, Handles { commands, status }) = Driver::new(engine, parts);
        let (stop, stopped) = oneshot::channel::<()>();
        let ended = tokio::spawn(driver.run(async { drop(stopped.await) }));
        Tracker {
            commands,
            status,
            stop,
            ended,
        }
    }
}

impl Tracker {
    async fn tell<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> T {
        let (reply, answer) = oneshot::channel();
        let asked = self.commands.send(command(reply)).await;
        asked.expect("the driver lives");
        answer.await.expect("it answers")
    }

    async fn offered(&mut self) -> RunId {
        let run = loop {
            let begun: Result<RunId, driver::Refused> =
                self.tell(|reply| Command::Start { reply }).await;
            match begun {
                // As it is told.
                Err(driver::Refused::TooSoon { left, .. }) => tokio::time::sleep(left).await,
                begun => break begun.expect("nothing is in the way"),
            }
        };
        let there = |status: &Status| {
            status.state == Phase::Offered || status.runs.first().is_some_and(|it| it.id == run)
        };
        let status = self.status.wait_for(there).await.expect("the driver lives");
        assert_eq!(status.state, Phase::Offered, "{:?}", status.runs);
        run
    }

    async fn claim(&self, run: &RunId, who: usize) -> Result<Granted, Refused> {
        let (run, nonce) = (run.clone(), nonce(who));
        let holder = Holder::try_from(format!("sidecar {who}")).expect("a name");
        self.tell(|reply| Command::Claim {
            run,
            holder,
            nonce,
            reply,
        })
        .await
    }

    async fn renew(&self, run: &RunId, who: usize) -> Result<Granted, Refused> {
        let (run, nonce) = (run.clone(), nonce(who));
        self.tell(|reply| Command::Renew { run, nonce, reply })
            .await
    }

    async fn finish(&self, run: &RunId, who: usize) -> Result<Verdict, Refused> {
        let (run, nonce) = (run.clone(), nonce(who));
        let how = Finished::Ok;
        self.tell(|reply| Command::Finish {
            run,
            nonce,
            how,
            reply,
        })
        .await
    }

    async fn stop(self) {
        drop(self.stop);
        self.ended.await.expect("no panic");
    }
}

fn nonce(who: usize) -> Nonce {
    Nonce::try_from(who.to_string().repeat(16)).expect("a nonce")
}

/// By another process: one that closed a descriptor here would take SQLite's locks along.
fn hash(database: &Path) -> Vec<u8> {
    let hashed = Process::new("sha256sum").arg(database).output();
    let hashed = hashed.expect("coreutils");
    assert!(hashed.status.success(), "{hashed:?}");
    hashed.stdout
}

/// By another process, in the middle of the first page, where no table is.
fn trample(database: &Path) {
    let tool = Process::new("dd")
        .args([
            "bs=1",
            "count=1",
            "seek=1000",
            "conv=notrunc",
            "if=/dev/urandom",
        ])
        .arg(format!("of={}", database.display()))
        .output();
    assert!(tool.expect("coreutils").status.success());
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_usize..2).prop_map(Step::Claim),
        2 => (0_usize..2).prop_map(Step::Renew),
        3 => Just(Step::Write),
        1 => Just(Step::Trample),
        3 => (0_usize..2).prop_map(Step::Finish),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 4..14)
}

/// What is known of one run, beside the tracker.
struct Seen {
    run: RunId,
    at_ready: Vec<u8>,
    holder: Option<usize>,
    trampled: bool,
    end: End,
}

/// How a run ended, for its sidecar.
#[derive(Debug, PartialEq, Eq)]
enum End {
    NotYet,
    /// Nobody had the lease.
    Unclaimed,
    Told(Verdict),
    /// The tracker that knew is gone.
    Forgotten,
}

/// A tracker, its service, its run, and the verdicts so far: that it held, that it did not.
struct Night<'b> {
    bench: &'b Bench,
    service: Connection,
    tracker: Tracker,
    seen: Seen,
    verdicts: [usize; 2],
}

impl<'b> Night<'b> {
    async fn begin(bench: &'b Bench) -> Self {
        let service = bench.writer();
        service.busy_timeout(Duration::from_millis(1)).expect("set");
        let mut tracker = bench.track(Duration::from_secs(120));
        let seen = Seen::of(&mut tracker, bench).await;
        Self {
            bench,
            service,
            tracker,
            seen,
            verdicts: [0; 2],
        }
    }

    async fn step(&mut self, step: Step) {
        let over = self.seen.end != End::NotYet;
        if over && !matches!(step, Step::Finish(_)) {
            // There is always a run to do something to.
            self.seen = Seen::of(&mut self.tracker, self.bench).await;
        }
        match step {
            Step::Claim(who) => self.claim(who).await,
            Step::Renew(who) => {
                let renewed = self.tracker.renew(&self.seen.run, who).await;
                let holds = self.seen.holder == Some(who);
                assert_eq!(renewed.is_ok(), holds, "{renewed:?}");
            }
            Step::Write => self.write(),
            Step::Trample => self.trample().await,
            Step::Finish(who) if over => self.finish_again(who).await,
            Step::Finish(who) => self.finish(who).await,
            Step::Restart => self.restart().await,
        }
    }

    async fn claim(&mut self, who: usize) {
        let claimed = self.tracker.claim(&self.seen.run, who).await;
        match (claimed, self.seen.holder) {
            (Ok(_), None) => self.seen.holder = Some(who),
            (Ok(_), Some(holder)) => assert_eq!(holder, who, "two holders"),
            (Err(Refused::Taken { .. }), Some(holder)) => assert_ne!(holder, who),
            other => panic!("{other:?}"),
        }
    }

    fn write(&self) {
        let row = "INSERT INTO torrents (info_hash) VALUES (hex(randomblob(20)))";
        let written = self.service.execute(row, []);
        let ready = self.tracker.status.ready().expect("a run is on");
        let held = ready.copy == CopyOf::PausedDatabase;
        assert_eq!(written.is_err(), held, "{written:?} under {:?}", ready.copy);
    }

    /// The tracker notices by itself, and says so to whom it concerns.
    async fn trample(&mut self) {
        trample(&self.bench.database());
        self.seen.trampled = true;
        let id = self.seen.run.clone();
        let over = |status: &Status| status.runs.first().is_some_and(|report| report.id == id);
        let status = self.tracker.status.wait_for(over).await.expect("it lives");
        let outcome = &status.runs[0].outcome;
        let cause = Cause::BrokenPin;
        assert!(
            matches!(outcome, Outcome::Failed { cause: found, .. } if *found == cause),
            "{outcome:?}"
        );
        self.seen.end = End::Unclaimed;
        if let Some(who) = self.seen.holder {
            self.finish(who).await;
        }
    }

    async fn finish(&mut self, who: usize) {
        let before = hash(&self.bench.database());
        let finished = self.tracker.finish(&self.seen.run, who).await;
        if self.seen.holder != Some(who) {
            assert_eq!(finished, Err(Refused::NotHolder));
            return;
        }
        let verdict = finished.expect("it has the lease, or had it");
        assert_eq!(verdict.held_throughout, !self.seen.trampled, "{verdict:?}");
        if verdict.held_throughout {
            assert_eq!(self.seen.at_ready, before, "a byte changed");
        }
        self.verdicts[usize::from(!verdict.held_throughout)] += 1;
        self.seen.end = End::Told(verdict);
    }

    async fn finish_again(&self, who: usize) {
        let finished = self.tracker.finish(&self.seen.run, who).await;
        match &self.seen.end {
            End::Told(verdict) if self.seen.holder == Some(who) => {
                assert_eq!(finished.as_ref(), Ok(verdict), "the same answer");
            }
            _ => assert_eq!(finished, Err(Refused::StaleRun)),
        }
    }

    async fn restart(&mut self) {
        let next = self.bench.track(Duration::from_secs(120));
        std::mem::replace(&mut self.tracker, next).stop().await;
        let run = &self.seen.run;
        for refused in [
            self.tracker.claim(run, 0).await.map(drop),
            self.tracker.renew(run, 0).await.map(drop),
            self.tracker.finish(run, 0).await.map(drop),
        ] {
            assert_eq!(refused, Err(Refused::StaleRun), "of an earlier life");
        }
        self.seen.end = End::Forgotten;
    }
}

impl Seen {
    async fn of(tracker: &mut Tracker, bench: &Bench) -> Self {
        Self {
            run: tracker.offered().await,
            at_ready: hash(&bench.database()),
            holder: None,
            trampled: false,
            end: End::NotYet,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_that_the_file_held_is_true() {
    let mut runner = TestRunner::deterministic();
    let mut verdicts = [0; 2];
    for journal in ["wal", "delete"] {
        for _ in 0..30 {
            let steps = steps().new_tree(&mut runner).expect("steps").current();
            println!("{journal}: {steps:?}");
            let bench = Bench::for_sidecars(journal);
            let mut night = Night::begin(&bench).await;
            for step in steps {
                night.step(step).await;
            }
            verdicts[0] += night.verdicts[0];
            verdicts[1] += night.verdicts[1];
            night.tracker.stop().await;
            // Nothing is left that would keep the service from writing.
            bench.write();
        }
    }
    let [held, broken] = verdicts;
    println!("{held} verdicts that it held, {broken} that it did not");
    assert!(held >= 15 && broken >= 5, "{verdicts:?}");
}

/// A sidecar that was killed: its lease runs out, the service writes again, and the next run
/// is as good as any.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_runs_out_leaves_the_database_to_its_service() {
    for journal in ["wal", "delete"] {
        let bench = Bench::for_sidecars(journal);
        let mut tracker = bench.track(Duration::from_millis(400));
        let run = tracker.offered().await;
        tracker.claim(&run, 0).await.expect("it is offered");
        let over = |status: &Status| !status.runs.is_empty();
        let status = tracker.status.wait_for(over).await.expect("it lives");
        assert!(
            matches!(&status.runs[0].outcome, Outcome::Deadline { .. }),
            "{status:?}"
        );
        bench.write();
        let verdict = tracker.finish(&run, 0).await.expect("remembered");
        assert!(!verdict.held_throughout);
        let run = tracker.offered().await;
        tracker.claim(&run, 1).await.expect("it is offered");
        assert_eq!(tracker.finish(&run, 1).await, Ok(Verdict::held()));
        bench.write();
        tracker.stop().await;
    }
}

/// Its volume may hang, or not be there: neither the catalogue nor its disk is touched.
#[test]
fn a_sidecars_catalogue_is_not_looked_at() {
    for journal in ["wal", "delete"] {
        let bench = Bench::for_sidecars(journal);
        let disk = Disk::default();
        let catalogue = Catalogue::elsewhere(disk.clone(), &bench.settings.backup.directory);
        let database = Database::open(&bench.database()).expect("a database");
        let service = "a service 1.0".to_owned();
        let engine = BackupEngine::new(database, catalogue, disk.clone(), &bench.settings, service)
            .expect("readable");
        let before = disk.operations();
        engine
            .prepare(&run(0), &Watch::default())
            .expect("prepared");
        // What is looked at is the room that the log has.
        let of_the_log = usize::from(journal == "wal");
        assert_eq!(disk.operations() - before, of_the_log, "{journal}");
    }
}
