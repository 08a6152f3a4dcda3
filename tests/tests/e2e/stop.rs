//! SIGTERM and SIGINT stop the tracker cleanly, also in the middle of a run.

use std::time::Duration;

use anyhow::Result;
use aquatic_udp_protocol::Response;
use end_to_end::announce::{Announce, Event, Torrent};
use end_to_end::tracker::Setup;
use end_to_end::udp::UdpClient;
use end_to_end::{PATIENCE, database, http1, until};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{MIB, all_good, beside_others, nothing_temporary, ready};

/// What both signals are given to stop in.
const CLEANLY: Duration = Duration::from_secs(10);

async fn stops_with_held_announces(signal: Signal) -> Result<()> {
    let _beside = beside_others().await;
    // The copy would take a minute.
    let setup = Setup::new()?
        .set("maintenance", "announces", "\"pause\"")
        .set("maintenance.gate", "hold_for", "\"90s\"")
        .set("maintenance.backup", "bandwidth", "\"1MiB\"");
    database::make(&setup.database(), 40 * MIB, "wal")?;
    let mut tracker = setup.start().await?;
    let (endpoint, addresses) = (tracker.endpoint()?, tracker.addresses);
    let mut client = UdpClient::connect(addresses.udp).await?;
    endpoint.start_run().await?;
    ready(endpoint).await?;

    for peer in 0..20 {
        client
            .post(Announce {
                torrent: Torrent(1),
                peer,
                event: Event::Started,
            })
            .await?;
    }
    let path = Announce {
        torrent: Torrent(2),
        peer: 1,
        event: Event::Started,
    }
    .http();
    let over_http = tokio::spawn(async move { http1::get(addresses.http, &path).await });
    let held =
        |status: &Value| status["gate"]["held"]["udp"] == 20 && status["gate"]["held"]["http"] == 1;
    endpoint.until("21 announces held", PATIENCE, held).await?;
    tracker.signal(signal)?;

    for _ in 0..20 {
        assert!(matches!(client.reply().await?, Response::AnnounceIpv4(_)));
    }
    assert_eq!(over_http.await??.status, 200);
    let status = tracker.exited(CLEANLY).await?;
    assert!(status.success(), "{status}");
    nothing_temporary(&setup)?;
    assert_eq!(all_good(&setup)?, 0);
    database::check(&setup.database())
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_in_a_run_answers_what_is_held_and_leaves_nothing() -> Result<()> {
    stops_with_held_announces(Signal::TERM).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sigint_in_a_run_answers_what_is_held_and_leaves_nothing() -> Result<()> {
    stops_with_held_announces(Signal::INT).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_while_a_copy_goes_on_beside_announces_leaves_nothing() -> Result<()> {
    let _beside = beside_others().await;
    // In WAL the gate is open again; the copy would take a minute and a half.
    let setup = Setup::new()?.set("maintenance.backup", "bandwidth", "\"64KiB\"");
    database::make(&setup.database(), MIB, "wal")?;
    let mut tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    endpoint.start_run().await?;
    let copying = |status: &Value| {
        status["gate"]["open"] == true
            && status["state"] == "copying"
            && status["run"]["progress"]["done"].as_u64() > Some(0)
    };
    endpoint.until("a part copied", PATIENCE, copying).await?;
    until("the touch-file", PATIENCE, async || {
        Ok(setup.touch_file().exists().then_some(()))
    })
    .await?;
    tracker.signal(Signal::TERM)?;
    let status = tracker.exited(CLEANLY).await?;
    assert!(status.success(), "{status}");
    nothing_temporary(&setup)?;
    assert_eq!(all_good(&setup)?, 0);
    database::check(&setup.database())
}

#[tokio::test(flavor = "multi_thread")]
async fn both_signals_stop_a_tracker_that_only_serves() -> Result<()> {
    let _beside = beside_others().await;
    for signal in [Signal::TERM, Signal::INT] {
        for setup in [Setup::new()?, Setup::new()?.without("maintenance")] {
            let mut tracker = setup.start().await?;
            tracker.signal(signal)?;
            let status = tracker.exited(CLEANLY).await?;
            assert!(status.success(), "{signal:?}: {status}");
        }
    }
    Ok(())
}
