//! Backups that are encrypted, and a second place for them.

use torrust_tracker_maintenance::encryption::{Identities, Seal};

use super::*;

/// A key that age's own tests have made public, and one of the bytes 0 to 31.
const KEY: &str = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";
const OTHER: &str = "AGE-SECRET-KEY-1QQQSYQCYQ5RQWZQFPG9SCRGWPUGPZYSNZS23V9CCRYDPK8QARC0SWRYDWG";

/// A home with one backup, encrypted for [`KEY`], which is in `key.txt`; the other one is in
/// `other.txt`.
fn home_with_encrypted() -> Result<(Home, BackupId)> {
    let home = Home::new()?;
    fs::write(home.path("key.txt"), format!("# a comment\n{KEY}\n"))?;
    fs::write(home.path("other.txt"), OTHER)?;
    let identities = Identities::read(&[home.path("key.txt")], &Disk::default())?;
    let recipients = identities.ok_or("one")?.recipients();
    let id = home.publish_with("2026-11-22T03:00:00Z", |draft, manifest| {
        let seal = Seal::for_those(recipients);
        let path = draft.dir().join("database.sqlite3.zst.age");
        fs::remove_file(draft.dir().join(&manifest.database.name))?;
        manifest.database = verify::store(
            &draft.raw_path(),
            &path,
            Compression::Zstd(3),
            seal.as_ref(),
            &Disk::default(),
            &Watch::default(),
        )?;
        Ok(())
    })?;
    Ok((home, id))
}

#[test]
fn an_encrypted_backup_is_opened_by_an_identity_and_by_nothing_else() -> Result {
    let (home, id) = home_with_encrypted()?;
    let listed = home.run(&["list"])?;
    assert!(listed.out.contains("encrypted for 1"), "{}", listed.out);
    let checked = home.run(&["verify"])?;
    assert_eq!(checked.code, 0, "{}", checked.err);
    assert!(
        checked.out.contains("not opened: encrypted"),
        "{}",
        checked.out
    );
    let json = home.run(&["--json", "verify"])?.json()?;
    assert_eq!(json["backups"][0]["opened"], false);

    for with in [&[][..], &["--identity", "other.txt"]] {
        let closed = home.run(&[&["verify", "--full"][..], with].concat())?;
        assert_eq!(closed.code, 2, "{}", closed.out);
        assert!(closed.out.contains("not verified: "), "{}", closed.out);
        for command in [&["restore", "--to", "r.db"][..], &["restore", "--dry-run"]] {
            let closed = home.run(&[&["--json"], command, with].concat())?;
            assert_eq!(closed.code, 2);
            assert_eq!(closed.error()?["error"], "encrypted");
        }
    }
    assert!(!home.path("r.db").exists(), "nothing is in its place");
    fs::write(home.path("half.txt"), &KEY[..30])?;
    for (file, said) in [
        ("half.txt", "is not an age identity"),
        ("tracker.toml", "is not an age identity"),
        ("nowhere.txt", "could not open nowhere.txt"),
    ] {
        let refused = home.run(&["restore", "--identity", file])?;
        assert_eq!(refused.code, 2, "{file}");
        assert!(refused.err.contains(said), "{}", refused.err);
        assert!(!refused.err.contains(&KEY[..30]), "{}", refused.err);
    }

    // Several may be tried.
    let both = ["--identity", "other.txt", "--identity", "key.txt"];
    let good = home.run(&[&["--json", "verify", "--full"][..], &both].concat())?;
    assert_eq!(good.code, 0, "{}", good.out);
    assert_eq!(good.json()?["backups"][0]["opened"], true);
    let restored = home.run(&[&["restore", "--to", "r.db"][..], &both].concat())?;
    assert_eq!(restored.code, 0, "{}", restored.err);
    assert!(fs::read(home.path("r.db"))?.starts_with(b"SQLite format 3"));

    // Damage is damage, whoever looks.
    let path = home
        .path("backups")
        .join(id.to_string())
        .join("database.sqlite3.zst.age");
    let mut bytes = fs::read(&path)?;
    bytes[60] ^= 1;
    fs::write(&path, bytes)?;
    for with in [&[][..], &["--identity", "other.txt"], &both] {
        let damaged = home.run(&[&["verify"][..], with].concat())?;
        assert_eq!(damaged.code, 6, "{with:?}: {}", damaged.out);
    }
    Ok(())
}

/// With this in the table of backups.
fn configure_backup(home: &Home, more: &str) -> Result {
    home.configure("")?;
    let text = fs::read_to_string(home.path("tracker.toml"))?;
    let text = text.replace("\"backups\"\n", &format!("\"backups\"\n{more}\n"));
    Ok(fs::write(home.path("tracker.toml"), text)?)
}

#[test]
fn an_identity_is_no_recipient() -> Result {
    let home = Home::new()?;
    configure_backup(&home, &format!("recipients = [\"{KEY}\"]"))?;
    let checked = home.run(&["check"])?;
    assert_eq!(checked.code, 2);
    let said = "must not be on this machine";
    assert!(checked.out.contains(said), "{}", checked.out);
    assert!(!checked.out.contains(KEY), "{}", checked.out);
    configure_backup(&home, "recipients_file = \"nobody.txt\"")?;
    let checked = home.run(&["check"])?;
    assert_eq!(checked.code, 2);
    assert!(checked.out.contains("nobody.txt"), "{}", checked.out);
    Ok(())
}

/// A home with a second place `there`, and backups of two nights.
fn home_with_two_places() -> Result<(Home, [BackupId; 2])> {
    let home = Home::new()?;
    let there = home.path("there");
    home.configure(&format!("remote.url = \"file://{}\"", there.display()))?;
    let nights = ["2026-11-21T03:00:00Z", "2026-11-22T03:00:00Z"];
    let ids = [home.publish(nights[0])?, home.publish(nights[1])?];
    Ok((home, ids))
}

#[test]
fn a_second_place_takes_what_is_here_and_gives_it_back() -> Result {
    let (home, [older, newer]) = home_with_two_places()?;
    let refused = home.run(&["--json", "upload"])?;
    assert_eq!(refused.code, 2, "the volume is not mounted");
    assert_eq!(refused.error()?["error"], "configuration");
    fs::create_dir(home.path("there"))?;
    let empty = home.run(&["list", "--remote"])?;
    assert!(
        empty.out.starts_with("no backups in file://"),
        "{}",
        empty.out
    );
    let none = home.run(&["--json", "restore", "--from", "remote"])?;
    assert_eq!(
        (none.code, &none.error()?["error"]),
        (3, &json!("no_backup"))
    );

    let uploaded = home.run(&["--json", "upload"])?;
    assert_eq!(uploaded.code, 0, "{}", uploaded.err);
    assert_eq!(uploaded.json()?["uploaded"], json!([newer, older]));
    let again = home.run(&["upload"])?;
    assert!(
        again.out.contains("has all it should have"),
        "{}",
        again.out
    );
    let listed = home.run(&["--json", "list", "--remote"])?.json()?;
    assert_eq!(listed["entries"][0]["manifest"]["id"], json!(newer));
    let shown = home.run(&["list", "--remote"])?;
    assert!(shown.out.contains(&older.to_string()), "{}", shown.out);

    fs::remove_dir_all(home.path("backups"))?;
    let before = fs::read_dir(&home.directory)?.count();
    let from = ["restore", "--from", "remote", "--to", "r.db"];
    let planned = home.run(&[&from[..], &["--dry-run"]].concat())?;
    assert_eq!(planned.code, 0, "{}", planned.err);
    let restored = home.run(&from)?;
    assert_eq!(restored.code, 0, "{}", restored.err);
    assert!(fs::read(home.path("r.db"))?.starts_with(b"SQLite format 3"));
    // The database and its lock file; what was downloaded is gone.
    assert_eq!(fs::read_dir(&home.directory)?.count(), before + 2);

    let unknown = home.run(&["--json", "restore", "--from", "remote", "20000101T000000Z"])?;
    assert_eq!(unknown.error()?["error"], "unknown_backup");
    let path = home.path("there").join(newer.to_string());
    let path = path.join("database.sqlite3.zst");
    let mut bytes = fs::read(&path)?;
    bytes[20] ^= 1;
    fs::write(&path, bytes)?;
    fs::remove_file(home.path("r.db"))?;
    let damaged = home.run(&[&["--json"], &from[..]].concat())?;
    assert_eq!(damaged.code, 6, "{}", damaged.err);
    assert!(!home.path("r.db").exists());
    let older = older.to_string();
    let restored = home.run(&[&from[..], &[older.as_str()]].concat())?;
    assert_eq!(restored.code, 0, "{}", restored.err);
    Ok(())
}

#[test]
fn without_a_second_place_its_commands_say_so() -> Result {
    let home = Home::new()?;
    home.publish("2026-11-22T03:00:00Z")?;
    for command in [
        &["upload"][..],
        &["list", "--remote"],
        &["restore", "--from", "remote"],
    ] {
        let refused = home.run(&[&["--json"], command].concat())?;
        assert_eq!(refused.code, 2, "{command:?}");
        assert_eq!(refused.error()?["error"], "no_remote", "{command:?}");
    }
    Ok(())
}
