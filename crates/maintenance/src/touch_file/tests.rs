//! Real files.

#![expect(
    clippy::disallowed_methods,
    reason = "tests read and write files of their own"
)]

use std::fs;

use tempfile::TempDir;

use super::*;

#[test]
fn a_show_that_comes_late_does_not_undo_a_hide() {
    let directory = TempDir::new().expect("a directory");
    let signal = Signal::new(touch_file(&directory));
    let (show, hide) = (signal.show(ready()), signal.hide());
    hide().expect("nothing to remove is fine");
    show().expect("left out");
    assert!(
        fs::read_dir(directory.path())
            .expect("lists")
            .next()
            .is_none()
    );
}

#[test]
fn a_result_that_comes_late_does_not_replace_a_newer_one() {
    let directory = TempDir::new().expect("a directory");
    let signal = Signal::new(touch_file(&directory));
    let newer = RunResult {
        done: true,
        ..result()
    };
    let (late, newest) = (signal.tell(result()), signal.tell(newer.clone()));
    newest().expect("written");
    late().expect("left out");
    let written = fs::read(touch_file(&directory).result_path()).expect("there");
    assert_eq!(
        serde_json::from_slice::<RunResult>(&written).expect("JSON"),
        newer
    );
    // The one is not late for the other.
    signal.show(ready())().expect("shown");
    assert!(touch_file(&directory).path().exists());
}

fn ready() -> Ready {
    let now = DateTime::from_timestamp(1_795_000_000, 0).expect("a date");
    Ready {
        run: RunId::new(now),
        database: "/var/lib/db".into(),
        driver: "sqlite3".to_owned(),
        copy: CopyOf::PinnedFile,
        until: now,
        began: now,
        pinned: now,
        journal_mode: "wal".to_owned(),
        pause_ms: 12.5,
        file: PinnedFile {
            device: 1,
            inode: 2,
            page_size: 4096,
            page_count: 3,
            bytes: 12_288,
            modified: 1_795_000_000_123_456_789,
        },
    }
}

fn result() -> RunResult {
    let Ready { run, until, .. } = ready();
    RunResult {
        run,
        held_throughout: false,
        done: false,
        why: Some("nobody came".to_owned()),
        ended: until,
    }
}

fn touch_file(directory: &TempDir) -> TouchFile {
    TouchFile::new(directory.path().join("ready.json"), Disk::default())
}

#[test]
fn says_which_run_until_when_and_is_gone_after() -> Result<(), Box<dyn std::error::Error>> {
    let directory = TempDir::new()?;
    let file = touch_file(&directory);
    file.write(&ready())?;
    let written: serde_json::Value = serde_json::from_slice(&fs::read(file.path())?)?;
    assert_eq!(written["database"], "/var/lib/db");
    assert_eq!(written["driver"], "sqlite3");
    assert_eq!(written["until"], "2026-11-18T11:06:40Z");
    assert!(
        written["run"]
            .as_str()
            .is_some_and(|run| run.starts_with("20261118T110640Z-"))
    );
    file.remove()?;
    assert_eq!(fs::read_dir(&directory)?.count(), 0);
    Ok(())
}

#[test]
fn a_second_run_replaces_the_first() -> Result<(), Box<dyn std::error::Error>> {
    let directory = TempDir::new()?;
    let file = touch_file(&directory);
    file.write(&ready())?;
    let second = ready();
    file.write(&second)?;
    assert_eq!(
        serde_json::from_slice::<Ready>(&fs::read(file.path())?)?,
        second
    );
    Ok(())
}

#[test]
fn removing_what_is_not_there_is_not_an_error() -> Result<(), Box<dyn std::error::Error>> {
    let directory = TempDir::new()?;
    touch_file(&directory).remove()?;
    touch_file(&directory).clear_stale()?;
    Ok(())
}

#[test]
fn what_a_killed_process_left_is_cleared_and_nothing_else() -> Result<(), Box<dyn std::error::Error>>
{
    let directory = TempDir::new()?;
    touch_file(&directory).write(&ready())?;
    touch_file(&directory).write_result(&result())?;
    for name in [
        ".ready.json.tmp",
        ".ready.json.result.tmp",
        "ready.json.done",
        "other",
    ] {
        fs::write(directory.path().join(name), "{")?;
    }
    touch_file(&directory).clear_stale()?;
    let left: Vec<_> = fs::read_dir(&directory)?
        .map(|e| e.map(|e| e.file_name()))
        .collect::<Result<_, _>>()?;
    assert_eq!(left, ["other"]);
    Ok(())
}

#[test]
fn a_directory_in_its_place_is_an_error_that_says_where_to_look()
-> Result<(), Box<dyn std::error::Error>> {
    let directory = TempDir::new()?;
    fs::create_dir(directory.path().join("ready.json"))?;
    let error = touch_file(&directory)
        .clear_stale()
        .expect_err("a directory stays");
    assert!(error.to_string().contains("ready.json"), "{error}");
    assert!(
        error
            .to_string()
            .contains("maintenance.readiness.touch_file"),
        "{error}"
    );
    Ok(())
}

#[test]
fn what_is_no_touch_file_is_neither_removed_nor_replaced() -> Result<(), Box<dyn std::error::Error>>
{
    let directory = TempDir::new()?;
    let file = touch_file(&directory);
    let valid = serde_json::to_vec(&ready())?;
    let long = [&valid[..], &[b' '; 1 << 14]].concat();
    let contents = [
        &b"SQLite format 3\0"[..],
        b"[maintenance]",
        b"{}",
        b"",
        &long,
    ];
    for name in ["ready.json", ".ready.json.tmp"] {
        for contents in contents {
            let path = directory.path().join(name);
            if name.starts_with('.') && contents.len() < long.len() {
                // Part of one, for all that is known.
                continue;
            }
            fs::write(&path, contents)?;
            for refused in [file.clear_stale(), file.probe()] {
                let error = refused.expect_err("not ours").to_string();
                assert!(error.contains("readiness.touch_file"), "{error}");
            }
            assert_eq!(fs::read(&path)?, contents);
            if path == file.path() {
                file.write(&ready()).expect_err("not ours");
                assert_eq!(fs::read(&path)?, contents);
            }
            fs::remove_file(&path)?;
        }
    }
    fs::write(directory.path().join("elsewhere"), &valid)?;
    std::os::unix::fs::symlink("elsewhere", file.path())?;
    file.clear_stale().expect_err("a link is not ours");
    assert!(file.path().exists());
    Ok(())
}

#[test]
fn one_that_names_the_database_leaves_it_alone() -> Result<(), Box<dyn std::error::Error>> {
    let directory = TempDir::new()?;
    let path = directory.path().join("ready.json");
    let disk = Disk::default().guarding(&path);
    let file = TouchFile::new(path.clone(), disk);
    file.write(&ready()).expect_err("it will be the database");
    // Even if it should read as a touch-file.
    fs::write(&path, serde_json::to_vec(&ready())?)?;
    for refused in [file.clear_stale(), file.probe(), file.write(&ready())] {
        refused.expect_err("it is the database");
    }
    assert!(path.exists());
    Ok(())
}

#[test]
fn a_probe_leaves_nothing_and_needs_a_writable_directory() -> Result<(), Box<dyn std::error::Error>>
{
    let directory = TempDir::new()?;
    touch_file(&directory).probe()?;
    assert_eq!(fs::read_dir(&directory)?.count(), 0);
    fs::write(directory.path().join(".ready.json.tmp"), "{")?;
    touch_file(&directory).write(&ready())?;
    touch_file(&directory).probe()?;
    assert_eq!(fs::read_dir(&directory)?.count(), 1);
    let missing = TouchFile::new(directory.path().join("run/ready.json"), Disk::default());
    let error = missing.probe().expect_err("there is no directory");
    assert!(
        error.to_string().contains("readiness.touch_file"),
        "{error}"
    );
    Ok(())
}

#[test]
fn a_missing_directory_is_an_error_and_is_not_created() -> Result<(), Box<dyn std::error::Error>> {
    let directory = TempDir::new()?;
    let file = TouchFile::new(directory.path().join("run/ready.json"), Disk::default());
    file.clear_stale()?;
    file.write(&ready()).expect_err("its directory is missing");
    assert_eq!(fs::read_dir(&directory)?.count(), 0);
    Ok(())
}

/// A start must not fail because of what the version before wrote.
#[test]
fn an_older_touch_file_is_known() -> Result<(), Box<dyn std::error::Error>> {
    let directory = TempDir::new()?;
    let file = touch_file(&directory);
    let older =
        r#"{"run": "a", "database": "b", "driver": "sqlite3", "until": "2026-11-18T11:06:40Z"}"#;
    fs::write(file.path(), older)?;
    file.clear_stale()?;
    assert!(!file.path().exists());
    Ok(())
}

#[test]
fn what_says_that_a_sidecar_has_finished() -> Result<(), Box<dyn std::error::Error>> {
    let directory = TempDir::new()?;
    let file = touch_file(&directory);
    let run = ready().run;
    assert_eq!(file.finished(&run)?, None, "nothing is there");
    let failed = |why: &str| Some(Finished::Failed(why.to_owned()));
    let as_json = |more: &str| format!("{{\"run\": \"{run}\"{more}}}");
    for (contents, finished) in [
        (format!("{run}"), Some(Finished::Ok)),
        (format!(" {run}\r\n"), Some(Finished::Ok)),
        (as_json(""), Some(Finished::Ok)),
        (as_json(", \"tool\": \"cp\""), Some(Finished::Ok)),
        (as_json(", \"failed\": null"), Some(Finished::Ok)),
        (as_json(", \"failed\": \"no room\""), failed("no room")),
        (as_json(r#", "failed": " a\nb\u001b ""#), failed("a b")),
        (
            as_json(&format!(", \"failed\": \"{}\"", "ä".repeat(2000))),
            failed(&"ä".repeat(REASON_LIMIT)),
        ),
        (
            as_json(", \"failed\": \"\""),
            failed("the sidecar has no copy and gives no reason in its file"),
        ),
        // What is not understood has not been said: not that there is a copy, either.
        (as_json(", \"failed\": true"), None),
        (format!("{run}x"), None),
        (format!("\"{run}\""), None),
        (format!("{{\"run\": [\"{run}\"]}}"), None),
        (String::new(), None),
        (format!("{run}{}", " ".repeat(1 << 14)), None),
    ] {
        fs::write(file.done_path(), &contents)?;
        assert_eq!(file.finished(&run)?, finished, "{contents:.80}");
        assert_eq!(
            file.done_path().exists(),
            finished.is_none(),
            "{contents:.80}"
        );
    }
    let other = RunId::parse("20261118T110640Z-zzzz").ok_or("an id")?;
    for contents in [run.as_str(), &as_json(", \"failed\": \"no room\"")] {
        fs::write(file.done_path(), contents)?;
        assert_eq!(file.finished(&other)?, None, "of another run");
    }
    Ok(())
}

#[test]
fn what_is_no_small_file_says_nothing_and_stays() -> Result<(), Box<dyn std::error::Error>> {
    let directory = TempDir::new()?;
    let file = touch_file(&directory);
    let run = ready().run;
    let elsewhere = directory.path().join("elsewhere");
    fs::write(&elsewhere, run.as_str())?;
    std::os::unix::fs::symlink(&elsewhere, file.done_path())?;
    assert_eq!(file.finished(&run)?, None, "a link");
    file.clear_stale()?;
    assert!(fs::symlink_metadata(file.done_path()).is_ok());
    fs::remove_file(file.done_path())?;
    fs::create_dir(file.done_path())?;
    assert_eq!(file.finished(&run)?, None, "a directory");
    file.clear_stale()?;
    assert!(file.done_path().is_dir());
    Ok(())
}

#[test]
fn a_result_replaces_a_result_and_nothing_else() -> Result<(), Box<dyn std::error::Error>> {
    let directory = TempDir::new()?;
    let file = touch_file(&directory);
    file.write_result(&result())?;
    let held = RunResult {
        held_throughout: true,
        done: true,
        why: None,
        ..result()
    };
    file.write_result(&held)?;
    let written: RunResult = serde_json::from_slice(&fs::read(file.result_path())?)?;
    assert_eq!(written, held);
    fs::write(file.result_path(), "{}")?;
    file.write_result(&held).expect_err("not ours");
    file.probe().expect_err("and said at the start");
    assert_eq!(fs::read(file.result_path())?, b"{}");
    Ok(())
}

/// The done file is the one that is opened, so it must not be made to be the database.
#[test]
fn a_done_file_that_is_the_database_is_not_opened() -> Result<(), Box<dyn std::error::Error>> {
    let directory = TempDir::new()?;
    let database = directory.path().join("tracker.db");
    let run = ready().run;
    fs::write(&database, run.as_str())?;
    let path = directory.path().join("ready.json");
    let file = TouchFile::new(path, Disk::default().guarding(&database));
    fs::hard_link(&database, file.done_path())?;
    file.finished(&run).expect_err("it is the database");
    assert!(database.exists());
    Ok(())
}
