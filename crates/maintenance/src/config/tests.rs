#![expect(
    clippy::disallowed_methods,
    reason = "tests read and write files of their own"
)]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use figment::Figment;
use figment::providers::{Format, Toml};
use toml::Value;

use super::*;

/// The file an operator starts from.
fn shipped() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/tracker.toml");
    std::fs::read_to_string(path).expect("config/tracker.toml is in the repository")
}

pub(super) fn file(toml: &str) -> File {
    let figment = Figment::from(Toml::string(toml));
    File::find_in(&figment)
        .expect("valid TOML")
        .expect("a [maintenance] table")
}

/// The settings of an enabled daily window and what `more` adds to it.
fn settings(more: &str) -> Settings {
    let toml = format!("[maintenance]\nenabled = true\nwindow = \"03:00-03:05\"\n{more}");
    Settings::check(&file(&toml))
        .expect(more)
        .expect("it is enabled")
}

/// The problems of a daily window and `more`, one a line.
fn problems(more: &str) -> String {
    let toml = format!("[maintenance]\nenabled = true\nwindow = \"03:00-03:05\"\n{more}");
    problems_of(&toml)
}

fn problems_of(toml: &str) -> String {
    match Settings::check(&file(toml)) {
        Ok(_) => String::new(),
        Err(problems) => problems.to_string(),
    }
}

#[test]
fn the_shipped_file_shows_the_defaults() {
    let shipped = Settings::check(&file(&shipped())).expect("no problems");
    let defaults = settings(
        r#"
        journal_mode = "wal"    # not the default
        readiness.touch_file = "./storage/tracker/run/ready.json"    # not the default
        "#,
    );
    assert_eq!(shipped, Some(defaults));
}

#[test]
fn the_shipped_file_marks_what_is_not_the_default() {
    let marked = shipped().matches("(not the default").count();
    assert_eq!(marked, 2, "journal_mode and touch_file");
    let bare = settings("");
    assert_eq!(bare.journal_mode, JournalMode::Keep);
    assert_eq!(bare.readiness.expect("enabled").touch_file, None);
}

#[test]
fn the_shipped_file_shows_every_key_and_no_other() {
    let shipped = shipped();
    let (_, read) = Settings::read(&file(&shipped));
    let known: BTreeSet<String> = read.keys.into_iter().collect();

    // Commented keys count: they are shown, not set.
    let start = shipped.find("\n[maintenance]").expect("the table is there");
    let uncommented: Vec<&str> = shipped[start..]
        .lines()
        .map(|line| {
            let code = line.strip_prefix("# ").unwrap_or(line);
            let key = code.split(" = ").next().unwrap_or_default();
            let is_key = code.contains(" = ") && !key.contains(' ');
            if is_key || code.starts_with('[') {
                code
            } else {
                ""
            }
        })
        .collect();
    let shown =
        toml::from_str(&uncommented.join("\n")).expect("commented keys are written as TOML");
    let mut leaves = BTreeSet::new();
    collect_leaves("", &Value::Table(shown), &mut leaves);
    assert_eq!(leaves, known);
}

fn collect_leaves(key: &str, value: &Value, leaves: &mut BTreeSet<String>) {
    let Value::Table(entries) = value else {
        leaves.insert(key.to_owned());
        return;
    };
    for (inner, value) in entries {
        let dot = if key.is_empty() { "" } else { "." };
        collect_leaves(&format!("{key}{dot}{inner}"), value, leaves);
    }
}

#[test]
fn an_absent_table_is_no_file() {
    let figment = Figment::from(Toml::string("[core]\nlisted = false"));
    assert_eq!(File::find_in(&figment).ok(), Some(None));
}

#[test]
fn whether_it_is_enabled_must_be_said() {
    let disabled = Settings::check(&file("[maintenance]\nenabled = false"));
    assert_eq!(disabled, Ok(None));
    let disabled = Settings::check(&file(
        "[maintenance]\nenabled = false\nwindow = \"03:00-03:05\"",
    ));
    assert_eq!(disabled, Ok(None));
    assert_eq!(
        problems_of("[maintenance]\nwindow = \"03:00-03:05\""),
        "maintenance.enabled is missing; write true or false: a table that is there says which \
         is meant"
    );
    assert_eq!(
        problems_of("[maintenance]\nenabled = \"yes\""),
        r#"maintenance.enabled = "yes" is not a yes or no; write true or false"#
    );
    assert_eq!(
        problems_of("maintenance = true"),
        "maintenance = true is not a table; write its keys under [maintenance]\n\
         maintenance.enabled is missing; write true or false: a table that is there says which \
         is meant"
    );
}

#[test]
fn all_problems_are_reported_at_once_in_a_disabled_table_too() {
    let reported = problems_of(
        r#"
        [maintenance]
        enabled = false
        widow = "03:00-03:05"
        schedule = "0 3 * *"
        duration = "30"
        journal_mode = "memory"

        [maintenance.gate]
        hold_for = "11m"
        hold_at_most = { udp = 0, tcp = 1 }

        [maintenance.backup]
        verify = true
        keep = { daily = -1 }

        [maintenance.elsewhere]
        secret_key = "hunter2"
        "#,
    );
    let expected = [
        r#"maintenance.duration = "30" is not a duration; write a number and its unit, such as "90s" or "30m""#,
        r#"maintenance.schedule = "0 3 * *" is refused: a crontab line has five fields (minute, hour, day of month, month, day of week) and this one has 4"#,
        r#"maintenance.journal_mode = "memory" is not a choice; write "keep" or "wal" or "delete""#,
        r#"maintenance.gate.hold_for = "11m" is too long; write a duration from 1s to 10m"#,
        r"maintenance.gate.hold_at_most.udp = 0 is out of range; write one from 1 to 4194304",
        r"maintenance.gate.hold_at_most.tcp is unknown; remove it, or use one of udp, http",
        r#"maintenance.backup.verify = true is not a choice; write "quick" or "full""#,
        r"maintenance.backup.keep.daily = -1 is out of range; write one from 0 to 10000",
        r"maintenance.elsewhere is unknown; remove it, or use one of enabled, window, schedule, duration, catch_up, journal_mode, announces, acknowledge, load_completed, load_completed_limit, gate, backup, readiness, notify, hooks, remote",
        r"maintenance.widow is unknown; did you mean window?",
    ];
    assert_eq!(reported.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn when_windows_are_is_said_once() {
    let schedule = |keys: &str| {
        let toml = format!("[maintenance]\nenabled = true\n{keys}");
        Settings::check(&file(&toml))
            .map(|settings| settings.expect("enabled").schedule)
            .map_err(|problems| problems.to_string())
    };
    let daily = Schedule::daily("23:50-00:20").expect("a window");
    assert_eq!(schedule("window = \"23:50-00:20\""), Ok(daily));
    let weekly = Schedule::crontab("0 3 * * 0", Duration::from_secs(1800)).expect("a schedule");
    assert_eq!(
        schedule("schedule = \"0 3 * * 0\"\nduration = \"30m\""),
        Ok(weekly)
    );

    let window = r#"window = "03:00-03:05""#;
    let line = r#"schedule = "0 3 * * 0""#;
    let duration = r#"duration = "30m""#;
    let twice = r#"maintenance.window = "03:00-03:05" says a second time when windows are; remove it, or else schedule and duration"#;
    for (keys, problem) in [
        (
            String::new(),
            r#"maintenance.window is missing; write one, such as "03:00-03:05", or a schedule and a duration"#,
        ),
        (
            line.to_owned(),
            r#"maintenance.duration is missing; write how long a window lasts, such as "30m""#,
        ),
        (
            duration.to_owned(),
            r#"maintenance.schedule is missing; write when windows begin, such as "0 3 * * 0""#,
        ),
        (format!("{window}\n{line}\n{duration}"), twice),
        (format!("{window}\n{line}"), twice),
        (format!("{window}\n{duration}"), twice),
        (
            r#"window = "3:00-03:05""#.to_owned(),
            r#"maintenance.window = "3:00-03:05" is refused: "3:00" is not a time of day: write HH:MM, from 00:00 to 23:59"#,
        ),
        (
            "window = 3".to_owned(),
            "maintenance.window = 3 is not a text; write a text in quotes",
        ),
        (
            "schedule = \"0 * * * *\"\nduration = \"1h\"".to_owned(),
            r#"maintenance.duration = "1h" is refused: overlapping: a window of 1h that begins at 2026-01-01 00:00 has not ended before the next begins, at 2026-01-01 01:00: shorten it, or let it begin less often"#,
        ),
        (
            format!("{line}\nduration = \"8d\""),
            r#"maintenance.duration = "8d" is refused: a window of 8days is out of bounds: it may last from 1s to 7days"#,
        ),
    ] {
        assert_eq!(schedule(&keys), Err(problem.to_owned()), "{keys}");
    }
}

#[test]
fn every_choice_is_read() {
    for (written, mode) in [
        ("keep", JournalMode::Keep),
        ("wal", JournalMode::Wal),
        ("delete", JournalMode::Delete),
    ] {
        let read = settings(&format!("journal_mode = {written:?}")).journal_mode;
        assert_eq!(read, mode);
    }
    for (written, policy) in [
        ("auto", Announces::Auto),
        ("pause", Announces::Pause),
        ("serve", Announces::Serve),
    ] {
        let read = settings(&format!("announces = {written:?}")).announces;
        assert_eq!(read, policy);
    }
    for (written, acknowledge) in [
        ("durable", Acknowledge::Durable),
        ("committed", Acknowledge::Committed),
    ] {
        let read = settings(&format!("acknowledge = {written:?}")).acknowledge;
        assert_eq!(read, acknowledge);
    }
    for (written, method) in [
        ("auto", Method::Auto),
        ("file", Method::File),
        ("pages", Method::Pages),
    ] {
        let read = settings(&format!("backup.method = {written:?}")).backup;
        assert_eq!(read.method, method);
    }
    for (written, depth) in [("quick", Depth::Quick), ("full", Depth::Full)] {
        let read = settings(&format!("backup.verify = {written:?}")).backup;
        assert_eq!(read.verify, depth);
    }
    for (written, compression) in [
        ("compression = \"none\"", Compression::None),
        ("compression = \"zstd\"", Compression::Zstd(3)),
        ("compression_level = 19", Compression::Zstd(19)),
    ] {
        let read = settings(&format!("backup.{written}")).backup;
        assert_eq!(read.compression, compression);
    }
}

#[test]
fn sizes_are_bytes_or_have_a_unit() {
    for (written, bytes) in [
        ("1048576", Some(1 << 20)),
        (r#""1048576""#, Some(1 << 20)),
        (r#""1GiB""#, Some(1 << 30)),
        (r#""500MB""#, Some(500_000_000)),
        (r#""1.5 MiB""#, Some(3 << 19)),
        (r#""64KiB""#, Some(64 << 10)),
        (r#""unlimited""#, None),
    ] {
        let read = settings(&format!("backup.bandwidth = {written}")).backup;
        assert_eq!(read.bandwidth, bytes, "{written}");
    }
    let hint = r#"write at least 64.0 KiB, such as "1GiB", or "unlimited""#;
    for (written, what) in [
        ("65535", "too small"),
        ("0", "too small"),
        ("-1", "not a size"),
        ("1.5", "not a size"),
        (r#""""#, "not a size"),
        (r#""fast""#, "not a size"),
        (r#""1 parsec""#, "not a size"),
    ] {
        assert_eq!(
            problems(&format!("backup.bandwidth = {written}")),
            format!("maintenance.backup.bandwidth = {written} is {what}; {hint}")
        );
    }
    assert_eq!(
        problems(r#"backup.wal_limit = "unlimited""#),
        r#"maintenance.backup.wal_limit = "unlimited" is not a size; write at least 1.0 MiB, such as "1GiB""#
    );
}

#[test]
fn bounds_are_inclusive() {
    for (key, least, most, beyond) in [
        (
            "gate.hold_for",
            r#""1s""#,
            r#""10m""#,
            [r#""999ms""#, r#""601s""#],
        ),
        ("gate.hold_at_most.udp", "1", "4194304", ["0", "4194305"]),
        ("gate.hold_at_most.http", "1", "65536", ["0", "65537"]),
        ("backup.compression_level", "1", "19", ["0", "20"]),
        ("backup.keep.last", "0", "10000", ["-1", "10001"]),
        (
            "readiness.ttl",
            r#""5s""#,
            r#""10m""#,
            [r#""4999ms""#, r#""601s""#],
        ),
        (
            "readiness.claim_within",
            r#""1s""#,
            r#""1h""#,
            [r#""0s""#, r#""3601s""#],
        ),
    ] {
        for within in [least, most] {
            assert_eq!(problems(&format!("{key} = {within}")), "", "{key}");
        }
        for beyond in beyond {
            let reported = problems(&format!("{key} = {beyond}"));
            let expected = format!("maintenance.{key} = {beyond} is ");
            assert!(reported.starts_with(&expected), "{reported}");
        }
    }
}

#[test]
fn a_value_of_the_wrong_type_is_one_problem() {
    for (written, problem) in [
        (
            "gate.hold_for = 90",
            r#"maintenance.gate.hold_for = 90 has no unit; write a number and its unit, such as "90s" or "30m""#,
        ),
        (
            "gate = \"90s\"",
            r#"maintenance.gate = "90s" is not a table; write its keys under [maintenance.gate]"#,
        ),
        (
            "gate.hold_at_most.udp = \"many\"",
            r#"maintenance.gate.hold_at_most.udp = "many" is not a whole number; write one from 1 to 4194304"#,
        ),
        (
            "catch_up = 1",
            "maintenance.catch_up = 1 is not a yes or no; write true or false",
        ),
        (
            "backup.directory = \"\"",
            r#"maintenance.backup.directory = "" is not a path; write a path in quotes"#,
        ),
        (
            "backup.files = \"./config/tracker.toml\"",
            r#"maintenance.backup.files = "./config/tracker.toml" is not a list of paths; write paths in brackets, such as ["./config/tracker.toml"]"#,
        ),
        (
            "readiness.bind_address = \"localhost\"",
            r#"maintenance.readiness.bind_address = "localhost" is not an IP address and a port; write both, such as "127.0.0.1:1414" or "[::1]:1414", or "unix:" and a path"#,
        ),
    ] {
        assert_eq!(problems(written), problem);
    }
}

#[test]
fn settings_that_contradict_each_other_are_refused() {
    assert_eq!(
        problems("announces = \"serve\"\njournal_mode = \"delete\""),
        r#"maintenance.announces = "serve" cannot go with journal_mode = "delete"; write "auto" or "pause": a rollback journal lets nobody write during the copy"#
    );
    assert_eq!(
        problems("backup.compression = \"none\"\nbackup.compression_level = 3"),
        r#"maintenance.backup.compression_level = 3 has no meaning with compression = "none"; remove it"#
    );
}

#[test]
fn an_endpoint_is_an_address_or_a_socket() {
    let address = |written: &str| {
        let settings = settings(&format!("readiness.bind_address = \"{written}\""));
        settings.readiness.expect("enabled").bind_address
    };
    for (written, local) in [
        ("127.0.0.1:1414", true),
        ("127.8.0.1:0", true),
        ("[::1]:0", true),
        ("[::ffff:127.0.0.1]:1414", true),
        ("unix:/run/torrust/maintenance.sock", true),
        ("unix:./maintenance.sock", true),
        ("0.0.0.0:1414", false),
        ("[::]:1414", false),
        ("10.0.0.7:1414", false),
    ] {
        let address = address(written);
        assert_eq!(address.to_string(), written);
        assert_eq!(address.is_local(), local, "{written}");
    }
    for bad in [
        "unix:",
        "tracker:1414",
        "/run/maintenance.sock",
        "127.0.0.1",
    ] {
        let reported = problems(&format!("readiness.bind_address = \"{bad}\""));
        assert!(reported.contains("unix:"), "{reported}");
    }
}

#[test]
fn hosts_are_names_without_a_port() {
    let hosts = |written: &str| {
        let settings = settings(&format!("readiness.hosts = {written}"));
        settings.readiness.expect("enabled").hosts
    };
    assert_eq!(hosts("[]"), Vec::<String>::new());
    assert_eq!(
        hosts(r#"["Tracker", "tracker_1.example.org"]"#),
        ["tracker", "tracker_1.example.org"]
    );
    for bad in [
        r#"["tracker:1414"]"#,
        r#"["*"]"#,
        r#"["http://tracker"]"#,
        r#"[""]"#,
        r#"["a..b"]"#,
        "[1]",
        r#""tracker""#,
    ] {
        let reported = problems(&format!("readiness.hosts = {bad}"));
        assert!(
            reported.contains("is not a list of host names"),
            "{reported}"
        );
    }
}

#[test]
fn a_sidecar_needs_a_place_to_learn_of_a_run() {
    let sidecar = settings(r#"backup.taken_by = "sidecar""#);
    assert_eq!(sidecar.backup.taken_by, TakenBy::Sidecar);
    let reported = problems("backup.taken_by = \"sidecar\"\nreadiness.enabled = false");
    assert_eq!(
        reported,
        r#"maintenance.backup.taken_by = "sidecar" needs [maintenance.readiness], where a sidecar learns of a run; enable that, or write "tracker""#
    );
}

#[test]
fn a_backup_is_partial_if_any_key_says_so() {
    let partial = |written: &str| settings(written).backup.partial;
    assert_eq!(partial(""), None);
    assert_eq!(partial("backup.completed_only = false"), None);
    let named = |tables: &[&str]| tables.iter().map(ToString::to_string).collect();
    for (written, tables, completed_only) in [
        ("backup.completed_only = true", None, true),
        (
            r#"backup.tables = ["torrents", "keys", "keys"]"#,
            Some(named(&["keys", "torrents"])),
            false,
        ),
        (
            "backup.tables = [\"torrents\"]\nbackup.completed_only = true",
            Some(named(&["torrents"])),
            true,
        ),
    ] {
        let expected = Partial {
            tables,
            completed_only,
        };
        assert_eq!(partial(written), Some(expected), "{written}");
    }
    for (written, problem) in [
        (
            "backup.tables = []",
            "maintenance.backup.tables = [] names no table; name the tables whose rows are \
             stored, or remove it to store all",
        ),
        (
            "backup.tables = \"torrents\"",
            r#"maintenance.backup.tables = "torrents" is not a list of names; write names in brackets, such as ["torrents"]"#,
        ),
        (
            "backup.tables = [\"keys\"]\nbackup.completed_only = true",
            "maintenance.backup.completed_only = true has no meaning without the table torrents \
             in tables; remove it, or add \"torrents\"",
        ),
    ] {
        assert_eq!(problems(written), problem);
    }
}

#[test]
fn the_configuration_file_is_stored_if_there_is_one_and_it_is_wanted() -> std::io::Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("tracker.toml");
    let stored = |text: &str| {
        std::fs::write(&path, text).expect("a writable directory");
        let of = |source: Source| {
            let settings = source.maintenance().expect("valid").expect("enabled");
            settings.backup.files.configuration
        };
        (of(Source::file(&path)), of(Source::text(text)))
    };
    let table = "[maintenance]\nenabled = true\nwindow = \"03:00-03:05\"\n";
    assert_eq!(stored(table), (Some(path.clone()), None));
    let unwanted = format!("{table}backup.config_file = false");
    assert_eq!(stored(&unwanted), (None, None));
    Ok(())
}

#[test]
fn a_pattern_that_is_none_is_refused() {
    for key in ["files", "exclude"] {
        assert_eq!(
            problems(&format!("backup.{key} = [\"/etc/***\"]")),
            format!(
                "maintenance.backup.{key} = [\"/etc/***\"] has the pattern /etc/***, which is none: \
                 Pattern syntax error near position 7: wildcards are either regular `*` or \
                 recursive `**`; write * for what may stand there, and [*] for the sign"
            )
        );
    }
}

#[test]
fn counters_are_loaded_up_to_a_limit_or_not_at_all() {
    for (written, limit) in [
        ("", None),
        (
            "load_completed = false\nload_completed_limit = \"1GiB\"",
            None,
        ),
        ("load_completed = true", Some(2 << 30)),
        (
            "load_completed = true\nload_completed_limit = \"1GiB\"",
            Some(1 << 30),
        ),
    ] {
        assert_eq!(settings(written).load_completed, limit, "{written}");
    }
}

#[test]
fn readiness_can_be_switched_off() {
    assert_eq!(settings("readiness.enabled = false").readiness, None);
    let reported = problems("readiness.enabled = false\nreadiness.port = 1");
    assert!(
        reported.starts_with("maintenance.readiness.port is unknown"),
        "{reported}"
    );
}

#[test]
fn who_is_told_and_what_is_called() {
    let settings = settings(
        r#"
        [maintenance.notify]
        webhook = "https://hooks.example.org/services/SECRET"
        webhook_header_file = "./etc/webhook.header"
        on = "always"
        heartbeat = "https://hc.example.org/ping/SECRET"
        timeout = "5s"
        [maintenance.hooks]
        before = ["/bin/mount", "/backups"]
        on_failure = ["page", "SECRET", ""]
        timeout = "2m"
        "#,
    );
    let notify = &settings.notify;
    assert_eq!(notify.on, TellOf::Always);
    assert_eq!(notify.timeout, Duration::from_secs(5));
    assert!(notify.is_wanted() && notify.heartbeat_failure.is_none());
    let commands = &settings.hooks.commands;
    assert_eq!(commands[&Hook::Before], ["/bin/mount", "/backups"]);
    assert_eq!(commands[&Hook::OnFailure], ["page", "SECRET", ""]);
    assert_eq!(commands.len(), 2);
    let shown = format!("{settings:?}");
    assert!(!shown.contains("SECRET"), "{shown}");
    assert!(shown.contains("https://hc.example.org"), "{shown}");
}

#[test]
fn what_may_be_a_secret_is_not_shown_when_it_is_wrong() {
    for (more, what) in [
        (
            "notify.webhook = \"ftp://example.org/SECRET\"",
            "maintenance.notify.webhook is not an address on the web",
        ),
        (
            "notify.heartbeat = \"SECRET\"",
            "maintenance.notify.heartbeat is not an address on the web",
        ),
        (
            "notify.heartbeat_failure = 7",
            "maintenance.notify.heartbeat_failure is not an address on the web",
        ),
        (
            "notify = \"https://example.org/SECRET\"",
            "maintenance.notify is not a table",
        ),
        (
            "remote = \"s3://me:SECRET@host/bucket\"",
            "maintenance.remote is not a table",
        ),
        (
            "hooks.before = \"SECRET --now\"",
            "maintenance.hooks.before is not a command",
        ),
        (
            "hooks.after = []",
            "maintenance.hooks.after is not a command",
        ),
        (
            "hooks.ready = [\"\", \"SECRET\"]",
            "maintenance.hooks.ready is not a command",
        ),
        (
            "notify.webhook_header_file = \"./header\"",
            "maintenance.notify.webhook_header_file = \"./header\" has no meaning without webhook",
        ),
        (
            "hooks.timeout = \"100ms\"",
            "maintenance.hooks.timeout = \"100ms\" is too short",
        ),
    ] {
        let said = problems(more);
        assert!(said.starts_with(what), "{more}: {said}");
        assert!(!said.contains("SECRET"), "{more}: {said}");
        assert_eq!(said.lines().count(), 1, "{more}: {said}");
    }
}

#[test]
fn recipients_are_read_and_an_identity_among_them_is_never_shown() {
    use crate::encryption::testing::{recipient, somebody};
    let (identities, secret) = somebody();
    let recipient = recipient(&identities);
    let read = settings(&format!("backup.recipients = [\"{recipient}\"]")).backup;
    assert!(read.encryption.is_wanted());
    assert_eq!(read.encryption.recipients, [recipient]);
    let file = settings("backup.recipients_file = \"./recipients.txt\"").backup;
    assert!(file.encryption.is_wanted());
    assert!(!settings("").backup.encryption.is_wanted());

    for (written, said) in [
        (format!("[\"{secret}\"]"), "has one that is an identity"),
        (format!("\"{secret}\""), "is not a list of recipients"),
        (
            "[\"age1nobody\"]".to_owned(),
            "has one that is not a recipient",
        ),
        ("[7]".to_owned(), "is not a list of recipients"),
    ] {
        let told = problems(&format!("backup.recipients = {written}"));
        let begins = format!("maintenance.backup.recipients {said}");
        assert!(told.starts_with(&begins), "{told}");
        assert!(!told.contains(&secret), "{told}");
    }
}

#[test]
fn a_second_place_is_a_bucket_or_a_directory() {
    let remote = |more: &str| settings(&format!("[maintenance.remote]\n{more}")).remote;
    assert_eq!(settings("").remote, None);
    let s3 = remote(
        "url = \"s3://backups/a/b/\"\nendpoint = \"http://127.0.0.1:9000/\"\nallow_http = true\n\
         access_key_id = \"id\"\nsecret_access_key_file = \"./secret\"\nkeep.last = 3",
    );
    let s3 = s3.expect("it is there");
    assert_eq!(s3.describe(), "s3://backups/a/b");
    assert_eq!((s3.keep.last, s3.keep.daily), (3, 7));
    let day = Duration::from_secs(24 * 3600);
    assert_eq!(s3.check_every, Some(30 * day));
    for (written, expected) in [
        ("never", None),
        ("1day", Some(day)),
        ("90d", Some(90 * day)),
    ] {
        let place = remote(&format!("url = \"s3://b\"\ncheck_every = \"{written}\""));
        assert_eq!(place.expect("it is there").check_every, expected);
    }
    let Place::S3(bucket) = s3.place else {
        panic!("a bucket")
    };
    assert_eq!(bucket.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
    assert!(bucket.path_style, "as there is an endpoint");
    assert_eq!(bucket.credentials, Some(("id".into(), "./secret".into())));
    let aws = remote("url = \"s3://backups\"").expect("it is there");
    assert_eq!(aws.describe(), "s3://backups");
    let directory = remote("url = \"file:///mnt/b\"").expect("it is there");
    assert_eq!(directory.place, Place::Directory("/mnt/b".into()));
}

#[test]
fn what_is_wrong_with_a_second_place_is_told_at_once_and_without_secrets() {
    let told = |more: &str| problems(&format!("[maintenance.remote]\n{more}"));
    let all = told(
        "url = \"s3://me:s3cret@host/bucket\"\nendpoint = \"https://me:s3cret@host\"\n\
         access_key_id = \"id\"\npart_size = \"1MiB\"\nattempts = 0\nsecret_access_key = \"s3cret\"",
    );
    for said in [
        "maintenance.remote.url has no name of a bucket",
        "maintenance.remote.endpoint is not the address of a host",
        "maintenance.remote.secret_access_key_file is missing",
        "maintenance.remote.part_size = \"1MiB\" is too small",
        "maintenance.remote.attempts = 0 is out of range",
        "maintenance.remote.secret_access_key is unknown",
    ] {
        assert!(all.contains(said), "{said:?} is not in:\n{all}");
    }
    assert_eq!(all.lines().count(), 6, "{all}");
    assert!(!all.contains("s3cret"), "{all}");
    for (written, said) in [
        ("attempts = 3", "maintenance.remote.url is missing"),
        ("url = \"https://host\"", "url is of no kind that is known"),
        ("url = \"s3://\"", "url has no name of a bucket"),
        ("url = \"s3://b/../c\"", "url has a prefix with other signs"),
        ("url = \"file://relative\"", "url is not an absolute path"),
        (
            "url = \"s3://b\"\nendpoint = \"http://host\"",
            "endpoint is without TLS; write https://, or allow_http = true",
        ),
        (
            "url = \"file:///mnt\"\nregion = \"x\"",
            "region has no meaning with a url of file://; remove it",
        ),
        ("url = \"s3://b\"\npart_size = \"2GiB\"", "is too large"),
        (
            "url = \"s3://b\"\ncheck_every = \"1h\"",
            "check_every = \"1h\" is too short; write a duration of at least 1day, or \"never\"",
        ),
    ] {
        let told = told(written);
        assert!(told.contains(said), "{said:?} is not: {told}");
        assert_eq!(told.lines().count(), 1, "{told}");
    }
}
