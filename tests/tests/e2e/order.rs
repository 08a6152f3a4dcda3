//! Held announces are processed in the order of their peer, and a resend only once.

use anyhow::Result;
use aquatic_udp_protocol::Response;
use end_to_end::PATIENCE;
use end_to_end::announce::{Announce, Event, Torrent};
use end_to_end::udp::{UdpClient, transaction_of};
use serde_json::Value;

use crate::support::{beside_others, paused_for_two_seconds, ready};

#[tokio::test(flavor = "multi_thread")]
async fn a_peers_held_announces_keep_their_order_and_a_resend_is_merged() -> Result<()> {
    let _beside = beside_others().await;
    let tracker = paused_for_two_seconds()?.start().await?;
    let endpoint = tracker.endpoint()?;
    let mut whole = UdpClient::connect(tracker.addresses.udp).await?;
    let mut impatient = UdpClient::connect(tracker.addresses.udp).await?;
    let torrent = Torrent(7);

    let run = endpoint.start_run().await?;
    ready(endpoint).await?;
    // A whole life while the gate is closed. Out of order it would leave a seeder, or no
    // completion.
    let mut expected = Vec::new();
    for event in [Event::Started, Event::Completed, Event::Stopped] {
        expected.push(
            whole
                .post(Announce {
                    torrent,
                    peer: 1,
                    event,
                })
                .await?,
        );
    }
    // As aria2 does: the same again, under another transaction.
    let resent = Announce {
        torrent,
        peer: 2,
        event: Event::Started,
    };
    impatient.post(resent).await?;
    impatient.post(resent).await?;
    let newest = impatient.post(resent).await?;
    let arrived =
        |status: &Value| status["gate"]["held"]["udp"] == 4 && status["gate"]["merged"]["udp"] == 2;
    endpoint
        .until("four announces held and two merged", PATIENCE, arrived)
        .await?;

    for transaction in expected {
        let reply = whole.reply().await?;
        assert!(matches!(reply, Response::AnnounceIpv4(_)), "{reply:?}");
        assert_eq!(transaction_of(&reply), transaction);
    }
    assert_eq!(transaction_of(&impatient.reply().await?), newest);
    endpoint.ended(&run, PATIENCE).await?;
    assert_eq!(
        impatient.scrape(torrent).await?,
        [0, 1, 1],
        "seeders, completed, leechers"
    );
    let status = endpoint.status().await?;
    assert_eq!(status["gate"]["released"]["udp"], 4, "{status:#}");
    assert_eq!(status["gate"]["held"]["udp"], 0, "{status:#}");
    Ok(())
}
