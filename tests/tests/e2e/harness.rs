//! The harness itself, tried on the tracker as upstream ships it: what it counts of a
//! tracker nobody doubts, it may count of ours.

use std::time::Duration;

use anyhow::Result;
use aquatic_udp_protocol::Response;
use chrono::Utc;
use end_to_end::announce::{Announce, Event, Torrent};
use end_to_end::load::{Load, Plan};
use end_to_end::tracker::Setup;
use end_to_end::udp::UdpClient;
use end_to_end::{PATIENCE, binaries, database};

#[tokio::test(flavor = "multi_thread")]
async fn counts_agree_with_the_database_of_an_upstream_tracker() -> Result<()> {
    let setup = Setup::without_maintenance(binaries::UPSTREAM)?;
    let tracker = setup.start().await?;
    let plan = Plan {
        udp_per_second: 200,
        http_per_second: 50,
        sockets: 8,
        torrents: 20,
    };
    let load = Load::start(plan, tracker.addresses.udp, tracker.addresses.http).await?;
    load.answered_more(300, PATIENCE).await?;
    let account = load.stop(Duration::from_secs(10)).await?;

    // A burst beyond its 50 slots makes upstream drop UDP requests, anywhere on their way.
    let lost = account.failures();
    assert!(
        lost.keys().all(|failure| failure == "Udp: unanswered"),
        "{lost:?}"
    );
    assert_eq!(
        account.answered() + lost.values().sum::<usize>(),
        account.sent()
    );
    let (least, most) = (
        account.completions_answered_by(Utc::now()),
        account.completions_sent_by(Utc::now()),
    );
    let written = database::completed(&setup.database())?;
    for (torrent, count) in &written {
        let least = least.get(torrent).copied().unwrap_or(0);
        let most = most.get(torrent).copied().unwrap_or(0);
        assert!(
            (least..=most).contains(count),
            "{torrent:?}: {count} not in {least}..={most}"
        );
    }
    assert!(least.keys().all(|torrent| written.contains_key(torrent)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_connects_announces_and_scrapes() -> Result<()> {
    let tracker = Setup::without_maintenance(binaries::UPSTREAM)?
        .start()
        .await?;
    let mut client = UdpClient::connect(tracker.addresses.udp).await?;
    let mut announce = Announce {
        torrent: Torrent(1),
        peer: 1,
        event: Event::Started,
    };
    assert!(matches!(
        client.announce(announce).await?,
        Response::AnnounceIpv4(_)
    ));
    assert_eq!(client.scrape(Torrent(1)).await?, [0, 0, 1]);
    announce.event = Event::Completed;
    assert!(matches!(
        client.announce(announce).await?,
        Response::AnnounceIpv4(_)
    ));
    assert_eq!(client.scrape(Torrent(1)).await?, [1, 1, 0]);
    Ok(())
}

/// Or the next one would find its locks, now and then.
#[tokio::test(flavor = "multi_thread")]
async fn a_tracker_that_was_dropped_is_gone() -> Result<()> {
    let setup = Setup::new()?;
    for _ in 0..5 {
        let tracker = setup.start().await?;
        let stat = format!("/proc/{}/stat", tracker.pid()?.as_raw_nonzero());
        drop(tracker);
        // proc(5): pid (name) state; none once it is reaped.
        let stat = std::fs::read_to_string(stat).unwrap_or_default();
        let state = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.chars().next());
        assert!(matches!(state, None | Some('Z' | 'X')), "{stat}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_fails_is_told_with_its_output() -> Result<()> {
    let setup =
        Setup::without_maintenance(binaries::UPSTREAM)?.set("logging", "threshold", "\"loud\"");
    let Err(error) = setup.start().await else {
        panic!("a tracker with a wrong configuration started")
    };
    assert!(format!("{error:#}").contains("loud"), "{error:#}");
    let (status, output) = setup.start_refused().await?;
    assert!(!status.success());
    assert!(output.contains("loud"), "{output}");
    Ok(())
}
