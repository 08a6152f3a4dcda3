//! Backups leave the machine, while announces flow, whatever the network does.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::load::{Load, Plan};
use end_to_end::s3::{Fault, Front, Server, uploading};
use end_to_end::tracker::{Setup, Tracker};
use end_to_end::{PATIENCE, backups, database};
use serde_json::Value;

use crate::support::{A_RUN, MIB, beside_others, done, nothing_lost, printed, tool, uploaded};

/// Waits until this backup is in the bucket.
pub async fn is_there(tracker: &Tracker, id: &str) -> Result<()> {
    tracker.log.wait_for(&format!("Backup {id} is in")).await
}

/// The backups that are listed there, each of which must be whole.
pub fn whole(setup: &Setup) -> Result<Vec<String>> {
    let list = printed(&tool(setup, &["list", "--remote"])?)?;
    let entries = list["entries"].as_array().context("entries")?;
    let complete = entries.iter().filter(|entry| entry["state"] == "complete");
    let ids = complete.map(|entry| entry["manifest"]["id"].as_str().map(str::to_owned));
    let ids: Vec<_> = ids.collect::<Option<_>>().context("ids")?;
    for (nth, id) in ids.iter().enumerate() {
        let to = setup.home().join(format!("restored-{nth}.db"));
        let to = to.to_str().context("a path in UTF-8")?;
        let arguments = ["restore", "--from", "remote", id, "--to", to];
        printed(&tool(setup, &arguments)?).with_context(|| format!("{id} is listed"))?;
        database::check(Path::new(to))?;
        std::fs::remove_file(to)?;
    }
    Ok(ids)
}

/// A tracker's directory with a database whose artifact is uploaded in four parts.
fn in_parts() -> Result<Setup> {
    let setup = Setup::new()?.set("maintenance.backup", "compression", "\"none\"");
    database::make(&setup.database(), 11 * MIB, "wal")?;
    Ok(setup)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_uploaded_while_announces_flow_and_no_secret_shows() -> Result<()> {
    let _beside = beside_others().await;
    let server = Server::start().await?;
    let front = Front::start(server.address).await?;
    let setup = uploading(in_parts()?, front.address(), &server.key, "flow")?;
    // So slow that announces flow for a while of it.
    front.set(Fault::Slow(Duration::from_millis(100)));
    let tracker = setup.start().await?;
    let plan = Plan {
        udp_per_second: 200,
        http_per_second: 20,
        sockets: 8,
        torrents: 20,
    };
    let load = Load::start(plan, tracker.addresses.udp, tracker.addresses.http).await?;
    load.answered_more(100, PATIENCE).await?;
    let run = done(tracker.endpoint()?).await?;
    let status = uploaded(&tracker).await?;
    nothing_lost(&load.stop(Duration::from_secs(10)).await?);
    assert_eq!(
        whole(&setup)?,
        [run["backup"].as_str().context("a backup")?]
    );

    let pid = tracker.pid()?.as_raw_nonzero();
    let command = std::fs::read(format!("/proc/{pid}/cmdline"))?;
    let mut shown = tracker.log.lines().join("\n");
    shown.push_str(&status.to_string());
    shown.push_str(&String::from_utf8_lossy(&command));
    for directory in backups::published(&setup.backups())? {
        shown.push_str(&std::fs::read_to_string(directory.join("manifest.json"))?);
    }
    let secret = &server.key.secret_access_key;
    assert!(!shown.contains(secret), "the secret key shows");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_request_fails_what_is_listed_is_whole_and_the_next_try_completes() -> Result<()> {
    let _beside = beside_others().await;
    let server = Server::start().await?;
    let front = Front::start(server.address).await?;
    let setup = in_parts()?;
    let mut tracker = setup.start().await?;
    done(tracker.endpoint()?).await?;
    tracker.kill().await?;
    let mut cases = 0;
    for (name, fault) in [
        ("busy", Fault::Busy as fn(usize) -> Fault),
        ("cut", Fault::Cut),
        ("down", Fault::Down),
    ] {
        for n in 0.. {
            // Each in a place of its own, and each request once.
            let prefix = format!("{name}-{n}");
            let setup = uploading(setup.clone(), front.address(), &server.key, &prefix)?.set(
                "maintenance.remote",
                "attempts",
                "1",
            );
            std::fs::write(setup.file(), setup.toml())?;
            front.set(fault(n));
            let first = tool(&setup, &["upload"])?;
            let reached = front.made() > n;
            front.set(Fault::None);
            let listed = whole(&setup)?;
            assert!(!first.status.success() || listed.len() == 1, "{prefix}");
            printed(&tool(&setup, &["upload"])?).with_context(|| prefix.clone())?;
            assert_eq!(whole(&setup)?.len(), 1, "{prefix}");
            if !reached {
                break;
            }
            cases += 1;
        }
    }
    println!("{cases} requests failed");
    assert!(cases > 30, "an upload has more requests than {cases}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_was_killed_is_taken_up_by_the_next_start() -> Result<()> {
    let _beside = beside_others().await;
    let server = Server::start().await?;
    let front = Front::start(server.address).await?;
    let setup = uploading(in_parts()?, front.address(), &server.key, "killed")?;
    let mut tracker = setup.start().await?;
    front.set(Fault::Hang("partNumber=2"));
    done(tracker.endpoint()?).await?;
    end_to_end::until("a part to be there", PATIENCE, async || {
        let note = std::fs::read_dir(setup.backups())?
            .filter_map(Result::ok)
            .find(|entry| entry.file_name().to_string_lossy().ends_with(".upload"));
        let parts = note.and_then(|note| std::fs::read_to_string(note.path()).ok());
        let parts = parts.and_then(|json| serde_json::from_str::<Value>(&json).ok());
        Ok(parts.filter(|note| {
            note["parts"]
                .as_array()
                .is_some_and(|parts| !parts.is_empty())
        }))
    })
    .await?;
    let second = async || Ok((front.parts() == [1, 2]).then_some(()));
    end_to_end::until("the second part to be put", PATIENCE, second).await?;
    tracker.kill().await?;
    assert_eq!(uploads(&setup)?.len(), 1, "it is noted how far it is");
    front.set(Fault::None);
    let tracker = setup.start().await?;
    uploaded(&tracker).await?;
    assert_eq!(front.parts(), [2, 3, 4], "what was there is not put again");
    assert_eq!(front.begun(), 0);
    assert_eq!(whole(&setup)?.len(), 1);
    assert!(uploads(&setup)?.is_empty());
    assert_eq!(incomplete(&server).await?, 0);
    Ok(())
}

/// How many uploads in parts the server has that were neither completed nor given up.
async fn incomplete(server: &Server) -> Result<usize> {
    let asked = "print(len(s3.list_multipart_uploads(Bucket=bucket).get('Uploads', [])))";
    server.ask(asked).await?.parse().context("a number")
}

/// A backup whose upload ended in its second part, by a refusal; its id.
async fn refused_part_way(setup: &Setup, front: &Front) -> Result<String> {
    let mut tracker = setup.clone().without("maintenance.remote").start().await?;
    let run = done(tracker.endpoint()?).await?;
    tracker.kill().await?;
    std::fs::write(setup.file(), setup.toml())?;
    front.set(Fault::Forbid("partNumber=2"));
    let output = tool(setup, &["upload"])?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(2) && told.contains("AccessDenied"),
        "{told}"
    );
    assert_eq!(front.parts(), [1, 2]);
    front.set(Fault::None);
    Ok(run["backup"].as_str().context("a backup")?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_up_is_kept_whatever_the_server_says_but_that_it_is_lost() -> Result<()> {
    let _beside = beside_others().await;
    let server = Server::start().await?;
    let front = Front::start(server.address).await?;
    let setup = uploading(in_parts()?, front.address(), &server.key, "kept")?;
    // A refusal: somebody corrects the permissions, and it goes on.
    refused_part_way(&setup, &front).await?;
    assert_eq!(incomplete(&server).await?, 1);
    // A part that did not come in time is put again, and nothing else is.
    front.set(Fault::TimeOut("partNumber=3"));
    printed(&tool(&setup, &["upload"])?)?;
    assert_eq!((front.parts(), front.begun()), (vec![2, 3, 3, 4], 0));
    assert_eq!(whole(&setup)?.len(), 1);
    assert_eq!(incomplete(&server).await?, 0);

    // The server has forgotten it: from the beginning.
    let setup = uploading(in_parts()?, front.address(), &server.key, "lost")?;
    refused_part_way(&setup, &front).await?;
    server
        .ask(
            "for it in s3.list_multipart_uploads(Bucket=bucket)['Uploads']:\n    \
             s3.abort_multipart_upload(Bucket=bucket, Key=it['Key'], UploadId=it['UploadId'])",
        )
        .await?;
    printed(&tool(&setup, &["upload"])?)?;
    // This one says 500 of it, which is tried again before it is asked what it has.
    let (parts, begun) = (front.parts(), front.begun());
    assert_eq!((parts, begun), (vec![2, 2, 1, 2, 3, 4], 1));
    assert_eq!(whole(&setup)?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_will_not_be_ended_is_given_up_on_the_server() -> Result<()> {
    let _beside = beside_others().await;
    let server = Server::start().await?;
    let front = Front::start(server.address).await?;
    let setup = uploading(in_parts()?, front.address(), &server.key, "orphan")?;
    let id = refused_part_way(&setup, &front).await?;
    assert_eq!(incomplete(&server).await?, 1);
    printed(&tool(&setup, &["delete", &id, "--force"])?)?;
    printed(&tool(&setup, &["upload"])?)?;
    assert_eq!(incomplete(&server).await?, 0);
    assert!(uploads(&setup)?.is_empty());

    // Killed before it could be noted what the server calls it; and what is none of ours.
    let begin = |key: &str| format!("s3.create_multipart_upload(Bucket=bucket, Key='{key}')\n");
    let ours = format!("orphan/{id}/database.sqlite3");
    let others = begin("orphan/notes.txt") + &begin(&format!("other/{id}/database.sqlite3"));
    server.ask(&(begin(&ours) + &others)).await?;
    assert_eq!(incomplete(&server).await?, 3);
    printed(&tool(&setup, &["upload"])?)?;
    assert_eq!(incomplete(&server).await?, 2);
    Ok(())
}

/// The notes of uploads that were not ended.
fn uploads(setup: &Setup) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(setup.backups())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".upload") {
            names.push(name);
        }
    }
    Ok(names)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_cannot_be_had_is_told_of_and_holds_nothing_up() -> Result<()> {
    let _beside = beside_others().await;
    let server = Server::start().await?;
    let front = Front::start(server.address).await?;
    let (endpoint, key) = (front.address(), &server.key);
    let wrong_key = end_to_end::s3::Key {
        secret_access_key: "planted-0123456789".to_owned(),
        ..key.clone()
    };
    let bucket = |setup: Setup| setup.set("maintenance.remote", "url", "\"s3://nobody/x\"");
    for (what, setup, fault, said, code) in [
        (
            "wrong credentials",
            uploading(Setup::new()?, endpoint, &wrong_key, "x")?,
            Fault::None,
            "SignatureDoesNotMatch",
            2,
        ),
        (
            "no such bucket",
            bucket(uploading(Setup::new()?, endpoint, key, "x")?),
            Fault::None,
            "NoSuchBucket",
            2,
        ),
        (
            "a server that is down",
            uploading(Setup::new()?, endpoint, key, "x")?,
            Fault::Down(0),
            "503",
            1,
        ),
        (
            "a server that says nothing",
            uploading(Setup::new()?, endpoint, key, "x")?
                .set("maintenance.remote", "timeout", "\"1s\"")
                .set("maintenance.remote", "attempts", "1"),
            Fault::Hang("list-type"),
            "",
            1,
        ),
    ] {
        front.set(fault);
        let mut tracker = setup.start().await?;
        done(tracker.endpoint()?).await.context(what)?;
        let failed = |status: &Value| !status["remote"]["failure"].is_null();
        let status = tracker.endpoint()?.until(what, A_RUN, failed).await?;
        let remote = &status["remote"];
        let failure = remote["failure"].as_str().context("a failure")?;
        assert!(failure.contains(said), "{what}: {failure}");
        assert!(!status.to_string().contains("planted-"), "{status}");
        assert!(
            !tracker.log.lines().join("\n").contains("planted-"),
            "{what}"
        );
        let behind = |status: &Value| status["remote"]["behind"] == 1;
        let status = tracker.endpoint()?.until(what, A_RUN, behind).await?;
        assert!(
            status["remote"]["behind_since_seconds"].is_number(),
            "{status}"
        );
        // Stops at once all the same.
        tracker.signal(rustix::process::Signal::TERM)?;
        assert!(tracker.exited(Duration::from_secs(10)).await?.success());
        front.set(fault);
        let output = tool(&setup, &["upload"])?;
        assert_eq!(output.status.code(), Some(code), "{what}");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains(said) && !told.contains("planted-"), "{told}");
    }
    Ok(())
}
