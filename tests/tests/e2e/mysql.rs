//! A tracker on a real MariaDB server: what a window costs, that what it publishes restores,
//! and what it says when it cannot be had.

use std::collections::HashSet;
use std::fs;
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use end_to_end::load::{Load, Plan};
use end_to_end::mariadb::{self, DATABASE, MariaDb, PASSWORD};
use end_to_end::s3::{self, uploading};
use end_to_end::session::{self, Session, pause_ms};
use end_to_end::tracker::{Setup, Tracker};
use end_to_end::{PATIENCE, backups, soak_in_full};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{
    self, A_RUN, MIB, alone, beside_others, done, identity_in, kind, nothing_lost,
    nothing_temporary, printed, uploaded,
};
use crate::volume::Volume;

/// The tool, with the configuration of a tracker that need not run.
fn tool(setup: &Setup, arguments: &[&str]) -> Result<Output> {
    fs::write(setup.file(), setup.toml())?;
    support::tool(setup, arguments)
}

/// A command that is refused: its exit code, and what it says.
fn refused(output: &Output) -> (Option<i32>, String) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

/// Restores a backup into a database of this name, which must not be there.
fn restore(setup: &Setup, id: &str, to: &str) -> Result<Value> {
    printed(&tool(setup, &["restore", id, "--to-database", to])?)
}

/// The manifest and the name of every backup, oldest first.
fn manifests(setup: &Setup) -> Result<Vec<(String, Value)>> {
    let published = backups::published(&setup.backups())?;
    published
        .iter()
        .map(|directory| {
            let manifest: Value =
                serde_json::from_slice(&fs::read(directory.join("manifest.json"))?)?;
            let id = manifest["id"].as_str().context("an id")?.to_owned();
            Ok((id, manifest))
        })
        .collect()
}

fn newest(setup: &Setup) -> Result<(String, Value)> {
    manifests(setup)?.pop().context("a backup")
}

fn is_dumping(status: &Value) -> bool {
    status["run"]["progress"]["doing"] == "dumping"
}

/// No announce is lost, the gate is closed for less than half a second, though the dump takes
/// more than ten; what it made has each completion of its instant, and a second server takes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_of_ten_seconds_pauses_for_milliseconds_and_restores_elsewhere() -> Result<()> {
    let _alone = alone().await;
    let server = MariaDb::start().await?;
    let mut setup = server.setup()?;
    if soak_in_full() {
        server.fill(16_000_000)?;
    } else {
        server.fill(250_000)?;
        setup = setup.set("maintenance.backup", "bandwidth", "\"1MiB\"");
    }
    let mut tracker = setup.start().await?;
    let plan = Plan {
        udp_per_second: 1_000,
        http_per_second: 0,
        sockets: 32,
        torrents: 500,
    };
    let Session { runs, account } =
        session::hold(&tracker, plan, 1, Duration::from_secs(600)).await?;
    nothing_lost(&account);
    let (id, manifest) = newest(&setup)?;
    let seconds = manifest["copy_seconds"].as_f64().context("copy_seconds")?;
    let pause = pause_ms(&runs[0])?;
    println!(
        "{} bytes of SQL dumped in {seconds:.1} s; announces paused {pause:.1} ms; {} announces, \
         all answered",
        manifest["database"]["raw_bytes"],
        account.sent()
    );
    assert!(seconds > 10.0, "the dump took {seconds} s");
    assert!(pause < 500.0, "announces were paused for {pause} ms");
    assert_eq!(manifest["driver"], "mysql");
    assert_eq!(manifest["method"], "dump");
    assert_eq!(manifest["dump"]["consistent_by"], "snapshot");
    let gate = &tracker.endpoint()?.status().await?["gate"];
    assert_eq!(gate["turned_away"]["udp"], 0, "{gate:#}");

    // The instant: on this server, beside the tracker's database.
    restore(&setup, &id, "restored_instant")?;
    let pinned = manifest["pinned"].as_str().context("pinned")?.parse()?;
    let stored = server.completed("restored_instant")?;
    account.completions().shown(&stored, pinned)?;

    // All of it: nothing is written any more, so the second server must have the very same.
    tracker.signal(Signal::TERM)?;
    tracker.exited(PATIENCE).await?;
    let tracker = setup.start().await?;
    let run = tracker.endpoint()?.run(Duration::from_secs(600)).await?;
    ensure!(kind(&run) == "done", "{run:#}");
    let (id, manifest) = newest(&setup)?;
    drop(tracker);
    let second = MariaDb::start().await?;
    let password = setup.home().join("password");
    fs::write(&password, format!("{PASSWORD}\n"))?;
    let (url, password) = (
        second.url_without_password("restored_all"),
        password.to_string_lossy().into_owned(),
    );
    let arguments = [
        "restore",
        &id,
        "--to-database",
        &url,
        "--password-file",
        &password,
    ];
    let restored = printed(&tool(&setup, &arguments)?)?;
    assert_eq!(restored["restored"]["rows"], manifest["rows"]);
    for (table, rows) in manifest["rows"].as_object().context("rows")? {
        assert_eq!(
            second.count("restored_all", table)?,
            rows.as_u64().unwrap_or(0)
        );
        assert_eq!(server.count(DATABASE, table)?, rows.as_u64().unwrap_or(0));
    }
    let checksums = second.checksums("restored_all")?;
    assert_eq!(checksums.len(), 3);
    assert_eq!(checksums, server.checksums(DATABASE)?);
    Ok(())
}

/// Who is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Server,
    Dump,
    Tracker,
}

/// How long it is waited for answers that will not come, the tracker being dead.
const LAST_ANSWERS: Duration = Duration::from_millis(200);

/// Whoever dies in the middle of a dump, under announces: what is published restores, as it was at
/// the instant of its run, and the next run is done.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_published_that_does_not_restore() -> Result<()> {
    let _alone = alone().await;
    let mut server = MariaDb::start().await?;
    server.fill(10_000)?;
    server.sql_in(
        DATABASE,
        "CREATE TABLE kept (id int PRIMARY KEY, round int, text char(40)); \
         INSERT INTO kept SELECT seq, 0, SHA1(seq) FROM seq_1_to_10000",
    )?;
    // About 1 MiB of SQL, in a second.
    let setup = server
        .setup()?
        .set("maintenance.backup", "bandwidth", "\"1MiB\"");
    let plan = Plan {
        udp_per_second: 200,
        http_per_second: 0,
        sockets: 4,
        torrents: 100,
    };
    let rounds = if soak_in_full() { 30 } else { 10 };
    let mut restored = HashSet::new();
    // It makes the tables that there are not.
    drop(setup.start().await?);
    for round in 0..rounds {
        let victim = [Victim::Server, Victim::Dump, Victim::Tracker][round % 3];
        let context = || format!("round {round}, {victim:?}");
        // What no other round has.
        server.forget_load()?;
        let sql = format!("UPDATE kept SET round = {round} + 1 WHERE id % 10 = {round} % 10");
        server.sql_in(DATABASE, &sql)?;
        let expected = server.checksums_beside_load(DATABASE)?;
        let mut tracker = setup.start().await?;
        let endpoint = tracker.endpoint()?;
        let load = Load::start(plan, tracker.addresses.udp, tracker.addresses.http).await?;
        load.answered_more(100, PATIENCE).await?;
        let run = endpoint.start_run().await?;
        // Anywhere from its first byte to after its last.
        let point = fastrand::u64(..1_400_000);
        endpoint
            .until("the point", PATIENCE, |status| {
                end_to_end::endpoint::ended(status, &run).is_some()
                    || status["state"] == "finishing"
                    || is_dumping(status)
                        && status["run"]["progress"]["done"].as_u64() >= Some(point)
            })
            .await?;
        match victim {
            Victim::Server => server.kill()?,
            Victim::Dump => {
                for pid in MariaDb::dumps(DATABASE)? {
                    let pid = Pid::from_raw(pid).context("a process id above 0")?;
                    // It may have ended by itself.
                    let _ = kill_process(pid, Signal::KILL);
                }
                load.answered_more(100, PATIENCE)
                    .await
                    .with_context(context)?;
            }
            Victim::Tracker => tracker.kill().await?,
        }
        if !matches!(victim, Victim::Tracker) {
            let ended = endpoint.ended(&run, A_RUN).await.with_context(context)?;
            let gate = &endpoint.status().await?["gate"];
            assert_eq!(gate["open"], true, "{ended:#}");
        }
        let account = load.stop(LAST_ANSWERS).await?;
        drop(tracker);
        if matches!(victim, Victim::Server) {
            server.restart().await?;
        }
        // The next one sweeps up what it left.
        drop(setup.start().await?);
        nothing_temporary(&setup)?;
        for (id, manifest) in manifests(&setup)? {
            if restored.insert(id.clone()) {
                let to = format!("restored_{}", restored.len());
                restore(&setup, &id, &to).with_context(context)?;
                let found = server.checksums_beside_load(&to)?;
                assert_eq!(found, expected, "{}", context());
                let pinned = manifest["pinned"].as_str().context("pinned")?.parse()?;
                let stored = server.completed(&to)?;
                let shown = account.completions().shown(&stored, pinned);
                shown.with_context(context)?;
            }
        }
    }
    println!(
        "{rounds} killed; {} backups published, all restored",
        restored.len()
    );
    ensure!(restored.len() < rounds, "no run was ever cut off");
    let tracker = setup.start().await?;
    done(tracker.endpoint()?).await?;
    Ok(())
}

/// What the tracker's own user may open is opened with the identity alone, here and from the
/// second place.
#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_dump_is_restored_from_here_and_from_elsewhere() -> Result<()> {
    let _beside = beside_others().await;
    let server = MariaDb::start().await?;
    server.fill(5_000)?;
    let bucket = s3::Server::start().await?;
    let safe = tempfile::tempdir()?;
    let (identity, recipient) = identity_in(safe.path())?;
    let identity = identity.to_str().context("a path in UTF-8")?;
    let setup = uploading(server.setup()?, bucket.address, &bucket.key, "dump")?.set(
        "maintenance.backup",
        "recipients",
        &format!("[\"{recipient}\"]"),
    );
    let tracker = setup.start().await?;
    done(tracker.endpoint()?).await?;
    uploaded(&tracker).await?;
    drop(tracker);
    let (id, manifest) = newest(&setup)?;
    let name = manifest["database"]["name"].as_str().context("a name")?;
    let stored = fs::read(setup.backups().join(&id).join(name))?;
    assert!(stored.starts_with(b"age-encryption.org/v1"), "{name}");

    let (code, said) = refused(&tool(
        &setup,
        &["restore", &id, "--to-database", "restored_x"],
    )?);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("identity"), "{said}");
    let expected = server.checksums(DATABASE)?;
    let opened = ["--identity", identity];
    let here = [
        &["restore", &id, "--to-database", "restored_here"],
        &opened[..],
    ]
    .concat();
    let here = printed(&tool(&setup, &here)?)?;
    assert_eq!(here["restored"]["rows"], manifest["rows"]);
    assert_eq!(server.checksums("restored_here")?, expected);

    fs::remove_dir_all(setup.backups().join(&id))?;
    let from = ["restore", "--from", "remote", "--to-database"];
    let elsewhere = [&from[..], &["restored_elsewhere"], &opened].concat();
    let elsewhere = printed(&tool(&setup, &elsewhere)?)?;
    assert_eq!(elsewhere["restored"]["rows"], manifest["rows"]);
    assert_eq!(server.checksums("restored_elsewhere")?, expected);
    Ok(())
}

/// Whether the password, or part of it as a URL has it, is in what others may read of a process.
fn shows_password(bytes: &[u8], server: &MariaDb) -> bool {
    let url = server.url(DATABASE);
    let encoded = url.split([':', '@']).nth(2).unwrap_or_default();
    [PASSWORD, encoded].into_iter().any(|secret| {
        let secret = secret.as_bytes();
        bytes.windows(secret.len()).any(|part| part == secret)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_shown_the_password() -> Result<()> {
    let _beside = beside_others().await;
    let server = MariaDb::start().await?;
    server.fill(20_000)?;
    // The tracker has it in its environment, its dump must not.
    let setup = server
        .setup()?
        .set("maintenance.backup", "bandwidth", "\"512KiB\"")
        .set(
            "core.database",
            "path",
            "\"mysql://overridden@127.0.0.1/x\"",
        )
        .env(
            "TORRUST_TRACKER_CONFIG_OVERRIDE_CORE__DATABASE__PATH",
            &server.url(DATABASE),
        );
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let run = endpoint.start_run().await?;
    let status = endpoint.until("a dump", PATIENCE, is_dumping).await?;
    assert!(!shows_password(status.to_string().as_bytes(), &server));
    assert_eq!(
        status["database"]["path"],
        server.url_without_password(DATABASE)
    );
    assert_eq!(
        status["ready"], false,
        "there is no file to copy: {status:#}"
    );
    let dumps = MariaDb::dumps(DATABASE)?;
    assert!(!dumps.is_empty(), "the dump runs");
    for pid in &dumps {
        let environment = fs::read(format!("/proc/{pid}/environ"))?;
        assert!(!environment.is_empty());
        assert!(!shows_password(&environment, &server), "in its environment");
    }
    for entry in fs::read_dir("/proc")? {
        // Of what is no process, or has ended, there is none.
        let line = fs::read(entry?.path().join("cmdline")).unwrap_or_default();
        assert!(
            !shows_password(&line, &server),
            "{}",
            String::from_utf8_lossy(&line)
        );
    }
    let ended = endpoint.ended(&run, A_RUN).await?;
    assert_eq!(kind(&ended), "done", "{ended:#}");

    // It is wrong from now on, and shown to a server that says so.
    server.sql("ALTER USER tracker@'127.0.0.1' IDENTIFIED BY 'another'")?;
    let failed = endpoint.run(A_RUN).await?;
    let message = failed["outcome"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("1045"), "{failed:#}");
    assert!(message.contains("check user and password"), "{failed:#}");
    for backup in backups::published(&setup.backups())? {
        for entry in fs::read_dir(backup)? {
            let path = entry?.path();
            // The configuration file is stored, as configured; here it has none.
            assert!(
                !shows_password(&fs::read(&path)?, &server),
                "{}",
                path.display()
            );
        }
    }
    let log = tracker.log.lines().join("\n");
    assert!(!shows_password(log.as_bytes(), &server), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_without_transactions_keep_the_gate_closed_and_it_says_so() -> Result<()> {
    let _beside = beside_others().await;
    let server = MariaDb::start().await?;
    server.fill(20_000)?;
    server.sql_in(
        DATABASE,
        "CREATE TABLE old (x int) ENGINE=MyISAM; INSERT INTO old VALUES (1),(2)",
    )?;
    let setup = server
        .setup()?
        .set("maintenance.backup", "bandwidth", "\"1MiB\"");
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let plan = Plan {
        udp_per_second: 100,
        http_per_second: 0,
        sockets: 4,
        torrents: 100,
    };
    let load = Load::start(plan, tracker.addresses.udp, tracker.addresses.http).await?;
    load.answered_more(100, PATIENCE).await?;
    let run = endpoint.start_run().await?;
    let status = endpoint.until("a dump", PATIENCE, is_dumping).await?;
    assert_eq!(status["gate"]["open"], false, "{status:#}");
    let ended = endpoint.ended(&run, A_RUN).await?;
    assert_eq!(kind(&ended), "done", "{ended:#}");
    load.answered_more(100, PATIENCE).await?;
    let account = load.stop(PATIENCE).await?;
    nothing_lost(&account);
    let (id, manifest) = newest(&setup)?;
    assert_eq!(manifest["dump"]["consistent_by"], "locks");
    let told = manifest["warnings"].to_string();
    assert!(told.contains("old (MyISAM)"), "{told}");
    assert!(tracker.log.says("old (MyISAM)"));
    let (copied, paused) = (manifest["copy_seconds"].as_f64(), pause_ms(&ended)?);
    assert!(
        copied.is_some_and(|copied| paused >= copied * 1000.0),
        "{manifest:#}"
    );
    assert_eq!(manifest["rows"]["old"], 2);
    restore(&setup, &id, "restored_old")?;
    let pinned = manifest["pinned"].as_str().context("pinned")?.parse()?;
    let stored = server.completed("restored_old")?;
    account.completions().shown(&stored, pinned)?;

    // So long a wait is not begun.
    let setup = setup.set("maintenance.backup", "bandwidth", "\"64KiB\"");
    drop(tracker);
    let tracker = setup.start().await?;
    let run = tracker.endpoint()?.run(A_RUN).await?;
    assert_eq!(kind(&run), "would_not_fit", "{run:#}");
    assert!(pause_ms(&run)? < 0.001, "{run:#}");
    Ok(())
}

/// The check before the gate closes does all that the dump does, and whoever writes does not notice:
/// neither announces nor a table whose dump will lock all of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_keeps_no_writer_waiting() -> Result<()> {
    let _beside = beside_others().await;
    let server = MariaDb::start().await?;
    server.fill(100)?;
    // Structure enough to fill the pipe, so that the program stands still in the middle of it.
    let columns = (0..40).map(|n| format!("c{n} int COMMENT '{}'", "x".repeat(1000)));
    let columns = columns.collect::<Vec<_>>().join(", ");
    for n in 0..8 {
        let sql = format!("CREATE TABLE a_{n} ({columns})");
        server.sql_in(DATABASE, &sql)?;
    }
    server.sql_in(
        DATABASE,
        "CREATE TABLE old (x int) ENGINE=MyISAM; INSERT INTO old VALUES (1),(2)",
    )?;
    let setup = server.setup()?;
    let home = setup.home().to_owned();
    let script = "cd \"$(dirname \"$0\")\"\n\
        case \"$*\" in\n\
        *1=0*) mkfifo pipe; exec 4<&0; mariadb-dump \"$@\" <&4 >pipe & exec 3<pipe\n\
            head -c 60000 <&3 >begun; touch rehearsing\n\
            until [ -e go-on ]; do sleep 0.05; done; cat begun - <&3; wait $! ;;\n\
        *) exec mariadb-dump \"$@\" ;;\n\
        esac";
    let program = mariadb::program(&home, script)?;
    let program = format!("\"{}\"", program.display());
    let setup = setup.set("maintenance.backup", "dump_program", &program);
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let plan = Plan {
        udp_per_second: 100,
        http_per_second: 0,
        sockets: 4,
        torrents: 20,
    };
    let load = Load::start(plan, tracker.addresses.udp, tracker.addresses.http).await?;
    load.answered_more(50, PATIENCE).await?;
    let run = endpoint.start_run().await?;
    end_to_end::until("the rehearsal", PATIENCE, async || {
        Ok(home.join("rehearsing").exists().then_some(()))
    })
    .await?;
    server.sql_in(
        DATABASE,
        "SET lock_wait_timeout = 5, innodb_lock_wait_timeout = 5; UPDATE old SET x = x + 1; \
         UPDATE torrents SET completed = completed + 1 WHERE id = 1",
    )?;
    load.answered_more(200, PATIENCE).await?;
    let status = endpoint.status().await?;
    assert_eq!(status["state"], "preparing", "{status:#}");
    assert_eq!(status["gate"]["open"], true, "{status:#}");
    fs::write(home.join("go-on"), "")?;
    let ended = endpoint.ended(&run, A_RUN).await?;
    assert_eq!(kind(&ended), "done", "{ended:#}");
    nothing_lost(&load.stop(PATIENCE).await?);
    let (_, manifest) = newest(&setup)?;
    assert_eq!(manifest["dump"]["consistent_by"], "locks");

    // That it may not lock shows all the same before anything waits.
    let sql = "REVOKE LOCK TABLES ON torrust.* FROM tracker@'127.0.0.1'";
    server.sql(sql)?;
    fails(&tracker, &["1044", "LOCK TABLES ON"]).await?;
    let status = endpoint.status().await?;
    assert_eq!(status["runs"][0]["pause_ms"], 0.0, "{status:#}");
    Ok(())
}

/// What could be taken for something else on the way: by the client, the dump, the count of
/// its rows, the compressor, or the server that it is restored to.
const ODD: &str = r#"
    CREATE TABLE `a``;(--` (id int PRIMARY KEY, `/*` blob, wide text CHARACTER SET utf8mb4,
        narrow varchar(40) CHARACTER SET latin1, `sum` int AS (id + 1) STORED, f double, d datetime,
        b bit(9)) COMMENT 'it''s (1),(2); -- Dump completed';
    INSERT INTO `a``;(--` (id, `/*`, wide, narrow, f, d, b) VALUES
        (1, NULL, NULL, NULL, NULL, NULL, NULL),
        (2, x'00ff27225c0a1a', 'naïve 😀 -- no /* comment */ ; ''quoted'' \\ "(1),(2)"', 'éÿ', 1e300,
            '2026-11-22 03:00:00', b'101010101'),
        (3, '', '', '', -0.1, '1970-01-01 00:00:01', b'0'),
        (4, x'2d2d2044756d7020636f6d706c657465640a', '
-- Dump completed
', '-- ', 0, NULL, NULL);
    CREATE TABLE `empty` (x int);
    CREATE VIEW `view` AS SELECT id FROM `a``;(--`;
    CREATE TRIGGER `trigger` BEFORE INSERT ON `empty` FOR EACH ROW SET NEW.x = ASCII('/*');
"#;

#[tokio::test(flavor = "multi_thread")]
async fn odd_rows_come_back_as_they_were() -> Result<()> {
    let _beside = beside_others().await;
    let server = MariaDb::start().await?;
    server.sql_in(DATABASE, ODD)?;
    // Many rows of random bytes, among them every sign that means something in SQL.
    server.sql_in(
        DATABASE,
        "CREATE TABLE random (id int, raw blob, text text CHARACTER SET latin1); \
         INSERT INTO random SELECT seq, UNHEX(REPEAT(SHA2(RAND(), 512), 4)), \
         CAST(UNHEX(REPEAT(SHA2(RAND(), 512), 2)) AS CHAR CHARACTER SET latin1) FROM seq_1_to_3000",
    )?;
    for compression in ["zstd", "none"] {
        let setup = server.setup()?.set(
            "maintenance.backup",
            "compression",
            &format!("\"{compression}\""),
        );
        let tracker = setup.start().await?;
        done(tracker.endpoint()?).await?;
        let (id, manifest) = newest(&setup)?;
        assert_eq!(manifest["rows"]["a`;(--"], 4, "{manifest:#}");
        assert_eq!(manifest["rows"]["empty"], 0);
        assert_eq!(manifest["rows"]["random"], 3000);
        let verified = printed(&tool(&setup, &["verify", "--full", &id])?)?;
        assert_eq!(verified["backups"][0]["verdict"], "good", "{verified:#}");
        let listed = printed(&tool(&setup, &["list"])?)?;
        assert_eq!(listed["entries"][0]["manifest"]["driver"], "mysql");
        // The views and triggers are another user's, whom not every user may stand in for.
        server.sql("GRANT SET USER, SUPER ON *.* TO tracker@'127.0.0.1'")?;
        let to = format!("restored_{compression}");
        restore(&setup, &id, &to)?;
        assert_eq!(server.checksums(&to)?, server.checksums(DATABASE)?);
        server.sql_in(&to, "INSERT INTO `empty` VALUES (1)")?;
        assert_eq!(server.sql_in(&to, "SELECT x FROM `empty`")?.trim(), "47");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_with_rows_is_never_restored_to() -> Result<()> {
    let _beside = beside_others().await;
    let server = MariaDb::start().await?;
    server.fill(100)?;
    let setup = server.setup()?;
    let mut tracker = setup.start().await?;
    done(tracker.endpoint()?).await?;
    let before = server.checksums(DATABASE)?;
    for force in [
        &["restore", "latest"][..],
        &["restore", "latest", "--force"],
    ] {
        let (code, said) = refused(&tool(&setup, force)?);
        assert_eq!(code, Some(3), "{said}");
        assert!(said.contains("rows in torrents"), "{said}");
    }
    assert_eq!(server.checksums(DATABASE)?, before);

    // Without rows, but in use.
    server.sql_in(DATABASE, "DELETE FROM torrents")?;
    let (code, said) = refused(&tool(&setup, &["restore", "latest"])?);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("other connections"), "{said}");
    tracker.kill().await?;
    end_to_end::until("the server to see that it is gone", PATIENCE, async || {
        let sql = "SELECT COUNT(*) FROM information_schema.processlist WHERE db = 'torrust'";
        Ok((server.sql(sql)?.trim() == "0").then_some(()))
    })
    .await?;
    let dry = printed(&tool(&setup, &["restore", "latest", "--dry-run"])?)?;
    assert_eq!(dry["would_restore"], true, "{dry:#}");
    assert_eq!(server.count(DATABASE, "torrents")?, 0);
    printed(&tool(&setup, &["restore", "latest"])?)?;
    assert_eq!(server.count(DATABASE, "torrents")?, 100);

    // Words that cannot be right.
    let url = server.url("restored_x");
    for (arguments, exit, said) in [
        (&["restore", "--to", "x.db"][..], 2, "is a dump of a server"),
        (
            &["restore", "--to-database", &url],
            2,
            "on the command line",
        ),
        (
            &["restore", "--to-database", "mysql://x@127.0.0.1:1/y"],
            1,
            "does the server run",
        ),
    ] {
        let (code, found) = refused(&tool(&setup, arguments)?);
        assert_eq!(code, Some(exit), "{found}");
        assert!(found.contains(said), "{found}");
        assert!(!shows_password(found.as_bytes(), &server));
    }
    Ok(())
}

/// A run that must fail, say this, publish nothing and leave nothing; the gate is open.
async fn fails(tracker: &Tracker, expected: &[&str]) -> Result<()> {
    let before = backups::published(&tracker.setup().backups())?;
    let run = tracker.endpoint()?.run(A_RUN).await?;
    assert_eq!(kind(&run), "failed", "{run:#}");
    let message = run["outcome"]["message"].as_str().unwrap_or_default();
    for part in expected {
        assert!(message.contains(part), "{message}");
    }
    let first = message.lines().next().unwrap_or_default();
    assert!(tracker.log.says(first), "the log says why: {first}");
    assert_eq!(backups::published(&tracker.setup().backups())?, before);
    nothing_temporary(tracker.setup())?;
    let status = tracker.endpoint()?.status().await?;
    assert_eq!(status["gate"]["open"], true, "{status:#}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_named_and_nothing_is_published() -> Result<()> {
    let _beside = beside_others().await;
    let mut server = MariaDb::start().await?;
    server.fill(1000)?;
    let setup = server.setup()?;
    let tracker = setup.start().await?;
    done(tracker.endpoint()?).await?;

    server.sql(
        "REVOKE ALL ON torrust.* FROM tracker@'127.0.0.1'; \
                GRANT INSERT ON torrust.* TO tracker@'127.0.0.1'",
    )?;
    fails(&tracker, &["denied", "at least: GRANT SELECT"]).await?;
    server.sql("GRANT ALL ON torrust.* TO tracker@'127.0.0.1'")?;
    done(tracker.endpoint()?).await?;

    server.kill()?;
    fails(&tracker, &["2002", "does the server run"]).await?;
    server.restart().await?;
    done(tracker.endpoint()?).await?;
    drop(tracker);

    for (program, expected) in [
        ("/no/such/mysqldump", "mysqldump could not be started"),
        ("/bin/true", "true"),
    ] {
        let setup = setup.clone().set(
            "maintenance.backup",
            "dump_program",
            &format!("\"{program}\""),
        );
        let tracker = setup.start().await?;
        fails(&tracker, &[expected]).await?;
    }
    Ok(())
}

/// Programs that do what the real one does not, when announces wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_program_that_misbehaves_publishes_nothing() -> Result<()> {
    let _beside = beside_others().await;
    let server = MariaDb::start().await?;
    server.fill(20_000)?;
    let rehearsal = "case \"$*\" in *--version*|*1=0*) exec mariadb-dump \"$@\";; esac";
    for (script, expected) in [
        // Cut off, as a pipe through another program would be, which no status tells.
        (
            "mariadb-dump \"$@\" | head -c 300000; exit 0",
            "-- Dump completed",
        ),
        // All there, but it says that it failed.
        ("mariadb-dump \"$@\"; echo broken >&2; exit 7", "broken"),
        (
            "printf '%s\\n' \"it is $(sed -n 's/^password=//p')\" >&2; exit 9",
            "it is ***",
        ),
    ] {
        let setup = server.setup()?;
        let program = mariadb::program(setup.home(), &format!("{rehearsal}\n{script}"))?;
        let program = format!("\"{}\"", program.display());
        let setup = setup.set("maintenance.backup", "dump_program", &program);
        let tracker = setup.start().await?;
        fails(&tracker, &[expected]).await?;
        let log = tracker.log.lines().join("\n");
        assert!(!shows_password(log.as_bytes(), &server), "{log}");
    }
    Ok(())
}

/// A dump that hangs before its snapshot exists keeps the gate closed for as long as a flush
/// may, and no longer; it and what it has started are gone then.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_hangs_does_not_keep_the_gate_closed() -> Result<()> {
    let _beside = beside_others().await;
    let server = MariaDb::start().await?;
    server.fill(100)?;
    let setup = server.setup()?;
    let mark = setup.home().join("hangs");
    let script = format!(
        "case \"$*\" in *--version*|*1=0*) exec mariadb-dump \"$@\";; esac\n\
         echo $$ > '{}'; sleep 1000; exit 0",
        mark.display()
    );
    let program = mariadb::program(setup.home(), &script)?;
    let program = format!("\"{}\"", program.display());
    let setup = setup.set("maintenance.backup", "dump_program", &program);
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let run = endpoint.start_run().await?;
    endpoint
        .until("a closed gate", PATIENCE, |status| {
            status["gate"]["open"] == false
        })
        .await?;
    let closed = Instant::now();
    endpoint
        .until("an open gate", PATIENCE, |status| {
            status["gate"]["open"] == true
        })
        .await?;
    let closed = closed.elapsed();
    assert!(closed < Duration::from_secs(6), "closed for {closed:?}");
    let group = fs::read_to_string(&mark)?.trim().to_owned();
    end_to_end::until("its processes to be gone", PATIENCE, async || {
        let mut left = false;
        for entry in fs::read_dir("/proc")? {
            let stat = fs::read_to_string(entry?.path().join("stat")).unwrap_or_default();
            // proc(5): pid (name) state parent group
            let fields = stat.rsplit_once(')').map(|(_, rest)| rest);
            let fields: Vec<_> = fields.unwrap_or_default().split_whitespace().collect();
            left |=
                matches!(fields.as_slice(), [state, _, of, ..] if *of == group && *state != "Z");
        }
        Ok((!left).then_some(()))
    })
    .await?;
    let status = endpoint.status().await?;
    assert_eq!(
        status["run"]["id"],
        run.as_str(),
        "it is tried again: {status:#}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_publishes_nothing() -> Result<()> {
    let _beside = beside_others().await;
    let server = MariaDb::start().await?;
    server.fill(150_000)?;
    let setup = server.setup()?;
    let _disk = Volume::in_memory(&setup.backups(), 32 * MIB)?;
    let tracker = setup.start().await?;
    done(tracker.endpoint()?).await?;
    let leave = |name: &str, bytes: u64| -> Result<()> {
        let free = rustix::fs::statvfs(setup.backups())?;
        let room = (free.f_bavail * free.f_frsize).saturating_sub(bytes);
        fs::write(setup.backups().join(name), vec![1; usize::try_from(room)?])?;
        Ok(())
    };
    // Less than is reckoned with.
    leave("filler", 2 * MIB)?;
    fails(&tracker, &["free space"]).await?;
    let status = tracker.endpoint()?.status().await?;
    assert_eq!(
        status["runs"][0]["outcome"]["cause"], "no_room",
        "{status:#}"
    );
    fs::remove_file(setup.backups().join("filler"))?;

    // Less than is needed, once it has begun: somebody else has written meanwhile. What is left
    // is below what a run leaves of it, so that it is given up before it is full.
    let setup = setup
        .clone()
        .set("maintenance.backup", "bandwidth", "\"1MiB\"");
    drop(tracker);
    let tracker = setup.start().await?;
    let endpoint = tracker.endpoint()?;
    let run = endpoint.start_run().await?;
    endpoint.until("a dump", PATIENCE, is_dumping).await?;
    leave("filler", 32 * MIB / 100 - 8 * 1024)?;
    let ended = endpoint.ended(&run, A_RUN).await?;
    assert_eq!(kind(&ended), "failed", "{ended:#}");
    assert_eq!(ended["outcome"]["cause"], "no_room", "{ended:#}");
    let message = ended["outcome"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("a run leaves"), "{message}");
    nothing_temporary(&setup)?;
    assert_eq!(manifests(&setup)?.len(), 1);
    fs::remove_file(setup.backups().join("filler"))?;
    done(endpoint).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_file_has_is_refused_at_the_start() -> Result<()> {
    let setup = Setup::new()?
        .set("core.database", "driver", "\"mysql\"")
        .set(
            "core.database",
            "path",
            "\"mysql://u:hunter2@127.0.0.1:1/x\"",
        );
    let (status, said) = setup.start_refused().await?;
    assert_eq!(status.code(), Some(2), "{said}");
    for key in [
        "maintenance.journal_mode",
        "maintenance.readiness.touch_file",
    ] {
        assert!(said.contains(key), "{said}");
    }
    assert!(!said.contains("hunter2"), "{said}");
    let (code, checked) = (tool(&setup, &["check"])?, "maintenance.journal_mode");
    assert_eq!(code.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&code.stdout).contains(checked));
    Ok(())
}
