//! `monitor`, by its exit codes, which are not those of the tool.

use super::*;

/// `hours` ago, as a backup's id has it: whole seconds.
fn ago(hours: i64) -> String {
    let then = Utc::now() - chrono::TimeDelta::hours(hours);
    then.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[test]
fn a_backup_is_recent_or_it_is_not() -> Result {
    let home = Home::new()?;
    let none = home.run(&["monitor"])?;
    assert_eq!(none.code, 2, "{none:?}");
    assert!(none.out.starts_with("CRITICAL: there is no "), "{none:?}");
    assert_eq!(none.err, "", "such systems read standard output alone");

    let id = home.publish(&ago(3))?;
    let output = home.run(&["monitor"])?;
    assert_eq!(output.code, 0, "{output:?}");
    let begins = format!("OK: backup {id} is 3 h old");
    assert!(output.out.starts_with(&begins), "{output:?}");
    assert!(output.out.contains(" | age="), "{output:?}");
    assert_eq!(output.out.lines().count(), 1, "{output:?}");

    let strict = home.run(&["monitor", "--max-age", "2h", "--json"])?;
    assert_eq!(strict.code, 2, "{strict:?}");
    let json = strict.json()?;
    assert_eq!(
        (&json["state"], &json["exit_code"]),
        (&json!("critical"), &json!(2))
    );
    assert_eq!(json["backup"], json!(id));
    Ok(())
}

#[test]
fn a_database_that_shrank_is_told() -> Result {
    let home = Home::new()?;
    for hours in [72, 48, 24] {
        home.publish_with(&ago(hours), |_, manifest| {
            manifest.database.raw_bytes = 1_000_000;
            Ok(())
        })?;
    }
    home.publish(&ago(1))?;
    let output = home.run(&["monitor"])?;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(
        output.out.contains("less than 50% of the usual 1.0 MB"),
        "{output:?}"
    );
    assert_eq!(home.run(&["monitor", "--min-size", "0%"])?.code, 0);
    Ok(())
}

#[test]
fn what_could_not_look_is_unknown() -> Result {
    let home = Home::new()?;
    home.publish(&ago(1))?;
    let wrong = home.run(&["monitor", "--max-age", "soon"])?;
    assert_eq!(wrong.code, 3, "{wrong:?}");
    assert!(wrong.out.starts_with("UNKNOWN: "), "{wrong:?}");
    let wrong = home.run(&["--json", "monitor", "--no-such-option"])?;
    assert_eq!(
        (wrong.code, &wrong.json()?["state"]),
        (3, &json!("unknown"))
    );
    assert_eq!(home.run(&["monitor", "--help"])?.code, 0);

    fs::write(home.path("tracker.toml"), "[maintenance")?;
    let unreadable = home.run(&["monitor"])?;
    assert_eq!(unreadable.code, 3, "{unreadable:?}");
    fs::remove_file(home.path("tracker.toml"))?;
    assert_eq!(home.run(&["monitor"])?.code, 3);
    Ok(())
}

#[test]
fn a_failing_tracker_is_a_warning_beside_a_good_backup() -> Result {
    let tracker = Tracker::start(Idle {
        end: Err(Failure {
            cause: Cause::Other,
            message: "the disk is gone".to_owned(),
        }),
        ..Idle::default()
    })?;
    let home = Home::at(tracker.address)?;
    home.publish(&ago(1))?;
    assert_eq!(home.run(&["monitor"])?.code, 0);
    assert_eq!(home.run(&["run"])?.code, 1);
    let output = home.run(&["monitor"])?;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(
        output.out.starts_with("WARNING: the last run, "),
        "{output:?}"
    );
    assert!(output.out.contains("the disk is gone"), "{output:?}");
    Ok(())
}
