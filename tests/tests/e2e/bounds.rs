//! What the bound on held requests turns away is counted, nothing else is lost, and the run that
//! held them is given up.

use anyhow::{Context, Result};
use end_to_end::PATIENCE;
use end_to_end::announce::{Announce, Event, Torrent};
use end_to_end::http1;
use end_to_end::udp::UdpClient;
use http::StatusCode;
use tokio::task::JoinSet;

use crate::support::{beside_others, kind, paused_for_two_seconds, ready};

#[tokio::test(flavor = "multi_thread")]
async fn beyond_the_bound_udp_is_dropped_http_gets_503_and_the_gate_opens() -> Result<()> {
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
    let ended = endpoint.ended(&run, PATIENCE).await?;
    assert_eq!(
        (kind(&ended), &ended["outcome"]["cause"]),
        ("failed", &"held_limit".into()),
        "{ended:#}"
    );
    let status = endpoint.status().await?;
    assert_eq!(status["gate"]["open"], true, "{status:#}");

    let mut statuses = Vec::new();
    while let Some(answer) = requests.join_next().await {
        statuses.push(answer??.status);
    }
    let of = |wanted: StatusCode| statuses.iter().filter(|status| **status == wanted).count();
    // How many came before the gate opened is a matter of milliseconds; none is lost uncounted.
    let turned_away = endpoint.status().await?["gate"]["turned_away"].clone();
    let of_door = |door: &str| turned_away[door].as_i64().context("a count");
    let (udp, http) = (
        i32::try_from(of_door("udp")?)?,
        i32::try_from(of_door("http")?)?,
    );
    assert!(udp > 0 || http > 0, "{turned_away}");
    assert!(udp <= 15 && http <= 7, "{turned_away}");
    assert_eq!(of(StatusCode::SERVICE_UNAVAILABLE), usize::try_from(http)?);
    assert_eq!(of(StatusCode::OK), usize::try_from(12 - http)?);
    for _ in 0..25 - udp {
        client.reply().await?;
    }
    assert_eq!(client.scrape(Torrent(1)).await?, [0, 0, 25 - udp]);
    assert_eq!(client.scrape(Torrent(2)).await?, [0, 0, 12 - http]);
    Ok(())
}
