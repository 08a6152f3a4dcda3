//! Upstream's own clients and checker work against the tracker.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use end_to_end::tracker::{Addresses, Setup};
use serde_json::{Value, json};

use crate::support::{beside_others, done};

const HASH: &str = "9c38422213e30bff212b30c360d26f9a02136422";

/// What a client printed, as JSON; some print their log before it.
fn printed(output: &Output) -> Result<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    let begin = text.find(['{', '[']).context("no JSON")?;
    serde_json::from_str(&text[begin..]).with_context(|| format!("not JSON: {text}"))
}

/// Without colours: their escape sequences have brackets.
fn client(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env("NO_COLOR", "1");
    command
}

fn udp(arguments: [&str; 3]) -> Result<Value> {
    printed(
        &client(env!("CARGO_BIN_EXE_udp_tracker_client"))
            .args(arguments)
            .output()?,
    )
}

fn http(arguments: [&str; 3]) -> Result<Value> {
    printed(
        &client(env!("CARGO_BIN_EXE_http_tracker_client"))
            .args(arguments)
            .output()?,
    )
}

fn checker(addresses: Addresses) -> Result<Value> {
    let configuration = json!({
        "udp_trackers": [addresses.udp.to_string()],
        "http_trackers": [format!("http://{}", addresses.http)],
        "health_checks": [
            format!("http://{}/health_check", addresses.health),
            format!("http://{}/api/health_check", addresses.api),
        ],
    });
    printed(
        &client(env!("CARGO_BIN_EXE_tracker_checker"))
            .env("TORRUST_CHECKER_CONFIG", configuration.to_string())
            .output()?,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_announce_and_scrape_and_the_checker_is_content() -> Result<()> {
    let _beside = beside_others().await;
    let tracker = Setup::new()?.start().await?;
    let addresses = tracker.addresses;
    let (udp_tracker, http_tracker) = (
        addresses.udp.to_string(),
        format!("http://{}", addresses.http),
    );

    // Before a run and after one.
    for _ in 0..2 {
        let announced = udp(["announce", &udp_tracker, HASH])?;
        assert!(
            announced["AnnounceIpv4"]["transaction_id"].is_number(),
            "{announced}"
        );
        let scraped = udp(["scrape", &udp_tracker, HASH])?;
        assert!(scraped["Scrape"]["torrent_stats"].is_array(), "{scraped}");
        let announced = http(["announce", &http_tracker, HASH])?;
        assert!(announced["interval"].is_number(), "{announced}");
        let scraped = http(["scrape", &http_tracker, HASH])?;
        assert!(scraped[HASH]["complete"].is_number(), "{scraped}");
        let checked = checker(addresses)?;
        let checks = checked.as_array().context("a list of checks")?;
        assert!(checks.len() >= 4, "{checked:#}");
        assert!(!checked.to_string().contains("\"Err\""), "{checked:#}");
        done(tracker.endpoint()?).await?;
    }
    Ok(())
}
