//! What nobody is to know is planted wherever it is needed, and looked for wherever somebody may
//! look: logs, errors, statuses, metrics, notices, manifests, backups, and what hooks and other
//! users of the machine see.

use std::fs;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use end_to_end::mariadb::{DATABASE, MariaDb, PASSWORD};
use end_to_end::receiver::{Manner, Receiver};
use end_to_end::s3::{self, uploading};
use end_to_end::tracker::{Setup, Tracker};
use end_to_end::{PATIENCE, http1};
use serde_json::{Value, json};

use crate::support::{A_RUN, IDENTITY, beside_others, done, identity_in, kind, tool, uploaded};

/// Of the REST API; like no other test's, so that it is not theirs that is found.
const API_TOKEN: &str = "SECRET-of-the-REST-API";

/// Writes down what a hook sees: its environment, its parent, and all processes.
const SPY: &str = "{ echo hook $TORRUST_MAINTENANCE_HOOK; env; \
                   tr '\\0' ' ' </proc/$PPID/cmdline; echo; ps -ef; } | tee -a seen";

/// Each secret, in every form it has somewhere, and what it is.
struct Planted(Vec<(&'static str, String)>);

impl Planted {
    fn new(server: &MariaDb, bucket: &s3::Server) -> Result<Self> {
        let url = server.url(DATABASE);
        let encoded = url.split([':', '@']).nth(2).context("a password")?;
        Ok(Self(vec![
            ("the database's password", PASSWORD.to_owned()),
            ("the same in a URL", encoded.to_owned()),
            ("the API's token", API_TOKEN.to_owned()),
            ("the S3 key", bucket.key.secret_access_key.clone()),
            ("the age identity", IDENTITY.to_owned()),
            // Readers of identities may be lenient.
            ("the same in small letters", IDENTITY.to_ascii_lowercase()),
        ]))
    }

    fn are_not_in(&self, place: &str, bytes: &[u8]) {
        assert!(!bytes.is_empty(), "there is nothing in {place} to look at");
        for (what, secret) in &self.0 {
            let secret = secret.as_bytes();
            let found = bytes.windows(secret.len()).any(|part| part == secret);
            assert!(!found, "{what} is in {place}");
        }
    }

    /// The command lines of all processes, which every user of the machine sees.
    fn are_no_arguments(&self) -> Result<()> {
        let mut all = Vec::new();
        for entry in fs::read_dir("/proc")? {
            // Of what is no process, or has ended, there is none.
            all.extend(fs::read(entry?.path().join("cmdline")).unwrap_or_default());
        }
        self.are_not_in("the list of processes", &all);
        Ok(())
    }

    /// All that a tracker has said so far, and says when it is asked.
    async fn are_not_told_by(&self, tracker: &Tracker) -> Result<()> {
        let endpoint = tracker.endpoint()?;
        for path in ["/api/v1/status", "/metrics", "/ready", "/health_check"] {
            let answer = http1::get(endpoint.0, path).await?;
            self.are_not_in(path, &answer.body);
        }
        self.are_not_in("the log", tracker.log.lines().join("\n").as_bytes());
        Ok(())
    }

    /// Every file below a directory, and what is in it where it is compressed alone.
    fn are_not_below(&self, directory: &Path) -> Result<usize> {
        let mut files = 0;
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                files += self.are_not_below(&path)?;
                continue;
            }
            let name = path.display().to_string();
            let bytes = fs::read(&path)?;
            if !bytes.is_empty() {
                self.are_not_in(&name, &bytes);
            }
            if path.extension().is_some_and(|end| end == "zst") {
                let mut unpacked = Vec::new();
                zstd::Decoder::new(&bytes[..])?.read_to_end(&mut unpacked)?;
                self.are_not_in(&format!("{name}, unpacked"), &unpacked);
            }
            files += 1;
        }
        Ok(files)
    }

    /// The output of the tool, which must end as it is said.
    fn are_not_told(&self, setup: &Setup, is_good: bool, arguments: &[&str]) -> Result<()> {
        let output = tool(setup, arguments)?;
        let all = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&all);
        ensure!(
            output.status.success() == is_good,
            "{arguments:?}: {}: {said}",
            output.status
        );
        self.are_not_in(&arguments.join(" "), &all);
        Ok(())
    }
}

fn spied_on(setup: Setup) -> Setup {
    let command = json!(["sh", "-c", SPY]).to_string();
    let hooks = ["before", "ready", "after", "on_failure"];
    hooks.into_iter().fold(setup, |setup, hook| {
        setup.set("maintenance.hooks", hook, &command)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_shows_anywhere() -> Result<()> {
    let _beside = beside_others().await;
    let server = MariaDb::start().await?;
    server.fill(20_000)?;
    let bucket = s3::Server::start().await?;
    let receiver = Receiver::start(Manner::Takes).await?;
    let planted = Planted::new(&server, &bucket)?;
    let safe = tempfile::tempdir()?;
    let (identity, recipient) = identity_in(safe.path())?;
    let identity = identity.to_str().context("a path in UTF-8")?;
    for (prefix, encrypted) in [("plain", false), ("sealed", true)] {
        let setup = uploading(server.setup()?, bucket.address, &bucket.key, prefix)?
            .set("logging", "threshold", "\"trace\"")
            .set(
                "http_api.access_tokens",
                "admin",
                &format!("\"{API_TOKEN}\""),
            )
            .set("maintenance.backup", "bandwidth", "\"1MiB\"")
            .set("maintenance.notify", "on", "\"always\"")
            .set(
                "maintenance.notify",
                "webhook",
                &format!("\"http://{}/hook\"", receiver.address),
            );
        // The configuration file has most of them: left out, or encrypted with the rest.
        let setup = spied_on(if encrypted {
            let recipients = format!("[\"{recipient}\"]");
            setup.set("maintenance.backup", "recipients", &recipients)
        } else {
            setup.set("maintenance.backup", "config_file", "false")
        });
        let tracker = setup.start().await?;
        let endpoint = tracker.endpoint()?;
        let run = endpoint.start_run().await?;
        let is_dumping = |status: &Value| status["run"]["progress"]["doing"] == "dumping";
        endpoint.until("a dump", PATIENCE, is_dumping).await?;
        planted.are_no_arguments()?;
        planted.are_not_told_by(&tracker).await?;
        let ended = endpoint.ended(&run, A_RUN).await?;
        assert_eq!(kind(&ended), "done", "{ended:#}");
        uploaded(&tracker).await?;
        let files = planted.are_not_below(&setup.backups())?;
        assert!(files >= 2, "a manifest and a dump, not {files} files");

        let id = ended["backup"].as_str().context("a backup")?.to_owned();
        let to = format!("restored_{prefix}");
        let elsewhere = format!("restored_{prefix}_again");
        let key: &[&str] = if encrypted {
            &["--identity", identity]
        } else {
            &[]
        };
        let at = endpoint.0.to_string();
        for arguments in [
            &["check"][..],
            &["list"],
            &["list", "--remote"],
            &["status", "--endpoint", &at],
            &["monitor"],
            &[&["verify", &id][..], key].concat(),
            &[&["restore", &id, "--to-database", &to][..], key].concat(),
            &[
                &["restore", &id, "--from", "remote"][..],
                &["--to-database", &elsewhere],
                key,
            ]
            .concat(),
        ] {
            planted.are_not_told(&setup, true, arguments)?;
        }
        what_fails_says_none(&planted, &setup, &server, &tracker, &id).await?;
        receiver
            .gets("the notice of a failure", PATIENCE, |request| {
                request.body.contains("1045")
            })
            .await?;
        let notices = receiver.got().into_iter().map(|it| it.body);
        planted.are_not_in("notices", notices.collect::<String>().as_bytes());
        let seen = fs::read(setup.home().join("seen"))?;
        let hooks = String::from_utf8_lossy(&seen).into_owned();
        for hook in ["before", "ready", "after", "on_failure"] {
            assert!(hooks.contains(&format!("hook {hook}\n")), "{hooks}");
        }
        planted.are_not_in("what hooks see", &seen);
        planted.are_not_told_by(&tracker).await?;
    }
    Ok(())
}

/// Errors name what is wrong, and not the secret that is.
async fn what_fails_says_none(
    planted: &Planted,
    setup: &Setup,
    server: &MariaDb,
    tracker: &Tracker,
    id: &str,
) -> Result<()> {
    // An identity with one letter wrong.
    let wrong = setup.home().join("wrong.txt");
    fs::write(&wrong, format!("{IDENTITY}X\n"))?;
    let wrong = wrong.to_str().context("a path in UTF-8")?;
    planted.are_not_told(setup, false, &["verify", id, "--identity", wrong])?;
    // A database that does not take the password any more.
    let user = "tracker@'127.0.0.1'";
    server.sql(&format!("ALTER USER {user} IDENTIFIED BY 'another'"))?;
    let failed = tracker.endpoint()?.run(A_RUN).await?;
    assert_eq!(kind(&failed), "failed", "{failed:#}");
    planted.are_not_in("the outcome", failed.to_string().as_bytes());
    planted.are_not_told(
        setup,
        false,
        &["restore", id, "--to-database", "restored_x"],
    )?;
    let password = PASSWORD.replace('\\', "\\\\").replace('\'', "\\'");
    server.sql(&format!("ALTER USER {user} IDENTIFIED BY '{password}'"))?;
    // A bucket that does not take the key.
    let good = fs::read_to_string(setup.home().join("s3.secret"))?;
    fs::write(
        setup.home().join("s3.secret"),
        good.trim().to_owned() + "X\n",
    )?;
    planted.are_not_told(setup, false, &["list", "--remote"])?;
    fs::write(setup.home().join("s3.secret"), good)?;
    done(tracker.endpoint()?).await?;
    Ok(())
}
