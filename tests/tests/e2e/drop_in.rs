//! Without `[maintenance]`, or with it disabled, the tracker behaves as upstream: the same
//! configuration, the same services, the same answers.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use aquatic_udp_protocol::Response;
use end_to_end::announce::{Announce, Event, Torrent};
use end_to_end::tracker::{Addresses, Setup, TOKEN, Tracker};
use end_to_end::udp::UdpClient;
use end_to_end::{PATIENCE, binaries, database, http1, until};
use http::Method;
use serde_json::Value;

use crate::support::{beside_others, done};

/// Asks one of everything; the answers as text, without what differs between two starts.
async fn answers(tracker: &Tracker) -> Result<Vec<String>> {
    let mut answers = udp_answers(tracker).await?;
    answers.extend(web_answers(tracker).await?);
    answers.push(format!("stats: {}", counted(tracker).await?));
    // Its body has the addresses, which differ.
    let health = http1::get(tracker.addresses.health, "/health_check").await?;
    answers.push(format!(
        "health check: {} {}",
        health.status,
        health.json()?["status"]
    ));
    Ok(answers)
}

async fn udp_answers(tracker: &Tracker) -> Result<Vec<String>> {
    let mut answers = Vec::new();
    let mut client = UdpClient::connect(tracker.addresses.udp).await?;
    for event in [
        Event::Started,
        Event::None,
        Event::Completed,
        Event::Stopped,
    ] {
        let announce = Announce {
            torrent: Torrent(1),
            peer: 1,
            event,
        };
        answers.push(match client.announce(announce).await? {
            Response::AnnounceIpv4(reply) => {
                let fixed = reply.fixed;
                let counts = (
                    fixed.announce_interval.0.get(),
                    fixed.seeders.0.get(),
                    fixed.leechers.0.get(),
                );
                format!("UDP {event:?}: {counts:?}, {} peers", reply.peers.len())
            }
            other => format!("UDP {event:?}: {other:?}"),
        });
        answers.push(format!(
            "UDP scrape: {:?}",
            client.scrape(Torrent(1)).await?
        ));
    }
    Ok(answers)
}

async fn web_answers(tracker: &Tracker) -> Result<Vec<String>> {
    let Addresses { http, api, .. } = tracker.addresses;
    let announce = Announce {
        torrent: Torrent(2),
        peer: 2,
        event: Event::Started,
    }
    .http();
    let (one, three) = (Torrent(1).hex(), Torrent(3).hex());
    let requests = [
        (http, Method::GET, announce),
        (http, Method::GET, "/announce".to_owned()),
        (
            http,
            Method::GET,
            "/announce?info_hash=short&peer_id=short&port=1".to_owned(),
        ),
        (
            http,
            Method::GET,
            "/announce/YZSl4lMZupRuOpSRC3krIKR5BPB14nrJ?info_hash=short".to_owned(),
        ),
        (http, Method::GET, "/scrape".to_owned()),
        (http, Method::GET, "/scrape?info_hash=%00".to_owned()),
        (http, Method::GET, "/health_check".to_owned()),
        (http, Method::GET, "/nowhere".to_owned()),
        (api, Method::GET, format!("/api/v1/torrents?token={TOKEN}")),
        (
            api,
            Method::GET,
            format!("/api/v1/torrent/{one}?token={TOKEN}"),
        ),
        (
            api,
            Method::GET,
            format!("/api/v1/whitelist/reload?token={TOKEN}"),
        ),
        (
            api,
            Method::GET,
            format!("/api/v1/keys/reload?token={TOKEN}"),
        ),
        (api, Method::GET, "/api/v1/stats?token=wrong".to_owned()),
        (api, Method::GET, "/api/v1/stats".to_owned()),
        (api, Method::GET, "/api/health_check".to_owned()),
        (api, Method::GET, "/api/v1/nowhere".to_owned()),
        (
            api,
            Method::POST,
            format!("/api/v1/whitelist/{three}?token={TOKEN}"),
        ),
        (
            api,
            Method::DELETE,
            format!("/api/v1/whitelist/{three}?token={TOKEN}"),
        ),
        (
            api,
            Method::POST,
            format!("/api/v1/whitelist/nothing?token={TOKEN}"),
        ),
        (api, Method::POST, format!("/api/v1/whitelist/{three}")),
    ];
    let mut answers = Vec::new();
    for (to, method, path) in requests {
        let answer = http1::send_json(to, method.clone(), &path, "").await?;
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        answers.push(format!("{method} {path}: {} {body}", answer.status));
    }
    Ok(answers)
}

/// The statistics once all of the above is in them: a task of its own counts.
async fn counted(tracker: &Tracker) -> Result<Value> {
    let path = format!("/api/v1/stats?token={TOKEN}");
    until("the announces to be counted", PATIENCE, async || {
        let stats = http1::get(tracker.addresses.api, &path).await?.json()?;
        let counted = stats["udp4_scrapes_handled"] == 4 && stats["tcp4_announces_handled"] == 1;
        Ok(counted.then_some(stats))
    })
    .await
}

/// One answer after the other, so that a difference is readable.
async fn answers_as(tracker: &Tracker, upstream: &[String]) -> Result<()> {
    let ours = answers(tracker).await?;
    assert_eq!(ours.len(), upstream.len());
    for (ours, upstreams) in ours.iter().zip(upstream) {
        assert_eq!(ours, upstreams);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_maintenance_it_answers_as_upstream() -> Result<()> {
    let _beside = beside_others().await;
    let upstream = answers(
        &Setup::without_maintenance(binaries::UPSTREAM)?
            .start()
            .await?,
    )
    .await?;
    let absent = Setup::without_maintenance(binaries::TRACKER)?;
    let disabled = Setup::new()?.set("maintenance", "enabled", "false");
    for setup in [absent, disabled] {
        let tracker = setup.start().await?;
        assert!(
            tracker.addresses.endpoint.is_none(),
            "no endpoint unless asked for"
        );
        answers_as(&tracker, &upstream).await?;
        let journal = database::command_line(&setup.database(), "PRAGMA journal_mode")?;
        assert_eq!(
            journal.trim(),
            "delete",
            "the database is left as upstream makes it"
        );
        assert!(!setup.touch_file().exists());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_maintenance_it_answers_as_upstream_too() -> Result<()> {
    let _beside = beside_others().await;
    let upstream = answers(
        &Setup::without_maintenance(binaries::UPSTREAM)?
            .start()
            .await?,
    )
    .await?;
    let tracker = Setup::new()?.start().await?;
    answers_as(&tracker, &upstream).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_overrides_the_file() -> Result<()> {
    let _beside = beside_others().await;
    let tracker = Setup::new()?
        .env(
            "TORRUST_TRACKER_CONFIG_OVERRIDE_HTTP_API__ACCESS_TOKENS__ADMIN",
            "another",
        )
        .env(
            "TORRUST_TRACKER_CONFIG_OVERRIDE_MAINTENANCE__BACKUP__COMPRESSION",
            "none",
        )
        .start()
        .await?;
    let api = tracker.addresses.api;
    assert_eq!(
        http1::get(api, "/api/v1/stats?token=another").await?.status,
        200
    );
    assert_ne!(
        http1::get(api, &format!("/api/v1/stats?token={TOKEN}"))
            .await?
            .status,
        200
    );
    done(tracker.endpoint()?).await?;
    let backup = end_to_end::backups::only(&tracker.setup().backups())?;
    assert_eq!(backup.manifest["database"]["compression"], "none");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_http_tracker_speaks_tls() -> Result<()> {
    let _beside = beside_others().await;
    let setup = Setup::new()?;
    let (certificate, key) = (
        setup.home().join("certificate.pem"),
        setup.home().join("key.pem"),
    );
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
        ])
        .args([
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ])
        .arg("-out")
        .arg(&certificate)
        .arg("-keyout")
        .arg(&key)
        .output()
        .context("starting openssl")?;
    ensure!(
        made.status.success(),
        "openssl: {}",
        String::from_utf8_lossy(&made.stderr)
    );
    let tracker = setup.tls(&certificate, &key).start().await?;

    let ask = |path: &str| -> Result<String> {
        let output = Command::new("curl")
            .args([
                "--silent",
                "--show-error",
                "--fail",
                "--max-time",
                "20",
                "--cacert",
            ])
            .arg(&certificate)
            .arg(format!("https://{}{path}", tracker.addresses.http))
            .output()
            .context("starting curl")?;
        ensure!(
            output.status.success(),
            "curl: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let announce = Announce {
        torrent: Torrent(1),
        peer: 1,
        event: Event::Started,
    }
    .http();
    assert!(ask(&announce)?.contains("8:interval"));
    done(tracker.endpoint()?).await?;
    assert!(ask(&announce)?.contains("8:interval"));
    assert_eq!(ask("/health_check")?, r#"{"status":"Ok"}"#);
    Ok(())
}
