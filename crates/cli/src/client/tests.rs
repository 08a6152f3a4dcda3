use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

use super::*;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Answers one connection with these bytes and hands back the request.
fn answering(answer: &'static str) -> Result<(Client, JoinHandle<io::Result<String>>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = Client::new(listener.local_addr()?);
    let request = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut request = Vec::new();
        while !request.ends_with(b"{}") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            request.extend(byte);
        }
        stream.write_all(answer.as_bytes())?;
        Ok(String::from_utf8_lossy(&request).into_owned())
    });
    Ok((client, request))
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
        request.contains(&format!("host: {}\r\n", client.address)),
        "{request}"
    );
    assert!(
        request.contains("content-type: application/json\r\n"),
        "{request}"
    );
    Ok(())
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
    let error = block_on(Client::new(address).status()).expect_err("nobody listens");
    assert!(matches!(error, Error::NotRunning { .. }), "{error:?}");
    let message = error.to_string();
    assert!(
        message.contains(&address.to_string()) && message.contains("--endpoint"),
        "{message}"
    );
    Ok(())
}
