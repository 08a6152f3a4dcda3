//! `load_completed`: the counters of one life are there in the next, unless they would take
//! more memory than allowed.

use std::time::Duration;

use anyhow::{Context, Result};
use aquatic_udp_protocol::Response;
use end_to_end::announce::{Announce, Event, Torrent};
use end_to_end::tracker::{Setup, Tracker};
use end_to_end::udp::UdpClient;
use end_to_end::{binaries, database};
use rustix::process::Signal;

use crate::support::{MIB, beside_others};

/// What SIGTERM is given to stop in.
const CLEANLY: Duration = Duration::from_secs(10);

const DOWNLOADED: Torrent = Torrent(1);

async fn announce(tracker: &Tracker, peer: u32, event: Event) -> Result<()> {
    let mut client = UdpClient::connect(tracker.addresses.udp).await?;
    let torrent = DOWNLOADED;
    let answer = client
        .announce(Announce {
            torrent,
            peer,
            event,
        })
        .await?;
    assert!(matches!(answer, Response::AnnounceIpv4(_)), "{answer:?}");
    Ok(())
}

/// What a scrape says has completed, and what the database says.
async fn counters(tracker: &Tracker) -> Result<(i32, u32)> {
    let mut client = UdpClient::connect(tracker.addresses.udp).await?;
    let [_, completed, _] = client.scrape(DOWNLOADED).await?;
    let rows = database::completed(&tracker.setup().database())?;
    let row = rows.get(&DOWNLOADED).context("the torrent has a row")?;
    Ok((completed, *row))
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_outlive_the_process_and_count_on() -> Result<()> {
    let _beside = beside_others().await;
    let setup = Setup::new()?.set("maintenance", "load_completed", "true");
    let mut tracker = setup.start().await?;
    for peer in 1..=2 {
        announce(&tracker, peer, Event::Started).await?;
        announce(&tracker, peer, Event::Completed).await?;
    }
    assert_eq!(counters(&tracker).await?, (2, 2));
    tracker.signal(Signal::TERM)?;
    assert!(tracker.exited(CLEANLY).await?.success());

    let mut tracker = setup.start().await?;
    // Before any announce, and after the one that without it writes 0 over the counter.
    assert_eq!(counters(&tracker).await?, (2, 2));
    announce(&tracker, 3, Event::Started).await?;
    assert_eq!(counters(&tracker).await?, (2, 2));
    announce(&tracker, 3, Event::Completed).await?;
    assert_eq!(counters(&tracker).await?, (3, 3));

    // A life that does not get to say goodbye keeps them as well.
    tracker.kill().await?;
    let tracker = setup.start().await?;
    announce(&tracker, 4, Event::Started).await?;
    assert_eq!(counters(&tracker).await?, (3, 3));
    Ok(())
}

/// The loss that the setting is for. If upstream mends it, the setting has had its time.
#[tokio::test(flavor = "multi_thread")]
async fn without_it_the_first_announce_starts_from_0_as_upstream() -> Result<()> {
    let _beside = beside_others().await;
    let setups = [
        Setup::without_maintenance(binaries::UPSTREAM)?,
        Setup::new()?.set("maintenance", "load_completed", "false"),
    ];
    for setup in setups {
        let mut tracker = setup.start().await?;
        announce(&tracker, 1, Event::Started).await?;
        announce(&tracker, 1, Event::Completed).await?;
        assert_eq!(counters(&tracker).await?, (1, 1));
        tracker.kill().await?;

        let tracker = setup.start().await?;
        announce(&tracker, 2, Event::Started).await?;
        assert_eq!(counters(&tracker).await?, (0, 0));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_that_would_take_too_much_memory_are_refused_with_the_figure() -> Result<()> {
    let _beside = beside_others().await;
    let setup = Setup::new()?
        .set("maintenance", "load_completed", "true")
        .set("maintenance", "load_completed_limit", "\"1MiB\"");
    let torrents = database::make(&setup.database(), MIB, "wal")?;

    let (status, output) = setup.start_refused().await?;
    assert_eq!(status.code(), Some(1), "{output}");
    let estimate = format!("{torrents} torrents would take about 8 MiB of memory");
    for said in [&estimate, "maintenance.load_completed_limit is 1 MiB"] {
        assert!(output.contains(said), "no {said:?} in: {output}");
    }
    assert!(!output.contains("panicked at"), "{output}");
    assert_eq!(database::count(&setup.database(), "torrents")?, torrents);
    database::check(&setup.database())?;

    // The remedy it names.
    let setup = setup.set("maintenance", "load_completed_limit", "\"16MiB\"");
    let tracker = setup.start().await?;
    let loaded = format!("Loaded the completed counters of {torrents} torrents");
    assert!(tracker.log.says(&loaded), "{:#?}", tracker.log.lines());
    Ok(())
}
