#![expect(clippy::disallowed_methods, reason = "tests write files of their own")]

use std::os::unix::fs::MetadataExt as _;

use super::*;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn bind(path: &Path) -> std::result::Result<Listener, Error> {
    Listener::bind(&Address::Unix(path.to_owned()), &Disk::default())
}

#[test]
fn a_socket_is_for_its_owner_and_group_and_gone_after() -> Result {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("maintenance.sock");
    let listener = bind(&path)?;
    assert_eq!(listener.address()?, Address::Unix(path.clone()));
    let found = fs::symlink_metadata(&path)?;
    assert!(found.file_type().is_socket());
    assert_eq!(found.mode() & 0o777, 0o660);
    assert_eq!(fs::read_dir(&directory)?.count(), 1, "nothing else is left");
    unix::UnixStream::connect(&path)?;
    drop(listener);
    assert_eq!(fs::read_dir(&directory)?.count(), 0);
    Ok(())
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() -> Result {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("maintenance.sock");
    // Of a process that was killed: the file stays, nobody listens; and it was killed while
    // it prepared another.
    drop(unix::UnixListener::bind(&path)?);
    fs::create_dir(disk::temporary_of(&path))?;
    fs::write(disk::temporary_of(&path).join("socket"), "")?;
    let live = bind(&path)?;
    let error = bind(&path).expect_err("somebody listens").to_string();
    assert!(error.contains("another process listens there"), "{error}");
    assert!(error.contains("unix:"), "{error}");
    unix::UnixStream::connect(&path)?;
    drop(live);
    Ok(())
}

#[test]
fn what_is_no_socket_stays() -> Result {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("maintenance.sock");
    fs::write(&path, "precious")?;
    let error = bind(&path).expect_err("a file is there").to_string();
    assert!(error.contains("no socket"), "{error}");
    assert_eq!(fs::read(&path)?, b"precious");
    Ok(())
}

#[test]
fn a_path_that_is_too_long_is_said_to_be() -> Result {
    let directory = tempfile::tempdir()?;
    let bytes = |path: &Path| path.as_os_str().len();
    let of_bytes = |wanted: usize| {
        let rest = wanted - bytes(directory.path()) - 1;
        directory.path().join("s".repeat(rest))
    };
    drop(bind(&of_bytes(95))?);
    let error = bind(&of_bytes(96)).expect_err("too long").to_string();
    assert!(error.contains("95 bytes"), "{error}");
    assert_eq!(fs::read_dir(&directory)?.count(), 0, "nothing is left");
    Ok(())
}

#[test]
fn a_directory_that_is_missing_is_said_to_be() -> Result {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("run/maintenance.sock");
    let error = bind(&path).expect_err("no directory").to_string();
    assert!(error.contains("its directory must exist"), "{error}");
    assert!(
        error.contains("maintenance.readiness.bind_address"),
        "{error}"
    );
    Ok(())
}
