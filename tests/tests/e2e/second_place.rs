//! The second place over time: whose it is, what breaks in it, what is not there one day, and who
//! hears of that.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::endpoint::Endpoint;
use end_to_end::receiver::{Manner, Receiver, Request};
use end_to_end::s3::{Fault, Front, Server, uploading};
use end_to_end::tracker::{Setup, Tracker};
use end_to_end::{PATIENCE, backups, binaries, http1};
use serde_json::Value;

use crate::remote::{is_there, whole};
use crate::support::{
    A_RUN, MIB, answered, beside_others, done, next_second, printed, tool, uploaded,
};
use crate::volume::Volume;

/// Only as many as `last` says stay there.
fn keeping(setup: Setup, last: usize) -> Setup {
    let keep = format!("{{ last = {last}, daily = 0, weekly = 0, monthly = 0 }}");
    setup.set("maintenance.remote", "keep", &keep)
}

/// A tracker's directory where all backups of a day stay, there as here.
fn keeping_all() -> Result<Setup> {
    Ok(keeping(Setup::new()?, 20))
}

/// Uploads to this directory.
fn to_directory(setup: Setup, name: &str) -> Setup {
    let url = format!("\"file://{}\"", setup.home().join(name).display());
    setup
        .set("maintenance.remote", "url", &url)
        .set("maintenance.remote", "back_off", "\"10ms\"")
}

fn told(setup: Setup, receiver: &Receiver) -> Setup {
    let url = |path: &str| format!("\"http://{}{path}\"", receiver.address);
    setup
        .set("maintenance.notify", "on", "\"always\"")
        .set("maintenance.notify", "webhook", &url("/hook"))
        .set("maintenance.notify", "heartbeat", &url("/beat"))
        .set("maintenance.notify", "heartbeat_failure", &url("/failed"))
}

/// The first notice of uploads that is good or not.
async fn notice(receiver: &Receiver, good: bool) -> Result<Value> {
    let is_it = |request: &Request| {
        let notice = request.json().unwrap_or_default();
        notice["event"] == "uploads" && notice["good"] == good
    };
    receiver.gets("the notice", A_RUN, is_it).await?.json()
}

/// How often this was asked for.
fn asked(receiver: &Receiver, line: &str) -> usize {
    let got = receiver.got();
    got.iter().filter(|request| request.line == line).count()
}

/// The status once uploads fail, and why they do.
async fn failing(endpoint: Endpoint, says: &str) -> Result<Value> {
    let fails = |status: &Value| {
        let failure = status["remote"]["failure"].as_str();
        failure.is_some_and(|failure| failure.contains(says))
    };
    endpoint.until(says, A_RUN, fails).await
}

/// The exit code of `monitor` and what it says.
fn monitor(tracker: &Tracker) -> Result<(Option<i32>, String)> {
    let at = format!("http://{}", tracker.endpoint()?.0);
    let output = tool(tracker.setup(), &["monitor", "--endpoint", &at])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok((output.status.code(), said))
}

/// The value of a metric.
async fn metric(endpoint: Endpoint, name: &str) -> Result<f64> {
    let answer = http1::get(endpoint.0, "/metrics").await?;
    let text = String::from_utf8(answer.body.to_vec())?;
    let name = format!("torrust_maintenance_{name} ");
    let value = text.lines().find_map(|line| line.strip_prefix(&name));
    Ok(value
        .with_context(|| format!("{name} of {text}"))?
        .parse()?)
}

/// A command that failed: its exit code, and its error's name and message.
fn failure(output: &Output) -> Result<(Option<i32>, String, String)> {
    let said: Value = serde_json::from_slice(&output.stderr)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let text = |key: &str| said[key].as_str().unwrap_or_default().to_owned();
    Ok((output.status.code(), text("error"), text("message")))
}

async fn id_of_run(tracker: &Tracker) -> Result<String> {
    let run = done(tracker.endpoint()?).await?;
    Ok(run["backup"].as_str().context("a backup")?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_is_not_mounted_is_noticed_told_and_taken_up() -> Result<()> {
    let _beside = beside_others().await;
    let receiver = Receiver::start(Manner::Takes).await?;
    let setup = to_directory(keeping_all()?, "mnt");
    let setup = told(setup, &receiver);
    let mount = setup.home().join("mnt");
    fs::create_dir(&mount)?;
    let volume = Volume::xfs(&mount)?;
    let mut tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    id_of_run(&tracker).await?;
    uploaded(&tracker).await?;
    assert_eq!(asked(&receiver, "GET /failed"), 0);

    volume.unmount()?;
    id_of_run(&tracker).await?;
    failing(endpoint, "mount the volume").await?;
    let behind = |status: &Value| status["remote"]["behind"] == 1;
    let status = endpoint.until("it to be missed", PATIENCE, behind).await?;
    assert!(!status["remote"]["last_uploaded"].is_null(), "{status:#}");
    assert!(status["remote"]["failing_since_seconds"].is_number());
    assert_eq!(fs::read_dir(&mount)?.count(), 0, "nothing is written below");
    let said = notice(&receiver, false).await?;
    let text = said["text"].as_str().context("a text")?;
    assert!(text.contains("mount the volume"), "{text}");
    let failure = said["remote"]["failure"].as_str();
    assert!(failure.is_some_and(|it| text.contains(it)), "{said:#}");
    receiver
        .gets("the other heartbeat", PATIENCE, |it| {
            it.line == "GET /failed"
        })
        .await?;
    let (code, line) = monitor(&tracker)?;
    assert!(
        code == Some(1) && line.contains("mount the volume"),
        "{line}"
    );
    assert!((metric(endpoint, "upload_failing").await? - 1.0).abs() < 0.5);
    assert!(metric(endpoint, "upload_behind_seconds").await? > 0.0);

    volume.mount()?;
    uploaded(&tracker).await?;
    assert_eq!(whole(&setup)?.len(), 2);
    notice(&receiver, true).await?;
    // That of the first run, and that which was owed.
    let twice = || async { Ok((asked(&receiver, "GET /beat") == 2).then_some(())) };
    end_to_end::until("the heartbeat that was owed", PATIENCE, twice).await?;
    assert_eq!(asked(&receiver, "GET /failed"), 1, "told once");
    assert_eq!(monitor(&tracker)?.0, Some(0));
    assert!(metric(endpoint, "upload_failing").await? < 0.5);
    assert!(metric(endpoint, "upload_last_success_timestamp_seconds").await? > 0.0);
    tracker.kill().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tracker_starts_and_uploads_when_it_can() -> Result<()> {
    let _beside = beside_others().await;
    let server = Server::start().await?;
    // A secret that is yet to be written.
    let front = Front::start(server.address).await?;
    let setup = uploading(Setup::new()?, front.address(), &server.key, "later")?;
    let secret = setup.home().join("s3.secret");
    let written = fs::read(&secret)?;
    fs::remove_file(&secret)?;
    let mut tracker = setup.start().await?;
    answered(&tracker).await?;
    id_of_run(&tracker).await?;
    failing(tracker.endpoint()?, "secret_access_key_file").await?;
    let behind = |status: &Value| status["remote"]["behind"] == 1;
    let endpoint = tracker.endpoint()?;
    endpoint.until("it to be missed", PATIENCE, behind).await?;
    assert!(tracker.log.says("Backups were not uploaded"));
    fs::write(&secret, written)?;
    uploaded(&tracker).await?;
    assert_eq!(whole(&setup)?.len(), 1);
    tracker.kill().await?;

    // What is behind is what was, before anybody has looked.
    front.set(Fault::Hang("owner.json"));
    let mut tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let status = endpoint.status().await?;
    assert_eq!(status["remote"]["behind"], 0, "{status:#}");
    assert!(!status["remote"]["last_uploaded"].is_null(), "{status:#}");
    assert!(metric(endpoint, "upload_behind").await? < 0.5);
    tracker.kill().await?;

    // A directory that is not there.
    let setup = to_directory(keeping_all()?, "mnt");
    let mut tracker = setup.start().await?;
    id_of_run(&tracker).await?;
    failing(tracker.endpoint()?, "is not a directory").await?;
    fs::create_dir(setup.home().join("mnt"))?;
    uploaded(&tracker).await?;
    tracker.kill().await?;
    fs::rename(setup.home().join("mnt"), setup.home().join("away"))?;
    let mut tracker = setup.start().await?;
    let status = failing(tracker.endpoint()?, "is not a directory").await?;
    assert_eq!(
        status["remote"]["behind"], 0,
        "as was last seen: {status:#}"
    );
    assert!(!status["remote"]["last_uploaded"].is_null(), "{status:#}");
    assert!(!setup.home().join("mnt").exists(), "it is not created");
    tracker.kill().await?;

    // What is written wrong is refused as ever.
    let setup = setup.set("maintenance.remote", "part_size", "\"1MiB\"");
    let (status, output) = setup.start_refused().await?;
    assert!(
        !status.success() && output.contains("part_size"),
        "{output}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_in_a_bucket_is_told_of_and_replaced() -> Result<()> {
    let _beside = beside_others().await;
    let (server, receiver) = (
        Server::start().await?,
        Receiver::start(Manner::Takes).await?,
    );
    let setup = uploading(keeping_all()?, server.address, &server.key, "broken")?;
    let setup = told(setup, &receiver);
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let (lost, gone) = (id_of_run(&tracker).await?, id_of_run(&tracker).await?);
    is_there(&tracker, &lost).await?;
    is_there(&tracker, &gone).await?;
    let delete = |id: &str| {
        format!("s3.delete_object(Bucket=bucket, Key='broken/{id}/database.sqlite3.zst')")
    };
    server.ask(&delete(&lost)).await?;
    server.ask(&delete(&gone)).await?;
    // Of this one there is none here either.
    printed(&tool(&setup, &["delete", &gone, "--force"])?)?;
    id_of_run(&tracker).await?;
    let replaced = |status: &Value| status["remote"]["replaced"] == 1;
    let status = endpoint.until("it to be replaced", A_RUN, replaced).await?;
    assert_eq!(status["remote"]["broken"][0]["id"], gone, "{status:#}");
    assert!(
        tracker
            .log
            .says(&format!("Backup {gone} in s3://backups/broken is broken"))
    );
    assert!(
        tracker
            .log
            .says(&format!("backup {lost} in s3://backups/broken was broken"))
    );
    let named = |id: &str| {
        let id = id.to_owned();
        move |request: &Request| {
            let notice = request.json().unwrap_or_default();
            let text = notice["text"].as_str().unwrap_or_default();
            notice["event"] == "uploads" && text.contains(&id)
        }
    };
    for id in [&lost, &gone] {
        receiver
            .gets("a notice of each", PATIENCE, named(id))
            .await?;
    }
    assert!((metric(endpoint, "upload_broken").await? - 1.0).abs() < 0.5);
    assert!((metric(endpoint, "upload_replaced_total").await? - 1.0).abs() < 0.5);
    let (code, line) = monitor(&tracker)?;
    assert!(code == Some(1) && line.contains(&gone), "{line}");
    let complete = whole(&setup)?;
    assert!(
        complete.contains(&lost) && !complete.contains(&gone),
        "{complete:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_in_a_bucket_never_takes_the_last_good_one() -> Result<()> {
    let _beside = beside_others().await;
    let server = Server::start().await?;
    let setup = keeping_all()?.without("maintenance.remote");
    let mut tracker = setup.start().await?;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(id_of_run(&tracker).await?);
    }
    tracker.kill().await?;
    let setup = uploading(setup, server.address, &server.key, "kept")?;
    let upload = |last: usize| {
        let setup = keeping(setup.clone(), last);
        fs::write(setup.file(), setup.toml())?;
        tool(&setup, &["upload"])
    };
    printed(&upload(4)?)?;
    assert_eq!(whole(&setup)?.len(), 4);
    printed(&upload(2)?)?;
    assert_eq!(whole(&setup)?, [ids[3].clone(), ids[2].clone()]);

    // Nothing is here any more, and the newest there is no good.
    for directory in backups::published(&setup.backups())? {
        fs::remove_dir_all(directory)?;
    }
    let newest = format!("kept/{}/database.sqlite3.zst", ids[3]);
    let shorten = format!("s3.put_object(Bucket=bucket, Key='{newest}', Body=b'x')");
    server.ask(&shorten).await?;
    for _ in 0..3 {
        let (code, error, message) = failure(&upload(1)?)?;
        assert_eq!(
            (code, error.as_str()),
            (Some(6), "remote_damaged"),
            "{message}"
        );
        assert!(message.contains(&ids[3]), "{message}");
        assert_eq!(whole(&setup)?, [ids[2].clone()], "the last good one");
    }
    let left = "print(sorted({it['Key'].split('/')[1] for it in \
                s3.list_objects_v2(Bucket=bucket, Prefix='kept/')['Contents']}))";
    let left = server.ask(left).await?;
    let is_left = |id: &String| left.contains(&format!("'{id}'"));
    let expected = [false, false, true, true];
    assert_eq!(
        ids.iter().map(is_left).collect::<Vec<_>>(),
        expected,
        "{left}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_an_archive_is_said_to_be_and_hides_nothing() -> Result<()> {
    let _beside = beside_others().await;
    let server = Server::start().await?;
    let setup = uploading(keeping_all()?, server.address, &server.key, "cold")?;
    let mut tracker = setup.start().await?;
    let (older, newer) = (id_of_run(&tracker).await?, id_of_run(&tracker).await?);
    is_there(&tracker, &older).await?;
    is_there(&tracker, &newer).await?;
    tracker.kill().await?;
    let archive = |id: &str, name: &str| {
        let key = format!("cold/{id}/{name}");
        format!(
            "s3.copy_object(Bucket=bucket, Key='{key}', StorageClass='GLACIER', \
             CopySource={{'Bucket': bucket, 'Key': '{key}'}})"
        )
    };
    server.ask(&archive(&newer, "database.sqlite3.zst")).await?;
    let to = setup.home().join("restored.db");
    let to = to.to_str().context("a path in UTF-8")?;
    let restore = ["restore", "--from", "remote", "--to", to];
    let (code, error, message) = failure(&tool(&setup, &restore)?)?;
    assert_eq!(
        (code, error.as_str()),
        (Some(1), "remote_archived"),
        "{message}"
    );
    assert!(
        message.contains("database.sqlite3.zst is in an archive"),
        "{message}"
    );
    assert!(message.contains("restore-object"), "{message}");

    // Its manifest too: then the older one is the newest that can be had.
    server.ask(&archive(&newer, "manifest.json")).await?;
    let list = printed(&tool(&setup, &["list", "--remote"])?)?;
    assert_eq!(list["entries"][0]["state"], "unreadable", "{list:#}");
    assert_eq!(list["entries"][0]["name"], newer, "{list:#}");
    assert_eq!(list["entries"][1]["manifest"]["id"], older, "{list:#}");
    printed(&tool(&setup, &restore)?)?;
    // And nothing there is touched, or taken for missing.
    let (code, _, message) = failure(&tool(&setup, &["upload"])?)?;
    assert_eq!(code, Some(6), "{message}");
    assert!(message.contains("in an archive"), "{message}");
    let listed = "print(len(s3.list_objects_v2(Bucket=bucket, Prefix='cold/')['Contents']))";
    assert_eq!(
        server.ask(listed).await?,
        "9",
        "two of four, and whose they are"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_trackers_share_no_prefix_until_one_takes_it_over() -> Result<()> {
    let _beside = beside_others().await;
    let server = Server::start().await?;
    let one = uploading(Setup::new()?, server.address, &server.key, "shared")?;
    let mut tracker = one.start().await?;
    let first = id_of_run(&tracker).await?;
    uploaded(&tracker).await?;
    tracker.kill().await?;
    let other = uploading(Setup::new()?, server.address, &server.key, "shared")?;
    let other = keeping(other, 1);
    let mut tracker = other.start().await?;
    next_second().await?;
    let second = id_of_run(&tracker).await?;
    failing(tracker.endpoint()?, "belongs to the instance").await?;
    let behind = |status: &Value| status["remote"]["behind"] == 1;
    let endpoint = tracker.endpoint()?;
    endpoint.until("it to be missed", PATIENCE, behind).await?;
    tracker.kill().await?;
    let (code, error, message) = failure(&tool(&other, &["upload"])?)?;
    assert_eq!(
        (code, error.as_str()),
        (Some(2), "remote_not_ours"),
        "{message}"
    );
    for setup in [&one, &other] {
        let directory = setup.backups().display().to_string();
        assert!(message.contains(&directory), "it names both: {message}");
    }
    assert!(message.contains("maintenance.remote.url"), "{message}");
    assert_eq!(whole(&other)?, [first], "which is left alone");

    let taken = printed(&tool(&other, &["upload", "--take-over"])?)?;
    assert_eq!(
        taken["taken_over_from"]["directory"],
        one.backups().display().to_string(),
        "{taken:#}"
    );
    assert!(whole(&other)?.contains(&second));
    let (code, error, _) = failure(&tool(&one, &["upload"])?)?;
    assert_eq!((code, error.as_str()), (Some(2), "remote_not_ours"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn configured_keys_stand_alone() -> Result<()> {
    let _beside = beside_others().await;
    let server = Server::start().await?;
    let front = Front::start(server.address).await?;
    let setup = uploading(Setup::new()?, front.address(), &server.key, "keys")?;
    let mut tracker = setup.clone().without("maintenance.remote").start().await?;
    id_of_run(&tracker).await?;
    tracker.kill().await?;
    fs::write(setup.file(), setup.toml())?;
    let upload = |setup: &Setup, environment: &[(&str, &str)]| {
        Command::new(binaries::path(binaries::TOOL)?)
            .args(["--json", "--config"])
            .arg(setup.file())
            .arg("upload")
            .envs(environment.iter().copied())
            .current_dir(setup.home())
            .output()
            .context("starting the tool")
    };
    let of_another = [
        ("AWS_SESSION_TOKEN", "planted-token"),
        ("AWS_ACCESS_KEY_ID", "planted-id"),
        ("AWS_SECRET_ACCESS_KEY", "planted-secret"),
        ("AWS_SKIP_SIGNATURE", "true"),
    ];
    printed(&upload(&setup, &of_another)?)?;
    let asked = front.asked();
    ensure!(asked.len() > 5, "{asked:#?}");
    assert!(asked.iter().all(|request| !request.has_token), "{asked:#?}");

    // Where none are configured they are those of the environment, and so is the token.
    front.set(Fault::None);
    let setup = setup
        .unset("maintenance.remote", "access_key_id")
        .unset("maintenance.remote", "secret_access_key_file");
    fs::write(setup.file(), setup.toml())?;
    let theirs = [
        ("AWS_SESSION_TOKEN", "planted-token"),
        ("AWS_ACCESS_KEY_ID", server.key.access_key_id.as_str()),
        (
            "AWS_SECRET_ACCESS_KEY",
            server.key.secret_access_key.as_str(),
        ),
    ];
    upload(&setup, &theirs)?;
    assert!(front.asked().iter().all(|request| request.has_token));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_takes_long_does_not_hide_what_is_published_meanwhile() -> Result<()> {
    let _beside = beside_others().await;
    let server = Server::start().await?;
    let front = Front::start(server.address).await?;
    front.set(Fault::Hang("PUT"));
    let setup = uploading(keeping_all()?, front.address(), &server.key, "long")?;
    let setup = setup.set("maintenance.remote", "timeout", "\"600s\"");
    end_to_end::database::make(&setup.database(), MIB, "wal")?;
    let tracker = setup.start().await?;
    for nth in 1..=2 {
        id_of_run(&tracker).await?;
        let behind = |status: &Value| status["remote"]["behind"] == nth;
        let status = tracker
            .endpoint()?
            .until("it to show", PATIENCE, behind)
            .await?;
        assert!(
            status["remote"]["behind_since_seconds"].is_number(),
            "{status:#}"
        );
        assert!(status["remote"]["failure"].is_null(), "nothing has failed");
    }
    tokio::time::timeout(Duration::from_secs(10), async { drop(tracker) }).await?;
    Ok(())
}
