//! The disaster drill, by the commands of `docs/disaster.md`: the machine is gone, what is left is
//! the bucket, its credentials and the identity.

use std::fs;

use anyhow::{Context, Result};
use aquatic_udp_protocol::Response;
use end_to_end::announce::{Announce, Event, Torrent, accepted};
use end_to_end::s3::{BUCKET, Server, uploading};
use end_to_end::tracker::{Setup, TOKEN, Tracker};
use end_to_end::udp::UdpClient;
use end_to_end::{binaries, database, http1};
use http::Method;

use crate::remote::is_there;
use crate::support::{beside_others, done, identity_in, next_second, printed, tool, uploaded};

/// How many torrents are completed, each as often as its number says.
const TORRENTS: u32 = 5;

/// The one that lets a peer in where keys are needed.
const KEY: &str = "YZSl4lMZupRuOpSRC3krIKR5BPB14nrJ";

async fn fill(tracker: &Tracker) -> Result<()> {
    let mut client = UdpClient::connect(tracker.addresses.udp).await?;
    for torrent in 1..=TORRENTS {
        for peer in 1..=torrent {
            for event in [Event::Started, Event::Completed] {
                let torrent = Torrent(torrent);
                client
                    .announce(Announce {
                        torrent,
                        peer,
                        event,
                    })
                    .await?;
            }
        }
    }
    let api = tracker.addresses.api;
    let key = format!("/api/v1/keys?token={TOKEN}");
    let form = format!(r#"{{"key": "{KEY}", "seconds_valid": null}}"#);
    let listed = format!("/api/v1/whitelist/{}?token={TOKEN}", Torrent(1).hex());
    for (path, body) in [(&key, form.as_str()), (&listed, "")] {
        let answer = http1::send_json(api, Method::POST, path, body).await?;
        assert_eq!(answer.status, 200, "{path}");
    }
    Ok(())
}

/// What it serves and has: counters as a scrape shows them, and rows.
async fn served(tracker: &Tracker) -> Result<(Vec<i32>, [Vec<String>; 3])> {
    let mut client = UdpClient::connect(tracker.addresses.udp).await?;
    let mut completed = Vec::new();
    for torrent in 1..=TORRENTS {
        let [_, count, _] = client.scrape(Torrent(torrent)).await?;
        completed.push(count);
    }
    let database = tracker.setup().database();
    let rows = |table| database::rows(&database, table);
    Ok((
        completed,
        [rows("torrents")?, rows("keys")?, rows("whitelist")?],
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn from_a_bucket_onto_an_empty_directory() -> Result<()> {
    let _beside = beside_others().await;
    let server = Server::start().await?;
    let setup = Setup::new()?.set("maintenance", "load_completed", "true");
    let safe = tempfile::tempdir()?;
    let (identity, recipient) = identity_in(safe.path())?;
    let setup = uploading(setup, server.address, &server.key, "drill")?.set(
        "maintenance.backup",
        "recipients",
        &format!("[\"{recipient}\"]"),
    );
    let home = setup.home().to_owned();
    let configuration = setup.toml();

    let mut tracker = setup.start().await?;
    fill(&tracker).await?;
    let before = served(&tracker).await?;
    assert_eq!(before.0, [1, 2, 3, 4, 5]);
    assert_eq!(before.1.each_ref().map(Vec::len), [5, 1, 1]);
    assert!(before.1[1][0].contains(KEY), "{before:?}");
    assert!(before.1[2][0].contains(&Torrent(1).hex()), "{before:?}");
    done(tracker.endpoint()?).await?;
    uploaded(&tracker).await?;

    // The disaster.
    tracker.kill().await?;
    drop(tracker);
    for entry in fs::read_dir(&home)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(path)?;
        } else {
            fs::remove_file(path)?;
        }
    }

    // From here on the page: a file that says where the bucket is, and the identity.
    fs::write(home.join("s3.secret"), &server.key.secret_access_key)?;
    fs::write(
        home.join("rescue.toml"),
        format!(
            "[maintenance]\nenabled = true\nwindow = \"03:00-03:05\"\n\n[maintenance.remote]\n\
             url = \"s3://{BUCKET}/drill\"\nendpoint = \"http://{}\"\nallow_http = true\n\
             access_key_id = \"{}\"\nsecret_access_key_file = \"s3.secret\"\n",
            server.address, server.key.access_key_id
        ),
    )?;
    let key = identity.to_str().context("a path in UTF-8")?;
    let rescue = |arguments: &[&str]| {
        let output = std::process::Command::new(binaries::path(binaries::TOOL)?)
            .args(["--json", "--config", "rescue.toml"])
            .args(arguments)
            .current_dir(&home)
            .output()?;
        printed(&output)
    };
    let list = rescue(&["list", "--remote"])?;
    assert_eq!(list["entries"][0]["state"], "complete", "{list:#}");
    let from = ["--from", "remote", "--identity", key];
    let files = ["restore", "--files", "--files-to", "files"];
    rescue(&[&files[..], &from].concat())?;
    let restored = home.join("files").join(setup.file().strip_prefix("/")?);
    fs::rename(&restored, setup.file()).with_context(|| format!("{}", restored.display()))?;
    assert_eq!(fs::read_to_string(setup.file())?, configuration);
    for name in ["backups", "run"] {
        fs::create_dir(home.join(name))?;
    }
    printed(&tool(&setup, &[&["restore"][..], &from].concat())?)?;

    // What was another's there is this one's from now on.
    printed(&tool(&setup, &["upload", "--take-over"])?)?;

    let tracker = setup.start().await?;
    assert_eq!(served(&tracker).await?, before, "as before the disaster");
    next_second().await?;
    let run = done(tracker.endpoint()?).await?;
    is_there(&tracker, run["backup"].as_str().context("a backup")?).await?;
    let list = printed(&tool(&setup, &["list", "--remote"])?)?;
    assert_eq!(list["entries"][0]["state"], "complete", "{list:#}");
    assert_eq!(list["entries"][0]["manifest"]["id"], run["backup"]);
    drop(tracker);
    let listed = setup.clone().set("core", "listed", "true");
    lets_in_what_is_listed(&listed.start().await?).await?;
    let private = setup.set("core", "private", "true");
    lets_in_with_the_key(&private.start().await?).await
}

fn started(torrent: u32) -> Announce {
    Announce {
        torrent: Torrent(torrent),
        peer: 1,
        event: Event::Started,
    }
}

async fn lets_in_what_is_listed(tracker: &Tracker) -> Result<()> {
    let mut client = UdpClient::connect(tracker.addresses.udp).await?;
    let listed = client.announce(started(1)).await?;
    assert!(matches!(listed, Response::AnnounceIpv4(_)), "{listed:?}");
    let other = client.announce(started(2)).await?;
    assert!(matches!(other, Response::Error(_)), "{other:?}");
    Ok(())
}

async fn lets_in_with_the_key(tracker: &Tracker) -> Result<()> {
    let path = started(2).http();
    let query = path.strip_prefix("/announce").context("an announce")?;
    for (key, is_let_in) in [
        (format!("/{KEY}"), true),
        (format!("/{}", KEY.replace('Y', "X")), false),
        (String::new(), false),
    ] {
        let path = format!("/announce{key}{query}");
        let answer = http1::get(tracker.addresses.http, &path).await?;
        assert_eq!(accepted(&answer).is_ok(), is_let_in, "{key}: {answer:?}");
    }
    Ok(())
}
