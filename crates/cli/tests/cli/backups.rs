//! What the binary does to backups and with them.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;

use torrust_tracker_maintenance::catalogue::{Locked, Owner};
use torrust_tracker_maintenance::config::Source;
use torrust_tracker_maintenance::excerpt::Partial;
use torrust_tracker_maintenance::files::{self, Reserved};
use torrust_tracker_maintenance::restore;

use super::*;

fn set_written(path: &Path, at: &str) -> Result {
    let at: DateTime<Utc> = at.parse()?;
    Ok(fs::File::options()
        .write(true)
        .open(path)?
        .set_modified(at.into())?)
}

/// Long before any backup here.
fn set_old(path: &Path) -> Result {
    set_written(path, "2020-01-01T00:00:00Z")
}

/// A home whose database is older than its one backup.
fn home_with_backup() -> Result<(Home, BackupId)> {
    let home = Home::new()?;
    set_old(&home.path("tracker.db"))?;
    let id = home.publish("2026-11-22T03:00:00Z")?;
    Ok((home, id))
}

/// Backups of this many nights, oldest first, of which the policy keeps two.
fn home_with_nights(nights: u32) -> Result<(Home, Vec<BackupId>)> {
    let home = Home::new()?;
    let text = fs::read_to_string(home.path("tracker.toml"))?;
    let keep = "keep = { last = 2, daily = 0, weekly = 0, monthly = 0 }";
    let text = text.replace("\"backups\"\n", &format!("\"backups\"\n{keep}\n"));
    fs::write(home.path("tracker.toml"), text)?;
    let ids = (1..=nights).map(|night| home.publish(&format!("2026-11-{night:02}T03:00:00Z")));
    let ids = ids.collect::<Result<_>>()?;
    Ok((home, ids))
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let names = fs::read_dir(directory)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    let mut names: Vec<_> = names
        .into_iter()
        .filter(|name| name != ".lock" && name != "tracker.db.lock")
        .collect();
    names.sort();
    Ok(names)
}

fn backups(home: &Home) -> Result<Vec<String>> {
    names(&home.path("backups"))
}

/// Runs `while_held` while another process, this one, holds the catalogue.
fn held(home: &Home, while_held: impl FnOnce(&Locked<'_>) -> Result) -> Result {
    let catalogue = Catalogue::open(Disk::default(), &home.path("backups"))?;
    let now = "2026-11-22T05:00:00Z".parse()?;
    while_held(&catalogue.lock(&Owner::this("another command", now))?)
}

#[test]
fn restore_puts_the_newest_back_and_keeps_the_former() -> Result {
    let (home, id) = home_with_backup()?;
    let before = fs::metadata(home.path("tracker.db"))?.ino();
    let plan = home.run(&["restore", "--dry-run"])?;
    assert_eq!((plan.code, plan.err.as_str()), (0, ""), "{plan:?}");
    let lines: Vec<_> = plan.out.lines().collect();
    assert!(
        lines[0].starts_with(&format!("restore    {id}, of 2026-11-22 03:00:00 UTC, ")),
        "{}",
        lines[0]
    );
    assert_eq!(lines[1].split('/').next(), Some("to         "));
    assert!(lines[1].ends_with("tracker.db, 4.1 kB"), "{}", lines[1]);
    assert!(
        lines[2].starts_with("keep       what is there as "),
        "{}",
        lines[2]
    );
    assert_eq!(lines[3], "would be restored; nothing was changed");
    assert_eq!(fs::metadata(home.path("tracker.db"))?.ino(), before);

    let output = home.run(&["restore"])?;
    assert_eq!(output.code, 0, "{output:?}");
    assert!(
        output.err.starts_with(&format!("restore    {id}")),
        "the plan is shown first: {output:?}"
    );
    assert!(
        output.out.contains("quick_check is ok, 0 rows"),
        "{output:?}"
    );
    let kept = names(home.directory.path())?
        .into_iter()
        .find(|name| name.starts_with("tracker.db.replaced-"))
        .ok_or("nothing was kept")?;
    assert_eq!(fs::metadata(home.path(&kept))?.ino(), before);
    assert_ne!(fs::metadata(home.path("tracker.db"))?.ino(), before);
    assert!(output.out.contains(&kept), "{output:?}");
    Ok(())
}

#[test]
fn restore_tells_programs_what_it_did() -> Result {
    let (home, id) = home_with_backup()?;
    let elsewhere = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new())?;
    let target = elsewhere.path().join("elsewhere.db");
    let to = target.to_str().ok_or("not UTF-8")?;
    let arguments = ["restore", &id.to_string(), "--to", to, "--full", "--json"];
    let planned = home
        .run(&[&arguments[..], &["--dry-run"]].concat())?
        .json()?;
    assert_eq!(planned["would_restore"], true);
    assert_eq!(planned["restored"], Value::Null);
    assert_eq!(planned["plan"]["source"], json!(id));
    assert_eq!(planned["plan"]["objections"], json!([]));
    assert_eq!(planned["plan"]["kept_as"], Value::Null);
    assert!(!target.exists());

    let output = home.run(&arguments)?;
    assert_eq!((output.code, output.err.as_str()), (0, ""), "{output:?}");
    let done = output.json()?;
    assert_eq!(done["plan"], planned["plan"]);
    assert_eq!(done["restored"]["target"], to);
    assert_eq!(done["restored"]["report"]["depth"], "full");
    assert_eq!(fs::read(&target)?, fs::read(home.path("tracker.db"))?);
    Ok(())
}

#[test]
fn what_speaks_against_a_restore_decides_the_exit() -> Result {
    let (home, _) = home_with_backup()?;
    let database = home.path("tracker.db");
    let before = fs::read(&database)?;
    let refused = |code: i32, error: &str, force: bool| -> Result {
        let force = if force { &["--force"][..] } else { &[] };
        let dry_run = home.run(&[&["restore", "--dry-run"], force].concat())?;
        assert_eq!(dry_run.code, code, "{dry_run:?}");
        assert!(dry_run.out.contains("\nbut        "), "{dry_run:?}");
        assert!(dry_run.out.contains("would be refused"), "{dry_run:?}");
        let output = home.run(&[&["restore", "--json"], force].concat())?;
        assert_eq!(output.code, code, "{output:?}");
        assert_eq!(output.error()?["error"], error);
        assert_eq!(fs::read(&database)?, before);
        Ok(())
    };
    let in_service = restore::hold(&database, &Disk::default())?.ok_or("nobody holds it")?;
    refused(4, "in_use", false)?;
    refused(4, "in_use", true)?;
    drop(in_service);

    set_written(&database, "2099-01-01T00:00:00Z")?;
    refused(3, "needs_force", false)?;
    let forced = home.run(&["restore", "--dry-run", "--force"])?;
    assert_eq!(forced.code, 0, "{forced:?}");
    assert!(
        forced.out.contains("\noverruled  it was written to at "),
        "{forced:?}"
    );
    assert_eq!(home.run(&["restore", "--force"])?.code, 0);
    Ok(())
}

#[test]
fn restore_says_what_is_wrong_with_what_it_was_given() -> Result {
    let (home, good) = home_with_backup()?;
    let truncated = home.publish("2026-11-01T03:00:00Z")?;
    let bytes = fs::read(home.artifact(&truncated))?;
    fs::write(home.artifact(&truncated), &bytes[..bytes.len() - 1])?;
    let magic = home.publish("2026-11-02T03:00:00Z")?;
    let mut bytes = fs::read(home.artifact(&magic))?;
    bytes[..4].fill(b'x');
    fs::write(home.artifact(&magic), bytes)?;
    let newer = home.publish("2026-11-03T03:00:00Z")?;
    let manifest = home
        .path("backups")
        .join(newer.to_string())
        .join("manifest.json");
    let text = fs::read_to_string(&manifest)?.replace("\"format\": 1", "\"format\": 2");
    fs::write(manifest, text)?;
    fs::write(home.path("backups/short.db"), "SQLite format 3\0")?;
    fs::write(home.path("backups/text.db.gz"), "no gzip at all")?;
    fs::write(home.path("backups/notes.txt"), "x")?;
    let before = names(home.directory.path())?;

    let (truncated, magic, newer) = (truncated.to_string(), magic.to_string(), newer.to_string());
    for (arguments, code, error, message) in [
        (
            vec!["20200101T000000Z"],
            2,
            "unknown_backup",
            "there is no backup 20200101T000000Z",
        ),
        (
            vec!["yesterday"],
            2,
            "unknown_backup",
            "there is no backup yesterday",
        ),
        (
            vec!["notes.txt"],
            2,
            "unknown_backup",
            "not a file that is named like",
        ),
        (vec![&truncated], 6, "broken_backup", " bytes, not "),
        (vec![&magic], 6, "damaged", "does not decompress"),
        (vec![&newer], 1, "unreadable_backup", "use that version"),
        (vec!["short.db"], 6, "damaged", "not an SQLite database"),
        (vec!["text.db.gz"], 6, "damaged", "does not decompress"),
        (
            vec!["--to", "missing/tracker.db"],
            2,
            "unusable_target",
            "create that first",
        ),
        (
            vec!["--to", "backups"],
            2,
            "unusable_target",
            "it is not a file",
        ),
    ] {
        let output = home.run(&[&["restore", "--json"], &arguments[..]].concat())?;
        assert_eq!(output.code, code, "{arguments:?}: {output:?}");
        let found = output.error()?;
        assert_eq!(found["error"], error, "{arguments:?}");
        let told = found["message"].as_str().ok_or("a message")?;
        assert!(told.contains(message), "{arguments:?}: {told}");
        assert_eq!(names(home.directory.path())?, before, "{arguments:?}");
    }
    let output = home.run(&["restore", "--dry-run"])?;
    assert!(output.out.contains(&good.to_string()), "{output:?}");
    Ok(())
}

#[test]
fn a_target_that_may_not_be_written_is_named() -> Result {
    let (home, _) = home_with_backup()?;
    let open =
        |name: &str, mode| fs::set_permissions(home.path(name), fs::Permissions::from_mode(mode));
    fs::create_dir(home.path("data"))?;
    open("data", 0o555)?;
    let binary = home.path("torrust-maintenance");
    fs::copy(env!("CARGO_BIN_EXE_torrust-maintenance"), &binary)?;
    let id = fs::metadata(home.directory.path())?.uid();
    let mut command = Command::new(&binary);
    command
        .args(["--config", "tracker.toml", "restore", "--json"])
        .args(["--to", "data/tracker.db"])
        .current_dir(&home.directory)
        .env_clear();
    if id == 0 {
        // Nobody, since root may write anywhere; who may read everything here.
        for entry in ["", "backups", "backups/20261122T030000Z"] {
            open(entry, 0o755)?;
        }
        for file in fs::read_dir(home.path("backups/20261122T030000Z"))? {
            fs::set_permissions(file?.path(), fs::Permissions::from_mode(0o644))?;
        }
        command.uid(65_534).gid(65_534);
    }
    let output = command.output()?;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let error: Value = serde_json::from_slice(&output.stderr)?;
    assert_eq!(error["error"], "not_restored");
    let message = error["message"].as_str().ok_or("a message")?;
    assert!(
        message.contains("data/tracker.db") && message.contains("check the owner and the mode"),
        "{message}"
    );
    open("data", 0o755)?;
    Ok(())
}

#[test]
fn databases_of_others_are_listed_verified_and_restored_by_name() -> Result {
    let (home, _) = home_with_backup()?;
    let name = "tracker_backup_2026-11-01_03-00-00.db";
    sqlite::set_journal_mode(&home.path("backups").join(name), JournalMode::Wal)?;
    set_old(&home.path("backups").join(name))?;
    let output = home.run(&["list"])?;
    let line = output.out.lines().last().ok_or("nothing")?;
    assert!(line.starts_with(name) && line.contains("4.1 kB"), "{line}");
    assert!(line.contains("can be restored by name"), "{line}");
    let listed = home.run(&["list", "--json"])?.json()?;
    assert_eq!(listed["entries"][1]["form"], "plain");
    assert_eq!(listed["entries"][1]["written"], "2020-01-01T00:00:00Z");

    let output = home.run(&["verify", name])?;
    assert_eq!(
        (output.code, output.out),
        (0, format!("{name}  good, 0 rows\n"))
    );
    fs::remove_file(home.path("tracker.db"))?;
    let output = home.run(&["restore", name])?;
    assert_eq!(output.code, 0, "{output:?}");
    assert!(home.path("tracker.db").exists());
    assert!(home.path("backups").join(name).exists());

    fs::write(
        home.path("backups").join(name),
        "SQLite format 3\0 and so on",
    )?;
    let output = home.run(&["verify", name])?;
    assert_eq!(output.code, 6, "{output:?}");
    assert!(
        output.out.contains("it is not an SQLite database"),
        "{output:?}"
    );
    Ok(())
}

#[test]
fn prune_removes_what_no_rule_takes() -> Result {
    let (home, ids) = home_with_nights(4)?;
    let plan = home.run(&["prune", "--dry-run"])?;
    assert_eq!((plan.code, plan.err.as_str()), (0, ""), "{plan:?}");
    let lines: Vec<_> = plan.out.lines().collect();
    assert_eq!(
        lines[1],
        format!("{}  stays     the newest good backup, last 1 of 2", ids[3])
    );
    assert_eq!(
        lines[4],
        format!("{}  would go  no rule of backup.keep takes it", ids[0]),
        "{}",
        plan.out
    );
    let planned = home.run(&["prune", "--dry-run", "--json"])?.json()?;
    assert_eq!(planned["removed"], json!(ids[..2]));
    assert_eq!(backups(&home)?.len(), 4);

    home.run(&["protect", &ids[0].to_string()])?;
    let done = home.run(&["prune", "--json"])?;
    assert_eq!(done.code, 0, "{done:?}");
    let done = done.json()?;
    assert_eq!(done["removed"], json!([ids[1]]));
    assert_eq!(done["kept"][2]["reasons"], json!(["protected"]));
    let left = [&ids[0], &ids[2], &ids[3]].map(ToString::to_string);
    assert_eq!(backups(&home)?, left);
    let listed = home.run(&["list", "--json"])?.json()?;
    let newest = &listed["entries"][0];
    assert_eq!(
        newest["notes"]["checks"][0]["findings"],
        json!([]),
        "the newest was read back first: {newest}"
    );
    let again = home.run(&["prune"])?;
    assert!(again.out.ends_with("\nnothing to prune\n"), "{again:?}");
    Ok(())
}

#[test]
fn nothing_is_pruned_on_the_strength_of_a_damaged_backup() -> Result {
    let (home, ids) = home_with_nights(4)?;
    flip_last_byte(&home.artifact(&ids[3]))?;
    let output = home.run(&["prune", "--json"])?;
    assert_eq!(output.code, 6, "{output:?}");
    let error = output.err.lines().collect::<String>();
    assert!(error.contains("nothing was pruned"), "{output:?}");
    assert_eq!(backups(&home)?.len(), 4);

    // It is known from now on, and stands for no other.
    let listed = home.run(&["list"])?.out;
    assert!(listed.contains("DAMAGED: "), "{listed}");
    assert_eq!(home.run(&["prune"])?.code, 0);
    let left = ids[1..].iter().map(ToString::to_string);
    assert_eq!(backups(&home)?, left.collect::<Vec<_>>());
    let restored = home.run(&["restore", "--dry-run", "--force"])?;
    assert!(restored.out.contains(&ids[2].to_string()), "{restored:?}");
    Ok(())
}

#[test]
fn a_catalogue_that_another_holds_is_busy() -> Result {
    let (home, ids) = home_with_nights(3)?;
    let id = ids[0].to_string();
    held(&home, |_| {
        for arguments in [
            &["protect", &id][..],
            &["unprotect", &id],
            &["delete", &id],
            &["prune"],
        ] {
            let output = home.run(&[arguments, &["--json"]].concat())?;
            assert_eq!(output.code, 4, "{arguments:?}: {output:?}");
            let error = output.error()?;
            assert_eq!(error["error"], "busy");
            let owner = format!("`another command`, process {} on ", std::process::id());
            let message = error["message"].as_str().ok_or("a message")?;
            assert!(message.contains(&owner), "{message}");
            assert!(message.contains("since 2026-11-22T05:00:00Z"), "{message}");
        }
        assert_eq!(home.run(&["list"])?.code, 0, "reading goes on");
        Ok(())
    })?;
    assert_eq!(backups(&home)?.len(), 3);
    assert_eq!(home.run(&["delete", &id])?.code, 0);
    assert_eq!(backups(&home)?.len(), 2);
    Ok(())
}

#[test]
fn delete_spares_the_newest_and_the_protected() -> Result {
    let (home, ids) = home_with_nights(2)?;
    let ids: Vec<_> = ids.iter().map(ToString::to_string).collect();
    let output = home.run(&["protect", &ids[0]])?;
    assert_eq!(output.out, format!("{} is protected\n", ids[0]));
    assert!(home.run(&["list"])?.out.contains("last protected"));
    for id in &ids {
        let output = home.run(&["delete", id, "--json"])?;
        assert_eq!(output.code, 3, "{output:?}");
        assert_eq!(output.error()?["error"], "kept");
    }
    assert_eq!(home.run(&["unprotect", &ids[0]])?.code, 0);
    let output = home.run(&["delete", &ids[0], "--json"])?;
    assert_eq!(output.json()?, json!({ "id": ids[0], "is": "deleted" }));
    assert_eq!(home.run(&["delete", &ids[1], "--force"])?.code, 0);
    assert_eq!(backups(&home)?, [""; 0]);
    for command in ["delete", "protect", "unprotect"] {
        let output = home.run(&[command, &ids[0], "--json"])?;
        assert_eq!(output.code, 2, "{output:?}");
        assert_eq!(output.error()?["error"], "unknown_backup");
    }
    let nothing = home.run(&["restore", "--json"])?;
    assert_eq!(nothing.error()?["error"], "no_backup");
    Ok(())
}

#[test]
fn what_verify_found_is_listed() -> Result {
    let (home, id) = home_with_backup()?;
    for (arguments, expected) in [
        (&["verify"][..], "quick; checksums 0 s ago"),
        (&["verify", "--full"], "quick; full 0 s ago"),
        (&["verify"], "quick; full "),
    ] {
        let output = home.run(arguments)?;
        assert_eq!(output.code, 0, "{output:?}");
        let listed = home.run(&["list"])?.out;
        let prefix = expected.trim_end_matches("0 s ago");
        assert!(listed.contains(prefix), "{arguments:?}: {listed}");
    }
    let listed = home.run(&["list", "--json"])?.json()?;
    let checks = &listed["entries"][0]["notes"]["checks"];
    assert_eq!(checks[0]["depth"], Value::Null);
    assert_eq!(checks[1]["depth"], "full");
    let sums = Command::new("sha256sum")
        .args(["--check", "--strict", "SHA256SUMS"])
        .current_dir(home.path("backups").join(id.to_string()))
        .output()?;
    assert!(sums.status.success(), "{sums:?}");
    Ok(())
}

#[test]
fn a_sample_takes_each_backup_in_its_turn() -> Result {
    let home = Home::new()?;
    let today = Utc::now();
    let ids: Vec<_> = (0..3)
        .map(|days| home.publish(&(today - chrono::TimeDelta::days(days)).to_rfc3339()))
        .collect::<Result<_>>()?;
    let output = home.run(&["verify", "--sample", "1/2", "--json"])?;
    assert_eq!(output.code, 0, "{output:?}");
    let json = output.json()?;
    let taken: Vec<_> = json["backups"]
        .as_array()
        .ok_or("backups")?
        .iter()
        .map(|verdict| verdict["id"].clone())
        .collect();
    // Should midnight fall in between, it is the other one's turn.
    let turns = [vec![json!(ids[0]), json!(ids[2])], vec![json!(ids[1])]];
    assert!(turns.contains(&taken), "{json}");
    assert_eq!(json["backups"][0]["rows"], 0, "a sample is a full drill");
    let all = home.run(&["verify", "--sample", "2/2"])?;
    assert_eq!(all.out.lines().count(), 3, "{all:?}");
    let none = home.run(&["verify", "--sample", "1/1000000"])?;
    assert_eq!(none.code, 0, "{none:?}");
    Ok(())
}

fn publish_partial(home: &Home, began: &str) -> Result<BackupId> {
    home.publish_with(began, |_, manifest| {
        manifest.partial = Some(Partial {
            tables: None,
            completed_only: true,
        });
        Ok(())
    })
}

#[test]
fn a_partial_backup_is_marked_and_restored_only_if_that_is_asked_for() -> Result {
    let (home, full) = home_with_backup()?;
    let partial = publish_partial(&home, "2026-11-23T03:00:00Z")?;
    let listed = home.run(&["list"])?.out;
    let line = listed.lines().nth(1).ok_or("nothing")?;
    assert!(line.starts_with(&partial.to_string()), "{line}");
    assert!(
        line.ends_with("PARTIAL: all tables, but of torrents completed ones only"),
        "{line}"
    );
    let listed = home.run(&["list", "--json"])?.json()?;
    let said = json!({ "tables": null, "completed_only": true });
    assert_eq!(listed["entries"][0]["manifest"]["partial"], said);
    assert_eq!(listed["entries"][1]["manifest"]["partial"], Value::Null);

    // Unless it is asked for, the newest is the newest full one.
    for (arguments, id) in [(&[][..], &full), (&["--partial"], &partial)] {
        let plan = home.run(&[&["restore", "--dry-run"], arguments].concat())?;
        assert_eq!(plan.code, 0, "{plan:?}");
        assert!(plan.out.contains(&id.to_string()), "{plan:?}");
    }
    let id = partial.to_string();
    let before = fs::read(home.path("tracker.db"))?;
    for force in [&[][..], &["--force"]] {
        let arguments = [&["restore", &id, "--json"], force].concat();
        let output = home.run(&arguments)?;
        assert_eq!(output.code, 3, "{output:?}");
        let error = output.error()?;
        assert_eq!(error["error"], "needs_partial");
        let message = error["message"].as_str().ok_or("a message")?;
        assert!(message.contains("PARTIAL"), "{message}");
        assert_eq!(fs::read(home.path("tracker.db"))?, before);
    }
    let output = home.run(&["restore", &id, "--partial"])?;
    assert_eq!(output.code, 0, "{output:?}");
    assert!(
        output.err.contains("\noverruled  the backup is PARTIAL"),
        "{output:?}"
    );
    Ok(())
}

#[test]
fn full_and_partial_backups_are_pruned_each_for_themselves() -> Result {
    let (home, mut ids) = home_with_nights(3)?;
    for day in 4..=6 {
        let began = format!("2026-11-{day:02}T03:00:00Z");
        ids.push(publish_partial(&home, &began)?);
    }
    let planned = home.run(&["prune", "--dry-run", "--json"])?.json()?;
    assert_eq!(planned["removed"], json!([ids[0], ids[3]]));
    let done = home.run(&["prune", "--json"])?;
    assert_eq!(done.code, 0, "{done:?}");
    let done = done.json()?;
    assert_eq!(done["removed"], planned["removed"]);
    assert_eq!(done["kept"], planned["kept"]);
    assert_eq!(done["kept"][0]["full"], false);
    assert_eq!(backups(&home)?.len(), 4);
    let listed = home.run(&["list", "--json"])?.json()?;
    for newest in [0, 2] {
        let checks = &listed["entries"][newest]["notes"]["checks"];
        assert_eq!(
            checks[0]["findings"],
            json!([]),
            "read back first: {listed}"
        );
    }
    Ok(())
}

/// Publishes a backup with the files the configuration wants.
fn publish_files(home: &Home, began: &str) -> Result<BackupId> {
    let settings = Source::file(home.path("tracker.toml")).maintenance()?;
    let wanted = settings.ok_or("disabled")?.backup.files;
    home.publish_with(began, |draft, manifest| {
        let (disk, watch) = (Disk::default(), Watch::default());
        let reserved = Reserved::of(&home.path("tracker.db"), &home.path("backups"));
        let choice = files::choose(&wanted, &reserved, &disk, &watch)?;
        let zstd = Compression::Zstd(3);
        let stored = files::store(choice, 1 << 20, &reserved, draft, zstd, &disk, &watch)?;
        manifest.files = stored.files;
        Ok(())
    })
}

#[test]
fn the_configuration_file_comes_back_with_restore_files() -> Result {
    let home = Home::new()?;
    let id = publish_files(&home, "2026-11-22T03:00:00Z")?;
    let path = home.path("tracker.toml").canonicalize()?;
    let before = fs::read_to_string(&path)?;
    let plan = home.run(&["restore", "--files", "--dry-run"])?;
    assert_eq!(plan.code, 0, "{plan:?}");
    let directory = format!("files-{id}");
    assert!(
        plan.out
            .starts_with(&format!("restore    1 files of {id}, ")),
        "{plan:?}"
    );
    assert!(
        plan.out.contains(&format!("\nto         {directory}/")),
        "{plan:?}"
    );
    assert!(!home.path(&directory).exists());

    let output = home.run(&["restore", "--files"])?;
    assert_eq!(
        (output.code, output.out.as_str()),
        (0, "restored 1 files\n")
    );
    let restored = home.path(&directory).join(path.strip_prefix("/")?);
    assert_eq!(fs::read_to_string(&restored)?, before);
    let again = home.run(&["restore", "--files", "--json"])?;
    assert_eq!(again.code, 2, "{again:?}");
    assert_eq!(again.error()?["error"], "in_the_way");

    // Over the original only if that is said.
    fs::write(&path, format!("{before}# changed\n"))?;
    let output = home.run(&["restore", "--files", "--replace-files", "--json"])?;
    assert_eq!(output.code, 0, "{output:?}");
    let done = output.json()?;
    assert_eq!(fs::read_to_string(&path)?, before);
    let kept = done["restored"]["kept"][0].as_str().ok_or("kept aside")?;
    assert_eq!(fs::read_to_string(kept)?, format!("{before}# changed\n"));
    assert_eq!(done["plan"]["files"][0]["path"], json!(path));

    let sums = Command::new("sha256sum")
        .args(["--check", "--strict", "SHA256SUMS"])
        .current_dir(home.path("backups").join(id.to_string()))
        .output()?;
    assert!(sums.status.success(), "{sums:?}");
    assert_eq!(String::from_utf8(sums.stdout)?.lines().count(), 3);
    Ok(())
}

#[test]
fn what_is_asked_of_files_must_make_sense() -> Result {
    let (home, _) = home_with_backup()?;
    let none = home.run(&["restore", "--files", "--json"])?;
    assert_eq!(none.code, 3, "{none:?}");
    assert_eq!(none.error()?["error"], "no_files");
    for arguments in [
        &["--files", "--to", "x.db"][..],
        &["--files", "--force"],
        &["--files-to", "x"],
        &["--replace-files"],
        &["--files", "--files-to", "x", "--replace-files"],
    ] {
        let output = home.run(&[&["restore", "--json"], arguments].concat())?;
        assert_eq!(output.code, 2, "{arguments:?}: {output:?}");
        assert_eq!(output.error()?["error"], "usage", "{arguments:?}");
    }
    Ok(())
}

#[test]
fn a_damaged_archive_of_files_is_found_by_verify() -> Result {
    let home = Home::new()?;
    let id = publish_files(&home, "2026-11-22T03:00:00Z")?;
    assert_eq!(home.run(&["verify"])?.code, 0);
    let archive = home.path("backups").join(id.to_string());
    flip_last_byte(&archive.join("files.tar.zst"))?;
    let output = home.run(&["verify"])?;
    assert_eq!(output.code, 6, "{output:?}");
    assert!(
        output.out.contains("files.tar.zst is damaged"),
        "{output:?}"
    );
    let restored = home.run(&["restore", &id.to_string(), "--files", "--json"])?;
    assert_eq!(restored.code, 6, "{restored:?}");
    assert!(!home.path(&format!("files-{id}")).exists());
    Ok(())
}

#[test]
fn check_finds_what_cannot_be_stored() -> Result {
    let home = Home::new()?;
    let text = fs::read_to_string(home.path("tracker.toml"))?;
    let configure = |keys: &str| {
        let text = text.replace("\"backups\"\n", &format!("\"backups\"\n{keys}\n"));
        fs::write(home.path("tracker.toml"), text)
    };
    for (keys, key, message) in [
        (
            "files = [\"tracker.d*\"]",
            "files",
            "tracker.db is the database",
        ),
        (
            "files = [\"none\"]\nmissing_files = \"error\"",
            "files",
            "there is no none",
        ),
        (
            "tables = [\"torrent\"]",
            "tables",
            "names torrent, and the database has none",
        ),
        (
            "completed_only = true",
            "completed_only",
            "no table torrents with a column completed",
        ),
    ] {
        configure(keys)?;
        let output = home.run(&["check", "--json"])?;
        assert_eq!(output.code, 2, "{keys}: {output:?}");
        let problem = &output.json()?["problems"][0];
        assert_eq!(problem["key"], format!("maintenance.backup.{key}"));
        let told = problem["message"].as_str().ok_or("a message")?;
        assert!(told.contains(message), "{keys}: {told}");
    }
    configure("files = [\"none\"]")?;
    assert_eq!(home.run(&["check"])?.code, 0, "what is missing may come");
    Ok(())
}
