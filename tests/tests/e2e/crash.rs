//! SIGKILL at random points of a run: the next start serves, and what is published is good.

use std::collections::HashSet;

use anyhow::Result;
use aquatic_udp_protocol::Response;
use end_to_end::announce::{Announce, Event, Torrent};
use end_to_end::backups::{self, Backup};
use end_to_end::load::{Load, Plan};
use end_to_end::tracker::Setup;
use end_to_end::udp::UdpClient;
use end_to_end::{PATIENCE, database, soak_in_full};

use crate::support::{MIB, alone, done, nothing_temporary};

#[tokio::test(flavor = "multi_thread")]
async fn after_sigkill_in_a_run_the_tracker_serves_and_no_bad_backup_is_listed() -> Result<()> {
    let _alone = alone().await;
    let setup = Setup::new()?
        .set("maintenance.backup", "bandwidth", "\"50MiB\"")
        .set(
            "maintenance.backup",
            "keep",
            "{ last = 3, daily = 0, weekly = 0, monthly = 0 }",
        );
    database::make(&setup.database(), 20 * MIB, "wal")?;
    let plan = Plan {
        udp_per_second: 500,
        http_per_second: 50,
        sockets: 16,
        torrents: 500,
    };
    let mut good = HashSet::new();

    for round in 0..if soak_in_full() { 50 } else { 10 } {
        let mut tracker = setup.start().await?;
        let load = Load::start(plan, tracker.addresses.udp, tracker.addresses.http).await?;
        load.answered_more(50, PATIENCE).await?;
        tracker.endpoint()?.start_run().await?;
        // A run takes about a second; the load is the clock.
        let sent = load.counts().sent + fastrand::usize(..600);
        load.until(PATIENCE, |counts| counts.sent >= sent).await?;
        tracker.kill().await?;
        drop(load);

        let tracker = setup.start().await?;
        nothing_temporary(&setup)?;
        let mut client = UdpClient::connect(tracker.addresses.udp).await?;
        let announce = Announce {
            torrent: Torrent(u32::MAX - round),
            peer: 1,
            event: Event::Started,
        };
        assert!(
            matches!(client.announce(announce).await?, Response::AnnounceIpv4(_)),
            "round {round}"
        );
        let status = tracker.endpoint()?.status().await?;
        assert_eq!(
            status["gate"]["open"], true,
            "nothing of a pause outlives the process: {status:#}"
        );
        for directory in backups::published(&setup.backups())? {
            if good.insert(directory.clone()) {
                Backup::open(&directory)?;
            }
        }
    }
    let tracker = setup.start().await?;
    done(tracker.endpoint()?).await?;
    Ok(())
}
