#![expect(
    clippy::disallowed_methods,
    reason = "tests read and write files of their own"
)]

use std::path::Path;
use std::time::Duration;

use super::{Error, Source};

const WINDOW: &str = "[maintenance]\nenabled = true\nwindow = \"03:00-03:05\"\n";

/// A source for the variables given, with `./nowhere/default.toml` as the default.
fn source(explicit: Option<&Path>, variables: &[(&str, &str)]) -> Source {
    let default = Path::new("./nowhere/default.toml");
    Source::from_variables("SERVICE_CONFIG", default, explicit, |wanted| {
        let set = variables.iter().find(|(name, _)| *name == wanted);
        set.map(|(_, value)| (*value).to_owned())
    })
}

#[test]
fn the_command_line_goes_before_the_text_the_path_and_the_default() {
    let text = ("SERVICE_CONFIG_TOML", WINDOW);
    let path = ("SERVICE_CONFIG_TOML_PATH", "/nowhere/path.toml");
    let explicit = Path::new("/nowhere/explicit.toml");
    for (source, described, is_file) in [
        (
            source(Some(explicit), &[text, path]),
            "/nowhere/explicit.toml",
            true,
        ),
        (
            source(None, &[text, path]),
            "the environment variable SERVICE_CONFIG_TOML",
            false,
        ),
        (source(None, &[path]), "/nowhere/path.toml", true),
        (source(None, &[]), "./nowhere/default.toml", true),
    ] {
        assert_eq!(source.describe(), described);
        assert_eq!(source.path(), is_file.then_some(Path::new(described)));
    }
}

#[test]
fn a_missing_file_is_an_error_that_says_who_named_it() {
    let path = ("SERVICE_CONFIG_TOML_PATH", "/nowhere/path.toml");
    for (source, message) in [
        (
            source(Some(Path::new("/nowhere/explicit.toml")), &[]),
            "there is no configuration file /nowhere/explicit.toml (the command line): create it, or name another",
        ),
        (
            source(None, &[path]),
            "there is no configuration file /nowhere/path.toml (the environment variable SERVICE_CONFIG_TOML_PATH): create it, or name another",
        ),
        (
            source(None, &[]),
            "there is no configuration file ./nowhere/default.toml (default, since SERVICE_CONFIG_TOML_PATH is not set): create it, or name another",
        ),
        (
            // A directory is not a file.
            Source::file(env!("CARGO_MANIFEST_DIR")),
            concat!(
                "there is no configuration file ",
                env!("CARGO_MANIFEST_DIR"),
                " (the path given): create it, or name another"
            ),
        ),
    ] {
        let error = source.maintenance().expect_err(message);
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn a_file_is_found_and_read_each_time() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("service.toml");
    std::fs::write(&path, WINDOW)?;
    let source = Source::file(&path);
    assert_eq!(source.path(), Some(path.as_path()));
    let hold_for = |source: &Source| -> Result<_, Error> {
        Ok(source.maintenance()?.map(|settings| settings.gate.hold_for))
    };
    assert_eq!(hold_for(&source)?, Some(Duration::from_secs(90)));
    std::fs::write(&path, format!("{WINDOW}gate.hold_for = \"5s\"\n"))?;
    assert_eq!(hold_for(&source)?, Some(Duration::from_secs(5)));
    std::fs::write(&path, "[core]\n")?;
    assert_eq!(hold_for(&source)?, None);
    Ok(())
}

#[test]
fn text_that_is_not_toml_is_unreadable_and_not_quoted() {
    let error = Source::text("[http_api.access_tokens]\nadmin = hunter2")
        .maintenance()
        .expect_err("no quotes");
    assert!(matches!(error, Error::Unreadable { .. }));
    let message = error.to_string();
    let beginning =
        "the configuration in the text given cannot be read: TOML parse error at line 2";
    assert!(message.starts_with(beginning), "{message}");
    assert!(
        !format!("{message} {error:?}").contains("hunter"),
        "{message}"
    );
    assert_eq!(message.lines().count(), 1);
}

#[test]
fn problems_name_the_source() {
    let error = Source::text(format!("{WINDOW}catch_up = \"no\"\ncatchup = true"))
        .maintenance()
        .expect_err("two problems");
    assert_eq!(
        error.to_string(),
        "the configuration in the text given cannot be used:\n\
         maintenance.catch_up = \"no\" is not a yes or no; write true or false\n\
         maintenance.catchup is unknown; did you mean catch_up?"
    );
}

#[test]
fn secrets_stay_out_of_debug_output() {
    let source = Source::text("[http_api.access_tokens]\nadmin = \"hunter2\"");
    assert_eq!(format!("{source:?}"), "Source(\"the text given\")");
}
