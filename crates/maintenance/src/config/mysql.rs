//! What of the settings is about SQLite files, and so of no use to a MySQL database.
//!
//! What is as it is by default has no effect. What was chosen and cannot be had is a problem,
//! or somebody would believe that it was.

use super::table::Fault;
use super::{
    Acknowledge, Announces, Backup, Depth, JournalMode, Method, Problem, Problems, Settings, TABLE,
    TakenBy,
};

impl Settings {
    /// Whether a MySQL or MariaDB database can have what these settings ask for.
    ///
    /// # Errors
    ///
    /// All that it cannot.
    pub fn check_for_mysql(&self) -> Result<(), Problems> {
        let default = Backup::default();
        let backup = &self.backup;
        let readiness = self.readiness.as_ref();
        let touch_file = readiness.is_some_and(|readiness| readiness.touch_file.is_some());
        let unfit: [(bool, &str, Fault); 9] = [
            (
                self.journal_mode != JournalMode::Keep,
                "journal_mode",
                no_such(r#"remove it, or write "keep""#),
            ),
            (
                self.announces == Announces::Serve,
                "announces",
                no_such(r#"write "auto", which serves them where all tables have transactions"#),
            ),
            (
                self.acknowledge == Acknowledge::Committed,
                "acknowledge",
                no_such("remove it, and set innodb_flush_log_at_trx_commit on the server"),
            ),
            (
                self.load_completed.is_some(),
                "load_completed",
                no_such("write false: counters are read from an SQLite file alone"),
            ),
            (
                backup.taken_by == TakenBy::Sidecar,
                "backup.taken_by",
                no_such(r#"write "tracker": there is no file that a sidecar could copy"#),
            ),
            (
                backup.method != Method::Auto,
                "backup.method",
                no_such(r#"remove it, or write "auto""#),
            ),
            (
                backup.verify != Depth::Quick,
                "backup.verify",
                no_such(r#"write "quick": a dump has no structure to check; restore it to see"#),
            ),
            (
                backup.partial.is_some(),
                "backup.tables and completed_only",
                no_such("remove them: a dump is of all rows"),
            ),
            (
                backup.wal_limit != default.wal_limit,
                "backup.wal_limit",
                no_such("remove it: there is no log that grows"),
            ),
        ];
        let unfit = unfit.into_iter().chain([(
            touch_file,
            "readiness.touch_file",
            no_such("remove it: there is no file to be copied by others"),
        )]);
        let problems = unfit.filter(|(is, ..)| *is).map(|(_, key, fault)| Problem {
            key: format!("{TABLE}.{key}"),
            value: None,
            what: fault.what,
            hint: fault.hint,
        });
        Problems::of(problems.collect()).map_or(Ok(()), Err)
    }
}

fn no_such(hint: &str) -> Fault {
    Fault::new(r#"cannot be had with core.database.driver = "mysql""#, hint)
}

#[cfg(test)]
mod tests {
    use crate::config::{File, Settings};

    fn problems(keys: &str) -> Vec<String> {
        let toml = format!("[maintenance]\nenabled = true\nwindow = \"03:00-03:05\"\n{keys}");
        let file: File = crate::config::tests::file(&toml);
        let settings = Settings::check(&file).expect("valid").expect("enabled");
        match settings.check_for_mysql() {
            Ok(()) => Vec::new(),
            Err(problems) => problems.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn defaults_and_what_any_database_has_are_fit() {
        assert_eq!(problems(""), Vec::<String>::new());
        let keys = r#"
            announces = "pause"
            catch_up = true
            [maintenance.backup]
            bandwidth = "1MiB"
            compression = "none"
            dump_program = "/usr/bin/mysqldump"
            files = ["./x"]
        "#;
        assert_eq!(problems(keys), Vec::<String>::new());
    }

    #[test]
    fn each_choice_that_only_sqlite_has_is_a_problem_of_its_own() {
        for (keys, named) in [
            (r#"journal_mode = "wal""#, "maintenance.journal_mode"),
            (r#"announces = "serve""#, "maintenance.announces"),
            (r#"acknowledge = "committed""#, "maintenance.acknowledge"),
            ("load_completed = true", "maintenance.load_completed"),
            (
                r#"backup.taken_by = "sidecar""#,
                "maintenance.backup.taken_by",
            ),
            (r#"backup.method = "file""#, "maintenance.backup.method"),
            (r#"backup.verify = "full""#, "maintenance.backup.verify"),
            (r#"backup.tables = ["keys"]"#, "maintenance.backup.tables"),
            ("backup.completed_only = true", "completed_only"),
            (
                r#"backup.wal_limit = "2GiB""#,
                "maintenance.backup.wal_limit",
            ),
            (
                r#"readiness.touch_file = "./x""#,
                "maintenance.readiness.touch_file",
            ),
        ] {
            let found = problems(keys);
            assert_eq!(found.len(), 1, "{keys}: {found:?}");
            assert!(found[0].contains(named), "{found:?}");
            assert!(found[0].contains("\"mysql\""), "{found:?}");
        }
    }
}
