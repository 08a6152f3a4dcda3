//! Upstream's other modes: private, listed, behind a reverse proxy. What they answer is what
//! upstream answers, with a maintenance window beside them.

use anyhow::{Context, Result, ensure};
use aquatic_udp_protocol::Response;
use end_to_end::announce::{Announce, Event, Torrent};
use end_to_end::http1::{self, Answer, Connection};
use end_to_end::tracker::{Setup, TOKEN, Tracker};
use end_to_end::udp::UdpClient;
use end_to_end::{backups, binaries, database};
use http::{Method, Request};
use http_body_util::Full;

use crate::support::{beside_others, done};

const KEY: &str = "YZSl4lMZupRuOpSRC3krIKR5BPB14nrJ";

fn started(torrent: Torrent) -> Announce {
    Announce {
        torrent,
        peer: 1,
        event: Event::Started,
    }
}

/// Upstream's tracker and this one, both with one key set to true.
async fn both(table: &str, key: &str) -> Result<[Tracker; 2]> {
    let upstream = Setup::without_maintenance(binaries::UPSTREAM)?.set(table, key, "true");
    let ours = Setup::new()?.set(table, key, "true");
    Ok([upstream.start().await?, ours.start().await?])
}

fn said(answer: &Answer) -> String {
    format!(
        "{}: {}",
        answer.status,
        String::from_utf8_lossy(&answer.body)
    )
}

async fn write(tracker: &Tracker, path: &str, body: &str) -> Result<()> {
    let path = format!("{path}?token={TOKEN}");
    let answer = http1::send_json(tracker.addresses.api, Method::POST, &path, body).await?;
    ensure!(answer.status == 200, "{path}: {}", said(&answer));
    Ok(())
}

/// The answers to one announce with a good key, with a wrong one, and without.
async fn with_keys(tracker: &Tracker) -> Result<[String; 3]> {
    let query = started(Torrent(1)).http();
    let query = query.strip_prefix("/announce").context("an announce")?;
    let wrong = KEY.replace('Y', "X");
    let [good, wrong, none] = [format!("/{KEY}"), format!("/{wrong}"), String::new()]
        .map(|key| format!("/announce{key}{query}"));
    let to = tracker.addresses.http;
    Ok([
        said(&http1::get(to, &good).await?),
        said(&http1::get(to, &wrong).await?),
        said(&http1::get(to, &none).await?),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_tracker_wants_a_key_and_has_no_udp() -> Result<()> {
    let _beside = beside_others().await;
    let [upstream, ours] = both("core", "private").await?;
    let mut answers = Vec::new();
    for tracker in [&upstream, &ours] {
        tracker
            .log
            .wait_for("Could not start UDP tracker on: 127.0.0.1:0 while in private mode")
            .await?;
        assert!(
            !tracker.log.says("UDP TRACKER"),
            "no UDP tracker is started"
        );
        let form = format!(r#"{{"key": "{KEY}", "seconds_valid": null}}"#);
        write(tracker, "/api/v1/keys", &form).await?;
        answers.push(with_keys(tracker).await?);
    }
    assert_eq!(answers[1], answers[0], "as upstream");
    let [good, wrong, none] = &answers[1];
    assert!(good.contains("8:interval"), "{good}");
    for refused in [wrong, none] {
        assert!(refused.contains("failure reason"), "{refused}");
    }

    done(ours.endpoint()?).await?;
    let backup = backups::only(&ours.setup().backups())?;
    assert_eq!(database::count(&backup.database, "keys")?, 1);
    assert_eq!(with_keys(&ours).await?[0], *good, "as before the run");
    Ok(())
}

/// The answers to announces of one torrent, over HTTP and over UDP.
async fn of_torrent(tracker: &Tracker, torrent: Torrent) -> Result<[String; 2]> {
    let http = http1::get(tracker.addresses.http, &started(torrent).http()).await?;
    let mut client = UdpClient::connect(tracker.addresses.udp).await?;
    let udp = match client.announce(started(torrent)).await? {
        Response::AnnounceIpv4(reply) => format!("{} leechers", reply.fixed.leechers.0.get()),
        Response::Error(reply) => reply.message.into_owned(),
        other => format!("{other:?}"),
    };
    Ok([said(&http), udp])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listed_tracker_serves_what_is_listed() -> Result<()> {
    let _beside = beside_others().await;
    let (listed, unlisted) = (Torrent(1), Torrent(2));
    let [upstream, ours] = both("core", "listed").await?;
    let mut answers = Vec::new();
    for tracker in [&upstream, &ours] {
        write(tracker, &format!("/api/v1/whitelist/{}", listed.hex()), "").await?;
        answers.push([
            of_torrent(tracker, listed).await?,
            of_torrent(tracker, unlisted).await?,
        ]);
    }
    assert_eq!(answers[1], answers[0], "as upstream");
    let [served, refused] = &answers[1];
    assert!(served[0].contains("8:interval"), "{served:?}");
    assert_eq!(served[1], "1 leechers", "both announces are of one peer");
    for refused in refused {
        assert!(refused.contains("is not whitelisted"), "{refused}");
    }

    done(ours.endpoint()?).await?;
    let backup = backups::only(&ours.setup().backups())?;
    assert_eq!(database::count(&backup.database, "whitelist")?, 1);
    assert_eq!(of_torrent(&ours, unlisted).await?, *refused);
    Ok(())
}

/// The answer to an announce that came through proxies, and the addresses the torrent's
/// peers then have.
async fn forwarded(
    tracker: &Tracker,
    torrent: Torrent,
    by: Option<&str>,
) -> Result<(String, Vec<String>)> {
    let mut request = Request::get(started(torrent).http());
    if let Some(by) = by {
        request = request.header("X-Forwarded-For", by);
    }
    let mut connection = Connection::open(tracker.addresses.http).await?;
    let answer = connection.send(request.body(Full::default())?).await?;
    let path = format!("/api/v1/torrent/{}?token={TOKEN}", torrent.hex());
    let known = http1::get(tracker.addresses.api, &path).await?.json()?;
    let peers = known["peers"].as_array().into_iter().flatten();
    let addresses = peers.filter_map(|peer| peer["peer_addr"].as_str());
    Ok((said(&answer), addresses.map(str::to_owned).collect()))
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_reverse_proxy_the_peer_is_who_it_forwards_for() -> Result<()> {
    let _beside = beside_others().await;
    // The right-most address is the one the nearest proxy vouches for.
    let forwarding = [
        (Some("203.0.113.7"), Some("203.0.113.7:65535")),
        (Some("198.51.100.1, 203.0.113.8"), Some("203.0.113.8:65535")),
        (Some("2001:db8::9"), Some("[2001:db8::9]:65535")),
        (Some("nobody"), None),
        (None, None),
    ];
    let [upstream, ours] = both("core.net", "on_reverse_proxy").await?;
    for (torrent, (by, peer)) in (1..).map(Torrent).zip(forwarding) {
        let expected = forwarded(&upstream, torrent, by).await?;
        let found = forwarded(&ours, torrent, by).await?;
        assert_eq!(found, expected, "{by:?}: as upstream");
        let peer: Vec<_> = peer.map(str::to_owned).into_iter().collect();
        assert_eq!(found.1, peer, "{by:?}");
    }
    Ok(())
}
