//! What cannot work is refused at start: one clear error, and nothing written.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::Result;
use end_to_end::database;
use end_to_end::tracker::Setup;

use crate::support::{MIB, beside_others};

/// Every file below a directory, with its size.
fn files(below: &Path) -> Result<BTreeSet<(PathBuf, u64)>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(below)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        }
        found.insert((entry.path(), entry.metadata()?.len()));
    }
    Ok(found)
}

/// The tracker exits by itself, not with success, names everything in `named` and writes
/// nothing.
async fn refused(what: &str, setup: &Setup, named: &[&str]) -> Result<()> {
    // The configuration file itself is written by a start.
    fs::write(setup.file(), setup.toml())?;
    let before = files(setup.home())?;
    let (status, output) = setup.start_refused().await?;
    assert!(!status.success(), "{what}: {status}: {output}");
    for name in named {
        assert!(output.contains(name), "{what}: no {name:?} in: {output}");
    }
    assert!(
        !output.contains("panicked at"),
        "{what}: a panic is no clear error: {output}"
    );
    assert_eq!(
        files(setup.home())?,
        before,
        "{what}: something was written"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration() -> Result<()> {
    let _beside = beside_others().await;
    // Table, key, value, and what the error names besides the key.
    let wrong = [
        ("maintenance", "window", "\"25:00-26:00\"", "25:00"),
        ("maintenance", "window", "\"03:00\"", "03:00"),
        ("maintenance", "window", "\"03:00-03:00\"", "03:00-03:00"),
        ("maintenance", "windov", "\"03:00-03:05\"", "windov"),
        ("maintenance", "journal_mode", "\"off\"", "off"),
        ("maintenance", "announces", "\"refuse\"", "refuse"),
        ("maintenance.gate", "hold_for", "\"soon\"", "soon"),
        ("maintenance.gate", "hold_for", "\"0s\"", "0s"),
        ("maintenance.backup", "method", "\"tape\"", "tape"),
        ("maintenance.backup", "compression", "\"rar\"", "rar"),
        ("maintenance.backup", "bandwidth", "\"fast\"", "fast"),
        ("maintenance.backup", "keep", "{ hourly = 1 }", "hourly"),
        (
            "maintenance.readiness",
            "bind_address",
            "\"localhost\"",
            "localhost",
        ),
    ];
    for (table, key, value, named) in wrong {
        let setup = Setup::new()?.set(table, key, value);
        refused(&format!("{table}.{key} = {value}"), &setup, &[key, named]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_problems_are_told_at_once() -> Result<()> {
    let _beside = beside_others().await;
    let setup = Setup::new()?
        .set("maintenance", "window", "\"never\"")
        .set("maintenance.gate", "hold_for", "\"soon\"")
        .set("maintenance.backup", "method", "\"tape\"");
    refused(
        "three problems",
        &setup,
        &["window", "never", "hold_for", "soon", "method", "tape"],
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_that_contradict_themselves() -> Result<()> {
    let _beside = beside_others().await;
    let both = Setup::new()?
        .set("maintenance", "schedule", "\"0 3 * * 0\"")
        .set("maintenance", "duration", "\"30m\"");
    refused("a window and a schedule", &both, &["window", "schedule"]).await?;

    let bare = Setup::new()?
        .without("maintenance")
        .set("maintenance", "enabled", "true");
    let overlapping = bare
        .set("maintenance", "schedule", "\"*/10 * * * *\"")
        .set("maintenance", "duration", "\"30m\"")
        .set("maintenance.backup", "directory", "\"./backups\"");
    refused(
        "a schedule that overlaps itself",
        &overlapping,
        &["duration", "overlap"],
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn places_that_are_missing_or_taken() -> Result<()> {
    let _beside = beside_others().await;
    let setup = Setup::new()?.set("core.database", "path", "\"./missing/sqlite3.db\"");
    refused("no directory for the database", &setup, &["missing"]).await?;

    let setup = Setup::new()?.set("maintenance.backup", "directory", "\"./missing/backups\"");
    refused(
        "no directory above the backups",
        &setup,
        &["maintenance.backup.directory", "missing"],
    )
    .await?;

    // Not even root can write there.
    let setup = Setup::new()?.set("maintenance.backup", "directory", "\"/proc/self\"");
    refused("an unwritable backup directory", &setup, &["/proc/self"]).await?;

    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let setup = Setup::new()?.set(
        "maintenance.readiness",
        "bind_address",
        &format!("\"{address}\""),
    );
    refused("a port in use", &setup, &[&address]).await?;

    // Whoever reaches the network could end a run.
    let setup = Setup::new()?.set("maintenance.readiness", "bind_address", "\"0.0.0.0:0\"");
    refused(
        "an open address without a token",
        &setup,
        &["0.0.0.0:0", "token_file"],
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_that_cannot_be_pinned() -> Result<()> {
    let _beside = beside_others().await;
    let setup = Setup::new()?;
    fs::write(
        setup.database(),
        "this is no database, however long it goes on ".repeat(1_000),
    )?;
    refused("a file that is not SQLite", &setup, &["sqlite3.db"]).await?;

    let setup = Setup::new()?
        .set("core.database", "driver", "\"mysql\"")
        .set(
            "core.database",
            "path",
            "\"mysql://nobody:nothing@127.0.0.1:1/none\"",
        );
    refused("MySQL", &setup, &["mysql"]).await?;

    for journal_mode in ["keep", "delete"] {
        let setup = Setup::new()?
            .set("maintenance", "announces", "\"serve\"")
            .set(
                "maintenance",
                "journal_mode",
                &format!("\"{journal_mode}\""),
            );
        database::make(&setup.database(), MIB, "delete")?;
        refused("serve on a rollback journal", &setup, &["serve"]).await?;
    }
    Ok(())
}
