//! Runs that a sidecar copies.

use super::*;
use crate::lease::{Refused, Terms};
use crate::touch_file::RunResult;

const TTL: Duration = Duration::from_millis(600);

/// Limits that do not come by themselves while a test runs.
fn patient() -> Rules {
    Rules {
        hold_for: Duration::from_secs(60),
        lease: Some(Terms {
            ttl: Duration::from_secs(60),
            claim_within: Duration::from_secs(60),
            claim_within_held: Duration::from_secs(60),
        }),
        ..rules()
    }
}

fn brief(terms: Terms) -> Rules {
    Rules {
        lease: Some(terms),
        ..patient()
    }
}

fn nonce(of: char) -> Nonce {
    Nonce::try_from(of.to_string().repeat(16)).expect("a nonce")
}

fn holder(name: &str) -> Holder {
    Holder::try_from(name.to_owned()).expect("a name")
}

impl Bench {
    /// Starts a run and waits until it is offered.
    async fn offered(&mut self) -> RunId {
        let run = self.ask().await.expect("nothing is in the way");
        let offered = |status: &Status| status.state == Phase::Offered;
        let status = self.status.wait_for(offered).await;
        assert!(status.expect("the driver lives").ready);
        run
    }

    async fn claim(&self, run: &RunId, of: char) -> Result<Granted, Refused> {
        let run = run.clone();
        let (holder, nonce) = (holder(&of.to_string()), nonce(of));
        self.tell(|reply| Command::Claim {
            run,
            holder,
            nonce,
            reply,
        })
        .await
    }

    async fn renew(&self, run: &RunId, of: char) -> Result<Granted, Refused> {
        let (run, nonce) = (run.clone(), nonce(of));
        self.tell(|reply| Command::Renew { run, nonce, reply })
            .await
    }

    async fn finish(&self, run: &RunId, of: char) -> Result<Verdict, Refused> {
        self.finish_as(run, of, Finished::Ok).await
    }

    async fn finish_as(&self, run: &RunId, of: char, how: Finished) -> Result<Verdict, Refused> {
        let (run, nonce) = (run.clone(), nonce(of));
        self.tell(|reply| Command::Finish {
            run,
            nonce,
            how,
            reply,
        })
        .await
    }

    /// The file beside the touch-file of this suffix.
    fn beside(&self, suffix: &str) -> std::path::PathBuf {
        let mut path = self.touch_file.clone().into_os_string();
        path.push(suffix);
        path.into()
    }

    fn result(&self) -> RunResult {
        let bytes = std::fs::read(self.beside(".result")).expect("a result was written");
        serde_json::from_slice(&bytes).expect("a result")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_claims_renews_and_finishes() {
    for pause in [FLOWING, HELD] {
        let mut bench = Bench::with(pause, patient());
        let run = bench.offered().await;
        let flows = pause == FLOWING;
        assert_eq!(bench.gate.is_open(), flows);
        let shown: touch_file::Ready =
            serde_json::from_slice(&std::fs::read(&bench.touch_file).expect("it is shown"))
                .expect("a touch-file");
        assert_eq!((&shown.run, shown.file), (&run, FILE));
        let ready = bench.status.ready().expect("it is offered");
        assert_eq!((shown.began, shown.pinned), (ready.began, ready.pinned));
        assert_eq!(shown.journal_mode, ready.journal_mode);
        let copy = if flows {
            CopyOf::PinnedFile
        } else {
            CopyOf::PausedDatabase
        };
        assert_eq!(shown.copy, copy);

        let granted = bench.claim(&run, 'a').await.expect("it is offered");
        assert_eq!(granted.holder, holder("a"));
        assert!(granted.expires <= granted.deadline);
        assert!(!bench.touch_file.exists(), "it invites a second sidecar");
        let ready = bench.status.ready().expect("it is ready still");
        assert_eq!(ready.lease.expect("a lease").holder, holder("a"));
        let again = bench.claim(&run, 'a').await.expect("the reply was lost");
        assert_eq!(again.holder, granted.holder);
        let refused = bench.claim(&run, 'b').await.expect_err("one sidecar");
        assert!(matches!(&refused, Refused::Taken { holder: by, .. } if *by == holder("a")));
        assert_eq!(bench.renew(&run, 'b').await, Err(Refused::NotHolder));
        assert_eq!(bench.finish(&run, 'b').await, Err(Refused::NotHolder));
        bench.renew(&run, 'a').await.expect("it has the lease");

        assert_eq!(bench.finish(&run, 'a').await, Ok(Verdict::held()));
        assert!(bench.gate.is_open(), "before the sidecar is told");
        assert_eq!(bench.finish(&run, 'a').await, Ok(Verdict::held()), "again");
        for refused in [bench.claim(&run, 'a').await, bench.renew(&run, 'a').await] {
            assert_eq!(refused, Err(Refused::StaleRun));
        }
        assert_eq!(bench.finish(&run, 'b').await, Err(Refused::StaleRun));

        let report = bench.report(run.clone()).await;
        assert_eq!((&report.outcome, &report.backup), (&Outcome::Done, &None));
        let told = SidecarReport {
            holder: holder("a"),
            held_throughout: true,
            reason: None,
        };
        assert_eq!(report.sidecar, Some(told));
        let result = bench.result();
        assert_eq!((result.run, result.done), (run, false));
        assert!(!result.held_throughout, "it is not the file's sidecar");
        let script = bench.stop().await;
        script.wait_for_note("pin dropped");
        let noted = script.noted();
        assert!(!noted.contains(&"copying".to_owned()), "{noted:?}");
        // While announces flow nobody waits for it.
        let learned = noted.contains(&"learned, done: true".to_owned());
        assert_eq!(learned, !flows, "{noted:?}");
        let gate = if flows { "open" } else { "closed" };
        assert!(
            noted.contains(&format!("pin dropped, gate {gate}")),
            "{noted:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_fails_says_why() {
    let mut bench = Bench::with(HELD, patient());
    let run = bench.offered().await;
    bench.claim(&run, 'a').await.expect("it is offered");
    let failed = Finished::Failed("no room".into());
    let verdict = bench.finish_as(&run, 'a', failed).await;
    assert_eq!(verdict, Ok(Verdict::held()), "the file held all the same");
    let report = bench.report(run).await;
    assert_eq!(failed_in(&report), Some((Phase::Leased, Cause::Sidecar)));
    assert_eq!(report.outcome.message(), "no room");
    let sidecar = report.sidecar.expect("there was one");
    assert_eq!(sidecar.reason.as_deref(), Some("no room"));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_nobody_claims_ends_and_says_so() {
    let claim_within = Duration::from_millis(50);
    let terms = Terms {
        ttl: TTL,
        claim_within,
        claim_within_held: claim_within,
    };
    for pause in [FLOWING, HELD] {
        let mut bench = Bench::with(pause, brief(terms));
        let report = bench.run().await;
        let Outcome::NoSidecar { message } = &report.outcome else {
            panic!("{report:?}")
        };
        assert!(message.contains("readiness.claim_within"), "{message}");
        assert_eq!(report.sidecar, None);
        let result = bench.result();
        assert_eq!((result.held_throughout, result.done), (false, false));
        assert_eq!(result.why.as_ref(), Some(message));
        let late = bench.claim(&report.id, 'a').await;
        assert_eq!(late, Err(Refused::StaleRun));
        let noted = bench.stop().await.noted();
        let learned = noted.contains(&"learned, done: false".to_owned());
        assert_eq!(learned, pause == HELD, "{noted:?}");
    }
}

/// A sidecar that has died does not cost a pause of all the time it might take to come.
#[tokio::test(flavor = "multi_thread")]
async fn announces_are_not_held_for_long_for_a_sidecar_that_does_not_come() {
    let terms = Terms {
        ttl: TTL,
        claim_within: Duration::from_secs(60),
        claim_within_held: Duration::from_millis(500),
    };
    let mut bench = Bench::with(HELD, brief(terms));
    let run = bench.offered().await;
    let ready = bench.status.ready().expect("it is offered");
    let left = ready.claim_within_seconds.expect("nobody has claimed it");
    assert!(left <= 0.5, "{left}");
    let report = bench.report(run).await;
    let Outcome::NoSidecar { message } = &report.outcome else {
        panic!("{report:?}")
    };
    assert!(message.contains("500ms"), "{message}");
    assert!(
        message.contains("readiness.claim_within is 60s"),
        "{message}"
    );
    bench.stop().await;

    let mut bench = Bench::with(FLOWING, brief(terms));
    bench.offered().await;
    let ready = bench.status.ready().expect("it is offered");
    let left = ready.claim_within_seconds.expect("nobody has claimed it");
    assert!(left > 30.0, "{left}");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_door_that_is_full_ends_a_lease() {
    for leased in [false, true] {
        let mut bench = Bench::with(HELD, patient());
        let run = bench.offered().await;
        if leased {
            bench.claim(&run, 'a').await.expect("it is offered");
        }
        hold(&bench.gate, Door::Udp, MOST.udp);
        let report = bench.report(run.clone()).await;
        let phase = if leased {
            Phase::Leased
        } else {
            Phase::Offered
        };
        assert_eq!(failed_in(&report), Some((phase, Cause::HeldLimit)));
        if leased {
            let verdict = bench.finish(&run, 'a').await.expect("it is remembered");
            assert_eq!(verdict, Verdict::broken(report.outcome.message()));
        }
        bench.stop().await;
    }
}

/// SIGKILL, SIGSTOP, a network that is gone: the tracker hears nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_vanishes_costs_its_lease_and_the_night() {
    let terms = Terms {
        ttl: TTL,
        claim_within: Duration::from_secs(60),
        claim_within_held: Duration::from_secs(60),
    };
    for pause in [FLOWING, HELD] {
        let mut bench = Bench::with(pause, brief(terms));
        let run = bench.offered().await;
        bench.claim(&run, 'a').await.expect("it is offered");
        let report = bench.report(run.clone()).await;
        let Outcome::Deadline { phase, message } = &report.outcome else {
            panic!("{report:?}")
        };
        assert_eq!(*phase, Phase::Leased);
        assert!(message.contains("readiness.ttl"), "{message}");
        assert!(bench.gate.is_open());
        assert_eq!(bench.gate.forced(), 0);
        // It comes back and thinks that it has its copy.
        let verdict = bench.finish(&run, 'a').await.expect("it is remembered");
        assert_eq!(verdict, Verdict::broken(message.clone()));
        assert_eq!(bench.renew(&run, 'a').await, Err(Refused::StaleRun));
        let sidecar = report.sidecar.expect("there was one");
        assert!(!sidecar.held_throughout);
        let noted = bench.script.noted();
        let learned = noted.iter().any(|note| note.starts_with("learned"));
        assert!(!learned, "it died, which says nothing of a copy: {noted:?}");

        let next = bench.offered().await;
        bench.claim(&next, 'a').await.expect("the next night works");
        assert_eq!(bench.finish(&next, 'a').await, Ok(Verdict::held()));
        bench.stop().await;
    }
}

/// However often it is renewed: announces wait no longer than they may.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_ends_with_the_closure_of_the_gate() {
    let terms = patient().lease;
    let mut bench = Bench::with(
        HELD,
        Rules {
            lease: terms,
            ..rules()
        },
    );
    let run = bench.offered().await;
    bench.claim(&run, 'a').await.expect("it is offered");
    let ended = loop {
        match bench.renew(&run, 'a').await {
            Ok(granted) => assert!(granted.expires < Duration::from_millis(1600)),
            Err(refused) => break refused,
        }
    };
    assert_eq!(ended, Refused::StaleRun);
    let report = bench.report(run).await;
    assert!(
        report.outcome.message().contains("gate.hold_for"),
        "{report:?}"
    );
    assert!(report.longest_pause_ms < 1600.0, "{report:?}");
    assert_eq!(bench.gate.forced(), 0);
    let noted = bench.stop().await.noted();
    assert!(
        noted.contains(&"learned, done: false".to_owned()),
        "{noted:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_pin_or_a_log_too_long_ends_the_run() {
    type Trouble = fn(&Script) -> &Mutex<bool>;
    let troubles: [(Trouble, Cause); 2] = [
        (|script| &script.broken, Cause::BrokenPin),
        (|script| &script.too_long, Cause::WalLimit),
    ];
    for (trouble, cause) in troubles {
        for leased in [false, true] {
            let mut bench = Bench::with(HELD, patient());
            let run = bench.offered().await;
            if leased {
                bench.claim(&run, 'a').await.expect("it is offered");
            }
            *trouble(&bench.script).lock().expect("unpoisoned") = true;
            let phase = if leased {
                Phase::Leased
            } else {
                Phase::Offered
            };
            if leased {
                // Asked before the driver has looked by itself: it looks first.
                let verdict = bench.finish(&run, 'a').await.expect("it had the lease");
                assert!(!verdict.held_throughout, "{cause:?}");
            }
            let report = bench.report(run).await;
            assert_eq!(failed_in(&report), Some((phase, cause)));
            *trouble(&bench.script).lock().expect("unpoisoned") = false;
            let noted = bench.stop().await.noted();
            assert!(
                noted.contains(&"pin dropped, gate closed".to_owned()),
                "{noted:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_ends_a_lease() {
    for pause in [FLOWING, HELD] {
        for leased in [false, true] {
            let mut bench = Bench::with(pause, patient());
            let run = bench.offered().await;
            if leased {
                bench.claim(&run, 'a').await.expect("it is offered");
            }
            let result = bench.beside(".result");
            let directory = std::mem::replace(
                &mut bench.directory,
                crate::catalogue::testing::memory_dir(),
            );
            let script = bench.stop().await;
            script.wait_for_note("pin dropped");
            let result: RunResult =
                serde_json::from_slice(&std::fs::read(result).expect("written")).expect("JSON");
            assert!(!result.held_throughout);
            drop(directory);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_breaks_ends_a_lease() {
    let mut bench = Bench::with(HELD, patient());
    let run = bench.offered().await;
    bench.claim(&run, 'a').await.expect("it is offered");
    *bench.script.break_driver.lock().expect("unpoisoned") = true;
    assert!((&mut bench.driver).await.expect_err("it panics").is_panic());
    assert!(bench.gate.is_open());
    assert_eq!(bench.status.ready(), None);
    let report = bench.status.now().runs.remove(0);
    let sidecar = report.sidecar.expect("there was one");
    assert!(!sidecar.held_throughout);
    let noted = bench.script.noted();
    assert!(
        noted.contains(&"pin dropped, gate closed".to_owned()),
        "{noted:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trackers_own_runs_cannot_be_claimed() {
    let mut bench = Bench::new(FLOWING);
    bench.script.says(Job::Copy, &[Act::WaitForCancel]);
    let run = bench.ask().await.expect("nothing is in the way");
    let ready = bench.status.wait_for(|status| status.ready).await;
    assert!(ready.is_some());
    assert_eq!(bench.claim(&run, 'a').await, Err(Refused::TakenByTracker));
    assert_eq!(bench.renew(&run, 'a').await, Err(Refused::NotHolder));
    assert_eq!(bench.finish(&run, 'a').await, Err(Refused::NotHolder));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_offered_yet_cannot_be_claimed() {
    let mut bench = Bench::with(FLOWING, patient());
    bench.script.says(Job::Prepare, &[Act::WaitForCancel]);
    let run = bench.ask().await.expect("nothing is in the way");
    let refused = bench.claim(&run, 'a').await;
    let phase = Phase::Preparing;
    assert_eq!(refused, Err(Refused::NotReady { phase }));
    let never = RunId::parse("never-was").expect("an id");
    assert_eq!(bench.claim(&never, 'a').await, Err(Refused::StaleRun));
    let state = bench.status.wait_for(|status| status.run.is_some()).await;
    assert!(state.is_some());
    bench.stop().await;
}

/// Both ways to say it, after everything that does not say it.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_can_end_a_run_and_do_nothing_else() {
    for pause in [FLOWING, HELD] {
        for as_json in [false, true] {
            let mut bench = Bench::with(pause, patient());
            let done = bench.beside(".done");
            std::fs::create_dir(&done).expect("in the way");
            let run = bench.offered().await;
            std::fs::remove_dir(&done).expect("empty");
            let say = |text: &str| std::fs::write(&done, text).expect("written");
            for nothing in ["", "never-was", "{}", "{\"run\": 1}", "\u{0}", "[]"] {
                say(nothing);
            }
            assert!(bench.status.now().ready);
            if as_json {
                say(&format!("{{ \"run\": \"{run}\" }}\n"));
            } else {
                say(&format!("{run}\n"));
            }
            let report = bench.report(run.clone()).await;
            assert_eq!(report.outcome, Outcome::Done);
            let sidecar = report.sidecar.expect("there was one");
            assert_eq!(sidecar.holder, Holder::by_touch_file());
            assert!(sidecar.held_throughout);
            let result = bench.result();
            assert!(result.held_throughout && result.done, "{result:?}");
            assert_eq!((result.run, result.why), (run, None));
            assert!(!done.exists(), "it has been understood");
            let script = bench.stop().await;
            script.wait_for_note("pin dropped");
        }
    }
}

/// What stands there says that a file may be copied that is being written to.
#[tokio::test(flavor = "multi_thread")]
async fn a_touch_file_that_cannot_be_removed_is_removed_as_soon_as_it_can_be() {
    let mut bench = Bench::with(HELD, patient());
    let run = bench.offered().await;
    let shown = std::fs::read(&bench.touch_file).expect("it is shown");
    std::fs::remove_file(&bench.touch_file).expect("it is there");
    std::fs::create_dir(&bench.touch_file).expect("nothing is in the way");
    bench.claim(&run, 'a').await.expect("it is offered");
    assert_eq!(bench.finish(&run, 'a').await, Ok(Verdict::held()));
    let report = bench.report(run).await;
    assert_eq!(report.outcome, Outcome::Done);
    assert!(bench.gate.is_open(), "whatever becomes of the file");
    std::fs::remove_dir(&bench.touch_file).expect("it is empty");
    std::fs::write(&bench.touch_file, shown).expect("nothing is in the way");
    let gone = async {
        while bench.touch_file.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone)
        .await
        .expect("it is tried again");
    bench.stop().await;
}

/// Announces must not wait for a copy that will not come.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_says_why_there_is_no_copy() {
    for pause in [FLOWING, HELD] {
        let mut bench = Bench::with(pause, patient());
        let run = bench.offered().await;
        let said = format!("{{\"run\": \"{run}\", \"failed\": \"no room\"}}");
        std::fs::write(bench.beside(".done"), said).expect("written");
        let report = bench.report(run.clone()).await;
        assert!(bench.gate.is_open());
        assert_eq!(failed_in(&report), Some((Phase::Offered, Cause::Sidecar)));
        assert_eq!(report.outcome.message(), "no room");
        let sidecar = report.sidecar.expect("there was one");
        assert_eq!(sidecar.holder, Holder::by_touch_file());
        assert!(!sidecar.held_throughout);
        assert_eq!(sidecar.reason.as_deref(), Some("no room"));
        let result = bench.result();
        assert_eq!((result.held_throughout, result.done), (false, false));
        assert_eq!((result.run, result.why), (run, Some("no room".to_owned())));
        assert!(!bench.beside(".done").exists(), "it has been understood");
        let noted = bench.stop().await.noted();
        let learned = noted.iter().any(|note| note.starts_with("learned"));
        assert!(
            !learned,
            "it says nothing of how long a copy takes: {noted:?}"
        );
    }
}

/// Its clock began before the tracker's, so at the limit it may be the first to say so.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_gives_up_at_the_limit_was_too_slow() {
    let terms = patient().lease;
    for early in [false, true] {
        let mut bench = Bench::with(
            HELD,
            Rules {
                lease: terms,
                ..rules()
            },
        );
        let run = bench.offered().await;
        let mut granted = bench.claim(&run, 'a').await.expect("it is offered");
        while !early && granted.deadline > rules().grace * 3 / 4 {
            granted = bench.renew(&run, 'a').await.expect("there is time left");
        }
        let failed = Finished::Failed("not complete by the deadline".into());
        bench
            .finish_as(&run, 'a', failed)
            .await
            .expect("it has the lease");
        let report = bench.report(run).await;
        assert_eq!(failed_in(&report), Some((Phase::Leased, Cause::Sidecar)));
        let noted = bench.stop().await.noted();
        let learned = noted.contains(&"learned, done: false".to_owned());
        assert_eq!(learned, !early, "{noted:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_does_not_end_a_run_that_is_leased() {
    let terms = Terms {
        ttl: TTL,
        claim_within: Duration::from_secs(60),
        claim_within_held: Duration::from_secs(60),
    };
    let mut bench = Bench::with(FLOWING, brief(terms));
    let run = bench.offered().await;
    bench.claim(&run, 'a').await.expect("it is offered");
    std::fs::write(bench.beside(".done"), run.as_str()).expect("written");
    let report = bench.report(run).await;
    assert!(
        matches!(report.outcome, Outcome::Deadline { .. }),
        "{report:?}"
    );
    assert!(!bench.result().held_throughout);
    bench.stop().await;
}

/// A run that is over before it is ready has a result as well: whoever waits for it is not
/// left to guess.
#[tokio::test(flavor = "multi_thread")]
async fn every_run_for_a_sidecar_has_a_result() {
    let mut bench = Bench::with(Pause::UntilCopied(Duration::from_secs(90)), patient());
    let report = bench.run().await;
    assert!(matches!(report.outcome, Outcome::WouldNotFit { .. }));
    let result = bench.result();
    assert_eq!(result.run, report.id);
    assert_eq!(result.why.as_deref(), Some(report.outcome.message()));
    bench.stop().await;
}
