//! From a rollback journal to WAL in a run, under load: what could not be copied can be then,
//! and nothing that was acknowledged is lost on either side.

use std::time::Duration;

use anyhow::{Result, ensure};
use chrono::Utc;
use end_to_end::endpoint::Endpoint;
use end_to_end::load::{Load, Plan};
use end_to_end::tracker::Setup;
use end_to_end::{PATIENCE, backups, database, http1, session};
use http::Method;
use serde_json::Value;

use crate::support::{
    A_RUN, MIB, alone, beside_others, done, kind, nothing_lost, nothing_temporary,
    shows_its_instant,
};

/// What is ordered, or withdrawn, and with which status that is answered.
async fn ask(endpoint: Endpoint, method: Method, body: &str) -> Result<(u16, Value)> {
    let path = "/api/v1/journal-mode";
    let answer = http1::send_json(endpoint.0, method, path, body).await?;
    Ok((answer.status.as_u16(), answer.json()?))
}

const TO_WAL: &str = r#"{"journal_mode": "wal"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_database_goes_over_to_wal_in_a_run_under_load() -> Result<()> {
    let _alone = alone().await;
    // A copy takes six seconds, and announces may be held for three.
    let setup = Setup::new()?
        .set("maintenance", "journal_mode", "\"keep\"")
        .set("maintenance.gate", "hold_for", "\"3s\"")
        .set("maintenance.backup", "bandwidth", "\"10MiB\"");
    database::make(&setup.database(), 60 * MIB, "delete")?;
    let mut tracker = setup.start().await?;
    let (endpoint, addresses) = (tracker.endpoint()?, tracker.addresses);
    let plan = Plan {
        udp_per_second: 200,
        http_per_second: 20,
        sockets: 16,
        torrents: 200,
    };
    let load = Load::start(plan, addresses.udp, addresses.http).await?;
    load.answered_more(300, PATIENCE).await?;
    let run = endpoint.run(A_RUN).await?;
    assert_eq!(kind(&run), "would_not_fit", "{run:#}");

    // Withdrawn, it is as if nothing had been ordered.
    let (code, ordered) = ask(endpoint, Method::PUT, TO_WAL).await?;
    assert_eq!((code, &ordered["journal_mode"]), (202, &"delete".into()));
    let status = endpoint.status().await?;
    assert_eq!(status["database"]["switch"], ordered["switch"]);
    let (code, withdrawn) = ask(endpoint, Method::DELETE, "{}").await?;
    assert_eq!((code, &withdrawn["switch"]), (200, &Value::Null));
    let run = endpoint.run(A_RUN).await?;
    assert_eq!(kind(&run), "would_not_fit", "{run:#}");

    assert_eq!(ask(endpoint, Method::PUT, TO_WAL).await?.0, 202);
    let run = done(endpoint).await?;
    assert_eq!(run["switched_to"], "wal", "{run:#}");
    let pause = session::pause_ms(&run)?;
    assert!(pause < 2_000.0, "announces waited for the copy: {run:#}");
    tracker
        .log
        .wait_for("The journal mode was switched")
        .await?;
    let status = endpoint.status().await?;
    assert_eq!(status["database"]["journal_mode"], "wal", "{status:#}");
    assert_eq!(status["database"]["switch"], Value::Null, "{status:#}");
    assert_eq!(ask(endpoint, Method::PUT, TO_WAL).await?.0, 200);
    load.answered_more(300, PATIENCE).await?;
    let account = load.stop(PATIENCE).await?;

    nothing_lost(&account);
    let backup = backups::only(&setup.backups())?;
    assert_eq!(backup.manifest["journal_mode"], "wal");
    shows_its_instant(&backup, &account)?;
    nothing_temporary(&setup)?;

    // And then it is killed.
    let load = Load::start(plan, addresses.udp, addresses.http).await?;
    load.answered_more(300, PATIENCE).await?;
    tracker.kill().await?;
    let last = load.stop(Duration::from_millis(100)).await?;
    database::check(&setup.database())?;
    let mut acknowledged = account.completions_answered_by(Utc::now());
    for (torrent, completed) in last.completions_answered_by(Utc::now()) {
        *acknowledged.entry(torrent).or_default() += completed;
    }
    ensure!(
        !acknowledged.is_empty(),
        "nothing that could have been lost"
    );
    let stored = database::completed(&setup.database())?;
    for (torrent, completed) in &acknowledged {
        let stored = stored.get(torrent).copied().unwrap_or(0);
        assert!(stored >= *completed, "{torrent:?}: {stored} of {completed}");
    }

    let tracker = setup.start().await?;
    let status = tracker.endpoint()?.status().await?;
    assert_eq!(status["database"]["journal_mode"], "wal", "it is kept");
    println!("to WAL under load: the gate was closed for {pause:.1} ms");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_configuration_would_undo_is_refused() -> Result<()> {
    let _beside = beside_others().await;
    let setup = Setup::new()?.set("maintenance", "journal_mode", "\"delete\"");
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let (code, refused) = ask(endpoint, Method::PUT, TO_WAL).await?;
    assert_eq!((code, &refused["error"]), (409, &"no_switch".into()));
    let (code, refused) = ask(endpoint, Method::PUT, r#"{"journal_mode": "delete"}"#).await?;
    assert_eq!((code, &refused["error"]), (400, &"bad_body".into()));
    let run = done(endpoint).await?;
    assert_eq!(run["switched_to"], Value::Null, "{run:#}");
    assert_eq!(
        backups::only(&setup.backups())?.manifest["journal_mode"],
        "delete"
    );
    Ok(())
}
