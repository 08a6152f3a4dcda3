#![expect(clippy::disallowed_methods, reason = "tests write files of their own")]

use super::*;

const GOOD: &str = "0123456789abcdef";

fn find(variable: Option<&str>, file: Option<&Path>) -> Result<Option<Token>, Error> {
    Token::find(variable.map(OsStr::new), file, &Disk::default())
}

#[test]
fn the_environment_wins_over_the_file() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("token");
    let other = "fedcba9876543210";
    fs::write(&file, format!("  {other}\t\r\na second line\n"))?;
    assert!(find(None, None)?.is_none());
    let from_file = find(None, Some(&file))?.ok_or("there is one")?;
    assert!(from_file.is(other) && !from_file.is(GOOD));
    let from_variable = find(Some(GOOD), Some(&file))?.ok_or("there is one")?;
    assert!(from_variable.is(GOOD) && !from_variable.is(other));
    Ok(())
}

#[test]
fn what_is_no_token_is_an_error_that_does_not_show_it() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("token");
    for bad in [
        "",
        "short",
        "0123456789 abcdef",
        "0123456789abcdé!",
        "\n0123456789abcdef",
    ] {
        fs::write(&file, bad)?;
        let error = find(None, Some(&file)).expect_err(bad).to_string();
        assert!(error.contains("readiness.token_file"), "{error}");
        assert!(bad.trim().is_empty() || !error.contains(bad), "{error}");
    }
    let error = find(Some("short"), None)
        .expect_err("too short")
        .to_string();
    assert!(error.contains(VARIABLE), "{error}");
    let missing = directory.path().join("missing");
    let error = find(None, Some(&missing))
        .expect_err("there is none")
        .to_string();
    assert!(error.contains("missing"), "{error}");
    Ok(())
}

#[test]
fn nearly_right_is_wrong() -> Result<(), Error> {
    let token = find(Some(GOOD), None)?.expect("there is one");
    for wrong in [
        "",
        "0123456789abcde",
        "0123456789abcdeF",
        "0123456789abcdef0",
    ] {
        assert!(!token.is(wrong), "{wrong}");
    }
    assert!(!format!("{token:?}").contains("0123"));
    Ok(())
}

#[test]
fn a_file_that_others_can_read_is_told_of() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("token");
    fs::write(&file, GOOD)?;
    for (mode, open) in [(0o600, false), (0o640, false), (0o644, true), (0o604, true)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode))?;
        assert_eq!(readable_by_others(Some(&file)).is_some(), open, "{mode:o}");
    }
    assert_eq!(readable_by_others(None), None);
    Ok(())
}
