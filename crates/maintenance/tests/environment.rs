//! Overrides from environment variables. A process of its own, with one test, because the
//! environment belongs to the whole process.

use std::path::Path;
use std::time::Duration;

use figment::Jail;
use torrust_tracker_maintenance::config::Source;

const PREFIX: &str = "SERVICE_CONFIG";

/// `jail.set_env` for the override of one key.
fn set(jail: &mut Jail, key: &str, value: &str) {
    jail.set_env(format!("{PREFIX}_OVERRIDE_MAINTENANCE__{key}"), value);
}

#[test]
#[expect(clippy::result_large_err, reason = "the error type is the jail's")]
fn the_environment_chooses_and_overrides() {
    Jail::expect_with(|jail| {
        let path = Path::new("./config/service.toml");
        let from_env = || Source::from_env(PREFIX, path, None);

        // A relative path is looked for in the directories above, too.
        jail.create_dir("config")?;
        jail.create_dir("work")?;
        let file = jail.create_file(
            "config/service.toml",
            "[maintenance]\nenabled = true\nwindow = \"03:00-03:05\"",
        )?;
        drop(file);
        jail.change_dir("work")?;
        let found = from_env();
        assert!(found.path().is_some_and(Path::is_absolute), "{found:?}");

        // Values arrive as the types they look like.
        set(jail, "WINDOW", "23:50-00:20");
        set(jail, "CATCH_UP", "true");
        set(jail, "GATE__HOLD_FOR", "5s");
        set(jail, "GATE__HOLD_AT_MOST__UDP", "7");
        set(jail, "BACKUP__DIRECTORY", "2026");
        set(jail, "BACKUP__KEEP", "{last=3,daily=0}");
        set(jail, "BACKUP__WAL_LIMIT", "18446744073709551615");
        set(jail, "BACKUP__BANDWIDTH", "100000000");
        set(jail, "READINESS__TOUCH_FILE", "./ready.json");
        let settings = from_env().maintenance();
        let settings = settings.expect("no problems").expect("enabled");
        assert_eq!(settings.schedule.to_string(), "23:50-00:20");
        assert!(settings.catch_up);
        assert_eq!(settings.gate.hold_for, Duration::from_secs(5));
        assert_eq!(settings.gate.hold_udp, 7);
        assert_eq!(settings.gate.hold_http, 500);
        assert_eq!(settings.backup.directory, Path::new("2026"));
        assert_eq!(settings.backup.keep.last, 3);
        assert_eq!(settings.backup.keep.daily, 0);
        assert_eq!(settings.backup.keep.weekly, 4);
        assert_eq!(settings.backup.wal_limit, u64::MAX);
        assert_eq!(settings.backup.bandwidth, Some(100_000_000));
        let readiness = settings.readiness.expect("on by default");
        assert_eq!(
            readiness.touch_file.as_deref(),
            Some(Path::new("./ready.json"))
        );

        // Overrides apply to the text, too, and mistakes in them are found.
        jail.set_env(
            format!("{PREFIX}_TOML"),
            "[maintenance]\nenabled = true\nschedule = \"0 3 * * 0\"",
        );
        set(jail, "DURATION", "30");
        set(jail, "GATE__HOLD_FRO", "5s");
        let error = from_env().maintenance().expect_err("three problems");
        assert_eq!(
            error.to_string(),
            "the configuration in the environment variable SERVICE_CONFIG_TOML cannot be used:\n\
             maintenance.duration = 30 has no unit; write a number and its unit, such as \"90s\" or \"30m\"\n\
             maintenance.window = \"23:50-00:20\" says a second time when windows are; remove it, or else schedule and duration\n\
             maintenance.gate.hold_fro is unknown; did you mean hold_for?"
        );
        Ok(())
    });
}
