//! What the bound on held requests turns away is counted, and nothing else is lost.

use anyhow::Result;
use end_to_end::PATIENCE;
use end_to_end::announce::{Announce, Event, Torrent};
use end_to_end::http1;
use end_to_end::udp::UdpClient;
use http::StatusCode;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::{beside_others, paused_for_two_seconds, ready};

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_bound_udp_is_dropped_and_http_gets_503() -> Result<()> {
    let _beside = beside_others().await;
    let setup =
        paused_for_two_seconds()?.set("maintenance.gate", "hold_at_most", "{ udp = 10, http = 5 }");
    let tracker = setup.start().await?;
    let (endpoint, addresses) = (tracker.endpoint()?, tracker.addresses);
    let mut client = UdpClient::connect(addresses.udp).await?;

    let run = endpoint.start_run().await?;
    ready(endpoint).await?;
    for peer in 0..25 {
        client
            .post(Announce {
                torrent: Torrent(1),
                peer,
                event: Event::Started,
            })
            .await?;
    }
    let mut requests = JoinSet::new();
    for peer in 100..112 {
        let path = Announce {
            torrent: Torrent(2),
            peer,
            event: Event::Started,
        }
        .http();
        requests.spawn(async move { http1::get(addresses.http, &path).await });
    }
    let bounded = |status: &Value| {
        let gate = &status["gate"];
        gate["held"]["udp"] == 10
            && gate["turned_away"]["udp"] == 15
            && gate["held"]["http"] == 5
            && gate["turned_away"]["http"] == 7
    };
    endpoint
        .until("10 and 5 held, 15 and 7 turned away", PATIENCE, bounded)
        .await?;
    endpoint.ended(&run, PATIENCE).await?;

    let mut statuses = Vec::new();
    while let Some(answer) = requests.join_next().await {
        statuses.push(answer??.status);
    }
    let of = |wanted: StatusCode| statuses.iter().filter(|status| **status == wanted).count();
    assert_eq!(
        (of(StatusCode::OK), of(StatusCode::SERVICE_UNAVAILABLE)),
        (5, 7)
    );
    for _ in 0..10 {
        client.reply().await?;
    }
    assert_eq!(client.scrape(Torrent(1)).await?, [0, 0, 10]);
    assert_eq!(client.scrape(Torrent(2)).await?, [0, 0, 5]);
    Ok(())
}
