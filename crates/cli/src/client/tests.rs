use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use super::*;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Answers one connection with these bytes and hands back the request.
fn answering(answer: &'static str) -> Result<(Client, JoinHandle<io::Result<String>>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let endpoint = Endpoint::Tcp(listener.local_addr()?.to_string());
    let client = Client::new(endpoint, Token::new("a token"));
    let request = std::thread::spawn(move || {
        let (stream, _) = listener.accept()?;
        self::answer(stream, answer)
    });
    Ok((client, request))
}

fn answer(mut stream: impl Read + Write, answer: &str) -> io::Result<String> {
    let mut request = Vec::new();
    while !(request.ends_with(b"{}") || request.ends_with(b"\"}")) {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        request.extend(byte);
    }
    stream.write_all(answer.as_bytes())?;
    Ok(String::from_utf8_lossy(&request).into_owned())
}

fn asked(answer: &'static str) -> Result<std::result::Result<RunId, Error>> {
    let (client, request) = answering(answer)?;
    let result = block_on(client.start());
    request.join().expect("no panic")?;
    Ok(result)
}

#[test]
fn asks_as_the_endpoint_wants_to_be_asked() -> Result {
    let (client, request) =
        answering("HTTP/1.1 202 Accepted\r\nContent-Length: 13\r\n\r\n{\"run\":\"a-b\"}")?;
    let run = block_on(client.start())?;
    assert_eq!(run.as_str(), "a-b");
    let request = request.join().expect("no panic")?;
    assert!(
        request.starts_with("POST /api/v1/runs HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(
        request.contains(&format!("host: {}\r\n", client.endpoint)),
        "{request}"
    );
    assert!(
        request.contains("content-type: application/json\r\n"),
        "{request}"
    );
    assert!(
        request.contains("authorization: Bearer a token\r\n"),
        "{request}"
    );
    assert!(!format!("{client:?}").contains("a token"), "{client:?}");
    Ok(())
}

#[test]
fn the_switch_is_ordered() -> Result {
    let (client, request) = answering(
        "HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\n{\"journal_mode\":\"delete\",\
         \"switch\":{\"ordered\":\"2026-11-22T03:00:00Z\",\"failed\":null},\"message\":\"soon\"}",
    )?;
    let ordered = block_on(client.order_wal())?;
    assert_eq!(ordered.journal_mode, "delete");
    assert!(ordered.switch.is_some_and(|order| order.failed.is_none()));
    let request = request.join().expect("no panic")?;
    let first = "PUT /api/v1/journal-mode HTTP/1.1\r\n";
    assert!(request.starts_with(first), "{request}");
    assert!(request.ends_with(r#"{"journal_mode":"wal"}"#), "{request}");
    assert!(
        request.contains("authorization: Bearer a token\r\n"),
        "{request}"
    );
    Ok(())
}

#[test]
fn a_socket_is_asked_as_an_address_is() -> Result {
    let directory = tempfile::TempDir::new()?;
    let path = directory.path().join("endpoint.sock");
    let listener = UnixListener::bind(&path)?;
    let endpoint: Endpoint = format!("unix:{}", path.display()).parse()?;
    let request = std::thread::spawn(move || {
        answer(
            listener.accept()?.0,
            "HTTP/1.1 202 Accepted\r\nContent-Length: 13\r\n\r\n{\"run\":\"a-b\"}",
        )
    });
    let run = block_on(Client::new(endpoint, None).start())?;
    assert_eq!(run.as_str(), "a-b");
    let request = request.join().expect("no panic")?;
    assert!(request.contains("host: localhost\r\n"), "{request}");
    assert!(!request.contains("authorization"), "{request}");
    Ok(())
}

#[test]
fn endpoints_are_written_in_three_ways() {
    let tcp = |authority: &str| Ok(Endpoint::Tcp(authority.to_owned()));
    for (text, endpoint) in [
        ("127.0.0.1:1414", tcp("127.0.0.1:1414")),
        ("tracker:1414", tcp("tracker:1414")),
        ("http://tracker:1414", tcp("tracker:1414")),
        ("http://[::1]:1414/", tcp("[::1]:1414")),
        ("unix:/run/t.sock", Ok(Endpoint::Unix("/run/t.sock".into()))),
        (
            "unix:///run/t.sock",
            Ok(Endpoint::Unix("/run/t.sock".into())),
        ),
    ] {
        assert_eq!(text.parse(), endpoint, "{text}");
    }
    for text in [
        "",
        "unix:",
        "tracker",
        "tracker:port",
        ":1414",
        "https://tracker:1414",
        "http://tracker:1414/ready",
        "tracker:99999",
        "user@tracker:1414",
        "a b:1",
    ] {
        assert!(text.parse::<Endpoint>().is_err(), "{text}");
    }
}

#[test]
fn a_refusal_keeps_the_endpoints_words() -> Result {
    let answer = asked(
        "HTTP/1.1 409 Conflict\r\nContent-Length: 36\r\n\r\n{\"error\":\"busy\",\"message\":\"run a-b\"}",
    )?;
    assert!(
        matches!(&answer, Err(Error::Refused { status: 409, error, message }) if error == "busy" && message == "run a-b"),
        "{answer:?}"
    );
    Ok(())
}

#[test]
fn what_is_not_the_endpoint_is_not_understood() -> Result {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
        "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}",
    ] {
        let result = asked(answer)?;
        assert!(
            matches!(result, Err(Error::NotUnderstood { .. })),
            "{answer:?}: {result:?}"
        );
    }
    for answer in ["", "SSH-2.0-OpenSSH_9.2p1\r\n"] {
        let result = asked(answer)?;
        assert!(
            matches!(result, Err(Error::Silent { .. })),
            "{answer:?}: {result:?}"
        );
    }
    Ok(())
}

#[test]
fn nobody_there_names_the_address_and_what_to_do() -> Result {
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let error = block_on(Client::new(Endpoint::Tcp(address.to_string()), None).status())
        .expect_err("nobody listens");
    assert!(matches!(error, Error::NotRunning { .. }), "{error:?}");
    let message = error.to_string();
    assert!(
        message.contains(&address.to_string()) && message.contains("--endpoint"),
        "{message}"
    );
    Ok(())
}

#[test]
fn only_where_nobody_listens_no_tracker_runs() -> Result {
    let directory = tempfile::TempDir::new()?;
    let path = directory.path().join("endpoint.sock");
    let at = |path: &Path| Client::new(Endpoint::Unix(path.to_owned()), None);
    // None yet; then one that nobody listens on any more.
    for _ in 0..2 {
        let error = block_on(at(&path).status()).expect_err("nobody listens");
        assert!(matches!(error, Error::NotRunning { .. }), "{error:?}");
        if !path.exists() {
            drop(UnixListener::bind(&path)?);
        }
    }
    let tcp = Client::new(Endpoint::Tcp("tracker:1414".to_owned()), None);
    for kind in [
        io::ErrorKind::TimedOut,
        io::ErrorKind::HostUnreachable,
        io::ErrorKind::PermissionDenied,
        io::ErrorKind::Other,
    ] {
        let error = tcp.not_connected(kind.into());
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        let failure = crate::exit::Failure::from(error);
        assert_eq!(
            failure.error, "unreachable",
            "which --force does not overrule"
        );
    }
    Ok(())
}

#[test]
fn a_socket_for_others_names_the_group_and_the_mode() -> Result {
    let directory = tempfile::TempDir::new()?;
    let path = directory.path().join("endpoint.sock");
    let _listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660))?;
    let group = fs::metadata(&path)?.gid();
    let client = Client::new(Endpoint::Unix(path.clone()), None);
    // Root, who may run this, is let in everywhere.
    let error = client.not_connected(io::ErrorKind::PermissionDenied.into());
    let message = error.to_string();
    for what in [
        &format!("{} is for", path.display()),
        &format!("group {group} "),
        "mode 0660",
    ] {
        assert!(message.contains(what), "{what}: {message}");
    }
    let failure = crate::exit::Failure::from(error);
    assert_eq!((failure.error, failure.exit as u8), ("not_allowed", 2));
    // What lies behind a closed directory is not seen.
    let behind = directory.path().join("closed/endpoint.sock");
    let barrier = Barrier::before(&behind).ok_or("there is always the root")?;
    assert_eq!(barrier.path, directory.path());
    Ok(())
}
