//! The tracker's configuration, by upstream's rules, and the `[maintenance]` table of the
//! same source. All problems of both are reported at once, before anything is done.
//!
//! Upstream reads its configuration with `Info` and `Configuration::load`. `Info` prints the
//! whole text of `TORRUST_TRACKER_CONFIG_TOML`, tokens and passwords included, and there is
//! no other way to fill one. So what `load` does is done here, on the same `figment`.

use std::fmt;
use std::path::Path;

use figment::Figment;
use figment::providers::Serialized;
use torrust_tracker_configuration::validator::Validator as _;
use torrust_tracker_configuration::{
    Configuration as Tracker, Database, Driver, Error as Upstream, LATEST_VERSION, Metadata,
};
use torrust_tracker_maintenance::config::{Error, Settings, Source};
use torrust_tracker_maintenance::mysql::Address;

use crate::descriptors;

/// What every environment variable of the tracker's configuration begins with.
const PREFIX: &str = "TORRUST_TRACKER_CONFIG";

/// Where the configuration is when the environment does not say.
const DEFAULT_PATH: &str = "./config/tracker.toml";

/// What upstream wants written, default or not.
const MANDATORY: [&str; 4] = [
    "metadata.schema_version",
    "logging.threshold",
    "core.private",
    "core.listed",
];

/// Both configurations, checked.
#[derive(Debug, Clone)]
pub struct Configuration {
    /// Upstream's.
    pub tracker: Tracker,
    /// The `[maintenance]` table; `None`: absent or disabled.
    pub maintenance: Option<Settings>,
}

/// Everything that is wrong with the configuration: one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems {
    source: String,
    problems: Vec<String>,
}

/// Reads the configuration from the environment, as upstream does.
///
/// # Errors
///
/// When anything is wrong with it.
pub fn load() -> Result<Configuration, Problems> {
    let source = Source::from_env(PREFIX, Path::new(DEFAULT_PATH), None);
    // Upstream's line, but never its content.
    match source.path() {
        Some(path) => println!(
            "Loading extra configuration from file: `{}` ...",
            path.display()
        ),
        None => println!("Loading extra configuration from {}", source.describe()),
    }
    let (tracker, maintenance) = match source.maintenance() {
        Ok(maintenance) => (Some(load_tracker(&source)), Ok(maintenance)),
        Err(Error::Refused { problems, .. }) => {
            (Some(load_tracker(&source)), Err(problems.to_string()))
        }
        // There is no file, or it is not TOML, which is all there is to say.
        Err(error) => (None, Err(error.to_string())),
    };
    combine(
        source.describe(),
        tracker,
        maintenance,
        descriptors::raise(),
    )
}

/// Upstream's part: `Configuration::load` and the checks of its `bootstrap`.
fn load_tracker(source: &Source) -> Result<Tracker, String> {
    let figment = source.figment().map_err(|error| error.to_string())?;
    extract(figment)
}

fn extract(figment: Figment) -> Result<Tracker, String> {
    let missing: Vec<String> = MANDATORY
        .into_iter()
        .filter(|option| figment.find_value(option).is_err())
        .map(|option| {
            let path = option.to_owned();
            Upstream::MissingMandatoryOption { path }.to_string()
        })
        .collect();
    if !missing.is_empty() {
        return Err(missing.join("\n"));
    }
    let figment = figment.join(Serialized::defaults(Tracker::default()));
    let tracker: Tracker = figment.extract().map_err(|error| error.to_string())?;
    // Of its three fields only the version has more than one value.
    if tracker.metadata != Metadata::default() {
        return Err(format!(
            "Unsupported configuration version: {}; metadata.schema_version must be \
             \"{LATEST_VERSION}\"",
            tracker.metadata
        ));
    }
    tracker.validate().map_err(|error| error.to_string())?;
    Ok(tracker)
}

fn combine(
    source: String,
    tracker: Option<Result<Tracker, String>>,
    maintenance: Result<Option<Settings>, String>,
    descriptors: Option<u64>,
) -> Result<Configuration, Problems> {
    let mut problems = Vec::new();
    let tracker = tracker.and_then(|tracker| tracker.map_err(|why| problems.push(why)).ok());
    let maintenance = maintenance.map_err(|why| problems.push(why)).ok();
    if let Some(Some(settings)) = &maintenance {
        problems.extend(
            descriptors.and_then(|limit| descriptors::problem(settings.gate.hold_http, limit)),
        );
        if let Some(tracker) = &tracker {
            problems.extend(unfit(settings, &tracker.core.database));
            problems.extend(useless(settings, tracker));
        }
    }
    match (tracker, maintenance) {
        (Some(tracker), Some(maintenance)) if problems.is_empty() => Ok(Configuration {
            tracker,
            maintenance,
        }),
        _ => Err(Problems { source, problems }),
    }
}

/// Why `[maintenance]` cannot be used with a database as it is written, if it cannot.
fn unfit(settings: &Settings, database: &Database) -> Vec<String> {
    match database.driver {
        Driver::Sqlite3 => Vec::new(),
        Driver::MySQL => {
            let address = database.path.parse::<Address>().err();
            // Not the value: it has a password in it.
            let address = address.map(|error| format!("core.database.path {error}"));
            let settings = settings.check_for_mysql().err();
            let settings = settings.map(|problems| problems.to_string());
            address.into_iter().chain(settings).collect()
        }
    }
}

/// Why loading the counters would be for nothing, if it would: without the persistent
/// statistic the tracker neither keeps them up to date nor, in its clean-ups, in memory.
fn useless(settings: &Settings, tracker: &Tracker) -> Option<String> {
    let kept = tracker
        .core
        .tracker_policy
        .persistent_torrent_completed_stat;
    (settings.load_completed.is_some() && !kept).then(|| {
        "maintenance.load_completed = true has no effect that lasts without \
         core.tracker_policy.persistent_torrent_completed_stat = true: the first clean-up \
         drops the counters again; set both or neither"
            .to_owned()
    })
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "error: the configuration ({}) cannot be used:",
            self.source
        )?;
        for line in self.problems.iter().flat_map(|problem| problem.lines()) {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_of_both_parts_are_reported_together() {
        let problems = combine(
            "file".to_owned(),
            Some(Err("upstream's".to_owned())),
            Err("first\nsecond".to_owned()),
            None,
        )
        .expect_err("both are wrong");
        assert_eq!(
            problems.to_string(),
            "error: the configuration (file) cannot be used:\n  upstream's\n  first\n  second"
        );
    }

    #[test]
    fn a_missing_file_is_one_problem() {
        let problems = combine(
            "file".to_owned(),
            None,
            Err("no such file".to_owned()),
            None,
        );
        assert_eq!(problems.expect_err("no file").problems, ["no such file"]);
    }

    const MINIMAL: &str = "[metadata]\nschema_version = \"2.0.0\"\n[logging]\n\
         threshold = \"info\"\n[core]\nprivate = false\nlisted = false\n";

    fn read(toml: &str) -> Result<Tracker, String> {
        load_tracker(&Source::text(toml))
    }

    #[test]
    fn what_is_not_mandatory_has_upstreams_default() {
        assert_eq!(read(MINIMAL), Ok(Tracker::default()));
    }

    #[test]
    fn every_mandatory_option_that_is_missing_is_named() {
        let problems = read("").expect_err("nothing is written");
        assert_eq!(problems.lines().count(), MANDATORY.len());
        for option in MANDATORY {
            let (_, key) = option.rsplit_once('.').expect("a key in a table");
            let without: Vec<&str> = MINIMAL
                .lines()
                .filter(|line| !line.starts_with(key))
                .collect();
            assert_eq!(
                read(&without.join("\n")),
                Err(format!(
                    "Missing mandatory configuration option. Option path: {option}"
                ))
            );
        }
    }

    #[test]
    fn another_version_is_refused() {
        let problem = read(&MINIMAL.replace("2.0.0", "3.0.0")).expect_err("not ours");
        assert!(problem.contains("3.0.0"), "{problem}");
        assert!(problem.contains("\"2.0.0\""), "{problem}");
    }

    #[test]
    fn a_wrong_value_is_named_with_its_key_and_no_source_code() {
        let problem = read(&format!(
            "{MINIMAL}inactive_peer_cleanup_interval = \"often\""
        ))
        .expect_err("not a number");
        assert!(
            problem.contains("core.inactive_peer_cleanup_interval"),
            "{problem}"
        );
        assert!(!problem.contains(".rs:"), "{problem}");
    }

    #[test]
    fn upstreams_semantic_check_is_made() {
        let toml = format!("{MINIMAL}[core.private_mode]\ncheck_keys_expiration = true");
        assert!(read(&toml).is_err());
    }

    fn settings(toml: &str) -> Settings {
        let toml = format!("[maintenance]\nenabled = true\nwindow = \"03:00-03:05\"\n{toml}");
        let settings = Source::text(toml).maintenance().expect("valid");
        settings.expect("enabled")
    }

    #[test]
    fn counters_that_would_not_stay_are_not_loaded() {
        let mut tracker = Tracker::default();
        let loading = settings("load_completed = true");
        let problem = useless(&loading, &tracker).expect("upstream's default is false");
        assert!(
            problem.contains("persistent_torrent_completed_stat"),
            "{problem}"
        );
        assert_eq!(useless(&settings(""), &tracker), None);
        tracker
            .core
            .tracker_policy
            .persistent_torrent_completed_stat = true;
        assert_eq!(useless(&loading, &tracker), None);
    }

    #[test]
    fn without_maintenance_any_database_will_do() {
        let mut tracker = Tracker::default();
        tracker.core.database.driver = Driver::MySQL;
        let configuration = combine(String::new(), Some(Ok(tracker)), Ok(None), Some(1));
        assert!(configuration.expect("as upstream").maintenance.is_none());
    }

    #[test]
    fn a_server_wants_an_address_and_nothing_that_only_files_have() {
        let none = Vec::<String>::new();
        let mut database = Tracker::default().core.database;
        assert_eq!(unfit(&settings("journal_mode = \"wal\""), &database), none);
        database.driver = Driver::MySQL;
        database.path = "mysql://u:hunter2@localhost/torrust".to_owned();
        assert_eq!(unfit(&settings(""), &database), none);
        database.path = "mysql://u:hunter2@localhost".to_owned();
        let problems = unfit(&settings("journal_mode = \"wal\""), &database);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].contains("names no database"), "{problems:?}");
        assert!(
            problems[1].contains("maintenance.journal_mode"),
            "{problems:?}"
        );
        assert!(!problems.concat().contains("hunter2"));
    }
}
