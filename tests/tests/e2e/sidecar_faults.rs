//! The sidecar dies, hangs, is cut off or is too slow, at every step; or the tracker dies.
//! The tracker serves again by itself and says why, nothing is promoted, and the next run
//! works.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquatic_udp_protocol::Response;
use end_to_end::PATIENCE;
use end_to_end::announce::{Announce, Event, Torrent};
use end_to_end::proxy::Proxy;
use end_to_end::sidecar::{Beside, Sidecar, appears};
use end_to_end::tracker::{Setup, Tracker};
use end_to_end::udp::UdpClient;
use end_to_end::{backups, database};
use rustix::process::Signal;
use serde_json::Value;

use crate::sidecar::{CP, CP_AND_HOLD, setup, started};
use crate::support::{A_RUN, MIB, answered, beside_others, brief, kind};

/// What happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Killed,
    Stopped,
    CutOff,
}

/// When it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It looks out for a run.
    Waiting,
    /// Its command is at work.
    Copying,
    /// Its command is done, and it has not said so.
    Finishing,
}

const STEPS: [Step; 3] = [Step::Waiting, Step::Copying, Step::Finishing];

/// A database, so that announces flow during the copy or wait for it.
const FLOWING: &str = "wal";
const HELD: &str = "delete";

/// A tracker and a sidecar with a proxy between them.
struct Pair {
    setup: Setup,
    tracker: Tracker,
    proxy: Proxy,
    beside: Beside,
}

impl Pair {
    async fn start(setup: Setup) -> Result<Self> {
        let tracker = setup.start().await?;
        let proxy = Proxy::start(tracker.endpoint()?.0).await?;
        let beside = Beside::new(&setup)?.at(proxy.address());
        Ok(Self {
            setup,
            tracker,
            proxy,
            beside,
        })
    }

    fn held(&self) -> std::path::PathBuf {
        self.setup.home().join("held")
    }

    /// After a run that came to nothing: announces are answered, nothing was promoted, and
    /// a sidecar takes the next run.
    async fn goes_on(&self, sidecar: &Sidecar) -> Result<()> {
        let status = self.tracker.endpoint()?.status().await?;
        assert_eq!(status["gate"]["open"], true, "{status:#}");
        let mut client = UdpClient::connect(self.tracker.addresses.udp).await?;
        let announce = Announce {
            torrent: Torrent(7),
            peer: 1,
            event: Event::Started,
        };
        assert!(matches!(
            client.announce(announce).await?,
            Response::AnnounceIpv4(_)
        ));
        let promoted = self.beside.made()?;
        let promoted: Vec<_> = promoted
            .iter()
            .filter(|name| !name.starts_with('.'))
            .collect();
        assert!(promoted.is_empty(), "{promoted:?}");
        self.takes_the_next(sidecar).await
    }

    async fn takes_the_next(&self, sidecar: &Sidecar) -> Result<()> {
        let endpoint = self.tracker.endpoint()?;
        let run = endpoint.start_run().await?;
        let ended = end_to_end::until("the next run to end", A_RUN, async || {
            if self.held().exists() {
                fs::remove_file(self.held())?;
            }
            let status = endpoint.status().await?;
            Ok(end_to_end::endpoint::ended(&status, &run).cloned())
        })
        .await?;
        ensure!(kind(&ended) == "done", "{ended:#}");
        sidecar
            .log
            .wait_for(&format!("{run} was published"))
            .await?;
        database::check(&self.beside.copies().join(&run).join("sqlite3.db"))?;
        // Of the run that came to nothing nothing is left either.
        assert_eq!(self.beside.made()?, [run]);
        Ok(())
    }
}

/// How the run ended, which the tracker must know by `within` from now.
async fn ended(tracker: &Tracker, run: &str, within: Duration) -> Result<Value> {
    let ended = tracker.endpoint()?.ended(run, within).await?;
    let message = ended["outcome"]["message"].as_str().context("a message")?;
    assert!(!message.is_empty(), "{ended:#}");
    Ok(ended)
}

async fn meets(journal: &str, step: Step, fate: Fate) -> Result<()> {
    let told = format!("{journal} {step:?} {fate:?}");
    let setup = setup(journal, 5 * MIB)?.set("maintenance.readiness", "claim_within", "\"3s\"");
    let pair = Pair::start(setup).await?;
    let beside = pair.beside.clone().running(CP_AND_HOLD);
    let mut sidecar = beside.start()?;
    sidecar.log.wait_for("waiting").await?;
    let strike = |sidecar: &Sidecar| -> Result<()> {
        match fate {
            Fate::Killed => sidecar.signal(Signal::KILL),
            Fate::Stopped => sidecar.signal(Signal::STOP),
            Fate::CutOff => {
                pair.proxy.cut();
                Ok(())
            }
        }
    };
    if step == Step::Waiting {
        strike(&sidecar)?;
    }
    let (run, _) = started(pair.tracker.endpoint()?).await?;
    if step != Step::Waiting {
        appears(&pair.held(), PATIENCE).await?;
        strike(&sidecar)?;
    }
    if step == Step::Finishing {
        // Cut off, it has a whole copy and cannot say so.
        fs::remove_file(pair.held())?;
    }
    let ended = ended(&pair.tracker, &run, A_RUN).await?;
    let expected = if step == Step::Waiting {
        "no_sidecar"
    } else {
        "deadline"
    };
    assert_eq!(kind(&ended), expected, "{told}: {ended:#}");
    if step != Step::Waiting {
        let message = ended["outcome"]["message"].to_string();
        assert!(
            message.contains("ttl"),
            "the outcome names the cause: {message}"
        );
        assert_eq!(ended["sidecar"]["held_throughout"], false, "{ended:#}");
    }

    // What was stopped or cut off finds out, and takes the next; the dead one is replaced.
    match fate {
        Fate::Killed => {
            sidecar.kill().await?;
            // Its command is an orphan, which ends when it may.
            let _ = fs::remove_file(pair.held());
            sidecar = beside.start()?;
            sidecar.log.wait_for("waiting").await?;
        }
        Fate::Stopped => {
            let _ = fs::remove_file(pair.held());
            sidecar.signal(Signal::CONT)?;
        }
        Fate::CutOff => {
            if step != Step::Waiting {
                // By itself, and by its own clock.
                sidecar
                    .log
                    .wait_for("given up: the lease ran out")
                    .await
                    .or_else(|error| {
                        // It has its copy, and asks for the verdict.
                        if step == Step::Finishing {
                            Ok(())
                        } else {
                            Err(error)
                        }
                    })?;
            }
            pair.proxy.lead_to(pair.tracker.endpoint()?.0);
            if step == Step::Waiting {
                // A connection that is dead is not told from one where nothing is said.
                let again =
                    |lines: &[String]| lines.iter().any(|line| line.contains("answers again"));
                sidecar.log.wait("it notices", A_RUN, again).await?;
            }
        }
    }
    if fate != Fate::Killed && step != Step::Waiting {
        sidecar
            .log
            .wait_for("no backup")
            .await
            .with_context(|| told.clone())?;
    }
    pair.goes_on(&sidecar).await.with_context(|| told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_killed() -> Result<()> {
    let _beside = beside_others().await;
    for step in STEPS {
        meets(FLOWING, step, Fate::Killed).await?;
    }
    meets(HELD, Step::Copying, Fate::Killed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_hangs() -> Result<()> {
    let _beside = beside_others().await;
    for step in STEPS {
        meets(FLOWING, step, Fate::Stopped).await?;
    }
    meets(HELD, Step::Copying, Fate::Stopped).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_cut_off() -> Result<()> {
    let _beside = beside_others().await;
    for step in STEPS {
        meets(FLOWING, step, Fate::CutOff).await?;
    }
    meets(HELD, Step::Copying, Fate::CutOff).await
}

/// Whoever asks did not hear that it was done, and asks again.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_whose_answer_is_lost_has_it_all_the_same() -> Result<()> {
    let _beside = beside_others().await;
    for path in ["/claim", "/renew", "/finish"] {
        for journal in [FLOWING, HELD] {
            let told = format!("{path} {journal}");
            let pair = Pair::start(setup(journal, 5 * MIB)?).await?;
            let endpoint = pair.tracker.endpoint()?;
            pair.proxy.lose_the_answer(endpoint.0, path);
            let beside = pair.beside.clone().with(["--once"]).running(CP_AND_HOLD);
            let mut sidecar = beside.start()?;
            sidecar.log.wait_for("waiting").await?;
            let (run, _) = started(endpoint).await?;
            appears(&pair.held(), PATIENCE).await?;
            if path == "/renew" {
                let lost = || pair.proxy.lost() == 1;
                end_to_end::until("a renewal", A_RUN, async || Ok(lost().then_some(()))).await?;
            }
            fs::remove_file(pair.held())?;
            assert_eq!(sidecar.code(A_RUN).await?, 0, "{told}");
            assert_eq!(pair.proxy.lost(), 1, "{told}");
            let ended = endpoint.ended(&run, A_RUN).await?;
            assert_eq!(kind(&ended), "done", "{told}: {ended:#}");
            assert_eq!(ended["sidecar"]["held_throughout"], true, "{ended:#}");
            assert_eq!(pair.beside.made()?, [run], "{told}");
        }
    }
    Ok(())
}

/// The tracker has done its part and says so; what the sidecar then makes of its copy dies with
/// it.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_killed_while_it_publishes_leaves_no_half_backup() -> Result<()> {
    let _beside = beside_others().await;
    let setup = setup(FLOWING, MIB)?;
    fs::remove_file(setup.database())?;
    database::make_random(&setup.database(), 60 * MIB, FLOWING)?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let beside = Beside::new(&setup)?.at(endpoint.0);
    let mut sidecar = beside.start()?;
    sidecar.log.wait_for("waiting").await?;
    let (run, _) = started(endpoint).await?;
    let ended = endpoint.ended(&run, A_RUN).await?;
    sidecar.kill().await?;
    assert_eq!(kind(&ended), "done", "{ended:#}");
    let made = beside.made()?;
    ensure!(
        made.iter().all(|name| name.starts_with('.')) && !made.is_empty(),
        "it was killed too late, or too early, to tell: {made:?}"
    );

    let sidecar = beside.start()?;
    sidecar.log.wait_for("waiting").await?;
    let run = endpoint.start_run().await?;
    assert_eq!(kind(&endpoint.ended(&run, A_RUN).await?), "done");
    sidecar.log.wait_for("was published").await?;
    let backup = backups::only(&beside.copies())?;
    assert_eq!(backup.manifest["run"], run);
    // Of the one that was cut short nothing is left.
    assert_eq!(beside.made()?.len(), 1, "{:?}", beside.made()?);
    Ok(())
}

/// By files nobody renews: how long it may take is `claim_within`.
#[tokio::test(flavor = "multi_thread")]
async fn by_files_too_a_sidecar_that_dies_or_hangs_holds_nobody_up() -> Result<()> {
    let _beside = beside_others().await;
    for journal in [FLOWING, HELD] {
        for fate in [Fate::Killed, Fate::Stopped] {
            let told = format!("{journal} {fate:?}");
            let setup =
                setup(journal, 5 * MIB)?.set("maintenance.readiness", "claim_within", "\"4s\"");
            let tracker = setup.start().await?;
            let endpoint = tracker.endpoint()?;
            let held = setup.home().join("held");
            let beside = Beside::new(&setup)?.with(["--touch-file", "run/ready.json"]);
            let mut sidecar = beside.clone().running(CP_AND_HOLD).start()?;
            sidecar.log.wait_for("waiting").await?;
            let (run, _) = started(endpoint).await?;
            appears(&held, PATIENCE).await?;
            sidecar.signal(match fate {
                Fate::Killed => Signal::KILL,
                _ => Signal::STOP,
            })?;
            let ended = ended(&tracker, &run, A_RUN).await?;
            assert_eq!(kind(&ended), "no_sidecar", "{told}: {ended:#}");
            let status = endpoint.status().await?;
            assert_eq!(status["gate"]["open"], true, "{told}: {status:#}");
            answered(&tracker).await?;
            assert!(!setup.touch_file().exists(), "{told}");
            let _ = fs::remove_file(&held);
            if fate == Fate::Killed {
                sidecar.kill().await?;
                sidecar = beside.clone().running(CP_AND_HOLD).start()?;
                sidecar.log.wait_for("waiting").await?;
            } else {
                sidecar.signal(Signal::CONT)?;
                sidecar.log.wait_for("no backup").await?;
            }
            let promoted = beside.made()?;
            let promoted = promoted.iter().find(|name| !name.starts_with('.'));
            assert_eq!(promoted, None, "{told}");

            let next = endpoint.start_run().await?;
            appears(&held, PATIENCE).await?;
            fs::remove_file(&held)?;
            let ended = endpoint.ended(&next, A_RUN).await?;
            assert_eq!(kind(&ended), "done", "{told}: {ended:#}");
            let published = format!("{next} was published");
            sidecar.log.wait_for(&published).await?;
            database::check(&beside.copies().join(&next).join("sqlite3.db"))?;
        }
    }
    Ok(())
}

/// Where announces flow a sidecar may take as long as the window lasts, however faithfully it
/// renews.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_not_done_when_the_window_ends_is_given_up() -> Result<()> {
    let _beside = beside_others().await;
    let pair = Pair::start(brief(&setup(FLOWING, 5 * MIB)?, 7)).await?;
    let beside = pair.beside.clone();
    let once = beside.clone().with(["--once"]).running(CP_AND_HOLD);
    let mut sidecar = once.start()?;
    sidecar.log.wait_for("waiting").await?;
    let (run, ready) = started(pair.tracker.endpoint()?).await?;
    assert_eq!(ready["copy"], "pinned_file", "{ready:#}");
    assert_eq!(sidecar.code(A_RUN).await?, 5);
    let ended = ended(&pair.tracker, &run, A_RUN).await?;
    assert_eq!(ended["sidecar"]["held_throughout"], false, "{ended:#}");
    let message = ended["outcome"]["message"].to_string();
    assert!(
        message.contains("window") || message.contains("deadline"),
        "{ended:#}"
    );
    let _ = fs::remove_file(pair.held());
    let sidecar = beside.running(CP_AND_HOLD).start()?;
    sidecar.log.wait_for("waiting").await?;
    pair.goes_on(&sidecar).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_too_slow_is_not_waited_for() -> Result<()> {
    let _beside = beside_others().await;
    let setup = setup(HELD, 5 * MIB)?.set("maintenance.gate", "hold_for", "\"6s\"");
    let pair = Pair::start(setup).await?;
    let mut sidecar = pair
        .beside
        .clone()
        .with(["--once"])
        .running(CP_AND_HOLD)
        .start()?;
    sidecar.log.wait_for("waiting").await?;
    let (run, _) = started(pair.tracker.endpoint()?).await?;
    assert_eq!(sidecar.code(A_RUN).await?, 5);
    let ended = pair.tracker.endpoint()?.ended(&run, A_RUN).await?;
    // Whoever was first: the tracker at its limit, or the sidecar that knew of it.
    let kind = kind(&ended);
    assert!(kind == "deadline" || kind == "failed", "{ended:#}");
    assert!(
        ended["outcome"]["message"].to_string().contains("deadline") || kind == "deadline",
        "{ended:#}"
    );
    let paused = ended["longest_pause_ms"].as_f64().context("a pause")?;
    assert!(paused <= 6_000.0, "{paused} ms");
    assert_eq!(ended["sidecar"]["held_throughout"], false, "{ended:#}");
    assert_eq!(pair.beside.made()?, [""; 0]);
    let _ = fs::remove_file(pair.held());
    let sidecar = pair.beside.clone().running(CP_AND_HOLD).start()?;
    sidecar.log.wait_for("waiting").await?;
    pair.goes_on(&sidecar).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tracker_that_is_killed_takes_its_word_with_it() -> Result<()> {
    let _beside = beside_others().await;
    for journal in [FLOWING, HELD] {
        for step in [Step::Copying, Step::Finishing] {
            let mut pair = Pair::start(setup(journal, 5 * MIB)?).await?;
            let sidecar = pair.beside.clone().running(CP_AND_HOLD).start()?;
            sidecar.log.wait_for("waiting").await?;
            started(pair.tracker.endpoint()?).await?;
            appears(&pair.held(), PATIENCE).await?;
            pair.tracker.kill().await?;
            if step == Step::Finishing {
                fs::remove_file(pair.held())?;
            }
            pair.tracker = pair.setup.start().await?;
            pair.proxy.lead_to(pair.tracker.endpoint()?.0);
            sidecar.log.wait_for("no backup (lost)").await?;
            assert!(
                sidecar.log.says("restarted"),
                "the tracker's own words: {:?}",
                sidecar.log.lines()
            );
            let _ = fs::remove_file(pair.held());
            pair.goes_on(&sidecar).await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tracker_that_goes_down_ends_the_run() -> Result<()> {
    let _beside = beside_others().await;
    let mut pair = Pair::start(setup(FLOWING, 5 * MIB)?).await?;
    let sidecar = pair.beside.clone().running(CP_AND_HOLD).start()?;
    sidecar.log.wait_for("waiting").await?;
    started(pair.tracker.endpoint()?).await?;
    appears(&pair.held(), PATIENCE).await?;
    pair.tracker.signal(Signal::TERM)?;
    assert!(
        pair.tracker
            .exited(Duration::from_secs(10))
            .await?
            .success()
    );
    pair.tracker = pair.setup.start().await?;
    pair.proxy.lead_to(pair.tracker.endpoint()?.0);
    sidecar.log.wait_for("no backup").await?;
    let _ = fs::remove_file(pair.held());
    pair.goes_on(&sidecar).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_is_told_to_stop_lets_go_at_once() -> Result<()> {
    let _beside = beside_others().await;
    let pair = Pair::start(setup(HELD, 5 * MIB)?).await?;
    let mut sidecar = pair.beside.clone().running(CP_AND_HOLD).start()?;
    sidecar.log.wait_for("waiting").await?;
    let (run, _) = started(pair.tracker.endpoint()?).await?;
    appears(&pair.held(), PATIENCE).await?;
    sidecar.signal(Signal::TERM)?;
    assert_eq!(sidecar.code(Duration::from_secs(5)).await?, 1);
    let ended = ended(&pair.tracker, &run, PATIENCE).await?;
    assert_eq!(
        (kind(&ended), &ended["outcome"]["cause"]),
        ("failed", &"sidecar".into()),
        "{ended:#}"
    );
    assert!(
        ended["outcome"]["message"]
            .to_string()
            .contains("asked to stop"),
        "{ended:#}"
    );
    assert_eq!(pair.beside.made()?, [""; 0]);
    let _ = fs::remove_file(pair.held());
    let sidecar = pair.beside.clone().running(CP).start()?;
    sidecar.log.wait_for("waiting").await?;
    pair.goes_on(&sidecar).await
}
