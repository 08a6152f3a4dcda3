//! Who is told how runs end is told, what is called is called, and whatever goes wrong with
//! either holds up neither an announce nor a run.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeDelta};
use end_to_end::endpoint::Endpoint;
use end_to_end::load::{Load, Plan};
use end_to_end::receiver::{Manner, Receiver};
use end_to_end::s3::{Server, uploading};
use end_to_end::sidecar::Beside;
use end_to_end::tracker::{Setup, TOKEN};
use end_to_end::{PATIENCE, backups, binaries, database, http1, until};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::support::{
    A_RUN, MIB, answered, beside_others, done, kind, nothing_lost, ready, uploaded,
};

/// Notes that a hook was called, with what it was told.
const NOTE: &str = "echo $TORRUST_MAINTENANCE_HOOK $TORRUST_MAINTENANCE_OUTCOME \
                    $TORRUST_MAINTENANCE_CAUSE $TORRUST_MAINTENANCE_BACKUP >> calls";

/// A command as it stands in the configuration.
fn shell(script: &str) -> String {
    json!(["sh", "-c", script]).to_string()
}

fn hook(setup: Setup, name: &str, script: &str) -> Setup {
    setup.set("maintenance.hooks", name, &shell(script))
}

fn every_hook(setup: Setup, script: &str) -> Setup {
    let hooks = ["before", "ready", "after", "on_failure"];
    hooks
        .into_iter()
        .fold(setup, |setup, name| hook(setup, name, script))
}

fn tells(setup: Setup, key: &str, receiver: &Receiver, path: &str) -> Setup {
    let url = format!("\"http://{}{path}\"", receiver.address);
    setup.set("maintenance.notify", key, &url)
}

/// The lines that hooks have noted, once there are so many.
async fn calls(setup: &Setup, count: usize) -> Result<Vec<String>> {
    let path = setup.home().join("calls");
    until("hooks to be called", PATIENCE, async || {
        let noted = fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<String> = noted
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect();
        Ok((lines.len() >= count).then_some(lines))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_told_of_and_its_hooks_are_called_in_their_order() -> Result<()> {
    let _beside = beside_others().await;
    let receiver = Receiver::start(Manner::Takes).await?;
    let setup = every_hook(Setup::new()?, NOTE)
        .set("maintenance.notify", "on", "\"always\"")
        .set("maintenance.notify", "webhook_header_file", "\"./header\"");
    let setup = tells(setup, "webhook", &receiver, "/hook");
    let setup = tells(setup, "heartbeat", &receiver, "/beat");
    let setup = tells(setup, "heartbeat_failure", &receiver, "/failed");
    fs::write(setup.home().join("header"), "X-Key: key of the test\n")?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let run = done(endpoint).await?;
    let backup = run["backup"].as_str().context("a backup")?;

    let notice = receiver
        .gets("the notice", PATIENCE, |request| {
            request.line == "POST /hook"
        })
        .await?;
    assert!(
        notice
            .headers
            .contains(&"x-key: key of the test".to_owned())
    );
    let said = notice.json()?;
    assert_eq!(
        (&said["good"], &said["event"]),
        (&json!(true), &json!("run"))
    );
    assert_eq!(said["run"], run, "as the status has it");
    assert_eq!(said["backup"]["id"], backup);
    assert_eq!(said["backup"]["verify"], "quick");
    assert!(
        said["backup"]["stored_bytes"].as_u64() > Some(0),
        "{said:#}"
    );
    let text = said["text"].as_str().context("a text")?;
    assert!(text.contains(backup) && text.contains("paused"), "{text}");
    let host = rustix::system::uname();
    assert_eq!(said["host"], json!(host.nodename().to_str()?));
    receiver
        .gets("the heartbeat", PATIENCE, |request| {
            request.line == "GET /beat"
        })
        .await?;
    assert!(receiver.got().iter().all(|it| it.line != "GET /failed"));

    let after = format!("after done {backup}");
    assert_eq!(calls(&setup, 3).await?, ["before", "ready", &after]);
    let told = |status: &Value| {
        let delivered = |channel: &str| status["notify"][channel]["delivered"] == 1;
        delivered("webhook") && delivered("heartbeat")
    };
    let status = endpoint.until("both told", PATIENCE, told).await?;
    assert_eq!(status["notify"]["webhook"]["failing"], Value::Null);
    assert_eq!(status["backup"]["id"], backup);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_its_first_hook_forbids_is_told_as_a_failure() -> Result<()> {
    let _beside = beside_others().await;
    let receiver = Receiver::start(Manner::Takes).await?;
    let setup = every_hook(Setup::new()?, NOTE);
    let setup = hook(
        setup,
        "before",
        &format!("{NOTE}; echo no disk is there >&2; exit 3"),
    );
    let setup = tells(setup, "webhook", &receiver, "/hook");
    let setup = tells(setup, "heartbeat", &receiver, "/beat");
    let setup = tells(setup, "heartbeat_failure", &receiver, "/failed");
    let tracker = setup.start().await?;
    let run = tracker.endpoint()?.run(A_RUN).await?;
    assert_eq!(kind(&run), "failed");
    assert_eq!(run["outcome"]["cause"], "hook", "{run:#}");
    assert_eq!(run["pause_ms"], 0.0, "nothing waited");
    let message = run["outcome"]["message"].as_str().context("a message")?;
    assert!(
        message.contains("`before` (`sh`) exited with 3"),
        "{message}"
    );
    assert!(message.ends_with("it said: no disk is there"), "{message}");

    let notice = receiver
        .gets("the notice", PATIENCE, |request| {
            request.line == "POST /hook"
        })
        .await?
        .json()?;
    assert_eq!(notice["good"], false);
    assert_eq!(notice["run"]["outcome"], run["outcome"]);
    receiver
        .gets("the other heartbeat", PATIENCE, |it| {
            it.line == "GET /failed"
        })
        .await?;
    assert!(receiver.got().iter().all(|it| it.line != "GET /beat"));
    // Attempted again before it is given up.
    let noted = calls(&setup, 5).await?;
    assert_eq!(
        noted,
        [
            "before",
            "before",
            "before",
            "after failed hook",
            "on_failure failed hook"
        ]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn good_runs_are_not_told_of_unless_asked_for() -> Result<()> {
    let _beside = beside_others().await;
    let receiver = Receiver::start(Manner::Takes).await?;
    let setup = tells(Setup::new()?, "webhook", &receiver, "/hook");
    let setup = tells(setup, "heartbeat", &receiver, "/beat");
    let tracker = setup.start().await?;
    done(tracker.endpoint()?).await?;
    // The one comes no later than the other.
    receiver
        .gets("the heartbeat", PATIENCE, |request| {
            request.line == "GET /beat"
        })
        .await?;
    assert_eq!(receiver.got().len(), 1, "{:#?}", receiver.got());
    Ok(())
}

/// A window that came and went while the tracker was down.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_without_a_run_is_told_of() -> Result<()> {
    let _beside = beside_others().await;
    let receiver = Receiver::start(Manner::Takes).await?;
    let setup = tells(Setup::new()?, "webhook", &receiver, "/hook");
    let mut tracker = setup.start().await?;
    done(tracker.endpoint()?).await?;
    tracker.signal(Signal::TERM)?;
    tracker.exited(PATIENCE).await?;
    assert_eq!(receiver.got().len(), 0, "no window was missed so far");

    // As if that backup were of three days ago.
    let published = backups::published(&setup.backups())?;
    let directory = published.first().context("a backup")?;
    let manifest = directory.join("manifest.json");
    let mut contents: Value = serde_json::from_str(&fs::read_to_string(&manifest)?)?;
    let began: DateTime<chrono::Utc> = serde_json::from_value(contents["began"].take())?;
    let began = began - TimeDelta::days(3);
    let id = began.format("%Y%m%dT%H%M%SZ").to_string();
    contents["began"] = json!(began);
    contents["id"] = json!(id);
    fs::write(&manifest, contents.to_string())?;
    fs::rename(directory, directory.with_file_name(id))?;

    let tracker = setup.start().await?;
    let notice = receiver
        .gets("the notice", PATIENCE, |request| {
            request.line == "POST /hook"
        })
        .await?
        .json()?;
    assert_eq!(notice["event"], "missed");
    assert_eq!(
        (&notice["good"], &notice["run"]),
        (&json!(false), &Value::Null)
    );
    let text = notice["text"].as_str().context("a text")?;
    assert!(text.contains("had no run"), "{text}");
    let status = tracker.endpoint()?.status().await?;
    assert_eq!(status["totals"]["missed"], 1);
    Ok(())
}

/// What may be wrong with a hook, and with who is to be told; and what is said of the hook.
const TROUBLES: [(&str, Manner, &str); 3] = [
    (
        "echo it broke; exit 3",
        Manner::Refuses(500),
        "exited with 3; it said: it broke",
    ),
    (
        "trap '' TERM; echo still here; sleep 600",
        Manner::Hangs,
        "was ended after 1s",
    ),
    (
        "head -c 10485760 /dev/zero | tr '\\0' x; echo; echo the end; exit 4",
        Manner::Floods,
        "the end",
    ),
];

/// Announces while all that goes on.
const PLAN: Plan = Plan {
    udp_per_second: 200,
    http_per_second: 0,
    sockets: 4,
    torrents: 100,
};

/// Waits until the run's report warns of each of these hooks, and says this of it.
async fn warned(endpoint: Endpoint, run: &Value, hooks: [&str; 2], says: &str) -> Result<Value> {
    let id = run["id"].as_str().context("an id")?;
    let warned = |status: &Value| {
        let warnings = end_to_end::endpoint::ended(status, id)
            .map(|run| run["warnings"].to_string())
            .unwrap_or_default();
        hooks.iter().all(|hook| warnings.contains(hook)) && warnings.matches(says).count() == 2
    };
    endpoint
        .until("both hooks to be told of", PATIENCE, warned)
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_hooks_and_receivers_no_run_notices() -> Result<()> {
    let _beside = beside_others().await;
    for (script, manner, says) in TROUBLES {
        let receiver = Receiver::start(manner).await?;
        let setup = Setup::new()?
            .set("maintenance.hooks", "timeout", "\"1s\"")
            .set("maintenance.notify", "on", "\"always\"")
            .set("maintenance.notify", "timeout", "\"1s\"");
        let setup = hook(setup, "ready", script);
        let setup = hook(setup, "after", script);
        let setup = tells(setup, "webhook", &receiver, "/hook");
        let setup = tells(setup, "heartbeat", &receiver, "/beat");
        database::make(&setup.database(), 5 * MIB, "wal")?;
        let tracker = setup.start().await?;
        let endpoint = tracker.endpoint()?;
        let load = Load::start(PLAN, tracker.addresses.udp, tracker.addresses.http).await?;
        load.answered_more(100, PATIENCE).await?;

        // The second begins beside whatever the first one's hooks do.
        let first = done(endpoint).await?;
        let second = done(endpoint).await?;
        for run in [&first, &second] {
            let pause = run["pause_ms"].as_f64().context("a pause")?;
            assert!(pause < 1000.0, "{script}: {run:#}");
        }
        // Each says so with its run.
        warned(endpoint, &first, ["`ready`", "`after`"], says).await?;
        let status = endpoint
            .until(
                "the receiver to be told of",
                Duration::from_secs(90),
                |status| {
                    let channel = &status["notify"]["webhook"];
                    channel["delivered"].as_u64() > Some(0) || !channel["failing"].is_null()
                },
            )
            .await?;
        nothing_lost(&load.stop(PATIENCE).await?);
        let webhook = &status["notify"]["webhook"];
        if manner == Manner::Floods {
            assert_eq!(
                webhook["failing"],
                Value::Null,
                "its status is all that counts"
            );
        } else {
            let reason = webhook["failing"]["reason"].as_str().context("a reason")?;
            assert!(reason.contains(&receiver.address.to_string()), "{reason}");
            assert_eq!(webhook["failed"], 0, "it is tried again");
            assert!(webhook["waiting"].as_u64() > Some(0), "{webhook:#}");
        }
        assert!(tracker.log.lines().len() < 3000, "the log is not filled");
        assert!(tracker.peak_memory()? < 512 * MIB, "nor is memory");
    }
    Ok(())
}

/// What is called when there is no backup may fail as well.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_the_hooks_of_a_failure_no_announce_notices() -> Result<()> {
    let _beside = beside_others().await;
    for (script, manner, says) in TROUBLES {
        let receiver = Receiver::start(manner).await?;
        let setup = Setup::new()?
            .set("maintenance.backup", "taken_by", "\"sidecar\"")
            .unset("maintenance.readiness", "touch_file")
            .set("maintenance.readiness", "claim_within", "\"1s\"")
            .set("maintenance.hooks", "timeout", "\"1s\"")
            .set("maintenance.notify", "timeout", "\"1s\"");
        let setup = hook(setup, "after", script);
        let setup = hook(setup, "on_failure", script);
        let setup = tells(setup, "webhook", &receiver, "/hook");
        let setup = tells(setup, "heartbeat_failure", &receiver, "/failed");
        let tracker = setup.start().await?;
        let endpoint = tracker.endpoint()?;
        let load = Load::start(PLAN, tracker.addresses.udp, tracker.addresses.http).await?;
        load.answered_more(100, PATIENCE).await?;
        let first = endpoint.run(A_RUN).await?;
        let second = endpoint.run(A_RUN).await?;
        for run in [&first, &second] {
            assert_eq!(kind(run), "no_sidecar", "{run:#}");
            let pause = run["pause_ms"].as_f64().context("a pause")?;
            assert!(pause < 1000.0, "{script}: {run:#}");
        }
        warned(endpoint, &first, ["`after`", "`on_failure`"], says).await?;
        let status = warned(endpoint, &second, ["`after`", "`on_failure`"], says).await?;
        assert_eq!(status["hooks_failed"], json!({"after": 2, "on_failure": 2}));
        let notice = receiver
            .gets("the notice", PATIENCE, |it| it.line == "POST /hook")
            .await?;
        let told = notice.json()?["run"]["warnings"].to_string();
        assert!(told.contains(says) || manner != Manner::Floods, "{told}");
        nothing_lost(&load.stop(PATIENCE).await?);
    }
    Ok(())
}

/// A receiver that is down while a run fails, and for long after its quick attempts.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_down_hears_of_a_failure_when_it_is_back() -> Result<()> {
    let _beside = beside_others().await;
    let receiver = Receiver::start(Manner::Refuses(503)).await?;
    let setup = hook(Setup::new()?, "before", "exit 1")
        .set("maintenance.hooks", "timeout", "\"1s\"")
        .set("maintenance.notify", "timeout", "\"1s\"");
    let setup = tells(setup, "webhook", &receiver, "/hook");
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let run = endpoint.run(A_RUN).await?;
    assert_eq!(kind(&run), "failed");
    let status = endpoint
        .until("it to be said", Duration::from_secs(90), |status| {
            !status["notify"]["webhook"]["failing"].is_null()
        })
        .await?;
    let webhook = &status["notify"]["webhook"];
    assert_eq!(
        (&webhook["waiting"], &webhook["failed"]),
        (&json!(1), &json!(0))
    );
    let metrics = http1::get(endpoint.0, "/metrics").await?;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    let waiting = "torrust_maintenance_notices_waiting{channel=\"webhook\"} 1";
    assert!(metrics.contains(waiting), "{metrics}");

    let before = receiver.got().len();
    receiver.answers(Manner::Takes);
    let told = |status: &Value| status["notify"]["webhook"]["delivered"] == 1;
    // The pauses are of half a minute by now.
    let status = endpoint
        .until("it to be told", Duration::from_secs(120), told)
        .await?;
    let webhook = &status["notify"]["webhook"];
    assert_eq!(
        (&webhook["waiting"], &webhook["failing"]),
        (&json!(0), &Value::Null)
    );
    let notice = receiver.got()[before].json()?;
    assert_eq!(notice["run"]["id"], run["id"]);
    Ok(())
}

/// What a sidecar has a copy of is no failure, and what it has none of is no success.
#[tokio::test(flavor = "multi_thread")]
async fn a_heartbeat_tells_what_became_of_a_sidecars_copy() -> Result<()> {
    let _beside = beside_others().await;
    let receiver = Receiver::start(Manner::Takes).await?;
    let setup = Setup::new()?
        .set("maintenance.backup", "taken_by", "\"sidecar\"")
        .unset("maintenance.readiness", "touch_file")
        .set("maintenance.readiness", "claim_within", "\"1s\"");
    let setup = tells(setup, "heartbeat", &receiver, "/beat");
    let setup = tells(setup, "heartbeat_failure", &receiver, "/failed");
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let asked = || -> Vec<String> { receiver.got().into_iter().map(|it| it.line).collect() };

    let sidecar = Beside::new(&setup)?.at(endpoint.0).start()?;
    let run = endpoint.run(A_RUN).await?;
    assert_eq!(kind(&run), "done", "{run:#}");
    assert_eq!(run["sidecar"]["held_throughout"], true);
    receiver
        .gets("the heartbeat", PATIENCE, |it| it.line == "GET /beat")
        .await?;
    drop(sidecar);

    let run = endpoint.run(A_RUN).await?;
    assert_ne!(kind(&run), "done", "{run:#}");
    receiver
        .gets("the other one", PATIENCE, |it| it.line == "GET /failed")
        .await?;
    assert_eq!(asked(), ["GET /beat", "GET /failed"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_hook_alone_holds_a_run_and_no_announce() -> Result<()> {
    let _beside = beside_others().await;
    for (script, _, says) in TROUBLES {
        let setup = Setup::new()?.set("maintenance.hooks", "timeout", "\"2s\"");
        let setup = hook(setup, "before", script);
        let tracker = setup.start().await?;
        let endpoint = tracker.endpoint()?;
        let run = endpoint.start_run().await?;
        answered(&tracker).await?;
        let ended = endpoint.ended(&run, A_RUN).await?;
        assert_eq!(ended["outcome"]["cause"], "hook", "{ended:#}");
        let message = ended["outcome"]["message"].as_str().context("a message")?;
        let says = says.replace("1s", "2s");
        assert!(message.contains(&says), "{script}: {message}");
        assert_eq!(ended["pause_ms"], 0.0);
    }
    // Ten megabytes alone are no failure.
    let setup = Setup::new()?;
    let setup = hook(setup, "before", "head -c 10485760 /dev/zero");
    done(setup.start().await?.endpoint()?).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_shutdown_what_was_built_up_is_taken_down_and_told_of() -> Result<()> {
    let _beside = beside_others().await;
    let receiver = Receiver::start(Manner::Takes).await?;
    let setup = Setup::new()?.set("maintenance.backup", "bandwidth", "\"1MiB\"");
    let setup = every_hook(setup, NOTE);
    // One that hangs does not keep the others from their turn.
    let setup = hook(setup, "ready", &format!("{NOTE}; trap '' TERM; sleep 600"));
    let setup = tells(setup, "webhook", &receiver, "/hook");
    database::make(&setup.database(), 40 * MIB, "wal")?;
    let mut tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let run = endpoint.start_run().await?;
    ready(endpoint).await?;
    assert_eq!(calls(&setup, 2).await?, ["before", "ready"]);
    tracker.signal(Signal::TERM)?;
    let status = tracker.exited(Duration::from_secs(10)).await?;
    assert!(status.success(), "{status}");
    let noted = fs::read_to_string(setup.home().join("calls"))?;
    assert!(noted.contains("after aborted"), "{noted}");
    assert!(noted.contains("on_failure aborted"), "{noted}");
    let notice = receiver
        .gets("the notice", Duration::ZERO, |request| {
            request.line == "POST /hook"
        })
        .await?
        .json()?;
    assert_eq!(notice["run"]["id"], run);
    assert_eq!(notice["run"]["outcome"]["kind"], "aborted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn where_a_sidecar_copies_hooks_are_called_as_well() -> Result<()> {
    let _beside = beside_others().await;
    let setup = every_hook(Setup::new()?, NOTE)
        .set("maintenance.backup", "taken_by", "\"sidecar\"")
        .unset("maintenance.readiness", "touch_file")
        .set("maintenance.readiness", "claim_within", "\"1s\"");
    let tracker = setup.start().await?;
    let run = tracker.endpoint()?.run(A_RUN).await?;
    assert_eq!(kind(&run), "no_sidecar", "{run:#}");
    assert_eq!(
        calls(&setup, 4).await?,
        [
            "before",
            "ready",
            "after no_sidecar",
            "on_failure no_sidecar"
        ]
    );
    Ok(())
}

/// Each in its own place, so that it is seen which one came out.
const SECRETS: [&str; 6] = [
    "SECRET-in-webhook-path",
    "SECRET-in-webhook-query",
    "SECRET-in-header",
    "SECRET-in-heartbeat",
    "SECRET-in-arguments",
    "SECRET-in-environment",
];

fn without_secrets(what: &str, text: &str) {
    for secret in SECRETS.iter().chain([&TOKEN]) {
        assert!(!text.contains(secret), "{secret} is in {what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_nowhere_to_be_seen() -> Result<()> {
    let _beside = beside_others().await;
    let dump = "{ env; tr '\\0' ' ' < /proc/$PPID/cmdline; echo; ps -ef 2>/dev/null; } > dump; \
                exit 1; # ";
    for manner in [Manner::Takes, Manner::Refuses(404)] {
        let receiver = Receiver::start(manner).await?;
        let setup = Setup::new()?
            .set("logging", "threshold", "\"trace\"")
            .set("maintenance.notify", "on", "\"always\"")
            .set("maintenance.notify", "webhook_header_file", "\"./header\"")
            .set(
                "maintenance.hooks",
                "after",
                &json!(["sh", "-c", dump, "sh", "SECRET-in-arguments"]).to_string(),
            )
            .env(
                "TORRUST_TRACKER_CONFIG_OVERRIDE_HTTP_API__ACCESS_TOKENS__MORE",
                SECRETS[5],
            )
            .env("AWS_SECRET_ACCESS_KEY", SECRETS[5]);
        let webhook = "/SECRET-in-webhook-path?key=SECRET-in-webhook-query";
        let setup = tells(setup, "webhook", &receiver, webhook);
        let setup = tells(setup, "heartbeat", &receiver, "/SECRET-in-heartbeat");
        fs::write(setup.home().join("header"), "X-Key: SECRET-in-header\n")?;
        let tracker = setup.start().await?;
        let endpoint = tracker.endpoint()?;
        let run = done(endpoint).await?;
        receiver
            .gets("the notice", PATIENCE, |it| it.line.contains("POST"))
            .await?;
        let status = endpoint
            .until("both to be noted", PATIENCE, |status| {
                ["webhook", "heartbeat"].iter().all(|channel| {
                    let channel = &status["notify"][channel];
                    channel["delivered"] != 0 || channel["failed"] != 0
                })
            })
            .await?;
        without_secrets("the status", &status.to_string());
        let metrics = http1::get(endpoint.0, "/metrics").await?;
        without_secrets("the metrics", &String::from_utf8_lossy(&metrics.body));
        without_secrets("the log", &tracker.log.lines().join("\n"));
        let sent = receiver.got().into_iter().map(|it| it.body);
        without_secrets("a notice", &sent.collect::<String>());
        let backup = setup
            .backups()
            .join(run["backup"].as_str().context("a backup")?);
        let manifest = fs::read_to_string(backup.join("manifest.json"))?;
        without_secrets("the manifest", &manifest);
        let dumped = fs::read_to_string(setup.home().join("dump"))?;
        assert!(
            dumped.contains("TORRUST_MAINTENANCE_HOOK=after"),
            "{dumped}"
        );
        // Its own arguments are its own; they are in the list of processes as long as it runs.
        let dumped = dumped.replace("SECRET-in-arguments", "");
        without_secrets("a hook's environment", &dumped);
        let at = endpoint.0.to_string();
        for arguments in [&["check"][..], &["status", "--endpoint", &at], &["monitor"]] {
            let told = Command::new(binaries::path(binaries::TOOL)?)
                .args(["--config", "tracker.toml"])
                .args(arguments)
                .current_dir(setup.home())
                .output()
                .await?;
            let all = [told.stdout, told.stderr].concat();
            without_secrets(arguments[0], &String::from_utf8_lossy(&all));
        }
    }
    Ok(())
}

/// The names of metrics in a text.
fn named(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.split(|c| !is_part(c))
        .filter(|word| word.starts_with("torrust_maintenance_"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_and_dashboard_ask_for_what_a_tracker_has() -> Result<()> {
    let _beside = beside_others().await;
    let receiver = Receiver::start(Manner::Takes).await?;
    let server = Server::start().await?;
    let setup = hook(Setup::new()?, "after", "exit 0");
    let setup = tells(setup, "webhook", &receiver, "/hook");
    let setup = uploading(setup, server.address, &server.key, "figures")?;
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    done(endpoint).await?;
    uploaded(&tracker).await?;
    let answer = http1::get(endpoint.0, "/metrics").await?;
    ensure!(answer.status == 200, "{answer:?}");
    let text = String::from_utf8(answer.body.to_vec())?;
    let there: BTreeSet<&str> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
    for file in ["prometheus/alerts.yml", "grafana/maintenance.json"] {
        let contents = fs::read_to_string(config.join(file))?;
        let names = named(&contents);
        ensure!(names.len() > 5, "{file} names few: {names:?}");
        for name in names {
            assert!(there.contains(name), "{file} asks for {name}: {there:#?}");
        }
    }
    approved_by_promtool(&text).await
}

/// `promtool check metrics`: the text can be read, and names follow the conventions.
async fn approved_by_promtool(text: &str) -> Result<()> {
    let mut promtool = Command::new(promtool())
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool is missing: ./tests/run installs it")?;
    let mut input = promtool.stdin.take().context("it is piped")?;
    input.write_all(text.as_bytes()).await?;
    drop(input);
    let judged = promtool.wait_with_output().await?;
    let said = String::from_utf8_lossy(&judged.stderr).into_owned();
    ensure!(judged.status.success() && said.is_empty(), "{said}\n{text}");
    Ok(())
}

/// Where `./tests/run` puts it, else wherever it is found.
fn promtool() -> PathBuf {
    let programs = std::env::current_exe().ok();
    let target = programs.as_deref().and_then(|path| path.ancestors().nth(3));
    let installed = target.map(|target| target.join("tools/bin/promtool"));
    installed
        .filter(|path| path.exists())
        .unwrap_or_else(|| "promtool".into())
}
