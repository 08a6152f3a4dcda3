//! What depends on who takes the backups.

use super::super::*;
use crate::catalogue::testing;
use crate::config::Source;

fn settings(directory: &Path, taken_by: &str, backup: &str, readiness: &str) -> Settings {
    let source = Source::text(format!(
        "[maintenance]\nenabled = true\nwindow = \"03:00-03:05\"\ncatch_up = true\n\
         [maintenance.backup]\ntaken_by = \"{taken_by}\"\ndirectory = \"{0}/backups\"\n{backup}\n\
         [maintenance.readiness]\nbind_address = \"unix:{0}/socket\"\n{readiness}",
        directory.display()
    ));
    let settings = source.maintenance().expect("valid");
    settings.expect("it is enabled")
}

#[test]
fn a_missed_window_is_made_up_only_by_who_knows_that_it_was_missed() {
    let directory = testing::memory_dir();
    for (taken_by, catches_up) in [("tracker", true), ("sidecar", false)] {
        let settings = settings(directory.path(), taken_by, "", "");
        assert_eq!(rules(&settings).catch_up, catches_up, "{taken_by}");
    }
}

#[test]
fn announces_are_held_ten_seconds_for_a_sidecar_that_must_claim() {
    let directory = testing::memory_dir();
    let by_file = format!(
        "touch_file = \"{}/ready.json\"\n",
        directory.path().display()
    );
    let ten = Duration::from_secs(10);
    for (more, within, held) in [
        ("claim_within = \"60s\"".to_owned(), 60, ten),
        (
            "claim_within = \"3s\"".to_owned(),
            3,
            Duration::from_secs(3),
        ),
        (format!("{by_file}claim_within = \"10m\""), 600, 60 * ten),
    ] {
        let settings = settings(directory.path(), "sidecar", "", &more);
        let terms = rules(&settings).lease.expect("a sidecar copies");
        assert_eq!(terms.claim_within, Duration::from_secs(within), "{more}");
        assert_eq!(terms.claim_within_held, held, "{more}");
    }
}

/// What is stored is the sidecar's affair, and its configuration's: what is wrong of it here
/// keeps no tracker from starting, nor does a directory that is not there.
#[tokio::test]
async fn what_is_stored_is_checked_by_who_stores_it() {
    let bad_files = |database: &Path| format!("files = [\"{}\"]", database.display());
    let bad_tables = |_: &Path| "tables = [\"nothing_of_this_name\"]".to_owned();
    let wrong: [&dyn Fn(&Path) -> String; 2] = [&bad_files, &bad_tables];
    for wrong in wrong {
        for taken_by in ["tracker", "sidecar"] {
            let directory = testing::memory_dir();
            let database = directory.path().join("tracker.db");
            let sql = "CREATE TABLE torrents (info_hash TEXT)";
            let connection = rusqlite::Connection::open(&database).expect("a fresh directory");
            connection.execute_batch(sql).expect("an empty database");
            connection.close().expect("nothing is under way");
            let settings = settings(directory.path(), taken_by, &wrong(&database), "");
            let backups = settings.backup.directory.clone();
            let service = Service {
                name: "a service 1.0".into(),
                database: database.into(),
            };
            let started = Maintenance::prepare(settings, service).and_then(Maintenance::start);
            match started {
                Ok(running) => {
                    assert_eq!(taken_by, "sidecar");
                    assert!(!backups.exists(), "it is not the tracker's");
                    running.shutdown().await;
                }
                Err(error) => assert_eq!(taken_by, "tracker", "{error}"),
            }
        }
    }
}
