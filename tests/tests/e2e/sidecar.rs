//! A sidecar takes the backups: what it copies is the pinned snapshot, whatever is announced
//! meanwhile, with our engine, a plain `cp` or a touch-file; and there is one at a time.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use end_to_end::backups::{self, Backup};
use end_to_end::endpoint::Endpoint;
use end_to_end::load::{Load, Plan};
use end_to_end::sidecar::{Beside, appears};
use end_to_end::tracker::Setup;
use end_to_end::{PATIENCE, database, http1, soak_in_full};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    A_RUN, MIB, alone, beside_others, kind, none_answered_between, nothing_lost, shows_its_instant,
};

/// What an operator would write.
pub const CP: &str = "cp \"$TORRUST_MAINTENANCE_DATABASE\" \"$TORRUST_MAINTENANCE_STAGING\"";

/// Copies, says so, and waits until it is let go.
pub const CP_AND_HOLD: &str = "cp \"$TORRUST_MAINTENANCE_DATABASE\" \"$TORRUST_MAINTENANCE_STAGING\" && \
     touch held && while test -e held; do sleep 0.02; done";

/// A tracker whose backups a sidecar takes.
pub fn setup(journal: &str, bytes: u64) -> Result<Setup> {
    let setup = Setup::new()?
        .set("maintenance", "journal_mode", &format!("\"{journal}\""))
        .set("maintenance.backup", "taken_by", "\"sidecar\"")
        .set("maintenance.readiness", "ttl", "\"5s\"")
        .set("maintenance.readiness", "claim_within", "\"20s\"");
    database::make(&setup.database(), bytes, journal)?;
    Ok(setup)
}

/// Starts a run, which is seen to become ready; its id and what is said of it.
pub async fn started(endpoint: Endpoint) -> Result<(String, Value)> {
    let looking = tokio::spawn(http1::get(endpoint.0, "/ready?wait=30"));
    let run = endpoint.start_run().await?;
    let answer = looking.await??;
    let ready = answer.json()?;
    ensure!(ready["run"] == run.as_str(), "{}: {ready:#}", answer.status);
    Ok((run, ready))
}

pub fn instant(ready: &Value) -> Result<DateTime<Utc>> {
    Ok(ready["pinned"].as_str().context("pinned")?.parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_cp_under_load_is_the_pinned_snapshot_many_times_in_a_row() -> Result<()> {
    let _alone = alone().await;
    let setup = setup("wal", 100 * MIB)?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let beside = Beside::new(&setup)?.at(endpoint.0).running(CP);
    let sidecar = beside.start()?;
    let plan = Plan {
        http_per_second: 0,
        ..Plan::default()
    };
    let load = Load::start(plan, tracker.addresses.udp, tracker.addresses.http).await?;
    load.answered_more(4_000, PATIENCE).await?;

    let rounds = if soak_in_full() { 50 } else { 5 };
    let mut seen = Vec::new();
    for round in 0..rounds {
        let sent = load.counts().sent;
        let (run, ready) = started(endpoint).await?;
        assert_eq!(
            (&ready["copy"], &ready["announces"]),
            (&"pinned_file".into(), &"flowing".into())
        );
        let ended = endpoint.ended(&run, A_RUN).await?;
        let meanwhile = load.counts().sent - sent;
        ensure!(kind(&ended) == "done", "round {round}: {ended:#}");
        assert_eq!(ended["sidecar"]["held_throughout"], true, "{ended:#}");
        sidecar
            .log
            .wait_for(&format!("{run} was published"))
            .await?;
        let directory = beside.copies().join(&run);
        let copy = directory.join("sqlite3.db");
        database::check(&copy)?;
        seen.push((database::completed(&copy)?, instant(&ready)?, meanwhile));
        fs::remove_dir_all(directory)?;
        assert_eq!(beside.made()?, [""; 0]);
    }
    let account = load.stop(PATIENCE).await?;
    nothing_lost(&account);
    for (written, pinned, _) in &seen {
        account.completions().shown(written, *pinned)?;
    }
    let meanwhile: usize = seen.iter().map(|(.., meanwhile)| meanwhile).sum();
    println!(
        "{rounds} of {rounds}; {} announces, {meanwhile} of them while a run was on",
        account.sent()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn our_engine_publishes_what_the_pin_shows() -> Result<()> {
    let _alone = alone().await;
    let setup = setup("wal", 50 * MIB)?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let beside = Beside::new(&setup)?
        .at(endpoint.0)
        .with(["--start", "--once", "--json"]);
    let load = Load::start(
        Plan::default(),
        tracker.addresses.udp,
        tracker.addresses.http,
    )
    .await?;
    load.answered_more(4_000, PATIENCE).await?;
    let mut sidecar = beside.start()?;
    assert_eq!(sidecar.code(A_RUN).await?, 0);
    load.answered_more(1_000, PATIENCE).await?;
    let account = load.stop(PATIENCE).await?;
    nothing_lost(&account);
    let backup = backups::only(&beside.copies())?;
    shows_its_instant(&backup, &account)?;
    assert_eq!(backup.manifest["method"], "file");
    assert_eq!(backup.manifest["journal_mode"], "wal");
    // The tracker's own directory is none of its business.
    assert_eq!(
        backups::published(&setup.backups())?,
        [""; 0].map(std::path::PathBuf::from)
    );
    let runs = endpoint.status().await?;
    assert_eq!(runs["runs"][0]["id"], backup.manifest["run"], "{runs:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_rollback_journal_announces_wait_for_the_sidecar() -> Result<()> {
    let _alone = alone().await;
    for (journal, announces) in [("delete", "auto"), ("wal", "pause")] {
        let setup =
            setup(journal, 20 * MIB)?.set("maintenance", "announces", &format!("\"{announces}\""));
        let tracker = setup.start().await?;
        let endpoint = tracker.endpoint()?;
        let beside = Beside::new(&setup)?
            .at(endpoint.0)
            .with(["--once"])
            .running(CP_AND_HOLD);
        let mut sidecar = beside.start()?;
        let plan = Plan {
            udp_per_second: 200,
            http_per_second: 20,
            sockets: 8,
            torrents: 200,
        };
        let load = Load::start(plan, tracker.addresses.udp, tracker.addresses.http).await?;
        load.answered_more(400, PATIENCE).await?;
        let (run, ready) = started(endpoint).await?;
        assert_eq!(
            (&ready["copy"], &ready["announces"]),
            (&"paused_database".into(), &"held".into())
        );
        appears(&setup.home().join("held"), PATIENCE).await?;
        let from = Utc::now();
        // Some announces pile up.
        let sent = load.counts().sent;
        load.until(PATIENCE, |counts| counts.sent >= sent + 200)
            .await?;
        assert_eq!(endpoint.status().await?["gate"]["open"], false);
        let to = Utc::now();
        fs::remove_file(setup.home().join("held"))?;
        let ended = endpoint.ended(&run, A_RUN).await?;
        ensure!(kind(&ended) == "done", "{ended:#}");
        assert_eq!(sidecar.code(A_RUN).await?, 0);
        load.answered_more(400, PATIENCE).await?;
        let account = load.stop(PATIENCE).await?;
        nothing_lost(&account);
        none_answered_between(&account, from, to);
        let copy = beside.copies().join(&run).join("sqlite3.db");
        database::check(&copy)?;
        let written = database::completed(&copy)?;
        account.completions().shown(&written, instant(&ready)?)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_unix_domain_socket_it_is_as_over_a_port() -> Result<()> {
    let _beside = beside_others().await;
    // The path of a socket is short (unix(7), 108 bytes), that of the tests' directory need not be.
    let place = tempfile::tempdir_in("/tmp")?;
    let socket = place.path().join("maintenance.sock");
    let at = format!("unix:{}", socket.display());
    let setup =
        setup("wal", 5 * MIB)?.set("maintenance.readiness", "bind_address", &format!("{at:?}"));
    // A socket that a killed tracker left is in nobody's way.
    drop(std::os::unix::net::UnixListener::bind(&socket)?);
    let mut tracker = setup.start().await?;
    tracker.log.wait_for(&at).await?;
    let mode = fs::metadata(&socket)?.permissions().mode();
    assert_eq!(
        mode & 0o777,
        0o660,
        "the tracker's user and group, nobody else"
    );

    let load = Load::start(
        Plan::default(),
        tracker.addresses.udp,
        tracker.addresses.http,
    )
    .await?;
    load.answered_more(1_000, PATIENCE).await?;
    let beside = Beside::new(&setup)?.at(&at).with(["--start", "--once"]);
    let mut sidecar = beside.start()?;
    assert_eq!(sidecar.code(A_RUN).await?, 0, "{:?}", sidecar.log.lines());
    let account = load.stop(PATIENCE).await?;
    nothing_lost(&account);
    shows_its_instant(&backups::only(&beside.copies())?, &account)?;

    tracker.signal(Signal::TERM)?;
    tracker.exited(PATIENCE).await?;
    assert!(!socket.exists(), "an orderly end leaves no socket");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_sidecars_one_has_the_run() -> Result<()> {
    let _beside = beside_others().await;
    let setup = setup("wal", 5 * MIB)?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let beside = Beside::new(&setup)?.at(endpoint.0);
    let patient = beside
        .clone()
        .with(["--name", "patient"])
        .running(CP_AND_HOLD)
        .start()?;
    let (first, _) = started(endpoint).await?;
    patient.log.wait_for("claimed").await?;

    // One that came for this run alone goes, and claims nothing.
    let hasty = beside
        .clone()
        .with(["--name", "hasty", "--once"])
        .running(CP);
    let mut hasty = hasty.start()?;
    assert_eq!(hasty.code(PATIENCE).await?, 4);
    assert!(
        hasty.log.says("patient"),
        "it says who has it: {:?}",
        hasty.log.lines()
    );

    // One that came for good waits for the next.
    let waiting = beside
        .clone()
        .with(["--name", "waiting"])
        .running(CP)
        .start()?;
    waiting.log.wait_for("not taken").await?;
    fs::remove_file(setup.home().join("held"))?;
    let ended = endpoint.ended(&first, A_RUN).await?;
    ensure!(kind(&ended) == "done", "{ended:#}");
    assert_eq!(ended["sidecar"]["holder"], "patient");
    patient
        .log
        .wait_for(&format!("{first} was published"))
        .await?;

    // Both are there for each of these; one of them has it.
    for _ in 0..if soak_in_full() { 20 } else { 4 } {
        let run = endpoint.start_run().await?;
        let held = setup.home().join("held");
        let ended = end_to_end::until("the run to end", A_RUN, async || {
            if held.exists() {
                fs::remove_file(&held)?;
            }
            let status = endpoint.status().await?;
            Ok(end_to_end::endpoint::ended(&status, &run).cloned())
        })
        .await?;
        ensure!(kind(&ended) == "done", "{ended:#}");
        let copy = beside.copies().join(&run);
        appears(&copy, PATIENCE).await?;
        let holder = ended["sidecar"]["holder"].as_str().context("a holder")?;
        let published = format!("{run} was published");
        for (name, sidecar) in [("patient", &patient), ("waiting", &waiting)] {
            if name == holder {
                sidecar.log.wait_for(&published).await?;
            }
            assert_eq!(sidecar.log.says(&published), name == holder, "{name}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn files_do_where_http_does_not() -> Result<()> {
    let _beside = beside_others().await;
    for (journal, engine) in [("wal", true), ("wal", false), ("delete", false)] {
        let setup = setup(journal, 5 * MIB)?;
        let tracker = setup.start().await?;
        let endpoint = tracker.endpoint()?;
        let beside = Beside::new(&setup)?.with(["--once", "--touch-file", "run/ready.json"]);
        let beside = if engine { beside } else { beside.running(CP) };
        let mut sidecar = beside.start()?;
        let (run, _) = started(endpoint).await?;
        let ended = endpoint.ended(&run, A_RUN).await?;
        ensure!(kind(&ended) == "done", "{ended:#}");
        assert_eq!(sidecar.code(A_RUN).await?, 0);
        if engine {
            Backup::open(&backups::published(&beside.copies())?[0])?;
        } else {
            database::check(&beside.copies().join(&run).join("sqlite3.db"))?;
        }
    }

    // What it copies after its time is over is not believed.
    let setup = setup("wal", 5 * MIB)?.set("maintenance.readiness", "claim_within", "\"2s\"");
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let beside = Beside::new(&setup)?.with(["--once", "--touch-file", "run/ready.json"]);
    let beside = beside.running(CP_AND_HOLD);
    let mut sidecar = beside.start()?;
    let (run, _) = started(endpoint).await?;
    let ended = endpoint.ended(&run, A_RUN).await?;
    assert_eq!(kind(&ended), "no_sidecar", "{ended:#}");
    let code = sidecar.code(A_RUN).await?;
    assert!(code == 1 || code == 5, "{code}");
    assert_eq!(beside.made()?, [""; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_opens_the_door() -> Result<()> {
    let _beside = beside_others().await;
    let setup = setup("wal", MIB)?.set("maintenance.readiness", "token_file", "\"./token\"");
    fs::write(setup.home().join("token"), "a-token-of-the-test\n")?;
    fs::write(setup.home().join("wrong"), "a-token-of-another-test\n")?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let beside = Beside::new(&setup)?
        .at(endpoint.0)
        .with(["--start", "--once"]);
    for refused in [
        beside.clone(),
        beside.clone().with(["--token-file", "wrong"]),
        // The configured token is for the configured endpoint alone.
        Beside::new(&setup)?
            .with(["--config", "tracker.toml", "--start", "--once"])
            .at(endpoint.0),
    ] {
        let mut sidecar = refused.running(CP).start()?;
        assert_eq!(sidecar.code(PATIENCE).await?, 2);
    }
    // That is known by day, too, and of one that waits for the night.
    for (token, code) in [("token", 0), ("wrong", 2)] {
        let by_day = Beside::new(&setup)?
            .at(endpoint.0)
            .with(["--token-file", token, "--dry-run"]);
        let mut rehearsal = by_day.start()?;
        let ended = rehearsal.code(PATIENCE).await?;
        assert_eq!(ended, code, "{:?}", rehearsal.log.lines());
    }
    let waiting = Beside::new(&setup)?
        .at(endpoint.0)
        .with(["--token-file", "wrong"])
        .running(CP)
        .start()?;
    waiting.log.wait_for("no run can be taken").await?;
    drop(waiting);
    let good = [
        beside.clone().with(["--token-file", "token"]),
        beside
            .clone()
            .env("TORRUST_TRACKER_MAINTENANCE_TOKEN", "a-token-of-the-test"),
    ];
    for (nth, sidecar) in good.into_iter().enumerate() {
        let mut sidecar = sidecar.running(CP).start()?;
        assert_eq!(sidecar.code(A_RUN).await?, 0);
        assert_eq!(beside.made()?.len(), nth + 1);
        assert!(!sidecar.log.says("a-token-of"), "{:?}", sidecar.log.lines());
    }
    assert!(!tracker.log.says("a-token-of"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_against_a_real_tracker() -> Result<()> {
    let _beside = beside_others().await;
    let setup = setup("wal", MIB)?;
    let mut tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let beside = Beside::new(&setup)?.at(endpoint.0);
    let rehearsal = beside.clone().with(["--dry-run"]);
    assert_eq!(rehearsal.start()?.code(PATIENCE).await?, 0);
    assert_eq!(beside.made()?, [""; 0]);
    // The right file, and another.
    let once = beside.clone().with(["--once", "--start"]);
    assert_eq!(once.clone().running(CP).start()?.code(A_RUN).await?, 0);
    assert_eq!(
        once.clone().running("exit 7").start()?.code(A_RUN).await?,
        1
    );
    let last = endpoint.status().await?["runs"][0].clone();
    assert_eq!(
        (kind(&last), &last["outcome"]["cause"]),
        ("failed", &"sidecar".into()),
        "{last:#}"
    );
    let message = last["outcome"]["message"].to_string();
    assert!(message.contains("exited with 7"), "{message}");
    fs::copy(setup.database(), setup.home().join("other.db"))?;
    let other = once.clone().with(["--database", "other.db"]).running(CP);
    assert_eq!(other.start()?.code(A_RUN).await?, 2);
    // A page that is not what it should be: the copy is as good as the file, which is bad.
    damage(&setup.database())?;
    let mut sidecar = once.clone().start()?;
    assert_eq!(sidecar.code(A_RUN).await?, 6);
    assert_eq!(
        backups::published(&beside.copies())?.len(),
        1,
        "the command's, and no other"
    );

    // Nobody there: 3; with --force a pin of its own, which finds the same damage.
    tracker.kill().await?;
    assert_eq!(
        beside
            .clone()
            .with(["--once"])
            .start()?
            .code(PATIENCE)
            .await?,
        3
    );
    assert_eq!(rehearsal.start()?.code(PATIENCE).await?, 3);
    let forced = beside.clone().with(["--force", "--database", "sqlite3.db"]);
    assert_eq!(forced.clone().start()?.code(A_RUN).await?, 6);
    assert_eq!(forced.running(CP).start()?.code(A_RUN).await?, 0);
    assert_eq!(backups::published(&beside.copies())?.len(), 2);

    // The tracker takes its backups itself.
    let setup = Setup::new()?;
    let tracker = setup.start().await?;
    let beside = Beside::new(&setup)?
        .at(tracker.endpoint()?.0)
        .with(["--dry-run"]);
    let mut rehearsal = beside.start()?;
    assert_eq!(rehearsal.code(PATIENCE).await?, 2);
    assert!(rehearsal.log.says("it will never offer a run"));
    Ok(())
}

/// Overwrites the second page, which is part of a table or an index.
fn damage(database: &Path) -> Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = fs::File::options().write(true).open(database)?;
    Ok(file.write_all_at(&[0xff; 4096], 4096)?)
}
